"""TIFF with broken metadata, with thousands of pages, and with wrong bits; PNG with wrong bits."""

import struct
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from styleaug import FileError
from styleaug.io.files import open_image, save_image
from styleaug.io.stacks import pil_mode
from styleaug.io.tiff import TiledReader

tifffile = pytest.importorskip("tifffile")

VALUES = np.random.default_rng(0).integers(0, 60_000, (3, 16, 20)).astype(np.uint16)


def ome(path: Path) -> Path:
    metadata = {"axes": "ZYX", "PhysicalSizeX": 0.5, "PhysicalSizeXUnit": "µm", "TimeIncrement": 1.0}
    tifffile.imwrite(path, VALUES, ome=True, metadata=metadata)
    return path


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"<Pixels", b"<Pixel\0"),
        (b"</Image>", b"</Imag\xff>"),
        (b'Type="uint16"', b'Type="uint8" '),
        (b'PhysicalSizeX="0.5"', b'PhysicalSizeX="0,5"'),
        (b'PhysicalSizeX="0.5"', b'PhysicalSizeX="   "'),
        (b'TimeIncrement="1.0"', b'TimeIncrement="nan"'),
        (b'SizeZ="3"', b'SizeZ="9"'),
        (b"<?xml", b"<?xm\0"),
    ],
)
def test_a_broken_ome_text_ends_no_run(old, new, tmp_path):
    path = ome(tmp_path / "a.tif")
    content = path.read_bytes()
    assert old in content and len(old) == len(new)
    path.write_bytes(content.replace(old, new))
    try:
        found = open_image(path)
    except FileError as error:
        assert str(path) in str(error)
        return
    save_image(found, tmp_path / "b.tif")
    again = tifffile.imread(tmp_path / "b.tif")
    assert np.array_equal(again.reshape(found.frames.shape), found.frames)


@pytest.mark.parametrize(
    "kind", [{"imagej": True}, {"ome": True}, {"description": "{}", "photometric": "minisblack"}]
)
@given(changes=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), min_size=1, max_size=4))
def test_wrong_bytes_beside_the_pixels_give_our_error(tmp_path_factory, kind, changes):
    folder = tmp_path_factory.mktemp("tiff")
    tifffile.imwrite(folder / "a.tif", VALUES, **kind)
    content = (folder / "a.tif").read_bytes()
    beside = [place for place in (*range(VALUES.nbytes, len(content)), *range(300)) if place < len(content)]
    wrong = bytearray(content)
    for place, value in changes:
        wrong[beside[int(place * len(beside))]] = value
    (folder / "a.tif").write_bytes(wrong)
    try:
        save_image(open_image(folder / "a.tif"), folder / "b.tif")
    except FileError as error:
        assert str(error)


def pages(path: Path, count: int, *, unlike: bool = False, reduced: bool = False) -> Path:
    """Write pages of one strip, which they share."""
    content = bytearray(b"II*\0" + struct.pack("<L", 264) + bytes(256))
    for number in range(count):
        height = 1 + number % 16 if unlike else 16
        tags = [
            (254, 4, int(reduced and number > 0)),
            (256, 4, 16),
            (257, 4, height),
            (258, 3, 8),
            (259, 3, 1),
            (262, 3, 1),
            (273, 4, 8),
            (277, 3, 1),
            (278, 4, height),
            (279, 4, 16 * height),
        ]
        packed = b"".join(struct.pack("<HHLL", tag, kind, 1, value) for tag, kind, value in tags)
        following = len(content) + 6 + len(packed) if number < count - 1 else 0
        content += struct.pack("<H", len(tags)) + packed + struct.pack("<L", following)
    path.write_bytes(content)
    return path


def test_thousands_of_pages(tmp_path, monkeypatch):
    path = pages(tmp_path / "a.tif", 4000)
    started = time.process_time()
    assert pil_mode(path) == "" and time.process_time() - started < 0.5, "PIL reads two of them"
    assert open_image(path).frames.shape == (4000, 16, 16)
    path = pages(tmp_path / "unlike.tif", 4000, unlike=True)
    for read in (open_image, TiledReader):
        with pytest.raises(FileError, match="holds 4,000 pages of different forms"):
            read(path)
    assert pil_mode(pages(tmp_path / "reduced.tif", 4000, reduced=True)) == ""
    monkeypatch.setenv("STYLEAUG_MAX_BYTES", "8G")
    with pytest.raises(FileError, match="images of different sizes"):
        open_image(path)


@pytest.mark.parametrize("read", ["PIL", "tifffile", "tiles"])
def test_no_wrong_bit_of_deflated_pixels_gives_other_pixels(read, tmp_path):
    path = tmp_path / "a.tif"
    values = (VALUES >> 8).astype(np.uint8)
    if read == "PIL":
        Image.fromarray(values[0]).save(path, compression="tiff_deflate")
    else:
        pages = values if read == "tifffile" else values[0]
        tifffile.imwrite(path, pages, compression="zlib", photometric="minisblack")

    def pixels() -> np.ndarray:
        if read == "tiles":
            with TiledReader(path) as reader:
                return reader.read(0, 0, 16, 20)
        found = open_image(path)
        return found.frames if read == "tifffile" else np.asarray(found)

    good, content = pixels(), path.read_bytes()
    with tifffile.TiffFile(path) as file:
        start, size = file.pages[0].dataoffsets[0], file.pages[0].databytecounts[0]
    random, refused = np.random.default_rng(0), 0
    for place in random.integers(start, start + size, 60):
        wrong = bytearray(content)
        wrong[place] ^= 1 << int(random.integers(8))
        path.write_bytes(wrong)
        try:
            assert np.array_equal(pixels(), good), "a bit of the stream that means nothing"
        except FileError:
            refused += 1
    assert refused > 50


def test_a_tile_much_larger_than_its_image(tmp_path):
    path = tmp_path / "a.tif"
    values = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    tifffile.imwrite(path, values, tile=(16, 16), photometric="rgb", compression="zlib")
    content = bytearray(path.read_bytes())
    at = content.index(struct.pack("<H", 323), int.from_bytes(content[4:8], "little"))
    content[at : at + 12] = struct.pack("<HHLL", 323, 4, 1, 16_711_696)
    path.write_bytes(content)
    with pytest.raises(FileError, match="16 x 16711696 pixels"):
        open_image(path)


@pytest.mark.parametrize("depth", [8, 16])
def test_every_wrong_bit_of_the_pixels_of_a_png_is_refused(depth, tmp_path):
    path = tmp_path / "a.png"
    ramp = np.arange(64 * 64).reshape(64, 64)
    Image.fromarray((ramp % 256).astype(np.uint8) if depth == 8 else ramp.astype(np.uint16)).save(path)
    content = path.read_bytes()
    start = content.index(b"IDAT") + 4
    size = int.from_bytes(content[start - 8 : start - 4], "big")
    random = np.random.default_rng(0)
    for place in random.integers(start, start + size + 4, 100):
        wrong = bytearray(content)
        wrong[place] ^= 1 << int(random.integers(8))
        path.write_bytes(wrong)
        with pytest.raises(FileError):
            open_image(path)
