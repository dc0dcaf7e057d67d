"""`StyleAugment` for albumentations in DataLoader's workers, of 2.0.8 and of AlbumentationsX."""

import json
import os
from typing import Any

# The import of 2.0.8 asks the network for its newest version; AlbumentationsX reports what it is used for.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
os.environ.setdefault("ALBUMENTATIONS_NO_TELEMETRY", "1")

import numpy as np
import pytest
import torch
from specimens import bank, photo
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

A = pytest.importorskip("albumentations")

from styleaug.transforms.albumentations import StyleAugment  # noqa: E402

SEEDS_WORKERS_ITSELF = hasattr(A.BasicTransform, "sample_parameters")
"""AlbumentationsX mixes torch's seed into the pipeline's, for all of its transforms."""

WHOLE = {"p": 1.0, "strength": (0.1, 1.0)}


def picture(height: int, width: int) -> np.ndarray:
    return photo(height, width).permute(1, 2, 0).mul(255).byte().numpy()


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> str:
    """Save a bank, as pipelines that are replayed name theirs."""
    file = tmp_path_factory.mktemp("bank") / "bank.safetensors"
    bank("reinhard-rgb").save(file)
    return str(file)


LENGTH = 48


class SamePicture(Dataset[tuple[Tensor, int, int, str]]):
    """One picture over and over: styled, with its index, the worker that read it, and a replay record."""

    def __init__(self, pipeline: Any):
        self.pipeline = pipeline

    def __len__(self) -> int:
        return LENGTH

    def __getitem__(self, index: int) -> tuple[Tensor, int, int, str]:
        worker = get_worker_info()
        done = self.pipeline(image=picture(6, 6))
        record = json.dumps(done.get("replay"))
        return torch.from_numpy(done["image"].copy()), index, worker.id if worker else -1, record


def epoch(loader: DataLoader) -> dict[int, list[bytes]]:
    """Run once; give each worker's images in order."""
    seen: dict[int, list[bytes]] = {}
    for images, _, workers, _ in loader:
        for image, worker in zip(images, workers.tolist(), strict=True):
            seen.setdefault(worker, []).append(image.numpy().tobytes())
    assert sum(map(len, seen.values())) == LENGTH
    return seen


def loader(pipeline: Any, workers: int, method: str | None, *, persistent: bool = False) -> DataLoader:
    return DataLoader(
        SamePicture(pipeline),
        batch_size=4,
        num_workers=workers,
        multiprocessing_context=method if workers else None,
        persistent_workers=persistent,
    )


def pipeline_of(path: str, seed: int | None, p: float = 1.0) -> Any:
    # Floats, of which no two styles and strengths make the same.
    return A.Compose([A.ToFloat(), StyleAugment(path, **{**WHOLE, "p": p})], seed=seed)


# A spawned worker imports torch and albumentations anew, which takes seconds.
@pytest.mark.parametrize(
    ("workers", "method", "persistent"),
    [
        (0, None, False),
        (2, "fork", False),
        (2, "fork", True),
        pytest.param(4, "fork", False, marks=pytest.mark.slow),
        pytest.param(4, "fork", True, marks=pytest.mark.slow),
        pytest.param(2, "spawn", True, marks=pytest.mark.slow),
    ],
)
def test_no_two_workers_and_no_two_epochs_draw_alike(path, workers, method, persistent):
    def run(*, seed: int = 1, of_pipeline: int = 3, method: str | None = method) -> list[list[bytes]]:
        torch.manual_seed(seed)
        data = loader(pipeline_of(path, of_pipeline), workers, method, persistent=persistent)
        epochs = [epoch(data), epoch(data)]
        assert all(len(seen) == max(workers, 1) for seen in epochs), "all workers had work"
        return [images for seen in epochs for _, images in sorted(seen.items())]

    def unlike(other: list[list[bytes]]) -> bool:
        return {image for images in other for image in images}.isdisjoint(styled)

    first, quick = run(), "fork" if workers else None
    styled = {image for images in first for image in images}
    assert len(styled) == 2 * LENGTH
    assert run(method=quick) == first, "reproducible"
    # Far from 3, as AlbumentationsX adds a worker's number to this seed.
    assert unlike(run(of_pipeline=1000, method=quick))
    if not SEEDS_WORKERS_ITSELF:
        assert run(seed=2, method=quick) == first, "the pipeline's seed is all that counts"


@pytest.mark.parametrize("seed", [3, None])
@pytest.mark.parametrize(("workers", "persistent"), [(0, False), (2, False), (4, False), (4, True)])
def test_no_two_workers_and_no_two_epochs_pick_alike(path, workers, persistent, seed):
    plain = A.ToFloat()(image=picture(6, 6))["image"].tobytes()
    data = loader(pipeline_of(path, seed, p=0.5), workers, "fork", persistent=persistent)
    runs = [[image != plain for image in images] for _ in range(3) for images in epoch(data).values()]
    assert len(runs) == 3 * max(workers, 1)
    if workers < 4 or seed is not None:  # twelve picks may agree by chance
        assert len({tuple(picks) for picks in runs}) == len(runs)
    assert 0.3 < np.mean([pick for picks in runs for pick in picks]) < 0.7


def seed_worker(worker: int) -> None:
    """Seed as the host's documentation advises."""
    info = get_worker_info()
    assert info is not None
    info.dataset.pipeline.set_random_seed(info.seed % 2**32)  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.slow
def test_workers_that_are_seeded_by_hand(path):
    def run() -> set[bytes]:
        torch.manual_seed(1)
        data = DataLoader(
            SamePicture(pipeline_of(path, 3)), batch_size=4, num_workers=2, worker_init_fn=seed_worker
        )
        return {image for _ in range(2) for images in epoch(data).values() for image in images}

    assert len(run()) == 2 * LENGTH
    assert run() == run()


@pytest.mark.parametrize("workers", [0, 2])
def test_replay_of_what_workers_did_is_exact(path, workers):
    pipeline = A.ReplayCompose([A.HorizontalFlip(p=0.5), StyleAugment(path, p=0.5)])
    data = loader(pipeline, workers, "fork")
    for images, _, _, records in data:
        for image, record in zip(images, records, strict=True):
            again = A.ReplayCompose.replay(json.loads(record), image=picture(6, 6))["image"]
            assert np.array_equal(again, image.numpy())


def test_each_process_leaves_the_stream_it_inherits_only_once(path, monkeypatch):
    if SEEDS_WORKERS_ITSELF:
        pytest.skip("AlbumentationsX seeds its workers itself")
    transform = StyleAugment(path, p=1.0)

    class Worker:
        id, seed = 0, 5

    for module in ("albumentations", "host"):
        monkeypatch.setattr(f"styleaug.transforms.{module}.get_worker_info", Worker)
    transform.set_random_seed(1)
    transform(image=picture(24, 32))
    stream = transform.py_random
    transform(image=picture(24, 32))
    assert transform.py_random is stream
    Worker.seed = 6
    transform(image=picture(24, 32))
    assert transform.py_random is not stream
