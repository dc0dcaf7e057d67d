"""Optical densities: how much light the dyes of a slide absorb, and which dyes they are.

A dye absorbs light in proportion to its amount (Beer and Lambert), so dyes add up in the logarithm of
an image. All functions take batched tensors and compute all rows at once. Views that share statistics
have the dyes of the whole image: see `generators.shared`.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from styleaug.generators.background import FAINT, LEAST_TISSUE, LEVEL, WHITE, log_light
from styleaug.generators.base import per_row
from styleaug.generators.color import color_grid, thin
from styleaug.generators.shared import places, pooled, sharing

__all__ = ["MOST", "USUAL", "WHITE", "Stains", "read_stains", "repaint", "unit", "unmixing"]

_PIXELS = 4096
"""Approximate number of pixels from which dyes are read, on a regular grid."""
_TOP = _PIXELS // 100 + 2
"""Number of the highest values that are read for the 99th percentile."""
LINE = 1e-4
"""Densities lie on a line if the share of the variance across their main direction is below this."""

LEAST_ANGLE = math.radians(2)
"""Least angle between two dyes, in radians. Closer dyes cannot be separated from noise."""
SPARSITY = 0.1
"""Weight of Vahadane's penalty on amounts (lambda)."""
_ROUNDS = 16
"""Number of updates of Vahadane's dictionary."""
MOST = (0.05, 10.0)
"""Least and greatest 99th percentile of an amount, in natural logarithms of light."""
FAST_NUMPY = torch.backends.cpu.get_cpu_capability() == "AVX512"
"""Whether NumPy computes logarithms with AVX-512, in a third of torch's time."""
_BLOCK = 4 * 224 * 224
"""Number of pixels that are repainted at a time on a CPU, so that they stay in the cache."""
FAR = 1e6
"""A number larger than any angle or amount."""
_BINS = 2048
"""Number of bins of the histograms of views that share statistics."""

USUAL = (0.5626, 0.7201, 0.4062, 0.2159, 0.8012, 0.5581, 1.9705, 1.0308)
"""Haematoxylin and eosin in red, green and blue, then their 99th percentiles, from Macenko's code."""


class Stains(NamedTuple):
    """The two dyes of each image."""

    axes: Float[Tensor, "B 3 2"]
    """Density of each dye in red, green and blue, with length 1. First is the bluer dye, which absorbs more
    red than blue: haematoxylin, or the azure of blood films."""

    most: Float[Tensor, "B 2"]
    """99th percentile of the amount of each dye."""

    known: Bool[Tensor, " B"]
    """False if there is almost no tissue, or only one dye; then the other values of the row mean nothing."""


def unit(vectors: Tensor) -> Tensor:
    """Divide vectors along axis 1 by their length."""
    return vectors / vectors.square().sum(dim=1, keepdim=True).sqrt().clamp(min=1e-12)


def repaint(
    images: Float[Tensor, "B 3 H W"],
    matrix: Float[Tensor, "B 3 3"],
    shift: Float[Tensor, "B 3"],
    strength: Float[Tensor, " B"],
    *,
    level: float = LEVEL,
) -> Float[Tensor, "B 3 H W"]:
    """Compute `exp(matrix @ log(images + level) + shift) - level`, clamped to [0, 1].

    Args:
        images: `(B, 3, H, W)` in [0, 1].
        matrix: `(B, 3, 3)`.
        shift: `(B, 3)`.
        strength: `(B,)` in [0, 1], the share of the result in a mixture with the image.
        level: number added before the logarithm.
    """
    scale, strength = shift.exp()[:, :, None, None], per_row(strength)
    if images.device.type == "cpu" and not torch.compiler.is_compiling() and not torch.is_grad_enabled():
        return repaint_in_blocks(images, matrix, scale, strength, level)
    red, green, blue = (log_light(images, level) / math.log(2)).unbind(1)
    # Planes times numbers: full precision under autocast and TF32, and one loop if compiled.
    weights = [row.unbind(1) for row in matrix[..., None, None].unbind(1)]
    sums = [red * r + green * g + blue * b for r, g, b in weights]
    light = torch.stack(sums, dim=1).exp2()  # exp2 is vectorised; exp on some processors is not
    return torch.lerp(images, (light * scale - level).clamp(0, 1), strength)


