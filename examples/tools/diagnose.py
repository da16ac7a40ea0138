"""Is my posterior any good? A page of numbers, verdicts and pictures of a training run.

Takes a folder of `train.py`'s, or trains a small model on digits first if none is given. Writes
`index.html` to be looked at, its pictures, `diagnosis.json`, and `idata.nc` for ArviZ.

    python examples/tools/train.py --method daps --data digits --out runs/mine
    python examples/tools/diagnose.py runs/mine
"""

import shutil
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import train
from backends import RELAXATIONS, Backend
from cli import CommandError, Parser, check_folder, finish, open_folder, positive, run_main
from configs import Config
from page import Page
from setups import make_setup

_MOST_STATES = 4096  # of a datum, up to which the posterior is listed
_SHOWN = 16  # images in a row
_IN_ARVIZ = 50  # data whose draws are written to the netCDF file
_SMOKE = {"num_data": 20, "num_draws": 50, "num_repeats": 4}


class Run(NamedTuple):
    """A trained model, what it was trained with, and the images to diagnose it on."""

    backend: Backend
    config: Config
    method: str
    result: Any  # a FitResult
    loss: Any
    images: np.ndarray  # held out


def main(arguments: list[str]) -> None:
    """Load or train, diagnose, write."""
    parser = Parser(__doc__, out=None)
    add = parser.add_argument
    add("run", nargs="?", type=Path, help="folder of train.py's; default: one is made")
    add("--num-data", type=positive, default=300, help="held-out images to diagnose on")
    add("--num-draws", type=positive, default=1000, help="draws of the guide per image")
    add("--num-repeats", type=positive, default=50, help="gradients of each loss")
    args = parser.parse_args(arguments)
    if args.smoke:
        vars(args).update(_SMOKE)
    if args.num_draws < 25 or args.num_repeats < 2:
        raise CommandError("--num-draws must be at least 25, and --num-repeats at least 2")
    check_folder(args.run)
    out = open_folder(args.out or (args.run or Path("runs") / "diagnosed") / "diagnosis")
    run = load_run(args.run or make_run(args, out))
    run.backend.seed_draws(args.seed)
    run = run._replace(images=run.images[: args.num_data])
    page = Page(out, f"{run.method}, {run.backend.name}: {run.result.num_steps} steps")
    found = write_page(page, run, args)
    print(f"Page: {page.write()}", flush=True)
    found |= {"method": run.method, "backend": run.backend.name, "seed": args.seed, "out": out}
    finish(found, out, show=args.json, name="diagnosis.json")


def make_run(args: Any, out: Path) -> Path:
    """Train a model that is small enough to list its states."""
    folder = out / "run"
    given = ["--backend", args.backend, "--seed", str(args.seed), "--out", str(folder)]
    given += ["--config", "compare", "--steps", "1500", "--device", "cpu"]
    train.main([*given, *(["--smoke"] if args.smoke else [])])
    return folder


def load_run(folder: Path) -> Run:
    """Build the model again and load its checkpoint, of which a copy is used."""
    args = train.load_arguments(folder)
    setup = make_setup(args)
    backend, config = setup.backend, setup.config
    checkpoint = folder / backend.checkpoint()
    if not backend.has_checkpoint(folder):
        raise CommandError(f"{folder}: holds no {checkpoint.name} yet")
    backend.seed(args.seed)
    model, guide = backend.make_vae(config, setup.data.x_train)
    loss = train.make_loss(args, setup)
    with tempfile.TemporaryDirectory() as copy, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`num_steps` is 1, but")  # the run is wanted as it is
        copy_whole = shutil.copytree if checkpoint.is_dir() else shutil.copy
        copy_whole(checkpoint, Path(copy) / checkpoint.name)
        result = train.train_with(
            args,
            setup,
            (model, guide, loss),
            num_steps=1,  # which the checkpoint has behind it, and more
            decay_steps=config.num_steps,
            folder=copy,
            resume=True,
            progress=False,
        )
    result = replace(result, model=model, guide=guide)  # of a relaxation, the discrete programs
    return Run(backend, config, args.method, result, loss, setup.data.x_test)


