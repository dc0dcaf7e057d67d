"""Slides of scanners: what is read, at which resolution, where tissue is, and what is wrong with some."""

import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from slide_files import GLASS, TISSUE, aperio, section
from specimens import bank_of, generator

from styleaug import ConfigError, FileError, MissingExtraError, StyleAugment, fit_style
from styleaug.io import slides as module
from styleaug.io.files import open_image
from styleaug.io.slides import OpenSlideReader, holds_slide, open_slide
from styleaug.io.tiff import TiledReader
from styleaug.io.tissue import SlideTiles, otsu, shares_of, tissue_mask

pytest.importorskip("openslide", reason="needs OpenSlide: the extra slides", exc_type=ImportError)

LAB = generator("reinhard-lab")


@pytest.fixture(scope="module")
def svs(tmp_path_factory) -> Path:
    return aperio(tmp_path_factory.mktemp("svs") / "a.svs", section())


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Four slides, each stained a little differently."""
    tmp_path = tmp_path_factory.mktemp("folder")
    for seed in range(4):
        shift = np.array([0, 4 * seed, 0], np.int16)
        aperio(tmp_path / "in" / f"{seed}.svs", np.clip(section(seed=seed) + shift, 0, 255).astype(np.uint8))
    return tmp_path / "in"


def test_a_scanner_s_slide_is_read_in_parts(svs):
    pixels = section()
    with open_slide(svs) as slide:
        assert isinstance(slide, OpenSlideReader)
        assert (slide.shape, slide.dtype, slide.mpp) == ((512, 768, 3), np.uint8, 0.5)
        assert slide.levels == [(512, 768), (128, 192)]
        assert np.array_equal(slide.read(100, 200, 60, 70), pixels[100:160, 200:270])
        small = slide.read(10, 20, 30, 40, level=1)
        assert np.abs(small - pixels[40:160, 80:240].reshape(30, 4, 40, 4, 3).mean(axis=(1, 3))).max() <= 1
        assert slide.thumbnail(64).shape == (64, 96, 3)
        with pytest.raises(ValueError, match="not inside"):
            slide.read(500, 0, 20, 20)


def test_a_slide_is_an_image_where_one_is_asked_for(svs):
    whole, small = open_image(svs), open_image(svs, short_side=100)
    assert isinstance(whole, Image.Image) and np.array_equal(np.asarray(whole), section())
    assert isinstance(small, Image.Image) and small.size == (192, 128)


def test_what_was_not_scanned_has_the_background_s_colour(svs, monkeypatch):
    with OpenSlideReader(svs) as slide:
        monkeypatch.setattr(slide, "slide", Holes())
        assert slide.read(0, 0, 4, 4)[0].tolist() == [[255, 255, 255], [227, 227, 227], [200] * 3, [200] * 3]
        slide.background = (100, 0, 0)
        assert slide.read(0, 0, 4, 4)[0, 0].tolist() == [100, 0, 0]


class Holes:
    """A region of grey 200 that is transparent at the left."""

    def read_region(self, corner, level, size):
        pixels = np.full((*size[::-1], 4), 200, np.uint8)
        pixels[:, 0, 3], pixels[:, 1, 3], pixels[:, 2:, 3] = 0, 128, 255
        return Image.fromarray(pixels)

    def close(self):
        pass


# --- tissue --------------------------------------------------------------------------------------


def test_tissue_is_what_is_coloured(svs):
    with open_slide(svs) as slide:
        mask = tissue_mask(slide)
    y, x = np.mgrid[:512, :768]
    truth = torch.from_numpy(np.hypot(y - 256, x - 384) < 0.35 * 768)
    rows, columns = (size // small for size, small in zip(truth.shape, mask.shape, strict=True))
    truth = truth[::rows, ::columns]
    assert (mask & truth).sum() / (mask | truth).sum() > 0.97


def test_tiles_are_of_tissue_and_at_the_resolution(svs):
    pixels = section()
    tiles = SlideTiles(svs, side=64)
    assert 0 < len(tiles) < (512 // 64) * (768 // 64)
    for index in (0, len(tiles) - 1):
        top, left = tiles.places[index].tolist()
        wanted = pixels[top : top + 64, left : left + 64]
        assert np.array_equal(tiles[index].permute(1, 2, 0).numpy(), wanted)
        assert (wanted.std(axis=2) > 15).mean() >= 0.45, "coloured"
    half = SlideTiles(svs, side=64, mpp=1.0)
    assert (half.span, half.mpp) == (128, 1.0) and len(half) < len(tiles)
    top, left = half.places[0].tolist()
    means = pixels[top : top + 128, left : left + 128].reshape(64, 2, 64, 2, 3).mean(axis=(1, 3))
    assert np.abs(half[0].permute(1, 2, 0).numpy() - means).mean() < 4
    coarse = SlideTiles(svs, side=32, level=1)
    assert (coarse.span, coarse.mpp) == (128, 2.0) and coarse[0].shape == (3, 32, 32)
    assert len(SlideTiles(svs, side=64, tissue=0)) == 96
    again = pickle.loads(pickle.dumps(tiles))
    assert torch.equal(again[3], tiles[3])


def test_each_view_of_a_bag_has_one_style(svs):
    tiles = SlideTiles(svs, side=64)
    bag = torch.stack([tiles[0], tiles[1], tiles[0]])
    views = StyleAugment(bank_of(LAB), generator=LAB, p=1.0)(bag.expand(2, *bag.shape))
    assert views.shape == (2, 3, 3, 64, 64) and views.dtype == torch.uint8
    assert torch.equal(views[:, 0], views[:, 2]), "one style and one set of statistics"
    assert not torch.equal(views[0], views[1]) and not torch.equal(views[0], bag)


def test_otsu_divides_two_heaps():
    values = torch.cat([torch.full((300,), 0.1), torch.full((100,), 0.6)])
    assert 0.1 < otsu(values) <= 0.6


def test_shares_of_a_grid():
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[:4, :2] = True
    assert shares_of(mask, 4.0, (2, 2)).tolist() == [[0.5, 0], [0, 0]]
    assert shares_of(mask, 0.5, (16, 16)).shape == (16, 16), "cells smaller than a pixel"


# --- fitting -------------------------------------------------------------------------------------


def test_a_bank_of_slides_is_that_of_their_tissue(folder):
    fit = fit_style(folder, generator=LAB, mpp=1.0, min_images=3)
    assert fit.failed == [] and fit.bank.provenance.images == 4
    tissue = torch.tensor(TISSUE)[:, None, None].expand(3, 64, 64) / 255
    glass = torch.tensor(GLASS)[:, None, None].expand(3, 64, 64) / 255
    near, far = (LAB.encode_style(flat[None])[0, 0] for flat in (tissue, glass))
    assert (fit.bank.codes[:, 0] < (near + far) / 2).all(), "as dark as tissue, not as glass"


def test_each_tile_can_be_a_style(folder):
    whole = fit_style(folder, generator=LAB, min_images=1)
    tiles = fit_style(folder, generator=LAB, min_images=1, patches=3, level=0)
    assert (len(whole.bank), len(tiles.bank)) == (4, 8), "of 256 pixels, a slide has two"
    again = fit_style(folder, generator=LAB, min_images=1, patches=3, level=0)
    assert again.bank.to_bytes() == tiles.bank.to_bytes()


def test_large_tiffs_are_slides_where_a_resolution_is_given(tmp_path):
    pixels = section()
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        form = {"photometric": "rgb", "tile": (128, 128), "metadata": None}
        writer.write(pixels, **form, subifds=1, resolution=(20_000, 20_000), resolutionunit=3)
        writer.write(np.ascontiguousarray(pixels[::2, ::2]), **form, subfiletype=1)
    assert holds_slide(tmp_path / "a.tif", tiff=True) and not holds_slide(tmp_path / "a.tif")
    with TiledReader(tmp_path / "a.tif") as slide:
        assert slide.mpp == 0.5
    glassy = fit_style(tmp_path, generator=LAB, min_images=1).bank.codes
    tissue = fit_style(tmp_path, generator=LAB, min_images=1, mpp=0.5).bank.codes
    assert tissue[0, 0] < glassy[0, 0]


@pytest.mark.parametrize(
    ("options", "mpp"),
    [
        ({"resolution": (72, 72), "resolutionunit": 2}, None),
        ({"resolution": (40_000, 40_000), "resolutionunit": 3}, 0.25),
        ({"resolution": (1, 1), "resolutionunit": 1}, None),
        ({"description": "Aperio|AppMag = 20|MPP = 0.4990|x"}, 0.499),
        ({"description": "Aperio|MPP = 0.4.990|x"}, None),
        ({"ome": True, "metadata": {"PhysicalSizeX": 250, "PhysicalSizeXUnit": "nm"}}, 0.25),
        ({"ome": True, "metadata": {"PhysicalSizeX": 0.5}}, 0.5),
        ({"ome": True, "metadata": {"PhysicalSizeX": 1, "PhysicalSizeXUnit": "pixel"}}, None),
    ],
)
def test_microns_per_pixel_of_tiffs(options, mpp, tmp_path):
    tifffile.imwrite(
        tmp_path / "a.tif", section(64, 64), **{"photometric": "rgb", "metadata": None, **options}
    )
    with TiledReader(tmp_path / "a.tif") as slide:
        assert slide.mpp == (None if mpp is None else pytest.approx(mpp))


def test_the_command_takes_microns_per_pixel(folder, command, tmp_path):
    (tmp_path / "cut.svs").write_bytes((folder / "0.svs").read_bytes()[:3000])
    paths = [*folder.glob("*.svs"), tmp_path / "cut.svs"]
    options = ("--mpp", 1, "--patches", 2, "--min-images", 2)
    told = command("fit-style", *paths, "-o", tmp_path / "b.safetensors", *options)
    assert (tmp_path / "b.safetensors").exists() and "cut.svs" in told.stderr
    told = command("fit-style", folder, "-o", tmp_path / "c.safetensors", "--mpp", 1, "--level", 0, code=1)
    assert "not both" in told.stderr and not (tmp_path / "c.safetensors").exists()


# --- what can be wrong ---------------------------------------------------------------------------


def attempt(path: Path, **options) -> str:
    """Fit to one slide that must fail; return the reason, which names the slide."""
    with pytest.raises(FileError) as caught:
        fit_style([path], generator=LAB, min_images=1, **options)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_a_slide_without_microns_per_pixel_says_what_to_give(tmp_path):
    path = aperio(tmp_path / "a.svs", section(), mpp=None)
    assert "Give a level in place of mpp" in attempt(path, mpp=0.5)
    assert len(fit_style([path], generator=LAB, min_images=1, level=0).bank) == 1


def test_what_a_slide_lacks_is_said(svs, tmp_path):
    assert "coarser than 0.25" in attempt(svs, mpp=0.25)
    assert "no level 2; its last is 1" in attempt(svs, level=2)
    assert "less than one tile" in attempt(svs, mpp=5)
    glass = aperio(tmp_path / "glass.svs", section(tissue=0))
    assert "no tile with 50% tissue; the most is" in attempt(glass)
    black = aperio(tmp_path / "black.svs", np.zeros((512, 512, 3), np.uint8))
    assert "no tile with 50% tissue" in attempt(black)


@pytest.mark.parametrize("mpp", [0, -1, float("nan"), True, "0.5"])
def test_no_resolution_of_any_kind(svs, mpp):
    with pytest.raises(ConfigError, match="mpp must be a number"):
        SlideTiles(svs, mpp=mpp)
    with pytest.raises(ConfigError, match="not both"):
        SlideTiles(svs, mpp=0.5, level=0)


def test_damaged_slides_are_named(svs, tmp_path):
    content = svs.read_bytes()
    with tifffile.TiffFile(svs) as file:
        start = file.pages[0].dataoffsets[10]  # pyright: ignore[reportAttributeAccessIssue]
    torn = bytearray(content)
    torn[start : start + 2000] = bytes(2000)
    for name, bad in {
        "cut": content[: len(content) // 2],
        "torn": torn,
        "no": b"no slide",
        "empty": b"",
    }.items():
        (tmp_path / f"{name}.svs").write_bytes(bad)
        told = attempt(tmp_path / f"{name}.svs")
        assert told.count(f"{name}.svs") == 2 or "cannot read" in told
    (tmp_path / "a.mrxs").write_bytes(b"")
    assert "cannot read" in attempt(tmp_path / "a.mrxs")
    (tmp_path / "folder.svs").mkdir()
    with pytest.raises(FileError, match="it is a folder"):
        open_slide(tmp_path / "folder.svs")


def test_hostile_sizes_are_refused(svs, tmp_path, monkeypatch):
    content = bytearray(svs.read_bytes())
    with tifffile.TiffFile(svs) as file:
        page = file.pages[0]
        tags = [page.tags[number].valueoffset for number in (256, 257)]  # pyright: ignore
    for offset in tags:
        content[offset : offset + 4] = struct.pack("<I", 2**30)
    (tmp_path / "bomb.svs").write_bytes(content)
    assert "cannot read" in attempt(tmp_path / "bomb.svs")
    monkeypatch.setattr(module, "MOST_TIFF_PIXELS", 512 * 768 - 1)
    assert "768 x 512 pixels; at most 393,215 are read" in attempt(svs)


def test_without_openslide_the_error_says_what_to_install(svs, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "openslide", None)
    with pytest.raises(MissingExtraError, match=r'pip install "styleaug\[slides\]"'):
        open_slide(svs)
    with pytest.raises(MissingExtraError, match="OpenSlide"):
        module.import_openslide(svs)


def test_what_is_no_slide(tmp_path):
    with pytest.raises(FileError, match=r"not a slide; slides are \.svs"):
        SlideTiles(tmp_path / "a.png")
    with pytest.raises(FileError, match=r"a\.svs"):
        SlideTiles(tmp_path / "a.svs")
