"""How many of its codes a batch uses, without an array over all of them."""

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

__all__ = ["codes_in_use"]


def codes_in_use(
    codes: Integer[Tensor, "*shape"], mask: Bool[Tensor, "*#shape"] | None = None
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """The number of codes that occur, and their perplexity.

    That is how many equally frequent codes would have the entropy of theirs, all latents together.

    Args:
        codes: Of all data and latents that share a table.
        mask: Which of them count; None is all.
    """
    flat = codes.reshape(-1).long()
    if mask is not None:
        flat = torch.where(mask.expand(codes.shape).reshape(-1), flat, -1)
    row = flat.sort().values
    counts = torch.searchsorted(row, row, right=True) - torch.searchsorted(row, row)
    weights = (row >= 0).float()
    total = weights.sum().clamp(min=1)
    return (weights / counts).sum(), total / ((weights * counts.log()).sum() / total).exp()
