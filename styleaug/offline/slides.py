"""TIFF files beyond memory: which they are, and how a styled one is written, tile by tile."""

import math
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

import numpy as np
from PIL import Image

from styleaug.errors import FileError, StyleAugError, printable
from styleaug.generators.base import AbstractGenerator
from styleaug.io.scan import MAX_PIXELS, Window, parse_window
from styleaug.io.tiff import TiledReader, orientation_of, write_tiled
from styleaug.offline.tiles import TILE, check_reader, stylise_tiles
from styleaug.transforms.augment import StyleAugment
from styleaug.transforms.params import StyleParams

__all__ = ["LARGE_PIXELS", "SlideError", "is_slide", "stylise_slide"]

LARGE_PIXELS = 2**24
"""TIFF files with more are never whole in memory, if they can be styled tile by tile."""

WINDOW_SIDE = 512
"""Short side of the copy that percentiles are read from."""

_TAILS = (0.5, 99.5)
"""Percentiles that the window "auto" shows as black and white."""

BAND_BYTES = 2**28
"""How much a row of tiles may take."""

STORED_TILE = 512
"""Side of the tiles in files that are made of files without any."""


class SlideError(FileError):
    """A slide that cannot be read or stylised; of one that cannot be written it is a plain `FileError`."""


def is_slide(path: Path, generator: AbstractGenerator) -> bool:
    """Tell from its header whether a file is a TIFF that is to be styled tile by tile.

    All TIFF files are that are larger than other files may be; of those with more than `LARGE_PIXELS`
    all that can.
    """
    if path.suffix.lower() not in (".tif", ".tiff"):
        return False
    pixels = claimed_pixels(path)
    if pixels <= LARGE_PIXELS or pixels > MAX_PIXELS:
        return pixels > LARGE_PIXELS
    try:
        with TiledReader(path) as slide:
            check_reader(slide)
            return generator.margin is not None and orientation_of(slide) == 1
    except Exception:  # tifffile is missing, or reads no parts of it
        return False


def claimed_pixels(path: Path) -> float:
    """Read from a header how many pixels there are; 0 if PIL cannot read it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd tags, and its size
            with Image.open(path) as header:
                return header.width * header.height
    except Image.DecompressionBombError:
        return math.inf
    except Exception:  # what is wrong with it is told where it is read
        return 0


def stylise_slide(
    stylizer: StyleAugment,
    source: Path,
    target: Path,
    params: StyleParams,
    *,
    window: str | None = None,
    device: str = "cpu",
) -> None:
    """Write a styled copy of a TIFF of any size, in a few hundred MB of memory.

    Where the generator is one of colours, white stays as it is: glass is no tissue. The copy is tiled;
    resolution, colour profile and compression are kept. A pyramid gets its reduced levels again, each a half,
    a quarter, an eighth ... as the source's are about.

    Args:
        stylizer: see `stylise_tiles`.
        source: the TIFF.
        target: appears when it is whole. Beside it there is room for the levels, a third of its pixels.
        params: drawn for one image.
        window: of 16-bit images, as `open_image` takes it.
        device: where to stylise.

    Raises:
        SlideError: `source` cannot be read or stylised.
        FileError: `target` cannot be written.
    """
    with ExitStack() as stack:
        try:
            slide = stack.enter_context(TiledReader(source))
            side = painted_side(slide)
            shown = _range_of(slide, parse_window(window))
            painted = stylise_tiles(
                stylizer, slide, params, tile=side, value_range=shown, device=device, background=False
            )
        except StyleAugError as error:
            raise SlideError(naming(source, error)) from None
        stored = stored_side(slide, side)
        bands = _joined(blamed(painted, source), slide, side)
        levels = [stack.enter_context(Level(slide, halvings, target.parent)) for halvings in halved(slide)]
        write_tiled(
            target,
            slide.shape,
            slide.dtype,
            _cut(reduced(bands, levels), stored),
            tile=stored,
            like=slide,
            levels=[(level.size, _cut(level.bands(stored), stored)) for level in levels],
        )


def _range_of(slide: TiledReader, window: Window | None) -> tuple[float, float] | None:
    """Find the values that a window shows as black and white."""
    if window is None or slide.dtype.itemsize == 1:
        return None
    if isinstance(window, tuple):
        centre, width = window
        return centre - width / 2, centre + width / 2
    small = slide.thumbnail(min(WINDOW_SIDE, *slide.shape[:2]))
    shown = small[small[..., -1] > 0][:, :-1] if slide.alpha and small[..., -1].any() else small
    low, high = np.percentile(shown[..., : slide.shape[2] - slide.alpha], _TAILS)
    return float(low), float(max(high, low + 1))


def naming(path: Path, error: StyleAugError) -> str:
    """Say what is wrong, and with which file."""
    return str(error) if printable(path) in str(error) else f"{path}: {error}"


def blamed(tiles: Iterator[np.ndarray], source: Path) -> Iterator[np.ndarray]:
    """Pass tiles on; what goes wrong in making them is the source's fault, and not the target's."""
    try:
        yield from tiles
    except StyleAugError as error:
        raise SlideError(naming(source, error)) from None


def painted_side(slide: TiledReader) -> int:
    """Choose the side of the tiles that are painted: a row of them fits in memory."""
    row = slide.shape[1] * slide.shape[2] * slide.dtype.itemsize
    return next((side for side in (TILE, TILE // 2) if side * row <= BAND_BYTES), TILE // 4)


def stored_side(slide: TiledReader, painted: int) -> int:
    """Choose the side of the tiles in the file: the source's, if painted ones can be cut into such."""
    page = slide.page
    side = page.tilewidth if page.is_tiled and page.tilewidth == page.tilelength else STORED_TILE
    return side if side % 16 == 0 and painted % side == 0 else min(STORED_TILE, painted)


