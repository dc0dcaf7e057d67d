"""Blurs of the common corruptions, and what they share with the others."""

import math
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor

__all__ = [
    "cut",
    "defocus_blur",
    "drag",
    "enlarged",
    "glass_blur",
    "motion_blur",
    "smooth",
    "tensor",
    "zoom_blur",
]

Pixels = Float[Tensor, "3 H W"]
Planes = Float[Tensor, "C H W"]


def cut(values: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
    """Scale [0, 1] to whole numbers 0..255, cutting the fraction off."""
    # The small addend keeps k / 255 * 255 at k.
    return (values * 255 + 1e-3).floor_()


def tensor(values: np.ndarray) -> Tensor:
    """Take what was drawn over to torch."""
    return torch.from_numpy(np.asarray(values, dtype=np.float32))


def defocus_blur(image: Pixels, c: tuple[float, float], rng: np.random.Generator) -> Pixels:
    """Blur by a disc of radius `c[0]`, itself smoothed by `c[1]`."""
    kernel = disc(*c)
    reach = kernel.shape[0] // 2
    padded = F.pad(image, (reach,) * 4, mode="reflect")
    return F.conv2d(padded[:, None], kernel[None, None])[:, 0]


@lru_cache
def disc(radius: float, softness: float) -> Float[Tensor, "K K"]:
    """Make the kernel of an open lens."""
    reach = 8 if radius <= 8 else math.ceil(radius)
    steps = torch.arange(-reach, reach + 1.0)
    kernel = (steps[:, None] ** 2 + steps**2 <= radius**2).float()
    width = 1 if radius <= 8 else 2
    soft = torch.exp(-(torch.arange(-width, width + 1.0) ** 2) / (2 * softness**2))
    soft = (soft / soft.sum()).outer(soft / soft.sum())
    padded = F.pad((kernel / kernel.sum())[None], (width,) * 4, mode="reflect")
    return F.conv2d(padded, soft[None, None])[0]


def glass_blur(image: Pixels, c: tuple[float, int, int], rng: np.random.Generator) -> Pixels:
    """Move pixels about by up to `c[1]`, `c[2]` times over, between two blurs of sigma `c[0]`.

    The original means to swap neighbours, one after the other. Through NumPy's views it copies, so that
    one pixel may run on for several places; the published images have that, and these have it too.
    """
    sigma, reach, rounds = c
    shape = image.shape
    shuffled = (cut(smooth(image, sigma)) / 255).flatten(1)
    for _ in range(rounds):
        shuffled = shuffled[:, copied_from(shape[1], shape[2], reach, rng)]
    return smooth(shuffled.view(shape), sigma)


def copied_from(height: int, width: int, reach: int, rng: np.random.Generator) -> Int[Tensor, " N"]:
    """Tell which pixel ends up at each place when all take a neighbour's value, from the last to the first.

    A neighbour that has had its turn gives what it received. Such chains are followed by doubling, all
    at once, which gives what one step after the other would.
    """
    places = torch.arange(height * width).view(height, width)
    inside = torch.zeros(height, width, dtype=torch.bool)
    inside[reach + 1 : height - reach + 1, reach + 1 : width - reach + 1] = True
    down, right = torch.from_numpy(rng.integers(-reach, reach, size=(2, height, width)))
    source = torch.where(inside, places + width * down + right, places).flatten()
    received = inside.flatten()[source] & (source > places.flatten())
    # Entries from `count` on stand for what lay there before.
    count = len(source)
    links = torch.cat([source + count * ~received, places.flatten() + count])
    while not (links[:count] >= count).all():
        links = links[links]
    return links[:count] - count


def smooth(planes: Planes, sigma: float, *, reflect: bool = False) -> Planes:
    """Blur by a Gaussian cut off at 4 sigma, or 3 where the border reflects; else its pixels go on."""
    rows, columns = (smoothing(length, sigma, reflect) for length in planes.shape[-2:])
    return rows @ planes @ columns.T


@lru_cache(maxsize=64)
def smoothing(length: int, sigma: float, reflect: bool) -> Float[Tensor, "L L"]:
    """Make the matrix that blurs along one axis."""
    reach = int((3 if reflect else 4) * sigma + 0.5)
    steps = np.arange(-reach, reach + 1)
    weights = np.exp(-0.5 * (steps / sigma) ** 2) if reach else np.ones(1)
    taps = np.arange(length)[:, None] + steps
    if reflect:
        taps %= 2 * length
        taps = np.minimum(taps, 2 * length - 1 - taps)
    matrix = np.zeros((length, length))
    np.add.at(matrix, (np.arange(length)[:, None], taps.clip(0, length - 1)), weights / weights.sum())
    return tensor(matrix)


def motion_blur(image: Pixels, c: tuple[int, float], rng: np.random.Generator) -> Pixels:
    """Drag the image along by `2 c[0]` pixels, in a direction within 45 degrees of the horizontal."""
    return drag(image, *c, rng.uniform(-45, 45))


def drag(planes: Planes, radius: int, sigma: float, angle: float) -> Planes:
    """Average along a line that starts at the pixel, by half a Gaussian of `sigma` pixels."""
    height, width = planes.shape[1:]
    reach = 2 * radius + 1
    steps = np.arange(reach)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    weights /= weights.sum()
    turned = math.radians(angle)
    down = reach + np.ceil(steps * math.sin(turned) - 0.5).astype(int)
    right = reach + np.ceil(steps * math.cos(turned) - 0.5).astype(int)
    padded = np.pad(planes.numpy(), ((0, 0), (reach, reach), (reach, reach)), mode="edge")
    dragged = np.zeros(planes.shape, dtype=np.float32)
    for weight, y, x in zip(weights.tolist(), down, right, strict=True):
        dragged += weight * padded[:, y : y + height, x : x + width]
    return torch.from_numpy(dragged)


def zoom_blur(image: Pixels, c: tuple[float, float], rng: np.random.Generator) -> Pixels:
    """Average the image and its enlargements, from 1 up to `c[0]` in steps of `c[1]`."""
    factors = np.arange(1, *c).tolist()
    total = image.clone()
    for factor in factors:
        total += enlarged(image, factor)
    return total / (len(factors) + 1)


def enlarged(planes: Planes, factor: float) -> Planes:
    """Zoom into the middle."""
    (top, height, high), (left, width, wide) = (middle(length, factor) for length in planes.shape[1:])
    part = planes[None, :, top : top + height, left : left + width]
    zoomed = F.interpolate(part, size=(high, wide), mode="bilinear", align_corners=True)[0]
    return zoomed[:, : planes.shape[1], : planes.shape[2]]


def middle(length: int, factor: float) -> tuple[int, int, int]:
    """Tell where the part to be enlarged starts, how long it is, and how long it becomes."""
    part = math.ceil(length / factor)
    return (length - part) // 2, part, round(part * factor)
