"""The files of a folder: which are read, with links followed, and which are left out and why."""

import os
import re
from collections import Counter
from collections.abc import Container
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from styleaug.errors import FileError
from styleaug.io.content import head_of, image_kind
from styleaug.io.dicom import has_prefix

__all__ = ["Listing", "list_files", "stem_of", "suffix_of"]

NUMBER = re.compile(r"\.\d+(-\d+)?")
"""How names of DICOM files end that have no suffix, and those of their copies."""

_IMAGES = """
.apng .avif .avifs .bpg .cr2 .cr3 .cur .czi .dds .dib .djvu .dng .emf .eps .exr .fit .fits .gif .hdr .heic
.heif .hif .icns .ico .j2c .j2k .jp2 .jpc .jpf .jpm .jpx .jxl .jxr .lif .lsm .mgz .mnc .mpo .mrxs .nd2 .ndpi
.nef .nhdr .orf .pbm .pcx .pfm .pgm .pnm .ppm .psb .psd .qoi .raf .ras .rw2 .scn .sgi .svg .svs .tga .vsi
.webp .wmf .xbm .xcf .xpm
"""
"""Suffixes of images. Those that this version of Pillow and we cannot read are named, not passed over."""

_OTHERS = """
.avi .bin .cfg .csv .db .doc .docx .gz .h5 .hdf5 .htm .html .ini .ipynb .json .jsonl .lock .log .mat .md .mkv
.mov .mp3 .mp4 .npz .onnx .parquet .pdf .pickle .pkl .pt .pth .py .raw .rst .safetensors .sh .sqlite .tar
.tfrecord .tgz .toml .tsv .txt .wav .webm .xls .xlsx .xml .yaml .yml .zip .zraw
"""
"""Suffixes of what lies beside images; such files are counted and not looked into."""

NOT_READ, BESIDE = frozenset(_IMAGES.split()), frozenset(_OTHERS.split())

_PLAIN = re.compile(r"(\.\w{1,12})?")
"""Suffixes that are told one by one."""


@dataclass
class Listing:
    """What is in a folder."""

    files: list[Path] = field(default_factory=list)
    """To be read, sorted."""

    skipped: list[tuple[Path, str]] = field(default_factory=list)
    """Images that cannot be read, links that lead nowhere and the like, and why."""

    others: Counter[str] = field(default_factory=Counter)
    """How many other files there are, by suffix."""

    folders: set[str] = field(default_factory=set)
    """Real paths of all folders that were searched."""

    def left_out(self) -> str:
        """Return a line on the other files, or ""."""
        if not self.others:
            return ""
        kinds = ", ".join(f"{name or 'no suffix'} {count}" for name, count in self.others.most_common(8))
        return (
            f"{self.others.total()} other files left out ({kinds}{', ...' if len(self.others) > 8 else ''})"
        )

    def reasons(self) -> str:
        """Return what to say where no file is found: the files that are left out, and the first reason."""
        told = [f" {self.left_out()}."] if self.others else []
        told += [f" {len(self.skipped)} cannot be used; the first: {why}" for _, why in self.skipped[:1]]
        return "".join(told)


def list_files(folder: Path, suffixes: Container[str]) -> Listing:
    """Search `folder` and all below it for files with these suffixes, without what is hidden.

    Links to files and folders are followed; a link to a folder that it lies in is not.

    Raises:
        FileError: no such folder, or not a folder, or one that cannot be opened.
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
    found = Listing()
    pending = [(folder, (os.path.realpath(folder),))]
    while pending:
        place, chain = pending.pop()
        found.folders.add(chain[-1])
        pending += enter(place, chain, suffixes, found)
    found.files.sort()
    found.skipped.sort()
    return found


def enter(
    folder: Path, chain: tuple[str, ...], suffixes: Container[str], found: Listing
) -> list[tuple[Path, tuple[str, ...]]]:
    """Sort the entries of one folder into a listing; return the folders among them.

    Args:
        folder: as the user sees it.
        chain: real paths of the folders from the first one to this one.
        suffixes: of the files that are wanted.
        found: takes the files.
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
            if entry.is_dir():
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
    """Put a file into a listing: read, named as left out, or counted."""
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
    """Read how a file begins; nothing of one that cannot be opened."""
    try:
        return head_of(path)
    except OSError:
        return b""


def stem_of(path: PurePath) -> str:
    """Give a file's name without its suffix: `.nii.gz` is one, and a number such as `IM.0001` has none."""
    if path.name.lower().endswith(".nii.gz"):
        return path.name[:-7]
    return path.name if NUMBER.fullmatch(path.suffix) else path.stem


def suffix_of(path: Path) -> str:
    """Give a file's suffix as a key of `SUFFIXES`, or another one in lower case.

    Where there is none, or only a number, the file's first bytes are read: DICOM is `.dcm`.
    """
    suffix = path.name[len(stem_of(path)) :].lower()
    return ".dcm" if not suffix and has_prefix(path) else suffix
