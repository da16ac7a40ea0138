"""Scales, masks, and states of probability 0 of any program: the right value, or a refusal.

The right values are sums over all states, made by running the programs one state at a time.
"""

import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pyro = pytest.importorskip("pyro")
import pyro.distributions as dist  # noqa: E402
from any_pyro import (  # noqa: E402
    DATA,
    SAMPLED,
    fresh,
    mixture,
    mixture_guide,
    value_and_gradient,
)
from pyro import poutine  # noqa: E402
from pyro.infer import TraceEnum_ELBO, config_enumerate  # noqa: E402

from pyro_dvae.diagnostics import posterior_gap  # noqa: E402
from pyro_dvae.fit import linear_schedule  # noqa: E402
from pyro_dvae.infer import (  # noqa: E402
    DAPS_ELBO,
    VIMCO_ELBO,
    Exact_ELBO,
    Reinforce_ELBO,
    Truncated_ELBO,
    TruncatedGuide,
    WakeSleep_ELBO,
)

__all__ = ["fresh"]  # a fixture of every test here

# --------------------------------------------------------------------------------------- scales


@pytest.mark.parametrize("beta", [1.0, 0.3])
@pytest.mark.parametrize("loss", [Exact_ELBO, *SAMPLED])
def test_a_scale_of_both_programs_scales_loss_and_gradient(loss, beta):
    """Whatever weighs the draws: 2.5 times as much, to rounding, from the same draws."""
    options = {} if loss is Exact_ELBO else {"num_particles": 4}
    scaled = [poutine.scale(program, scale=2.5) for program in (mixture, mixture_guide)]
    value, gradient = value_and_gradient(loss(beta=beta, **options), mixture, mixture_guide)
    found = value_and_gradient(loss(beta=beta, **options), *scaled)
    np.testing.assert_allclose(found[0], 2.5 * value, rtol=1e-12)
    np.testing.assert_allclose(found[1], 2.5 * gradient, rtol=1e-12)


@pytest.mark.parametrize("loss", [Exact_ELBO, *SAMPLED])
def test_a_scale_for_each_datum_weighs_each(loss):
    """By linearity: the parts add up."""
    options = {} if loss is Exact_ELBO else {"num_particles": 4}
    results = []
    for scale in ([1.0, 2.0], [2.0, 1.0], [4.0, 5.0]):
        scaled = [poutine.scale(p, scale=torch.tensor(scale)) for p in (mixture, mixture_guide)]
        more = {"per_datum": True} if loss is DAPS_ELBO else {}
        results.append(value_and_gradient(loss(**options, **more), *scaled))
    (one, slope_one), (two, slope_two), (both, slope_both) = results
    np.testing.assert_allclose(both, 2.0 * one + two, rtol=1e-12)
    np.testing.assert_allclose(slope_both, 2.0 * slope_one + slope_two, rtol=1e-10)


def test_a_scaled_model_with_a_truncated_posterior():
    half = poutine.scale(mixture, scale=0.5)
    stock = TraceEnum_ELBO(max_plate_nesting=1)
    expected = 0.5 * stock.loss(config_enumerate(mixture), lambda x: None, DATA)
    found = Truncated_ELBO(sweeps=0).loss(half, TruncatedGuide(half, 3), DATA)
    np.testing.assert_allclose(found, expected, rtol=1e-10)


# ---------------------------------------------------------------------------- impossible states


def hard(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(torch.ones(3) / 3))
        pyro.factor("only_0", torch.where(z == 0, 0.0, -torch.inf))


def hard_guide(x):
    with pyro.plate("data", len(x)):
        logits = pyro.param("logits", torch.zeros(3)).expand(len(x), 3)
        pyro.sample("z", dist.Categorical(logits=logits))


@pytest.mark.parametrize(
    "elbo", [Exact_ELBO(), *(loss(4) for loss in SAMPLED)], ids=lambda elbo: type(elbo).__name__
)
def test_an_infinite_loss_is_infinite_and_its_gradient_finite(elbo):
    for seed in range(40):
        pyro.set_rng_seed(seed)
        value = elbo.differentiable_loss(hard, hard_guide, torch.zeros(2))
        value.backward()
        leaf = pyro.param("logits").unconstrained()
        assert not value.isnan()
        assert leaf.grad.isfinite().all()
        leaf.grad = None
    assert Exact_ELBO().loss(hard, hard_guide, torch.zeros(2)) == np.inf


