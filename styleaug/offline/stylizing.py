"""Style one image like another, without a bank: in memory or from file to file."""

import math
import os
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from styleaug.bank import Provenance, StyleBank
from styleaug.checks import check_count, check_share
from styleaug.errors import ConfigError, FileError, ImageError
from styleaug.generators.base import AbstractGenerator
from styleaug.io.files import Scan, open_image, save_image, suffix_of
from styleaug.io.pixels import images_in, opaque, open_style, shrink, usable
from styleaug.offline.copies import scan_pixels
from styleaug.transforms.augment import StyleAugment
from styleaug.transforms.bands import Bands
from styleaug.transforms.blends import Blend
from styleaug.transforms.options import refusing_old_names
from styleaug.transforms.params import StyleParams
from styleaug.weights import bank_names, load_generator

__all__ = ["stylize", "stylize_file"]

SIZE = 512
"""Networks see images reduced to at most SIZE x SIZE pixels, because their strokes have a fixed size."""

OPAQUE = (".jpg", ".jpeg", ".bmp")
"""Suffixes of file types without transparency."""


@refusing_old_names
def stylize(
    content: Any,
    style: Any,
    *,
    strength: float = 1.0,
    generator: str | Path | AbstractGenerator = "adain",
    blend: Blend | None = None,
    bands: Bands | None = None,
    size: int = SIZE,
) -> Any:
    """Return `content` in the style of another image. Nothing is random.

    Args:
        content: the path of an image, a PIL image of any mode, an array `(H, W)`, `(H, W, C)` or
            `(N, H, W, C)`, or a tensor `(C, H, W)` or `(N, C, H, W)`; integers, or floats in [0, 1]. With 2
            or 4 channels, the last is transparency and is kept. A list returns a list.
        style: an image of any size, of the same kinds. A list or batch holds one style for each content.
        strength: in [0, 1]; 1 is the full style.
        generator: a name, a path to weights, a run folder, or a generator. `"adain"` changes texture, strokes
            and colour; `"photo"` light and colour; `"reinhard-lab"` the colours as a whole.
        blend: how the styled image is laid over `content`, such as `"soft-light"`; the strength is then its
            opacity. `"color"` keeps the brightness of each pixel. See `StyleAugment`.
        bands: `"low"`: light and colours of the style without its texture; `"high"`: its texture without its
            colours. See `StyleAugment`.
        size: a network that paints strokes sees larger images reduced to about `size` x `size` pixels; its
            change is then enlarged. This keeps strokes visible in large photos.

    Returns:
        The same kind of image as `content`, with its size and dtype. For a path, an upright PIL image; or an
        array, if the file holds one or values that PIL cannot hold.

    Raises:
        FileError, ImageError: a content or style cannot be read.
        ConfigError: a number is out of range, the number of styles is wrong, or the generator has no codes.

    Example:
        >>> styled = stylize(Image.open("photo.jpg"), "painting.jpg", strength=0.8)  # doctest: +SKIP
    """
    painter = _Painter(generator, strength, size, blend=blend, bands=bands)
    codes = painter.read(style)
    if not isinstance(content, list | tuple):
        return painter.paint(content, codes)
    if len(codes) not in (1, len(content)):
        raise unequal(len(codes), len(content))
    return [
        painter.paint(image, code[None])
        for image, code in zip(content, codes.expand(len(content), -1), strict=True)
    ]


def stylize_file(content: str | Path, style: Any, out: str | Path, **options: Any) -> Path:
    """Write an image file in the style of another image; size, bit depth and metadata are kept.

    Args:
        content: the file to style; it is never changed.
        style: see `stylize`.
        out: the file to write; its suffix gives the type.
        options: see `stylize`.

    Raises:
        FileError: a file cannot be read or written, or `out` is one of the files that are read.
    """
    out = Path(out)
    for read in (content, style):
        if isinstance(read, str | os.PathLike) and same_file(Path(read), out):
            raise FileError(f"{out} is one of the files that are read; write to another file.")
    picture = open_image(Path(content))
    kept = suffix_of(Path(content))
    if isinstance(picture, Scan) and suffix_of(out) != kept:
        raise FileError(f"{content} keeps its type, so that no value is lost; write it to a file {kept}.")
    if isinstance(picture, Image.Image) and picture.mode in ("LA", "RGBA") and suffix_of(out) in OPAQUE:
        raise FileError(f"{content} has transparency, which {suffix_of(out)} cannot hold; write a .png file.")
    save_image(stylize(picture, style, **options), out)
    return out


def same_file(one: Path, other: Path) -> bool:
    """Return True if two paths lead to the same file, also through links."""
    try:
        return one.resolve() == other.resolve() or one.samefile(other)
    except OSError:
        return False


