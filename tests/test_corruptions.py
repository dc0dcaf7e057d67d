"""Common corruptions, against the package imagecorruptions where it is installed."""

import importlib
import sys
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from specimens import photos

from styleaug.errors import ConfigError, ImageError
from styleaug.robustness import corruptions as blurs
from styleaug.robustness import corruptions as weather
from styleaug.robustness.corruptions import CORRUPTIONS, SEVERITIES, TABLE, corrupt, elastic_transform

SCALES = ("imagenet", "cifar")
FIXED = ("defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression")
"""Those that draw nothing."""
DRAWN = ("gaussian_noise", "shot_noise", "impulse_noise", "glass_blur", "motion_blur", "snow", "frost", "fog")
"""Those that draw, elastic_transform apart: the package has another than ImageNet-C."""


class OldNumPy(ModuleType):
    """NumPy as it was before 2.0, with draws that a test can replace."""

    float_ = np.float64

    def __init__(self):
        super().__init__("numpy")
        self.random = SimpleNamespace(
            **{name: getattr(np.random, name) for name in ("normal", "poisson", "randint", "uniform")}
        )

    def __getattr__(self, name: str):
        return getattr(np, name)


@pytest.fixture(scope="module")
def reference():
    """Import the package beside what it needs of libraries long gone, and take all of it away again."""
    for name in ("imagecorruptions", "scipy", "skimage", "cv2"):
        pytest.importorskip(name) if name != "imagecorruptions" else None
    found = find_spec("imagecorruptions")
    if found is None:
        pytest.skip("needs the package imagecorruptions")
    folder = str(found.submodule_search_locations[0])
    resources, interpolation = ModuleType("pkg_resources"), ModuleType("scipy.ndimage.interpolation")
    resources.resource_filename = lambda _, path: f"{folder}/{path}"
    interpolation.map_coordinates = importlib.import_module("scipy.ndimage").map_coordinates
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "pkg_resources", resources)
        patch.setitem(sys.modules, "scipy.ndimage.interpolation", interpolation)
        module = importlib.import_module("imagecorruptions.corruptions")
        package = sys.modules.pop("imagecorruptions")
        del sys.modules["imagecorruptions.corruptions"]
        gaussian = module.gaussian

        def with_channels(image, *, multichannel=False, **options):
            return gaussian(image, channel_axis=-1 if multichannel else None, **options)

        module.gaussian, module.np = with_channels, OldNumPy()
        yield SimpleNamespace(corrupt=package.corrupt, module=module)


def scenes(count: int = 2, height: int = 64, width: int = 64) -> torch.Tensor:
    """Make images with edges, gradients and every value, in uint8."""
    return (photos(count, height, width) * 255).round().to(torch.uint8)


def as_array(image: torch.Tensor) -> np.ndarray:
    return image.permute(1, 2, 0).contiguous().numpy()


def test_the_names_are_the_papers():
    assert tuple(TABLE) == CORRUPTIONS and len(CORRUPTIONS) == 15
    assert all(len(part) == 5 for row in TABLE.values() for part in (row.imagenet, row.cifar))


@pytest.mark.parametrize("size", [(64, 64), (40, 80), (224, 224)])
@pytest.mark.parametrize("name", FIXED)
def test_what_draws_nothing_equals_the_package(reference, name, size):
    images = scenes(1, *size)
    for severity in SEVERITIES:
        expected = reference.corrupt(as_array(images[0]), severity=severity, corruption_name=name)
        got = as_array(corrupt(images, name, severity)[0])
        off = np.abs(got.astype(int) - expected.astype(int)) > 1
        # The package enlarges to the nearest pixel, ImageNet-C's script by boxes; they differ on ties.
        assert off.mean() <= (0.2 if name == "pixelate" else 0)


@pytest.mark.parametrize("name", DRAWN)
def test_what_draws_changes_images_as_the_package_does(reference, name):
    np.random.seed(0)
    images = scenes(40)
    rows = 12 if name == "glass_blur" else 40
    for severity in SEVERITIES:
        theirs = [
            reference.corrupt(as_array(x), severity=severity, corruption_name=name) for x in images[:rows]
        ]
        expected = torch.from_numpy(np.stack(theirs)).permute(0, 3, 1, 2).double()
        got = corrupt(images[:rows], name, severity).double()
        change, wanted = (float((x - images[:rows]).abs().mean()) for x in (got, expected))
        assert change == pytest.approx(wanted, rel=0.1 if name in ("snow", "frost", "fog") else 0.04)
        assert float(got.mean()) == pytest.approx(float(expected.mean()), rel=0.08)
        assert float(got.std()) == pytest.approx(float(expected.std()), rel=0.08)


