"""Known benchmarks by name: `KIND:PATH[:PART]`, in the layout of their archives. Nothing is downloaded.

A benchmark is a set of parts, such as domains or corruptions. As the source of a comparison it brings the
other parts as tests and, where it has one, its own home test. All are read as `ImageList`s, except for those
of CIFAR-10, which are arrays.
"""

import csv
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from styleaug.checks import nearest
from styleaug.errors import ConfigError, FileError
from styleaug.io.files import list_image_files, stem_of
from styleaug.io.lists import ImageList
from styleaug.io.paths import check_regular
from styleaug.robustness.corruptions import CORRUPTIONS

__all__ = ["BENCHMARKS", "HOME", "TRAIN", "Arrays", "Part", "is_benchmark", "parts_named", "source_and_tests"]

HOME, TRAIN = "home", "train"
CIFAR_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"
)  # fmt: skip
"""In the order of their labels."""
CIFAR_ROW = 1 + 3 * 32 * 32
"""Bytes of an image in the binary version of CIFAR-10: its label, then red, green and blue."""
CIFAR_FOLDER = "cifar-10-batches-bin"
PACS = ("photo", "art_painting", "cartoon", "sketch")
PACS_LISTS = ("", "pacs_label", "splits", "Train val splits and h5py files pre-read")
"""Folders for the lists of Li et al.: below the path, the folder of the domains, or its parent."""
SEVERITY_NAMES = ("1", "2", "3", "4", "5")


@dataclass(frozen=True)
class Arrays:
    """Images as arrays, mapped from files."""

    images: np.ndarray
    """`(N, H, W, 3)`, uint8."""
    classes: tuple[str, ...]
    """Of each image."""
    files: tuple[Path, ...]


@dataclass(frozen=True)
class Part:
    """A part of a benchmark on disk, which is read when it is used."""

    kind: str
    path: Path
    name: str

    def __str__(self) -> str:
        return f"{self.kind}:{self.path}:{self.name}"

    def read(self) -> ImageList | Arrays:
        """List the images of this part, with their classes.

        Raises:
            FileError: they are not there, or the files are no such benchmark.
        """
        return BENCHMARKS[self.kind].read(self.path, self.name)


@dataclass(frozen=True)
class Kind:
    """A benchmark's layout, and what to fetch where it is absent."""

    fetch: str
    parts: Callable[[Path], list[str]]
    """Lists the parts at a path."""
    read: Callable[[Path, str], ImageList | Arrays]
    tests: tuple[str, ...] | None = None
    """Parts that are tested on, all of which must be there; None is all that are there."""
    source: str | None = None
    """Part that is trained on if none is named; None where one must be named."""
    homes: Callable[[Path, str], str | None] = lambda path, part: None
    """Finds the part that is the home test of a source."""


def is_benchmark(source: str | Path) -> bool:
    """Return whether a source names a benchmark; a file or folder of that name goes first."""
    return str(source).partition(":")[0] in BENCHMARKS and ":" in str(source) and not Path(source).exists()


def split_name(source: str | Path) -> tuple[str, Path, str | None]:
    """Split `KIND:PATH[:PART]`; the path may have colons where it exists.

    Raises:
        FileError: there is nothing at the path.
    """
    kind, _, rest = str(source).partition(":")
    path, colon, part = rest.rpartition(":")
    if not colon or there(kind, Path(rest)):
        path, part = rest, ""
    if not path or not there(kind, Path(path)):
        raise absent(kind, Path(path or rest))
    return kind, Path(path), part or None


def there(kind: str, path: Path) -> bool:
    """Return whether there is something where a benchmark should be."""
    return (camelyon_folder(path) if kind == "wilds" else path).is_dir()


def absent(kind: str, path: Path, lacks: str = "") -> FileError:
    """Make the error for a benchmark that is not there; it says what to fetch."""
    told = f"{path} {lacks}" if lacks else f"there is no folder {path}"
    return FileError(f"{kind}: {told}. Nothing is downloaded here. Fetch {BENCHMARKS[kind].fetch}")


def parts_named(source: str | Path) -> dict[str, Part]:
    """Return the tests that `KIND:PATH[:PART]` stands for, by name: the part, or all of them.

    Raises:
        FileError: they are not there.
        ConfigError: there is no such part.
    """
    kind, path, part = split_name(source)
    names = tests_at(kind, path) if part is None else [known(kind, path, part)]
    return {name: Part(kind, path, name) for name in names}


