"""Presets: mixtures of styles for common shifts, as our measurements chose them.

Settings were chosen on seed 0 of `benchmarks/evidence.py cells-pbc` and `pacs`; see docs/presets.md.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from styleaug.checks import nearest
from styleaug.errors import ConfigError
from styleaug.transforms.base import AbstractAugment
from styleaug.transforms.one_of import OneOf

__all__ = ["MIXTURES", "Preset", "make_preset"]


@dataclass(frozen=True)
class Preset:
    """A mixture, and when to use it."""

    when: str
    """What the target is, in a few words."""

    parts: tuple[tuple[float, dict[str, Any]], ...]
    """Weight of each part, and its arguments of `StyleAugment`."""


ART: dict[str, Any] = {"bank": "art", "p": 1.0}
RANDCONV: dict[str, Any] = {"generator": "randconv", "p": 1.0, "strength": (0.0, 1.0)}
GIN: dict[str, Any] = {"generator": "gin", "p": 1.0, "strength": (0.0, 1.0)}

MIXTURES = {
    "unknown": Preset("another stain, camera or scanner, or you do not know", ((1, GIN), (1, RANDCONV))),
    "drawings": Preset("paintings, cartoons, sketches", ((2, ART), (1, RANDCONV))),
    "corruptions": Preset("noise, blur, weather; before TrivialAugment", ((1, {**ART, "p": 0.3}),)),
}


def make_preset(
    make: Callable[..., AbstractAugment], name: str, *, p: float | None = None, **options: Any
) -> AbstractAugment:
    """Return the transform of a preset, of parts that `make` makes; see `StyleAugment.preset`."""
    if name not in MIXTURES:
        known = ", ".join(f"{each} ({preset.when})" for each, preset in MIXTURES.items())
        raise ConfigError(f"there is no preset {name!r}.{nearest(str(name), list(MIXTURES))} Known: {known}.")
    if own := [option for option in ("bank", "generator") if option in options]:
        raise ConfigError(
            f"a preset has styles of its own; leave out {', '.join(own)}, or join your bank to it: "
            f"OneOf([StyleAugment(bank), StyleAugment.preset({name!r})])."
        )
    weights, parts = zip(*MIXTURES[name].parts, strict=True)
    made = OneOf([make(**{**part, **options}) for part in parts], weights)
    return made if p is None else made.with_p(p)
