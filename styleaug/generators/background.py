"""White background: the glass of a slide, without tissue and dye.

A generator that matches mean colours would paint it in the style's colours. `on_tissue()` prevents that: it
tells tissue and background apart by optical density (Macenko et al. 2009), keeps the background as it is,
and reads its statistics from the tissue.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from styleaug.generators.base import per_row
from styleaug.generators.layers import EPS
from styleaug.generators.shared import pooled

__all__ = [
    "FAINT",
    "LEAST_TISSUE",
    "LEVEL",
    "WHITE",
    "known_tissue",
    "log_light",
    "on_tissue_only",
    "tissue_stats",
    "tissue_weight",
]

LEVEL = 1 / 255
"""One 8-bit level in [0, 1]. It is added before the logarithm, so that the logarithm of black is finite."""

WHITE = math.log(240 / 255)
"""Natural logarithm of the light where there is no dye: 240 of 255, as in Macenko's code."""

FAINT = 0.15
"""Density (natural logarithm) that a stained pixel has at least in each channel (Macenko's beta)."""

LEAST_TISSUE = 0.005
"""Least share of stained pixels, in [0, 1], for which dyes are read."""

RAMP = 0.05
"""Half width of the soft step around `FAINT`, in density. It avoids a visible border at thin tissue."""


def log_light(images: Float[Tensor, "B 3 H W"], level: float = LEVEL) -> Float[Tensor, "B 3 H W"]:
    """Compute the natural logarithm of `images + level`."""
    return images.add(level).log_()


def tissue_weight(images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 1 H W"]:
    """Compute how much of each pixel is tissue, in [0, 1]; 0 if any channel is nearly white."""
    density = WHITE - log_light(images.detach()).amin(dim=1, keepdim=True)
    return ((density - FAINT + RAMP) / (2 * RAMP)).clamp(0, 1)


def tissue_stats(planes: Float[Tensor, "B C H W"], tissue: Float[Tensor, "B 1 H W"]) -> Float[Tensor, "B C2"]:
    """Compute mean and standard deviation of each channel over the tissue, as `layers.channel_stats`."""
    sums = pooled(weighted_moments, torch.cat([planes, tissue], dim=1))
    mean, square = (sums[:, :-1] / sums[:, -1:].clamp_min(1e-6)).chunk(2, dim=1)
    return torch.cat([mean, ((square - mean.square()).clamp_min(0) + EPS).sqrt()], dim=1)


def weighted_moments(seen: Float[Tensor, "B D H W"]) -> Float[Tensor, "B M"]:
    """Compute the means of each channel, of its square and of 1, weighted by the last channel."""
    planes, weight = seen[:, :-1], seen[:, -1:]
    moments = [planes * weight, planes.square() * weight, weight]
    return torch.cat([part.mean(dim=(2, 3)) for part in moments], dim=1)


def known_tissue(tissue: Float[Tensor, "B 1 H W"]) -> Float[Tensor, "B 1 1 1"]:
    """Return 1 for images with enough tissue to have statistics, and 0 for others."""
    share = pooled(_share_of, tissue)
    return per_row((share[:, 0] >= LEAST_TISSUE).to(tissue.dtype))


def _share_of(tissue: Float[Tensor, "B 1 H W"]) -> Float[Tensor, "B 1"]:
    """Compute the share of tissue in each image, in [0, 1]."""
    return tissue.mean(dim=(2, 3))


def on_tissue_only(
    images: Float[Tensor, "B 3 H W"], styled: Float[Tensor, "B 3 H W"], tissue: Float[Tensor, "B 1 H W"]
) -> Float[Tensor, "B 3 H W"]:
    """Put the background back, bit for bit."""
    return torch.lerp(images, styled.to(images.dtype), tissue.to(images.dtype))
