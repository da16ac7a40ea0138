"""All that a machine with one GPU is asked for, in one command of ten minutes.

The tests that want a GPU; steps a second, peak memory, time by the step written by hand and share
of a measured matrix rate of `mnist`, `cifar10` and `imagenet256` by both packages; then the
published training of `mnist`, and that of the 200 Bernoulli latents, for half of the time that is
left each. What is done is kept in --out: the command goes on where it was, and so do trainings.

    python examples/benchmarks/gpu.py --data-root data --out out/gpu
    python examples/benchmarks/gpu.py --skip tests speed --minutes 120 --out out/gpu
    python examples/benchmarks/gpu.py --smoke --out out/smoke
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PARTS = ("tests", "speed", "mnist", "board")
CONFIGS, BACKENDS = ("mnist", "cifar10", "imagenet256"), ("pyro", "numpyro")
_TESTS, _SPEED = 0.15, 0.4  # of all the time, at most
_GRACE = 90  # seconds in which a training writes its checkpoint
TRAININGS = {
    "mnist": "--config mnist --weight-decay 1e-4 --clip-units 1",
    "board": "--config mnist200 --method disarm --steps 1000000 --learning-rate 1e-4 "
    "--iwae-particles 100",
}


class Report:
    """What has been found, in a file that is read again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def add(self, name: str, value: dict[str, Any]) -> None:
        """Keep and print a finding."""
        self.found[name] = value
        self.path.write_text(json.dumps(self.found, indent=2) + "\n")
        print(name, json.dumps(value), flush=True)


def environment(out: Path, wheels: Path | None, smoke: bool) -> dict[str, str]:
    """Where Python finds the packages: here, and in wheels that the machine lacks."""
    paths = [str(ROOT)]
    if wheels is not None:
        packages = out / "packages"
        for wheel in sorted(wheels.glob("*.whl")):
            zipfile.ZipFile(wheel).extractall(packages)
        paths.append(str(packages))
    found = os.environ | {"PYTHONPATH": os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")])}
    return found | ({"PYRO_DVAE_DEVICE": "cpu", "JAX_PLATFORMS": "cpu"} if smoke else {})


def call(command: list[str], seconds: float, where: dict[str, str]) -> dict[str, Any]:
    """Run a command; its last line as JSON, or the line that says why there is none."""
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=where, capture_output=True, text=True, timeout=max(seconds, 1)
        )
    except subprocess.TimeoutExpired:
        return {"error": f"not done in {seconds:.0f} s"}
    lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    last = lines[-1] if lines else f"exit status {done.returncode}"
    try:
        return dict(json.loads(last))
    except ValueError:
        return {"passed" if done.returncode == 0 else "error": last}


def run_tests(args: Any, report: Report, where: dict[str, str], seconds: float) -> None:
    """The tests that want a GPU."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_gpu.py"]
    report.add("tests", call(command, seconds, where))


def run_speed(args: Any, report: Report, where: dict[str, str], seconds: float) -> None:
    """Each configuration by each package, in float32, and by bfloat16 where it matters."""
    end = time.monotonic() + seconds
    kinds = [(c, b, h) for c in CONFIGS for b in BACKENDS for h in (False, True)]
    kinds = [kind for kind in kinds if kind[0] != "mnist" or not kind[2]]
    for config, backend, half in kinds:
        name = f"speed {config} {backend}{' half' if half else ''}"
        if "steps_per_second" in report.found.get(name, {}):
            continue
        if (left := end - time.monotonic()) < 1:
            print(f"{name}: no time is left; the same command goes on here", flush=True)
            return
        command = [sys.executable, "examples/benchmarks/gpu_speed.py", "--config", config]
        command += ["--backend", backend, *(["--half"] if half else [])]
        command += ["--smoke", "--device", "cpu"] if args.smoke else []
        report.add(name, call(command, left, where))


def run_training(name: str, args: Any, report: Report, where: dict[str, str], end: float) -> None:
    """Train until it is done, or the time is over, and go on from there the next time."""
    if "elbo" in report.found.get(name, {}):
        return
    for backend in ["numpyro"] if name == "board" else args.backends:
        label, out = f"{name} {backend}", args.out / f"{name}-{backend}"
        command = [
            sys.executable,
            "examples/tools/train.py",
            "--backend",
            backend,
            "--out",
            str(out),
        ]
        command += [*TRAININGS[name].split(), "--checkpoint-every", "2000", "--eval-every", "2000"]
        if args.smoke:
            command += ["--data", "digits", "--smoke", "--device", "cpu"]
        else:
            command += ["--data", "mnist", "--data-root", str(args.data_root)]
        begun = any(out.glob("checkpoint*"))
        report.add(label, trained(command + (["--resume"] if begun else []), out, where, end))


def trained(command: list[str], out: Path, where: dict[str, str], end: float) -> dict[str, Any]:
    """The metrics of a training, or how far it has come."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / "output.txt").open("w") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=where, stdout=output, stderr=output)
        try:
            process.wait(max(end - time.monotonic(), 1))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(_GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
    if process.returncode == 0:
        return dict(json.loads((out / "metrics.json").read_text()))
    log = out / "log.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    if rows:
        return {key: rows[-1][key] for key in ("step", "mean_loss", "seconds") if key in rows[-1]}
    return {"error": (out / "output.txt").read_text().strip().splitlines()[-1:]}


def main() -> None:
    """Run the parts that are not skipped."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=Path("out/gpu"))
    parser.add_argument("--data-root", type=Path, default=Path("data"), help="of MNIST's files")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--skip", nargs="*", choices=PARTS, default=[])
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=["numpyro"])
    parser.add_argument("--wheels", type=Path, help="folder of pure wheels that are missing here")
    parser.add_argument("--smoke", action="store_true", help="all of it in small, on a CPU")
    args = parser.parse_args()
    args.out, args.data_root = args.out.resolve(), args.data_root.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    report, end = Report(args.out / "gpu.json"), time.monotonic() + 60 * args.minutes
    where, wanted = environment(args.out, args.wheels, args.smoke), set(PARTS) - set(args.skip)
    if "tests" in wanted and "passed" not in report.found.get("tests", {}):
        run_tests(args, report, where, 60 * args.minutes * _TESTS)
    if "speed" in wanted:
        run_speed(args, report, where, 60 * args.minutes * _SPEED)
    for name in ("mnist", "board"):
        left = end - time.monotonic()
        both = name == "mnist" and "board" in wanted
        if name in wanted:
            until = time.monotonic() + left / (2 if both else 1)
            run_training(name, args, report, where, until)


if __name__ == "__main__":
    main()
