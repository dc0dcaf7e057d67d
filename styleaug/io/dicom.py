"""Read DICOM as frames in true values with the file's window; write with the file's header."""

import copy
import hashlib
import os
import struct
import zlib
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from styleaug.errors import FileError, StyleAugError
from styleaug.io.limits import VARIABLE, check_bytes, trusted
from styleaug.io.packed import Inflated
from styleaug.io.scan import Scan, Window, check_size, make_scan, missing, quiet, rescaled, unreadable

__all__ = [
    "check_codestreams",
    "check_kind",
    "decode",
    "has_prefix",
    "modality_lookup",
    "open_dicom",
    "padding_of",
    "patient_of",
    "read_shape",
    "read_tags",
    "rescale_of",
    "stored_limits",
    "syntax_of",
    "value_of",
    "window_of",
]

_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
NO_LIGHT = {"SEG": "labels", "RTDOSE": "a dose"}
"""Modalities that must not be styled, because a network is to predict their pixels."""
RLE = "1.2.840.10008.1.2.5"
TWELVE_BITS = "1.2.840.10008.1.2.4.51"


def check_kind(data: Any, path: Path) -> None:
    """Check that a file has pixels and that they are an image."""
    modality = str(data.get("Modality") or "unknown modality")
    if not any(keyword in data for keyword in _PIXELS):
        raise FileError(f"{path} has no pixels ({modality}), or is not a DICOM file; leave it out.")
    if modality in NO_LIGHT:
        raise FileError(f"{path} holds {NO_LIGHT[modality]} ({modality}), not an image; leave it out.")


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
    """Refuse compressed frames larger than the header says, because a decoder could fill the memory."""
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
                most = 2 * declared + 2**16  # segments may be padded
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
    """Return the number of bytes that a run-length frame unpacks to."""
    count, *offsets = struct.unpack("<16L", frame[:64])
    size = 0
    for at, end in pairwise([*offsets[:count], len(frame)]):
        while at < end:
            run = frame[at]
            size += run + 1 if run < 128 else (257 - run) % 129
            at += run + 2 if run < 128 else 1 + (run > 128)
    return size


def codestream_size(frame: bytes) -> tuple[int, int]:
    """Read height and width of a JPEG, JPEG-LS or JPEG 2000 frame; return (0, 0) for others."""
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
    """Return the transfer syntax; if the file names none, the one that it was parsed with."""
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
        # Palettes hold 16-bit colours for 8-bit indices; only the upper 8 bits are shown.
        return (colour >> 8).astype(np.uint8) if colour.itemsize == 2 else colour
    except ImportError:
        raise missing(path, f"a decoder of {syntax.name}") from None
    except Exception as error:
        raise unreadable(path, error) from None


def twelve_bits(data: Any) -> np.ndarray:
    """Decode 12-bit JPEG; the only plugin of pydicom for it has the GPL licence."""
    import imagecodecs
    from pydicom.encaps import generate_frames

    count = int(data.get("NumberOfFrames") or 1)
    frames = [
        imagecodecs.jpeg8_decode(frame) for frame in generate_frames(data.PixelData, number_of_frames=count)
    ]
    return np.stack(frames)


def functional_groups(data: Any, frames: int, keyword: str) -> list[Any]:
    """Return the items of an enhanced file with `keyword`, shared or per frame; else the file itself."""
    for name in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        groups = data.get(name) or []
        items = [group[keyword].value[0] for group in groups if keyword in group and group[keyword].value]
        if items and (len(items) == len(groups) and len(groups) in (1, frames)):
            return items
    return [data]


def rescale_of(data: Any, frames: int) -> tuple[Any, Any]:
    """Read slope and intercept: numbers, or `(T, 1, 1)` if frames differ."""
    pairs = []
    for item in functional_groups(data, frames, "PixelValueTransformationSequence"):
        slope, intercept = _number(item, "RescaleSlope"), _number(item, "RescaleIntercept")
        # One has no meaning without the other, and a slope of zero would remove the image.
        pairs.append((slope, intercept) if slope and intercept is not None else (1.0, 0.0))
    if len(set(pairs)) == 1:
        return pairs[0]
    slopes, intercepts = np.array(pairs).T[:, :, None, None]
    return slopes, intercepts


def value_of(data: Any, keyword: str) -> Any:
    """Read a tag; if its value cannot be parsed, return its bytes as text.

    pydicom parses values on first use, and raises errors of any kind on invalid ones. This way an
    identifier of an unknown type still distinguishes patients or series.
    """
    try:
        return data.get(keyword)
    except Exception:
        value = data.get_item(keyword).value
        return value.decode("latin-1").strip("\0 ") if isinstance(value, bytes) else None


