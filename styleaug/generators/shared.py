"""Statistics that several views of one image share: the slices of a volume, the tiles of a slide.

A generator reads statistics of its content: means and deviations, a histogram, amplitudes. If each slice
uses its own statistics, the volume flickers; tiles show seams. Here all views use those of the whole:

        shared = survey(generator, views, code, strength)           # reads and averages statistics, once
    styled = paint(generator, more, code, strength, shared)     # any views, any number of times

**Slices** (`places=None`) all have the same weight for each pixel. If all of them fit one call, `together`
reads and paints at once.

**Tiles** (`places`) overlap: a network sees `generator.margin` pixels around the part of a tile that is kept.
Corners of tiles lie on multiples of `generator.multiple`, as the cells of the whole image do. So do their
ends, except at the image's border, where a tile ends with the image. The tiles of one call have the same
size. In a survey a tile may extend beyond the image, by less than `multiple` pixels, which the caller fills
by repeating the edge, as the generator would. If the `core`s of a survey cover each pixel once, the result
is that of the whole image. If they cover a sample of it, the result is nearly the same. There are no seams
in either case.

**A generator takes part** through three functions. They have no effect outside of `survey`, `paint` and
`together`, and must be called in the same order in every forward. `layers.channel_stats`, `normalise` and
`adain` call them for networks.

- `pooled(read, planes)` for a mean over pixels, such as moments and histograms.
- `average(values)` for any other figure of a view.
- `predicted(predict, images)` for a prediction from the layout of the whole image. For tiles, `predict` gets
  a reduced copy of the whole image, and `places()` returns where they lie.

They take lambdas, methods and functions, but no function defined inside a `forward`: the tests' shape
checks could not compile it.

Statistics of `torch.compile`d generators are not shared: pass the generator itself.
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
        left: first column, a multiple of the generator's `multiple`.
        height: rows of the whole image.
        width: columns of the whole image.
        core: `(top, left, bottom, right)` in the whole image, ends excluded: the part that this view covers
            in a survey. None means all but the margin on sides that are not the image's border.
    """

    top: int
    left: int
    height: int
    width: int
    core: tuple[int, int, int, int] | None = None


_Box = tuple[int, int, int, int]
"""Top, left, bottom and right in cells or pixels, the last two excluded."""


@dataclass(frozen=True)
class Shared:
    """Statistics of one image or volume for one style, as `survey` returns them."""

    generator: str
    values: list[tuple[Tensor, ...]] = field(default_factory=list)
    tiled: bool = False


@dataclass
class Forward:
    """One run of a generator whose statistics are shared.

    If the views do not fit memory, pass `run_shared` a subclass whose `record` collects over several runs.
    """

    shared: Shared
    painting: bool
    groups: int
    size: Sequence[int]
    """Height and width of the views, in pixels."""
    places: Sequence[Place] | None = None
    margin: int = 0
    whole: Tensor | Callable[[], Tensor] | None = None
    """Reduced copy of the whole image, or a function that makes it when the generator needs it."""
    multiple: int = 1
    minimum: int = 1
    used: int = 0
    total: int | None = None
    """Number of pixels that all views of a survey cover, if it takes several forwards."""
    counted: int | None = None
    """Number of these pixels that the last `pooled` read; with several forwards it may be 0."""

    def recall(self, rows: int) -> tuple[Tensor, ...]:
        """Return the next statistics, repeated for each of the rows."""
        values = self.shared.values[self.used]
        self.used += 1
        return tuple(_spread(value, rows) for value in values)

    def record(self, rows: int, *values: Tensor) -> tuple[Tensor, ...]:
        """Store statistics, and return them repeated for each of the rows."""
        self.shared.values.append(values)
        return tuple(_spread(value, rows) for value in values)

    def over_slices(self, values: Tensor) -> Tensor:
        """Average over the views of each group."""
        return values.unflatten(0, (self.groups, -1)).mean(dim=1)

    def boxes(self, size: Sequence[int]) -> list[_Box]:
        """Find which cells of each view's planes count.

        Args:
            size: size of the planes, computed from views that were padded to multiples.
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
        """Find the first cell that counts along one axis, and the cell after the last one."""
        limit, view = self.padded(length), self.padded(self.size[axis])
        first, last, end = *core, min(start + view, limit)
        if first is None or last is None:
            first, last = start + self.margin if start else 0, end - self.margin if end < limit else end
        elif last == length:
            last = end  # the repeated edge counts, as in the whole image
        cells = size[axis] / view
        # Each edge is rounded at its place in the whole image, so that neighbours still meet.
        first, last = round(max(first, start) * cells), round(min(last, end) * cells)
        return first - round(start * cells), last - round(start * cells)

    def padded(self, length: int) -> int:
        """Round a side up as in `layers.pad_to_multiple`."""
        return self.multiple * math.ceil(max(length, self.minimum) / self.multiple)


FORWARD: ContextVar[Forward | None] = ContextVar("styleaug_shared_forward", default=None)


def sharing() -> bool:
    """Return whether statistics are shared now; always False while a graph is traced."""
    return not torch.compiler.is_compiling() and FORWARD.get() is not None


def current() -> Forward | None:
    """Return the forward whose statistics are shared."""
    return FORWARD.get() if sharing() else None


def pooled(read: Callable[[Tensor], Tensor], planes: Tensor, *, most: int | None = None) -> Tensor:
    """Compute a mean over the pixels of all views.

    Args:
        read: function from planes `(B, C, H, W)` of any size to means over their pixels, `(B, ...)`.
        planes: `(B, C, H, W)`, one row for each view, at the images' size or a fraction of it.
        most: for tiles, about the number of pixels to read in all, on a regular grid of the whole image.

    Returns:
        `(B, ...)`, the same for all rows of an image; `read(planes)` if nothing is shared.
    """
    forward = current()
    if forward is None:
        return read(planes)
    rows = len(planes)  # not before: in a graph this would fix the number of rows
    if forward.painting:
        return forward.recall(rows)[0]
    tiled = forward.places is not None
    mean = over_tiles(forward, read, planes, most) if tiled else forward.over_slices(read(planes))
    return forward.record(rows, mean)[0]


def average(values: Tensor) -> Tensor:
    """Average a figure of each row over all views.

    Args:
        values: `(B, ...)`, one row for each view. Tiles are weighted by their area.

    Returns:
        `(B, ...)`, the same for all rows of an image; `values` itself if nothing is shared.
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
    """Predict tensors from the layout of the whole image.

    For slices it is the mean of their predictions, for tiles the prediction from the reduced copy.

    Args:
        predict: function from images `(B, 3, H, W)` of any size, and `rest`, to tensors `(B, ...)`. It only
            runs in a survey.
        images: the views.
        rest: statistics, codes and other tensors `(B, ...)`; for tiles all rows are the same.

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
        del forward.shared.values[before:]  # `paint` does not predict, so it does not need them
        return forward.record(rows, *values)
    if forward.whole is None:
        name = forward.shared.generator
        raise ConfigError(f"{name!r} reads the whole image; give survey(..., whole=) a reduced copy.")
    with running(None):
        whole = forward.whole() if callable(forward.whole) else forward.whole
        values = predict(whole, *(row[:1] for row in rest))
    return forward.record(rows, *values)


def places() -> Sequence[Place] | None:
    """Return where the rows lie in the whole image; None if they are not tiles."""
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
        codes: `(1, S)`, the style. `(G, S)` for G volumes, whose V / G views each follow one another.
        strength: `(1,)` or `(G,)` in [0, 1].
        places: position of each tile; None for slices.
        margin: pixels of a tile that do not count, on sides that are not the image's border. Ignored for
            a place with a `core`.
        whole: for tiles, a reduced copy `(1, 3, h, w)` of the whole image, sides of 64 pixels or more.
            "photo" and "fourier" need it.

    Raises:
            ConfigError: wrong places, or no copy of the whole image for a generator that needs it.
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
    """Stylise views of one image or volume with the statistics that `survey` read.

    Args:
        generator: the generator of the survey.
        images: `(K, 3, H, W)` in [0, 1], of any size; they need not be those of the survey.
        codes: `(1, S)` or `(G, S)`, as in the survey.
        strength: `(1,)` or `(G,)`, as in the survey.
        shared: result of `survey`.
        places: position of each tile; None for slices.

    Raises:
            ConfigError: statistics of another generator, or those of slices for tiles.
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
    """Stylise whole volumes at the cost of one forward.

    Args:
        generator: not compiled.
        images: `(K, 3, H, W)` in [0, 1]: K / G slices of the first volume, then those of the next.
        codes: `(G, S)`, one style for each volume.
        strength: `(G,)` in [0, 1].
    """
    shared = Shared(generator.name)
    return run_shared(
        generator, images, codes, strength, Forward(shared, False, len(codes), images.shape[2:])
    )


