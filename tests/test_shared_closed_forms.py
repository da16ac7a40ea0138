"""Two sites with one parameter in closed form: it follows from both, under every kind of loss.

Two normal sites, of 1 and 3 values a datum, share a variance v, kept as its logarithm. Its optimum
under a posterior is the mean of all four squared errors, whichever site is written first.
"""

import importlib

import numpy as np
import pytest

RATE, START = 0.1, np.log(2.0)
X = np.array([[0.3], [-1.2], [2.5]])
Y = np.array([[0.1, 0.2, -0.4], [1.0, -2.0, 0.5], [-3.0, 0.0, 0.7]])
Q = 0.3  # the guide's probability of 1, where there is one


def squares(z):
    """Summed squared errors of both sites' values at this state of each datum."""
    return ((X - z) ** 2).sum(-1) + ((Y + z) ** 2).sum(-1)


def optimum(q):
    """Log variance that is best where a datum is in state 1 with probability q."""
    return np.log((q * squares(1.0) + (1 - q) * squares(0.0)).sum() / (X.size + Y.size))


def true_posterior():
    scores = [-squares(z) / (2 * np.exp(START)) for z in (0.0, 1.0)]
    return 1.0 / (1.0 + np.exp(scores[0] - scores[1]))


def squared_error(fn, value):
    return (value - fn.mean) ** 2


def log_of_mean(xp):
    return lambda total, count, old: xp.log(total / count)


def with_pyro(truncated):
    import pyro
    import pyro.distributions as dist
    import torch

    infer, models = (importlib.import_module(f"pyro_dvae.{name}") for name in ("infer", "models"))
    pyro.clear_param_store()
    raw, x, y = torch.tensor(START), torch.asarray(X), torch.asarray(Y)
    form = models.ClosedForm(raw, squared_error, log_of_mean(torch))
    mark = {"closed_form": form}

    def model():
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.5, dtype=x.dtype)))[..., None]
            scale = (0.5 * raw).exp()
            pyro.sample("x", dist.Normal(z, scale).to_event(1), obs=x, infer=mark)
            wide = dist.Normal(-z, scale).expand((*z.shape[:-1], 3)).to_event(1)
            pyro.sample("y", wide, obs=y, infer=mark)

    def guide():
        q = pyro.param("q", torch.tensor(Q, dtype=x.dtype))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(q))

    if truncated:
        guide, loss = infer.TruncatedGuide(model, 2), infer.Truncated_ELBO()
    else:
        loss = infer.Exact_ELBO()
    svi = pyro.infer.SVI(model, guide, pyro.optim.SGD({"lr": 0.0}), loss)
    svi.step()
    svi.step()  # what is due at the end of the first is done by now; the second moves it again
    return raw.item()


def with_numpyro(truncated):
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist

    infer, models = (
        importlib.import_module(f"numpyro_dvae.{name}") for name in ("infer", "models")
    )
    x, y = jnp.asarray(X), jnp.asarray(Y)
    form = models.ClosedForm("raw", squared_error, log_of_mean(jnp))
    mark = {"closed_form": form}

    def model():
        scale = jnp.exp(0.5 * numpyro.primitives.mutable("raw", jnp.asarray(START)))
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Bernoulli(0.5))[..., None]
            numpyro.sample("x", dist.Normal(z, scale).to_event(1), obs=x, infer=mark)
            wide = dist.Normal(-z, scale).expand((*z.shape[:-1], 3)).to_event(1)
            numpyro.sample("y", wide, obs=y, infer=mark)

    def guide():
        q = numpyro.param("q", jnp.asarray(Q))
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", dist.Bernoulli(q))

    if truncated:
        guide, loss = infer.TruncatedGuide(model, 2), infer.Truncated_ELBO()
    else:
        loss = infer.Exact_ELBO()
    from quick_numpyro import QuickSVI

    svi = QuickSVI(model, guide, numpyro.optim.SGD(0.0), loss)
    state, update = jax.jit(svi.init)(jax.random.key(0)), jax.jit(svi.update)
    for _ in range(2):
        state, _ = update(state)
    return float(state.mutable_state["raw"])


@pytest.mark.parametrize("run", [with_pyro, with_numpyro])
def test_a_loss_of_a_batch_moves_it_towards_the_optimum_of_both(run):
    expected = START
    for _ in range(2):
        expected += RATE * (optimum(Q) - expected)
    assert run(truncated=False) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("run", [with_pyro, with_numpyro])
def test_truncated_posteriors_solve_for_both(run):
    first = optimum(true_posterior())
    scores = [-squares(z) / (2 * np.exp(first)) for z in (0.0, 1.0)]
    second = optimum(1.0 / (1.0 + np.exp(scores[0] - scores[1])))
    assert run(truncated=True) == pytest.approx(second, rel=1e-5)
