"""The recipes: one class each, whose `step` can be read beside the paper."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from styleaug.generators.adain import AdaIN
from styleaug.generators.base import AbstractGenerator
from styleaug.generators.cyclegan import CycleGAN
from styleaug.generators.layers import adain, channel_stats
from styleaug.generators.patchswap import PatchSwap
from styleaug.generators.photo import Photo
from styleaug.generators.pix2pix import Pix2Pix
from styleaug.generators.vaegan import VAEGAN
from styleaug.io.atomic import atomic
from styleaug.io.paths import check_regular, in_utf8
from styleaug.io.tensors import check_digest, to_bytes
from styleaug.perceptual import VGG19, load_vgg19
from styleaug.training.base import AbstractAdversarial, AbstractRecipe, Images, Losses, fixed, start
from styleaug.training.config import (
    CUTConfig,
    CycleGANConfig,
    PatchGANConfig,
    PerceptualConfig,
    TrainConfig,
    VAEGANConfig,
)
from styleaug.training.data import Crop, Side, TrainingData, as_floats
from styleaug.training.discriminators import ImagePool, PatchDiscriminator, PatchEmbedding
from styleaug.training.losses import content_loss, edge_loss, gamut_loss, kl_loss, patch_nce, style_loss

__all__ = ["CUTRecipe", "CycleGANRecipe", "PatchGANRecipe", "PerceptualRecipe", "VAEGANRecipe", "make_recipe"]

_KINDS: dict[str, Callable[[], AdaIN | Photo | PatchSwap]] = {
    "adain": AdaIN,
    "photo": Photo,
    "patchswap": lambda: PatchSwap(AdaIN()),
}
MOST_STYLES = 4096
"""Largest number of style images whose statistics are kept; further images are not used."""


class PerceptualRecipe(AbstractRecipe[PerceptualConfig]):
    """Train a generator with the losses of Huang & Belongie 2017, eqs. 11 to 13.

    The content term compares normalised features, so it does not work against the style. A term of its own
    keeps the edges. A quarter of the rows are special: some get their own style and must come out
    unchanged; the others have a strength below 1, and must reach the statistics at that share between
    the content's and the style's.
    """

    style_crops: Tensor
    style_stats: list[Tensor]
    styles: Side

    needs_target = False
    content_depth = 3  # relu3_1 holds contours and costs half as much as relu4_1
    special_every = 4

    def __init__(self, config: PerceptualConfig):
        super().__init__(config)
        self.generator: AdaIN | Photo | PatchSwap = start(_KINDS[config.recipe](), config)
        self.add("generator", {"generator": self.generator}, rate=config.learning_rate)
        self.products: dict[str, AbstractGenerator] = {"generator": self.generator}

    def check_networks(self, networks: Path) -> None:
        """Check that the weights of VGG-19 can be read."""
        load_vgg19(networks)

    @torch.no_grad()
    def prepare(self, data: TrainingData, run: Path, networks: Path | None) -> None:
        """Load VGG-19, and compute the style crops and their statistics, or read them from `run`."""
        device = self.fabric.device
        self.network: VGG19 = load_vgg19(networks).to(device).eval()
        self.network.to(memory_format=torch.channels_last)
        rng, styles = torch.Generator().manual_seed(self.config.seed), data.train[1]
        self.places: dict[int, int] = {}
        # One tensor of bytes, allocated before the images: thousands of small tensors between large ones
        # would fragment the heap and fill the memory.
        each, size = self.config.style_crops, self.config.style_size
        crops = torch.empty(min(len(styles), MOST_STYLES) * each, 3, size, size, dtype=torch.uint8)
        count = 0
        for row, image in styles.readable(MOST_STYLES):
            self.places[row] = count
            for crop in crops[count : count + each]:
                crop.copy_((Crop.draw(rng, self.config).cut(image, size)[0] * 255).round())
            count += each
        self.styles, self.style_crops = styles, crops[:count]

        def stats() -> list[Tensor]:
            # Into tensors allocated before: small ones between large ones would fragment the heap and fill
            # the memory.
            found = [torch.empty(len(self.style_crops), 2 * width) for width in self.network.widths]
            with self.fabric.autocast():
                for start in range(0, len(self.style_crops), 8):
                    rows = slice(start, start + 8)
                    levels = self.network(as_floats(self.style_crops[rows].to(device)))
                    for known, level in zip(found, levels, strict=True):
                        known[rows] = channel_stats(level)
            return found

        with self.fabric.rank_zero_first():
            self.style_stats = cached(run / "styles.safetensors", [self.style_crops], stats)

    def step(self, source: Images, target: Images) -> Losses:
        """Paint `source` in drawn styles and take one step; `target` is not used."""
        rank, world = self.fabric.global_rank, self.fabric.world_size
        count, device = len(source) * world, source.device
        mine = slice(rank * len(source), (rank + 1) * len(source))
        picked = self.draw_styles(count)[mine]
        special = torch.arange(count) % self.special_every == 0
        own = special & (torch.rand(count) < 0.5)
        strength = torch.where(special & ~own, torch.rand(count), 1.0)[mine]
        crops = self.style_crops[picked].to(device, non_blocking=True)
        style = as_floats(crops).contiguous(memory_format=torch.channels_last)
        wanted = [stats[picked].to(device, non_blocking=True) for stats in self.style_stats]
        return self.update(
            "generator", self.losses(source, style, strength, own[mine], special[mine], wanted)
        )

    def losses(
        self,
        content: Images,
        style: Float[Tensor, "B 3 E E"],
        strength: Float[Tensor, " B"],
        own: Tensor,
        special: Tensor,
        wanted: list[Tensor],
    ) -> Losses:
        """Compute the losses of painted images against the style's statistics and the content's shapes.

        `own` rows have the content's own style. `special` rows are those and the rows with a `strength`
        below 1; they also need the content's own statistics. Both and `strength` lie on the CPU, so that
        the host knows which rows they are without waiting for a GPU.
        """
        config, device = self.config, content.device
        codes = self.generator.encode_style(style)
        if own.any():
            rows = own.nonzero()[:, 0].to(device, non_blocking=True)
            codes[rows] = self.generator.encode_style(content[rows]).to(codes.dtype)
        painted = self.generator.paint(content, codes, strength.to(device, non_blocking=True))
        levels = self.network(painted)
        with torch.no_grad():
            shapes = self.network(content, depth=self.content_depth)[-1]
            if special.any():
                amount = torch.where(own, 0.0, strength)[special, None].to(device, non_blocking=True)
                rows = special.nonzero()[:, 0].to(device, non_blocking=True)
                for stats, level in zip(wanted, self.network(content[rows]), strict=True):
                    stats[rows] = torch.lerp(channel_stats(level), stats[rows], amount)
        changed = (painted - content).abs().mean(dim=(1, 2, 3))
        return {
            "style": config.style_weight * style_loss(levels, wanted),
            "content": config.content_weight * content_loss(levels[self.content_depth - 1], shapes),
            "edges": config.edge_weight * edge_loss(painted, content),
            "identity": config.identity_weight * (changed * own.to(device, non_blocking=True)).mean(),
            "gamut": config.gamut_weight * gamut_loss(painted),
        }

    def draw_styles(self, count: int) -> Tensor:
        """Draw rows of `style_crops`: first an image as the data draws it, then one of its crops."""
        rng, drawn = torch.default_generator, []
        while len(drawn) < count:
            place = self.places.get(self.styles.draw(rng))
            if place is not None:  # None if the image could not be read
                drawn.append(place + int(torch.randint(self.config.style_crops, ())))
        return torch.tensor(drawn)


def cached(path: Path, sources: list[Tensor], make: Callable[[], list[Tensor]]) -> list[Tensor]:
    """Read tensors from `path` if they were made from `sources`; otherwise make and write them."""
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


class PatchGANRecipe(AbstractAdversarial[PatchGANConfig]):
    """Train an image-to-image translator on pairs (Isola 2017, eqs. 3 and 4).

    Names -> paper: `generator` G, `discriminator` D, `source` x, `target` y; the noise z is dropout.
    """

    paired = True

    def __init__(self, config: PatchGANConfig):
        super().__init__(config)
        fresh = Pix2Pix(config.width, depth=config.depth, dropout=config.dropout)
        self.generator: Pix2Pix = start(fresh, config)
        self.add("generator", {"generator": self.generator}, rate=config.learning_rate)
        self.discriminator: PatchDiscriminator = self.add_discriminator(
            "discriminator", 6 if config.conditional else 3
        )
        self.products: dict[str, AbstractGenerator] = {"generator": self.generator}

    def seen(self, source: Images, image: Images) -> Tensor:
        """Return the input of the discriminator: the image, with its source if conditional."""
        return torch.cat([source, image], dim=1) if self.config.conditional else image

    def step(self, source: Images, target: Images) -> Losses:
        """Take one step of D, then of G, on one batch of pairs."""
        fake = self.generator.translate(source)
        taught = self.teach("discriminator", self.seen(source, target), self.seen(source, fake))
        losses = {
            "adversarial": self.fool(self.discriminator, self.seen(source, fake)),
            "l1": self.config.l1_weight * F.l1_loss(fake, target),
        }
        return self.update("generator", losses | self.edges(fake, target)) | taught


class CycleGANRecipe(AbstractAdversarial[CycleGANConfig]):
    """Train translators in both directions without pairs (Zhu 2017, eq. 3 and identity of sec. 5.2).

    Names -> paper: `a2b` G, `b2a` F, `discriminator_b` D_Y, `discriminator_a` D_X.
    """

    def __init__(self, config: CycleGANConfig):
        super().__init__(config)
        self.a2b: CycleGAN = start(resnet(config), config)
        self.b2a: CycleGAN = resnet(config)
        self.add("generator", {"a2b": self.a2b, "b2a": self.b2a}, rate=config.learning_rate)
        self.discriminator_a: PatchDiscriminator = self.add_discriminator("discriminator_a")
        self.discriminator_b: PatchDiscriminator = self.add_discriminator("discriminator_b")
        self.products: dict[str, AbstractGenerator] = {"generator": self.a2b, "reverse": self.b2a}
        self.pools: dict[str, ImagePool] = {name: ImagePool(config.pool) for name in ("a", "b")}

    def step(self, source: Images, target: Images) -> Losses:
        """Take one step of both generators, then of both discriminators on new and earlier outputs."""
        config, real_a, real_b = self.config, source, target
        fake_b, fake_a = self.a2b.translate(real_a), self.b2a.translate(real_b)
        back_a, back_b = self.b2a.translate(fake_b), self.a2b.translate(fake_a)
        losses = {
            "adversarial_b": self.fool(self.discriminator_b, fake_b),
            "adversarial_a": self.fool(self.discriminator_a, fake_a),
            "cycle": config.cycle_weight * (F.l1_loss(back_a, real_a) + F.l1_loss(back_b, real_b)),
        }
        if config.identity_weight:
            same_b, same_a = self.a2b.translate(real_b), self.b2a.translate(real_a)
            identity = F.l1_loss(same_b, real_b) + F.l1_loss(same_a, real_a)
            losses["identity"] = config.identity_weight * identity
        losses |= self.edges(fake_b, real_a)
        taken = self.update("generator", losses)
        taken |= self.teach("discriminator_a", real_a, self.pools["a"].exchange(fake_a))
        return taken | self.teach("discriminator_b", real_b, self.pools["b"].exchange(fake_b))

    def state(self) -> dict[str, Tensor]:
        """Return the state including the pools."""
        pools = {f"pool_{name}": pool.images for name, pool in self.pools.items() if len(pool.images)}
        return super().state() | pools

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Restore the state including the pools."""
        super().load_state(state)
        for name, pool in self.pools.items():
            pool.images = state.get(f"pool_{name}", torch.empty(0)).to(self.fabric.device)


