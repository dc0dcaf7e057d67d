"""Read films one frame at a time: video files with PyAV, animated pictures and folders of frames."""

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from styleaug.errors import FileError
from styleaug.io.files import open_image
from styleaug.io.paths import check_regular
from styleaug.video.animations import is_webp, plays_of, read_webp, webp_pauses
from styleaug.video.clip_writing import VIDEO_SUFFIXES, Frame, Write, import_av, writing_clip

__all__ = [
    "FRAME_SUFFIXES",
    "VIDEO_SUFFIXES",
    "AbstractClip",
    "Frame",
    "Write",
    "open_clip",
    "writing_clip",
]

FRAME_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
_MOST_PIXELS = 8192 * 8192
"""Most pixels of a frame. A header may claim any size, and a decoder allocates memory for it."""
MOST_FRAMES = 1_000_000
"""Most frames of a film: eleven hours at 25 frames per second."""

ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
"""Decoders for codecs whose transparency FFmpeg's own decoders ignore."""
DIGITS = re.compile(r"(\d+)")


class AbstractClip(Protocol):
    """An open film; its frames can be read once."""

    fps: Fraction
    count: int
    """Number of frames according to the file; 0 if unknown."""
    plays: int
    """Number of plays of an animation; 0 is endless."""
    pause: Fraction | None
    """Number of seconds that the last frame of an animation is shown."""
    notes: list[str]
    """Messages about damage and about parts left out; complete at the end."""

    def frames(self) -> Iterator[Frame]:
        """Yield the next frames."""
        ...

    def tracks(self) -> list[Any]:
        """Return the streams of sound and subtitles."""
        ...

    def transparent(self) -> bool:
        """Return True if any frame is transparent, even if the first is opaque."""
        ...

    def close(self) -> None:
        """Close the file."""
        ...


@contextmanager
def open_clip(path: str | Path, *, audio: Callable[[Any], None] | None = None) -> Iterator[AbstractClip]:
    """Open a video file, an animated picture, or a folder of frames.

    Args:
        path: the file, or a folder whose images are the frames, in natural order: 2 before 10.
        audio: called with each packet of sound and subtitles, in the order of the file.

    Raises:
        FileError: the file is missing, not a film, damaged at the start, or too large.
        ConfigError: PyAV is not installed.
    """
    path = Path(path)
    if not path.exists():
        raise FileError(f"there is no file or folder {path}.")
    with closing(clip_of(path, audio)) as clip:
        yield clip


def clip_of(path: Path, audio: Callable[[Any], None] | None) -> AbstractClip:
    """Return the clip for a path: a folder, a WebP or another file."""
    if path.is_dir():
        return FolderClip(path)
    try:
        return WebPClip(path) if is_webp(check_regular(path)) else FileClip(path, audio)
    except FileError:
        raise
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}.") from None


class StillClip:
    """Base of films without sound."""

    fps: Fraction
    count: int
    notes: list[str]
    plays: int = 0
    pause: Fraction | None = None

    def tracks(self) -> list[Any]:
        """Return no sound tracks."""
        return []

    def transparent(self) -> bool:
        """Return False; all frames are assumed to be like the first."""
        return False

    def close(self) -> None:
        """Do nothing; there is nothing to close."""


class FolderClip(StillClip):
    """A folder of frames."""

    fps: Fraction
    count: int
    notes: list[str]

    def __init__(self, folder: Path):
        found = [p for p in folder.iterdir() if p.suffix.lower() in FRAME_SUFFIXES and p.name[0] != "."]
        if not found:
            raise FileError(f"no frame in {folder}; known file types are {' '.join(FRAME_SUFFIXES)}.")
        self.paths: list[Path] = sorted(found, key=natural)
        self.fps, self.count, self.notes = Fraction(25), len(found), []
        _check_size(folder, 1, 1, self.count)

    def frames(self) -> Iterator[Frame]:
        """Yield the files as frames, one after the other."""
        for path in self.paths:
            image = open_image(path)
            if not isinstance(image, Image.Image) or image.mode not in ("L", "LA", "RGB", "RGBA"):
                raise FileError(f"{path} is no frame of 8 bits in grey or colour; convert it first.")
            _check_size(path, image.width, image.height)
            mode = "RGBA" if "A" in image.mode or "transparency" in image.info else "RGB"
            yield Frame(np.array(image.convert(mode)), path.name)


