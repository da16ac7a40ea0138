"""`fit_restarts` keeps the best of several runs, in both packages."""

import importlib
import inspect
import math
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

STEPS = 40
X = np.zeros(3, np.float32)


def wells(m, where):
    """A log-density with two optima, the one at 1 being higher; NaN below `where`."""
    height = -((m**2 - 1) ** 2) + 0.3 * m
    return height + (m - where) ** 0.5 * 0.0 if where is not None else height


def pyro_kit():
    import pyro
    import torch
    from pyro.infer import SVI, Trace_ELBO

    fit = importlib.import_module("pyro_dvae.fit")

    def make_svi(where=None, start=None):
        def model(x):
            m = pyro.param("m", lambda: torch.randn(()) if start is None else torch.tensor(start))
            pyro.factor("well", wells(m, where) - x.sum())

        return SVI(model, lambda x: None, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())

    def restarts(seed, make=make_svi, **settings):
        pyro.clear_param_store()
        pyro.set_rng_seed(seed)
        with pyro.validation_enabled(False):  # which would stop a NaN before `fit` does
            return fit.fit_restarts(make, X, progress=False, **settings)

    def apart(seed, num_restarts):
        """The same runs, one by one."""
        pyro.set_rng_seed(seed)
        for _ in range(num_restarts):
            pyro.clear_param_store()
            yield fit.fit(make_svi(), X, num_steps=STEPS, progress=False)

    def left():
        return float(pyro.param("m").detach())

    def one_more(x):
        return x + 1

    return SimpleNamespace(**locals())


def numpyro_kit():
    import jax
    import numpyro
    from numpyro.infer import SVI, Trace_ELBO

    fit = importlib.import_module("numpyro_dvae.fit")

    def make_svi(where=None, start=None):
        def model(x):
            m = numpyro.param("m", jax.random.normal if start is None else jax.numpy.array(start))
            numpyro.factor("well", wells(m, where) - x.sum())

        return SVI(model, lambda x: None, numpyro.optim.Adam(0.1), Trace_ELBO())

    def restarts(seed, make=make_svi, **settings):
        return fit.fit_restarts(jax.random.key(seed), make, X, progress=False, **settings)

    def apart(seed, num_restarts):
        """The same runs, one by one."""
        for key in jax.random.split(jax.random.key(seed), num_restarts):
            yield fit.fit(key, make_svi(), X, num_steps=STEPS, progress=False)

    def one_more(rng_key, x):
        return x + 1

    return SimpleNamespace(**locals())


@pytest.fixture(scope="module", params=["pyro", "numpyro"])
def kit(request):
    pytest.importorskip("torch" if request.param == "pyro" else "jax")
    return {"pyro": pyro_kit, "numpyro": numpyro_kit}[request.param]()


def recent_loss(losses):
    """An exponential average, added up step by step."""
    decay = math.exp(-10 / len(losses))
    total = weight = 0.0
    for loss in losses:
        total, weight = decay * total + loss, decay * weight + 1
    return total / weight


def test_the_best_run_is_kept(kit):
    apart = list(kit.apart(3, 6))
    ends = np.array([float(result.params["m"]) for result in apart])
    assert (ends < -0.5).any()  # else there would be nothing to choose
    assert (ends > 0.5).any()
    best = apart[np.argmin([recent_loss(result.losses) for result in apart])]
    found = kit.restarts(3, num_restarts=6, num_steps=STEPS)
    np.testing.assert_allclose(found.params["m"], best.params["m"], rtol=1e-6)
    np.testing.assert_allclose(found.losses[-1], best.losses[-1], rtol=1e-6)
    if hasattr(kit, "left"):
        assert kit.left() == pytest.approx(float(best.params["m"]))


def test_each_run_starts_where_its_programs_do(kit):
    """They may hold their first values: the run that starts at the lower optimum stays there."""
    starts = iter([-1.0, 1.0])
    make = lambda: kit.make_svi(start=next(starts))  # noqa: E731
    found = kit.restarts(3, make, num_restarts=2, num_steps=STEPS)
    ends = [float(run.params["m"]) for run in found.runs]
    np.testing.assert_allclose(ends, [1.036, -0.960], atol=0.02)  # where the slope is 0


@pytest.mark.filterwarnings("ignore:Encountered NaN")
def test_a_run_that_diverges_is_out(kit):
    found = kit.restarts(3, lambda: kit.make_svi(0.0), num_restarts=6, num_steps=STEPS)
    assert float(found.params["m"]) == pytest.approx(1.036, abs=0.1)
    assert np.isfinite(found.losses[-1])


@pytest.mark.filterwarnings("ignore:Encountered NaN")
def test_nothing_is_kept_if_all_diverge(kit):
    with pytest.raises(kit.fit.DivergenceError, match="diverged"):
        kit.restarts(0, lambda: kit.make_svi(9.0), num_restarts=2, num_steps=5)


def test_restarts_resume(kit, tmp_path):
    settings = {"num_restarts": 3, "checkpoint_every": 10, "folder": tmp_path}
    whole = kit.restarts(1, num_restarts=3, num_steps=STEPS)
    kit.restarts(1, **settings, num_steps=STEPS)
    resumed = kit.restarts(1, **settings, num_steps=STEPS, resume=True)
    assert float(resumed.params["m"]) == pytest.approx(float(whole.params["m"]), rel=1e-6)
    assert len(resumed.losses) == STEPS


