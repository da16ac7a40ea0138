"""Vector quantisation as a guide, a decoder and a loss, in both packages.

Encoder and decoder are linear, so that loss and gradients are known in closed form.
"""

import importlib
from types import SimpleNamespace

import numpy as np
import pytest

SHAPE, L, D, V, B = (3, 2), 2, 3, 5, 40
RNG = np.random.default_rng(0)
X = RNG.normal(size=(B, *SHAPE)).astype(np.float32)
TABLE = RNG.normal(size=(V, D)).astype(np.float32) * 0.3
LEVELS = (3, 2, 4)
SLOW = pytest.mark.slow


def pair(kit, kind, table=TABLE, **options):
    nets, models, guides = map(kit.module, ("nets", "models", "guides"))
    table = None if table is None else kit.asarray(table)
    if kind == "scalar":
        codebook = nets.FiniteScalars(LEVELS)
    else:
        decay = 0.5 if kind == "moving" else None
        codebook = nets.Codebook(V, D, **{"decay": decay, "table": table, **options})
    network = nets.MLPDecoder(L * D, None, SHAPE, hidden=())
    prior = models.UniformPrior(L, codebook.num_codes)
    likelihood = models.GaussianLikelihood(variance=1.0, learn=False)
    model = models.DiscreteVAE(nets.CodebookDecoder(codebook, network), prior, likelihood)
    return model, guides.VectorQuantizedGuide(nets.MLPEncoder(SHAPE, L, D, hidden=()), codebook)


def pyro_kit():
    import pyro
    import torch

    def module(path):
        return importlib.import_module(f"pyro_dvae.{path}")

    asarray, name = torch.asarray, "pyro"

    def start(model, guide, lr=0.0):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        return SimpleNamespace(model=model, guide=guide, lr=lr)

    def evaluate(run, elbo):
        """Loss, parameters and gradients by part, and the table after it."""
        parts = run.guide.encoder.layers[0], run.model.decoder.network.layers[0]
        leaves = [leaf for part in parts for leaf in (part.weight, part.bias)]
        codebook = run.guide.codebook
        if codebook.table.requires_grad:
            leaves.append(codebook.table)
        before = [leaf.detach().numpy().copy() for leaf in leaves]
        for leaf in leaves:
            leaf.grad = None
        loss = float(elbo.loss_and_grads(run.model, run.guide, asarray(X)))
        grads = [leaf.grad.numpy().copy() for leaf in leaves]
        for arrays in (before, grads):
            arrays[0], arrays[2] = arrays[0].T, arrays[2].T
        return SimpleNamespace(
            loss=loss, params=before, grads=grads, table=codebook.table.detach().numpy()
        )

    def loss(run, elbo):
        return elbo.loss(run.model, run.guide, asarray(X))

    def train(run, elbo, num_steps):
        svi = pyro.infer.SVI(run.model, run.guide, pyro.optim.Adam({"lr": run.lr}), elbo)
        return [float(svi.step(asarray(X))) for _ in range(num_steps)]

    def info(run, elbo):
        return elbo.info

    def elbos(run, x):
        diagnostics = module("diagnostics")
        return diagnostics.importance_diagnostics((run.model, run.guide), x, num_particles=30).elbo

    def codes_and_means(run):
        with torch.no_grad():
            codes = run.guide.posterior(asarray(X)).sample()
            return codes.numpy(), run.model.reconstruct(codes).numpy()

    return SimpleNamespace(**locals())


