"""What adapters share: seeds from a host's randomness, and errors in the host's words."""

import hashlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from inspect import signature
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from styleaug.bank import StyleBank
from styleaug.checks import check_share, nearest
from styleaug.errors import ConfigError, DeviceError, ImageError, name_bytes
from styleaug.images import Restore
from styleaug.transforms.augment import DEFAULTS, StyleAugment
from styleaug.transforms.base import AbstractAugment
from styleaug.transforms.normalize import StyleNormalize
from styleaug.transforms.one_of import OneOf
from styleaug.transforms.options import refuse_old
from styleaug.transforms.params import StyleParams, join

__all__ = [
    "DEFAULTS",
    "Copies",
    "Styles",
    "advised",
    "batch_seeds",
    "batches",
    "callers",
    "draw_seed",
    "drawing_from",
    "from_settings",
    "held",
    "is_unusual",
    "member_drawn",
    "members_of",
    "needs_no_other_inputs",
    "rng_from",
    "seed_from",
    "stylise_batch",
    "stylise_ragged",
    "with_options",
]

Styles = str | Path | StyleBank | AbstractAugment | Mapping[str, Any] | None
"""What adapters take for a bank: what `StyleAugment` takes, a transform in its place, or its settings."""

_Arguments = ParamSpec("_Arguments")
_Made = TypeVar("_Made")


def with_options(make: Callable[_Arguments, _Made]) -> Callable[_Arguments, _Made]:
    """Let a function that ends in `**options: Unpack[...]` show them by name, and refuse all others.

    Type checkers read `Unpack`; `help` and hosts that serialise a transform read the signature, whose options
    have the defaults of `StyleAugment`.
    """
    own = signature(make)
    *named, rest = own.parameters.values()
    (taken,) = rest.annotation.__args__
    usual = DEFAULTS
    shown = own.replace(
        parameters=[*named, *(usual[name] for name in usual if name in taken.__annotations__)]
    )

    @wraps(make)
    def checked(*args: _Arguments.args, **options: _Arguments.kwargs) -> _Made:
        refuse_old(options)
        if strange := [name for name in options if name not in shown.parameters]:
            hint = nearest(strange[0], list(shown.parameters))
            raise TypeError(f"{make.__qualname__}() got an unexpected keyword argument {strange[0]!r}.{hint}")
        return make(*args, **options)

    vars(checked)["__signature__"] = shown
    return checked


def from_settings(settings: Mapping[str, Any]) -> AbstractAugment:
    """Make the transform whose `settings` these are, as JSON or YAML may have kept them.

    Raises:
        ConfigError, BankError, WeightsError: as the transform itself.
    """
    if "normalize" in settings:
        return StyleNormalize(**settings["normalize"])
    if "transforms" not in settings:
        return StyleAugment(**settings)
    return OneOf([from_settings(member) for member in settings["transforms"]], settings.get("weights"))


def members_of(augment: AbstractAugment) -> list[StyleAugment]:
    """List the `StyleAugment`s that a transform is made of; itself, if it is one."""
    if isinstance(augment, OneOf):
        return [each for member in augment.transforms for each in members_of(member)]
    if isinstance(augment, StyleNormalize):
        return [augment.augment]
    assert isinstance(augment, StyleAugment)
    return [augment]


def member_drawn(augment: AbstractAugment, params: StyleParams) -> tuple[StyleAugment, StyleParams]:
    """Return the `StyleAugment` that was drawn for one image, with its own parameters."""
    while isinstance(augment, OneOf):
        ((augment, params),) = augment.split(params)
    if isinstance(augment, StyleNormalize):
        augment = augment.augment
    assert isinstance(augment, StyleAugment)
    return augment, params


def is_unusual(name: str, value: Any) -> bool:
    """Return whether an option of `StyleAugment` differs from its default, or from a span of it."""
    usual = DEFAULTS[name].default
    return value not in (usual, (usual, usual))


