"""Style reached and content kept, beside the reference AdaIN, on images that no run has trained on.

    STYLEAUG_DATA=../shared/data STYLEAUG_WEIGHTS=../shared/weights \
        python benchmarks/quality.py [GENERATOR ...] [--out benchmarks/results/quality.json] [--sheet PNG]

Pairs: held-out contents (BSDS, ImageNet, Caltech) and held-out styles (paintings, the most diverse
repository styles, textures, scrolls), 256 px, strength 1. The held-out twentieth is that of
`styleaug.training.data.is_held_out`. The measures are those of `styleaug evaluate quality`:

    style_loss           sum over relu1_1..relu4_1 of the squared error of channel means and deviations,
                         normalised VGG-19 (Huang & Belongie 2017, eq. 13)
    sliced_wasserstein   of SqueezeNet's features, which no generator was trained on; relative
    gram                 distance of their Gram matrices, from 0 to 1
    palette, gamut       colours in common with the style; how many, over the style's number
    lpips                SqueezeNet backbone, v0.1 linear weights, to the content
    ssim                 on grey, 11 x 11 Gaussian window
    edges_...            correlation of edge magnitudes of grey with the content's
    content_loss         squared error of relu4_1 after instance normalisation
    diversity            LPIPS between four styles of one content
    clipped              share of pixels with a channel at 0 or 1
    fid, art_fid         of SqueezeNet's features; not comparable with figures of Inception
"""

import argparse
import os
from pathlib import Path

import torch
from held_out import draw
from machine import publish
from reference import ReferenceAdaIN
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from styleaug.evaluation.pairs import Pairs, Squares
from styleaug.evaluation.quality import MEASURES, Method, draw_pairs, encode_styles, measure_quality
from styleaug.images import from_float
from styleaug.io.files import save_image
from styleaug.perceptual import load_networks
from styleaug.weights import load_generator

CONTENT = ("content/bsds500", "content/imagenet_eli", "content/imagenet_ajs", "content/caltech101")
STYLE = ("style/artwall_cc0", "style/style_repos", "style/dtd10", "style/kaokore")
ORDER = [metric for measures in MEASURES.values() for metric in measures]


@torch.inference_mode()
def cost(generator) -> dict[str, float]:
    """Count parameters and multiply-adds for one image at 224 px, the style cached."""
    images = torch.rand(1, 3, 224, 224)
    codes = generator.encode_style(images)
    with FlopCounterMode(display=False) as counter:
        generator(images, codes, torch.ones(1))
    millions = sum(p.numel() for p in generator.parameters()) / 1e6
    return {"gmac": round(counter.get_total_flops() / 2e9, 3), "parameters_m": round(millions, 3)}


def held_out_pairs(data: Path, count: int) -> Pairs:
    """Draw the pairs of all published figures: folders and images at random, with repetition."""
    rng = torch.Generator().manual_seed(0)
    contents, styles = (
        squares(draw([data / folder for folder in folders], 256, count, rng)) for folders in (CONTENT, STYLE)
    )
    return Pairs(contents, styles, torch.arange(count), torch.arange(count))


def squares(images: Tensor) -> Squares:
    return Squares(from_float(images, torch.uint8), [str(number) for number in range(len(images))])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("generators", nargs="*", default=["reinhard-rgb", "photo", "adain", "patchswap"])
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--reference", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--sheet", type=Path)
    args = parser.parse_args()
    data, weights = Path(os.environ["STYLEAUG_DATA"]), Path(os.environ["STYLEAUG_WEIGHTS"])

    cpu = torch.device("cpu")
    pairs = held_out_pairs(data, args.pairs)
    generators = {"AdaIN VGG-19 (reference)": ReferenceAdaIN(weights)} if args.reference else {}
    generators |= {Path(name).stem: load_generator(name) for name in args.generators}
    assert pairs.styles is not None
    painters = {
        name: Method(*encode_styles(generator, pairs.styles.images, cpu))
        for name, generator in generators.items()
    }
    quality = measure_quality(painters, pairs, load_networks(weights), device=cpu)
    table = {}
    for name, scores in quality.scores.items():
        means = {metric: round(scores.means[metric], 4) for metric in ORDER if metric in scores.means}
        errors = {
            f"{metric}_se": round(scores.errors[metric], 4) for metric in ORDER if metric in scores.errors
        }
        table[name] = means | (cost(generators[name]) if name in generators else {}) | errors
    notes = (
        f"{args.pairs} pairs at 256 px; GMAC at 224 px with the style cached; `_se` are standard errors. "
        f"Networks: {'; '.join(f'{metrics}: {network}' for metrics, network in quality.networks.items())}."
    )
    print(publish(args.out, "Style reached and content kept", table, notes=notes))
    if args.sheet:
        save_image(draw_pairs(quality, painters, pairs, cpu), args.sheet)


if __name__ == "__main__":
    main()
