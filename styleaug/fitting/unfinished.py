"""Keep the codes of an unfinished fit beside its bank, so that an interrupted fit can continue."""

import hashlib
import json
import os
import time
from contextlib import suppress
from pathlib import Path
from tempfile import NamedTemporaryFile

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from styleaug.errors import FileError
from styleaug.io.paths import check_path, in_utf8
from styleaug.io.tensors import DIGEST, check_digest, to_bytes

__all__ = ["Unfinished"]

_KEY = "styleaug_codes"
"""Key of our metadata in a safetensors file."""
_SECONDS = 10.0
"""Least number of seconds between two writes."""
WRITING = 20
"""Least ratio of the time between two writes to the time that a write takes."""


class Unfinished:
    """Codes of files that were read, by a hash of path, size, time and settings.

    They are codes of single images and not private, so only the owner may read the file.

    Args:
        path: path of the file; None keeps nothing.
        settings: all settings that affect the codes; codes read with other settings are not found.
    """

    path: Path | None
    settings: str
    due: float

    def __init__(self, path: Path | None, settings: str):
        self.path, self.settings = None if path is None else check_path(path), settings
        if self.path is not None and self.path.is_dir():
            raise FileError(f"cannot keep codes in {path}: it is a folder.")
        self.known: dict[bytes, Tensor] = {} if path is None else stored_codes(path)
        self.used: dict[bytes, Tensor] = {}
        self.due = time.monotonic() + _SECONDS

    def key(self, file: Path) -> bytes | None:
        """Return a hash that identifies a file and its version; None if it cannot be examined."""
        try:
            facts = os.stat(file)
        except (OSError, ValueError):
            return None
        told = (self.settings, os.path.abspath(file), facts.st_size, facts.st_mtime_ns)
        return hashlib.sha256(repr(told).encode("utf-8", "surrogateescape")).digest()

    def find(self, file: Path) -> Float[Tensor, "V S"] | None:
        """Return the codes of a file if they were read before, else None."""
        key = self.key(file) if self.known else None
        codes = None if key is None else self.known.get(key)
        if key is not None and codes is not None:
            self.used[key] = codes
        return codes

    def keep(self, file: Path, codes: Float[Tensor, "V S"]) -> None:
        """Keep the codes of a file; at intervals all codes are written to disk."""
        key = None if self.path is None else self.key(file)
        if key is None:
            return
        self.used[key] = codes
        if time.monotonic() >= self.due:
            began = time.monotonic()
            self.write()
            self.due = time.monotonic() + max(_SECONDS, WRITING * (time.monotonic() - began))

    def write(self) -> None:
        """Write all codes to a file that only the owner can read."""
        assert self.path is not None
        keys = torch.frombuffer(bytearray(b"".join(self.used)), dtype=torch.uint8).view(-1, 32)
        content = to_bytes(_KEY, {}, {"keys": keys, "codes": torch.stack(list(self.used.values()))})
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Not with `atomic`, which sets the usual permissions; this file has 0600.
            with NamedTemporaryFile(
                dir=self.path.parent, prefix=f"{self.path.name}.", suffix=".part", delete=False
            ) as part:
                part.write(content)
            os.replace(part.name, self.path)
        except OSError as error:
            raise FileError(f"cannot write to {self.path.parent}: {error.strerror}.") from None

    def remove(self) -> None:
        """Delete the file and the remains of interrupted writes."""
        if self.path is not None:
            for path in (self.path, *self.path.parent.glob(f"{glob_safe(self.path.name)}.*.part")):
                with suppress(FileNotFoundError, NotADirectoryError):
                    path.unlink()


def glob_safe(name: str) -> str:
    """Return a name with its wildcards escaped for glob."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def stored_codes(path: Path) -> dict[bytes, Tensor]:
    """Read a file that `Unfinished` wrote; return {} if it is missing or damaged."""
    if not path.is_file():
        return {}
    try:
        with in_utf8(path) as name, safe_open(name, "pt") as file:
            meta = json.loads((file.metadata() or {})[_KEY])
            keys, codes = file.get_tensor("keys"), file.get_tensor("codes")
        check_digest(path, {DIGEST: "", **meta}, (), renew="")  # a missing digest counts as a wrong one
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RecursionError):
        return {}
    fits = keys.shape == (len(codes), 32) and keys.dtype == torch.uint8 and codes.dtype == torch.float32
    if not fits or codes.ndim != 3 or not codes.isfinite().all():
        return {}
    return {bytes(key.tolist()): code for key, code in zip(keys, codes, strict=True)}
