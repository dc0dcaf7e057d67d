"""What one added line costs in each library's own pipeline, and what the adapter adds to the core.

    STYLEAUG_DATA=DATA python benchmarks/pipelines.py --out benchmarks/results/pipelines.json

For each host, in a process of its own with one thread: the whole pipeline (decode JPEG, crop to 224 px, flip,
style half of the images, normalise, collate batches of 32) with and without the style, in turns; images
per second, median of the rounds. Then the adapter's call beside `StyleAugment` on the same images, every one
styled, in turns: `over_core_percent` is the median of the adapter's time over that of the core, less one.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from machine import publish
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from styleaug import StyleAugment, StyleBank, StyleCollate, StyleLoader, fit_style, load_bank
from styleaug.io.files import image_files
from styleaug.weights import pretrained_folder

SIDE, BATCH = 224, 32
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
STYLES = {"reinhard-rgb": None, "photo": "photo-tones", "adain": "art"}


class Host(NamedTuple):
    """A library's pipeline and its adapter."""

    pipeline: Callable[[bool], Iterable[Any]]
    """Gives batches, with or without the style."""

    adapter: Callable[[], Any]
    """Styles one call's images, all of them, through the library."""

    core: Callable[[], Any]
    """Styles the same images by the core alone."""


class Photos(Dataset):
    """JPEG files, decoded as an array or by PIL, behind a transform."""

    def __init__(self, files: list[Path], transform: Callable[[Any], Any], *, arrays: bool = False):
        self.files, self.transform, self.arrays = files, transform, arrays

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Any:
        with Image.open(self.files[index]) as image:
            pixels = image.convert("RGB")
        return self.transform(np.asarray(pixels) if self.arrays else pixels)


def picture(side: int = SIDE) -> np.ndarray:
    """Make an image `(H, W, 3)` of smooth colours, uint8."""
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    return np.asarray(small.resize((side, side), Image.Resampling.BICUBIC))


def batch_of(count: int) -> Tensor:
    """Make a batch `(B, 3, H, W)`, uint8."""
    return torch.from_numpy(picture().copy()).permute(2, 0, 1).repeat(count, 1, 1, 1)


def core_call(bank: StyleBank, images: Any) -> Callable[[], Any]:
    """Style these images by the core."""
    core = StyleAugment(bank, p=1.0)
    return lambda: core(images)


def torchvision(files: list[Path], bank: StyleBank) -> Host:
    """PIL images through `v2.Compose`."""
    tail = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]

    def pipeline(styled: bool) -> Iterable[Any]:
        style = [StyleAugment(bank, p=0.5)] * styled
        crop = [v2.RandomResizedCrop(SIDE, antialias=True), v2.RandomHorizontalFlip()]
        return DataLoader(Photos(files, v2.Compose([*crop, *style, *tail])), BATCH)

    image, augment = Image.fromarray(picture()), StyleAugment(bank, p=1.0)
    return Host(pipeline, lambda: augment(image), core_call(bank, image))


def uint8_loader(files: list[Path], **options) -> DataLoader:
    """Hand over uint8 batches, cropped and flipped."""
    crop = v2.Compose(
        [v2.PILToTensor(), v2.RandomResizedCrop(SIDE, antialias=True), v2.RandomHorizontalFlip()]
    )
    return DataLoader(Photos(files, crop), BATCH, **options)


def normalised(loader: Iterable[Any]) -> Iterable[Tensor]:
    """Normalise whole batches after the loader."""
    tail = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])
    return map(tail, loader)


def collate(files: list[Path], bank: StyleBank) -> Host:
    """Batches in the collate function."""
    images, augment = batch_of(BATCH), StyleCollate(StyleAugment(bank, p=1.0))
    rows = list(images)

    def pipeline(styled: bool) -> Iterable[Any]:
        options = {"collate_fn": StyleCollate(StyleAugment(bank, p=0.5))} if styled else {}
        return normalised(uint8_loader(files, **options))

    core = core_call(bank, images)
    stack = torch.utils.data.default_collate
    return Host(pipeline, lambda: augment(rows), lambda: (stack(rows), core()))


def loader(files: list[Path], bank: StyleBank) -> Host:
    """Batches after the loader."""
    images, augment = batch_of(BATCH), StyleAugment(bank, p=1.0)
    many = StyleLoader([images], augment)

    def pipeline(styled: bool) -> Iterable[Any]:
        base = uint8_loader(files)
        return normalised(StyleLoader(base, StyleAugment(bank, p=0.5)) if styled else base)

    return Host(pipeline, lambda: list(many), core_call(bank, images))


def albumentations(files: list[Path], bank: StyleBank) -> Host:
    """Arrays through `A.Compose`."""
    import albumentations as A
    from albumentations.pytorch import ToTensorV2

    from styleaug.transforms.albumentations import StyleAugment as Style

    def pipeline(styled: bool) -> Iterable[Any]:
        style = [Style(bank, p=0.5)] * styled
        crop = [A.RandomResizedCrop((SIDE, SIDE)), A.HorizontalFlip()]
        compose = A.Compose([*crop, *style, A.Normalize(MEAN, STD), ToTensorV2()], seed=0)
        return DataLoader(Photos(files, lambda image: compose(image=image)["image"], arrays=True), BATCH)

    image, augment = picture(), Style(bank, p=1.0)
    return Host(pipeline, lambda: augment(image=image), core_call(bank, image))


