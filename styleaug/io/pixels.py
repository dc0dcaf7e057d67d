"""The one way from a file to pixels: `read_pixels`, and `open_style` for what a style is read from."""

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped
from PIL import Image
from torch import Tensor

from styleaug.errors import ConfigError, FileError, ImageError
from styleaug.images import PIL_MODES, check_range, filled, resized, to_float, to_pixels, to_unit
from styleaug.io.files import as_sixteen_bit, is_blank, open_image
from styleaug.io.lists import LISTS, list_images
from styleaug.io.paths import check_path
from styleaug.io.profiles import to_rgb
from styleaug.io.scan import Scan, Window, as_picture

__all__ = ["images_in", "opaque", "open_style", "read_pixels", "shrink", "usable", "views"]

MIN_SIDE = 8
"""Least side in pixels of an image that a style can be read from."""
FRAMES = 8
"""Largest number of slices that are read from a volume."""
MARGIN = 0.1
"""Share of a volume's slices that is skipped at each end, because they are mostly air."""


def read_pixels(
    path: Path, *, short_side: int | None = None, blank: bool = True
) -> Shaped[Tensor, "1 C H W"]:
    """Read the pixels of an image file, or of a volume's middle slice.

    Args:
        path: of any file that `open_image` reads. Hidden colours are filled, see `images.filled`.
        short_side: in pixels; the decoder may reduce a larger image to not less than this.
        blank: accept an image that is transparent all over.

    Returns:
        uint8, uint16, or float32 in [0, 1], with 1 or 3 channels.

    Raises:
        FileError, ImageError: the image cannot be read; the message names the file.
    """
    picture = open_image(path, short_side=short_side)
    if not blank and is_blank(picture):
        raise ImageError(f"{path} is transparent all over, so there is nothing to learn; leave it out.")
    try:
        pixels, _ = to_pixels(as_picture(picture))
        check_range(pixels)
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from None
    return pixels


