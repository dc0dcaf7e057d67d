"""Stylise a film on disk, frame by frame: a video file, an animated picture or a folder of frames."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Unpack

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from styleaug.bank import StyleBank
from styleaug.errors import ConfigError, FileError
from styleaug.io.paths import check_path
from styleaug.transforms.host import rng_from, with_options
from styleaug.transforms.options import CommonOptions
from styleaug.video.clips import Frame, open_clip, writing_clip
from styleaug.video.flow import FlowMethod
from styleaug.video.track import Box
from styleaug.video.transform import Stream, StyleVideo, Where

__all__ = ["Film", "style_film"]


@dataclass(frozen=True)
class Film:
    """Result of `style_film`."""

    frames: int
    notes: tuple[str, ...]
    """Messages about problems, such as a truncated film."""


@with_options
def style_film(
    source: str | Path,
    out: str | Path,
    *,
    bank: str | Path | StyleBank | None = None,
    smoothing: float = 0.7,
    flow: FlowMethod | Callable[[Tensor, Tensor], Tensor] | None = "dis",
    reuse: float = 0.7,
    mask: str | Path | None = None,
    where: Where | None = None,
    track: Box | None = None,
    fps: float | None = None,
    seed: int = 0,
    report: Callable[[int, int], None] = lambda done, total: None,
    **options: Unpack[CommonOptions],
) -> Film:
    """Write `source` in one style of a bank to `out`; `out` is written completely or not at all.

    Args:
        source: a video file, an animated picture, or a folder of frames in natural order.
        out: a video file (`.mp4`, `.mov`, `.mkv`, `.avi`, `.webm`), an animated picture (`.gif`, `.apng`,
            `.png`, `.webp`), or a new folder; not the source.
        bank: see `StyleVideo`.
        smoothing: see `StyleVideo`.
        flow: see `StyleVideo`.
        reuse: see `StyleVideo`.
        mask: a film or folder of the source's size; it is bright where the style is painted.
        where: see `StyleVideo`; None is `"inside"` with a mask or track, else `"everywhere"`.
        track: box of an object on the first frame, in place of a mask; see `StyleVideo`. Where it is lost
            is among the notes of the result.
        fps: frames per second of `out`, which is then without sound. None keeps the source's times and sound;
            for a folder it is 25.
        seed: seed for the choice of style and strength.
        report: called with the number of frames done and the total (0 if unknown).
        options: `generator`, `strength`, `sampler`, `blend` and `bands`; see `StyleAugment`.

    Raises:
        FileError: a file is missing, not a film, or too large; or `out` is the source or a folder with files.
        ConfigError: an argument is out of range, or PyAV or OpenCV is not installed.
    """
    source, out = check_path(source), check_path(out)
    check_paths(source, out, None if mask is None else check_path(mask))
    if fps is not None and not 0.01 <= fps <= 1000:
        raise ConfigError(f"fps must be a number in [0.01, 1000], got {fps!r}.")
    if mask is not None and track is not None:
        raise ConfigError("give a mask or a track, not both.")
    where = where or ("everywhere" if mask is None and track is None else "inside")
    if track is None and (mask is None) != (where == "everywhere"):
        raise ConfigError(f"where={where!r} {'needs' if mask is None else 'takes no'} mask.")
    video = StyleVideo(
        bank,
        p=1.0,
        smoothing=smoothing,
        flow=flow,
        reuse=reuse,
        where=where,
        track=track,
        **options,
    )
    stream = video.stream(rng=rng_from(seed))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    written: list = []
    with ExitStack() as stack:
        clip = stack.enter_context(open_clip(source, audio=lambda packet: written[0].packet(packet)))
        shown = iter(stack.enter_context(open_clip(mask)).frames()) if mask else None
        rate = clip.fps if fps is None else fps
        writer = stack.enter_context(writing_clip(out, fps=rate, timed=fps is None, like=clip))
        written.append(writer)
        done = 0
        for frame in clip.frames():
            alpha = None if shown is None else read_alpha(shown, frame, done, Path(str(mask))).to(device)
            styled = style_frame(stream, frame.pixels, alpha, device)
            writer(replace(frame, pixels=styled, **({} if fps is None else {"time": None, "pause": None})))
            done += 1
            report(done, max(clip.count, done) if clip.count else 0)
    lost = [stream.track.lost] if stream.track and stream.track.lost else []
    return Film(done, (*clip.notes, *writer.notes, *lost))


def style_frame(stream: Stream, pixels: np.ndarray, mask: Tensor | None, device: torch.device) -> np.ndarray:
    """Stylise a frame; with alpha, only the visible pixels count."""
    if pixels.shape[2] == 4:
        return np.asarray(stream(Image.fromarray(pixels), mask=mask))
    frame = torch.from_numpy(pixels).to(device).permute(2, 0, 1)
    return stream(frame, mask=mask).permute(1, 2, 0).cpu().numpy()


def check_paths(source: Path, out: Path, mask: str | Path | None) -> None:
    """Check that the output does not replace the source or the mask.

    Raises:
        FileError: the message names both paths.
    """
    target = out.resolve()
    for read in (source, *([Path(mask)] if mask else [])):
        held = read.resolve()
        if out.exists() and read.exists() and out.samefile(read):
            raise FileError(f"{out} is what is read; give another name for the result.")
        if read.is_dir() and held in target.parents:
            raise FileError(f"{out} lies in {read}, which is read; give a place outside of it.")


def read_alpha(shown: Iterator[Frame], frame: Frame, done: int, path: Path) -> Tensor:
    """Read the next mask as alpha in [0, 1].

    Raises:
        FileError: the mask has ended, or has another size.
    """
    mask = next(shown, None)
    if mask is None:
        raise FileError(f"the mask {path} ends after {done} frames, before the film does.")
    if mask.pixels.shape[:2] != frame.pixels.shape[:2]:
        sizes = [f"{x.pixels.shape[1]} x {x.pixels.shape[0]}" for x in (mask, frame)]
        raise FileError(f"the mask {path} is {sizes[0]} pixels large, the film {sizes[1]}.")
    bright = mask.pixels[..., :3].mean(axis=2, dtype=np.float32) / 255
    if mask.pixels.shape[2] == 4:
        bright *= mask.pixels[..., 3] / np.float32(255)
    return torch.from_numpy(bright).clamp_(0, 1)
