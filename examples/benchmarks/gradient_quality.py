"""Bias, variance and cost of every gradient estimator, at one trained state of one model.

    python examples/benchmarks/gradient_quality.py --backend numpyro --data-root data [RUN]

RUN is a folder of train.py's with binary latents; without one, 200 Bernoulli latents are trained
on MNIST by leave-one-out REINFORCE for --steps steps. At these parameters, on one batch of test
images, the encoder's gradient is drawn again and again by each estimator, with K draws of the
latents, hence K passes of the decoder. The reference is the mean of many gradients of
leave-one-out, which is unbiased. Squared bias comes from products of different groups of
gradients, so that noise does not pass for it, and its standard error from leaving out one group
after another.
"""

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

TOOLS = Path(__file__).parents[1] / "tools"
sys.path.insert(0, str(TOOLS))

import train  # noqa: E402
from backends import RELAXATIONS, Backend  # noqa: E402
from cli import CommandError, Parser, check_folder, finish, open_folder, positive, run_main  # noqa: E402
from diagnose import Run, load_run  # noqa: E402

_GROUPS = 10  # of gradients, by which a bias is told from noise
_REFERENCE_DRAWS = 16  # K of the reference
_OWN = ("vimco", "daps", "wake_sleep")  # follow another objective than the ELBO
_ESTIMATORS = {  # name -> method of train.py, and K if it is fixed
    "no baseline": ("reinforce", None),
    "leave-one-out": ("reinforce", None),
    "disarm": ("disarm", None),
    "leave-one-out, 2": ("reinforce", 2),
    "disarm, 2": ("disarm", 2),
    "vimco": ("vimco", None),
    "daps": ("daps", None),
    "wake_sleep": ("wake_sleep", None),
    **{name: (name, None) for name in RELAXATIONS},
}
# (less variance, more of it), by theory. Of one pair each; four draws give leave-one-out baselines
# of three, and DisARM two pairs with one each.
_ORDER = [
    ("leave-one-out", "no baseline"),
    ("disarm, 2", "leave-one-out, 2"),
    ("gr_mck", "straight_through_gumbel"),
]
_LEGEND = (
    "bias²: squared length of the bias by that of the true gradient; an asterisk marks another\n"
    "objective than the ELBO, for which it is no error. variance: trace of the covariance by the\n"
    "same. cos mean, cos one: between the true gradient and the estimator's mean, or one draw of\n"
    "it. CPU ms: of one estimate, with the gradient of the decoder."
)


class Moments(NamedTuple):
    """What is kept of many gradients."""

    groups: np.ndarray  # (G, P), the mean of each group
    trace: float  # of the covariance
    cosine: float  # of one gradient and the reference; the mean over all
    milliseconds: float


class Quality(NamedTuple):
    """An estimator beside the reference; squares are relative to that of the true gradient."""

    num_particles: int
    squared_bias: float
    squared_bias_error: float
    variance: float
    cosine_of_mean: float
    cosine_of_one: float
    milliseconds: float


def main(arguments: list[str]) -> None:
    """Train or load, draw gradients, print the table, draw the bars."""
    parser = Parser(__doc__, out=None)
    add = parser.add_argument
    add("run", nargs="?", type=Path, help="folder of train.py's; default: one is made")
    add("--data", default="mnist", metavar="mnist|digits|PATH.npz", help="images")
    add("--data-root", type=Path, default=Path("data"), help="where downloads are kept")
    add("--steps", type=positive, default=2000, help="of the training, without RUN")
    add("--estimators", nargs="+", default=list(_ESTIMATORS), metavar="NAME")
    add("--num-particles", type=positive, default=4, help="draws of the latents, K, even")
    add("--num-images", type=positive, default=100, help="images of the batch")
    add("--num-repeats", type=positive, default=300, help="gradients of each estimator")
    add("--reference-repeats", type=positive, default=600, help=f"at K = {_REFERENCE_DRAWS}")
    add("--temperature", type=float, default=0.5, help="of the relaxations with Gumbel noise")
    args = parser.parse_args(arguments)
    if args.smoke:
        args.num_repeats = args.reference_repeats = 2 * _GROUPS
    check(args)
    check_folder(args.run)
    out = open_folder(args.out or args.run or Path("runs") / "gradient_quality")
    run = load_run(args.run or make_run(args, out))
    if run.config.prior != "bernoulli":
        raise CommandError(f"{args.run}: needs binary latents, as by --prior bernoulli")
    run.backend.seed_draws(args.seed)
    run = run._replace(images=run.images[: args.num_images])
    reference = run.backend.make_loss("reinforce", num_particles=_REFERENCE_DRAWS)
    truth = collect(gradients(run, "reinforce", reference, args), args.reference_repeats)
    moments = {}
    for name in args.estimators:
        drawn = gradients(run, _ESTIMATORS[name][0], make_loss(run.backend, name, args), args)
        moments[name] = collect(drawn, args.num_repeats, truth.groups.mean(0))
    found = {name: compare(each, truth, draws(name, args)) for name, each in moments.items()}
    print(table(found), f"\n\n{_LEGEND}\n")
    print("\n".join(verdicts(found)))
    picture = out / "gradient_quality.png"
    save_bars(picture, found)
    print(f"\nPicture: {picture}")
    result = {"backend": run.backend.name, "seed": args.seed, "steps": run.result.num_steps}
    result |= {"num_particles": args.num_particles, "num_repeats": args.num_repeats}
    result |= {"estimators": {name: each._asdict() for name, each in found.items()}}
    finish(result, out, show=args.json, name="gradient_quality.json")


