"""Volumes whose slices are DICOM files of their own: one style, one set of statistics, no flicker."""

from pathlib import Path

import numpy as np
import pytest
from dicom_files import write
from specimens import bank, bank_of, tiny_adain

from styleaug import apply_folder
from styleaug.io.files import open_image, series_of

SLICES = 6
STYLES = bank("reinhard-rgb", 9)


def write_series(folder: Path, uid: str, *, level: int = 0, seed: int = 0) -> list[Path]:
    """Write slices of a phantom whose brightness changes from one to the next, but for a reference rod."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    paths = []
    for index in range(SLICES):
        values = rng.normal(level + 60 * index, 30, (32, 40))
        values[4:12, 4:12] = 50  # the rod: the same in all slices
        place = {"ImagePositionPatient": [0, 0, 5 * index], "WindowCenter": 100, "WindowWidth": 800}
        tags = {"SeriesInstanceUID": uid, "SOPInstanceUID": f"{uid}.{index}", "RescaleIntercept": 0}
        path = folder / f"{uid}-{index}.dcm"
        paths.append(write(path, values.astype(np.int16), RescaleSlope=1, **place, **tags))
    return paths


def rods(folder: Path) -> np.ndarray:
    """Give the value of the rod in each slice, and make sure that it is one."""
    values = [open_image(path).frames[0, 6:10, 6:10] for path in sorted(folder.rglob("*.dcm"))]
    assert all(np.ptp(value) == 0 for value in values)
    return np.array([value.flat[0] for value in values])


def test_slices_of_a_series_go_through_one_map(tmp_path):
    write_series(tmp_path / "in", "1.2.7")
    apply_folder(tmp_path / "in", tmp_path / "out", bank=STYLES, strength=1.0)
    (first, *others) = rods(tmp_path / "out")
    assert first != 50
    assert others == [first] * (SLICES - 1)


def test_single_images_keep_styles_of_their_own(tmp_path):
    for path in write_series(tmp_path / "in", "1.2.7"):
        # Without a place they are no slices.
        write(path, open_image(path).frames[0], SeriesInstanceUID="1.2.7", WindowCenter=100, WindowWidth=800)
    apply_folder(tmp_path / "in", tmp_path / "out", bank=STYLES, strength=1.0)
    assert len(set(rods(tmp_path / "out"))) > 1


def test_copies_of_a_series_differ(tmp_path):
    write_series(tmp_path / "in", "1.2.7")
    result = apply_folder(tmp_path / "in", tmp_path / "out", bank=STYLES, copies=2)
    assert result.written == 2 * SLICES
    found = rods(tmp_path / "out").reshape(SLICES, 2)
    assert (found == found[0]).all()
    one, other = (open_image(path).frames for path in sorted((tmp_path / "out").glob("*-0-?.dcm")))
    assert not np.array_equal(one, other)


def test_what_else_is_in_the_folder_and_who_does_it_change_nothing(tmp_path):
    write_series(tmp_path / "alone", "1.2.7")
    for place, (uid, level) in enumerate((("1.2.7", 0), ("1.2.8", 300))):
        write_series(tmp_path / "both" / str(place), uid, level=level, seed=place)
    options = {"bank": bank_of(tiny_adain()), "generator": tiny_adain()}
    apply_folder(tmp_path / "alone", tmp_path / "out1", **options)
    apply_folder(tmp_path / "both", tmp_path / "out2", **options, workers=2)
    for path in sorted((tmp_path / "out1").glob("*.dcm")):
        one, other = open_image(path).frames, open_image(tmp_path / "out2" / "0" / path.name).frames
        assert np.array_equal(one, other)


def test_a_bad_slice_is_named_and_the_rest_goes_on(tmp_path):
    paths = write_series(tmp_path / "in", "1.2.7")
    paths[2].write_bytes(paths[2].read_bytes()[:-500])
    result = apply_folder(tmp_path / "in", tmp_path / "out", bank=STYLES)
    assert [path.name for path, _ in result.failed] == [paths[2].name]
    assert result.written == SLICES - 1


def test_a_slice_that_is_gone_is_made_again_alike(tmp_path):
    write_series(tmp_path / "in", "1.2.7")
    apply_folder(tmp_path / "in", tmp_path / "out", bank=STYLES)
    gone = sorted((tmp_path / "out").glob("*.dcm"))[3]
    before = gone.read_bytes()
    gone.unlink()
    again = apply_folder(tmp_path / "in", tmp_path / "out", bank=STYLES)
    assert (again.written, again.skipped) == (1, SLICES - 1)
    assert gone.read_bytes() == before


@pytest.mark.parametrize(
    "tags", [{"NumberOfFrames": 2}, {"ImagePositionPatient": None}, {"SeriesInstanceUID": None}]
)
def test_what_is_no_slice_has_no_series(tmp_path, tags):
    kept = {"ImagePositionPatient": [0, 0, 5]} | tags
    values = np.zeros((2, 8, 8) if "NumberOfFrames" in tags else (8, 8), np.int16)
    path = write(tmp_path / "image.dcm", values, **kept)
    assert series_of(path) == ""
