"""Train and test a classifier in the same way for all arms: geometry, recipe, score."""

import statistics
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Protocol, get_args

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from styleaug.errors import ConfigError, TrainError

__all__ = [
    "GEOMETRIES",
    "VOID",
    "Augment",
    "Geometry",
    "PhotoGeometry",
    "Recipe",
    "SmallGeometry",
    "accuracy",
    "answers",
    "autocast",
    "descend",
    "fit",
    "recall_mean",
]

_Images = Float[Tensor, "B 3 S S"]
Augment = Callable[[Tensor], Tensor]

GeometryName = Literal["cells", "photo", "small", "none"]
FitPrecision = Literal["float32", "bf16"]
Optimiser = Literal["adamw", "sgd"]
Schedule = Literal["one-cycle", "cosine"]

MOMENTUM = 0.9
VOID = 255
"""Index of pixels without a class in a mask; neither trained on nor scored."""
PAD = 4
"""Largest shift of `small` in pixels, for images of 32 pixels (Zagoruyko & Komodakis 2016)."""


class Move(Protocol):
    """Function that moves the pixels of a batch, and the labels of its masks in the same way."""

    def __call__(self, pixels: Float[Tensor, "B C H W"], *, labels: bool = False) -> Tensor:
        """Move pixels; with `labels` each takes the nearest value, and `VOID` comes from outside."""
        ...


class Warp(ABC):
    """A random change of geometry."""

    @abstractmethod
    def draw(self, shape: torch.Size, *, rng: torch.Generator, device: torch.device) -> Move:
        """Draw the moves of a batch `(B, C, H, W)`; all draws are from `rng`."""

    def __call__(self, images: _Images, *, rng: torch.Generator) -> _Images:
        """Move a batch; all draws are from `rng`."""
        return self.draw(images.shape, rng=rng, device=images.device)(images)


@dataclass(frozen=True)
class Geometry(Warp):
    """Rotate by any angle, flip, scale by 0.6 to 1.6 (log-uniform), shift.

    Cells have no up, and magnifications of laboratories differ by about this factor. The border is
    reflected. It takes one `grid_sample` per batch.
    """

    scale: tuple[float, float] = (0.6, 1.6)
    shift: float = 0.1  # share of the side, in both directions

    def draw(self, shape: torch.Size, *, rng: torch.Generator, device: torch.device) -> Move:
        """Draw an affine map for each image."""

        def uniform(low: float, high: float) -> Tensor:
            return low + (high - low) * torch.rand(shape[0], generator=rng)

        angle = uniform(-np.pi, np.pi)
        zoom = uniform(*np.log(self.scale)).exp()
        flip = 1 - 2 * (uniform(0, 1) < 0.5).float()  # one flip suffices, as any rotation is possible
        dx, dy = uniform(-2 * self.shift, 2 * self.shift), uniform(-2 * self.shift, 2 * self.shift)
        cos, sin = angle.cos() / zoom, angle.sin() / zoom
        return affine_move(shape, [flip * cos, -flip * sin, dx, sin, cos, dy], device)


@dataclass(frozen=True)
class PhotoGeometry(Warp):
    """Cut a random rectangle, resize it to the image's size, flip half of the images left to right."""

    area: tuple[float, float] = (0.35, 1.0)  # share of the image
    aspect: float = 4 / 3  # up to this ratio or its inverse, log-uniform

    def draw(self, shape: torch.Size, *, rng: torch.Generator, device: torch.device) -> Move:
        """Draw a rectangle and a flip for each image."""
        area, aspect, flip, x, y = torch.rand(5, shape[0], generator=rng)
        area = self.area[0] + (self.area[1] - self.area[0]) * area
        aspect = ((2 * aspect - 1) * np.log(self.aspect)).exp()
        width, height = (area * aspect).sqrt().clamp_max(1), (area / aspect).sqrt().clamp_max(1)
        nothing = torch.zeros(shape[0])
        turned = torch.where(flip < 0.5, -width, width)
        dx, dy = (2 * x - 1) * (1 - width), (2 * y - 1) * (1 - height)
        return affine_move(shape, [turned, nothing, dx, nothing, height, dy], device)


