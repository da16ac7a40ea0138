"""Examples read files of others as data, up to a limit, and answer anything else with one line."""

import json
import struct
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
Image = pytest.importorskip("PIL.Image")

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "tools"))

import denoise  # noqa: E402
import train  # noqa: E402
from cli import CommandError  # noqa: E402
from data import load  # noqa: E402
from untrusted import read_picture  # noqa: E402


def one_line(error):
    assert "\n" not in str(error.value)


def write_npz(path, **members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)


def npy(header, body=b""):
    """An array whose header may say what it likes."""
    text = header.encode() + b" " * (63 - (len(header) + 10) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + body


ZEROS = "{'descr': '<f4', 'fortran_order': False, 'shape': (%d, 1000, 1000), }"


def test_what_unpacks_to_more_than_the_limit_is_refused(tmp_path):
    path = tmp_path / "bomb.npz"
    write_npz(path, x=npy(ZEROS % 25, bytes(10**8)))
    assert path.stat().st_size < 2 * 10**5
    with pytest.raises(ValueError, match=r"would unpack to 0\.1 GB.*--most-gigabytes") as error:
        load(str(path), gigabytes=0.05)
    one_line(error)
    assert load(str(path), gigabytes=0.2).x_train.shape[1:] == (1000, 1000)


@pytest.mark.parametrize(
    "content",
    [
        npy(ZEROS % 10**6),  # 4 TB in words
        npy("{'descr': '|O', 'fortran_order': False, 'shape': (2,), }", b"cos\nsystem\n(S'false'"),
        npy("__import__('os').abort()"),
        npy(ZEROS % -5),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3, 3), }", bytes(8)),
        b"",
        b"\x93NUMPY\x09\x00",
    ],
    ids=["header", "objects", "code", "negative", "short", "empty", "version"],
)
def test_hostile_arrays_are_refused(tmp_path, content):
    write_npz(tmp_path / "bad.npz", x=content)
    with pytest.raises(ValueError, match=r"bad\.npz: (cannot be read|would unpack)") as error:
        load(str(tmp_path / "bad.npz"))
    one_line(error)


def test_what_is_no_archive_is_refused(tmp_path):
    for content in (b"", b"PK", b"PK\x03\x04" + bytes(100), b"\x80\x04cos\nsystem\n."):
        (tmp_path / "bad.npz").write_bytes(content)
        with pytest.raises(ValueError, match=r"cannot be read as a \.npz file") as error:
            load(str(tmp_path / "bad.npz"))
        one_line(error)


def png_of(width, height):
    """A PNG of nothing that says it is large."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = (b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (png_of(40_000, 40_000), "would unpack to|more pixels"),
        (png_of(100, 100), "cannot be read as an image"),
        (b"no image", "cannot be read as an image"),
        (b"", "cannot be read as an image"),
        (b"\x89PNG\r\n\x1a\n", "cannot be read as an image"),
        (b"GIF89a" + bytes(20), "cannot be read as an image"),
    ],
)
def test_hostile_pictures_are_refused(tmp_path, content, words):
    (tmp_path / "bad.png").write_bytes(content)
    with pytest.raises(ValueError, match=words) as error:
        read_picture(tmp_path / "bad.png", 4.0)
    one_line(error)


GRAY = np.arange(0, 250, 10, np.uint8).reshape(5, 5)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.fromarray(GRAY), GRAY / 255),
        (Image.fromarray(np.stack([GRAY, 255 - GRAY], -1), "LA"), GRAY / 255),
        (Image.fromarray(GRAY.astype(np.uint16) * 257), GRAY / 255),
        (Image.fromarray(GRAY > 100), (GRAY > 100) * 1.0),
        (Image.fromarray(np.stack([GRAY] * 4, -1)), np.stack([GRAY] * 3, -1) / 255),
        (Image.fromarray(np.stack([GRAY] * 3, -1)).quantize(64), np.stack([GRAY] * 3, -1) / 255),
    ],
    ids=["gray", "alpha", "sixteen bits", "one bit", "colour and alpha", "palette"],
)
def test_pictures_of_every_kind_are_what_they_show(tmp_path, image, expected):
    image.save(tmp_path / "mine.png")
    np.testing.assert_allclose(read_picture(tmp_path / "mine.png", 1.0).pixels, expected, atol=1e-9)


def test_an_image_of_one_value_is_refused(tmp_path):
    Image.fromarray(np.full((20, 20), 7, np.uint8)).save(tmp_path / "flat.png")
    with pytest.raises(CommandError, match="of one value throughout") as error:
        denoise.main([str(tmp_path / "flat.png"), "--noisy", "--out", str(tmp_path / "out")])
    one_line(error)


# What a run was asked for


@pytest.mark.parametrize(
    ("plain", "words"),
    [
        ("[]", "holds no arguments by name"),
        ('{"method": "magic"}', "invalid choice: 'magic'"),
        ('{"steps": -3}', "--steps: expected a whole number of at least 1"),
        ('{"steps": [1]}', "steps must be a string or a number"),
        ('{"smoke": "yes"}', "smoke must be true or false"),
        ('{"magic": 1}', "train.py has no argument 'magic'"),
        ('{"target_ess": "half"}', "invalid float value: 'half'"),
        ("{", "is not a folder of train.py's"),
        ("[" * 100_000, "is not a folder of train.py's"),
    ],
)
def test_broken_arguments_are_one_line(tmp_path, plain, words):
    (tmp_path / train.ARGUMENTS).write_text(plain)
    with pytest.raises(CommandError, match=words) as error:
        train.load_arguments(tmp_path)
    one_line(error)


def test_arguments_come_back_as_they_were(tmp_path):
    given = ["--method", "daps", "--target-ess", "0.3", "--smoke", "--seed", "-3", "--steps", "7"]
    args = train.make_parser().parse_args([*given, "--out", str(tmp_path)])
    train.save_arguments(args, tmp_path)
    assert vars(train.load_arguments(tmp_path)) == vars(args)


def test_a_resume_with_other_arguments_is_refused_before_anything_is_written(tmp_path):
    given = ["--smoke", "--out", str(tmp_path)]
    args = train.make_parser().parse_args([*given, "--seed", "1"])
    train.save_arguments(args, tmp_path)
    before = json.loads((tmp_path / train.ARGUMENTS).read_text())
    for other, words in (
        (["--seed", "5"], "--seed is 5, but .* --seed 1"),
        (["--seed", "1", "--num-latents", "3"], "--num-latents is 3, but .* not given"),
    ):
        with pytest.raises(CommandError, match=words) as error:
            train.main([*given, "--resume", *other])
        one_line(error)
    assert json.loads((tmp_path / train.ARGUMENTS).read_text()) == before
    assert [path.name for path in tmp_path.iterdir()] == [train.ARGUMENTS]
