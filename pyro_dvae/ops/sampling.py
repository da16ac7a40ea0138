"""Draw codes by inverting their cumulative distribution: one uniform each.

Shapes: particles lead, as in ``(K, *batch)``; the V values of a code come last in the logits.
"""

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from pyro_dvae.ops.dtypes import precise_dtype

__all__ = ["sample_codes"]


def sample_codes(
    logits: Float[Tensor, "*batch V"], uniforms: Float[Tensor, "K *batch"]
) -> Integer[Tensor, "K *batch"]:
    """Turn one uniform in [0, 1) per code into draws from ``softmax(logits)``.

    Inverts the cumulative distribution, so K draws cost one pass over `logits`. A code of
    zero probability is never drawn: a step of zero height is not the first above any target.
    NaN logits give the last code; their log-probability is NaN and shows.

    Example:
        >>> sample_codes(torch.tensor([0.0, 0.0]), torch.tensor([0.1, 0.9]))
        tensor([0, 1])
    """
    dtype = precise_dtype(logits.dtype)
    mass = torch.softmax(logits.detach(), dim=-1, dtype=dtype).cumsum(dim=-1)
    total = mass[..., -1:]  # 1 up to rounding
    below = torch.nextafter(total, torch.zeros_like(total))  # u * total may round up to total
    targets = torch.minimum(uniforms.movedim(0, -1).to(dtype) * total, below)
    codes = torch.searchsorted(mass, targets.contiguous(), right=True)
    return codes.clamp(max=logits.shape[-1] - 1).movedim(-1, 0)
