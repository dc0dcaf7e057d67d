"""Stylise after or inside a DataLoader."""

from collections import deque
from collections.abc import Callable, Iterator, Sized
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import default_collate
from torch.utils.data._utils.collate import collate, default_collate_fn_map
from torchvision import tv_tensors

from styleaug.errors import ConfigError, ImageError
from styleaug.transforms.base import AbstractAugment
from styleaug.transforms.host import batch_seeds, draw_seed, drawing_from
from styleaug.transforms.sample import ImageKey, calling, check_image_key, describe, unwrapped

__all__ = ["StyleCollate", "StyleLoader"]


class NoStateError(ConfigError, AttributeError):
    """A loader cannot say where it stands; an `AttributeError`, as frameworks ask with `hasattr`."""


class StyleLoader:
    """Hand over a loader's batches in order, moved to a device and stylised there.

    On CUDA the next batch is moved and stylised on a stream of its own while the current one trains
    the model; pin the loader's memory so that the copy overlaps too. On a CPU a batch is stylised when
    it is asked for. Errors of the loader's workers arrive where the loop stands; leaving the loop early
    closes the loader's iterator (workers that the loader was told to keep stay).

    Each epoch takes one seed from torch's global generator. What `augment` draws on the CPU follows from
    that seed, the rank in `torch.distributed` and the batch's number alone. So processes with the same seed
    draw different styles, and the model's own draws are those it has without styles.

    Around a loader that can resume, such as torchdata's `StatefulDataLoader`, `state_dict()` tells
    where the epoch stands: after the batch last handed over. A loader that gets it by
    `load_state_dict(state)` hands over the rest of that epoch, with the styles it would have had. Later
    epochs draw their seeds from torch's generator; restore its state, too, if they are to be the same.

    Args:
        loader: any iterable of batches; a batch may be a tensor, tuple, dict or nested.
        augment: called with each batch, for example `StyleAugment`; labels pass through it.
        device: where to; None leaves the batches where they are.
        image: the key, the index, or a path of both, such as `(0, "image")`, of the image in a batch. None
            leaves it to `augment`; `StyleAugment` refuses batches in which several tensors could be it, as
            `default_collate` drops what tells an image from a mask.

    Raises:
        ConfigError: CUDA is asked for and not there, a state is asked of a loader that has none, or one
            is given that is not of a `StyleLoader`; in the loop, if `image` names no image of the batch.

    Example:
        >>> for images, labels in StyleLoader(loader, StyleAugment("art"), device="cuda"):
        ...     train(normalise(images), labels)  # doctest: +SKIP
    """

    state_dict: Callable[[], dict[str, Any]]
    load_state_dict: Callable[[dict[str, Any]], None]

    def __init__(
        self,
        loader: Any,
        augment: Callable[[Any], Any],
        *,
        device: str | torch.device | None = None,
        image: ImageKey = None,
    ):
        self.loader = loader
        self.augment = augment
        self._image = check_image_key(image)
        self.device: torch.device | None = None if device is None else torch.device(device)
        if self.device is not None and self.device.type == "cuda" and not torch.cuda.is_available():
            raise ConfigError("device 'cuda' was asked for, but torch finds no GPU. Use device='cpu'.")
        self._side: torch.cuda.Stream | None = None
        self._place = _Place(loader)
        if hasattr(loader, "state_dict"):
            # On the instance and only now: Lightning saves the state of every loader that has these.
            self.state_dict, self.load_state_dict = self._place.state_dict, self._place.load_state_dict

    def __len__(self) -> int:
        assert isinstance(self.loader, Sized)
        return len(self.loader)

    def __getattr__(self, name: str) -> Any:
        # `sampler`, `dataset`, `batch_size` and the like belong to the loader.
        if name.startswith("__") or name == "loader":
            raise AttributeError(name)
        if name in ("state_dict", "load_state_dict"):
            raise NoStateError(
                f"a {type(self.loader).__name__} cannot resume within an epoch, so this StyleLoader has no "
                f"{name}. Give it a torchdata.stateful_dataloader.StatefulDataLoader, which takes the same "
                "arguments as DataLoader."
            )
        return getattr(self.loader, name)

    def __iter__(self) -> Iterator[Any]:
        seed, first = self._place.start()
        batches, seeds = iter(self.loader), batch_seeds(seed, first=first)
        if self.device is not None and self.device.type == "cuda":
            return self._ahead(batches, seeds, self.device)
        return self._at_once(batches, seeds)

    def _styled(self, batch: Any) -> Any:
        if getattr(self.loader, "collate_fn", None) is default_collate:
            check_batched(batch, self.augment)
        return calling(self.augment, batch, self._image)

    def _at_once(self, batches: Iterator[Any], seeds: Iterator[int]) -> Iterator[Any]:
        try:
            for batch in batches:
                with drawing_from(next(seeds)):
                    styled = self._styled(move(batch, self.device))
                self._place.hand_over()
                yield styled
            self._place.finish()
        finally:
            close(batches)

    def _ahead(self, batches: Iterator[Any], seeds: Iterator[int], device: torch.device) -> Iterator[Any]:
        if self._side is None:  # one for all epochs: torch keeps the memory of each stream apart
            self._side = torch.cuda.Stream(device)
        side = self._side
        ready: deque[tuple[Any, Any, Any]] = deque()
        failure: Exception | None = None
        try:
            while True:
                if failure is None:
                    try:
                        batch = next(batches)
                        state = self._place.keep()
                        with drawing_from(next(seeds)):
                            ready.append((*prepare(batch, self._styled, device, side), state))
                    except Exception as error:
                        failure = error  # the batches before it are handed over first
                if len(ready) > 1 or (failure is not None and ready):
                    batch, done, state = ready.popleft()
                    self._place.hand_over(state)
                    yield hand_over(batch, done, device)
                elif failure is not None:
                    if isinstance(failure, StopIteration):
                        self._place.finish()
                        return
                    raise failure
        finally:
            ready.clear()
            close(batches)


