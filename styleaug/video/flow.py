"""Optical flow: estimate it, warp images with it, and find where it is reliable.

A flow from `one` to `other` gives, for each pixel of `one`, the displacement to its position in `other`:
x to the right, y downwards, in pixels. So `warp(other, flow)` aligns `other` with `one`.
"""

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from styleaug.errors import ConfigError, ImageError, WeightsError, missing_extra
from styleaug.generators.ambient import as_usual
from styleaug.images import luminance
from styleaug.io.paths import in_utf8

__all__ = ["FlowMethod", "consistency", "flow_function", "load_raft", "optical_flow", "warp"]

FlowMethod = Literal["dis", "farneback", "raft"]
METHODS = get_args(FlowMethod)
RAFT_WEIGHTS = "raft_small_C_T_V2-01064c6d.pth"
"""Name of torchvision's download."""
RAFT_STEP, RAFT_LEAST = 8, 128
"""RAFT's sides in pixels must be a multiple of the first number, and at least the second."""
FARNEBACK: dict[str, Any] = {
    "pyr_scale": 0.5,
    "levels": 5,
    "winsize": 15,
    "iterations": 3,
    "poly_n": 5,
    "poly_sigma": 1.1,
}
_LEAST_SIDE = 32
"""Least side in pixels for OpenCV's DIS; the edges of smaller images are repeated."""


def optical_flow(
    one: Tensor,
    other: Tensor,
    *,
    method: FlowMethod = "dis",
    side: int | None = None,
    weights: str | Path | None = None,
) -> Float[Tensor, "B 2 H W"]:
    """Estimate the displacement of each pixel from `one` to `other`.

    Args:
        one: `(B, 3, H, W)` in [0, 1].
        other: `(B, 3, H, W)` in [0, 1].
        method: `"dis"` (Kroeger et al. 2016) or `"farneback"` (Farneback 2003), which need opencv-python
            and run on the CPU; or `"raft"` (Teed & Deng 2020), the small network of torchvision.
        side: larger images are reduced until their longer side is this many pixels, and the flow is
            enlarged; None does not reduce them.
        weights: for `"raft"`, see `load_raft`.

    Raises:
        ConfigError: the method is unknown, or OpenCV is not installed.
        ImageError: the images have different sizes.
        WeightsError: there are no weights for RAFT.
    """
    if method not in METHODS:
        raise ConfigError(f"the method of optical flow must be one of {', '.join(METHODS)}, got {method!r}.")
    if one.shape != other.shape:
        raise ImageError(f"flow needs images of one size, got {tuple(one.shape)} and {tuple(other.shape)}.")
    estimate = load_raft(weights) if method == "raft" else partial(opencv_flow, method=method)
    height, width = one.shape[2:]
    scale = 1.0 if side is None else min(1.0, side / max(height, width))
    if scale == 1:
        return estimate(one, other)
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    flow = estimate(*(F.interpolate(x, size, mode="bilinear", antialias=True) for x in (one, other)))
    ratio = flow.new_tensor([width / size[1], height / size[0]])
    return F.interpolate(flow, (height, width), mode="bilinear") * ratio[:, None, None]


def flow_function(
    method: FlowMethod | Callable[[Tensor, Tensor], Tensor] | None,
    *,
    side: int | None = None,
    weights: str | Path | None = None,
) -> Callable[[Tensor, Tensor], Tensor] | None:
    """Return a function that estimates flow; raise an error now if the method is not available.

    Args:
        method: see `optical_flow`; a function of two batches, or None, is returned unchanged.
        side: see `optical_flow`.
        weights: see `optical_flow`.
    """
    if method is None or callable(method):
        return method
    if method == "raft":
        load_raft(weights)
    else:
        optical_flow(torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 16), method=method)
    return lambda one, other: optical_flow(one, other, method=method, side=side, weights=weights)


def opencv_flow(
    one: Float[Tensor, "B 3 H W"], other: Float[Tensor, "B 3 H W"], *, method: FlowMethod
) -> Float[Tensor, "B 2 H W"]:
    """Estimate flow with OpenCV, one pair after the other."""
    cv2 = import_cv2(f"the optical flow {method!r} (flow=None does without)")
    height, width = one.shape[2:]
    flows = [torch.zeros(0, 2, height, width)]
    for pair in zip(grey_bytes(one), grey_bytes(other), strict=True):
        if method == "farneback":
            flow = cv2.calcOpticalFlowFarneback(*pair, None, flags=0, **FARNEBACK)
        else:
            flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM).calc(*pair, None)
        flows.append(torch.from_numpy(flow).permute(2, 0, 1)[None, :, :height, :width])
    return torch.cat(flows).to(one.device, torch.float32)


def import_cv2(what: str) -> Any:
    """Import OpenCV; raise `MissingExtraError` if it is missing."""
    try:
        import cv2
    except ImportError:
        raise missing_extra(what, "OpenCV", "video") from None
    return cv2


def grey_bytes(images: Float[Tensor, "B 3 H W"]) -> np.ndarray:
    """Return images as grey uint8 `(B, H, W)` for OpenCV, with small images extended."""
    grey = luminance(images.detach().float().cpu())
    missing = [max(0, _LEAST_SIDE - side) for side in grey.shape[2:]]
    grey = F.pad(grey, (0, missing[1], 0, missing[0]), mode="replicate")[:, 0]
    return grey.mul(255).round_().clamp_(0, 255).byte().numpy()


