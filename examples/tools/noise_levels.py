"""How much noise an image has, by its own patches.

Two estimates, of which the lesser is taken, as what is no noise adds to both:

- patches lie near a subspace, and vary along the other directions by noise alone [2];
- patches of little texture [1]: those whose gradients are no larger than noise makes them. The
  noise is the least variance of these along any direction, which decides in turn which they are.

The first is right where there is little texture, also in small images; the second, where there are
at least some flat parts. Where all is texture (grass, gravel) both take some of it for noise.

Arrays of NumPy throughout: images ``(H, W, C)``, patches ``(N, size, size, C)``.

References:
    [1] Liu, Tanaka & Okutomi. Single-image noise level estimation for blind denoising. IEEE
        Transactions on Image Processing 22(12), 2013. Eq. 7 to 17.
    [2] Chen, Zhu & Heng. An efficient statistical method for image noise level estimation. ICCV,
        2015. The subspace by its eigenvalues.
    [3] Marchenko & Pastur. Distribution of eigenvalues for some sets of random matrices.
        Mathematics of the USSR-Sbornik 1(4), 1967. Down to (1 - sqrt(D / N))^2 of the noise.
"""

import math

import numpy as np
from patches import cut
from scipy.stats import gamma

__all__ = ["noise_level", "noise_variance"]

_SIDES = 4, 5, 6  # of the patches whose unused directions are looked for
_SIDE = 5  # of those of little texture
_CONFIDENCE = 1 - 1e-6  # that gradients of noise alone are no larger
_LEAST = 16  # patches for each pixel of one, or the least variance is too small by chance
_ROUNDS = 10


def noise_level(image: np.ndarray) -> float:
    """Standard deviation of the noise of an image ``(H, W, C)``, on its own scale."""
    found = []
    for size in _SIDES:
        patches = cut(image, min(size, *image.shape[:2]))
        patches = patches - patches.mean(0)
        found.append(noise_variance(patches, np.ones(patches.shape, bool)))
    if min(image.shape[:2]) >= _SIDE:
        channels = np.moveaxis(image, -1, 0)
        found.append(float(np.mean([_flat_variance(channel) for channel in channels])))
    return math.sqrt(min(found))


def noise_variance(patches: np.ndarray, masks: np.ndarray) -> float:
    """Variance of the noise of patches, by the directions that they leave unused [2].

    Patches lie near a subspace; the variances along the others are those of the noise. They are as
    many of the least as have a mean that is no more than their median.

    Args:
        patches: Of mean zero; where much is missing, what a model leaves of them.
        masks: What is observed, of that shape.
    """
    flat, seen = (values.reshape(len(values), -1) for values in (patches, masks))
    flat, seen = np.where(seen, flat, 0.0), seen.astype(float)
    moments = flat.T @ flat / np.maximum(seen.T @ seen, 1.0)
    variances = np.maximum(np.linalg.eigvalsh(moments), 0.0)
    for number in range(len(variances), 0, -1):
        least = variances[:number]
        if least.mean() <= np.median(least):
            break
    return float(least.mean())


def _flat_variance(channel: np.ndarray) -> float:
    """Variance of the noise of one colour ``(H, W)``, by the patches of little texture [1].

    Infinite, as a bound, for an image of few patches.
    """
    patches = cut(channel[..., None], _SIDE)[..., 0]
    down, right = (patches[:, 2:] - patches[:, :-2]) / 2, (patches[..., 2:] - patches[..., :-2]) / 2
    textures = np.square(down).sum((1, 2)) + np.square(right).sum((1, 2))
    flat, limit = patches.reshape(len(patches), -1), _texture_of_noise()
    if len(flat) <= _LEAST * flat.shape[1]:
        return math.inf
    variance = _least_variance(flat)
    for _ in range(_ROUNDS):
        few = flat[textures < limit * variance]
        if len(few) <= _LEAST * flat.shape[1]:
            break
        variance, before = _least_variance(few), variance
        if math.isclose(variance, before, rel_tol=1e-6):
            break
    return variance


def _texture_of_noise() -> float:
    """What the squared gradients of a patch of unit noise hardly ever sum to more than.

    They are 2 s (s - 2) squares of variance 1/2; a gamma of shape s^2 / 2 has their mean [1].
    """
    mean, shape = _SIDE * (_SIDE - 2), _SIDE**2 / 2
    return float(gamma.ppf(_CONFIDENCE, shape, scale=mean / shape))


def _least_variance(flat: np.ndarray) -> float:
    """Of vectors ``(N, D)`` along any direction, but for what is less by chance [3]."""
    centred = flat - flat.mean(0)
    least = float(np.linalg.eigvalsh(centred.T @ centred / len(flat))[0])
    return max(least, 0.0) / (1 - math.sqrt(flat.shape[1] / len(flat))) ** 2
