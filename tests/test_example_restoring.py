"""Noise levels, non-local Bayes, tiles and picture files of the denoising tool."""

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("scipy")
pytest.importorskip("PIL")

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "tools"))

import noise_levels
import nonlocal_bayes
import patches
import restoring
from raster import Picture, save_picture
from untrusted import read_picture

SIZE, REACH, COUNT, STRIDE = 3, 3, 6, 2


def scene(rng, shape=(12, 11), channels=1):
    """Edges, and the same with noise."""
    rows, columns = np.indices(shape)
    clean = 100.0 + 80.0 * (rows + columns > 11) - 50.0 * (columns > 7) + 3.0 * rows
    clean = clean[..., None] * np.linspace(1.0, 0.5, channels)
    return clean, clean + 20.0 * rng.standard_normal(clean.shape)


def by_hand(given, pilot, sigma, observed, turn):
    """Non-local Bayes, a pixel at a time in float64: the second step of Lebrun et al.

    But for holes, an estimate counts the more the less the noise can say of its group.
    """
    given, pilot = given @ turn, pilot @ turn
    height, width = (length - SIZE + 1 for length in given.shape[:2])
    total, weight = np.zeros(given.shape), np.zeros(given.shape)

    def at(image, place):
        return image[place[0] : place[0] + SIZE, place[1] : place[1] + SIZE]

    for row in sorted({*range(0, height, STRIDE), height - 1}):
        for column in sorted({*range(0, width, STRIDE), width - 1}):
            near = [
                (r, c)
                for r in range(max(row - REACH, 0), min(row + REACH + 1, height))
                for c in range(max(column - REACH, 0), min(column + REACH + 1, width))
            ]
            own = at(pilot, (row, column))
            near.sort(key=lambda place: np.square(at(pilot, place) - own).sum())
            group = near[:COUNT]
            for channel in range(given.shape[2]):
                clean = np.stack([at(pilot, p)[..., channel].ravel() for p in group])
                mean, covariance = clean.mean(0), np.cov(clean.T, bias=True)
                shrunk = np.linalg.solve(covariance + sigma**2 * np.eye(SIZE**2), covariance)
                share = 1 / (1 + np.trace(shrunk)) if observed.all() else 1.0
                for place in group if observed.all() else [(row, column)]:
                    seen = at(observed, place).ravel()
                    noisy = at(given, place)[..., channel].ravel()
                    known = covariance[np.ix_(seen, seen)] + sigma**2 * np.eye(seen.sum())
                    found = mean + covariance[:, seen] @ np.linalg.solve(
                        known, (noisy - mean)[seen]
                    )
                    at(total, place)[..., channel] += share * found.reshape(SIZE, SIZE)
                    at(weight, place)[..., channel] += share
    return (total / weight) @ turn.T


@pytest.mark.parametrize("band", [1, 2**21], ids=["in bands", "at once"])
@pytest.mark.parametrize(("channels", "missing"), [(1, 0.0), (3, 0.0), (1, 0.4)])
def test_nonlocal_bayes_is_that_of_the_paper(monkeypatch, channels, missing, band):
    rng = np.random.default_rng(0)
    clean, given = scene(rng, channels=channels)
    pilot = clean + 3.0 * rng.standard_normal(clean.shape)  # no two patches equally far
    observed = rng.random(clean.shape[:2]) >= missing
    monkeypatch.setattr(nonlocal_bayes, "_BAND", band)
    settings = {"size": SIZE, "reach": REACH, "count": COUNT, "stride": STRIDE}
    found = nonlocal_bayes.refine(given, pilot, 20.0, observed, **settings)
    turn = np.linalg.qr(np.array([[1, 1, 1], [1, 0, -1], [1, -2, 1]]).T)[0]
    turn = turn if channels == 3 else np.eye(1)
    np.testing.assert_allclose(found, by_hand(given, pilot, 20.0, observed, turn), atol=2e-3)


def test_holes_are_filled_by_what_is_alike():
    """Regular texture, of which half is gone; the groups for noise fill it less well."""
    rng, (rows, columns) = np.random.default_rng(0), np.indices((48, 48))
    clean = (120.0 + 60.0 * np.sin(0.9 * rows) + 40.0 * np.sin(0.6 * columns))[..., None]
    observed = rng.random(clean.shape[:2]) >= 0.5
    given = np.where(observed[..., None], clean, 0.0)
    task = restoring.Task(given, observed, clean, exact=True)
    start = restoring._kept(task, clean + 20.0 * rng.standard_normal(clean.shape))
    found = []
    for has_holes in (True, False):
        image = start
        for _ in range(3):
            image = restoring._kept(task, restoring._refined(task, image, 0.0, has_holes))
        found.append(patches.psnr(image, clean) - patches.psnr(start, clean))
    assert found[0] > max(10.0, found[1] + 5.0)


def test_what_is_missing_is_not_looked_at():
    rng = np.random.default_rng(1)
    clean, given = scene(rng)
    observed = rng.random(clean.shape[:2]) >= 0.3
    spoilt = np.where(observed[..., None], given, 1e4)
    found = [nonlocal_bayes.refine(each, clean, 20.0, observed) for each in (given, spoilt)]
    np.testing.assert_array_equal(*found)


