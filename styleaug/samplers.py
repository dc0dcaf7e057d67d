"""Samplers draw codes `(B, S)` from a bank."""

import math
from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from styleaug.errors import ConfigError

__all__ = [
    "SAMPLERS",
    "Draw",
    "Sampler",
    "draw_others",
    "gaussian",
    "lerp",
    "make_sampler",
    "mix",
    "prior",
    "sample",
    "slerp",
    "spherical",
    "uniform",
    "weighted",
]

Sampler = Literal["uniform", "weighted", "mix", "gaussian", "slerp"]
SAMPLERS = get_args(Sampler)


class Draw(NamedTuple):
    """Drawn codes, and the styles that they were made of."""

    codes: Float[Tensor, "B S"]
    sources: Int[Tensor, "B K"]
    """Rows of the bank, `(B, K)`; K = 0 if codes do not come from single styles."""

    shares: Float[Tensor, "B K"]
    """Share of each source in the code, `(B, K)`; rows sum to 1 if K > 0."""


def sample(
    kind: Sampler,
    codes: Float[Tensor, "N S"],
    count: int,
    rng: torch.Generator | None = None,
    *,
    weights: Tensor | None = None,
    components: int = 2,
) -> Draw:
    """Draw `count` codes with the sampler named `kind`.

    Args:
        kind: `"uniform"`, `"weighted"`, `"mix"`, `"gaussian"` or `"slerp"`.
        codes: codes of the bank, `(N, S)`.
        count: number of codes to draw, B.
        rng: random generator; None uses torch's global one.
        weights: weight of each style of the bank, `(N,)`, for `"weighted"`.
        components: number of styles that `"mix"` joins.
    """
    return make_sampler(kind, weights=weights, components=components)(codes, count, rng)


def make_sampler(
    kind: Sampler, *, weights: Tensor | None = None, components: int = 2
) -> Callable[[Tensor, int, torch.Generator | None], "Draw"]:
    """Return the sampler named `kind`, a function of `(codes, count, rng)`.

    Args:
        kind: `"uniform"`, `"weighted"`, `"mix"`, `"gaussian"` or `"slerp"`.
        weights: weight of each style of the bank, `(N,)`, for `"weighted"`.
        components: number of styles that `"mix"` joins.

    Raises:
        ConfigError: the name is unknown, or `"weighted"` has no weights.
    """
    match kind:
        case "uniform":
            return uniform
        case "weighted":
            if weights is None:
                raise ConfigError("the weighted sampler needs weights, one per style of the bank.")
            return partial(weighted, weights=weights)
        case "mix":
            return partial(mix, components=components)
        case "gaussian":
            return gaussian
        case "slerp":
            return spherical
    raise ConfigError(f"unknown sampler {kind!r}; choose from {', '.join(SAMPLERS)}.")


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
    weights = torch.as_tensor(weights, dtype=torch.float64)
    if weights.shape != (len(codes),):
        raise ConfigError(f"weights must be one per style, ({len(codes)},), got {tuple(weights.shape)}.")
    if not (bool((weights >= 0).all()) and 0 < float(weights.sum()) < math.inf):
        raise ConfigError("weights must be finite, none negative, and not all zero.")
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
