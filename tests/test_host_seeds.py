"""Pipelines that are seeded in their host's way, or not at all, in loaders with and without workers."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
os.environ.setdefault("ALBUMENTATIONS_NO_TELEMETRY", "1")

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from specimens import bank, generator, photo
from torch.utils.data import DataLoader, Dataset, get_worker_info

A = pytest.importorskip("albumentations")
monai_data = pytest.importorskip("monai.data")

from monai.data import ArrayDataset, CacheDataset  # noqa: E402
from monai.transforms import Compose, OneOf, RandFlipd, RandGaussianNoise, ScaleIntensity  # noqa: E402
from monai.utils import set_determinism  # noqa: E402

from styleaug.transforms.albumentations import StyleAugment  # noqa: E402
from styleaug.transforms.host import Copies  # noqa: E402
from styleaug.transforms.monai import RandStyle, RandStyled  # noqa: E402

LENGTH = 12
if hasattr(A.BasicTransform, "sample_parameters"):
    pytest.skip("AlbumentationsX mixes torch's seed into its own in workers", allow_module_level=True)


def options(name: str = "p") -> dict[str, Any]:
    return {name: 1.0, "strength": (0.2, 1.0), "generator": generator("reinhard-rgb")}


def rand_styled() -> RandStyled:
    return RandStyled("image", bank("reinhard-rgb"), **options("prob"))


class Items(Dataset[Any]):
    """One photo over and over, through an albumentations pipeline."""

    def __init__(self, pipeline: Any):
        self.pipeline = pipeline

    def __len__(self) -> int:
        return LENGTH

    def __getitem__(self, index: int) -> Any:
        image = photo(6, 6).permute(1, 2, 0).numpy()
        return {"image": self.pipeline(image=image)["image"], "worker": worker_number()}


def worker_number() -> int:
    info = get_worker_info()
    return -1 if info is None else info.id


class Numbered(monai_data.Dataset):
    """A dataset of MONAI that says which worker read an item."""

    def __getitem__(self, index: Any) -> Any:
        return {**super().__getitem__(index), "worker": worker_number()}


class NumberedCache(CacheDataset):
    def __getitem__(self, index: Any) -> Any:
        return {**super().__getitem__(index), "worker": worker_number()}


def photos_of_monai() -> list[dict[str, Any]]:
    return [{"image": photo(6, 6)} for _ in range(LENGTH)]


def albumentations_compose(seed: int | None) -> Dataset[Any]:
    return Items(A.Compose([A.HorizontalFlip(), StyleAugment(bank("reinhard-rgb"), **options())], seed=seed))


def albumentations_set_random_seed(seed: int | None) -> Dataset[Any]:
    dataset: Any = albumentations_nested(7)
    dataset.pipeline.set_random_seed(seed)
    return dataset


def albumentations_nested(seed: int | None) -> Dataset[Any]:
    style = A.OneOf([StyleAugment(bank("reinhard-rgb"), **options())], p=1.0)
    return Items(A.Compose([A.Sequential([style], p=1.0)], seed=seed))


def monai_compose(seed: int | None) -> Dataset[Any]:
    pipeline = Compose([RandFlipd("image", 0.5), rand_styled()])
    return Numbered(photos_of_monai(), pipeline if seed is None else pipeline.set_random_state(seed))


def monai_bare(seed: int | None) -> Dataset[Any]:
    dataset = Numbered(photos_of_monai(), rand_styled())  # MONAI wraps it in a Compose
    if seed is not None:
        dataset.transform.set_random_state(seed)
    return dataset


def monai_state(seed: int | None) -> Dataset[Any]:
    dataset: Any = monai_bare(None)
    if seed is not None:
        dataset.transform = rand_styled().set_random_state(state=np.random.RandomState(seed))
    return dataset


def monai_determinism(seed: int | None) -> Dataset[Any]:
    state = torch.get_rng_state()
    set_determinism(seed)
    try:
        return monai_compose(None)
    finally:
        torch.set_rng_state(state)
        set_determinism(None)


def monai_nested(seed: int | None) -> Dataset[Any]:
    pipeline = Compose([OneOf([Compose([rand_styled()])])])
    return Numbered(photos_of_monai(), pipeline if seed is None else pipeline.set_random_state(seed))


def monai_cache(seed: int | None) -> Dataset[Any]:
    pipeline = Compose([rand_styled()])
    if seed is not None:
        pipeline.set_random_state(seed)
    return NumberedCache(photos_of_monai(), pipeline, progress=False)


HOSTS: list[Callable[[int | None], Dataset[Any]]] = [
    albumentations_compose,
    albumentations_set_random_seed,
    albumentations_nested,
    monai_compose,
    monai_bare,
    monai_state,
    monai_determinism,
    monai_nested,
    monai_cache,
]
BY_NAME = {host.__name__: host for host in HOSTS}


def collate(samples: list[dict[str, Any]]) -> list[tuple[int, bytes]]:
    return [(sample["worker"], np.asarray(sample["image"]).tobytes()) for sample in samples]


def run(
    dataset: Dataset[Any],
    *,
    workers: int,
    torch_seed: int,
    method: str = "fork",
    persistent: bool = False,
    epochs: int = 2,
) -> list[list[tuple[int, bytes]]]:
    """Run two epochs; give each one's images with the workers that made them."""
    torch.manual_seed(torch_seed)
    loader = DataLoader(
        dataset,
        batch_size=2,
        num_workers=workers,
        collate_fn=collate,
        multiprocessing_context=method if workers else None,
        persistent_workers=persistent and workers > 0,
    )
    return [[item for batch in loader for item in batch] for _ in range(epochs)]


