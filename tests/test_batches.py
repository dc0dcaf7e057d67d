"""Which tensor of a sample or batch is the image: the order of keys decides nothing."""

from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from specimens import bank, generator, photo, photos, pil
from strategies import random_tensor
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import DataLoader, default_collate
from torchvision import tv_tensors
from torchvision.transforms import v2

from styleaug import ConfigError, ImageError, Splice, StyleAugment, StyleCollate, StyleLoader, StyleVideo

SIZE = (12, 16)
IMAGE_DTYPES = [torch.uint8, torch.uint16, torch.float16, torch.float32, torch.float64]
MASK_DTYPES = [torch.uint8, torch.float16, torch.float32, torch.bool, torch.int32, torch.int64]
Pair = namedtuple("Pair", "x y")


def augment(**options) -> StyleAugment:
    options = {"p": 1.0, "strength": 1.0, "generator": generator("reinhard-rgb"), **options}
    return StyleAugment(bank("reinhard-rgb"), **options)


def make_mask(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    values = torch.arange(int(np.prod(shape))).reshape(shape) % 3
    return values.to(dtype) / 2 if dtype.is_floating_point else values.to(dtype)


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[Any], Any, Any, str]:
    """Draw samples of one dataset: with a tag for their image and their mask, and the way they are held."""
    held = draw(st.sampled_from(["dict", "neutral dict", "tuple", "named tuple", "list", "nested"]))
    mask_first, typed = draw(st.booleans()), draw(st.booleans())
    shape = draw(st.sampled_from([SIZE, (1, *SIZE), (3, *SIZE)]))
    dtype, mask_dtype = draw(st.sampled_from(IMAGE_DTYPES)), draw(st.sampled_from(MASK_DTYPES))
    channels = draw(st.sampled_from([1, 3]))
    samples = []
    for seed in range(3):
        image: Tensor = random_tensor((channels, *SIZE), dtype, seed)
        mask: Tensor = make_mask(shape, mask_dtype)
        if typed:
            image, mask = tv_tensors.Image(image), tv_tensors.Mask(mask)
        pair = [("mask", mask), ("image", image)] if mask_first else [("image", image), ("mask", mask)]
        values = [value for _, value in pair]
        samples.append(
            {
                "dict": {**dict(pair), "label": seed},
                "neutral dict": {f"{n}": value for n, value in enumerate(values)},
                "tuple": (*values, seed),
                "named tuple": Pair(*values),
                "list": values,
                "nested": {"a": (values[0], {"label": seed}), "b": [values[1]]},
            }[held]
        )
    places: Any = {
        "dict": ("image", "mask"),
        "neutral dict": ("1", "0") if mask_first else ("0", "1"),
        "tuple": (1, 0) if mask_first else (0, 1),
        "named tuple": ("y", "x") if mask_first else (0, 1),
        "list": (-1, 0) if mask_first else (0, -1),
        "nested": (("b", 0), ("a", 0)) if mask_first else (("a", 0), ("b", 0)),
    }[held]
    return samples, *places, held


def at(batch: Any, place: Any) -> Any:
    for key in place if isinstance(place, tuple) else (place,):
        batch = getattr(batch, key) if isinstance(batch, Pair) and isinstance(key, str) else batch[key]
    return batch


def assert_styled(batch: Any, plain: Any, image: Any, mask: Any) -> None:
    """The image has changed; nothing else has."""
    assert not torch.equal(at(batch, image), at(plain, image)), "the image is stylised"
    assert torch.equal(at(batch, mask), at(plain, mask)), "the mask is not"
    assert at(batch, mask).dtype == at(plain, mask).dtype
    others = [value for value in tree_leaves(batch) if isinstance(value, Tensor) and value.ndim < 2]
    assert all(value.tolist() == [0, 1, 2] for value in others)
    assert not any(isinstance(value, tv_tensors.TVTensor) for value in tree_leaves(batch))


@given(case=cases())
def test_collate_and_loader_stylise_the_image_or_refuse(case):
    samples, image, mask, held = case
    plain = default_collate(samples)
    known = isinstance(at(samples[0], image), tv_tensors.Image) or held == "dict"
    known = known or at(plain, mask).dtype in (torch.bool, torch.int32, torch.int64)
    for style, where in (
        (lambda: StyleCollate(augment())(samples), known),
        (lambda: StyleCollate(augment(), image=image)(samples), True),
        (lambda: next(iter(StyleLoader([plain], augment(), image=image))), True),
        (lambda: next(iter(StyleLoader([plain], augment()))), None),
        (lambda: augment()(plain), None),
        (lambda: v2.Compose([augment()])(plain), None),
    ):
        try:
            batch = style()
        except ImageError as error:
            assert not where, "the image is known"
            assert "could be its image" in str(error)
        else:
            assert_styled(batch, plain, image, mask)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_masks_before_images_through_workers(workers):
    samples = [
        {"mask": tv_tensors.Mask(make_mask(SIZE, torch.uint8)), "x": tv_tensors.Image(photo(*SIZE, seed=n))}
        for n in range(4)
    ]
    (plain,) = DataLoader(samples, 4)  # pyright: ignore
    for collate, image in ((default_collate, "x"), (StyleCollate(lambda batch: batch), "x")):
        loader = DataLoader(samples, 4, num_workers=workers, collate_fn=collate)  # pyright: ignore
        for styled in (StyleLoader(loader, augment(), image=image), StyleLoader(loader, augment())):
            (batch,) = styled
            assert_styled(batch, plain, "x", "mask")
    (batch,) = DataLoader(samples, 4, num_workers=workers, collate_fn=StyleCollate(augment()))  # pyright: ignore
    assert_styled(batch, plain, "x", "mask")


