"""DICOM: pydicom's own files, true values, files written back, and files that must be refused."""

import hashlib
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from dicom_files import write
from hypothesis import given
from hypothesis import strategies as st
from specimens import bank_of, tiny_adain

from styleaug import ConfigError, FileError, apply_folder
from styleaug.io.dicom import TAGS, codestream_size, patient_of, read_tags
from styleaug.io.files import Scan, image_files, open_image, save_image

pydicom = pytest.importorskip("pydicom")
from pydicom.dataset import Dataset  # noqa: E402
from pydicom.sequence import Sequence  # noqa: E402
from pydicom.uid import ExplicitVRLittleEndian, RLELossless  # noqa: E402

SHIPPED = Path(pydicom.__file__).parent / "data" / "test_files"
IMAGES = {  # how many frames and channels, and which dtype, each of pydicom's images has
    "693_J2KI.dcm": ((1, 512, 512), "int16"),
    "CT_small.dcm": ((1, 128, 128), "int32"),
    "ExplVR_BigEnd.dcm": ((1, 60, 80, 3), "uint8"),
    "GDCMJ2K_TextGBR.dcm": ((1, 400, 400, 3), "uint8"),
    "J2K_pixelrep_mismatch.dcm": ((1, 512, 512), "int16"),
    "JPEG-lossy.dcm": ((1, 1024, 256), "int16"),
    "JPEG2000.dcm": ((1, 1024, 256), "int16"),
    "JPEGLSNearLossless_08.dcm": ((1, 45, 10), "uint8"),
    "JPEGLSNearLossless_16.dcm": ((1, 50, 10), "uint16"),
    "JPGExtended.dcm": ((1, 1024, 256), "int16"),
    "MR_small.dcm": ((1, 64, 64), "int16"),
    "MR_small_RLE.dcm": ((1, 64, 64), "int16"),
    "MR_small_bigendian.dcm": ((1, 64, 64), "int16"),
    "MR_small_expb.dcm": ((1, 64, 64), "int16"),
    "MR_small_implicit.dcm": ((1, 64, 64), "int16"),
    "MR_small_jp2klossless.dcm": ((1, 64, 64), "int16"),
    "MR_small_jpeg_ls_lossless.dcm": ((1, 64, 64), "int16"),
    "MR_small_padded.dcm": ((1, 64, 64), "int16"),
    "SC_rgb_dcmtk_+eb+cr.dcm": ((1, 100, 100, 3), "uint8"),
    "SC_rgb_jpeg.dcm": ((1, 256, 256, 3), "uint8"),
    "SC_rgb_jpeg_gdcm.dcm": ((1, 100, 100, 3), "uint8"),
    "SC_rgb_rle_16bit_2frame.dcm": ((2, 100, 100, 3), "uint16"),
    "SC_rgb_rle_2frame.dcm": ((2, 100, 100, 3), "uint8"),
    "SC_ybr_full_422_uncompressed.dcm": ((1, 100, 100, 3), "uint8"),
    "examples_jpeg2k.dcm": ((1, 480, 640, 3), "uint8"),
    "examples_overlay.dcm": ((1, 300, 484), "int16"),
    "examples_palette.dcm": ((1, 350, 800, 3), "uint8"),
    "examples_ybr_color.dcm": ((30, 240, 320, 3), "uint8"),
    "image_dfl.dcm": ((1, 512, 512), "uint8"),
}
REFUSED = {
    "MR_truncated.dcm": "less than expected",
    "JPEG2000-embedded-sequence-delimiter.dcm": "256 x 1024 pixels by its header, but 3722445056 x 1024",
    "SC_rgb_rle_32bit.dcm": "32-bit colour",
    "badVR.dcm": "a dose",
    "rtdose.dcm": "a dose",
    "liver_1frame.dcm": "holds labels",
    "test-SR.dcm": r"no pixels \(SR\)",
    "rtplan.dcm": r"no pixels \(RTPLAN\)",
    "rtstruct.dcm": r"no pixels \(RTSTRUCT\)",
    "waveform_ecg.dcm": r"no pixels \(ECG\)",
    "no_meta.dcm": "no pixels",
    "nested_priv_SQ.dcm": "has Rows 'None'",
    "dicomdirtests/DICOMDIR-empty.dcm": "index of a DICOM folder",
}


