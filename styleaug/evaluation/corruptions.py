"""The fifteen common corruptions of ImageNet-C and CIFAR-10-C, at five severities each.

Hendrycks & Dietterich 2019, *Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations*. The constants are those of the published sets; the code is our own, on torch and Pillow.
Where it departs from theirs:

- Frost comes from the photographs in the package imagecorruptions where that is installed. Without it
  crystals are drawn that have the colours and the contrast of these photographs, but are a stand-in:
  accuracies under frost do not compare with published ones.
- Motion blur and the streaks of snow follow ImageMagick's rule, without its rounding.
- Images may have any size from 32 pixels on. Lengths of noise, blur and JPEG stay as they are in pixels;
  fog and the lengths of the elastic transform grow with the image, frost once it is too small for it.
- ImageNet-C was saved as JPEG once more, at quality 85. Nothing is saved here.
"""

from collections.abc import Callable
from io import BytesIO
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from styleaug.errors import ConfigError, ImageError
from styleaug.evaluation.blurs import cut, defocus_blur, glass_blur, motion_blur, smooth, tensor, zoom_blur
from styleaug.evaluation.weather import fog, frost, snow
from styleaug.images import FLOATS, check_range

__all__ = ["CORRUPTIONS", "SEVERITIES", "Scale", "corrupt"]

Scale = Literal["imagenet", "cifar"]
SEVERITIES = (1, 2, 3, 4, 5)
LEAST_SIDE = 32

Pixels = Float[Tensor, "3 H W"]


def corrupt(
    images: Tensor, name: str, severity: int, *, seed: int = 0, scale: Scale = "imagenet", first: int = 0
) -> Tensor:
    """Corrupt a batch of images, each by its own draw.

    An image gets the same in any batch: its draws depend on `seed`, the corruption, the severity and its
    place in the set alone.

    Args:
        images: `(B, 3, H, W)`, uint8 or float in [0, 1], RGB, at least 32 pixels on each side. JPEG and
            pixelate pass through 8 bits.
        name: one of `CORRUPTIONS`.
        severity: 1 to 5.
        seed: 0 or more; repeats the draws.
        scale: `"imagenet"` has the constants of ImageNet-C, made for 224 pixels; `"cifar"` the weaker ones
            of CIFAR-10-C, made for 32.
        first: place of `images[0]` in its set, where a set is given in pieces.

    Returns:
        New images of the same shape, dtype and device. Integers are cut off, not rounded, as in the
        published sets.

    Raises:
        ConfigError: an unknown name or scale, or a severity, seed or place out of range.
        ImageError: other shapes or dtypes, or values outside [0, 1].

    Example:
        >>> noisy = corrupt(torch.rand(8, 3, 32, 32), "gaussian_noise", 3, scale="cifar")
    """
    check(images, name, severity, seed, scale, first)
    corruption = TABLE[name]
    constants = (corruption.cifar if scale == "cifar" else corruption.imagenet)[severity - 1]
    whole = images.dtype == torch.uint8
    pixels = images.detach().cpu().float() / (255 if whole else 1)
    number = CORRUPTIONS.index(name)
    rngs = [np.random.default_rng((seed, number, severity, first + i)) for i in range(len(images))]
    done = [corruption.apply(image, constants, rng) for image, rng in zip(pixels, rngs, strict=True)]
    if not done:
        return images.clone()
    values = torch.stack(done).clamp_(0, 1)
    return (cut(values) if whole else values).to(device=images.device, dtype=images.dtype)


