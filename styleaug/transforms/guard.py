"""Findings that stay: measure how much structure a style leaves, and give back what is missing.

A styled row is compared with its image on edges and on the contrast of small blobs. One that falls below
the floor is mixed with its *colour tier*: the image itself with a gain of at least one and a smooth shift of
colours towards the styled one. Gain and correlation say how much of it is needed, in closed form:

    weights, tier = read_structure(images, styled, floor=0.9)       # weight 0: passes as it is
    kept = pull(images, styled, weights, tier)

`keep_structure` does both. The slices of a volume share one tier and one weight: read them from some slices,
with `frames`, and `pull` all. Nothing here is random, and nothing waits for a GPU.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from styleaug.checks import brief, check_share, made_of
from styleaug.errors import ConfigError, ImageError
from styleaug.generators.base import per_row
from styleaug.transforms.faces import find_faces, import_dlib
from styleaug.transforms.splice import FEATHER, feather
from styleaug.transforms.structure import FINEST, contrast_need, edge_need, reduce

__all__ = [
    "Preserve",
    "Protect",
    "Tier",
    "keep_faces",
    "keep_structure",
    "protect_regions",
    "pull",
    "read_preserve",
    "read_structure",
    "regions_by",
    "still_tier",
]

Regions = Callable[[Tensor], Tensor]
"""Maps images `(K, 3, H, W)` in [0, 1] to weights `(K, 1, H, W)` in [0, 1]: 1 where contrast must stay."""

Protect = Literal["mask", "faces"] | Regions

MOST_GAIN = 1.25
"""How many times the colour tier may raise contrast, where a style has more of it. Noise grows by as much."""

CELL, MOST_CELLS = 28, 8
"""The shift is smooth: one value a cell, of `CELL` or more pixels a side; `MOST_CELLS` or fewer a side."""

STEP = 0.05
"""By how much the room for a shift may differ between neighbouring cells, lest corners glow."""


class Tier(NamedTuple):
    """The image with the style's colours: `gain * image + shift`."""

    gain: Float[Tensor, " K"]
    """At least 1: no contrast is lost."""

    shift: Float[Tensor, "K C Y X"]
    """In the middle of each cell; so small that blobs stay inside [0, 1]."""


@dataclass(frozen=True)
class Preserve:
    """Keep structure, measured on each row, and the contrast of protected regions.

    Example:
        >>> StyleAugment("art", preserve=Preserve(0.9, protect="mask"))  # doctest: +SKIP
    """

    floor: float | None = None
    """Least structure in [0, 1], of two kinds: the correlation of the edges with those of the image,
    and the share that blobs of 3 to 30 pixels keep of their contrast, in nine tenths of the image. A
    row below it is mixed with the image itself in the style's colours; at 1 only that is left. 0 and
    None do not check."""

    _: KW_ONLY
    protect: Protect | None = None
    """Regions whose local contrast stays, with a soft border; only a smooth shift of colours remains of
    the style there. `"mask"`: where the sample's mask is above 0. Or a function from images `(K, 3, H,
    W)` in [0, 1] to weights `(K, 1, H, W)` in [0, 1]; channels that are grey images reach it one by
    one. `"faces"`, with the extra `faces`, keeps more: the pixels of frontal faces do not change at all.
    They are looked for in each styled image, on the CPU, which takes about 20 ms of one core; an image in
    which none is found is styled whole. See `styleaug.transforms.faces.find_faces`."""

    def __post_init__(self) -> None:
        floor = None if self.floor is None else check_share("preserve", self.floor)
        object.__setattr__(self, "floor", floor or None)
        named = isinstance(self.protect, str) and self.protect in ("mask", "faces")
        if not (self.protect is None or named or callable(self.protect)):
            raise ConfigError(
                f'protect must be None, "mask", "faces" or a function of images, got {self.protect!r}.'
            )
        if self.protect == "faces":
            import_dlib()

    def __repr__(self) -> str:
        return brief(self)


