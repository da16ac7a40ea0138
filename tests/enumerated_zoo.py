"""Programs with marked sites, written once for both frameworks, and what they are worth.

The exact loss is a sum over all that the guide can draw, and within each draw the logarithm of a
sum over all values of the marked sites, one joint state after the other. Programs are of `host_zoo`
kind; all latents of the model that the guide lacks are marked. `BY_HAND` are pairs of models that
are the same, one with a marked site and one that is summed by hand.
"""

from functools import partial

import numpy as np
import pytest
from host_zoo import Host, X, bernoulli, seen

__all__ = ["BY_HAND", "PROGRAMS", "by_states", "exact"]

PROGRAMS: list[Host] = []
SUM = {"enumerate": "parallel"}


def program(model, guide, **params):
    arrays = {key: np.asarray(value, dtype=float) for key, value in params.items()}
    PROGRAMS.append(Host(model.__name__, model, guide, arrays, {}, 9))


def scale_guide(ppl):
    bernoulli(ppl, "wide", ppl.param("q"))
    ppl.sample("loc", ppl.dist.Delta(ppl.param("m")))


def mixture(ppl):
    """Assignments beside a scale that is drawn and a location with a gradient."""
    wide = bernoulli(ppl, "wide", -0.3)
    loc = ppl.sample("loc", ppl.dist.Normal(0.0, 1.0))
    with ppl.plate("data", 2):
        z = ppl.sample("z", ppl.dist.Categorical(logits=ppl.param("logits")), infer=SUM)
        seen(ppl, "x", loc + ppl.array([-1.0, 0.0, 1.5])[z], X, 0.5 + wide)


program(mixture, scale_guide, q=0.4, m=0.2, logits=[0.1, -0.4, 0.3])


def chain(ppl):
    """A hidden Markov chain beside a location, and a scale that is drawn."""
    wide = bernoulli(ppl, "wide", -0.3)
    loc = ppl.sample("loc", ppl.dist.Normal(0.0, 1.0))
    table, z = ppl.param("table"), ppl.integers(0)
    for t in ppl.markov(range(4)):
        z = ppl.sample(f"z{t}", ppl.dist.Categorical(logits=table[z]), infer=SUM)
        seen(ppl, f"x{t}", loc * z, 0.4 * t - 0.3, 0.5 + wide)


program(chain, scale_guide, q=0.4, m=0.8, table=[[0.3, -0.1], [0.5, 0.2]])


def nested_guide(ppl):
    with ppl.plate("data", 2, dim=-2):
        bernoulli(ppl, "u", ppl.param("q"))


def nested(ppl):
    """A marked site of each datum, one of each of its words, and a drawn one between them."""
    data, words = ppl.plate("data", 2, dim=-2), ppl.plate("words", 3, dim=-1)
    with data:
        z = bernoulli(ppl, "z", ppl.param("p"), infer=SUM)
        u = bernoulli(ppl, "u", 0.5 * z - 0.2)
        with words:
            w = bernoulli(ppl, "w", z - u, infer=SUM)
            seen(ppl, "x", w + 0.5 * z, np.outer(X, [1.0, 0.3, -0.4]))


program(nested, nested_guide, q=[[0.4], [-0.3]], p=0.2)


def rows_guide(ppl):
    with ppl.plate("data", 5, subsample=ppl.rows([3, 0])):
        bernoulli(ppl, "u", ppl.param("q"))


def rows(ppl):
    """Two rows of five."""
    with ppl.plate("data", 5, subsample=ppl.rows([3, 0])):
        u = bernoulli(ppl, "u", 0.3)
        z = bernoulli(ppl, "z", ppl.param("p") + u, infer=SUM)
        seen(ppl, "x", z + u, X)


program(rows, rows_guide, q=[0.4, -0.3], p=0.2)


def masked(ppl):
    """A datum whose marked site and observation are masked, and one whose observation is."""
    with ppl.plate("data", 2):
        u = bernoulli(ppl, "u", 0.3)
        with ppl.mask(mask=ppl.bools([True, False])):
            z = bernoulli(ppl, "z", ppl.param("p") + u, infer=SUM)
            seen(ppl, "x", z + u, X)
        with ppl.mask(mask=ppl.bools([False, True])):
            seen(ppl, "y", 2.0 * z, X)


def data_guide(ppl):
    with ppl.plate("data", 2):
        bernoulli(ppl, "u", ppl.param("q"))


program(masked, data_guide, q=[0.4, -0.3], p=0.2)


