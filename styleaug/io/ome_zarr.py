"""Read and write OME-Zarr images by chunks, with all levels; versions 0.1 to 0.5 in Zarr 2 and 3.

Only local folders are read. What the metadata claim is checked before Zarr opens an array, because Zarr 2 can
name codecs that execute what a chunk holds.
"""

import json
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from styleaug.errors import FileError, StyleAugError, first_line, missing_extra
from styleaug.io.atomic import atomic_folder
from styleaug.io.paths import check_path
from styleaug.io.pyramid import AbstractPyramid, plausible
from styleaug.io.scan import quiet
from styleaug.io.tiff import LARGEST_SEGMENT, MOST_TIFF_PIXELS

__all__ = ["ZarrReader", "is_zarr", "write_zarr"]

MARKS = ("zarr.json", ".zgroup", ".zattrs")
"""Files that make a folder a group of Zarr."""

MOST_JSON = 2**24
"""Most bytes of one file of metadata."""

MOST_SCALES = 32

SAFE_CODECS = {
    *("blosc", "zstd", "zlib", "gzip", "bz2", "lzma", "lz4", "delta", "shuffle"),
    *("bytes", "transpose", "sharding_indexed", "crc32c", "crc32", "adler32", "fletcher32", "endian"),
}
"""Codecs that only unpack numbers. `pickle` is one that does not."""

DTYPES = {"uint8": "u1", "|u1": "u1", "uint16": "u2", "<u2": "u2", ">u2": "u2"}

AXES = "tczyx"
"""Axes of files that do not name them."""

MICRONS = {
    "micrometer": 1.0, "nanometer": 1e-3, "millimeter": 1e3, "centimeter": 1e4, "meter": 1e6, "angstrom": 1e-4
}  # fmt: skip


def is_zarr(path: Path) -> bool:
    """Return True for a folder named `.zarr`, which is read as one image."""
    return path.suffix.lower() == ".zarr" and os.path.isdir(path)


