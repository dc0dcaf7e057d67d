"""Statistics that several views of one image share: the slices of a volume, the tiles of a slide.

A generator reads statistics of its content: means and deviations, a histogram, amplitudes. Slices that
each go by their own flicker, and tiles show seams. Here all views go by those of the whole:

    shared = survey(generator, views, code, strength)           # reads and pools them, once
    styled = paint(generator, more, code, strength, shared)     # any views, any number of times

**Slices** (`places=None`) count alike, pixel by pixel. If all of them fit one call, `together` reads and
paints at once.

**Tiles** (`places`) overlap: a network sees `generator.margin` pixels around what is kept of a tile. Their
corners lie on multiples of `generator.multiple`, as the whole image's cells do, and so do their ends, but
for those at the image's own border, where a tile ends with the image and meets the border that the whole
image meets. The tiles of one call are of equal size. In a survey one may reach beyond the image, by less
than `multiple` pixels, which the caller fills by repeating the edge, as the generator would. Where the
`core`s of a survey cover each pixel once, the result is that of the whole image; where they cover a sample,
nearly so, and there are no seams either way.

**A generator takes part** through three functions, which do nothing outside of `survey`, `paint` and
`together`, and are called in the same order in every forward. `layers.channel_stats`, `normalise` and
`adain` do so for networks.

- `pooled(read, planes)` for what is a mean over pixels, as moments and histograms are.
- `average(values)` for any other figure of a view.
- `predicted(predict, images)` for what is told from the whole image's layout. Of tiles `predict` is given
  the reduced copy, and `places()` says where they lie.

They take lambdas, methods and functions, but none defined inside a `forward`, which the tests' shape
checks keep from being compiled.

Statistics of `torch.compile`d generators are not shared: give the generator itself.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from styleaug.errors import ConfigError
from styleaug.generators.base import AbstractGenerator

__all__ = ["Place", "Shared", "average", "paint", "places", "pooled", "predicted", "survey", "together"]


@dataclass(frozen=True)
class Place:
    """Where a view lies in the whole image, in pixels.

    Args:
        top: first row, a multiple of the generator's `multiple`.
        left: first column, likewise.
        height: rows of the whole image.
        width: columns of the whole image.
        core: `(top, left, bottom, right)` in the whole image, ends excluded: what this view stands for in
            a survey. None is all but the margin on those sides that are not the image's own border.
    """

    top: int
    left: int
    height: int
    width: int
    core: tuple[int, int, int, int] | None = None


_Box = tuple[int, int, int, int]
"""Top, left, bottom, right, the last two excluded."""


@dataclass(frozen=True)
class Shared:
    """Statistics of one image or volume under one style, as `survey` gives them."""

    generator: str
    values: list[tuple[Tensor, ...]] = field(default_factory=list)
    tiled: bool = False


@dataclass
class Forward:
    """One run of a generator whose statistics are shared.

    Who reads them in many runs, as views do not fit memory, may `run_shared` a subclass with a `record`.
    """

    shared: Shared
    painting: bool
    groups: int
    size: Sequence[int]
    """Of the views."""
    places: Sequence[Place] | None = None
    margin: int = 0
    whole: Tensor | Callable[[], Tensor] | None = None
    """A function makes it only if the generator looks at it."""
    multiple: int = 1
    minimum: int = 1
    used: int = 0
    total: int | None = None
    """How many pixels all views of a survey stand for, if it takes several forwards."""
    counted: int | None = None
    """How many of them `pooled` read from last; of several forwards some may hold none of its grid."""

    def recall(self, rows: int) -> tuple[Tensor, ...]:
        """Give the next statistics to each of the rows."""
        values = self.shared.values[self.used]
        self.used += 1
        return tuple(_spread(value, rows) for value in values)

    def record(self, rows: int, *values: Tensor) -> tuple[Tensor, ...]:
        """Keep statistics, and give them to each of the rows."""
        self.shared.values.append(values)
        return tuple(_spread(value, rows) for value in values)

    def over_slices(self, values: Tensor) -> Tensor:
        """Average over the views of each group."""
        return values.unflatten(0, (self.groups, -1)).mean(dim=1)

    def boxes(self, size: Sequence[int]) -> list[_Box]:
        """Find which cells of each view's planes count.

        Args:
            size: of the planes, which stand for the views as they are padded to multiples.
        """
        assert self.places is not None
        found = []
        for place in self.places:
            core = place.core or (None, None, None, None)
            top, bottom = self.edges(0, size, place.top, place.height, core[::2])
            left, right = self.edges(1, size, place.left, place.width, core[1::2])
            found.append((top, left, bottom, right))
        return found

    def edges(
        self, axis: int, size: Sequence[int], start: int, length: int, core: tuple[int | None, ...]
    ) -> tuple[int, int]:
        """Find the first cell that counts along one axis, and the one after the last."""
        limit, view = self.padded(length), self.padded(self.size[axis])
        first, last, end = *core, min(start + view, limit)
        if first is None or last is None:
            first, last = start + self.margin if start else 0, end - self.margin if end < limit else end
        elif last == length:
            last = end  # the edge that the generator repeats counts, as in the whole image
        cells = size[axis] / view
        # Each edge is rounded by where it lies in the whole image, so that neighbours still meet.
        first, last = round(max(first, start) * cells), round(min(last, end) * cells)
        return first - round(start * cells), last - round(start * cells)

    def padded(self, length: int) -> int:
        """Round a side up as `layers.pad_to_multiple` does."""
        return self.multiple * math.ceil(max(length, self.minimum) / self.multiple)


FORWARD: ContextVar[Forward | None] = ContextVar("styleaug_shared_forward", default=None)


def sharing() -> bool:
    """Say whether statistics are shared now. Never while a graph is made."""
    return not torch.compiler.is_compiling() and FORWARD.get() is not None


def current() -> Forward | None:
    """Give the forward whose statistics are shared."""
    return FORWARD.get() if sharing() else None


def pooled(read: Callable[[Tensor], Tensor], planes: Tensor, *, most: int | None = None) -> Tensor:
    """Read a mean over pixels from all views together.

    Args:
        read: maps planes `(B, C, H, W)` of any size to means over their pixels, `(B, ...)`.
        planes: `(B, C, H, W)`, one row a view, at the images' size or a fraction of it.
        most: of tiles, read only about so many pixels in all, on a regular grid of the whole image.

    Returns:
        `(B, ...)`, all rows of an image alike; `read(planes)` where nothing is shared.
    """
    forward = current()
    if forward is None:
        return read(planes)
    rows = len(planes)  # not before: of a graph this would fix the number
    if forward.painting:
        return forward.recall(rows)[0]
    tiled = forward.places is not None
    mean = over_tiles(forward, read, planes, most) if tiled else forward.over_slices(read(planes))
    return forward.record(rows, mean)[0]


def average(values: Tensor) -> Tensor:
    """Average a figure of each row over all views.

    Args:
        values: `(B, ...)`, one row a view. Tiles count by their area.

    Returns:
        `(B, ...)`, all rows of an image alike; `values` itself where nothing is shared.
    """
    forward = current()
    if forward is None:
        return values
    if forward.painting:
        return forward.recall(len(values))[0]
    if forward.places is None:
        return forward.record(len(values), forward.over_slices(values))[0]
    areas = [area(box) for box in forward.boxes([forward.padded(side) for side in forward.size])]
    return forward.record(len(values), weighted_mean(values, areas))[0]


def predicted(
    predict: Callable[..., tuple[Tensor, ...]], images: Float[Tensor, "B 3 H W"], *rest: Tensor
) -> tuple[Tensor, ...]:
    """Tell something from the layout of the whole image.

    Of slices it is the mean of what each of them tells, of tiles what the reduced copy tells.

    Args:
        predict: maps images `(B, 3, H, W)` of any size, and `rest`, to tensors `(B, ...)`. It runs in a
            survey only.
        images: the views.
        rest: statistics, codes and the like `(B, ...)`, of tiles all rows alike.

    Raises:
        ConfigError: tiles were surveyed without a copy of the whole image.
    """
    forward = current()
    if forward is None:
        return predict(images, *rest)
    rows = len(images)
    if forward.painting:
        return forward.recall(rows)
    if forward.places is None:
        before = len(forward.shared.values)
        values = [forward.over_slices(value) for value in predict(images, *rest)]
        del forward.shared.values[before:]  # `paint` does not predict, so it reads none of them
        return forward.record(rows, *values)
    if forward.whole is None:
        name = forward.shared.generator
        raise ConfigError(f"{name!r} looks at the whole image; give survey(..., whole=) a reduced copy.")
    with running(None):
        whole = forward.whole() if callable(forward.whole) else forward.whole
        values = predict(whole, *(row[:1] for row in rest))
    return forward.record(rows, *values)


def places() -> Sequence[Place] | None:
    """Say where the rows lie in the whole image, if they are tiles."""
    forward = current()
    return None if forward is None else forward.places


def survey(
    generator: AbstractGenerator,
    views: Float[Tensor, "V 3 H W"],
    codes: Float[Tensor, "G S"],
    strength: Float[Tensor, " G"],
    *,
    places: Sequence[Place] | None = None,
    margin: int = 0,
    whole: Float[Tensor, "1 3 h w"] | None = None,
) -> Shared:
    """Read the statistics of one image or volume from views of it, in one forward.

    Args:
        generator: not compiled.
        views: `(V, 3, H, W)` in [0, 1]; as many as fit in memory.
        codes: `(1, S)`, the style. `(G, S)` for G volumes whose views follow each other, V / G each.
        strength: `(1,)` or `(G,)` in [0, 1].
        places: of tiles, where each of them lies; None for slices.
        margin: pixels of a tile that do not count on sides that are not the image's border; those
            of a place with a `core` are known.
        whole: of tiles, a reduced copy `(1, 3, h, w)` of the whole image, sides of 64 pixels or more.
            "photo" and "fourier" look at it.

    Raises:
        ConfigError: places that are not those of tiles, or a copy of the whole that is missing.
    """
    shared = Shared(generator.name, tiled=places is not None)
    forward = Forward(shared, False, len(codes), views.shape[2:], places, margin, whole)
    run_shared(generator, views, codes, strength, forward)
    return shared


def paint(
    generator: AbstractGenerator,
    images: Float[Tensor, "K 3 H W"],
    codes: Float[Tensor, "G S"],
    strength: Float[Tensor, " G"],
    shared: Shared,
    *,
    places: Sequence[Place] | None = None,
) -> Float[Tensor, "K 3 H W"]:
    """Give views of one image or volume its style, by the statistics that `survey` read.

    Args:
        generator: the one of the survey.
        images: `(K, 3, H, W)` in [0, 1], whether surveyed or not, of any size.
        codes: `(1, S)` or `(G, S)`, as in the survey.
        strength: `(1,)` or `(G,)`, as in the survey.
        shared: what `survey` gave.
        places: of tiles, where each of them lies.

    Raises:
        ConfigError: statistics of another generator, or of slices where these are tiles.
    """
    if shared.generator != generator.name or shared.tiled != (places is not None):
        kind = "tiles" if shared.tiled else "slices"
        raise ConfigError(
            f"these statistics are of {kind} under {shared.generator!r}; survey these views first."
        )
    forward = Forward(shared, True, len(codes), images.shape[2:], places)
    painted = run_shared(generator, images, codes, strength, forward)
    assert forward.used == len(shared.values)
    return painted


def together(
    generator: AbstractGenerator,
    images: Float[Tensor, "K 3 H W"],
    codes: Float[Tensor, "G S"],
    strength: Float[Tensor, " G"],
) -> Float[Tensor, "K 3 H W"]:
    """Paint volumes whose slices are all given, at the cost of one forward.

    Args:
        generator: not compiled.
        images: `(K, 3, H, W)` in [0, 1]: K / G slices of the first volume, then those of the next.
        codes: `(G, S)`, one style a volume.
        strength: `(G,)` in [0, 1].
    """
    shared = Shared(generator.name)
    return run_shared(
        generator, images, codes, strength, Forward(shared, False, len(codes), images.shape[2:])
    )


def run_shared(
    generator: AbstractGenerator, images: Tensor, codes: Tensor, strength: Tensor, forward: Forward
) -> Tensor:
    """Run the generator with each style given to all views of its group."""
    rows = len(images)
    if not len(codes) or rows % len(codes) or (forward.places is not None and len(codes) != 1):
        raise ConfigError(f"{rows} views cannot share {len(codes)} styles; give one style for each image.")
    forward.multiple, forward.minimum = generator.multiple, generator.minimum
    _check_places(generator, forward.places, rows)
    with running(forward):
        return generator(images, _spread(codes, rows), _spread(strength, rows))


@contextmanager
def running(forward: Forward | None) -> Iterator[None]:
    """Share statistics as `forward` says, in this thread and until the end of the block."""
    token = FORWARD.set(forward)
    try:
        yield
    finally:
        FORWARD.reset(token)


def _check_places(generator: AbstractGenerator, places: Sequence[Place] | None, rows: int) -> None:
    """Refuse tiles that do not lie on the cells of the whole image."""
    if places is not None and len(places) != rows:
        raise ConfigError(f"each view needs its place, got {len(places)} places for {rows} views.")
    step = generator.multiple
    for place in places or ():
        if place.top % step or place.left % step:
            raise ConfigError(f"tiles of {generator.name!r} must begin at multiples of {step}, got {place}.")


def over_tiles(
    forward: Forward, read: Callable[[Tensor], Tensor], planes: Tensor, most: int | None
) -> Tensor:
    """Read a mean over the pixels that tiles stand for."""
    assert forward.places is not None
    found = forward.boxes(planes.shape[2:])
    pixels = forward.total or sum(map(area, found))
    step = 1 if most is None else max(1, math.ceil(math.sqrt(pixels / most)))
    alike: dict[_Box, list[int]] = {}
    for row, (place, (top, left, bottom, right)) in enumerate(zip(forward.places, found, strict=True)):
        # Rows and columns of the whole image, so that all of its tiles read what it would itself.
        box = top + -(top + place.top) % step, left + -(left + place.left) % step, bottom, right
        if area(box):
            alike.setdefault(box, []).append(row)
    if not alike and forward.total is not None:
        forward.counted = 0
        return torch.zeros_like(read(planes[:1]))
    if not alike:
        raise ConfigError("no pixel of these tiles counts: they are all margin.")
    means, counts = [], []
    for (top, left, bottom, right), rows in alike.items():
        seen = planes[:, :, top:bottom:step, left:right:step]
        means.append(read(seen if len(rows) == len(planes) else seen[rows]))
        counts += [seen.shape[2] * seen.shape[3]] * len(rows)
    forward.counted = sum(counts)
    return weighted_mean(torch.cat(means), counts)


def weighted_mean(values: Tensor, counts: Sequence[int]) -> Tensor:
    """Average rows by their counts, to one row."""
    shares = values.new_tensor(counts) / sum(counts)
    return torch.tensordot(shares, values, dims=1)[None]


def area(box: _Box) -> int:
    """Count a box's cells."""
    top, left, bottom, right = box
    return max(0, bottom - top) * max(0, right - left)


def _spread(values: Tensor, rows: int) -> Tensor:
    """Give each group's value to all of its rows."""
    if len(values) == 1:
        return values.expand(rows, *values.shape[1:])
    return values.repeat_interleave(rows // len(values), dim=0)
