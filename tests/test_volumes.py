"""Volumes: nibabel's own files and written ones; header, affine and dtype stay as they were."""

import bz2
import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from specimens import Spy, bank_of, tiny_adain

from styleaug import FileError, apply_folder
from styleaug.io.files import Scan, open_image, save_image

nibabel = pytest.importorskip("nibabel")
SimpleITK = pytest.importorskip("SimpleITK")

SHIPPED = Path(nibabel.__file__).parent / "tests" / "data"
IMAGES = {
    "anatomical.nii": ((25, 41, 33), "int16"),
    "example4d.nii.gz": ((48, 96, 128), "int16"),
    "example_nifti2.nii.gz": ((24, 20, 32), "int16"),
    "functional.nii": ((60, 21, 17), "float32"),
    "reoriented_anat_moved.nii": ((22, 26, 21), "float32"),
    "resampled_anat_moved.nii": ((3, 21, 17), "float32"),
    "standard.nii.gz": ((7, 5, 4), "uint8"),
}
AFFINE = np.array([[0, -0.5, 0, 10], [0.6, 0, 0.1, -20], [0, 0, 3, 5], [0, 0, 0, 1.0]])


def content(path: Path) -> bytes:
    """Read a file, unpacked."""
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()


def volume(path: Path, values: np.ndarray, *, scale: tuple[float, float] | None = None, **fields) -> Path:
    """Write a NIfTI file with these stored values."""
    image = nibabel.Nifti1Image(values, AFFINE)
    image.header["descrip"] = b"a scan"
    for field, value in fields.items():
        image.header[field] = value
    image.header.set_xyzt_units("mm", "sec")
    nibabel.save(image, path)
    if scale:  # nibabel would divide the values by it
        packed = bytearray(content(path))
        packed[112:120] = np.array(scale, "<f4").tobytes()
        path.write_bytes(gzip.compress(packed) if path.suffix == ".gz" else packed)
    return path


def brain(shape: tuple[int, ...] = (40, 36, 6), dtype: str = "int16") -> np.ndarray:
    return (np.random.default_rng(0).random(shape) * 4000).astype(dtype)


@pytest.mark.parametrize("name", IMAGES)
def test_volumes_that_nibabel_carries(name, tmp_path):
    found = open_image(SHIPPED / name)
    shape, dtype = IMAGES[name]
    assert isinstance(found, Scan) and found.frames.shape == shape and found.frames.dtype == dtype
    assert found.volume and found.span[0] < found.span[1]
    values = np.asanyarray(nibabel.load(SHIPPED / name, mmap=False).dataobj).T.reshape(shape)
    numbers = np.isfinite(values)
    assert np.allclose(found.frames[numbers], values[numbers], rtol=1e-5)
    assert numbers.all() == (name != "resampled_anat_moved.nii") and np.isfinite(found.frames).all()
    save_image(found, tmp_path / name)
    assert content(tmp_path / name) == content(SHIPPED / name), "byte by byte"


def test_files_that_are_no_volume():
    with pytest.raises(FileError, match=r"row_major\.dconn\.nii is a CIFTI-2 file, not an image of voxels"):
        open_image(SHIPPED / "row_major.dconn.nii")


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("strength", [0.0, 0.5])
def test_all_but_the_voxels_stays(suffix, strength, tmp_path):
    (tmp_path / "in").mkdir()
    path = volume(tmp_path / "in" / f"a{suffix}", brain(), scale=(0.5, -100))
    generator = tiny_adain()
    result = apply_folder(
        tmp_path / "in", tmp_path / "out", bank=bank_of(generator), generator=generator, strength=strength,
        copies=2,
    )  # fmt: skip
    assert result.written == 2 and not result.failed
    for copy in (1, 2):
        before, after = content(path), content(tmp_path / "out" / f"a-{copy}{suffix}")
        assert len(before) == len(after) and before[:352] == after[:352]
        assert (before == after) == (strength == 0)
        image = nibabel.load(tmp_path / "out" / f"a-{copy}{suffix}", mmap=False)
        assert np.array_equal(image.affine, nibabel.load(path, mmap=False).affine)
        assert image.header.get_zooms() == nibabel.load(path, mmap=False).header.get_zooms()
        assert len(np.unique(np.asanyarray(image.dataobj))) > 256


