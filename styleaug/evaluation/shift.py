"""How far two folders of images lie apart, in style and in content, and how much of it styling closes."""

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
from styleaug.perceptual import frechet_distance, kernel_distance, load_features
from styleaug.sheets import contact_sheet
from styleaug.training.losses import edge_correlation

__all__ = ["Shift", "evaluate_shift"]

_GENERATORS = ("reinhard-rgb", "randstainna", "photo", "fourier", "adain")
"""Tried unless others, or banks, are given: each with a bank fitted to the target."""
_STRENGTHS = (0.5, 1.0)
MOST_STYLED = 150
"""Training images that each candidate styles."""
_SHOWN = 4
"""Images of the sheet."""
WIDEST = -1.0
"""Of shares closed that are shown; further below all are as bad."""

Rows = dict[str, Float[Tensor, "N S"]]


@dataclass(frozen=True)
class Shift:
    """How two sets differ, what each candidate does about it, and what to try."""

    counts: tuple[int, int]
    """Images measured of the training set and of the target."""
    size: int
    looks: dict[str, dict[str, float]]
    """For each of `appearance.MEASURES`: mean of both sets and the standardised difference."""
    words: list[str]
    """How the target looks beside the training images, the plainest difference first."""
    parted: dict[str, Parted]
    """How well a classifier tells the sets apart by colour, sharpness, texture and content."""
    gaps: dict[str, Gap]
    """Distance in the same features."""
    codes: dict[str, tuple[float, float]]
    """KID and FID of the texture features, each with that of two halves of the training set."""
    options: list[Option]
    advice: Advice
    content: str
    """Name of the network that described content."""
    failed: list[tuple[Path, str]] = field(default_factory=list)
    """Files that could not be read, and why."""

    def to_dict(self) -> dict[str, Any]:
        """Give JSON-ready values."""
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
        """Tell all of it to a person."""
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
        """Give the recommendation as lines."""
        advice = self.advice
        lines = [advice.reason, *advice.notes]
        if advice.generator and advice.strength:
            low, high = advice.strength
            spread = f"{high:g}" if low == high else f"({low:g}, {high:g})"
            how = {"fitted": "a bank fitted to the target", "prior": "no bank"}.get(
                str(advice.bank), f"bank {advice.bank}"
            )
            lines.insert(0, f"Try {advice.generator} with {how}, p={advice.p:g}, strength={spread}.")
        return lines


def shown(closed: Gap, after: Parted) -> str:
    """Show a share closed, and the accuracy that is left."""
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
    """Measure how far two unlabelled folders lie apart, and how much of that styling closes.

    Colour is read from statistics of Lab, sharpness from the power in octaves of frequency, texture from the
    codes of the shipped `adain`, and content from a deep network that sees images without colour, contrast
    and sharpness. A classifier is cross-validated on each. Content still hears a little of texture, and
    colour of what is shown: compare, and take none alone.

    Args:
        train: folder of the training images.
        target: folder of images like those that the classifier will meet; no labels are needed.
        bank: bank or banks to try: names, paths, run folders or `StyleBank`s.
        generators: to try with a bank that is fitted to the target here; without banks or generators,
            those in `_GENERATORS`.
        size: side in pixels of the squares that are compared.
        most: images read of each folder; of more a random part.
        folds: of the cross-validation.
        seed: of the choice of images, folds and styles.
        weights: folder of `squeezenet1_1_imagenet.safetensors`.
        content: `"squeezenet"` (given `weights` or downloaded) or `"adain"`, which is coarser and needs no
            download. None is SqueezeNet if `weights` is given.
        device: None takes a GPU if there is one.
        sheet: PNG file for training images before and after, beside the target.
        report: called with the number of steps done and of all.

    Raises:
        FileError: a folder that is missing, empty, or holds too few images that can be read.
        ConfigError: a number outside its range, or nothing that can be tried.
        BankError, WeightsError: an unknown or damaged bank, generator or network.

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
    evidence = Evidence(
        parted, variety, looks["slope"]["deviations"], [o for o in options if o.strength == _STRENGTHS[-1]]
    )
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


def read_side(folder: str | Path, most: int, size: int, folds: int, seed: int) -> Squares:
    """Read one folder.

    Raises:
        FileError: missing, empty, or too few images.
    """
    side = read_squares(Path(folder), most, size, torch.Generator().manual_seed(seed))
    if len(side) < 2 * folds:
        raise FileError(
            f"{folder} has {len(side)} images that can be read; at least {2 * folds} are needed to measure a "
            f"shift in {folds} folds."
        )
    return side


class Look:
    """Describes images by features of colour, sharpness, texture and content.

    Args:
        content: name of the network for content.
        weights: folder of SqueezeNet's weights.
        device: where networks run.
    """

    names = (*STYLE, "content")

    def __init__(self, content: str, weights: Path | None, device: torch.device):
        self.texture = load_features("adain", None).to(device)
        self.content = content_features(content, weights, device)  # pyright: ignore[reportArgumentType]

    def __call__(self, images: Float[Tensor, "N 3 H W"]) -> Rows:
        """Describe images."""
        bands = band_powers(images)
        return {
            "colour": colour_rows(images),
            "sharpness": bands
            - bands.mean(dim=1, keepdim=True),  # how much contrast there is, is no sharpness
            "texture": self.texture(images).cpu(),
            "content": self.content(images).cpu(),
        }


def _paint(
    candidate: Candidate, images: Float[Tensor, "N 3 H W"], strength: float, seed: int, device: torch.device
) -> Float[Tensor, "K 3 H W"]:
    """Style the first training images, as they are in memory: with 8 bits."""
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
    """Measure what is left of the shift when training images are styled."""
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
    """Give means and standardised differences, and the deviation of the training images' lightness."""
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
    """Give KID and FID of standardised features, and those of two halves of the training set.

    FID is above 0 there, too: it is biased where images are few.
    """
    own, other = standardise(train, target)
    order = torch.randperm(len(own), generator=torch.Generator().manual_seed(seed))
    one, two = own[order].tensor_split(2)
    measures = {"kid": kernel_distance, "fid": frechet_distance}
    return {name: (measure(own, other), measure(one, two)) for name, measure in measures.items()}


def draw_sheet(
    train: Float[Tensor, "N 3 H W"], target: Float[Tensor, "M 3 H W"], styled: dict[str, Tensor]
) -> Image.Image:
    """Lay out training images, each candidate's version of them at full strength, and target images."""
    columns = {"train": train, **styled, "target": target}
    count = min(_SHOWN, *(len(images) for images in columns.values()))
    rows = [[picture(images[row]) for images in columns.values()] for row in range(count)]
    return contact_sheet(rows, list(columns))


def picture(image: Float[Tensor, "3 H W"]) -> Image.Image:
    """Give an image for a sheet."""
    return Image.fromarray(from_float(image, torch.uint8).permute(1, 2, 0).contiguous().numpy())
