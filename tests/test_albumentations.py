"""`StyleAugment` for albumentations, in pipelines of 2.0.8 and of AlbumentationsX, whichever is installed."""

import copy
import inspect
import json
import os
import pickle
from pathlib import Path
from typing import Any

# The import of 2.0.8 asks the network for its newest version; AlbumentationsX reports what it is used for.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
os.environ.setdefault("ALBUMENTATIONS_NO_TELEMETRY", "1")

import contract
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from specimens import bank, bank_of, generator, photo
from torch import Tensor

from styleaug import (
    BankError,
    ConfigError,
    ImageError,
    Mix,
    Preserve,
    Splice,
    StyleAugError,
    StyleBank,
    Weighted,
)
from styleaug.transforms.host import rng_from

A = pytest.importorskip("albumentations")

from styleaug.transforms.albumentations import StyleAugment  # noqa: E402
from styleaug.transforms.options import in_short  # noqa: E402

ADVICE = r"place StyleAugment before A.Normalize and ToTensorV2; images are arrays \(H, W\[, C\]\)"
DTYPES = ("uint8", "uint16", "float32", "float64")
WHOLE = {"p": 1.0, "strength": (0.1, 1.0)}


def array(*shape: int, dtype: str = "uint8", seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).random(shape)
    top = {"uint8": 255, "uint16": 65535}.get(dtype, 1)
    return (values * top).astype(dtype)


def picture(height: int = 24, width: int = 32) -> np.ndarray:
    return photo(height, width).permute(1, 2, 0).mul(255).byte().numpy()


def augment(name: str = "reinhard-rgb", **options) -> StyleAugment:
    network = generator(name)
    return StyleAugment(bank_of(network), **{"generator": network, **WHOLE, **options})


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> str:
    """Save a bank, as pipelines that are serialised or replayed name theirs."""
    file = tmp_path_factory.mktemp("bank") / "bank.safetensors"
    bank("reinhard-rgb").save(file)
    return str(file)


def values(record: dict[str, Any]) -> dict[str, Any]:
    """Read the parameters of the last transform in a replay record; AlbumentationsX wraps them."""
    params = record["transforms"][-1]["params"]
    return params.get("params", params)


class OnTensors:
    """Takes tensors `(C, H, W)` or `(B, C, H, W)`, a call of the host for each, seeded by torch."""

    def __init__(self, *args, **options):
        self.transform = StyleAugment(*args, **options)

    def __call__(self, images: Tensor) -> Tensor:
        self.transform.set_random_seed(int(torch.randint(2**31, ())))
        rows = images if images.ndim == 4 else images[None]
        arrays = [row.permute(1, 2, 0).numpy() for row in rows]
        styled = [self.transform(image=image)["image"] for image in arrays]
        if all(new is old for new, old in zip(styled, arrays, strict=True)):
            return images
        result = torch.from_numpy(np.stack(styled)).permute(0, 3, 1, 2)
        return result if images.ndim == 4 else result[0]


