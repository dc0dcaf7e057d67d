"""Augment whole batches with kornia after the DataLoader: geometry, style, then Normalize, on any device.

uv run --extra kornia examples/kornia_augmentation.py TRAIN_FOLDER --bank hospital_b.safetensors --device cuda
"""

import argparse

import kornia.augmentation as K
import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision import datasets, models
from torchvision.transforms import v2

from styleaug.transforms.kornia import RandomStyle


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--bank", default="art")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()

    to_size = v2.Compose([v2.PILToTensor(), v2.Resize((args.size, args.size))])
    dataset = datasets.ImageFolder(args.folder, to_size)
    loader = DataLoader(dataset, batch_size=32, shuffle=True, num_workers=2)
    augment = K.AugmentationSequential(
        K.RandomHorizontalFlip(),
        K.RandomResizedCrop((args.size, args.size), scale=(0.5, 1.0)),
        RandomStyle(args.bank, p=0.5),  # the one added line: before Normalize
        K.Normalize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
        data_keys=["input"],
    )
    model = models.squeezenet1_1(num_classes=len(dataset.classes)).to(args.device)
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-4)
    for epoch in range(args.epochs):
        total = 0.0
        for images, labels in loader:
            images, labels = images.to(args.device).float() / 255, labels.to(args.device)
            loss = nn.functional.cross_entropy(model(augment(images)), labels)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            total += loss.item() * len(labels)
        print(f"epoch {epoch}: loss {total / len(dataset):.3f}")


if __name__ == "__main__":
    main()
