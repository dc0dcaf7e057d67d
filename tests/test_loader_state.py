"""`StyleLoader`'s draws: of their own in every batch and process, and the same after a run is resumed."""

import multiprocessing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import pytest
import torch
from specimens import bank, photo
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler
from torchdata.stateful_dataloader import StatefulDataLoader

from styleaug import ConfigError, StyleAugment, StyleLoader
from styleaug.transforms import loader as loader_module

# torchdata calls it whenever a loader is made.
pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")

LENGTH, BATCH = 14, 3


def augment() -> StyleAugment:
    return StyleAugment(bank("reinhard-rgb"), p=1.0, strength=(0.1, 1.0))


class SamePhoto(Dataset[tuple[Tensor, int]]):
    """One photo over and over, with its index: what differs is the style."""

    def __len__(self) -> int:
        return LENGTH

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return photo(12, 12), index


def fingerprint(batch: tuple[Tensor, Tensor]) -> tuple[bytes, ...]:
    images, indices = batch
    return (*(image.numpy().tobytes() for image in images), indices.numpy().tobytes())


def epoch(styled: Any) -> list[tuple[bytes, ...]]:
    return [fingerprint(batch) for batch in styled]


def stateful(workers: int = 0) -> StyleLoader:
    return StyleLoader(
        StatefulDataLoader(SamePhoto(), batch_size=BATCH, shuffle=True, num_workers=workers), augment()
    )


def test_styles_follow_the_seed_and_the_number_of_the_batch_alone():
    styled = StyleLoader(DataLoader(SamePhoto(), batch_size=BATCH), augment())
    torch.manual_seed(3)
    wanted = epoch(styled)
    assert len({row for batch in wanted for row in batch[:-1]}) == LENGTH
    torch.manual_seed(3)
    drawing = []
    for batch in styled:
        torch.randn(7)  # a model with dropout
        drawing.append(fingerprint(batch))
    assert drawing == wanted
    assert not set(sum(epoch(styled), ())) & {row for batch in wanted for row in batch[:-1]}


def test_styling_does_not_shift_the_models_draws():
    def draws(styled: StyleLoader) -> list[Tensor]:
        torch.manual_seed(3)
        torch.randn(3)  # an odd number: torch keeps the second of a pair of normal draws
        return [torch.randn(3) for _batch in styled] + [torch.randn(3)]

    base = DataLoader(SamePhoto(), batch_size=BATCH)
    alone = draws(StyleLoader(base, lambda batch: batch))
    assert torch.equal(torch.stack(draws(StyleLoader(base, augment()))), torch.stack(alone))


def test_an_error_of_the_augmentation_leaves_the_generator_as_it_was():
    def broken(_batch: Any) -> Any:
        torch.randn(3)
        raise ValueError("broken")

    styled = iter(StyleLoader([1], broken))
    state = torch.get_rng_state()
    with pytest.raises(ValueError, match="broken"):
        next(styled)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("handed_over", [0, 1, 3, 5])
def test_a_resumed_run_gives_what_the_unbroken_one_gives(workers, handed_over):
    torch.manual_seed(5)
    unbroken = stateful(workers)
    epoch(unbroken)  # so that the state is not that of a first epoch
    batches = iter(unbroken)
    for _ in range(handed_over):
        next(batches)
    state, rng = unbroken.state_dict(), torch.get_rng_state()
    wanted = [fingerprint(batch) for batch in batches], epoch(unbroken)
    assert len(wanted[0]) == 5 - handed_over

    torch.manual_seed(77)
    resumed = stateful(workers)
    resumed.load_state_dict(state)
    torch.set_rng_state(rng)
    assert epoch(resumed) == wanted[0]
    assert epoch(resumed) == wanted[1]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_resumed_between_epochs_begins_the_next(workers):
    torch.manual_seed(5)
    unbroken = stateful(workers)
    first = epoch(unbroken)
    state, rng = unbroken.state_dict(), torch.get_rng_state()
    assert torch.equal(unbroken.state_dict() and torch.get_rng_state(), rng), "asking draws nothing"
    wanted = epoch(unbroken)
    assert len(wanted) == 5 and wanted != first
    after = torch.get_rng_state()
    torch.manual_seed(77)
    resumed = stateful(workers)
    resumed.load_state_dict(state)
    assert resumed.state_dict()["seed"] == state["seed"]
    torch.manual_seed(77)
    assert epoch(resumed) == wanted, "without torch's own state"
    torch.set_rng_state(rng)
    resumed.load_state_dict(state)
    assert epoch(resumed) == wanted
    assert torch.equal(torch.get_rng_state(), after), "and the generator stands where the unbroken run's does"


