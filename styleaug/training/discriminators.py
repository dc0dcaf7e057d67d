"""Discriminators for GAN losses, heads for a contrastive loss, and DiffAugment."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from styleaug.errors import ConfigError
from styleaug.generators.layers import initialise_gan, normalise

__all__ = ["ImagePool", "PatchDiscriminator", "PatchEmbedding", "diff_augment"]

HALVINGS = {16: 1, 34: 2, 70: 3, 142: 4, 286: 5}
"""Number of convolutions of stride 2 for each side of a patch in pixels."""


class PatchDiscriminator(nn.Module):
    """Classify patches of images as real or generated.

    The PatchGAN of Isola et al. 2017 (secs. 3.3 and 6.1.2): 4x4 convolutions, of which three have
    stride 2 for `patch` 70, and leaky ReLUs. As in Zhu et al. 2017, all layers but the first and the
    last have instance normalisation.

    Args:
        channels: channels of the images; 6 for a pair stacked along the channels.
        patch: side of the patch that a logit sees, in pixels: 16, 34, 70, 142 or 286.
        width: channels of the first layer; they double up to `8 * width`. 64 in the papers.
        norm: use instance normalisation. Without it, a logit depends on its patch only.
        twice: make it differentiable twice, as R1 requires; normalisation then takes twice as long.
        spectral: normalise every layer's largest singular value to 1 (Miyato et al. 2018). Each forward
            pass in training mode improves its estimate by one step.

    Raises:
            ConfigError: another side of the patch.
    """

    channels: int
    norm: bool

    def __init__(
        self,
        channels: int = 3,
        *,
        patch: int = 70,
        width: int = 64,
        norm: bool = True,
        spectral: bool = False,
        twice: bool = False,
    ):
        super().__init__()
        if patch not in HALVINGS:
            raise ConfigError(f"patch must be one of {', '.join(map(str, HALVINGS))}, got {patch!r}.")
        halvings = HALVINGS[patch]
        self.channels, self.norm = channels, norm
        self.normalise: Callable[..., Tensor] = F.instance_norm if twice else normalise
        self.minimum: int = 3 * 2**halvings  # the two layers of stride 1 remove one pixel each, and leave one
        widths = [width * min(2**layer, 8) for layer in range(halvings + 1)]
        sizes = [channels, *widths, 1]
        self.convs: nn.ModuleList = nn.ModuleList(
            nn.Conv2d(
                sizes[layer],
                sizes[layer + 1],
                kernel_size=4,
                stride=2 if layer < halvings else 1,
                padding=1,
                bias=not self.normalised(layer, halvings + 2),
            )
            for layer in range(halvings + 2)
        )
        initialise_gan(self)
        if spectral:
            for conv in self.convs:
                spectral_norm(conv)
        self.to(memory_format=torch.channels_last)

    def normalised(self, layer: int, layers: int) -> bool:
        """Return whether a layer's output is normalised."""
        return self.norm and 0 < layer < layers - 1

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B 1 h w"]:
        """Compute a logit for each patch; the larger, the more real.

        Args:
            images: `(B, C, H, W)` in [0, 1].
        """
        return self.levels(images)[-1]

    def levels(self, images: Float[Tensor, "B C H W"]) -> list[Tensor]:
        """Compute the output of each layer after its activation; the last are the logits.

        Raises:
            ConfigError: images too small for a logit, or with other channels.
        """
        channels, height, width = images.shape[1:]
        if channels != self.channels or min(height, width) < self.minimum:
            raise ConfigError(
                f"this discriminator takes {self.channels} channels from {self.minimum} x {self.minimum} "
                f"pixels, got {channels} channels of {height} x {width}. Train on larger crops, or choose "
                "a smaller patch."
            )
        x, found = 2 * images - 1, []
        for layer, conv in enumerate(self.convs):
            x = conv(x)
            if self.normalised(layer, len(self.convs)):
                x = self.normalise(x)
            if layer < len(self.convs) - 1:
                x = F.leaky_relu(x, 0.2, inplace=True)
            found.append(x)
        return found


class PatchEmbedding(nn.Module):
    """Map features at some positions to unit vectors: the heads H_l of PatchNCE (Park et al. 2020).

    Args:
        channels: channels of each level, such as a generator's `encoder_channels`.
        width: length of the vectors.
    """

    def __init__(self, channels: Sequence[int], *, width: int = 256):
        super().__init__()
        self.heads: nn.ModuleList = nn.ModuleList(
            nn.Sequential(nn.Linear(count, width), nn.ReLU(), nn.Linear(width, width)) for count in channels
        )
        initialise_gan(self)

    def forward(self, levels: list[Tensor], positions: list[Tensor]) -> list[Tensor]:
        """Embed each level at its positions.

        Args:
            levels: features `(B, C_l, H_l, W_l)`.
            positions: int64 `(P_l,)` from 0 to `H_l * W_l - 1`, row after row. All images of the batch
                have the same positions.

        Returns:
            For each level `(B, P_l, width)`, of length 1.
        """
        return [
            F.normalize(head(_gathered(level, places)), dim=-1)
            for head, level, places in zip(self.heads, levels, positions, strict=True)
        ]


