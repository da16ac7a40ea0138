"""Several runs from different starts, side by side, of which the best is kept.

Where the gradient leads depends on where it starts: a decoder may stall in an optimum of its own
however good the inference is. Runs are compared by their loss of late, an exponential average
over the last tenth of the steps; with a bound as the loss, by the bound.

The runs take each step together under `jax.vmap`, on the same minibatch: one program, compiled
once, which costs small models little more than one run.
"""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import keystr, tree_leaves_with_path
from jaxtyping import Array, Bool, Float
from numpyro.infer import SVI
from numpyro.infer.svi import SVIState

from numpyro_dvae.fit.loop import fit
from numpyro_dvae.fit.result import FitResult
from numpyro_dvae.fit.svi import trained_parameters
from numpyro_dvae.infer.svi import with_memory
from numpyro_dvae.ops.arguments import check_counts, checked

__all__ = ["fit_restarts"]

_RECORD = "_restarts"  # in the mutable state


@checked
def fit_restarts(
    rng_key: Array,
    make_svi: Callable[[], SVI],
    *data: Any,
    num_restarts: int = 4,
    num_steps: int,
    batch_size: int | None = None,
    transform: Callable[..., Any] | None = None,
    eval_data: Any = None,
    folder: str | os.PathLike[str] | None = None,
    resume: bool = False,
    capture: bool = False,
    progress: bool = True,
    log_every: int = 50,
    eval_every: int = 1000,
    checkpoint_every: int = 1000,
    devices: Sequence[jax.Device] | None = None,
) -> FitResult:
    """Train from `num_restarts` starts, side by side, and keep the best run.

    A run whose loss is not finite stays where it was and is out.

    Args:
        rng_key: Split among the runs, which differ in their first values and in their draws.
        make_svi: Makes model, guide and their `SVI`, afresh for each run, whose first values it may
            hold, as `NoisyOrDecoder` does; all else, and what is not trained, is as in the first.
        *data: As in `fit`.
        num_restarts: Runs.
        num_steps: Steps of each run.
        batch_size: As in `fit`; the runs take the same rows.
        transform: As in `fit`; the runs see the same transformed batches.
        eval_data: As in `fit`. Evaluations, and scalars of the loss's info in the log, are those of
            the run that is best so far.
        folder: As in `fit`; it holds one checkpoint, of all runs.
        resume: As in `fit`.
        capture: As in `fit`.
        progress: As in `fit`.
        log_every: As in `fit`.
        eval_every: As in `fit`.
        checkpoint_every: As in `fit`.
        devices: As in `fit`; they share the rows of each batch, and each has all runs.

    Returns:
        The result of the best run; its losses are those of the run that was best at each step. Its
        `runs` are all, the others without losses of their own.

    Raises:
        ValueError: If `num_restarts` is not positive, if runs differ in their parameters' names or
            shapes, or by `fit`.
        DivergenceError: If all runs diverge.
    """
    check_counts(num_restarts=num_restarts, num_steps=num_steps, log_every=log_every)
    check_counts(eval_every=eval_every, checkpoint_every=checkpoint_every, batch_size=batch_size)
    runs = _SideBySide([make_svi() for _ in range(num_restarts)], num_steps)
    best = fit(
        rng_key,
        runs,
        *data,
        num_steps=num_steps,
        batch_size=batch_size,
        transform=transform,
        eval_data=eval_data,
        folder=folder,
        resume=resume,
        progress=progress,
        log_every=log_every,
        eval_every=eval_every,
        checkpoint_every=checkpoint_every,
        devices=devices,
        capture=capture,
    )
    return replace(best, runs=runs.results(best), alike=runs.alike)


