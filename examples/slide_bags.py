"""Bags of slides for multiple-instance learning: k styled views of the tiles of tissue of each slide.

uv run --extra slides examples/slide_bags.py [SLIDE ...]
"""

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models import resnet18

from styleaug import SlideTiles, StyleAugment
from styleaug.sheets import draw_tissue

MPP, SIDE, TILES, VIEWS = 0.5, 112, 16, 3


def draw_slide(path: Path, seed: int) -> Path:
    """Draw a slide of 1024 x 1024 pixels, at 0.5 microns per pixel, for a trial without slides."""
    tissue = draw_tissue(1024, seed=seed)
    tissue.save(path, tiffinfo={282: 20_000.0, 283: 20_000.0, 296: 3})  # pixels per centimetre
    return path


def bag_of(slide: Path, augment: StyleAugment) -> Iterator[Tensor]:
    """Yield the tiles of a slide (N, 3, S, S) plain, then k times in one style for the whole slide."""
    tiles = SlideTiles(slide, side=SIDE, mpp=MPP)
    chosen = torch.randperm(len(tiles))[:TILES].tolist()
    bag = torch.stack([tiles[index] for index in chosen])
    print(f"{slide.name}: {len(bag)} of {len(tiles)} tiles of tissue, {tiles.mpp:g} microns per pixel")
    yield bag
    # Tiles are frames of one image here: they share a style, and the statistics by which they get it.
    yield from augment(bag.expand(VIEWS, *bag.shape))


class Attention(nn.Module):
    """Classify a bag by a weighted mean of its tiles (Ilse et al. 2018)."""

    def __init__(self, features: int = 512):
        super().__init__()
        self.weigh = nn.Sequential(nn.Linear(features, 64), nn.Tanh(), nn.Linear(64, 1))
        self.classify = nn.Linear(features, 2)

    def forward(self, tiles: Tensor) -> Tensor:
        return self.classify((self.weigh(tiles).softmax(0) * tiles).sum(0))


if __name__ == "__main__":
    encoder = resnet18(weights=None)  # yours: the frozen network whose features you store
    encoder.fc = nn.Identity()
    augment, model = StyleAugment.preset("unknown", p=1), Attention()
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        slides = [*map(Path, sys.argv[1:])] or [draw_slide(Path(folder) / f"{n}.tif", n) for n in range(2)]
        for slide in slides:
            views = [encoder.eval()(view.float() / 255) for view in bag_of(slide, augment)]
            print(f"  {len(views)} bags of {tuple(views[0].shape)}; a logit of each:")
            print("  ", [round(float(model(view)[0]), 3) for view in views])  # train: one view an epoch
