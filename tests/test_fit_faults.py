"""What `fit` reads is whole and its own, or refused in one line; faults of the system are told."""

import copy
import multiprocessing
import pickle
import re
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from test_fit import ROOT, kit, make_data, run, same

__all__ = ["kit"]  # a fixture


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


def bits_of(path, count, seed=0):
    """Places of random bits in the files of a checkpoint: file, byte, bit."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    sizes = np.array([file.stat().st_size for file in files])
    rng = np.random.default_rng(seed)
    for _ in range(count):
        place = int(rng.integers(sizes.sum()))
        which = int(np.searchsorted(np.cumsum(sizes), place, side="right"))
        yield files[which], place - int(sizes[:which].sum()), int(rng.integers(8))


def flip(file, byte, bit):
    contents = bytearray(file.read_bytes())
    contents[byte] ^= 1 << bit
    file.write_bytes(contents)


def check_flips(kit, folder, count, seed=0):
    """Each flipped bit is refused, or of no matter: then the run goes on to the same numbers."""
    run(kit, 4, folder=folder / "whole")
    expected = run(kit, 6)
    refused = 0
    for file, byte, bit in bits_of(folder / "whole" / kit.CHECKPOINT, count, seed):
        flip(file, byte, bit)
        shutil.copytree(folder / "whole", folder / "cut")
        flip(file, byte, bit)
        try:
            found = run(kit, 6, kit.make_svi(1), folder=folder / "cut", resume=True)
        except ValueError as error:
            found = str(error)
        if isinstance(found, str):
            assert re.search("cannot be read as a checkpoint|not a checkpoint|holds no", found)
            assert "\n" not in found
            refused += 1
        else:
            same(kit, expected, found)
        shutil.rmtree(folder / "cut")
    return refused


# Orbax closes its event loop under the other reads of an array that cannot be read.
UNREAD = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@UNREAD
def test_a_flipped_bit_is_refused_or_of_no_matter(kit, tmp_path):
    assert check_flips(kit, tmp_path, 8) >= 4


def test_a_checkpoint_that_is_cut_off_is_refused(kit, tmp_path):
    run(kit, 4, folder=tmp_path)
    path = tmp_path / kit.CHECKPOINT
    if path.is_file():
        path.write_bytes(path.read_bytes()[:-1000])
    else:
        next(path.glob("*/run/*")).write_text('{"format": ')
    with pytest.raises(ValueError, match="cannot be read as a checkpoint: it") as error:
        run(kit, 8, folder=tmp_path, resume=True)
    assert "weights_only" not in one_line(error)


# What a run is of


def test_a_resume_with_something_else_is_refused_by_name(kit, tmp_path):
    run(kit, 4, folder=tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    data = make_data()
    other = {
        "`data`.*sum": {"data": 1 - data},
        "`batch_size` is 4, but .* with 5": {"batch_size": 4},
        "`transform`": {"transform": kit.as_transform(lambda x: x)},
        "`loss`": {"svi": kit.other_loss_svi()},
    }
    for message, settings in other.items():
        with pytest.raises(ValueError, match=message) as error:
            run(kit, 8, folder=tmp_path, resume=True, **{"data": data} | settings)
        one_line(error)
    with pytest.raises(ValueError, match="`optim`"):
        run(kit, 8, kit.make_svi(optim=kit.other_optim()), folder=tmp_path, resume=True)
    assert before == {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    same(kit, run(kit, 8), run(kit, 8, folder=tmp_path, resume=True))


# One run to a folder


def test_a_second_run_in_a_folder_is_refused(kit, tmp_path):
    seen = []

    def transform(*args):
        with pytest.raises(ValueError, match="another run is writing to") as error:
            run(kit, 4, kit.make_svi(), folder=tmp_path)
        seen.append(one_line(error))
        return args[-1]

    run(kit, 1, folder=tmp_path, transform=transform)
    assert seen
    run(kit, 4, folder=tmp_path)  # the lock is gone with the run


LOCKED = """
import sys, time
sys.path[:0] = [{root!r}, {root!r} + "/tests"]
from {package}.fit.files import folder_of_run
with folder_of_run({folder!r}):
    print("locked", flush=True)
    time.sleep(600)
