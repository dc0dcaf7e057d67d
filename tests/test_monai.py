"""`RandStyle` and `RandStyled` inside MONAI: meta, volumes, random state, datasets, loaders, threads."""

import pickle
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from typing import Any

import contract
import monai.data
import numpy as np
import pytest
import torch
from monai.data import CacheDataset, MetaTensor, PersistentDataset, ThreadDataLoader
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    NormalizeIntensityd,
    OneOf,
    RandAffined,
    RandFlipd,
    RandRotated,
    RandSpatialCropSamplesd,
    ScaleIntensityd,
    Spacingd,
    Transform,
)
from monai.utils import set_determinism
from specimens import bank, generator, photo
from torch import Tensor
from torch.utils.data import DataLoader

from styleaug import ConfigError, DeviceError, ImageError
from styleaug.bank import StyleBank
from styleaug.transforms.augment import StyleAugment, check_worker
from styleaug.transforms.monai import RandStyle, RandStyleD, RandStyled, RandStyleDict

KINDS = ["meta", "tensor", "array"]
LENGTH = 8


def rand_style(*, name: str = "reinhard-rgb", **options) -> RandStyle:
    return RandStyle(bank(name), **settings(name, options))


def rand_styled(keys: Any = "image", *, name: str = "reinhard-rgb", **options) -> RandStyled:
    return RandStyled(keys, bank(name), **settings(name, options))


def settings(name: str, options: dict[str, Any]) -> Any:
    return {"prob": 1.0, "strength": (0.2, 1.0), "generator": generator(name), **options}


def volume(channels: int, shape: tuple[int, ...] = (12, 14, 5)) -> Tensor:
    """Make a picture or a volume, channel first, no two slices or channels alike."""
    rng = torch.Generator().manual_seed(0)
    return 0.2 + 0.6 * torch.rand(channels, *shape, generator=rng) ** torch.linspace(1, 3, shape[-1])


def as_kind(image: Tensor, kind: str) -> Any:
    affine = torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0], dtype=torch.float64))
    return {
        "meta": lambda: MetaTensor(image, affine=affine, meta={"filename_or_obj": "a.nii"}),
        "tensor": lambda: image,
        "array": lambda: image.numpy(),
    }[kind]()


def make(bank: StyleBank, *, p: float, **options: Any) -> Any:
    """Style each row of a batch by itself, with random states from torch's global generator."""
    augment = RandStyle(bank, prob=p, **options)

    def call(images: Tensor) -> Tensor:
        augment.set_random_state(int(torch.randint(2**31, ())))
        if images.ndim == 3:
            return augment(images)
        rows = images.unbind()
        styled = [augment(row) for row in rows]
        same = all(one is row for one, row in zip(styled, rows, strict=True))
        return images if same else torch.stack(styled)

    return call


@pytest.mark.parametrize("check", contract.TRANSFORM_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", ["tiny-adain", "reinhard-rgb"])
def test_contract(check, name):
    check(make, bank(name), generator(name))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(12, 14), (12, 14, 5)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float16, torch.float32, torch.float64])
def test_kind_and_dtype_are_kept(kind, shape, dtype):
    top = {torch.uint8: 255, torch.uint16: 65535}.get(dtype, 1)
    image = as_kind((volume(1, shape) * top).to(dtype), kind)
    before = deepcopy(image)
    styled = rand_style()(image)
    assert type(styled) is type(image) and styled.dtype == image.dtype and styled.shape == image.shape
    assert (styled != image).any() and (image == before).all()


def test_meta_is_kept():
    image = as_kind(volume(1), "meta")
    image = RandFlipd("image", prob=1.0, spatial_axis=0)({"image": image})["image"]
    styled = rand_style()(image)
    assert isinstance(styled, MetaTensor) and (styled != image).any()
    assert torch.equal(styled.affine, image.affine) and torch.equal(styled.pixdim, image.pixdim)
    assert styled.meta.keys() == image.meta.keys() and styled.meta["filename_or_obj"] == "a.nii"
    assert len(styled.applied_operations) == 1 and styled.applied_operations == image.applied_operations
    styled.meta["filename_or_obj"] = "b.nii"
    assert image.meta["filename_or_obj"] == "a.nii"


