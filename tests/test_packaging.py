"""What is handed out is whole, and an extra that is missing is named."""

import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TRACKED = ("tests", "examples", "docs", "pyro_dvae", "numpyro_dvae")

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
    for name in (
        *TRACKED,
        "pyproject.toml",
        "README.md",
        "CHANGELOG.md",
        "LICENSE",
        "Makefile",
        "CITATION.cff",
    ):
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


def test_the_version_stands_in_one_place():
    """The packages and the site read it; the citation, which cannot, is compared."""
    version = re.search(r'^version = "(.*)"$', text_of("pyproject.toml"), re.MULTILINE)[1]
    assert f"\nversion: {version}\n" in text_of("CITATION.cff")
    for folder in ("pyro_dvae", "numpyro_dvae", "docs"):
        for path in (ROOT / folder).rglob("*.py"):
            assert f'"{version}"' not in path.read_text(encoding="utf-8"), path


def test_workflows_call_make():
    """What a maintainer would run is what a user runs."""
    made = set(re.findall(r"^([a-z-]+):", text_of("Makefile"), re.MULTILINE))
    for path in (ROOT / ".github" / "workflows").iterdir():
        text = path.read_text(encoding="utf-8")
        runs = re.findall(r"- run: (.*)", text)
        targets = re.findall(r"target: \[(.*)\]", text)
        assert runs
        assert all(run.startswith("make ") for run in runs)
        for target in ", ".join(targets).split(", "):
            assert not target or target in made, target


def text_of(name):
    return (ROOT / name).read_text(encoding="utf-8")