def tests_at(kind: str, path: Path) -> list[str]:
    """List the parts that are tested on.

    Raises:
        FileError: some are not there; the mean of the others would be another measure.
    """
    found, wanted = BENCHMARKS[kind].parts(path), BENCHMARKS[kind].tests
    lost = [name for name in wanted or () if name not in found]
    if lost:
        raise absent(kind, path, f"lacks {', '.join(lost)}; those you have can be named: {kind}:{path}:NAME")
    return list(wanted or found)


def known(kind: str, path: Path, part: str) -> str:
    """Check that a benchmark has a part.

    Raises:
        ConfigError: it has not.
    """
    found = BENCHMARKS[kind].parts(path)
    if part not in found:
        has = ", ".join(found)
        raise ConfigError(f"{kind}:{path} has no part {part!r}.{nearest(part, found)} It has {has}.")
    return part


def source_and_tests(source: str | Path) -> tuple[Part, dict[str, Part]]:
    """Return what is trained on, and the tests that come with it: its home test, and the other parts.

    Raises:
        FileError: they are not there.
        ConfigError: no part is named where one must be, or the benchmark has tests alone.
    """
    kind, path, part = split_name(source)
    layout = BENCHMARKS[kind]
    if kind == "imagenetc":
        raise ConfigError(
            "imagenetc has tests alone. Train on a folder of ImageNet's training images, and give "
            f"--test imagenetc:{path}."
        )
    if part is None and layout.source is None:
        some = ", ".join(layout.parts(path))
        raise ConfigError(f"name what is trained on: {kind}:{path}:PART, with one of {some}.")
    if part is not None and layout.source == TRAIN:
        raise ConfigError(f"{kind}:{path}:{part} is for tests (--test). To train, give {kind}:{path}.")
    name = known(kind, path, part) if part is not None else str(layout.source)
    home = layout.homes(path, name)
    tests = {other: Part(kind, path, other) for other in tests_at(kind, path) if other != name}
    trained = f"{name} train" if kind == "pacs" and home else name
    return Part(kind, path, trained), ({HOME: Part(kind, path, home)} if home else {}) | tests


# Folders of folders: PACS, DomainBed, ImageNet-C.


def folders_in(path: Path) -> list[str]:
    """List the folders inside a folder, sorted; hidden ones are left out."""
    return sorted(entry.name for entry in path.iterdir() if entry.is_dir() and entry.name[0] != ".")


def folder_list(path: Path, depth: int = 0) -> ImageList:
    """List the images of a folder; the class is the folder `depth` levels below it."""
    found = list_image_files(path)
    inside = [(file, file.relative_to(path)) for file in found.files]
    kept = [(file, short) for file, short in inside if len(short.parts) > depth + 1]
    if not kept:
        raise FileError(f"{path} has no images in folders of classes.")
    return ImageList(
        tuple(file for file, _ in kept),
        tuple(short.parts[depth] for _, short in kept),
        tuple(str(short.with_name(stem_of(short))) for _, short in kept),
        tuple(found.skipped),
    )


def domains_in(path: Path) -> list[str]:
    """List the domains of a folder DOMAIN/CLASS/IMAGE: those with two or more classes."""
    found = [name for name in folders_in(path) if len(folders_in(path / name)) > 1]
    if len(found) < 2:
        raise absent("domainbed", path, "has fewer than two folders with folders of classes")
    return found


def pacs_folder(path: Path) -> Path:
    """Find the folder of the four domains: the path itself, or one of the usual ones below it."""
    for below in ("", "PACS", "kfold", "pacs_data", "images"):
        if all((path / below / domain).is_dir() for domain in PACS):
            return path / below
    raise absent("pacs", path, f"does not have the folders {', '.join(PACS)}")


def pacs_list(path: Path, domain: str, split: str) -> Path | None:
    """Find the list of Li et al. for a domain: `photo_train_kfold.txt`, or `crossval` or `test`."""
    folder = pacs_folder(path)
    places = [place / below for place in (path, folder, folder.parent) for below in PACS_LISTS]
    found = (place / f"{domain}_{split}_kfold.txt" for place in places)
    return next((file for file in found if file.is_file()), None)


def pacs_home(path: Path, domain: str) -> str | None:
    """Return the validation images of a domain, if both lists of Li et al. are there."""
    lists = [pacs_list(path, domain, split) for split in ("train", "crossval")]
    return f"{domain} crossval" if all(lists) else None


