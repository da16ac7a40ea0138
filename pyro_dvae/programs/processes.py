"""Programs of which each process runs some rows of a batch, and the record of all rows.

The sum over processes of what their sites weigh is what they weigh in one process:

- a site under a plate of data weighs as in the whole batch, N / B, where the plate has the size N
  of all data; where its size is that of the batch, it weighs as it does;
- what the data share is run by each of P processes, with the same draws, and weighs 1 / P.

An algorithm then sees the rows of the whole batch (`gathered`), and so has its temperatures,
baselines and averages as in one process. The gradient that a process computes is that of its own
rows, and the gradient is the sum over processes.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple, TypeVar

import torch
from pyro import get_param_store, poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import _PYRO_STACK
from torch import Tensor

from pyro_dvae.ops.noise import Share, draws_of_rows, sharing
from pyro_dvae.ops.processes import all_rows, among_all, summed
from pyro_dvae.programs.messages import is_subsample
from pyro_dvae.programs.sites import Layout, Site, sample_sites
from pyro_dvae.programs.structure.looking import only_looking

__all__ = [
    "OwnRows",
    "Sharded",
    "current_sharding",
    "drawing",
    "find_plates",
    "gathered",
    "hidden",
    "part_of",
    "plate_of_all",
    "sharded",
]

Record = TypeVar("Record", bound=Any)  # `record.Particles`, which knows of this file

_PARTICLES = "num_particles_vectorized"  # Pyro's plate of particles


class Sharded(Messenger):
    """Programs inside of it are run with the rows of one process; enter it by `sharded`.

    Args:
        share: Which rows.
        plates: Of each plate of data, whether its full size is that of the batch.
        sees: Which messages are its own; None is all.
    """

    def __init__(
        self,
        share: Share,
        plates: Mapping[str, bool],
        sees: Callable[[Any], bool] | None = None,
    ) -> None:
        super().__init__()
        self.share, self.plates, self.sees = share, plates, sees

    def weight(self, plates: Mapping[str, Any]) -> float:
        """The factor by which the scale of a site under these plates is to be multiplied."""
        is_whole = any(self.plates.get(name, False) for name in plates)
        return 1.0 if is_whole else 1.0 / self.share.size

    def _pyro_sample(self, msg: Any) -> None:
        if self.sees is not None and not self.sees(msg):
            return
        if is_subsample(msg):
            self._subsample(msg)
            return
        site = Site.of(msg)
        self._check(site)
        if (weight := self.weight(site.plates)) != 1.0:
            msg["scale"] = site.scale * weight
        if not (msg["done"] or site.is_observed or site.value is not None):
            with drawing(site):
                msg["value"] = msg["fn"](*msg["args"], **msg["kwargs"])

    def _subsample(self, msg: Any) -> None:
        """The rows that a plate draws of the data are those of all processes, of which some."""
        whole = self.plates.get(msg["name"])
        if whole is False and not msg["done"] and msg["value"] is None:
            share, fn = self.share, msg["fn"]
            everyone = type(fn)(fn.size, share.rows * share.size, device=fn.device)()
            msg["value"] = everyone[share.rank * share.rows :][: share.rows]

    def _check(self, site: Site) -> None:
        for plate, frame in site.plates.items():
            is_known = plate in self.plates or plate == _PARTICLES
            if not is_known and frame.size == self.share.rows and site.name not in self.plates:
                raise ValueError(
                    f"site '{site.name}' is under plate '{plate}', which has as many rows, "
                    f"{frame.size}, as the data of each process, but is none of the model's plates "
                    f"of data, {sorted(self.plates)}. Give it another `batch_size`, or put the "
                    "site under one of these."
                )


@contextmanager
def sharded(share: Share, plates: Mapping[str, bool]) -> Iterator[None]:
    """Run a block whose programs have the rows of one process."""
    with sharing(share), Sharded(share, plates):
        yield


@contextmanager
def hidden(hide: Callable[[Any], bool] | None = None) -> Iterator[None]:
    """Run a block whose messages handlers around do not see, whoever shares its rows excepted.

    Args:
        hide: Which of the messages; None is all.
    """
    found = current_sharding()
    block = poutine.block() if hide is None else poutine.block(hide_fn=hide)
    with block, nullcontext() if found is None else Sharded(found.share, found.plates, hide):
        yield


def current_sharding() -> Sharded | None:
    """The innermost `Sharded` that programs are in, if any."""
    return next((h for h in reversed(_PYRO_STACK) if isinstance(h, Sharded)), None)


def drawing(site: Site) -> Any:
    """A block that draws a site: in it, each row gets what one process would draw for it."""
    found = current_sharding()
    if found is None:
        return nullcontext()
    dims = [frame.dim for name, frame in site.plates.items() if name in found.plates]
    if not dims:
        return nullcontext()
    event_dim = site.fn.event_dim
    return draws_of_rows(dims[0] - event_dim, dims[0] - event_dim + 1, dims[0])


def plate_of_all(frame: Any) -> tuple[int, int]:
    """The size of a plate over all processes, and from where its rows here are counted."""
    full, found = frame.full_size or frame.size, current_sharding()
    if found is None or not found.plates.get(frame.name):
        return full, 0
    return found.share.size * full, found.share.rank * full


def find_plates(
    model: Callable, some: tuple[tuple, dict], more: tuple[tuple, dict], num_rows: int
) -> dict[str, bool]:
    """The model's plates of data, and of each whether its full size is that of the batch.

    They are those whose size goes with the rows of the arguments.

    Args:
        model: The model.
        some: Arguments with `num_rows` rows.
        more: Arguments with a row more.
        num_rows: How many.

    Raises:
        ValueError: If the model cannot be run so, or if data are under no such plate.
    """
    few, many = (_sites_of(model, *call, num_rows) for call in (some, more))
    if few.keys() != many.keys():
        odd = sorted(few.keys() ^ many.keys())[0]
        raise _unfit(f"site '{odd}' comes and goes with the number of rows")
    plates: dict[str, bool] = {}
    for name, site in few.items():
        for plate, frame in site.plates.items():
            sizes = [_sizes(frame), _sizes(many[name].plates[plate])]
            if sizes[0] != sizes[1]:
                plates[plate] = _goes_with_rows(plate, sizes, num_rows)
    for name, site in few.items():
        if not plates.keys() & site.plates.keys() and _shape(site) != _shape(many[name]):
            raise _unfit(f"site '{name}' has data, but is under no plate of theirs")
    if not plates:
        raise _unfit(f"no plate of the model has the {num_rows} rows of its data")
    return plates


def _sites_of(model: Callable, args: tuple, kwargs: dict, num_rows: int) -> dict[str, Site]:
    """The sites of a plain run, which leaves no parameter behind."""

    def run() -> dict[str, Site]:
        with poutine.block(), get_param_store().scope():
            return sample_sites(poutine.trace(model).get_trace(*args, **kwargs))

    try:
        return only_looking(run)
    except (RuntimeError, ValueError, IndexError) as error:
        line = next(iter(str(error).splitlines()), type(error).__name__)
        raise _unfit(f"it cannot be run with {num_rows} rows: {line}") from error


def _sizes(frame: Any) -> tuple[int, int]:
    return frame.size, frame.full_size or frame.size


def _shape(site: Site) -> tuple[int, ...]:
    return *site.fn.batch_shape, *site.fn.event_shape


def _goes_with_rows(plate: str, sizes: list[tuple[int, int]], num_rows: int) -> bool:
    (few, full), (many, full_of_many) = sizes
    is_whole = full_of_many != full
    if (few, many) != (num_rows, num_rows + 1) or (is_whole and full != few):
        raise _unfit(
            f"plate '{plate}' has {few} of {full} rows, given {num_rows}, and {many} of "
            f"{full_of_many}, given {num_rows + 1}"
        )
    return is_whole


def _unfit(what: str) -> ValueError:
    return ValueError(
        f"the batch cannot be shared among processes, as each runs the model with some of its "
        f"rows: {what}. Put the data under one plate, pyro.plate(name, len(x)), or, with N data in "
        "all, pyro.plate(name, N, subsample_size=len(x)), and pass `batch_size` where a plate "
        "subsamples by itself; or train in one process."
    )


_SHARED = ("shared_likelihood", "shared_prior", "shared_q")


class OwnRows(NamedTuple):
    """Where the rows of this process are in a record of all."""

    axis: int  # of arrays with K particles in front
    start: int
    length: int
    size: int  # processes


def part_of(particles: Any, array: Tensor) -> Tensor:
    """Cut this process's own rows out of an array ``(K, *plates)`` of all rows of a record."""
    part = particles.extras.get("own_rows")
    return array if part is None else array.narrow(part.axis, part.start, part.length)


