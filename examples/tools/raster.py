"""Pictures that are written as they were read: same size, depth and channels."""

import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

__all__ = ["Picture", "save_picture"]

_KINDS = {1: 0, 2: 4, 3: 2, 4: 6}  # channels -> colour type of a PNG


class Picture(NamedTuple):
    """What was read of a file."""

    pixels: np.ndarray  # (H, W) or (H, W, 3) floats, [0, 1] but for those of a file of floats
    depth: int = 8  # bits per channel; 32: floats
    alpha: np.ndarray | None = None  # (H, W) floats in [0, 1]


def save_picture(folder: Path, name: str, picture: Picture) -> Path:
    """Write a PNG, or a TIFF of floats, which PNG has not; returns its path.

    What is beyond [0, 1] is cut off, but for floats.
    """
    if picture.depth == 32:
        from PIL import Image

        path = folder / f"{name}.tiff"
        Image.fromarray(picture.pixels.astype(np.float32)).save(path)
        return path
    pixels = picture.pixels if picture.pixels.ndim == 3 else picture.pixels[..., None]
    if picture.alpha is not None:
        pixels = np.concatenate([pixels, picture.alpha[..., None]], -1)
    steps = np.rint(np.clip(pixels, 0.0, 1.0) * (2**picture.depth - 1))
    path = folder / f"{name}.png"
    path.write_bytes(_png(steps.astype(f">u{picture.depth // 8}"), picture.depth))
    return path


def _png(pixels: np.ndarray, depth: int) -> bytes:
    """A PNG file; Pillow writes none of 16 bits in colour."""
    height, width, channels = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, depth, _KINDS[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    parts = (b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*part) for part in parts)


def _chunk(kind: bytes, content: bytes) -> bytes:
    length, check = struct.pack(">I", len(content)), struct.pack(">I", zlib.crc32(kind + content))
    return length + kind + content + check
