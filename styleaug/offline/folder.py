"""Stylise a folder of images or shards into another one: same tree, same file types, with a manifest."""

import hashlib
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path, PurePosixPath
from tempfile import NamedTemporaryFile
from typing import Any, Literal, get_args

import torch
from torch.utils.data import DataLoader, Dataset

from styleaug.bank import StyleBank
from styleaug.checks import check_count, check_seed
from styleaug.errors import ConfigError, FileError, StyleAugError
from styleaug.generators.base import AbstractGenerator
from styleaug.io.atomic import PART, remove_parts
from styleaug.io.files import SUFFIXES, series_of, suffix_of
from styleaug.io.listing import Listing, list_files
from styleaug.io.paths import check_path
from styleaug.io.scan import parse_window
from styleaug.io.shards import SHARDS, open_shard
from styleaug.offline import ray_cluster as cluster
from styleaug.offline.copies import Copier, Format, Line, Unit
from styleaug.offline.manifest import Applied, Manifest
from styleaug.samplers import Sampler
from styleaug.transforms.augment import WITHIN_BATCH, StyleAugment
from styleaug.transforms.params import STRENGTH, check_strength
from styleaug.weights import find_styles, load_generator

__all__ = ["Applied", "Engine", "apply_folder"]

Engine = Literal["local", "ray"]

UNIT_COPIES = 16
"""How many copies of a folder's images one worker makes at a time."""

KINDS: dict[str, Format] = {
    **dict.fromkeys(SUFFIXES, "images"),
    ".parquet": "parquet",
    ".tar": "webdataset",
}


