"""What a file may claim: small files cost no gigabytes, and the bound is in one place."""

import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from styleaug.errors import ConfigError, FileError
from styleaug.io.files import decode_image, open_image, save_image
from styleaug.io.limits import EASY_BYTES, MAX_BYTES, MOST_PACKED, check_bytes, check_size, most_bytes


def blank_png(width: int, height: int, depth: int, kind: int) -> bytes:
    """Write a PNG whose header claims a size; its pixels are the first row only."""

    def part(name: bytes, content: bytes) -> bytes:
        crc = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", crc)

    header = part(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))
    palette = part(b"PLTE", bytes(6)) if kind == 3 else b""
    return (
        b"\x89PNG\r\n\x1a\n" + header + palette + part(b"IDAT", zlib.compress(bytes(99))) + part(b"IEND", b"")
    )


def sparse_npy(path, shape, dtype) -> None:
    """Write the header of an array, and a hole for its values."""
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
        )
        file.truncate(file.tell() + int(np.prod(shape)) * np.dtype(dtype).itemsize)


@pytest.mark.parametrize("kind, depth", [(2, 8), (6, 8), (3, 8), (2, 16), (6, 16), (4, 16)])
def test_small_pngs_of_many_pixels(kind, depth, tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(blank_png(11_900, 10_000, depth, kind))
    tracemalloc.start()
    with pytest.raises(FileError, match=r"11900 x 10000 pixels, \d+,000,000 bytes.*STYLEAUG_MAX_BYTES"):
        open_image(path)
    assert tracemalloc.get_traced_memory()[1] < 5e6
    tracemalloc.stop()
    if depth == 8:
        with pytest.raises(FileError, match="the image claims 11900 x 10000 pixels"):
            decode_image(path.read_bytes())


@pytest.mark.parametrize(
    "shape, dtype", [((10_000, 10_000, 30), "u1"), ((9000, 9000, 4), "f8"), ((8, 8, 9**8), "f4")]
)
def test_sparse_arrays(shape, dtype, tmp_path):
    path = tmp_path / "bomb.npy"
    sparse_npy(path, shape, dtype)
    with pytest.raises(FileError, match=f"claims {shape[1]} x {shape[0]} pixels, .*STYLEAUG_MAX_BYTES"):
        open_image(path)


def test_what_is_allowed_goes_by_the_file(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(bytes(1_000_000))
    assert most_bytes(path) == MOST_PACKED * 1_000_000
    assert most_bytes(path, packed=10) == most_bytes("nowhere", 10) == EASY_BYTES
    assert most_bytes("nowhere") == most_bytes(path, float("inf")) == MAX_BYTES
    check_bytes(path, EASY_BYTES, packed=10)
    with pytest.raises(FileError, match="claims 67,108,865 bytes; a file of its size may hold 67,108,864"):
        check_bytes(path, EASY_BYTES + 1, packed=10)


def test_the_bound_can_be_raised_and_lowered(tmp_path, monkeypatch):
    image = Image.new("RGB", (1000, 500))
    save_image(image, tmp_path / "a.png")
    monkeypatch.setenv("STYLEAUG_MAX_BYTES", "1_499_999")
    with pytest.raises(FileError, match="claims 1000 x 500 pixels, 1,500,000 bytes"):
        open_image(tmp_path / "a.png")
    monkeypatch.setenv("STYLEAUG_MAX_BYTES", "2M")
    assert open_image(tmp_path / "a.png").tobytes() == image.tobytes()
    monkeypatch.setenv("STYLEAUG_MAX_BYTES", "8g")
    check_size(tmp_path, 1000, 1000, 4000, 2, packed=1)
    for text in ("-1", "many", "1e9", "nan", "4 G", "_", "9" * 5000):
        monkeypatch.setenv("STYLEAUG_MAX_BYTES", text)
        with pytest.raises(ConfigError, match="8000000000 or 8G, got"):
            open_image(tmp_path / "a.png")
    monkeypatch.setenv("STYLEAUG_MAX_BYTES", "")
    assert open_image(tmp_path / "a.png").tobytes() == image.tobytes()
