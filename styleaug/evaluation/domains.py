"""Distances of two sets of images: a cross-validated classifier, and distances of features."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from styleaug.errors import ConfigError

__all__ = [
    "Gap",
    "Parted",
    "fit_logistic",
    "gap_between",
    "gap_closed",
    "standardise",
    "tell_apart",
    "wilson",
]

_STEPS = 50
"""Largest number of steps of Newton's method; it needs about eight."""
RESAMPLES = 200
"""Number of random halves for estimating an interval."""
NORMAL = 1.959963984540054
"""Half width of the 95 % interval of a normal distribution, in standard deviations."""
FEATURES_EACH = 8
"""Number of features for each unit of the ridge penalty; it prevents overfitting with few images."""
LEAST_SPREAD = 0.1
"""Least deviation for scaling a feature, as a share of the mean deviation of all features."""


@dataclass(frozen=True)
class Parted:
    """How well a classifier separates unseen images of two sets."""

    accuracy: float
    """Mean of the two sets' shares of right answers; 0.5 is chance."""
    low: float
    high: float
    """Upper end of the accuracy's 95 % interval (Wilson); `low` is the lower end."""
    apart: float
    """Distance of the sets along the separating direction, in deviations within a set (d').

    Unlike the accuracy, it keeps growing when the sets are fully separated.
    """

    @property
    def by_chance(self) -> bool:
        """Return whether guessing explains the accuracy."""
        return self.low <= 0.5

    def to_dict(self) -> dict[str, float]:
        """Return rounded figures."""
        return {name: round(value, 3) for name, value in asdict(self).items()}


@dataclass(frozen=True)
class Gap:
    """Distance of two sets of features and its 95 % interval; 0 means no distance.

    It is the square root of the energy distance of standardised features.
    """

    value: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float]:
        """Return rounded figures."""
        return {name: round(value, 3) for name, value in asdict(self).items()}


def fit_logistic(
    rows: Float[Tensor, "N S"], labels: Int[Tensor, " N"], *, penalty: float = 1.0
) -> Float[Tensor, " S1"]:
    """Fit logistic regression by Newton's method; both classes have equal weight.

    Args:
        rows: features, approximately standardised.
        labels: 0 or 1, both present.
        penalty: factor of half the sum of squared weights; the offset is not penalised.

    Returns:
        The weights, then the offset.
    """
    x = torch.cat([rows.double(), torch.ones(len(rows), 1, dtype=torch.float64, device=rows.device)], dim=1)
    y = labels.double()
    weights = torch.where(y > 0, len(y) / (2 * y.sum()), len(y) / (2 * (1 - y).sum()))
    ridge = torch.full((x.shape[1],), penalty, dtype=torch.float64, device=x.device)
    ridge[-1] = 0

    def loss(beta: Tensor) -> float:
        logits = x @ beta
        fit = (weights * torch.nn.functional.softplus(torch.where(y > 0, -logits, logits))).sum()
        return float(fit + 0.5 * (ridge * beta.square()).sum())

    beta = x.new_zeros(x.shape[1])
    now = loss(beta)
    for _ in range(_STEPS):
        chance = torch.sigmoid(x @ beta)
        slope = x.T @ (weights * (chance - y)) + ridge * beta
        # The floor keeps the offset's entry above zero if every answer is certain.
        bend = x.T @ (x * (weights * chance * (1 - chance)).clamp_min(1e-9)[:, None]) + ridge.diag()
        step = torch.linalg.solve(bend, slope)
        size = 1.0
        while loss(beta - size * step) > now and size > 1e-6:
            size /= 2
        beta = beta - size * step
        before, now = now, loss(beta)
        if before - now < 1e-10 * max(1.0, before):
            break
    return beta


