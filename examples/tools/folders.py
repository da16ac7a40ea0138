"""Folders of pictures, one folder a class, as torchvision's ImageFolder has them."""

from pathlib import Path

import numpy as np
from untrusted import read_picture

__all__ = ["check_shape", "find_pictures", "read_picture_of", "read_pictures"]

# Those of torchvision's ImageFolder.
_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


def read_pictures(root: Path, size: int | None, gigabytes: float) -> np.ndarray:
    """All pictures under a folder, in colour: float32 in [0, 1], ``(N, size, size, 3)``.

    The shorter side is scaled to `size` pixels, and the middle of the longer one is kept.

    Args:
        root: The folder; pictures may lie in folders of it, one a class.
        size: Pixels of a side; None keeps pictures that all have one size as they are.
        gigabytes: What they may take in memory.

    Raises:
        ValueError: If there are fewer than two, one cannot be read, they have several sizes and
            none is asked for, or they take more.
    """
    paths = find_pictures(root)
    first = read_picture_of(paths[0], size, gigabytes)
    needed = len(paths) * first.size * 4 / 1e9
    if needed > gigabytes:
        raise ValueError(
            f"data {root}: {len(paths)} pictures take {needed:.1f} GB in memory, more than the "
            f"{gigabytes:g} that are allowed: take a smaller --image-size, raise "
            "--most-gigabytes, or read them as they are needed, by --workers"
        )
    images = np.empty((len(paths), *first.shape), np.float32)
    for row, path in enumerate(paths):
        image = read_picture_of(path, size, gigabytes)
        if image.shape != first.shape:
            raise ValueError(
                f"data {root}: pictures have several sizes, {first.shape[:2]} of {paths[0].name} "
                f"and {image.shape[:2]} of {path.name}: give one by --image-size"
            )
        images[row] = image
    return images


def find_pictures(root: Path) -> list[Path]:
    """The pictures under a folder, in order.

    Raises:
        ValueError: If there are fewer than two.
    """
    paths = sorted(p for p in root.rglob("*") if p.suffix.lower() in _SUFFIXES)
    if len(paths) < 2:
        raise ValueError(
            f"data {root}: holds {len(paths)} pictures; put at least two there, in folders if you "
            f"like ({', '.join(_SUFFIXES)})"
        )
    return paths


def read_picture_of(path: Path, size: int | None, gigabytes: float) -> np.ndarray:
    """One picture in colour, of the size that is asked for."""
    from PIL import Image, ImageOps

    values = read_picture(path, gigabytes).pixels
    values = np.clip(values, 0.0, 1.0)[..., None] if values.ndim == 2 else np.clip(values, 0.0, 1.0)
    picture = Image.fromarray(np.round(255 * np.broadcast_to(values, (*values.shape[:2], 3)))
                              .astype(np.uint8))  # fmt: skip
    if size is not None:
        picture = ImageOps.fit(picture, (size, size), Image.Resampling.LANCZOS)
    return np.asarray(picture, np.float32) / 255


def check_shape(image: np.ndarray, path: Path, size: int | None) -> None:
    """Check that a picture has the size that was asked for."""
    if size is not None and image.shape != (size, size, 3):
        raise ValueError(f"data {path}: has shape {image.shape}, not {(size, size, 3)}")
