"""Scans: windows, true values and back, and 16-bit images with a window."""

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from specimens import bank, bank_of, pil, tiny_adain

from styleaug import ConfigError, FileError, apply_folder
from styleaug.io.files import Scan, open_image, save_image
from styleaug.io.scan import as_picture, check_size, make_scan, parse_window, rescaled
from styleaug.offline.copies import scan_pixels


def nowhere(frames, path):
    raise AssertionError("nothing is saved here")


def scan(frames, **options) -> Scan:
    return make_scan(np.asarray(frames), nowhere, **{"window": None, **options})


@pytest.mark.parametrize("text", [None, "auto", "dicom"])
def test_named_windows(text):
    assert parse_window(text) == text


def test_windows_of_numbers():
    assert parse_window("40/400") == (40, 400) and parse_window("-600/1500.5") == (-600, 1500.5)
    assert parse_window((40, 400)) == (40, 400)


@pytest.mark.parametrize("text", ["40", "40/0", "40/-3", "a/b", "1/2/3", "nan/4", "inf/4", "4/inf", "", 40])
def test_windows_that_are_none(text):
    with pytest.raises(ConfigError, match="CENTRE/WIDTH"):
        parse_window(text)


def test_which_span_is_shown():
    frames = np.arange(10_000, dtype=np.uint16).reshape(1, 100, 100)
    assert scan(frames, window=(40, 400)).span == (-160, 240)
    assert scan(frames, own=(3, 7)).span == (3, 7) == scan(frames, own=(3, 7), window="dicom").span
    assert scan(frames, whole=True).span == (0, 65535)
    auto = scan(frames, window="auto", own=(3, 7)).span
    assert auto == pytest.approx((50, 9949), abs=1) == scan(frames, window="dicom").span == scan(frames).span
    assert scan(frames, window=(40, 400), mirror=100).span == (-140, 260)
    assert scan(np.full((1, 4, 4), 7)).span == (7, 8)
    sparse = np.zeros((1, 100, 100))
    sparse[0, 0, 0] = 5
    assert scan(sparse).span == (0, 5), "the whole range where the percentiles are flat"


def test_padding_says_nothing_of_the_span():
    frames = np.full((1, 50, 50), -2000, np.int16)
    frames[0, :10] = np.arange(500).reshape(10, 50)
    assert scan(frames, beside=frames == -2000).span[0] > 0 > scan(frames).span[0]


def test_large_scans_are_read_on_a_grid():
    frames = np.random.default_rng(0).normal(100, 20, (20, 400, 400)).astype(np.float32)
    assert scan(frames).span == pytest.approx(np.percentile(frames, (0.5, 99.5)), abs=2)


def test_what_is_no_number_is_put_back():
    frames = np.arange(12, dtype=np.float32).reshape(1, 3, 4)
    frames[0, 0, :2] = np.nan, np.inf
    kept = {}
    found = make_scan(frames, lambda styled, path: kept.update(styled=styled), window=None)
    assert np.isfinite(found.frames).all() and found.span[0] >= 2
    found.save(found.frames + 1, None)
    assert np.array_equal(kept["styled"][0, 0, :2], frames[0, 0, :2], equal_nan=True)
    assert np.array_equal(kept["styled"][0, 1:], frames[0, 1:] + 1)
    with pytest.raises(FileError, match="no pixel is a number"):
        scan(np.full((1, 2, 2), np.nan, np.float32))


