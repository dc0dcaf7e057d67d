"""Stamps of files: size, time and content hash, to check whether a file has changed."""

import hashlib
import os
import re
from pathlib import Path
from typing import Any

__all__ = ["is_unchanged", "stamp_of"]

STAMP = re.compile(r"(\d{1,20}) (?:(-?\d{1,20}) )?([0-9a-f]{16})")
"""Pattern of a stamp: size in bytes, optional time in nanoseconds, and hash."""


def stamp_of(path: Path, *, timed: bool = True, before: os.stat_result | None = None) -> str:
    """Return the stamp of a file: size in bytes, time of change in nanoseconds, hash of the content.

    Args:
        path: path of the file.
        timed: include the time.
        before: result of `os.stat` before the file was read. If it has changed since, `is_unchanged` will not
            accept the stamp.
    """
    facts = os.stat(path)
    if before and (facts.st_size, facts.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
        return "changed while it was read"
    time = f" {facts.st_mtime_ns}" if timed else ""
    return f"{facts.st_size}{time} {_digest_of(path)}"


def is_unchanged(path: Path, stamp: Any, *, since: int = 0) -> bool:
    """Return True if a file still has this stamp; its content is read only if its time has changed.

    Args:
        path: path of the file.
        stamp: stamp from `stamp_of`; any other value, from a damaged manifest, never matches.
        since: for stamps without time: a time in nanoseconds when the file was known to be unchanged.
    """
    found = STAMP.fullmatch(stamp) if isinstance(stamp, str) else None
    if not found:
        return False
    try:
        facts = os.stat(path)
        if facts.st_size != int(found[1]):
            return False
        same = facts.st_mtime_ns == int(found[2]) if found[2] else facts.st_mtime_ns <= since
        return same or _digest_of(path) == found[3]
    except OSError:
        return False


def _digest_of(path: Path) -> str:
    """Return the hash of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8)).hexdigest()
