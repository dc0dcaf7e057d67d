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

    Sums over the levels the mean squared error of the means plus that of the deviations.

    Args:
        levels: features `(B, C_l, H_l, W_l)`.
        stats: `(B, 2 C_l)` targets, as `channel_stats` gives them.
        rows: give `(B,)` instead of the mean over the batch.
    """
    errors = [(channel_stats(x) - y).square().mean(dim=1) for x, y in zip(levels, stats, strict=True)]
    total = 2 * torch.stack(errors).sum(dim=0)
    return total if rows else total.mean()


def content_loss(
    level: Float[Tensor, "B C H W"], target: Float[Tensor, "B C H W"], *, rows: bool = False
) -> Tensor:
    """Compare features after instance normalisation, so that style statistics are free to move.

    Args:
        level: of the painted images.
        target: of the content.
        rows: give `(B,)` instead of the mean over the batch.
    """
    own, wanted = normalise(level.float()), normalise(target.float())
    return (own - wanted).square().mean(dim=(1, 2, 3)) if rows else F.mse_loss(own, wanted)


def edge_correlation(
    one: Float[Tensor, "B 3 H W"],
    other: Float[Tensor, "B 3 H W"],
    kernels: Float[Tensor, "D 3 3"] | None = None,
) -> Float[Tensor, " B"]:
    """Correlate the edges of two batches of images, as grey; 1 where none differs.

    Args:
        one: in [0, 1].
        other: of the same size.
        kernels: an edge is the length of the two directions, or the largest of more. None is Sobel's two.
    """
    if kernels is None:
        kernel = torch.tensor([[1, 0, -1], [2, 0, -2], [1, 0, -1]], dtype=one.dtype, device=one.device)
        kernels = torch.stack([kernel, kernel.T])
    edges = []
    for images in (one, other):
        sides = F.conv2d(luminance(images), kernels[:, None].to(images))
        # The square root needs a floor for its gradient.
        size = (sides.square().sum(1) + 1e-6).sqrt() if len(kernels) == 2 else sides.amax(1)
        edges.append(size.flatten(1) - size.flatten(1).mean(1, keepdim=True))
    return F.cosine_similarity(edges[0], edges[1], dim=1, eps=1e-12)


def gamut_loss(images: Float[Tensor, "B C H W"]) -> Tensor:
    """Penalise values outside [0, 1], in proportion."""
    return (images - images.clamp(0, 1)).abs().mean()


def edge_loss(one: Float[Tensor, "B 3 H W"], other: Float[Tensor, "B 3 H W"]) -> Tensor:
    """Give 1 minus the mean correlation of the edges of two batches."""
    return (1 - edge_correlation(one, other)).mean()


def fool_loss(logits: Tensor, kind: _Adversarial) -> Tensor:
    """Tell the generator how far a discriminator is from taking its images for real.

    Args:
        logits: what the discriminator says of generated images, any shape.
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
    """Tell the discriminator how well it parts real from generated images; see `fool_loss`.

    Args:
        real: its logits for real images.
        fake: for generated ones.
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
    """Square the discriminator's gradient at real images (Mescheder 2018, eq. 9, without gamma / 2).

    Args:
        images: real ones, which require a gradient.
        logits: what the discriminator said of them; summed over places.
    """
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradient.square().flatten(1).sum(dim=1).mean()


def patch_nce(
    query: Float[Tensor, "B P C"], key: Float[Tensor, "B P C"], temperature: float = 0.07
) -> Float[Tensor, " B"]:
    """Ask that each place of the output is most like the same place of the input (Park 2020, eq. 3).

    Args:
        query: unit vectors of the output's places.
        key: of the input's, which are not moved; the other places of the same image are the negatives.
        temperature: tau.
    """
    scores = query @ key.detach().mT / temperature
    same = torch.arange(query.shape[1], device=query.device).expand(len(query), -1)
    losses = F.cross_entropy(scores.flatten(0, 1), same.flatten(), reduction="none")
    return losses.view(same.shape).mean(dim=1)


def kl_loss(mean: Float[Tensor, "B Z"], log_variance: Float[Tensor, "B Z"]) -> Tensor:
    """Measure how far codes are from the standard normal distribution (Kingma 2014, appendix B)."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(dim=1).mean()
