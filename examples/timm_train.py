"""Train a timm model on a folder of images, styled on the device between timm's transfer and normalisation.

    uv run --extra timm examples/timm_train.py TRAIN_FOLDER --model resnet50 --bank hospital_b.safetensors

In timm's own train.py it is the same line, after `loader_train = create_loader(...)`:

    +   loader_train = StylePrefetchLoader(loader_train, StyleAugment("art", p=0.5))
"""

import argparse

import torch
from timm import create_model
from timm.data import create_dataset, create_loader, resolve_data_config
from torch import nn

from styleaug import StyleAugment
from styleaug.transforms.timm import StylePrefetchLoader


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--model", default="test_efficientnet")
    parser.add_argument("--bank", default="art")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--size", type=int, default=160)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()

    device = torch.device(args.device)
    dataset = create_dataset("", root=args.folder)
    model = create_model(args.model, num_classes=len(dataset.reader.class_to_idx)).to(device)
    config = resolve_data_config({"input_size": (3, args.size, args.size)}, model=model)
    loader = create_loader(
        dataset,
        input_size=config["input_size"],
        mean=config["mean"],
        std=config["std"],
        batch_size=min(32, len(dataset)),
        is_training=True,
        re_prob=0.25,
        num_workers=2,
        device=device,
    )
    loader = StylePrefetchLoader(loader, StyleAugment(args.bank, p=0.5))  # the one added line

    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for epoch in range(args.epochs):
        for images, labels in loader:
            loss = nn.functional.cross_entropy(model(images), labels)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        print(f"epoch {epoch}: loss of the last batch {loss.item():.3f}, {len(loader)} batches styled")


if __name__ == "__main__":
    main()