class WebPClip(StillClip):
    """An animated WebP, which FFmpeg cannot read."""

    path: Path
    notes: list[str]
    count: int
    plays: int

    pause: Fraction | None

    def __init__(self, path: Path):
        self.path, self.notes = path, []
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with Image.open(path, formats=["WEBP"]) as image:
                    size = image.size
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise FileError(f"{path} is no WebP, or its beginning is damaged: {error}.") from None
        self.pauses: list[Fraction] = webp_pauses(path)
        _check_size(path, *size, len(self.pauses))
        self.count, self.plays, self.pause = len(self.pauses), plays_of(path), self.pauses[-1]
        shown = sum(self.pauses)
        self.fps: Fraction = Fraction(self.count / shown if shown else 25).limit_denominator(
            1001
        ) or Fraction(25)

    def frames(self) -> Iterator[Frame]:
        """Yield decoded frames; a truncated file ends early, with a note."""
        time, read = Fraction(0), 0
        try:
            for pixels, pause in zip(read_webp(self.path), self.pauses, strict=False):
                yield Frame(pixels, time=time, pause=pause)
                time, read = time + pause, read + 1
        except (OSError, ValueError, EOFError, SyntaxError) as error:
            if not read:
                raise FileError(f"{self.path}: no frame can be read; {error}.") from None
        if read < self.count:
            self.notes.append(f"{self.path} breaks off: it has {read} of {self.count} frames.")


class FileClip:
    """A video file."""

    av: Any
    path: Path
    audio: Callable[[Any], None] | None
    fps: Fraction
    count: int
    notes: list[str]
    plays: int
    pause: Fraction | None

    def __init__(self, path: Path, audio: Callable[[Any], None] | None):
        av = self.av = import_av()
        self.path, self.audio, self.notes = path, audio, []
        self.container: Any = self.opened()
        try:
            if not self.container.streams.video:
                raise FileError(f"{path} has no video in it.")
            self.stream: Any = self.container.streams.video[0]
            self.stream.thread_type = "AUTO"
            self.fps = Fraction(self.stream.average_rate or self.stream.guessed_rate or 25)
            self.count = self.stream.frames or self.by_duration()
            codec = self.stream.codec_context
            _check_size(path, codec.width, codec.height, self.count)
            animated = codec.name in ("gif", "apng")
            self.plays, self.pause = (plays_of(path), self.last_pause()) if animated else (0, None)
            self.decoder: Any = self.alpha_decoder()
        except av.error.FFmpegError as error:
            self.container.close()
            raise FileError(f"{path} is no video, or is damaged: {error.strerror}.") from None
        except BaseException:
            self.container.close()
            raise

    def opened(self) -> Any:
        """Open the file."""
        try:
            return self.av.open(str(self.path))
        except (OSError, ValueError, self.av.error.FFmpegError) as error:
            reason = getattr(error, "strerror", None) or error
            raise FileError(f"{self.path} is no video, or its beginning is damaged: {reason}.") from None

    def by_duration(self) -> int:
        """Return the number of frames from the duration, for files without a count."""
        stream = self.stream
        if stream.duration and stream.time_base:
            return round(stream.duration * stream.time_base * self.fps)
        shown = Fraction(self.container.duration or 0, 10**6) - seconds(stream.start_time, stream)
        return max(0, round(shown * self.fps))

    def last_pause(self) -> Fraction | None:
        """Return how long the last frame is shown, in seconds; None if unknown."""
        pause = None
        with self.opened() as container:
            for packet in container.demux(video=0):
                pause = packet.duration * packet.time_base if packet.duration else pause
        return pause

    def alpha_decoder(self) -> Any:
        """Return a decoder for films that store transparency separately, such as WebM; else None."""
        codec = self.stream.codec_context
        name = ALPHA_DECODERS.get(codec.name) if self.stream.metadata.get("alpha_mode") == "1" else None
        if name not in self.av.codecs_available:
            return None
        decoder = self.av.CodecContext.create(name, "r")
        decoder.extradata = codec.extradata
        return decoder

    def tracks(self) -> list[Any]:
        """Return the streams of sound and subtitles."""
        return [*self.container.streams.audio, *self.container.streams.subtitles]

    def transparent(self) -> bool:
        """Return True if any frame is transparent; only GIF is checked, because its frames may differ."""
        if self.stream.codec_context.name != "gif":
            return False
        try:
            with self.opened() as container:
                return any(upright(frame).shape[2] == 4 for frame in container.decode(video=0))
        except self.av.error.FFmpegError:
            return True

    def frames(self) -> Iterator[Frame]:
        """Yield decoded frames; a truncated file ends early, with a note."""
        read, size, found, reached = 0, None, 0, Fraction(0)
        try:
            for packet in self.container.demux([self.stream, *self.tracks()]):
                reached = max(reached, end_of(packet))
                if packet.stream is not self.stream:
                    if self.audio and packet.dts is not None:
                        self.audio(packet)
                    continue
                found += packet.size > 0
                for frame in self.decode(packet):
                    size = size or (frame.width, frame.height)
                    if (frame.width, frame.height) != size:
                        raise FileError(f"{self.path} changes its size after {read} frames; cut it there.")
                    if not read and max(part.bits for part in frame.format.components) > 8:
                        self.notes.append(f"{self.path} has more than 8 bits a channel; 8 of them are kept.")
                    read += 1
                    _check_size(self.path, frame.width, frame.height, read)
                    pause = seconds(frame.duration, frame) if frame.duration else None
                    yield Frame(upright(frame), time=time_of(frame), pause=pause)
        except self.av.error.FFmpegError as error:
            self.notes.append(
                f"{self.path} is damaged after {read} frames ({error.strerror}); the rest is left out."
            )
            found = self.stream.frames
            reached = Fraction(10**9)
        if not read:
            raise FileError(f"{self.path}: no frame can be read; the file is damaged or empty.")
        lacking = self.end() - reached
        # Sound may end later than the picture, and containers round. Counts include frames that are cut away.
        if lacking > (1 / (2 * self.fps) if found < self.stream.frames else self.end() / 20):
            of = f"{found} of {self.stream.frames} frames" if self.stream.frames else f"{read} frames"
            self.notes.append(f"{self.path} breaks off: it has {of}, and lacks {float(lacking):.1f} seconds.")

    def decode(self, packet: Any) -> list[Any]:
        """Return the frames decoded from a packet of video."""
        if self.decoder is None:
            return packet.decode()
        return self.decoder.decode(packet if packet.size else None)

    def end(self) -> Fraction:
        """Return the end time of the last stream in seconds, according to the file; 0 if unknown."""
        stream = self.stream
        if stream.frames and stream.duration:
            return seconds((stream.start_time or 0) + stream.duration, stream)
        return Fraction(self.container.duration or 0, 10**6)

    def close(self) -> None:
        """Close the file."""
        self.container.close()


