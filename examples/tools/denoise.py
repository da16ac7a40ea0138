"""Zero-shot denoising and inpainting: a discrete VAE of the patches of the one image at hand.

All overlapping patches of the noisy image, less their brightness, are the data; nothing else is
learned from. A patch is a sum of atoms of a dictionary, one per binary latent, or what a perceptron
makes of them. Each patch gets a truncated posterior, evolved by flips that follow the slope of the
log joint, while the dictionary, the noise level and the prior are learned [1]. What that leaves of
a patch is noise and an error of the model; the patches that use a latent tell how the error is
distributed, so it has a posterior mean as well [2]. A pixel is the mean of the estimates of all
patches that cover it. Missing pixels leave the likelihood. Noise and holes are made here, with
`--sigma` and `--missing`, so that the result can be compared with the clean image; `--noisy` takes
the image as it is.

    python examples/tools/denoise.py --sigma 25
    python examples/tools/denoise.py photo.png --missing 0.5

References:
    [1] Drefs, Guiraud, Panagiotou & Lücke. Direct evolutionary optimization of variational
        autoencoders with binary latents. ECML PKDD, 2022. arXiv 2011.13704.
    [2] Yu, Sapiro & Mallat. Solving inverse problems with piecewise linear estimators. IEEE
        Transactions on Image Processing 21(5), 2012. The Gaussians are those of errors here.
"""

import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from backends import Backend, get_backend
from cli import CommandError, Parser, finish, open_folder, positive, run_main
from patches import cut, first_atoms, join, model_errors, patch_means, psnr
from pictures import save_restored
from untrusted import GIGABYTES, read_picture

_PATCHES_AT_ONCE = 2048  # when estimating


class Task(NamedTuple):
    """An image to restore, on the scale 0 to 255."""

    given: np.ndarray  # (H, W, C), noisy; the mean where it is missing
    observed: np.ndarray  # (H, W), bool
    clean: np.ndarray | None  # (H, W, C), if known
    exact: bool  # whether what is observed has no noise


def main(arguments: list[str]) -> None:
    """Learn from the patches of an image, put them together again, measure."""
    args = make_parser().parse_args(arguments)
    if args.noisy and (args.sigma or args.missing):
        raise CommandError("--noisy takes the image as it is: leave out --sigma and --missing")
    if args.smoke:
        args.latents, args.states, args.epochs, args.half = 8, 8, 1, args.half + 2
    backend, out = get_backend(args.backend, args.device), open_folder(args.out)
    task = make_task(args)
    if min(task.given.shape[:2]) < args.patch:
        raise CommandError(f"--patch {args.patch}: the image is {task.given.shape[:2]} pixels")
    if not np.ptp(task.given[task.observed]) > 0:
        raise CommandError(f"{args.image}: is of one value throughout: there is nothing to learn")
    backend.seed(args.seed)
    start = time.perf_counter()
    restored, sigma = restore(backend, task, args)
    seconds = time.perf_counter() - start
    found: dict[str, Any] = {"sigma_found": sigma, "seconds": seconds, "backend": backend.name}
    if task.clean is not None:
        found |= {"psnr_noisy": psnr(task.given, task.clean), "psnr": psnr(restored, task.clean)}
        print(f"{found['psnr_noisy']:.2f} dB -> {found['psnr']:.2f} dB in {seconds:.0f} s")
    picture = out / "denoised.png"
    save_restored(
        picture, task.clean, np.where(task.observed[..., None], task.given, np.nan), restored
    )
    found |= {"picture": picture, "epochs": args.epochs, "seed": args.seed}
    print(f"noise found {sigma:.1f}; picture: {picture}")
    finish(found, out, show=args.json, name="denoise.json")


def make_parser() -> Parser:
    """The command line."""
    parser = Parser(__doc__, out="out/denoise")
    add = parser.add_argument
    add("image", nargs="?", type=Path, metavar="IMAGE", help="a file; default: skimage's camera")
    add("--sigma", type=float, default=None, help="noise to add, on the scale 0 to 255")
    add("--missing", type=float, default=0.0, help="fraction of pixels to take away")
    add("--noisy", action="store_true", help="the image is noisy already: add nothing")
    add("--half", type=int, default=0, help="how often to halve the image first")
    add("--patch", type=positive, default=8, help="side of a patch, pixels")
    add("--latents", type=positive, default=128, help="binary latents per patch")
    add("--states", type=positive, default=16, help="states per patch")
    add("--hidden", type=int, nargs="*", default=[], help="widths of hidden layers, if any")
    add("--epochs", type=positive, default=20)
    add("--batch-size", type=positive, default=256)
    add("--learning-rate", type=float, default=3e-2, help="falls to a tenth")
    add("--device", choices=["auto", "cpu", "cuda"], default="auto")
    add("--most-gigabytes", type=float, default=GIGABYTES, help="that the image may unpack to")
    return parser


