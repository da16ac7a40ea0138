"""What one call of a model is about: the rows of its plates, and what a mask takes out.

A truncated posterior keeps something for every datum, so it must know which data a minibatch holds.
The model says so itself, by its plates: their full sizes and the rows that they subsample.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpyro
from jaxtyping import Array, Bool, Float, Int
from numpyro.handlers import substitute

from numpyro_dvae.infer.closed_forms import closed_forms_of
from numpyro_dvae.programs.codes import CodedSite, Space, by_datum, find_space
from numpyro_dvae.programs.densities import entry_mask, may_silence
from numpyro_dvae.programs.handlers.rows import check_indices, check_rows
from numpyro_dvae.programs.messages import Rows, rows_of_plates
from numpyro_dvae.programs.sites import Site, sample_sites

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

    subsamples: dict[str, Array]  # the rows of each plate, as the call has drawn them
    full_sizes: dict[str, int]  # of each plate
    latents: dict[str, Site]  # the model's latent sites, of this call
    sizes: tuple[int, ...]  # of the shared plates
    num_data: int  # N, cells of the shared plates before subsampling
    rows: Int[Array, "B"]  # which of the N these data are
    in_range: Bool[Array, "B"]  # False for a row that is none of the N
    closed_forms: dict[str, Any]  # of sites that ask for them, the `models.ClosedForm`
    unmasked: Bool[Array, "B H"] | None  # False where a mask takes a latent out; None: nowhere
    drawn: Bool[Array, "B"] | None = None  # data whose masked latents are none; None: of no datum


def space_by_row(
    rng_key: Array, model: Callable, rest: Callable | None, args: tuple, kwargs: dict
) -> Space:
    """The states of a datum, of which a guide keeps some by the rows of plates: see `find_space`.

    Raises:
        ValueError: If a plate draws rows of its own, and the data are not those of these rows.
    """
    space = find_space(rng_key, model, rest, args, kwargs)
    check_rows(rng_key, model, args, kwargs, space.layout.plates, "TruncatedGuide")
    return space


def read_minibatch(trace: Mapping[str, Any], space: Space) -> Minibatch:
    """Read from a plain run of the model what it is about.

    Raises:
        ValueError: If no site is observed, or if a known row is out of range.
    """
    sites = sample_sites(trace)
    latents = {name: site for name, site in sites.items() if not site.is_observed}
    _check_observed(sites, latents)
    plates = rows_of_plates(trace)
    plates = _scanned_plates(sites, plates) | plates
    full_sizes = {name: plate.full_size for name, plate in plates.items()}
    subsamples = {name: plate.indices for name, plate in plates.items()}
    num_data, rows, in_range = 1, jnp.zeros(1, int), jnp.ones(1, bool)
    for name in space.layout.plates:
        indices, full = subsamples[name], full_sizes[name]
        check_indices(name, indices, full)
        in_range = (in_range[:, None] & (indices >= 0) & (indices < full)).ravel()
        rows, num_data = (rows[:, None] * full + indices).ravel(), num_data * full
    sizes = tuple(len(subsamples[name]) for name in space.layout.plates)
    return Minibatch(
        subsamples=subsamples,
        full_sizes=full_sizes,
        latents=latents,
        sizes=sizes,
        num_data=num_data,
        rows=rows,
        in_range=in_range,
        closed_forms=closed_forms_of(sites),
        unmasked=_unmasked(latents, space, sizes),
    )


def _scanned_plates(sites: Mapping[str, Site], known: Mapping[str, Rows]) -> dict[str, Rows]:
    """Of plates that are opened in the steps of a `scan`, which keeps their rows to itself."""
    frames = [f for site in sites.values() if site.is_scanned for f in site.plates.values()]
    frames = [frame for frame in frames if frame.name not in known]
    for frame in frames:
        if frame.size != frame.full_size:
            raise ValueError(
                f"plate '{frame.name}' is opened in a `scan` and subsamples, so that the rows of a "
                f"minibatch are not known. Make it before the `scan`, as data = numpyro.plate("
                f"'{frame.name}', ...), and enter it in each step: `with data as rows:`."
            )
    return {frame.name: Rows(jnp.arange(frame.size), frame.full_size) for frame in frames}


def _check_observed(sites: dict[str, Site], latents: dict[str, Site]) -> None:
    if len(latents) == len(sites):
        raise ValueError(
            "the model observes nothing in this call, so there is no posterior over its states. "
            "Pass the data; to sample from the prior, call the model alone."
        )


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


def _unmasked(
    latents: dict[str, Site], space: Space, sizes: tuple[int, ...]
) -> Bool[Array, "B H"] | None:
    """Where no mask takes a latent out of the model."""
    if not any(may_silence(latents[site.name]) for site in space.sites):
        return None
    parts = []
    for site in space.sites:
        mask = entry_mask(latents[site.name], len(site.cells))
        parts.append(by_datum(mask[None], site, space.layout, sizes, 0)[0])
    return jnp.concatenate(parts, -1)


def prior_probs(latents: dict[str, Site], space: Space) -> Float[Array, "H V"]:
    """Probabilities of each latent's codes in the model, in the mean of a run's data; 0 beyond."""
    num_codes, parts = max(space.cardinalities), []
    for site in space.sites:
        base = latents[site.name].base
        probs = jnp.exp(base.log_prob(base.enumerate_support()))
        for dim in space.layout.dims:
            if probs.ndim + dim - len(site.cells) > 0:
                probs = probs.mean(dim - len(site.cells), keepdims=True)
        probs = by_datum(probs, site, space.layout, (1,) * len(space.layout.dims), 0)[:, 0]
        parts.append(jnp.pad(probs.T, ((0, 0), (0, num_codes - len(site.support)))))
    return jnp.concatenate(parts)


@contextmanager
def open_plates(batch: Minibatch, name: str, only: Collection[str] | None = None) -> Iterator[None]:
    """The plates of a site, with the rows of this call.

    Args:
        batch: What the call is about.
        name: Of the site.
        only: Names of plates, if not all are to be opened.
    """
    plates = batch.latents[name].plates
    with ExitStack() as stack:
        for frame in (f for n, f in plates.items() if only is None or n in only):
            with substitute(data=batch.subsamples):
                full = batch.full_sizes[frame.name]
                plate = numpyro.plate(frame.name, full, frame.size, frame.dim)
            stack.enter_context(plate)
        yield
