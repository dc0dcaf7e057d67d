"""`StyleVideo`: one style for a whole film, without flicker; frame by frame, of any length.

A frame is painted with statistics that change slowly. It is then blended with the previous frame, which is
warped by optical flow (Ruder et al. 2016, Huang et al. 2017), where the flow is reliable. Blending softens
strokes, so the contrast of fine detail is restored afterwards.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Unpack, get_args

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.utils._pytree import tree_unflatten
from torchvision import tv_tensors

from styleaug.bank import StyleBank
from styleaug.checks import check_share
from styleaug.errors import ConfigError, ImageError
from styleaug.generators.ambient import as_usual
from styleaug.images import check_range, from_float, to_float
from styleaug.transforms.augment import WITHIN_BATCH, StyleAugment
from styleaug.transforms.base import Transform, is_image_tensor
from styleaug.transforms.host import with_options
from styleaug.transforms.options import CommonOptions, P, Precision
from styleaug.transforms.params import StyleParams
from styleaug.transforms.sample import describe, find_images, flatten
from styleaug.transforms.splice import composite, mask_weights, read_masks, unspliced
from styleaug.video.flow import FlowMethod, consistency, flow_function, warp
from styleaug.video.steady import Past, steady
from styleaug.video.track import Box, Track, check_box

__all__ = [
    "Stream",
    "StyleVideo",
    "Where",
    "blend_frames",
    "sharpen",
]

TRUST = 0.25
"""Largest difference (in [0, 1]) between a frame and the warped previous frame for blending."""
_REACH = 4
"""Radius in pixels of the squares over which fine detail is compared."""
UNLIKE, _ALIKE = 0.6, 0.95
"""Correlation of fine detail: below the first it is not blended, above the second it is blended fully."""
BANDS, _MOST_GAIN = 3, 2.0
"""Number of frequency bands in which contrast is restored, and the largest gain."""


def _trusted(now: Tensor, before: Tensor, back: Tensor, forth: Tensor) -> Float[Tensor, "B 1 H W"]:
    """Return how reliably each pixel can be followed to the previous frame, in [0, 1], with soft borders.

    The flow must agree in both directions, and the pixels must look the same; otherwise there are ghosts.
    """
    held = consistency(back, forth, boundaries=False).float()
    unlike = box((warp(before, back) - now).square().mean(dim=1, keepdim=True), 1)
    likely = held * torch.exp(unlike / (-2 * TRUST**2))
    return box(-F.max_pool2d(-likely, 3, 1, 1), 1)


def blend_frames(
    fresh: Float[Tensor, "B C H W"], before: Float[Tensor, "B C H W"], share: Float[Tensor, "B 1 H W"]
) -> Float[Tensor, "B C H W"]:
    """Blend a frame with a share of the previous frame; fine detail only where both agree.

    The mean of different strokes is blurred: it is softer than both, and its style loss is higher.
    """
    lower = [box(box(image, 1), 1) for image in (fresh, before)]
    detail = fresh - lower[0], before - lower[1]
    product = lambda one, other: box((one * other).mean(dim=1, keepdim=True), _REACH)  # noqa: E731
    power = product(detail[0], detail[0]) * product(detail[1], detail[1])
    likeness = product(*detail) / power.clamp_min(1e-10).sqrt()
    alike = ((likeness - UNLIKE) / (_ALIKE - UNLIKE)).clamp(0, 1)
    change = torch.addcmul(lower[1] - lower[0], alike, detail[1] - detail[0])
    return torch.addcmul(fresh, change, share)


def sharpen(blended: Float[Tensor, "B C H W"], fresh: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
    """Raise the contrast of each band of `blended` to that of `fresh`, where it is lower."""
    result = blended
    for radius in (2**level for level in range(BANDS)):
        lower, wanted = (box(box(image, radius), radius) for image in (blended, fresh))
        detail = blended - lower
        power = [x.square().mean(dim=(1, 2, 3), keepdim=True) for x in (fresh - wanted, detail)]
        gain = (power[0] / power[1].clamp_min(1e-9)).sqrt().clamp(1, _MOST_GAIN)
        result = torch.addcmul(result, detail, gain - 1)
        blended, fresh = lower, wanted
    return result


def box(images: Float[Tensor, "B C H W"], radius: int) -> Float[Tensor, "B C H W"]:
    """Average over squares with a side of `2 * radius + 1` pixels; edges are repeated.

    On a CPU, shifted sums take a sixth of the time of `avg_pool2d`.
    """
    height, width = images.shape[2:]
    wide = F.pad(images, (radius,) * 4, mode="replicate")
    rows = wide[..., :width].clone()
    for at in range(1, 2 * radius + 1):
        rows += wide[..., at : at + width]
    total = rows[:, :, :height].clone()
    for at in range(1, 2 * radius + 1):
        total += rows[:, :, at : at + height]
    return total.mul_(1 / (2 * radius + 1) ** 2)


Where = Literal["everywhere", "inside", "outside", "both"]
WHERES = get_args(Where)
FLOW_SIDE = 640
"""Longer side of the frames between which flow is estimated."""
CUT_FOLLOWED, CUT_CHANGE = 0.15, 0.15
"""Limits for a cut: the share of a frame that can be followed is lower, or, without flow, the mean change of
the thumbnail is higher."""
Flow = FlowMethod | Callable[[Tensor, Tensor], Tensor] | None


class StyleVideo(Transform):
    """Paint a clip in one style without flicker; masks, boxes and labels stay unchanged.

    Place it before `Normalize`. The input is a clip `(T, C, H, W)`, a batch `(B, T, C, H, W)` with one
    style per clip, or any nested sample. In a sample, each `tv_tensors.Video` is stylised; without one, the
    plain tensor with four or five axes and an image's dtype. If there are several, it is the one under a
    key such as `video` or `image`. Frames depend only on earlier frames, so `stream` does the same for a
    film of any length.

    Args:
        bank: a shipped name, a path, a `StyleBank`, or a run folder; see `StyleAugment`.
        p: probability of stylising a clip, in [0, 1].
        smoothing: share of earlier frames in the content statistics, in [0, 1); 0 uses each frame alone. The
            share of a frame halves in log(0.5) / log(smoothing) frames.
        flow: `"dis"` (Kroeger et al. 2016) or `"farneback"`, which need opencv-python; `"raft"`, which
            needs torchvision's weights in the cache of torch.hub; a function that maps two batches
            `(B, 3, H, W)` in [0, 1] to `(B, 2, H, W)` px from the first to the second; None does not blend.
        reuse: share of the warped previous frame where the flow is reliable, in [0, 1).
        where: `"inside"` styles the area of the mask, `"outside"` the rest, with a soft border; `"both"`
            draws one style for each. The mask is the first `tv_tensors.Mask` of the sample, and is not
            changed: `(T, 1, H, W)` or `(T, H, W)`, alpha in [0, 1], booleans or labels.
        track: `(x, y, width, height)` in pixels of an object on the first frame. It is followed, and its mask
            takes the place of one in the sample; `where="outside"` spares it. Needs opencv-python. If the
            object is lost, a warning says at which frame, and no later frame has it.
        precision: precision of a network's weights; see `StyleAugment`.
        options: `generator`, `strength`, `sampler`, `blend` and `bands`; see `StyleAugment`.

    Shape:
        The shape of the input; dtype, range and device are also kept.

    Raises:
        BankError: the bank is damaged, unknown, or made by another generator.
        WeightsError: the generator is damaged or unknown, or RAFT has no weights.
        ConfigError: an argument is out of range, or OpenCV is not installed.
        ImageError: a call has no clip, NaN, values outside [0, 1], or no mask where one is needed.

    Example:
        >>> video = StyleVideo("art", generator="adain", strength=0.8)  # doctest: +SKIP
        >>> clip = video(torch.rand(8, 3, 120, 160))  # doctest: +SKIP
    """

    smoothing: float
    reuse: float

    @with_options
    def __init__(
        self,
        bank: str | Path | StyleBank | None = None,
        *,
        p: float = P,
        smoothing: float = 0.7,
        flow: Flow = "dis",
        reuse: float = 0.7,
        where: Where | None = None,
        track: Box | None = None,
        precision: Precision = "auto",
        **options: Unpack[CommonOptions],
    ):
        super().__init__()
        if isinstance(bank, str) and bank == WITHIN_BATCH:
            raise ConfigError('bank="batch" takes styles from other images; a clip needs a bank.')
        if where is None:
            where = "everywhere" if track is None else "inside"
        if where not in WHERES:
            raise ConfigError(f"where must be one of {', '.join(WHERES)}, got {where!r}.")
        for name, share in (("smoothing", smoothing), ("reuse", reuse)):
            if check_share(name, share) == 1:
                raise ConfigError(f"{name} must be below 1: at 1 the first frame would never change.")
        self.smoothing, self.reuse, self.where = float(smoothing), float(reuse), where
        self.flow: Flow = flow
        self.box: tuple[float, float, float, float] | None = None if track is None else check_box(track)
        if self.box and where == "everywhere":
            raise ConfigError('track has a mask; use where="inside", "outside" or "both", not "everywhere".')
        if self.box:
            Track(self.box)  # fails here without OpenCV
        self.stylizer: StyleAugment = StyleAugment(
            bank,
            p=p,
            splice="mask" if where == "both" else None,
            least_side=1,  # frames are large, and strokes are blended at their size
            precision=precision,
            **options,
        )
        if reuse:
            flow_function(flow, side=FLOW_SIDE)  # fails here rather than in the middle of a film

    @property
    def by_mask(self) -> bool:
        """Whether a sample needs masks."""
        return self.where != "everywhere" and self.box is None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"

    def extra_repr(self) -> str:
        """Return the options for `repr`."""
        steadied = f"smoothing={self.smoothing}, flow={self.flow!r}, reuse={self.reuse}, where={self.where!r}"
        steadied += f", track={self.box}" if self.box else ""
        return f"{self.stylizer.extra_repr()}, {steadied}"

    def forward(self, *inputs: Any) -> Any:
        """Stylise the clips of a sample; the sample is one argument or several.

        Raises:
            ImageError: no clip, several values that could be the clip, or no mask where one is needed.
        """
        leaves, spec = flatten(inputs if len(inputs) != 1 else inputs[0])
        values = [value for _, value in leaves]
        chosen = find_images(leaves, wrapped=(tv_tensors.Video,), plain=is_clip)
        if not chosen:
            kinds = ", ".join(sorted({describe(value) for value in values})) or "nothing"
            raise ImageError(
                f"no clip in the sample: got {kinds}. Give a tv_tensors.Video, or a uint8, uint16 or float "
                "tensor (T, C, H, W) or (B, T, C, H, W)."
            )
        masks = [value for value in values if isinstance(value, tv_tensors.Mask)] if self.by_mask else []
        if self.by_mask and not masks:
            raise ImageError(
                f'where="{self.where}" needs a mask in the sample, and there is none. '
                "Wrap it: tv_tensors.Mask(mask)."
            )
        params = self.make_params([*(values[at] for at in chosen), *masks])
        for at in chosen:
            values[at] = self.apply(values[at], params)
        return tree_unflatten(values, spec)

    def make_params(self, flat_inputs: Any, *, rng: torch.Generator | None = None) -> dict[str, Any]:
        """Draw all random values of one call, on the CPU.

        Args:
            flat_inputs: the clips of a sample, or one clip or batch of clips; only shapes are read.
            rng: random generator; None uses torch's global one, which DataLoader seeds in each worker.

        Returns:
            A `StyleParams`; `apply` with it and the same clip replays the call. With `where`, it also holds
            the mask, if that was among the inputs.
        """
        inputs = flat_inputs if isinstance(flat_inputs, (list, tuple)) else [flat_inputs]
        masks = [value for value in inputs if isinstance(value, tv_tensors.Mask)]
        counts = {count_clips(value) for value in inputs if not isinstance(value, tv_tensors.Mask)}
        if len(counts) > 1:
            raise ImageError(f"the clips of one sample must be equally many, got {sorted(counts)}.")
        return {**self.stylizer.draw(counts.pop(), rng), **({"masks": masks[0]} if masks else {})}

    @as_usual()
    def apply(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, clip: Any, params: dict[str, Any] | None = None, *, masks: Any = None
    ) -> Any:
        """Stylise `clip` with `params`; nothing is random.

        With a function as the only argument, it is `nn.Module.apply`, as in `model.apply(initialise)`.

        Args:
            clip: `(T, C, H, W)` or `(B, T, C, H, W)`; uint8, uint16 or float in [0, 1].
            params: from `make_params`.
            masks: masks to use instead of those in `params`: `(T, 1, H, W)`, `(T, H, W)`, or the same with
                B in front. With `(B, 1, H, W)`, all frames of a clip share one mask.

        Returns:
            A clip of the same type, shape, dtype and device; `clip` itself if it is not stylised.

        Raises:
            ImageError: no clip, parameters for a larger batch, or masks that are missing or do not fit.
        """
        if params is None:
            return super().apply(clip)
        count = count_clips(clip)
        style: StyleParams = params  # pyright: ignore[reportAssignmentType]
        streams = {int(row): self.follow(style, int(row)) for row in unspliced(style["rows"])[0]}
        streams = {row: stream for row, stream in streams.items() if stream.coats}
        self.stylizer.check(clip)
        if not streams or clip.numel() == 0:
            return clip
        if max(streams) >= count:
            raise ImageError(f"these parameters are for a larger batch than the {count} clips given.")
        plain = clip.as_subclass(Tensor)
        films = plain if plain.ndim == 5 else plain[None]
        frames, size = films.shape[1], (films.shape[-2], films.shape[-1])
        masks = params.get("masks") if masks is None else masks
        shown = [None] * (count * frames)
        if masks is not None and self.by_mask:
            found = read_masks(masks, count, frames, size)
            shown = [found[at * len(found) // len(shown)] for at in range(len(shown))]
        styled = films.clone()
        for row, stream in streams.items():
            for at in range(frames):
                styled[row, at] = stream(films[row, at], mask=shown[row * frames + at])
            if stream.track and stream.track.lost:
                warnings.warn(stream.track.lost, stacklevel=2)
        styled = styled.reshape(clip.shape)
        if not isinstance(clip, tv_tensors.TVTensor):
            return styled
        return tv_tensors.wrap(styled, like=clip)  # pyright: ignore[reportCallIssue]

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Stylise one clip of a sample for torchvision; return a mask unchanged."""
        return inpt if isinstance(inpt, tv_tensors.Mask) else self.apply(inpt, params)

    def stream(self, params: dict[str, Any] | None = None, *, rng: torch.Generator | None = None) -> "Stream":
        """Return a function that stylises the frames of a film one after the other, in bounded memory.

        Args:
            params: from `make_params` of one clip; None draws them.
            rng: random generator; None uses torch's global one.

        Example:
            >>> stream = StyleVideo("art", p=1).stream()  # doctest: +SKIP
            >>> styled = [stream(frame) for frame in frames]  # doctest: +SKIP
        """
        style: StyleParams = self.stylizer.draw(1, rng) if params is None else params  # pyright: ignore
        return self.follow(style, 0)

    def follow(self, params: StyleParams, row: int) -> "Stream":
        """Return a stream for one of the clips; it has no coats if the clip is not stylised."""
        entries = (params["rows"] == row).nonzero()[:, 0]
        coats: list[Coat | None] = []
        for entry in entries.tolist():
            loud = float(params["strength"][entry]) > 0
            coats.append(Coat(self.stylizer, only(params, entry)) if loud else None)
        coats = coats if any(coats) else []
        if coats and self.where == "inside":
            coats = [*coats, None]
        elif coats and self.where == "outside":
            coats = [None, *coats]
        estimate = flow_function(self.flow, side=FLOW_SIDE) if self.reuse and coats else None
        track = Track(self.box) if self.box and coats else None
        return Stream(self.stylizer, coats, estimate, smoothing=self.smoothing, reuse=self.reuse, track=track)


