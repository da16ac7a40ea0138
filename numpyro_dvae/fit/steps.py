"""Compiled steps over batches.

Steps on rows of arrays run many in one dispatch, over data that stay on the device; how many is an
argument of the compiled program, so that the end of the run compiles nothing anew. Where a row of
the log is due, what it shows of the loss is kept, so that rows need no dispatch each; if something
is not finite there, the steps end. Batches of an iterable take one dispatch each; each shape
compiles once. So do steps with convolutions on a CPU: within a loop, XLA takes 50 times as long
there for the gradient of one.

The transform of step i is called with ``fold_in(rng_key, i)``: it repeats whatever is dispatched
together, and leaves the keys of the `SVI` as they are.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array
from numpyro.infer import SVI
from numpyro.infer.autoguide import AutoContinuous, AutoDelta, AutoGuide, AutoNormal
from numpyro.infer.svi import SVIState

from numpyro_dvae.fit.batches import ArrayBatches, IterableBatches
from numpyro_dvae.fit.compiled import Compiled
from numpyro_dvae.fit.data import Batch, is_finite, take_rows
from numpyro_dvae.fit.devices import Devices
from numpyro_dvae.fit.identity import described
from numpyro_dvae.fit.svi import check_loss, is_sound, scalar_fields, take_step
from numpyro_dvae.fit.templates import Template, split
from numpyro_dvae.fit.transform import transformed
from numpyro_dvae.guides import AutoDiscrete
from numpyro_dvae.infer import TruncatedGuide
from numpyro_dvae.programs.handlers.batches import (
    Keeper,
    check_parameters_of_batches,
    check_plates_of_batches,
    check_rows_of_pair,
)

__all__ = ["Steps"]

_KEEPERS = AutoContinuous, AutoDelta, AutoNormal, AutoDiscrete, TruncatedGuide
_PLATES = (
    "Take AutoNormal, pass the rows along with the data, and make the plate of them in the guide, "
    "too: AutoNormal(model, create_plates=plate), with `def plate(x, rows):` and in it `with "
    'numpyro.handlers.substitute(data={{"{1}": rows}}): return numpyro.plate("{1}", {0}, '
    "subsample_size=len(rows))`."
)

Transform = Callable[..., Any] | None


class Taken(NamedTuple):
    """What some steps bring, still on the device."""

    svi_state: SVIState
    losses: Array  # of which the first ones, as many as there were steps, count
    finite: Array | None  # whether the batch of each step was finite; None if that is known
    sound: Array  # whether all parameters and mutable state are finite after the last step
    scalars: dict[str, Array]  # of the loss's info, after each of `kept`; none of a step on its own
    num_steps: Array | int  # that were taken
    kept: list[int]  # steps at which a row is due, and the last one


class Steps:
    """Steps of an `SVI` on a stream of batches; rows of the log are due each `log_every` steps."""

    def __init__(
        self,
        rng_key: Array,
        svi: SVI,
        batches: ArrayBatches | IterableBatches,
        transform: Transform,
        devices: Devices,
        log_every: int,
    ) -> None:
        check_loss(svi)
        self.batches, self._devices, self._log_every = batches, devices, log_every
        self.together = isinstance(batches, ArrayBatches)  # whether many run in one dispatch
        self._rng_key, self._transform = devices.on_all(rng_key), transform
        self._many, self._one = (make(svi, transform, devices) for make in (_many_steps, _one_step))
        self._arrays = devices.on_all(batches.arrays) if isinstance(batches, ArrayBatches) else ()
        self._slow_in_a_loop: bool | None = None  # known at the first steps

    def described(self) -> dict[str, Any]:
        """Describe the data and what is done to them."""
        return {**self.batches.described(), "transform": described(self._transform)}

    def first(self) -> Batch:
        """Return the batch of the first step as the model gets it, without using it up."""
        return self._ready(self.batches.first())

    def check_plates(self, guide: Any) -> None:
        """Refuse parts of a guide that keep something by rows, where a batch does not say whose.

        Raises:
            ValueError: If there is such a part.
        """
        few, size = self.batches.parted or (0, 0)
        rng_key = self._devices.local(self._rng_key)
        for part in getattr(guide, "_guides", [guide]) if few < size else ():
            if isinstance(part, _KEEPERS):
                keeper = _keeper(part, guide)
                check_plates_of_batches(rng_key, keeper, self._some, few, size)

    def check_parameters(self, svi: SVI, svi_state: SVIState) -> None:
        """Refuse parameters that have as many rows as whatever batch.

        Raises:
            ValueError: If there is such a parameter.
        """
        few, size = self.batches.parted or (0, 0)
        leaves = jax.tree.leaves(svi.get_params(svi_state))
        if few >= size or not any(few in jnp.shape(leaf) for leaf in leaves):
            return
        rng_key = self._devices.local(self._rng_key)
        for kind in ("guide", "model"):
            program = getattr(svi, kind)
            check_parameters_of_batches(rng_key, program, self._some, few, size, kind)
        if not isinstance(svi.guide, AutoGuide | TruncatedGuide):
            check_rows_of_pair(rng_key, svi.model, svi.guide, self._some, few, size)

    def _some(self, num_rows: int) -> Batch:
        """The first rows."""
        return self._ready(self.batches.first_rows(num_rows))

    def _ready(self, batch: Batch) -> Batch:
        """A batch, transformed as the first one is."""
        if self._transform is None:
            return batch
        rng_key = jax.random.fold_in(self._devices.local(self._rng_key), 0)
        return transformed(rng_key, self._transform, batch)

    def take(self, svi_state: SVIState, step: int, count: int, most: int) -> Taken:
        """Take `count` steps, those after `step`; the old state is given away.

        They are at most `most`, for which room is made; one, if steps do not run together. They end
        with a row of the log that is due if something is not finite.
        """
        draw = None if self._transform is None else (self._rng_key, step)
        if isinstance(self.batches, ArrayBatches):
            arrays, template = self._arrays, self.batches.template
            rows = self.batches.rows(step, count, most)
            until_row = self._log_every - step % self._log_every
            sizes = most, self._log_every
            given = (arrays, rows, (count, until_row), draw, template, sizes)
            if self._slow_in_a_loop is None and most > 1:
                on_cpu = _platform(svi_state) == "cpu"
                self._slow_in_a_loop = on_cpu and self._many.holds("convolution", svi_state, *given)
            take = self._take_apart if self._slow_in_a_loop else self._many
            kept = [*range(step + until_row, step + count, self._log_every), step + count]
            state, losses, finite, sound, scalars, num_steps = take(svi_state, *given)
            return Taken(state, losses, finite, sound, scalars, num_steps, kept)
        arrays, template = split(self.batches.next())
        arrays = self._devices.on_all(arrays)
        state, losses, finite, sound = self._one(svi_state, arrays, draw, template)
        return Taken(state, losses, finite, sound, {}, 1, [step + 1])

    def _take_apart(
        self,
        svi_state: SVIState,
        arrays: Any,
        rows: Any,
        due: tuple[int, int],
        draw: Any,
        template: Template,
        sizes: tuple[int, int],
    ) -> tuple[SVIState, Array, Array | None, Array, dict[str, Array], int]:
        """The same as the program of many steps, one dispatch after the other."""
        (count, until_row), (_, log_every) = due, sizes
        found, kept = [], []
        for i in range(count):
            taken = None if rows is None else rows[i : i + 1]
            key_of_step = None if draw is None else (draw[0], draw[1] + i)
            given = (taken, (1, 1), key_of_step, template, (1, 1))
            svi_state, *rest, scalars, _ = self._many(svi_state, arrays, *given)
            found.append(rest)
            row_is_due = (i + 1 - until_row) % log_every == 0
            if row_is_due or i + 1 == count:
                kept.append(scalars)
            if row_is_due and not _is_good(*rest):
                break
        losses, finite, sound = zip(*found, strict=True)
        joined = None if finite[0] is None else jnp.concatenate(finite)
        scalars = {name: jnp.concatenate([each[name] for each in kept]) for name in kept[0]}
        return svi_state, jnp.concatenate(losses), joined, sound[-1], scalars, len(found)


def _platform(svi_state: SVIState) -> str:
    """Where the steps run, as "cpu"."""
    leaves = (leaf for leaf in jax.tree.leaves(svi_state) if isinstance(leaf, jax.Array))
    return next(iter(next(leaves).devices())).platform


def _many_steps(svi: SVI, transform: Transform, devices: Devices) -> Compiled:
    """Compile up to `most` steps, one program for any number of them, over rows of arrays."""

    def steps(
        svi_state: SVIState,
        arrays: Any,
        rows: Any,
        due: tuple[Any, Any],
        draw: Any,
        template: Template,
        sizes: tuple[int, int],
    ) -> tuple[SVIState, Array, Array | None, Array, dict[str, Array], Array]:
        (count, until_row), (most, log_every) = due, sizes

        def batch_of(i: Any) -> Batch:
            batch = template.join(arrays if rows is None else take_rows(arrays, rows[i]))
            if transform is None:
                return batch
            rng_key, first = draw
            return transformed(jax.random.fold_in(rng_key, first + i), transform, batch)

        step = partial(_step, svi, devices, batch_of)
        finite = None if transform is None else jnp.ones(most, bool)
        start = svi_state, jnp.zeros(most, float), finite
        if most == 1:  # a loop of one would still be one, see above
            end, count = step(0, start), jnp.ones((), int)
            scalars = {name: value[None] for name, value in _scalars(svi, end).items()}
        else:
            end, scalars, count = _until_rows(svi, step, start, count, until_row, log_every)
        found = *end, is_sound(svi, end[0]), scalars, count
        return devices.kept_on_all(found)

    return Compiled(steps, static=(5, 6), donated=(0,))


def _step(
    svi: SVI, devices: Devices, batch_of: Callable[[Any], Batch], i: Any, taken: tuple
) -> tuple:
    """The step of place i, beside those before it: state, losses, and whether data are finite."""
    svi_state, losses, finite = taken
    batch = batch_of(i)
    finite = None if finite is None else finite.at[i].set(is_finite(batch))
    svi_state, loss = take_step(svi, svi_state, *devices.shared(batch))
    return devices.kept_on_all(svi_state), losses.at[i].set(loss), finite


def _until_rows(
    svi: SVI, step: Callable, start: tuple, count: Any, until_row: Any, log_every: int
) -> tuple[tuple, dict[str, Array], Array]:
    """Take steps from one row of the log to the next; also what these show, and how many."""
    most = len(start[1]) // log_every + 2
    kept = {name: jnp.zeros(most, value.dtype) for name, value in _scalars(svi, start).items()}

    def goes_on(carry: tuple) -> Array:
        row, _, taken, (svi_state, losses, finite) = carry
        good = _is_good(losses, finite, is_sound(svi, svi_state))
        return (taken < count) & (good | (row == 0))

    def take(carry: tuple) -> tuple:
        row, kept, taken, steps = carry
        end = jnp.minimum(until_row + row * log_every, count)
        steps = jax.lax.fori_loop(taken, end, step, steps)
        kept = {name: kept[name].at[row].set(v) for name, v in _scalars(svi, steps).items()}
        return row + 1, kept, end, steps

    none = jnp.zeros((), int)
    _, kept, taken, steps = jax.lax.while_loop(goes_on, take, (none, kept, none, start))
    return steps, kept, taken


def _is_good(losses: Array, finite: Array | None, sound: Array) -> Array:
    """Whether what steps brought until now is no reason to stop; losses to come are 0."""
    return sound & (losses > -jnp.inf).all() & (True if finite is None else finite.all())


def _scalars(svi: SVI, taken: tuple) -> dict[str, Array]:
    return {name: jnp.reshape(v, ()) for name, v in scalar_fields(svi, taken[0]).items()}


def _one_step(svi: SVI, transform: Transform, devices: Devices) -> Compiled:
    """Compile a step on one batch; also tell whether the batch is finite."""

    def step(
        svi_state: SVIState, arrays: tuple[Array, ...], draw: Any, template: Template
    ) -> tuple[SVIState, Array, Array, Array]:
        batch = template.join(arrays)
        if transform is not None:
            batch = transformed(jax.random.fold_in(*draw), transform, batch)
        svi_state, loss = take_step(svi, svi_state, *devices.shared(batch))
        svi_state = devices.kept_on_all(svi_state)
        found = loss[None], is_finite(batch)[None], is_sound(svi, svi_state)
        return svi_state, *devices.kept_on_all(found)

    return Compiled(step, static=(3,), donated=(0,))


def _keeper(part: Any, guide: Any) -> Keeper:
    """A guide that makes its parameters of the latents that its model has."""
    is_discrete = isinstance(part, AutoDiscrete | TruncatedGuide)
    known = is_discrete or part.create_plates or getattr(guide, "create_plates", None)
    return Keeper(type(part).__name__, part.model, is_discrete, "" if known else _PLATES)
