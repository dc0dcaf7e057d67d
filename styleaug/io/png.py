"""Read and write PNG with 16-bit colour, which PIL would reduce to 8 bits."""

import os
import zlib
from collections.abc import Container, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from styleaug.errors import FileError
from styleaug.io.limits import check_bytes, check_size
from styleaug.io.scan import Scan, Window, make_scan, missing, without_alpha

__all__ = ["check_pixels", "is_deep", "open_deep", "parts_of", "scale_key"]

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_SEVERAL = {2: 3, 4: 2, 6: 4}
"""Number of channels of PNG's colour types with more than one channel."""

_KEPT = (b"iCCP", b"sRGB", b"gAMA", b"cHRM", b"cICP", b"pHYs", b"eXIf", b"tIME", b"tEXt", b"zTXt", b"iTXt")
"""Chunks that are kept: colour space, size of a pixel, text."""

KEPT_BYTES = 2**24
"""Most bytes of all kept chunks."""


def is_deep(path: Path) -> bool:
    """Return True if a PNG's header has several channels of 16 bits."""
    with path.open("rb") as file:
        head = file.read(26)
    return head[:8] == SIGNATURE and head[12:16] == b"IHDR" and head[24] == 16 and head[25] in _SEVERAL


def open_deep(path: Path, window: Window | None = None) -> Scan:
    """Read a PNG with several 16-bit channels, without loss.

    Raises:
        FileError: the file is damaged or too large.
        ConfigError: imagecodecs is missing.
    """
    try:
        import imagecodecs
    except ImportError:
        raise missing(path, "imagecodecs") from None
    with path.open("rb") as file:
        head = file.read(26)
    width, height = (int.from_bytes(head[at : at + 4], "big") for at in (16, 20))
    check_size(path, height, width, 1, 2 * _SEVERAL[head[25]])
    check_bytes(path, path.stat().st_size)
    content = path.read_bytes()
    try:
        pixels: np.ndarray = imagecodecs.png_decode(content)[None]
    except Exception as error:
        raise FileError(f"cannot read {path}: {error}. Remove the file or save it again.") from None
    kept = b"".join(part(*found) for found in parts_of(BytesIO(content), _KEPT))
    # If the PNG has a transparent colour, the decoder also adds an alpha channel.
    alpha = pixels.shape[-1] in (2, 4)
    frames, whole = without_alpha(pixels) if alpha else (pixels, np.asarray)

    def save(styled: np.ndarray, target: Path) -> None:
        packed = bytes(imagecodecs.png_encode(np.ascontiguousarray(whole(styled)[0])))
        end = packed.index(b"IHDR") + 4 + 13 + 4
        target.write_bytes(packed[:end] + kept + packed[end:])

    return make_scan(frames, save, window=window, whole=True, blank=alpha and not pixels[..., -1].any())


def parts_of(file: BinaryIO, kinds: Container[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """Yield name and content of the complete chunks of a PNG that are of these kinds."""
    file.seek(8)
    room = KEPT_BYTES
    while len(head := file.read(8)) == 8:
        size, kind = int.from_bytes(head[:4], "big"), head[4:]
        if kind == b"IEND":
            return
        if kind not in kinds or size > room:
            file.seek(size + 4, os.SEEK_CUR)
            continue
        room -= size
        content, crc = file.read(size), file.read(4)
        if zlib.crc32(kind + content) == int.from_bytes(crc, "big"):
            yield kind, content


def check_pixels(path: Path) -> None:
    """Check the checksums of a PNG's pixels, which PIL does not.

    Raises:
        FileError: a checksum is wrong.
    """
    with path.open("rb") as file:
        if file.read(8) != SIGNATURE:
            return
        while len(head := file.read(8)) == 8 and head[4:] != b"IEND":
            left, crc = int.from_bytes(head[:4], "big"), zlib.crc32(head[4:])
            if head[4:] not in (b"IDAT", b"fdAT"):
                file.seek(left + 4, os.SEEK_CUR)
                continue
            while left and (content := file.read(min(left, 2**20))):
                left, crc = left - len(content), zlib.crc32(content, crc)
            if crc != int.from_bytes(file.read(4), "big"):
                raise FileError(f"{path} is damaged: a checksum does not fit. Copy or save it again.")


def part(kind: bytes, content: bytes) -> bytes:
    """Return a chunk as bytes, with length and checksum."""
    crc = zlib.crc32(kind + content)
    return len(content).to_bytes(4, "big") + kind + content + crc.to_bytes(4, "big")


def scale_key(image: Any) -> None:
    """Scale a PNG's transparent colour to the depth of the decoded pixels; PIL does not."""
    key, raw = image.info.get("transparency"), image.tile[0][3] if image.tile else ""
    if image.format != "PNG" or isinstance(key, bytes | None):
        return
    if raw == "RGB;16B":
        image.info["transparency"] = tuple(value >> 8 for value in key)
    elif raw in ("L;2", "L;4"):
        image.info["transparency"] = key * (85 if raw == "L;2" else 17)
