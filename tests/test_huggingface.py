"""`StyleColumn` in Hugging Face datasets: while images are read, and ahead of time with `map`."""

import io
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import contract
import datasets
import multiprocess
import numpy as np
import pytest
import torch
from datasets.fingerprint import Hasher
from PIL import Image
from specimens import Spy, bank, bank_of, generator, pil, tiny_adain, tiny_vaegan
from torch import Tensor
from torch.utils.data import DataLoader

from styleaug import ConfigError, DeviceError, ImageError, StyleAugment, StyleBank, Weighted
from styleaug.transforms.huggingface import StyleColumn
from styleaug.weights import save_generator

LENGTH = 12


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    datasets.disable_progress_bars()


def augment(**options: Any) -> StyleAugment:
    return StyleAugment(bank("reinhard-rgb"), **{"p": 1.0, "strength": (0.1, 1.0), **options})


def encoded(image: Image.Image, kind: str = "PNG") -> dict[str, Any]:
    file = io.BytesIO()
    image.save(file, kind)
    return {"path": None, "bytes": file.getvalue()}


def make(folder: Path, images: list[Any] | None = None, *, kind: str = "PNG") -> datasets.Dataset:
    """Write a dataset of one picture over and over, or of `images`, with labels, as a file."""
    images = [pil()] * LENGTH if images is None else images
    rows = {
        "image": [image and encoded(image, kind) for image in images],
        "label": list(range(len(images))),
        "other": [encoded(pil(seed=5), kind)] * len(images),
    }
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.Value("int64"), "other": datasets.Image()}
    )
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(folder / "data")
    loaded = datasets.load_from_disk(folder / "data")
    assert isinstance(loaded, datasets.Dataset)
    return loaded


def pixels(dataset: Any) -> list[bytes]:
    return [np.asarray(image).tobytes() for image in dataset["image"]]


@pytest.mark.parametrize("check", contract.TRANSFORM_CHECKS, ids=lambda check: check.__name__)
def test_contract(check):
    def make_column(*args: Any, **options: Any) -> Any:
        style = StyleColumn(StyleAugment(*args, **options))

        def run(images: Tensor) -> Tensor:
            batch = [images] if images.ndim == 3 else list(images)
            styled = style({"image": batch})["image"]
            if all(one is same for one, same in zip(styled, batch, strict=True)):
                return images
            return styled[0] if images.ndim == 3 else torch.stack(styled)

        return run

    check(make_column, bank("reinhard-rgb"), generator("reinhard-rgb"))


def test_images_are_styled_as_they_are_read(tmp_path):
    dataset = make(tmp_path)
    styled = dataset.with_transform(StyleColumn(augment()))
    batch = styled[:]
    assert [image.mode for image in batch["image"]] == ["RGB"] * LENGTH
    assert batch["label"] == list(range(LENGTH))
    assert len(set(pixels(batch))) == LENGTH and pixels(dataset)[0] not in pixels(batch)
    assert len({*pixels(batch), *pixels(styled[:])}) == 2 * LENGTH, "anew each time"
    assert styled[3]["image"].size == (32, 24)
    torch.manual_seed(1)
    first = pixels(styled[:])
    torch.manual_seed(1)
    assert pixels(styled[:]) == first
    dataset.set_transform(StyleColumn(augment(p=0.0)))
    assert pixels(dataset[:4]) == [pil().tobytes()] * 4


def test_other_columns_and_images_not_picked_are_the_same_objects():
    batch = {"image": [pil(), None, pil(seed=1)], "label": [object()] * 3, "mask": [pil("L")] * 3}
    styled = StyleColumn(augment(p=0.0))(batch)
    assert all(one is same for one, same in zip(styled["image"], batch["image"], strict=True))
    styled = StyleColumn(augment())(batch)
    assert styled["label"] is batch["label"] and styled["mask"] is batch["mask"]
    assert styled["image"][1] is None and styled["image"][0] is not batch["image"][0]
    assert batch["image"][0].tobytes() == pil().tobytes()


@pytest.mark.parametrize("workers", [0, 2])
def test_styles_differ_in_every_worker_and_epoch(tmp_path, workers):
    style = StyleColumn(augment())

    def transform(batch: dict[str, Any]) -> dict[str, Any]:
        batch = style(batch)
        return {"x": [np.array(image) for image in batch["image"]], "label": batch["label"]}

    dataset = make(tmp_path).with_transform(transform)
    loader: Any = DataLoader(dataset, batch_size=3, num_workers=workers)  # pyright: ignore
    seen = [row.numpy().tobytes() for _ in range(2) for batch in loader for row in batch["x"]]
    assert len(seen) == len(set(seen)) == 2 * LENGTH