def make_task(args: Any) -> Task:
    """Read the image; add noise and take pixels away."""
    image = read_image(args.image, args.most_gigabytes)
    for _ in range(args.half):
        image = image[::2, ::2]
    rng = np.random.default_rng(args.seed)
    if args.noisy:
        return Task(image, np.ones(image.shape[:2], bool), None, exact=False)
    sigma = (0.0 if args.missing else 25.0) if args.sigma is None else args.sigma
    if not sigma >= 0 or not 0 <= args.missing < 1:
        raise CommandError("--sigma must be 0 or more and --missing in [0, 1)")
    given = image + sigma * rng.standard_normal(image.shape)
    observed = rng.random(image.shape[:2]) >= args.missing
    if not observed.any():
        raise CommandError(f"--missing {args.missing}: not one pixel is left")
    given = np.where(observed[..., None], given, given[observed].mean(0))
    return Task(given, observed, image, exact=sigma == 0)


def read_image(path: Path | None, gigabytes: float) -> np.ndarray:
    """Gray or colour, ``(H, W, C)`` floats from 0 to 255."""
    if path is None:
        try:
            from skimage import data
        except ImportError as error:
            raise CommandError(
                f"the camera man needs scikit-image ({error}): pip install scikit-image, or give "
                "an image of your own"
            ) from None
        image = np.asarray(data.camera(), np.float64)
    else:
        image = 255.0 * read_picture(path, gigabytes)
    if min(image.shape[:2]) < 2:
        raise CommandError(f"{path}: an image of {image.shape[:2]} pixels has no patches")
    return image[..., None] if image.ndim == 2 else image


def restore(backend: Backend, task: Task, args: Any) -> tuple[np.ndarray, float]:
    """The restored image, and the noise level that was found."""
    known = task.given[task.observed]
    center, scale = float(known.mean()), float(known.std())
    unit = np.where(task.observed[..., None], (task.given - center) / scale, 0.0)
    patches = cut(unit.astype(np.float32), args.patch)
    masks = cut(np.broadcast_to(task.observed[..., None], unit.shape), args.patch)
    means = patch_means(patches, masks)  # brightness need not be learned
    patches = np.where(masks, patches - means, 0.0)
    data = [patches, np.arange(len(patches)), len(patches)]
    data += [] if task.observed.all() else [masks]
    model, guide, loss = make_programs(backend, patches, masks, args)
    batch_size = min(args.batch_size, len(patches))
    backend.train(
        model,
        guide,
        loss,
        *data,
        learning_rate=args.learning_rate,
        decay=0.1,
        num_steps=args.epochs * (len(patches) // batch_size),
        batch_size=batch_size,
        log_every=10,
    )
    found, uses, noise = estimate(backend, model, guide, data)
    errors = model_errors(np.where(masks, patches - found, 0.0), masks, uses, noise)
    image = center + scale * join(found + errors + means, unit.shape)
    if task.exact:
        image = np.where(task.observed[..., None], task.given, image)
    return image, scale * math.sqrt(noise)


def make_programs(
    backend: Backend, patches: np.ndarray, masks: np.ndarray, args: Any
) -> tuple[Any, Any, Any]:
    """Binary latents, a dictionary or a perceptron, one noise level.

    The E-step's flips go by the slope of the log joint, and the prior's probabilities and the noise
    have closed forms.
    """
    infer, evolution = backend.module("infer"), backend.module("ops.evolution")
    models, nets = backend.module("models"), backend.module("nets")
    if args.hidden:
        shape, hidden = patches.shape[1:], tuple(args.hidden)
        decoder = nets.MLPDecoder(args.latents, None, shape, hidden=hidden)
    else:
        rng = np.random.default_rng(args.seed)
        decoder = backend.make_dictionary(first_atoms(rng, patches, masks, args.latents))
    model = models.DiscreteVAE(
        decoder,
        models.BernoulliPrior(args.latents, probability=0.02, learn="closed_form"),
        models.GaussianLikelihood(variance=float(patches[masks].var()), learn="closed_form"),
    )
    parents = evolution.select(min(4, args.states))
    loss = infer.Truncated_ELBO(evolution.chain(parents, infer.informed_flip(6)))
    if hasattr(model, "to"):
        model = model.to(backend.device)
    return model, infer.TruncatedGuide(model, args.states), loss


def estimate(
    backend: Backend, model: Any, guide: Any, data: list[Any]
) -> tuple[np.ndarray, np.ndarray, float]:
    """Of each patch the posterior mean and how likely it uses each latent, or none; the noise."""
    means, uses = [], []
    for states, weights in backend.posteriors(guide, data, _PATCHES_AT_ONCE):
        means.append(np.einsum("sb,sb...->b...", weights, backend.decode(model, states)))
        used = np.concatenate([states, states.sum(-1, keepdims=True) == 0], -1)
        uses.append(np.einsum("sb,sbh->bh", weights, used))
    _, variance, _ = backend.conditional(model, states[0, :1])
    return np.concatenate(means), np.concatenate(uses), float(np.mean(variance))


if __name__ == "__main__":
    run_main(main)
