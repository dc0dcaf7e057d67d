"""Displacement of edges by styling, from phase correlation and from the borders of masks."""

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
"""Side in pixels of the windows for local displacement; neighbours overlap by half."""
FLOOR = 0.1
"""Frequencies with less power than this share of the strongest frequency's get a lower weight."""
FINE = 0.1
"""Step in pixels between values of the correlation around its peak; a parabola refines the peak."""
_REACH = 1.5
"""Distance in pixels from the coarse peak up to which the correlation is computed."""
MATCHED = 0.3
"""Least height of the peak at which two windows match. It is 1 if they only differ by a shift."""
EMPTY = 0.02
"""A window with a smaller deviation of edge magnitudes has no edges."""
RINGS = 6
"""Distance in pixels from a mask's border, on both sides, within which edges are searched."""


class Displacement(NamedTuple):
    """Displacement of edges."""

    whole: Float[Tensor, " B"]
    """Displacement of each whole image, in pixels."""

    local: Float[Tensor, " M"]
    """Displacement of each window with edges in both images, over all images, in pixels."""

    matched: float
    """Share of the windows with edges whose edges are found again; NaN if no window has edges."""


def edge_map(images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B Y X"]:
    """Compute the Sobel magnitude of brightness at all but the outermost pixels."""
    return gradients(images, "sobel", stride=1).square().sum(dim=1).sqrt()


def displacements(
    images: Float[Tensor, "B 3 H W"], styled: Float[Tensor, "B 3 H W"], *, window: int = _WINDOW
) -> Displacement:
    """Measure how far the edges of styled images have moved.

    Args:
        images: original images in [0, 1].
        styled: styled images of the same size.
        window: side in pixels of the local windows; at most the image's side.
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
    """Find the shift with which `other` fits `one` best, to a few hundredths of a pixel.

    Phase correlation in a Hann window; the peak is refined by the Fourier series around it (Guizar-Sicairos
    et al. 2008) and a parabola.

    Args:
        one: maps with sides of at least 4 pixels.
        other: maps of the same size.

    Returns:
            The shift of `other` down and to the right in pixels, and the height of the peak: 1 if the maps
            only differ by a shift, about 0 if they share nothing.
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
    # Whitened, except for very weak frequencies, whose phase is noise.
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
    """Subtract the weighted mean of each map, so that the window itself does not correlate."""
    return maps - (maps * weights).sum(dim=(1, 2), keepdim=True) / weights.sum()


def wrapped(place: Int[Tensor, " B"], length: int) -> Int[Tensor, " B"]:
    """Convert positions beyond the middle to negative ones."""
    return torch.where(place > length // 2, place - length, place)


def around(cross: Tensor, coarse: Float[Tensor, "B 2"], steps: Float[Tensor, " U"]) -> Float[Tensor, "B U U"]:
    """Compute the correlation at fine steps around its coarse peak from its Fourier series."""

    def waves(length: int, start: Float[Tensor, " B"]) -> Tensor:
        turn = torch.fft.fftfreq(length, device=cross.device, dtype=steps.dtype) * 2 * math.pi
        return torch.polar(torch.ones_like(steps[0]), (start[:, None] + steps)[..., None] * turn)

    down, across = waves(cross.shape[1], coarse[:, 0]), waves(cross.shape[2], coarse[:, 1])
    return (down @ cross @ across.mT).real


def parabola(line: Float[Tensor, "B U"], top: Int[Tensor, " B"]) -> Float[Tensor, " B"]:
    """Find the vertex of a parabola through the largest value and its neighbours, in steps."""
    middle = top.clamp(1, line.shape[1] - 2)
    left, centre, right = (line.gather(1, (middle + by)[:, None])[:, 0] for by in (-1, 0, 1))
    bend = (left - 2 * centre + right).clamp_max(-1e-12)
    return torch.where(middle == top, 0.5 * (left - right) / bend, 0.0).clamp(-1, 1)


def border_profile(edges: Float[Tensor, "B H W"], masks: Bool[Tensor, "B H W"]) -> Float[Tensor, "B R"]:
    """Compute the mean edge magnitude at each distance from a mask's border, from inside to outside.

    Args:
        edges: magnitudes at every pixel of the mask.
        masks: True inside.

    Returns:
        Means for distances of `-RINGS + 0.5` to `RINGS - 0.5` pixels; 0 if a mask has no pixels there.
    """
    inside, outside = rings(masks), rings(~masks)
    both = [*reversed(inside), *outside]
    return torch.stack(
        [(edges * ring).sum(dim=(1, 2)) / ring.sum(dim=(1, 2)).clamp_min(1) for ring in both], dim=1
    )


def rings(masks: Bool[Tensor, "B H W"]) -> list[Float[Tensor, "B H W"]]:
    """Return rings of one pixel of the masks, from the border inwards.

    Erosion alternates between straight and diagonal neighbours, which approximates a circle better.
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
    """Compute how far the edge at a border has moved outwards, in pixels, by the profiles' centres.

    Args:
        own: profiles of the original images.
        other: profiles of the styled images.
    """

    def centre(profile: Tensor) -> Tensor:
        weights = (profile - profile.amin(dim=1, keepdim=True)).square()
        places = torch.arange(profile.shape[1], device=profile.device) - (profile.shape[1] - 1) / 2
        return (weights * places).sum(dim=1) / weights.sum(dim=1).clamp_min(1e-12)

    return centre(other) - centre(own)


_CHUNK = 32
"""Number of images measured at a time."""
_SMALL = 2
"""Number of sizes of small structures: blobs of 3 and of 6 pixels."""


@torch.inference_mode()
def measure(
    images: Float[Tensor, "N 3 H W"],
    styled: Float[Tensor, "N 3 H W"],
    borders: tuple[Bool[Tensor, "N H W"], Bool[Tensor, " N"]] | None = None,
) -> dict[str, float]:
    """Measure the displacement of edges and the remaining contrast; NaN or no key if not measurable.

    Args:
        images: original images in [0, 1].
        styled: styled images of the same size.
        borders: masks, and which of the images have one.

    Returns:
        `moved`, `moved_95`: median and 95th percentile of the displacement of edges in windows of 64 pixels,
        in pixels. `moved_whole`: the median for whole images. `matched`: share of the windows whose edges
        are found again. `edges`: mean correlation of edges. `contrast`, `contrast_worst`: kept share of the
        contrast of blobs of 3 and 6 pixels, in the median window and in the worst tenth of windows.
        With masks, `border`, `border_95`: displacement of the edge at their border in pixels;
        `border_contrast`: remaining share of that edge, relative to all edges.
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
    """Compare the edge at the border of masks before and after styling."""
    inside = masks[known][:, 1:-1, 1:-1]  # the outermost pixels have no edge magnitude
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
    """Compute a quantile; NaN if there are no values."""
    return float(values.float().quantile(share)) if len(values) else math.nan
