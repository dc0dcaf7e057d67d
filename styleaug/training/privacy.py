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

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from styleaug.checks import check_count, check_number
from styleaug.errors import ConfigError
from styleaug.training.clusters import microaggregate

__all__ = ["Pool", "Privacy"]

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
