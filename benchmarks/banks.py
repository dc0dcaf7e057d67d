"""Do the shipped banks cover their images, and are their Gaussian styles as natural as real ones?

    STYLEAUG_DATA=DATA STYLEAUG_WEIGHTS=WEIGHTS python benchmarks/banks.py FOLDER BANK ... \
        --out benchmarks/results/banks.json

FOLDER holds the images that the bank was fitted on. All are encoded anew.

    coverage  distance of an image's code to the nearest code of a bank, mean over all images, codes
              scaled to unit deviation; the shipped bank beside random ones of the same size (10 draws)
    gaussian  style loss (quality.py) between one content in a drawn style and the same content in the
              real style nearest to it, median over contents; beside a real style and its nearest other
              real style, and beside two real styles drawn at random
"""

import argparse
import json
import os
import statistics
from pathlib import Path

import torch
from held_out import draw
from machine import publish
from quality import CONTENT
from torch import Tensor

from styleaug import StyleBank, fit_style, load_bank
from styleaug.generators.layers import channel_stats
from styleaug.perceptual import load_vgg19
from styleaug.samplers import gaussian
from styleaug.training.losses import style_loss
from styleaug.weights import load_generator


def coverage(everything: StyleBank, shipped: StyleBank, seeds: int = 10) -> dict[str, float]:
    """Measure how far an image is from the nearest style of the bank, and of random banks."""
    std = everything.codes.std(dim=0).clamp_min(1e-6)
    distance = lambda codes: torch.cdist(everything.codes / std, codes / std).amin(dim=1).mean().item()  # noqa: E731
    drawn = []
    for seed in range(seeds):
        rows = torch.randperm(len(everything), generator=torch.Generator().manual_seed(seed))[: len(shipped)]
        drawn.append(distance(everything.codes[rows]))
    return {
        "images": len(everything),
        "styles": len(shipped),
        "shipped": round(distance(shipped.codes), 3),
        "random": round(statistics.mean(drawn), 3),
        "random_sd": round(statistics.stdev(drawn), 3),
    }


@torch.inference_mode()
def naturalness(bank: StyleBank, contents: Tensor, vgg) -> dict[str, float]:
    """Compare drawn styles with the nearest real ones by what they look like on the same contents."""
    generator, rng = load_generator(bank.provenance.generator), torch.Generator().manual_seed(0)
    count, std = len(contents), bank.codes.std(dim=0).clamp_min(1e-6)
    drawn = gaussian(bank.codes, count, rng).codes
    one, other = torch.randint(len(bank), (2, count), generator=rng)
    near_drawn = torch.cdist(drawn / std, bank.codes / std).argmin(dim=1)
    near_real = torch.cdist(bank.codes[one] / std, bank.codes / std).topk(2, largest=False).indices[:, 1]

    def difference(first: Tensor, second: Tensor) -> float:
        losses = []
        for image, a, b in zip(contents.split(4), first.split(4), second.split(4), strict=True):
            strength = torch.ones(len(image))
            looks = [vgg(generator(image, codes, strength)) for codes in (a, b)]
            losses.append(style_loss(looks[0], [channel_stats(level) for level in looks[1]], rows=True))
        return round(torch.cat(losses).median().item(), 3)

    return {
        "drawn to nearest real": difference(drawn, bank.codes[near_drawn]),
        "real to nearest real": difference(bank.codes[one], bank.codes[near_real]),
        "real to any real": difference(bank.codes[one], bank.codes[other]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pairs", nargs="+", help="FOLDER BANK, as often as wanted")
    parser.add_argument("--contents", type=int, default=32)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    data = Path(os.environ["STYLEAUG_DATA"])
    folders, rng = [data / folder for folder in CONTENT], torch.Generator().manual_seed(0)
    contents = draw(folders, 256, args.contents, rng)
    vgg = load_vgg19(Path(os.environ["STYLEAUG_WEIGHTS"])).eval()
    rows = {}
    for folder, name in zip(args.pairs[::2], args.pairs[1::2], strict=True):
        bank = load_bank(name)
        maker = bank.provenance.generator
        everything = fit_style(folder, generator=maker, max_styles=100_000, min_images=1).bank
        rows[name] = {**coverage(everything, bank), **naturalness(bank, contents, vgg)}
        print(name, json.dumps(rows[name]), flush=True)
    print(publish(args.out, "Shipped banks", rows))


if __name__ == "__main__":
    main()