def ct(path: Path, **tags) -> Path:
    """Write a CT slice of 12 bits with all values from 0 to 4095."""
    values = np.random.default_rng(0).permutation(4096).astype(np.uint16).reshape(64, 64)
    facts = {"BitsStored": 12, "HighBit": 11, "RescaleSlope": 1, "RescaleIntercept": -1024}
    return write(path, values, **{**facts, "WindowCenter": 40, "WindowWidth": 400, **tags})


def styled(source: Path, out: Path, strength: float, **options):
    generator = tiny_adain()
    return apply_folder(
        source, out, bank=bank_of(generator), generator=generator, strength=strength, **options
    )


@pytest.mark.parametrize("name", IMAGES)
def test_images_that_pydicom_carries(name, tmp_path):
    found = open_image(SHIPPED / name)
    shape, dtype = IMAGES[name]
    assert isinstance(found, Scan) and found.frames.shape == shape and found.frames.dtype == dtype
    low, high = found.span
    assert low < high and found.volume == (shape[0] > 1)
    assert len(np.unique(found.frames)) >= 5
    save_image(found, tmp_path / "a.dcm")
    again = open_image(tmp_path / "a.dcm")
    assert isinstance(again, Scan) and again.frames.dtype == dtype and again.span == found.span
    assert np.array_equal(again.frames, found.frames)


@pytest.mark.parametrize("name", REFUSED)
def test_files_without_an_image(name):
    with pytest.raises(FileError, match=REFUSED[name]) as caught:
        open_image(SHIPPED / name)
    assert name in str(caught.value) and len(str(caught.value)) < 500


def test_every_file_that_pydicom_carries(capfd):
    opened = refused = 0
    for path in sorted(SHIPPED.rglob("*.dcm")):
        try:
            open_image(path)
            opened += 1
        except FileError as error:
            assert str(path) in str(error)
            refused += 1
    assert (opened, refused) == (49, 30)
    assert "pydicom" not in capfd.readouterr().err, "its warnings stay in"


def test_values_are_those_of_pydicom():
    data = pydicom.dcmread(SHIPPED / "CT_small.dcm")
    found = open_image(SHIPPED / "CT_small.dcm")
    assert isinstance(found, Scan)
    assert np.array_equal(found.frames[0], data.pixel_array.astype(int) - 1024), "in HU"
    jpeg = open_image(SHIPPED / "MR_small_jp2klossless.dcm")
    assert isinstance(jpeg, Scan) and np.array_equal(
        jpeg.frames[0], pydicom.dcmread(SHIPPED / "MR_small.dcm").pixel_array
    )


def test_twelve_bits_come_back_bit_by_bit(tmp_path):
    (tmp_path / "in").mkdir()
    before = pydicom.dcmread(ct(tmp_path / "in" / "a.dcm"))
    result = styled(tmp_path / "in", tmp_path / "out", 0.0)
    after = pydicom.dcmread(tmp_path / "out" / "a.dcm")
    assert result.written == 1 and after.PixelData == before.PixelData
    for keyword in (
        "BitsStored",
        "HighBit",
        "RescaleIntercept",
        "WindowCenter",
        "PatientID",
        "StudyInstanceUID",
    ):
        assert after[keyword].value == before[keyword].value
    assert after.SOPInstanceUID != before.SOPInstanceUID
    assert after.SOPInstanceUID == after.file_meta.MediaStorageSOPInstanceUID
    assert list(after.ImageType) == ["DERIVED", "SECONDARY"] and after.DerivationDescription
    assert after.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian


def test_twelve_bits_keep_their_levels(tmp_path):
    (tmp_path / "in").mkdir()
    before = pydicom.dcmread(ct(tmp_path / "in" / "a.dcm")).pixel_array
    styled(tmp_path / "in", tmp_path / "out", 0.5, window="auto")
    after = pydicom.dcmread(tmp_path / "out" / "a.dcm").pixel_array
    assert not np.array_equal(after, before) and after.max() <= 4095
    assert len(np.unique(after)) > 256
    styled(tmp_path / "in", tmp_path / "wide", 0.5, window="1000/4096")
    assert not np.array_equal(pydicom.dcmread(tmp_path / "wide" / "a.dcm").pixel_array, after)


@pytest.mark.filterwarnings("ignore::styleaug.errors.LabelWarning")
def test_what_lies_beyond_the_window_keeps_its_distance(tmp_path):
    (tmp_path / "in").mkdir()
    values = np.full((64, 64), 1024, np.int16)
    values[:32] = 24  # air, at -1000 HU
    values[:, ::2] += 40
    facts = {"RescaleSlope": 1, "RescaleIntercept": -1024, "WindowCenter": 40, "WindowWidth": 400}
    write(tmp_path / "in" / "a.dcm", values, **facts)
    styled(tmp_path / "in", tmp_path / "out", 1.0)
    after = pydicom.dcmread(tmp_path / "out" / "a.dcm").pixel_array.astype(int) - 1024
    assert after[:30].max() < -500 and after[34:].min() >= -160


