"""What the tests of automatic guides need of either library: models in one language, parameters."""

import importlib
from types import SimpleNamespace

import numpy as np


def lab(name):
    return {"pyro": PyroLab, "numpyro": NumPyroLab}[name]()


class Lab:
    """Programs are functions ``model(ppl, *args)`` of a library's primitives."""

    def module(self, path):
        return importlib.import_module(f"{self.name}_dvae.{path}")

    def guide(self, program, **options):
        return self.module("guides").AutoDiscrete(program, **options)

    def whole_datum(self, elbo_class):
        """The loss without credit: the score of each draw gets all of its datum."""
        return type("Whole", (elbo_class,), {"inspect": lambda self, *args: None})

    def exact(self):
        return self.module("infer").Exact_ELBO(max_states=2**12)


class PyroLab(Lab):
    name = "pyro"

    def __init__(self):
        import pyro
        import torch
        from pyro import poutine

        self.pyro, self.torch = pyro, torch
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        self.primitives = SimpleNamespace(
            sample=pyro.sample,
            factor=pyro.factor,
            param=self.param,
            plate=pyro.plate,
            dist=pyro.distributions,
            exp=torch.exp,
            where=torch.where,
            one_hot=self.module("distributions").OneHotCategorical,
            mask=poutine.mask,
            array=lambda x: torch.as_tensor(np.asarray(x)),
            block=lambda model, **options: poutine.block(model, **options),
            list=lambda model, hidden: pyro.infer.autoguide.AutoGuideList(model),
            normal=pyro.infer.autoguide.AutoNormal,
            integer=lambda codes: codes.long(),
        )

    def bind(self, model):
        return lambda *args: model(self.primitives, *args)

    def param(self, name, start, constraint):
        constraint = getattr(self.pyro.distributions.constraints, constraint)
        return self.pyro.param(name, self.torch.tensor(start), constraint=constraint)

    def array(self, x):
        return self.torch.as_tensor(x)

    def start(self, guide, *args):
        """Parameters by site, as NumPy arrays."""
        guide(*args)
        return {name: leaf.detach().numpy().copy() for name, leaf in self.leaves(guide).items()}

    def leaves(self, guide):
        named = guide.logits.named_parameters()
        return {name.removesuffix("_unconstrained"): leaf for name, leaf in named}

    def loss(self, elbo, model, guide, params, *args):
        """The loss at these parameters, and its gradients."""
        self.start(guide, *args)
        leaves = self.leaves(guide)
        for name, leaf in leaves.items():
            leaf.data, leaf.grad = self.torch.tensor(params[name]), None
        loss = elbo.differentiable_loss(model, guide, *args)
        loss.backward()
        return loss.item(), {name: leaf.grad.numpy() for name, leaf in leaves.items()}

    def train(self, elbo, model, guide, num_steps, *args, lr=0.1):
        """The losses of some steps, and the parameters after them."""
        optimiser = self.pyro.optim.Adam({"lr": lr})
        svi = self.pyro.infer.SVI(model, guide, optimiser, loss=elbo)
        losses = [float(svi.step(*args)) for _ in range(num_steps)]
        return losses, {}

    def look(self, elbo, model, guide, first, then):
        """The first call and a step."""
        self.steps(elbo, model, guide, [first, then])

    def steps(self, elbo, model, guide, calls):
        """A step on the arguments of each call; what was trained."""
        adam = self.pyro.optim.Adam({"lr": 0.1})
        svi = self.pyro.infer.SVI(model, guide, adam, loss=elbo)
        for args in calls:
            svi.step(*args)
        leaves = self.leaves(guide) if hasattr(guide, "logits") else {}
        return {name: leaf.detach().numpy() for name, leaf in leaves.items()}

    def summary(self, guide, name, params, *options, args=()):
        self.start(guide, *args)
        for site, leaf in self.leaves(guide).items():
            leaf.data = self.torch.tensor(params[site])
        found = getattr(guide, name)(*options, *args)
        return {site: value.numpy() for site, value in found.items()}

    def stock_loss(self, model, guide, params, num_particles, *args):
        elbo = self.pyro.infer.Trace_ELBO(
            num_particles=num_particles, vectorize_particles=True, max_plate_nesting=1
        )
        return elbo.loss(model, guide, *args)

    def initial(self, guide, model, *args):
        """The pair, and its parameters at the start."""
        guide(*args)
        return model, guide, None

    def posterior(self, model, guide, params, x, *, inner=None, **options):
        inner = inner or guide
        for site, leaf in (self.leaves(inner) if params else {}).items():
            leaf.data = self.torch.tensor(params[site])
        function = self.module("diagnostics").discrete_posterior
        return function((model, guide), self.array(x), **options)

    def held(self, guide, params):
        """The parameters as programs are run at them; Pyro's guide holds them itself."""
        for site, leaf in self.leaves(guide).items():
            leaf.data = self.torch.tensor(params[site])
        return {}

    def as_drawn(self, guide, args, held, values):
        """Values in the dtypes in which the guide draws them."""
        trace = self.pyro.poutine.trace(guide).get_trace(*args)
        return {n: v.astype(trace.nodes[n]["value"].numpy().dtype) for n, v in values.items()}

    def posterior_at(self, model, guide, held, *args, **options):
        return self.module("diagnostics").discrete_posterior((model, guide), *args, **options)

    def trace_graph(self, num_particles):
        return self.pyro.infer.TraceGraph_ELBO(num_particles, max_plate_nesting=1)

    def noise(self, elbo, model, guide, x, num_repeats):
        """The trace of the covariance of gradients."""
        guide(x)
        leaves, found = list(guide.parameters()), []
        for _ in range(num_repeats):
            for leaf in leaves:
                leaf.grad = None
            elbo.loss_and_grads(model, guide, x)
            found.append(self.torch.cat([leaf.grad.flatten() for leaf in leaves]))
        return float(self.torch.stack(found).var(0).sum())


