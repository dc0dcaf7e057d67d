"""The structure guard: what is measured, what is given back, and that nothing else moves."""

import copy
import json
import pickle
from itertools import pairwise

import albumentations as A
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage
from skimage import filters
from specimens import bank, generator, photos
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from styleaug import ConfigError, ImageError, Preserve, Splice, StyleAugment
from styleaug.generators.base import AbstractGenerator
from styleaug.offline.tiles import ArrayReader, stylise_tiles
from styleaug.transforms.albumentations import StyleAugment as AlbumentationsStyle
from styleaug.transforms.guard import (
    keep_structure,
    protect_regions,
    pull,
    read_structure,
)
from styleaug.transforms.host import needs_no_other_inputs
from styleaug.transforms.structure import EDGES, HALF, edge_kernels, gradients

SIDE = 96
every_kernel = pytest.mark.parametrize("edges", EDGES)


def scenes(count: int = 3, side: int = SIDE, channels: int = 3) -> Tensor:
    """Make grainy pictures of middling brightness, with blobs of many sizes."""
    rng = torch.Generator().manual_seed(0)
    picture = torch.zeros(count, 1, side, side)
    for cells, weight in ((4, 0.1), (12, 0.08), (32, 0.06), (side, 0.02)):
        noise = torch.randn(count, 1, cells, cells, generator=rng)
        picture += weight * F.interpolate(noise, (side, side), mode="bicubic")
    tint = 0.1 * torch.rand(count, channels, 1, 1, generator=rng)
    return (0.45 + tint + picture).clamp(0.05, 0.95)


def spot(images: Tensor, contrast: float = 0.04, radius: float = 6) -> Tensor:
    """Add a lesion in the middle."""
    y, x = torch.meshgrid(*(torch.arange(n) - n / 2 for n in images.shape[-2:]), indexing="ij")
    return (images + contrast * (torch.hypot(y, x) < radius)).clamp(0, 1)


def contrast_of(difference: Tensor, radius: float = 6) -> Tensor:
    """Measure the spot: inside less a ring."""
    y, x = torch.meshgrid(*(torch.arange(n) - n / 2 for n in difference.shape[-2:]), indexing="ij")
    away = torch.hypot(y, x)
    inside, ring = away < radius, (away > radius + 2) & (away < 2 * radius)
    grey = difference.mean(dim=1)
    return grey[:, inside].mean(dim=1) - grey[:, ring].mean(dim=1)


def blurred(images: Tensor, shift: float = 0.1) -> Tensor:
    """Erase what is small, and make the image redder."""
    soft = F.avg_pool2d(F.pad(images, (10, 10, 10, 10), mode="replicate"), 21, stride=1)
    return (soft + shift * torch.tensor([1.0, -1, -1])[: images.shape[1], None, None]).clamp(0, 1)


class Eraser(AbstractGenerator):
    """Blurs."""

    name = "eraser"
    code_length = 0
    has_prior = True

    def encode_style(self, images: Tensor) -> Tensor:
        """Read nothing."""
        return images.new_empty(len(images), 0)

    def forward(self, images: Tensor, codes: Tensor, strength: Tensor) -> Tensor:
        """Blur by strength."""
        return torch.lerp(images, blurred(images), strength[:, None, None, None])


def eraser(make: type = StyleAugment, **options):
    return make(generator=Eraser(), **{"p": 1.0, "strength": 1.0, **options})


# What is measured


@every_kernel
def test_kernels_are_those_of_scikit_image(edges):
    image = scenes(1, 40, 1)
    found = gradients(image, edges, stride=1)[0]
    picture = image[0, 0].double().numpy()
    if edges == "kirsch":
        first = np.array([[5, 5, 5], [-3, 0, -3], [-3, -3, -3]]) / 15  # north; 5s go round clockwise
        turned = np.array([[-3, 5, 5], [-3, 0, 5], [-3, -3, -3]]) / 15
        for number, kernel in ((0, first), (1, turned)):
            wanted = ndimage.correlate(picture, kernel)[1:-1, 1:-1]
            np.testing.assert_allclose(found[number], wanted, atol=1e-6)
        assert len(found) == 8 and torch.allclose(
            edge_kernels(edges).sum(dim=(1, 2)), torch.zeros(8), atol=1e-6
        )
        return
    both = getattr(filters, f"{edges}_h")(picture), getattr(filters, f"{edges}_v")(picture)
    for ours, theirs in zip(found, both, strict=True):
        scale = np.abs(theirs[1:-1, 1:-1]).max() / ours.abs().max().item()
        np.testing.assert_allclose(ours * scale, theirs[1:-1, 1:-1], atol=1e-5)
    assert 0.4 < scale < 2.1  # scikit-image halves some of them


