"""How noisy is the gradient of a loss, and do two losses agree? By repeated evaluation.

At fixed parameters a loss's gradient g is a random vector. With R evaluations, the trace of its
covariance and the length of its mean are estimated without bias (``‖mean‖² - trace / R`` for the
squared length), and the cosine between the means of two losses, whose draws are independent.
Their ratio ``‖E g‖ / sqrt(tr Cov g)`` is the signal-to-noise ratio: the cosine between one
gradient and the true one is about ``snr / sqrt(1 + snr²)``. Losses differ in length: compare
variances of losses of one expectation, and signal-to-noise ratios of any.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpyro.distributions import biject_to

from numpyro_dvae.diagnostics.readings import constraints_of
from numpyro_dvae.diagnostics.reports import GradientQuality, gradient_quality
from numpyro_dvae.diagnostics.trained import Trained, trained
from numpyro_dvae.fit.data import Batch, as_batch
from numpyro_dvae.fit.plain import dotted
from numpyro_dvae.fit.templates import split
from numpyro_dvae.infer.elbo import LOSS_MEMORY, ParticleELBO

__all__ = ["gradient_variance"]


def gradient_variance(
    rng_key: Array,
    result: Any,
    *data: Any,
    losses: Mapping[str, Any],
    num_repeats: int = 100,
    select: Callable[[str], bool] | None = None,
    params: Mapping[str, Any] | None = None,
) -> GradientQuality:
    """Evaluate the gradients of losses many times at the same parameters, on the same data.

    Args:
        rng_key: Key of the draws.
        result: What `fit` returned, or a pair (model, guide).
        *data: What model and guide are called with: one batch.
        losses: Losses to compare, this package's or NumPyro's own, by names of your choice. One
            that remembers has the state of a first step.
        num_repeats: Evaluations of each loss, R.
        select: Which parameters to look at, by name, as
            ``lambda name: name.startswith("guide")``; all by default.
        params: Parameters by name, in place of those of `result`.

    Returns:
        Signal, noise and signal-to-noise ratio of each loss, the cosines between them, and the
        variance of each parameter; `print` it for a table.

    Raises:
        ValueError: If there are no losses, fewer than 2 repeats, or no parameter is selected.
    """
    if not losses or num_repeats < 2:
        raise ValueError(
            "`losses` must name at least one loss, and `num_repeats` be at least 2; got "
            f"{sorted(losses)} and {num_repeats}."
        )
    programs = trained(result, params)
    args, _ = as_batch(data)
    moments = {
        name: _moments(jax.random.fold_in(rng_key, i), loss, programs, args, num_repeats, select)
        for i, (name, loss) in enumerate(losses.items())
    }
    return gradient_quality(moments, num_repeats)


def _moments(
    rng_key: Array,
    loss: Any,
    programs: Trained,
    args: tuple,
    num_repeats: int,
    select: Callable[[str], bool] | None,
) -> dict[str, tuple[np.ndarray, float]]:
    """Mean of each parameter's gradient, and the trace of its covariance."""
    transforms = {
        name: biject_to(constraint)
        for name, constraint in constraints_of(rng_key, *programs.substituted(), args, {}).items()
    }
    trainable = {
        name: jax.tree.map(transform.inv, programs.params[name])
        for name, transform in transforms.items()
    }
    rest = {name: value for name, value in programs.params.items() if name not in trainable}
    rest |= {LOSS_MEMORY: loss.init_memory()} if isinstance(loss, ParticleELBO) else {}
    arrays, static = split(Batch(args, {}))

    @jax.jit
    def moments(
        keys: Array, trainable: Any, rest: Any, arrays: tuple[Array, ...]
    ) -> tuple[Any, Any, Any]:
        def value(trainable: Any, key: Array) -> Array:
            constrained = {
                name: jax.tree.map(transforms[name], tree) for name, tree in trainable.items()
            }
            args, kwargs = static.join(arrays)
            return loss.loss_with_mutable_state(
                key, {**rest, **constrained}, programs.model, programs.guide, *args, **kwargs
            )["loss"]

        return _sums(jax.grad(value), keys, trainable)

    keys = jax.random.split(rng_key, num_repeats)
    first, sums, squares = map(dotted, jax.device_get(moments(keys, trainable, rest, arrays)))
    found = {}
    for name in filter(select, first):
        shift = sums[name].astype(np.float64).ravel() / num_repeats
        spread = max(float(squares[name]) - num_repeats * shift @ shift, 0.0)
        found[name] = first[name].astype(np.float64).ravel() + shift, spread / (num_repeats - 1)
    return found


def _sums(gradient: Callable[..., Any], keys: Array, params: Any) -> tuple[Any, Any, Any]:
    """The first gradient, and sums of what the others differ by and of its squared length.

    Differences keep the digits of a noise that is small beside the mean.
    """

    def add(sums: Any, repeat: tuple[Array, Array]) -> tuple[Any, None]:
        (first, *rest), (i, key) = sums, repeat
        found = gradient(params, key)
        first = jax.tree.map(lambda own, new: jnp.where(i == 0, new, own), first, found)
        differences = jax.tree.map(jnp.subtract, found, first)
        squares = jax.tree.map(lambda difference: jnp.sum(difference**2), differences)
        return (first, *jax.tree.map(jnp.add, tuple(rest), (differences, squares))), None

    zeros = jax.tree.map(jnp.zeros_like, params)
    start = zeros, zeros, jax.tree.map(lambda leaf: jnp.zeros((), leaf.dtype), zeros)
    return jax.lax.scan(add, start, (jnp.arange(len(keys)), keys))[0]
