"""Flicker of styled films, by warping error, frame difference and LPIPS; style loss and sharpness.

    STYLEAUG_DATA=../shared/data STYLEAUG_WEIGHTS=../shared/weights \
        python benchmarks/video.py [GENERATOR ...] [--out benchmarks/results/video.json] [--strips FOLDER]

    davis        five clips at 480 x 270, the first frames of each; one held-out painting a clip
    flow_gt      three pairs with true flow; the second image is the film's first frame, so that the true
                 flow leads from the newer frame to the older one

    arms: each frame a style of its own | the same style, each frame by itself (the baseline) |
    StyleAugment on a tv_tensors.Video (statistics of the whole clip) | StyleVideo with DIS flow |
    StyleVideo with Farneback's flow

    warping error     (Lai et al. 2018) x 1e4, mean over pairs of frames, of what can be followed; on davis by
                      Farneback's flow and by DIS: each is another flow than one of the arms goes by
    style loss        as in quality.py, to the painting
    sharpness         root of the mean square of the Laplacian of grey, by the baseline's
    fine detail       its mean size, which noise and faint strokes weigh in, by the baseline's
    ms                processor time of a frame on one thread, flow and blending with it
"""

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from held_out import draw
from jaxtyping import Bool, Float
from machine import publish
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors

from styleaug import StyleAugment, StyleBank, StyleVideo, load_generator
from styleaug.bank import Provenance
from styleaug.generators.layers import channel_stats
from styleaug.images import luminance
from styleaug.perceptual import load_lpips, load_vgg19
from styleaug.training.losses import style_loss
from styleaug.video.flow import consistency, optical_flow, warp

__all__ = ["flicker", "frame_difference", "read_clips", "warping_error"]


def warping_error(
    now: Float[Tensor, "B C H W"],
    before: Float[Tensor, "B C H W"],
    flow: Float[Tensor, "B 2 H W"],
    *,
    visible: Bool[Tensor, "B 1 H W"] | None = None,
) -> Float[Tensor, " B"]:
    """Measure flicker: the mean squared error between a frame and the one before it, moved along.

    Lai et al. 2018, eq. 11, with the mean over channels.

    Args:
        now: in [0, 1].
        before: the frame that the flow leads to.
        flow: from `now` to `before`, true or estimated. NaN where it is unknown, which does not count.
        visible: pixels that count; see `consistency`.

    Returns:
        `(B,)`; NaN where no pixel counts.
    """
    counted = flow.isfinite().all(dim=1, keepdim=True)
    counted = counted if visible is None else counted & visible
    error = (now - warp(before, flow)).square().mean(dim=1, keepdim=True)
    total = torch.where(counted, error, torch.zeros_like(error)).sum(dim=(1, 2, 3))
    return total / counted.sum(dim=(1, 2, 3))


def frame_difference(now: Float[Tensor, "B C H W"], before: Float[Tensor, "B C H W"]) -> Float[Tensor, " B"]:
    """Measure how much changes from one frame to the next: the mean absolute difference."""
    return (now - before).abs().mean(dim=(1, 2, 3))


PAIRS = {
    "flyingchairs_0": ("flyingchairs_0img0.jpg", "flyingchairs_0img1.jpg", "flyingchairs_0flow.npz"),
    "flyingchairs_1": ("flyingchairs_1img0.jpg", "flyingchairs_1img1.jpg", "flyingchairs_1flow.npz"),
    "rubberwhale": ("rubberwhale_frame10.png", "rubberwhale_frame11.png", "rubberwhale_flow10.npz"),
}
MEASURES = ("farneback", "dis")
SEEN_AGAIN = 0.15
"""Largest difference in [0, 1] at which a pixel counts as visible again; true flow ignores occlusion."""
JUDGED = 2
"""Number of frames of a clip whose style loss and LPIPS are measured."""
ANOTHER, BASELINE = "each frame another style", "same style, each frame by itself"
Found = dict[str, dict[str, list[float]]]
Follow = list[dict[str, tuple[Tensor, Tensor]]]
"""For each frame but the first: flows to the frame before by name, and which pixels can be followed."""


