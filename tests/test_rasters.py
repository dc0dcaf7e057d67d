"""NRRD and MetaImage: hostile headers, data beside the header, and what is written back."""

import bz2
import os
import re
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from specimens import bank_of, tiny_adain

from styleaug import FileError, apply_folder
from styleaug.io.files import open_image, save_image

SimpleITK = pytest.importorskip("SimpleITK")

VALUES = np.random.default_rng(0).integers(-3000, 3000, (4, 5, 6)).astype("<i2")
NRRD = (
    "NRRD0004\n# of a phantom\ntype: short\ndimension: 3\nsizes: 6 5 4\nspace: left-posterior-superior\n"
    "space directions: (0.5,0,0) (0,0.6,0) (0,0,3)\nendian: little\nencoding: raw\nscanner:=one: of them\n"
)
META = (
    "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\nDimSize = 6 5 4\n"
    "ElementSpacing = 0.5 0.6 3\nScanner = one of them\nElementType = MET_SHORT\n"
)


def write(path: Path, text: str, data: bytes = b"", end: str = "\n") -> Path:
    path.write_bytes(text.replace("\n", end).encode("latin-1") + data)
    return path


def nrrd(path: Path, *fields: str, data: bytes = VALUES.tobytes(), **options) -> Path:
    return write(path, NRRD + "".join(f"{field}\n" for field in fields) + "\n", data, **options)


def meta(path: Path, source: str = "LOCAL", *fields: str, data: bytes = b"", **options) -> Path:
    text = META + "".join(f"{field}\n" for field in fields) + f"ElementDataFile = {source}\n"
    return write(path, text, data or (VALUES.tobytes() if source == "LOCAL" else b""), **options)


def refused(path: Path, words: str) -> None:
    with pytest.raises(FileError, match=words) as caught:
        open_image(path)
    assert str(path) in str(caught.value) and len(str(caught.value)) < 600


ELSEWHERE = [
    "%s 1 2 1",
    "%n%n%n 1 2 1",
    "x%03d.raw 1 4 1",
    "x%999999999d.raw 1 4 1",
    "LIST",
    "LIST 2",
    "/etc/passwd",
    "../secret.raw",
    "sub/secret.raw",
    "./../secret.raw",
    "sub\\secret.raw",
    "..",
    ".",
    "",
    "link.raw",
    "pipe.raw",
    "folder.raw",
    "a\0.raw",
    "x" * 5000,
]


@pytest.mark.parametrize("source", ELSEWHERE)
def test_data_come_only_from_one_file_beside_the_header(source, tmp_path):
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    (folder / "folder.raw").mkdir()
    for place in (tmp_path, folder / "sub"):
        (place / "secret.raw").write_bytes(VALUES.tobytes())
    (folder / "link.raw").symlink_to(tmp_path / "secret.raw")
    os.mkfifo(folder / "pipe.raw")
    for number in range(1, 5):
        (folder / f"x{number:03}.raw").write_bytes(VALUES[0].tobytes())
    refused(meta(folder / "a.mhd", source), "its own folder")
    refused(meta(folder / "a.mha", source), "its own folder")
    refused(nrrd(folder / "a.nrrd", f"data file: {source}"), "its own folder")
    refused(nrrd(folder / "b.nrrd", f"DataFile: {source}"), "its own folder")


def test_the_file_beside_the_header_is_read(tmp_path):
    (tmp_path / "a b.raw").write_bytes(VALUES.tobytes())
    (tmp_path / "near.raw").symlink_to(tmp_path / "a b.raw")
    (tmp_path / "farm").mkdir()
    meta(tmp_path / "f.mhd", "a b.raw")
    (tmp_path / "farm" / "g.mhd").symlink_to(tmp_path / "f.mhd")
    (tmp_path / "farm" / "a b.raw").symlink_to(tmp_path / "a b.raw")
    paths = [meta(tmp_path / f"{n}.mhd", name) for n, name in enumerate(["a b.raw", "./a b.raw", "near.raw"])]
    paths += [nrrd(tmp_path / "a.nrrd", "data file: ./a b.raw", data=b""), tmp_path / "farm" / "g.mhd"]
    for path in paths:
        assert np.array_equal(open_image(path).frames, VALUES)
    refused(meta(tmp_path / "gone.mhd", "gone.raw"), "there is no file .*gone.raw")


