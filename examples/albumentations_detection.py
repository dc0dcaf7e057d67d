"""Train a detector behind albumentations, with images styled and boxes exact.

uv run --extra albumentations examples/albumentations_detection.py
"""

import albumentations as A
import numpy as np
import torch
from albumentations.pytorch import ToTensorV2
from torch.utils.data import DataLoader, Dataset
from torchvision.models import detection

from styleaug.transforms.albumentations import StyleAugment


class Squares(Dataset):
    """Coloured squares (classes 1 and 2) on noise, in place of your images, boxes and labels."""

    def __init__(self, *after: A.BasicTransform):
        steps = [A.RandomSizedBBoxSafeCrop(128, 128), A.HorizontalFlip(p=0.5), *after]
        self.pipeline = A.Compose(steps, bbox_params=A.BboxParams("pascal_voc", ["labels"]), seed=0)

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> tuple:
        rng = np.random.default_rng(index)
        image, corners, labels = rng.normal(90, 15, (160, 160, 3)), rng.integers(0, 110, (3, 2)), [1, 2, 1]
        for (left, top), label in zip(corners, labels, strict=True):
            image[top : top + 40, left : left + 40, label] += 100
        boxes = np.concatenate([corners, corners + 40], axis=1).astype(np.float32)
        done = self.pipeline(image=image.clip(0, 255).astype(np.uint8), bboxes=boxes, labels=labels)
        labels = torch.as_tensor(done["labels"]).long()  # the host gives floats
        return done["image"], {"boxes": torch.as_tensor(done["bboxes"]), "labels": labels}


def main() -> None:
    plain, styled = Squares(), Squares(StyleAugment("art", p=1.0))
    for index in range(8):
        plain.pipeline.set_random_seed(index)
        styled.pipeline.set_random_seed(index)  # the same crop and flip
        (image, target), (restyled, same) = plain[index], styled[index]
        assert not np.array_equal(image, restyled)
        assert all(torch.equal(target[key], same[key]) for key in ("boxes", "labels"))
    print("8 images changed; their boxes and labels are exactly those of the pipeline without styling")

    train = Squares(StyleAugment("art", p=0.5), A.ToFloat(), ToTensorV2())  # the model normalises
    model = detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=3)
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-3)
    for samples in DataLoader(train, batch_size=4, num_workers=2, collate_fn=list):
        images, targets = zip(*samples, strict=True)
        losses = model(list(images), targets)
        optimiser.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimiser.step()
        print(", ".join(f"{name} {loss.item():.2f}" for name, loss in losses.items()))


if __name__ == "__main__":
    main()
