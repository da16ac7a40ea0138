"""How like pictures are: structural similarity, and the Fréchet distance of their features.

References:
    Wang, Bovik, Sheikh & Simoncelli. Image quality assessment: from error visibility to structural
    similarity. IEEE Transactions on Image Processing 13(4), 2004 (SSIM, the window of section 3C).
    Heusel, Ramsauer, Unterthiner, Nessler & Hochreiter. GANs trained by a two time-scale update
    rule converge to a local Nash equilibrium. NeurIPS, 2017 (FID).
"""

import importlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from backends import Backend, batch_size_of
from cli import CommandError
from data import draw_pixels

__all__ = [
    "check_extractor",
    "epoch_usage",
    "frechet_distance",
    "load_extractor",
    "quality",
    "structural_similarity",
]

Extractor = Callable[[np.ndarray], np.ndarray]
_SIDE, _SPREAD = 11, 1.5  # of the window, in pixels
_SMALL = 0.01, 0.03  # K_1 and K_2
_AT_ONCE = 256  # images that a torchvision network gets


def structural_similarity(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The mean structural similarity of pairs of images in [0, 1], one number a pair.

    Args:
        first: ``(N, H, W)`` or ``(N, H, W, C)``; channels are apart, and averaged in the end.
        second: As many of the same shape.

    Raises:
        ValueError: If they differ in shape, or a side is shorter than the window of 11 pixels.
    """
    if first.shape != second.shape or first.ndim not in (3, 4):
        raise ValueError(f"images must have one shape, got {first.shape} and {second.shape}")
    if min(first.shape[1:3]) < _SIDE:
        raise ValueError(f"images of {first.shape[1:3]} pixels are smaller than {_SIDE} x {_SIDE}")
    x, y = (np.asarray(values, np.float64) for values in (first, second))
    mean_x, mean_y = _smoothed(x), _smoothed(y)
    var_x, var_y = _smoothed(x * x) - mean_x**2, _smoothed(y * y) - mean_y**2
    together = _smoothed(x * y) - mean_x * mean_y
    one, two = (small**2 for small in _SMALL)
    likeness = (2 * mean_x * mean_y + one) * (2 * together + two)
    likeness /= (mean_x**2 + mean_y**2 + one) * (var_x + var_y + two)
    return likeness.reshape(len(x), -1).mean(1)


def _smoothed(images: np.ndarray) -> np.ndarray:
    """Gaussian means over windows that lie within the image."""
    places = np.arange(_SIDE) - _SIDE // 2
    weights = np.exp(-0.5 * (places / _SPREAD) ** 2)
    weights /= weights.sum()
    for axis in (1, 2):
        windows = np.lib.stride_tricks.sliding_window_view(images, _SIDE, axis)
        images = windows @ weights
    return images


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """The Fréchet distance of two Gaussians, fitted to features ``(N, D)`` of images.

    It falls with the number of images: compare it for equally many alone.

    Raises:
        ValueError: If there are fewer than two of one, or they differ in width.
    """
    if min(len(first), len(second)) < 2 or first.shape[1:] != second.shape[1:] or first.ndim != 2:
        raise ValueError(
            f"features must be (N, D), N at least 2; got {first.shape}, {second.shape}"
        )
    means, covariances = zip(
        *((x.mean(0), np.atleast_2d(np.cov(x.astype(float).T))) for x in (first, second)),
        strict=True,
    )
    values, vectors = np.linalg.eigh(covariances[0])
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.linalg.eigvalsh(root @ covariances[1] @ root).clip(0)
    traces = np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * np.sqrt(cross).sum()
    return float(((means[0] - means[1]) ** 2).sum() + traces)


def load_extractor(name: str) -> Extractor:
    """What makes features ``(N, D)`` of images ``(N, H, W, 3)`` in [0, 1].

    Args:
        name: A network of torchvision's, as inception_v3, with its published weights, before its
            last layer; or MODULE:FUNCTION, a function of one's own.

    Raises:
        CommandError: If there is none, or its weights cannot be had.
    """
    if ":" in name:
        module, _, function = name.partition(":")
        try:
            return getattr(importlib.import_module(module), function)
        except (ImportError, AttributeError, ValueError) as error:
            raise CommandError(f"--fid-features {name}: {error}") from None
    try:
        import torchvision
        from torch import nn

        weights = torchvision.models.get_model_weights(name).DEFAULT
    except ImportError as error:
        raise CommandError(f"--fid-features {name} needs torchvision ({error})") from None
    except ValueError:
        raise CommandError(
            f"--fid-features {name}: is no network of torchvision's, as inception_v3; name one, or "
            "MODULE:FUNCTION"
        ) from None
    try:
        net = torchvision.models.get_model(name, weights=weights).eval()
    except (OSError, RuntimeError) as error:
        raise CommandError(
            f"--fid-features {name}: its weights cannot be had ({error}): put {weights.url} under "
            "$TORCH_HOME/hub/checkpoints, or name MODULE:FUNCTION"
        ) from None
    for head in ("fc", "classifier", "head", "heads"):
        if hasattr(net, head):
            setattr(net, head, nn.Identity())
    prepare = weights.transforms()
    return lambda images: _features(net, prepare, images)


def _features(net: Any, prepare: Any, images: np.ndarray) -> np.ndarray:
    import torch

    found = []
    with torch.no_grad():
        for start in range(0, len(images), _AT_ONCE):
            part = torch.as_tensor(images[start : start + _AT_ONCE]).movedim(-1, 1)
            found.append(net(prepare(part)).flatten(1).numpy())
    return np.concatenate(found)


def check_extractor(name: str, extractor: Extractor | None, frames: int | None) -> None:
    """Whether features of images can be had, before hours are spent."""
    if extractor is None:
        return
    if frames:
        raise CommandError("--fid-features is an option of images")
    try:
        made = np.asarray(extractor(np.zeros((2, 32, 32, 3), np.float32)))
    except Exception as error:  # whatever a user's function makes of it
        raise CommandError(f"--fid-features {name}: {error}") from None
    if made.ndim != 2 or len(made) != 2:
        raise CommandError(f"--fid-features {name}: must make (N, D) of N images, got {made.shape}")


def epoch_usage(setup: Any, guide: Any, most: int) -> dict[str, float]:
    """Codes in use over an epoch: of one draw for each training image, or for the first of them.

    The perplexity is that of all latents together, which share a table.
    """
    config, images = setup.config, setup.data.x_train[:most]
    if not config.amortized or config.prior == "bernoulli":
        return {}
    if config.binarize == "dynamic":
        images = draw_pixels(images, 0)
    counts = np.bincount(setup.backend.codes(guide, images).ravel(), minlength=config.num_codes)
    shares = counts[counts > 0] / counts.sum()
    perplexity = np.exp(-(shares * np.log(shares)).sum())
    return {"epoch_usage": (counts > 0).mean(), "epoch_perplexity": perplexity}


def quality(
    backend: Backend, model: Any, guide: Any, data: Any, extractor: Extractor | None
) -> dict[str, float | None]:
    """SSIM and, with an extractor, FID of the reconstructions of the test images.

    A reconstruction is the mean of p(x | z) at one draw of the guide. SSIM is None of images
    smaller than its window.
    """
    pairs = list(_pairs(backend, model, guide, data))
    found: dict[str, float | None] = {"ssim": None}
    if min(data.x_test.shape[1:3]) >= _SIDE:
        found["ssim"] = float(np.mean(np.concatenate([structural_similarity(*p) for p in pairs])))
    if extractor is not None:
        parts = zip(*pairs, strict=True)
        features = [np.concatenate([extractor(_coloured(x)) for x in part]) for part in parts]
        found |= {"fid": frechet_distance(*features), "fid_images": len(data.x_test)}
    return found


def _pairs(
    backend: Backend, model: Any, guide: Any, data: Any
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Test images and their reconstructions, a part at a time."""
    codes, size = backend.codes(guide, data.x_test), batch_size_of(data.x_test)
    for start in range(0, len(codes), size):
        rows = slice(start, start + size)
        yield data.to_unit(data.x_test[rows]), data.to_unit(backend.decode(model, codes[rows]))


def _coloured(images: np.ndarray) -> np.ndarray:
    """With three channels."""
    images = images if images.ndim == 4 else images[..., None]
    return np.ascontiguousarray(np.broadcast_to(images, (*images.shape[:3], 3)))
