"""Guides, plates and losses of any kind that Pyro's protocols allow: the right value, or a refusal.

The right values are sums over all states, made by running the programs one state at a time.
"""

import copy
import pickle

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pyro = pytest.importorskip("pyro")
import pyro.distributions as dist  # noqa: E402
from any_pyro import (  # noqa: E402
    DATA,
    SAMPLED,
    assert_mean,
    bits,
    exact_loss,
    fresh,
    mixture,
    mixture_guide,
    quiet,
    value_and_gradient,
)
from pyro import poutine  # noqa: E402
from pyro.infer import Trace_ELBO  # noqa: E402
from pyro.infer.autoguide import AutoNormalMessenger  # noqa: E402
from pyro.poutine.guide import GuideMessenger  # noqa: E402

from pyro_dvae.infer import (  # noqa: E402
    DAPS_ELBO,
    DisARM_ELBO,
    Exact_ELBO,
    Gain,
    ParticleELBO,
    Reinforce_ELBO,
)

__all__ = ["fresh"]  # a fixture of every test here

# ------------------------------------------------------------------------------ Pyro's protocols


class OneSwitch(GuideMessenger):
    def get_posterior(self, name, prior):
        return dist.Bernoulli(logits=pyro.param("logit", torch.tensor(0.4)))


def switch():
    z = pyro.sample("z", dist.Bernoulli(0.3))
    with pyro.plate("data", 5):
        pyro.sample("y", dist.Bernoulli(0.1 + 0.8 * z), obs=torch.ones(5))


def test_a_guide_that_is_a_handler_is_asked_for_its_trace():
    def plain():
        pyro.sample("z", dist.Bernoulli(logits=pyro.param("logit", torch.tensor(0.4))))

    expected = exact_loss(switch, plain, {"z": bits()})
    found = Exact_ELBO().loss_and_grads(switch, OneSwitch(switch))
    np.testing.assert_allclose(found, expected.detach(), rtol=1e-10)
    leaf = pyro.param("logit").unconstrained()
    (slope,) = torch.autograd.grad(expected, leaf)
    np.testing.assert_allclose(leaf.grad, slope, rtol=1e-8)


def test_a_continuous_guide_that_is_a_handler_has_the_hosts_value():
    def normal():
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        with pyro.plate("data", 5):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=torch.arange(5.0))

    guide, stock, elbo = AutoNormalMessenger(normal), Trace_ELBO(), Reinforce_ELBO(4)
    expected = np.mean([stock.loss(normal, guide) for _ in range(2000)])
    assert_mean(lambda: elbo.loss(normal, guide), expected, 200)


@pytest.mark.parametrize("loss", [Exact_ELBO, *SAMPLED])
def test_a_factor_in_a_guide_belongs_to_log_q(loss):
    def coin():
        pyro.sample("b", dist.Bernoulli(0.5))

    def weighted():
        logit = pyro.param("logit", torch.tensor(0.5))
        pyro.sample("b", dist.Bernoulli(logits=logit))
        pyro.factor("f", 3 * logit, has_rsample=False)

    poutine.trace(weighted).get_trace()
    logit = torch.tensor(0.5, requires_grad=True)
    p = torch.sigmoid(logit)
    kl = p * (2 * p).log() + (1 - p) * (2 * (1 - p)).log()
    expected = kl + 3 * logit  # 1.530
    (slope,) = torch.autograd.grad(expected, logit)  # 3.118
    if loss is Exact_ELBO:
        elbo = loss()
        np.testing.assert_allclose(elbo.loss_and_grads(coin, weighted), expected.detach())
        np.testing.assert_allclose(pyro.param("logit").unconstrained().grad, slope)
        return
    elbo = loss(4)
    assert_mean(lambda: elbo.loss(coin, weighted), expected, 200)
    if loss is Reinforce_ELBO:
        leaf = pyro.param("logit").unconstrained()

        def gradient():
            leaf.grad = None
            elbo.loss_and_grads(coin, weighted)
            return float(leaf.grad)

        assert_mean(gradient, slope, 200)


