"""What is random about a call, as a value; and the options that every adapter takes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict

import torch
from jaxtyping import Float, Int
from torch import Tensor

from styleaug.errors import ConfigError
from styleaug.generators.base import AbstractGenerator
from styleaug.samplers import Sampler
from styleaug.transforms.splice import Splice

__all__ = ["Precision", "StyleOptions", "StyleParams", "check_share", "check_strength", "join"]

Precision = Literal["auto", "float32", "bfloat16"]


class StyleOptions(TypedDict, total=False):
    """The keyword arguments of `styleaug.StyleAugment` that adapters hand on as they are; see there."""

    generator: str | Path | AbstractGenerator | None
    strength: float | Sequence[float]
    sampler: Sampler
    weights: Sequence[float] | Tensor | None
    components: int
    keep_luminance: bool
    splice: Splice | None
    parts: int
    keep: bool
    precision: Precision
    compiled: bool


class StyleParams(TypedDict):
    """All that is random about one call. The same parameters on the same images replay it."""

    rows: Int[Tensor, " K"]
    """Which rows of the batch are stylised; the others are not touched.

    A row that is spliced stands here once for each of its parts, in succession.
    """

    strength: Float[Tensor, " K"]
    codes: Float[Tensor, "K S"] | None
    """The style of each row; None where it is read from another row of the batch."""

    sources: Int[Tensor, "K M"]
    """Rows of the bank (or of the batch) that the style was made of; M = 0 if of none."""

    shares: Float[Tensor, "K M"]
    """How much of each source is in it."""

    fields: Float[Tensor, "K G G"] | None
    """Where in the image each part is: logits on a small grid. None if no row is spliced, or by masks."""


def join(rows: Sequence[StyleParams]) -> StyleParams:
    """Make the parameters of a batch of those that were drawn for each of its rows by itself.

    Args:
        rows: at least one, each drawn for one image, by one `Stylizer` that does not take styles
            from the batch.
    """
    first = rows[0]
    codes = [row["codes"] for row in rows if row["codes"] is not None]
    fields = [row["fields"] for row in rows if row["fields"] is not None]
    assert first["codes"] is not None, "rows drawn by themselves have no other rows to take styles from"
    return StyleParams(
        rows=torch.cat([row["rows"] + index for index, row in enumerate(rows)]),
        strength=torch.cat([row["strength"] for row in rows]),
        codes=torch.cat(codes),
        sources=torch.cat([row["sources"] for row in rows]),
        shares=torch.cat([row["shares"] for row in rows]),
        fields=torch.cat(fields) if fields else None,
    )


def check_share(name: str, value: float) -> float:
    """Check a number in [0, 1]."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ConfigError(f"{name} must be a number in [0, 1], got {value!r}.")
    return float(value)


def check_strength(strength: float | Sequence[float]) -> tuple[float, float]:
    """Check a number or `(low, high)` in [0, 1]."""
    ends: Any = (strength, strength) if isinstance(strength, (int, float)) else strength
    if not isinstance(ends, Sequence) or isinstance(ends, str) or len(ends) != 2:
        raise ConfigError(f"strength must be a number or (low, high), got {strength!r}.")
    low, high = check_share("strength", ends[0]), check_share("strength", ends[1])
    if low > high:
        raise ConfigError(f"strength must be (low, high) with low <= high, got {strength!r}.")
    return low, high
