"""Colour generators without training: channel statistics and histograms. `fourier` has a third."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from styleaug.errors import ConfigError
from styleaug.generators.background import known_tissue, on_tissue_only, tissue_stats, tissue_weight
from styleaug.generators.base import AbstractGenerator, blend, widen
from styleaug.generators.colorspace import (
    hed_to_rgb,
    hsv_to_rgb,
    lab_to_rgb,
    luma,
    rgb_to_hed,
    rgb_to_hsv,
    rgb_to_lab,
    rgb_to_ycbcr,
    ycbcr_to_rgb,
)
from styleaug.generators.fourier import FourierAmplitude
from styleaug.generators.layers import adain, channel_stats, is_exporting
from styleaug.generators.shared import pooled, sharing

__all__ = ["ChannelStats", "FourierAmplitude", "HistogramMatching"]

MAX_GAIN = 5.0
"""Largest factor by which contrast may grow. In flat images mainly noise would grow."""


class Space(NamedTuple):
    """A colour space: how to split an image into planes and how to join them.

    `join` takes the image, its planes after `split`, and the changed planes.
    """

    planes: int
    split: Callable[[Tensor], Tensor]
    join: Callable[[Tensor, Tensor, Tensor], Tensor]


_SPACES = {
    "rgb": Space(3, lambda images: images, lambda images, old, new: new),
    "lab": Space(3, rgb_to_lab, lambda images, old, new: lab_to_rgb(new)),
    "ycbcr": Space(3, rgb_to_ycbcr, lambda images, old, new: ycbcr_to_rgb(new)),
    "hsv": Space(3, rgb_to_hsv, lambda images, old, new: hsv_to_rgb(new)),
    "hed": Space(3, rgb_to_hed, lambda images, old, new: hed_to_rgb(new)),
    # The same value added to all three channels changes Y and keeps Cb and Cr.
    "luminance": Space(1, luma, lambda images, old, new: images + (new - old)),
}
RANGES: dict[str, list[tuple[float, float]]] = {
    "rgb": [(0, 1)] * 3,
    "lab": [(0, 100), (-110, 110), (-110, 110)],
    "ycbcr": [(0, 1)] * 3,
    "hsv": [(0, 1)] * 3,
    "hed": [(-10, 26), (-21, 16), (-10, 22)],
    "luminance": [(0, 1)],
}
"""Least and greatest value of each plane, for each colour space."""


def space_named(name: str, allowed: tuple[str, ...]) -> str:
    """Check the name of a colour space and return it."""
    if name not in allowed:
        raise ConfigError(f"space must be one of {', '.join(allowed)}, got {name!r}.")
    return name


class ChannelStats(AbstractGenerator):
    """Set mean and standard deviation of each channel of a colour space to the style's.

    Reinhard et al. 2001, "Color transfer between images". Their space is l-alpha-beta;
    "lab" here is CIELAB under D65, as is common today. "luminance" changes mean and deviation of
    luma only (BT.601 Y) and keeps the chroma. "hsv" treats hue as a number that jumps at green, and
    never increases its deviation. "hed" is the amounts of haematoxylin, eosin and DAB, for slides: see
    `colorspace`.

    Reinhard in torchstain and tiatoolbox is "lab". torchstain rounds to 8 bits; tiatoolbox uses OpenCV's
    8-bit CIELAB.

    Contrast grows by at most `MAX_GAIN` = 5 in any channel, so that the noise of nearly flat images
    stays small. Such images do not reach the style's deviation.

    Code: the means, then the standard deviations, of the channels in the units of the space ([0, 1];
    for "lab" L in [0, 100], a and b in about [-110, 110]; for "hed" mostly [-1, 3]): 6 floats, for
    "luminance" 2.

    Args:
        space: "rgb", "lab", "ycbcr", "hsv", "hed" or "luminance".
    """

    margin: int | None = 0
    tissue: bool | None = False

    def __init__(self, space: str = "lab"):
        super().__init__()
        self.space: str = space_named(space, tuple(_SPACES))
        self.name: str = f"reinhard-{space}"
        self.code_length: int = 2 * _SPACES[space].planes
        self.usual_spread: float = (
            0.01 if space == "hed" else 0.1
        )  # real slides fill a small part of the hed range
        ranges = RANGES[space]
        spreads = [(0.0, (high - low) / 2) for low, high in ranges]  # no deviation is larger
        self.code_range: tuple[list[float], list[float]] | None = (
            [low for low, _ in ranges + spreads],
            [high for _, high in ranges + spreads],
        )

    def extra_repr(self) -> str:
        """Return the space as text; it is part of the fingerprint."""
        return f"space={self.space!r}"

    def encode_style(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B S"]:
        """Compute the mean and standard deviation of each channel."""
        full = widen(images)
        planes = _SPACES[self.space].split(full)
        if not self.tissue:
            return channel_stats(planes)
        tissue = tissue_weight(full)
        known = known_tissue(tissue)[:, :, 0, 0]
        return torch.where(known > 0, tissue_stats(planes, tissue), channel_stats(planes))

    def forward(
        self,
        images: Float[Tensor, "B 3 H W"],
        codes: Float[Tensor, "B S"],
        strength: Float[Tensor, " B"],
    ) -> Float[Tensor, "B 3 H W"]:
        """Shift and scale the channels of each image to the statistics in its code."""
        space, full = _SPACES[self.space], widen(images)
        old = space.split(full)
        mean, std = codes.to(full.dtype).chunk(2, dim=1)
        std = std.clamp(min=0)  # a code drawn from a Gaussian may be negative
        tissue = tissue_weight(full) if self.tissue else None
        own = channel_stats(old) if tissue is None else tissue_stats(old, tissue)
        own_mean, own_std = own.chunk(2, dim=1)
        own_std = torch.maximum(own_std, std / MAX_GAIN)
        if self.space == "hsv":  # the hue of grey is noise: it must not spread the hues of colours
            own_std = torch.cat([torch.maximum(own_std[:, :1], std[:, :1]), own_std[:, 1:]], dim=1)
        new = adain(old, torch.cat([mean, std], dim=1), torch.cat([own_mean, own_std], dim=1))
        styled = blend(images, space.join(full, old, new), strength)
        return styled if tissue is None else on_tissue_only(images, styled, tissue * known_tissue(tissue))


class HistogramMatching(AbstractGenerator):
    """Map the histogram of each channel onto the style's, by rank.

    Histogram specification (Gonzalez & Woods, "Digital Image Processing", section 3.3), in RGB or,
    for "luminance", in luma only (BT.601 Y), which keeps the chroma. Equal pixels stay equal and
    take their mean rank, so a flat image takes the style's median. The slope of the map is at most
    `MAX_GAIN` = 5, so that noise in flat regions does not become visible. Where a steeper slope would be
    needed, the style's histogram is not reached.

    Ranks are read on a regular grid of at most about `_GRID` = 16384 pixels, from histograms with one
    bin for each of the 256 8-bit levels. A pixel between two levels counts in part for each, and its
    new value lies between theirs.

    Code: for each channel, `quantiles` values of its quantile function in [0, 1], ascending. They
    lie at ranks `(1 - cos(pi t)) / 2` for evenly spaced t in [0, 1]. This is dense at both ends, where
    highlights and shadows have few pixels and a wide range of values. An unsorted code is sorted on use.

    Args:
        space: "rgb" or "luminance".
        quantiles: values per channel, from 2.
    """

    margin: int | None = 0
    tissue: bool | None = False

    def __init__(self, space: str = "rgb", *, quantiles: int = 64):
        super().__init__()
        if not quantiles >= 2:
            raise ConfigError(f"quantiles must be at least 2, got {quantiles}.")
        self.space: str = space_named(space, ("rgb", "luminance"))
        self.name: str = "histogram" if space == "rgb" else f"histogram-{space}"
        self.quantiles = quantiles
        self.code_length: int = _SPACES[space].planes * quantiles
        self.code_range: tuple[list[float], list[float]] | None = (
            [0.0] * self.code_length,
            [1.0] * self.code_length,
        )

    def extra_repr(self) -> str:
        """Return the space and the ranks as text; they are part of the fingerprint."""
        return f"space={self.space!r}, quantiles={self.quantiles}, ranks=cosine"

    def encode_style(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B S"]:
        """Compute the quantile function of each channel."""
        full = widen(images)
        pixels = thin(_SPACES[self.space].split(full)).flatten(2).sort(dim=2).values
        if self.tissue:
            return self.encode_tissue(full, pixels)
        t = torch.linspace(0, math.pi, self.quantiles, dtype=pixels.dtype, device=pixels.device)
        return interpolate(pixels, (1 - t.cos()) / 2 * (pixels.shape[2] - 1)).flatten(1)

    def encode_tissue(
        self, images: Float[Tensor, "B 3 H W"], pixels: Float[Tensor, "B C P"]
    ) -> Float[Tensor, "B S"]:
        """Compute the quantile functions of the tissue; of all pixels if there is no tissue."""
        background = thin(tissue_weight(images)).flatten(2) < 0.5
        planes = thin(_SPACES[self.space].split(images)).flatten(2)
        none = background.all(dim=2, keepdim=True)
        seen = torch.where(none, pixels, planes.masked_fill(background, math.nan))
        t = torch.linspace(0, math.pi, self.quantiles, dtype=pixels.dtype, device=pixels.device)
        return seen.nanquantile((1 - t.cos()) / 2, dim=2).movedim(0, 2).flatten(1)

    def forward(
        self,
        images: Float[Tensor, "B 3 H W"],
        codes: Float[Tensor, "B S"],
        strength: Float[Tensor, " B"],
    ) -> Float[Tensor, "B 3 H W"]:
        """Replace each value by the style's value at the same rank."""
        space, full = _SPACES[self.space], widen(images)
        old = space.split(full)
        style = codes.to(full.dtype).unflatten(1, (space.planes, self.quantiles)).sort(dim=2).values
        tissue = tissue_weight(full) if self.tissue else None
        ranks, seen = level_ranks(old) if tissue is None else tissue_ranks(old, tissue)
        table = interpolate(style, torch.acos(1 - 2 * ranks) / math.pi * (self.quantiles - 1))
        table = limit_slope(table, seen, MAX_GAIN / (_LEVELS - 1))
        new = interpolate(table, old.flatten(2).clamp(0, 1) * (_LEVELS - 1)).view_as(old)
        styled = blend(images, space.join(full, old, new), strength)
        return styled if tissue is None else on_tissue_only(images, styled, tissue * known_tissue(tissue))


