"""Read whole-slide images: those of scanners through OpenSlide, TIFF, and OME-Zarr."""

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from styleaug.errors import FileError, first_line, missing_extra
from styleaug.io.content import HEAD
from styleaug.io.ome_zarr import ZarrReader, is_zarr
from styleaug.io.paths import check_path, check_regular
from styleaug.io.pyramid import AbstractPyramid, number_in, plausible
from styleaug.io.scan import PERCENTILES, Scan, Window, check_size, make_scan
from styleaug.io.tiff import MOST_TIFF_PIXELS, TiledReader

__all__ = [
    "LARGE_PIXELS",
    "SLIDES",
    "OpenSlideReader",
    "holds_slide",
    "is_scanned",
    "is_wsi",
    "open_slide",
    "open_whole",
    "shown_range",
]

SLIDES = (".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".svslide", ".vms", ".vmu")
"""Suffixes of slides that OpenSlide reads. It reads DICOM, too, see `is_wsi`."""

DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
TIFF_SUFFIXES = (".tif", ".tiff")

WSI_CLASS = b"\x02\x00\x02\x00UI\x1e\x001.2.840.10008.5.1.4.1.1.77.1.6"
"""The element of a DICOM file's meta header that says that it is a whole-slide image."""

UNSCANNED = (255, 255, 255)
"""Colour where nothing was scanned, unless the slide gives another."""

LARGE_PIXELS = 2**24
"""TIFF files with more pixels are styled tile by tile, if possible."""

WINDOW_SIDE = 512
"""Short side in pixels of the reduced image from which percentiles are read."""


def is_wsi(path: Path) -> bool:
    """Return True for a DICOM file of a whole-slide image, from its first bytes."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            head = file.read(HEAD)
    except (OSError, ValueError):
        return False
    return head[128:132] == b"DICM" and WSI_CLASS in head


def is_scanned(path: Path) -> bool:
    """Return True for a slide in a scanner's format, which OpenSlide reads and nobody writes."""
    suffix = path.suffix.lower()
    return suffix in SLIDES or ((suffix in ("", *DICOM_SUFFIXES) or suffix[1:].isdecimal()) and is_wsi(path))


def holds_slide(path: Path, *, tiff: bool = False) -> bool:
    """Return True if a file is read as a slide.

    Args:
        path: any file.
        tiff: True counts TIFF files, too, that are large or hold a pyramid.
    """
    if is_scanned(path) or is_zarr(path):
        return True
    if not tiff or path.suffix.lower() not in TIFF_SUFFIXES:
        return False
    try:
        with TiledReader(path) as slide:
            return len(slide.levels) > 1 or slide.shape[0] * slide.shape[1] > LARGE_PIXELS
    except Exception:  # a stack, or damaged; the error is reported when it is read as an image
        return False


def open_slide(path: str | Path) -> AbstractPyramid:
    """Open a slide of any format; use the result as a context manager.

    Args:
        path: a slide in a scanner's format (`SLIDES`, or one DICOM file of it), a TIFF, or the folder of an
            OME-Zarr image, `.zarr`.

    Raises:
        FileError: the file is missing, damaged, or of another format.
        ConfigError: a library for this file is missing.
    """
    path = check_path(path)
    if is_scanned(path):
        return OpenSlideReader(path)
    if path.suffix.lower() == ".zarr":
        return ZarrReader(path)
    if path.suffix.lower() in TIFF_SUFFIXES:
        return TiledReader(check_regular(path))
    known = " ".join((*SLIDES, *TIFF_SUFFIXES, ".dcm", ".zarr"))
    raise FileError(f"{path} is not a slide; slides are {known}.")


class OpenSlideReader(AbstractPyramid):
    """Read parts of a slide in a scanner's format, as 8-bit RGB.

    Where nothing was scanned, pixels have the background colour that the file gives, else white. Of a slide
    that gives the bounds of what was scanned, the rest is cut off. Label and overview pictures are not read.

    Args:
        path: the slide. Other files of it must lie where the scanner's software put them.

    Raises:
        FileError: the slide is missing, damaged, or larger than `MOST_TIFF_PIXELS`.
        ConfigError: OpenSlide is missing.
    """

    origin: tuple[int, int]
    shape: tuple[int, int, int]
    steps: list[float]
    levels: list[tuple[int, int]]
    mpp: float | None
    background: tuple[int, ...]
    profile: bytes

    alpha = False
    dtype: np.dtype = np.dtype(np.uint8)

    def __init__(self, path: Path):
        self.path: Path = check_regular(path)
        openslide = import_openslide(path)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.slide: Any = openslide.OpenSlide(str(path))
        except Exception as error:  # of any kind, from C
            raise damaged(path, error) from None
        try:
            self.describe()
        except FileError:
            self.close()
            raise
        except Exception as error:
            self.close()
            raise damaged(path, error) from None

    def describe(self) -> None:
        """Read the sizes and the facts that are kept."""
        facts = self.slide.properties
        width, height = self.slide.dimensions
        self.origin = 0, 0
        bounds = [facts.get(f"openslide.bounds-{name}", "") for name in ("y", "x", "height", "width")]
        if all(map(str.isdecimal, bounds)):
            top, left, tall, wide = map(int, bounds)
            if tall and wide and top + tall <= height and left + wide <= width:
                self.origin, height, width = (top, left), tall, wide
        if not 0 < height * width <= MOST_TIFF_PIXELS:
            raise FileError(
                f"{self.path} has {width} x {height} pixels; at most {MOST_TIFF_PIXELS:,} are read."
            )
        self.shape = height, width, 3
        self.steps = [float(step) for step in self.slide.level_downsamples]
        self.levels = [
            (max(1, min(tall, int(height / step))), max(1, min(wide, int(width / step))))
            for step, (wide, tall) in zip(self.steps, self.slide.level_dimensions, strict=True)
        ]
        sizes = [number_in(facts.get(f"openslide.mpp-{axis}", "")) for axis in "xy"]
        self.mpp = plausible(math.sqrt(sizes[0] * sizes[1])) if min(sizes) > 0 else None
        colour = facts.get("openslide.background-color", "")
        self.background = tuple(bytes.fromhex(colour)) if len(colour) == 6 else UNSCANNED
        profile = self.slide.color_profile
        self.profile = profile.tobytes() if profile else b""

    def close(self) -> None:
        """Close the file."""
        self.slide.close()

    def read(self, top: int, left: int, height: int, width: int, *, level: int = 0) -> np.ndarray:
        """Read a part, `(height, width, 3)`; see `AbstractPyramid`."""
        self.check_inside(top, left, height, width, level)
        step = self.steps[level]
        corner = round(left * step) + self.origin[1], round(top * step) + self.origin[0]
        try:
            found = np.asarray(self.slide.read_region(corner, level, (width, height)))
        except Exception as error:
            raise damaged(self.path, error) from None
        if found[..., 3].min() == 255:
            return np.ascontiguousarray(found[..., :3])
        scanned = found[..., 3:].astype(np.uint16)
        back = np.array(self.background, np.uint16) * (255 - scanned)
        return ((found[..., :3] * scanned + back + 127) // 255).astype(np.uint8)


def import_openslide(path: Path) -> Any:
    """Import OpenSlide; if it is missing, raise the error that names its extra."""
    try:
        import openslide
    except (ImportError, OSError):  # OSError: the Python part is there without the library in C
        raise missing_extra(str(path), "OpenSlide", "slides") from None
    return openslide


def damaged(path: Path, error: Exception) -> FileError:
    """Return the error for a slide that OpenSlide cannot read."""
    return FileError(
        f"cannot read {path}: {first_line(error)} Copy it again with all its files, or leave it out."
    )


def open_whole(path: Path, short_side: int | None = None, window: Window | None = None) -> Image.Image | Scan:
    """Read a slide as one image: reduced, or whole if it is small.

    Args:
        path: see `open_slide`.
        short_side: least short side in pixels of the result. None reads the full size.
        window: see `open_image`.

    Raises:
        FileError: the slide cannot be read, or is too large to be read whole.
    """
    with open_slide(path) as slide:
        height, width, channels = slide.shape
        if short_side:
            pixels = slide.thumbnail(short_side)
        else:
            check_size(path, height, width, 1, channels * slide.dtype.itemsize)
            pixels = slide.read(0, 0, height, width)
    if slide.dtype == np.uint8:
        return Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
    return make_scan(pixels[None], unwritten, window=window, whole=True)


def shown_range(slide: AbstractPyramid, window: Window | None) -> tuple[float, float] | None:
    """Return the values that a window shows as black and white; None for the whole range of the dtype."""
    if window is None or slide.dtype.itemsize == 1:
        return None
    if isinstance(window, tuple):
        centre, width = window
        return centre - width / 2, centre + width / 2
    small = slide.thumbnail(min(WINDOW_SIDE, *slide.shape[:2]))
    shown = small[small[..., -1] > 0][:, :-1] if slide.alpha and small[..., -1].any() else small
    low, high = np.percentile(shown[..., : slide.shape[2] - slide.alpha], PERCENTILES)
    return float(low), float(max(high, low + 1))


def unwritten(frames: np.ndarray, target: Path) -> None:
    """Refuse to write: a slide is written in tiles, by `styleaug apply`."""
    raise FileError(f"cannot write {target}: slides are written by `styleaug apply`.")
