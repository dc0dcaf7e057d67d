"""Stylise slides and other large images tile by tile, with the statistics of the whole image.

`StyleAugment` needs many times the size of an image in memory: for 6000 x 6000 pixels 2 GB with
`reinhard-rgb`, 6 GB with `photo`. `stylise_tiles` with an `ArrayReader` needs a few hundred MB.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from math import sqrt
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from styleaug.errors import ConfigError, ImageError
from styleaug.generators.base import AbstractGenerator
from styleaug.generators.shared import Forward, Place, Shared, area, paint, run_shared, weighted_mean
from styleaug.images import Uncovered, as_unit
from styleaug.io.tiff import MOST_TIFF_PIXELS
from styleaug.transforms.augment import StyleAugment
from styleaug.transforms.guard import Preserve
from styleaug.transforms.painting import Painter, strength_under
from styleaug.transforms.params import StyleParams

__all__ = ["ArrayReader", "Reader", "stylise_tiles"]

TILE = 1024
"""Side of a tile in pixels."""

_SURVEY_PIXELS = 2**24
"""Most pixels from which statistics are read; a smaller image is read whole."""

SURVEY_SIDE = 64
"""Side in pixels of the smallest view for statistics; many small views represent an image best."""

CHUNK_PIXELS = 2**20
"""Most pixels of views that a generator gets at a time."""

WHOLE_SIDE = 512
"""Short side in pixels of the reduced copy, for generators that look at the whole image."""


class Reader(Protocol):
    """An image of which any part can be read: `TiledReader`, or `ArrayReader` for arrays."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return `(H, W, C)`."""
        ...

    @property
    def dtype(self) -> np.dtype:
        """Return the dtype of the pixels."""
        ...

    @property
    def alpha(self) -> bool:
        """Return True if the last channel is transparency."""
        ...

    def read(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        """Return a part `(height, width, C)`."""
        ...

    def thumbnail(self, short_side: int) -> np.ndarray:
        """Return the reduced image `(h, w, C)`; its short side is at least `short_side`, if possible."""
        ...


@dataclass(frozen=True)
class ArrayReader:
    """Read parts of an array, which may be a memory map.

    Args:
        pixels: `(H, W, C)`.
        alpha: True if the last channel is transparency.
    """

    pixels: np.ndarray
    alpha: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return `(H, W, C)`."""
        height, width, channels = self.pixels.shape
        return height, width, channels

    @property
    def dtype(self) -> np.dtype:
        """Return the dtype of the pixels."""
        return self.pixels.dtype

    def read(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        """Return a view of a part, `(height, width, C)`."""
        return self.pixels[top : top + height, left : left + width]

    def thumbnail(self, short_side: int) -> np.ndarray:
        """Return the image reduced by averaging squares of pixels, one row of squares at a time."""
        step = max(1, min(self.pixels.shape[:2]) // short_side)
        high, wide = (size // step for size in self.pixels.shape[:2])
        whole = self.pixels[: high * step, : wide * step].reshape(high, step, wide, step, -1)
        return np.stack([row.mean(axis=(0, 2)) for row in whole]).round().astype(self.dtype)


def stylise_tiles(
    stylizer: StyleAugment,
    reader: Reader,
    params: StyleParams,
    *,
    tile: int = TILE,
    survey: int = _SURVEY_PIXELS,
    value_range: tuple[float, float] | None = None,
    device: str | torch.device = "cpu",
    background: bool = True,
) -> Iterator[np.ndarray]:
    """Stylise one image of any size, and yield it tile by tile, row by row.

    The generator's statistics of the content are read once for all tiles, so tiles fit together. Each tile
    is painted with as many surrounding pixels as the generator needs. The result is that of the whole
    image, except that the statistics come from at most `survey` pixels: from the whole image if it is
    smaller, else from small views spread evenly over it, the same in every call. Background, such as the
    glass of a slide, counts as for an image styled whole, unless `background` is False.

    Args:
        stylizer: a transform without splice and without styles from the batch.
        reader: reader of a grey or colour image, uint8 or uint16. Transparency is kept, and hidden pixels do
            not count.
        params: parameters drawn for one image.
        tile: side of a tile in pixels, a multiple of 16. Tiles at the right and lower border may be smaller.
        survey: most pixels from which statistics are read. They stay in memory, 3 bytes each for 8-bit
            colour, and pass through the network once for each normalisation, about fifteen times.
        value_range: values of black and white; None uses the stylizer's.
        device: device on which to stylise.
        background: False keeps nearly white pixels, and excludes them from the statistics, if the generator
            supports it; see `on_tissue` of a generator.

    Returns:
        An iterator of tiles `(h, w, C)`, of the reader's dtype.

    Raises:
        ImageError: the pixels are of another kind, or more than `MOST_TIFF_PIXELS`.
        ConfigError: the generator must see an image whole, or the stylizer or tile is not as above.

    Example:
        >>> with TiledReader("slide.tif") as slide:  # doctest: +SKIP
        ...     tiles = stylise_tiles(stylizer, slide, stylizer.draw(1), tile=512)
        ...     write_tiled("styled.tif", slide.shape, slide.dtype, tiles, tile=512, like=slide)
    """
    check_reader(reader)
    device = torch.device(device)
    generator = stylizer.generator_on(device)
    if not background and generator.tissue is not None:
        generator = generator.on_tissue()
    value_range = value_range or known_range(stylizer)
    check_style(generator, params, tile)
    if stylizer.preserve != Preserve():
        raise ConfigError("preserve needs an image whole; leave it out for an image in tiles.")
    if stylizer.bands is not None:
        raise ConfigError("bands needs an image whole; leave it out for an image in tiles.")
    cores = tiles_of(reader.shape, tile)
    if len(params["rows"]) == 0:
        return (np.array(reader.read(*core)) for core in cores)
    assert params["codes"] is not None
    uncovered = Uncovered(reader) if reader.alpha else None
    style = params["codes"].float().to(device), params["strength"].float().to(device)
    painting = Painting(stylizer, generator, value_range, uncovered or reader, *style)
    painted = painting.tiles(cores, survey)
    return uncovered.covered(painted, cores) if uncovered else painted


def check_reader(reader: Reader) -> None:
    """Check that an image can be stylised, before it is read."""
    height, width, channels = reader.shape
    if height * width > MOST_TIFF_PIXELS:
        raise ImageError(
            f"an image of {width} x {height} pixels is over {MOST_TIFF_PIXELS:,}; cut it into parts."
        )
    if reader.dtype not in (np.uint8, np.uint16):
        raise ImageError(f"an image in tiles must be uint8 or uint16, got {reader.dtype}; convert it.")
    if channels - reader.alpha not in (1, 3):
        raise ImageError(f"an image in tiles must be grey or RGB, got {channels} channels; convert it.")


def known_range(stylizer: StyleAugment) -> tuple[float, float] | None:
    """Return the value range of a stylizer; it must not depend on the image."""
    if stylizer.value_range == "auto":
        raise ConfigError('an image in tiles needs a known range; give value_range=(low, high), not "auto".')
    return stylizer.value_range


def check_style(generator: AbstractGenerator, params: StyleParams, tile: int) -> None:
    """Check that generator and parameters work tile by tile."""
    if generator.margin is None:
        raise ConfigError(
            f"{generator.name!r} must see an image whole, and this one is too large for that. "
            "Use a generator of colours, photo or adain, or cut the image into parts."
        )
    step = max(16, generator.multiple)
    if tile < step or tile % step:
        raise ConfigError(f"the tiles of {generator.name!r} must be multiples of {step}, got {tile}.")
    if params["codes"] is None or len(params["rows"]) > 1:
        raise ConfigError("an image in tiles takes one style; leave out splice and channels, name a bank.")


_Box = tuple[int, int, int, int]
"""Top, left, height and width in pixels."""

Chunk = tuple[np.ndarray, list[Place]]
"""Views `(V, H, W, C)` and their places."""


def tiles_of(shape: tuple[int, int, int], tile: int) -> list[_Box]:
    """Return the boxes of the tiles of an image, row by row."""
    height, width, _ = shape
    return [
        (top, left, min(tile, height - top), min(tile, width - left))
        for top in range(0, height, tile)
        for left in range(0, width, tile)
    ]


def views_of(height: int, width: int, margin: int, step: int, most: int) -> tuple[int, int, list[Place]]:
    """Choose views for the statistics of a large image: their height, width and places.

    Each cell of a grid has one view at a random position, so that views do not line up with a regular pattern
    in the image, such as a scanner's fields.

    Args:
        height: rows of the image.
        width: columns of the image.
        margin: pixels at each side of a view that do not count.
        step: places and sizes are multiples of this.
        most: most pixels in all views, fewer than in the image.
    """
    side = ceil_to(max(SURVEY_SIDE, 2 * margin), step) + 2 * margin
    high, wide = min(side, height), min(side, width)
    count = max(1, most // (high * wide))
    rows = max(1, min(height // high, round(sqrt(count * height / width))))
    columns = max(1, min(width // wide, count // rows))
    rng = random.Random(0)
    places = []
    for row in range(rows):
        # The views of a row start at the same line, so that each strip is decoded only once.
        top = place_in(row, rows, height, high, step, rng)
        for column in range(columns):
            left = place_in(column, columns, width, wide, step, rng)
            (first, last), (begin, end) = (
                _inside(top, height, high, margin),
                _inside(left, width, wide, margin),
            )
            places.append(Place(top, left, height, width, (first, begin, last, end)))
    return high, wide, places


def ceil_to(value: int, step: int) -> int:
    """Round up to a multiple of `step`."""
    return -(-value // step) * step


def place_in(index: int, cells: int, length: int, view: int, step: int, rng: random.Random) -> int:
    """Choose the start of a view in its cell."""
    room = length / cells - view
    return min(int(index * length / cells + rng.random() * max(0, room)), length - view) // step * step


def _inside(start: int, length: int, view: int, margin: int) -> tuple[int, int]:
    """Return the part of a view without its margin; at the border of the image there is no margin."""
    end = start + view
    return (start + margin if start else 0), (end - margin if end < length else length)


@dataclass(frozen=True)
class Painting:
    """One image in one style, painted tile by tile."""

    transform: StyleAugment
    generator: AbstractGenerator
    value_range: tuple[float, float] | None
    reader: Reader
    code: Float[Tensor, "1 S"]
    strength: Float[Tensor, " 1"]

    def tiles(self, boxes: list[_Box], most: int) -> Iterator[np.ndarray]:
        """Read the statistics, then yield the painted tiles."""
        with torch.inference_mode(), torch.autocast(self.code.device.type, enabled=False):
            shared = self.survey(most)
        for box in boxes:
            # Not around the yield, because the modes would stay on in the caller.
            with torch.inference_mode(), torch.autocast(self.code.device.type, enabled=False):
                tile = self.paint(box, shared)
            yield tile

    def survey(self, most: int) -> Shared:
        """Read the statistics of the whole image, one after the other; each depends on earlier ones."""
        generator, (height, width, _) = self.generator, self.reader.shape
        chunks = list(self.all_of_it() if height * width <= most else self.some_of_it(most))
        whole = cache(lambda: self.seen(self.reader.thumbnail(min(height, width, WHOLE_SIDE))[None]))
        shared = Shared(generator.name, tiled=True)
        total = sum(area(place.core) for _, places in chunks for place in places if place.core)
        strength = strength_under(self.transform.blend, self.strength)
        while True:
            found, areas = [], []
            for views, places in chunks:
                size, known = views.shape[1:3], bool(shared.values)
                forward = _Step(shared, known, 1, size, places, whole=whole, total=total)
                try:
                    run_shared(generator, self.seen(views), self.code, strength, forward)
                except Found as stopped:
                    found.append(stopped.values)
                    areas.append(forward.area if forward.counted is None else forward.counted)
                else:
                    return shared
            pooled = (weighted_mean(torch.cat(values), areas) for values in zip(*found, strict=True))
            shared.values.append(tuple(pooled))

    def all_of_it(self) -> Iterator[Chunk]:
        """Yield views of the whole image, with their margins."""
        height, width, _ = self.reader.shape
        for top, left, high, wide in tiles_of(self.reader.shape, TILE):
            first, begin, tall, broad = self.around((top, left, high, wide))
            core = top, left, top + high, left + wide
            part = np.array(self.reader.read(first, begin, tall, broad))
            yield part[None], [Place(first, begin, height, width, core)]

    def some_of_it(self, most: int) -> Iterator[Chunk]:
        """Yield views spread over the image."""
        generator, (height, width, _) = self.generator, self.reader.shape
        high, wide, places = views_of(height, width, generator.margin or 0, generator.multiple, most)
        together = max(1, CHUNK_PIXELS // (high * wide))
        for start in range(0, len(places), together):
            part = places[start : start + together]
            yield np.stack([self.reader.read(place.top, place.left, high, wide) for place in part]), part

    def around(self, box: _Box) -> _Box:
        """Return the box of a tile with its margin, inside the image."""
        (top, left, high, wide), (height, width, _) = box, self.reader.shape
        margin = self.generator.margin or 0
        first, begin = max(0, top - margin), max(0, left - margin)
        last, end = min(height, top + high + margin), min(width, left + wide + margin)
        return first, begin, last - first, end - begin

    def paint(self, box: _Box, shared: Shared) -> np.ndarray:
        """Paint a tile with its margin, and return it without."""
        (top, left, high, wide), (height, width, _) = box, self.reader.shape
        first, begin, tall, broad = self.around(box)
        part = self.reader.read(first, begin, tall, broad)
        painter: Painter = partial(
            paint, self.generator, shared=shared, places=[Place(first, begin, height, width)]
        )
        unit, back = as_unit(self.pixels(part[None]), self.value_range)
        styled = back(self.transform.wrapped(painter, least_side=1)(unit, self.code, self.strength))
        inner = slice(top - first, top - first + high), slice(left - begin, left - begin + wide)
        colours = styled[0, :, *inner].permute(1, 2, 0).cpu().numpy()
        return np.concatenate([colours, part[*inner, -1:]], axis=2) if self.reader.alpha else colours

    def pixels(self, parts: Shaped[np.ndarray, "V H W C"]) -> Shaped[Tensor, "V C H W"]:
        """Return grey or colour pixels, without transparency, on the device."""
        channels = parts.shape[3] - self.reader.alpha
        values = np.ascontiguousarray(parts[..., :channels].transpose(0, 3, 1, 2))
        return torch.from_numpy(values).to(self.code.device)

    def seen(self, parts: Shaped[np.ndarray, "V H W C"]) -> Float[Tensor, "V 3 H W"]:
        """Return parts as input of a generator: RGB in [0, 1]."""
        unit, _ = as_unit(self.pixels(parts), self.value_range)
        return unit.expand(-1, 3, -1, -1)


class Found(Exception):
    """Carries a statistic out of a forward, whose remaining work is not needed."""

    def __init__(self, values: tuple[Tensor, ...]):
        super().__init__()
        self.values = values


@dataclass
class _Step(Forward):
    """A forward that uses the known statistics and stops at the first unknown one."""

    def recall(self, rows: int) -> tuple[Tensor, ...]:
        """Return the next known statistics, and note whether more are known."""
        values = super().recall(rows)
        self.painting = self.used < len(self.shared.values)
        return values

    def record(self, rows: int, *values: Tensor) -> tuple[Tensor, ...]:
        """Stop: raise the statistics as `Found`."""
        raise Found(values)

    @property
    def area(self) -> int:
        """Return the number of pixels that the views represent, with the generator's padding."""
        height, width = map(self.padded, self.size)
        return sum(map(area, self.boxes((height, width))))
