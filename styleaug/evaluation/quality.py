"""Measure how well generators reach styles and keep contents, on your own images."""

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import fill
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor

from styleaug import samplers
from styleaug.bank import StyleBank
from styleaug.errors import ConfigError, DeviceError, printable
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
from styleaug.evaluation.pairs import Pairs, read_pairs
from styleaug.generators.base import AbstractGenerator
from styleaug.generators.layers import channel_stats
from styleaug.images import from_float, to_float
from styleaug.io.atomic import atomic
from styleaug.io.files import save_image
from styleaug.io.pixels import shrink
from styleaug.perceptual import Networks, frechet_distance, load_networks
from styleaug.sheets import contact_sheet
from styleaug.training.losses import content_loss, style_loss
from styleaug.transforms.placement import place
from styleaug.weights import find_styles, load_generator

__all__ = [
    "MEASURES",
    "UNCHANGED",
    "Method",
    "Quality",
    "Scores",
    "draw_pairs",
    "encode_styles",
    "evaluate_quality",
    "measure_quality",
]

UNCHANGED = "content unchanged"
"""Name of the row for unchanged contents, as a reference."""
_BATCH = 4
"""Number of pairs at a time. At 256 pixels VGG-19's levels take 32 MB for each image."""
DIVERSE_CONTENTS, DIVERSE_STYLES = 8, 4
"""Number of contents, and of styles for each, by which diversity is measured."""


@dataclass(frozen=True)
class Scores:
    """Scores of one generator over all pairs."""

    means: dict[str, float]
    errors: dict[str, float]
    """Standard errors of means, as if no image were in two pairs."""
    rows: dict[str, list[float]] = field(repr=False)
    """Values of each figure for each pair."""


@dataclass(frozen=True)
class Method:
    """A generator on a device, with the code of each style.

    Args:
        generator: the generator; None returns the content.
        codes: `(M, S)`, a code for each style.
        strength: strength in [0, 1].
    """

    generator: AbstractGenerator | None
    codes: Float[Tensor, "M S"]
    strength: float = 1.0

    def paint(self, images: Float[Tensor, "B 3 H W"], styles: Int[Tensor, " B"]) -> Float[Tensor, "B 3 H W"]:
        """Style each image in the style with the given index."""
        if self.generator is None:
            return images
        codes = self.codes[styles].to(images.device)
        strength = torch.full((len(images),), float(self.strength), device=images.device)
        return self.generator(images, codes, strength)


class View(NamedTuple):
    """Images and their features in the networks."""

    images: Float[Tensor, "B 3 H W"]
    vgg: list[Tensor]
    squeeze: list[Tensor]


class Wanted(NamedTuple):
    """Statistics of each style in the networks."""

    stats: list[Tensor]
    """Means and deviations of VGG-19's levels, `(M, 2 C_l)`."""
    features: Float[Tensor, "M S"]
    """Means of SqueezeNet's last level."""


@torch.inference_mode()
def encode_styles(
    generator: AbstractGenerator, styles: UInt8[Tensor, "M 3 E E"], device: torch.device
) -> tuple[AbstractGenerator, Float[Tensor, "M S"]]:
    """Move a generator to a device and compute the code of each style."""
    generator = place(generator, device, bfloat16=False)
    chunks = (shrink(to_float(chunk.to(device)), generator.code_size) for chunk in styles.split(_BATCH))
    return generator, torch.cat([generator.encode_style(chunk) for chunk in chunks])


@torch.inference_mode()
def _judge(
    painters: Mapping[str, Method],
    pairs: Pairs,
    networks: Networks,
    *,
    device: torch.device,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Scores]:
    """Style all pairs with all painters, and measure the results.

    Args:
        painters: painters by name.
        pairs: pairs of images. Without styles, the style reached is not measured.
        networks: feature networks; they are moved to the device.
        device: device of all computations.
        report: called with the number of finished pairs and of all.

    Returns:
        Scores by name, including `UNCHANGED`.
    """
    networks.to(device)
    wanted = look_at_styles(pairs, networks, device)
    everyone = {UNCHANGED: Method(None, torch.zeros(0, 0)), **painters}
    rows: dict[str, dict[str, list[Tensor]]] = {name: defaultdict(list) for name in everyone}
    features: dict[str, list[Tensor]] = {name: [] for name in everyone}
    for chunk in torch.arange(len(pairs)).split(_BATCH):
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
            _spread(painter, pairs, networks, device),
        )
        for name, painter in everyone.items()
    }


def look(images: Float[Tensor, "B 3 H W"], networks: Networks) -> View:
    """Compute the features of images in the networks."""
    return View(images, networks.vgg(images), networks.lpips.levels(images))


