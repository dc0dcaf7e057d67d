"""What an arm's steps do to a batch `(B, 3, H, W)` in [0, 1], with draws from torch's global generator."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import v2

from styleaug.errors import FileError, missing_extra
from styleaug.files import image_files
from styleaug.generators.colorspace import hsv_to_rgb, rgb_to_hsv
from styleaug.images import from_float, luminance, to_float
from styleaug.training.data import read_image

__all__ = [
    "MixStyle",
    "References",
    "blur",
    "color_jitter",
    "grey",
    "one_by_one",
    "pick",
]

Images = Float[Tensor, "B 3 H W"]
Step = Callable[[Tensor], Tensor]

BLUR_SIGMA = (0.005, 0.03)
"""Of the side; 0.3 to 2 pixels of 64."""
SCALES = (1.5, 2.0, 3.0, 4.0)
"""By which `blur` shrinks an image before it enlarges it again."""
MOST_REFERENCES = 512
"""Reference images kept of a folder; of more, every n-th."""


def pick(count: int, p: float) -> Shaped[Tensor, " K"]:
    """Draw the rows of a batch that something is done to."""
    return (torch.rand(count) < p).nonzero()[:, 0]


def color_jitter(
    images: Images,
    *,
    p: float = 1.0,
    brightness: float = 0.4,
    contrast: float = 0.4,
    saturation: float = 0.4,
    hue: float = 0.1,
) -> Images:
    """Change brightness, contrast, saturation and hue as torchvision's ColorJitter, in an order per image.

    All images that have the same change at the same turn are computed at once.
    """
    rows = pick(len(images), p)
    spread = torch.tensor([brightness, contrast, saturation, hue])
    change = spread[:, None] * (2 * torch.rand(4, len(rows)) - 1)
    order = torch.rand(len(rows), 4).argsort(dim=1)
    if len(rows) == 0:
        return images
    rows, change = rows.to(images.device), change.to(images.device)
    part = images[rows]
    for turn in range(4):
        for kind, change_by in enumerate((scaled, contrasted, saturated, turned)):
            chosen = (order[:, turn] == kind).nonzero()[:, 0].to(images.device)
            if len(chosen):
                part[chosen] = change_by(part[chosen], change[kind, chosen][:, None, None, None])
    return images.index_copy(0, rows, part)


def scaled(images: Images, change: Float[Tensor, "B 1 1 1"]) -> Images:
    """Change the brightness."""
    return (images * (1 + change)).clamp(0, 1)


def contrasted(images: Images, change: Float[Tensor, "B 1 1 1"]) -> Images:
    """Move away from the mean grey of the image."""
    mean = luminance(images).mean(dim=(1, 2, 3), keepdim=True)
    return torch.lerp(mean, images, 1 + change).clamp(0, 1)


def saturated(images: Images, change: Float[Tensor, "B 1 1 1"]) -> Images:
    """Move away from each pixel's grey."""
    return torch.lerp(luminance(images).expand_as(images), images, 1 + change).clamp(0, 1)


def turned(images: Images, change: Float[Tensor, "B 1 1 1"]) -> Images:
    """Turn the hue by a share of the circle."""
    hue, saturation, value = rgb_to_hsv(images).unbind(1)
    return hsv_to_rgb(torch.stack([(hue + change[:, 0]) % 1, saturation, value], dim=1))


def grey(images: Images, *, p: float = 0.2) -> Images:
    """Make some images grey."""
    rows = pick(len(images), p).to(images.device)
    return images.index_copy(0, rows, luminance(images[rows]).expand(-1, 3, -1, -1)) if len(rows) else images


def blur(images: Images, *, p: float = 0.5, sigma: tuple[float, float] = BLUR_SIGMA) -> Images:
    """Take fine detail away: half of the chosen images are smoothed, half shrunk and enlarged again.

    Args:
        images: the batch.
        p: chance of each image.
        sigma: range of the Gaussian's, as shares of the side.
    """
    rows = pick(len(images), p)
    draws = torch.rand(len(rows))
    factor = torch.randint(len(SCALES), (len(rows),))
    smooth = torch.rand(len(rows)) < 0.5
    result = images.clone()
    if smooth.any():
        chosen = rows[smooth].to(images.device)
        widths = (sigma[0] + (sigma[1] - sigma[0]) * draws[smooth]) * images.shape[-1]
        result[chosen] = gaussian(images[chosen], widths.to(images.device))
    for index, scale in enumerate(SCALES):
        chosen = rows[~smooth & (factor == index)].to(images.device)
        if len(chosen):
            size = [max(1, round(side / scale)) for side in images.shape[-2:]]
            small = F.interpolate(images[chosen], size, mode="bilinear", antialias=True)
            large = F.interpolate(small, images.shape[-2:], mode="bicubic", align_corners=False)
            result[chosen] = large.clamp(0, 1)
    return result


