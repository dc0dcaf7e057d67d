"""Read and write NRRD and MetaImage: a text header, then an array in the same file or beside it.

The header is parsed here and not by ITK, because ITK uses its text as format strings and as paths of any
file.
"""

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from styleaug.errors import FileError
from styleaug.io.limits import check_size
from styleaug.io.packed import Packing, open_packed, pack, read, read_rest, read_whole
from styleaug.io.scan import Scan, Window, make_scan, rescaled
from styleaug.io.volumes import value_limits

__all__ = ["open_metaimage", "open_nrrd"]

_HEADER_BYTES = 2**20
"""Most bytes of the header; the longest known, of diffusion series, have a tenth."""

MOST_AXES = 16
MOST_WORDS = 2**22
"""Most numbers in an array stored as text; Python needs 60 bytes for each while reading."""

NRRD_TYPES: dict[str, tuple[str, ...]] = {
    "i1": ("signed char", "int8", "int8_t"),
    "u1": ("uchar", "unsigned char", "uint8", "uint8_t"),
    "i2": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
    "u2": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
    "i4": ("int", "signed int", "int32", "int32_t"),
    "u4": ("uint", "unsigned int", "uint32", "uint32_t"),
    "i8": (
        "longlong", "long long", "long long int", "signed long long", "signed long long int",
        "int64", "int64_t",
    ),
    "u8": (
        "ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"
    ),
    "f4": ("float",),
    "f8": ("double",),
}  # fmt: skip
META_TYPES: dict[str, tuple[str, ...]] = {
    "i1": ("char",),
    "u1": ("uchar",),
    "i2": ("short",),
    "u2": ("ushort",),
    "i4": ("int", "long"),
    "u4": ("uint", "ulong"),
    "i8": ("long_long",),
    "u8": ("ulong_long",),
    "f4": ("float",),
    "f8": ("double",),
}
ENCODINGS: dict[str, Packing | None] = {
    "raw": "raw",
    "gzip": "gzip",
    "gz": "gzip",
    "bzip2": "bzip2",
    "bz2": "bzip2",
    "txt": None,
    "text": None,
    "ascii": None,
}
"""Compression for each encoding of NRRD; None is text."""

IN_SPACE = {"domain", "space", "time", "none", "???"}
"""Kinds of NRRD axes in space or time; axes of other kinds hold the channels of a pixel."""

OUTSIDE = ("datafile", "lineskip", "byteskip")
"""Fields of an NRRD that give the position of the data; they are dropped, as our data follow the header."""


@dataclass(frozen=True)
class Layout:
    """The array that a header declares, and the position of its bytes."""

    shape: tuple[int, ...]
    """Length of each axis, slowest first."""

    dtype: np.dtype
    """Type of the values, with the byte order of the file."""

    channels: int | None
    """Axis that holds the channels of a pixel; None if there is only one channel."""

    packing: Packing | None
    """Compression of the data; None for text."""

    name: str | None
    """Name of the data file beside the header; None if the data follow the header."""

    lines: int = 0
    """Number of lines to skip, before unpacking."""

    skip: int = 0
    """Number of bytes to skip, after unpacking; -1 reads the last bytes of the file."""


META_ORDER = ("binarydatabyteordermsb", "elementbyteordermsb")

USED = {
    *("sizes", "dimension", "type", "encoding", "endian", "kinds", "datafile", "lineskip", "byteskip"),
    *("dimsize", "ndims", "objecttype", "elementtype", "elementnumberofchannels", "compresseddata"),
    *("binarydata", "headersize", "elementdatafile", *META_ORDER),
}
"""Keys that are read; other keys are copied unchanged."""

_Line = tuple[str, str, bytes]
"""One line of a header: the key in lower case, the value, and the line itself."""


