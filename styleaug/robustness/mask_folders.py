"""Read images with masks: from two folders with files of the same names, or from a list."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Integer, UInt8
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F

from styleaug.errors import FileError, ImageError
from styleaug.images import to_float
from styleaug.io.files import list_image_files, open_image, stem_of
from styleaug.io.lists import LISTS, list_images
from styleaug.io.paths import check_path
from styleaug.io.pixels import read_pixels
from styleaug.io.scan import Scan
from styleaug.robustness.class_folders import (
    Squaring,
    check_memory,
    evenly_spaced,
    files_digest,
    middle_square,
    read_each,
    squared,
)
from styleaug.robustness.classifier_training import VOID

__all__ = ["NO_BACKGROUND", "MaskedImages", "read_mask_numbers", "read_masked_images"]

IMAGE_FOLDER, MASK_FOLDER = "images", "masks"
"""Names of the two folders."""
NO_BACKGROUND = -1
"""Label of the background if all labels count."""
MOST_LABELS = 64
"""Largest number of labels that are taken from the masks, if none are named."""
STRAY_PIXELS, STRAY_MASKS = 1e-4, 0.05
"""A label in a smaller share of all pixels, and in no larger share of the masks, seems to be an error."""


@dataclass(frozen=True)
class MaskedImages:
    """The images and masks of one domain.

    Args:
        images: square images, uint8.
        masks: index of each pixel's label in `labels`, or `VOID`.
        labels: the labels, the background first.
        names: names of the images.
        failed: images and masks that could not be used, with the reasons.
        digest: hash of the names and sizes of the files, to recognise the set.
        groups: the different values of a list's column `group`.
    """

    images: UInt8[Tensor, "N 3 S S"]
    masks: UInt8[Tensor, "N S S"]
    labels: tuple[int, ...]
    names: tuple[str, ...]
    failed: tuple[tuple[Path, str], ...]
    digest: str
    groups: tuple[str, ...] = ()


@dataclass(frozen=True)
class Entry:
    """An image and its mask; None with the reason if it has none."""

    name: str
    image: Path
    mask: Path | None
    reason: str = ""

    @property
    def blamed(self) -> Path:
        """Return the path to name if they cannot be used."""
        return self.mask or self.image


@dataclass(frozen=True)
class Square:
    """A square image, its mask, and the number of pixels of each label in the whole mask."""

    image: UInt8[Tensor, "3 S S"]
    mask: Integer[Tensor, "S S"]
    labels: dict[int, int]


def read_masked_images(
    source: str | Path,
    side: int,
    *,
    labels: Sequence[int] | None = None,
    void: int | None = None,
    background: int = 0,
    fit: Squaring = "crop",
    limit: int | None = None,
    most_bytes: int = 4 * 2**30,
    threads: int = 1,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> MaskedImages:
    """Read images and masks, in every format that `styleaug.io.files` knows.

    Where all masks of a source have only the values 0 and 255, 255 is read as label 1, unless `labels` has
    255 or it is void.

    Args:
        source: folder with the folders `images` and `masks`, whose files have the same names apart from their
            suffixes; or a CSV or TSV file with the columns `path` and `mask`. All its images are read, so a
            column `split` may have one value only.
        side: side of the squares in pixels. Masks take the nearest value.
        labels: the known labels; None takes those of the masks.
        void: label of pixels without a class; None is no such label.
        background: label that comes first.
        fit: `"crop"` resizes the short side to `side` and crops the middle; `"squash"` distorts.
        limit: largest number of images, evenly spread over the sorted names; None reads all.
        most_bytes: largest size of images and masks in memory, in bytes; more is an error.
        threads: number of threads that decode.
        report: called with the number of images read and the number in all.

    Raises:
        FileError: no such folders or columns, a list of several parts, too many images, too many labels or
            only one, or no image with a mask that can be used.
    """
    source = check_path(source)
    entries, skipped, groups = list_entries(source)
    entries = evenly_spaced(entries, limit)
    check_memory(source, len(entries), side, 4, most_bytes)
    squares, failed = read_each(
        entries, lambda entry: read_square_pair(entry, side, fit), threads, report, lambda entry: entry.blamed
    )
    usable = [(entry, square) for entry, square in zip(entries, squares, strict=True) if square is not None]
    found = set[int]().union(*(square.labels for _, square in usable)) - {void}
    renamed = found <= {0, 255} and 255 not in (labels or ()) and void != 255
    stray = stray_labels([square.labels for _, square in usable]) - {void} if labels is None else set[int]()
    known = tuple(labels) if labels is not None else labels_of(found - stray, background, renamed=renamed)
    good = []
    for entry, square in usable:
        foreign = sorted({rename(label, renamed) for label in square.labels if label != void} - set(known))
        if foreign:
            why = foreign_labels if labels is not None else named_as_stray
            failed.append((entry.blamed, why(entry.blamed, foreign, known)))
        else:
            good.append((entry, square))
    if not good:
        raise FileError(
            f"none of the {len(entries)} masks of {source} can be used; the first: {failed[0][1]}"
        )
    if labels is None:
        check_label_count(source, known)
    return MaskedImages(
        torch.stack([square.image for _, square in good]),
        torch.stack([indices(square.mask, known, void, renamed) for _, square in good]),
        known,
        tuple(entry.name for entry, _ in good),
        (*skipped, *failed),
        files_digest(
            tuple(f"{entry.name} {entry.blamed.name}" for entry, _ in good),
            [path for entry, _ in good for path in (entry.image, entry.blamed)],
        ),
        groups,
    )


def rename(label: int, renamed: bool) -> int:
    """Return label 1 for 255, if masks are black and white."""
    return 1 if renamed and label == 255 else label


def labels_of(found: set[int], background: int, *, renamed: bool) -> tuple[int, ...]:
    """Return the labels in order, the background first."""
    return tuple(sorted({rename(label, renamed) for label in found}, key=lambda at: (at != background, at)))


def stray_labels(masks: Sequence[dict[int, int]]) -> set[int]:
    """Return the labels that are in few pixels of few masks, from the pixels of each label in each mask."""
    totals: dict[int, int] = {}
    within: dict[int, int] = {}
    for counts in masks:
        for label, count in counts.items():
            totals[label] = totals.get(label, 0) + count
            within[label] = within.get(label, 0) + 1
    least, few = STRAY_PIXELS * sum(totals.values()), max(1, STRAY_MASKS * len(masks))
    return {label for label, count in totals.items() if count < least and within[label] <= few}


def named_as_stray(path: Path, foreign: list[int], known: Sequence[int]) -> str:
    """Return the reason why a mask with values that seem to be no labels cannot be used."""
    named = ", ".join(map(str, foreign[:5]))
    labels = ",".join(map(str, known))
    return (
        f"{path}: its values {named} are in so few pixels and masks that they seem to be errors. Change the "
        f"mask, or name all labels, such as classes={labels},{foreign[0]}."
    )


def foreign_labels(path: Path, foreign: list[int], known: Sequence[int]) -> str:
    """Return the reason why a mask with other labels cannot be used."""
    several = (
        f"labels {', '.join(map(str, foreign[:5]))} are" if len(foreign) > 1 else f"label {foreign[0]} is"
    )
    trained = ", ".join(map(str, sorted(known)))
    return (
        f"{path}: {several} not among those of the training ({trained}). Change the mask, or leave pixels of "
        f"one label out of loss and score with void={foreign[0]}."
    )


def check_label_count(source: Path, labels: Sequence[int]) -> None:
    """Check the number of the labels that were found in masks.

    Raises:
        FileError: there is only one, or too many.
    """
    if len(labels) < 2:
        raise FileError(
            f"the masks of {source} have only the label {labels[0]}; a segmentation needs two or more."
        )
    if len(labels) > MOST_LABELS:
        raise FileError(
            f"the masks of {source} have {len(labels)} values, more than {MOST_LABELS}. JPEG, smooth borders "
            "and a number for each object make so many. Save masks as PNG with one value for each class."
        )


def indices(
    mask: Integer[Tensor, "S S"], labels: Sequence[int], void: int | None, renamed: bool
) -> UInt8[Tensor, "S S"]:
    """Return the index of each pixel's label, or `VOID`."""
    result = torch.full(mask.shape, VOID, dtype=torch.uint8)
    for index, label in enumerate(labels):
        result[mask == label] = index
        if renamed and label == 1:
            result[mask == 255] = index
    if void is not None:
        result[mask == void] = VOID
    return result


