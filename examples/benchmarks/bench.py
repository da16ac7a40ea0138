"""Has a step become slower? Steps against steps by hand, compared with the ratios that are kept.

    python examples/benchmarks/bench.py                       # `make bench`
    python examples/benchmarks/bench.py --keep                # these are the ratios from now on

Runs `step_speed_*.py` and `truncated_speed_*.py`, each in a process of its own, and writes what it
found to `out/bench.json`. Ratios of CPU time within a round do not depend on the machine by much;
one that is above the kept one by more than `--slack` is named, and the command fails. `--keep`
writes `kept.json` and `docs/ratios.md`, which the site shows.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
KEPT, PAGE = HERE / "kept.json", ROOT / "docs" / "ratios.md"
OURS = ("DAPS_ELBO", "Reinforce_ELBO", "DAPS_ELBO, autoregressive", "E-step")


def ratios_of(script: str, options: list[str]) -> dict[str, float]:
    """What a benchmark ends with, as ratios to its reference by step."""
    command = [sys.executable, str(HERE / script), "--json", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"error: {script}:\n{done.stderr}")
    found = json.loads(done.stdout.splitlines()[-1])
    if "rows" in found:
        parts = {"": found["rows"]}
    else:
        parts = {f", {size} latents": part["rows"] for size, part in found["latents"].items()}
    return {
        row["step"] + suffix: row["ratio"]
        for suffix, rows in parts.items()
        for row in rows
        if row["step"] in OURS
    }


def measure(backends: list[str], rounds: int) -> dict[str, dict[str, float]]:
    """Ratios by backend."""
    found = {}
    for backend in backends:
        found[backend] = ratios_of(f"step_speed_{backend}.py", ["--rounds", str(rounds)])
        few = ["--rounds", str(max(2, rounds // 3)), "--latents", "64"]
        found[backend] |= ratios_of(f"truncated_speed_{backend}.py", few)
    return found


def slower(
    found: dict[str, dict[str, float]], kept: dict[str, dict[str, float]], slack: float
) -> list[str]:
    """Steps whose ratio is above the kept one by more than `slack`, as a share of it."""
    return [
        f"{backend}: {step}: {ratio:.2f}, kept {kept[backend][step]:.2f}"
        for backend, ratios in found.items()
        for step, ratio in ratios.items()
        if ratio > kept.get(backend, {}).get(step, float("inf")) * (1 + slack)
    ]


def page(found: dict[str, dict[str, float]]) -> str:
    """The ratios as a table."""
    steps = list(dict.fromkeys(step for ratios in found.values() for step in ratios))
    lines = ["| step | " + " | ".join(found) + " |", "|---|" + "---|" * len(found)]
    for step in steps:
        cells = (f"{ratios[step]:.2f}" if step in ratios else "" for ratios in found.values())
        lines.append(f"| {step} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Measure, print, write, compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    both = ["pyro", "numpyro"]
    parser.add_argument("--backends", nargs="+", choices=both, default=both)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--slack", type=float, default=0.25, help="share of a ratio that is noise")
    parser.add_argument("--keep", action="store_true", help="these are the ratios from now on")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "bench.json")
    options = parser.parse_args()
    found = measure(options.backends, options.rounds)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(page(found))
    if options.keep:
        KEPT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        PAGE.write_text(page(found), encoding="utf-8")
        return 0
    kept = json.loads(KEPT.read_text(encoding="utf-8"))
    faults = slower(found, kept, options.slack)
    print(*faults or ["no step is slower than was kept"], sep="\n")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
