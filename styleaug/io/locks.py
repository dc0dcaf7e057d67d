"""Open files to which only one process at a time appends; the lock ends when the process ends."""

import os
import time
from io import FileIO
from pathlib import Path

from styleaug.errors import FileError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

__all__ = ["Locked", "holder_of", "open_locked"]

PATIENCE = 2.0
"""Seconds to wait for a lock, in case its holder only checks it or is about to end."""


class Locked:
    """A UTF-8 file open for appending; each line is written with one call.

    Args:
        number: file descriptor.
    """

    def __init__(self, number: int):
        self.file: FileIO = open(number, "ab", buffering=0)  # noqa: SIM115

    def write(self, text: str) -> None:
        """Append a line."""
        content = memoryview(text.encode("utf-8", "surrogateescape") + b"\n")
        while content:
            content = content[self.file.write(content) :]

    def fileno(self) -> int:
        """Return the file descriptor."""
        return self.file.fileno()

    def close(self) -> None:
        """Close the file; this ends the lock, unless a forked process also has it open."""
        self.file.close()


def open_locked(path: Path, *, wait: float = PATIENCE) -> Locked:
    """Open a file for appending and lock it; it is made if it is missing.

    Args:
        path: path of the file.
        wait: seconds to wait if another process holds the file; 0 raises `BlockingIOError` at once.

    Raises:
        FileError: another process holds it.
        OSError: it cannot be opened.
    """
    end = time.monotonic() + wait
    while True:
        number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        if lock(number) and is_same(number, path):
            return Locked(number)
        os.close(number)
        if time.monotonic() < end:
            time.sleep(0.05)
        elif not wait:
            raise BlockingIOError
        else:
            raise FileError(
                f"{told(path)} is writing to {path.parent}; wait for it, or use another output folder."
            )


def lock(number: int) -> bool:
    """Lock an open file; return False if another process holds it. Without lock support, return True."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # such as some network file systems
        return True
    return True


def is_same(number: int, path: Path) -> bool:
    """Return True if `path` is still this open file; another file may have replaced it."""
    try:
        facts, there = os.fstat(number), os.stat(path)
    except FileNotFoundError:
        return False
    return (facts.st_dev, facts.st_ino) == (there.st_dev, there.st_ino)


def holder_of(path: Path) -> str:
    """Return a description of the process that holds a file, or ""."""
    try:
        open_locked(path, wait=PATIENCE).close()
    except FileError:
        return told(path)
    except OSError:
        return ""
    return ""


def told(path: Path) -> str:
    """Return a name for the process that holds a file, with its number if the system knows it."""
    try:
        inode = str(path.stat().st_ino)
        rows = [row.split() for row in Path("/proc/locks").read_text().splitlines()]
    except OSError:
        return "another process"
    pids = [row[4] for row in rows if row[1] == "FLOCK" and row[5].rpartition(":")[2] == inode]
    return f"process {pids[0]}" if pids else "a process, maybe on another machine,"