def check(args: Any) -> None:
    """Whether the arguments can be used."""
    if unknown := [name for name in args.estimators if name not in _ESTIMATORS]:
        raise CommandError(f"--estimators {unknown[0]}: choose among {', '.join(_ESTIMATORS)}")
    if args.num_particles % 2:
        raise CommandError(f"--num-particles must be even, for pairs; got {args.num_particles}")
    for name in ("num_repeats", "reference_repeats"):
        if getattr(args, name) < 2 * _GROUPS:
            raise CommandError(f"--{name.replace('_', '-')} must be at least {2 * _GROUPS}")


def make_run(args: Any, out: Path) -> Path:
    """Train by leave-one-out REINFORCE."""
    folder = out / "run"
    given = ["--backend", args.backend, "--seed", str(args.seed), "--out", str(folder)]
    given += ["--config", "mnist200", "--method", "reinforce", "--steps", str(args.steps)]
    given += ["--data", args.data, "--data-root", str(args.data_root), "--device", "cpu"]
    given += ["--test-images", str(args.num_images)]
    train.main([*given, *(["--smoke"] if args.smoke else [])])
    return folder


def draws(name: str, args: Any) -> int:
    """K of an estimator."""
    return _ESTIMATORS[name][1] or args.num_particles


def make_loss(backend: Backend, name: str, args: Any) -> Any:
    """The loss of an estimator."""
    options: dict[str, Any] = {"num_particles": draws(name, args)}
    if name == "no baseline":
        options["baseline"] = backend.module("ops.baselines").no_baseline()
    return backend.make_loss(_ESTIMATORS[name][0], **options)


def gradients(run: Run, method: str, loss: Any, args: Any) -> Iterator[np.ndarray]:
    """The encoder's gradients, without end."""
    model, guide = run.result.model, run.result.guide
    if method in RELAXATIONS:
        relax = run.backend.module("infer").relax
        temperature = 1.0 if RELAXATIONS[method] == 1.0 else args.temperature
        guide = relax(guide, method, sites=["z"], temperature=temperature)
        model = relax(model, method, sites=["z"])
    return run.backend.gradients(model, guide, loss, run.images)


def collect(
    drawn: Iterator[np.ndarray], num_repeats: int, reference: np.ndarray | None = None
) -> Moments:
    """Draw gradients, and keep their moments."""
    first = next(drawn).astype(np.float64)  # which compiles
    sums, squares, cosines, seconds = np.zeros((_GROUPS, first.size)), 0.0, 0.0, 0.0
    size = num_repeats // _GROUPS
    for i in range(size * _GROUPS):
        start = time.process_time()
        gradient = next(drawn)
        seconds += time.process_time() - start
        gradient = gradient.astype(np.float64)
        sums[i % _GROUPS] += gradient
        length = gradient @ gradient
        squares += length
        if reference is not None:
            cosines += (gradient @ reference) / np.sqrt(length * (reference @ reference))
    count = size * _GROUPS
    mean = sums.sum(0) / count
    trace = (squares - count * mean @ mean) / (count - 1)
    return Moments(sums / size, trace, cosines / count, 1e3 * seconds / count)