@pytest.mark.parametrize("channels", [1, 3])
def test_an_eraser_is_pulled_until_it_passes(channels):
    images = scenes(channels=channels)
    styled = blurred(images)
    assert (read_structure(images, styled, floor=0.9)[0] > 0.8).all()
    kept = keep_structure(images, styled, floor=0.9)
    assert kept.min() >= 0 and kept.max() <= 1
    assert (read_structure(images, kept, floor=0.89)[0] < 0.05).all()
    assert (read_structure(images, styled, floor=0.5)[0] < 0.85).all()


@pytest.mark.parametrize("texture", [0.0, 0.1])
@pytest.mark.parametrize("contrast", [0.01, 0.1])
def test_a_lesion_stays(contrast, texture):
    """Also where strokes raise the local deviation, which by itself would pass for contrast."""
    images = scenes()
    marked = spot(images, contrast)
    strokes = texture * torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    styles = [(blurred(x) + strokes).clamp(0, 1) for x in (images, marked)]
    inserted = contrast_of(marked - images)
    assert (contrast_of(styles[1] - styles[0]) < 0.5 * inserted).all()
    kept = [keep_structure(x, y, floor=0.9) for x, y in zip((images, marked), styles, strict=True)]
    assert (contrast_of(kept[1] - kept[0]) > 0.88 * inserted).all()


def test_what_keeps_structure_is_untouched():
    images = scenes()
    styled = images * torch.tensor([1.0, 0.99, 1.04])[:, None, None].clamp(0, 1)
    assert keep_structure(images, styled, floor=0.9) is styled
    both = torch.cat([styled, blurred(images)])
    kept = keep_structure(torch.cat([images, images]), both, floor=0.9)
    assert torch.equal(kept[:3], styled) and not torch.equal(kept[3:], both[3:])


def test_colours_come_through_and_shapes_do_not_double():
    images = scenes()
    styled = blurred(images, shift=0.15)
    kept = keep_structure(images, styled, floor=0.9)
    moved = (kept - images).mean(dim=(2, 3))
    wanted = (styled - images).mean(dim=(2, 3))
    assert ((moved / wanted) > 0.5).all()
    # What was moved is smooth but for what little of the styled one is left.
    detail = (kept - images) - F.avg_pool2d(F.pad(kept - images, (4,) * 4, mode="replicate"), 9, stride=1)
    assert detail.std() < 0.3 * (styled - images).std()


def test_bright_and_dark_images_do_not_saturate():
    bright = scenes() * 0.3 + 0.68
    for images, styled in ((bright, blurred(bright) + 0.3), (1 - bright, 0.7 - blurred(bright))):
        styled = styled.clamp(0, 1)
        marked = spot(images, 0.02)
        kept = keep_structure(images, styled, floor=0.9), keep_structure(marked, styled, floor=0.9)
        assert (contrast_of(kept[1] - kept[0]) > 0.85 * contrast_of(marked - images)).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 1), (2, 3), (5, 300), (33, 18), (64, 64), (225, 113)])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_size_and_flat_images(size, channels):
    images = photos(2, *size, channels=channels)
    for styled in (1 - images, torch.rand(images.shape), images):
        kept = keep_structure(images, styled, floor=0.9)
        assert kept.shape == images.shape and kept.isfinite().all() and kept.min() >= 0 and kept.max() <= 1
        regions = torch.ones(2, 1, *size)
        assert protect_regions(images, styled, regions).isfinite().all()
    flat, painted = torch.full_like(images, 0.5), torch.rand(images.shape)
    assert keep_structure(flat, painted, floor=0.9) is painted, "there is nothing to keep"


def test_rows_are_independent_and_replay_is_exact():
    images = scenes()
    styled = torch.stack([blurred(images)[0], images[1], 1 - images[2]])
    kept = keep_structure(images, styled, floor=0.9)
    assert torch.equal(kept, keep_structure(images, styled, floor=0.9))
    for row in range(3):
        one = slice(row, row + 1)
        alone = keep_structure(images[one], styled[one], floor=0.9)
        torch.testing.assert_close(alone, kept[one], atol=1e-5, rtol=0)


def test_the_floor_is_continuous():
    images = scenes(1)
    styled = blurred(images)
    need = [float(read_structure(images, styled, floor=f)[0]) for f in torch.linspace(0.1, 1, 40).tolist()]
    assert need == sorted(need) and need[-1] == 1
    assert max(b - a for a, b in pairwise(need)) < 0.2


