"""Bad images are refused by every adapter when they are first read, whether the gate picks them or not."""

import os
from typing import Any

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
os.environ.setdefault("ALBUMENTATIONS_NO_TELEMETRY", "1")

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from specimens import bank, generator, photo, photos
from torch.utils.data import DataLoader
from torchvision import transforms, tv_tensors

from styleaug import ImageError, StyleAugment, StyleCollate, StyleLoader, StyleVideo
from styleaug.images import to_pixels
from styleaug.transforms.form import check_form

SIZE = (8, 10)


def options(p: str = "p", share: float = 0.0) -> dict[str, Any]:
    return {p: share, "generator": generator("reinhard-rgb")}


def augment(share: float = 0.0, **more: Any) -> StyleAugment:
    return StyleAugment(bank("reinhard-rgb"), **options(share=share), **more)


PIL_IMAGES = {mode: Image.new(mode, SIZE) for mode in ("CMYK", "P", "1", "HSV", "YCbCr", "LAB", "PA")}
TENSORS = {
    "int64": torch.zeros(3, *SIZE, dtype=torch.int64),
    "bool": torch.zeros(3, *SIZE, dtype=torch.bool),
    "int8": torch.zeros(3, *SIZE, dtype=torch.int8),
    "complex": torch.zeros(3, *SIZE, dtype=torch.complex64),
    "int16 without a range": torch.zeros(3, *SIZE, dtype=torch.int16),
    "17 channels": torch.zeros(17, *SIZE),
    "no channel": torch.zeros(0, *SIZE),
    "no height": torch.zeros(3, 0, 5),
    "no width": torch.zeros(3, 5, 0),
}
ARRAYS = {
    **{name: np.ascontiguousarray(tensor.movedim(0, -1).numpy()) for name, tensor in TENSORS.items()},
    "uint32": np.zeros((*SIZE, 3), np.uint32),
    "objects": np.full((*SIZE, 3), None, object),
    "text": np.full((*SIZE, 3), "a"),
}


@pytest.mark.parametrize("mode", PIL_IMAGES)
def test_pil_images_of_other_modes(mode):
    image = PIL_IMAGES[mode]
    for call in (
        augment(),
        transforms.Compose([augment()]),
        lambda one: augment()({"image": one, "label": 1}),
    ):
        with pytest.raises(ImageError, match=f"got {mode!r}"):
            call(image)
    loader = DataLoader([image] * 4, batch_size=None, collate_fn=augment())  # pyright: ignore
    with pytest.raises(ImageError, match=f"got {mode!r}"):
        next(iter(loader))


@pytest.mark.parametrize("name", TENSORS)
def test_tensors(name):
    image = TENSORS[name]
    for call in (
        lambda one: augment()({"image": one}),
        lambda one: augment()(tv_tensors.Image(one)),
        lambda one: augment()(tv_tensors.Image(one[None])),
        lambda one: StyleCollate(augment())([{"image": one}] * 2),
        lambda one: next(iter(StyleLoader([(torch.zeros(2), one[None])], augment(), image=1))),
        StyleAugment(bank("reinhard-rgb"), **options()),
    ):
        with pytest.raises(ImageError):
            call(image)


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays(name):
    with pytest.raises(ImageError):
        StyleAugment(bank("reinhard-rgb"), **options())(ARRAYS[name])


@pytest.mark.parametrize("name", TENSORS)
@pytest.mark.parametrize("share", [0.0, 1e-6])
def test_monai(name, share):
    monai = pytest.importorskip("styleaug.transforms.monai")
    style = monai.RandStyle(bank("reinhard-rgb"), **options("prob", share))
    styled = monai.RandStyled(["x", "y"], bank("reinhard-rgb"), **options("prob", share))
    for bad in (TENSORS[name], TENSORS[name].numpy(), TENSORS[name][..., None].repeat(1, 1, 1, 3)):
        with pytest.raises(ImageError):
            style(bad)
        with pytest.raises(ImageError, match="In MONAI"):
            styled({"x": photo(*SIZE), "y": bad})
    for bad in ("a.nii", None, torch.zeros(SIZE), [photo(*SIZE)]):
        with pytest.raises(ImageError):
            style(bad)


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("share", [0.0, 1e-6])
def test_albumentations(name, share):
    A = pytest.importorskip("albumentations")
    module = pytest.importorskip("styleaug.transforms.albumentations")
    style = module.StyleAugment(bank("reinhard-rgb"), **options(share=share))
    bad = ARRAYS[name]
    for target in ({"image": bad}, {"images": np.stack([bad, bad])}, {"volumes": np.stack([bad[None]] * 2)}):
        with pytest.raises(ImageError, match="In albumentations"):
            style(**target)
    for target in ({"image": np.zeros(SIZE[0], np.uint8)}, {"image": [1]}, {"image": Image.new("RGB", SIZE)}):
        with pytest.raises(ImageError, match="In albumentations"):
            style(**target)
    named = A.Compose([style], additional_targets={"other": "image"}, is_check_shapes=False)
    if bad.size and bad.dtype.kind in "biuf":
        with pytest.raises(ImageError, match="In albumentations"):
            named(image=np.zeros((*SIZE, 3), np.uint8), other=bad)


