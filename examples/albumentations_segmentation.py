"""Train a segmentation network behind albumentations, with images styled and masks exact.

uv run --extra albumentations examples/albumentations_segmentation.py
"""

import albumentations as A
import numpy as np
import torch
from albumentations.pytorch import ToTensorV2
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset

from styleaug.transforms.albumentations import StyleAugment


class Shapes(Dataset):
    """Discs (class 1) and squares (class 2) on noise, in place of your images and masks."""

    def __init__(self, *after: A.BasicTransform):
        self.pipeline = A.Compose([A.RandomCrop(64, 64), A.HorizontalFlip(p=0.5), *after], seed=0)

    def __len__(self) -> int:
        return 160

    def __getitem__(self, index: int) -> dict:
        rng = np.random.default_rng(index)
        y, x = np.mgrid[:80, :80]
        mask = (np.hypot(y - rng.integers(15, 65), x - rng.integers(15, 65)) < 12).astype(np.uint8)
        top, left = rng.integers(5, 55, 2)
        mask[top : top + 20, left : left + 20] = 2
        colours = np.array([[90, 90, 90], [200, 70, 60], [60, 80, 200]])[mask]
        image = (colours + rng.normal(0, 15, colours.shape)).clip(0, 255).astype(np.uint8)
        return self.pipeline(image=image, mask=mask)


def main() -> None:
    torch.manual_seed(0)
    plain, styled = Shapes(), Shapes(StyleAugment("art", p=1.0))
    for index in range(8):
        for shapes in (plain, styled):
            shapes.pipeline.set_random_seed(index)  # the same crop and flip
        was, now = plain[index], styled[index]
        assert np.array_equal(was["mask"], now["mask"]) and not np.array_equal(was["image"], now["image"])
    print("8 images changed; their masks are exactly those of the pipeline without styling")

    train = Shapes(StyleAugment("art", p=0.5), A.Normalize(), ToTensorV2())  # before Normalize
    model = nn.Sequential(nn.Conv2d(3, 16, 9, 1, 4), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 3, 9, 1, 4))
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    for batch in DataLoader(Subset(train, range(128)), batch_size=4, num_workers=2):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(batch["image"]), batch["mask"].long()).backward()
        optimiser.step()
    test = Subset(Shapes(A.Normalize(), ToTensorV2()), range(128, 160))
    (batch,) = DataLoader(test, batch_size=32)
    right = (model.eval()(batch["image"]).argmax(1) == batch["mask"])[batch["mask"] > 0].float().mean()
    print(f"{right:.0%} of the pixels of new shapes are right (chance 33%)")


if __name__ == "__main__":
    main()