# Slices and tiles


def test_frames_share_one_tier_and_weight():
    images = scenes(6)
    styled = blurred(images)
    kept = keep_structure(images, styled, floor=0.9, frames=3)
    moved = (kept - images).unflatten(0, (2, 3)).mean(dim=(3, 4))
    assert not torch.allclose(kept, keep_structure(images, styled, floor=0.9), atol=1e-4)
    tier = read_structure(images, styled, floor=0.9, frames=3)[1]
    assert len(tier.gain) == len(tier.shift) == 2
    assert moved.std(dim=1).max() < 0.02


def test_large_volumes_are_guarded_as_small_ones(monkeypatch):
    volume = scenes(12, 48, 1)[None]
    augment = eraser(preserve=0.9)
    params = augment.make_params(volume)
    small = augment.apply(volume, params)
    monkeypatch.setattr("styleaug.transforms.augment.CPU_CHUNK_PIXELS", 2 * 48 * 48)
    large = augment.apply(volume, params)
    assert not torch.equal(large, eraser().apply(volume, params))
    assert (large - small).abs().mean() < 0.01


# In transforms


def test_transforms_keep_structure():
    images = scenes()
    free, guarded = eraser(), eraser(preserve=0.9)
    params = free.make_params(images)
    styled = free.apply(images, params)
    kept = guarded.apply(images, params)
    assert torch.equal(kept, keep_structure(images, styled, floor=0.9))
    assert torch.equal(kept, guarded.apply(images, params)), "replay"
    assert torch.equal(eraser(preserve=None).apply(images, params), styled)
    grey = images[:, :1]
    assert not torch.equal(guarded.apply(grey, params), free.apply(grey, params))


def test_without_a_floor_all_is_as_before():
    images = photos(3)
    for name in ("tiny-adain", "reinhard-rgb"):
        plain = StyleAugment(bank(name), generator=generator(name), p=1.0)
        params = plain.make_params(images)
        wanted = plain.apply(images, params)
        for preserve in (None, 0, 0.0):
            off = StyleAugment(bank(name), generator=generator(name), p=1.0, preserve=preserve)
            assert torch.equal(off.apply(images, params), wanted)
    assert eraser(p=0.0, preserve=Preserve(0.9, protect=lambda x: x[:, :1]))(images) is images


DIAL = [0.0, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 1.0]


def dial(images: Tensor, styled: Tensor) -> Tensor:
    """Measure the share of the colour tier in each row along the dial."""
    return torch.stack([read_structure(images, styled, floor=floor)[0] for floor in DIAL])


def test_preserve_is_a_dial():
    """From nothing to all: it only rises, and no part of it is skipped or without effect."""
    images = scenes(8)
    for strength in (0.5, 0.8, 1.0):
        weights = dial(images, torch.lerp(images, blurred(images), strength))
        assert (weights.diff(dim=0) >= 0).all() and weights[-1].min() > 0.99
        assert weights[1].mean() < 0.15, "a little preserved changes little"
        assert weights.mean(dim=1).diff().max() < 0.5
    halves = dial(images, torch.lerp(images, blurred(images), 0.5))
    assert (halves[:3] == 0).all(), "half of the contrast is there already"


def test_preserve_is_a_dial_of_what_stays():
    images = scenes(4)
    styled = blurred(images)
    away = [(keep_structure(images, styled, floor=f) - images).square().mean().item() for f in DIAL if f]
    assert away == sorted(away, reverse=True) and away[-1] < 0.8 * away[0]
    tier = read_structure(images, styled, floor=1.0)[1]
    everything = pull(images, styled, torch.ones(len(images)), tier)
    torch.testing.assert_close(keep_structure(images, styled, floor=1.0), everything, atol=1e-3, rtol=0)


def test_nine_tenths_preserve_what_they_did():
    """`preserve=0.9` is what lesions were measured with: in half of the windows 0.96."""
    assert pytest.approx(0.96, abs=1e-12) == 0.9 + HALF * 0.9 * 0.1


def test_strength_zero_is_the_identity():
    images = scenes()
    assert torch.equal(eraser(preserve=1.0, strength=0.0)(images), images)


def test_gradients_go_through():
    images = scenes(1).requires_grad_()
    augment = eraser(preserve=Preserve(0.9, protect=lambda x: (x[:, :1] > 0.5).float()))
    augment.apply(images, augment.make_params(images), differentiable=True).sum().backward()
    assert images.grad.isfinite().all() and images.grad.abs().sum() > 0