@pytest.mark.filterwarnings("ignore::styleaug.errors.LabelWarning")  # a ramp
@pytest.mark.parametrize("bits", [8, 12])
def test_monochrome1_is_seen_as_it_is_shown(bits, tmp_path):
    top = 2**bits - 1
    values = (np.linspace(0, top, 64 * 64).reshape(64, 64)).astype(np.uint8 if bits == 8 else np.uint16)
    tags = {"PhotometricInterpretation": "MONOCHROME1", "BitsStored": bits, "HighBit": bits - 1}
    (tmp_path / "in").mkdir()
    path = write(tmp_path / "in" / "a.dcm", values, **tags, WindowCenter=100, WindowWidth=80)
    found = open_image(path)
    assert isinstance(found, Scan) and found.frames[0, 0, 0] == top and found.frames[0, -1, -1] == 0
    assert found.span == (top - 140, top - 60)
    other = open_image(path, window="30/20")
    assert isinstance(other, Scan) and other.span == (top - 40, top - 20)
    styled(tmp_path / "in", tmp_path / "out", 0.0)
    after = pydicom.dcmread(tmp_path / "out" / "a.dcm")
    assert np.array_equal(after.pixel_array, values) and after.PhotometricInterpretation == "MONOCHROME1"


@pytest.mark.parametrize("dtype", ["u1", "u2", "i2", "f4"])
@pytest.mark.parametrize("shape", [(20, 30), (3, 20, 30), (7, 9)])
def test_round_trip(dtype, shape, tmp_path):
    values = (np.random.default_rng(0).random(shape) * 200).astype(dtype)
    found = open_image(write(tmp_path / "a.dcm", values))
    assert isinstance(found, Scan) and np.array_equal(found.frames.squeeze(), values)
    save_image(found, tmp_path / "b.dcm")
    again = open_image(tmp_path / "b.dcm")
    assert isinstance(again, Scan) and np.array_equal(again.frames, found.frames)


def test_windows_of_the_file_and_of_the_user(tmp_path):
    def span(window=None, **tags) -> tuple[float, float]:
        found = open_image(ct(tmp_path / "a.dcm", **tags), window=window)
        assert isinstance(found, Scan)
        return found.span

    assert span() == (-160, 240) == span("dicom") == span("40/400")
    assert span(WindowCenter=[50, 600], WindowWidth=[350, 1500]) == (-125, 225), "the first of several"
    auto = (pytest.approx(-1004, abs=5), pytest.approx(3050, abs=5))
    assert span("auto") == auto == span(WindowWidth=0)
    assert span("dicom", WindowCenter=None, WindowWidth=None) == auto
    table = Dataset()
    table.LUTDescriptor, table.LUTData = [256, 10, 16], list(range(256))
    table["LUTDescriptor"].VR = table["LUTData"].VR = "US"
    assert span(WindowCenter=None, WindowWidth=None, VOILUTSequence=Sequence([table])) == (10, 265)


def test_slopes_of_an_enhanced_file(tmp_path):
    def group(slope: float) -> Dataset:
        transform, voi, item = Dataset(), Dataset(), Dataset()
        transform.RescaleSlope, transform.RescaleIntercept = slope, 0
        voi.WindowCenter, voi.WindowWidth = 50, 100
        item.PixelValueTransformationSequence = Sequence([transform])
        item.FrameVOILUTSequence = Sequence([voi])
        return item

    values = np.arange(3 * 30).astype(np.uint16).reshape(3, 5, 6)
    each = Sequence([group(slope) for slope in (1, 0.5, 2)])
    found = open_image(write(tmp_path / "a.dcm", values, PerFrameFunctionalGroupsSequence=each))
    assert isinstance(found, Scan) and found.span == (0, 100) and found.volume
    assert np.allclose(found.frames, values * np.array([1, 0.5, 2])[:, None, None])
    save_image(found, tmp_path / "b.dcm")
    assert np.array_equal(pydicom.dcmread(tmp_path / "b.dcm").pixel_array, values)


