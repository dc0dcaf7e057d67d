"""Segment nuclei with MONAI: train on stained tissue, test at home and elsewhere, without and with styles.

STYLEAUG_DATA=DATA uv run --extra monai examples/monai_segmentation.py
"""

import csv
import os
import sys
from pathlib import Path

import torch
from monai.data import CacheDataset, DataLoader
from monai.losses import DiceLoss
from monai.metrics import DiceMetric
from monai.networks.nets import UNet
from monai.transforms import LoadImaged, RandFlipd, RandSpatialCropd, Resized, ScaleIntensityRanged
from monai.utils import set_determinism

from styleaug import StyleAugment
from styleaug.transforms.monai import RandStyled

KEYS = ["path", "mask"]
READ = [LoadImaged(KEYS, ensure_channel_first=True), ScaleIntensityRanged(KEYS, 0, 255, 0, 1)]
READ += [Resized(KEYS, (128, 128), mode=["area", "nearest"])]


def images(domain: str, split: str) -> list[dict]:
    index = Path(os.environ.get("STYLEAUG_DATA", ".")) / "nuclei" / "index.tsv"
    if not index.is_file():
        sys.exit(f"there is no {index}: set STYLEAUG_DATA to a folder with images and masks of nuclei")
    rows = [row for row in csv.DictReader(index.open(), delimiter="\t") if row["domain"] == domain]
    return [{key: index.parent / row[key] for key in KEYS} for row in rows if row["split"] == split]


def dice(train: list[dict], tests: dict[str, list[dict]], *augment: RandStyled, seed: int = 0) -> str:
    set_determinism(seed=seed)
    # The one added line stands behind what is cached; masks stay as they are.
    random = [RandSpatialCropd(KEYS, (96, 96)), RandFlipd(KEYS, prob=0.5), *augment]
    loader = DataLoader(CacheDataset(train, [*READ, *random], progress=False), batch_size=8, shuffle=True)
    model = UNet(2, in_channels=3, out_channels=1, channels=(16, 32, 64), strides=(2, 2), norm="batch")
    optimiser, criterion = torch.optim.Adam(model.parameters(), lr=3e-3), DiceLoss(sigmoid=True)
    for batch in (batch for _ in range(30) for batch in loader):
        optimiser.zero_grad()
        criterion(model(batch["path"]), batch["mask"]).backward()
        optimiser.step()
    scores = []
    with torch.inference_mode():
        for name, items in tests.items():
            batch = next(iter(DataLoader(CacheDataset(items, READ, progress=False), batch_size=len(items))))
            masks = model.eval()(batch["path"]) > 0
            scores.append(f"{name} {DiceMetric()(masks, batch['mask']).mean():.2f}")
    return ", ".join(scores)


if __name__ == "__main__":
    train = images("dsb_tissue_stain", "train")
    unseen = {name: images(f"dsb_{name}", "test") for name in ("brightfield", "fluorescence")}
    tests = {"Dice: home": images("dsb_tissue_stain", "test"), **unseen}
    print("without styles:", dice(train, tests))
    print("with styles:", dice(train, tests, RandStyled("path", StyleAugment.preset("unknown"), prob=0.8)))
