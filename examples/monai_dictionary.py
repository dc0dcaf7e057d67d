"""Segment volumes with MONAI: train on scanner A, test on scanner B, without and with a bank of B's styles.

uv run --extra monai examples/monai_dictionary.py
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
from monai.data import CacheDataset, DataLoader, create_test_image_3d
from monai.losses import DiceLoss
from monai.networks.nets import UNet
from monai.transforms import Compose, EnsureChannelFirstd, NormalizeIntensityd, RandFlipd
from monai.utils import set_determinism
from torch.utils.data import default_collate

from styleaug import fit_style
from styleaug.transforms.monai import RandStyled


def scanner(seed: int, count: int, shade: float, noise: float) -> list[dict]:
    """Draw volumes with Rician noise, as in MR magnitude images (Gudbjartsson & Patz 1995)."""
    rng, items, coil = np.random.RandomState(seed), [], np.linspace(1, 1 - shade, 48)
    for _ in range(count):
        image, label = create_test_image_3d(48, 48, 32, rad_max=10, noise_max=0, random_state=rng)
        real = (0.35 + 0.35 * image) * coil[:, None, None] + rng.normal(0, noise, image.shape)
        seen = np.hypot(real, rng.normal(0, noise, image.shape)).clip(0, 1)
        items.append({"image": seen.astype(np.float32), "label": (label > 0).astype(np.float32)})
    return items


def dice(train: list[dict], tests: list[list[dict]], *augment: RandStyled, seed: int = 0) -> str:
    set_determinism(seed=seed)
    keys = ["image", "label"]
    first, last = EnsureChannelFirstd(keys, channel_dim="no_channel"), NormalizeIntensityd("image")
    # The one added line stands behind what is cached and before NormalizeIntensityd.
    data = CacheDataset(train, Compose([first, RandFlipd(keys, prob=0.5), *augment, last]), progress=False)
    model = UNet(3, in_channels=1, out_channels=1, channels=(8, 16, 32), strides=(2, 2), norm="batch")
    optimiser, criterion = torch.optim.Adam(model.parameters(), lr=1e-2), DiceLoss(sigmoid=True)
    for batch in (batch for _ in range(10) for batch in DataLoader(data, batch_size=2, shuffle=True)):
        optimiser.zero_grad()
        criterion(model(batch["image"]), batch["label"]).backward()
        optimiser.step()
    scores, ready = [], Compose([first, last])
    with torch.inference_mode():
        for volumes in (default_collate(ready(items)) for items in tests):
            masks = (model.eval()(volumes["image"]) > 0).float()
            scores.append(1 - DiceLoss()(masks, volumes["label"]).item())
    return f"Dice at scanner A {scores[0]:.2f}, at scanner B {scores[1]:.2f}"


if __name__ == "__main__":
    train, tests = scanner(0, 8, 0.0, 0.02), [scanner(1, 4, 0.0, 0.02), scanner(2, 4, 0.7, 0.03)]
    print("without styles:", dice(train, tests))
    with tempfile.TemporaryDirectory() as folder:  # middle slices of B's unlabelled volumes
        for index, item in enumerate(scanner(3, 20, 0.7, 0.03)):
            np.save(Path(folder) / f"{index}.npy", item["image"][..., 16])
        bank = fit_style(folder, generator="fourier").bank
    print("with styles of B:", dice(train, tests, RandStyled("image", bank, prob=0.8)))