def tell_apart(
    one: Float[Tensor, "N S"],
    other: Float[Tensor, "M S"],
    *,
    folds: int = 5,
    seed: int = 0,
    keys: Sequence[Hashable] | None = None,
) -> Parted:
    """Cross-validate a domain classifier: logistic regression on standardised features.

    Args:
        one: features of the first set.
        other: features of the second set.
        folds: number of parts; each is classified by a classifier fitted to the others.
        seed: seed for drawing the parts.
        keys: key of each row, those of `one` first. Rows with the same key are one image and are put in the
            same part. Otherwise an image in both sets would be recognised.

    Raises:
        ConfigError: a set has fewer images than folds, or there are fewer than two folds.
    """
    if folds < 2 or min(len(one), len(other)) < folds:
        raise ConfigError(
            "a domain classifier needs 2 folds or more, and an image of each side in each; got "
            f"{folds} folds, {len(one)} and {len(other)} images."
        )
    rows = torch.cat([one, other]).double()
    labels = torch.cat([torch.zeros(len(one)), torch.ones(len(other))]).long().to(rows.device)
    parts = assign_folds(list(range(len(rows))) if keys is None else keys, len(one), folds, seed)
    logits = rows.new_zeros(len(rows))
    for fold in range(folds):
        held = torch.tensor([part == fold for part in parts], device=rows.device)
        if not held.any() or len(labels[~held].unique()) < 2:
            continue
        logits[held] = answer(rows[~held], labels[~held], rows[held])
    hits = torch.where(labels > 0, logits, -logits)
    # A logit of 0 is a guess, and counts as half right.
    right = (hits > 0).double() + 0.5 * (hits == 0).double()
    shares = [float(right[labels == side].mean()) for side in (0, 1)]
    # The mean of two shares varies like one share of this number of images.
    count = 4 / (1 / len(one) + 1 / len(other))
    low, high = wilson(sum(shares) / 2 * count, count)
    return Parted(sum(shares) / 2, low, high, sensitivity(logits[labels == 0], logits[labels == 1]))


def answer(rows: Tensor, labels: Tensor, held: Tensor) -> Float[Tensor, " H"]:
    """Fit to some rows and return the logits of the others, divided by their spread within a set."""
    mean, scale = rows.mean(dim=0), rows.std(dim=0)
    scale = scale.clamp_min(max(LEAST_SPREAD * float(scale.mean()), 1e-9))
    rows, held = (rows - mean) / scale, (held - mean) / scale
    beta = fit_logistic(rows, labels, penalty=max(1.0, rows.shape[1] / FEATURES_EACH))
    own = rows @ beta[:-1] + beta[-1]
    spread = math.sqrt(sum(float(own[labels == side].var(correction=0)) for side in (0, 1)) / 2)
    return (held @ beta[:-1] + beta[-1]) / max(spread, 1e-9)


def assign_folds(keys: Sequence[Hashable], first: int, folds: int, seed: int) -> list[int]:
    """Assign a fold to each row: the same for rows of one key, with balanced sets in each fold."""
    rng = torch.Generator().manual_seed(seed)
    fold_of: dict[Hashable, int] = {}
    for side in (keys[:first], keys[first:]):
        new = [key for key in dict.fromkeys(side) if key not in fold_of]
        order = torch.randperm(len(new), generator=rng).tolist()
        fold_of |= {new[row]: place % folds for place, row in enumerate(order)}
    return [fold_of[key] for key in keys]


def sensitivity(one: Float[Tensor, " N"], other: Float[Tensor, " M"]) -> float:
    """Compute the distance of two samples' means in deviations within a sample, at least 0."""
    within = (one.var(correction=0) + other.var(correction=0)) / 2
    return max(0.0, float((other.mean() - one.mean()) / within.clamp_min(1e-12).sqrt()))


def wilson(hits: float, count: float) -> tuple[float, float]:
    """Compute the 95 % interval of a share (Wilson 1927); [0, 1] if there are no trials."""
    if count <= 0:
        return 0.0, 1.0
    share, extra = hits / count, NORMAL**2 / count
    middle = (share + extra / 2) / (1 + extra)
    reach = NORMAL * math.sqrt(share * (1 - share) / count + extra / (4 * count)) / (1 + extra)
    return max(0.0, middle - reach), min(1.0, middle + reach)