def write_page(page: Page, run: Run, args: Any) -> dict[str, Any]:
    """All sections; returns the numbers."""
    reports = make_reports(run, args)
    found = summarize(reports)
    plots = run.backend.module("diagnostics.plots")
    page.text("Verdict", reports["importance"], *filter(None, [reports["gap"]]))
    page.table(_rows(found))
    page.text("Training")
    page.picture("history", plots.plot_history(run.result.history))
    seen_by = _SEEN_BY if run.config.amortized else _NOT_SEEN
    page.text("Is the guide near the posterior?", f"{_IMPORTANCE}{seen_by}")
    page.picture("importance", plots.plot_importance(reports["importance"]))
    if run.config.amortized:
        page.text("Is it calibrated?", reports["calibration"], _CALIBRATION)
        page.picture("calibration", plots.plot_calibration(reports["calibration"]))
    page.text("What do the latents carry?", *reports["usage"].values(), *reports["rates"].values())
    page.picture("codes", plots.plot_codes(reports["usage"]))
    page.picture("rates", plots.plot_rates(reports["rates"]))
    if run.config.amortized:
        page.text("How good are the gradients?", _GRADIENTS, reports["gradients"])
        page.picture("gradients", plots.plot_gradients(reports["gradients"]))
    else:
        page.text("Is it calibrated? How good are the gradients?", _TRUNCATED)
    page.text("What does it look like?")
    page.picture("images", plots.plot_images(_images(run)))
    page.text("In ArviZ", f"arviz.from_netcdf({str(page.out / 'idata.nc')!r}) has draws and data.")
    write_arviz(page, run, args)
    return found


_IMPORTANCE = (
    "The weights p / q of the guide's draws would all be equal if it were exact. Their effective "
    "sample size says how many of the draws count; k̂ says whether the largest weights are settled, "
    "where there are enough distinct ones to say so. What the guide hardly ever draws does not "
    "show in them"
)
_SEEN_BY = ": see the calibration."
_NOT_SEEN = (
    ", nor what a truncated one leaves out: see the exact gap, where the states can be listed."
)
_CALIBRATION = (
    "Latents and images simulated from the model itself, and the ranks of the true codes among the "
    "guide's draws: flat within the gray band if the guide is calibrated. log_p is the rank of the "
    "joint density, which may also find a guide that ignores the image."
)
_GRADIENTS = (
    "The guide's gradients of a batch, many times at the trained parameters. A loss with a bias or "
    "another objective (a weight beta on the rate) points elsewhere: see the cosines."
)


_TRUNCATED = (
    "Not asked of a truncated posterior: it keeps states of the images at hand, and has none of "
    "simulated ones; and it draws nothing to learn from, so that its gradients have no noise."
)


def make_reports(run: Run, args: Any) -> dict[str, Any]:
    """What the diagnostics of the package say."""
    result, data = asked(run, run.images)

    def report(name: str, **options: Any) -> Any:
        return run.backend.diagnose(name, result, *data, **options)

    reports = {
        "importance": report(
            "importance_diagnostics", num_particles=args.num_draws, batch_size=100
        ),
        "gap": report("posterior_gap", batch_size=100) if _states(run) <= _MOST_STATES else None,
        "usage": report("code_usage", num_draws=10, batch_size=100),
        "active": report("active_latents", batch_size=100),
        "rates": report("latent_rates", batch_size=100),
        "accuracy": report("rate_distortion", batch_size=100),
    }
    if run.config.amortized:
        reports["calibration"] = report("simulation_based_calibration")
        reports["gradients"] = _gradients(run, args.num_repeats)
    return reports


def summarize(reports: dict[str, Any]) -> dict[str, Any]:
    """Numbers for the table."""
    importance, accuracy, gap = (reports[name] for name in ("importance", "accuracy", "gap"))
    applies = np.isfinite(importance.khat)
    found = {
        "elbo": importance.elbo.mean(),
        "iwae": importance.iwae.mean(),
        "ess": importance.ess.mean() / importance.num_particles,
        "khat": np.median(importance.khat[applies]) if applies.any() else None,
        "khat_applies": applies.mean(),
        "verdicts": dict(zip(*_words(importance.verdicts), strict=True)),
        **{word: (importance.verdicts == word).mean() for word in ("close", "off", "unreliable")},
        "rate_bits": accuracy.rate.mean(),
        "mse": accuracy.mse.mean(),
        "psnr": accuracy.psnr.mean(),
        "code_usage": np.mean([each.mean_share_used for each in reports["usage"].values()]),
        "active": np.mean([each.active.mean() for each in reports["active"].values()]),
        "collapsed": np.mean([each.collapsed.mean() for each in reports["rates"].values()]),
    }
    if "gradients" in reports:
        gradients = reports["gradients"]
        found |= {"calibrated": not reports["calibration"].miscalibrated}
        found |= {"snr": dict(zip(gradients.losses, gradients.snr, strict=True))}
    if gap is not None:
        found |= {"log_evidence": gap.log_evidence.mean(), "gap": gap.gap.mean()}
    return found


def _words(verdicts: np.ndarray) -> tuple[list[str], list[int]]:
    """Each word, and how many images it is of."""
    words, counts = np.unique(verdicts, return_counts=True)
    return words.tolist(), counts.tolist()


def asked(run: Run, images: np.ndarray) -> tuple[Any, tuple[Any, ...]]:
    """The result with the guide of these images, and what it is called with."""
    guide = run.backend.guide_for(run.result.guide, images)
    return replace(run.result, guide=guide), run.backend.inputs(guide, images)


