"""Label safety: flipped decisions, moved edges, and contrast of small structures, by strength."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn

from styleaug.bank import StyleBank
from styleaug.errors import ConfigError, FileError, printable
from styleaug.evaluation.candidates import Candidate, find_candidates
from styleaug.evaluation.decisions import (
    Decide,
    Flips,
    Rate,
    count_flips,
    decide,
    imagenet_classifier,
    mild_jitter,
    train_classifier,
)
from styleaug.evaluation.displacement import measure
from styleaug.evaluation.pairs import Squares, read_mask_files, read_squares
from styleaug.evaluation.quality import find_device
from styleaug.generators.base import AbstractGenerator
from styleaug.images import from_float, to_float
from styleaug.io.atomic import atomic
from styleaug.io.files import save_image
from styleaug.robustness.classifier_training import Recipe
from styleaug.sheets import contact_sheet

__all__ = [
    "RULES",
    "LabelSafety",
    "evaluate_labels",
    "judge",
    "told_rules",
]


@dataclass(frozen=True)
class _Rule:
    """Limits of a figure; higher values are worse."""

    name: str
    what: str
    careful: float
    """Above this value, look at the sheet before training."""
    unsafe: float
    """Above this value, do not train on such images unless their labels were checked."""
    why: str


@dataclass(frozen=True)
class _Verdict:
    """`"safe"`, `"careful"` or `"unsafe"`, and the rules that decided."""

    word: str
    because: str


RULES = (
    _Rule(
        "flips", "right decisions (all, without labels) flipped, less those by mild jitter", 0.05, 0.25,
        "more flips than a jitter that everybody uses",
    ),
    _Rule(
        "moved", "95th percentile of the displacement of edges, px", 0.25, 1.0,
        "boxes and masks are drawn to about a pixel",
    ),
    _Rule(
        "lost edges", "share of windows whose edges are not found again", 0.02, 0.10,
        "where they are not, nothing says that the object is still there",
    ),
    _Rule(
        "contrast", "contrast of blobs of 3 and 6 px that is lost, median", 0.25, 0.50,
        "small findings are seen by their contrast",
    ),
    _Rule(
        "faint", "the same in the worst tenth of windows", 0.50, 0.90,
        "a finding may lie in the worst window",
    ),
    _Rule(
        "border", "95th percentile of the displacement of edges at mask borders, px", 0.50, 1.5,
        "the ring in which a border is sought is coarser than phase correlation",
    ),
)  # fmt: skip


def judge(flips: float, figures: Mapping[str, float]) -> _Verdict:
    """Apply the rules to all measured figures; the worst decides.

    Args:
        flips: share of decisions flipped, minus the share flipped by mild jitter.
        figures: result of `displacement.measure`.
    """
    values = {
        "flips": flips,
        "moved": figures.get("moved_95", math.nan),
        "lost edges": 1 - figures.get("matched", math.nan),
        "contrast": 1 - figures.get("contrast", math.nan),
        "faint": 1 - figures.get("contrast_worst", math.nan),
        "border": figures.get("border_95", math.nan),
    }
    unsafe = [rule.name for rule in RULES if values[rule.name] > rule.unsafe]
    careful = [rule.name for rule in RULES if values[rule.name] > rule.careful]
    word = "unsafe" if unsafe else "careful" if careful else "safe"
    return _Verdict(word, ", ".join(unsafe or careful))


def told_rules() -> list[str]:
    """Return each rule in words."""
    return [
        f"{rule.name}: {rule.what}; careful above {rule.careful:g}, unsafe above {rule.unsafe:g} ({rule.why})"
        for rule in RULES
    ]


_STRENGTHS = (0.25, 0.5, 0.75, 1.0)
_SHOWN = 12
"""Number of flips on the sheet."""
_TILE = 160


@dataclass(frozen=True)
class _Row:
    """Effect of one generator on labels at one strength."""

    name: str
    strength: float
    flips: Flips
    figures: dict[str, float]
    """Result of `displacement.measure`."""
    verdict: _Verdict

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values; None if nothing could be measured."""
        figures = {k: None if math.isnan(v) else round(v, 4) for k, v in self.figures.items()}
        verdict = {"verdict": self.verdict.word, "because": self.verdict.because}
        return {
            "name": self.name,
            "strength": self.strength,
            "flips": self.flips.to_dict(),
            **figures,
            **verdict,
        }


