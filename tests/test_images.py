"""Images in memory: every form to pixels and back without loss."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from specimens import photos, pil
from strategies import FLOATS, INTEGERS, arrays, pil_images, random_tensor, tensors

from styleaug import ImageError
from styleaug.images import check_range, from_float, luminance, to_float, to_pixels, with_luminance


@given(image=tensors(axes=(3, 4, 5, 6)))
def test_tensors_round_trip(image):
    pixels, restore = to_pixels(image)
    assert pixels.ndim == 4 and pixels.shape[1:] == image.shape[-3:] and pixels.dtype == image.dtype
    back = restore(pixels)
    assert back.shape == image.shape
    assert torch.equal(back.double(), image.double())


@given(image=arrays())
def test_arrays_round_trip(image):
    pixels, restore = to_pixels(image)
    assert pixels.ndim == 4 and pixels.shape[1] in (1, 3)
    assert np.array_equal(restore(pixels), image)
    pixels.zero_()
    assert image.max() > 0 or image.size < 4, "pixels are a copy, for arrays may be read-only"


@given(image=pil_images())
def test_pil_images_round_trip(image):
    image.info["dpi"] = (72, 72)
    pixels, restore = to_pixels(image)
    assert pixels.shape == (1, 3 if "R" in image.mode else 1, image.height, image.width)
    back = restore(pixels)
    assert back.mode == image.mode and back.tobytes() == image.tobytes() and back.info == image.info


def test_pil_pixels_are_where_they_belong():
    image = Image.new("RGB", (3, 2))
    image.putpixel((2, 1), (10, 20, 30))
    pixels, _ = to_pixels(image)
    assert pixels[0, :, 1, 2].tolist() == [10, 20, 30] and int(pixels.sum()) == 60


@pytest.mark.parametrize("mode", ["1", "P", "CMYK", "YCbCr", "LAB", "HSV", "PA", "La", "RGBa", "RGBX"])
def test_other_modes_are_refused_with_advice_that_works(mode):
    image = Image.new(mode, (4, 4))
    with pytest.raises(ImageError, match=f"got {mode!r}. Use image.convert") as caught:
        to_pixels(image)
    wanted = str(caught.value).rpartition("convert('")[2].partition("'")[0]
    to_pixels(image.convert(wanted))
    assert (wanted in ("LA", "RGBA")) == (mode in ("PA", "La", "RGBa"))


def test_palettes_with_transparency_are_to_keep_it():
    image = pil("RGB").quantize(8)
    image.info["transparency"] = 3
    with pytest.raises(ImageError, match=r"convert\('RGBA'\)"):
        to_pixels(image)


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I;16L", "I;16N"])
def test_sixteen_bits_of_every_byte_order(mode):
    values = np.random.default_rng(0).integers(0, 65536, (5, 7), dtype=np.uint16)
    image = Image.new(mode, (7, 5))
    image.frombytes(values.astype(">u2" if mode == "I;16B" else "<u2").tobytes())
    pixels, restore = to_pixels(image)
    assert pixels.dtype == torch.uint16 and np.array_equal(pixels[0, 0].numpy(), values)
    back = restore(pixels)
    assert back.mode == mode and back.tobytes() == image.tobytes()


@pytest.mark.parametrize(
    ("values", "advice"),
    [
        ([0, 255], "uint8"),
        ([3, 60_000], "uint16"),
        ([-1000, 400], "float32) with value_range=(low, high)"),
        ([0, 2**40], "float32) with value_range"),
    ],
)
@pytest.mark.parametrize("array", [False, True])
def test_whole_numbers_are_converted_by_their_values(values, advice, array):
    image = np.resize(np.array(values, np.int64), (1, 4, 4))
    image = image[0] if array else torch.from_numpy(image)
    with pytest.raises(ImageError, match=r"uint8, uint16 or float, got .*int64") as caught:
        to_pixels(image)
    told = str(caught.value)
    assert told.startswith("image") and f"These lie in {values[0]}..{values[1]}" in told and advice in told
    assert (".astype(np." if array else ".to(torch.") in told and "scale" not in told


def test_empty_images_are_refused():
    with pytest.raises(ImageError, match="at least one pixel"):
        to_pixels(Image.new("RGB", (0, 4)))
    with pytest.raises(ImageError, match="at least one pixel"):
        to_pixels(np.zeros((4, 0, 3), np.uint8))
    pixels, _ = to_pixels(torch.rand(0, 3, 4, 4))  # a batch may be empty
    assert len(pixels) == 0


@pytest.mark.parametrize(
    "dtype",
    [np.int8, np.int64, np.uint32, np.uint64, np.bool_, np.complex64, np.longdouble],
)
def test_other_array_dtypes_are_refused(dtype):
    with pytest.raises(ImageError, match="uint8, uint16 or float"):
        to_pixels(np.zeros((4, 4, 3), dtype))


@pytest.mark.parametrize("dtype", list(INTEGERS))
def test_all_integers_survive_float(dtype):
    every = torch.arange(INTEGERS[dtype] + 1, dtype=torch.int32).view(1, 1, 1, -1).to(dtype)
    values = to_float(every)
    assert values.dtype == torch.float32 and values.min() == 0 and values.max() == 1
    assert torch.equal(from_float(values, dtype).int(), every.int())


def test_bytes_survive_float16():
    every = torch.arange(256, dtype=torch.uint8).view(1, 1, 1, -1)
    values = to_float(every, torch.float16)
    assert values.dtype == torch.float16
    assert torch.equal(from_float(values, torch.uint8), every)


def test_integers_are_rounded_to_the_nearest_and_clamped():
    values = torch.tensor([-0.1, 0.0, 0.4 / 255, 0.6 / 255, 0.5, 254.6 / 255, 1.0, 1.1]).view(1, 1, 1, -1)
    assert from_float(values, torch.uint8).flatten().tolist() == [0, 0, 0, 1, 128, 255, 255, 255]
    assert from_float(values, torch.uint16)[0, 0, 0, -1] == 65535


@given(image=tensors(axes=(4,)))
def test_to_float_leaves_its_input(image):
    before = image.clone()
    values = to_float(image)
    values.zero_()
    if image.dtype != torch.float32:
        assert torch.equal(image.double(), before.double())


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("wrong", [-0.01, 1.01, 255.0])
def test_range(dtype, wrong):
    images = random_tensor((2, 3, 5, 5), dtype, 0)
    check_range(images)
    images[1, 2, 4, 4] = wrong
    with pytest.raises(ImageError, match=r"must lie in \[0, 1\].*Stylise before Normalize"):
        check_range(images)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("value_range", [None, (-100, 100), "auto"])
@pytest.mark.parametrize(("wrong", "name"), [("nan", "NaN"), ("inf", "infinite"), ("-inf", "infinite")])
def test_what_is_no_number_is_called_so(dtype, value_range, wrong, name):
    images = random_tensor((2, 3, 5, 5), dtype, 0)
    images[1, 2, 4, 4] = float(wrong)
    with pytest.raises(ImageError, match=f"must be finite, got {name}.*: 1 of 150 values") as caught:
        check_range(images, value_range)
    assert "Normalize" not in str(caught.value) and "clamp" not in str(caught.value)
    images[0] = 7  # out of range as well: NaN is the worse fault
    with pytest.raises(ImageError, match="must be finite"):
        check_range(images)


def test_range_of_integers_and_nothing_needs_no_check():
    check_range(torch.full((1, 3, 2, 2), 255, dtype=torch.uint8))
    check_range(torch.zeros(0, 3, 2, 2))


def test_luminance_is_pils():
    image = pil("RGB", (40, 30))
    pixels, _ = to_pixels(image)
    grey = luminance(to_float(pixels))[0, 0]
    wanted = torch.from_numpy(np.asarray(image.convert("L")).astype(np.float32) / 255)
    assert (grey - wanted).abs().max() < 1 / 255


@given(seed=st.integers(0, 1000))
def test_with_luminance(seed):
    images, styled = random_tensor((2, 2, 3, 6, 7), torch.float32, seed)
    kept = with_luminance(styled, images)
    assert kept.min() >= 0 and kept.max() <= 1
    torch.testing.assert_close(luminance(kept), luminance(images), atol=1e-5, rtol=0)
    torch.testing.assert_close(with_luminance(images, images), images, atol=1e-5, rtol=0)


def test_with_luminance_keeps_chroma_where_it_fits():
    images, styled = 0.4 + 0.1 * photos(1), 0.5 + 0.1 * photos(2)[1:]
    kept = with_luminance(styled, images)
    torch.testing.assert_close(kept - luminance(kept), styled - luminance(styled), atol=1e-5, rtol=0)