def run_shared(
    generator: AbstractGenerator, images: Tensor, codes: Tensor, strength: Tensor, forward: Forward
) -> Tensor:
    """Run the generator with each style for all views of its group."""
    rows = len(images)
    if not len(codes) or rows % len(codes) or (forward.places is not None and len(codes) != 1):
        raise ConfigError(f"{rows} views cannot share {len(codes)} styles; give one style for each image.")
    forward.multiple, forward.minimum = generator.multiple, generator.minimum
    _check_places(generator, forward.places, rows)
    with running(forward):
        return generator(images, _spread(codes, rows), _spread(strength, rows))


@contextmanager
def running(forward: Forward | None) -> Iterator[None]:
    """Share the statistics of `forward` in this thread until the end of the block."""
    token = FORWARD.set(forward)
    try:
        yield
    finally:
        FORWARD.reset(token)


def _check_places(generator: AbstractGenerator, places: Sequence[Place] | None, rows: int) -> None:
    """Check that tiles lie on the cells of the whole image."""
    if places is not None and len(places) != rows:
        raise ConfigError(f"each view needs its place, got {len(places)} places for {rows} views.")
    step = generator.multiple
    for place in places or ():
        if place.top % step or place.left % step:
            raise ConfigError(f"tiles of {generator.name!r} must begin at multiples of {step}, got {place}.")


def over_tiles(
    forward: Forward, read: Callable[[Tensor], Tensor], planes: Tensor, most: int | None
) -> Tensor:
    """Compute a mean over the pixels that tiles cover."""
    assert forward.places is not None
    found = forward.boxes(planes.shape[2:])
    pixels = forward.total or sum(map(area, found))
    step = 1 if most is None else max(1, math.ceil(math.sqrt(pixels / most)))
    alike: dict[_Box, list[int]] = {}
    for row, (place, (top, left, bottom, right)) in enumerate(zip(forward.places, found, strict=True)):
        # Rows and columns of the whole image, so that its tiles read the same pixels as the image itself.
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
    """Average rows weighted by their counts, to one row."""
    shares = values.new_tensor(counts) / sum(counts)
    return torch.tensordot(shares, values, dims=1)[None]


def area(box: _Box) -> int:
    """Count the cells of a box."""
    top, left, bottom, right = box
    return max(0, bottom - top) * max(0, right - left)


def _spread(values: Tensor, rows: int) -> Tensor:
    """Repeat each group's value for all of its rows."""
    if len(values) == 1:
        return values.expand(rows, *values.shape[1:])
    return values.repeat_interleave(rows // len(values), dim=0)