@pytest.mark.parametrize("check", contract.TRANSFORM_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", ["reinhard-rgb", "tiny-adain"])
def test_contract(check, name):
    check(OnTensors, bank(name), generator(name))


@given(
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    channels=st.sampled_from([(), (1,), (3,)]),
    dtype=st.sampled_from([*DTYPES, "float16"]),
    seed=st.integers(0, 2**63 - 1),
)
def test_an_image_is_what_the_core_makes_of_it(height, width, channels, dtype, seed):
    image = array(height, width, *channels, dtype=dtype)
    before = image.copy()
    transform = augment()
    styled = transform.apply(image, style_seed=seed)
    params = transform.stylizer.draw(1, rng_from(seed))
    assert np.array_equal(styled, transform.stylizer.apply(image, params))
    assert styled.dtype == image.dtype and styled.shape == image.shape
    assert styled.flags.c_contiguous and styled.flags.writeable and not np.shares_memory(styled, image)
    assert np.array_equal(image, before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [(), (1,), (3,)])
@pytest.mark.parametrize(
    ("target", "stacked"), [("image", ()), ("images", (4,)), ("volume", (4,)), ("volumes", (2, 3))]
)
def test_targets_in_a_pipeline(target, stacked, channels, dtype):
    images = array(*stacked, 12, 10, *channels, dtype=dtype)
    before = images.copy()
    pipeline = A.Compose([augment()])
    styled = pipeline(**{target: images})[target]
    assert type(styled) is np.ndarray and styled.dtype == images.dtype and styled.shape == images.shape
    assert styled.flags.c_contiguous
    assert not np.array_equal(styled, images)
    assert np.array_equal(images, before)


@pytest.mark.parametrize("name", ["reinhard-rgb", "tiny-adain"])
@pytest.mark.parametrize("options", [{}, {"splice": Splice("fields", parts=3)}])
def test_all_images_and_slices_of_a_call_share_a_style(name, options):
    transform, volumes = augment(name, **options), array(2, 3, 12, 10, 3, dtype="float32")
    still = volumes[:, :1].repeat(3, axis=1)  # frames share statistics, so only alike ones tell
    one_by_one = np.stack([[transform.apply(image, 5) for image in volume] for volume in still])
    np.testing.assert_allclose(transform.apply_to_images(still[0], 5), one_by_one[0], atol=1e-5)
    np.testing.assert_allclose(transform.apply_to_volumes(still, 5), one_by_one, atol=1e-5)
    each = np.stack([transform.apply_to_images(volume, 5) for volume in volumes])
    np.testing.assert_allclose(transform.apply_to_volumes(volumes, 5), each, atol=1e-6)
    grey = transform.apply_to_volumes(volumes[..., 0], 5)
    np.testing.assert_array_equal(grey, transform.apply_to_volumes(volumes[..., :1], 5)[..., 0])


def test_strided_and_read_only_arrays():
    image = array(40, 30, 3)[::-2, ::3]
    image.flags.writeable = False
    styled = augment()(image=image)["image"]
    assert styled.flags.c_contiguous and styled.shape == image.shape


def test_additional_targets_share_a_style_and_calls_do_not():
    image = picture()
    pipeline = A.Compose([augment()], additional_targets={"image2": "image"})
    first = pipeline(image=image, image2=image)
    assert np.array_equal(first["image"], first["image2"])
    assert not np.array_equal(first["image"], pipeline(image=image)["image"])


def detection(styling: list[Any]) -> Any:
    """Crop, flip and style, with boxes and keypoints in it."""
    return A.Compose(
        [A.RandomCrop(20, 24), A.HorizontalFlip(p=0.5), *styling],
        bbox_params=A.BboxParams("pascal_voc", label_fields=["labels"]),
        keypoint_params=A.KeypointParams("xy", label_fields=["names"]),
    )


SAMPLE = {
    "bboxes": np.array([[2, 3, 20, 22], [5, 5, 30, 12]], np.float32),
    "labels": ["cat", "dog"],
    "keypoints": np.array([[4, 5], [20, 10]], np.float32),
    "names": ["eye", "tail"],
}


# AlbumentationsX wants to know what becomes of a keypoint's label in a flip.
@pytest.mark.filterwarnings("ignore:label_fields are set but label_mapping:UserWarning")
def test_masks_boxes_keypoints_and_labels_are_those_of_the_pipeline_without():
    image, mask = picture(), array(24, 32) % 4
    sample = {"image": image, "mask": mask, "masks": np.stack([mask, mask[::-1]]), **SAMPLE}
    plain, styled = detection([]), detection([augment(name="tiny-adain")])
    for seed in range(6):
        # All transforms of AlbumentationsX draw from one stream, so ours moves what the next call draws.
        plain.set_random_seed(seed)
        styled.set_random_seed(seed)
        was, now = plain(**copy.deepcopy(sample)), styled(**copy.deepcopy(sample))
        assert not np.array_equal(was.pop("image"), now.pop("image"))
        assert was.keys() == now.keys()
        for key, value in was.items():
            assert type(now[key]) is type(value)
            np.testing.assert_array_equal(now[key], value)


def test_what_is_no_image_is_the_same_object():
    image, mask, labels = picture(), array(24, 32), ["a"]
    styled = augment()(image=image, mask=mask, labels=labels, bboxes=None)
    assert styled["mask"] is mask and styled["labels"] is labels and styled["bboxes"] is None


def test_replay_is_exact(path):
    pipeline = A.ReplayCompose([A.HorizontalFlip(p=0.5), StyleAugment(path, p=0.5)])
    image, seen = picture(), 0
    for _ in range(12):
        done = pipeline(image=image)
        for record in (done["replay"], json.loads(json.dumps(done["replay"]))):
            again = A.ReplayCompose.replay(record, image=image)["image"]
            assert np.array_equal(again, done["image"])
        seen += done["replay"]["transforms"][-1]["applied"]
    assert 0 < seen < 12


@pytest.mark.parametrize("options", [{}, {"sampler": Mix(3)}, {"splice": Splice("halves", keep=True)}])
def test_a_record_tells_what_was_drawn(path, options):
    pipeline = A.ReplayCompose([StyleAugment(path, p=1.0, **options)])
    done = pipeline(image=picture())
    style_seed = values(done["replay"])["style_seed"]
    transform = StyleAugment(path, p=1.0, **options)
    drawn = transform.describe(style_seed)
    assert json.loads(json.dumps(drawn)) == drawn
    assert {len(entries) for entries in drawn.values()} == {2 if "splice" in options else 1}
    params = transform.stylizer.draw(1, rng_from(style_seed))
    assert params["strength"].tolist() == drawn["strength"] and params["sources"].tolist() == drawn["styles"]
    assert params["shares"].tolist() == drawn["shares"]
    assert np.array_equal(done["image"], transform.stylizer.apply(picture(), params))


OPTIONS = {
    "strength": [0.2, 0.7],
    "sampler": Weighted(torch.tensor([0.5, 0.0, 0.25, 0.0, 0.25])),
    "blend": "soft-light",
    "bands": "low",
    "splice": Splice("fields", parts=3, keep=True),
    "preserve": Preserve(0.5),
    "channels": "shared",
    "value_range": (0.0, 255.0),
    "least_side": 40,
    "precision": "float32",
    "compiled": False,
    "generator": "reinhard-rgb",
    "p": 0.9,
}


@pytest.mark.parametrize("options", [{}, OPTIONS], ids=["default", "all"])
@pytest.mark.parametrize("form", ["dict", "json", "yaml"])
def test_a_pipeline_survives_serialising(path, tmp_path, form, options):
    pipeline = A.Compose([A.HorizontalFlip(p=0.5), A.OneOf([StyleAugment(Path(path), **options)], p=1.0)])
    if form == "dict":
        again = A.from_dict(A.to_dict(pipeline))
    else:
        A.save(pipeline, tmp_path / "pipeline", data_format=form)
        again = A.load(tmp_path / "pipeline", data_format=form)
    assert A.to_dict(again) == A.to_dict(pipeline)
    for seed in range(4):
        pipeline.set_random_seed(seed)
        again.set_random_seed(seed)
        assert np.array_equal(again(image=picture())["image"], pipeline(image=picture())["image"])


def test_a_path_is_not_taken_for_a_shipped_name(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    StyleBank.load(path).save("art.safetensors")
    Path("art.safetensors").rename("art")
    transform = A.from_dict(A.to_dict(StyleAugment(Path("art"), p=1.0)))
    assert len(transform.stylizer.bank) == 5


@pytest.mark.parametrize("compose", [A.Compose, A.Sequential, lambda ts: A.Compose([A.OneOf(ts)])])
def test_objects_cannot_be_serialised_but_printed(path, compose):
    for options in ({"bank": StyleBank.load(path)}, {"bank": path, "generator": generator("reinhard-rgb")}):
        pipeline = compose([StyleAugment(**options, p=1.0)])
        with pytest.raises(ConfigError, match=r"name or path, got a .* object. Give .*, or write it"):
            A.to_dict(pipeline)
        assert "StyleAugment(" in repr(pipeline)
        with pytest.raises(ConfigError, match="or write it"):
            A.ReplayCompose([pipeline])(image=picture())


def test_copies_draw_alike():
    pipeline = A.Compose([augment(name="tiny-adain", p=0.7)], seed=1)
    pipeline(image=picture())
    others = [copy.deepcopy(pipeline), pickle.loads(pickle.dumps(pipeline))]
    for _ in range(5):
        styled = pipeline(image=picture())["image"]
        for other in others:
            assert np.array_equal(other(image=picture())["image"], styled)


def test_every_option_reaches_the_core_and_is_kept_as_plain_values(path):
    transform = StyleAugment(path, **OPTIONS)
    core, kept = transform.stylizer, transform.get_transform_init_args()
    assert set(kept) == set(inspect.signature(type(core)).parameters) == {"bank", *OPTIONS}
    assert (core.p, transform.p) == (1.0, 0.9)
    for name, value in OPTIONS.items():
        if name not in ("p", "generator", "strength"):
            assert getattr(core, name) == value and kept[name] == in_short(value), name
    assert core.strength == kept["strength"] == (0.2, 0.7) and kept["generator"] == "reinhard-rgb"
    assert json.loads(json.dumps(kept)) == {**kept, "strength": [0.2, 0.7], "value_range": [0.0, 255.0]}
    assert StyleAugment(path, compiled=True).stylizer.compiled


def test_old_pipelines_are_told_the_new_spelling(path):
    written = json.loads(json.dumps(A.to_dict(A.Compose([StyleAugment(path, splice="fields")]))))
    (saved,) = written["transform"]["transforms"]
    old = {"weights": None, "components": 2, "parts": 3, "keep": True, "edges": None, "protect": "mask"}
    saved.update(old)
    with pytest.raises(ConfigError, match='In JSON or YAML: "splice"') as caught:
        A.from_dict(written)
    new = json.loads(f"{{{str(caught.value).partition('YAML: ')[2][:-1]}}}")
    assert new == {
        "splice": {"kind": "fields", "parts": 3, "keep": True}, "preserve": {"protect": "mask"}
    }  # fmt: skip
    for name in old:
        del saved[name]
    saved.update(new)
    assert A.from_dict(written).transforms[0].stylizer.splice == Splice("fields", parts=3, keep=True)


def test_seeds_make_a_pipeline_reproducible():
    def run(seed: int) -> list[bytes]:
        pipeline = A.Compose([A.VerticalFlip(p=0.5), augment(p=0.7)], seed=seed)
        return [pipeline(image=picture())["image"].tobytes() for _ in range(8)]

    assert run(1) == run(1)
    assert len(set(run(1))) > 5 and run(1) != run(2)


def test_the_gate_is_not_that_of_a_flip():
    pipeline = A.Compose([A.HorizontalFlip(p=0.5), augment(strength=1.0, p=0.5)])
    image = np.full((4, 4, 3), 100, np.uint8)
    image[:, 0] = 0
    seen = set()
    for seed in range(40):
        # Version 2.0.8 gives all transforms of a pipeline the same stream then.
        pipeline.set_random_seed(seed)
        styled = pipeline(image=image)["image"]
        dark = styled.sum((0, 2))
        seen.add((dark[0] < dark[-1], set(np.unique(styled)) != {0, 100}))
    assert len(seen) == 4, "all four combinations of flipped and styled"


@pytest.mark.parametrize(
    "container",
    [
        lambda t: A.OneOf([t, A.NoOp(p=0.0)], p=1.0),
        lambda t: A.SomeOf([t, A.NoOp(p=1.0)], n=2, p=1.0),
        lambda t: A.Sequential([t], p=1.0),
        lambda t: A.Compose([t, A.Compose([A.NoOp()])]),
        lambda t: A.RandomOrder([t, A.NoOp()], n=2, p=1.0),
    ],
)
def test_inside_the_hosts_containers(container, path):
    image = picture()
    for compose in (A.Compose, A.ReplayCompose):
        pipeline = compose([container(StyleAugment(path, p=1.0)), A.ToFloat()])
        styled = pipeline(image=image, mask=image[..., 0])
        assert styled["image"].shape == image.shape and styled["image"].dtype == np.float32
        assert not np.allclose(styled["image"], image / 255, atol=1e-2)
        assert np.array_equal(styled["mask"], image[..., 0])


def test_strict_pipelines_and_unknown_arguments(path):
    strict = A.Compose(
        [A.ToFloat(), StyleAugment(path, p=1.0), A.Normalize(max_pixel_value=1.0)], strict=True
    )
    assert strict(image=picture(), mask=array(24, 32))["image"].dtype == np.float32
    with pytest.raises(TypeError, match="unexpected keyword argument 'stile'"):
        StyleAugment(path, stile="art")


def test_a_float_image_is_stylised_as_its_integers_are():
    transform = augment(name="tiny-adain")
    whole, fine = transform.apply(picture(), 3), transform.apply(picture().astype(np.float32) / 255, 3)
    np.testing.assert_allclose(whole / 255, fine, atol=0.51 / 255)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (array(3, 24, 32), r"at most 16 channels, got 32.*" + ADVICE),
        (array(2, 8, 8, 3), r"expected an array \(H, W\[, C\]\), got ndarray \(2, 8, 8, 3\).*" + ADVICE),
        (array(8, 8, 3).astype(np.int32), r"uint8, uint16 or float in \[0, 1\], got torch.int32.*" + ADVICE),
        (array(8, 8, 3) > 99, "got bool.*" + ADVICE),
        (array(8, 8, 3, dtype="float32") * 4 - 2, r"must lie in \[0, 1\].*" + ADVICE),
        (np.full((8, 8, 3), np.nan, np.float32), "must be finite, got NaN.*" + ADVICE),
        (torch.zeros(3, 8, 8), r"expected an array \(H, W\[, C\]\), got Tensor \(3, 8, 8\).*" + ADVICE),
        ([[1, 2]], "got list.*" + ADVICE),
    ],
)
def test_images_that_cannot_be_stylised(image, message):
    with pytest.raises(ImageError, match=message):
        augment().apply(image, style_seed=1)


