"""How many bytes a GPU would move to style an image: counted from the kernels, on a machine without one.

    python benchmarks/bytes.py --out benchmarks/results/bytes.json

`StyleAugment(p=1)` styles a batch of uint8 images of 224 px on a double of a CUDA device, which computes
shapes and no values (`tests/pretend_cuda.py`). Our code takes the path that it takes on a GPU. Each kernel
that is called counts the bytes of the tensors that it reads and writes; one that repeats an element (an
expanded tensor) counts it once. Views and empty tensors count nothing. No cache is counted: a kernel's
output is written to memory and read again by the next one, as with large batches in eager mode. The figure
is the same on every machine.

    MB            megabytes an image (10^6 bytes)
    limit         images per second at which these bytes take all of an H200's 4.8 TB/s
    convolution   convolutions and matrix products
    padding       copies for reflected or repeated borders
    ends          everything else on tensors with as many pixels as the image
    inner         everything else inside the network
"""

import argparse
import sys
from collections import Counter
from pathlib import Path

import torch
from cost import PRESETS, transform
from machine import publish
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from styleaug import StyleAugment
from styleaug.transforms.base import AbstractAugment
from styleaug.weights import generator_names, load_generator

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from pretend_cuda import PretendCuda

BANDWIDTH = 4.8e12
"""Bytes per second of an H200's memory, by its data sheet."""
BATCH, SIDE = 64, 224
NOTES = (
    f"Megabytes an image of {SIDE} px in a uint8 batch of {BATCH}, eager mode, counted from the kernels on a "
    "double of a GPU; no GPU was used and no time was measured. `limit`: images per second at which these "
    "bytes fill the memory bandwidth of an H200 (4.8 TB/s)."
)
WHOLE = (torch.ops.aten.upsample_nearest2d.vec,)
"""Kernels that torch could also take apart."""
FREE = ("aten.empty", "aten.new_empty", "aten.empty_like", "aten.empty_strided")


class CountBytes(TorchDispatchMode):
    """Count the bytes that kernels on CUDA tensors read and write, by kind of kernel."""

    def __init__(self, pixels: int):
        super().__init__()
        self.pixels, self.moved, self.calls = pixels, Counter(), Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.namespace == "prim":
            return func(*args, **kwargs)
        if func not in WHOLE:
            with self:
                made = func.decompose(*args, **kwargs)
            if made is not NotImplemented:
                return made
        made = func(*args, **kwargs)
        read = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        written = [x for x in tree_leaves(made) if isinstance(x, Tensor)]
        tensors = [*read, *written]
        if not any(x.device.type == "cuda" for x in tensors) or func.is_view or str(func).startswith(FREE):
            return made
        if func._schema.is_mutable and str(func).startswith("aten.copy_"):
            read = read[1:]  # the target is only written
        kind = self.kind(str(func), tensors)
        self.moved[kind] += sum(size(x) for x in (*read, *written))
        self.calls[kind] += 1
        return made

    def kind(self, name: str, tensors: list[Tensor]) -> str:
        """Say what a kernel is for."""
        if any(part in name for part in ("convolution", "aten.mm", "bmm", "addmm")):
            return "convolution"
        if "pad" in name:
            return "padding"
        largest = max(x.shape[-2:].numel() for x in tensors)
        return "ends" if largest >= self.pixels else "inner"


def size(tensor: Tensor) -> int:
    """Return the bytes of the elements that lie in memory; an expanded one counts once."""
    numbers = [n for n, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride or n < 2]
    return torch.Size(numbers).numel() * tensor.element_size()


def count(augment: AbstractAugment) -> dict[str, float | int]:
    """Count the bytes of one batch."""
    with PretendCuda({"place": "networks are copied once"}):
        images = torch.empty(BATCH, 3, SIDE, SIDE, dtype=torch.uint8, device="cuda")
        params = augment.make_params(images, rng=torch.Generator().manual_seed(0))
        augment.apply(images, params)  # networks are placed before anything is counted
        with CountBytes(SIDE * SIDE) as counter:
            augment.apply(images, params)
    whole = sum(counter.moved.values()) / BATCH
    parts = {
        kind: round(counter.moved[kind] / BATCH / 1e6, 2)
        for kind in ("convolution", "padding", "ends", "inner")
    }
    return {
        "MB": round(whole / 1e6, 2),
        "limit": round(BANDWIDTH / whole, -2),
        **parts,
        "kernels": counter.calls.total(),
    }


def rows(names: list[str]) -> dict[str, dict[str, float | int]]:
    """Count for each transform; for networks in float32 and in bfloat16, their default on a GPU."""
    found = {}
    for name in names:
        augment = transform(name, 1.0)
        if name in generator_names() and load_generator(name).takes_bfloat16:
            assert isinstance(augment, StyleAugment)
            for precision in ("float32", "bfloat16"):
                options = {"generator": load_generator(name), "p": 1.0, "precision": precision}
                found[f"{name}, {precision}"] = count(StyleAugment(augment.bank, **options))
        else:
            found[name] = count(augment)
        print(name, file=sys.stderr)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help='generators and presets ("preset unknown"); all without any')
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    names = args.names or [*generator_names(), *PRESETS]
    print(publish(args.out, "Bytes that a GPU moves to style an image", rows(names), notes=NOTES))


if __name__ == "__main__":
    main()
