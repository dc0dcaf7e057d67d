"""Checks of arguments: numbers of Python, NumPy or torch, and names with a suggestion."""

from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypeVar

from styleaug.errors import ConfigError

__all__ = [
    "brief",
    "changed",
    "check_count",
    "check_number",
    "check_seed",
    "check_share",
    "check_switch",
    "made_of",
    "nearest",
    "number",
]

_Value = TypeVar("_Value")


def number(value: Any) -> int | float | None:
    """Return a real number as Python's int or float; None for anything else, including bool."""
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    return int(value) if isinstance(value, Integral) else float(value)


def check_number(
    name: str, value: Any, low: float, high: float, *, above: bool = False, below: bool = False
) -> float:
    """Check a number in [low, high]; `above` excludes `low`, `below` excludes `high`.

    Raises:
        ConfigError: the value is outside, NaN or not a number.
    """
    found = number(value)
    ends = (found == low and above) or (found == high and below)
    if found is None or ends or not low <= found <= high:  # written so that NaN fails too
        span = f"{'(' if above else '['}{low:g}, {high:g}{')' if below else ']'}"
        raise ConfigError(f"{name} must be a number in {span}, got {value!r}.")
    return float(found)


def check_share(name: str, value: Any) -> float:
    """Check a number in [0, 1]."""
    return check_number(name, value, 0, 1)


def check_count(name: str, value: Any, least: int = 1, most: int | None = None) -> int:
    """Check a whole number from `least` to `most`."""
    found = number(value)
    if not isinstance(found, int) or found < least or (most is not None and found > most):
        upto = "" if most is None else f" to {most}"
        raise ConfigError(f"{name} must be a whole number from {least}{upto}, got {value!r}.")
    return found


def check_seed(value: Any, name: str = "seed") -> int:
    """Check a seed: a whole number of at most 64 bits."""
    found = number(value)
    if not isinstance(found, int) or not -(2**63) <= found < 2**64:
        raise ConfigError(f"{name} must be a whole number of at most 64 bits, got {value!r}.")
    return found


def check_switch(name: str, value: Any) -> bool:
    """Check True or False."""
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        value = value.item()
    if not isinstance(value, bool):
        raise ConfigError(f"{name} must be True or False, got {value!r}.")
    return value


def nearest(name: str | Path, names: list[str]) -> str:
    """Return " Did you mean NAME?" for the name most like `name`, or an empty text."""
    found = get_close_matches(str(name).lower(), names, 1, 0.7)
    return f" Did you mean {found[0]!r}?" if found else ""


def brief(value: Any) -> str:
    """Format a dataclass as it is written: the first field by its place, then those that are not usual."""
    first, *others = fields(value)
    said = [f"{field.name}={getattr(value, field.name)!r}" for field in others if changed(value, field)]
    own = getattr(value, first.name)
    return f"{type(value).__name__}({', '.join(([repr(own)] if changed(value, first) else []) + said)})"


def changed(value: Any, field: Any) -> bool:
    """Return whether a dataclass's field has another value than its default."""
    return getattr(value, field.name) != field.default


def made_of(kind: type[_Value], given: Mapping[str, Any], name: str) -> _Value:
    """Make a dataclass of a dict of its fields, as JSON and YAML hold one.

    Args:
        kind: the dataclass.
        given: its fields.
        name: of the option, for the message.

    Raises:
        ConfigError: a field that it does not have, or a value outside its range.
    """
    known = [field.name for field in fields(kind)]  # pyright: ignore[reportArgumentType]
    if strange := [key for key in given if key not in known]:
        raise ConfigError(f"{name} has no {strange[0]!r}; a dict of it may hold {', '.join(known)}.")
    return kind(**given)