def gathered(particles: Record, layout: Layout) -> Record:
    """The record of all rows; the one that is given where nothing is shared.

    Statistics of closed forms stay those of one's own rows, which `part_of` tells.

    Raises:
        ValueError: If the data are not under a plate that makes a datum.
    """
    part = _own_rows(layout)
    if part is None:
        return particles
    fields = particles._asdict()
    fields |= {name: summed(fields[name]) for name in _SHARED}
    scale, kept = fields["scale"], {name: fields.pop(name) for name in (*_SHARED, "scale")}
    if isinstance(scale, Tensor) and scale.dim() >= part.axis:
        fields["scale"] = kept.pop("scale")[None]  # for the time being with an axis of particles
    found: list[Tensor] = []
    _mapped(fields, lambda array: found.append(array) if _has_rows(array, part) else None)
    everyone = iter(_all_rows(found, part.axis))
    fields = _mapped(
        fields,
        lambda array: next(everyone) if _has_rows(array, part) else _mean(array, part.size),
    )
    if "scale" in fields:
        fields["scale"] = fields["scale"][0]
    fields |= {**kept, "extras": {**fields["extras"], "own_rows": part}}
    return particles._replace(**fields)


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
    if getattr(value, "of_own_rows", False):
        return value
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _mapped(entry, change) for key, entry in value.items()}
    if isinstance(value, tuple | list):
        entries = [_mapped(entry, change) for entry in value]
        return type(value)(*entries) if hasattr(value, "_fields") else type(value)(entries)
    return value


def _has_rows(array: Tensor, part: OwnRows) -> bool:
    is_number = array.dim() == 0
    if is_number or (array.dim() > part.axis and array.shape[part.axis] == 1 < part.length):
        return False
    if array.dim() <= part.axis or array.shape[part.axis] != part.length:
        raise ValueError(
            f"`reads` of a loss has made an array of shape {tuple(array.shape)}, but axis "
            f"{part.axis} is to hold the {part.length} rows that this process has. Let it have the "
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
