"""The teaching scripts: short, free of adapters, twins, and right in what they find.

Each runs in both packages. Where training takes long, the suite sees the first steps of it, and
the slow tests the whole.
"""

import ast
import contextlib
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("skimage")

EXAMPLES = Path(__file__).parents[1] / "examples"
NAMES = ["denoise", "discrete_vae", "own_model", "truncated"]
PACKAGES = ["pyro", "numpyro"]
LIBRARIES = {"numpy", "sklearn", "skimage"}
LIBRARIES_OF = {
    "pyro": LIBRARIES | {"pyro", "pyro_dvae", "torch"},
    "numpyro": LIBRARIES | {"numpyro", "numpyro_dvae", "jax", "flax"},
}


def script_of(package, name):
    return EXAMPLES / package / f"{name}.py"


@pytest.fixture
def run():
    """Call the `main` of a script in this process, where the array libraries are loaded."""

    def run_script(package, name, *arguments):
        pytest.importorskip("torch" if package == "pyro" else "jax")
        spec = importlib.util.spec_from_file_location(name, script_of(package, name))
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.main(*arguments)

    return run_script


def each(*settings):
    """Packages with the arguments of a run and what else a test takes; marks go last."""
    return pytest.mark.parametrize(("package", "arguments"), settings)


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


# What they are made of


@pytest.mark.parametrize("package", PACKAGES)
def test_the_scripts_are_there(package):
    assert sorted(path.stem for path in (EXAMPLES / package).glob("*.py")) == NAMES


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("package", PACKAGES)
def test_a_script_is_a_page_without_adapter(package, name):
    text = script_of(package, name).read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert len(text.splitlines()) <= 80
    assert 3 <= len(ast.get_docstring(tree).splitlines()) <= 8
    found = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    found |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {module.partition(".")[0] for module in found} <= LIBRARIES_OF[package]
    calls = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    assert {"SVI", "Adam", "fit"} <= calls


@pytest.mark.parametrize("name", NAMES)
def test_twins(name):
    """One docstring, the same functions, and results of the same names."""
    pyro, numpyro = (ast.parse(script_of(package, name).read_text(encoding="utf-8")) for package in PACKAGES)
    ...
