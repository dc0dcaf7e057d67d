"""Keep an image file's metadata for its copy: resolution, descriptions, EXIF, XMP."""

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
"""Key of the `Header` in `Image.info`."""

_MOST_BYTES = 65_000
"""Most bytes of EXIF, and of XMP: JPEG cannot hold more."""

PORTABLE: dict[str, tuple[str, ...]] = {
    "JPEG": ("dpi", "exif", "xmp"),
    "PNG": ("dpi", "exif"),
    "WEBP": ("exif", "xmp"),
    "TIFF": ("dpi",),
    "BMP": ("dpi",),
}
"""Metadata that each file type can take from another type."""

PNG_PARTS = (b"gAMA", b"cHRM", b"sRGB", b"cICP", b"tIME", b"tEXt", b"zTXt", b"iTXt")
EXIF_TEXT = b"Raw profile type "
XMP_TEXT = b"XML:com.adobe.xmp"

TIFF_TEXT = (269, 270, 271, 272, 285, 305, 306, 315, 316, 33432)
"""TIFF tags with text: names, description, camera, page, software, date, artist, computer, copyright."""

TIFF_RESOLUTION = (282, 283, 296)
TIFF_PLACE = (700, 33550, 33922, 34264, 34735, 34736, 34737, 42112, 42113)
"""TIFF tags of XMP and of a GeoTIFF's location. They refer to the stored pixels, before turning."""

TIFF_LOSSLESS = ("raw", "tiff_lzw", "packbits")
"""TIFF compressions that are kept. Others are lossy or for two colours; deflate replaces them."""

LAYOUT = re.compile(r'\s*(\{"shape"|ImageJ=|<\?xml|<OME)')
"""Pattern of descriptions that define the layout of pixels for programs."""


@dataclass(frozen=True)
class Header:
    """Metadata of a file, as options of PIL's `save` for a file of the same format."""

    kind: str
    """PIL's name of the format, such as `"JPEG"`."""

    options: dict[str, Any]


def turn_of(image: Image.Image) -> int:
    """Return the EXIF orientation of an image that is not loaded yet; 1 is upright."""
    turn = image.getexif().get(ExifTags.Base.Orientation, 1)
    return turn if turn in range(2, 9) else 1


def read_header(image: Image.Image, source: Path | BytesIO, *, turn: int, upright: bool) -> Header:
    """Collect the metadata of a loaded image's file.

    The thumbnail in EXIF is dropped, because it shows the original; so is the orientation if the copy is
    upright. Metadata that cannot be read is left out.

    Args:
        image: image as PIL opened it.
        source: the file or stream that it was read from.
        turn: EXIF orientation, see `turn_of`.
        upright: True if the copy is turned upright; otherwise EXIF keeps the orientation. PIL turns TIFF
            itself.
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
    """Return EXIF without the thumbnail and, if `upright`, without the orientation."""
    try:
        exif = image.getexif()
        if upright:
            exif.pop(ExifTags.Base.Orientation, None)
        for tags in (exif, exif.get_ifd(ExifTags.IFD.Exif)):
            for tag, value in list(tags.items()):
                if isinstance(value, str) and not value.isascii():  # PIL would write question marks instead
                    tags[tag] = value.encode("latin-1")
        content = exif.tobytes() if len(exif) else b""
    except Exception:  # cameras and editors write values of any kind
        return b""
    return content if len(content) <= _MOST_BYTES else b""


def png_info(source: Path | BytesIO, *, turned: bool) -> PngInfo | None:
    """Collect a PNG's text and colour information; XMP only if the image is not turned."""
    found = PngInfo()
    stream: BinaryIO = source.open("rb") if isinstance(source, Path) else BytesIO(source.getbuffer())
    with stream:
        for kind, content in parts_of(stream, PNG_PARTS):
            if not content.startswith(EXIF_TEXT) and not (turned and content.startswith(XMP_TEXT)):
                found.add(kind, content)
    return found if found.chunks else None


def tiff_options(image: Any, *, turned: bool, swapped: bool) -> dict[str, Any]:
    """Collect tags and compression of a TIFF."""
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
    """Return the options of PIL's `save` that write an image's metadata into another file.

    Args:
        image: image from `open_image`, or made from one.
        kind: PIL's name of the other file's format.
    """
    header = image.info.get(KEY)
    if not isinstance(header, Header):
        return {}
    if header.kind == kind:
        return {name: value for name, value in header.options.items() if kind != "TIFF" or name != "dpi"}
    return {name: value for name, value in header.options.items() if name in PORTABLE.get(kind, ())}
