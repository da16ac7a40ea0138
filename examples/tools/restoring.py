"""From noisy pixels to restored ones: models of the patches, then non-local Bayes.

An image beyond the size of a tile is restored tile by tile, each with a model of its own; tiles
overlap, and are blended where they do. So memory is bounded by a tile: about 6 kB for each of its
patches, 0.4 GB for 256 x 256 pixels. The second stage goes over the whole image in bands.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import nonlocal_bayes
import numpy as np
import patch_classes
from backends import Backend
from noise_levels import noise_level, noise_variance
from patches import cut, first_atoms, join, model_errors, patch_means
from tqdm import tqdm

__all__ = ["Restored", "Task", "restore"]

_PATCHES_AT_ONCE = 2048  # when estimating
# Of the second stage: sides of patches, how many are alike, and from one group to the next.
_GROUPS = (5, 14, 2), (11, 30, 2)
# Of holes in weak noise: the noise at least, as few patches tell little of the others of a group.
_WEAK, _LEAST, _OF_HOLES = 10.0, 3.0, ((7, 60, 3), (11, 120, 4))
_STEPS, _EPOCHS = 2400, (6, 20)  # of training, if not told


class Task(NamedTuple):
    """An image to restore, on the scale 0 to 255."""

    given: np.ndarray  # (H, W, C), noisy; the mean where it is missing
    observed: np.ndarray  # (H, W), bool
    clean: np.ndarray | None  # (H, W, C), if known
    exact: bool  # whether what is observed has no noise


class Restored(NamedTuple):
    """What was made of it."""

    image: np.ndarray  # (H, W, C)
    pilot: np.ndarray  # the same, of the first stage alone
    sigma: float  # standard deviation of the noise that was found, or known; 0 where there is none


def restore(backend: Backend, task: Task, args: Any) -> Restored:
    """Learn, estimate, and refine.

    Args:
        backend: Of the package that learns.
        task: The image.
        args: The command line's.
    """
    sigma = args.sigma_known
    if sigma is None and task.observed.all():
        sigma = noise_level(task.given)
    total, weight, found = np.zeros(task.given.shape), np.zeros(task.given.shape[:2]), []
    tiles = list(_tiles(task.given.shape[:2], args.tile, 2 * args.patch))
    for i, (rows, columns) in enumerate(tiles):
        if len(tiles) > 1:
            print(f"tile {i + 1} of {len(tiles)}", flush=True)
            backend.seed(args.seed)
        part = task._replace(given=task.given[rows, columns], observed=task.observed[rows, columns])
        image, noise = _pilot(backend, part, sigma, args)
        share = _window(image.shape[:2], 2 * args.patch)
        total[rows, columns] += share[..., None] * image
        weight[rows, columns] += share
        found.append(noise)
    pilot = image = _kept(task, total / weight[..., None])
    noise = 0.0 if task.exact else float(np.mean(found))
    has_holes = not task.observed.all()  # which are filled from round to round
    for _ in range(args.rounds * (2 if has_holes else 1)):
        image = _kept(task, _refined(task, image, noise, has_holes))
    return Restored(image, pilot, noise)


def _refined(task: Task, pilot: np.ndarray, sigma: float, has_holes: bool) -> np.ndarray:
    """The mean over groups of small patches and of large ones."""
    total, groups = np.zeros(task.given.shape), _GROUPS
    if has_holes and sigma < _WEAK:
        sigma, groups = max(sigma, _LEAST), _OF_HOLES
    for size, count, stride in groups:
        name = f"non-local Bayes, {size} x {size}"
        with tqdm(total=100, desc=name, bar_format="{desc}: {n:.0f} %{bar}") as bar:
            total += nonlocal_bayes.refine(
                task.given,
                pilot,
                sigma,
                task.observed,
                size=size,
                count=count,
                stride=stride,
                progress=lambda share, bar=bar: bar.update(100 * share - bar.n),
            )
    return total / len(groups)


def _kept(task: Task, image: np.ndarray) -> np.ndarray:
    """What is observed without noise stays."""
    return np.where(task.observed[..., None], task.given, image) if task.exact else image


def _tiles(shape: tuple[int, ...], most: int, overlap: int) -> Iterator[tuple[slice, slice]]:
    """Parts of one size that cover the image, no side beyond `most`."""
    sides = []
    for length in shape:
        count = max(1, -(-(length - overlap) // max(most - overlap, 1)))
        size = -(-(length + (count - 1) * overlap) // count)
        starts = np.linspace(0, length - size, count).astype(int)
        sides.append([slice(start, start + size) for start in starts])
    return ((rows, columns) for rows in sides[0] for columns in sides[1])


def _window(shape: tuple[int, ...], overlap: int) -> np.ndarray:
    """Weights of a tile, which fall off towards its edges."""
    ramps = []
    for length in shape:
        place = np.arange(length) + 1.0
        ramps.append(np.minimum(np.minimum(place, place[::-1]), overlap) / overlap)
    return np.outer(*ramps)


def _pilot(
    backend: Backend, task: Task, sigma: float | None, args: Any
) -> tuple[np.ndarray, float]:
    """What a model of its patches makes of a tile, and the noise level."""
    known = task.given[task.observed]
    center, scale = float(known.mean()), float(known.std()) or 1.0
    unit = np.where(task.observed[..., None], (task.given - center) / scale, 0.0)
    patches = cut(unit.astype(np.float32), args.patch, args.stride)
    masks = cut(np.broadcast_to(task.observed[..., None], unit.shape), args.patch, args.stride)
    means = patch_means(patches, masks)  # brightness need not be learned
    patches = np.where(masks, patches - means, 0.0)
    data = [patches, np.arange(len(patches)), len(patches)]
    data += [] if task.observed.all() else [masks]
    model, guide, loss = make_programs(backend, patches, masks, args)
    batch_size = min(args.batch_size, len(patches))
    per_epoch = len(patches) // batch_size
    backend.train(
        model,
        guide,
        loss,
        *data,
        learning_rate=args.learning_rate,
        decay=0.1,
        num_steps=_epochs(args, per_epoch) * per_epoch,
        batch_size=batch_size,
        log_every=10,
    )
    found, uses, variance = estimate(backend, model, guide, data)
    if sigma is not None and task.observed.all():
        first = center + scale * join(found + means, unit.shape, args.stride)
        settings = {"size": args.patch, "stride": args.stride, "seed": args.seed}
        return patch_classes.refine(task.given, first, sigma, **settings), sigma
    residuals = np.where(masks, patches - found, 0.0)
    if sigma is not None:
        variance = (sigma / scale) ** 2
    elif not task.exact:  # an error of the model is no noise
        variance = min(variance, noise_variance(residuals, masks))
    errors = model_errors(residuals, masks, uses, variance)
    image = join(found + errors + means, unit.shape, args.stride)
    return center + scale * image, scale * math.sqrt(variance)


def _epochs(args: Any, per_epoch: int) -> int:
    """As many as there are to be, or as make enough steps: a large image needs fewer."""
    return args.epochs or int(np.clip(round(_STEPS / per_epoch), *_EPOCHS))


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
