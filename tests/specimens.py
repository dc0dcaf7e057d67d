"""Small generators, banks and images that the tests share. None needs shipped weights."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from styleaug.bank import Provenance, StyleBank
from styleaug.generators.adain import AdaIN
from styleaug.generators.base import AbstractGenerator
from styleaug.generators.cyclegan import CycleGAN
from styleaug.generators.patchswap import PatchSwap
from styleaug.generators.photo import Photo
from styleaug.generators.pix2pix import Pix2Pix
from styleaug.generators.vaegan import VAEGAN
from styleaug.weights import COLOR_GENERATORS, RANDOM_GENERATORS, STAIN_GENERATORS, load_generator

TINY = {
    "tiny-adain": lambda: tiny_adain(),
    "tiny-photo": lambda: tiny_photo(),
    "tiny-patchswap": lambda: tiny_patchswap(),
    "tiny-cyclegan": lambda: tiny_cyclegan(),
    "tiny-pix2pix": lambda: tiny_pix2pix(),
    "tiny-vaegan": lambda: tiny_vaegan(),
}
GENERATORS = [*COLOR_GENERATORS, *STAIN_GENERATORS, *RANDOM_GENERATORS, *TINY]
"""What `generator` makes."""


@cache
def generator(name: str) -> AbstractGenerator:
    """Make a generator by name; `"tiny-..."` are networks of a few thousand weights."""
    return TINY[name]() if name in TINY else load_generator(name)


def tiny_adain(seed: int = 0) -> AdaIN:
    """Make a network that paints: its weights are random, but none of its layers starts near zero."""
    network = seeded(lambda: AdaIN((4, 4, 8), blocks=1, hidden=8), seed)
    network.least_side = 1  # as its strokes are of no size
    return loud(network, network.to_pixels, network.read_code[2])


def tiny_photo(seed: int = 0) -> Photo:
    """Make a network that changes light and colours, with random weights."""
    network = seeded(lambda: Photo((4, 4), channels=8, blocks=1, hidden=8, tones=3), seed)
    return loud(network, network.to_grid, network.read_codes[2])


def tiny_patchswap(seed: int = 0, *, patches: int = 4) -> PatchSwap:
    """Make a network that paints, with random weights and a dictionary of few patches."""
    return PatchSwap(tiny_adain(seed), patches=patches).eval().requires_grad_(False)


def tiny_cyclegan(seed: int = 0) -> CycleGAN:
    """Make a translator that folds and skips, with random weights."""
    network = seeded(lambda: CycleGAN(4, blocks=2, fold=2, skip=True), seed)
    return loud(network, network.tail.last)


def tiny_pix2pix(seed: int = 0) -> Pix2Pix:
    """Make a U-Net with random weights."""
    network = seeded(lambda: Pix2Pix(4, depth=3), seed)
    return loud(network, network.up[0].conv)


def tiny_vaegan(seed: int = 0) -> VAEGAN:
    """Make a translator with a code of 3 numbers, with random weights."""
    network = seeded(lambda: VAEGAN(4, blocks=1, latent=3, skip=True), seed)
    return loud(network, network.tail.last)


def seeded(make: Callable[[], Any], seed: int) -> Any:
    """Make something random without moving the global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def loud(network: Any, *layers: nn.Module) -> Any:
    """Give `layers` weights that are not close to zero."""
    for layer in layers:
        assert isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)
        seeded(lambda weight=layer.weight: nn.init.normal_(weight, std=0.1), 0)
    return network.eval().requires_grad_(False)


def photo(height: int = 24, width: int = 32, *, seed: int = 0, channels: int = 3) -> Tensor:
    """Make a picture `(C, H, W)` in [0, 1]: a slope, a disc and some noise, in colours of its own."""
    rng = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    slope = (y * torch.rand((), generator=rng) + x * torch.rand((), generator=rng)) / 2
    disc = ((y - 0.5).square() + (x - 0.5).square() < 0.08).float()
    low, high = torch.rand(2, channels, 1, 1, generator=rng)
    noise = 0.05 * torch.randn(channels, height, width, generator=rng)
    return (0.1 + 0.5 * low * slope + 0.3 * high * disc + noise).clamp(0, 1)


def photos(count: int, height: int = 24, width: int = 32, *, channels: int = 3) -> Tensor:
    """Make pictures `(B, C, H, W)`, no two alike."""
    return torch.stack([photo(height, width, seed=seed, channels=channels) for seed in range(count)])


def bank(name: str = "tiny-adain", styles: int = 5) -> StyleBank:
    """Fit a bank of bright, unlike pictures."""
    return bank_of(generator(name), styles)


def bank_of(network: AbstractGenerator, styles: int = 5) -> StyleBank:
    """Fit a bank for this generator."""
    pictures = 1 - photos(styles, 20, 20).flip(0)
    codes = network.encode_style(pictures)
    return StyleBank(codes, Provenance(network.name, network.fingerprint, styles))


def pil(mode: str = "RGB", size: tuple[int, int] = (32, 24), *, seed: int = 0) -> Image.Image:
    """Make a PIL picture of any mode that can be stylised."""
    rng = np.random.default_rng(seed)
    if mode == "I;16":
        return Image.fromarray(rng.integers(0, 65536, size[::-1], dtype=np.uint16))
    channels = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4}[mode]
    pixels = rng.integers(0, 256, (*size[::-1], channels), dtype=np.uint8)
    return Image.fromarray(pixels.squeeze(2) if channels == 1 else pixels)


class Spy(AbstractGenerator):
    """Inverts images, and counts the rows that it was given."""

    name = "spy"
    code_length = 1

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []
        self.encoded = 0

    def encode_style(self, images: Tensor) -> Tensor:
        """Read the mean."""
        self.encoded += len(images)
        return images.mean(dim=(1, 2, 3))[:, None]

    def forward(self, images: Tensor, codes: Tensor, strength: Tensor) -> Tensor:
        """Invert."""
        self.seen.append(images.clone())
        return torch.lerp(images, 1 - images, strength[:, None, None, None])

    @property
    def rows(self) -> int:
        """Count the rows painted so far."""
        return sum(len(images) for images in self.seen)


def astronaut(side: int) -> np.ndarray:
    """Show the head of Eileen Collins, in a public-domain photograph of NASA that scikit-image carries."""
    from skimage import data

    head = Image.fromarray(data.astronaut()[20:270, 100:350])
    return np.array(head.resize((side, side), Image.Resampling.LANCZOS))
