"""One class per generator: what a training step does, readable beside the paper."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from styleaug.atomic import atomic
from styleaug.generators.adain import AdaIN
from styleaug.generators.layers import channel_stats
from styleaug.training.config import AdaINConfig
from styleaug.training.data import ImagePack, random_crops
from styleaug.training.losses import (
    VGG19,
    SqueezeNet,
    content_loss,
    feature_loss,
    gamut_loss,
    load_perceptual,
    style_loss,
)
from styleaug.training.teacher import ReferenceAdaIN

__all__ = ["AdaINRecipe"]


class AdaINRecipe:
    """Train `AdaIN`, first by distillation, then with a perceptual loss.

    `imitate` follows the reference AdaIN of Huang & Belongie 2017, image by image: at a quarter of
    the cost of a perceptual step it says for each pixel what is wanted. `stylise` is the
    paper's own loss (eqs. 11 to 13) with an instance-normalised content term, which does not pull
    against the style. In both, one row of each batch has its own style, and must come out as it went in.
    """

    content_depth = 3  # relu3_1 holds contours, and costs half of relu4_1

    def __init__(self, config: AdaINConfig, content: ImagePack, styles: ImagePack):
        torch.manual_seed(config.seed)
        self.config, self.content, self.styles = config, content, styles
        self.generator = AdaIN()
        self.optimiser = torch.optim.Adam(self.generator.parameters(), lr=config.learning_rate)
        rng = torch.Generator().manual_seed(config.seed)
        crops = [random_crops(styles.pixels, config.size, rng) for _ in range(config.style_crops)]
        self.style_crops = torch.cat([to_bytes(crop) for crop in crops])
        self.network: SqueezeNet | VGG19 | None = None

    @property
    def device(self) -> torch.device:
        """Where the generator is."""
        return next(self.generator.parameters()).device

    @torch.no_grad()
    def prepare_imitation(self, networks: Path, cache: Path) -> None:
        """Let the reference stylise `config.pairs` crops, or read them from `cache`."""
        self.network = load_perceptual("squeezenet", networks).to(self.device).eval()
        rng = torch.Generator().manual_seed(self.config.seed + 1)
        count = self.config.pairs
        drawn = [self.content.pixels[part] for part in self.content.draw(count, rng).split(64)]
        self.pair_contents = torch.cat([to_bytes(random_crops(p, self.config.size, rng)) for p in drawn])
        self.pair_styles = self.draw_styles(count, rng)
        if not cache.exists():
            teacher = ReferenceAdaIN(networks).to(self.device).to(memory_format=torch.channels_last)
            if self.config.precision == "bfloat16":
                teacher.to(torch.bfloat16)
            targets = []
            for rows in torch.arange(count).split(16):
                content, style = (
                    self.to_device(images[at])
                    for images, at in ((self.pair_contents, rows), (self.style_crops, self.pair_styles[rows]))
                )
                strength = torch.ones(len(rows), device=self.device)
                targets.append(to_bytes(teacher(content, teacher.encode_style(style), strength).cpu()))
            with atomic(cache) as part:
                save_file({"targets": torch.cat(targets).contiguous()}, part)
        self.pair_targets = load_file(cache)["targets"]

    @torch.no_grad()
    def prepare_stylising(self, networks: Path | None) -> None:
        """Load VGG-19 and read its statistics of all styles, once."""
        self.network = load_perceptual("vgg19", networks).to(self.device).eval()
        self.network.to(memory_format=torch.channels_last)
        if self.config.precision == "bfloat16":
            self.network.to(torch.bfloat16)
        chunks = [
            [channel_stats(level) for level in self.network(self.to_device(crops))]
            for crops in self.style_crops.split(32)
        ]
        self.style_stats = [torch.cat(level) for level in zip(*chunks, strict=True)]

    def imitate(self, rng: torch.Generator) -> dict[str, Tensor]:
        """Take one step toward the reference's images."""
        assert isinstance(self.network, SqueezeNet)
        rows = torch.randint(len(self.pair_contents), (self.config.batch,), generator=rng)
        content, target, style = (
            self.to_device(images)
            for images in (
                self.pair_contents[rows],
                self.pair_targets[rows],
                self.style_crops[self.pair_styles[rows]],
            )
        )
        style[0] = target[0] = content[0]
        if torch.rand((), generator=rng) < 0.5:
            content, target = content.flip(-1), target.flip(-1)
        painted = self.paint(content, style)
        with torch.no_grad():
            wanted = self.network(target)
        return self.update(
            {
                "pixels": self.config.pixel_weight * (painted - target).abs().mean(),
                "features": self.config.feature_weight * feature_loss(self.network(painted), wanted),
                "gamut": self.config.gamut_weight * gamut_loss(painted),
            }
        )

    def stylise(self, rng: torch.Generator) -> dict[str, Tensor]:
        """Take one step down the perceptual loss."""
        assert isinstance(self.network, VGG19)
        count = self.config.batch
        drawn = self.content.pixels[self.content.draw(count, rng)]
        content = random_crops(drawn, self.config.size, rng).to(
            self.device, memory_format=torch.channels_last
        )
        picked = self.draw_styles(count, rng)
        style = self.to_device(self.style_crops[picked])
        style[0] = content[0]
        painted = self.paint(content, style)
        levels = self.network(painted)
        wanted = [stats[picked[1:].to(self.device)] for stats in self.style_stats]
        with torch.no_grad():
            own = self.network(content, depth=self.content_depth)[-1]
        return self.update(
            {
                "style": self.config.style_weight * style_loss([level[1:] for level in levels], wanted),
                "content": self.config.content_weight * content_loss(levels[self.content_depth - 1], own),
                "identity": self.config.identity_weight * (painted[0] - content[0]).abs().mean(),
                "gamut": self.config.gamut_weight * gamut_loss(painted),
            }
        )

    def paint(self, content: Tensor, style: Tensor) -> Tensor:
        """Run the generator at full strength, unclamped."""
        codes = self.generator.encode_style(style)
        return self.generator.paint(content, codes, torch.ones(len(content), device=self.device))

    def update(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        """Take one optimiser step down the sum of the losses."""
        self.optimiser.zero_grad(set_to_none=True)
        torch.stack(list(losses.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(self.generator.parameters(), 5.0)
        self.optimiser.step()
        return {name: loss.detach() for name, loss in losses.items()}

    def draw_styles(self, count: int, rng: torch.Generator) -> Tensor:
        """Draw rows of `style_crops`: first a folder, then an image, then one of its crops."""
        crop = torch.randint(self.config.style_crops, (count,), generator=rng)
        return self.styles.draw(count, rng) + len(self.styles) * crop

    def to_device(self, pixels: Tensor) -> Tensor:
        """Give uint8 pixels as floats in [0, 1] in the layout that convolutions prefer."""
        return (pixels.to(self.device) / 255).contiguous(memory_format=torch.channels_last)


def to_bytes(images: Tensor) -> Tensor:
    """Give images in [0, 1] as uint8."""
    return (images * 255).round().clamp(0, 255).byte()
