"""One typed view of a sample site, of a run, and of a pair of programs.

A `Site` is read once from its message: the rest of the package asks it for what it wants to know
and meets no dictionary of NumPyro's. Handlers alone read messages raw, since they change them; rows
of plates, and what else no site tells of a trace, `messages` reads.

A `Pair` is a model and its guide, with what both are called with, how their sites lie
(`Layout`) and how they are run; a `Run` is what one run of both has left.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array
from numpyro.distributions.distribution import ExpandedDistribution, MaskedDistribution

from numpyro_dvae.programs.hosts import behind_steps, in_steps, sound
from numpyro_dvae.programs.messages import is_drawn, mutable_values, rows_of_plates

__all__ = [
    "Layout",
    "Pair",
    "Run",
    "Site",
    "base_distribution",
    "deterministic_sites",
    "no_draws",
    "same_programs",
    "same_scale",
    "sample_sites",
]


class _Plate(NamedTuple):
    """A plate that a site is under, as Pyro describes it."""

    name: str
    dim: int
    size: int
    full_size: int  # before subsampling

    @classmethod
    def of(cls, frame: Any, full_sizes: Mapping[str, int]) -> "_Plate":
        """Read a frame of NumPyro's."""
        return cls(frame.name, frame.dim, frame.size, full_sizes.get(frame.name, frame.size))


@dataclass(frozen=True, slots=True, eq=False)
class Site:
    """A sample site as a run has left it."""

    name: str
    fn: Any  # its distribution, with whatever plates and handlers made of it
    value: Any
    is_observed: bool
    plates: Mapping[str, Any]  # the plates it is under: name -> frame (dim, size, ...)
    scale: Any  # weight of its log-density: subsampling, `handlers.scale`
    infer: Mapping[str, Any]
    call: tuple  # what its log_prob takes beside the value: intermediates

    @classmethod
    def of(cls, message: Any, full_sizes: Mapping[str, int] = MappingProxyType({})) -> "Site":
        """Read a message of NumPyro's; full sizes of plates that subsample are of its trace."""
        frames, infer = message["cond_indep_stack"], message.get("infer") or {}
        fn, value, steps = _in_shape(message), message["value"], message.get("intermediates")
        scale = 1.0 if message.get("scale") is None else message["scale"]
        sizes = {**infer.get("_full_sizes", {}), **full_sizes}
        if message.get("_control_flow_done") and "dim_to_name" not in infer:  # all steps of a scan
            num_dims = len(fn.batch_shape)
            fn, value, steps = in_steps(fn, value, steps)
            scale = behind_steps(scale, len(fn.batch_shape) - num_dims)
        return cls(
            name=message["name"],
            fn=fn,
            value=value,
            is_observed=message.get("is_observed", False),
            plates={f.name: _Plate.of(f, sizes) for f in frames},
            scale=scale,
            infer=infer,
            call=(steps,) if steps else (),
        )

    @property
    def base(self) -> Any:
        """Its distribution without what wraps it: plates' sizes, event dims, masks."""
        return base_distribution(self.fn)

    @property
    def family(self) -> str:
        """The name of its distribution, for messages."""
        return type(self.base).__name__

    @property
    def needs_credit(self) -> bool:
        """Whether its draws have no pathwise gradient; a straight-through one is none."""
        base = self.base
        # NumPyro's default is true of a distribution without parameters, whatever its support.
        by_default = type(base).has_rsample is dist.Distribution.has_rsample
        if by_default and not base.arg_constraints and base.support.is_discrete:
            return True
        return self.has_finite_support or not base.has_rsample

    @property
    def is_credited(self) -> bool:
        """Whether it is a draw that the score function credits, not a factor or an observation."""
        return self.needs_credit and not self.is_observed

    @property
    def has_finite_support(self) -> bool:
        """Whether the values of one of its latents can be listed."""
        return bool(getattr(self.base, "has_enumerate_support", False))

    @property
    def num_values(self) -> int | None:
        """The values of a categorical or binary site; None of any other."""
        if "Categorical" not in self.family or not self.has_finite_support:
            return 2 if self.family.startswith("Bernoulli") else None
        largest = getattr(self.base.support, "upper_bound", None)  # known without any logits
        return None if largest is None else int(largest) + 1

    @property
    def is_auxiliary(self) -> bool:
        """Whether a guide's site is not of the model."""
        return bool(self.infer.get("is_auxiliary"))

    @property
    def kind(self) -> str:
        """What its log-density is in the model: "likelihood" or "prior"."""
        return "likelihood" if self.is_observed and not self.infer.get("_of_latents") else "prior"

    @property
    def own_name(self) -> str:
        """As the program has it: the host marks the first enumerated steps of a `scan`."""
        return self.name.replace("_PREV_", "")

    @property
    def is_scanned(self) -> bool:
        """Whether it is a site of a `scan`; those of the first enumerated steps lack a dim."""
        return self.has_steps or self.name.startswith("_PREV_")

    @property
    def in_scan(self) -> bool:
        """Whether the program draws it in a `scan`, whatever the other program does."""
        return bool(self.infer.get("_in_scan"))

    @property
    def has_steps(self) -> bool:
        """Whether it is a site of several steps of a `scan`, which lead its batch dims."""
        # The host writes a step into what may be the `infer` of others; a scan leaves none.
        of_all = self.infer.get("_scan_current_index", 0) is None
        return of_all and not self.name.startswith("_PREV_")

    @property
    def is_joint(self) -> bool:
        """Whether its log-density is that of several sites, counted at another."""
        return bool(self.infer.get("_joint"))

    @property
    def by_sampler(self) -> bool:
        """Whether an algorithm has its own way to draw it, `draw.Sampler`."""
        return bool(self.infer.get("_by_sampler"))

    @property
    def num_batch_dims(self) -> int:
        """Batch dims of its value."""
        return jnp.ndim(self.value) - self.fn.event_dim

    @property
    def has_undeclared_dims(self) -> bool:
        """Whether a batch dim of its distribution, the steps of a `scan` aside, is of no plate."""
        declared = {frame.dim for frame in self.plates.values()}
        shape = self.fn.batch_shape[1:] if self.is_scanned else self.fn.batch_shape
        return any(shape[dim] > 1 and dim not in declared for dim in range(-len(shape), 0))

    def log_prob(self) -> Array:
        """Log-density of its value, over its batch dims; not scaled by handlers."""
        return sound(self.fn).log_prob(self.value, *self.call)

    def log_prob_under(self, fn: Any) -> Array:
        """Log-density of its value under a part of its distribution."""
        return sound(fn).log_prob(self.value)

    def term(self) -> Array:
        """What it adds to the objective: handlers may weigh or mask it as other draws say."""
        return self.scaled(self.log_prob(), self.scale)

    def scaled(self, values: Array, scale: Any) -> Array:
        """Numbers over its batch dims, weighed by `scale`; its masks are the distribution's."""
        return values * scale


