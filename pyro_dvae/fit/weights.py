"""Trained weights in a file, and back.

    save_weights("weights.pt", result)                   # and load_weights(path, (model, guide))

The file has the states of the two modules, and what else of Pyro's store their programs may have,
as by `pyro.param`, with its constraints.
"""

import copy
import io
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from pyro.distributions import constraints
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.distributions.constraints import Constraint
from torch.nn.parameter import is_lazy
from torch.serialization import safe_globals

from pyro_dvae.fit.checkpoints import damage_of
from pyro_dvae.fit.files import write_atomically
from pyro_dvae.fit.result import FitResult, as_result
from pyro_dvae.fit.svi import device_of
from pyro_dvae.ops.arguments import checked

__all__ = ["load_weights", "save_weights"]

_STORE = (
    "Pyro's store has all parameters: pyro.get_param_store().save(path), and .load(path) before "
    "these programs run; so has the checkpoint of fit(..., folder=...)."
)
_MODULES, _BESIDE = {"model", "guide"}, {"params", "constraints"}
_CONSTRAINTS: list[Any] = [  # that a file may hold: plain values alone, by which nothing is run
    kind
    for module in (constraints, torch.distributions.constraints)
    for kind in vars(module).values()
    if isinstance(kind, type) and issubclass(kind, Constraint)
]


@checked
def save_weights(path: str | os.PathLike[str], result: Any) -> None:
    """Write what was trained to a file: parameters, and the tables of codebooks.

    Parameters beside the modules, as of `pyro.param`, are those that Pyro's store has.

    Args:
        path: Of the file, which is replaced as a whole.
        result: What `fit` returned, or a pair (model, guide); both are modules.

    Raises:
        ValueError: If the model or the guide is no module, if the store does not have the
            parameters of the result, or if one has a constraint that is of no library.
    """
    result = as_result(result)
    _check_modules(result, "save_weights")
    states = {name: getattr(result, name).state_dict() for name in ("model", "guide")}
    if params := _beside_modules(result):
        known = pyro.get_param_store()._constraints
        states |= {"params": params, "constraints": {name: known[name] for name in params}}
        for name in params:
            _check_constraint(name, known[name])
    content = io.BytesIO()
    torch.save(states, content)
    write_atomically(Path(path), lambda file: file.write(content.getvalue()))


@checked
def load_weights(path: str | os.PathLike[str], result: Any) -> FitResult:
    """Read the weights of a model and guide that are built as those that were saved.

    Parameters beside the modules go into Pyro's store.

    Args:
        path: Of the file that `save_weights` wrote.
        result: A pair (model, guide), or a result; its weights are replaced, all or none.

    Returns:
        The model and guide, for the calls of this package.

    Raises:
        ValueError: If the file is no whole one of `save_weights`, or the weights are of other
            networks, or the model or the guide is no module.
    """
    result = as_result(result)
    _check_modules(result, "load_weights")
    states = _read(path, device_of(result, ()) or torch.device("cpu"))
    lazy = _are_lazy(result)
    before = {} if lazy else {n: copy.deepcopy(getattr(result, n).state_dict()) for n in _MODULES}
    try:
        if lazy:
            _load(as_result(copy.deepcopy((result.model, result.guide))), states)
        _load(result, states)
    except Exception as error:  # a module's own among them; some may have been replaced by then
        _load(result, before)
        raise ValueError(
            f"{path}: is of other networks than these. Build the pair as the one that was saved, "
            "and run once what makes its parameters as it runs, such as AutoDiscrete; "
            f"{type(error).__name__}: {error}"
        ) from error
    _fill_store(result, states)
    return FitResult(result.model, result.guide, {}, np.zeros(0))


def _check_modules(result: FitResult, call: str) -> None:
    for name in ("model", "guide"):
        if not isinstance(program := getattr(result, name), nn.Module):
            raise ValueError(
                f"`{call}` is for modules; the {name} is a {type(program).__name__}. {_STORE}"
            )


def _beside_modules(result: FitResult) -> dict[str, Tensor]:
    """Unconstrained parameters of Pyro's store, less those of the modules; a result's, or all."""
    store = pyro.get_param_store()
    stored, held = dict(store.named_parameters()), _held(result)
    others = _names_held(result)
    beside = [n for n in result.params or stored if id(stored.get(n)) not in held]
    beside = [n for n in beside if n not in others and n.split("$$$")[0] not in others]
    left_out = [name for name in beside if "$$$" in name]
    if left_out and held & set(map(id, stored.values())):  # the programs have run
        warnings.warn(
            f"{left_out[:5]} are of a network that is part of neither model nor guide, and are not "
            "in the file. Make it a part, as by `self.net = net`, if these programs have it.",
            stacklevel=3,
        )
    beside = [name for name in beside if name not in left_out]
    given = {name: value for name, value in result.params.items() if name in beside}
    other = [n for n, v in given.items() if n not in stored or not torch.equal(store[n], v)]
    if other:
        raise ValueError(
            f"`save_weights`: Pyro's store has other values than the result of {other[:5]}, or "
            "none. Put each back, pyro.get_param_store()[name] = result.params[name], after a run "
            "of the programs if there is none; or pass the pair (model, guide), to write those of "
            "the store."
        )
    return {name: stored[name].detach() for name in beside}


