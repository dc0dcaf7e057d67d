"""Recommend a generator from measurements, by a table of rules with reasons."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from styleaug.evaluation.domains import Gap, Parted

__all__ = ["STYLE", "Advice", "Evidence", "Option", "advise"]

STYLE = ("colour", "sharpness", "texture")
"""Measures that count as style. The fourth measure is `"content"`."""

NARROW = 8.0
"""Deviation of mean lightness (Lab L) over images; a set below it looks like from one instrument.

Blood cells of one laboratory have 3 to 6; photos, paintings and cartoons of many scenes 8.5 to 16.
"""
COLOUR_ORDER = ("randstainna", "photo", "vahadane", "reinhard-rgb", "reinhard-lab", "macenko", "histogram")
"""Colour generators ranked on blood cells; see benchmarks/results/evidence_cells_pbc.md."""
PAINTERS = ("adain", "patchswap")
"""Generators that change texture."""
NEARLY = 0.75
"""Options that close this share of what the best one closes count as equal; the order decides."""
HALF_GONE = 0.5
"""Least correlation of edges at full strength; below it, a lower strength is recommended."""
MIXED = 0.75
"""If the accuracy is below this, many training images already look like the target."""
BLURRED = 1.0
"""Least difference of sharpness, in standard deviations, that gets a note."""


@dataclass(frozen=True)
class Option:
    """Effect of a candidate on the training images at one strength."""

    name: str
    generator: str
    bank: str
    strength: float
    closed: dict[str, Gap]
    """Closed share of the gap for colour, sharpness, texture and content."""
    after: dict[str, Parted]
    """How well a classifier still separates styled images from the target."""
    edges: float
    """Mean correlation of edges with those of the original image."""

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {
            "name": self.name,
            "generator": self.generator,
            "bank": self.bank,
            "strength": self.strength,
            "closed": {name: gap.to_dict() for name, gap in self.closed.items()},
            "after": {name: parted.to_dict() for name, parted in self.after.items()},
            "edges": round(self.edges, 3),
        }


@dataclass(frozen=True)
class Evidence:
    """All measurements that the rules use."""

    parted: dict[str, Parted]
    """How well a classifier separates the sets by colour, sharpness, texture and content."""
    variety: float
    """Standard deviation of the training images' mean lightness (Lab L)."""
    slope: float
    """Standardised difference of sharpness; below 0 the target is blurrier."""
    options: Sequence[Option]
    """Effect of each candidate at full strength."""
    masks: bool = False
    """Whether the training images have masks as labels."""

    @property
    def style(self) -> float:
        """Return the largest distance of the sets in a measure of style (d')."""
        return max(self.parted[name].apart for name in STYLE)

    @property
    def style_by_chance(self) -> bool:
        """Return whether no measure of style separates the sets better than chance."""
        return all(self.parted[name].by_chance for name in STYLE)


@dataclass(frozen=True)
class Advice:
    """A recommendation with its reason."""

    generator: str | None
    """Name of the generator; None if styling does not help."""
    bank: str | None
    """`"fitted"` (to the target), `"prior"`, or the name of a given bank."""
    strength: tuple[float, float] | None
    p: float | None
    reason: str
    rule: str
    notes: list[str] = field(default_factory=list)
    preset: str | None = None
    """Preset for training without images of the target; None if styling does not help."""

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return asdict(self)


@dataclass(frozen=True)
class _Rule:
    """A condition, the option that it selects, and the reason."""

    name: str
    holds: Callable[[Evidence], bool]
    pick: Callable[[Evidence], Option | None]
    why: str
    preset: str | None = None


def advise(evidence: Evidence) -> Advice:
    """Apply the first rule that holds."""
    rule = next(rule for rule in _RULES if rule.holds(evidence))
    option = rule.pick(evidence)
    notes = notes_on(evidence, option)
    preset = None if evidence.masks else rule.preset
    if option is None:
        return Advice(None, None, None, None, rule.why, rule.name, notes, preset)
    strength = (1.0, 1.0) if option.edges >= HALF_GONE else (0.25, 0.75)
    accuracy = max(evidence.parted[name].accuracy for name in STYLE)
    measured = " and ".join(
        f"{100 * option.closed[name].value:.0f} % (±{100 * reach(option.closed[name]):.0f}) of the {name} gap"
        for name in ("colour", "texture")
    )
    reason = f"{rule.why} {option.name} closes {measured}, and edges correlate by {option.edges:.2f}."
    return Advice(
        option.generator,
        option.bank,
        strength,
        0.5 if accuracy < MIXED else 0.8,
        reason,
        rule.name,
        notes,
        preset,
    )


