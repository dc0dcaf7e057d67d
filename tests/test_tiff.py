"""TIFF and PNG beyond PIL: parts, pyramids, stacks, 16-bit colour, channels; nothing is lost unsaid."""

import resource
import shutil
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import skimage
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from specimens import bank_of, pil, tiny_adain

from styleaug import FileError, apply_folder
from styleaug.io import tiff
from styleaug.io.files import MAX_PIXELS, Scan, open_image, save_image
from styleaug.io.tiff import TiledReader, write_tiled
from styleaug.sheets import open_rgb
from styleaug.training.data import read_image

tifffile = pytest.importorskip("tifffile")
imagecodecs = pytest.importorskip("imagecodecs")

RNG = np.random.default_rng(0)
SHIPPED = Path(skimage.__file__).parent / "data"


def noise(shape: tuple[int, ...], dtype: str = "uint8") -> np.ndarray:
    if np.dtype(dtype).kind == "f":
        return RNG.random(shape).astype(dtype)
    low, high = max(-30_000, np.iinfo(dtype).min), min(65_535, np.iinfo(dtype).max)
    return RNG.integers(low, high, shape, endpoint=True).astype(dtype)


RGB = {"photometric": "rgb"}
GREY = {"photometric": "minisblack"}
KINDS = {  # how each is written, and the axes that its pixels have in the file
    "one strip": (noise((123, 157, 3)), RGB),
    "strips": (noise((123, 157, 3)), {**RGB, "rowsperstrip": 10, "compression": "lzw"}),
    "tiles": (noise((123, 157, 3)), {**RGB, "tile": (32, 48)}),
    "predictor": (noise((123, 157, 3)), {**RGB, "tile": (32, 48), "compression": "zlib", "predictor": True}),
    "16 bits": (noise((123, 157, 3), "uint16"), {**RGB, "tile": (64, 64), "compression": "zstd"}),
    "big endian": (noise((123, 157, 3), "uint16"), {**RGB, "byteorder": ">"}),
    "big endian tiles": (noise((123, 157), "int16"), {**GREY, "byteorder": ">", "tile": (32, 32)}),
    "alpha": (noise((123, 157, 4)), {**RGB, "extrasamples": ["unassalpha"], "tile": (32, 32)}),
    "separate": (noise((3, 123, 157)), {**RGB, "planarconfig": "separate", "tile": (32, 32)}),
    "separate strips": (
        noise((3, 123, 157), "uint16"),
        {**RGB, "planarconfig": "separate", "rowsperstrip": 7},
    ),
    "channels": (noise((5, 123, 157), "uint16"), {**GREY, "ome": True, "metadata": {"axes": "CYX"}}),
    "floats": (noise((123, 157), "float32"), {**GREY, "tile": (16, 16), "compression": "lzw"}),
    "bigtiff": (noise((123, 157)), {**GREY, "bigtiff": True}),
}


