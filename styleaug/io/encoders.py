"""Writing images with PIL, and what PIL alone would lose of them."""

import struct
from io import BytesIO

import numpy as np
from PIL import Image

from styleaug.io.headers import save_options
from styleaug.io.profiles import fits

__all__ = ["save_bmp", "save_gif", "save_pil"]


def save_pil(image: Image.Image | np.ndarray, file: BytesIO, options: dict) -> None:
    """Write with PIL, with what the file said that the image came from, and the profile that fits it."""
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    profile = picture.info.get("icc_profile")
    # PIL would embed the one in `info` by itself in some formats.
    options = (
        options
        | save_options(picture, options["format"])
        | {"icc_profile": profile if fits(profile, picture.mode) else None}
    )
    picture.save(file, **options)


def save_bmp(image: Image.Image | np.ndarray, file: BytesIO, options: dict) -> None:
    """Write a BMP; one with transparency with a header of version 4, as PIL writes and reads none without."""
    if not isinstance(image, Image.Image) or image.mode != "RGBA":
        save_pil(image, file, options)
        return
    pixels = image.tobytes("raw", "BGRA", 0, -1)
    masks = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    sizes = (108, image.width, image.height, 1, 32, 3, len(pixels), 3780, 3780, 0, 0)
    header = struct.pack("<IiiHHIIiiII4I4s48x", *sizes, *masks, b"BGRs")
    start = 14 + len(header)
    file.write(struct.pack("<2sIII", b"BM", start + len(pixels), 0, start) + header + pixels)


def save_gif(image: Image.Image | np.ndarray, file: BytesIO, options: dict) -> None:
    """Write a GIF, whose pixels are opaque or not to be seen at all.

    Raises:
        ValueError: some are in between.
    """
    if isinstance(image, Image.Image) and image.mode in ("LA", "RGBA"):
        image = image.convert("RGBA")
        if any(image.getchannel("A").histogram()[1:255]):
            raise ValueError("GIF does not hold transparency by degrees; save it as .png")
    save_pil(image, file, options)
