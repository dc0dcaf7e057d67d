"""Style the images of a Hugging Face dataset: while they are read, or ahead of time with `map`."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from styleaug.checks import check_seed
from styleaug.errors import ConfigError, DeviceError
from styleaug.images import to_pixels
from styleaug.transforms.augment import MOST_SEPARATE
from styleaug.transforms.base import AbstractAugment
from styleaug.transforms.host import (
    advised,
    callers,
    needs_no_other_inputs,
    rng_from,
    seed_from,
    stylise_ragged,
)
from styleaug.transforms.params import StyleParams

__all__ = ["StyleColumn"]

HOST = "Hugging Face datasets"
_ADVICE = "Normalise after StyleColumn: call it first in the function that set_transform gets."


class StyleColumn:
    """Stylise one column of a batch, a dict of lists, as `datasets` hands it over.

    With `set_transform`, `with_transform` and the `map` of streamed datasets, styles are drawn anew each
    time an image is read, from torch's global generator, which DataLoader seeds in each worker.

    With `dataset.map(..., batched=True)` they are fixed: a row's style depends on `seed` and, with
    `with_indices=True`, its index; else its pixels, so that equal images get one style. It does not
    depend on the size of batches or the number of processes. A second `map` with the same styles,
    network, options and seed is read from the dataset's cache.

    `map(..., with_rank=True)` stylises on the GPUs, if there are some: process r on number r modulo their
    count. Call `multiprocess.set_start_method("spawn")` before, as CUDA does not survive a fork.

    Args:
        augment: a `styleaug.StyleAugment` or `OneOf`, not with `bank="batch"` or `splice="mask"`.
        column: holds the images: a `datasets.Image` feature. None entries pass.
        seed: of `map`.

    Raises:
        ConfigError: an augmentation that needs more than the images themselves; when called, a column that
            is not there or holds no images, or a call other than those above.
        ImageError: when called, images that cannot be stylised, be they picked or not; values outside of
            [0, 1] only where they are.

    Example:
        >>> dataset.set_transform(StyleColumn(StyleAugment("art")))  # doctest: +SKIP
        >>> style = StyleColumn(StyleAugment("art", p=1.0), seed=1)
        >>> dataset.map(style, batched=True, with_indices=True, num_proc=4)  # doctest: +SKIP
    """

    def __init__(self, augment: Any, *, column: str = "image", seed: int = 0):
        stylizer = getattr(augment, "stylizer", augment)
        if not isinstance(stylizer, AbstractAugment):
            raise ConfigError(f"expected a styleaug.StyleAugment, got {type(augment).__name__}.")
        self.stylizer: AbstractAugment = needs_no_other_inputs(stylizer, HOST)
        self.column = column
        self.seed: int = check_seed(seed)

    def __getstate__(self) -> dict[str, Any]:
        # datasets recognises a function by its pickle, and a name or path says nothing of the weights.
        return {**vars(self), "weights": self.stylizer.fingerprint}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update({key: value for key, value in state.items() if key != "weights"})

    def __call__(self, batch: Any, *rest: Any) -> Any:
        """Stylise a batch.

        Args:
            batch: a dict of lists.
            rest: the rows' indices, the process's rank, or both, as `map` was asked to give them.

        Returns:
            The batch with another list in the column's place; to the `map` of a streamed dataset, only the
            column, as it puts all that it gets back even where `remove_columns` names it.
        """
        images = self.read_column(batch)
        indices, device = _read_rest(rest, len(images))
        reading = not rest and isinstance(batch, dict)  # `map` hands over a mapping of its own kind
        with advised(images=_ADVICE), forking_explained():
            for image in images:
                if image is not None:
                    self.stylizer.check(image)
            if reading:
                params = [self.stylizer.draw(self.rows_of(image)) for image in images]
            else:
                params = [self.draw_fixed(*row) for row in zip(images, indices, strict=True)]
            styled = self.stylise(images, params, device)
        column = {self.column: styled if reading else [lossless(image) for image in styled]}
        return column if called_by_a_stream() else batch | column

    def read_column(self, batch: Any) -> Sequence[Any]:
        """Return the column's images.

        Raises:
            ConfigError: no batch, no such column, or no images in it.
        """
        if not isinstance(batch, Mapping):
            raise ConfigError(
                f"expected a batch as a dict of lists, got {type(batch).__name__}. Leave out input_columns; "
                'name the column in StyleColumn(augment, column="...").'
            )
        if self.column not in batch:
            raise ConfigError(
                f"no column {self.column!r} among {', '.join(map(repr, batch))}. Name the one that holds the "
                'images: StyleColumn(augment, column="...").'
            )
        images = batch[self.column]
        if isinstance(images, Image.Image):
            raise ConfigError("expected a batch, got one row. Use dataset.map(..., batched=True).")
        strange = [
            image for image in images if not isinstance(image, Image.Image | np.ndarray | Tensor | None)
        ]
        if strange:
            raise ConfigError(
                f"column {self.column!r} holds {type(strange[0]).__name__}, not images. Decode it first: "
                f'dataset.cast_column("{self.column}", datasets.Image()).'
            )
        return images

    def draw_fixed(self, image: Any, index: int | None) -> StyleParams:
        """Draw one row's parameters, from its index or its pixels."""
        part = hash_of(image) if index is None else index
        return self.stylizer.draw(self.rows_of(image), rng_from(seed_from(self.seed, part)))

    def rows_of(self, image: Any) -> int:
        """Return how many rows to draw for an image; a None entry passes, but draws as before."""
        return 1 if image is None else self.stylizer.rows_of(image)

    def stylise(
        self, images: Sequence[Any], params: Sequence[StyleParams], device: torch.device
    ) -> list[Any]:
        """Stylise the picked images; the others are the same objects."""
        result = list(images)
        picked = [row for row, image in enumerate(images) if image is not None and len(params[row]["rows"])]
        pixels = [self.stylizer.to_pixels(images[row]) for row in picked]
        drawn = [params[row] for row in picked]
        for index, image in stylise_ragged(self.stylizer, pixels, drawn, device=device):
            result[picked[index]] = image
        return result


