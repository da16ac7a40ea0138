"""The discrete latents of a datum as one row of codes, for any Pyro program.

A truncated or enumerated posterior works on states: H codes, one per discrete latent of a datum,
whatever sites these are in. `find_space` reads off the model which sites there are; `decode` turns
codes into the values of these sites, `encode` the other way.

Shapes: codes ``(S, B, H)``, S states of each of B data, the cells of the plates that the discrete
sites share; values of a site ``(S, *batch, *event)``, as `run_particles` takes them.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from jaxtyping import Integer, Num
from pyro import poutine
from pyro.ops.provenance import get_provenance
from torch import Tensor

from pyro_dvae.ops.arguments import shown_count
from pyro_dvae.programs.draw import Draw, run_program
from pyro_dvae.programs.messages import is_among, is_observed
from pyro_dvae.programs.processes import hidden
from pyro_dvae.programs.sites import Layout, Pair, Site, no_one_list, sample_sites
from pyro_dvae.programs.structure.layout import find_layout
from pyro_dvae.programs.structure.looking import only_looking
from pyro_dvae.programs.structure.tracking import Exits, TrackDraws
from pyro_dvae.programs.structure.ways import ways_through
from pyro_dvae.programs.supports import listed_values, no_end, no_one_support

__all__ = [
    "CodedSite",
    "Space",
    "a_few",
    "by_datum",
    "decode",
    "encode",
    "enumerate_draws",
    "find_space",
    "latents_of",
    "shape_in_datum",
]


class CodedSite(NamedTuple):
    """A discrete site of a datum: how its value is made of codes."""

    name: str
    support: Tensor  # (num_codes, *event of one latent)
    batch_shape: tuple[int, ...]  # within a datum, those of shared plates as singletons
    event_shape: tuple[int, ...]
    is_range: bool  # the support is 0, 1, ..., so that a code is its value

    @property
    def num_latents(self) -> int:
        """Latents per datum."""
        return math.prod(self.batch_shape) * math.prod(self.cells)

    @property
    def cells(self) -> tuple[int, ...]:
        """The event dims that hold one latent each."""
        return self.event_shape[: len(self.event_shape) - self.support.dim() + 1]


class Space(NamedTuple):
    """The states of a datum."""

    layout: Layout
    sites: tuple[CodedSite, ...]

    @property
    def cardinalities(self) -> tuple[int, ...]:
        """Number of codes of each of the H latents."""
        sizes = [(len(site.support),) * site.num_latents for site in self.sites]
        return tuple(chain(*sizes))


# ------------------------------------------------------------------------------- the model's space


def find_space(model: Callable, rest: Callable | None, args: tuple, kwargs: dict) -> Space:
    """The states of a datum of `model`, whose other latents `rest` samples.

    Raises:
        ValueError: If a site that `rest` does not sample has no finite support, if one that it
            does has no pathwise gradient, or if discrete sites share no plate.
    """
    program = latents_of(model, rest)
    with hidden(), torch.no_grad():
        rest_trace = run_program(rest, args, kwargs) if rest else poutine.Trace()
        latents = sample_sites(run_program(program, args, kwargs))
        _check_supports(program, args, kwargs, list(latents.values()))
        _check_latents(latents, set(sample_sites(rest_trace)))
        layout, _ = find_layout(Pair(model, program, args, kwargs))
    sites = {name: site for name, site in latents.items() if name not in rest_trace.nodes}
    _check_plates(layout, sites)
    return Space(layout, tuple(_code_site(site, layout) for site in sites.values()))


def latents_of(model: Callable, rest: Callable | None) -> Callable:
    """A program that samples the latents of `model`: `rest`, then the other sites' priors."""

    def program(*args: Any, **kwargs: Any) -> None:
        with poutine.trace() as tracer:
            if rest is not None:
                rest(*args, **kwargs)
        nodes = tracer.trace.nodes
        with (
            hidden(lambda msg: is_among(msg, nodes) or is_observed(msg)),
            poutine.replay(trace=tracer.trace),
        ):
            model(*args, **kwargs)

    return program


