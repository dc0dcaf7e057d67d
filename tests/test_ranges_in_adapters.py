"""Ranges and channels as each host library hands them over."""

from typing import Any

import albumentations as A
import kornia.augmentation as K
import numpy as np
import pytest
import torch
from datasets import Dataset
from kornia.augmentation.container import VideoSequential
from monai.data import MetaTensor
from monai.transforms import Compose, NormalizeIntensityd
from PIL import Image
from specimens import bank, generator, photos
from torch import Tensor

from styleaug import ImageError
from styleaug import StyleAugment as TorchvisionStyle
from styleaug.transforms.albumentations import StyleAugment
from styleaug.transforms.host import rng_from
from styleaug.transforms.huggingface import StyleColumn
from styleaug.transforms.kornia import RandomStyle
from styleaug.transforms.monai import RandStyle, RandStyled
from styleaug.transforms.ray import StyleBatch

HU = (-160, 240)
BANK = bank("reinhard-rgb")
OPTIONS: Any = {"generator": generator("reinhard-rgb"), "strength": (0.3, 1.0)}


def scan(*shape: int) -> Tensor:
    """Make values of CT, int16."""
    rng = torch.Generator().manual_seed(0)
    return (torch.rand(shape, generator=rng) * 1400 - 1000).round().to(torch.int16)


def all_differ(values: Tensor) -> bool:
    """Say whether no two channels of `(C, ...)` are alike."""
    return len({row.numpy().tobytes() for row in values}) == len(values)


def test_monai_styles_hounsfield_without_scaling():
    volume = MetaTensor(scan(1, 12, 14, 9), affine=torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0])).double())
    label = torch.ones(1, 12, 14, 9)
    style = RandStyled("image", BANK, prob=1.0, value_range=HU, **OPTIONS)
    styled = Compose([style])({"image": volume, "label": label})
    image = styled["image"]
    assert styled["label"] is label and image.dtype == torch.int16 and image.shape == volume.shape
    assert torch.equal(image.affine, volume.affine) and (image != volume).any()
    air = volume < -600
    assert (image[air] < -199).all(), "air stays air"
    normalised = Compose([style, NormalizeIntensityd("image")])({"image": volume.float()})["image"]
    assert abs(float(normalised.mean())) < 1e-3


@pytest.mark.parametrize("shape", [(12, 14), (12, 14, 5)])
@pytest.mark.parametrize("channels", [1, 3, 4, 16])
def test_monai_draws_for_each_channel(shape, channels):
    image = torch.rand(1, *shape).expand(channels, *shape).contiguous()
    augment = RandStyle(BANK, prob=1.0, channels="independent", **OPTIONS)
    styled = augment(image)
    assert styled.shape == image.shape and all_differ(styled)
    again = augment(image[:2] if channels > 1 else image, randomize=False)
    torch.testing.assert_close(again, styled[: len(again)])
    with pytest.raises(ImageError, match="at most 16 channels if each has"):
        augment(torch.rand(17, *shape))
    keyed = RandStyled(["t1", "t2"], BANK, prob=1.0, channels="independent", **OPTIONS)
    both = keyed({"t1": image, "t2": image.clone()})
    assert torch.equal(both["t1"], both["t2"])


@pytest.mark.parametrize("splice", [None, "halves"])
@pytest.mark.parametrize("p", [0.5, 1.0])
def test_kornia_draws_for_each_channel(splice, p):
    images = torch.rand(6, 1, 12, 10).expand(-1, 4, -1, -1).contiguous()
    augment = RandomStyle(BANK, p=p, channels="independent", splice=splice, **OPTIONS)
    pipeline = K.AugmentationSequential(augment, data_keys=["input"])
    torch.manual_seed(1)
    styled = pipeline(images)
    changed = (styled != images).flatten(1).any(1)
    assert changed.any() and changed.all() == (p == 1.0)
    assert all(all_differ(row) for row in styled[changed])
    assert torch.equal(pipeline(images, params=pipeline._params), styled)
    same = RandomStyle(BANK, p=1.0, same_on_batch=True, channels="independent", **OPTIONS)
    alike = same(images[:1].expand(3, -1, -1, -1).contiguous())
    torch.testing.assert_close(alike, alike[:1].expand_as(alike))
    assert RandomStyle(BANK, p=1.0, channels="independent", **OPTIONS)(torch.rand(0, 4, 8, 8)).shape[0] == 0


def test_kornia_takes_ranges():
    images = scan(4, 1, 12, 10).float()
    augment = RandomStyle(BANK, p=1.0, value_range=HU, **OPTIONS)
    styled = augment(images)
    assert (styled[images < -600] < -199).all() and (styled != images).any()
    clips = images[None].expand(2, -1, -1, -1, -1)
    video = VideoSequential(augment, data_format="BTCHW", same_on_frame=True)(clips)
    assert video.shape == clips.shape