def test_lookup_tables_of_the_modality(tmp_path):
    table = Dataset()
    table.LUTDescriptor, table.LUTData = [256, 0, 16], [3 * value for value in range(256)]
    table["LUTDescriptor"].VR = table["LUTData"].VR = "US"
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    found = open_image(write(tmp_path / "a.dcm", values, ModalityLUTSequence=Sequence([table])))
    assert isinstance(found, Scan) and np.array_equal(found.frames[0], 3 * values.astype(int))
    save_image(found, tmp_path / "b.dcm")
    assert np.array_equal(pydicom.dcmread(tmp_path / "b.dcm").pixel_array, values)


def test_padding_stays_padding(tmp_path):
    (tmp_path / "in").mkdir()
    values = np.random.default_rng(0).integers(0, 1000, (64, 64)).astype(np.int16)
    values[:20] = -2000
    write(tmp_path / "in" / "a.dcm", values, PixelPaddingValue=-2000)
    styled(tmp_path / "in", tmp_path / "out", 1.0)
    after = pydicom.dcmread(tmp_path / "out" / "a.dcm").pixel_array
    assert np.all(after[:20] == -2000) and not np.array_equal(after[20:], values[20:])


def test_words_of_big_endian_files_are_turned(tmp_path):
    data = pydicom.dcmread(SHIPPED / "MR_small_bigendian.dcm")
    data.add_new((0x6000, 0x3000), "OW", b"\x01\x02\x03\x04")
    data.save_as(tmp_path / "a.dcm")
    save_image(open_image(tmp_path / "a.dcm"), tmp_path / "b.dcm")
    after = pydicom.dcmread(tmp_path / "b.dcm")
    assert after[0x6000, 0x3000].value == b"\x02\x01\x04\x03"
    assert np.array_equal(after.pixel_array, data.pixel_array)


def test_copies_have_names_of_their_own(tmp_path):
    (tmp_path / "in").mkdir()
    ct(tmp_path / "in" / "a.dcm")
    for out in ("one", "two"):
        styled(tmp_path / "in", tmp_path / out, 0.5, copies=2)
    uids = [pydicom.dcmread(tmp_path / "one" / f"a-{copy}.dcm").SOPInstanceUID for copy in (1, 2)]
    assert len(set(uids)) == 2
    for copy in (1, 2):
        one, two = (tmp_path / out / f"a-{copy}.dcm" for out in ("one", "two"))
        assert one.read_bytes() == two.read_bytes(), "the same run writes the same bytes"


def test_what_is_no_longer_true_is_left_out(tmp_path):
    icon = Dataset()
    icon.Rows = 1
    facts = {"SmallestImagePixelValue": 0, "LargestImagePixelValue": 9, "IconImageSequence": Sequence([icon])}
    found = open_image(ct(tmp_path / "a.dcm", **facts, ImageType=["ORIGINAL", "PRIMARY", "AXIAL"]))
    save_image(found, tmp_path / "b.dcm")
    after = pydicom.dcmread(tmp_path / "b.dcm")
    assert list(after.ImageType) == ["DERIVED", "SECONDARY", "AXIAL"]
    assert not any(keyword in after for keyword in facts)


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ({"Rows": 0}, "1 frames of 64 x 0 pixels"),
        ({"Columns": 0}, "1 frames of 0 x 64 pixels"),
        ({"NumberOfFrames": 0}, "0 frames"),
        ({"NumberOfFrames": -3}, "-3 frames"),
        ({"Rows": 60_000, "Columns": 60_000}, "60000 x 60000 pixels"),
        ({"NumberOfFrames": 2_000_000}, "2,000,000 frames of 64 x 64"),
        ({"NumberOfFrames": 5}, "less than expected"),
        ({"Rows": 65}, "less than expected"),
        ({"BitsAllocated": 13}, "12 in 13 bits"),
        ({"BitsStored": 40}, "40 in 16 bits"),
        ({"SamplesPerPixel": 2}, "2 samples"),
        ({"Rows": None}, "has Rows 'None'"),
        ({"PhotometricInterpretation": None}, "cannot read"),
        ({"PixelData": None}, "no pixels"),
        ({"Modality": "SEG"}, "holds labels"),
        ({"PhotometricInterpretation": "CMYK", "SamplesPerPixel": 4}, "4 samples"),
    ],
)
def test_wrong_tags(tags, words, tmp_path):
    path = ct(tmp_path / "a.dcm", **tags)
    with pytest.raises(FileError, match=words) as caught:
        open_image(path)
    assert str(path) in str(caught.value)


