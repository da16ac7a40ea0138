"""Whether the data keep apart: decided by states that differ from one datum to the next.

A plate declares its cells independent, and what lists the states of a datum relies on it: all data
go through theirs side by side. A program that centres latents by their mean over the data,
normalises a batch or takes a neighbour's draw breaks that promise without a word. So a few states
are run in all cells at once, then mixed, some cells in one and some in another: each cell must have
what it has where all are in its state. Nor may operations lead to it from others (`owners`). What a
program raises on the way is its own, and shown.

References:
    [1] Sperner. Ein Satz über Untermengen einer endlichen Menge. Mathematische Zeitschrift, 1928.
"""

import itertools
import math
import warnings
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import pyro
import torch
from jaxtyping import Float, Integer
from torch import Tensor

from pyro_dvae.programs.draw import Draw, run_pair
from pyro_dvae.programs.record import make_record
from pyro_dvae.programs.sites import Layout, Pair
from pyro_dvae.programs.structure.looking import only_looking, raise_slip, same_but_rounding
from pyro_dvae.programs.structure.owners import Owners

__all__ = ["check_cells", "with_cells_apart"]

_AS_ONE = "draw the latents of all data under no plate, as one with .to_event(1)"
_AT_ONCE = 8  # trials in a run, and data from which on they are so many
_KINDS = ("log_likelihood", "log_prior", "log_q_discrete", "log_q_pathwise")


def with_cells_apart(pair: Pair, values: Mapping[str, Tensor]) -> Layout:
    """The layout of a pair; if its data do not keep apart, without plates, which is said.

    All data are then one, whose states are those of all together.

    Args:
        pair: The programs, with their layout.
        values: Of all discrete latents of a datum, S states in front.
    """
    if _are_apart(pair, values):
        return pair.layout
    warnings.warn(
        f"under plate {sorted(pair.layout.plates)} the log-density of a datum changes with the "
        "draws of others (a mean over the data, a batch normalisation, an index from the left), "
        "so the states of all data are listed together: right, but for few data alone. Use a "
        "datum's own draws in its density, or a loss that samples (Reinforce_ELBO, DAPS_ELBO), in "
        "which all their draws share one weight.",
        stacklevel=8,
    )
    return pair.layout._replace(plates=(), dims=())


def check_cells(pair: Pair, values: Mapping[str, Tensor], way_out: str = _AS_ONE) -> None:
    """Refuse a pair whose data do not keep apart, and say what to do; arguments as above.

    Raises:
        ValueError: If no datum has a posterior of its own.
    """
    plates = sorted({*pair.layout.plates, *pair.layout.mixed})
    if not _are_apart(pair, values):
        raise ValueError(
            f"under plate {plates} the log-density of a datum changes with the "
            "draws of others (a mean over the data, a batch normalisation, an index from the "
            "left), so no datum has a posterior of its own. Use a datum's own draws in its "
            f"density, or {way_out}."
        )


def _are_apart(pair: Pair, values: Mapping[str, Tensor]) -> bool:
    """Whether no datum's log-density changes with the draws of others."""
    if pair.layout.mixed:  # that is known already
        return False
    if not pair.layout.plates or not values:
        return True
    return only_looking(lambda: _keep_apart(pair, values))


