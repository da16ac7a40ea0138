"""Multi-layer perceptrons between images and codes.

An image batch is ``(*batch, *input_shape)``, codes are ``(*batch, L)`` integers below V, real
vectors ``(*batch, L, V)`` over the values of a code, one-hot or in between, where they are relaxed,
or real 0/1 vectors for Bernoulli latents (`num_codes=None`).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Shaped

__all__ = ["MLPDecoder", "MLPEncoder"]

_OUTPUT_SCALE = 0.1  # of a decoder's first outputs; at 1, 200 steps on MNIST end 3 nats lower


class MLPEncoder(nn.Module):
    """ReLU perceptron from an array to the logits of independent latents.

    Args:
        input_shape: Shape of one datum.
        num_latents: Latents per datum, L.
        num_codes: Codes per latent, V; None for Bernoulli latents.
        hidden: Widths of the hidden layers.
        output_scale: Of the first outputs, which are uniform within ``output_scale /
            sqrt(width)`` of zero. At 0.1 no code is ahead from the start: of 256, half as many
            again stay in use on MNIST, where beta falls from above 1. Few codes learn later for it;
            vectors to be quantised need 1, lest all fall into one code.

    Returns logits ``(*batch, L, V)``, or ``(*batch, L)`` for Bernoulli latents.
    """

    input_shape: Sequence[int]
    num_latents: int
    num_codes: int | None = None
    hidden: Sequence[int] = (256,)
    output_scale: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "input_shape", tuple(self.input_shape))
        object.__setattr__(self, "hidden", tuple(self.hidden))
        super().__post_init__()

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of the logits of one datum."""
        last = () if self.num_codes is None else (self.num_codes,)
        return (self.num_latents, *last)

    def setup(self) -> None:
        """Make the layers."""
        self.layers = _perceptron(
            (math.prod(self.input_shape), *self.hidden, math.prod(self.output_shape)),
            self.output_scale,
        )

    def __call__(self, x: Shaped[Array, "*batch_input"]) -> Float[Array, "*batch_output"]:
        """Logits of every latent of every datum."""
        batch = batch_shape_of(x, self.input_shape)
        outputs = _run(self.layers, x.reshape(*batch, math.prod(self.input_shape)))
        return outputs.reshape(*batch, *self.output_shape)


class Constant:
    """An array that a module can have as an attribute: compared and hashed as an object."""

    def __init__(self, value: Float[np.ndarray, "..."]) -> None:
        self.value = value


class MLPDecoder(nn.Module):
    """ReLU perceptron from codes to an array; codes share one table of embeddings.

    Args:
        num_latents: Latents per datum, L.
        num_codes: Codes per latent, V; None feeds real latents to the first layer directly.
        output_shape: Shape of one datum.
        embed_dim: Width of a code's embedding.
        hidden: Widths of the hidden layers.
        start: Outputs ``(*output_shape)`` at which all codes start, zero by default;
            ``likelihood.link(mean of the data)`` spares the codes the learning of that mean, and
            more of them stay in use; it wants a beta that falls.
        positive: Start with no negative weight in the first layer. Where latents are 0 or 1, no
            unit of it is then dead, whatever the codes; a narrow network cannot spare one.

    Raises:
        ValueError: If `start` has another shape.
    """

    num_latents: int
    num_codes: int | None
    output_shape: Sequence[int]
    embed_dim: int = 64
    hidden: Sequence[int] = (64, 256)
    start: Float[Array | np.ndarray, "..."] | Constant | None = None
    positive: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "output_shape", tuple(self.output_shape))
        object.__setattr__(self, "hidden", tuple(self.hidden))
        if self.start is not None and not isinstance(self.start, Constant):
            object.__setattr__(self, "start", Constant(flat_start(self.start, self.output_shape)))
        super().__post_init__()

    def setup(self) -> None:
        """Make the embedding and the layers."""
        width = self.num_latents
        if self.num_codes is not None:
            start = nn.initializers.normal(1.0)
            self.embedding = nn.Embed(self.num_codes, self.embed_dim, embedding_init=start)
            width = width * self.embed_dim
        widths = (width, *self.hidden, math.prod(self.output_shape))
        # All codes start at nearly one output: little noise to unlearn.
        center = self.start if isinstance(self.start, Constant) else None
        self.layers = _perceptron(widths, _OUTPUT_SCALE, center, self.positive)

    def __call__(self, z: Shaped[Array, "*batch_latents"]) -> Float[Array, "*batch_output"]:
        """Outputs ``(*batch, *output_shape)``: logits or means, as the likelihood reads them."""
        batch = self.batch_shape(z)
        if self.num_codes is not None:
            are_vectors = len(batch) == z.ndim - 2
            z = z @ self.embedding.embedding if are_vectors else self.embedding(z.astype(int))
            z = z.reshape(*batch, self.num_latents * self.embed_dim)
        return _run(self.layers, z).reshape(*batch, *self.output_shape)

    @nn.nowrap
    def batch_shape(self, z: Shaped[Array, "*batch_latents"]) -> Sequence[int]:
        """The leading dims of codes ``(*batch, L)``, or of vectors over codes ``(*batch, L, V)``.

        Integers are codes; real numbers are vectors where their shape is that of vectors.
        """
        is_real = jnp.issubdtype(z.dtype, jnp.floating)
        if is_real and z.shape[-2:] == (self.num_latents, self.num_codes):
            return z.shape[:-2]
        if z.shape[-1:] != (self.num_latents,):
            raise ValueError(f"`z` must end in {self.num_latents} latents; got shape {z.shape}.")
        return z.shape[:-1]


