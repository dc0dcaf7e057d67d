"""Snow, frost and fog."""

import math
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFilter
from torch import Tensor

from styleaug.evaluation.blurs import drag, enlarged, tensor
from styleaug.images import luminance

__all__ = ["fog", "frost", "frost_photographs", "snow"]

Pixels = Float[Tensor, "3 H W"]

PICTURES = 5
"""Pictures to choose from; the sixth photograph of the original is never drawn there."""

COLOURS = (
    ((78, 149, 166), (27, 16, 15)),
    ((201, 205, 214), (21, 22, 23)),
    ((201, 205, 214), (21, 22, 23)),
    ((138, 153, 165), (28, 28, 30)),
    ((112, 123, 135), (44, 43, 42)),
)
"""Mean and deviation of red, green and blue in the photographs, 0..255; the drawn ones get the same."""

WIDTH, HEIGHT = DRAWN = (640, 480)
"""Of the drawn pictures; the photographs have about that."""

ROOM = 1.1
"""Least size of a picture over that of the image, so that there is a choice of crops."""


def snow(image: Pixels, c: tuple[float, ...], rng: np.random.Generator) -> Pixels:
    """Whiten the image, and let flakes fall in two opposite directions."""
    mean, deviation, size, least, radius, sigma, kept = c
    noise = mean + deviation * tensor(rng.standard_normal(image.shape[1:], dtype=np.float32))
    flakes = enlarged(noise[None], size)
    flakes = flakes.masked_fill(flakes < least, 0).clamp_(0, 1)
    flakes = drag(flakes, int(radius), sigma, rng.uniform(-135, -45))
    pale = torch.maximum(image, 1.5 * luminance(image[None])[0] + 0.5)
    return kept * image + (1 - kept) * pale + flakes + flakes.flip(1, 2)


def frost(image: Pixels, c: tuple[float, float, float], rng: np.random.Generator) -> Pixels:
    """Lay a crop of a picture of frost over the image, the picture scaled by `c[2]` at least."""
    height, width = image.shape[1:]
    picture = frost_picture(int(rng.integers(PICTURES)), (height, width), c[2])
    top = rng.integers(picture.shape[1] - height)
    left = rng.integers(picture.shape[2] - width)
    return c[0] * image + c[1] * picture[:, top : top + height, left : left + width]


def fog(image: Pixels, c: tuple[float, float], rng: np.random.Generator) -> Pixels:
    """Add a cloud of height `c[0]`, and scale the sum back to the image's brightest value."""
    height, width = image.shape[1:]
    cloud = plasma(1 << (max(height, width) - 1).bit_length(), c[1], rng)[:height, :width]
    most = float(image.max())
    return (image + c[0] * tensor(cloud)) * most / (most + c[0])


def plasma(side: int, decay: float, rng: np.random.Generator) -> np.ndarray:
    """Make a cloud in [0, 1] by diamonds and squares on a torus; `side` is a power of two.

    Args:
        side: in pixels.
        decay: the deviation of the mean of four neighbours falls by its square at each halving.
        rng: where the draws come from.
    """
    cloud = np.zeros((side, side))
    step, swing = side, 1.0
    while step > 1:
        half = step // 2
        corners = cloud[::step, ::step]
        jolts = rng.uniform(-swing, swing, (3, *corners.shape))
        rows = corners + np.roll(corners, -1, axis=0)
        centres = (rows + np.roll(rows, -1, axis=1)) / 4 + jolts[0]
        cloud[half::step, half::step] = centres
        across = corners + np.roll(corners, -1, axis=1)
        cloud[::step, half::step] = (across + centres + np.roll(centres, 1, axis=0)) / 4 + jolts[1]
        cloud[half::step, ::step] = (rows + centres + np.roll(centres, 1, axis=1)) / 4 + jolts[2]
        step, swing = half, swing / decay**2
    cloud -= cloud.min()
    return cloud / cloud.max()


def frost_photographs() -> list[Path]:
    """List the five photographs of frost that the package imagecorruptions carries; empty without it.

    The package is looked for, not imported.
    """
    found = find_spec("imagecorruptions")
    if found is None or found.origin is None:
        return []
    folder = Path(found.origin).parent / "frost"
    names = ("frost1.png", "frost2.png", "frost3.png", "frost4.jpg", "frost5.jpg")
    paths = [folder / name for name in names]
    return paths if all(path.is_file() for path in paths) else []


