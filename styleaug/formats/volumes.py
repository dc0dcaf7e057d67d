"""NIfTI by nibabel, NRRD and MetaImage by SimpleITK: slices of one volume, with its place in space."""

import gzip
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from styleaug.errors import FileError
from styleaug.formats.scan import Scan, Window, check_size, make_scan, missing, quiet, rescaled

__all__ = ["open_itk", "open_nifti"]

HEADER_BYTES = 2**26
"""Header and extensions of a NIfTI file."""

LABELS = 1002
"""NIfTI's intent of label maps."""


def open_nifti(path: Path, short_side: int | None = None, window: Window | None = None) -> Scan:
    """Read a NIfTI file as slices `(T, Y, X)` along its last axis.

    With a time axis all slices of all times are frames: they share one style. All but the voxels is
    written back byte by byte: header, affine, extensions, scaling and dtype.

    Args:
        path: `.nii` or `.nii.gz`.
        short_side: not used.
        window: None takes the header's `cal_min` and `cal_max` if they are set, else the percentiles.

    Raises:
        FileError: damaged, too large, a label map, or voxels that are no grey or RGB.
        ConfigError: nibabel is missing.
    """
    try:
        import nibabel
    except ImportError:
        raise missing(path, "nibabel") from None
    with quiet("nibabel.global"):
        try:
            image: Any = nibabel.load(path, mmap=False)
        except FileNotFoundError:
            raise
        except Exception as error:
            raise FileError(f"{path} is no NIfTI image, or is damaged ({error}); remove it.") from None
        if not isinstance(image, nibabel.Nifti1Image):  # of which Nifti2Image is one
            raise FileError(f"{path} is a {type(image).__name__} and no image of voxels; leave it out.")
        proxy: Any = image.dataobj
        header = image.header
        check_voxels(path, proxy, header)
        head = read_head(path, int(proxy.offset))
        stored = np.asanyarray(proxy.get_unscaled())
    own = (float(header["cal_min"]), float(header["cal_max"]))
    own = own if math.isfinite(own[0]) and own[0] < own[1] < math.inf else None
    # Fortran's order of (X, Y, Z, time) is C's of (time, Z, Y, X): a view.
    flat = stored.T.reshape(-1, *stored.shape[1::-1])

    def write(voxels: np.ndarray, target: Path) -> None:
        content = head + voxels.astype(stored.dtype).tobytes()
        packed = path.name.lower().endswith(".gz")
        target.write_bytes(gzip.compress(content, mtime=0) if packed else content)

    if stored.dtype.names:
        return make_scan(colours(flat), lambda styled, target: write(packed_as(styled, flat), target),
                         window=None, whole=True, volume=len(flat) > 1)  # fmt: skip
    frames, back, _ = rescaled(flat, proxy.slope, proxy.inter, value_limits(flat.dtype))
    return make_scan(
        frames,
        lambda styled, target: write(back(styled), target),
        window=window,
        own=own,
        volume=len(frames) > 1,
    )


def check_voxels(path: Path, proxy: Any, header: Any) -> None:
    """Refuse what is no image or does not fit, before any voxel is read."""
    shape, dtype = tuple(map(int, proxy.shape)), proxy.dtype
    if len(shape) < 2:
        raise FileError(f"{path} has shape {shape}; expected at least two axes.")
    check_size(path, shape[1], shape[0], math.prod(shape[2:]), dtype.itemsize)
    colour = dtype.names and dtype.itemsize == len(dtype.names) in (3, 4)
    if not colour and (dtype.kind not in "iuf" or dtype.itemsize > 8):
        raise FileError(f"{path} has voxels of type {dtype}; save it as integers or floats.")
    if int(header["intent_code"]) == LABELS:
        raise FileError(f"{path} is a label map and no image; leave it out.")


def read_head(path: Path, size: int) -> bytes:
    """Read all that comes before the voxels."""
    if not 0 < size <= HEADER_BYTES:
        raise FileError(f"{path} has voxels from byte {size}, which cannot be; remove it.")
    with gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb") as file:
        return file.read(size)


def value_limits(dtype: np.dtype) -> tuple[float, float]:
    """Give the least and largest value of a dtype; floats have none that matter."""
    if dtype.kind == "f":
        return 0.0, 1.0
    return float(np.iinfo(dtype).min), float(np.iinfo(dtype).max)