@pytest.mark.parametrize(
    "array",
    [
        volume(1).numpy()[:, ::-1],
        volume(1).numpy().astype(">f4"),
        np.asfortranarray(volume(3).numpy()),
        volume(3, (12, 14)).numpy().transpose(0, 2, 1),
    ],
    ids=["flipped", "big-endian", "fortran", "transposed"],
)
def test_all_layouts_of_arrays(array):
    augment = rand_style()
    array.flags.writeable = False
    styled = augment(array)
    wanted = augment(torch.from_numpy(array.astype("=f4")), randomize=False)
    assert styled.dtype == array.dtype
    np.testing.assert_allclose(styled, wanted.numpy(), atol=1e-6)


@pytest.mark.parametrize("shape", [(12, 14), (12, 14, 5)])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("splice", [None, "halves"])
def test_a_volume_has_one_style(channels, shape, splice):
    augment, image = rand_style(splice=splice), volume(channels, shape)
    styled = augment(image)
    assert styled.is_contiguous()
    stylizer = StyleAugment(bank("reinhard-rgb"), splice=splice)
    # What the core makes of one row of frames; each of 2 or 4 channels by itself, as grey.
    framed, got = (x.movedim(-1, 0) if len(shape) == 3 else x[None] for x in (image, styled))
    parts = [slice(None)] if channels in (1, 3) else [slice(c, c + 1) for c in range(channels)]
    for part in parts:
        wanted = stylizer.apply(framed[None, :, part], augment.drawn)[0]
        torch.testing.assert_close(got[:, part], wanted)


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_slices_are_along_the_axis(channels):
    image = volume(channels, (6, 7, 5))
    for axis in range(3):
        augment = rand_style(axis=axis, name="tiny-adain")
        turned = image.movedim(axis + 1, -1)
        styled = augment(image)
        other = rand_style(axis=axis - 3, name="tiny-adain")
        other.drawn = augment.drawn
        last = rand_style(name="tiny-adain")
        last.drawn = augment.drawn
        wanted = last(turned, randomize=False).movedim(-1, axis + 1)
        torch.testing.assert_close(styled, wanted)
        assert torch.equal(other(image, randomize=False), styled)
        assert axis == 2 or not torch.allclose(last(image, randomize=False), styled, atol=1e-3)


def test_random_state():
    augment, image = rand_style(prob=0.5), photo()

    def series(count: int = 12) -> list[bytes]:
        return [augment(image).numpy().tobytes() for _ in range(count)]

    augment.set_random_state(seed=3)
    first = series()
    assert 3 < len(set(first)) < 12, "some are picked, each with a style of its own"
    augment.set_random_state(seed=3)
    assert series() == first
    augment.set_random_state(state=np.random.RandomState(4))
    assert series() != first
    pipeline = Compose([augment])
    pipeline.set_random_state(seed=7)
    first = [pipeline(image).numpy().tobytes() for _ in range(6)]
    pipeline.set_random_state(seed=7)
    assert [pipeline(image).numpy().tobytes() for _ in range(6)] == first


def test_randomize_false_does_the_same_again():
    augment, image = rand_style(prob=0.5), photo()
    assert augment(image, randomize=False) is image, "nothing is drawn yet"
    picked = []
    for _ in range(20):
        styled = augment(image)
        assert np.array_equal(augment(image, randomize=False), styled)
        assert augment._do_transform == (styled is not image)
        picked.append(augment._do_transform)
    assert len(set(picked)) == 2
    Compose([augment]).randomize()
    augment.prob = 0.0
    assert augment(image) is image


def test_keys_share_one_draw_and_others_are_untouched():
    augment = rand_styled(["image", "after"], prob=0.5)
    seen = set()
    for _ in range(20):
        sample = {
            "image": as_kind(photo(), "meta"),
            "after": photo(),
            "label": as_kind(torch.ones(1, 24, 32), "meta"),
            "name": "a",
        }
        styled = augment(sample)
        assert styled is not sample and styled.keys() == sample.keys()
        assert styled["label"] is sample["label"] and styled["name"] is sample["name"]
        assert torch.equal(styled["image"].as_tensor(), styled["after"])
        seen.add(styled["image"] is sample["image"])
    assert seen == {True, False}


