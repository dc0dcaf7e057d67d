"""The losses of style transfer and of adversarial training, as pure functions of tensors."""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from styleaug.generators.layers import channel_stats, normalise
from styleaug.images import luminance

__all__ = [
    "content_loss",
    "discriminator_loss",
    "edge_correlation",
    "edge_loss",
    "fool_loss",
    "gamut_loss",
    "kl_loss",
    "patch_nce",
    "r1_penalty",
    "style_loss",
]

_Adversarial = Literal["lsgan", "hinge", "logistic"]


def style_loss(levels: list[Tensor], stats: list[Tensor], *, rows: bool = False) -> Tensor:
    """Compare channel means and deviations with `stats` (Huang & Belongie 2017, eq. 13).

    The loss is the mean squared error of the means plus that of the deviations, summed over the levels.

    Args:
        levels: features `(B, C_l, H_l, W_l)`.
        stats: `(B, 2 C_l)` targets, as `channel_stats` returns them.
        rows: return `(B,)` instead of the mean over the batch.
    """
    errors = [(channel_stats(x) - y).square().mean(dim=1) for x, y in zip(levels, stats, strict=True)]
    total = 2 * torch.stack(errors).sum(dim=0)
    return total if rows else total.mean()


def content_loss(
    level: Float[Tensor, "B C H W"], target: Float[Tensor, "B C H W"], *, rows: bool = False
) -> Tensor:
    """Compare features after instance normalisation, which leaves the style statistics free.

    Args:
        level: features of the painted images.
        target: features of the content.
        rows: return `(B,)` instead of the mean over the batch.
    """
    own, wanted = normalise(level.float()), normalise(target.float())
    return (own - wanted).square().mean(dim=(1, 2, 3)) if rows else F.mse_loss(own, wanted)


def edge_correlation(
    one: Float[Tensor, "B 3 H W"],
    other: Float[Tensor, "B 3 H W"],
    kernels: Float[Tensor, "D 3 3"] | None = None,
) -> Float[Tensor, " B"]:
    """Compute the correlation of the edges of two batches of grey-scaled images; 1 if they are equal.

    Args:
        one: `(B, 3, H, W)` in [0, 1].
        other: images of the same shape.
        kernels: edge filters. Two are combined as the length of a vector, more by their maximum. None is
            Sobel's two filters.
    """
    if kernels is None:
        side = 1 - torch.arange(3, dtype=one.dtype, device=one.device)  # copied numbers would wait for a GPU
        kernel = (2 - side.abs())[:, None] * side
        kernels = torch.stack([kernel, kernel.T])
    edges = []
    for images in (one, other):
        sides = F.conv2d(luminance(images), kernels[:, None].to(images))
        # A small constant keeps the gradient of the square root finite.
        size = (sides.square().sum(1) + 1e-6).sqrt() if len(kernels) == 2 else sides.amax(1)
        edges.append(size.flatten(1) - size.flatten(1).mean(1, keepdim=True))
    return F.cosine_similarity(edges[0], edges[1], dim=1, eps=1e-12)


def gamut_loss(images: Float[Tensor, "B C H W"]) -> Tensor:
    """Compute the mean distance of values outside [0, 1] from [0, 1]."""
    return (images - images.clamp(0, 1)).abs().mean()


def edge_loss(one: Float[Tensor, "B 3 H W"], other: Float[Tensor, "B 3 H W"]) -> Tensor:
    """Compute 1 minus the mean correlation of the edges of two batches."""
    return (1 - edge_correlation(one, other)).mean()


def fool_loss(logits: Tensor, kind: _Adversarial) -> Tensor:
    """Compute the generator's loss: how far a discriminator is from classifying its images as real.

    Args:
        logits: the discriminator's logits for generated images, any shape.
        kind: `"lsgan"` (Mao 2017, eq. 2 with b = c = 1), `"hinge"` (Lim & Ye 2017) or `"logistic"`
            (Goodfellow 2014, the non-saturating form).
    """
    match kind:
        case "lsgan":
            return (logits - 1).square().mean()
        case "hinge":
            return -logits.mean()
        case "logistic":
            return F.softplus(-logits).mean()


def discriminator_loss(real: Tensor, fake: Tensor, kind: _Adversarial) -> Tensor:
    """Compute the discriminator's loss on real and generated images; see `fool_loss`.

    Args:
        real: its logits for real images.
        fake: its logits for generated images.
        kind: as for `fool_loss`; the two terms are averaged.
    """
    match kind:
        case "lsgan":
            return 0.5 * ((real - 1).square().mean() + fake.square().mean())
        case "hinge":
            return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
        case "logistic":
            return 0.5 * (F.softplus(-real).mean() + F.softplus(fake).mean())


def r1_penalty(images: Float[Tensor, "B C H W"], logits: Tensor) -> Tensor:
    """Compute the squared gradient at real images (R1, Mescheder 2018, eq. 9, without gamma / 2).

    Args:
        images: real images that require a gradient.
        logits: the discriminator's logits for them; they are summed over positions.
    """
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradient.square().flatten(1).sum(dim=1).mean()


def patch_nce(
    query: Float[Tensor, "B P C"], key: Float[Tensor, "B P C"], temperature: float = 0.07
) -> Float[Tensor, " B"]:
    """Compute PatchNCE: each position of the output should match that of the input (Park 2020, eq. 3).

    Args:
        query: unit vectors of positions of the output.
        key: unit vectors of the same positions of the input, without gradient. The other positions of the
            same image are the negatives.
        temperature: tau, above 0.
    """
    scores = query @ key.detach().mT / temperature
    same = torch.arange(query.shape[1], device=query.device).expand(len(query), -1)
    losses = F.cross_entropy(scores.flatten(0, 1), same.flatten(), reduction="none")
    return losses.view(same.shape).mean(dim=1)


def kl_loss(mean: Float[Tensor, "B Z"], log_variance: Float[Tensor, "B Z"]) -> Tensor:
    """Compute the KL divergence of codes from the standard normal distribution (Kingma 2014, app. B)."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(dim=1).mean()
