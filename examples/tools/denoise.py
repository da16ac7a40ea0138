"""Zero-shot denoising and inpainting: a discrete VAE of the patches of the one image at hand.

All overlapping patches of the noisy image, less their brightness, are the data; nothing else is
learned from. A patch is a sum of atoms of a dictionary, one per binary latent, or what a perceptron
makes of them. Each patch gets a truncated posterior, evolved by flips that follow the slope of the
log joint, while the dictionary and the prior are learned [1]. That estimate starts a mixture of the
patches, each of one of many classes with a Gaussian each, a latent that is summed out exactly, see
`patch_classes.py`. A pixel is the mean of the estimates of all patches that cover it. Missing
pixels leave the likelihood; then the errors that the model leaves, whose Gaussians the patches that
use a latent tell, have posterior means as well [2]. A second stage compares that pilot with
itself, see `nonlocal_bayes.py`; `--rounds 0` leaves it out.

    python examples/tools/denoise.py photo.png --noisy
    python examples/tools/denoise.py --sigma 25
    python examples/tools/denoise.py photo.png --missing 0.5

The first restores the picture as it is: `restored.png` has its size, depth and channels. With
`--sigma` and `--missing`, noise and holes are made here, and the result is compared with the clean
picture.

References:
    [1] Drefs, Guiraud, Panagiotou & Lücke. Direct evolutionary optimization of variational
        autoencoders with binary latents. ECML PKDD, 2022. arXiv 2011.13704.
    [2] Yu, Sapiro & Mallat. Solving inverse problems with piecewise linear estimators. IEEE
        Transactions on Image Processing 21(5), 2012. The Gaussians are those of errors here.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np
from backends import get_backend
from cli import CommandError, Parser, finish, open_folder, positive, run_main
from patches import psnr, similarity
from pictures import save_restored
from raster import Picture, save_picture
from restoring import Restored, Task, restore
from untrusted import GIGABYTES, read_picture


def main(arguments: list[str]) -> None:
    """Learn from the patches of an image, put them together again, measure."""
    args = make_parser().parse_args(arguments)
    check(args)
    if args.smoke:
        args.latents, args.states, args.epochs, args.half = 8, 8, 1, args.half + 2
    backend, out = get_backend(args.backend, args.device), open_folder(args.out)
    picture = halved(read_image(args.image, args.most_gigabytes), args.half)
    task = make_task(picture, args)
    if min(task.given.shape[:2]) < args.patch:
        raise CommandError(f"--patch {args.patch}: the image is {task.given.shape[:2]} pixels")
    if not np.ptp(task.given[task.observed]) > 0:
        raise CommandError(f"{args.image}: is of one value throughout: there is nothing to learn")
    backend.seed(args.seed)
    start = time.perf_counter()
    restored = restore(backend, task, args)
    seconds = time.perf_counter() - start
    found: dict[str, Any] = {"sigma_found": restored.sigma, "seconds": seconds}
    if task.clean is not None:
        found |= compare(task, restored)
        print(shown_gains(found), f"in {seconds:.0f} s")
    figure, shown = out / "denoised.png", np.where(task.observed[..., None], task.given, np.nan)
    save_restored(figure, task.clean, shown, restored.image)
    pixels = (restored.image / 255).reshape(picture.pixels.shape)
    path = save_picture(out, "restored", picture._replace(pixels=pixels))
    found |= {"picture": figure, "restored": path}
    found |= {"backend": backend.name, "seed": args.seed}
    noise = f"noise {'found' if args.sigma_known is None else 'known'} {restored.sigma:.1f}"
    noise = "no noise" if task.exact else noise
    print(f"{noise}; restored: {path}; beside what was given: {figure}")
    finish(found, out, show=args.json, name="denoise.json")


def make_parser() -> Parser:
    """The command line."""
    parser = Parser(__doc__, out="out/denoise")
    add = parser.add_argument
    add("image", nargs="?", type=Path, metavar="IMAGE", help="a file; default: skimage's camera")
    add("--noisy", action="store_true", help="the image is noisy already: add nothing")
    add("--sigma", type=float, default=None, help="noise to add, on the scale 0 to 255")
    add("--missing", type=float, default=0.0, help="fraction of pixels to take away")
    add("--sigma-known", type=float, default=None, help="the noise, if it need not be found")
    add("--half", type=int, default=0, help="how often to halve the image first")
    add("--patch", type=positive, default=8, help="side of a patch, pixels")
    add("--stride", type=positive, default=1, help="from a patch to the next, pixels")
    add("--tile", type=positive, default=512, help="side of what is learned at once: memory")
    add("--latents", type=positive, default=128, help="binary latents per patch")
    add("--states", type=positive, default=16, help="states per patch")
    add("--hidden", type=int, nargs="*", default=[], help="widths of hidden layers, if any")
    add("--rounds", type=int, default=3, help="of the second stage, twice for holes; 0: without")
    add("--epochs", type=positive, help="default: 20, fewer for a large image, at least 6")
    add("--batch-size", type=positive, default=256)
    add("--learning-rate", type=float, default=3e-2, help="falls to a tenth")
    add("--device", choices=["auto", "cpu", "cuda"], default="auto")
    add("--most-gigabytes", type=float, default=GIGABYTES, help="that the image may unpack to")
    return parser


def check(args: Any) -> None:
    """Refuse what does not go together."""
    if args.noisy and (args.sigma or args.missing):
        raise CommandError("--noisy takes the image as it is: leave out --sigma and --missing")
    if args.noisy and args.image is None:
        raise CommandError("--noisy needs the image to restore: give its path")
    if not 0 <= (args.sigma or 0.0) < np.inf:
        raise CommandError(f"--sigma {args.sigma}: must be 0 or more, and finite")
    if not 0 <= args.missing < 1:
        raise CommandError(f"--missing {args.missing}: a fraction, in [0, 1)")
    if args.sigma == 0 and not args.missing:
        raise CommandError("--sigma 0 takes holes to fill: give --missing, or leave it out")
    if args.sigma_known is not None and not 0 < args.sigma_known < np.inf:
        raise CommandError(f"--sigma-known {args.sigma_known}: must be positive")
    if args.rounds < 0:
        raise CommandError(f"--rounds {args.rounds}: must be 0 or more")
    if args.stride > args.patch:
        raise CommandError(f"--stride {args.stride}: patches of {args.patch} would leave gaps")
    if args.tile < 4 * args.patch:
        raise CommandError(f"--tile {args.tile}: at least four patches of {args.patch}")


def make_task(picture: Picture, args: Any) -> Task:
    """Add noise and take pixels away."""
    image = 255.0 * picture.pixels.reshape(*picture.pixels.shape[:2], -1)
    if min(image.shape[:2]) < 2:
        raise CommandError(f"{args.image}: an image of {image.shape[:2]} pixels has no patches")
    rng = np.random.default_rng(args.seed)
    if args.noisy:
        return Task(image, np.ones(image.shape[:2], bool), None, exact=False)
    sigma = (0.0 if args.missing else 25.0) if args.sigma is None else args.sigma
    given = image + sigma * rng.standard_normal(image.shape)
    observed = rng.random(image.shape[:2]) >= args.missing
    if not observed.any():
        raise CommandError(f"--missing {args.missing}: not one pixel is left")
    given = np.where(observed[..., None], given, given[observed].mean(0))
    return Task(given, observed, image, exact=sigma == 0)


def compare(task: Task, restored: Restored) -> dict[str, float]:
    """PSNR and, where it can be had, SSIM of what was given, of the first stage and in the end."""
    images = {"_noisy": task.given, "_pilot": restored.pilot, "": restored.image}
    found = {f"psnr{name}": psnr(image, task.clean) for name, image in images.items()}
    alike = {f"ssim{name}": similarity(image, task.clean) for name, image in images.items()}
    return found | {name: value for name, value in alike.items() if value is not None}


def shown_gains(found: dict[str, Any]) -> str:
    """The same in one line."""
    steps = []
    for name in ("_noisy", "_pilot", ""):
        alike = f" (SSIM {found[f'ssim{name}']:.3f})" if f"ssim{name}" in found else ""
        steps.append(f"{found[f'psnr{name}']:.2f} dB{alike}")
    return " -> ".join(steps)


def halved(picture: Picture, times: int) -> Picture:
    """Every other pixel, so often."""
    step = 2**times
    alpha = None if picture.alpha is None else picture.alpha[::step, ::step]
    return picture._replace(pixels=picture.pixels[::step, ::step], alpha=alpha)


def read_image(path: Path | None, gigabytes: float) -> Picture:
    """That of a file, or scikit-image's photographer."""
    if path is not None:
        return read_picture(path, gigabytes)
    try:
        from skimage import data
    except ImportError as error:
        raise CommandError(
            f"the camera man needs scikit-image ({error}): pip install scikit-image, or give an "
            "image of your own"
        ) from None
    return Picture(np.asarray(data.camera(), np.float64) / 255)


if __name__ == "__main__":
    run_main(main)
