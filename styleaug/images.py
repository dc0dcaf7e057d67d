"""Images in memory: PIL, NumPy and torch in any layout, to and from pixels `(B, C, H, W)`."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped
from PIL import Image
from torch import Tensor

from styleaug.errors import ImageError

__all__ = ["check_range", "from_float", "luminance", "to_float", "to_pixels", "with_luminance"]

MAX_OF = {torch.uint8: 255, torch.uint16: 65535}
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
TOLERANCE = 1e-3
"""How far floats may leave [0, 1] through rounding before they are an error."""

PIL_MODES = {"L": 1, "LA": 1, "RGB": 3, "RGBA": 3, "I;16": 1}

Restore = Callable[[Tensor], Any]


def to_pixels(image: Any) -> tuple[Shaped[Tensor, "B C H W"], Restore]:
    """View any image or batch as pixels `(B, C, H, W)` with C of 1 or 3, in its own dtype.

    Args:
        image: a tensor `(C, H, W)`, `(B, C, H, W)` or with more leading axes, an array `(H, W)`,
            `(H, W, C)` or `(N, H, W, C)`, or a PIL image of mode L, LA, RGB, RGBA or I;16.

    Returns:
        The pixels, and a function that gives pixels of the same shape back in the form that
        `image` had. Transparency is kept aside and put back.

    Raises:
        ImageError: another type, mode, dtype, number of channels, or no pixels at all.
    """
    if isinstance(image, Tensor):
        pixels, restore = tensor_pixels(image)
    elif isinstance(image, np.ndarray):
        pixels, restore = array_pixels(image)
    elif isinstance(image, Image.Image):
        pixels, restore = pil_pixels(image)
    else:
        raise ImageError(f"expected a PIL image, tensor or array, got {type(image).__name__}.")
    if pixels.shape[1] not in (1, 3):
        raise ImageError(
            f"images must have 1 or 3 channels, got {pixels.shape[1]} in shape {tuple(image_shape(image))}. "
            "Tensors are (..., C, H, W), arrays (H, W, C)."
        )
    if pixels.dtype not in MAX_OF and pixels.dtype not in FLOATS:
        raise ImageError(
            f"images must be uint8, uint16 or float, got {pixels.dtype}. Convert them, "
            "for example with v2.ToDtype(torch.float32, scale=True)."
        )
    if 0 in pixels.shape[1:]:
        raise ImageError(f"images need at least one pixel, got shape {tuple(image_shape(image))}.")
    return pixels, restore


def tensor_pixels(image: Tensor) -> tuple[Tensor, Restore]:
    """See `to_pixels`; leading axes are flattened into one."""
    if image.ndim < 3:
        raise ImageError(f"image tensors must be (C, H, W) or (B, C, H, W), got {tuple(image.shape)}.")
    shape = image.shape
    if image.ndim == 4:
        return image, lambda pixels: pixels
    if image.ndim == 3:
        return image[None], lambda pixels: pixels[0]
    return image.flatten(0, -4), lambda pixels: pixels.reshape(shape)


def array_pixels(image: np.ndarray) -> tuple[Tensor, Restore]:
    """See `to_pixels`; arrays have their channels last."""
    if image.ndim not in (2, 3, 4):
        raise ImageError(f"image arrays must be (H, W), (H, W, C) or (N, H, W, C), got {image.shape}.")
    if image.dtype.kind not in "fu" or image.dtype.itemsize > 8 or image.dtype.name in ("uint32", "uint64"):
        raise ImageError(f"image arrays must be uint8, uint16 or float, got {image.dtype}.")
    tensor = torch.from_numpy(np.array(image, dtype=image.dtype.newbyteorder("="), order="C"))
    shape = image.shape
    hwc = tensor[..., None] if image.ndim == 2 else tensor
    nhwc = hwc[None] if image.ndim < 4 else hwc
    return nhwc.permute(0, 3, 1, 2), lambda pixels: pixels.permute(0, 2, 3, 1).reshape(shape).numpy()


def pil_pixels(image: Image.Image) -> tuple[Tensor, Restore]:
    """See `to_pixels`; transparency is split off."""
    if image.mode not in PIL_MODES:
        raise ImageError(
            f"PIL images must have mode {', '.join(PIL_MODES)}, got {image.mode!r}. "
            "Use image.convert('RGB') first."
        )
    if 0 in image.size:
        raise ImageError(f"images need at least one pixel, got {image.size[0]} x {image.size[1]}.")
    alpha = image.getchannel("A") if image.mode in ("LA", "RGBA") else None
    mode = {"LA": "L", "RGBA": "RGB"}.get(image.mode, image.mode)
    pixels, restore = array_pixels(np.asarray(image.convert(mode) if alpha else image))

    def to_pil(styled: Tensor) -> Image.Image:
        result = Image.fromarray(restore(styled))
        if alpha:
            result.putalpha(alpha)
        result.info.update(image.info)
        return result

    return pixels, to_pil


def image_shape(image: Any) -> tuple[int, ...]:
    """Tell an image's shape for a message."""
    if isinstance(image, Image.Image):
        return (image.height, image.width, len(image.getbands()))
    return tuple(image.shape)


