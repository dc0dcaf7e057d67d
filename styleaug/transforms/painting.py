"""How images are painted: options of a transform as wrappers of a generator's own signature.

A painter maps images `(K * T, C, H, W)` in [0, 1], codes `(K, S)` and strength `(K,)` to images of the same
shape. A generator is one. Each function here takes a painter and returns another one, so what a transform
does to an image is read from the inside out:

    painter = finite(generator, "adain")               # damage is an error, not a black image
    painter = enlarged(painter, 128, 16)               # small images are shown larger
    painter = blended(painter, "soft-light")           # laid over the image
    painter = banded(painter, "low")                   # light and colour without texture
    painter = coloured(painter)                        # grey in, grey out
    painter = guarded(painter, 0.9)                    # structure comes back where it is lost
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from styleaug.generators.base import check_finite, mixed
from styleaug.images import luminance
from styleaug.transforms.bands import Bands, low_pass
from styleaug.transforms.blends import BLENDS, Blend
from styleaug.transforms.guard import keep_structure

__all__ = [
    "Painter",
    "area_seen",
    "banded",
    "blended",
    "coloured",
    "enlarge",
    "enlarged",
    "finite",
    "guarded",
    "size_from",
    "strength_under",
]

MOST_SEEN = 2**19
"""Pixels to which an image is enlarged or padded: 128 x 4096, a few hundred megabytes in a network."""

MOST_SQUARES = 8
"""The same for a least side above 256, in squares of it: panoramas of 8 to 1 are enlarged whole."""

MOST_PADDED = 4
"""How many times the image's own pixels a generator may pad it to, if those are more."""

Painter = Callable[[Tensor, Tensor, Tensor], Tensor]
"""`(images, codes, strength) -> images`; T frames in succession share a code and a strength."""


def coloured(painter: Painter) -> Painter:
    """Let a painter of colour images take grey ones, too."""

    def paint(images: Tensor, codes: Tensor, strength: Tensor) -> Tensor:
        styled = painter(images.expand(-1, 3, -1, -1), codes, strength)
        return luminance(styled) if images.shape[1] == 1 else styled

    return paint


def blended(painter: Painter, blend: Blend) -> Painter:
    """Lay the full style over the image by a blend mode; the strength is its opacity. See `blends`."""

    def paint(images: Tensor, codes: Tensor, strength: Tensor) -> Tensor:
        styled = painter(images, codes, strength_under(blend, strength))
        opacity = strength.repeat_interleave(len(images) // len(strength))
        return mixed(images, BLENDS[blend](images, styled), opacity)

    return paint


def banded(painter: Painter, bands: Bands) -> Painter:
    """Keep the low or the high frequencies of what changes; the other ones stay the image's. See `bands`."""

    def paint(images: Tensor, codes: Tensor, strength: Tensor) -> Tensor:
        change = painter(images, codes, strength) - images
        low = low_pass(change)
        return (images + (low if bands == "low" else change - low)).clamp(0, 1)

    return paint


def strength_under(blend: Blend | None, strength: Tensor) -> Tensor:
    """Return the strength that the generator gets: all of it under a blend mode."""
    return strength if blend is None else torch.ones_like(strength)


def finite(painter: Painter, name: str) -> Painter:
    """Refuse what is not finite, as damaged weights and codes give it; `name` is the generator's."""

    def paint(images: Tensor, codes: Tensor, strength: Tensor) -> Tensor:
        styled = painter(images, codes, strength)
        check_finite(styled, name)
        return styled

    return paint


def enlarged(painter: Painter, least_side: int, minimum: int) -> Painter:
    """Show images at the size of `size_from`, and resize what changes, so that no image is blurred."""

    def paint(images: Tensor, codes: Tensor, strength: Tensor) -> Tensor:
        shown = enlarge(images, least_side, minimum)
        styled = painter(shown, codes, strength)
        if shown is images:
            return styled
        mode = "area" if shown[0, 0].numel() > images[0, 0].numel() else "bilinear"
        return (images + F.interpolate(styled - shown, images.shape[-2:], mode=mode)).clamp(0, 1)

    return paint


def guarded(painter: Painter, floor: float) -> Painter:
    """Return as much structure to rows as they lose too much of; see `guard.keep_structure`."""

    def paint(images: Tensor, codes: Tensor, strength: Tensor) -> Tensor:
        frames = len(images) // len(codes)
        styled = painter(images, codes, strength)
        return keep_structure(images, styled, floor=floor, frames=frames)

    return paint


def enlarge(images: Tensor, least_side: int, minimum: int) -> Tensor:
    """Return images `(F, C, H, W)` as a generator sees them; themselves if that is their own size."""
    size = size_from(images.shape[-2:], least_side, minimum)
    if size == tuple(images.shape[-2:]):
        return images
    if math.prod(size) < images[0, 0].numel():
        return F.interpolate(images, size, mode="area")
    return F.interpolate(images, size, mode="bicubic", align_corners=False).clamp(0, 1)


def size_from(size: Sequence[int], least: int, minimum: int = 1) -> tuple[int, int]:
    """Compute the height and width at which a generator sees an image: `least` or more on the shorter side.

    Args:
        size: height and width of the image.
        least: of the shorter side.
        minimum: to how many pixels the generator pads a side that has fewer.
    """
    height, width = size
    scale = max(1, least / min(size))
    most = max(MOST_SEEN, MOST_SQUARES * max(least, minimum) ** 2)
    if max(min(size) * scale, minimum) * max(size) * scale <= most:
        return round(height * scale), round(width * scale)
    return thin_size(height, width, minimum, most)


def thin_size(height: int, width: int, minimum: int, most: int) -> tuple[int, int]:
    """Compute what `size_from` does for a thin image, such as 1 x 4,000, which would have too many pixels.

    It is enlarged less, and the generator pads the rest. Where padding alone gives too many, the longer
    side is reduced. `most` is how many pixels it may have.
    """
    short, long = sorted((height, width))
    fits = math.sqrt(most / (short * long))
    scale = max(1, fits if short * fits >= minimum else most / (minimum * long))
    short, long = int(short * scale), int(long * scale)
    if short < minimum:
        long = min(long, max(most, MOST_PADDED * height * width) // minimum)
    return (short, long) if height < width else (long, short)


def area_seen(size: Sequence[int], least: int, minimum: int) -> int:
    """Count the pixels of an image as a generator sees it, those that it pads included."""
    height, width = size_from(size, least, minimum)
    return max(height, minimum) * max(width, minimum)
