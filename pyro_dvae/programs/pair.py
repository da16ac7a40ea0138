"""A model and its guide: what both are called with, how their sites lie, how they are run."""

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from pyro import poutine

from pyro_dvae.programs.sites import Site, deterministic_sites, sample_sites

__all__ = ["Layout", "Pair", "Run", "StructureError", "no_one_list", "sizes_of"]


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
    """Its event shape, its number of values, and its plates with their sizes."""
    frames = ((frame.name, frame.dim, frame.size) for frame in site.plates.values())
    return tuple(site.fn.event_shape), site.num_values, tuple(frames)
