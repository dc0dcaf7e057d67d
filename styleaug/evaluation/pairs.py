"""Read pairs of content and style from folders, as squares of one size."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image
from torch import Tensor

from styleaug.errors import ConfigError, FileError, ImageError, reason_of
from styleaug.images import alpha_of, from_float, to_pixels
from styleaug.io.files import image_files, list_image_files, open_image, stem_of
from styleaug.io.pixels import open_style
from styleaug.io.scan import as_picture

__all__ = ["Pairs", "Squares", "match", "read_mask_files", "read_pairs", "read_squares"]


@dataclass(frozen=True)
class Squares:
    """Square images of one size, and the files that could not be read."""

    images: UInt8[Tensor, "N 3 E E"]
    names: list[str]
    """Path of each image in its folder."""
    failed: list[tuple[Path, str]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class Pairs:
    """Pairs of content and style: pair k is `contents[content_of[k]]` in `styles[style_of[k]]`.

    Without `styles`, the codes come from a bank, one for each pair.
    """

    contents: Squares
    styles: Squares | None
    content_of: Int[Tensor, " P"]
    style_of: Int[Tensor, " P"]

    def __len__(self) -> int:
        return len(self.content_of)

    @property
    def failed(self) -> list[tuple[Path, str]]:
        """Return the files that could not be read, with the reasons."""
        return self.contents.failed + (self.styles.failed if self.styles else [])

    def names(self, pair: int) -> tuple[str, str]:
        """Return the names of content and style of a pair."""
        style = int(self.style_of[pair])
        named = self.styles.names[style] if self.styles else f"code {style}"
        return self.contents.names[int(self.content_of[pair])], named


def read_pairs(
    content: Path,
    style: Path | None,
    *,
    count: int,
    size: int,
    seed: int = 0,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Pairs:
    """Read images of two folders and pair them at random, without repeating a pair.

    Args:
        content: folder that is searched with its subfolders.
        style: folder that is searched with its subfolders; None reads contents only.
        count: largest number of pairs; there are fewer if there are too few images.
        size: side in pixels; images are resized to it by their short side and cropped in the middle.
        seed: seed for choosing and pairing.
        report: called with the number of images read and the expected number.

    Raises:
        FileError: a folder is missing or has no image that can be read.
    """
    rng = torch.Generator().manual_seed(seed)
    sides = 1 if style is None else 2
    contents = read_squares(content, count, size, rng, lambda done: report(done, sides * count))
    if style is None:
        order = torch.arange(count)
        return Pairs(contents, None, order % len(contents), order)
    styles = read_squares(style, count, size, rng, lambda done: report(count + done, sides * count))
    return Pairs(contents, styles, *match(len(contents), len(styles), count))


def read_squares(
    folder: Path,
    count: int,
    size: int,
    rng: torch.Generator,
    report: Callable[[int], None] = lambda done: None,
) -> Squares:
    """Read at most `count` images of a folder, drawn at random.

    Args:
        folder: folder that is searched with its subfolders.
        count: largest number of images.
        size: side of the squares in pixels.
        rng: random generator for the choice.
        report: called with the number of images read.

    Raises:
        FileError: the folder does not exist or has no image that can be read.
    """
    listing = list_image_files(Path(folder))
    files, squares, names, failed = listing.files, [], [], []
    for place in torch.randperm(len(files), generator=rng).tolist():
        if len(squares) == count:
            break
        try:
            squares.append(from_float(read_square(files[place], size), torch.uint8))
            names.append(files[place].relative_to(folder).as_posix())
        except Exception as error:  # one bad image must not end a run
            failed.append((files[place], reason_of(files[place], error)))
        report(len(squares))
    if not squares:
        raise FileError(
            f"none of the {len(failed)} images in {folder} can be read; the first: {failed[0][1]}"
        )
    return Squares(torch.stack(squares), names, failed + listing.skipped)


def read_square(path: Path, size: int) -> Float[Tensor, "3 E E"]:
    """Read the middle square of an image, or of a volume's middle slice, in [0, 1]."""
    frames = open_style(path, math.ceil(size / 2))  # it reads twice this number of pixels
    image = frames[len(frames) // 2, None]
    height, width = image.shape[-2:]
    scale = size / min(height, width)
    if scale != 1:
        sides = (max(size, round(height * scale)), max(size, round(width * scale)))
        image = F.interpolate(image, size=sides, mode="bilinear", antialias=True)
        height, width = sides
    top, left = (height - size) // 2, (width - size) // 2
    return image[0, :, top : top + size, left : left + size].clamp(0, 1)


def match(contents: int, styles: int, count: int) -> tuple[Int[Tensor, " P"], Int[Tensor, " P"]]:
    """Pair images evenly: each is used once before any is used twice, and no pair is repeated.

    Returns:
        Indices of contents and of styles, `count` or as many as there are different pairs.
    """
    order = torch.arange(min(count, contents * styles))
    # After this number the pairs would repeat, so from there on the styles are shifted by one.
    turn = math.lcm(contents, styles)
    return order % contents, (order + order // turn) % styles


def read_mask_files(
    folder: Path, names: list[str], size: int
) -> tuple[Bool[Tensor, "N H W"], Bool[Tensor, " N"]]:
    """Read the mask of each image: its middle square, resized to `size`.

    A mask has its image's path without the suffix. If no paths match, only the file names are compared.

    Args:
        folder: folder of masks; inside is not 0.
        names: paths of the images in their folder.
        size: side in pixels.

    Returns:
        The masks, and which images have a mask with both an inside and an outside.

    Raises:
        FileError: the folder does not exist, or a mask cannot be read.
        ConfigError: no image has a mask, or two masks have the same name.
    """
    files = image_files(folder)
    by_path = {str(path.relative_to(folder).with_name(stem_of(path))): path for path in files}
    keys = [str(Path(name).with_name(stem_of(Path(name)))) for name in names]
    if not set(keys) & set(by_path):
        keys, short = (
            [Path(key).name for key in keys],
            {Path(key).name: path for key, path in by_path.items()},
        )
        if len(short) < len(by_path):
            raise ConfigError(
                f"masks in {folder} share names, so it is unclear whose they are; give them paths."
            )
        by_path = short
    if not set(keys) & set(by_path):
        raise ConfigError(f"no mask in {folder} has the name of an image, such as {keys[0]!r}.")
    masks = torch.zeros(len(keys), size, size, dtype=torch.bool)
    for row, key in enumerate(keys):
        if key in by_path:
            masks[row] = read_mask(by_path[key], size) > 0.5
    inside = masks.flatten(1).float().mean(dim=1)
    return masks, (inside > 0) & (inside < 1)


def read_mask(path: Path, size: int) -> Float[Tensor, "S S"]:
    """Read a mask as the share of each pixel that is inside, in [0, 1]."""
    picture = as_picture(open_image(path))
    if isinstance(picture, Image.Image) and (alpha := alpha_of(picture)) is not None:
        seen = np.array(picture.convert("RGB")) * (alpha > 0)[..., None]  # transparent pixels are outside
        picture = seen.astype(np.uint8)
    try:
        pixels, _ = to_pixels(picture)
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from None
    inside = (pixels[:1] != 0).any(dim=1, keepdim=True).float()
    height, width = inside.shape[-2:]
    scale = size / min(height, width)
    sides = (max(size, round(height * scale)), max(size, round(width * scale)))
    inside = F.interpolate(inside, size=sides, mode="bilinear", antialias=True)
    top, left = (sides[0] - size) // 2, (sides[1] - size) // 2
    return inside[0, 0, top : top + size, left : left + size]
