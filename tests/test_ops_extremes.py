"""Extremes of every function of `ops` against float64: infinities, ties, one particle, no data.

Functions are found by the modules' `__all__`, their arguments are made from their annotations: a
new function is covered by what a NaN must do without being listed, and this file asks for its
oracle, or for the reason why it has none.
"""

import importlib
import inspect
import pkgutil
import types
import typing

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from ops_oracles import EXEMPT, NAN_ALONE, ORACLES

DTYPES = ["float16", "float32", "float64"]
SIZES = {"V": 3, "codes": 3, "D": 2, "width": 2, "C": 2, "M": 2, "N": 4}
BATCHES = {"batch", "shape", "sample_batch", "latents"}
UNIT = {"probs", "uniforms"}
VALUES = [0.0, 0.0, 1.0, -2.5, 1e-4, 37.5, 1e4, -1e4, np.inf, -np.inf, np.nan]
PLAIN = {"num_codes": 3, "levels": (3, 2), "target_ess": 0.5, "kl_bound": 0.1}
PLAIN |= {"min_count": 1.0, "shared": False}
OF_SQUARES = {"assignments.assignment_logits", "quantizing.squared_distances"}
OF_SEVERAL = {"multisample.log_sum_of_others", "multisample.multisample_signal"}
NOT_SPOILT = UNIT | {"hard", "exponentials", "copies", "noise"}  # draws; noise needs a gradient
VECTORS = {"inputs", "table", "vectors", "candidates", "state", "values", "path"}
KEPT = {"probs", "copies", "mask", "shared", "noise"}  # optional, and given


def functions(package):
    """Public functions of `ops` with an array of floats among their arguments, by name."""
    ops, found = importlib.import_module(f"{package}.ops"), {}
    modules = (m.name for m in pkgutil.walk_packages(ops.__path__, f"{package}.ops."))
    for module in map(importlib.import_module, sorted(modules, key=lambda n: n.count("."))):
        for name in getattr(module, "__all__", []):
            value = getattr(module, name)
            is_plain = callable(value) and not (inspect.isclass(value) and issubclass(value, tuple))
            if is_plain and value not in found.values() and any(map(is_floats, kinds(value))):
                found[f"{module.__name__.partition('.ops.')[2]}.{name}"] = value
    return found


def kinds(function):
    try:
        return [p.annotation for p in inspect.signature(function).parameters.values()]
    except ValueError:
        return []


def options(annotation):
    union = isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union
    return typing.get_args(annotation) if union else (annotation,)


def is_floats(annotation):
    return any(getattr(o, "__name__", "").startswith("Float") for o in options(annotation))


def array_of(annotation):
    return next((o for o in options(annotation) if hasattr(o, "dim_str")), None)


def shape_of(annotation, num_particles, num_data):
    shape = []
    for name in array_of(annotation).dim_str.split():
        bare = name.strip("*#")
        if bare in BATCHES or name == "...":
            shape.append(num_data)
        else:
            shape.append({"K": num_particles}.get(bare, SIZES.get(bare, 3)))
    return tuple(shape)


def reason(name):
    """Why a function is held elsewhere, None if it is held here."""
    return EXEMPT.get(name) or EXEMPT.get(name.split(".")[0])


@pytest.mark.parametrize("package", ["pyro_dvae", "numpyro_dvae"])
def test_every_function_has_an_oracle_or_a_reason(package):
    pytest.importorskip("torch" if package == "pyro_dvae" else "jax")
    missing = [n for n in functions(package) if n not in ORACLES | NAN_ALONE and not reason(n)]
    assert missing == []


def arguments(function, num_particles, num_data, elements, seed):
    """Arguments for a function, its floats by `elements`, the first of which is a strategy's."""
    rng, arrays = np.random.default_rng(seed), {}
    for name, parameter in inspect.signature(function).parameters.items():
        annotation = parameter.annotation
        if parameter.default is not parameter.empty and name not in KEPT:
            continue
        if name == "state":
            arrays[name] = (elements((3, 2)), elements((3,)), elements((3, 2)))
        elif name == "temperature" or name == "scale":
            arrays[name] = np.array(0.5)
        elif name in PLAIN or array_of(annotation) is None:
            arrays[name] = PLAIN.get(name, 2)
        else:
            shape = shape_of(annotation, num_particles, num_data)
            arrays[name] = of_kind(name, annotation, shape, elements, rng)
    return arrays


def of_kind(name, annotation, shape, elements, rng):
    kind = getattr(array_of(annotation), "__name__", "")
    if name == "hard":
        return np.eye(shape[-1])[rng.integers(shape[-1], size=shape[:-1])]
    if name == "exponentials":
        return rng.exponential(size=shape)
    if name == "copies":
        return np.ones(shape)
    if kind.startswith("Bool"):
        return rng.random(shape) < 0.7
    if kind.startswith("Int"):
        return rng.integers(SIZES["V"], size=shape)
    if name in UNIT:
        return rng.choice([0.0, 0.25, 0.5, 1.0 - 2**-11], size=shape)
    return elements(shape)


