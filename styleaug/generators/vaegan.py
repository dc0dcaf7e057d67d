"""A residual translator with a code: one image, as many translations as the prior has points."""

from itertools import pairwise
from typing import Any, Self

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from styleaug.generators.base import AbstractGenerator, checked_settings, mixed
from styleaug.generators.layers import (
    ModulatedBlock,
    Stem,
    Tail,
    conv3x3,
    initialise,
    initialise_gan,
    on_padded,
    pad_to_multiple,
)

__all__ = ["VAEGAN"]

HIDDEN = 128
"""Width of the layer that reads the code."""


class VAEGAN(AbstractGenerator):
    """Translate images to the domain that the network was trained for, in the way the code says.

    After Larsen et al. 2016 (VAE-GAN) and Zhu et al. 2017b (BicycleGAN): an encoder gives for an
    image of the target domain a normal distribution of codes, held near the standard normal one, so
    that codes may be drawn from that as well. The translator is `CycleGAN`'s; the code sets the
    scale and shift of all normalisations behind its stem (Dumoulin et al. 2017, eq. 5), where the
    papers repeat it beside the image's channels, which a network ignores more easily.

    Code: the mean of the encoder's distribution, `latent` floats.

    Names -> paper: `encode_latent` E, `translate` G, `codes` z.

    Args:
        width: channels at full size; 64 in the papers.
        blocks: residual blocks at a quarter of the size.
        latent: length of the code; 8 in BicycleGAN.
        fold: 1, or 2 to work at half the size throughout, for a quarter of the cost.
        skip: let the image pass beside the network, whose last channel says how much of it stays.
    """

    name = "vaegan"
    has_prior = True
    takes_bfloat16 = True
    smallest_style = 16
    """Side to which smaller images are padded for the encoder."""

    def __init__(
        self, width: int = 64, *, blocks: int = 6, latent: int = 8, fold: int = 1, skip: bool = False
    ):
        super().__init__()
        self.width, self.depth, self.fold, self.skip = width, blocks, fold, skip
        self.code_length = latent
        self.multiple = 4 * fold
        self.minimum = 8 * fold  # two pixels at the blocks, which reflection needs
        self.margin = 8 + 8 * fold * (1 + blocks)  # what all convolutions in a row see
        self.stem = Stem(width, fold)
        deep = [ModulatedBlock(4 * width) for _ in range(blocks)]
        self.blocks = nn.ModuleList(deep)
        self.tail = Tail(width, fold, skip=skip)
        self.modulations = [block.modulation for block in deep]
        self.modulations += [2 * channels for channels in self.tail.channels]
        initialise_gan(self, quiet=[self.tail.last] if skip else [])

        # Scale and shift deviate by 0.5 for a code from the prior: no two codes paint alike from the start.
        first, last = nn.Linear(latent, HIDDEN), nn.Linear(HIDDEN, sum(self.modulations))
        nn.init.kaiming_normal_(first.weight, nonlinearity="relu")
        nn.init.normal_(last.weight, std=0.5 * HIDDEN**-0.5)
        nn.init.zeros_(last.bias)
        self.read_code = nn.Sequential(first, nn.ReLU(), last)

        # No normalisation: it would take off the contrast and colours that tell styles apart.
        widths = [3, width, 2 * width, 4 * width, 4 * width]
        self.encoder = nn.ModuleList(conv3x3(wide, narrow, stride=2) for wide, narrow in pairwise(widths))
        initialise(self.encoder, quiet=[])
        self.to_latent = nn.Linear(4 * width, 2 * latent)
        self.to(memory_format=torch.channels_last)

    def settings(self) -> dict[str, Any]:
        """Give the sizes."""
        return {
            "width": self.width,
            "blocks": self.depth,
            "latent": self.code_length,
            "fold": self.fold,
            "skip": self.skip,
        }

    @classmethod
    def from_settings(cls, settings: dict[str, Any]) -> Self:
        """Build from the sizes, within bounds."""
        bounds = {"width": (1, 256), "blocks": (1, 64), "latent": (1, 1024), "fold": (1, 2)}
        return cls(**checked_settings(settings, **bounds, skip=(False, True)))

    def encode_style(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B S"]:
        """Read the most probable code of each image."""
        return self.encode_latent(images)[0]

    def encode_latent(self, images: Float[Tensor, "B 3 H W"]) -> tuple[Tensor, Tensor]:
        """Read the mean and the logarithm of the variance of each image's codes, `(B, S)` each."""
        padded = pad_to_multiple(images, 1, self.smallest_style)
        x = (2 * padded - 1).to(self.to_latent.weight.dtype)
        for conv in self.encoder:
            x = F.leaky_relu(conv(x), 0.2, inplace=True)
        mean, log_variance = self.to_latent(x.mean(dim=(2, 3))).float().chunk(2, dim=1)
        return mean, log_variance

    def forward(
        self,
        images: Float[Tensor, "B 3 H W"],
        codes: Float[Tensor, "B S"],
        strength: Float[Tensor, " B"],
    ) -> Float[Tensor, "B 3 H W"]:
        """Translate each image in the way of its code, as far as `strength` says."""
        styled = on_padded(lambda padded: self.translate(padded, codes), images, self.multiple, self.minimum)
        return mixed(images, styled, strength)

    def translate(
        self, images: Float[Tensor, "B 3 H W"], codes: Float[Tensor, "B S"]
    ) -> Float[Tensor, "B 3 H W"]:
        """Run the network itself, to about [0, 1].

        H and W are multiples of `multiple` and at least `minimum`.
        """
        x = self.stem(images)[-1]
        *deep, at_half, at_full = self.read_code(codes.to(x.dtype)).split(self.modulations, dim=1)
        for block, modulation in zip(self.blocks, deep, strict=True):
            x = block(x, modulation)
        return self.tail(x, images, [at_half, at_full])
