"""Colour profiles: which belongs to which pixels, and how CMYK and Lab become RGB."""

from io import BytesIO

from PIL import Image, ImageCms

__all__ = ["fits", "to_rgb"]

_SPACES = {
    "1": b"GRAY",
    "L": b"GRAY",
    "LA": b"GRAY",
    "I;16": b"GRAY",
    "RGB": b"RGB ",
    "RGBA": b"RGB ",
    "CMYK": b"CMYK",
}
"""Modes, and the colour space that a profile's header names for them."""

_MOST_BYTES = 2**24
"""Of a profile; those of presses have 4 million at most."""


def fits(profile: bytes | None, mode: str) -> bool:
    """Tell whether a profile is one, of the colour space of this mode."""
    return bool(profile) and profile[36:40] == b"acsp" and profile[16:20] == _SPACES.get(mode, b"")


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image without transparency to RGB.

    CMYK is converted to sRGB by its profile; without one, or if it is broken, as PIL does. The profile
    is kept where it is one of RGB that YCbCr or a palette was stored in.
    """
    profile, shown = image.info.get("icc_profile"), None
    if image.mode == "CMYK" and profile and fits(profile, "CMYK") and len(profile) <= _MOST_BYTES:
        try:
            source = ImageCms.ImageCmsProfile(BytesIO(profile))
            shown = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
        except Exception:  # a damaged profile; the pixels are there all the same
            shown = None
    if shown is None:
        shown = image.convert("RGB")
    shown.info = {key: value for key, value in image.info.items() if key != "icc_profile"}
    if fits(profile, "RGB") and image.mode in ("YCbCr", "P"):
        shown.info["icc_profile"] = profile
    return shown