class Flip(NamedTuple):
    """One changed decision, and what the sheet shows of it."""

    file: str
    name: str
    strength: float
    before: str
    after: str
    right: bool
    sure: float
    """Probability that the classifier gives its new decision, in [0, 1]."""
    tiles: tuple[Image.Image, Image.Image]

    @property
    def title(self) -> str:
        """Return the title on the sheet: what flipped."""
        was = "" if self.right else " (wrong before)"
        return f"{self.name}, {self.strength:g}: {self.before} -> {self.after}{was}"


@dataclass(frozen=True)
class LabelSafety:
    """Effect of styling on labels."""

    rows: list[_Row]
    jitter: Flips
    """Flips under mild colour jitter, as a reference."""
    classifier: str
    accuracy: float | None
    """Accuracy of the classifier on these images; None without labels."""
    images: int
    masks: int
    flipped: list[Flip]
    """Flips with the highest probability of the new decision."""
    failed: list[tuple[Path, str]] = field(default_factory=list)
    """Files that could not be read, with the reasons."""

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        shown = ("file", "name", "strength", "before", "after", "right", "sure")
        return {
            "images": self.images,
            "masks": self.masks,
            "classifier": self.classifier,
            "accuracy": None if self.accuracy is None else round(self.accuracy, 4),
            "jitter": self.jitter.to_dict(),
            "rows": [row.to_dict() for row in self.rows],
            "rules": told_rules(),
            "worst": [{name: getattr(flip, name) for name in shown} for flip in self.flipped],
            "failed": [[str(path), why] for path, why in self.failed],
        }

    def save(self, path: str | Path) -> Path:
        """Write `to_dict` as JSON, atomically."""
        with atomic(Path(path)) as part:
            part.write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")
        return Path(path)

    def table(self) -> str:
        """Return all results as a text table."""
        known = "" if self.accuracy is None else f", right on {100 * self.accuracy:.0f} %"
        lines = [f"{self.images} images, classifier {printable(self.classifier)}{known}", ""]
        lines.append(f"{'':24}" + "".join(f"{head:>14}" for head in HEADS))
        lines.append(f"{'mild jitter':24}" + "".join(f"{cell:>14}" for cell in flip_cells(self.jitter)))
        for row in self.rows:
            cells = [*flip_cells(row.flips), *figure_cells(row.figures), row.verdict.word]
            because = f"  {row.verdict.because}" if row.verdict.because else ""
            head = f"{printable(row.name)}, {row.strength:g}"
            lines.append(f"{head:24}" + "".join(f"{c:>14}" for c in cells) + because)
        return "\n".join([*lines, "", *told_rules()])

    def save_sheet(self, path: str | Path) -> Path:
        """Draw the surest flips, two in each row: the image and its styled version.

        If there are no flips, the picture says so.
        """
        pairs = [self.flipped[at : at + 2] for at in range(0, len(self.flipped), 2)]
        rows = [[tile for flip in pair for tile in flip.tiles] for pair in pairs]
        titles = ["\n".join(flip.title for flip in pair) for pair in pairs]
        empty = "No decision of the classifier flipped."
        save_image(contact_sheet(rows, titles=titles, empty=empty), Path(path))
        return Path(path)


HEADS = (
    "flips %",
    "of right %",
    "moved px",
    "95 %",
    "matched %",
    "contrast %",
    "worst tenth",
    "border px",
    "verdict",
)


def flip_cells(flips: Flips) -> list[str]:
    """Format the flipped shares, with the interval of those that were right."""
    return [percent(flips.all), "" if flips.right is None else percent(flips.right)]


def percent(rate: Rate) -> str:
    """Format a rate and its interval."""
    low, high = rate.ends
    return f"{100 * rate.share:.0f} ({100 * low:.0f}-{100 * high:.0f})" if rate.count else "of none"


def figure_cells(figures: Mapping[str, float]) -> list[str]:
    """Format the figures of the images."""
    scales = {
        "moved": 1,
        "moved_95": 1,
        "matched": 100,
        "contrast": 100,
        "contrast_worst": 100,
        "border_95": 1,
    }
    values = {name: figures.get(name, math.nan) * scale for name, scale in scales.items()}
    return ["" if math.isnan(v) else f"{v:.2f}" if scales[k] == 1 else f"{v:.0f}" for k, v in values.items()]


