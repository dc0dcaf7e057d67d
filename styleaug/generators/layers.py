"""Building blocks shared by the learned generators: channel statistics, AdaIN, padding, blocks, ends."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from styleaug.errors import ConfigError
from styleaug.generators.shared import pooled, sharing

__all__ = [
    "ModulatedBlock",
    "ResidualBlock",
    "Stem",
    "Tail",
    "adain",
    "channel_stats",
    "conv3x3",
    "initialise",
    "initialise_gan",
    "modulate",
    "normalise",
    "on_padded",
    "pad_to_multiple",
    "recolour",
    "smooth",
    "split_stats",
    "whiten",
]

is_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)  # newer than torch 2.6
EPS = 1e-5
FLAT = 0.02
"""Deviation in [0, 1] below which an image counts as flat."""


def channel_stats(features: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C2"]:
    """Read the mean and standard deviation of each channel.

    Returns:
        `(B, 2C)` in float32 or wider: C means, then C standard deviations (with EPS = 1e-5 added
        to the variance, so that their gradient is finite on flat images).
    """
    if torch.is_grad_enabled() and features.requires_grad and not sharing():
        return _ChannelStats.apply(features)
    return read_stats(features)


def read_stats(features: Tensor) -> Tensor:
    """Compute what `channel_stats` gives, without a gradient of its own."""
    if features.dtype in (torch.float16, torch.bfloat16):
        features = features.float()
    if sharing():
        mean, square = pooled(moments, features).chunk(2, dim=1)
        return torch.cat([mean, ((square - mean.square()).clamp_min(0) + EPS).sqrt()], dim=1)
    # The difference of two means: torch.var_mean took 6 to 30 times as long on a CPU (torch 2.15).
    mean = features.mean(dim=(2, 3))
    if is_exporting() and features.shape[1] <= 3:
        # Other runtimes sum less exactly, and nearly grey colours deviate little from a large mean.
        var = (features - mean[:, :, None, None]).square().mean(dim=(2, 3))
    else:
        var = (features.square().mean(dim=(2, 3)) - mean.square()).clamp_min(0)
    return torch.cat([mean, (var + EPS).sqrt()], dim=1)


def moments(features: Tensor) -> Tensor:
    """Compute the means of each channel and of its square."""
    return torch.cat([features.mean(dim=(2, 3)), features.square().mean(dim=(2, 3))], dim=1)


class _ChannelStats(torch.autograd.Function):
    """`channel_stats` with its gradient in one multiply-add, in the features' own type and layout.

    Autograd's took half of a training step through VGG-19 on a CPU.
    """

    @staticmethod
    def forward(ctx, features: Tensor) -> Tensor:
        stats = read_stats(features)
        ctx.save_for_backward(features, stats)
        return stats

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        features, stats = ctx.saved_tensors
        (mean, std), (to_mean, to_std) = split_stats(stats), split_stats(grad)
        count = features.shape[2] * features.shape[3]
        scale = to_std / (std * count)
        shift = to_mean / count - mean * scale
        return torch.addcmul(shift.to(features.dtype), features, scale.to(features.dtype))


def normalise(
    features: Float[Tensor, "B C H W"], stats: Float[Tensor, "B C2"] | None = None
) -> Float[Tensor, "B C H W"]:
    """Bring each channel to mean 0 and standard deviation 1 (`stats` saves reading them again)."""
    if stats is None and torch.is_grad_enabled() and features.requires_grad and not sharing():
        return _Normalise.apply(features)
    return _standardise(features, read_stats(features) if stats is None else stats)


def _standardise(features: Tensor, stats: Tensor) -> Tensor:
    """Take off the mean and divide by the deviation, in one multiply-add over the pixels."""
    mean, std = split_stats(stats)
    return torch.addcmul((-mean / std).to(features.dtype), features, (1 / std).to(features.dtype))


class _Normalise(torch.autograd.Function):
    """`normalise` with its gradient in two sums and two multiply-adds, in the features' own type."""

    @staticmethod
    def forward(ctx, features: Tensor) -> Tensor:
        stats = read_stats(features)
        # The features and not the result, so that a ReLU may overwrite the result.
        ctx.save_for_backward(features, stats)
        return _standardise(features, stats)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        features, stats = ctx.saved_tensors
        mean, std = split_stats(stats)
        wide = torch.promote_types(features.dtype, torch.float32)
        average = grad.mean(dim=(2, 3), keepdim=True, dtype=wide)
        product = (grad * features).mean(dim=(2, 3), keepdim=True, dtype=wide)
        # grad / std, less its mean and less its part along the features.
        along = (product - mean * average) / std.pow(3)
        shift = mean * along - average / std
        to_features = torch.addcmul(shift.to(grad.dtype), grad, (1 / std).to(grad.dtype))
        return to_features.addcmul_(features, -along.to(grad.dtype))


