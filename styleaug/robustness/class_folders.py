"""Read folders with a subfolder for each class into memory, and split them for training."""

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar, get_args

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped, UInt8
from torch import Tensor

from styleaug.errors import ConfigError, FileError, reason_of
from styleaug.images import to_float
from styleaug.io.lists import ImageList, list_images
from styleaug.io.pixels import read_pixels
from styleaug.robustness.benchmarks import Arrays, Part

__all__ = [
    "ClassFolders",
    "Squaring",
    "check_memory",
    "class_names",
    "evenly_spaced",
    "files_digest",
    "middle_square",
    "read_class_folders",
    "read_each",
    "split_home",
    "squared",
]

Squaring = Literal["crop", "squash"]
_Item = TypeVar("_Item")
_Found = TypeVar("_Found")

ARRAYS_AT_ONCE = 4096
"""Images of an array that are read at a time."""


@dataclass(frozen=True)
class ClassFolders:
    """The images of one domain.

    Args:
        images: square images, uint8.
        labels: index of each image's class among the classes of the training folder.
        failed: files that could not be read, with the reasons.
        digest: hash of the names and sizes of the files, to recognise the set.
    """

    images: UInt8[Tensor, "N 3 S S"]
    labels: Int[Tensor, " N"]
    failed: tuple[tuple[Path, str], ...]
    digest: str


def class_names(folder: Path | Part, wanted: Sequence[str] | None = None) -> tuple[str, ...]:
    """List the classes of a training folder: its subfolders with images, sorted.

    Args:
        folder: folder with a subfolder for each class, or a part of a benchmark.
        wanted: names of the classes to use; None uses all.

    Raises:
        FileError: no folder, no images, or fewer than two classes.
        ConfigError: a wanted class does not exist.
    """
    listed = folder.read() if isinstance(folder, Part) else list_images(folder)
    found = sorted({name for name in listed.classes if name})
    if unknown := sorted(set(wanted or ()) - set(found)):
        raise ConfigError(f"{folder} has no class {', '.join(unknown)}; it has {', '.join(found) or 'none'}.")
    names = [name for name in found if wanted is None or name in wanted]
    if len(names) < 2:
        raise FileError(
            f"{folder} needs images in two or more folders, one for each class, got {len(names)} "
            f"({', '.join(names) or 'images outside of folders only'})."
        )
    return tuple(names)


