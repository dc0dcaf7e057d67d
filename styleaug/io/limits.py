"""Limits on the size that a file may claim; all codecs check them before they unpack anything."""

import os
import re
from pathlib import Path

from styleaug.errors import ConfigError, FileError

__all__ = ["MAX_BYTES", "MAX_PIXELS", "VARIABLE", "check_bytes", "check_size", "most_bytes", "trusted"]

MAX_PIXELS = 120_000_000
"""Most pixels of one frame. Larger images are refused, because as float32 they would fill gigabytes."""

MAX_BYTES = 2**31
"""Most bytes of all decoded frames of a file, unless `VARIABLE` sets another number."""

EASY_BYTES = 2**26
"""Bytes that any file may claim, even a very small one: 22 million pixels of 8-bit colour."""

MOST_PACKED = 256
"""Largest ratio of claimed size to file size, beyond `EASY_BYTES`.

Photographs and scans stay far below. Deflated zeros reach a thousand, so a small file could fill the memory.
"""

VARIABLE = "STYLEAUG_MAX_BYTES"
"""Environment variable with the number of bytes that a file may claim, such as 8000000000 or 8G.

It means that the files are trusted up to this size: `EASY_BYTES` and `MOST_PACKED` are then ignored.
"""

UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def most_bytes(path: Path | str, packed: float | None = None) -> int:
    """Return the number of bytes that a file may hold after unpacking.

    Args:
        path: the file.
        packed: its size on disk in bytes; None asks the disk. Infinity ignores the compression ratio, for a
            header whose pixels are in another file.

    Raises:
        ConfigError: `STYLEAUG_MAX_BYTES` is not a number of bytes.
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
        except (OSError, ValueError):  # in memory, or deleted; the error comes when it is opened
            packed = float("inf")
    return int(min(MAX_BYTES, max(EASY_BYTES, MOST_PACKED * packed)))


def check_bytes(path: Path | str, size: int, *, packed: float | None = None, what: str = "") -> None:
    """Refuse a file that would take too much memory, before it is unpacked.

    Args:
        path: the file, for its size and the message.
        size: bytes after unpacking, from the header or counted so far.
        packed: see `most_bytes`.
        what: description of the content for the message, such as `"9 frames of 20 x 10 pixels"`.

    Raises:
        FileError: the message names the size, and how to raise the limit.
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
    """Refuse frames that are empty or too large, before they are decoded.

    Args:
        path: the file, for its size and the message.
        height: height of a frame in pixels.
        width: width of a frame in pixels.
        count: number of frames.
        size: bytes of a pixel with all its channels.
        packed: see `most_bytes`.

    Raises:
        FileError: the message names the size.
    """
    if height < 1 or width < 1 or count < 1 or size < 1:
        raise FileError(f"{path} has {count} frames of {width} x {height} pixels; remove it.")
    if height * width > MAX_PIXELS:
        raise FileError(f"{path} has {width} x {height} pixels, more than {MAX_PIXELS:,}; cut it into tiles.")
    what = f"{count:,} frames of {width} x {height} pixels" if count > 1 else f"{width} x {height} pixels"
    check_bytes(path, height * width * count * size, packed=packed, what=what)


def trusted(most: int) -> int:
    """Return another limit, raised by the same factor by which `VARIABLE` raises that of bytes."""
    return most * max(EASY_BYTES, most_bytes("", packed=0)) // EASY_BYTES