def check_range(pixels: Shaped[Tensor, "B C H W"]) -> None:
    """Refuse NaN and floats outside [0, 1].

    Integers cannot be wrong. Off the CPU nothing is checked, since reading the answer would stall
    the device.

    Raises:
        ImageError: with the range that was found.
    """
    if pixels.dtype not in FLOATS or pixels.device.type != "cpu" or pixels.numel() == 0:
        return
    low, high = (float(x) for x in torch.aminmax(pixels.detach()))
    if not (low >= -TOLERANCE and high <= 1 + TOLERANCE):  # written so that NaN fails too
        raise ImageError(
            f"images must lie in [0, 1], got [{low:.3g}, {high:.3g}]. Stylise before Normalize, "
            "scale 0..255 by 1/255, and clamp what bicubic resizing overshoots."
        )


def to_float(pixels: Shaped[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
    """Give pixels as float32 in [0, 1]."""
    if pixels.dtype in MAX_OF:
        return pixels.to(torch.float32).mul_(1 / MAX_OF[pixels.dtype])
    return pixels.to(torch.float32).clamp(0, 1)


def from_float(values: Float[Tensor, "B C H W"], dtype: torch.dtype) -> Shaped[Tensor, "B C H W"]:
    """Give values in [0, 1] as `dtype`, integers rounded to the nearest over their whole range."""
    if dtype in MAX_OF:
        scaled = values.mul(MAX_OF[dtype]).round_().clamp_(0, MAX_OF[dtype])
        return scaled.to(torch.int32).to(dtype) if dtype == torch.uint16 else scaled.to(dtype)
    return values.to(dtype)


def luminance(images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 1 H W"]:
    """Weigh the channels to brightness (ITU-R BT.601, as PIL's mode L)."""
    red, green, blue = images.unbind(dim=1)
    return (0.299 * red + 0.587 * green + 0.114 * blue)[:, None]


def with_luminance(
    styled: Float[Tensor, "B 3 H W"], images: Float[Tensor, "B 3 H W"]
) -> Float[Tensor, "B 3 H W"]:
    """Give `styled` the brightness of `images`, pixel by pixel, and keep its chroma.

    Where the chroma does not fit into [0, 1] at that brightness it is reduced, not the brightness.
    """
    wanted = luminance(images)
    chroma = styled - luminance(styled)
    # The largest share of the chroma that stays inside [0, 1] in every channel.
    room = torch.where(chroma > 0, 1 - wanted, wanted) / chroma.abs().clamp_min(1e-6)
    return (wanted + chroma * room.amin(dim=1, keepdim=True).clamp_max(1)).clamp_(0, 1)
