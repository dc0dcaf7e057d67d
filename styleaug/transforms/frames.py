"""What is stylised alike: an image, one channel of it, or all frames of a video or volume."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from PIL import Image
from torch import Tensor

from styleaug.transforms.guard import Regions, regions_by
from styleaug.transforms.params import StyleParams
from styleaug.transforms.placement import put, rows_on, take, to_device
from styleaug.transforms.splice import mask_weights, part_weights, unspliced

__all__ = ["Looks", "channels_of", "frames_to_survey", "grouped", "looks_of", "put_groups", "take_groups"]

SURVEY_PIXELS = 8 * 512 * 512
"""Of a volume that does not fit one chunk, its statistics are read from so many pixels,"""
SURVEY_FRAMES = (4, 64)
"""and from at least and at most so many frames, evenly spread."""


def grouped(pixels: Shaped[Tensor, "N C H W"], frames: int, *, apart: bool) -> Shaped[Tensor, "B A T C2 H W"]:
    """View pixels as groups of frames that are stylised alike.

    Args:
        pixels: B rows of so many frames each.
        frames: T.
        apart: each channel is a grey image by itself: A is C, and C2 is 1. Otherwise A is 1.
    """
    rows = pixels.view(len(pixels) // frames, frames, *pixels.shape[1:])
    return rows.transpose(1, 2).unsqueeze(3) if apart else rows.unsqueeze(1)


def take_groups(groups: Shaped[Tensor, "B A T C H W"], picked: Int[Tensor, " K"]) -> Tensor:
    """Give the picked groups as `(K, T, C, H, W)`; they are counted row by row, channel by channel."""
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


def channels_of(images: Any) -> int:
    """Tell how many channels an image or a batch has, transparency apart."""
    if isinstance(images, Image.Image):
        return len([band for band in images.getbands() if band != "A"])
    if isinstance(images, Tensor):
        return images.shape[-3] if images.ndim > 2 else 1
    return images.shape[-1] if getattr(images, "ndim", 0) > 2 else 1


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
        """Give each pixel's weights of its parts, for these frames of the picked ones of the groups.

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
        """Tell where these frames' contrast must stay, or None if nowhere in particular."""
        if self.protect is None:
            return None
        if not isinstance(self.protect, Tensor):
            return regions_by(self.protect, images)
        masks = self.shown(self.protect, picked, frames)
        return (masks if masks.is_floating_point() else (masks > 0).float())[:, None]

    def shown(
        self, masks: Shaped[Tensor, "M H W"], picked: slice | Tensor, frames: Int[Tensor, " T"]
    ) -> Shaped[Tensor, "F H W"]:
        """Give the mask of each of these frames."""
        each = self.rows * self.frames // len(masks)
        shown = (self.groups[picked] // self.channels)[:, None] * self.frames + frames
        return masks[to_device(shown.flatten() // each, masks.device)]


def looks_of(
    params: StyleParams,
    groups: Shaped[Tensor, "B A T C H W"],
    masks: Shaped[Tensor, "M H W"] | None,
    read_codes: Callable[[Tensor], Tensor],
    *,
    spread: bool,
    protect: Shaped[Tensor, "M H W"] | Regions | None = None,
) -> Looks:
    """Lay out what was drawn for rows as what their groups get.

    Args:
        params: of the rows.
        groups: of the pixels.
        masks: for `splice="mask"`.
        read_codes: gives the codes of groups, where `params` has none.
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
        drawn = read_codes(once)[to_device(place_of, device)]
    else:
        drawn = to_device(codes.float(), device)
    frames = groups.shape[2]
    return Looks(picked, parts, drawn, strength, fields, masks, frames, channels, len(groups), protect)


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
