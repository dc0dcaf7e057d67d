"""Make the stylised copies of one unit of a run: of some images of a folder, or of one shard."""

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
from styleaug.transforms.augment import StyleAugment
from styleaug.transforms.host import batches, rng_from, seed_from, stylise_batch
from styleaug.transforms.params import StyleParams

__all__ = ["Copier", "Format", "Line", "Unit"]

Format = Literal["images", "parquet", "webdataset"]

Line = dict[str, Any]
"""What the manifest says of one output; or, with `"error"`, why there is none of a source."""

_WINDOW = 32
WINDOW_BYTES = 2**26
"""How many samples, and how much of them, are in memory and may share a batch."""

Ready = tuple[Tensor, Restore]
T = TypeVar("T")


@dataclass(frozen=True)
class Unit:
    """Images or one shard that are done together, by one worker.

    Batches are formed within a unit, so how units are spread over workers does not change a pixel.
    """

    names: tuple[str, ...]
    """Paths below the source, with forward slashes."""

    wanted: frozenset[str]
    """Which outputs are missing."""

    series: str = ""
    """What the images have in common, if they are the slices of one volume."""


@dataclass(frozen=True)
class Copier:
    """Make the copies of a unit; a value that can be sent to other processes and machines.

    Args:
        stylizer: with p = 1; it holds its bank, and its generator if other machines shall have it.
        source: the folder that names are below.
        out: the folder to write to, which all machines share.
        format: of the units.
        copies: of each image.
        seed: of all draws.
        column: see `open_shard`.
        device: where images are stylised.
        window: see `open_image`.
    """

    stylizer: StyleAugment
    source: Path
    out: Path
    format: Format
    copies: int
    seed: int
    column: str
    device: str = "cpu"
    window: str | None = None

    def outputs(self, name: str) -> list[str]:
        """Name the files that are made of one: a shard keeps its name, as its samples are renamed."""
        if self.copies == 1 or self.format != "images":
            return [name]
        path = PurePosixPath(name)
        stem = stem_of(path)
        ending = path.name[len(stem) :]
        return [str(path.with_name(f"{stem}{self.suffix(copy)}{ending}")) for copy in self.each_copy()]

    def each_copy(self) -> range:
        """Count the copies from 1."""
        return range(1, self.copies + 1)

    def suffix(self, copy: int) -> str:
        """Tell copies apart."""
        return "" if self.copies == 1 else f"-{copy}"

    def __call__(self, unit: Unit) -> Iterator[Line]:
        """Write the outputs of a unit that are wanted, and yield a line for each when it is there.

        Whatever is wrong because of a source, when it is read, stylised or written, is a line with an error.

        Raises:
            OutputError: nothing can be written to the output.
        """
        if unit.series:
            return self.copy_series(unit)
        if self.format == "images":
            return self.copy_images(unit)
        return self.copy_shard(unit.names[0])

    def attempt(self, unit: Unit) -> tuple[list[Line], StyleAugError | None]:
        """Do a unit in another process, where an error cannot be raised as it is; give it as well."""
        lines: list[Line] = []
        try:
            for line in self(unit):
                lines.append(line)
        except StyleAugError as error:
            return lines, error
        return lines, None

    def copy_images(self, unit: Unit) -> Iterator[Line]:
        """Do some images of a folder; those that do not fit into memory after the others."""
        slides = [name for name in unit.names if is_slide(self.source / name, self.stylizer.home)]
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
            # Those that are there already are stylised too: a copy's batch shall not depend on them.
            for index, picture in self.stylise([ready for _, ready, _, _ in rows], draws):
                name, _, copy, output = rows[index]
                if output in unit.wanted:
                    yield self.saved(name, picture, output, stamps[name], copy, draws[index])
        for name in slides:
            yield from self.copy_slide(name, unit.wanted)

    def copy_series(self, unit: Unit) -> Iterator[Line]:
        """Do the slices of a volume that are files of their own, with one style and shared statistics."""
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
        """Do one image tile by tile."""
        for copy, output in zip(self.each_copy(), self.outputs(name), strict=True):
            if output not in wanted:
                continue
            draw = self.draw(name, copy)
            try:
                check_output(self.out / output)
                stamp = stamp_of(self.source / name)
                stylise_slide(
                    self.stylizer,
                    self.source / name,
                    self.out / output,
                    draw,
                    window=self.window,
                    device=self.device,
                )
                yield self.line(name, output, stamp, copy=copy, **_facts(draw))
            except Exception as error:
                yield {"source": name, "error": self.reason(name, error)}
                return

    def saved(self, name: str, picture: Any, output: str, stamp: str, copy: int, draw: StyleParams) -> Line:
        """Write a styled image, and return the line about it.

        Args:
            name: of the source.
            picture: what became of it, or the error that stylising it ended in.
            output: name of the file.
            stamp: of the source, from before it was read.
            copy: its number.
            draw: its style.
        """
        try:
            if isinstance(picture, Exception):
                raise picture
            check_output(self.out / output)
            save_image(picture, self.out / output, like=self.source / name)
            return self.line(name, output, stamp, copy=copy, **_facts(draw))
        except Exception as error:
            return {"source": name, "output": output, "error": self.reason(name, error)}

    def line(self, name: str, output: str, stamp: str, **facts: Any) -> Line:
        """Return the line about an output that is there."""
        return {
            "source": name,
            "output": output,
            **facts,
            "source_stamp": stamp,
            "output_stamp": stamp_of(self.out / output, timed=False),
        }

    def read(self, name: str) -> tuple[str, Ready | str, str]:
        """Read one image, or tell why that is not possible; and return the stamp of its file."""
        try:
            path = self.source / name
            before = path.stat()
            ready = self.ready(open_image(path, window=self.window, to_style=True))
            return name, ready, stamp_of(path, before=before)  # last: what is refused is not read for it
        except Exception as error:
            return name, self.reason(name, error), ""

    def ready(self, picture: Picture) -> Ready:
        """Give an image's pixels, and the way back.

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
        """Tell what is wrong with which file; raise what is wrong with none."""
        self.check(error)
        return reason_of(self.source / name, error)

    def copy_shard(self, name: str) -> Iterator[Line]:
        """Do one shard; its samples that cannot be stylised are left out and named."""
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
        """Stylise some samples and write them in their order."""
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
                    line["images"].append({"key": sample.key, "copy": copy, **_facts(of[place, copy])})

    def weight(self, found: Ready | str) -> int:
        """Tell how much memory the copies of an image take."""
        return 0 if isinstance(found, str) else found[0].nbytes * self.copies

    def draw(self, name: str, copy: int) -> StyleParams:
        """Draw the style of a copy: it depends on the seed, the copy's number and the name only."""
        return self.stylizer.draw(1, rng_from(seed_from(self.seed, copy, name)))

    def stylise(self, images: list[Ready], draws: list[StyleParams]) -> Iterator[tuple[int, Any]]:
        """Stylise images of any shapes; yield each, or the error that it ends in, with its index."""
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
            for row in rows:  # by itself, so that one that cannot be stylised costs no other
                if row not in done:
                    yield row, self.stylise_alone(images, draws, row)

    def stylise_alone(self, images: list[Ready], draws: list[StyleParams], row: int) -> Any:
        """Stylise one of some images, or return the error that it ends in."""
        try:
            ((_, picture),) = stylise_batch(self.stylizer, images, draws, [row], device=self.device)
        except Exception as error:
            self.check(error)
            return error
        return picture

    def check(self, error: Exception) -> None:
        """Raise an error that is not due to the file in hand: other files would end in it, too."""
        if isinstance(error, OutputError | DeviceError | Warning):  # a warning: its user wants errors of them
            raise error
        if isinstance(error, OSError) and error.errno in FULL:
            raise OutputError(f"cannot write to {self.out}: {error.strerror}.") from None
        if self.device.startswith("cuda"):
            try:
                torch.cuda.synchronize()
            except RuntimeError as failed:
                raise DeviceError(f"{self.device} failed: {first_line(failed)}") from None


