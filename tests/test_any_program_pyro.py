"""Programs beyond the plain data plate: the right value, or a refusal that says what to do instead.

The right values are sums over all states, made by running the programs one state at a time.
"""

import copy
import itertools
import pickle
import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pyro = pytest.importorskip("pyro")
import pyro.distributions as dist  # noqa: E402
from pyro import poutine  # noqa: E402
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, config_enumerate  # noqa: E402
from pyro.infer.autoguide import AutoNormalMessenger  # noqa: E402
from pyro.poutine.guide import GuideMessenger  # noqa: E402

from pyro_dvae.diagnostics import importance_diagnostics, posterior_gap, to_arviz  # noqa: E402
from pyro_dvae.fit import linear_schedule  # noqa: E402
from pyro_dvae.infer import (  # noqa: E402
    DAPS_ELBO,
    VIMCO_ELBO,
    DisARM_ELBO,
    Exact_ELBO,
    Gain,
    ParticleELBO,
    Reinforce_ELBO,
    Truncated_ELBO,
    TruncatedGuide,
    WakeSleep_ELBO,
)

SAMPLED = [Reinforce_ELBO, DAPS_ELBO, VIMCO_ELBO, WakeSleep_ELBO]
LOOP = "once per particle"


@pytest.fixture(autouse=True)
def fresh():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def quiet(run):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", f".*{LOOP}")
        warnings.filterwarnings("ignore", "the discrete sites share no plate")
        return run()


def joint(program, states, *args):
    """Log-density of a program at given latents, run by itself."""
    with pyro.validation_enabled(False):
        conditioned = poutine.condition(program, data=states)
        return poutine.trace(conditioned).get_trace(*args).log_prob_sum()


def exact_loss(model, guide, tables, *args):
    """Minus the ELBO by a plain sum; `tables` has all values of each latent."""
    loss = 0.0
    for values in itertools.product(*tables.values()):
        states = dict(zip(tables, values, strict=True))
        log_q = joint(guide, states, *args)
        loss = loss - log_q.exp() * (joint(model, states, *args) - log_q)
    return loss


def bits(*shape):
    """All binary tensors of a shape."""
    size = int(np.prod(shape))
    return [torch.tensor(z).reshape(shape) * 1.0 for z in itertools.product((0, 1), repeat=size)]


def assert_mean(draw, expected, times=100):
    """The mean of so many draws is within five standard errors."""
    expected = torch.as_tensor(expected).detach()
    draws = np.array([draw() for _ in range(times)])
    error = draws.std(ddof=1) / times**0.5
    assert abs(draws.mean() - float(expected)) < 5 * error + 1e-12, (draws.mean(), expected, error)


# ------------------------------------------------------------------- structure is what a call has


def chain(x):
    with pyro.plate("sequences", len(x)):
        z = torch.zeros(len(x))
        for t in range(x.shape[1]):
            z = pyro.sample(f"z_{t}", dist.Bernoulli(0.2 + 0.6 * z))
            pyro.sample(f"x_{t}", dist.Normal(2 * z, 1.0), obs=x[:, t])


def chain_guide(x):
    with pyro.plate("sequences", len(x)):
        for t in range(x.shape[1]):
            pyro.sample(f"z_{t}", dist.Bernoulli(logits=x[:, t] - 1))


def test_sequences_of_another_length_are_what_they_are():
    short, long, wide = torch.randn(4, 2), torch.randn(4, 4), torch.randn(7, 2)
    elbo, stock = Exact_ELBO(), TraceEnum_ELBO(max_plate_nesting=1)
    for x in (short, long, wide, short):
        expected = stock.loss(chain, config_enumerate(chain_guide), x)
        np.testing.assert_allclose(elbo.loss(chain, chain_guide, x), expected, rtol=1e-10)


@pytest.mark.parametrize("loss", SAMPLED)
def test_sampled_losses_follow_the_structure(loss):
    """The same draws whether or not the loss has met another structure before."""
    elbo, fresh = loss(4), loss(4)
    elbo.loss(chain, chain_guide, torch.randn(4, 2))
    x, found = torch.randn(3, 5), []
    for each in (elbo, fresh):
        pyro.set_rng_seed(1)
        found.append(each.loss(chain, chain_guide, x))
    assert found[0] == found[1]


def test_states_that_were_begun_for_other_sites_are_refused():
    guide, elbo = TruncatedGuide(chain, 4), Truncated_ELBO()
    elbo.loss_and_grads(chain, guide, torch.randn(4, 2))
    with pytest.raises(ValueError, match="z_2"):
        elbo.loss(chain, guide, torch.randn(4, 5))


def labelled(x, label=None):
    with pyro.plate("data", 3):
        label = pyro.sample("label", dist.Categorical(torch.ones(3) / 3), obs=label)
        pyro.sample("x", dist.Normal(1.0 * label, 1.0), obs=x)


