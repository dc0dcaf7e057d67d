"""Read and write large TIFF files in tiles, with pyramids."""

import math
import re
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np

from styleaug.errors import FileError
from styleaug.io.atomic import atomic
from styleaug.io.limits import trusted
from styleaug.io.pyramid import AbstractPyramid, number_in, plausible
from styleaug.io.scan import missing, quiet, unreadable

__all__ = ["TiledReader", "write_tiled"]

_CACHE_BYTES = 2**28
"""Bytes of decoded segments that a reader keeps, because neighbouring tiles need the same strips."""

LARGEST_SEGMENT = 2**29
"""Most bytes of one tile or strip; a file in one compressed piece cannot be read in parts."""

MOST_UNLIKE = 2000
"""Most pages of a file whose pages differ in form."""

MOST_TIFF_PIXELS = 2**34
"""Most pixels of an image: 131,072 x 131,072, more than the largest slides have."""

_JPEG = (6, 7, 34892, 33007)
_KEPT = {5: "lzw", 8: "zlib", 32946: "zlib", 32773: "packbits", 50000: "zstd"}
"""Lossless compressions that are kept on writing."""

ORIENTATION = 274
ORDER: dict[str, Literal["little", "big"]] = {"<": "little", ">": "big"}
BLACK_IS_ZERO, RGB, PALETTE, YCBCR, WHITE_IS_ZERO = 1, 2, 3, 6, 0


def tifffile_for(path: Path) -> Any:
    """Import tifffile; if it is missing, raise the error that names its extra.

    Raises:
        ConfigError: it is missing.
    """
    try:
        import tifffile
    except ImportError:
        raise missing(path, "tifffile") from None
    return tifffile