def load_raft(weights: str | Path | None = None) -> Callable[[Tensor, Tensor], Tensor]:
    """Return frozen RAFT-small as a function of two batches; the network is kept for the next call.

    Args:
        weights: torchvision's file, or a `.safetensors` file with the same names. None uses the file in the
            cache of torch.hub; nothing is downloaded.

    Raises:
        WeightsError: the file is missing, or holds other weights.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / RAFT_WEIGHTS if weights is None else Path(weights)
    if not path.is_file():
        raise WeightsError(
            f"there are no weights for RAFT at {path}. Let torchvision download them once, "
            '`raft_small(weights="DEFAULT")` of torchvision.models.optical_flow, give the path of '
            f'{RAFT_WEIGHTS}, or use flow="dis".'
        )
    return raft_of(path)


@cache
@as_usual(for_autograd=True)
def raft_of(path: Path) -> Callable[[Tensor, Tensor], Tensor]:
    """Read RAFT-small from a file; see `load_raft`."""
    from torchvision.models.optical_flow import raft_small

    network = raft_small(weights=None)
    try:
        safe = path.suffix == ".safetensors"
        with in_utf8(path) as name:
            state: Any = load_file(name) if safe else torch.load(name, map_location="cpu", weights_only=True)
        network.load_state_dict(state)
    except (OSError, RuntimeError, ValueError, TypeError, KeyError, SafetensorError, EOFError) as error:
        raise WeightsError(f"{path} does not hold the weights of raft_small: {error}") from None
    except Exception as error:  # unpickling damaged files raises errors of any kind
        raise WeightsError(f"cannot read the weights {path}: {error}") from None
    network.eval().requires_grad_(False)
    copies: dict[torch.device, nn.Module] = {}

    @torch.no_grad()
    def estimate(one: Tensor, other: Tensor) -> Tensor:
        if one.device not in copies:
            copies[one.device] = network.to(one.device)
        height, width = one.shape[2:]
        padded = [pad_for_raft(images.float() * 2 - 1) for images in (one, other)]
        return copies[one.device](*padded)[-1][..., :height, :width]

    return estimate


def pad_for_raft(images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H2 W2"]:
    """Pad images at the right and bottom with repeated edges, to a size that RAFT accepts."""
    height, width = images.shape[2:]
    wanted = [max(RAFT_LEAST, -(-side // RAFT_STEP) * RAFT_STEP) for side in (height, width)]
    return F.pad(images, (0, wanted[1] - width, 0, wanted[0] - height), mode="replicate")


def warp(
    images: Float[Tensor, "B C H W"], flow: Float[Tensor, "B 2 H W"], *, sharp: bool = False
) -> Float[Tensor, "B C H W"]:
    """Warp `images` with a flow: the result at p is the image at p + flow(p).

    Args:
        images: any range; edges are repeated beyond the border.
        flow: in pixels. If it is NaN, the result at that pixel is undefined.
        sharp: use cubic interpolation instead of linear; it may leave the range.
    """
    height, width = images.shape[2:]
    rows = torch.arange(height, device=flow.device, dtype=flow.dtype)[:, None]
    columns = torch.arange(width, device=flow.device, dtype=flow.dtype)
    flow = flow.nan_to_num(0, 0, 0)
    # Pixel centres lie at (2 i + 1) / size - 1.
    x = (columns + flow[:, 0]) * (2 / width) + (1 / width - 1)
    y = (rows + flow[:, 1]) * (2 / height) + (1 / height - 1)
    grid = torch.stack([x, y], dim=3).to(images.dtype)
    mode = "bicubic" if sharp else "bilinear"
    return F.grid_sample(images, grid, mode=mode, padding_mode="border", align_corners=False)


def consistency(
    forward: Float[Tensor, "B 2 H W"], backward: Float[Tensor, "B 2 H W"], *, boundaries: bool = True
) -> Bool[Tensor, "B 1 H W"]:
    """Return a mask of reliable flow: going forward and backward ends near the start.

    Ruder et al. 2016, eqs. 5 and 6. Pixels that leave the image or are occluded are not reliable.

    Args:
        forward: flow from the first image to the second.
        backward: flow from the second image to the first.
        boundaries: also exclude the edges of moving objects, where flow is least exact.
    """
    back = warp(backward, forward)
    squared = lambda flow: flow.square().sum(dim=1, keepdim=True)  # noqa: E731
    length = squared(forward) + squared(back)
    held = (squared(forward + back) <= 0.01 * length + 0.5) & _inside(forward)
    if boundaries:
        held &= change_of(forward) <= 0.01 * squared(forward) + 0.002
    return held & forward.isfinite().all(dim=1, keepdim=True)


def _inside(flow: Float[Tensor, "B 2 H W"]) -> Bool[Tensor, "B 1 H W"]:
    """Return a mask of pixels that stay inside the image."""
    height, width = flow.shape[2:]
    x = torch.arange(width, device=flow.device) + flow[:, :1]
    y = torch.arange(height, device=flow.device)[:, None] + flow[:, 1:]
    return (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)


def change_of(flow: Float[Tensor, "B 2 H W"]) -> Float[Tensor, "B 1 H W"]:
    """Return the sum of squared gradients of both components of a flow."""
    wide = F.pad(flow, (1, 1, 1, 1), mode="replicate")
    x = (wide[:, :, 1:-1, 2:] - wide[:, :, 1:-1, :-2]) / 2
    y = (wide[:, :, 2:, 1:-1] - wide[:, :, :-2, 1:-1]) / 2
    return (x.square() + y.square()).sum(dim=1, keepdim=True)
