"""Multi-layer perceptrons: from data to logits of latents, and from latents to a likelihood.

Data are ``(*batch, *input_shape)``. Latents come in three forms:

- codes ``(*batch, L)``, integers below V;
- relaxed codes ``(*batch, L, V)``, each a real vector over its values, one-hot or in between;
- Bernoulli latents ``(*batch, L)``, real numbers 0 or 1 (`num_codes` is None).
"""

import math
from collections.abc import Sequence

from jaxtyping import Float, Shaped
from torch import Tensor, nn

from pyro_dvae.nets.inputs import batch_shape_of, flat_start
from pyro_dvae.nets.latents import latents_batch
from pyro_dvae.nets.layers import perceptron, run_perceptron
from pyro_dvae.ops.arguments import check_counts, checked

__all__ = ["MLPDecoder", "MLPEncoder"]

_WITH_CODEBOOK = "MLPDecoder(num_latents * embed_dim, None, ...)"
_OUTPUT_SCALE = 0.1  # of a decoder's first outputs; at 1, 200 steps on MNIST end 3 nats lower


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

    @checked
    def __init__(
        self,
        input_shape: Sequence[int],
        num_latents: int,
        num_codes: int | None = None,
        hidden: Sequence[int] = (256,),
        output_scale: float = 1.0,
    ) -> None:
        super().__init__()
        check_counts(num_latents=num_latents, num_codes=num_codes)
        self.input_shape = tuple(input_shape)
        self.num_latents, self.num_codes = num_latents, num_codes
        self.output_shape = (num_latents,) if num_codes is None else (num_latents, num_codes)
        widths = (math.prod(input_shape), *hidden, math.prod(self.output_shape))
        self.layers = perceptron(widths, output_scale)

    def forward(self, x: Shaped[Tensor, "*batch_input"]) -> Float[Tensor, "*batch_output"]:
        """Logits of every latent of every datum."""
        batch = batch_shape_of(x, self.input_shape)
        return run_perceptron(self.layers, x.reshape(*batch, -1)).reshape(
            *batch, *self.output_shape
        )


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

    @checked
    def __init__(
        self,
        num_latents: int,
        num_codes: int | None,
        output_shape: Sequence[int],
        embed_dim: int = 64,
        hidden: Sequence[int] = (64, 256),
        start: Float[Tensor, "..."] | None = None,
        positive: bool = False,
    ) -> None:
        super().__init__()
        check_counts(num_latents=num_latents, num_codes=num_codes)
        self.num_latents, self.num_codes = num_latents, num_codes
        self.output_shape = tuple(output_shape)
        self.embedding = None if num_codes is None else nn.Embedding(num_codes, embed_dim)
        width = num_latents if num_codes is None else num_latents * embed_dim
        widths = (width, *hidden, math.prod(output_shape))
        center = None if start is None else flat_start(start, self.output_shape)
        # All codes start at nearly one output: little noise to unlearn.
        self.layers = perceptron(widths, _OUTPUT_SCALE, center, positive)

    def forward(self, z: Shaped[Tensor, "*batch_latents"]) -> Float[Tensor, "*batch_output"]:
        """Logits or means, as the likelihood reads them."""
        batch = self.batch_shape(z)
        if self.embedding is not None:
            is_relaxed = len(batch) == z.dim() - 2
            table = self.embedding.weight
            z = z.to(table.dtype) @ table if is_relaxed else self.embedding(z.long())
            z = z.flatten(start_dim=-2)
        return run_perceptron(self.layers, z).reshape(*batch, *self.output_shape)

    def batch_shape(self, z: Shaped[Tensor, "*batch_latents"]) -> Sequence[int]:
        """The leading dims of codes ``(*batch, L)``, or of relaxed codes ``(*batch, L, V)``.

        Raises:
            ValueError: If `z` does not hold L latents, or holds vectors of another's table.
        """
        return latents_batch(z, self.num_latents, self.num_codes, _WITH_CODEBOOK)
