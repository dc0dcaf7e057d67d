"""How much structure a style leaves: the contrast of small blobs, and where the edges are."""

from collections.abc import Iterator
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from styleaug.images import luminance

__all__ = [
    "EDGES",
    "FINEST",
    "Edges",
    "contrast_kept",
    "contrast_need",
    "edge_kernels",
    "edge_need",
    "gradients",
    "magnitudes",
    "quantiles",
    "reduce",
]

Edges = Literal["sobel", "prewitt", "scharr", "kirsch"]
EDGES = get_args(Edges)

FINEST = 3
"""Side in pixels of the smallest blob whose contrast is measured; others have 2, 4 and 8 times that."""

WINDOWS = (4, 4, 3, 2)
"""Blobs along each side of the windows in which contrast is compared, for each size of blob."""

WORST = 0.1
"""Share of the windows that may keep less than the floor."""

HALF = 2 / 3
"""How much more than the floor half of the windows keep: `floor + HALF * floor * (1 - floor)`."""

QUIET = 0.001
"""Contrast of blobs in a window, in [0, 1], from which on the window counts fully; about."""

STRIDE = 6
"""Edges are compared at every sixth pixel in each direction."""

LEVELS = 4
"""Mixtures whose edges are compared; between them correlation is interpolated."""


def reduce(images: Float[Tensor, "K C H W"]) -> Float[Tensor, "K C Y X"]:
    """Average squares of `FINEST` pixels."""
    side = tuple(min(FINEST, length) for length in images.shape[-2:])
    if images.device.type != "cpu":
        return F.avg_pool2d(images, side)
    # On a CPU a convolution takes a third of the time.
    channels = images.shape[1]
    weight = torch.eye(channels, dtype=images.dtype)[:, :, None, None].expand(-1, -1, *side)
    return F.conv2d(images.contiguous(), weight / (side[0] * side[1]), stride=side)


def brightness(images: Float[Tensor, "K C Y X"]) -> Float[Tensor, "K 1 Y X"]:
    """Return the luminance of images; grey ones are their own."""
    return luminance(images) if images.shape[1] == 3 else images


def contrast_need(
    small: Float[Tensor, "K C Y X"],
    painted: Float[Tensor, "K C Y X"],
    gain: Float[Tensor, " K"],
    floor: float,
) -> Float[Tensor, " K"]:
    """Compute how much of the colour tier the contrast of blobs needs, in each row.

    A blob's contrast is its mean less that of the 3 x 3 around it. In each window the styled one's is
    regressed on the image's: the slope is the share that is left, and texture that the style adds does not
    count as contrast kept. The tier's slope is its gain, and a mixture's lies on the line between the two.

    Args:
        small: reduced images.
        painted: reduced styled ones.
        gain: of the tier.
        floor: see `guard.keep_structure`.
    """
    need = small.new_zeros(len(small))
    for share, counts in contrast_kept(small, painted):
        seen = (counts.sum(dim=1) - 0.01).clamp(0, 1)  # of a flat image there is nothing to keep
        worst, half = quantiles(share, counts, (WORST, 0.5))
        for kept, wanted in ((worst, floor), (half, floor + HALF * floor * (1 - floor))):
            need = torch.maximum(need, seen * ((wanted - kept).clamp_min(0) / (gain - kept).clamp_min(1e-6)))
    return need.clamp_max(1)


def contrast_kept(
    small: Float[Tensor, "K C Y X"], painted: Float[Tensor, "K C Y X"]
) -> Iterator[tuple[Float[Tensor, "K M"], Float[Tensor, "K M"]]]:
    """Yield the share of the blobs' contrast that is left in each window, and how much the window counts.

    For blobs of `FINEST` pixels, then of twice that, and so on, as long as the images are large enough; see
    `contrast_need`.

    Args:
        small: reduced images.
        painted: reduced styled ones.
    """
    both = torch.stack([brightness(small), brightness(painted)]).flatten(0, 1)
    for window in WINDOWS:
        if min(both.shape[-2:]) < 3:
            break
        own, other = blobs(both).chunk(2)
        side = tuple(min(window, length) for length in own.shape[-2:])
        power, product = F.avg_pool2d(torch.cat([own * own, own * other]), side).flatten(1).chunk(2)
        yield product / power.clamp_min(1e-12), power / (power + QUIET**2)
        if min(both.shape[-2:]) < 6:
            break
        both = F.avg_pool2d(both, 2)


def blobs(images: Float[Tensor, "K 1 Y X"]) -> Float[Tensor, "K 1 Y2 X2"]:
    """Take the mean of the 3 x 3 around it off each pixel; sums are faster than a convolution."""
    rows = images[..., :-2, :] + images[..., 1:-1, :] + images[..., 2:, :]
    around = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    return torch.sub(images[..., 1:-1, 1:-1], around, alpha=1 / 9)


