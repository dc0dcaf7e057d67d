"""What `preserve` keeps, from 0 to 1: a curve for each generator.

    python benchmarks/preserve.py D --out benchmarks/results/preserve.json

D is the folder of real images: 40 photographs (bsds500) and 40 blood cells (wbc/pbc), 160 px, each in a style
of the generator's bank at full strength. The figures are the mean share of the image itself, in the style's
colours, that a row is mixed with for `preserve` at the head of the column: 0 is the style as it is, 1 is none
of its texture. `touched` is the share of rows that are changed at all by 0.05. The shares are drawn beside
the table, as .svg.
"""

import argparse
from pathlib import Path

import torch
from machine import publish
from PIL import ImageOps

from styleaug import fit_style, load_bank, load_generator
from styleaug.images import to_float, to_pixels
from styleaug.io.files import image_files
from styleaug.sheets import open_rgb
from styleaug.transforms.guard import read_structure

SIDE = 160
DIAL = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
SETS = {"photos": ("content/bsds500", "style/artwall_cc0"), "cells": ("wbc/pbc", "wbc/bccd")}
BANKS = {"adain": "art", "photo": "photo-tones", "patchswap": "art-patches", "randstainna": None}
NOTES = str(__doc__).split("\n\n")[2].replace("\n", " ").strip()


def read(folder: Path, count: int) -> torch.Tensor:
    """Read images that are spread evenly over a folder."""
    paths = image_files(folder)
    paths = paths[:: max(1, len(paths) // count)][:count]
    tiles = [ImageOps.fit(open_rgb(path, SIDE), (SIDE, SIDE)) for path in paths]
    return torch.cat([to_float(to_pixels(tile)[0]) for tile in tiles])


def draw(rows: dict[str, dict[str, float]], out: Path) -> None:
    """Draw the shares."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for name, row in rows.items():
        line = "--" if "cells" in name else "-"
        axes.plot((0, *DIAL), (0, *(row[f"{floor:g}"] for floor in DIAL)), line, label=name)
    axes.set_xlabel("preserve")
    axes.set_ylabel("share of the image itself, in the style's colours")
    axes.legend(fontsize="small")
    figure.savefig(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows: dict[str, dict[str, float]] = {}
    for name, (contents, styles) in SETS.items():
        images = read(args.data / contents, args.count)
        for kind, shipped in BANKS.items():
            generator = load_generator(kind)
            if shipped:
                bank = load_bank(shipped)
            else:
                bank = fit_style(args.data / styles, generator=kind, min_images=1, max_styles=64).bank
            chosen = torch.randint(len(bank), (len(images),), generator=torch.Generator().manual_seed(0))
            with torch.inference_mode():
                styled = generator(images, bank.codes[chosen], torch.ones(len(images)))
                shares = {floor: read_structure(images, styled, floor=floor)[0] for floor in DIAL}
            rows[f"{kind}, {name}"] = {
                **{f"{floor:g}": round(weights.mean().item(), 3) for floor, weights in shares.items()},
                "touched": round((shares[DIAL[0]] > 0).float().mean().item(), 3),
            }
    print(publish(args.out, "What preserve keeps", rows, notes=NOTES))
    if args.out:
        draw(rows, args.out.with_suffix(".svg"))


if __name__ == "__main__":
    main()
