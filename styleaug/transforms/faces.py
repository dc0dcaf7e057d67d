"""Find faces, to keep them as they are (`Preserve(protect="faces")`) or to compare them; extra `faces`.

The detector is dlib's for frontal faces: histograms of oriented gradients and a linear filter (Dalal & Triggs
2005, King 2015). It is a part of the library dlib, so no weights are needed. It runs on the CPU, one image at
a time; images on a GPU are copied. Profiles and faces that lie on the side are not found.
"""

import threading
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from styleaug.errors import missing_extra
from styleaug.images import from_float

__all__ = ["detect_faces", "find_faces", "import_dlib"]

SEEN = 400
"""Shorter side in pixels at which the detector sees an image; its smallest face has 80 of them, a fifth."""

ACROSS, DOWN, RAISED = 0.46, 0.62, 0.08
"""The ellipse of a face, in sizes of the detector's box: half its width, half its height, and by how much its
centre is raised, since the box leaves out the forehead."""

FADE = 1.5
"""How many times the ellipse's size the soft border ends at, so that skin does not end in a line."""

_made = threading.local()
"""A detector for each thread: it is changed by a call."""


def import_dlib() -> Any:
    """Import dlib.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import dlib
    except ImportError as error:
        raise missing_extra("finding faces", "dlib", "faces") from error
    return dlib


def detector() -> Any:
    """Return this thread's detector."""
    if not hasattr(_made, "detector"):
        _made.detector = import_dlib().get_frontal_face_detector()
    return _made.detector


def detect_faces(images: Float[Tensor, "K 3 H W"]) -> list[Float[Tensor, "N 4"]]:
    """Find the frontal faces of each image that are at least a fifth of its shorter side wide.

    Args:
        images: in [0, 1], on any device.

    Returns:
        For each image the left, top, right and bottom edges of its faces in pixels, on the CPU; the largest
        first.

    Raises:
        MissingExtraError: dlib is not installed.
    """
    find = detector()
    scale = SEEN / min(images.shape[-2:])
    sides = [max(1, round(scale * side)) for side in images.shape[-2:]]
    boxes = []
    for image in images.detach().split(1):
        seen = F.interpolate(image.float().cpu(), size=sides, mode="bilinear", antialias=True).clamp(0, 1)
        pixels = from_float(seen[0], torch.uint8).permute(1, 2, 0).contiguous().numpy()
        found = sorted(find(pixels), key=lambda box: -box.width())
        edges = [(box.left(), box.top(), box.right() + 1, box.bottom() + 1) for box in found]
        boxes.append(torch.tensor(edges, dtype=torch.float32).reshape(-1, 4) / scale)
    return boxes


def find_faces(images: Float[Tensor, "K 3 H W"]) -> Float[Tensor, "K 1 H W"]:
    """Return weights that are 1 in an ellipse around each face, from forehead to chin, and fade to 0 outside.

    `Preserve(protect=find_faces)` keeps the contrast of faces and lets them take the style's light and
    colour; `Preserve(protect="faces")` keeps their pixels. An image without a face that the detector finds
    has weights of 0, so it is styled whole.

    Args:
        images: in [0, 1], on any device.

    Raises:
        MissingExtraError: dlib is not installed.

    Example:
        >>> found = find_faces(images).amax(dim=(1, 2, 3)) > 0  # doctest: +SKIP
    """
    height, width = images.shape[-2:]
    rows, columns = torch.arange(height)[:, None] + 0.5, torch.arange(width) + 0.5
    weights = torch.zeros(len(images), 1, height, width)
    for weight, boxes in zip(weights, detect_faces(images), strict=True):
        for left, top, right, bottom in boxes.tolist():
            down = (rows - (top + bottom) / 2) / (bottom - top) + RAISED
            along = (columns - (left + right) / 2) / (right - left)
            away = ((along / ACROSS).square() + (down / DOWN).square()).sqrt()
            inside = ((FADE - away) / (FADE - 1)).clamp(0, 1)
            torch.maximum(weight[0], inside.square() * (3 - 2 * inside), out=weight[0])
    return weights.to(images)
