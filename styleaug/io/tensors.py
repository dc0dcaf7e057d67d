"""Our safetensors files: metadata under one key, tensors, and a digest of both.

The digest reveals accidental damage. It is not a signature: a person who changes a file on purpose can
compute it again.
"""

import hashlib
import json
import warnings
from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from styleaug.errors import printable

__all__ = [
    "BANK_FILE",
    "DIGEST",
    "GENERATOR_FILE",
    "MOST_BYTES",
    "Damaged",
    "cards",
    "check_digest",
    "file_hash",
    "is_shipped",
    "pretrained_folder",
    "to_bytes",
]

BANK_FILE = "bank.safetensors"
GENERATOR_FILE = "generator.safetensors"
MOST_BYTES = {GENERATOR_FILE: 512 * 2**20, BANK_FILE: 256 * 2**20}
"""Largest size of each of our files, by its name in a run folder and on the hub."""


def pretrained_folder() -> Path:
    """Return the folder of the shipped weights: in an installed wheel, or beside the package in a clone."""
    package = Path(__file__).parents[1]
    inside = package / "pretrained"
    return inside if inside.is_dir() else package.parent / "pretrained"


@cache
def cards() -> dict[str, dict[str, Any]]:
    """Read the cards of everything shipped: `{"generators": {...}, "banks": {...}}`."""
    return json.loads((pretrained_folder() / "cards.json").read_text())


def file_hash(path: Path) -> str:
    """Return a file's sha256 in hexadecimal, as in the cards."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_shipped(path: Path) -> bool:
    """Return True if a file, in any place, has the hash of a shipped file."""
    size = path.stat().st_size
    listed = [card for kind in cards().values() for card in kind.values() if card["bytes"] == size]
    return bool(listed) and file_hash(path) in {card["sha256"] for card in listed}


DIGEST = "digest"
LENGTH = 8
"""Number of bytes that hold the length of the header."""


class Damaged(ValueError):
    """The content is damaged; each reader converts this to its own error."""


def to_bytes(key: str, meta: dict[str, Any], tensors: dict[str, Tensor]) -> bytes:
    """Return a file's content: equal metadata and tensors give equal bytes.

    Args:
        key: the only key of the metadata, because safetensors writes several in random order.
        meta: JSON-ready metadata.
        tensors: tensors by name.
    """
    content = save(tensors)
    start = LENGTH + int.from_bytes(content[:LENGTH], "little")
    digest = begin(json.loads(content[LENGTH:start]), meta)
    digest.update(memoryview(content)[start:])
    return save(tensors, {key: json.dumps(meta | {DIGEST: digest.hexdigest()}, sort_keys=True)})


def check_digest(path: Path, meta: Any, known: Collection[str], *, renew: str) -> None:
    """Check a file's digest; warn once if an old version wrote it without one.

    Args:
        path: a readable safetensors file.
        meta: its metadata.
        known: keys of the metadata in old files without a digest.
        renew: what the user can do to get a file with a digest.

    Raises:
        Damaged: the content does not match the digest.
    """
    if not isinstance(meta, dict):
        return
    if DIGEST not in meta:
        if odd := sorted(meta.keys() - set(known)):
            raise Damaged(f"is damaged: its metadata has {odd[0]!r:.80}, which no version wrote.")
        if not is_shipped(path):
            warn_once(str(path), renew)
        return
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(LENGTH), "little")))
        digest = begin(header, meta)
        while block := file.read(2**20):
            digest.update(block)
    if digest.hexdigest() != meta[DIGEST]:
        raise Damaged("is damaged: its content is not what was written. Copy it again, or make it again.")


def begin(header: dict[str, Any], meta: dict[str, Any]) -> Any:
    """Start a digest with names, types, shapes and metadata; the bytes of tensors follow."""
    layout = {name: entry for name, entry in header.items() if name != "__metadata__"}
    facts = {name: value for name, value in meta.items() if name != DIGEST}
    return hashlib.sha256(json.dumps([layout, facts], sort_keys=True).encode())


@cache
def warn_once(path: str, renew: str) -> None:
    """Warn about a file without a digest, once per process."""
    warnings.warn(
        f"{printable(path)} carries no digest, so damage to it cannot be noticed: an older version wrote "
        f"it. Write it again: {printable(renew)}",
        stacklevel=2,
    )
