"""On real images: styles and translators move one laboratory's colours to another's, and photos to lines."""

from pathlib import Path

import pytest
import torch
from specimens import GENERATORS, TINY, generator
from torch import Tensor

from styleaug import StyleAugment, fit_style, load_generator
from styleaug.images import to_float, to_pixels
from styleaug.io.files import image_files, open_image
from styleaug.training.data import is_held_out, read_image, square
from styleaug.training.losses import edge_correlation

pytestmark = pytest.mark.data

OTHER_AIMS = {"macenko", "vahadane", "hed-jitter", "hed-jitter-strong"}
"""They move dyes, or at random, and not the means of colours."""

MATCHES_MEANS = [
    name for name in GENERATORS if "luminance" not in name and name not in TINY and name not in OTHER_AIMS
]


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
    bank = fit_style(laboratory(data, target), generator=generator(name), min_images=1, max_styles=32).bank
    pictures = images(laboratory(data, "pbc"))
    wanted = means(images(laboratory(data, target)))
    augment = StyleAugment(bank, generator=generator(name), p=1.0, strength=1.0)
    before = (means(pictures) - wanted).abs().mean()
    after = (means([augment(picture) for picture in pictures]) - wanted).abs().mean()
    assert after < 0.6 * before


def test_unreadable_files_are_few(data):
    fit = fit_style(laboratory(data, "pbc"), generator=generator("reinhard-rgb"), min_images=1, max_styles=50)
    assert len(fit.bank) == 50 and not fit.failed


def held_out(folder: Path, count: int, size: int = 96) -> Tensor:
    """Read held-out pictures as squares, of every class some."""
    paths = [path for path in image_files(folder) if is_held_out(path.name, 0.1)]
    paths = paths[:: max(1, len(paths) // count)][:count]
    return torch.cat([square(read_image(path, size), size) for path in paths])


def test_the_stain_translator_nears_the_other_laboratory(data):
    sources, targets = (held_out(data / "wbc" / lab, 20) for lab in ("pbc", "tecom"))
    translated = load_generator("cell-stain")(sources, torch.zeros(len(sources), 0), torch.ones(len(sources)))
    colours = [images.mean(dim=(0, 2, 3)) for images in (sources, targets, translated)]
    assert (colours[2] - colours[1]).norm() < 0.7 * (colours[0] - colours[1]).norm()
    assert edge_correlation(translated, sources).mean() > 0.8


def test_the_sketch_translator_draws_dark_lines_on_white(data):
    photographs = held_out(data / "content" / "caltech101", 12, 128)
    drawn = load_generator("photo-to-sketch")(photographs, torch.zeros(12, 0), torch.ones(12))
    assert drawn.median() > 0.9 and drawn.amin(dim=(1, 2, 3)).median() < 0.4
    assert (drawn.amax(dim=1) - drawn.amin(dim=1)).mean() < 0.05, "no colour is left"


def test_codes_of_a_laboratory_bring_its_stain(data):
    """A bank of the VAE-GAN works as one of AdaIN: styles come from pictures."""
    generator, sources = load_generator("cell-stains"), held_out(data / "wbc" / "pbc", 12)
    for lab in ("tecom", "bccd"):  # the third has about the colours of the source
        targets = held_out(data / "wbc" / lab, 8)
        code = generator.encode_style(targets).mean(dim=0, keepdim=True)
        translated = generator(sources, code.expand(len(sources), -1), torch.ones(len(sources)))
        colours = [images.mean(dim=(0, 2, 3)) for images in (sources, targets, translated)]
        assert (colours[2] - colours[1]).norm() < 0.7 * (colours[0] - colours[1]).norm(), lab
