"""Where edges are after styling: sub-pixel displacement by phase correlation, and the borders of masks."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from styleaug.training.losses import edge_correlation
from styleaug.transforms.structure import contrast_kept, gradients, quantiles, reduce

__all__ = [
    "Displacement",
    "border_profile",
    "displacements",
    "edge_map",
    "measure",
    "phase_shift",
    "profile_shift",
]

_WINDOW = 64
"""Side in pixels of the windows in which displacement is local; neighbours overlap by half."""
FLOOR = 0.1
"""Share of the strongest frequency's power below which a frequency counts less than fully."""
FINE = 0.1
"""Step in pixels at which the correlation around its peak is computed; a parabola tells the rest."""
_REACH = 1.5
"""Pixels around the peak in which it is."""
MATCHED = 0.3
"""Height of the peak, 1 where nothing but the place differs, from which on two windows show the same."""
EMPTY = 0.02
"""Deviation of the edges in a window below which there is no edge in it to speak of."""
RINGS = 6
"""Pixels on each side of a mask's border at which edges are looked for."""


class Displacement(NamedTuple):
    """How far edges have moved."""

    whole: Float[Tensor, " B"]
    """Of each image as a whole, in pixels."""

    local: Float[Tensor, " M"]
    """Of each window that has edges in both images, of all images, in pixels."""

    matched: float
    """Share of the windows with edges whose edges are found again; NaN where no window has any."""


