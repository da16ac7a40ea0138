"""One typed view of a sample site, read once from its message.

The rest of the package asks a `Site` for what it wants to know and meets no dictionary of Pyro's.

References:
    [1] Bingham et al. Pyro: deep universal probabilistic programming. JMLR, 2019.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.distributions.util import scale_and_mask
from pyro.poutine.util import site_is_subsample
from torch import Tensor

__all__ = [
    "Rows",
    "Site",
    "base_distribution",
    "deterministic_sites",
    "in_batch_dims",
    "is_drawn",
    "is_subsample",
    "moved",
    "param_values",
    "rows_of_plates",
    "same_scale",
    "sample_sites",
    "with_values",
]

_NO_SIZE = -1  # of a plate that takes what it is given


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
        """Whether its draws have no pathwise gradient."""
        return not getattr(self.fn, "has_rsample", False)

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
        """The values of a categorical site; None of any other."""
        if "Categorical" not in self.family or not self.has_finite_support:
            return None
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
        return self.fn.log_prob(self.value, *args, **kwargs)

    def term(self) -> Tensor:
        """What it adds to the objective: handlers may weigh or mask it as other draws say."""
        return self.scaled(self.log_prob(), self.scale)

    def scaled(self, values: Tensor, scale: Any) -> Tensor:
        """Numbers over its batch dims, weighed by `scale`, 0 where a handler masks the site."""
        return scale_and_mask(values, scale, self.mask)


def sample_sites(trace: poutine.Trace) -> dict[str, Site]:
    """The sample sites of a run by name, in order: neither subsamples nor deterministic sites."""
    return {site.name: site for site in _sites(trace, deterministic=False)}


def deterministic_sites(trace: poutine.Trace) -> dict[str, Site]:
    """The deterministic sites of a run, by name."""
    return {site.name: site for site in _sites(trace, deterministic=True)}


def _sites(trace: poutine.Trace, *, deterministic: bool) -> Iterator[Site]:
    for message in trace.nodes.values():
        if message["type"] == "sample" and not site_is_subsample(message):
            if bool((message["infer"] or {}).get("_deterministic")) == deterministic:
                yield Site.of(message)


class Rows(NamedTuple):
    """The rows that a plate of a run has taken of the data."""

    indices: Any
    full_size: int  # of all rows


def rows_of_plates(trace: poutine.Trace) -> dict[str, Rows]:
    """What the plates that may subsample have taken in a run, by name."""
    messages: dict[str, Any] = dict(trace.nodes)
    return {
        name: Rows(message["value"], message["fn"].size)
        for name, message in messages.items()
        if is_subsample(message)
    }


def param_values(trace: poutine.Trace) -> dict[str, Any]:
    """The parameters of a run, by name."""
    messages: dict[str, Any] = dict(trace.nodes)
    return {name: m["value"] for name, m in messages.items() if m["type"] == "param"}


def with_values(trace: poutine.Trace, values: Mapping[str, Any]) -> poutine.Trace:
    """A run with other values at some of its sites, to be replayed."""
    changed, messages = poutine.Trace(), dict(trace.nodes)
    for name, message in messages.items():
        value = {"value": values[name]} if name in values else {}
        changed.nodes[name] = {**message, **value}  # type: ignore[typeddict-item]
    return changed


def same_scale(one: Any, two: Any) -> bool:
    """Whether two weights of log-densities are the same, by their values."""
    if isinstance(one, Tensor) and isinstance(two, Tensor):
        return one is two or (one.shape == two.shape and bool((one == two).all()))
    return type(one) is type(two) and one == two


def is_subsample(message: Any) -> bool:
    """Whether a message is of the rows that a plate takes."""
    return message["type"] == "sample" and site_is_subsample(message)


def is_drawn(message: Any) -> bool:
    """Whether a message is of a latent that the program draws."""
    return not message["is_observed"] and not site_is_subsample(message)


def moved(site: Site, value: Tensor, by: int | Tensor) -> Tensor | None:
    """Other values of a discrete site: `by` places on in the circle of all but the one it has.

    Args:
        site: Whose support it is.
        value: Of the site.
        by: From 1 on, so that all others are met; it broadcasts over batch dims and cells.

    Returns:
        Values that differ from `value` wherever the site has two; None of a continuous site.
    """
    support = site.fn.support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    if isinstance(support, type(constraints.boolean)):
        return 1 - value
    if isinstance(support, constraints.integer_interval):
        low, size = support.lower_bound, support.upper_bound - support.lower_bound + 1
        return (low + (value - low + _steps(by, size)) % size).to(value)
    if isinstance(support, type(constraints.one_hot)):
        size = value.shape[-1]
        codes = (value.argmax(-1) + _steps(by, size)) % size
        return torch.nn.functional.one_hot(codes, size).to(value)
    if isinstance(support, type(constraints.nonnegative_integer)):
        return value + by
    return None


def _steps(by: int | Tensor, size: int | Tensor) -> Tensor:
    others = torch.as_tensor(size - 1).clamp(min=1)
    return 1 + (torch.as_tensor(by, device=others.device) - 1) % others


def base_distribution(fn: Any) -> Any:
    """A distribution without what wraps it."""
    fn = getattr(fn, "counted_elsewhere", fn)  # see `enumerating`
    while hasattr(fn, "base_dist"):  # Independent, ExpandedDistribution, MaskedDistribution
        fn = fn.base_dist
    return fn


def in_batch_dims(site: Site, values: Tensor, nesting: int, num_particles: int) -> Tensor:
    """View numbers of a site with ``nesting + 1`` batch dims, particles first.

    Raises:
        ValueError: If a size above 1 is neither a plate's nor K.
    """
    shape = tuple(values.shape)
    sizes = {-nesting - 1: num_particles} | {f.dim: f.size for f in site.plates.values()}
    for dim in range(-1, -len(shape) - 1, -1):
        if shape[dim] not in (1, sizes.get(dim, 1)) and sizes.get(dim) != _NO_SIZE:
            raise ValueError(
                f"site '{site.name}': its log-density has shape {shape}, but batch dim {dim} is "
                f"{_meaning(dim, nesting, num_particles, site)}. Either declare the dim with "
                ".to_event(1), or put the site under a plate with "
                f"dim={dim}, or write the program so that it broadcasts over a particle axis left "
                "of all plates (x[..., i], sum(-1), no bare reshape)."
            )
    return values.reshape((1,) * (nesting + 1 - len(shape)) + shape)


def _meaning(dim: int, nesting: int, num_particles: int, site: Site) -> str:
    if dim == -nesting - 1 and num_particles > 1:
        return f"the particles', of size {num_particles}"
    for frame in site.plates.values():
        if frame.dim == dim:
            return f"that of plate '{frame.name}', of size {frame.size}"
    return "under no plate"