def last(values: np.ndarray) -> np.ndarray:
    """Give pixels as `(H, W, C)`."""
    if values.ndim == 2:
        return values[..., None]
    return values if values.shape[2] in (3, 4) else values.transpose(1, 2, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_parts_are_those_of_the_whole(kind, tmp_path):
    values, options = KINDS[kind]
    tifffile.imwrite(tmp_path / "a.tif", values, **options)
    whole = last(values)
    rng = np.random.default_rng(1)
    with TiledReader(tmp_path / "a.tif") as reader:
        assert reader.shape == whole.shape and reader.dtype == values.dtype.newbyteorder("=")
        assert reader.alpha == (kind == "alpha") and reader.levels == [(123, 157)]
        for _ in range(20):
            top, left = rng.integers(0, 122), rng.integers(0, 156)
            height, width = rng.integers(1, 124 - top), rng.integers(1, 158 - left)
            part = reader.read(top, left, height, width)
            assert part.dtype == reader.dtype
            assert np.array_equal(part, whole[top : top + height, left : left + width])
        with pytest.raises(ValueError, match="not inside"):
            reader.read(100, 0, 24, 10)


def test_only_the_segments_that_are_needed_are_decoded(tmp_path, monkeypatch):
    tifffile.imwrite(tmp_path / "a.tif", noise((512, 512, 3)), **RGB, tile=(64, 64), compression="zlib")
    with TiledReader(tmp_path / "a.tif") as reader:
        decoded = []
        before = reader.planes[0].decode
        monkeypatch.setattr(reader.planes[0], "decode", lambda *at: decoded.append(at) or before(*at))
        reader.read(70, 70, 50, 50)
        assert decoded == [(0, 9)]
        reader.read(60, 60, 10, 10)
        assert decoded == [(0, 9), (0, 0), (0, 1), (0, 8)], "9 was kept"
        monkeypatch.setattr(tiff, "_CACHE_BYTES", 64 * 64 * 3 * 4)
        reader.read(0, 0, 512, 512)
        assert len(reader.cache) == 4 and reader.cached == 64 * 64 * 3 * 4


def pyramid(path: Path, *, inside: bool) -> np.ndarray:
    """Write 512 x 768 with two reduced copies, as OME (inside) or as libvips does."""
    values = np.asarray(Image.fromarray(noise((8, 12, 3))).resize((768, 512), Image.Resampling.BICUBIC))
    form = {**RGB, "tile": (128, 128), "compression": "zlib", "metadata": None}
    with tifffile.TiffWriter(path) as writer:
        writer.write(values, **form, subifds=2 if inside else None)
        for step in (2, 4):
            writer.write(np.ascontiguousarray(values[::step, ::step]), **form, subfiletype=1)
    return values


@pytest.mark.parametrize("inside", [True, False])
def test_pyramids(inside, tmp_path):
    values = pyramid(tmp_path / "a.tif", inside=inside)
    with TiledReader(tmp_path / "a.tif") as reader:
        assert reader.levels == [(512, 768), (256, 384), (128, 192)]
        assert np.array_equal(reader.thumbnail(128), values[::4, ::4])
        assert np.array_equal(reader.thumbnail(129), values[::2, ::2])
        assert reader.thumbnail(60).shape == (64, 96, 3)
        assert np.array_equal(reader.read(10, 20, 30, 40, level=1), values[::2, ::2][10:40, 20:60])
    small = open_image(tmp_path / "a.tif", short_side=100)
    assert isinstance(small, Scan) and np.array_equal(small.frames[0], values[::4, ::4])
    assert isinstance(open_image(tmp_path / "a.tif"), Image.Image), "the whole image is read as ever"
    assert read_image(tmp_path / "a.tif", 100).shape == (3, 100, 150)


@pytest.mark.parametrize("options", [{}, {"tile": (64, 64), "compression": "zlib"}, {"rowsperstrip": 16}])
def test_thumbnails_are_means(options, tmp_path):
    values = noise((240, 400, 3))
    tifffile.imwrite(tmp_path / "a.tif", values, **RGB, **options)
    with TiledReader(tmp_path / "a.tif") as reader:
        small = reader.thumbnail(55)
    assert small.shape == (60, 100, 3) and small.dtype == np.uint8
    assert np.abs(small - values.reshape(60, 4, 100, 4, 3).mean(axis=(1, 3))).max() <= 0.5


def tiles_of(values: np.ndarray, side: int):
    for top in range(0, values.shape[0], side):
        for left in range(0, values.shape[1], side):
            yield values[top : top + side, left : left + side]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_in_tiles_comes_back(kind, tmp_path):
    values, options = KINDS[kind]
    resolution = {"resolution": (120.5, 240), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(tmp_path / "a.tif", values, **options, **resolution, iccprofile=b"a profile of colours")
    with TiledReader(tmp_path / "a.tif") as reader:
        write_tiled(
            tmp_path / "b.tif", reader.shape, reader.dtype, tiles_of(last(values), 64), tile=64, like=reader
        )
        before = reader.page
        with TiledReader(tmp_path / "b.tif") as again:
            assert np.array_equal(again.read(0, 0, 123, 157), last(values)) and again.alpha == reader.alpha
            page = again.page
            assert page.is_tiled and page.tilewidth == 64
            assert page.compression == before.compression and page.iccprofile == before.iccprofile
            assert page.resolution == before.resolution and page.resolutionunit == before.resolutionunit
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tif", "b.tif"]


def test_jpeg_stays_jpeg(tmp_path):
    values = np.asarray(pil("RGB", (12, 8)).resize((192, 128), Image.Resampling.BICUBIC))
    tifffile.imwrite(tmp_path / "a.tif", values, **RGB, tile=(64, 64), compression="jpeg")
    with TiledReader(tmp_path / "a.tif") as reader:
        found = reader.read(0, 0, 128, 192)
        assert np.abs(found.astype(int) - values).mean() < 6
        write_tiled(tmp_path / "b.tif", reader.shape, reader.dtype, tiles_of(found, 64), tile=64, like=reader)
    with TiledReader(tmp_path / "b.tif") as again:
        assert again.page.compression == 7
        assert np.abs(again.read(0, 0, 128, 192).astype(int) - found).mean() < 2


def test_a_write_that_fails_leaves_nothing(tmp_path):
    def tiles():
        yield np.zeros((64, 64, 3), np.uint8)
        raise FileError("stop")

    with pytest.raises(FileError, match="stop"):
        write_tiled(tmp_path / "a.tif", (128, 128, 3), np.dtype("u1"), tiles(), tile=64)
    assert not list(tmp_path.iterdir())


def test_grey_and_palettes_are_read_as_light(tmp_path):
    grey, colours = noise((30, 40)), noise((3, 256), "uint16")
    tifffile.imwrite(tmp_path / "a.tif", grey, photometric="miniswhite")
    tifffile.imwrite(tmp_path / "b.tif", grey, photometric="palette", colormap=colours)
    with TiledReader(tmp_path / "a.tif") as reader:
        assert np.array_equal(reader.read(0, 0, 30, 40)[..., 0], 255 - grey)
    with TiledReader(tmp_path / "b.tif") as reader:
        assert np.array_equal(reader.read(0, 0, 30, 40), (colours.T >> 8)[grey])
    deep = noise((30, 40), "uint16")
    tifffile.imwrite(tmp_path / "c.tif", np.stack([deep, deep]), photometric="miniswhite")
    found = open_image(tmp_path / "c.tif")
    assert isinstance(found, Scan) and np.array_equal(found.frames[0], 65535 - deep)
    save_image(found, tmp_path / "d.tif")
    assert np.array_equal(tifffile.imread(tmp_path / "d.tif")[1], deep), "in its own sense"


STACKS = {  # pixels, options, frames, and whether they are slices of a volume
    "pages": (noise((4, 20, 30)), GREY, (4, 20, 30), False),
    "plain pages": (noise((4, 20, 30), "uint16"), {**GREY, "metadata": None}, (4, 20, 30), False),
    "colour pages": (noise((4, 20, 30, 3)), RGB, (4, 20, 30, 3), False),
    "ImageJ": (noise((4, 2, 20, 30), "uint16"),
               {"imagej": True, "metadata": {"axes": "ZCYX", "spacing": 2.5}}, (4, 20, 30, 2), True),
    "OME": (noise((3, 4, 2, 20, 30), "uint16"),
            {**GREY, "ome": True, "metadata": {"axes": "TZCYX", "PhysicalSizeX": 0.5}, "compression": "zlib"},
            (12, 20, 30, 2), True),
    "OME times": (noise((3, 20, 30)), {**GREY, "ome": True, "metadata": {"axes": "TYX"}}, (3, 20, 30), False),
    "16-bit colour": (noise((20, 30, 3), "uint16"), RGB, (1, 20, 30, 3), False),
    "16-bit alpha": (noise((20, 30, 4), "uint16"), {**RGB, "extrasamples": ["unassalpha"]},
                     (1, 20, 30, 3), False),
    "16-bit planes": (noise((3, 20, 30), "uint16"), {**RGB, "planarconfig": "separate"},
                      (1, 20, 30, 3), False),
    "five channels": (noise((20, 30, 5)), {**GREY, "planarconfig": "contig"}, (1, 20, 30, 5), False),
    "floats": (noise((20, 30), "float32"), GREY, (1, 20, 30), False),
    "short floats": (noise((20, 30), "float16"), GREY, (1, 20, 30), False),
    "signs": (noise((20, 30), "int16"), GREY, (1, 20, 30), False),
    "long": (200 * noise((20, 30), "uint32"), GREY, (1, 20, 30), False),
}  # fmt: skip


@pytest.mark.parametrize("kind", STACKS)
def test_stacks_come_back(kind, tmp_path):
    values, options, shape, volume = STACKS[kind]
    tifffile.imwrite(tmp_path / "a.tif", values, **options)
    found = open_image(tmp_path / "a.tif")
    assert isinstance(found, Scan) and found.frames.shape == shape and found.volume == volume
    if values.dtype.kind == "u" and values.itemsize <= 2:
        assert found.span == (0, np.iinfo(values.dtype).max)
    save_image(found, tmp_path / "b.tif")
    with tifffile.TiffFile(tmp_path / "a.tif") as before, tifffile.TiffFile(tmp_path / "b.tif") as after:
        assert np.array_equal(before.asarray(), after.asarray())
        assert (
            before.series[0].axes == after.series[0].axes and before.series[0].dtype == after.series[0].dtype
        )
        for fact in ("compression", "photometric", "planarconfig", "extrasamples"):
            assert getattr(before.pages[0], fact) == getattr(after.pages[0], fact)
        assert (before.is_ome, before.is_imagej) == (after.is_ome, after.is_imagej)
        if kind == "ImageJ":
            assert after.imagej_metadata["spacing"] == 2.5
        if kind == "OME":
            assert 'PhysicalSizeX="0.5"' in after.ome_metadata


def test_stacks_that_scikit_image_carries(tmp_path):
    for name, shape in [("multipage.tif", (2, 15, 10)), ("multipage_rgb.tif", (2, 10, 10, 3))]:
        found = open_image(SHIPPED / name)
        assert isinstance(found, Scan) and found.frames.shape == shape
        save_image(found, tmp_path / name)
        assert np.array_equal(tifffile.imread(tmp_path / name), tifffile.imread(SHIPPED / name))
        with pytest.raises(FileError, match="a stack of shape"):
            TiledReader(SHIPPED / name)


def test_every_picture_that_scikit_image_carries():
    found = sorted(path for suffix in ("png", "jpg", "tif") for path in SHIPPED.glob(f"*.{suffix}"))
    assert len(found) >= 20
    for path in found:
        assert open_rgb(path, 64).mode == "RGB"
        assert read_image(path, 32).shape[0] == 3


def test_pages_of_different_sizes_are_refused(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for side in (10, 20):
            writer.write(noise((side, side, 3)), **RGB, metadata=None)
    with pytest.raises(FileError, match=r"a\.tif holds 2 images of different sizes"):
        open_image(tmp_path / "a.tif")


def test_stacks_through_apply(tmp_path):
    (tmp_path / "in").mkdir()
    for kind, (values, options, _, _) in STACKS.items():
        tifffile.imwrite(tmp_path / "in" / f"{kind}.tif", values, **options)
    (tmp_path / "in" / "broken.tif").write_bytes(b"II*\0 and nothing more")
    generator = tiny_adain()
    for strength in (0.0, 0.5):
        out = tmp_path / str(strength)
        result = apply_folder(
            tmp_path / "in", out, bank=bank_of(generator), generator=generator, strength=strength
        )
        assert [path.name for path, _ in result.failed] == ["broken.tif"]
        for kind, (values, *_) in STACKS.items():
            after = tifffile.imread(out / f"{kind}.tif")
            off = np.abs(after.astype(float) - values.astype(float)).max()
            exact = values.dtype.kind in "iu" and values.itemsize <= 2
            allowed = (
                0
                if exact
                else 2e-3
                if values.dtype == np.float16
                else 1e-5 * np.abs(values.astype(float)).max()
            )
            assert (off <= allowed) == (strength == 0), kind
            if kind == "16-bit colour" and strength:
                assert len(np.unique(after)) > 256
            if kind == "16-bit alpha":
                assert np.array_equal(after[..., 3], values[..., 3])


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_png_of_sixteen_bit_colour(channels, tmp_path):
    (tmp_path / "in").mkdir()
    values = noise((40, 30, channels), "uint16")
    if channels != 3:
        values[..., -1] = 40_000
    packed = bytes(imagecodecs.png_encode(values))
    (tmp_path / "in" / "a.png").write_bytes(packed)
    found = open_image(tmp_path / "in" / "a.png")
    assert isinstance(found, Scan) and found.span == (0, 65535)
    colours = 1 if channels == 2 else 3
    assert np.array_equal(found.frames.reshape(40, 30, colours), values[..., :colours])
    generator = tiny_adain()
    for strength in (0.0, 0.5):
        out = tmp_path / str(strength)
        apply_folder(tmp_path / "in", out, bank=bank_of(generator), generator=generator, strength=strength)
        after = imagecodecs.png_decode((out / "a.png").read_bytes())
        assert after.dtype == np.uint16 and np.array_equal(after, values) == (strength == 0)
        assert np.array_equal(after[..., colours:], values[..., colours:]), "transparency stays"
        assert len(np.unique(after[..., :colours])) > 256


def test_png_keeps_its_profile(tmp_path):
    packed = bytes(imagecodecs.png_encode(noise((8, 9, 3), "uint16")))
    Image.new("RGB", (4, 4)).save(tmp_path / "p.png", icc_profile=b"a profile", dpi=(300, 300))
    donor = (tmp_path / "p.png").read_bytes()
    parts = donor[33 : donor.index(b"IDAT") - 4]
    (tmp_path / "a.png").write_bytes(packed[:33] + parts + packed[33:])
    save_image(open_image(tmp_path / "a.png"), tmp_path / "b.png")
    with Image.open(tmp_path / "b.png") as image:
        assert image.info["icc_profile"] == b"a profile" and round(image.info["dpi"][0]) == 300


def test_png_bombs(tmp_path):
    head = struct.pack(">IIBBBBB", 100_000, 100_000, 16, 2, 0, 0, 0)
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + head + bytes(100))
    with pytest.raises(FileError, match="100000 x 100000 pixels"):
        open_image(tmp_path / "a.png")


@pytest.mark.parametrize("side", [20_000, 2**31 - 1])
def test_tiffs_that_claim_to_be_huge(side, tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", noise((64, 64, 3)), **RGB, tile=(64, 64), compression="zlib")
    content = bytearray((tmp_path / "a.tif").read_bytes())
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        for name in ("ImageWidth", "ImageLength"):
            tag = file.pages[0].tags[name]
            kind = {3: "<H", 4: "<I"}[int(tag.dtype)]
            content[tag.valueoffset : tag.valueoffset + struct.calcsize(kind)] = struct.pack(
                kind, min(side, 65_000)
            )
    (tmp_path / "a.tif").write_bytes(content)
    assert min(side, 65_000) ** 2 > MAX_PIXELS
    with pytest.raises(FileError, match="tile by tile, by `styleaug apply`"):
        open_image(tmp_path / "a.tif")
    with pytest.raises(FileError, match="truncated"):
        TiledReader(tmp_path / "a.tif")


def test_one_large_compressed_piece_is_refused(tmp_path, monkeypatch):
    tifffile.imwrite(tmp_path / "a.tif", noise((64, 64, 3)), **RGB, rowsperstrip=64, compression="zlib")
    monkeypatch.setattr(tiff, "LARGEST_SEGMENT", 10_000)
    with pytest.raises(FileError, match="compressed in one piece of 64 x 64"):
        TiledReader(tmp_path / "a.tif")


@pytest.mark.parametrize("kind", ["one strip", "tiles", "predictor", "channels", "big endian"])
@pytest.mark.parametrize("share", [0.9, 0.5, 0.1, 0.001])
def test_truncated_files(kind, share, tmp_path, capfd):
    values, options = KINDS[kind]
    tifffile.imwrite(tmp_path / "a.tif", values, **options)
    content = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "a.tif").write_bytes(content[: int(share * len(content))])
    for opener in (TiledReader, open_image):
        with pytest.raises(FileError, match=r"a\.tif"):
            opener(tmp_path / "a.tif")
    assert "tifffile" not in capfd.readouterr().err


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("tiff")


@pytest.mark.parametrize("kind", ["predictor", "ImageJ", "OME", "16-bit alpha"])
@given(place=st.floats(0, 0.999), value=st.integers(0, 255))
def test_a_wrong_byte_gives_an_image_or_our_error(kind, folder, place, value):
    whole = folder / f"{kind}.tif"
    if not whole.exists():
        values, options, *_ = {**KINDS, **STACKS}[kind]
        tifffile.imwrite(whole, values, **options)
    content = bytearray(whole.read_bytes())
    content[int(place * min(len(content), 1500))] = value
    path = folder / "damaged.tif"
    path.write_bytes(content)
    try:
        save_image(open_image(path), folder / "saved.tif")
    except FileError as error:
        assert "damaged.tif" in str(error) or "saved.tif" in str(error)
    try:
        with TiledReader(path) as reader:
            if np.prod(reader.shape) < 1e7:
                reader.read(0, 0, *reader.shape[:2])
    except FileError as error:
        assert "damaged.tif" in str(error)


@pytest.mark.slow
def test_large_images_are_written_and_read_in_little_memory(tmp_path):
    """10,000 x 10,000 pixels are 300 MB; the process grows by less than half of that."""
    side = 10_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    block = noise((512, 512, 3))
    edges = [
        (min(512, side - top), min(512, side - left))
        for top in range(0, side, 512)
        for left in range(0, side, 512)
    ]
    write_tiled(tmp_path / "a.tif", (side, side, 3), np.dtype("u1"), (block[:h, :w] for h, w in edges))
    with TiledReader(tmp_path / "a.tif") as reader:
        assert np.array_equal(reader.read(5120, 5120, 512, 512), block)
        assert reader.thumbnail(500).shape == (500, 500, 3)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 700_000
    shutil.rmtree(tmp_path)
    assert sys.platform != "darwin", "where ru_maxrss counts bytes"
