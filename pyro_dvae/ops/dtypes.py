"""In which precision numbers are summed and compared: float32 at least."""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

__all__ = ["precise", "precise_dtype"]


def precise_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of log-densities whose logits have this one: float32 at least."""
    return torch.promote_types(dtype, torch.float32)


def precise(array: Shaped[Tensor, "..."]) -> Float[Tensor, "..."]:
    """The same numbers in float32, or in a finer dtype where they have one."""
    return array.to(precise_dtype(array.dtype))
