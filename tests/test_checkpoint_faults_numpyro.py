"""Folders that are no checkpoints of `fit`, or of something else, each refused by its fault."""

import errno
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from numpyro_dvae.fit import checkpoints
from numpyro_dvae.fit.devices import Devices
from numpyro_dvae.fit.evaluation import HeldOut


def contents(leaves=None, **changes):
    """What Orbax reads of a checkpoint, whose sums hold unless they are given."""
    losses = {"losses": np.array([1.0, 2.0])}
    plain = {
        "format": 3,
        "step": 2,
        "seconds": 0.5,
        "identity": {"a": 1},
        "history": [],
        "data": {},
        "rng_key": [0, 1],
        "shapes": {},
        "empty": {"e": [0, 3]},
        "sums": {name: checkpoints._sum(value) for name, value in losses.items()},
    } | changes
    plain.setdefault("sum", checkpoints._sum_of_json(plain))
    return {"run": plain, "state": losses if leaves is None else leaves}


def load(monkeypatch, folder, found):
    monkeypatch.setattr(checkpoints, "_read", lambda path: found)
    return checkpoints.load_checkpoint(folder)


def test_a_whole_checkpoint_is_read(monkeypatch, tmp_path):
    found = load(monkeypatch, tmp_path, contents())
    assert found.identity == {"a": 1}
    assert found.run == checkpoints.RunState([1.0, 2.0], 0.5, [], {})
    assert found.rng_key.tolist() == [0, 1]
    assert found.training["leaves"]["e"].shape == (0, 3)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"run": [1], "state": {}}, "not a checkpoint of this version of `fit`; start afresh"),
        (contents(format=2), "not a checkpoint of this version of `fit`; start afresh"),
        (contents(seconds=None), "it has no 'seconds' of type float"),
        (contents(sum="0"), "the checksum of its JSON part does not hold"),
        (contents(leaves=[]), "its parts do not fit together"),
        (contents(leaves={}), "its parts do not fit together"),
        (contents(leaves={"losses": np.ones(2)}), "the checksum of 'losses' in it does not hold"),
        (contents(step=3), "its parts do not fit together"),
        (contents(leaves={}, sums={}), "its parts do not fit together"),
        (None, "holds no checkpoint: check `folder`"),
    ],
)
def test_a_checkpoint_with_a_fault_is_refused_by_it(monkeypatch, tmp_path, found, message):
    with pytest.raises(ValueError, match=message) as error:
        load(monkeypatch, tmp_path, found)
    assert "`resume=False`" in str(error.value)


def test_the_reason_of_the_system_is_told(monkeypatch, tmp_path):
    def fail(path):
        raise OSError(errno.ENOTDIR, "Not a directory")

    monkeypatch.setattr(checkpoints, "_read", fail)
    with pytest.raises(ValueError, match="cannot be read as a checkpoint: Not a directory"):
        checkpoints.load_checkpoint(tmp_path)


def test_arrays_of_another_model_are_named_with_their_shapes():
    model, saved = {"a": (2,), "b": (1,), "c": (3, 1)}, {"a": (2,), "c": (3,), "d": (1,)}
    message = (
        r"another model; parameters differ: 'b' is not in the checkpoint; 'c' has shape \(3, 1\), "
        r"in the checkpoint \(3,\); 'd' is missing from the model\. Build"
    )
    with pytest.raises(ValueError, match=message):
        checkpoints._check_same("parameters", model, saved)
    checkpoints._check_same("parameters", model, model)


def test_held_out_data_hold_a_batch():
    svi = SimpleNamespace()
    held_out = HeldOut(jax.random.PRNGKey(0), svi, [], 5, Devices(None))
    with pytest.raises(ValueError, match="`eval_data` gave no batch: it must hold at least one"):
        held_out.loss(None)
    with pytest.raises(ValueError, match="`eval_data` is an iterator, which can be used only once"):
        HeldOut(jax.random.PRNGKey(0), svi, iter([]), 5, Devices(None))