def test_missing_keys():
    with pytest.raises(KeyError, match="other"):
        rand_styled(["image", "other"])({"image": photo()})
    styled = rand_styled(["image", "other"], allow_missing_keys=True)({"image": photo()})
    assert styled.keys() == {"image"} and not torch.equal(styled["image"], photo())


def test_names_of_the_dictionary_transform():
    assert RandStyleD is RandStyled and RandStyleDict is RandStyled


def segmentation(style: Transform, *more: Transform) -> Compose:
    """Make what users write: a pipeline for images and labels without channels."""
    keys = ["image", "label"]
    return Compose(
        [
            EnsureChannelFirstd(keys, channel_dim="no_channel"),
            ScaleIntensityd("image"),
            RandFlipd(keys, prob=0.5, spatial_axis=0),
            style,
            NormalizeIntensityd("image"),
            *more,
        ]
    )


def items(count: int = LENGTH) -> list[dict[str, Any]]:
    """Give volumes that are all alike, with a label and a number."""
    label = (volume(1)[0] > 0.5).float()
    return [{"image": volume(1)[0].clone(), "label": label, "index": index} for index in range(count)]


def series(loader: Any) -> list[bytes]:
    """Run an epoch; give the images in the order of their indices."""
    seen = {}
    for batch in loader:
        for index, value in zip(batch["index"].tolist(), batch["image"], strict=True):
            seen[index] = np.asarray(value).tobytes()
    return [seen[index] for index in sorted(seen)]


@pytest.fixture
def determinism():
    """Let a test call `set_determinism`, and take it back after."""
    yield set_determinism
    set_determinism(None)


def no_flips(prob: float = 1.0) -> Compose:
    """Make a pipeline in which nothing but the style is random."""
    return Compose([ScaleIntensityd("image"), rand_styled(prob=prob), NormalizeIntensityd("image")])


def channelled() -> list[dict[str, Any]]:
    return [{**item, "image": item["image"][None]} for item in items()]


@pytest.mark.parametrize("workers", [0, 2])
def test_monai_loader(workers, determinism):
    def epochs() -> list[bytes]:
        determinism(seed=0)
        dataset = monai.data.Dataset(channelled(), no_flips())
        loader = monai.data.DataLoader(dataset, batch_size=2, num_workers=workers)
        return series(loader) + series(loader)

    first = epochs()
    assert len(set(first)) == 2 * LENGTH, "no two alike, in either epoch"
    assert epochs() == first


def test_plain_loader_with_workers():
    dataset = monai.data.Dataset(channelled(), no_flips())

    def epochs() -> list[bytes]:
        dataset.transform.set_random_state(seed=1)
        torch.manual_seed(2)
        loader = DataLoader(dataset, batch_size=2, num_workers=2, collate_fn=monai.data.list_data_collate)
        return series(loader) + series(loader)

    first = epochs()
    assert len(set(first)) == 2 * LENGTH, "no two alike, though each worker starts with the same state"
    assert epochs() == first


def test_gates_of_a_plain_loaders_workers_differ():
    dataset = monai.data.Dataset(channelled(), rand_styled(prob=0.5))
    loader = DataLoader(dataset, batch_size=None, num_workers=2)
    same = channelled()[0]["image"].numpy().tobytes()
    epochs = []
    for _ in range(4):
        epochs.append([np.asarray(item["image"]).tobytes() == same for item in loader])
    assert len({tuple(epoch) for epoch in epochs}) > 1, "epochs differ"
    assert any(epoch[::2] != epoch[1::2] for epoch in epochs), "workers differ"


