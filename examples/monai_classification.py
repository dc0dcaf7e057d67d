"""Classify MR-like slices with MONAI: train at hospital A, test at hospital B, without and with B's styles.

uv run --extra monai examples/monai_classification.py
"""

import tempfile

import numpy as np
import torch
from monai.data import CacheDataset, DataLoader, list_data_collate
from monai.networks.nets import DenseNet
from monai.transforms import Compose, EnsureChannelFirstd, GaussianSmooth, NormalizeIntensityd
from monai.utils import set_determinism

from styleaug import fit_style
from styleaug.transforms.monai import RandStyled


def scan(rng: np.random.Generator, lesion: bool, gamma: float, noise: float) -> np.ndarray:
    """Draw a slice of tissue with Rician noise, as in MR magnitude images (Gudbjartsson & Patz 1995)."""
    tissue = np.asarray(GaussianSmooth(sigma=6)(rng.normal(size=(1, 64, 64))))[0]
    tissue = 0.45 + 0.15 * tissue / tissue.std()
    if lesion:
        y, x = np.mgrid[:64, :64] - rng.integers(16, 48, (2, 1, 1))
        tissue = tissue + 0.35 * np.exp(-(x**2 + y**2) / 8)
    real = tissue.clip(0, 1) ** gamma + rng.normal(0, noise, (64, 64))
    return np.hypot(real, rng.normal(0, noise, (64, 64))).clip(0, 1).astype(np.float32)


def hospital(seed: int, gamma: float, noise: float) -> list[dict]:
    rng = np.random.default_rng(seed)
    return [{"image": scan(rng, i % 2 == 1, gamma, noise), "label": i % 2} for i in range(128)]


def accuracy(train: list[dict], tests: list[list[dict]], *augment: RandStyled, seed: int = 0) -> str:
    set_determinism(seed=seed)
    first, last = EnsureChannelFirstd("image", channel_dim="no_channel"), NormalizeIntensityd("image")
    data = CacheDataset(train, Compose([first, *augment, last]), progress=False)
    model = DenseNet(2, 1, 2, init_features=16, growth_rate=8, block_config=(2, 2, 2))
    optimiser = torch.optim.Adam(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 5e-3, total_steps=256)
    for batch in (batch for _ in range(32) for batch in DataLoader(data, batch_size=16, shuffle=True)):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(model(batch["image"]), batch["label"]).backward()
        optimiser.step()
        schedule.step()
    with torch.inference_mode():
        batches = [list_data_collate(Compose([first, last])(items)) for items in tests]
        hits = [(model.eval()(x["image"]).argmax(1) == x["label"]).float().mean() for x in batches]
    return "at home {:.1%}, at hospital B {:.1%}".format(*hits)


if __name__ == "__main__":
    train, tests = hospital(0, 1.0, 0.03), [hospital(1, 1.0, 0.03), hospital(2, 2.5, 0.04)]
    print("without styles:", accuracy(train, tests))
    with tempfile.TemporaryDirectory() as folder:  # unlabelled images of hospital B, not those tested on
        for index, item in enumerate(hospital(3, 2.5, 0.04)):
            np.save(f"{folder}/{index}.npy", item["image"])
        bank = fit_style(folder, generator="fourier").bank
    print("with styles of B:", accuracy(train, tests, RandStyled("image", bank, prob=0.5)))
