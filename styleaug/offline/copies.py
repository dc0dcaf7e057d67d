"""Make the stylised copies of one unit of work: some images of a folder, or one shard."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from styleaug.errors import DeviceError, FileError, StyleAugError, first_line, reason_of
from styleaug.images import Restore, check_range, to_pixels, to_unit
from styleaug.io.atomic import FULL, OutputError, atomic
from styleaug.io.files import Picture, Scan, decode_image, encode_image, open_image, save_image, stem_of
from styleaug.io.shards import AbstractWriter, Sample, open_shard
from styleaug.io.stamps import stamp_of
from styleaug.offline.slides import is_slide, stylise_slide
from styleaug.transforms.base import AbstractAugment
from styleaug.transforms.host import batches, member_drawn, members_of, rng_from, seed_from, stylise_batch
from styleaug.transforms.params import StyleParams

__all__ = ["Copier", "Format", "Line", "Unit"]

Format = Literal["images", "parquet", "webdataset"]

Line = dict[str, Any]
"""A line of the manifest about one output; with `"error"`, the reason why a source has no output."""

_WINDOW = 32
"""Most samples that are in memory and may share a batch."""
WINDOW_BYTES = 2**26
"""Most bytes of these samples."""

Ready = tuple[Tensor, Restore]
T = TypeVar("T")


@dataclass(frozen=True)
class Unit:
    """Images, or one shard, that one worker processes together.

    Batches are formed within a unit, so the number of workers does not change a pixel.
    """

    names: tuple[str, ...]
    """Paths below the source, with forward slashes."""

    wanted: frozenset[str]
    """Names of the missing outputs."""

    series: str = ""
    """Digest shared by the images, if they are slices of one volume; else ""."""


@dataclass(frozen=True)
class Copier:
    """Makes the copies of a unit; it can be sent to other processes and machines.

    Args:
        stylizer: transform with p = 1. It holds its bank, and its generator if other machines need it.
        source: folder that names are relative to.
        out: folder to write to, shared by all machines.
        format: format of the units.
        copies: number of copies of each image.
        seed: seed of all draws.
        column: see `open_shard`.
        device: device on which images are stylised.
        window: see `open_image`.
        scanned: names of slides in a scanner's format, whose copies are OME-TIFF.
    """

    stylizer: AbstractAugment
    source: Path
    out: Path
    format: Format
    copies: int
    seed: int
    column: str
    device: str = "cpu"
    window: str | None = None
    scanned: frozenset[str] = frozenset()

    def outputs(self, name: str) -> list[str]:
        """Return the names of the outputs of a source; a shard keeps its name, its samples are renamed."""
        if (self.copies == 1 and name not in self.scanned) or self.format != "images":
            return [name]
        path = PurePosixPath(name)
        stem = stem_of(path)
        ending = path.name[len(stem) :] if name not in self.scanned else ".ome.tif"
        return [str(path.with_name(f"{stem}{self.suffix(copy)}{ending}")) for copy in self.each_copy()]

    def each_copy(self) -> range:
        """Return the numbers of the copies, from 1."""
        return range(1, self.copies + 1)

    def suffix(self, copy: int) -> str:
        """Return the suffix in the name of a copy, such as "-2"; "" if there is only one."""
        return "" if self.copies == 1 else f"-{copy}"

    def __call__(self, unit: Unit) -> Iterator[Line]:
        """Write the missing outputs of a unit, and yield a line for each when it is written.

        A source that cannot be read, stylised or written gives a line with an error.

        Raises:
            OutputError: nothing can be written to the output.
        """
        if unit.series:
            return self.copy_series(unit)
        if self.format == "images":
            return self.copy_images(unit)
        return self.copy_shard(unit.names[0])

    def attempt(self, unit: Unit) -> tuple[list[Line], StyleAugError | None]:
        """Return the lines of a unit and the error that stopped it, to pass them between processes."""
        lines: list[Line] = []
        try:
            for line in self(unit):
                lines.append(line)
        except StyleAugError as error:
            return lines, error
        return lines, None

    def copy_images(self, unit: Unit) -> Iterator[Line]:
        """Make the copies of images; slides, which do not fit into memory, come last."""
        tiled = all(member.home.margin is not None for member in members_of(self.stylizer))
        slides = [name for name in unit.names if is_slide(self.source / name, tiled=tiled)]
        names = [name for name in unit.names if name not in slides]
        for window in windows(map(self.read, names), lambda read: self.weight(read[1])):
            yield from ({"source": name, "error": why} for name, why, _ in window if isinstance(why, str))
            rows = [
                (name, found, copy, output)
                for name, found, _ in window
                if not isinstance(found, str)
                for copy, output in zip(self.each_copy(), self.outputs(name), strict=True)
            ]
            if not any(output in unit.wanted for *_, output in rows):
                continue
            stamps = {name: stamp for name, _, stamp in window}
            draws = [self.draw(name, copy) for name, _, copy, _ in rows]
            # Existing copies are also stylised, so that a copy's batch does not depend on what exists.
            for index, picture in self.stylise([ready for _, ready, _, _ in rows], draws):
                name, _, copy, output = rows[index]
                if output in unit.wanted:
                    yield self.saved(name, picture, output, stamps[name], copy, draws[index])
        for name in slides:
            yield from self.copy_slide(name, unit.wanted)

    def copy_series(self, unit: Unit) -> Iterator[Line]:
        """Make the copies of a volume's slices, each a file, with one style and shared statistics."""
        scans: dict[str, Scan] = {}
        stamps: dict[str, str] = {}
        for name in unit.names:
            try:
                before = (self.source / name).stat()
                scan = open_image(self.source / name, window=self.window, to_style=True)
                self.ready(scan)
                assert isinstance(scan, Scan), "series are of DICOM files"
                stamps[name] = stamp_of(self.source / name, before=before)
                scans[name] = scan
            except Exception as error:
                yield {"source": name, "error": self.reason(name, error)}
        if not scans:
            return
        try:
            volume = scan_pixels(_joined(list(scans.values())))
        except Exception as error:
            yield from ({"source": name, "error": self.reason(name, error)} for name in scans)
            return
        draws = [self.draw(f"series:{unit.series}", copy) for copy in self.each_copy()]
        for index, styled in self.stylise([volume] * self.copies, draws):
            for place, (name, scan) in enumerate(scans.items()):
                output, copy = self.outputs(name)[index], self.each_copy()[index]
                if output in unit.wanted:
                    whole = not isinstance(styled, Exception)
                    made = replace(scan, frames=styled.frames[place : place + 1]) if whole else styled
                    yield self.saved(name, made, output, stamps[name], copy, draws[index])

    def copy_slide(self, name: str, wanted: frozenset[str]) -> Iterator[Line]:
        """Make the copies of one slide, tile by tile."""
        for copy, output in zip(self.each_copy(), self.outputs(name), strict=True):
            if output not in wanted:
                continue
            draw = self.draw(name, copy)
            try:
                check_output(self.out / output)
                stamp = stamp_of(self.source / name)
                member, own = member_drawn(self.stylizer, draw)
                stylise_slide(
                    member,
                    self.source / name,
                    self.out / output,
                    own,
                    window=self.window,
                    device=self.device,
                )
                yield self.line(name, output, stamp, copy=copy, **self.facts(draw))
            except Exception as error:
                yield {"source": name, "error": self.reason(name, error)}
                return

    def saved(self, name: str, picture: Any, output: str, stamp: str, copy: int, draw: StyleParams) -> Line:
        """Write a styled image, and return the line about it.

        Args:
            name: name of the source.
            picture: the styled image, or the error from stylising it.
            output: name of the file to write.
            stamp: stamp of the source, from before it was read.
            copy: number of the copy.
            draw: parameters of the style.
        """
        try:
            if isinstance(picture, Exception):
                raise picture
            check_output(self.out / output)
            save_image(picture, self.out / output, like=self.source / name)
            return self.line(name, output, stamp, copy=copy, **self.facts(draw))
        except Exception as error:
            return {"source": name, "output": output, "error": self.reason(name, error)}

    def line(self, name: str, output: str, stamp: str, **facts: Any) -> Line:
        """Return the manifest line about a written output."""
        return {
            "source": name,
            "output": output,
            **facts,
            "source_stamp": stamp,
            "output_stamp": stamp_of(self.out / output, timed=False),
        }

    def read(self, name: str) -> tuple[str, Ready | str, str]:
        """Return the stamp of an image's file, and the image or the reason why it cannot be read."""
        try:
            path = self.source / name
            before = path.stat()
            ready = self.ready(open_image(path, window=self.window, to_style=True))
            return (
                name,
                ready,
                stamp_of(path, before=before),
            )  # last, so that refused files are not read for their stamp
        except Exception as error:
            return name, self.reason(name, error), ""

    def ready(self, picture: Picture) -> Ready:
        """Return an image's pixels, and the function that converts them back.

        Raises:
            ImageError: it cannot be stylised.
        """
        if isinstance(picture, Scan):
            pixels, restore = scan_pixels(picture)
            self.stylizer.to_pixels(pixels)  # refuses too many channels
        else:
            pixels, restore = to_pixels(picture)
            check_range(pixels)
        return pixels, restore

    def reason(self, name: str, error: Exception) -> str:
        """Return the reason why a file cannot be used; raise errors that are not due to the file."""
        self.check(error)
        return reason_of(self.source / name, error)

    def copy_shard(self, name: str) -> Iterator[Line]:
        """Make the copy of one shard; samples that cannot be stylised are left out and reported."""
        path, target = self.source / name, self.out / name
        line: Line = {"images": [], "failed": []}
        try:
            check_output(target)
            stamp = stamp_of(path)
            with (
                open_shard(path, self.column) as reader,
                atomic(target) as part,
                reader.writer(part) as writer,
            ):
                samples = map(decoded, reader.samples())
                for window in windows(samples, lambda entry: self.weight(entry[1]) + entry[0].size):
                    self.copy_samples(name, window, writer, line)
            yield self.line(name, name, stamp, **line)
        except Exception as error:
            yield {"source": name, "error": self.reason(name, error)}

    def copy_samples(
        self, shard: str, window: list[tuple[Sample, Ready | str, str]], writer: AbstractWriter, line: Line
    ) -> None:
        """Stylise samples and write them in order."""
        rows = [
            (place, ready, kind, copy)
            for place, (_, ready, kind) in enumerate(window)
            if not isinstance(ready, str)
            for copy in self.each_copy()
        ]
        draws = [self.draw(f"{shard}:{window[place][0].key}", copy) for place, _, _, copy in rows]
        images: dict[tuple[int, int], bytes] = {}
        problems = {place: found for place, (_, found, _) in enumerate(window) if isinstance(found, str)}
        for index, picture in self.stylise([ready for _, ready, _, _ in rows], draws):
            place, _, kind, copy = rows[index]
            try:
                if isinstance(picture, Exception):
                    raise picture
                images[place, copy] = encode_image(picture, kind)
            except Exception as error:
                self.check(error)
                problems[place] = str(error) if isinstance(error, StyleAugError) else first_line(error)
        of = {(place, copy): draw for (place, _, _, copy), draw in zip(rows, draws, strict=True)}
        for place, (sample, _, _) in enumerate(window):
            if sample.bystander:
                writer.add(sample, b"", "")
            elif place in problems:
                line["failed"].append({"key": sample.key, "reason": problems[place]})
            else:
                for copy in self.each_copy():
                    writer.add(sample, images[place, copy], self.suffix(copy))
                    line["images"].append({"key": sample.key, "copy": copy, **self.facts(of[place, copy])})

    def weight(self, found: Ready | str) -> int:
        """Return the memory that the copies of an image need, in bytes."""
        return 0 if isinstance(found, str) else found[0].nbytes * self.copies

    def draw(self, name: str, copy: int) -> StyleParams:
        """Draw the style of a copy; it depends only on the seed, the copy's number and the name."""
        return self.stylizer.draw(1, rng_from(seed_from(self.seed, copy, name)))

    def facts(self, draw: StyleParams) -> Line:
        """Return the draw of one copy as fields of a manifest line."""
        told = {name: values[0] for name, values in self.stylizer.describe(draw).items()}
        shares = [round(share, 6) for share in told["shares"]]
        return {**told, "strength": round(told["strength"], 6), "shares": shares}

    def stylise(self, images: list[Ready], draws: list[StyleParams]) -> Iterator[tuple[int, Any]]:
        """Stylise images of any shapes; yield the index and the styled image or the error of each."""
        for rows in batches(images):
            done = set()
            try:
                for index, picture in stylise_batch(self.stylizer, images, draws, rows, device=self.device):
                    done.add(index)
                    yield index, picture
            except Exception as error:
                self.check(error)
                if len(rows) == 1:
                    done.add(rows[0])
                    yield rows[0], error
            for row in rows:  # one by one, so that one bad image does not stop the others
                if row not in done:
                    yield row, self.stylise_alone(images, draws, row)

    def stylise_alone(self, images: list[Ready], draws: list[StyleParams], row: int) -> Any:
        """Return the styled image at `row`, or the error from stylising it."""
        try:
            ((_, picture),) = stylise_batch(self.stylizer, images, draws, [row], device=self.device)
        except Exception as error:
            self.check(error)
            return error
        return picture

    def check(self, error: Exception) -> None:
        """Raise an error that is not due to the current file, because other files would also fail."""
        if isinstance(error, OutputError | DeviceError | Warning):  # the user turned warnings into errors
            raise error
        if isinstance(error, OSError) and error.errno in FULL:
            raise OutputError(f"cannot write to {self.out}: {error.strerror}.") from None
        if self.device.startswith("cuda"):
            try:
                torch.cuda.synchronize()
            except RuntimeError as failed:
                raise DeviceError(f"{self.device} failed: {first_line(failed)}") from None


