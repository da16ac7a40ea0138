"""What one call of a model is about: the rows of its plates, and what a mask takes out.

A truncated posterior keeps something for every datum, so it must know which data a minibatch holds.
The model says so itself, by its plates: their full sizes and the rows that they subsample.
"""

from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import pyro
import torch
from jaxtyping import Bool, Float, Int64
from pyro import poutine
from torch import Tensor

from pyro_dvae.infer.closed_forms import closed_forms_of
from pyro_dvae.programs.codes import CodedSite, Space, by_datum, find_space, shape_in_datum
from pyro_dvae.programs.densities import entry_mask
from pyro_dvae.programs.handlers.rows import check_indices, check_rows
from pyro_dvae.programs.messages import rows_of_plates
from pyro_dvae.programs.processes import plate_of_all
from pyro_dvae.programs.sites import Site, sample_sites

__all__ = [
    "Minibatch",
    "check_sites",
    "open_plates",
    "prior_probs",
    "read_minibatch",
    "space_by_row",
]


class Minibatch(NamedTuple):
    """What one call of a model is about."""

    subsamples: poutine.Trace  # the plates' rows as the call has drawn them, to be replayed
    latents: dict[str, Site]  # the model's latent sites, of this call
    sizes: tuple[int, ...]  # of the shared plates
    num_data: int  # N, cells of the shared plates before subsampling
    rows: Int64[Tensor, "B"]  # which of the N these data are
    closed_forms: dict[str, Any]  # of sites that ask for them, the `models.ClosedForm`
    unmasked: Bool[Tensor, "B H"] | None  # False where a mask takes a latent out; None: nowhere
    drawn: Bool[Tensor, "B"] | None = None  # data whose masked latents are none; None: of no datum


def space_by_row(model: Callable, rest: Callable | None, args: tuple, kwargs: dict) -> Space:
    """The states of a datum, of which a guide keeps some by the rows of plates: see `find_space`.

    Raises:
        ValueError: If a plate draws rows of its own, and the data are not those of these rows.
    """
    space = find_space(model, rest, args, kwargs)
    check_rows(model, args, kwargs, space.layout.plates, "TruncatedGuide")
    return space


def read_minibatch(trace: poutine.Trace, space: Space) -> Minibatch:
    """Read from a plain run of the model what it is about.

    Raises:
        ValueError: If no site is observed, if a discrete site differs from the space's, or if the
            rows of a plate cannot be found or are out of range.
    """
    sites = sample_sites(trace)
    latents = {name: site for name, site in sites.items() if not site.is_observed}
    _check_sites(sites, latents, space)
    frames = latents[space.sites[0].name].plates
    sizes: tuple[int, ...] = ()
    num_data, rows = 1, torch.zeros(1, dtype=torch.long)
    for frame in (frames[name] for name in space.layout.plates):
        full, start = plate_of_all(frame)
        indices = _rows_of(trace, frame) + start
        rows = (rows.to(indices.device)[:, None] * full + indices).flatten()
        sizes, num_data = (*sizes, frame.size), num_data * full
    subsamples = poutine.Trace()
    for name in rows_of_plates(trace):
        subsamples.nodes[name] = trace.nodes[name]
    return Minibatch(
        subsamples=subsamples,
        latents=latents,
        sizes=sizes,
        num_data=num_data,
        rows=rows,
        closed_forms=closed_forms_of(sites),
        unmasked=_unmasked(latents, space, sizes),
    )


def _check_sites(sites: dict[str, Site], latents: dict[str, Site], space: Space) -> None:
    if len(latents) == len(sites):
        raise ValueError(
            "the model observes nothing in this call, so there is no posterior over its states. "
            "Pass the data; to sample from the prior, call the model alone."
        )
    for site in space.sites:
        found = latents.get(site.name)
        shapes = found and (shape_in_datum(found, space.layout), tuple(found.fn.event_shape))
        if shapes != (site.batch_shape, site.event_shape):
            before = (*site.batch_shape, *site.event_shape)
            raise _other_shape(site.name, before, shapes and (*shapes[0], *shapes[1]))
        num_values = None if found is None else _num_values(found)
        if num_values not in (None, len(site.support)):
            raise _other_number(site.name, len(site.support), num_values)


