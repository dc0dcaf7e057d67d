"""Do findings stay? Insert lesions of known contrast into real images, style them, and look again.

    STYLEAUG_DATA=DATA python benchmarks/lesions.py --out benchmarks/results/lesions.json

Each image gets four smooth discs of 3, 7, 15 and 30 px, one in each quarter, all of one contrast (2, 5, 10 or
20 % above the background around each), where it is neither dark nor bright. The image with and without them
is styled with the same parameters. A lesion's contrast is the mean difference between the two, inside the
disc less in a ring around it, in luminance. Its loss is the share of the inserted contrast that is gone; more
contrast than was inserted is no loss.

Detectability is that of a reader with one image: a fixed filter (the disc less its ring) at the lesion's
place, with it and without it, for each size by itself. `auc` compares the two, `hits` is the share above 95 %
of the answers without a lesion. `none` are the images themselves.

`edges` is the median correlation of Sobel magnitudes with the image's, `style` how much of the shift of the
channels' means is left with the guard on, `added_percent` what it adds to the transform's time (process time,
batches of 16 at 224 px, medians of calls in turns).
"""

import argparse
import os
import statistics
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from held_out import held_out_files, tiles
from machine import publish
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_tensor

from styleaug import StyleBank, fit_style, load_bank
from styleaug.images import luminance
from styleaug.transforms.augment import StyleAugment
from styleaug.transforms.structure import gradients
from styleaug.weights import load_generator, pretrained_folder

SIDE = 224
CONTRASTS = (0.02, 0.05, 0.1, 0.2)
DIAMETERS = (3, 7, 15, 30)
PLACES = ((0, 0), (0, 1), (1, 0), (1, 1))
FLOOR = 0.9
STRENGTHS = (0.5, 1.0)
FOLDERS = {
    "wbc/pbc": "cells", "wbc/tecom": "cells", "wbc/bccd": "cells",
    "content/caltech101": "photos", "content/bsds500": "photos",
}  # fmt: skip
BANKS = {"photo": "photo-tones", "adain": "art", "patchswap": "art-patches"}
"""Shipped banks by generator. Other generators get a bank fitted to the shipped sample pictures."""
STAINS = {"macenko", "vahadane", "randstainna", "reinhard-hed", "hed-jitter", "hed-jitter-strong"}
"""Stain generators; if they need a bank, it is fitted to blood cells of another laboratory."""
GENERATORS = (
    "reinhard-rgb,reinhard-lab,histogram,fourier,photo,adain,patchswap,cell-stain,cell-stains,macenko,"
    "randstainna,hed-jitter"
)


class Lesion(NamedTuple):
    """Where a lesion lies, in pixels."""

    top: int
    left: int
    diameter: int


def medical() -> Iterator[tuple[str, np.ndarray]]:
    """Read the CT, the MR and the microscopy that pydicom, nibabel and scikit-image carry, in [0, 1]."""
    import nibabel
    import pydicom
    import skimage
    from pydicom.data import get_testdata_file

    for name in ("CT_small.dcm", "MR_small.dcm"):
        yield "grey", stretch(pydicom.dcmread(str(get_testdata_file(name))).pixel_array)
    folder = Path(nibabel.__file__).parent / "tests/data"
    scan: Any = nibabel.load(folder / "example4d.nii.gz")
    volume = np.asarray(scan.dataobj)[..., 0]
    for index in (6, 10, 14):
        yield "grey", stretch(np.rot90(volume[:, :, index]))
    yield "grey", stretch(skimage.data.microaneurysms())
    yield "grey", stretch(skimage.data.moon())
    yield "tissue", skimage.data.immunohistochemistry() / 255
    yield "tissue", skimage.data.retina()[300:1100, 300:1100] / 255


def stretch(values: np.ndarray) -> np.ndarray:
    """Show the middle 99 % of the values from black to white."""
    low, high = np.percentile(values, (0.5, 99.5))
    return np.clip((values.astype(np.float32) - low) / (high - low), 0, 1)


def read_images(data: Path, each: int) -> tuple[Tensor, list[str]]:
    """Read images `(N, 3, 224, 224)` and what kind each is; grey ones have three equal channels."""
    images, kinds = [], []
    for folder, kind in FOLDERS.items():
        for tile in tiles(data / folder, each, SIDE, share=0.1):
            images.append(to_tensor(tile))
            kinds.append(kind)
    for tile in tiles(data / "content/bsds500", each + 2, SIDE, share=0.1)[:each]:
        images.append(to_tensor(tile.convert("L")).expand(3, -1, -1))
        kinds.append("grey")
    for kind, array in medical():
        picture = Image.fromarray((array * 255).astype(np.uint8)).convert("RGB")
        picture = picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        images.append(to_tensor(picture))
        kinds.append(kind)
    return torch.stack(images), kinds


def disc(lesion: Lesion, *, radius: float, soft: float) -> Tensor:
    """Fill a disc around the lesion's centre, `(H, W)` in [0, 1]; its edge falls over `soft` pixels."""
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    away = torch.hypot((y - lesion.top).float(), (x - lesion.left).float())
    return ((radius - away) / soft + 0.5).clamp(0, 1)


