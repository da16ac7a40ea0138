"""Plain values that a program finds around it, and that may choose how it goes.

They are attributes of its object and of that's class, what it encloses, and the globals that it
names, those of modules among them, also by way of functions beside it and within; of an object or a
small container the entries that are plain values, and of objects in it theirs.
"""

from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from functools import partial
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

__all__ = ["settings_of"]

_PLAIN = (bool, int, float, complex, str, bytes, type(None), Enum)
_PROGRAMS = (FunctionType, MethodType, partial)
_CONTAINERS = (dict, list, tuple)
_MOST_ENTRIES = 256  # of a container that may hold settings, and not data
_DEEPEST = 2  # entries of entries
_MOST_PROGRAMS = 64  # that are looked at, one by way of another


def settings_of(*programs: Callable | None) -> tuple[Any, ...]:
    """The plain values around programs, in an order that only depends on these.

    Args:
        programs: Functions, methods, or objects that are called, or passed to these.
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
                found += _plain_entries(value, _DEEPEST)
    return tuple(found)


def _around(program: Any) -> Iterator[Any]:
    """What a program sees beside its arguments."""
    if isinstance(program, partial):
        yield from (program.func, *program.args, *program.keywords.values())
    elif isinstance(program, MethodType):
        yield program.__func__
        yield from _attributes(program.__self__)
    elif isinstance(program, FunctionType):
        yield from _seen_by(program)
    elif program is not None:
        yield from _attributes(program)
        for name in ("__call__", "forward"):
            method = getattr(type(program), name, None)
            if isinstance(method, FunctionType) and method.__module__ == type(program).__module__:
                yield method


def _attributes(thing: Any) -> Iterator[Any]:
    """Of an object, and the plain ones of its class and of those beside that."""
    yield from getattr(thing, "__dict__", {}).values()
    for kind in type(thing).__mro__:
        if kind.__module__ == type(thing).__module__:
            yield from (value for value in vars(kind).values() if isinstance(value, _PLAIN))


def _seen_by(function: FunctionType) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not filled yet
            continue
    names = tuple(_names_of(function.__code__))
    for name in names:
        value = function.__globals__.get(name)
        if isinstance(value, ModuleType):
            found = (vars(value).get(other, value) for other in names)
            yield from (each for each in found if isinstance(each, _PLAIN))
        is_function = isinstance(value, FunctionType)
        if not is_function or value.__module__ == function.__module__:
            yield value


def _names_of(code: CodeType) -> Iterator[str]:
    """Of globals and attributes, those in functions within among them."""
    yield from code.co_names
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _names_of(inner)


def _plain_entries(value: Any, depth: int) -> Iterator[Any]:
    for entry in _entries(value):
        if isinstance(entry, _PLAIN):
            yield entry
        elif depth > 1:
            yield from _plain_entries(entry, depth - 1)


def _entries(value: Any) -> Iterable[Any]:
    """Of a container, or an object that is no module of Python."""
    if not isinstance(value, _CONTAINERS):
        value = None if isinstance(value, ModuleType) else getattr(value, "__dict__", None)
        return value.values() if isinstance(value, dict) else ()
    if len(value) > _MOST_ENTRIES:
        return ()
    return value.values() if isinstance(value, dict) else value
