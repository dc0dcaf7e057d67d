"""Folders, Parquet files and WebDataset shards of small images with labels, for the tests of `apply`."""

import gc
import io
import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import webdataset as wds
from PIL import Image
from specimens import Spy, bank_of

from styleaug import apply_folder

MANIFEST = "manifest.jsonl"
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
"""As Hugging Face datasets write images."""


def encoded(seed: int, kind: str = "JPEG", size: tuple[int, int] = (24, 18), mode: str = "RGB") -> bytes:
    """Make the content of an image file: smooth, and unlike for each seed."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 255, (3, 4, len(Image.new(mode, (1, 1)).getbands())), dtype=np.uint8)
    image = Image.fromarray(pixels.squeeze()).resize(size)
    content = io.BytesIO()
    image.save(content, kind)
    return content.getvalue()


def size_of(index: int) -> tuple[int, int]:
    """Two sizes in turn, so that neighbours are not of one batch."""
    return (24, 18) if index % 3 else (20, 20)


def kind_of(index: int) -> str:
    return ("JPEG", "PNG")[index % 2]


def write_images(folder: Path, count: int = 40) -> Path:
    """Write a tree of images."""
    for index in range(count):
        path = folder / str(index % 2) / f"{index:02}.{kind_of(index).lower()}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(index, kind_of(index), size_of(index)))
    return folder


def write_parquet(folder: Path, shards: int = 3, rows: int = 20, *, plain: bool = False) -> Path:
    """Write Parquet files of several row groups, with labels and a nested column."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        indices = [shard * rows + row for row in range(rows)]
        images = [encoded(index, kind_of(index), size_of(index)) for index in indices]
        named = [{"bytes": image, "path": f"{i}.jpg"} for i, image in zip(indices, images, strict=True)]
        columns = {
            "label": pa.array(indices, pa.int16()),
            "image": pa.array(images, pa.binary()) if plain else pa.array(named, IMAGE),
            "boxes": pa.array([[[0, 0, i, 2 * i]] for i in indices], pa.list_(pa.list_(pa.int32()))),
            "split": pa.array([f"s{i % 3}" for i in indices]).dictionary_encode(),
        }
        table = pa.table(columns).replace_schema_metadata({"huggingface": '{"info": 1}'})
        pq.write_table(table, folder / f"train-{shard}.parquet", row_group_size=7)
    return folder


def write_tars(folder: Path, shards: int = 3, rows: int = 20) -> Path:
    """Write WebDataset shards by the library itself, with a label and a mask for each image."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        with wds.TarWriter(str(folder / f"train-{shard}.tar")) as tar:
            for index in range(shard * rows, (shard + 1) * rows):
                kind = kind_of(index).lower().replace("jpeg", "jpg")
                sample = {
                    "__key__": f"dir/{index:04}",
                    "cls": index,
                    kind: encoded(index, kind_of(index), size_of(index)),
                    "mask.png": encoded(index, "PNG", size_of(index), "L"),
                    "json": {"box": [index, 1, 2, 3]},
                }
                tar.write(sample)
    return folder


WRITERS: dict[str, Callable[[Path], Path]] = {
    "images": write_images,
    "parquet": write_parquet,
    "webdataset": write_tars,
}


def read_tar(path: Path) -> list[dict[str, Any]]:
    """Read a shard with the webdataset library."""
    dataset = wds.WebDataset(str(path), shardshuffle=False, empty_check=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it leaves closing to the garbage collector
        samples = list(dataset)
        gc.collect()
    return [{k: v for k, v in sample.items() if k not in ("__url__", "__local_path__")} for sample in samples]


def invert(source: Path, out: Path, **options: Any) -> Any:
    """Apply a generator that is quick, exact and the same in batches of any size."""
    spy = Spy()
    return apply_folder(source, out, **{"bank": bank_of(spy), "generator": spy, "strength": 1.0, **options})


def pixels(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image)


def contents(folder: Path) -> dict[str, bytes]:
    """Read all files of a tree but the manifests."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not (path.name.startswith("manifest") and path.suffix == ".jsonl")
    }


def manifest_lines(folder: Path) -> Iterator[dict[str, Any]]:
    """Read what the manifests name; lines that a kill tore are no names."""
    for path in sorted(folder.glob("manifest*.jsonl")):
        for row in path.read_text().splitlines():
            try:
                line = json.loads(row)
            except ValueError:
                continue
            if "output" in line:
                yield line


def check_once(folder: Path, count: int) -> None:
    """Every file stands in the manifest once, and there is nothing else: no part, no torn file."""
    outputs = [line["output"] for line in manifest_lines(folder)]
    assert len(outputs) == len(set(outputs)) == count
    assert set(outputs) == set(contents(folder))
