"""Patch-based style transfer: each patch of the content is replaced by the style's most similar patch."""

from collections.abc import Iterator
from typing import Any, Self

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from styleaug.errors import WeightsError
from styleaug.generators.adain import AdaIN
from styleaug.generators.base import MOST_CODE, AbstractGenerator, per_row
from styleaug.generators.layers import (
    adain,
    channel_stats,
    normalise,
    on_padded,
    pad_to_multiple,
    recolour,
    whiten,
)

__all__ = ["PatchSwap"]

_SIDE = 3
"""Side of a patch in feature cells; one cell covers 8 x 8 pixels."""
_ROUNDS = 10
"""Number of rounds of k-means."""
MAX_PATCHES = 256
SAME = 1e-4
"""Two patches are equal if their correlation differs from 1 by less than this."""


class PatchSwap(AbstractGenerator):
    """Swap patches in the features of an `AdaIN` network; its decoder paints the result.

    After Chen & Schmidt 2016, sec. 3: each 3 x 3 patch of the content's features is replaced by the
    patch of the style with the largest normalised cross-correlation (eqs. 2 and 3). Overlapping
    patches are averaged. Three things differ from the paper. Patches come from a dictionary of bounded
    size: the centres of k-means over the style's patches. A patch holds the network's features at 1/8
    of the size and the colours there as three more channels. The network takes colours from the image
    and not from features, so the colours are swapped in the image, at low frequencies. Features are
    normalised per channel before the matching, and get the style's statistics after the swap, as the
    decoder expects. Details at 1/4 and 1/2 of the size are AdaIN's.

    Code: AdaIN's, then the dictionary, `patches * 9 * (channels + 3)` floats. It holds no pixels: a centre
    is the mean of patches, and its colours are means over 8 x 8 pixels. But if an image has fewer patches
    than the dictionary, all of them are kept, and with them the image's colours at 1/8 of the size.

    Names -> paper: `field` Phi(C) and Phi(S), `read_patches` phi_j(S), `nearest_patches` NN(i) (2), `swap`
    eq. 3 and the averaging after it.

    Args:
        network: network that encodes and paints; this generator has its weights.
        patches: number of patches in the dictionary.
    """

    network: AdaIN
    patches: int

    name = "patchswap"
    codes_average = False  # the mean of different patches is not a meaningful patch
    takes_bfloat16 = True
    multiple: int = AdaIN.multiple
    minimum: int = 5 * AdaIN.multiple
    """Least side in pixels, with nine positions for a patch. With one, rounding errors become visible."""

    def __init__(self, network: AdaIN, *, patches: int = 32):
        super().__init__()
        self.network, self.patches = network, patches
        self.least_side: int = network.least_side
        self.margin: int | None = (
            48 + 16 * network.depth
        )  # two cells more than the network's margin, for the patches
        self.channels: int = network.widths[-1] + 3
        self.dictionary_length: int = patches * self.channels * _SIDE**2
        self.code_length: int = network.code_length + self.dictionary_length

    def settings(self) -> dict[str, Any]:
        """Return the sizes of the network and of the dictionary."""
        return {**self.network.settings(), "patches": self.patches}

    def code_bounds(self) -> tuple[Float[Tensor, " S"], Float[Tensor, " S"]]:
        """Return the least and greatest value that each entry of a code may have."""
        (low, high), patches = (
            self.network.code_bounds(),
            torch.full((self.dictionary_length,), MOST_CODE, device="cpu"),
        )
        return torch.cat([low, -patches]), torch.cat([high, patches])

    @classmethod
    def from_settings(cls, settings: dict[str, Any]) -> Self:
        """Build a generator of these sizes, after checking their bounds."""
        patches = settings["patches"]
        if type(patches) is not int or not 1 <= patches <= MAX_PATCHES:
            raise WeightsError(f"patches must be a whole number from 1 to {MAX_PATCHES}, got {patches!r}.")
        sizes = {key: value for key, value in settings.items() if key != "patches"}
        return cls(AdaIN.from_settings(sizes), patches=patches)

    def encode_style(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B S"]:
        """Compute AdaIN's code and the dictionary of patches."""
        padded = pad_to_multiple(images, self.multiple, self.minimum)
        colours = channel_stats(padded)
        whitened = whiten(padded, colours)
        levels = self.network.encoder(whitened)
        with torch.no_grad():
            patches = read_patches(field(levels[-1], whitened))
            dictionary = cluster(patches, self.patches)
        statistics = [colours, *(channel_stats(level) for level in levels)]
        return torch.cat([*statistics, dictionary.flatten(1)], dim=1)

    def forward(
        self,
        images: Float[Tensor, "B 3 H W"],
        codes: Float[Tensor, "B S"],
        strength: Float[Tensor, " B"],
    ) -> Float[Tensor, "B 3 H W"]:
        """Paint each image in the style of its code."""
        styled = on_padded(
            lambda padded: self.paint(padded, codes, strength), images, self.multiple, self.minimum
        )
        return styled.clamp(0, 1)

    def paint(
        self,
        images: Float[Tensor, "B 3 H W"],
        codes: Float[Tensor, "B S"],
        strength: Float[Tensor, " B"],
    ) -> Float[Tensor, "B 3 H W"]:
        """Run the network without clamping. H and W are multiples of 8 and at least 40.

        `strength` moves AdaIN's code as in `AdaIN.paint`, and features and colours equally far towards
        the swapped ones. The choice of the nearest patch does not depend on it and has no gradient.
        """
        network, amount = self.network, per_row(strength.float())
        images = images.contiguous()  # one factor per channel is slow in other memory layouts
        colours = channel_stats(images)
        whitened = whiten(images, colours)
        levels = network.encoder(whitened)
        own = torch.cat([colours, *(channel_stats(level) for level in levels)], dim=1)
        code, dictionary = codes.float().split([network.code_length, self.dictionary_length], dim=1)
        code = torch.lerp(own, code, amount.flatten(1))
        wanted, *styles = code.split([6, *(2 * width for width in network.widths)], dim=1)

        before = field(levels[-1], whitened)
        swapped = swap(before, dictionary.unflatten(1, (self.patches, -1)))
        features, tints = torch.lerp(before, swapped, amount).split([self.channels - 3, 3], dim=1)
        moved = retint(whitened, tints)
        half, quarter, _ = network.encoder(moved)
        eighth = features.to(half.dtype)
        swapped = [adain(level, style) for level, style in zip((half, quarter, eighth), styles, strict=True)]
        painted = network.decode(moved, swapped, code)
        return recolour(images, painted, wanted, strength)


def field(features: Float[Tensor, "B C H8 W8"], whitened: Float[Tensor, "B 3 H W"]) -> Tensor:
    """Append the colours of each cell to its features, and normalise each channel.

    Returns:
        `(B, C + 3, H8, W8)` in the image's dtype, so that weights of another dtype choose the same patches.
    """
    return normalise(torch.cat([features.to(whitened.dtype), F.avg_pool2d(whitened, AdaIN.multiple)], dim=1))


def retint(whitened: Float[Tensor, "B 3 H W"], tints: Float[Tensor, "B 3 H8 W8"]) -> Float[Tensor, "B 3 H W"]:
    """Replace the low frequencies of an image, and keep its details and channel statistics.

    Args:
        whitened: the whitened image.
        tints: new colour of each cell; they get the mean and deviation of the image's own colours.
    """
    own = F.avg_pool2d(whitened, AdaIN.multiple)
    change = adain(tints, channel_stats(own)) - own
    change = F.interpolate(change, scale_factor=AdaIN.multiple, mode="bilinear")
    return adain(whitened + change, channel_stats(whitened))


def swap(features: Float[Tensor, "B C H W"], dictionary: Float[Tensor, "B K D"]) -> Float[Tensor, "B C H W"]:
    """Replace each patch by the nearest one of the dictionary, and average where patches overlap.

    Chen & Schmidt 2016, eqs. 2 and 3. The nine cells of a patch are computed one after the other. To
    build all patches in memory took a fifth longer and nine times the memory.
    """
    chosen = nearest_patches(features, dictionary)
    index = chosen.flatten(1)[:, None].expand(-1, features.shape[1], -1)
    total, count = torch.zeros_like(features), torch.zeros_like(features[:1, :1])
    for cell, place, number in zip(cells(dictionary), shifts(total), shifts(count), strict=True):
        place += cell.mT.gather(2, index).view_as(place)
        number += 1
    return total / count


def nearest_patches(
    features: Float[Tensor, "B C H W"], dictionary: Float[Tensor, "B K D"]
) -> Int[Tensor, "B H2 W2"]:
    """Find for each patch the dictionary row with the largest cross-correlation (eq. 2).

    The dictionary is normalised. The patch is not, because its norm is the same for all rows.
    """
    parts = zip(cells(F.normalize(dictionary, dim=2)), shifts(features.detach()), strict=True)
    match = torch.stack([cell @ shifted.flatten(2) for cell, shifted in parts]).sum(dim=0)
    return match.argmax(dim=1).unflatten(1, (features.shape[2] - _SIDE + 1, -1))


def shifts(features: Float[Tensor, "B C H W"]) -> Iterator[Tensor]:
    """Return a view `(B, C, H - 2, W - 2)` of the features for each cell of a patch, row by row."""
    height, width = (size - _SIDE + 1 for size in features.shape[-2:])
    for y in range(_SIDE):
        for x in range(_SIDE):
            yield features[:, :, y : y + height, x : x + width]


def cells(dictionary: Float[Tensor, "B K D"]) -> tuple[Tensor, ...]:
    """Return a view `(B, K, C)` of the dictionary for each cell of a patch, in the order of `shifts`."""
    return dictionary.unflatten(2, (-1, _SIDE**2)).unbind(dim=3)


def read_patches(features: Float[Tensor, "B C H W"]) -> Float[Tensor, "B P D"]:
    """Return all patches, `(B, (H - 2) * (W - 2), C * 9)`."""
    return F.unfold(features, _SIDE).mT.contiguous()


def cluster(patches: Float[Tensor, "B N D"], count: int) -> Float[Tensor, "B K D"]:
    """Find `count` centres by spherical k-means (Dhillon & Modha 2001), without randomness.

    It starts with patches far from each other and runs a fixed number of rounds. If there are fewer
    than `count` different patches, some are repeated.

    Returns:
        `(B, count, D)`, each the mean of its patches, sorted from dark to bright: a mixture of two codes
        then mixes similar patches.
    """
    unit = F.normalize(patches, dim=2)
    centres = _take(patches, _farthest_first(unit, count))
    names = torch.arange(count, device=patches.device)
    for _ in range(_ROUNDS):
        owner = (unit @ F.normalize(centres, dim=2).mT).argmax(dim=2)
        member = (owner[:, :, None] == names).to(patches.dtype)  # for a product: index sums vary on a GPU
        size = member.sum(dim=1)[:, :, None]
        centres = torch.where(size > 0, member.mT @ patches / size.clamp_min(1), centres)
    brightness = centres[..., -3 * _SIDE**2 :].mean(dim=2)
    return _take(centres, brightness.argsort(dim=1, stable=True))


def _farthest_first(unit: Float[Tensor, "B N D"], count: int) -> Int[Tensor, "B K"]:
    """Choose patches far from each other, beginning far from the mean (Gonzalez 1985)."""
    similar = (unit * unit.mean(dim=1, keepdim=True)).sum(dim=2)
    rows = [similar.argmin(dim=1, keepdim=True)]
    similar = torch.full_like(similar, -torch.inf)
    while len(rows) < count:
        similar = torch.maximum(similar, (unit @ _take(unit, rows[-1]).mT)[:, :, 0])
        # If all patches are chosen or equal, rounding must not decide which of them are repeated.
        similar = torch.where(similar > 1 - SAME, 1, similar)
        rows.append(similar.argmin(dim=1, keepdim=True))
    return torch.cat(rows, dim=1)


def _take(patches: Float[Tensor, "B N D"], rows: Int[Tensor, "B K"]) -> Float[Tensor, "B K D"]:
    """Select for each image its own rows."""
    return patches.gather(1, rows[:, :, None].expand(-1, -1, patches.shape[2]))