def mixed_images() -> list[Any]:
    sizes = [("RGB", (32, 24)), ("L", (32, 24)), ("RGBA", (32, 24)), ("RGB", (20, 20)), ("LA", (9, 7))]
    return [*(pil(mode, size, seed=seed) for seed in range(2) for mode, size in sizes), None]


def test_images_of_one_size_are_one_batch_and_keep_their_kind():
    spy = Spy()
    style = StyleColumn(StyleAugment(bank_of(spy), generator=spy, p=1.0, strength=1.0))
    images = mixed_images()
    styled = style({"image": images})["image"]
    assert sorted(map(len, spy.seen)) == [2, 2, 2, 4], "RGBA and RGB are painted together"
    for image, before in zip(styled[:-1], images[:-1], strict=True):
        assert image.mode == before.mode and image.size == before.size
        colours = len(before.getbands()) - (before.mode in ("LA", "RGBA"))
        wanted = np.asarray(before).reshape(*before.size[::-1], -1).copy()
        wanted[..., :colours] = 255 - wanted[..., :colours]
        found = np.asarray(image).reshape(wanted.shape)
        seen = wanted[..., -1] == 255 if before.mode in ("LA", "RGBA") else np.ones(wanted.shape[:2], bool)
        assert np.array_equal(found[seen], wanted[seen])
        assert np.array_equal(found[..., colours:], wanted[..., colours:])
    assert styled[-1] is None


def test_a_rows_style_does_not_depend_on_its_batch():
    style = StyleColumn(augment(p=0.7), seed=3)
    images, indices = mixed_images(), list(range(11))
    together = style({"image": images}, indices)["image"]
    for index, image in enumerate(images):
        (alone,) = style({"image": [image]}, [index])["image"]
        assert alone is None if image is None else alone.tobytes() == together[index].tobytes()
    other = StyleColumn(augment(p=0.7), seed=4)({"image": images}, indices)["image"]
    assert any(one and one.tobytes() != two.tobytes() for one, two in zip(other, together, strict=True))


def test_map_depends_on_seed_and_index_alone(tmp_path):
    dataset, style = make(tmp_path), StyleColumn(augment(), seed=1)
    options: dict[str, Any] = {"batched": True, "with_indices": True, "load_from_cache_file": False}
    wanted = dataset.map(style, **options)
    assert wanted.features == dataset.features
    assert wanted["label"][:] == dataset["label"][:]
    assert len(set(pixels(wanted))) == LENGTH
    assert pixels(dataset.map(style, batch_size=5, **options)) == pixels(wanted)
    assert pixels(dataset.map(style, with_rank=True, batch_size=1, **options)) == pixels(wanted)
    assert pixels(dataset.map(style, num_proc=2, with_rank=True, **options)) == pixels(wanted)


@pytest.mark.slow
def test_map_in_spawned_processes(tmp_path):
    before = multiprocess.get_start_method(allow_none=True)
    dataset, style = make(tmp_path), StyleColumn(augment(), seed=1)
    options: dict[str, Any] = {"batched": True, "with_indices": True, "with_rank": True}
    wanted = pixels(dataset.map(style, load_from_cache_file=False, **options))
    multiprocess.set_start_method("spawn", force=True)
    try:
        again = dataset.map(style, num_proc=2, load_from_cache_file=False, **options)
    finally:
        multiprocess.set_start_method(before, force=True)
    assert pixels(again) == wanted


