"""Styles with differential privacy: mean and covariance of codes, with Gaussian noise.

What that promises is said in `privacy`.
"""

import math
import random
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from styleaug.errors import ConfigError
from styleaug.generators.base import AbstractGenerator
from styleaug.weights import bank_names, cards, load_bank

__all__ = ["Frame", "delta_of", "frame_of", "loss_of", "origins_needed", "private_styles", "private_summary"]

MEAN_SHARE = 0.25
"""Of the budget (of the squared signal to noise) for the mean; the covariance is noisier."""
BOX_ENTRIES = 16
"""A covariance of longer codes would be all noise."""
PUBLIC_AXES = 8
"""Axes of a public bank along which longer codes may vary."""
BOX_SPREAD = 0.5
"""How far a code may lie from the mean, in half ranges of each entry."""


def delta_of(epsilon: float, loss: float) -> float:
    """Compute the delta of Gaussian mechanisms at an epsilon (Balle & Wang 2018, theorem 8).

    Args:
        epsilon: from 0.
        loss: L2 sensitivity over the noise's deviation; for several mechanisms the root of the sum of
            their squares (Dong, Roth & Su 2022, corollary 3.3), also where one depends on another's outcome.
    """

    def normal(x: float) -> float:
        return 0.5 * math.erfc(-x / math.sqrt(2))

    return normal(loss / 2 - epsilon / loss) - math.exp(epsilon) * normal(-loss / 2 - epsilon / loss)


def loss_of(epsilon: float, delta: float) -> float:
    """Find the largest `loss` for which `delta_of(epsilon, loss)` is not above `delta`."""
    low, high = 0.0, 1.0
    while delta_of(epsilon, high) < delta:
        low, high = high, 2 * high
    while (middle := (low + high) / 2) not in (low, high):
        if delta_of(epsilon, middle) <= delta:
            low = middle
        else:
            high = middle
    return low


@dataclass(frozen=True)
class Frame:
    """Coordinates in which a generator's codes are measured; nothing in it may depend on the images.

    A code is `centre + axes @ z`.
    """

    centre: Float[Tensor, " S"]
    axes: Float[Tensor, "S R"]
    radius: float
    """Norm to which z is clipped for the mean."""
    spread: float
    """Norm to which z's difference to the mean is clipped for the covariance."""
    low: Float[Tensor, " S"]
    """Range of the codes that are drawn."""
    high: Float[Tensor, " S"]
    usual: float = 1.0
    """Deviation of z along an axis over the images of one source, about; known from public images."""

    def coordinates(self, codes: Float[Tensor, "N S"]) -> Float[Tensor, "N R"]:
        """Give z of each code, in double precision, clipped to `radius`."""
        inside = torch.minimum(torch.maximum(codes.double(), self.low), self.high)
        z = (inside - self.centre) @ torch.linalg.pinv(self.axes).T
        return clip(z, self.radius)

    def codes(self, z: Float[Tensor, "N R"]) -> Float[Tensor, "N S"]:
        """Give the code at each z, inside the range."""
        drawn = self.centre + z @ self.axes.T
        return torch.minimum(torch.maximum(drawn, self.low), self.high).float()


def frame_of(generator: AbstractGenerator) -> Frame:
    """Find the coordinates of a generator's codes.

    Its `code_range`, where codes are short; else the widest axes of the shipped bank for it, which are of
    public images; else those of its prior.

    Raises:
        ConfigError: there is none of these.
    """
    if generator.code_range is not None and generator.code_length <= BOX_ENTRIES:
        low, high = (torch.tensor(end, dtype=torch.float64) for end in generator.code_range)
        half, size = (high - low) / 2, math.sqrt(generator.code_length)
        usual = generator.usual_spread
        return Frame((low + high) / 2, half.diag(), size, BOX_SPREAD * size, low, high, usual)
    if generator.has_prior:
        size = generator.code_length
        axes, most = torch.eye(size, dtype=torch.float64), math.sqrt(size) + 2  # beyond are 2 % or fewer
        return Frame(axes.new_zeros(size), axes, most, most, axes.new_full((size,), -4.0), 4 * axes.sum(1))
    for name in bank_names():
        if cards()["banks"][name]["fingerprint"] == generator.fingerprint and generator.codes_average:
            return public_frame(load_bank(name).codes.double())
    raise ConfigError(
        f"epsilon needs bounds on the codes that no image of yours decides, and {generator.name!r} has none. "
        "Use reinhard-rgb, reinhard-lab, reinhard-ycbcr, reinhard-luminance, or the shipped adain or photo."
    )


def public_frame(codes: Float[Tensor, "N S"]) -> Frame:
    """Make coordinates of a public bank's widest axes, each of unit deviation in it."""
    mean, std = codes.mean(dim=0), codes.std(dim=0).clamp_min(1e-6)
    _, size, axes = torch.linalg.svd((codes - mean) / std, full_matrices=False)
    deviation = size[:PUBLIC_AXES] / math.sqrt(len(codes) - 1)
    spanned = std[:, None] * axes[:PUBLIC_AXES].T * deviation
    most = math.sqrt(PUBLIC_AXES) + 2
    return Frame(mean, spanned, 2 * most, most, codes.amin(dim=0), codes.amax(dim=0))


