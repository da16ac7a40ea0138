"""Programs that go one way whatever they draw, known by what they are made of.

Models, guides, networks and quantisers of this package, of Pyro and of `torch.nn` ask no draw which
way to go. A program of these alone, with no function, hook, handler or argument of others anywhere
within, need not be watched as it runs, which costs a tiny step a tenth of its time: it goes the way
that it went when it was made of the same things.

Nor are there trials of a pair whose parts are all known to keep draws apart, as perceptrons and
tables do: a first step is then little more than a step.
"""

import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from functools import lru_cache, partial
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from pyro.nn import PyroModule
from pyro.poutine.runtime import _PYRO_STACK
from pyro.poutine.trace_messenger import TraceMessenger
from torch import Tensor, nn
from torch.nn.modules import module as hooks
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from pyro_dvae.programs.sites import Pair

__all__ = ["keeps_draws_apart", "made_of"]

# Not all of Torch: scripts and what `torch.compile` makes have code of others within.
_OURS = f"{__name__.partition('.')[0]}."
_KNOWN = (_OURS, "pyro.", "torch.nn.", "torch.distributions.")
_CHECKS = "jaxtyping."  # which wraps functions whose types are checked
_STATIC = frozenset((bool, int, str, type(None), torch.dtype))  # may choose the way
_DATA = (float, complex, bytes, Tensor, np.ndarray, np.generic, torch.device, torch.Generator)
_DATA_TYPES = frozenset((*_DATA, nn.Parameter))
_LISTS = frozenset((list, tuple, set, frozenset, torch.Size))
_MAPS = frozenset((dict, OrderedDict))
_OF_MODULES = frozenset(vars(nn.Module()))  # attributes that each has
_HOOKS = tuple(name for name in _OF_MODULES if name.endswith("_hooks"))
_GLOBAL_HOOKS = tuple(
    name for name in vars(hooks) if name.startswith("_global_") and name.endswith("_hooks")
)
# Parts in which no draw of a datum or particle meets that of another, and their parts that no draw
# enters at all: an encoder sees data.
_APART: dict[str, tuple[str, ...]] = {
    "guides.autoregressive.AutoregressiveGuide": ("encoder",),
    "guides.independent.IndependentGuide": ("encoder",),
    "models.likelihoods.BernoulliLikelihood": (),
    "models.likelihoods.GaussianLikelihood": (),
    "models.priors.AutoregressivePrior": (),
    "models.priors.BernoulliPrior": (),
    "models.priors.CategoricalPrior": (),
    "models.priors.UniformPrior": (),
    "models.vae.DiscreteVAE": (),
    "nets.attention.Block": (),
    "nets.codebooks.Codebook": (),
    "nets.codebooks.FiniteScalars": (),
    "nets.decoders.CodebookDecoder": (),
    "nets.implicit.BinaryCodes": (),
    "nets.implicit.LinearCodebook": (),
    "nets.mlp.MLPDecoder": (),
    "nets.transformer.CausalTransformer": (),
}
_OF_TORCH = frozenset(  # by element, or along the last dim
    getattr(nn, name)
    for name in (
        "CELU ELU Embedding GELU Hardshrink Hardsigmoid Hardswish Hardtanh Identity LayerNorm "
        "LeakyReLU Linear LogSigmoid Mish ModuleDict ModuleList ReLU ReLU6 RMSNorm SELU Sequential "
        "SiLU Sigmoid Softplus Softshrink Softsign Tanh Tanhshrink Threshold"
    ).split()
)
_SETTINGS: tuple[Callable[[Any], bool], ...] = (  # of those of Torch
    lambda layer: len(getattr(layer, "normalized_shape", (1,))) == 1,
    lambda layer: getattr(layer, "max_norm", None) is None,
    lambda layer: not getattr(layer, "scale_grad_by_freq", False),
)


def made_of(pair: Pair) -> tuple | None:
    """What stands for the code that a call runs; None where some of it may ask the draws.

    Args:
        pair: Model, guide and arguments; handlers around are looked at as well.

    Returns:
        The kinds of modules, functions, and the settings of both: whole numbers, words and flags.
    """
    around = [hook for name in _GLOBAL_HOOKS for hook in vars(hooks)[name].values()]
    modes = (*_get_current_function_mode_stack(), *_get_current_dispatch_mode_stack())
    queue = [pair.model, pair.guide, pair.args, pair.kwargs, *_PYRO_STACK, *modes, *around]
    found, seen = list[Any](), set[int]()
    while queue:
        thing = queue.pop()
        kind = type(thing)
        if kind in _STATIC:
            found.append(thing)
        elif kind is float:  # a branch may be where it is none, or one
            found.append(thing if thing in (0.0, 1.0) else (float, thing > 0.0))
        elif kind is BuiltinFunctionType:
            found.append(thing)
        elif kind not in _DATA_TYPES and id(thing) not in seen:
            seen.add(id(thing))
            within = _within(thing)
            if within is None:
                return None
            found.append(_told(thing))
            queue += within
    return tuple(found)


