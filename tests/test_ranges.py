"""Values of any range: what comes back has its range, its dtype and its many levels."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from specimens import GENERATORS, bank, bank_of, generator, photo, photos
from strategies import seeds
from torch import Tensor

from styleaug import ConfigError, ImageError, StyleAugment, load_generator
from styleaug.generators.base import AbstractGenerator
from styleaug.images import range_of, to_unit

WINDOW = (-160.0, 240.0)
DTYPES = [torch.uint8, torch.uint16, torch.int16, torch.int32, torch.float16, torch.float32, torch.float64]
TRAINED = ["adain", "photo"]


def tiny(make: type = StyleAugment, **options):
    """Make a transform over a colour generator that stylises all rows."""
    return make(bank("reinhard-rgb"), **{"p": 1.0, "generator": generator("reinhard-rgb"), **options})


def cast(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Give values as they are in another dtype; torch cannot make uint16 of floats everywhere."""
    return (
        values
        if dtype.is_floating_point and values.dtype == dtype
        else (values.to(dtype) if dtype.is_floating_point else values.round().to(torch.int32).to(dtype))
    )


def hounsfield(*shape: int, seed: int = 0) -> Tensor:
    """Make values of CT: air, fat, soft tissue, bone."""
    rng = torch.Generator().manual_seed(seed)
    tissue = torch.tensor([-1000.0, -90.0, 40.0, 60.0, 700.0])[torch.randint(5, shape, generator=rng)]
    return (tissue + 12 * torch.randn(shape, generator=rng)).round()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_range_is_that_of_unit_images(channels, dtype):
    low, high = (20.0, 220.0) if dtype in (torch.uint8, torch.uint16) else WINDOW
    unit = photos(2, channels=channels)
    images = cast(low + (high - low) * unit, dtype)
    augment, plain = tiny(value_range=(low, high), strength=0.7), tiny(strength=0.7)
    params = augment.make_params(images)
    styled = augment.apply(images, params)
    assert (styled.shape, styled.dtype, styled.stride()) == (images.shape, dtype, images.stride())
    wanted = plain.apply(((images.double() - low) / (high - low)).float(), params)
    step = {torch.float16: 0.2, torch.float32: 1e-3, torch.float64: 1e-3}.get(dtype, 0.51)
    torch.testing.assert_close(styled.double(), low + (high - low) * wanted.double(), atol=step, rtol=0)
    assert (wanted - unit).abs().max() > 0.05


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.float32])
def test_beyond_the_range_the_distance_to_its_border_is_kept(dtype):
    images = cast(hounsfield(2, 1, 40, 40), dtype)
    augment = tiny(value_range=WINDOW, strength=1.0)
    params = augment.make_params(images)
    styled = augment.apply(images, params)
    at_border = augment.apply(images.clamp(*map(int, WINDOW)), params)
    beyond = images - images.clamp(*map(int, WINDOW))
    assert beyond.min() < -700 and beyond.max() > 400
    torch.testing.assert_close((styled - at_border).double(), beyond.double(), atol=1.01, rtol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value_range", ["auto", (10, 200)])
def test_strength_zero_gives_all_values_back(dtype, value_range):
    images = cast(photos(3, channels=1) * 240, dtype)
    still = tiny(strength=0.0, value_range=value_range)(images)
    if dtype.is_floating_point:
        step = 0.25 if dtype == torch.float16 else 1e-4
        torch.testing.assert_close(still, images, atol=step, rtol=0)
    else:
        assert torch.equal(still.int(), images.int())


@given(seed=seeds, scale=st.floats(1e-3, 1e5), shift=st.floats(-1e3, 1e3))
def test_auto_does_not_depend_on_the_units(seed, scale, shift):
    images, augment = photos(3, 20, 24, channels=1), tiny(value_range="auto")
    params = augment.make_params(images, rng=torch.Generator().manual_seed(seed))
    wanted = augment.apply(images.double(), params)
    styled = augment.apply(images.double() * scale + shift * scale, params)
    torch.testing.assert_close(styled / scale - shift, wanted, atol=2e-5, rtol=0)


def test_auto_reads_each_rows_percentiles():
    images = torch.stack([torch.linspace(0, 1, 10_000), torch.linspace(-5, 5, 10_000)]).view(2, 1, 100, 100)
    images[0, 0, 3, 3] = 1e6  # a defect
    low, high = range_of(images, "auto")
    assert low.flatten().tolist() == pytest.approx([0.005, -4.95], abs=2e-3)
    assert high.flatten().tolist() == pytest.approx([0.995, 4.95], abs=2e-3)
    large = torch.rand(1, 1, 1000, 1300)
    low, high = (float(end) for end in range_of(large, "auto"))
    assert abs(low - 0.005) < 0.003 and abs(high - 0.995) < 0.003


def test_auto_is_each_channels_own_where_they_are_apart():
    images = torch.cat([photos(2, channels=1), 1000 * photos(2, channels=1) - 300], dim=1)
    augment = tiny(value_range="auto")
    params = augment.make_params(images)
    styled = augment.apply(images, params)
    torch.testing.assert_close(1000 * styled[:, :1] - 300, styled[:, 1:], atol=0.05, rtol=0)


@pytest.mark.parametrize("flat", [0.0, 7.0, -1000.0])
def test_flat_images_stay_as_they_are_with_auto(flat):
    for dtype in (torch.float32, torch.int16):
        if dtype == torch.int16 or flat >= 0:
            images = cast(torch.full((1, 1, 9, 9), flat), dtype)
            torch.testing.assert_close(tiny(value_range="auto")(images), images, atol=1e-4, rtol=0)


def test_arrays_and_pil_images_have_ranges_too():
    values = hounsfield(24, 32).numpy()
    augment = tiny(value_range=WINDOW)
    for image in (
        values.astype(np.int16),
        values.astype(">i2")[..., None],
        values.astype(np.float32),
        Image.fromarray(values.astype(np.int32)),
        Image.fromarray(values.astype(np.float32)),
    ):
        params = augment.make_params(image)
        styled = augment.apply(image, params)
        wanted = augment.apply(torch.from_numpy(values.astype(np.float32))[None], params)[0].numpy()
        assert type(styled) is type(image) and getattr(styled, "mode", 0) == getattr(image, "mode", 0)
        np.testing.assert_allclose(np.asarray(styled).reshape(wanted.shape), wanted, atol=0.51)


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32])
def test_signed_integers_need_a_range(dtype):
    images = torch.zeros(1, 8, 8, dtype=dtype)
    with pytest.raises(ImageError, match=r"got torch.int.*value_range=\(low, high\), such as \(-160, 240\)"):
        tiny().apply(images, tiny().draw(1))
    with pytest.raises(ImageError, match="int16 and int32 need a value_range"):
        tiny()(images)