class TiledReader(AbstractPyramid):
    """Read parts of a TIFF image; only the tiles or strips of a part are decoded.

    Palettes are read as 8-bit colour. Images whose zero is white are inverted.

    Args:
        path: a TIFF in tiles or strips, of one image, with or without reduced copies (a pyramid).

    Raises:
        FileError: the file is missing, damaged, truncated or a stack, or its pixels are not grey or colour.
        ConfigError: tifffile is missing.

    Example:
        >>> with TiledReader("slide.tif") as slide:  # doctest: +SKIP
        ...     corner = slide.read(0, 0, 512, 512)
    """

    cached: int

    def __init__(self, path: str | Path):
        self.path: Path = Path(path)
        tifffile = tifffile_for(self.path)
        self.cache: OrderedDict[tuple[int, int, int], np.ndarray] = OrderedDict()
        self.cached = 0
        try:
            with quiet("tifffile"):
                self.file: Any = tifffile.TiffFile(self.path)
                try:
                    self.planes: list[Plane] = planes_of(self.file, self.path)
                except Exception:
                    self.file.close()
                    raise
        except FileNotFoundError:
            raise FileError(f"there is no file {self.path}.") from None
        except FileError:
            raise
        except Exception as error:  # damaged tags make tifffile raise anything
            raise unreadable(self.path, error) from None
        first = self.planes[0]
        self.page: Any = first.pages[0]
        self.dtype: np.dtype = first.dtype
        self.shape: tuple[int, int, int] = (first.height, first.width, first.channels)
        self.alpha: bool = first.alpha
        self.levels: list[tuple[int, int]] = [(plane.height, plane.width) for plane in self.planes]
        self.tile: int = self.page.tilewidth if first.tall == first.wide == self.page.tilewidth else 0
        with suppress(Exception), quiet("tifffile"):  # damaged tags; the pixels may be sound
            self.profile: bytes = self.page.iccprofile or b""
            self.mpp: float | None = microns_of(self.file, self.page)

    def close(self) -> None:
        """Close the file and free the decoded segments."""
        self.file.close()
        self.cache.clear()

    def read(self, top: int, left: int, height: int, width: int, *, level: int = 0) -> np.ndarray:
        """Read a part, `(height, width, C)`; see `AbstractPyramid`."""
        self.check_inside(top, left, height, width, level)
        plane = self.planes[level]
        try:
            with quiet("tifffile"):
                return plane.seen(self.assemble(level, (top, left, height, width)))
        except FileError:
            raise
        except Exception as error:  # decoders raise errors of any kind
            raise unreadable(self.path, error) from None

    def assemble(self, level: int, part: tuple[int, int, int, int]) -> np.ndarray:
        """Return a part in stored values, copied from the segments that hold it."""
        plane = self.planes[level]
        top, left, height, width = part
        if plane.flat:
            found = plane.mapped()[top : top + height, left : left + width]
            return np.array(found, plane.stored)  # a memory map would keep the file open
        out = np.zeros((height, width, plane.samples), plane.stored)
        for row in range(top // plane.tall, -(-(top + height) // plane.tall)):
            for column in range(left // plane.wide, -(-(left + width) // plane.wide)):
                y, x = row * plane.tall, column * plane.wide
                for number, channels in plane.layers(row, column):
                    segment = self.segment(level, *number)
                    if segment is None:  # missing in the file: all zeros
                        continue
                    bottom = min(y + segment.shape[0], top + height, plane.height)
                    right = min(x + segment.shape[1], left + width, plane.width)
                    y0, x0 = max(y, top), max(x, left)
                    found = segment[y0 - y : bottom - y, x0 - x : right - x]
                    out[y0 - top : bottom - top, x0 - left : right - left, channels] = found
        return out

    def segment(self, level: int, page: int, index: int) -> np.ndarray | None:
        """Return a decoded tile or strip `(h, w, samples)`, from the cache if it is there."""
        key = (level, page, index)
        if key in self.cache:
            self.cache.move_to_end(key)
            return self.cache[key]
        segment = self.planes[level].decode(page, index)
        if segment is None:
            return None
        self.cache[key] = segment
        self.cached += segment.nbytes
        while self.cached > _CACHE_BYTES and len(self.cache) > 1:
            _, old = self.cache.popitem(last=False)
            self.cached -= old.nbytes
        return segment

    def rows_at_once(self, level: int) -> int:
        """Return the height of a tile or strip."""
        return self.planes[level].tall


OME_SIZE = re.compile(r'\bPhysicalSizeX="([0-9.eE+-]{1,40})"')
OME_UNIT = re.compile(r'\bPhysicalSizeXUnit="([^"]{1,20})"')
APERIO_SIZE = re.compile(r"\|\s*MPP\s*=\s*([0-9.]{1,40})")
OME_UNITS = {"": 1.0, "µm": 1.0, "μm": 1.0, "um": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6}
"""Microns of a unit of length in OME-XML, which may spell the first letter of a micron in two ways."""

PER_UNIT = {2: 25_400.0, 3: 10_000.0}
"""Microns of a TIFF's unit of resolution: inch and centimetre."""


def microns_of(file: Any, page: Any) -> float | None:
    """Return the microns per pixel that a file gives: in OME-XML, Aperio's description, or the resolution."""
    text = file.ome_metadata or ""
    if found := OME_SIZE.search(text):
        unit = OME_UNIT.search(text)
        return plausible(number_in(found[1]) * OME_UNITS.get(unit[1] if unit else "", math.nan))
    if found := APERIO_SIZE.search(page.description or ""):
        return plausible(number_in(found[1]))
    if 282 not in page.tags or int(page.resolutionunit) not in PER_UNIT:
        return None
    per_unit = page.resolution[0]
    return plausible(PER_UNIT[int(page.resolutionunit)] / per_unit) if per_unit > 0 else None


class Plane:
    """One level of an image: the layout of its segments in the file, and their conversion to pixels."""

    pages: list[Any]
    path: Path
    height: Any
    width: Any
    tall: int
    wide: int

    def __init__(self, pages: list[Any], path: Path):
        self.pages, self.path = pages, path
        page = pages[0]
        separate, depth, self.height, self.width, contiguous = page.shaped
        if depth != 1 or page.dtype is None or 0 in page.shaped:
            raise FileError(f"{path} has pixels of shape {page.shape} that are no image; save it again.")
        if self.height * self.width > MOST_TIFF_PIXELS:
            raise FileError(
                f"{path} has {self.width} x {self.height} pixels, more than {MOST_TIFF_PIXELS:,}."
            )
        if page.compression != 1 and page.dtype.itemsize * math.prod(self.tile(page)) > LARGEST_SEGMENT:
            raise FileError(
                f"{path} is compressed in one piece of {self.width} x {self.height} pixels, so no part of it "
                "can be read alone; save it in tiles."
            )
        self.stored: np.dtype = np.dtype(page.dtype).newbyteorder("=")
        self.samples: Any = len(pages) * separate * contiguous
        self.separate = separate
        self.tall, self.wide = self.tile(page)[:2]
        self.flat = bool(page.is_memmappable) and len(pages) == 1 and separate == 1
        kind = int(page.photometric)
        if kind not in (BLACK_IS_ZERO, RGB, PALETTE, WHITE_IS_ZERO) and not (
            kind == YCBCR and page.compression in _JPEG
        ):
            raise FileError(f"{path} has {page.photometric!r} pixels; save it as grey or RGB.")
        self.inverted: bool = kind == WHITE_IS_ZERO and self.stored.kind == "u"
        # Palettes hold 16-bit colours for 8-bit indices; only the upper 8 bits are shown.
        self.palette: Any | None = (page.colormap.T >> 8).astype(np.uint8) if kind == PALETTE else None
        self.channels = 3 if self.palette is not None else self.samples
        self.dtype: np.dtype = np.dtype(np.uint8) if self.palette is not None else self.stored
        extra = [int(value) for value in page.extrasamples]
        self.alpha: bool = (
            len(extra) == 1 and self.samples in (2, 4) and (extra[0] in (1, 2) or self.samples == 4)
        )
        self.check_whole()

    @staticmethod
    def tile(page: Any) -> tuple[int, int, int]:
        """Return rows, columns and samples of a segment."""
        samples = page.shaped[4]
        if page.is_tiled:
            return page.tilelength, page.tilewidth, samples
        return min(page.rowsperstrip, page.imagelength), page.imagewidth, samples

    def check_whole(self) -> None:
        """Check that the file holds all its pixels."""
        wanted = self.separate * -(-self.height // self.tall) * -(-self.width // self.wide)
        for page in self.pages:
            ends = map(sum, zip(page.dataoffsets, page.databytecounts, strict=False))
            end, size = max(ends, default=0), page.parent.filehandle.size
            if len(page.dataoffsets) < wanted or len(page.databytecounts) < wanted or end > size:
                raise FileError(f"{self.path} is truncated: pixels are missing. Copy or save it again.")

    def layers(self, row: int, column: int) -> Iterator[tuple[tuple[int, int], slice]]:
        """Yield page and index of the segments at a position, and the channels that each holds."""
        rows, columns = -(-self.height // self.tall), -(-self.width // self.wide)
        width = self.samples // (len(self.pages) * self.separate)
        for page in range(len(self.pages)):
            for layer in range(self.separate):
                start = (page * self.separate + layer) * width
                yield (page, (layer * rows + row) * columns + column), slice(start, start + width)

    def decode(self, number: int, index: int) -> np.ndarray | None:
        """Read and decode a segment, `(h, w, samples)`."""
        page = self.pages[number]
        offset, count = page.dataoffsets[index], page.databytecounts[index]
        if not count:
            return None
        handle = page.parent.filehandle
        with handle.lock:
            handle.seek(offset)
            data = handle.read(count)
        tables = {"jpegtables": page.jpegtables, "jpegheader": page.jpegheader}
        found, _, _ = page.decode(data, index, **(tables if page.compression in _JPEG else {}))
        return None if found is None else found[0].astype(self.stored, copy=False)

    def mapped(self) -> np.ndarray:
        """Return a memory map of uncompressed pixels; it closes with the last view of it."""
        page = self.pages[0]
        stored, shape = (
            self.stored.newbyteorder(page.parent.byteorder),
            (self.height, self.width, self.samples),
        )
        return np.memmap(self.path, stored, mode="r", offset=page.dataoffsets[0], shape=shape)

    def seen(self, values: np.ndarray) -> np.ndarray:
        """Convert stored values to brightness or colour."""
        if self.palette is not None:
            return self.palette[values[..., 0]]
        if self.inverted:
            return np.iinfo(self.stored).max - values
        return values


def planes_of(file: Any, path: Path) -> list[Plane]:
    """Return the first image of a file and its reduced copies, the largest first.

    Raises:
        FileError: the first series is a stack.
    """
    check_end(file, path)
    series = file.series[0]
    if series.axes.replace("I", "Q") not in ("YX", "YXS", "SYX", "CYX", "CYXS"):
        raise FileError(
            f"{path} holds a stack of shape {series.shape} ({series.axes}), larger than memory; split it."
        )
    planes = [Plane([page.aspage() for page in level.pages], path) for level in series.levels]
    if len(planes) == 1:
        # libvips writes reduced copies as separate pages that are marked as reduced.
        reduced = [page.aspage() for page in file.pages[1:] if page.aspage().is_reduced]
        planes += [Plane([page], path) for page in reduced if is_copy(page, planes[0])]
    return sorted(planes, key=lambda plane: -plane.height)


def check_end(file: Any, path: Path) -> None:
    """Refuse a truncated list of pages, and thousands of pages that differ in form.

    tifffile silently reads the pages that are there. Each page of another form takes a millisecond to parse.
    """
    form, handle = file.tiff, file.filehandle
    if len(file.pages) > trusted(MOST_UNLIKE) and not file.is_uniform:
        raise FileError(f"{path} holds {len(file.pages):,} pages of different forms; split it.")
    start = file.pages[len(file.pages) - 1].offset
    handle.seek(start)
    count = int.from_bytes(handle.read(form.tagnosize), ORDER[form.byteorder])
    handle.seek(start + form.tagnosize + count * form.tagsize)
    following = int.from_bytes(handle.read(form.offsetsize), ORDER[form.byteorder])
    if following > handle.size:
        raise FileError(f"{path} is truncated: pages are missing. Copy or save it again.")


def is_copy(page: Any, whole: Plane) -> bool:
    """Return True if a page is a reduced copy of the image: same form and channels."""
    fits = abs(page.imagelength * whole.width / (page.imagewidth * whole.height) - 1) < 0.05
    return fits and page.samplesperpixel == whole.samples and page.dtype == whole.stored


def write_tiled(
    path: str | Path,
    shape: tuple[int, int, int],
    dtype: np.dtype,
    tiles: Iterator[np.ndarray],
    *,
    tile: int = 512,
    like: AbstractPyramid | None = None,
    ome: str | None = None,
    levels: Sequence[tuple[tuple[int, int], Iterator[np.ndarray]]] = (),
) -> None:
    """Write an image tile by tile, atomically; it is never whole in memory.

    Args:
        path: the TIFF to write; BigTIFF if it may exceed 4 GB.
        shape: `(H, W, C)`.
        dtype: dtype of the pixels.
        tiles: tiles `(h, w, C)`, row by row; tiles at the right and lower border may be smaller.
        tile: side of a tile in pixels, a multiple of 16.
        like: an open reader; its resolution, colour profile and compression are kept. JPEG stays JPEG
            at quality 95; other compressions are lossless.
        ome: UUID of an OME-TIFF, with the microns per pixel in its XML and 8 bits compressed as JPEG; None
            writes a plain TIFF.
        levels: `(H, W)` and tiles of each reduced copy of a pyramid. They are read after the image is
            written. In OME-TIFF they lie below its page (SubIFDs), as Bio-Formats reads them; else they
            are separate pages, which OpenSlide and libvips read.

    Raises:
        FileError: the file cannot be written.
        ConfigError: tifffile is missing.
    """
    path = Path(path)
    tifffile = tifffile_for(path)
    height, width, channels = shape
    colour = 3 if channels in (3, 4) else 1
    large = 1.4 * math.prod(shape) * np.dtype(dtype).itemsize > 2**32 - 2**25
    alpha = channels > colour and (like.alpha if like else channels in (2, 4))
    page = like.page if isinstance(like, TiledReader) else None
    turned = orientation_of(like) if isinstance(like, TiledReader) else 1
    kept = kept_of(page, np.dtype(dtype), channels)
    if like and ome is not None:
        kept = ome_form(like, channels)
    with atomic(path) as part, quiet("tifffile"):
        try:
            with tifffile.TiffWriter(part, bigtiff=large, ome=ome is not None) as writer:
                for number, (size, blocks) in enumerate([((height, width), tiles), *levels]):
                    writer.write(
                        (np.ascontiguousarray(block) for block in blocks),
                        shape=(*size, channels) if channels > 1 else size,
                        dtype=np.dtype(dtype),
                        tile=(tile, tile),
                        subfiletype=min(number, 1),
                        subifds=len(levels) if ome is not None and number == 0 else None,
                        photometric="rgb" if colour == 3 else "minisblack",
                        planarconfig="contig" if channels > 1 else None,
                        extrasamples=["unassalpha"] if alpha else None,
                        metadata=None if ome is None or number else ome_facts(ome, like, channels),
                        maxworkers=1,
                        extratags=[(ORIENTATION, 3, 1, turned, True)] if turned > 1 else (),
                        **kept,
                    )
        except OSError:  # our errors, or errors of the disk, which `atomic` reports
            raise
        except (ValueError, RuntimeError, TypeError) as error:
            raise FileError(f"cannot write {path}: {error}.") from None


def orientation_of(reader: TiledReader) -> int:
    """Return the orientation of the image as in EXIF; 1 is upright."""
    value = reader.page.tags.valueof(ORIENTATION, 1)
    return value if value in range(1, 9) else 1


def ome_form(like: AbstractPyramid, channels: int) -> dict[str, Any]:
    """Return compression, resolution and profile of an OME-TIFF, as options of tifffile."""
    form: dict[str, Any] = {"compression": "zlib", "predictor": True}
    if like.dtype == np.uint8 and channels in (1, 3):
        form = {"compression": "jpeg", "compressionargs": {"level": 95}, "subsampling": (1, 1)}
    if like.mpp:
        form |= {"resolution": (1e4 / like.mpp, 1e4 / like.mpp), "resolutionunit": "CENTIMETER"}
    return form | ({"iccprofile": like.profile} if like.profile else {})


def ome_facts(ome: str, like: AbstractPyramid | None, channels: int) -> dict[str, Any]:
    """Return what the XML of an OME-TIFF says: its UUID, its axes, and the size of a pixel."""
    facts: dict[str, Any] = {"UUID": ome, "axes": "YXS" if channels > 1 else "YX"}
    if like and like.mpp:
        facts |= {f"PhysicalSize{axis}": like.mpp for axis in "XY"}
        facts |= {f"PhysicalSize{axis}Unit": "µm" for axis in "XY"}
    return facts


def kept_of(page: Any, dtype: np.dtype, channels: int) -> dict[str, Any]:
    """Return tags and compression of a page, as options for writing a similar one."""
    if page is None:
        return {"compression": "zlib", "predictor": True}
    kept: dict[str, Any] = {}
    if page.compression in _JPEG and dtype == np.uint8 and channels in (1, 3):
        kept |= {"compression": "jpeg", "compressionargs": {"level": 95}, "subsampling": (1, 1)}
    elif page.compression == 1:
        kept |= {"compression": None}
    else:
        name = _KEPT.get(int(page.compression), "zlib")
        kept |= {"compression": name, "predictor": name != "packbits"}
    if 282 in page.tags and 283 in page.tags:
        kept |= {"resolution": page.resolution, "resolutionunit": int(page.resolutionunit)}
    profile = page.iccprofile
    return kept | ({"iccprofile": profile} if profile else {})
