"""How generators are judged: each pair styled by each, and looked at through the networks."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from styleaug.evaluation.metrics import (
    art_fid,
    clipped,
    diversity,
    edge_correlations,
    gamut,
    gram_distance,
    palette_overlap,
    sliced_wasserstein,
    ssim,
)
from styleaug.evaluation.pairs import Pairs
from styleaug.evaluation.perceptual import Networks
from styleaug.generators.base import AbstractGenerator
from styleaug.generators.layers import channel_stats
from styleaug.images import to_float
from styleaug.training.losses import content_loss, style_loss
from styleaug.training.scores import frechet_distance
from styleaug.training.style_images import shrink
from styleaug.transforms.placement import place

__all__ = ["UNCHANGED", "Painter", "Scores", "encode_styles", "judge"]

UNCHANGED = "content unchanged"
"""Name of the row that says what doing nothing is worth."""

BATCH = 4
"""Pairs at a time; at 256 pixels VGG-19's levels take 32 MB for each image."""

DIVERSE_CONTENTS, DIVERSE_STYLES = 8, 4
"""So many contents, each in so many styles, tell how diverse a generator is."""


@dataclass(frozen=True)
class Scores:
    """What the pairs say of one generator."""

    means: dict[str, float]
    errors: dict[str, float]
    """Standard errors, where a figure is a mean; as though no image were in two pairs."""
    rows: dict[str, list[float]] = field(repr=False)
    """A figure for each pair."""


@dataclass(frozen=True)
class Painter:
    """A generator on a device, and the code of each style.

    Args:
        generator: None gives the content back.
        codes: `(M, S)`.
        strength: in [0, 1].
    """

    generator: AbstractGenerator | None
    codes: Float[Tensor, "M S"]
    strength: float = 1.0

    def paint(self, images: Float[Tensor, "B 3 H W"], styles: Int[Tensor, " B"]) -> Float[Tensor, "B 3 H W"]:
        """Style images, each in the style of that number."""
        if self.generator is None:
            return images
        codes = self.codes[styles].to(images.device)
        strength = torch.full((len(images),), float(self.strength), device=images.device)
        return self.generator(images, codes, strength)


class View(NamedTuple):
    """Images, and what the networks see in them."""

    images: Float[Tensor, "B 3 H W"]
    vgg: list[Tensor]
    squeeze: list[Tensor]


class Wanted(NamedTuple):
    """What each style looks like to the networks."""

    stats: list[Tensor]
    """Means and deviations of VGG-19's levels, `(M, 2 C_l)`."""
    features: Float[Tensor, "M S"]
    """Means of SqueezeNet's last level."""


@torch.inference_mode()
def encode_styles(
    generator: AbstractGenerator, styles: UInt8[Tensor, "M 3 E E"], device: torch.device
) -> tuple[AbstractGenerator, Float[Tensor, "M S"]]:
    """Put a generator on a device and read the code of each style once."""
    generator = place(generator, device, bfloat16=False)
    chunks = (shrink(to_float(chunk.to(device)), generator.code_size) for chunk in styles.split(BATCH))
    return generator, torch.cat([generator.encode_style(chunk) for chunk in chunks])


@torch.inference_mode()
def judge(
    painters: Mapping[str, Painter],
    pairs: Pairs,
    networks: Networks,
    *,
    device: torch.device,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Scores]:
    """Style all pairs with all painters, and measure.

    Args:
        painters: by name.
        pairs: of which the styles may be missing; then nothing is said of the style reached.
        networks: moved to the device.
        device: where all is computed.
        report: called with the number of pairs that are done and that of all.

    Returns:
        Scores by name, of `UNCHANGED` too.
    """
    networks.to(device)
    wanted = look_at_styles(pairs, networks, device)
    everyone = {UNCHANGED: Painter(None, torch.zeros(0, 0)), **painters}
    rows: dict[str, dict[str, list[Tensor]]] = {name: defaultdict(list) for name in everyone}
    features: dict[str, list[Tensor]] = {name: [] for name in everyone}
    for chunk in torch.arange(len(pairs)).split(BATCH):
        content = look(to_float(pairs.contents.images[pairs.content_of[chunk]].to(device)), networks)
        for name, painter in everyone.items():
            styled = content
            if painter.generator is not None:
                styled = look(painter.paint(content.images, pairs.style_of[chunk]), networks)
            scores = kept(styled, content, networks) | {"clipped": clipped(styled.images)}
            if wanted is not None:
                scores |= reached(styled, pairs, chunk, wanted, networks)
            for metric, values in scores.items():
                rows[name][metric].append(values.cpu())
            features[name].append(styled.squeeze[-1].mean(dim=(2, 3)).cpu())
        report(int(chunk[-1]) + 1, len(pairs))
    return {
        name: summarise(
            {metric: torch.cat(parts) for metric, parts in rows[name].items()},
            torch.cat(features[name]),
            None if wanted is None else wanted.features,
            spread(painter, pairs, networks, device),
        )
        for name, painter in everyone.items()
    }


