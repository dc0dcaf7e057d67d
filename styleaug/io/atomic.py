"""Files that are whole or not there at all."""

import errno
import os
import re
import secrets
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from styleaug.errors import FileError
from styleaug.io.paths import check_path

__all__ = ["FULL", "OutputError", "atomic", "check_target", "remove_parts"]

PART = ".part"
LEFT_BEHIND = re.compile(r"\.(.*)\.[a-z0-9_]{8}\.part(\.\w+)?", re.DOTALL)  # as `atomic` names them
STEM = 40
"""How much of the target's name a part has in its own."""
SUFFIX = 12
"""Longer suffixes, such as the numbers of DICOM files, are no type and left out of a part's name."""

OF_ONE_NAME = {errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ, errno.EISDIR, errno.ELOOP, errno.EFBIG}
"""What goes wrong with one file and not with its neighbours."""

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
"""What no file can be written against."""


class OutputError(FileError):
    """A place that nothing can be written to, such as a full disk; other files would fail there, too."""


@contextmanager
def atomic(target: Path, *, durable: bool = True) -> Iterator[Path]:
    """Give a path beside `target` to write to; rename it over `target` when the block succeeds.

    Whatever happens, `target` is afterwards either what it was or the whole new file. Where `target` is a
    link, the file that it leads to is written.

    Args:
        target: of the new file; its folder is made if it is missing.
        durable: wait until the file is on the disk, so that it is whole after a power failure, too.

    Raises:
        OutputError: the folder cannot be made or written to, or the disk is full.
        FileError: something else than a file has this name, or no file can have it.
    """
    target = check_path(target)
    check_target(target)
    real = Path(os.path.realpath(target)) if target.is_symlink() else target
    try:
        real.parent.mkdir(parents=True, exist_ok=True)
        part = new_part(real)
    except OSError as error:
        kind = FileError if error.errno in OF_ONE_NAME else OutputError
        raise kind(f"cannot write to {target.parent}: {error.strerror}.") from None
    try:
        try:
            yield part
        except OSError as error:
            if isinstance(error, FileError):
                raise
            kind = OutputError if error.errno in FULL else FileError
            raise kind(f"cannot write {target}: {error.strerror or error}.") from None
        if durable:
            synchronise(part)
        os.replace(part, real)
        if durable:
            with suppress(OSError):  # some file systems cannot do this for folders
                synchronise(real.parent)
    except OSError as error:
        if isinstance(error, FileError):
            raise
        kind = FileError if error.errno in OF_ONE_NAME else OutputError
        raise kind(f"cannot write {target}: {error.strerror or error}.") from None
    finally:
        part.unlink(missing_ok=True)


def check_target(target: Path) -> None:
    """Refuse to replace what is no ordinary file, such as a folder, a device or a pipe.

    Raises:
        FileError: it is there and no file, or no file can have this name.
        OutputError: it cannot be looked at.
    """
    try:
        mode = os.stat(target).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return
    except (OSError, ValueError) as error:  # ValueError: a NUL in it
        reason = getattr(error, "strerror", None) or error
        kind = FileError if getattr(error, "errno", None) in {None, *OF_ONE_NAME} else OutputError
        raise kind(f"cannot write {str(target)!r:.200}: {reason}.") from None
    if not stat.S_ISREG(mode):
        raise FileError(f"{target} is {kind_of(mode)} and no file; name a file to write.")


def kind_of(mode: int) -> str:
    """Name what has this mode."""
    kinds = {stat.S_ISDIR: "a folder", stat.S_ISFIFO: "a pipe", stat.S_ISSOCK: "a socket"}
    return next((name for test, name in kinds.items() if test(mode)), "a device")


def new_part(target: Path) -> Path:
    """Make an empty file beside `target`, with the permissions of any new file."""
    while True:
        part = target.with_name(f".{target.stem[:STEM]}.{secrets.token_hex(4)}{PART}{ending(target)}")
        with suppress(FileExistsError):
            os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
            return part


def ending(target: Path) -> str:
    """Give the suffix that a part has of its target, by which some libraries choose what to write."""
    return target.suffix if len(target.suffix) <= SUFFIX else ""


def synchronise(path: Path) -> None:
    """Wait until a file or a folder is on the disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def remove_parts(folder: Path, *, keep: Iterable[Path] = ()) -> None:
    """Delete what writes that were killed left behind below `folder`, and nothing else.

    Args:
        folder: searched with all below it.
        keep: targets that other processes write at this time.
    """
    others = {(target.parent, target.stem[:STEM], ending(target)) for target in keep}
    for part in Path(folder).rglob(f".*{PART}*"):
        name = LEFT_BEHIND.fullmatch(part.name)
        if name and (part.parent, name[1], name[2] or "") not in others:
            part.unlink(missing_ok=True)
