"""The demo: test a classifier in another hospital, trained with and without a bank of its styles.

Hospital A has labelled digits, white on black. Hospital B writes in dark, coloured ink on photographs, and
sends 256 images without labels. Their styles are read into a bank. A small network is trained on
A's images only. It is tested on new digits, once drawn like A's and once like B's.

The file is also a template: the lines to add to your own pipeline are `fit_bank` and `StyleAugment(bank)`.
"""

import atexit
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from itertools import count
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from PIL import Image, ImageDraw
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import pil_to_tensor, resized_crop, to_dtype, to_pil_image

from styleaug.bank import StyleBank
from styleaug.errors import ConfigError
from styleaug.fitting.fit import fit_style
from styleaug.io.files import save_image
from styleaug.sheets import contact_sheet, open_rgb, sample_photos
from styleaug.transforms.augment import StyleAugment
from styleaug.weights import pretrained_folder

__all__ = ["Demo", "run_demo", "sample_folder"]

_SIDE, BATCH, UNLABELLED = 32, 64, 256  # pixels; images in a batch; images that hospital B sends
COLUMNS, DIGIT_SIDE = 12, 80  # of the contact sheet; side of a tile in pixels

NOTES = """
Trained on {trained_on} images of hospital A; tested on {tested_on} other digits,
as drawn by hospital A (home) and by hospital B (away).
Style bank: {bank[styles]} styles of unlabelled images of B, {bank[kilobytes]} kB, {bank[generator]}."""

TEMPORARY = ExitStack()
atexit.register(TEMPORARY.close)

Strokes = Float[Tensor, "B 1 H W"]
_Images = UInt8[Tensor, "B 3 H W"]
Labels = Int[Tensor, " B"]


@dataclass(frozen=True)
class _Arm:
    """One way to train the classifier, and its scores."""

    name: str
    home: float  # share of A's test images that it reads right
    away: float  # the same for B's
    seconds: float  # of training, augmentation included
    cost: float  # time of the augmentation over that of all else in training


