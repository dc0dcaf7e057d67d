"""Blend modes against scalar code for W3C Compositing and Blending Level 1, and in the transform."""

import json
from itertools import product
from math import sqrt

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from specimens import Spy, bank, bank_of, generator, photos

import styleaug.transforms.groups as groups
from styleaug import ConfigError, Splice, StyleAugment, StyleVideo, apply_folder
from styleaug.cli.main import cli
from styleaug.cli.options import BLENDS_NAMED
from styleaug.images import luminance
from styleaug.offline.stylizing import stylize
from styleaug.offline.tiles import ArrayReader, stylise_tiles
from styleaug.transforms.albumentations import StyleAugment as AlbumentationsStyle
from styleaug.transforms.blends import BLENDS
from styleaug.transforms.kornia import RandomStyle
from styleaug.transforms.monai import RandStyle
from styleaug.transforms.painting import blended
from styleaug.transforms.ray import StyleBatch
from styleaug.video.film import style_film

OURS, SPECIFIED = (0.299, 0.587, 0.114), (0.3, 0.59, 0.11)


def lum(c, weights):
    """Compute the luminosity of a colour, section 10.2."""
    return sum(weight * value for weight, value in zip(weights, c, strict=True))


def clip_color(c, weights):
    """Bring a colour into [0, 1] at its luminosity, section 10.2."""
    level, low, high = lum(c, weights), min(c), max(c)
    if low < 0:
        c = [level + (value - level) * level / (level - low) for value in c]
    if high > 1:
        c = [level + (value - level) * (1 - level) / (high - level) for value in c]
    return c


def set_lum(c, level, weights):
    """Give a colour a luminosity, section 10.2."""
    return clip_color([value + level - lum(c, weights) for value in c], weights)


def separable(mode, cb, cs):
    """Compute B of one channel, section 10.1."""
    if mode == "normal":
        return cs
    if mode == "multiply":
        return cb * cs
    if mode == "screen":
        return cb + cs - cb * cs
    if mode == "overlay":
        return separable("hard-light", cs, cb)
    if mode == "hard-light":
        return separable("multiply", cb, 2 * cs) if cs <= 0.5 else separable("screen", cb, 2 * cs - 1)
    assert mode == "soft-light"
    if cs <= 0.5:
        return cb - (1 - 2 * cs) * cb * (1 - cb)
    root = ((16 * cb - 12) * cb + 4) * cb if cb <= 0.25 else sqrt(cb)
    return cb + (2 * cs - 1) * (root - cb)


def specified(mode, cb, cs, weights=OURS):
    """Compute B of one pixel."""
    if mode == "color":
        return set_lum(cs, lum(cb, weights), weights)
    if mode == "luminosity":
        return set_lum(cb, lum(cs, weights), weights)
    return [separable(mode, *pair) for pair in zip(cb, cs, strict=True)]


def colours():
    """Make two images of the same pixels in all pairs: extremes, borders of the formulas, and random ones."""
    drawn = torch.rand(12, 3, generator=torch.Generator().manual_seed(3)).tolist()
    chosen = [
        *product((0.0, 1.0), repeat=3),
        (0.5, 0.25, 0.75),
        (0.25, 0.5, 1e-9),
        (0.2500001, 0.4999999, 1),
        *drawn,
    ]
    pairs = torch.tensor(list(product(chosen, repeat=2)))
    return pairs.permute(1, 2, 0).reshape(2, 1, 3, len(chosen), len(chosen)).unbind()


@pytest.mark.parametrize("mode", BLENDS)
def test_each_mode_is_that_of_the_specification(mode):
    backdrop, source = colours()
    found = BLENDS[mode](backdrop, source)
    assert found.min() >= 0 and found.max() <= 1
    pixels = [image.flatten(2)[0].T.tolist() for image in (backdrop, source, found)]
    for weights, most in ((OURS, 1e-5), (SPECIFIED, 0.03)):
        wanted = [specified(mode, cb, cs, weights) for cb, cs in zip(*pixels[:2], strict=True)]
        assert np.abs(np.array(wanted) - np.array(pixels[2])).max() < most