def read_preserve(given: Any) -> Preserve:
    """Read what is preserved as a user gives it: None, a number, a `Preserve`, or a dict of its fields.

    Raises:
        ConfigError: anything else.
    """
    if isinstance(given, Preserve):
        return given
    return made_of(Preserve, given, "preserve") if isinstance(given, Mapping) else Preserve(given)


def keep_structure(
    images: Float[Tensor, "F C H W"],
    styled: Float[Tensor, "F C H W"],
    *,
    floor: float,
    frames: int = 1,
) -> Float[Tensor, "F C H W"]:
    """Return rows with as much structure restored as they lack to reach a floor.

    A row passes if the gradient magnitudes (Sobel) of image and result correlate by `floor` or more; and if
    blobs of 3, 6, 12 and 24 pixels keep that share of their contrast in nine tenths of the image, and
    `floor + 2/3 * floor * (1 - floor)` in half of it: 0.96, with a `floor` of 0.9.

    Args:
        images: in [0, 1], colour or grey.
        styled: what a generator made of them, in [0, 1].
        floor: in (0, 1].
        frames: how many rows in succession are frames of one volume; they are treated as one.

    Returns:
        The same shape; `styled` itself, on a CPU, if every row passes. Rows that pass are bit-identical.

    Example:
        >>> kept = keep_structure(images, generator(images, codes, strength), floor=0.9)  # doctest: +SKIP
    """
    return pull(images, styled, *read_structure(images, styled, floor=floor, frames=frames))


@torch.no_grad()
def read_structure(
    images: Float[Tensor, "F C H W"],
    styled: Float[Tensor, "F C H W"],
    *,
    floor: float,
    frames: int = 1,
) -> tuple[Float[Tensor, " K"], Tier]:
    """Compute the weights and the tier with which `pull` keeps the structure; see `keep_structure`."""
    small, painted = reduce(images), reduce(styled)
    tier = tier_of(small, painted, frames)
    weights = torch.maximum(
        contrast_need(small, painted, each_frame(tier.gain, frames), floor),
        edge_need(images, styled, floor),
    )
    return weights.unflatten(0, (-1, frames)).amax(dim=1), tier


def pull(
    images: Float[Tensor, "F C H W"],
    styled: Float[Tensor, "F C H W"],
    weights: Float[Tensor, " K"],
    tier: Tier,
) -> Float[Tensor, "F C H W"]:
    """Mix styled rows with their colour tier.

    Args:
        images: in [0, 1]; F is K times any number of frames.
        styled: what a generator made of them.
        weights: share of the tier. Rows of weight 0 are not touched.
        tier: of K rows.
    """
    frames = len(images) // len(weights)
    weights, tier = each_frame(weights, frames), Tier(*(each_frame(part, frames) for part in tier))
    if images.device.type == "cpu":  # reading the weights costs nothing there
        rows = weights.nonzero()[:, 0]
        if len(rows) == 0:
            return styled
        if 2 * len(rows) < len(weights):  # more are faster with the others than picked from among them
            some = Tier(*(part[rows] for part in tier))
            mixed = torch.lerp(styled[rows], calm(images[rows], some), per_row(weights[rows]))
            return styled.index_copy(0, rows, mixed)
    return torch.lerp(styled, calm(images, tier), per_row(weights))


def protect_regions(
    images: Float[Tensor, "F C H W"],
    styled: Float[Tensor, "F C H W"],
    regions: Float[Tensor, "F 1 H W"],
    *,
    tier: Tier | None = None,
    frames: int = 1,
) -> Float[Tensor, "F C H W"]:
    """Restore the image's own local contrast inside regions; outside, styled images stay as they are.

    Inside, only the smooth shift of the colour tier remains of the style. The border lies outside of the
    region and is soft.

    Args:
        images: in [0, 1].
        styled: what was made of them.
        regions: in [0, 1]; 1 is inside.
        tier: from `still_tier`; None reads it from the images.
        frames: how many rows in succession are frames of one volume; they shift by the same amount.
    """
    tier = still_tier(images, styled, frames=frames) if tier is None else tier
    tier = Tier(*(each_frame(part, frames) for part in tier))
    return torch.lerp(styled, calm(images, tier), soften(regions.to(images.dtype)))


