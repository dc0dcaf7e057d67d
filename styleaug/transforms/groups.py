"""Images that take more than the plain way: frames, spliced images, masks, channels of their own.

A group is what is styled as one: an image, one channel of it, or all frames of a video or volume. Pixels are
viewed as groups `(B, A, T, C, H, W)`: B rows, A groups a row, T frames a group.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from styleaug.generators.base import AbstractGenerator
from styleaug.generators.shared import Shared, paint, survey, together
from styleaug.images import ValueRange, as_unit, range_of
from styleaug.transforms.blends import Blend
from styleaug.transforms.guard import (
    Preserve,
    Regions,
    keep_faces,
    protect_regions,
    pull,
    read_structure,
    regions_by,
    still_tier,
)
from styleaug.transforms.painting import Painter, enlarge, strength_under
from styleaug.transforms.params import StyleParams
from styleaug.transforms.placement import put, rows_on, run_of, take, to_device
from styleaug.transforms.splice import composite, mask_weights, part_weights, unspliced

__all__ = ["frames_to_survey", "paint_groups"]

SURVEY_PIXELS = 8 * 512 * 512
"""Pixels from which the statistics of a volume are read that does not fit one chunk."""
SURVEY_FRAMES = (4, 64)
"""The least and the most frames that they are read from, evenly spread."""


class Options(Protocol):
    """What painting groups asks of a transform."""

    value_range: ValueRange
    least_side: int
    preserve: Preserve
    blend: Blend | None
    compiled: bool

    def generator_on(self, device: torch.device) -> AbstractGenerator: ...

    def bare_on(self, device: torch.device) -> Painter: ...

    def wrapped(self, painter: Painter, *, guard: bool = True) -> Painter: ...


def paint_groups(
    options: Options,
    pixels: Shaped[Tensor, "N C H W"],
    params: StyleParams,
    *,
    frames: int,
    apart: bool,
    spread: bool,
    masks: Shaped[Tensor, "M H W"] | None,
    seen: int,
    chunk: int,
) -> Tensor:
    """Style the picked groups in a copy of `pixels`, a chunk at a time.

    Args:
        options: the transform.
        pixels: B rows of T frames each.
        params: of the rows.
        frames: T.
        apart: each channel is a grey image by itself.
        spread: a row's draw is that of all its channels; otherwise each channel has its own.
        masks: of `splice="mask"` and `protect="mask"`: one for all, one a row, or one a frame.
        seen: pixels of an image as the generator sees it.
        chunk: how many images fit at a time.
    """
    generator = options.generator_on(pixels.device)
    source = grouped(pixels, frames, apart=apart)
    by_mask, kept = params["fields"] is None and unspliced(params["rows"])[1] > 1, options.preserve.protect
    read = partial(read_codes, options, generator, source, most=chunk)
    looks = looks_of(
        params,
        source,
        masks if by_mask else None,
        read,
        spread=spread,
        protect=masks if kept == "mask" else None if kept == "faces" else kept,
    )
    # Where every group is styled nothing of the input is left to copy.
    everything = run_of(looks.groups) == slice(0, source.shape[0] * source.shape[1])
    result = torch.empty_like(pixels) if everything else pixels.clone()
    target = grouped(result, frames, apart=apart)
    most = max(1, chunk // looks.parts)
    views = frames_to_survey(frames, pixels, seen) if frames > most else None
    with torch.inference_mode(not (options.compiled or torch.is_grad_enabled())):
        if views is None or len(views) == frames:
            for numbers in torch.arange(len(looks.groups)).split(max(1, most // frames)):
                paint_chunk(options, generator, source, target, looks, numbers)
        else:
            for number in range(len(looks.groups)):
                paint_volume(options, generator, source, target, looks, number, views, most)
    return result


def grouped(pixels: Shaped[Tensor, "N C H W"], frames: int, *, apart: bool) -> Shaped[Tensor, "B A T C2 H W"]:
    """View pixels as groups of frames that are styled as one.

    Args:
        pixels: B rows of T frames each.
        frames: T.
        apart: each channel is a grey image by itself: A is C, and C2 is 1. Otherwise A is 1.
    """
    rows = pixels.view(len(pixels) // frames, frames, *pixels.shape[1:])
    return rows.transpose(1, 2).unsqueeze(3) if apart else rows.unsqueeze(1)


def take_groups(groups: Shaped[Tensor, "B A T C H W"], picked: Int[Tensor, " K"]) -> Tensor:
    """Return the picked groups as `(K, T, C, H, W)`; they are counted row by row, channel by channel."""
    channels = groups.shape[1]
    if channels == 1:
        return take(groups[:, 0], rows_on(picked, groups.device))
    picked = to_device(picked, groups.device)
    return take(groups, (picked // channels, picked % channels))


def put_groups(
    groups: Shaped[Tensor, "B A T C H W"], picked: Int[Tensor, " K"], values: Shaped[Tensor, "K T C H W"]
) -> None:
    """Write the picked groups in place."""
    channels = groups.shape[1]
    if channels == 1:
        put(groups[:, 0], rows_on(picked, groups.device), values)
        return
    picked = to_device(picked, groups.device)
    if groups.dtype == torch.uint16:  # torch cannot index it everywhere
        groups, values = groups.view(torch.int16), values.view(torch.int16)
    groups[picked // channels, picked % channels] = values


@dataclass(frozen=True)
class Looks:
    """What each picked group gets: K groups of P parts."""

    groups: Int[Tensor, " K"]
    parts: int
    codes: Float[Tensor, "E S"]
    """On the images' device; E = K * P, the parts of a group in succession."""

    strength: Float[Tensor, " E"]
    fields: Float[Tensor, "E G G"] | None
    masks: Shaped[Tensor, "M H W"] | None
    frames: int
    """T."""

    channels: int
    """How many groups a row has."""

    rows: int
    protect: Shaped[Tensor, "M H W"] | Regions | None = None

    def weights(
        self, picked: slice | Tensor, frames: Int[Tensor, " T"] | None, size: tuple[int, int]
    ) -> Float[Tensor, "F P H W"] | None:
        """Compute each pixel's weights of its parts, for these frames of the picked groups.

        Args:
            picked: numbers of groups among the K.
            frames: their frames; None is all of them.
            size: of the images.

        Returns:
            `(K * T, P, H, W)`, or None where nothing is spliced.
        """
        if self.masks is None and self.fields is None:
            return None
        device = self.codes.device
        frames = torch.arange(self.frames) if frames is None else frames
        if self.masks is not None:
            return mask_weights(self.shown(self.masks, picked, frames), self.parts)
        assert self.fields is not None
        fields = self.fields.unflatten(0, (-1, self.parts))[picked].flatten(0, 1)
        weights = part_weights(to_device(fields, device), self.parts, *size)
        return weights.repeat_interleave(len(frames), dim=0)

    def regions(
        self, images: Float[Tensor, "F C H W"], picked: slice | Tensor, frames: Int[Tensor, " T"]
    ) -> Float[Tensor, "F 1 H W"] | None:
        """Find where these frames' contrast must stay; None if nowhere in particular."""
        if self.protect is None:
            return None
        if not isinstance(self.protect, Tensor):
            return regions_by(self.protect, images)
        masks = self.shown(self.protect, picked, frames)
        return (masks if masks.is_floating_point() else (masks > 0).float())[:, None]

    def shown(
        self, masks: Shaped[Tensor, "M H W"], picked: slice | Tensor, frames: Int[Tensor, " T"]
    ) -> Shaped[Tensor, "F H W"]:
        """Return the mask of each of these frames."""
        each = self.rows * self.frames // len(masks)
        shown = (self.groups[picked] // self.channels)[:, None] * self.frames + frames
        return masks[to_device(shown.flatten() // each, masks.device)]


def looks_of(
    params: StyleParams,
    groups: Shaped[Tensor, "B A T C H W"],
    masks: Shaped[Tensor, "M H W"] | None,
    read: Callable[[Tensor], Tensor],
    *,
    spread: bool,
    protect: Shaped[Tensor, "M H W"] | Regions | None = None,
) -> Looks:
    """Lay out what was drawn for rows as what their groups get.

    Args:
        params: of the rows.
        groups: of the pixels.
        masks: for `splice="mask"`.
        read: reads the codes of groups, where `params` has none.
        spread: each row's draw is that of all its channels; otherwise each group is a row.
        protect: masks, or a function, of where contrast stays.
    """
    rows, parts = unspliced(params["rows"])
    strength, fields, codes = params["strength"].float(), params["fields"], params["codes"]
    sources = params["sources"][:, 0] if codes is None else None
    picked, channels, device = rows, groups.shape[1], groups.device
    if spread and channels > 1:
        entries = torch.arange(len(rows) * parts).view(-1, parts).repeat_interleave(channels, dim=0).flatten()
        channel = torch.arange(channels).repeat(len(rows))
        picked = rows.repeat_interleave(channels) * channels + channel
        strength, fields = strength[entries], None if fields is None else fields[entries]
        codes = None if codes is None else codes[entries]
        if sources is not None:  # each channel takes the style of the same channel
            sources = sources[entries] * channels + channel.repeat_interleave(parts)
    if codes is None:
        assert sources is not None
        once, place_of = sources.unique(return_inverse=True)
        drawn = read(once)[to_device(place_of, device)]
    else:
        drawn = to_device(codes.float(), device)
    frames = groups.shape[2]
    return Looks(picked, parts, drawn, strength, fields, masks, frames, channels, len(groups), protect)


def read_codes(
    options: Options,
    generator: AbstractGenerator,
    groups: Shaped[Tensor, "B A T C H W"],
    sources: Int[Tensor, " K"],
    *,
    most: int,
) -> Float[Tensor, "K S"]:
    """Read the styles of groups, `most` at a time; of a volume that of the frame in its middle."""
    middle = groups.shape[2] // 2
    codes = []
    for part in sources.split(most):
        images = take_groups(groups[:, :, middle : middle + 1], part)
        unit, _ = as_unit(images, range_of(images, options.value_range))
        seen = unit[:, 0].expand(-1, 3, -1, -1)
        codes.append(generator.encode_style(enlarge(seen, options.least_side, generator.minimum)))
    return torch.cat(codes)


def paint_chunk(
    options: Options,
    generator: AbstractGenerator,
    source: Shaped[Tensor, "B A T C H W"],
    target: Shaped[Tensor, "B A T C H W"],
    looks: Looks,
    chunk: Int[Tensor, " K"],
) -> None:
    """Style some of the groups, whose frames fit into memory at once."""
    groups, frames, parts = looks.groups[chunk], source.shape[2], looks.parts
    pixels = take_groups(source, groups)
    unit, back = as_unit(pixels, range_of(pixels, options.value_range))
    entries = slice(int(chunk[0]) * parts, (int(chunk[-1]) + 1) * parts)
    bare = partial(together, generator) if frames > 1 else options.bare_on(pixels.device)
    painted = paint_parts(options.wrapped(bare), unit, looks.codes[entries], looks.strength[entries])
    weights = looks.weights(chunk, None, (unit.shape[-2], unit.shape[-1]))
    styled = painted[:, 0] if weights is None else composite(painted, weights)
    regions = looks.regions(unit.flatten(0, 1), chunk, torch.arange(frames))
    if regions is not None:
        styled = protect_regions(unit.flatten(0, 1), styled, regions, frames=frames)
    if options.preserve.protect == "faces":
        styled = keep_faces(unit.flatten(0, 1), styled)
    put_groups(target, groups, back(styled.reshape(pixels.shape)))


def paint_parts(
    painter: Painter,
    groups: Float[Tensor, "K T C H W"],
    codes: Float[Tensor, "E S"],
    strength: Float[Tensor, " E"],
) -> Float[Tensor, "F P C H W"]:
    """Paint each frame once for each of its parts; parts of strength 0 cost nothing."""
    device, (count, frames) = groups.device, groups.shape[:2]
    parts = len(codes) // count
    if parts == 1:
        return painter(groups.flatten(0, 1), codes, to_device(strength, device))[:, None]
    painted = groups.repeat_interleave(parts, dim=0)
    loud = strength.nonzero()[:, 0]
    if len(loud):
        place, strength = to_device(loud, device), to_device(strength[loud], device)
        styled = painter(painted[place].flatten(0, 1), codes[place], strength)
        painted.index_copy_(0, place, styled.unflatten(0, (-1, frames)))
    return painted.unflatten(0, (-1, parts)).transpose(1, 2).flatten(0, 1)


def paint_volume(
    options: Options,
    generator: AbstractGenerator,
    source: Shaped[Tensor, "B A T C H W"],
    target: Shaped[Tensor, "B A T C H W"],
    looks: Looks,
    number: int,
    views: Int[Tensor, " V"],
    most: int,
) -> None:
    """Style one of the groups, `most` frames at a time; the statistics of `views` are those of all."""
    device, parts = source.device, looks.parts
    place = divmod(int(looks.groups[number]), source.shape[1])
    volume, result = source[place], target[place]
    value_range = range_of(volume[None], options.value_range)
    seen, _ = as_unit(take(volume, to_device(views, device))[None], value_range)
    entries = range(number * parts, (number + 1) * parts)
    style = [(looks.codes[at : at + 1], to_device(looks.strength[at : at + 1], device)) for at in entries]
    own = slice(number, number + 1)
    still = [parts > 1 and not looks.strength[at] for at in entries]
    painters = [
        None if s else volume_painter(options, generator, seen[0], *each)
        for s, each in zip(still, style, strict=True)
    ]

    def painted(images: Tensor, frames: Tensor) -> Tensor:
        each = [
            images if painter is None else painter(images, *one)
            for painter, one in zip(painters, style, strict=True)
        ]
        weights = looks.weights(own, frames, (images.shape[-2], images.shape[-1]))
        return each[0] if weights is None else composite(torch.stack(each, dim=1), weights)

    tier = None if looks.protect is None else still_tier(seen[0], painted(seen[0], views), frames=len(views))
    for part in torch.arange(len(volume)).split(most):
        rows = slice(int(part[0]), int(part[-1]) + 1)
        unit, back = as_unit(volume[rows][None], value_range)
        styled, regions = painted(unit[0], part), looks.regions(unit[0], own, part)
        if regions is not None:
            styled = protect_regions(unit[0], styled, regions, tier=tier, frames=len(part))
        if options.preserve.protect == "faces":
            styled = keep_faces(unit[0], styled)
        result[rows] = back(styled[None])[0]


def volume_painter(
    options: Options,
    generator: AbstractGenerator,
    views: Float[Tensor, "V C H W"],
    code: Float[Tensor, "1 S"],
    strength: Float[Tensor, " 1"],
) -> Painter:
    """Return a painter for any frames of a volume: statistics and guard are those of `views`."""
    with torch.no_grad():
        large = enlarge(views.expand(-1, 3, -1, -1), options.least_side, generator.minimum)
        shared = survey(generator, large, code, strength_under(options.blend, strength))
    painter = options.wrapped(partial(paint_shared, generator, shared), guard=False)
    floor = options.preserve.floor
    if floor is None:
        return painter
    bare = painter(views, code, strength)
    hold = read_structure(views, bare, floor=floor, frames=len(views))
    return lambda images, codes, strengths: pull(images, painter(images, codes, strengths), *hold)


def paint_shared(
    generator: AbstractGenerator, shared: Shared, images: Tensor, codes: Tensor, strength: Tensor
) -> Tensor:
    """Paint images with statistics that were read before."""
    return paint(generator, images, codes, strength, shared)


def frames_to_survey(count: int, pixels: Shaped[Tensor, "N C H W"], seen: int) -> Int[Tensor, " V"]:
    """Choose evenly spread frames of a volume, as many as its statistics are read from.

    Args:
        count: of the frames.
        pixels: the frames.
        seen: pixels of a frame as the generator sees it. They count where it is thin and much enlarged.
    """
    least, most = SURVEY_FRAMES
    own = pixels.shape[-1] * pixels.shape[-2]
    views = min(count, most, max(least, SURVEY_PIXELS // (own if seen * most <= 2 * SURVEY_PIXELS else seen)))
    return ((torch.arange(views) + 0.5) * (count / views)).long()