def check_output(path: Path) -> None:
    """Refuse an output that is a link: what it leads to is no part of this run."""
    if path.is_symlink():
        raise FileError(f"{path} is a link, and what it leads to would be replaced; remove it.")


def _joined(scans: list[Scan]) -> Scan:
    """Join slices to a volume, shown from the least to the largest value that any of them shows."""
    lows, highs = zip(*(scan.span for scan in scans), strict=True)
    frames = np.concatenate([scan.frames for scan in scans])
    return replace(scans[0], frames=frames, span=(min(lows), max(highs)), volume=True)


def windows(items: Iterable[T], weight: Callable[[T], int]) -> Iterator[list[T]]:
    """Cut a stream into short lists that fit into memory; where depends on the items only."""
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
    """Decode a sample's image, or tell why that is not possible; and name its format."""
    if sample.problem or sample.bystander:
        return sample, sample.problem, ""
    try:
        picture, kind = decode_image(sample.image)
        return sample, to_pixels(picture), kind
    except Exception as error:
        return sample, str(error) if isinstance(error, StyleAugError) else first_line(error), ""


def scan_pixels(scan: Scan) -> Ready:
    """Give a scan within its span: a volume `(1, T, C, H, W)`, other frames `(T, C, H, W)`."""
    values = torch.from_numpy(np.require(scan.frames, requirements=["C", "W"]))
    unit, back = to_unit(values if values.ndim == 4 else values[..., None], *scan.span)
    frames = unit.movedim(-1, 1)

    def restore(styled: Tensor) -> Scan:
        wide = back(styled.reshape(frames.shape).movedim(1, -1))
        return replace(scan, frames=wide.reshape(values.shape).numpy())

    return (frames[None] if scan.volume and len(frames) > 1 else frames), restore


def _facts(params: StyleParams) -> Line:
    """Tell what was drawn for one copy."""
    return {
        "strength": round(float(params["strength"][0]), 6),
        "styles": params["sources"][0].tolist(),
        "shares": [round(share, 6) for share in params["shares"][0].tolist()],
    }
