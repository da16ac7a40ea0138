"""Public calls refuse arguments of another kind, by name, in the same words in both packages.

All public names are found by the rooms' `__all__`, and what each takes by its signature: a new name
is covered without being listed.
"""

import collections.abc
import importlib
import inspect
import pkgutil
import types
import typing

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("jax")

PACKAGES = ["pyro_dvae", "numpyro_dvae"]
ROOMS = ["distributions", "nets", "models", "guides", "infer", "fit", "diagnostics"]
GOOD = {int: 2, float: 0.5, bool: True, str: "a", type(None): None, "function": lambda *_: None}
BAD = {
    int: ["a", 1.5, True, None, [], object()],
    float: ["a", True, None, [], object()],
    bool: ["a", 1, None, np.ones(2)],
    str: [1, None, object()],
    "function": ["a", 1, object()],
}


def modules(package):
    """Rooms whose `__init__` says what is public, and all modules of `ops`."""
    rooms = [importlib.import_module(f"{package}.{room}") for room in ROOMS]
    ops = importlib.import_module(f"{package}.ops")
    found = pkgutil.iter_modules(ops.__path__, f"{package}.ops.")
    names = (module.name for module in found if not module.name.endswith(".arguments"))
    return [*rooms, *map(importlib.import_module, names)]


def public(package):
    """Public functions and classes by their full names."""
    found = {}
    for module in modules(package):
        for name in getattr(module, "__all__", []):
            value = getattr(module, name)
            if callable(value) and typing.get_origin(value) is None:
                found[f"{module.__name__.partition('.')[2]}.{name}"] = value
    return found


def kinds_of(annotation):
    """The plain kinds that an annotation allows; None if it is of something else, too."""
    union = isinstance(annotation, types.UnionType)
    kinds = []
    for option in typing.get_args(annotation) if union else (annotation,):
        if option in (int, float, bool, str, type(None), None):
            kinds.append(option or type(None))
        elif collections.abc.Callable in (option, typing.get_origin(option)):
            kinds.append("function")
        else:
            return None
    return kinds


def plain_arguments(value):
    """Names to kinds of the plain arguments of a function or class."""
    if isinstance(value, type) and issubclass(value, BaseException | tuple):
        return {}
    if inspect.isclass(value) and (inspect.isabstract(value) or not has_constructor(value)):
        return {}
    parameters = inspect.signature(value).parameters.values()
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    kinds = {p.name: kinds_of(p.annotation) for p in named if p.name != "name"}
    return {name: kind for name, kind in kinds.items() if kind and set(kind) != {type(None)}}


def has_constructor(value):
    """Of its own, and not what `fit` makes for its user."""
    is_ours = any("__init__" in vars(c) for c in value.__mro__ if "_dvae" in c.__module__)
    return is_ours and value.__name__ != "FitResult"


def fillers(value):
    """Something for each argument that has no default: of its kind if that is plain."""
    for parameter in inspect.signature(value).parameters.values():
        if parameter.default is parameter.empty and parameter.kind not in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        ):
            kinds = kinds_of(parameter.annotation)
            yield parameter.name, GOOD[kinds[0]] if kinds else Anything()


class Anything:
    """Stands for arguments that are not looked at before plain ones are."""


def allowed(kinds, bad):
    if callable(bad) and "function" in kinds:
        return True
    is_number = isinstance(bad, int | float) and not isinstance(bad, bool)
    is_kind = any(isinstance(kind, type) and type(bad) is kind for kind in kinds)
    return is_kind or (float in kinds and is_number)


CASES = [
    (package, name, argument)
    for package in PACKAGES
    for name, value in public(package).items()
    for argument in plain_arguments(value)
]


def test_there_are_cases_of_both_packages_and_all_rooms():
    for package in PACKAGES:
        rooms = {name.split(".")[0] for found, name, _ in CASES if found == package}
        assert {"nets", "models", "guides", "infer", "fit", "diagnostics", "ops"} <= rooms
    assert len(CASES) > 300


@pytest.mark.parametrize(("package", "name", "argument"), CASES)
def test_an_argument_of_another_kind_is_refused_by_name(package, name, argument):
    value = public(package)[name]
    kinds = plain_arguments(value)[argument]
    for bad in [bad for kind in kinds for bad in BAD.get(kind, [])]:
        if allowed(kinds, bad):
            continue
        with pytest.raises(ValueError, match=f"^`{argument}` must be .*; got ") as error:
            value(**{argument: bad} | {n: v for n, v in fillers(value) if n != argument})
        assert len(str(error.value)) < 200


OUT_OF_RANGE = {int: [-1, 0], float: [np.nan, -np.inf, -1.0]}
ALLOWED = {("sweeps", 0), ("start", -1.0), ("end", -1.0)}  # no sweep; a line from or to below 0


def ranges(package):
    for name, value in public(package).items():
        plain = plain_arguments(value)
        needed = dict(fillers(value)) if plain else {}
        if any(isinstance(entry, Anything) for entry in needed.values()):
            continue
        for argument, kinds in plain.items():
            for kind in {int, float} & set(kinds):
                for bad in OUT_OF_RANGE[kind]:
                    if (argument, bad) not in ALLOWED:
                        yield package, name, argument, bad


RANGES = [case for package in PACKAGES for case in ranges(package)]


@pytest.mark.parametrize(("package", "name", "argument", "bad"), RANGES)
def test_an_argument_out_of_range_is_refused_by_name(package, name, argument, bad):
    value = public(package)[name]
    needed = {n: v for n, v in fillers(value) if n != argument}
    with pytest.raises(ValueError, match=f"`{argument}`"):
        value(**needed | {argument: bad})