def quantiles(
    values: Float[Tensor, "K M"], weights: Float[Tensor, "K M"], ranks: tuple[float, ...]
) -> list[Float[Tensor, " K"]]:
    """Compute weighted quantiles of each row; they move continuously with values and weights."""
    values, order = values.sort(dim=1)
    weights = weights.gather(1, order)
    middle = (weights.cumsum(dim=1) - weights / 2) / weights.sum(dim=1, keepdim=True).clamp_min(1e-12)
    found = []
    for rank in ranks:
        above = (middle < rank).sum(dim=1, keepdim=True).clamp_max(values.shape[1] - 1)
        below = (above - 1).clamp_min(0)
        start, end = middle.gather(1, below), middle.gather(1, above)
        part = ((rank - start) / (end - start).clamp_min(1e-9)).clamp(0, 1)
        found.append(torch.lerp(values.gather(1, below), values.gather(1, above), part)[:, 0])
    return found


def edge_need(
    images: Float[Tensor, "K C H W"], styled: Float[Tensor, "K C H W"], floor: float
) -> Float[Tensor, " K"]:
    """Compute how much of the tier the edges of each row need, to correlate with the image's by `floor`.

    The tier's edges are taken for the image's own: its gain only makes them outweigh the style's sooner.
    """
    mixed = magnitudes(gradients(images, "sobel"), gradients(styled, "sobel"))
    mixed = mixed - mixed.mean(dim=2, keepdim=True)
    wanted = mixed[:, LEVELS]
    product = (mixed @ wanted[:, :, None])[:, :, 0]
    power = mixed.square().sum(dim=2)
    correlation = product / (power * power[:, LEVELS:]).sqrt().clamp_min(1e-9)
    passes = (correlation >= floor) | (power[:, LEVELS:] < 1e-8 * wanted.shape[1])  # flat: no edges to keep
    passes[:, LEVELS] = True
    first = passes.int().argmax(dim=1, keepdim=True)
    at = correlation.gather(1, first)
    before = correlation.gather(1, (first - 1).clamp_min(0))
    part = ((floor - before) / (at - before).clamp_min(1e-6)).clamp(0, 1)
    return torch.where(first > 0, (first - 1 + part) / LEVELS, 0.0)[:, 0]


def magnitudes(own: Float[Tensor, "K 2 Y X"], other: Float[Tensor, "K 2 Y X"]) -> Float[Tensor, "K L Q"]:
    """Compute the gradient magnitudes of mixtures, from the styled image's to the image's own."""
    own, other = own.flatten(2), other.flatten(2)
    share = torch.linspace(0, 1, LEVELS + 1, device=own.device, dtype=own.dtype)
    # A magnitude's square is a parabola in the share.
    parts = torch.stack([other * other, 2 * other * own, own * own], dim=1).sum(dim=2)
    terms = torch.stack([(1 - share) ** 2, share * (1 - share), share**2], dim=1)
    return (terms @ parts).clamp_min(0).sqrt()


def gradients(images: Float[Tensor, "K C H W"], edges: Edges, *, stride: int = STRIDE) -> Tensor:
    """Compute the brightness's differences `(K, D, Y, X)` along each of the kernel's D directions."""
    short = [max(0, 3 - length) for length in images.shape[-2:]]
    if any(short):
        images = F.pad(images, (0, short[1], 0, short[0]), mode="replicate")
    kernels = edge_kernels(edges).to(images.dtype)[:, None]
    if images.shape[1] == 3:
        kernels = kernels * kernels.new_tensor([0.299, 0.587, 0.114])[:, None, None]
    return F.conv2d(images, kernels.to(images.device, non_blocking=True), stride=stride)


def edge_kernels(edges: Edges) -> Float[Tensor, "D 3 3"]:
    """Return a kernel's directions, scaled so that weights of one sign sum to one.

    Sobel, Prewitt and Scharr have two: down and to the right. Kirsch (1971) has eight, each turned by 45
    degrees.
    """
    if edges == "kirsch":
        around = [(0, 0), (0, 1), (0, 2), (1, 2), (2, 2), (2, 1), (2, 0), (1, 0)]
        kernels = torch.full((8, 3, 3), -3.0)
        kernels[:, 1, 1] = 0
        for direction in range(8):
            for step in range(3):
                y, x = around[(direction + step) % 8]
                kernels[direction, y, x] = 5
        return kernels / 15
    across = torch.tensor(
        {"sobel": (1.0, 2.0, 1.0), "prewitt": (1.0, 1.0, 1.0), "scharr": (3.0, 10.0, 3.0)}[edges]
    )
    right = across[:, None] / across.sum() * torch.tensor([-1.0, 0.0, 1.0])
    return torch.stack([right.T, right])
