"""The examples in docstrings print what they say, and no public name is without a docstring."""

import doctest
import importlib
import inspect
import pkgutil
import re
from contextlib import contextmanager, nullcontext

import pytest

LIBRARIES = {
    "pyro_dvae": {"torch": "torch"},
    "numpyro_dvae": {"jax": "jax", "jnp": "jax.numpy"},
}


def modules(package):
    try:
        found = importlib.import_module(package)
    except ImportError:
        return []
    return [m.name for m in pkgutil.walk_packages(found.__path__, f"{package}.")]


def examples(name):
    """The examples of a module that has any, and what they may use of libraries."""
    module = importlib.import_module(name)
    libraries = LIBRARIES[name.partition(".")[0]]
    namespace = {n: importlib.import_module(path) for n, path in libraries.items()}
    finder = doctest.DocTestFinder(exclude_empty=True)
    return [t for t in finder.find(module, extraglobs=namespace) if t.examples]


def failures(tests):
    runner = doctest.DocTestRunner(verbose=False)
    return sum(runner.run(test).failed for test in tests)


@pytest.mark.parametrize("package", LIBRARIES)
def test_examples_print_what_they_say(package):
    pytest.importorskip("torch" if package == "pyro_dvae" else "jax")
    tests = [test for name in modules(package) for test in examples(name)]
    with in_float32() if package == "numpyro_dvae" else nullcontext():
        assert failures(tests) == 0
    assert sum(len(test.examples) for test in tests) >= 39


@contextmanager
def in_float32():
    """As a reader has JAX."""
    config = pytest.importorskip("jax").config
    before = config.read("jax_enable_x64")
    config.update("jax_enable_x64", False)
    try:
        yield
    finally:
        config.update("jax_enable_x64", before)


@pytest.mark.parametrize("package", LIBRARIES)
def test_no_public_name_is_without_a_docstring(package):
    pytest.importorskip("torch" if package == "pyro_dvae" else "jax")
    names = modules(package)
    assert len(names) > 100
    assert [each for name in names for each in undescribed(importlib.import_module(name))] == []


def undescribed(module):
    """Public functions, classes and methods without a docstring, other names without a comment."""
    source = inspect.getsource(module)
    found = [] if module.__doc__ else [module.__name__]
    for name in getattr(module, "__all__", []):
        value, full = getattr(module, name), f"{module.__name__}.{name}"
        if inspect.isclass(value) and value.__module__.startswith(module.__name__.split(".")[0]):
            parts = {full: value, **{f"{full}.{key}": v for key, v in methods(value)}}
            found += [key for key, part in parts.items() if not part.__doc__]
        elif inspect.isroutine(value):
            found += [] if value.__doc__ else [full]
        elif re.search(rf"^{name}\b.*=", source, re.MULTILINE):
            described = re.search(rf"(^#.*\n{name}\b|^{name}\b.*  # )", source, re.MULTILINE)
            found += [] if described or speaks_for_itself(value) else [full]
    return found


def methods(owner):
    """Public functions that a class itself defines, but for those that its base describes."""
    for name, value in vars(owner).items():
        function = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
        inherited = any(getattr(getattr(b, name, None), "__doc__", None) for b in owner.__mro__[1:])
        own = inspect.isfunction(function) and f"{owner.__name__}." in function.__qualname__
        if own and not name.startswith("_") and not inherited:
            yield name, function


def speaks_for_itself(value):
    """A word, a few words, a number of bits."""
    return isinstance(value, str | tuple) or type(value) is int


def test_what_is_undescribed_is_found():
    """Negative control."""
    module = importlib.import_module("documents")
    assert undescribed(module) == []
    module.__all__ = ["METHODS", "table"]
    try:
        assert undescribed(module) == ["documents.METHODS"]
    finally:
        del module.__all__


def test_a_wrong_example_is_seen():
    """Negative control."""
    (test,) = doctest.DocTestFinder().find(type("wrong", (), {"__doc__": ">>> 1 + 1\n3\n"}))[:1]
    assert doctest.DocTestRunner(verbose=False).run(test, out=lambda text: None).failed == 1