def images_in(source: Any) -> list[Any]:
    """List the images of a source; each is a path or an image in memory, for `open_style`.

    Args:
        source: the path of a file, of a folder or of a list in CSV or TSV; a PIL image; an array `(H, W)`,
            `(H, W, C)` or `(N, H, W, C)`; a tensor `(C, H, W)` or `(N, C, H, W)`; or an iterable of these.

    Raises:
        FileError: a folder has no images.
        ConfigError: the source is none of these.
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
    """Return the error for a value that is not an image."""
    pairs = (
        " Leave out the labels: [image for image, _ in dataset]." if isinstance(value, tuple | list) else ""
    )
    return ConfigError(
        "images are paths, PIL images, arrays (H, W, C) or tensors (C, H, W), or lists of these; got "
        f"{type(value).__name__}.{pairs}"
    )


def open_style(source: Any, code_size: int, window: Window | None = None) -> Float[Tensor, "T 3 H W"]:
    """Read an image, or slices of a volume, as RGB in [0, 1], reduced to about `code_size`.

    Args:
        source: a path or an image in memory, see `images_in`.
        code_size: short side in pixels at which the code is read.
        window: see `open_image`.

    Raises:
        FileError, ImageError: the image cannot be read or is too small; the message names the file.
    """
    path = source if isinstance(source, str | os.PathLike) else None
    name = "the style image" if path is None else path
    side = 2 * code_size  # crops may have half the side
    image = (
        usable(source)
        if path is None
        else open_image(Path(path), short_side=side, window=window, to_style=True)
    )
    if is_blank(image):
        raise ImageError(f"{name} is transparent all over, so it has no style; leave it out.")
    image = opaque(image)[0] if path is None else image
    try:
        pixels = _scan_pixels(image) if isinstance(image, Scan) else checked(image)
    except ImageError as error:
        raise ImageError(f"{name}: {error}") from None
    height, width = pixels.shape[-2:]
    if pixels.shape[1] not in (1, 3):
        raise ImageError(f"{name} has {pixels.shape[1]} channels; a style is read from 1 or 3.")
    if min(height, width) < MIN_SIDE:
        raise ImageError(f"{name} has {width} x {height} pixels; a style needs {MIN_SIDE} on each side.")
    return shrink(pixels, side).expand(-1, 3, -1, -1)


def usable(image: Any) -> Any:
    """Convert a PIL image of any mode to L, LA, RGB, RGBA, I;16 or F; return other images unchanged.

    Raises:
        FileError: the mode cannot be converted, or integers do not fit into 16 bits.
    """
    if not isinstance(image, Image.Image):
        return image
    if image.mode == "I" or (image.mode.startswith("I;16") and image.mode != "I;16"):
        return as_sixteen_bit(image, "the image")
    if image.mode in PIL_MODES and "transparency" not in image.info:
        return image
    mode = "L" if image.mode == "1" else "RGB"
    try:
        if image.has_transparency_data:
            return image.convert("RGBA")
        return image.convert("L") if mode == "L" else to_rgb(image)
    except ValueError as error:
        raise FileError(f"an image of mode {image.mode!r} cannot be converted to {mode}: {error}.") from None


def opaque(image: Any) -> tuple[Any, Callable[[Any], Any]]:
    """Remove the alpha channel of an array or tensor with 2 or 4 channels.

    Hidden pixels are filled with visible colours, see `images.filled`.

    Returns:
        The image without alpha, and a function that puts alpha and hidden pixels back.
    """
    axis = {Tensor: -3, np.ndarray: -1}.get(type(image), 0)
    if not axis or image.ndim < 3 or image.shape[axis] not in (2, 4):
        return image, lambda styled: styled
    values = channels_last(image)
    frames = values.reshape(-1, *values.shape[-3:])
    seen, backs = zip(*(filled(frame[..., :-1], frame[..., -1]) for frame in frames), strict=True)

    def restored(array: np.ndarray) -> Any:
        whole = array.reshape(*values.shape[:-3], *array.shape[1:])
        if axis == -1:
            return whole
        return torch.from_numpy(whole).movedim(-1, -3).to(image.device, image.dtype)

    def put_back(styled: Any) -> Any:
        parts = channels_last(styled).reshape(len(frames), *frames.shape[1:3], -1)
        shown = np.stack([back(part) for back, part in zip(backs, parts, strict=True)])
        return restored(np.concatenate([shown, frames[..., -1:]], axis=-1))

    return restored(np.stack(seen)), put_back


def channels_last(image: Any) -> np.ndarray:
    """Return an array or a tensor of any device as an array `(..., H, W, C)`."""
    if isinstance(image, np.ndarray):
        return image
    there = image.detach().cpu().movedim(-3, -1)
    return (there.float() if there.dtype == torch.bfloat16 else there).numpy()


def checked(image: Any) -> Tensor:
    """Return the pixels of an image, after checking their range; integers stay integers."""
    pixels, _ = to_pixels(image)
    check_range(pixels)
    return to_float(pixels) if pixels.dtype.is_floating_point else pixels


def _scan_pixels(scan: Scan) -> Float[Tensor, "T C H W"]:
    """Return at most `FRAMES` slices from the middle of a scan, mapped from its span to [0, 1]."""
    count = len(scan.frames)
    first = int(MARGIN * count) if scan.volume else 0
    places = np.linspace(first, count - 1 - first, min(FRAMES, count - 2 * first)).round().astype(int)
    frames = torch.from_numpy(np.ascontiguousarray(scan.frames[places], dtype=np.float32))
    frames = frames[:, None] if frames.ndim == 3 else frames.permute(0, 3, 1, 2)
    return to_unit(frames, *scan.span)[0]


def shrink(pixels: Shaped[Tensor, "B C H W"], short_side: int) -> Float[Tensor, "B C H2 W2"]:
    """Return pixels in [0, 1], reduced to `short_side`; smaller images keep their size."""
    height, width = pixels.shape[-2:]
    scale = short_side / min(height, width)
    if scale >= 1:
        return pixels if pixels.dtype == torch.float32 else to_float(pixels)
    return resized(pixels, (max(short_side, round(height * scale)), max(short_side, round(width * scale))))


def views(image: Float[Tensor, "T 3 H W"], patches: int, rng: torch.Generator) -> Iterator[Tensor]:
    """Yield the whole image, or `patches` random crops of it if `patches` > 1."""
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
