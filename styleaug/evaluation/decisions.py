"""Frozen classifiers, and how often their decisions flip when images change."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from styleaug.errors import ConfigError
from styleaug.evaluation.domains import wilson
from styleaug.robustness.arms import color_jitter, grey
from styleaug.robustness.class_folders import split_home
from styleaug.robustness.classifier_training import Recipe, answers, fit, recall_mean
from styleaug.robustness.classifiers import (
    SQUEEZENET,
    Network,
    Normalise,
    default_recipe,
    downloaded,
    load,
    make_classifier,
)

__all__ = ["Flips", "Rate", "count_flips", "decide", "imagenet_classifier", "mild_jitter", "train_classifier"]

HELD_OUT = 1 / 3
"""Share of each class that is held out when a classifier is trained here."""
MILD = {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 0.02}
"""Colour jitter that is generally considered safe, as a reference."""
_BATCH = 32

Decide = Callable[[Tensor], Tensor]
"""Function from images `(B, 3, H, W)` in [0, 1] to logits `(B, K)`."""


@dataclass(frozen=True)
class Rate:
    """A share of a number of cases, with its 95 % interval (Wilson)."""

    hits: int
    count: int

    @property
    def share(self) -> float:
        """Return the share; NaN if there are no cases."""
        return self.hits / self.count if self.count else float("nan")

    @property
    def ends(self) -> tuple[float, float]:
        """Return the ends of the 95 % interval."""
        return wilson(self.hits, self.count)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values; a share of no cases is None."""
        low, high = self.ends
        share = round(self.share, 4) if self.count else None
        return {
            "hits": self.hits,
            "of": self.count,
            "share": share,
            "low": round(low, 4),
            "high": round(high, 4),
        }


@dataclass(frozen=True)
class Flips:
    """Number of changed decisions."""

    all: Rate
    right: Rate | None
    """Flips among decisions that were right; None without labels."""
    wrong: Rate | None
    """Flips among decisions that were wrong; None without labels."""

    @property
    def telling(self) -> Rate:
        """Return the rate of right decisions, or that of all if no labels are known or none is right."""
        return self.right if self.right is not None and self.right.count else self.all

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        parts = {"all": self.all, "right": self.right, "wrong": self.wrong}
        return {name: None if rate is None else rate.to_dict() for name, rate in parts.items()}


def count_flips(
    before: Int[Tensor, " N"], after: Int[Tensor, " N"], labels: Int[Tensor, " N"] | None = None
) -> Flips:
    """Count changed decisions.

    Args:
        before: decided class of each image.
        after: decided class of each changed image, in the same order.
        labels: right class of each image, if known.
    """
    changed = before != after

    def rate(rows: Tensor) -> Rate:
        return Rate(int(changed[rows].sum()), int(rows.sum()))

    everything = rate(torch.ones_like(changed))
    if labels is None:
        return Flips(everything, None, None)
    return Flips(everything, rate(before == labels), rate(before != labels))


@torch.inference_mode()
def decide(
    classifier: Decide, images: Float[Tensor, "N 3 H W"], device: torch.device
) -> Float[Tensor, "N K"]:
    """Compute a classifier's probability of each class.

    Raises:
        ConfigError: the classifier does not return logits `(B, K)`.
    """
    found = []
    for part in images.split(_BATCH):
        logits = classifier(part.to(device))
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(part):
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ConfigError(
                f"a classifier must return logits ({len(part)}, K) for {len(part)} images, got {got}."
            )
        found.append(logits.float().softmax(dim=1).cpu())
    return torch.cat(found)