def check(images: Tensor, name: str, severity: int, seed: int, scale: str, first: int) -> None:
    """Refuse what `corrupt` cannot take."""
    if name not in TABLE:
        raise ConfigError(f"corruptions are {', '.join(TABLE)}; got {name!r}.")
    if severity not in SEVERITIES:
        raise ConfigError(f"severity must be 1, 2, 3, 4 or 5, got {severity!r}.")
    if scale not in get_args(Scale):
        raise ConfigError(f'scale must be "imagenet" or "cifar", got {scale!r}.')
    if seed < 0 or first < 0:
        raise ConfigError(f"seed and first must be at least 0, got {seed} and {first}.")
    if images.ndim != 4 or images.shape[1] != 3 or min(images.shape[2:]) < LEAST_SIDE:
        raise ImageError(
            f"corruptions need RGB images (B, 3, H, W) of at least {LEAST_SIDE} pixels on each side, "
            f"got {tuple(images.shape)}."
        )
    if images.dtype != torch.uint8 and images.dtype not in FLOATS:
        raise ImageError(f"images must be uint8 or float in [0, 1], got {images.dtype}.")
    check_range(images)


def gaussian_noise(image: Pixels, c: tuple[float], rng: np.random.Generator) -> Pixels:
    """Add normal noise of deviation `c`."""
    return image + c[0] * tensor(rng.standard_normal(image.shape, dtype=np.float32))


def shot_noise(image: Pixels, c: tuple[float], rng: np.random.Generator) -> Pixels:
    """Count photons: at most `c` on average."""
    return tensor(rng.poisson(image.numpy() * c[0])) / c[0]


def impulse_noise(image: Pixels, c: tuple[float], rng: np.random.Generator) -> Pixels:
    """Set a share `c` of all values to 0 or 1."""
    luck = tensor(rng.random(image.shape, dtype=np.float32))
    return image.masked_fill(luck < c[0] / 2, 0).masked_fill(luck > 1 - c[0] / 2, 1)


def brightness(image: Pixels, c: tuple[float], rng: np.random.Generator) -> Pixels:
    """Raise the value of HSV by `c`, at the same hue and saturation."""
    value = image.amax(dim=0)
    raised = (value + c[0]).clamp_max(1)
    return torch.where(value > 0, image * (raised / value.clamp_min(1e-6)), raised)


def contrast(image: Pixels, c: tuple[float], rng: np.random.Generator) -> Pixels:
    """Leave `c` of the distance from each channel's mean."""
    mean = image.mean(dim=(1, 2), keepdim=True)
    return mean + c[0] * (image - mean)


def elastic_transform(image: Pixels, c: tuple[float, ...], rng: np.random.Generator) -> Pixels:
    """Shear the image, then move its pixels along a smooth random field.

    The lengths are given for a shorter side of `c[3]` pixels, and grow with it.
    """
    sway, sigma, jitter = (min(image.shape[1:]) / c[3] * length for length in c[:3])
    sheared = shear(image, rng.uniform(-jitter, jitter, (3, 2)))
    field = tensor(rng.uniform(-1, 1, (2, *image.shape[1:])))
    down, right = sway * smooth(field, sigma, reflect=True)
    height, width = image.shape[1:]
    rows, columns = torch.arange(height) + 0.5, torch.arange(width) + 0.5
    grid = torch.stack([(columns + right) / width, (rows[:, None] + down) / height], dim=-1) * 2 - 1
    return F.grid_sample(sheared[None], grid[None], padding_mode="reflection", align_corners=False)[0]


def shear(image: Pixels, jitter: np.ndarray) -> Pixels:
    """Apply the affine map that moves three corners of the middle square by `jitter`, in pixels."""
    height, width = image.shape[1:]
    x, y, arm = width // 2, height // 2, min(height, width) // 3
    corners = np.array([(x + arm, y + arm), (x + arm, y - arm), (x - arm, y - arm)], dtype=float)
    back = np.linalg.solve(np.column_stack([corners + jitter, np.ones(3)]), corners)
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    came = np.stack([columns, rows, np.ones_like(rows)], axis=-1) @ back
    grid = tensor(2 * came / (width - 1, height - 1) - 1)
    return F.grid_sample(image[None], grid[None], padding_mode="reflection", align_corners=True)[0]


def pixelate(image: Pixels, c: tuple[float], rng: np.random.Generator) -> Pixels:
    """Shrink the image to `c` of its size, and enlarge it again."""
    picture = to_picture(image)
    width, height = picture.size
    small = picture.resize((int(width * c[0]), int(height * c[0])), Image.Resampling.BOX)
    return from_picture(small.resize((width, height), Image.Resampling.BOX))


