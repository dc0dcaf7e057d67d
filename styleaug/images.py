"""Images in memory: PIL, NumPy and torch in any layout, to and from pixels `(B, C, H, W)`."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from PIL import Image
from torch import Tensor

from styleaug.errors import ImageError

__all__ = [
    "MOST_CHANNELS",
    "Uncovered",
    "ValueRange",
    "alpha_of",
    "as_unit",
    "check_range",
    "filled",
    "from_float",
    "luminance",
    "range_of",
    "resized",
    "straight",
    "to_float",
    "to_pixels",
    "to_unit",
    "with_luminance",
]

Back = Callable[[np.ndarray], np.ndarray]


def filled(colours: np.ndarray, alpha: np.ndarray) -> tuple[np.ndarray, Back]:
    """Fill transparent pixels with visible colours, so that statistics are those of the visible pixels.

    Hidden pixels take the colours of visible ones in row order. Each visible pixel is used equally often, so
    mean, deviation and histogram stay those of the visible pixels. A pixel of alpha a in (0, 1) is mixed with
    such a colour, with weight 1 - a.

    Args:
        colours: `(H, W)` or `(H, W, C)`, integers or floats.
        alpha: `(H, W)`, any range; its largest value is opaque.

    Returns:
        Colours of the same shape and type (the same object if alpha is constant), and a function that
        restores the hidden pixels in a styled image, bit by bit, and removes the mixed-in colours. If no
        pixel is visible, that function returns the input.
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
            # Return unchanged pixels as they were; float sums could differ in the last bit.
            found[part] = np.where(found[part] == mixed[part], own[part], moved)
        found[hidden] = own[hidden]
        result[rows] = found
        return result.reshape(styled.shape)

    return seen.reshape(colours.shape), back


