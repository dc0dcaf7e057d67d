"""Small random convolutional networks, drawn anew for each image. They need no bank and no weights.

Every weight is an entry of the code, which is drawn from the standard normal distribution, or is computed
from an entry. Kernels are point-symmetric, so that they do not move edges.
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
"""Side of the largest kernel of `RandomConvolution`, in pixels."""
WINDOW = 1 / 6
"""Standard deviation of the Gaussian window of kernels, as a share of the kernel's side."""
FARTHEST = 0.4
"""Largest distance of a channel's mean from 0.5 after `in_range`."""
MOST_TIMES = 3
"""Largest number of convolutions in `ProgressiveConvolution`."""
LEAST_GAMMA, AFFINE = 0.3, 0.5
"""Smallest gamma of `ProgressiveConvolution`; standard deviation of its beta and gamma."""
WIDTHS = (3, 2, 2, 2, 3)
"""Channels before, between and after the layers of `IntensityNetwork`."""
LAYERS = len(WIDTHS) - 1
FILTERS = sum(wide * narrow for wide, narrow in pairwise(WIDTHS))
_SHIFT, SLOPE = 0.5, 0.2
"""Standard deviation of the shifts of `IntensityNetwork`; slope of its leaky ReLU."""


class RandomConvolution(AbstractGenerator):
    """Pass each image through one random convolution.

    Xu et al. 2021, "Robust and generalizable visual representation learning via random convolutions", sec.
    3: the side k of the kernel is 1, 3, 5 or 7 with equal chance, its weights are drawn from
    N(0, 1 / (C k^2)), and the result is mixed with the image by a share drawn from U(0, 1). That share is
    `strength=(0, 1)`.

    Unlike the paper: kernels are point-symmetric and weighted with a Gaussian of deviation `k / 6`, because
    the paper's kernels of 7 x 7 pixels move edges by 2.5 pixels. The paper does not limit values to [0, 1].
    Here the mean of a channel is at most 0.4 from the middle, and all channels together keep the image's
    deviation; see `in_range`.

    Code: one number for the side of the kernel, then 3 x 3 x 7 x 7 weights: 442 floats. The prior is the
    standard normal distribution.
    """

    name = "randconv"
    has_prior = True
    codes_average = False
    margin: int | None = LARGEST // 2
    code_length = 1 + 9 * LARGEST**2

    def encode_style(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 442"]:
        """Derive a code from the colours of each image; see `named_by`."""
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
        # The image is centred at 0, which is a shift of each channel here.
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
    applied L times. After each time, every channel is standardised, scaled by gamma, shifted by beta and
    passed through tanh (eqs. 3 and 4). Gamma and beta are drawn from N(0, 0.5^2).

    Unlike the paper: kernels are point-symmetric, and there are no deformable offsets, which move labels. L
    is uniform from 1 to 3. The paper has 10, at which one window in six lost its edges. 0.3 is added to the
    size of gamma, because channels with a smaller gamma show almost nothing. The result of tanh in (-1, 1) is
    scaled to (0, 1). The paper's mixing share is `strength=(0, 1)`.

    Code: one number each for L and the deviation, then gamma and beta of each channel, then 3 x 3 x 3 x 3
    weights: 89 floats. The prior is the standard normal distribution.
    """

    name = "pro-randconv"
    has_prior = True
    codes_average = False
    margin: int | None = MOST_TIMES
    code_length = 2 + 3 + 3 + 81

    def encode_style(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 89"]:
        """Derive a code from the colours of each image; see `named_by`."""
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
        # tanh(x) / 2 + 1 / 2 is the sigmoid of 2 x, which takes a fifth of the time.
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
    segmentation", sec. III-B (GIN): layers of 2, 2 and 2 channels and one with the image's channels, kernels
    of 1 x 1 or 3 x 3 with equal chance, leaky ReLU between them. The result keeps the image's Frobenius norm
    and is mixed with the image by a share drawn from U(0, 1). That share is `strength=(0, 1)`. Made for CT
    and MR: it suits grey images and slices of volumes as well as colour images.

    Unlike the paper: kernels are point-symmetric and weighted with a Gaussian of deviation half a pixel.
    Weights are divided by the square root of the number of channels that they join. Shifts are drawn from
    N(0, 0.5^2). The ReLU has a slope of 0.2 and not 0.01, with which one window in seven lost its edges. The
    norm is that of the difference to the mean; means are at most 0.4 from the middle.

    Code: one number each for the sides of the kernels, then the weights of each layer, then the shifts: 193
    floats. The prior is the standard normal distribution.
    """

    name = "gin"
    has_prior = True
    codes_average = False
    margin: int | None = LAYERS
    code_length: int = LAYERS + 9 * FILTERS + sum(WIDTHS[1:])

    def encode_style(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 193"]:
        """Derive a code from the colours of each image; see `named_by`."""
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
            if layer == 0:  # scale the image to mean 0 and deviation 1
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
    """Run a network on images and mix in its result: one by one on a CPU, otherwise all at once.

    The CPU's cache holds one image.

    Args:
        run: function from images and `parts` to the result at full strength.
        images: `(B, 3, H, W)` in [0, 1].
        parts: weights and other tensors, with one row for each image.
        strength: `(B,)` in [0, 1], the share of the result.
    """
    images = images.contiguous()  # one factor per channel is slow in other memory layouts
    full = widen(images)
    parts = [part.to(full.dtype) for part in parts]
    if not apart(images) or len(images) < 2:
        return blend(images, run(full, *parts), strength)
    rows = zip(*(part.split(1) for part in (images, strength, full, *parts)), strict=True)
    return torch.cat([blend(image, run(*row), share) for image, share, *row in rows])


def apart(images: Tensor) -> bool:
    """Return whether rows may be computed one after the other.

    Not on a GPU, which would wait; not in a graph, whose shapes must be fixed; and not for views of one
    image, which share their statistics.
    """
    return images.device.type == "cpu" and not torch.compiler.is_compiling() and not sharing()


def alone(images: Tensor) -> bool:
    """Return whether this is a single image, so that the work may depend on its code."""
    return apart(images) and len(images) == 1


def uniform_entries(codes: Tensor) -> Tensor:
    """Convert standard normal numbers to uniform numbers in [0, 1]."""
    return 0.5 + 0.5 * torch.erf(codes / math.sqrt(2))


def one_of(codes: Tensor, count: int) -> Tensor:
    """Convert standard normal numbers to uniform whole numbers from 0 to `count - 1`."""
    return (uniform_entries(codes) * count).floor().clamp(max=count - 1)


def symmetric(weights: Float[Tensor, "*N K K"]) -> Float[Tensor, "*N K K"]:
    """Make kernels point-symmetric, so that they do not move edges."""
    return (weights + weights.flip(-1, -2)) / math.sqrt(2)


def kernels(weights: Float[Tensor, "B *N K K"], reach: Float[Tensor, " B"]) -> Float[Tensor, "B *N K K"]:
    """Make symmetric kernels with sides of `2 * reach + 1` pixels, weighted with a Gaussian of norm 1.

    Smaller kernels are padded with zeros; see `_within`.
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
    """Crop the zeros around the kernel if there is only one image."""
    if not alone(images):
        return weights
    middle, size = weights.shape[-1] // 2, int(reach)
    return weights[..., middle - size : middle + size + 1, middle - size : middle + size + 1]


def convolve(
    images: Float[Tensor, "B I H W"],
    weights: Float[Tensor, "B O I K K"],
    shift: Float[Tensor, "B O"] | None = None,
) -> Float[Tensor, "B O H W"]:
    """Convolve each image with its own kernel, with repeated edges, and add `shift`.

    A matrix product computes one result for each row of the kernel; these are shifted and added. Times for
    one image of 224 px and a kernel of 7 x 7 (3 x 3) on a CPU thread: 1.4 (0.4) ms; a grouped convolution 6.6
    (0.7), `conv2d` 2.5 (0.6), a matrix for blocks of 8 pixels 1.6 (0.7), unfolding 24 (1.9) and a Fourier
    transform 11 (10) ms.
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
    """Bring the output of a network into [0, 1], except for the brightest and darkest pixels.

    Clamping alone made whole surfaces black or white, and tanh removed the contrast of some images. So each
    channel keeps its mean, moved smoothly to within `FARTHEST` of the middle, and all channels together get
    the deviation of the image.

    Args:
        made: output of a network; `scale * made + shift` is an image centred at 0.
        own: means and deviations of the input image.
        shift: shift of each channel, or one for all.
        scale: scale of all channels.
    """
    stats = channel_stats(made)
    mean = scale * stats[:, : made.shape[1]] + shift
    return with_contrast(made, stats, own, 0.5 + FARTHEST * torch.tanh(mean / FARTHEST))


def affine(
    images: Float[Tensor, "B C H W"], scale: Float[Tensor, "B D"], shift: Float[Tensor, "B C"]
) -> Float[Tensor, "B C H W"]:
    """Scale and shift channels; faster than `torch.addcmul` for three channels on a CPU."""
    scale, shift = (value[:, :, None, None].to(images.dtype) for value in (scale, shift))
    return images.mul(scale).add_(shift)


def with_contrast(
    made: Float[Tensor, "B C H W"],
    stats: Float[Tensor, "B C2"],
    own: Float[Tensor, "B C2"],
    centre: Float[Tensor, "B C"],
) -> Float[Tensor, "B C H W"]:
    """Set the means of the channels, and the deviation of all channels together to the image's.

    Args:
        made: output of a network.
        stats: means and deviations of `made`.
        own: means and deviations of the input image.
        centre: new means.
    """
    mean, std = stats.chunk(2, dim=1)
    _, wanted = own.chunk(2, dim=1)
    gain = wanted.norm(dim=1, keepdim=True) / std.norm(dim=1, keepdim=True)
    return affine(made, gain, centre - mean * gain)


def named_by(images: Float[Tensor, "B 3 H W"], length: int) -> Float[Tensor, "B {length}"]:
    """Derive a code from each image's colours, since a random network cannot be read from an image.

    Each entry is a sum of six sines of the channels' means and deviations. The phases differ from entry to
    entry. Over many images an entry is about standard normal.
    """
    stats = channel_stats(widen(images))
    # Whole numbers, so that the phases are the same on every device.
    count = torch.arange(6 * length, device=images.device)
    turns = (count * count * 40503 % 65537 / 65537).unflatten(0, (length, 6))
    return (2 * math.pi * (stats[:, None] + turns)).sin().sum(dim=2) / math.sqrt(3)
