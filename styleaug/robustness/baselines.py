"""Published augmentations that styles are compared with: erasing, PRIME, and changes of features.

They are here for comparison only. Erasing hides pixels and PRIME moves them, so they suit class labels, and
not labels for pixels.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import RandomErasing

__all__ = [
    "DSU",
    "FeatureHook",
    "MixStyle",
    "colour_curves",
    "displace",
    "erase",
    "prime",
    "random_filter",
]

_Images = Float[Tensor, "B 3 H W"]
_Features = Float[Tensor, "B C H W"]
ERASED, ASPECT = (0.02, 0.4), (0.3, 1 / 0.3)
"""Range of the erased share of an image, and of a rectangle's height over its width."""


def erase(images: _Images, *, p: float = 0.5) -> _Images:
    """Fill a rectangle of each image with random colours, with probability `p`.

    Zhong et al. 2020, "Random erasing data augmentation", algorithm 1 with the paper's settings: 0.02 to 0.4
    of the area, aspect ratio 0.3 to 1 / 0.3, uniform random pixels. torchvision draws the rectangle.
    """
    result = images.clone()
    rows = torch.rand(len(images)) < p
    for row in rows.nonzero()[:, 0].tolist():
        image = result[row]
        top, left, height, width, _ = RandomErasing.get_params(image, ERASED, ASPECT, [0.0])
        if (height, width) != image.shape[-2:]:  # otherwise no rectangle fits
            noise = torch.rand(len(image), height, width)
            image[:, top : top + height, left : left + width] = noise.to(image)
    return result


class Prime(NamedTuple):
    """The paper's largest strengths for one size of images."""

    modes: int
    """Highest frequency of a displacement field."""
    waves: int
    """Highest frequency of a colour curve."""
    band: int
    """Number of neighbouring frequencies in a colour curve."""
    variance: float
    """Variance of the amplitudes of a colour curve."""


PRIME_SMALL = Prime(modes=100, waves=100, band=100, variance=0.01)
PRIME_LARGE = Prime(modes=500, waves=500, band=20, variance=0.05)
"""Settings for CIFAR-10, here up to a side of 64 pixels, and for ImageNet."""
SMALL_SIDE = 64
CHAINS, LONGEST = 3, 3
"""Number of chains that are mixed; largest number of primitives in a chain."""
FILTER_SIDE, FILTER_STRENGTH = 3, 4.0
"""Side of the kernel in pixels; largest standard deviation of its weights."""


def prime(images: _Images) -> _Images:
    """Mix each image with three chains of random filters, colour curves and displacements.

    Modas et al. 2022, "PRIME: a few primitives can boost robustness to common corruptions", algorithm 1 with
    the settings of the authors' code: each chain has 1 to 3 primitives, chains are mixed with weights from
    Dirichlet(1, 1, 1), and the mixture with the image with a weight from Beta(1, 1). No consistency loss.

    It is a baseline only, because it moves pixels: at a side of 128, one displacement in ten by 5 pixels and
    more. The generators `tone-curves` and `random-filter` are versions of two primitives that move no label.

    Unlike the authors' code: every image has strengths of its own, and not every batch; the filter's identity
    stands in the middle of its kernel, as in the paper.
    """
    count = len(images)
    settings = PRIME_SMALL if max(images.shape[-2:]) <= SMALL_SIDE else PRIME_LARGE
    weights = torch.empty(CHAINS, count).exponential_()  # normalised, they have the Dirichlet distribution
    weights = (weights / weights.sum(dim=0)).view(CHAINS, count, 1, 1, 1).to(images)
    share = torch.rand(count, 1, 1, 1).to(images)
    length = torch.randint(1, LONGEST + 1, (CHAINS * count,))
    chains = images.repeat(CHAINS, 1, 1, 1)
    for step in range(LONGEST):
        drawn = torch.randint(3, (CHAINS * count,))
        for kind, primitive in enumerate((random_filter, colour_curves, displace)):
            rows = ((drawn == kind) & (step < length)).nonzero()[:, 0].to(images.device)
            if len(rows):
                chains[rows] = primitive(chains[rows], settings)
    mixture = (weights * chains.unflatten(0, (CHAINS, count))).sum(dim=0)
    return torch.lerp(images, mixture, share).clamp(0, 1)  # rounding may leave [0, 1]


