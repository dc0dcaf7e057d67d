"""What a medical file holds: frames in true values, the range that is shown, and how to write them back."""

import logging
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from styleaug.errors import ConfigError, FileError, MissingExtraError, first_line, missing_extra
from styleaug.images import filled
from styleaug.io.limits import MAX_PIXELS, check_size

__all__ = [
    "MAX_PIXELS",
    "Save",
    "Scan",
    "Window",
    "as_picture",
    "check_size",
    "make_scan",
    "missing",
    "parse_window",
    "quiet",
    "rescaled",
    "unreadable",
    "without_alpha",
]

_SAMPLE = 2**20
"""How many values `auto` looks at."""

PERCENTILES = (0.5, 99.5)

Window = tuple[float, float] | Literal["auto", "dicom"]
"""Centre and width in the file's own units; or the percentiles of the scan; or what the file says."""

Span = tuple[float, float]
Save = Callable[[np.ndarray, Path], None]


@dataclass(frozen=True, eq=False)
class Scan:
    """One or more frames in true values, as they are seen: more is brighter."""

    frames: np.ndarray
    """`(T, H, W)` or `(T, H, W, C)`, such as Hounsfield units."""

    span: Span
    """What is shown as black and as white."""

    volume: bool
    """The frames belong together: slices of a body, or times. They share one style and its statistics."""

    save: Save
    """Writes styled frames of the same shape and dtype as a file of the same kind, with its header."""

    blank: bool = False
    """No pixel is seen: all are transparent."""


def parse_window(text: Any) -> Window | None:
    """Read a window as users write it: `"40/400"` (centre/width), `"auto"` or `"dicom"`.

    Raises:
        ConfigError: anything else.
    """
    if text is None or text in ("auto", "dicom"):
        return text
    try:
        centre, width = map(float, text.split("/") if isinstance(text, str) else text)
        if not (math.isfinite(centre) and 0 < width < math.inf):
            raise ValueError
    except (ValueError, TypeError):
        raise ConfigError(
            f'window must be "CENTRE/WIDTH" such as "40/400", "auto" or "dicom", got {text!r}.'
        ) from None
    return centre, width


def make_scan(
    frames: np.ndarray,
    save: Save,
    *,
    window: Window | None,
    own: Span | None = None,
    whole: bool = False,
    volume: bool = False,
    beside: np.ndarray | None = None,
    mirror: float | None = None,
    blank: bool = False,
) -> Scan:
    """Build a scan: choose its range, and keep what is no number aside.

    Args:
        frames: `(T, H, W)` or `(T, H, W, C)`.
        save: see `Scan`.
        window: what the user wants; None takes `own`, else the whole range of the dtype if `whole`
            says so, else the percentiles.
        own: the range that the file names.
        whole: unsigned integers are shown from their first to their last value.
        volume: see `Scan`.
        beside: which values say nothing, such as the padding around a scan; of the shape of `frames`.
        mirror: frames are turned round: `mirror` minus what the file, and the user, call a value.
        blank: see `Scan`.

    Raises:
        FileError: no value is a number.
    """
    if frames.dtype.kind == "f":
        frames, save, beside = without_gaps(frames, save, beside)
    if isinstance(window, tuple):
        centre, width = window
        own = (centre - width / 2, centre + width / 2)
    if own is not None and window != "auto":
        span = own if mirror is None else (mirror - own[1], mirror - own[0])
    elif window is None and whole and frames.dtype.kind == "u":
        span = (0.0, float(np.iinfo(frames.dtype).max))
    else:
        span = percentiles(frames, beside)
    return Scan(frames, span, volume, save, blank)


def without_gaps(
    frames: np.ndarray, save: Save, beside: np.ndarray | None
) -> tuple[np.ndarray, Save, np.ndarray | None]:
    """Fill NaN and infinity by the least value, and put them back before the scan is saved."""
    gaps = ~np.isfinite(frames)
    if not gaps.any():
        return frames, save, beside
    if gaps.all():
        raise FileError("no pixel is a number; remove the file.")
    filled = np.where(gaps, frames[~gaps].min(), frames)

    def save_with_gaps(styled: np.ndarray, path: Path) -> None:
        save(np.where(gaps, frames, styled), path)

    return filled, save_with_gaps, gaps if beside is None else gaps | beside


def percentiles(frames: np.ndarray, beside: np.ndarray | None) -> Span:
    """Give the range that holds nearly all values of a scan, read on a thinned grid."""
    step = max(1, math.ceil((frames.size / _SAMPLE) ** (1 / min(3, frames.ndim))))
    grid = tuple(slice(None, None, step if size >= 2 * step else 1) for size in frames.shape[:3])
    values = frames[grid].astype(np.float64)
    values = values if beside is None else values[~beside[grid]]
    if not values.size:
        values = frames.astype(np.float64)
    low, high = (float(value) for value in np.percentile(values, PERCENTILES))
    if low < high:
        return low, high
    low, high = float(frames.min()), float(frames.max())
    return (low, high) if low < high else (low, low + 1)


