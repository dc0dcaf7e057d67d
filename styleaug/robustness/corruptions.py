"""The fifteen common corruptions of ImageNet-C and CIFAR-10-C, at five severities each.

Hendrycks & Dietterich 2019, *Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations*. The constants are those of the published sets. The code is our own, on torch and Pillow.
The differences:

- Frost uses the photographs in the package imagecorruptions if it is installed. Otherwise crystals are
  drawn with the colours and the contrast of these photographs; accuracies with them are not comparable
  with published ones.
- Motion blur and the streaks of snow follow ImageMagick's rule, without its rounding.
- Images may have any size from 32 pixels. Lengths of noise, blur and JPEG stay constant in pixels. Fog and
  the lengths of the elastic transform grow with the image, as does frost if it is too small for the image.
- ImageNet-C was finally saved as JPEG at quality 85. Nothing is saved here.
"""

import math
from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from PIL import Image, ImageDraw, ImageFilter
from torch import Tensor

from styleaug.errors import ConfigError, ImageError
from styleaug.images import FLOATS, check_range, luminance

__all__ = [
    "CORRUPTIONS",
    "SEVERITIES",
    "Scale",
    "corrupt",
    "defocus_blur",
    "drag",
    "fog",
    "frost",
    "frost_photographs",
    "glass_blur",
    "motion_blur",
    "snow",
    "tensor",
    "zoom_blur",
]

_Pixels = Float[Tensor, "3 H W"]
Planes = Float[Tensor, "C H W"]


