"""Stylise a folder of images or shards into another folder: same tree and file types, with a manifest."""

import hashlib
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import replace
from multiprocessing import get_all_start_methods, get_context
from multiprocessing.context import BaseContext
from pathlib import Path, PurePosixPath
from tempfile import NamedTemporaryFile
from threading import active_count
from typing import Any, Literal, Unpack, get_args

import torch
from torch.utils.data import DataLoader, Dataset

from styleaug.checks import check_count, check_seed
from styleaug.errors import ConfigError, FileError, StyleAugError
from styleaug.generators.base import AbstractGenerator
from styleaug.io.atomic import PART, remove_parts
from styleaug.io.files import SUFFIXES, series_of, suffix_of
from styleaug.io.listing import Listing, list_files
from styleaug.io.ome_zarr import is_zarr
from styleaug.io.paths import check_path
from styleaug.io.scan import parse_window
from styleaug.io.shards import SHARDS, open_shard
from styleaug.io.slides import is_scanned
from styleaug.offline import ray_cluster as cluster
from styleaug.offline.copies import Copier, Format, Line, Unit
from styleaug.offline.manifest import Applied, Manifest
from styleaug.transforms.augment import StyleAugment
from styleaug.transforms.base import AbstractAugment
from styleaug.transforms.guard import Preserve
from styleaug.transforms.host import Styles, held, is_unusual, members_of, with_options
from styleaug.transforms.normalize import StyleNormalize
from styleaug.transforms.one_of import OneOf
from styleaug.transforms.options import CommonOptions, StyleOptions

__all__ = ["Applied", "Engine", "apply_folder"]

Engine = Literal["local", "ray"]

UNIT_COPIES = 16
"""Number of copies of a folder's images that a worker makes at a time."""

KINDS: dict[str, Format] = {
    **dict.fromkeys(SUFFIXES, "images"),
    ".parquet": "parquet",
    ".tar": "webdataset",
}


@with_options
def apply_folder(
    source: str | Path,
    out: str | Path,
    *,
    bank: Styles = None,
    copies: int = 1,
    preserve: float | Preserve | None = None,
    seed: int = 0,
    workers: int = 0,
    report: Callable[[int, int], None] = lambda done, total: None,
    engine: Engine = "local",
    address: str | None = None,
    format: Format | None = None,
    column: str = "image",
    window: str | None = None,
    **options: Unpack[CommonOptions],
) -> Applied:
    """Write stylised copies of all images in and below `source` to `out`; continue a stopped run.

    The style of a copy depends only on the seed, its name and its number, not on the engine, the workers or
    other files. The first line of `out/manifest.jsonl` holds the settings. Then there is one line per file:
    source, output, strength, and the rows of the bank with their shares. For a shard, these are in `images`,
    one entry per image in order. On a new call with the same settings, finished files are skipped. A line
    also has stamps of source and output: a file that was replaced, truncated or removed is made again.

    Links are followed. An output has the type of its source's content, even if the suffix differs. The result
    lists images that cannot be read, broken links, and other files.

    Slides, and TIFF files of more than 16 million pixels, are styled tile by tile, in less than 2 GB, if the
    generator allows it. A copy of a slide in a scanner's format is an OME-TIFF, `NAME.ome.tif`;
    OME-Zarr stays OME-Zarr, with its levels. See `stylise_slide`.

    In shards only the images change; names, labels, members, columns and order stay. An image keeps its
    format. The main process uses the GPU if there is one; worker processes use the CPU.

    Under `torchrun`, each process does its share and writes its own manifest: read all files that match
    `manifest*.jsonl`. The machines of a Ray cluster need styleaug, and a shared file system with the same
    paths for `source` and `out`; bank and generator are sent to them.

    Args:
        source: a folder of images, Parquet files or WebDataset tar files (searched with all folders below
            it), or one such shard, or one slide. It is never changed.
        out: folder to write to; it is made if it is missing. It must lie outside `source`.
        bank: a shipped name, a path, a run folder, or a `StyleBank`; see `StyleAugment`. Or a transform in
            its place: a `StyleAugment`, a `OneOf`, a preset, a `StyleNormalize`.
        copies: number of copies of each image. With 1, `photo.jpg` keeps its name; with more, the copies are
            `photo-1.jpg`, `photo-2.jpg`, ... Keys in tar files change in the same way; rows of Parquet
            files are repeated.
        preserve: least share of structure that is kept, or a `Preserve`; see `StyleAugment`. Of regions it
            protects only faces. Not for images that are styled in tiles.
        seed: seed of all draws.
        workers: number of worker processes; 0 works in this process. With Ray, number of actors; 0 means one
            per core, or four per GPU if there are GPUs.
        report: called with the number of files done and the total; with several processes, only by the first.
        engine: `"local"`, or `"ray"` for Ray Data, which continues if workers die.
        address: address of a Ray cluster: `"auto"` or `"ray://host:port"`. None uses the cluster that this
            process is connected to or that `RAY_ADDRESS` names, else starts one here and ends it afterwards.
        format: `"images"`, `"parquet"` or `"webdataset"`, if a folder holds several.
        column: Parquet's column of encoded images. For tar files with several images per sample, the
            extension of the image to stylise; `"image"` means the first of jpg, jpeg, png, webp, tif, tiff,
            bmp.
        window: values of black and white for images with more than 8 bits: `"40/400"` (centre/width),
            `"auto"` or `"dicom"`; see `open_image`. Values outside keep their distance to the window. DICOM
            series, volumes and stacks keep type, header and true values; the frames of a volume share one
            style. Images in shards are read with 8 bits.
        options: `generator`, `strength`, `sampler`, `blend` and `bands`; see `StyleAugment`.

    Raises:
        FileError: there are no images, `out` lies in `source` or a link leads there, another run writes to
            `out`, or it cannot be written to. Images and shards that cannot be read, stylised or written do
            not stop the run; they are listed in the result.
        ConfigError: `out` holds a run with other settings, `source` holds several formats, the column is
            missing, Ray or pyarrow is missing, or there is no cluster at `address`.

    Example:
        >>> apply_folder("train-shards", "train-styled", bank="art", engine="ray")  # doctest: +SKIP
    """
    source, out = check_path(source), check_path(out)
    copies, workers = check_count("copies", copies), check_count("workers", workers, least=0)
    seed = check_seed(seed)
    if engine not in get_args(Engine):
        raise ConfigError(f"engine must be one of {', '.join(get_args(Engine))}, got {engine!r}.")
    if Path(os.path.realpath(out)).is_relative_to(os.path.realpath(source)):
        raise FileError(f"{out} lies in {source}; write the copies to a folder outside it.")
    parse_window(window)
    format, root, names, listing = find_inputs(source, format)
    stylizer = folder_style(bank, {**options, "preserve": preserve})
    if isinstance(stylizer, StyleNormalize) and copies > 1:
        raise ConfigError(f"all copies of a normalised image are the same; leave out copies, got {copies}.")
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
        scanned=frozenset(name for name in names if format == "images" and is_scanned(root / name)),
    )
    names, same = one_for_each_output(names, copier)
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
            result.failed += listing.skipped + same + clashes
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


