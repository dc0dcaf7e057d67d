"""Faces are found where they are, and keep every pixel; what is around them is styled."""

import pickle
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from specimens import astronaut
from torch import Tensor
from torchvision import tv_tensors

from styleaug import ConfigError, MissingExtraError, Preserve, StyleAugment, apply_folder
from styleaug.robustness.arms import Arm
from styleaug.transforms.faces import detect_faces, find_faces

SIDE = 160
FACES = Preserve(protect="faces")


@pytest.fixture(scope="module")
def head() -> Tensor:
    return torch.from_numpy(astronaut(SIDE)).permute(2, 0, 1)[None].contiguous()


@pytest.fixture(scope="module")
def inside(head) -> Tensor:
    """Where the weights are 1."""
    return find_faces(head / 255)[0, 0] == 1


def strong(**options) -> StyleAugment:
    return StyleAugment(generator="gin", p=1.0, **options)


def test_a_face_is_found_where_it_is(head):
    (boxes, none), shifted = detect_faces(torch.cat([head, 0 * head]) / 255), head.roll(-20, dims=3)
    assert boxes.shape == (1, 4) and none.shape == (0, 4)
    left, top, right, bottom = boxes[0].tolist()
    assert 50 < (left + right) / 2 < 90 and 45 < (top + bottom) / 2 < 105 and 40 < right - left < 90
    (moved,) = detect_faces(shifted / 255)
    assert (boxes[0] - moved[0]).tolist() == pytest.approx([20, 0, 20, 0], abs=4)


def test_weights_are_one_on_the_face_and_fade(head, inside):
    weights = find_faces(head.float() / 255)
    ((left, top, right, bottom),) = detect_faces(head / 255)[0].tolist()
    assert weights.shape == (1, 1, SIDE, SIDE) and weights.min() == 0 and weights.max() == 1
    assert inside[int((top + bottom) / 2), int((left + right) / 2)] and 0.08 < inside.float().mean() < 0.5
    along = weights[0, 0, int((top + bottom) / 2)]
    assert along.diff().abs().max() < 0.2, "no line where it ends"


@pytest.mark.parametrize("kind", ["uint8", "float32", "PIL", "Video", "grey", "range"])
def test_the_pixels_of_a_face_do_not_change(head, inside, kind):
    options = {"value_range": (0.0, 4.0)} if kind == "range" else {}
    images = {
        "uint8": head,
        "float32": head / 255,
        "PIL": Image.fromarray(astronaut(SIDE)),
        "Video": tv_tensors.Video(head.expand(3, -1, -1, -1)),
        "grey": head[:, 1:2],
        "range": head / 64,
    }[kind]
    styled = strong(preserve=FACES, **options)(images)
    one, other = (
        torch.from_numpy(np.array(x)).permute(2, 0, 1)[None] if kind == "PIL" else x for x in (images, styled)
    )
    face = find_faces(one.float().expand(-1, 3, -1, -1) / one.max())[0, 0] == 1 if kind == "grey" else inside
    tolerance = 1e-6 if kind in ("float32", "range") else 0
    change = (one.float() - other.float()).abs() / one.float().max()
    assert change[..., face].max() <= tolerance
    assert change[..., :20, :].mean() > 0.02, "the background is styled"
    assert not torch.equal(one, other)


def test_without_a_face_the_whole_image_is_styled(head):
    images = torch.cat([head, head.flip(2)])  # upside down
    augment, free = strong(preserve=FACES), strong()
    params = free.make_params(images)
    kept, styled = augment.apply(images, params), free.apply(images, params)
    assert torch.equal(kept[1], styled[1]) and not torch.equal(kept[0], styled[0])


def test_a_floor_and_faces_go_together(head, inside):
    augment = strong(preserve=Preserve(0.5, protect="faces"))
    assert torch.equal(augment(head)[..., inside], head[..., inside])


def test_by_function_faces_take_the_light_of_the_style(head, inside):
    augment, exact = strong(preserve=Preserve(protect=find_faces)), strong(preserve=FACES)
    params = augment.make_params(head)
    one = augment.apply(head, params)
    assert not torch.equal(one[..., inside], exact.apply(head, params)[..., inside])


def test_rows_that_are_not_picked_are_not_looked_at(head, monkeypatch):
    def forbidden(images: Tensor) -> Tensor:
        raise AssertionError

    monkeypatch.setattr("styleaug.transforms.guard.find_faces", forbidden)
    assert StyleAugment("art", p=0.0, preserve=FACES)(head) is head


def test_it_is_an_option_like_others(head):
    augment = pickle.loads(pickle.dumps(strong(preserve={"protect": "faces"})))
    assert augment.preserve == FACES and "protect='faces'" in repr(augment)
    assert augment.settings()["preserve"] == {"protect": "faces"}


def test_a_folder_of_portraits(tmp_path, inside):
    (tmp_path / "in").mkdir()
    Image.fromarray(astronaut(SIDE)).save(tmp_path / "in" / "a.png")
    apply_folder(tmp_path / "in", tmp_path / "out", bank="art", preserve=FACES)
    with Image.open(tmp_path / "out" / "a.png") as made:
        pixels = np.array(made)
    assert np.array_equal(pixels[inside.numpy()], astronaut(SIDE)[inside.numpy()])
    assert not np.array_equal(pixels, astronaut(SIDE))
    with pytest.raises(ConfigError, match="no regions to protect but faces"):
        apply_folder(tmp_path / "in", tmp_path / "no", bank="art", preserve=Preserve(protect="mask"))


def test_an_arm_keeps_faces():
    Arm("style:gin,p=1,protect=faces", seed=0).check(masks=False)  # it needs no masks
    with pytest.raises(ConfigError, match="mask or faces"):
        Arm("style:gin,protect=eyes", seed=0)


def test_the_missing_library_is_named_at_once(monkeypatch):
    monkeypatch.setitem(sys.modules, "dlib", None)
    with pytest.raises(MissingExtraError, match=r"styleaug\[faces\]"):
        Preserve(protect="faces")
    Preserve(0.9)
