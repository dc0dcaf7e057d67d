"""List the files of a folder: those to read, with links followed, and those left out, with reasons."""

import os
import re
from collections import Counter
from collections.abc import Container
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from styleaug.errors import FileError
from styleaug.io.content import head_of, image_kind
from styleaug.io.dicom import has_prefix, slide_series
from styleaug.io.ome_zarr import is_zarr
from styleaug.io.slides import DICOM_SUFFIXES, is_wsi

__all__ = ["Listing", "list_files", "stem_of", "suffix_of"]

NUMBER = re.compile(r"\.\d+(-\d+)?")
"""Endings of DICOM file names without a suffix, and of their copies."""

_IMAGES = """
.apng .avif .avifs .bpg .cr2 .cr3 .cur .czi .dds .dib .djvu .dng .emf .eps .exr .fit .fits .gif .hdr .heic
.heif .hif .icns .ico .j2c .j2k .jp2 .jpc .jpf .jpm .jpx .jxl .jxr .lif .lsm .mgz .mnc .mpo .mrxs .nd2 .ndpi
.nef .nhdr .orf .pbm .pcx .pfm .pgm .pnm .ppm .psb .psd .qoi .raf .ras .rw2 .scn .sgi .svg .svs .tga .vsi
.webp .wmf .xbm .xcf .xpm
"""
"""Suffixes of images. Images that cannot be read are reported by name."""

_OTHERS = """
.avi .bin .cfg .csv .db .doc .docx .gz .h5 .hdf5 .htm .html .ini .ipynb .json .jsonl .lock .log .mat .md .mkv
.mov .mp3 .mp4 .npz .onnx .parquet .pdf .pickle .pkl .pt .pth .py .raw .rst .safetensors .sh .sqlite .tar
.tfrecord .tgz .toml .tsv .txt .wav .webm .xls .xlsx .xml .yaml .yml .zip .zraw
"""
"""Suffixes of files that often lie beside images; they are counted, but not opened."""

NOT_READ, BESIDE = frozenset(_IMAGES.split()), frozenset(_OTHERS.split())

_PLAIN = re.compile(r"(\.\w{1,12})?")
"""Suffixes that are listed separately in the message."""


@dataclass
class Listing:
    """Contents of a folder."""

    files: list[Path] = field(default_factory=list)
    """Files to read, sorted."""

    skipped: list[tuple[Path, str]] = field(default_factory=list)
    """Images that cannot be read, broken links and similar files, each with the reason."""

    others: Counter[str] = field(default_factory=Counter)
    """Number of other files, by suffix."""

    folders: set[str] = field(default_factory=set)
    """Real paths of all folders that were searched."""

    def left_out(self) -> str:
        """Return a line about the other files, or ""."""
        if not self.others:
            return ""
        kinds = ", ".join(f"{name or 'no suffix'} {count}" for name, count in self.others.most_common(8))
        return (
            f"{self.others.total()} other files left out ({kinds}{', ...' if len(self.others) > 8 else ''})"
        )

    def reasons(self) -> str:
        """Return a message for an empty list: the files that were left out, and the first reason."""
        told = [f" {self.left_out()}."] if self.others else []
        told += [f" {len(self.skipped)} cannot be used; the first: {why}" for _, why in self.skipped[:1]]
        return "".join(told)


