"""What fine-tuning gives: style reached and edges kept on held-out images, before and after.

    styleaug train adain SOURCE TARGET --init adain --steps 300 --learning-rate 5e-4 --networks WEIGHTS -o RUN
    STYLEAUG_WEIGHTS=WEIGHTS python benchmarks/finetune.py SOURCE TARGET RUN

The twentieth of each side that no training read; each held-out source in the style of a held-out target,
at the size of the training crops. Style loss: squared error of channel means and deviations over relu1_1 to
relu4_1 of the normalised VGG-19; edges: correlation of Sobel magnitudes with the source; mean and standard
error over the pairs.
"""

import argparse
import os
from pathlib import Path

import torch
from machine import machine_card

from styleaug.generators.layers import channel_stats
from styleaug.perceptual import load_vgg19
from styleaug.training.config import preset
from styleaug.training.data import TrainingData
from styleaug.training.losses import edge_correlation, style_loss
from styleaug.weights import load_generator


def told(values: torch.Tensor) -> str:
    return f"{values.mean():.3f} ± {values.std() / len(values) ** 0.5:.3f}"


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for name in ("source", "target", "run"):
        parser.add_argument(name, type=Path)
    args = parser.parse_args()
    sources, targets = TrainingData(args.source, args.target, preset("adain")).judged()
    targets = targets[torch.arange(len(sources)) % len(targets)]
    vgg = load_vgg19(Path(os.environ["STYLEAUG_WEIGHTS"]))
    print(f"{machine_card()}\n{len(sources)} pairs\n| | style loss | edges |\n|---|---|---|")
    for name in ("reinhard-rgb", "adain", args.run):
        generator, style, edges = load_generator(name), [], []
        for image, target in zip(sources.split(8), targets.split(8), strict=True):
            painted = generator(image, generator.encode_style(target), torch.ones(len(image)))
            wanted = [channel_stats(level) for level in vgg(target)]
            style.append(style_loss(vgg(painted), wanted, rows=True))
            edges.append(edge_correlation(painted, image))
        print(f"| {name} | {told(torch.cat(style))} | {told(torch.cat(edges))} |")


if __name__ == "__main__":
    main()
