"""Measures of appearance: colours, sharpness, and content without its colours.

The results are rows of features `(N, S)` for `domains`.
"""

import math
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from styleaug.generators.adain import AdaIN
from styleaug.generators.colorspace import rgb_to_lab
from styleaug.generators.layers import channel_stats, normalise, whiten
from styleaug.images import luminance
from styleaug.perceptual import Features, load_features
from styleaug.weights import load_generator

__all__ = [
    "APPEARANCES",
    "band_powers",
    "colour_rows",
    "content_features",
    "in_words",
    "measures",
    "power_slope",
]

_CHUNK = 64
"""Number of images measured at a time; temporaries are several times larger than the images."""
OCTAVES = 5
"""Number of bands of spatial frequency, from half the sampling rate downwards."""
REDUCE = 4
"""Factor by which images are reduced before content is read, so that sharpness has no influence."""
GREY, CONTRAST = 0.45, 0.2
"""Mean and deviation of each image before content is read; those of typical photos in [0, 1]."""
_FAINT = 0.02
"""Least deviation for scaling contrast; in flatter images noise would grow."""
NOTABLE = 0.3
"""Least standardised difference that is reported in words."""
COLOURLESS = 2.0
"""Least distance in Lab that is named as a change of colour."""

HUES = (
    "pinker",
    "more orange",
    "yellower",
    "more yellow-green",
    "greener",
    "more teal",
    "bluer",
    "more purple",
)
"""Names of hues at every 45 degrees of Lab's plane, from +a towards +b."""

APPEARANCES: dict[str, tuple[str, str]] = {
    "red": ("", ""),
    "green": ("", ""),
    "blue": ("", ""),
    "lightness": ("darker", "lighter"),
    "a": ("", ""),
    "b": ("", ""),
    "contrast": ("less contrast", "more contrast"),
    "colourfulness": ("less colourful", "more colourful"),
    "slope": ("blurrier, or enlarged from fewer pixels", "sharper, or noisier"),
}
"""Words for a target with a lower or a higher value, for each measured figure."""