def evaluate_labels(
    images: str | Path,
    *,
    generators: Sequence[str | Path | AbstractGenerator] = (),
    bank: str | Path | StyleBank | Sequence[str | Path | StyleBank] | None = None,
    styles: str | Path | None = None,
    strengths: Sequence[float] = _STRENGTHS,
    classifier: str | Decide = "squeezenet",
    labels: Mapping[str, int] | None = None,
    masks: str | Path | None = None,
    weights: str | Path | None = None,
    recipe: Recipe | None = None,
    size: int = 224,
    most: int = 200,
    seed: int = 0,
    device: str | torch.device | None = None,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> LabelSafety:
    """Measure how safe labels are when images are styled.

    A flipped decision need not be a wrong label: the classifier may depend on properties that style changes.
    So the flips under mild colour jitter are reported for comparison, and edges and contrast are measured
    without a classifier.

    Args:
        images: folder of images; `"trained"` needs a subfolder for each class.
        generators: names, paths, run folders or generators.
        bank: bank or banks: names, paths, run folders or `StyleBank`s. None without generators is `"art"`.
        styles: folder to fit the generators' banks to; None uses `images`.
        strengths: strengths, each in (0, 1].
        classifier: `"squeezenet"` or a torchvision name, for classes of ImageNet; `"trained"` for a small
            one that is trained here on two thirds of the images and classifies the others; or a function from
            images `(B, 3, size, size)` in [0, 1], on the device, to logits.
        labels: right class of each file, by its path in `images`; `"trained"` takes them from the folders.
        masks: folder of masks with the names of the images; foreground is not 0.
        weights: folder of `squeezenet1_1_imagenet.safetensors`; None downloads.
        recipe: recipe of the training, for `"trained"`.
        size: side in pixels of the squares that are styled and measured, at least 32.
        most: largest number of images; they are drawn at random.
        seed: seed for choosing images and styles, and for training.
        device: None uses a GPU if there is one.
        report: called with the number of finished rows and of all.

    Raises:
        FileError: a folder is missing, is empty, or has no image that can be read.
        ConfigError: a number is out of its range, the classifier is unknown, or labels or masks do not match.
        BankError, WeightsError: a bank, generator or network is unknown or damaged.

    Example:
        >>> print(evaluate_labels("photos", generators=["adain"]).table())  # doctest: +SKIP
    """
    if not strengths or not all(0 < strength <= 1 for strength in strengths):
        raise ConfigError(f"strengths must lie in (0, 1], got {tuple(strengths)}.")
    if size < 32 or most < 1:
        raise ConfigError(f"size must be at least 32 and most 1, got {size} and {most}.")
    place = find_device(device)
    banks = "art" if bank is None and not generators else bank
    candidates = find_candidates(banks, generators, images if styles is None else styles, seed=seed)
    folder = None if weights is None else Path(weights)
    subject = read_subject(Path(images), classifier, labels, folder, recipe, size, most, seed, place)
    borders = None if masks is None else read_mask_files(Path(masks), subject.squares.names, size)
    pixels = to_float(subject.squares.images)
    before = decide(subject.decide, pixels, place)
    yardstick = decide(subject.decide, mild_jitter(pixels, seed), place)
    jitter = count_flips(before.argmax(1), yardstick.argmax(1), subject.labels)
    rows, flipped = [], []
    for candidate in candidates:
        for strength in strengths:
            report(len(rows), len(candidates) * len(strengths))
            styled = _paint(candidate, pixels, strength, seed, place)
            after = decide(subject.decide, styled, place)
            flips = count_flips(before.argmax(1), after.argmax(1), subject.labels)
            figures = measure(pixels, styled, borders)
            verdict = judge(flips.telling.share - jitter.telling.share, figures)
            rows.append(_Row(candidate.name, strength, flips, figures, verdict))
            flipped += find_flips(subject, candidate.name, strength, before, after, pixels, styled)
    accuracy = None
    if subject.labels is not None:
        accuracy = float((before.argmax(1) == subject.labels).double().mean())
    return LabelSafety(
        rows, jitter, subject.name, accuracy, len(pixels), 0 if borders is None else int(borders[1].sum()),
        worst_of(flipped), subject.squares.failed,
    )  # fmt: skip


class Subject(NamedTuple):
    """The images, their labels and the classifier."""

    squares: Squares
    labels: Int[Tensor, " N"] | None
    decide: Decide
    name: str
    classes: list[str]


def read_subject(
    folder: Path,
    classifier: str | Decide,
    labels: Mapping[str, int] | None,
    weights: Path | None,
    recipe: Recipe | None,
    size: int,
    most: int,
    seed: int,
    device: torch.device,
) -> Subject:
    """Read the images, and load or train the classifier."""
    rng = torch.Generator().manual_seed(seed)
    if classifier == "trained":
        return train_subject(read_squares(folder, 3 * most, size, rng), folder, recipe, most, seed, device)
    squares = read_squares(folder, most, size, rng)
    if isinstance(classifier, str):
        network, classes = imagenet_classifier(classifier, weights, device)
        name = f"{classifier} (ImageNet)"
    else:
        network, classes, name = classifier, [], "given"
        if isinstance(network, nn.Module) and network.training:
            raise ConfigError(
                "the classifier is in training mode, so its decisions are random; call its eval() first."
            )
    if labels is None:
        return Subject(squares, None, network, name, classes)
    missing = [file for file in squares.names if file not in labels]
    if missing:
        raise ConfigError(
            f"labels lack {len(missing)} of the files, such as {missing[0]!r}; name each by its path."
        )
    right = torch.tensor([labels[file] for file in squares.names])
    return Subject(squares, right, network, name, classes)


def train_subject(
    squares: Squares, folder: Path, recipe: Recipe | None, most: int, seed: int, device: torch.device
) -> Subject:
    """Train a classifier on a part of the images, and keep the others as subject."""
    parts = [Path(name).parts for name in squares.names]
    classes = sorted({part[0] for part in parts if len(part) > 1})
    if len(classes) < 2 or not all(len(part) > 1 for part in parts):
        raise FileError(f"{folder} must have a folder per class, at least two, to train a classifier on.")
    labels = torch.tensor([classes.index(part[0]) for part in parts])
    network, held, recall = train_classifier(squares.images, labels, recipe=recipe, seed=seed, device=device)
    held = held[torch.randperm(len(held), generator=torch.Generator().manual_seed(seed))[:most]]
    kept = Squares(squares.images[held], [squares.names[row] for row in held.tolist()], squares.failed)
    return Subject(kept, labels[held], network, f"small, trained here, mean recall {recall:.2f}", classes)


def _paint(
    candidate: Candidate, images: Float[Tensor, "N 3 H W"], strength: float, seed: int, device: torch.device
) -> Float[Tensor, "N 3 H W"]:
    """Style images with 8 bits, as they are stored in memory."""
    styled = candidate.style(images.to(device), strength, seed=seed).cpu()
    return to_float(from_float(styled, torch.uint8))


def find_flips(
    subject: Subject,
    name: str,
    strength: float,
    before: Float[Tensor, "N K"],
    after: Float[Tensor, "N K"],
    images: Tensor,
    styled: Tensor,
) -> list[Flip]:
    """Return the surest flips of one row, those of right decisions first."""
    old, new = before.argmax(1), after.argmax(1)
    right = torch.ones_like(old, dtype=torch.bool) if subject.labels is None else old == subject.labels
    rows = (old != new).nonzero()[:, 0]
    sure = after.amax(1) * before.amax(1)
    order = sorted(rows.tolist(), key=lambda row: (not right[row], -float(sure[row])))[:_SHOWN]

    def class_name(index: int) -> str:
        return subject.classes[index] if index < len(subject.classes) else str(index)

    return [
        Flip(
            subject.squares.names[row], name, strength, class_name(int(old[row])), class_name(int(new[row])),
            bool(right[row]), round(float(sure[row]), 4), (tile(images[row]), tile(styled[row])),
        )
        for row in order
    ]  # fmt: skip


def worst_of(flips: list[Flip]) -> list[Flip]:
    """Return the surest flips, with each file at most once."""
    chosen: dict[str, Flip] = {}
    for flip in sorted(flips, key=lambda flip: (not flip.right, -flip.sure)):
        chosen.setdefault(flip.file, flip)
    return list(chosen.values())[:_SHOWN]


def tile(image: Float[Tensor, "3 H W"]) -> Image.Image:
    """Convert an image for the sheet."""
    pixels = from_float(image, torch.uint8).permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(pixels).resize((_TILE, _TILE), Image.Resampling.LANCZOS)
