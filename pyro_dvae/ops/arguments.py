"""Checks of plain arguments: numbers, counts, flags, functions. Each names what it refuses.

`checked` reads from a signature what is plain in it, so that a public function says in one line
what it takes; ranges are checked by name. Arrays are left to the functions that know their shapes.

But for the package's name this file is the same in both packages.
"""

import functools
import inspect
import math
import numbers
import os
import types
import typing
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["check_counts", "check_numbers", "checked", "is_count", "shown_count"]

T = TypeVar("T", bound=Callable)


def checked(function: T) -> T:
    """Check the plain arguments of a function, or of a class's constructor, by its signature.

    Numbers, whole numbers, flags, strings, functions and paths are told apart, and classes that are
    no arrays; what else is annotated is not looked at.

    Raises:
        ValueError: On a call, if an argument is of another kind; it is named, with what is allowed.
    """
    if isinstance(function, type):  # one whose constructor is made of its fields
        function.__init__ = checked(function.__init__)  # type: ignore[misc]
        return function
    parameters = inspect.signature(function).parameters.values()
    kinds = {p.name: kind for p in parameters if (kind := _kind_of(p.annotation)) is not None}
    positional = [
        (p.name, kinds.get(p.name))
        for p in parameters
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        for (name, kind), value in zip(positional, args, strict=False):
            if kind is not None and not any(is_one(value) for _, is_one in kind):
                raise _refusal(name, kind, value)
        for name, value in kwargs.items():
            kind = kinds.get(name)
            if kind is not None and not any(is_one(value) for _, is_one in kind):
                raise _refusal(name, kind, value)
        return function(*args, **kwargs)

    wrapper.plain_arguments = tuple(kinds)  # type: ignore[attr-defined]
    return wrapper  # type: ignore[return-value]


Kind = tuple[tuple[str, Callable[[Any], bool]], ...]  # words, and the test, of each that will do


def _kind_of(annotation: Any) -> Kind | None:
    """What an annotation allows, if it is plain."""
    is_union = isinstance(annotation, types.UnionType)
    options = typing.get_args(annotation) if is_union else (annotation,)
    kinds = [_one_kind_of(option) for option in options]
    return None if None in kinds else tuple(kind for kind in kinds if kind is not None)


def _one_kind_of(option: Any) -> tuple[str, Callable[[Any], bool]] | None:
    if option is Any:
        return None
    if option in _PLAIN:
        return _PLAIN[option]
    origin = typing.get_origin(option)
    if origin is Callable or option is Callable:
        return "a function", callable
    if origin is os.PathLike:
        return "a path", lambda value: isinstance(value, str | os.PathLike)
    is_class = isinstance(option, type) and origin is None and option is not inspect.Parameter.empty
    if not is_class or getattr(option, "_is_protocol", False) or _is_array(option):
        return None
    name = option.__name__.rpartition(".")[-1]  # JAX's array has the name of a module in its own
    article = "an" if name[0] in "AEIOU" else "a"
    return f"{article} {name}", lambda value: isinstance(value, option)


def _is_array(option: type) -> bool:
    """Whether a class is that of arrays, of annotations of arrays, or of anything at all."""
    return option is object or hasattr(option, "__array__") or hasattr(option, "dtypes")


def is_count(value: Any) -> bool:
    """Whether a value is a whole number; True and False are not."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    """Whether a value is a number, or an array of one, which may be traced."""
    if getattr(value, "shape", None) == ():
        return True
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


_PLAIN: dict[Any, tuple[str, Callable[[Any], bool]]] = {
    int: ("a whole number", is_count),
    float: ("a number", _is_number),
    bool: ("True or False", lambda value: isinstance(value, bool)),
    str: ("a string", lambda value: isinstance(value, str)),
    type(None): ("None", lambda value: value is None),
    None: ("None", lambda value: value is None),
}


def _refusal(name: str, kind: Kind, value: Any) -> ValueError:
    words = " or ".join(dict.fromkeys(word for word, _ in kind))
    return ValueError(f"`{name}` must be {words}; got {_shown(value)}.")


def check_counts(*, least: int = 1, **counts: Any) -> None:
    """Check that arguments are whole numbers of at least `least`, or None: left out.

    Raises:
        ValueError: If one is not; it is named.
    """
    for name, value in counts.items():
        if value is None:
            continue
        if not is_count(value):
            raise ValueError(
                f"`{name}` must be a whole number of at least {least}; got {_shown(value)}."
            )
        if value < least:
            raise ValueError(f"`{name}` must be at least {least}; got {value}.")


def check_numbers(
    *, above: float = -math.inf, least: float = -math.inf, most: float = math.inf, **values: Any
) -> None:
    """Check that arguments are finite numbers in a range.

    Args:
        above: They must be greater than this.
        least: They must be at least this.
        most: They must be at most this.
        **values: The arguments by name.

    Raises:
        ValueError: If one is not; it is named.
    """
    for name, value in values.items():
        is_real = isinstance(value, numbers.Real) and not isinstance(value, bool)
        if not is_real or not (math.isfinite(value) and above < value and least <= value <= most):
            raise ValueError(
                f"`{name}` must be a {_range(above, least, most)}; got {_shown(value)}."
            )


def shown_count(count: int) -> str:
    """A count in a message: of more than nine digits, the power of two below it."""
    return str(count) if count < 10**9 else f"at least 2**{count.bit_length() - 1}"


def _range(above: float, least: float, most: float) -> str:
    parts = [f"greater than {above:g}"] if above > -math.inf else []
    parts += [f"at least {least:g}"] if least > -math.inf else []
    parts += [f"at most {most:g}"] if most < math.inf else []
    return f"finite number {' and '.join(parts)}".strip()


def _shown(value: Any) -> str:
    """A value in a few words, whatever it is."""
    text = repr(value) if isinstance(value, str | numbers.Number | None) else ""
    if text and len(text) <= 60:
        return text
    shape = getattr(value, "shape", None)
    kind = f"a value of type {type(value).__name__}"
    return kind if shape is None else f"{kind} and shape {tuple(shape)}"
