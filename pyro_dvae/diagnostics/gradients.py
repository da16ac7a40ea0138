"""How noisy is the gradient of a loss, and do two losses agree? By repeated evaluation.

At fixed parameters a loss's gradient g is a random vector. With R evaluations, the trace of its
covariance and the length of its mean are estimated without bias (``‖mean‖² - trace / R`` for the
squared length), and the cosine between the means of two losses, whose draws are independent.
Their ratio ``‖E g‖ / sqrt(tr Cov g)`` is the signal-to-noise ratio: the cosine between one
gradient and the true one is about ``snr / sqrt(1 + snr²)``. Losses differ in length: compare
variances of losses of one expectation, and signal-to-noise ratios of any.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor

from pyro_dvae.diagnostics.quality import GradientQuality, check_losses, gradient_quality
from pyro_dvae.diagnostics.trained import Trained, as_trained
from pyro_dvae.diagnostics.waiting import waited
from pyro_dvae.fit.svi import loss_unchanged
from pyro_dvae.ops.arguments import checked

__all__ = ["gradient_variance"]


@checked
def gradient_variance(
    result: Any,
    *data: Any,
    losses: Mapping[str, Any],
    num_repeats: int = 100,
    select: Callable[[str], bool] | None = None,
    params: Mapping[str, Tensor] | None = None,
) -> GradientQuality:
    """Evaluate the gradients of losses many times at the same parameters, on the same data.

    Args:
        result: What `fit` returned, or a pair (model, guide).
        *data: What model and guide are called with: one batch.
        losses: Losses to compare, this package's or Pyro's own, by names of your choice. Each keeps
            the state that it has.
        num_repeats: Evaluations of each loss, R.
        select: Which parameters to look at, by name, as
            ``lambda name: name.startswith("guide")``; all by default.
        params: Parameters by name, in place of those of `result`.

    Returns:
        Signal, noise and signal-to-noise ratio of each loss, the cosines between them, and the
        variance of each parameter; `print` it for a table.

    Raises:
        ValueError: If there are no losses, fewer than 2 repeats, or no parameter is selected.
    """
    check_losses(losses, num_repeats, "loss_and_grads")
    trained = as_trained(result, params)
    args = trained.arguments(data)
    with trained.at_parameters(), _gradients_unchanged():
        moments = {
            name: _moments(loss, trained, args, num_repeats, select)
            for name, loss in losses.items()
        }
    return gradient_quality(moments, num_repeats)


def _moments(
    loss: Any,
    trained: Trained,
    args: tuple,
    num_repeats: int,
    select: Callable[[str], bool] | None,
) -> dict[str, tuple[np.ndarray, float]]:
    """Mean of each parameter's gradient, and the trace of its covariance."""
    sums: dict[str, Tensor] = {}
    squares: dict[str, Tensor] = {}
    for _ in waited(range(num_repeats), "gradients"):
        for name, gradient in _gradients(loss, trained, args).items():
            if select is None or select(name):
                sums[name] = sums.get(name, 0.0) + gradient
                squares[name] = squares.get(name, 0.0) + gradient.square().sum()
    means = {name: value / num_repeats for name, value in sums.items()}
    return {
        name: (
            mean.cpu().numpy(),
            max(float(squares[name] - num_repeats * mean @ mean), 0.0) / (num_repeats - 1),
        )
        for name, mean in means.items()
    }


def _gradients(loss: Any, trained: Trained, args: tuple) -> dict[str, Tensor]:
    """One gradient of each parameter as a vector, in double precision; the loss forgets it."""
    for _, parameter in pyro.get_param_store().named_parameters():
        parameter.grad = None
    with loss_unchanged(loss):
        loss.loss_and_grads(trained.model, trained.guide, *args)
    gradients = {}
    for name, parameter in pyro.get_param_store().named_parameters():
        grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        gradients[name] = grad.double().flatten()
    return gradients


@contextmanager
def _gradients_unchanged() -> Iterator[None]:
    """Restore the gradients that tensors of the parameter store have."""
    before = [(p, p.grad) for _, p in pyro.get_param_store().named_parameters()]
    try:
        yield
    finally:
        for _, parameter in pyro.get_param_store().named_parameters():
            parameter.grad = None
        for parameter, grad in before:
            parameter.grad = grad
