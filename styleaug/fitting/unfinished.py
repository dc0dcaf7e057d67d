"""Codes of a fit that is under way, kept beside its bank, so that a fit that dies goes on."""

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
"""Of the metadata."""
_SECONDS = 10.0
"""Least time between two writes."""
WRITING = 20
"""Writes are at least so many times as far apart as they are long."""


class Unfinished:
    """The codes of each file that was read, by a hash of its path, size, time and of the settings.

    They are those of single images and not private: only the owner may read the file.

    Args:
        path: of the file; None keeps nothing.
        settings: all that decides about a file's codes; those read with others are not found.
    """

    def __init__(self, path: Path | None, settings: str):
        self.path, self.settings = None if path is None else check_path(path), settings
        if self.path is not None and self.path.is_dir():
            raise FileError(f"cannot keep codes in {path}: it is a folder.")
        self.known: dict[bytes, Tensor] = {} if path is None else stored_codes(path)
        self.used: dict[bytes, Tensor] = {}
        self.due = time.monotonic() + _SECONDS

    def key(self, file: Path) -> bytes | None:
        """Tell a file from others, and from its earlier versions; None if it cannot be looked at."""
        try:
            facts = os.stat(file)
        except (OSError, ValueError):
            return None
        told = (self.settings, os.path.abspath(file), facts.st_size, facts.st_mtime_ns)
        return hashlib.sha256(repr(told).encode("utf-8", "surrogateescape")).digest()

    def find(self, file: Path) -> Float[Tensor, "V S"] | None:
        """Give the codes of a file if they were read before."""
        key = self.key(file) if self.known else None
        codes = None if key is None else self.known.get(key)
        if key is not None and codes is not None:
            self.used[key] = codes
        return codes

    def keep(self, file: Path, codes: Float[Tensor, "V S"]) -> None:
        """Keep the codes of a file; now and then all are written."""
        key = None if self.path is None else self.key(file)
        if key is None:
            return
        self.used[key] = codes
        if time.monotonic() >= self.due:
            began = time.monotonic()
            self.write()
            self.due = time.monotonic() + max(_SECONDS, WRITING * (time.monotonic() - began))

    def write(self) -> None:
        """Write all codes, readable by the owner alone."""
        assert self.path is not None
        keys = torch.frombuffer(bytearray(b"".join(self.used)), dtype=torch.uint8).view(-1, 32)
        content = to_bytes(_KEY, {}, {"keys": keys, "codes": torch.stack(list(self.used.values()))})
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Not `atomic`, which gives files the usual permissions; these are made with 0600.
            with NamedTemporaryFile(
                dir=self.path.parent, prefix=f"{self.path.name}.", suffix=".part", delete=False
            ) as part:
                part.write(content)
            os.replace(part.name, self.path)
        except OSError as error:
            raise FileError(f"cannot write to {self.path.parent}: {error.strerror}.") from None

    def remove(self) -> None:
        """Delete the file and what killed writes left of it."""
        if self.path is not None:
            for path in (self.path, *self.path.parent.glob(f"{glob_safe(self.path.name)}.*.part")):
                with suppress(FileNotFoundError, NotADirectoryError):
                    path.unlink()


def glob_safe(name: str) -> str:
    """Take the meaning from a name's wildcards."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def stored_codes(path: Path) -> dict[bytes, Tensor]:
    """Read a file that `Unfinished` wrote; one that is missing or damaged has nothing."""
    if not path.is_file():
        return {}
    try:
        with in_utf8(path) as name, safe_open(name, "pt") as file:
            meta = json.loads((file.metadata() or {})[_KEY])
            keys, codes = file.get_tensor("keys"), file.get_tensor("codes")
        check_digest(path, {DIGEST: "", **meta}, (), renew="")  # one without a digest has a wrong one
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RecursionError):
        return {}
    fits = keys.shape == (len(codes), 32) and keys.dtype == torch.uint8 and codes.dtype == torch.float32
    if not fits or codes.ndim != 3 or not codes.isfinite().all():
        return {}
    return {bytes(key.tolist()): code for key, code in zip(keys, codes, strict=True)}
