"""Films on disk: video files by PyAV and folders of frames, read and written one frame at a time."""

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Protocol

import numpy as np
from PIL import Image

from styleaug.atomic import atomic
from styleaug.errors import FileError, missing_extra
from styleaug.files import open_image, save_image
from styleaug.paths import check_regular

__all__ = [
    "FRAME_SUFFIXES",
    "VIDEO_SUFFIXES",
    "AbstractClip",
    "Frame",
    "Write",
    "open_clip",
    "writing_clip",
]

VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".avi", ".webm", ".gif")
FRAME_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
MOST_PIXELS = 8192 * 8192
"""Of a frame. A file's header may claim any size, and a decoder makes room for it."""
MOST_FRAMES = 1_000_000
"""Eleven hours at 25 frames a second."""

MOST_WAITING = 2000
"""Packets of sound that are kept until the first frame comes."""

CODECS = {".webm": "libvpx-vp9", ".gif": "gif"}
"""What is not H.264."""
QUALITY = {"libx264": {"crf": "16", "preset": "medium"}, "libvpx-vp9": {"crf": "24", "b": "0"}}
FALLBACK = "mpeg4"
DIGITS = re.compile(r"(\d+)")


@dataclass(frozen=True)
class Frame:
    """One frame of a film."""

    pixels: np.ndarray
    """`(H, W, 3)` of uint8."""
    name: str = ""
    """Of its file, in a folder."""
    time: Fraction | None = None
    """In seconds since the first, where the file tells."""


class AbstractClip(Protocol):
    """A film that is open: it gives its frames once."""

    fps: Fraction
    count: int
    """How many frames it says it has; 0 if it does not say."""
    note: str
    """What went wrong, if only a part could be read; known at the end."""

    def frames(self) -> Iterator[Frame]:
        """Read the next frames."""
        ...

    def sound(self) -> Any:
        """Give the audio stream, if there is one."""
        ...

    def close(self) -> None:
        """Close the file."""
        ...


@contextmanager
def open_clip(path: str | Path, *, audio: Callable[[Any], None] | None = None) -> Iterator[AbstractClip]:
    """Open a video file or a folder of frames.

    Args:
        path: the file, or a folder whose images are the frames, in natural order: 2 before 10.
        audio: is given the packets of the file's sound, as they come between the frames.

    Raises:
        FileError: missing, no film, damaged from the start, or too large.
        ConfigError: PyAV is not installed.
    """
    path = Path(path)
    if not path.exists():
        raise FileError(f"there is no file or folder {path}.")
    with closing(FolderClip(path) if path.is_dir() else FileClip(path, audio)) as clip:
        yield clip


class FolderClip:
    """A folder of frames."""

    def __init__(self, folder: Path):
        found = [p for p in folder.iterdir() if p.suffix.lower() in FRAME_SUFFIXES and p.name[0] != "."]
        if not found:
            raise FileError(f"no frame in {folder}; known file types are {' '.join(FRAME_SUFFIXES)}.")
        self.paths = sorted(found, key=natural)
        self.fps, self.count, self.note = Fraction(25), len(found), ""
        check_size(folder, 1, 1, self.count)

    def frames(self) -> Iterator[Frame]:
        """Read the files one after the other."""
        for path in self.paths:
            image = open_image(path)
            if not isinstance(image, Image.Image) or image.mode not in ("L", "LA", "RGB", "RGBA"):
                raise FileError(f"{path} is no frame of 8 bits in grey or colour; convert it first.")
            check_size(path, image.width, image.height)
            yield Frame(np.array(image.convert("RGB")), path.name)

    def sound(self) -> Any:
        """Give none."""

    def close(self) -> None:
        """Have nothing to close."""


