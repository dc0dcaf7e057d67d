"""Write films: video files by PyAV, animated pictures, and folders of frames, one frame at a time."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Protocol

import numpy as np
from PIL import Image

from styleaug.errors import FileError, missing_extra
from styleaug.io.atomic import atomic
from styleaug.io.files import save_image
from styleaug.video.animations import ANIMATED, set_last_pause

__all__ = ["VIDEO_SUFFIXES", "Frame", "Write", "import_av", "writing_clip"]

VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".avi", ".webm", *ANIMATED)

MOST_WAITING = 2**26
"""Most bytes of sound that are kept until the first frame."""

CODECS = {".webm": "libvpx-vp9", ".gif": "gif", ".apng": "apng", ".png": "apng", ".webp": "libwebp_anim"}
"""Encoders of the file types that do not use H.264."""
ALPHA = {
    ".webm": ("libvpx-vp9", "yuva420p"),
    ".mkv": ("libvpx-vp9", "yuva420p"),
    ".mov": ("prores_ks", "yuva444p10le"),
    ".gif": ("gif", "pal8"),
    ".apng": ("apng", "rgba"),
    ".png": ("apng", "rgba"),
    ".webp": ("libwebp_anim", "bgra"),
}
"""Pixel format with transparency, for each file type that supports it."""
QUALITY = {
    "libx264": {"crf": "16", "preset": "medium"},
    "libvpx-vp9": {"crf": "24", "b": "0"},
    "prores_ks": {"profile": "4444"},
    "libwebp_anim": {"quality": "95"},
}
FALLBACK = "mpeg4"
UNDER = 255
"""Grey level (white) for transparent pixels, if the file type has no transparency."""


@dataclass(frozen=True)
class Frame:
    """One frame of a film."""

    pixels: np.ndarray
    """`(H, W, 3)` of uint8, or `(H, W, 4)` with alpha."""
    name: str = ""
    """File name of the frame, in a folder."""
    time: Fraction | None = None
    """Time when the frame is shown, in seconds on the clock of the file and its sound; None if unknown."""
    pause: Fraction | None = None
    """Number of seconds that the frame is shown; None if unknown."""


class _Source(Protocol):
    """The parts of a source film that its writer needs."""

    plays: int
    """Number of plays of an animation; 0 is endless."""
    pause: Fraction | None
    """Number of seconds that the last frame of an animation is shown."""

    def tracks(self) -> list[Any]:
        """Return the streams of sound and subtitles."""
        ...

    def transparent(self) -> bool:
        """Return True if any frame is transparent, even if the first is opaque."""
        ...


class Write(Protocol):
    """Writer of a film; it is called with one frame after the other."""

    def __call__(self, frame: Frame) -> None:
        """Write the next frame."""
        ...

    def packet(self, packet: Any) -> None:
        """Write a packet of sound."""
        ...


@contextmanager
def writing_clip(
    target: str | Path, *, fps: Fraction | float, timed: bool = False, like: _Source | None = None
) -> Iterator[Any]:
    """Yield a writer of frames to a video file, or to a new folder if the target has no suffix.

    Afterwards the target is either unchanged or the complete new film.

    Args:
        target: `.mp4`, `.mov`, `.mkv`, `.avi`, `.webm`, an animated `.gif`, `.apng`, `.png` or `.webp`, or
            a folder that is new or empty.
        fps: frames per second.
        timed: show each frame at its own time, and copy sound and subtitles of `like`.
        like: the source film.

    Raises:
        FileError: the type is unknown, or the folder is not empty or cannot be written to.
        ConfigError: PyAV is not installed.
    """
    target = Path(target)
    suffix = target.suffix.lower()
    tracks = like.tracks() if like and timed else []
    if not suffix or target.is_dir():
        with new_folder(target) as part:
            yield FolderWriter(part, tracks)
        return
    if suffix not in VIDEO_SUFFIXES:
        raise FileError(
            f"{target}: unknown file type {suffix!r}; known are {' '.join(VIDEO_SUFFIXES)}, and folders."
        )
    av = import_av()
    with atomic(target) as part:
        try:
            writer = FileWriter(part, suffix, Fraction(fps).limit_denominator(1001), tracks, timed, like)
            try:
                yield writer
                writer.finish()
            finally:
                writer.container.close()
            if suffix == ".webp" and writer.pause:
                set_last_pause(part, writer.pause)
        except av.error.FFmpegError as error:
            raise FileError(f"cannot write {target}: {error.strerror}.") from None


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary folder beside the target; it is renamed to the target if the block succeeds."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileError(f"{target} is there already; give a new or empty folder.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        part = Path(mkdtemp(dir=target.parent, prefix=f".{target.name[:40]}.", suffix=".part"))
    except OSError as error:
        raise FileError(f"cannot write to {target.parent}: {error.strerror}.") from None
    try:
        yield part
        if target.is_dir():
            target.rmdir()
        part.chmod(0o755)
        part.rename(target)
    finally:
        shutil.rmtree(part, ignore_errors=True)


class FolderWriter:
    """Writes frames as files, named like their source frames."""

    folder: Path
    written: int

    def __init__(self, folder: Path, tracks: list[Any]):
        self.folder, self.written = folder, 0
        self.notes: list[str] = [left_out(track, "a folder") for track in tracks]

    def __call__(self, frame: Frame) -> None:
        """Write the next frame."""
        save_image(Image.fromarray(frame.pixels), self.folder / (frame.name or f"{self.written:06d}.png"))
        self.written += 1

    def packet(self, packet: Any) -> None:
        """Ignore sound."""


class FileWriter:
    """Writes a video file or an animated picture."""

    suffix: str
    fps: Fraction
    timed: bool
    like: _Source | None
    tracks: list[Any]
    written: int
    waited: int
    last: int
    origin: Fraction
    alpha: bool
    ticks: Fraction
    graph: Any
    kept: dict[int, Any]
    waiting: list[Any]

    def __init__(
        self, path: Path, suffix: str, fps: Fraction, tracks: list[Any], timed: bool, like: _Source | None
    ):
        self.av: Any = import_av()
        self.suffix, self.fps, self.timed, self.like, self.tracks = suffix, fps, timed, like, tracks
        self.notes: list[str] = []
        self.pauses: dict[int, int] = {}
        self.written, self.last, self.origin, self.alpha = 0, -1, Fraction(0), False
        self.graph, self.kept, self.waiting, self.waited = None, {}, [], 0
        # Both are told when the file is opened, and FFmpeg has names of its own for them.
        self.pause: Fraction | None = like.pause if like and timed else None
        plays, kind = (like.plays if like else 0), ANIMATED.get(suffix)
        options = {"plays" if kind == "apng" else "loop": str(plays if kind == "gif" else abs(plays))}
        if self.pause and kind == "apng":
            options["final_delay"] = f"{self.pause.limit_denominator(60_000)}"
        elif self.pause and kind == "gif":
            options["final_delay"] = f"{min(round(self.pause * 100), 65535)}"
        self.container: Any = self.av.open(str(path), "w", format=kind, options=options if kind else {})

    def __call__(self, frame: Frame) -> None:
        """Encode the next frame."""
        if not self.written:
            self.begin(frame)
        pixels = np.ascontiguousarray(self.fitted(frame.pixels))
        image = self.av.VideoFrame.from_ndarray(pixels, format="rgba" if self.alpha else "rgb24")
        at = self.written / self.fps if frame.time is None else frame.time - self.origin
        # At least a tick after the last, as times in damaged files may stand still.
        self.last = max(self.last + 1, round(at / self.ticks))
        image.pts, image.time_base = self.last, self.ticks
        if self.graph is not None:
            self.graph.push(image)
            image = self.graph.pull()
            image.pts, image.time_base = self.last, self.ticks
        if frame.pause:
            self.pauses[self.last] = max(1, round(frame.pause / self.ticks))
        self.written += 1
        self.encode(image)

    def begin(self, frame: Frame) -> None:
        """Open the streams, whose options are only known with the first frame."""
        height, width = frame.pixels.shape[:2]
        codec = CODECS.get(self.suffix, "libx264")
        codec = codec if codec in self.av.codecs_available else FALLBACK
        # Half resolution in colour needs even sides.
        layout = "yuv444p" if height % 2 or width % 2 else "yuv420p"
        layout = {"gif": "pal8", "apng": "rgb24", "libwebp_anim": "bgra"}.get(codec, layout)
        options = QUALITY.get(codec, {})
        if self.suffix == ".avi":
            options = {**options, "bf": "0"}  # it has no times, by which frames could come out of order
        if self.suffix in ALPHA:
            self.alpha = frame.pixels.shape[2] == 4 or (self.like is not None and self.like.transparent())
        if self.alpha:
            codec, layout = ALPHA[self.suffix]
            options = {**QUALITY.get(codec, {}), **({"auto-alt-ref": "0"} if codec == "libvpx-vp9" else {})}
        self.stream: Any = self.container.add_stream(codec, rate=self.fps, options=options)
        self.stream.width, self.stream.height, self.stream.pix_fmt = width, height, layout
        even = not self.timed or self.suffix == ".avi" or codec == FALLBACK
        self.ticks = 1 / self.fps if even else Fraction(1, 90_000)
        if self.suffix in ANIMATED:
            self.ticks = Fraction(1, 100 if codec == "gif" else 1000)
        self.stream.codec_context.time_base = self.stream.time_base = self.ticks
        if codec == "gif":
            self.graph = palette_graph(self.av, width, height, self.ticks, "rgba" if self.alpha else "rgb24")
        for track in self.tracks:
            try:
                if self.suffix in ANIMATED:
                    raise ValueError(self.suffix)
                self.kept[track.index] = self.container.add_stream_from_template(track)
            except (ValueError, self.av.error.FFmpegError):
                self.notes.append(left_out(track, self.suffix))
        starts = [start_of(track) for track in self.tracks if track.index in self.kept]
        begin = Fraction(0) if frame.time is None else frame.time
        # The clock of the file goes on, but it begins with the first that is seen or heard.
        self.origin = begin if begin < 0 else max(Fraction(0), min([begin, *starts]))

    def fitted(self, pixels: np.ndarray) -> np.ndarray:
        """Return pixels with alpha if the file has it, else without."""
        if self.alpha and pixels.shape[2] == 3:
            return np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)])
        if self.alpha or pixels.shape[2] == 3:
            return pixels
        alpha = pixels[..., 3:].astype(np.float32) / 255
        if alpha.min() == 1:
            return pixels[..., :3]
        note = f"{self.suffix} cannot hold transparency; transparent pixels are shown on white."
        self.notes += [] if note in self.notes else [note]
        return (pixels[..., :3] * alpha + UNDER * (1 - alpha)).round().astype(np.uint8)

    def packet(self, packet: Any) -> None:
        """Copy a packet of sound; packets wait for the first frame, which opens the file."""
        if self.written:
            self.mux(packet)
        elif self.tracks and self.waited > MOST_WAITING:
            self.notes.append("the sound begins long before the picture, and is left out.")
            self.tracks, self.waiting = [], []
        elif self.tracks:
            self.waiting.append(packet)
            self.waited += packet.size + 200

    def mux(self, *packets: Any) -> None:
        """Write waiting packets, then these, with times on the clock of this file."""
        self.waiting.extend(packets)
        for packet in self.waiting:
            stream = self.kept.get(packet.stream.index)
            if stream is not None:
                late = round(self.origin / packet.time_base) if packet.time_base else 0
                packet.pts = None if packet.pts is None else packet.pts - late
                packet.dts = None if packet.dts is None else packet.dts - late
                packet.stream = stream
                self.container.mux(packet)
        self.waiting.clear()

    def finish(self) -> None:
        """Write the rest of the encoder's output, and waiting packets."""
        if self.written:
            self.mux()
            self.encode(None)

    def encode(self, image: Any) -> None:
        """Write the encoder's output, with the duration of the last frame."""
        for packet in self.stream.encode(image):
            packet.duration = self.pauses.pop(packet.pts, packet.duration)
            self.container.mux(packet)


