"""Milliseconds an image of Macenko's stain replacement: torchstain image by image, and ours on batches.

    python benchmarks/stain.py --out benchmarks/results/stain.json

One process, one thread, uint8 crops of scikit-image's slide of haematoxylin and DAB, batch 32, the style
read once. torchstain is timed as its documentation calls it, with the images of single dyes that it makes
by default, and without them (`stains=False`). Ours is the generator on float images, and
`StyleAugment(p=1, strength=1)` on uint8 images with its draws and conversions, plain and compiled. All take
turns, so that a slow moment of the machine hits each of them; a figure is the median of the rounds, of time
on the processor and not on the wall, as other programs may run.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torchstain
from machine import publish
from skimage import data

from styleaug import StyleAugment, StyleBank, load_generator
from styleaug.bank import Provenance
from styleaug.generators.base import keep_freed_memory

BATCH = 32


def crops(size: int) -> np.ndarray:
    """Cut pieces out of the slide, `(B, H, W, 3)` uint8."""
    slide, rng = data.immunohistochemistry(), np.random.default_rng(0)
    corners = rng.integers(0, slide.shape[0] - size + 1, (BATCH, 2))
    return np.stack([slide[top : top + size, left : left + size] for top, left in corners])


def theirs(arrays: np.ndarray, backend: str, *, stains: bool) -> Callable[[], object]:
    """Make torchstain's loop over the images."""
    images = arrays if backend == "numpy" else torch.from_numpy(arrays).permute(0, 3, 1, 2).contiguous()
    normaliser = torchstain.normalizers.MacenkoNormalizer(backend=backend)
    normaliser.fit(images[0])
    return lambda: [normaliser.normalize(I=image, stains=stains) for image in images]


def ours(arrays: np.ndarray, name: str, *, compiled: bool) -> dict[str, Callable[[], object]]:
    """Make our calls on the batch."""
    images = torch.from_numpy(arrays).permute(0, 3, 1, 2).contiguous()
    floats, generator, strength = images / 255, load_generator(name), torch.ones(BATCH)
    if generator.has_prior:
        codes = torch.randn(1, generator.code_length)
    else:
        codes = generator.encode_style(floats[:1])
    each = codes.expand(BATCH, -1).contiguous()
    bank = StyleBank(codes, Provenance(generator.name, generator.fingerprint, 1))
    options = {"generator": generator, "p": 1.0, "strength": 1.0}
    augment = StyleAugment(bank, **options)
    calls: dict[str, Callable[[], object]] = {
        name: lambda: torch.inference_mode()(generator)(floats, each, strength),
        f"{name}, StyleAugment on uint8": lambda: augment(images),
    }
    if compiled:
        fast = StyleAugment(bank, **options, compiled=True)
        calls[f"{name}, StyleAugment on uint8, compiled"] = lambda: fast(images)
    return calls


def measure(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Time the calls in turns, in milliseconds an image; the first two rounds warm up."""
    spent: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 2):
        for name, call in calls.items():
            start = time.process_time()
            call()
            spent[name] += [1000 * (time.process_time() - start) / BATCH] * (turn >= 2)
    return spent


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[224, 256])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--compiled", action="store_true", help="Measure torch.compile as well; needs g++.")
    parser.add_argument("--out", type=Path, help="JSON; a table is written beside it.")
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    rows: dict[str, dict] = {}
    for size in args.sizes:
        arrays = crops(size)
        calls: dict[str, Callable[[], object]] = {}
        for backend in ("numpy", "torch"):
            calls[f"torchstain, {backend}"] = theirs(arrays, backend, stains=True)
            calls[f"torchstain, {backend}, stains=False"] = theirs(arrays, backend, stains=False)
        calls |= ours(arrays, "macenko", compiled=args.compiled)
        for name in ("vahadane", "hed-jitter", "randstainna"):
            calls |= ours(arrays, name, compiled=False)
        spent = measure(calls, args.rounds)
        fastest = min(statistics.median(times) for name, times in spent.items() if "torchstain" in name)
        called = min(statistics.median(spent[f"torchstain, {backend}"]) for backend in ("numpy", "torch"))
        for name, times in spent.items():
            low, median, high = statistics.quantiles(times, n=4)
            row = rows[f"{size} px: {name}"] = {
                "ms": round(median, 3),
                "middle half": f"{low:.3f} to {high:.3f}",
            }
            if "torchstain" not in name:
                row["times torchstain as documented"] = round(called / median, 1)
                row["times torchstain, stains=False"] = round(fastest / median, 1)
    notes = " ".join(str(__doc__).split("\n\n")[2].split())
    print(publish(args.out, "Stain replacement, one thread, milliseconds an image", rows, notes=notes))


if __name__ == "__main__":
    main()
