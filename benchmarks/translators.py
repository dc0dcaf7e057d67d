"""Draw what the shipped translators make of images that they were not trained on.

    STYLEAUG_DATA=DATA python benchmarks/translators.py [NAME[=PATH] ...] --out docs/pictures

One picture a generator: contents in the first row, their translations below it; for a generator with
codes one row for each of some codes from its prior, the same one along the row. Sources are pictures
that the data's manifest marks free, of those held out by `TrainingData` (a tenth, by file name); for
`mask-to-cell`, which paints blood cells into masks, they are masks drawn here.
"""

import argparse
import math
import os
from pathlib import Path

import torch
from held_out import tiles
from PIL import Image
from torchvision.transforms.functional import to_pil_image, to_tensor

from styleaug.generators.base import AbstractGenerator
from styleaug.sheets import contact_sheet
from styleaug.weights import load_generator

CELLS = tuple(f"wbc/pbc/{kind}" for kind in ("neutrophil", "lymphocyte", "monocyte", "eosinophil"))
SOURCES: dict[str, tuple[str, ...]] = {
    "photo-to-sketch": ("content/caltech101",),
    "cell-stain": CELLS,
    "cell-stains": CELLS,
    "mask-to-cell": (),
}
"""Folders below the data's root from which each generator's sources come; drawn here if none."""
HELD_OUT = 0.1
MOST_BYTES = 200_000
BACKGROUND, CYTOPLASM, NUCLEUS = 0, 128, 255


def cell_mask(seed: int, size: int) -> Image.Image:
    """Draw the mask of a white blood cell: a body, and in it a nucleus of one to four lobes.

    One lobe is round or bent to a horseshoe; several lie around the cell's centre.
    """
    rng = torch.Generator().manual_seed(seed)
    lobes = 1 + seed % 4
    middle = 0.5 + 0.03 * torch.randn(2, generator=rng)
    body = uniform(0.26, 0.34, rng) if lobes > 1 else uniform(0.22, 0.36, rng)
    cell = blob(size, middle, body, rng, wobble=0.06)
    nucleus = torch.zeros(size, size, dtype=torch.bool)
    turn = uniform(0, math.tau, rng)
    for lobe in range(lobes):
        angle = turn + lobe * math.tau / lobes + uniform(-0.3, 0.3, rng)
        away = torch.tensor([math.sin(angle), math.cos(angle)])
        distance, radius = (0.5, uniform(0.36, 0.44, rng)) if lobes > 1 else (0.1, uniform(0.7, 0.85, rng))
        nucleus |= blob(size, middle + distance * body * away, radius * body, rng, wobble=0.12)
        if lobes == 1 and body > 0.29:  # a monocyte's, with a notch
            nucleus &= ~blob(size, middle - 0.45 * body * away, 0.35 * body, rng, wobble=0.12)
    mask = torch.full((size, size), BACKGROUND, dtype=torch.uint8)
    mask[cell] = CYTOPLASM
    mask[cell & nucleus] = NUCLEUS
    return Image.fromarray(mask.numpy()).convert("RGB")


def blob(
    size: int, middle: torch.Tensor, radius: float, rng: torch.Generator, *, wobble: float
) -> torch.Tensor:
    """Fill a smooth closed outline, an ellipse with a few random harmonics; all in shares of the side."""
    axis = (torch.arange(size) + 0.5) / size
    y, x = torch.meshgrid(axis - middle[0], axis - middle[1], indexing="ij")
    angle, outline = torch.atan2(y, x), torch.ones(size, size)
    for harmonic in range(2, 6):
        phase = uniform(0, math.tau, rng)
        outline += wobble * uniform(0.5, 1.5, rng) / (harmonic - 1) * torch.cos(harmonic * angle + phase)
    return torch.hypot(x, y) < radius * outline


def uniform(low: float, high: float, rng: torch.Generator) -> float:
    """Draw a number."""
    return low + (high - low) * torch.rand((), generator=rng).item()


def sources(name: str, data: Path, count: int, size: int) -> list[Image.Image]:
    """Take the images that a generator is shown."""
    folders = SOURCES[name]
    if not folders:
        return [cell_mask(seed, size) for seed in range(count)]
    each = math.ceil(count / len(folders))
    found = [tile for folder in folders for tile in tiles(data / folder, each, size, share=HELD_OUT)]
    return found[:count]


@torch.inference_mode()
def sheet(generator: AbstractGenerator, contents: list[Image.Image], codes: int) -> Image.Image:
    """Lay out contents above, and below them a row for each code."""
    images = torch.stack([to_tensor(content) for content in contents])
    rng = torch.Generator().manual_seed(0)
    rows = [contents]
    for _ in range(codes if generator.code_length else 1):
        code = torch.randn(1, generator.code_length, generator=rng).expand(len(images), -1)
        translated = generator(images, code, torch.ones(len(images)))
        rows.append([to_pil_image(image) for image in translated])
    return contact_sheet(rows)


def save(picture: Image.Image, path: Path) -> None:
    """Write a JPEG of at most `MOST_BYTES`."""
    for quality in (92, 88, 84, 78, 70, 60):
        picture.save(path, quality=quality)
        if path.stat().st_size <= MOST_BYTES:
            return
    raise SystemExit(f"{path} has {path.stat().st_size:,} bytes; draw smaller or fewer tiles.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("generators", nargs="*", default=list(SOURCES), metavar="NAME[=PATH]")
    parser.add_argument("--columns", type=int, default=8)
    parser.add_argument("--codes", type=int, default=4)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--out", type=Path, default=Path("."))
    args = parser.parse_args()
    data = Path(os.environ["STYLEAUG_DATA"])
    for entry in args.generators:
        name, _, path = entry.partition("=")
        if name not in SOURCES:
            parser.error(f"no sources are known for {name!r}; there are {', '.join(SOURCES)}.")
        generator = load_generator(path or name)
        if not generator.has_prior:
            parser.error(f"{entry!r} needs styles; see sheets.py.")
        contents = sources(name, data, args.columns, args.size)
        save(sheet(generator, contents, args.codes), args.out / f"{name}.jpg")


if __name__ == "__main__":
    main()
