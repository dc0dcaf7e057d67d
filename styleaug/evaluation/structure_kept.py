"""What styling leaves of the structure of images: where edges are, and the contrast of small blobs."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from styleaug.evaluation.displacement import border_profile, displacements, edge_map, profile_shift
from styleaug.training.losses import edge_correlation
from styleaug.transforms.structure import contrast_kept, quantiles, reduce

__all__ = ["measure"]

CHUNK = 32
"""Images measured at a time."""
SMALL = 2
"""Sizes of small structures: blobs of 3 and of 6 pixels."""


@torch.inference_mode()
def measure(
    images: Float[Tensor, "N 3 H W"],
    styled: Float[Tensor, "N 3 H W"],
    borders: tuple[Bool[Tensor, "N H W"], Bool[Tensor, " N"]] | None = None,
) -> dict[str, float]:
    """Measure where edges are and what contrast is left; NaN, or nothing, where there is nothing to measure.

    Args:
        images: as they were.
        styled: what was made of them.
        borders: masks, and which of the images have one.

    Returns:
        `moved`, `moved_95`: median and 95th percentile of the displacement of edges in windows of 64 pixels,
        in pixels, and `moved_whole`, the median of whole images'. `matched`: share of the windows whose edges
        are found again. `edges`: mean correlation of edges. `contrast`, `contrast_worst`: share of the
        contrast of blobs of 3 and 6 pixels that is kept, in the median window and that of the worst tenth.
        With masks `border`, `border_95`: by how much the edge at their border moves, and `border_contrast`:
        what is left of that edge, over all edges.
    """
    found: dict[str, list[Tensor]] = {name: [] for name in ("whole", "local", "edges", "share", "counts")}
    matched: list[tuple[float, int]] = []
    for own, other in zip(images.split(CHUNK), styled.split(CHUNK), strict=True):
        moved = displacements(own, other)
        found["whole"].append(moved.whole)
        found["local"].append(moved.local)
        if not math.isnan(moved.matched):
            matched.append((moved.matched, len(moved.local)))
        found["edges"].append(edge_correlation(other, own))
        for size, (share, counts) in enumerate(contrast_kept(reduce(own), reduce(other))):
            if size < SMALL:
                found["share"].append(share.flatten())
                found["counts"].append(counts.flatten())
    joined = {name: torch.cat(parts) if parts else torch.zeros(0) for name, parts in found.items()}
    seen = sum(count / share for share, count in matched if share > 0)
    figures = {
        "moved": quantile(joined["local"], 0.5),
        "moved_95": quantile(joined["local"], 0.95),
        "moved_whole": quantile(joined["whole"], 0.5),
        "matched": sum(count for _, count in matched) / seen if seen else math.nan,
        "edges": float(joined["edges"].mean()),
    }
    if joined["counts"].sum() > 0:
        half, worst = quantiles(joined["share"][None], joined["counts"][None], (0.5, 0.1))
        figures |= {"contrast": float(half), "contrast_worst": float(worst)}
    return figures | ({} if borders is None else measure_borders(images, styled, *borders))


def measure_borders(
    images: Float[Tensor, "N 3 H W"],
    styled: Float[Tensor, "N 3 H W"],
    masks: Bool[Tensor, "N H W"],
    known: Bool[Tensor, " N"],
) -> dict[str, float]:
    """Compare the edge at the border of masks before and after."""
    inside = masks[known][:, 1:-1, 1:-1]  # edges are not known of the outermost pixels
    maps = [edge_map(x[known]) for x in (images, styled)]
    own, other = (border_profile(edges, inside) for edges in maps)
    shift = profile_shift(own, other).abs()
    middle = slice(own.shape[1] // 2 - 2, own.shape[1] // 2 + 2)
    sharp = [
        profile[:, middle].mean(dim=1) / edges.mean(dim=(1, 2)).clamp_min(1e-6)
        for profile, edges in zip((own, other), maps, strict=True)
    ]
    return {
        "border": quantile(shift, 0.5),
        "border_95": quantile(shift, 0.95),
        "border_contrast": float((sharp[1] / sharp[0].clamp_min(1e-6)).median()),
    }


def quantile(values: Tensor, share: float) -> float:
    """Give a quantile; NaN of nothing."""
    return float(values.float().quantile(share)) if len(values) else math.nan
