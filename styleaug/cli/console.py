"""What the commands say to the person at the terminal: on stderr, with a bar for anything long.

Where stderr is a file there is no bar, and training says a line now and then.
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
    """A file to write; what is there and no file is refused before any work is done."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Check a path."""
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        check_target(path)
        return path


NEW_FILE = NewFile()


_SECONDS = 30.0
"""Time between two lines about a training run in a file."""

_NAMED = 3
"""Images that seem to be label maps."""


@contextmanager
def labels_named() -> Iterator[None]:
    """Say which images seem to be label maps: the first by name, the others by their number."""
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
    """Show a progress bar on stderr; give the function that moves it."""
    with bar("{task.description}") as shown:
        task = shown.add_task(what, total=None)
        yield lambda done, total: shown.update(task, completed=done, total=total)


@contextmanager
def stages() -> Iterator[tuple[Callable[[str, int, int], None], Callable[[str], None]]]:
    """Show a progress bar whose name changes; give the function that moves it, and one that says a line."""
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
    """Show steps, time left, images per second and losses; give the function that `train` reports to.

    The bar starts with the first report, so that of several processes only one has one.
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
    """Make a bar with the first text before it and the others behind."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    first, *others = (TextColumn(text, markup=False) for text in texts)
    columns = [first, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), *others]
    console = Console(stderr=True)
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def say(*lines: str) -> None:
    """Talk to the person, on stderr; what a line quotes can neither end it nor command the terminal."""
    click.echo("\n".join(map(printable, lines)), err=True)


def output(*lines: str) -> None:
    """Print results, on stdout, as safely as `say`."""
    click.echo("\n".join(map(printable, lines)))


def show_warning(message: Warning | str, *where: Any) -> None:
    """Say a warning; takes what `warnings.showwarning` takes."""
    say(f"warning: {message}")


@contextmanager
def going_on() -> Iterator[None]:
    """Say on Ctrl-C that the same command goes on where it stopped."""
    try:
        yield
    except KeyboardInterrupt:
        say(f"stopped; what is finished stays. Go on with: styleaug {shlex.join(sys.argv[1:])}")
        sys.exit(INTERRUPTED)


def finish(failed: list[tuple[Path, str]], strict: bool) -> None:
    """Report the files that could not be used; exit with 1 if that was to be strict about."""
    for _, reason in failed:
        say(f"skipped: {reason}")
    if failed:
        say(f"{len(failed)} files skipped")
        if strict:
            sys.exit(1)