def test_a_run_resumed_before_its_first_epoch():
    torch.manual_seed(5)
    unbroken = stateful()
    state = unbroken.state_dict()
    wanted = epoch(unbroken)
    torch.manual_seed(77)
    resumed = stateful()
    resumed.load_state_dict(state)
    assert epoch(resumed) == wanted


def test_a_run_left_early_resumes_there_or_starts_anew():
    torch.manual_seed(5)
    unbroken = stateful()
    for _batch in unbroken:
        break
    state = unbroken.state_dict()
    assert state["batches"] == 1
    assert len(epoch(unbroken)) == 5, "a new epoch, if nothing is loaded"
    unbroken.load_state_dict(state)
    assert unbroken.state_dict()["batches"] == 1
    assert len(epoch(unbroken)) == 4


def ahead(styled: StyleLoader) -> Iterator[Any]:
    """Run the loop that works one batch ahead on CUDA, on the CPU."""
    seed, first = styled._place.start()
    seeds = loader_module.batch_seeds(seed, first=first)
    return styled._ahead(iter(styled.loader), seeds, torch.device("cpu"))


@pytest.mark.parametrize("workers", [0, 2])
def test_one_batch_ahead_the_state_is_of_the_batch_handed_over(workers, monkeypatch):
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: None)
    monkeypatch.setattr(loader_module, "prepare", lambda batch, augment, device, side: (augment(batch), None))
    monkeypatch.setattr(loader_module, "hand_over", lambda batch, done, device: batch)
    torch.manual_seed(5)
    states, rest = [], []
    unbroken = stateful(workers)
    for batch in ahead(unbroken):
        states.append(unbroken.state_dict())
        rest.append(fingerprint(batch))
    assert [state["batches"] for state in states] == [1, 2, 3, 4, 5]
    ended = unbroken.state_dict()
    for number, state in enumerate(states, 1):
        for run in (ahead, iter):
            resumed = stateful(workers)
            resumed.load_state_dict(state)
            assert [fingerprint(batch) for batch in run(resumed)] == rest[number:]
        if workers:  # starting them takes long
            break
    resumed.load_state_dict(ended)
    assert len(list(ahead(resumed))) == 5


@runtime_checkable
class HasState(Protocol):
    """How Lightning asks whether a loader can resume."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None: ...


def test_only_a_loader_that_can_resume_has_a_state():
    plain = StyleLoader(DataLoader(SamePhoto()), augment())
    assert not isinstance(plain, HasState) and not hasattr(plain, "state_dict")
    assert isinstance(stateful(), HasState)
    with pytest.raises(ConfigError, match=r"a DataLoader cannot resume .* no state_dict.*StatefulDataLoader"):
        plain.state_dict()
    with pytest.raises(ConfigError, match="StatefulDataLoader"):
        plain.load_state_dict({})


def test_another_loaders_state_is_named():
    styled = stateful()
    with pytest.raises(ConfigError, match=r"no state of a StyleLoader: it holds .*'_sampler_iter_yielded'"):
        styled.load_state_dict(styled.loader.state_dict())
    with pytest.raises(ConfigError, match="it holds nothing"):
        styled.load_state_dict({})


def in_processes(task: Callable[[], Any], folder: Path) -> list[Any]:
    """Run a task in two processes that know of each other; give what each returned."""
    folder.mkdir()
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=one_process, args=(task, rank, folder)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def one_process(task: Callable[[], Any], rank: int, folder: Path) -> None:
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    torch.save(task(), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def distributed_epoch() -> list[tuple[bytes, ...]]:
    torch.manual_seed(4)  # alike in all processes
    dataset = SamePhoto()
    return epoch(StyleLoader(DataLoader(dataset, BATCH, sampler=DistributedSampler(dataset)), augment()))


def test_processes_seeded_alike_draw_styles_of_their_own(tmp_path):
    ranks = in_processes(distributed_epoch, tmp_path / "first")
    rows = [row for batches in ranks for batch in batches for row in batch[:-1]]
    assert len(rows) == len(set(rows)) == LENGTH
    assert in_processes(distributed_epoch, tmp_path / "second") == ranks
