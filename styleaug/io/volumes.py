"""Read and write NIfTI: slices of one volume, with its position in space."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from styleaug.errors import FileError
from styleaug.io.limits import check_size
from styleaug.io.packed import Packing, Readable, open_packed, pack, read, read_rest, read_whole
from styleaug.io.scan import Scan, Window, make_scan, missing, quiet, rescaled

__all__ = ["open_nifti", "value_limits"]

_HEADER_BYTES = 2**26
"""Most bytes of header and extensions of a NIfTI file."""

NIFTI_1, NIFTI_2 = 348, 540
"""Size of the header in bytes, for versions 1 and 2."""

LABELS = 1002
"""NIfTI's intent code of label maps."""

CIFTI = range(3000, 3100)
"""Intent codes of CIFTI-2 matrices in NIfTI files."""


def open_nifti(path: Path, short_side: int | None = None, window: Window | None = None) -> Scan:
    """Read a NIfTI file as slices `(T, Y, X)` along its last axis.

    With a time axis, the slices of all times are frames; they share one style. On saving, everything but the
    voxels is copied byte by byte: header, affine, extensions, scaling and dtype.

    Args:
        path: `.nii` or `.nii.gz`.
        short_side: not used.
        window: None uses the header's `cal_min` and `cal_max` if they are set, else the percentiles.

    Raises:
        FileError: the file is damaged, too large or a label map, or its voxels are not grey or RGB.
        ConfigError: nibabel is missing.
    """
    packing: Packing = "gzip" if path.name.lower().endswith(".gz") else "raw"
    with path.open("rb") as file:
        stream = open_packed(file, packing)
        header, head = _read_header(stream, path)
        shape, dtype, slope, intercept = check_voxels(path, header)
        # Fortran's order of (X, Y, Z, time) is C's of (time, Z, Y, X).
        flat = read_whole(stream, math.prod(shape) * dtype.itemsize, path).view(dtype)
        flat = flat.reshape(-1, shape[1], shape[0])
        if packing != "raw":
            read_rest(stream, path)
    own = (float(header["cal_min"]), float(header["cal_max"]))
    own = own if math.isfinite(own[0]) and own[0] < own[1] < math.inf else None

    def write(voxels: np.ndarray, target: Path) -> None:
        target.write_bytes(pack(head + voxels.astype(dtype).tobytes(), packing))

    if dtype.names:
        return make_scan(colours(flat), lambda styled, target: write(packed_as(styled, flat), target),
                         window=None, whole=True, volume=len(flat) > 1)  # fmt: skip
    frames, back, _ = rescaled(flat, slope, intercept, value_limits(dtype))
    return make_scan(
        frames,
        lambda styled, target: write(back(styled), target),
        window=window,
        own=own,
        volume=len(frames) > 1,
    )


def _read_header(stream: Readable, path: Path) -> tuple[Any, bytes]:
    """Read the header, and all bytes before the voxels.

    Raises:
        FileError: they are damaged, of another format, or more than `_HEADER_BYTES`.
        ConfigError: nibabel is missing.
    """
    try:
        from nibabel import Nifti1Header, Nifti2Header
    except ImportError:
        raise missing(path, "nibabel") from None
    head = read_part(stream, NIFTI_1, path)
    kind = Nifti1Header if head[344:].rstrip(b"\0") in (b"n+1", b"ni1") else Nifti2Header
    if kind is Nifti2Header:
        head += read_part(stream, NIFTI_2 - NIFTI_1, path)
    with quiet("nibabel.global"):
        try:
            header: Any = kind(head)
            offset = int(header.get_data_offset())
        except Exception as error:  # damaged headers make nibabel raise errors of any kind
            raise FileError(f"{path} is not a NIfTI image, or is damaged ({error}); remove it.") from None
    if not len(head) <= offset <= _HEADER_BYTES:
        raise FileError(f"{path} has voxels from byte {offset}, which cannot be; remove it.")
    if int(header["intent_code"]) in CIFTI:
        raise FileError(f"{path} is a CIFTI-2 file, not an image of voxels; leave it out.")
    return header, head + read_part(stream, offset - len(head), path)


def read_part(stream: Readable, size: int, path: Path) -> bytes:
    """Read `size` bytes, or fewer if the stream ends."""
    found = b""
    while len(found) < size and (part := read(stream, size - len(found), path)):
        found += part
    return found


def check_voxels(path: Path, header: Any) -> tuple[tuple[int, ...], np.dtype, float, float]:
    """Check that a file is an image of allowed size, before voxels are read.

    Returns:
        The shape `(X, Y, ...)`, the dtype with its byte order, the slope and the intercept.
    """
    try:
        shape = tuple(map(int, header.get_data_shape()))
        dtype = header.get_data_dtype()
        slope, intercept = header.get_slope_inter()
    except Exception as error:
        raise FileError(f"{path} is not a NIfTI image, or is damaged ({error}); remove it.") from None
    if len(shape) < 2:
        raise FileError(f"{path} has shape {shape}; expected at least two axes.")
    count = math.prod(shape[2:]) if min(shape) > 0 else 0
    check_size(path, shape[1], shape[0], count, dtype.itemsize)
    colour = dtype.names and dtype.itemsize == len(dtype.names) in (3, 4)
    if not colour and (dtype.kind not in "iuf" or dtype.itemsize > 8):
        raise FileError(f"{path} has voxels of type {dtype}; save it as integers or floats.")
    if int(header["intent_code"]) == LABELS:
        raise FileError(f"{path} is a label map, not an image; leave it out.")
    return shape, dtype, 1.0 if slope is None else slope, 0.0 if intercept is None else intercept


def value_limits(dtype: np.dtype) -> tuple[float, float]:
    """Return the least and largest value of an integer dtype; 0 and 1 for floats."""
    if dtype.kind == "f":
        return 0.0, 1.0
    return float(np.iinfo(dtype).min), float(np.iinfo(dtype).max)


def colours(voxels: np.ndarray) -> np.ndarray:
    """Return voxels of RGB structs as `(T, H, W, 3)`, without transparency."""
    names = voxels.dtype.names or ()
    return np.stack([voxels[name] for name in names[:3]], axis=-1)


def packed_as(styled: np.ndarray, voxels: np.ndarray) -> np.ndarray:
    """Return voxels of RGB structs with styled colours."""
    result = voxels.copy()
    for index, name in enumerate((voxels.dtype.names or ())[:3]):
        result[name] = styled[..., index]
    return result