def apply_folder(
    source: str | Path,
    out: str | Path,
    *,
    bank: str | Path | StyleBank | None = None,
    generator: str | Path | AbstractGenerator | None = None,
    copies: int = 1,
    strength: float | Sequence[float] = STRENGTH,
    sampler: Sampler = "uniform",
    keep_luminance: bool = False,
    preserve: float | None = None,
    seed: int = 0,
    workers: int = 0,
    report: Callable[[int, int], None] = lambda done, total: None,
    engine: Engine = "local",
    address: str | None = None,
    format: Format | None = None,
    column: str = "image",
    window: str | None = None,
) -> Applied:
    """Write stylised copies of all images below `source` to `out`, and go on where a run stopped.

    A copy's style depends on the seed, its name and its number only: not on the engine, the workers, the
    order or what else is in the folder. `out/manifest.jsonl` holds the settings in its first line, then
    one line for each file: source, output, strength, and the rows of the bank with their shares; for
    a shard these stand in `images`, one for each image in their order. Lines are added as files are
    finished; on a new call with the same settings, what the manifest names is skipped. A line also has
    stamps of the source and of the output: one that was replaced, cut short or removed is done again.

    Links are followed. An output has the type of its source's content, whatever the suffix says. Images that
    cannot be read, and links that lead nowhere, are in the result; so is a line on other files.

    TIFF files of more than 16 million pixels are styled tile by tile, in less than 2 GB, if the generator
    allows it; see `stylise_slide`.

    Shards keep their names, and all but the images in them: labels, members, columns, order. An image
    keeps its format. Images are stylised on the GPU if this process has one, else, and in worker
    processes, on the CPU.

    Under `torchrun` each process does its share, and has a manifest of its own: read all that match
    `manifest*.jsonl`. On a Ray cluster the machines share a file system in which `source` and
    `out` have the same paths, and have styleaug installed; bank and generator are sent to them.

    Args:
        source: searched with all folders below it for images, Parquet files or WebDataset's tar files,
            or one such shard; never written to.
        out: made if it is missing; must lie outside `source`.
        bank: a shipped name, a path, a run folder, or a `StyleBank`; see `StyleAugment`.
        generator: see `StyleAugment`.
        copies: for each image; `photo.jpg` becomes `photo.jpg`, or `photo-1.jpg`, `photo-2.jpg`, ...; in
            tar files so do the keys, and in Parquet files rows are repeated.
        strength: see `StyleAugment`.
        sampler: see `StyleAugment`.
        keep_luminance: see `StyleAugment`.
        preserve: see `StyleAugment`; not for images that are done by tiles.
        seed: of all draws.
        workers: processes; 0 works in this one. With Ray, actors; 0 takes one for each core, or four
            for each GPU if there are some.
        report: called with the number of files done and in all; of several processes, by the first.
        engine: `"ray"` runs on Ray Data and goes on when workers die.
        address: of a Ray cluster: `"auto"`, `"ray://host:port"`. None takes the one that this process or
            `RAY_ADDRESS` is connected to, else starts one on this machine and ends it again.
        format: `"images"`, `"parquet"` or `"webdataset"`, where a folder holds several.
        column: Parquet's column of encoded images. In tar files, where samples hold several images,
            the extension of the one to stylise; `"image"` takes the first of jpg, jpeg, png, webp, tif,
            tiff, bmp.
        window: which values of images with more than 8 bits are shown as black and white: `"40/400"`
            (centre/width), `"auto"` or `"dicom"`; see `open_image`. What lies beyond keeps its distance to
            the window. DICOM series, volumes and stacks keep their type, header and true values; the
            frames of a volume share one style. Shards are read as 8 bits.

    Raises:
        FileError: no images, `out` in `source` or leading there by a link, another run is at work in `out`,
            or it cannot be written to. Images and shards that cannot be read, stylised or written do not stop
            the run; they are listed in the result.
        ConfigError: `out` holds a run with other settings, `source` holds several formats, there is no
            such column, Ray or pyarrow is missing, or there is no cluster at `address`.

    Example:
        >>> apply_folder("train-shards", "train-styled", bank="art", engine="ray")  # doctest: +SKIP
    """
    source, out = check_path(source), check_path(out)
    copies, workers = check_count("copies", copies), check_count("workers", workers, least=0)
    seed, strength = check_seed(seed), check_strength(strength)
    if engine not in get_args(Engine):
        raise ConfigError(f"engine must be one of {', '.join(get_args(Engine))}, got {engine!r}.")
    if Path(os.path.realpath(out)).is_relative_to(os.path.realpath(source)):
        raise FileError(f"{out} lies in {source}; write the copies to a folder outside it.")
    parse_window(window)
    format, root, names, listing = find_inputs(source, format)
    if isinstance(bank, str) and bank == WITHIN_BATCH:
        raise ConfigError('bank="batch" takes styles from other images of a batch; here there is none.')
    known, maker = find_styles(bank, generator)
    stylizer = StyleAugment(
        known,
        # Loaded, so that it can be sent to machines that do not have its file.
        generator=maker if isinstance(maker, AbstractGenerator) else load_generator(maker),
        p=1.0,
        strength=strength,
        sampler=sampler,
        keep_luminance=keep_luminance,
        preserve=preserve,
    )
    rank, world = place_among(engine)
    copier = Copier(
        stylizer,
        root,
        out,
        format=format,
        copies=copies,
        seed=seed,
        column=column,
        device=_device_of(workers),
        window=window,
    )
    units = plan(copier, names)
    _check_places(copier, names, listing)
    if format != "images":
        check_column(root, names, column)
    with Manifest(out, settings_of(copier), rank, world) as manifest:
        remove_parts(out, keep=manifest.of_others(units))
        units, clashes = without_clashes(units, copier)
        mine = units[rank::world]
        todo, result = manifest.compare(mine, root, copier.outputs)
        if rank == 0:
            result.failed += listing.skipped + clashes
            result.left_out = listing.left_out()
        total = sum(len(unit.wanted) for unit in mine)
        left = {output for unit in todo for output in unit.wanted}
        with closing(_run(todo, copier, engine, workers, address)) as lines:
            for line in lines:
                done = [line["output"]] if "output" in line else copier.outputs(line["source"])
                left.difference_update(done)
                manifest.add(line, root, result)
                if rank == 0:
                    report(total - len(left), total)
    if engine == "ray":
        remove_parts(out)  # of workers that died
    return result


