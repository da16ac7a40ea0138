"""Files that are no checkpoints of `fit`, or of something else, each refused by its fault."""

import enum
import zipfile

import numpy as np
import pytest
import torch

from pyro_dvae.fit import checkpoints
from pyro_dvae.fit.data import Batch, is_finite
from pyro_dvae.fit.devices import _rows_of
from pyro_dvae.fit.plain import as_plain, like


def contents(**changes):
    training = {"params": {}, "modules": {}, "optim": {}, "rng": {}, "loss_state": None}
    return {
        "format": 2,
        "step": 2,
        "seconds": 0.5,
        "identity": {"a": 1},
        "losses": torch.tensor([1.0, 2.0], dtype=torch.float64),
        "history": [],
        "data": {},
        "training": training,
    } | changes


def test_a_whole_checkpoint_is_read(tmp_path):
    torch.save(contents(), tmp_path / "checkpoint.pt")
    found = checkpoints.load_checkpoint(tmp_path)
    assert found.identity == {"a": 1}
    assert found.run == checkpoints.RunState([1.0, 2.0], 0.5, [], {})


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ([1, 2], "not a checkpoint of this version of `fit`; start afresh"),
        (contents(format=1), "not a checkpoint of this version of `fit`; start afresh"),
        (contents(seconds=None), "it has no 'seconds' of type float"),
        (contents(training=[]), "it has no 'training' of type dict"),
        (contents(training={"params": {}}), "it has no 'modules' of type dict"),
        (contents(step=3), "its parts do not fit together"),
        (
            contents(training={name: {} for name in ("params", "modules", "optim", "rng")}),
            "its parts do not fit together",
        ),
        (contents(data={"a": [torch.zeros(1).expand(9)]}), "claims more values than there are"),
    ],
)
def test_a_checkpoint_with_a_fault_is_refused_by_it(tmp_path, state, message):
    torch.save(state, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match=message) as error:
        checkpoints.load_checkpoint(tmp_path)
    assert "checkpoint.pt" in str(error.value)
    assert "`resume=False`" in str(error.value)


def test_a_file_that_unpacks_to_more_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "checkpoint.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data.pkl", bytes(10**6))
    with pytest.raises(ValueError, match="it would unpack to more than it holds"):
        checkpoints.load_checkpoint(tmp_path)


def test_tensors_of_another_model_are_named_with_their_shapes():
    model = {"a": torch.zeros(2), "b": torch.zeros(1), "c": torch.zeros(3, 1)}
    saved = {"a": torch.zeros(2), "c": torch.zeros(3), "d": torch.zeros(1)}
    message = (
        r"another model; parameters differ: 'b' is not in the checkpoint; 'c' has shape \(3, 1\), "
        r"in the checkpoint \(3,\); 'd' is missing from the model\. Build"
    )
    with pytest.raises(ValueError, match=message):
        checkpoints._check_same("parameters", model, saved)
    checkpoints._check_same("parameters", model, model)


def test_numbers_of_numpy_do_not_spoil_a_checkpoint(tmp_path):
    """A float64 of NumPy is a Python float, but is pickled as what `weights_only` refuses."""
    history = [{"mean_loss": np.float64(0.5), "name": np.str_("a"), "codes": np.int32(3)}]
    torch.save(as_plain(contents(history=history)), tmp_path / "checkpoint.pt")
    found = checkpoints.load_checkpoint(tmp_path).run.history
    assert found == history
    assert [type(value) for value in found[0].values()] == [float, str, int]


class Mode(enum.IntEnum):
    FAST = 2


class Named(str, enum.Enum):  # noqa: UP042  (its `str` is not its value)
    FAST = "fast"


@pytest.mark.parametrize(
    "value",
    [Mode.FAST, Named.FAST, {Mode.FAST: 1}, {np.int64(3): 1.5}, {(np.str_("a"), Named.FAST): None}],
)
def test_enumerations_and_keys_of_numpy_are_read_again(tmp_path, value):
    torch.save(as_plain(contents(history=[value])), tmp_path / "checkpoint.pt")
    assert checkpoints.load_checkpoint(tmp_path).run.history == [value]


def test_values_are_plain_and_back():
    values = {"a": [np.float64(0.5), np.int32(3)], "b": (np.arange(3), None)}
    plain = as_plain(values)
    assert plain["a"] == [0.5, 3]
    assert [type(value) for value in plain["a"]] == [float, int]
    torch.testing.assert_close(plain["b"][0], torch.arange(3))
    with pytest.raises(ValueError, match=r"cannot checkpoint checkpoint\['a'\]\[1\], a object"):
        as_plain({"a": [1, object()]})
    with pytest.raises(ValueError, match=r"checkpoint\[frozenset\(\{1\}\)\], a frozenset\. State"):
        as_plain({frozenset([1]): 1})
    info = checkpoints.RunState([], 0.0, [], {})
    found = like([info, {"x": torch.zeros(2)}], [(1, 2, 3, 4), {"x": torch.ones(2), "y": 5}])
    assert found[0] == checkpoints.RunState(1, 2, 3, 4)
    assert found[1]["x"].tolist() == [1.0, 1.0]
    assert found[1]["y"] == 5
    assert like([1, 2], [3]) == [3]


def test_a_batch_without_tensors_is_finite():
    assert is_finite(Batch(("a",), {"k": None}))
    assert not is_finite(Batch((torch.tensor([1.0, torch.nan]),), {}))


def test_processes_share_arrays_by_their_rows():
    values = torch.arange(6)
    found = _rows_of(Batch((values, torch.tensor(2.0), "a"), {"m": values[:, None]}), 2, 3, 6)
    assert found.args[0].tolist() == [2, 3, 4]
    assert found.args[1:] == (torch.tensor(2.0), "a")
    assert found.kwargs["m"].tolist() == [[2], [3], [4]]
    with pytest.raises(ValueError, match=r"`data`: an array of shape \(5,\) in a batch of 6 rows"):
        _rows_of(Batch((values[:5],), {}), 0, 3, 6)