def list_entries(source: Path) -> tuple[list[Entry], list[tuple[Path, str]], tuple[str, ...]]:
    """List the images of a source with their masks, the files that were left out, and the groups of a list.

    Raises:
        FileError: the source has neither of the two forms, or is a list of several parts.
    """
    wanted = (
        f"the folders {IMAGE_FOLDER} and {MASK_FOLDER} with files of the same names, or a CSV or TSV list "
        "with the columns path and mask"
    )
    if source.suffix.lower() in LISTS and not source.is_dir():
        listed = list_images(source, absent=True)
        if not listed.masks:
            raise FileError(f"{source} has no column mask; a segmentation needs {wanted}.")
        if len(listed.splits) > 1:
            parts = ", ".join(map(repr, listed.splits[:5]))
            raise FileError(
                f"{source} has several parts in its column split: {parts}. Write a list of each part; the "
                "one to test at home is the test home=LIST."
            )
        entries = [listed_entry(image, mask) for image, mask in zip(listed.paths, listed.masks, strict=True)]
        return entries, [], listed.groups
    if not source.is_dir():
        raise FileError(f"there is no folder {source}.")
    if not ((source / IMAGE_FOLDER).is_dir() and (source / MASK_FOLDER).is_dir()):
        raise FileError(f"{source}: a segmentation needs {wanted}.")
    folder, beside = source / IMAGE_FOLDER, source / MASK_FOLDER
    images, masks = list_image_files(folder), list_image_files(beside)
    by_stem: dict[Path, list[Path]] = {}
    for path in masks.files:
        by_stem.setdefault(stem(path, beside), []).append(path)
    entries = [folder_entry(path, stem(path, folder), by_stem, beside) for path in images.files]
    return entries, [*images.skipped, *masks.skipped], ()