@pytest.mark.parametrize("loss", [Exact_ELBO, *SAMPLED, DisARM_ELBO])
def test_event_shapes_that_disagree_are_refused(loss):
    def three():
        pyro.sample("z", dist.Bernoulli(0.3 * torch.ones(3)).to_event(1))

    def single():
        pyro.sample("z", dist.Bernoulli(torch.tensor([0.3])).to_event(1))

    with pytest.raises(ValueError, match=r"'z' has event shape \(1,\).*\(3,\)"):
        loss().loss(three, single)


def test_a_guide_may_differentiate_inside_of_itself():
    def target():
        z = pyro.sample("z", dist.Normal(3.0, 1.0))
        pyro.sample("b", dist.Bernoulli(0.5))
        pyro.sample("y", dist.Normal(z, 1.0), obs=torch.tensor(2.0))

    def uphill():
        loc = pyro.param("loc", torch.tensor(0.0))
        slope = torch.autograd.grad(-((loc * 1.0 - 3.0) ** 2), loc)[0]
        pyro.sample("z", dist.Normal(loc + 0.1 * slope, 1.0))
        pyro.sample("b", dist.Bernoulli(0.4))

    stock = Trace_ELBO(num_particles=4000, vectorize_particles=True, max_plate_nesting=0)
    expected = float(stock.differentiable_loss(target, uphill).detach())
    for elbo in (Exact_ELBO(), Reinforce_ELBO(4), DAPS_ELBO(4)):
        assert_mean(lambda elbo=elbo: float(elbo.loss(target, uphill)), expected, 60)


def nothing():
    pass


def test_programs_without_latents_or_without_sites():
    def observed():
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.tensor(1.0))

    expected = Trace_ELBO().loss(observed, nothing)
    for elbo in (Exact_ELBO(), Reinforce_ELBO(3), DAPS_ELBO(3)):
        np.testing.assert_allclose(elbo.loss(observed, nothing), expected)
        assert elbo.loss(nothing, nothing) == 0.0


def test_a_plate_without_a_size_takes_what_it_is_given():
    def unsized():
        with pyro.plate("p"):
            pyro.sample("x", dist.Bernoulli(0.3).expand([3]))

    def guide():
        with pyro.plate("p"):
            pyro.sample("x", dist.Bernoulli(0.6).expand([3]))

    expected = exact_loss(unsized, guide, {"x": bits(3)})
    np.testing.assert_allclose(Exact_ELBO().loss(unsized, guide), expected, rtol=1e-10)


@pytest.mark.parametrize("crossed", [False, True])
def test_sites_that_share_no_plate_have_one_weight(crossed):
    def sites(p, q, y):
        columns, rows = pyro.plate("columns", 2, dim=-1), pyro.plate("rows", 2, dim=-2)
        with columns:
            x = pyro.sample("x", dist.Bernoulli(p))
        with rows:
            z = pyro.sample("z", dist.Bernoulli(q).expand([2, 1]))
        if y is not None and crossed:
            with rows, columns:
                pyro.sample("y", dist.Normal(x * z, 1.0), obs=y)

    def model(y):
        sites(0.3, 0.6, y)

    def guide(y):
        sites(0.5, 0.4, None)

    y = torch.randn(2, 2)
    expected = exact_loss(model, guide, {"x": bits(2), "z": bits(2, 1)}, y)
    with pytest.warns(UserWarning, match="share no plate"):
        np.testing.assert_allclose(Exact_ELBO().loss(model, guide, y), expected, rtol=1e-10)
    elbo = Reinforce_ELBO(4)
    assert_mean(lambda: quiet(lambda: elbo.loss(model, guide, y)), expected, 200)


# ------------------------------------------------------------------------------ the contract


