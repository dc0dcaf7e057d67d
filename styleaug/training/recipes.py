"""One class per generator: what a training step does, readable beside the paper."""

import hashlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from styleaug.atomic import atomic
from styleaug.generators.adain import AdaIN
from styleaug.generators.layers import channel_stats
from styleaug.generators.photo import Photo
from styleaug.training.config import PerceptualConfig
from styleaug.training.data import ImagePack, random_crops
from styleaug.training.losses import VGG19, content_loss, edge_correlation, gamut_loss, load_vgg19, style_loss

__all__ = ["PerceptualRecipe"]

KINDS: dict[str, type[AdaIN] | type[Photo]] = {"adain": AdaIN, "photo": Photo}
"""What a perceptual loss can train; `config.GENERATORS` are their names."""


class PerceptualRecipe:
    """Train `AdaIN` or `Photo` with the losses of Huang & Belongie 2017, eqs. 11 to 13.

    The content term compares normalised features, which does not pull against the style; edges are
    held by a term of their own. A quarter of the rows get their own style, and must come out as they
    went in, or a strength below 1, and must reach statistics as far between the content's and the
    style's.
    """

    content_depth = 3  # relu3_1 holds contours, and costs half of relu4_1
    special_every = 4

    def __init__(self, config: PerceptualConfig, content: ImagePack, styles: ImagePack):
        torch.manual_seed(config.seed)
        self.config, self.content, self.styles = config, content, styles
        self.generator = KINDS[config.generator]()
        self.optimiser = torch.optim.Adam(self.generator.parameters(), lr=config.learning_rate)
        rng = torch.Generator().manual_seed(config.seed)
        crops = [random_crops(styles.pixels, config.style_size, rng) for _ in range(config.style_crops)]
        self.style_crops = torch.cat([to_bytes(crop) for crop in crops])
        self.pool = ThreadPoolExecutor(config.threads, initializer=torch.set_num_threads, initargs=(1,))

    @property
    def device(self) -> torch.device:
        """Where the generator is."""
        return next(self.generator.parameters()).device

    @torch.no_grad()
    def prepare(self, networks: Path | None, cache: Path) -> None:
        """Load VGG-19 and read its statistics of all styles, or take them from `cache`."""
        self.contents = self.content.pixels.to(self.device)
        self.network: VGG19 = load_vgg19(networks).to(self.device).eval()
        self.network.to(memory_format=torch.channels_last)
        if self.config.precision == "bfloat16":
            self.network.to(torch.bfloat16)

        def stats() -> list[Tensor]:
            chunks = self.map(
                lambda crops: [channel_stats(level).cpu() for level in self.network(self.to_device(crops))],
                self.style_crops.split(8),
            )
            return [torch.cat(level) for level in zip(*chunks, strict=True)]

        self.style_stats = cached(cache, [self.style_crops], stats)

    def step(self, rng: torch.Generator) -> dict[str, Tensor]:
        """Draw a batch and take one step down the losses."""
        count = self.config.batch
        content = random_crops(self.contents[self.content.draw(count, rng)], self.config.size, rng)
        picked = self.draw_styles(count, rng)
        special = torch.arange(count) % self.special_every == 0
        own = special & (torch.rand(count, generator=rng) < 0.5)
        strength = torch.where(special & ~own, torch.rand(count, generator=rng), 1.0).to(self.device)
        style = self.to_device(self.style_crops[picked])
        wanted = [stats[picked].to(self.device) for stats in self.style_stats]
        own, special = own.to(self.device), special.to(self.device)
        return self.update(self.losses, content, style, strength, own, special, *wanted)

    def losses(
        self, content: Tensor, style: Tensor, strength: Tensor, own: Tensor, special: Tensor, *wanted: Tensor
    ) -> dict[str, Tensor]:
        """Compare what the generator paints with the style's statistics and the content's shapes.

        Rows that are `own` have the content's own style; `special` rows are those and the ones
        whose `strength` is below 1, for which the content's own statistics are needed as well.
        """
        config = self.config
        codes = self.generator.encode_style(style)
        if own.any():
            codes[own] = self.generator.encode_style(content[own])
        painted = self.generator.paint(content, codes, strength)
        levels = self.network(painted)
        with torch.no_grad():
            shapes = self.network(content, depth=self.content_depth)[-1]
            if special.any():
                amount = torch.where(own, 0.0, strength)[special, None]
                for stats, level in zip(wanted, self.network(content[special]), strict=True):
                    stats[special] = torch.lerp(channel_stats(level), stats[special], amount)
        return {
            "style": config.style_weight * style_loss(levels, list(wanted)),
            "content": config.content_weight * content_loss(levels[self.content_depth - 1], shapes),
            "edges": config.edge_weight * (1 - edge_correlation(painted, content)).mean(),
            "identity": config.identity_weight * ((painted - content).abs().mean(dim=(1, 2, 3)) * own).mean(),
            "gamut": config.gamut_weight * gamut_loss(painted),
        }

    def map(self, work: Callable[[Any], Any], shares: Iterable[Any]) -> list[Any]:
        """Do `work` on each share, at once on `config.threads` threads of one core each.

        On two cores this took half the time of one thread with two cores: small tensors leave
        the second core waiting.
        """
        if self.config.threads == 1:
            return [work(share) for share in shares]
        return list(self.pool.map(work, shares))

    def update(self, loss: Callable[..., dict[str, Tensor]], *batch: Tensor) -> dict[str, Tensor]:
        """Take one optimiser step down the sum of the losses, the rows shared among threads."""
        parameters = list(self.generator.parameters())

        def backward(rows: tuple[Tensor, ...]) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
            losses = loss(*rows)
            total = torch.stack(list(losses.values())).sum()
            return losses, torch.autograd.grad(total, parameters)

        shares = zip(*(tensor.chunk(self.config.threads) for tensor in batch), strict=True)
        results = self.map(backward, shares)
        for parameter, *grads in zip(parameters, *(grads for _, grads in results), strict=True):
            parameter.grad = torch.stack(grads).mean(dim=0)
        torch.nn.utils.clip_grad_norm_(parameters, 5.0)
        self.optimiser.step()
        values = [losses for losses, _ in results]
        return {name: torch.stack([share[name].detach() for share in values]).mean() for name in values[0]}

    def draw_styles(self, count: int, rng: torch.Generator) -> Tensor:
        """Draw rows of `style_crops`: first a folder, then an image, then one of its crops."""
        crop = torch.randint(self.config.style_crops, (count,), generator=rng)
        return self.styles.draw(count, rng) + len(self.styles) * crop

    def to_device(self, pixels: Tensor) -> Tensor:
        """Give uint8 pixels as floats in [0, 1] in the layout that convolutions prefer."""
        return (pixels.to(self.device) / 255).contiguous(memory_format=torch.channels_last)


def cached(path: Path, sources: list[Tensor], make: Callable[[], list[Tensor]]) -> list[Tensor]:
    """Take tensors from `path` if they were made from these `sources`; else make and write them."""
    digest = hashlib.blake2b(digest_size=16)
    for source in sources:
        digest.update(source.numpy().data)
    made_from = {"styleaug": digest.hexdigest()}
    if path.exists():
        with safe_open(path, "pt") as file:
            if file.metadata() == made_from:
                return [file.get_tensor(key) for key in sorted(file.keys())]
    made = make()
    with atomic(path) as part:
        save_file({str(index): tensor.contiguous() for index, tensor in enumerate(made)}, part, made_from)
    return made


def to_bytes(images: Tensor) -> Tensor:
    """Give images in [0, 1] as uint8."""
    return (images * 255).round().clamp(0, 255).byte()
