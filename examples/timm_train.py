"""Train a timm model on a folder of images, styled on the device between timm's transfer and normalisation.

    uv run --extra timm examples/timm_train.py [TRAIN_FOLDER --model resnet50 --bank b.safetensors]

In timm's own train.py it is the same line, after `loader_train = create_loader(...)`:

    +   loader_train = StylePrefetchLoader(loader_train, StyleAugment("art", p=0.5))
"""

import argparse

import torch
from timm import create_model
from timm.data import create_dataset, create_loader, resolve_data_config
from torch import nn

from styleaug import StyleAugment
from styleaug.demo import sample_folder
from styleaug.transforms.timm import StylePrefetchLoader


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", help="one folder a class  [default: 200 digits of ours]")
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--bank", default="art")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    device = torch.device(args.device)
    dataset = create_dataset("", root=args.folder or sample_folder())
    model = create_model(args.model, num_classes=len(dataset.reader.class_to_idx)).to(device)
    config = resolve_data_config({"input_size": (3, args.size, args.size)}, model=model)
    loader = create_loader(
        dataset,
        **{key: config[key] for key in ("input_size", "mean", "std")},
        **{"scale": (0.5, 1.0), "hflip": 0.0, "color_jitter": None},  # styles change the colours
        batch_size=min(32, len(dataset)),
        is_training=True,
        num_workers=2,
        device=device,
    )
    loader = StylePrefetchLoader(loader, StyleAugment(args.bank, p=0.5))  # the one added line

    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for epoch in range(args.epochs):
        hits = seen = 0
        for images, labels in loader:
            logits = model(images)
            loss = nn.functional.cross_entropy(logits, labels)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            hits, seen = hits + (logits.argmax(1) == labels).sum().item(), seen + len(labels)
        print(f"epoch {epoch}: {hits / seen:.0%} right (chance {1 / model.num_classes:.0%})")


if __name__ == "__main__":
    main()