def read_class_folders(
    folder: str | Path | Part,
    classes: Sequence[str],
    side: int,
    *,
    fit: Squaring = "crop",
    limit: int | None = None,
    foreign: bool = False,
    most_bytes: int = 4 * 2**30,
    threads: int = 1,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> ClassFolders:
    """Read the images of all classes, in every format that `styleaug.io.files` knows.

    Args:
        folder: folder with a subfolder for each class, or a part of a benchmark; any of `classes` may be
            missing.
        classes: names of the classes; the labels are indices of this list.
        side: side of the squares in pixels.
        fit: `"crop"` resizes the short side to `side` and crops the middle; `"squash"` distorts.
        limit: largest number of images per class, evenly spread over the sorted names; None reads all.
        foreign: whether to ignore other classes; False makes them an error.
        most_bytes: largest size of the images in memory, in bytes; more is an error.
        threads: number of threads that decode.
        report: called with the number of images read and the number in all.

    Raises:
        FileError: no folder, none of the classes, too many images, or no image that can be read.
        ConfigError: the folder has classes that are not in the list.
    """
    if fit not in get_args(Squaring):
        raise ConfigError(f"fit must be one of {', '.join(get_args(Squaring))}, got {fit!r}.")
    listed = folder.read() if isinstance(folder, Part) else list_images(folder)
    others = sorted(set(listed.classes) - set(classes))
    if others and not foreign:
        named = ", ".join(name or "images outside of folders" for name in others[:5])
        raise ConfigError(
            f"{folder} has classes that are not trained on: {named}. Rename them as {', '.join(classes)}, or "
            "name the classes to use (--classes)."
        )
    by_class = [[row for row, name in enumerate(listed.classes) if name == label] for label in classes]
    rows = [row for found in by_class for row in evenly_spaced(found, limit)]
    if not rows:
        raise FileError(f"{folder} has no image of {', '.join(classes)}; give a folder per class.")
    check_memory(str(folder), len(rows), side, 3, most_bytes)
    if isinstance(listed, Arrays):
        labels = torch.tensor([classes.index(listed.classes[row]) for row in rows])
        digest = files_digest([f"{file.name} {len(rows)}" for file in listed.files], listed.files)
        return ClassFolders(squares_of(listed, rows, side, fit, report), labels, (), digest)
    paths = [listed.paths[row] for row in rows]
    images, failed = read_each(
        paths, lambda path: squared(to_float(read_pixels(path, short_side=side)), side, fit), threads, report
    )
    kept = [index for index in range(len(paths)) if images[index] is not None]
    if not kept:
        raise FileError(f"none of the {len(paths)} images of {folder} can be read; first: {failed[0][1]}")
    labels = torch.tensor([classes.index(listed.classes[rows[index]]) for index in kept])
    names = names_of(folder, listed, [rows[index] for index in kept])
    pixels = torch.stack([image for image in images if image is not None])
    digest = files_digest(names, [paths[index] for index in kept])
    return ClassFolders(pixels, labels, (*listed.skipped, *failed), digest)


def names_of(folder: str | Path | Part, listed: ImageList, rows: list[int]) -> tuple[str, ...]:
    """Return the names by which images of a folder or of a benchmark are known again."""
    if isinstance(folder, Part):
        return tuple(listed.keys[row] for row in rows)
    return tuple(str(listed.paths[row].relative_to(folder)) for row in rows)


def squares_of(
    arrays: Arrays, rows: list[int], side: int, fit: Squaring, report: Callable[[int, int], None]
) -> UInt8[Tensor, "N 3 S S"]:
    """Return images of arrays as squares, some at a time."""
    found = torch.empty(len(rows), 3, side, side, dtype=torch.uint8)
    for start in range(0, len(rows), ARRAYS_AT_ONCE):
        some = np.ascontiguousarray(arrays.images[rows[start : start + ARRAYS_AT_ONCE]])
        images = torch.from_numpy(some).permute(0, 3, 1, 2)
        if images.shape[-2:] != (side, side):
            images = torch.stack([squared(to_float(image[None]), side, fit) for image in images])
        found[start : start + len(some)] = images
        report(start + len(some), len(rows))
    return found


def check_memory(source: Path | str, count: int, side: int, channels: int, most_bytes: int) -> None:
    """Check that images and masks fit into the memory.

    Raises:
        FileError: they are too large.
    """
    needed = count * channels * side * side
    if needed > most_bytes:
        raise FileError(
            f"{source}: {count} images of {side} x {side} take {needed / 2**30:.1f} GiB, more than "
            f"{most_bytes / 2**30:.1f}; lower the side, limit the images, or allow more memory."
        )


def evenly_spaced(rows: list[_Item], limit: int | None) -> list[_Item]:
    """Return the rows, or `limit` of them at equal distances."""
    if limit is None or len(rows) <= limit:
        return rows
    return [rows[index * len(rows) // limit] for index in range(limit)]


def files_digest(names: Sequence[str], paths: Sequence[Path]) -> str:
    """Hash the names and sizes of files."""
    sizes = [path.stat().st_size for path in paths]
    return hashlib.blake2b(repr((names, sizes)).encode(), digest_size=8).hexdigest()


def read_each(
    items: Sequence[_Item],
    read: Callable[[_Item], _Found],
    threads: int,
    report: Callable[[int, int], None],
    path_of: Callable[[_Item], Path] = lambda item: Path(str(item)),
) -> tuple[list[_Found | None], list[tuple[Path, str]]]:
    """Read files in parallel; None for unusable files, with the reasons in the second list.

    Args:
        items: paths, or what else `read` takes.
        read: function that reads one item.
        threads: number of threads.
        report: called with the number of items read and the number in all.
        path_of: function that returns the path to name for an item that fails.
    """
    results: list[_Found | None] = []
    failed: list[tuple[Path, str]] = []

    def read_one(item: _Item) -> _Found | Exception:
        try:
            return read(item)
        except Exception as error:  # one bad image must not end a run
            return error

    with ThreadPoolExecutor(max(1, threads)) as pool:
        for item, found in zip(items, pool.map(read_one, items), strict=True):
            if isinstance(found, Exception):
                failed.append((path_of(item), reason_of(path_of(item), found)))
            results.append(None if isinstance(found, Exception) else found)
            report(len(results), len(items))
    return results, failed


def squared(images: Float[Tensor, "1 C H W"], side: int, fit: Squaring) -> UInt8[Tensor, "3 S S"]:
    """Return an image in [0, 1] as a square RGB image with 8 bits."""
    images = middle_square(images) if fit == "crop" else images
    if images.shape[-2:] != (side, side):
        images = F.interpolate(images, size=(side, side), mode="bilinear", antialias=True)
    return (images.clamp(0, 1) * 255).round().byte().expand(-1, 3, -1, -1)[0].contiguous()


def middle_square(images: Shaped[Tensor, "*B H W"]) -> Shaped[Tensor, "*B S S"]:
    """Return the middle square of images."""
    height, width = images.shape[-2:]
    short = min(height, width)
    top, left = (height - short) // 2, (width - short) // 2
    return images[..., top : top + short, left : left + short]


def split_home(
    labels: Int[Tensor, " N"],
    seed: int,
    *,
    held_out: float = 0.2,
    per_class: int | None = None,
    balanced: bool = False,
) -> tuple[Int[Tensor, " T"], Int[Tensor, " H"]]:
    """Draw the rows for training, class by class; return them and the others as the home test.

    Args:
        labels: labels of all rows.
        seed: seed of the draw.
        held_out: least share of each class that is kept for the test; 0 trains on all.
        per_class: number of training images of each class; images of smaller classes are repeated.
        balanced: repeat images of smaller classes up to the size of the largest.

    Raises:
        ConfigError: a class is too small to hold out images.
    """
    rng = torch.Generator().manual_seed(seed)
    counts = Counter(labels.tolist())
    train, test = [], []
    for label in sorted(counts):
        rows = (labels == label).nonzero().squeeze(1)
        rows = rows[torch.randperm(len(rows), generator=rng)]
        taken = len(rows) - math.ceil(held_out * len(rows) - 1e-9)
        taken = taken if per_class is None else min(per_class, taken)
        if taken < 1 or (held_out > 0 and taken == len(rows)):
            of_class = f"class {label} has" if len(counts) > 1 else "there are"
            raise ConfigError(
                f"{of_class} {len(rows)} images, too few to hold {held_out:g} of them out; "
                "add images, or name a home test."
            )
        train.append(rows[:taken])
        test.append(rows[taken:])
    most = per_class or (max(map(len, train)) if balanced else 0)
    train = [rows.repeat(-(-most // len(rows)))[:most] if len(rows) < most else rows for rows in train]
    return torch.cat(train), torch.cat(test)
