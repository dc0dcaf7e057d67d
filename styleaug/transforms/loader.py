"""Stylise after or inside a DataLoader."""

from collections import deque
from collections.abc import Callable, Iterator, Sized
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import default_collate

from styleaug.errors import ConfigError

__all__ = ["StyleCollate", "StyleLoader"]


class StyleLoader:
    """Hand over a loader's batches in order, moved to a device and stylised there.

    On CUDA the next batch is moved and stylised on a stream of its own while the current one trains
    the model; pin the loader's memory so that the copy overlaps too. On a CPU a batch is stylised when
    it is asked for. Errors of the loader's workers arrive where the loop stands; leaving the loop early
    closes the loader's iterator (workers that the loader was told to keep stay).

    Args:
        loader: any iterable of batches; a batch may be a tensor, tuple, dict or nested.
        augment: called with each batch, for example `StyleAugment`; labels pass through it.
        device: where to; None leaves the batches where they are.

    Raises:
        ConfigError: CUDA is asked for and not there.

    Example:
        >>> for images, labels in StyleLoader(loader, StyleAugment("art"), device="cuda"):
        ...     train(normalise(images), labels)  # doctest: +SKIP
    """

    def __init__(
        self,
        loader: Any,
        augment: Callable[[Any], Any],
        *,
        device: str | torch.device | None = None,
    ):
        self.loader = loader
        self.augment = augment
        self.device = None if device is None else torch.device(device)
        if self.device is not None and self.device.type == "cuda" and not torch.cuda.is_available():
            raise ConfigError("device 'cuda' was asked for, but torch finds no GPU. Use device='cpu'.")

    def __len__(self) -> int:
        assert isinstance(self.loader, Sized)
        return len(self.loader)

    def __getattr__(self, name: str) -> Any:
        # `sampler`, `dataset`, `batch_size` and the like belong to the loader.
        if name.startswith("__") or name == "loader":
            raise AttributeError(name)
        return getattr(self.loader, name)

    def __iter__(self) -> Iterator[Any]:
        if self.device is not None and self.device.type == "cuda":
            return self._ahead(self.device)
        return self._at_once()

    def _at_once(self) -> Iterator[Any]:
        batches = iter(self.loader)
        try:
            for batch in batches:
                yield self.augment(move(batch, self.device))
        finally:
            close(batches)

    def _ahead(self, device: torch.device) -> Iterator[Any]:
        side = torch.cuda.Stream(device)
        ready: deque[tuple[Any, Any]] = deque()
        batches = iter(self.loader)
        failure: Exception | None = None
        try:
            while True:
                if failure is None:
                    try:
                        ready.append(prepare(next(batches), self.augment, device, side))
                    except Exception as error:
                        failure = error  # the batches before it are handed over first
                if len(ready) > 1 or (failure is not None and ready):
                    yield hand_over(*ready.popleft(), device)
                elif failure is not None:
                    if isinstance(failure, StopIteration):
                        return
                    raise failure
        finally:
            ready.clear()
            close(batches)


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

    One call for the whole batch is cheaper than one for each sample, if all have one size.

    Args:
        augment: called with the collated batch.
        collate: makes the batch.

    Example:
        >>> DataLoader(dataset, 64, num_workers=4, collate_fn=StyleCollate(augment))  # doctest: +SKIP
    """

    def __init__(
        self, augment: Callable[[Any], Any], *, collate: Callable[[list[Any]], Any] = default_collate
    ):
        self.augment = augment
        self.collate = collate

    def __call__(self, samples: list[Any]) -> Any:
        """Make a stylised batch of `samples`."""
        return self.augment(self.collate(samples))