def shared(ppl):
    """A marked site that all data share, and a factor on it."""
    z = ppl.sample("z", ppl.dist.Binomial(3, logits=ppl.param("p")), infer=SUM)
    ppl.factor("f", 0.2 * z)
    with ppl.plate("data", 2):
        u = bernoulli(ppl, "u", 0.3)
        seen(ppl, "x", z + u, X)


program(shared, data_guide, q=[0.4, -0.3], p=0.2)


def tempered(ppl):
    """All at half of its weight; a marked vector that the data share."""
    with ppl.scale(scale=0.5):
        z = ppl.sample("z", ppl.one_hot(logits=ppl.param("p")), infer=SUM)
        with ppl.plate("data", 2):
            u = bernoulli(ppl, "u", 0.3)
            seen(ppl, "x", (z * ppl.array([1.0, -2.0, 0.3])).sum(-1) + u, X)


def tempered_guide(ppl):
    with ppl.scale(scale=0.5), ppl.plate("data", 2):
        bernoulli(ppl, "u", ppl.param("q"))


program(tempered, tempered_guide, q=[0.4, -0.3], p=[0.2, -0.4, 0.1])


def nothing_guide(ppl):
    pass


def all_marked(ppl):
    """Nothing to draw at all; two marked sites meet in one observation."""
    with ppl.plate("data", 2):
        a = bernoulli(ppl, "a", ppl.param("p"), infer=SUM)
        b = bernoulli(ppl, "b", 0.4, infer=SUM)
        seen(ppl, "x", a - 2.0 * b, X)


program(all_marked, nothing_guide, p=0.2)


# ------------------------------------------------------------------------- summed by hand


def sum_by_hand(ppl, name, parts):
    """A factor of the logarithm of a sum of densities."""
    ppl.factor(name, ppl.logaddexp(*parts))


def halves(ppl):
    """A location that the data share, a drawn code and a marked one of each datum."""
    loc = ppl.sample("loc", ppl.dist.Normal(0.0, 1.0))
    with ppl.plate("data", 2):
        u = bernoulli(ppl, "u", 0.3)
        z = bernoulli(ppl, "z", ppl.param("p") + u, infer=SUM)
        seen(ppl, "x", loc + 2.0 * z - u, X)


def halves_by_hand(ppl):
    loc = ppl.sample("loc", ppl.dist.Normal(0.0, 1.0))
    with ppl.plate("data", 2):
        u = bernoulli(ppl, "u", 0.3)
        odds = ppl.dist.Bernoulli(logits=ppl.param("p") + u)
        xs = [ppl.dist.Normal(loc + 2.0 * z - u, 1.0).log_prob(ppl.array(X)) for z in (0.0, 1.0)]
        sum_by_hand(ppl, "x", [odds.log_prob(ppl.array(z)) + xs[z] for z in (0, 1)])


def halves_guide(ppl):
    ppl.sample("loc", ppl.dist.Normal(ppl.param("m"), 0.5))
    with ppl.plate("data", 2):
        bernoulli(ppl, "u", ppl.param("q"))


def upstream(ppl):
    """A drawn code that depends on the marked one: its share of the sum is of the rate."""
    with ppl.plate("data", 2):
        z = bernoulli(ppl, "z", ppl.param("p"), infer=SUM)
        u = bernoulli(ppl, "u", 1.5 * z - 0.4)
        seen(ppl, "x", 2.0 * z - u, X)


def upstream_by_hand(ppl):
    odds = ppl.dist.Bernoulli(logits=ppl.param("p"))
    codes = [ppl.dist.Bernoulli(logits=ppl.array(a)) for a in (-0.4, 1.1)]
    prior = [sum_of_two(ppl, odds, [code.log_prob(ppl.array(u)) for code in codes]) for u in (0, 1)]
    with ppl.plate("data", 2):
        u = bernoulli(ppl, "u", prior[1] - prior[0])
        xs = [ppl.dist.Normal(2.0 * z - u, 1.0).log_prob(ppl.array(X)) for z in (0.0, 1.0)]
        joint = sum_of_two(ppl, odds, [codes[z].log_prob(u * 1.0) + xs[z] for z in (0, 1)])
        ppl.factor("x", joint - ppl.dist.Bernoulli(logits=prior[1] - prior[0]).log_prob(u * 1.0))


def sum_of_two(ppl, odds, parts):
    return ppl.logaddexp(*(odds.log_prob(ppl.array(z)) + parts[z] for z in (0, 1)))


