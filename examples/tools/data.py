"""Images for the examples, as plain NumPy arrays in [0, 1].

By name, digits of scikit-learn or a data set of torchvision; or one's own, a .npz file or a folder
of pictures, one folder a class.
"""

import contextlib
import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
from folders import read_pictures
from untrusted import GIGABYTES, read_arrays

__all__ = ["NAMES", "Dataset", "draw_pixels", "load"]

NAMES = ("digits", "mnist", "fashion_mnist", "cifar10")
_TORCHVISION = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST", "cifar10": "CIFAR10"}


class Dataset(NamedTuple):
    """Images of shape (N, H, W) or (N, H, W, C), float32 in [0, 1].

    Or in other units: then ``x * scale + offset`` is in [0, 1].
    """

    name: str
    x_train: np.ndarray
    x_test: np.ndarray
    offset: np.ndarray | float = 0.0
    scale: float = 1.0

    @property
    def binary(self) -> bool:
        """Whether every pixel is 0 or 1."""
        return bool(np.isin(self.x_train, (0, 1)).all() and np.isin(self.x_test, (0, 1)).all())

    def binarized(self) -> "Dataset":
        """Pixels above one half are 1, others 0; for MNIST the published threshold of 127."""
        cut = [(x > 0.5).astype(np.float32) for x in (self.x_train, self.x_test)]
        return self._replace(x_train=cut[0], x_test=cut[1])

    def standardized(self) -> "Dataset":
        """Mean 0 of each channel, and variance 1 of all, over the training images."""
        offset, scale = self.x_train.mean((0, 1, 2)), float(self.x_train.std() + 1e-6)
        made = [((x - offset) / scale).astype(np.float32) for x in (self.x_train, self.x_test)]
        return Dataset(self.name, *made, offset, scale)

    def in_bytes(self) -> "Dataset":
        """Whole numbers 0 to 255."""
        made = [np.round(255 * x).astype(np.float32) for x in (self.x_train, self.x_test)]
        return Dataset(self.name, *made, 0.0, 1 / 255)

    def to_unit(self, images: np.ndarray) -> np.ndarray:
        """Images like these, as pictures in [0, 1], gray ones without a channel."""
        images = np.clip(images * self.scale + self.offset, 0.0, 1.0).astype(np.float32)
        return images[..., 0] if images.ndim == 4 and images.shape[-1] == 1 else images

    def with_channels(self) -> "Dataset":
        """Gray images with a channel of their own, ``(N, H, W, 1)``."""
        if self.x_train.ndim == 4:
            return self
        return self._replace(x_train=self.x_train[..., None], x_test=self.x_test[..., None])

    def drawn(self, seed: int = 0) -> "Dataset":
        """Test pixels drawn once, 1 with their gray value for a probability.

        Training images stay gray, to be drawn anew at every step; the seed is not that of the run,
        so that all runs are tested on the same images.
        """
        return self._replace(x_test=draw_pixels(self.x_test, seed))

    def fewer_tests(self, num_test: int) -> "Dataset":
        """A part of the test images, the same for all runs; MNIST's first half is the easier."""
        rows = np.random.default_rng(0).permutation(len(self.x_test))[:num_test]
        return self._replace(x_test=self.x_test[rows])

    def head(self, num_train: int, num_test: int) -> "Dataset":
        """The first images only."""
        return self._replace(x_train=self.x_train[:num_train], x_test=self.x_test[:num_test])


def draw_pixels(images: np.ndarray, seed: int) -> np.ndarray:
    """Binary images, a pixel's gray value being its probability of a 1."""
    return (np.random.default_rng(seed).random(images.shape) < images).astype(np.float32)