def test_nothing_of_other_files_reaches_the_output(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (tmp_path / "secret.raw").write_bytes(VALUES.tobytes())
    meta(folder / "a.mhd", str(tmp_path / "secret.raw"))
    meta(folder / "b.mhd", "%s 1 2 1")
    nrrd(folder / "c.nrrd", f"data file: {tmp_path / 'secret.raw'}", data=b"")
    nrrd(folder / "d.nrrd")
    generator = tiny_adain()
    result = apply_folder(folder, tmp_path / "out", bank=bank_of(generator), generator=generator, strength=0)
    assert result.written == 1
    assert sorted(path.name for path, _ in result.failed) == ["a.mhd", "b.mhd", "c.nrrd"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["d.nrrd", "manifest.jsonl"]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_the_text_comes_back_as_it_was(end, tmp_path):
    for path in (nrrd(tmp_path / "a.nrrd", end=end), meta(tmp_path / "a.mha", end=end)):
        assert np.array_equal(open_image(path).frames, VALUES)
        save_image(open_image(path), tmp_path / "out" / path.name)
        before, after = (p.read_bytes().replace(b"\r", b"") for p in (path, tmp_path / "out" / path.name))
        assert before == after
        assert np.array_equal(
            SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(tmp_path / "out" / path.name))), VALUES
        )


SPELLINGS = {
    "colons": ("a.mha", META.replace(" = ", ": ") + "ElementDataFile: LOCAL\n", "<i2"),
    "tight": ("a.mha", META.replace(" = ", "=") + "ElementDataFile=Local\n", "<i2"),
    "big": ("a.mha", META.replace("MSB = False", "MSB = True") + "ElementDataFile = LOCAL\n", ">i2"),
    "from the end": ("a.mha", META + "HeaderSize = -1\nElementDataFile = LOCAL\n", "<i2"),
    "no type of object": (
        "a.mha",
        META.removeprefix("ObjectType = Image\n") + "ElementDataFile = LOCAL\n",
        "<i2",
    ),
    "big nrrd": ("a.nrrd", NRRD.replace("little", "big") + "\n", ">i2"),
    "int16": ("a.nrrd", NRRD.replace("short", "int16_t") + "\n", "<i2"),
    "capitals": ("a.nrrd", NRRD.replace("sizes", "SIZES").replace("raw", "RAW") + "\n", "<i2"),
    "skips": ("a.nrrd", NRRD + "byte skip: -1\n\nsomething else", "<i2"),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_spellings(spelling, tmp_path):
    name, text, dtype = SPELLINGS[spelling]
    path = write(tmp_path / name, text, VALUES.astype(dtype).tobytes())
    assert np.array_equal(open_image(path).frames, VALUES)
    save_image(open_image(path), tmp_path / "out" / name)
    assert np.array_equal(open_image(tmp_path / "out" / name).frames, VALUES)
    after = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(tmp_path / "out" / name)))
    assert np.array_equal(after, VALUES)


@pytest.mark.parametrize("dtype", ["int16", "float32"])
def test_numbers_written_as_text(dtype, tmp_path):
    words = " ".join(map(str, VALUES.astype(dtype).ravel().tolist())).encode()
    kinds = {"int16": ("MET_SHORT", "short"), "float32": ("MET_FLOAT", "float")}[dtype]
    text = META.replace("BinaryData = True", "BinaryData = False").replace("MET_SHORT", kinds[0])
    paths = [
        write(tmp_path / "a.mha", text + "ElementDataFile = LOCAL\n", words),
        write(
            tmp_path / "a.nrrd", NRRD.replace("raw", "ascii").replace("short", kinds[1]) + "\n", words
        ),
    ]  # fmt: skip
    for path in paths:
        assert np.array_equal(open_image(path).frames, VALUES)
        save_image(open_image(path), tmp_path / "out" / path.name)
        after = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(tmp_path / "out" / path.name)))
        assert after.dtype == dtype and np.array_equal(after, VALUES)
        path.write_bytes(path.read_bytes()[:-20])
        refused(path, "is truncated|something else")


@pytest.mark.parametrize("axis", [0, 1, 2, 3])
def test_the_numbers_of_a_pixel_may_lie_along_any_axis(axis, tmp_path):
    values = np.random.default_rng(0).integers(0, 255, (3, 4, 5, 3), dtype=np.uint8)
    stored = np.moveaxis(values, -1, axis)
    sizes = " ".join(map(str, stored.shape[::-1]))
    kinds = " ".join(["domain"] * (3 - axis) + ["vector"] + ["domain"] * axis)
    text = f"NRRD0004\ntype: uchar\ndimension: 4\nsizes: {sizes}\nkinds: {kinds}\nencoding: raw\n\n"
    path = write(tmp_path / "a.nrrd", text, stored.tobytes())
    assert np.array_equal(open_image(path).frames, values) and open_image(path).span == (0, 255)
    itk = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))
    assert np.array_equal(itk, values)
    save_image(open_image(path), tmp_path / "b.nrrd")
    assert (tmp_path / "b.nrrd").read_bytes() == path.read_bytes()


def test_bzip2_which_itk_does_not_read(tmp_path):
    path = write(
        tmp_path / "a.nrrd", NRRD.replace("raw", "bzip2") + "\n", bz2.compress(VALUES.tobytes())
    )  # fmt: skip
    save_image(open_image(path), tmp_path / "b.nrrd")
    assert np.array_equal(open_image(tmp_path / "b.nrrd").frames, VALUES)
    assert (tmp_path / "b.nrrd").read_bytes() == path.read_bytes()