@pytest.mark.parametrize("loss", SAMPLED)
def test_a_datum_without_possible_draws_leaves_the_others_alone(loss):
    """The gradient of the other datum is that which it has by itself, from the same draws."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.ones(3) / 3))
            pyro.sample("x", dist.Normal(1.0 * z, 1.0), obs=x.abs())
            pyro.factor("possible", torch.where(x > 0, 0.0, -torch.inf))

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(logits=pyro.param("table", torch.zeros(2, 3))))

    more = {"per_datum": True} if loss is DAPS_ELBO else {}
    grads = []
    for x in (torch.tensor([0.5, 1.2]), torch.tensor([0.5, -1.2])):
        pyro.set_rng_seed(3)
        pyro.clear_param_store()
        loss(4, **more).loss_and_grads(model, guide, x)
        grads.append(pyro.param("table").unconstrained().grad)
    np.testing.assert_allclose(grads[1][0], grads[0][0], rtol=1e-12)
    np.testing.assert_array_equal(grads[1][1], 0.0)
    assert grads[0][1].abs().max() > 0  # the test of the test


@pytest.mark.parametrize("loss", [DAPS_ELBO, Reinforce_ELBO])
def test_a_bad_batch_is_not_remembered(loss):
    elbo = loss(8, target_rate=1.0)
    for _ in range(3):
        elbo.loss_and_grads(hard, hard_guide, torch.zeros(2))
        assert np.isfinite(float(elbo.state.beta.log_beta))
    one = Reinforce_ELBO(1)  # a moving average
    for _ in range(5):
        one.loss_and_grads(hard, hard_guide, torch.zeros(2))
    assert all(torch.as_tensor(value).isfinite().all() for value in one.state.memory)


@pytest.mark.parametrize("loss", [VIMCO_ELBO, WakeSleep_ELBO])
def test_a_schedule_through_zero_has_its_limit_there(loss):
    """At 0 the objective is the best particle's."""
    value, gradient = value_and_gradient(loss(4, beta=lambda step: 0.0), mixture, mixture_guide)
    near = value_and_gradient(loss(4, beta=1e-5), mixture, mixture_guide)
    np.testing.assert_allclose(value, near[0], rtol=1e-10)
    np.testing.assert_allclose(gradient, near[1], rtol=1e-3, atol=1e-3)
    value, gradient = value_and_gradient(
        loss(4, beta=linear_schedule(0.0, 1.0, 10)), mixture, mixture_guide
    )
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def masked_first(everything):
    """The first of two latents under a mask; the second, and what is seen, depend on it or not."""

    def program(y):
        known = torch.tensor([True, False])
        with pyro.plate("data", 2):
            with poutine.mask(mask=known):
                first = pyro.sample("first", dist.Bernoulli(0.3))
            with poutine.mask(mask=known if everything else torch.ones(2, dtype=torch.bool)):
                second = pyro.sample("second", dist.Bernoulli(0.2 + 0.6 * first))
                pyro.sample("y", dist.Normal(second, 1.0), obs=y)

    return program


def test_masked_latents_that_nothing_depends_on_leave_the_evidence():
    y = torch.tensor([0.4, 1.3])
    program = masked_first(True)
    pairs = itertools.product([0.0, 1.0], repeat=2)
    seen = torch.stack([
        dist.Bernoulli(0.3).log_prob(torch.tensor(a))
        + dist.Bernoulli(0.2 + 0.6 * a).log_prob(torch.tensor(b))
        + dist.Normal(b, 1.0).log_prob(y[0])
        for a, b in pairs
    ])  # fmt: skip
    found = Truncated_ELBO(sweeps=0).loss(program, TruncatedGuide(program, 4), y)
    np.testing.assert_allclose(found, -seen.logsumexp(0), rtol=1e-12)


def test_the_evidence_of_an_impossible_datum_is_minus_infinity():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.ones(3) / 3))
            pyro.factor("x", torch.where(x > 0, -torch.inf, -1.0 * z))

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(torch.ones(3) / 3))

    gap = posterior_gap((model, guide), torch.tensor([0.0, 1.0]))
    right = np.log(np.exp(-np.arange(3.0)).sum() / 3)
    np.testing.assert_allclose(gap.log_evidence, [right, -np.inf], rtol=1e-12)
    np.testing.assert_allclose(gap.elbo, [-1.0, -np.inf], rtol=1e-12)
    assert np.isfinite(gap.gap[0])
    assert np.isnan(gap.gap[1])
    np.testing.assert_allclose(gap.support_mass, [1.0, np.nan], rtol=1e-12)
