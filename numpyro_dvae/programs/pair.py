"""A model and its guide: what both are called with, how their sites lie, how they are run."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from numpyro_dvae.programs.sites import Site, deterministic_sites, mutable_values, sample_sites

__all__ = ["Layout", "Pair", "Run"]


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
    vectorize: bool | Callable = True  # whether `jax.vmap` runs all particles, `jax.lax.map` if
    # not; or a transformation of one's own
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
        guide = {
            name: _in_plates(site, model.get(name))
            for name, site in sample_sites(guide_trace).items()
        }
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


def _in_plates(site: Site, model: Site | None) -> Site:
    """A guide's site under no plate, as an autoguide's values are, in the plates of the model's."""
    if model is None or model.is_observed or site.plates or site.is_observed or site.needs_credit:
        return site
    return replace(site, plates=model.plates)
