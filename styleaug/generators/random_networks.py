"""Generators that need neither bank nor weights: small convolutional networks, drawn anew for each image.

Every weight is a number of the code, which is drawn from the standard normal distribution, or is made from
one. Kernels are point-symmetric, so that they move no edge.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from styleaug.generators.base import AbstractGenerator, blend, widen
from styleaug.generators.layers import channel_stats
from styleaug.generators.shared import sharing

__all__ = [
    "IntensityNetwork",
    "ProgressiveConvolution",
    "RandomConvolution",
    "by_row",
    "convolve",
    "kernels",
    "named_by",
    "uniform_entries",
    "with_contrast",
]

LARGEST = 7
"""Side of the largest kernel of `RandomConvolution`."""
WINDOW = 1 / 6
"""Deviation of the Gaussian that kernels are weighted with, in sides of the kernel."""
FARTHEST = 0.4
"""How far from the middle of [0, 1] `in_range` lets the mean of a channel lie."""
MOST_TIMES = 3
"""How often `ProgressiveConvolution` convolves at most."""
LEAST_GAMMA, AFFINE = 0.3, 0.5
"""Its least gamma, and the deviation of beta and of gamma beyond that."""
WIDTHS = (3, 2, 2, 2, 3)
"""Channels before, between and after the layers of `IntensityNetwork`."""
LAYERS = len(WIDTHS) - 1
FILTERS = sum(wide * narrow for wide, narrow in pairwise(WIDTHS))
_SHIFT, SLOPE = 0.5, 0.2
"""Deviation of its shifts, and slope of its leaky ReLU."""


class RandomConvolution(AbstractGenerator):
    """Pass each image through one random convolution.

    Xu et al. 2021, "Robust and generalizable visual representation learning via random convolutions", sec.
    3: the side k of the kernel is 1, 3, 5 or 7 with equal chance, its weights are drawn from
    N(0, 1 / (C k^2)), and the result is mixed with the image by a share drawn from U(0, 1), which is
    `strength=(0, 1)`.

    Other than the paper: kernels are point-symmetric and weighted with a Gaussian of deviation `k / 6`, as
    the paper's of 7 x 7 pixels move edges by 2.5 pixels. And the paper's network sees what leaves [0, 1].
    Here the mean of a channel moves by at most 0.4 from the middle, and all channels together keep the
    image's deviation; see `in_range`.

    Code: one number for the side of the kernel, then 3 x 3 x 7 x 7 weights: 442 floats. The prior is the
    standard normal distribution.
    """

    name = "randconv"
    has_prior = True
    codes_average = False
    margin = LARGEST // 2
    code_length = 1 + 9 * LARGEST**2

    def encode_style(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 442"]:
        """Name a network by the colours of each image; see `named_by`."""
        return named_by(images, self.code_length)

    def forward(
        self,
        images: Float[Tensor, "B 3 H W"],
        codes: Float[Tensor, "B 442"],
        strength: Float[Tensor, " B"],
    ) -> Float[Tensor, "B 3 H W"]:
        """Convolve each image with the kernel in its code."""
        weights = codes[:, 1:].unflatten(1, (3, 3, LARGEST, LARGEST)) / math.sqrt(3)
        reach = one_of(codes[:, 0], LARGEST // 2 + 1)
        weights = kernels(weights, reach)
        # The image is centred at 0, which here is a shift for each channel.
        parts = weights, reach, -0.5 * weights.sum(dim=(2, 3, 4))
        return by_row(self.convolved, images, parts, strength)

    def convolved(
        self,
        images: Float[Tensor, "B 3 H W"],
        weights: Float[Tensor, "B 3 3 7 7"],
        reach: Float[Tensor, " B"],
        shift: Float[Tensor, "B 3"],
    ) -> Float[Tensor, "B 3 H W"]:
        """Compute the result at full strength."""
        made = convolve(images, _within(weights, reach, images))
        return in_range(made, channel_stats(images), shift)


class ProgressiveConvolution(AbstractGenerator):
    """Pass each image through one small random convolution, 1 to 3 times.

    Choi et al. 2023, "Progressive random convolutions for single domain generalization", algorithm 1: a
    kernel of 3 x 3 with weights from N(0, 1 / (C k^2)), smoothed by a Gaussian of deviation U(0.1, 1), is
    applied L times. After each time every channel is standardised, scaled by gamma, shifted by beta, drawn
    from N(0, 0.5^2), and passed through tanh (eqs. 3 and 4).

    Other than the paper: kernels are point-symmetric, and there are no deformable offsets, which move
    labels. L is uniform from 1 to 3, where the paper has 10, at which one window in six lost its edges.
    Gamma lies 0.3 further from 0, below which a channel shows next to nothing. From tanh's (-1, 1) the
    result is brought to (0, 1). The paper's mixing share is `strength=(0, 1)`.

    Code: one number each for L and the deviation, then gamma and beta of each channel, then 3 x 3 x 3 x 3
    weights: 89 floats. The prior is the standard normal distribution.
    """

    name = "pro-randconv"
    has_prior = True
    codes_average = False
    margin = MOST_TIMES
    code_length = 2 + 3 + 3 + 81

    def encode_style(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 89"]:
        """Name a network by the colours of each image; see `named_by`."""
        return named_by(images, self.code_length)

    def forward(
        self,
        images: Float[Tensor, "B 3 H W"],
        codes: Float[Tensor, "B 89"],
        strength: Float[Tensor, " B"],
    ) -> Float[Tensor, "B 3 H W"]:
        """Run the network in each image's code."""
        times, width, gamma, beta, weights = codes.split([1, 1, 3, 3, 81], dim=1)
        offsets = torch.arange(-1, 2, device=images.device).square()
        sigma = (0.1 + 0.9 * uniform_entries(width))[:, :, None]
        smoothing = torch.exp(-0.5 * (offsets[:, None] + offsets) / sigma.square())
        weights = symmetric(weights.unflatten(1, (3, 3, 3, 3))) * smoothing[:, None, None]
        gamma = torch.where(gamma < 0, -LEAST_GAMMA, LEAST_GAMMA) + AFFINE * gamma
        # tanh(x) / 2 + 1 / 2 is the sigmoid of 2 x, which took a fifth of the time.
        parts = 1 + one_of(times, MOST_TIMES), 2 * gamma, 2 * AFFINE * beta, weights
        return by_row(self.repeated, images, parts, strength)

    def repeated(
        self,
        images: Float[Tensor, "B 3 H W"],
        times: Float[Tensor, "B 1"],
        gamma: Float[Tensor, "B 3"],
        beta: Float[Tensor, "B 3"],
        weights: Float[Tensor, "B 3 3 3 3"],
    ) -> Float[Tensor, "B 3 H W"]:
        """Compute the result at full strength."""
        single = alone(images)
        x = images
        for step in range(int(times) if single else MOST_TIMES):
            made = convolve(x, weights)
            mean, std = channel_stats(made).chunk(2, dim=1)
            scale = gamma / std
            made = affine(made, scale, beta - mean * scale).sigmoid_()
            x = made if single else torch.where(step < times[:, :, None, None], made, x)
        return x


