"""The league: what every method makes of MNIST in a short training, on two boards.

    python examples/benchmarks/league.py --backend numpyro --data-root data

"binary": 200 Bernoulli latents in one layer with a learnt prior, encoder and decoder of 2 x 200
ReLU units, images binarized dynamically, 20 000 steps of 100 images. "codes": the published model
of DAPS with its independent guide, 8 codes of 256 values, images binarized at 127, the rate's
weight beta falling from .5 to .01, 5000 steps of 256 images. Every run is one of train.py's, on one
core, in a folder of its own; those that are done are not run again, so that a league that was
stopped goes on.
"""

import json
import os
import subprocess
import sys
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

TOOLS = Path(__file__).parents[1] / "tools"
sys.path.insert(0, str(TOOLS))

from backends import QUANTIZERS  # noqa: E402
from cli import CommandError, Parser, finish, open_folder, positive, run_main  # noqa: E402

_ONE_CORE = {
    "OMP_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
}


class Board(NamedTuple):
    """A model, and the methods that train it: draws of the latents per image and step."""

    settings: tuple[str, ...]
    num_steps: int
    draws: dict[str, int]
    columns: tuple[str, ...]


BOARDS = {
    "binary": Board(
        ("--config", "mnist200"),
        20_000,
        {
            "reinforce": 4,
            "straight_through": 1,
            "disarm": 4,
            "daps": 4,
            "gr_mck": 1,
            "vimco": 4,
            "reinmax": 1,
            "wake_sleep": 4,
            "gumbel": 1,
            "straight_through_gumbel": 1,
        },
        ("draws", "elbo", "iwae", "psnr", "code_usage", "cpu_seconds"),
    ),
    "codes": Board(
        ("--config", "mnist", "--guide", "independent"),
        5_000,
        {
            "daps": 8,
            "vq": 1,
            "fsq": 1,
            "straight_through_gumbel": 1,
            "reinforce": 8,
            "gr_mck": 1,
            "vimco": 8,
            "reinmax": 1,
            "wake_sleep": 8,
            "gumbel": 1,
        },
        ("draws", "elbo", "beta_elbo", "iwae", "psnr", "code_usage", "cpu_seconds"),
    ),
}
_HEADINGS = {  # column -> heading and format
    "draws": ("draws", "{:d}"),
    "elbo": ("test ELBO", "{:.1f}"),
    "beta_elbo": ("beta-ELBO (.01)", "{:.1f}"),
    "iwae": ("IW bound", "{:.1f}"),
    "psnr": ("PSNR, dB", "{:.2f}"),
    "code_usage": ("codes in use", "{:.0%}"),
    "cpu_seconds": ("CPU s", "{:.0f}"),
}
_LEGEND = (
    "draws: of the latents, per image and step; each is one pass of the decoder, forward and\n"
    "back, and the encoder runs once. ELBO and importance-weighted bound ({num_draws} draws) in\n"
    "nats per image, on {num_images} test images. PSNR: of one reconstruction, against the binary\n"
    "image. codes in use: of each latent's values, over these images. CPU s: of the training, on\n"
    "one core, with compilation."
)


def main(arguments: list[str]) -> None:
    """Run what has not been run, and print the boards."""
    parser = Parser(__doc__, out="runs/league")
    add = parser.add_argument
    add("--data", default="mnist", metavar="mnist|PATH.npz", help="images")
    add("--data-root", type=Path, default=Path("data"), help="where downloads are kept")
    add("--boards", nargs="+", choices=list(BOARDS), default=list(BOARDS))
    add("--methods", nargs="+", metavar="METHOD", help="only these")
    add("--steps", type=positive, help="of every run; default: those of the board")
    add("--iwae-particles", type=positive, default=100, help="draws of the bound")
    add("--test-images", type=positive, default=2000, help="test on so many of them")
    add("--show", action="store_true", help="train nothing, print what there is")
    args = parser.parse_args(arguments)
    known = {method for name in args.boards for method in BOARDS[name].draws}
    if unknown := sorted(set(args.methods or ()) - known):
        raise CommandError(f"--methods {unknown[0]}: choose among {', '.join(sorted(known))}")
    out = open_folder(args.out)
    rows: dict[str, dict[str, Any]] = {name: {} for name in args.boards}
    for board, method in order(args.boards, args.methods):
        found = run(board, method, args, out)
        if found is not None:
            rows[board][method] = found
    print("\n\n".join(table(name, found) for name, found in rows.items()))
    print("\n" + _LEGEND.format(num_draws=args.iwae_particles, num_images=args.test_images))
    finish({"boards": rows}, out, show=args.json, name="league.json")
    missing = len(order(args.boards, args.methods)) - sum(map(len, rows.values()))
    if missing and not args.show:
        raise CommandError(f"{missing} runs failed, see above; the same command tries them again")


def order(boards: list[str], methods: list[str] | None) -> list[tuple[str, str]]:
    """The runs, from each board in turn, so that a league cut short has the first of both."""
    columns = [
        [(board, method) for method in BOARDS[board].draws if methods is None or method in methods]
        for board in boards
    ]
    return [run for turn in zip_longest(*columns) for run in turn if run is not None]


def run(board: str, method: str, args: Any, out: Path) -> dict[str, Any] | None:
    """The metrics of a run, trained now unless they are there; None if there are none."""
    num_steps = args.steps or BOARDS[board].num_steps
    folder = out / f"{board}-{method}-{args.backend}-{num_steps}-{args.seed}"
    metrics = folder / "metrics.json"
    if not metrics.exists() and not args.show:
        print(f"{board}: {method}", flush=True)
        command = [sys.executable, str(TOOLS / "train.py"), *flags(board, method, args)]
        command += ["--steps", str(num_steps), "--out", str(folder)]
        done = subprocess.run(
            command, capture_output=True, text=True, env={**_ONE_CORE, **os.environ}, check=False
        )
        print((done.stderr if done.returncode else done.stdout).splitlines()[-1], flush=True)
    if not metrics.exists():
        return None
    found = json.loads(metrics.read_text(encoding="utf-8"))
    return {**found, "draws": found["num_particles"]}


def flags(board: str, method: str, args: Any) -> list[str]:
    """Arguments of train.py."""
    settings = BOARDS[board].settings
    if method in QUANTIZERS:
        settings = tuple(word for word in settings if word not in ("--guide", "independent"))
    given = ["--backend", args.backend, "--method", method, *settings, "--seed", str(args.seed)]
    given += ["--num-particles", str(BOARDS[board].draws[method]), "--device", "cpu"]
    given += ["--data", args.data, "--data-root", str(args.data_root)]
    given += ["--iwae-particles", str(args.iwae_particles)]
    given += ["--test-images", str(args.test_images)]
    return [*given, *(["--smoke"] if args.smoke else [])]


def table(board: str, rows: dict[str, dict[str, Any]]) -> str:
    """One line per method, the best ELBO first; a table of Markdown."""
    columns = BOARDS[board].columns
    lines = [f"{board}:", ""]
    lines.append(f"| method | {' | '.join(_HEADINGS[name][0] for name in columns)} |")
    lines.append("|---|" + "---:|" * len(columns))
    for method in sorted(rows, key=lambda method: -rows[method]["elbo"]):
        cells = [_HEADINGS[name][1].format(rows[method][name]) for name in columns]
        lines.append(f"| `{method}` | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    run_main(main)
