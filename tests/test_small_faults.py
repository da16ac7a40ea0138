"""Small cases whose answer is known to the last digit, of what statistical tests are too wide for.

Each was written after a deliberate break that nothing else in the default suite noticed.
"""

from types import SimpleNamespace

import numpy as np
import pytest
from truncated_zoo import (
    CAUSES,
    CAUSES_PROGRAM,
    NUM_DATA,
    SITES,
    SITES_PROGRAM,
    as_index,
    table,
    truncated,
)
from zoo import PROGRAMS

VAE = next(program for program in PROGRAMS if program.name == "vae")


def test_the_peak_of_a_signal_is_squared(backend):
    psnr_of = backend.module("diagnostics.summaries").psnr_of
    found = psnr_of(np.array([0.25, 4.0, 0.0]), 2.0)
    np.testing.assert_allclose(found, [10 * np.log10(16.0), 0.0, np.inf])


def test_the_variance_of_active_latents_is_not_biased(backend):
    """Draws that all agree: the covariance of two halves is the variance over N - 1 data."""
    named = backend.module("diagnostics.arrays").NamedArray
    values = np.tile(np.array([0.0, 1.0, 1.0])[:, None], (4, 1, 1))  # draws, data, one latent
    draws = backend.module("diagnostics.draws").Draws(4)
    draws.plates = ("data",)
    draws._readings["latent"] = {"z": named(("data", "z_dim_0"), values)}
    found = backend.module("diagnostics.usage").variances_of(draws, draws.plates)
    np.testing.assert_allclose(found["z"], [[1 / 3], [0.0]])  # without an error


@pytest.mark.parametrize("kind", ["own", "shared", "codes", "deaf"])
def test_the_error_of_active_latents_is_that_of_repeats(backend, kind):
    """Of data with draws of their own, or that share some, and of codes; at most twice, if deaf."""
    named, rng = backend.module("diagnostics.arrays").NamedArray, np.random.default_rng(0)
    variance_of_mean = backend.module("diagnostics.arrays").variance_of_mean
    means, num_draws = np.array([0.0, 1.0, 3.0, 4.0, 4.5, 7.0]), 50

    def repeat():
        noise = rng.normal(size=(num_draws, 6 if kind == "own" else 1))
        values = means + 0.7 * noise * (means if kind == "shared" else 1.0)
        if kind == "codes":
            values = 0.0 + (rng.random((num_draws, 6, 1)) > [0.1, 0.7]).sum(-1)
            values[:, ::2] = rng.integers(3, size=(num_draws, 3))
        if kind == "deaf":
            values = rng.poisson(5.0, size=(num_draws, 6))
        num_codes = 3 if kind == "codes" else 0
        return variance_of_mean(named(("data",), values), ("data",), num_codes)

    found = np.array([repeat() for _ in range(400)])
    ratio = np.sqrt((found[:, 1] ** 2).mean()) / found[:, 0].std()
    assert 0.9 < ratio < (1.6 if kind == "deaf" else 1.2)
    if kind == "deaf":
        assert np.abs(found[:, 0].mean()) < 5 * found[:, 0].std() / 20


@pytest.mark.thrifty
def test_a_tail_begins_at_a_fifth_of_the_draws_rounded_up(backend):
    """Of 23 draws 5 are the tail, the least that is fitted."""
    log_weights = backend.asarray(np.linspace(0.0, 3.0, 23)[:, None])
    tail = backend.module("ops.importance").pareto_tail(log_weights)
    assert np.isfinite(np.asarray(tail.khat)).all()
    assert (np.asarray(tail.num_distinct) == 5).all()


def test_the_noise_of_two_gradients_is_half_their_squared_distance(shim):
    """With a latent of two states and one datum, so that two gradients are of two kinds."""
    case = shim.Case(TWO_STATES)
    shim.put_in_store(case)
    function, losses = shim.module("diagnostics").gradient_variance, {"one": two_state_loss(shim)}
    reports = [
        shim.diagnose(function, case, losses=losses, num_repeats=2, seed=seed) for seed in range(8)
    ]
    found, expected = np.array([each.noise[0] for each in reports]) ** 2, two_state_gap() ** 2 / 2
    apart = found > 1e-6 * expected
    np.testing.assert_allclose(found[apart], expected, rtol=1e-5)
    assert apart.any()


def two_state_program(ppl, data):
    with ppl.plate("data", 1):
        z = ppl.sample("z", ppl.dist.Bernoulli(logits=ppl.zeros(1)))
        ppl.sample("x", ppl.dist.Normal(2.0 * z, 1.0), obs=data["x"])


def two_state_guide(ppl, data):
    with ppl.plate("data", 1):
        ppl.sample("z", ppl.dist.Bernoulli(logits=ppl.param("logits", data)))


TWO_STATES = VAE._replace(
    name="two",
    model=two_state_program,
    guide=two_state_guide,
    params={"logits": np.array([0.2])},
    data={"x": np.array([0.7])},
)


def two_state_loss(shim):
    no_baseline = shim.module("ops.baselines").no_baseline()
    options = {"baseline": no_baseline, "closed_form_entropy": False}
    return shim.module("infer").Reinforce_ELBO(1, **options)


