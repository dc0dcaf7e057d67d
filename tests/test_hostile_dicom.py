"""DICOM whose tags cannot be parsed, and small files that would take minutes or gigabytes."""

import struct
import time
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from dicom_files import write
from hypothesis import given
from hypothesis import strategies as st
from specimens import bank_of, tiny_adain

from styleaug import FileError, apply_folder
from styleaug.fitting.fit import fit_style
from styleaug.fitting.studies import origin_of as file_origin
from styleaug.io.dicom import patient_of, read_tags
from styleaug.io.files import open_image, save_image, series_of

pydicom = pytest.importorskip("pydicom")
from pydicom.uid import JPEG2000Lossless, JPEGBaseline8Bit, RLELossless  # noqa: E402

VALUES = np.random.default_rng(0).integers(0, 4095, (24, 20)).astype(np.uint16)
TAGS = {
    "PatientID": (0x0010, 0x0020),
    "StudyInstanceUID": (0x0020, 0x000D),
    "SeriesInstanceUID": (0x0020, 0x000E),
    "Modality": (0x0008, 0x0060),
    "SliceLocation": (0x0020, 0x1041),
    "SOPInstanceUID": (0x0008, 0x0018),
    "RescaleSlope": (0x0028, 0x1053),
    "WindowCenter": (0x0028, 0x1050),
    "PixelPaddingValue": (0x0028, 0x0120),
    "ImageType": (0x0008, 0x0008),
    "Manufacturer": (0x0008, 0x0070),
}
FACTS = {
    "SliceLocation": 1, "RescaleSlope": 1, "RescaleIntercept": -1024, "WindowCenter": 40, "WindowWidth": 400,
    "PixelPaddingValue": 0, "ImageType": ["ORIGINAL", "PRIMARY"], "Manufacturer": "us",
}  # fmt: skip


def retyped(path: Path, keyword: str, kind: bytes) -> Path:
    """Change the type of a tag's value."""
    content = path.read_bytes()
    at = content.rindex(struct.pack("<HH", *TAGS[keyword]))
    path.write_bytes(content[: at + 4] + kind + content[at + 6 :])
    return path