def jpeg_compression(image: Pixels, c: tuple[int], rng: np.random.Generator) -> Pixels:
    """Save the image as JPEG of quality `c`, and read it."""
    file = BytesIO()
    to_picture(image).save(file, "JPEG", quality=c[0])
    return from_picture(Image.open(file))


def to_picture(image: Pixels) -> Image.Image:
    """Round to 8 bits."""
    return Image.fromarray((image * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy())


def from_picture(picture: Image.Image) -> Pixels:
    """Give a picture as float."""
    return tensor(np.asarray(picture)).permute(2, 0, 1) / 255


Apply = Callable[[Tensor, Any, np.random.Generator], Tensor]


class Corruption(NamedTuple):
    """What a corruption does, and its constants at the five severities of each scale."""

    apply: Apply
    imagenet: tuple[tuple[float, ...], ...]
    cifar: tuple[tuple[float, ...], ...]


def each(*values: float) -> tuple[tuple[float, ...], ...]:
    """Make one constant for each severity."""
    return tuple((value,) for value in values)


TABLE = {
    "gaussian_noise": Corruption(
        gaussian_noise, each(0.08, 0.12, 0.18, 0.26, 0.38), each(0.04, 0.06, 0.08, 0.09, 0.10)
    ),
    "shot_noise": Corruption(shot_noise, each(60, 25, 12, 5, 3), each(500, 250, 100, 75, 50)),
    "impulse_noise": Corruption(
        impulse_noise, each(0.03, 0.06, 0.09, 0.17, 0.27), each(0.01, 0.02, 0.03, 0.05, 0.07)
    ),
    "defocus_blur": Corruption(
        defocus_blur,
        ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
        ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
    ),
    "glass_blur": Corruption(
        glass_blur,
        ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
        ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
    ),
    "motion_blur": Corruption(
        motion_blur,
        ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
        ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
    ),
    "zoom_blur": Corruption(
        zoom_blur,
        ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
        ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
    ),
    "snow": Corruption(
        snow,
        (
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ),
        (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
    ),
    "frost": Corruption(
        frost,
        ((1, 0.4, 1), (0.8, 0.6, 1), (0.7, 0.7, 1), (0.65, 0.7, 1), (0.6, 0.75, 1)),
        ((1, 0.2, 0.2), (1, 0.3, 0.2), (0.9, 0.4, 0.2), (0.85, 0.4, 0.2), (0.75, 0.45, 0.2)),
    ),
    "fog": Corruption(
        fog,
        ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
        ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
    ),
    "brightness": Corruption(brightness, each(0.1, 0.2, 0.3, 0.4, 0.5), each(0.05, 0.1, 0.15, 0.2, 0.3)),
    "contrast": Corruption(contrast, each(0.4, 0.3, 0.2, 0.1, 0.05), each(0.75, 0.5, 0.4, 0.3, 0.15)),
    "elastic_transform": Corruption(
        elastic_transform,
        (
            (488, 170.8, 24.4, 224),
            (488, 19.52, 48.8, 224),
            (12.2, 2.44, 4.88, 224),
            (17.08, 2.44, 4.88, 224),
            (29.28, 2.44, 4.88, 224),
        ),
        (
            (0, 0, 2.56, 32),
            (1.6, 6.4, 2.24, 32),
            (2.56, 1.92, 1.92, 32),
            (3.2, 1.28, 1.6, 32),
            (3.2, 0.96, 0.96, 32),
        ),
    ),
    "pixelate": Corruption(pixelate, each(0.6, 0.5, 0.4, 0.3, 0.25), each(0.95, 0.9, 0.85, 0.75, 0.65)),
    "jpeg_compression": Corruption(jpeg_compression, each(25, 18, 15, 10, 7), each(80, 65, 58, 50, 40)),
}
"""In the paper's order."""

CORRUPTIONS: tuple[str, ...] = tuple(TABLE)
