"""Stamps of files: by size, time and content one tells whether a file is still the same."""

import hashlib
import os
import re
from pathlib import Path
from typing import Any

__all__ = ["is_unchanged", "stamp_of"]

STAMP = re.compile(r"(\d{1,20}) (?:(-?\d{1,20}) )?([0-9a-f]{16})")
"""Bytes, nanoseconds and a hash."""


def stamp_of(path: Path, *, timed: bool = True, before: os.stat_result | None = None) -> str:
    """Return size in bytes, time of change in nanoseconds where wanted, and a hash of the content.

    Args:
        path: of the file.
        timed: whether the time is part of it.
        before: what `os.stat` gave before the file was read. If that has changed since, the stamp is none
            that `is_unchanged` accepts.
    """
    facts = os.stat(path)
    if before and (facts.st_size, facts.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
        return "changed while it was read"
    time = f" {facts.st_mtime_ns}" if timed else ""
    return f"{facts.st_size}{time} {_digest_of(path)}"


def is_unchanged(path: Path, stamp: Any, *, since: int = 0) -> bool:
    """Check whether a file is the one that a stamp was made of; its content is read only if its time is odd.

    Args:
        path: of the file.
        stamp: from `stamp_of`, or whatever stands in its place in a damaged manifest.
        since: when the file was there already, in nanoseconds, for stamps without time.
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
    """Hash a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8)).hexdigest()
