"""The files of `attack.py`: how each kind is written and used, and how it is changed."""

import gzip
import json
import os
import random
import re
import shutil
import struct
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load, save

from styleaug import FileError, StyleAugment, apply_folder, fit_style, load_bank, load_generator
from styleaug.bank import Provenance, StyleBank
from styleaug.cli.training import with_file
from styleaug.generators.adain import AdaIN
from styleaug.generators.photo import Photo
from styleaug.io.files import Scan, open_image
from styleaug.io.lists import list_images
from styleaug.training.checkpoints import Checkpoints
from styleaug.training.config import preset
from styleaug.training.data import read_image
from styleaug.weights import save_generator

__all__ = ["KINDS", "Kind", "mutate", "special"]

Malice = Callable[[Path], Path | None]
"""Function that changes a file, or writes another file beside it and returns its path."""


@dataclass(frozen=True)
class Kind:
    """A kind of file."""

    name: str
    file: str
    make: Callable[[Path], Any]
    """Function that writes a valid file."""
    use: Callable[[Path], dict[str, Any]]
    """Function that uses the file as a user does, and returns the results."""
    checked: bool = False
    """Whether the file has a checksum, which detects changed values."""
    bounded: bool = False
    """Whether all values in the file are below 1e30."""
    text: bool = False


# How files are used.


def use_image(path: Path) -> dict[str, Any]:
    """Write a styled copy of the folder that holds the file; one in eight is also fitted."""
    if not os.path.isfile(path):  # as in a list, or as the name of one file
        return {"image": values(open_image(path))}
    beside = path.with_name("z-whole.png")
    if not beside.exists():
        make_picture(beside)
    out = path.parent.with_name(path.parent.name + "-out")
    try:
        done = apply_folder(path.parent, out, bank=colour_bank(), generator="reinhard-rgb", strength=1.0)
        assert (out / beside.name).exists(), "a whole image was left out"
        if done.failed:
            raise FileError(done.failed[0][1])
        image = values(open_image(path))
        if image.dtype.kind == "f" and not np.isfinite(image).all():
            image = np.nan_to_num(image)
        styled = values(open_image(out / path.name))
        gaps = styled.dtype.kind == "f"
        if zlib.crc32(os.fsencode(path.name) + image.tobytes()[:999]) % 8 == 0:
            fit_style(path, generator="reinhard-rgb", min_images=1)
        return {"image": image, "styled": styled, "gaps": gaps}
    finally:
        shutil.rmtree(out, ignore_errors=True)


def values(picture: Any) -> np.ndarray:
    """Convert a picture to an array."""
    return picture.frames if isinstance(picture, Scan) else np.asarray(picture)


def use_bank(path: Path) -> dict[str, Any]:
    """Load a bank and style an image with it."""
    augment = StyleAugment(path, generator=network(), p=1.0, strength=1.0, least_side=1)
    bank = load_bank(path)
    styled = augment(picture())
    made_by = bank.provenance
    return {
        "codes": bank.codes.numpy(),
        "styled": styled.numpy(),
        "image": picture().numpy(),
        "facts": repr(made_by),
    }


def use_weights(path: Path) -> dict[str, Any]:
    """Load a generator and style an image with it."""
    generator = load_generator(path)
    code = generator.encode_style(1 - picture())
    styled = generator(picture(), code, torch.ones(1))
    return {"code": code.numpy(), "styled": styled.numpy(), "image": picture().numpy()}


def use_list(path: Path) -> dict[str, Any]:
    """Read a list and its images, as training does."""
    images = list_images(path)
    return {
        "image": read_image(images.paths[0], 16).numpy(),
        "classes": str(images.classes),
        "keys": str(images.keys),
    }


def use_config(path: Path) -> dict[str, Any]:
    """Read options, as `train cut --config` does."""
    return {"config": repr(with_file(preset("cut"), path))}


def use_manifest(path: Path) -> dict[str, Any]:
    """Go on with a run whose manifest was changed."""
    out = path.parent
    done = apply_folder(
        out.parent / "attack-source", out, bank=colour_bank(), generator="reinhard-rgb", strength=1.0
    )
    assert not done.failed
    return {f"styled{at}": values(open_image(out / f"{at}.png")) for at in range(3)}


