"""OME-Zarr: read and written by chunks, with its levels, metadata and labels; what is refused."""

import json
import os
import pickle
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from slide_files import ome_zarr, section
from specimens import bank_of, generator

from styleaug import FileError, MissingExtraError, apply_folder, fit_style
from styleaug.io import ome_zarr as module
from styleaug.io.files import open_image
from styleaug.io.listing import list_files
from styleaug.io.lists import list_images
from styleaug.io.ome_zarr import ZarrReader, cells_of
from styleaug.io.slides import open_slide
from styleaug.offline import slides

zarr = pytest.importorskip("zarr", reason="needs zarr: the extra slides")

LAB = generator("reinhard-lab")
HALVES = ((256, 384), (128, 192))


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Paint in tiles of 256, so that a small slide has several."""
    monkeypatch.setattr(slides, "TILE", 256)


def run(source: Path, out: Path, **options):
    return apply_folder(source, out, **{"bank": bank_of(LAB), "generator": LAB, **options})


def files(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


FORMS = {
    "0.4": {"version": "0.4"},
    "0.5": {"version": "0.5"},
    "cyx": {"axes": "cyx"},
    "grey": {"axes": "yx"},
    "odd chunks": {"chunk": 100},
    "plain": {"compressors": None},
}


@pytest.mark.parametrize("form", FORMS)
def test_a_copy_keeps_all_but_the_pixels(form, tmp_path):
    pixels = section()[..., :1] if form == "grey" else section()
    source = ome_zarr(tmp_path / "in" / "a.zarr", pixels, levels=HALVES, **FORMS[form])
    before = files(source)
    result = run(tmp_path / "in", tmp_path / "out")
    assert (result.written, result.failed) == (1, [])
    assert files(source) == before
    made = files(tmp_path / "out" / "a.zarr")
    marks = {name for name in before if name.rsplit("/", 1)[-1].startswith((".z", "zarr.json"))}
    kept = {name for name in before if name.startswith("labels")} | marks
    assert {name: made[name] for name in kept} == {name: before[name] for name in kept}
    assert made.keys() == before.keys()
    with ZarrReader(tmp_path / "out" / "a.zarr") as copy:
        assert (copy.shape, copy.levels, copy.mpp) == (pixels.shape, [(512, 768), *HALVES], 0.5)
        styled = [copy.read(0, 0, *size, level=level) for level, size in enumerate(copy.levels)]
    for above, below in pairwise(styled):
        height, width, channels = below.shape
        means = above.reshape(height, 2, width, 2, channels).mean(axis=(1, 3))
        assert np.abs(means - below).max() <= 0.5
    changed = np.abs(styled[0].astype(int) - pixels)
    assert changed.mean() > 2 and (form == "grey" or changed[:60, :60].max() == 0), "glass stays"


def test_the_copy_is_that_of_a_tiff(tmp_path):
    """By whichever file it comes, a slide is painted with the same numbers."""
    import tifffile

    pixels, options = section(), {"photometric": "rgb", "tile": (128, 128), "metadata": None}
    ome_zarr(tmp_path / "in" / "a.zarr", pixels)
    tifffile.imwrite(tmp_path / "a.tif", pixels, **options)
    run(tmp_path / "in", tmp_path / "out")
    augment = slides.StyleAugment(bank_of(LAB), generator=LAB, p=1.0)
    with ZarrReader(tmp_path / "in" / "a.zarr") as one, open_slide(tmp_path / "a.tif") as other:
        params = augment.draw(1)
        painted = [
            np.concatenate(list(slides.stylise_tiles(augment, slide, params, tile=512)), axis=1)
            for slide in (one, other)
        ]
    assert np.array_equal(*painted)


def test_shards_and_two_bytes(tmp_path):
    pixels = section().astype(np.uint16) * 257
    ome_zarr(
        tmp_path / "in" / "a.ome.zarr", pixels, levels=(), mpp=None, version="0.5", shards=(1, 3, 1, 256, 256)
    )
    assert run(tmp_path / "in", tmp_path / "out").failed == []
    with open_slide(tmp_path / "out" / "a.ome.zarr") as copy:
        assert copy.dtype == np.uint16 and copy.mpp is None
        assert np.abs(copy.read(0, 0, 512, 768) / 257 - section()).mean() > 5


def test_levels_of_any_size(tmp_path):
    pixels = section(301, 403)
    ome_zarr(tmp_path / "in" / "a.zarr", pixels, levels=((150, 202), (60, 70), (60, 70)))
    assert run(tmp_path / "in", tmp_path / "out").failed == []
    with ZarrReader(tmp_path / "out" / "a.zarr") as copy:
        assert copy.levels == [(301, 403), (150, 202), (60, 70), (60, 70)]
        full, small = (copy.read(0, 0, *copy.levels[level], level=level) for level in (0, 2))
        assert np.abs(full.mean(axis=(0, 1)) - small.mean(axis=(0, 1))).max() < 3


def test_cells():
    assert cells_of(6, 3).tolist() == [0, 2, 4, 6]
    assert cells_of(5, 3).tolist() == [0, 2, 4, 5]
    assert cells_of(5, 2).tolist() == [0, 2, 4]
    assert cells_of(7, 3).tolist() == [0, 2, 4, 6]
    assert cells_of(100, 70).tolist() == [index * 100 // 70 for index in range(71)]
    assert cells_of(5, 5).tolist() == [0, 1, 2, 3, 4, 5]


def test_a_run_goes_on_and_leaves_nothing_half(tmp_path, monkeypatch):
    ome_zarr(tmp_path / "in" / "a.zarr", section())
    ome_zarr(tmp_path / "in" / "deep" / "b.zarr", section(seed=1))
    first = run(tmp_path / "in", tmp_path / "out", copies=2)
    assert first.written == 4
    made = files(tmp_path / "out")
    assert run(tmp_path / "in", tmp_path / "out", copies=2).skipped == 4
    chunk = tmp_path / "out" / "a-2.zarr" / "0" / "0.0.0.1.1"
    chunk.write_bytes(b"")
    again = run(tmp_path / "in", tmp_path / "out", copies=2)
    assert (again.written, again.skipped) == (1, 3)
    lines = sorted(made.pop("manifest.jsonl").splitlines())
    after = files(tmp_path / "out")
    assert len(after.pop("manifest.jsonl").splitlines()) == len(lines) and after == made

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "reduced_blocks", stop)
    ome_zarr(tmp_path / "in" / "a.zarr", section(seed=2), levels=HALVES)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "in", tmp_path / "out", copies=2)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "a-1.zarr",
        "a-2.zarr",
        "deep",
        "manifest.jsonl",
    }


def test_what_a_killed_process_left_is_removed(tmp_path):
    ome_zarr(tmp_path / "in" / "a.zarr", section(128, 128))
    run(tmp_path / "in", tmp_path / "out")
    left = tmp_path / "out" / ".a.0123abcd.part.zarr"
    (left / "0").mkdir(parents=True)
    (left / "0" / "0.0").write_bytes(b"half")
    run(tmp_path / "in", tmp_path / "out")
    assert not left.exists()


def test_a_folder_that_is_something_else_is_not_replaced(tmp_path):
    ome_zarr(tmp_path / "in" / "a.zarr", section(128, 128))
    (tmp_path / "out" / "a.zarr").mkdir(parents=True)
    (tmp_path / "out" / "a.zarr" / "thesis.txt").write_text("mine")
    result = run(tmp_path / "in", tmp_path / "out")
    assert "is something else" in result.failed[0][1]
    assert (tmp_path / "out" / "a.zarr" / "thesis.txt").read_text() == "mine"


def test_one_image_is_a_source_by_itself(tmp_path, command):
    source = ome_zarr(tmp_path / "a.zarr", section())
    assert run(source, tmp_path / "out").written == 1
    assert len(fit_style(source, generator=LAB, min_images=1, mpp=1.0).bank) == 1
    assert list_files(source, {".zarr"}).files == list(list_images(source).paths) == [source]
    assert open_image(source, short_side=100).size == (153, 102), "its only level, reduced"
    (tmp_path / "list.csv").write_text("path\na.zarr\n")
    assert list_images(tmp_path / "list.csv").paths == (source,)
    command("fit-style", source, source, "-o", tmp_path / "b.safetensors", "--min-images", 1, "--mpp", 0.5)


# --- what can be wrong ---------------------------------------------------------------------------


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def why(path: Path) -> str:
    with pytest.raises(FileError) as caught, open_slide(path) as slide:
        slide.thumbnail(64)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("axes", "shape", "reason"),
    [
        ("tczyx", (2, 3, 1, 8, 8), "one time and one depth"),
        ("tczyx", (1, 3, 5, 8, 8), "z 5"),
        ("czxy", (3, 1, 8, 8), "y and x last"),
        ("yxc", (8, 8, 3), "y and x last"),
        ("yyx", (1, 8, 8), "axes y 8"),
    ],
)
def test_odd_axes(axes, shape, reason, tmp_path):
    path = ome_zarr(tmp_path / "a.zarr", section(8, 8), axes="cyx")
    scales = json.loads((path / ".zattrs").read_text())["multiscales"]
    scales[0]["axes"] = [{"name": axis} for axis in axes]
    edit(path / ".zattrs", multiscales=scales)
    zarr.create_array(str(path), name="0", shape=shape, dtype="u1", zarr_format=2, overwrite=True)
    assert reason in why(path)


def test_numbers_of_channels_that_are_no_colours(tmp_path):
    source = ome_zarr(tmp_path / "in" / "a.zarr", np.zeros((64, 64, 5), np.uint8))
    result = run(tmp_path / "in", tmp_path / "out")
    assert "5 channels" in result.failed[0][1] and str(source) in result.failed[0][1]
    with pytest.raises(FileError, match=r"a\.zarr has 5 channels"):
        fit_style(source, generator=LAB, min_images=1)


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("/tmp/styleaug-was-here",)


def test_a_codec_that_executes_is_refused(tmp_path):
    path = ome_zarr(tmp_path / "a.zarr", section(64, 64), axes="cyx", chunk=64)
    edit(path / "0" / ".zarray", compressor={"id": "pickle", "protocol": 4})
    (path / "0" / "0.0.0").write_bytes(pickle.dumps(Bomb()))
    assert "packed with ['pickle']" in why(path)
    assert not os.path.exists("/tmp/styleaug-was-here")
    new = ome_zarr(tmp_path / "b.zarr", section(64, 64), version="0.5")
    edit(new / "0" / "zarr.json", codecs=[{"name": "numcodecs.pickle", "configuration": {}}])
    assert "pickle" in why(new)


def test_hostile_claims(tmp_path):
    path = ome_zarr(tmp_path / "a.zarr", section(64, 64), axes="cyx")
    good = (path / "0" / ".zarray").read_text()
    edit(path / "0" / ".zarray", shape=[3, 10**7, 10**7])
    assert "10000000 x 10000000 pixels" in why(path)
    edit(path / "0" / ".zarray", shape=[3, 10**5, 10**5], chunks=[3, 10**5, 10**5])
    assert "too large to be read" in why(path)
    edit(path / "0" / ".zarray", **json.loads(good) | {"dtype": "|O"})
    assert "'|O'" in why(path)
    for name in ("../a.zarr/0", "/etc", "..", ".", "0/../0"):
        scales = json.loads((path / ".zattrs").read_text())["multiscales"]
        scales[0]["datasets"][0]["path"] = name
        edit(path / ".zattrs", multiscales=scales)
        assert "outside it" in why(path)


def test_links_are_not_copied(tmp_path):
    path = ome_zarr(tmp_path / "in" / "a.zarr", section(128, 128))
    (tmp_path / "secret").write_text("secret")
    (path / "labels" / "x").symlink_to(tmp_path / "secret")
    result = run(tmp_path / "in", tmp_path / "out")
    assert "holds a link" in result.failed[0][1] and not (tmp_path / "out" / "a.zarr").exists()
    (path / "labels" / "x").unlink()
    (path / "0").rename(tmp_path / "elsewhere")
    (path / "0").symlink_to(tmp_path / "elsewhere")
    assert "outside it" in why(path)


def test_damaged_and_incomplete(tmp_path):
    for name, spoil in {
        "text": lambda path: (path / ".zattrs").write_text("no"),
        "list": lambda path: (path / ".zattrs").write_text("[]"),
        "plain": lambda path: (path / ".zattrs").write_text("{}"),
        "plate": lambda path: (path / ".zattrs").write_text('{"plate": {}}'),
        "none": lambda path: edit(path / ".zattrs", multiscales=[{"datasets": []}]),
        "wrong": lambda path: edit(path / ".zattrs", multiscales=7),
        "lost": lambda path: (path / "1" / ".zarray").unlink(),
        "array": lambda path: (path / "0" / ".zarray").write_text('{"shape": "x"}'),
        "chunk": lambda path: (path / "0" / "0.0.0").write_bytes(b"\x02\x01!\x01 damaged"),
    }.items():
        path = ome_zarr(tmp_path / f"{name}.zarr", section(64, 64), axes="cyx", levels=((32, 32),))
        spoil(path)
        assert why(path)
    (tmp_path / "empty.zarr").mkdir()
    assert "is no OME-Zarr" in why(tmp_path / "empty.zarr")
    (tmp_path / "file.zarr").write_bytes(b"")
    assert "is not a folder" in why(tmp_path / "file.zarr")


def test_without_zarr_the_error_says_what_to_install(tmp_path, monkeypatch):
    path = ome_zarr(tmp_path / "a.zarr", section(64, 64))
    monkeypatch.setitem(__import__("sys").modules, "zarr", None)
    with pytest.raises(MissingExtraError, match=r'pip install "styleaug\[slides\]"'):
        open_slide(path)