def load(
    name_or_path: str,
    root: str | Path = "data",
    *,
    seed: int = 0,
    size: int | None = None,
    gigabytes: float = GIGABYTES,
) -> Dataset:
    """Load a data set by name, or the arrays `x` and, if there is one, `x_test` of a .npz file.

    Args:
        name_or_path: One of `NAMES`, the path of a .npz file, or a folder of pictures.
        root: Where data sets that are downloaded are kept.
        seed: Seed of the split, where a data set comes without one: a tenth is for testing.
        size: Pixels of a side, to which pictures of a folder are scaled and cropped.
        gigabytes: What a .npz file or the pictures may unpack to.

    Raises:
        ValueError: If there is no such data set, or the file cannot be used; says why.
    """
    if name_or_path == "digits":
        return _digits(seed)
    if name_or_path in _TORCHVISION:
        return _torchvision(name_or_path, Path(root))
    path = Path(name_or_path)
    if path.suffix == ".npz":
        return _npz(path, seed, gigabytes)
    if path.is_dir():
        images = read_pictures(path, size, gigabytes)
        return Dataset(path.name, *_split(images, seed, fraction=0.1))
    found = "is neither a .npz file nor a folder" if path.exists() else "no such folder"
    raise ValueError(
        f"data {name_or_path!r}: {found}; choose one of {', '.join(NAMES)}, or give a .npz file "
        "or a folder of pictures"
    )


def _digits(seed: int) -> Dataset:
    from sklearn.datasets import load_digits

    images = (load_digits().images / 16).astype(np.float32)
    return Dataset("digits", *_split(images, seed, fraction=1 / 6))


def _torchvision(name: str, root: Path) -> Dataset:
    try:
        from torchvision import datasets
    except ImportError as error:
        raise ValueError(
            f"data {name} needs torchvision ({error}): pip install torchvision"
        ) from None
    kind = getattr(datasets, _TORCHVISION[name])
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            train, test = (kind(root, train=train, download=True) for train in (True, False))
    except (OSError, RuntimeError) as error:
        place = root / (f"{_TORCHVISION[name]}/raw" if "mnist" in name else "cifar-10-batches-py")
        raise ValueError(
            f"data {name} cannot be had ({error}): put its files under {place}, or try --data "
            "digits, which needs no download"
        ) from None
    return Dataset(name, *(_to_unit(np.asarray(found.data)) for found in (train, test)))


def _npz(path: Path, seed: int, gigabytes: float) -> Dataset:
    found = read_arrays(path, ("x", "x_test"), gigabytes)
    images = {key: _checked(array, f"{path}: `{key}`") for key, array in found.items()}
    if "x_test" not in images:
        return Dataset(path.stem, *_split(images["x"], seed, fraction=0.1))
    if images["x"].shape[1:] != images["x_test"].shape[1:]:
        raise ValueError(
            f"{path}: images of `x` and `x_test` must have one shape, got "
            f"{images['x'].shape[1:]} and {images['x_test'].shape[1:]}"
        )
    return Dataset(path.stem, images["x"], images["x_test"])


def _checked(images: np.ndarray, name: str) -> np.ndarray:
    """Check a user's images and bring them to float32 in [0, 1]."""
    if images.ndim not in (3, 4):
        raise ValueError(f"{name} must have shape (N, H, W) or (N, H, W, C), got {images.shape}")
    if images.size == 0 or len(images) < 2:
        raise ValueError(f"{name} must hold at least two images, got shape {images.shape}")
    if images.dtype == np.uint8 or images.dtype == bool:
        return _to_unit(images)
    if not np.issubdtype(images.dtype, np.floating):
        raise ValueError(f"{name} must be uint8, or float in [0, 1], got {images.dtype}")
    if num_bad := int((~np.isfinite(images)).sum()):
        raise ValueError(f"{name} holds {num_bad} values that are NaN or infinite: remove them")
    low, high = float(images.min()), float(images.max())
    if low < 0 or high > 1:
        raise ValueError(
            f"{name} must lie in [0, 1], got values from {low:g} to {high:g}: rescale it, or save "
            "0 ... 255 as uint8"
        )
    return images.astype(np.float32)


def _to_unit(images: np.ndarray) -> np.ndarray:
    scale = np.float32(255 if images.dtype == np.uint8 else 1)
    return images.astype(np.float32) / scale


def _split(images: np.ndarray, seed: int, *, fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """Shuffle, and set a part apart for testing."""
    order = np.random.default_rng(seed).permutation(len(images))
    num_test = max(1, round(fraction * len(images)))
    return images[order[num_test:]], images[order[:num_test]]