def seconds(ticks: int | None, thing: Any) -> Fraction:
    """Return a time in ticks as seconds."""
    return (ticks or 0) * Fraction(thing.time_base or 0)


def end_of(packet: Any) -> Fraction:
    """Return the end time of a packet in seconds."""
    return seconds((packet.pts or 0) + (packet.duration or 0), packet)


def time_of(frame: Any) -> Fraction | None:
    """Return the time when a frame is shown, in seconds; None if unknown."""
    return None if frame.pts is None or not frame.time_base else frame.pts * frame.time_base


def upright(frame: Any) -> np.ndarray:
    """Return a frame as RGB, with alpha if it has any, turned upright as phones mark it in the file."""
    layout = frame.format
    clear = layout.name == "pal8" or any(part.is_alpha for part in layout.components)
    pixels = frame.to_ndarray(format="rgba" if clear else "rgb24")
    if layout.name == "bgra" and pixels[..., 3].min() == 255:  # a GIF's, whether it is transparent or not
        pixels = pixels[..., :3]
    turns = round(getattr(frame, "rotation", 0) / 90) % 4
    return np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels


def _check_size(path: Path, width: int, height: int, count: int = 0) -> None:
    """Check the size and number of frames.

    Raises:
        FileError: the frames are too large or too many.
    """
    if not 0 < width * height <= _MOST_PIXELS:
        raise FileError(f"{path} has frames of {width} x {height} pixels; at most {_MOST_PIXELS:,} are read.")
    if count > MOST_FRAMES:
        raise FileError(f"{path} has {count:,} frames; at most {MOST_FRAMES:,} are read. Cut it into parts.")


def natural(path: Path) -> list[tuple[int, Any]]:
    """Return a sort key for natural order: numbers in names are compared by value."""
    parts = DIGITS.split(path.name)
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in parts]
