"""Low and high frequencies of a style, apart: the filter, and `bands` around every generator."""

import json
import math

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from specimens import Spy, bank, bank_of, generator, photos
from test_blends import in_albumentations, in_kornia, in_monai, in_ray, in_video

from styleaug import ConfigError, OneOf, StyleAugment, StyleNormalize, apply_folder
from styleaug.cli.main import cli
from styleaug.offline.stylizing import stylize
from styleaug.offline.tiles import ArrayReader, stylise_tiles
from styleaug.transforms.bands import BORDER_WIDTH, low_pass
from styleaug.transforms.painting import banded

SIZES = [(1, 1), (1, 37), (2, 3), (5, 5), (17, 24), (48, 31)]


def uniform(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", SIZES)
def test_the_low_pass_is_a_gaussian_over_the_mirrored_image(size):
    """Compare with a sum over the image and its reflections, pixel by pixel, one axis after the other."""
    change = uniform(1, 2, *size).double() - 0.5
    sigma, wanted = BORDER_WIDTH * min(size), change
    for axis, length in ((2, size[0]), (3, size[1])):
        reach = math.ceil(8 * sigma) + 64
        taps = torch.arange(-reach, reach + 1)
        # The kernel whose transform is a Gaussian at every frequency that pixels have.
        cycles = torch.linspace(0, 0.5, 4001, dtype=torch.float64)
        gain = torch.exp(-2 * (math.pi * sigma * cycles) ** 2)
        waves = torch.cos(2 * math.pi * taps[:, None] * cycles)
        kernel = 2 * torch.trapezoid(gain * waves, cycles)
        at = (torch.arange(length)[:, None] + taps) % (2 * length)
        at = torch.where(at < length, at, 2 * length - 1 - at)
        shifted = wanted.index_select(axis, at.flatten()).unflatten(axis, at.shape)
        shape = [-1, 1] if axis == 2 else [-1]
        wanted = (shifted * kernel.view(shape)).sum(dim=axis + 1)
    torch.testing.assert_close(low_pass(change), wanted, atol=3e-3, rtol=0)


def test_a_slow_wave_passes_and_a_fast_one_does_not():
    ramp = (torch.arange(96) + 0.5) / 96
    for waves, least, most in ((1, 0.9, 1.0), (30, 0.0, 1e-3)):
        wave = torch.cos(math.pi * waves * ramp).expand(1, 1, 96, 96)
        kept = low_pass(wave).square().mean() / wave.square().mean()
        assert least <= kept <= most


@given(st.sampled_from(SIZES), st.integers(0, 99))
def test_constants_pass_and_directions_do_not_matter(size, seed):
    change = uniform(2, 3, *size, seed=seed) - 0.5
    low = low_pass(change)
    flat = change[..., :1, :1].expand_as(change)
    torch.testing.assert_close(low_pass(flat), flat, atol=1e-6, rtol=0)
    torch.testing.assert_close(low_pass(change.flip(2, 3)).flip(2, 3), low, atol=1e-6, rtol=0)
    torch.testing.assert_close(low_pass(change.mT).mT, low, atol=1e-6, rtol=0)
    torch.testing.assert_close(low.mean(dim=(2, 3)), change.mean(dim=(2, 3)), atol=1e-6, rtol=0)
    torch.testing.assert_close(low_pass(change[1:]), low[1:], atol=1e-6, rtol=0)
    assert bool((low.square().sum(dim=(2, 3)) <= change.square().sum(dim=(2, 3)) + 1e-5).all())


def in_bands(images, **options):
    """Style by the same draw with all frequencies, the low ones and the high ones."""
    made = [StyleAugment(p=1.0, bands=bands, **options) for bands in (None, "low", "high")]
    params = made[0].make_params(images, rng=torch.Generator().manual_seed(3))
    return [augment.apply(images, params) for augment in made]


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("size", SIZES)
def test_both_changes_are_the_whole_change(size, channels):
    """An image between 1/3 and 2/3, painted with little strength, is clamped nowhere."""
    images = 1 / 3 + uniform(3, channels, *size) / 3
    whole, low, high = in_bands(images, bank=bank(), generator=generator("tiny-adain"), strength=(0.01, 0.3))
    torch.testing.assert_close(low + high - images, whole, atol=2e-6, rtol=0)
    assert low.shape == whole.shape and not torch.equal(whole, images)


def test_low_has_the_colours_and_high_the_texture():
    images = photos(2, 48, 64)
    whole, low, high = in_bands(images, bank=bank(), generator=generator("tiny-adain"))
    mean = lambda image: image.mean(dim=(2, 3))  # noqa: E731
    fine = lambda image: (image[..., 1:] - image[..., :-1]).abs().mean()  # noqa: E731
    assert (mean(low) - mean(whole)).abs().max() < 0.03 < (mean(whole) - mean(images)).abs().max()
    assert (mean(high) - mean(images)).abs().max() < 0.03
    assert fine(low - images) < fine(high - images) / 3


def test_grey_stays_grey_and_bytes_stay_bytes():
    grey = (255 * photos(2, channels=1)).round().byte()
    whole, low, high = in_bands(grey, bank=bank(), generator=generator("tiny-adain"))
    assert low.dtype == high.dtype == torch.uint8 and low.shape == high.shape == grey.shape
    assert not torch.equal(low, whole) and not torch.equal(high, whole) and not torch.equal(low, grey)


@pytest.mark.parametrize("bands", ["low", "high"])
def test_rows_have_their_own_draws_and_replay(bands):
    images, spy = photos(4), Spy()
    augment = StyleAugment(bank_of(spy), generator=spy, p=0.5, strength=(0, 1), bands=bands)
    params = augment.make_params(images, rng=torch.Generator().manual_seed(5))
    styled, rows = augment.apply(images, params), params["rows"].tolist()
    assert 0 < len(rows) < 4 and torch.equal(augment.apply(images, params), styled)
    for row in range(4):
        if row not in rows:
            assert torch.equal(styled[row], images[row])
            continue
        change = params["strength"][rows.index(row)] * (1 - 2 * images[row : row + 1])
        low = low_pass(change)
        wanted = (images[row] + (low if bands == "low" else change - low)[0]).clamp(0, 1)
        torch.testing.assert_close(styled[row], wanted, atol=1e-6, rtol=0)


def test_strength_blend_and_guard_go_with_it():
    images, spy = photos(2), Spy()
    options = {"bank": bank_of(spy), "generator": spy}
    _, low, _ = in_bands(images, **options, blend="multiply", strength=0.5)
    change = low_pass((images * (1 - images) - images) / 2)
    torch.testing.assert_close(low, (images + change).clamp(0, 1), atol=1e-6, rtol=0)
    bare, kept = (in_bands(images, **options, preserve=floor)[2] for floor in (None, 1.0))
    assert (kept - images).abs().mean() < (bare - images).abs().mean()
    assert all(torch.equal(each, images) for each in in_bands(images, **options, strength=0.0))


def test_frames_of_a_volume_are_filtered_one_by_one():
    clip, spy = photos(3)[None], Spy()
    _, low, _ = in_bands(clip, bank=bank_of(spy), generator=spy)
    torch.testing.assert_close(low[0], (clip[0] + low_pass(1 - 2 * clip[0])).clamp(0, 1), atol=1e-6, rtol=0)


def test_mixtures_presets_and_normalising_take_it():
    images = photos(2)
    low = StyleAugment(bank("reinhard-rgb"), p=1.0, bands="low")
    mixture = OneOf([low, StyleAugment(bank("reinhard-rgb"), p=1.0, bands="high")])
    params = mixture.make_params(images, rng=torch.Generator().manual_seed(1))
    assert torch.equal(mixture.apply(images, params), mixture.apply(images, params))
    preset = StyleAugment.preset("unknown", bands="low")
    assert all(member.bands == "low" for member in preset.transforms)
    plain, slow = (StyleNormalize(bank("reinhard-rgb"), bands=bands)(images) for bands in (None, "low"))
    assert (slow - images - low_pass(plain - images)).abs().mean() < 0.005 < (slow - plain).abs().mean()
    assert "bands='low'" in repr(low) and low.settings()["bands"] == "low"


@pytest.mark.parametrize("host", [in_kornia, in_monai, in_albumentations, in_ray, in_video])
def test_every_host_hands_it_on(host):
    images = photos(3)
    low, high = host(images, bands="low"), host(images, bands="high")
    assert low.shape == high.shape == images.shape
    mean = lambda image: (image - images).mean(dim=(2, 3)).abs().max()  # noqa: E731
    assert mean(high) < mean(low) / 2


def test_gradients_pass():
    images = photos(1).requires_grad_()
    painter = banded(lambda images, codes, strength: images**2, "low")
    painter(images, torch.zeros(1, 1), torch.ones(1)).sum().backward()
    assert images.grad is not None and images.grad.isfinite().all() and images.grad.abs().sum() > 0


@pytest.mark.parametrize("wrong", ["middle", "", 1, True, ["low"], b"low"])
def test_other_values_are_refused(wrong):
    for make in (StyleAugment, StyleNormalize):
        with pytest.raises(ConfigError, match="bands must be None or one of low, high, got"):
            make(bank("reinhard-rgb"), bands=wrong)


def test_an_image_in_tiles_has_no_whole_to_filter():
    augment = StyleAugment(bank("reinhard-rgb"), p=1.0, bands="low")
    with pytest.raises(ConfigError, match="bands needs an image whole"):
        stylise_tiles(augment, ArrayReader(np.zeros((32, 32, 3), np.uint8)), augment.draw(1))


def test_folders_and_the_shell(tmp_path):
    (tmp_path / "in").mkdir()
    pixels = (255 * photos(2)).byte().permute(0, 2, 3, 1).contiguous().numpy()
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / "in" / f"{number}.png")
    bank("reinhard-rgb").save(tmp_path / "bank.safetensors")
    given = ["apply", f"{tmp_path}/in", "--bank", f"{tmp_path}/bank.safetensors", "-o", f"{tmp_path}/out"]
    done = CliRunner().invoke(cli, [*given, "--bands", "low"])
    assert done.exit_code == 0, done.output
    lines = (tmp_path / "out" / "manifest.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["settings"]["bands"] == "low"
    with pytest.raises(ConfigError, match="made with other settings"):
        apply_folder(tmp_path / "in", tmp_path / "out", bank=bank("reinhard-rgb"), bands="high")
    one = ["stylize", f"{tmp_path}/in/0.png", "--style", f"{tmp_path}/in/1.png", "-o", f"{tmp_path}/one.png"]
    named = ["--generator", "reinhard-rgb", "--bands", "high"]
    assert CliRunner().invoke(cli, [*one, *named]).exit_code == 0
    wanted = stylize(*(Image.fromarray(image) for image in pixels), generator="reinhard-rgb", bands="high")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "one.png")), np.asarray(wanted))
    assert CliRunner().invoke(cli, [*given, "--bands", "middle"]).exit_code == 2
