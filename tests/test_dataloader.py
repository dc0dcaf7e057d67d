"""`StyleAugment` in DataLoader's workers, `StyleCollate`, and `StyleLoader` behind the loader."""

import copy
import gc
import multiprocessing
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from specimens import bank, generator, photo, photos
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from styleaug import ConfigError, DeviceError, ImageError, StyleAugment, StyleCollate, StyleLoader
from styleaug.transforms.augment import check_worker

LENGTH = 16


def augment(**options) -> StyleAugment:
    return StyleAugment(bank("reinhard-rgb"), **{"p": 1.0, "strength": (0.1, 1.0), **options})


class SamePhoto(Dataset[tuple[Tensor, int, int]]):
    """One photo over and over, with its index and the worker that read it."""

    def __init__(self, transform: Any = None, *, broken: int | None = None):
        self.transform, self.broken = transform, broken

    def __len__(self) -> int:
        return LENGTH

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        if index == self.broken:
            raise ImageError(f"image {index} is broken")
        worker = get_worker_info()
        image = photo(12, 12)
        return (self.transform(image) if self.transform else image), index, worker.id if worker else -1


class UsesCuda(Dataset[str]):
    """A dataset whose workers are about to use CUDA."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> str:
        check_worker(torch.device("cuda"))
        return "allowed"


def epoch(loader: Any) -> tuple[dict[int, bytes], dict[int, bytes]]:
    """Run once; give each index's image, and the first image of each worker."""
    seen, first = {}, {}
    for images, indices, workers in loader:
        for image, index, worker in zip(images, indices.tolist(), workers.tolist(), strict=True):
            seen[index] = image.numpy().tobytes()
            first.setdefault(worker, seen[index])
    assert sorted(seen) == list(range(LENGTH))
    return seen, first


def loader(workers: int, method: str | None, *, seed: int = 1, **options) -> DataLoader:
    torch.manual_seed(seed)
    return DataLoader(
        SamePhoto(augment()),
        batch_size=2,
        num_workers=workers,
        multiprocessing_context=method if workers else None,
        generator=torch.Generator().manual_seed(seed),
        persistent_workers=workers > 0,
        **options,
    )


# A spawned worker imports torch anew, which takes seconds.
@pytest.mark.parametrize(
    ("workers", "method"),
    [
        (0, None),
        (2, "fork"),
        pytest.param(4, "fork", marks=pytest.mark.slow),
        pytest.param(2, "spawn", marks=pytest.mark.slow),
    ],
)
def test_styles_differ_in_every_worker_and_epoch_and_follow_the_seed(workers, method):
    one = loader(workers, method)
    (seen, first), (later, _) = epoch(one), epoch(one)
    assert len(set(seen.values()) | set(later.values())) == 2 * LENGTH, "no style is drawn twice"
    assert len(first) == max(workers, 1), "all workers had work"
    again = loader(workers, "fork" if workers else None)
    assert epoch(again)[0] == seen and epoch(again)[0] == later
    other = epoch(loader(workers, "fork" if workers else None, seed=2))[0]
    assert not set(other.values()) & set(seen.values())


def test_cuda_in_a_forked_worker_is_named():
    with pytest.raises(DeviceError, match=r"forked DataLoader worker.*StyleLoader\(loader"):
        list(DataLoader(UsesCuda(), num_workers=1, batch_size=None, multiprocessing_context="fork"))
    assert list(DataLoader(UsesCuda(), batch_size=None)) == ["allowed"]


@pytest.mark.slow
def test_cuda_in_a_spawned_worker_is_allowed():
    workers = DataLoader(UsesCuda(), num_workers=1, batch_size=None, multiprocessing_context="spawn")
    assert list(workers) == ["allowed"]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_style_collate(workers):
    batches = list(
        DataLoader(
            SamePhoto(),
            batch_size=5,
            num_workers=workers,
            collate_fn=StyleCollate(augment(strength=(0.1, 1))),
        )
    )
    assert [len(images) for images, _, _ in batches] == [5, 5, 5, 1]
    rows = torch.cat([images for images, _, _ in batches])
    assert len({row.numpy().tobytes() for row in rows}) == LENGTH
    assert torch.cat([indices for _, indices, _ in batches]).tolist() == list(range(LENGTH))


def test_style_collate_with_a_collate_function_of_its_own():
    collate = StyleCollate(augment(), collate=lambda samples: {"images": torch.stack(samples)})
    assert collate([photo(), photo()])["images"].shape == (2, 3, 24, 32)


@pytest.mark.parametrize("workers", [0, 2])
def test_style_loader_hands_over_in_order(workers):
    styled = StyleLoader(DataLoader(SamePhoto(), batch_size=3, num_workers=workers), augment())
    for _ in range(2):
        indices = []
        for images, index, _ in styled:
            assert not any(torch.equal(image, photo(12, 12)) for image in images)
            indices += index.tolist()
        assert indices == list(range(LENGTH))
    torch.manual_seed(4)
    first = next(iter(styled))[0]
    torch.manual_seed(4)
    assert torch.equal(next(iter(styled))[0], first)


