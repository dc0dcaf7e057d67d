"""Styled copies of slides: OME-TIFF with the slide's levels and microns per pixel; what stays of a run."""

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from slide_files import GLASS, aperio, dicom_slide, section
from specimens import Spy, bank_of, generator

from styleaug import ConfigError, apply_folder, fit_style
from styleaug.io.slides import OpenSlideReader, open_slide
from styleaug.io.tiff import TiledReader
from styleaug.offline import slides

pytest.importorskip("openslide", reason="needs OpenSlide: the extra slides", exc_type=ImportError)

LAB = generator("reinhard-lab")


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Paint in tiles of 256, so that a small slide has several."""
    monkeypatch.setattr(slides, "TILE", 256)


def run(source: Path, out: Path, **options):
    return apply_folder(source, out, **{"bank": bank_of(LAB), "generator": LAB, **options})


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_slide_becomes_a_pyramid_of_its_resolution(tmp_path):
    pixels = section()
    aperio(tmp_path / "in" / "a.svs", pixels, steps=(2, 4))
    before = (tmp_path / "in" / "a.svs").read_bytes()
    result = run(tmp_path / "in", tmp_path / "out")
    assert (result.written, result.failed) == (1, [])
    assert names(tmp_path / "out") == {"a.ome.tif", "manifest.jsonl"}
    assert (tmp_path / "in" / "a.svs").read_bytes() == before
    made = tmp_path / "out" / "a.ome.tif"
    with TiledReader(made) as copy:
        assert copy.levels == [(512, 768), (256, 384), (128, 192)]
        assert copy.mpp == 0.5 and copy.dtype == np.uint8
        styled = copy.read(0, 0, 512, 768).astype(float)
        small = copy.read(0, 0, 128, 192, level=2)
    means = styled.reshape(128, 4, 192, 4, 3).mean(axis=(1, 3))
    assert np.abs(means - small).mean() < 3, "reduced copies of the styled image"
    tissue = pixels.std(axis=2) > 20
    assert np.abs(styled - pixels)[tissue].mean() > 10
    assert np.abs(styled - pixels)[:60, :60].mean() < 3, "glass stays, but for JPEG"
    assert np.abs(styled[:60, :60].mean(axis=(0, 1)) - GLASS).max() < 2


def test_the_copy_has_the_layout_that_others_read(tmp_path):
    aperio(tmp_path / "in" / "a.svs", section(), steps=(2, 4))
    run(tmp_path / "in", tmp_path / "out")
    made = tmp_path / "out" / "a.ome.tif"
    with tifffile.TiffFile(made) as file:
        assert file.is_ome and len(file.pages) == 1 and len(file.series[0].levels) == 3
        page = file.pages[0].aspage()
        assert page.is_tiled and page.compression.name == "JPEG" and len(page.subifds or ()) == 2
        assert page.resolution == (20_000, 20_000) and page.resolutionunit.name == "CENTIMETER"
        xml = tifffile.xml2dict(file.ome_metadata)["OME"]["Image"]["Pixels"]
        assert (xml["PhysicalSizeX"], xml["PhysicalSizeY"], xml["PhysicalSizeXUnit"]) == (0.5, 0.5, "µm")
        assert (xml["SizeX"], xml["SizeY"], xml["SizeC"], xml["Type"]) == (768, 512, 3, "uint8")
        flat = file.series[0].asarray()
    with OpenSlideReader(made) as slide:
        assert slide.shape == (512, 768, 3) and slide.mpp == pytest.approx(0.5)
        assert np.abs(slide.read(0, 0, 512, 768).astype(int) - flat).max() <= 2, "decoders of JPEG differ"


def test_a_slide_without_a_pyramid_gets_one(tmp_path, monkeypatch):
    monkeypatch.setattr(slides, "SMALLEST", 100)
    aperio(tmp_path / "in" / "a.svs", section(), steps=())
    assert run(tmp_path / "in" / "a.svs", tmp_path / "out").written == 1, "one slide, named by itself"
    with TiledReader(tmp_path / "out" / "a.ome.tif") as copy:
        assert copy.levels == [(512, 768), (256, 384), (128, 192)]


def test_without_microns_per_pixel_none_are_made_up(tmp_path):
    aperio(tmp_path / "in" / "a.svs", section(), mpp=None)
    run(tmp_path / "in", tmp_path / "out")
    with TiledReader(tmp_path / "out" / "a.ome.tif") as copy:
        assert copy.mpp is None
        assert "PhysicalSizeX" not in copy.file.ome_metadata


def test_one_bad_slide_stops_no_other_and_a_run_goes_on(tmp_path):
    source = tmp_path / "in"
    aperio(source / "a.svs", section())
    content = (source / "a.svs").read_bytes()
    with tifffile.TiffFile(source / "a.svs") as file:
        start = file.pages[0].aspage().dataoffsets[12]
    (source / "torn.svs").write_bytes(content[:start] + bytes(3000) + content[start + 3000 :])
    (source / "cut.svs").write_bytes(content[:5000])
    first = run(source, tmp_path / "out", copies=2)
    assert first.written == 2 and {path.name for path, _ in first.failed} == {"torn.svs", "cut.svs"}
    assert all(str(path) in reason for path, reason in first.failed)
    assert names(tmp_path / "out") == {"a-1.ome.tif", "a-2.ome.tif", "manifest.jsonl"}
    made = {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.tif")}
    assert made["a-1.ome.tif"] != made["a-2.ome.tif"]
    (tmp_path / "out" / "a-2.ome.tif").write_bytes(made["a-2.ome.tif"][:1000])
    (source / "cut.svs").write_bytes(content)
    again = run(source, tmp_path / "out", copies=2)
    assert (again.written, again.skipped) == (3, 1)
    assert (tmp_path / "out" / "a-2.ome.tif").read_bytes() == made["a-2.ome.tif"], "to the byte"


def test_two_slides_of_one_name_are_said(tmp_path):
    aperio(tmp_path / "in" / "a.svs", section())
    aperio(tmp_path / "in" / "a.ndpi", section(seed=1))
    result = run(tmp_path / "in", tmp_path / "out")
    assert result.written == 1
    ((path, reason),) = result.failed
    assert path.name == "a.svs" and "would replace that of a.ndpi; rename it" in reason


def test_a_run_that_is_stopped_leaves_no_half_slide(tmp_path, monkeypatch):
    aperio(tmp_path / "in" / "a.svs", section())
    halve = slides.halve

    def stop(band):
        raise KeyboardInterrupt

    monkeypatch.setattr(slides, "halve", stop)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").glob("*.tif"))
    monkeypatch.setattr(slides, "halve", halve)
    assert run(tmp_path / "in", tmp_path / "out").written == 1


def test_what_needs_the_whole_slide_says_so(tmp_path):
    aperio(tmp_path / "in" / "a.svs", section())
    result = run(tmp_path / "in", tmp_path / "out", bank=bank_of(Spy()), generator=Spy())
    assert "must see an image whole" in result.failed[0][1] and "a.svs" in result.failed[0][1]
    with pytest.raises(ConfigError, match="of format images, not parquet"):
        run(tmp_path / "in" / "a.svs", tmp_path / "out", format="parquet")


def test_the_command_writes_what_the_manifest_says(tmp_path, command):
    aperio(tmp_path / "in" / "a.svs", section())
    bank = bank_of(LAB).save(tmp_path / "b.safetensors")
    told = command("apply", tmp_path / "in", "-o", tmp_path / "out", "--bank", bank, "--workers", 1)
    assert "1 images written" in told.stderr + told.stdout
    line = json.loads((tmp_path / "out" / "manifest.jsonl").read_text().splitlines()[1])
    assert (line["source"], line["output"]) == ("a.svs", "a.ome.tif")
    with open_slide(tmp_path / "out" / line["output"]) as copy:
        assert copy.shape == (512, 768, 3)


def test_the_files_of_a_dicom_slide_are_one(tmp_path):
    pytest.importorskip("pydicom", reason="needs pydicom: the extra slides")
    for seed in range(2):
        dicom_slide(tmp_path / "in" / str(seed), section(seed=seed))
    with open_slide(tmp_path / "in" / "0" / "level-1.dcm") as slide:
        assert slide.levels == [(512, 768), (256, 384)] and slide.mpp == pytest.approx(0.5)
        assert np.abs(slide.read(0, 0, 512, 768).astype(int) - section()).mean() < 4
    result = run(tmp_path / "in", tmp_path / "out")
    assert (result.written, result.failed) == (2, [])
    with TiledReader(tmp_path / "out" / "0" / "level-0.ome.tif") as copy:
        assert copy.levels == [(512, 768), (256, 384)] and copy.mpp == pytest.approx(0.5)
    fit = fit_style(tmp_path / "in", generator=LAB, mpp=0.5, min_images=1)
    assert fit.bank.provenance.images == 2 and fit.failed == []
    alone = run(tmp_path / "in" / "0" / "level-0.dcm", tmp_path / "alone")
    assert alone.written == 1