def test_rows_that_are_text(tmp_path):
    content = ct(tmp_path / "a.dcm").read_bytes()
    assert content.count(b"\x28\x00\x10\x00US\x02\x00") == 1
    # An element of type LO in its place, with text of two bytes.
    (tmp_path / "a.dcm").write_bytes(
        content.replace(b"\x28\x00\x10\x00US\x02\x00\x40\x00", b"\x28\x00\x10\x00LO\x02\x00ab")
    )
    with pytest.raises(FileError, match="has Rows 'ab', which must be a whole number"):
        open_image(tmp_path / "a.dcm")


@pytest.mark.parametrize(
    "name", ["CT_small.dcm", "JPEG2000.dcm", "MR_small_RLE.dcm", "SC_rgb_jpeg_dcmtk.dcm"]
)
@pytest.mark.parametrize("share", [0.9, 0.5, 0.1, 0.01, 0])
def test_truncated_files(name, share, tmp_path):
    content = (SHIPPED / name).read_bytes()
    (tmp_path / "a.dcm").write_bytes(content[: int(share * len(content))])
    try:
        open_image(tmp_path / "a.dcm")
    except FileError as error:
        assert str(tmp_path / "a.dcm") in str(error)
    else:
        assert share > 0.4 and name == "SC_rgb_jpeg_dcmtk.dcm", "JPEG decoders fill what is missing"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("dicom")


@pytest.mark.parametrize("name", ["MR_small.dcm", "MR_small_RLE.dcm", "SC_rgb_small_odd_jpeg.dcm"])
@given(place=st.floats(0, 0.999), value=st.integers(0, 255))
def test_a_wrong_byte_gives_an_image_or_our_error(name, folder, place, value):
    content = bytearray((SHIPPED / name).read_bytes())
    header = 3000 if len(content) > 3000 else len(content)
    content[int(place * header)] = value
    (folder / "a.dcm").write_bytes(content)
    try:
        found = open_image(folder / "a.dcm")
        save_image(found, folder / "b.dcm")
    except (FileError, ConfigError) as error:
        assert "a.dcm" in str(error) or "b.dcm" in str(error)


def test_bombs_in_compressed_frames(tmp_path):
    # A frame of JPEG 2000 that claims 60,000 x 60,000 pixels under a header of 64 x 64.
    size = struct.pack(">HHIIIIIIIIH", 41, 0, 60_000, 60_000, 0, 0, 60_000, 60_000, 0, 0, 1)
    frame = b"\xff\x4f\xff\x51" + size + bytes(60)
    assert codestream_size(frame) == (60_000, 60_000)
    from pydicom.encaps import encapsulate
    from pydicom.uid import JPEG2000Lossless

    data = pydicom.dcmread(ct(tmp_path / "a.dcm"))
    data.file_meta.TransferSyntaxUID = JPEG2000Lossless
    data.PixelData = encapsulate([frame])
    data.save_as(tmp_path / "a.dcm")
    with pytest.raises(FileError, match="64 x 64 pixels by its header, but 60000 x 60000 inside"):
        open_image(tmp_path / "a.dcm")


def test_sizes_of_frames_are_read_right():
    from pydicom.encaps import generate_frames

    for name, size in [
        ("SC_rgb_jpeg_dcmtk.dcm", (100, 100)),
        ("JPEG2000.dcm", (1024, 256)),
        ("JPEGLSNearLossless_08.dcm", (45, 10)),
        ("examples_ybr_color.dcm", (240, 320)),
        ("MR_small_RLE.dcm", (0, 0)),
    ]:
        data = pydicom.dcmread(SHIPPED / name)
        count = int(data.get("NumberOfFrames") or 1)
        assert {codestream_size(f) for f in generate_frames(data.PixelData, number_of_frames=count)} == {size}


def test_deflated_bombs(tmp_path, monkeypatch):
    whole = open_image(SHIPPED / "image_dfl.dcm")
    assert isinstance(whole, Scan)
    content = (SHIPPED / "image_dfl.dcm").read_bytes()
    start = 144 + int.from_bytes(content[140:144], "little")
    packer = zlib.compressobj(9, wbits=-15)
    body = zlib.decompress(content[start:], -15) + bytes(40_000_000)
    (tmp_path / "a.dcm").write_bytes(content[:start] + packer.compress(body) + packer.flush())
    monkeypatch.setenv("STYLEAUG_MAX_BYTES", "30_000_000")
    with pytest.raises(FileError, match="a file of its size may hold 30,000,000"):
        open_image(tmp_path / "a.dcm")


