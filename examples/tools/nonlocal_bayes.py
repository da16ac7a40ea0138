"""Non-local Bayes: what is alike in an image tells how a patch of it may vary [1].

A pilot, an estimate of the clean image, is compared with itself: each patch finds those near by
that are most like it. Their mean m and covariance C make a Gaussian that the clean patches of that
group are draws of, and the noisy ones y have the posterior mean

    m + C (C + sigma^2 I)^-1 (y - m),

which each patch of the group takes. A pixel is the mean of all estimates that cover it, each
weighted by how little the noise could say of its group: one over 1 + tr(C (C + sigma^2 I)^-1), the
posterior variance of a patch in units of the noise's, and of the mean (1 in [1]). The second step
of [1], for a pilot of whatever origin; the result may be the pilot of another round. Where pixels
are missing, the Gaussian is conditioned on the others, for the first patch of each group, and all
estimates count alike. Colours are turned to uncorrelated
ones first, which have a filter each and one group.

Arrays of NumPy throughout, images ``(H, W, C)``. The work goes over the image in bands of rows, so
that the memory beside the images is bounded, a tenth of a gigabyte or so.

References:
    [1] Lebrun, Buades & Morel. A nonlocal Bayesian image denoising algorithm. SIAM Journal on
        Imaging Sciences 6(3), 2013.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from patches import places
from scipy import sparse

__all__ = ["LEAST_NOISE", "refine"]

LEAST_NOISE = 0.3  # standard deviation on the scale 0 to 255: pixels are rounded to a step of 1
_BAND = 2**21  # distances, and twice the pixels of groups, that are held at once


class _Settings(NamedTuple):
    size: int  # side of a patch
    reach: int  # how far off a similar patch may be, rows and columns
    count: int  # patches of a group
    stride: int  # from one group's patch to the next


def refine(
    given: np.ndarray,
    pilot: np.ndarray,
    sigma: float,
    observed: np.ndarray | None = None,
    *,
    size: int = 7,
    reach: int = 12,
    count: int = 18,
    stride: int = 2,
    progress: Callable[[float], None] | None = None,
) -> np.ndarray:
    """The image by one round of non-local Bayes.

    Args:
        given: The noisy image ``(H, W, C)``, on the scale 0 to 255.
        pilot: An estimate of the clean one.
        sigma: Standard deviation of the noise, 0 or more.
        observed: What is known of it, ``(H, W)``; all if left out.
        size: Side of a patch, cut to the image's.
        reach: How far off similar patches are looked for, in rows and columns.
        count: How many make a group.
        stride: Rows and columns from one group's patch to the next.
        progress: Called with the share that is done.
    """
    size = min(size, *given.shape[:2])
    settings, turn = _Settings(size, reach, count, stride), _colours(given.shape[-1])
    sigma, mask = max(sigma, LEAST_NOISE), None
    if observed is not None and not observed.all():
        mask = observed.astype(np.float32)
    noisy, clean = (np.asarray(image @ turn, np.float32) for image in (given, pilot))
    total, weight = np.zeros((2, *given.shape), np.float32)
    starts = places(given.shape[0] - size + 1, stride)
    for rows in _bands(starts, given.shape, settings):
        top = max(rows[0] - reach, 0)
        part = slice(top, rows[-1] + reach + size)
        parts = noisy[part], clean[part], None if mask is None else mask[part]
        _add_band(parts, rows - top, sigma**2, settings, (total[part], weight[part]))
        if progress is not None:
            progress(min((rows[-1] + 1) / (starts[-1] + 1), 1.0))
    return (total / weight) @ turn.T


def _colours(channels: int) -> np.ndarray:
    """An orthogonal matrix of brightness and differences: white noise stays white."""
    if channels != 3:
        return np.eye(channels)
    axes = np.array([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [1.0, -2.0, 1.0]])
    return (axes / np.linalg.norm(axes, axis=1, keepdims=True)).T


def _bands(starts: np.ndarray, shape: tuple[int, ...], settings: _Settings) -> Iterator[np.ndarray]:
    """Rows of groups that are worked on together."""
    per_row = -(-shape[1] // settings.stride)
    held = max((2 * settings.reach + 1) ** 2, settings.count * settings.size**2 // 2)
    size = max(1, _BAND // (per_row * held))
    for start in range(0, len(starts), size):
        yield starts[start : start + size]


def _add_band(
    images: tuple[np.ndarray, np.ndarray, np.ndarray | None],
    rows: np.ndarray,
    variance: float,
    settings: _Settings,
    sums: tuple[np.ndarray, np.ndarray],
) -> None:
    """Add the estimates of some rows of groups to the sums of estimates and of their weights."""
    (noisy, pilot, mask), (size, *_), (total, weight) = images, settings, sums
    columns = places(noisy.shape[1] - size + 1, settings.stride)
    members = _most_similar(pilot, rows, columns, settings)
    taken = members if mask is None else members[:, :1]
    width, height = noisy.shape[1] - size + 1, noisy.shape[0] - size + 1
    for channel in range(noisy.shape[-1]):
        group = _patches(pilot[..., channel], size)[members]
        values = _patches(noisy[..., channel], size)[taken]
        seen = None if mask is None else _patches(mask, size)[taken[:, 0]]
        found, weights = _posterior_means(group, values, seen, variance)
        weights = np.repeat(weights.astype(np.float32), taken.shape[1])
        entries = weights, taken.ravel(), np.arange(taken.size + 1)
        scatter = sparse.csr_matrix(entries, (taken.size, width * height)).T
        placed = scatter @ found.reshape(taken.size, -1)
        _spread(placed.reshape(height, width, size, size), total[..., channel])
        uses = np.bincount(taken.ravel(), weights, width * height).reshape(height, width, 1, 1)
        _spread(np.broadcast_to(uses, (height, width, size, size)), weight[..., channel])


def _patches(image: np.ndarray, size: int) -> np.ndarray:
    """All patches ``(N, size^2)`` of one colour."""
    windows = np.lib.stride_tricks.sliding_window_view(image, (size, size))
    return windows.reshape(-1, size * size)


def _spread(patches: np.ndarray, image: np.ndarray) -> None:
    """Add patches ``(rows, columns, size, size)`` to the image that they lie on."""
    rows, columns, size, _ = patches.shape
    for i in range(size):
        for j in range(size):
            image[i : i + rows, j : j + columns] += patches[:, :, i, j]


def _most_similar(
    pilot: np.ndarray, rows: np.ndarray, columns: np.ndarray, settings: _Settings
) -> np.ndarray:
    """Numbers of the patches most like those at these rows and columns, ``(groups, count)``.

    The first is the patch itself.
    """
    size, reach, count, _ = settings
    width, height = pilot.shape[1] - size + 1, pilot.shape[0] - size + 1
    steps = np.arange(-reach, reach + 1)
    offsets = np.stack(np.meshgrid(steps, steps, indexing="ij"), -1).reshape(-1, 2)
    distances = np.full((len(offsets), len(rows), len(columns)), np.inf, np.float32)
    for distance, (down, right) in zip(distances, offsets, strict=True):
        ys = (rows + down >= 0) & (rows + down < height)
        xs = (columns + right >= 0) & (columns + right < width)
        if ys.any() and xs.any():
            inside = np.ix_(ys, xs)
            distance[inside] = _distances(pilot, rows[ys], columns[xs], (down, right), size)
    distances = distances.reshape(len(offsets), -1).T
    distances[:, len(offsets) // 2] = -1.0  # the patch itself
    count = min(count, int(np.isfinite(distances).sum(1).min()))
    nearest = np.argpartition(distances, count - 1, 1)[:, :count]
    own = np.argmax(nearest == len(offsets) // 2, 1)
    nearest[np.arange(len(own)), own] = nearest[:, 0]
    nearest[:, 0] = len(offsets) // 2
    places = (rows[:, None] * width + columns).reshape(-1, 1)
    return places + (offsets @ [width, 1])[nearest]


def _distances(
    pilot: np.ndarray, rows: np.ndarray, columns: np.ndarray, offset: tuple[int, int], size: int
) -> np.ndarray:
    """Mean squares between patches and those at an offset, ``(rows, columns)``."""
    (down, right), top, left = offset, rows[0], columns[0]
    height, width = rows[-1] - top + size, columns[-1] - left + size
    here = pilot[top : top + height, left : left + width]
    there = pilot[top + down : top + down + height, left + right : left + right + width]
    squares = np.square(here - there).sum(-1)
    sums = np.zeros((height + 1, width + 1))
    np.cumsum(np.cumsum(squares, 0), 1, out=sums[1:, 1:])
    low, high = np.ix_(rows - top, columns - left), np.ix_(rows - top + size, columns - left + size)
    across = np.ix_(rows - top, columns - left + size), np.ix_(rows - top + size, columns - left)
    return sums[low] + sums[high] - sums[across[0]] - sums[across[1]]


def _posterior_means(
    group: np.ndarray, noisy: np.ndarray, seen: np.ndarray | None, variance: float
) -> tuple[np.ndarray, np.ndarray]:
    """Of noisy patches ``(groups, M, D)``, by the Gaussians of ``(groups, K, D)`` clean ones.

    And the weight of each group's estimates.

    Where some pixels are missing there is one noisy patch of each group, `seen` where it is 1.
    """
    mean = group.mean(1, keepdims=True)
    centred = group - mean
    covariance = centred.transpose(0, 2, 1) @ centred / group.shape[1]
    noise = variance * np.eye(group.shape[-1], dtype=group.dtype)
    if seen is None:
        precision = np.linalg.inv(covariance + noise)
        misfits = precision @ (noisy - mean).transpose(0, 2, 1)
        freedom = group.shape[-1] - variance * np.trace(precision, axis1=1, axis2=2)
        return noisy - variance * misfits.transpose(0, 2, 1), 1 / (1 + freedom)
    known = seen[:, :, None] * covariance * seen[:, None]
    residual = (seen * (noisy - mean)[:, 0])[..., None]
    misfits = seen[..., None] * np.linalg.solve(known + noise, residual)
    return mean + (covariance @ misfits).transpose(0, 2, 1), np.ones(len(group))
