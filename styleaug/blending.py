"""Blend each frame with the one before it, moved along by optical flow, and stay as sharp as it was.

After Ruder et al. 2016 and Huang et al. 2017, who have the network learn it.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from styleaug.flow import consistency, warp

__all__ = ["blend_frames", "sharpen", "trusted"]

TRUST = 0.25
"""By how much a frame may differ from the one before, moved along, and still be blended with it."""
REACH = 4
"""Detail is compared over squares of so many pixels to each side;"""
UNLIKE, ALIKE = 0.6, 0.95
"""below the one correlation it is not blended, above the other as all else is."""

BANDS, MOST_GAIN = 3, 2.0
"""In how many bands contrast is given back, and how much at most."""


def trusted(now: Tensor, before: Tensor, back: Tensor, forth: Tensor) -> Float[Tensor, "B 1 H W"]:
    """Tell how far each pixel of a frame can be followed to the one before, with soft borders.

    Flow must hold both ways, and what it leads to must look the same: else there are ghosts.
    """
    held = consistency(back, forth, boundaries=False).float()
    unlike = box((warp(before, back) - now).square().mean(dim=1, keepdim=True), 1)
    likely = held * torch.exp(unlike / (-2 * TRUST**2))
    return box(-F.max_pool2d(-likely, 3, 1, 1), 1)


def blend_frames(
    fresh: Float[Tensor, "B C H W"], before: Float[Tensor, "B C H W"], share: Float[Tensor, "B 1 H W"]
) -> Float[Tensor, "B C H W"]:
    """Take a share of the frame before; of its finest detail only where that agrees.

    The mean of unlike strokes is mud: it is softer than both, and its style loss is higher.
    """
    lower = [box(box(image, 1), 1) for image in (fresh, before)]
    detail = fresh - lower[0], before - lower[1]
    product = lambda one, other: box((one * other).mean(dim=1, keepdim=True), REACH)  # noqa: E731
    power = product(detail[0], detail[0]) * product(detail[1], detail[1])
    likeness = product(*detail) / power.clamp_min(1e-10).sqrt()
    alike = ((likeness - UNLIKE) / (ALIKE - UNLIKE)).clamp(0, 1)
    change = torch.addcmul(lower[1] - lower[0], alike, detail[1] - detail[0])
    return torch.addcmul(fresh, change, share)


def sharpen(blended: Float[Tensor, "B C H W"], fresh: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
    """Give each band of `blended` the contrast that it has in `fresh`, where it has less."""
    result = blended
    for radius in (2**level for level in range(BANDS)):
        lower, wanted = (box(box(image, radius), radius) for image in (blended, fresh))
        detail = blended - lower
        power = [x.square().mean(dim=(1, 2, 3), keepdim=True) for x in (fresh - wanted, detail)]
        gain = (power[0] / power[1].clamp_min(1e-9)).sqrt().clamp(1, MOST_GAIN)
        result = torch.addcmul(result, detail, gain - 1)
        blended, fresh = lower, wanted
    return result


def box(images: Float[Tensor, "B C H W"], radius: int) -> Float[Tensor, "B C H W"]:
    """Average over squares of `2 * radius + 1` pixels, edges repeated.

    Shifted sums take a sixth of the time of `avg_pool2d` on a CPU.
    """
    height, width = images.shape[2:]
    wide = F.pad(images, (radius,) * 4, mode="replicate")
    rows = wide[..., :width].clone()
    for at in range(1, 2 * radius + 1):
        rows += wide[..., at : at + width]
    total = rows[:, :, :height].clone()
    for at in range(1, 2 * radius + 1):
        total += rows[:, :, at : at + height]
    return total.mul_(1 / (2 * radius + 1) ** 2)