@pytest.mark.parametrize("options", [{}, {"with_rank": True}])
def test_map_without_indices_depends_on_seed_and_pixels(tmp_path, options):
    dataset = make(tmp_path, [pil(seed=index // 2) for index in range(8)])
    options = {"batched": True, "load_from_cache_file": False, **options}
    wanted = pixels(dataset.map(StyleColumn(augment()), **options))
    assert wanted[::2] == wanted[1::2] and len(set(wanted)) == 4, "equal images get one style"
    torch.manual_seed(9)
    for more in ({"batch_size": 3}, {"num_proc": 2}):
        assert pixels(dataset.map(StyleColumn(augment()), **options, **more)) == wanted
    assert pixels(dataset.map(StyleColumn(augment(), seed=1), **options)) != wanted


def test_what_map_does_not_pick_is_not_compressed_again(tmp_path):
    dataset = make(tmp_path, [pil(seed=index) for index in range(4)], kind="JPEG")
    untouched = dataset.map(StyleColumn(augment(p=0.0)), batched=True, with_indices=True)
    assert pixels(untouched) == pixels(dataset)
    raw = [d.cast_column("other", datasets.Image(decode=False))["other"][:] for d in (dataset, untouched)]
    assert raw[0] == raw[1], "other columns are not even read"


def test_none_entries_and_folders_of_images(tmp_path):
    dataset = make(tmp_path, [pil(), None, pil(seed=2)])
    styled = dataset.map(StyleColumn(augment()), batched=True, with_indices=True)
    assert styled["image"][1] is None and styled["image"][2].mode == "RGB"

    (tmp_path / "classes" / "a").mkdir(parents=True)
    for index in range(3):
        pil(seed=index).save(tmp_path / "classes" / "a" / f"{index}.jpg")
    folder: Any = datasets.load_dataset(
        "imagefolder", data_dir=str(tmp_path / "classes"), cache_dir=str(tmp_path / "cache"), split="train"
    )
    same = folder.map(StyleColumn(augment(p=0.0)), batched=True, with_indices=True)
    assert pixels(same) == pixels(folder)
    styled = folder.map(StyleColumn(augment()), batched=True, with_indices=True)
    assert not set(pixels(styled)) & set(pixels(folder)) and styled.features == folder.features


def test_streamed_datasets_are_styled_anew_in_each_pass(tmp_path):
    stream = make(tmp_path).to_iterable_dataset().map(StyleColumn(augment()), batched=True, batch_size=5)
    passes = [[row["image"].tobytes() for row in stream] for _ in range(2)]  # pyright: ignore
    assert len(set(passes[0] + passes[1])) == 2 * LENGTH


def test_a_second_map_is_read_from_the_cache(tmp_path, monkeypatch):
    dataset, made, count = make(tmp_path), augment(), 0
    call = StyleColumn.__call__

    def counting(self: StyleColumn, *args: Any) -> Any:
        nonlocal count
        count += 1
        return call(self, *args)

    def mapped(style: StyleColumn) -> list[bytes]:
        return pixels(dataset.map(style, batched=True, with_indices=True))

    monkeypatch.setattr(StyleColumn, "__call__", counting)
    style = StyleColumn(made)
    first = mapped(style)
    assert count == 1
    assert mapped(style) == mapped(StyleColumn(made)) == mapped(StyleColumn(augment())) == first
    assert count == 1
    assert mapped(StyleColumn(made, seed=1)) != first
    assert count == 2


# A map in this process would fail: the cache of another has to serve it.
OTHER_PROCESS = """
import sys
import datasets
from styleaug import StyleAugment, StyleBank
from styleaug.transforms.huggingface import StyleColumn
folder = sys.argv[1]
bank = StyleBank.load(folder + "/bank.safetensors")
style = StyleColumn(StyleAugment(bank, generator=folder + "/network.safetensors", p=0.5))
StyleColumn.__call__ = None
styled = datasets.load_from_disk(folder + "/data").map(style, batched=True, with_indices=True)
print(datasets.fingerprint.Hasher.hash(style), len(styled))
print(datasets.fingerprint.Hasher.hash(StyleColumn(StyleAugment("art", p=0.5))))
"""


@pytest.mark.slow
def test_another_process_reads_the_cache(tmp_path):
    network = tiny_adain()
    path = str(tmp_path / "network.safetensors")
    save_generator(network, Path(path))
    bank_of(network).save(tmp_path / "bank.safetensors")
    bank = StyleBank.load(tmp_path / "bank.safetensors")
    style = StyleColumn(StyleAugment(bank, generator=path, p=0.5))
    make(tmp_path).map(style, batched=True, with_indices=True)
    done = subprocess.run(
        [sys.executable, "-c", OTHER_PROCESS, str(tmp_path)],
        env={**os.environ, "PYTHONHASHSEED": "5"},
        capture_output=True,
        text=True,
    )
    shipped = Hasher.hash(StyleColumn(StyleAugment("art", p=0.5)))
    assert done.stdout.split() == [Hasher.hash(style), str(LENGTH), shipped], done.stderr


def test_fingerprints_follow_what_decides_the_images(tmp_path):
    path = tmp_path / "network.safetensors"
    styles = bank("reinhard-rgb")
    style = StyleColumn(augment())
    first = Hasher.hash(style)
    style({"image": [pil()] * 4})
    assert Hasher.hash(style) == Hasher.hash(StyleColumn(augment())) == first, "use does not change it"
    unlike = [
        Hasher.hash(StyleColumn(augment(p=0.6))),
        Hasher.hash(StyleColumn(augment(strength=1.0))),
        Hasher.hash(StyleColumn(augment(sampler=Weighted([1, 2, 3, 4, 5])))),
        Hasher.hash(StyleColumn(augment(), seed=1)),
        Hasher.hash(StyleColumn(augment(), column="x")),
        Hasher.hash(StyleColumn(StyleAugment(styles.select([1, 0, 2, 3, 4]), p=1.0, strength=(0.1, 1.0)))),
    ]
    for seed in (0, 1):  # the same path, other weights
        save_generator(tiny_vaegan(seed), path)
        unlike.append(Hasher.hash(StyleColumn(StyleAugment(generator=path))))
    assert len({first, *unlike}) == 9


def test_a_style_is_the_same_after_a_pickle():
    style = StyleColumn(augment(), seed=2)
    batch = {"image": [pil()] * 3}
    again = pickle.loads(pickle.dumps(style))
    assert pixels(again(batch, [4, 5, 6])) == pixels(style(batch, [4, 5, 6]))
    assert vars(again).keys() == vars(style).keys()


class Ranked:
    """Stands for a stylizer on GPUs; says where it was asked to work."""

    def __init__(self) -> None:
        self.devices: list[torch.device] = []

    def __call__(self, stylizer: Any, images: Any, params: Any, *, device: torch.device) -> Any:
        self.devices.append(device)
        return ((index, restore(image)) for index, (image, restore) in enumerate(images))


def test_the_rank_chooses_the_gpu(monkeypatch):
    ranked = Ranked()
    monkeypatch.setattr("styleaug.transforms.huggingface.stylise_ragged", ranked)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    style, batch = StyleColumn(augment()), {"image": [pil()]}
    for rest in [(), ([7],), (None,), (0,), (1,), (2,), ([7], 3)]:
        style(batch, *rest)
    assert [str(device) for device in ranked.devices] == [
        "cpu",
        "cpu",
        "cuda:0",
        "cuda:0",
        "cuda:1",
        "cuda:0",
        "cuda:1",
    ]


def test_cuda_after_a_fork_is_named(monkeypatch):
    def forked(*args: Any, **options: Any) -> Any:
        raise RuntimeError("Cannot re-initialize CUDA in forked subprocess. To use CUDA ...")

    monkeypatch.setattr("styleaug.transforms.huggingface.stylise_ragged", forked)
    with pytest.raises(DeviceError, match=r"multiprocess\.set_start_method\('spawn'\)"):
        StyleColumn(augment())({"image": [pil()]})


def test_wrong_columns_are_named(tmp_path):
    dataset, style = make(tmp_path), StyleColumn(augment(), column="img")
    with pytest.raises(ConfigError, match=r"no column 'img' among 'image', 'label', 'other'.*column="):
        dataset.map(style, batched=True)
    with pytest.raises(ConfigError, match=r"'label' holds int.*cast_column\(\"label\", datasets.Image\(\)\)"):
        dataset.map(StyleColumn(augment(), column="label"), batched=True)
    undecoded = dataset.cast_column("image", datasets.Image(decode=False))
    with pytest.raises(ConfigError, match=r"'image' holds dict, not images"):
        undecoded.with_transform(StyleColumn(augment()))[0]
    with pytest.raises(ConfigError, match=r"got one row.*batched=True"):
        dataset.map(StyleColumn(augment()))
    with pytest.raises(ConfigError, match=r"got list\. Leave out input_columns"):
        dataset.map(StyleColumn(augment()), batched=True, input_columns="image")


def test_wrong_calls_are_named():
    style, batch = StyleColumn(augment()), {"image": [pil(), pil()]}
    for rest in [([1],), (1, [1, 2]), ([1, 2], 1, 1), ("x",)]:
        with pytest.raises(ConfigError, match=r"a batch of 2 rows with their indices.*batched=True"):
            style(batch, *rest)
    with pytest.raises(ConfigError, match=r"expected a styleaug\.StyleAugment, got str"):
        StyleColumn("art")
    with pytest.raises(ConfigError, match="hands over one at a time"):
        StyleColumn(StyleAugment("batch"))
    with pytest.raises(ConfigError, match="not available in Hugging Face"):
        StyleColumn(augment(splice="mask"))


def test_images_that_cannot_be_stylised_are_named():
    style = StyleColumn(augment())
    with pytest.raises(ImageError, match=r"must lie in \[0, 1\].*Normalise after StyleColumn"):
        style({"image": [torch.randn(3, 8, 8) * 3]})
    with pytest.raises(ImageError, match=r"got 'CMYK'.*convert"):
        style({"image": [pil().convert("CMYK")]})


@pytest.mark.parametrize("indices", [False, True])
def test_streams_keep_to_remove_columns(tmp_path, indices):
    stream = make(tmp_path).to_iterable_dataset()
    columns = stream.column_names
    assert columns is not None and {"image", "label"} <= set(columns)
    style, others = StyleColumn(augment()), [name for name in columns if name != "image"]
    mapped = stream.map(style, batched=True, with_indices=indices, remove_columns=others)
    assert all(set(row) == {"image"} for row in mapped)
    kept = make(tmp_path / "again").map(style, batched=True, with_indices=indices, remove_columns=others)
    assert kept.column_names == ["image"]