def _check_latents(latents: Mapping[str, Site], rest: set[str]) -> None:
    for name, site in latents.items():
        if name in rest:
            if site.needs_credit and not site.is_auxiliary:
                raise ValueError(
                    f"site '{name}' ({site.family}) of `rest` has no pathwise gradient. Leave a "
                    "discrete site of a datum to the states, and give `rest` reparameterised sites "
                    "only."
                )
        elif not site.has_finite_support:
            raise ValueError(
                f"site '{name}' ({site.family}) has no finite support, so no states of it can be "
                "listed. Sample it in `rest`, a guide with reparameterised sites, or marginalise "
                "it; a count can be cut off, as a Categorical."
            )


def _check_plates(layout: Layout, sites: Mapping[str, Site]) -> None:
    if all(0 in site.value.shape for site in sites.values()):
        raise ValueError(
            "the model has no discrete latent in this call, so there are no states to keep. "
            "Use a loss that samples, such as Reinforce_ELBO, with a guide for its other latents."
        )
    if not layout.plates:
        listed = ", ".join(f"'{name}' under {sorted(s.plates)}" for name, s in sites.items())
        raise ValueError(
            "the discrete sites of a datum must be under a plate that they share, and no site "
            f"outside of it may depend on them; got {listed}. Put them under the data plate, or "
            "marginalise those that are global."
        )


def _code_site(site: Site, layout: Layout) -> CodedSite:
    support = listed_values(site)
    numbers = torch.arange(len(support), device=support.device)
    is_range = support.dim() == 1 and bool((support == numbers).all())
    event_shape = tuple(site.fn.event_shape)
    return CodedSite(site.name, support, shape_in_datum(site, layout), event_shape, is_range)


def _check_supports(program: Callable, args: tuple, kwargs: dict, sites: Sequence[Site]) -> None:
    """No draw may say how many values another has, of which a run shows those of one draw."""
    counted = [site.name for site in sites if isinstance(_largest(site), Tensor)]
    if not counted:
        return

    def run(values: Mapping[str, Tensor]) -> tuple[Mapping[str, Site], set[str], None]:
        draw = Draw(Layout(), None, values)
        with pyro.validation_enabled(False), draw, TrackDraws(), Exits() as exits:
            return sample_sites(run_program(program, args, kwargs)), exits.names, None

    runs = [way.sites for way in ways_through(run)]
    for name in counted:
        if any(name not in run for run in runs):
            raise no_one_list(f"'{name}' is not in each run", [site.name for site in sites])
        bounds = [_largest(run[name]) for run in runs]
        if get_provenance(bounds) or not all(torch.equal(b, bounds[0]) for b in bounds):
            raise no_one_support(runs[0][name])


def _largest(site: Site) -> Any:
    return getattr(site.base.support, "upper_bound", None)


def shape_in_datum(site: Site, layout: Layout) -> tuple[int, ...]:
    """Batch shape of a site within one datum, shared plates as singletons."""
    batch = (1,) * (layout.nesting - len(site.fn.batch_shape)) + tuple(site.fn.batch_shape)
    return tuple(1 if dim - len(batch) in layout.dims else n for dim, n in enumerate(batch))


# ------------------------------------------------------------------------------- codes and values


def decode(space: Space, codes: Num[Tensor, "S B H"], sizes: tuple[int, ...]) -> dict[str, Tensor]:
    """Values of the discrete sites, ``(S, *batch, *event)``; `sizes` are those of the plates.

    Real numbers stay what they are, for slopes in the codes 0, 1, ... of a site.
    """
    widths = [site.num_latents for site in space.sites]
    values, parts = {}, codes.split(widths, -1) if len(widths) > 1 else (codes,)
    for site, part in zip(space.sites, parts, strict=True):
        dtype = part.dtype if part.is_floating_point() else site.support.dtype
        value = part.to(dtype) if site.is_range else site.support[part.long()]
        value = value.reshape(len(codes), *sizes, *site.batch_shape, *site.event_shape)
        values[site.name] = _into_dims(value, space.layout)
    return values


def a_few(space: Space) -> dict[str, Tensor]:
    """Three assignments of all discrete sites of a datum, to try a program with.

    Dims of plates that data share have size 1.
    """
    largest = np.array(space.cardinalities) - 1
    codes = np.stack([0 * largest, largest, np.arange(len(largest)) % (largest + 1)])
    return decode(
        space,
        torch.as_tensor(codes, device=space.sites[0].support.device)[:, None],
        (1,) * len(space.layout.plates),
    )