def _gathered(level: Float[Tensor, "B C H W"], positions: Int[Tensor, " P"]) -> Float[Tensor, "B P C"]:
    """Select the features at flattened positions."""
    return level.permute(0, 2, 3, 1).flatten(1, 2).index_select(1, positions).float()


class ImagePool:
    """Store earlier outputs of a generator to show them to a discriminator again.

    Shrivastava 2017; Zhu 2017.

    Args:
        size: number of stored images; with 0 every batch is returned as it is.
    """

    size: int
    images: Tensor

    def __init__(self, size: int):
        self.size, self.images = size, torch.empty(0)

    def exchange(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Store `images`; when the pool is full, return stored images in place of about half of them."""
        images, given = images.detach(), []
        for image in images.split(1):
            if len(self.images) < self.size:
                self.images = torch.cat([self.images, image]) if len(self.images) else image.clone()
            elif self.size and torch.rand(()) < 0.5:
                place = int(torch.randint(self.size, ()))
                given.append(self.images[place : place + 1].clone())
                self.images[place] = image[0]
                continue
            given.append(image)
        return torch.cat(given)


_SHIFT = 1 / 8
"""Largest translation, as a share of each side."""
HOLE = 1 / 2
"""Sides of the cutout, as a share of the image's sides."""
BLANK = 0.5
"""Value in [0, 1] inside the cutout and outside the image; the paper's 0 in [-1, 1]."""


def diff_augment(
    images: Float[Tensor, "B C H W"], amount: float = 1.0, *, colour: bool = True
) -> Float[Tensor, "B C H W"]:
    """Change colours, translate and cut out, differentiably (DiffAugment, Zhao et al. 2020, sec. 3.3).

    Apply it to real and to generated images before the discriminator. It draws for each row on the CPU,
    from torch's global generator.

    Args:
        images: `(B, C, H, W)` in [0, 1]; C is 3, or 6 for two stacked images, which change in the same way.
        amount: probability in [0, 1] that a row changes; with 0 it returns `images` and draws nothing.
        colour: change colours, too. The discriminator then cannot see colours, so a translator whose
            task is to change them may choose any.

    Shape:
        `(B, C, H, W)`; rows with more brightness or contrast may leave [0, 1].

    Raises:
        ConfigError: `amount` is not in [0, 1], or C is no multiple of 3.
    """
    if not 0 <= amount <= 1:  # written so that NaN fails too
        raise ConfigError(f"amount must lie in [0, 1], got {amount}.")
    if images.shape[1] % 3:
        raise ConfigError(f"channels must come in threes, got {images.shape[1]}.")
    if amount == 0:
        return images
    changed = cut(moved(recoloured(images) if colour else images))
    picked = torch.rand(len(images)) < amount
    return torch.where(rowwise(picked, images), changed, images)


def recoloured(images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
    """Change brightness by up to 0.25, saturation by 0 to 2 times and contrast by 0.5 to 1.5 times."""
    brightness, saturation, contrast = (
        rowwise(draw, images)[..., None] for draw in torch.rand(3, len(images), dtype=images.dtype)
    )
    x = images.unflatten(1, (-1, 3)) + 0.5 * (brightness - 0.5)
    x = torch.lerp(x.mean(dim=2, keepdim=True), x, 2 * saturation)
    x = torch.lerp(x.mean(dim=(2, 3, 4), keepdim=True), x, contrast + 0.5)
    return x.flatten(1, 2)


def moved(images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
    """Translate by up to an eighth of each side, in whole pixels."""
    height, width = images.shape[-2:]
    down, right = round(height * _SHIFT), round(width * _SHIFT)
    padded = F.pad(images, (right, right, down, down), value=BLANK)
    tops = torch.randint(2 * down + 1, (len(images),)).tolist()
    lefts = torch.randint(2 * right + 1, (len(images),)).tolist()
    places = zip(padded, tops, lefts, strict=True)
    return torch.stack([row[:, top : top + height, left : left + width] for row, top, left in places])


def cut(images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
    """Blank a rectangle of half of each side, which may extend over the edge."""
    inside = [side_inside(side, len(images)) for side in images.shape[-2:]]
    hole = inside[0][:, None, :, None] & inside[1][:, None, None, :]
    return images.masked_fill(hole.to(images.device, non_blocking=True), BLANK)


def side_inside(side: int, count: int) -> Tensor:
    """Draw the position of the cutout along one side: `(B, side)` booleans."""
    size = round(side * HOLE)
    start = torch.randint(side + 1, (count, 1)) - size // 2
    place = torch.arange(side)
    return (place >= start) & (place < start + size)


def rowwise(values: Tensor, like: Tensor) -> Tensor:
    """Move numbers drawn on the CPU to `like`, shaped to multiply its rows."""
    return values.to(like.device, non_blocking=True)[:, None, None, None]
