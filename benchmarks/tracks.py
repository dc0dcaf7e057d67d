"""How well a box on the first frame follows an object, and whether films styled along it are steady.

STYLEAUG_DATA=../shared/data python benchmarks/tracks.py [--out benchmarks/results/tracks.json]
    [--strip docs/pictures/track.jpg]

davis     five clips at 480 x 270, with boxes drawn by hand. No true masks: the first mask of the track
          is carried on by Farneback's flow, which the track does not use, frame after frame
pasted    patches of photographs that move, grow and shrink over another photograph, with true masks

overlap           area that both masks have, of the area that one of them has: mean over frames but the
                  first, and in the last frame
box, MIL          the same of boxes: OpenCV's TrackerMIL, mean and standard deviation of three runs
ms                processor time of a frame on one thread, for the mask alone
warping error     as in video.py, of `adain` on the object alone
"""

import argparse
import os
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from held_out import tiles
from machine import publish
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_tensor
from video import flicker, read_clips

from styleaug import StyleVideo
from styleaug.bank import Provenance, StyleBank
from styleaug.sheets import contact_sheet
from styleaug.video.flow import optical_flow, warp
from styleaug.video.track import Track
from styleaug.weights import load_generator

BOXES = {
    "blackswan": (83, 38, 208, 182),
    "car-shadow": (158, 60, 184, 108),
    "dance-twirl": (208, 56, 90, 185),
    "goat": (232, 56, 112, 184),
    "horsejump-high": (44, 36, 194, 166),
}
"""Left, top, width and height in pixels, with some room around the object."""
ROOM = 6
"""Pixels of room around the patches in their boxes."""
RUNS = 3


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Return intersection over union of two masks; 0 if both are empty."""
    return float((one & other).sum() / max(1, (one | other).sum()))


def rectangle(mask: np.ndarray) -> np.ndarray:
    """Return the mask of the smallest box around a mask."""
    filled = np.zeros_like(mask)
    if mask.any():
        y, x = np.nonzero(mask)
        filled[y.min() : y.max() + 1, x.min() : x.max() + 1] = True
    return filled


def carried(clip: Tensor, mask: np.ndarray) -> list[np.ndarray]:
    """Carry a mask on along Farneback's flow from each frame to the one before."""
    shown, masks = torch.from_numpy(mask).float()[None, None], [mask]
    for now, before in zip(clip[1:, None], clip[:-1, None], strict=True):
        shown = warp(shown, optical_flow(now, before, method="farneback"))
        masks.append(shown[0, 0].numpy() > 0.5)
    return masks


def pasted(
    ground: Image.Image, paint: Image.Image, seed: int, frames: int
) -> tuple[Tensor, list[np.ndarray]]:
    """Move a patch of one photograph over another; return the clip and the true masks."""
    rng = np.random.default_rng(seed)
    width, height = 480, 270
    backdrop = np.asarray(ground.resize((width + 40, height + 40)))
    start, end = rng.uniform((130, 90), (200, 180)), rng.uniform((260, 90), (350, 180))
    radii, growth = rng.uniform(40, 60, 2), rng.uniform(0.75, 1.3)
    waves, phase = rng.integers(2, 5), rng.uniform(0, 6)
    clip, masks = [], []
    for at in np.linspace(0, 1, frames):
        centre, scale = start + at * (end - start), growth**at
        y, x = np.mgrid[:height, :width]
        away = np.stack([(x - centre[0]) / radii[0], (y - centre[1]) / radii[1]]) / scale
        angle = np.arctan2(away[1], away[0])
        mask = np.hypot(*away) < 1 + 0.2 * np.sin(waves * angle + phase)
        place = ((away * 0.35 + 0.5).clip(0, 1) * (paint.width - 1)).astype(np.float32)
        patch = cv2.remap(np.asarray(paint), place[0], place[1], cv2.INTER_LINEAR)
        left = round(40 * at)
        frame = np.where(mask[..., None], patch, backdrop[left : left + height, left : left + width])
        soft = cv2.GaussianBlur(frame, (3, 3), 0)
        clip.append(torch.from_numpy(soft).permute(2, 0, 1).float() / 255)
        masks.append(mask)
    return torch.stack(clip), masks


def as_bytes(clip: Tensor) -> list[np.ndarray]:
    """Return the frames as OpenCV and tracks take them."""
    return list((255 * clip).round().byte().permute(0, 2, 3, 1).contiguous().numpy())


def follow_boxes(frames: list[np.ndarray], box: tuple, wanted: list[np.ndarray]) -> list[float]:
    """Return the mean overlap of TrackerMIL's boxes in each of `RUNS` runs."""
    found = []
    for _ in range(RUNS):
        tracker = cv2.TrackerMIL_create()
        tracker.init(frames[0], tuple(map(round, box)))
        each = []
        for frame, mask in zip(frames[1:], wanted[1:], strict=True):
            left, top, wide, high = tracker.update(frame)[1]
            filled = np.zeros_like(mask)
            filled[max(0, top) : max(0, top + high), max(0, left) : max(0, left + wide)] = True
            each.append(overlap(filled, rectangle(mask)))
        found.append(float(np.mean(each)))
    return found