@pytest.mark.parametrize("value_range", [WINDOW, "auto"])
@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused(value_range, wrong):
    images = hounsfield(2, 1, 9, 9)
    images[1, 0, 4, 4] = wrong
    with pytest.raises(ImageError, match=r"must be finite, got (NaN|infinite values): "):
        tiny(value_range=value_range)(images)


@pytest.mark.parametrize("wrong", [(1, 1), (3, 2), (0, math.nan), (0, math.inf), "window", (1,), 5, (1, "2")])
def test_wrong_ranges_are_refused(wrong):
    with pytest.raises(ConfigError, match='value_range must be None, "auto", or'):
        tiny(value_range=wrong)


def test_to_unit_holds_large_integers():
    values = torch.tensor([2**30 + 1, 2**30 + 1000, -(2**30) - 7], dtype=torch.int32)
    unit, back = to_unit(values, 2**30, 2**30 + 2000)
    assert unit.tolist() == pytest.approx([0.0005, 0.5, 0.0])
    assert torch.equal(back(unit), values)


def networks() -> list[str]:
    return [*GENERATORS, *TRAINED]


def specimen(name: str) -> AbstractGenerator:
    return load_generator(name) if name in TRAINED else generator(name)


@pytest.mark.parametrize("name", networks())
def test_twelve_bits_keep_their_levels(name):
    """Half-way to a style, an image of 4096 levels keeps at least 1024; 8 bits anywhere leave 256."""
    network, ramp = specimen(name), torch.arange(4096.0).view(1, 64, 64)
    for precision in ("float32", "bfloat16"):
        options = {"generator": network, "p": 1.0, "strength": 0.5, "precision": precision}
        scanner = StyleAugment(bank_of(network), value_range=(0, 4095), **options)
        params = scanner.make_params(ramp, rng=torch.Generator().manual_seed(1))
        for image in (ramp.int().to(torch.uint16), ramp.short()):
            styled = scanner.apply(image, params)
            assert styled.dtype == image.dtype and styled.shape == image.shape
            assert len(styled.int().unique()) > 1024
        assert len(scanner.apply(ramp, params).unique()) > 3000


def test_grey_in_a_colourful_style_stays_sensible():
    network = generator("reinhard-rgb")
    blue = torch.tensor([0.1, 0.2, 0.9])[:, None, None] * photo(20, 20, channels=1)
    colourful = bank_of(network).codes[:1].clone()
    colourful[0] = network.encode_style(blue[None])[0]
    augment = StyleAugment(bank_of(network), generator=network, p=1.0, strength=1.0)
    grey = photos(1, channels=1)
    params = {**augment.make_params(grey), "codes": colourful}
    styled = augment.apply(grey, params)
    order = grey.flatten().argsort()
    assert styled.flatten()[order].diff().min() > -1e-5, "brighter stays brighter"
    assert styled.min() >= 0 and styled.max() <= 1 and styled.std() > 0.01
