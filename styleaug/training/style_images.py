"""Images as styles are read from them: as colour, reduced, whole or in crops; of volumes some slices."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from styleaug.errors import ImageError
from styleaug.files import open_image
from styleaug.formats.scan import Scan, Window
from styleaug.images import check_range, to_float, to_pixels, to_unit

__all__ = ["open_style", "shrink", "views"]

MIN_SIDE = 8
"""An image with fewer pixels on a side has no style to speak of."""
FRAMES = 8
"""The most slices of a volume that are read."""
MARGIN = 0.1
"""Of a volume's slices at either end, which hold little but air."""


def open_style(path: Path, code_size: int, window: Window | None = None) -> Float[Tensor, "T 3 H W"]:
    """Read an image, or slices of a volume, as colour, not much larger than their code needs.

    Raises:
        FileError, ImageError: it cannot be read, or has no style; naming the file.
    """
    image = open_image(path, short_side=2 * code_size, window=window)  # crops may be half as wide
    try:
        pixels = scan_pixels(image) if isinstance(image, Scan) else to_float(checked(image))
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from None
    height, width = pixels.shape[-2:]
    if pixels.shape[1] not in (1, 3):
        raise ImageError(f"{path} has {pixels.shape[1]} channels; a style is read from 1 or 3.")
    if min(height, width) < MIN_SIDE:
        raise ImageError(f"{path} has {width} x {height} pixels; a style needs {MIN_SIDE} on each side.")
    return shrink(pixels.expand(-1, 3, -1, -1), 2 * code_size)


def checked(image: Any) -> Tensor:
    """Give the pixels of an image that has none outside its range."""
    pixels, _ = to_pixels(image)
    check_range(pixels)
    return pixels


def scan_pixels(scan: Scan) -> Float[Tensor, "T C H W"]:
    """Give at most `FRAMES` slices from the middle of a scan, black to white as 0 to 1."""
    count = len(scan.frames)
    first = int(MARGIN * count) if scan.volume else 0
    places = np.linspace(first, count - 1 - first, min(FRAMES, count - 2 * first)).round().astype(int)
    frames = torch.from_numpy(np.ascontiguousarray(scan.frames[places], dtype=np.float32))
    frames = frames[:, None] if frames.ndim == 3 else frames.permute(0, 3, 1, 2)
    return to_unit(frames, *scan.span)[0]


def shrink(images: Float[Tensor, "B C H W"], short_side: int) -> Float[Tensor, "B C H2 W2"]:
    """Reduce the short side to `short_side`; smaller images stay as they are."""
    height, width = images.shape[-2:]
    scale = short_side / min(height, width)
    if scale >= 1:
        return images
    size = (max(short_side, round(height * scale)), max(short_side, round(width * scale)))
    return F.interpolate(images, size=size, mode="bilinear", antialias=True).clamp_(0, 1)


def views(image: Float[Tensor, "T 3 H W"], patches: int, rng: torch.Generator) -> Iterator[Tensor]:
    """Give the whole image, or `patches` random crops of it."""
    if patches == 1:
        yield image
        return
    height, width = image.shape[-2:]
    for _ in range(patches):
        share = 0.5 + 0.5 * torch.rand((), generator=rng).item()
        rows, columns = max(MIN_SIDE, int(height * share)), max(MIN_SIDE, int(width * share))
        top = int(torch.randint(height - rows + 1, (), generator=rng))
        left = int(torch.randint(width - columns + 1, (), generator=rng))
        yield image[..., top : top + rows, left : left + columns]
