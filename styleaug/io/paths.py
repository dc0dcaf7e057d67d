"""Check paths from users: invalid names, and paths that are not regular files."""

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
    """Return a path that is valid on this system; it need not exist.

    Raises:
        FileError: the name is too long, contains NUL, or cannot be encoded.
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
    """Check that a path is a regular file before it is opened; opening a pipe could block.

    Raises:
        FileError: the path is missing, not a regular file, or not a valid name.
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
    """Yield a path of the file that is valid UTF-8, for libraries that need it: its own, or a link."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        with TemporaryDirectory() as folder:
            link = Path(folder) / f"link{path.suffix if path.suffix.isascii() else ''}"
            link.symlink_to(path.absolute())
            yield link
    else:
        yield path