def images_of(epochs: list[list[tuple[int, bytes]]]) -> list[bytes]:
    return [image for epoch in epochs for _, image in epoch]


@pytest.mark.slow
@pytest.mark.parametrize("host", HOSTS, ids=lambda host: host.__name__)
@pytest.mark.parametrize(("workers", "persistent"), [(0, False), (2, True)])  # others by hypothesis, below
def test_a_hosts_seed_is_all_that_counts(host, workers, persistent):
    first = run(host(3), workers=workers, persistent=persistent, torch_seed=1)
    assert {worker for epoch in first for worker, _ in epoch} == set(range(workers) if workers else [-1])
    assert len(set(images_of(first))) == 2 * LENGTH, "no two of any worker or epoch are alike"
    assert run(host(3), workers=workers, persistent=persistent, torch_seed=2) == first
    other = run(host(4), workers=workers, persistent=persistent, torch_seed=1)
    assert not set(images_of(other)) & set(images_of(first))


WITHOUT_FLIPS = [
    albumentations_set_random_seed, albumentations_nested, monai_bare, monai_state, monai_nested, monai_cache
]  # fmt: skip
"""Hosts whose other transforms are not random; those of an unseeded host follow nobody's seed."""


@pytest.mark.slow
@pytest.mark.parametrize("host", WITHOUT_FLIPS, ids=lambda host: host.__name__)
@pytest.mark.parametrize(("workers", "persistent"), [(0, False), (2, True)])
def test_without_a_seed_torchs_counts(host, workers, persistent):
    first = run(host(None), workers=workers, persistent=persistent, torch_seed=1)
    assert len(set(images_of(first))) == 2 * LENGTH
    assert run(host(None), workers=workers, persistent=persistent, torch_seed=1) == first
    other = run(host(None), workers=workers, persistent=persistent, torch_seed=2)
    assert not set(images_of(other)) & set(images_of(first))


@pytest.mark.slow
@settings(max_examples=8)
@given(
    host=st.sampled_from(HOSTS),
    seed=st.integers(0, 2**31 - 1),
    workers=st.integers(0, 4),
    persistent=st.booleans(),
    torch_seeds=st.lists(st.integers(0, 2**31 - 1), min_size=2, max_size=2),
)
def test_hosts_and_workers(host, seed, workers, persistent, torch_seeds):
    first, second = (
        run(host(seed), workers=workers, persistent=persistent, torch_seed=torch_seed, epochs=2)
        for torch_seed in torch_seeds
    )
    assert first == second
    assert len(set(images_of(first))) == 2 * LENGTH