def find_inputs(source: Path, format: Format | None) -> tuple[Format, Path, list[str], Listing]:
    """Tell what a folder or shard holds, the folder that names are below, the names, and what is left out."""
    if source.suffix.lower() in SHARDS and source.is_file():
        kind = KINDS[source.suffix.lower()]
        if format not in (None, kind):
            raise ConfigError(f"{source} is of format {kind}, not {format}.")
        return kind, source.parent, [source.name], Listing()
    found: dict[Format, list[Path]] = {}
    listing = list_files(source, KINDS)
    for path in listing.files:
        found.setdefault(KINDS[suffix_of(path)], []).append(path)
    if not found or (format and format not in found):
        wanted = "image" if format in (None, "images") else f"{format} file"
        known = " ".join(sorted(KINDS))
        raise FileError(f"no {wanted} in {source}; known file types are {known}.{listing.reasons()}")
    if not format and len(found) > 1:
        raise ConfigError(f"{source} holds {' and '.join(sorted(found))}; name one as format.")
    kind = format or next(iter(found))
    listing.others.update(suffix_of(path) for other in found if other != kind for path in found[other])
    return kind, source, [path.relative_to(source).as_posix() for path in found[kind]], listing


def check_column(root: Path, names: list[str], column: str) -> None:
    """Look for one shard that has the column: a wrong name is better known before the run."""
    wrong = None
    for name in names:
        try:
            with open_shard(root / name, column):
                return
        except ConfigError as error:
            wrong = wrong or error
        except Exception:  # named in the result
            continue
    if wrong:
        raise wrong


def plan(copier: Copier, names: list[str]) -> list[Unit]:
    """Divide the work, by the inputs only."""
    return [
        Unit(tuple(part), frozenset(output for name in part for output in copier.outputs(name)), series)
        for part, series in divide(copier, names)
    ]


def _check_places(copier: Copier, names: list[str], listing: Listing) -> None:
    """Make sure that no output lands on an input or among inputs, whatever links there are on either side.

    Raises:
        FileError: naming the first output that does.
    """
    inputs = {os.path.realpath(copier.source / name) for name in names}
    places: dict[Path, Path] = {}
    for output in (copier.out / output for name in names for output in copier.outputs(name)):
        if output.parent not in places:
            place = places[output.parent] = Path(os.path.realpath(output.parent))
            if not listing.folders.isdisjoint(map(str, (place, *place.parents))):
                raise FileError(
                    f"{output.parent} leads into {copier.source}; write the copies to another folder."
                )
        real = places[output.parent] / output.name
        if str(real) in inputs or (os.path.islink(real) and os.path.realpath(real) in inputs):
            raise FileError(f"{output} would overwrite an input; write the copies to another folder.")


def without_clashes(units: list[Unit], copier: Copier) -> tuple[list[Unit], list[tuple[Path, str]]]:
    """Leave out outputs that cannot stand beside others, and name their sources.

    That is a file where another output needs a folder; and, where the file system of `out` takes capital
    letters for small ones, a name that differs from another in those only.
    """
    of = {output: name for unit in units for name in unit.names for output in copier.outputs(name)}
    folders = {str(folder) for output in of for folder in PurePosixPath(output).parents}
    alike: dict[str, list[str]] = {}
    for output in of:
        alike.setdefault(unicodedata.normalize("NFC", output).casefold(), []).append(output)
    twins = {output: same[0] for same in alike.values() for output in same[1:]}
    blocked = folders.intersection(of)
    bad = {output: f"{copier.out / output} has to be a folder, for other copies" for output in blocked}
    if twins and is_caseless(copier.out):
        bad |= {
            output: f"{copier.out} holds {output} and {other} for one name" for output, other in twins.items()
        }
    if not bad:
        return units, []
    kept = [replace(unit, wanted=unit.wanted.difference(bad)) for unit in units]
    told = [
        (copier.source / of[output], f"{copier.source / of[output]}: {why}; rename it.")
        for output, why in bad.items()
    ]
    return [unit for unit in kept if unit.wanted], told


def is_caseless(folder: Path) -> bool:
    """Tell whether a folder takes capital letters for small ones in the names of its files."""
    with NamedTemporaryFile(dir=folder, prefix=".case-", suffix=PART) as file:
        path = Path(file.name)
        return path.with_name(path.name.upper()).exists()


