"""AdamW for an `SVI`, with what trainings at scale want of it: a chain of `optax`.

    svi = SVI(model, guide, adamw(3e-4, clip_units=1.0, average=0.999), loss=DAPS_ELBO())
    result = fit(rng_key, svi, images, ...)
    smooth = averaged(svi, result)

References:
    Loshchilov & Hutter. Decoupled weight decay regularization. ICLR, 2019.
    Brock, De, Smith & Simonyan. High-performance large-scale image recognition without
    normalization. ICML, 2021 (unit-wise clipping, equation 3).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from numpyro.infer import SVI
from numpyro.optim import optax_to_numpyro

from numpyro_dvae.fit.result import FitResult
from numpyro_dvae.fit.svi import trained_parameters
from numpyro_dvae.ops.arguments import check_counts, check_numbers, checked

__all__ = ["adamw", "averaged"]


@checked
def adamw(
    learning_rate: float | Callable[[Any], Any],
    *,
    weight_decay: float = 0.0,
    clip_norm: float | None = None,
    clip_units: float | None = None,
    accumulate: int = 1,
    average: float | None = None,
) -> Any:
    """Make an optimiser of all parameters together.

    What it holds is part of `fit`'s checkpoints: a run that goes on has the same numbers.

    Args:
        learning_rate: A number, or a schedule: from the number of updates so far to a number.
        weight_decay: How much of each weight is taken away, in units of the learning rate; 0 is
            Adam.
        clip_norm: Norm that the gradient of all parameters is scaled down to, if it is greater.
        clip_units: Norm that the gradient of each unit is scaled down to, in units of the norm of
            its weights, if it is greater; a unit is an output of a layer: a row of the weights in
            Torch, a column in JAX.
        accumulate: Steps whose mean gradient makes one update.
        average: Decay of moving averages of all parameters after each update, below 1; `averaged`
            puts them in the place of the parameters. None keeps none.

    Returns:
        What an `SVI` takes.

    Raises:
        ValueError: If an argument is out of its range.
    """
    _check(learning_rate, weight_decay, clip_norm, clip_units, accumulate, average)
    parts = [] if clip_norm is None else [optax.clip_by_global_norm(clip_norm)]
    parts += [] if clip_units is None else [optax.adaptive_grad_clip(clip_units)]
    parts += [optax.adamw(learning_rate, weight_decay=weight_decay)]
    parts += [] if average is None else [_averages(average)]
    chain = optax.chain(*parts)
    if accumulate > 1:
        chain = optax.MultiSteps(chain, accumulate).gradient_transformation()
    optim = optax_to_numpyro(chain)
    settings: dict[str, Any] = {"learning_rate": learning_rate, "weight_decay": weight_decay}
    settings |= {"clip_norm": clip_norm, "clip_units": clip_units}
    settings |= {"accumulate": accumulate, "average": average}
    optim.settings = settings  # of which `fit` knows a run again
    return optim


@checked
def averaged(svi: SVI, result: FitResult) -> FitResult:
    """Put the moving averages of the parameters in their place.

    Args:
        svi: What was trained, by ``adamw(..., average=...)``.
        result: What `fit` returned of it.

    Returns:
        The same, with the averages for parameters. Tables of codebooks that move by averages of
        their own, and other buffers, are as they were.

    Raises:
        ValueError: If the optimiser keeps no averages.
    """
    state = result.svi_state
    is_one = lambda leaf: isinstance(leaf, _Averages)  # noqa: E731
    leaves = [] if state is None else jax.tree.leaves(state.optim_state, is_leaf=is_one)
    found = [leaf.values for leaf in leaves if is_one(leaf)]
    if state is None or not found:
        raise ValueError(
            "`svi` keeps no averages of its parameters: train it by an optimiser made by "
            "`adamw(..., average=0.999)`."
        )
    step, (_, held) = state.optim_state
    state = state._replace(optim_state=(step, (found[0], held)))
    params = trained_parameters(svi, state)
    return dataclasses.replace(result, params=params, svi_state=state)


class _Averages(NamedTuple):
    """Moving averages of all parameters."""

    values: Any


def _averages(decay: float) -> optax.GradientTransformation:
    """Keep averages of the parameters, and leave the updates as they are."""

    def update(updates: Any, state: _Averages, params: Any = None) -> tuple[Any, _Averages]:
        new = optax.apply_updates(params, updates)
        return updates, _Averages(optax.incremental_update(new, state.values, 1.0 - decay))

    def init(params: Any) -> _Averages:  # copies, lest a step give the same array away twice
        return _Averages(jax.tree.map(jnp.copy, params))

    return optax.GradientTransformation(init, update)


def _check(
    learning_rate: Any,
    weight_decay: float,
    clip_norm: float | None,
    clip_units: float | None,
    accumulate: int,
    average: float | None,
) -> None:
    if not callable(learning_rate):
        check_numbers(above=0.0, learning_rate=learning_rate)
    check_numbers(least=0.0, weight_decay=weight_decay)
    for name, value in (("clip_norm", clip_norm), ("clip_units", clip_units)):
        if value is not None:
            check_numbers(above=0.0, **{name: value})
    check_counts(accumulate=accumulate)
    if average is not None and not 0.0 <= average < 1.0:
        raise ValueError(f"`average` must be in [0, 1), or None; got {average}.")
