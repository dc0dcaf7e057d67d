"""`StyleAugment` inside torchvision's pipelines: nested samples, tv_tensors, both kinds of Compose."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from PIL import Image
from specimens import bank, generator, photo, photos, pil
from strategies import companions, pil_images, random_tensor, samples, seeds
from torch import Tensor
from torch.utils._pytree import tree_flatten
from torchvision import transforms, tv_tensors
from torchvision.transforms import v2

from styleaug import ImageError, StyleAugment


def augment(**options) -> StyleAugment:
    options = {"p": 1.0, "strength": 1.0, "generator": generator("tiny-adain"), **options}
    return StyleAugment(options.pop("bank", bank()), **options)


def pixels(image: Any) -> np.ndarray:
    if isinstance(image, Image.Image):
        return np.asarray(image)
    return image.as_subclass(Tensor).double().numpy()


@given(sample=samples(), seed=seeds)
def test_only_the_image_of_a_sample_changes(sample, seed):
    whole, image = sample
    before = pixels(image).copy()
    torch.manual_seed(seed)
    styled = augment()(whole)
    old, old_spec = tree_flatten(whole)
    new, new_spec = tree_flatten(styled)
    assert new_spec == old_spec
    for was, now in zip(old, new, strict=True):
        if was is image:
            assert now is not was
            assert type(now) is type(was) or isinstance(was, Image.Image)
            assert pixels(now).shape == before.shape
        else:
            assert now is was, "labels, masks, boxes and keypoints are the same objects"
    assert np.array_equal(pixels(image), before)


@given(sample=samples())
def test_a_sample_that_is_not_picked_is_the_same_object(sample):
    whole, _ = sample
    for was, now in zip(tree_flatten(whole)[0], tree_flatten(augment(p=0.0)(whole))[0], strict=True):
        assert now is was


@pytest.mark.parametrize("kind", [tv_tensors.Image, tv_tensors.Video])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float32, torch.float64])
def test_tv_tensors_keep_type_and_dtype(kind, dtype):
    image = kind(random_tensor((2, 3, 16, 20), dtype, 0))
    styled = augment()(image)
    assert type(styled) is kind and styled.dtype == dtype and styled.shape == image.shape
    assert not np.array_equal(pixels(styled), pixels(image))


def test_a_video_has_one_style_and_a_batch_of_images_many():
    frames = photo(16, 16)[None].repeat(6, 1, 1, 1)
    video = augment(strength=(0.1, 1.0))(tv_tensors.Video(frames))
    # Equal frames may differ in their last bits, by their place in the convolution's batch.
    assert spread(video) < 1e-5
    assert not torch.allclose(video[0], frames[0], atol=1e-2)
    batch = augment(strength=(0.1, 1.0))(tv_tensors.Image(frames))
    assert spread(batch) > 1e-2


def spread(frames: torch.Tensor) -> float:
    """Tell the largest difference between the first frame and another."""
    return float((frames - frames[:1]).abs().max())


def test_a_batch_of_videos_has_a_style_per_video():
    frames = photo(12, 12)[None, None].repeat(3, 4, 1, 1, 1)
    videos = augment(strength=(0.1, 1.0))(tv_tensors.Video(frames))
    assert type(videos) is tv_tensors.Video and videos.shape == frames.shape
    assert all(spread(video) < 1e-5 for video in videos)
    assert spread(videos[:, 0]) > 1e-2


def test_video_gate_is_for_all_frames():
    video = tv_tensors.Video(photos(5))
    for _ in range(20):
        changed = (augment(p=0.5)(video) != video).flatten(1).any(1)
        assert changed.all() or not changed.any()


@pytest.mark.parametrize(
    "label", [torch.tensor(3), torch.arange(4), torch.tensor(0.5), torch.rand(4), 7, "cat"]
)
def test_label_before_image(label):
    image = photo()
    same, styled = augment()((label, image))
    assert same is label
    assert styled.shape == image.shape and not torch.equal(styled, image)


def test_of_plain_tensors_the_only_one_that_can_be_an_image_is_styled():
    image, mask, depth = photo(), torch.zeros(1, 24, 32, dtype=torch.int64), torch.rand(1, 24, 32)
    same_mask, styled, name = augment()([mask, image, "a"])
    assert same_mask is mask and name == "a"
    assert not torch.equal(styled, image)
    assert augment()({"x": tv_tensors.Image(image), "features": depth})["features"] is depth


def test_images_of_one_sample_share_the_draw():
    image = photo(16, 16)
    first, second = augment(strength=(0.1, 1.0))((tv_tensors.Image(image), tv_tensors.Image(image)))
    assert torch.equal(first, second)
    with pytest.raises(ImageError, match=r"equally many rows, got \[2, 3\]"):
        augment()((tv_tensors.Image(photos(2)), tv_tensors.Image(photos(3))))


@given(companion=companions())
def test_samples_without_an_image_are_refused(companion):
    if isinstance(companion, Tensor) and companion.ndim == 3 and type(companion) is Tensor:
        return  # a plain tensor that may be an image is one
    with pytest.raises(ImageError, match="no image in the sample"):
        augment()({"label": 3, "other": companion})


def test_replay_from_parameters():
    transform, images = augment(p=0.6, strength=(0.2, 1.0)), photos(6)
    torch.manual_seed(3)
    styled = transform(images)
    torch.manual_seed(3)
    params = transform.make_params([images])
    assert torch.equal(transform.apply(images, params), styled)
    again = transform.make_params(images, rng=torch.Generator().manual_seed(3))
    assert torch.equal(transform.transform(images, again), styled)
    video = tv_tensors.Video(photos(3))
    assert torch.equal(
        transform.apply(video, params := augment().make_params(video)), transform.apply(video, params)
    )
    assert params["rows"].tolist() == [0]


@given(image=pil_images(), seed=seeds)
def test_old_compose_takes_pil_and_tensors(image, seed):
    torch.manual_seed(seed)
    styled = transforms.Compose([augment(p=0.5)])(image)
    assert (styled.mode, styled.size) == (image.mode, image.size)
    if image.mode == "RGB":
        tensor = transforms.Compose([augment(), transforms.ToTensor(), augment()])(image)
        assert tensor.shape == (3, image.height, image.width) and tensor.dtype == torch.float32


def test_old_compose_with_the_usual_steps():
    pipeline = transforms.Compose(
        [
            transforms.RandomResizedCrop(24),
            transforms.RandomHorizontalFlip(),
            augment(p=0.5),
            transforms.ToTensor(),
            transforms.Normalize([0.5] * 3, [0.25] * 3),
        ]
    )
    assert pipeline(pil(size=(40, 30))).shape == (3, 24, 24)


def test_v2_compose_with_a_detection_sample():
    sample = {
        "image": tv_tensors.Image(random_tensor((3, 40, 50), torch.uint8, 0)),
        "target": {
            "boxes": tv_tensors.BoundingBoxes(
                torch.tensor([[1, 2, 30, 20]]), format="XYXY", canvas_size=(40, 50)
            ),
            "masks": tv_tensors.Mask(torch.ones(1, 40, 50, dtype=torch.uint8)),
            "labels": torch.tensor([2]),
        },
    }
    steps = [
        v2.ToImage(),
        augment(),
        v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True),
    ]
    styled = v2.Compose([*steps, v2.Normalize([0.5] * 3, [0.25] * 3)])(sample)
    assert styled["image"].dtype == torch.float32 and styled["image"].shape == (3, 40, 50)
    for name, value in sample["target"].items():
        assert torch.equal(styled["target"][name], value)
        assert type(styled["target"][name]) is type(value)


def test_v2_compose_after_normalize_is_an_error():
    pipeline = v2.Compose([v2.Normalize([0.5] * 3, [0.1] * 3), augment()])
    with pytest.raises(ImageError, match="Stylise before Normalize"):
        pipeline(photo())


def test_random_apply_gates_the_call():
    image, transform = photo(), v2.RandomApply([augment()], p=0.5)
    styled = [not torch.equal(transform(image), image) for _ in range(40)]
    assert 5 < sum(styled) < 35


def test_random_choice_and_nesting():
    nested = v2.Compose([v2.RandomChoice([augment(), v2.Identity()]), v2.Compose([augment(p=0.2)])])
    assert nested(photos(2)).shape == (2, 3, 24, 32)


def test_pil_keeps_alpha_and_information():
    image = pil("RGBA")
    image.info["icc_profile"] = b"profile"
    styled = augment()(image)
    assert styled.info["icc_profile"] == b"profile"
    assert styled.getchannel("A").tobytes() == image.getchannel("A").tobytes()
    assert styled.convert("RGB").tobytes() != image.convert("RGB").tobytes()


def test_sixteen_bits_are_kept():
    image = Image.fromarray((np.arange(32 * 24, dtype=np.uint16) * 80).reshape(24, 32))
    assert image.mode == "I;16"
    faint = np.asarray(augment(strength=0.0)(image))
    assert np.array_equal(faint, np.asarray(image)), "no detour through 8 bits"
    assert len(np.unique(np.asarray(augment(strength=0.3)(image)))) > 256


def test_cutmix_after_the_loader_still_works():
    batch = augment(p=0.5)((photos(4), torch.arange(4)))
    images, labels = v2.CutMix(num_classes=4)(*batch)
    assert images.shape == (4, 3, 24, 32) and labels.shape == (4, 4)