def check_output(path: Path) -> None:
    """Refuse an output that is a link, because its target is not part of this run."""
    if path.is_symlink():
        raise FileError(f"{path} is a link, and what it leads to would be replaced; remove it.")


def _joined(scans: list[Scan]) -> Scan:
    """Join slices into a volume; its span covers the spans of all slices."""
    lows, highs = zip(*(scan.span for scan in scans), strict=True)
    frames = np.concatenate([scan.frames for scan in scans])
    return replace(scans[0], frames=frames, span=(min(lows), max(highs)), volume=True)


def windows(items: Iterable[T], weight: Callable[[T], int]) -> Iterator[list[T]]:
    """Cut a stream into short lists that fit into memory; the cuts depend only on the items."""
    window: list[T] = []
    total = 0
    for item in items:
        window.append(item)
        total += weight(item)
        if len(window) >= _WINDOW or total >= WINDOW_BYTES:
            yield window
            window, total = [], 0
    if window:
        yield window


def decoded(sample: Sample) -> tuple[Sample, Ready | str, str]:
    """Return a sample, its decoded image or the reason why it cannot be read, and its format."""
    if sample.problem or sample.bystander:
        return sample, sample.problem, ""
    try:
        picture, kind = decode_image(sample.image)
        return sample, to_pixels(picture), kind
    except Exception as error:
        return sample, str(error) if isinstance(error, StyleAugError) else first_line(error), ""


def scan_pixels(scan: Scan) -> Ready:
    """Return a scan mapped from its span to [0, 1]: a volume `(1, T, C, H, W)`, else `(T, C, H, W)`."""
    values = torch.from_numpy(np.require(scan.frames, requirements=["C", "W"]))
    unit, back = to_unit(values if values.ndim == 4 else values[..., None], *scan.span)
    frames = unit.movedim(-1, 1)

    def restore(styled: Tensor) -> Scan:
        wide = back(styled.reshape(frames.shape).movedim(1, -1))
        return replace(scan, frames=wide.reshape(values.shape).numpy())

    return (frames[None] if scan.volume and len(frames) > 1 else frames), restore
