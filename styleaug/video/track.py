"""Follow one object through a film, from its box on the first frame; OpenCV, no model files.

On the first frame the mask grows from the box by GrabCut (Rother et al. 2004). From frame to frame, points on
the object are followed by pyramidal Lucas-Kanade flow, forth and back (Kalal et al. 2010), and move the mask;
GrabCut then corrects its border. Nothing is random. OpenCV's own tracker without model files, `TrackerMIL`,
cannot be seeded and gives other boxes in each run, so it is not used.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from styleaug.checks import number
from styleaug.errors import ConfigError, ImageError
from styleaug.video.flow import import_cv2

__all__ = ["Box", "Track", "check_box"]

Box = Sequence[float]
"""Left, top, width and height in pixels."""

WORK_SIDE = 480
"""Longer side in pixels of the frames in which the object is followed; masks are enlarged."""
POINTS, LEAST_POINTS = 200, 8
"""Most points that are followed, and the least that must arrive."""
RETURNED = 1.0
"""Largest distance in pixels from its start at which a point that was followed forth and back may arrive."""
LEAST_FOLLOWED = 0.2
"""Share of the points that must arrive, and of the mask that must stay in the frame."""
LEAST_LIKE = 0.4
"""Least likeness (Bhattacharyya) of the object's colours to those on the first frame."""
LEAST_GROWN = 0.05
"""Share of the box that GrabCut must find; below it the ellipse in the box is the object."""
MASK_BORDER = 0.08
"""Width of the border that GrabCut corrects, as a share of the root of the object's area."""


def check_box(box: Any) -> tuple[float, float, float, float]:
    """Check left, top, width and height in pixels.

    Raises:
        ConfigError: anything but four finite numbers, of which the last two are positive.
    """
    values = [] if isinstance(box, str | bytes) or not hasattr(box, "__iter__") else list(map(number, box))
    known = [float(value) for value in values if value is not None and math.isfinite(value)]
    if not (len(values) == len(known) == 4 and min(known[2:]) > 0):
        raise ConfigError(f"a box is (x, y, width, height) in pixels, such as (40, 30, 64, 48), got {box!r}.")
    return known[0], known[1], known[2], known[3]


