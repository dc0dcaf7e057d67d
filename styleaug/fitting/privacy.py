"""Make bank rows from several patients each, and banks with differential privacy.

What is guaranteed, and what is not (an *origin* is a patient for DICOM files, else a file):

- *Aggregation* (`min_images`). Each row of a bank is the mean of codes of at least `min_images` origins, with
  one code for each. No image has a weight above 1 / `min_images`. This is not a formal guarantee: a person
  who knows all other images of a row can compute the code of the last one; two banks of nearly the same
  images reveal the difference; and one can test whether a code is near a row. With `min_images=1` each row
  is the code of one image.
- *Differential privacy* (`epsilon`, `delta`). The bank is drawn from a normal distribution whose mean and
  covariance were measured with Gaussian noise. A person who sees the bank and knows all origins but one
  learns almost nothing about that one: with any other code in its place, each outcome would be at most
  `exp(epsilon)` times as likely, except with probability `delta`. It protects the mean code of an origin.
- *Not protected*: the numbers of images and origins, which are published; the existence of a group; the
  generator's weights, if they were trained on the images; names of folders or sites, if `labels` are written.
  An origin with files under several names counts more than once.

The noise is drawn in double precision from the operating system's entropy, not from a seed. The rounding
of floats is not random and could in principle leave traces (Mironov 2012, "On significance of the least
significant bits for differential privacy"). Banks are stored in float32, after sampling.
"""

import math
import random
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from styleaug.checks import check_count, check_number
from styleaug.errors import ConfigError
from styleaug.generators.base import AbstractGenerator
from styleaug.weights import bank_names, cards, load_bank

__all__ = [
    "Pool",
    "Privacy",
    "cover",
    "delta_of",
    "frame_of",
    "loss_of",
    "microaggregate",
    "origins_needed",
    "private_styles",
    "private_summary",
]

_BLOCK = 4096
"""Most codes that are searched together for neighbours; the time grows with the square."""


def microaggregate(codes: Float[Tensor, "N S"], least: int) -> list[Int[Tensor, " K"]]:
    """Divide codes into groups of `least` to 2 `least` - 1 neighbours.

    MDAV (Domingo-Ferrer & Mateo-Sanz 2002, in the form of Domingo-Ferrer & Torra 2005), on entries scaled to
    unit deviation. The code farthest from the mean, and the code farthest from that one, each form a group
    with their nearest neighbours; this repeats until few codes are left. More than `_BLOCK` codes are first
    halved along the widest entry.

    Args:
        codes: `(N, S)`, N >= `least`.
        least: least size of a group, from 1.

    Returns:
        The rows of each group; each row is in exactly one.
    """
    every = torch.arange(len(codes))
    if least == 1:
        return list(every[:, None])
    scaled = (codes - codes.mean(dim=0)) / codes.std(dim=0, correction=0).clamp_min(1e-6)
    groups = []
    for block in _halve(scaled, every, max(_BLOCK, 4 * least)):
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


def _halve(codes: Float[Tensor, "N S"], rows: Int[Tensor, " K"], most: int) -> list[Int[Tensor, " L"]]:
    """Split rows at the median of their widest entry, until no part has more than `most`."""
    if len(rows) <= most:
        return [rows]
    widest = codes[rows].var(dim=0).argmax()
    order = rows[codes[rows, widest].argsort(stable=True)]
    middle = len(order) // 2
    return _halve(codes, order[:middle], most) + _halve(codes, order[middle:], most)


def farthest(codes: Float[Tensor, "N S"], rows: Int[Tensor, " K"], point: Float[Tensor, " S"]) -> Tensor:
    """Return the code among `rows` that is farthest from `point`."""
    return codes[rows[(codes[rows] - point).square().sum(dim=1).argmax()]]


def take_neighbours(
    codes: Float[Tensor, "N S"], rows: Int[Tensor, " K"], point: Float[Tensor, " S"], count: int
) -> tuple[Int[Tensor, " G"], Int[Tensor, " L"]]:
    """Return the `count` rows nearest to `point`, nearest first, and the other rows."""
    order = (codes[rows] - point).square().sum(dim=1).argsort(stable=True)
    return rows[order[:count]], rows[order[count:].sort().values]


