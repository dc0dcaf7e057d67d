"""What is random about a call, as a value."""

from collections.abc import Sequence
from typing import TypedDict

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["StyleParams", "first_rows", "join"]


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
    """Return the parameters of the first `count` rows, of those drawn for more."""
    kept = params["rows"] < count
    return StyleParams(
        rows=params["rows"][kept],
        strength=params["strength"][kept],
        codes=None if params["codes"] is None else params["codes"][kept],
        sources=params["sources"][kept],
        shares=params["shares"][kept],
        fields=None if params["fields"] is None else params["fields"][kept],
    )
