"""Break the packages on purpose and see that the tests notice: ``python tests/mutants.py [WORD]``.

Each entry of `breaks` and what is beside it is made in a copy of the project in a temporary folder,
where the tests that it names are run. One line per break: caught, SURVIVED, or what went wrong;
the exit status counts those that were not caught. WORD picks the breaks whose name holds it,
``--first 40 --count 20`` those at the places 40 to 59 of these.
"""

import argparse
import importlib
import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest
from breaks import LOSSES
from breaks_of_programs import PROGRAMS
from more_breaks import REST

ROOT = Path(__file__).parents[1]
LEFT_OUT = shutil.ignore_patterns(".*", "out", "build", "__pycache__", "*.egg-info")
# Loaded once, before the processes part: the tests of a break take less time than these.
LIBRARIES = (
    "arviz",
    "torch",
    "pyro.infer.autoguide",
    "jax",
    "numpyro",
    "flax",
    "optax",
    "orbax.checkpoint",
)

_FAILED_TO_RUN = 70
_CONTROL = ("tests/test_table.py::test_enumeration", "tests/test_baselines.py")
_QUIET = "-W", "ignore::pytest.PytestAssertRewriteWarning"  # of what is loaded already
_BOTH = "-m", "not slow or thrifty"  # NumPyro's part of thrifty tests as well


def broken(text, each):
    """The text of a file with one break."""
    count = text.count(each.old)
    if count != 1:
        raise ValueError(f"the text to replace stands there {count} times")
    return text.replace(each.old, each.new)


def run_tests(package, tests):
    """Exit code of tests of a package, in a process of their own."""
    process = os.fork()
    if process:
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    code = _FAILED_TO_RUN
    try:
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        backend = "numpyro" if package == "numpyro" else "not numpyro"
        code = pytest.main(
            ["-q", "-x", "-k", backend, "-p", "no:cacheprovider", *_BOTH, *_QUIET, *tests]
        )
    finally:
        os._exit(code)


def verdict(folder, each):
    path = folder / f"{each.package}_dvae" / each.file
    whole = path.read_text()
    try:
        path.write_text(broken(whole, each))
        code = run_tests(each.package, each.tests)
    except ValueError as error:
        return str(error)
    finally:
        path.write_text(whole)
    return {1: "caught", 0: "SURVIVED"}.get(code, f"pytest ended with {code}")


def load(folder):
    """The libraries, as the tests of the copy want them, but nothing of the packages."""
    os.chdir(folder)
    sys.path[:0] = [str(folder), str(folder / "tests")]
    sys.dont_write_bytecode = True  # of a file that is broken and mended within a second
    importlib.import_module("conftest")
    for library in LIBRARIES:
        if importlib.util.find_spec(library.partition(".")[0]):
            importlib.import_module(library)


def chosen_of(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("word", nargs="?", default="", help="in the names of the breaks")
    parser.add_argument("--first", type=int, default=0, help="place of the first one")
    parser.add_argument("--count", type=int, help="of those from there on; all if left out")
    options = parser.parse_args(arguments)
    chosen = [each for each in (*LOSSES, *REST, *PROGRAMS) if options.word in each.name][
        options.first :
    ]
    return chosen[: options.count]


def main(*arguments):
    chosen, missed = chosen_of(arguments), 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "project"
        shutil.copytree(ROOT, folder, ignore=LEFT_OUT)
        load(folder)
        for package in dict.fromkeys(each.package for each in chosen):
            if run_tests(package, _CONTROL):
                sys.exit(f"the tests of {package}_dvae fail without a break")
        for each in chosen:
            found = verdict(folder, each)
            missed += found != "caught"
            print(f"{found:<10} {each.name}", flush=True)
    print(f"{len(chosen) - missed} of {len(chosen)} breaks are caught")
    return min(missed, 100)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