class ZarrReader(AbstractPyramid):
    """Read parts of an OME-Zarr image, grey or RGB; only the chunks of a part are decoded.

    Args:
        path: folder of the image, which holds `multiscales`. It has one time and one depth.

    Raises:
        FileError: it is no such folder, is damaged, or holds what is no slide.
        ConfigError: zarr is missing.
    """

    dtype: np.dtype
    shape: tuple[int, int, int]
    levels: list[tuple[int, int]]
    tile: int

    alpha = False

    def __init__(self, path: str | Path):
        self.path: Path = check_path(path)
        if not self.path.is_dir():
            raise FileError(f"{self.path} is not a folder, as OME-Zarr is; give the folder of the image.")
        try:
            scales = self.read_scales()
            self.axes: list[str] = [
                axis if isinstance(axis, str) else axis["name"] for axis in scales.get("axes", AXES)
            ]
            datasets = scales["datasets"]
            if not 0 < len(datasets) <= MOST_SCALES:
                raise FileError(f"{self.path} has {len(datasets)} levels; save it again.")
            self.names: list[str] = [check_name(self.path, item["path"]) for item in datasets]
            self.arrays: list[Any] = [self.open_array(self.path / name) for name in self.names]
            self.describe()
            self.mpp: float | None = self.read_mpp(scales)
        except StyleAugError:
            raise
        except Exception as error:  # metadata of any form
            raise broken(self.path, error) from None

    def read_scales(self) -> dict[str, Any]:
        """Return the description of the image: its axes and its levels."""
        found = [read_json(self.path / name) for name in MARKS if (self.path / name).is_file()]
        if not found:
            raise FileError(f"{self.path} is no OME-Zarr: it has no {' or '.join(MARKS)}. Copy all of it.")
        facts: dict[str, Any] = {}
        for part in found:
            attributes = part.get("attributes", part)
            facts |= attributes | attributes.get("ome", {})
        if "plate" in facts or "well" in facts:
            raise FileError(f"{self.path} is a plate or well of OME-Zarr; give one of its images.")
        if not facts.get("multiscales"):
            raise FileError(f"{self.path} is Zarr, but no image of OME-Zarr: it has no multiscales.")
        return facts["multiscales"][0]

    def open_array(self, path: Path, mode: Any = "r") -> Any:
        """Check the metadata of an array, and open it."""
        check_array(path)
        with quiet("zarr"):
            return import_zarr(path).open_array(str(path), mode=mode)

    def describe(self) -> None:
        """Check axes and sizes."""
        axes, first = self.axes, self.arrays[0]
        spread = dict(zip(axes, first.shape, strict=True))
        sizes = ", ".join(f"{axis} {size}" for axis, size in spread.items())
        known = axes[-2:] == ["y", "x"] and len(set(axes)) == len(axes) and set(axes) <= set(AXES)
        if not known or spread.get("t", 1) != 1 or spread.get("z", 1) != 1:
            raise FileError(
                f"{self.path} has the axes {sizes}; a slide has y and x last, one time and one depth. "
                "Save each plane as an image of its own."
            )
        self.dtype = np.dtype(first.dtype).newbyteorder("=")
        self.shape = spread["y"], spread["x"], spread.get("c", 1)
        self.levels = [(array.shape[-2], array.shape[-1]) for array in self.arrays]
        if not 0 < spread["y"] * spread["x"] <= MOST_TIFF_PIXELS or not self.shape[2]:
            raise FileError(
                f"{self.path} has {spread['x']} x {spread['y']} pixels, not 1 to {MOST_TIFF_PIXELS:,}."
            )
        kinds = {(array.shape[:-2], array.dtype) for array in self.arrays}
        shrinking = all(
            0 < low <= high
            for before, after in zip(self.levels, self.levels[1:], strict=False)
            for high, low in zip(before, after, strict=True)
        )
        if len(kinds) > 1 or not shrinking:
            raise FileError(f"{self.path} has levels that are no reduced copies of the first; save it again.")
        tall, wide = chunk_of(first)
        self.tile = tall if tall == wide else 0

    def read_mpp(self, scales: dict[str, Any]) -> float | None:
        """Return the microns per pixel of the first level, if axes have a unit."""
        axis = scales["axes"][-1] if "axes" in scales else None
        unit = axis.get("unit") if isinstance(axis, dict) else None
        factors = [
            float(change["scale"][-1])
            for part in (scales["datasets"][0], scales)
            for change in part.get("coordinateTransformations", ())
            if change.get("type") == "scale"
        ]
        micron = MICRONS.get(str(unit))
        return plausible(math.prod(factors) * micron) if micron and factors else None

    def close(self) -> None:
        """Do nothing: chunks are opened one by one."""

    def rows_at_once(self, level: int) -> int:
        """Return the height of a chunk."""
        return chunk_of(self.arrays[level])[0]

    def read(self, top: int, left: int, height: int, width: int, *, level: int = 0) -> np.ndarray:
        """Read a part, `(height, width, C)`; see `AbstractPyramid`."""
        self.check_inside(top, left, height, width, level)
        try:
            with quiet("zarr"):
                found = np.asarray(self.arrays[level][self.place(top, left, height, width)])
        except Exception as error:  # codecs raise errors of any kind
            raise broken(self.path, error) from None
        found = found.astype(self.dtype, copy=False)
        return found[..., None] if found.ndim == 2 else np.ascontiguousarray(found.transpose(1, 2, 0))

    def place(self, top: int, left: int, height: int, width: int) -> tuple[Any, ...]:
        """Return the index of a part in an array."""
        at = {"y": slice(top, top + height), "x": slice(left, left + width), "c": slice(None)}
        return tuple(at.get(axis, 0) for axis in self.axes)


def import_zarr(path: Path) -> Any:
    """Import zarr; if it is missing, raise the error that names its extra."""
    try:
        import zarr
    except ImportError:
        raise missing_extra(str(path), "zarr", "slides") from None
    return zarr