def use_checkpoint(path: Path) -> dict[str, Any]:
    """Go on from the newest checkpoint of a run; a damaged one is named, and the one before is taken."""
    restored: list[Any] = []
    keeper = Checkpoints(path.parents[1], keep=2)
    damaged = keeper.take_up(preset("photo"), lambda *found: restored.append(found))
    if damaged:
        raise FileError(damaged[0][1])
    tensors, meta = restored[0]
    return {
        **{name: value.numpy() for name, value in tensors.items()},
        "meta": json.dumps(meta, sort_keys=True),
    }


# How files are written.


@cache
def picture() -> torch.Tensor:
    """Make an image."""
    y, x = torch.meshgrid(torch.linspace(0, 1, 20), torch.linspace(0, 1, 24), indexing="ij")
    return torch.stack([y, x, (x - y).abs()])[None] * 0.8 + 0.1


def pixels(dtype: str = "uint8", channels: int = 3) -> np.ndarray:
    """Make the same image as an array."""
    scale = {"uint8": 255, "uint16": 65535, "int16": 2000, "float32": 1}[dtype]
    found = (picture()[0].permute(1, 2, 0).numpy() * scale).astype(dtype)
    return found if channels == 3 else found[..., 2].copy()


@cache
def network() -> Photo:
    """Make a small generator with weights that do something."""
    torch.manual_seed(0)
    found = Photo((4, 4), channels=8, blocks=1, hidden=8, tones=3)
    for layer in (found.to_grid, found.read_codes[2]):
        torch.nn.init.normal_(layer.weight, std=0.1)
    return found.eval().requires_grad_(False)


@cache
def colour_bank() -> StyleBank:
    """Make a bank of colours."""
    generator = load_generator("reinhard-rgb")
    codes = generator.encode_style(torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    return StyleBank(codes, Provenance(generator.name, generator.fingerprint, 4))


def make_bank(path: Path) -> None:
    codes = network().encode_style(torch.rand(6, 3, 20, 20, generator=torch.Generator().manual_seed(1)))
    bank = StyleBank(codes, Provenance(network().name, network().fingerprint, 6))
    bank.save(path)


def make_weights(path: Path, *, adain: bool = False) -> None:
    torch.manual_seed(0)
    save_generator(AdaIN((4, 4, 8), blocks=1, hidden=8).eval() if adain else network(), path)


def make_picture(path: Path, mode: str = "RGB", **options: Any) -> None:
    if mode == "I;16":
        image = Image.fromarray(pixels("uint16", 1))
    elif mode == "P":
        image = Image.fromarray(pixels()).quantize(16)
        options["transparency"] = 0
    else:
        image = Image.fromarray(pixels()).convert(mode)
    image.save(path, **options)


def make_tiff(path: Path, dtype: str = "uint16", **options: Any) -> None:
    import tifffile

    stack = np.stack([pixels(dtype, 1), pixels(dtype, 1)[::-1]])
    tifffile.imwrite(path, stack, **options)


def make_npy(path: Path) -> None:
    np.save(path, pixels("float32"))


def make_dicom(path: Path, *, deflated: bool = False) -> None:
    import pydicom
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian if deflated else ExplicitVRLittleEndian
    data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    data.SOPInstanceUID = data.StudyInstanceUID = data.SeriesInstanceUID = "1.2.3.4"
    data.PatientID, data.Modality = "somebody", "CT"
    data.Rows, data.Columns = 20, 24
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
    data.RescaleSlope, data.RescaleIntercept = 1, -1000
    data.WindowCenter, data.WindowWidth = 40, 400
    data.PixelData = pixels("int16", 1).tobytes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pydicom.dcmwrite(path, data, enforce_file_format=True)


def make_nifti(path: Path) -> None:
    import nibabel

    volume = np.stack([pixels("int16", 1)] * 3, axis=2)
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), path)


def make_nrrd(path: Path, *, packed: bool = False) -> None:
    raw = np.stack([pixels("int16", 1)] * 3).astype("<i2").tobytes()
    head = [
        "NRRD0004",
        "# written by hand",
        "type: int16",
        "dimension: 3",
        "sizes: 24 20 3",
        "space directions: (1,0,0) (0,1,0) (0,0,2)",
        "space: left-posterior-superior",
        "endian: little",
        f"encoding: {'gzip' if packed else 'raw'}",
    ]
    body = gzip.compress(raw, mtime=0) if packed else raw
    path.write_bytes("\n".join(head).encode() + b"\n\n" + body)


