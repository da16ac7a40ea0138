"""Random programs written out in Pyro, and one way to run a loss on them and see its draws."""

import contextlib
import itertools
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from random_checks import RefusedError
from random_scans_pyro import Looped
from random_specs import STEPS, TABLED, TOTAL, make_data, make_params
from random_watching_pyro import Watch, quiet, watched

from pyro_dvae import diagnostics, infer
from pyro_dvae.guides import AutoDiscrete
from pyro_dvae.ops import baselines
from pyro_dvae.programs.codes import find_space

__all__ = ["Program", "baselines", "infer"]

name = "pyro"
takes_python = True
takes_scans = True  # as loops
EVENT_WEIGHTS = torch.tensor([1.0, 0.5], dtype=torch.float64)


fixed = torch.detach


class ScoreNormal(dist.Normal):
    """A normal without a pathwise gradient."""

    has_rsample = False


class Program(Looped):
    """A model and a guide, which are called with the data of a spec.

    `calls` is set before each run: what the programs are to be, as code would be.
    """

    def __init__(self, spec):
        self.use(spec)
        self.seen, self.rows, self.given, self.noise = [], {}, None, None
        self.rows_of_runs = []

    def use(self, spec):
        """The spec of the next calls: other sizes, flags and data."""
        self.spec = spec
        self.params = {
            key: torch.tensor(value, requires_grad=True) for key, value in make_params(spec).items()
        }
        self.arrays = make_data(spec)
        self.data = {key: torch.as_tensor(value) for key, value in self.arrays.items()}
        self.data["flag"] = torch.tensor("flag" in spec.flags)
        self.data["labels"] = spec.has_labels
        self.automatic = None
        pyro.clear_param_store()

    def move(self, key, size):
        """Change a parameter, so that the oracle knows another."""
        with torch.no_grad():
            self.params[key] += size

    # ------------------------------------------------------------------------------- programs

    def model(self, data):
        watch = Watch(self, rows_only=True)
        with watch:
            self._run("model", self.spec.of_model(), data)
        self.rows |= watch.values
        self.rows_of_runs.append(dict(self.rows))

    def guide(self, data):
        watch = Watch(self)
        with watch:
            if any(site.guide.by_table for site in self.spec.of_guide()):
                self._automatic(data)
            else:
                self._run("guide", self.spec.of_guide(), data)
        self.rows |= {key: watch.values.pop(key) for key in list(watch.values) if "rows." in key}
        if torch.is_grad_enabled():  # else it is a look
            self.seen.append(watch.values)

    def _automatic(self, data):
        """An automatic guide at parameters of the spec."""
        if self.automatic is None:
            self.automatic = AutoDiscrete(self.model)
            with poutine.block(), torch.enable_grad(), torch.random.fork_rng():
                self.automatic(data)
            for site in self.spec.of_guide():
                self._set_logits(site)
        self.automatic(data)

    def _set_logits(self, site):
        """Let parameters of an automatic guide be those of the spec."""
        for name, t in self._labels(site.name):
            with torch.enable_grad():
                table = self.params[f"guide.{site.name}.table"]
                here, table = (site, table) if t is None else (self._in_step(site), table[t])
                rows = {n: torch.arange(table.shape[i]) for i, n in enumerate(here.plates)}
                placed = self._in_dims(here, table, rows, table.dim() - len(here.plates))
            own = getattr(self.automatic.logits, f"{name}_unconstrained")
            own.data.copy_(placed.detach().reshape(own.shape))
            own.register_hook(partial(_pass_on, placed))

    def rest(self, data):
        """The continuous sites of the guide alone."""
        sites = [site for site in self.spec.of_guide() if site.model and not site.is_discrete]
        watch = Watch(self)
        with watch:
            self._run("guide", sites, data)
        if torch.is_grad_enabled():
            self.seen.append({k: v for k, v in watch.values.items() if "rows." not in k})

    def _run(self, side, sites, data):
        values, plates = {}, {}
        outer = (
            poutine.scale(scale=self.spec.scale) if self.spec.scale else contextlib.nullcontext()
        )
        with outer:
            for in_scan, group in itertools.groupby(sites, lambda site: site.in_scan):
                if in_scan:
                    values |= self._loop(side, list(group), data, values, plates)
                    continue
                for site in group:
                    if not site.after or _is_on(values.get(site.after)):
                        values[site.name] = self._sample(side, site, data, values, plates)
            if side == "guide" and self.spec.baseline is not None:
                self._predict(plates, data)

    def _predict(self, plates, data):
        with contextlib.ExitStack() as stack:
            for name in self.spec.baseline:
                stack.enter_context(self._plate(name, plates, data))
            dims = [self.spec.plate(name).dim for name in self.spec.baseline]
            sizes = {self.spec.plate(n).dim: self.spec.plate(n).size for n in self.spec.baseline}
            shape = [sizes.get(dim, 1) for dim in range(min(dims, default=0), 0)]
            pyro.deterministic("baseline", self.params["guide.baseline"].expand(shape))

    def _plate(self, name, plates, data):
        if name not in plates:
            plate = self.spec.plate(name)
            rows = data.get(f"rows.{name}")
            size = plate.size if plate.full and rows is None else None
            dim = None if self.spec.finds_dims else plate.dim
            plates[name] = pyro.plate(name, plate.full or plate.size, size, rows, dim=dim)
        return plates[name]

    def _sample(self, side, site, data, values, plates, name=None):
        """A site, under another name in each step of a loop."""
        name = name or site.name
        for _ in pyro.plate(f"turns.{name}", 2, 1) if site.in_round else [None]:
            value = self._sample_once(side, site, data, values, plates, name)
        return value

    def _sample_once(self, side, site, data, values, plates, name):
        part, key = getattr(site, side), f"{side}.{site.name}"
        with contextlib.ExitStack() as stack:
            rows = {n: stack.enter_context(self._plate(n, plates, data)) for n in site.plates}

            def cells(array, inner=0):
                return self._in_dims(site, array, rows, inner)

            def weights(array, inner=0):
                if part.by_row and "carry" in data:  # a number a step
                    return array
                row = replace(site, plates=site.plates[:1]) if part.by_row else site
                return self._in_dims(row, array, rows, inner)

            if part.mask in ("handler", "all"):
                mask = data[f"mask.{key}"]
                mask = bool(mask) if part.mask == "all" else weights(mask)
                stack.enter_context(poutine.mask(mask=mask))
            if part.scale_by_cell:
                scale = weights(data[f"scale.{key}"])
                stack.enter_context(poutine.scale(scale=scale))
            elif part.scale:
                stack.enter_context(poutine.scale(scale=part.scale))
            lean = self.params[f"{key}.slope"]
            lean = lean if part.flat else lean * cells(data[f"x.{site.name}"])
            for index, link in enumerate(part.links):
                weight = self.params[f"{key}.link_{index}"]
                lean = lean + self._linked(site, link, weight, values, data)
            if site.kind == "factor":
                weight = self.params[f"{key}.bias"] + lean
                pyro.factor(name, weight, has_rsample=True if side == "guide" else None)
                return None
            fn = self._distribution(key, site, lean)
            if part.mask == "distribution":
                mask = data[f"mask.{key}"]
                fn = fn.mask(weights(mask, int(site.event)))
            fn = fn.to_event(1) if site.event else fn
            infer = {"enumerate": "parallel"} if self.spec.marked and site.is_discrete else {}
            if site.model is None:
                infer["is_auxiliary"] = True
            observed = side == "model" and not self.spec.is_latent(site)
            obs = self._observed(site, data, cells) if observed else None
            if observed and self.spec.conditioned:
                with poutine.condition(data={name: obs}):
                    return pyro.sample(name, fn)
            return pyro.sample(name, fn, obs=obs, infer=infer)

    def _in_dims(self, site, array, rows, inner):
        """An array over the site's plates in their batch dims."""
        for axis, name in enumerate(site.plates):
            array = array.index_select(axis, rows[name])
        dims = [self.spec.plate(name).dim for name in site.plates]
        order = sorted(range(len(dims)), key=lambda axis: dims[axis])
        array = array.permute([*order, *range(len(dims), array.dim())])
        sizes = dict(zip(sorted(dims), array.shape, strict=False))
        shape = [sizes.get(dim, 1) for dim in range(min(dims, default=0), 0)]
        return array.reshape([*shape, *array.shape[array.dim() - inner :]])

    def _observed(self, site, data, cells):
        value = data[f"obs.{site.name}"]
        value = value if site.one_number else cells(value, int(site.event))
        if site.kind == "onehot":
            return torch.nn.functional.one_hot(value, 3).double()
        return value if site.kind in TABLED or value.is_floating_point() else value.double()

    def _linked(self, site, link, weight, values, data):
        parent, in_step = self.spec[link.parent], "carry" in data
        value = self._before(parent, data["carry"]) if link.earlier else values[link.parent]
        if link.how == "last":
            value = values[f"last.{link.parent}"]
        if parent.kind == "categorical":
            value, weight = weight[value.long()], 1.0
        elif parent.kind == "onehot":
            value, weight = (value * weight).sum(-1), 1.0
        if parent.event:
            value = (value * EVENT_WEIGHTS).sum(-1)
        after = parent.in_scan and not in_step
        over_steps = after and link.how in ("sum", "max", "kept")
        value = self._over_steps(value, link.how) if over_steps else value
        names = [n for n in parent.plates if n not in (*site.plates, STEPS)]
        lost = [self.spec.plate(n).dim for n in names]
        return weight * self._reduced(value, lost, link.how, bool(lost) or after)

    def _reduced(self, value, dims, how, is_lost):
        if how == "item":
            return float(value.sum().item())
        if how == "if":
            return 1.0 if value.sum() > 0 else -1.0
        if how == "prod":
            return (1 - 0.5 * value).prod()
        if not is_lost or (how in ("sum", "max", "last", "kept") and not dims):
            return value
        if how in ("sum", "last", "kept"):
            return value.sum(dims, keepdim=True)
        if how == "max":
            return value.amax(dims, keepdim=True)
        if how == "first":
            return value[0]
        return value.sum() if how == "bare_sum" else value.max()

    def _distribution(self, key, site, lean):
        bias = self.params[f"{key}.bias"]
        if site.kind in TABLED:
            lean = lean[..., None, None] if site.event else lean[..., None]
            logits = bias + self.params[f"{key}.lift"] * lean
            kind = dist.Categorical if site.kind == "categorical" else dist.OneHotCategorical
            return kind(logits=logits)
        lean = bias + (lean[..., None] if site.event else lean)
        if site.kind == "bernoulli":
            return dist.Bernoulli(logits=lean)
        if site.kind == "binomial":
            return dist.Binomial(TOTAL, logits=lean)
        kind = ScoreNormal if site.kind == "score_normal" else dist.Normal
        return kind(lean, self.params[f"{key}.log_scale"].exp())

    # ---------------------------------------------------------------------------------- losses

    def hold(self, draws):
        """Let normal sites of the guide have one row of noise, whatever the other draws."""
        if draws is None:
            self.noise = None
            return
        self.noise = {}
        for key, value in draws.normals.items():
            self.noise |= self._in_place(key, value[0])

    def _in_place(self, key, array):
        """By the names of the program's sites."""
        site, array = self.spec[key], torch.tensor(array)
        here = self._in_step(site) if site.in_scan else site
        rows = {n: torch.arange(self.spec.plate(n).size) for n in here.plates}
        return {
            name: self._in_dims(here, array if t is None else array[t], rows, int(site.event))
            for name, t in self._labels(key)
        }

    @staticmethod
    def moved(fn, noise):
        while hasattr(fn, "base_dist"):
            fn = fn.base_dist
        return fn.loc + fn.scale * noise

    def memory(self, elbo):
        """What a loss remembers of its calls."""
        return elbo.state.memory

    def run(self, elbo, guide=None, seed=0):
        """Loss, gradients by parameter, and what the guide drew in this call."""
        pyro.set_rng_seed(seed)
        for value in self.params.values():
            value.grad = None
        self.seen, self.rows = [], {}
        heard = watched(elbo)
        with quiet():
            try:
                loss = elbo.loss_and_grads(self.model, guide or self.guide, self.data)
            except ValueError as error:
                raise RefusedError.of(error) from error
        self.vectorized = heard.get("vectorize", True)
        self.has_dreamt = bool(getattr(elbo, "sleep", 0))
        return SimpleNamespace(
            loss=float(loss),
            grads={
                key: np.zeros(value.shape) if value.grad is None else value.grad.numpy().copy()
                for key, value in self.params.items()
            },
            particles=heard.get("particles"),
            plates=heard.get("plates"),
            notes=heard.get("notes"),
            info=elbo.info,
        )

    def value(self, elbo, seed=0):
        """The loss without gradient."""
        pyro.set_rng_seed(seed)
        self.rows_of_runs = []
        with quiet():
            return elbo.loss(self.model, self.guide, self.data)

    def run_sets(self, elbo, seed=0):
        """The same of a truncated posterior on all states of a datum; also its plates."""
        spec = self.spec
        has_rest = any(site.model and not site.is_discrete for site in spec.of_guide())
        rest = self.rest if has_rest else None
        pyro.set_rng_seed(seed)
        try:
            with quiet():
                layout = find_space(self.model, rest, (self.data,), {}).layout
        except ValueError as error:
            raise RefusedError.of(error) from error
        guide = infer.TruncatedGuide(self.model, spec.num_states_under(layout.plates), rest=rest)
        return layout.plates, self.run(elbo, guide, seed)

    def drawn(self, num_particles, dreamt=False):
        """Values of the last call's particles, ``[K, *plates of the site, event]``.

        Those of the guide's last run where the model has dreamt; else of the runs before.
        """
        seen = [{}, *self.seen]
        if self.has_dreamt and not dreamt:
            seen = seen[:-1]
        alone = dreamt or not self.vectorized
        rows = seen[-num_particles:] if alone else seen[-1:]
        names, count = {key for row in rows for key in row}, num_particles
        count = count if len(rows) == 1 else 1
        return {
            site.name: np.concatenate([self._own(site.name, row, count) for row in rows])
            for site in self.spec.sites
            if names & {name for name, _ in self._labels(site.name)}
        }


def _pass_on(placed, slope):
    """A gradient of parameters to what they were copied from."""
    placed.backward(slope.reshape(placed.shape), retain_graph=True)


def _is_on(switch):
    """Python's question, whether a draw is there and not 0."""
    return switch is not None and switch.sum().item() > 0


def diagnose(name, program, seed, **options):
    """A diagnostic of a program."""
    pyro.set_rng_seed(seed)
    function = getattr(diagnostics, name)
    return function((program.model, program.guide), program.data, **options)
