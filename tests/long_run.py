"""Two hundred thousand steps of a tiny model: memory, log and step time do not grow.

    python tests/long_run.py numpyro --steps 200000

A policy search with a target rate, the moving average of REINFORCE after it, each with half of the
steps; prints peak memory of the first half and of the last, the time of a step in each, and what
the solver, the average and the rate have come to; ends with status 1 if any of it is out of range.
"""

import argparse
import json
import math
import re
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "examples" / "tools")]

import numpy as np  # noqa: E402

ROWS = 100  # of the log
MOST_GROWTH = 1.02  # of memory
MOST_SLOWER = 1.5  # of a step; other processes may be in the way
BITS = 2.0


def peak():
    """The most bytes that this process has held since it was last asked."""
    status = Path("/proc/self/status").read_text()
    Path("/proc/self/clear_refs").write_text("5")  # Linux forgets the peak so far
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) * 1024


def train(name, method, steps, watch, folder):
    from backends import get_backend
    from configs import Config

    backend = get_backend(name, "cpu")
    backend.seed(0)
    config = Config(num_latents=2, num_codes=4, embed_dim=2, encoder_hidden=(4,))
    config = config._replace(decoder_hidden=(4,), likelihood="bernoulli")
    images = (np.random.default_rng(0).random((64, 3, 3)) < 0.5).astype(np.float32)
    model, guide = backend.make_vae(config, images)
    average = backend.module("ops.baselines").moving_average()
    options = {"daps": {"target_rate": BITS}, "reinforce": {"baseline": average}}[method]
    loss = backend.make_loss(method, num_particles=4, **options)
    log = backend.module("fit.log").Log
    write = log.write

    def watched(self, row):
        write(self, row)
        watch(row)

    log.write = watched
    try:
        return backend.train(
            model,
            guide,
            loss,
            images,
            learning_rate=1e-3,
            num_steps=steps,
            batch_size=16,
            log_every=max(1, steps // ROWS),
            checkpoint_every=max(1, steps // 10),
            folder=folder,
            progress=False,
        )
    finally:
        log.write = write


def faults(method, rows, held):
    """What has grown or left its range."""
    half, found = len(rows) // 2, []
    peaks = max(held[1:half]), max(held[half:])
    speed = [
        np.median([row["steps_per_second"] for row in part]) for part in (rows[1:half], rows[half:])
    ]
    if peaks[1] > MOST_GROWTH * peaks[0]:
        found.append(f"memory grew from {peaks[0]} to {peaks[1]}")
    if speed[1] * MOST_SLOWER < speed[0]:
        found.append(f"steps a second fell from {speed[0]:.0f} to {speed[1]:.0f}")
    if not all(math.isfinite(value) for row in rows for value in row.values()):
        found.append("a row of the log is not finite")
    if method == "daps":
        rates = [row["rate"] for row in rows[half:]]
        if not 0.5 * BITS < np.mean(rates) < 1.5 * BITS:
            found.append(f"the rate is {np.mean(rates):.2f} bits, not {BITS}")
        if not all(0 < row["temperature"] < 1e6 and 0 < row["beta"] < 1e6 for row in rows):
            found.append("temperature or beta left their range")
    print(
        f"{method}: {rows[-1]['step']} steps, {peaks[0] / 2**20:.0f} and "
        f"{peaks[1] / 2**20:.0f} MiB, {speed[0]:.0f} and {speed[1]:.0f} steps a second"
    )
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("package", choices=["pyro", "numpyro"])
    parser.add_argument("--steps", type=int, default=200_000)
    args = parser.parse_args()
    found = []
    for method in ("daps", "reinforce"):
        rows, held = [], []

        def watch(row, rows=rows, held=held):
            rows.append(row)
            held.append(peak())

        with tempfile.TemporaryDirectory() as folder:
            train(args.package, method, args.steps // 2, watch, folder)
            lines = (Path(folder) / "log.jsonl").read_text().splitlines()
            assert [json.loads(line)["step"] for line in lines] == [row["step"] for row in rows]
        found += faults(method, rows, held)
    sys.exit("; ".join(found) or 0)


if __name__ == "__main__":
    main()