def read(path: Path) -> Tensor:
    """Read a picture as `(3, H, W)` in [0, 1]."""
    pixels = np.array(Image.open(path).convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255


def read_clips(folder: Path, frames: int, *, flows: bool = True) -> dict[str, tuple[Tensor, Follow]]:
    """Read the clips, and both flows between their frames if they are wanted."""
    clips = {}
    for path in sorted(folder.iterdir()):
        clip = torch.stack([read(file) for file in sorted(path.glob("*.jpg"))[:frames]])
        ways: Follow = []
        for now, before in zip(clip[1:, None], clip[:-1, None], strict=True) if flows else ():
            found = {name: optical_flow(now, before, method=name) for name in MEASURES}
            held = {
                name: consistency(flow, optical_flow(before, now, method=name))
                for name, flow in found.items()
            }
            ways.append({name: (found[name], held[name]) for name in MEASURES})
        clips[path.name] = (clip, ways)
    return clips


def read_pairs(folder: Path) -> dict[str, tuple[Tensor, Follow]]:
    """Read the pairs as films of two frames, with the true flow."""
    clips = {}
    for name, (one, other, truth) in PAIRS.items():
        now, before = read(folder / one)[None], read(folder / other)[None]
        flow = torch.from_numpy(np.load(folder / truth)["flow"].astype(np.float32)).permute(2, 0, 1)[None]
        visible = (warp(before, flow) - now).abs().amax(dim=1, keepdim=True) < SEEN_AGAIN
        clips[name] = (torch.cat([before, now]), [{"true": (flow, visible)}])
    return clips


def focus(frames: Tensor) -> tuple[float, float]:
    """Compute the root mean square and the mean magnitude of the Laplacian of grey."""
    kernel = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]])[None, None]
    found = F.conv2d(luminance(frames), kernel)
    return found.square().mean().sqrt().item(), found.abs().mean().item()


def arms(name: str, code: Tensor, others: Tensor) -> dict[str, Callable[[Tensor], Tensor]]:
    """Return the functions that style a clip, by name; all use the given code."""
    generator = load_generator(name)

    def bank(codes: Tensor) -> StyleBank:
        return StyleBank(codes, Provenance(generator.name, generator.fingerprint, len(codes)))

    own = bank(code)
    options = {"generator": generator, "p": 1.0, "strength": 1.0, "precision": "float32"}
    single, each = StyleAugment(own, **options), StyleAugment(bank(others), **options)
    return {
        "content, no style": lambda clip: clip,
        ANOTHER: each,
        BASELINE: lambda clip: torch.cat([single(frame[None]) for frame in clip]),
        "StyleAugment on a Video": lambda clip: single(tv_tensors.Video(clip)).as_subclass(Tensor),
        "StyleVideo": StyleVideo(own, **options),
        "StyleVideo, flow=farneback": StyleVideo(own, flow="farneback", **options),
    }


@torch.inference_mode()
def measure(name: str, clips: dict[str, tuple[Tensor, Follow]], judges: tuple, paintings: Tensor) -> Found:
    """Measure all arms of a generator over all clips: arm -> measure -> a value for each clip."""
    vgg, lpips = judges
    generator = load_generator(name)
    codes = torch.cat([generator.encode_style(painting[None]) for painting in paintings])
    found: Found = {}
    for index, (clip, ways) in enumerate(clips.values()):
        wanted = [channel_stats(level) for level in vgg(paintings[index : index + 1])]
        judged = torch.linspace(1, len(clip) - 1, JUDGED).long().unique()
        for arm, style in arms(name, codes[index : index + 1], codes).items():
            torch.manual_seed(index)
            began = time.process_time()
            styled = style(clip)
            values = {"ms": 1000 * (time.process_time() - began) / len(clip)}
            values |= flicker(styled, ways)
            values["LPIPS between frames"] = lpips(styled[judged], styled[judged - 1]).mean().item()
            if arm != ANOTHER:
                losses = [style_loss(vgg(styled[at, None]), wanted).item() for at in judged]
                values["style loss"] = float(np.mean(losses))
                values["sharpness"], values["fine detail"] = focus(styled[1:])
            for key, value in values.items():
                found.setdefault(arm, {}).setdefault(key, []).append(value)
    return found


