"""One model, every method: handwritten digits, a discrete VAE, the inference swapped in turn.

The latent space is small enough to sum over (3 latents of 6 codes, 216 states), so that the
exact gradient is one of the rows: what the others approximate with 8 draws. All see the same
images, start from the same weights and take the same number of steps. Prints a table, and
draws reconstructions, samples and learning curves into one picture; draws of each method's
posterior are written to METHOD.nc, for ArviZ.
"""

from dataclasses import replace
from typing import Any

import numpy as np
from backends import QUANTIZERS, Backend, get_backend
from cli import CommandError, Parser, finish, open_folder, positive, run_main
from configs import CONFIGS, Config
from data import Dataset, load
from pictures import save_comparison

_CONFIG = CONFIGS["compare"]
_COLUMNS = {  # metric -> heading and format
    "elbo": ("test ELBO", "{:.2f}"),
    "iwae": ("IW bound", "{:.2f}"),
    "rate_bits": ("bits", "{:.2f}"),
    "mse": ("MSE", "{:.4f}"),
    "psnr": ("PSNR", "{:.2f}"),
    "ess": ("ESS/K", "{:.2f}"),
    "khat": ("k̂", "{:.2f}"),
    "close": ("close", "{:.0%}"),
    "code_usage": ("codes", "{:.0%}"),
    "seconds": ("seconds", "{:.1f}"),
}
_LEGEND = (
    "ELBO and importance-weighted bound in nats per image, higher is better; the gap between the\n"
    "two is what the guide misses. bits: what the codes carry. ESS/K: effective sample size of\n"
    "the guide's draws, 1 for an exact posterior. k̂: shape of the weights' tail, median; n/a if\n"
    "it has too few distinct weights, as with few states. close: images whose guide is close to\n"
    "the posterior, as far as its draws can show. codes: fraction in use."
)


def main(arguments: list[str]) -> None:
    """Train by every method, then show them side by side."""
    parser = Parser(__doc__, out="out/digits")
    usual = [method for method in _TITLES if method not in _ON_DEMAND]
    rest = f"default: all but {', '.join(_ON_DEMAND)}"
    parser.add_argument("--methods", nargs="+", default=usual, metavar="METHOD", help=rest)
    parser.add_argument("--steps", type=positive, default=_CONFIG.num_steps)
    parser.add_argument("--num-particles", type=positive, default=_CONFIG.num_particles)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="cpu")
    args = parser.parse_args(arguments)
    if unknown := sorted(set(args.methods) - set(_TITLES)):
        raise CommandError(f"--methods {unknown[0]}: choose among {', '.join(_TITLES)}")
    backend = get_backend(args.backend, args.device)
    out = open_folder(args.out)
    config = _CONFIG._replace(num_steps=args.steps, num_particles=args.num_particles)
    data = load("digits", seed=args.seed)
    if args.smoke:
        data, config = data.head(128, 32), config._replace(num_steps=40, batch_size=32)
    rows, panels = {}, {}
    for method in dict.fromkeys(args.methods):
        print(f"{method}: {_TITLES[method]}", flush=True)
        rows[method], panels[method], idata = run_method(backend, method, config, data, args.seed)
        idata.to_netcdf(str(out / f"{method}.nc"))
    print_table(rows)
    picture = out / "compare.png"
    save_comparison(picture, data.x_test[:_SHOWN], panels)
    print(f"\nPicture: {picture}\nFor ArviZ: {out / 'METHOD.nc'}")
    result = {"backend": backend.name, "seed": args.seed, "steps": config.num_steps}
    result |= {"picture": picture, "methods": rows}
    finish(result, out, show=args.json, name="compare.json")


