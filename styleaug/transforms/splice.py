"""Two or more styles in one image: which part of it gets which, with soft borders."""

import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from styleaug.checks import brief, check_count, check_switch, made_of
from styleaug.errors import ConfigError, ImageError

__all__ = [
    "SPLICES",
    "Splice",
    "SpliceKind",
    "composite",
    "draw_fields",
    "feather",
    "mask_weights",
    "part_weights",
    "read_masks",
    "read_splice",
]

SpliceKind = Literal["halves", "fields", "mask"]
SPLICES = get_args(SpliceKind)


@dataclass(frozen=True)
class Splice:
    """Style the parts of one image differently, with soft borders.

    Example:
        >>> StyleAugment("art", splice=Splice("halves", parts=3, keep=True))  # doctest: +SKIP
    """

    kind: SpliceKind
    """`"halves"`: bands of a random direction. `"fields"`: random smooth patches. `"mask"`: the regions
    of the sample's mask, which itself is passed on. Label 1 is the first part, 2 the second, and 0, the
    background, the last; labels from `parts` on start again with the first. Several masks of one image
    are joined as its objects. In a mask of floats, each value is the share of the first part."""

    _: KW_ONLY
    parts: int = 2
    """How many styles an image gets, from 2."""

    keep: bool = False
    """Leave the first part as it is."""

    def __post_init__(self) -> None:
        if not isinstance(self.kind, str) or self.kind not in SPLICES:
            raise ConfigError(
                f"splice must be None, a Splice or one of {', '.join(SPLICES)}, got {self.kind!r}."
            )
        object.__setattr__(self, "parts", check_count("parts", self.parts, least=2))
        object.__setattr__(self, "keep", check_switch("keep", self.keep))

    def __repr__(self) -> str:
        return brief(self)


BORDER = 0.1
"""Share of the side over which one half's weight falls from 90 % to 10 %."""

KNOTS = 4
"""Random numbers along each side of a smooth field; its patches are about a third of the side."""

GRID = 16
"""Points along each side at which a smooth field is stored, and bands are measured."""

STEEPNESS = 5.0
"""Deviation of a smooth field's logits; higher makes narrower borders."""

FEATHER = 0.02
"""How far on either side a mask's edge is blurred, as a share of the short side; about."""


def read_splice(given: Any) -> Splice | None:
    """Read how images are spliced as a user gives it: None, a kind, a `Splice`, or a dict of its fields.

    Raises:
        ConfigError: anything else.
    """
    if given is None or isinstance(given, Splice):
        return given
    return made_of(Splice, given, "splice") if isinstance(given, Mapping) else Splice(given)


def draw_fields(
    splice: SpliceKind, count: int, parts: int, rng: torch.Generator | None = None
) -> Float[Tensor, "K G G"] | None:
    """Draw logits on a small grid over the image, for `parts` parts of `count` images.

    Where a part's field is the highest the image gets its style; see `part_weights`.

    Args:
        splice: `"halves"` draws parallel bands of random direction, `"fields"` smooth random patches;
            `"mask"` draws nothing.
        count: images.
        parts: of each image; K is `count * parts`.
        rng: None draws from torch's global generator.
    """
    if splice == "mask":
        return None
    return (draw_bands if splice == "halves" else draw_patches)(count, parts, rng).flatten(0, 1)


def draw_bands(count: int, parts: int, rng: torch.Generator | None) -> Float[Tensor, "B P 2 2"]:
    """Draw ramps whose softmax cuts the image into parallel bands; their corners say all."""
    angle = 2 * math.pi * torch.rand(count, generator=rng)
    slope = torch.stack([angle.sin(), angle.cos()])[..., None, None]
    side = torch.linspace(-0.5, 0.5, GRID)
    along = slope[0] * side[:, None] + slope[1] * side
    # Cut by area: at most 0.4 of a band from where all bands are equal, so none vanishes.
    jitter = 0.8 * (torch.rand(count, parts - 1, generator=rng) - 0.5)
    places = (torch.arange(1, parts) + jitter) / parts * (GRID * GRID - 1)
    cuts = along.flatten(1).sort(dim=1).values.gather(1, places.round().long())
    # Line k has slope k, and meets line k - 1 at cut k: each is the highest in its own band.
    offsets = torch.cat([torch.zeros(count, 1), cuts.cumsum(dim=1)], dim=1)
    corners = along[:, None, :: GRID - 1, :: GRID - 1]
    lines = torch.arange(parts)[:, None, None] * corners - offsets[..., None, None]
    order = torch.rand(count, parts, generator=rng).argsort(dim=1)  # which part is in which band
    return lines[torch.arange(count)[:, None], order] * (2 * math.log(9) / BORDER)


def draw_patches(count: int, parts: int, rng: torch.Generator | None) -> Float[Tensor, "B P G G"]:
    """Draw smooth fields of equal mean and deviation, so that no part is everywhere or nowhere."""
    knots = torch.randn(count, parts, KNOTS, KNOTS, generator=rng)
    if count == 0:
        return torch.empty(0, parts, GRID, GRID)
    fields = F.interpolate(knots, (GRID, GRID), mode="bicubic", align_corners=True)
    fields = fields - fields.mean(dim=(2, 3), keepdim=True)
    return STEEPNESS * fields / fields.std(dim=(2, 3), keepdim=True).clamp_min(1e-6)


