"""Sets of other data, evolved a part at a time, in both packages.

With all states in the sets their bound is the evidence, which is enumerated here in float64.
"""

import importlib
import itertools

import numpy as np
import pytest

H, D, N = 3, 2, 11
RNG = np.random.default_rng(0)
WEIGHT, PROBS = RNG.normal(size=(H, D)).astype(np.float32), np.array([0.2, 0.5, 0.7], np.float32)
OLD, NEW = (RNG.normal(size=(count, D)).astype(np.float32) for count in (5, N))
STATES = np.array(list(itertools.product([0.0, 1.0], repeat=H)))


def evidence(x):
    scores = STATES @ np.log(PROBS) + (1 - STATES) @ np.log(1 - PROBS)
    scores = scores - 0.5 * np.square(x[:, None] - STATES @ WEIGHT).sum(-1)
    return np.logaddexp.reduce(scores - 0.5 * D * np.log(2 * np.pi), 1)


def made_in_pyro(extra=(), **options):
    """A model, the guide of new data, and these."""
    import pyro
    import pyro.distributions as dist
    import torch

    from pyro_dvae.infer import TruncatedGuide

    pyro.set_rng_seed(0)
    weight, probs = torch.asarray(WEIGHT), torch.asarray(PROBS)

    def model(*args):
        x = args[-1]
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(probs).to_event(1))
            pyro.sample("x", dist.Normal(z @ weight, 1.0).to_event(1), obs=x)

    guide, data = TruncatedGuide(model, 2**H), [*map(torch.asarray, extra), torch.asarray(NEW)]
    guide(torch.asarray(OLD))
    return model, guide.for_data(*data, **options), data


def with_pyro(**options):
    """Of a guide of new data: bounds and words."""
    _, other, data = made_in_pyro(**options)
    return other.posterior(*data).bound.numpy(), other.words.numpy()


def made_in_numpyro(extra=(), **options):
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist
    from numpyro.handlers import seed, trace

    from numpyro_dvae.infer import TruncatedGuide

    def model(*args):
        x = args[-1]
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Bernoulli(jnp.asarray(PROBS)).to_event(1))
            numpyro.sample("x", dist.Normal(z @ WEIGHT, 1.0).to_event(1), obs=x)

    guide, key = TruncatedGuide(model, 2**H), jax.random.key(0)
    found = trace(seed(guide, key)).get_trace(jnp.asarray(OLD))
    params = {guide.site: found[guide.site]["value"]}
    data = [*map(jnp.asarray, extra), jnp.asarray(NEW)]
    return model, guide.for_data(key, params, *data, **options), data


def with_numpyro(**options):
    from numpyro.handlers import substitute

    _, other, data = made_in_numpyro(**options)
    return substitute(other.posterior, data={})(*data).bound, np.asarray(other.words)


RUNS = {"pyro": with_pyro, "numpyro": with_numpyro}


@pytest.fixture(params=list(RUNS))
def run(request):
    pytest.importorskip("torch" if request.param == "pyro" else "jax")
    return RUNS[request.param]


@pytest.mark.thrifty
@pytest.mark.parametrize(
    "batch_size", [4, *(pytest.param(size, marks=pytest.mark.slow) for size in (None, 100))]
)
def test_sets_of_new_data_are_complete(run, batch_size):
    """Of a model that counts the rows it is given; the last part is cut back over the second."""
    bounds, words = run(batch_size=batch_size, num_sweeps=1)
    assert len(words) == N
    np.testing.assert_allclose(bounds, evidence(NEW), rtol=1e-5)


@pytest.mark.thrifty
def test_what_cannot_be_cut_is_refused(run):
    with pytest.raises(ValueError, match="`batch_size` must be 1 or more; got 0"):
        run(batch_size=0)
    with pytest.raises(ValueError, match=r"cuts the 7 rows of the first array.*for 11 data"):
        run(extra=[np.zeros(7, np.float32)], batch_size=4)


@pytest.mark.parametrize("package", ["pyro_dvae", "numpyro_dvae"])
def test_of_nothing_new_nothing_is_replaced(package):
    """A mean of ones in float32 may be above 1: the share of old members was taken from 1."""
    pytest.importorskip("torch" if package == "pyro_dvae" else "jax")
    estep = importlib.import_module(f"{package}.infer.truncated.estep")
    xp = importlib.import_module("torch" if package == "pyro_dvae" else "jax.numpy")
    assert float(estep.share_replaced(xp.ones((7, 999_983), dtype=bool), xp.float32)) == 0.0
    half = xp.asarray(np.arange(20).reshape(4, 5) % 2 == 0)
    assert float(estep.share_replaced(half, xp.float32)) == 0.5


def test_reports_of_the_sets_of_new_data(run):
    """They are no state that a guide wants to be given, nor one of the user's own around it."""
    is_pyro = run is with_pyro
    model, other, data = (made_in_pyro if is_pyro else made_in_numpyro)(num_sweeps=1)
    evaluate = importlib.import_module(f"{run.__name__[5:]}_dvae.diagnostics").evaluate
    key = () if is_pyro else (importlib.import_module("jax").random.key(0),)
    for guide in (other, lambda *args: other(*args)):
        found = evaluate(*key, (model, guide), *data, num_particles=2)
        np.testing.assert_allclose(found.elbo, evidence(NEW).mean(), rtol=1e-5)
