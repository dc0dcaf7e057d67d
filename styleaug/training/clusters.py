"""Which codes are alike: groups of neighbours, and the few that cover the others."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["cover", "microaggregate"]

BLOCK = 4096
"""Codes among which neighbours are looked for; the time grows with its square."""


def microaggregate(codes: Float[Tensor, "N S"], least: int) -> list[Int[Tensor, " K"]]:
    """Part codes into groups of neighbours, `least` to 2 `least` - 1 each.

    MDAV (Domingo-Ferrer & Mateo-Sanz 2002, in the form of Domingo-Ferrer & Torra 2005), on entries scaled to
    unit deviation: the code farthest from the mean and the one farthest from that each take their nearest
    neighbours, until few are left. More than `BLOCK` codes are first halved along the widest entry.

    Args:
        codes: `(N, S)`, at least `least` of them.
        least: size of a group, from 1.

    Returns:
        The rows of each group; each row is in exactly one.
    """
    every = torch.arange(len(codes))
    if least == 1:
        return list(every[:, None])
    scaled = (codes - codes.mean(dim=0)) / codes.std(dim=0, correction=0).clamp_min(1e-6)
    groups = []
    for block in halve(scaled, every, max(BLOCK, 4 * least)):
        left = block
        while len(left) >= 2 * least:
            centre = scaled[left].mean(dim=0)
            one = take_neighbours(scaled, left, farthest(scaled, left, centre), least)
            groups.append(one[0])
            left = one[1]
            if len(left) >= 2 * least:
                far = farthest(scaled, left, scaled[one[0][0]])
                group, left = take_neighbours(scaled, left, far, least)
                groups.append(group)
        groups.append(left)
    return groups


def halve(codes: Float[Tensor, "N S"], rows: Int[Tensor, " K"], most: int) -> list[Int[Tensor, " L"]]:
    """Split rows at the median of their widest entry, until no part has more than `most`."""
    if len(rows) <= most:
        return [rows]
    widest = codes[rows].var(dim=0).argmax()
    order = rows[codes[rows, widest].argsort(stable=True)]
    middle = len(order) // 2
    return halve(codes, order[:middle], most) + halve(codes, order[middle:], most)


def farthest(codes: Float[Tensor, "N S"], rows: Int[Tensor, " K"], point: Float[Tensor, " S"]) -> Tensor:
    """Give the code of `rows` that is farthest from `point`."""
    return codes[rows[(codes[rows] - point).square().sum(dim=1).argmax()]]


def take_neighbours(
    codes: Float[Tensor, "N S"], rows: Int[Tensor, " K"], point: Float[Tensor, " S"], count: int
) -> tuple[Int[Tensor, " G"], Int[Tensor, " L"]]:
    """Part the `count` rows nearest to `point`, nearest first, from the others."""
    order = (codes[rows] - point).square().sum(dim=1).argsort(stable=True)
    return rows[order[:count]], rows[order[count:].sort().values]


def cover(codes: Float[Tensor, "N S"], count: int, rng: torch.Generator) -> Int[Tensor, " K"]:
    """Choose `count` rows from which the others are not far: the rows nearest to k-means' centres.

    Distances are between codes whose entries are scaled to unit deviation; 20 rounds (Lloyd 1982) from
    a start of rows far from each other.

    Returns:
        `(count,)` different indices in rising order.
    """
    scaled = (codes - codes.mean(dim=0)) / codes.std(dim=0).clamp_min(1e-6)
    start = torch.randint(len(codes), (1,), generator=rng)
    centres = scaled[farthest_first(scaled, start, count)]
    for _ in range(20):
        owner = torch.cdist(scaled, centres).argmin(dim=1)
        size = torch.bincount(owner, minlength=count)[:, None]
        sums = torch.zeros_like(centres).index_add_(0, owner, scaled)
        centres = torch.where(size > 0, sums / size.clamp_min(1), centres)
    chosen = torch.cdist(centres, scaled).argmin(dim=1).unique()
    chosen = farthest_first(scaled, chosen, count)  # two centres may have had the same neighbour
    return chosen.sort().values


def farthest_first(codes: Float[Tensor, "N S"], chosen: Int[Tensor, " J"], count: int) -> Int[Tensor, " K"]:
    """Add to `chosen` the row farthest from all of them, until there are `count` (Gonzalez 1985)."""
    distance = torch.cdist(codes, codes[chosen]).amin(dim=1)
    rows = chosen.tolist()
    while len(rows) < count:
        distance[rows] = -1
        rows.append(int(distance.argmax()))
        distance = torch.minimum(distance, torch.cdist(codes, codes[rows[-1:]])[:, 0])
    return torch.tensor(rows)