def mild_jitter(images: Float[Tensor, "N 3 H W"], seed: int) -> Float[Tensor, "N 3 H W"]:
    """Apply `MILD` colour jitter; torch's global generator keeps its state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return torch.cat([color_jitter(part, **MILD) for part in images.split(_BATCH)])


def imagenet_classifier(name: str, weights: Path | None, device: torch.device) -> tuple[nn.Module, list[str]]:
    """Load a frozen classifier for the 1000 classes of ImageNet.

    Args:
        name: `"squeezenet"`, or a name in `torchvision.models.list_models`.
        weights: folder of SqueezeNet's weights. torchvision downloads other weights, and all if None.
        device: device of the classifier.

    Returns:
        The network and the names of its classes.

    Raises:
        ConfigError: the name is unknown.
        WeightsError: weights are missing, damaged or cannot be downloaded.
    """
    from torchvision import models

    full = "squeezenet1_1" if name == "squeezenet" else name
    if full not in models.list_models(module=models):
        raise ConfigError(
            f"unknown classifier {name!r}; choose trained, squeezenet, or a name in torchvision."
        )
    best: Any = models.get_model_weights(full)
    best = best.DEFAULT
    if name == "squeezenet" and weights is not None:
        body = models.squeezenet1_1()
        load(body, weights / SQUEEZENET)
        caffe = Normalise((123 / 255, 117 / 255, 104 / 255), 255.0)  # the input that these weights expect
        net: nn.Module = Network(caffe, body, [])
    else:
        body, wanted = downloaded(lambda: models.get_model(full, weights=best), full), best.transforms()
        normalise = Normalise(tuple(wanted.mean), tuple(1 / value for value in wanted.std))
        net = AtSide(Network(normalise, body, []), wanted.crop_size[0])
    return net.eval().requires_grad_(False).to(device), list(best.meta["categories"])


class AtSide(nn.Module):
    """A network whose input images are resized to the size of its training."""

    network: nn.Module
    side: int

    def __init__(self, network: nn.Module, side: int):
        super().__init__()
        self.network, self.side = network, side

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B K"]:
        """Resize the images and compute their logits."""
        return self.network(_resized(images, self.side))


def _resized(images: Float[Tensor, "B 3 H W"], side: int) -> Float[Tensor, "B 3 S S"]:
    """Resize images to squares of `side` pixels."""
    if images.shape[-2:] == (side, side):
        return images
    return F.interpolate(images, size=(side, side), mode="bilinear", antialias=True).clamp(0, 1)


def train_classifier(
    images: UInt8[Tensor, "N 3 H W"],
    labels: Int[Tensor, " N"],
    *,
    name: str = "small",
    recipe: Recipe | None = None,
    weights: Path | None = None,
    seed: int = 0,
    device: torch.device,
) -> tuple[nn.Module, Int[Tensor, " M"], float]:
    """Train a classifier on two thirds of the images, to classify the rest.

    It is trained with colour jitter and grey images. A classifier that depends on exact colours would flip
    for any new colour, which says nothing about the label.

    Args:
        images: square images, `(N, 3, H, W)`.
        labels: class of each image.
        name: as in `classifiers.make_classifier`.
        recipe: recipe of the training; None uses the classifier's own.
        weights: folder of ImageNet weights; see `classifiers.make_classifier`.
        seed: seed of the split, the initial weights and the training.
        device: device of the training.

    Returns:
        The frozen classifier, the held-out rows, and its mean recall on them.

    Raises:
        ConfigError: a class has fewer than two images.
    """
    recipe = default_recipe(name) if recipe is None else recipe
    train, held = split_home(labels, seed, held_out=HELD_OUT, balanced=True)
    recipe = replace(recipe, batch=min(recipe.batch, len(train)))
    small = torch.cat([_resized(part.float() / 255, recipe.side) for part in images.split(_BATCH)])
    small = (small * 255).round().byte()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = make_classifier(name, int(labels.max()) + 1, weights=weights).to(device)
        fit(net, small[train], labels[train], jittered, recipe, seed=seed, device=str(device))
    recall = recall_mean(answers(net, small[held]), labels[held])
    return AtSide(net.eval().requires_grad_(False), recipe.side), held, recall


def jittered(images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
    """Apply strong colour jitter and grey to training images."""
    return grey(color_jitter(images))
