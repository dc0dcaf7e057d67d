"""What styles cost on a GPU beside other augmentations, and the slow-down at 32 px.

    STYLEAUG_WEIGHTS=WEIGHTS python benchmarks/gpu.py --out benchmarks/results/gpu.json

One process, everything in turns, medians of the rounds:

    throughput  uint8 batch of 256 at 224 px, p=1, styles cached, with and without `compiled=True`; beside the
                reference VGG-19 AdaIN in bfloat16, torchvision's and kornia's colour chains
    32 px       a training step of a small ResNet on 32-px images, with and without styles at p=0.5

The share of a ResNet-50 step is in `cost.py --device cuda`. `gpu.sh` runs both and the tests that
need a GPU. Without STYLEAUG_WEIGHTS the reference is left out.
"""

import argparse
import os
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from cost import photographs, readings, training_step, transform
from machine import publish
from reference import ReferenceAdaIN
from torch import Tensor, nn
from torchvision.models import ResNet
from torchvision.models.resnet import BasicBlock
from torchvision.transforms import v2

NAMES = ("reinhard-rgb", "photo", "adain")


def peers(images: Tensor) -> dict[str, Callable[[], object]]:
    """Make the calls that we are compared with."""
    chain = v2.Compose([v2.ColorJitter(0.4, 0.4, 0.4, 0.1), v2.RandomGrayscale(0.2), v2.RandomAutocontrast()])
    calls: dict[str, Callable[[], object]] = {"torchvision colour chain": lambda: chain(images)}
    weights = os.environ.get("STYLEAUG_WEIGHTS")
    if weights:
        calls |= {"AdaIN VGG-19 (reference)": reference_adain(images, Path(weights))}
    try:
        import kornia.augmentation as K
    except ImportError:
        return calls
    jiggle = K.AugmentationSequential(K.ColorJiggle(0.4, 0.4, 0.4, 0.1, p=1.0), K.RandomGrayscale(p=0.2))
    calls["kornia colour chain"] = lambda: jiggle(images.float() / 255)
    return calls


def reference_adain(images: Tensor, weights: Path) -> Callable[[], object]:
    """Make the call of the reference, in bfloat16."""
    device, count = images.device, len(images)
    reference = ReferenceAdaIN(weights).to(device, torch.bfloat16).to(memory_format=torch.channels_last)
    codes, strength = torch.rand(count, 1024, device=device), torch.ones(count, device=device)

    @torch.inference_mode()
    def adain() -> None:
        for part in torch.arange(count).split(32):
            reference(images[part].float() / 255, codes[part], strength[part])

    return adain


def throughput(args: argparse.Namespace) -> dict[str, dict]:
    """Measure images per second at 224 px."""
    device = torch.device(args.device)
    images = photographs(args.batch, 224, device)
    calls: dict[str, Callable[[], object]] = {}
    for compiled in (False,) if args.quick else (False, True):
        for name in NAMES:
            augment = transform(name, 1.0, compiled=compiled)
            calls[name + " compiled" * compiled] = lambda augment=augment: augment(images)
    calls |= peers(images)
    spent = {name: statistics.median(times) for name, times in readings(calls, device, args.rounds).items()}
    return {
        name: {"ms": round(1000 * seconds, 3), "images/s": round(args.batch / seconds)}
        for name, seconds in spent.items()
    }


def slowdown(args: argparse.Namespace) -> dict[str, dict]:
    """Measure a step on 32-px images, with and without styles."""
    device = torch.device(args.device)
    small = photographs(args.batch, 32, device)
    network = ResNet(BasicBlock, [2, 2, 2, 2], num_classes=10)
    network.conv1, network.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()  # type: ignore
    labels = torch.arange(args.batch, device=device) % 10
    step = training_step(network.to(device), labels, bfloat16=True)
    augments = {name: transform(name, 0.5) for name in NAMES}
    plain = "32 px: ResNet-18 step"
    calls: dict[str, Callable[[], object]] = {plain: lambda: step(small)}
    calls |= {f"32 px: {name}, p=0.5, and step": lambda a=a: step(a(small)) for name, a in augments.items()}
    spent = {name: statistics.median(times) for name, times in readings(calls, device, args.rounds).items()}
    return {
        name: {
            "ms": round(1000 * seconds, 3),
            "images/s": round(args.batch / seconds),
            "slower %": round(100 * (seconds / spent[plain] - 1), 1),
        }
        for name, seconds in spent.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="Four images, one round, nothing compiled.")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.quick:
        args.batch, args.rounds = 4, 1
    rows = throughput(args) | slowdown(args)
    print(publish(args.out, f"Styles on {args.device}, batch {args.batch}", rows))


if __name__ == "__main__":
    main()
