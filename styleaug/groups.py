"""Groups of a bank's styles: a number for each style, a label for each group."""

import itertools
import re
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from styleaug.errors import BankError

__all__ = ["check_groups", "check_labels", "join_groups", "regroup"]

MAX_GROUPS = 1000
MAX_LABEL = 100
WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
NUMBERED = re.compile(r"g\d+")
"""Labels that tell nothing, and may mean another group in another bank."""


def check_labels(labels: Any) -> tuple[str, ...]:
    """Refuse labels that are no short, different texts.

    Raises:
        BankError: with the first that is none.
    """
    if not isinstance(labels, list | tuple) or len(labels) > MAX_GROUPS:
        raise BankError(f"labels must be at most {MAX_GROUPS} texts.")
    for label in labels:
        if not isinstance(label, str) or not 0 < len(label) <= MAX_LABEL or not label.isprintable():
            raise BankError(f"labels must have 1 to {MAX_LABEL} printable characters, got {label!r:.120}.")
    if len(set(labels)) < len(labels):
        raise BankError("two groups have one label.")
    return tuple(labels)


def check_groups(groups: Tensor, styles: int, labels: int) -> Int[Tensor, " N"]:
    """Refuse groups that do not fit the styles and labels, or are empty."""
    if groups.shape != (styles,) or groups.dtype not in WHOLE:
        raise BankError(
            f"groups must be ({styles},) whole numbers, got {tuple(groups.shape)} {groups.dtype}."
        )
    groups = groups.detach().cpu().to(torch.int64, copy=True)
    if groups.unique().tolist() != list(range(labels)):
        raise BankError(f"groups must be places in {labels} labels, each taken.")
    return groups


def regroup(groups: Int[Tensor, " N"], labels: Sequence[str]) -> tuple[Tensor, tuple[str, ...]]:
    """Leave out labels that no style has."""
    used, places = groups.unique(return_inverse=True)
    return places, tuple(labels[int(place)] for place in used)


def join_groups(
    sizes: Sequence[int], groups: Sequence[Tensor | None], labels: Sequence[Sequence[str]]
) -> tuple[Tensor | None, tuple[str, ...]]:
    """Put the groups of several banks side by side; see `StyleBank.merge`.

    Args:
        sizes: styles of each bank.
        groups: of each bank, None if it has none.
        labels: of each bank.
    """
    if all(group is None for group in groups):
        return None, ()
    numbers = (f"g{number}" for number in itertools.count(1))
    places: dict[str, int] = {}
    joined = []
    for size, group, own in zip(sizes, groups, labels, strict=True):
        names = [next(numbers) if NUMBERED.fullmatch(name) else name for name in own or ["g1"]]
        place = torch.tensor([places.setdefault(name, len(places)) for name in names])
        joined.append(place[torch.zeros(size, dtype=torch.long) if group is None else group])
    return torch.cat(joined), tuple(places)
