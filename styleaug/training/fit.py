"""Build a style bank from a folder of images."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from styleaug.bank import Provenance, StyleBank
from styleaug.errors import ConfigError, FileError, ImageError, StyleAugError
from styleaug.files import open_image
from styleaug.generators.base import AbstractGenerator
from styleaug.images import check_range, to_float, to_pixels
from styleaug.training.data import list_images
from styleaug.weights import load_generator

__all__ = ["Choice", "Fit", "cover", "fit_style"]

Choice = Literal["random", "diverse"]
CHOICES = get_args(Choice)
MAX_STYLES = 100_000
"""The most codes from which the diverse ones are chosen."""
MAX_NUMBERS = 2**28
"""The most numbers in those codes, 1 GiB: PatchSwap has 19 526 in each."""
MIN_SIDE = 8
"""An image with fewer pixels on a side has no style to speak of."""


@dataclass(frozen=True)
class Fit:
    """A fitted bank, and the files that could not be read for it."""

    bank: StyleBank
    failed: list[tuple[Path, str]]


def fit_style(
    source: str | Path | Sequence[Path],
    *,
    generator: str | Path | AbstractGenerator = "reinhard-rgb",
    max_styles: int = 256,
    patches: int = 1,
    choose: Choice = "random",
    seed: int = 0,
    licence: str = "",
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Fit:
    """Read the styles of images into a bank.

    No labels are needed, and no pixels or names are kept.

    Args:
        source: a folder, searched with all folders below it; a CSV or TSV list with the column
            `path`; or the paths themselves.
        generator: whose `encode_style` reads the images.
        max_styles: the most codes in the bank.
        patches: 1 reads each image whole; N reads N random crops of half to whole its sides, each a
            style of its own.
        choose: which styles are kept of more than `max_styles`. `"random"` reads only as many, and
            the bank follows the folder's own distribution; `"diverse"` reads all and keeps those that
            cover them best (of more than memory takes, a random part).
        seed: of the choice of images and crops.
        licence: of the images, written into the bank.
        report: called with the number of styles read and the number expected.

    Raises:
        FileError: no folder, no images in it, or not one that can be read.
        ConfigError: a number below 1, an unknown choice, or a generator whose styles have no code.
    """
    if choose not in CHOICES:
        raise ConfigError(f"choose must be one of {', '.join(CHOICES)}, got {choose!r}.")
    for name, value in (("max_styles", max_styles), ("patches", patches)):
        if value < 1:
            raise ConfigError(f"{name} must be at least 1, got {value}.")
    network = generator if isinstance(generator, AbstractGenerator) else load_generator(generator)
    if not network.code_length:
        raise ConfigError(f"{network.name} has one style and no code for it; use it without a bank.")
    files = list_images(source).paths if isinstance(source, (str, Path)) else source
    if not files:
        raise FileError("there are no images to fit styles from: the list of paths is empty.")
    rng = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(files), generator=rng).tolist()
    most = min(MAX_STYLES, MAX_NUMBERS // max(1, network.code_length))
    limit = max_styles if choose == "random" else max(max_styles, most)
    expected = min(limit, len(files) * patches)
    codes: list[Tensor] = []
    failed: list[tuple[Path, str]] = []
    images = 0
    for index in order:
        if len(codes) >= limit:
            break
        try:
            image = open_style(files[index], network.code_size)
        except StyleAugError as error:
            failed.append((files[index], str(error)))
            continue
        images += 1
        for view in views(image, patches, rng):
            if len(codes) < limit:
                with torch.inference_mode():
                    codes.append(network.encode_style(shrink(view, network.code_size))[0])
        report(len(codes), expected)
    if not codes:
        reason = failed[0][1]
        raise FileError(f"none of the {len(failed)} images can be read; the first: {reason}")
    provenance = Provenance(network.name, network.fingerprint, images, licence=licence)
    bank = StyleBank(torch.stack(codes), provenance)
    if len(bank) > max_styles:
        bank = bank.select(cover(bank.codes, max_styles, rng))
    return Fit(bank, sorted(failed))


def cover(codes: Float[Tensor, "N S"], count: int, rng: torch.Generator) -> Int[Tensor, " K"]:
    """Choose `count` rows from which the others are not far: the rows nearest to k-means' centres.

    Distances are between codes whose entries are scaled to unit deviation; 20 rounds (Lloyd 1982) from
    a start of rows far from each other.

    Returns:
        `(count,)` different indices in rising order.
    """
    scaled = (codes - codes.mean(dim=0)) / codes.std(dim=0).clamp_min(1e-6)
    start = torch.randint(len(codes), (1,), generator=rng)
    centres = scaled[farthest_first(scaled, start, count)]
    for _ in range(20):
        owner = torch.cdist(scaled, centres).argmin(dim=1)
        size = torch.bincount(owner, minlength=count)[:, None]
        sums = torch.zeros_like(centres).index_add_(0, owner, scaled)
        centres = torch.where(size > 0, sums / size.clamp_min(1), centres)
    chosen = torch.cdist(centres, scaled).argmin(dim=1).unique()
    chosen = farthest_first(scaled, chosen, count)  # two centres may have had the same neighbour
    return chosen.sort().values


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


def farthest_first(codes: Float[Tensor, "N S"], chosen: Int[Tensor, " J"], count: int) -> Int[Tensor, " K"]:
    """Add to `chosen` the row farthest from all of them, until there are `count` (Gonzalez 1985)."""
    distance = torch.cdist(codes, codes[chosen]).amin(dim=1)
    rows = chosen.tolist()
    while len(rows) < count:
        distance[rows] = -1
        rows.append(int(distance.argmax()))
        distance = torch.minimum(distance, torch.cdist(codes, codes[rows[-1:]])[:, 0])
    return torch.tensor(rows)
