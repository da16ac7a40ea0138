"""Ranks of simulated truths, tested for what they should be: uniform.

Where the data share no latent, each datum of a simulation has a rank of its own. Where they do, its
ranks depend on each other: what is shared counts once a simulation, and the others are compared
with what the draws say of each other (`ops.calibration.exchange_p_value`). NumPy alone, so but for
the package's name this file is the same in both packages.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from typing import Any, NamedTuple

import numpy as np

from numpyro_dvae.diagnostics.arrays import NamedArray, split_data
from numpyro_dvae.guides import AutoDiscrete
from numpyro_dvae.ops.calibration import (
    exchange_p_value,
    random_ranks,
    ranks_of_all,
    uniform_p_value,
)

__all__ = [
    "Calibration",
    "Simulated",
    "Tally",
    "check_bins",
    "choose_simulations",
    "on_simulated_data",
    "settled",
    "shared_latents",
]

_ROUNDING = 1e-5  # log-densities nearer than this, as a part of themselves, are of one state
_PER_BIN = 5  # ranks expected in a bin, below which bins are wider
_LEVEL = 0.01  # share of exact guides that are called miscalibrated
_RANKS_WANTED, _MOST_SIMULATIONS, _LEAST_SIMULATIONS = 2000, 100, 5


class Calibration(NamedTuple):
    """Ranks of true latents among the draws of the guide, and whether they are uniform.

    "log_p" is the joint density of each datum; where the data share latents, "log_p of all" that of
    a whole simulation.
    """

    ranks: dict[str, np.ndarray]  # site, or "log_p" -> (ranks, *latents), in 0 ... K; -1 if masked
    p_values: dict[str, np.ndarray]  # of each latent
    num_draws: int  # K
    spreads: dict[str, np.ndarray]  # of the count in each bin if calibrated: (*latents, bins)
    num_simulations: int
    shared: tuple[str, ...] = ()  # latents that the data share

    def counts(self, name: str) -> np.ndarray:
        """Ranks in each bin, of each latent: (*latents, bins)."""
        num_bins = self.spreads[name].shape[-1]
        return _count(self.ranks[name], self.num_draws, num_bins)

    @property
    def level(self) -> float:
        """P-value below which a latent is called miscalibrated: 1 %, shared by all tests."""
        return _LEVEL / sum(np.size(values) for values in self.p_values.values())

    @property
    def miscalibrated(self) -> list[str]:
        """Sites, or "log_p", with too small a p-value; of an exact guide in 1 % of all cases."""
        return sorted(n for n, values in self.p_values.items() if np.min(values) < self.level)

    def __repr__(self) -> str:
        """Lines with the verdict, and what it does not say."""
        p_values = np.concatenate([np.ravel(values) for values in self.p_values.values()])
        wrong = ", ".join(self.miscalibrated)
        verdict = f"NOT calibrated: {wrong}" if wrong else "calibrated, as far as they can tell"
        num_data = len(self.ranks["log_p"]) // self.num_simulations
        smallest = f"{p_values.min():.2g}" if p_values.min() > 0 else "below 1e-300"
        listed = ", ".join(self.shared)
        notes = [f"The data share {listed}, so that simulations count, not data."] * bool(listed)
        if not wrong:
            notes.append(
                "Smaller faults take more simulations to find, as that of a guide which is deaf to "
                "data that say little."
            )
        line = (
            f"{self.num_simulations} simulations of {num_data} data, ranks among {self.num_draws} "
            f"draws: {verdict} (smallest of {p_values.size} p-values {smallest}; below "
            f"{self.level:.2g} in 1 % of all runs with an exact guide)."
        )
        return "\n".join([line, *notes])


class Simulated(NamedTuple):
    """Latents that made simulated data, and draws of the guide given these; the truth is first."""

    latents: Mapping[str, NamedArray]  # (1 + K, *dims)
    counted: Mapping[str, NamedArray]  # where no mask silences a latent
    log_p: Any  # (1 + K, *plates)
    shared_log_p: Any  # (1 + K,), of what the data share


class Tally:
    """Ranks of simulations, as they come.

    Args:
        plates: Those that make a datum.
        shared: Latents that the data share.
        num_simulations: How many will come.
        num_draws: K.
        num_bins: The most bins of the ranks.
        rng: Breaks ties.
    """

    def __init__(
        self,
        plates: tuple[str, ...],
        shared: tuple[str, ...],
        num_simulations: int,
        num_draws: int,
        num_bins: int,
        rng: np.random.Generator,
    ) -> None:
        self.plates, self.shared, self.rng = plates, shared, rng
        self.num_simulations, self.num_draws, self.num_bins = num_simulations, num_draws, num_bins
        self.are_apart = bool(plates) and not shared  # the data of a simulation
        self._ranks: dict[str, list[np.ndarray]] = {}
        self._members: dict[str, list[np.ndarray]] = {}  # counts, if each played the truth

    def add(self, simulated: Simulated) -> None:
        """Rank the truth of one simulation."""
        for name, array, counted in self._quantities(simulated):
            pooled = self._pooled(name, array)
            values, is_counted = (split_data(each, pooled) for each in (array, counted))
            tolerance = _ROUNDING if name.startswith("log_p") else 0.0
            is_counted = np.broadcast_to(is_counted[0], values.shape[1:])
            if pooled and not self.are_apart:
                ranks = ranks_of_all(values, self.rng.random(values.shape), tolerance)
                ranks = np.where(is_counted, ranks, -1)
                num_bins = self._bins(values.shape[1])
                counts = _count(ranks, self.num_draws, num_bins, axis=1)
                self._members.setdefault(name, []).append(counts)
                ranks = ranks[0]
            else:
                ranks = np.where(is_counted, self._rank(values, tolerance), -1)
            self._ranks.setdefault(name, []).append(ranks)

    def _rank(self, values: np.ndarray, tolerance: float) -> np.ndarray:
        """Of the first; where some are nearly tied, as whichever of them were first."""
        if tolerance:
            return ranks_of_all(values, self.rng.random(values.shape), tolerance)[0]
        return random_ranks(values[0], values[1:], self.rng.random(values.shape[1:]))

    def report(self) -> Calibration:
        """Test the ranks."""
        ranks = {name: np.concatenate(parts) for name, parts in self._ranks.items()}
        p_values, spreads = {}, {}
        for name, values in ranks.items():
            num_bins = self._bins(len(values) // self.num_simulations)
            if name in self._members:
                members = np.stack(self._members[name])
                p_values[name] = exchange_p_value(members, self.rng)
                spreads[name] = np.sqrt(members.var(1).sum(0))
            else:
                counts = _count(values, self.num_draws, num_bins)
                p_values[name] = uniform_p_value(counts)
                variance = counts.sum(-1, keepdims=True) * (1 - 1 / num_bins) / num_bins
                spreads[name] = np.sqrt(np.broadcast_to(variance, counts.shape))
        return Calibration(
            ranks, p_values, self.num_draws, spreads, self.num_simulations, self.shared
        )

    def _quantities(self, simulated: Simulated) -> Iterator[tuple[str, NamedArray, NamedArray]]:
        """What is ranked, and where it counts."""
        log_p, always = NamedArray(self.plates, simulated.log_p), np.ones(1, bool)
        yield "log_p", log_p, _like(log_p, always)
        if self.plates and self.shared:
            total = simulated.log_p.reshape(len(simulated.log_p), -1).sum(1, dtype=np.float64)
            total = NamedArray((), total + simulated.shared_log_p)
            yield "log_p of all", total, _like(total, always)
        for name, array in simulated.latents.items():
            yield name, array, _like(array, simulated.counted[name].values)

    def _pooled(self, name: str, array: NamedArray) -> tuple[str, ...]:
        """Dims that are pooled in one test: data, or all plates where data are no unit."""
        if self.are_apart:
            return tuple(plate for plate in self.plates if plate in array.dims)
        unnamed = (f"{name}_dim_", f"{name}_batch_")
        return tuple(dim for dim in array.dims if not dim.startswith(unnamed))

    def _bins(self, num_rows: int) -> int:
        """The most bins that have enough ranks each."""
        num_ranks = self.num_simulations * num_rows
        sizes = [n for n in range(2, self.num_bins + 1) if (self.num_draws + 1) % n == 0]
        return max((n for n in sizes if num_ranks >= _PER_BIN * n), default=sizes[0])


def choose_simulations(asked: int | None, num_data: int, shared: tuple[str, ...]) -> int:
    """How many simulations: by default as many as make enough ranks."""
    if asked is not None:
        return asked
    if shared:
        return _MOST_SIMULATIONS
    enough = -(-_RANKS_WANTED // max(num_data, 1))
    return min(max(enough, _LEAST_SIMULATIONS), _MOST_SIMULATIONS)


@contextmanager
def on_simulated_data() -> Iterator[None]:
    """Say of an error that it is of simulated data, where the given ones made none."""
    try:
        yield
    except ValueError as error:
        raise ValueError(
            f"data simulated from the model fail where those given do not: {str(error).strip()} "
            "(in simulated data). Write model and guide for all data that the model can make."
        ) from error


def settled(
    draw: Callable[[tuple], tuple[Any, Any]],
    fill: Callable[[Any], tuple],
    changes: Callable[[Any, Any], tuple[int, int]],
    args: tuple,
) -> tuple[Any, Any, tuple]:
    """Data and latents that a model draws of arguments which hold these data.

    A likelihood may be made of data before, as the mean of a pixel is of others. So the model draws
    again, by the same noise, until what it draws is what it was given: where each value is made of
    those before it, one more is so in each round.

    Args:
        draw: From arguments to data and latents, by noise that is the same in each call.
        fill: From data to arguments that hold them.
        changes: From two draws of data to how many values differ, and how many there are.
        args: The first arguments.

    Raises:
        ValueError: If values are made of each other.
    """
    made, _ = draw(args)
    for number in count(1):
        args = fill(made)
        again, latents = draw(args)
        num_changed, num_values = changes(made, again)
        if not num_changed:
            return again, latents, args
        if number + num_changed > num_values:
            break
        made = again
    raise ValueError(
        "what the model observes is made of the arguments that hold it, such that values depend on "
        "each other or on themselves, and cannot be drawn one after the other. Let a value depend "
        "on those before it alone, or pass what is no data as an argument of its own"
    )


def check_bins(num_simulations: int | None, num_draws: int, num_bins: int) -> None:
    """Raise unless the ranks fill the bins evenly."""
    if num_simulations is not None and num_simulations < 1:
        raise ValueError(f"`num_simulations` must be at least 1; got {num_simulations}.")
    if not 2 <= num_bins <= num_draws + 1 or (num_draws + 1) % num_bins:
        raise ValueError(
            f"`num_bins`, {num_bins}, must divide the number of ranks, `num_draws` + 1 = "
            f"{num_draws + 1}, into at least 2 bins."
        )


def shared_latents(
    guide: Any, shared: tuple[str, ...], readings: Mapping[str, Mapping[str, NamedArray]]
) -> tuple[str, ...]:
    """Latents of guide or model that the data share.

    Args:
        guide: The guide.
        shared: Sites that no datum owns.
        readings: Of a run: what the model observes, and subsamples.

    Raises:
        ValueError: If the guide has no posterior of simulated data.
    """
    latents = tuple(name for name in shared if name not in readings["observed"])
    if hasattr(guide, "for_data"):
        raise ValueError(
            "`result`: the guide keeps a posterior of each row of its data, as truncated guides "
            "do, and has none of simulated rows. Calibrate a guide that is a function of the data."
        )
    if any(isinstance(part, AutoDiscrete) for part in _parts(guide)):
        raise ValueError(
            "`result`: AutoDiscrete has parameters for the data that it was trained on, and none "
            "for simulated ones, so that ranks among its draws tell nothing of it. Use "
            "posterior_gap, which lists all states, importance_diagnostics or compare_restarts."
        )
    if latents and (plates := sorted(readings["subsample"])):
        raise ValueError(
            f"plates {plates} draw a subsample, but data share {list(latents)}, whose posterior "
            "is of all rows: simulations of some cannot tell whether it is calibrated. Let plates "
            "take all rows."
        )
    return latents


def _parts(guide: Any) -> list[Any]:
    """A guide, and those of which a list of guides is made."""
    modules = guide.modules() if hasattr(guide, "modules") else ()
    return [guide, *modules, *getattr(guide, "_guides", ())]


def _like(array: NamedArray, values: np.ndarray) -> NamedArray:
    """Values of one draw, broadcast to the dims of an array."""
    return NamedArray(array.dims, np.broadcast_to(values, (1, *array.values.shape[1:])))


def _count(ranks: np.ndarray, num_draws: int, num_bins: int, axis: int = 0) -> np.ndarray:
    """Ranks in each bin, which come last in place of an axis; masked ones are in none."""
    bins = ranks // ((num_draws + 1) // num_bins)
    return np.stack([(bins == i).sum(axis) for i in range(num_bins)], axis=-1)