def test_extensions_stay(tmp_path):
    image = nibabel.Nifti1Image(brain(), AFFINE)
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"how it was made"))
    nibabel.save(image, tmp_path / "a.nii.gz")
    save_image(open_image(tmp_path / "a.nii.gz"), tmp_path / "b.nii.gz")
    assert content(tmp_path / "a.nii.gz") == content(tmp_path / "b.nii.gz")


@pytest.mark.parametrize(
    "dtype", ["uint8", "int8", "int16", "uint16", "int32", "float32", "float64", ">i2", ">f4"]
)
@pytest.mark.parametrize("shape", [(8, 7), (8, 7, 5), (8, 7, 1), (8, 7, 5, 3)])
def test_round_trip(dtype, shape, tmp_path):
    values = (np.random.default_rng(0).random(shape) * 100).astype(dtype)
    path = volume(tmp_path / "a.nii", values)
    found = open_image(path)
    assert isinstance(found, Scan) and found.frames.shape[1:] == (7, 8)
    assert found.volume == (len(found.frames) > 1)
    save_image(found, tmp_path / "b.nii")
    assert content(path) == content(tmp_path / "b.nii")


def test_frames_are_slices_along_the_last_axis(tmp_path):
    values = brain((8, 7, 5, 2))
    found = open_image(volume(tmp_path / "a.nii", values))
    assert isinstance(found, Scan)
    for time in range(2):
        for place in range(5):
            assert np.array_equal(found.frames[5 * time + place], values[:, :, place, time].T)


def test_which_span_is_shown(tmp_path):
    path = volume(tmp_path / "a.nii", brain(), cal_min=100, cal_max=900)
    spans = {window: open_image(path, window=window).span for window in (None, "dicom", "auto", "50/20")}
    assert spans[None] == (100, 900) == spans["dicom"] and spans["50/20"] == (40, 60)
    assert spans["auto"] == pytest.approx((20, 3980), abs=10)
    assert open_image(volume(tmp_path / "b.nii", brain())).span == spans["auto"], "where the header has none"


def test_colour(tmp_path):
    values = np.random.default_rng(0).integers(0, 255, (8, 7, 5, 3), dtype=np.uint8)
    kind = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
    path = volume(tmp_path / "a.nii", values.view(kind)[..., 0])
    found = open_image(path)
    assert isinstance(found, Scan) and found.frames.shape == (5, 7, 8, 3) and found.span == (0, 255)
    assert np.array_equal(found.frames, values.transpose(2, 1, 0, 3))
    save_image(found, tmp_path / "b.nii")
    assert content(path) == content(tmp_path / "b.nii")


def test_what_is_no_number_stays(tmp_path):
    values = brain((20, 18, 4), "float32")
    values[:4] = np.nan
    (tmp_path / "in").mkdir()
    volume(tmp_path / "in" / "a.nii", values)
    generator = tiny_adain()
    apply_folder(tmp_path / "in", tmp_path / "out", bank=bank_of(generator), generator=generator, strength=1)
    after = np.asanyarray(nibabel.load(tmp_path / "out" / "a.nii", mmap=False).dataobj)
    assert np.isnan(after[:4]).all() and np.isfinite(after[4:]).all()
    assert not np.array_equal(after[4:], values[4:])


