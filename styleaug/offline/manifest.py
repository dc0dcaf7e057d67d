"""The manifest of a run: its settings, then one line for each finished file."""

import json
import os
import re
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Self

from styleaug.errors import ConfigError, FileError
from styleaug.io.atomic import atomic, check_target
from styleaug.io.locks import Locked, holder_of, open_locked
from styleaug.io.stamps import is_unchanged
from styleaug.offline.copies import Line, Unit

__all__ = ["Applied", "Manifest"]

_NAME = re.compile(r"manifest(-\d+-of-(\d+))?\.jsonl")


class Known(NamedTuple):
    """The part of a manifest line that is kept in memory."""

    source: Any
    """Stamp of the output; None in lines of early versions, which had no stamps."""
    output: Any
    """Its stamp."""
    time: int
    """Time when the manifest was last written, in nanoseconds."""
    line: Line | None
    """The whole line for a shard; None for images, because there may be millions."""


@dataclass
class Applied:
    """Result of a run over a folder."""

    written: int = 0
    """Images."""

    skipped: int = 0
    """Number of images done by an earlier run."""

    failed: list[tuple[Path, str]] = field(default_factory=list)
    """Files that could not be read or written, or that hold such images, each with the reason."""

    left_out: str = ""
    """A line about the files in the folder that are not images, or ""."""

    def count(self, line: Line, root: Path) -> int:
        """Record the failed images of a shard's line; return the number of good ones."""
        source = root / line["source"]
        self.failed += [
            (source, f"{source}: {lost['key']}: {lost['reason']}") for lost in line.get("failed", ())
        ]
        return len(line["images"]) if "images" in line else 1


