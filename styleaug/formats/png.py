"""PNG of 16-bit colour, which PIL reads as 8 bits."""

import zlib
from pathlib import Path

import numpy as np

from styleaug.errors import FileError
from styleaug.formats.limits import check_bytes, check_size
from styleaug.formats.scan import Scan, Window, make_scan, missing, without_alpha

__all__ = ["is_deep", "open_deep"]

SIGNATURE = b"\x89PNG\r\n\x1a\n"
SEVERAL = {2: 3, 4: 2, 6: 4}
"""Channels of the colour types with more than one."""

WITH_ALPHA = (4, 6)
KEPT = {b"iCCP", b"sRGB", b"gAMA", b"cHRM", b"pHYs"}
"""Parts that say how colours are meant, and how large a pixel is."""


def is_deep(path: Path) -> bool:
    """Tell from its header whether a PNG has several channels of 16 bits."""
    with path.open("rb") as file:
        head = file.read(26)
    return head[:8] == SIGNATURE and head[12:16] == b"IHDR" and head[24] == 16 and head[25] in SEVERAL


def open_deep(path: Path, window: Window | None = None) -> Scan:
    """Read a PNG for which `is_deep` holds, with all its bits.

    Raises:
        FileError: damaged, or too large.
        ConfigError: imagecodecs is missing.
    """
    try:
        import imagecodecs
    except ImportError:
        raise missing(path, "imagecodecs") from None
    with path.open("rb") as file:
        head = file.read(26)
    width, height = (int.from_bytes(head[at : at + 4], "big") for at in (16, 20))
    check_size(path, height, width, 1, 2 * SEVERAL[head[25]])
    check_bytes(path, path.stat().st_size)
    content = path.read_bytes()
    try:
        pixels: np.ndarray = imagecodecs.png_decode(content)[None]
    except Exception as error:
        raise FileError(f"cannot read {path}: {error}. Remove the file or save it again.") from None
    kept = ancillary(content)
    frames, whole = without_alpha(pixels) if content[25] in WITH_ALPHA else (pixels, np.asarray)

    def save(styled: np.ndarray, target: Path) -> None:
        packed = bytes(imagecodecs.png_encode(np.ascontiguousarray(whole(styled)[0])))
        end = packed.index(b"IHDR") + 4 + 13 + 4
        target.write_bytes(packed[:end] + kept + packed[end:])

    return make_scan(frames, save, window=window, whole=True)


def ancillary(content: bytes) -> bytes:
    """Collect the parts of a PNG that are written again."""
    at, found = 8, b""
    while at + 12 <= len(content):
        size, kind = int.from_bytes(content[at : at + 4], "big"), content[at + 4 : at + 8]
        part = content[at : at + 12 + size]
        if kind in (b"IDAT", b"IEND"):
            break
        if kind in KEPT and zlib.crc32(part[4:-4]) == int.from_bytes(part[-4:], "big"):
            found += part
        at += 12 + size
    return found
