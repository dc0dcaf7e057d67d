"""Read studies: the group, class and patient of each image."""

import csv
import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from styleaug.errors import ConfigError
from styleaug.io.dicom import TAGS, has_prefix, read_tags
from styleaug.io.dicom import patient_of as dicom_origin
from styleaug.io.lists import LISTS, list_images

__all__ = ["ALIASES", "Study", "balance_warnings", "modality_of", "origin_of", "read_study"]

FOLDER = "folder"
ALIASES = {
    "site": "InstitutionName",
    "station": "StationName",
    "scanner": "ManufacturerModelName",
    "vendor": "Manufacturer",
    "modality": "Modality",
    "body-part": "BodyPartExamined",
    "field": "MagneticFieldStrength",
    "kernel": "ConvolutionKernel",
}
"""Short names for DICOM tags."""
UNKNOWN = "unknown"
"""Group of files without a folder or tag."""
_CLASS_GAP = 0.1
"""Total variation distance up to which two groups count as having equal shares of classes."""


@dataclass(frozen=True)
class Study:
    """Paths of images, with the group and class of each; "" if there is none."""

    paths: tuple[Path, ...]
    groups: tuple[str, ...]
    classes: tuple[str, ...]
    skipped: tuple[tuple[Path, str], ...] = ()
    """Files of a folder that cannot be used, each with the reason."""
    left_out: str = ""
    """A line about the other files in the folder, or ""."""

    def __len__(self) -> int:
        return len(self.paths)


def read_study(
    source: str | Path | Sequence[Path], *, group_by: str | None = None, class_by: str | None = None
) -> Study:
    """List images with their groups and classes.

    Args:
        source: a folder, a CSV or TSV list with the column `path`, or paths.
        group_by: `"folder"` for the first level of folders below the source; a column of the list; or a DICOM
            tag or one of `ALIASES`, in upper or lower case. None makes one group.
        class_by: `"folder"` for the first level of folders that is not the group's; or a column of the list.
            None means `"folder"` if groups are folders, or a list's column `class`.

    Raises:
        FileError: the source is missing or has no images, or the list is invalid.
        ConfigError: the column or tag does not exist.
    """
    skipped, left_out = (), ""
    if not isinstance(source, str | Path):
        paths, inside, columns = list(source), below(source), {}
    else:
        listed = Path(source).suffix.lower() in LISTS and not Path(source).is_dir()
        found = list_images(source)
        paths, skipped, left_out = list(found.paths), found.skipped, found.left_out
        root = Path(source).parent if listed else Path(source)
        inside = [parts_below(path, root) for path in paths]
        columns = read_columns(Path(source)) if listed else {}
    groups = [""] * len(paths)
    if group_by in columns:
        groups = [name.strip() or UNKNOWN for name in columns[group_by]]
    elif group_by == FOLDER:
        groups = [parts[0] if parts else UNKNOWN for parts in inside]
    elif group_by is not None:
        groups = read_groups(paths, group_by, columns)
    level = 1 if group_by == FOLDER and FOLDER not in columns else 0
    if class_by is None:
        class_by = FOLDER if level else "class"
    elif class_by not in (FOLDER, *columns):
        raise ConfigError(f"class_by must be 'folder' or a column of the list, got {class_by!r}.")
    classes = columns.get(class_by, [""] * len(paths))
    if class_by == FOLDER and FOLDER not in columns:
        classes = [parts[level] if len(parts) > level else "" for parts in inside]
    return Study(tuple(paths), tuple(groups), tuple(classes), skipped, left_out)


def below(paths: Sequence[Path]) -> list[tuple[str, ...]]:
    """Return the folders of each path, without those that all paths share."""
    if not paths:
        return []
    root = Path(os.path.commonpath([Path(path).absolute().parent for path in paths]))
    return [parts_below(Path(path).absolute(), root) for path in paths]


def parts_below(path: Path, root: Path) -> tuple[str, ...]:
    """Return the folders from `root` to a file; () if it lies elsewhere."""
    return path.relative_to(root).parts[:-1] if path.is_relative_to(root) else ()


def read_columns(path: Path) -> dict[str, list[str]]:
    """Read the columns of a CSV or TSV list."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file, delimiter=LISTS[path.suffix.lower()]))
    return {str(name): [row[name] or "" for row in rows] for name in rows[0]}


def read_groups(paths: Sequence[Path], group_by: str, columns: dict[str, list[str]]) -> list[str]:
    """Read a DICOM tag of each file."""
    wanted = ALIASES.get(group_by.lower(), group_by).lower()
    known = wanted in {tag.lower() for tag in TAGS}
    found = [read_tag(path, wanted) for path in paths] if known else []
    if not any(found):
        why = "no file has such a DICOM tag" if known else "this is no column and no tag that may be read"
        raise ConfigError(
            f"cannot group by {group_by!r}: {why}. Group by {', '.join([FOLDER, *columns])}, "
            f"{', '.join(ALIASES)}, or by a tag: {', '.join(TAGS)}."
        )
    return [value or UNKNOWN for value in found]


def read_tag(path: Path, tag: str) -> str:
    """Read one of the tags that do not identify the patient; "" if a file does not have it."""
    try:
        tags = read_tags(path) if is_dicom(path) else {}
    except ConfigError:  # pydicom is missing
        raise
    except Exception:  # the error is reported when the pixels are read
        return ""
    return {name.lower(): value for name, value in tags.items()}.get(tag, "").strip()


def is_dicom(path: Path) -> bool:
    """Return True for a DICOM file, by its first bytes or suffix; old files have no special first bytes."""
    return path.suffix.lower() in (".dcm", ".dicom") or has_prefix(path)


def origin_of(path: Path) -> str:
    """Return a hash of an image's origin: the patient of a DICOM file, else the file.

    The hash is for counting and is never written anywhere.
    """
    if is_dicom(path):
        try:
            return dicom_origin(path)
        except Exception:  # the error is reported when the pixels are read
            pass
    return hashlib.sha256(os.fsencode(os.path.realpath(path))).hexdigest()


def modality_of(path: Path) -> str:
    """Return the modality of a DICOM image, such as CT; "" for other files."""
    return read_tag(path, "modality")


def balance_warnings(study: Study) -> list[str]:
    """Return warnings about groups whose shares of classes differ from those of all images.

    The measure is total variation distance: half the sum of absolute differences, 0 for equal shares and 1
    for no class in common.
    """
    every = shares(study.classes)
    if len(every) < 2:
        return []
    told = []
    for name in sorted(set(study.groups)):
        mine = shares([one for one, group in zip(study.classes, study.groups, strict=True) if group == name])
        gaps = {one: mine.get(one, 0.0) - share for one, share in every.items()}
        distance = 0.5 * sum(map(abs, gaps.values()))
        if distance > _CLASS_GAP:
            worst = max(gaps, key=lambda one: abs(gaps[one]))
            told.append(
                f"group {name!r} has other classes than the rest (total variation distance {distance:.2f}; "
                f"most apart: {worst!r}, {mine.get(worst, 0.0):.0%} of its images, {every[worst]:.0%} of "
                "all). Its style then tells of the class, and a model may learn that instead of the finding: "
                "stylise across groups, and judge by class."
            )
    return told


def shares(names: Sequence[str]) -> dict[str, float]:
    """Return the share of each name."""
    return {name: count / len(names) for name, count in Counter(names).items()}
