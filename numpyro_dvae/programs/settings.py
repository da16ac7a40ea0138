"""Plain values that a program finds around it, and that may choose how it goes.

They are attributes of its object, what it encloses, and the globals that it names, also by way of
functions beside it; of an object or a small container the entries that are plain values.
"""

from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from functools import partial
from types import FunctionType, MethodType, ModuleType
from typing import Any

__all__ = ["settings_of"]

_PLAIN = (bool, int, float, complex, str, bytes, type(None), Enum)
_PROGRAMS = (FunctionType, MethodType, partial)
_CONTAINERS = (dict, list, tuple)
_MOST_ENTRIES = 16  # of a container that may hold settings, and not data
_MOST_PROGRAMS = 64  # that are looked at, one by way of another


def settings_of(*programs: Callable | None) -> tuple[Any, ...]:
    """The plain values around programs, in an order that only depends on these.

    Args:
        programs: Functions, methods, or objects that are called.
    """
    found, queue, seen = list[Any](), list[Any](programs), set[int]()
    while queue and len(seen) < _MOST_PROGRAMS:
        program = queue.pop()
        if id(program) in seen:
            continue
        seen.add(id(program))
        for value in _around(program):
            if isinstance(value, _PLAIN):
                found.append(value)
            elif isinstance(value, _PROGRAMS):
                queue.append(value)
            else:
                found += [entry for entry in _entries(value) if isinstance(entry, _PLAIN)]
    return tuple(found)


def _around(program: Any) -> Iterator[Any]:
    """What a program sees beside its arguments."""
    if isinstance(program, partial):
        yield from (program.func, *program.args, *program.keywords.values())
    elif isinstance(program, MethodType):
        yield program.__func__
        yield from getattr(program.__self__, "__dict__", {}).values()
    elif isinstance(program, FunctionType):
        yield from _seen_by(program)
    elif program is not None:
        yield from getattr(program, "__dict__", {}).values()
        for name in ("__call__", "forward"):
            method = getattr(type(program), name, None)
            if isinstance(method, FunctionType) and method.__module__ == type(program).__module__:
                yield method


def _seen_by(function: FunctionType) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not filled yet
            continue
    for name in function.__code__.co_names:
        value = function.__globals__.get(name)
        is_function = isinstance(value, FunctionType)
        if not is_function or value.__module__ == function.__module__:
            yield value


def _entries(value: Any) -> Iterable[Any]:
    """Of a container, or an object that is no module of Python."""
    if not isinstance(value, _CONTAINERS):
        value = None if isinstance(value, ModuleType) else getattr(value, "__dict__", None)
        return value.values() if isinstance(value, dict) else ()
    if len(value) > _MOST_ENTRIES:
        return ()
    return value.values() if isinstance(value, dict) else value