def _held(result: FitResult) -> set[int]:
    return {id(value) for root in (result.model, result.guide) for value in root.parameters()}


def _names_held(result: FitResult) -> set[str]:
    """What the store calls the modules, or parameters of theirs, whose place others may have."""
    stored = dict(pyro.get_param_store().named_parameters())
    there = {id(value) for value in stored.values()}
    held, names, missing = _held(result), set[str](), set[str]()
    for root in (result.model, result.guide):
        names |= _pyro_names(root)
        missing |= {key for key, value in root.named_parameters() if id(value) not in there}
    for name in (*stored, *result.params):
        network, *key = name.split("$$$")
        is_missing = {"$$$".join(key), name.replace("$$$", ".")} & missing
        if key and (id(stored.get(name)) in held or is_missing):
            names.add(network)
    return names


def _pyro_names(root: nn.Module) -> set[str]:
    """What the store calls the parameters of a module of Pyro's."""
    if not isinstance(root, PyroModule):
        return set()
    keys = (key.removesuffix("_unconstrained") for key, _ in root.named_parameters())
    return {f"{root._pyro_name}.{key}".lstrip(".") for key in keys}


def _check_constraint(name: str, constraint: Any) -> None:
    content = io.BytesIO()
    try:
        torch.save(constraint, content)
        with safe_globals(_CONSTRAINTS):
            torch.load(io.BytesIO(content.getvalue()), weights_only=True)
    except Exception:  # of a class that a file would have to name, for it to be run
        raise ValueError(
            f"`save_weights`: the parameter '{name}' has a constraint that is none of Pyro's, "
            f"{type(constraint).__name__}, which no file of weights holds. Make the parameter a "
            f"part of a module, by nn.Parameter or PyroParam. {_STORE}"
        ) from None


def _fill_store(result: FitResult, states: dict[str, Any]) -> None:
    """Put parameters into the store, and take out those that a module would take for its own."""
    store, held = pyro.get_param_store(), _held(result)
    params, constraints = (dict(states.get(name, {})) for name in ("params", "constraints"))
    names = _pyro_names(result.model) | _pyro_names(result.guide)
    for name, value in list(store.named_parameters()):
        if name in params or (name in names and id(value) not in held):
            del store[name]
    params = {name: value.requires_grad_() for name, value in params.items()}
    store.set_state({"params": params, "constraints": constraints})


def _are_lazy(result: FitResult) -> bool:
    """Whether loading gives a parameter its shape, which it could not lose again."""
    parameters = (*result.model.parameters(), *result.guide.parameters())
    return any(is_lazy(value) for value in parameters)


def _load(result: FitResult, states: dict[str, Any]) -> None:
    for name in _MODULES & states.keys():
        network, state = getattr(result, name), states[name]
        network.load_state_dict(state)
        for key, value in network.state_dict().items():
            found, here = (getattr(each, "dtype", None) for each in (state.get(key), value))
            if found and here and not torch.can_cast(found, here):  # Torch cuts its values off
                raise TypeError(f"'{key}' is of {found} in the file, and of {here} here.")


def _read(path: str | os.PathLike[str], device: torch.device) -> dict[str, Any]:
    """The states of model and guide, of a file whose checksums hold."""
    content = Path(path).read_bytes()
    if (damage := damage_of(io.BytesIO(content), len(content))) is not None:
        raise _not_whole(path, damage)
    try:
        with safe_globals(_CONSTRAINTS):
            states = torch.load(io.BytesIO(content), map_location=device, weights_only=True)
    except Exception:  # whatever it says, the fix is not to trust the file
        raise _not_whole(path, "it holds more than tensors and plain values") from None
    if not isinstance(states, dict) or states.keys() not in (_MODULES, _MODULES | _BESIDE):
        raise _not_whole(path, "it does not hold the states of a model and a guide")
    return states


def _not_whole(path: str | os.PathLike[str], reason: str) -> ValueError:
    return ValueError(
        f"`path`: {str(path)!r} cannot be read as weights: {reason}. Put a copy in its place, or "
        "write it again with `save_weights`."
    )