def read_pacs(path: Path, part: str) -> ImageList:
    """List a domain of PACS, or the images of one of its lists."""
    domain, _, split = part.partition(" ")
    folder = pacs_folder(path)
    if not split:
        return folder_list(folder / domain)
    lines = check_regular(pacs_list(path, domain, split) or path).read_text(encoding="utf-8").splitlines()
    files = [folder / line.rpartition(" ")[0] for line in lines if line.strip()]
    lost = [file for file in files if not file.is_file()]
    if lost or not files:
        raise absent("pacs", path, f"lacks {len(lost)} of {len(files)} images of its list {part!r}")
    keys = tuple(str(file.relative_to(folder).with_suffix("")) for file in files)
    return ImageList(tuple(files), tuple(file.parent.name for file in files), keys)


def imagenetc_folders(path: Path) -> Mapping[str, Path]:
    """Find the folders of the corruptions: below the path, or one level deeper, as in the archives."""
    places = [path / name for name in folders_in(path)]
    groups = [place for place in places if place.name not in CORRUPTIONS]
    places += [group / name for group in groups for name in folders_in(group)]
    found = {place.name: place for place in places if all((place / step).is_dir() for step in SEVERITY_NAMES)}
    return {name: found[name] for name in sorted(found)}


def read_imagenetc(path: Path, part: str) -> ImageList:
    """List one corruption in all severities: CORRUPTION/SEVERITY/CLASS/IMAGE."""
    folder = imagenetc_folders(path)[part]
    lists = [folder_list(folder / severity) for severity in SEVERITY_NAMES]
    return ImageList(
        tuple(file for each in lists for file in each.paths),
        tuple(name for each in lists for name in each.classes),
        tuple(f"{step}/{key}" for step, each in zip(SEVERITY_NAMES, lists, strict=True) for key in each.keys),
    )


# CIFAR-10.


def cifar_parts(path: Path) -> list[str]:
    """List the corruptions of CIFAR-10-C."""
    if not (path / "labels.npy").is_file():
        raise absent("cifar10c", path, "has no labels.npy")
    return sorted(file.stem for file in path.glob("*.npy") if file.stem != "labels")


def cifar_binary(path: Path, name: str) -> Path:
    """Find a file of the binary version of CIFAR-10: in the path, or in its folder there or beside it."""
    for place in (path, path / CIFAR_FOLDER, path.parent / CIFAR_FOLDER):
        if (place / name).is_file():
            return place / name
    raise absent(
        "cifar10c", path, f"has no training images, and there is no {CIFAR_FOLDER}/{name} in it or beside it"
    )


def read_cifar(path: Path, part: str) -> Arrays:
    """Map a corruption in all severities, or the clean images of CIFAR-10."""
    if part in (TRAIN, HOME):
        batches = ["test_batch"] if part == HOME else [f"data_batch_{number}" for number in range(1, 6)]
        files = tuple(cifar_binary(path, f"{name}.bin") for name in batches)
        rows = np.concatenate([cifar_rows(file) for file in files])
        pixels = rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        return Arrays(pixels, cifar_names(files[0], rows[:, 0]), files)
    files = path / f"{part}.npy", path / "labels.npy"
    images, labels = (load_array(file) for file in files)
    if images.ndim != 4 or images.shape[1:] != (32, 32, 3) or images.dtype != np.uint8 or not len(images):
        raise FileError(f"{files[0]} must hold uint8 (N, 32, 32, 3), got {images.dtype} {images.shape}.")
    if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
        raise FileError(
            f"{files[1]} must hold one integer for each of the {len(images)} images of {files[0].name}, got "
            f"{labels.dtype} {labels.shape}."
        )
    return Arrays(images, cifar_names(files[1], labels), files)


def cifar_rows(file: Path) -> np.ndarray:
    """Map a file of the binary version: `(N, 3073)`."""
    data = np.memmap(check_regular(file), dtype=np.uint8, mode="r")
    if len(data) % CIFAR_ROW:
        raise FileError(f"{file} is cut off: {len(data)} bytes are no multiple of {CIFAR_ROW}.")
    return data.reshape(-1, CIFAR_ROW)


def cifar_names(file: Path, labels: np.ndarray) -> tuple[str, ...]:
    """Return the class of each label."""
    if labels.min(initial=0) < 0 or labels.max(initial=0) >= len(CIFAR_CLASSES):
        raise FileError(f"{file} has labels outside of 0 to 9; this is not CIFAR-10.")
    return tuple(CIFAR_CLASSES[label] for label in labels.tolist())


