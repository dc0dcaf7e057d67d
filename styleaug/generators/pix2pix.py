"""A U-Net that learns a translation from aligned pairs."""

from itertools import pairwise
from typing import Any, Self

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from styleaug.errors import ConfigError
from styleaug.generators.base import AbstractGenerator, checked_settings, mixed
from styleaug.generators.layers import initialise_gan, normalise, on_padded, smooth

__all__ = ["Pix2Pix"]


class Pix2Pix(AbstractGenerator):
    """Translate images as in the aligned pairs that the network was trained on.

    The U-Net of Isola et al. 2017 (secs. 3.2 and 6.1.1), with instance normalisation on all levels but
    the outermost and the innermost. A map of the innermost level may be one pixel, which normalisation
    would set to zero. The paper's transposed convolutions and zero padding draw checkerboards (Odena et
    al. 2016), and dots at fixed places of an empty background. Here flat areas stay flat: borders are
    repeated, and upsampling repeats pixels before a 3x3 convolution. On the two outer levels, a 3x3
    convolution computes four pixels from each one, which are averaged over 2x2. Dropout, the paper's
    source of noise, acts in training only, so that results do not depend on chance.

    Code: none, S = 0.

    Names -> paper: `translate` G, `down` the encoder C64-C128-..., `up` the decoder CD512-....

    Args:
        width: channels after the first halving; they double up to `8 * width`. 64 in the paper.
        depth: number of times the size is halved, at least 2. 8 in the paper; images are padded to
            multiples of `2**depth`.
        dropout: probability in [0, 1] of dropping a feature of the three innermost upsampled levels.
    """

    width: int
    depth: int
    dropout: float
    multiple: int
    minimum: int
    down: nn.ModuleList
    up: nn.ModuleList

    name = "pix2pix"
    code_length = 0
    has_prior = True
    takes_bfloat16 = True
    takes_float16 = True

    def __init__(self, width: int = 64, *, depth: int = 8, dropout: float = 0.5):
        super().__init__()
        if depth < 2:
            raise ConfigError(f"depth must be at least 2, got {depth!r}.")
        self.width, self.depth, self.dropout = width, depth, float(dropout)
        self.multiple = self.minimum = 2**depth
        self.margin: int | None = max(16, 3 * self.multiple)  # receptive field of all convolutions
        channels = [width * min(2**level, 8) for level in range(depth)]
        down, up = [], []
        for level, (wide, narrow) in enumerate(pairwise([3, *channels])):
            bias = level in (0, depth - 1)  # where no normalisation follows
            down.append(nn.Conv2d(wide, narrow, 4, 2, padding=1, padding_mode="replicate", bias=bias))
            # Features from below are joined with the features of the same size on the way down.
            joined = narrow if level == depth - 1 else 2 * narrow
            up.append((Unfold if level < 2 else Repeat)(joined, wide, bias=bias))
        self.down, self.up = nn.ModuleList(down), nn.ModuleList(up)
        initialise_gan(self)
        self.to(memory_format=torch.channels_last)

    def settings(self) -> dict[str, Any]:
        """Return the sizes of the layers."""
        return {"width": self.width, "depth": self.depth, "dropout": self.dropout}

    @classmethod
    def from_settings(cls, settings: dict[str, Any]) -> Self:
        """Build a network of these sizes, after checking their bounds."""
        return cls(**checked_settings(settings, width=(1, 256), depth=(2, 10), dropout=(0.0, 0.99)))

    def encode_style(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 0"]:
        """Return the empty code."""
        return images.new_zeros(len(images), 0)

    def forward(
        self,
        images: Float[Tensor, "B 3 H W"],
        codes: Float[Tensor, "B 0"],
        strength: Float[Tensor, " B"],
    ) -> Float[Tensor, "B 3 H W"]:
        """Translate each image, mixed with the image by `strength`."""
        return mixed(images, on_padded(self.translate, images, self.multiple, self.multiple), strength)

    def translate(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
        """Run the network; values lie in [0, 1]. H and W are multiples of `multiple`."""
        skips = self.encode((2 * images - 1).to(next(self.parameters()).dtype))
        x = skips[-1]
        for level in reversed(range(self.depth)):
            if level < self.depth - 1:
                x = torch.cat([x, skips[level]], dim=1)
            x = self.up[level](F.relu(x))
            if 0 < level < self.depth - 1:
                x = normalise(x)
            if level >= max(1, self.depth - 3):
                x = F.dropout(x, self.dropout, self.training)
        return torch.tanh(x.to(images.dtype)) * 0.5 + 0.5

    def encode(self, centred: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        """Compute the features of each level before activation, from half the size downwards."""
        x, levels = centred, []
        for level, conv in enumerate(self.down):
            x = conv(F.leaky_relu(x, 0.2) if level else x)
            if 0 < level < self.depth - 1:
                x = normalise(x)
            levels.append(x)
        return levels


class Unfold(nn.Module):
    """Double the size by a convolution that computes four pixels from each, without a checkerboard."""

    def __init__(self, wide: int, narrow: int, *, bias: bool):
        super().__init__()
        self.conv: nn.Conv2d = nn.Conv2d(wide, 4 * narrow, 3, padding=1, padding_mode="replicate", bias=bias)

    def forward(self, features: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D H2 W2"]:
        """Return `(B, narrow, 2H, 2W)` features."""
        return smooth(F.pixel_shuffle(self.conv(features), 2))


class Repeat(nn.Module):
    """Double the size by repeating pixels, then convolve."""

    def __init__(self, wide: int, narrow: int, *, bias: bool):
        super().__init__()
        self.conv: nn.Conv2d = nn.Conv2d(wide, narrow, 3, padding=1, padding_mode="replicate", bias=bias)

    def forward(self, features: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D H2 W2"]:
        """Return `(B, narrow, 2H, 2W)` features."""
        return self.conv(F.interpolate(features, scale_factor=2, mode="nearest"))