def _number(item: Any, keyword: str) -> float | None:
    """Read the first value of a tag as a finite number; None if it is not one."""
    with suppress(Exception):  # pydicom converts on reading, and raises errors of any kind on invalid values
        value = item.get(keyword)
        value = float(value if isinstance(value, str | int | float) else value[0])
        return value if np.isfinite(value) else None
    return None


def window_of(data: Any) -> tuple[float, float] | None:
    """Read the first window, or the range of the lookup table, in true values."""
    frames = _number(data, "NumberOfFrames") or 1
    item = functional_groups(data, int(frames), "FrameVOILUTSequence")[0]
    centre, width = _number(item, "WindowCenter"), _number(item, "WindowWidth")
    if centre is not None and width is not None and width > 0:
        return centre - width / 2, centre + width / 2
    with suppress(Exception):
        count, first, _ = map(int, data.VOILUTSequence[0].LUTDescriptor)
        return float(first), float(first + (count or 2**16) - 1)
    return None


def modality_lookup(
    data: Any,
) -> tuple[Callable[[np.ndarray], np.ndarray], Callable[[np.ndarray], np.ndarray]] | None:
    """Return the modality's lookup table and its inverse; None if there is none or no inverse."""
    try:
        item = data.ModalityLUTSequence[0]
        count, first, _ = map(int, item.LUTDescriptor)
        content = item.LUTData
        order = "<" if data.original_encoding[1] else ">"
        table = np.frombuffer(content, f"{order}u2") if isinstance(content, bytes) else np.array(content)
        table = table[: count or 2**16].astype(np.int64)
    except Exception:  # missing or invalid
        return None
    steps = np.diff(table)
    if not (len(table) > 1 and ((steps >= 0).all() or (steps <= 0).all()) and steps.any()):
        return None
    order_up = np.argsort(table, kind="stable")
    middles = (table[order_up][1:] + table[order_up][:-1]) / 2
    return (
        lambda stored: table[(stored.astype(np.int64) - first).clip(0, len(table) - 1)],
        lambda true: order_up[np.searchsorted(middles, true)] + first,
    )


def stored_limits(data: Any, dtype: np.dtype) -> tuple[float, float]:
    """Return the least and largest value that the stored bits can hold."""
    if dtype.kind == "f":
        return 0.0, 1.0
    bits = _number(data, "BitsStored") or 8 * dtype.itemsize
    return (0, 2**bits - 1) if dtype.kind == "u" else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def padding_of(data: Any, stored: np.ndarray) -> np.ndarray | None:
    """Return a mask of the padding pixels outside the scanned area; None if there are none."""
    value = _number(data, "PixelPaddingValue")
    if value is None:
        return None
    other = _number(data, "PixelPaddingRangeLimit")
    low, high = sorted((value, value if other is None else other))
    padding = (stored >= low) & (stored <= high)
    return padding if padding.any() else None


PREFIX = b"DICM"
DICOMDIR = "1.2.840.10008.1.3.10"
DEFLATED, EXPLICIT = "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.1"
MOST_READS = 60_000
"""Largest number of reads for a header; each element needs two or three."""
MOST_SEQUENCES = 2**19
"""Largest number of bytes of sequences in a header."""
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
TAGS = (
    "Modality",
    "BodyPartExamined",
    "Manufacturer",
    "ManufacturerModelName",
    "InstitutionName",
    "StationName",
    "MagneticFieldStrength",
    "SliceThickness",
    "KVP",
    "ConvolutionKernel",
    "ContrastBolusAgent",
    "ScanningSequence",
    "ViewPosition",
    "ImageLaterality",
    "PhotometricInterpretation",
)
"""Tags that may be read to group images: no patient, date or identifier."""
STALE = (
    "SmallestImagePixelValue",
    "LargestImagePixelValue",
    "IconImageSequence",
    "RedPaletteColorLookupTableDescriptor",
    "GreenPaletteColorLookupTableDescriptor",
    "BluePaletteColorLookupTableDescriptor",
    "RedPaletteColorLookupTableData",
    "GreenPaletteColorLookupTableData",
    "BluePaletteColorLookupTableData",
    "SegmentedRedPaletteColorLookupTableData",
    "SegmentedGreenPaletteColorLookupTableData",
    "SegmentedBluePaletteColorLookupTableData",
)
"""Tags that are no longer true for styled pixels."""
SWAPPED = {"OW": 2, "OF": 4, "OL": 4, "OD": 8, "OV": 8}
"""Size in bytes of the values that pydicom leaves in the file's byte order."""