def labelled_guide(_x, label=None):
    if label is None:
        with pyro.plate("data", 3):
            pyro.sample("label", dist.Categorical(torch.tensor([0.2, 0.3, 0.5])))


def test_labels_may_come_and_go():
    x, label, elbo = torch.randn(3), torch.tensor([0, 1, 2]), Exact_ELBO()
    expected = Trace_ELBO().loss(labelled, labelled_guide, x, label)
    stock = TraceEnum_ELBO(max_plate_nesting=1)
    unlabelled = stock.loss(labelled, config_enumerate(labelled_guide), x)
    for _ in range(2):
        np.testing.assert_allclose(elbo.loss(labelled, labelled_guide, x, label), expected)
        np.testing.assert_allclose(elbo.loss(labelled, labelled_guide, x), unlabelled)


# ----------------------------------------------------------------- structure depends on the draws


def counting(y):
    n = 0
    while n < 4 and bool(pyro.sample(f"more_{n}", dist.Bernoulli(0.5))):
        n += 1
    if y is not None:
        pyro.sample("y", dist.Normal(0.9 * n, 1.0), obs=y)


def counting_guide(_y):
    counting(None)


Y = 2.3
COUNTS = [0.5, 0.25, 0.125, 0.0625, 0.0625]


@pytest.mark.parametrize("loss", SAMPLED)
@pytest.mark.parametrize("num_particles", [2, 5])
def test_a_loop_over_draws_has_the_mean_over_its_lengths(loss, num_particles):
    y = torch.tensor(Y)
    values = [-dist.Normal(0.9 * n, 1.0).log_prob(y).item() for n in range(5)]
    elbo = loss(num_particles)
    assert_mean(
        lambda: quiet(lambda: elbo.loss(counting, counting_guide, y)), np.dot(COUNTS, values)
    )


def test_what_lists_states_refuses_a_loop_over_draws():
    y = torch.tensor(Y)
    for seed in range(4):
        pyro.set_rng_seed(seed)
        with pytest.raises(ValueError, match="depends on the values of others"):
            quiet(lambda: Exact_ELBO().loss(counting, counting_guide, y))


# ------------------------------------------------------------------ programs that mix particles

STRENGTH = torch.tensor([0.9, 0.8, 0.7, 0.6])
MIXERS = {
    "prod": lambda z: torch.prod(1 - STRENGTH.to(z) * z),
    "max": lambda z: z.max(),
    "sum": lambda z: z.sum() / 4,
    "centred": lambda z: (z - z.mean()).abs().amax(-1),
    "flip": lambda z: z.flip(0)[..., 0],
    "roll": lambda z: z.roll(1, 0)[..., 0],
    "first": lambda z: z[0],
    "left": lambda z: z.reshape(-1)[:4].sum() / 4,
}
RARE = 0.05


def mixing(mix):
    def model(y):
        with pyro.plate("causes", 4):
            z = pyro.sample("z", dist.Bernoulli(RARE))
        pyro.sample("y", dist.Normal(2.0 * mix(z), 1.0), obs=y)

    return model


def rare_guide(_y):
    with pyro.plate("causes", 4):
        pyro.sample("z", dist.Bernoulli(RARE))


@pytest.mark.parametrize("name", MIXERS)
@pytest.mark.parametrize("seed", range(2))
def test_mixed_particles_are_noticed(name, seed):
    """On latents so rare that three draws seldom differ."""
    model, y = mixing(MIXERS[name]), torch.tensor(0.3)
    expected = exact_loss(model, rare_guide, {"z": bits(4)}, y)
    pyro.set_rng_seed(seed)
    with pytest.warns(UserWarning, match=LOOP):
        found = Exact_ELBO().loss(model, rare_guide, y)
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_programs_that_broadcast_run_at_once():
    """Negative control: no warning, and one run of the model for all states."""
    runs = []

    def model(y):
        runs.append(1)
        with pyro.plate("causes", 4):
            z = pyro.sample("z", dist.Bernoulli(RARE))
        pyro.sample("y", dist.Normal(z.sum(-1, True), 1.0), obs=y)

    elbo, y = Exact_ELBO(), torch.tensor(1.0)
    elbo.loss(model, rare_guide, y)
    runs.clear()
    np.testing.assert_allclose(
        elbo.loss(model, rare_guide, y), exact_loss(model, rare_guide, {"z": bits(4)}, y)
    )
    assert len(runs) == 1 + 16  # ours, and one for each state of the oracle


def test_noise_does_not_hide_that_particles_are_mixed():
    """A program with dropout disagrees with itself; the others must not notice one that moves."""

    def model(y, mix):
        with pyro.plate("causes", 4):
            z = pyro.sample("z", dist.Bernoulli(RARE))
        noisy = torch.nn.functional.dropout(torch.ones(3), 0.5).sum()
        total = z.sum() if mix else z.sum(-1, True)
        pyro.sample("y", dist.Normal(total + noisy, 1.0), obs=y)

    def guide(y, mix):
        rare_guide(y)

    elbo, y = Reinforce_ELBO(4), torch.tensor(1.0)
    with pytest.warns(UserWarning, match=LOOP):
        elbo.loss(model, guide, y, True)
    Reinforce_ELBO(4).loss(model, guide, y, False)


