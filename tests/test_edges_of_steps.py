"""Steps, evaluation and sets at the ends of what they take: values by hand or by NumPy."""

from types import SimpleNamespace

import numpy as np
import pytest

RNG = np.random.default_rng(0)


def of_package(name):
    return pytest.mark.parametrize("backend", [name], indirect=True)


@pytest.mark.parametrize("num_states", [7, 1030])
def test_the_first_of_equal_states_is_found_in_sets_of_any_size(backend, num_states):
    hashing = backend.module("ops.sets.hashing")
    kind = np.int64 if backend.name == "pyro" else np.uint32
    hashes = RNG.integers(0, num_states, (num_states, 2)).astype(kind)
    expected = np.zeros(hashes.shape, bool)
    for datum in range(2):
        expected[np.unique(hashes[:, datum], return_index=True)[1], datum] = True
    found = hashing.first_occurrences(backend.asarray(hashes))
    np.testing.assert_array_equal(np.asarray(found), expected)
    members, children = backend.asarray(hashes[:3]), backend.asarray(hashes[3:])
    found = hashing.newcomers(members, children)
    np.testing.assert_array_equal(np.asarray(found), expected[3:])


@pytest.mark.parametrize("kind", [np.uint8, np.int32])
def test_states_of_any_integers_are_taken(backend, kind):
    states = RNG.integers(0, 9, (4, 3, 5)).astype(kind)
    index = RNG.integers(0, 4, (2, 3))
    take = backend.module("ops.sets.ranking").take_states
    found = take(backend.asarray(states), backend.asarray(index))
    expected = np.take_along_axis(states, index[..., None], 0)
    np.testing.assert_array_equal(np.asarray(found), expected)
    assert np.asarray(found).dtype == kind


def test_a_number_may_be_an_array_of_one(backend):
    @backend.module("ops.arguments").checked
    def of(rate: float) -> float:
        return rate

    assert float(of(backend.asarray(np.array(0.5)))) == 0.5
    for bad in (True, "a"):
        with pytest.raises(ValueError, match="`rate` must be a number; got"):
            of(bad)


def test_whole_numbers_of_a_program_stay_where_they_are(backend):
    handlers = backend.module("programs.handlers.elsewhere")
    count = backend.asarray(np.arange(3))
    assert np.asarray(moved(backend, handlers, count)).tolist() == [0, 1, 2]
    rate = backend.asarray(np.arange(3.0))
    assert (np.asarray(moved(backend, handlers, rate)) != np.arange(3.0)).all()


def moved(backend, handlers, value):
    kind = next(v for v in vars(handlers).values() if isinstance(v, type) and hasattr(v, "_moved"))
    if backend.name == "pyro":
        return kind(1, 0.1)._moved(value)
    from numpyro.distributions import constraints

    return kind(backend.asarray(np.array(1)), backend.asarray(np.array(0.1)))._moved(
        value, constraints.real
    )


@of_package("numpyro")
def test_what_stands_in_for_zeros_is_of_numbers_that_have_parts(backend):
    find = backend.module("programs.structure.stand_ins")._moved
    assert np.asarray(find(backend.asarray(np.zeros(3, int)))).tolist() == [0, 0, 0]
    found = np.asarray(find(backend.asarray(np.array([0.0, 2.0]))))
    assert 0.05 <= found[0] <= 0.15
    assert found[1] == 2.0


@of_package("numpyro")
def test_a_program_is_lowered_once(backend):
    import jax.numpy as jnp

    traced = []

    def function(x):
        traced.append(x)
        return jnp.sin(x)

    compiled = backend.module("fit.compiled").Compiled(function, static=())
    x = jnp.ones(2)
    assert compiled.holds("sine", x)
    assert not compiled.holds("cosine", x)
    np.testing.assert_allclose(compiled(x), np.sin(np.ones(2)))
    assert len(traced) == 1


# ------------------------------------------------------------------------------ Pyro's own


@of_package("pyro")
def test_held_out_data_are_batches_or_arrays(backend):
    import torch

    module = backend.module("fit.evaluation")
    svi = SimpleNamespace(model=lambda: None, guide=lambda: None, loss_and_grads=None)
    devices = SimpleNamespace(evaluate=lambda batch: float(batch.args[0].sum()), size=1)
    values = torch.arange(5.0)
    batches = [(values[:2],), values[2:]]
    for data, size in ((values, 2), (values, None), (batches, None)):
        assert module.HeldOut(svi, data, size, devices).loss() == pytest.approx(2.0)
    with pytest.raises(ValueError, match="`eval_data` gave no batch: it must hold at least one"):
        module.HeldOut(svi, [], None, devices).loss()
    with pytest.raises(ValueError, match="`eval_data` is an iterator, which can be used only once"):
        module.HeldOut(svi, iter(batches), None, devices)


@of_package("pyro")
def test_a_parameter_without_a_gradient_is_restored(backend):
    import pyro
    import torch

    adamw = backend.module("fit.optimisers").adamw

    def steps(optim, count):
        params = dict(pyro.get_param_store().named_parameters())
        for _ in range(count):
            params["a"].grad = params["a"].detach() ** 2
            optim(set(params.values()))
        return {name: value.detach().tolist() for name, value in params.items()}

    def begin(start):
        pyro.clear_param_store()
        for name, value in start.items():
            pyro.param(name, torch.tensor(value))
        return adamw(0.1)

    start = {"a": [1.0, -2.0], "b": [3.0]}
    expected = steps(begin(start), 4)
    optim = begin(start)
    half, state = steps(optim, 2), optim.get_state()
    assert state["b"]["adam"] == {}
    resumed = begin(half)
    resumed.set_state(state)
    assert steps(resumed, 2) == expected
    assert expected["b"] == [3.0]