@torch.no_grad()
def still_tier(
    images: Float[Tensor, "F C H W"], styled: Float[Tensor, "F C H W"], *, frames: int = 1
) -> Tier:
    """Read a colour tier whose gain is 1; see `tier_of`."""
    return tier_of(reduce(images), reduce(styled), frames, most_gain=1.0)


def keep_faces(
    images: Float[Tensor, "F C H W"], styled: Float[Tensor, "F C H W"]
) -> Float[Tensor, "F C H W"]:
    """Restore the pixels of faces, and blend them softly into what is around them.

    Args:
        images: in [0, 1], colour or grey.
        styled: what was made of them.
    """
    regions = find_faces(images.expand(-1, 3, -1, -1))
    return torch.lerp(styled, images, soften(regions)) if regions.any() else styled


def regions_by(protect: Regions, images: Float[Tensor, "K C H W"]) -> Float[Tensor, "K 1 H W"]:
    """Ask the user's function where to keep contrast, and check its answer.

    Raises:
        ImageError: no tensor, or one of another shape.
    """
    regions = protect(images.expand(-1, 3, -1, -1))
    wanted = (len(images), 1, *images.shape[-2:])
    if not isinstance(regions, Tensor) or tuple(regions.shape) != wanted:
        got = tuple(regions.shape) if isinstance(regions, Tensor) else type(regions).__name__
        raise ImageError(f"protect must return weights of shape {wanted} for these images, got {got}.")
    return regions.detach().to(images).nan_to_num(0.0).clamp(0, 1)


def soften(regions: Float[Tensor, "K 1 H W"]) -> Float[Tensor, "K 1 H W"]:
    """Widen regions as far as their border is then blurred, so that all of them stay inside."""
    reach = 2 ** max(1, round(math.log2(FEATHER * min(regions.shape[-2:]))))
    wide = F.max_pool2d(regions, (1, 2 * reach + 1), stride=1, padding=(0, reach))
    return feather(F.max_pool2d(wide, (2 * reach + 1, 1), stride=1, padding=(reach, 0)))


def each_frame(values: Tensor, frames: int) -> Tensor:
    """Repeat each row's values for each of its frames."""
    return values if frames == 1 else values.repeat_interleave(frames, dim=0)


