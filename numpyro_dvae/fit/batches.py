"""Where the minibatches come from, and the compiled steps over them.

They are arrays cut at random or the user's own iterable. Both kinds know their position, so that
a resumed run sees the data in the same order. A batch is a pair of positional and keyword
arguments for the model and guide. Its arrays are arguments of the compiled step; the rest, such
as numbers and None, are constants of it: a new value of one compiles anew.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpyro.infer.svi import SVIState

from numpyro_dvae.fit import rng as _rng

Batch = tuple[tuple[Any, ...], dict[str, Any]]
Update = Callable[[SVIState, Batch], tuple[SVIState, Array]]


class Layout(NamedTuple):
    """What of a batch is not an array; hashable, so that a compiled step can be known by it."""

    structure: Any
    constants: tuple[tuple[type, Any], ...]  # with types, as 1 == True == 1.0

    def join(self, arrays: list[Array]) -> Batch:
        """Put arrays back where `split` found them."""
        arrays_left = iter(arrays)
        leaves = [next(arrays_left) if kind is Array else v for kind, v in self.constants]
        return jax.tree.unflatten(self.structure, leaves)


def split(batch: Batch) -> tuple[list[Array], Layout]:
    """Take a batch apart into its arrays and the rest."""
    leaves, structure = jax.tree.flatten(batch)
    found = [isinstance(leaf, jax.Array | np.ndarray) for leaf in leaves]
    constants = tuple(
        (Array, None) if is_array else (type(leaf), leaf)
        for leaf, is_array in zip(leaves, found, strict=True)
    )
    arrays = [leaf for leaf, is_array in zip(leaves, found, strict=True) if is_array]
    return arrays, Layout(structure, constants)


class Steps(NamedTuple):
    """What some steps bring, still on the device."""

    svi_state: SVIState
    losses: Array  # of which the first ones, as many as there were steps, count
    finite: Any  # whether all values of the batch are finite


@runtime_checkable
class Batches(Protocol):
    """An endless stream of batches whose position can be saved and restored."""

    most: int  # steps that can be taken at once

    def first(self) -> Batch:
        """Return the next batch without using it up."""

    def take_steps(self, svi_state: SVIState, step: int, count: int) -> Steps:
        """Take `count` steps after `step`; the old state is given away."""

    def state(self) -> dict[str, Any]:
        """Return the position, as plain values."""

    def restore(self, state: dict[str, Any]) -> None:
        """Go to a saved position."""


def make_batches(
    rng_key: Array, data: tuple[Any, ...], batch_size: int | None, update: Update, most: int
) -> Batches:
    """Choose the kind of stream that `data` asks for; check the data and `batch_size`."""
    if not data:
        raise ValueError("`data` is empty: pass the arguments of the model after `svi`.")
    if len(data) == 1 and is_iterable_of_batches(data[0]):
        if batch_size is not None:
            raise ValueError(
                f"`batch_size` is {batch_size}, but `data` is an iterable, which makes its own "
                "batches: leave `batch_size` out, or pass arrays."
            )
        return IterableBatches(data[0], update)
    arrays = as_arrays(data, "data")
    return ArrayBatches(rng_key, arrays, check_batch_size(arrays, batch_size), update, most)


def as_arrays(data: tuple[Any, ...], name: str) -> tuple[Any, ...]:
    """Put arrays on the device; check that they are not empty, agree, and are finite."""
    arrays = tuple(_as_array(value) for value in data)
    sizes = {i: len(value) for i, value in enumerate(arrays) if _is_sliced(value)}
    if not sizes or min(sizes.values()) == 0:
        raise ValueError(
            f"`{name}` is empty: it needs an array with at least one row; got "
            f"{[v.shape if isinstance(v, jax.Array) else v for v in arrays]}."
        )
    if len(set(sizes.values())) > 1:
        raise ValueError(
            f"`{name}` needs one common leading axis (the data); got sizes "
            f"{', '.join(f'{size} (argument {i})' for i, size in sizes.items())}. Bind what is "
            "not data to the model and guide, for example by `functools.partial`."
        )
    for i, value in enumerate(arrays):
        if _is_floating(value):
            _check_finite(value, f"`{name}`: argument {i}")
    return arrays


def _check_finite(values: Array, name: str) -> None:
    bad = ~jnp.isfinite(values)
    if bad.any():
        rows = int(bad.reshape(len(values), -1).any(1).sum()) if values.ndim else 1
        raise ValueError(
            f"{name} holds {int(bad.sum())} values that are NaN or infinite, in {rows} rows. Drop "
            "these rows, or fill them and mask the site (`handlers.mask`, `.mask(...)`)."
        )


def check_batch_size(arrays: tuple[Any, ...], batch_size: int | None) -> int | None:
    """Return `batch_size` if it lies in [1, N]."""
    size = num_rows(arrays)
    if batch_size is not None and not 1 <= batch_size <= size:
        raise ValueError(
            f"`batch_size` must lie between 1 and the number of data, {size}; got {batch_size}. "
            "None passes all data at every step."
        )
    return batch_size


def num_rows(values: Any) -> int:
    """Size of the leading axis of the first array."""
    return next((len(value) for value in values if _is_sliced(value)), 1)


class ArrayBatches:
    """Batches of `batch_size` rows without replacement; the remainder of an epoch is dropped.

    Epoch e takes the rows in the order ``permutation(fold_in(rng_key, e), N)``, so that the step
    alone says which rows are due. All batches are of one size; other rows are left out in every
    epoch. Without `batch_size`, all data at every step.
    """

    def __init__(
        self,
        rng_key: Array,
        arrays: tuple[Any, ...],
        batch_size: int | None,
        update: Update,
        most: int,
    ) -> None:
        self.most, self._size = most, num_rows(arrays)
        self._rng_key, self._batch_size = rng_key, batch_size
        self._epoch, self._order = -1, np.zeros(0, int)
        (self._arrays, self._layout), self._steps = split((arrays, {})), _many_steps(update, most)

    def first(self) -> Batch:
        """Return the first batch of all."""
        rows = None if self._batch_size is None else jnp.asarray(self._rows(0, 1)[0])
        return self._layout.join(_take(self._arrays, rows))

    def take_steps(self, svi_state: SVIState, step: int, count: int) -> Steps:
        """Take `count` steps, at most `most`, in one dispatch."""
        rows = None if self._batch_size is None else self._rows(step, count)
        return Steps(*self._steps(svi_state, self._arrays, rows, count, self._layout), finite=True)

    def _rows(self, step: int, count: int) -> np.ndarray:
        assert self._batch_size is not None
        rows = np.zeros((self.most, self._batch_size), np.int32)
        for i in range(count):
            epoch, place = divmod(step + i, self._size // self._batch_size)
            if epoch != self._epoch:
                key = jax.random.fold_in(self._rng_key, epoch)
                self._order = np.asarray(jax.random.permutation(key, self._size))
                self._epoch = epoch
            rows[i] = self._order[place * self._batch_size :][: self._batch_size]
        return rows

    def state(self) -> dict[str, Any]:
        """Return the number of rows: the step and the key give the rest."""
        return {"size": self._size}

    def restore(self, state: dict[str, Any]) -> None:
        """Check that the data are of the same size."""
        if state.get("size") != self._size:
            raise ValueError(
                f"`data` has {self._size} rows, but the checkpoint was written with "
                f"{state.get('size', 'an iterable of batches')}: resume on the same data."
            )


class IterableBatches:
    """A user's batches, iterated again when they end; tuples are unpacked, dicts are keywords.

    Global generators as they stood at the start of the epoch are kept: what shuffles by them
    replays the epoch up to its position in a resumed run.
    """

    most = 1

    def __init__(self, iterable: Any, update: Update) -> None:
        self._iterable, self._step = iterable, _one_step(update)
        self._iterator: Iterator[Any] | None = None
        self._held: Batch | None = None
        self._cursor, self._epoch_rng = 0, _rng.get_state()

    def first(self) -> Batch:
        """Return the next batch and hold it back for the next step."""
        self._held = self._next()
        return self._held

    def take_steps(self, svi_state: SVIState, step: int, count: int) -> Steps:
        """Take one step on the next batch."""
        batch, self._held = self._held or self._next(), None
        return Steps(*self._step(svi_state, *split(batch)))

    def _next(self) -> Batch:
        for _ in range(2):
            if self._iterator is None:
                self._cursor, self._epoch_rng = 0, _rng.get_state()
                self._iterator = iter(self._iterable)
            try:
                batch = next(self._iterator)
            except StopIteration:
                self._iterator = None
                continue
            self._cursor += 1
            return as_batch(batch)
        raise ValueError(
            "`data` gave no batch: it is empty, or an iterator that can be used only once. Pass "
            "something that can be iterated again (a list, a `DataLoader`)."
        )

    def state(self) -> dict[str, Any]:
        """Return the batches used in this epoch, and the generators at its start and now."""
        return {"cursor": self._cursor, "epoch_rng": self._epoch_rng, "rng": _rng.get_state()}

    def restore(self, state: dict[str, Any]) -> None:
        """Replay the epoch up to the saved position."""
        if "epoch_rng" not in state:
            raise ValueError(
                "`data` is an iterable of batches, but the checkpoint was written with "
                f"arrays of {state['size']} rows: resume on the same data."
            )
        self._epoch_rng, self._held = state["epoch_rng"], None
        _rng.set_state(self._epoch_rng)
        self._iterator, self._cursor = iter(self._iterable), state["cursor"]
        for _ in range(self._cursor):
            if next(self._iterator, None) is None:
                raise ValueError("`data` ends before the checkpoint's position: not the same data.")
        _rng.set_state(state["rng"])


def _many_steps(update: Update, most: int) -> Callable[..., tuple[SVIState, Array]]:
    """Compile up to `most` steps, one program for any number of them, over rows of arrays."""

    @partial(jax.jit, static_argnums=4, donate_argnums=0)
    def steps(
        svi_state: SVIState, arrays: list[Array], rows: Any, count: Any, layout: Layout
    ) -> tuple[SVIState, Array]:
        def body(i: Array, carry: tuple[SVIState, Array]) -> tuple[SVIState, Array]:
            svi_state, losses = carry
            batch = layout.join(_take(arrays, None if rows is None else rows[i]))
            svi_state, loss = update(svi_state, batch)
            return svi_state, losses.at[i].set(loss)

        return jax.lax.fori_loop(0, count, body, (svi_state, jnp.full(most, jnp.nan, float)))

    return steps


def _one_step(update: Update) -> Callable[..., tuple[SVIState, Array, Array]]:
    """Compile a step on one batch; also tell whether the batch is finite."""

    @partial(jax.jit, static_argnums=2, donate_argnums=0)
    def step(
        svi_state: SVIState, arrays: list[Array], layout: Layout
    ) -> tuple[SVIState, Array, Array]:
        svi_state, loss = update(svi_state, layout.join(arrays))
        finite = [jnp.isfinite(value).all() for value in arrays if _is_floating(value)]
        return svi_state, loss[None], jnp.array([True, *finite]).all()

    return step


def as_batch(value: Any) -> Batch:
    """Read one item of a user's iterable as arguments of the model."""
    if isinstance(value, Mapping):
        return (), {key: _as_array(entry) for key, entry in value.items()}
    items = value if isinstance(value, tuple | list) else (value,)
    return tuple(_as_array(item) for item in items), {}


def _take(arrays: list[Array], rows: Array | None) -> list[Array]:
    return [v if rows is None or not _is_sliced(v) else v[rows] for v in arrays]


def _as_array(value: Any) -> Any:
    """Arrays of JAX stay, those of NumPy and Torch become JAX's, and the rest is constant."""
    if isinstance(value, jax.Array | np.generic) or not hasattr(value, "__array__"):
        return value
    value = np.asarray(value)
    if not (jnp.issubdtype(value.dtype, jnp.number) or value.dtype == bool):
        raise ValueError(f"`data` must be numeric; got an array of dtype {value.dtype}.")
    return jnp.asarray(value)


def _is_sliced(value: Any) -> bool:
    return isinstance(value, jax.Array) and value.ndim > 0


def _is_floating(value: Any) -> bool:
    return isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jnp.floating)


def is_iterable_of_batches(value: Any) -> bool:
    if isinstance(value, tuple):
        raise ValueError(
            "`data` is a tuple: pass its arrays one by one, fit(rng_key, svi, *data, ...), or a "
            "list of batches."
        )
    return hasattr(value, "__iter__") and not (
        hasattr(value, "__array__") or isinstance(value, str | bytes)
    )