class Track:
    """Return the mask of one object in each frame of a film, one after the other.

    Args:
        box: left, top, width and height of the object on the first frame, in pixels.

    Raises:
        ConfigError: the box is none, or OpenCV is not installed.
    """

    box: tuple[float, float, float, float]
    cv2: Any
    frames: int
    lost: str

    def __init__(self, box: Box):
        self.box, self.cv2 = check_box(box), import_cv2("a track")
        self.frames = 0
        self.lost = ""
        """Why and where the object was lost; empty while it is followed."""
        self.grey: np.ndarray = np.zeros(0)
        self.mask: np.ndarray = np.zeros(0)
        """Grey values and mask of the last frame."""
        self.colours: np.ndarray = np.zeros(0)
        """Of the object on the first frame; see `histogram`."""

    def __call__(self, frame: np.ndarray) -> np.ndarray:
        """Return the object's mask `(H, W)` of booleans in the next frame; once it is lost, all is False.

        Args:
            frame: `(H, W, 3)`, uint8.

        Raises:
            ImageError: the box lies outside of the first frame.
        """
        height, width = frame.shape[:2]
        scale = min(1.0, WORK_SIDE / max(height, width))
        size = max(1, round(width * scale)), max(1, round(height * scale))
        small = frame if scale == 1 else self.cv2.resize(frame, size, interpolation=self.cv2.INTER_AREA)
        grey = self.cv2.cvtColor(small, self.cv2.COLOR_RGB2GRAY)
        self.frames += 1
        if self.frames == 1:
            self.mask = self.first(small, scale, (height, width))
            self.colours = self.histogram(small)
        elif not self.lost and (why := self.follow(small, grey)):
            self.lost = f"the object was lost at frame {self.frames}: {why}."
            self.mask = np.zeros_like(self.mask)
        self.grey = grey
        if scale == 1:
            return self.mask
        return self.cv2.resize(self.mask.astype(np.float32), (width, height)) > 0.5

    def first(self, frame: np.ndarray, scale: float, size: tuple[int, int]) -> np.ndarray:
        """Grow the mask from the box.

        Args:
            frame: the frame as it is worked on.
            scale: by which it was reduced.
            size: height and width that it had.
        """
        left, top, wide, high = (scale * side for side in self.box)
        rows, columns = (
            slice(max(0, round(start)), max(0, round(start + length)))
            for start, length in ((top, high), (left, wide))
        )
        whole = np.zeros(frame.shape[:2], bool)
        whole[rows, columns] = True
        if not whole.any():
            raise ImageError(
                f"the box {self.box} lies outside of the first frame, which is {size[1]} x {size[0]} pixels "
                "large, or is too small to be followed."
            )
        grown = self.cut(frame, np.where(whole, self.cv2.GC_PR_FGD, self.cv2.GC_BGD).astype(np.uint8), 5)
        if grown.sum() >= LEAST_GROWN * whole.sum():
            return grown
        y, x = np.nonzero(whole)
        row, column = np.indices(whole.shape)
        radii = max(1, np.ptp(y) / 2), max(1, np.ptp(x) / 2)
        away = ((row - y.mean()) / radii[0]) ** 2 + ((column - x.mean()) / radii[1]) ** 2
        return whole & (away <= 1)

    def follow(self, frame: np.ndarray, grey: np.ndarray) -> str:
        """Move the mask to the next frame; return why that fails, or nothing."""
        cv2, inside = self.cv2, self.mask.astype(np.uint8)
        start, end, count = self.points(grey)
        if len(end) < max(LEAST_POINTS, LEAST_FOLLOWED * count):
            return f"{len(end)} of {count} points on it can be followed"
        move, _ = cv2.estimateAffinePartial2D(start, end, ransacReprojThreshold=3.0)
        if move is None:
            return "the points on it move apart"
        moved = (cv2.warpAffine(255 * inside, move, inside.shape[::-1]) > 127).astype(np.uint8)
        if moved.sum() < LEAST_FOLLOWED * inside.sum():
            return "it leaves the frame"
        reach = max(2, round(MASK_BORDER * math.sqrt(moved.sum())))
        around = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
        labels = np.where(cv2.dilate(moved, around) > 0, cv2.GC_PR_BGD, cv2.GC_BGD).astype(np.uint8)
        labels[moved > 0] = cv2.GC_PR_FGD
        labels[cv2.erode(moved, around) > 0] = cv2.GC_FGD
        self.mask = self.cut(frame, labels, 1)
        like = float((self.colours * self.histogram(frame)).sum())
        return "" if like >= LEAST_LIKE else "what is there has other colours"

    def points(self, grey: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
        """Find points on the object that can be followed from the last frame to this one.

        Returns:
            Their places `(N, 2)` in both frames, and how many were tried.
        """
        cv2 = self.cv2
        start = cv2.goodFeaturesToTrack(self.grey, POINTS, 0.01, 3, mask=self.mask.astype(np.uint8))
        if start is None:
            return np.zeros((0, 2), np.float32), np.zeros((0, 2), np.float32), 0
        end, found, _ = cv2.calcOpticalFlowPyrLK(self.grey, grey, start, None)
        back, again, _ = cv2.calcOpticalFlowPyrLK(grey, self.grey, end, None)
        away = np.linalg.norm(back - start, axis=-1)
        kept = ((found > 0) & (again > 0) & (away < RETURNED))[:, 0]
        return start[kept, 0], end[kept, 0], len(start)

    def cut(self, frame: np.ndarray, labels: np.ndarray, steps: int) -> np.ndarray:
        """Tell the object from its surroundings by GrabCut, in a part of the frame around it.

        Args:
            frame: `(H, W, 3)`, uint8.
            labels: `(H, W)`, GrabCut's; what is surely background surrounds all else.
            steps: of GrabCut.
        """
        cv2 = self.cv2
        y, x = np.nonzero(labels != cv2.GC_BGD)
        margin = max(8, round(0.3 * max(np.ptp(y), np.ptp(x))))
        near = (
            slice(max(0, y.min() - margin), y.max() + margin + 1),
            slice(max(0, x.min() - margin), x.max() + margin + 1),
        )
        part, pixels = labels[near].copy(), np.ascontiguousarray(frame[near])
        inside = np.isin(part, (cv2.GC_FGD, cv2.GC_PR_FGD))
        if inside.any() and not inside.all():  # else GrabCut has no colours to compare
            cv2.setRNGSeed(0)  # it clusters colours from random starts
            cv2.grabCut(pixels, part, None, None, None, steps, cv2.GC_INIT_WITH_MASK)
            inside = np.isin(part, (cv2.GC_FGD, cv2.GC_PR_FGD))
        found = np.zeros(labels.shape, bool)
        found[near] = self.without_specks(inside)
        return found

    def without_specks(self, mask: np.ndarray) -> np.ndarray:
        """Drop parts with less than a tenth of the area of the largest one."""
        _, parts, stats, _ = self.cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
        areas = stats[1:, self.cv2.CC_STAT_AREA]
        return np.isin(parts, 1 + np.flatnonzero(areas >= areas.max(initial=0) / 10))

    def histogram(self, frame: np.ndarray) -> np.ndarray:
        """Return the root of the share that each of 512 colours has of the object."""
        bins = (frame[self.mask] // 32).astype(np.int64) @ np.array([64, 8, 1])
        return np.sqrt(np.bincount(bins, minlength=512) / max(1, len(bins)))
