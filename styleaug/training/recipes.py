"""One class per generator: what a training step does, readable beside the paper."""

import torch
from torch import Tensor

from styleaug.generators.adain import AdaIN
from styleaug.generators.layers import channel_stats
from styleaug.training.config import AdaINConfig
from styleaug.training.data import ImagePack, random_crops
from styleaug.training.losses import SqueezeNet, VGG19, content_loss, gamut_loss, style_loss

__all__ = ["AdaINRecipe"]


class AdaINRecipe:
    """Train `AdaIN` with a perceptual loss (Huang & Belongie 2017, eqs. 11 to 13).

    Three things differ from the paper. The content loss is instance-normalised, so that it does
    not pull against the style. A quarter of the rows ask for part of a style: their statistics
    lie between those of content and style. One row of each batch has its own style, and must
    come out as it went in.
    """

    content_depth = 3  # relu3_1 holds contours, and costs half of relu4_1

    def __init__(self, config: AdaINConfig, content: ImagePack, styles: ImagePack):
        torch.manual_seed(config.seed)
        self.config, self.content, self.styles = config, content, styles
        self.generator = AdaIN()
        self.optimiser = torch.optim.Adam(self.generator.parameters(), lr=config.learning_rate)
        rng = torch.Generator().manual_seed(config.seed)
        self.style_crops = torch.cat(
            [(random_crops(styles.pixels, config.size, rng) * 255).round().byte()
             for _ in range(config.style_crops)]
        )  # fmt: skip
        self.network: VGG19 | SqueezeNet | None = None
        self.style_stats: list[Tensor] = []

    @torch.no_grad()
    def use(self, network: VGG19 | SqueezeNet) -> None:
        """Measure the loss with `network` from now on, and cache its statistics of all styles."""
        device = next(self.generator.parameters()).device
        self.network = network.to(device).eval().to(memory_format=torch.channels_last)
        if isinstance(network, SqueezeNet):
            network.calibrate(self.style_crops[:64].to(device) / 255)
        if self.config.precision == "bfloat16":
            network.to(torch.bfloat16)
        chunks = [
            [channel_stats(level) for level in network(crops.to(device) / 255)]
            for crops in self.style_crops.split(32)
        ]
        self.style_stats = [torch.cat(level) for level in zip(*chunks, strict=True)]

    def step(self, rng: torch.Generator) -> dict[str, Tensor]:
        """Take one optimiser step on crops drawn with `rng`."""
        count, device = self.config.batch, next(self.generator.parameters()).device
        content = random_crops(self.content.pixels[self.content.draw(count, rng)], self.config.size, rng)
        picked = self.styles.draw(count, rng)
        picked += len(self.styles) * torch.randint(self.config.style_crops, (count,), generator=rng)
        strength = torch.where(
            torch.rand(count, generator=rng) < 0.25, torch.rand(count, generator=rng), torch.ones(count)
        )
        content, strength = to_device(content, device), strength.to(device)
        style = to_device(self.style_crops[picked] / 255, device)
        style[0] = content[0]

        painted = self.generator.paint(content, self.generator.encode_style(style), strength)
        assert self.network is not None
        levels = self.network(painted)
        with torch.no_grad():
            own = self.network(content)
            wanted = [
                torch.lerp(channel_stats(level), stats[picked.to(device)], strength[:, None])
                for level, stats in zip(own, self.style_stats, strict=True)
            ]
        losses = {
            "style": self.config.style * style_loss([x[1:] for x in levels], [x[1:] for x in wanted]),
            "content": self.config.content
            * content_loss(levels[self.content_depth - 1], own[self.content_depth - 1]),
            "identity": self.config.identity * (painted[0] - content[0]).abs().mean(),
            "gamut": self.config.gamut * gamut_loss(painted),
        }
        self.optimiser.zero_grad(set_to_none=True)
        torch.stack(list(losses.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(self.generator.parameters(), 5.0)
        self.optimiser.step()
        return {name: loss.detach() for name, loss in losses.items()}


def to_device(images: Tensor, device: torch.device) -> Tensor:
    """Move images in the layout that convolutions prefer."""
    return images.to(device, memory_format=torch.channels_last)
