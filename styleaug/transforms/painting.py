"""Run a generator on groups of frames: in parts, at any range, as colour or as grey."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from styleaug.generators.base import AbstractGenerator, check_finite
from styleaug.generators.shared import paint, survey, together
from styleaug.images import ValueRange, as_unit, luminance, range_of, with_luminance
from styleaug.transforms.frames import Looks, put_groups, take_groups
from styleaug.transforms.guard import (
    UNGUARDED,
    Guard,
    keep_structure,
    protect_regions,
    pull,
    read_structure,
    still_tier,
)
from styleaug.transforms.placement import take, to_device
from styleaug.transforms.splice import composite

__all__ = ["Brush", "Painter", "area_seen", "size_from"]

MOST_SEEN = 2**19
"""Pixels to which an image is enlarged or padded: 128 x 4096, a few hundred megabytes in a network."""

MOST_SQUARES = 8
"""The same for a least side above 256, in squares of it: panoramas of 8 to 1 are enlarged whole."""

MOST_PADDED = 4
"""How many times the image's own pixels a generator may pad it to, if those are more."""

Painter = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Maps images `(K * T, 3, H, W)`, codes `(K, S)` and strength `(K,)` to stylised images."""


@dataclass(frozen=True)
class Brush:
    """A generator on a device, and how a transform wants it run.

    Args:
        generator: not compiled.
        single: runs it on images that have no other frames: itself, or compiled.
        value_range: which values are black and white.
        keep_luminance: take over the colour only.
        guard: how much structure is kept.
        least_side: of what the generator sees; smaller images are enlarged for it.
    """

    generator: AbstractGenerator
    single: Painter
    value_range: ValueRange
    keep_luminance: bool
    guard: Guard = UNGUARDED
    least_side: int = 1

    def read_codes(
        self,
        groups: Shaped[Tensor, "B A T C H W"],
        sources: Int[Tensor, " K"],
        most: int,
    ) -> Float[Tensor, "K S"]:
        """Read the styles of groups, so many at a time; of a volume that of the frame in its middle."""
        middle = groups.shape[2] // 2
        codes = []
        for part in sources.split(most):
            images = take_groups(groups[:, :, middle : middle + 1], part)
            unit, _ = as_unit(images, range_of(images, self.value_range))
            codes.append(self.generator.encode_style(self.enlarged(unit[:, 0].expand(-1, 3, -1, -1))))
        return torch.cat(codes)

    def stylise_groups(
        self,
        source: Shaped[Tensor, "B A T C H W"],
        target: Shaped[Tensor, "B A T C H W"],
        looks: Looks,
        chunk: Int[Tensor, " K"],
    ) -> None:
        """Stylise some of the groups, whose frames fit into memory at once."""
        groups, frames, parts = looks.groups[chunk], source.shape[2], looks.parts
        pixels = take_groups(source, groups)
        unit, back = as_unit(pixels, range_of(pixels, self.value_range))
        entries = slice(int(chunk[0]) * parts, (int(chunk[-1]) + 1) * parts)
        painter = partial(together, self.generator) if frames > 1 else self.single
        codes, strength = looks.codes[entries], looks.strength[entries]
        painted = self.paint_parts(painter, unit, codes, strength)
        weights = looks.weights(chunk, None, (unit.shape[-2], unit.shape[-1]))
        styled = painted[:, 0] if weights is None else composite(painted, weights)
        regions = looks.regions(unit.flatten(0, 1), chunk, torch.arange(frames))
        if regions is not None:
            styled = protect_regions(unit.flatten(0, 1), styled, regions, frames=frames)
        put_groups(target, groups, back(styled.reshape(pixels.shape)))

    def stylise_volume(
        self,
        source: Shaped[Tensor, "B A T C H W"],
        target: Shaped[Tensor, "B A T C H W"],
        looks: Looks,
        number: int,
        views: Int[Tensor, " V"],
        most: int,
    ) -> None:
        """Stylise one of the groups, so many frames at a time; `views` speak for all of them."""
        device, parts = source.device, looks.parts
        place = divmod(int(looks.groups[number]), source.shape[1])
        volume, result = source[place], target[place]
        value_range = range_of(volume[None], self.value_range)
        seen, _ = as_unit(take(volume, to_device(views, device))[None], value_range)
        entries = range(number * parts, (number + 1) * parts)
        style = [(looks.codes[at : at + 1], to_device(looks.strength[at : at + 1], device)) for at in entries]
        own = slice(number, number + 1)
        quiet = [parts > 1 and not looks.strength[at] for at in entries]
        coats = [unpainted if q else self.coat(seen[0], *each) for q, each in zip(quiet, style, strict=True)]

        def look(images: Tensor, frames: Tensor) -> Tensor:
            painted = torch.stack([coat(images) for coat in coats], dim=1)
            weights = looks.weights(own, frames, (images.shape[-2], images.shape[-1]))
            return painted[:, 0] if weights is None else composite(painted, weights)

        tier = (
            still_tier(seen[0], look(seen[0], views), frames=len(views))
            if looks.protect is not None
            else None
        )
        for part in torch.arange(len(volume)).split(most):
            rows = slice(int(part[0]), int(part[-1]) + 1)
            unit, back = as_unit(volume[rows][None], value_range)
            styled, regions = look(unit[0], part), looks.regions(unit[0], own, part)
            if regions is not None:
                styled = protect_regions(unit[0], styled, regions, tier=tier, frames=len(part))
            result[rows] = back(styled[None])[0]

    def coat(
        self, views: Float[Tensor, "V C H W"], code: Float[Tensor, "1 S"], strength: Float[Tensor, " 1"]
    ) -> Callable[[Tensor], Tensor]:
        """Give what paints any frames of a volume alike, guarded as these frames need it."""
        painter = self.surveyed(views.expand(-1, 3, -1, -1), code, strength)
        if self.guard.floor is None:
            return lambda images: self.paint_freely(painter, images, code, strength)
        floor, count = self.guard.floor, len(views)
        bare = self.paint_freely(painter, views, code, strength)
        hold = read_structure(views, bare, floor=floor, frames=count)
        return lambda images: pull(images, self.paint_freely(painter, images, code, strength), *hold)

    def surveyed(
        self, views: Float[Tensor, "V 3 H W"], code: Float[Tensor, "1 S"], strength: Float[Tensor, " 1"]
    ) -> Painter:
        """Give a painter that goes by the statistics of these frames, whichever frames it is given."""
        with torch.no_grad():
            shared = survey(self.generator, self.enlarged(views), code, strength)
        return lambda images, codes, strength: paint(self.generator, images, codes, strength, shared)

    def paint_parts(
        self,
        painter: Painter,
        groups: Float[Tensor, "K T C H W"],
        codes: Float[Tensor, "E S"],
        strength: Float[Tensor, " E"],
    ) -> Float[Tensor, "F P C H W"]:
        """Give each frame the looks of its parts; of a spliced one those of strength 0 cost nothing."""
        device, (count, frames) = groups.device, groups.shape[:2]
        parts = len(codes) // count
        if parts == 1:
            return self.paint(painter, groups.flatten(0, 1), codes, to_device(strength, device))[:, None]
        looks = groups.repeat_interleave(parts, dim=0)
        loud = strength.nonzero()[:, 0]
        if len(loud):
            place, strength = to_device(loud, device), to_device(strength[loud], device)
            styled = self.paint(painter, looks[place].flatten(0, 1), codes[place], strength)
            looks.index_copy_(0, place, styled.unflatten(0, (-1, frames)))
        return looks.unflatten(0, (-1, parts)).transpose(1, 2).flatten(0, 1)

    def paint(
        self,
        painter: Painter,
        images: Float[Tensor, "F C H W"],
        codes: Float[Tensor, "K S"],
        strength: Float[Tensor, " K"],
    ) -> Float[Tensor, "F C H W"]:
        """Stylise colour or grey images: K groups of equally many frames."""
        styled = self.paint_freely(painter, images, codes, strength)
        floor = self.guard.floor
        if floor is None:
            return styled
        return keep_structure(images, styled, floor=floor, frames=len(images) // len(codes))

    def paint_freely(
        self,
        painter: Painter,
        images: Float[Tensor, "F C H W"],
        codes: Float[Tensor, "K S"],
        strength: Float[Tensor, " K"],
    ) -> Float[Tensor, "F C H W"]:
        """Run the generator on colour or grey images, unguarded."""
        coloured = images.expand(-1, 3, -1, -1)
        large = self.enlarged(coloured)
        styled = painter(large, codes, strength)
        check_finite(styled, self.generator.name)
        if large is not coloured:  # resized is what changed, so that no image is blurred
            mode = "area" if large.shape[-1] * large.shape[-2] > images[0, 0].numel() else "bilinear"
            change = F.interpolate(styled - large, coloured.shape[-2:], mode=mode)
            styled = (coloured + change).clamp(0, 1)
        if self.keep_luminance:
            styled = with_luminance(styled, coloured)
        return luminance(styled) if images.shape[1] == 1 else styled

    def enlarged(self, images: Float[Tensor, "F C H W"]) -> Float[Tensor, "F C H2 W2"]:
        """Give images at the size at which the generator sees them; the same object if it is their own."""
        size = size_from(images.shape[-2:], self.least_side, self.generator.minimum)
        if size == tuple(images.shape[-2:]):
            return images
        if math.prod(size) < images[0, 0].numel():
            return F.interpolate(images, size, mode="area")
        return F.interpolate(images, size, mode="bicubic", align_corners=False).clamp(0, 1)


def size_from(size: Sequence[int], least: int, minimum: int = 1) -> tuple[int, int]:
    """Compute the height and width at which a generator sees an image.

    The shorter side is enlarged to `least` pixels, if it is less. A thin image, such as 1 x 4,000, would
    have too many pixels then: it is enlarged less, and the generator pads the rest. Where padding alone
    gives too many, the longer side is reduced.

    Args:
        size: height and width of the image.
        least: of the shorter side.
        minimum: to how many pixels the generator pads a side that has fewer.
    """
    height, width = size
    short, long = sorted(size)
    scale = max(1, least / short)
    most = max(MOST_SEEN, MOST_SQUARES * max(least, minimum) ** 2)
    if max(short * scale, minimum) * long * scale <= most:
        return round(height * scale), round(width * scale)
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


def unpainted(images: Tensor) -> Tensor:
    """Give images back, as a part of strength 0 has them."""
    return images