def divide(copier: Copier, names: list[str]) -> list[tuple[list[str], str]]:
    """Put the slices of a volume together, other images so many at a time, and each shard by itself."""
    if copier.format != "images":
        return [([name], "") for name in names]
    keys = {name: series_of(copier.source / name) for name in names}
    count = Counter(keys.values())
    volumes: dict[str, list[str]] = {}
    alone = []
    for name, key in keys.items():
        (volumes.setdefault(key, []) if key and count[key] > 1 else alone).append(name)
    size = max(1, UNIT_COPIES // copier.copies)
    parts = [(alone[start : start + size], "") for start in range(0, len(alone), size)]
    return parts + [(slices, key) for key, slices in volumes.items()]


def settings_of(copier: Copier) -> dict[str, Any]:
    """Give what all copies of a run have in common."""
    stylizer = copier.stylizer
    known, home = stylizer.bank, stylizer.home
    settings = {
        # A bank carries its generator's fingerprint.
        "bank": hashlib.sha256(known.to_bytes()).hexdigest()[:16] if known else home.fingerprint,
        "generator": home.name,
        "copies": copier.copies,
        "strength": list(stylizer.strength),
        "sampler": stylizer.sampler,
        "keep_luminance": stylizer.keep_luminance,
        "seed": copier.seed,
    }
    # Of runs without them, as of those of earlier versions, these are not said.
    if stylizer.guard.floor is not None:
        settings["preserve"] = stylizer.guard.floor
    if copier.window:
        settings["window"] = copier.window
    return settings if copier.format == "images" else {**settings, "column": copier.column}


def place_among(engine: Engine) -> tuple[int, int]:
    """Tell which of how many processes this is, as torchrun sets it."""
    rank, world = os.environ.get("RANK"), os.environ.get("WORLD_SIZE")
    if rank is None or world is None:
        return 0, 1
    if not (rank.isdecimal() and world.isdecimal() and int(rank) < int(world)):
        raise ConfigError(f"RANK and WORLD_SIZE must be 0 <= RANK < WORLD_SIZE, got {rank} and {world}.")
    if engine == "ray" and int(world) > 1:
        raise ConfigError("torchrun and Ray each divide the work; use one of them.")
    return int(rank), int(world)


def _device_of(workers: int) -> str:
    """Choose the device of this process: worker processes stay on the CPU."""
    if workers or not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{int(os.environ.get('LOCAL_RANK', 0)) % torch.cuda.device_count()}"


def _run(
    units: list[Unit], copier: Copier, engine: Engine, workers: int, address: str | None
) -> Generator[Line]:
    """Do the units, and yield the lines about their outputs."""
    if engine == "local" and not workers:
        for unit in units:
            yield from copier(unit)
        return
    if engine == "ray":
        results = cluster.run_on_ray(units, copier, workers=workers, address=address)
    else:
        results = in_processes(units, copier, workers)
    with closing(results):  # ends workers and the cluster, also when the loop is left
        for lines, error in results:
            yield from lines
            if error:
                raise error


def in_processes(
    units: list[Unit], copier: Copier, workers: int
) -> Generator[tuple[list[Line], StyleAugError | None]]:
    """Do the units in DataLoader's workers, in their order."""
    loader = iter(DataLoader(UnitDataset(units, copier), batch_size=None, num_workers=workers))
    while True:
        try:
            result = next(loader, None)
        except RuntimeError as error:
            if "DataLoader worker" in str(error) and "exited" in str(error):
                raise StyleAugError(
                    f"a worker process died: {error}. Run the same command again to go on; if memory was "
                    "short, with fewer workers."
                ) from None
            raise
        if result is None:
            return
        yield result


class UnitDataset(Dataset[tuple[list[Line], StyleAugError | None]]):
    """Does a unit when indexed, so that DataLoader's workers do the work."""

    def __init__(self, units: list[Unit], copier: Copier):
        self.units, self.copier = units, copier

    def __len__(self) -> int:
        return len(self.units)

    def __getitem__(self, index: int) -> tuple[list[Line], StyleAugError | None]:
        return self.copier.attempt(self.units[index])