@lru_cache(maxsize=2 * PICTURES)
def frost_picture(index: int, size: tuple[int, int], scale: float) -> Float[Tensor, "3 H2 W2"]:
    """Give a picture of frost in [0, 1], larger than the image that it will lie on.

    Args:
        index: which one, 0..4.
        size: height and width of the image.
        scale: of the picture; more where the image needs it.
    """
    photographs = frost_photographs()
    if photographs:
        pixels = np.array(Image.open(photographs[index]).convert("RGB"), dtype=np.float32) / 255
    else:
        pixels = drawn_frost(index)
    picture = torch.from_numpy(pixels).permute(2, 0, 1)
    needed = max(side / length for side, length in zip(size, picture.shape[1:], strict=True))
    factor = max(scale, ROOM * needed)
    resized = [math.ceil(factor * length) for length in picture.shape[1:]]
    # Without antialiasing, as the original: a fifth of the size is every fifth pixel's neighbourhood.
    mode = "bilinear" if factor < 1 else "bicubic"
    return F.interpolate(picture[None], size=resized, mode=mode, align_corners=False)[0].clamp_(0, 1)


def drawn_frost(index: int) -> np.ndarray:
    """Draw feathers of ice, and give them the colours of a photograph: `(H, W, 3)` float32 in [0, 1]."""
    rng = np.random.default_rng((index, 2019))
    canvas = Image.new("L", (2 * WIDTH, 2 * HEIGHT), 90)
    pen = ImageDraw.Draw(canvas)
    for _ in range(700):
        feather(pen, rng)
    ice = np.asarray(canvas.resize(DRAWN, Image.Resampling.BOX), dtype=np.float32)
    soft = np.asarray(canvas.filter(ImageFilter.GaussianBlur(60)).resize(DRAWN), dtype=np.float32)
    # Ice grows in patches; where it is thin the glass shows.
    patches = rng.normal(size=(5, 7)).astype(np.float32)
    thickness = np.asarray(Image.fromarray(patches).resize(DRAWN, Image.Resampling.BICUBIC))
    relief = (ice - soft) / ice.std() * np.clip(1 + 0.5 * thickness, 0.3, 2) + thickness
    relief = (relief - relief.mean()) / relief.std()
    mean, deviation = (np.array(values, dtype=np.float32) / 255 for values in COLOURS[index])
    return np.clip(mean + deviation * relief[..., None], 0, 1)


def feather(pen: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    """Draw one crystal: a stem, branches at 60 degrees on both sides, and twigs on these."""
    x, y = rng.uniform(0, 2 * WIDTH), rng.uniform(0, 2 * HEIGHT)
    length, angle, bend = rng.uniform(60, 260), rng.uniform(0, 2 * math.pi), rng.normal(0, 0.4)
    light, reach = int(rng.integers(90, 235)), rng.uniform(0.25, 0.5)
    steps = int(length / 14)
    for step in range(steps):
        angle += bend / steps
        x2, y2 = x + 14 * math.cos(angle), y + 14 * math.sin(angle)
        pen.line((x, y, x2, y2), fill=light + 20, width=4)
        for side in (-1, 1):
            # The two sides catch the light differently.
            shade = light + 12 * side + int(rng.integers(-15, 16))
            branch = reach * length * (1 - step / steps) * rng.uniform(0.7, 1.1)
            twigs(pen, (x, y), branch, angle + side * math.pi / 3, shade)
        x, y = x2, y2


def twigs(pen: ImageDraw.ImageDraw, start: tuple[float, float], length: float, angle: float, shade: int):
    """Draw a branch with short twigs."""
    x, y = start
    end = (x + length * math.cos(angle), y + length * math.sin(angle))
    pen.line((x, y, *end), fill=shade, width=5)
    for part in np.arange(0.15, 1, 16 / max(length, 17)):
        stem = (x + part * (end[0] - x), y + part * (end[1] - y))
        for side in (-1, 1):
            turned, short = angle + side * math.pi / 3, 0.3 * length * (1 - part) + 3
            tip = (stem[0] + short * math.cos(turned), stem[1] + short * math.sin(turned))
            pen.line((*stem, *tip), fill=shade - 30 * side, width=2)
