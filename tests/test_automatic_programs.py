"""Odd programs: the loss of `AutoDiscrete`, and `discrete_posterior`, beside a list of all states.

The densities of the list are those of the library's own traces, in double precision.
"""

import warnings

import numpy as np
import pytest
from automatic_lab import lab as make_lab
from listed_states import logs_of, states_of, values_of

X = np.array([1.3, -0.4])
SQUARE = np.array([[1.3, -0.4], [0.2, 2.1]])
SHARES = np.array([0.2, 0.3, 0.5])
TABLE = np.array([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]])
NUM_DRAWS = 2000


@pytest.fixture(params=["pyro", "numpyro"])
def lab(request):
    pytest.importorskip("torch" if request.param == "pyro" else "jax")
    return make_lab(request.param)


def crossed(ppl, x):
    rows, columns = ppl.plate("rows", 2, dim=-2), ppl.plate("columns", 2, dim=-1)
    with rows:
        a = ppl.sample("a", ppl.dist.Bernoulli(ppl.array([[0.3], [0.6]])))
    with columns:
        b = ppl.sample("b", ppl.dist.Categorical(ppl.array(TABLE)))
    with rows, columns:
        ppl.sample("x", ppl.dist.Normal(a + 2.0 * b, 1.0), obs=x)


def nested(ppl, x):
    with ppl.plate("data", 2, dim=-2):
        t = ppl.sample("t", ppl.dist.Bernoulli(ppl.array(0.3)))
        with ppl.plate("words", 2, dim=-1):
            w = ppl.sample("w", ppl.dist.Bernoulli(0.2 + 0.5 * t))
            ppl.sample("x", ppl.dist.Normal(2.0 * w + t, 1.0), obs=x)


def subsampled(ppl, x, rows):
    with ppl.plate("data", 3, dim=-1, subsample=rows):
        z = ppl.sample("z", ppl.dist.Categorical(ppl.array(SHARES)))
        ppl.sample("x", ppl.dist.Normal(z * ppl.array(1.0), 1.0), obs=x)


def infinite(ppl, x):
    with ppl.plate("data", 2, dim=-1):
        k = ppl.sample("k", ppl.dist.Poisson(ppl.array(0.7)))
        g = ppl.sample("g", ppl.dist.Geometric(ppl.array(0.7)))
        ppl.sample("x", ppl.dist.Normal(k - g, 1.0), obs=x)


def alone_in_its_chain(ppl, x):
    with ppl.plate("data", 2, dim=-1):
        state = 0.0
        for t in range(1):
            state = ppl.sample(f"z{t}", ppl.dist.Bernoulli(ppl.array(0.2) + 0.6 * state))
            ppl.sample(f"x{t}", ppl.dist.Normal(2.0 * state, 1.0), obs=x)


def observed_in_part(ppl, x, seen):
    with ppl.plate("data", 2, dim=-1):
        z = ppl.sample(
            "z", ppl.dist.Bernoulli(ppl.array(0.3)), obs=ppl.array([1.0, 0.0]), obs_mask=seen
        )
        ppl.sample("x", ppl.dist.Normal(z, 1.0), obs=x)


def marked(ppl, x):
    with ppl.plate("data", 2, dim=-1):
        a = ppl.sample("a", ppl.dist.Bernoulli(ppl.array(0.3)), infer={"enumerate": "parallel"})
        b = ppl.sample("b", ppl.dist.Categorical(ppl.array(TABLE)[ppl.integer(a)]))
        ppl.sample("x", ppl.dist.Normal(a + 2.0 * b, 1.0), obs=x)


def vectors(ppl, x):
    with ppl.plate("data", 2, dim=-1):
        o = ppl.sample("o", ppl.one_hot(ppl.array([[0.2, 0.8], [0.5, 0.5]])).to_event(1))
        ppl.sample("x", ppl.dist.Normal(o[..., 0, 1] + 2.0 * o[..., 1, 1], 1.0), obs=x)


def trials_of_data(ppl, x, trials):
    with ppl.plate("data", 2, dim=-1):
        n = ppl.sample("n", ppl.dist.Binomial(trials, ppl.array(0.4)))
        ppl.sample("x", ppl.dist.Normal(n, 1.0), obs=x)


def trials_of_a_latent(ppl, x):
    with ppl.plate("data", 2, dim=-1):
        n = ppl.sample("n", ppl.dist.Categorical(ppl.array(SHARES)))
        m = ppl.sample("m", ppl.dist.Binomial(ppl.integer(n), ppl.array(0.4)))
        ppl.sample("x", ppl.dist.Normal(m - 0.5 * n, 1.0), obs=x)


def trials_alike(ppl, x):
    """The probability depends on a latent, and not the number of values."""
    with ppl.plate("data", 2, dim=-1):
        z = ppl.sample("z", ppl.dist.Bernoulli(ppl.array(0.4)))
        n = ppl.sample("n", ppl.dist.Binomial(3, 0.2 + 0.5 * z))
        ppl.sample("x", ppl.dist.Normal(n - z, 1.0), obs=x)


