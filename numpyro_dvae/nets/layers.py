"""Layers that the room's networks are built of, and the values that they start at."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array

from numpyro_dvae.distributions import precise
from numpyro_dvae.nets.products import product

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


class LayerNorm(nn.Module):
    """Layer normalisation as torch defines it, over the last axis."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Of mean 0 and variance 1, then scaled and shifted."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],), jnp.float32)
        return _normalised(precise(x)) * scale + bias


@jax.custom_vjp
def _normalised(x: Array) -> Array:
    """For its gradient, it keeps what it returns and a number of each row, and no more."""
    return _normalised_forward(x)[0]


def _normalised_forward(x: Array) -> tuple[Array, tuple[Array, Array]]:
    centered = x - x.mean(-1, keepdims=True)
    rate = jax.lax.rsqrt(jnp.square(centered).mean(-1, keepdims=True) + 1e-5)
    return centered * rate, (centered * rate, rate)


def _normalised_backward(saved: tuple[Array, Array], slope: Array) -> tuple[Array]:
    found, rate = saved
    along = (slope * found).mean(-1, keepdims=True)
    return (rate * (slope - slope.mean(-1, keepdims=True) - found * along),)


_normalised.defvjp(_normalised_forward, _normalised_backward)


def dense(
    features: int,
    *,
    use_bias: bool = True,
    kernel_init: Callable[..., Array] = nn.linear.default_kernel_init,
    bias_init: Callable[..., Array] = nn.initializers.zeros_init(),  # noqa: B008, as flax has it
    dtype: Any = None,
) -> nn.Dense:
    """A dense layer whose weight gradient is one flat matrix product (see `products`)."""
    return nn.Dense(
        features,
        use_bias=use_bias,
        kernel_init=kernel_init,
        bias_init=bias_init,
        dtype=dtype,
        dot_general=_flat_dot_general,
    )


def _flat_dot_general(x: Array, kernel: Array, *_: Any, **__: Any) -> Array:
    return product(x, kernel)


def _absolute(init: Callable[..., Array]) -> Callable[..., Array]:
    return lambda *args: jnp.abs(init(*args))


def _within(bound: float, center: float | Array | np.ndarray = 0.0) -> Callable[..., Array]:
    """Initialise uniformly in center ± bound."""

    def init(key: Array, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound) + jnp.asarray(center, dtype)

    return init
