"""Read and write shards, one sample at a time: Parquet files and WebDataset tar files.

A sample is an encoded image with its labels, captions and masks. A reader yields samples. A writer of the
same kind writes them with another image and everything else unchanged. Nothing is unpacked to disk, and
only a few samples are in memory.
"""

import re
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from io import BytesIO
from itertools import groupby
from pathlib import Path, PurePosixPath
from tarfile import TarFile
from typing import Any, BinaryIO

from styleaug.errors import ConfigError, FileError, first_line, missing_extra

__all__ = ["SHARDS", "AbstractReader", "AbstractWriter", "DamagedShardError", "Sample", "open_shard"]

MAX_SAMPLE = 2**30
"""Most bytes of one sample; larger samples are refused before they are read."""

IMAGE_MEMBERS = ("jpg", "jpeg", "png", "webp", "tif", "tiff", "bmp", "jfif", "gif", "avif", "jp2", "ppm")
"""Extensions of images in a WebDataset sample; the first one found is the image."""

DEFAULT_COLUMN = "image"
READ_ROWS = 16
READ_BYTES = 2**20
FLUSH_BYTES = 2**25
"""Bytes after which a row group of Parquet is written; it also ends where one of the source ends."""

# WebDataset's rule: the key ends at the first dot of the last part of the path; the extension follows.
KEY_AND_EXTENSION = re.compile(r"((?:.*/)?[^./]+)\.([^/]*)", re.DOTALL)
WEBDATASET_IGNORES = re.compile(r"__[^/]*__($|/)")


class DamagedShardError(FileError):
    """A shard whose remaining content cannot be read."""


@dataclass
class Sample:
    """An encoded image and the data that belong to it."""

    key: str
    """Name of the sample in its shard."""

    image: bytes = b""
    problem: str = ""
    """Reason why the sample has no usable image, or ""."""

    size: int = 0
    """Total number of bytes."""

    bystander: bool = False
    """True for a file that is not part of a sample; it is copied unchanged."""

    rest: Any = None
    """Data with which the writer rebuilds the sample."""


class AbstractWriter(ABC):
    """Writes samples in the order in which they are added."""

    @abstractmethod
    def add(self, sample: Sample, image: bytes, suffix: str) -> None:
        """Write a sample with another image.

        Args:
            sample: sample from the reader.
            image: encoded image.
            suffix: suffix for the key, so that copies of a sample have different keys.
        """


class AbstractReader(ABC):
    """An open shard."""

    @abstractmethod
    def samples(self) -> Iterator[Sample]:
        """Yield the samples in order.

        Raises:
            DamagedShardError: the rest cannot be read.
        """

    @abstractmethod
    def writer(self, part: Path) -> AbstractContextManager[AbstractWriter]:
        """Return a writer that writes samples of this shard to a new file."""


@contextmanager
def open_shard(path: Path, column: str) -> Iterator[AbstractReader]:
    """Open a `.parquet` or `.tar` file.

    Args:
        path: the file; its suffix gives the kind.
        column: for Parquet, the column of encoded images (binary, or a struct with `bytes`). For a tar file,
            the extension of the image; `"image"` means the first of `IMAGE_MEMBERS`.

    Raises:
        DamagedShardError: the file cannot be opened.
        ConfigError: the column is missing or of another type, or pyarrow is missing.
    """
    with SHARDS[path.suffix.lower()](path, column) as reader:
        yield reader


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Convert a library's errors about a damaged file to `DamagedShardError`."""
    try:
        yield
    except (ConfigError, FileError):
        raise
    except Exception as error:
        raise DamagedShardError(f"{path} cannot be read: {first_line(error)}") from None


@contextmanager
def open_tar(path: Path, column: str) -> Iterator["TarReader"]:
    """See `open_shard`."""
    with reading(path):
        file = path.open("rb")
    with file:
        with reading(path):
            tar = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115
        with tar:
            yield TarReader(path, file, tar, column)