def batch_shape_of(x: Array, input_shape: Sequence[int]) -> Sequence[int]:
    """The leading dims of `x`, whose others must be `input_shape`; `x` must hold floats."""
    num_batch = x.ndim - len(input_shape)
    if num_batch < 0 or x.shape[num_batch:] != tuple(input_shape):
        raise ValueError(
            f"`x` must have shape (*batch, {', '.join(map(str, input_shape))}); got "
            f"{x.shape}. Reshape the data or build the network for that `input_shape`."
        )
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"`x` must hold floating-point numbers; got {x.dtype}. Convert it first, as in "
            "x.astype(float) / 255 or (x > 127).astype(float)."
        )
    return x.shape[:num_batch]


def flat_start(start: Array | np.ndarray, output_shape: Sequence[int]) -> np.ndarray:
    """The first outputs of a decoder as a vector."""
    if start.shape != tuple(output_shape):
        raise ValueError(
            f"`start` must have the shape of the output, {tuple(output_shape)}; got "
            f"{start.shape}. Average the data over their first axis."
        )
    return np.asarray(start).reshape(-1)


def dense(features: int, **options: Any) -> nn.Dense:
    """A dense layer whose weight gradient is one flat matrix product.

    JAX's own sums over every leading dim of its input at once and transposes, for which XLA
    has no fast kernel on a CPU: 4 times the time of the flat product at (8, 256, 8, 64).
    """
    return nn.Dense(features, dot_general=_flat_dot_general, **options)


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


def _perceptron(
    widths: Sequence[int],
    output_scale: float,
    center: Constant | None = None,
    positive: bool = False,
) -> list[nn.Dense]:
    """Dense layers between `widths`.

    Hidden layers start as He et al. (2015) have it, with zero biases, so that they keep the scale
    of their input, the first at absolute values if `positive`; the outputs start uniform within
    ``output_scale / sqrt(width)`` of `center`.
    """
    *hidden, num_outputs = widths[1:]
    bound = output_scale / math.sqrt(widths[-2])
    small, near = _within(bound), _within(bound, 0.0 if center is None else center.value)
    he_normal = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
    starts = [he_normal] * len(hidden) + [small]
    starts[0] = _absolute(starts[0]) if positive else starts[0]
    layers = [dense(width, kernel_init=start) for width, start in zip(hidden, starts, strict=False)]
    return [*layers, dense(num_outputs, kernel_init=starts[-1], bias_init=near)]


def _absolute(init: Callable[..., Array]) -> Callable[..., Array]:
    return lambda *args: jnp.abs(init(*args))


def _within(bound: float, center: float | np.ndarray = 0.0) -> Callable[..., Array]:
    """Initialise uniformly in center ± bound."""

    def init(key: Array, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound) + jnp.asarray(center, dtype)

    return init


def _run(layers: Sequence[nn.Dense], x: Array) -> Array:
    """ReLU between the layers."""
    for layer in layers[:-1]:
        x = nn.relu(layer(x))
    return layers[-1](x)