@pytest.mark.parametrize("keyword", TAGS)
@pytest.mark.parametrize("kind", [b"ZZ", b"FD", b"AT", b"US"])
def test_one_tag_of_a_wrong_type_ends_no_run(keyword, kind, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(6):
        write(folder / f"{number}.dcm", VALUES, PatientID=f"somebody {number}", **FACTS)
    bad = retyped(folder / "0.dcm", keyword, kind)
    generator = tiny_adain()
    result = apply_folder(folder, tmp_path / "out", bank=bank_of(generator), generator=generator)
    assert result.written + len(result.failed) == 6
    assert {path.name for path, _ in result.failed} <= {"0.dcm"}
    assert all(str(reason) for _, reason in result.failed)
    fitted = fit_style(folder, generator=generator, min_images=1, group_by=None)
    assert len(fitted.bank) >= 5
    for read in (series_of, read_tags, patient_of):
        read(bad)


def test_a_patient_whose_identifier_has_an_unknown_type_is_still_one(tmp_path):
    good = write(tmp_path / "good.dcm", VALUES)
    same = retyped(write(tmp_path / "same.dcm", VALUES), "PatientID", b"ZZ")
    other = retyped(write(tmp_path / "other.dcm", VALUES, PatientID="nobody."), "PatientID", b"ZZ")
    assert patient_of(good) == patient_of(same) != patient_of(other)
    assert file_origin(good) == file_origin(same) != file_origin(other)
    nameless = {
        kind: retyped(write(tmp_path / f"{kind}.dcm", VALUES, PatientID=None, StudyInstanceUID=uid),
                      "StudyInstanceUID", b"ZZ")
        for kind, uid in (("a", "1.2.3.40"), ("b", "1.2.3.40"), ("c", "1.2.3.50"))
    }  # fmt: skip
    assert patient_of(nameless["a"]) == patient_of(nameless["b"]) != patient_of(nameless["c"])


def test_a_series_of_an_unknown_type_is_still_one_volume(tmp_path):
    paths = [
        retyped(write(tmp_path / f"{n}.dcm", VALUES, SliceLocation=n), "SeriesInstanceUID", b"ZZ")
        for n in range(3)
    ]
    other = retyped(
        write(tmp_path / "other.dcm", VALUES, SliceLocation=9, SeriesInstanceUID="1.2.3.5"),
        "SeriesInstanceUID", b"ZZ",
    )  # fmt: skip
    assert len({series_of(path) for path in paths}) == 1 and series_of(paths[0])
    assert series_of(other) not in (series_of(paths[0]), "")


def behind(path: Path, elements: bytes, *, deflated: bool = False) -> Path:
    """Put elements before the pixels."""
    content = write(path, VALUES, **FACTS).read_bytes()
    at = content.index(struct.pack("<HH2s", 0x7FE0, 0x10, b"OW"))
    start = 144 + int.from_bytes(content[140:144], "little")
    head, body = content[:start], content[start:at] + elements + content[at:]
    if deflated:
        old, new = b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99"
        at = head.index(old)
        head = head[: at - 2] + struct.pack("<H", 22) + new + head[at + 20 :]
        head = head[:140] + struct.pack("<L", len(head) - 144) + head[144:]
        packer = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
        body = packer.compress(body) + packer.flush()
    path.write_bytes(head + body)
    return path


def many(count: int) -> bytes:
    return b"".join(
        struct.pack("<HH2sH", 0x43 + 2 * (n // 60_000), 0x1000 + n % 60_000, b"LO", 0) for n in range(count)
    )


@pytest.mark.slow
@pytest.mark.parametrize("deflated", [False, True])
def test_headers_of_a_hundred_thousand_elements(deflated, tmp_path, monkeypatch):
    few = behind(tmp_path / "few.dcm", many(5000), deflated=deflated)
    save_image(open_image(few), tmp_path / "again.dcm")
    assert np.array_equal(open_image(few).frames, open_image(tmp_path / "again.dcm").frames)
    path = behind(tmp_path / "a.dcm", many(72_000), deflated=deflated)
    for read in (open_image, patient_of, read_tags):
        with pytest.raises(FileError, match="more elements in its header than a file of its size may have"):
            read(path)
    assert series_of(path) == ""
    monkeypatch.setenv("STYLEAUG_MAX_BYTES", "8G")
    assert patient_of(path) == patient_of(few)


@pytest.mark.parametrize("explicit", [True, False], ids=["SQ", "UN"])
def test_sequences_that_are_parsed_late(explicit, tmp_path):
    item = struct.pack("<HH2sH", 0x0008, 0x0100, b"SH", 0) * 200_000
    item = struct.pack("<HHL", 0xFFFE, 0xE000, len(item)) + item
    tag = struct.pack("<HH2sHL", 0x0040, 0x0555, b"SQ" if explicit else b"UN", 0, len(item))
    with pytest.raises(FileError, match="more elements in its header"):
        open_image(behind(tmp_path / "a.dcm", tag + item))


def test_sequences_in_sequences(tmp_path):
    tag = struct.pack("<HH2sHL", 0x0040, 0x0555, b"SQ", 0, 0xFFFFFFFF)
    item = struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF)
    with pytest.raises(FileError):
        open_image(behind(tmp_path / "a.dcm", (tag + item) * 5000))


@pytest.mark.slow
def test_a_deflated_bomb_is_not_unpacked_whole(tmp_path):
    filler = struct.pack("<HH2sHL", 0x0043, 0x1001, b"OB", 0, 2**28) + bytes(2**28)
    path = behind(tmp_path / "a.dcm", filler, deflated=True)
    assert path.stat().st_size < 400_000
    tracemalloc.start()
    with pytest.raises(FileError, match="a file of its size may hold"):
        open_image(path)
    assert tracemalloc.get_traced_memory()[1] < 300e6
    tracemalloc.stop()


def encapsulated(path: Path, frame: bytes, syntax: str) -> Path:
    write(path, VALUES)
    data = pydicom.dcmread(path)
    data.file_meta.TransferSyntaxUID = syntax
    data.PixelData = pydicom.encaps.encapsulate([frame])
    data["PixelData"].VR = "OB"
    data["PixelData"].is_undefined_length = True
    data.save_as(path)
    return path


@pytest.mark.slow
def test_run_lengths_that_unpack_to_more_than_was_declared(tmp_path):
    head = struct.pack("<16L", 2, 64, 64 + 1_000_000, *[0] * 13)
    path = encapsulated(tmp_path / "a.dcm", head + b"\x81\0" * 1_000_000, RLELossless)
    tracemalloc.start()
    with pytest.raises(FileError, match="unpack to more than its header says"):
        open_image(path)
    assert tracemalloc.get_traced_memory()[1] < 30e6
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("frame", "syntax"),
    [
        (b"\xff\xd8junk\xff\xe0\0\x04ab\xff\xff\xc0\0\x11\x08" + struct.pack(">HH", *[60_000] * 2) + bytes(9),
         JPEGBaseline8Bit),
        (bytes(9000) + b"\xff\x4f\xff\x51\0\x2f\0\0" + struct.pack(">4L", 60_000, 60_000, 0, 0) + bytes(40),
         JPEG2000Lossless),
    ],
    ids=["JPEG", "JPEG 2000"],
)  # fmt: skip
def test_sizes_hidden_in_codestreams(frame, syntax, tmp_path):
    with pytest.raises(FileError, match="but 60000 x 60000 inside"):
        open_image(encapsulated(tmp_path / "a.dcm", frame, syntax))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("dicom")


@given(places=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), min_size=1, max_size=6))
def test_wrong_bytes_of_a_header_give_our_error_from_all_who_read(folder, places):
    whole = folder / "whole.dcm"
    if not whole.exists():
        write(whole, VALUES, **FACTS)
    content = bytearray(whole.read_bytes())
    for place, value in places:
        content[132 + int(place * (len(content) - 132 - VALUES.nbytes))] = value
    (folder / "a.dcm").write_bytes(content)
    started = time.perf_counter()
    for read in (patient_of, read_tags, lambda p: save_image(open_image(p), folder / "b.dcm")):
        try:
            read(folder / "a.dcm")
        except FileError as error:
            assert str(error)
    series_of(folder / "a.dcm"), file_origin(folder / "a.dcm")
    assert time.perf_counter() - started < 60