def test_kornia():
    kornia = pytest.importorskip("styleaug.transforms.kornia")
    for share in (0.0, 1e-6):
        style = kornia.RandomStyle(bank("reinhard-rgb"), **options(share=share))
        with pytest.raises(ImageError, match=r"at most 16 channels.*In kornia"):
            style(torch.zeros(2, 17, *SIZE))


@pytest.mark.parametrize("name", [*PIL_IMAGES, *ARRAYS])
def test_hugging_face(name):
    column = pytest.importorskip("styleaug.transforms.huggingface").StyleColumn
    good, bad = Image.new("RGB", SIZE), {**PIL_IMAGES, **ARRAYS}[name]
    with pytest.raises(ImageError):
        column(augment())({"image": [good, None, bad]})
    with pytest.raises(ImageError):
        column(augment())({"image": [good, None, bad]}, [0, 1, 2])


@pytest.mark.parametrize("name", ARRAYS)
def test_ray(name):
    from styleaug.transforms.ray import StyleBatch

    style, bad = StyleBatch(bank("reinhard-rgb"), **options()), ARRAYS[name]
    with pytest.raises(ImageError, match="In Ray Data"):
        style({"image": np.stack([bad, bad])})
    ragged = np.empty(2, object)
    ragged[0], ragged[1] = np.zeros((4, 4, 3), np.uint8), bad
    with pytest.raises(ImageError, match="In Ray Data"):
        style({"image": ragged})


def test_videos():
    video = StyleVideo(bank("reinhard-rgb"), **options(), flow=None, reuse=0)
    for bad in (
        torch.zeros(2, 17, *SIZE),
        torch.zeros(2, 3, 0, 4),
        torch.zeros(2, 3, 4, 4, dtype=torch.int64),
    ):
        with pytest.raises(ImageError):
            video(tv_tensors.Video(bad))


def test_values_are_looked_at_where_a_row_is_picked():
    bad = photos(3, *SIZE)
    bad[1, 0, 0, 0] = torch.nan
    assert augment(0.0)(bad) is bad
    with pytest.raises(ImageError):
        augment(1.0)(bad)


def test_good_images_that_are_not_picked_are_the_same_objects():
    for image in (photo(*SIZE), Image.new("RGBA", SIZE), Image.new("I;16", SIZE), photos(2, *SIZE).double()):
        assert augment()(image) is image
    lazy = Image.new("RGB", (6000, 6000))
    lazy.load = lambda: pytest.fail("a check by form decodes nothing")  # pyright: ignore
    check_form(lazy)


KINDS = {"uint8": np.uint8, "uint16": np.uint16, "int16": np.int16, "int64": np.int64, "bool": np.bool_}


@given(
    shape=st.lists(st.integers(0, 4), min_size=0, max_size=5).map(tuple),
    last=st.sampled_from([1, 3, 4, 17]),
    kind=st.sampled_from([*KINDS, "float16", "float32"]),
    tensor=st.booleans(),
)
def test_form_is_what_to_pixels_asks(shape, last, kind, tensor):
    image: Any = np.zeros((*shape, last), kind)
    image = torch.from_numpy(image) if tensor else image

    def refused(check: Any) -> str | None:
        try:
            check(image)
        except ImageError as error:
            return str(error)
        return None

    wanted = refused(lambda one: to_pixels(one, most_channels=16))
    found = refused(lambda one: check_form(one, most_channels=16))
    assert found == wanted or (wanted is None and kind == "int16")


