"""Match colour profiles to pixels, and convert CMYK and Lab to RGB."""

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
"""Colour space in a profile's header, for each PIL mode."""

_MOST_BYTES = 2**24
"""Most bytes of a profile; the largest known, for printing presses, have 4 million."""


def fits(profile: bytes | None, mode: str) -> bool:
    """Return True if `profile` is a valid profile with the colour space of this mode."""
    return bool(profile) and profile[36:40] == b"acsp" and profile[16:20] == _SPACES.get(mode, b"")


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image without transparency to RGB.

    CMYK is converted to sRGB with its profile; without a valid one, with PIL's formula. An RGB profile of a
    YCbCr or palette image is kept.
    """
    profile, shown = image.info.get("icc_profile"), None
    if image.mode == "CMYK" and profile and fits(profile, "CMYK") and len(profile) <= _MOST_BYTES:
        try:
            source = ImageCms.ImageCmsProfile(BytesIO(profile))
            shown = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
        except Exception:  # the profile is damaged, but the pixels are not
            shown = None
    if shown is None:
        shown = image.convert("RGB")
    shown.info = {key: value for key, value in image.info.items() if key != "icc_profile"}
    if fits(profile, "RGB") and image.mode in ("YCbCr", "P"):
        shown.info["icc_profile"] = profile
    return shown