def compare(moments: Moments, truth: Moments, num_particles: int) -> Quality:
    """Bias, variance and direction of an estimator."""
    signal, _ = squared_length(truth.groups)
    bias, error = squared_length(moments.groups - truth.groups)
    own, _ = squared_length(moments.groups)
    product = moments.groups.mean(0) @ truth.groups.mean(0)
    reference = truth.groups.mean(0)
    with np.errstate(invalid="ignore"):  # too much noise to see a signal: not a number
        lengths = np.sqrt(own) * np.sqrt(signal)
        shortened = np.sqrt(reference @ reference / signal)  # by the reference's noise
    return Quality(
        num_particles=num_particles,
        squared_bias=bias / signal,
        squared_bias_error=error / signal,
        variance=moments.trace / signal,
        cosine_of_mean=product / lengths,
        cosine_of_one=moments.cosine * shortened,
        milliseconds=moments.milliseconds,
    )


def squared_length(groups: np.ndarray) -> tuple[float, float]:
    """Of the mean of independent vectors ``(G, P)``, unbiased; and its standard error (jackknife).

    Products of two different vectors have the squared mean for an expectation. Where that is
    small beside the noise, the standard error comes out too large, by at most the root of two.
    """
    products, size = groups @ groups.T, len(groups)
    np.fill_diagonal(products, 0.0)
    total = products.sum()
    without = (total - 2 * products.sum(0)) / ((size - 1) * (size - 2))
    error = np.sqrt((size - 1) / size * ((without - without.mean()) ** 2).sum())
    return total / (size * (size - 1)), error


def table(found: dict[str, Quality]) -> str:
    """One line per estimator; a table of Markdown."""
    lines = ["| estimator | K | bias² | variance | cos mean | cos one | CPU ms |"]
    lines.append("|---|---:|---:|---:|---:|---:|---:|")
    for name, each in found.items():
        star = "*" if name in _OWN else ""
        bias = f"{each.squared_bias:.3f} ± {each.squared_bias_error:.3f}{star}"
        cells = f"{each.variance:.3g} | {each.cosine_of_mean:.3f} | {each.cosine_of_one:.3f}"
        cells = f"{bias} | {cells} | {each.milliseconds:.1f}"
        lines.append(f"| {name.partition(',')[0]} | {each.num_particles} | {cells} |")
    return "\n".join(lines)


def verdicts(found: dict[str, Quality]) -> list[str]:
    """Whether variances are ordered as theory has them, and which ELBO estimators show a bias."""
    lines = []
    for less, more in _ORDER:
        if less in found and more in found:
            ratio = found[less].variance / found[more].variance
            word = "as theory has it" if ratio < 1 else "AGAINST theory"
            lines.append(f"variance of {less} / {more}: {ratio:.3g}, {word}")
    biased = [
        name
        for name, each in found.items()
        if name not in _OWN and each.squared_bias > 4 * each.squared_bias_error
    ]
    return [*lines, f"biased by more than 4 standard errors: {', '.join(biased) or 'none'}"]


def save_bars(path: Path, found: dict[str, Quality]) -> None:
    """Bias, variance and direction of each estimator, side by side."""
    from matplotlib.figure import Figure

    rows, places = list(found.values()), np.arange(len(found))
    size = (12, 1.2 + 0.3 * len(rows))
    figure = Figure(figsize=size, layout="constrained")
    bias, variance, cosine = figure.subplots(1, 3, sharey=True)
    errors = [each.squared_bias_error for each in rows]
    bias.barh(places, [each.squared_bias for each in rows], xerr=errors, color="0.6")
    bias.set(title="squared bias", xlabel="of the true gradient's squared length")
    variance.barh(places, [each.variance for each in rows], color="0.6", log=True)
    variance.set(title="variance", xlabel="of the true gradient's squared length")
    cosine.barh(places, [each.cosine_of_one for each in rows], color="C0", label="one gradient")
    means = [each.cosine_of_mean for each in rows]
    cosine.plot(means, places, "|", color="k", markersize=12, label="mean")
    cosine.set(title="cosine with the true gradient", xlim=(np.nanmin([0.0, *means]), 1.1))
    cosine.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2)
    names = [f"{name.partition(',')[0]}, K = {each.num_particles}" for name, each in found.items()]
    bias.set_yticks(places, names)
    bias.invert_yaxis()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    run_main(main)