def random_filter(images: _Images, settings: Prime) -> _Images:
    """Filter each image by the identity plus random weights, PRIME's spectral primitive (sec. 3.1)."""
    count, channels = images.shape[:2]
    spread = FILTER_STRENGTH * torch.rand(count, 1, 1)
    kernel = spread * torch.randn(count, FILTER_SIDE, FILTER_SIDE)
    kernel[:, FILTER_SIDE // 2, FILTER_SIDE // 2] += 1
    kernel = kernel.to(images)[:, None].repeat_interleave(channels, dim=0)
    made = F.conv2d(images.flatten(0, 1)[None], kernel, padding="same", groups=count * channels)
    return made[0].unflatten(0, (count, channels)).clamp(0, 1)


def colour_curves(images: _Images, settings: Prime) -> _Images:
    """Add random sines of each colour to it, PRIME's colour primitive (sec. 3.1).

    The highest frequency K, the first frequency m up to K and the variance of the amplitudes are uniform.
    """
    made = []
    for image in images:  # one at a time, because a processor's cache holds one
        highest = int(torch.randint(1, settings.waves + 1, ()))
        first = int(torch.randint(1, highest + 1, ())) if settings.band < settings.waves else 1
        count = min(settings.band, highest + 1 - first)
        deviation = math.sqrt(settings.variance * float(torch.rand(())))
        made.append(with_sines(image, (deviation * torch.randn(3, count)).to(image), first))
    return torch.stack(made).clamp(0, 1)


def with_sines(image: Float[Tensor, "3 H W"], amplitudes: Float[Tensor, "3 N"], first: int) -> Tensor:
    """Compute `x + sum over n of amplitudes[n] * sin(pi * (first + n) * x)` for each channel.

    Clenshaw's recurrence needs four sines and cosines instead of N.
    """
    angle = math.pi * image
    twice = 2 * angle.cos()
    before, last = torch.zeros_like(image), torch.zeros_like(image)
    for amplitude in amplitudes[..., None, None].flip(1).unbind(1):
        before, last = last, torch.addcmul(amplitude - before, twice, last)
    start = first * angle
    return image + start.sin() * (last - before * twice / 2) + start.cos() * angle.sin() * before


def displace(images: _Images, settings: Prime) -> _Images:
    """Move the pixels of each image by a smooth random field, PRIME's spatial primitive (sec. 3.1).

    The highest frequency and the variance are drawn from Beta(0.5, 0.5). Pixels move by about half a pixel at
    least. At most, the field just does not fold.
    """
    height, width = images.shape[-2:]
    fields = torch.stack([displacement(height, width, settings.modes) for _ in images]).to(images)
    lines = [torch.arange(side).to(images) for side in (height, width)]
    places = torch.stack(torch.meshgrid(*lines, indexing="ij")[::-1], dim=-1) - fields  # x, then y
    sides = torch.tensor([max(width - 1, 1), max(height - 1, 1)]).to(images)
    return F.grid_sample(images, 2 * places / sides - 1, padding_mode="border", align_corners=True)


def displacement(height: int, width: int, modes: int) -> Float[Tensor, "H W 2"]:
    """Draw a field of displacements in pixels: to the right, then down."""
    most = int(torch.randint(3, modes + 1, ()))
    arcsine = torch.sin(torch.pi / 2 * torch.rand(2)).square()  # two draws from Beta(0.5, 0.5)
    cut = min(int(2 + arcsine[0] * (most - 1)), most)
    side, log = max(height, width), math.log(cut)
    least = 1 / (math.pi * side**2 * log)
    largest = max(least, 4 / (math.pi**3 * cut**2 * log))
    variance = least + float(arcsine[1]) * (largest - least)
    wave = torch.arange(1, cut + 1)
    radius = (wave.square()[:, None] + wave.square()).sqrt()
    energy = (radius < cut + 0.5) / radius
    down, right = (torch.sin(math.pi * torch.linspace(0, 1, n)[:, None] * wave) for n in (height, width))
    coefficients = math.sqrt(variance) * energy * torch.randn(2, cut, cut)
    across, along = down @ coefficients @ right.T
    return torch.stack([width * across, height * along], dim=-1)


class MixStyle:
    """Mix the channel statistics of features between images in training (Zhou et al. 2021).

    It is a forward hook: register it on early blocks.

    Args:
        p: probability in [0, 1] that a batch is mixed.
        alpha: parameter of the Beta distribution of the shares.
        seed: seed of its own generator.
    """

    p: float
    alpha: float

    def __init__(self, *, p: float, alpha: float, seed: int):
        self.p, self.alpha = p, alpha
        self.rng: np.random.Generator = np.random.default_rng(seed)

    def __call__(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
        """Mix the features `(B, C, H, W)` that a block returns."""
        if not module.training or self.rng.random() >= self.p:
            return None
        count = len(output)
        other = torch.from_numpy(self.rng.permutation(count)).to(output.device)
        drawn = self.rng.beta(self.alpha, self.alpha, count).astype(np.float32)
        share = torch.from_numpy(drawn).to(output.device).view(-1, 1, 1, 1)
        features = output.float()
        mean, deviation = (value.detach() for value in _moments(features))
        normed = (features - mean) / deviation
        mixed = normed * torch.lerp(deviation[other], deviation, share) + torch.lerp(mean[other], mean, share)
        return mixed.to(output.dtype)


class DSU:
    """Add noise to the channel statistics of features in training, as large as their spread in the batch.

    Li et al. 2022, "Uncertainty modeling for out-of-distribution generalization", sec. 3.2: with mean m and
    deviation s of a channel, and the deviations of m and s over the batch, it computes
    `(s + noise * dev(s)) * (x - m) / s + m + noise * dev(m)`. The paper has it in six places of a ResNet.

    It is a forward hook: register it on early blocks.

    Args:
        p: probability in [0, 1] that a batch is changed.
        seed: seed of its own generator.
    """

    def __init__(self, *, p: float, seed: int):
        self.p = p
        self.rng: np.random.Generator = np.random.default_rng(seed)

    def __call__(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
        """Change the features `(B, C, H, W)` that a block returns."""
        if not module.training or self.rng.random() >= self.p:
            return None
        features = output.float()
        mean, deviation = _moments(features)
        changed = (features - mean) / deviation * self.noisy(deviation) + self.noisy(mean)
        return changed.to(output.dtype)

    def noisy(self, statistic: Float[Tensor, "B C 1 1"]) -> Float[Tensor, "B C 1 1"]:
        """Add normal noise with the deviation that a statistic has in the batch."""
        spread = (statistic.var(dim=0, correction=0, keepdim=True) + EPSILON).sqrt()
        noise = self.rng.standard_normal(tuple(statistic.shape), dtype=np.float32)
        return statistic + torch.from_numpy(noise).to(statistic.device) * spread


FeatureHook = MixStyle | DSU
EPSILON = 1e-6
"""Added to variances before their root."""


def _moments(features: _Features) -> tuple[Float[Tensor, "B C 1 1"], Float[Tensor, "B C 1 1"]]:
    """Compute mean and standard deviation of each channel."""
    mean = features.mean(dim=(2, 3), keepdim=True)
    return mean, (features.var(dim=(2, 3), keepdim=True) + EPSILON).sqrt()
