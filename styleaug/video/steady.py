"""Steady statistics for films: those of each frame are blended with those of earlier frames.

    past = Past()
    for frame in frames:
        with steady(past, keep=0.9):
            styled = generator(frame, code, strength)

It works with every generator that shares statistics (see `generators.shared`), and each frame costs one
forward. Only the blended statistics are kept.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor

from styleaug.errors import ConfigError
from styleaug.generators.shared import Forward, Shared, running

__all__ = ["Past", "steady"]


@dataclass
class Past:
    """The statistics of a film so far, in the order in which its generator reads them."""

    values: list[tuple[Tensor, ...]] = field(default_factory=list)

    def forget(self) -> None:
        """Forget earlier frames, as at a cut."""
        self.values.clear()


@dataclass
class SteadyForward(Forward):
    """Runs of a generator on one frame; each row is a separate image with its own past."""

    used: int = 0
    past: Past = field(default_factory=Past)
    keep: float = 0.0

    def over_slices(self, values: Tensor) -> Tensor:
        """Return the values unchanged; rows are not pooled."""
        return values

    def record(self, rows: int, *values: Tensor) -> tuple[Tensor, ...]:
        """Return the statistics blended with those of the past."""
        known = self.past.values
        if self.used < len(known):
            before = known[self.used]
            if any(old.shape != new.shape for old, new in zip(before, values, strict=True)):
                raise ConfigError("the frames of a film must all be of one size and number.")
            values = tuple(new.lerp(old, self.keep) for old, new in zip(before, values, strict=True))
            known[self.used] = values
        else:
            known.append(values)
        self.used += 1
        self.shared.values.append(values)
        return values


@contextmanager
def steady(past: Past, *, keep: float) -> Iterator[None]:
    """Make generators inside the block use their image's statistics blended with the past's.

    Args:
        past: statistics of this film in one style; they are updated.
        keep: share of the past in [0, 1); 0 uses each frame alone.
    """
    forward = SteadyForward(Shared("steady"), painting=False, groups=1, size=(), past=past, keep=keep)
    with running(forward):
        yield
