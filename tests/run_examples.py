"""Runs the scripts of examples/tools and examples/benchmarks, for their tests."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"

sys.path[:0] = [str(EXAMPLES / "tools"), str(EXAMPLES / "benchmarks")]

from cli import run_main  # noqa: E402


def run(script, *arguments):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error::UserWarning"}
    paths = [str(ROOT), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    command = [sys.executable, str(EXAMPLES / "tools" / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@pytest.fixture
def output_of(monkeypatch, capsys):
    """What an example prints, run in this process, where the array libraries are loaded."""

    def run_here(script, *arguments):
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        with pytest.raises(SystemExit) as status:
            run_main(importlib.import_module(script.removesuffix(".py")).main)
        output, errors = capsys.readouterr()
        assert status.value.code == 0, errors
        return output

    return run_here


@pytest.fixture
def result_of(output_of):
    return lambda *arguments: json.loads(output_of(*arguments).splitlines()[-1])


def result_alone(script, *arguments):
    """The same in a process of its own."""
    done = run(script, *arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


BOTH = ["pyro", pytest.param("numpyro", marks=pytest.mark.thrifty)]