def look(images: Float[Tensor, "B 3 H W"], networks: Networks) -> View:
    """Compute what the networks see."""
    return View(images, networks.vgg(images), networks.lpips.levels(images))


def look_at_styles(pairs: Pairs, networks: Networks, device: torch.device) -> Wanted | None:
    """Read each style's statistics once."""
    if pairs.styles is None:
        return None
    stats, features = [], []
    for chunk in pairs.styles.images.split(BATCH):
        view = look(to_float(chunk.to(device)), networks)
        stats.append([channel_stats(level) for level in view.vgg])
        features.append(view.squeeze[-1].mean(dim=(2, 3)).cpu())
    return Wanted([torch.cat(level) for level in zip(*stats, strict=True)], torch.cat(features))


def kept(styled: View, content: View, networks: Networks) -> dict[str, Tensor]:
    """Measure how much of the content is left."""
    edges = edge_correlations(styled.images, content.images)
    return {
        "lpips": networks.lpips.compare(styled.squeeze, content.squeeze),
        "ssim": ssim(styled.images, content.images),
        **{f"edges_{name}": values for name, values in edges.items()},
        "content_loss": content_loss(styled.vgg[-1], content.vgg[-1], rows=True),
    }


def reached(
    styled: View, pairs: Pairs, chunk: Int[Tensor, " B"], wanted: Wanted, networks: Networks
) -> dict[str, Tensor]:
    """Measure how near the style is."""
    assert pairs.styles is not None
    rows = pairs.style_of[chunk]
    styles = to_float(pairs.styles.images[rows].to(styled.images.device))
    levels = networks.lpips.levels(styles)
    return {
        "style_loss": style_loss(
            styled.vgg, [stats[rows.to(stats.device)] for stats in wanted.stats], rows=True
        ),
        "sliced_wasserstein": sliced_wasserstein(styled.squeeze, levels),
        "gram": gram_distance(styled.squeeze, levels),
        "palette": palette_overlap(styled.images, styles),
        "gamut": gamut(styled.images, styles),
    }


def spread(
    painter: Painter, pairs: Pairs, networks: Networks, device: torch.device
) -> Float[Tensor, " K"] | None:
    """Measure how unlike some contents become in several styles; None where there is one style."""
    styles = len(painter.codes) if painter.generator else len(pairs.style_of.unique())
    several = min(DIVERSE_STYLES, styles)
    if several < 2:
        return None
    contents = pairs.contents.images[:DIVERSE_CONTENTS]
    if painter.generator is None or painter.codes.shape[1] == 0:
        return torch.zeros(len(contents))  # the same image each time
    found = []
    for row, image in enumerate(contents):
        numbers = (row + torch.arange(several) * (styles // several)) % styles
        images = to_float(image[None].to(device)).expand(several, -1, -1, -1)
        styled = painter.paint(images.contiguous(), numbers)
        found.append(diversity(networks.lpips.levels(styled), networks.lpips.compare).cpu())
    return torch.stack(found)


def summarise(
    rows: dict[str, Float[Tensor, " P"]],
    features: Float[Tensor, "P S"],
    wanted: Float[Tensor, "M S"] | None,
    diverse: Float[Tensor, " K"] | None,
) -> Scores:
    """Average the rows, and add what only all pairs together tell."""
    columns = rows if diverse is None else rows | {"diversity": diverse}
    means = {name: float(values.double().mean()) for name, values in columns.items()}
    errors = {
        name: float(values.double().std() / len(values) ** 0.5)
        for name, values in columns.items()
        if len(values) > 1
    }
    if wanted is not None and min(len(features), len(wanted)) > 1:
        means["fid"] = frechet_distance(features, wanted)
        means["art_fid"] = art_fid(means["lpips"], means["fid"])
    return Scores(means, errors, {name: values.tolist() for name, values in rows.items()})