def test_integers_and_splices():
    images = (scenes() * 255).byte()
    for options in ({}, {"splice": "halves"}, {"splice": Splice("fields", parts=3)}):
        augment = eraser(preserve=0.9, **options)
        styled = augment(images)
        assert styled.dtype == torch.uint8 and styled.shape == images.shape
        assert (styled.float() - images.float()).abs().mean() < 40


# Regions


def region(count: int = 3, side: int = SIDE) -> Tensor:
    mask = torch.zeros(count, side, side, dtype=torch.long)
    mask[:, 30:66, 30:66] = 2
    return mask


@pytest.mark.parametrize("channels", [1, 3])
def test_a_region_keeps_its_contrast_and_the_rest_is_styled(channels):
    images, masks = scenes(channels=channels), region()
    marked = spot(images)
    free, protected = eraser(), eraser(preserve=Preserve(protect="mask"))
    params = free.make_params(images)
    styled = free.apply(images, params)
    kept = protected.apply(images, params, masks=masks)
    found = protected.apply(marked, params, masks=masks)
    assert (contrast_of(found - kept) > 0.9 * contrast_of(marked - images)).all()
    assert torch.equal(kept[..., :20, :], styled[..., :20, :]), "outside of the border nothing changes"
    inside = (..., slice(32, 64), slice(32, 64))
    assert not torch.allclose(kept[inside], styled[inside], atol=0.02)
    change = (kept - images)[inside]
    assert (change - change.mean(dim=(2, 3), keepdim=True)).abs().max() < 0.1, "only smooth shifts"
    assert change.abs().mean() > 0.01 or channels == 1

    by_function = eraser(preserve=Preserve(protect=lambda x: (region(len(x)) > 0)[:, None].float()))
    torch.testing.assert_close(by_function.apply(images, params), kept, atol=1e-5, rtol=0)
    shares = (masks > 0).float()
    assert torch.equal(protected.apply(images, params, masks=shares), kept)


def test_masks_of_samples_are_read_and_passed_on():
    image, mask = tv_tensors.Image(scenes(1)[0]), tv_tensors.Mask(region(1))
    augment = eraser(StyleAugment, preserve=Preserve(protect="mask"))
    other, same, label = v2.Compose([augment])(image, mask, 7)
    assert same is mask and label == 7 and isinstance(other, tv_tensors.Image)
    styled = eraser(StyleAugment)(image)
    assert torch.equal(other[:, :20], styled[:, :20]) and not torch.equal(other, styled)
    with pytest.raises(ImageError, match='protect="mask" needs a mask in the sample'):
        augment(image)
    both = eraser(StyleAugment, preserve=augment.preserve, splice=Splice("mask", keep=True))
    assert both(image, mask)[1] is mask
    again = pickle.loads(pickle.dumps(augment))
    assert torch.equal(again(image, mask)[0], other)


def test_frames_share_their_rows_regions(monkeypatch):
    volume = scenes(6, 48, 1).unflatten(0, (2, 3))
    augment = eraser(preserve=Preserve(protect="mask"))
    masks = torch.zeros(2, 48, 48, dtype=torch.bool)
    masks[:, 16:32, 16:32] = True
    params = augment.make_params(volume)
    kept = augment.apply(volume, params, masks=masks)
    each = augment.apply(volume, params, masks=masks.repeat_interleave(3, dim=0))
    assert torch.equal(kept, each)
    monkeypatch.setattr("styleaug.transforms.augment.CPU_CHUNK_PIXELS", 48 * 48)
    torch.testing.assert_close(augment.apply(volume, params, masks=masks), kept, atol=0.02, rtol=0)