def open_nrrd(path: Path, short_side: int | None = None, window: Window | None = None) -> Scan:
    """Read an NRRD file as slices along its last axis.

    Header and compression are kept on saving. Data beside the header, or stored as text, are saved as binary
    data in the same file.

    Args:
        path: `.nrrd`.
        short_side: not used.
        window: None uses the percentiles.

    Raises:
        FileError: the file is damaged or too large, voxels are not numbers, or the data are neither in the
            file nor in one file in the same folder.
    """
    with path.open("rb") as file:
        lines = list(nrrd_lines(file, path))
        layout = nrrd_layout(lines, path)
        stored = read_array(file, layout, path)

    text = layout.packing is None

    def save(content: bytes, target: Path) -> None:
        gone = (*OUTSIDE, "encoding", "endian") if text else OUTSIDE
        head = [line for key, _, line in lines if key not in gone]
        head += [b"encoding: raw\n", b"endian: little\n"] * text
        target.write_bytes(b"".join([*head, b"\n", pack(content, layout.packing or "raw")]))

    return _scan_of(stored, layout, save, window)


def nrrd_lines(file: BinaryIO, path: Path) -> Iterable[_Line]:
    """Yield the lines of the header, which ends with an empty line or with the file."""
    for number, line in enumerate(text_lines(file, path)):
        text = line.decode("latin-1").strip()
        if number == 0 and not re.fullmatch(r"NRRD000\d", text):
            raise FileError(f"{path} is not a NRRD file, or is damaged; remove it.")
        if not text:
            return
        # A field is `name: value`. Lines `name:=value` and lines that begin with # are comments.
        name, colon, value = text.partition(":")
        key = "".join(name.lower().split()) if colon and not value.startswith("=") else ""
        yield key, value.strip(), line


def nrrd_layout(lines: list[_Line], path: Path) -> Layout:
    """Return the layout of the array from an NRRD's fields."""
    fields = unique(lines, path)
    shape = whole_numbers(fields, "sizes", path)[::-1]
    if whole_numbers(fields, "dimension", path) != [len(shape)]:
        raise wrong(path, "dimension", fields)
    dtype = dtype_of(fields, "type", NRRD_TYPES, path)
    encoding = fields.get("encoding", "").lower()
    if encoding not in ENCODINGS:
        raise wrong(path, "encoding", fields)
    text = ENCODINGS[encoding] is None
    endian = "little" if text or dtype.itemsize == 1 else fields.get("endian", "")
    if endian.lower() not in ("little", "big"):
        raise wrong(path, "endian", fields)
    kinds = fields.get("kinds", " ".join(["domain"] * len(shape))).lower().split()[::-1]
    if len(kinds) != len(shape):
        raise wrong(path, "kinds", fields)
    beside = [axis for axis, kind in enumerate(kinds) if kind not in IN_SPACE]
    if len(beside) > 1 or "complex" in kinds:
        raise FileError(f"{path} has axes of kinds {' '.join(kinds[::-1])}, no image that can be styled.")
    return Layout(
        tuple(shape),
        dtype.newbyteorder("<" if endian.lower() == "little" else ">"),
        beside[0] if beside else None,
        ENCODINGS[encoding],
        fields.get("datafile"),
        *(whole_numbers(fields, key, path, "0")[0] for key in ("lineskip", "byteskip")),
    )


def open_metaimage(path: Path, short_side: int | None = None, window: Window | None = None) -> Scan:
    """Read a MetaImage file as slices along its last axis.

    Header and compression are kept on saving. Data beside the header, or stored as text, are saved as binary
    data in the same file.

    Args:
        path: `.mha` or `.mhd`.
        short_side: not used.
        window: None uses the percentiles.

    Raises:
        FileError: the file is damaged or too large, voxels are not numbers, or the data are neither in the
            file nor in one file in the same folder.
    """
    with path.open("rb") as file:
        lines = list(meta_lines(file, path))
        layout = meta_layout(lines, path)
        stored = read_array(file, layout, path)

    text = layout.packing is None

    def save(content: bytes, target: Path) -> None:
        packed = pack(content, layout.packing or "raw")
        gone = {"compresseddatasize", "headersize", "elementdatafile"}
        gone |= {"binarydata", "compresseddata", *META_ORDER} if text else set()
        head = [line for key, _, line in lines if key not in gone]
        head += [b"BinaryData = True\n"] * text
        if layout.packing == "zlib":
            head.append(f"CompressedDataSize = {len(packed)}\n".encode())
        target.write_bytes(b"".join([*head, b"ElementDataFile = LOCAL\n", packed]))

    return _scan_of(stored, layout, save, window)


