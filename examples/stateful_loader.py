"""Break off a training run within an epoch, and resume it with the same batches and the same styles.

uv run --with torchdata examples/stateful_loader.py
"""

import torch
from torch import Tensor
from torch.utils.data import TensorDataset
from torchdata.stateful_dataloader import StatefulDataLoader

from styleaug import StyleAugment, StyleLoader


def make_loader(device: str) -> StyleLoader:
    images = torch.randint(0, 256, (40, 3, 64, 64), dtype=torch.uint8)
    dataset = TensorDataset(images, torch.arange(40))
    loader = StatefulDataLoader(dataset, batch_size=8, shuffle=True, num_workers=2)
    return StyleLoader(loader, StyleAugment("art", p=0.8), device=device)


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    loader = make_loader(device)
    unbroken: list[Tensor] = []
    checkpoint = None
    for number, (images, _labels) in enumerate(loader):
        unbroken.append(images)
        if number == 1:  # into the checkpoint beside the model's and optimiser's
            checkpoint = {"loader": loader.state_dict(), "torch": torch.get_rng_state()}

    torch.manual_seed(0)
    resumed = make_loader(device)  # another process, on another day
    assert checkpoint is not None
    resumed.load_state_dict(checkpoint["loader"])
    torch.set_rng_state(checkpoint["torch"])
    rest = [images for images, _labels in resumed]
    equal = all(torch.equal(a, b) for a, b in zip(rest, unbroken[2:], strict=True))
    print(f"{len(unbroken)} batches unbroken; resumed after 2, the other {len(rest)} are equal: {equal}")


if __name__ == "__main__":
    main()