@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize(
    ("dtype", "limits", "slope", "intercept", "expected"),
    [
        ("u1", (0, 255), 1, 0, "uint8"),
        ("u2", (0, 4095), 1, -1024, "int16"),
        ("u2", (0, 65535), 1, 0, "uint16"),
        ("u2", (0, 65535), 1, -1024, "int32"),
        ("i2", (-32768, 32767), 1, 0, "int16"),
        ("i2", (-32768, 32767), 0.0123, 3.7, "float32"),
        ("u2", (0, 4095), -2, 5, "int16"),
        (">i2", (-2048, 2047), 1, 0, "int16"),
        ("f4", (0, 1), 2.0, 1.0, "float32"),
        ("f8", (0, 1), 1.0, 0.0, "float64"),
    ],
)
def test_true_values_and_back(dtype, limits, slope, intercept, expected, inverted):
    stored = np.linspace(*limits, 4096).astype(dtype).reshape(1, 64, 64)
    true, back, mirror = rescaled(stored, slope, intercept, limits, inverted=inverted)
    assert true.dtype == expected
    plain = stored.astype(float) * slope + intercept
    assert np.allclose(true, mirror - plain if inverted else plain, rtol=1e-6)
    again = back(true)
    assert again.dtype == stored.dtype.newbyteorder("=")
    assert np.allclose(again, stored, rtol=1e-6) if dtype[0] == "f" else np.array_equal(again, stored)


def test_values_are_cut_at_what_can_be_stored():
    _, back, _ = rescaled(np.zeros((1, 1, 2), np.uint16), 1, -1024, (0, 4095))
    assert back(np.array([[[-5000, 9000]]], np.int16)).tolist() == [[[0, 4095]]]


def test_slopes_of_each_frame():
    stored = np.ones((3, 2, 2), np.uint16)
    slopes = np.array([1.0, 2.0, 0.5])[:, None, None]
    true, back, _ = rescaled(stored, slopes, np.zeros((3, 1, 1)), (0, 65535))
    assert true[:, 0, 0].tolist() == [1, 2, 0.5] and np.array_equal(back(true), stored)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32"])
@pytest.mark.parametrize(("shape", "volume"), [((1, 4, 5), False), ((3, 4, 5), True), ((3, 4, 5, 3), False)])
def test_scans_come_back_from_pixels(dtype, shape, volume):
    frames = np.random.default_rng(0).integers(0, 200, shape).astype(dtype)
    pixels, restore = scan_pixels(scan(frames, window=(100, 150), volume=volume))
    channels = shape[3] if len(shape) == 4 else 1
    assert tuple(pixels.shape) == ((1,) if volume else ()) + (shape[0], channels, 4, 5)
    assert pixels.dtype == torch.float32 and pixels.min() >= 0 and pixels.max() <= 1
    back = restore(pixels)
    assert back.frames.dtype == frames.dtype
    assert np.abs(back.frames.astype(float) - frames).max() <= (1e-4 if dtype == "float32" else 0)


def test_pictures_of_scans():
    frames = np.stack([np.full((4, 5), value, np.int16) for value in (0, 100, 400)])
    picture = as_picture(scan(frames, window=(100, 200), volume=True))
    assert picture.dtype == np.float32 and np.all(picture == 0.5)
    colour = np.zeros((1, 4, 5, 3), np.uint8)
    assert as_picture(scan(colour, whole=True)).dtype == np.uint8
    assert as_picture(scan(np.zeros((1, 4, 5, 7)), own=(0, 1))).shape == (4, 5, 3)
    assert as_picture(scan(np.zeros((1, 4, 5, 2)), own=(0, 1))).shape == (4, 5)
    image = pil("RGB")
    assert as_picture(image) is image


def test_sizes_that_are_refused(tmp_path):
    for size, words in [
        ((0, 5), "1 frames of 5 x 0"),
        ((100_000, 100_000), "100000 x 100000"),
        ((1000, 1000, 3000, 2), "6,000,000,000 bytes"),
    ]:
        with pytest.raises(FileError, match=words):
            check_size(tmp_path, *size)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.npy"])
def test_twelve_bits_in_sixteen(name, tmp_path):
    values = np.random.default_rng(0).integers(0, 4096, (30, 40)).astype(np.uint16)
    image = values if name == "a.npy" else Image.fromarray(values)
    save_image(image, tmp_path / name)
    assert not isinstance(open_image(tmp_path / name), Scan), "its whole range, as ever"
    found = open_image(tmp_path / name, window="2048/4096")
    assert isinstance(found, Scan) and found.span == (0, 4096)
    save_image(found, tmp_path / f"again{name}")
    assert np.array_equal(np.asarray(open_image(tmp_path / f"again{name}")), values)
    assert isinstance(open_image(tmp_path / name, window="dicom"), Scan)