def meta_lines(file: BinaryIO, path: Path) -> Iterable[_Line]:
    """Yield the lines of the header, which ends with the key ElementDataFile."""
    for line in text_lines(file, path):
        text = line.decode("latin-1").strip()
        key, *value = (part.strip() for part in re.split("[=:]", text, maxsplit=1))
        if text and not value:
            break
        yield key.lower(), "".join(value), line
        if key.lower() == "elementdatafile":
            return
    raise FileError(f"{path} is not a MetaImage file, or is damaged; remove it.")


def meta_layout(lines: list[_Line], path: Path) -> Layout:
    """Return the layout of the array from a MetaImage's keys."""
    fields = unique(lines, path)
    shape = whole_numbers(fields, "dimsize", path)[::-1]
    if whole_numbers(fields, "ndims", path) != [len(shape)]:
        raise wrong(path, "ndims", fields)
    if fields.get("objecttype", "image").lower() != "image":
        raise wrong(path, "objecttype", fields)
    fields["elementtype"] = fields.get("elementtype", "").lower().removeprefix("met_")
    dtype = dtype_of(fields, "elementtype", META_TYPES, path)
    order = {fields[key] for key in META_ORDER if key in fields}
    if len(order) > 1:
        raise FileError(f"{path} contradicts itself about its byte order; remove it.")
    channels = whole_numbers(fields, "elementnumberofchannels", path, "1")[0]
    packing: Packing = "zlib" if _said(fields.get("compresseddata", "False")) else "raw"
    text = not _said(fields.get("binarydata", "True"))
    local = fields["elementdatafile"].upper() == "LOCAL"
    skip = whole_numbers(fields, "headersize", path, "0")[0]
    if local and skip not in (0, -1):
        raise wrong(path, "headersize", fields)
    return Layout(
        (*shape, channels) if channels != 1 else tuple(shape),
        dtype.newbyteorder(">" if _said(next(iter(order), "False")) and not text else "<"),
        len(shape) if channels != 1 else None,
        None if text else packing,
        None if local else fields["elementdatafile"],
        skip=skip,
    )


def _scan_of(
    stored: np.ndarray, layout: Layout, save: Callable[[bytes, Path], None], window: Window | None
) -> Scan:
    """Return a scan of an array; `save` writes its bytes after the header."""
    axis = layout.channels
    voxels = stored if axis is None else np.moveaxis(stored, axis, -1)
    vector = axis is not None and voxels.shape[-1] > 1
    sides = voxels.shape[-2:] if axis is None else voxels.shape[-3 : None if vector else -1]
    flat = voxels.reshape(-1, *sides)
    frames, back, _ = rescaled(flat, 1.0, 0.0, value_limits(flat.dtype))

    def write(styled: np.ndarray, target: Path) -> None:
        values = back(styled).reshape(voxels.shape).astype(layout.dtype)
        save((values if axis is None else np.moveaxis(values, -1, axis)).tobytes(), target)

    eight = flat.dtype == np.uint8 and vector
    return make_scan(frames, write, window=window, whole=eight, volume=len(frames) > 1)


def _said(text: str) -> bool:
    """Return True if a MetaImage's value means yes."""
    return text[:1] in ("T", "t", "1")


def text_lines(file: BinaryIO, path: Path) -> Iterable[bytes]:
    """Yield lines with their line ends, up to `_HEADER_BYTES` bytes."""
    left = _HEADER_BYTES
    while line := file.readline(left):
        left -= len(line)
        if left <= 0:
            raise FileError(f"{path} has a header of more than {_HEADER_BYTES:,} bytes; remove it.")
        yield line if line.endswith(b"\n") else line + b"\n"


def unique(lines: list[_Line], path: Path) -> dict[str, str]:
    """Return the values by key; a key must not appear twice."""
    fields = {}
    for key, value, _ in lines:
        if key not in USED:
            continue
        if key in fields:
            raise FileError(f"{path} has the key {key[:40]!r} twice in its header; remove one.")
        fields[key] = value
    return fields


def whole_numbers(fields: dict[str, str], key: str, path: Path, default: str = "") -> list[int]:
    """Read a value that must be one or more whole numbers."""
    words = fields.get(key, default).split()
    if not 1 <= len(words) <= MOST_AXES or not all(re.fullmatch(r"[+-]?[0-9]{1,18}", word) for word in words):
        raise wrong(path, key, fields)
    return [int(word) for word in words]


