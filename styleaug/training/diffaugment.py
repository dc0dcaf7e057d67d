"""Differentiable augmentation of what a discriminator sees, so that it cannot learn a few images by heart."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from styleaug.errors import ConfigError

__all__ = ["diff_augment"]

SHIFT = 1 / 8
"""Furthest translation, as a share of each side."""
HOLE = 1 / 2
"""Sides of the cutout, as a share of the image's."""
BLANK = 0.5
"""What lies in the hole and beyond the edge: the paper's 0, on a scale from -1 to 1."""


def diff_augment(
    images: Float[Tensor, "B C H W"], amount: float = 1.0, *, colour: bool = True
) -> Float[Tensor, "B C H W"]:
    """Change colours, move and cut a hole, all differentiably (Zhao et al. 2020, sec. 3.3).

    Real and painted images both go through it before the discriminator. Drawn anew for each row, on
    the CPU from torch's global generator.

    Args:
        images: `(B, C, H, W)` in [0, 1]; C is 3, or 6 for two images stacked, which change alike.
        amount: chance in [0, 1] that a row changes at all; 0 gives `images` back and draws nothing.
        colour: change colours, too. A discriminator does not see them then, so a translator whose
            task they are is free to choose any.

    Shape:
        `(B, C, H, W)`; brighter and more contrasty rows leave [0, 1].

    Raises:
        ConfigError: an amount outside [0, 1], or channels in no groups of 3.
    """
    if not 0 <= amount <= 1:  # written so that NaN fails too
        raise ConfigError(f"amount must lie in [0, 1], got {amount}.")
    if images.shape[1] % 3:
        raise ConfigError(f"channels must come in threes, got {images.shape[1]}.")
    if amount == 0:
        return images
    changed = cut(moved(recoloured(images) if colour else images))
    picked = torch.rand(len(images)) < amount
    return torch.where(rowwise(picked, images), changed, images)


def recoloured(images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
    """Add up to 0.25, scale the saturation by 0 to 2, then the contrast by 0.5 to 1.5."""
    brightness, saturation, contrast = (
        rowwise(draw, images)[..., None] for draw in torch.rand(3, len(images), dtype=images.dtype)
    )
    x = images.unflatten(1, (-1, 3)) + 0.5 * (brightness - 0.5)
    x = torch.lerp(x.mean(dim=2, keepdim=True), x, 2 * saturation)
    x = torch.lerp(x.mean(dim=(2, 3, 4), keepdim=True), x, contrast + 0.5)
    return x.flatten(1, 2)


def moved(images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
    """Move by up to an eighth of each side, in whole pixels."""
    height, width = images.shape[-2:]
    down, right = round(height * SHIFT), round(width * SHIFT)
    padded = F.pad(images, (right, right, down, down), value=BLANK)
    tops = torch.randint(2 * down + 1, (len(images),)).tolist()
    lefts = torch.randint(2 * right + 1, (len(images),)).tolist()
    places = zip(padded, tops, lefts, strict=True)
    return torch.stack([row[:, top : top + height, left : left + width] for row, top, left in places])


def cut(images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
    """Blank a rectangle of half of each side, which may reach over the edge."""
    inside = [side_inside(side, len(images)) for side in images.shape[-2:]]
    hole = inside[0][:, None, :, None] & inside[1][:, None, None, :]
    return images.masked_fill(hole.to(images.device, non_blocking=True), BLANK)


def side_inside(side: int, count: int) -> Tensor:
    """Draw where the hole lies along one side: `(B, side)` booleans."""
    size = round(side * HOLE)
    start = torch.randint(side + 1, (count, 1)) - size // 2
    place = torch.arange(side)
    return (place >= start) & (place < start + size)


def rowwise(values: Tensor, like: Tensor) -> Tensor:
    """Shape numbers drawn on the CPU so that they meet the rows of `like`."""
    return values.to(like.device, non_blocking=True)[:, None, None, None]