def test_vector_quantisation_is_weighed_by_datum():
    """Whatever the weights: a datum's penalty counts as its likelihood does."""
    from pyro_dvae.guides import VectorQuantizedGuide
    from pyro_dvae.infer import VQ_ELBO
    from pyro_dvae.models import DiscreteVAE, GaussianLikelihood, UniformPrior
    from pyro_dvae.nets import Codebook, CodebookDecoder, MLPDecoder, MLPEncoder

    codebook = Codebook(5, 3)
    decoder = CodebookDecoder(codebook, MLPDecoder(6, None, (4,), hidden=()))
    model = DiscreteVAE(decoder, UniformPrior(2, 5), GaussianLikelihood(variance=1.0, learn=False))
    guide, x = VectorQuantizedGuide(MLPEncoder((4,), 2, 3, hidden=()), codebook), torch.randn(3, 4)
    leaf = guide.encoder.layers[0].weight

    def gradient(weights):
        programs = [poutine.scale(p, scale=weights) for p in (model, guide)]
        leaf.grad = None
        VQ_ELBO().loss_and_grads(*programs, x)
        return leaf.grad.clone()

    one, two, both = map(torch.tensor, ([1.0, 2.0, 1.0], [2.0, 1.0, 3.0], [4.0, 5.0, 5.0]))
    np.testing.assert_allclose(gradient(both), 2 * gradient(one) + gradient(two), rtol=1e-8)
    np.testing.assert_allclose(gradient(torch.ones(3)), gradient(1.0), rtol=1e-10)


def test_disarm_follows_sites_that_depend_on_draws():
    def pair(y):
        z = pyro.sample("z", dist.Bernoulli(0.4))
        if z > 0:
            pyro.sample("w", dist.Bernoulli(0.3))
        if y is not None:
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    y = torch.tensor(0.7)
    values = [-dist.Normal(float(z), 1.0).log_prob(y).item() for z in (0, 1)]
    elbo = DisARM_ELBO(4)
    assert_mean(
        lambda: quiet(lambda: elbo.loss(pair, lambda y: pair(None), y)), np.dot([0.6, 0.4], values)
    )


@pytest.mark.parametrize(
    ("gain", "message"),
    [
        (lambda p: Gain(p.log_p), r"value for each datum, of shape \(2,\); got \(3, 2\)"),
        (lambda p: Gain(p.log_p.mean()), r"of shape \(2,\); got \(\)"),
        (lambda p: Gain(p.log_p.mean(0), {"mine": 1.0}), "info_class = info_type"),
        (lambda p: Gain(p.log_p.mean(0), memory=(1,)), "init_memory returns None"),
    ],
)
def test_a_gain_that_breaks_the_contract_is_refused(gain, message):
    class Broken_ELBO(ParticleELBO):
        def gain(self, particles, objective, beta, memory):
            return gain(particles)

    with pytest.raises(ValueError, match=f"Broken_ELBO.gain.*{message}"):
        Broken_ELBO(3).loss(mixture, mixture_guide, DATA)


def test_a_used_loss_is_copied_and_pickled_without_its_programs():
    elbo = DAPS_ELBO(4)
    value_and_gradient(elbo, mixture, mixture_guide)
    others = copy.deepcopy(elbo), pickle.loads(pickle.dumps(elbo))
    expected = value_and_gradient(elbo, mixture, mixture_guide)
    for other in others:
        assert other.state.beta.step == 1
        found = value_and_gradient(other, mixture, mixture_guide)
        np.testing.assert_array_equal(found[1], expected[1])


def test_more_codes_in_the_guide_than_in_the_model_are_refused():
    def program(num_codes):
        def run():
            with pyro.plate("data", 2):
                pyro.sample("z", dist.Categorical(torch.ones(num_codes) / num_codes))

        return run

    for loss in (Reinforce_ELBO(4), Exact_ELBO()):
        with pytest.raises(ValueError, match="'z' has 5 values in the guide, but 3 in the model"):
            loss.loss(program(3), program(5))
    assert np.isfinite(Exact_ELBO().loss(program(5), program(3)))

    def coins():
        with pyro.plate("data", 2):
            pyro.sample("z", dist.Bernoulli(0.4))

    with pytest.raises(ValueError, match="'z' has 3 values in the guide, but 2 in the model"):
        Reinforce_ELBO(4).loss(coins, program(3))


@pytest.mark.parametrize("num_bits", [40, 20_000])
def test_states_beyond_number_are_told_in_a_few_words(num_bits):
    def program():
        with pyro.plate("data", 2):
            pyro.sample("z", dist.Bernoulli(0.5 * torch.ones(num_bits)).to_event(1))

    with pytest.raises(ValueError, match=rf"needs at least 2\*\*{num_bits} states") as error:
        Exact_ELBO().loss(program, program)
    assert len(str(error.value)) < 200