_SHOWN = 20  # images and samples in the picture
_IN_ARVIZ, _DRAWS = 50, 300  # images whose draws are written, and how many
_TITLES = {  # of the methods for categorical latents
    "daps": "policy search, self-normalised weights at a target effective sample size",
    "reinforce": "score function with the leave-one-out baseline",
    "vimco": "score function of the bound of K draws",
    "wake_sleep": "posterior followed by importance weights",
    "gumbel": "Gumbel-softmax, its temperature falling to 0.1",
    "straight_through": "hard draws, the slope of a softmax",
    "straight_through_gumbel": "hard draws, the slope of a Gumbel-softmax",
    "reinmax": "hard draws, a slope of second order",
    "gr_mck": "straight-through Gumbel-softmax, averaged over noise given the draw",
    "vq": "nearest vector of a codebook that follows by moving averages",
    "vq_gradient": "the same, its vectors learnt by gradient",
    "fsq": "rounded scalars in place of a codebook",
    "exact": "sum over all states",
    "truncated": "sum over 32 states that each image keeps and evolves; no encoder",
}
_ON_DEMAND = ("straight_through_gumbel", "vq_gradient")  # without `--methods`, not run


def run_method(
    backend: Backend, method: str, config: Config, data: Dataset, seed: int
) -> tuple[dict[str, float], tuple[str, np.ndarray, np.ndarray, list], Any]:
    """Train and test one method: numbers for the table, images for the picture, data for ArviZ."""
    backend.seed(seed)
    config = config.trained_by(method)
    if method in QUANTIZERS:
        config = config._replace(guide=method, num_particles=1)
    model, guide = backend.make_vae(config, data.x_train)
    result = backend.train(
        *backend.programs(method, model, guide, config.num_steps),
        make_loss(backend, method, config),
        *backend.inputs(guide, data.x_train),
        eval_data=data.x_test if config.amortized else None,
        eval_every=max(1, config.num_steps // 20),
        learning_rate=config.learning_rate,
        decay=config.decay,
        num_steps=config.num_steps,
        batch_size=config.batch_size,
    )
    found = backend.evaluate(model, guide, data.x_test, num_particles=64)
    found |= {"seconds": result.seconds, "num_particles": config.num_particles}
    caption = f"ELBO {found['elbo']:.2f} nats, PSNR {found['psnr']:.1f} dB"
    images = backend.reconstruct(model, guide, data.x_test[:_SHOWN])
    curve = [(row["step"], -row["eval_loss"]) for row in result.evaluations]
    curve = curve or [(result.num_steps, found["elbo"])]  # without an encoder, at the end alone
    panel = caption, images, backend.sample(model, _SHOWN), curve
    some = data.x_test[:_IN_ARVIZ]
    # Of a relaxation, the discrete programs.
    hard = replace(result, model=model, guide=backend.guide_for(guide, some))
    idata = backend.diagnose("to_arviz", hard, some, num_draws=_DRAWS)
    khat = idata["vi_stats"]["khat"].values
    found["khat"] = np.nanmedian(khat) if np.isfinite(khat).any() else None
    found["close"] = float((idata["vi_stats"]["verdict"] == "close").mean())
    return found, panel, idata


def make_loss(backend: Backend, method: str, config: Config) -> Any:
    """The one thing that differs."""
    options: dict[str, Any] = {
        "beta": backend.schedule(config.beta_from, config.beta_to, config.num_steps // 2)
    }
    if method not in (*QUANTIZERS, "exact", "truncated"):
        options["num_particles"] = config.num_particles
    return backend.make_loss(method, **options)


def print_table(rows: dict[str, dict[str, float]]) -> None:
    """One line per method."""
    headings = [heading for heading, _ in _COLUMNS.values()]
    print("\n" + f"{'method':<24}" + "".join(f"{heading:>10}" for heading in headings))
    for method, row in rows.items():
        values = {name: (form, row[name]) for name, (_, form) in _COLUMNS.items()}
        cells = ["n/a" if v is None else form.format(v) for form, v in values.values()]
        print(f"{method:<24}" + "".join(f"{cell:>10}" for cell in cells))
    print("\n" + _LEGEND)


if __name__ == "__main__":
    run_main(main)
