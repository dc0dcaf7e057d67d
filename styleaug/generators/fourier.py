"""A generator without training that swaps the amplitudes of the lowest spatial frequencies."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from styleaug.errors import ConfigError
from styleaug.generators.base import AbstractGenerator, blend, widen
from styleaug.generators.shared import average, places, predicted

__all__ = ["FourierAmplitude"]

_FAINT = 1e-3


class FourierAmplitude(AbstractGenerator):
    """Swap the amplitudes of the lowest spatial frequencies and keep their phases.

    Yang & Soatto 2020, "FDA: Fourier domain adaptation for semantic segmentation", for each
    RGB channel. Only these few frequencies are computed, and their change is added to the image.
    This equals the paper's transform, swap and inverse transform.

    The paper's window reaches `beta * min(H, W)` cycles per image from the centre, ours `cycles` at
    any size: beta = 0.01 at 300 pixels is `cycles=3`. Frequencies at or above an image's Nyquist
    limit do not change. The phase of an amplitude under `_FAINT` = 0.001 is mostly noise, so such an
    amplitude is scaled as if it were `_FAINT`: a flat image takes the style's mean and no pattern.

    Code: amplitudes >= 0 divided by the number of pixels. For each channel, first those with u >= 0:
    `(cycles + 1)^2` floats by u (down) and v (across), the first being the mean. Then those with
    u < 0 < v: `cycles^2` floats by -u and v. The other half-plane mirrors these.

    Args:
        cycles: highest frequency swapped, in cycles per image along either side, from 0.
    """

    margin = 0

    def __init__(self, cycles: int = 3):
        super().__init__()
        if not cycles >= 0:
            raise ConfigError(f"cycles must be at least 0, got {cycles}.")
        self.name = "fourier"
        self.cycles = cycles
        self.code_length = 3 * ((cycles + 1) ** 2 + cycles**2)
        self.code_range = ([0.0] * self.code_length, [1.0] * self.code_length)

    def extra_repr(self) -> str:
        """Return the window as text; it is part of the fingerprint."""
        return f"cycles={self.cycles}"

    def encode_style(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B S"]:
        """Compute the amplitudes of the lowest frequencies."""
        amplitude = magnitude(low_spectrum(widen(images), self.cycles))
        plus, minus = amplitude[:, :, 0], amplitude[:, :, 1, 1:, 1:]
        return torch.cat([plus.flatten(2), minus.flatten(2)], dim=2).flatten(1)

    def amplitudes(self, codes: Float[Tensor, "B S"]) -> Float[Tensor, "B 3 2 U V"]:
        """Reshape a code to the layout of `low_spectrum`: u >= 0, then u <= 0."""
        side = self.cycles + 1
        plus, minus = codes.clamp(min=0).unflatten(1, (3, -1)).split([side**2, self.cycles**2], dim=2)
        plus = plus.unflatten(2, (side, side))
        minus = minus.reshape(*minus.shape[:2], self.cycles, self.cycles)
        lower = torch.cat([plus[:, :, 1:, :1], minus], dim=3)
        return torch.stack([plus, torch.cat([plus[:, :, :1], lower], dim=2)], dim=2)

    def forward(
        self,
        images: Float[Tensor, "B 3 H W"],
        codes: Float[Tensor, "B S"],
        strength: Float[Tensor, " B"],
    ) -> Float[Tensor, "B 3 H W"]:
        """Set the amplitudes of each image's lowest frequencies to those in its code."""
        full = widen(images)
        height, width = full.shape[2:]
        tiles = places()
        if tiles is None:
            return blend(images, full + low_image(self.change(full, codes), height, width), strength)
        (change,) = predicted(lambda *whole: (self.change(*whole, start=0.5),), full, codes)
        parts = [
            low_image(row, tile.height, tile.width, start=0.5, window=(tile.top, tile.left, height, width))
            for row, tile in zip(change.split(1), tiles, strict=True)
        ]
        return blend(images, full + torch.cat(parts), strength)

    def change(
        self, images: Float[Tensor, "B 3 H W"], codes: Float[Tensor, "B S"], *, start: float = 0.0
    ) -> Float[Tensor, "B 3 2 2 U V"]:
        """Compute the change to add to the spectrum of each image.

        All slices of a volume get the same change, computed from their mean. The mean holds the frequencies
        of the volume that do not vary along its axis.
        """
        old = average(low_spectrum(images, self.cycles, start=start))
        wanted = self.amplitudes(codes.to(images.dtype))
        gain = wanted / torch.maximum(magnitude(old), wanted.clamp(max=_FAINT))
        new = old * gain[:, :, None]
        new[:, :, 0, :, 0, 0] = wanted[..., 0, 0]  # the phase of a mean is 0, also in a black image
        return new - old