def has_prefix(path: Path) -> bool:
    """Return True if a file begins like a DICOM file and is not the index of a folder (DICOMDIR)."""
    if path.name.upper().startswith("DICOMDIR"):
        return False
    if not os.path.isfile(path):  # reading a pipe could block
        return False
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == PREFIX
    except OSError:
        return False


def open_dicom(path: Path, short_side: int | None = None, window: Window | None = None) -> Scan:
    """Read all frames of a DICOM file.

    Grey values are those after the rescale or the modality's lookup table. If smaller values are brighter
    (MONOCHROME1), they are mirrored, and mirrored again on saving. Palettes and YBR become RGB. Several
    frames are one volume.

    Args:
        path: the file.
        short_side: not used.
        window: None uses the file's first window.

    Raises:
        FileError: the file is damaged, too large or without pixels, or its pixels are labels or a dose.
        ConfigError: pydicom or the decoder of the transfer syntax is missing.
    """
    with quiet("pydicom"):
        data = _parse(path)
        check_kind(data, path)
        shape = read_shape(data, path)
        check_codestreams(data, path)
        stored = decode(data, path).reshape(shape)
        for keyword in _PIXELS:  # free the encoded pixels
            if keyword in data:
                delattr(data, keyword)
        build = colour_scan if stored.ndim == 4 else grey_scan
        return build(data, stored, path, window)


def _parse(path: Path, **options: Any) -> Any:
    """Parse a DICOM file.

    Raises:
        FileError: it cannot be parsed, is too large, or is the index of a folder.
        ConfigError: pydicom is missing.
    """
    try:
        import pydicom
        from pydicom.filereader import read_file_meta_info
    except ImportError:
        raise missing(path, "pydicom") from None
    if not path.is_file():
        raise FileError(
            f"there is no file {path}." if not path.exists() else f"{path} is not a file of images."
        )
    size = path.stat().st_size
    check_bytes(path, size)
    try:
        deflated = has_prefix(path) and read_file_meta_info(path).get("TransferSyntaxUID") == DEFLATED
        with path.open("rb") as file:
            source = Counted(inflated(file, path) if deflated else file, size, path)
            # Old files have no prefix. Files that are not DICOM are found later, by their lack of pixels.
            data = pydicom.dcmread(source, force=True, **options)
        data.buffer = None
        check_sequences(data, size, path)
        kind = data.file_meta.get("MediaStorageSOPClassUID")
    except StyleAugError:
        raise
    except Exception as error:  # damaged files make pydicom raise errors of any kind
        raise unreadable(path, error) from None
    if kind == DICOMDIR:
        raise FileError(f"{path} is the index of a DICOM folder; give the files beside it.")
    return data


def inflated(file: BinaryIO, path: Path) -> BytesIO:
    """Unpack a deflated data set, up to the size that a file of its length may hold."""
    head = file.read(144)
    head += file.read(int.from_bytes(head[140:144], "little"))  # the length of the meta information
    content = BytesIO()
    # Same length, so that the rest of the meta information keeps its position.
    content.write(head.replace(DEFLATED.encode(), EXPLICIT.encode().ljust(len(DEFLATED), b"\0")))
    stream = Inflated(file, -zlib.MAX_WBITS)
    while part := stream.read(2**20):
        content.write(part)
        check_bytes(path, content.tell())
    content.seek(0)
    return content