def call(backend, function, given, dtype):
    """Its arrays of floats, as float64; and their types."""

    def cast(value):
        if isinstance(value, tuple) and isinstance(value[0], np.ndarray):
            state = backend.module("ops.quantizing").CodebookState
            return state(*map(cast, value))
        if not isinstance(value, np.ndarray):
            return value
        floating = value.dtype.kind == "f"
        return backend.asarray(value.astype(dtype) if floating else value)

    found = function(**{name: cast(value) for name, value in given.items()})
    found = found if isinstance(found, tuple) else (found,)
    return [np.asarray(x) for x in found if np.asarray(x).dtype.kind == "f"]


def rounded(given, dtype):
    """The same arguments as float64 sees what the type can hold."""

    def of(value):
        if isinstance(value, tuple) and isinstance(value[0], np.ndarray):
            return tuple(map(of, value))
        is_float = isinstance(value, np.ndarray) and value.dtype.kind == "f"
        return value.astype(dtype).astype(np.float64) if is_float else value

    return {name: of(value) for name, value in given.items()}


def expected_of(name, given):
    flat = [
        part
        for v in given.values()
        for part in (v if name.endswith("restart_codes") and isinstance(v, tuple) else (v,))
    ]
    with np.errstate(all="ignore"):
        found = ORACLES[name](*flat)
    return found if isinstance(found, tuple) else (found,)


def check(found, expected, dtype, given, power):
    """NaN where float64 has NaN, the same infinities, and the numbers to the type's precision.

    Vectors that are infinite have no distances, and no weight is +inf: there NaN may stand for a
    number, too.
    """
    limits, size = np.finfo(dtype), largest(given) ** power
    is_lost = any(np.isinf(np.asarray(v)).any() for v in flat_arrays(given, VECTORS))
    is_lost |= largest(given) ** 2 > limits.max  # products may be infinite, and cancel
    is_lost |= any((np.asarray(v) == np.inf).any() for v in flat_arrays(given))
    for one, other in zip(found, expected, strict=True):
        most = float(np.finfo(one.dtype).max)
        one, other = one.astype(np.float64), np.asarray(other, np.float64)
        assert one.shape == other.shape
        other = np.where(np.isnan(one), np.nan, other) if is_lost else other
        np.testing.assert_array_equal(np.isnan(one), np.isnan(other))
        beyond = np.abs(other) > 0.99 * most
        assert (np.isinf(one) | ~beyond)[~np.isnan(other)].all()
        kept = np.isfinite(other) & ~beyond
        error = 50 * float(limits.eps) * (np.abs(other) + size)
        assert (np.abs(one - other) <= error)[kept].all(), (one, other)


NAMES = sorted(ORACLES)
SEEDS = st.integers(0, 2**16)
thrifty = pytest.mark.thrifty


@thrifty
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_extremes_are_those_of_the_oracle(backend, name, dtype):
    function = functions(f"{backend.name}_dvae")[name]

    @settings(max_examples=15, phases=[Phase.generate])
    @given(SEEDS, st.sampled_from([(1, 2), (3, 2), (3, 0)]), st.data())
    def search(seed, sizes, data):
        def elements(shape):
            size = int(np.prod(shape))
            flat = data.draw(st.lists(st.sampled_from(VALUES), min_size=size, max_size=size))
            return np.array(flat, np.float64).reshape(shape)

        given_ = arguments(function, *sizes, elements, seed)
        if sizes[0] == 1 and name in OF_SEVERAL:
            with pytest.raises(ValueError, match="K >= 2"):
                call(backend, function, given_, dtype)
            return
        found = call(backend, function, given_, dtype)
        given_ = rounded(given_, dtype)
        expected = expected_of(name, given_)
        with np.errstate(all="ignore"):
            check(found, expected, dtype, given_, 1 + (name in OF_SQUARES))

    search()


def largest(given):
    """The largest finite number among the arguments, or its square where squares are taken."""
    arrays = [np.asarray(v, np.float64).reshape(-1) for v in flat_arrays(given)]
    values = np.abs(np.concatenate([*arrays, np.ones(1)]))
    return float(values[np.isfinite(values)].max())


def flat_arrays(given, names=None):
    for name, value in given.items():
        if names is None or name in names:
            yield from value if isinstance(value, tuple) else (value,)


@thrifty
@pytest.mark.parametrize("name", sorted(NAN_ALONE))
def test_a_nan_shows_and_nothing_else_does(backend, name):
    """Finite arguments give finite values; with a NaN in any one of them there is a NaN."""
    function, rng = functions(f"{backend.name}_dvae")[name], np.random.default_rng(0)
    given_ = arguments(function, 3, 2, lambda shape: rng.normal(size=shape), 0)
    found = call(backend, function, given_, "float32")
    assert all(np.isfinite(x).all() for x in found[name == "importance.pareto_tail" :])  # no k-hat
    for argument, value in given_.items():
        if argument in NOT_SPOILT or not is_float_array(value):
            continue
        found = call(backend, function, given_ | {argument: spoilt(value)}, "float32")
        assert any(np.isnan(x).any() for x in found), argument


def is_float_array(value):
    first = value[0] if isinstance(value, tuple) else value
    return isinstance(first, np.ndarray) and first.dtype.kind == "f" and first.ndim > 0


def spoilt(value):
    """The same with a NaN, in each array of several."""
    if isinstance(value, tuple):
        return tuple(map(spoilt, value))
    value = value.copy()
    value.reshape(-1)[0] = np.nan
    return value
