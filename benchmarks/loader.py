"""What StyleAugment costs inside DataLoader workers, on JPEG photographs at 224 px.

    STYLEAUG_DATA=DATA python benchmarks/loader.py --out benchmarks/results/loader.json

Decode, resize, crop and flip, as a classifier is trained; then the same with StyleAugment(p=0.5). Each
transform is timed in one process with one thread, image by image, in turns (median of the rounds,
mean over images); then a DataLoader with 2 workers and batches of 32 reads all of them.
"""

import argparse
import os
import statistics
import time
from pathlib import Path

import torch
from machine import publish
from PIL import Image
from scaling import style_augments
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from styleaug.files import image_files


class Photos(Dataset):
    """JPEG files behind a transform."""

    def __init__(self, files: list[Path], transform):
        self.files, self.transform = files, transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> torch.Tensor:
        with Image.open(self.files[index]) as image:
            return self.transform(image.convert("RGB"))


def pipeline(*styles) -> transforms.Compose:
    """Make a training transform, with or without a style in it."""
    geometry = [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip()]
    return transforms.Compose([*geometry, *styles, transforms.ToTensor()])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    files = image_files(Path(os.environ["STYLEAUG_DATA"]) / "content/imagenet_ajs")[: args.images]
    arms = {"none": pipeline()}
    arms |= {name: pipeline(augment) for name, augment in style_augments(p=0.5).items()}
    for transform in arms.values():  # warm up
        Photos(files[:8], transform)[0]
    single: dict[str, list[float]] = {name: [] for name in arms}
    loaded: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(args.rounds):
        for name, transform in arms.items():
            photos = Photos(files, transform)
            start = time.perf_counter()
            for index in range(len(photos)):
                photos[index]
            single[name].append((time.perf_counter() - start) / len(photos))
        for name, transform in arms.items():
            loader = DataLoader(Photos(files, transform), 32, num_workers=2)
            batches = iter(loader)
            next(batches)  # workers are up
            start = time.perf_counter()
            count = sum(len(batch) for batch in batches)
            loaded[name].append(count / (time.perf_counter() - start))
    rows = {}
    for name in arms:
        rows[name] = {
            "ms_per_image": round(1000 * statistics.median(single[name]), 2),
            "added_ms": round(
                1000 * (statistics.median(single[name]) - statistics.median(single["none"])), 2
            ),
            "images_per_s_2_workers": round(statistics.median(loaded[name]), 1),
            "low": round(min(loaded[name]), 1),
            "high": round(max(loaded[name]), 1),
            "drop_percent": round(
                100 * (1 - statistics.median(loaded[name]) / statistics.median(loaded["none"])), 1
            ),
        }
        print(name, rows[name])
    print(publish(args.out, "StyleAugment(p=0.5) in DataLoader workers", rows))


if __name__ == "__main__":
    main()
