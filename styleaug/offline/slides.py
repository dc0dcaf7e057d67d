"""Stylise slides and other images that do not fit in memory, tile by tile."""

import math
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any
from uuid import NAMESPACE_OID, uuid5

import numpy as np
from PIL import Image

from styleaug.errors import FileError, StyleAugError, printable
from styleaug.io.ome_zarr import ZarrReader, is_zarr, write_zarr
from styleaug.io.pyramid import AbstractPyramid
from styleaug.io.scan import MAX_PIXELS, parse_window
from styleaug.io.slides import LARGE_PIXELS, is_scanned, open_slide, shown_range
from styleaug.io.tiff import TiledReader, orientation_of, write_tiled
from styleaug.offline.tiles import TILE, check_reader, stylise_tiles
from styleaug.transforms.augment import StyleAugment
from styleaug.transforms.params import StyleParams

__all__ = ["LARGE_PIXELS", "SlideError", "is_slide", "stylise_slide"]

BAND_BYTES = 2**28
"""Most bytes of a row of tiles."""

STORED_TILE = 512
"""Side in pixels of the tiles in outputs whose source has no tiles."""


SMALLEST = 512
"""Short side in pixels down to which a slide without a pyramid is halved."""


class SlideError(FileError):
    """A slide that cannot be read or stylised. If it cannot be written, the error is a plain `FileError`."""


def is_slide(path: Path, *, tiled: bool) -> bool:
    """Return True if a file is to be styled tile by tile, from its header.

    This holds for slides in a scanner's format, for OME-Zarr, for all TIFF files above the limit of other
    files, and for those with more than `LARGE_PIXELS` that can be styled in tiles: where the generators allow
    it, which is `tiled`.
    """
    if is_scanned(path) or is_zarr(path):
        return True
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
    """Write a styled copy of a slide or TIFF of any size, in a few hundred MB of memory.

    A colour generator does not change white areas, because they are glass and not tissue. The copy is tiled;
    resolution, colour profile and compression are kept. A pyramid gets reduced levels again, with sides of a
    half, a quarter, an eighth ..., near those of the source. Slides in a scanner's format become OME-TIFF: a
    pyramid, compressed as JPEG, with the microns per pixel, without label and overview. OME-Zarr keeps all
    but its pixels: levels, chunks, codecs, metadata and labels.

    Args:
        stylizer: see `stylise_tiles`.
        source: the slide to read, see `open_slide`.
        target: the file or folder to write; it appears when it is complete. Temporary files for the levels, a
            third of its pixels, lie beside it.
        params: parameters drawn for one image.
        window: window for 16-bit images, see `open_image`.
        device: device on which to stylise.

    Raises:
        SlideError: `source` cannot be read or stylised.
        FileError: `target` cannot be written.
    """
    with ExitStack() as stack:
        try:
            slide = stack.enter_context(open_slide(source))
            side = painted_side(slide)
            shown = shown_range(slide, parse_window(window))
            painted = stylise_tiles(
                stylizer, slide, params, tile=side, value_range=shown, device=device, background=False
            )
        except StyleAugError as error:
            raise SlideError(naming(source, error)) from None
        bands = _joined(blamed(painted, source), slide, side)
        if isinstance(slide, ZarrReader):
            write_zarr(target, slide, bands)
            return
        stored = stored_side(slide, side)
        levels = [
            stack.enter_context(Level(slide, halvings, target.parent)) for halvings in halved(slide, side)
        ]
        write_tiled(
            target,
            slide.shape,
            slide.dtype,
            _cut(reduced(bands, levels), stored),
            tile=stored,
            like=slide,
            ome=identifier(source, slide, params) if is_scanned(source) else None,
            levels=[(level.size, _cut(level.bands(stored), stored)) for level in levels],
        )


def identifier(source: Path, slide: AbstractPyramid, params: StyleParams) -> str:
    """Return the UUID of a copy: the same for the same slide and style, so that a run can be repeated."""
    codes = params["codes"]
    told = source.name, slide.shape, b"" if codes is None else codes.numpy(force=True).tobytes()
    return f"urn:uuid:{uuid5(NAMESPACE_OID, repr((*told, params['strength'].tolist())))}"


def naming(path: Path, error: StyleAugError) -> str:
    """Return an error message that names the file."""
    return str(error) if printable(path) in str(error) else f"{path}: {error}"


def blamed(tiles: Iterator[np.ndarray], source: Path) -> Iterator[np.ndarray]:
    """Yield the tiles; convert errors in making them to `SlideError`, because the source is the cause."""
    try:
        yield from tiles
    except StyleAugError as error:
        raise SlideError(naming(source, error)) from None


def painted_side(slide: AbstractPyramid) -> int:
    """Return the side of the tiles to paint, such that a row of them fits in memory."""
    row = slide.shape[1] * slide.shape[2] * slide.dtype.itemsize
    return next((side for side in (TILE, TILE // 2) if side * row <= BAND_BYTES), TILE // 4)


def stored_side(slide: AbstractPyramid, painted: int) -> int:
    """Return the side of the tiles in the file: the source's, if painted tiles can be cut into them."""
    side = slide.tile
    return side if side and side % 16 == 0 and painted % side == 0 else min(STORED_TILE, painted)


def halved(slide: AbstractPyramid, painted: int) -> list[int]:
    """Return the approximate number of halvings of each reduced level of a pyramid.

    A large slide without reduced levels gets all of them down to `SMALLEST`, if it is in a scanner's format.
    """
    short = min(slide.shape[:2])
    times = [round(math.log2(slide.shape[0] / height)) for height, _ in slide.levels[1:]]
    if not times and is_scanned(slide.path):
        times = list(range(1, max(0, short // SMALLEST).bit_length()))
    return sorted({number for number in times if number >= 1 and 2**number <= min(painted, short)})


def _joined(tiles: Iterator[np.ndarray], slide: AbstractPyramid, side: int) -> Iterator[np.ndarray]:
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

    channels: int
    halvings: int
    dtype: np.dtype

    def __init__(self, slide: AbstractPyramid, halvings: int, folder: Path):
        height, width, self.channels = slide.shape
        self.halvings, self.dtype = halvings, slide.dtype
        self.size: tuple[Any, Any] = -(-height // 2**halvings), -(-width // 2**halvings)
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