def test_syntaxes_without_a_decoder_are_named(tmp_path, monkeypatch):
    from pydicom.pixels.decoders.base import Decoder

    monkeypatch.setattr(Decoder, "is_available", property(lambda self: False))
    with pytest.raises(ConfigError, match=r"a decoder of RLE Lossless: pip install .styleaug\[medical\]"):
        open_image(SHIPPED / "MR_small_RLE.dcm")
    assert RLELossless.name == "RLE Lossless"


IDENTIFIERS = {
    "PatientName": "Doe^Jane",
    "PatientID": "4711",
    "PatientBirthDate": "19700101",
    "StudyDate": "20200102",
    "AccessionNumber": "A77",
    "ReferringPhysicianName": "House",
    "StudyInstanceUID": "1.2.3.99",
    "DeviceSerialNumber": "SN5",
    "OperatorsName": "Op",
}


def test_tags_are_an_allow_list(tmp_path):
    kept = {
        "Modality": "MR",
        "Manufacturer": "ACME",
        "InstitutionName": "Site A",
        "MagneticFieldStrength": "3",
    }
    path = ct(tmp_path / "a.dcm", **IDENTIFIERS, **kept, KVP=120)
    found = read_tags(path)
    assert found.items() >= kept.items() and set(found) <= set(TAGS)
    assert not any(value in text for value in IDENTIFIERS.values() for text in found.values())
    assert not set(IDENTIFIERS) & set(TAGS)
    with pytest.raises(FileError, match="there is no file"):
        read_tags(tmp_path / "missing.dcm")


def test_origins_count_patients(tmp_path):
    one = patient_of(ct(tmp_path / "a.dcm", PatientID="4711"))
    assert one == patient_of(ct(tmp_path / "b.dcm", PatientID="4711 ", StudyInstanceUID="1.9"))
    assert one != patient_of(ct(tmp_path / "c.dcm", PatientID="4712"))
    assert len(one) == 64 and "4711" not in one
    assert one == hashlib.sha256(b"PatientID:4711").hexdigest()
    studies = [
        patient_of(ct(tmp_path / "d.dcm", PatientID="", StudyInstanceUID=uid))
        for uid in ("1.5", "1.5", "1.6")
    ]
    assert studies[0] == studies[1] != studies[2]
    nobody = [ct(tmp_path / name, PatientID="", StudyInstanceUID="") for name in ("e.dcm", "f.dcm")]
    assert patient_of(nobody[0]) != patient_of(nobody[1])


def test_a_mixed_folder_is_done_as_far_as_it_can_be(tmp_path):
    source = tmp_path / "in"
    shutil.copytree(SHIPPED / "dicomdirtests" / "77654033", source / "study")
    shutil.copy(SHIPPED / "dicomdirtests" / "DICOMDIR", source / "DICOMDIR")
    for name in (
        "CT_small.dcm",
        "MR_small_RLE.dcm",
        "examples_ybr_color.dcm",
        "MR_truncated.dcm",
        "test-SR.dcm",
        "rtdose.dcm",
    ):
        shutil.copy(SHIPPED / name, source / name)
    ct(source / "zero.dcm", Rows=0)
    ct(source / "1.2.840.1")
    (source / "README").write_text("about")
    (source / "notes.txt").write_text("about")
    assert len(image_files(source)) == 15
    result = styled(source, tmp_path / "out", 0.5)
    assert {path.name for path, _ in result.failed} == {
        "MR_truncated.dcm",
        "test-SR.dcm",
        "rtdose.dcm",
        "zero.dcm",
    }
    assert result.written == 11 and all(str(path) in reason for path, reason in result.failed)
    written = {path.relative_to(tmp_path / "out").as_posix() for path in image_files(tmp_path / "out")}
    assert {"study/CR1/6154", "1.2.840.1", "CT_small.dcm"} <= written and len(written) == 11


def test_files_that_are_no_dicom(tmp_path):
    for content in (b"", b"hello", bytes(1000), b"\x89PNG\r\n\x1a\n" + bytes(400)):
        (tmp_path / "a.dcm").write_bytes(content)
        with pytest.raises(FileError, match=r"a\.dcm"):
            open_image(tmp_path / "a.dcm")
    with pytest.raises(FileError, match="there is no file"):
        open_image(tmp_path / "b.dcm")
    with pytest.raises(FileError, match="only be written from a file of the same type"):
        save_image(np.zeros((4, 4), np.uint8), tmp_path / "c.dcm")