def check_sites(begun: Sequence[CodedSite], now: Sequence[CodedSite]) -> None:
    """Whether a call has the discrete sites that the states were begun for.

    Raises:
        ValueError: If a site differs, is missing, or is there besides.
    """
    known = {site.name: site for site in begun}
    for name in {**known, **{site.name: site for site in now}}:
        pair = known.get(name), next((site for site in now if site.name == name), None)
        shapes = [site and (*site.batch_shape, *site.event_shape) for site in pair]
        if shapes[0] != shapes[1]:
            raise _other_shape(name, *shapes)
        sizes = [len(site.support) for site in pair if site is not None]
        if sizes[0] != sizes[-1]:
            raise _other_number(name, sizes[0], sizes[-1])


def _other_shape(name: str, before: Any, now: Any) -> ValueError:
    return ValueError(
        f"site '{name}' had shape {before} per datum when its states were made, and is now {now}. "
        "All data must have the same discrete sites; pad them, and mask the padding."
    )


def _other_number(name: str, before: int, now: int | None) -> ValueError:
    return ValueError(
        f"site '{name}' had {before} values when its states were made, and now has {now}. Give it "
        "the largest number in each call, with logits of -inf where a value cannot be, or make a "
        "guide for each number."
    )


def _num_values(site: Site) -> int | None:
    """The values of integers in a row; None if they are not, or would have to be waited for."""
    support = site.base.support
    if not hasattr(support, "upper_bound"):
        return None
    low, high = (torch.as_tensor(b) for b in (support.lower_bound, support.upper_bound))
    return int(high.max()) - int(low.min()) + 1 if high.device.type == "cpu" else None


def _rows_of(trace: poutine.Trace, frame: Any) -> Tensor:
    """The subsample indices of a plate, in the range of its full size."""
    taken = rows_of_plates(trace).get(frame.name)
    full = frame.full_size or frame.size
    if taken is None or taken.indices is None:
        if frame.size != full:
            raise ValueError(
                f"the rows of plate '{frame.name}', {frame.size} of {full}, are not to be found. "
                "Make the plate inside of the model, with pyro.plate."
            )
        return torch.arange(full)
    indices = torch.as_tensor(taken.indices)
    check_indices(frame.name, indices, full)
    return indices.long()


def _unmasked(
    latents: dict[str, Site], space: Space, sizes: tuple[int, ...]
) -> Bool[Tensor, "B H"] | None:
    """Where no mask, of a handler or of the distribution, takes a latent out of the model."""
    masks = {site.name: entry_mask(latents[site.name], len(site.cells)) for site in space.sites}
    if all(mask.numel() == 1 and bool(mask) for mask in masks.values()):
        return None
    parts = []
    for site in space.sites:
        part = by_datum(masks[site.name][None], site, space.layout, sizes, 0)[0]
        parts.append(part.to(site.support.device))
    return torch.cat(parts, -1)


def prior_probs(latents: dict[str, Site], space: Space) -> Float[Tensor, "H V"]:
    """Probabilities of each latent's codes in the model, in the mean of a run's data; 0 beyond."""
    num_codes, parts = max(space.cardinalities), []
    for site in space.sites:
        base = latents[site.name].base
        probs = base.log_prob(base.enumerate_support()).exp()
        for dim in space.layout.dims:
            if probs.dim() + dim - len(site.cells) > 0:
                probs = probs.mean(dim - len(site.cells), keepdim=True)
        probs = by_datum(probs, site, space.layout, (1,) * len(space.layout.dims), 0)[:, 0]
        parts.append(torch.nn.functional.pad(probs.T, (0, num_codes - len(site.support))))
    return torch.cat(parts)


def open_plates(batch: Minibatch, name: str, only: Collection[str] | None = None) -> ExitStack:
    """The plates of a site, with the rows of this call; those that handlers have seen stay.

    Args:
        batch: What the call is about.
        name: Of the site.
        only: Names of plates, if not all are to be opened.
    """
    stack, plates = ExitStack(), batch.latents[name].plates
    for frame in (f for n, f in plates.items() if only is None or n in only):
        taken = rows_of_plates(batch.subsamples).get(frame.name)
        rows = None if taken is None else taken.indices
        with poutine.block():
            plate = pyro.plate(
                frame.name, frame.full_size or frame.size, frame.size, rows, frame.dim
            )
        stack.enter_context(plate)
    return stack
