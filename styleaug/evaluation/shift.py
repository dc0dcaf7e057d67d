"""The distance of two folders in style and content, and how much of it styling closes."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from styleaug.bank import StyleBank
from styleaug.errors import ConfigError, FileError, printable
from styleaug.evaluation.advice import STYLE, Advice, Evidence, Option, advise
from styleaug.evaluation.appearance import (
    APPEARANCES,
    band_powers,
    colour_rows,
    content_features,
    in_words,
    measures,
)
from styleaug.evaluation.candidates import Candidate, find_candidates
from styleaug.evaluation.domains import Gap, Parted, gap_between, gap_closed, standardise, tell_apart
from styleaug.evaluation.pairs import Squares, read_squares
from styleaug.evaluation.quality import find_device
from styleaug.generators.base import AbstractGenerator
from styleaug.images import from_float, to_float
from styleaug.io.atomic import atomic
from styleaug.io.files import save_image
from styleaug.perceptual import Features, frechet_distance, kernel_distance, load_features
from styleaug.sheets import contact_sheet
from styleaug.training.losses import edge_correlation

__all__ = ["Shift", "evaluate_shift"]

_GENERATORS = ("reinhard-rgb", "randstainna", "photo", "fourier", "adain")
"""Generators that are tried by default, each with a bank fitted to the target."""
_STRENGTHS = (0.5, 1.0)
MOST_STYLED = 150
"""Largest number of training images that each candidate styles."""
_SHOWN = 4
"""Number of images in each row of the sheet."""
WIDEST = -1.0
"""Least closed share that is shown as a number; lower ones are equally bad."""

Rows = dict[str, Float[Tensor, "N S"]]


@dataclass(frozen=True)
class Shift:
    """How two sets differ, the effect of each candidate, and a recommendation."""

    counts: tuple[int, int]
    """Number of measured images of the training set and of the target."""
    size: int
    looks: dict[str, dict[str, float]]
    """Means of both sets and their standardised difference, for each of `appearance.APPEARANCES`."""
    words: list[str]
    """How the target differs from the training images in words, the largest difference first."""
    parted: dict[str, Parted]
    """How well a classifier separates the sets by colour, sharpness, texture and content."""
    gaps: dict[str, Gap]
    """Distance of the sets in colour, sharpness, texture and content."""
    codes: dict[str, tuple[float, float]]
    """KID and FID of texture features, each with the value for two halves of the training set."""
    options: list[Option]
    advice: Advice
    content: str
    """Name of the network for content."""
    failed: list[tuple[Path, str]] = field(default_factory=list)
    """Files that could not be read, with the reasons."""

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {
            "train": self.counts[0],
            "target": self.counts[1],
            "size": self.size,
            "looks": {n: {k: round(v, 4) for k, v in row.items()} for n, row in self.looks.items()},
            "words": self.words,
            "parted": {name: parted.to_dict() for name, parted in self.parted.items()},
            "gaps": {name: gap.to_dict() for name, gap in self.gaps.items()},
            **{name: round(apart, 4) for name, (apart, _) in self.codes.items()},
            **{f"{name}_within_train": round(within, 4) for name, (_, within) in self.codes.items()},
            "content_features": self.content,
            "options": [option.to_dict() for option in self.options],
            "advice": self.advice.to_dict(),
            "failed": [[str(path), why] for path, why in self.failed],
        }

    def save(self, path: str | Path) -> Path:
        """Write `to_dict` as JSON, atomically."""
        with atomic(Path(path)) as part:
            part.write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")
        return Path(path)

    def table(self) -> str:
        """Return all results as a text table."""
        lines = [f"{self.counts[0]} training images, {self.counts[1]} of the target, at {self.size} px", ""]
        lines += ["The target is " + "; ".join(self.words) if self.words else "The target looks alike.", ""]
        lines += ["            told apart (95 % interval)    d'     distance"]
        for name, parted in self.parted.items():
            gap = self.gaps[name]
            lines.append(
                f"{name:11} {parted.accuracy:.2f} ({parted.low:.2f} to {parted.high:.2f})"
                f"{'  chance' if parted.by_chance else '        '}  {parted.apart:9.1f}"
                f"     {gap.value:.2f} ({max(0.0, gap.low):.2f} to {gap.high:.2f})"
            )
        told = [
            f"{n.upper()} of texture {a:.3g}, within the training set {w:.3g}"
            for n, (a, w) in self.codes.items()
        ]
        lines += ["; ".join(told), ""]
        lines += [
            "gap closed in % (± 95 %), told apart after" + " " * 8 + "".join(f"{n:>18}" for n in self.parted)
        ]
        for option in self.options:
            cells = [shown(option.closed[name], option.after[name]) for name in self.parted]
            head = f"{printable(option.name)}, {option.strength:g}, edges {option.edges:.2f}"
            lines.append(f"{head:50}" + "".join(f"{cell:>18}" for cell in cells))
        return "\n".join([*lines, "", *map(printable, self.told_advice())])

    def told_advice(self) -> list[str]:
        """Return the recommendation as lines."""
        advice = self.advice
        lines = [advice.reason, *advice.notes]
        if advice.generator and advice.strength:
            low, high = advice.strength
            spread = f"{high:g}" if low == high else f"({low:g}, {high:g})"
            how = {"fitted": "a bank fitted to the target", "prior": "no bank"}.get(
                str(advice.bank), f"bank {advice.bank}"
            )
            lines.insert(0, f"Try {advice.generator} with {how}, p={advice.p:g}, strength={spread}.")
        if advice.preset:
            lines.append(f'Without images of the target: StyleAugment.preset("{advice.preset}").')
        return lines


def shown(closed: Gap, after: Parted) -> str:
    """Format a closed share and the remaining accuracy."""
    value = (
        "worse"
        if closed.value <= WIDEST
        else f"{100 * closed.value:.0f}±{50 * (closed.high - closed.low):.0f}"
    )
    return f"{value}, {after.accuracy:.2f}"


def evaluate_shift(
    train: str | Path,
    target: str | Path,
    *,
    bank: str | Path | StyleBank | Sequence[str | Path | StyleBank] | None = None,
    generators: Sequence[str | Path | AbstractGenerator] | None = None,
    size: int = 128,
    most: int = 500,
    folds: int = 5,
    seed: int = 0,
    weights: str | Path | None = None,
    content: str | None = None,
    device: str | torch.device | None = None,
    sheet: str | Path | None = None,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Shift:
    """Measure the distance of two unlabelled folders, and how much of it styling closes.

    Colour is measured by statistics of Lab, sharpness by the power in octaves of frequency, texture by the
    codes of the shipped `adain`, and content by a deep network that reads images without colour, contrast
    and sharpness. A classifier is cross-validated on each. The measures are not fully independent: content
    depends a little on texture, and colour on what the images show. So compare all of them.

    Args:
        train: folder of the training images. If it holds the folders `images` and `masks`, the recommendation
            is for labels that are masks.
        target: folder of images like those that the classifier will meet; no labels are needed.
        bank: bank or banks to try: names, paths, run folders or `StyleBank`s.
        generators: generators to try with a bank fitted to the target; without banks or generators,
            those in `_GENERATORS`.
        size: side in pixels of the squares that are compared, at least 32.
        most: largest number of images of each folder; they are drawn at random.
        folds: number of parts of the cross-validation, at least 2.
        seed: seed for choosing images, folds and styles.
        weights: folder of `squeezenet1_1_imagenet.safetensors`.
        content: `"squeezenet"` (from `weights` or downloaded), or `"adain"`, which is coarser and needs no
            download. None is SqueezeNet if `weights` is given, otherwise `"adain"`.
        device: None uses a GPU if there is one.
        sheet: PNG file with training images before and after styling, and the target.
        report: called with the number of finished steps and of all.

    Raises:
        FileError: a folder is missing, or has too few images that can be read.
        ConfigError: a number is out of its range, or there is nothing to try.
        BankError, WeightsError: a bank, generator or network is unknown or damaged.

    Example:
        >>> print(evaluate_shift("lab_a", "lab_b").table())  # doctest: +SKIP
    """
    if size < 32 or folds < 2 or most < 2 * folds:
        raise ConfigError(
            f"size must be at least 32, folds 2 and most twice the folds; got {size}, {folds}, {most}."
        )
    network = content or ("squeezenet" if weights else "adain")
    if network not in ("adain", "squeezenet"):
        raise ConfigError(f"content must be adain or squeezenet, got {content!r}.")
    place = find_device(device)
    sides = [read_side(folder, most, size, folds, seed) for folder in (train, target)]
    chosen = _GENERATORS if generators is None and bank is None else tuple(generators or ())
    candidates = find_candidates(bank, chosen, target, seed=seed)
    look = Look(network, None if weights is None else Path(weights), place)
    ends = [to_float(side.images) for side in sides]
    rows = [look(images) for images in ends]
    keys = [image.numpy().tobytes() for side in sides for image in side.images]
    parted = {
        name: tell_apart(rows[0][name], rows[1][name], folds=folds, seed=seed, keys=keys)
        for name in look.names
    }
    options, styled = [], {}
    for candidate in candidates:
        for strength in _STRENGTHS:
            report(len(options), len(_STRENGTHS) * len(candidates))
            painted = _paint(candidate, ends[0], strength, seed, place)
            options.append(_compare(candidate, strength, ends[0], painted, rows, look, keys, folds, seed))
            styled[candidate.name] = painted[:_SHOWN]
    report(len(options), len(options))
    looks, variety = compare_looks(measures(ends[0]), measures(ends[1]))
    full = [option for option in options if option.strength == _STRENGTHS[-1]]
    evidence = Evidence(parted, variety, looks["slope"]["deviations"], full, masks=has_masks(Path(train)))
    if sheet:
        save_image(draw_sheet(ends[0], ends[1], styled), Path(sheet))
    return Shift(
        (len(ends[0]), len(ends[1])),
        size,
        looks,
        in_words(
            {name: row["deviations"] for name, row in looks.items()},
            {name: row["target"] - row["train"] for name, row in looks.items()},
        ),
        parted,
        {name: gap_between(*standardise(rows[0][name], rows[1][name]), seed=seed) for name in look.names},
        compare_codes(rows[0]["texture"], rows[1]["texture"], seed),
        options,
        advise(evidence),
        network,
        [entry for side in sides for entry in side.failed],
    )


def has_masks(folder: Path) -> bool:
    """Return whether masks lie beside the images of a folder."""
    inside = folder.parent if folder.name == "images" else folder
    return (inside / "images").is_dir() and (inside / "masks").is_dir()


def read_side(folder: str | Path, most: int, size: int, folds: int, seed: int) -> Squares:
    """Read one folder.

    Raises:
        FileError: the folder is missing, or has too few images that can be read.
    """
    side = read_squares(Path(folder), most, size, torch.Generator().manual_seed(seed))
    if len(side) < 2 * folds:
        raise FileError(
            f"{folder} has {len(side)} images that can be read; at least {2 * folds} are needed to measure a "
            f"shift in {folds} folds."
        )
    return side


class Look:
    """Describe images by features of colour, sharpness, texture and content.

    Args:
        content: name of the network for content.
        weights: folder of SqueezeNet's weights.
        device: device of the networks.
    """

    names: tuple[str, ...] = (*STYLE, "content")

    def __init__(self, content: str, weights: Path | None, device: torch.device):
        self.texture: Features = load_features("adain", None).to(device)
        self.content: Callable[[Tensor], Tensor] = content_features(content, weights, device)  # pyright: ignore[reportArgumentType]

    def __call__(self, images: Float[Tensor, "N 3 H W"]) -> Rows:
        """Compute the features of images."""
        bands = band_powers(images)
        return {
            "colour": colour_rows(images),
            "sharpness": bands - bands.mean(dim=1, keepdim=True),  # the amount of contrast is not sharpness
            "texture": self.texture(images).cpu(),
            "content": self.content(images).cpu(),
        }


def _paint(
    candidate: Candidate, images: Float[Tensor, "N 3 H W"], strength: float, seed: int, device: torch.device
) -> Float[Tensor, "K 3 H W"]:
    """Style the first training images with 8 bits, as they are stored in memory."""
    styled = candidate.style(images[:MOST_STYLED].to(device), strength, seed=seed).cpu()
    return to_float(from_float(styled, torch.uint8))


def _compare(
    candidate: Candidate,
    strength: float,
    train: Float[Tensor, "N 3 H W"],
    styled: Float[Tensor, "K 3 H W"],
    rows: list[Rows],
    look: Look,
    keys: list[bytes],
    folds: int,
    seed: int,
) -> Option:
    """Measure the remaining shift after styling the training images."""
    count, found = len(styled), look(styled)
    mine = [*keys[:count], *keys[len(train) :]]
    closed, after = {}, {}
    for name in look.names:
        own, target, other = standardise(rows[0][name], rows[1][name], found[name])
        closed[name] = gap_closed(own[:count], other, target, seed=seed)
        after[name] = tell_apart(found[name], rows[1][name], folds=folds, seed=seed, keys=mine)
    edges = float(edge_correlation(styled, train[:count]).mean())
    return Option(candidate.name, candidate.generator, candidate.origin, strength, closed, after, edges)


def compare_looks(
    train: dict[str, Tensor], target: dict[str, Tensor]
) -> tuple[dict[str, dict[str, float]], float]:
    """Compute means, standardised differences, and the deviation of the training images' lightness."""
    looks = {}
    for name in APPEARANCES:
        own, other = train[name], target[name]
        spread = ((own.var() + other.var()) / 2).sqrt().clamp_min(1e-6)
        looks[name] = {
            "train": float(own.mean()),
            "target": float(other.mean()),
            "deviations": float((other.mean() - own.mean()) / spread),
        }
    return looks, float(train["lightness"].std())