def colour_rows(images: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N 9"]:
    """Compute means, log deviations and correlations of the Lab channels."""
    return torch.cat([colours_of(part) for part in images.split(_CHUNK)])


def colours_of(images: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N 9"]:
    """Compute `colour_rows` for one chunk."""
    lab = rgb_to_lab(images).flatten(2)
    mean, std = lab.mean(dim=2), lab.std(dim=2)
    scaled = (lab - mean[..., None]) / std[..., None].clamp_min(0.5)
    together = [(scaled[:, i] * scaled[:, j]).mean(dim=1) for i, j in ((0, 1), (0, 2), (1, 2))]
    return torch.cat([mean, std.log1p(), torch.stack(together, dim=1)], dim=1)


def band_powers(images: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N 5"]:
    """Compute the log10 of brightness's mean power in five octaves, the finest first."""
    return torch.cat([powers_of(part) for part in images.split(_CHUNK)])


def powers_of(images: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N 5"]:
    """Compute `band_powers` for one chunk."""
    grey = luminance(images)[:, 0]
    height, width = grey.shape[1:]
    down, across = (torch.hann_window(n, periodic=False, device=grey.device) for n in (height, width))
    framed = (grey - grey.mean(dim=(1, 2), keepdim=True)) * down[:, None] * across
    power = torch.fft.rfft2(framed).abs().square() / (height * width)
    rows = torch.fft.fftfreq(height, device=grey.device)[:, None]
    radius = torch.hypot(rows, torch.fft.rfftfreq(width, device=grey.device))
    bands = [2.0**-octave for octave in range(1, OCTAVES + 1)]
    means = [power[:, (radius <= top) & (radius > top / 2)].mean(dim=1) for top in bands]
    return (torch.stack(means, dim=1) + 1e-10).log10()


def power_slope(images: Float[Tensor, "N 3 H W"]) -> Float[Tensor, " N"]:
    """Compute the exponent of power over frequency: -2 to -3 for photos, lower for blurred images."""
    powers = band_powers(images)
    frequency = -torch.arange(OCTAVES, device=powers.device, dtype=powers.dtype) * math.log10(2)
    centred = frequency - frequency.mean()
    return (powers * centred).sum(dim=1) / centred.square().sum()


def measures(images: Float[Tensor, "N 3 H W"]) -> dict[str, Float[Tensor, " N"]]:
    """Compute the figures in `APPEARANCES` for each image: RGB in [0, 1], Lab in its units."""
    rows = torch.cat([measure_some(part) for part in images.split(_CHUNK)])
    return dict(zip(APPEARANCES, rows.unbind(1), strict=True))


def measure_some(images: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N 9"]:
    """Compute `measures` for one chunk."""
    red, green, blue = images.mean(dim=(2, 3)).unbind(1)
    lab = rgb_to_lab(images)
    light, a, b = lab.mean(dim=(2, 3)).unbind(1)
    chroma = torch.hypot(lab[:, 1], lab[:, 2]).mean(dim=(1, 2))
    contrast = lab[:, 0].flatten(1).std(dim=1)
    return torch.stack([red, green, blue, light, a, b, contrast, chroma, power_slope(images)], dim=1)


def in_words(difference: dict[str, float], change: dict[str, float]) -> list[str]:
    """Describe how the target differs from the training images, the largest difference first.

    Args:
        difference: for each of `APPEARANCES`, target minus training, in standard deviations over images.
        change: the same difference in the units of the measure.
    """
    found = [
        (abs(size), f"{APPEARANCES[name][size > 0]} by {abs(size):.1f} deviations ({change[name]:+.3g})")
        for name, size in difference.items()
        if any(APPEARANCES[name]) and abs(size) >= NOTABLE
    ]
    hue = math.hypot(change["a"], change["b"])
    size = math.hypot(difference["a"], difference["b"])
    if hue >= COLOURLESS and size >= NOTABLE:
        angle = math.degrees(math.atan2(change["b"], change["a"]))
        found.append((size, f"{HUES[round(angle / 45) % 8]} by {size:.1f} deviations ({hue:.3g} in Lab)"))
    return [text for _, text in sorted(found, reverse=True)]


def content_features(
    name: Literal["adain", "squeezenet"], weights: Path | None, device: torch.device | None = None
) -> Callable[[Tensor], Float[Tensor, "N S"]]:
    """Load a function that describes content, independent of colours, contrast and sharpness.

    Each image is made grey, reduced to a quarter and enlarged again, and scaled to a fixed mean and deviation
    before the network reads it.

    Args:
        name: `"squeezenet"` for the pooled features of SqueezeNet 1.1, which separate classes;
            `"adain"` for the deepest features of the shipped encoder, which are coarser and need no download.
        weights: folder of SqueezeNet's weights; None downloads them.
        device: device of the network; None is the CPU.
    """
    if name == "squeezenet":
        features = load_features("squeezenet", weights)
    else:
        features = Features("content", deepcopy(load_generator("adain")), read_deepest)
    features.to(device or "cpu")
    return lambda images: torch.cat([features(colourless(part)) for part in images.split(_CHUNK)])


def colourless(images: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N 3 H W"]:
    """Remove colour, contrast and sharpness from images."""
    grey, size = luminance(images), images.shape[-2:]
    small = [max(1, side // REDUCE) for side in size]
    grey = F.interpolate(grey, size=small, mode="bilinear", antialias=True)
    grey = F.interpolate(grey, size=size, mode="bilinear")
    mean, std = grey.mean(dim=(2, 3), keepdim=True), grey.std(dim=(2, 3), keepdim=True)
    flat = (grey - mean) / std.clamp_min(_FAINT) * CONTRAST + GREY
    return flat.clamp(0, 1).expand(-1, 3, -1, -1)


def read_deepest(network: torch.nn.Module, images: Tensor) -> Tensor:
    """Compute statistics of the deepest features: their moments, high values and spatial spread."""
    deepest = cast(AdaIN, network).encoder(whiten(images, channel_stats(images)))[-1]
    flat = normalise(deepest)
    parts = [channel_stats(deepest), (flat > 1).float().mean(dim=(2, 3))]
    parts += [
        F.avg_pool2d(flat, side).flatten(2).std(dim=2) for side in (2, 4) if min(flat.shape[-2:]) > side
    ]
    return torch.cat(parts, dim=1)