def dtype_of(fields: dict[str, str], key: str, types: dict[str, tuple[str, ...]], path: Path) -> np.dtype:
    """Look up a type by one of its names."""
    name = " ".join(fields.get(key, "").lower().split())
    for dtype, names in types.items():
        if name in names:
            return np.dtype(dtype)
    raise wrong(path, key, fields)


def wrong(path: Path, key: str, fields: dict[str, str]) -> FileError:
    """Return the error for a key with an invalid value."""
    found = f"{fields[key][:40]!r}" if key in fields else "nothing"
    return FileError(f"{path} says {found} of {key!r}, which cannot be read; repair or remove it.")


def elsewhere(path: Path, name: str) -> FileError:
    """Return the error for data that are not in the folder of the header."""
    return FileError(
        f"{path} takes its data from {name[:100]!r}; it may name one file in its own folder. "
        "Save it again as one file."
    )


def beside(path: Path, name: str) -> Path:
    """Return the data file, which must be in the folder of the header."""
    plain = name.removeprefix("./")
    if not plain or re.search(r"[/\\%\x00-\x1f]", plain) or plain.split()[0] == "LIST":
        raise elsewhere(path, name)
    found = path.parent / plain
    try:
        inside = found.resolve().parent in (path.parent.resolve(), path.resolve().parent)
        if not inside or (found.exists() and not found.is_file()):
            raise elsewhere(path, name)
    except OSError:  # a name that is too long
        raise elsewhere(path, name) from None
    if not found.exists():
        raise FileError(f"{path} has no data: there is no file {found}. Copy it, too.")
    return found


def read_array(file: BinaryIO, layout: Layout, path: Path) -> np.ndarray:
    """Check the declared layout, and read the array."""
    sizes = [size for axis, size in enumerate(layout.shape) if axis != layout.channels]
    if len(sizes) < 2:
        raise FileError(f"{path} has an array of shape {layout.shape}; expected at least two axes.")
    channels = 1 if layout.channels is None else layout.shape[layout.channels]
    if channels < 1:
        raise FileError(f"{path} has pixels of {channels} numbers; remove it.")
    data = path if layout.name is None else beside(path, layout.name)
    count = math.prod(sizes[:-2]) if min(sizes) > 0 else 0
    height, width = sizes[-2:]
    check_size(path, height, width, count, channels * layout.dtype.itemsize, packed=data.stat().st_size)
    if layout.name is None:
        return content_of(file, layout, path).reshape(layout.shape)
    with data.open("rb") as other:
        return content_of(other, layout, path).reshape(layout.shape)


def content_of(file: BinaryIO, layout: Layout, path: Path) -> np.ndarray:
    """Read the declared number of values from the current position of a file."""
    count = math.prod(layout.shape)
    for _ in range(layout.lines):
        if not file.readline(_HEADER_BYTES):
            break
    if layout.packing is None:
        return words_of(file, count, layout.dtype, path)
    size = count * layout.dtype.itemsize
    stream = open_packed(file, layout.packing)
    if layout.skip < 0:
        if layout.packing != "raw" or layout.skip != -1:
            raise FileError(f"{path} skips {layout.skip} bytes of its data; repair or remove it.")
        start = file.tell()
        file.seek(max(start, file.seek(0, 2) - size))
    skip = max(0, layout.skip)
    while skip and (part := read(stream, min(2**20, skip), path)):
        skip -= len(part)
    content = read_whole(stream, size, path)
    if layout.packing != "raw":
        read_rest(stream, path)
    return content.view(layout.dtype)


def words_of(file: BinaryIO, count: int, dtype: np.dtype, path: Path) -> np.ndarray:
    """Read numbers stored as text."""
    if count > MOST_WORDS:
        raise FileError(f"{path} has {count:,} numbers as text, more than {MOST_WORDS:,}; save it as binary.")
    words = file.read(64 * count).split(maxsplit=count)[:count]
    try:
        if len(words) == count:
            return np.fromiter(map(float if dtype.kind == "f" else int, words), dtype, count)
    except (ValueError, OverflowError):
        raise FileError(f"{path} has something else between its numbers; remove it.") from None
    raise FileError(f"{path} is truncated: {len(words):,} of {count:,} numbers are there. Copy it again.")
