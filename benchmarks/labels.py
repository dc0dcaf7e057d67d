"""Do labels stay true? Decisions that flip, edges that move, contrast that goes, by generator and strength.

    python benchmarks/labels.py --out benchmarks/results/labels.json

With `STYLEAUG_DATA` and `STYLEAUG_WEIGHTS` set. It runs `styleaug evaluate labels` on three sets: photos of
ImageNet in styles of paintings, judged by SqueezeNet; blood cells of one laboratory in those of another,
with masks; and sketches in the styles of photos. Cells and sketches are judged by a small network trained on
two thirds of the set with colour jitter. Every generator's bank is fitted to the other set.

`flips` are all decisions that change, `right` those that were right, both in percent with 95 % intervals;
`jitter` is a mild colour jitter, for comparison. `moved` is the median displacement of edges in windows of
64 px, `moved_95` its 95th percentile, `matched` the share of windows whose edges are found again. `contrast`
and `worst` are the share of the contrast of blobs of 3 and 6 px that stays, median and worst tenth of
windows; `edges` the mean correlation of Sobel magnitudes; `border_95` is by how much the edge at a mask's
border moves. The rules of the verdict stand above the table.
"""

import argparse
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from machine import publish

from styleaug.evaluation.decisions import Flips, Rate, imagenet_classifier
from styleaug.evaluation.labels import LabelSafety, evaluate_labels, told_rules
from styleaug.io.files import image_files
from styleaug.robustness.classifier_training import Recipe
from styleaug.robustness.classifiers import FROM_SCRATCH
from styleaug.weights import COLOR_GENERATORS

GENERATORS = (*COLOR_GENERATORS, "photo", "adain", "patchswap")


class Case(NamedTuple):
    """A set of images, whose styles they get, and who decides."""

    images: str
    styles: str
    classifier: str
    extra: tuple[str, ...] = ()
    masks: str | None = None
    recipe: Recipe | None = None


CELLS = Recipe(side=64, epochs=FROM_SCRATCH.epochs, lr=FROM_SCRATCH.lr, geometry="cells")
CASES = {
    "photos": Case("content/imagenet_eli", "style/artwall_cc0", "squeezenet"),
    "cells": Case("wbc/tecom", "wbc/pbc", "trained", ("randstainna",), "wbc/masks/tecom", CELLS),
    "sketches": Case("pacs/sketch", "pacs/photo", "trained"),
}


def labels_of(folder: Path, categories: list[str]) -> dict[str, int]:
    """Read ImageNet classes from names such as n01440764_tench.jpg; -1 where a name is none of theirs."""
    places = {name.lower(): place for place, name in enumerate(categories)}
    files = [path.relative_to(folder).as_posix() for path in image_files(folder)]
    return {
        file: places.get(Path(file).stem.split("_", 1)[1].replace("_", " ").lower(), -1) for file in files
    }


def run(case: Case, data: Path, weights: Path, most: int, strengths: list[float]) -> LabelSafety:
    """Measure one set."""
    labels = None
    if case.classifier != "trained":
        _, categories = imagenet_classifier(case.classifier, weights, torch.device("cpu"))
        labels = labels_of(data / case.images, categories)
    return evaluate_labels(
        data / case.images,
        generators=[*GENERATORS, *case.extra],
        styles=data / case.styles,
        strengths=strengths,
        classifier=case.classifier,
        labels=labels,
        masks=data / case.masks if case.masks else None,
        weights=weights,
        recipe=case.recipe,
        most=most,
        report=lambda done, total: print(f"{case.images}: {done} of {total}", flush=True),
    )


def shares(flips: Flips) -> dict[str, str]:
    """Format the rates as cells."""
    found = {"flips": cell(flips.all)}
    return found if flips.right is None else {**found, "right": cell(flips.right)}


def cell(rate: Rate) -> str:
    """Format a rate in percent with its interval."""
    low, high = rate.ends
    return f"{100 * rate.share:.0f} ({100 * low:.0f} to {100 * high:.0f})"


def rounded(figures: Mapping[str, float]) -> dict[str, Any]:
    """Format the figures as cells, in the table's order."""
    names = {"moved": "moved", "moved_95": "moved_95", "matched": "matched", "contrast": "contrast"}
    names |= {"contrast_worst": "worst", "edges": "edges", "border_95": "border_95"}
    known = {new: figures.get(old, math.nan) for old, new in names.items()}
    return {name: round(value, 3) for name, value in known.items() if not math.isnan(value)}


def main() -> None:
    parser = argparse.ArgumentParser(description="Do labels stay true?")
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--most", type=int, default=60, help="images of each set")
    parser.add_argument("--strengths", default="0.5,1")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--sheets", type=Path, help="folder for the worst flips of each set")
    args = parser.parse_args()
    torch.set_num_threads(1)
    data, weights = Path(os.environ["STYLEAUG_DATA"]), Path(os.environ["STYLEAUG_WEIGHTS"])
    rows: dict[str, dict] = {}
    told = []
    for name in args.cases.split(","):
        found = run(CASES[name], data, weights, args.most, [float(s) for s in args.strengths.split(",")])
        told.append(f"{name}: {found.images} images, {found.classifier}, right on {found.accuracy:.0%}")
        rows[f"{name}: jitter"] = shares(found.jitter)
        for row in found.rows:
            verdict = {"verdict": row.verdict.word, "because": row.verdict.because}
            rows[f"{name}: {row.name}, {row.strength:g}"] = shares(row.flips) | rounded(row.figures) | verdict
        if args.sheets:
            found.save_sheet(args.sheets / f"labels-{name}.png")
        notes = "; ".join(told) + ".\n\n" + "\n".join(f"- {rule}" for rule in told_rules())
        print(publish(args.out, "Do labels stay true?", rows, notes=notes))


if __name__ == "__main__":
    main()
