"""The pixels of a DICOM file as they are stored: checked by the header first, then decoded."""

import struct
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from styleaug.errors import FileError
from styleaug.formats.scan import check_size, missing, unreadable

__all__ = ["PIXELS", "check_codestreams", "check_kind", "decode", "read_shape", "syntax_of"]

PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")

NO_LIGHT = {"SEG": "labels", "RTDOSE": "a dose"}
"""Kinds of objects with pixels that must not be styled: they are what a network shall learn."""

RLE = "1.2.840.10008.1.2.5"
TWELVE_BITS = "1.2.840.10008.1.2.4.51"


def check_kind(data: Any, path: Path) -> None:
    """Refuse what has no pixels, and pixels that are no image."""
    modality = str(data.get("Modality") or "unknown modality")
    if not any(keyword in data for keyword in PIXELS):
        raise FileError(f"{path} has no pixels ({modality}), or is no DICOM file; leave it out.")
    if modality in NO_LIGHT:
        raise FileError(f"{path} holds {NO_LIGHT[modality]} ({modality}) and no image; leave it out.")


def read_shape(data: Any, path: Path) -> tuple[int, ...]:
    """Read and check `(T, H, W)` or `(T, H, W, 3)` before any pixel is decoded."""
    rows, columns = (whole(data, keyword, path) for keyword in ("Rows", "Columns"))
    frames = whole(data, "NumberOfFrames", path, 1)
    samples = whole(data, "SamplesPerPixel", path, 1)
    bits = whole(data, "BitsAllocated", path)
    used = whole(data, "BitsStored", path, bits)
    if bits not in (8, 16, 32, 64) or not 1 <= used <= bits or samples not in (1, 3):
        raise FileError(
            f"{path} has {samples} samples of {used} in {bits} bits; readable are 1 or 3 of 8, 16 or 32."
        )
    kind = str(data.get("PhotometricInterpretation", ""))
    colour = samples == 3 or kind == "PALETTE COLOR"
    if colour and bits > 16:
        raise FileError(f"{path} has {bits}-bit colour; save it with 8 or 16 bits.")
    check_size(path, rows, columns, frames, samples * bits // 8 * (3 if colour and samples == 1 else 1))
    return (frames, rows, columns, 3) if colour else (frames, rows, columns)


def whole(data: Any, keyword: str, path: Path, default: Any = None) -> int:
    """Read a tag that must be a whole number."""
    value: Any = None
    try:
        value = data.get(keyword)
        return int(default if value in (None, "") else value)
    except (TypeError, ValueError, AttributeError):
        raise FileError(
            f"{path} has {keyword} {str(value)[:40]!r}, which must be a whole number; repair or remove it."
        ) from None


def check_codestreams(data: Any, path: Path) -> None:
    """Refuse compressed frames that are larger than the header says: a decoder would fill memory."""
    from pydicom.encaps import generate_frames

    if not syntax_of(data).is_encapsulated or "PixelData" not in data:
        return
    rows, columns = int(data.Rows), int(data.Columns)
    kind = "RLE" if syntax_of(data) == RLE else "JPEG"
    declared = rows * columns * int(data.SamplesPerPixel) * int(data.BitsAllocated) // 8
    try:
        frames = generate_frames(data.PixelData, number_of_frames=int(data.get("NumberOfFrames") or 1))
        for frame in frames:
            if kind == "RLE":
                most = 2 * declared + 2**16  # segments may be filled up
                if 64 * len(frame) > most and rle_size(frame) > most:
                    raise FileError(f"{path} has frames that unpack to more than its header says; remove it.")
                continue
            height, width = codestream_size(frame)
            if height > rows or width > columns:
                raise FileError(
                    f"{path} has {columns} x {rows} pixels by its header, but {width} x {height} inside; "
                    "remove it."
                )
    except FileError:
        raise
    except Exception as error:
        raise unreadable(path, error) from None


def rle_size(frame: bytes) -> int:
    """Count the bytes that a frame of run lengths unpacks to."""
    count, *offsets = struct.unpack("<16L", frame[:64])
    size = 0
    for at, end in pairwise([*offsets[:count], len(frame)]):
        while at < end:
            run = frame[at]
            size += run + 1 if run < 128 else (257 - run) % 129
            at += run + 2 if run < 128 else 1 + (run > 128)
    return size


def codestream_size(frame: bytes) -> tuple[int, int]:
    """Read height and width of a JPEG, JPEG-LS or JPEG 2000 frame; (0, 0) of others."""
    if frame[:2] != b"\xff\xd8":
        start = frame.find(b"\xff\x4f\xff\x51")  # in a JP2 file it comes after boxes
        numbers = (int.from_bytes(frame[at : at + 4], "big") for at in range(start + 8, start + 24, 4))
        x1, y1, x0, y0 = numbers
        return (y1 - y0, x1 - x0) if start >= 0 else (0, 0)
    at = 2
    while (at := frame.find(b"\xff", at)) >= 0 and at + 9 <= len(frame):
        marker = frame[at + 1]
        if marker == 0xF7 or (marker in range(0xC0, 0xD0) and marker not in (0xC4, 0xC8, 0xCC)):
            return int.from_bytes(frame[at + 5 : at + 7], "big"), int.from_bytes(
                frame[at + 7 : at + 9], "big"
            )
        alone = marker in (0x00, 0x01, 0xFF) or 0xD0 <= marker <= 0xD8
        at += 1 if alone else 2 + int.from_bytes(frame[at + 2 : at + 4], "big")
    return 0, 0


def syntax_of(data: Any) -> Any:
    """Give the transfer syntax; where a file names none, the one that it was parsed by."""
    from pydicom import uid

    found = data.file_meta.get("TransferSyntaxUID")
    if found is None:
        implicit, little = data.original_encoding
        found = uid.ImplicitVRLittleEndian if implicit else uid.ExplicitVRLittleEndian
        data.file_meta.TransferSyntaxUID = found if little else uid.ExplicitVRBigEndian
        found = data.file_meta.TransferSyntaxUID
    return found


def decode(data: Any, path: Path) -> np.ndarray:
    """Decode all frames; YBR and palettes become RGB."""
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.pixels.processing import apply_color_lut
    from pydicom.pixels.utils import pixel_array

    syntax: Any = syntax_of(data)
    try:
        available = get_decoder(syntax).is_available
    except NotImplementedError:
        raise FileError(f"{path} has the transfer syntax {syntax.name}, which has no decoder.") from None
    if not available:
        raise missing(path, f"a decoder of {syntax.name}")
    try:
        stored = twelve_bits(data) if str(syntax) == TWELVE_BITS else pixel_array(data)
        if str(data.get("PhotometricInterpretation", "")) != "PALETTE COLOR":
            return stored
        colour = apply_color_lut(stored, data)
        # Palettes hold 16 bits of colour for 8 of index; the upper half is what is shown.
        return (colour >> 8).astype(np.uint8) if colour.itemsize == 2 else colour
    except ImportError:
        raise missing(path, f"a decoder of {syntax.name}") from None
    except Exception as error:
        raise unreadable(path, error) from None


def twelve_bits(data: Any) -> np.ndarray:
    """Decode JPEG of 12 bits, which of pydicom's plugins only one under the GPL does."""
    import imagecodecs
    from pydicom.encaps import generate_frames

    count = int(data.get("NumberOfFrames") or 1)
    frames = [
        imagecodecs.jpeg8_decode(frame) for frame in generate_frames(data.PixelData, number_of_frames=count)
    ]
    return np.stack(frames)