def adain(
    content: Float[Tensor, "B C H W"],
    code: Float[Tensor, "B C2"],
    content_stats: Float[Tensor, "B C2"] | None = None,
) -> Float[Tensor, "B C H W"]:
    """Give `content` the channel statistics in `code` (Huang & Belongie 2017, eq. 8).

    Args:
        content: `(B, C, H, W)` features, any range.
        code: `(B, 2C)`; the first C entries are means, the last C standard deviations >= 0.
        content_stats: those of `content`, if the caller has them already.
    """
    mean, std = split_stats(code)
    content_mean, content_std = split_stats(
        channel_stats(content) if content_stats is None else content_stats
    )
    # One multiply-add over the pixels; the rest is arithmetic on (B, C) numbers, in full precision.
    scale = std / content_std
    shift = (mean - content_mean * scale).to(content.dtype)
    return torch.addcmul(shift, content, scale.to(content.dtype))


def whiten(images: Float[Tensor, "B 3 H W"], stats: Float[Tensor, "B 6"]) -> Float[Tensor, "B 3 H W"]:
    """Bring colours to mean 0 and deviation 1; less for nearly flat images, whose noise would grow."""
    mean, std = split_stats(stats)
    scale = 1 / std.clamp_min(FLAT)
    return torch.addcmul((-mean * scale).to(images.dtype), images, scale.to(images.dtype))


def recolour(
    images: Float[Tensor, "B 3 H W"],
    painted: Float[Tensor, "B 3 H W"],
    colours: Float[Tensor, "B 6"],
    strength: Float[Tensor, " B"],
) -> Float[Tensor, "B 3 H W"]:
    """Undo `whiten` with the colours that are wanted, and mix with the images where strength is below 1.

    Args:
        images: what the generator was given.
        painted: what it made of them, whitened.
        colours: means and standard deviations to give them, already as far as `strength` moves them.
        strength: `(B,)` in [0, 1].
    """
    mean, std = split_stats(colours)
    painted = torch.addcmul(mean.to(painted.dtype), painted, std.to(painted.dtype))
    # The codes carry most of `strength`; this rises early and is exact at 0 and 1.
    eased = (strength * (2 - strength)).to(images.dtype)
    return torch.lerp(images, painted, eased[:, None, None, None])


def split_stats(stats: Float[Tensor, "B C2"]) -> tuple[Tensor, Tensor]:
    """Split `(B, 2C)` statistics into mean and deviation, each `(B, C, 1, 1)`."""
    mean, std = stats[:, :, None, None].chunk(2, dim=1)
    return mean, std


def pad_to_multiple(
    images: Float[Tensor, "B C H W"], multiple: int, minimum: int
) -> Float[Tensor, "B C H2 W2"]:
    """Pad right and bottom to multiples of `multiple`, at least `minimum`, by repeating the edge.

    The caller crops the result back to `(H, W)`. Repeating works from one pixel up, where
    reflection does not.
    """
    height, width = images.shape[-2:]
    bottom, right = (padded(size, multiple, minimum) - size for size in (height, width))
    # Sizes that `torch.export` keeps open can be asked no questions; padding by 0 is none.
    needed = isinstance(right, torch.SymInt) or isinstance(bottom, torch.SymInt) or right or bottom
    return F.pad(images, (0, right, 0, bottom), mode="replicate") if needed else images