def held(
    bank: Styles, options: Mapping[str, Any], *, p: float | None, usual: float
) -> tuple[AbstractAugment, float]:
    """Return the transform that an adapter holds, which styles every row, and the p of the adapter's gate.

    Args:
        bank: what `StyleAugment` takes, a transform in its place, or the settings of one.
        options: of `StyleAugment`.
        p: of the adapter; None is the transform's own, or `usual`.
        usual: of the adapter.

    Raises:
        ConfigError: options beside a transform, which has its own.
    """
    augment: Any = bank
    if isinstance(bank, Mapping) and bank.keys() & {"bank", "transforms"}:
        augment = from_settings(bank)
    if not isinstance(augment, AbstractAugment):
        return StyleAugment(augment, p=1.0, **options), usual if p is None else check_share("p", p)
    given = [name for name, value in options.items() if is_unusual(name, value)]
    if given:
        raise ConfigError(
            f"{type(augment).__name__} has its own options; give {', '.join(given)} to it, not beside it."
        )
    return augment.with_p(1.0), augment.p if p is None else check_share("p", p)


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
    """Yield a seed for each batch of an epoch, others in each of the processes that train together.

    Args:
        seed: of the epoch.
        first: the number of the batch to begin with.
    """
    distributed = torch.distributed
    rank = distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0
    return (seed_from(seed, rank, number) for number in count(first))


class Forks:
    """Count how often this process was forked."""

    count: int

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

    start: int
    pickled: int

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


def needs_no_other_inputs(
    stylizer: AbstractAugment, host: str, *, masks: bool = False, batch: bool = False
) -> AbstractAugment:
    """Refuse options that need more than one image, where the host hands over one at a time.

    Args:
        stylizer: the core.
        host: its name, for the message.
        masks: it does hand over the image's mask, to protect what is in it.
        batch: it does hand over whole batches.

    Raises:
        ConfigError: styles from the batch, or parts or regions from a mask.
    """
    if stylizer.within_batch and not batch:
        raise ConfigError(
            f'bank="batch" takes styles from other images of a batch, and {host} hands over one at a time. '
            "Use styleaug.StyleCollate or styleaug.StyleLoader, or give a bank."
        )
    if stylizer.protects_by_mask and not masks:
        raise ConfigError(
            f'protect="mask" is not available in {host}; give a function that finds the regions in images, '
            "or use styleaug.StyleAugment with tv_tensors."
        )
    if stylizer.splices_by_mask:
        raise ConfigError(
            f'splice="mask" is not available in {host}; use "halves" or "fields", or styleaug.StyleAugment '
            "with tv_tensors."
        )
    return stylizer


MOST_TOGETHER = 2**24
"""In one batch: more do not make it faster on any device, but take memory."""


def stylise_ragged(
    stylizer: AbstractAugment,
    images: Sequence[tuple[Tensor, Restore]],
    params: Sequence[StyleParams],
    *,
    device: str | torch.device = "cpu",
) -> Iterator[tuple[int, Any]]:
    """Stylise each image by parameters of its own, and yield it with its index as soon as it is done.

    What is batched with what depends on the shapes, their order, and nothing else.

    Args:
        stylizer: one that does not take styles from the batch.
        images: from `to_pixels`, one image each; or several `(N, C, H, W)` that share their parameters, or
            a volume `(1, T, C, H, W)`.
        params: drawn for each image by itself.
        device: where to stylise; the images come from the CPU and go back there.
    """
    for rows in batches(images):
        yield from stylise_batch(stylizer, images, params, rows, device=device)


def batches(images: Sequence[tuple[Tensor, Restore]]) -> Iterator[list[int]]:
    """Yield the indices of images that are stylised together: of one shape and dtype, in their order."""
    alike: dict[Any, list[int]] = {}
    for index, (pixels, _) in enumerate(images):
        alike.setdefault((pixels.shape, pixels.dtype), []).append(index)
    for (shape, _), rows in alike.items():
        most = max(1, MOST_TOGETHER // max(1, shape.numel() // shape[-3]))
        yield from (rows[start : start + most] for start in range(0, len(rows), most))


def stylise_batch(
    stylizer: AbstractAugment,
    images: Sequence[tuple[Tensor, Restore]],
    params: Sequence[StyleParams],
    rows: list[int],
    *,
    device: str | torch.device = "cpu",
) -> Iterator[tuple[int, Any]]:
    """Stylise the images with these indices, which have one shape; see `stylise_ragged`."""
    shape = images[rows[0]][0].shape
    if shape[0] == 0:  # clips without frames
        yield from ((index, images[index][1](images[index][0])) for index in rows)
        return
    batch = torch.cat([images[index][0] for index in rows]).to(device)
    each = [params[index] for index in rows for _ in range(shape[0])]
    drawn = join(each, each=stylizer.rows_each(shape[-3]))
    styled = stylizer.apply(batch, drawn).cpu()
    for pixels, index in zip(styled.split(shape[0]), rows, strict=True):
        yield index, images[index][1](pixels)
