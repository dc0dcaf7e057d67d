"""Blend modes: how a styled image is laid over the image.

The formulas are those of W3C Compositing and Blending Level 1, section 10
(https://www.w3.org/TR/compositing-1/). The backdrop Cb is the image, the source Cs is the image in the full
style. The strength is the source's alpha, and the backdrop is opaque. So the result is
`(1 - strength) * Cb + strength * B(Cb, Cs)`.

Each function is B: it maps two tensors `(B, 3, H, W)` in [0, 1] to one. Values are those of the file, without
conversion to linear light, as in the specification. The functions are differentiable, and have no branches
that depend on values.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from styleaug.checks import number
from styleaug.errors import ConfigError
from styleaug.images import with_luminance

__all__ = ["BLENDS", "Blend", "check_blend"]

Colours = Float[Tensor, "B 3 H W"]
Blend = Literal["normal", "multiply", "screen", "overlay", "soft-light", "hard-light", "color", "luminosity"]


def normal(backdrop: Colours, source: Colours) -> Colours:
    """Return the source (section 10.1.1)."""
    return source


def multiply(backdrop: Colours, source: Colours) -> Colours:
    """Multiply both; never lighter than either (section 10.1.2)."""
    return backdrop * source


def screen(backdrop: Colours, source: Colours) -> Colours:
    """Multiply the complements; never darker than either (section 10.1.3)."""
    return 1 - (1 - backdrop) * (1 - source)


def overlay(backdrop: Colours, source: Colours) -> Colours:
    """Multiply where the backdrop is dark, screen where it is light (section 10.1.4)."""
    return hard_light(source, backdrop)


def hard_light(backdrop: Colours, source: Colours) -> Colours:
    """Multiply where the source is dark, screen where it is light (section 10.1.9)."""
    return torch.where(source <= 0.5, multiply(backdrop, 2 * source), screen(backdrop, 2 * source - 1))


def soft_light(backdrop: Colours, source: Colours) -> Colours:
    """Darken or lighten the backdrop, softly, as the source is dark or light (section 10.1.10)."""
    low = ((16 * backdrop - 12) * backdrop + 4) * backdrop
    # The root's slope at 0 is infinite; it is not used there, and times 0 it would be NaN.
    high = backdrop.clamp_min(0.25).sqrt()
    lighter = torch.where(backdrop <= 0.25, low, high) - backdrop
    darker = backdrop * (1 - backdrop)
    return backdrop + (2 * source - 1) * torch.where(source <= 0.5, darker, lighter)


def color(backdrop: Colours, source: Colours) -> Colours:
    """Set the luminosity of the source to the backdrop's: hue and saturation change (section 10.2.3).

    This is `SetLum(Cs, Lum(Cb))`. The weights of red, green and blue are .299, .587 and .114, as in PIL and
    the rest of this package. The specification rounds them to .3, .59 and .11. Grey images do not change.
    """
    return with_luminance(source, backdrop)


def luminosity(backdrop: Colours, source: Colours) -> Colours:
    """Set the luminosity of the backdrop to the source's: light and texture change (section 10.2.4).

    This is `SetLum(Cb, Lum(Cs))`, with the weights of `color`. Grey images become the styled ones.
    """
    return with_luminance(backdrop, source)


BLENDS: dict[Blend, Callable[[Tensor, Tensor], Tensor]] = {
    "normal": normal,
    "multiply": multiply,
    "screen": screen,
    "overlay": overlay,
    "soft-light": soft_light,
    "hard-light": hard_light,
    "color": color,
    "luminosity": luminosity,
}
"""B of each mode."""


def check_blend(blend: Any) -> Blend | None:
    """Check the name of a blend mode, or None.

    Raises:
        ConfigError: anything else.
    """
    if blend is None or (isinstance(blend, str) and blend in BLENDS):
        return blend  # pyright: ignore[reportReturnType]
    told = f"blend must be None or one of {', '.join(BLENDS)}, got {blend!r}."
    if number(blend) is not None:
        told += f" In films, the share of the previous frame is reuse={blend!r} now."
    raise ConfigError(told)