WRONG = {
    "sizes twice": ("a.nrrd", NRRD + "sizes: 6 5 4\n\n", "key 'sizes' twice"),
    "two orders": ("a.mha", META + "ElementByteOrderMSB = True\nElementDataFile = LOCAL\n", "byte order"),
    "dims twice": ("a.mha", META + "dimsize = 6 5 4\nElementDataFile = LOCAL\n", "key 'dimsize' twice"),
    "no data file": ("a.mhd", META, "not a MetaImage"),
    "no magic": ("a.nrrd", "PNG\n", "not a NRRD"),
    "too many axes": ("a.nrrd", NRRD.replace("6 5 4", "1 " * 5000) + "\n", "of 'sizes'"),
    "many digits": ("a.nrrd", NRRD.replace("6 5 4", "6 5 " + "9" * 5000) + "\n", "of 'sizes'"),
    "underscores": ("a.mha", META.replace("6 5 4", "6 5 1_0") + "ElementDataFile = LOCAL\n", "of 'dimsize'"),
    "negative": ("a.nrrd", NRRD.replace("6 5 4", "6 5 -4") + "\n", "frames of"),
    "two negative": ("a.mha", META.replace("6 5 4", "6 5 -4 -1").replace("NDims = 3", "NDims = 4")
        + "ElementDataFile = LOCAL\n", "0 frames of"),
    "huge": ("a.mha", META.replace("6 5 4", "512 512 90000") + "ElementDataFile = LOCAL\n", "90,000 frames"),
    "no endian": ("a.nrrd", NRRD.replace("endian: little\n", "") + "\n", "nothing of 'endian'"),
    "block": ("a.nrrd", NRRD.replace("short", "block") + "\n", "'block' of 'type'"),
    "a tube": ("a.mha", META.replace("= Image", "= Tube") + "ElementDataFile = LOCAL\n", "of 'objecttype'"),
    "an unknown type": ("a.mha", META.replace("SHORT", "STRING") + "ElementDataFile = LOCAL\n", "'string'"),
    "no channels": ("a.mha", META + "ElementNumberOfChannels = 0\nElementDataFile = LOCAL\n", "of 0 numbers"),
    "skips back": ("a.nrrd", NRRD + "byte skip: -9\n\n", "skips -9 bytes"),
    "skips for ever": ("a.nrrd", NRRD + "line skip: 999999999999\nbyte skip: 99999999999\n\n", "truncated"),
    "complex": ("a.nrrd", NRRD + "kinds: complex domain domain\n\n", "no image that can be styled"),
    "two of values": ("a.nrrd", NRRD + "kinds: list domain list\n\n", "no image that can be styled"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_headers_that_make_no_sense(name, tmp_path):
    file, text, words = WRONG[name]
    refused(write(tmp_path / file, text, VALUES.tobytes()), words)


@pytest.mark.parametrize("text", ["a{}: b\n", "a{}:=b\n", "# {}\n"])
def test_headers_with_thousands_of_keys_take_linear_time(text, tmp_path):
    many = "".join(text.format(number) for number in range(30_000))
    path = write(tmp_path / "a.nrrd", NRRD + many + "\n", VALUES.tobytes())
    assert np.array_equal(open_image(path).frames, VALUES)
    keys = many.replace(":=", " = ").replace("#", "Comment =")
    path = write(tmp_path / "a.mha", META + keys + "ElementDataFile = LOCAL\n", VALUES.tobytes())
    assert np.array_equal(open_image(path).frames, VALUES)
    refused(write(tmp_path / "b.nrrd", NRRD + many * 10), "header of more than 1,048,576 bytes")
    refused(write(tmp_path / "b.mha", META + "Comment = " + "x" * 2_000_000), "header of more than")


def test_a_bomb_of_zeros_is_refused_by_its_header(tmp_path):
    packed = zlib.compress(bytes(2**28))
    text = META.replace("6 5 4", "1024 1024 128") + "CompressedData = True\nElementDataFile = LOCAL\n"
    refused(write(tmp_path / "a.mha", text, packed), "128 frames of 1024 x 1024")
    text = NRRD.replace("6 5 4", "1024 1024 128").replace("raw", "gzip") + "data file: a.gz\n\n"
    (tmp_path / "a.gz").write_bytes(packed)
    refused(write(tmp_path / "a.nrrd", text), "128 frames of 1024 x 1024")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("rasters")


@pytest.mark.parametrize("name", ["a.nrrd", "a.mhd"])
@given(source=st.text(st.characters(max_codepoint=255), max_size=20))
def test_any_name_of_a_data_file_gives_our_error(name, folder, source):
    inside = re.sub(r"[\r\n]", "", source)
    path = meta(folder / name, inside) if name == "a.mhd" else nrrd(folder / name, f"data file: {inside}")
    if inside.strip().upper() != "LOCAL":
        with pytest.raises(FileError):
            open_image(path)
