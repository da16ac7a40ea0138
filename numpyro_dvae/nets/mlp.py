"""Multi-layer perceptrons: from data to logits of latents, and from latents to a likelihood.

Data are ``(*batch, *input_shape)``. Latents come in three forms:

- codes ``(*batch, L)``, integers below V;
- relaxed codes ``(*batch, L, V)``, each a real vector over its values, one-hot or in between;
- Bernoulli latents ``(*batch, L)``, real numbers 0 or 1 (`num_codes` is None).
"""

import math
from collections.abc import Sequence

import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Shaped

from numpyro_dvae.nets.inputs import batch_shape_of, codes_or_beyond, flat_start
from numpyro_dvae.nets.latents import latents_batch
from numpyro_dvae.nets.layers import perceptron, run_perceptron
from numpyro_dvae.ops.arguments import check_counts, checked

__all__ = ["MLPDecoder", "MLPEncoder"]

_WITH_CODEBOOK = "MLPDecoder(num_latents * embed_dim, None, ...)"
_OUTPUT_SCALE = 0.1  # of a decoder's first outputs; at 1, 200 steps on MNIST end 3 nats lower


@checked
class MLPEncoder(nn.Module):
    """ReLU perceptron from a datum to the logits of its independent latents.

    Data ``(*batch, *input_shape)`` give logits ``(*batch, L, V)``, or ``(*batch, L)`` for Bernoulli
    latents.

    Args:
        input_shape: Shape of one datum.
        num_latents: Latents per datum, L.
        num_codes: Values of a latent, V; None for Bernoulli latents.
        hidden: Widths of the hidden layers.
        output_scale: The first outputs are uniform within ``output_scale / sqrt(width)`` of zero,
            where the width is that of the last hidden layer. At 0.1 no code is ahead from the
            start: on MNIST, where beta falls from above 1, half as many again of 256 codes stay in
            use. Few codes learn later for it. Vectors to be quantised need 1, lest all of them fall
            into one code.
    """

    input_shape: Sequence[int]
    num_latents: int
    num_codes: int | None = None
    hidden: Sequence[int] = (256,)
    output_scale: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "input_shape", tuple(self.input_shape))
        object.__setattr__(self, "hidden", tuple(self.hidden))
        check_counts(num_latents=self.num_latents, num_codes=self.num_codes)
        super().__post_init__()

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of the logits of one datum."""
        last = () if self.num_codes is None else (self.num_codes,)
        return (self.num_latents, *last)

    def setup(self) -> None:
        """Make the layers."""
        widths = (math.prod(self.input_shape), *self.hidden, math.prod(self.output_shape))
        self.layers = perceptron(widths, self.output_scale)

    def __call__(self, x: Shaped[Array, "*batch_input"]) -> Float[Array, "*batch_output"]:
        """Logits of every latent of every datum."""
        batch = batch_shape_of(x, self.input_shape)
        outputs = run_perceptron(self.layers, x.reshape(*batch, math.prod(self.input_shape)))
        return outputs.reshape(*batch, *self.output_shape)


class Constant:
    """An array that a module can have as an attribute: compared and hashed as an object."""

    def __init__(self, value: Float[Array | np.ndarray, "..."]) -> None:
        self.value = value

    def __repr__(self) -> str:
        return f"an array {tuple(self.value.shape)}"


@checked
class MLPDecoder(nn.Module):
    """ReLU perceptron from the latents of a datum to what its likelihood reads.

    Codes ``(*batch, L)``, relaxed codes ``(*batch, L, V)`` or Bernoulli latents ``(*batch, L)``
    give outputs ``(*batch, *output_shape)``. All latents share one table of embeddings.

    Args:
        num_latents: Latents per datum, L.
        num_codes: Values of a latent, V; None feeds real latents to the first layer directly.
        output_shape: Shape of one datum.
        embed_dim: Width of a code's embedding.
        hidden: Widths of the hidden layers.
        start: Outputs of shape `output_shape` at which all codes start, zero by default.
            ``likelihood.link(mean of the data)`` spares the codes the learning of that mean, and
            more of them stay in use; it wants a beta that falls.
        positive: Whether the first layer starts without negative weights. Where latents are 0 or 1,
            no unit of it is then dead, whatever the codes; a narrow network cannot spare one.

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
        check_counts(num_latents=self.num_latents, num_codes=self.num_codes)
        super().__post_init__()

    def setup(self) -> None:
        """Make the embedding and the layers."""
        width = self.num_latents
        if self.num_codes is not None:
            start = nn.initializers.normal(1.0)
            self.embedding = nn.Embed(self.num_codes, self.embed_dim, embedding_init=start)
            width = width * self.embed_dim
        widths = (width, *self.hidden, math.prod(self.output_shape))
        center = self.start.value if isinstance(self.start, Constant) else None
        # All codes start at nearly one output: little noise to unlearn.
        self.layers = perceptron(widths, _OUTPUT_SCALE, center, self.positive)

    def __call__(self, z: Shaped[Array, "*batch_latents"]) -> Float[Array, "*batch_output"]:
        """Logits or means, as the likelihood reads them."""
        batch = self.batch_shape(z)
        if self.num_codes is not None:
            is_relaxed = len(batch) == z.ndim - 2
            z = (
                z @ self.embedding.embedding
                if is_relaxed
                else self.embedding(codes_or_beyond(z, self.num_codes))
            )
            z = z.reshape(*batch, self.num_latents * self.embed_dim)
        return run_perceptron(self.layers, z).reshape(*batch, *self.output_shape)

    @nn.nowrap
    def batch_shape(self, z: Shaped[Array, "*batch_latents"]) -> Sequence[int]:
        """The leading dims of codes ``(*batch, L)``, or of relaxed codes ``(*batch, L, V)``.

        Raises:
            ValueError: If `z` does not hold L latents, or holds vectors of another's table.
        """
        return latents_batch(z, self.num_latents, self.num_codes, _WITH_CODEBOOK)
