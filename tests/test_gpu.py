"""What a GPU alone can show; `PYRO_DVAE_DEVICE=cpu` tries the tests on another machine."""

import os

import numpy as np
import pytest

DEVICE = os.environ.get("PYRO_DVAE_DEVICE", "cuda")
SHAPE, L, V = (4, 4), 2, 3
X = (np.random.default_rng(0).random((6, *SHAPE)) < 0.5).astype(np.float32)


def torch_here():
    torch = pytest.importorskip("torch")
    if DEVICE == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU that Torch knows")
    return torch


def pyro_pair(device):
    import pyro
    import torch

    from pyro_dvae import guides, models, nets

    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    decoder = nets.MLPDecoder(L, V, SHAPE, embed_dim=4, hidden=(8,))
    model = models.DiscreteVAE(decoder, models.UniformPrior(L, V), models.BernoulliLikelihood())
    guide = guides.IndependentGuide(nets.MLPEncoder(SHAPE, L, V, hidden=(8,)))
    return model.to(device), guide.to(device), torch.as_tensor(X, device=device)


def test_pyro_has_one_loss_and_gradient_on_all_devices():
    torch_here()
    from pyro_dvae.infer import Exact_ELBO

    found = []
    for device in ("cpu", DEVICE):
        model, guide, x = pyro_pair(device)
        loss = Exact_ELBO().loss_and_grads(model, guide, x)
        grads = [p.grad.cpu().numpy() for p in (*model.parameters(), *guide.parameters())]
        found.append((float(loss), grads))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-5)
    for first, second in zip(found[0][1], found[1][1], strict=True):
        np.testing.assert_allclose(second, first, atol=1e-4)


@pytest.mark.parametrize("name", ["DAPS_ELBO", "Reinforce_ELBO"])
def test_no_step_of_pyro_waits_for_the_device(name):
    torch = torch_here()
    import pyro
    from pyro.infer import SVI

    from pyro_dvae import infer
    from pyro_dvae.fit import adamw
    from pyro_dvae.fit.svi import take_step

    model, guide, x = pyro_pair(DEVICE)
    optim = adamw(1e-3, clip_units=1.0, average=0.9)
    svi = SVI(model, guide, optim, loss=getattr(infer, name)(num_particles=3))
    with pyro.validation_enabled(False):
        for _ in range(2):  # finds plates, makes the optimiser's state
            take_step(svi, (x,), {})
        if DEVICE == "cuda":
            torch.cuda.set_sync_debug_mode("error")
        try:
            losses = [take_step(svi, (x,), {}) for _ in range(3)]
        finally:
            if DEVICE == "cuda":
                torch.cuda.set_sync_debug_mode("default")
    assert np.isfinite([float(loss) for loss in losses]).all()


def test_bfloat16_trains_with_a_finite_loss_that_falls():
    torch = torch_here()
    import pyro

    from pyro_dvae import fit, guides, infer, models, nets

    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    options = {"embed_dim": 8, "num_heads": 2, "dtype": torch.bfloat16, "recompute": True}
    patches = nets.PatchEncoder(SHAPE, 4, **options)
    guide = guides.AutoregressiveGuide(patches, nets.CausalTransformer(L, V, **options)).to(DEVICE)
    decoder = nets.MLPDecoder(L, V, SHAPE, embed_dim=4, hidden=(8,))
    model = models.DiscreteVAE(decoder, models.UniformPrior(L, V), models.BernoulliLikelihood())
    loss = infer.DAPS_ELBO(num_particles=4)
    svi = pyro.infer.SVI(model.to(DEVICE), guide, fit.adamw(0.02), loss=loss)
    result = fit.fit(svi, X, num_steps=40, progress=False)
    assert np.isfinite(result.losses).all()
    assert result.losses[-5:].mean() < result.losses[:5].mean()


def test_numpyro_has_one_loss_and_gradient_on_all_devices():
    jax = pytest.importorskip("jax")
    import numpyro

    from numpyro_dvae import guides, infer, models, nets

    try:
        devices = [jax.devices(kind)[0] for kind in ("cpu", DEVICE)]
    except RuntimeError:
        pytest.skip("no GPU that JAX knows")
    decoder = nets.MLPDecoder(L, V, SHAPE, embed_dim=4, hidden=(8,))
    model = models.DiscreteVAE(decoder, models.UniformPrior(L, V), models.BernoulliLikelihood())
    guide = guides.IndependentGuide(nets.MLPEncoder(SHAPE, L, V, hidden=(8,)))
    elbo, key = infer.Exact_ELBO(), jax.random.key(0)
    svi = infer.SVI(model, guide, numpyro.optim.Adam(0.1), elbo)
    with jax.default_device(devices[0]):
        params = svi.get_params(svi.init(key, X))
    found = []
    for device in devices:
        given = jax.device_put((params, jax.numpy.asarray(X)), device)
        step = jax.jit(jax.value_and_grad(lambda p, x: elbo.loss(key, p, model, guide, x)))
        loss, grads = step(*given)
        found.append((float(loss), [np.asarray(leaf) for leaf in jax.tree.leaves(grads)]))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-5)
    for first, second in zip(found[0][1], found[1][1], strict=True):
        np.testing.assert_allclose(second, first, atol=1e-4)