def broken(path: Path, error: Exception) -> FileError:
    """Return the error for an OME-Zarr that cannot be read."""
    return FileError(f"cannot read {path}: {first_line(error)} Copy all of it again, or leave it out.")


def read_json(path: Path) -> dict[str, Any]:
    """Read a file of metadata, which must hold an object."""
    if path.stat().st_size > MOST_JSON:
        raise FileError(f"{path} has more than {MOST_JSON:,} bytes; remove it.")
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise FileError(f"{path} is damaged. Copy the image again, or leave it out.")
    return found


def check_name(root: Path, name: Any) -> str:
    """Return the path of a level, which must lie inside the image."""
    parts = PurePosixPath(name).parts
    inside = parts and ".." not in parts and not PurePosixPath(name).is_absolute() and "\\" not in name
    if not inside or not os.path.realpath(root / name).startswith(os.path.join(os.path.realpath(root), "")):
        raise FileError(f"{root} has a level at {name[:100]!r}, outside it; save it again.")
    return "/".join(parts)


def check_array(path: Path) -> None:
    """Check what an array claims: its dtype, its codecs, and the size of its chunks.

    Raises:
        FileError: it is missing, damaged, or is not read.
    """
    mark = next((path / name for name in ("zarr.json", ".zarray") if (path / name).is_file()), None)
    if mark is None:
        raise FileError(f"{path} is missing: the image is not complete. Copy all of it.")
    facts = read_json(mark)
    dtype = facts.get("data_type", facts.get("dtype"))
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise FileError(f"{path} has values of {dtype!r:.40}; save it as uint8 or uint16.")
    asked = list(codecs_in([facts.get(key) for key in ("codecs", "compressor", "filters")]))
    unknown = [name for name in asked if name.removeprefix("numcodecs.").lower() not in SAFE_CODECS]
    if unknown or facts.get("storage_transformers"):
        raise FileError(
            f"{path} is packed with {unknown[:3]}, which is not read; save it with blosc or zstd."
        )
    chunks = [facts.get("chunks"), *chunk_shapes(facts)]
    for chunk in filter(None, chunks):
        if math.prod(map(int, chunk)) * np.dtype(DTYPES[dtype]).itemsize > LARGEST_SEGMENT:
            size = " x ".join(map(str, chunk))
            raise FileError(f"{path} has chunks of {size}, too large to be read; save it in smaller ones.")


def codecs_in(value: Any) -> Iterator[str]:
    """Yield the names of all codecs in a part of an array's metadata."""
    if isinstance(value, list):
        for item in value:
            yield from codecs_in(item)
    elif isinstance(value, dict):
        for key in ("id", "name"):
            if key in value:
                yield str(value[key])
        if "configuration" in value:
            for key in ("codecs", "index_codecs"):
                yield from codecs_in(value["configuration"].get(key))
    elif value is not None:
        yield str(value)


def chunk_shapes(facts: dict[str, Any]) -> Iterator[Any]:
    """Yield the shapes of the chunks, and of the shards that hold them, in metadata of Zarr 3."""
    for part in (facts.get("chunk_grid"), *(facts.get("codecs") or ())):
        if isinstance(part, dict) and isinstance(part.get("configuration"), dict):
            yield part["configuration"].get("chunk_shape")


def chunk_of(array: Any) -> tuple[int, int]:
    """Return height and width of what is written at once: a chunk, or the shard that holds it."""
    tall, wide = (getattr(array, "shards", None) or array.chunks)[-2:]
    return tall, wide