class TarReader(AbstractReader):
    """A tar file; consecutive members with the same key are one sample."""

    path: Path
    file: BinaryIO
    tar: TarFile
    column: str

    def __init__(self, path: Path, file: BinaryIO, tar: tarfile.TarFile, column: str):
        self.path, self.file, self.tar, self.column = path, file, tar, column

    def samples(self) -> Iterator[Sample]:
        """Yield samples: consecutive members with the same key."""
        for (key, bystander), members in groupby(self.members(), lambda member: member[:2]):
            sample = Sample(key, bystander=bystander, rest=[])
            for _, _, extension, info in members:
                with reading(self.path):
                    self.take(sample, info, extension)
            yield self.finished(sample)
        with reading(self.path):
            self.check_end()

    def members(self) -> Iterator[tuple[str, bool, str, tarfile.TarInfo]]:
        """Yield for each member its key, whether it is not part of a sample, its extension and its header."""
        while True:
            with reading(self.path):
                info = self.tar.next()
            if info is None:
                return
            self.tar.members = []  # pyright: ignore[reportAttributeAccessIssue]
            if info.isdir():
                continue
            parts = KEY_AND_EXTENSION.fullmatch(info.name)
            if parts and not WEBDATASET_IGNORES.match(info.name):
                yield parts[1], False, parts[2], info
            else:
                yield info.name, True, "", info

    def take(self, sample: Sample, info: tarfile.TarInfo, extension: str) -> None:
        """Read a member into its sample; refuse unsafe members."""
        sample.size += info.size + tarfile.BLOCKSIZE
        name = PurePosixPath(info.name)
        if name.is_absolute() or ".." in name.parts:
            sample.problem = f"the member {info.name!r} points out of the archive."
        elif not info.isreg() or info.issparse():
            sample.problem = f"the member {info.name!r} is a link, a device or a sparse file."
        elif sample.size > MAX_SAMPLE:
            sample.problem = f"it has more than {MAX_SAMPLE:,} bytes."
        if sample.problem:
            sample.rest.clear()
            return
        content = self.tar.extractfile(info)
        assert content is not None, "an ordinary file"
        sample.rest.append((extension, int(info.mtime), content.read()))

    def finished(self, sample: Sample) -> Sample:
        """Return the sample with the image taken from its members."""
        if sample.problem or sample.bystander:
            sample.bystander = sample.bystander and not sample.problem
            return sample
        members = {extension.lower(): content for extension, _, content in sample.rest}
        column = self.column.lower().lstrip(".")
        wanted = IMAGE_MEMBERS if column == DEFAULT_COLUMN else (column,)
        found = next((extension for extension in (column, *wanted) if extension in members), None)
        if found is None:
            there = " ".join(f".{extension}" for extension in members)
            sample.problem = (
                f"it has no image .{' .'.join(wanted)}, only {there}; name its extension as column."
            )
            return sample
        sample.image = members[found]
        sample.rest = [
            (extension, mtime, None if extension.lower() == found else content)
            for extension, mtime, content in sample.rest
        ]
        return sample

    def check_end(self) -> None:
        """Check that the archive ended properly; tarfile also stops at a damaged header."""
        self.file.seek(self.tar.offset)
        block = self.file.read(tarfile.BLOCKSIZE)
        if len(block) < tarfile.BLOCKSIZE:
            raise DamagedShardError(f"{self.path} is truncated: the mark of its end is missing.")
        if any(block):
            raise DamagedShardError(f"{self.path} has a damaged header at byte {self.tar.offset:,}.")

    @contextmanager
    def writer(self, part: Path) -> Iterator["TarWriter"]:
        """Yield a writer that keeps extensions, times and order of members."""
        with tarfile.open(part, "w") as tar:
            yield TarWriter(tar)


class TarWriter(AbstractWriter):
    """Writes the regular files of samples to a tar file."""

    def __init__(self, tar: tarfile.TarFile):
        self.tar = tar

    def add(self, sample: Sample, image: bytes, suffix: str) -> None:
        """Write the members of a sample."""
        for extension, mtime, content in sample.rest:
            name = sample.key if sample.bystander else f"{sample.key}{suffix}.{extension}"
            info = tarfile.TarInfo(name)
            content = image if content is None else content
            info.size, info.mtime = len(content), mtime
            self.tar.addfile(info, BytesIO(content))


