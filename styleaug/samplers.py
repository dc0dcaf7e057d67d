"""Samplers draw codes `(B, S)` from a bank."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from styleaug.checks import check_count, made_of
from styleaug.errors import ConfigError

__all__ = [
    "SAMPLERS",
    "Draw",
    "Mix",
    "Sampler",
    "SamplerName",
    "Weighted",
    "check_weights",
    "draw_others",
    "gaussian",
    "lerp",
    "make_sampler",
    "mix",
    "prior",
    "read_sampler",
    "sample",
    "slerp",
    "spherical",
    "uniform",
    "weighted",
]

SamplerName = Literal["uniform", "mix", "gaussian", "slerp"]
SAMPLERS = get_args(SamplerName)


@dataclass(frozen=True)
class Mix:
    """Join several styles, with shares drawn anew each time; `"mix"` in short for two.

    Example:
        >>> StyleAugment("art", sampler=Mix(3))  # doctest: +SKIP
    """

    components: int = 2
    """How many styles are joined, from 1."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "components", check_count("components", self.components))

    def __repr__(self) -> str:
        return f"Mix({self.components})"


@dataclass(frozen=True)
class Weighted:
    """Draw styles in proportion to weights.

    Example:
        >>> StyleAugment(bank, sampler=Weighted(bank.balanced_weights()))  # doctest: +SKIP
    """

    weights: Sequence[float] | Tensor
    """A number for each style of the bank: finite, none negative, and not all zero. Kept as a tuple."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", tuple(check_weights(self.weights).tolist()))

    def __repr__(self) -> str:
        shown = ", ".join(map(repr, self.weights[:SHOWN]))
        more = f", ... {len(self.weights)} in all" if len(self.weights) > SHOWN else ""
        return f"Weighted([{shown}{more}])"


Sampler = SamplerName | Mix | Weighted
SHOWN = 8
"""Weights that a repr shows."""


class Draw(NamedTuple):
    """Drawn codes, and the styles that they were made of."""

    codes: Float[Tensor, "B S"]
    sources: Int[Tensor, "B K"]
    """Rows of the bank, `(B, K)`; K = 0 if codes do not come from single styles."""

    shares: Float[Tensor, "B K"]
    """Share of each source in the code, `(B, K)`; rows sum to 1 if K > 0."""


def sample(
    sampler: Sampler, codes: Float[Tensor, "N S"], count: int, rng: torch.Generator | None = None
) -> Draw:
    """Draw `count` codes.

    Args:
        sampler: see `make_sampler`.
        codes: codes of the bank, `(N, S)`.
        count: number of codes to draw, B.
        rng: random generator; None uses torch's global one.
    """
    return make_sampler(sampler)(codes, count, rng)


def read_sampler(given: Any) -> Sampler:
    """Read a sampler as a user gives it: a name, a value, or a dict of the value's field.

    Raises:
        ConfigError: anything else.
    """
    if isinstance(given, Mapping):
        return made_of(Weighted if "weights" in given else Mix, given, "sampler")
    if isinstance(given, Mix | Weighted) or (isinstance(given, str) and given in SAMPLERS):
        return given  # pyright: ignore[reportReturnType]
    if isinstance(given, str) and given == "weighted":
        raise ConfigError(
            "the weighted sampler needs weights, one for each style of the bank; "
            "write sampler=Weighted(weights)."
        )
    raise ConfigError(
        f"unknown sampler {given!r}; choose from {', '.join(SAMPLERS)}, Mix(components), Weighted(weights)."
    )


def make_sampler(sampler: Sampler) -> Callable[[Tensor, int, torch.Generator | None], "Draw"]:
    """Return the function `(codes, count, rng)` that draws as a sampler does.

    Args:
        sampler: `"uniform"`, `"mix"`, `"gaussian"`, `"slerp"`, `Mix(components)` or `Weighted(weights)`.

    Raises:
        ConfigError: another one.
    """
    match read_sampler(sampler):
        case "uniform":
            return uniform
        case "gaussian":
            return gaussian
        case "slerp":
            return spherical
        case Weighted(weights):
            return partial(weighted, weights=torch.as_tensor(weights, dtype=torch.float64))
        case Mix(components):
            return partial(mix, components=components)
    return mix


def check_weights(weights: Any) -> Float64[Tensor, " N"]:
    """Check what the weighted sampler goes by, up to how many there are.

    Raises:
        ConfigError: no row of real numbers, or weights that are negative, not finite, or all zero.
    """
    try:
        found = torch.as_tensor(weights, device="cpu").detach()
    except (TypeError, ValueError, RuntimeError):
        found = torch.empty(0, dtype=torch.bool)
    if found.ndim != 1 or found.dtype == torch.bool or found.is_complex():
        raise ConfigError(f"weights must be a list of numbers, one for each choice, got {weights!r:.200}.")
    found = found.to(torch.float64)
    if not (bool((found >= 0).all()) and 0 < float(found.sum()) < math.inf):
        raise ConfigError("weights must be finite, none negative, and not all zero.")
    return found


def uniform(codes: Float[Tensor, "N S"], count: int, rng: torch.Generator | None = None) -> Draw:
    """Pick styles with equal chance, with repetition."""
    return picked(codes, torch.randint(len(codes), (count,), generator=rng))


def weighted(
    codes: Float[Tensor, "N S"],
    count: int,
    rng: torch.Generator | None = None,
    *,
    weights: Tensor,
) -> Draw:
    """Pick styles in proportion to `weights`, with repetition.

    Raises:
        ConfigError: the number of weights is wrong, or they are negative, not finite, or all zero.
    """
    weights = check_weights(weights)
    if weights.shape != (len(codes),):
        raise ConfigError(f"weights must be one per style, ({len(codes)},), got {tuple(weights.shape)}.")
    # A cumulative sum, because torch.multinomial is limited to 2^24 styles.
    edges = torch.cumsum(weights, 0)
    points = torch.rand(count, generator=rng, dtype=torch.float64) * edges[-1]
    return picked(codes, torch.searchsorted(edges, points, right=True).clamp_max(len(codes) - 1))


def mix(
    codes: Float[Tensor, "N S"],
    count: int,
    rng: torch.Generator | None = None,
    *,
    components: int = 2,
) -> Draw:
    """Join `components` styles with shares drawn uniformly from the simplex (Dirichlet of ones)."""
    if components < 1:
        raise ConfigError(f"mix needs at least 1 component, got {components}.")
    sources = torch.randint(len(codes), (count, components), generator=rng)
    # Exponential variables divided by their sum are a flat Dirichlet; 1 - rand is never 0.
    shares = (-torch.log(1 - torch.rand(count, components, generator=rng))).clamp_min(1e-12)
    shares = shares / shares.sum(dim=1, keepdim=True)
    return Draw(torch.einsum("bk,bks->bs", shares, codes[sources]), sources, shares)


def gaussian(codes: Float[Tensor, "N S"], count: int, rng: torch.Generator | None = None) -> Draw:
    """Draw from the normal distribution with the bank's mean and covariance.

    Entries are clipped to their range in the bank, so that deviations stay positive and no style is
    more extreme than the bank's styles.
    """
    mean = codes.mean(dim=0)
    noise = torch.randn(count, len(codes), generator=rng)
    # A random sum of the centred rows has exactly their covariance, which is never computed.
    drawn = mean + noise @ (codes - mean) / math.sqrt(max(len(codes) - 1, 1))
    drawn = drawn.clamp(codes.amin(dim=0), codes.amax(dim=0))
    return Draw(drawn, torch.empty(count, 0, dtype=torch.long), torch.empty(count, 0))


def spherical(codes: Float[Tensor, "N S"], count: int, rng: torch.Generator | None = None) -> Draw:
    """Draw points on great circles between two random styles, with uniform shares; see `slerp`.

    It is for normally distributed codes, such as the latents of a VAE-GAN. Nearly all of them have the same
    norm. Points on a great circle keep that norm; points on a straight line have a smaller one.
    """
    sources = torch.randint(len(codes), (count, 2), generator=rng)
    share = torch.rand(count, generator=rng)
    drawn = slerp(codes[sources[:, 0]], codes[sources[:, 1]], share)
    return Draw(drawn, sources, torch.stack([1 - share, share], dim=1))


def prior(length: int, count: int, rng: torch.Generator | None = None) -> Draw:
    """Draw codes of `length` floats from the standard normal distribution, without a bank."""
    none = torch.empty(count, 0)
    return Draw(torch.randn(count, length, generator=rng), none.long(), none)


def lerp(
    one: Float[Tensor, "B S"], other: Float[Tensor, "B S"], share: Float[Tensor, " B"]
) -> Float[Tensor, "B S"]:
    """Return the point between `one` (share 0) and `other` (share 1) on a straight line."""
    return torch.lerp(one, other, share[:, None])


def slerp(
    one: Float[Tensor, "B S"], other: Float[Tensor, "B S"], share: Float[Tensor, " B"]
) -> Float[Tensor, "B S"]:
    """Return the point between `one` (share 0) and `other` (share 1) on a great circle (Shoemake 1985).

    The direction turns at constant speed and the norm changes linearly. For codes that are zero, nearly
    parallel or nearly opposite, there is no single great circle, and the result is that of `lerp`.

    Args:
        one: `(B, S)`, returned exactly at share 0.
        other: `(B, S)`, returned exactly at share 1.
        share: `(B,)` in [0, 1].
    """
    straight, share = lerp(one, other, share), share[:, None]
    norms = one.norm(dim=1, keepdim=True), other.norm(dim=1, keepdim=True)
    start, end = (x / norm.clamp_min(1e-12) for x, norm in zip((one, other), norms, strict=True))
    # Kahan's formula: unlike the arc cosine it is exact for small angles.
    angle = 2 * torch.atan2((start - end).norm(dim=1, keepdim=True), (start + end).norm(dim=1, keepdim=True))
    sine = angle.sin()
    turned = (((1 - share) * angle).sin() * start + (share * angle).sin() * end) / sine.clamp_min(1e-12)
    curved = torch.lerp(*norms, share) * turned
    usable = (sine > 1e-3) & (norms[0] > 1e-12) & (norms[1] > 1e-12) & (share > 0) & (share < 1)
    return torch.where(usable, curved, straight)


def draw_others(rows: Int[Tensor, " K"], size: int, rng: torch.Generator | None = None) -> Int[Tensor, " K"]:
    """Pick for each of `rows` a different row of a batch of `size`; in a batch of one, the row itself."""
    if size < 2:
        return torch.zeros_like(rows)
    return (rows + torch.randint(1, size, rows.shape, generator=rng)) % size


def picked(codes: Float[Tensor, "N S"], sources: Int[Tensor, " B"]) -> Draw:
    """Return a draw of unmixed styles."""
    return Draw(codes[sources], sources[:, None], torch.ones(len(sources), 1))
