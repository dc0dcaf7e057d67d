"""A picture of stained tissue that is nobody's: drawn, to show stains on."""

import numpy as np
from PIL import Image

__all__ = ["draw_tissue"]

BLUE = (0.65, 0.70, 0.29)
PINK = (0.07, 0.99, 0.11)
"""Optical densities of haematoxylin and eosin in red, green and blue (Ruifrok & Johnston 2001)."""


def draw_tissue(side: int, *, seed: int = 0) -> Image.Image:
    """Draw nuclei in haematoxylin, and fibres and cell bodies in eosin, on glass."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:side, 0:side] / side
    fibres = 0.5 + 0.5 * np.sin(40 * (x + 0.15 * np.sin(7 * y)) + 3 * np.sin(9 * x * y))
    glass = smooth_step(0.16, 0.20, np.hypot(x - 0.82, y - 0.2))
    eosin = glass * (0.14 + 0.12 * fibres + 0.05 * rng.random((side, side)))
    blue = 0.05 * glass
    for _ in range(90):
        centre, radii, angle = rng.random(2), 0.018 + 0.016 * rng.random(2), np.pi * rng.random()
        along = np.cos(angle) * (x - centre[0]) + np.sin(angle) * (y - centre[1])
        across = np.cos(angle) * (y - centre[1]) - np.sin(angle) * (x - centre[0])
        away = np.hypot(along / radii[0], across / radii[1])
        grain = 0.85 + 0.3 * rng.random((side, side))
        blue = np.maximum(blue, glass * (0.6 + 0.4 * rng.random()) * grain * smooth_step(1.15, 0.85, away))
        eosin = np.maximum(eosin, 0.3 * glass * smooth_step(2.2, 1.2, away))
    density = blue[..., None] * np.array(BLUE) + eosin[..., None] * np.array(PINK)
    return Image.fromarray((245 * 10**-density).round().astype(np.uint8))


def smooth_step(start: float, end: float, values: np.ndarray) -> np.ndarray:
    """Rise from 0 at `start` to 1 at `end`, softly at both."""
    share = np.clip((values - start) / (end - start), 0, 1)
    return share * share * (3 - 2 * share)