def cover(codes: Float[Tensor, "N S"], count: int, rng: torch.Generator) -> Int[Tensor, " K"]:
    """Choose `count` rows that represent all rows: those nearest to the centres of k-means.

    Distances use entries scaled to unit deviation. k-means runs for 20 rounds (Lloyd 1982) and starts with
    rows that are far from each other.

    Returns:
        `(count,)` different indices in rising order.
    """
    scaled = (codes - codes.mean(dim=0)) / codes.std(dim=0).clamp_min(1e-6)
    start = torch.randint(len(codes), (1,), generator=rng)
    centres = scaled[_farthest_first(scaled, start, count)]
    for _ in range(20):
        owner = torch.cdist(scaled, centres).argmin(dim=1)
        size = torch.bincount(owner, minlength=count)[:, None]
        sums = torch.zeros_like(centres).index_add_(0, owner, scaled)
        centres = torch.where(size > 0, sums / size.clamp_min(1), centres)
    chosen = torch.cdist(centres, scaled).argmin(dim=1).unique()
    chosen = _farthest_first(scaled, chosen, count)  # two centres may have the same neighbour
    return chosen.sort().values


def _farthest_first(codes: Float[Tensor, "N S"], chosen: Int[Tensor, " J"], count: int) -> Int[Tensor, " K"]:
    """Add to `chosen` the row farthest from all of them, until there are `count` (Gonzalez 1985)."""
    distance = torch.cdist(codes, codes[chosen]).amin(dim=1)
    rows = chosen.tolist()
    while len(rows) < count:
        distance[rows] = -1
        rows.append(int(distance.argmax()))
        distance = torch.minimum(distance, torch.cdist(codes, codes[rows[-1:]])[:, 0])
    return torch.tensor(rows)


DELTA = 1e-5
MAX_EPSILON = 100.0


@dataclass(frozen=True)
class Privacy:
    """How a bank protects its images.

    Args:
        min_images: least number of origins behind each row, from 1.
        epsilon: in (0, 100]; 1 is strong, 10 is weak. None for no differential privacy.
        delta: in (0, 1), and less than 1 / number of origins; the default is 1e-5.

    Raises:
        ConfigError: a number is out of range, or `delta` is given without `epsilon`.
    """

    min_images: int = 5
    epsilon: float | None = None
    delta: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "min_images", check_count("min_images", self.min_images))
        if self.epsilon is None:
            if self.delta is not None:
                raise ConfigError("delta needs epsilon; give both, or leave out both.")
            return
        epsilon = check_number("epsilon", self.epsilon, 0, MAX_EPSILON, above=True)
        delta = DELTA if self.delta is None else self.delta
        delta = check_number("delta", delta, 0, 1, above=True, below=True)
        object.__setattr__(self, "epsilon", epsilon)
        object.__setattr__(self, "delta", delta)

    def check(self, origins: int, of: str = "these images") -> None:
        """Check that there are enough origins.

        Raises:
            ConfigError: there are too few; the message says how many, and what to do.
        """
        if origins < self.min_images:
            raise ConfigError(
                f"{of} come from {origins} patients or files, and each style of a bank stems from at least "
                f"{self.min_images}. Give more images. Or set min_images={origins}; "
                "with 1, each style is that of one image, and the bank as confidential as the images."
            )
        if self.delta is not None and not self.delta * origins < 1:
            raise ConfigError(
                f"delta must be less than one over the {origins} patients or files, got {self.delta:g}: it "
                "bounds the chance that one is given away."
            )


@dataclass
class Pool:
    """Codes of a bank or of one of its groups, by origin.

    Args:
        min_images: least number of origins behind each row.
    """

    min_images: int
    rounds: list[dict[str, Tensor]] = field(default_factory=list)
    """Codes in layers: the first code of each origin, then the second of each origin that has two, ..."""
    images: int = 0
    codes: int = 0
    rows: int = 0
    """Number of rows that `aggregate` returns."""
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, origin: str, code: Float[Tensor, " S"]) -> None:
        """Add a code of an origin."""
        turn = self.counts.get(origin, 0)
        if turn == len(self.rounds):
            self.rounds.append({})
        self.rounds[turn][origin] = code
        self.counts[origin] = turn + 1
        self.codes += 1
        self.rows += len(self.rounds[turn]) % self.min_images == 0

    @property
    def origins(self) -> int:
        """Number of different origins."""
        return len(self.counts)

    def aggregate(self) -> Float[Tensor, "N S"]:
        """Return rows; each is the mean of codes of at least `min_images` origins, one code from each.

        Codes that are left over, such as those of the patient with the most slices, are not used.
        """
        rows = []
        for codes in self.rounds:
            if len(codes) >= self.min_images:
                stacked = torch.stack(list(codes.values()))
                groups = microaggregate(stacked, self.min_images)
                rows += [stacked[group].mean(dim=0) for group in groups]
        return torch.stack(rows)

    def by_origin(self) -> Float[Tensor, "M S"]:
        """Return the mean code of each origin."""
        return torch.stack(
            [
                torch.stack([codes[origin] for codes in self.rounds[:count]]).mean(dim=0)
                for origin, count in self.counts.items()
            ]
        )


