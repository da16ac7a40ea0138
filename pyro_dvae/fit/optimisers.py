"""AdamW for an `SVI`, with what trainings at scale want of it.

Pyro has an optimiser for each parameter. Here all parameters have one, so that a norm is that of
the whole gradient and a step is a few calls for all of them.

    svi = SVI(model, guide, adamw(3e-4, clip_units=1.0, average=0.999), loss=DAPS_ELBO())
    result = fit(svi, images, ...)
    smooth = averaged(svi, result)

References:
    Loshchilov & Hutter. Decoupled weight decay regularization. ICLR, 2019.
    Brock, De, Smith & Simonyan. High-performance large-scale image recognition without
    normalization. ICML, 2021 (unit-wise clipping, equation 3).
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import pyro
import torch
from jaxtyping import Float
from pyro.infer import SVI
from pyro.optim import PyroOptim
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from pyro_dvae.fit.result import FitResult
from pyro_dvae.fit.svi import trained_parameters
from pyro_dvae.ops.arguments import check_counts, check_numbers, checked

__all__ = ["adamw", "averaged"]

_LEAST_NORM = 1e-3  # of a unit's weights, lest those that start at 0 stay there; as in optax


@checked
def adamw(
    learning_rate: float | Callable[[Any], Any],
    *,
    weight_decay: float = 0.0,
    clip_norm: float | None = None,
    clip_units: float | None = None,
    accumulate: int = 1,
    average: float | None = None,
) -> PyroOptim:
    """Make an optimiser of all parameters together.

    What it holds is part of `fit`'s checkpoints: a run that goes on has the same numbers.

    Args:
        learning_rate: A number, or a schedule: from the number of updates so far to a number.
        weight_decay: How much of each weight is taken away, in units of the learning rate; 0 is
            Adam.
        clip_norm: Norm that the gradient of all parameters is scaled down to, if it is greater.
        clip_units: Norm that the gradient of each unit is scaled down to, in units of the norm of
            its weights, if it is greater; a unit is an output of a layer: a row of the weights in
            Torch, a column in JAX.
        accumulate: Steps whose mean gradient makes one update.
        average: Decay of moving averages of all parameters after each update, below 1; `averaged`
            puts them in the place of the parameters. None keeps none.

    Returns:
        What an `SVI` takes.

    Raises:
        ValueError: If an argument is out of its range.
    """
    _check(learning_rate, weight_decay, clip_norm, clip_units, accumulate, average)
    settings: dict[str, Any] = {"learning_rate": learning_rate, "weight_decay": weight_decay}
    settings |= {"clip_norm": clip_norm, "clip_units": clip_units}
    settings |= {"accumulate": accumulate, "average": average}
    return _Joint(settings)


@checked
def averaged(svi: SVI, result: FitResult) -> FitResult:
    """Put the moving averages of the parameters in their place.

    Args:
        svi: What was trained, by ``adamw(..., average=...)``.
        result: What `fit` returned of it.

    Returns:
        The same, with the averages for parameters. Tables of codebooks that move by averages of
        their own, and other buffers, are as they were.

    Raises:
        ValueError: If the optimiser keeps no averages.
    """
    if not isinstance(svi.optim, _Joint) or svi.optim.settings["average"] is None:
        raise ValueError(
            "`svi` keeps no averages of its parameters: train it by an optimiser made by "
            "`adamw(..., average=0.999)`."
        )
    svi.optim.take_averages()
    return dataclasses.replace(result, params=trained_parameters(svi))


class _Joint(PyroOptim):
    """One AdamW of all parameters, in the order of their names."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__(torch.optim.AdamW, settings)
        self.settings = settings
        self._steps, self._names = 0, list[str]()
        self._params, self._known = list[Tensor](), set[Tensor]()
        self._optimiser: torch.optim.AdamW | None = None
        self._sums, self._averages = list[Tensor](), list[Tensor]()

    def __call__(self, params: Iterable[Tensor], *_: Any, **__: Any) -> None:
        """Take the gradients of a step, and make an update if one is due."""
        if not self._known.issuperset(params) or not self.optim_objs:
            self._begin({*self._known, *params} if self.optim_objs else set(params))
        self._steps += 1
        every = self.settings["accumulate"]
        if every > 1:
            self._accumulate(every)
            if self._steps % every:
                return
        self._update((self._steps - 1) // every)

    @torch.no_grad()
    def _accumulate(self, every: int) -> None:
        """Add to the sums of gradients; at the last step before an update, hand these over."""
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._params]
        torch._foreach_add_(self._sums, grads, alpha=1.0 / every)
        if self._steps % every == 0:
            for param, total in zip(self._params, self._sums, strict=True):
                param.grad = total.clone()
            torch._foreach_zero_(self._sums)

    def _update(self, count: int) -> None:
        settings, optimiser = self.settings, self._optimiser
        assert optimiser is not None
        with_grads = [param for param in self._params if param.grad is not None]
        if settings["clip_norm"] is not None:
            torch.nn.utils.clip_grad_norm_(with_grads, settings["clip_norm"])
        if settings["clip_units"] is not None:
            for param in with_grads:
                assert param.grad is not None
                param.grad = clip_units(param.grad, param.detach(), settings["clip_units"])
        rate = settings["learning_rate"]
        optimiser.param_groups[0]["lr"] = rate(count) if callable(rate) else rate
        optimiser.step()
        if settings["average"] is not None:
            with torch.no_grad():
                get_ema_multi_avg_fn(settings["average"])(self._averages, self._params, count)

    def _begin(self, params: set[Tensor]) -> None:
        """Take in parameters that are new, and what a checkpoint holds of them."""
        states = self.get_state() | self._state_waiting_to_be_consumed
        self._state_waiting_to_be_consumed.clear()
        names = {str(pyro.get_param_store().param_name(param)): param for param in params}
        self._names = sorted(names)
        self._params, self._known = [names[name] for name in self._names], params
        decay = self.settings["weight_decay"]
        self._optimiser = torch.optim.AdamW(self._params, lr=0.0, weight_decay=decay)
        self.optim_objs.update(dict.fromkeys(self._params, self._optimiser))
        self._sums = [torch.zeros_like(param) for param in self._params]
        self._averages = [param.detach().clone() for param in self._params]
        for i, (name, param) in enumerate(zip(self._names, self._params, strict=True)):
            if (state := states.get(name)) is not None:
                self._steps = state["steps"]
                self._restore(i, param, state)

    @torch.no_grad()
    def _restore(self, i: int, param: Tensor, state: dict[str, Any]) -> None:
        assert self._optimiser is not None
        if state["adam"]:  # `step` stays where it is
            held = {key: value.clone() for key, value in state["adam"].items()}
            held |= {key: v.to(param.device) for key, v in held.items() if key != "step"}
            self._optimiser.state[param] = held
        self._sums[i].copy_(state["sum"])
        self._averages[i].copy_(state["average"])

    def get_state(self) -> dict[str, Any]:
        """What is held of each parameter, by its name."""
        if not self.optim_objs or self._optimiser is None:
            return {}
        held = zip(self._names, self._params, self._sums, self._averages, strict=True)
        return {
            name: {
                "adam": dict(self._optimiser.state.get(param, {})),
                "sum": total,
                "average": average,
                "steps": self._steps,
            }
            for name, param, total, average in held
        }

    @torch.no_grad()
    def take_averages(self) -> None:
        """Put the averages in the place of the parameters."""
        states = self.get_state() or self._state_waiting_to_be_consumed  # of a run at its end
        params = dict(pyro.get_param_store().named_parameters())
        for name, state in states.items():
            params[name].copy_(state["average"])


