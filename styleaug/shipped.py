"""What comes with the package: where it lies, its cards, and whether its files are as they were shipped."""

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["cards", "file_hash", "is_shipped", "pretrained_folder"]


def pretrained_folder() -> Path:
    """Find the shipped weights: inside an installed wheel, or beside the package in a checkout."""
    package = Path(__file__).parent
    inside = package / "pretrained"
    return inside if inside.is_dir() else package.parent / "pretrained"


@cache
def cards() -> dict[str, dict[str, Any]]:
    """Read the cards of everything shipped: `{"generators": {...}, "banks": {...}}`."""
    return json.loads((pretrained_folder() / "cards.json").read_text())


def file_hash(path: Path) -> str:
    """Compute a file's sha256, as the cards state it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_shipped(path: Path) -> bool:
    """Tell whether a file has the very bytes of one that its card describes, wherever it lies."""
    size = path.stat().st_size
    listed = [card for kind in cards().values() for card in kind.values() if card["bytes"] == size]
    return bool(listed) and file_hash(path) in {card["sha256"] for card in listed}