@dataclass(frozen=True)
class SmallGeometry(Warp):
    """Shift by up to 4 pixels into black, flip half of the images left to right."""

    pad: int = PAD

    def draw(self, shape: torch.Size, *, rng: torch.Generator, device: torch.device) -> Move:
        """Draw a shift and a flip for each image."""
        count, _, height, width = shape
        top, left = torch.randint(2 * self.pad + 1, (2, count), generator=rng)
        flip = torch.rand(count, generator=rng) < 0.5
        columns = torch.where(flip[:, None], torch.arange(width - 1, -1, -1), torch.arange(width))
        rows = (top[:, None] + torch.arange(height)).to(device)
        columns = (left[:, None] + columns).to(device)
        each = torch.arange(count, device=device)[:, None, None]

        def move(pixels: Float[Tensor, "B C H W"], *, labels: bool = False) -> Tensor:
            padded = F.pad(pixels, 4 * [self.pad], value=VOID if labels else 0)
            return padded[each, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)

        return move


@dataclass(frozen=True)
class NoGeometry(Warp):
    """Leave the images unchanged."""

    def draw(self, shape: torch.Size, *, rng: torch.Generator, device: torch.device) -> Move:
        """Draw nothing."""
        return unmoved


def unmoved(pixels: Float[Tensor, "B C H W"], *, labels: bool = False) -> Tensor:
    """Return the pixels unchanged."""
    return pixels


def affine_move(shape: torch.Size, rows: list[Float[Tensor, " B"]], device: torch.device) -> Move:
    """Return the function that samples each image through an affine matrix, given by its six entries."""
    matrix = torch.stack(rows, dim=1).view(-1, 2, 3).to(device)
    grid = F.affine_grid(matrix, list(shape), align_corners=False)

    def move(pixels: Float[Tensor, "B C H W"], *, labels: bool = False) -> Tensor:
        mode = "nearest" if labels else "bilinear"
        return F.grid_sample(pixels, grid, mode=mode, padding_mode="reflection", align_corners=False)

    return move


GEOMETRIES: dict[str, Warp] = {
    "cells": Geometry(),
    "photo": PhotoGeometry(),
    "small": SmallGeometry(),
    "none": NoGeometry(),
}


