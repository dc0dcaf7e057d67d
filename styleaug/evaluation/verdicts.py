"""Is a style safe for labels? One table of rules, each with its limits and its reason."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["RULES", "Rule", "Verdict", "judge", "told_rules"]


@dataclass(frozen=True)
class Rule:
    """A figure that is worse the higher it is, and where it stops being safe."""

    name: str
    what: str
    careful: float
    """Above it, look at the sheet before training."""
    unsafe: float
    """Above it, do not train on such images unless their labels were checked."""
    why: str


@dataclass(frozen=True)
class Verdict:
    """`"safe"`, `"careful"` or `"unsafe"`, and the rules that decided."""

    word: str
    because: str


RULES = (
    Rule(
        "flips", "right decisions (all, without labels) flipped, less those by mild jitter", 0.05, 0.25,
        "more flips than a jitter that everybody uses",
    ),
    Rule(
        "moved", "95th percentile of the displacement of edges, px", 0.25, 1.0,
        "boxes and masks are drawn to about a pixel",
    ),
    Rule(
        "lost edges", "share of windows whose edges are not found again", 0.02, 0.10,
        "where they are not, nothing says that the object is still there",
    ),
    Rule(
        "contrast", "contrast of blobs of 3 and 6 px that is lost, median", 0.25, 0.50,
        "small findings are seen by their contrast",
    ),
    Rule(
        "faint", "the same in the worst tenth of windows", 0.50, 0.90,
        "a finding may lie in the worst window",
    ),
    Rule(
        "border", "95th percentile of the displacement of edges at mask borders, px", 0.50, 1.5,
        "the ring in which a border is sought is coarser than phase correlation",
    ),
)  # fmt: skip


def judge(flips: float, figures: Mapping[str, float]) -> Verdict:
    """Apply the rules; the worst decides. What was not measured is left out.

    Args:
        flips: share of decisions flipped, less the yardstick's.
        figures: see `structure_kept.measure`.
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
    return Verdict(word, ", ".join(unsafe or careful))


def told_rules() -> list[str]:
    """Say the rules in words, a line each."""
    return [
        f"{rule.name}: {rule.what}; careful above {rule.careful:g}, unsafe above {rule.unsafe:g} ({rule.why})"
        for rule in RULES
    ]
