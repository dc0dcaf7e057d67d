"""Train a classifier on a folder of images, styled inside the DataLoader's workers.

    uv run examples/image_folder.py [TRAIN_FOLDER --bank hospital_b.safetensors]

TRAIN_FOLDER holds one folder per class; left out, digits of ours are taken. The bank comes from unlabelled
images of the other site: `styleaug fit-style hospital_b/ -o hospital_b.safetensors`.
"""

import argparse

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision import datasets, models, transforms

from styleaug import StyleAugment
from styleaug.demo import sample_folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", help="one folder a class  [default: 200 digits of ours]")
    parser.add_argument("--bank", default="art")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()

    train = transforms.Compose(
        [
            transforms.RandomResizedCrop(args.size, scale=(0.5, 1.0)),
            transforms.RandomHorizontalFlip(),
            StyleAugment(args.bank, p=0.5),  # the one added line: before Normalize
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    dataset = datasets.ImageFolder(args.folder or sample_folder(), train)
    loader = DataLoader(dataset, batch_size=32, shuffle=True, num_workers=args.workers)
    model = models.resnet18(num_classes=len(dataset.classes))
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    for epoch in range(args.epochs):
        hits = 0
        for images, labels in loader:
            logits = model(images)
            loss = nn.functional.cross_entropy(logits, labels)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            hits += (logits.argmax(1) == labels).sum().item()
        print(f"epoch {epoch}: {hits / len(dataset):.0%} right (chance {1 / len(dataset.classes):.0%})")


if __name__ == "__main__":
    main()
