"""What an image file says beside its pixels, kept for its copy: size in print, descriptions, EXIF, XMP."""

import re
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from PIL import ExifTags, Image, TiffImagePlugin
from PIL.PngImagePlugin import PngInfo

from styleaug.io.png import parts_of

__all__ = ["KEY", "Header", "read_header", "save_options", "turn_of"]

KEY = "styleaug header"
"""Where `Image.info` has a `Header`."""

_MOST_BYTES = 65_000
"""Of EXIF, and of XMP: JPEG has no room for more."""

PORTABLE = {"JPEG": ("dpi", "exif", "xmp"), "PNG": ("dpi", "exif"), "WEBP": ("exif", "xmp")} | dict.fromkeys(
    ("TIFF", "BMP"), ("dpi",)
)
"""What each file type can say that came from another."""

PNG_PARTS = (b"gAMA", b"cHRM", b"sRGB", b"cICP", b"tIME", b"tEXt", b"zTXt", b"iTXt")
EXIF_TEXT = b"Raw profile type "
XMP_TEXT = b"XML:com.adobe.xmp"

TIFF_TEXT = (269, 270, 271, 272, 285, 305, 306, 315, 316, 33432)
"""Names, description, camera, page, software, date, artist, computer, copyright."""

TIFF_RESOLUTION = (282, 283, 296)
TIFF_PLACE = (700, 33550, 33922, 34264, 34735, 34736, 34737, 42112, 42113)
"""XMP, and where on earth a GeoTIFF lies. They go by the pixels as they are stored."""

TIFF_LOSSLESS = ("raw", "tiff_lzw", "packbits")
"""Compressions that are kept. Others are lossy or for two colours, and become deflate."""

LAYOUT = re.compile(r'\s*(\{"shape"|ImageJ=|<\?xml|<OME)')
"""How descriptions begin that tell programs how the pixels lie."""


@dataclass(frozen=True)
class Header:
    """What is said, as options of PIL's `save` for a file of the same kind."""

    kind: str
    """PIL's name of the format, such as `"JPEG"`."""

    options: dict[str, Any]


def turn_of(image: Image.Image) -> int:
    """Tell how an image that is not loaded yet is to be turned, as EXIF numbers it; 1 is not at all."""
    turn = image.getexif().get(ExifTags.Base.Orientation, 1)
    return turn if turn in range(2, 9) else 1


def read_header(image: Image.Image, source: Path | BytesIO, *, turn: int, upright: bool) -> Header:
    """Collect what a loaded image's file says.

    EXIF loses its thumbnail, which shows what the image was, and where the copy is upright how it is turned.
    What cannot be read is left out.

    Args:
        image: as PIL opened it.
        source: where from.
        turn: see `turn_of`.
        upright: its copy is turned so; otherwise EXIF keeps that it is to be. TIFF is turned by PIL.
    """
    kind = {"MPO": "JPEG"}.get(str(image.format), str(image.format))
    turned = turn > 1 and (upright or kind == "TIFF")
    swapped = turned and turn >= 5
    options: dict[str, Any] = {}
    dpi = image.info.get("dpi")
    if isinstance(dpi, tuple) and len(dpi) == 2 and all(0 < float(value) < 2**16 for value in dpi):
        options["dpi"] = tuple(map(float, dpi[::-1] if swapped else dpi))
    if kind == "TIFF":
        return Header(kind, options | tiff_options(image, turned=turned, swapped=swapped))
    if kind in ("JPEG", "PNG", "WEBP"):
        options |= {"exif": exif_of(image, upright=upright)}
        xmp = image.info.get("xmp")
        options |= {"xmp": xmp} if isinstance(xmp, bytes) and len(xmp) <= _MOST_BYTES and not turned else {}
    if kind == "JPEG" and image.info.get("comment"):
        options["comment"] = image.info["comment"]
    if kind == "PNG":
        options["pnginfo"] = png_info(source, turned=turned)
    return Header(kind, {name: value for name, value in options.items() if value})


def exif_of(image: Image.Image, *, upright: bool) -> bytes:
    """Give EXIF without a thumbnail, and without how the image is turned."""
    try:
        exif = image.getexif()
        if upright:
            exif.pop(ExifTags.Base.Orientation, None)
        for tags in (exif, exif.get_ifd(ExifTags.IFD.Exif)):
            for tag, value in list(tags.items()):
                if isinstance(value, str) and not value.isascii():  # PIL would write question marks
                    tags[tag] = value.encode("latin-1")
        content = exif.tobytes() if len(exif) else b""
    except Exception:  # what cameras and editors wrote there can be anything
        return b""
    return content if len(content) <= _MOST_BYTES else b""


def png_info(source: Path | BytesIO, *, turned: bool) -> PngInfo | None:
    """Collect the text and the meaning of colours in a PNG; XMP only where it fits the pixels."""
    found = PngInfo()
    stream: BinaryIO = source.open("rb") if isinstance(source, Path) else BytesIO(source.getbuffer())
    with stream:
        for kind, content in parts_of(stream, PNG_PARTS):
            if not content.startswith(EXIF_TEXT) and not (turned and content.startswith(XMP_TEXT)):
                found.add(kind, content)
    return found if found.chunks else None


def tiff_options(image: Any, *, turned: bool, swapped: bool) -> dict[str, Any]:
    """Collect tags of a TIFF, and how it is compressed."""
    kept = TiffImagePlugin.ImageFileDirectory_v2()
    for tag in (*TIFF_TEXT, *TIFF_RESOLUTION, *(() if turned else TIFF_PLACE)):
        try:
            value = image.tag_v2.get(tag)
            if value is None or (tag in TIFF_TEXT and not isinstance(value, str)):
                continue
        except Exception:  # a damaged tag
            continue
        if isinstance(value, str):
            if tag == 270 and LAYOUT.match(value) and image.mode in ("1", "P", "PA", "CMYK", "YCbCr", "LAB"):
                continue
            value = value.encode("latin-1", "replace")  # which is how PIL decoded it
        kept[tag] = value
        kept.tagtype[tag] = image.tag_v2.tagtype[tag]
    if swapped and 282 in kept and 283 in kept:
        kept[282], kept[283] = kept[283], kept[282]
    compression = image.info.get("compression")
    return {"tiffinfo": kept} | ({"compression": compression} if compression in TIFF_LOSSLESS else {})


def save_options(image: Image.Image, kind: str) -> dict[str, Any]:
    """Give the options that write what an image's file said into another file.

    Args:
        image: from `open_image`, or made of one.
        kind: PIL's name of the other file's format.
    """
    header = image.info.get(KEY)
    if not isinstance(header, Header):
        return {}
    if header.kind == kind:
        return {name: value for name, value in header.options.items() if kind != "TIFF" or name != "dpi"}
    return {name: value for name, value in header.options.items() if name in PORTABLE.get(kind, ())}