def write_zarr(target: Path, like: ZarrReader, bands: Iterator[np.ndarray]) -> None:
    """Write an image with the metadata, levels, chunks and codecs of another; it is never whole in memory.

    Everything else in the folder of the other, such as labels, is copied. Reduced levels are means.

    Args:
        target: the folder to write; it appears when it is complete.
        like: the other image.
        bands: bands of rows `(h, W, C)` from the top, of its dtype.

    Raises:
        FileError: the folder cannot be written.
    """
    with atomic_folder(target, marks=MARKS) as part:
        copy_rest(like, part)
        arrays = [like.open_array(part / name, "r+") for name in like.names]
        top = 0
        for band in bands:
            store(arrays[0], like, top, 0, band)
            top += band.shape[0]
        written = ZarrReader(part)
        for level in range(1, len(arrays)):
            for up, at, block in reduced_blocks(written, level, chunk_of(arrays[level])):
                store(arrays[level], like, up, at, block)


def store(array: Any, like: ZarrReader, top: int, left: int, pixels: np.ndarray) -> None:
    """Write pixels `(h, w, C)` into an array."""
    values = pixels.transpose(2, 0, 1) if "c" in like.axes else pixels[..., 0]
    try:
        with quiet("zarr"):
            array[like.place(top, left, *pixels.shape[:2])] = values
    except OSError:  # of the disk; `atomic_folder` reports it
        raise
    except Exception as error:
        raise FileError(f"cannot write a copy of {like.path}: {first_line(error)}") from None


def reduced_blocks(
    written: ZarrReader, level: int, chunk: tuple[int, int]
) -> Iterator[tuple[int, int, np.ndarray]]:
    """Yield top, left and pixels of the chunks of a level, as means of the level above."""
    (height, width), (tall, wide) = written.levels[level], chunk
    rows, columns = (
        cells_of(above, here)
        for above, here in zip(written.levels[level - 1], written.levels[level], strict=True)
    )
    for top in range(0, height, tall):
        for left in range(0, width, wide):
            y, x = rows[top : min(top + tall, height) + 1], columns[left : min(left + wide, width) + 1]
            up, at, down, across = map(int, (y[0], x[0], y[-1] - y[0], x[-1] - x[0]))
            part = written.read(up, at, down, across, level=level - 1)
            sums = np.add.reduceat(part.astype(np.uint32), y[:-1] - y[0], axis=0)
            sums = np.add.reduceat(sums, x[:-1] - x[0], axis=1)
            counts = (np.diff(y)[:, None] * np.diff(x)).astype(np.uint32)[..., None]
            yield top, left, ((sums + counts // 2) // counts).astype(part.dtype)


def cells_of(length: int, count: int) -> np.ndarray:
    """Return where each of `count` cells begins among `length` pixels, and where the last one ends.

    Cells have the same whole number of pixels, if that leaves over or lacks less than one cell.
    """
    step = round(length / count)
    if abs(length - count * step) < step and (count - 1) * step < length:
        return np.minimum(np.arange(count + 1) * step, length)
    return np.arange(count + 1) * length // count


def copy_rest(like: ZarrReader, part: Path) -> None:
    """Copy all files of an image but the chunks of its levels.

    Raises:
        FileError: a link in it leads outside.
    """
    root = os.path.realpath(like.path)
    levels = {os.path.join(root, *name.split("/")) for name in like.names}
    for folder, inner, files in os.walk(root):
        at = part / os.path.relpath(folder, root)
        chunked = any(folder == level or folder.startswith(os.path.join(level, "")) for level in levels)
        at.mkdir(parents=True, exist_ok=True)
        for name in files:
            if not chunked or (folder in levels and name in (".zarray", ".zattrs", "zarr.json")):
                check_link(like.path, os.path.join(folder, name), root)
                shutil.copyfile(os.path.join(folder, name), at / name)
        for name in list(inner):
            check_link(like.path, os.path.join(folder, name), root)
            if folder in levels:
                inner.remove(name)  # folders of chunks


def check_link(path: Path, entry: str, root: str) -> None:
    """Refuse a link, because what it leads to may be anything."""
    if os.path.islink(entry):
        raise FileError(f"{path} holds a link, {os.path.relpath(entry, root)}; copy what it leads to.")
