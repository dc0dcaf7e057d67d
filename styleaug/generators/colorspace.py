"""Conversions between sRGB, CIELAB, YCbCr, HSV and HED: pure functions of `(B, 3, H, W)` tensors.

The matrices are applied as multiply-adds of planes by Python numbers. On the CPU this is as fast as
a matmul. It has full precision under autocast and TF32, and needs no constant on the device. The
linear parts of the curves are joined by clamping, so values and gradients stay finite at 0.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = [
    "hed_to_rgb",
    "hsv_to_rgb",
    "lab_to_rgb",
    "luma",
    "rgb_to_hed",
    "rgb_to_hsv",
    "rgb_to_lab",
    "rgb_to_ycbcr",
    "ycbcr_to_rgb",
]

_Row = tuple[float, float, float]

# Linear sRGB to XYZ (IEC 61966-2-1), each row divided by its entry of the D65 white point.
RGB_TO_XYZ: tuple[_Row, ...] = (
    (0.412453 / 0.95047, 0.357580 / 0.95047, 0.180423 / 0.95047),
    (0.212671, 0.715160, 0.072169),
    (0.019334 / 1.08883, 0.119193 / 1.08883, 0.950227 / 1.08883),
)
XYZ_TO_RGB: tuple[_Row, ...] = (
    (3.079980302, -1.537151516, -0.542821308),
    (-0.921247752, 1.875990001, 0.045247340),
    (0.052890461, -0.204041338, 1.151232012),
)

# Where each curve changes from its linear part to its power law, and the slope of the linear part.
GAMMA_KNEE, GAMMA_SLOPE = 0.04045, 1 / 12.92
LINEAR_KNEE = ((GAMMA_KNEE + 0.055) / 1.055) ** 2.4
LAB_KNEE, LAB_SLOPE = 6 / 29, 3 * (6 / 29) ** 2

# ITU-R BT.601: weights of luma, and divisors that scale the colour differences to [-0.5, 0.5].
LUMA: _Row = (0.299, 0.587, 0.114)
CB_SPAN, CR_SPAN = 1.772, 1.402

# Densities in red, green and blue (rows) of haematoxylin, eosin and DAB (Ruifrok & Johnston 2001); inverse.
HED_TO_DENSITY: tuple[_Row, ...] = ((0.65, 0.07, 0.27), (0.70, 0.99, 0.57), (0.29, 0.11, 0.78))
DENSITY_TO_HED: tuple[_Row, ...] = (
    (1.877982737, -0.065908062, -0.601907363),
    (-1.007678686, 1.134730372, -0.480414188),
    (-0.556115818, -0.135521799, 1.573588072),
)
HED_FLOOR = 1e-6
"""Least light in [0, 1], so that the logarithm of black is finite."""


def rgb_to_lab(images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
    """Convert sRGB in [0, 1] to CIELAB under D65: L in [0, 100], a and b within about 110 of 0."""
    linear = images.clamp(min=GAMMA_KNEE).add_(0.055).mul_(1 / 1.055).pow_(2.4)
    linear = linear.add_(images.clamp(max=GAMMA_KNEE).sub_(GAMMA_KNEE), alpha=GAMMA_SLOPE)
    xyz = transform(linear, RGB_TO_XYZ)
    knee = LAB_KNEE**3
    curved = xyz.clamp(min=knee).pow_(1 / 3)
    curved = curved.add_(xyz.clamp(max=knee).sub_(knee), alpha=1 / LAB_SLOPE)
    x, y, z = curved.unbind(1)
    return torch.stack([(y * 116).sub_(16), (x - y).mul_(500), (y - z).mul_(200)], dim=1)


def lab_to_rgb(lab: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
    """Convert CIELAB under D65 to sRGB; colours outside the gamut are clamped to [0, 1]."""
    light, a, b = lab.unbind(1)
    y = (light + 16).mul_(1 / 116)
    curved = torch.stack([y.add(a, alpha=1 / 500), y, y.sub(b, alpha=1 / 200)], dim=1)
    xyz = curved.clamp(min=LAB_KNEE).pow_(3)
    xyz = xyz.add_(curved.clamp(max=LAB_KNEE).sub_(LAB_KNEE), alpha=LAB_SLOPE)
    linear = transform(xyz, XYZ_TO_RGB)
    gamma = linear.clamp(min=LINEAR_KNEE).pow_(1 / 2.4).mul_(1.055).sub_(0.055)
    return gamma.add_(linear.clamp(max=LINEAR_KNEE).sub_(LINEAR_KNEE), alpha=1 / GAMMA_SLOPE).clamp_(0, 1)


def luma(images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 1 H W"]:
    """Compute the BT.601 luma Y of RGB images, in [0, 1]."""
    return weigh(images, LUMA)[:, None]


def rgb_to_ycbcr(images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
    """Convert RGB in [0, 1] to full-range BT.601 YCbCr in [0, 1], grey at Cb = Cr = 0.5 (as in JPEG)."""
    red, _, blue = images.unbind(1)
    y = weigh(images, LUMA)
    cb, cr = (blue - y).mul_(1 / CB_SPAN).add_(0.5), (red - y).mul_(1 / CR_SPAN).add_(0.5)
    return torch.stack([y, cb, cr], dim=1)


def ycbcr_to_rgb(ycbcr: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
    """Convert full-range BT.601 YCbCr to RGB, without clamping to [0, 1]."""
    y, cb, cr = ycbcr.unbind(1)
    red = y.add(cr, alpha=CR_SPAN).sub_(CR_SPAN / 2)
    blue = y.add(cb, alpha=CB_SPAN).sub_(CB_SPAN / 2)
    green = y.sub(red, alpha=LUMA[0]).sub_(blue, alpha=LUMA[2]).mul_(1 / LUMA[1])
    return torch.stack([red, green, blue], dim=1)


def rgb_to_hsv(images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
    """Convert RGB in [0, 1] to hue, saturation and value in [0, 1]; hue is 0 at green, not at red.

    Blue is 1/3, magenta 1/2 and red 2/3, so hue jumps at green, a colour that slides do not have. The hue of
    grey is that of red.
    """
    red, green, blue = images.unbind(1)
    value, least = images.amax(dim=1), images.amin(dim=1)
    chroma = value - least
    over = 1 / (6 * chroma).clamp(min=1e-12)
    # Each in its own third of the circle; the third of green contains the jump.
    by_green = (blue - red) * over
    by_green = by_green + (by_green < 0).to(by_green.dtype)
    hue = torch.where(blue >= value, (red - green) * over + 1 / 3, by_green)
    hue = torch.where(red >= value, (green - blue) * over + 2 / 3, hue)
    return torch.stack([hue, chroma / value.clamp(min=1e-12), value], dim=1)


def hsv_to_rgb(hsv: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
    """Convert HSV as `rgb_to_hsv` returns it to RGB; values outside [0, 1], also of hue, are clamped."""
    hue, saturation, value = hsv.clamp(0, 1).unbind(1)
    swing = value * saturation
    places = [
        (6 * hue + start) % 6 for start in (1, 5, 3)
    ]  # distance of each channel from the end of its darkest stretch
    return torch.stack(
        [value - swing * torch.minimum(place, 4 - place).clamp(0, 1) for place in places], dim=1
    )


def rgb_to_hed(images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
    """Convert RGB to amounts of haematoxylin, eosin and DAB, in natural logarithms of light.

    scikit-image divides these by `log(1e6)` = 13.8 and clamps negative values to 0.
    """
    return transform(-images.clamp(min=HED_FLOOR).log(), DENSITY_TO_HED)


def hed_to_rgb(hed: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
    """Convert amounts of haematoxylin, eosin and DAB to RGB; light above 1 is clamped to 1."""
    return transform(hed * (-1 / math.log(2)), HED_TO_DENSITY).exp2_().clamp(max=1)


def transform(images: Float[Tensor, "B 3 H W"], matrix: tuple[_Row, ...]) -> Float[Tensor, "B 3 H W"]:
    """Multiply the three channels of each pixel by a 3x3 matrix."""
    return torch.stack([weigh(images, row) for row in matrix], dim=1)


def weigh(images: Float[Tensor, "B 3 H W"], weights: _Row) -> Float[Tensor, "B H W"]:
    """Compute the weighted sum of the channels."""
    first, second, third = images.unbind(1)
    return (first * weights[0]).add_(second, alpha=weights[1]).add_(third, alpha=weights[2])
