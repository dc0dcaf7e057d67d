"""Means over seeds, paired differences from a baseline, and their verdicts."""

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
"""A standard error below this is a rounding error."""
MOST_EXACT = 16
"""Largest number of seeds for which all combinations of signs are counted."""


@dataclass(frozen=True)
class Spread:
    """Mean, standard deviation and t interval of independent values."""

    count: int
    mean: float
    deviation: float | None
    """Standard deviation of the sample (n - 1); None for one value."""
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Difference(Spread):
    """Difference of an arm from the baseline with the same seeds; above 0 the arm is better."""

    p: float | None
    """Two-sided p value of the paired t test."""
    p_exact: float | None
    """Two-sided p value of the sign-flip test; with n seeds it is at least 2 / 2**n."""
    wins: int
    """Number of seeds in which the arm is better."""
    verdict: _Verdict

    def to_dict(self) -> dict[str, Any]:
        """Return the values as JSON has them."""
        return asdict(self)


def spread(values: Sequence[float], *, confidence: float = 0.95) -> Spread:
    """Compute mean, deviation and interval of values; a single value has no interval.

    Args:
        values: at least one finite value.
        confidence: confidence of the interval, in (0, 1).

    Raises:
        ConfigError: there are no values, or some are not finite.
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
    """Compare an arm with the baseline over the seeds that both have; None if there are none.

    Args:
        arm: score by seed.
        baseline: score by seed.
        confidence: confidence of the interval, in (0, 1).
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
        # Equal by chance, which is frequent in small test sets: the noise is unknown.
        p = exact if exact is not None else 2.0 ** (1 - of.count)
        verdict = verdict if p < 1 - confidence else "within noise"
    return Difference(of.count, of.mean, of.deviation, of.low, of.high, p, exact, wins, verdict)


def sign_flip_p(differences: Sequence[float]) -> float | None:
    """Compute the share of sign flips with a mean as far from 0; None for more than 16 values."""
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
    """Correct p values for the number of tests (Holm 1979)."""
    ordered = sorted(p_values, key=lambda name: p_values[name])
    corrected, worst = {}, 0.0
    for rank, name in enumerate(ordered):
        worst = max(worst, min(1.0, (len(ordered) - rank) * p_values[name]))
        corrected[name] = worst
    return corrected


def t_quantile(share: float, freedom: int) -> float:
    """Compute the quantile of Student's t distribution for `share`."""
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
    """Compute the share of Student's t distribution below `value`, by a finite sum."""
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