def magnitude(spectrum: Float[Tensor, "B 3 2 2 U V"]) -> Float[Tensor, "B 3 2 U V"]:
    """Compute the amplitude of each frequency, with a finite gradient at 0."""
    return (spectrum.square().sum(dim=2) + 1e-12).sqrt()


def waves(length: int, cycles: int, like: Tensor, *, start: float = 0.0) -> Float[Tensor, "N L"]:
    """Sample cosines of 0 to `cycles` cycles, then sines; those above the Nyquist limit are 0.

    The first sample lies `start` pixels after the start of a cycle. 0.5 matches images of different sizes.
    """
    cycle = torch.arange(cycles + 1, device=like.device)[:, None]
    # The turn is reduced in whole numbers, so that its angle is equally exact on long sides.
    turn = torch.arange(length, device=like.device) * cycle % torch.full((), length, device=like.device)
    angle = (turn + start * cycle if start else turn).to(like.dtype) * (2 * math.pi / length)
    return torch.cat([angle.cos(), angle.sin()]) * (2 * cycle < length).repeat(2, 1)


def low_spectrum(
    images: Float[Tensor, "B 3 H W"], cycles: int, *, start: float = 0.0
) -> Float[Tensor, "B 3 2 2 U V"]:
    """Compute the Fourier coefficients of the lowest frequencies, divided by the number of pixels.

    Shape:
        `(B, 3, part, sign, U, V)`: part is real, imaginary; sign is u >= 0, u <= 0 down the image;
        U and V count 0 to `cycles` cycles down and across.
    """
    height, width = images.shape[2:]
    down, across = (waves(length, cycles, images, start=start) for length in (height, width))
    with torch.autocast(images.device.type, enabled=False):
        sums = down @ (images @ across.T) / (height * width)
    sums = sums.unflatten(3, (2, -1)).unflatten(2, (2, -1))
    cos_cos, cos_sin, sin_cos, sin_sin = (sums[:, :, i, :, j] for i in (0, 1) for j in (0, 1))
    real = torch.stack([cos_cos - sin_sin, cos_cos + sin_sin], dim=2)
    imaginary = torch.stack([-sin_cos - cos_sin, sin_cos - cos_sin], dim=2)
    return torch.stack([real, imaginary], dim=2)


def low_image(
    spectrum: Float[Tensor, "B 3 2 2 U V"],
    height: int,
    width: int,
    *,
    start: float = 0.0,
    window: tuple[int, int, int, int] | None = None,
) -> Float[Tensor, "B 3 H W"]:
    """Compute the image with these low frequencies and no others; the inverse of `low_spectrum`.

    The image has `height` by `width` pixels. With a `window` (top, left, height, width), only that part of it
    is computed.
    """
    cycles = spectrum.shape[-1] - 1
    down, across = (waves(length, cycles, spectrum, start=start) for length in (height, width))
    if window is not None:
        top, left, rows, columns = window
        down, across = down[:, top : top + rows], across[:, left : left + columns]
    real, imaginary = spectrum.unbind(2)
    top = torch.cat([real.sum(2), -imaginary.sum(2)], dim=3)
    bottom = torch.cat([imaginary.diff(dim=2).squeeze(2), real.diff(dim=2).squeeze(2)], dim=3)
    sums = torch.cat([top, bottom], dim=2) / 2
    # A frequency other than 0 also stands for its mirror image.
    twice = 2 - (torch.arange(2 * cycles + 2, device=sums.device) % (cycles + 1) == 0).to(sums.dtype)
    with torch.autocast(sums.device.type, enabled=False):
        return down.T @ (sums * twice[:, None] * twice) @ across