def edge_map(images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B Y X"]:
    """Give the Sobel magnitude of brightness at every pixel but the outermost."""
    return gradients(images, "sobel", stride=1).square().sum(dim=1).sqrt()


def displacements(
    images: Float[Tensor, "B 3 H W"], styled: Float[Tensor, "B 3 H W"], *, window: int = _WINDOW
) -> Displacement:
    """Measure how far the edges of styled images have moved.

    Args:
        images: as they were, in [0, 1].
        styled: what was made of them, of the same size.
        window: side in pixels of the local windows; the whole image where it is smaller.
    """
    own, other = edge_map(images), edge_map(styled)
    shift, _ = phase_shift(own, other)
    parts = [_cut(x, min(window, *x.shape[1:])) for x in (own, other)]
    worth = parts[0].flatten(1).std(dim=1) > EMPTY
    local, height = phase_shift(parts[0][worth], parts[1][worth])
    found = height >= MATCHED
    matched = float(found.double().mean()) if len(found) else math.nan
    return Displacement(shift.norm(dim=1), local[found].norm(dim=1), matched)


def _cut(maps: Float[Tensor, "B Y X"], side: int) -> Float[Tensor, "M S S"]:
    """Cut windows that overlap by half."""
    step = max(1, side // 2)
    return maps.unfold(1, side, step).unfold(2, side, step).flatten(0, 2)


def phase_shift(
    one: Float[Tensor, "B Y X"], other: Float[Tensor, "B Y X"]
) -> tuple[Float[Tensor, "B 2"], Float[Tensor, " B"]]:
    """Find by which shift `other` fits `one` best, to a few hundredths of a pixel.

    Phase correlation in a Hann window; the peak is refined by the Fourier series around it (Guizar-Sicairos
    et al. 2008) and a parabola.

    Args:
        one: maps, at least 4 pixels on a side.
        other: of the same size.

    Returns:
        How far down and to the right the content of `other` lies, in pixels; and how high the peak is, 1
        where nothing but the place differs and about 0 where nothing is shared.
    """
    if len(one) == 0:
        return one.new_zeros(0, 2), one.new_zeros(0)
    height, width = one.shape[1:]
    hann = torch.hann_window(height, periodic=False).to(one)[:, None] * torch.hann_window(
        width, periodic=False
    ).to(one)
    spectra = [torch.fft.fft2(centred(x, hann) * hann) for x in (one, other)]
    cross = spectra[1] * spectra[0].conj()
    power = cross.abs()
    # Whitened, but for frequencies that are hardly there: their phase is noise.
    cross = cross / power.clamp_min(1e-20).maximum(FLOOR * power.amax(dim=(1, 2), keepdim=True))
    total = cross.abs().sum(dim=(1, 2)).clamp_min(1e-12)
    peak = torch.fft.ifft2(cross).real.flatten(1).argmax(dim=1)
    coarse = torch.stack([wrapped(peak // width, height), wrapped(peak % width, width)], dim=1).to(one.dtype)
    steps = torch.arange(-_REACH, _REACH + FINE / 2, FINE, device=one.device, dtype=one.dtype)
    fine = around(cross, coarse, steps) / total[:, None, None]
    at = fine.flatten(1).argmax(dim=1)
    row, column = at // len(steps), at % len(steps)
    rows = torch.arange(len(fine), device=one.device)
    offset = torch.stack([parabola(fine[rows, :, column], row), parabola(fine[rows, row], column)], dim=1)
    shift = coarse + torch.stack([steps[row], steps[column]], dim=1) + FINE * offset
    return shift, fine.flatten(1).amax(dim=1)


def centred(maps: Float[Tensor, "B Y X"], weights: Float[Tensor, "Y X"]) -> Float[Tensor, "B Y X"]:
    """Take the weighted mean off each map, lest the window itself be correlated."""
    return maps - (maps * weights).sum(dim=(1, 2), keepdim=True) / weights.sum()


def wrapped(place: Int[Tensor, " B"], length: int) -> Int[Tensor, " B"]:
    """Give places beyond the middle as negative ones."""
    return torch.where(place > length // 2, place - length, place)


def around(cross: Tensor, coarse: Float[Tensor, "B 2"], steps: Float[Tensor, " U"]) -> Float[Tensor, "B U U"]:
    """Sum the Fourier series of the correlation at fine steps around its coarse peak."""

    def waves(length: int, start: Float[Tensor, " B"]) -> Tensor:
        turn = torch.fft.fftfreq(length, device=cross.device, dtype=steps.dtype) * 2 * math.pi
        return torch.polar(torch.ones_like(steps[0]), (start[:, None] + steps)[..., None] * turn)

    down, across = waves(cross.shape[1], coarse[:, 0]), waves(cross.shape[2], coarse[:, 1])
    return (down @ cross @ across.mT).real


def parabola(line: Float[Tensor, "B U"], top: Int[Tensor, " B"]) -> Float[Tensor, " B"]:
    """Find the top of a parabola through the largest of some values and its neighbours, in steps."""
    middle = top.clamp(1, line.shape[1] - 2)
    left, centre, right = (line.gather(1, (middle + by)[:, None])[:, 0] for by in (-1, 0, 1))
    bend = (left - 2 * centre + right).clamp_max(-1e-12)
    return torch.where(middle == top, 0.5 * (left - right) / bend, 0.0).clamp(-1, 1)


def border_profile(edges: Float[Tensor, "B H W"], masks: Bool[Tensor, "B H W"]) -> Float[Tensor, "B R"]:
    """Average edges at each distance from the border of a mask, from inside to outside.

    Args:
        edges: magnitudes at every pixel of the mask.
        masks: True inside.

    Returns:
        For distances of `-RINGS + 0.5` to `RINGS - 0.5` pixels; 0 where a mask is too small to have one.
    """
    inside, outside = rings(masks), rings(~masks)
    both = [*reversed(inside), *outside]
    return torch.stack(
        [(edges * ring).sum(dim=(1, 2)) / ring.sum(dim=(1, 2)).clamp_min(1) for ring in both], dim=1
    )


def rings(masks: Bool[Tensor, "B H W"]) -> list[Float[Tensor, "B H W"]]:
    """Peel rings of one pixel off masks, from the border inwards.

    Steps are straight and diagonal in turn, which is nearer to round than either.
    """
    left = masks.float()[:, None]
    found = []
    for number in range(RINGS):
        if number % 2:
            smaller = -F.max_pool2d(-left, 3, 1, 1)
        else:
            smaller = -torch.maximum(
                F.max_pool2d(-left, (3, 1), 1, (1, 0)), F.max_pool2d(-left, (1, 3), 1, (0, 1))
            )
        found.append((left - smaller)[:, 0])
        left = smaller
    return found


def profile_shift(own: Float[Tensor, "B R"], other: Float[Tensor, "B R"]) -> Float[Tensor, " B"]:
    """Tell how far the edge at a border has moved outwards, in pixels: by the profiles' centres.

    Args:
        own: profiles of the images as they were.
        other: of the styled ones.
    """

    def centre(profile: Tensor) -> Tensor:
        weights = (profile - profile.amin(dim=1, keepdim=True)).square()
        places = torch.arange(profile.shape[1], device=profile.device) - (profile.shape[1] - 1) / 2
        return (weights * places).sum(dim=1) / weights.sum(dim=1).clamp_min(1e-12)

    return centre(other) - centre(own)


_CHUNK = 32
"""Images measured at a time."""
_SMALL = 2
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
    for own, other in zip(images.split(_CHUNK), styled.split(_CHUNK), strict=True):
        moved = displacements(own, other)
        found["whole"].append(moved.whole)
        found["local"].append(moved.local)
        if not math.isnan(moved.matched):
            matched.append((moved.matched, len(moved.local)))
        found["edges"].append(edge_correlation(other, own))
        for size, (share, counts) in enumerate(contrast_kept(reduce(own), reduce(other))):
            if size < _SMALL:
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
