"""Write images with PIL, and keep metadata and transparency that PIL alone would lose."""

import struct
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from styleaug.io.headers import save_options
from styleaug.io.profiles import fits

__all__ = ["save_bmp", "save_gif", "save_pil"]


def save_pil(image: Image.Image | np.ndarray, file: BytesIO, options: dict[str, Any]) -> None:
    """Write with PIL, with the metadata of the source file and its colour profile if it fits."""
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    profile = picture.info.get("icc_profile")
    # In some formats, PIL would embed the profile in `info`.
    options = (
        options
        | save_options(picture, options["format"])
        | {"icc_profile": profile if fits(profile, picture.mode) else None}
    )
    picture.save(file, **options)


def save_bmp(image: Image.Image | np.ndarray, file: BytesIO, options: dict[str, Any]) -> None:
    """Write a BMP; with transparency it needs a version 4 header, which PIL does not write."""
    if not isinstance(image, Image.Image) or image.mode != "RGBA":
        save_pil(image, file, options)
        return
    pixels = image.tobytes("raw", "BGRA", 0, -1)
    masks = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    sizes = (108, image.width, image.height, 1, 32, 3, len(pixels), 3780, 3780, 0, 0)
    header = struct.pack("<IiiHHIIiiII4I4s48x", *sizes, *masks, b"BGRs")
    start = 14 + len(header)
    file.write(struct.pack("<2sIII", b"BM", start + len(pixels), 0, start) + header + pixels)


def save_gif(image: Image.Image | np.ndarray, file: BytesIO, options: dict[str, Any]) -> None:
    """Write a GIF; its pixels must be opaque or fully transparent.

    Raises:
        ValueError: a pixel is partly transparent.
    """
    if isinstance(image, Image.Image) and image.mode in ("LA", "RGBA"):
        image = image.convert("RGBA")
        if any(image.getchannel("A").histogram()[1:255]):
            raise ValueError("GIF cannot hold partly transparent pixels; save it as .png")
    save_pil(image, file, options)
