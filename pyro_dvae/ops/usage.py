"""How many of its codes a batch uses, without an array over all of them."""

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

__all__ = ["codes_in_use"]


def codes_in_use(
    codes: Integer[Tensor, "*shape"], mask: Bool[Tensor, "*#shape"]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """The number of codes that occur, and their perplexity.

    That is how many equally frequent codes would have the entropy of theirs, all latents together.

    Args:
        codes: Of all data and latents that share a table.
        mask: Which of them count.
    """
    kept = mask.expand(codes.shape).reshape(-1)
    row = torch.where(kept, codes.reshape(-1).long(), -1).sort().values
    counts = torch.searchsorted(row, row, right=True) - torch.searchsorted(row, row)
    weights = (row >= 0).float()
    total = weights.sum().clamp(min=1)
    entropy = -(weights * (counts / total).log()).sum() / total
    return (weights / counts).sum(), entropy.exp()