class FileClip:
    """A video file."""

    def __init__(self, path: Path, audio: Callable[[Any], None] | None):
        av = import_av()
        self.path, self.audio, self.note = check_regular(path), audio, ""
        try:
            self.container = av.open(str(path))
        except (OSError, ValueError, av.error.FFmpegError) as error:
            reason = getattr(error, "strerror", None) or error
            raise FileError(f"{path} is no video, or its beginning is damaged: {reason}.") from None
        try:
            if not self.container.streams.video:
                raise FileError(f"{path} has no video in it.")
            self.stream = self.container.streams.video[0]
            self.stream.thread_type = "AUTO"
            self.fps = Fraction(self.stream.average_rate or self.stream.guessed_rate or 25)
            self.count = self.stream.frames or self.by_duration()
            codec = self.stream.codec_context
            check_size(path, codec.width, codec.height, self.count)
        except BaseException:
            self.container.close()
            raise

    def by_duration(self) -> int:
        """Reckon how many frames there are, where the file only tells how long it is."""
        stream = self.stream
        if stream.duration and stream.time_base:
            return round(stream.duration * stream.time_base * self.fps)
        return round(self.container.duration / 1e6 * self.fps) if self.container.duration else 0

    def sound(self) -> Any:
        """Give the first audio stream, if there is one."""
        return next(iter(self.container.streams.audio), None)

    def frames(self) -> Iterator[Frame]:
        """Decode; a file that breaks off ends there, with a note."""
        av = import_av()
        sound = self.sound() if self.audio else None
        wanted = [self.stream, *([sound] if sound else [])]
        read, first, size = 0, None, None
        try:
            for packet in self.container.demux(wanted):
                if packet.stream is not self.stream:
                    if self.audio and packet.dts is not None:
                        self.audio(packet)
                    continue
                for frame in packet.decode():
                    size = size or (frame.width, frame.height)
                    if (frame.width, frame.height) != size:
                        raise FileError(f"{self.path} changes its size after {read} frames; cut it there.")
                    read += 1
                    check_size(self.path, frame.width, frame.height, read)
                    first = frame.pts if first is None else first
                    yield Frame(upright(frame), time=time_of(frame, first))
        except av.error.FFmpegError as error:
            self.note = (
                f"{self.path} is damaged after {read} frames ({error.strerror}); the rest is left out."
            )
        if not read:
            raise FileError(f"{self.path}: no frame can be read; the file is damaged or empty.")
        # Counts are exact, durations nearly.
        if not self.note and read < (self.stream.frames or int(0.95 * self.count)):
            self.note = f"{self.path} breaks off: it has {read} of {self.count} frames."

    def close(self) -> None:
        """Close the file."""
        self.container.close()


def time_of(frame: Any, first: int | None) -> Fraction | None:
    """Tell when a frame is shown."""
    if frame.pts is None or first is None or not frame.time_base:
        return None
    return (frame.pts - first) * frame.time_base


def upright(frame: Any) -> np.ndarray:
    """Decode to RGB and turn as the file says, which telephones write."""
    pixels = frame.to_ndarray(format="rgb24")
    turns = round(getattr(frame, "rotation", 0) / 90) % 4
    return np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels


class Write(Protocol):
    """Takes the frames of a film that is written."""

    def __call__(self, frame: Frame) -> None:
        """Write the next frame."""
        ...

    def packet(self, packet: Any) -> None:
        """Write a packet of sound."""
        ...