class _Place:
    """Where a loader stands, for runs that are broken off and resumed.

    Args:
        loader: that hands over the batches; its own state is part of this one's.
    """

    def __init__(self, loader: Any):
        self.loader = loader
        self.seed: int | None = None
        """Of the running epoch, or of the next one if a state was loaded."""

        self.batches = 0
        """How many of the epoch were handed over."""

        self.running = False
        self.loaded = False
        self.kept: Any = None
        """The loader's state where it is ahead of the batch last handed over."""

    def start(self) -> tuple[int, int]:
        """Begin an epoch, or go on with one; give its seed and how many batches are behind."""
        if not (self.loaded and self.running):
            drawn = draw_seed()  # also where the seed was loaded: the unbroken run draws here
            self.seed, self.batches = self.seed if self.loaded else drawn, 0
        self.running, self.loaded, self.kept = True, False, None
        assert self.seed is not None
        return self.seed, self.batches

    def keep(self) -> Any:
        """Return the loader's present state, if it has one."""
        return deepcopy(self.loader.state_dict()) if hasattr(self.loader, "state_dict") else None

    def hand_over(self, kept: Any = None) -> None:
        """Count a batch; `kept` is the loader's state after it, if the loader is ahead by now."""
        self.batches += 1
        self.kept = kept

    def finish(self) -> None:
        """End the epoch."""
        self.seed, self.batches, self.running, self.kept = None, 0, False, None

    def state_dict(self) -> dict[str, Any]:
        """Return where the epoch stands: after the batch last handed over.

        Between epochs the seed is the one that the next epoch takes if nothing else is drawn before it.

        Returns:
            A dict of numbers and the loader's own state.
        """
        loader = self.loader.state_dict() if self.kept is None else self.kept
        seed = self.seed
        if seed is None:  # only after the loader was asked, which may draw, too
            before = torch.get_rng_state()
            seed = draw_seed()
            torch.set_rng_state(before)
        return {"seed": seed, "batches": self.batches, "running": self.running, "loader": loader}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Stand where `state` says; the next epoch begins there.

        Args:
            state: from `state_dict`.

        Raises:
            ConfigError: another loader's state.
        """
        if set(state) != {"seed", "batches", "running", "loader"}:
            raise ConfigError(
                f"this is no state of a StyleLoader: it holds {', '.join(map(repr, state)) or 'nothing'}. "
                "Load what StyleLoader.state_dict() gave; a StatefulDataLoader's own state goes to it."
            )
        with drawing_from(0):
            self.loader.load_state_dict(state["loader"])
            # torchdata makes its iterator when it is asked, and draws then; the unbroken run did so earlier.
            self.loader.state_dict()
        self.seed, self.batches, self.running = state["seed"], state["batches"], state["running"]
        self.loaded, self.kept = True, None


def prepare(
    batch: Any, augment: Callable[[Any], Any], device: torch.device, side: torch.cuda.Stream
) -> tuple[Any, Any]:
    """Queue a batch's copy and styling on the side stream."""
    for x in tree_leaves(batch):
        if isinstance(x, Tensor) and x.is_cuda:  # made on the current stream, and maybe not finished there
            side.wait_stream(torch.cuda.current_stream(device))
            x.record_stream(side)
    with torch.cuda.stream(side):
        styled = augment(move(batch, device))
        return styled, side.record_event()


