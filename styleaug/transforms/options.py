"""The options of `StyleAugment`, once for all adapters: their types, what they are checked for, old names.

What means something only beside another option is part of that one's value: `sampler=Mix(3)`,
`splice=Splice("halves", parts=3)`, `preserve=Preserve(0.9, protect="mask")`.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from functools import wraps
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypedDict, TypeVar

from styleaug.checks import changed, check_share, check_switch, number
from styleaug.errors import ConfigError
from styleaug.generators.base import AbstractGenerator
from styleaug.images import ValueRange
from styleaug.samplers import Mix, Sampler, Weighted
from styleaug.transforms.bands import Bands
from styleaug.transforms.blends import Blend
from styleaug.transforms.guard import Preserve, read_preserve
from styleaug.transforms.splice import Splice, SpliceKind

__all__ = [
    "STRENGTH",
    "Channels",
    "CommonOptions",
    "P",
    "Precision",
    "StyleOptions",
    "check_range_option",
    "check_strength",
    "fold",
    "in_short",
    "refuse_old",
    "refusing_old_names",
]

Precision = Literal["auto", "float32", "bfloat16"]
Channels = Literal["auto", "shared", "independent"]

P = 0.8
STRENGTH = 1.0
"""The usual chance and strength: what helped most, `benchmarks/results/evidence_*.md`."""


class CommonOptions(TypedDict, total=False):
    """The options that films and folders take, too."""

    generator: str | Path | AbstractGenerator | None
    """A name, a path to weights, a run folder, or a generator; None takes the one that made the bank."""

    strength: float | Sequence[float]
    """How much of the style, in [0, 1]: a number, or `(low, high)` between which it is drawn."""

    sampler: Sampler
    """How styles are drawn: `"uniform"`, `"mix"`, `"gaussian"`, `"slerp"`, `Mix` or `Weighted`."""

    blend: Blend | None
    """How the styled image is laid over the image: a blend mode such as `"soft-light"`."""

    bands: Bands | None
    """Which frequencies of the change are kept: `"low"`, `"high"`, or None for all."""


class StyleOptions(CommonOptions, total=False):
    """The options of `styleaug.StyleAugment` that adapters hand on as they are; see there."""

    splice: Splice | SpliceKind | None
    """Parts of one image get different styles: `"halves"`, `"fields"`, `"mask"` or `Splice`."""

    value_range: ValueRange
    """Which values are black and white: None, `(low, high)` or `"auto"`."""

    channels: Channels
    """Whether channels are styled together: `"auto"`, `"shared"` or `"independent"`."""

    preserve: float | Preserve | None
    """How much structure stays at least, in [0, 1], or `Preserve`."""

    least_side: int | None
    """Images whose shorter side has fewer pixels are styled enlarged; None is what suits the generator."""

    precision: Precision
    """Of a network's weights."""

    compiled: bool
    """Run the generator through `torch.compile`."""


def in_short(value: Any) -> Any:
    """Return an option's value in its short form, or as a dict of its fields, as JSON and YAML hold it."""
    match value:
        case Mix(components=2):
            return "mix"
        case Splice(kind, parts=2, keep=False):
            return kind
        case Preserve(floor, protect=None):
            return floor
        case Weighted(weights):
            return {"weights": list(weights)}
        case Mix() | Splice() | Preserve():
            return {
                field.name: getattr(value, field.name) for field in fields(value) if changed(value, field)
            }
    return value


# Old names.

FOLDED = {
    "weights": "sampler",
    "components": "sampler",
    "parts": "splice",
    "keep": "splice",
    "protect": "preserve",
    "keep_luminance": "blend",
    "edges": "",
}
"""Options that there were, and those that they are a part of now; edges have gone altogether."""