@dataclass
class Coat:
    """One style over a film, and its state from earlier frames."""

    stylizer: StyleAugment
    params: StyleParams
    past: Past = field(default_factory=Past)
    before: Float[Tensor, "1 C H W"] | None = None

    def forget(self) -> None:
        """Forget earlier frames, as at a cut."""
        self.past.forget()
        self.before = None

    def paint(
        self,
        frame: Float[Tensor, "1 C H W"],
        moved: tuple[Tensor, Tensor] | None,
        *,
        smoothing: float,
        reuse: float,
    ) -> Float[Tensor, "1 C H W"]:
        """Paint the next frame; `moved` is the flow to the previous frame and its reliability."""
        with steady(self.past, keep=smoothing):
            fresh = self.stylizer.apply(frame, self.params)
        if moved is not None and self.before is not None:
            flow, trust = moved
            blended = blend_frames(fresh, warp(self.before, flow, sharp=True), reuse * trust)
            fresh = sharpen(blended, fresh).clamp_(0, 1)
        self.before = fresh
        return fresh


class Stream:
    """Stylise the frames of one film in order; `StyleVideo.stream` makes it.

    It keeps only the statistics, the last frame, the last styled frame and, with a track, its last mask.
    """

    stylizer: StyleAugment
    coats: list[Coat | None]
    flow: Callable[[Tensor, Tensor], Tensor] | None
    smoothing: float
    reuse: float

    def __init__(
        self,
        stylizer: StyleAugment,
        coats: list[Coat | None],
        flow: Callable[[Tensor, Tensor], Tensor] | None,
        *,
        smoothing: float,
        reuse: float,
        track: Track | None = None,
    ):
        self.stylizer, self.coats, self.flow = stylizer, coats, flow
        self.smoothing, self.reuse = smoothing, reuse
        self.track = track
        self.alpha: Float[Tensor, "1 1 H W"] | None = None
        self.seen: Tensor | None = None

    @as_usual()
    @torch.no_grad()
    def __call__(self, frame: Any, *, mask: Any = None) -> Any:
        """Stylise the next frame.

        Args:
            frame: a PIL image, an array `(H, W[, C])` or a tensor `(C, H, W)`; all frames have one size.
            mask: `(H, W)` or `(1, H, W)`, the mask for `where`; none with a track.

        Returns:
            A frame of the same type, shape and dtype; `frame` itself if the film is not stylised.

        Raises:
            ImageError: the frame has another size, NaN or values outside [0, 1], or the mask is missing or
                does not fit.
        """
        if not self.coats:
            return frame
        pixels, restore = self.stylizer.to_pixels(frame)
        check_range(pixels)
        if len(pixels) != 1:
            raise ImageError(f"a stream takes one frame after the other, got {len(pixels)} at once.")
        parts = len(self.coats)
        if self.track and mask is not None:
            raise ImageError("the mask is that of the track; leave out mask.")
        if parts > 1 and mask is None and not self.track:
            raise ImageError("this style needs a mask; give mask=... with each frame.")
        unit = to_float(pixels)
        moved = self.move(unit)
        paint = {"smoothing": self.smoothing, "reuse": self.reuse}
        looks = [unit if coat is None else coat.paint(unit, moved, **paint) for coat in self.coats]
        if parts == 1:
            return restore(from_float(looks[0], pixels.dtype))
        shown = (
            self.followed(moved)
            if self.track
            else read_masks(mask, 1, 1, (unit.shape[-2], unit.shape[-1])).to(unit.device)
        )
        weights = mask_weights(shown, parts)
        styled = from_float(composite(torch.stack(looks, dim=1), weights), pixels.dtype)
        if pixels.is_floating_point():  # float32 in between must not round what is left as it is
            quiet = sum(weights[:, at : at + 1] for at, coat in enumerate(self.coats) if coat is None)
            styled = torch.where(torch.as_tensor(quiet, device=unit.device) == 1, pixels, styled)
        return restore(styled)

    def followed(self, moved: tuple[Tensor, Tensor] | None) -> Float[Tensor, "1 H W"]:
        """Return the mask of the tracked object in the last frame, steadied along the flow as frames are."""
        assert self.track is not None and self.seen is not None
        pixels = (255 * self.seen[0]).round().byte().permute(1, 2, 0).cpu().numpy()
        mask = self.track(np.ascontiguousarray(pixels))
        alpha = torch.from_numpy(mask).to(self.seen.device, torch.float32)[None, None]
        if moved is not None and self.alpha is not None and not self.track.lost:
            flow, trust = moved
            alpha = torch.lerp(alpha, warp(self.alpha, flow).clamp(0, 1), self.reuse * trust)
        self.alpha = alpha
        return alpha[:, 0]

    def move(self, unit: Float[Tensor, "1 C H W"]) -> tuple[Tensor, Tensor] | None:
        """Return the flow to the last frame and its reliability; at a cut, forget earlier frames."""
        shown = unit if unit.shape[1] == 3 else unit.mean(dim=1, keepdim=True).expand(-1, 3, -1, -1)
        last, self.seen = self.seen, shown
        if last is None:
            return None
        if last.shape != shown.shape:
            raise ImageError(
                f"the frames of a film must be of one size, got {tuple(shown.shape[-2:])} after "
                f"{tuple(last.shape[-2:])}."
            )
        if self.flow is None:
            thumbs = [F.adaptive_avg_pool2d(image, 8) for image in (shown, last)]
            cut, moved = float((thumbs[0] - thumbs[1]).abs().mean()) > CUT_CHANGE, None
        else:
            back = self.flow(shown, last)
            trust = _trusted(shown, last, back, self.flow(last, shown))
            cut, moved = float(trust.mean()) < CUT_FOLLOWED, (back, trust)
        if not cut:
            return moved
        for coat in self.coats:
            if coat is not None:
                coat.forget()
        return None


def only(params: StyleParams, entry: int) -> StyleParams:
    """Return the parameters of one entry, for a single image."""
    own, codes = slice(entry, entry + 1), params["codes"]
    return StyleParams(
        rows=torch.zeros(1, dtype=torch.int64),
        strength=params["strength"][own],
        codes=None if codes is None else codes[own],
        sources=params["sources"][own],
        shares=params["shares"][own],
        fields=None,
    )


def is_clip(value: Any) -> bool:
    """Return True if a value is a plain tensor that can be a clip or a batch of clips."""
    return is_image_tensor(value) and value.ndim in (4, 5)


def count_clips(clip: Any) -> int:
    """Return the number of clips.

    Raises:
        ImageError: the value is not a clip.
    """
    if not isinstance(clip, Tensor) or clip.ndim not in (4, 5):
        shape = tuple(clip.shape) if isinstance(clip, Tensor) else type(clip).__name__
        raise ImageError(f"a clip must be a tensor (T, C, H, W) or (B, T, C, H, W), got {shape}.")
    return clip.shape[0] if clip.ndim == 5 else 1
