"""Small slides that the tests write, in a scanner's layout: an Aperio SVS, as OpenSlide recognises it."""

from pathlib import Path

import numpy as np
import tifffile

GLASS, TISSUE, NUCLEI = (243, 241, 244), (215, 140, 190), (90, 60, 140)


def section(height: int = 512, width: int = 768, *, seed: int = 0, tissue: float = 0.35) -> np.ndarray:
    """Draw a slide `(H, W, 3)`: a disc of stained tissue with nuclei, on noisy glass."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    out = np.empty((height, width, 3), np.float32)
    out[:] = GLASS
    inside = np.hypot(y - height / 2, x - width / 2) < tissue * width
    out[inside] = TISSUE
    spots = inside & (np.sin(y / 5 + seed) * np.sin(x / 5) > 0.6)
    out[spots] = NUCLEI
    return np.clip(out + rng.normal(0, 3, out.shape), 0, 255).astype(np.uint8)


def aperio(path: Path, pixels: np.ndarray, *, mpp: float | None = 0.5, steps: tuple[int, ...] = (4,)) -> Path:
    """Write pixels as an SVS: tiles, a thumbnail, reduced levels, a label."""
    size = f"{pixels.shape[1]}x{pixels.shape[0]}"
    said = f"Aperio Image Library v12.0\r\n{size} [0,0 {size}] (128x128)|AppMag = 20"
    said += "" if mpp is None else f"|MPP = {mpp}"
    form = {"photometric": "rgb", "compression": "zlib", "metadata": None}
    tiled = {**form, "tile": (128, 128), "description": said}
    path.parent.mkdir(parents=True, exist_ok=True)
    with tifffile.TiffWriter(path) as writer:
        writer.write(pixels, **tiled)
        writer.write(np.ascontiguousarray(pixels[::8, ::8]), **form, rowsperstrip=16, description=said)
        for step in steps:
            high, wide = (side // step for side in pixels.shape[:2])
            blocks = pixels[: high * step, : wide * step].reshape(high, step, wide, step, 3)
            writer.write(blocks.mean(axis=(1, 3)).astype(np.uint8), **tiled)
        label = np.zeros((40, 40, 3), np.uint8)
        writer.write(label, **form, rowsperstrip=40, description="Aperio label 40x40", subfiletype=1)
    return path
