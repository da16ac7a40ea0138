"""Random programs through the diagnostics: no false number."""

import importlib
from collections import Counter

import pytest
from random_diagnostics import try_diagnostics
from random_strategy import spec_of

pytest.importorskip("torch")


def try_many(seeds):
    package, refused = importlib.import_module("random_pyro"), Counter()
    for seed in seeds:
        spec = spec_of(seed, package.takes_python)[0]
        refused.update(name for name, _ in try_diagnostics(package, spec, seed))
    return refused


def test_random_programs_have_their_exact_numbers():
    refused = try_many(range(10))
    assert set(refused) <= {"gap"}  # of continuous latents, and of sites of the guide alone
    assert refused["gap"] < 6


@pytest.mark.slow
def test_many_random_programs_have_their_exact_numbers():
    assert set(try_many(range(100, 400))) <= {"gap"}
