"""On real images: fitting one laboratory's style and applying it to another's moves the colours there."""

from pathlib import Path

import pytest
import torch
from specimens import GENERATORS, TINY, generator
from torch import Tensor

from styleaug import StyleAugment, fit_style
from styleaug.files import image_files, open_image
from styleaug.images import to_float, to_pixels

pytestmark = pytest.mark.data

MATCHES_MEANS = [name for name in GENERATORS if "luminance" not in name and name not in TINY]


def laboratory(data: Path, name: str) -> Path:
    folder = data / "wbc" / name
    if not folder.is_dir():
        pytest.skip(f"needs {folder}")
    return folder


def images(folder: Path, most: int = 12) -> list[Tensor]:
    return [to_float(to_pixels(open_image(path).convert("RGB"))[0]) for path in image_files(folder)[:most]]


def means(pictures: list[Tensor]) -> Tensor:
    return torch.stack([picture.mean((0, 2, 3)) for picture in pictures]).mean(0)


@pytest.mark.parametrize("name", MATCHES_MEANS)
@pytest.mark.parametrize("target", ["tecom", "bccd"])
def test_styled_cells_have_the_other_laboratorys_colours(data, name, target):
    bank = fit_style(laboratory(data, target), generator=generator(name), max_styles=32).bank
    pictures = images(laboratory(data, "pbc"))
    wanted = means(images(laboratory(data, target)))
    augment = StyleAugment(bank, generator=generator(name), p=1.0, strength=1.0)
    before = (means(pictures) - wanted).abs().mean()
    after = (means([augment(picture) for picture in pictures]) - wanted).abs().mean()
    assert after < 0.6 * before


def test_unreadable_files_are_few(data):
    fit = fit_style(laboratory(data, "pbc"), generator=generator("reinhard-rgb"), max_styles=50)
    assert len(fit.bank) == 50 and not fit.failed
