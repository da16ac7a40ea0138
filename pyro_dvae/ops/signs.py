"""Quantise vectors by the signs of their channels: codebooks without a table to look up.

Each of C channels is rounded to +1 or -1 [1], so that there are 2^C codes. On the unit sphere [2]
a vector is first scaled to length 1 and its code lies on the sphere as well, at ±1 / √C: the error
is bounded then, and all codes are as far from the origin.

Shapes: codes are the trailing batch, vectors have one axis more. The first channel changes fastest,
as in `quantizing.levels_to_codes`.

References:
    [1] Yu et al. Language model beats diffusion: tokenizer is key to visual generation. ICLR, 2024.
    [2] Zhao, Xiong & Krähenbühl. Image and video tokenization with binary spherical quantization.
        ICLR, 2025.
"""

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from pyro_dvae.ops.arguments import checked
from pyro_dvae.ops.relaxing import with_slope

__all__ = ["on_sphere", "quantize_signs", "sign_vectors"]


def on_sphere(inputs: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
    """The direction of each vector, of length 1; 0 stays 0, with the gradient of 0."""
    largest = inputs.detach().abs().amax(-1, keepdim=True)  # squares neither over- nor underflow
    is_zero = largest == 0
    scaled = inputs / torch.where(is_zero, 1.0, largest)
    squares = scaled.square().sum(-1, keepdim=True)
    return torch.where(is_zero, 0.0, scaled / torch.where(is_zero, 1.0, squares).sqrt())


@checked
def quantize_signs(
    inputs: Float[Tensor, "*batch C"], scale: float = 1.0
) -> tuple[Float[Tensor, "*batch C"], Integer[Tensor, "*batch"]]:
    """Round each channel to ``scale`` or ``-scale``; 0 is rounded down.

    Returns:
        The vectors, with the gradient of the inputs, and their codes.
    """
    positive = inputs.detach() > 0
    vectors = torch.where(positive, scale, -scale).to(inputs.dtype)
    places = 2 ** torch.arange(inputs.shape[-1], device=inputs.device)
    return with_slope(vectors, inputs), (positive * places).sum(-1)


@checked
def sign_vectors(
    codes: Integer[Tensor, "*batch"], num_channels: int, scale: float = 1.0
) -> Float[Tensor, "*batch C"]:
    """The vectors of codes, of channels ``scale`` and ``-scale``."""
    places = 2 ** torch.arange(num_channels, device=codes.device)
    positive = codes[..., None] // places % 2 == 1
    return torch.where(positive, scale, -scale).to(torch.get_default_dtype())
