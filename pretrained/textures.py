"""Draw textures from formulas, so that a bank of textures owes nothing to anybody's images.

    python -m pretrained.textures FOLDER [COUNT]

Fractal noise (Perlin 1985, summed octaves), cells (Worley 1996), waves bent by noise, weaves, chips and
scratches, each through a palette of random colours and under a slanting light.
"""

import math
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from styleaug.errors import ConfigError

__all__ = ["PATTERNS", "texture", "write_textures"]

Field = Float[Tensor, "S S"]


def texture(seed: int, size: int = 256) -> Float[Tensor, "3 S S"]:
    """Draw one texture; the seed says which.

    Returns:
        `(3, size, size)` in [0, 1].
    """
    rng = torch.Generator().manual_seed(seed)
    pattern = PATTERNS[seed % len(PATTERNS)]
    field = stretch(pattern(size, rng) + uniform(0, 0.4, rng) * noise(size, rng, octaves=6))
    # Light from the left above, as on a relief.
    slope = F.pad(field[1:, 1:] - field[:-1, :-1], (1, 0, 1, 0))
    light = 1 + uniform(0, 4, rng) * slope
    return (palette(field, rng) * light).clamp(0, 1)


def noise(size: int, rng: torch.Generator, *, octaves: int, coarsest: int | None = None) -> Field:
    """Sum random grids of doubling fineness and falling height."""
    cells = coarsest or int(torch.randint(2, 9, (), generator=rng))
    fall, total = uniform(0.4, 0.8, rng), torch.zeros(size, size)
    for octave in range(octaves):
        side = min(cells * 2**octave, size)
        grid = torch.randn(1, 1, side, side, generator=rng)
        fine = F.interpolate(grid, size=(size, size), mode="bicubic", align_corners=True)
        total += fall**octave * fine[0, 0]
    return total


def cells(size: int, rng: torch.Generator) -> Field:
    """Measure from each pixel the distances to the two nearest of some random points."""
    points = torch.rand(int(torch.randint(20, 300, (), generator=rng)), 2, generator=rng) * size
    near = torch.cdist(grid_points(size), points).topk(2, largest=False).values.view(size, size, 2)
    return near[..., 0] if uniform(0, 1, rng) < 0.5 else near[..., 1] - near[..., 0]


def waves(size: int, rng: torch.Generator) -> Field:
    """Draw waves in one direction, bent by noise: wood, marble, ripples, sand."""
    angle, count = uniform(0, math.pi, rng), uniform(4, 40, rng)
    place = grid_points(size) @ torch.tensor([math.sin(angle), math.cos(angle)]) / size
    bent = place.view(size, size) + uniform(0, 0.12, rng) * noise(size, rng, octaves=3)
    return torch.sin(2 * math.pi * count * bent) + (torch.sin(math.pi * count * bent) > 0).float()


def weave(size: int, rng: torch.Generator) -> Field:
    """Cross threads over and under each other: cloth, bricks, baskets."""
    pitch = uniform(6, 40, rng)
    down, across = (grid_points(size) / pitch).view(size, size, 2).unbind(-1)
    over = ((down.floor() + across.floor()) % 2).bool()
    return torch.where(over, torch.sin(math.pi * (down % 1)), torch.sin(math.pi * (across % 1)))


def chips(size: int, rng: torch.Generator) -> Field:
    """Scatter soft-edged squares of two sizes."""
    field = torch.zeros(size, size)
    for _ in range(2):
        chance, radius = uniform(0.001, 0.01, rng), int(torch.randint(1, 8, (), generator=rng))
        seeds = (torch.rand(1, 1, size, size, generator=rng) < chance).float()
        discs = F.max_pool2d(seeds, 2 * radius + 1, 1, radius)
        field += F.avg_pool2d(discs, 3, 1, 1)[0, 0]
    return field


def scratches(size: int, rng: torch.Generator) -> Field:
    """Draw noise that is long in one direction: grain, hair, brushed metal, hatching."""
    angle, length = uniform(0, math.pi, rng), uniform(5, 25, rng)
    sine, cosine = math.sin(angle), math.cos(angle)
    fine = torch.randn(1, 1, size, size, generator=rng)
    turn = torch.tensor([[cosine / length, sine / length, 0.0], [-sine, cosine, 0.0]])
    grid = F.affine_grid(turn[None], [1, 1, size, size], align_corners=False)
    return F.grid_sample(fine, grid, padding_mode="reflection", align_corners=False)[0, 0]


def fractal(size: int, rng: torch.Generator) -> Field:
    """Draw clouds, stone or paper."""
    return noise(size, rng, octaves=7)


PATTERNS: tuple[Callable[[int, torch.Generator], Field], ...] = (
    fractal,
    cells,
    waves,
    weave,
    chips,
    scratches,
)


def palette(field: Field, rng: torch.Generator) -> Float[Tensor, "3 S S"]:
    """Colour a field in [0, 1] by two to five random colours in a row."""
    count = int(torch.randint(2, 6, (), generator=rng))
    grey, tint = torch.rand(count, 1, generator=rng), torch.rand(count, 3, generator=rng)
    colours = torch.lerp(grey.expand(-1, 3), tint, uniform(0.2, 1, rng))
    place = field * (count - 1)
    below = place.floor().clamp_max(count - 2).long()
    return torch.lerp(colours[below], colours[below + 1], (place - below)[..., None]).permute(2, 0, 1)


def stretch(field: Field) -> Field:
    """Bring a field to [0, 1] by ranks' ends: a hundredth at each end is cut."""
    low, high = field.quantile(0.01), field.quantile(0.99)
    return ((field - low) / (high - low).clamp_min(1e-6)).clamp(0, 1)


def grid_points(size: int) -> Float[Tensor, "P 2"]:
    """List the pixels' places, row by row."""
    line = torch.arange(size, dtype=torch.float32)
    return torch.cartesian_prod(line, line)


def uniform(low: float, high: float, rng: torch.Generator) -> float:
    """Draw one number."""
    return low + (high - low) * torch.rand((), generator=rng).item()


def write_textures(folder: Path, count: int = 768) -> None:
    """Write textures 0 to `count` - 1 as PNG files.

    Raises:
        ConfigError: `folder` exists already.
    """
    from torchvision.transforms.functional import to_pil_image

    if folder.exists():
        raise ConfigError(f"{folder} exists already; give a new folder.")
    folder.mkdir(parents=True)
    for seed in range(count):
        to_pil_image(texture(seed)).save(folder / f"{seed:04d}.png")


if __name__ == "__main__":
    write_textures(Path(sys.argv[1]), *map(int, sys.argv[2:]))
