"""What is random about a call, as a value; and the options that every adapter takes."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from styleaug.checks import check_count, check_share, number
from styleaug.errors import ConfigError
from styleaug.generators.base import AbstractGenerator
from styleaug.images import ValueRange
from styleaug.samplers import Sampler
from styleaug.transforms.guard import Protect
from styleaug.transforms.splice import Splice

__all__ = [
    "STRENGTH",
    "Channels",
    "P",
    "Precision",
    "StyleOptions",
    "StyleParams",
    "check_count",
    "check_range_option",
    "check_share",
    "check_strength",
    "check_weights",
    "first_rows",
    "join",
]

Precision = Literal["auto", "float32", "bfloat16"]
Channels = Literal["auto", "shared", "independent"]

P = 0.8
STRENGTH = 1.0
"""The usual chance and strength: what helped most, `benchmarks/results/evidence_*.md`."""


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
    value_range: ValueRange
    channels: Channels
    preserve: float | None
    edges: str | None
    protect: Protect | None
    least_side: int | None
    precision: Precision
    compiled: bool


class StyleParams(TypedDict):
    """All that is random about one call. The same parameters on the same images replay it."""

    rows: Int[Tensor, " K"]
    """Which rows of the batch are stylised; the others are not touched.

    With `channels="independent"` each channel is a row: those of the first image, then of the next.
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


def join(rows: Sequence[StyleParams], *, each: int = 1) -> StyleParams:
    """Make the parameters of a batch of those that were drawn for each of its images by itself.

    Args:
        rows: at least one, each drawn for one image, by one `StyleAugment` that does not take styles
            from the batch.
        each: how many rows an image has: its channels, where they are independent.
    """
    first = rows[0]
    codes = [row["codes"] for row in rows if row["codes"] is not None]
    fields = [row["fields"] for row in rows if row["fields"] is not None]
    assert first["codes"] is not None, "rows drawn by themselves have no other rows to take styles from"
    return StyleParams(
        rows=torch.cat([row["rows"] + index * each for index, row in enumerate(rows)]),
        strength=torch.cat([row["strength"] for row in rows]),
        codes=torch.cat(codes),
        sources=torch.cat([row["sources"] for row in rows]),
        shares=torch.cat([row["shares"] for row in rows]),
        fields=torch.cat(fields) if fields else None,
    )


def first_rows(params: StyleParams, count: int) -> StyleParams:
    """Give the parameters of the first `count` rows, of those drawn for more."""
    kept = params["rows"] < count
    return StyleParams(
        rows=params["rows"][kept],
        strength=params["strength"][kept],
        codes=None if params["codes"] is None else params["codes"][kept],
        sources=params["sources"][kept],
        shares=params["shares"][kept],
        fields=None if params["fields"] is None else params["fields"][kept],
    )


def two_of(value: Any) -> tuple[Any, Any] | None:
    """Return both of two values: of a list, a tuple, an array or a tensor."""
    if (
        isinstance(value, str | bytes | dict)
        or not hasattr(value, "__len__")
        or not hasattr(value, "__getitem__")
    ):
        return None
    return (value[0], value[1]) if getattr(value, "ndim", 1) == 1 and len(value) == 2 else None


def check_strength(strength: float | Sequence[float]) -> tuple[float, float]:
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


def check_weights(weights: Any, sampler: Sampler) -> Float64[Tensor, " N"] | None:
    """Check what the weighted sampler goes by, up to how many there are.

    Raises:
        ConfigError: no row of real numbers, or weights for another sampler.
    """
    if (weights is None) != (sampler != "weighted"):
        raise ConfigError(
            'sampler="weighted" needs weights, one for each style of the bank.'
            if weights is None
            else f'weights go with sampler="weighted", got sampler={sampler!r}.'
        )
    if weights is None:
        return None
    try:
        found = torch.as_tensor(weights).detach().cpu()
    except (TypeError, ValueError, RuntimeError):
        found = torch.empty(0, dtype=torch.bool)
    if found.ndim != 1 or found.dtype == torch.bool or found.is_complex():
        raise ConfigError(f"weights must be a number for each style of the bank, got {weights!r:.200}.")
    return found.to(torch.float64)