def folder_style(bank: Styles, options: dict[str, Any]) -> AbstractAugment:
    """Make the transform of a run, which styles every image.

    Raises:
        ConfigError: it needs a batch, a mask or regions, which a folder does not have.
    """
    stylizer, _ = held(bank, options, p=None, usual=1.0)
    if stylizer.within_batch:
        raise ConfigError('bank="batch" takes styles from other images of a batch; here there is none.')
    if any(member.preserve.protect not in (None, "faces") for member in members_of(stylizer)):
        raise ConfigError(
            "a folder has no regions to protect but faces; give preserve as a number, or "
            'Preserve(protect="faces").'
        )
    return stylizer.with_networks()


def find_inputs(source: Path, format: Format | None) -> tuple[Format, Path, list[str], Listing]:
    """Return the format of a source, the folder that names are relative to, the names, and the listing."""
    if is_scanned(source) or is_zarr(source):
        if format not in (None, "images"):
            raise ConfigError(f"{source} is of format images, not {format}.")
        return "images", source.parent, [source.name], Listing()
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
    """Check before the run that one readable shard has the column."""
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
    """Divide the work into units; the division depends only on the inputs."""
    return [
        Unit(tuple(part), frozenset(output for name in part for output in copier.outputs(name)), series)
        for part, series in divide(copier, names)
    ]


def _check_places(copier: Copier, names: list[str], listing: Listing) -> None:
    """Check that no output replaces an input or lies among inputs, also through links.

    Raises:
        FileError: the message names the first such output.
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


def one_for_each_output(names: list[str], copier: Copier) -> tuple[list[str], list[tuple[Path, str]]]:
    """Leave out sources whose copies would have the name of another's: `a.ndpi` beside `a.svs`."""
    of: dict[str, str] = {}
    told = []
    for name in names:
        outputs = copier.outputs(name)
        if other := next((of[output] for output in outputs if output in of), None):
            path = copier.source / name
            told.append((path, f"{path}: its copy would replace that of {other}; rename it."))
        else:
            of |= dict.fromkeys(outputs, name)
    return list(dict.fromkeys(of.values())), told