def test_collate_knows_masks_that_protect_and_splice():
    half = torch.zeros(SIZE, dtype=torch.uint8)
    half[:, :8] = 1
    samples = [(tv_tensors.Mask(half), tv_tensors.Image(photo(*SIZE, seed=n))) for n in range(2)]
    masks, images = StyleCollate(augment(splice=Splice("mask", keep=True)))(samples)
    assert torch.equal(masks, torch.stack([half, half]))
    before = torch.stack([image for _, image in samples])
    assert (images - before)[..., :2].abs().max() < 0.02 < (images - before)[..., 12:].abs().max()


def test_what_works_without_a_name_goes_on():
    images, labels = photos(3, *SIZE), torch.arange(3)
    soft, boxes = torch.rand(3, 10), torch.rand(3, 4)
    for batch in (
        (images, labels), {"image": images, "label": labels}, {"label": soft, "x": images}, [boxes, images],
        Pair(labels, images), {"y": {"boxes": boxes}, "x": [images]}, {"mask": images[:, 0], "x": images},
        {"target": {"masks": images}, "pixels": images}, {"MASK": images, "IMAGE": images, "other": images},
        {"labels": images[:, 0], "pixel_values": images}, (images,),
    ):  # fmt: skip
        (styled,) = StyleLoader([batch], augment())
        changed = [
            one
            for one, other in zip(tree_leaves(styled), tree_leaves(batch), strict=True)
            if not torch.equal(one, other)
        ]
        assert len(changed) == 1 and changed[0].shape == images.shape, "one tensor has changed: the image"
    mixed = v2.CutMix(num_classes=3)(images, labels)
    assert torch.equal(next(iter(StyleLoader([mixed], augment())))[1], mixed[1])


def test_what_cannot_be_known_is_refused_with_what_to_do():
    images = photos(3, *SIZE)
    for batch in (
        (images, images[:, :1]), [images[:, 0], images], {"a": images, "b": images[:, 0]},
        {"image": images, "images": images}, {"x": (images * 255).byte(), "y": images.double()},
        {"images": [photo(*SIZE), photo(*SIZE)]}, Pair(images, images), {"view": [images, images]},
        {"x": images, "y": np.zeros((3, *SIZE, 3), np.uint8)}, {"teacher": {"img": images}, "img": images},
    ):  # fmt: skip
        with pytest.raises(
            ImageError, match=r"2 values.*tv_tensors.Image\(image\).*image='image' or image=0"
        ):
            augment()(batch)
    with pytest.raises(
        ImageError, match=r"\['a'\]\[1\] is Tensor \(3, 3, 12, 16\) torch.float32, \['b'\] is"
    ):
        augment()({"a": (7, images), "b": images})


def test_a_named_image_that_is_none_is_refused():
    images = photos(3, *SIZE)
    for batch in (
        {"image": np.zeros((3, *SIZE, 3), np.uint8), "other": images},
        {"mask": images},
        {"label": images, "name": ["a", "b", "c"]},
    ):
        with pytest.raises(ImageError, match="no image in the sample"):
            augment()(batch)
    with pytest.raises(ImageError, match=r"uint8, uint16 or float, got torch\.int64"):
        augment()({"other": images, "image": images.long()})
    assert not torch.equal(augment()({"image": "a.png", "x": images})["x"], images), "a path is no image"


@dataclass
class Batch:
    image: Tensor
    mask: Tensor


def test_other_containers_are_refused():
    images = photos(2, *SIZE)
    for options in ({}, {"image": "image"}):
        with pytest.raises((ImageError, ConfigError), match="Batch"):
            next(iter(StyleLoader([Batch(images, images)], augment(), **options)))


BAD_NAMES = {
    "mask": ({"image": 1, "x": 2}, r"image='mask' names no value of the batch.*dict of \['image'\], \['x'\]"),
    2: ((1, 2), r"image=2 names no value of the batch.*tuple of \[0\], \[1\]"),
    ("a", 0): ({"a": {"b": 1}}, r"image=\('a', 0\) names no value of the batch.*\['a'\]\['b'\]"),
    "a": ({"a": [torch.rand(2, 3, 4, 4)]}, r"image='a' names no value of the batch.*\['a'\]\[0\]"),
    "label": ({"label": torch.arange(3)}, r"image='label' names is no image: got Tensor \(3,\) torch.int64"),
    "text": ({"text": "cat"}, "is no image: got str"),
    0: (torch.rand(2, 3, 4, 4), r"names no value of the batch, which is a Tensor \(2, 3, 4, 4\)"),
}


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_name_no_image(name):
    batch, message = BAD_NAMES[name]
    with pytest.raises(ConfigError, match=message):
        next(iter(StyleLoader([batch], augment(), image=name)))


