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

from numpyro_dvae.diagnostics.quality import GradientQuality, check_losses, gradient_quality
from numpyro_dvae.diagnostics.trained import Trained, as_trained
from numpyro_dvae.diagnostics.waiting import waited
from numpyro_dvae.fit.data import Batch
from numpyro_dvae.fit.plain import dotted
from numpyro_dvae.fit.templates import Template, split
from numpyro_dvae.infer.elbo import ParticleELBO
from numpyro_dvae.infer.objective import LOSS_MEMORY
from numpyro_dvae.nets.evaluating import Evaluating
from numpyro_dvae.ops.arguments import checked
from numpyro_dvae.programs.plans import explained

__all__ = ["gradient_variance"]


@checked
@explained()
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
    check_losses(losses, num_repeats, "loss_with_mutable_state")
    trained = as_trained(result, params)
    args = trained.arguments(data)
    moments = {
        name: _moments(jax.random.fold_in(rng_key, i), loss, trained, args, num_repeats, select)
        for i, (name, loss) in enumerate(waited(losses.items(), "losses"))
    }
    return gradient_quality(moments, num_repeats)


def _moments(
    rng_key: Array,
    loss: Any,
    trained: Trained,
    args: tuple,
    num_repeats: int,
    select: Callable[[str], bool] | None,
) -> dict[str, tuple[np.ndarray, float]]:
    """Mean of each parameter's gradient, and the trace of its covariance."""
    constraints = trained.constraints(rng_key, args)
    transforms = {name: biject_to(constraint) for name, constraint in constraints.items()}
    trainable = {
        name: jax.tree.map(transform.inv, trained.params[name])
        for name, transform in transforms.items()
    }
    fixed = {name: value for name, value in trained.params.items() if name not in trainable}
    fixed |= {LOSS_MEMORY: loss.init_loss_memory()} if isinstance(loss, ParticleELBO) else {}
    arrays, template = split(Batch(args, {}))
    run = _compiled(loss, trained, transforms, template)
    keys = jax.random.split(rng_key, num_repeats)
    first, sums, squares = map(dotted, jax.device_get(run(keys, trainable, fixed, arrays)))
    moments = {}
    for name in filter(select, first):
        shift = sums[name].astype(np.float64).ravel() / num_repeats
        spread = max(float(squares[name]) - num_repeats * shift @ shift, 0.0)
        moments[name] = first[name].astype(np.float64).ravel() + shift, spread / (num_repeats - 1)
    return moments


def _compiled(
    loss: Any, trained: Trained, transforms: Mapping[str, Any], template: Template
) -> Callable[..., tuple[Any, Any, Any]]:
    """Sums of the gradients at unconstrained parameters, one gradient for each key."""

    @jax.jit
    def run(
        keys: Array, trainable: Any, fixed: Any, arrays: tuple[Array, ...]
    ) -> tuple[Any, Any, Any]:
        def value(trainable: Any, key: Array) -> Array:
            constrained = {
                name: jax.tree.map(transforms[name], tree) for name, tree in trainable.items()
            }
            args, kwargs = template.join(arrays)
            with Evaluating():
                return loss.loss_with_mutable_state(
                    key, {**fixed, **constrained}, trained.model, trained.guide, *args, **kwargs
                )["loss"]

        return _sums(jax.grad(value), keys, trainable)

    return run


def _sums(gradient: Callable[..., Any], keys: Array, params: Any) -> tuple[Any, Any, Any]:
    """The first gradient, and sums of what the others differ by and of its squared length.

    Differences keep the digits of a noise that is small beside the mean.
    """

    def add(sums: Any, repeat: tuple[Array, Array]) -> tuple[Any, None]:
        (first, *totals), (i, key) = sums, repeat
        latest = gradient(params, key)
        first = jax.tree.map(lambda old, new: jnp.where(i == 0, new, old), first, latest)
        differences = jax.tree.map(jnp.subtract, latest, first)
        squares = jax.tree.map(lambda difference: jnp.sum(difference**2), differences)
        return (first, *jax.tree.map(jnp.add, tuple(totals), (differences, squares))), None

    zeros = jax.tree.map(jnp.zeros_like, params)
    start = zeros, zeros, jax.tree.map(lambda leaf: jnp.zeros((), leaf.dtype), zeros)
    return jax.lax.scan(add, start, (jnp.arange(len(keys)), keys))[0]