def without_clashes(units: list[Unit], copier: Copier) -> tuple[list[Unit], list[tuple[Path, str]]]:
    """Leave out outputs that conflict with others; return the units, and sources with reasons.

    A file conflicts if another output needs a folder of its name. On a file system that ignores case, two
    names conflict if they differ only in case.
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
    """Return True if the file system of a folder ignores case."""
    with NamedTemporaryFile(dir=folder, prefix=".case-", suffix=PART) as file:
        path = Path(file.name)
        return path.with_name(path.name.upper()).exists()


def divide(copier: Copier, names: list[str]) -> list[tuple[list[str], str]]:
    """Return groups of names: the slices of a volume, a few other images, or one shard."""
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
    """Return the settings that all copies of a run share."""
    settings = {**style_settings(copier.stylizer), "copies": copier.copies, "seed": copier.seed}
    # Optional settings are absent if they are not used, as in manifests of earlier versions.
    if copier.window:
        settings["window"] = copier.window
    return settings if copier.format == "images" else {**settings, "column": copier.column}


def style_settings(stylizer: AbstractAugment) -> dict[str, Any]:
    """Return what says which styles a transform gives; of a `OneOf`, for each member."""
    if isinstance(stylizer, OneOf):
        each = [{**style_settings(member), "p": member.p} for member in stylizer.transforms]
        return {"one_of": each, "weights": [round(weight, 6) for weight in stylizer.weights]}
    if isinstance(stylizer, StyleNormalize):
        return {**style_settings(stylizer.augment), "normalize": stylizer.style}
    assert isinstance(stylizer, StyleAugment)
    known, home = stylizer.bank, stylizer.home
    given = {
        **stylizer.settings(),
        # A bank contains its generator's fingerprint.
        "bank": hashlib.sha256(known.to_bytes()).hexdigest()[:16] if known else home.fingerprint,
        "generator": home.name,
    }
    always = ("bank", "generator", "strength", "sampler")
    # The others are absent if they are not used, as in manifests of earlier versions.
    unusual = [
        name for name in StyleOptions.__annotations__ if name not in always and is_unusual(name, given[name])
    ]
    return {
        name: list(given[name]) if isinstance(given[name], tuple) else given[name]  # as JSON has it
        for name in (*always, *unusual)
        if name != "compiled"
    }


def place_among(engine: Engine) -> tuple[int, int]:
    """Return this process's rank and the number of processes, as set by torchrun."""
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
    """Process the units, and yield the lines about their outputs."""
    if engine == "local" and not workers:
        for unit in units:
            yield from copier(unit)
        return
    if engine == "ray":
        results = cluster.run_on_ray(units, copier, workers=workers, address=address)
    else:
        results = in_processes(units, copier, workers)
    with closing(results):  # ends workers and cluster, also if the loop is left early
        for lines, error in results:
            yield from lines
            if error:
                raise error


def in_processes(
    units: list[Unit], copier: Copier, workers: int
) -> Generator[tuple[list[Line], StyleAugError | None]]:
    """Process the units in DataLoader's workers; yield results in order."""
    dataset = UnitDataset(units, copier)
    loader = iter(
        DataLoader(
            dataset,
            batch_size=None,
            num_workers=workers,
            multiprocessing_context=start_context([member.home for member in members_of(copier.stylizer)]),
        )
    )
    while True:
        try:
            result = next(loader, None)
        except RuntimeError as error:
            if "DataLoader worker" in str(error) and "exited" in str(error):
                raise StyleAugError(
                    f"a worker process died: {error}. Run the same command again to go on; use fewer workers "
                    "if memory was short. In a script of your own, call `apply_folder` below "
                    '`if __name__ == "__main__":`.'
                ) from None
            raise
        if result is None:
            return
        yield result


def start_context(generators: list[AbstractGenerator]) -> BaseContext | None:
    """Choose how workers start: by a server that forks, if this process has other threads; else as usual.

    A fork has only one of the threads, and a lock that another thread held stays locked in it. The server
    imports what it needs, so a generator that is defined in the program itself or in a notebook is forked.
    """
    defined_here = any(type(generator).__module__ == "__main__" for generator in generators)
    if active_count() == 1 or defined_here or "forkserver" not in get_all_start_methods():
        return None
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])  # torch is imported once, and not by each worker
    return context


class UnitDataset(Dataset[tuple[list[Line], StyleAugError | None]]):
    """A dataset that processes a unit when it is indexed, so that DataLoader's workers do the work."""

    units: list[Unit]
    copier: Copier

    def __init__(self, units: list[Unit], copier: Copier):
        self.units, self.copier = units, copier

    def __len__(self) -> int:
        return len(self.units)

    def __getitem__(self, index: int) -> tuple[list[Line], StyleAugError | None]:
        return self.copier.attempt(self.units[index])
