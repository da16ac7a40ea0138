"""The record of the rows of all processes, made of the records that each has of its own.

An algorithm sees the rows of the whole batch, and so has its temperatures, baselines and averages
as in one process. The gradient that a process computes is that of its own rows, and the gradient is
the sum over processes.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_dvae.ops.processes import all_rows, among_all, summed
from pyro_dvae.programs.pair import Layout
from pyro_dvae.programs.processes.sharding import current_sharding
from pyro_dvae.programs.readers.statistics import Factors, Statistic
from pyro_dvae.programs.record import Particles

__all__ = ["OwnRows", "gathered", "part_of"]

_SHARED = ("shared_likelihood", "shared_prior", "shared_q")


class OwnRows(NamedTuple):
    """Where the rows of this process are in a record of all."""

    axis: int  # of arrays with K particles in front
    start: int
    length: int
    size: int  # processes


def part_of(particles: Particles, array: Tensor) -> Tensor:
    """Of an array ``(K, *plates)`` on all rows of a record, the part on this process's own."""
    own = particles.extras.get("own_rows")
    return array if own is None else array.narrow(own.axis, own.start, own.length)


def gathered(particles: Particles, layout: Layout) -> Particles:
    """The record of all rows; the one that is given where nothing is shared.

    Statistics of closed forms stay those of one's own rows, which `part_of` tells.

    Raises:
        ValueError: If the data are not under a plate that makes a datum.
    """
    own = _own_rows(layout)
    if own is None:
        return particles
    fields = particles._asdict()
    fields |= {name: summed(fields[name]) for name in _SHARED}
    scale, kept = fields["scale"], {name: fields.pop(name) for name in (*_SHARED, "scale")}
    if isinstance(scale, Tensor) and scale.dim() >= own.axis:
        fields["scale"] = kept.pop("scale")[None]  # for the time being with an axis of particles
    found: list[Tensor] = []
    _mapped(fields, lambda array: found.append(array) if _has_rows(array, own) else None)
    everyone = iter(_all_rows(found, own.axis))
    fields = _mapped(
        fields,
        lambda array: next(everyone) if _has_rows(array, own) else _mean(array, own.size),
    )
    if "scale" in fields:
        fields["scale"] = fields["scale"][0]
    return Particles(**{**fields, **kept, "extras": {**fields["extras"], "own_rows": own}})


def _own_rows(layout: Layout) -> OwnRows | None:
    """Where the rows of this process are; None if nothing is shared."""
    sharding = current_sharding()
    if sharding is None:
        return None
    axes = [1 + i for i, name in enumerate(layout.plates) if name in sharding.plates]
    if len(axes) != 1 or layout.asked:
        why = "Python asks for their draws" if layout.asked else "they share none of these alone"
        which = f"of the discrete sites {sorted(layout.credited)} of the guide, {why}"
        if not layout.credited:
            which = "the guide has no latent under one, so a particle has one weight for all rows"
        raise ValueError(
            f"the batch cannot be shared among processes by its plates of data, "
            f"{sorted(sharding.plates)}: {which}. Train in one process, or put latents under the "
            "plate of data; for continuous ones alone there is Trace_ELBO."
        )
    share = sharding.share
    return OwnRows(axes[0], share.rank * share.rows, share.rows, share.size)


def _mapped(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """Arrays changed one by one, wherever they are."""
    if isinstance(value, Statistic | Factors):
        return value
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _mapped(entry, change) for key, entry in value.items()}
    if isinstance(value, tuple | list):
        entries = [_mapped(entry, change) for entry in value]
        return type(value)(*entries) if hasattr(value, "_fields") else type(value)(entries)
    return value


def _has_rows(array: Tensor, own: OwnRows) -> bool:
    is_number = array.dim() == 0
    if is_number or (array.dim() > own.axis and array.shape[own.axis] == 1 < own.length):
        return False
    if array.dim() <= own.axis or array.shape[own.axis] != own.length:
        raise ValueError(
            f"`reads` of a loss has made an array of shape {tuple(array.shape)}, but axis "
            f"{own.axis} is to hold the {own.length} rows that this process has. Let it have the "
            "particles in front, and then the plates."
        )
    return True


def _mean(array: Tensor, size: int) -> Tensor:
    """Of what does not go by rows; each process has its part of the gradient."""
    return summed(array) / size if array.is_floating_point() else array


def _all_rows(arrays: list[Tensor], axis: int) -> list[Tensor]:
    """All rows of arrays, those of one type sent together."""
    found: list[Any] = [None] * len(arrays)
    for dtype in dict.fromkeys(array.dtype for array in arrays):
        places = [i for i, array in enumerate(arrays) if array.dtype == dtype]
        leading = [arrays[i].movedim(axis, 0) for i in places]
        columns = [array.detach().flatten(1) for array in leading]
        everyone = all_rows(torch.cat(columns, 1)).split([c.shape[1] for c in columns], 1)
        for i, array, rows in zip(places, leading, everyone, strict=True):
            rows = rows.reshape(len(rows), *array.shape[1:]).contiguous()
            found[i] = among_all(array, rows).movedim(0, axis)
    return found
