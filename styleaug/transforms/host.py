"""What adapters share: seeds from a host's randomness, and errors in the host's words."""

import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from types import FrameType

import torch
from torch.utils.data import get_worker_info

from styleaug.errors import ConfigError, DeviceError, ImageError, name_bytes
from styleaug.transforms.core import Stylizer

__all__ = [
    "Copies",
    "advised",
    "batch_seeds",
    "callers",
    "draw_seed",
    "drawing_from",
    "needs_no_other_inputs",
    "rng_from",
    "seed_from",
]


def seed_from(*parts: int | str) -> int:
    """Mix numbers and names to a seed in [0, 2**63): the same for the same parts, on every machine."""
    digest = hashlib.sha256(name_bytes(":".join(map(str, parts)))).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def rng_from(seed: int) -> torch.Generator:
    """Make a generator on the CPU from a seed."""
    return torch.Generator().manual_seed(seed)


def draw_seed() -> int:
    """Draw a seed from torch's global generator, as DataLoader does once an epoch."""
    return int(torch.empty((), dtype=torch.int64, device="cpu").random_())


@contextmanager
def drawing_from(seed: int) -> Iterator[None]:
    """Let torch's CPU generator start from `seed` inside, and afterwards go on as if nothing were drawn."""
    # Not torch.manual_seed, which seeds every device and takes thirty times as long.
    generator = torch.default_generator
    before = generator.get_state()
    generator.manual_seed(seed)
    try:
        yield
    finally:
        generator.set_state(before)


def batch_seeds(seed: int, *, first: int = 0) -> Iterator[int]:
    """Give a seed for each batch of an epoch, others in each of the processes that train together.

    Args:
        seed: of the epoch.
        first: the number of the batch to begin with.
    """
    distributed = torch.distributed
    rank = distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0
    return (seed_from(seed, rank, number) for number in count(first))


class Forks:
    """Count how often this process was forked."""

    def __init__(self) -> None:
        self.count = 0
        if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
            os.register_at_fork(after_in_parent=self.add)

    def add(self) -> None:
        """Count one more."""
        self.count += 1


FORKS = Forks()


class Copies:
    """Number the copies that other processes get of an object, by fork or by pickle, from when it was made.

    A DataLoader starts the workers of each epoch from the same state. A stream that is seeded in its host's
    way alone must not depend on the loader's seed, which follows torch's; the copy's number still makes
    each worker of each epoch draw something else, and the same in every run of the program.
    """

    def __init__(self) -> None:
        self.start, self.pickled = FORKS.count, 0

    @property
    def number(self) -> int:
        """How many copies were made before this one."""
        return FORKS.count - self.start + self.pickled

    @property
    def parts(self) -> tuple[int, ...]:
        """What to mix into a seed: nothing outside of a DataLoader's worker."""
        worker = get_worker_info()
        return () if worker is None else (worker.id, self.number)

    def __getstate__(self) -> tuple[int]:  # a tuple, as pickle passes over states that are false
        number = self.number
        self.pickled += 1
        return (number,)

    def __setstate__(self, state: tuple[int]) -> None:
        self.start, self.pickled = FORKS.count - state[0], 0


def callers() -> Iterator[FrameType]:
    """Walk the frames that lead here, nearest first."""
    frame = sys._getframe()
    while (frame := frame.f_back) is not None:
        yield frame


@contextmanager
def advised(*, images: str = "", device: str = "") -> Iterator[None]:
    """Add to our errors what to do about them in the host's words.

    Args:
        images: for images after Normalize or in another layout than the host's.
        device: for CUDA in a forked worker.
    """
    try:
        yield
    except ImageError as error:
        raise ImageError(f"{error} {images}".rstrip()) from None
    except DeviceError as error:
        raise DeviceError(f"{error} {device}".rstrip()) from None


def needs_no_other_inputs(stylizer: Stylizer, host: str, *, masks: bool = False) -> Stylizer:
    """Refuse options that need more than one image, where the host hands over one at a time.

    Args:
        stylizer: the core.
        host: its name, for the message.
        masks: it does hand over the image's mask, to protect what is in it.

    Raises:
        ConfigError: styles from the batch, or parts or regions from a mask.
    """
    if stylizer.within_batch:
        raise ConfigError(
            f'bank="batch" takes styles from other images of a batch, and {host} hands over one at a time. '
            "Use styleaug.StyleCollate or styleaug.StyleLoader, or give a bank."
        )
    if stylizer.guard.protect == "mask" and not masks:
        raise ConfigError(
            f'protect="mask" is not available in {host}; give a function that finds the regions in images, '
            "or use styleaug.StyleAugment with tv_tensors."
        )
    if stylizer.splice == "mask":
        raise ConfigError(
            f'splice="mask" is not available in {host}; use "halves" or "fields", or styleaug.StyleAugment '
            "with tv_tensors."
        )
    return stylizer