@contextmanager
def writing_clip(
    target: str | Path, *, fps: Fraction | float, sound: Any = None, timed: bool = False
) -> Iterator[Any]:
    """Give what writes frames to a video file, or to a new folder if the target has no suffix.

    Whatever happens, the target is afterwards either what it was or the whole new film.

    Args:
        target: `.mp4`, `.mov`, `.mkv`, `.avi`, `.webm`, `.gif`, or a folder that is new or empty.
        fps: frames a second.
        sound: an audio stream whose packets will be written, too, as they are.
        timed: show each frame at its own time, for films of varying speed.

    Raises:
        FileError: another type, a folder with files in it, or one that cannot be written to.
        ConfigError: PyAV is not installed.
    """
    target = Path(target)
    suffix = target.suffix.lower()
    if not suffix or target.is_dir():
        with new_folder(target) as part:
            yield FolderWriter(part)
        return
    if suffix not in VIDEO_SUFFIXES:
        raise FileError(
            f"{target}: unknown file type {suffix!r}; known are {' '.join(VIDEO_SUFFIXES)}, and folders."
        )
    av = import_av()
    with atomic(target) as part:
        try:
            writer = FileWriter(part, suffix, Fraction(fps).limit_denominator(1001), sound, timed)
            try:
                yield writer
                writer.finish()
            finally:
                writer.container.close()
        except av.error.FFmpegError as error:
            raise FileError(f"cannot write {target}: {error.strerror}.") from None


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Give a folder beside the target, which takes its name if the block succeeds."""
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
    """Frames as files, named as those that they were made of."""

    note = ""

    def __init__(self, folder: Path):
        self.folder, self.written = folder, 0

    def __call__(self, frame: Frame) -> None:
        """Write the next frame."""
        save_image(Image.fromarray(frame.pixels), self.folder / (frame.name or f"{self.written:06d}.png"))
        self.written += 1

    def packet(self, packet: Any) -> None:
        """Leave sound out."""


class FileWriter:
    """A video file."""

    def __init__(self, path: Path, suffix: str, fps: Fraction, sound: Any, timed: bool):
        av = self.av = import_av()
        self.suffix, self.fps, self.written, self.note = suffix, fps, 0, ""
        self.container = av.open(str(path), "w")
        codec = CODECS.get(suffix, "libx264")
        codec = codec if codec in av.codecs_available else FALLBACK
        self.stream: Any = self.container.add_stream(codec, rate=fps, options=QUALITY.get(codec, {}))
        self.ticks = (
            1 / fps if suffix in (".gif", ".avi") or not timed or codec == FALLBACK else Fraction(1, 90_000)
        )
        self.stream.codec_context.time_base = self.stream.time_base = self.ticks
        self.last, self.sound, self.graph = -1, None, None
        self.waiting: list[Any] = []
        if sound is not None and suffix != ".gif":
            try:
                self.sound = self.container.add_stream_from_template(sound)
            except (ValueError, av.error.FFmpegError):
                self.note = (
                    f"the sound ({sound.codec_context.name}) does not fit into {suffix}, and is left out."
                )

    def __call__(self, frame: Frame) -> None:
        """Encode the next frame."""
        if not self.written:
            self.begin(frame.pixels)
        image = self.av.VideoFrame.from_ndarray(np.ascontiguousarray(frame.pixels), format="rgb24")
        at = self.written / self.fps if frame.time is None else frame.time
        # At least a tick after the last, as times in damaged files may stand still.
        self.last = max(self.last + 1, self.written if self.ticks == 1 / self.fps else round(at / self.ticks))
        image.pts, image.time_base = self.last, self.ticks
        self.written += 1
        if self.graph is not None:
            self.graph.push(image)
            image = self.graph.pull()
            image.pts, image.time_base = self.last, self.ticks
        self.container.mux(self.stream.encode(image))

    def begin(self, pixels: np.ndarray) -> None:
        """Set what is only known with the first frame."""
        height, width = pixels.shape[:2]
        self.stream.width, self.stream.height = width, height
        if self.suffix == ".gif":
            self.stream.pix_fmt, self.graph = "pal8", palette_graph(self.av, width, height, self.ticks)
        else:  # half resolution in colour needs even sides
            self.stream.pix_fmt = "yuv444p" if height % 2 or width % 2 else "yuv420p"

    def packet(self, packet: Any) -> None:
        """Write a packet of sound as it is, but none before the first frame, which opens the file."""
        if self.sound is None:
            return
        self.waiting.append(packet)
        if self.written:
            for waited in self.waiting:
                waited.stream = self.sound
                self.container.mux(waited)
            self.waiting.clear()
        elif len(self.waiting) > MOST_WAITING:
            self.sound = None
            self.waiting.clear()
            self.note = "the sound begins long before the picture, and is left out."

    def finish(self) -> None:
        """Write what the encoder still holds."""
        if self.written:
            self.container.mux(self.stream.encode(None))


def palette_graph(av: Any, width: int, height: int, ticks: Fraction) -> Any:
    """Make the filter that gives each frame of a GIF a palette of its own."""
    graph = av.filter.Graph()
    source = graph.add_buffer(width=width, height=height, format="rgb24", time_base=ticks)
    split, palette = graph.add("split"), graph.add("palettegen", "stats_mode=single")
    use, sink = graph.add("paletteuse", "new=1:dither=bayer"), graph.add("buffersink")
    source.link_to(split)
    split.link_to(palette, 0, 0)
    split.link_to(use, 1, 0)
    palette.link_to(use, 0, 1)
    use.link_to(sink)
    graph.configure()
    return graph


def check_size(path: Path, width: int, height: int, count: int = 0) -> None:
    """Refuse what no film has.

    Raises:
        FileError: naming the file.
    """
    if not 0 < width * height <= MOST_PIXELS:
        raise FileError(f"{path} has frames of {width} x {height} pixels; at most {MOST_PIXELS:,} are read.")
    if count > MOST_FRAMES:
        raise FileError(f"{path} has {count:,} frames; at most {MOST_FRAMES:,} are read. Cut it into parts.")


def natural(path: Path) -> list[tuple[int, Any]]:
    """Order names as people do: numbers in them by their value."""
    parts = DIGITS.split(path.name)
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in parts]


def import_av() -> Any:
    """Import PyAV, with our error where it is missing."""
    try:
        import av
        import av.error
        import av.filter
    except ImportError:
        raise missing_extra("a video file (a folder of frames does not)", "PyAV", "video") from None
    return av
