"""Make the stylised copies of one unit of a run: of some images of a folder, or of one shard."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeVar

from torch import Tensor

from styleaug.atomic import atomic
from styleaug.errors import ConfigError, StyleAugError
from styleaug.files import decode_image, encode_image, open_image, save_image
from styleaug.images import Restore, check_range, to_pixels
from styleaug.shards import AbstractWriter, DamagedShardError, Sample, open_shard
from styleaug.transforms.core import Stylizer
from styleaug.transforms.host import rng_from, seed_from
from styleaug.transforms.params import StyleParams
from styleaug.transforms.ragged import stylise_ragged

__all__ = ["Copier", "Format", "Line", "Unit"]

Format = Literal["images", "parquet", "webdataset"]

Line = dict[str, Any]
"""What the manifest says of one output; or, with `"error"`, why there is none of a source."""

WINDOW = 32
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
    """

    stylizer: Stylizer
    source: Path
    out: Path
    format: Format
    copies: int
    seed: int
    column: str
    device: str = "cpu"

    def outputs(self, name: str) -> list[str]:
        """Name the files that are made of one: a shard keeps its name, as its samples are renamed."""
        if self.copies == 1 or self.format != "images":
            return [name]
        path = PurePosixPath(name)
        return [
            str(path.with_name(f"{path.stem}{self.suffix(copy)}{path.suffix}")) for copy in self.each_copy()
        ]

    def each_copy(self) -> range:
        """Count the copies from 1."""
        return range(1, self.copies + 1)

    def suffix(self, copy: int) -> str:
        """Tell copies apart."""
        return "" if self.copies == 1 else f"-{copy}"

    def __call__(self, unit: Unit) -> Iterator[Line]:
        """Write the outputs of a unit that are wanted, and yield a line for each when it is there.

        Raises:
            FileError: an output cannot be written. Sources that cannot be read are lines with an error.
        """
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
        """Do some images of a folder."""
        for window in windows(map(self.read, unit.names), lambda read: self.weight(read[1])):
            yield from ({"source": name, "error": found} for name, found in window if isinstance(found, str))
            rows = [
                (name, found, copy, output)
                for name, found in window
                if not isinstance(found, str)
                for copy, output in zip(self.each_copy(), self.outputs(name), strict=True)
            ]
            if not any(output in unit.wanted for *_, output in rows):
                continue
            draws = [self.draw(name, copy) for name, _, copy, _ in rows]
            # Those that are there already are stylised too: a copy's batch shall not depend on them.
            for index, picture in self.stylise([ready for _, ready, _, _ in rows], draws):
                name, _, copy, output = rows[index]
                if output in unit.wanted:
                    save_image(picture, self.out / output)
                    yield {"source": name, "output": output, "copy": copy, **facts(draws[index])}

    def read(self, name: str) -> tuple[str, Ready | str]:
        """Read one image, or tell why that is not possible."""
        path = self.source / name
        try:
            pixels, restore = to_pixels(open_image(path))
            check_range(pixels)
            return name, (pixels, restore)
        except StyleAugError as error:
            reason = str(error)
            return name, reason if str(path) in reason else f"{path}: {reason}"

    def copy_shard(self, name: str) -> Iterator[Line]:
        """Do one shard; its samples that cannot be stylised are left out and named."""
        path, target = self.source / name, self.out / name
        line: Line = {"source": name, "output": name, "images": [], "failed": []}
        try:
            with (
                open_shard(path, self.column) as reader,
                atomic(target) as part,
                reader.writer(part) as writer,
            ):
                samples = map(decoded, reader.samples())
                for window in windows(samples, lambda entry: self.weight(entry[1]) + entry[0].size):
                    self.copy_samples(name, window, writer, line)
        except (DamagedShardError, ConfigError) as error:
            line = {"source": name, "error": str(error)}
        yield line

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
                images[place, copy] = encode_image(picture, kind)
            except StyleAugError as error:
                problems[place] = str(error)
        of = {(place, copy): draw for (place, _, _, copy), draw in zip(rows, draws, strict=True)}
        for place, (sample, _, _) in enumerate(window):
            if sample.bystander:
                writer.add(sample, b"", "")
            elif place in problems:
                line["failed"].append({"key": sample.key, "reason": problems[place]})
            else:
                for copy in self.each_copy():
                    writer.add(sample, images[place, copy], self.suffix(copy))
                    line["images"].append({"key": sample.key, "copy": copy, **facts(of[place, copy])})

    def weight(self, found: Ready | str) -> int:
        """Tell how much memory the copies of an image take."""
        return 0 if isinstance(found, str) else found[0].nbytes * self.copies

    def draw(self, name: str, copy: int) -> StyleParams:
        """Draw the style of a copy: it depends on the seed, the copy's number and the name only."""
        return self.stylizer.draw(1, rng_from(seed_from(self.seed, copy, name)))

    def stylise(self, images: list[Ready], draws: list[StyleParams]) -> Iterator[tuple[int, Any]]:
        """Stylise images of any shapes; yield each with its index."""
        return stylise_ragged(self.stylizer, images, draws, device=self.device)


def windows(items: Iterable[T], weight: Callable[[T], int]) -> Iterator[list[T]]:
    """Cut a stream into short lists that fit into memory; where depends on the items only."""
    window: list[T] = []
    total = 0
    for item in items:
        window.append(item)
        total += weight(item)
        if len(window) >= WINDOW or total >= WINDOW_BYTES:
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
    except StyleAugError as error:
        return sample, str(error), ""


def facts(params: StyleParams) -> Line:
    """Tell what was drawn for one copy."""
    return {
        "strength": round(float(params["strength"][0]), 6),
        "styles": params["sources"][0].tolist(),
        "shares": [round(share, 6) for share in params["shares"][0].tolist()],
    }
