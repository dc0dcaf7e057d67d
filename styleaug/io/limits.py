"""How much a file may claim to hold: one place for all codecs, asked before anything is unpacked."""

import os
import re
from pathlib import Path

from styleaug.errors import ConfigError, FileError

__all__ = ["MAX_BYTES", "MAX_PIXELS", "VARIABLE", "check_bytes", "check_size", "most_bytes", "trusted"]

MAX_PIXELS = 120_000_000
"""Of one frame. Larger images are refused with their size: at float32 one would fill gigabytes."""

MAX_BYTES = 2**31
"""Of all frames of a file, decoded, unless `VARIABLE` names another number."""

EASY_BYTES = 2**26
"""What every file may claim, however small it is: 22 million pixels of 8-bit colour, some seconds of work."""

MOST_PACKED = 256
"""How many times its own size a file may claim beyond `EASY_BYTES`. Photographs and scans stay far below;
deflated zeros take a thousandth, and so a few hundred bytes can fill the memory."""

VARIABLE = "STYLEAUG_MAX_BYTES"
"""Environment variable with the number of bytes that a file may claim, such as 8000000000 or 8G.

Who sets it trusts the files up to there: `EASY_BYTES` and `MOST_PACKED` then no longer count.
"""

UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def most_bytes(path: Path | str, packed: float | None = None) -> int:
    """Return how many bytes a file may hold when it is unpacked.

    Args:
        path: the file.
        packed: bytes that it takes on the disk; None asks the disk, and infinity leaves the rate of
            compression out, for a header whose pixels are in another file.

    Raises:
        ConfigError: `STYLEAUG_MAX_BYTES` is no number of bytes.
    """
    given = os.environ.get(VARIABLE, "").strip()
    if given:
        found = re.fullmatch(r"(\d[\d_]{0,20})([KMGT]?)B?", given, re.IGNORECASE)
        if not found:
            raise ConfigError(
                f"{VARIABLE} must be a number of bytes such as 8000000000 or 8G, got {given!r}."
            )
        return int(found[1].replace("_", "")) * UNITS[found[2].upper()]
    if packed is None:
        try:
            packed = Path(path).stat().st_size
        except (OSError, ValueError):  # from memory, or gone; who opens it says so
            packed = float("inf")
    return int(min(MAX_BYTES, max(EASY_BYTES, MOST_PACKED * packed)))


def check_bytes(path: Path | str, size: int, *, packed: float | None = None, what: str = "") -> None:
    """Refuse what would take too much memory, before it is unpacked.

    Args:
        path: the file, for its size and the message.
        size: bytes that it holds when it is unpacked, as its header says, or as were found so far.
        packed: see `most_bytes`.
        what: it holds, such as `"9 frames of 20 x 10 pixels"`, for the message.

    Raises:
        FileError: naming the size, and how to raise the bound.
    """
    most = most_bytes(path, packed)
    if size > most:
        told = f"{what}, {size:,} bytes" if what else f"{size:,} bytes"
        raise FileError(
            f"{path} claims {told}; a file of its size may hold {most:,}. Cut or split it, or set {VARIABLE} "
            "in the environment if you trust it and have the memory."
        )


def check_size(
    path: Path | str, height: int, width: int, count: int = 1, size: int = 1, *, packed: float | None = None
) -> None:
    """Refuse frames that are empty or do not fit, before they are decoded.

    Args:
        path: the file, for its size and the message.
        height: of a frame.
        width: of a frame.
        count: of frames.
        size: bytes of a pixel with all its channels.
        packed: see `most_bytes`.

    Raises:
        FileError: naming the size.
    """
    if height < 1 or width < 1 or count < 1 or size < 1:
        raise FileError(f"{path} has {count} frames of {width} x {height} pixels; remove it.")
    if height * width > MAX_PIXELS:
        raise FileError(f"{path} has {width} x {height} pixels, more than {MAX_PIXELS:,}; cut it into tiles.")
    what = f"{count:,} frames of {width} x {height} pixels" if count > 1 else f"{width} x {height} pixels"
    check_bytes(path, height * width * count * size, packed=packed, what=what)


def trusted(most: int) -> int:
    """Raise another bound, such as of elements in a header, as far as `VARIABLE` raises that of bytes."""
    return most * max(EASY_BYTES, most_bytes("", packed=0)) // EASY_BYTES
