"""Whether the data of a program are those of the rows that its plates draw.

A guide that keeps something of each datum keeps it by rows. A plate that draws rows of its own,
around data that are passed, says nothing of whose these are.
"""

from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any

import pyro
import torch
from pyro.ops.provenance import get_provenance, track_provenance
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_dvae.programs.draw import run_program
from pyro_dvae.programs.messages import Rows, is_subsample, rows_of_plates
from pyro_dvae.programs.processes import hidden
from pyro_dvae.programs.sites import Pair, Run, Site, sample_sites
from pyro_dvae.programs.structure.looking import only_looking
from pyro_dvae.programs.structure.tracking import Exits

__all__ = ["Subsampling", "check_guide", "check_indices", "check_rows", "check_whole_plates"]


class _Rows(Messenger):
    """Marks the rows that plates draw by themselves, and notes how many of how many."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn: dict[str, tuple[int, int]] = {}
        self._given: set[str] = set()

    def _pyro_sample(self, msg: Any) -> None:
        if is_subsample(msg) and msg["value"] is not None:
            self._given.add(msg["name"])

    def _pyro_post_sample(self, msg: Any) -> None:
        name = msg["name"]
        if is_subsample(msg) and name not in self._given and not (rows := Rows.of(msg)).are_all:
            self.drawn[name] = rows.sizes
            msg["value"] = track_provenance(rows.indices, frozenset({name}))


def check_rows(
    model: Callable, args: tuple, kwargs: dict, plates: Collection[str], guide: str
) -> None:
    """Check that what is observed under plates depends on the rows that these draw.

    A plate to which its rows are given says itself whose the data are, and one of all rows has no
    others. Where Python asks for the rows they may lead to anything.

    Args:
        model: The model.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        plates: Under which the guide keeps something of each row.
        guide: What it is called.

    Raises:
        ValueError: If a plate draws rows, and nothing that is observed under it depends on them.
    """

    def run() -> tuple[dict[str, Site], _Rows, set[str]]:
        with pyro.validation_enabled(False), hidden(), _Rows() as rows, Exits() as exits:
            return sample_sites(run_program(model, args, kwargs)), rows, exits.names

    sites, rows, asked = only_looking(run)
    for name in (n for n in plates if n in rows.drawn and n not in asked):
        seen = [s for s in sites.values() if s.is_observed and name in s.plates]
        if seen and not any(name in _led_to(site) for site in seen):
            few, size = rows.drawn[name]
            raise ValueError(
                f"plate '{name}' draws {few} of {size} rows by itself, but {_listed(seen)} under "
                f"it does not depend on which: {guide} would take these data for others, whose "
                "rows they are not. Pass the rows along with the data, as in fit(svi, x, "
                f"torch.arange({size}), batch_size={few}), and give them to the plate, "
                f'pyro.plate("{name}", {size}, subsample=rows); or pass all data, and let the '
                f'model take those of the rows, `with pyro.plate("{name}", {size}, '
                f"subsample_size={few}) as rows`, obs=x[rows]."
            )


def check_guide(pair: Pair, run: Run) -> None:
    """Check that data are those of the rows by which a guide keeps something, as `check_rows`.

    Args:
        pair: The programs.
        run: Of them.

    Raises:
        ValueError: If the guide's draws depend on rows that a plate draws, and data do not.
    """
    taken = rows_of_plates(run.guide_trace).values()
    if all(rows.are_all for rows in taken):
        return

    def look() -> tuple[dict[str, Site], _Rows]:
        with pyro.validation_enabled(False), hidden(), _Rows() as rows:
            return sample_sites(run_program(pair.guide, pair.args, pair.kwargs)), rows

    sites, rows = only_looking(look)
    kept = {n for n in rows.drawn if any(n in _led_to(site) for site in sites.values())}
    if kept:
        check_rows(pair.model, pair.args, pair.kwargs, kept, "the guide")


def _led_to(site: Site) -> frozenset[str]:
    """What the value of a site, or its share in the objective, depends on."""
    value = site.value if isinstance(site.value, Tensor) else torch.zeros(())
    return get_provenance(value) | get_provenance(site.term())


def _listed(seen: list[Site]) -> str:
    return ", ".join(f"'{site.name}'" for site in seen)


class Subsampling(Messenger):
    """Notes how many rows the plates of programs take, of how many."""

    def __init__(self) -> None:
        super().__init__()
        self.taken: dict[str, tuple[int, int]] = {}

    def _pyro_post_sample(self, msg: Any) -> None:
        if is_subsample(msg):
            self.taken.setdefault(msg["name"], Rows.of(msg).sizes)

    def stand_for(self, num_rows: int, num_parts: int = 1) -> int:
        """Count the data that some rows stand for: all that a plate takes these of.

        Args:
            num_rows: Rows.
            num_parts: Processes that have one part each of these.
        """
        lengths = (num_rows, num_rows // num_parts)
        sizes = (size for few, size in self.taken.values() if few in lengths and few != size)
        return next(sizes, num_rows)


def check_whole_plates(model: Callable, args: tuple, kwargs: dict, few: int, size: int) -> None:
    """Refuse a plate of all rows around a batch of few; for a model that fails with the batch.

    Args:
        model: The model.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        few: Rows of the batch.
        size: Rows of the data.

    Raises:
        ValueError: If there is such a plate.
    """
    plates = Subsampling()

    def run() -> None:
        with pyro.validation_enabled(False), hidden(), suppress(Exception), plates:
            run_program(model, args, kwargs)

    only_looking(run)
    whole = [name for name, taken in plates.taken.items() if taken == (size, size)]
    if whole and few < size:
        name = whole[0]
        raise ValueError(
            f"`batch_size`: a batch has {few} of the {size} rows of the data, but plate '{name}' "
            f'takes all {size}. If these are the data, write pyro.plate("{name}", {size}, '
            f"subsample_size=len(x)), with x the batch; for a guide with parameters of each row "
            f'pyro.plate("{name}", {size}, subsample=rows), and pass the rows along, fit(svi, x, '
            f"torch.arange({size}), batch_size={few}). Or leave `batch_size` out."
        )


def check_indices(name: str, indices: Tensor, size: int) -> None:
    """Check that the rows which a plate takes are its own, where they are on a CPU.

    Another device would have to be waited for.

    Raises:
        ValueError: If one is out of range.
    """
    if indices.device.type == "cpu" and len(indices):
        low, high = int(indices.min()), int(indices.max())
        if low < 0 or high >= size:
            raise ValueError(
                f"plate '{name}' has size {size}, so its rows are from 0 to {size - 1}; got rows "
                f"from {low} to {high}. Check `subsample`, the rows of this minibatch."
            )