def test_dragging_equals_the_package(reference):
    image = torch.rand(3, 60, 70)
    for angle in (-44.0, -3.5, 0.0, 20.0, 45.0, -135.0, -70.0):
        expected = reference.module._motion_blur(as_array(image), radius=15, sigma=8, angle=angle)
        torch.testing.assert_close(
            blurs.drag(image, 15, 8, angle), torch.from_numpy(expected).float().permute(2, 0, 1)
        )


def test_chains_of_glass_blur_equal_one_step_after_the_other(reference, monkeypatch):
    """The package draws pixel by pixel; it gets the draws of ours in its order."""
    image = scenes(1, 34, 40)[0]
    for severity, (_, reach, rounds) in zip(SEVERITIES, TABLE["glass_blur"].imagenet, strict=True):
        rng = np.random.default_rng(severity)
        draws = [rng.integers(-reach, reach, size=(2, 34, 40)) for _ in range(rounds)]
        steps = iter(
            [
                draw[::-1, row, column]
                for draw in draws
                for row in range(34 - reach, reach, -1)
                for column in range(40 - reach, reach, -1)
            ]
        )
        monkeypatch.setattr(reference.module.np.random, "randint", lambda *_, size, steps=steps: next(steps))
        expected = reference.module.glass_blur(as_array(image), severity) / 255
        got = blurs.glass_blur(
            image.float() / 255,
            (*TABLE["glass_blur"].imagenet[severity - 1],),
            np.random.default_rng(severity),
        )
        # One value in ten thousand may fall on the other side where 8 bits are cut off.
        assert np.abs(as_array(got) - expected).mean() < 1e-5
        assert next(steps, None) is None


def test_clouds_equal_the_package(reference, monkeypatch):
    for decay in (1.4, 2, 3):
        rng = np.random.default_rng(1)
        monkeypatch.setattr(
            reference.module.np.random,
            "uniform",
            lambda low, high, size, rng=rng: high * rng.uniform(-1, 1, size),
        )
        expected = reference.module.plasma_fractal(64, decay)
        np.testing.assert_allclose(weather.plasma(64, decay, np.random.default_rng(1)), expected, atol=1e-9)


@pytest.mark.parametrize("scale", SCALES)
def test_elastic_transform_equals_its_definition(scale):
    """OpenCV, SciPy and scikit-image as in the scripts that made the published sets."""
    cv2, ndimage = pytest.importorskip("cv2"), pytest.importorskip("scipy.ndimage")
    side = 224 if scale == "imagenet" else 32
    image = photos(1, side, side)[0]
    for sway, sigma, jitter, _ in getattr(TABLE["elastic_transform"], scale):
        rng = np.random.default_rng(4)
        moved, field = rng.uniform(-jitter, jitter, (3, 2)), rng.uniform(-1, 1, (2, side, side))
        arm, mid = side // 3, side // 2
        corners = np.float32([[mid + arm, mid + arm], [mid + arm, mid - arm], [mid - arm, mid - arm]])
        matrix = cv2.getAffineTransform(corners, (corners + moved).astype(np.float32))
        sheared = cv2.warpAffine(as_array(image), matrix, (side, side), borderMode=cv2.BORDER_REFLECT_101)
        down, right = (sway * ndimage.gaussian_filter(part, sigma, truncate=3) for part in field)
        rows, columns = np.mgrid[:side, :side]
        expected = np.stack(
            [
                ndimage.map_coordinates(
                    sheared[..., i], [rows + down, columns + right], order=1, mode="reflect"
                )
                for i in range(3)
            ]
        )
        got = elastic_transform(image, (sway, sigma, jitter, side), np.random.default_rng(4)).numpy()
        # OpenCV rounds positions to 1/32 pixel.
        assert np.abs(got - expected).mean() < 0.004
        assert np.abs(image.numpy() - expected).mean() > 0.02


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_type_shape_and_range_are_kept(name, scale):
    for dtype in (torch.uint8, torch.float32, torch.float16, torch.float64):
        images = scenes(2, 33, 50) if dtype == torch.uint8 else photos(2, 33, 50).to(dtype)
        before = images.clone()
        for severity in (1, 5):
            got = corrupt(images, name, severity, scale=scale)
            assert got.shape == images.shape and got.dtype == dtype
            assert (
                got.double().isfinite().all()
                and got.min() >= 0
                and got.max() <= (255 if dtype == torch.uint8 else 1)
            )
            assert not torch.equal(got, images)
        assert torch.equal(images, before)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_an_image_gets_the_same_in_any_batch(name):
    images = scenes(5, 40, 36)
    whole = corrupt(images, name, 4, seed=3)
    assert torch.equal(whole, corrupt(images, name, 4, seed=3))
    assert torch.equal(whole[2:], corrupt(images[2:], name, 4, seed=3, first=2))
    if name not in FIXED:
        assert not torch.equal(whole, corrupt(images, name, 4, seed=4))
        same = corrupt(images[:1].expand(2, -1, -1, -1), name, 4)
        assert not torch.equal(same[0], same[1])


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", [name for name in CORRUPTIONS if name != "elastic_transform"])
def test_severity_grows(name, scale):
    """The published elastic transforms change their kind with the severity, and are no ladder."""
    # Coarse with a little texture: in noise there is nothing left to blur.
    coarse = scenes(24, 8, 8).repeat_interleave(9, dim=2).repeat_interleave(9, dim=3)
    images = coarse // 4 * 3 + scenes(24, 72, 72) // 4
    changes = [
        float((corrupt(images, name, s, scale=scale).double() - images).abs().mean()) for s in SEVERITIES
    ]
    assert changes[-1] > 1.04 * changes[0]
    if name not in (
        "fog",
        "frost",
        "glass_blur",
        "motion_blur",
        "pixelate",
        "snow",
    ):  # their constants are no ladder at every step
        assert changes == sorted(changes)


