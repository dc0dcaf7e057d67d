"""The result file of a comparison, with a record per finished run, so that it can be resumed."""

import json
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import active_children, get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from styleaug.errors import ConfigError, FileError, StyleAugError
from styleaug.io.atomic import atomic

__all__ = [
    "Key",
    "Record",
    "RunFile",
    "Workers",
]

Record = dict[str, Any]
Key = tuple[str, int]
_FORMAT = "styleaug robustness 1"


def _key_of(record: Mapping[str, Any]) -> Key:
    """Return the key of a run: arm and seed, unique in a file."""
    return record["arm"], record["seed"]


class RunFile:
    """A JSON file of runs with the same settings.

    Args:
        path: path of the file, which need not exist; None keeps the runs in memory.
        settings: settings that all its runs share, as JSON values.

    Raises:
        FileError: the file is not a result file, or is damaged.
    """

    def __init__(self, path: Path | None, settings: Mapping[str, Any]):
        self.path: Path | None = None if path is None else Path(path)
        self.settings: Any = json.loads(json.dumps(settings))
        self.memory: list[Record] = []
        self.read()

    def read(self) -> tuple[dict[str, Any], list[Record]]:
        """Read the current settings and runs of the file."""
        if self.path is None or not self.path.exists():
            return self.settings, list(self.memory)
        try:
            content = json.loads(self.path.read_text())
            if content["format"] != _FORMAT:
                raise ValueError(content["format"])
            for record in content["runs"]:
                _ = _key_of(record), record["spec"], record["scores"]
            return content["settings"], content["runs"]
        except (OSError, ValueError, KeyError, TypeError):
            raise FileError(
                f"{self.path} is no result file of `styleaug evaluate robustness`, or is damaged; "
                "give another name to write to."
            ) from None

    def finished(self) -> dict[Key, Record]:
        """Return the finished runs, by arm and seed."""
        return {_key_of(record): record for record in self.read()[1]}

    def same(self) -> tuple[dict[str, Any], list[Record]]:
        """Return settings and runs, after checking that the settings are the same."""
        settings, runs = self.read()
        if runs and settings != self.settings:
            differing = "; ".join(differences(settings, self.settings))
            raise ConfigError(
                f"{self.path} holds runs with other settings ({differing}). Write to another file, or "
                "run all of them again with --redo."
            )
        return self.settings, runs

    def drop(self, keys: Iterable[Key]) -> None:
        """Delete runs, so that they are repeated; without runs the settings are deleted, too."""
        gone = set(keys)
        with self.locked():
            settings, runs = self.read()
            kept = [record for record in runs if _key_of(record) not in gone]
            self.write(settings if kept else self.settings, kept)

    def check(self, planned: Mapping[Key, str]) -> None:
        """Check that the file has the same settings, and the same arms by name.

        Args:
            planned: line and hash of the arm, by the run's key.

        Raises:
            ConfigError: they differ; the message says where.
        """
        for record in self.same()[1]:
            wanted = planned.get(_key_of(record))
            if wanted is not None and wanted != record["spec"]:
                raise ConfigError(
                    f"{self.path} holds another arm {record['arm']!r}: {record['spec']!r} there, {wanted!r} "
                    "here. Give it another NAME=, or run it again with --redo."
                )

    def add(self, record: Record) -> None:
        """Add a run to the file; other processes may do so at the same time."""
        with self.locked():
            settings, runs = self.same()
            others = [old for old in runs if _key_of(old) != _key_of(record)]
            self.write(settings, [*others, record])

    def write(self, settings: Mapping[str, Any], runs: list[Record]) -> None:
        """Replace the file by one with these settings and runs."""
        self.memory = runs
        if self.path is None:
            return
        lines = ",\n".join(json.dumps(record) for record in runs)
        head = json.dumps(settings)
        with atomic(self.path) as part:
            part.write_text(f'{{"format": "{_FORMAT}",\n"settings": {head},\n"runs": [\n{lines}\n]}}\n')

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the file against other processes, if the system can; no lock file remains."""
        try:
            import fcntl
        except ImportError:  # Windows
            yield
            return
        if self.path is None:
            yield
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.path.parent, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)


def differences(there: Any, here: Any, name: str = "") -> Iterator[str]:
    """List the entries in which two settings differ."""
    if isinstance(there, dict) and isinstance(here, dict):
        for key in sorted(set(there) | set(here)):
            yield from differences(there.get(key), here.get(key), f"{name} {key}".strip())
    elif there != here:
        yield f"{name} is {there} there and {here} here"


_Task = tuple[Callable[[Any], Any], Any]


class Workers:
    """Run tasks one after the other in this process, or in parallel in several processes."""

    def __init__(self, jobs: int):
        self.tasks: list[_Task] = []
        self.last: Any = None
        self.pool: ProcessPoolExecutor | None = None
        self.strangers: set[BaseProcess] = set(active_children())
        if jobs > 1:
            # Ctrl-C reaches every process of a terminal; only this one must react.
            deaf = (signal.SIGINT, signal.SIG_IGN)
            spawn = get_context("spawn")
            self.pool = ProcessPoolExecutor(jobs, mp_context=spawn, initializer=signal.signal, initargs=deaf)

    def __enter__(self) -> "Workers":
        """Return the workers."""
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        """End the processes; after an error, immediately."""
        if self.pool is None:
            return
        self.pool.shutdown(wait=error is None, cancel_futures=True)
        if error is not None:
            for child in set(active_children()) - self.strangers:
                child.terminate()

    def add(self, function: Callable[[Any], Any], argument: Any) -> None:
        """Add a task."""
        self.tasks.append((function, argument))

    def run(self, keep: Callable[[Any], None] = lambda result: None) -> Iterator[tuple[int, int]]:
        """Run the tasks; after each yield the number of finished tasks and of all."""
        tasks, self.tasks = self.tasks, []
        for number, result in enumerate(self.results(tasks), start=1):
            self.last = result
            keep(result)
            yield number, len(tasks)

    def results(self, tasks: list[_Task]) -> Iterator[Any]:
        """Yield the results as tasks finish."""
        if self.pool is None:
            yield from (function(argument) for function, argument in tasks)
            return
        try:
            futures = [self.pool.submit(function, argument) for function, argument in tasks]
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool:
            raise StyleAugError(
                "a process ended unexpectedly, perhaps because memory ran out; use fewer jobs (--workers). "
                "Finished runs are kept."
            ) from None