def stand_ins(flat: np.ndarray, share: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Choose a visible colour for each pixel in `rows`: in order, each as often as its share."""
    weights = share.astype(np.float64)
    if flat.dtype.kind == "f":
        weights[~np.isfinite(flat).all(axis=1)] = 0  # NaN is not a colour
    total, lacking = np.cumsum(weights), 1 - share[rows].astype(np.float64)
    if not total[-1]:
        return flat[rows]
    places = (np.cumsum(lacking) - lacking / 2) * (total[-1] / lacking.sum())
    chosen = np.searchsorted(total, places, side="right")
    return flat[np.minimum(chosen, np.flatnonzero(weights)[-1])]


def gains(before: np.ndarray, after: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Return the factor by which a style stretches colour differences, for each channel."""
    with np.errstate(invalid="ignore", over="ignore"):
        weights = share[:, None] / share.sum(dtype=np.float64)
        centre = before - (weights * before).sum(axis=0)
        spread = (weights * centre * centre).sum(axis=0)
        slope = (weights * centre * after).sum(axis=0) / np.where(spread > 0, spread, 1)
    return np.where((spread > 0) & np.isfinite(slope), slope, 1.0)


def straight(pixels: np.ndarray) -> tuple[np.ndarray, Back]:
    """Undo the multiplication of colours by alpha (premultiplied to straight).

    Args:
        pixels: `(..., C)`, the last channel alpha; integers over their whole range, or floats in [0, 1].

    Returns:
        Pixels with straight colours, and a function that multiplies styled pixels again; unchanged pixels
        come back bit by bit.
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
    """Return values as `dtype`; integers are rounded to the nearest and clipped."""
    if dtype.kind == "f":
        return values.astype(dtype)
    limits = np.iinfo(dtype)
    return values.round().clip(limits.min, limits.max).astype(dtype)


STOCK_SIDE, STOCK_VIEWS = 64, 8
"""Side in pixels of the views from which `Uncovered` takes colours, and their number along each axis."""


class Uncovered:
    """Read parts of a large image, with hidden pixels filled by visible colours.

    The colour of a hidden pixel depends only on its position, so parts that overlap agree. Visible and partly
    visible pixels keep their colour.

    Args:
        reader: reads tiles whose last channel is alpha; see `styleaug.offline.tiles.Reader`.
    """

    reader: Any
    shape: Any
    dtype: Any
    alpha: bool

    def __init__(self, reader: Any):
        self.reader, self.shape, self.dtype, self.alpha = reader, reader.shape, reader.dtype, True
        self.stock: np.ndarray = self.find_stock()

    def find_stock(self) -> np.ndarray:
        """Collect visible colours `(N, C)` from views spread over the image, else from the first rows."""
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
        """Return a part `(height, width, C)` with its alpha."""
        part = np.array(self.reader.read(top, left, height, width))
        return self.fill(part, part[..., -1] == 0, top, left)

    def thumbnail(self, short_side: int) -> np.ndarray:
        """Return the reduced image; pixels that mix in hidden ones are filled with other colours."""
        small = np.array(self.reader.thumbnail(short_side))
        return self.fill(small, small[..., -1] < small[..., -1].max(), 0, 0)

    def fill(self, part: np.ndarray, clear: np.ndarray, top: int, left: int) -> np.ndarray:
        """Fill the pixels `clear` of a part with colours chosen by their position."""
        if len(self.stock) and clear.any():
            rows, columns = np.nonzero(clear)
            places = (rows + top) * self.shape[1] + columns + left
            part[clear, :-1] = self.stock[places % len(self.stock)]
        return part

    def covered(self, tiles: Iterable[np.ndarray], boxes: Iterable[tuple[int, ...]]) -> Iterator[np.ndarray]:
        """Yield styled tiles with their hidden pixels restored."""
        for tile, box in zip(tiles, boxes, strict=True):
            part = self.reader.read(*box)
            yield np.where(part[..., -1:] == 0, part, tile)


MAX_OF = {torch.uint8: 255, torch.uint16: 65535}
_SIGNED = (torch.int16, torch.int32)
"""Integer types without a known black and white; they need a `value_range`."""
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
TOLERANCE = 1e-3
"""How far floats may leave [0, 1] through rounding before they are an error."""
MOST_CHANNELS = 16
"""Most channels of an image. More mean that an array has no channel axis, or has it in another place."""

PLAIN_MODES = ("L", "RGB", "I;16", "I", "F")
"""Modes of PIL that convert to an array directly: no transparency, native byte order."""

PIL_MODES = ("L", "LA", "RGB", "RGBA", "I;16", "I;16B", "I;16L", "I;16N", "I", "F")
CONVERSIONS = {"1": "L", "PA": "RGBA", "RGBa": "RGBA", "La": "LA"}
"""Target of the conversion from other PIL modes; modes that are missing here become RGB."""
Restore = Callable[[Tensor], Any]
ValueRange = tuple[float, float] | Literal["auto"] | None
"""Values of black and white; see `range_of`."""


def to_pixels(image: Any, *, most_channels: int | None = None) -> tuple[Shaped[Tensor, "B C H W"], Restore]:
    """View any image or batch as pixels `(B, C, H, W)`, in its own dtype.

    Args:
        image: a tensor `(C, H, W)`, `(B, C, H, W)` or with more leading axes, an array `(H, W)`,
            `(H, W, C)` or `(N, H, W, C)`, or a PIL image of mode L, LA, RGB, RGBA, I;16 (of any byte
            order), I or F.
        most_channels: largest C; None allows only 1 and 3.

    Returns:
        The pixels, and a function that converts pixels of the same shape back to the form of `image`.
        Transparency of PIL images is removed and put back later; hidden pixels are filled with visible
        colours, see `filled`.

    Raises:
        ImageError: an unknown type, mode, dtype or number of channels, or no pixels.
    """
    if isinstance(image, Tensor):
        pixels, restore = tensor_pixels(image)
    elif isinstance(image, np.ndarray):
        pixels, restore = array_pixels(image)
    elif isinstance(image, Image.Image):
        pixels, restore = pil_pixels(image)
    else:
        raise ImageError(f"expected a PIL image, tensor or array, got {type(image).__name__}.")
    many = pixels.shape[1] not in (1, 3) and not pixels.shape[1] <= (most_channels or 0)
    if many or 0 in pixels.shape[1:] or pixels.dtype not in (*MAX_OF, *FLOATS, *_SIGNED):
        raise no_pixels(image, pixels, most_channels if many else 0)
    return pixels, restore


def no_pixels(image: Any, pixels: Tensor, most_channels: int | None) -> ImageError:
    """Return the error for an image with channels, dtype or size that no generator accepts.

    Args:
        image: the image as the user gave it.
        pixels: its pixels.
        most_channels: allowed number of channels; None means 1 or 3, and 0 that channels are not the problem.
    """
    shape = tuple(image_shape(image))
    if most_channels != 0:
        allowed = "1 or 3 channels" if most_channels is None else f"at most {most_channels} channels"
        return ImageError(
            f"images must have {allowed}, got {pixels.shape[1]} in shape {shape}. "
            "Tensors are (..., C, H, W), arrays (H, W, C)."
        )
    if pixels.dtype not in (*MAX_OF, *FLOATS, *_SIGNED):
        return ImageError(f"images must be uint8, uint16 or float, got {pixels.dtype}. {advice(pixels)}")
    return ImageError(f"images need at least one pixel, got shape {shape}.")


def tensor_pixels(image: Tensor) -> tuple[Tensor, Restore]:
    """Convert a tensor as `to_pixels` does; leading axes are flattened into one."""
    if image.ndim < 3:
        raise ImageError(f"image tensors must be (C, H, W) or (B, C, H, W), got {tuple(image.shape)}.")
    shape = image.shape
    if image.ndim == 4:
        return image, lambda pixels: pixels
    if image.ndim == 3:
        return image[None], lambda pixels: pixels[0]
    return image.flatten(0, -4), lambda pixels: pixels.reshape(shape)


def array_pixels(image: np.ndarray) -> tuple[Tensor, Restore]:
    """Convert an array as `to_pixels` does; channels are last."""
    if image.ndim not in (2, 3, 4):
        raise ImageError(f"image arrays must be (H, W), (H, W, C) or (N, H, W, C), got {image.shape}.")
    signed = image.dtype.name in ("int16", "int32")
    if not signed and image.dtype.name not in ("uint8", "uint16", "float16", "float32", "float64"):
        raise ImageError(f"image arrays must be uint8, uint16 or float, got {image.dtype}. {advice(image)}")
    tensor = torch.from_numpy(np.array(image, dtype=image.dtype.newbyteorder("="), order="C"))
    shape = image.shape
    hwc = tensor[..., None] if image.ndim == 2 else tensor
    nhwc = hwc[None] if image.ndim < 4 else hwc
    return nhwc.permute(0, 3, 1, 2), lambda pixels: pixels.permute(0, 2, 3, 1).reshape(shape).numpy()


def advice(image: Any) -> str:
    """Return advice how to convert an array or tensor of an unsupported dtype, from its values."""
    convert = ".to(torch.{})" if isinstance(image, Tensor) else ".astype(np.{})"
    kind = str(image.dtype).removeprefix("torch.")
    if kind == "bool":
        return f"A mask is no image; as one, it is 255 * mask{convert.format('uint8')}."
    if "int" not in kind:
        return f"Convert them with images{convert.format('float32')}, if they are pixels at all."
    if 0 in image.shape or (isinstance(image, Tensor) and image.device.type != "cpu"):
        return f"Of values in 0..255 use images{convert.format('uint8')}."
    values = image.double() if isinstance(image, Tensor) else image
    low, high = int(values.min()), int(values.max())
    told = f"These lie in {low}..{high}; use images"
    for name, most in (("uint8", 255), ("uint16", 65535)):
        if 0 <= low <= high <= most:
            return f"{told}{convert.format(name)}."
    wanted = convert.format("float32")
    return f"{told}{wanted} with value_range=(low, high), the values of black and white."


def pil_pixels(image: Image.Image) -> tuple[Tensor, Restore]:
    """See `to_pixels`."""
    if image.mode not in PLAIN_MODES or "transparency" in image.info or 0 in image.size:
        return rare_pixels(image)
    pixels, restore = array_pixels(np.asarray(image))

    def to_pil(styled: Tensor) -> Image.Image:
        result = Image.fromarray(restore(styled))
        result.info.update(image.info)
        return result

    return pixels, to_pil


def rare_pixels(image: Image.Image) -> tuple[Tensor, Restore]:
    """Convert a PIL image of a mode beyond `PLAIN_MODES` as `to_pixels` does; split off transparency.

    Raises:
        ImageError: an unsupported mode, or no pixels.
    """
    if image.mode not in PIL_MODES:
        wanted = CONVERSIONS.get(image.mode, "RGBA" if "transparency" in image.info else "RGB")
        raise ImageError(
            f"PIL images must have mode {', '.join(PIL_MODES)}, got {image.mode!r}. "
            f"Use image.convert({wanted!r}) first."
        )
    if 0 in image.size:
        raise ImageError(f"images need at least one pixel, got {image.size[0]} x {image.size[1]}.")
    values, alpha = np.asarray(image), alpha_of(image)
    apart = image.mode in ("LA", "RGBA")
    colours = values[..., 0] if image.mode == "LA" else values[..., :3] if apart else values
    seen, show = (colours, np.asarray) if alpha is None else filled(colours, alpha)
    pixels, restore = array_pixels(seen)

    def to_pil(styled: Tensor) -> Image.Image:
        found = show(restore(styled))
        if apart and alpha is not None:
            found = np.dstack([found, alpha])
        elif alpha is not None:
            found = off_key(found, image.info["transparency"], alpha)
        result = from_array(found, image.mode)
        result.info.update(image.info)
        return result

    return pixels, to_pil


def from_array(values: np.ndarray, mode: str) -> Image.Image:
    """Return a PIL image of one of `PIL_MODES`; `Image.fromarray` has only one 16-bit byte order."""
    if mode not in ("I;16B", "I;16L", "I;16N"):
        return Image.fromarray(values)
    result = Image.new(mode, values.shape[::-1])
    result.frombytes(
        values.astype(">u2" if mode == "I;16B" else "=u2" if mode == "I;16N" else "<u2").tobytes()
    )
    return result


def alpha_of(image: Image.Image) -> np.ndarray | None:
    """Return the alpha `(H, W)` of a PIL image, from its channel or PNG's transparent colour; else None."""
    if image.mode in ("LA", "RGBA"):
        return np.asarray(image)[..., -1]
    key = image.info.get("transparency")
    if image.mode == "RGB" and isinstance(key, tuple) and len(key) == 3:
        return (np.asarray(image) != np.array(key)).any(axis=-1)
    if (image.mode == "L" or image.mode.startswith("I;16")) and isinstance(key, int):
        return np.asarray(image) != key
    return None


def off_key(styled: np.ndarray, key: Any, seen: np.ndarray) -> np.ndarray:
    """Change visible pixels that got the transparent colour by one step, so that they stay visible."""
    found = styled.reshape(*seen.shape, -1).copy()
    clash = seen & (found == np.array(key)).all(axis=-1)
    found[clash, -1] += np.where(found[clash, -1] > 0, -1, 1).astype(styled.dtype)
    return found.reshape(styled.shape)


def image_shape(image: Any) -> tuple[int, ...]:
    """Return an image's shape, for a message."""
    if isinstance(image, Image.Image):
        return (image.height, image.width, len(image.getbands()))
    return tuple(image.shape)


def check_range(pixels: Shaped[Tensor, "B C H W"], value_range: ValueRange = None) -> None:
    """Check that images are finite and, without a `value_range`, unsigned integers or floats in [0, 1].

    Values on a GPU are not checked, because reading the result would stall the device.

    Raises:
        ImageError: the message names the range or dtype that was found.
    """
    if value_range is None and pixels.dtype in _SIGNED:
        raise ImageError(
            f"images must be uint8, uint16 or float in [0, 1], got {pixels.dtype}, whose values say nothing "
            "of what is black and white. Give value_range=(low, high), such as (-160, 240) for CT in HU, "
            'or value_range="auto".'
        )
    if pixels.dtype not in FLOATS or pixels.device.type != "cpu" or pixels.numel() == 0:
        return
    low, high = (float(x) for x in torch.aminmax(pixels.detach()))
    _check_finite(pixels, low, high)
    if value_range is None and not (low >= -TOLERANCE and high <= 1 + TOLERANCE):
        raise ImageError(
            f"images must lie in [0, 1], got [{low:.3g}, {high:.3g}]. Stylise before Normalize, "
            "scale 0..255 by 1/255, and clamp what bicubic resizing overshoots."
        )


def _check_finite(values: Tensor, low: float, high: float) -> None:
    """Check that values are finite.

    Args:
        values: any shape.
        low: their minimum, NaN if a value is.
        high: their maximum.

    Raises:
        ImageError: the message names the kind and number of bad values.
    """
    if -math.inf < low <= high < math.inf:  # written so that NaN fails too
        return
    wrong = int((~values.detach().isfinite()).sum())
    kind = "NaN" if math.isnan(low) else "infinite values"
    raise ImageError(
        f"images must be finite, got {kind}: {wrong:,} of {values.numel():,} values are no number. Look for "
        "a division by zero before the style, or replace them, for example with torch.nan_to_num."
    )


def to_float(
    pixels: Shaped[Tensor, "*B C H W"], dtype: torch.dtype = torch.float32
) -> Float[Tensor, "*B C H W"]:
    """Return pixels as floats in [0, 1]."""
    if pixels.dtype in MAX_OF:
        return pixels.to(dtype).mul_(1 / MAX_OF[pixels.dtype])
    return pixels.to(dtype).clamp(0, 1)


BAND_PIXELS = 2**22
"""Number of pixels that `resized` holds as floats at a time."""


def resized(pixels: Shaped[Tensor, "B C H W"], size: tuple[int, int]) -> Float[Tensor, "B C H2 W2"]:
    """Return pixels as floats in [0, 1], resized bilinearly with antialiasing.

    It works on bands of rows, so a large image is never held whole as floats.
    """
    height, width = pixels.shape[-2:]
    if (height, width) == size:
        return to_float(pixels)
    rows = max(1, BAND_PIXELS // width)
    bands = [
        F.interpolate(to_float(band), size=(band.shape[-2], size[1]), mode="bilinear", antialias=True)
        for band in pixels.split(rows, dim=-2)
    ]
    narrow = torch.cat(bands, dim=-2)
    return F.interpolate(narrow, size=size, mode="bilinear", antialias=True).clamp_(0, 1)


def from_float(values: Float[Tensor, "*B C H W"], dtype: torch.dtype) -> Shaped[Tensor, "*B C H W"]:
    """Return values in [0, 1] as `dtype`; integers use their whole range and are rounded to the nearest."""
    if dtype in MAX_OF:
        scaled = values.mul(MAX_OF[dtype]).round_().clamp_(0, MAX_OF[dtype])
        return scaled.to(torch.int32).to(dtype) if dtype == torch.uint16 else scaled.to(dtype)
    return values.to(dtype)


def to_unit(
    values: Shaped[Tensor, "..."], low: float, high: float
) -> tuple[Float[Tensor, "..."], Callable[[Tensor], Tensor]]:
    """Map [low, high] to [0, 1]; clipped values are restored on the way back.

    So air outside a CT window keeps its distance to the border of the window.

    Args:
        values: any dtype and shape.
        low: the value that becomes 0, such as -160 HU.
        high: the value that becomes 1; greater than `low`.

    Returns:
        The mapped values in float32, and a function that maps styled values of the same shape back to
        the range and dtype of `values`; integers are rounded to the nearest.

    Raises:
        ImageError: values are NaN or infinite, or `low` is not below `high`.
    """
    if not -math.inf < low < high < math.inf:  # written so that NaN fails too
        raise ImageError(f"the range must be (low, high) with low < high, got ({low}, {high}).")
    if values.dtype.is_floating_point and values.numel():
        _check_finite(values, *(float(x) for x in torch.aminmax(values.detach())))
    return between(values, low, high)


def between(
    values: Shaped[Tensor, "..."], low: Any, high: Any
) -> tuple[Float[Tensor, "..."], Callable[[Tensor], Tensor]]:
    """Map as `to_unit` does, without checks; `low` and `high` may also be tensors."""
    # float32 holds whole numbers only up to 2^24.
    wide = torch.float64 if values.dtype in (torch.int32, torch.float64) else torch.float32
    full = values.to(wide)
    inside = full.clamp(low, high)

    def back(styled: Tensor) -> Tensor:
        moved = styled.to(wide).mul(high - low).add_(low).add_(full - inside)
        if values.dtype.is_floating_point:
            return moved.to(values.dtype)
        limits = torch.iinfo(values.dtype)
        return moved.round_().clamp_(limits.min, limits.max).to(torch.int32).to(values.dtype)

    return ((inside - low) / (high - low)).to(torch.float32), back


def as_unit(
    images: Shaped[Tensor, "*B C H W"], value_range: Any, *, dtype: torch.dtype = torch.float32
) -> tuple[Float[Tensor, "*B C H W"], Callable[[Tensor], Tensor]]:
    """Return checked images as floats in [0, 1], and a function that restores range and dtype.

    Args:
        images: any supported dtype.
        value_range: from `range_of`.
        dtype: type of the floats if `value_range` is None; otherwise they are float32.
    """
    if value_range is None:
        return to_float(images, dtype), lambda styled: from_float(styled, images.dtype)
    return between(images, *value_range)


_TAILS = 0.005
"""Share of pixels that `"auto"` ignores at each end: glare, defects, metal."""
RANGE_GRID = 16384
"""Approximate number of pixels that `"auto"` reads from each image or volume."""


def range_of(images: Shaped[Tensor, "K ..."], value_range: ValueRange) -> Any:
    """Return the range of each image; `"auto"` is its own 0.5th and 99.5th percentile.

    Percentiles are read on a regular grid. If they are equal, the image counts as flat, and its styled
    version has no other values.

    Args:
        images: `(K, C, H, W)`, or volumes `(K, T, C, H, W)`.
        value_range: the transform's option.

    Returns:
        None, two numbers, or two tensors `(K, 1, ...)`.
    """
    if value_range != "auto":
        return value_range
    if images.ndim == 5:
        images = images[:, :: math.ceil(images.shape[1] / 16)]
    step = math.ceil(math.sqrt(math.prod(images.shape[1:]) / RANGE_GRID))
    thinned = images[..., ::step, ::step].flatten(1).detach()
    wide = torch.float64 if images.dtype in (torch.int32, torch.float64) else torch.float32
    values = thinned.to(wide).sort(dim=1).values
    last = values.shape[1] - 1
    low, high = values[:, round(_TAILS * last)], values[:, round((1 - _TAILS) * last)]
    high = torch.maximum(high, low + (1e-6 * low.abs()).clamp_min(1e-30))
    shape = (-1, *[1] * (images.ndim - 1))
    return low.view(shape), high.view(shape)


def luminance(images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 1 H W"]:
    """Return the brightness of RGB images (ITU-R BT.601, as in PIL's mode L)."""
    red, green, blue = images.unbind(dim=1)
    return (0.299 * red + 0.587 * green + 0.114 * blue)[:, None]


def with_luminance(
    styled: Float[Tensor, "B 3 H W"], images: Float[Tensor, "B 3 H W"]
) -> Float[Tensor, "B 3 H W"]:
    """Return `styled` with the brightness of `images` at each pixel, and its own chroma.

    If a colour would leave [0, 1], its chroma is reduced and the brightness kept.
    """
    wanted = luminance(images)
    chroma = styled - luminance(styled)
    # The largest share of the chroma for which every channel stays in [0, 1].
    room = torch.where(chroma > 0, 1 - wanted, wanted) / chroma.abs().clamp_min(1e-6)
    return (wanted + chroma * room.amin(dim=1, keepdim=True).clamp_max(1)).clamp_(0, 1)
