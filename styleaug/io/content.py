"""Recognise a file by its first bytes: the kind of image, and the bits of its values."""

import re
from io import BytesIO
from pathlib import Path

from PIL import features

from styleaug.errors import FileError

__all__ = ["ANIMATED_KINDS", "HEAD", "OPTIONAL", "check_bits", "head_of", "image_kind"]

HEAD = 4096
"""Number of bytes that are read."""

_KINDS = (
    ("JPEG", re.compile(rb"\xff\xd8\xff")),
    ("PNG", re.compile(rb"\x89PNG\r\n\x1a\n")),
    ("GIF", re.compile(rb"GIF8[79]a")),
    ("BMP", re.compile(rb"BM.{4}\0{4}", re.DOTALL)),
    ("TIFF", re.compile(rb"II[*+]\0|MM\0[*+]")),
    ("WEBP", re.compile(rb"RIFF.{4}WEBP", re.DOTALL)),
    ("AVIF", re.compile(rb".{4}ftypavi[fs]", re.DOTALL)),
    ("JPEG2000", re.compile(rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  \r\n\x87\n")),
    ("PPM", re.compile(rb"P[2356]\s")),
)
"""PIL's names of formats, and the first bytes of their files."""

OPTIONAL = {
    name: feature in features.modules | features.codecs and features.check(feature)
    for name, feature in {"WEBP": "webp", "AVIF": "avif", "JPEG2000": "jpg_2000"}.items()
}
"""Formats that not every Pillow supports, and whether the installed one does."""

ANIMATED_KINDS = {"GIF", "PNG", "WEBP", "AVIF"}
"""Formats whose files may be animations."""

SIZ = re.compile(rb"\xff\x4f\xff\x51.{36}(..)(.+)", re.DOTALL)
"""Pattern of the first segment of a JPEG 2000 stream: number of channels, then three bytes for each."""
IHDR = re.compile(rb"ihdr.{8}(..)(.)", re.DOTALL)
"""Pattern of the header of a JPEG 2000 file, which may be far from the stream: channels and bits."""
AV1C = re.compile(rb"av1C..(.)", re.DOTALL)
"""Pattern of AVIF's configuration; bit 0x40 is set if values have more than 8 bits."""
MAXVAL = re.compile(rb"P([36])(?:\s+|#[^\n]*\n)+\d+(?:\s+|#[^\n]*\n)+\d+(?:\s+|#[^\n]*\n)+(\d+)")
"""Pattern of a PPM header, with the largest value."""


def head_of(source: Path | BytesIO) -> bytes:
    """Read the first bytes of a file or stream; a stream keeps its position."""
    if isinstance(source, BytesIO):
        return bytes(source.getbuffer()[:HEAD])
    with source.open("rb") as file:
        return file.read(HEAD)


def image_kind(head: bytes) -> str:
    """Return PIL's name of the format with these first bytes, or "" for a format that we do not read."""
    return next((name for name, start in _KINDS if start.match(head)), "")


def check_bits(path: Path | str, head: bytes, kind: str) -> None:
    """Refuse JPEG 2000, AVIF and PPM with more than 8 bits, which PIL would silently reduce to 8 bits.

    Raises:
        FileError: the file has more than 8 bits in each value.
    """
    deep = False
    if kind == "JPEG2000" and (found := SIZ.search(head) or IHDR.search(head)):
        channels = int.from_bytes(found[1], "big")
        bits = {(depth & 0x7F) + 1 for depth in found[2][: 3 * channels : 3]}
        deep = max(bits) > 8 and (channels > 1 or bits != {16})
    elif kind == "AVIF" and (found := AV1C.search(head)):
        deep = bool(found[1][0] & 0x40)
    elif kind == "PPM" and (found := MAXVAL.match(head)):
        deep = int(found[2][:9]) > 255
    if deep:
        raise FileError(f"{path} has more than 8 bits in each value; save it as a 16-bit PNG or TIFF.")