@dataclass(frozen=True)
class Demo:
    """The result of a run of the demo."""

    arms: list[_Arm]
    bank: dict[str, Any]
    trained_on: int
    tested_on: int
    seed: int

    def table(self) -> str:
        """Return the scores as a text table."""
        rows = [("augmentation", "at home", "away", "training", "overhead")]
        for arm in self.arms:
            home, away, cost = (f"{share:.1%}" for share in (arm.home, arm.away, arm.cost))
            rows.append((arm.name, home, away, f"{arm.seconds:.1f} s", cost))
        lines = ["{:16}{:>10}{:>10}{:>12}{:>11}".format(*row) for row in rows]
        return "\n".join([*lines, NOTES.format(**vars(self))])

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON-ready values."""
        return asdict(self)


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread; more threads do not make such small networks faster."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run_demo(
    out: str | Path,
    *,
    seed: int = 0,
    generator: str = "reinhard-rgb",
    train_images: int = 900,
    epochs: int = 14,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Demo:
    """Fit a bank, train the classifier with and without it, test both and draw what they saw.

    Args:
        out: path of the contact sheet to write.
        seed: seed for the split of the digits, B's inks and photographs, and the networks.
        generator: name or path of the bank's generator.
        train_images: number of A's labelled images, of 1,797 digits.
        epochs: passes over these images, for each network.
        report: called with the number of epochs done and the total.

    Raises:
        ConfigError: no epoch, or too few images for training or testing.
    """
    digits, labels = load_digits()
    least, most = 2 * BATCH, len(digits) - UNLABELLED - BATCH
    if not (least <= train_images <= most and epochs >= 1):
        raise ConfigError(f"need {least}..{most} train_images and an epoch, got {train_images} and {epochs}.")
    rng = torch.Generator().manual_seed(seed)
    parts = train_images, UNLABELLED, len(digits) - train_images - UNLABELLED
    train, unlabelled, test = torch.randperm(len(digits), generator=rng).split(parts)
    seen, truth = draw_as_a(digits[train]), labels[test]
    home, away = draw_as_a(digits[test]), draw_as_b(digits[test], rng)
    bank = fit_bank(draw_as_b(digits[unlabelled], rng), generator)
    style = StyleAugment(bank, generator=generator, p=0.75)
    augments = {"plain": nn.Identity(), "colour jitter": jitter_colours, "style bank": style}
    ticks, total = count(1), len(augments) * epochs
    arms: list[_Arm] = []
    readings: list[list[Image.Image]] = []
    with torch.random.fork_rng(devices=[]), one_thread():  # leaves torch's global state as it was
        for name, augment in augments.items():
            torch.manual_seed(seed)  # every network starts from the same weights
            network, seconds, cost = _train_classifier(
                seen, labels[train], augment, epochs, tick=lambda: report(next(ticks), total)
            )
            scores = _accuracy(network, home, truth), _accuracy(network, away, truth)
            arms.append(_Arm(name, *scores, seconds, cost))
            label = f"{name}\n{scores[1]:.0%} right"
            readings.append([_card(label), *answer_cards(classify(network, away[:COLUMNS]), truth[:COLUMNS])])
        views = [style(flip_polarity(seen[:COLUMNS])) for _ in range(3)]
    styled = [picture_row("A styled\nlike B,\nin training", view) for view in views]
    first, last = picture_row("hospital A,\nlabelled", seen), picture_row("hospital B,\nthe test", away)
    save_image(contact_sheet([first, *styled, last, *readings]), Path(out))
    return Demo(arms, bank.describe(), len(train), len(test), seed)


def load_digits() -> tuple[Strokes, Labels]:
    """Read the 1,797 handwritten digits, enlarged smoothly (1 is ink), and their labels."""
    stored = load_file(pretrained_folder() / "digits.safetensors")
    ink = stored["images"][:, None].float() / 16
    strokes = F.interpolate(ink, size=(_SIDE, _SIDE), mode="bicubic").clamp(0, 1)
    return strokes, stored["labels"].long()


@cache
def sample_folder() -> str:
    """Write a folder of labelled samples: digits 0 to 3, 50 images of 64 x 64 pixels each.

    Returns:
        The path of a temporary folder, which is deleted when this process ends.
    """
    digits, labels = load_digits()
    folder = TEMPORARY.enter_context(tempfile.TemporaryDirectory(prefix="styleaug-samples-"))
    for label in range(4):
        for index, image in enumerate(draw_as_a(digits[labels == label][:50])):
            save_image(to_pil_image(image).resize((64, 64)), Path(folder, str(label), f"{index:02}.png"))
    return folder


def draw_as_a(strokes: Strokes) -> _Images:
    """Draw digits as hospital A does: white on black."""
    return to_dtype(strokes.repeat(1, 3, 1, 1), torch.uint8, scale=True)


def draw_as_b(strokes: Strokes, rng: torch.Generator) -> _Images:
    """Draw digits as hospital B does: in dark ink of any colour, on faded photographs."""
    ink = 0.35 * torch.rand(len(strokes), 3, 1, 1, generator=rng)
    paper = 0.4 + 0.6 * cut_photos(len(strokes), rng)
    return to_dtype(torch.lerp(paper, ink, strokes), torch.uint8, scale=True)


def cut_photos(number: int, rng: torch.Generator) -> Float[Tensor, "B 3 H W"]:
    """Cut random squares of 64 to 127 pixels from the sample photos, reduced to `_SIDE`."""
    photos = [pil_to_tensor(open_rgb(path, 256)) / 255 for path in sample_photos()]
    pieces = []
    for _ in range(number):
        photo = photos[int(torch.randint(len(photos), (), generator=rng))]
        side = int(torch.randint(64, 128, (), generator=rng))
        top, left = (int(torch.randint(length - side + 1, (), generator=rng)) for length in photo.shape[1:])
        pieces.append(resized_crop(photo, top, left, side, side, [_SIDE, _SIDE]))
    return torch.stack(pieces)


def fit_bank(images: _Images, generator: str) -> StyleBank:
    """Save images into a temporary folder and fit a bank to it."""
    with tempfile.TemporaryDirectory() as folder:
        for index, image in enumerate(images):
            save_image(to_pil_image(image), Path(folder, f"{index:04}.png"))
        return fit_style(folder, generator=generator, min_images=1).bank


def flip_polarity(images: _Images) -> _Images:
    """Invert half of the images. All arms do this, because styling keeps bright areas bright."""
    return torch.where(torch.rand(len(images), 1, 1, 1) < 0.5, 255 - images, images)


def jitter_colours(images: _Images) -> _Images:
    """Change brightness, contrast, saturation and hue at random; eight images share one draw."""
    jitter = v2.ColorJitter(0.5, 0.5, 0.5, 0.2)
    return torch.cat([jitter(part) for part in images.split(8)])


def _make_classifier() -> nn.Sequential:
    """Build three convolutions with batch norm and one linear layer: 26,000 parameters."""
    layers: list[nn.Module] = []
    for channels, width in ((3, 16), (16, 32), (32, 64)):
        convolution = nn.Conv2d(channels, width, 3, padding=1)
        layers += [convolution, nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * 64, 10))


def _train_classifier(
    images: _Images,
    labels: Labels,
    augment: Callable[[Tensor], Tensor],
    epochs: int,
    tick: Callable[[], None],
) -> tuple[nn.Module, float, float]:
    """Train a new classifier; return it, the seconds, and the ratio of time in `augment` to the rest."""
    network = _make_classifier()
    loader = DataLoader(TensorDataset(images, labels), BATCH, shuffle=True, drop_last=True)
    optimizer = torch.optim.AdamW(network.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=epochs * len(loader))
    begin, augmenting = perf_counter(), 0.0
    for _ in range(epochs):
        for batch, target in loader:
            batch, start = flip_polarity(batch), perf_counter()
            batch = augment(batch)
            augmenting += perf_counter() - start
            loss = F.cross_entropy(network(batch / 255), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        tick()
    seconds = perf_counter() - begin
    return network.eval(), seconds, augmenting / (seconds - augmenting)


@torch.inference_mode()
def classify(network: nn.Module, images: _Images) -> Labels:
    """Return the digits that the network reads, `(B,)`."""
    return torch.cat([network(part / 255).argmax(dim=1) for part in images.split(BATCH)])


def _accuracy(network: nn.Module, images: _Images, truth: Labels) -> float:
    """Compute the share of images that the network reads right."""
    return (classify(network, images) == truth).double().mean().item()


def picture_row(label: str, images: _Images) -> list[Image.Image]:
    """Return a row of tiles: a label, then the first images, enlarged."""
    return [
        _card(label),
        *(to_pil_image(image).resize((DIGIT_SIDE, DIGIT_SIDE)) for image in images[:COLUMNS]),
    ]


def answer_cards(read: Labels, truth: Labels) -> list[Image.Image]:
    """Return a row of tiles with the answers, green if they are right and red if not."""
    pairs = zip(read.tolist(), truth.tolist(), strict=True)
    return [_card(str(digit), "#cdebcf" if digit == true else "#f8c9c4", 40) for digit, true in pairs]


def _card(text: str, paper: str = "white", size: int = 14) -> Image.Image:
    """Return a tile with text on it."""
    tile, middle = Image.new("RGB", (DIGIT_SIDE, DIGIT_SIDE), paper), (DIGIT_SIDE / 2, DIGIT_SIDE / 2)
    ImageDraw.Draw(tile).text(middle, text, "black", anchor="mm", align="center", font_size=size)
    return tile
