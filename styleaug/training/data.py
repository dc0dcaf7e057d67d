"""Images packed once into arrays of equal squares, and random crops drawn from them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps
from torch import Tensor

from styleaug.errors import FileError, ImageError
from styleaug.files import image_files, open_image
from styleaug.images import check_range, from_float, to_float, to_pixels

__all__ = ["ImagePack", "is_held_out", "pack_images", "random_crops"]


@dataclass(frozen=True)
class ImagePack:
    """Equal squares of many images, uint8 `(N, 3, E, E)`, and the folder each came from."""

    pixels: UInt8[Tensor, "N 3 E E"]
    groups: Tensor
    """`(N,)` index of the folder; folders are drawn from equally often, whatever their size."""

    def __len__(self) -> int:
        return len(self.pixels)

    def draw(self, count: int, rng: torch.Generator) -> Tensor:
        """Draw `count` indices: first a folder, then one of its images."""
        sizes = torch.bincount(self.groups)
        folders = torch.randint(len(sizes), (count,), generator=rng)
        within = (torch.rand(count, generator=rng) * sizes[folders]).long()
        return torch.cumsum(sizes, 0)[folders] - sizes[folders] + within


def is_held_out(path: Path) -> bool:
    """Tell whether an image belongs to the twentieth that no training run may read."""
    import hashlib

    return hashlib.sha256(path.name.encode()).digest()[0] < 13


def pack_images(folders: Sequence[Path], edge: int, *, held_out: bool = False) -> ImagePack:
    """Read folders of images as squares: short side to `edge`, centre crop.

    Args:
        folders: each is one group, drawn from as often as any other.
        edge: side of the squares in pixels.
        held_out: read only the images that `is_held_out` names, else only the others.

    Raises:
        FileError: a folder is missing or has no readable image, or no image is held out.
    """
    squares, groups = [], []
    for group, folder in enumerate(folders):
        before = len(squares)
        for path in image_files(folder):
            if is_held_out(path) != held_out:
                continue
            try:
                squares.append(read_square(path, edge))
            except (FileError, ImageError):
                continue
            groups.append(group)
        if len(squares) == before and not held_out:
            raise FileError(f"no readable image in {folder}.")
    if not squares:
        raise FileError(f"none of the images in {', '.join(map(str, folders))} is held out.")
    return ImagePack(torch.from_numpy(np.stack(squares)), torch.tensor(groups))


def read_square(path: Path, edge: int) -> np.ndarray:
    """Read an image of any kind as uint8 `(3, E, E)`."""
    pixels, _ = to_pixels(open_image(path, short_side=edge))
    check_range(pixels)
    colour = from_float(to_float(pixels), torch.uint8).expand(-1, 3, -1, -1)[0]
    image = Image.fromarray(colour.permute(1, 2, 0).contiguous().numpy())
    square = ImageOps.fit(image, (edge, edge), Image.Resampling.BICUBIC)
    return np.asarray(square).transpose(2, 0, 1)


def random_crops(
    pixels: UInt8[Tensor, "B 3 E E"], size: int, rng: torch.Generator
) -> Float[Tensor, "B 3 S S"]:
    """Cut a square of random place and side (half to whole) from each, mirror half of them.

    Returns:
        `(B, 3, size, size)` in [0, 1].
    """
    edge = pixels.shape[-1]
    least = min(max(size, edge // 2), edge)
    crops = []
    for row in pixels:
        side = int(torch.randint(least, edge + 1, (), generator=rng))
        top, left = torch.randint(edge - side + 1, (2,), generator=rng).tolist()
        crop = row[:, top : top + side, left : left + side]
        crop = crop.flip(-1) if torch.rand((), generator=rng) < 0.5 else crop
        crop = crop[None].float() / 255
        if side != size:
            crop = F.interpolate(crop, size=(size, size), mode="bilinear", antialias=True)
        crops.append(crop)
    return torch.cat(crops).clamp_(0, 1)