def _cut(values: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
    """Scale [0, 1] to whole numbers 0..255, rounding down."""
    # The small addend makes sure that k / 255 * 255 becomes k.
    return (values * 255 + 1e-3).floor_()


def tensor(values: np.ndarray) -> Tensor:
    """Convert drawn numbers to a float32 tensor."""
    return torch.from_numpy(np.asarray(values, dtype=np.float32))


def defocus_blur(image: _Pixels, c: tuple[float, float], rng: np.random.Generator) -> _Pixels:
    """Blur by a disc of radius `c[0]` that is smoothed with sigma `c[1]`."""
    kernel = disc(*c)
    reach = kernel.shape[0] // 2
    padded = F.pad(image, (reach,) * 4, mode="reflect")
    return F.conv2d(padded[:, None], kernel[None, None])[:, 0]


@lru_cache
def disc(radius: float, softness: float) -> Float[Tensor, "K K"]:
    """Return the kernel of a lens: a smoothed disc."""
    reach = 8 if radius <= 8 else math.ceil(radius)
    steps = torch.arange(-reach, reach + 1.0)
    kernel = (steps[:, None] ** 2 + steps**2 <= radius**2).float()
    width = 1 if radius <= 8 else 2
    soft = torch.exp(-(torch.arange(-width, width + 1.0) ** 2) / (2 * softness**2))
    soft = (soft / soft.sum()).outer(soft / soft.sum())
    padded = F.pad((kernel / kernel.sum())[None], (width,) * 4, mode="reflect")
    return F.conv2d(padded, soft[None, None])[0]


def glass_blur(image: _Pixels, c: tuple[float, int, int], rng: np.random.Generator) -> _Pixels:
    """Move pixels by up to `c[1]`, `c[2]` times, between two blurs of sigma `c[0]`.

    The original code is meant to swap neighbours, one after the other. Because of NumPy's views it copies
    them, so one pixel may move several places. The published images have this effect, and so do these.
    """
    sigma, reach, rounds = c
    shape = image.shape
    shuffled = (_cut(_smooth(image, sigma)) / 255).flatten(1)
    for _ in range(rounds):
        shuffled = shuffled[:, copied_from(shape[1], shape[2], reach, rng)]
    return _smooth(shuffled.view(shape), sigma)


def copied_from(height: int, width: int, reach: int, rng: np.random.Generator) -> Int[Tensor, " N"]:
    """Compute the source of each pixel when all copy a neighbour, from the last to the first.

    A neighbour that has already copied passes on its new value. Such chains are resolved by doubling, all at
    once, with the same result as step by step.
    """
    places = torch.arange(height * width).view(height, width)
    inside = torch.zeros(height, width, dtype=torch.bool)
    inside[reach + 1 : height - reach + 1, reach + 1 : width - reach + 1] = True
    down, right = torch.from_numpy(rng.integers(-reach, reach, size=(2, height, width)))
    source = torch.where(inside, places + width * down + right, places).flatten()
    received = inside.flatten()[source] & (source > places.flatten())
    # Entries from `count` on are the original pixels.
    count = len(source)
    links = torch.cat([source + count * ~received, places.flatten() + count])
    while not (links[:count] >= count).all():
        links = links[links]
    return links[:count] - count


def _smooth(planes: Planes, sigma: float, *, reflect: bool = False) -> Planes:
    """Blur by a Gaussian up to 4 sigma with a repeated border, or 3 sigma with a reflected one."""
    rows, columns = (smoothing(length, sigma, reflect) for length in planes.shape[-2:])
    return rows @ planes @ columns.T


@lru_cache(maxsize=64)
def smoothing(length: int, sigma: float, reflect: bool) -> Float[Tensor, "L L"]:
    """Return the matrix that blurs along one axis."""
    reach = int((3 if reflect else 4) * sigma + 0.5)
    steps = np.arange(-reach, reach + 1)
    weights = np.exp(-0.5 * (steps / sigma) ** 2) if reach else np.ones(1)
    taps = np.arange(length)[:, None] + steps
    if reflect:
        taps %= 2 * length
        taps = np.minimum(taps, 2 * length - 1 - taps)
    matrix = np.zeros((length, length))
    np.add.at(matrix, (np.arange(length)[:, None], taps.clip(0, length - 1)), weights / weights.sum())
    return tensor(matrix)


def motion_blur(image: _Pixels, c: tuple[int, float], rng: np.random.Generator) -> _Pixels:
    """Blur the image along a line of `2 c[0]` pixels, within 45 degrees of the horizontal."""
    return drag(image, *c, rng.uniform(-45, 45))


def drag(planes: Planes, radius: int, sigma: float, angle: float) -> Planes:
    """Average along a line from each pixel, weighted by half a Gaussian of `sigma` pixels."""
    height, width = planes.shape[1:]
    reach = 2 * radius + 1
    steps = np.arange(reach)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    weights /= weights.sum()
    turned = math.radians(angle)
    down = reach + np.ceil(steps * math.sin(turned) - 0.5).astype(int)
    right = reach + np.ceil(steps * math.cos(turned) - 0.5).astype(int)
    padded = np.pad(planes.numpy(), ((0, 0), (reach, reach), (reach, reach)), mode="edge")
    dragged = np.zeros(planes.shape, dtype=np.float32)
    for weight, y, x in zip(weights.tolist(), down, right, strict=True):
        dragged += weight * padded[:, y : y + height, x : x + width]
    return torch.from_numpy(dragged)


def zoom_blur(image: _Pixels, c: tuple[float, float], rng: np.random.Generator) -> _Pixels:
    """Average the image and its enlargements, from 1 up to `c[0]` in steps of `c[1]`."""
    factors = np.arange(1, *c).tolist()
    total = image.clone()
    for factor in factors:
        total += _enlarged(image, factor)
    return total / (len(factors) + 1)


def _enlarged(planes: Planes, factor: float) -> Planes:
    """Enlarge the middle of the image to its full size."""
    (top, height, high), (left, width, wide) = (middle(length, factor) for length in planes.shape[1:])
    part = planes[None, :, top : top + height, left : left + width]
    zoomed = F.interpolate(part, size=(high, wide), mode="bilinear", align_corners=True)[0]
    return zoomed[:, : planes.shape[1], : planes.shape[2]]


def middle(length: int, factor: float) -> tuple[int, int, int]:
    """Compute the start, the length and the enlarged length of the part to enlarge."""
    part = math.ceil(length / factor)
    return (length - part) // 2, part, round(part * factor)


_PICTURES = 5
"""Number of pictures of frost. The original has a sixth photograph, which it never draws."""
COLOURS = (
    ((78, 149, 166), (27, 16, 15)),
    ((201, 205, 214), (21, 22, 23)),
    ((201, 205, 214), (21, 22, 23)),
    ((138, 153, 165), (28, 28, 30)),
    ((112, 123, 135), (44, 43, 42)),
)
"""Mean and deviation of red, green and blue in the photographs and the drawn pictures, 0..255."""
_WIDTH, _HEIGHT = DRAWN = (640, 480)
"""Width and height of the drawn pictures in pixels, similar to those of the photographs."""
_ROOM = 1.1
"""Least ratio of a picture's size to the image's, so that crops can differ."""


def snow(image: _Pixels, c: tuple[float, ...], rng: np.random.Generator) -> _Pixels:
    """Whiten the image, and add flakes that fall in two opposite directions."""
    mean, deviation, size, least, radius, sigma, kept = c
    noise = mean + deviation * tensor(rng.standard_normal(image.shape[1:], dtype=np.float32))
    flakes = _enlarged(noise[None], size)
    flakes = flakes.masked_fill(flakes < least, 0).clamp_(0, 1)
    flakes = drag(flakes, int(radius), sigma, rng.uniform(-135, -45))
    pale = torch.maximum(image, 1.5 * luminance(image[None])[0] + 0.5)
    return kept * image + (1 - kept) * pale + flakes + flakes.flip(1, 2)


def frost(image: _Pixels, c: tuple[float, float, float], rng: np.random.Generator) -> _Pixels:
    """Add a crop of a picture of frost to the image; the picture is scaled by at least `c[2]`."""
    height, width = image.shape[1:]
    picture = frost_picture(int(rng.integers(_PICTURES)), (height, width), c[2])
    top = rng.integers(picture.shape[1] - height)
    left = rng.integers(picture.shape[2] - width)
    return c[0] * image + c[1] * picture[:, top : top + height, left : left + width]


def fog(image: _Pixels, c: tuple[float, float], rng: np.random.Generator) -> _Pixels:
    """Add a cloud of height `c[0]`, and scale the sum back to the image's brightest value."""
    height, width = image.shape[1:]
    cloud = plasma(1 << (max(height, width) - 1).bit_length(), c[1], rng)[:height, :width]
    most = float(image.max())
    return (image + c[0] * tensor(cloud)) * most / (most + c[0])


def plasma(side: int, decay: float, rng: np.random.Generator) -> np.ndarray:
    """Draw a cloud in [0, 1] by the diamond-square method on a torus.

    Args:
        side: side in pixels, a power of two.
        decay: the deviation is divided by the square of this number at each halving.
        rng: random generator of the draws.
    """
    cloud = np.zeros((side, side))
    step, swing = side, 1.0
    while step > 1:
        half = step // 2
        corners = cloud[::step, ::step]
        jolts = rng.uniform(-swing, swing, (3, *corners.shape))
        rows = corners + np.roll(corners, -1, axis=0)
        centres = (rows + np.roll(rows, -1, axis=1)) / 4 + jolts[0]
        cloud[half::step, half::step] = centres
        across = corners + np.roll(corners, -1, axis=1)
        cloud[::step, half::step] = (across + centres + np.roll(centres, 1, axis=0)) / 4 + jolts[1]
        cloud[half::step, ::step] = (rows + centres + np.roll(centres, 1, axis=1)) / 4 + jolts[2]
        step, swing = half, swing / decay**2
    cloud -= cloud.min()
    return cloud / cloud.max()


def frost_photographs() -> list[Path]:
    """List the five photographs of frost in the package imagecorruptions; empty if not installed.

    The package is located, not imported.
    """
    found = find_spec("imagecorruptions")
    if found is None or found.origin is None:
        return []
    folder = Path(found.origin).parent / "frost"
    names = ("frost1.png", "frost2.png", "frost3.png", "frost4.jpg", "frost5.jpg")
    paths = [folder / name for name in names]
    return paths if all(path.is_file() for path in paths) else []


@lru_cache(maxsize=2 * _PICTURES)
def frost_picture(index: int, size: tuple[int, int], scale: float) -> Float[Tensor, "3 H2 W2"]:
    """Return a picture of frost in [0, 1], larger than the image.

    Args:
        index: index of the picture, 0..4.
        size: height and width of the image.
        scale: least scale of the picture; it is larger if the image requires it.
    """
    photographs = frost_photographs()
    if photographs:
        pixels = np.array(Image.open(photographs[index]).convert("RGB"), dtype=np.float32) / 255
    else:
        pixels = drawn_frost(index)
    picture = torch.from_numpy(pixels).permute(2, 0, 1)
    needed = max(side / length for side, length in zip(size, picture.shape[1:], strict=True))
    factor = max(scale, _ROOM * needed)
    resized = [math.ceil(factor * length) for length in picture.shape[1:]]
    # Without antialiasing, as in the original: at a fifth of the size only every fifth pixel counts.
    mode = "bilinear" if factor < 1 else "bicubic"
    return F.interpolate(picture[None], size=resized, mode=mode, align_corners=False)[0].clamp_(0, 1)


def drawn_frost(index: int) -> np.ndarray:
    """Draw feathers of ice in the colours of a photograph, `(H, W, 3)` float32 in [0, 1]."""
    rng = np.random.default_rng((index, 2019))
    canvas = Image.new("L", (2 * _WIDTH, 2 * _HEIGHT), 90)
    pen = ImageDraw.Draw(canvas)
    for _ in range(700):
        _feather(pen, rng)
    ice = np.asarray(canvas.resize(DRAWN, Image.Resampling.BOX), dtype=np.float32)
    soft = np.asarray(canvas.filter(ImageFilter.GaussianBlur(60)).resize(DRAWN), dtype=np.float32)
    # Ice grows in patches; thin ice is transparent.
    patches = rng.normal(size=(5, 7)).astype(np.float32)
    thickness = np.asarray(Image.fromarray(patches).resize(DRAWN, Image.Resampling.BICUBIC))
    relief = (ice - soft) / ice.std() * np.clip(1 + 0.5 * thickness, 0.3, 2) + thickness
    relief = (relief - relief.mean()) / relief.std()
    mean, deviation = (np.array(values, dtype=np.float32) / 255 for values in COLOURS[index])
    return np.clip(mean + deviation * relief[..., None], 0, 1)


def _feather(pen: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    """Draw one crystal: a stem, branches at 60 degrees on both sides, and twigs on these."""
    x, y = rng.uniform(0, 2 * _WIDTH), rng.uniform(0, 2 * _HEIGHT)
    length, angle, bend = rng.uniform(60, 260), rng.uniform(0, 2 * math.pi), rng.normal(0, 0.4)
    light, reach = int(rng.integers(90, 235)), rng.uniform(0.25, 0.5)
    steps = int(length / 14)
    for step in range(steps):
        angle += bend / steps
        x2, y2 = x + 14 * math.cos(angle), y + 14 * math.sin(angle)
        pen.line((x, y, x2, y2), fill=light + 20, width=4)
        for side in (-1, 1):
            # The two sides reflect the light differently.
            shade = light + 12 * side + int(rng.integers(-15, 16))
            branch = reach * length * (1 - step / steps) * rng.uniform(0.7, 1.1)
            twigs(pen, (x, y), branch, angle + side * math.pi / 3, shade)
        x, y = x2, y2


def twigs(
    pen: ImageDraw.ImageDraw, start: tuple[float, float], length: float, angle: float, shade: int
) -> None:
    """Draw a branch with short twigs."""
    x, y = start
    end = (x + length * math.cos(angle), y + length * math.sin(angle))
    pen.line((x, y, *end), fill=shade, width=5)
    for part in np.arange(0.15, 1, 16 / max(length, 17)):
        stem = (x + part * (end[0] - x), y + part * (end[1] - y))
        for side in (-1, 1):
            turned, short = angle + side * math.pi / 3, 0.3 * length * (1 - part) + 3
            tip = (stem[0] + short * math.cos(turned), stem[1] + short * math.sin(turned))
            pen.line((*stem, *tip), fill=shade - 30 * side, width=2)


Scale = Literal["imagenet", "cifar"]
SEVERITIES = (1, 2, 3, 4, 5)
_LEAST_SIDE = 32


def corrupt(
    images: Tensor, name: str, severity: int, *, seed: int = 0, scale: Scale = "imagenet", first: int = 0
) -> Tensor:
    """Corrupt a batch of images, each with its own draws.

    The result for an image does not depend on its batch: the draws depend only on `seed`, the corruption, the
    severity and the index of the image in its set.

    Args:
        images: `(B, 3, H, W)`, uint8 or float in [0, 1], RGB, at least 32 pixels on each side. JPEG and
                pixelate round to 8 bits.
        name: one of `CORRUPTIONS`.
        severity: 1 to 5.
        seed: seed of the draws, 0 or more.
        scale: `"imagenet"` for the constants of ImageNet-C, made for 224 pixels; `"cifar"` for the weaker
            constants of CIFAR-10-C, made for 32.
        first: index of `images[0]` in its set, if the set is corrupted in parts.

    Returns:
            New images of the same shape, dtype and device. Integers are rounded down, as in the published
            sets.

    Raises:
            ConfigError: a name or scale is unknown, or a severity, seed or index is out of range.
            ImageError: images of other shapes or dtypes, or with values outside [0, 1].

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
    return (_cut(values) if whole else values).to(device=images.device, dtype=images.dtype)


def check(images: Tensor, name: str, severity: int, seed: int, scale: str, first: int) -> None:
    """Check the arguments of `corrupt`."""
    if name not in TABLE:
        raise ConfigError(f"corruptions are {', '.join(TABLE)}; got {name!r}.")
    if severity not in SEVERITIES:
        raise ConfigError(f"severity must be 1, 2, 3, 4 or 5, got {severity!r}.")
    if scale not in get_args(Scale):
        raise ConfigError(f'scale must be "imagenet" or "cifar", got {scale!r}.')
    if seed < 0 or first < 0:
        raise ConfigError(f"seed and first must be at least 0, got {seed} and {first}.")
    if images.ndim != 4 or images.shape[1] != 3 or min(images.shape[2:]) < _LEAST_SIDE:
        raise ImageError(
            f"corruptions need RGB images (B, 3, H, W) of at least {_LEAST_SIDE} pixels on each side, "
            f"got {tuple(images.shape)}."
        )
    if images.dtype != torch.uint8 and images.dtype not in FLOATS:
        raise ImageError(f"images must be uint8 or float in [0, 1], got {images.dtype}.")
    check_range(images)


def gaussian_noise(image: _Pixels, c: tuple[float], rng: np.random.Generator) -> _Pixels:
    """Add normal noise of deviation `c`."""
    return image + c[0] * tensor(rng.standard_normal(image.shape, dtype=np.float32))


def shot_noise(image: _Pixels, c: tuple[float], rng: np.random.Generator) -> _Pixels:
    """Add Poisson noise, with `c` photons on average at white."""
    return tensor(rng.poisson(image.numpy() * c[0])) / c[0]


def impulse_noise(image: _Pixels, c: tuple[float], rng: np.random.Generator) -> _Pixels:
    """Set a share `c` of all values to 0 or 1."""
    luck = tensor(rng.random(image.shape, dtype=np.float32))
    return image.masked_fill(luck < c[0] / 2, 0).masked_fill(luck > 1 - c[0] / 2, 1)


def _brightness(image: _Pixels, c: tuple[float], rng: np.random.Generator) -> _Pixels:
    """Add `c` to the value of HSV, with the same hue and saturation."""
    value = image.amax(dim=0)
    raised = (value + c[0]).clamp_max(1)
    return torch.where(value > 0, image * (raised / value.clamp_min(1e-6)), raised)


def contrast(image: _Pixels, c: tuple[float], rng: np.random.Generator) -> _Pixels:
    """Multiply the distance from each channel's mean by `c`."""
    mean = image.mean(dim=(1, 2), keepdim=True)
    return mean + c[0] * (image - mean)


def elastic_transform(image: _Pixels, c: tuple[float, ...], rng: np.random.Generator) -> _Pixels:
    """Shear the image, then move its pixels along a smooth random field.

    The lengths are given for a shorter side of `c[3]` pixels, and are scaled with it.
    """
    sway, sigma, jitter = (min(image.shape[1:]) / c[3] * length for length in c[:3])
    sheared = shear(image, rng.uniform(-jitter, jitter, (3, 2)))
    field = tensor(rng.uniform(-1, 1, (2, *image.shape[1:])))
    down, right = sway * _smooth(field, sigma, reflect=True)
    height, width = image.shape[1:]
    rows, columns = torch.arange(height) + 0.5, torch.arange(width) + 0.5
    grid = torch.stack([(columns + right) / width, (rows[:, None] + down) / height], dim=-1) * 2 - 1
    return F.grid_sample(sheared[None], grid[None], padding_mode="reflection", align_corners=False)[0]


def shear(image: _Pixels, jitter: np.ndarray) -> _Pixels:
    """Apply the affine map that moves three corners of the middle square by `jitter`, in pixels."""
    height, width = image.shape[1:]
    x, y, arm = width // 2, height // 2, min(height, width) // 3
    corners = np.array([(x + arm, y + arm), (x + arm, y - arm), (x - arm, y - arm)], dtype=float)
    back = np.linalg.solve(np.column_stack([corners + jitter, np.ones(3)]), corners)
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    came = np.stack([columns, rows, np.ones_like(rows)], axis=-1) @ back
    grid = tensor(2 * came / (width - 1, height - 1) - 1)
    return F.grid_sample(image[None], grid[None], padding_mode="reflection", align_corners=True)[0]


def pixelate(image: _Pixels, c: tuple[float], rng: np.random.Generator) -> _Pixels:
    """Shrink the image to `c` of its size, and enlarge it again."""
    picture = to_picture(image)
    width, height = picture.size
    small = picture.resize((int(width * c[0]), int(height * c[0])), Image.Resampling.BOX)
    return from_picture(small.resize((width, height), Image.Resampling.BOX))


def jpeg_compression(image: _Pixels, c: tuple[int], rng: np.random.Generator) -> _Pixels:
    """Save the image as JPEG of quality `c`, and read it back."""
    file = BytesIO()
    to_picture(image).save(file, "JPEG", quality=c[0])
    return from_picture(Image.open(file))


def to_picture(image: _Pixels) -> Image.Image:
    """Round an image to 8 bits, as a PIL image."""
    return Image.fromarray((image * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy())


def from_picture(picture: Image.Image) -> _Pixels:
    """Convert a PIL image to float in [0, 1]."""
    return tensor(np.asarray(picture)).permute(2, 0, 1) / 255


Apply = Callable[[Tensor, Any, np.random.Generator], Tensor]


class Corruption(NamedTuple):
    """Function of a corruption, and its constants for the five severities of each scale."""

    apply: Apply
    imagenet: tuple[tuple[float, ...], ...]
    cifar: tuple[tuple[float, ...], ...]


def each(*values: float) -> tuple[tuple[float, ...], ...]:
    """Return a tuple of one constant for each severity."""
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
    "brightness": Corruption(_brightness, each(0.1, 0.2, 0.3, 0.4, 0.5), each(0.05, 0.1, 0.15, 0.2, 0.3)),
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
"""Corruptions by name, in the paper's order."""
CORRUPTIONS: tuple[str, ...] = tuple(TABLE)
