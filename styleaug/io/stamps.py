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
    """Return the stamp of a file or folder: size in bytes, time of change in nanoseconds, hash.

    Args:
        path: path of the file.
        timed: include the time.
        before: result of `os.stat` before the file was read. If it has changed since, `is_unchanged` will not
            accept the stamp.
    """
    if os.path.isdir(path):
        size, changed, digest = folder_facts(path)
        return f"{size}{f' {changed}' if timed else ''} {digest}"
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
        if os.path.isdir(path):
            size, _, digest = folder_facts(path)
            return size == int(found[1]) and digest == found[3]
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


def folder_facts(folder: Path) -> tuple[int, int, str]:
    """Return the size, the last change and a hash of all files below a folder, with their names."""
    whole = hashlib.blake2b(digest_size=8)
    size = changed = 0
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        facts = os.stat(path)
        size, changed = size + facts.st_size, max(changed, facts.st_mtime_ns)
        name = path.relative_to(folder).as_posix().encode(errors="surrogateescape")
        whole.update(name + b"\0" + _digest_of(path).encode())
    return size, changed, whole.hexdigest()