def look_at_styles(pairs: Pairs, networks: Networks, device: torch.device) -> Wanted | None:
    """Compute the statistics of each style; None without styles."""
    if pairs.styles is None:
        return None
    stats, features = [], []
    for chunk in pairs.styles.images.split(_BATCH):
        view = look(to_float(chunk.to(device)), networks)
        stats.append([channel_stats(level) for level in view.vgg])
        features.append(view.squeeze[-1].mean(dim=(2, 3)).cpu())
    return Wanted([torch.cat(level) for level in zip(*stats, strict=True)], torch.cat(features))


def kept(styled: View, content: View, networks: Networks) -> dict[str, Tensor]:
    """Measure how much of the content is kept."""
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
    """Measure the distance to the style."""
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


def _spread(
    painter: Method, pairs: Pairs, networks: Networks, device: torch.device
) -> Float[Tensor, " K"] | None:
    """Measure how different some contents become in several styles; None if there is one style."""
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
    """Average the rows, and add the figures that need all pairs together."""
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


_Source = str | Path | AbstractGenerator
LEAST_SIZE, MOST_SIZE = 64, 1024
SHEET_TILE = 192
"""Side of a picture on the sheet, in pixels."""
LABEL, COLUMN, _WIDTH = 38, 21, 100
"""Number of characters of the table's first column, of each other column, and of the notes."""


class Measure(NamedTuple):
    """Name of a figure, and which direction is better: `-` is less, `+` is more."""

    label: str
    better: str


MEASURES: dict[str, dict[str, Measure]] = {
    "style reached": {
        "style_loss": Measure("VGG statistics loss", "-"),
        "sliced_wasserstein": Measure("sliced Wasserstein distance", "-"),
        "gram": Measure("Gram distance", "-"),
        "fid": Measure("FID", "-"),
        "palette": Measure("colours in common", "+"),
        "gamut": Measure("colours, of the style's number", " "),
    },
    "content kept": {
        "lpips": Measure("LPIPS", "-"),
        "ssim": Measure("SSIM", "+"),
        "edges_sobel": Measure("edge correlation, Sobel", "+"),
        "edges_prewitt": Measure("edge correlation, Prewitt", "+"),
        "edges_scharr": Measure("edge correlation, Scharr", "+"),
        "edges_kirsch": Measure("edge correlation, Kirsch", "+"),
        "content_loss": Measure("VGG content loss", "-"),
    },
    "both, and what else": {
        "art_fid": Measure("ArtFID, (1 + LPIPS)(1 + FID)", "-"),
        "diversity": Measure("diversity, LPIPS between styles", "+"),
        "clipped": Measure("pixels at the gamut's border", "-"),
    },
}
"""Measures by group: content kept, style reached, and both."""
LEGEND = "- less is better, + more is better; +/- is the standard error over pairs."
FEATURES = 512
"""Number of features of the network for FID."""


@dataclass(frozen=True)
class Quality:
    """Result of `evaluate_quality`."""

    scores: dict[str, Scores]
    """Scores by generator; "content unchanged" is the content itself."""
    pairs: list[tuple[str, str]]
    """Content and style of each row of the scores."""
    images: tuple[int, int]
    """Number of contents and of styles that were read."""
    networks: dict[str, str]
    """Networks that each figure was measured with. Figures from other networks are not comparable."""
    settings: dict[str, Any]
    failed: list[tuple[Path, str]]
    """Files that could not be read, with the reasons."""

    @property
    def notes(self) -> list[str]:
        """List the limits of the figures."""
        contents, styles = self.images
        told = [LEGEND]
        if any("fid" in scores.means for scores in self.scores.values()):
            told.append(
                f"FID and ArtFID are measured with {self.networks['fid, art_fid']}: they compare with each "
                "other, and not with published figures, which Inception gave."
            )
            if min(len(self.pairs), styles) < 2 * FEATURES:
                told.append(
                    f"FID of {len(self.pairs)} results and {styles} styles is too high, since it has "
                    f"{FEATURES} features; it compares generators on the same pairs only."
                )
        if contents < len(self.pairs) or 0 < styles < len(self.pairs):
            told.append(
                f"{len(self.pairs)} pairs share {contents} contents and {styles or len(self.pairs)} styles: "
                "standard errors are too small."
            )
        return told

    def to_dict(self) -> dict[str, Any]:
        """Return all results as JSON-ready values."""
        names = [{"content": content, "style": style} for content, style in self.pairs]
        return {
            "scores": {name: scores.means for name, scores in self.scores.items()},
            "standard_errors": {name: scores.errors for name, scores in self.scores.items()},
            "networks": self.networks,
            "settings": self.settings | {"pairs": len(self.pairs), "images": list(self.images)},
            "notes": self.notes,
            "failed": [{"file": str(path), "reason": reason} for path, reason in self.failed],
            "pairs": [
                pair
                | {
                    name: {metric: values[number] for metric, values in scores.rows.items()}
                    for name, scores in self.scores.items()
                }
                for number, pair in enumerate(names)
            ],
        }

    def table(self) -> str:
        """Format the scores as text: a line for each figure, a column for each generator."""
        names = [printable(name) for name in self.scores]
        width = max(COLUMN, *(len(name) + 2 for name in names))
        lines = [" " * LABEL + "".join(f"{name:>{width}}" for name in names)]
        for group, measures in MEASURES.items():
            shown = {k: m for k, m in measures.items() if any(k in s.means for s in self.scores.values())}
            lines += [group] if shown else []
            for key, (label, better) in shown.items():
                cells = "".join(f"{cell(scores, key):>{width}}" for scores in self.scores.values())
                lines.append(f"  {better} {label:{LABEL - 4}}{cells}")
        return "\n".join([*lines, "", *(fill(printable(note), _WIDTH) for note in self.notes)])

    def save(self, path: str | Path) -> Path:
        """Write the results as JSON, atomically.

        Raises:
            FileError: the file cannot be written.
        """
        with atomic(Path(path)) as part:
            part.write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")
        return Path(path)


