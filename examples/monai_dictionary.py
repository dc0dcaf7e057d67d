"""Segment volumes with MONAI: styles are new in each epoch, behind a cache, and masks stay exact.

uv run --extra monai examples/monai_dictionary.py
"""

import numpy as np
import torch
from monai.data import CacheDataset, DataLoader, create_test_image_3d
from monai.losses import DiceLoss
from monai.networks.nets import UNet
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    NormalizeIntensityd,
    RandFlipd,
    RandRotate90d,
    ScaleIntensityd,
)
from monai.utils import set_determinism

from styleaug.transforms.monai import RandStyled


def main() -> None:
    set_determinism(seed=0)
    rng = np.random.RandomState(0)
    pairs = [create_test_image_3d(48, 48, 48, rad_max=12, random_state=rng) for _ in range(4)]
    items = [{"image": image, "label": (label > 0).astype(np.float32)} for image, label in pairs]

    keys = ["image", "label"]
    ready = [EnsureChannelFirstd(keys, channel_dim="no_channel"), ScaleIntensityd("image")]  # cached
    moved = [RandFlipd(keys, prob=0.5, spatial_axis=0), RandRotate90d(keys, prob=0.5)]
    style = RandStyled("image", "photo-tones", prob=0.8)  # the one added line: before NormalizeIntensityd
    train = Compose([*ready, *moved, style, NormalizeIntensityd("image")])
    loader = DataLoader(CacheDataset(items, train, progress=False), batch_size=2, num_workers=2)

    sample = Compose(ready + moved)(items[0])
    styled = RandStyled("image", "photo-tones", prob=1.0)(sample)
    assert styled["label"] is sample["label"] and torch.equal(styled["image"].affine, sample["image"].affine)
    change = (styled["image"] - sample["image"]).abs().mean().item()
    print(f"a volume changed by {change:.3f} of 1 on average; its mask and affine are untouched")

    model = UNet(3, in_channels=1, out_channels=1, channels=(8, 16, 32), strides=(2, 2), norm="batch")
    optimiser, criterion = torch.optim.Adam(model.parameters(), lr=1e-2), DiceLoss(sigmoid=True)
    for epoch in range(3):
        losses = []
        for batch in loader:
            loss = criterion(model(batch["image"]), batch["label"])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
        print(f"epoch {epoch}: Dice loss {np.mean(losses):.3f}")


if __name__ == "__main__":
    main()