@pytest.mark.parametrize("target", ["image", "images", "volume"])
def test_the_order_that_newcomers_get_wrong(target):
    images = picture() if target == "image" else np.stack([picture()] * 2)
    with pytest.raises(ImageError, match=r"Stylise before Normalize.*" + ADVICE):
        A.Compose([A.Normalize(), augment()])(**{target: images})


def test_stacks_without_an_image():
    assert augment().apply_to_images(array(0, 8, 8, 3), 1).shape == (0, 8, 8, 3)
    assert augment().apply_to_volumes(array(2, 0, 8, 8), 1).shape == (2, 0, 8, 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strength": 1.5}, "strength must be a number"),
        ({"sampler": "best"}, "unknown sampler"),
        ({"splice": "thirds"}, "splice must be"),
        ({"precision": "int8"}, "precision must be"),
        ({"bank": "batch"}, "other images of a batch, and albumentations hands over one at a time"),
        ({"splice": "mask"}, "not available in albumentations"),
        ({"bank": "nonsense"}, "there is no bank"),
    ],
)
def test_arguments_are_refused_in_our_words(options, message):
    with pytest.raises(StyleAugError, match=message) as caught:
        StyleAugment(**options)
    assert isinstance(caught.value, ConfigError | BankError)


def test_p_is_checked_in_our_words(path):
    with pytest.raises(ConfigError, match=r"p must be a number in \[0, 1\], got 1.5"):
        StyleAugment(path, p=1.5)