def make_meta(path: Path, *, packed: bool = False, detached: bool = False) -> None:
    raw = np.stack([pixels("int16", 1)] * 3).astype("<i2").tobytes()
    body = zlib.compress(raw) if packed else raw
    head = [
        "ObjectType = Image",
        "NDims = 3",
        "BinaryData = True",
        "BinaryDataByteOrderMSB = False",
        f"CompressedData = {packed}",
        *([f"CompressedDataSize = {len(body)}"] if packed else []),
        "TransformMatrix = 1 0 0 0 1 0 0 0 1",
        "Offset = 0 0 0",
        "ElementSpacing = 1 1 2",
        "DimSize = 24 20 3",
        "ElementType = MET_SHORT",
        f"ElementDataFile = {'data.raw' if detached else 'LOCAL'}",
    ]
    path.write_bytes("\n".join(head).encode() + b"\n" + (b"" if detached else body))
    if detached:
        path.with_name("data.raw").write_bytes(raw)


def make_list(path: Path) -> None:
    for at in range(3):
        make_picture(path.with_name(f"{at}.png"))
    mark = "," if path.suffix == ".csv" else "\t"
    path.write_text(
        f"path{mark}class{mark}key\n" + "".join(f"{at}.png{mark}c{at}{mark}k{at}\n" for at in range(3))
    )


def make_config(path: Path) -> None:
    options = {"steps": 100, "size": 32, "batch": 2, "seed": 3}
    if path.suffix == ".json":
        path.write_text(json.dumps(options, indent=1))
    else:
        path.write_text("".join(f"{key} = {value}\n" for key, value in options.items()))


def make_manifest(path: Path) -> None:
    source = path.parent.parent / "attack-source"
    if not source.exists():
        source.mkdir()
        for at in range(3):
            make_picture(source / f"{at}.png")
    use_manifest(path)


def make_checkpoint(path: Path) -> None:
    config = preset("photo")
    tensors = {"networks/g/a": torch.arange(30.0).view(5, 6), "state/rng": torch.arange(9, dtype=torch.uint8)}
    keeper = Checkpoints(path.parents[1], keep=2)
    keeper.make_folder()
    for step in (5, 10):
        keeper.write(step, tensors, {"config": config.to_dict(), "scores": [], "data": "x", "scaler": {}})


# What each kind is.

KINDS = [
    Kind("bank", "b.safetensors", make_bank, use_bank, checked=True, bounded=True),
    Kind("weights", "w.safetensors", make_weights, use_weights, checked=True, bounded=True),
    Kind(
        "weights of adain",
        "w.safetensors",
        partial(make_weights, adain=True),
        use_weights,
        checked=True,
        bounded=True,
    ),
    Kind(
        "checkpoint", "checkpoints/step-00000010.safetensors", make_checkpoint, use_checkpoint, checked=True
    ),
    Kind("png", "a.png", make_picture, use_image, checked=True),
    Kind("png of 16 bits", "a.png", partial(make_picture, mode="I;16"), use_image, checked=True),
    Kind("png with a palette", "a.png", partial(make_picture, mode="P"), use_image, checked=True),
    Kind("jpeg", "a.jpg", partial(make_picture, quality=90), use_image),
    Kind("webp", "a.webp", make_picture, use_image),
    Kind("bmp", "a.bmp", make_picture, use_image),
    Kind("tiff", "a.tif", partial(make_picture, compression="tiff_deflate"), use_image),
    Kind("tiff of 16 bits", "a.tif", make_tiff, use_image),
    Kind("ome-tiff", "a.ome.tif", partial(make_tiff, ome=True, metadata={"axes": "ZYX"}), use_image),
    Kind("npy", "a.npy", make_npy, use_image),
    Kind("dicom", "a.dcm", make_dicom, use_image),
    Kind("deflated dicom", "a.dcm", partial(make_dicom, deflated=True), use_image),
    Kind("nifti", "a.nii", make_nifti, use_image),
    Kind("nifti, gzipped", "a.nii.gz", make_nifti, use_image, checked=True),
    Kind("nrrd", "a.nrrd", make_nrrd, use_image),
    Kind("nrrd, gzipped", "a.nrrd", partial(make_nrrd, packed=True), use_image),
    Kind("mha", "a.mha", make_meta, use_image),
    Kind("mha, packed", "a.mha", partial(make_meta, packed=True), use_image),
    Kind("mhd", "a.mhd", partial(make_meta, detached=True), use_image),
    Kind("csv", "list.csv", make_list, use_list, text=True),
    Kind("tsv", "list.tsv", make_list, use_list, text=True),
    Kind("json", "config.json", make_config, use_config, text=True),
    Kind("toml", "config.toml", make_config, use_config, text=True),
    Kind("manifest", "manifest.jsonl", make_manifest, use_manifest, text=True),
]