def start_of(track: Any) -> Fraction:
    """Return the start time of a stream in seconds."""
    return (track.start_time or 0) * Fraction(track.time_base or 0)


def left_out(track: Any, place: str) -> str:
    """Return a message that a stream does not fit and is left out."""
    kind = {"audio": "sound"}.get(track.type, f"{track.type}s")
    return f"the {kind} ({track.codec_context.name}) does not fit into {place}, and is left out."


def palette_graph(av: Any, width: int, height: int, ticks: Fraction, layout: str) -> Any:
    """Return a filter graph that makes a separate palette for each frame of a GIF."""
    graph = av.filter.Graph()
    source = graph.add_buffer(width=width, height=height, format=layout, time_base=ticks)
    split, palette = graph.add("split"), graph.add("palettegen", "stats_mode=single")
    use, sink = graph.add("paletteuse", "new=1:dither=bayer"), graph.add("buffersink")
    source.link_to(split)
    split.link_to(palette, 0, 0)
    split.link_to(use, 1, 0)
    palette.link_to(use, 0, 1)
    use.link_to(sink)
    graph.configure()
    return graph


def import_av() -> Any:
    """Import PyAV; raise `MissingExtraError` if it is missing."""
    try:
        import av
        import av.error
        import av.filter
    except ImportError:
        raise missing_extra("a video file (a folder of frames does not)", "PyAV", "video") from None
    return av
