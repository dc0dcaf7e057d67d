"""Style reached and content kept, beside the reference AdaIN, on images that no run has trained on.

    STYLEAUG_DATA=../shared/data STYLEAUG_WEIGHTS=../shared/weights \
        python benchmarks/quality.py [GENERATOR ...] [--out benchmarks/results/quality.json]

Pairs: held-out contents (BSDS, ImageNet, Caltech) and held-out styles (paintings, the most diverse
repository styles, textures, scrolls), 256 px, strength 1. The held-out twentieth is that of
`styleaug.training.data.is_held_out`.

    style loss   sum over relu1_1..relu4_1 of the squared error of channel means and deviations,
                 normalised VGG-19 (Huang & Belongie 2017, eq. 13)
    LPIPS        SqueezeNet backbone, v0.1 linear weights, to the content
    SSIM         on grey, 11 x 11 Gaussian window
    edge corr.   correlation of Sobel magnitudes of grey with the content's
"""

import argparse
import os
from pathlib import Path

import torch
import torch.nn.functional as F
from held_out import draw
from machine import publish
from reference import ReferenceAdaIN
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from styleaug.generators.layers import channel_stats
from styleaug.images import luminance
from styleaug.training.losses import edge_correlation, style_loss
from styleaug.training.vgg import VGG19, load_vgg19, read_weights
from styleaug.weights import load_generator

CONTENT = ("content/bsds500", "content/imagenet_eli", "content/imagenet_ajs", "content/caltech101")
STYLE = ("style/artwall_cc0", "style/style_repos", "style/dtd10", "style/kaokore")


class LPIPS(nn.Module):
    """Learned perceptual distance (Zhang et al. 2018) on SqueezeNet 1.1."""

    taps = (1, 4, 7, 9, 10, 11, 12)

    def __init__(self, folder: Path):
        super().__init__()
        from torchvision.models import squeezenet1_1

        saved = read_weights(folder / "squeezenet1_1_imagenet.safetensors")
        net = squeezenet1_1(weights=None)
        net.load_state_dict(saved)
        self.features = net.features
        linear = read_weights(folder / "lpips_squeeze_linear.safetensors")
        self.weights = [linear[f"lin{i}.model.1.weight"] for i in range(len(self.taps))]
        self.means = torch.tensor([123.0, 117.0, 104.0]).view(1, 3, 1, 1)
        self.requires_grad_(False).eval()

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        """Compare two batches in [0, 1]; `(B,)`."""
        total = torch.zeros(len(one))
        x = torch.cat([one, other]) * 255 - self.means
        weights = iter(self.weights)
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self.taps:
                unit = x / (x.square().sum(dim=1, keepdim=True).sqrt() + 1e-10)
                a, b = unit.chunk(2)
                total += ((a - b).square() * next(weights)).sum(dim=1).mean(dim=(1, 2))
        return total


def ssim(one: Tensor, other: Tensor) -> Tensor:
    """Structural similarity of grey images (Wang et al. 2004, eq. 13), `(B,)`."""
    x = torch.arange(11) - 5.0
    line = torch.exp(-(x**2) / (2 * 1.5**2))
    window = (line[:, None] * line / line.sum() ** 2)[None, None]
    blur = lambda image: F.conv2d(image, window)  # noqa: E731
    a, b = luminance(one), luminance(other)
    ma, mb = blur(a), blur(b)
    va, vb, cov = blur(a * a) - ma**2, blur(b * b) - mb**2, blur(a * b) - ma * mb
    c1, c2 = 0.01**2, 0.03**2
    return (((2 * ma * mb + c1) * (2 * cov + c2)) / ((ma**2 + mb**2 + c1) * (va + vb + c2))).mean((1, 2, 3))


@torch.inference_mode()
def measure(generator, content: Tensor, style: Tensor, vgg: VGG19, lpips: LPIPS) -> dict[str, float]:
    """Measure one generator over all pairs."""
    rows: dict[str, list[Tensor]] = {
        "style_loss": [],
        "lpips": [],
        "ssim": [],
        "edge_correlation": [],
    }
    for images, styles in zip(content.split(8), style.split(8), strict=True):
        styled = images
        if generator is not None:
            styled = generator(images, generator.encode_style(styles), torch.ones(len(images)))
        wanted = [channel_stats(level) for level in vgg(styles)]
        rows["style_loss"].append(style_loss(vgg(styled), wanted, rows=True))
        rows["lpips"].append(lpips(styled, images))
        rows["ssim"].append(ssim(styled, images))
        rows["edge_correlation"].append(edge_correlation(styled, images))
    joined = {name: torch.cat(values) for name, values in rows.items()}
    means = {name: round(values.mean().item(), 4) for name, values in joined.items()}
    errors = {f"{n}_se": round((v.std() / len(v) ** 0.5).item(), 4) for n, v in joined.items()}
    return {**means, **cost(generator), **errors}


def cost(generator) -> dict[str, float]:
    """Count parameters and multiply-adds for one image at 224 px, the style cached."""
    if generator is None:
        return {}
    images = torch.rand(1, 3, 224, 224)
    codes = generator.encode_style(images)
    with FlopCounterMode(display=False) as counter:
        generator(images, codes, torch.ones(1))
    millions = sum(p.numel() for p in generator.parameters()) / 1e6
    return {"gmac": round(counter.get_total_flops() / 2e9, 3), "parameters_m": round(millions, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("generators", nargs="*", default=["reinhard-rgb", "photo", "adain", "patchswap"])
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--reference", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    data, weights = Path(os.environ["STYLEAUG_DATA"]), Path(os.environ["STYLEAUG_WEIGHTS"])

    rng = torch.Generator().manual_seed(0)
    contents, styles = (
        draw([data / folder for folder in folders], 256, args.pairs, rng) for folders in (CONTENT, STYLE)
    )
    vgg = load_vgg19(weights).eval()
    lpips = LPIPS(weights)
    table = {"content unchanged": measure(None, contents, styles, vgg, lpips)}
    if args.reference:
        table["AdaIN VGG-19 (reference)"] = measure(ReferenceAdaIN(weights), contents, styles, vgg, lpips)
    for name in args.generators:
        table[Path(name).stem] = measure(load_generator(name), contents, styles, vgg, lpips)
    notes = f"{args.pairs} pairs at 256 px; GMAC at 224 px with the style cached; `_se` are standard errors."
    print(publish(args.out, "Style reached and content kept", table, notes=notes))


if __name__ == "__main__":
    main()