def two_state_gap():
    """Between the gradients at the two draws, by hand."""
    logit, x = 0.2, 0.7
    p = 1 / (1 + np.exp(-logit))
    log_q = np.log([1 - p, p])
    elbo = -0.5 * (x - np.array([0.0, 2.0])) ** 2 - 0.5 * np.log(2 * np.pi) + np.log(0.5) - log_q
    slopes = elbo * np.array([-p, 1 - p])
    return slopes[1] - slopes[0]


def test_all_sweeps_have_noise_of_their_own(shim):
    """Flips of one random latent at a time end where no flip of any latent helps."""
    operators = shim.module("ops.sets")
    evolve = operators.chain(operators.select(1), operators.flip(1))
    sets = shim.Sets(CAUSES_PROGRAM, 1)
    sets.step(truncated(shim, evolve=evolve, sweeps=100))
    codes = sets.codes()[:, 0]
    scores = table()[as_index(codes), np.arange(NUM_DATA)]
    for latent in range(len(CAUSES)):
        flipped = codes.copy()
        flipped[:, latent] = 1 - flipped[:, latent]
        assert (table()[as_index(flipped), np.arange(NUM_DATA)] <= scores).all()


def subsampled_sites(ppl, data):
    """Two groups of four items each, of which two are seen."""
    gate, weight = ppl.param("gate", data), ppl.param("weight", data)
    with ppl.plate("groups", 2, dim=-2), ppl.plate("items", 4, dim=-1, subsample=data["rows"]):
        a = ppl.sample("a", ppl.dist.Bernoulli(logits=gate[1, :2]).to_event(1))
        b = ppl.sample("b", ppl.dist.Categorical(logits=gate[0] * a[..., :1] + weight))
        ppl.sample("x", ppl.dist.Normal(a @ weight[:2] + gate[1][b], 1.0), obs=data["x"])


@pytest.mark.thrifty
def test_rows_of_nested_plates_are_of_their_full_sizes(shim):
    data = {"x": np.array([[2.0, -1.0], [0.3, 4.0]]), "rows": np.array([3, 1])}
    program = SITES_PROGRAM._replace(name="rows", model=subsampled_sites, data=data)
    sets = shim.Sets(program, 2)
    elbo = truncated(shim, evolve=shim.module("ops.sets").flip(len(SITES)), sweeps=4)
    sets.loss(elbo)
    before = sets.codes()
    sets.step(elbo)
    moved = np.flatnonzero((sets.codes() != before).any((1, 2)))
    assert set(moved) == {1, 3, 5, 7}


@pytest.mark.parametrize("name", ["pyro", "numpyro"])
def test_more_gumbels_are_less_noise(name):
    """Straight-through slopes of one logit, 40 times: their variance falls as one over M."""
    kit = gumbel_kit(name)
    few, many = (np.var([kit.slope(seed, m) for seed in range(40)]) for m in (1, 30))
    assert many < few / 5


def gumbel_kit(name):
    if name == "pyro":
        torch = pytest.importorskip("torch")
        from pyro_dvae.distributions import PathwiseCategorical

        def slope(seed, num_gumbels):
            torch.manual_seed(seed)
            logits = torch.zeros(2, requires_grad=True)
            fn = PathwiseCategorical(logits, method="gr_mck", num_gumbels=num_gumbels)
            fn.rsample()[0].backward()
            return float(logits.grad[0])
    else:
        jax = pytest.importorskip("jax")
        from numpyro_dvae.distributions import PathwiseCategorical

        def first(logits, key, num_gumbels):
            fn = PathwiseCategorical(logits, method="gr_mck", num_gumbels=num_gumbels)
            return fn.sample(key)[0]

        slope_at = jax.jit(jax.grad(first), static_argnums=2)

        def slope(seed, num_gumbels):
            key = jax.random.key(seed)
            return float(slope_at(jax.numpy.zeros(2), key, num_gumbels)[0])

    return SimpleNamespace(slope=slope)


def test_wake_sleep_weighs_draws_of_continuous_latents(backend):
    """Their log q follows the weights less 1 / K, as that of codes does."""
    record = backend.module("programs.record")
    make_objective = backend.module("infer.objective").make_objective
    elbo, beta = backend.module("infer").WakeSleep_ELBO(3), 0.5
    zeros, ones = (backend.asarray(x) for x in (np.zeros((3, 2)), np.zeros(3)))
    likelihood = np.array([[0.1, 2.0], [1.3, -0.4], [-0.7, 0.6]])
    log_q = np.array([[-0.3, 0.2], [0.4, -1.0], [0.9, 0.1]])

    def ascended(log_q_pathwise):
        particles = record.Particles(
            log_likelihood=backend.asarray(likelihood),
            log_prior=zeros,
            log_q_discrete=zeros,
            log_q_pathwise=log_q_pathwise,
            log_draw=zeros,
            entropy=None,
            shared_likelihood=ones,
            shared_prior=ones,
            shared_q=ones,
            scale=1.0,
        )
        return elbo.gain(particles, make_objective(particles, beta), beta, None).value.sum()

    weights = np.exp(likelihood / beta - log_q)
    expected = weights / weights.sum(0) - 1 / 3
    found = backend.grad(ascended)(backend.asarray(log_q))
    np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-10)