BY_HAND = {
    "halves": (halves, halves_by_hand, halves_guide, {"m": 0.3, "p": 0.2, "q": [0.4, -0.3]}),
    "upstream": (upstream, upstream_by_hand, data_guide, {"p": 0.2, "q": [0.4, -0.3]}),
}


# ------------------------------------------------------------------------- by brute force


def exact(host):
    """Minus the ELBO and its gradients, by brute force."""
    pyro = pytest.importorskip("pyro")
    oracle = __import__("host_pyro")
    model, guide, leaves = oracle.programs(host)

    def run(program, places):
        with pyro.validation_enabled(False), oracle.Pick(places, host.nodes) as pick:
            return pyro.poutine.trace(program).get_trace(), pick

    def of_guide(places):
        trace, pick = run(guide, places)
        replayed = pyro.poutine.replay(model, trace)
        states = list(oracle.paths(lambda p: _state(*run(replayed, p), set(trace.nodes))))
        return pick.weight * (trace.log_prob_sum() - _log_sum(states)), pick.counts

    total = sum(oracle.paths(of_guide))
    total.backward()
    grads = {n: np.zeros(p.shape) if p.grad is None else p.grad.numpy() for n, p in leaves.items()}
    return float(total.detach()), grads


def _state(trace, pick, drawn):
    """Log-densities of a joint state by their weight; those of marked sites have no mask."""
    trace.compute_log_prob()
    sums = {}
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and type(site["fn"]).__name__ != "_Subsample":
            marked = not site["is_observed"] and name not in drawn
            value, weight = site["unscaled_log_prob"], float(site["scale"])
            mask = None if marked else site["mask"]
            value = value.sum() if mask is None else value[mask.expand(value.shape)].sum()
            sums[weight, marked] = sums.get((weight, marked), 0.0) + value
    return sums, pick.counts


def _log_sum(states):
    """Of the weight that marked sites have, the logarithm of a sum; of all others, any state's."""
    (weight,) = {weight for weight, marked in states[0] if marked}
    joint = [s[weight, True] + s.get((weight, False), 0.0) for s in states]
    others = sum(w * v for (w, _), v in states[0].items() if w != weight)
    return weight * __import__("torch").stack(joint).logsumexp(0) + others


def by_states(host, posterior):
    """Probabilities of the values of marked sites, given draws, in the mean over these."""
    pyro = pytest.importorskip("pyro")
    oracle = __import__("host_pyro")
    model, guide, _ = oracle.programs(host)
    drawn = {n: site.draws for n, site in posterior.sites.items() if site.draws is not None}
    rows = [(draws.reshape(len(draws), -1)).tolist() for draws in drawn.values()]
    rows = [tuple(map(tuple, row)) for row in zip(*rows, strict=True)] or [()]
    found = {}
    for row in set(rows):
        values = dict(zip(drawn, row, strict=True))
        trace = _holding(pyro, guide, values)
        states = list(oracle.paths(partial(_valued, oracle, pyro, model, trace)))
        weights = np.exp([log_p - max(log_p for log_p, _ in states) for log_p, _ in states])
        shares = rows.count(row) / len(rows) * weights / weights.sum()
        for share, (_, codes) in zip(shares, states, strict=True):
            for name, values in codes.items():
                table = found.setdefault(name, np.zeros(posterior[name].probs.shape))
                hits = values.reshape(*table.shape[:-1], 1) == np.arange(table.shape[-1])
                table += share * hits
    return found


def _holding(pyro, guide, values):
    """A run of a guide with these values of its latents, in its shapes."""
    torch, trace = __import__("torch"), pyro.poutine.trace(guide).get_trace()
    for name, value in values.items():
        node = trace.nodes[name]
        node["value"] = torch.tensor(value, dtype=torch.float64).reshape(node["value"].shape)
    return trace


def _valued(oracle, pyro, model, drawn, places):
    """The log joint of a state, and the codes of its marked sites; and the number of choices."""
    with pyro.validation_enabled(False), oracle.Pick(places, 9) as pick:
        trace = pyro.poutine.trace(pyro.poutine.replay(model, drawn)).get_trace()
    sums, counts = _state(trace, pick, set(drawn.nodes))
    marked = {
        n: s
        for n, s in trace.nodes.items()
        if s["type"] == "sample" and s["infer"].get("enumerate") and n not in drawn.nodes
    }
    values = {
        n: s["value"].argmax(-1) if s["fn"].event_dim else s["value"] for n, s in marked.items()
    }
    return (float(sum(sums.values()).detach()), {n: v.numpy() for n, v in values.items()}), counts