def test_a_volume_is_one_row_with_one_style(tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        volume(tmp_path / "in" / f"{name}.nii.gz", brain((16, 12, 9)))
    spy = Spy()
    apply_folder(tmp_path / "in", tmp_path / "out", bank=bank_of(spy), generator=spy)
    lines = (tmp_path / "out" / "manifest.jsonl").read_text().splitlines()
    assert len(lines) == 3 and spy.rows >= 18


def test_equal_slices_stay_equal(tmp_path):
    (tmp_path / "in").mkdir()
    volume(tmp_path / "in" / "a.nii", np.repeat(brain((40, 36, 1)), 8, axis=2))
    generator = tiny_adain()
    apply_folder(tmp_path / "in", tmp_path / "out", bank=bank_of(generator), generator=generator, strength=1)
    after = np.asanyarray(nibabel.load(tmp_path / "out" / "a.nii", mmap=False).dataobj)
    assert after.std(axis=2).max() < 1 < after.std()


def itk(path: Path, values: np.ndarray, *, vector: bool = False, packed: bool = False) -> Path:
    image = SimpleITK.GetImageFromArray(values, isVector=vector)
    image.SetSpacing((0.5, 0.6, 3.0)[: image.GetDimension()])
    image.SetOrigin((1.0, 2.0, 3.0)[: image.GetDimension()])
    if image.GetDimension() == 3:
        image.SetDirection((0, 1, 0, -1, 0, 0, 0, 0, 1))
    SimpleITK.WriteImage(image, str(path), useCompression=packed)
    return path


@pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".mhd"])
@pytest.mark.parametrize(
    ("dtype", "shape", "vector"),
    [
        ("uint8", (5, 7, 9), False),
        ("int16", (5, 7, 9), False),
        ("uint16", (7, 9), False),
        ("float32", (5, 7, 9), False),
        ("float64", (5, 7, 9), False),
        ("uint8", (5, 7, 9, 3), True),
        ("float32", (5, 7, 9, 4), True),
    ],
)
def test_itk_keeps_space_and_dtype(suffix, dtype, shape, vector, tmp_path):
    values = (np.random.default_rng(0).random(shape) * 200).astype(dtype)
    for packed in (False, True):
        path = itk(tmp_path / f"a{suffix}", values, vector=vector, packed=packed)
        found = open_image(path)
        assert isinstance(found, Scan) and np.array_equal(found.frames.reshape(shape), values)
        save_image(found, tmp_path / "out" / f"b{suffix}")
        assert len(list((tmp_path / "out").iterdir())) == 1, "one file, also of .mhd"
        before, after = (SimpleITK.ReadImage(str(p)) for p in (path, tmp_path / "out" / f"b{suffix}"))
        assert np.array_equal(SimpleITK.GetArrayFromImage(after), values)
        for fact in ("GetSpacing", "GetOrigin", "GetDirection", "GetPixelID", "GetSize"):
            assert getattr(before, fact)() == getattr(after, fact)()
        head = (tmp_path / "out" / f"b{suffix}").read_bytes()[:2000].lower()
        assert (b"compresseddata = true" in head or b"encoding: gzip" in head) == packed
        (tmp_path / "out" / f"b{suffix}").unlink()


def test_itk_through_apply(tmp_path):
    (tmp_path / "in").mkdir()
    values = brain((6, 36, 40))
    itk(tmp_path / "in" / "a.nrrd", values)
    itk(tmp_path / "in" / "b.mhd", values)
    (tmp_path / "in" / "c.mha").write_bytes((tmp_path / "in" / "b.mhd").read_bytes()[:50])
    generator = tiny_adain()
    result = apply_folder(
        tmp_path / "in", tmp_path / "out", bank=bank_of(generator), generator=generator, strength=0.5
    )
    assert result.written == 2 and [path.name for path, _ in result.failed] == ["c.mha"]
    for name in ("a.nrrd", "b.mhd"):
        after = SimpleITK.ReadImage(str(tmp_path / "out" / name))
        styled = SimpleITK.GetArrayFromImage(after)
        assert (
            styled.dtype == np.int16 and len(np.unique(styled)) > 256 and not np.array_equal(styled, values)
        )
        assert after.GetSpacing() == (0.5, 0.6, 3.0)


