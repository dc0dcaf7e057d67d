"""Read and write NumPy arrays as images of any dtype and number of channels."""

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from styleaug.errors import FileError
from styleaug.io.limits import check_size
from styleaug.io.scan import Scan, Window, make_scan

__all__ = ["open_npy", "save_npy"]


def open_npy(path: Path, short_side: int | None, window: Window | None) -> np.ndarray | Scan:
    """Read an array `(H, W)` or `(H, W, C)`; pickles are refused."""
    with np.errstate(over="ignore"):  # of the size that a damaged header claims
        array = np.lib.format.open_memmap(path, mode="r")
    if array.ndim not in (2, 3) or 0 in array.shape:
        raise FileError(f"{path} has shape {array.shape}; expected (H, W) or (H, W, C).")
    height, width = array.shape[:2]
    check_size(path, height, width, 1, array[0, 0].nbytes)
    pixels = np.array(array)
    usual = pixels.ndim == 2 or pixels.shape[2] in (1, 3)
    if pixels.dtype.kind not in "iuf" or (
        usual and pixels.dtype.kind != "i" and not (window and pixels.itemsize > 1)
    ):
        return pixels
    native = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
    return make_scan(
        native[None],
        lambda frames, target: np.save(target, frames[0].astype(pixels.dtype), allow_pickle=False),
        window=window,
        own=(0.0, 1.0) if pixels.dtype.kind == "f" and window is None else None,
        whole=True,
    )


def save_npy(image: Any, file: BytesIO, options: dict[str, Any]) -> None:
    """Write an array."""
    np.save(file, np.asarray(image), **options)