def encode(
    space: Space, values: Mapping[str, Tensor], sizes: tuple[int, ...]
) -> Integer[Tensor, "S B H"]:
    """Codes of the values of the discrete sites."""
    parts = []
    for site in space.sites:
        cells = by_datum(values[site.name], site, space.layout, sizes, site.support.dim() - 1)
        if not site.is_range:
            same = (cells.unsqueeze(3) == site.support).flatten(4).all(-1)
            cells = same.to(torch.uint8).argmax(-1)
        parts.append(cells.long())
    return torch.cat(parts, -1)


def _into_dims(value: Tensor, layout: Layout) -> Tensor:
    """From ``(S, *plates, *batch of a datum, *event)``, swap the plates into their batch dims."""
    leading = 1 + len(layout.dims)
    for axis, dim in enumerate(layout.dims):
        value = value.transpose(1 + axis, leading + layout.nesting + dim)
    return value.reshape(value.shape[0], *value.shape[leading:])


def by_datum(
    value: Tensor, site: CodedSite, layout: Layout, sizes: tuple[int, ...], event_dim: int
) -> Tensor:
    """``(S, *batch, *cells, *event)`` as ``(S, B, latents, *event)``, batch dims broadcast."""
    batch = list(site.batch_shape)
    for dim, size in zip(layout.dims, sizes, strict=True):
        batch[dim] = size
    event = value.shape[value.dim() - event_dim :]
    missing = (1 + layout.nesting + len(site.cells) + event_dim) - value.dim()
    value = value.reshape(*value.shape[:1], *[1] * missing, *value.shape[1:])
    value = value.expand(value.shape[0], *batch, *site.cells, *event)
    places = tuple(range(1, 1 + len(sizes)))
    value = value.movedim([1 + layout.nesting + dim for dim in layout.dims], places)
    return value.reshape(value.shape[0], math.prod(sizes), site.num_latents, *event)


def enumerate_draws(
    program: Callable, args: tuple, kwargs: dict, layout: Layout, max_states: int
) -> dict[str, Tensor]:
    """All joint values of the discrete sites of a datum, one after another on axis 0.

    Args:
        program: The guide, or the model, whose sites they are.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        layout: Which of its sites are discrete, and which plates make a datum.
        max_states: The most that are listed.

    Returns:
        For each site ``(S, *batch, *event)``, with singleton batch dims for the shared plates: the
        S states are those of one datum, and all data go through them at once. Nothing where there
        are no discrete sites.

    Raises:
        ValueError: If a site has no finite support, or if S exceeds `max_states`.
    """
    sites = only_looking(lambda: sample_sites(run_program(program, args, kwargs)))
    credited = [site for name, site in sites.items() if name in layout.credited]
    if not credited:
        return {}
    only_looking(lambda: _check_supports(program, args, kwargs, credited))
    for site in credited:
        if not site.has_finite_support:
            raise no_end(site)
    space = Space(layout, tuple(_code_site(site, layout) for site in credited))
    num_states = math.prod(space.cardinalities)
    if num_states > max_states:
        raise ValueError(_too_many(space, num_states, max_states))
    sizes = torch.tensor(space.cardinalities)
    places = torch.tensor([math.prod(space.cardinalities[:h]) for h in range(len(sizes))])
    codes = torch.arange(num_states)[:, None] // places % sizes
    codes = codes.to(space.sites[0].support.device)
    return decode(space, codes[:, None], (1,) * len(layout.plates))


def _too_many(space: Space, num_states: int, max_states: int) -> str:
    listed = ", ".join(f"'{s.name}': {len(s.support)}^{s.num_latents}" for s in space.sites)
    whose, marked = "per datum", ""
    if not space.layout.plates:
        whose = "of all data together"
        marked = ', or leave sites of each datum to the model, infer={"enumerate": "parallel"}'
    return (
        f"enumeration needs {shown_count(num_states)} states {whose} ({listed}), but `max_states` "
        f"is {max_states}. {'Raise it, or sample' if num_states <= 2**24 else 'Sample'}: train by "
        f"DAPS_ELBO or Reinforce_ELBO, look by importance_diagnostics{marked}."
    )