def cells(ppl, x):
    with ppl.plate("data", 2, dim=-1):
        z = ppl.sample("z", ppl.dist.Bernoulli(ppl.array(SHARES[:2])).to_event(1))
        ppl.sample("x", ppl.dist.Normal(z[..., 0] + 2.0 * z[..., 1], 1.0), obs=x)


def shared_by_all(ppl, x):
    g = ppl.sample("g", ppl.dist.Categorical(ppl.array(SHARES)))
    with ppl.plate("data", 2, dim=-1):
        z = ppl.sample("z", ppl.dist.Bernoulli(ppl.array([0.1, 0.5, 0.8])[ppl.integer(g)]))
        ppl.sample("x", ppl.dist.Normal(2.0 * z + g * ppl.array(1.0), 1.0), obs=x)


def many_parents(ppl, x):
    """More joint states of the parents than a table has rows."""
    with ppl.plate("data", 1, dim=-1):
        a = ppl.sample("a", ppl.dist.Categorical(ppl.array(np.ones(9) / 9)))
        b = ppl.sample("b", ppl.dist.Categorical(ppl.array(np.arange(1, 10) / 45)))
        c = ppl.sample("c", ppl.dist.Bernoulli(0.05 + 0.05 * (a + b) * ppl.array(1.0)))
        ppl.sample("x", ppl.dist.Normal(c + 0.1 * a, 1.0), obs=x)


def under_no_plate_at_last(ppl, x):
    with ppl.plate("data", 2, dim=-1):
        z = ppl.sample("z", ppl.dist.Bernoulli(ppl.array(0.4)))
        ppl.sample("x", ppl.dist.Normal(z, 1.0), obs=x)
    w = ppl.sample("w", ppl.dist.Bernoulli(0.2 + 0.3 * (z[..., 0] + z[..., 1])))
    ppl.sample("v", ppl.dist.Normal(w * ppl.array(1.0), 1.0), obs=ppl.array(0.7))


def masked_by_a_latent(ppl, x):
    with ppl.plate("data", 2, dim=-1):
        b = ppl.sample("b", ppl.dist.Bernoulli(ppl.array(0.4)))
        with ppl.mask(mask=b > 0.5):
            k = ppl.sample("k", ppl.dist.Poisson(ppl.array(0.5)))
        ppl.sample("x", ppl.dist.Normal(b * k, 1.0), obs=x)


def bit(*shape):
    return shape, 2


PROGRAMS = {  # data, the latents' shapes and numbers of values, options of the guide
    crossed: ((SQUARE,), {"a": bit(2, 1), "b": ((2,), 3)}, {}),
    nested: ((SQUARE,), {"t": bit(2, 1), "w": bit(2, 2)}, {"structure": "model"}),
    subsampled: ((X, np.array([2, 0])), {"z": ((2,), 3)}, {}),
    infinite: (
        (X,),
        {"k": ((2,), 4), "g": ((2,), 4)},
        {"num_values": {"k": 4, "g": 4}, "structure": "chain"},
    ),
    alone_in_its_chain: ((X,), {"z0": bit(2)}, {"structure": "chain"}),
    observed_in_part: ((X, np.array([True, False])), {"z_unobserved": bit(2)}, {}),
    marked: ((X,), {"a": bit(2), "b": ((2,), 3)}, {"structure": "model"}),
    vectors: ((X,), {"o": bit(2, 2)}, {}),
    trials_of_data: ((X, np.array([1, 3])), {"n": ((2,), 4)}, {}),
    trials_of_a_latent: (
        (X,),
        {"n": ((2,), 3), "m": ((2,), 3)},
        {"num_values": {"m": 3}, "structure": "model"},
    ),
    trials_alike: ((X,), {"z": bit(2), "n": ((2,), 4)}, {"structure": "model"}),
    cells: ((X,), {"z": bit(2, 2)}, {}),
    shared_by_all: ((X,), {"g": ((), 3), "z": bit(2)}, {"structure": "model"}),
    many_parents: ((X[:1],), {"a": ((1,), 9), "b": ((1,), 9), "c": bit(1)}, {"structure": "model"}),
    under_no_plate_at_last: ((X,), {"z": bit(2), "w": bit()}, {"structure": "model"}),
    masked_by_a_latent: (
        (X,),
        {"b": bit(2), "k": ((2,), 4)},
        {"num_values": {"k": 4}, "structure": "model"},
    ),
}
ONE_HOT = ("o",)
COUNTED = {"k": slice(0), "z_unobserved": slice(1, None)}  # of masked ones there is no posterior
MASKED = (masked_by_a_latent, observed_in_part)
SOON = (trials_of_data, trials_alike, observed_in_part)  # the others with the slow tests
CASES = [
    pytest.param(program, marks=() if program in SOON else pytest.mark.slow, id=program.__name__)
    for program in PROGRAMS
]