class CUTRecipe(AbstractAdversarial[CUTConfig]):
    """Train one translator without pairs; PatchNCE keeps the content (Park 2020, eq. 5).

    Names -> paper: `generator` G = (G_enc, G_dec), `embedding` H, `discriminator` D.
    """

    def __init__(self, config: CUTConfig):
        super().__init__(config)
        self.generator: CycleGAN = start(resnet(config), config)
        self.embedding: PatchEmbedding = PatchEmbedding(self.generator.encoder_channels, width=128)
        networks = {"generator": self.generator, "embedding": self.embedding}
        self.add("generator", networks, rate=config.learning_rate)
        self.discriminator: PatchDiscriminator = self.add_discriminator("discriminator")
        self.products: dict[str, AbstractGenerator] = {"generator": self.generator}

    def step(self, source: Images, target: Images) -> Losses:
        """Take one step of D, then of G with H."""
        config = self.config
        # One pass for both; with the identity term the target is also translated.
        content = torch.cat([source, target]) if config.identity_weight else source
        levels = self.generator.encode(content)
        output = self.generator.decode(levels, content)
        fake = output[: len(source)]
        taught = self.teach("discriminator", target, fake)
        nce = self.compare(levels, self.generator.encode(output))
        losses = {
            "adversarial": self.fool(self.discriminator, fake),
            "nce": config.nce_weight * nce[: len(source)].mean(),
        }
        if config.identity_weight:
            losses["identity"] = config.identity_weight * nce[len(source) :].mean()
        return self.update("generator", losses | self.edges(fake, source)) | taught

    def compare(self, keys: list[Tensor], queries: list[Tensor]) -> Float[Tensor, " B"]:
        """Compute PatchNCE of each row at random positions of every level."""
        count = self.config.patches
        drawn = [torch.randperm(x.shape[2] * x.shape[3])[:count] for x in keys]
        places = [each.to(x.device, non_blocking=True) for each, x in zip(drawn, keys, strict=True)]
        with torch.no_grad():
            wanted = self.embedding([level.detach() for level in keys], places)
        found = self.embedding(queries, places)
        losses = [patch_nce(q, k, self.config.temperature) for q, k in zip(found, wanted, strict=True)]
        return torch.stack(losses).mean(dim=0)


