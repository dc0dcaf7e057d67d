"""Building blocks of the learned generators: channel statistics, AdaIN, padding, layers."""

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

# Newer than torch 2.6.
is_exporting: Callable[[], bool] = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)
EPS = 1e-5
FLAT = 0.02
"""Standard deviation below which an image in [0, 1] counts as flat."""


def channel_stats(features: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C2"]:
    """Compute the mean and standard deviation of each channel.

    Returns:
        `(B, 2C)` in float32 or wider: C means, then C standard deviations. EPS = 1e-5 is added to
        the variance, so that the gradient is finite on flat images.
    """
    if torch.is_grad_enabled() and features.requires_grad and not sharing():
        return _ChannelStats.apply(features)
    return read_stats(features)


def read_stats(features: Tensor) -> Tensor:
    """Compute `channel_stats` without its custom gradient."""
    if is_exporting() and features.shape[1] <= 3:
        # Other runtimes sum less exactly, and in nearly grey colours the deviation is small beside the mean.
        mean = features.mean(dim=(2, 3))
        var = (features - mean[:, :, None, None]).square().mean(dim=(2, 3))
    else:
        # The difference of two means: torch.var_mean is 6 to 30 times as slow on a CPU (torch 2.15).
        both = pooled(moments, features) if sharing() else moments(features)
        mean, square = both.chunk(2, dim=1)
        var = (square - mean.square()).clamp_min(0)
    return torch.cat([mean, (var + EPS).sqrt()], dim=1)


def moments(features: Tensor) -> Tensor:
    """Compute the mean of each channel and the mean of its square, in float32 or wider."""
    wide = torch.promote_types(features.dtype, torch.float32)
    if features.device.type == "cpu":  # faster than sums that convert
        features = features.to(wide)
        square = features.square().mean(dim=(2, 3))
    else:  # reads the features, and writes nothing of their size
        norm = torch.linalg.vector_norm(features, dim=(2, 3), dtype=wide)
        square = norm.square() / (features.shape[2] * features.shape[3])
    return torch.cat([features.mean(dim=(2, 3), dtype=wide), square], dim=1)


def per_channel(
    features: Float[Tensor, "B C H W"], scale: Float[Tensor, "B C 1 1"], shift: Float[Tensor, "B C 1 1"]
) -> Float[Tensor, "B C H W"]:
    """Multiply each channel by `scale` and add `shift`; the result has the dtype of `features`."""
    scale, shift = scale.to(features.dtype), shift.to(features.dtype)
    channels, width = features.shape[1], features.shape[3]
    rounds = features.dtype in (torch.float16, torch.bfloat16)
    plain = features.device.type == "cpu" and not in_graph()
    if plain and features.is_contiguous() and not rounds:
        return features.mul(scale).add_(shift)  # takes half of the time of `addcmul`
    last = features.is_contiguous(memory_format=torch.channels_last)
    if not (on_cpu(features) and rounds and channels % 32 and last):
        return torch.addcmul(shift, features, scale)
    # `addcmul` computes 32 values at once along the innermost dimension, and fewer one by one. So that
    # dimension becomes a row of pixels with their channels, which takes an eighth of the time.
    rows = features.permute(0, 2, 3, 1).flatten(2)
    scale, shift = (value.view(-1, 1, channels).repeat(1, 1, width) for value in (scale, shift))
    return torch.addcmul(shift, rows, scale).unflatten(2, (width, channels)).permute(0, 3, 1, 2)


def on_cpu(features: Tensor) -> bool:
    """Return whether code may depend on how a CPU computes: not in a graph, and not for gradients."""
    return features.device.type == "cpu" and not in_graph() and not torch.is_grad_enabled()


def in_graph() -> bool:
    """Return whether the operations are recorded for another runtime or compiler."""
    return torch.compiler.is_compiling() or is_exporting()


class _ChannelStats(torch.autograd.Function):
    """`channel_stats` whose gradient is one multiply-add, in the features' dtype and layout.

    Autograd's own gradient took half of a training step through VGG-19 on a CPU.
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
    """Scale each channel to mean 0 and standard deviation 1; `stats` are its statistics, if known."""
    if stats is None and torch.is_grad_enabled() and features.requires_grad and not sharing():
        return _Normalise.apply(features)
    return _standardise(features, read_stats(features) if stats is None else stats)


def _standardise(features: Tensor, stats: Tensor) -> Tensor:
    """Subtract the mean and divide by the deviation, in one multiply-add over the pixels."""
    mean, std = split_stats(stats)
    return per_channel(features, 1 / std, -mean / std)


class _Normalise(torch.autograd.Function):
    """`normalise` whose gradient is two sums and two multiply-adds, in the features' dtype."""

    @staticmethod
    def forward(ctx, features: Tensor) -> Tensor:
        stats = read_stats(features)
        # Keep the features, not the result, so that a ReLU may overwrite the result.
        ctx.save_for_backward(features, stats)
        mean, std = split_stats(stats)  # no view, because a ReLU may overwrite it
        return torch.addcmul((-mean / std).to(features.dtype), features, (1 / std).to(features.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        features, stats = ctx.saved_tensors
        mean, std = split_stats(stats)
        wide = torch.promote_types(features.dtype, torch.float32)
        average = grad.mean(dim=(2, 3), keepdim=True, dtype=wide)
        product = (grad * features).mean(dim=(2, 3), keepdim=True, dtype=wide)
        # grad / std, minus its mean and minus its component along the features.
        along = (product - mean * average) / std.pow(3)
        shift = mean * along - average / std
        to_features = torch.addcmul(shift.to(grad.dtype), grad, (1 / std).to(grad.dtype))
        return to_features.addcmul_(features, -along.to(grad.dtype))


def adain(
    content: Float[Tensor, "B C H W"],
    code: Float[Tensor, "B C2"],
    content_stats: Float[Tensor, "B C2"] | None = None,
) -> Float[Tensor, "B C H W"]:
    """Set the channel statistics of `content` to those in `code` (Huang & Belongie 2017, eq. 8).

    Args:
        content: `(B, C, H, W)` features, any range.
        code: `(B, 2C)`; the first C entries are means, the last C standard deviations >= 0.
        content_stats: statistics of `content`, if the caller has them already.
    """
    mean, std = split_stats(code)
    content_mean, content_std = split_stats(
        channel_stats(content) if content_stats is None else content_stats
    )
    # One multiply-add over the pixels; the rest works on (B, C) numbers in full precision.
    scale = std / content_std
    return per_channel(content, scale, mean - content_mean * scale)


def whiten(images: Float[Tensor, "B 3 H W"], stats: Float[Tensor, "B 6"]) -> Float[Tensor, "B 3 H W"]:
    """Scale colours to mean 0 and deviation 1; less for nearly flat images, whose noise would grow."""
    mean, std = split_stats(stats)
    scale = 1 / std.clamp_min(FLAT)
    return per_channel(images, scale, -mean * scale)


def recolour(
    images: Float[Tensor, "B 3 H W"],
    painted: Float[Tensor, "B 3 H W"],
    colours: Float[Tensor, "B 6"],
    strength: Float[Tensor, " B"],
) -> Float[Tensor, "B 3 H W"]:
    """Undo `whiten` with new colours, and mix with the image where strength is below 1.

    Args:
        images: input of the generator.
        painted: whitened output of the network.
        colours: means and standard deviations of the result, already moved by `strength`.
        strength: `(B,)` in [0, 1].
    """
    mean, std = split_stats(colours)
    painted = per_channel(painted, std, mean)
    # The codes apply most of `strength`; this factor rises early and is exact at 0 and 1.
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

    The caller crops the result back to `(H, W)`. Repeating works from one pixel up; reflection does not.
    """
    height, width = images.shape[-2:]
    bottom, right = (padded(size, multiple, minimum) - size for size in (height, width))
    # No `if` on sizes that `torch.export` keeps open: padding by 0 does nothing.
    needed = isinstance(right, torch.SymInt) or isinstance(bottom, torch.SymInt) or right or bottom
    return F.pad(images, (0, right, 0, bottom), mode="replicate") if needed else images


def padded(size: int, multiple: int, minimum: int) -> int:
    """Round up to a multiple, in a form from which `torch.export` can derive the factor."""
    return multiple * max((size + multiple - 1) // multiple, (minimum + multiple - 1) // multiple)


def on_padded(
    run: Callable[[Tensor], Tensor], images: Float[Tensor, "B C H W"], multiple: int, minimum: int
) -> Float[Tensor, "B C H W"]:
    """Pad `images` with `pad_to_multiple`, call `run`, and crop its result."""
    height, width = images.shape[-2:]
    seen = pad_to_multiple(images, multiple, minimum)
    made = run(seen)
    if isinstance(height, torch.SymInt) or isinstance(width, torch.SymInt):
        return F.pad(made, (0, width - seen.shape[-1], 0, height - seen.shape[-2]))
    return made[..., :height, :width]


def conv3x3(channels_in: int, channels_out: int, *, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    """Return a 3x3 convolution with reflected borders, which avoid a dark frame."""
    return nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=bias, padding_mode="reflect")


def initialise(network: nn.Module, *, quiet: Sequence[nn.Module]) -> None:
    """Draw the weights of convolutions as He et al. 2015; the `quiet` layers start close to zero."""
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


def shuffle(features: Float[Tensor, "B C4 H W"]) -> Float[Tensor, "B C H2 W2"]:
    """Make each four channels 2x2 pixels, as `F.pixel_shuffle` does; contiguous."""
    if not on_cpu(features):
        return F.pixel_shuffle(features.contiguous(), 2)
    # `F.pixel_shuffle` writes with a stride, which takes three times as long.
    upper_left, *_ = parts = features.contiguous().unflatten(1, (-1, 2, 2)).unbind(3)
    batch, channels, _, height, width = upper_left.shape
    return torch.stack(parts, dim=-1).transpose(2, 3).reshape(batch, channels, 2 * height, 2 * width)


def smooth(images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
    """Average 2x2 pixels, which removes every pattern that alternates from pixel to pixel."""
    if images.device.type != "cpu":  # one kernel instead of four, which a CPU computes very slowly
        return F.avg_pool2d(images, 2, 1, padding=1, count_include_pad=False)[..., :-1, :-1]
    padded = F.pad(images, (1, 0, 1, 0), mode="replicate")
    pairs = padded[..., 1:] + padded[..., :-1]
    return (pairs[:, :, 1:] + pairs[:, :, :-1]) * 0.25


class ResidualBlock(nn.Module):
    """Two instance-normalised convolutions whose result is added (Johnson et al. 2016)."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1: nn.Conv2d = conv3x3(channels, channels, bias=False)
        self.conv2: nn.Conv2d = conv3x3(channels, channels, bias=False)

    def forward(self, features: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Add the result of the convolutions to `features`."""
        hidden = F.relu(normalise(self.conv1(features)), inplace=True)
        return features + normalise(self.conv2(hidden))


class ModulatedBlock(nn.Module):
    """Residual block whose two normalisations take scale and shift from the style.

    Conditional instance normalisation as in Dumoulin et al. 2017, eq. 5.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.conv1: nn.Conv2d = conv3x3(channels, channels)
        self.conv2: nn.Conv2d = conv3x3(channels, channels)
        self.channels = channels

    @property
    def modulation(self) -> int:
        """Count the numbers that the block takes per row: shift and scale of two normalisations."""
        return 4 * self.channels

    def forward(
        self, features: Float[Tensor, "B C H W"], modulation: Float[Tensor, "B M"]
    ) -> Float[Tensor, "B C H W"]:
        """Add the result of the modulated convolutions to `features`.

        Args:
            features: `(B, C, H, W)`.
            modulation: `(B, 4C)`, shift and scale offset of the first and of the second
                normalisation. Zeros make a plain instance-normalised block.
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
        fold: with 1, a 7x7 convolution reads the pixels. With 2, four pixels become one with 12 channels, a
            3x3 convolution reads them, and all later layers cost a quarter.
    """

    def __init__(self, width: int, fold: int):
        super().__init__()
        if fold not in (1, 2):
            raise ConfigError(f"fold must be 1 or 2, got {fold!r}.")
        self.fold = fold
        self.channels: list[int] = [width, 2 * width, 4 * width]
        self.first: nn.Conv2d = first_or_last(3 * fold**2, width, fold, bias=False)
        self.halve: nn.Conv2d = conv3x3(width, 2 * width, stride=2, bias=False)
        self.quarter: nn.Conv2d = conv3x3(2 * width, 4 * width, stride=2, bias=False)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        """Compute the features after each convolution, in the weights' dtype."""
        centred = (2 * images - 1).to(self.first.weight.dtype)
        x = centred if self.fold == 1 else F.pixel_unshuffle(centred, self.fold)
        levels = []
        for conv in (self.first, self.halve, self.quarter):
            x = F.relu(normalise(conv(x)), inplace=True)
            levels.append(x)
        return levels


class Tail(nn.Module):
    """Second half of the translator of Johnson et al. 2016: from a quarter of the size to pixels.

    Pixels are repeated and then convolved. The paper uses a transposed convolution: its kernel covers
    neighbouring pixels unequally often, which shows as a checkerboard (Odena et al. 2016).

    Args:
        width: as in `Stem`.
        fold: as in `Stem`. With 2, patterns that alternate from pixel to pixel are averaged away.
        skip: a fourth channel holds for each pixel how much of the image's own value stays. In a new
            network all of it stays, so that the network starts as the identity.
    """

    fold: int
    skip: bool

    leak: float = 0.1
    """Slope outside [0, 1] with `skip`, so that values outside still get a gradient from the losses."""

    def __init__(self, width: int, fold: int, *, skip: bool):
        super().__init__()
        self.fold, self.skip = fold, skip
        self.channels: list[int] = [2 * width, width]
        self.to_half: nn.Conv2d = conv3x3(4 * width, 2 * width, bias=False)
        self.to_full: nn.Conv2d = conv3x3(2 * width, width, bias=False)
        self.last: nn.Conv2d = first_or_last(width, (4 if skip else 3) * fold**2, fold)

    def forward(
        self,
        features: Float[Tensor, "B C H4 W4"],
        images: Float[Tensor, "B 3 H W"],
        modulations: Sequence[Tensor] | None = None,
    ) -> Float[Tensor, "B 3 H W"]:
        """Paint images with values in about [0, 1].

        Args:
            features: `(B, 4 * width, H / (4 * fold), W / (4 * fold))`.
            images: images that the features were computed from; only used with `skip`.
            modulations: shift and scale offset for each of the two levels, if they depend on the style.
        """
        x = features
        for level, conv in enumerate((self.to_half, self.to_full)):
            x = conv(F.interpolate(x, scale_factor=2, mode="nearest"))
            x = F.relu(normalise(x) if modulations is None else modulate(x, modulations[level]), inplace=True)
        painted = self.last(x)
        painted = (smooth(shuffle(painted)) if self.fold > 1 else painted).to(images.dtype)
        if not self.skip:
            return torch.tanh(painted) * 0.5 + 0.5
        value = torch.addcmul(torch.tanh(painted[:, :3]), 2 * images - 1, 1 + painted[:, 3:]) * 0.5 + 0.5
        return torch.lerp(value.clamp(0, 1), value, self.leak)


def first_or_last(channels_in: int, channels_out: int, fold: int, *, bias: bool = True) -> nn.Conv2d:
    """Return the convolution next to the pixels: 7x7, or 3x3 for folded pixels."""
    size = 7 if fold == 1 else 3
    return nn.Conv2d(channels_in, channels_out, size, padding=size // 2, bias=bias, padding_mode="reflect")