def compare_codes(train: Tensor, target: Tensor, seed: int) -> dict[str, tuple[float, float]]:
    """Compute KID and FID of standardised features, and of two halves of the training set.

    FID is above 0 for the halves, too: it is biased if there are few images.
    """
    own, other = standardise(train, target)
    order = torch.randperm(len(own), generator=torch.Generator().manual_seed(seed))
    one, two = own[order].tensor_split(2)
    measures = {"kid": kernel_distance, "fid": frechet_distance}
    return {name: (measure(own, other), measure(one, two)) for name, measure in measures.items()}


def draw_sheet(
    train: Float[Tensor, "N 3 H W"], target: Float[Tensor, "M 3 H W"], styled: dict[str, Tensor]
) -> Image.Image:
    """Draw training images, each candidate's version of them at full strength, and target images."""
    columns = {"train": train, **styled, "target": target}
    count = min(_SHOWN, *(len(images) for images in columns.values()))
    rows = [[picture(images[row]) for images in columns.values()] for row in range(count)]
    return contact_sheet(rows, list(columns))


def picture(image: Float[Tensor, "3 H W"]) -> Image.Image:
    """Convert an image for a sheet."""
    return Image.fromarray(from_float(image, torch.uint8).permute(1, 2, 0).contiguous().numpy())