def test_cached_items_get_new_styles(tmp_path):
    for dataset in (
        CacheDataset(items(4), segmentation(rand_styled()), progress=False, num_workers=2),
        PersistentDataset(items(4), segmentation(rand_styled()), cache_dir=tmp_path),
    ):
        epochs = [[dataset[i] for i in range(4)] for _ in range(3)]
        images = {item["image"].numpy().tobytes() for epoch in epochs for item in epoch}
        assert len(images) == 12
        for item in epochs[0]:
            assert set(item["label"].unique().tolist()) == {0.0, 1.0} and item["image"].shape == (
                1,
                12,
                14,
                5,
            )


@pytest.mark.parametrize("options", [{}, {"num_workers": 2, "use_thread_workers": True}])
def test_thread_loader(options):
    dataset = CacheDataset(channelled(), no_flips(), progress=False)
    loader = ThreadDataLoader(dataset, batch_size=2, **options)
    assert len(set(series(loader) + series(loader))) == 2 * LENGTH


def test_threads_do_not_mix_their_draws():
    augment, image = rand_styled(["a", "b"], prob=0.7), photo(8, 8)
    with ThreadPoolExecutor(8) as pool:
        styled = list(pool.map(lambda _: augment({"a": image, "b": image}), range(400)))
    assert all(torch.equal(sample["a"], sample["b"]) for sample in styled)
    pictures = [sample["a"].numpy().tobytes() for sample in styled if sample["a"] is not image]
    assert len(set(pictures)) == len(pictures), "no draw is used twice"


class UsesCuda(Transform):
    """Stands for a transform that is about to use CUDA."""

    def __call__(self, data: Any) -> Any:
        check_worker(torch.device("cuda"))
        return data


def test_only_workers_that_are_threads_may_use_cuda():
    dataset = monai.data.Dataset(channelled(), Compose([UsesCuda()]))
    threads = ThreadDataLoader(dataset, batch_size=2, num_workers=2, use_thread_workers=True)
    assert len(series(threads)) == LENGTH
    with pytest.raises(RuntimeError, match="forked DataLoader worker"):
        series(monai.data.DataLoader(dataset, batch_size=2, num_workers=1))


def test_cuda_in_a_worker_is_refused_in_monais_words(monkeypatch):
    def refuse(device: torch.device) -> None:
        raise DeviceError("a forked worker cannot use CUDA.")

    monkeypatch.setattr("styleaug.transforms.augment.check_worker", refuse)
    monkeypatch.setattr("styleaug.transforms.augment.get_worker_info", lambda: object())
    with pytest.raises(
        DeviceError, match=r"ThreadDataLoader\(dataset, num_workers=0\).*EnsureTyped\(device="
    ):
        rand_style()(photo())


@pytest.mark.slow
def test_one_of():
    pipeline = OneOf([rand_style(), Compose([rand_style(), rand_style()])])
    pipeline.set_random_state(seed=0)
    pictures = [pipeline(photo()).numpy().tobytes() for _ in range(8)]
    pipeline.set_random_state(seed=0)
    assert len(set(pictures)) == 8 and [pipeline(photo()).numpy().tobytes() for _ in range(8)] == pictures


def test_samples_of_one_volume_get_styles_of_their_own():
    crops = RandSpatialCropSamplesd("image", roi_size=(12, 14, 5), num_samples=3, random_size=False)
    pipeline = Compose([Compose([crops, rand_styled()]), NormalizeIntensityd("image")]).flatten()
    assert len(pipeline.transforms) == 3
    styled = pipeline({"image": as_kind(volume(1), "meta")})
    assert len({sample["image"].numpy().tobytes() for sample in styled}) == 3


