"""Multi-layer perceptrons between images and codes.

An image batch is ``(*batch, *input_shape)``, codes are ``(*batch, L)`` integers below V, real
vectors ``(*batch, L, V)`` over the values of a code, one-hot or in between, where they are relaxed,
or real 0/1 vectors for Bernoulli latents (`num_codes=None`).
"""

import itertools
import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

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

    def __init__(
        self,
        input_shape: Sequence[int],
        num_latents: int,
        num_codes: int | None = None,
        hidden: Sequence[int] = (256,),
        output_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.input_shape = tuple(input_shape)
        self.num_latents, self.num_codes = num_latents, num_codes
        self.output_shape = (num_latents,) if num_codes is None else (num_latents, num_codes)
        num_outputs = math.prod(self.output_shape)
        self.layers = _perceptron(math.prod(input_shape), hidden, num_outputs, output_scale)

    def forward(self, x: Shaped[Tensor, "*batch_input"]) -> Float[Tensor, "*batch_output"]:
        """Logits of every latent of every datum."""
        batch = batch_shape_of(x, self.input_shape)
        return self.layers(x.reshape(*batch, -1)).reshape(*batch, *self.output_shape)


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
        self.num_latents, self.num_codes = num_latents, num_codes
        self.output_shape = tuple(output_shape)
        self.embedding = None if num_codes is None else nn.Embedding(num_codes, embed_dim)
        width = num_latents if num_codes is None else num_latents * embed_dim
        # All codes start at nearly one output: little noise to unlearn.
        self.layers = _perceptron(width, hidden, math.prod(output_shape), _OUTPUT_SCALE)
        with torch.no_grad():
            if start is not None:
                self.layers[-1].get_parameter("bias").add_(flat_start(start, self.output_shape))
            if positive:
                next(self.layers.parameters()).abs_()

    def forward(self, z: Shaped[Tensor, "*batch_latents"]) -> Float[Tensor, "*batch_output"]:
        """Outputs ``(*batch, *output_shape)``: logits or means, as the likelihood reads them."""
        batch = self.batch_shape(z)
        if self.embedding is not None:
            are_vectors = len(batch) == z.dim() - 2
            table = self.embedding.weight
            z = z.to(table.dtype) @ table if are_vectors else self.embedding(z.long())
            z = z.flatten(start_dim=-2)
        return self.layers(z).reshape(*batch, *self.output_shape)

    def batch_shape(self, z: Shaped[Tensor, "*batch_latents"]) -> Sequence[int]:
        """The leading dims of codes ``(*batch, L)``, or of vectors over codes ``(*batch, L, V)``.

        Integers are codes; real numbers are vectors where their shape is that of vectors.
        """
        if z.is_floating_point() and tuple(z.shape[-2:]) == (self.num_latents, self.num_codes):
            return z.shape[:-2]
        if z.shape[-1:] != (self.num_latents,):
            raise ValueError(
                f"`z` must end in {self.num_latents} latents; got shape {tuple(z.shape)}."
            )
        return z.shape[:-1]


def batch_shape_of(x: Tensor, input_shape: Sequence[int]) -> Sequence[int]:
    """The leading dims of `x`, whose others must be `input_shape`; `x` must hold floats."""
    num_batch = x.dim() - len(input_shape)
    if num_batch < 0 or tuple(x.shape[num_batch:]) != tuple(input_shape):
        raise ValueError(
            f"`x` must have shape (*batch, {', '.join(map(str, input_shape))}); got "
            f"{tuple(x.shape)}. Reshape the data or build the network for that `input_shape`."
        )
    if not x.is_floating_point():
        raise ValueError(
            f"`x` must hold floating-point numbers; got {x.dtype}. Convert it first, as in "
            "x.float() / 255 or (x > 127).float()."
        )
    return x.shape[:num_batch]


def flat_start(start: Tensor, output_shape: Sequence[int]) -> Tensor:
    """The first outputs of a decoder as a vector."""
    if tuple(start.shape) != tuple(output_shape):
        raise ValueError(
            f"`start` must have the shape of the output, {tuple(output_shape)}; got "
            f"{tuple(start.shape)}. Average the data over their first axis."
        )
    return start.reshape(-1)


def _perceptron(
    width: int, hidden: Sequence[int], num_outputs: int, output_scale: float
) -> nn.Sequential:
    """Dense layers with ReLU between them.

    Hidden layers start as He et al. (2015) have it, with zero biases, so that they keep the scale
    of their input; the outputs start uniform within ``output_scale / sqrt(width)``.
    """
    widths = (width, *hidden, num_outputs)
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    for layer in layers[:-2]:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
    with torch.no_grad():
        for parameter in layers[-2].parameters():
            parameter.mul_(output_scale)
    return nn.Sequential(*layers[:-1])
