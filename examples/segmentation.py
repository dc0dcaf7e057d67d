"""Train a segmentation network on styled images: masks move with the geometry, and keep every pixel.

uv run examples/segmentation.py
"""

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from styleaug import StyleAugment

geometry = v2.Compose([v2.RandomHorizontalFlip(), v2.RandomResizedCrop(64, scale=(0.5, 1.0))])
to_float = v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True)


class Discs(Dataset):
    """Images of a disc, with its mask: stands for your data."""

    def __init__(self, *transforms: nn.Module, first: int = 0):
        self.transform, self.first = v2.Compose(transforms), first

    def __len__(self) -> int:
        return 32

    def __getitem__(self, index: int) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
        rng = torch.Generator().manual_seed(self.first + index)
        height, width = torch.meshgrid(torch.arange(96), torch.arange(96), indexing="ij")
        y, x = torch.randint(24, 72, (2,), generator=rng)
        mask = ((height - y) ** 2 + (width - x) ** 2 < 400).long()
        image = 60 + 90 * mask + torch.randint(0, 60, (3, 96, 96), generator=rng)
        return self.transform(tv_tensors.Image(image.byte()), tv_tensors.Mask(mask))


def main() -> None:
    # Styles follow the geometry and come before normalisation. splice="mask" gives the object and its
    # background styles of their own, from the sample's mask.
    style = StyleAugment("art", p=0.8, splice="mask")
    torch.manual_seed(1)
    moved = Discs(geometry)[0]
    styled, mask = style(*moved)
    changed = (styled.float() - moved[0].float()).abs().mean()
    print(f"an image changed by {changed:.0f} of 255 on average; its mask is equal: {mask.equal(moved[1])}")

    loader = DataLoader(Discs(geometry, style, to_float), batch_size=8, shuffle=True)
    model = nn.Sequential(nn.Conv2d(3, 16, 9, 1, 4), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 2, 9, 1, 4))
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    for images, masks in (batch for _ in range(8) for batch in loader):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(images), masks).backward()
        optimiser.step()
    images, masks = next(iter(DataLoader(Discs(to_float, first=len(loader.dataset)), batch_size=16)))
    found = model.eval()(images).argmax(1)
    overlap = (found & masks).sum() / (found | masks).sum()
    print(f"overlap with new discs {overlap:.0%} (all called disc: {masks.float().mean():.0%})")


if __name__ == "__main__":
    main()
