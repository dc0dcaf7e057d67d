"""Images beyond memory: tile by tile they become what they become as a whole."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from specimens import GENERATORS, Spy, bank_of, generator, photo

from styleaug import ConfigError, FileError, ImageError, apply_folder
from styleaug.generators.base import AbstractGenerator
from styleaug.io.tiff import MOST_TIFF_PIXELS, TiledReader
from styleaug.offline import slides, tiles
from styleaug.offline.slides import stylise_slide
from styleaug.offline.tiles import ArrayReader, stylise_tiles
from styleaug.transforms.augment import StyleAugment
from styleaug.weights import load_generator

HEIGHT, WIDTH = 700, 520
SHIPPED = ["photo", "adain"]


def network(name: str) -> AbstractGenerator:
    return load_generator(name) if name in SHIPPED else generator(name)


TILED = [name for name in [*GENERATORS, *SHIPPED] if network(name).margin is not None]


def stylizer_of(name: str, **options) -> StyleAugment:
    net = network(name)
    bank = bank_of(net) if net.code_length else None
    return StyleAugment(bank, generator=net, **{"p": 1.0, "strength": 0.8, **options})


def draw(stylizer: StyleAugment, seed: int = 3):
    return stylizer.draw(1, torch.Generator().manual_seed(seed))


def picture(
    height: int = HEIGHT, width: int = WIDTH, *, channels: int = 3, dtype: Any = np.uint8
) -> np.ndarray:
    pixels = photo(height, width, channels=channels).permute(1, 2, 0).numpy()
    return (pixels * np.iinfo(dtype).max).round().astype(dtype)


def assembled(blocks, shape: tuple[int, int, int], dtype, tile: int) -> np.ndarray:
    result = np.zeros(shape, dtype)
    for (top, left, high, wide), block in zip(tiles.tiles_of(shape, tile), blocks, strict=True):
        assert block.shape == (high, wide, shape[2]) and block.dtype == dtype
        result[top : top + high, left : left + wide] = block
    return result


def in_tiles(
    stylizer: StyleAugment, image: np.ndarray, *, tile: int = 256, alpha: bool = False, survey: int = 2**24
) -> np.ndarray:
    blocks = stylise_tiles(stylizer, ArrayReader(image, alpha), draw(stylizer), tile=tile, survey=survey)
    return assembled(blocks, image.shape, image.dtype, tile)


def distance(one: np.ndarray, other: np.ndarray) -> int:
    return int(np.abs(one.astype(int) - other.astype(int)).max())


@pytest.mark.parametrize("name", TILED)
def test_tiles_are_those_of_the_whole_image(name, monkeypatch):
    monkeypatch.setattr(tiles, "TILE", 256)
    image, stylizer = picture(), stylizer_of(name)
    whole = stylizer.apply(image, draw(stylizer))
    assert distance(whole, image) > 10
    assert distance(in_tiles(stylizer, image), whole) <= 1


@pytest.mark.parametrize("name", TILED)
def test_no_border_shows_where_the_statistics_are_of_a_part(name):
    image, stylizer = picture(), stylizer_of(name)
    small, large = (in_tiles(stylizer, image, tile=tile, survey=2**18) for tile in (256, 1024))
    assert distance(small, large) <= 1


@pytest.mark.parametrize("name", ["reinhard-rgb", "histogram", "fourier", "photo"])
def test_statistics_of_a_part_are_close_to_the_whole(name):
    image, stylizer = np.tile(picture(), (2, 3, 1)), stylizer_of(name)
    made = in_tiles(stylizer, image, survey=2**20)
    assert image.size // 3 > 2 * 2**20
    assert distance(made, stylizer.apply(image, draw(stylizer))) <= 2


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3])
def test_depth_and_channels_stay(channels, dtype):
    image = picture(channels=channels, dtype=dtype)
    stylizer = stylizer_of("reinhard-rgb")
    whole = stylizer.apply(image, draw(stylizer))
    made = in_tiles(stylizer, image)
    assert distance(made, whole) <= (1 if dtype == np.uint8 else 8)
    if dtype == np.uint16:
        assert len(np.unique(made)) > 5000


@pytest.mark.parametrize("channels", [2, 4])
def test_transparency_stays(channels):
    stylizer = stylizer_of("reinhard-rgb")
    image = picture(channels=channels)
    image[..., -1] |= 1  # what is hidden is another test's subject
    made = in_tiles(stylizer, image, alpha=True)
    colours = np.ascontiguousarray(image[..., :-1])
    assert np.array_equal(made[..., -1], image[..., -1])
    assert distance(made[..., :-1], stylizer.apply(colours, draw(stylizer))) <= 1


def test_options_of_the_transform_hold():
    image = picture()
    for options in ({"blend": "color"}, {"value_range": (20, 200)}):
        stylizer = stylizer_of("reinhard-rgb", **options)
        assert distance(in_tiles(stylizer, image), stylizer.apply(image, draw(stylizer))) <= 1
        assert distance(in_tiles(stylizer, image), in_tiles(stylizer_of("reinhard-rgb"), image)) > 5


def test_without_a_pick_tiles_are_passed_on():
    stylizer = stylizer_of("reinhard-rgb", p=0.0)
    assert np.array_equal(in_tiles(stylizer, picture()), picture())


def test_modes_do_not_leak():
    stylizer = stylizer_of("reinhard-rgb")
    blocks = stylise_tiles(stylizer, ArrayReader(picture()), draw(stylizer), tile=256)
    next(blocks)
    assert not torch.is_inference_mode_enabled()


def test_what_cannot_be_tiled_is_refused():
    stylizer = stylizer_of("reinhard-rgb")

    def attempt(image: np.ndarray, stylizer=stylizer, **options):
        return stylise_tiles(stylizer, ArrayReader(image), draw(stylizer), **options)

    with pytest.raises(ConfigError, match="multiples of 16, got 100"):
        attempt(picture(), tile=100)
    with pytest.raises(ImageError, match="float32"):
        attempt(picture().astype(np.float32))
    with pytest.raises(ImageError, match="got 5 channels"):
        attempt(picture(channels=5))
    with pytest.raises(ImageError, match="1000000 x 1000000 pixels"):
        attempt(np.broadcast_to(np.zeros((1, 1, 3), np.uint8), (10**6, 10**6, 3)))
    with pytest.raises(ConfigError, match="one style"):
        attempt(picture(), stylizer_of("reinhard-rgb", splice="halves"))
    with pytest.raises(ConfigError, match="auto"):
        attempt(picture(), stylizer_of("reinhard-rgb", value_range="auto"))


def test_generators_that_must_see_all_say_so():
    stylizer = StyleAugment(bank_of(Spy()), generator=Spy(), p=1.0)
    with pytest.raises(ConfigError, match="must see an image whole"):
        in_tiles(stylizer, picture())


@pytest.mark.parametrize(
    ("height", "width", "margin"),
    [(5000, 3000, 0), (2100, 2100, 64), (100, 70000, 64), (40000, 300, 32), (82, 70000, 80)],
)
def test_views_lie_inside_and_spread(height, width, margin):
    high, wide, places = tiles.views_of(height, width, margin, 8, 2**22)
    assert high * wide * len(places) <= 2**22
    assert len(places) > 8
    for place in places:
        assert place.top % 8 == place.left % 8 == 0
        assert 0 <= place.top <= height - high
        assert 0 <= place.left <= width - wide
        assert place.core is not None
        assert place.core[0] < place.core[2] and place.core[1] < place.core[3]
    for starts, length in (([p.top for p in places], height), ([p.left for p in places], width)):
        if length > 10000:
            assert min(starts) < length * 0.2 and max(starts) > length * 0.7


# --- files ---------------------------------------------------------------------------------------


@pytest.fixture
def small_slides(monkeypatch):
    """Let TIFF files of a few pixels count as slides, painted in tiles of 256."""
    monkeypatch.setattr(slides, "LARGE_PIXELS", 100_000)
    monkeypatch.setattr(slides, "MAX_PIXELS", 200_000)
    monkeypatch.setattr(slides, "TILE", 256)


def write(path: Path, image: np.ndarray, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    shown = image if image.shape[2] > 1 else image[..., 0]
    tifffile.imwrite(path, shown, **{"compression": "zlib", "metadata": None, **options})
    return path


LAYOUTS = {
    "tiled": {"tile": (128, 128), "photometric": "rgb"},
    "stripped": {"rowsperstrip": 32, "photometric": "rgb"},
    "big": {"tile": (256, 256), "photometric": "rgb", "bigtiff": True},
    "plain": {"compression": None, "photometric": "rgb"},
    "planes": {"planarconfig": "separate", "photometric": "rgb", "tile": (128, 128)},
}


def run(source: Path, out: Path, **options):
    return apply_folder(
        source, out, **{"bank": bank_of(network("photo")), "generator": network("photo"), **options}
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_files_become_what_they_become_in_memory(layout, tmp_path, small_slides, monkeypatch):
    image = picture()
    pixels = image.transpose(2, 0, 1) if layout == "planes" else image
    tifffile.imwrite(
        tmp_path / "slide.tif", pixels, **{"compression": "zlib", "metadata": None, **LAYOUTS[layout]}
    )
    (tmp_path / "in").mkdir()
    (tmp_path / "slide.tif").rename(tmp_path / "in" / "slide.tif")
    assert run(tmp_path / "in", tmp_path / "out").written == 1
    made = tifffile.imread(tmp_path / "out" / "slide.tif")
    monkeypatch.setattr(slides, "LARGE_PIXELS", 10**9)
    if layout != "planes":  # PIL does not read those
        run(tmp_path / "in", tmp_path / "whole")
        assert distance(made, tifffile.imread(tmp_path / "whole" / "slide.tif")) <= 1
    assert made.shape == image.shape
    assert distance(made, image) > 20


@pytest.mark.parametrize(
    ("channels", "dtype"), [(1, np.uint8), (1, np.uint16), (3, np.uint16), (4, np.uint8)]
)
def test_kinds_of_pixels_stay(channels, dtype, tmp_path, small_slides):
    image = picture(channels=channels, dtype=dtype)
    extra = {"extrasamples": ["unassalpha"]} if channels == 4 else {}
    kind = "rgb" if channels > 1 else "minisblack"
    write(tmp_path / "in" / "a.tif", image, tile=(128, 128), photometric=kind, **extra)
    assert run(tmp_path / "in", tmp_path / "out").failed == []
    with TiledReader(tmp_path / "out" / "a.tif") as made:
        assert (made.shape, made.dtype, made.alpha) == (image.shape, dtype, channels == 4)
        if channels == 4:
            assert np.array_equal(made.read(0, 0, HEIGHT, WIDTH)[..., 3], image[..., 3])


def test_tags_and_pyramid_stay(tmp_path, small_slides):
    image = picture()
    with tifffile.TiffWriter(tmp_path / "pyramid.tif") as writer:
        options = {"tile": (128, 128), "photometric": "rgb", "compression": "lzw", "metadata": None}
        tags = {"resolution": (20000, 20000), "resolutionunit": 3, "iccprofile": b"profile" * 20}
        writer.write(image, subifds=2, **options, **tags)
        writer.write(image[::2, ::2], subfiletype=1, **options)
        writer.write(image[::4, ::4], subfiletype=1, **options)
    (tmp_path / "in").mkdir()
    (tmp_path / "pyramid.tif").rename(tmp_path / "in" / "pyramid.tif")
    assert run(tmp_path / "in", tmp_path / "out").failed == []
    with TiledReader(tmp_path / "out" / "pyramid.tif") as made:
        assert made.levels == [(700, 520), (350, 260), (175, 130)]
        page = made.page
        assert (page.tilewidth, page.compression.name, page.iccprofile) == (128, "LZW", b"profile" * 20)
        assert page.resolution == (20000, 20000) and page.resolutionunit == 3
        full = made.read(0, 0, 700, 520).astype(float)
        for level, step in ((1, 2), (2, 4)):
            small = made.read(0, 0, *made.levels[level], level=level)
            means = full.reshape(700 // step, step, 520 // step, step, 3).mean(axis=(1, 3))
            assert np.abs(means - small).max() <= 1.0


def test_halves_of_odd_sides():
    band = np.arange(15, dtype=np.uint8).reshape(3, 5, 1)
    assert slides.halve(band)[..., 0].tolist() == [[3, 5, 7], [11, 13, 14]]


def test_turned_images_stay_turned(tmp_path, small_slides):
    write(tmp_path / "in" / "a.tif", picture(), extratags=[(274, 3, 1, 6, True)], **LAYOUTS["tiled"])
    assert run(tmp_path / "in", tmp_path / "out").failed == []
    with tifffile.TiffFile(tmp_path / "out" / "a.tif") as made:
        assert made.pages[0].shape == (HEIGHT, WIDTH, 3)
        page: Any = made.pages[0]
        assert page.tags[274].value == 6


@pytest.mark.parametrize("window", ["3000/4000", "auto"])
def test_windows_hold(window, tmp_path, small_slides, monkeypatch):
    image = (picture(channels=1, dtype=np.uint16) >> 4) + 1000
    write(tmp_path / "in" / "a.tif", image, rowsperstrip=16, photometric="minisblack")
    assert run(tmp_path / "in", tmp_path / "out", window=window).failed == []
    monkeypatch.setattr(slides, "LARGE_PIXELS", 10**9)
    run(tmp_path / "in", tmp_path / "whole", window=window)
    made, whole = (tifffile.imread(tmp_path / out / "a.tif") for out in ("out", "whole"))
    assert distance(made, whole) <= (4 if window != "auto" else 40)
    assert distance(made, image[..., 0]) > 100


def test_what_can_be_whole_stays_whole(tmp_path, small_slides, monkeypatch):
    monkeypatch.setattr(slides, "MAX_PIXELS", 10**6)
    source = write(tmp_path / "a.tif", picture(), **LAYOUTS["tiled"])
    assert slides.is_slide(source, tiled=True)
    assert not slides.is_slide(source, tiled=False)
    turned = write(tmp_path / "b.tif", picture(), extratags=[(274, 3, 1, 6, True)], **LAYOUTS["tiled"])
    assert not slides.is_slide(turned, tiled=True)
    stack = tmp_path / "c.tif"
    tifffile.imwrite(stack, np.stack([picture()] * 3), photometric="rgb")
    assert not slides.is_slide(stack, tiled=True)


def test_runs_go_on_and_copies_differ(tmp_path, small_slides):
    write(tmp_path / "in" / "a.tif", picture(), **LAYOUTS["tiled"])
    write(tmp_path / "in" / "b.tif", picture()[:64, :64], photometric="rgb")
    first = run(tmp_path / "in", tmp_path / "out", copies=2)
    assert (first.written, first.skipped) == (4, 0)
    contents = {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.tif")}
    assert contents["a-1.tif"] != contents["a-2.tif"]
    (tmp_path / "out" / "a-2.tif").unlink()
    again = run(tmp_path / "in", tmp_path / "out", copies=2)
    assert (again.written, again.skipped) == (1, 3)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.tif")} == contents
    lines = [json.loads(line) for line in (tmp_path / "out" / "manifest.jsonl").read_text().splitlines()[1:]]
    assert sorted(line["output"] for line in lines) == sorted(contents)


def test_what_is_wrong_with_one_file_stops_no_other(tmp_path, small_slides):
    good = write(tmp_path / "in" / "good.tif", picture(), **LAYOUTS["tiled"])
    content = good.read_bytes()
    (tmp_path / "in" / "cut.tif").write_bytes(content[: len(content) // 2])
    with TiledReader(good) as slide:
        start = slide.page.dataoffsets[20]
    torn = bytearray(content)
    torn[start : start + 2000] = bytes(2000)
    (tmp_path / "in" / "torn.tif").write_bytes(torn)
    result = run(tmp_path / "in", tmp_path / "out")
    assert result.written == 1
    assert {path.name for path, _ in result.failed} == {"cut.tif", "torn.tif"}
    assert all(str(path) in reason for path, reason in result.failed)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"good.tif", "manifest.jsonl"}


def test_a_generator_that_must_see_all_does_the_rest(tmp_path, small_slides):
    write(tmp_path / "in" / "a.tif", picture(), **LAYOUTS["tiled"])
    write(tmp_path / "in" / "b.tif", picture()[:64, :64], photometric="rgb")
    result = run(tmp_path / "in", tmp_path / "out", bank=bank_of(Spy()), generator=Spy())
    assert result.written == 1
    assert "must see an image whole" in result.failed[0][1]


def claim(path: Path, side: int) -> Path:
    """Write a TIFF whose header claims more pixels than it has."""
    write(path, picture(64, 64), photometric="rgb", compression=None)
    content = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        page: Any = file.pages[0]
        tags = [page.tags[number] for number in (256, 257)]
    for tag in tags:
        content[tag.offset + 2 : tag.offset + 12] = (
            (4).to_bytes(2, "little") + (1).to_bytes(4, "little") + side.to_bytes(4, "little")
        )
    path.write_bytes(content)
    return path


def test_bombs_are_refused_with_their_size(tmp_path):
    claim(tmp_path / "in" / "bomb.tif", 10**6)
    result = run(tmp_path / "in", tmp_path / "out")
    ((_, reason),) = result.failed
    assert "1000000 x 1000000 pixels" in reason and f"{MOST_TIFF_PIXELS:,}" in reason


def test_a_target_that_cannot_be_written_is_no_fault_of_the_source(tmp_path, small_slides):
    source = write(tmp_path / "a.tif", picture(), **LAYOUTS["tiled"])
    (tmp_path / "file").write_text("")
    stylizer = stylizer_of("reinhard-rgb")
    with pytest.raises(FileError, match="cannot write") as caught:
        stylise_slide(stylizer, source, tmp_path / "file" / "b.tif", draw(stylizer))
    assert not isinstance(caught.value, slides.SlideError)
