"""Squares of the images that no training run may read: the contents and styles of the other scripts."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps
from torch import Tensor

from styleaug.errors import FileError, ImageError
from styleaug.images import check_range, from_float, to_float, to_pixels
from styleaug.io.files import image_files, open_image
from styleaug.training.data import is_held_out

__all__ = ["draw", "held_out_files", "read_square", "read_squares", "tiles"]


def held_out_files(folder: Path, *, share: float = 0.05) -> list[Path]:
    """List the images of a folder that a run with `held_out=share` does not train on."""
    return [path for path in image_files(folder) if is_held_out(path.name, share)]


def read_square(path: Path, edge: int) -> Image.Image:
    """Read an image of any kind as 8-bit colour: short side to `edge`, centre crop."""
    pixels, _ = to_pixels(open_image(path, short_side=edge))
    check_range(pixels)
    colour = from_float(to_float(pixels), torch.uint8).expand(-1, 3, -1, -1)[0]
    image = Image.fromarray(colour.permute(1, 2, 0).contiguous().numpy())
    return ImageOps.fit(image, (edge, edge), Image.Resampling.BICUBIC)


def tiles(folder: Path, count: int, edge: int, *, share: float = 0.05) -> list[Image.Image]:
    """Take evenly spaced held-out images of a folder."""
    files = held_out_files(folder, share=share)
    step = max(1, len(files) // count)
    return [read_square(path, edge) for path in files[::step][:count]]


def read_squares(folder: Path, edge: int) -> UInt8[Tensor, "N 3 E E"]:
    """Read the held-out images of a folder, but for those that cannot be read.

    Raises:
        FileError: the folder is missing, or none can be read.
    """
    squares = []
    for path in held_out_files(folder):
        try:
            square = np.array(read_square(path, edge))
        except (FileError, ImageError):
            continue
        squares.append(torch.from_numpy(square).permute(2, 0, 1))
    if not squares:
        raise FileError(f"none of the images in {folder} is held out and can be read.")
    return torch.stack(squares)


def draw(folders: Sequence[Path], edge: int, count: int, rng: torch.Generator) -> Float[Tensor, "B 3 E E"]:
    """Draw held-out squares in [0, 1]: first a folder, then one of its images."""
    squares = [read_squares(folder, edge) for folder in folders]
    drawn = torch.randint(len(squares), (count,), generator=rng).tolist()
    sizes = torch.tensor([len(squares[place]) for place in drawn])
    rows = (torch.rand(count, generator=rng) * sizes).long().tolist()
    return torch.stack([squares[place][row] for place, row in zip(drawn, rows, strict=True)]) / 255