def gaussian(images: Images, sigma: Float[Tensor, " B"]) -> Images:
    """Smooth each image with a Gaussian of its own width in pixels, up to the borders."""
    count, channels, height, width = images.shape
    radius = min(int(3 * float(sigma.max())) + 1, height - 1, width - 1)
    if radius < 1:
        return images
    offsets = torch.arange(-radius, radius + 1, device=images.device)
    kernel = torch.exp(-(offsets.square()) / (2 * sigma[:, None].square()).clamp_min(1e-6))
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(channels, 0)[:, None]
    flat = F.pad(images, 4 * [radius], mode="reflect").view(1, count * channels, *(
        side + 2 * radius for side in (height, width)
    ))  # fmt: skip
    flat = F.conv2d(flat, kernel[:, :, None], groups=count * channels)
    flat = F.conv2d(flat, kernel[:, :, :, None], groups=count * channels)
    return flat.view(count, channels, height, width)


def one_by_one(transform: Callable[[Tensor], Tensor]) -> Step:
    """Give a transform that draws once per call each image by itself, as uint8.

    On the CPU, wherever the batch is: a GPU would wait for hundreds of small kernels.
    """

    def step(images: Images) -> Images:
        pixels = from_float(images, torch.uint8).cpu()
        return to_float(torch.stack([transform(image) for image in pixels]).to(images.device))

    return step


class References:
    """Albumentations' FDA or HistogramMatching, image by image, with reference images from folders.

    Args:
        kind: `"fda"` or `"histogram-matching"`.
        folders: of reference images, with or without classes.
        p: chance of each image.
        span: FDA's `beta_limit`, or HistogramMatching's `blend_ratio`.
        seed: of albumentations' own generators.

    Raises:
        ConfigError: albumentations is not installed.
        FileError: no image in a folder.
    """

    def __init__(self, kind: str, folders: list[Path], *, p: float, span: tuple[float, float], seed: int):
        try:
            import albumentations
        except ImportError:
            raise missing_extra(f"the step {kind!r}", "albumentations", "albumentations") from None
        made = (
            albumentations.FDA(beta_limit=span, metadata_key="references", p=p)
            if kind == "fda"
            else albumentations.HistogramMatching(blend_ratio=span, metadata_key="references", p=p)
        )
        self.transform = albumentations.Compose([made], seed=seed)
        self.paths = [path for folder in folders for path in image_files(folder)]
        self.images: list[np.ndarray] = []

    def __call__(self, images: Images) -> Images:
        """Adapt a batch."""
        if not self.images or self.images[0].shape[:2] != images.shape[-2:]:
            self.images = self.read((images.shape[-2], images.shape[-1]))
        pixels = from_float(images, torch.uint8).permute(0, 2, 3, 1).cpu().contiguous().numpy()
        adapted = [self.transform(image=image, references=self.images)["image"] for image in pixels]
        return to_float(torch.from_numpy(np.stack(adapted)).permute(0, 3, 1, 2)).to(images.device)

    def read(self, size: tuple[int, int]) -> list[np.ndarray]:
        """Read the references at the size that albumentations would bring each of them to."""
        step = -(-len(self.paths) // MOST_REFERENCES)
        found = []
        for path in self.paths[::step]:
            image = read_image(path, max(size)).float()[None]
            if image.max() <= 1:  # more than 8 bits come as floats
                image = image * 255
            small = F.interpolate(image, size, mode="bilinear", antialias=True)[0]
            found.append(small.round().clamp(0, 255).byte().permute(1, 2, 0).contiguous().numpy())
        if not found:
            raise FileError(f"no reference image in {self.paths}.")
        return found


class MixStyle:
    """Mix the channel statistics of features between images while training (Zhou et al. 2021).

    It is a forward hook: register it behind early blocks.

    Args:
        p: chance that a batch is mixed.
        alpha: of the Beta distribution of the shares.
        seed: of its own generator.
    """

    def __init__(self, *, p: float, alpha: float, seed: int):
        self.p, self.alpha = p, alpha
        self.rng = np.random.default_rng(seed)

    def __call__(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
        """Mix the features `(B, C, H, W)` that a block gives."""
        if not module.training or self.rng.random() >= self.p:
            return None
        count = len(output)
        other = torch.from_numpy(self.rng.permutation(count)).to(output.device)
        drawn = self.rng.beta(self.alpha, self.alpha, count).astype(np.float32)
        share = torch.from_numpy(drawn).to(output.device).view(-1, 1, 1, 1)
        features = output.float()
        mean = features.mean(dim=(2, 3), keepdim=True).detach()
        deviation = (features.var(dim=(2, 3), keepdim=True) + 1e-6).sqrt().detach()
        normed = (features - mean) / deviation
        mixed = normed * torch.lerp(deviation[other], deviation, share) + torch.lerp(mean[other], mean, share)
        return mixed.to(output.dtype)


def torchvision_policy(name: str) -> Step:
    """Give one of torchvision's policies."""
    kinds = {"trivialaugment": v2.TrivialAugmentWide, "randaugment": v2.RandAugment, "augmix": v2.AugMix}
    return one_by_one(kinds[name]())
