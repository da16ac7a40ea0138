"""Vector-quantised pairs in both packages, and what a test does with them, under the same names."""

import importlib
from types import SimpleNamespace

import numpy as np

SHAPE, L, D, V, B = (3, 2), 2, 3, 5, 40
RNG = np.random.default_rng(0)
X = RNG.normal(size=(B, *SHAPE)).astype(np.float32)
TABLE = RNG.normal(size=(V, D)).astype(np.float32) * 0.3
LEVELS = (3, 2, 4)


def pair(kit, kind, table=TABLE, gradient="rotation", **options):
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
    encoder = nets.MLPEncoder(SHAPE, L, D, hidden=())
    return model, guides.VectorQuantizedGuide(encoder, codebook, gradient=gradient)


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

    def masked(program, mask):
        return program if mask is None else pyro.poutine.mask(program, mask=asarray(mask))

    def evaluate(run, elbo, x=X, mask=None):
        """Loss, parameters and gradients by part, and the table after it."""
        parts = run.guide.encoder.layers[0], run.model.decoder.network.layers[0]
        leaves = [leaf for part in parts for leaf in (part.weight, part.bias)]
        codebook = run.guide.codebook
        if codebook.table.requires_grad:
            leaves.append(codebook.table)
        before = [leaf.detach().numpy().copy() for leaf in leaves]
        for leaf in leaves:
            leaf.grad = None
        programs = masked(run.model, mask), masked(run.guide, mask)
        loss = float(elbo.loss_and_grads(*programs, asarray(x)))
        grads = [leaf.grad.numpy().copy() for leaf in leaves]
        for arrays in (before, grads):
            arrays[0], arrays[2] = arrays[0].T, arrays[2].T
        return SimpleNamespace(
            loss=loss,
            params=before,
            grads=grads,
            table=codebook.table.detach().numpy().copy(),
            distance=float(elbo.info.distance),
            usage=(float(elbo.info.usage), float(elbo.info.perplexity)),
        )

    def loss(run, elbo):
        return elbo.loss(run.model, run.guide, asarray(X))

    def train(run, elbo, num_steps, x=X):
        svi = pyro.infer.SVI(run.model, run.guide, pyro.optim.Adam({"lr": run.lr}), elbo)
        return [float(svi.step(asarray(x))) for _ in range(num_steps)]

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
    from numpyro_dvae.infer.objective import LOSS_MEMORY
    from numpyro_dvae.infer.svi import loss_info

    def module(path):
        return importlib.import_module(f"numpyro_dvae.{path}")

    asarray, name = jnp.asarray, "numpyro"

    def start(model, guide, lr=0.0):
        return SimpleNamespace(model=model, guide=guide, lr=lr, state=None)

    def begun(run, elbo, x=X):
        run.svi = SVI(run.model, run.guide, numpyro.optim.Adam(run.lr), elbo)
        if run.state is None:
            run.state = jax.jit(run.svi.init)(jax.random.key(0), asarray(x))
            run.params = run.svi.get_params(run.state)
            run.mutable = dict(run.state.mutable_state or {})
        return run.svi

    def masked(program, mask):
        return program if mask is None else handlers.mask(program, mask=asarray(mask))

    def evaluate(run, elbo, x=X, mask=None):
        begun(run, elbo)
        mutable = {k: v for k, v in run.mutable.items() if not k.startswith("_")}

        def loss_fn(params):
            programs = masked(run.model, mask), masked(run.guide, mask)
            found = elbo.loss_with_mutable_state(
                jax.random.key(1), {**params, **mutable, **memory}, *programs, asarray(x)
            )
            return found["loss"], found["mutable_state"]

        memory = {LOSS_MEMORY: elbo.init_loss_memory()}
        (loss, after), grads = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(run.params)
        after = {**run.params, **(after or {})}
        held = after.get("codebook$state", {})
        table = held.get("table", after.get("codebook$table"))
        table = table + held["moved"] if "moved" in held else table
        return SimpleNamespace(
            loss=float(loss),
            params=listed(run.params),
            grads=listed(grads),
            table=np.asarray(table),
            distance=float(after[LOSS_MEMORY].info.distance),
            usage=(
                float(after[LOSS_MEMORY].info.usage),
                float(after[LOSS_MEMORY].info.perplexity),
            ),
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

    def train(run, elbo, num_steps, x=X):
        svi = begun(run, elbo, x)
        update, losses = jax.jit(svi.update), []
        for _ in range(num_steps):
            run.state, value = update(run.state, asarray(x))
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
