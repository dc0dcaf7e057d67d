"""Stylise a Hugging Face dataset: anew whenever an image is read, or once and for all with `map`.

uv run --extra huggingface examples/huggingface_datasets.py TRAIN_FOLDER --bank hospital_b.safetensors
"""

import argparse
import tempfile

import torch
from datasets import load_dataset
from torch import nn
from torch.utils.data import DataLoader
from torchvision import models, transforms

from styleaug import StyleAugment
from styleaug.transforms.huggingface import StyleColumn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--bank", default="art")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--cache", default=tempfile.mkdtemp())
    args = parser.parse_args()

    dataset = load_dataset("imagefolder", data_dir=args.folder, cache_dir=args.cache, split="train")
    style = StyleColumn(StyleAugment(args.bank, p=0.5), column="image")

    # Ahead of time: a row's style depends on the seed and its index, whatever num_proc is. Run again
    # with the same --cache, it is read from there. with_rank=True uses the GPUs.
    copies = dataset.map(style, batched=True, batch_size=64, with_indices=True, with_rank=True)
    changed = sum(a["image"].tobytes() != b["image"].tobytes() for a, b in zip(dataset, copies, strict=True))
    print(
        f"map stylised {changed} of {len(copies)} images; labels equal: {copies['label'] == dataset['label']}"
    )

    # While training: styles are drawn anew each time, in the DataLoader's workers.
    prepare = transforms.Compose([transforms.RandomResizedCrop(args.size, (0.5, 1.0)), transforms.ToTensor()])

    def transform(batch: dict) -> dict:
        images = style(batch)["image"]
        return {"pixels": [prepare(image.convert("RGB")) for image in images], "label": batch["label"]}

    loader = DataLoader(dataset.with_transform(transform), batch_size=32, shuffle=True, num_workers=2)
    model = models.squeezenet1_1(num_classes=dataset.features["label"].num_classes)
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-4)
    for epoch in range(args.epochs):
        for batch in loader:
            loss = nn.functional.cross_entropy(model(batch["pixels"]), batch["label"])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        print(f"epoch {epoch}: loss of the last batch {loss.item():.3f}")


if __name__ == "__main__":
    main()
