"""Medical images: frames in true values, the range that is shown, and a function that writes them back."""

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
"""Number of values that `auto` reads."""

PERCENTILES = (0.5, 99.5)

Window = tuple[float, float] | Literal["auto", "dicom"]
"""Centre and width in the file's units, `"auto"` for percentiles, or `"dicom"` for the file's window."""

Span = tuple[float, float]
Save = Callable[[np.ndarray, Path], None]


@dataclass(frozen=True, eq=False)
class Scan:
    """One or more frames in true values; larger values are brighter."""

    frames: np.ndarray
    """`(T, H, W)` or `(T, H, W, C)`, such as Hounsfield units."""

    span: Span
    """Values that are shown as black and white."""

    volume: bool
    """True if the frames are slices or times of one volume. They then share one style and its statistics."""

    save: Save
    """Function that writes styled frames of the same shape and dtype, in the same format and header."""

    blank: bool = False
    """True if all pixels are transparent."""


def parse_window(text: Any) -> Window | None:
    """Parse a window: `"40/400"` (centre/width), `"auto"` or `"dicom"`.

    Raises:
        ConfigError: the text is not a window.
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
    """Return a scan: choose its range, and replace values that are not numbers until it is saved.

    Args:
        frames: `(T, H, W)` or `(T, H, W, C)`.
        save: see `Scan`.
        window: the user's window; None uses `own`, else the whole range of the dtype if `whole`, else the
            percentiles.
        own: the range given in the file.
        whole: show unsigned integers over the whole range of their dtype.
        volume: see `Scan`.
        beside: mask of the shape of `frames`; values to ignore, such as padding around a scan.
        mirror: the frames hold `mirror` minus the file's values, because smaller values are brighter.
        blank: see `Scan`.

    Raises:
        FileError: no value is a finite number.
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
    """Replace NaN and infinity by the least value; the new `save` restores them."""
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
    """Return the range between `PERCENTILES` of a scan, read on a coarse grid."""
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
    """Convert stored values to true values, exactly if possible.

    Args:
        stored: `(T, H, W)` integers or floats.
        slope: a number, or one for each frame `(T, 1, 1)`.
        intercept: a number, or one for each frame `(T, 1, 1)`.
        limits: the least and the largest value that can be stored.
        inverted: True if smaller values are brighter; true values are then mirrored within the limits.

    Returns:
        The true values, in the smallest dtype that holds them exactly, else float32; the inverse function,
        which rounds to the nearest value that can be stored; and the number that mirrors true values.
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
    """Return the smallest integer dtype that holds all values between two ends, else float32."""
    if np.all(slope == slope.round()) and np.all(intercept == intercept.round()):
        low, high = min(map(np.min, ends)), max(map(np.max, ends))
        for name in ("uint8", "int16", "uint16", "int32"):
            if np.iinfo(name).min <= low and high <= np.iinfo(name).max:
                return np.dtype(name)
    return np.dtype(np.float32)


def without_alpha(pixels: np.ndarray) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    """Remove the alpha channel of `(T, H, W, C)`.

    Transparent pixels are filled with visible colours of their frame.

    Returns:
        `(T, H, W, C - 1)`, or `(T, H, W)` if only one channel is left; and a function that restores alpha
        and hidden pixels in styled values of that shape.
    """
    alpha = pixels[..., -1]
    colour = pixels[..., 0] if pixels.shape[-1] == 2 else pixels[..., :-1]
    seen, backs = zip(*map(filled, colour, alpha), strict=True)

    def whole(styled: np.ndarray) -> np.ndarray:
        shown = np.stack([back(frame) for back, frame in zip(backs, styled, strict=True)])
        return np.concatenate([shown.reshape(*alpha.shape, -1), alpha[..., None]], axis=-1)

    return np.stack(seen), whole


def as_picture(picture: Any) -> Any:
    """Return the middle frame of a scan as an array `(H, W)` or `(H, W, 3)`, for display and encoders.

    Args:
        picture: result of `open_image`; if it is not a scan, it is returned unchanged.

    Returns:
        uint8 if the scan is uint8 and shows its whole range, else float32 in [0, 1].
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
    """Return the error for a damaged file, with the first line of the decoder's message."""
    return FileError(f"cannot read {path}: {first_line(error)} Remove the file or save it again.")


def missing(path: Path, library: str) -> MissingExtraError:
    """Return the error that names the extra which a file needs."""
    return missing_extra(str(path), library, "medical")


@contextmanager
def quiet(name: str) -> Iterator[None]:
    """Hide a library's warnings about unusual files."""
    logger = logging.getLogger(name)
    before, logger.disabled = logger.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = before