@dataclass(frozen=True)
class Recipe:
    """How a classifier is trained.

    Args:
        side: side of the images in pixels.
        epochs: number of passes over the training images.
        lr: highest learning rate.
        batch: number of images in a step; an incomplete batch at the end of an epoch is skipped.
        weight_decay: weight decay of the optimiser, >= 0.
        label_smoothing: label smoothing of the cross-entropy, in [0, 1).
        geometry: `"cells"`, `"photo"`, `"small"` or `"none"`; the same in all arms.
        optimiser: `"adamw"`, or `"sgd"` with Nesterov's momentum of 0.9.
        schedule: `"one-cycle"`, or `"cosine"` down to 0.
        precision: `"float32"`, or `"bf16"` for autocast.

    Raises:
        ConfigError: a value is out of its range.
    """

    side: int
    epochs: int
    lr: float
    batch: int = 32
    weight_decay: float = 0.05
    label_smoothing: float = 0.1
    geometry: GeometryName = "cells"
    optimiser: Optimiser = "adamw"
    schedule: Schedule = "one-cycle"
    precision: FitPrecision = "float32"

    def __post_init__(self) -> None:
        for name in ("side", "epochs", "lr", "batch"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be above 0, got {getattr(self, name)!r}.")
        if not (self.weight_decay >= 0 and 0 <= self.label_smoothing < 1):
            raise ConfigError(
                "weight_decay must be >= 0 and label_smoothing in [0, 1), got "
                f"{self.weight_decay!r} and {self.label_smoothing!r}."
            )
        for name, kinds in _CHOICES.items():
            if getattr(self, name) not in kinds:
                raise ConfigError(f"{name} must be one of {', '.join(kinds)}, got {getattr(self, name)!r}.")

    def to_dict(self) -> dict[str, Any]:
        """Return the values as JSON has them, without default choices."""
        usual = {field.name: field.default for field in fields(self)}
        values = asdict(self)
        return {name: value for name, value in values.items() if name not in _CHOICES or value != usual[name]}


_CHOICES = {
    "geometry": get_args(GeometryName),
    "optimiser": get_args(Optimiser),
    "schedule": get_args(Schedule),
    "precision": get_args(FitPrecision),
}


def fit(
    net: nn.Module,
    images: UInt8[Tensor, "N 3 S S"],
    labels: Int[Tensor, " N"],
    augment: Augment,
    recipe: Recipe,
    *,
    seed: int,
    device: str,
    steps: int | None = None,
) -> None:
    """Train `net` in place with full batches; the weights of the last epoch are the result.

    Order and geometry are drawn from `seed` by a separate generator, so they do not depend on the draws of
    `augment`.

    Args:
        net: network that takes images in [0, 1], already on `device`.
        images: training images, uint8.
        labels: labels of the images.
        augment: function that changes colour and texture of a batch in [0, 1], before the geometry.
        recipe: recipe of the training.
        seed: seed of order and geometry.
        device: device of `net`.
        steps: stop after this number of steps, to measure time.

    Raises:
        ConfigError: there are fewer images than in a batch.
        TrainError: the loss is not finite.
    """
    geometry = GEOMETRIES[recipe.geometry]

    def loss_of(rows: Int[Tensor, " B"], rng: torch.Generator) -> Tensor:
        batch = geometry(augment(images[rows].to(device).float() / 255), rng=rng)
        with autocast(device, recipe.precision):
            logits = net(batch.contiguous(memory_format=torch.channels_last))
        target = labels[rows].to(device)
        return F.cross_entropy(logits.float(), target, label_smoothing=recipe.label_smoothing)

    descend(net, len(images), loss_of, recipe, seed=seed, steps=steps)


def descend(
    net: nn.Module,
    count: int,
    loss_of: Callable[[Tensor, torch.Generator], Tensor],
    recipe: Recipe,
    *,
    seed: int,
    steps: int | None = None,
) -> None:
    """Train `net` in place by steps on full batches.

    Args:
        net: network, already on its device.
        count: number of training images.
        loss_of: called with the rows of a batch, and with the generator for its geometry.
        recipe: recipe of the training.
        seed: seed of order and geometry, which are the same in every arm.
        steps: stop after this number of steps, to measure time.

    Raises:
        ConfigError: there are fewer images than in a batch.
        TrainError: the loss is not finite.
    """
    rng = torch.Generator().manual_seed(seed)
    each = count // recipe.batch
    if not each:
        raise ConfigError(f"{count} training images fill no batch of {recipe.batch}; lower it.")
    optimiser = _make_optimiser(net, recipe)
    schedule = make_schedule(optimiser, recipe, recipe.epochs * each)
    left = recipe.epochs * each if steps is None else steps
    net.train()
    for _ in range(recipe.epochs):
        order = torch.randperm(count, generator=rng)
        loss = torch.zeros(())
        for rows in order[: each * recipe.batch].split(recipe.batch)[:left]:
            loss = loss_of(rows, rng)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
            left -= 1
        if not bool(loss.isfinite()):
            raise TrainError(f"the loss is {loss.item()}; lower the learning rate {recipe.lr:g}.")
        if not left:
            return


def _make_optimiser(net: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Return the optimiser that a recipe names."""
    if recipe.optimiser == "adamw":
        return torch.optim.AdamW(net.parameters(), recipe.lr, weight_decay=recipe.weight_decay)
    return torch.optim.SGD(
        net.parameters(), recipe.lr, momentum=MOMENTUM, weight_decay=recipe.weight_decay, nesterov=True
    )


def make_schedule(
    optimiser: torch.optim.Optimizer, recipe: Recipe, steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """Return the schedule of the learning rate that a recipe names."""
    if recipe.schedule == "cosine":
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    return torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.lr, steps)


def autocast(device: str | torch.device, precision: str) -> Any:
    """Return an autocast context for "bf16"; otherwise one without effect."""
    if precision != "bf16":
        return nullcontext()
    return torch.autocast(torch.device(device).type, dtype=torch.bfloat16)


@torch.inference_mode()
def answers(
    net: nn.Module, images: Shaped[Tensor, "N 3 S S"], *, precision: str = "float32", batch: int = 64
) -> Int[Tensor, " N"]:
    """Classify each image, uint8 in memory or on disk; return the classes."""
    net.eval()
    device = next(net.parameters()).device
    with autocast(device, precision):
        logits = [net(part.to(device).float() / 255) for part in images.split(batch)]
    return torch.cat(logits).argmax(1).cpu()


def recall_mean(given: Int[Tensor, " N"], labels: Int[Tensor, " N"]) -> float:
    """Compute the mean recall over the classes in `labels`."""
    hits = (given == labels).float()
    return statistics.fmean(hits[labels == label].mean().item() for label in labels.unique())


def accuracy(given: Int[Tensor, " N"], labels: Int[Tensor, " N"]) -> float:
    """Compute the share of right answers."""
    return (given == labels).double().mean().item()
