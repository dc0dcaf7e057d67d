"""Train with Lightning on a folder of images: a callback stylises the batches, in training only.

uv run --extra lightning examples/lightning_callback.py [TRAIN_FOLDER --bank hospital_b.safetensors]
"""

import argparse

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import datasets, models
from torchvision.transforms import v2

from styleaug import StyleAugment
from styleaug.demo import sample_folder
from styleaug.transforms.lightning import StyleCallback

to_float = v2.ToDtype(torch.float32, scale=True)
normalise = v2.Compose([to_float, v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))])


class Classifier(LightningModule):
    def __init__(self, classes: int):
        super().__init__()
        self.network, self.hits = models.resnet18(num_classes=classes), []

    def on_after_batch_transfer(self, batch: list[Tensor], dataloader_idx: int) -> list[Tensor]:
        return [normalise(batch[0]), batch[1]]  # the callback has stylised the bytes before

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        logits = self.network(batch[0])
        self.hits.append(logits.argmax(1) == batch[1])
        return nn.functional.cross_entropy(logits, batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", help="one folder a class  [default: 200 digits of ours]")
    parser.add_argument("--bank", default="art")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--size", type=int, default=64)
    args = parser.parse_args()

    geometry = v2.Compose([v2.PILToTensor(), v2.RandomResizedCrop(args.size, scale=(0.5, 1.0))])
    dataset = datasets.ImageFolder(args.folder or sample_folder(), geometry)
    loader = DataLoader(dataset, batch_size=32, shuffle=True, num_workers=2, persistent_workers=True)
    style = StyleCallback(StyleAugment(args.bank, p=0.5))
    model = Classifier(len(dataset.classes))
    options = {"logger": False, "enable_checkpointing": False}
    Trainer(max_epochs=args.epochs, callbacks=[style], **options).fit(model, loader)
    right = torch.cat(model.hits[-len(loader) :]).float().mean()
    print(f"{style.batches} batches styled; {right:.0%} right (chance {1 / len(dataset.classes):.0%})")


if __name__ == "__main__":
    main()
