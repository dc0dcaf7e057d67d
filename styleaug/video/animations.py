"""Animated GIF, APNG and WebP: number of plays, and the parts of WebP that FFmpeg does not support."""

import struct
import warnings
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

__all__ = ["ANIMATED", "is_webp", "plays_of", "read_webp", "set_last_pause", "webp_frames", "webp_pauses"]

ANIMATED = {".gif": "gif", ".apng": "apng", ".png": "apng", ".webp": "webp"}
"""FFmpeg's format for each suffix of an animated picture."""

PAUSE = struct.Struct("<I")
PAUSE_AT = 12
"""Offset of a frame's duration (3 bytes) in its chunk; see the WebP container specification."""


def plays_of(path: Path) -> int:
    """Read how often an animated picture plays, in FFmpeg's terms: 0 is endless, -1 is once."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(path) as image:
                return int(image.info.get("loop", -1 if image.format == "GIF" else 0))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            return 0


def is_webp(path: Path) -> bool:
    """Return True if a file is a WebP, by its first bytes."""
    with path.open("rb") as file:
        start = file.read(12)
    return start[:4] == b"RIFF" and start[8:] == b"WEBP"


def webp_frames(path: Path) -> Iterator[int]:
    """Yield the offset of each frame of an animated WebP; nothing for a still image."""
    size = path.stat().st_size
    with path.open("rb") as file:
        at = 12
        while at + 8 <= size:
            file.seek(at)
            name, length = struct.unpack("<4sI", file.read(8))
            if name == b"ANMF":
                yield at + 8
            at += 8 + length + length % 2


def webp_pauses(path: Path) -> list[Fraction]:
    """Read how long each frame of a WebP is shown, in seconds; 0 for a still image."""
    pauses = []
    with path.open("rb") as file:
        for start in webp_frames(path):
            file.seek(start + PAUSE_AT)
            pauses.append(Fraction(PAUSE.unpack(file.read(3).ljust(4, b"\0"))[0], 1000))
    return pauses or [Fraction(0)]


def set_last_pause(path: Path, pause: Fraction) -> None:
    """Set the duration of a WebP's last frame; FFmpeg writes the mean of the other frames."""
    starts = list(webp_frames(path))
    if starts:
        with path.open("r+b") as file:
            file.seek(starts[-1] + PAUSE_AT)
            file.write(PAUSE.pack(min(round(pause * 1000), 2**24 - 1))[:3])


def read_webp(path: Path) -> Iterator[np.ndarray]:
    """Yield the displayed frames of a WebP, `(H, W, 3)` or with alpha `(H, W, 4)`."""
    with Image.open(path) as image:
        for at in range(getattr(image, "n_frames", 1)):
            image.seek(at)
            yield np.array(image if image.mode == "RGBA" else image.convert("RGB"))
