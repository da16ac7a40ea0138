"""Layers that the room's networks are built of, and the values that they start at."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from numpyro_dvae.distributions import precise

__all__ = ["perceptron", "sinusoids"]


def perceptron(
    widths: Sequence[int],
    output_scale: float,
    center: Array | np.ndarray | None = None,
    positive: bool = False,
) -> list[nn.Dense]:
    """Dense layers, to be run by `run_perceptron` with ReLU between them.

    Hidden layers start as He et al. (2015) have it, with zero biases, so that they keep the scale
    of their input.

    Args:
        widths: Numbers of inputs, of the units of each hidden layer, and of outputs.
        output_scale: The outputs start uniform within ``output_scale / sqrt(widths[-2])``.
        center: Of this vector, one number per output; None is zero.
        positive: Whether the weights of the first layer start at their absolute values.
    """
    *hidden, num_outputs = widths[1:]
    bound = output_scale / math.sqrt(widths[-2])
    small, near = _within(bound), _within(bound, 0.0 if center is None else center)
    he_normal = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
    starts = [he_normal] * len(hidden) + [small]
    starts[0] = _absolute(starts[0]) if positive else starts[0]
    layers = [dense(width, kernel_init=start) for width, start in zip(hidden, starts, strict=False)]
    return [*layers, dense(num_outputs, kernel_init=starts[-1], bias_init=near)]


def run_perceptron(layers: Sequence[nn.Dense], x: Array) -> Array:
    """The outputs of the layers, with ReLU between them."""
    for layer in layers[:-1]:
        x = nn.relu(layer(x))
    return layers[-1](x)


def sinusoids(length: int, width: int, dtype: Any) -> Array:
    """Fixed position codes ``(length, width)``: sines, then cosines, of periods 2π to 2π·10⁴."""
    num_sines = (width + 1) // 2
    frequencies = 10_000.0 ** -np.linspace(0, 1, num_sines)
    angles = np.arange(length)[:, None] * frequencies
    table = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)[:, :width]
    return jnp.asarray(table, dtype)


def check_dtype(dtype: Any) -> None:
    """Check what layers are to compute in.

    Raises:
        ValueError: If it is no half precision.
    """
    if dtype is None:
        return
    try:
        is_half = jnp.dtype(dtype) in (jnp.bfloat16, jnp.float16)
    except TypeError:
        is_half = False
    if not is_half:
        raise ValueError(
            f"`dtype` must be jnp.bfloat16, jnp.float16 or None; got {dtype!r}. Other networks "
            "have the dtype of their parameters."
        )


def widened(x: Array, dtype: Any) -> Array:
    """What layers in a half precision return, in float32; others as they are."""
    return x if dtype is None else precise(x)


def xavier_dense(features: int, *, use_bias: bool = True, dtype: Any = None) -> nn.Dense:
    """A layer with Xavier-uniform weights and zero biases, as usual for transformers."""
    start = nn.initializers.xavier_uniform()
    return dense(features, use_bias=use_bias, kernel_init=start, dtype=dtype)


def layer_norm() -> nn.LayerNorm:
    """Layer normalisation as torch defines it."""
    return nn.LayerNorm(epsilon=1e-5, use_fast_variance=False)


def dense(
    features: int,
    *,
    use_bias: bool = True,
    kernel_init: Callable[..., Array] = nn.linear.default_kernel_init,
    bias_init: Callable[..., Array] = nn.initializers.zeros_init(),  # noqa: B008, as flax has it
    dtype: Any = None,
) -> nn.Dense:
    """A dense layer whose weight gradient is one flat matrix product.

    JAX's own sums over every leading dim of its input at once and transposes, for which XLA
    has no fast kernel on a CPU: 4 times the time of the flat product at (8, 256, 8, 64), and 1.5
    times the step of `examples/benchmarks/step_speed_numpyro.py` where matrices are left to it.
    """
    return nn.Dense(
        features,
        use_bias=use_bias,
        kernel_init=kernel_init,
        bias_init=bias_init,
        dtype=dtype,
        dot_general=_flat_dot_general,
    )


def _flat_dot_general(x: Array, kernel: Array, *_: Any, **__: Any) -> Array:
    return _matmul(x, kernel)


@jax.custom_vjp
def _matmul(x: Float[Array, "*batch I"], kernel: Float[Array, "I O"]) -> Float[Array, "*batch O"]:
    return x @ kernel


def _matmul_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return x @ kernel, (x, kernel)


def _matmul_backward(saved: tuple[Array, Array], slope: Array) -> tuple[Array, Array]:
    x, kernel = saved
    flat_x, flat_slope = (a.reshape(-1, a.shape[-1]) for a in (x, slope))
    return slope @ kernel.T, flat_x.T @ flat_slope


_matmul.defvjp(_matmul_forward, _matmul_backward)


def _absolute(init: Callable[..., Array]) -> Callable[..., Array]:
    return lambda *args: jnp.abs(init(*args))


def _within(bound: float, center: float | Array | np.ndarray = 0.0) -> Callable[..., Array]:
    """Initialise uniformly in center ± bound."""

    def init(key: Array, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound) + jnp.asarray(center, dtype)

    return init
