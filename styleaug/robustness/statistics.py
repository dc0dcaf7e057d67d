"""Means over seeds, paired differences from a baseline, and what may be said of them."""

import math
import statistics as std
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any, Literal

from styleaug.errors import ConfigError

__all__ = [
    "Difference",
    "Spread",
    "difference",
    "holm",
    "sign_flip_p",
    "spread",
    "t_cdf",
    "t_quantile",
]

_Verdict = Literal["better", "worse", "within noise", "one seed only"]
_TINY = 1e-9
"""A standard error below this is rounding."""
MOST_EXACT = 16
"""Seeds up to which every combination of signs is counted."""


@dataclass(frozen=True)
class Spread:
    """Mean, standard deviation and t interval of values that are independent."""

    count: int
    mean: float
    deviation: float | None
    """Of the sample, n - 1; None of one value."""
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Difference(Spread):
    """How far an arm lies above the baseline with the same seeds."""

    p: float | None
    """Of the paired t test, two-sided."""
    p_exact: float | None
    """Of the sign-flip test, two-sided; with n seeds it cannot be below 2 / 2**n."""
    wins: int
    """Seeds in which the arm is the better one."""
    verdict: _Verdict

    def to_dict(self) -> dict[str, Any]:
        """Give the values as JSON has them."""
        return asdict(self)


def spread(values: Sequence[float], *, confidence: float = 0.95) -> Spread:
    """Summarise values; a single one has no interval.

    Args:
        values: at least one, finite.
        confidence: of the interval.

    Raises:
        ConfigError: no values, or some that are not finite.
    """
    if not values or not all(math.isfinite(value) for value in values):
        raise ConfigError(f"expected finite values, got {list(values)[:5]}.")
    mean, count = std.fmean(values), len(values)
    if count < 2:
        return Spread(count, mean, None, None, None)
    deviation = std.stdev(values)
    half = t_quantile(0.5 + confidence / 2, count - 1) * deviation / math.sqrt(count)
    return Spread(count, mean, deviation, mean - half, mean + half)


def difference(
    arm: Mapping[int, float], baseline: Mapping[int, float], *, confidence: float = 0.95
) -> Difference | None:
    """Compare an arm with the baseline in the seeds that both have; None if there is none.

    Args:
        arm: score by seed.
        baseline: score by seed.
        confidence: of the interval.
    """
    pairs = [arm[seed] - baseline[seed] for seed in sorted(set(arm) & set(baseline))]
    if not pairs:
        return None
    of = spread(pairs, confidence=confidence)
    wins = sum(gain > 0 for gain in pairs)
    if of.deviation is None or of.low is None or of.high is None:
        return Difference(of.count, of.mean, None, None, None, None, None, wins, "one seed only")
    verdict: _Verdict = "better" if of.low > 0 else "worse" if of.high < 0 else "within noise"
    exact, error = sign_flip_p(pairs), of.deviation / math.sqrt(of.count)
    if error > _TINY:
        p = 2 * t_cdf(-abs(of.mean) / error, of.count - 1)
    else:
        # Equal by chance, as scores of small test sets often are: nothing is known of the noise.
        p = exact if exact is not None else 2.0 ** (1 - of.count)
        verdict = verdict if p < 1 - confidence else "within noise"
    return Difference(of.count, of.mean, of.deviation, of.low, of.high, p, exact, wins, verdict)


def sign_flip_p(differences: Sequence[float]) -> float | None:
    """Give the share of all sign flips whose mean lies as far from 0; None of more than 16 values."""
    if len(differences) > MOST_EXACT:
        return None
    seen = abs(sum(differences))
    flips = list(product((-1, 1), repeat=len(differences)))
    far = sum(
        abs(sum(sign * value for sign, value in zip(flip, differences, strict=True))) >= seen - 1e-12
        for flip in flips
    )
    return far / len(flips)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Correct p values for their number (Holm 1979)."""
    ordered = sorted(p_values, key=lambda name: p_values[name])
    corrected, worst = {}, 0.0
    for rank, name in enumerate(ordered):
        worst = max(worst, min(1.0, (len(ordered) - rank) * p_values[name]))
        corrected[name] = worst
    return corrected


def t_quantile(share: float, freedom: int) -> float:
    """Give the value below which `share` of Student's t distribution lies."""
    if not (0 < share < 1 and freedom >= 1):
        raise ConfigError(f"expected a share in (0, 1) and freedom >= 1, got {share} and {freedom}.")
    if share < 0.5:
        return -t_quantile(1 - share, freedom)
    low, high = 0.0, 1.0
    while t_cdf(high, freedom) < share:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if t_cdf(middle, freedom) < share else (low, middle)
    return (low + high) / 2


def t_cdf(value: float, freedom: int) -> float:
    """Give the share of Student's t distribution below `value`, by its finite sum for whole freedom."""
    if math.isinf(value):
        return 1.0 if value > 0 else 0.0
    theta = math.atan2(value, math.sqrt(freedom))
    sine, cosine = math.sin(theta), math.cos(theta)
    # Abramowitz & Stegun 26.7.3 and 26.7.4.
    if freedom % 2:
        term, total = cosine, cosine if freedom > 1 else 0.0
        for k in range(3, freedom - 1, 2):
            term *= (k - 1) / k * cosine * cosine
            total += term
        inside = 2 / math.pi * (theta + sine * total)
    else:
        term = total = 1.0
        for k in range(2, freedom - 1, 2):
            term *= (k - 1) / k * cosine * cosine
            total += term
        inside = sine * total
    return 0.5 + inside / 2
