"""What an image is, whatever its values are: its type, mode, dtype and shape."""

from typing import Any

import numpy as np
from PIL import Image

from styleaug.errors import ImageError
from styleaug.images import PIL_MODES, ValueRange, check_range, to_pixels

__all__ = ["check_form"]


def check_form(image: Any, *, most_channels: int | None = None, value_range: ValueRange = None) -> None:
    """Refuse what `to_pixels` and `check_range` refuse whatever the values are; it costs nothing.

    Args:
        image: as for `to_pixels`.
        most_channels: as for `to_pixels`.
        value_range: as for `check_range`.

    Raises:
        ImageError: another type, mode, dtype, number of axes or channels, or no pixels at all.
    """
    few = image
    if isinstance(image, np.ndarray):
        few = image[(slice(1),) * min(image.ndim - (image.ndim > 2), 3)]
    elif isinstance(image, Image.Image) and image.mode in PIL_MODES:  # others are refused by their mode
        few = Image.new(image.mode, (min(image.width, 1), min(image.height, 1)))
    try:
        pixels, _ = to_pixels(few, most_channels=most_channels)
    except ImageError:
        to_pixels(image, most_channels=most_channels)  # which names the whole image's shape
        raise
    check_range(pixels[:0], value_range)
