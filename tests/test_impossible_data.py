"""Training on data of which one is impossible: it goes on, and says which."""

import numpy as np
import pytest

X = np.array([0.3, -0.2, 0.5, -1.0, 7.0, 0.1], np.float32)  # the datum in row 4 cannot be


def pyro_pair():
    import pyro
    import pyro.distributions as dist
    import torch

    def model(x, far=5):
        assert far > 0  # a number, not an array without a value
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.4))
            pyro.factor("near", torch.where(x > far, -torch.inf, -((x - z) ** 2)))

    def guide(x, far=5):
        logit = pyro.param("logit", torch.tensor(0.3))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=logit.expand(len(x))))

    return model, guide


def pyro_run():
    import pyro
    import torch
    from pyro.infer import SVI

    from pyro_dvae.fit import fit
    from pyro_dvae.infer import Reinforce_ELBO

    model, guide = pyro_pair()
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), Reinforce_ELBO(4))
    return fit(svi, torch.as_tensor(X), 5, batch_size=3, num_steps=6, log_every=2, progress=False)


def numpyro_pair():
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist

    def model(x, far=5):
        assert far > 0
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Bernoulli(0.4))
            numpyro.factor("near", jnp.where(x > far, -jnp.inf, -((x - z) ** 2)))

    def guide(x, far=5):
        logit = numpyro.param("logit", 0.3)
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", dist.Bernoulli(logits=logit + 0.0 * x))

    return model, guide


def numpyro_run():
    import jax
    import jax.numpy as jnp
    import numpyro
    from quick_numpyro import QuickSVI

    from numpyro_dvae.fit import fit
    from numpyro_dvae.infer import Reinforce_ELBO

    model, guide = numpyro_pair()
    svi = QuickSVI(model, guide, numpyro.optim.Adam(0.1), Reinforce_ELBO(4))
    options = {"batch_size": 3, "num_steps": 6, "log_every": 2, "progress": False}
    return fit(jax.random.key(0), svi, jnp.asarray(X), 5, **options)


@pytest.mark.parametrize("name", ["pyro", "numpyro"])
def test_training_goes_on_and_names_the_datum(name):
    pytest.importorskip("torch" if name == "pyro" else "jax")
    with pytest.warns(UserWarning, match=r"loss of step \d is infinite: data in rows 4 of") as said:
        result = pyro_run() if name == "pyro" else numpyro_run()
    assert len(said) == 1
    assert "or the guide draws values of 'z' that the data rule out" in str(said[0].message)
    assert result.num_steps == 6
    infinite = np.isposinf(result.losses)
    assert infinite.sum() == 3  # once an epoch of two batches
    assert np.isfinite(result.losses[~infinite]).all()
    logit = float(result.params["logit"])
    assert np.isfinite(logit)
    assert logit < 0.2  # it has learnt of the data that are possible


def exact_loss(name, x):
    if name == "pyro":
        import pyro
        import torch

        from pyro_dvae.infer import Exact_ELBO

        pyro.clear_param_store()
        return Exact_ELBO().loss(*pyro_pair(), torch.as_tensor(x))
    import jax

    from numpyro_dvae.infer import Exact_ELBO

    return float(Exact_ELBO().loss(jax.random.key(0), {"logit": 0.3}, *numpyro_pair(), x))


@pytest.mark.thrifty
@pytest.mark.parametrize("name", ["pyro", "numpyro"])
def test_a_sum_over_states_that_are_all_impossible_is_infinite(name):
    pytest.importorskip("torch" if name == "pyro" else "jax")
    assert exact_loss(name, X) == np.inf
    q = 1 / (1 + np.exp(-0.3))
    rate = q * np.log(q / 0.4) + (1 - q) * np.log((1 - q) / 0.6)
    rest = np.delete(X, 4).astype(float)
    right = np.sum(rate + q * (rest - 1) ** 2 + (1 - q) * rest**2)
    assert exact_loss(name, np.delete(X, 4)) == pytest.approx(right, rel=1e-6)


@pytest.mark.parametrize("name", ["pyro", "numpyro"])
def test_only_an_infinite_loss_is_no_divergence(name):
    losses = pytest.importorskip(f"{name}_dvae.fit.losses")
    result = pytest.importorskip(f"{name}_dvae.fit.result")
    assert losses.check_finite([1.0, np.inf, 2.0], [True] * 3, [], None) == [2]
    for bad in (np.nan, -np.inf):
        with pytest.raises(result.DivergenceError, match="step 2"):
            losses.check_finite([1.0, bad, 2.0], [True] * 3, [], None)
    with pytest.raises(result.DivergenceError, match="weight"):
        losses.check_finite([np.inf], [True], ["weight"], None)