@contextmanager
def open_parquet(path: Path, column: str) -> Iterator["ParquetReader"]:
    """See `open_shard`."""
    try:
        from pyarrow import parquet
    except ImportError:
        raise missing_extra("a Parquet file", "pyarrow", "parquet") from None
    with reading(path):
        file = parquet.ParquetFile(path, pre_buffer=False, buffer_size=READ_BYTES)
    with file:
        yield ParquetReader(path, file, column)


class ParquetReader(AbstractReader):
    """A Parquet file whose rows are samples."""

    path: Path
    file: Any
    column: str

    def __init__(self, path: Path, file: Any, column: str):
        import pyarrow

        self.path, self.file, self.column = path, file, column
        with reading(path):
            schema = file.schema_arrow
        self.place: Any = schema.get_field_index(column)
        if self.place < 0:
            raise ConfigError(
                f"{path} has no column {column!r}, only {', '.join(schema.names)}; name one as column."
            )
        self.field: Any = schema.field(self.place)
        kind, types = self.field.type, pyarrow.types
        if types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            self.is_struct, kind = True, kind.field("bytes").type
        else:
            self.is_struct: bool = False
        if not (types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)):
            raise ConfigError(
                f"{path}: column {column!r} has type {self.field.type}; expected encoded images: binary, or "
                "a struct with bytes, as Hugging Face datasets write it."
            )

    def samples(self) -> Iterator[Sample]:
        """Yield samples, reading a few rows at a time."""
        index = 0
        for group, batch in self.batches():
            images = batch.column(self.place)
            for row in range(batch.num_rows):
                with reading(self.path):
                    value = images[row].as_py()
                content = value["bytes"] if self.is_struct and value else value
                problem = "" if content else "it has no image; paths are not followed."
                size = batch.nbytes // batch.num_rows
                rest = (group, batch.slice(row, 1), value)
                yield Sample(f"row {index}", content or b"", problem, size, rest=rest)
                index += 1

    def batches(self) -> Iterator[tuple[int, Any]]:
        """Yield a few rows at a time, with the number of their row group."""
        for group in range(self.file.num_row_groups):
            with reading(self.path):
                batches = self.file.iter_batches(READ_ROWS, row_groups=[group])
            while True:
                with reading(self.path):
                    batch = next(batches, None)
                if batch is None:
                    break
                yield group, batch

    @contextmanager
    def writer(self, part: Path) -> Iterator["ParquetWriter"]:
        """Yield a writer that keeps schema, metadata and the ends of row groups."""
        from pyarrow import parquet

        with parquet.ParquetWriter(part, self.file.schema_arrow) as file:
            writer = ParquetWriter(self, file)
            yield writer
            writer.flush()


class ParquetWriter(AbstractWriter):
    """Collects rows into row groups and writes them."""

    reader: ParquetReader
    file: Any
    size: int
    group: int

    def __init__(self, reader: ParquetReader, file: Any):
        self.reader, self.file = reader, file
        self.rows: list[Any] = []
        self.images: list[Any] = []
        self.size = self.group = 0

    def add(self, sample: Sample, image: bytes, suffix: str) -> None:
        """Append a row; Parquet has no keys, so copies of a row differ only in the image."""
        group, row, value = sample.rest
        if group != self.group or self.size > FLUSH_BYTES:
            self.flush()
        self.group = group
        self.rows.append(row)
        self.images.append({**value, "bytes": image} if self.reader.is_struct else image)
        self.size += sample.size + len(image)

    def flush(self) -> None:
        """Write the collected rows as one row group."""
        import pyarrow

        if not self.rows:
            return
        table = pyarrow.Table.from_batches(self.rows).combine_chunks()
        images = pyarrow.array(self.images, self.reader.field.type)
        self.file.write_table(table.set_column(self.reader.place, self.reader.field, images), len(self.rows))
        self.rows, self.images, self.size = [], [], 0


SHARDS: dict[str, Callable[..., Any]] = {".parquet": open_parquet, ".tar": open_tar}
"""Function that opens each type of shard, by suffix."""
