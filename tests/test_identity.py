"""What a run is of: descriptions by plain values, and the words for where two of them differ."""

import functools
import math
import types
import zlib

import numpy as np
import pytest


@pytest.fixture
def identity(backend):
    return backend.module("fit.identity")


class Elsewhere:
    """An array on a device that a step does not wait for."""

    shape, dtype = (3,), "float32"

    def __init__(self, device):
        self.device = device


@pytest.mark.parametrize("name", ["type", "platform"])
def test_arrays_elsewhere_have_no_sums(identity, name):
    described = {"shape": [3], "dtype": "float32"}
    for where in ("cuda", "gpu"):
        device = types.SimpleNamespace(**{name: where})
        assert identity.described_batch([Elsewhere(device)]) == [described]
    values = np.arange(3, dtype=np.float32)
    assert identity.described_batch([values]) == [described | {"sum": zlib.crc32(values.tobytes())}]


class Layers:
    """As a module of Torch's."""

    def named_buffers(self):
        return []

    def __str__(self):
        return "Layers(\n  a\n)"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float64(0.5), 0.5),
        (np.int32(3), 3),
        (np.bool_(True), True),
        (math.inf, "inf"),
        (math, "math"),
        (Layers, "Layers"),
        (Layers(), "Layers(\n  a\n)"),
        ((1, [None, "a"]), [1, [None, "a"]]),
        (functools.partial(int, "3", base=5), {"kind": "int", "args": ["3"], "base": 5}),
        (np.zeros((2, 0)), {"shape": [2, 0], "dtype": "float64"}),
    ],
)
def test_a_description_is_plain(identity, value, expected):
    assert identity.described(value) == expected


def test_a_nested_value_is_named_beyond_its_depth(identity):
    assert identity.described([[[1], [2.5]]], depth=2) == [["list", "list"]]


def test_a_number_in_an_array_has_a_sum(identity, backend):
    expected = {"shape": [], "dtype": "float64", "sum": zlib.crc32(np.float64(2.5).tobytes())}
    for value in (np.array(2.5), backend.asarray(np.array(2.5))):
        assert identity.described_data([value]) == [expected]


@pytest.mark.parametrize(
    ("saved", "here", "words"),
    [
        ({"data": [1, 2, 3]}, {"data": [1, 2, 4]}, r"`data`\[2\] is 4, .* with 3"),
        ({"data": [1, 2]}, {"data": [1]}, r"`data` is \[1\], .* with \[1, 2\]"),
        ({"loss": {"beta": None}}, {"loss": {}}, r"`loss` is \{\}, .* with \{'beta': None\}"),
        ({"loss": {"kind": "A", "k": 1}}, {"loss": {"kind": "B"}}, "`loss` is B, .* with A"),
        ({"loss": {"k": 1}}, {"loss": {"k": 1, "m": 2}}, r"`loss`.m is 2, .* with None"),
        ({"model": "A(\n  a\n)"}, {"model": "A(\n  b\n)"}, "`model` is b, .* with a"),
        ({"model": "A(\n  a\n)"}, {"model": "A("}, r"`model` is A\(, .* with A\(\n  a"),
        ({"old": 1}, {}, "`old` is None, .* with 1"),
        ({"a": "b"}, {"a": "c" * 90}, rf"`a` is {'c' * 57}\.\.\., .* with b\. Resume"),
    ],
)
def test_the_first_difference_is_told(identity, saved, here, words):
    with pytest.raises(ValueError, match=words):
        identity.check_same_run(saved, here)
    identity.check_same_run(saved, saved)


@pytest.mark.parametrize(
    ("name", "numbers", "words"),
    [
        ("step_size", (-0.02, -0.05), "`optim`: its learning rate is 0.05, .* a run with 0.02"),
        ("step_size", (0.02, 0.05), "`optim`: its step_size is 0.05, .* a run with 0.02"),
        ("b1", (0.9, 0.8), "`optim`: its b1 is 0.8, .* a run with 0.9"),
    ],
)
def test_a_number_deep_within_an_optimiser_has_a_name_of_one_word(identity, name, numbers, words):
    """Optax holds it at `init_fn.transformation.update.update_fns[1].tx.update.step_size`."""

    def nested(number):
        step = {"tx": {"update": {name: number}}}
        return {"init_fn": {"transformation": {"update": {"update_fns": [{}, step]}}}}

    saved, here = ({"optim": nested(number)} for number in numbers)
    with pytest.raises(ValueError, match=words):
        identity.check_same_run(saved, here)