def measure(clip: Tensor, box: tuple, truth: list[np.ndarray] | None) -> dict:
    """Measure one clip."""
    frames, track = as_bytes(clip), Track(box)
    began = time.process_time()
    masks = [track(frame) for frame in frames]
    spent = 1000 * (time.process_time() - began) / len(frames)
    wanted = truth or carried(clip, masks[0])
    found = [overlap(*pair) for pair in zip(masks, wanted, strict=True)]
    boxes = [overlap(rectangle(one), rectangle(other)) for one, other in zip(masks, wanted, strict=True)]
    mil = follow_boxes(frames, box, wanted)
    return {
        "overlap": round(float(np.mean(found[1:])), 3),
        "in the last frame": round(found[-1], 3),
        **({"in the first frame": round(found[0], 3)} if truth else {}),
        "box": round(float(np.mean(boxes[1:])), 3),
        "box, MIL": round(float(np.mean(mil)), 3),
        "MIL, deviation of runs": round(float(np.std(mil)), 3),
        "lost at frame": track.lost.partition(" at frame ")[2].partition(":")[0] or "never",
        "ms": round(spent, 1),
    }


def steadiness(clips: dict, paintings: list[Image.Image]) -> dict[str, dict]:
    """Measure the warping error of styled objects: their masks as found, and steadied with the film."""
    generator = load_generator("adain")
    rows: dict[str, list[dict]] = {}
    for (name, (clip, ways)), painting in zip(clips.items(), paintings, strict=True):
        codes = generator.encode_style(to_tensor(painting)[None])
        bank = StyleBank(codes, Provenance(generator.name, generator.fingerprint, 1))
        options = {"generator": generator, "p": 1.0, "strength": 1.0, "precision": "float32"}
        track = Track(BOXES[name])
        masks = torch.from_numpy(np.stack([track(frame) for frame in as_bytes(clip)]))
        plain = StyleVideo(bank, **options, where="inside", flow=None, reuse=0, smoothing=0)
        steady = StyleVideo(bank, **options, where="inside")
        params = plain.make_params(clip, rng=torch.Generator().manual_seed(0))
        arms = {
            "content, no style": clip,
            "object, each frame by itself": plain.apply(clip, params, masks=masks),
            "object, mask as it was found": steady.apply(clip, params, masks=masks),
            "object, track": StyleVideo(bank, **options, track=BOXES[name]).apply(clip, params),
        }
        for arm, styled in arms.items():
            rows.setdefault(arm, []).append(flicker(styled, ways))
    return {
        f"davis, adain: {arm}": {
            key: float(f"{np.mean([row[key] for row in found]):.4g}") for key in found[0] if "warping" in key
        }
        for arm, found in rows.items()
    }


def strip(data: Path, frames: int = 6) -> Image.Image:
    """Draw a camera that moves towards an animal in a photograph: the film, the animal styled, and spared."""
    photo, painting = tiles(data / "content/caltech101", 24, 320)[6], tiles(data / "style/kaokore", 8, 320)[0]
    film, box = [], (32, 15, 188, 154)
    for at in np.linspace(0, 1, 4 * frames):
        side = round(320 - 70 * at)
        left, top = round((320 - side) * (0.2 + 0.6 * at)), round((320 - side) * 0.4)
        film.append(photo.crop((left, top, left + side, top + side)).resize((240, 240)))
    generator = load_generator("adain")
    codes = generator.encode_style(to_tensor(painting)[None])
    bank = StyleBank(codes, Provenance(generator.name, generator.fingerprint, 1))
    rows = [film]
    for where in ("inside", "outside"):
        stream = StyleVideo(bank, generator=generator, p=1.0, track=box, where=where).stream()
        rows.append([stream(frame) for frame in film])
    return contact_sheet([[frame.resize((192, 192)) for frame in row[::4]] for row in rows])


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=20)
    parser.add_argument("--styled", type=int, default=8, help="frames of each clip that are styled")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--strip", type=Path, help="picture to draw; without --out nothing is measured")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    data = Path(os.environ["STYLEAUG_DATA"])
    if args.strip:
        strip(data).save(args.strip, quality=88)
    if args.strip and not args.out:
        return
    rows = {}
    for name, (clip, _) in read_clips(data / "davis", args.frames, flows=False).items():
        rows[f"davis, {name}"] = measure(clip, BOXES[name], None)
    photos = tiles(data / "content/caltech101", 24, 320)
    for number in range(5):
        clip, truth = pasted(photos[2 * number], photos[2 * number + 1], number, args.frames)
        y, x = np.nonzero(truth[0])
        box = x.min() - ROOM, y.min() - ROOM, np.ptp(x) + 2 * ROOM, np.ptp(y) + 2 * ROOM
        rows[f"pasted, {number + 1}"] = measure(clip, box, truth)
    print(publish(None, "tracks", rows), flush=True)
    paintings = tiles(data / "style/artwall_cc0", 5, 256)
    rows |= steadiness(read_clips(data / "davis", args.styled), paintings)
    notes = (
        f"{args.frames} frames of each clip, {args.styled} of them styled; errors x 1e4. On davis overlap is "
        "with the first mask carried on by Farneback's flow, on pasted films with the true mask."
    )
    print(publish(args.out, "Objects followed from a box on the first frame", rows, notes=notes))


if __name__ == "__main__":
    main()