def _in_shape(message: Any) -> Any:
    """The distribution of a site; the `sample_shape` of its draws leads the batch dims."""
    fn, shape = message.get("fn"), (message.get("kwargs") or {}).get("sample_shape", ())
    return fn.expand(shape + fn.batch_shape) if shape and is_drawn(message) else fn


def sample_sites(trace: Mapping[str, Any]) -> dict[str, Site]:
    """The sample sites of a run by name, in order: neither plates nor deterministic sites."""
    return _sites(trace, "sample")


def deterministic_sites(trace: Mapping[str, Any]) -> dict[str, Site]:
    """The deterministic sites of a run, by name."""
    return _sites(trace, "deterministic")


def _sites(trace: Mapping[str, Any], kind: str) -> dict[str, Site]:
    full_sizes = {name: rows.full_size for name, rows in rows_of_plates(trace).items()}
    return {name: Site.of(m, full_sizes) for name, m in trace.items() if m["type"] == kind}


def same_programs(some: Sequence[Any], others: Sequence[Any]) -> bool:
    """Whether they are the same objects, or the same methods of these: an `==` may be their own."""
    return list(map(_identity, some)) == list(map(_identity, others))


def _identity(program: Any) -> tuple[int, ...]:
    owner = getattr(program, "__self__", None)  # of a method, which is another object each time
    method = getattr(program, "__func__", None)
    return (id(program),) if owner is None or method is None else (id(method), id(owner))


def same_scale(one: Any, two: Any) -> bool:
    """Whether two weights of log-densities are the same, by their values; traced ones have none."""
    if isinstance(one, jax.core.Tracer) or isinstance(two, jax.core.Tracer):
        return one is two
    return jnp.shape(one) == jnp.shape(two) and bool(np.all(np.asarray(one) == np.asarray(two)))