MEAN_SHARE = 0.25
"""Share of the privacy budget (squared signal to noise) for the mean; the covariance is noisier."""
BOX_ENTRIES = 16
"""Most entries of codes that are measured in a box; the covariance of longer codes would be only noise."""
PUBLIC_AXES = 8
"""Number of axes of a public bank along which longer codes may vary."""
BOX_SPREAD = 0.5
"""Largest distance of a code from the mean, in half ranges of each entry."""


def delta_of(epsilon: float, loss: float) -> float:
    """Compute the delta of Gaussian mechanisms at an epsilon (Balle & Wang 2018, theorem 8).

    Args:
        epsilon: at least 0.
        loss: L2 sensitivity divided by the deviation of the noise. For several mechanisms it is the root of
            the sum of squares (Dong, Roth & Su 2022, corollary 3.3), also if one depends on another's
            outcome.
    """

    def normal(x: float) -> float:
        return 0.5 * math.erfc(-x / math.sqrt(2))

    return normal(loss / 2 - epsilon / loss) - math.exp(epsilon) * normal(-loss / 2 - epsilon / loss)


def loss_of(epsilon: float, delta: float) -> float:
    """Compute the largest `loss` with `delta_of(epsilon, loss)` <= `delta`."""
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
class _Frame:
    """Coordinates in which a generator's codes are measured; they must not depend on the images.

    A code is `centre + axes @ z`.
    """

    centre: Float[Tensor, " S"]
    axes: Float[Tensor, "S R"]
    radius: float
    """Largest norm of z for the mean; longer vectors are clipped."""
    spread: float
    """Largest norm of z minus its mean for the covariance; longer vectors are clipped."""
    low: Float[Tensor, " S"]
    """Range of drawn codes."""
    high: Float[Tensor, " S"]
    usual: float = 1.0
    """Typical deviation of z along an axis over the images of one source, from public images."""

    def coordinates(self, codes: Float[Tensor, "N S"]) -> Float[Tensor, "N R"]:
        """Return z of each code, in double precision, clipped to `radius`."""
        inside = torch.minimum(torch.maximum(codes.double(), self.low), self.high)
        z = (inside - self.centre) @ torch.linalg.pinv(self.axes).T
        return clip(z, self.radius)

    def codes(self, z: Float[Tensor, "N R"]) -> Float[Tensor, "N S"]:
        """Return the code at each z, clipped to the range."""
        drawn = self.centre + z @ self.axes.T
        return torch.minimum(torch.maximum(drawn, self.low), self.high).float()


def frame_of(generator: AbstractGenerator) -> _Frame:
    """Return the coordinates of a generator's codes.

    They come from its `code_range` if codes are short, else from the widest axes of its shipped bank of
    public images, else from its prior.

    Raises:
        ConfigError: the generator has none of these.
    """
    if generator.code_range is not None and generator.code_length <= BOX_ENTRIES:
        low, high = (torch.tensor(end, dtype=torch.float64) for end in generator.code_range)
        half, size = (high - low) / 2, math.sqrt(generator.code_length)
        usual = generator.usual_spread
        return _Frame((low + high) / 2, half.diag(), size, BOX_SPREAD * size, low, high, usual)
    if generator.has_prior:
        size = generator.code_length
        axes, most = torch.eye(size, dtype=torch.float64), math.sqrt(size) + 2  # at most 2 % lie beyond
        return _Frame(axes.new_zeros(size), axes, most, most, axes.new_full((size,), -4.0), 4 * axes.sum(1))
    for name in bank_names():
        if cards()["banks"][name]["fingerprint"] == generator.fingerprint and generator.codes_average:
            return public_frame(load_bank(name).codes.double())
    raise ConfigError(
        f"epsilon needs bounds on the codes that do not depend on your images; {generator.name!r} has none. "
        "Use reinhard-rgb, reinhard-lab, reinhard-ycbcr, reinhard-luminance, or the shipped adain or photo."
    )


