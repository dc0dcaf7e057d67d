"""Train a detector on styled images: boxes and labels move with the geometry, and stay exact.

uv run examples/detection.py
"""

import torch
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn
from torchvision.transforms import v2

from styleaug import StyleAugment

geometry = v2.Compose([v2.RandomHorizontalFlip(), v2.RandomCrop(80), v2.SanitizeBoundingBoxes(min_size=8)])
to_float = v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True)


class Squares(Dataset):
    """Images of a bright square, with its box: stands for your data."""

    def __init__(self, *transforms: torch.nn.Module):
        self.transform = v2.Compose(transforms)

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> tuple[tv_tensors.Image, dict]:
        rng = torch.Generator().manual_seed(index)
        image = torch.randint(0, 120, (3, 96, 96), generator=rng, dtype=torch.uint8)
        top, left = torch.randint(20, 50, (2,), generator=rng).tolist()
        image[:, top : top + 24, left : left + 24] += 120
        box = [left, top, left + 24, top + 24]
        boxes = tv_tensors.BoundingBoxes([box], format="XYXY", canvas_size=(96, 96))
        return self.transform(tv_tensors.Image(image), {"boxes": boxes, "labels": torch.tensor([1])})


def main() -> None:
    style = StyleAugment("art", p=1.0)  # after the geometry, before normalisation
    torch.manual_seed(0)
    moved, target = Squares(geometry)[0]
    styled, same = style(moved, target)
    assert same["boxes"] is target["boxes"] and same["labels"] is target["labels"]
    changed = (styled.float() - moved.float()).abs().mean()
    print(f"an image changed by {changed:.0f} of 255 on average, its boxes {same['boxes'].tolist()} did not")

    loader = DataLoader(Squares(geometry, style, to_float), batch_size=4, collate_fn=list)
    model = fasterrcnn_mobilenet_v3_large_320_fpn(weights_backbone=None, num_classes=2, min_size=96)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01)
    for number, batch in enumerate(loader):
        images, targets = zip(*batch, strict=True)  # lists, as the model asks; it normalises by itself
        loss = sum(model(images, targets).values())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        print(f"batch {number}: loss {loss.item():.3f}")


if __name__ == "__main__":
    main()
