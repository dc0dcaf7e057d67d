"""Train and test a segmentation network: cross-entropy and Dice loss; Dice, IoU and surface distance."""

import warnings
from importlib.util import find_spec
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int, Shaped, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from styleaug.errors import missing_extra
from styleaug.robustness.classifier_training import GEOMETRIES, VOID, Recipe, autocast, descend

__all__ = ["dice", "fit_segmenter", "intersection_over_union", "overlaps", "segment", "surface_dice"]

SMOOTH = 1.0
"""Pixels that are added to both sides of the fraction in the Dice loss."""


class MaskedAugment(Protocol):
    """Function that changes colour and texture of a batch in [0, 1], and may look at its masks."""

    def __call__(self, images: Tensor, *, masks: Tensor) -> Tensor: ...


def fit_segmenter(
    net: nn.Module,
    images: UInt8[Tensor, "N 3 S S"],
    masks: UInt8[Tensor, "N S S"],
    augment: MaskedAugment,
    recipe: Recipe,
    *,
    seed: int,
    device: str,
    first: int = 1,
    steps: int | None = None,
) -> None:
    """Train `net` in place; the weights of the last epoch are the result.

    The loss is the cross-entropy plus the Dice loss. Order and geometry are drawn as in
    `classifier_training.fit`; a mask moves as its image does.

    Args:
        net: network that takes images in [0, 1], already on `device`.
        images: training images.
        masks: index of each pixel's class, or `VOID`.
        augment: function that changes images before the geometry; for it void is background.
        recipe: recipe of the training.
        seed: seed of order and geometry.
        device: device of `net`.
        first: first class of the Dice loss; 1 leaves the background out.
        steps: stop after this number of steps, to measure time.

    Raises:
        ConfigError: there are fewer images than in a batch.
        TrainError: the loss is not finite.
    """
    geometry = GEOMETRIES[recipe.geometry]

    def loss_of(rows: Int[Tensor, " B"], rng: torch.Generator) -> Tensor:
        truth = masks[rows].to(device)
        unit = images[rows].to(device).float() / 255
        changed = augment(unit, masks=truth.masked_fill(truth == VOID, 0))
        move = geometry.draw(changed.shape, rng=rng, device=changed.device)
        batch, target = move(changed), move(truth[:, None].float(), labels=True)[:, 0].round().long()
        with autocast(device, recipe.precision):
            logits = net(batch.contiguous(memory_format=torch.channels_last))
        return mask_loss(logits.float(), target, first, recipe.label_smoothing)

    descend(net, len(images), loss_of, recipe, seed=seed, steps=steps)


def mask_loss(
    logits: Float[Tensor, "B K H W"],
    target: Int[Tensor, "B H W"],
    first: int = 1,
    label_smoothing: float = 0.0,
) -> Float[Tensor, ""]:
    """Compute cross-entropy plus Dice loss (Milletari et al. 2016), both without void pixels.

    The Dice loss is 1 minus the mean Dice of the classes from `first` on, each over the whole batch.
    """
    seen = target != VOID
    entropy = F.cross_entropy(
        logits, target, ignore_index=VOID, label_smoothing=label_smoothing, reduction="sum"
    )
    shares = logits.softmax(dim=1) * seen[:, None]
    truth = one_hot(target, logits.shape[1]).float()
    both, either = ((shares * truth).sum(dim=(0, 2, 3)), (shares + truth).sum(dim=(0, 2, 3)))
    overlap = (2 * both + SMOOTH) / (either + SMOOTH)
    return entropy / seen.sum().clamp_min(1) + 1 - overlap[first:].mean()


def one_hot(masks: Shaped[Tensor, "B H W"], classes: int) -> Shaped[Tensor, "B K H W"]:
    """Return for each class where it is; void is nowhere."""
    return masks[:, None] == torch.arange(classes, device=masks.device)[:, None, None]


@torch.inference_mode()
def segment(
    net: nn.Module, images: Shaped[Tensor, "N 3 S S"], *, precision: str = "float32", batch: int = 32
) -> UInt8[Tensor, "N S S"]:
    """Return the class of each pixel; images are uint8, in memory or on disk."""
    net.eval()
    device = next(net.parameters()).device
    with autocast(device, precision):
        found = [net(part.to(device).float() / 255).argmax(1).byte().cpu() for part in images.split(batch)]
    return torch.cat(found)


def overlaps(
    given: UInt8[Tensor, "N S S"], masks: UInt8[Tensor, "N S S"], classes: int
) -> tuple[Float[Tensor, "N K"], Float[Tensor, "N K"], Float[Tensor, "N K"]]:
    """Count the pixels of each image and class in both masks, in `given` and in the truth, without void."""
    seen = (masks != VOID)[:, None]
    one, other = one_hot(given, classes) & seen, one_hot(masks, classes)
    return tuple(part.sum(dim=(2, 3)).double() for part in (one & other, one, other))  # pyright: ignore


def dice(
    both: Float[Tensor, "N K"], given: Float[Tensor, "N K"], truth: Float[Tensor, "N K"]
) -> Float[Tensor, "N K"]:
    """Compute the Dice of each image and class: NaN where a class is in neither mask."""
    return 2 * both / (given + truth)


def intersection_over_union(
    both: Float[Tensor, "N K"], given: Float[Tensor, "N K"], truth: Float[Tensor, "N K"]
) -> Float[Tensor, "N K"]:
    """Compute the IoU of each image and class: NaN where a class is in neither mask."""
    return both / (given + truth - both)


def has_surface_dice() -> bool:
    """Return whether the libraries for `surface_dice` are installed."""
    return all(find_spec(library) is not None for library in ("monai", "scipy"))


def surface_dice(
    given: UInt8[Tensor, "N S S"], masks: UInt8[Tensor, "N S S"], classes: int, tolerance: float
) -> Float[Tensor, "N K"]:
    """Compute the share of border pixels that lie within a tolerance of the other border (MONAI).

    This is the normalised surface distance, or surface Dice (Nikolov et al. 2021): NaN where a class is in
    neither mask, 0 where it is in one only.

    Args:
        given: class of each pixel.
        masks: true class of each pixel, or `VOID`, where both masks are cut out.
        classes: number of classes.
        tolerance: in pixels.

    Raises:
        MissingExtraError: MONAI or SciPy is not installed.
    """
    if not has_surface_dice():
        raise missing_extra("the normalised surface distance", "monai and scipy", "monai")
    from monai.metrics.surface_dice import SurfaceDiceMetric

    measure: Any = SurfaceDiceMetric([tolerance] * classes, include_background=True)
    seen = (masks != VOID)[:, None]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes that are not there
        found = [
            measure((one_hot(one, classes) & visible).float(), one_hot(other, classes).float())
            for one, other, visible in zip(given.split(32), masks.split(32), seen.split(32), strict=True)
        ]
    return torch.cat(found).double().cpu()