def _keep_apart(pair: Pair, values: Mapping[str, Tensor]) -> bool:
    count = len(next(iter(values.values())))
    few = sorted({0, count - 1, count // 3})
    state = pyro.util.get_rng_state()
    run = run_pair(pair, Draw(pair.layout, None))
    dims = {name: site.fn.event_dim for name, site in {**run.model, **run.guide}.items()}

    def by_datum(given: Mapping[str, Tensor], size: int | None = None) -> Float[Tensor, "4 K *p"]:
        pyro.util.set_rng_state(state)  # the same noise and subsample in each run
        run = run_pair(pair, Draw(pair.layout, size, given))
        record = make_record(run, pair.layout, size or 1)
        return torch.stack([getattr(record, kind) for kind in _KINDS])

    def mixed(places: Tensor) -> dict[str, Tensor]:
        return {n: _mixed(v[few], places[None], pair.layout, dims[n]) for n, v in values.items()}

    def same_at_once(some: Tensor) -> bool:
        rows = list(map(mixed, some))
        given = {name: torch.stack([row[name] for row in rows]) for name in values}
        wanted = torch.cat([expected(places) for places in some], 1)
        try:
            return same_but_rounding(by_datum(given, len(some)), wanted)
        except Exception as error:  # whatever it says of an axis that it does not know
            raise_slip(error)
            return False

    def expected(places: Tensor) -> Tensor:
        return alone.gather(0, places.to(alone.device).expand(1, *alone.shape[1:]))[0]

    alone = torch.stack([by_datum({n: v[k] for n, v in values.items()}) for k in few])
    again = by_datum({n: v[few[0]] for n, v in values.items()})
    sizes = alone.shape[3:]
    is_led = _leads(by_datum, mixed(torch.zeros(sizes, dtype=torch.long)), pair.layout, dims)
    if is_led or sizes.numel() == 1 or not same_but_rounding(alone[0], again):  # or noisy by itself
        return not is_led
    trials = torch.stack(list(_mixtures(sizes, len(few))))
    if sizes.numel() > _AT_ONCE and all(map(same_at_once, trials.split(_AT_ONCE))):
        return True
    return all(same_but_rounding(by_datum(mixed(each)), expected(each)) for each in trials)


def _leads(
    by_datum: Callable[[Mapping[str, Tensor]], Tensor],
    given: Mapping[str, Tensor],
    layout: Layout,
    event_dims: Mapping[str, int],
) -> bool:
    """Whether operations lead from one cell to another."""
    for place, dim in enumerate(layout.dims):
        axes = {name: dim - event_dims[name] for name in given}
        with Owners(next(v.shape[axes[name]] for name, v in given.items())) as owners:
            for name, value in given.items():
                owners.give(value, axes[name])
            if owners.has_others(by_datum(given), place + 2):
                return True
    return False


def _mixtures(sizes: torch.Size, num_states: int) -> Iterator[Integer[Tensor, "*plates"]]:
    """Which of the states each cell is in: all in one, one in another, then mixtures.

    Neighbours differ, then pairs of them, then any. Of any two cells one is in the first state and
    the other in the last, and the other way round: those in the first state are other cells, as
    many, for each [1].
    """
    size, last = math.prod(sizes), num_states - 1
    count, rng, one = np.arange(size), np.random.default_rng(0), np.zeros(size, int)
    one[size // 2] = 1
    drawn = rng.integers(num_states, size=size)
    ways = [np.full(size, state) for state in range(num_states)]
    ways += [count % num_states, count // 2 % num_states, drawn]
    ways += [np.where(one, other, state) for state in (0, last) for other in range(num_states)]
    length = next(k for k in itertools.count(2) if math.comb(k, k // 2) >= size)
    for place in range(length):
        taken = itertools.islice(itertools.combinations(range(length), length // 2), size)
        ways.append(np.array([last if place in places else 0 for places in taken]))
    for way in ways:
        yield torch.as_tensor(way).reshape(sizes)


def _mixed(
    value: Tensor, places: Integer[Tensor, "1 *plates"], layout: Layout, event_dim: int
) -> Tensor:
    """Each cell's value, of those in front, without the axis that they have there."""
    shape = [1] * layout.nesting
    for dim, size in zip(layout.dims, places.shape[1:], strict=True):
        shape[dim] = size
    index = places.reshape(*shape, *[1] * event_dim)
    missing = index.dim() - (value.dim() - 1)
    value = value.reshape(len(value), *[1] * missing, *value.shape[1:])
    whole = torch.broadcast_shapes(value.shape[1:], index.shape)
    index, value = index.expand(whole).to(value.device), value.expand(len(value), *whole)
    return value.gather(0, index[None])[0]