class _SideBySide(SVI):
    """Runs of the first `SVI` with stacked states; `fit` reads out that of the best run."""

    def __init__(self, svis: Sequence[SVI], num_steps: int) -> None:
        self.__dict__.update(svis[0].__dict__)
        self._svi, self._svis, self._num_runs = svis[0], svis, len(svis)
        self._decay = math.exp(-10.0 / max(num_steps, 1))
        self._last: SVIState | None = None  # whose best run was asked for
        self.alike: tuple[str, ...] = ()  # parameters that begin at the same values in all runs

    def init(self, rng_key: Array, *args: Any, **kwargs: Any) -> SVIState:
        """The first states, each by its own `SVI`, stacked."""
        states = [
            with_memory(svi.init(key, *args, **kwargs), svi.loss)
            for svi, key in zip(self._svis, jax.random.split(rng_key, self._num_runs), strict=True)
        ]
        self.constrain_fn = self._svi.constrain_fn
        _check_alike(states)
        self.alike = _started_alike([self._svi.get_params(state) for state in states])
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
        zeros = jnp.zeros(self._num_runs)
        record = _Record(zeros, zeros, jnp.ones(self._num_runs, bool))
        return _put_in(stacked, record)

    def update(
        self,
        svi_state: SVIState,
        *args: Any,
        forward_mode_differentiation: bool = False,
        **kwargs: Any,
    ) -> tuple[SVIState, Array]:
        """One step of all runs; the loss is that of the best, NaN if none is left."""

        def step(state: SVIState) -> tuple[SVIState, Array]:
            mode = {"forward_mode_differentiation": forward_mode_differentiation}
            return self._svi.update(state, *args, **mode, **kwargs)

        old, record = _take_out(svi_state)
        new, losses = jax.vmap(step)(old)
        sound = record.sound & jnp.isfinite(losses)
        new = jax.tree.map(lambda a, b: _choose(sound, a, b), new, old)
        known = jnp.where(sound, losses, 0.0).astype(record.losses.dtype)
        record = _Record(
            self._decay * record.losses + known, self._decay * record.weights + 1.0, sound
        )
        loss = jnp.where(sound.any(), losses[_best(record)], jnp.nan)
        return _put_in(new, record), loss

    def results(self, best: FitResult) -> tuple[FitResult, ...]:
        """Of each run that is in, the best first."""
        assert self._last is not None
        states, record = _take_out(self._last)
        recent = np.asarray(_recent_losses(record))
        order = [i for i in np.argsort(recent, kind="stable") if bool(record.sound[i])]
        others = [jax.tree.map(lambda leaf, i=i: leaf[i], states) for i in order[1:]]
        plain = replace(best, losses=np.zeros(0), history=[], svi_state=None)
        params = [trained_parameters(self._svi, state) for state in others]
        return (best, *(replace(plain, params=each) for each in params))

    def best_state(self, svi_state: SVIState) -> SVIState:
        """The state of the best run, for its `SVI`."""
        self._last = svi_state
        states, record = _take_out(svi_state)
        return jax.tree.map(lambda leaf: leaf[_best(record)], states)


class _Record(NamedTuple):
    """How each run fared: sums of its losses of late and of their weights; whether it is in."""

    losses: Float[Array, "R"]
    weights: Float[Array, "R"]
    sound: Bool[Array, "R"]


def _check_alike(states: Sequence[SVIState]) -> None:
    """Whether one program takes all the states."""
    shapes = [
        {keystr(path): jnp.shape(leaf) for path, leaf in tree_leaves_with_path(state)}
        for state in states
    ]
    for i, found in enumerate(shapes):
        differ = sorted(name for name, _ in found.items() ^ shapes[0].items())
        if differ:
            first, other = (each.get(differ[0], "nothing") for each in (shapes[0], found))
            raise ValueError(
                "`make_svi` must make the same programs for each run, with parameters of the same "
                f"names and shapes; `{differ[0]}` of the state is {first} in run 0 and {other} in "
                f"run {i}. Make them alike, or call `fit` for each."
            )


def _started_alike(params: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    """Names of what has the same values in all runs, unless these are being traced."""
    if len(params) < 2 or any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(params)):
        return ()

    def is_alike(name: str) -> bool:
        first, *others = (jax.tree.leaves(each[name]) for each in params)
        return all(
            np.array_equal(*both) for each in others for both in zip(first, each, strict=True)
        )

    return tuple(filter(is_alike, params[0]))


def _put_in(svi_state: SVIState, record: _Record) -> SVIState:
    return svi_state._replace(mutable_state={**(svi_state.mutable_state or {}), _RECORD: record})


def _take_out(svi_state: SVIState) -> tuple[SVIState, _Record]:
    """The stacked states as the `SVI` knows them, and the record."""
    mutable = dict(svi_state.mutable_state)
    record = mutable.pop(_RECORD)
    return svi_state._replace(mutable_state=mutable or None), record


def _recent_losses(record: _Record) -> Float[Array, "R"]:
    """Exponential averages of the losses, with a tenth of the steps as their time constant."""
    return record.losses / jnp.maximum(record.weights, 1e-9)


def _best(record: _Record) -> Array:
    return jnp.argmin(jnp.where(record.sound, _recent_losses(record), jnp.inf))


def _choose(sound: Bool[Array, "R"], new: Array, old: Array) -> Array:
    """The new leaf of the runs that are in, else the old; typed keys move on in any case."""
    if jnp.issubdtype(new.dtype, jax.dtypes.prng_key):
        return new
    return jnp.where(sound.reshape(-1, *[1] * (new.ndim - 1)), new, old)