def kornia(files: list[Path], bank: StyleBank) -> Host:
    """Float batches through `AugmentationSequential`, after the loader."""
    import kornia.augmentation as K

    from styleaug.transforms.kornia import RandomStyle

    resize = v2.Compose(
        [v2.PILToTensor(), v2.Resize((256, 256), antialias=True), v2.ToDtype(torch.float32, scale=True)]
    )

    def pipeline(styled: bool) -> Iterable[Any]:
        style = [RandomStyle(bank, p=0.5)] * styled
        crop = [K.RandomResizedCrop((SIDE, SIDE)), K.RandomHorizontalFlip()]
        tail = K.Normalize(torch.tensor(MEAN), torch.tensor(STD))
        augment = K.AugmentationSequential(*crop, *style, tail, data_keys=["input"])
        return map(augment, DataLoader(Photos(files, resize), BATCH))

    images, augment = batch_of(BATCH).float() / 255, RandomStyle(bank, p=1.0)
    return Host(pipeline, lambda: augment(images), core_call(bank, images))


def monai(files: list[Path], bank: StyleBank) -> Host:
    """MetaTensors through dictionary transforms."""
    from monai import data, transforms

    from styleaug.transforms.monai import RandStyled

    def pipeline(styled: bool) -> Iterable[Any]:
        steps = [
            transforms.LoadImaged("image", reader="PILReader", ensure_channel_first=True),
            transforms.ScaleIntensityRanged("image", 0, 255, 0, 1, clip=True),
            transforms.Resized("image", (256, 256)),
            transforms.RandSpatialCropd("image", (SIDE, SIDE), random_size=False),
            transforms.RandFlipd("image", prob=0.5, spatial_axis=1),
            *[RandStyled("image", bank, prob=0.5)] * styled,
            transforms.NormalizeIntensityd("image", subtrahend=MEAN, divisor=STD, channel_wise=True),
        ]
        items = [{"image": str(path)} for path in files if is_colour(path)]
        return data.DataLoader(data.Dataset(items, transforms.Compose(steps)), batch_size=BATCH)

    image = data.MetaTensor(batch_of(1)[0].float() / 255)
    augment = RandStyled("image", bank, prob=1.0)
    return Host(pipeline, lambda: augment({"image": image}), core_call(bank, image.as_tensor()))


def is_colour(path: Path) -> bool:
    """Leave out the few grey JPEG files, which MONAI reads with one channel."""
    with Image.open(path) as image:
        return image.mode == "RGB"


def timm(files: list[Path], bank: StyleBank) -> Host:
    """timm's prefetching loader, on the CPU."""
    from timm.data import create_loader

    from styleaug.transforms.timm import StylePrefetchLoader

    class Labelled(Dataset):
        transform = None

        def __len__(self) -> int:
            return len(files)

        def __getitem__(self, index: int) -> Any:
            with Image.open(files[index]) as image:
                return self.transform(image.convert("RGB")), 0

    def pipeline(styled: bool) -> Iterable[Any]:
        options = {"num_workers": 0, "persistent_workers": False, "device": torch.device("cpu")}
        base = create_loader(Labelled(), SIDE, BATCH, is_training=True, no_aug=False, hflip=0.5, **options)
        return StylePrefetchLoader(base, StyleAugment(bank, p=0.5)) if styled else base

    images, augment = batch_of(BATCH), StyleAugment(bank, p=1.0)
    base = create_loader(
        Labelled(), SIDE, BATCH, num_workers=0, persistent_workers=False, device=torch.device("cpu")
    )
    base.loader = [(images, torch.zeros(BATCH))]
    many = StylePrefetchLoader(base, augment)
    core = core_call(bank, images)
    return Host(pipeline, lambda: list(many), lambda: (core(), list(base)))


def lightning(files: list[Path], bank: StyleBank) -> Host:
    """A Trainer with the callback, and a model that only normalises."""
    import lightning.pytorch as pl

    from styleaug.transforms.lightning import StyleCallback

    class Idle(pl.LightningModule):
        def training_step(self, batch: Tensor, batch_idx: int) -> None:
            list(normalised([batch]))

        def configure_optimizers(self) -> None:
            return None

    def fit(batches: Iterable[Any], *callbacks: Any) -> list[Tensor]:
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        options = {"max_epochs": 1, "accelerator": "cpu", "enable_model_summary": False, **quiet}
        trainer = pl.Trainer(**options, callbacks=list(callbacks))
        trainer.fit(Idle(), batches)
        return [torch.empty(len(files))]  # how many went through

    class Epoch:
        def __init__(self, styled: bool):
            self.callbacks = [StyleCallback(StyleAugment(bank, p=0.5))] * styled

        def __iter__(self):
            return iter(fit(uint8_loader(files), *self.callbacks))

    images = batch_of(BATCH)
    many, callback = DataLoader([images] * 8, batch_size=None), StyleCallback(StyleAugment(bank, p=1.0))
    core = core_call(bank, images)
    return Host(Epoch, lambda: fit(many, callback), lambda: (fit(many), [core() for _ in range(8)]))


