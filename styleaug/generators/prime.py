"""Two primitives of PRIME: random tone curves and random filters. They need no bank and no weights.

Modas et al. 2022, "PRIME: a few primitives can boost robustness to common corruptions". The third primitive,
a random displacement of pixels, is left out, because it moves labels.
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
"""Number of sines in a tone curve."""
STEEP = 0.3
"""Standard deviation of the first sine's amplitude; for sine n it is divided by n."""
SIDE = 5
"""Side of the kernel of `RandomFilter`, in pixels."""
_MOST = 4.0
"""Largest weight of the random part of a filter; the image itself has weight 1. The paper's sigma."""


class ToneCurves(AbstractGenerator):
    """Map each colour channel by a smooth random curve.

    Modas et al. 2022, sec. 3.1 (colour transformations): `x + sum over n of c_n * sin(pi * n * x)`.
    It keeps 0 and 1, and may rise and fall between. The new value of a pixel depends on its old value only.

    Unlike the paper: the paper draws a band of 20 frequencies among the first 500, which makes noise of any
    grain. Here `c_n` is drawn from N(0, (0.3 / n)^2) for the first five frequencies. Results are clamped to
    [0, 1].

    Code: five amplitudes in units of their deviation for red, then green, then blue: 15 floats. The prior is
    the standard normal distribution.
    """

    name = "tone-curves"
    has_prior = True
    margin: int | None = 0
    code_length = 3 * WAVES

    def encode_style(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 15"]:
        """Derive a code from the colours of each image; see `named_by`."""
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
    """Sharpen or blur each image by a random filter, the same for all colours.

    Modas et al. 2022, sec. 3.1 (spectral transformations): the kernel is the identity plus random weights
    from N(0, sigma^2), with sigma from U(0, 4).

    Unlike the paper: the kernel is point-symmetric and weighted with a Gaussian of deviation 5 / 6 of a
    pixel, so that no edge moves. The filter acts on the difference to each channel's mean, and never inverts
    it. All channels together keep the image's deviation. The paper clamps to [0, 1] instead, which made most
    of its images black and white.

    Code: one number for sigma, then 5 x 5 weights: 26 floats. The prior is the standard normal distribution.
    """

    name = "random-filter"
    has_prior = True
    codes_average = False
    margin: int | None = SIDE // 2
    code_length = 1 + SIDE**2

    def encode_style(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 26"]:
        """Derive a code from the colours of each image; see `named_by`."""
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
        # Not inverted: half of an inverted image plus half of the image would be uniform grey.
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