# Batches and clips without frames


@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (2, 0, 3, 8, 8), (0, 2, 3, 8, 8), (2, 0, 4, 3, 8, 8)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("kind", ["plain", "bank from the batch", "halves", "independent", "guarded"])
def test_without_frames_nothing_is_done(shape, dtype, kind):
    more: dict[str, Any] = {
        "plain": {},
        "bank from the batch": {},
        "halves": {"splice": "halves"},
        "independent": {"channels": "independent"},
        "guarded": {"preserve": 0.9},
    }[kind]
    styles = "batch" if kind == "bank from the batch" else bank("reinhard-rgb")
    style = StyleAugment(styles, **options(share=1.0), **more)
    images = torch.zeros(shape, dtype=dtype)
    assert style(images) is images
    for wrap in (tv_tensors.Image, tv_tensors.Video):
        assert style(wrap(images)).shape == shape
    (batch,) = StyleLoader([{"image": images, "label": torch.arange(shape[0])}], style)
    assert batch["image"].shape == shape


def test_without_frames_in_other_hosts():
    video = StyleVideo(bank("reinhard-rgb"), **options(share=1.0), flow=None, reuse=0)
    for shape in ((0, 3, *SIZE), (2, 0, 3, *SIZE), (0, 4, 3, *SIZE)):
        assert video(torch.zeros(shape)).shape == shape
    monai = pytest.importorskip("styleaug.transforms.monai")
    style = monai.RandStyle(bank("reinhard-rgb"), **options("prob", 1.0))
    assert style(torch.zeros(1, *SIZE, 0)).shape == (1, *SIZE, 0)
    column = pytest.importorskip("styleaug.transforms.huggingface").StyleColumn(augment(1.0))
    assert column({"image": []})["image"] == []
    empty = torch.zeros(1, 0, 3, *SIZE)
    assert column({"image": [torch.zeros(0, 3, *SIZE)]})["image"][0].shape == (0, 3, *SIZE)
    assert column({"image": [empty, None]})["image"][0].shape == empty.shape
    from styleaug.transforms.ray import StyleBatch

    rows = np.zeros((0, *SIZE, 3), np.uint8)
    assert (
        StyleBatch(bank("reinhard-rgb"), **options(share=1.0))({"image": rows})["image"].shape == rows.shape
    )
    kornia = pytest.importorskip("styleaug.transforms.kornia")
    for styles in (bank("reinhard-rgb"), "batch"):
        style = kornia.RandomStyle(styles, **options(share=1.0))
        assert style(torch.zeros(0, 3, *SIZE)).shape == (0, 3, *SIZE)
    A = pytest.importorskip("styleaug.transforms.albumentations")
    style = A.StyleAugment(bank("reinhard-rgb"), **options(share=1.0))
    for name, shape in (("images", (0, *SIZE, 3)), ("volume", (0, *SIZE)), ("volumes", (2, 0, *SIZE))):
        assert style(**{name: np.zeros(shape, np.uint8)})[name].shape == shape


# Parameters for another batch, where styles come from it


@pytest.mark.parametrize("cut_shape", [False, True])
def test_cut_parameters_with_styles_of_the_batch_in_kornia(cut_shape):
    kornia = pytest.importorskip("styleaug.transforms.kornia")
    style, images = kornia.RandomStyle("batch", p=1.0), photos(6, *SIZE)
    style(images)
    params = {name: value.clone() for name, value in style._params.items()}
    params["sources"][:3] = 5
    cut = {name: value[:3] if name != "forward_input_shape" else value for name, value in params.items()}
    if cut_shape:
        cut["forward_input_shape"] = torch.tensor([3, 3, *SIZE])
    with pytest.raises(ImageError, match="these parameters"):
        style(images[:3], params=cut)
    assert style(images, params=params).shape == images.shape


def test_cut_parameters_with_styles_of_the_batch():
    style, images = StyleAugment("batch", p=1.0), photos(6, *SIZE)
    params = style.make_params(images)
    params["sources"][:] = 5
    kept = params["rows"] < 3
    cut: Any = {name: None if value is None else value[kept] for name, value in params.items()}
    with pytest.raises(ImageError, match="for a larger batch than the 3 rows"):
        style.apply(images[:3], cut)
