"""Low and high spatial frequencies of what a style changes, apart.

A style's light and colours vary slowly over an image; its strokes and texture vary fast. The border between
the two is a Gaussian whose width is a share of the image's shorter side, so an image of another size is
treated the same. The filter is symmetric: nothing in the image moves, and labels stay valid.
"""

import math
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from styleaug.errors import ConfigError

__all__ = ["BAND_NAMES", "Bands", "check_bands", "low_pass"]

Bands = Literal["low", "high"]
BAND_NAMES = get_args(Bands)

BORDER_WIDTH = 1 / 24
"""Standard deviation of the Gaussian, as a share of the shorter side: 9 pixels of 224."""


def check_bands(bands: Any) -> Bands | None:
    """Check `"low"`, `"high"` or None.

    Raises:
        ConfigError: anything else.
    """
    if bands is None or (isinstance(bands, str) and bands in BAND_NAMES):
        return bands  # pyright: ignore[reportReturnType]
    raise ConfigError(f"bands must be None or one of {', '.join(BAND_NAMES)}, got {bands!r}.")


def low_pass(change: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
    """Blur by the Gaussian of `BORDER_WIDTH`, with the image mirrored at its borders; constants stay."""
    sigma = BORDER_WIDTH * min(change.shape[-2:])
    for axis in (2, 3):
        length = change.shape[axis]
        if length == 1:
            continue
        # Along a mirrored axis the circular convolution of the transform wraps nowhere.
        spectrum = torch.fft.rfft(torch.cat([change, change.flip(axis)], dim=axis), dim=axis)
        cycles = torch.fft.rfftfreq(2 * length, device=change.device, dtype=change.dtype)
        gain = torch.exp(-2 * (math.pi * sigma * cycles) ** 2)
        spectrum = spectrum * (gain[:, None] if axis == 2 else gain)
        change = torch.fft.irfft(spectrum, 2 * length, dim=axis).narrow(axis, 0, length)
    return change
