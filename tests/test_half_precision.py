"""Binary guides and decoders with half-precision parameters: densities in float32 all the same."""

import numpy as np
import pytest

SHAPE, L = (3, 2), 3
X = np.random.default_rng(1).uniform(size=(4, *SHAPE)).round().astype(np.float32)


def pyro_run(dtype, kind, like):
    """Loss, dtypes of the sites' log-densities, gradients; parameters are rounded to `like`."""
    import pyro
    import torch
    from pyro import poutine

    from pyro_dvae import guides, infer, models, nets

    torch.manual_seed(0)
    pyro.clear_param_store()
    decoder = nets.MLPDecoder(L, None, SHAPE, hidden=(8,))
    prior = models.BernoulliPrior(L, probability=0.3, learn=True)
    model = models.DiscreteVAE(decoder, prior, getattr(models, f"{kind}Likelihood")())
    guide = guides.IndependentGuide(nets.MLPEncoder(SHAPE, L, None, hidden=(8,)), binary=True)
    model, guide = (
        part.to(getattr(torch, like)).to(getattr(torch, dtype)) for part in (model, guide)
    )
    x = torch.as_tensor(X).to(getattr(torch, dtype))
    traces = [poutine.trace(part).get_trace(x) for part in (model, guide)]
    for trace in traces:
        trace.compute_log_prob()
    found = {
        str(trace.nodes[n]["log_prob"].dtype) for trace in traces for n in "zx" if n in trace.nodes
    }
    loss = infer.Exact_ELBO().loss_and_grads(model, guide, x)
    parameters = [*model.parameters(), *guide.parameters()]
    return (
        float(loss),
        {name.removeprefix("torch.") for name in found},
        [p.grad.float().numpy() for p in parameters],
    )


def numpyro_run(dtype, kind, like):
    import jax
    import numpyro
    from numpyro import handlers

    from numpyro_dvae import guides, infer, models, nets

    decoder = nets.MLPDecoder(L, None, SHAPE, hidden=(8,))
    prior = models.BernoulliPrior(L, probability=0.3, learn=True)
    model = models.DiscreteVAE(decoder, prior, getattr(models, f"{kind}Likelihood")())
    guide = guides.IndependentGuide(nets.MLPEncoder(SHAPE, L, None, hidden=(8,)), binary=True)
    elbo, found, x = infer.Exact_ELBO(), set(), jax.numpy.asarray(X, dtype)
    svi = infer.SVI(model, guide, numpyro.optim.Adam(0.1), elbo)

    def run(key, x):
        params = svi.get_params(svi.init(key, jax.numpy.asarray(X)))
        params = jax.tree.map(lambda leaf: leaf.astype(like).astype(dtype), params)
        for part in (model, guide):
            program = handlers.seed(handlers.substitute(part, data=params), key)
            for site in handlers.trace(program).get_trace(x).values():
                if site["type"] == "sample":
                    found.add(str(site["fn"].log_prob(site["value"]).dtype))
        return jax.value_and_grad(lambda params: elbo.loss(key, params, model, guide, x))(params)

    loss, grads = jax.jit(run)(jax.random.key(0), x)
    return float(loss), found, [np.asarray(leaf, np.float32) for leaf in jax.tree.leaves(grads)]


@pytest.mark.thrifty
@pytest.mark.parametrize(
    ("name", "dtype", "kind"),
    [
        ("pyro", "bfloat16", "Bernoulli"),
        ("pyro", "float16", "Gaussian"),
        ("numpyro", "bfloat16", "Gaussian"),
        ("numpyro", "float16", "Bernoulli"),
    ],
)
def test_losses_of_half_precision_are_those_of_their_parameters(name, dtype, kind):
    pytest.importorskip("torch" if name == "pyro" else "jax")
    run = pyro_run if name == "pyro" else numpyro_run
    loss, dtypes, grads = run(dtype, kind, dtype)
    expected, _, expected_grads = run("float32", kind, dtype)
    assert dtypes == {"float32"}
    assert loss == pytest.approx(expected, rel=3e-3)
    for grad, other in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(grad, other, rtol=0.1, atol=0.1)
