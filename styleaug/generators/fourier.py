"""Generators without training that swap the amplitudes of spatial frequencies and keep their phases."""

import math

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from styleaug.errors import ConfigError
from styleaug.generators.base import AbstractGenerator, blend, widen
from styleaug.generators.shared import average, places, predicted

__all__ = ["FourierAmplitude", "FullFourier"]

_FAINT = 1e-3
NODES = (0, 1, 2, 3, 4, 5, 6, 8, 10, 13, 17, 23, 32, 48, 76, 120)
"""Frequencies along a side at which `FullFourier` stores amplitudes, in cycles per image."""
_LOGS = len(NODES) ** 2 + (len(NODES) - 1) ** 2 - 1
"""Entries of a channel's code apart from its mean."""
_LEAST, _MOST = math.log(1e-5), math.log(100)
"""Range of the logarithms in the code of `FullFourier`."""
_ROUNDING = (1 / 255) ** 2 / 12
"""Variance of the error of a pixel that is rounded to 8 bits."""


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

    margin: int | None = 0

    def __init__(self, cycles: int = 3):
        super().__init__()
        if not cycles >= 0:
            raise ConfigError(f"cycles must be at least 0, got {cycles}.")
        self.name = "fourier"
        self.cycles = cycles
        self.code_length: int = 3 * ((cycles + 1) ** 2 + cycles**2)
        self.code_range: tuple[list[float], list[float]] | None = (
            [0.0] * self.code_length,
            [1.0] * self.code_length,
        )

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


