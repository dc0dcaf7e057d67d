"""DICOM: frames in true values, the window that the file asks for, and writing with the file's header."""

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
"""Kinds of objects with pixels that must not be styled: they are what a network shall learn."""
RLE = "1.2.840.10008.1.2.5"
TWELVE_BITS = "1.2.840.10008.1.2.4.51"


def check_kind(data: Any, path: Path) -> None:
    """Refuse what has no pixels, and pixels that are no image."""
    modality = str(data.get("Modality") or "unknown modality")
    if not any(keyword in data for keyword in _PIXELS):
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


def functional_groups(data: Any, frames: int, keyword: str) -> list[Any]:
    """Give what an enhanced file says for all frames, or for each of them; else the file itself."""
    for name in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        groups = data.get(name) or []
        items = [group[keyword].value[0] for group in groups if keyword in group and group[keyword].value]
        if items and (len(items) == len(groups) and len(groups) in (1, frames)):
            return items
    return [data]


def rescale_of(data: Any, frames: int) -> tuple[Any, Any]:
    """Read slope and intercept: numbers, or `(T, 1, 1)` where frames differ."""
    pairs = []
    for item in functional_groups(data, frames, "PixelValueTransformationSequence"):
        slope, intercept = _number(item, "RescaleSlope"), _number(item, "RescaleIntercept")
        # Each means nothing without the other, and a slope of zero would leave nothing.
        pairs.append((slope, intercept) if slope and intercept is not None else (1.0, 0.0))
    if len(set(pairs)) == 1:
        return pairs[0]
    slopes, intercepts = np.array(pairs).T[:, :, None, None]
    return slopes, intercepts


def value_of(data: Any, keyword: str) -> Any:
    """Read a tag; where its value cannot be parsed, give its bytes as text.

    pydicom parses values when they are asked for, and raises anything on wrong ones. So an identifier
    whose type is unknown still tells one patient, or one series, from another.
    """
    try:
        return data.get(keyword)
    except Exception:
        value = data.get_item(keyword).value
        return value.decode("latin-1").strip("\0 ") if isinstance(value, bytes) else None


def _number(item: Any, keyword: str) -> float | None:
    """Read the first value of a tag as a finite number, if it is one."""
    with suppress(Exception):  # pydicom converts on reading, and raises anything on wrong values
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
    """Give the modality's lookup table and its reverse, if it has one that can be reversed."""
    try:
        item = data.ModalityLUTSequence[0]
        count, first, _ = map(int, item.LUTDescriptor)
        content = item.LUTData
        order = "<" if data.original_encoding[1] else ">"
        table = np.frombuffer(content, f"{order}u2") if isinstance(content, bytes) else np.array(content)
        table = table[: count or 2**16].astype(np.int64)
    except Exception:  # none, or one that makes no sense
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
    """Give the least and largest value that the stored bits can hold."""
    if dtype.kind == "f":
        return 0.0, 1.0
    bits = _number(data, "BitsStored") or 8 * dtype.itemsize
    return (0, 2**bits - 1) if dtype.kind == "u" else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def padding_of(data: Any, stored: np.ndarray) -> np.ndarray | None:
    """Tell which pixels lie outside what was scanned, if any do."""
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
"""Of a header: two or three for each element."""
MOST_SEQUENCES = 2**19
"""Bytes of sequences in a header."""
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
"""What may be read to group images; nothing of a patient, a date or an identifier."""
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
"""What is no longer true of styled pixels."""
SWAPPED = {"OW": 2, "OF": 4, "OL": 4, "OD": 8, "OV": 8}
"""Bytes of the values that pydicom leaves in the file's byte order."""


def has_prefix(path: Path) -> bool:
    """Tell whether a file begins as DICOM files do; a folder's index, DICOMDIR, is none of them."""
    if path.name.upper().startswith("DICOMDIR"):
        return False
    if not os.path.isfile(path):  # a pipe would be waited for
        return False
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == PREFIX
    except OSError:
        return False


def open_dicom(path: Path, short_side: int | None = None, window: Window | None = None) -> Scan:
    """Read all frames of a DICOM file.

    Grey values are those after the rescale or the modality's lookup table; where less is brighter
    (MONOCHROME1) they are mirrored, and mirrored again when they are saved. Palettes and YBR become
    RGB. Several frames are one volume.

    Args:
        path: the file.
        short_side: not used.
        window: None takes the file's first window.

    Raises:
        FileError: damaged, too large, without pixels, or pixels that are labels or a dose.
        ConfigError: pydicom, or what decodes its transfer syntax, is missing.
    """
    with quiet("pydicom"):
        data = _parse(path)
        check_kind(data, path)
        shape = read_shape(data, path)
        check_codestreams(data, path)
        stored = decode(data, path).reshape(shape)
        for keyword in _PIXELS:  # decoded, so the encoded ones need not stay in memory
            if keyword in data:
                delattr(data, keyword)
        build = colour_scan if stored.ndim == 4 else grey_scan
        return build(data, stored, path, window)


