"""What is handed out is whole, and an extra that is missing is named."""

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TRACKED = ("tests", "examples", "pyro_dvae", "numpyro_dvae")

# Finders hide a library, as if it were not installed.
WITHOUT = """
import importlib.util, sys

found = importlib.util.find_spec
importlib.util.find_spec = lambda name: None if name == {library!r} else found(name)
import {package}
"""


@pytest.mark.parametrize(
    ("package", "library", "extra"),
    [
        ("pyro_dvae", "torch", "pyro"),
        ("pyro_dvae", "pyro", "pyro"),
        ("numpyro_dvae", "jax", "numpyro"),
        ("numpyro_dvae", "optax", "numpyro"),
    ],
)
def test_importing_without_an_extra_names_it(package, library, extra):
    code = WITHOUT.format(package=package, library=library)
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    line = done.stderr.splitlines()[-1]
    assert line == (
        f"ImportError: {package} needs {library}, which its extra brings: "
        f"pip install 'pyro-dvae[{extra}]'"
    )


BUILD = "import setuptools.build_meta as m, sys; print(m.build_sdist(sys.argv[1]))"


def test_the_source_distribution_holds_what_its_tests_need(tmp_path):
    pytest.importorskip("setuptools", minversion="77")
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in (*TRACKED, "pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE", "Makefile"):
        (copy / name).symlink_to(ROOT / name)
    (copy / "MANIFEST.in").symlink_to(ROOT / "MANIFEST.in")
    command = [sys.executable, "-c", BUILD, str(tmp_path)]
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        command, cwd=copy, capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    with tarfile.open(tmp_path / done.stdout.splitlines()[-1]) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {
        str(path.relative_to(ROOT)) for folder in TRACKED for path in (ROOT / folder).rglob("*.py")
    }
    assert wanted | {"Makefile", "CHANGELOG.md", "pyproject.toml"} <= held
