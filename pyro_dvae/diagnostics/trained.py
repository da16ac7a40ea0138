"""A trained pair of model and guide, run at its parameters, with everything left as it was.

What a `FitResult` holds is all that its programs see: Pyro's parameter store is put aside while
they run, so that other fits of the same names leave no trace. The store, and values, gradients and
modes of modules, are restored; the generators move, as they do in Pyro whenever something is drawn.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor

from pyro_dvae.fit.data import as_batch, to_device
from pyro_dvae.fit.result import is_pair
from pyro_dvae.fit.svi import device_of, evaluation_mode
from pyro_dvae.programs.handlers.parameters import AtParameters

__all__ = ["Trained", "as_trained"]


class Trained(NamedTuple):
    """A model and guide, and the values of their parameters."""

    model: Callable
    guide: Callable
    params: Mapping[str, Tensor]
    named: frozenset[str] = frozenset()  # of which the programs must ask for one, if there are any

    def arguments(self, data: tuple) -> tuple:
        """Data as model and guide are called with them, on the device of the parameters."""
        return to_device(as_batch(data), device_of(self, self.params.values())).args

    @contextmanager
    def at_parameters(self) -> Iterator[None]:
        """Run a block in evaluation mode at these parameters; restore all that it changes.

        Raises:
            ValueError: If the programs have a parameter that is missing, or has another shape, or
                do not ask for any of those that were named.
        """
        store = pyro.get_param_store()
        before = store.get_state()
        empty: Any = {"params": {}, "constraints": {}}
        with ExitStack() as stack:
            stack.callback(lambda: dict(store.items()))  # marks again what `get_state` unmarked
            stack.enter_context(store.scope(empty if isinstance(self, _Fitted) else before))
            stack.enter_context(evaluation_mode(self))
            handler = AtParameters(
                self.params, before["constraints"], complete=isinstance(self, _Fitted)
            )
            stack.enter_context(handler)
            yield
            known = handler.asked | before["params"].keys()
            if handler.asked and self.named and self.named.isdisjoint(known):
                raise ValueError(
                    f"`params` has {sorted(self.named)[:5]}, for which neither model nor guide "
                    f"asks with these data; they ask for {sorted(handler.asked)[:5]}. Leave them "
                    "out, or mend the names."
                )


class _Fitted(Trained):
    """Those of a `FitResult`, beside which there are no other parameters."""


def as_trained(result: Any, params: Mapping[str, Tensor] | None) -> Trained:
    """Take a `FitResult`, or a (model, guide) pair with or without parameters.

    A pair, or what `load_weights` returned, has its modules' and those of Pyro's store, less those
    that are given.

    Raises:
        ValueError: If it is neither, or if a parameter has a NaN.
    """
    if not (params is None or isinstance(params, Mapping)):
        raise ValueError(f"`params` must be a dict of parameters by name; got {params!r}.")
    if is_pair(result):
        return Trained(*result, _numbers(params or {}), frozenset(params or ()))
    named = frozenset(params or ()) - result.params.keys()
    params = {**result.params, **(params or {})}
    if not result.params:  # of `load_weights`, which has put all where the programs find it
        return Trained(result.model, result.guide, _numbers(params), named)
    return _Fitted(result.model, result.guide, _numbers(params), named)


def _numbers(params: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    odd = [name for name, value in params.items() if bool(torch.as_tensor(value).isnan().any())]
    if odd:
        raise ValueError(
            f"parameter '{odd[0]}' has entries that are NaN, of which there is nothing to report. "
            "Take parameters of an earlier step, as from a checkpoint."
        )
    return params
