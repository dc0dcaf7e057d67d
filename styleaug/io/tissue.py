"""Find the tissue of a slide, and read tiles of it at a resolution in microns per pixel."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor
from torch.utils.data import Dataset

from styleaug.checks import check_count, check_number, check_share
from styleaug.errors import ConfigError, FileError
from styleaug.images import from_float, resized, to_float, to_unit
from styleaug.io.pyramid import AbstractPyramid
from styleaug.io.scan import Window
from styleaug.io.slides import open_slide, shown_range

__all__ = ["SlideTiles", "check_resolution", "tile_views", "tissue_mask"]

TISSUE_SHARE = 0.5
"""Least share of a tile that must be tissue."""

MASK_SIDES = 512, 2048
"""Least and largest short side in pixels of the reduced image in which tissue is sought."""

PER_TILE = 4
"""Pixels of the mask along a side of a tile, if there are enough."""

SATURATIONS = 0.05, 0.15
"""Least and largest threshold of saturation. Glass is below, with noise; pale tissue may be close above."""

DARK = 0.1
"""Pixels below are ink, borders or folds, whose saturation means nothing."""

MPP = 0.01, 1000.0
"""Least and largest number of microns per pixel that can be asked for."""

FINER = 0.9
"""A slide may be up to this much coarser than asked: scanners of 20x differ so much among themselves."""


class SlideTiles(Dataset[Shaped[Tensor, "C S S"]]):
    """The tiles of a slide that show tissue, row by row; a tile is read when it is asked for.

    Tissue is what is coloured: on a reduced image, pixels whose saturation is above Otsu's threshold (Otsu
    1979), which is held between 0.05 and 0.15, and which are not nearly black. Grey slides have no
    saturation, so that all their tiles count.

    Args:
        path: a slide, see `open_slide`.
        side: side of a tile in pixels.
        mpp: microns per pixel at which tiles are read. The nearest finer level is reduced to it.
        level: level of the slide's pyramid to read instead; 0 is the full size, which is the default.
        tissue: least share of a tile that must be tissue, in [0, 1]. With 0, all tiles count.

    Attributes:
        places: `(N, 2)` top and left of each tile, in pixels of the full size.
        span: side of a tile in pixels of the full size.
        mpp: microns per pixel of the tiles; None if the slide does not give them.

    Raises:
        FileError: the slide cannot be read, has no tile with enough tissue, or is coarser than `mpp`; it does
            not give its microns per pixel, and `mpp` is given; or it has no such level.
        ConfigError: a number is out of range, both `mpp` and `level` are given, or a library is missing.

    Example:
        >>> tiles = SlideTiles("slide.svs", side=224, mpp=0.5)  # doctest: +SKIP
        >>> bag = torch.stack([tiles[index] for index in range(len(tiles))])  # doctest: +SKIP
    """

    path: Path
    side: int
    wanted: float | None
    level: int | None
    reader: int

    def __init__(
        self,
        path: str | Path,
        *,
        side: int = 256,
        mpp: float | None = None,
        level: int | None = None,
        tissue: float = TISSUE_SHARE,
    ):
        self.path, self.side = Path(path), check_count("side", side)
        self.wanted, self.level = check_resolution(mpp, level)
        tissue = check_share("tissue", tissue)
        self.slide: AbstractPyramid | None = None
        self.reader = 0
        with open_slide(self.path) as slide:
            height, width, channels = slide.shape
            if channels - slide.alpha not in (1, 3):
                raise FileError(
                    f"{self.path} has {channels} channels; a style is read from 1 or 3. Save it as RGB."
                )
            step = self.step_of(slide)
            self.mpp: float | None = None if slide.mpp is None else slide.mpp * step
            self.span: float = self.side * step
            rows, columns = int(height / self.span), int(width / self.span)
            if not rows or not columns:
                raise FileError(
                    f"{self.path} has {width} x {height} pixels, less than one tile of {self.span:.0f}; ask "
                    "for smaller tiles or a finer resolution, or leave it out."
                )
            least, most = MASK_SIDES
            mask = tissue_mask(slide, min(most, max(least, PER_TILE * min(rows, columns))))
            shares = shares_of(mask, self.span * mask.shape[0] / height, (rows, columns))
        found = torch.nonzero(shares >= tissue)
        if not len(found):
            raise FileError(
                f"{self.path} has no tile with {tissue:.0%} tissue; the most is {shares.max():.0%}. "
                "Leave it out, or read it at a finer resolution, where a tile is smaller."
            )
        self.places: Tensor = (found * self.span).long()

    def step_of(self, slide: AbstractPyramid) -> float:
        """Return the number of pixels of the full size along a pixel of a tile."""
        if self.level is not None:
            if self.level >= len(slide.levels):
                raise FileError(
                    f"{self.path} has no level {self.level}; its last is {len(slide.levels) - 1}. "
                    "Give a lower level, or microns per pixel (mpp)."
                )
            return slide.shape[0] / slide.levels[self.level][0]
        if self.wanted is None:
            return 1.0
        if slide.mpp is None:
            raise FileError(
                f"{self.path} does not say its microns per pixel. Give a level in place of mpp, "
                "or leave both out to read it at its full size."
            )
        if self.wanted < FINER * slide.mpp:
            raise FileError(
                f"{self.path} has {slide.mpp:.3g} microns per pixel, coarser than {self.wanted:g}; "
                "ask for at least that, or leave it out."
            )
        return self.wanted / slide.mpp

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Shaped[Tensor, "C S S"]:
        """Read a tile, of the slide's dtype, with 1 or 3 channels."""
        top, left = self.places[index].tolist()
        if self.slide is None or self.reader != os.getpid():  # workers must not share an open file
            self.slide, self.reader = open_slide(self.path), os.getpid()
        slide = self.slide
        ratios = [slide.shape[0] / height for height, _ in slide.levels]
        step = self.span / self.side
        level = max(number for number, ratio in enumerate(ratios) if ratio <= max(1, 1.01 * step))
        tall, wide = slide.levels[level]
        size = max(1, round(self.span / ratios[level]))
        y, x = (min(round(at / ratios[level]), most - size) for at, most in ((top, tall), (left, wide)))
        pixels = slide.read(max(0, y), max(0, x), min(size, tall), min(size, wide), level=level)
        pixels = np.ascontiguousarray(pixels[..., : pixels.shape[2] - slide.alpha].transpose(2, 0, 1))
        values = torch.from_numpy(pixels)
        if values.shape[1:] == (self.side, self.side):
            return values
        return from_float(resized(values[None], (self.side, self.side)), values.dtype)[0]

    def __getstate__(self) -> dict[str, Any]:
        """Return what is sent to workers: not the open file."""
        return {**self.__dict__, "slide": None}

    def close(self) -> None:
        """Close the slide; it is opened again when the next tile is read."""
        if self.slide is not None:
            self.slide.close()
            self.slide = None


