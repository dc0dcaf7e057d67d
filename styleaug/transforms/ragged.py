"""Stylise images of many sizes: those of one shape as a batch."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from styleaug.images import Restore
from styleaug.transforms.core import Stylizer
from styleaug.transforms.params import StyleParams, join

__all__ = ["batches", "stylise_batch", "stylise_ragged"]

MOST_PIXELS = 2**24
"""In one batch: more do not make it faster on any device, but take memory."""


def stylise_ragged(
    stylizer: Stylizer,
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
        most = max(1, MOST_PIXELS // max(1, shape.numel() // shape[-3]))
        yield from (rows[start : start + most] for start in range(0, len(rows), most))


def stylise_batch(
    stylizer: Stylizer,
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
