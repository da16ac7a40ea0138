"""Compiled steps over batches.

Steps on rows of arrays run many in one dispatch, over data that stay on the device; how many is an
argument of the compiled program, so that neither a row of the log that is due nor the end of the
run compiles anew. Batches of an iterable take one dispatch each; each shape compiles once. So do
steps with convolutions on a CPU: within a loop, XLA takes 50 times as long there for the gradient
of one.

The transform of step i is called with ``fold_in(rng_key, i)``: it repeats whatever is dispatched
together, and leaves the keys of the `SVI` as they are.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array
from numpyro.infer import SVI
from numpyro.infer.svi import SVIState

from numpyro_dvae.fit.batches import ArrayBatches, IterableBatches
from numpyro_dvae.fit.compiled import Compiled
from numpyro_dvae.fit.data import Batch, is_finite, take_rows
from numpyro_dvae.fit.devices import Devices
from numpyro_dvae.fit.identity import described
from numpyro_dvae.fit.svi import is_sound, take_step
from numpyro_dvae.fit.templates import Template, split
from numpyro_dvae.fit.transform import transformed

__all__ = ["Steps"]

Transform = Callable[..., Any] | None


class Taken(NamedTuple):
    """What some steps bring, still on the device."""

    svi_state: SVIState
    losses: Array  # of which the first ones, as many as there were steps, count
    finite: Array | None  # whether the batch of each step was finite; None if that is known
    sound: Array  # whether all parameters and mutable state are finite after the last step


class Steps:
    """Steps of an `SVI` on a stream of batches."""

    def __init__(
        self,
        rng_key: Array,
        svi: SVI,
        batches: ArrayBatches | IterableBatches,
        transform: Transform,
        devices: Devices,
    ) -> None:
        self.batches, self._devices = batches, devices
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
        batch = self.batches.first()
        if self._transform is None:
            return batch
        rng_key = jax.random.fold_in(self._devices.local(self._rng_key), 0)
        return transformed(rng_key, self._transform, batch)

    def take(self, svi_state: SVIState, step: int, count: int, most: int) -> Taken:
        """Take `count` steps, those after `step`; the old state is given away.

        They are at most `most`, for which room is made; one, if steps do not run together.
        """
        draw = None if self._transform is None else (self._rng_key, step)
        if isinstance(self.batches, ArrayBatches):
            arrays, template = self._arrays, self.batches.template
            rows = self.batches.rows(step, count, most)
            given = (arrays, rows, count, draw, template, most)
            if self._slow_in_a_loop is None and most > 1:
                on_cpu = _platform(svi_state) == "cpu"
                self._slow_in_a_loop = on_cpu and self._many.holds("convolution", svi_state, *given)
            take = self._take_apart if self._slow_in_a_loop else self._many
            return Taken(*take(svi_state, *given))
        arrays, template = split(self.batches.next())
        arrays = self._devices.on_all(arrays)
        return Taken(*self._one(svi_state, arrays, draw, template))

    def _take_apart(
        self,
        svi_state: SVIState,
        arrays: Any,
        rows: Any,
        count: int,
        draw: Any,
        template: Template,
        most: int,
    ) -> tuple[SVIState, Array, Array | None, Array]:
        """The same as the program of many steps, one dispatch after the other."""
        found = []
        for i in range(count):
            taken = None if rows is None else rows[i : i + 1]
            key_of_step = None if draw is None else (draw[0], draw[1] + i)
            svi_state, *rest = self._many(svi_state, arrays, taken, 1, key_of_step, template, 1)
            found.append(rest)
        losses, finite, sound = zip(*found, strict=True)
        joined = None if finite[0] is None else jnp.concatenate(finite)
        return svi_state, jnp.concatenate(losses), joined, sound[-1]


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
        count: Any,
        draw: Any,
        template: Template,
        most: int,
    ) -> tuple[SVIState, Array, Array | None, Array]:
        def body(i: Any, carry: tuple) -> tuple:
            svi_state, losses, finite = carry
            batch = template.join(arrays if rows is None else take_rows(arrays, rows[i]))
            if transform is not None:
                rng_key, step = draw
                batch = transformed(jax.random.fold_in(rng_key, step + i), transform, batch)
                finite = finite.at[i].set(is_finite(batch))
            svi_state, loss = take_step(svi, svi_state, *devices.shared(batch))
            svi_state = devices.kept_on_all(svi_state)
            return svi_state, losses.at[i].set(loss), finite

        finite = None if transform is None else jnp.ones(most, bool)
        start = svi_state, jnp.full(most, jnp.nan, float), finite
        # A loop of one would still be one, see above.
        end = body(0, start) if most == 1 else jax.lax.fori_loop(0, count, body, start)
        return *devices.kept_on_all(end), devices.kept_on_all(is_sound(svi, end[0]))

    return Compiled(steps, static=(5, 6), donated=(0,))


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