def pair_of(lab, program):
    """Model, guide, arguments, and parameters a little off the start."""
    data, _, options = PROGRAMS[program]
    model, args = lab.bind(program), tuple(lab.array(part) for part in data)
    guide, rng = lab.guide(model, **options), np.random.default_rng(1)
    start = lab.start(guide, *args)
    return model, guide, args, {n: v + 0.7 * rng.normal(size=v.shape) for n, v in start.items()}


def hits_of(states, name, num_values):
    """By state and place of a site, which value it has."""
    return np.eye(num_values)[np.stack([state[name] for state in states])]


@pytest.mark.thrifty
@pytest.mark.filterwarnings("ignore:model or guide does not broadcast")
@pytest.mark.filterwarnings("ignore:the discrete sites share no plate")
@pytest.mark.filterwarnings("ignore:`num_values`. the 4 values of site")
@pytest.mark.parametrize("program", CASES)
def test_losses_and_posteriors_are_those_of_all_states(lab, program):
    model, guide, args, params = pair_of(lab, program)
    sizes, loss = PROGRAMS[program][1], lab.loss(lab.exact(), model, guide, params, *args)[0]
    states = states_of(sizes)
    held = lab.held(guide, params)
    values = values_of(states, sizes, ONE_HOT)
    values = lab.as_drawn(guide, args, held, values)
    q = logs_of(lab, guide, args, values, held)
    p = logs_of(lab, model, args, values, held)
    possible = q.drawn > -1e3
    weights = np.where(possible, np.exp(q.drawn), 0.0)
    np.testing.assert_allclose(weights.sum(), 1.0, rtol=1e-9)
    with np.errstate(invalid="ignore"):  # where a state never comes, it counts nothing
        gains = np.where(possible, p.scaled - q.scaled, 0.0)
        true = np.where(possible, np.exp(p.drawn + p.observed), 0.0)
    np.testing.assert_allclose(loss, -(weights * gains).sum(), rtol=1e-7)
    true = true / true.sum()
    assert np.abs(true - weights).sum() > 0.05  # or weighing the draws would not matter
    for corrected, exact in ((False, weights), (True, true)):
        options = {"num_draws": NUM_DRAWS, "corrected": corrected}
        found = lab.posterior_at(model, guide, held, *args, **options)
        assert set(found.sites) == set(sizes)
        squares = exact**2 / np.where(possible, weights, 1.0) / NUM_DRAWS
        for name, (_, num_values) in sizes.items():
            hits = hits_of(states, name, num_values)
            probs = np.tensordot(exact, hits, 1)
            error = 5 * np.sqrt(np.tensordot(squares, (hits - probs) ** 2, 1)) + 1e-6
            off = np.abs(found[name].probs.reshape(probs.shape) - probs) / error
            rows = COUNTED.get(name, slice(None)) if program in MASKED else ...
            assert (off[rows] < 1.0).all(), (name, corrected, found[name].probs, probs)


@pytest.mark.thrifty
def test_what_the_guide_asks_of_a_support_is_no_question_of_the_program(lab):
    """Each datum keeps a weight of its own, and no warning says otherwise."""
    model, guide, args, params = pair_of(lab, trials_of_a_latent)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss = lab.loss(lab.exact(), model, guide, params, *args)[0]
    assert np.isfinite(loss)


@pytest.mark.thrifty
def test_places_that_are_observed_are_no_part_of_the_means(lab):
    model, guide, (x, seen), params = pair_of(lab, observed_in_part)
    held = lab.held(guide, params)
    found = lab.posterior_at(model, guide, held, x, seen, num_draws=100)
    site = found["z_unobserved"]
    assert site.counted.tolist() == [False, True]
    line = next(line for line in str(found).splitlines() if line.startswith("z_unobserved "))
    number, _, entropy, *probs = map(float, line.split()[1:])
    assert number == 1
    np.testing.assert_allclose([entropy, *probs], [site.entropy[1], *site.probs[1]], atol=6e-4)
    assert "z_unobserved: 1 of 2 places are under a mask, and left out above" in str(found)


@pytest.mark.thrifty
def test_a_marked_site_that_is_hidden_from_the_guide_is_summed(lab):
    model = lab.bind(marked)
    guide, x = lab.guide(lab.primitives.block(model, hide=["a"])), lab.array(X)
    logits = np.random.default_rng(2).normal(size=(2, 3))
    loss, _ = lab.loss(lab.exact(), model, guide, {"b": logits}, x)
    log_q = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    loc = np.arange(2)[:, None] + 2.0 * np.arange(3)
    joint = np.array([[0.7], [0.3]]) * TABLE * np.exp(-0.5 * (X[:, None, None] - loc) ** 2)
    log_p = np.log(joint.sum(1) / np.sqrt(2 * np.pi))
    np.testing.assert_allclose(loss, -(np.exp(log_q) * (log_p - log_q)).sum(), rtol=1e-7)