@pytest.mark.parametrize("mode", BLENDS)
def test_gradients_are_finite_also_at_the_borders(mode):
    images = [image.clone().requires_grad_() for image in colours()]
    BLENDS[mode](*images).sum().backward()
    slopes = [image.grad for image in images if image.grad is not None]  # "normal" has no backdrop
    assert all(slope.isfinite().all() for slope in slopes) and any(slope.abs().sum() > 0 for slope in slopes)


@pytest.mark.parametrize("mode", BLENDS)
def test_strength_is_the_opacity_of_the_full_style(mode):
    images, rng = photos(4), torch.Generator().manual_seed(1)
    spy = Spy()
    augment = StyleAugment(bank_of(spy), generator=spy, p=1.0, blend=mode)
    params = augment.make_params(images, rng=rng)
    shares = torch.tensor([0.0, 0.25, 0.5, 1.0])
    styled = augment.apply(images, {**params, "strength": shares})
    full = BLENDS[mode](images, 1 - images)
    assert torch.equal(styled[0], images[0]) and torch.equal(styled[3], full[3]) and spy.rows == 4
    wanted = images + shares[:, None, None, None] * (full - images)
    torch.testing.assert_close(styled, wanted, atol=1e-6, rtol=0)
    torch.testing.assert_close(styled[2], (images[2] + full[2]) / 2, atol=1e-6, rtol=0)


def test_without_a_blend_the_generator_gets_the_strength():
    spy = Spy()
    augment = StyleAugment(bank_of(spy), generator=spy, p=1.0, strength=0.5)
    torch.testing.assert_close(augment(photos(2)), torch.full_like(photos(2), 0.5))


def test_what_each_mode_keeps():
    images = photos(3)
    make = lambda blend: StyleAugment(bank(), generator=generator("tiny-adain"), p=1.0, blend=blend)  # noqa: E731
    params = make(None).make_params(images)
    plain = make(None).apply(images, params)
    styled = {mode: make(mode).apply(images, params) for mode in BLENDS}
    assert torch.equal(styled["normal"], plain)
    assert bool((styled["multiply"] <= images.minimum(plain)).all())
    assert bool((styled["screen"] >= images.maximum(plain) - 1e-6).all())
    torch.testing.assert_close(luminance(styled["color"]), luminance(images), atol=1e-5, rtol=0)
    torch.testing.assert_close(luminance(styled["luminosity"]), luminance(plain), atol=1e-5, rtol=0)
    assert all((one - other).abs().mean() > 0.01 for one in styled.values() for other in [images])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_grey_images(dtype):
    grey = photos(2, channels=1)
    grey = (255 * grey).round().byte() if dtype == torch.uint8 else grey
    make = lambda blend: StyleAugment(bank(), generator=generator("tiny-adain"), p=1.0, blend=blend)  # noqa: E731
    params = make(None).make_params(grey)
    plain = make(None).apply(grey, params)
    close = {"atol": 0 if dtype == torch.uint8 else 1e-5, "rtol": 0}
    torch.testing.assert_close(make("color").apply(grey, params), grey, **close)
    torch.testing.assert_close(make("luminosity").apply(grey, params), plain, **close)
    overlaid = make("overlay").apply(grey, params)
    assert overlaid.shape == grey.shape and not torch.equal(overlaid, plain)


