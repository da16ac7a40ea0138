"""What `fit` does with folders and files where the system does not do what it usually does."""

import errno
import os
import shutil
import threading
from types import SimpleNamespace

import numpy as np
import pytest


@pytest.fixture
def files(backend):
    return backend.module("fit.files")


def failing(number, times=10**9):
    """A function that fails so many times, then does nothing; and its calls."""
    calls = []

    def fail(*args, **kwargs):
        calls.append(args)
        if len(calls) <= times:
            raise OSError(number, os.strerror(number))

    return fail, calls


@pytest.mark.parametrize(("times", "expected"), [(3, 4), (10**9, 30)])
def test_what_is_still_written_to_is_tried_again(files, tmp_path, monkeypatch, times, expected):
    (tmp_path / ".checkpoint.pt.abc").mkdir()
    fail, calls = failing(errno.ENOTEMPTY, times)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", fail)
        patch.setattr(files.time, "sleep", lambda seconds: None)
        with files.folder_of_run(tmp_path) as folder:
            assert folder == tmp_path
    assert len(calls) == expected


def test_what_may_not_be_removed_is_told_at_once(files, tmp_path, monkeypatch):
    (tmp_path / ".checkpoint.pt.abc").mkdir()
    fail, calls = failing(errno.EACCES)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", fail)
        with pytest.raises(PermissionError), files.folder_of_run(tmp_path):
            pass
    assert len(calls) == 1


def test_a_folder_without_locks_is_used_without(files, tmp_path, monkeypatch):
    """As of a network's file system, or of a system that has no `fcntl`."""
    fail, calls = failing(errno.ENOLCK)
    with monkeypatch.context() as patch:
        patch.setattr(files.fcntl, "flock", fail)
        with files.folder_of_run(tmp_path), files.folder_of_run(tmp_path) as folder:
            assert folder == tmp_path
            assert len(files._HELD) == 2
    assert len(calls) == 2
    assert not files._HELD
    monkeypatch.setattr(files, "fcntl", None)
    with files.folder_of_run(tmp_path), files.folder_of_run(tmp_path):
        assert not files._HELD


def test_a_forked_process_lets_go_of_locks(files, tmp_path, monkeypatch):
    hooks = []
    monkeypatch.setattr(os, "register_at_fork", lambda after_in_child: hooks.append(after_in_child))
    files._let_go_in_children.__wrapped__()
    descriptor = os.open(tmp_path, os.O_RDONLY)
    monkeypatch.setattr(files, "_HELD", {descriptor})
    hooks[0]()
    assert not files._HELD
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_a_first_checkpoint_that_fails_leaves_none(files, tmp_path):
    message = r"No space left.*run.pt' could not be written at step 3; there is no checkpoint\. "
    with pytest.raises(OSError, match=message), files.writing(tmp_path / "run.pt", None, 3):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    kept = tmp_path / "kept.pt"
    with pytest.raises(OSError, match=r"kept\.pt' is gone"), files.writing(tmp_path, kept, 3):
        raise OSError("a library's words\nand more")


def test_the_system_is_at_fault_only_where_it_is(files, tmp_path):
    files.check_system(tmp_path, OSError(errno.EISDIR, "Is a directory"))
    files.check_system(tmp_path, ValueError("damaged"))
    with pytest.raises(ValueError, match=r"cannot be opened: Too many open files.*may be whole"):
        files.check_system(tmp_path, OSError(errno.EMFILE, "Too many open files"))


def test_a_file_is_replaced_whole_or_not_at_all(files, tmp_path, monkeypatch):
    """The system's reason is told, not that of the library that hid it; an interrupt stays one."""
    path = tmp_path / "run.pt"
    path.write_bytes(b"old")

    def hiding(error):
        def write(file):
            monkeypatch.setattr(file, "_file", SimpleNamespace(write=failing(errno.ENOSPC)[0]))
            try:
                file.write(b"new")
            except OSError:
                raise error from None

        return write

    with pytest.raises(OSError, match="No space left"):
        files.write_atomically(path, hiding(RuntimeError("a library's")))
    with pytest.raises(KeyboardInterrupt):
        files.write_atomically(path, hiding(KeyboardInterrupt()))
    with pytest.raises(RuntimeError, match="its own"):
        files.write_atomically(path, lambda file: exec("raise RuntimeError('its own')"))
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.pt"]
    files.write_atomically(path, lambda file: file.write(b"new"))
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("earlier", ["folder", "file", "none"])
@pytest.mark.parametrize("now", ["folder", "file"])
def test_what_is_set_aside_takes_the_place_of_what_was(files, tmp_path, earlier, now):
    def put(path, kind, text):
        if kind == "folder":
            path.mkdir()
            path /= "inside"
        if kind != "none":
            path.write_text(text)

    path, previous = tmp_path / "run.pt", tmp_path / "run.previous.pt"
    files.set_aside(path)
    put(path, now, "new")
    put(previous, earlier, "old")
    files.set_aside(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.previous.pt"]
    assert (previous / "inside" if now == "folder" else previous).read_text() == "new"


def test_a_folder_that_cannot_be_opened_is_not_synced(files, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "os", SimpleNamespace(name="nt"))
    files._sync_folder(tmp_path)


# What else a run leaves behind


def test_signals_are_left_alone_beside_the_main_thread(backend):
    signals, found = backend.module("fit.signals"), []

    def enter():
        with signals.Signals() as entered:
            found.append((entered.received, dict(entered._usual)))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == [(0, {})]


def test_a_log_without_a_folder_keeps_its_rows(backend):
    log = backend.module("fit.log").Log(None)
    log.write({"step": 1})
    log.restore([{"step": 2}])
    log.write({"step": 3})
    assert log.rows == [{"step": 2}, {"step": 3}]


def test_a_result_says_only_what_it_has(backend, tmp_path):
    result = backend.module("fit").FitResult
    bare = result("model", "guide", {}, np.ones(3), num_steps=3, seconds=1.25)
    assert repr(bare) == "FitResult(3 steps in 1.2 s, 0 parameters (0 values))"
    rows = [{"mean_loss": 2.0, "eval_loss": 0.5}, {"mean_loss": 1.5}]
    params = {"a": backend.asarray(np.ones((2, 3)))}
    full = result("model", "guide", params, np.ones(3), rows, 3, 1.25, tmp_path)
    assert repr(full) == (
        "FitResult(3 steps in 1.2 s, 1 parameters (6 values), mean loss 1.5, "
        f"eval loss per datum 0.5, folder {str(tmp_path)!r})"
    )


def test_what_no_gradient_learns_is_counted_beside_parameters(backend):
    """Of a closed form "0 parameters (0 values)" was all, and in NumPyro one parameter."""
    decoder = backend.module("models").LinearDecoder(
        backend.asarray(np.ones((2, 3))), learn="closed_form"
    )
    params, state = {}, {}
    if backend.name == "numpyro":
        from numpyro.infer.svi import SVIState

        params = {"model.decoder$raw": decoder.start()}
        state = {"svi_state": SVIState(None, params, None)}
    found = backend.module("fit").FitResult(decoder, "guide", params, np.ones(3), **state)
    kind = {"pyro": "buffers", "numpyro": "of mutable state"}[backend.name]
    assert f"0 parameters (0 values) and 1 {kind} (18 values)" in repr(found)
    assert ("2 latents, outputs (3,)" if not state else "an array (2, 3)") in repr(decoder)