_GRID = 16384
MAX_STEP = 1024
"""Largest step of `color_grid`, in pixels. It suffices for images up to 131072 x 131072 pixels."""
_LEVELS = 256


def thin(planes: Float[Tensor, "B C H W"], most: int = _GRID) -> Float[Tensor, "B C H2 W2"]:
    """Take every n-th row and column, so that about `most` pixels remain."""
    step = math.ceil(math.sqrt(planes.shape[2] * planes.shape[3] / most))
    return planes[:, :, ::step, ::step]


def interpolate(table: Float[Tensor, "B C N"], at: Tensor) -> Float[Tensor, "B C M"]:
    """Interpolate `table` linearly at positions in [0, N - 1].

    Args:
        table: `(B, C, N)`.
        at: positions `(B, C, M)`, or `(M,)` for the same positions in every row.
    """
    at = at.expand(*table.shape[:2], -1)
    low = at.detach().floor()
    index = low.long()
    steps = F.pad(table.diff(dim=2), (0, 1))
    return torch.addcmul(table.gather(2, index), steps.gather(2, index), at - low)


def level_ranks(
    planes: Float[Tensor, "B C H W"],
) -> tuple[Float[Tensor, "B C 256"], Bool[Tensor, "B C 256"]]:
    """Compute the mean rank in [0, 1] of a pixel at each of the 256 levels, and which levels occur."""
    if sharing():
        shares = pooled(level_shares, planes, most=_GRID)
        return (shares.cumsum(dim=2) - shares / 2).clamp(0, 1), shares > 0
    counts, total = level_counts(planes)
    below_or_at = counts.cumsum(dim=2)
    ranks = (2 * below_or_at - counts).to(planes.dtype) / (2 * total)
    return ranks, counts > 0


