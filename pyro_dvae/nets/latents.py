"""What the decoders with a table of their own are called with: codes, or what stands for them."""

from collections.abc import Sequence

import torch
from jaxtyping import Shaped
from torch import Tensor

from pyro_dvae.nets.inputs import check_codes
from pyro_dvae.nets.registration import gets_vectors

__all__ = ["latents_batch"]


def latents_batch(
    z: Shaped[Tensor, "*batch_latents"], num_latents: int, num_codes: int | None, instead: str
) -> Sequence[int]:
    """The leading dims of codes ``(*batch, L)``, or of relaxed codes ``(*batch, L, V)``.

    Integers are codes; real numbers are relaxed codes where their shape is that of such.

    Args:
        z: What a decoder is called with.
        num_latents: Latents per datum, L.
        num_codes: Values of a latent, V; None where real numbers are decoded as they are.
        instead: The decoder to use with a codebook, for the error.

    Raises:
        ValueError: If `z` does not hold L latents, holds integers that are no codes, or vectors of
            another's table.
    """
    # Dynamo does not read Pyro's handlers; a model asks before it decodes, in Python.
    if num_codes is not None and not torch.compiler.is_compiling() and gets_vectors():
        raise ValueError(
            f"{instead.partition('(')[0]} has a table of its own, but the guide hands it vectors "
            f"of another. Use CodebookDecoder(codebook, {instead})."
        )
    if z.is_floating_point() and tuple(z.shape[-2:]) == (num_latents, num_codes):
        return z.shape[:-2]
    if z.shape[-1:] != (num_latents,):
        raise ValueError(f"`z` must end in {num_latents} latents; got shape {tuple(z.shape)}.")
    check_codes(z, num_codes, "z")
    return z.shape[:-1]
