"""Two of PRIME's primitives, which need neither bank nor weights: random tone curves and random filters.

Modas et al. 2022, "PRIME: a few primitives can boost robustness to common corruptions". The third, a random
displacement of pixels, is left out: it moves labels.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from styleaug.generators.base import AbstractGenerator
from styleaug.generators.layers import channel_stats
from styleaug.generators.random_networks import (
    by_row,
    convolve,
    kernels,
    named_by,
    uniform_entries,
    with_contrast,
)

__all__ = ["RandomFilter", "ToneCurves"]

WAVES = 5
"""Sines in a tone curve."""
STEEP = 0.3
"""Deviation of the first sine's amplitude; that of the n-th is an n-th of it."""
SIDE = 5
"""Of the kernel of `RandomFilter`."""
_MOST = 4.0
"""Most of the random part of a filter, where the image itself counts 1; the paper's sigma."""


class ToneCurves(AbstractGenerator):
    """Give each colour channel a smooth random curve.

    Modas et al. 2022, sec. 3.1 (colour transformations): `x + sum over n of c_n * sin(pi * n * x)`,
    which keeps 0 and 1 and may rise and fall between. A pixel is changed by its own value alone.

    Other than the paper: it draws a band of 20 frequencies among the first 500, which makes noise of any
    grain. Here `c_n` is drawn from N(0, (0.3 / n)^2) for the first five. What leaves [0, 1] is cut off.

    Code: five amplitudes in units of their deviation for red, then green, then blue: 15 floats. The prior is
    the standard normal distribution.
    """

    name = "tone-curves"
    has_prior = True
    margin = 0
    code_length = 3 * WAVES

    def encode_style(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 15"]:
        """Name curves by the colours of each image; see `named_by`."""
        return named_by(images, self.code_length)

    def forward(
        self,
        images: Float[Tensor, "B 3 H W"],
        codes: Float[Tensor, "B 15"],
        strength: Float[Tensor, " B"],
    ) -> Float[Tensor, "B 3 H W"]:
        """Apply the curves in each image's code."""
        return by_row(self.curved, images, [codes], strength)

    def curved(self, images: Float[Tensor, "B 3 H W"], codes: Float[Tensor, "B 15"]) -> Tensor:
        """Compute the result at full strength."""
        amplitudes = codes.to(images.dtype).unflatten(1, (3, WAVES))[..., None, None]
        angle = math.pi * images
        twice = 2 * angle.cos()
        # Clenshaw's recurrence: a sine and a cosine for any number of waves.
        last, before = STEEP / WAVES * amplitudes[:, :, -1], None
        for wave in range(WAVES - 1, 0, -1):
            this = torch.addcmul(STEEP / wave * amplitudes[:, :, wave - 1], twice, last)
            last, before = (this if before is None else this - before), last
        return torch.addcmul(images, angle.sin(), last)


class RandomFilter(AbstractGenerator):
    """Sharpen, blur or emphasise each image by a random filter, the same for all of its colours.

    Modas et al. 2022, sec. 3.1 (spectral transformations): the kernel is that which changes nothing plus
    random weights from N(0, sigma^2), with sigma from U(0, 4).

    Other than the paper: the kernel is point-symmetric and weighted with a Gaussian of deviation 5 / 6 of a
    pixel, so that no edge moves, and the filter acts on what deviates from each channel's mean,
    without inverting it.
    All channels together keep the image's deviation, where the paper cuts off what leaves [0, 1], which
    made most of its images black and white.

    Code: one number for sigma, then 5 x 5 weights: 26 floats. The prior is the standard normal distribution.
    """

    name = "random-filter"
    has_prior = True
    codes_average = False
    margin = SIDE // 2
    code_length = 1 + SIDE**2

    def encode_style(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 26"]:
        """Name a filter by the colours of each image; see `named_by`."""
        return named_by(images, self.code_length)

    def forward(
        self,
        images: Float[Tensor, "B 3 H W"],
        codes: Float[Tensor, "B 26"],
        strength: Float[Tensor, " B"],
    ) -> Float[Tensor, "B 3 H W"]:
        """Filter each image with the kernel in its code."""
        reach = torch.full_like(codes[:, 0], SIDE // 2)
        random = kernels(codes[:, 1:].unflatten(1, (SIDE, SIDE)), reach)
        kernel = _MOST * uniform_entries(codes[:, :1, None]) * random
        kernel = kernel + F.pad(torch.ones_like(kernel[:, :1, :1]), [SIDE // 2] * 4)
        # Not inverted, as half of an inverted image and half of the image are one grey.
        kernel = torch.where(kernel.sum(dim=(1, 2), keepdim=True) < 0, -kernel, kernel)
        return by_row(self.filtered, images, [kernel], strength)

    def filtered(
        self, images: Float[Tensor, "B 3 H W"], kernel: Float[Tensor, "B 5 5"]
    ) -> Float[Tensor, "B 3 H W"]:
        """Compute the result at full strength."""
        channels = images.shape[1]
        rows = kernel.repeat_interleave(channels, dim=0)[:, None, None]
        made = convolve(images.flatten(0, 1)[:, None], rows)[:, 0].unflatten(0, (-1, channels))
        own = channel_stats(images)
        return with_contrast(made, channel_stats(made), own, own[:, :channels])
