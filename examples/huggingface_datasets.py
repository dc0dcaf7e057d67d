"""Stylise a Hugging Face dataset: anew whenever an image is read, or once and for all with `map`.

uv run --extra huggingface examples/huggingface_datasets.py [TRAIN_FOLDER --bank hospital_b.safetensors]
"""

import argparse
import tempfile

import torch
from datasets import load_dataset
from torch import nn
from torch.utils.data import DataLoader
from torchvision import models, transforms

from styleaug import StyleAugment
from styleaug.demo import sample_folder
from styleaug.transforms.huggingface import StyleColumn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", help="one folder a class  [default: 200 digits of ours]")
    parser.add_argument("--bank", default="art")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--cache", default=tempfile.mkdtemp())
    args = parser.parse_args()
    folder = args.folder or sample_folder()
    dataset = load_dataset("imagefolder", data_dir=folder, cache_dir=args.cache, split="train")
    style = StyleColumn(StyleAugment(args.bank, p=0.5), column="image")

    # Ahead of time, and only once for a --cache; a row's style depends on the seed and its index alone.
    copies = dataset.map(style, batched=True, batch_size=64, with_indices=True, with_rank=True)
    assert copies["label"] == dataset["label"]
    changed = sum(a["image"].tobytes() != b["image"].tobytes() for a, b in zip(dataset, copies, strict=True))
    print(f"map stylised {changed} of {len(copies)} images, and left the labels")

    # While training: styles are drawn anew each time, in the DataLoader's workers.
    prepare = transforms.Compose([transforms.RandomResizedCrop(args.size, (0.5, 1.0)), transforms.ToTensor()])

    def transform(batch: dict) -> dict:
        pixels = [prepare(image.convert("RGB")) for image in style(batch)["image"]]
        return {"pixels": pixels, "label": batch["label"]}

    loader = DataLoader(dataset.with_transform(transform), batch_size=32, shuffle=True, num_workers=2)
    model = models.resnet18(num_classes=dataset.features["label"].num_classes)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    for epoch in range(args.epochs):
        hits = 0
        for batch in loader:
            logits = model(batch["pixels"])
            optimiser.zero_grad()
            nn.functional.cross_entropy(logits, batch["label"]).backward()
            optimiser.step()
            hits += (logits.argmax(1) == batch["label"]).sum().item()
        print(f"epoch {epoch}: {hits / len(dataset):.0%} right (chance {1 / logits.shape[1]:.0%})")


if __name__ == "__main__":
    main()