def base_distribution(fn: Any) -> Any:
    """A distribution without what wraps it."""
    fn = getattr(fn, "counted_elsewhere", fn)  # see `enumerating`
    while isinstance(fn, dist.Independent | ExpandedDistribution | MaskedDistribution):
        fn = fn.base_dist
    return fn


def no_draws(site: Site, error: BaseException) -> ValueError:
    """The error of a site whose distribution has a density, and no way to draw."""
    said = next(iter(str(error).splitlines()), "") or type(error).__name__
    return ValueError(
        f"site '{site.name}' ({site.family}) cannot be drawn: {said}. Where a report draws from "
        "the model, leave the groups that do out, to_arviz(..., groups=['posterior', "
        "'log_likelihood', 'sample_stats', 'vi_stats']); a guide wants a distribution with draws."
    )


class Layout(NamedTuple):
    """What one plain run tells of the structure of a pair; it holds no array.

    A datum is one cell of the plates that all sites without a pathwise gradient share: usually of
    the data plate; the whole batch where such a site is under no plate.
    """

    nesting: int = 0  # plates take the batch dims -1 ... -nesting, particles are left of them
    plates: tuple[str, ...] = ()  # that make a datum, leftmost first
    dims: tuple[int, ...] = ()  # their batch dims
    credited: tuple[str, ...] = ()  # guide sites without a pathwise gradient
    summed: tuple[str, ...] = ()  # sites of the model that are summed out where it is run
    one_scale: bool = False  # whether all sites of a datum are scaled by the same computation
    mixed: tuple[str, ...] = ()  # plates in which a draw leads to what happens in other cells

    def owns(self, site: Site) -> bool:
        """Whether a site belongs to a datum, and not to what the data share."""
        return site.plates.keys() >= frozenset(self.plates)


class Pair(NamedTuple):
    """A model and its guide, with parameters substituted, and all that a run of them takes."""

    model: Callable
    guide: Callable | None  # None if all latents of the model are given
    args: tuple  # of both
    kwargs: dict
    layout: Layout = Layout()
    vectorize: bool | Callable = True  # by `jax.vmap`, else `jax.lax.map`; or by one's own
    expand: bool = False  # whether values that are given take the sizes of all plates
    notes: Any = None  # what the caller found out about the programs


class Run(NamedTuple):
    """The sites of one run of guide and model."""

    guide: Mapping[str, Site]
    model: Mapping[str, Site]
    guide_trace: Mapping[str, Any]
    model_trace: Mapping[str, Any]

    @classmethod
    def of(cls, guide_trace: Mapping[str, Any], model_trace: Mapping[str, Any]) -> "Run":
        """Read the sample sites of two traces."""
        model = sample_sites(model_trace)
        drawn = sample_sites(guide_trace)
        guide = {name: _beside(site, model.get(name)) for name, site in drawn.items()}
        return cls(guide, model, guide_trace, model_trace)

    def joint_plates(self) -> set[str]:
        """Plates of latents that the guide draws all at once and hands out under no plate."""
        names = [n for n in self.guide if not self.guide_trace[n]["cond_indep_stack"]]
        return {plate for name in names for plate in self.guide[name].plates}

    def computed(self) -> dict[str, Site]:
        """The deterministic sites of the guide."""
        return deterministic_sites(self.guide_trace)

    def mutable(self) -> dict[str, Any]:
        """The mutable state that both programs have left."""
        return mutable_values(self.guide_trace) | mutable_values(self.model_trace)


def _beside(site: Site, model: Site | None) -> Site:
    """A guide's site as the model's: in its plates if it has none, as values of an autoguide have.

    Steps of a `scan` have as many dims then, in guide and model.
    """
    extra = 0 if model is None else jnp.ndim(model.value) - jnp.ndim(site.value)
    if model is not None and site.in_scan and model.in_scan and extra > 0:
        fn, value, _ = in_steps(site.fn, behind_steps(site.value, extra), ())
        site = replace(site, fn=fn, value=value, scale=behind_steps(site.scale, extra))
    if model is None or model.is_observed or site.plates or site.is_observed or site.needs_credit:
        return site
    return replace(site, plates=model.plates)