def stem(path: Path, folder: Path) -> Path:
    """Return the path below a folder, without its suffix."""
    return path.relative_to(folder).with_name(stem_of(path))


def folder_entry(image: Path, name: Path, masks: dict[Path, list[Path]], folder: Path) -> Entry:
    """Find the mask of an image among those with its name."""
    found = masks.get(name, [])
    if len(found) == 1:
        return Entry(str(name), image, found[0])
    if found:
        several = ", ".join(path.name for path in found)
        return Entry(str(name), image, None, f"{image}: it has several masks: {several}; keep one.")
    return Entry(str(name), image, None, f"{image}: there is no mask {folder / name}.*; add it.")


def listed_entry(image: Path, mask: Path | None) -> Entry:
    """Return an image of a list and its mask."""
    if mask is None:
        return Entry(image.name, image, None, f"{image}: the list names no mask for it; add it.")
    return Entry(image.name, image, mask)


def read_square_pair(entry: Entry, side: int, fit: Squaring) -> Square:
    """Read an image and its mask as squares.

    Raises:
        FileError, ImageError: one of them cannot be used; the message names it.
    """
    if entry.mask is None:
        raise FileError(entry.reason)
    numbers = torch.from_numpy(read_mask_numbers(entry.mask))
    pixels = read_pixels(entry.image)
    if pixels.shape[-2:] != numbers.shape:
        (height, width), (high, wide) = pixels.shape[-2:], numbers.shape
        raise ImageError(
            f"{entry.mask}: the mask has {wide} x {high} pixels, its image {entry.image.name} has {width} x "
            f"{height}. Save it again in the image's size."
        )
    mask = middle_square(numbers) if fit == "crop" else numbers
    # Interpolation takes no integers; float64 holds all labels exactly.
    mask = F.interpolate(mask[None, None].double(), size=(side, side), mode="nearest-exact")[0, 0].long()
    found, counts = np.unique(numbers.numpy(), return_counts=True)
    labels = dict(zip(found.tolist(), counts.tolist(), strict=True))
    return Square(squared(to_float(pixels), side, fit), mask, labels)


def read_mask_numbers(path: Path) -> np.ndarray:
    """Read a mask as labels `(H, W)`, int64; of a volume, the middle slice.

    A palette image has its colours' numbers as labels, or its grey values if all colours are grey. Colour
    channels must be equal.

    Raises:
        FileError: the file cannot be read.
        ImageError: it is a colour image, has transparency, or values that are no whole numbers.
    """
    picture = open_image(path)
    scan = isinstance(picture, Scan)
    values = picture.frames[len(picture.frames) // 2] if scan else np.asarray(picture)
    if values.ndim == 3:
        values = palette_numbers(path) if has_palette(picture, path) else one_channel(values, path)
    if values.dtype.kind == "f" and not (np.isfinite(values) & (values == values.round())).all():
        raise ImageError(f"{path}: a mask has whole numbers, got fractions; save the label of each pixel.")
    return values.astype(np.int64)


def one_channel(values: np.ndarray, path: Path) -> np.ndarray:
    """Return the channel of a grey image that is stored as colours.

    Raises:
        ImageError: the channels differ, or some pixels are transparent.
    """
    channels = values.shape[-1]
    if channels in (2, 4):
        alpha, values = values[..., -1], values[..., :-1]
        if (alpha != alpha.max()).any() or alpha.max() == 0:
            raise ImageError(
                f"{path}: the mask has transparent pixels; save the label of each pixel as a grey image."
            )
    if (values != values[..., :1]).any():
        count = len(np.unique(values.reshape(-1, values.shape[-1]), axis=0))
        raise ImageError(
            f"{path}: it is a colour image with {count} colours, not a mask. Save a grey or palette image "
            "with the number of its class at each pixel, such as 0, 1, 2."
        )
    return values[..., 0]


def has_palette(picture: Any, path: Path) -> bool:
    """Return whether a file stores numbers of colours that are not all grey."""
    if not isinstance(picture, Image.Image):
        return False
    with Image.open(path) as stored:
        return stored.mode == "P" and (np.ptp(np.asarray(picture)[..., :3], axis=-1) > 0).any()


def palette_numbers(path: Path) -> np.ndarray:
    """Read the number of each pixel's colour in the palette."""
    with Image.open(path) as stored:
        return np.asarray(ImageOps.exif_transpose(stored))
