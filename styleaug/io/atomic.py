"""Write files atomically: a file is complete or absent."""

import errno
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from styleaug.errors import FileError
from styleaug.io.paths import check_path

__all__ = ["FULL", "OutputError", "atomic", "atomic_folder", "check_target", "remove_parts"]

PART = ".part"
LEFT_BEHIND = re.compile(r"\.(.*)\.[a-z0-9_]{8}\.part(\.\w+)?", re.DOTALL)  # as `atomic` names them
STEM = 40
"""Number of characters of the target's name that the name of a temporary file begins with."""
SUFFIX = 12
"""Longest suffix that a temporary file keeps; longer ones, such as DICOM's numbers, name no type."""

OF_ONE_NAME = {errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ, errno.EISDIR, errno.ELOOP, errno.EFBIG}
"""Codes of errors that concern one file only."""

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
"""Codes of errors that concern every file: a full or read-only disk."""


class OutputError(FileError):
    """Nothing can be written here, for example because the disk is full; other files would also fail."""


@contextmanager
def atomic(target: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield a path beside `target` to write to; rename it over `target` when the block succeeds.

    Afterwards `target` is either unchanged or the complete new file. If `target` is a link, the file that it
    leads to is replaced.

    Args:
        target: path of the new file; its folder is made if it is missing.
        durable: wait until the file is on the disk, so that it survives a power failure.

    Raises:
        OutputError: the folder cannot be made or written to, or the disk is full.
        FileError: `target` exists and is not a file, or the name is not valid.
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


@contextmanager
def atomic_folder(target: Path, *, marks: Iterable[str]) -> Iterator[Path]:
    """Yield an empty folder beside `target` to write to; rename it to `target` when the block succeeds.

    Args:
        target: path of the new folder. A folder that is there is replaced if it is of the same kind.
        marks: names of files of which a folder of this kind has at least one.

    Raises:
        OutputError: the folder cannot be made or written to, or the disk is full.
        FileError: `target` exists and is something else, or the name is not valid.
    """
    target = check_path(target)
    marks = tuple(marks)
    if os.path.lexists(target) and not any((target / mark).is_file() for mark in marks):
        raise FileError(f"{target} exists and is something else; remove it, or write to another folder.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        part, old = new_part(target), new_part(target)
        for path in (part, old):
            path.unlink()
        part.mkdir()
    except OSError as error:
        kind = FileError if error.errno in OF_ONE_NAME else OutputError
        raise kind(f"cannot write to {target.parent}: {error.strerror}.") from None
    try:
        yield part
        if target.exists():
            os.rename(target, old)
        os.rename(part, target)
    except OSError as error:
        if isinstance(error, FileError):
            raise
        kind = OutputError if error.errno in FULL else FileError
        raise kind(f"cannot write {target}: {error.strerror or error}.") from None
    finally:
        for path in (part, old):
            shutil.rmtree(path, ignore_errors=True)


def check_target(target: Path) -> None:
    """Check that `target` can be written: it is missing or a regular file, not a folder, device or pipe.

    Raises:
        FileError: it exists and is not a file, or the name is not valid.
        OutputError: it cannot be examined.
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
        raise FileError(f"{target} is {kind_of(mode)}, not a file; name a file to write.")


def kind_of(mode: int) -> str:
    """Return a name for the kind of file with this mode."""
    kinds = {stat.S_ISDIR: "a folder", stat.S_ISFIFO: "a pipe", stat.S_ISSOCK: "a socket"}
    return next((name for test, name in kinds.items() if test(mode)), "a device")


def new_part(target: Path) -> Path:
    """Make an empty temporary file beside `target`, with the usual permissions of a new file."""
    while True:
        part = target.with_name(f".{target.stem[:STEM]}.{secrets.token_hex(4)}{PART}{ending(target)}")
        with suppress(FileExistsError):
            os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
            return part


def ending(target: Path) -> str:
    """Return the suffix of a temporary file: the target's, because libraries choose the format by it."""
    return target.suffix if len(target.suffix) <= SUFFIX else ""


def synchronise(path: Path) -> None:
    """Wait until a file or a folder is on the disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def remove_parts(folder: Path, *, keep: Iterable[Path] = ()) -> None:
    """Delete the temporary files that killed processes left in `folder` and below it.

    Args:
        folder: the folder to search, with all folders below it.
        keep: targets that other processes are writing now.
    """
    others = {(target.parent, target.stem[:STEM], ending(target)) for target in keep}
    for part in list(Path(folder).rglob(f".*{PART}*")):
        name = LEFT_BEHIND.fullmatch(part.name)
        if name and (part.parent, name[1], name[2] or "") not in others:
            if part.is_dir():
                shutil.rmtree(part, ignore_errors=True)
            else:
                part.unlink(missing_ok=True)