def tissue_ranks(
    planes: Float[Tensor, "B C H W"], tissue: Float[Tensor, "B 1 H W"]
) -> tuple[Float[Tensor, "B C 256"], Bool[Tensor, "B C 256"]]:
    """Compute the ranks of `level_ranks` over the tissue only."""
    shares = pooled(tissue_shares, torch.cat([planes, tissue], dim=1), most=_GRID)
    total = shares.sum(dim=2, keepdim=True)
    shares = torch.where(total > 0, shares / total.clamp_min(1e-6), 1 / _LEVELS)  # uniform without tissue
    return (shares.cumsum(dim=2) - shares / 2).clamp(0, 1), shares > 0


def tissue_shares(seen: Float[Tensor, "B D H W"]) -> Float[Tensor, "B C 256"]:
    """Compute the share of all pixels that are tissue and have each of the 256 levels."""
    seen = thin(seen.detach()).flatten(2)
    planes, counted = seen[:, :-1].clamp(0, 1) * (_LEVELS - 1), (seen[:, -1:] >= 0.5).to(seen.dtype)
    level = planes.floor()
    upper, index = planes - level, level.long()
    shares = planes.new_zeros(*planes.shape[:2], _LEVELS + 1)
    shares.scatter_add_(2, index, (1 - upper) * counted).scatter_add_(2, index + 1, upper * counted)
    return shares[:, :, :_LEVELS] / planes.shape[2]