def public_frame(codes: Float[Tensor, "N S"]) -> _Frame:
    """Return coordinates along a public bank's widest axes, scaled to unit deviation."""
    mean, std = codes.mean(dim=0), codes.std(dim=0).clamp_min(1e-6)
    _, size, axes = torch.linalg.svd((codes - mean) / std, full_matrices=False)
    deviation = size[:PUBLIC_AXES] / math.sqrt(len(codes) - 1)
    spanned = std[:, None] * axes[:PUBLIC_AXES].T * deviation
    most = math.sqrt(PUBLIC_AXES) + 2
    return _Frame(mean, spanned, 2 * most, most, codes.amin(dim=0), codes.amax(dim=0))


def clip(z: Float[Tensor, "N R"], norm: float) -> Float[Tensor, "N R"]:
    """Return rows shortened to a length of at most `norm`."""
    return z * (norm / z.norm(dim=1, keepdim=True).clamp_min(1e-300)).clamp_max(1)


def private_summary(
    z: Float[Tensor, "N R"], frame: _Frame, epsilon: float, delta: float
) -> tuple[Float[Tensor, " R"], Float[Tensor, "R R"]]:
    """Measure mean and covariance with noise, (epsilon, delta)-private for both together.

    Neighbouring data sets differ in one row; the number of rows is public. The covariance is taken about the
    noisy mean. Corrections of the noisy results cost no privacy.

    Args:
        z: `(N, R)`, from `frame.coordinates`.
        frame: the bounds of z.
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
    # The lower half mirrors the upper half, so entries off the diagonal count twice.
    triangle = square.triu(1) / math.sqrt(2)
    covariance = covariance + covariance_noise * (triangle + triangle.T + square.diag().diag())
    sizes, axes = torch.linalg.eigh(covariance)
    sizes = sizes.clamp_min(0)
    sizes = sizes * (frame.spread**2 / sizes.sum().clamp_min(1e-300)).clamp_max(1)
    return mean, axes @ sizes.diag() @ axes.T


def mean_sensitivity(frame: _Frame, count: int) -> float:
    """Return the largest move of the mean if one row changes: across the ball, over N."""
    return 2 * frame.radius / count


def covariance_sensitivity(frame: _Frame, count: int) -> float:
    """Return the largest move of the covariance about a point (Frobenius norm) if one row changes.

    `|x x' - y y'|^2 = |x|^4 + |y|^4 - 2 (x y)^2`, at most twice the fourth power of the longest.
    """
    return math.sqrt(2) * frame.spread**2 / count


def origins_needed(generator: AbstractGenerator, epsilon: float, delta: float) -> int:
    """Compute the number of origins for which the noise equals the usual deviation of images.

    With fewer, drawn styles are mostly noise. The number depends only on the mechanism, so it reveals nothing
    about the images.

    Args:
        generator: generator of the codes.
        epsilon: above 0.
        delta: in (0, 1).
    """
    frame, loss = frame_of(generator), loss_of(epsilon, delta)
    mean = mean_sensitivity(frame, 1) / (loss * math.sqrt(MEAN_SHARE)) / frame.usual
    # Largest eigenvalue of the noise; entries off the diagonal have 1 / sqrt(2) of the diagonal's deviation.
    largest = math.sqrt(2 * frame.axes.shape[1])
    noisy = covariance_sensitivity(frame, 1) / (loss * math.sqrt(1 - MEAN_SHARE))
    return math.ceil(max(mean, largest * noisy / frame.usual**2))


def noise(count: int) -> Float[Tensor, " K"]:
    """Draw standard normal numbers from the operating system's entropy; they cannot be reproduced."""
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
        codes: `(M, S)`, one code for each origin.
        generator: generator of the codes.
        count: number of styles to draw, N.
        epsilon: above 0.
        delta: in (0, 1).
        rng: generator for drawing the styles; the noise of the distribution does not use it.

    Raises:
        ConfigError: this generator's codes have no public bounds.
    """
    frame = frame_of(generator)
    mean, covariance = private_summary(frame.coordinates(codes), frame, epsilon, delta)
    sizes, axes = torch.linalg.eigh(covariance)
    drawn = torch.randn(count, len(mean), generator=rng, dtype=torch.float64)
    return frame.codes(mean + drawn * sizes.clamp_min(0).sqrt() @ axes.T)