def standardise(
    train: Float[Tensor, "N S"], target: Float[Tensor, "M S"], *others: Float[Tensor, "K S"]
) -> list[Tensor]:
    """Standardise all sets by mean and deviation of the first two together, in double precision."""
    both = torch.cat([train, target]).double()
    mean, scale = both.mean(dim=0), both.std(dim=0)
    scale = scale.clamp_min(max(LEAST_SPREAD * float(scale.mean()), 1e-9))
    return [(rows.double() - mean) / scale for rows in (train, target, *others)]


def gap_between(one: Float[Tensor, "N S"], other: Float[Tensor, "M S"], *, seed: int = 0) -> Gap:
    """Compute the distance of two sets of standardised features, with its interval.

    Args:
        one: at least 4 rows.
        other: at least 4 rows.
        seed: seed for drawing the halves of the interval.
    """
    distance = Distance(one, other)
    found = [distance(a, b) for a, b in halves(len(one), len(other), seed)]
    return Gap(distance(), *interval(distance(), found))


def gap_closed(
    train: Float[Tensor, "N S"], styled: Float[Tensor, "N S"], target: Float[Tensor, "M S"], *, seed: int = 0
) -> Gap:
    """Compute the share of the distance to `target` that styling closes, with its interval.

    1 is the whole distance; below 0 styling increases it. It is 0 if there was no distance.

    Args:
        train: standardised features of the training images.
        styled: features of the same images after styling, in the same order.
        target: features of the target.
        seed: seed for drawing the halves of the interval.
    """
    start, end = Distance(train, target), Distance(styled, target)

    def share(*rows: Tensor) -> float:
        before = start(*rows)
        return 1 - end(*rows) / before if before > 0 else 0.0

    found = [share(a, b) for a, b in halves(len(train), len(target), seed)]
    return Gap(share(), *interval(share(), found))


class Distance:
    """Square root of the energy distance of two sets or of parts of them (Szekely & Rizzo 2013).

    The kernel distance (KID) grows with the third power of the features, so a few far rows would dominate it.
    """

    own: Tensor
    cross: Tensor
    others: Tensor

    def __init__(self, one: Float[Tensor, "N S"], other: Float[Tensor, "M S"]):
        self.own, self.cross, self.others = (
            torch.cdist(one, one),
            torch.cdist(one, other),
            torch.cdist(other, other),
        )

    def __call__(self, rows: Tensor | None = None, columns: Tensor | None = None) -> float:
        """Compute the distance of `rows` of the first set and `columns` of the second; None is all."""
        own, cross, others = self.own, self.cross, self.others
        if rows is not None and columns is not None:
            own, others = own[rows][:, rows], others[columns][:, columns]
            cross = cross[rows][:, columns]
        energy = 2 * cross.mean() - without_diagonal(own) - without_diagonal(others)
        return math.sqrt(max(0.0, float(energy)))  # for equal distributions it can be slightly below 0


def without_diagonal(square: Float[Tensor, "N N"]) -> Tensor:
    """Compute the mean distance between different rows."""
    return square.sum() / (len(square) * (len(square) - 1))


def halves(count: int, other: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Draw random halves of two sets without repetition, which would make a set look narrower."""
    rng = torch.Generator().manual_seed(seed)
    return [
        tuple(torch.randperm(n, generator=rng)[: max(2, n // 2)] for n in (count, other))  # pyright: ignore
        for _ in range(RESAMPLES)
    ]


def interval(value: float, found: Sequence[float]) -> tuple[float, float]:
    """Compute the 95 % interval by the delete-half jackknife (Shao & Wu 1989).

    Halves vary around the whole as much as the whole varies around the truth.
    """
    reach = NORMAL * math.sqrt(sum((other - value) ** 2 for other in found) / len(found))
    return value - reach, value + reach