def numpyro_kit():
    import jax
    import jax.numpy as jnp
    import numpyro
    from numpyro import handlers

    from numpyro_dvae.infer import SVI
    from numpyro_dvae.infer.svi import loss_info

    def module(path):
        return importlib.import_module(f"numpyro_dvae.{path}")

    asarray, name = jnp.asarray, "numpyro"

    def start(model, guide, lr=0.0):
        return SimpleNamespace(model=model, guide=guide, lr=lr, state=None)

    def begun(run, elbo):
        run.svi = SVI(run.model, run.guide, numpyro.optim.Adam(run.lr), elbo)
        if run.state is None:
            run.state = jax.jit(run.svi.init)(jax.random.key(0), asarray(X))
            run.params = run.svi.get_params(run.state)
            run.mutable = dict(run.state.mutable_state or {})
        return run.svi

    def evaluate(run, elbo):
        begun(run, elbo)
        mutable = {k: v for k, v in run.mutable.items() if not k.startswith("_")}

        def loss_fn(params):
            programs = run.model, run.guide, asarray(X)
            found = elbo.loss_with_mutable_state(
                jax.random.key(1), {**params, **mutable}, *programs
            )
            return found["loss"], found["mutable_state"]

        (loss, after), grads = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(run.params)
        after = {**run.params, **(after or {})}
        table = after.get("codebook$table")
        table = after["codebook$state"]["table"] if "codebook$state" in after else table
        return SimpleNamespace(
            loss=float(loss), params=listed(run.params), grads=listed(grads), table=table
        )

    def listed(params):
        parts = params["guide.encoder$params"], params["model.decoder$params"]
        leaves = [part["layers_0"][leaf] for part in parts for leaf in ("kernel", "bias")]
        leaves += [params[name] for name in ("codebook$table",) if name in params]
        return [np.asarray(leaf) for leaf in leaves]

    def loss(run, elbo):
        begun(run, elbo)
        mutable = {k: v for k, v in run.mutable.items() if not k.startswith("_")}
        programs = run.model, run.guide, asarray(X)
        return float(
            jax.jit(lambda p: elbo.loss(jax.random.key(1), p, *programs))(run.params | mutable)
        )

    def train(run, elbo, num_steps):
        svi = begun(run, elbo)
        update, losses = jax.jit(svi.update), []
        for _ in range(num_steps):
            run.state, value = update(run.state, asarray(X))
            losses.append(float(value))
        run.params = svi.get_params(run.state)
        run.mutable = dict(run.state.mutable_state)
        return losses

    def info(run, elbo):
        return loss_info(run.state)

    def elbos(run, x):
        params = {**run.params, **{k: v for k, v in run.mutable.items() if k[0] != "_"}}
        found = module("diagnostics").importance_diagnostics(
            jax.random.key(3), (run.model, run.guide), x, num_particles=30, params=params
        )
        return found.elbo

    def codes_and_means(run):
        data = {**run.params, **run.mutable}
        posterior = handlers.substitute(run.guide.posterior, data=data)(asarray(X))
        codes = posterior.sample(jax.random.key(2))
        means = handlers.substitute(run.model.reconstruct, data=data)(codes)
        return np.asarray(codes), np.asarray(means)

    return SimpleNamespace(**locals())


@pytest.fixture(params=["pyro", "numpyro"])
def kit(request):
    pytest.importorskip("torch" if request.param == "pyro" else "jax")
    return pyro_kit() if request.param == "pyro" else numpyro_kit()


def linear_oracle(params, table, commitment):
    """Loss and gradients of the linear model, by hand: van den Oord et al., equation 3."""
    in_weight, in_bias, out_weight, out_bias = (p.astype(np.float64) for p in params[:4])
    x = X.reshape(B, -1).astype(np.float64)
    inputs = (x @ in_weight + in_bias).reshape(B, L, D)
    codes = ((inputs[..., None, :] - table) ** 2).sum(-1).argmin(-1)
    vectors = table[codes].astype(np.float64)
    flat = vectors.reshape(B, L * D)
    error = flat @ out_weight + out_bias - x
    constant = 0.5 * np.log(2 * np.pi) * x.size + B * L * np.log(V)
    back = (error @ out_weight.T).reshape(B, L, D) + 2 * commitment * (inputs - vectors)
    back = back.reshape(B, -1)
    by_row = np.zeros((V, D))
    np.add.at(by_row, codes, 2 * (vectors - inputs))
    grads = [x.T @ back, back.sum(0), flat.T @ error, error.sum(0), by_row]
    return 0.5 * (error**2).sum() + constant, grads, inputs, codes


@pytest.mark.parametrize(("kind", "commitment"), [("gradient", 0.25), ("moving", 0.0)])
def test_loss_and_gradients_in_closed_form(kit, kind, commitment):
    run = kit.start(*pair(kit, kind))
    found = kit.evaluate(run, kit.module("infer").VQ_ELBO(commitment=commitment))
    loss, grads, _, _ = linear_oracle(found.params, TABLE, commitment)
    assert found.loss == pytest.approx(loss, rel=1e-5)
    assert len(found.grads) == (5 if kind == "gradient" else 4)
    for own, expected in zip(found.grads, grads, strict=False):
        np.testing.assert_allclose(own, expected, rtol=2e-4, atol=2e-4)


def test_the_table_follows_its_inputs(kit):
    far = TABLE + np.float32(100) * (np.arange(V) == 0)[:, None]
    run = kit.start(*pair(kit, "moving", far, decay=0.0, min_count=0.5))
    found = kit.evaluate(run, kit.module("infer").VQ_ELBO())
    _, _, inputs, codes = linear_oracle(found.params, far, 0.25)
    assert (codes != 0).all()
    table = np.asarray(found.table)
    for code in np.unique(codes):
        expected = inputs[codes == code].mean(0)
        np.testing.assert_allclose(table[code], expected, rtol=1e-3, atol=1e-4)
    assert np.abs(inputs.reshape(-1, D) - table[0]).max(-1).min() < 1e-5  # it restarts at one