def tier_of(
    small: Float[Tensor, "F C Y X"],
    painted: Float[Tensor, "F C Y X"],
    frames: int,
    *,
    most_gain: float = MOST_GAIN,
) -> Tier:
    """Compute the gain and shift that bring each image's colours nearest to the styled one's, contrast kept.

    The gain follows the deviation, from 1 to `most_gain`. Shifts follow the local means, as far as the values
    leave room: a patch that holds black and white cannot be moved.

    Args:
        small: reduced images in [0, 1].
        painted: reduced styled images of the same size.
        frames: number of successive rows that share one tier.
        most_gain: largest gain, from 1.
    """
    own, other = (x.unflatten(0, (-1, frames)) for x in (small, painted))
    # FINEST * size, as the copy is so much smaller than the image.
    high, wide = (max(1, min(MOST_CELLS, FINEST * size // CELL)) for size in small.shape[-2:])
    means = [cell_means(x, high, wide).unflatten(0, (-1, frames)).mean(dim=1) for x in (small, painted)]
    lows = -cell_peaks(-small, high, wide).unflatten(0, (-1, frames)).amax(dim=1)
    highs = cell_peaks(small, high, wide).unflatten(0, (-1, frames)).amax(dim=1)
    span = (highs.amax(dim=(2, 3)) - lows.amin(dim=(2, 3))).amax(dim=1)
    most = (1 / span.clamp_min(1e-6)).clamp_max(most_gain)
    gain = torch.minimum(deviation(other) / deviation(own).clamp_min(1e-6), most).clamp_min(1)
    scale = per_row(gain)
    change = blur(means[1] - scale * means[0])
    return Tier(gain, torch.minimum(torch.maximum(change, -room(scale * lows)), room(1 - scale * highs)))


def cell_means(images: Float[Tensor, "F C Y X"], high: int, wide: int) -> Float[Tensor, "F C P Q"]:
    """Average the pixels of each cell."""
    rows, columns = (
        (_within(size, cells, images.device) / -(-size // cells)).to(images.dtype)
        for size, cells in zip(images.shape[-2:], (high, wide), strict=True)
    )
    return rows @ images @ columns.T


def _within(size: int, cells: int, device: torch.device) -> Float[Tensor, "P Q"]:
    """Make the matrix that adds up the pixels of each cell."""
    at = members(size, cells, device)
    return torch.zeros(cells, size, device=device).scatter_(1, at, 1.0)


def members(size: int, cells: int, device: torch.device) -> Int[Tensor, "P M"]:
    """List the pixels of each cell along one axis: equally many, so neighbours may share one."""
    most = -(-size // cells)
    start = torch.arange(cells, device=device) * size // cells
    return start.clamp_max(size - most)[:, None] + torch.arange(most, device=device)


def cell_peaks(images: Float[Tensor, "F C Y X"], high: int, wide: int) -> Float[Tensor, "F C P Q"]:
    """Find the largest pixel of each cell, one axis after the other: pooling takes five times as long."""
    rows, columns = (
        members(size, n, images.device) for size, n in zip(images.shape[-2:], (high, wide), strict=True)
    )
    tops = images.index_select(2, rows.flatten()).unflatten(2, rows.shape).amax(dim=3)
    return tops.index_select(3, columns.flatten()).unflatten(3, columns.shape).amax(dim=4)


def deviation(images: Float[Tensor, "K T C Y X"]) -> Float[Tensor, " K"]:
    """Compute the standard deviation over all frames and channels, one number a row."""
    mean = images.mean(dim=(3, 4)).mean(dim=1)[:, None, :, None, None]
    return (images - mean).square().mean(dim=(3, 4)).mean(dim=(1, 2)).sqrt()


def room(left: Float[Tensor, "K C Y X"]) -> Float[Tensor, "K C Y X"]:
    """Compute how far each cell may move, where `left` is how far its own pixels may.

    A pixel takes its shift from up to four cells, so each goes by its neighbours, too.
    """
    left = -F.max_pool2d(-left.clamp_min(0), 3, 1, 1)
    for _ in range(max(left.shape[-2:]) - 1):
        left = torch.minimum(left, STEP - F.max_pool2d(-left, 3, 1, 1))
    return left


def blur(cells: Float[Tensor, "K C Y X"]) -> Float[Tensor, "K C Y X"]:
    """Average cells with weights 1, 4, 6, 4, 1 along each axis: a finding of one cell hardly moves them."""
    for axis in (2, 3):
        last = cells.shape[axis] - 1
        at = torch.arange(last + 1, device=cells.device)
        steps = [cells.index_select(axis, (at + step).clamp(0, last)) for step in range(-2, 3)]
        cells = (steps[0] + 4 * steps[1] + 6 * steps[2] + 4 * steps[3] + steps[4]) / 16
    return cells


def calm(images: Float[Tensor, "K C H W"], tier: Tier) -> Float[Tensor, "K C H W"]:
    """Compute the colour tier at full size."""
    height, width = images.shape[-2:]
    rows = between_cells(height, tier.shift.shape[-2], images)
    columns = between_cells(width, tier.shift.shape[-1], images)
    shift = rows @ tier.shift @ columns.T
    return shift.addcmul_(images, per_row(tier.gain)).clamp_(0, 1)


def between_cells(length: int, cells: int, like: Tensor) -> Float[Tensor, "P Q"]:
    """Return the matrix that interpolates from `cells` cells to `length` pixels."""
    at = (torch.arange(length, device=like.device) + 0.5) * (cells / length) - 0.5
    away = (at.clamp(0, cells - 1)[:, None] - torch.arange(cells, device=like.device)).abs()
    return F.relu(1 - away).to(like.dtype)
