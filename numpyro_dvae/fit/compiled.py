"""Programs compiled once for all runs that lower to the same text, of arguments built alike.

Each run traces its steps anew, so that whatever the programs have become since is seen; what they
lower to is compared with what was compiled before, and XLA is asked only for what is new. So a
second `fit` of the same `SVI` costs the tracing, not the compilation.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import jax

__all__ = ["Compiled"]

_MOST = 32  # programs that are kept
_PROGRAMS: OrderedDict[Any, Any] = OrderedDict()  # by text and structures, the latest last


class Compiled:
    """A function that is compiled for each structure, shape and type of its arguments.

    Args:
        function: Pure.
        static: Places of arguments that are constants of the program.
        donated: Places of arguments that are given away.
    """

    def __init__(
        self, function: Callable, *, static: tuple[int, ...], donated: tuple[int, ...] = ()
    ) -> None:
        self._jitted = jax.jit(function, static_argnums=static, donate_argnums=donated)
        self._static, self._known = static, dict[Any, Any]()
        self._lowered = dict[Any, Any]()  # what is not compiled yet

    def __call__(self, *args: Any) -> Any:
        """Call the program for such arguments."""
        known, looks, dynamic = self._split(args)
        if known not in self._known:
            lowered = self._lowered.pop(known, None) or self._jitted.lower(*args)
            self._known[known] = _program(lowered, looks)
        return self._known[known](*dynamic)

    def holds(self, operation: str, *args: Any) -> bool:
        """Whether the program for such arguments holds an operation of StableHLO."""
        known, *_ = self._split(args)
        if known not in self._lowered:
            self._lowered[known] = self._jitted.lower(*args)
        return f"stablehlo.{operation}" in self._lowered[known].as_text()

    def _split(self, args: tuple) -> tuple[Any, tuple, list[Any]]:
        """What a program is known by, what it must know of its arguments, and these."""
        dynamic = [arg for i, arg in enumerate(args) if i not in self._static]
        leaves, structure = jax.tree.flatten(dynamic)
        looks = tuple(map(_looks, leaves))
        return (structure, tuple(args[i] for i in self._static), looks), looks, dynamic


def _looks(leaf: Any) -> Any:
    """What a program must know of an argument."""
    if isinstance(leaf, jax.Array):
        weak = getattr(leaf, "weak_type", False)  # typed keys have none
        return leaf.shape, leaf.dtype, weak, leaf.sharding
    return getattr(leaf, "shape", None), getattr(leaf, "dtype", type(leaf))


def _program(lowered: Any, looks: tuple) -> Any:
    """The compiled program of a text; one with functions of the host is its run's own."""
    text = lowered.as_text()
    has_arguments_of_its_own = getattr(lowered._lowering, "const_args", None)  # large constants
    if "callback" in text or has_arguments_of_its_own:
        return lowered.compile()
    # a constant's place among the arguments, as of a None, is in the structure and not in the text
    structures = lowered.in_tree, lowered.out_tree
    # and the devices are in the looks
    key = hashlib.sha256(text.encode()).hexdigest(), *structures, looks
    if key not in _PROGRAMS:
        _PROGRAMS[key] = lowered.compile()
        if len(_PROGRAMS) > _MOST:
            _PROGRAMS.popitem(last=False)
    _PROGRAMS.move_to_end(key)
    return _PROGRAMS[key]
