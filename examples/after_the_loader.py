"""Stylise whole batches on the GPU (or CPU) after the DataLoader, one batch ahead of training.

uv run examples/after_the_loader.py TRAIN_FOLDER --bank hospital_b.safetensors --device cuda
"""

import argparse

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision import datasets, models
from torchvision.transforms import v2

from styleaug import StyleAugment, StyleLoader


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--bank", default="art")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()

    # Workers hand over uint8; styling, scaling and normalising happen on the device.
    geometry = v2.Compose([v2.PILToTensor(), v2.RandomResizedCrop(args.size, scale=(0.5, 1.0))])
    normalise = v2.Compose(
        [v2.ToDtype(torch.float32, scale=True), v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
    )
    dataset = datasets.ImageFolder(args.folder, geometry)
    loader = DataLoader(dataset, batch_size=32, shuffle=True, num_workers=2, pin_memory=args.device != "cpu")
    styled = StyleLoader(loader, StyleAugment(args.bank, p=0.5), device=args.device)

    model = models.squeezenet1_1(num_classes=len(dataset.classes)).to(args.device)
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-4)
    for epoch in range(args.epochs):
        for images, labels in styled:
            loss = nn.functional.cross_entropy(model(normalise(images)), labels)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        print(f"epoch {epoch}: loss of the last batch {loss.item():.3f}")


if __name__ == "__main__":
    main()
