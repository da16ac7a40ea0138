"""Sizes, families and names that Python takes from a draw: every way through a program counts."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import special, stats

torch = pytest.importorskip("torch")
pyro = pytest.importorskip("pyro")
import pyro.distributions as dist  # noqa: E402
from any_pyro import fresh, quiet  # noqa: E402
from pyro import poutine  # noqa: E402

from pyro_dvae.diagnostics import (  # noqa: E402
    discrete_posterior,
    importance_diagnostics,
    posterior_gap,
)
from pyro_dvae.guides import AutoDiscrete  # noqa: E402
from pyro_dvae.infer import (  # noqa: E402
    DAPS_ELBO,
    Exact_ELBO,
    Reinforce_ELBO,
    Truncated_ELBO,
    TruncatedGuide,
)
from pyro_dvae.programs.structure.looking import numbers_within  # noqa: E402
from pyro_dvae.programs.structure.ways import _states  # noqa: E402

__all__ = ["fresh"]  # a fixture of every test here

Y = torch.tensor(1.3, dtype=torch.float64)


def coin(name):
    return dist.Bernoulli(logits=pyro.param(f"of_{name}", torch.tensor(0.3)))


def three():
    return dist.Categorical(logits=pyro.param("three", torch.tensor([0.1, 0.2, 0.4])))


def sized(is_model):
    n = int(
        pyro.sample("n", dist.Categorical(torch.tensor([0.2, 0.3, 0.5])) if is_model else three())
    )
    with pyro.plate("each", n + 1):
        return pyro.sample("w", dist.Bernoulli(0.3) if is_model else coin("w")).sum()


def named(is_model):
    n = int(
        pyro.sample("n", dist.Categorical(torch.tensor([0.2, 0.3, 0.5])) if is_model else three())
    )
    return n + pyro.sample(f"w_{n}", dist.Bernoulli(0.3) if is_model else coin("w"))


def of_a_family(is_model):
    if pyro.sample("s", dist.Bernoulli(0.4) if is_model else coin("s")):
        return pyro.sample("w", dist.Bernoulli(0.3) if is_model else coin("w"))
    uniform = dist.Categorical(torch.ones(3) / 3)
    return pyro.sample("w", uniform if is_model else three()).double()


def supported(is_model):
    n = int(
        pyro.sample("n", dist.Categorical(torch.tensor([0.2, 0.3, 0.5])) if is_model else three())
    )
    logits = torch.zeros(3) if is_model else pyro.param("of_w", torch.tensor([0.1, 0.2, 0.4]))
    return pyro.sample("w", dist.Categorical(logits=logits[: n + 1])).double()


PROGRAMS = [sized, named, of_a_family, supported]
SLOW = [pytest.param(program, marks=pytest.mark.slow) for program in PROGRAMS[1:]]


def pair_of(program):
    def model(y):
        pyro.sample("y", dist.Normal(program(True), 1.0), obs=y)

    return model, lambda y: program(False)


class OpenError(Exception):
    """A run has come to a draw that is not given."""


class Given(poutine.messenger.Messenger):
    """Takes values one after another."""

    def __init__(self, values):
        super().__init__()
        self.values = iter(values)

    def _pyro_sample(self, msg):
        if msg["is_observed"] or type(msg["fn"]).__name__ == "_Subsample":
            return
        value = next(self.values, None)
        if value is None:
            support = msg["fn"].enumerate_support(expand=False).flatten()
            cells = itertools.product(support, repeat=msg["fn"].batch_shape.numel())
            raise OpenError([torch.stack(each).reshape(msg["fn"].batch_shape) for each in cells])
        msg["value"], msg["done"] = value, True


def ways(program):
    """All runs of a program."""
    unfinished = [()]
    while unfinished:
        values = unfinished.pop()
        try:
            with Given(values):
                trace = poutine.trace(program).get_trace(Y)
            yield trace
        except OpenError as branch:
            unfinished.extend((*values, value) for value in branch.args[0])


def exact(model, guide):
    loss = 0.0
    for trace in ways(guide):
        log_q = trace.log_prob_sum()
        log_p = poutine.trace(poutine.replay(model, trace)).get_trace(Y).log_prob_sum()
        loss = loss - log_q.exp() * (log_p - log_q)
    return loss


@pytest.mark.parametrize("loss", [Reinforce_ELBO, pytest.param(DAPS_ELBO, marks=pytest.mark.slow)])
@pytest.mark.parametrize("program", [*PROGRAMS[:1], *SLOW])
def test_what_samples_is_right(program, loss):
    model, guide = pair_of(program)
    guide(Y)
    expected = exact(model, guide)
    expected.backward()
    leaves = {name: leaf.unconstrained() for name, leaf in pyro.get_param_store().items()}
    slopes = torch.cat([leaf.grad.flatten() for leaf in leaves.values()])
    elbo, draws = loss(4), []
    for _ in range(80):
        for leaf in leaves.values():
            leaf.grad = None
        value = quiet(lambda: elbo.loss_and_grads(model, guide, Y))
        grads = [
            torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves.values()
        ]
        draws.append([float(value), *torch.cat([grad.flatten() for grad in grads]).tolist()])
    draws, right = np.array(draws), np.array([expected.item(), *slopes.tolist()])
    kept = slice(None) if loss is Reinforce_ELBO else slice(1)  # a policy search has its own slope
    apart = np.abs(draws.mean(0) - right)[kept]
    assert (apart < 5 * draws.std(0, ddof=1)[kept] / len(draws) ** 0.5 + 1e-12).all(), apart


@pytest.mark.parametrize("program", PROGRAMS)
def test_what_lists_states_refuses_whatever_is_drawn_first(program):
    for seed in range(3):
        pyro.set_rng_seed(seed)
        with pytest.raises(ValueError, match="so the states cannot be listed"):
            quiet(lambda: Exact_ELBO().loss(*pair_of(program), Y))


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_evidence_is_that_of_all_ways(program):
    pair = pair_of(program)
    pair[1](Y)
    log_p = torch.stack([trace.log_prob_sum() for trace in ways(pair[0])])
    gap = posterior_gap(pair, Y)
    np.testing.assert_allclose(gap.log_evidence, float(log_p.logsumexp(0)), rtol=1e-6)
    np.testing.assert_allclose(gap.elbo, -exact(*pair).item(), rtol=1e-6)
    if program is sized:
        with pytest.raises(ValueError, match="'w' has another shape in some draws"):
            importance_diagnostics(pair, Y, num_particles=30)
        return
    report = importance_diagnostics(pair, Y, num_particles=100)
    assert abs(float(report.iwae) - float(log_p.logsumexp(0))) < 5 * float(report.iwae_error)


def marked(where):
    """A latent, or none, as another is drawn; summed, or drawn by the guide."""

    def model(y):
        k = pyro.sample("k", dist.Bernoulli(0.3))
        loc = torch.tensor(2.0)
        if not k:
            infer = {"enumerate": "parallel"} if where == "marked" else {}
            loc = 2.0 * pyro.sample("j", dist.Bernoulli(0.6), infer=infer)
            with pyro.plate("pixels", 2):
                h = pyro.sample("h", dist.Bernoulli(0.2), infer=infer)
                pyro.sample("v", dist.Normal(h + loc, 1.0), obs=torch.tensor([0.3, 0.4]))
        pyro.sample("y", dist.Normal(loc, 1.0), obs=y)

    return model


def losses_of(model, guide, number):
    elbo = Reinforce_ELBO(20)
    return quiet(lambda: np.array([elbo.loss(model, guide, Y) for _ in range(number)]))


def gaussian(x, loc):
    return np.exp(-0.5 * (x - loc) ** 2) / np.sqrt(2 * np.pi)


def test_marked_sites_that_come_and_go_are_summed_whatever_is_drawn_first():
    def guide(y):
        pyro.sample("k", dist.Bernoulli(0.6))

    def with_j(j):
        pixels = [0.8 * gaussian(v, 2 * j) + 0.2 * gaussian(v, 2 * j + 1) for v in (0.3, 0.4)]
        return (0.4, 0.6)[j] * np.prod(pixels) * gaussian(1.3, 2.0 * j)

    at = np.array([with_j(0) + with_j(1), gaussian(1.3, 2.0)])
    prior, q = np.array([0.7, 0.3]), np.array([0.4, 0.6])
    for seed in range(4):
        pyro.set_rng_seed(seed)
        loss = quiet(lambda: Exact_ELBO().loss(marked("marked"), guide, Y))
        np.testing.assert_allclose(loss, -(q * np.log(prior * at / q)).sum(), rtol=1e-9)
        gap = posterior_gap((marked("marked"), guide), Y)
        np.testing.assert_allclose(gap.log_evidence, np.log((prior * at).sum()), rtol=1e-9)
        values = losses_of(marked("marked"), guide, 8)
        assert abs(values.mean() - loss) < 5 * values.std(ddof=1) / 8**0.5


def nested(y):
    z = pyro.sample("z", dist.Bernoulli(0.4))
    loc = torch.tensor(0.0)
    if z:
        loc = 1.0 + pyro.sample("w", dist.Categorical(torch.tensor([0.2, 0.3, 0.5])))
        if loc == 3:
            loc = loc + 2 * pyro.sample("u", dist.Bernoulli(0.7))
    v = pyro.sample("v", dist.Bernoulli(torch.sigmoid(loc)))
    pyro.sample("y", dist.Normal(loc - v, 1.0), obs=y)


OTHERS = [pytest.param(name, marks=pytest.mark.slow) for name in ("mean_field", "chain")]


@pytest.mark.parametrize("structure", [*OTHERS, "model"])
def test_an_automatic_guide_has_all_sites_that_come_and_go(structure):
    """The loss beside the sum over all ways; it starts at the prior, whatever is drawn first."""
    parents = {"chain": ("z", "z", "w"), "model": ("z", "z", "zw")}.get(structure, ("", "", ""))
    for seed in range(2):
        pyro.clear_param_store()
        pyro.set_rng_seed(seed)
        guide = AutoDiscrete(nested, structure=structure)
        values = losses_of(nested, guide, 12)
        found = {name: latent.parents for name, latent in guide._latents.items()}
        assert found == {"z": (), **dict(zip("vwu", map(tuple, parents), strict=True))}
        expected = exact(nested, guide).item()
        assert abs(values.mean() - expected) < 5 * values.std(ddof=1) / 12**0.5
    assert torch.allclose(guide.logits.z, torch.tensor(0.4).logit())
    posterior = quiet(lambda: discrete_posterior((nested, guide), Y, num_draws=400, corrected=True))
    log_p = {}
    for trace in ways(nested):
        log_p.setdefault(int(trace.nodes["z"]["value"]), []).append(trace.log_prob_sum())
    at = [float(torch.stack(log_p[z]).logsumexp(0).exp()) for z in (0, 1)]
    assert abs(posterior["z"].probs[1] - at[1] / sum(at)) < 0.15
    with pytest.raises(NotImplementedError, match="is not in each run"):
        guide.mode(Y)


@pytest.mark.parametrize("program", [sized, of_a_family])
def test_sites_of_other_kinds_as_others_are_drawn_are_refused_by_an_automatic_guide(program):
    model = pair_of(program)[0]
    for seed in range(3):
        pyro.set_rng_seed(seed)
        with pytest.raises(ValueError, match=r"'w' is a .* where other draws lead to it"):
            AutoDiscrete(model)(Y)


def trials(number):
    """A Binomial whose number of trials Python takes from a draw, or whose probability is drawn."""

    def program(is_model, seen):
        z = pyro.sample("z", dist.Bernoulli(0.3 if is_model else 0.4))
        n = pyro.sample("n", dist.Binomial(number(z), 0.2 + 0.5 * z if is_model else 0.5 + 0 * z))
        if is_model:
            pyro.sample("y", dist.Normal(n - z, 1.0), obs=seen)

    return lambda y: program(True, y), lambda y: program(False, y)


def test_trials_that_a_draw_says_are_refused_where_states_are_listed_and_no_others():
    for seed in range(3):
        pyro.set_rng_seed(seed)
        pair = trials(lambda z: int(z) + 1)
        for listed in (lambda: Exact_ELBO().loss(*pair, Y), lambda: posterior_gap(pair, Y)):  # noqa: B023
            with pytest.raises(ValueError, match=r"'n' \(Binomial\) may have other values"):
                quiet(listed)
    pair, states = trials(lambda z: 3), list(itertools.product((0, 1), range(4)))
    log_q = [stats.bernoulli.logpmf(z, 0.4) + stats.binom.logpmf(n, 3, 0.5) for z, n in states]
    log_p = [
        stats.bernoulli.logpmf(z, 0.3)
        + stats.binom.logpmf(n, 3, 0.2 + 0.5 * z)
        + stats.norm.logpdf(1.3, n - z)
        for z, n in states
    ]
    expected = -(np.exp(log_q) * (np.array(log_p) - log_q)).sum()
    np.testing.assert_allclose(Exact_ELBO().loss(*pair, Y), expected, rtol=1e-9)


def test_the_values_of_a_draw_are_listed_where_they_are_few():
    def values(fn):
        site = SimpleNamespace(
            base=fn, value=fn.sample(), has_finite_support=fn.has_enumerate_support
        )
        return [value.tolist() for value in _states(site)]

    assert values(dist.Normal(0.0, 1.0)) == []
    assert values(dist.Poisson(1.0)) == list(range(16))
    assert values(dist.Poisson(torch.ones(2))) == []  # 256
    assert values(dist.Bernoulli(torch.full((2,), 0.5))) == [[0, 0], [0, 1], [1, 0], [1, 1]]


def test_numbers_of_arguments_are_found_in_arrays_of_one():
    found = numbers_within({"a": (np.array(2.5), np.bool_(True)), "b": [3, True, np.ones(2)]})
    assert list(found) == [2.5, True, 3]


def test_a_guide_holds_trials_that_python_could_not_have_chosen():
    """What Python asks of a draw decides what comes later, and nothing that came before."""

    def asks(y, late):
        z = pyro.sample("z", dist.Bernoulli(0.3))
        n = pyro.sample("n", dist.Binomial(2, 0.4)) if late else None
        shift = 1.0 if z.item() else -0.5
        n = pyro.sample("n", dist.Binomial(2, 0.4)) if n is None else n
        pyro.sample("y", dist.Normal(shift + n, 1.0), obs=y)

    guide = AutoDiscrete(late := lambda y: asks(y, True))
    log_p = {
        (z, n): np.log(0.3 if z else 0.7)
        + stats.binom.logpmf(n, 2, 0.4)
        + stats.norm.logpdf(1.3, (1.0 if z else -0.5) + n)
        for z, n in itertools.product((0, 1), range(3))
    }
    log_q = {
        (z, n): np.log(0.3 if z else 0.7) + stats.binom.logpmf(n, 2, 0.4) for z, n in log_p
    }  # which starts at the prior
    expected = -sum(np.exp(log_q[state]) * (log_p[state] - log_q[state]) for state in log_p)
    np.testing.assert_allclose(quiet(lambda: Exact_ELBO().loss(late, guide, Y)), expected)
    with pytest.raises(ValueError, match=r"'n' \(Binomial\): the number of its values depends"):
        AutoDiscrete(lambda y: asks(y, False))(Y)


@pytest.mark.parametrize(
    "elbo",
    [Exact_ELBO(), Truncated_ELBO(), Reinforce_ELBO(4, closed_form_entropy=False)],
    ids=["exact", "truncated", "drawn"],
)
@pytest.mark.filterwarnings("ignore:model or guide does not", "ignore:under plate")
@pytest.mark.parametrize(("every", "per_datum"), [(2, True), (3, True), (3, False)])
def test_sites_that_come_and_go_from_run_to_run_leave_each_datum_its_states(every, per_datum, elbo):
    """As a count of runs says, and no draw: the site counts nothing here, so there is one value."""
    runs, y, prior = itertools.count(), np.array([0.5, -1.0]), 0.4

    def model(y):
        is_there = next(runs) % every == 0
        with pyro.plate("data", 2):
            z = pyro.sample("z", dist.Bernoulli(torch.tensor(prior).double()))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)
            if is_there and per_datum:
                pyro.factor("nothing", torch.zeros(2))
        if is_there and not per_datum:
            pyro.factor("nothing", torch.zeros(()))

    scores = np.array([[0.0], [1.0]])
    scores = stats.norm.logpdf(y, scores) + np.log(np.where(scores == 1, prior, 1 - prior))
    probs = np.exp(scores - special.logsumexp(scores, 0))

    def guide(y):
        with pyro.plate("data", 2):
            pyro.sample("z", dist.Bernoulli(torch.as_tensor(probs[1])))

    guide = TruncatedGuide(model, 2) if isinstance(elbo, Truncated_ELBO) else guide
    found = [float(elbo.loss(model, guide, torch.as_tensor(y))) for _ in range(2)]
    np.testing.assert_allclose(found, -special.logsumexp(scores, 0).sum(), rtol=1e-6)
