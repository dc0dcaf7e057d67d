"""Build a style bank from a folder of images."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from styleaug.bank import Provenance, StyleBank
from styleaug.errors import ConfigError, FileError, ImageError, StyleAugError
from styleaug.files import image_files, open_image
from styleaug.generators.base import AbstractGenerator
from styleaug.images import check_range, to_float, to_pixels
from styleaug.weights import load_generator

__all__ = ["Fit", "fit_style"]

MIN_SIDE = 8
"""An image with fewer pixels on a side has no style to speak of."""


@dataclass(frozen=True)
class Fit:
    """A fitted bank, and the files that could not be read for it."""

    bank: StyleBank
    failed: list[tuple[Path, str]]


def fit_style(
    folder: str | Path,
    *,
    generator: str | Path | AbstractGenerator = "reinhard-rgb",
    max_styles: int = 256,
    patches: int = 1,
    seed: int = 0,
    licence: str = "",
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Fit:
    """Read the styles of the images below `folder` into a bank.

    No labels are needed, and no pixels or names are kept. Of more images than `max_styles` asks
    for, a random part is read, so that the bank follows the folder's own distribution.

    Args:
        folder: searched with all folders below it.
        generator: whose `encode_style` reads the images.
        max_styles: the most codes in the bank.
        patches: 1 reads each image whole; N reads N random crops of half to whole its sides, each a
            style of its own.
        seed: of the choice of images and crops.
        licence: of the images, written into the bank.
        report: called with the number of styles read and the number expected.

    Raises:
        FileError: no folder, no images in it, or not one that can be read.
        ConfigError: a number below 1.
    """
    for name, value in (("max_styles", max_styles), ("patches", patches)):
        if value < 1:
            raise ConfigError(f"{name} must be at least 1, got {value}.")
    network = generator if isinstance(generator, AbstractGenerator) else load_generator(generator)
    files = image_files(Path(folder))
    rng = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(files), generator=rng).tolist()
    expected = min(max_styles, len(files) * patches)
    codes: list[Tensor] = []
    failed: list[tuple[Path, str]] = []
    images = 0
    for index in order:
        if len(codes) >= max_styles:
            break
        try:
            image = open_style(files[index], network.code_size)
        except StyleAugError as error:
            failed.append((files[index], str(error)))
            continue
        images += 1
        for view in views(image, patches, rng):
            if len(codes) < max_styles:
                with torch.inference_mode():
                    codes.append(network.encode_style(shrink(view, network.code_size))[0])
        report(len(codes), expected)
    if not codes:
        reason = failed[0][1]
        raise FileError(f"none of the {len(failed)} images in {folder} can be read; the first: {reason}")
    provenance = Provenance(network.name, network.fingerprint, images, licence=licence)
    return Fit(StyleBank(torch.stack(codes), provenance), sorted(failed))


def open_style(path: Path, code_size: int) -> Float[Tensor, "1 3 H W"]:
    """Read an image as colour, not much larger than its code needs.

    Raises:
        FileError, ImageError: it cannot be read, or has no style; naming the file.
    """
    image = open_image(path, short_side=2 * code_size)  # crops may be half as wide
    try:
        pixels, _ = to_pixels(image)
        check_range(pixels)
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from None
    height, width = pixels.shape[-2:]
    if min(height, width) < MIN_SIDE:
        raise ImageError(f"{path} has {width} x {height} pixels; a style needs {MIN_SIDE} on each side.")
    return shrink(to_float(pixels).expand(-1, 3, -1, -1), 2 * code_size)


def shrink(images: Float[Tensor, "B C H W"], short_side: int) -> Float[Tensor, "B C H2 W2"]:
    """Reduce the short side to `short_side`; smaller images stay as they are."""
    height, width = images.shape[-2:]
    scale = short_side / min(height, width)
    if scale >= 1:
        return images
    size = (max(short_side, round(height * scale)), max(short_side, round(width * scale)))
    return F.interpolate(images, size=size, mode="bilinear", antialias=True).clamp_(0, 1)


def views(image: Float[Tensor, "1 3 H W"], patches: int, rng: torch.Generator) -> Iterator[Tensor]:
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
