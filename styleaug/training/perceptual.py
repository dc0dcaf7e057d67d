"""The recipe of the generators that a perceptual loss trains: AdaIN, Photo, PatchSwap."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from styleaug.atomic import atomic
from styleaug.digest import check_digest, to_bytes
from styleaug.generators.adain import AdaIN
from styleaug.generators.layers import channel_stats
from styleaug.generators.patchswap import PatchSwap
from styleaug.generators.photo import Photo
from styleaug.paths import check_regular, in_utf8
from styleaug.training.base import AbstractRecipe, Images, Losses, start
from styleaug.training.config import PerceptualConfig
from styleaug.training.data import Crop, TrainingData, as_floats
from styleaug.training.losses import content_loss, edge_loss, gamut_loss, style_loss
from styleaug.training.vgg import VGG19, load_vgg19

__all__ = ["PerceptualRecipe"]

KINDS: dict[str, Callable[[], AdaIN | Photo | PatchSwap]] = {
    "adain": AdaIN,
    "photo": Photo,
    "patchswap": lambda: PatchSwap(AdaIN()),
}

MOST_STYLES = 4096
"""Style images of which statistics are kept; more are left out."""


class PerceptualRecipe(AbstractRecipe[PerceptualConfig]):
    """Train a generator with the losses of Huang & Belongie 2017, eqs. 11 to 13.

    The content term compares normalised features, which does not pull against the style; edges are
    held by a term of their own. A quarter of the rows get their own style, and must come out as they
    went in, or a strength below 1, and must reach statistics as far between the content's and the
    style's.
    """

    needs_target = False
    content_depth = 3  # relu3_1 holds contours, and costs half of relu4_1
    special_every = 4

    def __init__(self, config: PerceptualConfig):
        super().__init__(config)
        self.generator = start(KINDS[config.recipe](), config)
        self.add("generator", {"generator": self.generator}, rate=config.learning_rate)
        self.products = {"generator": self.generator}

    def check_networks(self, networks: Path) -> None:
        """Read the VGG-19."""
        load_vgg19(networks)

    @torch.no_grad()
    def prepare(self, data: TrainingData, run: Path, networks: Path | None) -> None:
        """Load VGG-19; cut the style crops and read its statistics of them, or take them from `run`."""
        device = self.fabric.device
        self.network: VGG19 = load_vgg19(networks).to(device).eval()
        self.network.to(memory_format=torch.channels_last)
        rng, styles = torch.Generator().manual_seed(self.config.seed), data.train[1]
        self.places: dict[int, int] = {}
        crops = []
        for row, image in styles.readable(MOST_STYLES):
            self.places[row] = len(crops)
            for _ in range(self.config.style_crops):
                crop = Crop.draw(rng, self.config).cut(image, self.config.style_size)
                crops.append((crop * 255).round().byte())  # floats of thousands of styles fill the memory
        self.styles, self.style_crops = styles, torch.cat(crops)

        def stats() -> list[Tensor]:
            with self.fabric.autocast():
                chunks = [
                    [channel_stats(level).cpu() for level in self.network(as_floats(part.to(device)))]
                    for part in self.style_crops.split(8)
                ]
            return [torch.cat(level) for level in zip(*chunks, strict=True)]

        with self.fabric.rank_zero_first():
            self.style_stats = cached(run / "styles.safetensors", [self.style_crops], stats)

    def step(self, source: Images, target: Images) -> Losses:
        """Paint `source` in drawn styles and take one step down the losses; `target` is not used."""
        rank, world = self.fabric.global_rank, self.fabric.world_size
        count, device = len(source) * world, source.device
        mine = slice(rank * len(source), (rank + 1) * len(source))
        picked = self.draw_styles(count)[mine]
        special = torch.arange(count) % self.special_every == 0
        own = special & (torch.rand(count) < 0.5)
        strength = torch.where(special & ~own, torch.rand(count), 1.0)[mine].to(device)
        own, special = own[mine].to(device), special[mine].to(device)
        style = as_floats(self.style_crops[picked].to(device)).contiguous(memory_format=torch.channels_last)
        wanted = [stats[picked].to(device) for stats in self.style_stats]
        return self.update("generator", self.losses(source, style, strength, own, special, wanted))

    def losses(
        self,
        content: Images,
        style: Float[Tensor, "B 3 E E"],
        strength: Float[Tensor, " B"],
        own: Tensor,
        special: Tensor,
        wanted: list[Tensor],
    ) -> Losses:
        """Compare what the generator paints with the style's statistics and the content's shapes.

        Rows that are `own` have the content's own style; `special` rows are those and the ones
        whose `strength` is below 1, for which the content's own statistics are needed as well.
        """
        config = self.config
        codes = self.generator.encode_style(style)
        if own.any():
            codes[own] = self.generator.encode_style(content[own]).to(codes.dtype)
        painted = self.generator.paint(content, codes, strength)
        levels = self.network(painted)
        with torch.no_grad():
            shapes = self.network(content, depth=self.content_depth)[-1]
            if special.any():
                amount = torch.where(own, 0.0, strength)[special, None]
                for stats, level in zip(wanted, self.network(content[special]), strict=True):
                    stats[special] = torch.lerp(channel_stats(level), stats[special], amount)
        return {
            "style": config.style_weight * style_loss(levels, wanted),
            "content": config.content_weight * content_loss(levels[self.content_depth - 1], shapes),
            "edges": config.edge_weight * edge_loss(painted, content),
            "identity": config.identity_weight * ((painted - content).abs().mean(dim=(1, 2, 3)) * own).mean(),
            "gamut": config.gamut_weight * gamut_loss(painted),
        }

    def draw_styles(self, count: int) -> Tensor:
        """Draw rows of `style_crops`: an image as the data draws it, then one of its crops."""
        rng, drawn = torch.default_generator, []
        while len(drawn) < count:
            place = self.places.get(self.styles.draw(rng))
            if place is not None:  # else it could not be read
                drawn.append(place + int(torch.randint(self.config.style_crops, ())))
        return torch.tensor(drawn)


def cached(path: Path, sources: list[Tensor], make: Callable[[], list[Tensor]]) -> list[Tensor]:
    """Take tensors from `path` if it is whole and was made from `sources`; else make and write them."""
    digest = hashlib.blake2b(digest_size=16)
    for source in sources:
        digest.update(source.numpy().data)
    try:
        with in_utf8(check_regular(path)) as name, safe_open(name, "pt") as file:
            facts = json.loads((file.metadata() or {})["styleaug"])
            tensors = [file.get_tensor(key) for key in sorted(file.keys())]
        check_digest(path, facts, (), renew="")
        if facts["made from"] == digest.hexdigest():
            return tensors
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        pass  # missing, damaged, or of an earlier version
    made = make()
    named = {str(index): tensor.contiguous() for index, tensor in enumerate(made)}
    with atomic(path) as part:
        part.write_bytes(to_bytes("styleaug", {"made from": digest.hexdigest()}, named))
    return made
