"""Read and write TIFF beyond PIL: stacks, 16-bit colour, floats, many channels, pyramids."""

import math
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from styleaug.errors import FileError
from styleaug.images import straight
from styleaug.io.scan import MAX_PIXELS, Scan, Window, check_size, make_scan, quiet, rescaled, without_alpha
from styleaug.io.tiff import RGB, WHITE_IS_ZERO, Plane, check_end, kept_of, tifffile_for

__all__ = ["open_stack", "pil_mode"]

MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I;16", "I;16B", "I;16L"}
BITS, SAMPLES, REDUCED, SUBIFDS, SAMPLE_FORMAT = 258, 277, 254, 330, 339
TILE_WIDTH, TILE_HEIGHT = 322, 323
MOST_TILE = 2**24
"""Most pixels of a tile for PIL, which allocates a whole tile even for a small image."""

_SIGNED = 2
MOST_LEVELS = 32
"""Most levels of a pyramid that PIL is asked about, because it is slow for each page."""

_NAMED = {270: "description", 305: "software"}
SAID = (269, 271, 272, 285, 306, 315, 316, 33432)
"""Tags about author, device and date. Tags in `_NAMED` are separate arguments of tifffile."""
IMAGEJ = ("spacing", "unit", "finterval", "fps", "mode", "min", "max")


def pil_mode(path: Path, short_side: int | None = None) -> str:
    """Return the mode of a TIFF that PIL reads without loss, else "".

    Args:
        path: the file.
        short_side: short side in pixels to which the image will be reduced; a pyramid is then better.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                tags: Any = image.tag_v2  # pyright: ignore[reportAttributeAccessIssue]
                deep = max(tags.get(BITS, (1,))) > 8 and tags.get(SAMPLES, 1) > 1
                pyramid = SUBIFDS in tags
                large = image.width * image.height > MAX_PIXELS
                large = large or tags.get(TILE_WIDTH, 0) * tags.get(TILE_HEIGHT, 0) > MOST_TILE
                # PIL forgets the sign of 8 bits.
                signed = _SIGNED in tags.get(SAMPLE_FORMAT, ())
                mode = image.mode
                for number in range(1, MOST_LEVELS):
                    try:
                        image.seek(number)
                    except EOFError:
                        break
                    if not tags_of(image).get(REDUCED, 0) & 1 or number == MOST_LEVELS - 1:
                        return ""
                    pyramid = True
                return (
                    "" if deep or signed or large or (pyramid and short_side) or mode not in MODES else mode
                )
    except FileNotFoundError:
        raise
    except Exception:  # tifffile may read it, or reports the error
        return ""


def tags_of(image: Any) -> Any:
    """Return the tags of the current page of an image."""
    return image.tag_v2


def open_stack(path: Path, short_side: int | None = None, window: Window | None = None) -> Scan:
    """Read the first image of a TIFF with all its pages and channels.

    Each page is a frame with its own style. Pages are one volume if ImageJ's or OME's metadata calls them
    slices (Z). Channels are last. Transparency is restored when styled frames are saved.

    Args:
        path: the file.
        short_side: read the smallest level of a pyramid that has at least this short side.
        window: None shows the whole range of 8-bit and 16-bit unsigned integers, and the percentiles of other
            numbers.

    Raises:
        FileError: the file is damaged or too large, or its pixels are not grey or colour.
        ConfigError: tifffile is missing.
    """
    tifffile = tifffile_for(path)
    try:
        with quiet("tifffile"), tifffile.TiffFile(path) as file:
            return _scan_of(file, path, short_side, window)
    except (FileError, FileNotFoundError):
        raise
    except Exception as error:  # damaged files make tifffile raise errors of any kind
        raise FileError(f"{path} is not a TIFF image, or is damaged ({error}); remove it.") from None


def _scan_of(file: Any, path: Path, short_side: int | None, window: Window | None) -> Scan:
    """Return the scan of an open file."""
    check_end(file, path)
    series = file.series[0]
    first = series.pages[0].aspage()
    check_alone(file, series, path)
    level = min(
        (level for level in series.levels if short_side and min(sides(level)) >= short_side),
        key=lambda level: min(sides(level)),
        default=series,
    )
    height, width = sides(level)
    if height * width > MAX_PIXELS:
        raise FileError(
            f"{path} has {width} x {height} pixels, more than {MAX_PIXELS:,}; "
            "such TIFFs are styled tile by tile, by `styleaug apply`."
        )
    count = math.prod(level.shape) // max(1, height * width)
    check_size(path, height, width, count, series.dtype.itemsize)
    if first.is_tiled:
        check_size(path, first.tilelength, first.tilewidth, 1, first.dtype.itemsize * first.samplesperpixel)
    if series.dtype.kind not in "iuf" or series.dtype.itemsize > 8:
        raise FileError(f"{path} has pixels of type {series.dtype}; save it as integers or floats.")
    plane = Plane([level.pages[0].aspage()], path)
    stored = level.asarray(maxworkers=1)
    order = frames_first(level.axes)
    moved = stored.transpose(order)
    channels = sum(axis in "SC" for axis in level.axes)
    outer = moved.shape[: moved.ndim - 2 - channels]
    pixels = moved.reshape(-1, height, width, *([math.prod(moved.shape[-channels:])] if channels else []))
    pixels = plane.seen(pixels[..., None] if plane.palette is not None else pixels)
    clear = plane.alpha and channels > 0
    pixels, multiplied = straight(pixels) if clear and is_associated(first) else (pixels, np.asarray)
    colour, whole = without_alpha(pixels) if clear else (pixels, np.asarray)
    kind = plane.dtype.kind
    limits = (0.0, 1.0) if kind == "f" else (np.iinfo(plane.dtype).min, np.iinfo(plane.dtype).max)
    frames, back, _ = rescaled(colour, 1.0, 0.0, limits)
    options = _options_of(file, level, first, plane)

    def save(styled: np.ndarray, target: Path) -> None:
        pixels = multiplied(whole(back(styled)))
        if plane.palette is not None:
            written = pixels.reshape(*outer, *pixels.shape[1:])
        else:
            written = plane.seen(pixels).reshape(moved.shape).transpose(np.argsort(order))
        try:
            with quiet("tifffile"):
                tifffile_for(target).imwrite(target, np.ascontiguousarray(written), **options)
        except Exception as error:  # damaged metadata make tifffile raise errors of any kind
            raise FileError(f"the metadata of {path} cannot be written again ({error}).") from None

    return make_scan(
        frames,
        save,
        window=window,
        whole=plane.dtype.itemsize <= 2,
        volume="Z" in level.axes,
        blank=clear and not pixels[..., -1].any(),
    )


def is_associated(page: Any) -> bool:
    """Return True if a page's colours are multiplied by its alpha."""
    return [int(value) for value in page.extrasamples] == [1]


