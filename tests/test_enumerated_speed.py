"""A chain of 500 states that is summed out costs what the host's own enumeration costs."""

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "examples" / "benchmarks" / "enumeration.py"


def load():
    spec = importlib.util.spec_from_file_location("enumeration", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize(("package", "repeats"), [("pyro", 3), ("numpyro", 101)])
def test_a_chain_costs_at_most_half_more_than_the_hosts(package, repeats):
    pytest.importorskip({"pyro": "torch", "numpyro": "funsor"}[package])
    host, ours, ratio = load().ratio(package, 500, repeats)
    assert ratio <= 1.5, (host, ours)
