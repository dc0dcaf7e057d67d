"""What a DICOM header says of stored values: how they become true ones, and which are shown."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np

__all__ = ["modality_lookup", "number", "padding_of", "rescale_of", "stored_limits", "value_of", "window_of"]


def functional_groups(data: Any, frames: int, keyword: str) -> list[Any]:
    """Give what an enhanced file says for all frames, or for each of them; else the file itself."""
    for name in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        groups = data.get(name) or []
        items = [group[keyword].value[0] for group in groups if keyword in group and group[keyword].value]
        if items and (len(items) == len(groups) and len(groups) in (1, frames)):
            return items
    return [data]


def rescale_of(data: Any, frames: int) -> tuple[Any, Any]:
    """Read slope and intercept: numbers, or `(T, 1, 1)` where frames differ."""
    pairs = []
    for item in functional_groups(data, frames, "PixelValueTransformationSequence"):
        slope, intercept = number(item, "RescaleSlope"), number(item, "RescaleIntercept")
        # Each means nothing without the other, and a slope of zero would leave nothing.
        pairs.append((slope, intercept) if slope and intercept is not None else (1.0, 0.0))
    if len(set(pairs)) == 1:
        return pairs[0]
    slopes, intercepts = np.array(pairs).T[:, :, None, None]
    return slopes, intercepts


def value_of(data: Any, keyword: str) -> Any:
    """Read a tag; where its value cannot be parsed, give its bytes as text.

    pydicom parses values when they are asked for, and raises anything on wrong ones. So an identifier
    whose type is unknown still tells one patient, or one series, from another.
    """
    try:
        return data.get(keyword)
    except Exception:
        value = data.get_item(keyword).value
        return value.decode("latin-1").strip("\0 ") if isinstance(value, bytes) else None


def number(item: Any, keyword: str) -> float | None:
    """Read the first value of a tag as a finite number, if it is one."""
    with suppress(Exception):  # pydicom converts on reading, and raises anything on wrong values
        value = item.get(keyword)
        value = float(value if isinstance(value, str | int | float) else value[0])
        return value if np.isfinite(value) else None
    return None


def window_of(data: Any) -> tuple[float, float] | None:
    """Read the first window, or the range of the lookup table, in true values."""
    frames = number(data, "NumberOfFrames") or 1
    item = functional_groups(data, int(frames), "FrameVOILUTSequence")[0]
    centre, width = number(item, "WindowCenter"), number(item, "WindowWidth")
    if centre is not None and width is not None and width > 0:
        return centre - width / 2, centre + width / 2
    with suppress(Exception):
        count, first, _ = map(int, data.VOILUTSequence[0].LUTDescriptor)
        return float(first), float(first + (count or 2**16) - 1)
    return None


def modality_lookup(
    data: Any,
) -> tuple[Callable[[np.ndarray], np.ndarray], Callable[[np.ndarray], np.ndarray]] | None:
    """Give the modality's lookup table and its reverse, if it has one that can be reversed."""
    try:
        item = data.ModalityLUTSequence[0]
        count, first, _ = map(int, item.LUTDescriptor)
        content = item.LUTData
        order = "<" if data.original_encoding[1] else ">"
        table = np.frombuffer(content, f"{order}u2") if isinstance(content, bytes) else np.array(content)
        table = table[: count or 2**16].astype(np.int64)
    except Exception:  # none, or one that makes no sense
        return None
    steps = np.diff(table)
    if not (len(table) > 1 and ((steps >= 0).all() or (steps <= 0).all()) and steps.any()):
        return None
    order_up = np.argsort(table, kind="stable")
    middles = (table[order_up][1:] + table[order_up][:-1]) / 2
    return (
        lambda stored: table[(stored.astype(np.int64) - first).clip(0, len(table) - 1)],
        lambda true: order_up[np.searchsorted(middles, true)] + first,
    )


def stored_limits(data: Any, dtype: np.dtype) -> tuple[float, float]:
    """Give the least and largest value that the stored bits can hold."""
    if dtype.kind == "f":
        return 0.0, 1.0
    bits = number(data, "BitsStored") or 8 * dtype.itemsize
    return (0, 2**bits - 1) if dtype.kind == "u" else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def padding_of(data: Any, stored: np.ndarray) -> np.ndarray | None:
    """Tell which pixels lie outside what was scanned, if any do."""
    value = number(data, "PixelPaddingValue")
    if value is None:
        return None
    other = number(data, "PixelPaddingRangeLimit")
    low, high = sorted((value, value if other is None else other))
    padding = (stored >= low) & (stored <= high)
    return padding if padding.any() else None
