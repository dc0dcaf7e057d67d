"""Rows of a bank that stem from several patients each, and banks with differential privacy.

What is promised, and what is not:

- *Aggregation* (`min_images`). Each row of a bank is the mean of codes of at least so many origins, in
  which each origin has one code: a patient for DICOM files, else a file. No image weighs more than
  one in `min_images` in a row. This is no formal guarantee: who knows all other images of a row can
  compute the last one's code, two banks of nearly the same images tell of the difference, and a code
  may be told to be near or far from a row. With `min_images=1` each row is one image's.
- *Differential privacy* (`epsilon`, `delta`). The bank is drawn from a normal distribution whose mean and
  covariance were measured with Gaussian noise. Whoever sees the bank, and knows all but one origin, learns
  next to nothing of that one: its code could have been any other, and each outcome would have been at most
  `exp(epsilon)` times as likely, up to a chance of `delta`. It covers one origin's codes, averaged.
- *Not covered by either*: how many images and origins there were, which are told; that a group exists; the
  generator's own weights, if they were trained on the images; what a folder's or site's name tells, where
  `labels` are written. An origin that has files under several names counts more than once.

The noise is drawn from the operating system's entropy and not from a seed, in double precision. The
rounding of floats is not random: in principle it leaves traces (Mironov 2012, "On significance of the least
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
"""Codes among which neighbours are looked for; the time grows with its square."""


def microaggregate(codes: Float[Tensor, "N S"], least: int) -> list[Int[Tensor, " K"]]:
    """Part codes into groups of neighbours, `least` to 2 `least` - 1 each.

    MDAV (Domingo-Ferrer & Mateo-Sanz 2002, in the form of Domingo-Ferrer & Torra 2005), on entries scaled to
    unit deviation: the code farthest from the mean and the one farthest from that each take their nearest
    neighbours, until few are left. More than `_BLOCK` codes are first halved along the widest entry.

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
    centres = scaled[_farthest_first(scaled, start, count)]
    for _ in range(20):
        owner = torch.cdist(scaled, centres).argmin(dim=1)
        size = torch.bincount(owner, minlength=count)[:, None]
        sums = torch.zeros_like(centres).index_add_(0, owner, scaled)
        centres = torch.where(size > 0, sums / size.clamp_min(1), centres)
    chosen = torch.cdist(centres, scaled).argmin(dim=1).unique()
    chosen = _farthest_first(scaled, chosen, count)  # two centres may have had the same neighbour
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
    """How a bank protects the images it is made of.

    Args:
        min_images: origins that each row stems from, from 1.
        epsilon: None for no differential privacy; else above 0, at most 100. 1 is strong, 10 weak.
        delta: in (0, 1), and less than one over the number of origins; 1e-5 unless given.

    Raises:
        ConfigError: a number outside its range, or `delta` without `epsilon`.
    """

    min_images: int = 5
    epsilon: float | None = None
    delta: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "min_images", check_count("min_images", self.min_images))
        if self.epsilon is None:
            if self.delta is not None:
                raise ConfigError("delta goes with epsilon; give both, or leave out both.")
            return
        epsilon = check_number("epsilon", self.epsilon, 0, MAX_EPSILON, above=True)
        delta = DELTA if self.delta is None else self.delta
        delta = check_number("delta", delta, 0, 1, above=True, below=True)
        object.__setattr__(self, "epsilon", epsilon)
        object.__setattr__(self, "delta", delta)

    def check(self, origins: int, of: str = "these images") -> None:
        """Refuse too few origins.

        Raises:
            ConfigError: saying how many there are, and what could be done.
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
        min_images: origins for each row.
    """

    min_images: int
    rounds: list[dict[str, Tensor]] = field(default_factory=list)
    """The first code of each origin, the second of each that has as many, ..."""
    images: int = 0
    codes: int = 0
    rows: int = 0
    """Rows that `aggregate` gives."""
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, origin: str, code: Float[Tensor, " S"]) -> None:
        """Put a code to those of its origin."""
        turn = self.counts.get(origin, 0)
        if turn == len(self.rounds):
            self.rounds.append({})
        self.rounds[turn][origin] = code
        self.counts[origin] = turn + 1
        self.codes += 1
        self.rows += len(self.rounds[turn]) % self.min_images == 0

    @property
    def origins(self) -> int:
        """How many different ones there are."""
        return len(self.counts)

    def aggregate(self) -> Float[Tensor, "N S"]:
        """Give rows, each the mean of codes of at least `min_images` origins, one of each.

        Codes that are left over, as those of the one patient with the most slices, are in no row.
        """
        rows = []
        for codes in self.rounds:
            if len(codes) >= self.min_images:
                stacked = torch.stack(list(codes.values()))
                groups = microaggregate(stacked, self.min_images)
                rows += [stacked[group].mean(dim=0) for group in groups]
        return torch.stack(rows)

    def by_origin(self) -> Float[Tensor, "M S"]:
        """Give the mean of each origin's codes."""
        return torch.stack(
            [
                torch.stack([codes[origin] for codes in self.rounds[:count]]).mean(dim=0)
                for origin, count in self.counts.items()
            ]
        )


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
class _Frame:
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


def frame_of(generator: AbstractGenerator) -> _Frame:
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
        return _Frame((low + high) / 2, half.diag(), size, BOX_SPREAD * size, low, high, usual)
    if generator.has_prior:
        size = generator.code_length
        axes, most = torch.eye(size, dtype=torch.float64), math.sqrt(size) + 2  # beyond are 2 % or fewer
        return _Frame(axes.new_zeros(size), axes, most, most, axes.new_full((size,), -4.0), 4 * axes.sum(1))
    for name in bank_names():
        if cards()["banks"][name]["fingerprint"] == generator.fingerprint and generator.codes_average:
            return public_frame(load_bank(name).codes.double())
    raise ConfigError(
        f"epsilon needs bounds on the codes that no image of yours decides, and {generator.name!r} has none. "
        "Use reinhard-rgb, reinhard-lab, reinhard-ycbcr, reinhard-luminance, or the shipped adain or photo."
    )


def public_frame(codes: Float[Tensor, "N S"]) -> _Frame:
    """Make coordinates of a public bank's widest axes, each of unit deviation in it."""
    mean, std = codes.mean(dim=0), codes.std(dim=0).clamp_min(1e-6)
    _, size, axes = torch.linalg.svd((codes - mean) / std, full_matrices=False)
    deviation = size[:PUBLIC_AXES] / math.sqrt(len(codes) - 1)
    spanned = std[:, None] * axes[:PUBLIC_AXES].T * deviation
    most = math.sqrt(PUBLIC_AXES) + 2
    return _Frame(mean, spanned, 2 * most, most, codes.amin(dim=0), codes.amax(dim=0))


def clip(z: Float[Tensor, "N R"], norm: float) -> Float[Tensor, "N R"]:
    """Shorten rows that are longer than `norm`."""
    return z * (norm / z.norm(dim=1, keepdim=True).clamp_min(1e-300)).clamp_max(1)


def private_summary(
    z: Float[Tensor, "N R"], frame: _Frame, epsilon: float, delta: float
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


def mean_sensitivity(frame: _Frame, count: int) -> float:
    """Bound how far the mean moves if one row is another: from one end of the ball to the other."""
    return 2 * frame.radius / count


def covariance_sensitivity(frame: _Frame, count: int) -> float:
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