@pytest.mark.parametrize("channels", ["shared", "independent"])
def test_channels_as_images(channels):
    images, spy = photos(2, channels=4), Spy()
    augment = StyleAugment(
        bank_of(spy), generator=spy, p=1.0, strength=0.5, blend="multiply", channels=channels
    )
    torch.testing.assert_close(
        augment(images), images + (images * (1 - images) - images) / 2, atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("mode", ["soft-light", "color"])
def test_frames_get_the_opacity_of_their_row(mode):
    clips, spy = torch.stack([photos(3), photos(3).flip(0)]), Spy()
    augment = StyleAugment(bank_of(spy), generator=spy, p=1.0, strength=(0, 1), blend=mode)
    params = augment.make_params(clips)
    styled = augment.apply(clips, params)
    for clip, found, share in zip(clips, styled, params["strength"], strict=True):
        torch.testing.assert_close(
            found, clip + share * (BLENDS[mode](clip, 1 - clip) - clip), atol=1e-6, rtol=0
        )


@pytest.mark.parametrize("splice", [None, "halves", Splice("fields", keep=True)])
def test_long_volumes_are_those_painted_at_once(splice, monkeypatch):
    """The statistics of a volume in parts must be read at the generator's strength, not at the opacity."""
    volumes = photos(6)[None]
    network = generator("tiny-adain")
    augment = StyleAugment(bank(), generator=network, p=1.0, strength=0.4, blend="overlay", splice=splice)
    params = augment.make_params(volumes)
    whole = augment.apply(volumes, params)
    monkeypatch.setattr("styleaug.transforms.augment.CPU_CHUNK_PIXELS", 2 * 24 * 32)
    monkeypatch.setattr(groups, "SURVEY_FRAMES", (5, 5))
    asked = []
    survey = groups.survey
    monkeypatch.setattr(groups, "survey", lambda *given: asked.append(given[-1].tolist()) or survey(*given))
    parts = augment.apply(volumes, params)
    assert asked and all(strength == [1.0] for strength in asked)
    torch.testing.assert_close(parts, whole, atol=0.02, rtol=0)


@pytest.mark.parametrize("mode", ["hard-light", "luminosity"])
def test_tiles_are_those_of_the_whole_image(mode):
    pixels = (255 * photos(1, 48, 64)[0].permute(1, 2, 0)).round().byte().numpy()
    network = generator("tiny-adain")
    augment = StyleAugment(bank(), generator=network, p=1.0, strength=0.5, blend=mode, least_side=1)
    params = augment.draw(1, torch.Generator().manual_seed(0))
    tiles = list(stylise_tiles(augment, ArrayReader(pixels), params, tile=32))
    rows = [np.concatenate(tiles[start : start + 2], axis=1) for start in (0, 2)]
    whole = augment.apply(pixels, params)
    assert np.abs(np.concatenate(rows).astype(int) - whole).max() <= 2


def test_the_guard_comes_after_the_blend():
    images, spy = photos(2), Spy()
    options = {"generator": spy, "p": 1.0, "blend": "hard-light"}
    plain, kept = (StyleAugment(bank_of(spy), **options, preserve=preserve) for preserve in (None, 1.0))
    params = plain.make_params(images)
    before, after = plain.apply(images, params), kept.apply(images, params)
    assert (after - images).abs().mean() < (before - images).abs().mean()


@pytest.mark.parametrize("wrong", ["hue", "", 0, 0.7, True, ["color"], b"color"])
def test_other_values_are_refused(wrong):
    message = "blend must be None or one of normal, multiply"
    for make in (StyleAugment, lambda bank, **options: stylize(photos(1)[0], photos(1)[0], **options)):
        with pytest.raises(ConfigError, match=message):
            make(bank("reinhard-rgb"), blend=wrong)
    number = isinstance(wrong, int | float) and wrong is not True
    with pytest.raises(ConfigError, match=f"is reuse={wrong} now" if number else "color, luminosity, got"):
        StyleAugment(bank("reinhard-rgb"), blend=wrong)


def test_the_command_line_knows_the_modes():
    assert tuple(BLENDS) == BLENDS_NAMED


def test_a_painter_in_a_blend_is_a_painter():
    images = photos(2)
    painter = blended(lambda images, codes, strength: 1 - strength[:, None, None, None] * images, "multiply")
    styled = painter(images, torch.zeros(2, 1), torch.tensor([1.0, 0.0]))
    assert torch.equal(styled[1], images[1]) and torch.equal(styled[0], images[0] * (1 - images[0]))


def test_pictures_keep_their_transparency():
    pixels = (255 * photos(1, channels=4)[0].permute(1, 2, 0)).byte().numpy()
    picture = Image.fromarray(pixels, "RGBA")
    styled = StyleAugment(bank("reinhard-rgb"), p=1.0, blend="screen")(picture)
    assert styled.mode == "RGBA" and np.array_equal(np.asarray(styled)[..., 3], pixels[..., 3])


def one_by_one(make, images):
    return torch.stack([torch.as_tensor(make(image)) for image in images])


def channels_last(make, images):
    return torch.from_numpy(make(images.permute(0, 2, 3, 1).numpy())).permute(0, 3, 1, 2)


def in_kornia(images, **options):
    return RandomStyle(bank("reinhard-rgb"), p=1.0, **options)(images)


def in_monai(images, **options):
    return one_by_one(RandStyle(bank("reinhard-rgb"), prob=1.0, **options), images)


def in_albumentations(images, **options):
    transform = AlbumentationsStyle(bank("reinhard-rgb"), p=1.0, **options)
    return channels_last(lambda arrays: transform(images=arrays)["images"], images)


def in_ray(images, **options):
    transform = StyleBatch(bank("reinhard-rgb"), p=1.0, **options)
    return channels_last(lambda arrays: transform({"image": arrays})["image"], images)


def in_video(images, **options):
    return StyleVideo(bank("reinhard-rgb"), p=1.0, flow=None, reuse=0, **options)(images)


@pytest.mark.parametrize("host", [in_kornia, in_monai, in_albumentations, in_ray, in_video])
def test_every_host_hands_the_blend_on(host):
    images = photos(3)
    styled = host(images, blend="screen")
    assert styled.shape == images.shape and (styled - images).mean() > 0.01
    assert bool((styled >= images - 1e-6).all()), "a screen is never darker"


def lighter(folder, out):
    """Count the copies of a folder of pictures, of which none may be darker anywhere."""
    for copy in sorted(out.glob("*.png")):
        before, after = (np.asarray(Image.open(path)).astype(int) for path in (folder / copy.name, copy))
        assert (after >= before - 1).all() and after.mean() > before.mean() + 2
    return len(list(out.glob("*.png")))


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "in"
    made.mkdir()
    for number, image in enumerate(photos(2)):
        Image.fromarray((255 * image).byte().permute(1, 2, 0).contiguous().numpy()).save(
            made / f"{number}.png"
        )
    bank("reinhard-rgb").save(tmp_path / "bank.safetensors")
    return made


def test_folders_and_films_take_it_and_say_so(folder, tmp_path):
    styles = bank("reinhard-rgb")
    apply_folder(folder, tmp_path / "out", bank=styles, blend="screen")
    assert lighter(folder, tmp_path / "out") == 2
    settings = json.loads((tmp_path / "out" / "manifest.jsonl").read_text().splitlines()[0])["settings"]
    assert settings["blend"] == "screen"
    with pytest.raises(ConfigError, match="made with other settings"):
        apply_folder(folder, tmp_path / "out", bank=styles, blend="multiply")
    style_film(folder, tmp_path / "film", bank=styles, blend="screen", flow=None, reuse=0)
    assert len(list((tmp_path / "film").iterdir())) == 2


def shell(*words):
    return CliRunner().invoke(cli, [str(word) for word in words])


def test_the_shell(folder, tmp_path):
    given = ("apply", folder, "--bank", tmp_path / "bank.safetensors", "-o", tmp_path / "out")
    done = shell(*given, "--blend", "screen")
    assert done.exit_code == 0 and lighter(folder, tmp_path / "out") == 2, done.output
    content, style = folder / "0.png", folder / "1.png"
    named = ("--generator", "reinhard-rgb", "--blend", "color")
    assert shell("stylize", content, "--style", style, "-o", tmp_path / "one.png", *named).exit_code == 0
    wanted = stylize(Image.open(content), Image.open(style), generator="reinhard-rgb", blend="color")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "one.png")), np.asarray(wanted))
    old = shell(*given, "--keep-luminance")
    assert old.exit_code == 2 and "--keep-luminance is --blend color now" in old.output
    film = shell("video", folder, "-o", tmp_path / "film", "--blend", "0.5")
    assert film.exit_code == 2 and "the share of a film's previous frame is --reuse 0.5 now" in film.output
    sheet = (
        "preview",
        folder,
        "--bank",
        tmp_path / "bank.safetensors",
        "--size",
        16,
        "-o",
        tmp_path / "p.png",
    )
    assert shell(*sheet, "--blend", "hue").exit_code == 2
    assert shell(*sheet).exit_code == 0
    plain = (tmp_path / "p.png").read_bytes()
    assert shell(*sheet, "--blend", "overlay").exit_code == 0 and (tmp_path / "p.png").read_bytes() != plain
