"""Stylise TIFF files that do not fit in memory, tile by tile."""

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
from styleaug.io.scan import MAX_PIXELS, Window, parse_window
from styleaug.io.tiff import TiledReader, orientation_of, write_tiled
from styleaug.offline.tiles import TILE, check_reader, stylise_tiles
from styleaug.transforms.augment import StyleAugment
from styleaug.transforms.params import StyleParams

__all__ = ["LARGE_PIXELS", "SlideError", "is_slide", "stylise_slide"]

LARGE_PIXELS = 2**24
"""TIFF files with more pixels are styled tile by tile, if possible."""

WINDOW_SIDE = 512
"""Short side in pixels of the reduced image from which percentiles are read."""

_TAILS = (0.5, 99.5)
"""Percentiles that the window "auto" shows as black and white."""

BAND_BYTES = 2**28
"""Most bytes of a row of tiles."""

STORED_TILE = 512
"""Side in pixels of the tiles in outputs whose source has no tiles."""


class SlideError(FileError):
    """A slide that cannot be read or stylised. If it cannot be written, the error is a plain `FileError`."""


def is_slide(path: Path, *, tiled: bool) -> bool:
    """Return True if a file is a TIFF to be styled tile by tile, from its header.

    This holds for all TIFF files above the limit of other files, and for those with more than
    `LARGE_PIXELS` that can be styled in tiles: where the generators allow it, which is `tiled`.
    """
    if path.suffix.lower() not in (".tif", ".tiff"):
        return False
    pixels = claimed_pixels(path)
    if pixels <= LARGE_PIXELS or pixels > MAX_PIXELS:
        return pixels > LARGE_PIXELS
    try:
        with TiledReader(path) as slide:
            check_reader(slide)
            return tiled and orientation_of(slide) == 1
    except Exception:  # tifffile is missing, or cannot read parts of the file
        return False


def claimed_pixels(path: Path) -> float:
    """Return the number of pixels in a header; 0 if PIL cannot read it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PIL warns about unusual tags and the size
            with Image.open(path) as header:
                return header.width * header.height
    except Image.DecompressionBombError:
        return math.inf
    except Exception:  # the error is reported when the file is read
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

    A colour generator does not change white areas, because they are glass and not tissue. The copy is tiled;
    resolution, colour profile and compression are kept. A pyramid gets reduced levels again, with sides of a
    half, a quarter, an eighth ..., near those of the source.

    Args:
        stylizer: see `stylise_tiles`.
        source: the TIFF to read.
        target: the TIFF to write; it appears when it is complete. Temporary files for the levels, a third of
            its pixels, lie beside it.
        params: parameters drawn for one image.
        window: window for 16-bit images, see `open_image`.
        device: device on which to stylise.

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
    """Return the values that a window shows as black and white; None for the whole range."""
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
    """Return an error message that names the file."""
    return str(error) if printable(path) in str(error) else f"{path}: {error}"


def blamed(tiles: Iterator[np.ndarray], source: Path) -> Iterator[np.ndarray]:
    """Yield the tiles; convert errors in making them to `SlideError`, because the source is the cause."""
    try:
        yield from tiles
    except StyleAugError as error:
        raise SlideError(naming(source, error)) from None


def painted_side(slide: TiledReader) -> int:
    """Return the side of the tiles to paint, such that a row of them fits in memory."""
    row = slide.shape[1] * slide.shape[2] * slide.dtype.itemsize
    return next((side for side in (TILE, TILE // 2) if side * row <= BAND_BYTES), TILE // 4)


def stored_side(slide: TiledReader, painted: int) -> int:
    """Return the side of the tiles in the file: the source's, if painted tiles can be cut into them."""
    page = slide.page
    side = page.tilewidth if page.is_tiled and page.tilewidth == page.tilelength else STORED_TILE
    return side if side % 16 == 0 and painted % side == 0 else min(STORED_TILE, painted)


def halved(slide: TiledReader) -> list[int]:
    """Return the approximate number of halvings of each reduced level of a pyramid."""
    times = (round(math.log2(slide.shape[0] / height)) for height, _ in slide.levels[1:])
    return sorted({number for number in times if number >= 1 and 2**number <= min(TILE, *slide.shape[:2])})


def _joined(tiles: Iterator[np.ndarray], slide: TiledReader, side: int) -> Iterator[np.ndarray]:
    """Yield bands: the joined tiles of each row, in one buffer that is reused.

    With new memory for each row, the heap would fragment and the process would keep growing.
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
    """Cut bands into tiles, row by row; all heights but the last are multiples of `side`."""
    for band in bands:
        for top in range(0, band.shape[0], side):
            for left in range(0, band.shape[1], side):
                yield band[top : top + side, left : left + side]


class Level:
    """A reduced copy of a slide, in a temporary file until the whole image is written.

    Args:
        slide: the slide to copy.
        halvings: 1 for half the side, 2 for a quarter.
        folder: folder of the temporary file.
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
        """Yield the stored pixels in bands of `height` rows."""
        self.file.seek(0)
        for top in range(0, self.size[0], height):
            rows = min(height, self.size[0] - top)
            count = rows * self.size[1] * self.channels
            values = np.frombuffer(self.file.read(count * self.dtype.itemsize), self.dtype)
            yield values.reshape(rows, self.size[1], self.channels)


def reduced(bands: Iterator[np.ndarray], levels: list[Level]) -> Iterator[np.ndarray]:
    """Yield the bands, and store a reduced copy of each in every level."""
    for band in bands:
        small, done = band, 0
        for level in levels:
            while done < level.halvings:
                small, done = halve(small), done + 1
            level.file.write(small.tobytes())
        yield band  # before the last yield, because the generator may not be resumed after it


def halve(band: np.ndarray) -> np.ndarray:
    """Average 2 x 2 pixels; with an odd side, the last row or column is repeated."""
    even = np.pad(band, ((0, band.shape[0] % 2), (0, band.shape[1] % 2), (0, 0)), mode="edge")
    total = even[::2, ::2].astype(np.uint32) + even[1::2, ::2] + even[::2, 1::2] + even[1::2, 1::2]
    return ((total + 2) // 4).astype(band.dtype)
