"""A mixture of Gaussians of the patches of one noisy image, whose class is summed out.

A patch is of one of many classes, each with a mean, a covariance and a share of the patches [1, 2].
Given the class, the posterior mean of the clean patch is Wiener's filter of the noisy one; the
class, a categorical latent, has its exact posterior, which weighs the filters. EM on the noisy
patches alone learns the classes: means and shares in closed form, and covariances as well, those of
the noisy patches less the noise, and nothing where there is no more than noise. So a class keeps
few directions, as many as its patches tell [3].

A pilot, an estimate of the clean image, tells the classes to start from, patches near one line
through zero whatever their contrast, and the brightness of a patch, whose error has a posterior
mean as all else. A pixel is the mean of the estimates that cover it, each weighted by how little
the noise could say of it, as in `nonlocal_bayes.py`.

Arrays of NumPy throughout, images ``(H, W, C)``. Memory is a few copies of the patches; of the
shares of classes, those that count.

References:
    [1] Zoran & Weiss. From learning models of natural image patches to whole image restoration.
        ICCV, 2011.
    [2] Yu, Sapiro & Mallat. Solving inverse problems with piecewise linear estimators. IEEE
        Transactions on Image Processing 21(5), 2012.
    [3] Houdard, Bouveyron & Delon. High-dimensional mixture models for unsupervised image
        denoising. SIAM Journal on Imaging Sciences 11(4), 2018. Which directions are kept is here
        told by the largest variance that noise has by chance, as Marchenko & Pastur give it.
"""

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from nonlocal_bayes import LEAST_NOISE
from patches import cut, join, patch_means
from scipy import sparse

__all__ = ["refine"]

_STRONG = 40.0  # noise from which on patches are larger, as BM3D's are, and classes fewer
_LARGER, _MOST = 2, (1000, 400)  # pixels; classes, at weak noise and at strong
_FLAT = 0.3  # of the noise: a pilot's patch of a lesser standard deviation is of the last class
_LEAST_SHARE = 1e-3  # of a patch in a class, to count
_AT_ONCE = 4096  # patches, whose shares in all classes are held
_LINE_ROUNDS, _ROUNDS = 8, 3


class _Class(NamedTuple):
    mean: np.ndarray  # (D,)
    axes: np.ndarray  # (D, d), orthonormal: where it varies
    variances: np.ndarray  # (d,), of clean patches along these
    number: float  # of patches


