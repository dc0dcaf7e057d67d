"""A small feed-forward AdaIN network: any style, one pass, 0.4 M parameters."""

from typing import Any, Self

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from styleaug.errors import WeightsError
from styleaug.generators.base import AbstractGenerator, feature_bounds
from styleaug.generators.layers import (
    ModulatedBlock,
    adain,
    channel_stats,
    conv3x3,
    initialise,
    modulate,
    on_padded,
    pad_to_multiple,
    recolour,
    shuffle,
    smooth,
    whiten,
)

__all__ = ["AdaIN"]


class AdaIN(AbstractGenerator):
    """Arbitrary style transfer by channel statistics at four levels.

    After Huang & Belongie 2017 (AdaIN, eq. 8), with a small encoder trained for the purpose in
    place of VGG-19, statistics at several levels as in MicroAST (Wang et al. 2023), and a decoder
    whose normalisations are conditioned on the style (Dumoulin et al. 2017, eq. 5). The network
    sees and paints images whose colours have mean 0 and deviation 1. So its codes describe texture,
    and its strokes have the style's contrast. The style's colours are applied last. Skip connections
    carry the structure past the bottleneck.

    Code: means and standard deviations of the RGB image and of the three encoder levels,
    `2 * (3 + sum(widths))` floats.

    Names -> paper: `encoder` f, `codes` (mu(y), sigma(y)), `decode` g, `strength` alpha (eq. 14,
    applied to the codes of all levels).

    Args:
        widths: channels at 1/2, 1/4 and 1/8 of the size.
        blocks: residual blocks at 1/8.
        hidden: width of the layer that reads the code for the decoder's normalisations.
    """

    widths: tuple[int, ...]
    depth: int
    hidden: int
    modulations: list[int]

    name = "adain"
    takes_bfloat16 = True
    takes_float16 = True
    multiple = 8
    minimum = 16
    least_side = 128

    def __init__(self, widths: tuple[int, int, int] = (16, 32, 64), *, blocks: int = 3, hidden: int = 96):
        super().__init__()
        half, quarter, eighth = widths
        self.widths, self.depth, self.hidden = tuple(widths), blocks, hidden
        self.code_length: int = 2 * (3 + sum(widths))
        self.margin: int | None = (
            32 + 16 * blocks
        )  # receptive field of all convolutions, in cells of 8 x 8 pixels

        self.encode_half: nn.Conv2d = conv3x3(3, half, stride=2)
        self.encode_quarter: nn.Conv2d = conv3x3(half, quarter, stride=2)
        self.encode_quarter2: nn.Conv2d = conv3x3(quarter, quarter)
        self.encode_eighth: nn.Conv2d = conv3x3(quarter, eighth, stride=2)

        deep = [ModulatedBlock(eighth) for _ in range(blocks)]
        self.blocks: nn.ModuleList = nn.ModuleList(deep)
        self.to_quarter: nn.Conv2d = nn.Conv2d(eighth, quarter, 1)
        self.block_quarter: ModulatedBlock = ModulatedBlock(quarter)
        self.to_half: nn.Conv2d = nn.Conv2d(quarter, half, 1)
        self.conv_half: nn.Conv2d = conv3x3(half, half)
        self.to_pixels: nn.Conv2d = conv3x3(half, 4 * 4)

        self.modulations = [block.modulation for block in deep]
        self.modulations += [2 * quarter, self.block_quarter.modulation, 2 * half]
        self.read_code: nn.Sequential = nn.Sequential(
            nn.Linear(self.code_length, hidden), nn.ReLU(), nn.Linear(hidden, sum(self.modulations))
        )
        # Start as the plain colour swap: nothing painted, nothing modulated.
        initialise(self, quiet=[self.to_pixels, self.read_code[2]])

    def settings(self) -> dict[str, Any]:
        """Return the sizes of the layers."""
        return {"widths": list(self.widths), "blocks": self.depth, "hidden": self.hidden}

    def code_bounds(self) -> tuple[Float[Tensor, " S"], Float[Tensor, " S"]]:
        """Return the least and greatest value that each entry of a code may have."""
        return feature_bounds(self.widths)

    @classmethod
    def from_settings(cls, settings: dict[str, Any]) -> Self:
        """Build a network of these sizes; each is from 1 to 1024."""
        widths, blocks, hidden = settings["widths"], settings["blocks"], settings["hidden"]
        sizes = [*widths, blocks, hidden]
        if len(widths) != 3 or not all(type(size) is int and 1 <= size <= 1024 for size in sizes):
            raise WeightsError(f"sizes must be whole numbers from 1 to 1024, got {settings}.")
        return cls(tuple(widths), blocks=blocks, hidden=hidden)

    def extra_repr(self) -> str:
        """Return the sizes as text; they are part of the fingerprint."""
        return f"widths={self.widths}, blocks={self.depth}, hidden={self.hidden}"

    def encoder(self, whitened: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        """Compute the features at 1/2, 1/4 and 1/8 of the size. H and W are multiples of 8.

        The features have the dtype of the weights, up to the end of `decode`. The image keeps its own dtype.
        """
        half = F.relu(self.encode_half(whitened.to(self.encode_half.weight.dtype)))
        quarter = F.relu(self.encode_quarter2(F.relu(self.encode_quarter(half))))
        return [half, quarter, F.relu(self.encode_eighth(quarter))]

    def encode_style(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B S"]:
        """Compute the statistics of the image's colours and of each encoder level."""
        padded = pad_to_multiple(images, self.multiple, self.minimum)
        colours = channel_stats(padded)
        levels = self.encoder(whiten(padded, colours))
        return torch.cat([colours, *(channel_stats(level) for level in levels)], dim=1)

    def forward(
        self,
        images: Float[Tensor, "B 3 H W"],
        codes: Float[Tensor, "B S"],
        strength: Float[Tensor, " B"],
    ) -> Float[Tensor, "B 3 H W"]:
        """Paint each image in the style of its code."""
        styled = on_padded(
            lambda padded: self.paint(padded, codes, strength), images, self.multiple, self.minimum
        )
        return styled.clamp(0, 1)

    def paint(
        self,
        images: Float[Tensor, "B 3 H W"],
        codes: Float[Tensor, "B S"],
        strength: Float[Tensor, " B"],
    ) -> Float[Tensor, "B 3 H W"]:
        """Run the network without clamping. H and W are multiples of 8 and at least 16.

        `strength` moves the codes of all levels from the image's own codes to the given ones.
        """
        images = images.contiguous()  # one factor per channel is slow in other memory layouts
        colours = channel_stats(images)
        whitened = whiten(images, colours)
        levels = self.encoder(whitened)
        own = [channel_stats(level) for level in levels]
        codes = torch.lerp(torch.cat([colours, *own], dim=1), codes.float(), strength.float()[:, None])
        wanted, *styles = codes.split([6, *(2 * width for width in self.widths)], dim=1)
        swapped = [
            adain(level, style, stats) for level, style, stats in zip(levels, styles, own, strict=True)
        ]
        painted = self.decode(whitened, swapped, codes)
        return recolour(images, painted, wanted, strength)

    def decode(
        self, whitened: Float[Tensor, "B 3 H W"], levels: list[Tensor], codes: Float[Tensor, "B S"]
    ) -> Float[Tensor, "B 3 H W"]:
        """Turn swapped features back into a whitened image, coarse to fine."""
        half, quarter, eighth = levels
        modulations = self.read_code(codes.to(half.dtype)).split(self.modulations, dim=1)
        *deep, at_quarter, block_quarter, at_half = modulations
        x = eighth
        for block, modulation in zip(self.blocks, deep, strict=True):
            x = block(x, modulation)
        x = F.relu(modulate(self.to_quarter(x), at_quarter))
        x = self.block_quarter(F.interpolate(x, scale_factor=2, mode="nearest") + quarter, block_quarter)
        x = F.relu(modulate(self.to_half(x), at_half))
        x = F.relu(self.conv_half(F.interpolate(x, scale_factor=2, mode="nearest") + half))
        painted = smooth(shuffle(self.to_pixels(x))).to(whitened.dtype)
        # The fourth channel is how much of the image's own detail stays.
        return torch.addcmul(painted[:, :3], whitened, 1 + painted[:, 3:])
