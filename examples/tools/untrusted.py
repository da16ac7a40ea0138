"""Files from others: read as data alone, and no more of them than a limit allows.

A small file may unpack to any size, and a header may claim any: both are looked at before anything
is unpacked.
"""

import math
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from raster import Picture

__all__ = ["GIGABYTES", "read_array", "read_arrays", "read_picture"]

GIGABYTES = 4.0  # that a file may unpack to, unless its user allows more
# Of modes of Pillow: the greatest value, and what a mode that is none of these is turned to.
_SCALES = {"1": 1.0, "L": 255.0, "RGB": 255.0, "I;16": 65535.0, "I": 65535.0, "F": 1.0}
_TO = {"P": "RGB", "PA": "RGB", "LA": "L", "La": "L", "RGBA": "RGB", "RGBa": "RGB", "RGBX": "RGB"}
_TO |= {"CMYK": "RGB", "YCbCr": "RGB", "LAB": "RGB", "HSV": "RGB", "I;16B": "I", "I;16L": "I"}
_ALPHAS = ("PA", "LA", "La", "RGBA", "RGBa")
_SWAPPED = {"16B": "16L", "16L": "16B"}  # which of two bytes comes first
_SWAPPED["16N"] = {"little": "16B", "big": "16L"}[sys.byteorder]


def read_arrays(path: Path, names: tuple[str, ...], gigabytes: float) -> dict[str, np.ndarray]:
    """The arrays of such names in a .npz file: the first is there, others that it lacks are not.

    Raises:
        ValueError: If it cannot be read, holds Python objects, or would unpack to more.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = {name: f"{name}.npy" for name in names}
            held = archive.namelist()
            if members[names[0]] not in held:
                others = ", ".join(sorted(name.removesuffix(".npy") for name in held))
                raise _RefusedError(
                    f"{path}: has no array `{names[0]}`, only {others or 'nothing'}; save it by "
                    f"np.savez(path, {names[0]}=...)"
                )
            found = {n: m for n, m in members.items() if m in held}
            _check_sizes(archive, list(found.values()), path, gigabytes)
            return {name: _array(archive, member) for name, member in found.items()}
    except _RefusedError as error:
        raise ValueError(str(error)) from None
    except Exception as error:  # whatever a header makes of a reader
        raise _unreadable(path, "a .npz file of arrays", error) from None


def read_array(path: Path, gigabytes: float) -> np.ndarray:
    """The array of a .npy file.

    Raises:
        ValueError: If it cannot be read, holds Python objects, or is larger than that.
    """
    try:
        with path.open("rb") as file:
            shape, dtype = _header(file)
            _check_size(path, math.prod(shape) * dtype.itemsize, gigabytes)
            file.seek(0)
            return np.lib.format.read_array(file, allow_pickle=False)
    except _RefusedError as error:
        raise ValueError(str(error)) from None
    except Exception as error:  # whatever a header makes of a reader
        raise _unreadable(path, "a .npy file of an array", error) from None


class _RefusedError(Exception):
    """What is wrong with a file is known."""


def _unreadable(path: Path, kind: str, error: Exception) -> ValueError:
    if isinstance(error, FileNotFoundError):
        return ValueError(f"no such file: {path}")
    reason = getattr(error, "strerror", None) or str(error).split("\n")[0] or type(error).__name__
    reason = "no format is known" if "cannot identify" in reason else reason
    return ValueError(f"{path}: cannot be read as {kind} ({reason})")


def _check_sizes(
    archive: zipfile.ZipFile, members: list[str], path: Path, gigabytes: float
) -> None:
    """Compare what the archive and the headers of its arrays say with the limit."""
    unpacked = sum(archive.getinfo(member).file_size for member in members)
    claimed = 0
    for member in members:
        with archive.open(member) as file:
            shape, dtype = _header(file)
        claimed += math.prod(shape) * dtype.itemsize
    _check_size(path, max(unpacked, claimed), gigabytes)


def _check_size(path: Path | None, size: int, gigabytes: float) -> None:
    if size > gigabytes * 1e9:
        raise _RefusedError(
            f"{path}: would unpack to {size / 1e9:.3g} GB, and --most-gigabytes allows "
            f"{gigabytes:g}: raise it if you trust the file"
        )


def _header(file: Any) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type that the header of an array claims."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0
    if version != (1, 0):
        read = np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are not loaded")
    return shape, dtype


def _array(archive: zipfile.ZipFile, member: str) -> np.ndarray:
    file: BinaryIO
    with archive.open(member) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def read_picture(path: Path, gigabytes: float) -> Picture:
    """A gray or colour image of 8 or 16 bits, or a gray one of floats.

    Raises:
        ValueError: If it cannot be read as one image, or would unpack to more.
    """
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return _picture(path, gigabytes)
    except _RefusedError as error:
        raise ValueError(str(error)) from None
    except Image.DecompressionBombError:
        raise ValueError(f"{path}: has more pixels than Pillow opens") from None
    except Exception as error:  # whatever a broken file makes of a reader
        raise _unreadable(path, "an image", error) from None


def _picture(path: Path, gigabytes: float) -> Picture:
    from PIL import Image

    with Image.open(path) as image:
        width, height = image.size
        _check_size(path, 8 * 3 * width * height, gigabytes)
        if getattr(image, "n_frames", 1) > 1:
            raise ValueError(f"it holds {image.n_frames} images")
        low = _low_bytes(path, image)
        alpha = image.convert("RGBA").getchannel("A") if image.mode in _ALPHAS else None
        image = image.convert(_TO[image.mode]) if image.mode in _TO else image
        if image.mode not in _SCALES:
            raise ValueError(f"its pixels are of the kind {image.mode!r}")
        pixels = np.asarray(image, np.float64)
        if not np.isfinite(pixels).all():
            raise ValueError("some pixels are not finite")
        if low is not None:
            return Picture((256 * pixels + low) / 65535, 16)
        depth = {"I": 16, "I;16": 16, "F": 32}.get(image.mode, 8)
        transparent = None if alpha is None else np.asarray(alpha, np.float64) / 255
        return Picture(pixels / _SCALES[image.mode], depth, transparent)


def _low_bytes(path: Path, image: Any) -> np.ndarray | None:
    """The lower bytes of a colour image of 16 bits, of which Pillow reads the upper ones."""
    from PIL import Image

    modes = [str(tile[3] if isinstance(tile[3], str) else tile[3][0]) for tile in image.tile]
    if not any(";16" in mode for mode in modes) or image.mode.startswith("I"):
        return None
    kinds = {mode.partition(";")[2] for mode in modes}
    if image.mode != "RGB" or not kinds <= set(_SWAPPED):
        raise ValueError(f"colour of 16 bits is read as RGB alone, not as {modes[0]}")
    with Image.open(path) as again:
        for i, tile in enumerate(again.tile):
            given = tile[3] if isinstance(tile[3], str) else tile[3][0]
            colours, _, order = given.partition(";")
            swapped = f"{colours};{_SWAPPED[order]}"
            settings = swapped if isinstance(tile[3], str) else (swapped, *tile[3][1:])
            again.tile[i] = type(tile)(*tile[:3], settings)
        return np.asarray(again, np.float64)