def rescaled(
    stored: np.ndarray,
    slope: Any,
    intercept: Any,
    limits: tuple[float, float],
    *,
    inverted: bool = False,
) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray], float]:
    """Turn stored values into true ones, exactly where that can be.

    Args:
        stored: `(T, H, W)` integers, or floats.
        slope: a number, or one for each frame `(T, 1, 1)`.
        intercept: as `slope`.
        limits: the least and the largest value that can be stored.
        inverted: less is brighter; true values are mirrored within the limits.

    Returns:
        The true values, in the smallest dtype that holds them exactly, else float32; the way back,
        which rounds to the nearest value that can be stored; and what true values are mirrored at.
    """
    ends = [np.asarray(end * np.float64(1) * slope + intercept) for end in limits]
    mirror: Any = ends[0] + ends[1]
    kept = stored.dtype.newbyteorder("=")
    if kept.kind == "f":
        dtype = np.dtype(np.float32) if kept.itemsize <= 4 else kept
        mirror = 0.0  # their limits are far out
    else:
        dtype = smallest(ends, np.asarray(slope), np.asarray(intercept))
    if dtype.kind == "f":
        true = stored * np.asarray(slope, np.float64) + intercept
    else:
        whole = [np.asarray(value).astype(np.int64) for value in (slope, intercept)]
        plain = np.all(whole[0] == 1) and np.all(whole[1] == 0)
        true = stored if plain else stored.astype(np.int64) * whole[0] + whole[1]
    seen = (mirror - true if inverted else true).astype(dtype, copy=False)

    def back(styled: np.ndarray) -> np.ndarray:
        values = (styled.astype(np.float64) if not inverted else mirror - styled) - intercept
        values = values / slope
        return values.astype(kept) if kept.kind == "f" else values.round().clip(*limits).astype(kept)

    return seen, back, float(np.mean(mirror))


def smallest(ends: list[np.ndarray], slope: np.ndarray, intercept: np.ndarray) -> np.dtype:
    """Find the integers that hold all values between two ends, or float32 where none do."""
    if np.all(slope == slope.round()) and np.all(intercept == intercept.round()):
        low, high = min(map(np.min, ends)), max(map(np.max, ends))
        for name in ("uint8", "int16", "uint16", "int32"):
            if np.iinfo(name).min <= low and high <= np.iinfo(name).max:
                return np.dtype(name)
    return np.dtype(np.float32)


def without_alpha(pixels: np.ndarray) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    """Take the last channel off `(T, H, W, C)`, and give what puts it back.

    What is transparent is filled from what is seen, frame by frame, so it decides nothing.

    Returns:
        `(T, H, W, C - 1)`, or `(T, H, W)` if only one channel is left; and a function that gives styled
        values of that shape their transparency again, and hidden pixels their own values.
    """
    alpha = pixels[..., -1]
    colour = pixels[..., 0] if pixels.shape[-1] == 2 else pixels[..., :-1]
    seen, backs = zip(*map(filled, colour, alpha), strict=True)

    def whole(styled: np.ndarray) -> np.ndarray:
        shown = np.stack([back(frame) for back, frame in zip(backs, styled, strict=True)])
        return np.concatenate([shown.reshape(*alpha.shape, -1), alpha[..., None]], axis=-1)

    return np.stack(seen), whole


def as_picture(picture: Any) -> Any:
    """Give the middle frame of a scan as an array `(H, W)` or `(H, W, 3)`, for eyes and encoders.

    Args:
        picture: what `open_image` gave; what is no scan is returned as it is.

    Returns:
        uint8 where the scan has it and shows all of it, else float32 in [0, 1].
    """
    if not isinstance(picture, Scan):
        return picture
    frame, (low, high) = picture.frames[len(picture.frames) // 2], picture.span
    if frame.ndim == 3:
        frame = frame[..., :3] if frame.shape[2] >= 3 else frame[..., 0]
    if frame.dtype == np.uint8 and picture.span == (0, 255):
        return frame
    return ((frame.astype(np.float32) - low) / (high - low)).clip(0, 1)


def unreadable(path: Path, error: Exception) -> FileError:
    """Name a damaged file, with the first line of what a decoder says of it."""
    return FileError(f"cannot read {path}: {first_line(error)} Remove the file or save it again.")


def missing(path: Path, library: str) -> MissingExtraError:
    """Say which extra a file needs."""
    return missing_extra(str(path), library, "medical")


@contextmanager
def quiet(name: str) -> Iterator[None]:
    """Keep a library's warnings about odd files off the terminal; the pixels are what counts."""
    logger = logging.getLogger(name)
    before, logger.disabled = logger.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = before