def test_progress_ends_at_one():
    clean, given = scene(np.random.default_rng(2))
    shares = []
    nonlocal_bayes.refine(given, clean, 20.0, progress=shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


@pytest.mark.parametrize("sigma", [5.0, 25.0])
def test_the_noise_level_is_found(sigma):
    rng = np.random.default_rng(3)
    rows, columns = np.indices((96, 96))
    clean = 100.0 + 60.0 * np.sin(rows / 9.0) + 40.0 * (columns > 50)
    image = clean[..., None] + sigma * rng.standard_normal((96, 96, 1))
    assert noise_levels.noise_level(image) == pytest.approx(sigma, rel=0.05)


@pytest.mark.parametrize("channels", [1, 3])
def test_texture_beside_flat_parts_is_no_noise(channels):
    """A quarter of the image varies in all directions, so that these leave none unused."""
    rng = np.random.default_rng(5)
    clean = np.full((96, 96, channels), 100.0)
    clean[:, 72:] += 40.0 * rng.standard_normal((96, 24, channels))
    image = clean + 10.0 * rng.standard_normal(clean.shape)
    assert noise_levels.noise_level(image) == pytest.approx(10.0, rel=0.1)
    flat = patches.cut(image, 5)
    unused = noise_levels.noise_variance(flat - flat.mean(0), np.ones(flat.shape, bool))
    assert unused > 1.5 * 10.0**2


@pytest.mark.parametrize("missing", [0.0, 0.5])
def test_errors_of_a_model_are_no_noise(missing):
    """Three directions of the errors, and the mean square all told as the negative control."""
    rng = np.random.default_rng(4)
    errors = rng.normal(size=(5000, 3)) @ rng.normal(size=(3, 16))
    residuals = (errors + 0.5 * rng.normal(size=errors.shape)).reshape(-1, 4, 4, 1)
    masks = rng.random(residuals.shape) >= missing
    assert noise_levels.noise_variance(residuals, masks) == pytest.approx(0.25, rel=0.15)
    assert np.square(residuals[masks]).mean() > 1.0


def test_the_noise_of_a_small_colour_image_is_not_inflated():
    """Of 64 x 64 pixels, every eighth: what atoms leave of it passed for a level of 41."""
    data = pytest.importorskip("skimage.data")
    clean = data.astronaut()[::8, ::8].astype(float)
    given = clean + 25.0 * np.random.default_rng(0).standard_normal(clean.shape)
    assert noise_levels.noise_level(given) == pytest.approx(25.0, rel=0.1)


@pytest.mark.parametrize("stride", [1, 3, 4])
def test_patches_are_put_together_as_they_were_cut(stride):
    image = np.random.default_rng(4).normal(size=(14, 11, 2))
    found = patches.join(patches.cut(image, 4, stride), image.shape, stride)
    np.testing.assert_allclose(found, image, atol=1e-12)


@pytest.mark.parametrize("length", [40, 50, 99, 100, 101, 777])
def test_tiles_cover_and_overlap(length):
    tiles = list(restoring._tiles((length, 60), 50, 16))
    assert len({(part.stop - part.start) for part, _ in tiles}) == 1  # compiled once
    assert max(part.stop - part.start for part, _ in tiles) <= 50
    parts = sorted({(part.start, part.stop) for part, _ in tiles})
    assert (parts[0][0], parts[-1][1]) == (0, length)
    assert all(left[1] - right[0] >= 16 for left, right in itertools.pairwise(parts))


@pytest.mark.parametrize(
    ("shape", "depth"), [((7, 9), 8), ((7, 9, 3), 8), ((7, 9), 16), ((7, 9, 3), 16), ((7, 9), 32)]
)
def test_a_picture_keeps_size_depth_and_channels(tmp_path, shape, depth):
    rng = np.random.default_rng(5)
    pixels = rng.random(shape) if depth < 32 else rng.normal(size=shape)
    path = save_picture(tmp_path, "mine", Picture(pixels, depth))
    found = read_picture(path, 1.0)
    step = 1e-6 if depth == 32 else 0.5001 / (2**depth - 1)
    assert found.depth == depth
    np.testing.assert_allclose(found.pixels, pixels, atol=step)


@pytest.mark.parametrize("channels", [1, 3])
def test_transparency_stays(tmp_path, channels):
    rng = np.random.default_rng(6)
    pixels, alpha = rng.random((7, 9, channels)), np.round(255 * rng.random((7, 9))) / 255
    found = read_picture(save_picture(tmp_path, "mine", Picture(pixels, 8, alpha)), 1.0)
    assert found.pixels.shape == ((7, 9, 3) if channels == 3 else (7, 9))
    np.testing.assert_allclose(found.alpha, alpha, atol=1e-9)


def test_a_picture_of_no_numbers_is_refused(tmp_path):
    path = save_picture(tmp_path, "mine", Picture(np.full((4, 4), np.nan), 32))
    with pytest.raises(ValueError, match="not finite"):
        read_picture(path, 1.0)
