"""The examples in docstrings print what they say."""

import doctest
import importlib
import pkgutil
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
    tests = [test for name in modules(package) for test in examples(name)]
    with in_float32() if package == "numpyro_dvae" else nullcontext():
        assert failures(tests) == 0
    assert len(tests) >= 9


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


def test_a_wrong_example_is_seen():
    """Negative control."""
    (test,) = doctest.DocTestFinder().find(type("wrong", (), {"__doc__": ">>> 1 + 1\n3\n"}))[:1]
    assert doctest.DocTestRunner(verbose=False).run(test, out=lambda text: None).failed == 1