def check_alone(file: Any, series: Any, path: Path) -> None:
    """Refuse a file of several different images, because all but the first would be lost."""
    others = [other for other in file.series if other is not series]
    if any(file.flags & {"svs", "ndpi", "scn", "bif"}):
        return  # slides contain a label and a photograph of the glass
    if not all(other.pages[0].aspage().is_reduced for other in others):
        raise FileError(f"{path} holds {len(file.series)} images of different sizes; split it.")


def sides(level: Any) -> tuple[int, int]:
    """Return height and width of a level."""
    return int(level.shape[level.axes.index("Y")]), int(level.shape[level.axes.index("X")])


def frames_first(axes: str) -> list[int]:
    """Return the order of axes with frames first, then Y, X and channels."""
    ranks = {"Y": 1, "X": 2, "C": 3, "S": 4}
    return sorted(range(len(axes)), key=lambda place: (ranks.get(axes[place], 0), place))


def _options_of(file: Any, level: Any, page: Any, plane: Plane) -> dict[str, Any]:
    """Return form, tags and compression of a file, as options for writing a similar one."""
    axes, kind = level.axes, file.series[0].kind
    samples = level.shape[axes.index("S")] if "S" in axes else 1
    colour = plane.palette is not None or (int(page.photometric) in (RGB, 6) and samples in (3, 4))
    options = kept_of(page, plane.dtype, samples if plane.palette is None else 3)
    if plane.dtype.kind in "iu" and plane.dtype.itemsize == 8:
        options.pop("predictor", None)  # which tifffile does not know for them
    grey = "miniswhite" if int(page.photometric) == WHITE_IS_ZERO else "minisblack"
    options |= {"photometric": "rgb" if colour else grey, "maxworkers": 1}
    if "S" in axes and samples > 1:
        options["planarconfig"] = "separate" if axes.index("S") < axes.index("Y") else "contig"
    if plane.alpha:
        options["extrasamples"] = ["assocalpha" if is_associated(page) else "unassalpha"]
    if kind == "imagej" and plane.palette is None:
        known = file.imagej_metadata or {}
        facts = {key: known[key] for key in IMAGEJ if key in known}
        options = {key: options[key] for key in ("resolution", "maxworkers") if key in options}
        return options | {"imagej": True, "metadata": {"axes": axes, **facts}}
    if page.is_tiled:
        options["tile"] = (page.tilelength, page.tilewidth)
    if kind == "ome" and plane.palette is None:
        return options | {"ome": True, "metadata": {"axes": axes, **sizes_of(file)}}
    if file.is_shaped:
        return options | {"ome": False, "metadata": {}}
    texts = _said(page)
    if file.is_ome or file.is_imagej:  # of another form than it says
        texts.pop("description", None)
    return options | {"ome": False, "metadata": None, **texts}


def _said(page: Any) -> dict[str, Any]:
    """Collect the text tags of a page: description, software, date, names."""
    texts = {tag: page.tags.valueof(tag) for tag in (*_NAMED, *SAID)}
    found = {tag: text.encode() for tag, text in texts.items() if isinstance(text, str) and text}
    options: dict[str, Any] = {_NAMED[tag]: found.pop(tag) for tag in _NAMED if tag in found}
    extra = [(tag, 2, 0, text + b"\0", True) for tag, text in found.items()]
    return options | ({"extratags": extra} if extra else {})


def sizes_of(file: Any) -> dict[str, Any]:
    """Read the size of a pixel from OME's metadata."""
    from xml.etree import ElementTree

    try:
        pixels = ElementTree.fromstring(file.ome_metadata).find("{*}Image/{*}Pixels")
    except ElementTree.ParseError:
        return {}
    found = {} if pixels is None else pixels.attrib
    sizes: dict[str, Any] = {}
    for key, value in found.items():
        if key.startswith(("PhysicalSize", "TimeIncrement")):
            with suppress(ValueError):  # no number
                sizes[key] = float(value) if key[-1] in "XYZT" else value
    return sizes
