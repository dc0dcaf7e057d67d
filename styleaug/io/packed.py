"""Unpack compressed streams in parts, up to the declared size, and check their checksums."""

import bz2
import gzip
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol

import numpy as np

from styleaug.errors import FileError

__all__ = ["Inflated", "Packing", "Readable", "open_packed", "pack", "read_rest", "read_whole"]

_CHUNK = 2**20
SLACK = 2**26
"""Bytes that may follow the declared data; some programs pad files."""

Packing = Literal["raw", "gzip", "bzip2", "zlib"]


class Readable(Protocol):
    """A stream of bytes; it returns b"" at its end."""

    def read(self, size: int, /) -> bytes:
        """Read at most `size` bytes."""
        ...


class Inflated:
    """A zlib or gzip stream, read in parts.

    Args:
        file: file positioned at the start of the stream.
        wbits: see `zlib.decompressobj`; the default recognises zlib and gzip by their header.
    """

    file: Readable
    inflate: Any

    def __init__(self, file: Readable, wbits: int = 32 + zlib.MAX_WBITS):
        self.file, self.inflate = file, zlib.decompressobj(wbits)

    def read(self, size: int, /) -> bytes:
        """Read at most `size` bytes; at the end, compare the checksum and return b"".

        Raises:
            zlib.error: the stream is damaged.
            EOFError: the file ends before the stream does.
        """
        while not self.inflate.eof:
            packed = self.inflate.unconsumed_tail or self.file.read(_CHUNK)
            if found := self.inflate.decompress(packed, size):
                return found
            if not packed:
                raise EOFError("it breaks off")
        return b""


OPENERS: dict[Packing, Callable[[Any], Readable]] = {
    "raw": lambda file: file,
    "gzip": lambda file: gzip.GzipFile(fileobj=file),
    "bzip2": bz2.BZ2File,
    "zlib": Inflated,
}

PACKERS: dict[Packing, Callable[[bytes], bytes]] = {
    "raw": lambda content: content,
    "gzip": lambda content: gzip.compress(content, mtime=0),
    "bzip2": bz2.compress,
    "zlib": zlib.compress,
}


def open_packed(file: BinaryIO | BytesIO, packing: Packing) -> Readable:
    """Open a compressed stream that starts at the position of `file`."""
    return OPENERS[packing](file)


def pack(content: bytes, packing: Packing) -> bytes:
    """Compress bytes; equal bytes give an equal result."""
    return PACKERS[packing](content)


def read_whole(stream: Readable, size: int, path: Path) -> np.ndarray:
    """Read exactly `size` bytes as a uint8 array.

    Args:
        stream: stream positioned at the first byte.
        size: number of bytes, from the header and already checked.
        path: path for the message.

    Raises:
        FileError: the stream ends too early, or is damaged.
    """
    content = np.empty(size, np.uint8)  # memory is used only for what is written
    at = 0
    while at < size:
        part = read(stream, min(_CHUNK, size - at), path)
        if not part:
            raise FileError(f"{path} is truncated: {at:,} of {size:,} bytes are there. Copy it again.")
        content[at : at + len(part)] = np.frombuffer(part, np.uint8)
        at += len(part)
    return content


def read_rest(stream: Readable, path: Path) -> None:
    """Read a compressed stream to its end, to check its checksum.

    Raises:
        FileError: it is damaged, or has more than `SLACK` bytes left.
    """
    beyond = 0
    while part := read(stream, _CHUNK, path):
        beyond += len(part)
        if beyond > SLACK:
            raise FileError(f"{path} unpacks to over {SLACK:,} bytes more than its header says; remove it.")


def read(stream: Readable, size: int, path: Path) -> bytes:
    """Read a part of a stream; raise `FileError` if it is damaged."""
    try:
        return stream.read(size)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise FileError(f"{path} is damaged ({error}): copy or save it again.") from None