class _Painter:
    """A generator with the options of `stylize`."""

    def __init__(
        self, generator: Any, strength: float, size: int, *, blend: Blend | None, bands: Bands | None
    ):
        self.network = generator if isinstance(generator, AbstractGenerator) else load_generator(generator)
        if not self.network.code_length:
            raise ConfigError(
                f"{self.network.name!r} has one style and takes no other. Use it without a style image: "
                f"StyleAugment(generator={generator!r}, p=1)(image)."
            )
        self.strength = check_share("strength", strength)
        self.options: dict[str, Any] = {"blend": blend, "bands": bands}
        self.size = check_count("size", size)

    def read(self, style: Any) -> Float[Tensor, "N S"]:
        """Return the codes of the style images."""
        side, codes = self.network.code_size, []
        for image in images_in(style):
            if isinstance(image, Path) and str(image) in bank_names() and not image.exists():
                raise ConfigError(
                    f"{str(image)!r} is a bank, whose styles StyleAugment draws; give a style image's path."
                )
            with torch.inference_mode():
                codes.append(self.network.encode_style(shrink(open_style(image, side), side)).mean(dim=0))
        if not codes:
            raise ConfigError("there is no style image: the list is empty.")
        return torch.stack(codes)

    def paint(self, content: Any, codes: Float[Tensor, "N S"]) -> Any:
        """Stylise one image or a batch, with one style for all or one for each."""
        if isinstance(content, str | os.PathLike):
            painted = self.paint(open_image(Path(content)), codes)
            return painted.frames.squeeze() if isinstance(painted, Scan) else painted
        if isinstance(content, Scan):
            frames, restore = scan_pixels(content)
            return restore(self.run(self.network, frames, codes))
        if isinstance(content, Tensor) and content.ndim > 4:
            raise ImageError(
                f"give an image or a batch, got {tuple(content.shape)}; StyleVideo styles clips."
            )
        colours, put_back = opaque(usable(content))
        strokes = self.network.margin != 0  # others work pixel by pixel and can see the whole image
        painted = self.run(Reduced(self.network, self.size) if strokes else self.network, colours, codes)
        return put_back(painted)

    def run(self, generator: AbstractGenerator, images: Any, codes: Float[Tensor, "N S"]) -> Any:
        """Stylise all images of a batch in any form."""
        bank = StyleBank(codes, Provenance(generator.name, generator.fingerprint, len(codes)))
        stylizer = StyleAugment(bank, generator=generator, **self.options)
        rows = stylizer.rows_of(images)
        if len(codes) not in (1, rows):
            raise unequal(len(codes), rows)
        drawn = StyleParams(
            rows=torch.arange(rows),
            strength=torch.full((rows,), self.strength),
            codes=bank.codes.expand(rows, -1),
            sources=torch.arange(len(codes)).expand(rows)[:, None],
            shares=torch.ones(rows, 1),
            fields=None,
        )
        return stylizer.apply(images, drawn)


class Reduced(AbstractGenerator):
    """A network that sees large images reduced; its change is enlarged and added to them."""

    network: AbstractGenerator
    size: int

    def __init__(self, network: AbstractGenerator, size: int):
        super().__init__()
        self.network, self.size = network, size
        for name in ("name", "code_length", "code_size", "takes_bfloat16", "least_side"):
            setattr(self, name, getattr(network, name))

    @property
    def fingerprint(self) -> str:
        """Return the network's fingerprint, because its codes are used."""
        return self.network.fingerprint

    def encode_style(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B S"]:
        """Return the network's codes of style images."""
        return self.network.encode_style(images)

    def forward(
        self, images: Float[Tensor, "B 3 H W"], codes: Float[Tensor, "B S"], strength: Float[Tensor, " B"]
    ) -> Float[Tensor, "B 3 H W"]:
        """Stylise the reduced images, and add the enlarged change to the originals."""
        sides = images.shape[-2:]
        scale = max(self.size / math.sqrt(math.prod(sides)), self.least_side / min(sides))
        if scale >= 1:
            return self.network(images, codes, strength)
        reduced = [max(1, round(side * scale)) for side in sides]
        small = F.interpolate(images, reduced, mode="bilinear", antialias=True).clamp(0, 1)
        change = self.network(small, codes, strength) - small
        return F.interpolate(change, sides, mode="bicubic").add_(images).clamp_(0, 1)


def unequal(styles: int, images: int) -> ConfigError:
    """Return the error for a number of styles that does not match the images."""
    return ConfigError(
        f"give one style for all, or one for each image; got {styles} styles for {images} images."
    )