def cell(scores: Scores, key: str) -> str:
    """Format a figure with its standard error."""
    if key not in scores.means:
        return "-"
    mean, error = scores.means[key], scores.errors.get(key, 0)
    shown = f"{mean:,.0f}" if abs(mean) >= 1000 else f"{mean:.3g}"
    return f"{shown} +/- {error:.2g}" if error > 1e-5 else shown  # less is rounding


def evaluate_quality(
    generator: _Source | Sequence[_Source],
    content: str | Path,
    style: str | Path | None = None,
    *,
    bank: str | Path | StyleBank | None = None,
    pairs: int = 64,
    size: int = 256,
    strength: float = 1.0,
    seed: int = 0,
    weights: str | Path | None = None,
    device: str | torch.device | None = None,
    sheet: str | Path | None = None,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Quality:
    """Style pairs of images, and measure the style reached and the content kept.

    Args:
        generator: a name, weights, a run folder or a generator; or several, which get the same pairs.
        content: folder of images, searched with its subfolders.
        style: folder of styles, searched with its subfolders. None draws codes of `bank`, and the style
            reached is not measured.
        bank: bank to draw codes from if there is no `style`; None is the generator's default bank.
        pairs: number of pairs, at least 1; there are fewer if there are too few different pairs.
        size: side in pixels of the squares that images are cropped to, from 64 to 1024.
        strength: strength in [0, 1].
        seed: seed for choosing pairs.
        weights: folder of the feature networks; see `perceptual.load_networks`.
        device: None uses a GPU if there is one.
        sheet: PNG file for the best, median and worst pairs.
        report: called with the number of finished pairs and of all.

    Raises:
        ConfigError: a number is out of its range, or both styles and a bank are given.
        FileError: a folder has no image that can be read.
        WeightsError: a generator is unknown, or a network is missing or damaged.
        BankError: the bank is of another generator.
        DeviceError: the device does not exist.

    Example:
        >>> quality = evaluate_quality("adain", "photos", "paintings", weights="networks")  # doctest: +SKIP
        >>> print(quality.table())  # doctest: +SKIP
    """
    if not (pairs >= 1 and LEAST_SIZE <= size <= MOST_SIZE and 0 <= strength <= 1):  # NaN fails too
        raise ConfigError(
            f"pairs must be at least 1, size from {LEAST_SIZE} to {MOST_SIZE}, strength from 0 to 1; got "
            f"{pairs}, {size}, {strength}."
        )
    if style is not None and bank is not None:
        raise ConfigError("give either a folder of styles or a bank to draw codes from, not both.")
    sources = [generator] if isinstance(generator, _Source) else list(generator)
    named = name_generators(sources)
    place_of = find_device(device)
    codes = {
        name: draw_codes(bank, source, made, pairs, seed)
        for (name, made), source in zip(named.items(), sources, strict=True)
        if style is None
    }
    networks = load_networks(None if weights is None else Path(weights))
    chosen = read_pairs(
        Path(content), None if style is None else Path(style), count=pairs, size=size, seed=seed
    )
    painters = make_painters(named, chosen, codes, strength, place_of)
    quality = measure_quality(painters, chosen, networks, device=place_of, report=report)
    quality.settings.update({"size": size, "strength": strength, "seed": seed})
    if sheet is not None:
        save_image(draw_pairs(quality, painters, chosen, place_of), Path(sheet))
    return quality


def measure_quality(
    painters: dict[str, Method],
    pairs: Pairs,
    networks: Networks,
    *,
    device: torch.device,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Quality:
    """Measure painters on given pairs; see `_judge`."""
    scores = _judge(painters, pairs, networks, device=device, report=report)
    return Quality(
        scores,
        [pairs.names(pair) for pair in range(len(pairs))],
        (len(pairs.contents), len(pairs.styles) if pairs.styles else 0),
        networks.sources,
        {},
        pairs.failed,
    )


def name_generators(sources: Sequence[_Source]) -> dict[str, AbstractGenerator]:
    """Load generators and give each a unique name."""
    if not sources:
        raise ConfigError("give at least one generator.")
    named: dict[str, AbstractGenerator] = {}
    for source in sources:
        own = isinstance(source, AbstractGenerator)
        name = source.name if isinstance(source, AbstractGenerator) else Path(source).stem
        number = sum(other.partition(" #")[0] == name for other in named)
        named[f"{name} #{number + 1}" if number else name] = source if own else load_generator(source)  # pyright: ignore[reportArgumentType]
    return named


def make_painters(
    named: dict[str, AbstractGenerator],
    pairs: Pairs,
    codes: dict[str, Tensor],
    strength: float,
    device: torch.device,
) -> dict[str, Method]:
    """Move generators to the device, with drawn codes or the codes of the styles."""
    painters = {}
    for name, generator in named.items():
        if pairs.styles is None:
            placed, rows = place(generator, device, bfloat16=False), codes[name]
        else:
            placed, rows = encode_styles(generator, pairs.styles.images, device)
        painters[name] = Method(placed, rows, strength)
    return painters


def draw_codes(
    bank: str | Path | StyleBank | None, source: _Source, generator: AbstractGenerator, count: int, seed: int
) -> Tensor:
    """Draw codes from a bank, or from the normal distribution if a generator needs no bank."""
    found, _ = find_styles(bank, source)
    rng = torch.Generator().manual_seed(seed)
    if found is None:
        return samplers.prior(generator.code_length, count, rng).codes
    found.check(generator)
    return samplers.sample("uniform", found.codes, count, rng).codes


def find_device(device: str | torch.device | None) -> torch.device:
    """Return the given device; for None the GPU if there is one, otherwise the CPU.

    Raises:
        DeviceError: the device does not exist.
    """
    try:
        chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError):
        raise DeviceError(f"there is no device {str(device)!r} here; leave it out, or use 'cpu'.") from None
    return chosen


@torch.inference_mode()
def draw_pairs(
    quality: Quality, painters: dict[str, Method], pairs: Pairs, device: torch.device
) -> Image.Image:
    """Draw the best, median and worst pairs by style reached and content kept, mean over generators."""
    rows, titles = [], []
    for group, metric in (("style reached", "style_loss"), ("content kept", "lpips")):
        scores = {name: quality.scores[name].rows.get(metric, []) for name in painters}
        mean = torch.tensor(list(scores.values()), dtype=torch.float64).mean(dim=0)
        order = mean.argsort().tolist()
        ranks = {"best": 0, "median": len(order) // 2, "worst": len(order) - 1}
        for rank in ("best", "median", "worst") if order else ():
            pair = order[ranks[rank]]
            content, style = (shorten(name) for name in pairs.names(pair))
            figures = ", ".join(f"{name} {values[pair]:.3g}" for name, values in scores.items())
            titles.append(
                f"{group}, {rank}: {content} in {style}\n{MEASURES[group][metric].label}: {figures}"
            )
            rows.append(paint_row(painters, pairs, pair, device))
    captions = ["content", *(["style"] if pairs.styles else []), *painters]
    return contact_sheet(rows, captions, titles)


def paint_row(
    painters: dict[str, Method], pairs: Pairs, pair: int, device: torch.device
) -> list[Image.Image]:
    """Paint one pair with every painter, next to its content and style."""
    rows = pairs.style_of[pair, None]
    content = pairs.contents.images[pairs.content_of[pair, None]]
    tiles = [content] if pairs.styles is None else [content, pairs.styles.images[rows]]
    images = to_float(content.to(device))
    tiles += [from_float(p.paint(images, rows), torch.uint8) for p in painters.values()]
    pictures = (Image.fromarray(tile[0].permute(1, 2, 0).cpu().contiguous().numpy()) for tile in tiles)
    return [picture.resize((SHEET_TILE, SHEET_TILE), Image.Resampling.LANCZOS) for picture in pictures]


def shorten(name: str) -> str:
    """Shorten a long name to its end."""
    return name if len(name) <= 30 else "..." + name[-27:]