class Counted:
    """A file for pydicom that limits the number of reads.

    pydicom takes 50 microseconds for each element of a header, so a long header could take minutes.

    Args:
        file: the open file.
        size: bytes of the file on the disk; a large file may have a longer header.
        path: path for the message.
    """

    file: BinaryIO
    path: Path
    left: int
    name: None

    def __init__(self, file: BinaryIO, size: int, path: Path):
        self.file, self.path = file, path
        self.left = trusted(MOST_READS + size // 64)
        self.seek: Callable[..., int] = file.seek
        self.tell: Callable[[], int] = file.tell
        self.name = None

    def read(self, size: int = -1) -> bytes:
        """Read bytes.

        Raises:
            FileError: there were too many reads.
        """
        self.left -= 1
        if self.left < 0:
            raise crowded(self.path)
        return self.file.read(size)


def crowded(path: Path) -> FileError:
    """Return the error for a file with too many elements in its header."""
    return FileError(
        f"{path} has more elements in its header than a file of its size may have. Remove it, or set "
        f"{VARIABLE} in the environment if you trust it."
    )


def check_sequences(data: Any, size: int, path: Path) -> None:
    """Refuse sequences that would take minutes to parse; pydicom parses them on first use."""
    if sequence_bytes(data) > trusted(MOST_SEQUENCES + size // 4):
        raise crowded(path)


def sequence_bytes(data: Any) -> int:
    """Count the bytes of sequences that are not parsed yet."""
    from pydicom.datadict import dictionary_VR

    total = 0
    for element in data.values():
        if isinstance(element.value, bytes):
            with suppress(KeyError):  # a private tag, which is a sequence only if its type says so
                kind = dictionary_VR(element.tag) if element.VR in (None, "UN") else element.VR
                total += len(element.value) * (kind == "SQ")
        elif element.VR == "SQ":
            total += sum(map(sequence_bytes, element.value or ()))
    return total


def colour_scan(data: Any, frames: np.ndarray, path: Path, window: Window | None) -> Scan:
    """Return a scan of RGB frames; they have no window, so the whole range is shown."""
    if frames.dtype.kind != "u":
        raise FileError(f"{path} has colours of a signed type; save it as unsigned.")

    stored_as_colour = _number(data, "SamplesPerPixel") == 3
    own = stored_limits(data, frames.dtype) if stored_as_colour else None

    def save(styled: np.ndarray, target: Path) -> None:
        facts = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}
        if not stored_as_colour:  # the palette's indices may have fewer bits
            facts |= {"BitsAllocated": 8, "BitsStored": 8}
        write(data, styled.astype(frames.dtype), target, **facts)

    return make_scan(frames, save, window=None, own=own, whole=True, volume=len(frames) > 1)


def grey_scan(data: Any, stored: np.ndarray, path: Path, window: Window | None) -> Scan:
    """Return a scan of grey frames in true values."""
    slope, intercept = rescale_of(data, len(stored))
    lookup = modality_lookup(data)
    inverted = str(data.get("PhotometricInterpretation", "")) == "MONOCHROME1"
    limits = stored_limits(data, stored.dtype)
    values = stored if lookup is None else lookup[0](stored)
    if lookup is not None:
        first, last = lookup[0](np.array(limits)).tolist()
        limits = (min(first, last), max(first, last))
    frames, back, mirror = rescaled(values, slope, intercept, limits, inverted=inverted)
    padding = padding_of(data, stored)

    def save(styled: np.ndarray, target: Path) -> None:
        written = back(styled)
        written = (written if lookup is None else lookup[1](written)).astype(stored.dtype)
        write(data, written if padding is None else np.where(padding, stored, written), target)

    return make_scan(
        frames,
        save,
        window=window,
        own=window_of(data),
        volume=len(frames) > 1,
        beside=padding,
        mirror=mirror if inverted else None,
    )


def derived(data: Any) -> Any:
    """Return a copy of a header for styled pixels, marked as derived."""
    from pydicom import uid

    header = copy.deepcopy(data)
    for tag in list(header.keys()):
        try:
            header.get(tag)  # parses the value, because the encoding of the copy may differ
        except Exception:  # its value is invalid and cannot be written
            del header[tag]
    if not syntax_of(data).is_little_endian:
        header.walk(_swap)
    kinds = header.get("ImageType") or []
    kinds = [kind for kind in kinds if isinstance(kind, str)] if not isinstance(kinds, str) else [kinds]
    _put(header, "ImageType", ["DERIVED", "SECONDARY", *kinds[2:]])
    _put(header, "DerivationDescription", "Stylised by styleaug")
    for keyword in STALE:
        if keyword in header:
            delattr(header, keyword)
    header.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    if not header.get("SOPClassUID"):
        kind = header.file_meta.get("MediaStorageSOPClassUID") or SECONDARY_CAPTURE
        _put(header, "SOPClassUID", kind)
    return header


def _put(header: Any, keyword: str, value: Any) -> None:
    """Set a tag with its standard type, not the type found in the file."""
    if keyword in header:
        delattr(header, keyword)
    setattr(header, keyword, value)


def _swap(_: Any, element: Any) -> None:
    """Reverse the byte order of a big-endian value."""
    size = SWAPPED.get(element.VR)
    if size and isinstance(element.value, bytes) and len(element.value) % size == 0:
        element.value = np.frombuffer(element.value, f">u{size}").astype(f"<u{size}").tobytes()


def write(data: Any, stored: np.ndarray, path: Path, **tags: Any) -> None:
    """Write pixels with a file's header, changed by some tags, uncompressed."""
    import pydicom
    from pydicom.uid import generate_uid

    bits = 8 * stored.dtype.itemsize
    content = stored.astype(stored.dtype.newbyteorder("<")).tobytes()
    with quiet("pydicom"):
        try:
            header = derived(data)
            for keyword, value in tags.items():
                _put(header, keyword, value)
            if stored.dtype.kind == "f":
                setattr(header, "FloatPixelData" if bits == 32 else "DoubleFloatPixelData", content)
            else:
                header.add_new("PixelData", "OW" if bits > 8 else "OB", content + b"\0" * (len(content) % 2))
                used = int(_number(header, "BitsStored") or bits)
                used = used if header.BitsAllocated == bits else bits
                _put(header, "PixelRepresentation", int(stored.dtype.kind == "i"))
                for keyword, value in (("Allocated", bits), ("Stored", used)):
                    _put(header, f"Bits{keyword}", value)
                _put(header, "HighBit", used - 1)
            # Equal pixels of one image get the same identifier each time.
            source = str(header.get("SOPInstanceUID", ""))
            digest = hashlib.sha256(content).hexdigest()
            _put(header, "SOPInstanceUID", generate_uid(entropy_srcs=[source, digest]))
            header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID
            pydicom.dcmwrite(path, header, enforce_file_format=True, implicit_vr=False, little_endian=True)
        except FileError:
            raise
        except Exception as error:
            raise FileError(f"the header cannot be written again: {error}.") from None


def read_tags(path: str | Path) -> dict[str, str]:
    """Read tags about how a DICOM file was made: no patient, date or identifier.

    Args:
        path: the file; its pixels are not read.

    Returns:
        The values of the tags in `TAGS` that are set, by keyword.

    Raises:
        FileError: the file cannot be read.
        ConfigError: pydicom is missing.
    """
    with quiet("pydicom"):
        data = _parse(Path(path), stop_before_pixels=True, specific_tags=list(TAGS))
        found = {}
        for keyword in TAGS:
            with suppress(Exception):
                if text := str(value_of(data, keyword) or "").strip():
                    found[keyword] = text
        return found


def dicom_series(path: str | Path) -> str:
    """Return a digest shared by all slices of one volume, or "" if the file is not a slice.

    A slice has one frame and a position in the patient.

    Raises:
        FileError: the file cannot be read.
        ConfigError: pydicom is missing.
    """
    alike = ("SeriesInstanceUID", "Rows", "Columns", "BitsAllocated", "PixelRepresentation")
    rest = ("NumberOfFrames", "ImagePositionPatient", "SliceLocation")
    with quiet("pydicom"):
        data = _parse(Path(path), stop_before_pixels=True, specific_tags=[*alike, *rest])
        found = {keyword: value_of(data, keyword) for keyword in (*alike, *rest)}
    placed = found["ImagePositionPatient"] is not None or found["SliceLocation"] is not None
    if not placed or not found["SeriesInstanceUID"] or str(found["NumberOfFrames"] or 1) != "1":
        return ""
    return hashlib.sha256(repr([str(found[keyword]) for keyword in alike]).encode()).hexdigest()


def slide_series(path: Path) -> str:
    """Return the series of a whole-slide image, which its levels share; the path if it cannot be read."""
    try:
        with quiet("pydicom"):
            data = _parse(path, stop_before_pixels=True, specific_tags=["SeriesInstanceUID"])
            return str(value_of(data, "SeriesInstanceUID") or path)
    except Exception:  # reported when the slide is opened
        return str(path)


def patient_of(path: str | Path) -> str:
    """Return a digest shared by all files of a patient, to count patients.

    It is made from the identifier of the patient, else of the study, else from the path. A person who knows
    an identifier can recognise its digest, so keep digests in memory only.

    Raises:
        FileError: the file cannot be read.
        ConfigError: pydicom is missing.
    """
    keywords = ("PatientID", "StudyInstanceUID")
    with quiet("pydicom"):
        data = _parse(Path(path), stop_before_pixels=True, specific_tags=list(keywords))
        texts = [f"{keyword}:{str(value_of(data, keyword) or '').strip()}" for keyword in keywords]
    named = [text for text in texts if not text.endswith(":")] or [f"path:{Path(path).resolve()}"]
    return hashlib.sha256(named[0].encode(errors="surrogatepass")).hexdigest()
