"""Patches of an image: cut out, put together again, and what a model leaves of them.

Arrays of NumPy throughout: images ``(H, W, C)``, patches ``(N, size, size, C)``.

References:
    Marchenko & Pastur. Distribution of eigenvalues for some sets of random matrices.
    Mathematics of the USSR-Sbornik 1(4), 1967. Up to (1 + sqrt(D / N))^2 of the noise.
"""

import math

import numpy as np

__all__ = [
    "cut",
    "filled_in",
    "first_atoms",
    "join",
    "model_errors",
    "patch_means",
    "places",
    "psnr",
    "similarity",
    "wiener",
]

_LEAST_USE = 0.01  # of a latent by a patch, to count
_SPREAD = 0.3  # of that bound, which only the largest of the variances come near
_ROUNDS = 20  # of filling in what is missing
_WINDOW = 7  # side of the windows of SSIM, in pixels


def cut(image: np.ndarray, size: int, stride: int = 1) -> np.ndarray:
    """Patches ``(N, size, size, C)`` of an image, one for each place."""
    windows = np.lib.stride_tricks.sliding_window_view(image, (size, size), axis=(0, 1))
    rows, columns = (places(length - size + 1, stride) for length in image.shape[:2])
    chosen = windows if stride == 1 else windows[np.ix_(rows, columns)]
    return np.ascontiguousarray(np.moveaxis(chosen, 2, -1).reshape(-1, size, size, image.shape[-1]))


def places(count: int, stride: int) -> np.ndarray:
    """Every so many of them, and the last."""
    return np.unique(np.append(np.arange(0, count, stride), count - 1))


def patch_means(patches: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Mean of the observed pixels of each patch and colour, ``(N, 1, 1, C)``."""
    total = np.sum(patches * masks, (1, 2), keepdims=True)
    return (total / np.maximum(masks.sum((1, 2), keepdims=True), 1)).astype(np.float32)


def join(patches: np.ndarray, shape: tuple[int, ...], stride: int = 1) -> np.ndarray:
    """Each pixel the mean of the patches that cover it, as `cut` has cut them."""
    size = patches.shape[1]
    rows, columns = (places(length - size + 1, stride) for length in shape[:2])
    patches = patches.reshape(len(rows), len(columns), *patches.shape[1:])
    total, count = np.zeros(shape), np.zeros(shape[:2])
    for i in range(size):
        for j in range(size):
            covered = np.ix_(rows + i, columns + j)
            total[covered] += patches[:, :, i, j]
            count[covered] += 1
    return total / count[..., None]


def first_atoms(
    rng: np.random.Generator, patches: np.ndarray, masks: np.ndarray, num_atoms: int
) -> np.ndarray:
    """Patches of high contrast, less most of their noise (Wiener's filter).

    Missing pixels, filled in with zeros, are noise as well; it is what the lesser components have.
    """
    flat = (patches / masks.mean()).reshape(len(patches), -1)
    moments = flat.T @ flat / len(flat)
    smooth = flat @ wiener(moments, float(np.quantile(np.linalg.eigvalsh(moments), 0.25)))
    energies = np.square(smooth).sum(1) + np.finfo(np.float32).eps
    few, probs = len(flat) < num_atoms, energies / energies.sum()
    chosen = rng.choice(len(flat), num_atoms, replace=few, p=probs)
    return (0.7 * smooth[chosen]).reshape(num_atoms, *patches.shape[1:]).astype(np.float32)


def wiener(moments: np.ndarray, noise: float) -> np.ndarray:
    """The symmetric matrix ``(D, D)`` that takes noisy vectors to the posterior mean of clean ones.

    Args:
        moments: Mean of ``x x^T`` over noisy x, signal and noise together.
        noise: The noise's variance; where there is not even that much, there is no signal.
    """
    variances, axes = np.linalg.eigh(moments)
    gains = np.maximum(variances - noise, 0.0) / np.maximum(variances, np.finfo(np.float32).eps)
    return (axes * gains) @ axes.T


def model_errors(
    residuals: np.ndarray, masks: np.ndarray, uses: np.ndarray, noise: float
) -> np.ndarray:
    """The posterior mean of what the model's mean lacks in each patch, ``(N, size, size, C)``.

    The patches that use a latent have Gaussian errors of one covariance, which their residuals
    give, less the noise; that of all patches is added with the weight of as many patches as these
    have pixels, which keeps it well-conditioned. Chance spreads the variances of few patches beyond
    that of the noise, so the level that is taken off is higher there. A patch of several
    latents takes the mean of theirs.

    Args:
        residuals: Noisy patches less the model's mean, 0 where missing.
        masks: What is observed, of that shape.
        uses: Probability of each latent in each patch, ``(N, groups)``, in no row all zero.
        noise: The noise's variance.
    """
    flat, seen = (values.reshape(len(values), -1) for values in (residuals, masks))
    seen = seen.astype(flat.dtype)
    shares = np.where(uses < _LEAST_USE * uses.max(1, keepdims=True), 0.0, uses)
    shares = (shares / shares.sum(1, keepdims=True)).astype(flat.dtype)
    moments = flat.T @ flat / np.maximum(seen.T @ seen, 1.0)
    found, strength = np.zeros_like(flat), flat.shape[1]
    for share in (share for share in shares.T if share.any()):
        (rows,) = np.nonzero(share)
        few, known, weight = flat[rows], seen[rows], share[rows, None]
        total = (weight * few).T @ few + strength * moments
        number = share.sum() ** 2 / np.square(share).sum() + strength
        level = noise * (1 + _SPREAD * math.sqrt(flat.shape[1] / number)) ** 2
        gain = wiener(total / ((weight * known).T @ known + strength), level)
        found[rows] += weight * filled_in(few, known, gain)
    return found.reshape(residuals.shape)


def filled_in(noisy: np.ndarray, seen: np.ndarray, gain: np.ndarray) -> np.ndarray:
    """Filter vectors ``(N, D)`` whose missing entries are as the filter guesses, again and again.

    The fixed point is the posterior mean given what is seen.
    """
    clean = noisy @ gain
    for _ in range(0 if seen.all() else _ROUNDS):
        clean = (noisy * seen + clean * (1 - seen)) @ gain
    return clean


def psnr(found: np.ndarray, clean: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB on the scale 0 to 255, not clipped."""
    error = float(np.mean((found - clean) ** 2))
    return 20 * math.log10(255) - 10 * math.log10(error) if error > 0 else math.inf


def similarity(found: np.ndarray, clean: np.ndarray) -> float | None:
    """SSIM on the scale 0 to 255, by scikit-image, in its windows of 7 x 7 pixels, not clipped.

    None without scikit-image, and of an image that is smaller than a window.
    """
    try:
        from skimage.metrics import structural_similarity
    except ImportError:
        return None
    if min(clean.shape[:2]) < _WINDOW:
        return None
    return float(structural_similarity(clean, found, data_range=255, channel_axis=-1))
