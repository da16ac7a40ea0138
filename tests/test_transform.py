"""`fit(transform=...)`: each training batch is changed, repeatably, and nothing else is."""

import importlib

import numpy as np
import pytest
from test_fit import make_data, run, same

KINDS = ["rows", "whole", "loader"]


@pytest.fixture(scope="module", params=["pyro", "numpyro"])
def kit(request):
    pytest.importorskip("torch" if request.param == "pyro" else "jax")
    return importlib.import_module(f"fit_{request.param}")


def gray(num_columns=4):
    return np.random.default_rng(0).random((23, num_columns)).astype(np.float32)


def arrays_of(kind, kit, x):
    """Settings of `run` that pass data in one of the ways that there are."""
    if kind == "loader":
        return {"data": kit.loader(x), "batch_size": None}
    return {"data": x, "batch_size": 5 if kind == "rows" else None}


@pytest.mark.thrifty
@pytest.mark.parametrize("kind", KINDS)
def test_the_identity_changes_nothing(kit, kind):
    """To the last bit: the transform has random numbers of its own, or draws none."""
    identity = kit.as_transform(lambda *batch: batch)
    plain = run(kit, 9, **arrays_of(kind, kit, make_data()))
    same(kit, plain, run(kit, 9, **arrays_of(kind, kit, make_data()), transform=identity))


@pytest.mark.thrifty
@pytest.mark.parametrize("kind", KINDS)
def test_training_is_that_on_transformed_data(kit, kind):
    flipped = run(kit, 9, **arrays_of(kind, kit, 1 - make_data()))
    flip = kit.as_transform(lambda x: 1 - x)
    found = run(kit, 9, **arrays_of(kind, kit, make_data()), transform=flip)
    same(kit, flipped, found)
    plain = run(kit, 9, **arrays_of(kind, kit, make_data()))  # negative control
    assert not np.array_equal(plain.losses, found.losses)


def test_draws_differ_from_step_to_step_and_repeat(kit):
    def drawn(seed=0):
        seen = []
        svi = kit.recording_svi(seen)
        kit.make_svi(seed)  # seeds what is global
        settings = {"progress": False, "batch_size": None, "transform": kit.binarised}
        kit.fit(svi, gray(), num_steps=6, **settings)
        return np.stack([x for x, *_ in seen[-6:]])

    first = drawn()
    assert set(np.unique(first)) == {0.0, 1.0}
    assert len({step.tobytes() for step in first}) == 6
    np.testing.assert_allclose(first.mean(), gray().mean(), atol=5 * 0.5 / np.sqrt(first.size))
    np.testing.assert_array_equal(first, drawn())


@pytest.mark.thrifty
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["binarised", "cropped"])
def test_a_resumed_run_gives_the_same_numbers(kit, tmp_path, monkeypatch, kind, name):
    def settings():
        x = gray() if name == "binarised" else np.round(gray(6))
        return arrays_of(kind, kit, x) | {"transform": getattr(kit, name), "log_every": 3}

    whole = run(kit, 12, **settings())
    assert np.isfinite(whole.losses).all()
    kept = {"folder": tmp_path, "checkpoint_every": 6}  # a dispatch ends there
    with pytest.raises(kit.package.FitInterrupt):
        run(kit, 12, kit.stopping_svi(5, monkeypatch), **settings(), **kept)
    monkeypatch.undo()
    svi = kit.make_svi(seed=7)  # other values, other generators
    same(kit, whole, run(kit, 12, svi, **settings(), **kept, resume=True))
    plain = run(kit, 12, **arrays_of(kind, kit, make_data()), log_every=3)
    assert not np.array_equal(plain.losses, whole.losses)


def test_all_arguments_and_constants_go_through(kit):
    seen, settings = [], {"num_steps": 1, "progress": False}
    x = kit.asarray(np.arange(4.0))

    def swapped(x, y, scale):
        return y, x + scale

    transform = kit.as_transform(swapped)
    kit.fit(kit.recording_svi(seen), x, 10 * x, 3, **settings, transform=transform)
    np.testing.assert_array_equal(seen[-1][0], 10 * np.arange(4.0))
    np.testing.assert_array_equal(seen[-1][1], np.arange(4.0) + 3)
    kit.fit(kit.recording_svi(seen), [(x, 10 * x, 3)], **settings, transform=transform)
    np.testing.assert_array_equal(seen[-1][1], np.arange(4.0) + 3)

    def scaled(x, scale):
        return {"x": x * scale, "scale": 2.0 * scale}

    batches = [{"x": x, "scale": 3.0}]
    kit.fit(kit.recording_svi(seen), batches, **settings, transform=kit.as_transform(scaled))
    np.testing.assert_array_equal(seen[-1][0], 3 * np.arange(4.0))
    assert seen[-1][2] == 6.0


@pytest.mark.thrifty
def test_held_out_data_are_left_as_they_are(kit):
    def transform(x):
        assert len(x) == 5, "not the training's"
        return x

    settings = {"eval_data": make_data(7), "eval_every": 3}
    found = run(kit, 6, **settings, transform=kit.as_transform(transform))
    same(kit, run(kit, 6, **settings), found)


@pytest.mark.thrifty
def test_the_step_of_a_subclass_gets_the_transformed_batch(kit):
    flip = kit.as_transform(lambda x: 1 - x)
    found = run(kit, 6, kit.doubled_svi(), transform=flip)
    flipped = run(kit, 6, kit.doubled_svi(), data=1 - make_data())
    np.testing.assert_array_equal(found.losses, flipped.losses)


# Bad transforms


@pytest.mark.thrifty
@pytest.mark.parametrize("kind", KINDS)
def test_values_that_are_not_finite_are_named(kit, kind):
    x = make_data()
    x[7, 2] = 9.0
    if kind == "loader":
        settings = {"data": [x[:4], x[:5], x[5:10]], "batch_size": None}
    else:
        settings = arrays_of(kind, kit, x)
    spoil = kit.as_transform(lambda x: x / (9.0 - x) * (9.0 - x))  # 0 / 0 there alone
    with kit.validation_enabled(False), pytest.raises(kit.package.DivergenceError) as error:
        run(kit, 12, **settings, transform=spoil)
    assert f"the data of step {error.value.step}" in error.value.culprits
    assert {"loader": 3, "whole": 1}.get(kind, error.value.step) == error.value.step


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (None, "`transform` returned a NoneType. Let it return the model's arguments as a tuple"),
        ("x", "`transform` returned a str. Let it"),
        (np.array(["x"]), "what `transform` returns must be numeric; got an array of dtype <U1"),
    ],
)
def test_something_else_is_refused(kit, returned, message):
    with pytest.raises(ValueError, match=message):
        run(kit, 2, transform=kit.as_transform(lambda x: returned))


def test_one_array_cannot_replace_two_arguments(kit):
    x, transform = kit.asarray(np.arange(4.0)), kit.as_transform(lambda x, y: x)
    with pytest.raises(ValueError, match=r"returned one array in place of 2 arguments\. Let it"):
        kit.fit(kit.recording_svi([]), x, x, num_steps=1, progress=False, transform=transform)


def test_what_cannot_be_called_with_a_batch_is_refused(kit):
    message = r"`transform` cannot be called with .*1 argument\(s\): missing a .* 'c'\. Let it"
    with pytest.raises(ValueError, match=message):
        run(kit, 2, transform=lambda a=0, b=0, *, c: a)


def test_an_error_of_its_own_passes(kit):
    def transform(x):
        raise TypeError("mine")

    with pytest.raises(TypeError, match="mine"):
        run(kit, 2, transform=kit.as_transform(transform))