def reach(gap: Gap) -> float:
    """Return half the width of an interval."""
    return (gap.high - gap.low) / 2


def no_option(evidence: Evidence) -> None:
    """Choose no option."""


def best_colour(evidence: Evidence) -> Option | None:
    """Choose the first of `COLOUR_ORDER` that closes nearly as much of the colour gap as the best."""
    colour = [option for option in evidence.options if option.generator in COLOUR_ORDER]
    if not colour:
        return best_of_all(evidence)
    most = max(option.closed["colour"].value for option in colour)
    good = [option for option in colour if option.closed["colour"].value >= min(NEARLY * most, most)]
    return min(good, key=lambda option: COLOUR_ORDER.index(option.generator))


def best_painter(evidence: Evidence) -> Option | None:
    """Choose the texture generator that closes most of the texture gap."""
    painters = [option for option in evidence.options if option.generator in PAINTERS]
    if not painters:
        return best_of_all(evidence)
    return max(painters, key=lambda option: option.closed["texture"].value)


def best_of_all(evidence: Evidence) -> Option | None:
    """Choose the option that closes most of colour and texture, weighted by the edges it keeps."""
    if not evidence.options:
        return None
    return max(
        evidence.options,
        key=lambda option: (option.closed["colour"].value + option.closed["texture"].value) * option.edges,
    )


_RULES = (
    _Rule(
        "no shift",
        lambda e: e.style_by_chance and e.parted["content"].by_chance,
        no_option,
        "Neither style nor content tells the two sets apart better than chance. There is no shift to close.",
    ),
    _Rule(
        "content only",
        lambda e: e.style_by_chance,
        no_option,
        "The sets show different things in the same style. Styling will not close that: add images of what "
        "the target shows.",
    ),
    _Rule(
        "one instrument",
        lambda e: e.variety < NARROW,
        best_colour,
        "The training images vary little in lightness among themselves, as from one instrument, so a "
        "classifier takes their colours for granted: give them others and keep their texture.",
        "unknown",
    ),
    _Rule(
        "colour only",
        lambda e: e.parted["texture"].by_chance or 2 * e.parted["texture"].apart < e.parted["colour"].apart,
        best_colour,
        "The sets differ in colour far more than in texture.",
        "unknown",
    ),
    _Rule(
        "many scenes",
        lambda e: True,
        best_painter,
        "The training images vary in colour already and the target has another texture, as paintings and "
        "drawings have: a classifier that leans on texture has to unlearn it.",
        "drawings",
    ),
)
"""Rules in order; the first that holds is used.

They come from results on blood cells and on PACS. On other data they are a first guess. No preset is
recommended where labels are masks: see benchmarks/results/evidence_nuclei_*.md.
"""


def notes_on(evidence: Evidence, option: Option | None) -> list[str]:
    """List the limits of the recommendation."""
    notes = []
    content = evidence.parted["content"]
    if option and not content.by_chance and content.apart > evidence.style:
        notes.append(
            f"The content gap (d' {content.apart:.1f}) is larger than the style gap ({evidence.style:.1f}), "
            "and styling will not close it. Compare the classes and the framing of the two sets."
        )
    if abs(evidence.slope) >= BLURRED:
        side = "blurrier" if evidence.slope < 0 else "sharper"
        notes.append(
            f"The target is {side}, which styling of colours does not change: look whether both are read at "
            "the same magnification. To blur training images at random did not help on blood cells."
        )
    if option and option.edges < HALF_GONE:
        notes.append(
            f"At full strength edges correlate by {option.edges:.2f} only; see: styleaug evaluate labels."
        )
    if option and max(option.closed[name].value for name in ("colour", "texture")) <= 0:
        notes.append("None of the gap is closed: fit a bank to the target, or to images nearer to it.")
    if option and evidence.masks:
        notes.append(
            "The labels are masks. No preset is recommended: from organ to organ they harmed, and colour "
            "jitter with some grey gained as much as styles of the target, or more. Measure first: styleaug "
            "evaluate robustness --task segmentation."
        )
    if option and option.generator in PAINTERS and option.bank == "fitted":
        notes.append(
            "Add the shipped art bank: many styles help where the target is not the only one to come."
        )
    return notes
