"""Stain generators for slides: they separate the dyes and give each a style's colour and strength.

They work for haematoxylin and eosin, for Romanowsky stains of blood (azure and eosin), and for other pairs of
dyes.
"""

import math
from itertools import chain

import torch
from jaxtyping import Float
from torch import Tensor

from styleaug.errors import ConfigError
from styleaug.generators.background import on_tissue_only, tissue_stats, tissue_weight
from styleaug.generators.base import AbstractGenerator, widen
from styleaug.generators.color import MAX_GAIN, ChannelStats
from styleaug.generators.colorspace import DENSITY_TO_HED, HED_FLOOR, HED_TO_DENSITY, rgb_to_hed
from styleaug.generators.layers import channel_stats
from styleaug.generators.shared import sharing
from styleaug.generators.stain_separation import (
    MOST,
    USUAL,
    WHITE,
    Stains,
    read_stains,
    repaint,
    unit,
    unmixing,
)

__all__ = ["HedJitter", "RandStainNA", "TwoDyes"]


class TwoDyes(AbstractGenerator):
    """Replace the two dyes of an image by those of a style, in colour and in strength.

    Macenko et al. 2009, "A method for normalizing histology slides for quantitative analysis": the dyes
    are the outermost directions in the plane of the densities, at the 1st and 99th percentile of the
    angle. Their amounts follow by least squares. Vahadane et al. 2016, "Structure-preserving color
    normalization and sparse stain separation": the densities are sparse sums of the dyes with no negative
    amounts. They are found here from Macenko's dyes by 16 updates of the dictionary over all pixels read; the
    paper uses the SPAMS library on samples. Amounts follow by least squares here, too. Each amount is
    scaled so that its 99th percentile is the style's, by a factor of at most `MAX_GAIN` = 5 or at least 1 /
    5.

    The part of the density that two dyes do not explain is dropped, as in the papers, unless `residual` keeps
    it. An image with almost no tissue, or with one dye, does not change, because its dyes are unknown. Dyes
    are read from about 4096 pixels of a grid, which are all pixels of an image up to 64 x 64.

    Code: the density of the first dye in red, green and blue, with length 1, then the second's, then the
    two 99th percentiles: 8 floats. The bluer dye is first. If the dyes of a style are unknown, its code is
    typical haematoxylin and eosin, from half to twice the typical strength, stronger for darker images.

    On blood films "vahadane" finds the same two dyes in every image of a laboratory. "macenko" often takes
    the colours of nuclei and of their rims for dyes, because there is little tissue for percentiles.

    Args:
        method: "macenko" or "vahadane".
        residual: keep the part of the density that two dyes do not explain.
    """

    residual: bool

    margin: int | None = 0
    code_length = 8
    code_range: tuple[list[float], list[float]] | None = (
        [-1.0] * 6 + [MOST[0]] * 2,
        [1.0] * 6 + [MOST[1]] * 2,
    )

    def __init__(self, method: str = "macenko", *, residual: bool = False):
        super().__init__()
        if method not in ("macenko", "vahadane"):
            raise ConfigError(f"method must be macenko or vahadane, got {method!r}.")
        self.name = f"{method}-residual" if residual else method
        self.method, self.residual = method, residual
        self.register_buffer("usual", torch.tensor(USUAL), persistent=False)

    def extra_repr(self) -> str:
        """Return the method as text; it is part of the fingerprint."""
        return f"method={self.method!r}, residual={self.residual}"

    def stains(self, images: Float[Tensor, "B 3 H W"]) -> Stains:
        """Find the two dyes of each image."""
        return read_stains(images, sparse=self.method == "vahadane")

    def encode_style(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 8"]:
        """Find the dyes and the 99th percentiles of their amounts."""
        full = widen(images)
        axes, most, known = self.stains(full)
        usual_axes, usual_most = self.get_buffer("usual").to(full.dtype).split([6, 2])
        dark = (2 - 2 * full.mean(dim=(1, 2, 3))).clamp(0.5, 2.0)
        axes = torch.where(known[:, None], axes.mT.flatten(1), usual_axes)
        most = torch.where(known[:, None], most, usual_most * dark[:, None])
        return torch.cat([axes, most.clamp(*MOST)], dim=1)

    def forward(
        self,
        images: Float[Tensor, "B 3 H W"],
        codes: Float[Tensor, "B 8"],
        strength: Float[Tensor, " B"],
    ) -> Float[Tensor, "B 3 H W"]:
        """Replace the dyes of each image by those in its code."""
        full = widen(images)
        with torch.autocast(images.device.type, enabled=False):
            matrix = self.matrix(full, codes.to(full.dtype))
        shift = WHITE * (1 - matrix.sum(dim=2))
        return repaint(full, matrix, shift, strength.to(full.dtype)).to(images.dtype)

    def matrix(self, images: Float[Tensor, "B 3 H W"], codes: Float[Tensor, "B 8"]) -> Float[Tensor, "B 3 3"]:
        """Compute the matrix from densities of an image's dyes to those of the code's dyes."""
        axes, most, known = self.stains(images)
        wanted, wanted_most = codes.split([6, 2], dim=1)
        wanted = unit(wanted.unflatten(1, (2, 3)).mT)
        gain = (wanted_most / most.clamp(min=1e-3)).clamp(1 / MAX_GAIN, MAX_GAIN)
        amounts = unmixing(axes)
        matrix = (wanted * gain[:, None]) @ amounts
        same = torch.eye(3, dtype=matrix.dtype, device=matrix.device)
        if self.residual:
            matrix = matrix + same - axes @ amounts
        return torch.where(known[:, None, None], matrix, same)


LIGHT, STRONG = 0.05, 0.2


class HedJitter(AbstractGenerator):
    """Scale and shift haematoxylin, eosin and DAB at random, without a bank.

    Tellez et al. 2018, "Whole-slide mitosis detection in H&E breast histology using PHH3 as a reference to
    train distilled stain-invariant convolutional networks": for each of the three dyes of Ruifrok & Johnston
    2001, the amount becomes `a * amount + b`, with a drawn from U(1 - sigma, 1 + sigma) and b from
    U(-sigma, sigma). Amounts are natural logarithms, so a b of 0.05 is about 5 % of the light;
    scikit-image divides them by 13.8. scikit-image also clamps negative amounts to 0. Here they are kept, so
    that the image does not change without jitter.

    Code: the three a, then the three b, 6 floats, each as a standard normal z: `erf(z / sqrt(2))` from -1 to
        1
    is the position in its range. So codes from the prior are the paper's uniform draws. The code read from an
    image is the difference of its dyes from typical dyes, in deviation and mean.

    Args:
        sigma: half the width of both ranges, in [0, 1]. The paper's is 0.05 ("light"); Tellez et al. 2019
            also use 0.2 ("strong").
    """

    margin: int | None = 0
    code_length = 6
    has_prior = True
    tissue: bool | None = False

    def __init__(self, sigma: float = LIGHT):
        super().__init__()
        if not 0 <= sigma <= 1:
            raise ConfigError(f"sigma must be from 0 to 1, got {sigma}.")
        self.sigma = sigma
        self.name = "hed-jitter-strong" if sigma == STRONG else "hed-jitter"
        self.register_buffer("unmix", torch.tensor(DENSITY_TO_HED), persistent=False)
        self.register_buffer("mix", torch.tensor(HED_TO_DENSITY), persistent=False)

    def extra_repr(self) -> str:
        """Return the width as text; it is part of the fingerprint."""
        return f"sigma={self.sigma}"

    def encode_style(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 6"]:
        """Compute how much the dyes differ from typical dyes, in about [-3, 3]."""
        full = widen(images)
        dyes = rgb_to_hed(full)
        stats = tissue_stats(dyes, tissue_weight(full)) if self.tissue else channel_stats(dyes)
        mean, std = stats.chunk(2, dim=1)
        return torch.cat([(std - 0.2) / 0.025, (mean - 0.25) / 0.05], dim=1).clamp(-3, 3)

    def forward(
        self,
        images: Float[Tensor, "B 3 H W"],
        codes: Float[Tensor, "B 6"],
        strength: Float[Tensor, " B"],
    ) -> Float[Tensor, "B 3 H W"]:
        """Scale and shift the dyes of each image by its code."""
        full = widen(images)
        scale, shift = (self.sigma * torch.erf(codes.to(full.dtype) / math.sqrt(2))).chunk(2, dim=1)
        unmix, mix = (self.get_buffer(name).to(full.dtype) for name in ("unmix", "mix"))
        with torch.autocast(images.device.type, enabled=False):
            matrix, shift = mix @ ((1 + scale)[:, :, None] * unmix), -(shift @ mix.mT)
        styled = repaint(full, matrix, shift, strength.to(full.dtype), level=HED_FLOOR).to(images.dtype)
        return on_tissue_only(images, styled, tissue_weight(full)) if self.tissue else styled


class RandStainNA(AbstractGenerator):
    """Set means and deviations of the channels in one of three colour spaces to the style's.

    Shen et al. 2022, "RandStainNA: learning stain-agnostic features from histology slides by bridging stain
    augmentation and normalization": for each image, one of CIELAB, HSV and HED is drawn, and a virtual
    style from Gaussians fitted to a data set's statistics. Here the virtual style is the code, with
    `sampler="gaussian"` of a bank; `sampler="uniform"` takes the statistics of single images. The space
    depends on the code only, so that the same code gives the same image. It is the first, second or third
    space if the fraction of the mean `L + a + b` is in the first, second or third part of [0, 1). Images
    differ by many of these units, so each space is equally likely.

    Unlike the authors' program: nothing is rounded to 8 bits; the sampler keeps the statistics'
    covariance; hue jumps at green and not at red, where eosin and red cells lie, and its deviation never
    grows; contrast grows by at most `MAX_GAIN` = 5; HED is not clamped at 0, and its light is not
    stretched to the full range.

    Code: the codes of "reinhard-lab", "reinhard-hsv" and "reinhard-hed": 18 floats.
    """

    name = "randstainna"
    margin: int | None = 0
    tissue: bool | None = False

    def __init__(self):
        super().__init__()
        self.spaces: tuple[ChannelStats, ...] = tuple(ChannelStats(space) for space in ("lab", "hsv", "hed"))
        self.code_length: int = sum(space.code_length for space in self.spaces)
        low, high = zip(*(space.code_range or ([], []) for space in self.spaces), strict=True)
        self.code_range: tuple[list[float], list[float]] | None = (list(chain(*low)), list(chain(*high)))

    def on_tissue(self) -> "RandStainNA":
        """Return a copy that keeps white background in each space; see `AbstractGenerator`."""
        other = super().on_tissue()
        other.spaces = tuple(space.on_tissue() for space in self.spaces)
        return other

    def extra_repr(self) -> str:
        """Return the rule for choosing the space as text; it is part of the fingerprint."""
        return "spaces=lab,hsv,hed, by=fraction"

    def encode_style(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 18"]:
        """Compute the mean and standard deviation of each channel of each space."""
        return torch.cat([space.encode_style(images) for space in self.spaces], dim=1)

    def forward(
        self,
        images: Float[Tensor, "B 3 H W"],
        codes: Float[Tensor, "B 18"],
        strength: Float[Tensor, " B"],
    ) -> Float[Tensor, "B 3 H W"]:
        """Shift and scale the channels of each image in the space that its code chooses."""
        chosen = (3 * (codes[:, :3].sum(dim=1) % 1)).floor().clamp(max=2)
        each = list(zip(self.spaces, codes.split(6, dim=1), strict=True))
        if images.device.type != "cpu" or torch.compiler.is_compiling() or sharing():
            # Choosing rows would make a GPU wait, a graph lose its fixed shape, and split up shared views.
            painted = images
            for index, (space, part) in enumerate(each):
                painted = torch.where(
                    (chosen == index)[:, None, None, None], space(images, part, strength), painted
                )
            return painted
        painted = torch.empty_like(images)
        for index, (space, part) in enumerate(each):
            rows = (chosen == index).nonzero()[:, 0]
            if len(rows):
                painted[rows] = space(images[rows], part[rows], strength[rows])
        return painted