def load_array(file: Path) -> np.ndarray:
    """Map an array; pickled objects are refused."""
    try:
        return np.load(check_regular(file), mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise FileError(f"cannot read {file}: {error}") from None


# WILDS.


def camelyon_folder(path: Path) -> Path:
    """Return the folder of `ROOT/camelyon17`, as WILDS names it, or the path itself."""
    versioned = path.with_name("camelyon17_v1.0")
    return versioned if path.name == "camelyon17" and versioned.is_dir() else path


CAMELYON_SPLITS = {"0": "train", "1": "id_val"}
"""Splits in the table, of the hospitals that are trained on."""
CAMELYON_CENTERS = {"1": "val", "2": "test"}
"""Splits that are all images of one hospital."""
CAMELYON_COLUMNS = ("patient", "node", "x_coord", "y_coord", "tumor", "center", "split")


def read_camelyon(path: Path, part: str) -> ImageList:
    """List a split of Camelyon17-WILDS from its table; classes are `normal` and `tumor`."""
    folder = camelyon_folder(path)
    table = folder / "metadata.csv"
    if not table.is_file():
        raise absent("wilds", folder, "has no metadata.csv")
    paths, classes = [], []
    with table.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        if lost := [name for name in CAMELYON_COLUMNS if name not in (rows.fieldnames or [])]:
            raise FileError(f"{table} has no column {', '.join(lost)}; it is not that of Camelyon17-WILDS.")
        for row in rows:
            if part != (CAMELYON_CENTERS.get(row["center"]) or CAMELYON_SPLITS.get(row["split"])):
                continue
            slide = f"patient_{row['patient'].zfill(3)}_node_{row['node']}"
            name = f"patch_{slide}_x_{row['x_coord']}_y_{row['y_coord']}.png"
            paths.append(folder / "patches" / slide / name)
            classes.append("tumor" if row["tumor"] == "1" else "normal")
    if not paths:
        raise FileError(f"{table} has no image in the split {part!r}.")
    if not paths[0].is_file():
        raise absent("wilds", folder, f"lacks {paths[0].relative_to(folder)}")
    return ImageList(tuple(paths), tuple(classes), tuple(str(file.relative_to(folder)) for file in paths))


def camelyon_parts(path: Path) -> list[str]:
    """List the splits."""
    if path.name.partition("_v")[0] != "camelyon17":
        raise ConfigError(f"of WILDS only camelyon17 can be read, got {path.name!r}: wilds:ROOT/camelyon17.")
    return [*CAMELYON_SPLITS.values(), *CAMELYON_CENTERS.values()]


BENCHMARKS = {
    "wilds": Kind(
        "camelyon17_v1.0 from https://wilds.stanford.edu/downloads, and name it wilds:ROOT/camelyon17.",
        camelyon_parts,
        read_camelyon,
        tests=tuple(CAMELYON_CENTERS.values()),
        source=TRAIN,
        homes=lambda path, part: "id_val",
    ),
    "cifar10c": Kind(
        "CIFAR-10-C.tar from https://zenodo.org/records/2535967. To train, fetch the binary version of "
        f"CIFAR-10, too, whose folder is {CIFAR_FOLDER}, from https://www.cs.toronto.edu/~kriz/cifar.html.",
        cifar_parts,
        read_cifar,
        tests=CORRUPTIONS,
        source=TRAIN,
        homes=lambda path, part: HOME,
    ),
    "imagenetc": Kind(
        "blur, digital, noise and weather from https://zenodo.org/records/2235448, and unpack them into one "
        "folder.",
        lambda path: list(imagenetc_folders(path)),
        read_imagenetc,
        tests=CORRUPTIONS,
    ),
    "pacs": Kind(
        "PACS as https://github.com/facebookresearch/DomainBed fetches it, and name its folder.",
        lambda path: list(PACS) if pacs_folder(path) else [],
        read_pacs,
        source=PACS[0],
        homes=pacs_home,
    ),
    "domainbed": Kind(
        "VLCS, OfficeHome, TerraIncognita or DomainNet as https://github.com/facebookresearch/DomainBed "
        "fetches them, and name the folder of one.",
        domains_in,
        lambda path, part: folder_list(path / part),
    ),
}
"""Benchmarks by name."""