def refine(
    given: np.ndarray, pilot: np.ndarray, sigma: float, *, size: int, stride: int = 1, seed: int = 0
) -> np.ndarray:
    """The image by a mixture of its patches.

    Args:
        given: The noisy image ``(H, W, C)``, on the scale 0 to 255.
        pilot: An estimate of the clean one.
        sigma: Standard deviation of the noise, 0 or more.
        size: Side of a patch, where the noise is not strong.
        stride: From a patch to the next, rows and columns.
        seed: Of the choice of the first classes.
    """
    sigma, strong = max(sigma, LEAST_NOISE), bool(sigma >= _STRONG)
    size = min(size + _LARGER * strong, *given.shape[:2])
    noisy, clean = (cut(image.astype(np.float32), size, stride) for image in (given, pilot))
    levels = patch_means(clean, np.ones(clean.shape, bool))
    noisy, clean = ((values - levels).reshape(len(values), -1) for values in (noisy, clean))
    # each class of as many patches as these have pixels
    count = int(np.clip(len(clean) // clean.shape[1], 1, _MOST[strong]))
    shares, variance = _lines(np.random.default_rng(seed), clean, count, sigma), sigma**2
    for _ in range(_ROUNDS):
        classes = _classes(noisy, shares, variance)
        shares = _posterior(noisy, classes, variance)
    found, weights = _posterior_means(noisy, classes, shares, variance)
    weights = np.broadcast_to(weights[:, None, None, None], (len(found), size, size, 1))
    found = weights * (found.reshape(*weights.shape[:3], -1) + levels)
    return join(found, given.shape, stride) / join(weights, (*given.shape[:2], 1), stride)


def _lines(
    rng: np.random.Generator, clean: np.ndarray, count: int, sigma: float
) -> sparse.csc_matrix:
    """Classes ``(N, count + 1)`` of vectors ``(N, D)``: near a line through zero, and near zero."""
    everyone = np.arange(len(clean))
    energies = np.square(clean).sum(1) + np.finfo(np.float32).eps
    lines = clean[rng.choice(len(clean), count, replace=False, p=energies / energies.sum())]
    for _ in range(_LINE_ROUNDS):
        lines = lines / np.maximum(np.linalg.norm(lines, axis=1, keepdims=True), 1e-12)
        nearest = np.concatenate([np.abs(few @ lines.T).argmax(1) for few in _portions(clean)])
        along = np.einsum("nd,nd->n", clean, lines[nearest])
        lines = sparse.csr_matrix((along, (nearest, everyone)), (count, len(clean))) @ clean
    nearest[energies < clean.shape[1] * (_FLAT * sigma) ** 2] = count
    ones = np.ones(len(clean), np.float32)
    return sparse.csc_matrix((ones, (everyone, nearest)), (len(clean), count + 1))


def _classes(noisy: np.ndarray, shares: sparse.csc_matrix, variance: float) -> list[_Class]:
    """The M-step: all that the noisy vectors ``(N, D)`` tell of the classes."""
    classes = []
    for rows, share in _members(shares):
        number = float(share.sum())
        mean = share @ noisy[rows] / number
        centred = noisy[rows] - mean
        moments = (share[:, None] * centred).T @ centred / number
        spread = math.sqrt(len(mean) * float(np.square(share).sum())) / number
        variances, axes = np.linalg.eigh(moments)
        signal = variances - variance * (1 + spread) ** 2  # which noise exceeds by no chance
        classes.append(_Class(mean, axes[:, signal > 0], signal[signal > 0], number))
    return classes


def _members(shares: sparse.csc_matrix) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows of each class that is not empty, and their shares."""
    for start, end in itertools.pairwise(shares.indptr):
        if end > start:
            yield shares.indices[start:end], shares.data[start:end]


def _posterior(noisy: np.ndarray, classes: list[_Class], variance: float) -> sparse.csc_matrix:
    """The E-step: the probability of each class, ``(N, K)``."""
    found = []
    for few in _portions(noisy):
        scores = np.stack([_score(few, each, variance) for each in classes], 1)
        scores = np.exp(scores - scores.max(1, keepdims=True))
        scores[scores < _LEAST_SHARE * scores.sum(1, keepdims=True)] = 0.0
        found.append(sparse.csr_matrix(scores / scores.sum(1, keepdims=True)))
    return sparse.vstack(found).tocsc()


def _portions(vectors: np.ndarray) -> Iterator[np.ndarray]:
    """Some of the vectors at a time, as their products with all classes take memory."""
    for start in range(0, len(vectors), _AT_ONCE):
        yield vectors[start : start + _AT_ONCE]


def _score(noisy: np.ndarray, which: _Class, variance: float) -> np.ndarray:
    """Log joint of vectors and a class, but for what all classes share."""
    centred = noisy - which.mean
    explained = np.square(centred @ which.axes) @ _gains(which, variance)
    misfit = (np.square(centred).sum(1) - explained) / variance
    return math.log(which.number) - (misfit + np.log1p(which.variances / variance).sum()) / 2


def _gains(which: _Class, variance: float) -> np.ndarray:
    """Of Wiener's filter, along a class's axes."""
    return which.variances / (which.variances + variance)


def _posterior_means(
    noisy: np.ndarray, classes: list[_Class], shares: sparse.csc_matrix, variance: float
) -> tuple[np.ndarray, np.ndarray]:
    """Of clean vectors ``(N, D)``, and the weights of these estimates ``(N,)``."""
    found, freedom = np.zeros_like(noisy), np.zeros(len(noisy), noisy.dtype)
    for which, (rows, share) in zip(classes, _members(shares), strict=True):
        gains = _gains(which, variance)
        along = (noisy[rows] - which.mean) @ which.axes * gains
        found[rows] += share[:, None] * (which.mean + along @ which.axes.T)
        freedom[rows] += share * gains.sum()
    return found, 1 / (1 + freedom)