@cache
def regions(lesion: Lesion) -> tuple[Tensor, Tensor]:
    """Return the pixels of a lesion and of the ring around it, each as weights with sum 1."""
    radius = lesion.diameter / 2
    inside = (disc(lesion, radius=radius, soft=1e-3)).float()
    ring = disc(lesion, radius=1.6 * radius + 3, soft=1e-3) - disc(lesion, radius=radius + 1.5, soft=1e-3)
    return inside / inside.sum(), ring / ring.sum()


def place_lesions(image: Tensor, rng: torch.Generator) -> list[Lesion]:
    """Draw a place in each quarter: of twenty, the first where the image has a middling brightness."""
    grey, half, sizes = luminance(image[None])[0, 0], SIDE // 2, torch.randperm(4, generator=rng).tolist()
    lesions = []
    for (row, column), size in zip(PLACES, sizes, strict=True):
        chosen = None
        for _ in range(20):
            top, left = (28 + torch.randint(half - 56, (2,), generator=rng)).tolist()
            lesion = Lesion(row * half + top, column * half + left, DIAMETERS[size])
            _, ring = regions(lesion)
            if 0.15 < float((ring * grey).sum()) < 0.75:
                chosen = lesion
                break
        if chosen:
            lesions.append(chosen)
    return lesions


def insert(image: Tensor, lesions: list[Lesion], contrast: float) -> Tensor:
    """Add to the image, at each lesion, a share of the mean colour around it."""
    for lesion in lesions:
        _, ring = regions(lesion)
        background = (image * ring).sum(dim=(1, 2))[:, None, None]
        spot = disc(lesion, radius=lesion.diameter / 2, soft=max(1.0, lesion.diameter / 6))
        image = image + contrast * background * spot
    return image.clamp(0, 1)


class Study(NamedTuple):
    """Images without and with lesions, and where each lesion is."""

    plain: Tensor
    marked: Tensor
    kinds: list[str]
    lesions: list[tuple[int, Lesion, float]]
    """Row, place and contrast."""


def make_study(images: Tensor, kinds: list[str], seed: int) -> Study:
    """Insert lesions of each contrast into each image."""
    rng = torch.Generator().manual_seed(seed)
    plain, marked, named, found = [], [], [], []
    for image, kind in zip(images, kinds, strict=True):
        for contrast in CONTRASTS:
            lesions = place_lesions(image, rng)
            if lesions:
                found += [(len(plain), lesion, contrast) for lesion in lesions]
                plain.append(image)
                marked.append(insert(image, lesions, contrast))
                named.append(kind)
    return Study(torch.stack(plain), torch.stack(marked), named, found)


def contrasts(images: Tensor, study: Study) -> Tensor:
    """Measure disc less ring at each lesion, in luminance."""
    grey = luminance(images)[:, 0]
    values = []
    for row, lesion, _ in study.lesions:
        inside, ring = regions(lesion)
        values.append(((inside - ring) * grey[row]).sum())
    return torch.stack(values)


def auc(present: Tensor, absent: Tensor) -> float:
    """Compute the probability that an answer with a lesion is above one without."""
    above = (present[:, None] > absent).double() + 0.5 * (present[:, None] == absent).double()
    return above.mean().item()


def detected(plain: Tensor, marked: Tensor, sizes: Tensor) -> dict[str, float]:
    """Measure how well the filter's answers detect lesions, averaged over sizes."""
    areas, hits = [], []
    for size in DIAMETERS:
        absent, present = plain[sizes == size], marked[sizes == size]
        areas.append(auc(present, absent))
        hits.append((present > absent.quantile(0.95)).double().mean().item())
    return {"auc": round(statistics.mean(areas), 3), "hits": round(statistics.mean(hits), 3)}


@cache
def bank_for(name: str) -> StyleBank | None:
    """Return a shipped bank, a bank fitted to the shipped samples, or None for a prior."""
    if load_generator(name).has_prior:
        return None
    if name in BANKS:
        return load_bank(BANKS[name])
    if name in STAINS:
        cells = held_out_files(Path(os.environ["STYLEAUG_DATA"]) / "wbc/tecom", share=0.3)
        return fit_style(cells, generator=name).bank
    return fit_style(pretrained_folder() / "samples", generator=name, min_images=1).bank


def style(augment: StyleAugment, images: Tensor, seed: int) -> Tensor:
    """Style all images, each by a draw of its own."""
    return augment.apply(images, augment.draw(len(images), torch.Generator().manual_seed(seed)))


def correlations(images: Tensor, styled: Tensor) -> Tensor:
    """Correlate Sobel magnitudes with the image's, row by row, at every pixel."""
    both = [gradients(x, "sobel", stride=1).square().sum(dim=1).sqrt().flatten(1) for x in (images, styled)]
    own, other = (x - x.mean(dim=1, keepdim=True) for x in both)
    return (own * other).sum(dim=1) / (own.norm(dim=1) * other.norm(dim=1)).clamp_min(1e-9)