def level_shares(planes: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C 256"]:
    """Compute the share of the pixels at each of the 256 levels."""
    counts, total = level_counts(planes)
    return counts.to(planes.dtype) / total


def level_counts(planes: Float[Tensor, "B C H W"]) -> tuple[Int[Tensor, "B C 256"], int | Tensor]:
    """Count the pixels at each of the 256 levels, in 256ths of a pixel, and all pixels."""
    # In whole 256ths of a pixel: sums of integers do not depend on their order, so a row gives
    # the same bits alone, in a batch and on every device.
    planes, open_size = planes.detach(), any(isinstance(size, torch.SymInt) for size in planes.shape[2:])
    parts = (planes if open_size else thin(planes)).flatten(2).clamp(0, 1) * ((_LEVELS - 1) * 256)
    parts = parts.round().long()
    level, upper = parts >> 8, parts & 255
    lower, pixels = 256 - upper, parts.shape[2]
    if open_size:  # `torch.export` cannot take a step that depends on the size: read all, count some
        counted = color_grid(planes)
        lower, upper, pixels = lower * counted, upper * counted, counted.sum()
    counts = parts.new_zeros(*parts.shape[:2], _LEVELS + 1)
    counts = counts.scatter_add_(2, level, lower).scatter_add_(2, level + 1, upper)[:, :, :_LEVELS]
    return counts, 256 * pixels


def color_grid(planes: Float[Tensor, "B C H W"], most: int = _GRID) -> Int[Tensor, " P"]:
    """Return 1 for each pixel that `thin` takes, and 0 for the others."""
    height, width = planes.shape[2:]
    smaller = torch.arange(MAX_STEP, device=planes.device).square() * most < height * width
    step = smaller.sum()
    rows, columns = (torch.arange(size, device=planes.device) % step == 0 for size in (height, width))
    return (rows[:, None] & columns).flatten().long()


def limit_slope(
    table: Float[Tensor, "B C N"], seen: Bool[Tensor, "B C N"], slope: float
) -> Float[Tensor, "B C N"]:
    """Turn jumps of an ascending table into ramps of the given slope, centred on each jump.

    The result is the mean of the least and the greatest function of that slope (McShane 1934, Whitney
    1934) through the entries `seen`. Other entries are filled in from their neighbours.
    """
    ramp = torch.arange(table.shape[2], device=table.device) * slope
    lower, upper = table.masked_fill(~seen, math.inf), table.masked_fill(~seen, -math.inf)
    least = torch.minimum(
        running_min(lower - ramp) + ramp, running_min((lower + ramp).flip(2)).flip(2) - ramp
    )
    greatest = torch.maximum(
        -running_min(-(upper + ramp)) - ramp, -running_min((ramp - upper).flip(2)).flip(2) + ramp
    )
    return (least + greatest) / 2


def running_min(values: Float[Tensor, "B C N"]) -> Float[Tensor, "B C N"]:
    """Compute the running minimum along the last axis."""
    if not is_exporting():
        return values.cummin(2).values
    length, reach = values.shape[2], 1
    while reach < length:  # ONNX has no operator for a running minimum
        values = torch.minimum(values, F.pad(values, (reach, 0), value=math.inf)[:, :, :length])
        reach *= 2
    return values
