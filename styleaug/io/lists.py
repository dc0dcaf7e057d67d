"""List the images of a folder or of a CSV or TSV file, with class and key."""

import csv
from dataclasses import dataclass, replace
from pathlib import Path

from styleaug.errors import FileError
from styleaug.io.files import list_image_files, stem_of
from styleaug.io.ome_zarr import is_zarr
from styleaug.io.paths import check_path, check_regular

__all__ = ["ImageList", "list_images"]

LISTS = {".csv": ",", ".tsv": "\t"}


@dataclass(frozen=True)
class ImageList:
    """Paths of images, class, pair key and mask of each, and the files that `Listing` left out."""

    paths: tuple[Path, ...]
    classes: tuple[str, ...]
    keys: tuple[str, ...]
    skipped: tuple[tuple[Path, str], ...] = ()
    left_out: str = ""
    masks: tuple[Path | None, ...] = ()
    """Masks that a list names, which need not exist; empty without a column for them."""
    splits: tuple[str, ...] = ()
    """The different values of a list's column `split`, sorted; an empty one counts beside others."""
    groups: tuple[str, ...] = ()
    """The same of the column `group`, if some images share one."""

    def __len__(self) -> int:
        return len(self.paths)

    def at(self, rows: list[int]) -> "ImageList":
        """Return the list with only these rows, in this order."""
        return replace(
            self,
            paths=tuple(self.paths[row] for row in rows),
            classes=tuple(self.classes[row] for row in rows),
            keys=tuple(self.keys[row] for row in rows),
            masks=tuple(self.masks[row] for row in rows) if self.masks else (),
        )


def list_images(source: str | Path, *, absent: bool = False) -> ImageList:
    """List the images of a folder, or those that a CSV or TSV file names.

    In a folder, the first folder below it is an image's class, and its path without suffix its key. A
    list has a header with the column `path` (relative to the list), and may have `class`, `key` and `mask`.

    Args:
        source: the folder or list.
        absent: keep images of a list that are not there; False makes them an error.

    Raises:
        FileError: the source is missing or has no images, or the list is invalid.
    """
    source = check_path(source)
    if source.suffix.lower() in LISTS and not source.is_dir():
        return read_list(source, absent=absent)
    found = list_image_files(source)
    root = source.parent if is_zarr(source) else source
    inside = [path.relative_to(root) for path in found.files]
    classes = tuple(path.parts[0] if len(path.parts) > 1 else "" for path in inside)
    keys = tuple(str(path.with_name(stem_of(path))) for path in inside)
    return ImageList(tuple(found.files), classes, keys, tuple(found.skipped), found.left_out())


def read_list(path: Path, *, absent: bool = False) -> ImageList:
    """Read a CSV or TSV list of images."""
    check_regular(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file, delimiter=LISTS[path.suffix.lower()])
            rows, header = list(table), table.fieldnames or []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FileError(f"cannot read the list {path}: {error}. It must be text in UTF-8.") from None
    if "path" not in header:
        raise FileError(f"{path} must have a header with the column 'path', got {str(header)[:80]}.")
    if not rows or not all(row["path"] for row in rows):
        raise FileError(f"{path} must name an image in the column 'path' of each row.")
    paths = tuple(path.parent / row["path"] for row in rows)
    missing = [] if absent else [entry for entry in paths if not is_there(entry)]
    if missing:
        first = str(missing[0])[:200]
        raise FileError(f"{path} names {len(missing)} files that are not there; the first: {first!r}")
    keys = tuple(row.get("key") or stem_of(Path(row["path"])) for row in rows)
    classes = tuple(row.get("class") or "" for row in rows)
    named = [row.get("mask") for row in rows] if "mask" in header else []
    masks = tuple(path.parent / mask if mask else None for mask in named)
    splits, groups = (different([row.get(name) or "" for row in rows]) for name in ("split", "group"))
    if len(groups) == len(rows):
        groups = ()
    return ImageList(paths, classes, keys, masks=masks, splits=splits, groups=groups)


def different(values: list[str]) -> tuple[str, ...]:
    """Return the different values of a column, sorted; none if all are empty."""
    return tuple(sorted(set(values))) if any(values) else ()


def is_there(path: Path) -> bool:
    """Return True if a file exists; False for names that no file can have."""
    try:
        return path.is_file() or is_zarr(path)
    except (OSError, ValueError):  # too long, or with a NUL
        return False
