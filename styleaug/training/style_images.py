"""Images as styles are read from them: as colour, reduced, whole or in crops; of volumes some slices."""

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from styleaug.errors import ConfigError, FileError, ImageError
from styleaug.files import as_sixteen_bit, open_image
from styleaug.formats.scan import Scan, Window
from styleaug.images import PIL_MODES, check_range, to_float, to_pixels, to_unit
from styleaug.paths import check_path
from styleaug.training.data import LISTS, list_images

__all__ = ["images_in", "opaque", "open_style", "shrink", "usable", "views"]

MIN_SIDE = 8
"""An image with fewer pixels on a side has no style to speak of."""
FRAMES = 8
"""The most slices of a volume that are read."""
MARGIN = 0.1
"""Of a volume's slices at either end, which hold little but air."""


def images_in(source: Any) -> list[Any]:
    """List the images of a source, each a path or an image in memory that `open_style` reads.

    Args:
        source: the path of a file, of a folder or of a list in CSV or TSV; a PIL image; an array `(H, W)`,
            `(H, W, C)` or `(N, H, W, C)`; a tensor `(C, H, W)` or `(N, C, H, W)`; or any number of these,
            in a list or another iterable.

    Raises:
        FileError: a folder without images.
        ConfigError: anything else.
    """
    if isinstance(source, str | os.PathLike):
        path = check_path(source)
        several = path.is_dir() or path.suffix.lower() in LISTS
        return list(list_images(path).paths) if several else [path]
    if isinstance(source, Tensor | np.ndarray):
        return list(source) if source.ndim == 4 else [source]
    if isinstance(source, Image.Image):
        return [source]
    if isinstance(source, Iterable) and not isinstance(source, bytes | bytearray | dict):
        found = []
        for item in source:
            if not isinstance(item, str | os.PathLike | Tensor | np.ndarray | Image.Image):
                raise no_image(item)
            found += images_in(item)
        return found
    raise no_image(source)


def no_image(value: Any) -> ConfigError:
    """Name what was given in place of an image."""
    pairs = (
        " Leave out the labels: [image for image, _ in dataset]." if isinstance(value, tuple | list) else ""
    )
    return ConfigError(
        "images are paths, PIL images, arrays (H, W, C) or tensors (C, H, W), or lists of these; got "
        f"{type(value).__name__}.{pairs}"
    )


def open_style(source: Any, code_size: int, window: Window | None = None) -> Float[Tensor, "T 3 H W"]:
    """Read an image, or slices of a volume, as colour, not much larger than their code needs.

    Args:
        source: a path, or an image in memory: see `images_in`.
        code_size: short side in pixels that its code is read at.
        window: see `open_image`.

    Raises:
        FileError, ImageError: it cannot be read, or has no style; naming the file.
    """
    path = source if isinstance(source, str | os.PathLike) else None
    name = "the style image" if path is None else path
    # Crops may be half as wide.
    image = (
        opaque(usable(source))[0]
        if path is None
        else open_image(Path(path), short_side=2 * code_size, window=window, to_style=True)
    )
    try:
        pixels = scan_pixels(image) if isinstance(image, Scan) else to_float(checked(image))
    except ImageError as error:
        raise ImageError(f"{name}: {error}") from None
    height, width = pixels.shape[-2:]
    if pixels.shape[1] not in (1, 3):
        raise ImageError(f"{name} has {pixels.shape[1]} channels; a style is read from 1 or 3.")
    if min(height, width) < MIN_SIDE:
        raise ImageError(f"{name} has {width} x {height} pixels; a style needs {MIN_SIDE} on each side.")
    return shrink(pixels.expand(-1, 3, -1, -1), 2 * code_size)


def usable(image: Any) -> Any:
    """Turn a PIL image of any mode into L, LA, RGB, RGBA, I;16 or F; return other images as they are.

    Raises:
        FileError: a mode that cannot be converted, or integers that do not fit into 16 bits.
    """
    if not isinstance(image, Image.Image):
        return image
    if image.mode == "I" or (image.mode.startswith("I;16") and image.mode != "I;16"):
        return as_sixteen_bit(image, "the image")
    if image.mode in PIL_MODES and "transparency" not in image.info:
        return image
    mode = "L" if image.mode == "1" else "RGB"
    try:
        return image.convert("RGBA" if image.has_transparency_data else mode)
    except ValueError as error:
        raise FileError(f"an image of mode {image.mode!r} cannot be converted to {mode}: {error}.") from None


def opaque(image: Any) -> tuple[Any, Callable[[Any], Any]]:
    """Take the last of 2 or 4 channels off an array or tensor, and give what puts it back: transparency."""
    axis = {Tensor: -3, np.ndarray: -1}.get(type(image), 0)
    if not axis or image.ndim < 3 or image.shape[axis] not in (2, 4):
        return image, lambda styled: styled
    if axis == -1:
        return image[..., :-1], lambda styled: np.concatenate([styled, image[..., -1:]], axis=-1)
    alpha = image[..., -1:, :, :]
    return image[..., :-1, :, :], lambda styled: torch.cat([styled, alpha], dim=-3)


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