@pytest.mark.parametrize("kind", ["gradient", pytest.param("scalar", marks=SLOW)])
def test_the_value_is_the_elbo_by_enumeration(kit, kind):
    infer = kit.module("infer")
    run = kit.start(*pair(kit, kind))
    loss = kit.loss(run, infer.VQ_ELBO(commitment=3.0))
    assert loss == pytest.approx(kit.loss(run, infer.Exact_ELBO()), rel=1e-5)


@pytest.mark.parametrize("kind", [pytest.param("gradient", marks=SLOW), "moving", "scalar"])
def test_training_and_the_model_of_integer_codes(kit, kind):
    model, guide = pair(kit, kind, table=None if kind == "moving" else TABLE)
    run = kit.start(model, guide, lr=0.02)
    elbo = kit.module("infer").VQ_ELBO()
    losses = kit.train(run, elbo, 60)
    assert losses[-1] < losses[0] - 0.2 * B
    found = kit.info(run, elbo)
    assert float(found.elbo) == pytest.approx(-losses[-1] / B, rel=1e-4)
    assert float(found.rate) == pytest.approx(L * np.log2(guide.codebook.num_codes), rel=1e-4)
    assert (float(found.distance) == 0) == (kind == "scalar")
    if kind == "moving":
        value = kit.loss(run, elbo)
        assert kit.loss(run, elbo) == value  # evaluation does not move the averages
    codes, means = kit.codes_and_means(run)
    assert len(np.unique(codes)) > 1
    error = 0.5 * ((means - X) ** 2).sum() + 0.5 * np.log(2 * np.pi) * X.size
    expected = error + B * L * np.log(guide.codebook.num_codes)
    assert expected == pytest.approx(losses[-1], rel=0.05)  # before and after the last step


@SLOW
def test_diagnostics_see_the_table_as_it_was_trained(kit):
    run = kit.start(*pair(kit, "moving", table=None), lr=0.02)
    kit.train(run, kit.module("infer").VQ_ELBO(), 5)
    _, means = kit.codes_and_means(run)
    error = 0.5 * ((means - X) ** 2).sum((1, 2)) + 0.5 * np.log(2 * np.pi) * X[0].size
    expected = -error - L * np.log(V)
    np.testing.assert_allclose(kit.elbos(run, X[:4]), expected[:4], rtol=1e-4)


def test_another_guide_is_named(kit):
    nets, guides, infer = map(kit.module, ("nets", "guides", "infer"))
    model, _ = pair(kit, "gradient")
    guide = guides.IndependentGuide(nets.MLPEncoder(SHAPE, L, V, hidden=()))
    with pytest.raises(ValueError, match="needs a guide that quantises vectors"):
        kit.loss(kit.start(model, guide), infer.VQ_ELBO())


def test_a_width_that_does_not_fit_is_named(kit):
    nets, guides, infer = map(kit.module, ("nets", "guides", "infer"))
    model, guide = pair(kit, "gradient")
    guide = guides.VectorQuantizedGuide(nets.MLPEncoder(SHAPE, L, D + 1), guide.codebook)
    with pytest.raises(ValueError, match=r"\(V, 4\); got \(5, 3\)"):
        kit.loss(kit.start(model, guide), infer.VQ_ELBO())


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((1, 3), {}, "`num_codes` must be at least 2; got 1"),
        ((5, 3), {"decay": 1.0}, "`decay` must be in"),
        ((5, 3), {"min_count": 0.0}, "`min_count` must be positive"),
        ((4, 3), {"table": TABLE}, r"`table` must have shape \(4, 3\); got \(5, 3\)"),
    ],
)
def test_bad_codebooks_are_named(kit, arguments, options, message):
    options = {k: kit.asarray(v) if k == "table" else v for k, v in options.items()}
    with pytest.raises(ValueError, match=message):
        kit.module("nets").Codebook(*arguments, **options)


def test_bad_levels_and_commitments_are_named(kit):
    for levels in [(1, 5), ()]:
        with pytest.raises(ValueError, match="`levels` must be numbers of at least 2"):
            kit.module("nets").FiniteScalars(levels)
    with pytest.raises(ValueError, match="`commitment` must be finite"):
        kit.module("infer").VQ_ELBO(commitment=-1.0)