def colours(voxels: np.ndarray) -> np.ndarray:
    """View voxels of named bytes as `(T, H, W, 3)`, without transparency."""
    names = voxels.dtype.names or ()
    return np.stack([voxels[name] for name in names[:3]], axis=-1)


def packed_as(styled: np.ndarray, voxels: np.ndarray) -> np.ndarray:
    """Put colours back into voxels of named bytes."""
    result = voxels.copy()
    for index, name in enumerate((voxels.dtype.names or ())[:3]):
        result[name] = styled[..., index]
    return result


def open_itk(path: Path, short_side: int | None = None, window: Window | None = None) -> Scan:
    """Read an NRRD or MetaImage file as slices along its last axis.

    Spacing, origin, direction and the other fields of the header are written back, and what was
    compressed is compressed again.

    Args:
        path: `.nrrd`, `.mha` or `.mhd`.
        short_side: not used.
        window: None takes the percentiles.

    Raises:
        FileError: damaged, too large, or voxels that are no numbers.
        ConfigError: SimpleITK is missing.
    """
    try:
        import SimpleITK
    except ImportError:
        raise missing(path, "SimpleITK") from None
    if not path.is_file():
        raise FileNotFoundError
    with still(SimpleITK):
        reader: Any = SimpleITK.ImageFileReader()
        reader.SetFileName(str(path))
        try:
            reader.ReadImageInformation()
            kind = SimpleITK.GetPixelIDValueAsString(reader.GetPixelID())
            check_header(path, reader, kind)
            image: Any = reader.Execute()
        except RuntimeError as error:
            reason = str(error).strip().rpartition("\n")[2]
            raise FileError(f"cannot read {path}: {reason} Remove the file or save it again.") from None
    voxels = SimpleITK.GetArrayFromImage(image)
    vector = image.GetNumberOfComponentsPerPixel() > 1
    flat = voxels.reshape(-1, *(voxels.shape[-3:] if vector else voxels.shape[-2:]))
    frames, back, _ = rescaled(flat, 1.0, 0.0, value_limits(flat.dtype))
    packed = is_packed(path)

    def save(styled: np.ndarray, target: Path) -> None:
        result: Any = SimpleITK.GetImageFromArray(back(styled).reshape(voxels.shape), isVector=vector)
        result.CopyInformation(image)
        for key in image.GetMetaDataKeys():
            result.SetMetaData(key, image.GetMetaData(key))
        # A .mhd is written with its voxels inside, as its other file would be half of a pair.
        whole = target.with_suffix(".mha") if target.suffix.lower() == ".mhd" else target
        with still(SimpleITK):
            try:
                SimpleITK.WriteImage(result, str(whole), useCompression=packed)
            except RuntimeError as error:
                raise FileError(f"cannot write {target}: {error}") from None
        if whole != target:
            whole.replace(target)

    eight = flat.dtype == np.uint8 and vector
    return make_scan(frames, save, window=window, whole=eight, volume=len(frames) > 1)


def check_header(path: Path, reader: Any, kind: str) -> None:
    """Refuse what does not fit or cannot be styled, before any voxel is read."""
    size = tuple(map(int, reader.GetSize()))
    if len(size) < 2 or "complex" in kind or "label" in kind:
        raise FileError(f"{path} holds {kind} of size {size}, no image that can be styled.")
    bits = next((bits for bits in (64, 32, 16, 8) if f"{bits}-bit" in kind), 64)
    channels = int(reader.GetNumberOfComponents())
    # The voxels may be in another file.
    check_size(path, size[1], size[0], math.prod(size[2:]), channels * bits // 8, packed=math.inf)


def is_packed(path: Path) -> bool:
    """Tell whether a file's header says that its voxels are compressed."""
    with path.open("rb") as file:
        head = file.read(4096).lower()
    return b"compresseddata = true" in head or b"encoding: gz" in head or b"encoding: bz" in head


@contextmanager
def still(simpleitk: Any) -> Iterator[None]:
    """Keep ITK's warnings off the terminal."""
    before = simpleitk.ProcessObject.GetGlobalWarningDisplay()
    simpleitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        simpleitk.ProcessObject.SetGlobalWarningDisplay(before)