def refused(path: Path, words: str) -> None:
    with pytest.raises(FileError, match=words) as caught:
        open_image(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("dims", "words"),
    [
        ((3, 20_000, 20_000, 1), "20000 x 20000 pixels"),
        ((3, 512, 512, 32_000), "32,000 frames of 512 x 512 pixels, 16,777,216,000 bytes"),
        ((5, 30_000, 1, 30_000, 30_000, 30_000), "frames of 30000 x 1"),
        ((3, 0, 5, 5), "0 x 5|is not a NIfTI image"),
        ((3, -4, 5, 5), "-4|is not a NIfTI image"),
        ((1, 5), r"shape \(5,\); expected at least two axes"),
        ((99, 5), "is not a NIfTI image"),
    ],
)
def test_headers_that_claim_to_be_huge(dims, words, packed, tmp_path):
    header = bytearray(content(volume(tmp_path / "a.nii", brain((4, 4, 4)))))
    header[40:56] = np.array([*dims, *[1] * (8 - len(dims))], "<i2").tobytes()
    path = tmp_path / ("b.nii.gz" if packed else "b.nii")
    path.write_bytes(gzip.compress(header) if packed else header)
    refused(path, words)


def test_what_follows_the_voxels_is_read_in_parts_and_not_for_ever(tmp_path, monkeypatch):
    whole = content(volume(tmp_path / "a.nii", brain((4, 4, 4))))
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(whole + bytes(5_000_000)))
    read = []
    before = gzip.GzipFile.read
    monkeypatch.setattr(gzip.GzipFile, "read", lambda self, size=-1: read.append(size) or before(self, size))
    assert open_image(tmp_path / "b.nii.gz").frames.shape == (4, 4, 4)
    assert all(0 <= size <= 2**20 for size in read)
    monkeypatch.setattr("styleaug.io.packed.SLACK", 2**20)
    refused(tmp_path / "b.nii.gz", "unpacks to over 1,048,576 bytes more than its header says")


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nrrd", "bzip2.nrrd", "a.mha", "a.mhd"])
def test_every_wrong_bit_that_a_checksum_tells_is_refused(name, tmp_path):
    path = tmp_path / name
    values = brain((6, 20, 24))
    volume(path, values) if "nii" in name else itk(path, values, packed=True)
    if name == "bzip2.nrrd":
        head, _, packed = path.read_bytes().partition(b"\n\n")
        path.write_bytes(head.replace(b"gzip", b"bzip2") + b"\n\n" + bz2.compress(gzip.decompress(packed)))
    data = path.with_suffix(".zraw") if name == "a.mhd" else path
    good = data.read_bytes()
    found = open_image(path).frames
    # After the headers of the text and of the compression, of which only some bytes matter.
    start = good.index(b"\n\n") + 12 if b"nrrd" in name.encode() else 10
    start = good.index(b"LOCAL") + 8 if name == "a.mha" else start
    random = np.random.default_rng(0)
    for place in random.integers(start, len(good), 150):
        wrong = bytearray(good)
        wrong[place] ^= 1 << int(random.integers(8))
        data.write_bytes(wrong)
        refused(path, "damaged|truncated|unpacks to")
    data.write_bytes(good)
    assert np.array_equal(open_image(path).frames, found)


def test_an_extension_of_a_gigabyte_is_not_unpacked(tmp_path):
    header = bytearray(content(volume(tmp_path / "a.nii", brain((4, 4, 4)))))
    header[108:112] = np.array([2.0**30], "<f4").tobytes()
    header[348:360] = b"\1\0\0\0" + np.array([2**30, 4], "<i4").tobytes()
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(bytes(header)))
    refused(tmp_path / "b.nii.gz", "voxels from byte 1073741824")