def clip(z: Float[Tensor, "N R"], norm: float) -> Float[Tensor, "N R"]:
    """Shorten rows that are longer than `norm`."""
    return z * (norm / z.norm(dim=1, keepdim=True).clamp_min(1e-300)).clamp_max(1)


def private_summary(
    z: Float[Tensor, "N R"], frame: Frame, epsilon: float, delta: float
) -> tuple[Float[Tensor, " R"], Float[Tensor, "R R"]]:
    """Measure mean and covariance with noise such that both together are (epsilon, delta)-private.

    Neighbours differ in one row; their number is public. The covariance is taken about the noisy mean. What
    is done to the noisy figures afterwards, to make them possible, costs nothing.

    Args:
        z: `(N, R)`, from `frame.coordinates`.
        frame: what bounds them.
        epsilon: above 0.
        delta: in (0, 1).
    """
    loss = loss_of(epsilon, delta)
    mean_noise = mean_sensitivity(frame, len(z)) / (loss * math.sqrt(MEAN_SHARE))
    covariance_noise = covariance_sensitivity(frame, len(z)) / (loss * math.sqrt(1 - MEAN_SHARE))
    mean = z.mean(dim=0) + mean_noise * noise(z.shape[1])
    mean = clip(mean[None], frame.radius)[0]
    offsets = clip(z - mean, frame.spread)
    covariance = offsets.T @ offsets / len(z)
    square = noise(z.shape[1] ** 2).view(z.shape[1], -1)
    # The lower half is the upper one's mirror image, so that entries off the diagonal count twice.
    triangle = square.triu(1) / math.sqrt(2)
    covariance = covariance + covariance_noise * (triangle + triangle.T + square.diag().diag())
    sizes, axes = torch.linalg.eigh(covariance)
    sizes = sizes.clamp_min(0)
    sizes = sizes * (frame.spread**2 / sizes.sum().clamp_min(1e-300)).clamp_max(1)
    return mean, axes @ sizes.diag() @ axes.T


def mean_sensitivity(frame: Frame, count: int) -> float:
    """Bound how far the mean moves if one row is another: from one end of the ball to the other."""
    return 2 * frame.radius / count


def covariance_sensitivity(frame: Frame, count: int) -> float:
    """Bound how far the covariance about a given point moves, in the Frobenius norm, if one row is another.

    `|x x' - y y'|^2 = |x|^4 + |y|^4 - 2 (x y)^2`, at most twice the fourth power of the longest.
    """
    return math.sqrt(2) * frame.spread**2 / count


def origins_needed(generator: AbstractGenerator, epsilon: float, delta: float) -> int:
    """Compute for how many origins the noise is as large as what usual images differ by.

    With fewer, the styles drawn are noise more than the images'. It follows from the mechanism alone, and so
    tells nothing of any image.

    Args:
        generator: whose codes are measured.
        epsilon: above 0.
        delta: in (0, 1).
    """
    frame, loss = frame_of(generator), loss_of(epsilon, delta)
    mean = mean_sensitivity(frame, 1) / (loss * math.sqrt(MEAN_SHARE)) / frame.usual
    # The largest eigenvalue of the noise, whose entries off the diagonal deviate by 1 / sqrt(2) of these.
    largest = math.sqrt(2 * frame.axes.shape[1])
    noisy = covariance_sensitivity(frame, 1) / (loss * math.sqrt(1 - MEAN_SHARE))
    return math.ceil(max(mean, largest * noisy / frame.usual**2))


def noise(count: int) -> Float[Tensor, " K"]:
    """Draw standard normal numbers from the operating system's entropy; no seed gives them again."""
    source = random.SystemRandom()
    return torch.tensor([source.gauss(0.0, 1.0) for _ in range(count)], dtype=torch.float64)


def private_styles(
    codes: Float[Tensor, "M S"],
    generator: AbstractGenerator,
    count: int,
    *,
    epsilon: float,
    delta: float,
    rng: torch.Generator,
) -> Float[Tensor, "N S"]:
    """Draw `count` styles from the normal distribution of `private_summary`.

    Args:
        codes: `(M, S)`, one of each origin.
        generator: whose codes they are.
        count: N.
        epsilon: above 0.
        delta: in (0, 1).
        rng: draws from the distribution; the noise in it is drawn from none.

    Raises:
        ConfigError: nothing public bounds this generator's codes.
    """
    frame = frame_of(generator)
    mean, covariance = private_summary(frame.coordinates(codes), frame, epsilon, delta)
    sizes, axes = torch.linalg.eigh(covariance)
    drawn = torch.randn(count, len(mean), generator=rng, dtype=torch.float64)
    return frame.codes(mean + drawn * sizes.clamp_min(0).sqrt() @ axes.T)