def _read_rest(rest: Sequence[Any], count: int) -> tuple[Sequence[int | None], torch.device]:
    """Read the rows' indices, None where they are not known, and the device to stylise on.

    Raises:
        ConfigError: anything but what `map` gives a batch of `count` rows.
    """
    match rest:
        case ():
            return [None] * count, torch.device("cpu")
        case (int() | None as rank,):
            return [None] * count, device_of(rank)
        case (list() as indices,) if len(indices) == count:
            return indices, torch.device("cpu")
        case (list() as indices, int() | None as rank) if len(indices) == count:
            return indices, device_of(rank)
    kinds = ", ".join(type(value).__name__ for value in rest)
    raise ConfigError(
        f"expected a batch of {count} rows with their indices, the process's rank or both, got {kinds}. "
        "Use dataset.map(StyleColumn(augment), batched=True, with_indices=True, with_rank=True)."
    )


def device_of(rank: int | None) -> torch.device:
    """Return the GPU of a process, if there are some; `map` without `num_proc` has no ranks."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return torch.device("cuda", (rank or 0) % count) if count else torch.device("cpu")


@contextmanager
def forking_explained() -> Iterator[None]:
    """Explain the error where CUDA is used in a process that was forked from one that uses it.

    Raises:
        DeviceError: instead of torch's error.
    """
    try:
        yield
    except RuntimeError as error:
        if "forked subprocess" not in str(error):
            raise
        raise DeviceError(
            "a process that was forked after CUDA had been used cannot use it. Before dataset.map(..., "
            "with_rank=True, num_proc=...) and under if __name__ == '__main__', call "
            "multiprocess.set_start_method('spawn'): the package multiprocess, which datasets uses."
        ) from None


def called_by_a_stream() -> bool:
    """Return whether the `map` of a streamed dataset called `StyleColumn` itself, not a user's function."""
    names = (frame.f_globals.get("__name__", "") for frame in callers())
    foreign = (name for name in names if name.partition(".")[0] not in ("styleaug", "jaxtyping"))
    return next(foreign, "") == "datasets.iterable_dataset"


def lossless(image: Any) -> Any:
    """Let `map` write an image as PNG: what came as JPEG it would compress once more."""
    file = isinstance(image, Image.Image) and image.format and not getattr(image, "filename", "")
    return image.copy() if file else image


def hash_of(image: Any) -> str:
    """Hash an image's pixels; None has none."""
    if image is None:
        return ""
    pixels, _ = to_pixels(image, most_channels=MOST_SEPARATE)
    rows = pixels.permute(0, 2, 3, 1).contiguous()  # as PIL has them, which saves a copy
    return hashlib.sha256(rows.flatten().view(torch.uint8).numpy().data).hexdigest()