class Found(NamedTuple):
    """What was measured on all lesions of all seeds, with the guard off and on."""

    loss: list[Tensor]
    plain: list[Tensor]
    marked: list[Tensor]
    edges: list[Tensor]
    shift: list[Tensor]


def measure(name: str, strength: float, studies: list[Study]) -> Found:
    """Style all studies with the guard off and on."""
    parts: list[Found] = [Found([], [], [], [], []) for _ in range(2)]
    for guarded, part in enumerate(parts):
        floor = FLOOR if guarded else None
        augment = StyleAugment(bank_for(name), generator=name, p=1.0, strength=strength, preserve=floor)
        for seed, study in enumerate(studies):
            plain, marked = (style(augment, x, seed) for x in (study.plain, study.marked))
            inserted = contrasts(study.marked - study.plain, study)
            before, after = contrasts(plain, study), contrasts(marked, study)
            part.loss.append((1 - (after - before) / inserted).clamp_min(0))
            part.plain.append(before)
            part.marked.append(after)
            part.edges.append(correlations(study.plain, plain))
            part.shift.append((plain - study.plain).mean(dim=(2, 3)).abs().mean(dim=1))
    return Found._make([torch.cat(values) for values in both] for both in zip(*parts, strict=True))


def cost(name: str, images: Tensor, calls: int) -> float:
    """Measure what the guard adds to the transform's time, in percent."""
    makes = [
        StyleAugment(bank_for(name), generator=name, p=1.0, strength=1.0, preserve=floor)
        for floor in (None, FLOOR)
    ]
    spent: list[list[float]] = [[], []]
    for call in range(calls + 3):
        for guarded in (0, 1) if call % 2 else (1, 0):
            start = time.process_time()
            style(makes[guarded], images, 0)
            if call > 2:
                spent[guarded].append(time.process_time() - start)
    off, on = (statistics.median(times) for times in spent)
    return round(100 * (on / off - 1), 1)


def loss_of(found: Found, chosen: Tensor) -> dict[str, float]:
    """Return the median and the worst decile of the loss in percent, for some of the lesions."""
    row = {}
    for guard, loss in zip(("off", "on"), found.loss, strict=True):
        values = 100 * loss[chosen]
        row |= {f"{guard}_median": round(values.median().item(), 1)}
        row |= {f"{guard}_worst": round(values.quantile(0.9).item(), 1)}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description="Do findings stay?")
    parser.add_argument("--generators", default=GENERATORS)
    parser.add_argument("--each", type=int, default=2, help="images of each folder")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--calls", type=int, default=11)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    images, kinds = read_images(Path(os.environ["STYLEAUG_DATA"]), args.each)
    studies = [make_study(images, kinds, seed) for seed in range(args.seeds)]
    sizes = torch.tensor([lesion.diameter for study in studies for _, lesion, _ in study.lesions])
    kind = [study.kinds[row] for study in studies for row, *_ in study.lesions]
    level = torch.tensor([contrast for study in studies for *_, contrast in study.lesions])
    everything = torch.ones(len(sizes), dtype=torch.bool)
    groups = {f"{size} px": sizes == size for size in DIAMETERS}
    groups |= {f"{100 * contrast:g} %": (level - contrast).abs() < 1e-6 for contrast in CONTRASTS}
    groups |= {name: torch.tensor([k == name for k in kind]) for name in sorted(set(kind))}
    plain, marked = (torch.cat([contrasts(getattr(s, x), s) for s in studies]) for x in ("plain", "marked"))
    rows: dict[str, dict] = {"none": {f"off_{k}": v for k, v in detected(plain, marked, sizes).items()}}
    details = {}
    for name in args.generators.split(","):
        added = cost(name, images[:16].contiguous(), args.calls)
        for strength in STRENGTHS:
            found = measure(name, strength, studies)
            row = loss_of(found, everything)
            for place, guard in enumerate(("off", "on")):
                answers = detected(found.plain[place], found.marked[place], sizes)
                row |= {f"{guard}_{key}": value for key, value in answers.items()}
                row[f"{guard}_edges"] = round(found.edges[place].median().item(), 3)
            row["style"] = round((found.shift[1].mean() / found.shift[0].mean()).item(), 2)
            rows[f"{name}, {strength:g}"] = {**row, "added_percent": added}
            details |= {f"{name}, {strength:g}, {g}": loss_of(found, chosen) for g, chosen in groups.items()}
            print(name, strength, rows[f"{name}, {strength:g}"], flush=True)
    notes = (
        f"{len(sizes)} lesions in {len(images)} images, seeds 0 to {args.seeds - 1}, guard off and on "
        f"(`preserve={FLOOR}`). Losses of contrast in percent: `median`, and `worst`, the worst decile. One "
        "process, one thread. The same losses by size, contrast and kind of image stand in lesion_groups."
    )
    print(publish(args.out, "Lesions through every generator", rows, notes=notes))
    apart = args.out and args.out.with_name("lesion_groups.json")
    publish(apart, "Lesions by size, contrast and kind of image", details, notes=notes)


if __name__ == "__main__":
    main()
