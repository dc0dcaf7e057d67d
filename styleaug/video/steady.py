"""Statistics that keep steady over the frames of a film: each frame's are blended with those before.

    past = Past()
    for frame in frames:
        with steady(past, keep=0.9):
            styled = generator(frame, code, strength)

Every generator that shares statistics (see `generators.shared`) takes part, and each frame costs one
forward. Of the past only the blended statistics are kept.
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
        """Begin anew, as at a cut."""
        self.values.clear()


@dataclass
class SteadyForward(Forward):
    """Runs of a generator on one frame. Each row is an image of its own, with a past of its own."""

    past: Past = field(default_factory=Past)
    keep: float = 0.0

    def over_slices(self, values: Tensor) -> Tensor:
        """Give the values as they are: no rows are pooled."""
        return values

    def record(self, rows: int, *values: Tensor) -> tuple[Tensor, ...]:
        """Blend statistics with those of the past."""
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
    """Let generators that run inside go by the blend of their image's statistics and the past's.

    Args:
        past: of this film under one style; it is moved on.
        keep: share of the past in [0, 1): 0 goes by each frame alone.
    """
    forward = SteadyForward(Shared("steady"), painting=False, groups=1, size=(), past=past, keep=keep)
    with running(forward):
        yield
