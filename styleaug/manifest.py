"""The manifest of a run: its settings, then a line for each file that is finished."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from styleaug.atomic import atomic
from styleaug.copies import Line, Unit
from styleaug.errors import ConfigError, FileError

__all__ = ["Applied", "Manifest"]


@dataclass
class Applied:
    """What a run over a folder did."""

    written: int = 0
    """Images."""

    skipped: int = 0
    """Images done by an earlier run."""

    failed: list[tuple[Path, str]] = field(default_factory=list)
    """Files that could not be read, or that hold images which could not, and why."""

    def count(self, line: Line, root: Path) -> int:
        """Note which images of a line's shard failed; give the number of those that did not."""
        source = root / line["source"]
        self.failed += [
            (source, f"{source}: {lost['key']}: {lost['reason']}") for lost in line.get("failed", ())
        ]
        return len(line["images"]) if "images" in line else 1


class Manifest:
    """Names each output once, whatever was killed in between.

    Several processes have a file each, lest they write into each other's lines; what is finished
    stands in any of them.

    Args:
        out: the folder; made if it is missing.
        settings: of the run.
        rank: which of `world` processes this is.
        world: how many there are.

    Raises:
        FileError: the folder cannot be written to.
        ConfigError: it holds a run with other settings.
    """

    def __init__(self, out: Path, settings: dict[str, Any], rank: int = 0, world: int = 1):
        self.out, self.settings, self.rank, self.world = out, settings, rank, world
        self.path = self.path_of(rank)
        self.done: dict[str, Line | None] = {}
        try:
            out.mkdir(parents=True, exist_ok=True)
            for path in sorted(out.glob("manifest*.jsonl")):
                # What an image's line says is not needed, and there may be millions.
                self.done |= {line["output"]: line if "images" in line else None for line in self.read(path)}
            self.start()
            self.file = self.path.open("a")
        except OSError as error:
            if isinstance(error, FileError):
                raise
            raise FileError(f"cannot write to {self.path}: {error.strerror}.") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def path_of(self, rank: int) -> Path:
        """Name a process's manifest."""
        return self.out / ("manifest.jsonl" if self.world == 1 else f"manifest-{rank}-of-{self.world}.jsonl")

    def start(self) -> None:
        """Write the settings, or end the line that a kill tore."""
        text = self.path.read_bytes() if self.path.exists() else b""
        if not text:
            with atomic(self.path) as part:  # others may read it at any time
                part.write_text(json.dumps({"settings": self.settings}) + "\n")
        elif not text.endswith(b"\n"):
            with self.path.open("a") as file:
                file.write("\n")

    def read(self, path: Path) -> Iterator[Line]:
        """Yield what a manifest names, if it is of a run with these settings."""
        with path.open(encoding="utf-8", errors="replace") as file:
            rows = parsed(file)
            found = next(rows, {}).get("settings")
            if found != self.settings and path.stat().st_size:
                raise ConfigError(
                    f"{path.parent} holds copies made with other settings: {found}, now {self.settings}. "
                    "Use these settings, or another output folder."
                )
            yield from (row for row in rows if "output" in row)

    def of_others(self, units: list[Unit]) -> Iterator[Path]:
        """Yield what the other processes write."""
        for rank in range(self.world):
            if rank != self.rank:
                yield self.path_of(rank)
                yield from (self.out / name for unit in units[rank :: self.world] for name in unit.wanted)

    def compare(self, units: list[Unit], root: Path) -> tuple[list[Unit], Applied]:
        """Tell what is left to do of some units, and what an earlier run has done of them."""
        todo, result = [], Applied()
        for unit in units:
            there = [name for name in unit.wanted if name in self.done and (self.out / name).exists()]
            for name in there:
                line = self.done[name]
                result.skipped += result.count(line, root) if line else 1
            if len(there) < len(unit.wanted):
                todo.append(replace(unit, wanted=unit.wanted.difference(there)))
        return todo, result

    def add(self, line: Line, root: Path, result: Applied) -> None:
        """Note a line in the manifest and in the result."""
        if "error" in line:
            result.failed.append((root / line["source"], line["error"]))
            return
        result.written += result.count(line, root)
        if line["output"] not in self.done:  # else it was made again, as its file was gone
            self.file.write(json.dumps(line) + "\n")
            self.file.flush()


def parsed(rows: Iterator[str]) -> Iterator[dict[str, Any]]:
    """Read lines of JSON objects, without those that a kill tore."""
    for row in rows:
        try:
            value = json.loads(row)
        except ValueError:
            continue  # its copy is made again
        if isinstance(value, dict):
            yield value