class FullFourier(AbstractGenerator):
    """Swap the amplitudes of all spatial frequencies and keep their phases.

    Chen et al. 2021, "Amplitude-phase recombination" (APR), and Xu et al. 2021, "A Fourier-based framework
    for domain generalization" (FACT), for each RGB channel. With the bank `"batch"` the amplitudes are those
    of another image of the batch, as in both papers. `strength` mixes the amplitudes: FACT's share from
    U(0, eta) is `strength=(0, eta)`.

    Unlike the papers, which swap two images of one size:

    - A code has a fixed length. It holds the amplitudes at `NODES`: each frequency up to 6 cycles per image,
      and further up the mean amplitude around each node. They are interpolated between nodes. On 70 pairs of
      images the change of pixels correlates with that of an exact swap by 0.97.
    - Amplitudes belong to cycles per image, at any size. Beyond the last node, and beyond the style's own
      Nyquist limit, they fall with 1 / frequency. Frequencies at the image's Nyquist limit do not change.
    - Amplitudes under the rounding error of 8-bit images are hardly amplified. A flat image takes the style's
      mean and no pattern.
    - All slices of a volume get the same factors and the same change of the mean.

    Slides in tiles are not possible, since each frequency depends on all pixels. Export to ONNX is not
    possible, since the exporter cannot convert complex numbers.

    Code: for each channel, 16 x 16 entries by u >= 0 (down) and v >= 0 (across), the first being the mean.
    Then 15 x 15 by -u > 0 and v > 0. The other half-plane mirrors these. Entries other than the mean are
    natural logarithms of the amplitude divided by the number of pixels and multiplied by the frequency.
    """

    name = "fourier-full"
    exports = False
    code_length: int = 3 * (1 + _LOGS)
    code_range: tuple[list[float], list[float]] | None = (
        3 * [0.0, *_LOGS * [_LEAST]],
        3 * [1.0, *_LOGS * [_MOST]],
    )
    nodes: Tensor

    def __init__(self) -> None:
        super().__init__()
        # A buffer, as to copy numbers to a GPU in each call would wait for it.
        self.register_buffer("nodes", torch.tensor(NODES, dtype=torch.float32), persistent=False)

    def extra_repr(self) -> str:
        """Return the nodes as text; they are part of the fingerprint."""
        return f"nodes={NODES}"

    def encode_style(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 1443"]:
        """Compute the amplitudes around the nodes."""
        images = widen(images)
        height, width = images.shape[2:]
        down, across, scale = self.grid(height, width, images)
        amplitude = power(torch.fft.rfft2(images)).sqrt() / scale
        share = down.sum(dim=0)[:, None] * across.sum(dim=0)
        with torch.autocast(images.device.type, enabled=False):
            around = down.T @ amplitude @ across / share.clamp(min=1e-6)
        around[:, :, len(NODES) - 1, 0] = 0
        # Nodes that the image is too small for repeat the highest that it has.
        nodes, index = self.nodes.to(images), torch.arange(len(NODES), device=images.device)
        row = index.minimum((2 * nodes < height).sum() - 1)
        row = len(NODES) - 1 + torch.cat([-row[1:].flip(0), row])
        column = index.minimum((2 * nodes < width).sum() - 1)
        logs = (around[:, :, row][..., column] + math.exp(_LEAST)).log().clamp(max=_MOST)
        minus, plus = logs.split([len(NODES) - 1, len(NODES)], dim=2)
        codes = torch.cat([plus.flatten(2), minus[..., 1:].flip(2).flatten(2)], dim=2)
        codes[:, :, 0] = images.mean(dim=(2, 3))
        return codes.flatten(1)

    def forward(
        self,
        images: Float[Tensor, "B 3 H W"],
        codes: Float[Tensor, "B 1443"],
        strength: Float[Tensor, " B"],
    ) -> Float[Tensor, "B 3 H W"]:
        """Set the amplitudes of each image to those in its code."""
        full = widen(images)
        height, width = full.shape[2:]
        codes = codes.to(full.dtype).unflatten(1, (3, -1))
        down, across, scale = self.grid(height, width, full)
        with torch.autocast(full.device.type, enabled=False):
            wanted = down @ self.plane(codes) @ across.T
        spectrum = torch.fft.rfft2(full)
        own = average(power(spectrum) + _ROUNDING * height * width)
        gain = wanted * scale * own.rsqrt()
        # The Nyquist limit stands for two frequencies, u and -u, whose gains may differ.
        rows, columns = frequencies(height, full)[:, None], frequencies(width, full)[: width // 2 + 1]
        gain = gain.where((2 * rows.abs() < height) & (2 * columns.abs() < width), 1.0)
        made = spectrum * gain
        mean = spectrum[:, :, 0, 0].real
        made[:, :, 0, 0] = mean - average(mean) + codes[:, :, 0] * (height * width)
        return blend(images, torch.fft.irfft2(made, s=(height, width)), strength)

    def plane(self, codes: Float[Tensor, "B 3 L"]) -> Float[Tensor, "B 3 U V"]:
        """Compute the amplitudes in a code, times frequency: rows u from -120 to 120, columns v from 0."""
        side = len(NODES)
        values = codes.clamp(_LEAST, _MOST).exp()
        plus, minus = values.split([side**2, (side - 1) ** 2], dim=2)
        plus, minus = plus.unflatten(2, (side, side)), minus.unflatten(2, (side - 1, side - 1))
        return torch.cat([torch.cat([plus[:, :, 1:, :1], minus], dim=3).flip(2), plus], dim=2)

    def grid(
        self, height: int, width: int, like: Tensor
    ) -> tuple[Float[Tensor, "H U"], Float[Tensor, "W2 V"], Float[Tensor, "H W2"]]:
        """Compute weights of the nodes for each frequency, and the number of pixels over the frequency."""
        rows, columns = frequencies(height, like), frequencies(width, like)[: width // 2 + 1].abs()
        across = self.nodes.to(like)
        down = torch.cat([-across[1:].flip(0), across])
        distance = (rows[:, None].square() + columns.square()).clamp(min=1).rsqrt()
        return linear_weights(rows, down), linear_weights(columns, across), distance * (height * width)


def frequencies(length: int, like: Tensor) -> Float[Tensor, " L"]:
    """Return the frequencies of `torch.fft.fft` in cycles per image."""
    index = torch.arange(length, device=like.device)
    return (index - length * (2 * index >= length)).to(like.dtype)


def linear_weights(values: Float[Tensor, " L"], nodes: Float[Tensor, " N"]) -> Float[Tensor, "L N"]:
    """Compute weights that interpolate linearly between nodes; beyond the ends, those of the end node."""
    up = ((values[:, None] - nodes[:-1]) / nodes.diff()).clamp(0, 1)
    one = torch.ones_like(values)[:, None]
    return torch.cat([one, up], dim=1) - torch.cat([up, 0 * one], dim=1)


def power(spectrum: Shaped[Tensor, "B C U V"]) -> Float[Tensor, "B C U V"]:
    """Compute the squared amplitude of each frequency, at least 1e-12 for a finite gradient of its root."""
    return (spectrum * spectrum.conj()).real + 1e-12


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