def test_masks_are_asked_for_in_our_words():
    images, augment = scenes(), eraser(preserve=Preserve(protect="mask"))
    params = augment.make_params(images)
    with pytest.raises(ImageError, match='protect="mask" goes by a mask'):
        augment.apply(images, params)
    with pytest.raises(ImageError, match='use splice="mask" or protect="mask"'):
        eraser().apply(images, params, masks=region())
    with pytest.raises(ImageError, match=r"weights of shape \(3, 1, 96, 96\).*got \(3, 3, 96, 96\)"):
        eraser(preserve=Preserve(protect=lambda x: x))(images)
    with pytest.raises(ImageError, match="got NoneType"):
        eraser(preserve=Preserve(protect=lambda x: None))(images)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preserve": -0.1}, "preserve must be"),
        ({"preserve": 1.1}, "preserve must be"),
        ({"preserve": float("nan")}, "preserve must be"),
        ({"preserve": True}, "preserve must be"),
        ({"preserve": "0.9"}, "preserve must be"),
        ({"preserve": {"protect": "masks"}}, "protect must be None"),
        ({"preserve": {"protect": 1}}, "protect must be None"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        eraser(**options)


def test_slides_refuse_what_they_cannot_keep():
    pixels = ArrayReader((scenes(1)[0].permute(1, 2, 0).numpy() * 255).astype(np.uint8))
    for options in ({"preserve": 0.9}, {"preserve": Preserve(protect=lambda x: x[:, :1])}):
        augment = StyleAugment(bank("reinhard-rgb"), p=1.0, **options)
        with pytest.raises(ConfigError, match="preserve needs an image whole"):
            stylise_tiles(augment, pixels, augment.draw(1))


def test_hosts_without_masks_refuse_them():
    with pytest.raises(ConfigError, match='protect="mask" is not available in somewhere; give a function'):
        needs_no_other_inputs(eraser(preserve=Preserve(protect="mask")), "somewhere")
    needs_no_other_inputs(eraser(preserve=Preserve(protect=lambda x: x[:, :1])), "somewhere")


# albumentations


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    file = tmp_path_factory.mktemp("banks") / "bank.safetensors"
    bank("reinhard-rgb").save(file)
    return str(file)


def picture() -> np.ndarray:
    return (scenes(1)[0].permute(1, 2, 0).numpy() * 255).astype(np.uint8)


def test_albumentations_guards_and_serialises(path):
    options = {"p": 1.0, "preserve": {"floor": 0.9, "protect": "mask"}}
    pipeline = A.Compose([AlbumentationsStyle(path, **options)])
    written = json.loads(json.dumps(A.to_dict(pipeline)))
    again = A.from_dict(written)
    assert {key: getattr(again.transforms[0], key) for key in options} == options
    mask = region(1)[0].numpy()
    for pipe in (pipeline, again):
        pipe.set_random_seed(1)
    done, other = (pipe(image=picture(), mask=mask) for pipe in (pipeline, again))
    assert np.array_equal(done["image"], other["image"]) and np.array_equal(done["mask"], mask)
    with pytest.raises(ImageError, match="needs a mask beside the images: mask or masks"):
        pipeline(image=picture())
    function = A.Compose([AlbumentationsStyle(path, p=1.0, preserve=Preserve(protect=lambda x: x[:, :1]))])
    assert function(image=picture())["image"].shape == (SIDE, SIDE, 3)
    with pytest.raises(ConfigError, match="cannot serialise or replay a function"):
        A.to_dict(function)
    assert "StyleAugment" in repr(function)


def test_albumentations_replays_with_the_masks_of_the_call(path):
    pipeline = A.ReplayCompose([AlbumentationsStyle(path, p=1.0, preserve=Preserve(protect="mask"))])
    mask = region(1)[0].numpy().astype(np.uint8)
    done = pipeline(image=picture(), mask=mask)
    assert "given_masks" not in json.dumps(copy.deepcopy(done["replay"]), default=str)
    replayed = A.ReplayCompose.replay(done["replay"], image=picture(), mask=mask)
    assert np.array_equal(replayed["image"], done["image"])
    empty = A.ReplayCompose.replay(done["replay"], image=picture(), mask=np.zeros_like(mask))
    assert not np.array_equal(empty["image"], done["image"])


def test_albumentations_reads_the_masks_of_each_target(path):
    transform = AlbumentationsStyle(path, p=1.0, preserve=Preserve(protect="mask"))
    image, mask = picture(), region(1)[0].numpy().astype(np.uint8)
    one = transform(image=image, mask=mask)["image"].shape
    assert one == image.shape
    seed = 3
    wanted = transform.apply(image, seed, given_masks={"mask": mask})
    parts = [np.where(np.arange(SIDE) < 48, mask, 0), np.where(np.arange(SIDE) >= 48, mask, 0)]
    assert np.array_equal(transform.apply(image, seed, given_masks={"masks": parts}), wanted)
    assert np.array_equal(transform.apply(image, seed, given_masks={"mask": mask[..., None]}), wanted)
    assert not np.array_equal(transform.apply(image, seed, given_masks={"masks": []}), wanted)
    images = np.stack([image] * 3)
    stacked = transform(images=images, masks=np.stack([mask] * 3))
    assert stacked["images"].shape == images.shape
    volume = transform(volume=images, mask3d=np.stack([mask] * 3))
    assert volume["volume"].shape == images.shape and np.array_equal(volume["mask3d"][0], mask)
    volumes = transform(volumes=images[None], masks3d=np.stack([mask] * 3)[None])
    assert volumes["volumes"].shape == (1, *images.shape)