# How files are changed at random.

EXTREME = [
    0,
    1,
    2,
    127,
    128,
    255,
    2**15 - 1,
    2**15,
    2**16 - 1,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**40,
    2**63 - 1,
    2**64 - 1,
]
WORDS = [
    b"-1",
    b"0",
    b"nan",
    b"inf",
    b"1e38",
    b"99999999999",
    b"4294967296",
    b"1" * 400,
    b"%s%n",
    b"../../x",
    b"\0",
    b"\xff\xfe",
]
NUMBER = re.compile(rb"-?\d+\.?\d*")


def mutate(content: bytes, rng: random.Random, kind: Kind) -> tuple[bytes, str]:
    """Change a file once at random; return it with a description of the change."""
    ways = [flip, flip, cut, insert, repeat, clear, swap, field, field, number]
    ways += {"png": [chunk, chunk], "nifti, gzipped": [repack]}.get(kind.name.split(" of ")[0], [])
    way = rng.choice(ways)
    return bytes(way(bytearray(content), rng)), way.__name__


def place(content: bytearray, rng: random.Random) -> int:
    """Choose where: as often in the first 400 bytes as anywhere."""
    return rng.randrange(max(1, min(len(content), 400 if rng.random() < 0.5 else len(content))))


def flip(content: bytearray, rng: random.Random) -> bytearray:
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        content[place(content, rng)] ^= 1 << rng.randrange(8)
    return content


def cut(content: bytearray, rng: random.Random) -> bytearray:
    return content[: place(content, rng)]


def insert(content: bytearray, rng: random.Random) -> bytearray:
    at = place(content, rng)
    return content[:at] + rng.randbytes(rng.choice([1, 4, 64, 3000])) + content[at:]


def repeat(content: bytearray, rng: random.Random) -> bytearray:
    at, length = place(content, rng), rng.choice([1, 8, 100, 2000])
    return content[:at] + content[at : at + length] * rng.choice([2, 2, 50]) + content[at + length :]


def clear(content: bytearray, rng: random.Random) -> bytearray:
    at = place(content, rng)
    length = min(rng.choice([1, 4, 16, 300]), len(content) - at)
    content[at : at + length] = rng.choice([b"\0", b"\xff"]) * length
    return content


def swap(content: bytearray, rng: random.Random) -> bytearray:
    length = rng.choice([1, 8, 64, 256])
    one, other = sorted((place(content, rng), place(content, rng)))
    first, second = content[one : one + length], content[other : other + length]
    if one + length <= other:
        content[one : one + length], content[other : other + length] = second, first
    return content


def field(content: bytearray, rng: random.Random) -> bytearray:
    """Set a number of a header to an extreme."""
    size = rng.choice([1, 2, 4, 4, 8])
    at = min(place(content, rng) // rng.choice([1, size]) * size, max(0, len(content) - size))
    value = rng.choice(EXTREME) % 2 ** (8 * size)
    content[at : at + size] = value.to_bytes(size, rng.choice(["little", "big"]))
    return content


def number(content: bytearray, rng: random.Random) -> bytearray:
    """Replace a number that stands as text."""
    found = list(NUMBER.finditer(content[:4000]))
    if not found:
        return field(content, rng)
    one = rng.choice(found)
    return content[: one.start()] + rng.choice(WORDS) + content[one.end() :]


def chunk(content: bytearray, rng: random.Random) -> bytearray:
    """Change what is in a chunk of a PNG, and set its checksum anew."""
    chunks, at = [], 8
    while at + 12 <= len(content):
        length = int.from_bytes(content[at : at + 4], "big")
        chunks.append((bytes(content[at + 4 : at + 8]), bytearray(content[at + 8 : at + 8 + length])))
        at += 12 + length
    _, body = rng.choice([each for each in chunks if each[0] != b"IDAT" and each[1]])
    body[rng.randrange(len(body))] = rng.choice([0, 1, 2, 3, 8, 16, 127, 255])
    return bytearray(b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(name, bytes(body)) for name, body in chunks))


