"""A residual translator to one fixed target domain, trained as CycleGAN or CUT."""

from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from styleaug.generators.base import AbstractGenerator, checked_settings, mixed
from styleaug.generators.layers import ResidualBlock, Stem, Tail, initialise_gan, on_padded

__all__ = ["CycleGAN"]


class CycleGAN(AbstractGenerator):
    """Translate images to the one domain that the network was trained for.

    The generator of Zhu et al. 2017 (CycleGAN, sec. 7.2), after Johnson et al. 2016, with instance
    normalisation; Park et al. 2020 (CUT) train the same one. Unlike the papers, upsampling repeats
    pixels, which avoids a checkerboard. `fold` and `skip` are ours as well.

    Code: none, S = 0.

    Names -> paper: `translate` G, `encode` G_enc (CUT, sec. 3), `decode` G_dec; `c7s1-k` is
    `stem.first` and `tail.last`, `dk` `stem.halve` and `stem.quarter`, `Rk` `blocks`, `uk`
    `tail.to_half` and `tail.to_full`.

    Args:
        width: channels at full size; 64 in the paper.
        blocks: residual blocks at a quarter of the size; 6 or 9 in the paper.
        fold: 1, or 2 to work at half the size, for a quarter of the cost.
        skip: pass the image around the network; the network's last channel is how much of it stays.
    """

    width: int
    depth: int
    fold: int
    skip: bool

    name = "cyclegan"
    code_length = 0
    has_prior = True
    takes_bfloat16 = True
    takes_float16 = True

    def __init__(self, width: int = 64, *, blocks: int = 9, fold: int = 1, skip: bool = False):
        super().__init__()
        self.width, self.depth, self.fold, self.skip = width, blocks, fold, skip
        self.multiple: int = 4 * fold
        self.minimum: int = 8 * fold  # the blocks need two pixels for reflection
        self.margin: int | None = 8 + 8 * fold * (1 + blocks)  # receptive field of all convolutions
        self.stem: Stem = Stem(width, fold)
        self.blocks: nn.ModuleList = nn.ModuleList(ResidualBlock(4 * width) for _ in range(blocks))
        self.tail: Tail = Tail(width, fold, skip=skip)
        initialise_gan(self, quiet=[self.tail.last] if skip else [])
        self.to(memory_format=torch.channels_last)

    def settings(self) -> dict[str, Any]:
        """Return the sizes of the layers."""
        return {"width": self.width, "blocks": self.depth, "fold": self.fold, "skip": self.skip}

    @classmethod
    def from_settings(cls, settings: dict[str, Any]) -> Self:
        """Build a network of these sizes, after checking their bounds."""
        bounds = {"width": (1, 256), "blocks": (1, 64), "fold": (1, 2), "skip": (False, True)}
        return cls(**checked_settings(settings, **bounds))

    @property
    def encoder_channels(self) -> list[int]:
        """List the channels of each level that `encode` returns."""
        return self.stem.channels + [4 * self.width] * len(self.watched)

    @property
    def watched(self) -> list[int]:
        """List the blocks whose features `encode` returns: the first, the middle and the last."""
        return sorted({0, self.depth // 2, self.depth - 1})

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
        return mixed(images, on_padded(self.translate, images, self.multiple, self.minimum), strength)

    def translate(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
        """Run the network; values lie in about [0, 1].

        H and W are multiples of `multiple` and at least `minimum`.
        """
        return self.decode(self.encode(images), images)

    def encode(self, images: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        """Compute the features after each convolution of the stem and after three of the blocks."""
        levels = self.stem(images)
        x = levels[-1]
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in self.watched:
                levels.append(x)
        return levels

    def decode(self, levels: list[Tensor], images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
        """Paint from the last of the levels; `images` are the encoded ones."""
        return self.tail(levels[-1], images)
