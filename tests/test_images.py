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


@pytest.mark.parametrize("mode", ["1", "P", "CMYK", "YCbCr", "LAB", "HSV", "PA", "La", "RGBX"])
def test_other_modes_are_refused(mode):
    with pytest.raises(ImageError, match=r"convert\('RGB'\)"):
        to_pixels(Image.new(mode, (4, 4)))


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
@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf"), -0.01, 1.01, 255.0])
def test_range(dtype, wrong):
    images = random_tensor((2, 3, 5, 5), dtype, 0)
    check_range(images)
    images[1, 2, 4, 4] = wrong
    with pytest.raises(ImageError, match=r"must lie in \[0, 1\].*Stylise before Normalize"):
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