def hand_over(batch: Any, done: Any, device: torch.device) -> Any:
    """Let the current stream wait for the batch, and keep its memory until that stream is done."""
    current = torch.cuda.current_stream(device)
    current.wait_event(done)
    tree_map(lambda x: x.record_stream(current) if isinstance(x, Tensor) and x.is_cuda else None, batch)
    return batch


def move(batch: Any, device: torch.device | None) -> Any:
    """Move all tensors of a batch."""
    if device is None:
        return batch
    return tree_map(lambda x: x.to(device, non_blocking=True) if isinstance(x, Tensor) else x, batch)


def close(batches: Any) -> None:
    """Stop a loader's iterator: a generator by its `close`, DataLoader's workers by theirs."""
    if getattr(batches, "_persistent_workers", False):
        return  # the loader keeps them for the next epoch, as it was told to
    for name in ("close", "_shutdown_workers"):
        stop = getattr(batches, name, None)
        if stop is not None:
            stop()
            return


class StyleCollate:
    """Collate samples to a batch and stylise it, inside the DataLoader's worker.

    One call for the whole batch is cheaper than one for each sample, if all have one size. torch's
    `default_collate` drops the types of `tv_tensors`; here they last until the batch is stylised, so that the
    image is known, and masks for `protect="mask"` are, too. What comes out are plain tensors, as without us.

    Args:
        augment: called with the collated batch.
        collate: makes the batch.
        image: the key, the index, or a path of both, of the image in a batch, where neither types nor
            keys tell it; see `StyleLoader`.

    Raises:
        ConfigError: when called, if `image` names no image of the batch.
        ImageError: when called, if samples are stacked to (B, H, W), without an axis for the channel.

    Example:
        >>> DataLoader(dataset, 64, num_workers=4, collate_fn=StyleCollate(augment))  # doctest: +SKIP
    """

    def __init__(
        self,
        augment: Callable[[Any], Any],
        *,
        collate: Callable[[list[Any]], Any] = default_collate,
        image: ImageKey = None,
    ):
        self.augment = augment
        self.collate = collate
        self._image = check_image_key(image)

    def __call__(self, samples: list[Any]) -> Any:
        """Make a stylised batch of `samples`."""
        if self.collate is not default_collate:
            return calling(self.augment, self.collate(samples), self._image)
        keeping_types = {**dict.fromkeys(KEPT_TYPES, collate_wrapped), **default_collate_fn_map}
        batch = collate(samples, collate_fn_map=keeping_types)
        check_batched(batch, self.augment)
        return unwrapped(calling(self.augment, batch, self._image))


KEPT_TYPES: tuple[type[Tensor], ...] = (tv_tensors.Image, tv_tensors.Video, tv_tensors.Mask)


def collate_wrapped(batch: Any, *, collate_fn_map: Any = None) -> Any:
    """Stack tv_tensors to one of their type."""
    stacked = default_collate_fn_map[Tensor](
        [value.as_subclass(Tensor) for value in batch], collate_fn_map=collate_fn_map
    )
    return tv_tensors.wrap(stacked, like=batch[0])  # pyright: ignore[reportCallIssue]


def check_batched(batch: Any, augment: Any) -> None:
    """Refuse what `default_collate` made of grey images without an axis for their channel.

    Raises:
        ImageError: `augment` would take (B, H, W) for one image of B channels.
    """
    if not isinstance(augment, AbstractAugment):
        return
    values = tree_leaves(batch)
    if any(isinstance(value, (tv_tensors.Image, tv_tensors.Video)) for value in values):
        return
    axes = {value.ndim: value for value in values if augment.is_candidate(value)}
    if axes and max(axes) == 3:
        raise ImageError(
            f"the batch holds {describe(axes[3])}: (B, H, W), without an axis for the channel, which would "
            "be read as one image of B channels. Give samples (1, H, W), with image.unsqueeze(0)."
        )