@pytest.mark.parametrize("name", [1.5, True, (), [None], {"a": 1}])
def test_names_that_are_none(name):
    for make in (lambda: StyleLoader([], augment(), image=name), lambda: StyleCollate(augment(), image=name)):
        with pytest.raises(ConfigError, match="image must be the key or the index"):
            make()


@pytest.mark.parametrize("count", [2, 3, 20])
def test_grey_images_without_a_channel_are_refused(count):
    samples = [{"image": photo(*SIZE)[0], "label": n} for n in range(count)]
    with pytest.raises(ImageError, match=r"\(B, H, W\), without an axis for the channel.*unsqueeze"):
        StyleCollate(augment())(samples)
    loader = DataLoader(samples, count)  # pyright: ignore
    with pytest.raises(ImageError, match=r"without an axis for the channel"):
        list(StyleLoader(loader, augment()))
    (single,) = StyleLoader(DataLoader([photo(*SIZE)], batch_size=None), augment())  # pyright: ignore
    assert single.shape == (3, *SIZE)


def test_one_fold_of_a_wrapped_pipeline():
    """Transforms before ours in a v2.Compose see the image that was named, too."""
    images, masks = photos(2, *SIZE), make_mask((2, *SIZE), torch.float32)
    pipeline = v2.Compose([v2.RandomHorizontalFlip(1.0), augment(strength=0.0)])
    (batch,) = StyleLoader([{"a": masks, "b": images}], pipeline, image="b")
    torch.testing.assert_close(batch["b"], images.flip(-1))
    assert torch.equal(batch["a"], masks)


# PIL images and clips


@pytest.mark.parametrize("mode", ["L", "P", "1", "I;16"])
def test_a_label_map_of_pil_is_not_stylised(mode):
    image = pil("RGB", seed=1)
    labels = pil("I;16") if mode == "I;16" else pil("L", seed=2).convert(mode)
    for sample in (
        {"mask": labels, "image": image},
        {"gt": labels, "img": image},
        {"target": labels, "x": image},
    ):
        styled = augment()(sample)
        first, second = sample
        assert styled[first] is labels
        assert styled[second].tobytes() != image.tobytes()
    for sample in (
        (labels, image),
        [image, labels],
        {"a": labels, "b": image},
        (tv_tensors.Image(photo()), labels),
    ):
        with pytest.raises(ImageError, match="2 values that could be its image"):
            augment()(sample)


def test_alike_pil_images_are_all_images():
    left, right = pil("RGB", seed=1), pil("RGB", seed=2)
    for one, other in (augment()((left, right)), augment()({"x": left, "y": right}).values()):
        assert one.tobytes() != left.tobytes() and other.tobytes() != right.tobytes()
    grey: Image.Image = augment()({"mask": pil("L"), "image": pil("L", seed=3)})["mask"]
    assert grey.tobytes() == pil("L").tobytes()


def test_clips():
    video = StyleVideo(bank("reinhard-rgb"), generator=generator("reinhard-rgb"), p=1.0, flow=None, reuse=0)
    clips = photos(6, *SIZE).unflatten(0, (2, 3))
    for batch in ({"mask": clips[:, :, 0], "video": clips}, {"alpha": clips[:, :, :1], "clip": clips}):
        styled = video(batch)
        first, second = batch
        assert torch.equal(styled[first], batch[first]) and not torch.equal(styled[second], clips)
    with pytest.raises(ImageError, match="2 values that could be its image"):
        video((clips[:, :, :1], clips))
    (batch,) = StyleLoader([(clips[:, :, :1], clips)], video, image=1)
    assert torch.equal(batch[0], clips[:, :, :1]) and not torch.equal(batch[1], clips)


def test_lightning_names_the_image():
    from styleaug.transforms.lightning import StyleCallback

    batch = {"a": make_mask((2, *SIZE), torch.uint8), "b": photos(2, *SIZE)}
    with pytest.raises(ImageError, match="2 values that could be its image"):
        StyleCallback(augment()).stylise_each(None, batch)
    styled = StyleCallback(augment(), image="b").stylise_each(None, batch)
    assert_styled(styled, batch, "b", "a")
    several = StyleCallback(augment(), image="b").stylise_each([1, 2], [batch, None])
    assert_styled(several[0], batch, "b", "a")
    assert several[1] is None


def test_types_last_only_within_the_collate():
    box = tv_tensors.BoundingBoxes(torch.tensor([[0, 0, 1, 1]]), format="XYXY", canvas_size=SIZE)
    samples = [(tv_tensors.Image(photo(*SIZE)), box) for _ in range(2)]
    images, boxes = StyleCollate(augment(p=0.0))(samples)
    assert tree_map(type, [images, boxes]) == [Tensor, Tensor]
    assert torch.equal(images, default_collate(samples)[0]) and torch.equal(
        boxes, default_collate(samples)[1]
    )