def test_style_loader_with_persistent_workers():
    base = DataLoader(SamePhoto(), batch_size=4, num_workers=2, persistent_workers=True)
    styled = StyleLoader(base, augment())
    for _ in range(2):
        assert [len(images) for images, _, _ in styled] == [4, 4, 4, 4]
        for _batch in styled:
            break


@pytest.mark.parametrize("workers", [0, 2])
def test_errors_of_the_dataset_arrive_after_the_batches_before_them(workers):
    base = DataLoader(SamePhoto(broken=9), batch_size=4, num_workers=workers)
    seen = []
    with pytest.raises(ImageError, match="image 9 is broken"):
        for _, index, _ in StyleLoader(base, augment()):
            seen += index.tolist()
    assert seen == list(range(8))
    assert_no_children()


def test_errors_of_the_augmentation_arrive():
    batches = [photos(2), photos(2) * 300]
    with pytest.raises(ImageError, match="must lie in"):
        list(StyleLoader(batches, augment()))


def assert_no_children() -> None:
    """Wait for worker processes to end; none may be left."""
    gc.collect()
    deadline = time.monotonic() + 20
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not multiprocessing.active_children()


class Keeps:
    """A loader that holds on to its iterator, as a traceback or a progress bar does."""

    def __init__(self, loader: Any):
        self.loader = loader

    def __iter__(self) -> Iterator[Any]:
        self.iterator = iter(self.loader)
        return self.iterator


@pytest.mark.slow
def test_leaving_early_stops_the_workers():
    assert_no_children()
    base = Keeps(DataLoader(SamePhoto(), batch_size=2, num_workers=2, prefetch_factor=4))
    styled = StyleLoader(base, augment())
    for _batch in styled:
        assert len(multiprocessing.active_children()) == 2
        break
    assert_no_children()
    batches = iter(styled)
    next(batches)
    batches.close()  # pyright: ignore
    assert not multiprocessing.active_children(), "closing waits for the workers"


def test_leaving_early_closes_a_generator():
    closed = []

    def batches() -> Iterator[Tensor]:
        try:
            while True:
                yield photos(1)
        finally:
            closed.append(True)

    kept = batches()
    for _batch in StyleLoader(kept, augment()):
        break
    assert closed == [True]


def test_attributes_are_the_loaders():
    base = DataLoader(SamePhoto(), batch_size=4)
    styled = StyleLoader(base, augment())
    assert len(styled) == len(base) == 4
    assert styled.dataset is base.dataset and styled.batch_size == 4 and styled.sampler is base.sampler
    with pytest.raises(AttributeError):
        styled.nonsense  # noqa: B018
    assert copy.copy(styled).loader is base


def test_nested_batches_pass():
    batch = {"x": [photos(2), {"label": torch.arange(2)}], "names": ("a", "b"), "none": None}
    (styled,) = StyleLoader([batch], augment(), device="cpu")
    assert styled["names"] == ("a", "b") and styled["none"] is None
    assert torch.equal(styled["x"][1]["label"], torch.arange(2))
    assert styled["x"][0].shape == (2, 3, 24, 32) and not torch.equal(styled["x"][0], batch["x"][0])


def test_a_missing_gpu_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="Use device='cpu'"):
        StyleLoader([], augment(), device="cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("workers", [0, 2])
def test_cuda_loader_gives_what_the_cpu_gives(cuda, workers):
    transform = StyleAugment(bank("tiny-adain"), generator=generator("tiny-adain"), p=0.7)
    base = DataLoader(SamePhoto(), batch_size=3, num_workers=workers, pin_memory=True)
    torch.manual_seed(0)
    wanted = list(StyleLoader(base, transform))
    torch.manual_seed(0)
    found = list(StyleLoader(base, transform, device=cuda))
    for (images, index, _), (styled, same, _) in zip(wanted, found, strict=True):
        assert styled.is_cuda and torch.equal(same.cpu(), index)
        torch.testing.assert_close(styled.cpu(), images, atol=5e-3, rtol=0)


@pytest.mark.gpu
def test_cuda_loader_passes_errors_on_and_closes(cuda):
    seen = []
    with pytest.raises(ImageError, match="image 9 is broken"):
        base = DataLoader(SamePhoto(broken=9), batch_size=4, num_workers=2)
        for _, index, _ in StyleLoader(base, augment(), device=cuda):
            seen += index.tolist()
    assert seen == list(range(8))
    for _batch in StyleLoader(DataLoader(SamePhoto(), num_workers=2), augment(), device=cuda):
        break
    assert_no_children()


@pytest.mark.gpu
def test_cuda_loader_waits_for_batches_made_on_the_gpu(cuda):
    def batches() -> Iterator[Tensor]:
        for _ in range(5):
            noise = torch.rand(3000, 3000, device=cuda)
            for _ in range(20):  # keeps the current stream busy while the batch is handed on
                noise = (noise @ noise).clamp(0, 1)
            yield torch.full((4, 3, 64, 64), 0.5, device=cuda) * noise.amax().clamp(1, 1)

    for images in StyleLoader(batches(), augment(strength=0.0), device=cuda):
        torch.testing.assert_close(images, torch.full_like(images, 0.5))