def huggingface(files: list[Path], bank: StyleBank) -> Host:
    """A dataset with `set_transform`, in PIL images."""
    import datasets

    from styleaug.transforms.huggingface import StyleColumn

    table = datasets.Dataset.from_dict({"image": list(map(str, files))}).cast_column(
        "image", datasets.Image()
    )
    crop = v2.Compose([v2.RandomResizedCrop(SIDE, antialias=True), v2.RandomHorizontalFlip()])
    tail = v2.Compose([v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])

    def pipeline(styled: bool) -> Iterable[Any]:
        style = StyleColumn(StyleAugment(bank, p=0.5)) if styled else (lambda batch: batch)

        def transform(batch: dict[str, Any]) -> dict[str, Any]:
            batch = style({**batch, "image": [crop(image.convert("RGB")) for image in batch["image"]]})
            return {"image": [tail(image) for image in batch["image"]]}

        return (batch["image"] for batch in DataLoader(table.with_transform(transform), BATCH))

    images, augment = [Image.fromarray(picture())] * BATCH, StyleColumn(StyleAugment(bank, p=1.0))
    core = StyleAugment(bank, p=1.0)

    def by_core() -> list[Image.Image]:
        pixels = np.stack([np.asarray(image) for image in images])
        return [Image.fromarray(styled) for styled in core(pixels)]

    return Host(pipeline, lambda: augment({"image": images}), by_core)


HOSTS = {
    "torchvision": torchvision,
    "StyleCollate": collate,
    "StyleLoader": loader,
    "albumentations": albumentations,
    "kornia": kornia,
    "monai": monai,
    "timm": timm,
    "lightning": lightning,
    "huggingface": huggingface,
}


def images_per_second(batches: Iterable[Any]) -> float:
    """Run through once."""
    start, count = time.perf_counter(), 0
    for batch in batches:
        images = batch["image"] if isinstance(batch, dict) else batch
        count += len(images[0] if isinstance(images, list | tuple) else images)
    return count / (time.perf_counter() - start)


def over_core(host: Host, calls: int) -> tuple[float, float]:
    """Time the adapter beside the core; give percent over it, and the core's milliseconds."""
    spent: dict[str, list[float]] = {"adapter": [], "core": []}
    for call in range(calls + 3):
        for name in spent if call % 2 else reversed(spent):
            start = time.perf_counter()
            getattr(host, name)()
            if call > 2:  # the first ones warm up
                spent[name].append(time.perf_counter() - start)
    adapter, core = (statistics.median(spent[name]) for name in ("adapter", "core"))
    return 100 * (adapter / core - 1), 1000 * core


def measure(name: str, style: str, *, count: int, rounds: int, calls: int) -> dict[str, float]:
    """Measure one host with one generator, in this process."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    files = image_files(Path(os.environ["STYLEAUG_DATA"]) / "content/imagenet_ajs")[:count]
    shipped = STYLES[style]
    samples = pretrained_folder() / "samples"
    bank = load_bank(shipped) if shipped else fit_style(samples, generator=style, min_images=1).bank
    host = HOSTS[name](files, bank)
    speeds: dict[bool, list[float]] = {False: [], True: []}
    for turn in range(rounds + 1):
        for styled in speeds:
            speed = images_per_second(host.pipeline(styled))
            speeds[styled] += [speed] * (turn > 0)  # the first warms up
    percent, core = over_core(host, calls)
    plain, styled = (statistics.median(speeds[styled]) for styled in (False, True))
    return {
        "images_per_s": round(plain, 1),
        "with_style": round(styled, 1),
        "low": round(min(speeds[True]), 1),
        "high": round(max(speeds[True]), 1),
        "added_ms_per_image": round(1000 / styled - 1000 / plain, 2),
        "core_ms_per_call": round(core, 2),
        "over_core_percent": round(percent, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=30, help="of adapter and core, in turns")
    parser.add_argument("--hosts", default=",".join(HOSTS))
    parser.add_argument("--styles", default="reinhard-rgb,adain")
    parser.add_argument("--alone", action="store_true", help="measure in this process, and print JSON")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows = {}
    for host in args.hosts.split(","):
        for style in args.styles.split(","):
            if args.alone:
                found = measure(host, style, count=args.images, rounds=args.rounds, calls=args.calls)
                print(json.dumps(found))
                continue
            counts = [f"--images={args.images}", f"--rounds={args.rounds}", f"--calls={args.calls}"]
            command = [sys.executable, __file__, "--alone", f"--hosts={host}", f"--styles={style}", *counts]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            rows[f"{host}, {style}"] = json.loads(done.stdout.splitlines()[-1])
            print(host, style, rows[f"{host}, {style}"], flush=True)
    if rows:
        notes = "One thread, no worker processes; `images_per_s` is the pipeline without a style."
        print(publish(args.out, "One added line in each library's pipeline", rows, notes=notes))


if __name__ == "__main__":
    main()
