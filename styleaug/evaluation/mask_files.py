"""Masks that belong to images, as squares of the same cut."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

from styleaug.errors import ConfigError, ImageError
from styleaug.files import image_files, open_image, stem_of
from styleaug.formats.scan import as_picture
from styleaug.images import alpha_of, to_pixels

__all__ = ["read_masks"]


def read_masks(folder: Path, names: list[str], size: int) -> tuple[Bool[Tensor, "N H W"], Bool[Tensor, " N"]]:
    """Read the mask of each image, cut as the image is: its middle square, brought to `size`.

    A mask has its image's path without the suffix, or where no path is shared its last part.

    Args:
        folder: of masks; what is not 0 is inside.
        names: paths of the images in their folder.
        size: side in pixels.

    Returns:
        The masks, and which of the images have one that has an inside and an outside.

    Raises:
        FileError: no folder, or a mask that cannot be read.
        ConfigError: no image has a mask, or two masks have one name.
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
    """Read how much of each pixel is inside."""
    picture = as_picture(open_image(path))
    if isinstance(picture, Image.Image) and (alpha := alpha_of(picture)) is not None:
        seen = np.array(picture.convert("RGB")) * (alpha > 0)[..., None]  # what is transparent is outside
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
