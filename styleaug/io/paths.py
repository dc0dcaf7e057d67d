"""Paths that users give: refuse names that no system takes, and what is no ordinary file."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from styleaug.errors import FileError

__all__ = ["check_path", "check_regular", "in_utf8"]

_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


def check_path(path: str | os.PathLike[str]) -> Path:
    """Return a path that the system can look up; it need not exist.

    Raises:
        FileError: a name that is too long, holds NUL, or cannot be encoded.
    """
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        pass
    except OSError as error:
        raise FileError(f"no path can be {os.fspath(path)!r:.120}: {error.strerror or error}.") from None
    except ValueError as error:  # NUL, or a lone surrogate
        raise FileError(f"no path can be {os.fspath(path)!r:.120}: {error}.") from None
    return Path(path)


def check_regular(path: str | os.PathLike[str]) -> Path:
    """Return the path of an ordinary file, before anything opens it: to open a pipe may wait for ever.

    Raises:
        FileError: missing, no ordinary file, or a name that no file can have.
    """
    checked = check_path(path)
    try:
        mode = checked.stat().st_mode
    except OSError as error:
        raise FileError(f"cannot open {checked}: {error.strerror or error}.") from None
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "no ordinary file")
        raise FileError(f"cannot open {checked}: it is {kind}; give an ordinary file.")
    return checked


@contextmanager
def in_utf8(path: Path) -> Iterator[Path]:
    """Give a name of the file that is valid UTF-8, for libraries that take no other: its own, or a link's."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        with TemporaryDirectory() as folder:
            link = Path(folder) / f"link{path.suffix if path.suffix.isascii() else ''}"
            link.symlink_to(path.absolute())
            yield link
    else:
        yield path