def repaint_in_blocks(
    images: Tensor, matrix: Tensor, scale: Tensor, strength: Tensor, level: float
) -> Float[Tensor, "B 3 H W"]:
    """Compute `repaint` for a few images at a time, in memory that stays in the cache."""
    count, channels, height, width = images.shape
    rows = max(1, min(count, _BLOCK // max(1, height * width)))
    buffers = images.new_empty(2, rows, channels, height, width)
    painted = torch.empty_like(images)
    for start in range(0, count, rows):
        part = slice(start, min(start + rows, count))
        seen = images[part]
        logs, light = buffers[:, : len(seen)].unbind(0)
        log2_light_(torch.add(seen, level, out=logs))
        torch.bmm(matrix[part], logs.flatten(2), out=light.flatten(2))
        light.exp2_().mul_(scale[part]).sub_(level).clamp_(0, 1)
        torch.lerp(seen, light, strength[part], out=painted[part])
    return painted


def log2_light_(light: Tensor) -> None:
    """Compute the binary logarithm of numbers up to about 1, in place."""
    if FAST_NUMPY:
        array = light.numpy()
        np.log2(array, out=array)
    else:
        light.sub_(1).log1p_().mul_(1 / math.log(2))


def unmixing(axes: Float[Tensor, "B 3 2"]) -> Float[Tensor, "B 2 3"]:
    """Compute the matrix from densities to the amounts of two dyes, by least squares."""
    one, other = axes.unbind(2)
    overlap = (one * other).sum(1, keepdim=True)
    rows = torch.stack([one - overlap * other, other - overlap * one], dim=1)
    return rows / (1 - overlap.square()).clamp(min=1e-6)[:, :, None]


class _Pixels(NamedTuple):
    """The pixels from which dyes are read."""

    density: Float[Tensor, "B 3 H W"]
    counted: Float[Tensor, " P"] | None
    """1 for pixels that count, else 0, in a graph with open size; None if all pixels count."""


def pixels_of(images: Float[Tensor, "B 3 H W"]) -> _Pixels:
    """Select the pixels from which dyes are read, without gradients."""
    images, counted = images.detach(), None
    if any(isinstance(size, torch.SymInt) for size in images.shape[2:]):
        counted = color_grid(images, _PIXELS).to(images.dtype)  # all are read, some count
    elif not (sharing() and places()):  # tiles are thinned together, where `pooled` reads them
        images = thin(images, _PIXELS)
    return _Pixels(WHITE - log_light(images), counted)


def mean_over(pixels: _Pixels, read: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Compute a mean over the pixels, including those of all views that share statistics.

    Args:
        pixels: pixels of each image.
        read: function from densities `(B, 3, P)` and `(B, P)`, 1 for tissue, to sums over P.
    """
    return pooled(lambda seen: mean_of(pixels, read, seen), pixels.density, most=_PIXELS)


def mean_of(
    pixels: _Pixels, read: Callable[[Tensor, Tensor], Tensor], seen: Float[Tensor, "B 3 H W"]
) -> Tensor:
    """Compute a mean over the pixels of some views."""
    density, tissue = seen.flatten(2), tissue_in(seen)
    if pixels.counted is None:
        return read(density, tissue) / density.shape[2]
    return read(density, tissue * pixels.counted) / pixels.counted.sum()


def high_over(
    pixels: _Pixels, values: Callable[[Tensor], Tensor], bounds: tuple[float, float], *, stained: bool
) -> Float[Tensor, "B K"]:
    """Compute the 99th percentile of `values`, interpolated linearly between ranks as in NumPy.

    Args:
        pixels: pixels of each image.
        values: function from densities `(B, 3, P)` to values `(B, K, P)`.
        bounds: range of the histogram that is used where views share statistics.
        stained: whether only tissue counts.
    """
    weigh = lambda seen: weights_of(pixels, seen, stained=stained)  # noqa: E731
    if not sharing():
        return highest(values(pixels.density.flatten(2)), weigh(pixels.density))
    shares = pooled(
        lambda seen: histogram(values(seen.flatten(2)), weigh(seen), bounds), pixels.density, most=_PIXELS
    )
    return level_of(shares, bounds)


def tissue_in(seen: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B P"]:
    """Return 1 for pixels that absorb light in every channel, and 0 for others."""
    return (seen.flatten(2).amin(dim=1) >= FAINT).to(seen.dtype)


def weights_of(
    pixels: _Pixels, seen: Float[Tensor, "B 3 H W"], *, stained: bool
) -> Float[Tensor, "B P"] | None:
    """Return 1 for pixels that count, and 0 for others; None if all pixels count."""
    if stained:
        return tissue_in(seen) if pixels.counted is None else tissue_in(seen) * pixels.counted
    return None if pixels.counted is None else pixels.counted.expand(seen.shape[0], -1)


def for_rows(values: Tensor, seen: Tensor) -> Tensor:
    """Return the values of the rows in `seen`: all rows, or one row of an image's tiles."""
    return values if values.shape[0] == seen.shape[0] else values[:1]


def highest(values: Float[Tensor, "B K P"], weights: Float[Tensor, "B P"] | None) -> Float[Tensor, "B K"]:
    """Compute the 99th percentile of the values with weight 1, from the highest few values."""
    size = values.shape[2]
    few = _TOP if isinstance(size, torch.SymInt) else size // 100 + 2
    if isinstance(size, torch.SymInt) or size < few:
        values = F.pad(values, (0, few), value=-FAR)
        weights = None if weights is None else F.pad(weights, (0, few))
    if weights is None:
        count = torch.ones_like(values[:, 0, 0]) * size
    else:
        count = weights.sum(dim=1)
        values = values + ((weights - 1) * FAR)[:, None]  # a mask takes ten times as long
    if values.device.type == "cpu" and not torch.compiler.is_compiling():
        # A quarter of the time: values that are not among the highest few are not sorted.
        values = torch.from_numpy(np.partition(values.numpy(), -few, axis=2)[:, :, -few:])
    top = values.topk(few, dim=2).values
    place = (0.01 * (count - 1).clamp(min=0))[:, None, None].expand(-1, values.shape[1], 1)
    low, high = (top.gather(2, rank.long().clamp(max=few - 1)) for rank in (place.floor(), place.ceil()))
    return torch.lerp(low, high, place - place.floor())[:, :, 0]


def histogram(
    values: Float[Tensor, "B K P"], weights: Float[Tensor, "B P"] | None, bounds: tuple[float, float]
) -> Float[Tensor, "B K N"]:
    """Compute the weight in each of `_BINS` bins, as a share of all pixels."""
    low, high = bounds
    bins = (values - low) * (_BINS / (high - low))
    bins = bins.nan_to_num(0).clamp(0, _BINS - 1).long()  # NaN without tissue or colour: there is no plane
    weights = torch.ones_like(values) if weights is None else weights[:, None].expand_as(values)
    return values.new_zeros(*values.shape[:2], _BINS).scatter_add_(2, bins, weights) / values.shape[2]


def level_of(shares: Float[Tensor, "B K N"], bounds: tuple[float, float]) -> Float[Tensor, "B K"]:
    """Compute the 99th percentile from a histogram, interpolated linearly in its bin."""
    below = shares.cumsum(dim=2)
    wanted = 0.99 * below[:, :, -1:]
    bins = (below < wanted).sum(dim=2, keepdim=True).clamp(max=_BINS - 1)
    inside = shares.gather(2, bins)
    part = 1 - (below.gather(2, bins) - wanted) / inside.clamp(min=1e-12)
    return (bounds[0] + (bins + part.clamp(0, 1)) * ((bounds[1] - bounds[0]) / _BINS))[:, :, 0]


def read_stains(images: Float[Tensor, "B 3 H W"], *, sparse: bool = False) -> Stains:
    """Find the two dyes of each image.

    Args:
        images: `(B, 3, H, W)` in [0, 1].
        sparse: use the method of Vahadane et al. 2016 instead of Macenko et al. 2009.
    """
    with torch.autocast(images.device.type, enabled=False):
        pixels = pixels_of(images)
        axes, share = macenko_axes(pixels)
        axes = vahadane_axes(pixels, axes) if sparse else axes
        bluer = axes[:, :1] - axes[:, 2:]  # red alone often confuses azure and eosin
        axes = torch.where(bluer[..., :1] > bluer[..., 1:], axes, axes.flip(2))
        apart = 1 - axes.prod(dim=2).sum(dim=1).square() >= math.sin(LEAST_ANGLE) ** 2
        amounts = unmixing(axes)
        most = high_over(
            pixels, lambda density: for_rows(amounts, density) @ density, (-MOST[1], MOST[1]), stained=False
        )
    return Stains(axes, most, (share >= LEAST_TISSUE) & apart)


def macenko_axes(pixels: _Pixels) -> tuple[Float[Tensor, "B 3 2"], Float[Tensor, " B"]]:
    """Find two dyes: the outermost directions in the plane in which densities vary most.

    Returns:
        The dyes, and the share of tissue in [0, 1]; 0 if there is no plane, as in grey images.
    """
    moments = mean_over(pixels, tissue_moments)
    share, sums, products = moments.split([1, 3, 9], dim=1)
    mean = sums / share
    covariance = (products / share).unflatten(1, (3, 3)) - mean[:, :, None] * mean[:, None]
    normal = least_axis(covariance)
    across = unit(mean - (mean * normal).sum(1, keepdim=True) * normal)
    plane = torch.stack([across, torch.linalg.cross(normal, across)], dim=1)

    # Densities lie around `across`, far from the jump of angles.
    angles = lambda density: both_ways(for_rows(plane, density) @ density)  # noqa: E731
    ends = high_over(pixels, angles, (-math.pi / 2, math.pi / 2), stained=True)
    ends = torch.stack(
        [-ends[:, 0], ends[:, 1]], dim=1
    )  # the 1st percentile is minus the 99th percentile of the negative
    tissue = torch.where(is_line(covariance), 0, share[:, 0])
    return plane.mT @ torch.stack([ends.cos(), ends.sin()], dim=1), tissue


def both_ways(points: Float[Tensor, "B 2 P"]) -> Float[Tensor, "B 2 P"]:
    """Compute the angle of each point, clockwise and anticlockwise."""
    angle = torch.atan2(points[:, 1], points[:, 0])
    return torch.stack([-angle, angle], dim=1)


def tissue_moments(density: Float[Tensor, "B 3 P"], tissue: Float[Tensor, "B P"]) -> Float[Tensor, "B 13"]:
    """Sum the number of tissue pixels, their densities, and the products of these."""
    stained = density * tissue[:, None]
    products = stained @ density.mT
    return torch.cat([tissue.sum(1, keepdim=True), stained.sum(2), products.flatten(1)], dim=1)


def is_line(covariance: Float[Tensor, "B 3 3"]) -> Bool[Tensor, " B"]:
    """Return whether densities vary along one direction only; a plane through them would be noise."""
    trace = covariance.diagonal(dim1=1, dim2=2).sum(1)
    # The sum of products of each two eigenvalues, compared with the square of the sum of all.
    pairs = (trace.square() - covariance.square().sum(dim=(1, 2))) / 2
    return ~(pairs > LINE * trace.square())  # written so that NaN counts as a line


def least_axis(covariance: Float[Tensor, "B 3 3"]) -> Float[Tensor, "B 3"]:
    """Find the unit vector along which a covariance is least.

    It is the main eigenvector of the adjugate, found by the power method with products only. A library's
    decomposition waits for the GPU, and ONNX has none.
    """
    rows = covariance.unbind(1)
    crosses = [torch.linalg.cross(rows[i - 2], rows[i - 1]) for i in range(3)]
    power = torch.stack(crosses, dim=1)
    power = power / power.diagonal(dim1=1, dim2=2).sum(1)[:, None, None].clamp(min=1e-30)
    for _ in range(6):  # to the power of 64, which float32 can hold
        power = power @ power
    column = power.diagonal(dim1=1, dim2=2).argmax(dim=1)
    return unit(power.gather(2, column[:, None, None].expand(-1, 3, 1))[:, :, 0] * 1e15)


def vahadane_axes(pixels: _Pixels, axes: Float[Tensor, "B 3 2"]) -> Float[Tensor, "B 3 2"]:
    """Find two dyes whose sparse sums, with no negative amounts, are the densities; start from `axes`.

    It minimises `|V - W H|^2 / 2 + lambda |H|_1` over W, H >= 0 with unit columns of W (Vahadane et al.
    2016, eq. 4), one column of W at a time, as in online dictionary learning (Mairal et al. 2010). For two
    dyes, H has a closed form.
    """
    dyes = list(unit(axes.clamp(min=0)).unbind(2))
    for _ in range(_ROUNDS):
        sums = mean_over(pixels, lambda density, tissue: sparse_sums(density, tissue, dyes))
        with_dyes, among = sums[:, :6].unflatten(1, (3, 2)), sums[:, 6:]
        for this in (0, 1):
            left = with_dyes[:, :, this] - dyes[1 - this] * among
            dyes[this] = unit(left.clamp(min=0))
    return torch.stack(dyes, dim=2)


def sparse_sums(
    density: Float[Tensor, "B 3 P"], tissue: Float[Tensor, "B P"], dyes: list[Float[Tensor, "B 3"]]
) -> Float[Tensor, "B 7"]:
    """Sum the products of the sparse amounts of two dyes with densities and with each other."""
    axes = for_rows(torch.stack(dyes, dim=1), density)
    one, other = (axes @ density - SPARSITY).unbind(1)
    overlap = (axes[:, 0] * axes[:, 1]).sum(1, keepdim=True)
    # Both dyes if both amounts are positive, otherwise the dye that explains the pixel better alone.
    first, second = one - overlap * other, other - overlap * one
    scale = tissue / (1 - overlap.square()).clamp(min=1e-4)
    amounts = torch.stack(
        [
            torch.where(second < 0, one.clamp(min=0) * tissue, first.clamp(min=0) * scale),
            torch.where(first < 0, other.clamp(min=0) * tissue, second.clamp(min=0) * scale),
        ],
        dim=1,
    )
    with_dyes = density @ amounts.mT
    return torch.cat([with_dyes.flatten(1), (amounts[:, 0] * amounts[:, 1]).sum(1, keepdim=True)], dim=1)
