"""What all large images share, whatever their format: levels, parts, reduced copies, size of a pixel."""

import math
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Self

import numpy as np

__all__ = ["MOST_MPP", "AbstractPyramid", "number_in", "plausible"]

MOST_MPP = 20.0
"""Most microns per pixel of a slide. Files that were never on a microscope claim 72 dots per inch: 353."""


class AbstractPyramid(ABC):
    """An image of which any part can be read, at several sizes. Use it as a context manager.

    Attributes:
        path: the file or folder.
        shape: `(H, W, C)`.
        dtype: dtype of the pixels.
        alpha: True if the last channel is transparency.
        levels: `(H, W)` of the image and of its reduced copies, the largest first.
        mpp: microns per pixel at the full size; None if the file does not say so.
        profile: the ICC profile; b"" if there is none.
        tile: side in pixels of its square tiles; 0 if it has none.
    """

    path: Path
    shape: tuple[int, int, int]
    dtype: np.dtype
    alpha: bool
    levels: list[tuple[int, int]]
    mpp: float | None = None
    profile: bytes = b""
    tile: int = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def close(self) -> None:
        """Close the file."""

    @abstractmethod
    def read(self, top: int, left: int, height: int, width: int, *, level: int = 0) -> np.ndarray:
        """Read a part, `(height, width, C)`.

        Args:
            top: first row.
            left: first column.
            height: number of rows; the part must lie inside the level.
            width: number of columns.
            level: level of the pyramid; 0 is the full size.

        Raises:
            FileError: the part is damaged.
        """

    def rows_at_once(self, level: int) -> int:
        """Return the number of rows of a level that are best read together."""
        return 256

    def check_inside(self, top: int, left: int, height: int, width: int, level: int) -> None:
        """Check that a part lies inside a level; if not, it is our own mistake."""
        tall, wide = self.levels[level]
        if not (0 <= top < top + height <= tall and 0 <= left < left + width <= wide):
            raise ValueError(f"({top}, {left}, {height}, {width}) is not inside {self.levels[level]}.")

    def thumbnail(self, short_side: int) -> np.ndarray:
        """Return the reduced image `(h, w, C)`, with a short side of at least `short_side`.

        It is the smallest sufficient level of the pyramid, reduced by a whole factor. Only one band of it is
        in memory at a time.
        """
        fitting = [index for index, size in enumerate(self.levels) if min(size) >= short_side]
        level = fitting[-1] if fitting else 0
        height, width = self.levels[level]
        step = max(1, min(height, width) // short_side)
        if step == 1:
            return self.read(0, 0, height, width, level=level)
        columns = width // step * step
        band = step * max(1, self.rows_at_once(level) // step)
        rows = []
        for top in range(0, height // step * step, band):
            tall = min(band, height // step * step - top)
            part = self.read(top, 0, tall, columns, level=level)
            blocks = part.reshape(tall // step, step, columns // step, step, -1)
            means = blocks.mean(axis=(1, 3), dtype=np.float32)
            rows.append((means.round() if self.dtype.kind in "iu" else means).astype(self.dtype))
        return np.concatenate(rows)


def plausible(mpp: float) -> float | None:
    """Return microns per pixel; None if no microscope makes such pixels."""
    return mpp if math.isfinite(mpp) and 0.01 <= mpp <= MOST_MPP else None


def number_in(text: str) -> float:
    """Return the number that a text holds, or NaN."""
    try:
        return float(text)
    except ValueError:
        return math.nan