def padded(size: int, multiple: int, minimum: int) -> int:
    """Round up to a multiple; written so that `torch.export` sees the factor in an open size."""
    return multiple * max((size + multiple - 1) // multiple, (minimum + multiple - 1) // multiple)


def on_padded(
    run: Callable[[Tensor], Tensor], images: Float[Tensor, "B C H W"], multiple: int, minimum: int
) -> Float[Tensor, "B C H W"]:
    """Let `run` see `images` as `pad_to_multiple` pads them, and crop what it gives."""
    height, width = images.shape[-2:]
    seen = pad_to_multiple(images, multiple, minimum)
    made = run(seen)
    if isinstance(height, torch.SymInt) or isinstance(width, torch.SymInt):
        return F.pad(made, (0, width - seen.shape[-1], 0, height - seen.shape[-2]))
    return made[..., :height, :width]


def conv3x3(channels_in: int, channels_out: int, *, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    """Make a 3x3 convolution with reflected borders, which leave no dark frame."""
    return nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=bias, padding_mode="reflect")


def initialise(network: nn.Module, *, quiet: Sequence[nn.Module]) -> None:
    """Draw convolutions after He et al. 2015; the `quiet` layers start close to zero."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)  # pyright: ignore[reportArgumentType]
    for layer in quiet:
        nn.init.normal_(layer.weight, std=1e-3)  # pyright: ignore[reportArgumentType]
        nn.init.zeros_(layer.bias)  # pyright: ignore[reportArgumentType]


def initialise_gan(network: nn.Module, *, quiet: Sequence[nn.Module] = ()) -> None:
    """Draw weights from N(0, 0.02) and set biases to 0 (Isola et al. 2017; Zhu et al. 2017).

    The `quiet` layers start close to zero.
    """
    for parameter in network.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.02)
        else:
            nn.init.zeros_(parameter)
    for layer in quiet:
        nn.init.normal_(layer.weight, std=1e-3)  # pyright: ignore[reportArgumentType]


def smooth(images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
    """Average 2x2 pixels, which is blind to any pattern that alternates from pixel to pixel."""
    padded = F.pad(images, (1, 0, 1, 0), mode="replicate")
    pairs = padded[..., 1:] + padded[..., :-1]
    return (pairs[:, :, 1:] + pairs[:, :, :-1]) * 0.25


class ResidualBlock(nn.Module):
    """Two instance-normalised convolutions whose result is added (Johnson et al. 2016)."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = conv3x3(channels, channels, bias=False)
        self.conv2 = conv3x3(channels, channels, bias=False)

    def forward(self, features: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Add to `features` what the convolutions make of them."""
        hidden = F.relu(normalise(self.conv1(features)), inplace=True)
        return features + normalise(self.conv2(hidden))


class ModulatedBlock(nn.Module):
    """Residual block whose two normalisations take scale and shift from the style.

    Conditional instance normalisation as in Dumoulin et al. 2017, eq. 5.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = conv3x3(channels, channels)
        self.conv2 = conv3x3(channels, channels)
        self.channels = channels

    @property
    def modulation(self) -> int:
        """How many numbers a row the block takes: shift and scale of two normalisations."""
        return 4 * self.channels

    def forward(
        self, features: Float[Tensor, "B C H W"], modulation: Float[Tensor, "B M"]
    ) -> Float[Tensor, "B C H W"]:
        """Add to `features` what the style makes of them.

        Args:
            features: `(B, C, H, W)`.
            modulation: `(B, 4C)`: shift and scale offset of the first and the second
                normalisation; zeros leave a plain instance-normalised block.
        """
        first, second = modulation.chunk(2, dim=1)
        hidden = F.relu(modulate(self.conv1(features), first))
        return features + modulate(self.conv2(hidden), second)


def modulate(
    features: Float[Tensor, "B C H W"], modulation: Float[Tensor, "B C2"]
) -> Float[Tensor, "B C H W"]:
    """Normalise `features`, then scale by 1 + the second half of `modulation` and add the first."""
    shift, scale = modulation.chunk(2, dim=1)
    return adain(features, torch.cat([shift, 1 + scale], dim=1))


class Stem(nn.Module):
    """First half of the translator of Johnson et al. 2016: pixels to features at a quarter of the size.

    Args:
        width: channels after the first convolution; then `2 * width` and `4 * width`.
        fold: 1, a 7x7 convolution sees the pixels; 2, four pixels become one with 12 channels, a 3x3
            convolution sees them, and all that follows costs a quarter.
    """

    def __init__(self, width: int, fold: int):
        super().__init__()
        if fold not in (1, 2):
            raise ConfigError(f"fold must be 1 or 2, got {fold!r}.")
        self.fold = fold
        self.channels = [width, 2 * width, 4 * width]
        self.first = first_or_last(3 * fold**2, width, fold, bias=False)
        self.halve = conv3x3(width, 2 * width, stride=2, bias=False)
        self.quarter = conv3x3(2 * width, 4 * width, stride=2, bias=False)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        """Compute the features after each convolution, in the weights' type."""
        centred = (2 * images - 1).to(self.first.weight.dtype)
        x = centred if self.fold == 1 else F.pixel_unshuffle(centred, self.fold)
        levels = []
        for conv in (self.first, self.halve, self.quarter):
            x = F.relu(normalise(conv(x)), inplace=True)
            levels.append(x)
        return levels


class Tail(nn.Module):
    """Second half of the translator of Johnson et al. 2016: from a quarter of the size to pixels.

    Pixels are repeated and then convolved, where the paper transposes a convolution: its kernel
    covers neighbouring pixels unequally often, which shows as a checkerboard (Odena et al. 2016).

    Args:
        width: as `Stem` has it.
        fold: as `Stem` has it. With 2, what alternates from pixel to pixel is averaged away.
        skip: a fourth channel says for each pixel how much of the image's own value stays. All of it
            in a fresh network, which so starts as the identity.
    """

    leak = 0.1
    """Slope outside [0, 1] with `skip`: a white that is too white still hears from the losses."""

    def __init__(self, width: int, fold: int, *, skip: bool):
        super().__init__()
        self.fold, self.skip = fold, skip
        self.channels = [2 * width, width]
        self.to_half = conv3x3(4 * width, 2 * width, bias=False)
        self.to_full = conv3x3(2 * width, width, bias=False)
        self.last = first_or_last(width, (4 if skip else 3) * fold**2, fold)

    def forward(
        self,
        features: Float[Tensor, "B C H4 W4"],
        images: Float[Tensor, "B 3 H W"],
        modulations: Sequence[Tensor] | None = None,
    ) -> Float[Tensor, "B 3 H W"]:
        """Paint, in about [0, 1].

        Args:
            features: `(B, 4 * width, H / (4 * fold), W / (4 * fold))`.
            images: what the features were made from; only `skip` looks at them.
            modulations: shift and scale offset for each of the two levels, if the style sets them.
        """
        x = features
        for level, conv in enumerate((self.to_half, self.to_full)):
            x = conv(F.interpolate(x, scale_factor=2, mode="nearest"))
            x = F.relu(normalise(x) if modulations is None else modulate(x, modulations[level]), inplace=True)
        painted = self.last(x).to(images.dtype)
        if self.fold > 1:
            painted = smooth(F.pixel_shuffle(painted.contiguous(), self.fold))
        if not self.skip:
            return torch.tanh(painted) * 0.5 + 0.5
        value = torch.addcmul(torch.tanh(painted[:, :3]), 2 * images - 1, 1 + painted[:, 3:]) * 0.5 + 0.5
        return torch.lerp(value.clamp(0, 1), value, self.leak)


def first_or_last(channels_in: int, channels_out: int, fold: int, *, bias: bool = True) -> nn.Conv2d:
    """Make the convolution next to the pixels: 7x7, or 3x3 where pixels are folded."""
    size = 7 if fold == 1 else 3
    return nn.Conv2d(channels_in, channels_out, size, padding=size // 2, bias=bias, padding_mode="reflect")