class Manifest:
    """The manifest of an output folder; it names each output once, even after a kill.

    With several processes, each writes its own file and holds a lock on it; finished outputs may be in any of
    the files.

    Args:
        out: the output folder. It is made if it is missing, and removed if the run ends before any output.
        settings: settings of the run.
        rank: number of this process, from 0 to `world` - 1.
        world: number of processes.

    Raises:
        FileError: the folder cannot be written to, or another run is writing to it.
        ConfigError: it holds a run with other settings.
    """

    out: Path
    settings: dict[str, Any]
    rank: int
    world: int
    file: Locked | None
    fresh: bool

    def __init__(self, out: Path, settings: dict[str, Any], rank: int = 0, world: int = 1):
        self.out, self.settings, self.rank, self.world = out, settings, rank, world
        self.path: Path = self.path_of(rank)
        self.done: dict[str, Known] = {}
        self.twice: dict[str, list[Known]] = {}
        if out.exists() and not out.is_dir():
            raise FileError(f"{out} is not a folder; name a folder for the copies.")
        self.made: list[Path] = [folder for folder in (out, *out.parents) if not folder.exists()]
        self.fresh, self.file = not self.path.exists(), None
        try:
            out.mkdir(parents=True, exist_ok=True)
            check_target(self.path)
            self.file = open_locked(self.path)
            RUNNING.add(self)
            for path in self.files():
                self.check_alone(path)
                time = path.stat().st_mtime_ns
                for line in self.read(path):
                    self.note(line, time)
            self.start()
        except BaseException as error:
            self.end(failed=True)
            if not isinstance(error, OSError) or isinstance(error, FileError):
                raise
            raise FileError(f"cannot write to {self.path}: {error.strerror}.") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        self.end(failed=kind is not None)

    def end(self, *, failed: bool) -> None:
        """Release the lock; if the run failed before its first output, remove its files."""
        if failed and self.fresh and self.file:
            self.path.unlink(missing_ok=True)
        if self.file:
            with suppress(OSError):
                os.fsync(self.file.fileno())
            self.file.close()
        if failed and self.fresh:
            for folder in self.made:
                with suppress(OSError):  # the folder is not empty
                    folder.rmdir()

    def files(self) -> list[Path]:
        """List the manifests of all processes that have written to the folder."""
        return sorted(path for path in self.out.iterdir() if _NAME.fullmatch(path.name) and path.is_file())

    def path_of(self, rank: int) -> Path:
        """Return the path of a process's manifest."""
        return self.out / ("manifest.jsonl" if self.world == 1 else f"manifest-{rank}-of-{self.world}.jsonl")

    def check_alone(self, path: Path) -> None:
        """Refuse to run beside another run; processes of one run have the same number of processes."""
        found = _NAME.fullmatch(path.name)
        if found and int(found[2] or 1) != self.world and (other := holder_of(path)):
            raise FileError(f"{other} is writing to {self.out}; wait for it, or use another output folder.")

    def start(self) -> None:
        """Write the settings, or end an incomplete last line after a kill."""
        assert self.file
        text = self.path.read_bytes()
        if b"\n" not in text:
            os.ftruncate(self.file.fileno(), 0)
            self.file.write(json.dumps({"settings": self.settings}))
        elif not text.endswith(b"\n"):
            self.file.write("")

    def read(self, path: Path) -> Iterator[Line]:
        """Yield the lines of a manifest; its settings must be those of this run."""
        with path.open(encoding="utf-8", errors="replace") as file:
            first = file.readline()
            if not first.endswith("\n"):
                return  # still being written, or incomplete after a crash
            found = next(parsed([first]), {}).get("settings")
            if not isinstance(found, dict):
                raise ConfigError(
                    f"the first line of {path}, with the settings, is damaged. Delete the file to make all "
                    "copies again, or use another output folder."
                )
            if found.get("keep_luminance") is False:  # as versions before `blend` wrote it
                del found["keep_luminance"]
            if found != self.settings:
                raise ConfigError(
                    f"{path.parent} holds copies made with other settings: {found}, now {self.settings}. "
                    "Use these settings, or another output folder."
                )
            yield from filter(is_sound, parsed(file))

    def note(self, line: Line, time: int) -> None:
        """Keep the needed part of a line."""
        stamps = line.get("source_stamp"), line.get("output_stamp")
        known = Known(*stamps, time, line if "images" in line else None)
        if line["output"] in self.done:
            self.twice.setdefault(line["output"], []).append(known)
        else:
            self.done[line["output"]] = known

    def of_others(self, units: list[Unit]) -> Iterator[Path]:
        """Yield the outputs that other processes write."""
        for rank in range(self.world):
            if rank != self.rank:
                yield self.path_of(rank)
                yield from (self.out / name for unit in units[rank :: self.world] for name in unit.wanted)

    def compare(
        self, units: list[Unit], root: Path, outputs: Callable[[str], list[str]]
    ) -> tuple[list[Unit], Applied]:
        """Return the remaining work of some units, and the result of earlier runs for them.

        Args:
            units: units of this process.
            root: folder that names of sources are relative to.
            outputs: returns the names of a source's outputs.
        """
        todo, result = [], Applied()
        again: set[str] = set()
        for unit in units:
            made = [(source, name) for source in unit.names for name in outputs(source)]
            known = {name: self.finished(root / source, name) for source, name in made}
            there = [name for name in unit.wanted if known.get(name) is not MISSING]
            # The slices of a volume share statistics: if one changed, all must be made again.
            if unit.series and any(self.is_of_another(root / name, outputs(name)) for name in unit.names):
                there = []
            for name in there:
                line = getattr(known[name], "line", None)
                result.skipped += result.count(line, root) if line else 1
            if len(there) < len(unit.wanted):
                todo.append(replace(unit, wanted=unit.wanted.difference(there)))
                again |= {name for name in todo[-1].wanted if name in self.done}
        if again:
            self.forget(again)
        return todo, result

    def finished(self, source: Path, name: str) -> Known | object:
        """Return what is known of an output that is up to date, else `MISSING`."""
        if not os.path.exists(self.out / name):  # Path.exists raises if the name is too long
            return MISSING
        for known in self.known_of(name):
            if known.source is None or (
                is_unchanged(source, known.source)
                and is_unchanged(self.out / name, known.output, since=known.time)
            ):
                return known
        return MISSING

    def known_of(self, name: str) -> list[Known]:
        """List what is known of an output; there are two lines if two processes made it."""
        return [self.done[name], *self.twice.get(name, ())] if name in self.done else []

    def is_of_another(self, source: Path, names: list[str]) -> bool:
        """Return True if the source has changed since its outputs were made."""
        stamps = [known.source for name in names for known in self.known_of(name)]
        return any(each is not None and not is_unchanged(source, each) for each in stamps)

    def forget(self, names: set[str]) -> None:
        """Remove the lines of outputs that are made again, from all manifests that are not locked."""
        for path in self.files():
            with path.open(encoding="utf-8", errors="replace") as file:
                head, *rows = [row for row in map(str.strip, file) if row] or [""]
            kept = [row for row in rows if not any(line["output"] in names for line in sound([row]))]
            if len(kept) == len(rows):
                continue
            # Another process of this run may hold it; then there will be two lines.
            with suppress(BlockingIOError):
                held = self.file if path == self.path else open_locked(path, wait=0)
                assert held
                with atomic(path) as part:
                    new = open_locked(part)
                    for row in (head, *kept):
                        new.write(row)
                held.close()
                if path == self.path:
                    self.file = new
                else:
                    new.close()

    def add(self, line: Line, root: Path, result: Applied) -> None:
        """Add a line to the manifest and to the result."""
        if "error" in line:
            result.failed.append((root / line["source"], line["error"]))
            return
        result.written += result.count(line, root)
        assert self.file
        self.file.write(json.dumps(line))
        self.fresh = False


MISSING = object()
RUNNING: weakref.WeakSet[Manifest] = weakref.WeakSet()


def let_go() -> None:
    """Close the manifests in a forked process, so that locks end with the process that made them."""
    for manifest in RUNNING:
        if manifest.file:
            manifest.file.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=let_go)


def parsed(rows: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Yield the JSON object of each line; skip incomplete lines."""
    for row in rows:
        try:
            value = json.loads(row)
        except (ValueError, RecursionError):
            continue  # its output is made again
        if isinstance(value, dict):
            yield value


def sound(rows: Iterable[str]) -> Iterator[Line]:
    """Yield the lines about outputs; skip damaged ones."""
    return filter(is_sound, parsed(rows))


def is_sound(line: Line) -> bool:
    """Return True if a line has the expected fields with the expected types."""
    if not isinstance(line.get("source"), str) or not isinstance(line.get("output"), str):
        return False
    lost = line.get("failed", [])
    texts = isinstance(lost, list) and all(
        isinstance(one, dict) and isinstance(one.get("key"), str) and isinstance(one.get("reason"), str)
        for one in lost
    )
    return texts and isinstance(line.get("images", []), list)