@pytest.mark.parametrize("channels", ["auto", "independent"])
@pytest.mark.parametrize("dtype", [np.float32, np.int16])
def test_albumentations(channels, dtype):
    image = (np.random.default_rng(0).random((12, 10, 4)) * 400 - 200).astype(dtype)
    augment = StyleAugment(BANK, p=1.0, value_range=HU, channels=channels, **OPTIONS)
    styled = A.Compose([A.HorizontalFlip(p=0.0), augment])(image=image)["image"]
    assert styled.dtype == dtype and styled.shape == image.shape and (styled != image).any()
    drawn = augment.describe(3, channels=4)
    assert len(drawn["strength"]) == (4 if channels == "independent" else 1)
    stylizer = augment.stylizer
    params = stylizer.draw(len(drawn["strength"]), rng_from(3))
    assert np.array_equal(augment.apply(image, 3), stylizer.apply(image, params))
    volume = np.stack([image, image])
    still = augment.apply_to_images(volume, 3)
    np.testing.assert_allclose(still[0], augment.apply(image, 3), atol=1e-3 if dtype == np.float32 else 1)


@pytest.mark.parametrize("value_range", [None, "auto", HU])
def test_albumentations_serialises_both(value_range):
    augment = StyleAugment("art", value_range=value_range, channels="shared")
    again = A.from_dict(A.to_dict(A.Compose([augment]))).transforms[0]
    assert again.stylizer.value_range == value_range and again.stylizer.channels == "shared"


@pytest.mark.parametrize("channels", ["auto", "independent"])
def test_huggingface(channels):
    augment = TorchvisionStyle(BANK, p=1.0, value_range=HU, channels=channels, **OPTIONS)
    column = StyleColumn(augment)
    arrays = [scan(12, 10, 4).numpy(), scan(9, 10, 4).numpy(), scan(12, 10, 4).numpy()]
    fixed = column({"image": arrays}, [0, 1, 2])["image"]
    assert [image.shape for image in fixed] == [image.shape for image in arrays]
    assert all(image.dtype == np.int16 for image in fixed)
    for index, image in enumerate(arrays):
        np.testing.assert_array_equal(column({"image": [image]}, [index])["image"][0], fixed[index])
    hashed = column({"image": [*arrays, arrays[0]]}, 0)["image"]
    np.testing.assert_array_equal(hashed[0], hashed[3])
    pictures = [Image.fromarray(scan(12, 10).numpy().astype(np.int32)), None]
    styled = column({"image": pictures})["image"]
    assert styled[0].mode == "I" and styled[1] is None


def test_a_dataset_of_scans():
    rows = Dataset.from_dict(
        {"image": [Image.fromarray(scan(12, 10).numpy().astype(np.int32)) for _ in range(3)]}
    )
    rows.set_transform(StyleColumn(TorchvisionStyle(BANK, p=1.0, value_range=HU, **OPTIONS)))
    images = [np.asarray(row["image"]) for row in rows]
    assert images[0].shape == (12, 10) and images[0].min() < -500
    assert not np.array_equal(images[0], images[1]), "each read draws anew"


@pytest.mark.parametrize("channels", ["auto", "independent"])
def test_ray(channels):
    style = StyleBatch(BANK, p=1.0, seed=1, value_range=HU, channels=channels, **OPTIONS)
    images = scan(3, 12, 10, 4).numpy()
    styled = style({"image": images})["image"]
    assert styled.dtype == np.int16 and styled.shape == images.shape
    ragged = np.empty(3, dtype=object)
    ragged[:] = [images[0], images[1, :7], images[2]]
    one_by_one = style({"image": ragged})["image"]
    np.testing.assert_array_equal(one_by_one[0], styled[0])
    np.testing.assert_array_equal(one_by_one[2], styled[2])


def test_torchvision_takes_signed_tensors_only_with_a_range():
    image, label = scan(1, 12, 10), torch.tensor(3)
    augment = TorchvisionStyle(BANK, p=1.0, value_range=HU, **OPTIONS)
    styled, same = augment((image, label))
    assert same is label and styled.dtype == torch.int16 and (styled != image).any()
    plain = TorchvisionStyle(BANK, p=1.0, **OPTIONS)
    mask = torch.ones(1, 12, 10, dtype=torch.int32)
    same, styled = plain((mask, photos(1)[0]))
    assert same is mask, "an integer mask is no image"


def test_all_hosts_do_what_the_core_does():
    image = scan(1, 12, 10).float()
    stylizer = TorchvisionStyle(BANK, p=1.0, value_range=HU, **OPTIONS)
    monai = RandStyle(BANK, prob=1.0, value_range=HU, **OPTIONS)
    torch.testing.assert_close(monai(image), stylizer.apply(image, monai.drawn))
