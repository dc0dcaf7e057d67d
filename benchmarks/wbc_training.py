"""What all arms of `wbc.py` share: geometry, the two classifiers, one way to train and to test."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import squeezenet1_1

__all__ = [
    "CLASSES",
    "RECIPES",
    "Augment",
    "Images",
    "Recipe",
    "balanced_accuracy",
    "fit",
    "make_net",
]

CLASSES = ("neutrophil", "lymphocyte", "monocyte", "eosinophil")

Images = Tensor  # (B, 3, S, S)
Augment = Callable[[Images], Images]


@dataclass(frozen=True)
class Geometry:
    """The same in all arms: any rotation, flips, scale 0.6 to 1.6 (log-uniform), shifts.

    Cells have no up; laboratories differ in magnification by about that much. The border is
    reflected. One `grid_sample` per batch.
    """

    scale: tuple[float, float] = (0.6, 1.6)
    shift: float = 0.1  # of the side, both ways

    def __call__(self, images: Images, *, rng: torch.Generator) -> Images:
        def uniform(low: float, high: float) -> Tensor:
            return low + (high - low) * torch.rand(len(images), generator=rng)

        angle = uniform(-np.pi, np.pi)
        zoom = uniform(*np.log(self.scale)).exp()
        flip = 1 - 2 * (uniform(0, 1) < 0.5).float()  # with any rotation, one flip is both
        dx, dy = uniform(-2 * self.shift, 2 * self.shift), uniform(-2 * self.shift, 2 * self.shift)
        cos, sin = angle.cos() / zoom, angle.sin() / zoom
        rows = [flip * cos, -flip * sin, dx, sin, cos, dy]
        matrix = torch.stack(rows, dim=1).view(-1, 2, 3).to(images.device)
        grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


@dataclass(frozen=True)
class Recipe:
    """How one classifier is trained; tuned on the home score and the time only."""

    side: int
    epochs: int
    lr: float
    batch: int = 32
    weight_decay: float = 0.05
    label_smoothing: float = 0.1


RECIPES = {
    "scratch": Recipe(side=64, epochs=50, lr=4e-3),
    "squeezenet": Recipe(side=128, epochs=16, lr=2e-4, batch=16),
}


def make_net(classifier: str, weights: Path) -> nn.Module:
    """Build a classifier by name; the scratch one needs no weights."""
    return make_scratch() if classifier == "scratch" else make_squeezenet(weights)


class Normalise(nn.Module):
    """[0, 1] to what the network expects."""

    mean: Tensor

    def __init__(self, mean: tuple[float, float, float], scale: float):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.scale = scale

    def forward(self, images: Images) -> Images:
        return (images - self.mean) * self.scale


def make_scratch() -> nn.Module:
    """Build four blocks of convolution, batch norm, ReLU and pooling: 0.24 M parameters."""
    layers: list[nn.Module] = [Normalise((0.5, 0.5, 0.5), 4)]
    widths = (3, 32, 64, 128, 128)
    for ins, outs in pairwise(widths):
        layers += [nn.Conv2d(ins, outs, 3, padding=1, bias=False), nn.BatchNorm2d(outs)]
        layers += [nn.ReLU(inplace=True), nn.MaxPool2d(2)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], len(CLASSES))]
    return nn.Sequential(*layers, *head)


def make_squeezenet(weights: Path) -> nn.Module:
    """Load the ImageNet SqueezeNet with a new head, without the ReLU that can kill a logit."""
    net = squeezenet1_1()
    net.load_state_dict(load_file(weights / "squeezenet1_1_imagenet.safetensors"))
    head = nn.Conv2d(512, len(CLASSES), 1)
    nn.init.normal_(head.weight, std=0.01)
    mean = (123 / 255, 117 / 255, 104 / 255)
    pool = (nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(Normalise(mean, 255), net.features, nn.Dropout(0.5), head, *pool)


def fit(
    net: nn.Module,
    images: Images,
    labels: Tensor,
    augment: Augment,
    recipe: Recipe,
    *,
    seed: int,
    device: str,
) -> None:
    """Train in place with AdamW, one cycle of the learning rate and whole batches."""
    rng = torch.Generator().manual_seed(seed)  # order and geometry: the same in every arm
    geometry = Geometry()
    steps = len(images) // recipe.batch
    optimiser = torch.optim.AdamW(net.parameters(), recipe.lr, weight_decay=recipe.weight_decay)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.lr, recipe.epochs * steps)
    net.train()
    for _ in range(recipe.epochs):
        order = torch.randperm(len(images), generator=rng)
        for rows in order[: steps * recipe.batch].split(recipe.batch):
            batch = geometry(augment(images[rows].to(device).float() / 255), rng=rng)
            logits = net(batch.contiguous(memory_format=torch.channels_last))
            target = labels[rows].to(device)
            loss = F.cross_entropy(logits, target, label_smoothing=recipe.label_smoothing)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            cycle.step()


@torch.inference_mode()
def balanced_accuracy(net: nn.Module, images: Images, labels: Tensor) -> float:
    """Average the recall over the classes."""
    net.eval()
    device = next(net.parameters()).device
    logits = [net(batch.to(device).float() / 255) for batch in images.split(64)]
    hits = (torch.cat(logits).argmax(1).cpu() == labels).float()
    return statistics.fmean(hits[labels == label].mean().item() for label in labels.unique())
