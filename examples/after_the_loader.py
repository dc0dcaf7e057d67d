"""Stylise whole batches on the GPU (or CPU) after the DataLoader, one batch ahead of training.

uv run examples/after_the_loader.py [TRAIN_FOLDER --bank hospital_b.safetensors --device cuda]
"""

import argparse

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision import datasets, models
from torchvision.transforms import v2

from styleaug import StyleAugment, StyleLoader
from styleaug.demo import sample_folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", help="one folder a class  [default: 200 digits of ours]")
    parser.add_argument("--bank", default="art")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()

    # Workers hand over uint8; styling, scaling and normalising happen on the device.
    geometry = v2.Compose([v2.PILToTensor(), v2.RandomResizedCrop(args.size, scale=(0.5, 1.0))])
    normalise = v2.Compose(
        [v2.ToDtype(torch.float32, scale=True), v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
    )
    dataset = datasets.ImageFolder(args.folder or sample_folder(), geometry)
    loader = DataLoader(dataset, batch_size=32, shuffle=True, num_workers=2, pin_memory=args.device != "cpu")
    styled = StyleLoader(loader, StyleAugment(args.bank, p=0.5), device=args.device)

    model = models.resnet18(num_classes=len(dataset.classes)).to(args.device)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    for epoch in range(args.epochs):
        hits = 0
        for images, labels in styled:
            logits = model(normalise(images))
            loss = nn.functional.cross_entropy(logits, labels)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            hits += (logits.argmax(1) == labels).sum().item()
        print(f"epoch {epoch}: {hits / len(dataset):.0%} right (chance {1 / len(dataset.classes):.0%})")


if __name__ == "__main__":
    main()