def part_weights(
    fields: Float[Tensor, "K G G"], parts: int, height: int, width: int
) -> Float[Tensor, "B {parts} {height} {width}"]:
    """Enlarge fields to an image's size and compute each pixel's weights, the softmax over its parts."""
    logits = fields.unflatten(0, (-1, parts))
    return F.interpolate(logits, (height, width), mode="bilinear", align_corners=True).softmax(dim=1)


def read_masks(masks: Any, rows: int, frames: int, size: tuple[int, int]) -> Shaped[Tensor, "M H W"]:
    """Check a user's masks and return them as labels or shares (float32): M is 1, B or B * T.

    Args:
        masks: `(H, W)` for all images, or `(B, H, W)` or `(B, 1, H, W)`; for videos also one for each
            frame. Several for a single image are its objects, and are joined.
        rows: B.
        frames: T.
        size: `(H, W)` of the images.

    Raises:
        ImageError: masks that are none, of another size or number, or floats outside [0, 1].
    """
    if isinstance(masks, np.ndarray):
        masks = torch.from_numpy(masks.copy())
    if not isinstance(masks, Tensor) or masks.is_complex():
        raise ImageError(f"masks must be a tensor or an array, got {type(masks).__name__}.")
    masks = masks.detach().as_subclass(Tensor)
    if masks.is_floating_point():
        masks = masks.float()
    elif masks.dtype not in (torch.bool, torch.uint8, torch.int64):
        masks = masks.long()  # torch cannot index or reduce every kind of integer
    if masks.ndim < 2 or tuple(masks.shape[-2:]) != size:
        raise ImageError(
            f"masks must be as high and wide as the images, {size[0]} x {size[1]}, got {tuple(masks.shape)}."
        )
    flat = masks.reshape(math.prod(masks.shape[:-2]), *size)
    if len(flat) not in (1, rows, rows * frames):
        if rows * frames > 1:
            raise ImageError(
                f"masks must be (H, W), (B, H, W) or (B, 1, H, W) with B = {rows}, got {tuple(masks.shape)}."
            )
        flat = flat.amax(dim=0, keepdim=True) if len(flat) else flat.new_zeros(1, *size)
    if flat.is_floating_point() and flat.device.type == "cpu":
        low, high = (float(x) for x in flat.aminmax())
        if not (low >= 0 and high <= 1):  # written so that NaN fails too
            raise ImageError(
                f"float masks must lie in [0, 1], got [{low:.3g}, {high:.3g}]. Give labels as integers."
            )
    return flat


def mask_weights(masks: Shaped[Tensor, "B H W"], parts: int) -> Float[Tensor, "B {parts} H W"]:
    """Compute each pixel's weights of its parts, with feathered edges.

    Args:
        masks: label 1 is the first part, 2 the second, and 0 (the background) the last; labels from
            `parts` on start again with the first. Floats are the first part's share, of two.
        parts: of the image.

    Raises:
        ImageError: floats for more than two parts.
    """
    if masks.is_floating_point():
        if parts != 2:
            raise ImageError(f"float masks tell two parts apart; give integer labels for {parts} parts.")
        shares = masks[:, None]
    elif parts == 2:
        shares = (masks != 0)[:, None].float()
    else:
        part = torch.where(masks == 0, parts - 1, (masks.long() - 1) % (parts - 1))
        shares = (part[:, None] == torch.arange(parts - 1, device=masks.device)[:, None, None]).float()
    shares = feather(shares)
    return torch.cat([shares, 1 - shares.sum(dim=1, keepdim=True)], dim=1).clamp_(0, 1)


def feather(shares: Float[Tensor, "B P H W"]) -> Float[Tensor, "B P H W"]:
    """Blur edges over 1 to 2 % of the short side on either side; shares farther in stay exactly 0 or 1.

    Steps that double make a kernel of any size, here a triangle, from a few sums; and quarters of
    sums of 0 and 1 are exact.
    """
    height, width = shares.shape[-2:]
    for power in range(max(1, round(math.log2(FEATHER * min(height, width))))):
        step = 2**power
        wide = F.pad(shares, (step, step, 0, 0), mode="replicate")
        shares = (wide[..., :width] + wide[..., -width:]).mul_(0.25).add_(shares, alpha=0.5)
        high = F.pad(shares, (0, 0, step, step), mode="replicate")
        shares = (high[..., :height, :] + high[..., -height:, :]).mul_(0.25).add_(shares, alpha=0.5)
    return shares


def composite(
    looks: Float[Tensor, "B P C H W"], weights: Float[Tensor, "B P H W"]
) -> Float[Tensor, "B C H W"]:
    """Join the looks of an image's parts; where a weight is 1 the pixel is exactly that look's."""
    joined = looks[:, 0] * weights[:, :1]
    for part in range(1, looks.shape[1]):
        joined.addcmul_(looks[:, part], weights[:, part : part + 1])
    return joined.clamp_(0, 1)


def unspliced(rows: Int[Tensor, " K"]) -> tuple[Int[Tensor, " B"], int]:
    """Return the rows of parameters once each, and how many parts they have."""
    once = rows.unique_consecutive()
    return once, len(rows) // max(1, len(once))
