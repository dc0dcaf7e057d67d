"""A residual translator with a code: each code gives another translation of the same image."""

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
    """Translate images to the domain that the network was trained for; the code sets the style.

    After Larsen et al. 2016 (VAE-GAN) and Zhu et al. 2017b (BicycleGAN): an encoder maps an image of
    the target domain to a normal distribution of codes. Training keeps it near the standard normal
    distribution, so that codes may be drawn from that. The translator is `CycleGAN`'s. The code sets
    the scale and shift of all normalisations after its stem (Dumoulin et al. 2017, eq. 5). In the
    papers the code is added to the image's channels, where a network ignores it more easily.

    Code: the mean of the encoder's distribution, `latent` floats.

    Names -> paper: `encode_latent` E, `translate` G, `codes` z.

    Args:
        width: channels at full size; 64 in the papers.
        blocks: residual blocks at a quarter of the size.
        latent: length of the code; 8 in BicycleGAN.
        fold: 1, or 2 to work at half the size, for a quarter of the cost.
        skip: pass the image around the network; the network's last channel is how much of it stays.
    """

    width: int
    depth: int
    fold: int
    skip: bool
    modulations: list[int]

    name = "vaegan"
    has_prior = True
    takes_bfloat16 = True
    smallest_style = 16
    """Least side in pixels for the encoder; smaller images are padded to it."""

    def __init__(
        self, width: int = 64, *, blocks: int = 6, latent: int = 8, fold: int = 1, skip: bool = False
    ):
        super().__init__()
        self.width, self.depth, self.fold, self.skip = width, blocks, fold, skip
        self.code_length = latent
        self.multiple: int = 4 * fold
        self.minimum: int = 8 * fold  # the blocks need two pixels for reflection
        self.margin: int | None = 8 + 8 * fold * (1 + blocks)  # receptive field of all convolutions
        self.stem: Stem = Stem(width, fold)
        deep = [ModulatedBlock(4 * width) for _ in range(blocks)]
        self.blocks: nn.ModuleList = nn.ModuleList(deep)
        self.tail: Tail = Tail(width, fold, skip=skip)
        self.modulations = [block.modulation for block in deep]
        self.modulations += [2 * channels for channels in self.tail.channels]
        initialise_gan(self, quiet=[self.tail.last] if skip else [])

        # Scale and shift deviate by 0.5 for codes from the prior, so that codes differ from the start.
        first, last = nn.Linear(latent, HIDDEN), nn.Linear(HIDDEN, sum(self.modulations))
        nn.init.kaiming_normal_(first.weight, nonlinearity="relu")
        nn.init.normal_(last.weight, std=0.5 * HIDDEN**-0.5)
        nn.init.zeros_(last.bias)
        self.read_code: nn.Sequential = nn.Sequential(first, nn.ReLU(), last)

        # No normalisation: it would remove the contrast and colours in which styles differ.
        widths = [3, width, 2 * width, 4 * width, 4 * width]
        self.encoder: nn.ModuleList = nn.ModuleList(
            conv3x3(wide, narrow, stride=2) for wide, narrow in pairwise(widths)
        )
        initialise(self.encoder, quiet=[])
        self.to_latent: nn.Linear = nn.Linear(4 * width, 2 * latent)
        self.to(memory_format=torch.channels_last)

    def settings(self) -> dict[str, Any]:
        """Return the sizes of the layers."""
        return {
            "width": self.width,
            "blocks": self.depth,
            "latent": self.code_length,
            "fold": self.fold,
            "skip": self.skip,
        }

    @classmethod
    def from_settings(cls, settings: dict[str, Any]) -> Self:
        """Build a network of these sizes, after checking their bounds."""
        bounds = {"width": (1, 256), "blocks": (1, 64), "latent": (1, 1024), "fold": (1, 2)}
        return cls(**checked_settings(settings, **bounds, skip=(False, True)))

    def encode_style(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B S"]:
        """Compute the most probable code of each image."""
        return self.encode_latent(images)[0]

    def encode_latent(self, images: Float[Tensor, "B 3 H W"]) -> tuple[Tensor, Tensor]:
        """Compute mean and logarithm of the variance of each image's codes, `(B, S)` each."""
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
        """Translate each image with its code, mixed with the image by `strength`."""
        styled = on_padded(lambda padded: self.translate(padded, codes), images, self.multiple, self.minimum)
        return mixed(images, styled, strength)

    def translate(
        self, images: Float[Tensor, "B 3 H W"], codes: Float[Tensor, "B S"]
    ) -> Float[Tensor, "B 3 H W"]:
        """Run the network; values lie in about [0, 1].

        H and W are multiples of `multiple` and at least `minimum`.
        """
        x = self.stem(images)[-1]
        *deep, at_half, at_full = self.read_code(codes.to(x.dtype)).split(self.modulations, dim=1)
        for block, modulation in zip(self.blocks, deep, strict=True):
            x = block(x, modulation)
        return self.tail(x, images, [at_half, at_full])