def keeps_draws_apart(pair: Pair) -> bool:
    """Whether all parts of a pair are known to keep the draws of particles and of data apart.

    Args:
        pair: Model, guide and arguments; handlers around are looked at as well.
    """
    if not all(type(handler) is TraceMessenger for handler in _PYRO_STACK):
        return False
    for program in (pair.model, pair.guide):
        if not isinstance(program, nn.Module) or not _is_apart(program):
            return False
        if any(isinstance(part, PyroModule) for part in program.modules()):
            return False  # an encoder whose weights are drawn sees draws
    return made_of(pair) is not None


def _told(thing: Any) -> Any:
    """What of a thing itself may choose the way."""
    if isinstance(thing, FunctionType):
        return id(thing.__code__)
    if isinstance(thing, Enum):
        return type(thing), thing.name
    return thing if isinstance(thing, type) else type(thing)


def _is_apart(module: nn.Module) -> bool:
    """Whether a module and all parts of it that draws enter are known, and it calls no function."""
    kind = type(module)
    if any(callable(own) for name, own in vars(module).items() if name not in _OF_MODULES):
        return False
    name = f"{kind.__module__}.{kind.__qualname__}"
    if kind in _OF_TORCH:
        unseen: tuple[str, ...] = ()
        if not all(is_known(module) for is_known in _SETTINGS):
            return False
    elif name.startswith(_OURS) and name.removeprefix(_OURS) in _APART:
        unseen = _APART[name.removeprefix(_OURS)]
    else:
        return False
    parts = [part for part_of, part in module._modules.items() if part_of not in unseen]
    return all(part is None or _is_apart(part) for part in parts)


def _within(thing: Any) -> Iterable[Any] | None:
    """What a thing holds; None if it is of others, or one cannot tell."""
    kind: Any = type(thing)
    if kind in _LISTS:
        return (len(thing), *thing)
    if kind in _MAPS:
        return (*thing.keys(), *thing.values())
    if isinstance(thing, nn.Module):
        held = vars(thing)
        if not _is_known(kind) or not _runs_known(kind.forward) or any(map(held.get, _HOOKS)):
            return None
        own = [value for name, value in held.items() if name not in _OF_MODULES]
        tensors = (*held["_parameters"].values(), *held["_buffers"].values())
        lacks = [value is None for value in tensors]  # without statistics, it takes a batch's
        others = [value for value in tensors if type(value) not in _DATA_TYPES]
        return (held["training"], *held["_modules"].values(), *own, *lacks, *others)
    if kind is FunctionType:
        if not _runs_known(thing):
            return None
        if _module_of(thing).startswith(_CHECKS):
            return [thing.__wrapped__]
        filled = (cell.cell_contents for cell in thing.__closure__ or () if _is_filled(cell))
        return *filled, *(thing.__defaults__ or ()), *(thing.__kwdefaults__ or {}).values()
    if kind is MethodType:
        return thing.__func__, thing.__self__
    if isinstance(thing, partial) and (kind is partial or _is_known(kind)):
        return thing.func, thing.args, thing.keywords
    if issubclass(kind, type):
        return () if _is_known(thing) or thing.__module__ == object.__module__ else None
    if isinstance(thing, Enum):
        return ()
    if isinstance(thing, _DATA) and not isinstance(thing, Tensor):
        return ()
    return tuple(_held(thing)) if _is_known(kind) else None


def _held(thing: Any) -> Iterator[Any]:
    """What an object of a known kind keeps: attributes, with and without slots, and entries."""
    yield from getattr(thing, "__dict__", {}).values()
    kind: Any = type(thing)
    yield from (getattr(thing, name) for name in _slots_of(kind) if hasattr(thing, name))
    if isinstance(thing, dict):
        yield from (*thing.keys(), *thing.values())
    elif isinstance(thing, list | tuple | set | frozenset):
        yield from (len(thing), *thing)


@lru_cache(maxsize=1024)
def _slots_of(kind: type) -> tuple[str, ...]:
    slots = [vars(each).get("__slots__", ()) for each in kind.__mro__]
    return tuple(n for names in slots for n in ((names,) if isinstance(names, str) else names))


@lru_cache(maxsize=1024)
def _is_known(kind: type) -> bool:
    """Whether a class is of those that ask no draw, and so are all that it inherits from.

    What Pyro makes of someone's layer, `PyroModule[Layer]`, says that it is Pyro's.
    """
    own, *inherited = (str(each.__module__) for each in kind.__mro__)
    return own.startswith(_KNOWN) and all(
        name.startswith(_KNOWN) or name.partition(".")[0] in sys.stdlib_module_names
        for name in inherited
    )


def _runs_known(function: Any) -> bool:
    """The same of a function, by where it was written: a decorator takes the name of another."""
    return _module_of(function).startswith((*_KNOWN, _CHECKS))


def _module_of(function: Any) -> str:
    return str(getattr(function, "__globals__", {}).get("__name__", ""))


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True