def flicker(styled: Tensor, ways: Follow) -> dict[str, float]:
    """Measure how much changes from frame to frame, along each kind of flow and in place."""
    pairs = list(zip(ways, styled[1:, None], styled[:-1, None], strict=True))
    values = {"frame difference": frame_difference(styled[1:], styled[:-1]).mean().item()}
    for kind in ways[0]:
        errors = [
            warping_error(now, before, way[kind][0], visible=way[kind][1]) for way, now, before in pairs
        ]
        values[f"warping error, {kind}"] = 1e4 * torch.cat(errors).mean().item()
    return values


def table(name: str, found: Found) -> dict[str, dict[str, float]]:
    """Average over clips; most measures also as the ratio to the baseline, or how much less in percent."""
    rows = {}
    for arm, values in found.items():
        row: dict[str, float] = {}
        for key, each in values.items():
            mean, base = float(np.mean(each)), float(np.mean(found[BASELINE][key]))
            if key not in ("sharpness", "fine detail"):
                row[key] = float(f"{mean:.4g}")
            if key.startswith("warping error"):
                row[f"less, {key.split()[-1]} %"] = round(100 * (1 - mean / base), 1)
            elif key in ("style loss", "sharpness", "fine detail"):
                row[f"{key}, ratio"] = round(mean / base, 3)
        rows[f"{name}: {arm}"] = row
    return rows


def draw_strips(name: str, clips: dict[str, tuple[Tensor, Follow]], paintings: Tensor, folder: Path) -> None:
    """Save the frames of each clip: content, baseline and StyleVideo below each other."""
    generator = load_generator(name)
    folder.mkdir(parents=True, exist_ok=True)
    for index, (title, (clip, _)) in enumerate(clips.items()):
        code = generator.encode_style(paintings[index : index + 1])
        made = arms(name, code, code)
        rows = [clip, made[BASELINE](clip), made["StyleVideo"](clip)]
        shown = torch.linspace(0, len(clip) - 1, 5).long()
        sheet = torch.cat([torch.cat(list(row[shown]), dim=2) for row in rows], dim=1)
        pixels = (sheet.permute(1, 2, 0) * 255).round().byte().numpy()
        Image.fromarray(pixels).save(folder / f"{name}-{title}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("generators", nargs="*", default=["reinhard-rgb", "photo", "adain", "patchswap"])
    parser.add_argument("--frames", type=int, default=12)
    parser.add_argument("--strips", type=Path)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    data, weights = Path(os.environ["STYLEAUG_DATA"]), Path(os.environ["STYLEAUG_WEIGHTS"])
    films, pairs = read_clips(data / "davis", args.frames), read_pairs(data / "flow_gt")
    paintings = draw([data / "style/artwall_cc0"], 256, len(films), torch.Generator().manual_seed(0))
    judges = load_vgg19(weights).eval(), load_lpips(weights)
    rows: dict[str, dict] = {}
    for name in args.generators:
        if args.strips:
            draw_strips(name, films, paintings, args.strips)
        rows |= table(f"davis, {name}", measure(name, films, judges, paintings))
        rows |= table(f"flow_gt, {name}", measure(name, pairs, judges, paintings))
        print(publish(None, name, {key: row for key, row in rows.items() if f", {name}:" in key}), flush=True)
    notes = (
        f"{args.frames} frames of each davis clip; errors x 1e4; `less` is how much less than the same style "
        "on each frame by itself; ms are processor time, flow included. RAFT is not measured."
    )
    publish(args.out, "Flicker of styled films", rows, notes=notes)


if __name__ == "__main__":
    main()
