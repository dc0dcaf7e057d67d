"""Messages, warnings and progress bars of the commands, on stderr.

If stderr is a file, there is no bar, and training prints a line every 30 seconds.
"""

import os
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from styleaug.errors import LabelWarning, printable
from styleaug.io.atomic import check_target

__all__ = [
    "INTERRUPTED",
    "NEW_FILE",
    "finish",
    "going_on",
    "labels_named",
    "output",
    "progress",
    "say",
    "show_warning",
    "stages",
    "training_progress",
]

INTERRUPTED = 130
"""Exit code after Ctrl-C."""


class NewFile(click.Path):
    """A path to write a file to; an existing path that is not a file is refused before any work."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path, after checking that a file can be written there."""
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        check_target(path)
        return path


NEW_FILE = NewFile()


_SECONDS = 30.0
"""Seconds between two lines about a training run, if stderr is a file."""

_NAMED = 3
"""Number of suspected label maps that are warned about by name."""


@contextmanager
def labels_named() -> Iterator[None]:
    """Print which images seem to be label maps: the first few by name, then a count of the rest."""
    found = 0
    with warnings.catch_warnings():
        show = warnings.showwarning

        def name(message: Any, category: type[Warning], *place: Any) -> None:
            nonlocal found
            if not issubclass(category, LabelWarning):
                show(message, category, *place)
                return
            found += 1
            if found <= _NAMED:
                say(f"warning: {message}")

        warnings.simplefilter("default", LabelWarning)
        warnings.showwarning = name
        try:
            yield
        finally:
            if found > _NAMED:
                say(f"warning: {found - _NAMED} more images have few values, like label maps.")


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar on stderr and yield the function that moves it."""
    with bar("{task.description}") as shown:
        task = shown.add_task(what, total=None)
        yield lambda done, total: shown.update(task, completed=done, total=total)


@contextmanager
def stages() -> Iterator[tuple[Callable[[str, int, int], None], Callable[[str], None]]]:
    """Show a bar whose name changes; yield the function that moves it and one that prints a line."""
    with bar("{task.description}") as shown:
        task = shown.add_task("", total=None)
        yield (
            lambda what, done, total: shown.update(
                task, description=printable(what), completed=done, total=total
            ),
            lambda line: shown.console.print(printable(line), markup=False, highlight=False, soft_wrap=True),
        )


@contextmanager
def training_progress(batch: int) -> Iterator[Callable[[int, int, dict[str, float]], None]]:
    """Show steps, time left, images per second and losses; yield the function that `train` reports to.

    The bar starts with the first report. Only one of several processes reports, so only one shows a bar.
    """
    with bar("training", "{task.fields[told]}") as shown:
        began: list[tuple[float, int]] = []
        said = time.monotonic()

        def report(step: int, steps: int, losses: dict[str, float]) -> None:
            nonlocal said
            if not began:
                began.append((time.monotonic(), step))
                shown.add_task("", total=steps, completed=step, told="")
            elapsed, first = time.monotonic() - began[0][0], began[0][1]
            speed = f"{batch * (step - first) / elapsed:.1f} images/s  " if step > first else ""
            told = speed + "  ".join(f"{name} {value:.3g}" for name, value in losses.items())
            shown.update(shown.task_ids[0], completed=step, told=told)
            if shown.disable and time.monotonic() - said >= _SECONDS:
                said = time.monotonic()
                say(f"step {step} of {steps}  {told}")

        yield report


def bar(*texts: str) -> Any:
    """Return a progress bar with the first text before it and the other texts after it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    first, *others = (TextColumn(text, markup=False) for text in texts)
    columns = [first, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), *others]
    console = Console(stderr=True)
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def say(*lines: str) -> None:
    """Print lines on stderr. Control characters are escaped, so quoted text cannot drive the terminal."""
    click.echo("\n".join(map(printable, lines)), err=True)


def output(*lines: str) -> None:
    """Print results on stdout, with control characters escaped."""
    click.echo("\n".join(map(printable, lines)))


def show_warning(message: Warning | str, *where: Any) -> None:
    """Print a warning on stderr; a replacement for `warnings.showwarning`."""
    say(f"warning: {message}")


@contextmanager
def going_on() -> Iterator[None]:
    """Print on Ctrl-C that the same command continues where it stopped."""
    try:
        yield
    except KeyboardInterrupt:
        say(f"stopped; finished work is kept. Go on with: styleaug {shlex.join(sys.argv[1:])}")
        sys.exit(INTERRUPTED)


def finish(failed: list[tuple[Path, str]], strict: bool) -> None:
    """Print the files that could not be used; if there are any and `strict`, exit with code 1."""
    for _, reason in failed:
        say(f"skipped: {reason}")
    if failed:
        say(f"{len(failed)} files skipped")
        if strict:
            sys.exit(1)
