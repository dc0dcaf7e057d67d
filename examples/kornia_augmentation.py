"""Augment whole batches with kornia after the DataLoader: geometry, style, then Normalize, on any device.

uv run --extra kornia examples/kornia_augmentation.py [TRAIN_FOLDER --bank b.safetensors --device cuda]
"""

import argparse

import kornia.augmentation as K
import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision import datasets, models
from torchvision.transforms import v2

from styleaug.demo import sample_folder
from styleaug.transforms.kornia import RandomStyle


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", help="one folder a class  [default: 200 digits of ours]")
    parser.add_argument("--bank", default="art")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()

    to_size = v2.Compose([v2.PILToTensor(), v2.Resize((args.size, args.size))])
    dataset = datasets.ImageFolder(args.folder or sample_folder(), to_size)
    loader = DataLoader(dataset, batch_size=32, shuffle=True, num_workers=2)
    augment = K.AugmentationSequential(
        K.RandomHorizontalFlip(),
        K.RandomResizedCrop((args.size, args.size), scale=(0.5, 1.0)),
        RandomStyle(args.bank, p=0.5),  # the one added line: before Normalize
        K.Normalize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
        data_keys=["input"],
    )
    model = models.resnet18(num_classes=len(dataset.classes)).to(args.device)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    for epoch in range(args.epochs):
        hits = 0
        for images, labels in loader:
            images, labels = images.to(args.device).float() / 255, labels.to(args.device)
            logits = model(augment(images))
            loss = nn.functional.cross_entropy(logits, labels)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            hits += (logits.argmax(1) == labels).sum().item()
        print(f"epoch {epoch}: {hits / len(dataset):.0%} right (chance {1 / len(dataset.classes):.0%})")


if __name__ == "__main__":
    main()