def png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def repack(content: bytearray, rng: random.Random) -> bytearray:
    """Change what is packed, and pack it anew."""
    inner = flip(bytearray(gzip.decompress(content)), rng)
    return bytearray(gzip.compress(bytes(inner[: rng.choice([len(inner), 352, 360, 1000])]), mtime=0))


# What is made with malice.


def special(kind: Kind) -> dict[str, Malice]:
    """List the cases of a kind that are not left to chance."""
    ways: dict[str, Malice] = {"empty": lambda path: write(path, b"")}
    if kind.use is not use_manifest:
        ways |= NAMES
    return ways | SPECIAL.get(kind.name, {})


def write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def renamed(name: str | bytes, path: Path) -> Path:
    """Rename a file, keeping only the suffix."""
    suffix = ".nii.gz" if path.name.endswith(".nii.gz") else path.suffix
    raw = name if isinstance(name, bytes) else name.encode()
    new = path.parent / os.fsdecode(raw + suffix.encode())
    try:
        path.rename(new)
    except OSError:  # a name that no file can have is asked for all the same
        path.unlink()
    return new


def replaced(make: Callable[[Path], Any], path: Path) -> None:
    path.unlink()
    make(path)


def linked(target: Path, path: Path) -> None:
    path.symlink_to(target)


NAMES: dict[str, Malice] = {
    "a name of 300 letters": partial(renamed, "n" * 300),
    "control characters in the name": partial(renamed, "a\x1b[31mred\nepsilon 0.1"),
    "a name that is not UTF-8": partial(renamed, b"caf\xe9"),
    "a named pipe": partial(replaced, os.mkfifo),
    "a folder": partial(replaced, os.mkdir),
    "a link to a device": partial(replaced, partial(linked, Path("/dev/zero"))),
    "a link to itself": partial(replaced, lambda path: path.symlink_to(path)),
}


def png(
    path: Path, width: int, height: int, *, colour: int = 0, depth: int = 8, rows: bytes | None = None
) -> None:
    """Write a PNG of any size, all zero, as the few bytes that it takes."""
    packer = zlib.compressobj(9)
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour] * width
    line = b"\0" * (1 + (bits + 7) // 8)
    body = bytearray()
    for start in range(0, height if rows is None and width * height < 2**28 else 0, 64):
        body += packer.compress(line * min(64, height - start))
    body += packer.flush() if rows is None else rows
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", bytes(body)), (b"IEND", b"")]
    write(path, b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*each) for each in chunks))


def bank_with(path: Path, change: Callable[[torch.Tensor], Any], *, anew: bool = True) -> None:
    """Change codes; with the digest that fits them, or without any."""
    bank = load_bank(path)
    codes = bank.codes.clone()
    change(codes)
    if anew:
        object.__setattr__(bank, "codes", codes)
        bank.save(path)
        return
    content = path.read_bytes()
    length = 8 + int.from_bytes(content[:8], "little")
    meta = json.loads(json.loads(content[8:length])["__metadata__"]["styleaug_bank"])
    meta.pop("digest", None)
    path.write_bytes(save({**load(content), "codes": codes}, {"styleaug_bank": json.dumps(meta)}))


def header_of(text: bytes, path: Path) -> None:
    """Write a file of safetensors with this header."""
    write(path, len(text).to_bytes(8, "little") + text + b"\0" * 64)


def lines(*changes: tuple[bytes, bytes], path: Path) -> None:
    content = path.read_bytes()
    for old, new in changes:
        assert old in content, old
        content = content.replace(old, new)
    write(path, content)


def said(old: bytes, new: bytes) -> Malice:
    return lambda path: lines((old, new), path=path)


def sparse(path: Path, shape: tuple[int, ...], dtype: str = "|u1") -> None:
    """Claim an array that takes no room on the disk."""
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
        file.truncate(file.tell() + int(np.prod(shape)) * np.dtype(dtype).itemsize)