def test_a_lazy_pipeline_resamples_before_styling(monkeypatch):
    keys, seen, stylise = ["image", "label"], [], RandStyled.stylise
    monkeypatch.setattr(RandStyled, "stylise", lambda self, img, drawn: stylise(self, note(img), drawn))

    def note(img: MetaTensor) -> MetaTensor:
        seen.append(img)
        return img

    def run(*, lazy: bool) -> dict[str, Any]:
        pipeline = Compose(
            [
                Spacingd(keys, pixdim=(1.0, 2.0, 4.0), mode=("bilinear", "nearest")),
                RandAffined(keys, prob=1.0, rotate_range=0.5, mode=("bilinear", "nearest")),
                rand_styled(),
                RandRotated(keys, prob=1.0, range_x=0.3, mode=("bilinear", "nearest")),
            ],
            lazy=lazy,
        )
        return pipeline.set_random_state(seed=1)({key: as_kind(volume(1), "meta") for key in keys})

    lazily, eagerly = run(lazy=True), run(lazy=False)
    assert seen[0].shape == seen[1].shape == (1, 23, 20, 5), "both are styled at the new spacing"
    assert not seen[0].pending_operations and len(seen[0].applied_operations) == 2
    for key in keys:
        assert not lazily[key].pending_operations
        assert lazily[key].shape == eagerly[key].shape == (1, 23, 20, 5)
        assert torch.allclose(lazily[key].affine, eagerly[key].affine)


@pytest.mark.parametrize("copy", [deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_draw_the_same_each_for_itself(copy):
    for augment in (rand_style(name="tiny-photo"), rand_styled(name="tiny-photo")):
        pipeline = Compose([augment]).set_random_state(seed=2)
        twin = copy(pipeline)
        sample: Any = photo() if isinstance(augment, RandStyle) else {"image": photo()}
        first, second = ([p(sample) for _ in range(3)] for p in (pipeline, twin))
        for one, other in zip(first, second, strict=True):
            one, other = (x if isinstance(x, Tensor) else x["image"] for x in (one, other))
            assert torch.equal(one, other)


def test_copies_for_threads_share_the_network():
    augment = rand_style(name="tiny-adain")
    assert deepcopy(augment).stylizer is augment.stylizer
    # Without a state of its own a transform draws from MONAI's, and so does its copy.
    twin = deepcopy(augment)
    assert not torch.equal(twin(photo()), augment(photo()))


def failure(transforms: list[Any], image: Any) -> Exception:
    """Run a pipeline that fails; give our error, which MONAI puts behind its own."""
    with pytest.raises(RuntimeError, match="applying transform") as caught:
        Compose(transforms)({"image": image})
    cause = caught.value.__cause__
    assert isinstance(cause, ImageError)
    return cause


def test_errors_name_the_fix_in_monais_words():
    words = "after EnsureChannelFirstd and ScaleIntensityd.*ScaleIntensityRanged.*before NormalizeIntensityd"
    hounsfield = (volume(1) * 3000 - 1000).to(torch.int16)
    for transforms, image, what in (
        ([NormalizeIntensityd("image"), rand_styled()], volume(1), r"lie in \[0, 1\]"),
        ([rand_styled()], hounsfield, "got torch.int16"),
        ([rand_styled()], hounsfield.float(), r"lie in \[0, 1\]"),
        ([rand_styled()], volume(1)[0, 0], r"\(C, H, W\) or \(C, H, W, D\)"),
        ([rand_styled()], torch.rand(24, 32, 3), "at most 16 channels, got 24"),
        ([rand_styled()], torch.full((1, 8, 8), torch.nan), "nan"),
        ([rand_styled()], "image.nii", "got str. Is LoadImaged missing"),
    ):
        error = failure(transforms, image)
        with pytest.raises(ImageError, match=f"{what}.*{words}"):
            raise error


def test_options_are_checked():
    with pytest.raises(ConfigError, match="MONAI hands over one at a time"):
        RandStyle("batch")
    with pytest.raises(ConfigError, match='splice="mask" is not available in MONAI'):
        rand_styled(splice="mask")
    for wrong in ({"prob": 1.5}, {"axis": 3}, {"axis": -4}, {"axis": True}, {"axis": "D"}, {"parts": 3}):
        with pytest.raises(ConfigError):
            rand_style(**wrong)
    with pytest.raises(ValueError, match="keys must be non empty"):
        rand_styled([])


def test_repr_says_what_is_drawn():
    assert repr(rand_style(prob=0.3)).startswith("RandStyle(StyleBank(5 styles")
    assert "prob=0.3" in repr(rand_style(prob=0.3)) and "p=1.0" not in repr(rand_style())
    assert repr(rand_styled(["a", "b"])).startswith("RandStyled(keys=('a', 'b'), StyleBank")
