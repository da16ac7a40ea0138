"""One typed view of a sample site, of a run, and of a pair of programs.

A `Site` is read once from its message: the rest of the package asks it for what it wants to know
and meets no dictionary of Pyro's. Handlers alone read messages raw, since they change them; rows
of plates, and what else no site tells of a trace, `messages` reads.

A `Pair` is a model and its guide, with what both are called with, how their sites lie
(`Layout`) and how they are run; a `Run` is what one run of both has left.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyro.distributions as dist
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from torch import Tensor, nn
from torch.distributions import Independent, TransformedDistribution

from pyro_dvae.programs.messages import is_computed, is_subsample

__all__ = [
    "Layout",
    "Pair",
    "Run",
    "Site",
    "StructureError",
    "base_distribution",
    "deterministic_sites",
    "is_flow",
    "no_draws",
    "no_one_list",
    "same_programs",
    "same_scale",
    "sample_sites",
    "sizes_of",
]


@dataclass(frozen=True, slots=True, eq=False)
class Site:
    """A sample site as a run has left it."""

    name: str
    fn: Any  # its distribution, with whatever plates and handlers made of it
    value: Any
    is_observed: bool
    plates: Mapping[str, Any]  # the vectorised plates it is under: name -> frame (dim, size, ...)
    scale: Any  # weight of its log-density: subsampling, `poutine.scale`
    mask: Any  # of `poutine.mask`: True or None, or a tensor over its batch dims
    infer: Mapping[str, Any]
    call: tuple[tuple, dict]  # what its log_prob takes beside the value

    @classmethod
    def of(cls, message: Any) -> "Site":
        """Read a message of Pyro's."""
        return cls(
            name=message["name"],
            fn=message["fn"],
            value=message["value"],
            is_observed=message["is_observed"],
            plates={f.name: f for f in message["cond_indep_stack"] if f.vectorized},
            scale=message["scale"],
            mask=message["mask"],
            infer=message["infer"] or {},
            call=(message["args"], message["kwargs"]),
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
        return self.has_finite_support or not getattr(self.fn, "has_rsample", False)

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
    def is_joint(self) -> bool:
        """Whether its log-density is that of several sites, counted at another."""
        return bool(self.infer.get("_joint"))

    @property
    def by_sampler(self) -> bool:
        """Whether an algorithm has its own way to draw it, `draw.Sampler`."""
        return bool(self.infer.get("_by_sampler"))

    @property
    def num_batch_dims(self) -> int:
        """Batch dims of its value, particles included."""
        return self.value.dim() - self.fn.event_dim

    def log_prob(self) -> Tensor:
        """Log-density of its value, over its batch dims; neither scaled nor masked by handlers."""
        args, kwargs = self.call
        fn, density = self.infer.get("_density", (None, None))  # a replayed site has the guide's
        if fn is self.fn and not self.is_observed:
            return density
        try:
            return self.fn.log_prob(self.value, *args, **kwargs)
        except KeyError as error:
            if not is_flow(self.fn):
                raise
            raise ValueError(
                f"{self.name!r} is drawn by a flow without an inverse, which knows the density of "
                "its last draw alone, and here that of other values, or for other parameters, is "
                "asked for: take one that has an inverse, as `affine_autoregressive` and "
                f"`spline_autoregressive` do. It said: {error}"
            ) from error

    def term(self) -> Tensor:
        """What it adds to the objective: handlers may weigh or mask it as other draws say."""
        return self.scaled(self.log_prob(), self.scale)

    def scaled(self, values: Tensor, scale: Any, num_cells: int = 0) -> Tensor:
        """Numbers over its batch dims and `num_cells` more, weighed, 0 where a handler masks it."""
        mask = self.mask
        if isinstance(mask, Tensor):
            mask = mask.reshape(mask.shape + (1,) * num_cells)
        return scale_and_mask(values, scale, mask)


def sample_sites(trace: poutine.Trace) -> dict[str, Site]:
    """The sample sites of a run by name, in order: neither subsamples nor deterministic sites."""
    return {site.name: site for site in _sites(trace, deterministic=False)}


def deterministic_sites(trace: poutine.Trace) -> dict[str, Site]:
    """The deterministic sites of a run, by name."""
    return {site.name: site for site in _sites(trace, deterministic=True)}


def _sites(trace: poutine.Trace, *, deterministic: bool) -> Iterator[Site]:
    for message in trace.nodes.values():
        if message["type"] == "sample" and not is_subsample(message):
            if is_computed(message) == deterministic:
                yield Site.of(message)


def same_programs(some: Sequence[Any], others: Sequence[Any]) -> bool:
    """Whether they are the same objects, or the same methods of these: an `==` may be their own."""
    return list(map(_identity, some)) == list(map(_identity, others))


def _identity(program: Any) -> tuple[int, ...]:
    owner = getattr(program, "__self__", None)  # of a method, which is another object each time
    method = getattr(program, "__func__", None)
    return (id(program),) if owner is None or method is None else (id(method), id(owner))


def same_scale(one: Any, two: Any) -> bool:
    """Whether two weights of log-densities are the same, by their values."""
    if isinstance(one, Tensor) and isinstance(two, Tensor):
        return one is two or (one.shape == two.shape and bool((one == two).all()))
    return type(one) is type(two) and one == two


def is_flow(fn: Any) -> bool:
    """Whether draws of a distribution are those of a network, which may have no inverse."""
    base = base_distribution(fn)
    return isinstance(base, TransformedDistribution) and any(
        isinstance(transform, nn.Module) for transform in base.transforms
    )


def base_distribution(fn: Any) -> Any:
    """A distribution without what wraps it; one with other values or weights is no wrapper."""
    fn = getattr(fn, "counted_elsewhere", fn)  # see `enumerating`
    while isinstance(fn, Independent | dist.ExpandedDistribution | dist.MaskedDistribution):
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


class StructureError(ValueError):
    """A run has other sites than those that its layout was found for."""


def no_one_list(found: str, given: Collection[str]) -> StructureError:
    """The error of values that are given to programs which draw others.

    Args:
        found: Which site is otherwise, and how.
        given: The sites whose values are given.
    """
    return StructureError(
        f"which latents there are depends on the values of others, or on the data: site {found} "
        f"with given values of {sorted(given)}, so the states cannot be listed. Use a loss that "
        "samples (Reinforce_ELBO, DAPS_ELBO, VIMCO_ELBO), or let the program sample all its sites "
        "in any case, under a mask. The states of a TruncatedGuide are of the sites of its first "
        "call: pad all data to one length, or make a guide for each."
    )


class Layout(NamedTuple):
    """What one plain run tells of the structure of a pair.

    A datum is one cell of the plates that all sites without a pathwise gradient share: usually of
    the data plate; the whole batch where such a site is under no plate.
    """

    nesting: int = 0  # plates take the batch dims -1 ... -nesting, particles are left of them
    plates: tuple[str, ...] = ()  # that make a datum, leftmost first
    dims: tuple[int, ...] = ()  # their batch dims
    credited: tuple[str, ...] = ()  # guide sites without a pathwise gradient
    summed: tuple[str, ...] = ()  # sites of the model that are summed out where it is run
    asked: bool = False  # whether Python asks for their draws, so that other sites may depend on it
    bounded: tuple[str, ...] | None = (
        None  # observed sites whose bounds follow from draws, if known
    )
    asks: bool = False  # whether it asks for values of tensors, draws or not: to branch, maybe
    mixed: tuple[str, ...] = ()  # plates in which a draw leads to what happens in other cells

    def owns(self, site: Site) -> bool:
        """Whether a site belongs to a datum, and not to what the data share."""
        return site.plates.keys() >= frozenset(self.plates)


class Pair(NamedTuple):
    """A model and its guide, and all that a run of them takes."""

    model: Callable
    guide: Callable | None  # None if all latents of the model are given
    args: tuple  # of both
    kwargs: dict
    layout: Layout = Layout()
    vectorize: bool = True  # whether one run takes all particles; else one run each
    expand: bool = False  # whether values that are given take the sizes of all plates
    structure: Any = None  # `Run.structure` of the plain run; None if it depends on the draws
    notes: Any = None  # what the caller found out about the programs
    watch: AbstractContextManager = nullcontext()  # around each run of both


class Run(NamedTuple):
    """The sites of one run of guide and model."""

    guide: Mapping[str, Site]
    model: Mapping[str, Site]
    guide_trace: poutine.Trace
    model_trace: poutine.Trace

    @classmethod
    def of(cls, guide_trace: poutine.Trace, model_trace: poutine.Trace) -> "Run":
        """Read the sample sites of two traces."""
        return cls(sample_sites(guide_trace), sample_sites(model_trace), guide_trace, model_trace)

    def structure(self) -> tuple[tuple, tuple]:
        """What is to be the same in each run: sites, plates and sizes, of guide and model."""
        return _described(self.guide), _described(self.model)

    def computed(self) -> dict[str, Site]:
        """The deterministic sites of the guide."""
        return deterministic_sites(self.guide_trace)


def _described(sites: Mapping[str, Site]) -> tuple:
    return tuple(
        (name, site.is_observed, site.needs_credit, *sizes_of(site)) for name, site in sites.items()
    )


def sizes_of(site: Site) -> tuple:
    """The event shape of a site, its number of values, and its plates with their sizes."""
    frames = ((frame.name, frame.dim, frame.size) for frame in site.plates.values())
    return tuple(site.fn.event_shape), site.num_values, tuple(frames)
