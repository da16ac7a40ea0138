"""Random programs written out in NumPyro, and one way to run a loss on them and see its draws."""

import contextlib
import itertools
import os
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

os.environ.setdefault("JAX_ENABLE_X64", "1")

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro import handlers
from random_checks import RefusedError
from random_evaluating import evaluated
from random_scans_numpyro import Scanned
from random_specs import STEPS, TABLED, TOTAL, make_data, make_params
from random_watching_numpyro import Held, quiet, watched

from numpyro_dvae import diagnostics, infer
from numpyro_dvae.guides import AutoDiscrete
from numpyro_dvae.infer.objective import LOSS_MEMORY
from numpyro_dvae.ops import baselines
from numpyro_dvae.programs.codes import find_space

__all__ = ["Program", "baselines", "infer"]

name = "numpyro"
takes_python = False  # a traced program cannot ask for values
takes_scans = True
EVENT_WEIGHTS = np.array([1.0, 0.5])


fixed = jax.lax.stop_gradient


class ScoreNormal(dist.Normal):
    """A normal without a pathwise gradient."""

    reparametrized_params = []  # noqa: RUF012


class Program(Scanned):
    """A model and a guide, which are called with the data of a spec."""

    def __init__(self, spec):
        self.use(spec)
        self.rows, self.seen, self.dream = {}, {}, {}

    def use(self, spec):
        """The spec of the next calls: other sizes, flags and data."""
        self.spec, self.noise = spec, None
        self.params = {key: jnp.asarray(value) for key, value in make_params(spec).items()}
        self.arrays = make_data(spec)
        self.data = {key: jnp.asarray(value) for key, value in self.arrays.items()}
        self.data["flags"] = {"flag": "flag" in spec.flags}
        self.data["labels"] = spec.has_labels
        self.automatic, self.own = AutoDiscrete(self.model), {}

    def move(self, key, size):
        """Change a parameter, so that the oracle knows another."""
        self.params[key] = self.params[key] + size

    # ------------------------------------------------------------------------------- programs

    def model(self, data):
        self._run("model", self.spec.of_model(), data)

    def guide(self, data):
        with Held(self.noise or {}):
            if any(site.guide.by_table for site in self.spec.of_guide()):
                self.last = self.automatic(data)
            else:
                self.last = self._run("guide", self.spec.of_guide(), data)

    def tables(self, params):
        """Parameters of an automatic guide."""
        found = {}
        for site in self.spec.of_guide():
            if site.guide.by_table:
                shape, table = self._own_shape(site), params[f"guide.{site.name}.table"]
                rows = {n: np.arange(table.shape[i]) for i, n in enumerate(site.plates)}
                inner = table.ndim - len(site.plates)
                placed = self._in_dims(site, table, rows, inner)
                if site.kind == "bernoulli":
                    placed = placed[..., None]
                # A parent's sum over plates that keeps their dims leaves dims of size 1.
                found[f"{site.name}_auto_logits"] = placed.reshape(shape)
        return found

    def _own_shape(self, site):
        """Of the parameters that an automatic guide makes."""
        if not self.own:
            program = handlers.seed(handlers.substitute(self.automatic, data=self.params), 0)
            self.own = jax.eval_shape(lambda: _params_of(program, self.data))
        return self.own[f"{site.name}_auto_logits"].shape

    def rest(self, data):
        """The continuous sites of the guide alone."""
        sites = [site for site in self.spec.of_guide() if site.model and not site.is_discrete]
        with Held(self.noise or {}):
            self._run("guide", sites, data)

    def _run(self, side, sites, data):
        values, plates = {}, {}
        outer = handlers.scale(scale=self.spec.scale or 1.0)
        with outer if self.spec.scale else contextlib.nullcontext():
            for in_scan, group in itertools.groupby(sites, lambda site: site.in_scan):
                if in_scan and side == "guide" and not self.spec.scan.in_guide:
                    values |= self._at_once(list(group), data, values, plates)
                    continue
                if in_scan:
                    values |= self._scan(side, list(group), data, values, plates)
                    continue
                for site in group:
                    values[site.name] = self._sample(side, site, data, values, plates)
            if side == "guide" and self.spec.baseline is not None:
                self._predict(plates, data)
        return values

    def _predict(self, plates, data):
        with contextlib.ExitStack() as stack:
            for name in self.spec.baseline:
                stack.enter_context(self._plate(name, plates, data))
            dims = [self.spec.plate(name).dim for name in self.spec.baseline]
            sizes = {self.spec.plate(n).dim: self.spec.plate(n).size for n in self.spec.baseline}
            shape = [sizes.get(dim, 1) for dim in range(min(dims, default=0), 0)]
            value = jnp.broadcast_to(numpyro.param("guide.baseline"), shape)
            numpyro.deterministic("baseline", value)

    def _depth(self, site):
        """How many dims its plates take, but for the steps of a `scan`, which lie left of them."""
        return max((-self.spec.plate(n).dim for n in site.plates if n != STEPS), default=0)

    def _plate(self, name, plates, data):
        if name not in plates:
            plate = self.spec.plate(name)
            rows = data.get(f"rows.{name}")
            given = contextlib.nullcontext()
            if rows is not None:
                given = handlers.substitute(data={name: rows})
            with given:
                size = plate.size if plate.full else None
                plates[name] = numpyro.plate(name, plate.full or plate.size, size, plate.dim)
        return plates[name]

    def _sample(self, side, site, data, values, plates):
        part, key = getattr(site, side), f"{side}.{site.name}"
        with contextlib.ExitStack() as stack:
            depth, under = self._depth(site), [name for name in site.plates if name != STEPS]
            rows = {n: stack.enter_context(self._plate(n, plates, data)) for n in under}
            if site.in_scan:  # of all steps at once, which are under no plate
                rows[STEPS] = jnp.arange(self.spec.plate(STEPS).size)

            def cells(array, inner=0):
                return self._in_dims(site, array, rows, inner)

            def weights(array, inner=0):
                if part.by_row and "carry" in data:  # a number a step
                    return array
                row = replace(site, plates=site.plates[:1]) if part.by_row else site
                return self._in_dims(row, array, rows, inner, depth)

            if part.mask in ("handler", "all"):
                mask = data[f"mask.{key}"]
                mask = bool(mask) if part.mask == "all" else weights(mask)
                stack.enter_context(handlers.mask(mask=mask))
            if site.in_round:  # NumPyro has no plates that are loops
                stack.enter_context(handlers.scale(scale=2.0))
            if part.scale_by_cell:
                scale = weights(data[f"scale.{key}"])
                stack.enter_context(handlers.scale(scale=scale))
            elif part.scale:
                stack.enter_context(handlers.scale(scale=part.scale))
            lean = self._param(f"{key}.slope", data)
            lean = lean if part.flat else lean * cells(data[f"x.{site.name}"])
            for index, link in enumerate(part.links):
                weight = self._param(f"{key}.link_{index}", data)
                lean = lean + self._linked(site, link, weight, values, data)
            if site.in_scan:  # the steps lie left of all other dims
                steps = jnp.zeros((self.spec.plate(STEPS).size, *[1] * depth))
                lean = lean.reshape(lean.shape[-1 - depth :]) + steps
            if site.kind == "factor":
                numpyro.factor(site.name, self._param(f"{key}.bias", data) + lean)
                return None
            fn = self._distribution(key, site, lean, data)
            if part.mask == "distribution":
                mask = data[f"mask.{key}"]
                fn = fn.mask(weights(mask, int(site.event)))
            fn = fn.to_event(1) if site.event else fn
            observed = side == "model" and not self.spec.is_latent(site)
            obs = data[f"obs.{site.name}"] if observed else None
            if observed and not site.one_number:
                obs = cells(obs, int(site.event))
            infer = {"enumerate": "parallel"} if self.spec.marked and site.is_discrete else {}
            if site.model is None:
                infer["is_auxiliary"] = True
            return numpyro.sample(site.name, fn, obs=obs, infer=infer)

    def _param(self, key, data):
        return data["params"][key] if "params" in data else numpyro.param(key)

    def _in_dims(self, site, array, rows, inner, depth=None):
        """An array over the site's plates in their batch dims."""
        depth = self._depth(site) if depth is None else depth
        array = jnp.asarray(array)  # a mask of no plates may be a bool
        for axis, name in enumerate(site.plates):
            array = jnp.take(array, rows[name], axis)
        dims = [-1 - depth if n == STEPS else self.spec.plate(n).dim for n in site.plates]
        order = sorted(range(len(dims)), key=lambda axis: dims[axis])
        array = jnp.transpose(array, [*order, *range(len(dims), array.ndim)])
        sizes = dict(zip(sorted(dims), array.shape, strict=False))
        shape = [sizes.get(dim, 1) for dim in range(min(dims, default=0), 0)]
        return array.reshape([*shape, *array.shape[array.ndim - inner :]])

    def _linked(self, site, link, weight, values, data):
        parent = self.spec[link.parent]
        value = data["carry"][link.parent] if link.earlier else values[link.parent]
        after = parent.in_scan and not site.in_scan and "params" not in data  # after the scan
        if link.how == "last":
            value = values[f"last.{link.parent}"]
        if parent.kind in TABLED:
            value, weight = weight[value], 1.0
        if parent.event:
            value = (value * EVENT_WEIGHTS).sum(-1)
        over_steps = after and link.how in ("sum", "max", "kept")
        value = self._over_steps(value, link.how) if over_steps else value
        names = [n for n in parent.plates if n not in (*site.plates, STEPS)]
        lost = [self.spec.plate(n).dim for n in names]
        return weight * self._reduced(value, lost, link.how, bool(lost) or after)

    def _reduced(self, value, dims, how, is_bare):
        if how == "prod":
            return (1 - 0.5 * value).prod()
        if not is_bare:
            return value
        if how in ("sum", "last", "kept"):
            return value.sum(tuple(dims), keepdims=True)
        if how == "max":
            return value.max(tuple(dims), keepdims=True)
        if how == "first":
            return value[0]
        return value.sum() if how == "bare_sum" else value.max()

    def _distribution(self, key, site, lean, data):
        bias = self._param(f"{key}.bias", data)
        if site.kind in TABLED:  # NumPyro has no one-hot kind
            lean = lean[..., None, None] if site.event else lean[..., None]
            return dist.Categorical(logits=bias + self._param(f"{key}.lift", data) * lean)
        lean = bias + (lean[..., None] if site.event else lean)
        if site.kind == "bernoulli":
            return dist.Bernoulli(logits=lean)
        if site.kind == "binomial":
            return dist.Binomial(TOTAL, logits=lean)
        kind = ScoreNormal if site.kind == "score_normal" else dist.Normal
        return kind(lean, jnp.exp(self._param(f"{key}.log_scale", data)))

    # ---------------------------------------------------------------------------------- losses

    def hold(self, draws):
        """Let normal sites of the guide have one row of noise, whatever the other draws."""
        self.noise = None
        if draws is not None:
            self.noise = {
                key: self._in_place(key, value[0]) for key, value in draws.normals.items()
            }

    def _in_place(self, key, array):
        site = self.spec[key]
        if site.in_scan:
            here = replace(site, plates=site.plates[1:])
            return np.stack([self._placed(here, row) for row in array])
        return self._placed(site, array)

    def _placed(self, site, array):
        rows = {n: np.arange(self.spec.plate(n).size) for n in site.plates}
        return evaluated(lambda array: self._in_dims(site, array, rows, int(site.event)))(array)

    def memory(self, elbo):
        """What a loss remembers of its calls."""
        return self._state(elbo).memory

    @staticmethod
    def _state(elbo):
        if not hasattr(elbo, "state"):
            elbo.state = elbo.init_state()
        return elbo.state

    def run(self, elbo, guide=None, seed=0, mutable=None, more=dict):
        """Loss, gradients by parameter, and what the guide drew in this call.

        `more` are arrays that are seen as well, known once the programs have run.
        """
        heard, self.has_dreamt = watched(elbo), bool(getattr(elbo, "sleep", 0))
        memory = elbo.init_loss_memory(mutable)
        memory = memory._replace(state=self._state(elbo)) if mutable is None else memory
        programs = self.model, guide or self.guide

        def loss_fn(params):
            params = {**params, **self.tables(params), **(mutable or {}), LOSS_MEMORY: memory}
            found = elbo.loss_with_mutable_state(jax.random.key(seed), params, *programs, self.data)
            particles, dream = heard["particles"], self.last if self.has_dreamt else {}
            dream = {key: value for key, value in dream.items() if self._is_site(key, value)}
            seen = particles.extras.get("seen", {}) | more()
            particles = particles._replace(extras={"seen": seen, "dream": dream})
            return found["loss"], (found["mutable_state"][LOSS_MEMORY], particles)

        with quiet():
            try:
                found = evaluated(jax.value_and_grad(loss_fn, has_aux=True))(self.params)
            except ValueError as error:
                raise RefusedError.of(error) from error
        (loss, (memory, particles)), grads = found
        elbo.state, info = memory
        seen, self.dream = particles.extras["seen"], particles.extras["dream"]
        self.seen = {key: np.asarray(v) for key, v in seen.items() if not key.startswith("rows.")}
        rows = {key: np.asarray(v)[0] for key, v in seen.items() if key.startswith("rows.")}
        self.rows = self._given_rows() | rows  # those of plates within a `scan` are not told
        return SimpleNamespace(
            loss=float(loss),
            grads={key: np.asarray(value) for key, value in grads.items()},
            particles=particles,
            plates=heard.get("plates"),
            notes=heard.get("notes"),
            info=info,
        )

    def _given_rows(self):
        return {key: value for key, value in self.arrays.items() if key.startswith("rows.")}

    def value(self, elbo, seed=0):
        """The loss without gradient, which is the same run in this package."""
        return self.run(elbo, seed=seed).loss

    def run_sets(self, elbo, seed=0):
        """The same of a truncated posterior on all states of a datum; also its plates."""
        spec = self.spec
        has_rest = any(site.model and not site.is_discrete for site in spec.of_guide())
        rest = self.rest if has_rest else None
        key = jax.random.key(seed)
        try:
            with quiet():
                model, given = (
                    program and handlers.substitute(program, data=self.params)
                    for program in (self.model, rest)
                )
                spaces = []
                find = partial(find_space, key, model, given, (self.data,), {})
                jax.eval_shape(lambda: spaces.append(find()))
                layout = spaces[0].layout
        except ValueError as error:
            raise RefusedError.of(error) from error
        guide = infer.TruncatedGuide(self.model, spec.num_states_under(layout.plates), rest=rest)
        calls, read = [], guide.read

        def reading(*args):
            calls.append(read(*args))
            return calls[-1]

        guide.read = reading
        program = handlers.seed(handlers.substitute(guide, data=self.params), key)

        def start():
            return handlers.trace(program).get_trace(self.data)[guide.site]["value"]

        def rows():
            subsamples = calls[-1].batch.subsamples
            return {f"rows.{name}": jnp.asarray(rows)[None] for name, rows in subsamples.items()}

        try:
            with quiet():
                words = evaluated(start)()
        except ValueError as error:
            raise RefusedError.of(error) from error
        return layout.plates, self.run(elbo, guide, seed, {guide.site: words}, rows)

    def drawn(self, num_particles, dreamt=False):
        """Values of the last call's particles, ``[K, *plates of the site, event]``."""
        seen = self.seen
        if dreamt:
            seen = {key: np.asarray(value)[None] for key, value in self.dream.items()}
        return {key: self._own(key, value) for key, value in seen.items()}


def diagnose(name, program, seed, **options):
    """A diagnostic of a program, which is told as a setting what silences a site at all."""
    function, pair = getattr(diagnostics, name), (program.model, program.guide)
    is_setting = {key: "mask." in key and np.ndim(x) == 0 for key, x in program.data.items()}
    data = {key: bool(x) if is_setting[key] else x for key, x in program.data.items()}
    program.rows = {key: np.asarray(x) for key, x in data.items() if key.startswith("rows.")}
    return function(jax.random.key(seed), pair, data, params=program.params, **options)


def _params_of(program, data):
    trace = handlers.trace(program).get_trace(data)
    return {name: m["value"] for name, m in trace.items() if m["type"] == "param"}