def repeated(y):
    n = pyro.sample("n", dist.Categorical(torch.ones(5) / 5))
    total = torch.tensor(0.0)
    for _ in range(n):
        total = total + 0.9
    pyro.sample("y", dist.Normal(total, 1.0), obs=y)


def repeated_guide(_y):
    pyro.sample("n", dist.Categorical(torch.tensor([0.1, 0.2, 0.3, 0.2, 0.2])))


def test_any_error_on_meeting_particles_means_one_by_one():
    y = torch.tensor(Y)
    expected = exact_loss(repeated, repeated_guide, {"n": list(torch.arange(5))}, y)
    with pytest.warns(UserWarning, match=LOOP):
        np.testing.assert_allclose(Exact_ELBO().loss(repeated, repeated_guide, y), expected)


# ------------------------------------------------------------------------- what depends on what


@pytest.mark.parametrize("ask", ["if", "item", "index", "numpy"])
def test_dependence_through_python_is_seen(ask):
    """Latents under a plate, an observation outside of it, and no tensor between the two."""
    ways = {
        "if": lambda z: 1.5 if z.sum() > 1 else -0.5,
        "item": lambda z: 0.7 * z.sum().item(),
        "index": lambda z: [0.0, 1.0, -1.0, 2.0][int(z.sum())],
        "numpy": lambda z: float(np.asarray(z.detach()).sum() ** 2),
    }

    def model(y):
        with pyro.plate("causes", 3):
            z = pyro.sample("z", dist.Bernoulli(0.4))
        pyro.sample("y", dist.Normal(torch.tensor(ways[ask](z)), 1.0), obs=y)

    def guide(y):
        logits = pyro.param("logits", torch.tensor([0.3, -0.2, 0.8]))
        with pyro.plate("causes", 3):
            pyro.sample("z", dist.Bernoulli(logits=logits))

    y = torch.tensor(Y)
    guide(y)
    expected = exact_loss(model, guide, {"z": bits(3)}, y)
    (slope,) = torch.autograd.grad(expected, pyro.param("logits").unconstrained())
    for vectorize in (True, False):
        elbo = Exact_ELBO(vectorize_particles=vectorize)
        found = quiet(lambda elbo=elbo: elbo.loss_and_grads(model, guide, y))
        leaf = pyro.param("logits").unconstrained()
        np.testing.assert_allclose(found, expected.detach(), rtol=1e-10)
        np.testing.assert_allclose(leaf.grad, slope, rtol=1e-8)
        leaf.grad = None


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
        assert_mean(lambda elbo=elbo: float(elbo.loss(target, uphill)), expected, 150)


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


# --------------------------------------------------------------------------------------- scales


def mixture(x):
    with pyro.plate("data", 2):
        z = pyro.sample("z", dist.Categorical(torch.tensor([0.2, 0.3, 0.5])))
        pyro.sample("x", dist.Normal(2.0 * z, 1.0), obs=x)


def mixture_guide(x):
    with pyro.plate("data", 2):
        logits = pyro.param("logits", torch.tensor([0.1, -0.3, 0.4]))
        pyro.sample("z", dist.Categorical(logits=logits.expand(2, 3)))


DATA = torch.tensor([0.4, 3.0], dtype=torch.float64)


def value_and_gradient(elbo, model, guide, seed=0):
    mixture_guide(DATA)
    leaf = pyro.param("logits").unconstrained()
    leaf.grad = None
    pyro.set_rng_seed(seed)
    value = elbo.loss_and_grads(model, guide, DATA)
    return float(value), leaf.grad.numpy().copy()


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


def test_masked_latents_that_others_depend_on_are_refused_by_truncated_posteriors():
    y = torch.tensor([0.4, 1.3])
    guide = TruncatedGuide(masked_first(False), 4)
    with pytest.raises(ValueError, match=r"sites \['first'\] are masked, but"):
        Truncated_ELBO(sweeps=0).loss(masked_first(False), guide, y)


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


@pytest.mark.parametrize("diagnose", [importance_diagnostics, to_arviz])
def test_diagnostics_refuse_sites_that_come_and_go_with_the_draws(diagnose):
    def counted(y):
        n = 0
        while n < 3 and bool(pyro.sample(f"more_{n}", dist.Bernoulli(0.5))):
            n += 1
        return n

    def model(y):
        pyro.sample("y", dist.Normal(float(counted(y)), 1.0), obs=y)

    with pytest.raises(ValueError, match=r"'more_1', .*there in some draws and not in others"):
        quiet(lambda: diagnose((model, counted), torch.tensor(1.5)))


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
