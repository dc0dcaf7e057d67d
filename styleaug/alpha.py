"""Transparency: what nobody sees decides nothing that somebody sees."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

__all__ = ["Uncovered", "filled", "straight"]

Back = Callable[[np.ndarray], np.ndarray]


def filled(colours: np.ndarray, alpha: np.ndarray) -> tuple[np.ndarray, Back]:
    """Fill what is transparent from what is seen, so that every statistic is that of what is seen.

    The hidden pixels take, row by row, the colours of the seen ones, row by row: each seen pixel stands in
    equally often, so mean, spread and histogram are those of the seen pixels, and runs along a row stay
    together. A pixel of alpha a counts by a: it is mixed with such a colour by 1 - a.

    Args:
        colours: `(H, W)` or `(H, W, C)`, integers or floats.
        alpha: `(H, W)`, any range; its largest value counts as opaque.

    Returns:
        Colours of the same shape and type, the very same ones where no pixel differs in alpha; and a
        function that gives styled ones the hidden pixels of the input back, bit by bit, and takes the
        mixed-in colours out. If nothing at all is seen it gives the input back.
    """
    alpha = np.nan_to_num(alpha)
    high = alpha.max()
    if high <= 0:
        return colours, lambda styled: colours
    if alpha.min() == high:
        return colours, lambda styled: styled
    share = np.clip(alpha.astype(np.float32) / np.float32(high), 0, 1).ravel()
    flat = colours.reshape(share.size, -1)
    rows = np.flatnonzero(share < 1)
    kept = share[rows, None]
    hidden = kept[:, 0] == 0
    own = flat[rows]
    mixed = stand_ins(flat, share, rows)
    part = ~hidden
    mixed[part] = rounded(own[part] * kept[part] + mixed[part] * (1 - kept[part]), colours.dtype)
    seen = flat.copy()
    seen[rows] = mixed
    offset = own[part].astype(np.float64) - mixed[part]

    def back(styled: np.ndarray) -> np.ndarray:
        result = styled.reshape(flat.shape).copy()
        found = result[rows]
        if part.any():
            moved = rounded(found[part] + offset * gains(seen, result, share), styled.dtype)
            # What was not changed is given back as it was: sums of floats would miss it by a bit.
            found[part] = np.where(found[part] == mixed[part], own[part], moved)
        found[hidden] = own[hidden]
        result[rows] = found
        return result.reshape(styled.shape)

    return seen.reshape(colours.shape), back


def stand_ins(flat: np.ndarray, share: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Choose a seen colour for each of some pixels: all in their order, each as often as it counts."""
    weights = share.astype(np.float64)
    if flat.dtype.kind == "f":
        weights[~np.isfinite(flat).all(axis=1)] = 0  # gaps are no colour
    total, lacking = np.cumsum(weights), 1 - share[rows].astype(np.float64)
    if not total[-1]:
        return flat[rows]
    places = (np.cumsum(lacking) - lacking / 2) * (total[-1] / lacking.sum())
    chosen = np.searchsorted(total, places, side="right")
    return flat[np.minimum(chosen, np.flatnonzero(weights)[-1])]


def gains(before: np.ndarray, after: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Tell how much a style stretches differences of colour, in each channel."""
    with np.errstate(invalid="ignore", over="ignore"):
        weights = share[:, None] / share.sum(dtype=np.float64)
        centre = before - (weights * before).sum(axis=0)
        spread = (weights * centre * centre).sum(axis=0)
        slope = (weights * centre * after).sum(axis=0) / np.where(spread > 0, spread, 1)
    return np.where((spread > 0) & np.isfinite(slope), slope, 1.0)


def straight(pixels: np.ndarray) -> tuple[np.ndarray, Back]:
    """Divide colours by the alpha that they were multiplied by.

    Args:
        pixels: `(..., C)`, the last channel alpha; integers over their whole range, or floats in [0, 1].

    Returns:
        The same with colours of their own, and a function that multiplies styled ones again; those that are
        as before come back bit by bit.
    """
    top = 1.0 if pixels.dtype.kind == "f" else np.iinfo(pixels.dtype).max
    alpha = pixels[..., -1:].astype(np.float64)
    apart = pixels.copy()
    factor = top / np.where(alpha > 0, alpha, top)
    apart[..., :-1] = rounded(np.minimum(pixels[..., :-1] * factor, top), pixels.dtype)

    def back(styled: np.ndarray) -> np.ndarray:
        found = styled.copy()
        found[..., :-1] = rounded(styled[..., :-1] * (alpha / top), pixels.dtype)
        return np.where(styled == apart, pixels, found)

    return apart, back


def rounded(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Give values the type of pixels, integers rounded to the nearest."""
    if dtype.kind == "f":
        return values.astype(dtype)
    limits = np.iinfo(dtype)
    return values.round().clip(limits.min, limits.max).astype(dtype)


STOCK_SIDE, STOCK_VIEWS = 64, 8
"""Side of the views of which `Uncovered` takes colours, and how many there are along either side."""


class Uncovered:
    """Read parts of an image too large to be filled whole: hidden pixels show colours of seen ones.

    Which colour a hidden pixel takes depends on its place only, so parts that overlap agree. Pixels of
    which something is seen keep their own.

    Args:
        reader: of tiles, whose last channel is alpha; see `styleaug.tiles.Reader`.
    """

    def __init__(self, reader: Any):
        self.reader, self.shape, self.dtype, self.alpha = reader, reader.shape, reader.dtype, True
        self.stock = self.find_stock()

    def find_stock(self) -> np.ndarray:
        """Collect colours `(N, C)` from views spread over the image, or from the first rows that have any."""
        height, width, _ = self.shape
        high, wide = min(STOCK_SIDE, height), min(STOCK_SIDE, width)
        tops = sorted({int(top) for top in np.linspace(0, height - high, STOCK_VIEWS)})
        lefts = sorted({int(left) for left in np.linspace(0, width - wide, STOCK_VIEWS)})
        views = [self.reader.read(top, left, high, wide) for top in tops for left in lefts]
        found = np.concatenate([view[view[..., -1] > 0][:, :-1] for view in views])
        if len(found):
            return found
        for top in range(0, height, STOCK_SIDE):
            band = self.reader.read(top, 0, min(STOCK_SIDE, height - top), width)
            if band[..., -1].any():
                return band[band[..., -1] > 0][:, :-1]
        return found

    def read(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        """Give a part, `(height, width, C)`, with its alpha."""
        part = np.array(self.reader.read(top, left, height, width))
        return self.fill(part, part[..., -1] == 0, top, left)

    def thumbnail(self, short_side: int) -> np.ndarray:
        """Give the image reduced; where something hidden was mixed in, other colours are shown."""
        small = np.array(self.reader.thumbnail(short_side))
        return self.fill(small, small[..., -1] < small[..., -1].max(), 0, 0)

    def fill(self, part: np.ndarray, clear: np.ndarray, top: int, left: int) -> np.ndarray:
        """Put colours into some pixels of a part, by their places."""
        if len(self.stock) and clear.any():
            rows, columns = np.nonzero(clear)
            places = (rows + top) * self.shape[1] + columns + left
            part[clear, :-1] = self.stock[places % len(self.stock)]
        return part

    def covered(self, tiles: Iterable[np.ndarray], boxes: Iterable[tuple[int, ...]]) -> Iterator[np.ndarray]:
        """Pass styled tiles on, with the hidden pixels as they were."""
        for tile, box in zip(tiles, boxes, strict=True):
            part = self.reader.read(*box)
            yield np.where(part[..., -1:] == 0, part, tile)
