"""What stands in missing cells reaches neither the model nor the networks of its guide."""

import numpy as np
import pytest

SHAPE, L = (3, 2), 2
RNG = np.random.default_rng(4)
X = RNG.uniform(size=(4, *SHAPE)).round().astype(np.float32)
SEEN = RNG.uniform(size=X.shape) > 0.4


def pyro_run(x, kind):
    import pyro
    import torch

    from pyro_dvae import guides, infer, models, nets

    torch.manual_seed(0)
    pyro.clear_param_store()
    likelihood = getattr(models, f"{kind}Likelihood")()
    decoder = nets.MLPDecoder(L, None, SHAPE, hidden=(4,))
    model = models.DiscreteVAE(decoder, models.BernoulliPrior(L), likelihood)
    guide = guides.IndependentGuide(nets.MLPEncoder(SHAPE, L, None, hidden=(4,)), binary=True)
    data = torch.as_tensor(x), None, None, torch.as_tensor(SEEN)
    loss = infer.Exact_ELBO().loss_and_grads(model, guide, *data)
    parameters = [*model.parameters(), *guide.parameters()]
    return float(loss), [p.grad.numpy() for p in parameters if p.grad is not None]


def numpyro_run(x, kind):
    import jax
    import numpyro

    from numpyro_dvae import guides, infer, models, nets

    likelihood = getattr(models, f"{kind}Likelihood")()
    decoder = nets.MLPDecoder(L, None, SHAPE, hidden=(4,))
    model = models.DiscreteVAE(decoder, models.BernoulliPrior(L), likelihood)
    guide = guides.IndependentGuide(nets.MLPEncoder(SHAPE, L, None, hidden=(4,)), binary=True)
    data, elbo = (x, None, None, SEEN), infer.Exact_ELBO()
    from quick_numpyro import QuickSVI

    svi = QuickSVI(model, guide, numpyro.optim.Adam(0.1), elbo)
    params = svi.get_params(jax.jit(lambda key: svi.init(key, *data))(jax.random.key(0)))

    def loss_fn(params, x):
        return elbo.loss(jax.random.key(1), params, model, guide, x, *data[1:])

    loss, grads = jax.jit(jax.value_and_grad(loss_fn))(params, x)
    return float(loss), [np.asarray(leaf) for leaf in jax.tree.leaves(grads)]


@pytest.mark.thrifty
@pytest.mark.parametrize(
    ("name", "kind"), [("pyro", "Bernoulli"), ("pyro", "Gaussian"), ("numpyro", "Gaussian")]
)
def test_not_a_number_in_every_missing_cell(name, kind):
    pytest.importorskip("torch" if name == "pyro" else "jax")
    run = pyro_run if name == "pyro" else numpyro_run
    holes = np.where(SEEN, X, np.float32(np.nan))
    loss, grads = run(X, kind)
    other_loss, other_grads = run(holes, kind)
    assert other_loss == pytest.approx(loss, rel=1e-6)
    assert max(np.abs(grad).max() for grad in grads) > 0.1
    for grad, other in zip(grads, other_grads, strict=True):
        np.testing.assert_allclose(other, grad, rtol=1e-5, atol=1e-6)
