"""What styles cost on a GPU: images per second, share of a training step, slow-down at 32 px.

    STYLEAUG_WEIGHTS=WEIGHTS python benchmarks/gpu.py --out benchmarks/results/gpu.json

Three questions, one process, everything in turns, medians of the rounds:

    throughput  uint8 batch of 256 at 224 px, p=1, styles cached, beside the reference VGG-19 AdaIN in
                bfloat16, torchvision's and kornia's colour chains
    share       the time of styling that batch over a bfloat16 training step of ResNet-50 on it
    cifar       a training epoch of a small ResNet on 32-px noise, with and without styles
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from machine import publish
from reference import ReferenceAdaIN
from scaling import style_augments
from torch import Tensor, nn
from torchvision.models import ResNet, resnet50
from torchvision.models.resnet import BasicBlock
from torchvision.transforms import v2


def median_ms(calls: dict[str, Callable[[], object]], device: torch.device, rounds: int) -> dict[str, float]:
    """Time the calls in turns; the first three rounds warm up."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    for turn in range(rounds + 3):
        for name, call in calls.items():
            wait()
            start = time.perf_counter()
            call()
            wait()
            times[name] += [1000 * (time.perf_counter() - start)] * (turn >= 3)
    return {name: statistics.median(spent) for name, spent in times.items()}


def training_step(model: nn.Module, images: Tensor, labels: Tensor) -> Callable[[Tensor], None]:
    """Make a training step in bfloat16, channels last."""
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def step(batch: Tensor) -> None:
        floats = (batch.float() / 255).contiguous(memory_format=torch.channels_last)
        with torch.autocast(batch.device.type, torch.bfloat16):
            loss = F.cross_entropy(model(floats), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    return step


def peers(images: Tensor, weights: Path) -> dict[str, Callable[[], object]]:
    """Make the calls that we are compared with."""
    device, count = images.device, len(images)
    chain = v2.Compose([v2.ColorJitter(0.4, 0.4, 0.4, 0.1), v2.RandomGrayscale(0.2), v2.RandomAutocontrast()])
    calls: dict[str, Callable[[], object]] = {"torchvision colour chain": lambda: chain(images)}
    reference = ReferenceAdaIN(weights).to(device, torch.bfloat16).to(memory_format=torch.channels_last)
    codes, strength = torch.rand(count, 1024, device=device), torch.ones(count, device=device)

    @torch.inference_mode()
    def adain() -> None:
        for part in torch.arange(count).split(32):
            reference(images[part].float() / 255, codes[part], strength[part])

    calls["AdaIN VGG-19 (reference)"] = adain
    try:
        import kornia.augmentation as K
    except ImportError:
        return calls
    jiggle = K.AugmentationSequential(K.ColorJiggle(0.4, 0.4, 0.4, 0.1, p=1.0), K.RandomGrayscale(p=0.2))
    calls["kornia colour chain"] = lambda: jiggle(images.float() / 255)
    return calls


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    device = torch.device(args.device)
    images = torch.randint(0, 256, (args.batch, 3, 224, 224), dtype=torch.uint8, device=device)
    labels = torch.randint(0, 1000, (args.batch,), device=device)
    step = training_step(resnet50().to(device, memory_format=torch.channels_last), images, labels)
    calls: dict[str, Callable[[], object]] = {"ResNet-50 training step": lambda: step(images)}
    for compiled in (False, True):
        for name, augment in style_augments(p=1.0, compiled=compiled).items():
            calls[name + " compiled" * compiled] = lambda augment=augment: augment(images)
    calls |= peers(images, Path(os.environ["STYLEAUG_WEIGHTS"]))
    spent = median_ms(calls, device, args.rounds)
    rows = {
        name: {
            "ms": round(ms, 3),
            "images/s": round(1000 * args.batch / ms),
            "% of a ResNet-50 step": round(100 * ms / spent["ResNet-50 training step"], 2),
        }
        for name, ms in spent.items()
    }
    small = torch.randint(0, 256, (args.batch, 3, 32, 32), dtype=torch.uint8, device=device)
    network = ResNet(BasicBlock, [2, 2, 2, 2], num_classes=10)
    network.conv1, network.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()  # type: ignore
    step = training_step(network.to(device, memory_format=torch.channels_last), small, labels % 10)
    augments = style_augments(p=0.5)
    calls = {"32 px: ResNet-18 step": lambda: step(small)}
    calls |= {f"32 px: {name}, p=0.5, and step": lambda a=a: step(a(small)) for name, a in augments.items()}
    spent = median_ms(calls, device, args.rounds)
    for name, ms in spent.items():
        slower = 100 * (ms / spent["32 px: ResNet-18 step"] - 1)
        rows[name] = {
            "ms": round(ms, 3),
            "images/s": round(1000 * args.batch / ms),
            "slower %": round(slower, 1),
        }
    print(publish(args.out, f"Styles on {args.device}, batch {args.batch}", rows))


if __name__ == "__main__":
    main()