def fold(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options with those of `FOLDED` as a part of the value of those that there are now.

    Args:
        options: of `StyleAugment`, among them some of `FOLDED`.

    Raises:
        ConfigError: one without the option that it belongs to, or a value outside its range.
    """
    given = {name: value for name, value in options.items() if name not in FOLDED}
    weights, components = options.get("weights"), options.get("components", 2)
    sampler, splice = given.get("sampler", "uniform"), given.get("splice")
    parts, keep, protect = options.get("parts", 2), options.get("keep", False), options.get("protect")
    if weights is not None and sampler in ("uniform", "weighted"):
        given["sampler"] = Weighted(weights)
    elif weights is not None:
        raise ConfigError(
            f"weights go with no other sampler, got {sampler!r}; in Python sampler={Weighted(weights)!r}."
        )
    elif sampler == "mix" and "components" in options:
        given["sampler"] = Mix(components)
    elif components != 2:
        raise ConfigError(
            f"components go with the sampler Mix, got {sampler!r}; in Python sampler={Mix(components)!r}."
        )
    if isinstance(splice, str):
        given["splice"] = Splice(splice, parts=parts, keep=keep)  # pyright: ignore[reportArgumentType]
    elif parts != 2 or keep:
        wanted = Splice("halves", parts=parts, keep=keep)
        raise ConfigError(f"parts and keep go with splice, got {splice!r}; in Python splice={wanted!r}.")
    if check_switch("keep_luminance", options.get("keep_luminance", False)):
        if given.get("blend") not in (None, "color"):
            raise ConfigError(f"keep_luminance is blend='color' now, got blend={given['blend']!r}, too.")
        given["blend"] = "color"
    if protect is not None:
        given["preserve"] = replace(read_preserve(given.get("preserve")), protect=protect)
    return given


def refuse_old(options: Mapping[str, Any]) -> None:
    """Refuse options under names that they no longer have.

    Raises:
        ConfigError: naming the new spelling, with the value that was given.
    """
    old = [name for name in options if name in FOLDED]
    if not old:
        return
    listed = " and ".join([", ".join(old[:-1]), old[-1]] if old[1:] else old)
    said = f"the options {listed} have gone" if old[1:] else f"the option {listed} has gone"
    folded = fold(options)
    new = {name: folded[name] for name in dict.fromkeys(map(FOLDED.__getitem__, old)) if name in folded}
    new = {name: value for name, value in new.items() if in_short(value) != in_short(options.get(name))}
    if not new:
        raise ConfigError(f"{said}, and made no difference here: leave out {', '.join(old)}.")
    written = ", ".join(f"{name}={value!r}" for name, value in new.items())
    saved = json.dumps({name: in_short(value) for name, value in new.items()}, default=lambda value: "?")
    raise ConfigError(f"{said}; write {written}. In JSON or YAML: {saved[1:-1]:.500}.")


_Arguments = ParamSpec("_Arguments")
_Made = TypeVar("_Made")


def refusing_old_names(make: Callable[_Arguments, _Made]) -> Callable[_Arguments, _Made]:
    """Let a function say what became of options that it had."""

    @wraps(make)
    def checked(*args: _Arguments.args, **options: _Arguments.kwargs) -> _Made:
        refuse_old(options)
        return make(*args, **options)

    return checked


# What is checked.


def two_of(value: Any) -> tuple[Any, Any] | None:
    """Return both of two values: of a list, a tuple, an array or a tensor."""
    if (
        isinstance(value, str | bytes | dict)
        or not hasattr(value, "__len__")
        or not hasattr(value, "__getitem__")
    ):
        return None
    return (value[0], value[1]) if getattr(value, "ndim", 1) == 1 and len(value) == 2 else None


def check_strength(strength: Any) -> tuple[float, float]:
    """Check a number or `(low, high)` in [0, 1]."""
    ends = two_of(strength) if number(strength) is None else (strength, strength)
    if ends is None:
        raise ConfigError(f"strength must be a number or (low, high), got {strength!r}.")
    low, high = check_share("strength", ends[0]), check_share("strength", ends[1])
    if low > high:
        raise ConfigError(f"strength must be (low, high) with low <= high, got {strength!r}.")
    return low, high


def check_range_option(value_range: Any) -> ValueRange:
    """Check None, `"auto"`, or two finite numbers `(low, high)` with low < high.

    Raises:
        ConfigError: anything else.
    """
    if value_range is None or (isinstance(value_range, str) and value_range == "auto"):
        return value_range
    low, high = (number(end) for end in two_of(value_range) or (None, None))
    if low is None or high is None or not -math.inf < low < high < math.inf:  # written so that NaN fails too
        raise ConfigError(
            'value_range must be None, "auto", or (low, high) with low < high, such as (-160, 240), got '
            f"{value_range!r}."
        )
    return float(low), float(high)
