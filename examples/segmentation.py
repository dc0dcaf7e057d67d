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

    def __init__(self, *transforms: nn.Module):
        self.transform = v2.Compose(transforms)

    def __len__(self) -> int:
        return 32

    def __getitem__(self, index: int) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
        rng = torch.Generator().manual_seed(index)
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
    model = nn.Sequential(nn.Conv2d(3, 16, 9, padding=4), nn.ReLU(), nn.Conv2d(16, 2, 9, padding=4))
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    for epoch in range(3):
        for images, masks in loader:
            loss = nn.functional.cross_entropy(model(images), masks)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        print(f"epoch {epoch}: loss of the last batch {loss.item():.3f}")


if __name__ == "__main__":
    main()