"""


def test_a_killed_run_leaves_no_lock_and_its_remains_are_cleared(kit, tmp_path):
    package = kit.package.__name__.split(".")[0]
    code = LOCKED.format(root=str(ROOT), package=package, folder=str(tmp_path))
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "locked\n"
    with pytest.raises(ValueError, match="another run"):
        run(kit, 4, folder=tmp_path)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    (tmp_path / ".checkpoint.pt.abc").write_bytes(b"half")
    (tmp_path / ".log.jsonl.abc").write_bytes(b"half")
    run(kit, 4, folder=tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [kit.CHECKPOINT, "log.jsonl"]


# The system


def test_a_full_disk_is_one_line_with_the_last_checkpoint(kit, tmp_path, monkeypatch):
    run(kit, 4, folder=tmp_path)
    with monkeypatch.context() as patch:
        kit.break_writing(patch)
        with pytest.raises(OSError, match=r"No space left.*at step 8.*is whole") as error:
            run(kit, 8, folder=tmp_path, resume=True)
    assert kit.CHECKPOINT in one_line(error)


def test_counts_are_whole_numbers(kit):
    for name in ("num_steps", "log_every", "eval_every", "checkpoint_every"):
        for value in (2.5, True, "3", np.nan, None):
            with pytest.raises(ValueError, match=rf"`{name}` must be a whole number; got"):
                run(kit, **{"num_steps": 4} | {name: value})
    with pytest.raises(ValueError, match=r"`batch_size` must be a whole number or None; got 2.5"):
        run(kit, batch_size=2.5)
    with pytest.raises(ValueError, match="`svi` must be a SVI; got a value of type object"):
        run(kit, svi=object())


# Pickling


WAYS = [("pyro", "forkserver"), ("pyro", "spawn"), ("numpyro", "spawn")]


def raise_from(make, arguments):
    raise make(*arguments)


@pytest.mark.parametrize(("kit", "method"), WAYS, indirect=["kit"])
def test_what_ends_a_run_comes_back_from_a_process(kit, method):
    package = kit.package
    result = package.FitResult("model", "guide", {}, np.ones(3), num_steps=3)
    arguments = {
        package.DivergenceError: (3, 1.5, Path("a"), ["x"]),
        package.FitInterrupt: (signal.SIGTERM, result),
    }
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(1, mp_context=context) as pool:  # `Pool` itself ends at an interrupt
        for kind, given in arguments.items():
            with pytest.raises(kind) as error:
                pool.submit(raise_from, kind, given).result(60)
            assert str(error.value) == str(kind(*given))
            assert vars(error.value).keys() == vars(kind(*given)).keys()


POOLS = [("pyro", "fork"), ("pyro", "spawn"), ("numpyro", "spawn")]


@pytest.mark.filterwarnings("ignore:.*fork")
@pytest.mark.parametrize(("kit", "method"), POOLS, indirect=["kit"])
def test_a_divergence_comes_back_through_a_pool(kit, method):
    given = (3, 1.5, Path("a"), ["x"])
    kind = kit.package.DivergenceError
    with multiprocessing.get_context(method).Pool(1) as pool:
        with pytest.raises(kind, match="step 3") as error:
            pool.apply_async(raise_from, (kind, given)).get(60)
    assert vars(error.value) == vars(kind(*given))


def test_losses_with_a_schedule_are_pickled_and_copied(backend):
    fit, infer = backend.module("fit"), backend.module("infer")
    schedules = [fit.linear_schedule(1.0, 0.0, 10), fit.exponential_schedule(0.5, 0.01, 100)]
    for schedule in schedules:
        loss = infer.DAPS_ELBO(4, beta=schedule)
        for other in (pickle.loads(pickle.dumps(loss)), copy.deepcopy(loss)):
            assert [other.beta(i) for i in (0, 5, 99)] == [schedule(i) for i in (0, 5, 99)]


def test_schedules_refuse_what_is_not_finite(backend):
    fit = backend.module("fit")
    for make in (fit.linear_schedule, fit.exponential_schedule):
        for bad in (np.nan, np.inf, "1"):
            with pytest.raises(ValueError, match=r"`start` must be a (finite )?number"):
                make(bad, 0.5, 10)
        with pytest.raises(ValueError, match="`num_steps`"):
            make(1.0, 0.5, 2.5)


def test_a_divergence_tells_what_is_likely_by_its_step(kit):
    early, late = (str(kit.package.DivergenceError(step, 1.0, None, [])) for step in (2, 40))
    assert "the program is the likelier cause" in early
    assert "say so by a factor of -inf, and mask the density there" in early
    assert "a lower learning rate" in late