def list_files(folder: Path, suffixes: Container[str]) -> Listing:
    """Search `folder` and all folders below it for files with these suffixes, without hidden ones.

    Links are followed, except a link to a folder that contains it. A folder of OME-Zarr counts as a file.

    Raises:
        FileError: the folder is missing, not a folder, or cannot be opened.
    """
    folder = Path(folder)
    try:
        if not folder.exists():
            raise FileError(f"there is no folder {folder}.")
        if not folder.is_dir():
            raise FileError(f"{folder} is a file; give the folder that holds the images.")
        os.scandir(folder).close()
    except (OSError, ValueError) as error:
        if isinstance(error, FileError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise FileError(f"cannot open the folder {str(folder)[:200]!r}: {reason}.") from None
    if ".zarr" in suffixes and is_zarr(folder):
        return Listing(files=[folder])
    found = Listing()
    pending = [(folder, (os.path.realpath(folder),))]
    while pending:
        place, chain = pending.pop()
        found.folders.add(chain[-1])
        pending += enter(place, chain, suffixes, found)
    found.files = one_for_each_slide(sorted(found.files))
    found.skipped.sort()
    return found


def one_for_each_slide(files: list[Path]) -> list[Path]:
    """Leave out all but the first of the DICOM files that hold the levels of one slide."""
    kept, seen = [], set()
    for path in files:
        if suffix_of(path) in DICOM_SUFFIXES and is_wsi(path):
            slide = path.parent, slide_series(path)
            if slide in seen:
                continue
            seen.add(slide)
        kept.append(path)
    return kept


def enter(
    folder: Path, chain: tuple[str, ...], suffixes: Container[str], found: Listing
) -> list[tuple[Path, tuple[str, ...]]]:
    """Sort the entries of one folder into a listing; return the folders among them.

    Args:
        folder: the folder, as the user named it.
        chain: real paths of the folders from the first one to this one.
        suffixes: suffixes of the files to list.
        found: the listing to add files to.
    """
    try:
        with os.scandir(folder) as scan:
            entries = [entry for entry in scan if not entry.name.startswith(".")]
    except OSError as error:
        found.skipped.append((folder, f"{folder}: the folder cannot be opened: {error.strerror}."))
        return []
    inner = []
    for entry in entries:
        path = folder / entry.name
        try:
            if ".zarr" in suffixes and is_zarr(path):
                found.files.append(path)
            elif entry.is_dir():
                real = os.path.realpath(path) if entry.is_symlink() else os.path.join(chain[-1], entry.name)
                if any(above == real or above.startswith(os.path.join(real, "")) for above in chain):
                    found.skipped.append((path, f"{path} is a link to a folder that it lies in; remove it."))
                else:
                    inner.append((path, (*chain, real)))
            elif entry.is_file():
                _take(path, suffixes, found)
            elif entry.is_symlink():
                found.skipped.append((path, f"{path} is a link that leads nowhere; remove or mend it."))
            else:
                found.skipped.append((path, f"{path} is a pipe, a socket or a device; remove it."))
        except OSError as error:  # a link to itself, or into a folder that may not be opened
            found.skipped.append((path, f"{path} cannot be looked at: {error.strerror}."))
    return inner


def _take(path: Path, suffixes: Container[str], found: Listing) -> None:
    """Add a file to a listing: to read, left out with a reason, or counted."""
    suffix = suffix_of(path)
    if suffix in suffixes:
        found.files.append(path)
    elif suffix in NOT_READ:
        found.skipped.append((path, f"{path}: {suffix} images cannot be read; save it as .png or .tif."))
    elif suffix not in BESIDE and (kind := image_kind(first_bytes(path))):
        found.skipped.append((path, f"{path} is a {kind} image by its content; give it the suffix of one."))
    else:
        found.others[suffix if _PLAIN.fullmatch(suffix) else "other"] += 1


def first_bytes(path: Path) -> bytes:
    """Read the first bytes of a file; return b"" if it cannot be opened."""
    try:
        return head_of(path)
    except OSError:
        return b""


def stem_of(path: PurePath) -> str:
    """Return a file name without suffix; `.nii.gz` is one suffix, and the number in `IM.0001` is none."""
    if path.name.lower().endswith(".nii.gz"):
        return path.name[:-7]
    return path.name if NUMBER.fullmatch(path.suffix) else path.stem


def suffix_of(path: Path) -> str:
    """Return a file's suffix in lower case, as in `SUFFIXES`.

    Without a suffix, or with only a number, the file's first bytes are read: DICOM becomes `.dcm`.
    """
    suffix = path.name[len(stem_of(path)) :].lower()
    return ".dcm" if not suffix and has_prefix(path) else suffix
