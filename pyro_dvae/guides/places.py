"""Where the latents of an automatic guide lie: under which plates, and in which of their rows."""

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from pyro_dvae.guides.families import FullPlate, Latent
from pyro_dvae.programs.processes import plate_of_all
from pyro_dvae.programs.sites import Site

__all__ = ["check_site", "full_sizes", "reaches"]


def full_sizes(site: Site) -> tuple[tuple[int, ...], tuple[FullPlate, ...]]:
    """The batch shape of a site before subsampling, and its plates."""
    batch, plates = list(site.fn.batch_shape), []
    for frame in site.plates.values():
        size = _full_size(site, frame)
        size = size if size > 0 else batch[frame.dim]
        batch[frame.dim] = size
        plates.append(FullPlate(frame.name, frame.dim, size))
    return tuple(batch), tuple(plates)


def _full_size(site: Site, frame: Any) -> int:
    size, _ = plate_of_all(frame)
    if size != (frame.full_size or frame.size):
        raise ValueError(
            f"AutoDiscrete has parameters for each of the data of site '{site.name}', but plate "
            f"'{frame.name}' has the size of the batch, which processes share. Give it the size "
            'of all data, and the rows of a minibatch as its subsample, as in pyro.plate("data", '
            "N, subsample=index)."
        )
    return size


def reaches(parent: Latent, plates: Collection[str]) -> bool:
    """Whether each place under these plates has one of the parent's: its plates are among them."""
    free = [n for d, n in enumerate(parent.batch_shape, -len(parent.batch_shape)) if n > 1]
    covered = {plate.dim for plate in parent.plates if plate.size > 1}
    return {plate.name for plate in parent.plates} <= set(plates) and len(free) == len(covered)


def check_site(
    latent: Latent | None, site: Site, rows: Mapping[str, Tensor], known: list[str]
) -> set[str]:
    """Whether a site is under the plates for which the guide has parameters; those of some rows.

    Args:
        latent: What the guide holds of it, if anything.
        site: The site, in this call.
        rows: Rows of plates that are known.
        known: The latents of the first call.

    Raises:
        ValueError: If the site is new, its plates are others, or their rows are not known.
    """
    if latent is None:
        raise ValueError(
            f"site '{site.name}' ({site.family}) was not in the first call of AutoDiscrete, which "
            f"had {known}. Let the model draw all of its sites at each call, under a mask, or "
            "call the guide first with data that have all of them."
        )
    _, plates = full_sizes(site)
    if plates != latent.plates:
        raise ValueError(
            f"site '{site.name}' is under {_listed(plates)}, but the guide has parameters for "
            f"{_listed(latent.plates)}. Give the plate the size of all data, and the rows of a "
            'minibatch as its subsample, as in pyro.plate("data", N, subsample=index); for other '
            "data make another guide."
        )
    hidden = [f.name for f in site.plates.values() if f.size != _size(latent, f.name)]
    if missing := sorted(set(hidden) - rows.keys()):
        raise ValueError(
            f"the rows of plate '{missing[0]}' are not to be found: it is made outside of the "
            "model, or a handler hides it. Make it in the model, and pass AutoDiscrete the model "
            f"as it is, or expose '{missing[0]}' as well."
        )
    return set(hidden)


def _size(latent: Latent, name: str) -> int:
    return next(plate.size for plate in latent.plates if plate.name == name)


def _listed(plates: tuple[FullPlate, ...]) -> str:
    return ", ".join(f"'{p.name}' (dim {p.dim}, size {p.size})" for p in plates) or "no plate"