def test_restarts_take_a_transform(kit):
    plain = kit.restarts(1, num_restarts=2, num_steps=5)
    changed = kit.restarts(1, num_restarts=2, num_steps=5, transform=kit.one_more)
    np.testing.assert_allclose(changed.losses, plain.losses + X.size, rtol=1e-6)


def test_restarts_take_what_fit_takes(kit):
    one, several = (
        inspect.signature(function).parameters for function in (kit.fit.fit, kit.fit.fit_restarts)
    )
    settings = {name: p for name, p in one.items() if p.kind is p.KEYWORD_ONLY}
    settings.pop("init_state", None)  # of one run
    assert settings.items() <= several.items()


def test_restarts_are_counted(kit):
    with pytest.raises(ValueError, match=r"`num_restarts` must be at least 1; got 0"):
        kit.restarts(0, num_restarts=0, num_steps=5)


def test_an_svi_is_no_function_that_makes_one(kit):
    with pytest.raises(ValueError, match=r"`make_svi` must be a function"):
        kit.restarts(0, kit.make_svi(), num_restarts=2, num_steps=5)


def test_runs_side_by_side_are_alike():
    pytest.importorskip("jax")
    kit, starts = numpyro_kit(), iter([[1.0], [1.0, 2.0]])
    with pytest.raises(ValueError, match=r"of the state is \(1,\) in run 0 and \(2,\) in run 1"):
        kit.restarts(0, lambda: kit.make_svi(start=next(starts)), num_restarts=2, num_steps=5)


@pytest.mark.slow
def test_runs_side_by_side_start_at_weights_of_their_own():
    """Those that a decoder in closed form is given, which are in the mutable state."""
    jax = pytest.importorskip("jax")
    import numpyro

    from numpyro_dvae import infer, models
    from numpyro_dvae.fit.restarts import _SideBySide

    rng, starts = np.random.default_rng(0), []
    x = (rng.random((60, 5)) < 0.4).astype(np.float32)

    def make():
        starts.append(rng.uniform(0.1, 0.9, (3, 5)).astype(np.float32))
        decoder = models.NoisyOrDecoder(starts[-1], learn="closed_form")
        model = models.DiscreteVAE(decoder, models.BernoulliPrior(3), models.BernoulliLikelihood())
        guide, loss = infer.TruncatedGuide(model, 4), infer.Truncated_ELBO()
        return infer.SVI(model, guide, numpyro.optim.Adam(1e-3), loss=loss)

    state = _SideBySide([make() for _ in range(3)], 10).init(jax.random.key(0), x)
    uses = np.asarray(state.mutable_state["model.decoder$raw"])
    found = uses[..., :-1] / uses[..., -1:]
    np.testing.assert_allclose(found[:, :3], starts, rtol=1e-5)


@pytest.mark.parametrize("way", ["a module", "first values", "first values of NumPy"])
def test_runs_that_share_what_is_trained_are_none(way):
    """They agree, as each begins where the one before it has ended."""
    torch = pytest.importorskip("torch")
    import pyro

    kit, held, start, array = pyro_kit(), torch.nn.Linear(1, 1), torch.zeros(3), np.zeros(3)

    def begin():
        if way == "a module":
            pyro.module("held", held)
        elif way == "first values":
            module = torch.nn.Module()
            module.weight = torch.nn.Parameter(start)
            pyro.module("held", module)
        else:
            pyro.param("held$$$weight", torch.from_numpy(array))

    def make():
        svi = kit.make_svi()
        svi.guide = lambda x: begin()
        return svi

    with pytest.raises(
        ValueError, match=r"parameter 'held\$\$\$weight' is the memory of one tensor"
    ):
        kit.restarts(0, make, num_restarts=2, num_steps=5)


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=50))
def test_the_recent_loss_is_a_mean_of_the_losses(losses):
    pytest.importorskip("torch")
    from pyro_dvae.fit.restarts import _recent_loss

    found = _recent_loss(np.array(losses))
    assert min(losses) - 1e-6 <= found <= max(losses) + 1e-6
    assert found == pytest.approx(recent_loss(losses), abs=1e-9)


def test_runs_side_by_side_have_memories_of_their_own():
    """A loss with a schedule and an info, under NumPyro's own SVI."""
    jax = pytest.importorskip("jax")
    import numpyro
    import numpyro.distributions as dist
    from numpyro.infer import SVI

    from numpyro_dvae.fit import exponential_schedule, fit_restarts
    from numpyro_dvae.infer import Exact_ELBO

    def model(x):
        probs = numpyro.param("probs", jax.numpy.array([0.2, 0.7]))
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Bernoulli(0.5))
            numpyro.sample("x", dist.Bernoulli(probs[z.astype(int)]), obs=x)

    def guide(x):
        logits = numpyro.param("logits", lambda key: jax.random.normal(key, (2,)))
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", dist.Bernoulli(logits=logits[x.astype(int)]))

    loss = Exact_ELBO(beta=exponential_schedule(2.0, 1.0, 10))
    x = np.array([0, 1, 1, 1.0])
    found = fit_restarts(
        jax.random.key(0),
        lambda: SVI(model, guide, numpyro.optim.Adam(0.05), loss),
        x,
        num_restarts=3,
        num_steps=12,
        eval_data=x,
        log_every=6,
        progress=False,
    )
    assert found.history[-1]["beta"] == pytest.approx(1.0)
    assert found.history[0]["beta"] == pytest.approx(2.0**0.5)
    assert found.params["logits"].shape == (2,)
    assert found.evaluations[-1]["eval_loss"] < 4.0
