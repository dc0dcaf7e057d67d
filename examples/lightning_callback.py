"""Train with Lightning on a folder of images: a callback stylises the batches, in training only.

uv run --extra lightning examples/lightning_callback.py TRAIN_FOLDER --bank hospital_b.safetensors
"""

import argparse

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import datasets, models
from torchvision.transforms import v2

from styleaug import StyleAugment
from styleaug.transforms.lightning import StyleCallback

normalise = v2.Compose(
    [v2.ToDtype(torch.float32, scale=True), v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
)


class Classifier(LightningModule):
    def __init__(self, classes: int):
        super().__init__()
        self.network = models.squeezenet1_1(num_classes=classes)

    def on_after_batch_transfer(self, batch: list[Tensor], dataloader_idx: int) -> list[Tensor]:
        return [normalise(batch[0]), batch[1]]  # the callback has stylised the bytes before

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=3e-4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--bank", default="art")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--size", type=int, default=128)
    args = parser.parse_args()

    seed_everything(0)
    geometry = v2.Compose([v2.PILToTensor(), v2.RandomResizedCrop(args.size, scale=(0.5, 1.0))])
    dataset = datasets.ImageFolder(args.folder, geometry)
    loader = DataLoader(dataset, batch_size=32, shuffle=True, num_workers=2, persistent_workers=True)

    style = StyleCallback(StyleAugment(args.bank, p=0.5))
    trainer = Trainer(max_epochs=args.epochs, callbacks=[style], logger=False, enable_checkpointing=False)
    model = Classifier(len(dataset.classes))
    trainer.fit(model, loader)
    names = ", ".join(name for name, _ in model.named_children())
    print(f"trained on {style.batches} styled batches; the model holds {names}, no style network")


if __name__ == "__main__":
    main()
