"""Faults that come from outside a run: loaders, clocks, links, files of other runs, the system."""

import errno
import json
import os
import resource
import shutil

import numpy as np
import pytest
from test_fit import kit, make_data, run, same

__all__ = ["kit"]  # a fixture


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


# Batches that come otherwise than they did


class OwnOrder:
    """Batches in another order each epoch, by a generator that `fit` cannot know."""

    def __init__(self):
        self.rng = np.random.default_rng(0)

    def __iter__(self):
        x = make_data(20)
        for rows in self.rng.permutation(20).reshape(4, 5):
            yield x[rows]


def test_batches_in_an_order_that_cannot_be_restored_are_refused(kit, tmp_path):
    settings = {"batch_size": None, "folder": tmp_path}
    run(kit, 3, data=OwnOrder(), **settings)
    with pytest.raises(ValueError, match=r"`data` gives other batches.*persistent_workers") as e:
        run(kit, 8, data=OwnOrder(), resume=True, **settings)
    one_line(e)


def test_a_list_of_other_batches_is_refused(kit, tmp_path):
    batches = list(make_data(35).reshape(7, 5, 4))
    settings = {"batch_size": None, "folder": tmp_path}
    run(kit, 4, data=batches, **settings)
    others = [*batches[:3], 1 - batches[3], *batches[4:]]
    with pytest.raises(ValueError, match="`data` gives other batches"):
        run(kit, 8, data=others, resume=True, **settings)
    with pytest.raises(ValueError, match="`data` ends before"):
        run(kit, 8, data=batches[:2], resume=True, **settings)
    resumed = run(kit, 8, data=batches, resume=True, **settings)
    same(kit, run(kit, 8, data=batches, batch_size=None), resumed)


# What lies in a folder


def test_a_checkpoint_of_another_run_is_refused(kit, tmp_path):
    """One of the same model, exchanged by hand, is known by what its run was of."""
    first, second = tmp_path / "first", tmp_path / "second"
    run(kit, 4, folder=first)
    run(kit, 4, folder=second, batch_size=4)
    shutil.move(second / kit.CHECKPOINT, tmp_path / "other")
    shutil.move(first / kit.CHECKPOINT, second / kit.CHECKPOINT)
    shutil.move(tmp_path / "other", first / kit.CHECKPOINT)
    with pytest.raises(ValueError, match=r"`batch_size` is 5, but .* with 4") as error:
        run(kit, 8, folder=first, resume=True)
    one_line(error)


TORN = ['{"step": 3, "lo', '{"step": 3, "extra": 1}\n', "\x00" * 40]


@pytest.mark.parametrize("end", TORN)
def test_a_log_that_is_torn_or_has_more_is_that_of_the_checkpoint_again(kit, tmp_path, end):
    run(kit, 4, folder=tmp_path)
    before = (tmp_path / "log.jsonl").read_text()
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write(end)
    run(kit, 8, folder=tmp_path, resume=True)
    after = (tmp_path / "log.jsonl").read_text()
    assert after.startswith(before)
    assert [json.loads(line)["step"] for line in after.splitlines()] == [4, 8]