def test_a_volume_that_packs_too_well_is_refused_by_its_header(tmp_path):
    header = bytearray(content(volume(tmp_path / "a.nii", brain((4, 4, 4)))))
    header[40:56] = np.array([3, 1000, 1000, 1000, 1, 1, 1, 1], "<i2").tobytes()
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(bytes(header[:352]) + bytes(2_000_000)))
    refused(tmp_path / "b.nii.gz", "1,000 frames of 1000 x 1000 pixels, 2,000,000,000 bytes")


def test_voxels_that_start_too_late(tmp_path):
    header = bytearray(content(volume(tmp_path / "a.nii", brain((4, 4, 4)))))
    header[108:112] = np.array([1e9], "<f4").tobytes()
    (tmp_path / "a.nii").write_bytes(header)
    refused(tmp_path / "a.nii", "voxels from byte")


def test_voxels_that_are_no_light(tmp_path):
    refused(volume(tmp_path / "a.nii", brain((4, 4, 4)).astype("c8")), "voxels of type complex64")
    refused(volume(tmp_path / "b.nii", brain((4, 4, 4)), intent_code=1002), "label map")


@pytest.mark.parametrize(
    ("suffix", "head"),
    [
        (
            ".nrrd",
            "NRRD0004\ntype: short\ndimension: 3\nsizes: 60000 60000 2\nencoding: raw\nendian: little\n\n",
        ),
        (
            ".mha",
            "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\n"
            "DimSize = 60000 60000 2\nElementType = MET_SHORT\nElementDataFile = LOCAL\n",
        ),
    ],
)
def test_itk_headers_that_claim_to_be_huge(suffix, head, tmp_path):
    (tmp_path / f"a{suffix}").write_bytes(head.encode() + bytes(100))
    refused(tmp_path / f"a{suffix}", "60000 x 60000 pixels")
    (tmp_path / f"b{suffix}").write_bytes(head.replace("60000 60000 2", "512 512 90000").encode())
    refused(tmp_path / f"b{suffix}", "90,000 frames of 512 x 512")


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.nrrd", "a.mha", "a.mhd"])
@pytest.mark.parametrize("share", [0.9, 0.5, 0.02, 0])
def test_truncated_files(name, share, tmp_path, capfd):
    whole = tmp_path / f"whole{name[1:]}"
    (volume if "nii" in name else itk)(whole, brain((30, 20, 10)))
    packed = whole.read_bytes()
    if name == "a.mhd":
        raw = whole.with_suffix(".raw")
        raw.write_bytes(raw.read_bytes()[: int(share * 5000)])
        refused(whole, "whole")
    else:
        (tmp_path / name).write_bytes(packed[: int(share * len(packed))])
        refused(tmp_path / name, "a")
    for noise in (b"hello", bytes(400), b"\x1f\x8b" + bytes(100)):
        (tmp_path / name).write_bytes(noise)
        refused(tmp_path / name, "a")
    assert "WARNING" not in capfd.readouterr().err


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("volumes")


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.nrrd", "a.mha"])
@given(place=st.floats(0, 0.999), value=st.integers(0, 255))
def test_a_wrong_byte_gives_an_image_or_our_error(name, folder, place, value):
    whole = folder / f"whole{name[1:]}"
    if not whole.exists():
        (volume if "nii" in name else itk)(whole, brain((6, 5, 4)))
    damaged = bytearray(whole.read_bytes())
    damaged[int(place * min(len(damaged), 400))] = value
    (folder / name).write_bytes(damaged)
    try:
        save_image(open_image(folder / name), folder / f"saved{name[1:]}")
    except FileError as error:
        assert name[1:] in str(error)


def test_missing_files(tmp_path):
    for name in ("a.nii", "a.nii.gz", "a.nrrd", "a.mhd"):
        with pytest.raises(FileError, match="there is no file"):
            open_image(tmp_path / name)