def clip_units(
    grad: Float[Tensor, "..."], weights: Float[Tensor, "..."], ratio: float
) -> Float[Tensor, "..."]:
    """Scale the gradient of a unit down to `ratio` times the norm of its weights.

    A unit is a row of the first axis; a vector is one unit. ``optax.adaptive_grad_clip`` on
    weights that lie the other way.
    """
    dims = tuple(range(1, grad.dim())) if weights.squeeze().dim() > 1 else None
    norm = torch.linalg.vector_norm(grad, dim=dims, keepdim=True)
    most = ratio * torch.linalg.vector_norm(weights, dim=dims, keepdim=True).clamp(min=_LEAST_NORM)
    return torch.where(norm < most, grad, grad * (most / norm.clamp(min=1e-6)))


def _check(
    learning_rate: Any,
    weight_decay: float,
    clip_norm: float | None,
    clip_units: float | None,
    accumulate: int,
    average: float | None,
) -> None:
    if not callable(learning_rate):
        check_numbers(above=0.0, learning_rate=learning_rate)
    check_numbers(least=0.0, weight_decay=weight_decay)
    for name, value in (("clip_norm", clip_norm), ("clip_units", clip_units)):
        if value is not None:
            check_numbers(above=0.0, **{name: value})
    check_counts(accumulate=accumulate)
    if average is not None and not 0.0 <= average < 1.0:
        raise ValueError(f"`average` must be in [0, 1), or None; got {average}.")