class NumPyroLab(Lab):
    name = "numpyro"

    def __init__(self):
        import jax
        import jax.flatten_util
        import jax.numpy as jnp
        import numpyro
        from numpyro import handlers
        from numpyro.infer import autoguide
        from numpyro_programs import plate

        self.jax, self.numpyro = jax, numpyro
        self.primitives = SimpleNamespace(
            sample=numpyro.sample,
            factor=numpyro.factor,
            param=self.param,
            plate=plate,
            dist=numpyro.distributions,
            exp=jnp.exp,
            where=jnp.where,
            one_hot=self.module("distributions").OneHotCategorical,
            mask=handlers.mask,
            array=jnp.asarray,
            block=handlers.block,
            list=lambda model, hidden: autoguide.AutoGuideList(handlers.block(model, hide=hidden)),
            normal=autoguide.AutoNormal,
            integer=lambda codes: codes.astype(int),
        )

    def bind(self, model):
        return lambda *args: model(self.primitives, *args)

    def param(self, name, start, constraint):
        constraint = getattr(self.numpyro.distributions.constraints, constraint)
        return self.numpyro.param(name, self.array(start), constraint=constraint)

    def array(self, x):
        return self.jax.numpy.asarray(x)

    def start(self, guide, *args):
        trace = self.numpyro.handlers.trace(self.numpyro.handlers.seed(guide, 0)).get_trace(*args)
        found = {n: m["value"] for n, m in trace.items() if n.endswith("_auto_logits")}
        return {n.removesuffix("_auto_logits"): np.asarray(v) for n, v in found.items()}

    def loss(self, elbo, model, guide, params, *args):
        key = self.jax.random.key(0)
        self.start(guide, *args)
        held = {f"{name}_auto_logits": value for name, value in params.items()}

        def loss(params):
            return elbo.loss(key, params, model, guide, *args)

        value, grads = self.jax.jit(self.jax.value_and_grad(loss))(held)
        names = {name: name.removesuffix("_auto_logits") for name in grads}
        return float(value), {names[n]: np.asarray(grad) for n, grad in grads.items()}

    def train(self, elbo, model, guide, num_steps, *args, lr=0.1):
        import optax
        from quick_numpyro import QuickSVI

        svi = QuickSVI(model, guide, optax.adam(lr), elbo)
        result = svi.run(self.jax.random.key(0), num_steps, *args, progress_bar=False)
        return np.asarray(result.losses), result.params

    def look(self, elbo, model, guide, first, then):
        """The start and a step, which are traced alone."""
        svi = self.module("infer").SVI(model, guide, self.numpyro.optim.Adam(0.1), loss=elbo)
        key = self.jax.random.key(0)
        self.jax.eval_shape(lambda: svi.update(svi.init(key, *first), *then))

    def steps(self, elbo, model, guide, calls):
        svi = self.module("infer").SVI(model, guide, self.numpyro.optim.Adam(0.1), loss=elbo)
        state, update = svi.init(self.jax.random.key(0), *calls[0]), self.jax.jit(svi.update)
        for args in calls:
            state, _ = update(state, *args)
        params = svi.get_params(state)
        return {name.removesuffix("_auto_logits"): np.asarray(v) for name, v in params.items()}

    def summary(self, guide, name, params, *options, args=()):
        held = {f"{site}_auto_logits": self.array(value) for site, value in params.items()}
        found = getattr(guide, name)(held, *options)
        return {site: np.asarray(value) for site, value in found.items()}

    def stock_loss(self, model, guide, params, num_particles, *args):
        held = {f"{site}_auto_logits": value for site, value in params.items()}
        elbo = self.numpyro.infer.Trace_ELBO(num_particles=num_particles)
        loss = self.jax.jit(lambda key: elbo.loss(key, held, model, guide, *args))
        return float(loss(self.jax.random.key(1)))

    def initial(self, guide, model, *args):
        from quick_numpyro import QuickSVI

        adam, elbo = self.numpyro.optim.Adam(0.1), self.module("infer").Exact_ELBO()
        svi = QuickSVI(model, guide, adam, elbo)
        if not hasattr(guide, "num_states"):
            svi.loss = self.module("infer").Reinforce_ELBO(2)
        state = svi.init(self.jax.random.key(0), *args)
        return model, guide, {**svi.get_params(state), **(state.mutable_state or {})}

    def posterior(self, model, guide, params, x, *, inner=None, **options):
        held = {n: self.array(v) if isinstance(v, np.ndarray) else v for n, v in params.items()}
        if isinstance(inner or guide, self.module("guides").AutoDiscrete):
            held = {f"{name}_auto_logits": value for name, value in held.items()}
        function = self.module("diagnostics").discrete_posterior
        key = self.jax.random.key(3)
        return function(key, (model, guide), self.array(x), params=held, **options)

    def held(self, guide, params):
        return {f"{name}_auto_logits": self.array(value) for name, value in params.items()}

    def as_drawn(self, guide, args, held, values):
        handlers = self.numpyro.handlers
        seeded = handlers.seed(handlers.substitute(guide, data=held), 0)
        trace = handlers.trace(seeded).get_trace(*args)
        return {n: v.astype(trace[n]["value"].dtype) for n, v in values.items()}

    def posterior_at(self, model, guide, held, *args, **options):
        function, key = self.module("diagnostics").discrete_posterior, self.jax.random.key(3)
        return function(key, (model, guide), *args, params=held, **options)

    def trace_graph(self, num_particles):
        return self.numpyro.infer.TraceGraph_ELBO(num_particles)

    def noise(self, elbo, model, guide, x, num_repeats):
        """The trace of the covariance of gradients."""
        params = {f"{n}_auto_logits": self.array(v) for n, v in self.start(guide, x).items()}

        def gradient(key):
            grads = self.jax.grad(lambda p: elbo.loss(key, p, model, guide, x))(params)
            return self.jax.flatten_util.ravel_pytree(grads)[0]

        keys = self.jax.random.split(self.jax.random.key(0), num_repeats)
        found = self.jax.jit(lambda keys: self.jax.lax.map(gradient, keys))(keys)
        return float(found.var(0).sum())