def test_a_run_goes_where_a_link_leads(kit, tmp_path):
    """The lock is on the folder itself, whatever way leads to it."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    seen = []

    def transform(*args):
        with pytest.raises(ValueError, match="another run is writing to") as error:
            run(kit, 4, kit.make_svi(), folder=tmp_path / "real")
        seen.append(one_line(error))
        return args[-1]

    run(kit, 1, folder=tmp_path / "link", transform=transform)
    assert seen
    run(kit, 4, folder=tmp_path / "link")
    same(kit, run(kit, 8), run(kit, 8, folder=tmp_path / "real", resume=True))
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere" / "x")
    with pytest.raises(ValueError, match="`folder` cannot be written to"):
        run(kit, 4, folder=tmp_path / "dangling")


def test_a_folder_that_is_a_file_or_cannot_be_read_is_refused(kit, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "log.jsonl").mkdir()
    with pytest.raises(ValueError, match="`folder` cannot be written to"):
        run(kit, 4, folder=tmp_path / "file")
    run(kit, 4, folder=tmp_path / "log")  # set aside, whatever it is
    assert (tmp_path / "log" / "log.previous.jsonl").is_dir()
    for path in ("", "a\0b"):
        with pytest.raises(ValueError, match="`folder`") as error:
            run(kit, 4, folder=path)
        one_line(error)


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EMFILE, errno.ENOSPC])
def test_a_folder_that_takes_no_file_is_refused_before_anything(kit, tmp_path, monkeypatch, number):
    def refuse(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(ValueError, match=rf"`folder` cannot be written.*{os.strerror(number)}"):
        run(kit, 4, folder=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_that_the_system_withholds_is_not_called_broken(kit, tmp_path, monkeypatch):
    run(kit, 4, folder=tmp_path)
    with monkeypatch.context() as patch:
        kit.break_reading(patch)
        with pytest.raises(ValueError, match=r"cannot be opened: Perm.*whole") as error:
            run(kit, 8, folder=tmp_path, resume=True)
    assert kit.CHECKPOINT in one_line(error)
    same(kit, run(kit, 8), run(kit, 8, folder=tmp_path, resume=True))


# What happens in the middle of a run


class Upset:
    """Batches, before one of which something happens."""

    def __init__(self, action, at):
        self.action, self.at, self.given = action, at, 0

    def __iter__(self):
        for batch in make_data(60).reshape(12, 5, 4):
            self.given += 1
            if self.given == self.at:
                self.action()
            yield batch


def upset(kit, folder, action, **settings):
    """A run that something stops before step 6, after its checkpoint of step 4; what it says."""
    settings = {"batch_size": None, "folder": folder, "checkpoint_every": 4} | settings
    with pytest.raises(OSError, match="could not be written at step") as error:
        run(kit, 12, data=Upset(action, 6), **settings)
    return one_line(error)


def goes_on(kit, folder, **settings):
    """The run in a folder ends as an unbroken one does."""
    settings = {"batch_size": None, "checkpoint_every": 4} | settings
    data = Upset(None, None)
    resumed = run(kit, 12, kit.make_svi(1), data=data, folder=folder, resume=True, **settings)
    same(kit, run(kit, 12, data=data, **settings), resumed)
    log = (folder / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in log] == [row["step"] for row in resumed.history]


def test_a_folder_that_is_deleted_in_the_middle_of_a_run_is_told(kit, tmp_path):
    folder = tmp_path / "run"
    found = upset(kit, folder, lambda: shutil.rmtree(folder))
    assert "No such file or directory" in found
    assert "is whole" not in found
    assert "is gone" in found


@pytest.fixture
def limits():
    """Sets limits of the system, which are lifted again."""
    before = {}

    def limit(which, value):
        before.setdefault(which, resource.getrlimit(which))
        resource.setrlimit(which, (value, before[which][1]))

    def lift():
        for which, value in before.items():
            resource.setrlimit(which, value)

    limit.lift = lift
    yield limit
    lift()


def test_a_disk_that_is_full_in_the_log_leaves_the_checkpoint(kit, tmp_path, limits):
    def full():
        limits(resource.RLIMIT_FSIZE, (tmp_path / "log.jsonl").stat().st_size + 9)

    found = upset(kit, tmp_path, full, log_every=2)
    limits.lift()
    assert "log.jsonl" in found
    assert f"{kit.CHECKPOINT}' is whole" in found
    goes_on(kit, tmp_path, log_every=2)


def test_a_run_without_files_to_open_leaves_the_checkpoint(kit, tmp_path, limits):
    def none_left():
        used = [int(name) for name in os.listdir("/proc/self/fd")]
        limits(resource.RLIMIT_NOFILE, 0 * len(used))

    found = upset(kit, tmp_path, none_left, log_every=2)
    limits.lift()
    assert "Too many open files" in found
    assert f"{kit.CHECKPOINT}' is whole" in found
    goes_on(kit, tmp_path, log_every=2)


def test_a_clock_that_goes_back_changes_nothing(kit, tmp_path, monkeypatch):
    now = [2e9]

    def earlier():
        now[0] -= 1000.0
        return now[0]

    with monkeypatch.context() as patch:
        patch.setattr("time.time", earlier)
        run(kit, 4, folder=tmp_path)
        resumed = run(kit, 8, folder=tmp_path, resume=True)
    same(kit, run(kit, 8), resumed)
    assert all(row["steps_per_second"] > 0 for row in resumed.history)
