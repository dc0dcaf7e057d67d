"""Recognise label maps among images by their values, because most file types do not mark them."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from styleaug.errors import LabelWarning
from styleaug.io.scan import Scan

__all__ = ["count_labels", "warn_of_labels"]

FEW = 32
"""Most different values of a typical label map; nearly all images have more."""

_SEVERAL = 256
"""Most different values of a large label map. Images may have as few, so neighbours are also compared."""

_ALIKE = 0.8
"""Least share of a label map's foreground pixels whose neighbour has the same value."""

LEAST = 4096
"""Least number of pixels for the test; smaller images naturally have few values."""

_SAMPLE = 2**20


def count_labels(picture: Any) -> int:
    """Return the number of different values if they seem to be labels, else 0.

    Args:
        picture: result of `open_image`. Colour images are not tested.
    """
    if isinstance(picture, Image.Image):
        values = np.asarray(picture)[None] if picture.mode in ("L", "I;16") else np.zeros(0)
    else:
        values = picture.frames if isinstance(picture, Scan) else np.asarray(picture)[None]
    if values.ndim != 3 or values.size < LEAST:
        return 0
    if len(np.unique(values.ravel()[:: values.size // LEAST])) > _SEVERAL:
        return 0
    middle = len(values) // 2  # slices at the ends are often empty
    thick = max(1, _SAMPLE // values[0].size)
    part = values[max(0, middle - thick // 2) :][:thick]
    if part.dtype == np.uint8:  # faster than sorting
        counts = np.bincount(part.ravel())
        found = counts.nonzero()[0]
        counts = counts[found]
    else:
        found, counts = np.unique(part, return_counts=True)
    if not 2 <= len(found) <= _SEVERAL or (found.dtype.kind == "f" and (found != found.round()).any()):
        return 0
    if len(found) <= FEW:
        return len(found)
    inside = part[..., 1:] != found[counts.argmax()]
    alike = (part[..., 1:] == part[..., :-1])[inside]
    return len(found) if alike.mean() > _ALIKE else 0


def warn_of_labels(picture: Any, path: Path) -> None:
    """Warn of an image that is about to be styled and seems to be a label map.

    Args:
        picture: result of `open_image`.
        path: path for the message.
    """
    if count := count_labels(picture):
        warnings.warn(
            f"{path} has only {count} values, like a label map, and is styled as an image. "
            "If it holds labels, leave it out: put masks into a separate folder.",
            LabelWarning,
            stacklevel=3,
        )