def _gradients(run: Run, num_repeats: int) -> Any:
    """The loss of the run beside leave-one-out, and beside the exact one where that is cheap."""
    losses = {} if run.method in RELAXATIONS else {run.method: run.loss}
    losses |= {"leave-one-out": run.backend.make_loss("reinforce", num_particles=8)}
    if _states(run) <= _MOST_STATES:
        losses |= {"exact (ELBO)": run.backend.make_loss("exact")}
    return run.backend.diagnose(
        "gradient_variance",
        run.result,
        run.images[: run.config.batch_size],
        losses=losses,
        num_repeats=num_repeats,
        select=lambda name: name.startswith("guide"),
    )


def _states(run: Run) -> int:
    num_codes = 2 if run.config.prior == "bernoulli" else run.config.num_codes
    return num_codes**run.config.num_latents


def _rows(found: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """The table: name -> value and meaning."""
    num_images = sum(found["verdicts"].values())
    khat, of = "not applicable", "no image has 5 distinct weights in the tail, 0.001 nats apart"
    if found["khat"] is not None:
        some = f"{found['khat_applies'] * num_images:.0f} images of {num_images}"
        khat, of = f"{found['khat']:.2f}", f"median of the {some} that have one"
    rows = {
        "ELBO": (f"{found['elbo']:.2f}", "nats per image"),
        "importance-weighted bound": (f"{found['iwae']:.2f}", "nats per image"),
        "effective sample size / K": (f"{found['ess']:.2f}", "1 for an exact posterior"),
        "k̂": (khat, of),
        **{
            f"verdict: {word}": (f"{count / num_images:.0%}", f"{count} of {num_images} images")
            for word, count in found["verdicts"].items()
        },
        "rate": (f"{found['rate_bits']:.2f}", "bits per image"),
        "PSNR": (f"{found['psnr']:.2f}", "dB, of one reconstruction per image"),
        "codes in use": (f"{found['code_usage']:.0%}", ""),
        "active latents": (f"{found['active']:.0%}", "whose mean follows the image"),
        "collapsed latents": (f"{found['collapsed']:.0%}", "that carry under 0.01 nats"),
    }
    if "gap" in found:
        rows["exact log evidence"] = (f"{found['log_evidence']:.2f}", "by listing all states")
        rows["exact gap"] = (f"{found['gap']:.3f}", "KL(q ‖ posterior), nats per image")
    return rows


def _images(run: Run) -> dict[str, np.ndarray]:
    """Held-out images, reconstructions, samples, and walks along the first latents."""
    backend, model, guide = run.backend, run.result.model, run.result.guide
    shown = run.images[:_SHOWN]
    rows = {
        "image": shown,
        "reconstruction": backend.reconstruct(model, guide, shown),
        "sample": backend.sample(model, _SHOWN),
    }
    codes = backend.codes(guide, shown[:1])
    num_codes = 2 if run.config.prior == "bernoulli" else run.config.num_codes
    for latent in range(min(3, codes.shape[1])):
        walk = np.repeat(codes, min(num_codes, _SHOWN), axis=0)
        walk[:, latent] = np.linspace(0, num_codes - 1, len(walk)).astype(walk.dtype)
        rows[f"first image, latent {latent}"] = backend.decode(model, walk)
    return rows


def write_arviz(page: Page, run: Run, args: Any) -> None:
    """Draws for ArviZ, and two of its pictures."""
    result, data = asked(run, run.images[:_IN_ARVIZ])
    num_draws = min(args.num_draws, 200)
    idata = run.backend.diagnose("to_arviz", result, *data, num_draws=num_draws)
    idata.to_netcdf(str(page.out / "idata.nc"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ArviZ's own, of Matplotlib's next version
        for name, figure in draw_by_arviz(idata).items():
            page.picture(name, figure)


def draw_by_arviz(idata: Any) -> dict[str, Any]:
    """Figures of simulated and observed pixels, and of some codes; of either ArviZ."""
    import arviz

    some = {"data": [0, 1], "z_dim_0": [0, 1]}
    if not hasattr(arviz, "plot_ppc"):  # ArviZ 1
        return {
            "arviz_ppc": arviz.plot_ppc_dist(idata, var_names=["x"], num_samples=50),
            "arviz_posterior": arviz.plot_dist(idata, var_names=["z"], coords=some),
        }
    found = {
        "arviz_ppc": arviz.plot_ppc(idata, var_names=["x"], num_pp_samples=50, figsize=(8, 3)),
        "arviz_posterior": arviz.plot_posterior(
            idata, var_names=["z"], coords=some, figsize=(12, 3)
        ),
    }
    return {name: np.ravel(axes)[0].figure for name, axes in found.items()}


if __name__ == "__main__":
    run_main(main)
