"""What adapters share: seeds from a host's randomness, and errors in the host's words."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

import torch

from styleaug.errors import ConfigError, DeviceError, ImageError
from styleaug.transforms.core import Stylizer

__all__ = [
    "advised",
    "batch_seeds",
    "draw_seed",
    "drawing_from",
    "needs_no_other_inputs",
    "rng_from",
    "seed_from",
]


def seed_from(*parts: int | str) -> int:
    """Mix numbers and names to a seed in [0, 2**63): the same for the same parts, on every machine."""
    digest = hashlib.sha256(":".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def rng_from(seed: int) -> torch.Generator:
    """Make a generator on the CPU from a seed."""
    return torch.Generator().manual_seed(seed)


def draw_seed() -> int:
    """Draw a seed from torch's global generator, as DataLoader does once an epoch."""
    return int(torch.empty((), dtype=torch.int64).random_())


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