def _parse(path: Path, **options: Any) -> Any:
    """Read a data set.

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
        raise FileError(f"there is no file {path}." if not path.exists() else f"{path} is no file of images.")
    size = path.stat().st_size
    check_bytes(path, size)
    try:
        deflated = has_prefix(path) and read_file_meta_info(path).get("TransferSyntaxUID") == DEFLATED
        with path.open("rb") as file:
            source = Counted(inflated(file, path) if deflated else file, size, path)
            # Old files have no prefix; those that are no DICOM at all turn out to have no pixels.
            data = pydicom.dcmread(source, force=True, **options)
        data.buffer = None
        check_sequences(data, size, path)
        kind = data.file_meta.get("MediaStorageSOPClassUID")
    except StyleAugError:
        raise
    except Exception as error:  # damaged files make pydicom raise anything
        raise unreadable(path, error) from None
    if kind == DICOMDIR:
        raise FileError(f"{path} is the index of a DICOM folder; give the files beside it.")
    return data


def inflated(file: BinaryIO, path: Path) -> BytesIO:
    """Unpack a deflated data set, no more of it than a file of its size may hold."""
    head = file.read(144)
    head += file.read(int.from_bytes(head[140:144], "little"))  # the length of the meta information
    content = BytesIO()
    # The same length, so that the rest of the meta information stays where it is.
    content.write(head.replace(DEFLATED.encode(), EXPLICIT.encode().ljust(len(DEFLATED), b"\0")))
    stream = Inflated(file, -zlib.MAX_WBITS)
    while part := stream.read(2**20):
        content.write(part)
        check_bytes(path, content.tell())
    content.seek(0)
    return content


class Counted:
    """A file for pydicom, which takes 50 microseconds for each element of a header.

    Args:
        file: as pydicom would read it.
        size: bytes of the file on the disk; a large one may have a longer header.
        path: for the message.
    """

    def __init__(self, file: BinaryIO, size: int, path: Path):
        self.file, self.path = file, path
        self.left = trusted(MOST_READS + size // 64)
        self.seek, self.tell, self.name = file.seek, file.tell, None

    def read(self, size: int = -1) -> bytes:
        """Read bytes.

        Raises:
            FileError: this was done too often.
        """
        self.left -= 1
        if self.left < 0:
            raise crowded(self.path)
        return self.file.read(size)


def crowded(path: Path) -> FileError:
    """Name a file whose header takes minutes."""
    return FileError(
        f"{path} has more elements in its header than a file of its size may have. Remove it, or set "
        f"{VARIABLE} in the environment if you trust it."
    )


def check_sequences(data: Any, size: int, path: Path) -> None:
    """Refuse sequences that are parsed only when they are used, if that takes minutes."""
    if sequence_bytes(data) > trusted(MOST_SEQUENCES + size // 4):
        raise crowded(path)


def sequence_bytes(data: Any) -> int:
    """Count the bytes of sequences that are not parsed yet."""
    from pydicom.datadict import dictionary_VR

    total = 0
    for element in data.values():
        if isinstance(element.value, bytes):
            with suppress(KeyError):  # a private tag, which is no sequence unless it says so
                kind = dictionary_VR(element.tag) if element.VR in (None, "UN") else element.VR
                total += len(element.value) * (kind == "SQ")
        elif element.VR == "SQ":
            total += sum(map(sequence_bytes, element.value or ()))
    return total


def colour_scan(data: Any, frames: np.ndarray, path: Path, window: Window | None) -> Scan:
    """Build a scan of RGB, which has no window: all of its range is shown."""
    if frames.dtype.kind != "u":
        raise FileError(f"{path} has colour with signs; save it again.")

    stored_as_colour = _number(data, "SamplesPerPixel") == 3
    own = stored_limits(data, frames.dtype) if stored_as_colour else None

    def save(styled: np.ndarray, target: Path) -> None:
        facts = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}
        if not stored_as_colour:  # the palette's index may have had fewer bits
            facts |= {"BitsAllocated": 8, "BitsStored": 8}
        write(data, styled.astype(frames.dtype), target, **facts)

    return make_scan(frames, save, window=None, own=own, whole=True, volume=len(frames) > 1)


def grey_scan(data: Any, stored: np.ndarray, path: Path, window: Window | None) -> Scan:
    """Build a scan of true values."""
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
    """Copy a header for styled pixels, and say in it that they are derived."""
    from pydicom import uid

    header = copy.deepcopy(data)
    for tag in list(header.keys()):
        try:
            header.get(tag)  # parses it, as it may be written in another encoding
        except Exception:  # its value is no DICOM, and cannot be written again
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
    """Set a tag, of the type that it should have and not of the one that was found."""
    if keyword in header:
        delattr(header, keyword)
    setattr(header, keyword, value)


def _swap(_: Any, element: Any) -> None:
    """Turn the bytes of a big-endian value round."""
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
            # The same pixels of the same image are the same object, however often they are made.
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
    """Read what a DICOM file says of how it was made; nothing of a patient, a date or an identifier.

    Args:
        path: the file; its pixels are not read.

    Returns:
        Those of the tags in `TAGS` that have a value, by their keyword.

    Raises:
        FileError: it cannot be read.
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
    """Give a digest that is the same for all slices of one volume, or "" for what is no slice of one.

    A slice has a single frame and a place in the patient.

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


def patient_of(path: str | Path) -> str:
    """Give a digest that is the same for all files of a patient, to count patients by.

    It is made of the patient's identifier, else of the study's, else of the path. Whoever knows an
    identifier can tell that it is meant, so keep it in memory only.

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