def halved(slide: TiledReader) -> list[int]:
    """Tell how often each reduced level of a pyramid has been halved, about."""
    times = (round(math.log2(slide.shape[0] / height)) for height, _ in slide.levels[1:])
    return sorted({number for number in times if number >= 1 and 2**number <= min(TILE, *slide.shape[:2])})


def _joined(tiles: Iterator[np.ndarray], slide: TiledReader, side: int) -> Iterator[np.ndarray]:
    """Join the tiles of each row, in memory that the next row takes again.

    New memory for each row would lie between what the reader keeps, and the process would grow and grow.
    """
    height, width, channels = slide.shape
    memory = np.empty((min(side, height), width, channels), slide.dtype)
    left = 0
    for tile in tiles:
        high, wide, _ = tile.shape
        memory[:high, left : left + wide] = tile
        left += wide
        if left == width:
            yield memory[:high]
            left = 0


def _cut(bands: Iterator[np.ndarray], side: int) -> Iterator[np.ndarray]:
    """Cut bands, whose heights are multiples of `side` but for the last, into tiles row by row."""
    for band in bands:
        for top in range(0, band.shape[0], side):
            for left in range(0, band.shape[1], side):
                yield band[top : top + side, left : left + side]


class Level:
    """A reduced copy, on disk until the whole image is written.

    Args:
        slide: of which it is a copy.
        halvings: 1 for half of its size, 2 for a quarter.
        folder: for a temporary file.
    """

    def __init__(self, slide: TiledReader, halvings: int, folder: Path):
        height, width, self.channels = slide.shape
        self.halvings, self.dtype = halvings, slide.dtype
        self.size = -(-height // 2**halvings), -(-width // 2**halvings)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.file: IO[bytes] = TemporaryFile(dir=folder)  # noqa: SIM115 - closed by __exit__
        except OSError as error:
            raise FileError(f"cannot write to {folder}: {error.strerror}.") from None

    def __enter__(self) -> "Level":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def bands(self, height: int) -> Iterator[np.ndarray]:
        """Give what was kept, so many rows at a time."""
        self.file.seek(0)
        for top in range(0, self.size[0], height):
            rows = min(height, self.size[0] - top)
            count = rows * self.size[1] * self.channels
            values = np.frombuffer(self.file.read(count * self.dtype.itemsize), self.dtype)
            yield values.reshape(rows, self.size[1], self.channels)


def reduced(bands: Iterator[np.ndarray], levels: list[Level]) -> Iterator[np.ndarray]:
    """Pass bands on, and keep them halved as often as each level says."""
    for band in bands:
        small, done = band, 0
        for level in levels:
            while done < level.halvings:
                small, done = halve(small), done + 1
            level.file.write(small.tobytes())
        yield band  # last, as nobody asks for more behind the last one


def halve(band: np.ndarray) -> np.ndarray:
    """Average 2 x 2 pixels; what is left over at an odd side counts twice."""
    even = np.pad(band, ((0, band.shape[0] % 2), (0, band.shape[1] % 2), (0, 0)), mode="edge")
    total = even[::2, ::2].astype(np.uint32) + even[1::2, ::2] + even[::2, 1::2] + even[1::2, 1::2]
    return ((total + 2) // 4).astype(band.dtype)
