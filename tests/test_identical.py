"""Files that are the same in both packages, up to the package's name, stay so, and all are known.

What needs no array library stands in both packages byte for byte: neither imports the other. A file
that differs by accident is as much a fault as one that has become the same and is not listed here.
"""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = "pyro_dvae", "numpyro_dvae"
IDENTICAL = {
    "diagnostics/__init__.py",
    "diagnostics/agreement.py",
    "diagnostics/arguments.py",
    "diagnostics/arrays.py",
    "diagnostics/averaging.py",
    "diagnostics/carried.py",
    "diagnostics/costing.py",
    "diagnostics/costs.py",
    "diagnostics/cutting.py",
    "diagnostics/draws.py",
    "diagnostics/errors.py",
    "diagnostics/expectations.py",
    "diagnostics/groups.py",
    "diagnostics/names.py",
    "diagnostics/notes.py",
    "diagnostics/plots.py",
    "diagnostics/posteriors.py",
    "diagnostics/quality.py",
    "diagnostics/reports.py",
    "diagnostics/sharing.py",
    "diagnostics/summaries.py",
    "diagnostics/trees.py",
    "diagnostics/uniformity.py",
    "diagnostics/usage.py",
    "diagnostics/verdicts.py",
    "diagnostics/waiting.py",
    "diagnostics/weighing.py",
    "diagnostics/words.py",
    "fit/files.py",
    "fit/identity.py",
    "fit/log.py",
    "fit/losses.py",
    "fit/signals.py",
    "guides/__init__.py",
    "nets/halving.py",
    "ops/__init__.py",
    "ops/arguments.py",
    "ops/calibration.py",
    "ops/evolution.py",
    "ops/sets/__init__.py",
    "ops/states.py",
    "programs/readers/__init__.py",
}


def contents(package, name):
    """The bytes of a file as they would be in pyro_dvae."""
    code = (ROOT / package / name).read_bytes()
    return code.replace(b"numpyro_dvae", b"pyro_dvae")


def shared_names():
    """Paths of the Python files that both packages have."""
    names = [
        {str(path.relative_to(ROOT / package)) for path in (ROOT / package).rglob("*.py")}
        for package in PACKAGES
    ]
    return names[0] & names[1]


def differences(identical, listed):
    """What is to be done, by file; nothing if all is well."""
    todo = {name: "make the two the same again" for name in listed - identical}
    return todo | {name: "add it to IDENTICAL" for name in identical - listed}


def test_files_are_identical_that_are_listed_and_no_others():
    identical = {
        name for name in shared_names() if len({contents(each, name) for each in PACKAGES}) == 1
    }
    assert differences(identical, IDENTICAL) == {}


@pytest.mark.parametrize("name", sorted(IDENTICAL))
def test_identical_files_need_no_array_library(name):
    code = contents(PACKAGES[0], name).decode()
    for library in ("torch", "jax", "numpyro", "pyro"):
        assert f"import {library}\n" not in code
        assert not re.search(rf"^from {library}[ .]", code, re.MULTILINE)


def test_either_fault_is_seen():
    """The test of the test."""
    assert differences({"a"}, {"a"}) == {}
    assert differences({"a"}, {"a", "b"}) == {"b": "make the two the same again"}
    assert differences({"a", "b"}, {"a"}) == {"b": "add it to IDENTICAL"}
