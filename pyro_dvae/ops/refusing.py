"""Say that a gradient is not there, where it would silently be zero."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from pyro_dvae.ops.arguments import checked

__all__ = ["refuse_gradient"]


@checked
def refuse_gradient(
    value: Float[Tensor, "*shape"], source: Float[Tensor, "..."], message: str
) -> Float[Tensor, "*shape"]:
    """`value`; whoever asks for the gradient that reaches `source` through it gets an error.

    Args:
        value: What is returned as it is; its own gradient is refused as well.
        source: What has no gradient through `value`.
        message: Of the `ValueError`.
    """
    return _Refused.apply(value, source, message)


class _Refused(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, source: Tensor, message: str) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.message = inputs[2]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        raise ValueError(ctx.message)
