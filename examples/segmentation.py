"""Stylise images for segmentation and detection: masks and boxes come back as the same objects.

uv run examples/segmentation.py
"""

import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from styleaug import StyleAugment


def main() -> None:
    torch.manual_seed(0)
    sample = {
        "image": tv_tensors.Image(torch.randint(0, 256, (3, 96, 128), dtype=torch.uint8)),
        "mask": tv_tensors.Mask(torch.randint(0, 4, (96, 128))),
        "boxes": tv_tensors.BoundingBoxes(
            torch.tensor([[10, 12, 50, 60]]), format=tv_tensors.BoundingBoxFormat.XYXY, canvas_size=(96, 128)
        ),
        "label": torch.tensor(3),
    }
    geometry = v2.Compose([v2.RandomHorizontalFlip(p=0.5), v2.RandomCrop(80)])
    style = StyleAugment("art", p=1.0)

    moved = geometry(sample)
    styled = style(moved)
    for key in ("mask", "boxes", "label"):
        assert styled[key] is moved[key]
    changed = (styled["image"].float() - moved["image"].float()).abs().mean()
    print(f"image changed by {changed:.1f} of 255 on average; mask, boxes and label are untouched")


if __name__ == "__main__":
    main()