def check_resolution(mpp: float | None, level: int | None) -> tuple[float | None, int | None]:
    """Check the resolution at which slides are read.

    Raises:
        ConfigError: both are given, or one is out of range.
    """
    if mpp is not None and level is not None:
        raise ConfigError(f"give mpp or level, not both; got {mpp} and {level}.")
    return (
        None if mpp is None else check_number("mpp", mpp, *MPP),
        None if level is None else check_count("level", level, least=0),
    )


def tissue_mask(slide: AbstractPyramid, short_side: int = MASK_SIDES[0]) -> Bool[Tensor, "H W"]:
    """Return where a reduced copy of a slide shows tissue; see `SlideTiles`."""
    pixels = slide.thumbnail(min(short_side, *slide.shape[:2]))
    values = torch.from_numpy(pixels.astype(np.float32)) / float(np.iinfo(slide.dtype).max)
    shown = values[..., -1] > 0 if slide.alpha else torch.ones(values.shape[:2], dtype=torch.bool)
    colours = values[..., : values.shape[2] - slide.alpha]
    if colours.shape[2] == 1:
        return shown
    high = colours.amax(dim=2)
    saturation = (high - colours.amin(dim=2)) / high.clamp_min(1e-6)
    coloured = shown & (high > DARK)
    least, most = SATURATIONS
    threshold = otsu(saturation[coloured]) if coloured.any() else most
    return coloured & (saturation > min(most, max(least, threshold)))


def otsu(values: Float[Tensor, " N"], bins: int = 256) -> float:
    """Return the threshold in [0, 1] that divides values best into two classes (Otsu 1979)."""
    counts = torch.histc(values, bins, 0, 1).double()
    levels = (torch.arange(bins, dtype=torch.float64) + 0.5) / bins
    below, total = counts.cumsum(0), (counts * levels).cumsum(0)
    above = below[-1] - below
    between = (total * below[-1] - total[-1] * below).square() / (below * above).clamp_min(1)
    return float((between.argmax() + 1) / bins)


def shares_of(mask: Bool[Tensor, "H W"], side: float, grid: tuple[int, int]) -> Float[Tensor, "R C"]:
    """Return the share of a mask in each cell of a grid whose cells have a side of `side` pixels."""
    sums = torch.zeros(mask.shape[0] + 1, mask.shape[1] + 1, dtype=torch.float64)
    sums[1:, 1:] = mask.double().cumsum(0).cumsum(1)
    edges = []
    for count, length in zip(grid, mask.shape, strict=True):
        starts = (torch.arange(count) * side).long().clamp(0, length - 1)
        ends = ((torch.arange(count) + 1) * side).long().clamp(max=length)
        edges.append((starts, torch.maximum(ends, starts + 1)))
    (top, bottom), (left, right) = edges
    inside = sums[bottom][:, right] - sums[top][:, right] - sums[bottom][:, left] + sums[top][:, left]
    return (inside / ((bottom - top)[:, None] * (right - left))).float()


def tile_views(
    tiles: SlideTiles, count: int, together: int, window: Window | None, rng: torch.Generator
) -> Iterator[Float[Tensor, "T 3 S S"]]:
    """Yield tiles of tissue as RGB in [0, 1], drawn without repetition: at most `count` times `together`.

    Args:
        tiles: the tiles of a slide.
        count: number of views.
        together: number of tiles in a view, if the slide has so many.
        window: values of black and white for 16 bits, see `open_image`.
        rng: the random numbers.
    """
    chosen = torch.randperm(len(tiles), generator=rng)[: count * together].tolist()
    with open_slide(tiles.path) as slide:
        span = shown_range(slide, window)
    try:
        for start in range(0, len(chosen), together):
            pixels = torch.stack([tiles[index] for index in sorted(chosen[start : start + together])])
            unit = to_float(pixels) if span is None else to_unit(pixels.to(torch.float32), *span)[0]
            yield unit.expand(-1, 3, -1, -1)
    finally:
        tiles.close()
