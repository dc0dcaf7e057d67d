"""Measures of content kept, style reached and colour, as pure functions of tensors.

`training.losses` has those that are losses as well: `style_loss`, `content_loss`, `edge_correlation`;
`training.scores` the Fréchet distance.
"""

import math
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from styleaug.images import luminance
from styleaug.training.losses import edge_correlation
from styleaug.transforms.structure import EDGES, edge_kernels

__all__ = [
    "art_fid",
    "clipped",
    "colour_histogram",
    "diversity",
    "edge_correlations",
    "gamut",
    "gram_distance",
    "palette_overlap",
    "sliced_wasserstein",
    "ssim",
]

DIRECTIONS = 32
"""Number of random directions for projecting features; more make the result steadier and slower."""

_BINS = 8
"""Number of bins of the colour histogram, along each of red, green and blue."""

MOST_PLACES = 4096
"""Largest number of positions of a level that are compared; more are thinned on a regular grid."""

LEAST_SHARE = 0.001
"""Least share of the pixels in a bin that counts as a colour of the image."""


def edge_correlations(
    one: Float[Tensor, "B 3 H W"], other: Float[Tensor, "B 3 H W"]
) -> dict[str, Float[Tensor, " B"]]:
    """Compute the correlation of edges of two batches, for Sobel, Prewitt, Scharr and Kirsch.

    Args:
        one: images in [0, 1] with sides of at least 3 pixels.
        other: images of the same size.

    Returns:
        Correlations by the kernel's name; 1 if all edges are equal.
    """
    kernels = {name: None if name == "sobel" else edge_kernels(name) for name in EDGES}
    return {name: edge_correlation(one, other, kernel) for name, kernel in kernels.items()}


def ssim(one: Float[Tensor, "B 3 H W"], other: Float[Tensor, "B 3 H W"]) -> Float[Tensor, " B"]:
    """Compute SSIM on grey in Gaussian windows of 11 pixels (Wang et al. 2004, eq. 13).

    Args:
        one: images in [0, 1] with sides of at least 11 pixels.
        other: images of the same size.

    Returns:
        Values up to 1, for equal images.
    """
    line = torch.exp(-((torch.arange(11, device=one.device) - 5.0).square()) / (2 * 1.5**2)).to(one)
    window = (line[:, None] * line / line.sum() ** 2)[None, None]
    a, b = luminance(one), luminance(other)
    moments = F.conv2d(torch.stack([a, b, a * a, b * b, a * b]).flatten(0, 1), window)
    mean_a, mean_b, square_a, square_b, product = moments.unflatten(0, (5, -1))
    variances = square_a - mean_a**2 + square_b - mean_b**2
    covariance = product - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    similar = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return (similar / ((mean_a**2 + mean_b**2 + c1) * (variances + c2))).mean(dim=(1, 2, 3))


def sliced_wasserstein(levels: list[Tensor], wanted: list[Tensor]) -> Float[Tensor, " B"]:
    """Compare distributions of features along fixed random directions (Heitz et al. 2021, eq. 3).

    The distance of each level is divided by the root mean square of `wanted`, then averaged over the levels.

    Args:
        levels: features `(B, C_l, H_l, W_l)`.
        wanted: features of the same shapes.

    Returns:
        0 if each level has the same features, at any positions.
    """
    distances = []
    for level, target in zip(levels, wanted, strict=True):
        axes = directions(level.shape[1]).to(level)
        step = math.ceil(math.sqrt(level[0, 0].numel() / MOST_PLACES))
        places = (x[..., ::step, ::step].flatten(2) for x in (level, target))
        own, other = ((axes @ x).sort(dim=2).values for x in places)
        size = target.square().mean(dim=(1, 2, 3)).clamp_min(1e-12)
        distances.append(((own - other).square().mean(dim=(1, 2)) / size).sqrt())
    return torch.stack(distances).mean(dim=0)


@cache
def directions(channels: int) -> Float[Tensor, "D C"]:
    """Draw unit vectors, the same in every call."""
    drawn = torch.randn(DIRECTIONS, channels, generator=torch.Generator().manual_seed(0))
    return F.normalize(drawn, dim=1)


def gram_distance(levels: list[Tensor], wanted: list[Tensor]) -> Float[Tensor, " B"]:
    """Compare the Gram matrices of features (Gatys et al. 2016, eq. 3), relative to their size.

    Args:
        levels: features `(B, C_l, H_l, W_l)`.
        wanted: features with the same channels.

    Returns:
        The mean over the levels of `|G - W| / sqrt(|G|^2 + |W|^2)`, from 0 (equal) to 1 (no feature in
        common).
    """
    distances = []
    for level, target in zip(levels, wanted, strict=True):
        own, other = gram(level), gram(target)
        size = (own.square() + other.square()).sum(dim=(1, 2)).clamp_min(1e-30)
        distances.append(((own - other).square().sum(dim=(1, 2)) / size).sqrt())
    return torch.stack(distances).mean(dim=0)


def gram(level: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C C"]:
    """Compute the mean products of channels."""
    rows = level.flatten(2)
    return rows @ rows.mT / rows.shape[2]


def diversity(levels: list[Tensor], distance: Callable[[list[Tensor], list[Tensor]], Tensor]) -> Tensor:
    """Compute the mean distance between all pairs of several images.

    Args:
        levels: features `(M, C_l, H_l, W_l)` of M images, M at least 2.
        distance: function from the levels of P images and of P others to distances `(P,)`.
    """
    count = len(levels[0])
    one, other = torch.triu_indices(count, count, 1, device=levels[0].device)
    return distance([level[one] for level in levels], [level[other] for level in levels]).mean()


def clipped(images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, " B"]:
    """Compute the share of pixels with a channel at 0 or 1, which may have been clamped."""
    return ((images <= 0) | (images >= 1)).any(dim=1).float().mean(dim=(1, 2))


def colour_histogram(images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B K"]:
    """Compute the colour histogram of each image, `_BINS ** 3` bins with sum 1."""
    red, green, blue = (images * _BINS).long().clamp(0, _BINS - 1).flatten(2).unbind(dim=1)
    bins = (red * _BINS + green) * _BINS + blue
    counts = torch.zeros(len(images), _BINS**3, device=images.device)
    return counts.scatter_add_(1, bins, torch.ones_like(bins, dtype=counts.dtype)) / bins.shape[1]


def palette_overlap(one: Float[Tensor, "B 3 H W"], other: Float[Tensor, "B 3 H2 W2"]) -> Float[Tensor, " B"]:
    """Intersect colour histograms (Swain & Ballard 1991, eq. 1): 1 is the same colours, 0 none in common."""
    return torch.minimum(colour_histogram(one), colour_histogram(other)).sum(dim=1)


def gamut(one: Float[Tensor, "B 3 H W"], other: Float[Tensor, "B 3 H2 W2"]) -> Float[Tensor, " B"]:
    """Compute the ratio of the number of colours of `one` and `other`, by colour histograms."""
    own, theirs = ((colour_histogram(x) > LEAST_SHARE).sum(dim=1).clamp_min(1) for x in (one, other))
    return own / theirs


def art_fid(lpips: float, fid: float) -> float:
    """Compute ArtFID, (1 + LPIPS)(1 + FID), for content and style (Wright & Ommer 2022, eq. 5).

    Compare it only with values from the same feature networks.
    """
    return (1 + lpips) * (1 + fid)
