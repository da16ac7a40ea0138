"""Layers that the room's networks are built of, and the values that they start at."""

import itertools
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

__all__ = ["perceptron", "sinusoids"]


def perceptron(
    widths: Sequence[int],
    output_scale: float,
    center: Tensor | None = None,
    positive: bool = False,
) -> nn.Sequential:
    """Dense layers with ReLU between them.

    Hidden layers start as He et al. (2015) have it, with zero biases, so that they keep the scale
    of their input.

    Args:
        widths: Numbers of inputs, of the units of each hidden layer, and of outputs.
        output_scale: The outputs start uniform within ``output_scale / sqrt(widths[-2])``.
        center: Of this vector, one number per output; None is zero.
        positive: Whether the weights of the first layer start at their absolute values.
    """
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
        if center is not None:
            layers[-2].get_parameter("bias").add_(center)
        if positive:
            layers[0].get_parameter("weight").abs_()
    return nn.Sequential(*layers[:-1])


def run_perceptron(layers: nn.Sequential, x: Tensor) -> Tensor:
    """The outputs of dense layers, which see their input in the dtype of their weights."""
    return layers(x.to(layers[0].get_parameter("weight").dtype))


def check_dtype(dtype: Any) -> None:
    """Check what layers are to compute in.

    Raises:
        ValueError: If it is no half precision.
    """
    if dtype is not None and dtype not in (torch.bfloat16, torch.float16):
        raise ValueError(
            f"`dtype` must be torch.bfloat16, torch.float16 or None; got {dtype!r}. Other networks "
            "are cast as a whole, by `.to(dtype)`."
        )


def computing_in(dtype: torch.dtype | None, device: torch.device) -> AbstractContextManager:
    """A block in which layers compute in a half precision, if there is one."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def run_stages(
    stages: Iterable[Callable[..., Tensor]], x: Tensor, *context: Any, recompute: bool
) -> Tensor:
    """Stages in turn; those whose activations are not kept compute them again for the gradient."""
    recompute = recompute and torch.is_grad_enabled()
    for stage in stages:
        if recompute:  # nothing in a stage is drawn
            x = checkpoint(stage, x, *context, use_reentrant=False, preserve_rng_state=False)
        else:
            x = stage(x, *context)
    return x


def sinusoids(length: int, width: int, dtype: torch.dtype) -> Tensor:
    """Fixed position codes ``(length, width)``: sines, then cosines, of periods 2π to 2π·10⁴."""
    num_sines = (width + 1) // 2
    frequencies = 10_000.0 ** -torch.linspace(0, 1, num_sines, dtype=torch.float64)
    angles = torch.arange(length, dtype=torch.float64)[:, None] * frequencies
    table = torch.cat([angles.sin(), angles.cos()], dim=1)[:, :width]
    return table.to(dtype)


def start_at_xavier(net: nn.Module) -> None:
    """Xavier-uniform weights and zero biases in all dense layers, as usual for transformers."""
    for layer in net.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
