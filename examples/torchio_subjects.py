"""Style TorchIO's subjects through its MONAI adapter: volumes change as one, label maps and affines do not.

uv run --extra monai --with "torchio>=1.2" examples/torchio_subjects.py
"""

import torch
import torchio as tio
from torch.utils.data import DataLoader

from styleaug.transforms.monai import RandStyled


def subject(seed: int) -> tio.Subject:
    """Make a CT-like subject in Hounsfield units, with quantum noise, and the label map of an organ."""
    rng = torch.Generator().manual_seed(seed)
    z, y, x = torch.meshgrid(*[torch.linspace(-1, 1, 40)] * 3, indexing="ij")
    organ = x**2 + y**2 + z**2 < 0.5 + 0.1 * torch.rand((), generator=rng)
    volume = torch.where(organ, 60.0, -80.0) + 20 * torch.randn(organ.shape, generator=rng)
    image = tio.ScalarImage(tensor=volume[None], affine=torch.diag(torch.tensor([0.8, 0.8, 2.0, 1.0])))
    return tio.Subject(ct=image, organ=tio.LabelMap(tensor=organ[None].byte(), affine=image.affine))


def main() -> None:
    torch.manual_seed(0)
    # In Hounsfield units as they are: value_range is the window that is styled, and what it comes back in.
    style = tio.MonaiAdapter(RandStyled("ct", "photo-tones", prob=1.0, value_range=(-160, 240)), p=0.8)
    before, after = subject(0), style.apply_transform(subject(0))
    assert torch.equal(before.organ.data, after.organ.data) and (before.ct.affine == after.ct.affine).all()
    change = (after.ct.data - before.ct.data).abs().mean().item()
    print(f"a volume changed by {change:.0f} HU on average; its label map and affine are untouched")

    steps = tio.Compose([tio.RandomFlip(axes=0), style, tio.ZNormalization()])
    loader = DataLoader(tio.SubjectsDataset([subject(seed) for seed in range(8)], steps), batch_size=4)
    for batch in loader:
        shape, voxels = tuple(batch["ct"]["data"].shape), int(batch["organ"]["data"].sum())
        print(f"batch {shape} with {voxels} voxels of organ")


if __name__ == "__main__":
    main()