def test_cifar_has_its_own_constants():
    grey = torch.full((4, 3, 32, 32), 0.5)
    for severity, deviation in zip(SEVERITIES, (0.04, 0.06, 0.08, 0.09, 0.10), strict=True):
        noise = corrupt(grey, "gaussian_noise", severity, scale="cifar") - 0.5
        assert float(noise.std()) == pytest.approx(deviation, rel=0.03)
    for severity, share in zip(SEVERITIES, (0.01, 0.02, 0.03, 0.05, 0.07), strict=True):
        changed = corrupt(grey, "impulse_noise", severity, scale="cifar") != 0.5
        assert float(changed.float().mean()) == pytest.approx(share, rel=0.12)
    images = photos(1, 32, 32)
    for severity, left in zip(SEVERITIES, (0.75, 0.5, 0.4, 0.3, 0.15), strict=True):
        flat = corrupt(images, "contrast", severity, scale="cifar")
        torch.testing.assert_close(flat.std(dim=(2, 3)), left * images.std(dim=(2, 3)))
    # Nothing moves but pixels: neither of the first two blurs of glass has a neighbour to mix.
    sharp = scenes(1, 32, 32)
    glass = corrupt(sharp, "glass_blur", 1, scale="cifar")
    colours = {tuple(pixel) for pixel in as_array(sharp[0]).reshape(-1, 3).tolist()}
    assert {tuple(pixel) for pixel in as_array(glass[0]).reshape(-1, 3).tolist()} <= colours


def test_brightness_raises_black_to_grey():
    assert torch.allclose(corrupt(torch.zeros(1, 3, 32, 32), "brightness", 2), torch.tensor(0.2))


@pytest.mark.slow
def test_frost_is_drawn_where_there_are_no_photographs(monkeypatch):
    monkeypatch.setattr(weather, "find_spec", lambda _: None)
    assert weather.frost_photographs() == []
    weather.frost_picture.cache_clear()
    try:
        for index in (0, 4):
            picture = weather.frost_picture(index, (32, 32), 1.0)
            mean, deviation = (torch.tensor(x) / 255 for x in weather.COLOURS[index])
            torch.testing.assert_close(picture.mean(dim=(1, 2)), mean, atol=0.04, rtol=0)
            assert (picture.std(dim=(1, 2)) / deviation).min() > 0.7
        small = corrupt(scenes(2, 32, 32), "frost", 3, scale="cifar")
        assert small.unique().numel() > 50
    finally:
        weather.frost_picture.cache_clear()


def test_frost_covers_images_larger_than_its_pictures():
    assert corrupt(scenes(1, 40, 1000), "frost", 2).shape == (1, 3, 40, 1000)


@pytest.mark.parametrize(
    "change",
    [{"name": "rain"}, {"severity": 0}, {"severity": 6}, {"seed": -1}, {"scale": "tiny"}, {"first": -1}],
)
def test_arguments_out_of_range_are_refused(change):
    with pytest.raises(ConfigError):
        corrupt(scenes(1), **({"name": "fog", "severity": 1} | change))


@pytest.mark.parametrize(
    "images",
    [
        torch.rand(3, 32, 32),
        torch.rand(1, 1, 32, 32),
        torch.rand(1, 3, 31, 32),
        torch.rand(1, 3, 32, 32) * 255,
        torch.zeros(1, 3, 32, 32, dtype=torch.int64),
        torch.full((1, 3, 32, 32), torch.nan),
    ],
)
def test_images_it_cannot_take_are_refused(images):
    with pytest.raises(ImageError):
        corrupt(images, "fog", 1)


def test_an_empty_batch_stays_empty():
    assert corrupt(torch.zeros(0, 3, 32, 32), "fog", 1).shape == (0, 3, 32, 32)