def zeros_gz(path: Path, head: bytes, count: int) -> None:
    """Write a gzip file of a header and `count` zeros."""
    block = gzip.compress(b"\0" * 2**24, 9, mtime=0)  # gzip may hold several streams
    write(path, gzip.compress(head, mtime=0) + block * (count // 2**24))


def nifti_head(path: Path, dims: tuple[int, ...], *, extension: int = 0) -> bytes:
    head = bytearray(gzip.decompress(path.read_bytes())[:352])
    struct.pack_into("<8h", head, 40, len(dims), *dims, *[1] * (7 - len(dims)))
    if extension:
        head[348:352] = b"\1\0\0\0"
        struct.pack_into("<f", head, 108, 352.0 + extension)
        head += struct.pack("<ii", extension, 6)
    return bytes(head)


def pages(count: int, path: Path) -> None:
    """Write a TIFF of `count` pages of about a dozen bytes each."""
    entries = [(256, 3, 1, 4), (257, 3, 1, 4), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)]
    entries += [(273, 4, 1, 8), (277, 3, 1, 1), (278, 3, 1, 4), (279, 4, 1, 16)]
    body, at = bytearray(b"\0" * 16), 24
    size = 2 + 12 * len(entries) + 4
    for page in range(count):
        body += struct.pack("<H", len(entries))
        body += b"".join(struct.pack("<HHII", *each) for each in entries)
        body += struct.pack("<I", at + size if page < count - 1 else 0)
        at += size
    write(path, b"II*\0" + struct.pack("<I", 24) + bytes(body))


def dicom_bomb(path: Path) -> None:
    """Deflate a hundred megabytes of a private tag."""
    content = path.read_bytes()
    packer = zlib.compressobj(9, wbits=-15)
    body = packer.compress(struct.pack("<HH2sHI", 0x0009, 0x1001, b"OB", 0, 100 * 2**20))
    for _ in range(100):
        body += packer.compress(b"\0" * 2**20)
    write(path, content[: tail_of(content)] + body + packer.flush())


def tail_of(content: bytes) -> int:
    """Find where the file meta information of a DICOM file ends."""
    return 144 + struct.unpack("<I", content[140:144])[0]


def deep(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


BANKS: dict[str, Malice] = {
    "a code of 1e38": partial(bank_with, change=lambda codes: codes.view(-1)[3:4].fill_(1e38)),
    "a code of 1e38 without a digest": partial(
        bank_with, change=lambda codes: codes.view(-1)[3:4].fill_(1e38), anew=False
    ),
    "a code of NaN without a digest": partial(
        bank_with, change=lambda codes: codes[0].fill_(torch.nan), anew=False
    ),
    "codes of infinity": partial(bank_with, change=lambda codes: codes.fill_(torch.inf), anew=False),
    "codes of -1e4": partial(bank_with, change=lambda codes: codes.fill_(-1e4), anew=False),
    "a header of 2^63 bytes": lambda path: write(path, b"\xff" * 7 + b"\x7f" + b"{}" * 20),
    "deep metadata": lambda path: header_of(
        b'{"__metadata__":{"styleaug_bank":"' + deep(20_000) + b'"}}', path
    ),
    "a deep header": lambda path: header_of(b'{"codes":' + deep(20_000) + b"}", path),
    "many tensors": lambda path: header_of(
        b"{"
        + b",".join(b'"t%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % at for at in range(20_000))
        + b"}",
        path,
    ),
    "a tensor of 2^60 floats": lambda path: header_of(
        b'{"codes":{"dtype":"F32","shape":[1152921504606846976],"data_offsets":[0,64]}}', path
    ),
    "a sparse file of 8 GB": lambda path: os.truncate(path, 8 * 2**30),
}
WEIGHTS = {name: way for name, way in BANKS.items() if "code" not in name}
PNGS: dict[str, Malice] = {
    "1 x 4,000": lambda path: png(path, 4000, 1, colour=2),
    "20,000 x 1": lambda path: png(path, 1, 20_000),
    "1 x 1": lambda path: png(path, 1, 1, colour=6),
    "2 x 50,000": lambda path: png(path, 50_000, 2, colour=2),
    "119 million pixels": lambda path: png(path, 11_900, 10_000),
    "2^31 x 2^31": lambda path: png(path, 2**31 - 1, 2**31 - 1, rows=b"x"),
    "0 x 0": lambda path: png(path, 0, 0),
    "30,000 x 30,000 of one bit": lambda path: png(
        path, 30_000, 30_000, depth=1, rows=zlib.compress(b"\0" * 2**20)
    ),
    "text of 64 MB": lambda path: write(
        path,
        path.read_bytes()[:33]
        + png_chunk(b"zTXt", b"a\0\0" + zlib.compress(b"\0" * 2**26))
        + path.read_bytes()[33:],
    ),
    "a profile of 64 MB": lambda path: write(
        path,
        path.read_bytes()[:33]
        + png_chunk(b"iCCP", b"a\0\0" + zlib.compress(b"\0" * 2**26))
        + path.read_bytes()[33:],
    ),
}
METAS: dict[str, Malice] = {
    "keys by the thousand": lambda path: write(
        path, b"".join(b"Key%d = x\n" % at for at in range(40_000)) + path.read_bytes()
    ),
    "a size of 2^40": said(b"DimSize = 24 20 3", b"DimSize = 1099511627776 20 3"),
    "a negative size": said(b"DimSize = 24 20 3", b"DimSize = -24 20 3"),
    "a hundred dimensions": said(b"NDims = 3", b"NDims = 100"),
}


def elsewhere(name: bytes) -> Malice:
    return said(b"ElementDataFile = data.raw", b"ElementDataFile = " + name)


SPECIAL: dict[str, dict[str, Malice]] = {
    "bank": BANKS,
    "weights": WEIGHTS,
    "checkpoint": {name: way for name, way in WEIGHTS.items() if "many" not in name},
    "png": PNGS,
    "tiff": {"50,000 pages": partial(pages, 50_000), "3,000 pages": partial(pages, 3000)},
    "ome-tiff": {
        "broken OME": said(b"<OME", b"<OME<"),
        "sizes in OME": said(b'SizeX="24"', b'SizeX="99"'),
        "a million entities": said(b"<?xml", b"<!DOCTYPE"),
    },
    "npy": {
        "(10000, 10000, 30)": lambda path: sparse(path, (10_000, 10_000, 30)),
        "1 x 4 million": lambda path: sparse(path, (1, 4_000_000)),
        "2^40 x 2^40": lambda path: write(path, npy_head("(1099511627776, 1099511627776)")),
        "a negative shape": lambda path: write(path, npy_head("(-5, 9)")),
        "objects": lambda path: np.save(path, np.array([{}], dtype=object), allow_pickle=True),
        "a deep header": lambda path: write(path, npy_head("(" * 5000 + ")" * 5000)),
        "all NaN": lambda path: np.save(path, np.full((20, 24, 3), np.nan, np.float32)),
        "1e38": lambda path: np.save(path, np.full((20, 24, 3), 1e38, np.float32)),
    },
    "dicom": {
        "an unknown VR of the patient": said(b"\x10\x00\x20\x00LO", b"\x10\x00\x20\x00Q?"),
        "an unknown VR of the series": said(b"\x20\x00\x0e\x00UI", b"\x20\x00\x0e\x00Z\x00"),
        "65,535 x 65,535": said(
            b"\x28\x00\x10\x00US\x02\x00\x14\x00\x28\x00\x11\x00US\x02\x00\x18\x00",
            b"\x28\x00\x10\x00US\x02\x00\xff\xff\x28\x00\x11\x00US\x02\x00\xff\xff",
        ),
        "no pixels": lambda path: write(path, path.read_bytes()[:-1000]),
    },
    "deflated dicom": {"a hundred megabytes of a private tag": dicom_bomb},
    "nifti, gzipped": {
        "2.1 GB of zeros": lambda path: zeros_gz(path, nifti_head(path, (1000, 1000, 1000)), 2100 * 2**20),
        "an extension of 1 GB": lambda path: zeros_gz(
            path, nifti_head(path, (24, 20, 3), extension=2**30), 2**30 + 2**24
        ),
        "100 thin slices": lambda path: write(
            path, gzip.compress(nifti_head(path, (600, 1, 100)) + bytes(range(240)) * 500, mtime=0)
        ),
        "no slices": lambda path: write(path, gzip.compress(nifti_head(path, (24, 20, 0)), mtime=0)),
    },
    "nrrd": {
        "data elsewhere": said(b"endian: little\n", b"endian: little\ndata file: /etc/passwd\n"),
        "data in a folder above": said(b"endian: little\n", b"endian: little\ndata file: ../../secret\n"),
        "a list of data": said(b"endian: little\n", b"endian: little\ndata file: LIST\n/etc/passwd\n"),
        "a format of data": said(b"endian: little\n", b"endian: little\ndata file: %s%n.raw 1 3 1\n"),
        "sizes of 2^40": said(b"sizes: 24 20 3", b"sizes: 1099511627776 20 3"),
        "keys by the thousand": said(
            b"endian: little\n", b"endian: little\n" + b"".join(b"k%d:=v\n" % at for at in range(40_000))
        ),
    },
    "mha": METAS,
    "mhd": METAS
    | {
        "a format": elsewhere(b"%s 1 2 1"),
        "a format that writes": elsewhere(b"%n%n%n%n 1 3 1"),
        "a password file": elsewhere(b"/etc/passwd"),
        "a folder above": elsewhere(b"../../secret"),
        "a device": elsewhere(b"/dev/zero"),
        "a list": elsewhere(b"LIST\n/etc/passwd\n/etc/passwd\n/etc/passwd"),
        "itself": elsewhere(b"a.mhd"),
    },
    "csv": {
        "a field of a megabyte": lambda path: write(path, b"path,class\n" + b"x" * 2**20 + b",a\n"),
        "NUL": lambda path: write(path, b"path,class\na\0b.png,a\n"),
        "an open quote": lambda path: write(path, b'path,class\n"0.png,a\n1.png,b\n'),
        "a folder": lambda path: write(path, b"path\n.\n"),
        "a device": lambda path: write(path, b"path\n/dev/zero\n"),
        "more fields than names": lambda path: write(path, b"path\n0.png,a,b,c\n"),
        "a name of 5,000 letters": lambda path: write(path, b"path\n" + b"n" * 5000 + b"\n"),
        "the same name twice": lambda path: write(path, b"path,path\n0.png,1.png\n"),
    },
    "json": {
        "deep": lambda path: write(path, deep(100_000)),
        "a list": lambda path: write(path, b"[1, 2]"),
        "a number of 10,000 digits": lambda path: write(path, b'{"steps": ' + b"9" * 10_000 + b"}"),
        "NaN": lambda path: write(path, b'{"steps": NaN}'),
        "a text for a number": lambda path: write(path, b'{"steps": "many"}'),
        "a table for a number": lambda path: write(path, b'{"steps": {"a": 1}}'),
        "surrogates": lambda path: write(path, b'{"steps\\ud800": 1}'),
        "another recipe": lambda path: write(path, b'{"recipe": ["adain"]}'),
    },
    "toml": {
        "deep": lambda path: write(path, b"a = " + deep(20_000)),
        "a date": lambda path: write(path, b"steps = 1979-05-27T07:32:00Z\n"),
        "infinity": lambda path: write(path, b"steps = inf\n"),
    },
    "manifest": {
        "lines of other types": lambda path: append(
            path, b'{"output": 5}\n{"output": []}\n7\n"x"\n{"output": {}}\n'
        ),
        "a deep line": lambda path: append(path, deep(100_000) + b"\n"),
        "lines without a source": lambda path: append(
            path, b'{"output": "0.png"}\n{"source": null, "output": "1.png"}\n'
        ),
        "images that are none": lambda path: append(
            path, b'{"source": "0.png", "output": "0.png", "images": 3}\n'
        ),
        "outputs elsewhere": lambda path: append(path, b'{"source": "0.png", "output": "../../0.png"}\n'),
        "settings of another type": lambda path: write(path, b'{"settings": 5}\n'),
        "a number of 10,000 digits": lambda path: append(path, b'{"output": ' + b"9" * 10_000 + b"}\n"),
    },
}
"""Malicious cases by kind of file."""


def append(path: Path, content: bytes) -> None:
    write(path, path.read_bytes() + content)


def npy_head(shape: str) -> bytes:
    """Write the header of an array of any shape."""
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".ljust(
        118 if len(shape) < 50 else len(shape) + 80
    )
    return b"\x93NUMPY\x01\0" + struct.pack("<H", min(len(text) + 1, 65535)) + text.encode() + b"\n"