class IntensityNetwork(AbstractGenerator):
    """Pass each image through four small random layers, and keep its contrast.

    Ouyang et al. 2022, "Causality-inspired single-source domain generalization for medical image
    segmentation", sec. III-B (GIN): layers of 2, 2, 2 and as many channels as the image has, kernels of
    1 x 1 or 3 x 3 with equal chance, leaky ReLU between them; the result is mixed with the image by a share
    drawn from U(0, 1), which is `strength=(0, 1)`, and keeps the image's Frobenius norm. Made for CT and MR:
    grey images and slices of volumes are as good as colour.

    Other than the paper: kernels are point-symmetric and weighted with a Gaussian of deviation half a pixel,
    weights are divided by the root of how many channels they join, shifts are drawn from N(0, 0.5^2), and the
    ReLU has a slope of 0.2 where the paper has 0.01. With the paper's one window in seven lost its edges.
    The norm kept is that of what deviates from the mean; means move by at most 0.4 from the middle.

    Code: one number each for the sides of the kernels, then the weights of each layer, then the shifts: 193
    floats. The prior is the standard normal distribution.
    """

    name = "gin"
    has_prior = True
    codes_average = False
    margin = LAYERS
    code_length = LAYERS + 9 * FILTERS + sum(WIDTHS[1:])

    def encode_style(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 193"]:
        """Name a network by the colours of each image; see `named_by`."""
        return named_by(images, self.code_length)

    def forward(
        self,
        images: Float[Tensor, "B 3 H W"],
        codes: Float[Tensor, "B 193"],
        strength: Float[Tensor, " B"],
    ) -> Float[Tensor, "B 3 H W"]:
        """Run the network in each image's code."""
        sides, weights, shifts = codes.split([LAYERS, 9 * FILTERS, sum(WIDTHS[1:])], dim=1)
        reach = one_of(sides, 2)
        sizes = [wide * narrow for wide, narrow in pairwise(WIDTHS)]
        each = torch.cat(
            [reach[:, layer : layer + 1].expand(-1, size) for layer, size in enumerate(sizes)], dim=1
        )
        weights = kernels(weights.unflatten(1, (FILTERS, 3, 3)).flatten(0, 1), each.flatten())
        weights = weights.unflatten(0, (-1, FILTERS))
        return by_row(self.layered, images, (reach, weights, _SHIFT * shifts), strength)

    def layered(
        self,
        images: Float[Tensor, "B 3 H W"],
        reach: Float[Tensor, "B L"],
        weights: Float[Tensor, "B F 3 3"],
        shifts: Float[Tensor, "B D"],
    ) -> Float[Tensor, "B 3 H W"]:
        """Compute the result at full strength."""
        own = channel_stats(images)
        mean, std = own.chunk(2, dim=1)
        mean, std = mean.mean(dim=1, keepdim=True), std.square().mean(dim=1, keepdim=True).sqrt()
        filters = weights.split([wide * narrow for wide, narrow in pairwise(WIDTHS)], dim=1)
        x = images
        for layer, (wide, narrow) in enumerate(pairwise(WIDTHS)):
            kernel = filters[layer].unflatten(1, (narrow, wide)) / math.sqrt(wide)
            shift = shifts.split(WIDTHS[1:], dim=1)[layer]
            if layer == 0:  # the image with mean 0 and deviation 1
                kernel = kernel / std[:, :, None, None, None]
                shift = shift - mean * kernel.sum(dim=(2, 3, 4))
            x = convolve(x, _within(kernel, reach[:, layer], x), shift)
            x = F.leaky_relu(x, SLOPE, inplace=True) if layer < LAYERS - 1 else x
        return in_range(x, own, mean - 0.5, scale=std)


def by_row(
    run: Callable[..., Tensor],
    images: Float[Tensor, "B 3 H W"],
    parts: Sequence[Float[Tensor, "B ..."]],
    strength: Float[Tensor, " B"],
) -> Float[Tensor, "B 3 H W"]:
    """Mix in what a network makes of images: one by one on a CPU, whose cache holds one, else all at once.

    Args:
        run: maps images and `parts` to the result at full strength.
        images: in [0, 1].
        parts: weights and the like, a row for each image.
        strength: how much of the result is mixed in.
    """
    images = images.contiguous()  # arithmetic with one number a channel is slow in other layouts
    full = widen(images)
    parts = [part.to(full.dtype) for part in parts]
    if not apart(images) or len(images) < 2:
        return blend(images, run(full, *parts), strength)
    rows = zip(*(part.split(1) for part in (images, strength, full, *parts)), strict=True)
    return torch.cat([blend(image, run(*row), share) for image, share, *row in rows])


def apart(images: Tensor) -> bool:
    """Tell whether rows may be computed one after the other.

    A GPU would be waited for, a graph has no fixed shape, and views of one image share their statistics.
    """
    return images.device.type == "cpu" and not torch.compiler.is_compiling() and not sharing()


def alone(images: Tensor) -> bool:
    """Tell whether this is one image, whose code may say how much is computed."""
    return apart(images) and len(images) == 1


def uniform_entries(codes: Tensor) -> Tensor:
    """Turn standard normal numbers into uniform ones from 0 to 1."""
    return 0.5 + 0.5 * torch.erf(codes / math.sqrt(2))


def one_of(codes: Tensor, count: int) -> Tensor:
    """Turn standard normal numbers into whole ones from 0 to `count - 1`, each as likely."""
    return (uniform_entries(codes) * count).floor().clamp(max=count - 1)


def symmetric(weights: Float[Tensor, "*N K K"]) -> Float[Tensor, "*N K K"]:
    """Make kernels the same from both ends, so that they move nothing."""
    return (weights + weights.flip(-1, -2)) / math.sqrt(2)


def kernels(weights: Float[Tensor, "B *N K K"], reach: Float[Tensor, " B"]) -> Float[Tensor, "B *N K K"]:
    """Make symmetric kernels of `2 * reach + 1` pixels a side, weighted with a Gaussian of norm 1.

    Around smaller kernels there are zeros; see `_within`.
    """
    offsets = torch.arange(weights.shape[-1], device=weights.device) - weights.shape[-1] // 2
    line = torch.exp(-0.5 * (offsets / (WINDOW * (2 * reach[:, None] + 1))).square())
    line = line.masked_fill(offsets.abs() > reach[:, None], 0)
    line = line / line.norm(dim=1, keepdim=True)
    plane = line[:, :, None] * line[:, None]
    return symmetric(weights) * plane.view(-1, *[1] * (weights.ndim - 3), *weights.shape[-2:])


def _within(
    weights: Float[Tensor, "B O I K K"], reach: Float[Tensor, " B"], images: Float[Tensor, "B I H W"]
) -> Float[Tensor, "B O I k k"]:
    """Cut off the zeros around the kernel of one image, if there is but one."""
    if not alone(images):
        return weights
    middle, size = weights.shape[-1] // 2, int(reach)
    return weights[..., middle - size : middle + size + 1, middle - size : middle + size + 1]


def convolve(
    images: Float[Tensor, "B I H W"],
    weights: Float[Tensor, "B O I K K"],
    shift: Float[Tensor, "B O"] | None = None,
) -> Float[Tensor, "B O H W"]:
    """Convolve each image with its own kernel, the edge repeated around it, and add `shift`.

    A matrix product gives each row of the kernel its own result, and these are moved and added. One image
    of 224 px and a kernel of 7 x 7 took 1.4 ms on a CPU thread; a grouped convolution 6.6, `conv2d` 2.5, a
    matrix for blocks of 8 pixels 1.6, unfolding 24 and a Fourier transform 11 ms (of 3 x 3: 0.4, 0.7, 0.6,
    0.7, 1.9 and 10 ms).
    """
    height, width = images.shape[2:]
    side = weights.shape[-1]
    with torch.autocast(images.device.type, enabled=False):
        if side == 1:
            columns = images.flatten(2)
        else:
            images = F.pad(images, [side // 2] * 4, mode="replicate")
            columns = torch.stack([images[..., at : at + width] for at in range(side)], dim=2)
            columns = columns.flatten(1, 2).flatten(2)
        matrix = weights.permute(0, 3, 1, 2, 4).flatten(3).flatten(1, 2)
        made = (matrix @ columns).unflatten(1, (side, -1)).unflatten(3, (height + side - 1, width))
        total = made[:, 0, :, :height]
        if side > 1:
            total = total + made[:, 1, :, 1 : 1 + height]
        for at in range(2, side):
            total += made[:, at, :, at : at + height]
    return total if shift is None else total.add_(shift[:, :, None, None])


def in_range(
    made: Float[Tensor, "B C H W"],
    own: Float[Tensor, "B C2"],
    shift: Float[Tensor, "B D"],
    scale: Float[Tensor, "B 1"] | float = 1.0,
) -> Float[Tensor, "B C H W"]:
    """Bring what a network made of images into [0, 1], but for the brightest and darkest pixels.

    Cut off at 0 and 1 alone, whole surfaces became black or white; squashed by tanh, some images had no
    contrast left. So each channel keeps its mean as far as it lies within `FARTHEST` of the middle,
    smoothly, and all channels together get the deviation of the image.

    Args:
        made: what is to be multiplied by `scale` and shifted by `shift` to be an image centred at 0.
        own: means and deviations of the image.
        shift: for each channel, or one for all.
        scale: for all channels.
    """
    stats = channel_stats(made)
    mean = scale * stats[:, : made.shape[1]] + shift
    return with_contrast(made, stats, own, 0.5 + FARTHEST * torch.tanh(mean / FARTHEST))


def affine(
    images: Float[Tensor, "B C H W"], scale: Float[Tensor, "B D"], shift: Float[Tensor, "B C"]
) -> Float[Tensor, "B C H W"]:
    """Scale and shift channels; for three of them on a CPU faster than `torch.addcmul`."""
    scale, shift = (value[:, :, None, None].to(images.dtype) for value in (scale, shift))
    return images.mul(scale).add_(shift)


def with_contrast(
    made: Float[Tensor, "B C H W"],
    stats: Float[Tensor, "B C2"],
    own: Float[Tensor, "B C2"],
    centre: Float[Tensor, "B C"],
) -> Float[Tensor, "B C H W"]:
    """Give channels these means, and all of them together the deviation of the image.

    Args:
        made: what a network made of the image.
        stats: its means and deviations.
        own: the image's.
        centre: the means to give.
    """
    mean, std = stats.chunk(2, dim=1)
    _, wanted = own.chunk(2, dim=1)
    gain = wanted.norm(dim=1, keepdim=True) / std.norm(dim=1, keepdim=True)
    return affine(made, gain, centre - mean * gain)


def named_by(images: Float[Tensor, "B 3 H W"], length: int) -> Float[Tensor, "B {length}"]:
    """Make a code of each image's colours: no image has a random network, but it can name one.

    Each entry is a sum of six sines, of the means and deviations of the channels, with phases that differ
    from entry to entry: over many images about a standard normal number.
    """
    stats = channel_stats(widen(images))
    # Whole numbers, so that the phases are the same on every device.
    count = torch.arange(6 * length, device=images.device)
    turns = (count * count * 40503 % 65537 / 65537).unflatten(0, (length, 6))
    return (2 * math.pi * (stats[:, None] + turns)).sin().sum(dim=2) / math.sqrt(3)