@pytest.mark.parametrize(
    ("dtype", "shape"), [("i2", (6, 7)), ("<i4", (6, 7, 3)), ("u1", (6, 7, 4)), ("f4", (6, 7, 5))]
)
def test_arrays_of_other_kinds(dtype, shape, tmp_path):
    array = (np.random.default_rng(0).random(shape) * (1 if dtype == "f4" else 200)).astype(dtype)
    np.save(tmp_path / "a.npy", array)
    found = open_image(tmp_path / "a.npy")
    assert isinstance(found, Scan) and np.array_equal(found.frames[0], array)
    save_image(found, tmp_path / "b.npy")
    assert np.array_equal(np.load(tmp_path / "b.npy"), array)


def test_windows_leave_eight_bits_alone(tmp_path):
    save_image(pil("L"), tmp_path / "a.png")
    assert isinstance(open_image(tmp_path / "a.png", window="40/400"), Image.Image)


def test_the_window_is_a_setting_of_a_run(tmp_path):
    (tmp_path / "in").mkdir()
    values = np.random.default_rng(0).integers(0, 4096, (24, 30)).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "in" / "a.png")

    def run(out: str, **options):
        apply_folder(tmp_path / "in", tmp_path / out, bank=bank(), generator=tiny_adain(), **options)
        settings = json.loads((tmp_path / out / "manifest.jsonl").read_text().splitlines()[0])["settings"]
        return settings, (tmp_path / out / "a.png").read_bytes()

    plain, before = run("plain")
    assert "window" not in plain, "manifests of earlier versions still fit"
    windowed, after = run("windowed", window="2048/4096")
    assert windowed == {**plain, "window": "2048/4096"} and before != after
    with pytest.raises(ConfigError, match="CENTRE/WIDTH"):
        run("wrong", window="wide")
    with pytest.raises(ConfigError, match="other settings"):
        run("plain", window="auto")


def test_sixteen_bit_images_keep_their_levels(tmp_path):
    values = np.random.default_rng(0).integers(0, 4096, (48, 60)).astype(np.uint16)
    (tmp_path / "in").mkdir()
    Image.fromarray(values).save(tmp_path / "in" / "a.png")
    generator = tiny_adain()
    for strength in (0.0, 0.5):
        out = tmp_path / str(strength)
        apply_folder(
            tmp_path / "in", out, bank=bank_of(generator), generator=generator, strength=strength,
            window="2048/4096",
        )  # fmt: skip
        styled = np.asarray(open_image(out / "a.png"))
        assert np.array_equal(styled, values) == (strength == 0)
        assert len(np.unique(styled)) > 256


@pytest.mark.parametrize(
    ("library", "name"),
    [
        ("pydicom", "a.dcm"),
        ("nibabel", "a.nii.gz"),
        ("tifffile", "stack.tif"),
        ("imagecodecs", "deep.png"),
    ],
)
def test_what_is_missing_is_named(library, name, tmp_path, monkeypatch):
    source = tmp_path / "in"
    source.mkdir()
    if name == "stack.tif":
        pages = [Image.new("L", (8, 8)), Image.new("L", (8, 8))]
        pages[0].save(source / name, save_all=True, append_images=pages[1:])
    elif name == "deep.png":
        (source / name).write_bytes(
            b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes([0, 0, 0, 4, 0, 0, 0, 4, 16, 2, 0, 0, 0])
        )
    else:
        (source / name).write_bytes(bytes(128) + b"DICM" + bytes(300))
    Image.new("RGB", (20, 16), "grey").save(source / "fine.png")
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ConfigError, match=rf'needs {library}: pip install "styleaug\[medical\]"'):
        open_image(source / name)
    result = apply_folder(source, tmp_path / "out", bank=bank(), generator=tiny_adain())
    assert result.written == 1 and [path.name for path, _ in result.failed] == [name]