# A spawned worker imports torch and its host anew, which takes seconds.
@pytest.mark.slow
def test_spawned_workers_draw_what_forked_ones_do(host=monai_compose):
    first = run(host(3), workers=2, torch_seed=1, method="spawn", persistent=True)
    assert run(host(3), workers=2, torch_seed=2, method="fork", persistent=True) == first
    assert len(set(images_of(first))) == 2 * LENGTH


SCRIPT = """
import hashlib, sys
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
import test_host_seeds as hosts
found = hosts.run(hosts.BY_NAME[sys.argv[1]](5), workers=2, torch_seed=int(sys.argv[2]))
print(hashlib.sha256(repr(found).encode()).hexdigest())
"""


@pytest.mark.slow
def test_fresh_processes_draw_alike(name="albumentations_compose"):
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-c",
        SCRIPT.format(tests=str(Path(__file__).parent)),
        name,
        "1",
    ]
    fresh = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    here = run(BY_NAME[name](5), workers=2, torch_seed=2)
    assert fresh == hashlib.sha256(repr(here).encode()).hexdigest()


# What MONAI's own test_arraydataset asks


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("composed", [False, True])
def test_array_dataset_with_the_same_seed(workers, composed):
    style = RandStyle(bank("reinhard-rgb"), **options("prob"))
    pipeline: Any = Compose([ScaleIntensity(), style, RandGaussianNoise()]) if composed else style
    pictures = [photo(6, 6, seed=seed) for seed in range(4)]
    dataset = ArrayDataset(pictures, pipeline, labels=[0, 1, 2, 3])
    dataset.set_random_state(1234)
    first = [batch for batch in DataLoader(dataset, batch_size=2, num_workers=workers)]
    dataset.set_random_state(1234)
    second = [batch for batch in DataLoader(dataset, batch_size=2, num_workers=workers)]
    for (one, _), (other, _) in zip(first, second, strict=True):
        assert torch.equal(torch.as_tensor(one), torch.as_tensor(other))
    assert not torch.equal(torch.as_tensor(first[0][0][0]), pictures[0]), "styled"


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_monais_loader_follows_torch(workers):
    def images(torch_seed: int) -> list[bytes]:
        dataset = monai_compose(3)
        torch.manual_seed(torch_seed)
        loader = monai_data.DataLoader(dataset, batch_size=2, num_workers=workers, collate_fn=collate)
        return images_of([[item for batch in loader for item in batch] for _ in range(2)])

    assert len(set(images(1))) == 2 * LENGTH
    assert images(1) == images(1), "MONAI's loader seeds its transforms anew, from torch's seed"
    assert not set(images(1)) & set(images(2))


@pytest.mark.slow
def test_seeding_again_begins_again():
    for dataset, seed in (
        (albumentations_nested(1), lambda data, seed: data.pipeline.set_random_seed(seed)),
        (monai_bare(1), lambda data, seed: data.transform.set_random_state(seed)),
    ):
        found = []
        for _ in range(2):
            seed(dataset, 5)
            found.append(run(dataset, workers=2, torch_seed=len(found)))
        assert found[0] == found[1]


def test_a_worker_that_seeds_by_hand_in_each_epoch():
    class Seeded(Items):
        """All workers set one seed; they must not draw alike."""

        def __getitem__(self, index: int) -> Any:
            if index < 4:
                self.pipeline.set_random_seed(9)
            return super().__getitem__(index)

    first = run(Seeded(albumentations_nested(1).pipeline), workers=2, torch_seed=1, epochs=1)  # pyright: ignore
    by_worker = [{image for worker, image in first[0] if worker == number} for number in range(2)]
    assert not by_worker[0] & by_worker[1]


def test_copies_count_forks_and_pickles():
    import pickle

    one = Copies()
    assert one.number == 0 and one.parts == ()
    first, second = pickle.loads(pickle.dumps(one)), pickle.loads(pickle.dumps(one))
    assert (first.number, second.number, one.number) == (0, 1, 2)
    assert deepcopy(one).number == 2
    if hasattr(os, "fork"):
        for wanted in (3, 4):
            assert in_a_fork(lambda: one.number) == wanted
        assert Copies().number == 0


def in_a_fork(number: Callable[[], int]) -> int:
    child = os.fork()
    if child == 0:
        os._exit(number())
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.fixture(autouse=True)
def no_determinism() -> Iterator[None]:
    yield
    set_determinism(None)