class VAEGANRecipe(AbstractAdversarial[VAEGANConfig]):
    """Train a translator with many outputs; VAE and GAN share it (Larsen 2016; Zhu 2017b).

    With pairs it is BicycleGAN: cVAE-GAN (eq. 5) reconstructs the target from its own code and the
    source; cLR-GAN (eq. 7) reads a random code back from the output. Without pairs, the colours of an
    image are changed at random, and it is reconstructed from the result and the code of the
    original, so that the code must describe the colours. Sources are translated with random codes.

    Names -> papers: `generator.encode_latent` E, `generator.translate` G (Dec), `discriminator` D
    (Dis), its `levels` Dis_l (Larsen 2016, eq. 7).
    """

    def __init__(self, config: VAEGANConfig):
        super().__init__(config)
        self.paired: bool = config.paired
        fresh = VAEGAN(
            config.width, blocks=config.blocks, latent=config.latent, fold=config.fold, skip=config.skip
        )
        self.generator: VAEGAN = start(fresh, config)
        self.add("generator", {"generator": self.generator}, rate=config.learning_rate)
        self.discriminator: PatchDiscriminator = self.add_discriminator("discriminator")
        self.products: dict[str, AbstractGenerator] = {"generator": self.generator}

    def step(self, source: Images, target: Images) -> Losses:
        """Take one step of D on both outputs, then of E and G."""
        config, generator = self.config, self.generator
        mean, log_variance = generator.encode_latent(target)
        encoded = mean + self.noise(*mean.shape) * (0.5 * log_variance).exp()
        drawn = self.noise(*mean.shape)
        content = source if config.paired else _recoloured(target, self.noise(len(target), 6))
        rebuilt, fake = generator.translate(content, encoded), generator.translate(source, drawn)
        both = torch.cat([rebuilt, fake])
        taught = self.teach("discriminator", target, both)
        with fixed(generator.encoder, generator.to_latent):  # E must not help to hide it (sec. 3.4)
            read, _ = generator.encode_latent(fake)
        losses = {
            "adversarial": self.fool(self.discriminator, both),
            "l1": config.l1_weight * F.l1_loss(rebuilt, target),
            "feature": config.feature_weight * self.feature_loss(rebuilt, target),
            "kl": config.kl_weight * kl_loss(mean.float(), log_variance.float()),
            "latent": config.latent_weight * F.l1_loss(read, drawn),
        }
        return self.update("generator", losses | self.edges(fake, source)) | taught

    def feature_loss(self, image: Images, wanted: Images) -> Tensor:
        """Compare the discriminator's features of two images (Larsen 2016, eq. 7)."""
        with torch.no_grad():
            *targets, _ = self.discriminator.levels(wanted)
        *found, _ = self.discriminator.levels(image)
        return torch.stack([F.l1_loss(x, y) for x, y in zip(found, targets, strict=True)]).mean()


def resnet(config: CUTConfig | CycleGANConfig) -> CycleGAN:
    """Return the translator with residual blocks."""
    return CycleGAN(config.width, blocks=config.blocks, fold=config.fold, skip=config.skip)


def _recoloured(images: Images, noise: Float[Tensor, "B 6"]) -> Images:
    """Set the mean of each channel to about 0.5 and its deviation to about 0.15, varied by `noise`."""
    mean, deviation = (0.5 + 0.125 * noise[:, :3]).clamp(0.1, 0.9), 0.15 * (0.5 * noise[:, 3:]).exp()
    return adain(images, torch.cat([mean, deviation], dim=1)).clamp(0, 1)


def make_recipe(config: TrainConfig) -> AbstractRecipe[Any]:
    """Return the recipe of a configuration; its weights are drawn from the seed."""
    torch.manual_seed(config.seed)
    match config:
        case PerceptualConfig():
            return PerceptualRecipe(config)
        case PatchGANConfig():
            return PatchGANRecipe(config)
        case CycleGANConfig():
            return CycleGANRecipe(config)
        case CUTConfig():
            return CUTRecipe(config)
        case VAEGANConfig():
            return VAEGANRecipe(config)
    raise TypeError(f"no recipe for {type(config).__name__}")
