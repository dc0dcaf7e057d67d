"""Images on disk: what is written comes back; what cannot be read is named; nothing is left half-written."""

import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from specimens import pil

from styleaug import FileError
from styleaug.io.atomic import atomic, remove_parts
from styleaug.io.files import SUFFIXES, Scan, image_files, open_image, save_image, stem_of, suffix_of

LOSSY = {".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".avif"}
KEEPS = {  # what each file type can hold
    ".png": ["L", "LA", "RGB", "RGBA", "I;16"],
    ".tif": ["L", "LA", "RGB", "RGBA", "I;16"],
    ".tiff": ["L", "RGB"],
    ".bmp": ["L", "RGB", "RGBA"],
    ".jpg": ["L", "RGB"],
    ".jpeg": ["RGB"],
    ".webp": ["RGB", "RGBA"],
    ".jpe": ["RGB"],
    ".jfif": ["L", "RGB"],
    ".apng": ["L", "RGBA", "I;16"],
    ".gif": ["RGB"],
    ".avif": ["RGB", "RGBA"],
    ".jp2": ["L", "LA", "RGB", "RGBA", "I;16"],
    ".ppm": ["RGB"],
    ".pgm": ["L", "I;16"],
    ".pnm": ["L", "RGB"],
    ".tga": ["L", "LA", "RGB", "RGBA"],
    **{suffix: ["L", "RGB"] for suffix in (".j2k", ".jpf", ".jpx", ".j2c", ".jpc")},
}
MEDICAL = {".dcm", ".dicom", ".ima", ".nii", ".nii.gz", ".nrrd", ".mha", ".mhd"}
"""Tested in `test_dicom.py` and `test_volumes.py`."""
SLIDES = {".svs", ".svslide", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".zarr"}
"""Tested in `test_slides.py` and `test_ome_zarr.py`."""


def smooth(mode: str) -> Image.Image:
    """Make a picture that JPEG can hold well."""
    if mode == "I;16":
        return pil(mode, (40, 32))
    return pil(mode, (5, 4)).resize((40, 32), Image.Resampling.BICUBIC)


def test_every_suffix_is_tested():
    assert KEEPS.keys() | {".npy"} | MEDICAL | SLIDES >= SUFFIXES.keys()  # Pillow may lack some


@pytest.mark.parametrize(("suffix", "mode"), [(s, m) for s, modes in KEEPS.items() for m in modes])
@pytest.mark.parametrize("upper", [False, True])
def test_round_trip(suffix, mode, upper, tmp_path):
    path = tmp_path / f"image{suffix.upper() if upper else suffix}"
    image = smooth(mode)
    save_image(image, path)
    back = open_image(path)
    assert isinstance(back, Image.Image) and (back.mode, back.size) == (image.mode, image.size)
    off = np.abs(np.asarray(back).astype(float) - np.asarray(image))
    assert off.mean() < 6 if suffix in LOSSY else off.max() == 0
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("dtype", ["u1", "<u2", "f2", "f4", "f8"])
@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 1), (4, 5, 3)])
def test_npy_round_trip(dtype, shape, tmp_path):
    array = np.random.default_rng(0).random(shape)
    array = (array * 255).astype(dtype)
    save_image(array, tmp_path / "a.npy")
    back = open_image(tmp_path / "a.npy")
    assert isinstance(back, np.ndarray) and back.dtype == array.dtype and np.array_equal(back, array)
    assert type(back) is np.ndarray, "no map of the file, which may be rewritten"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation, tmp_path):
    upright = smooth("RGB")
    turn = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE"}
    turn |= {6: "ROTATE_90", 7: "TRANSVERSE", 8: "ROTATE_270"}  # what a camera held so stores
    stored = upright.transpose(Image.Transpose[turn[orientation]]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.png", exif=exif)
    back = open_image(tmp_path / "a.png")
    assert back.size == upright.size and back.tobytes() == upright.tobytes()
    save_image(back, tmp_path / "b.png")
    assert open_image(tmp_path / "b.png").tobytes() == upright.tobytes(), "not turned twice"


def test_sixteen_bit_grey(tmp_path):
    values = np.linspace(0, 65535, 400).astype(np.uint16).reshape(20, 20)
    for name in ("a.png", "a.tif"):
        Image.fromarray(values).save(tmp_path / name)
        back = open_image(tmp_path / name)
        assert back.mode == "I;16" and np.array_equal(np.asarray(back), values)
    Image.fromarray(values.astype(np.int32)).save(tmp_path / "wide.tif")
    Image.fromarray(values.astype(np.int32) - 5).save(tmp_path / "signed.tif")
    Image.fromarray(values.astype(np.float32)).save(tmp_path / "float.tif")
    for name, low in (("wide.tif", 0), ("signed.tif", -5), ("float.tif", 0)):
        pytest.importorskip("tifffile")
        scan = open_image(tmp_path / name)
        assert isinstance(scan, Scan) and np.array_equal(scan.frames[0].astype(int), values.astype(int) + low)


def test_palettes_and_transparency(tmp_path):
    flat = smooth("RGB").quantize(8)
    flat.save(tmp_path / "palette.png")
    back = open_image(tmp_path / "palette.png")
    assert back.mode == "RGB" and back.tobytes() == flat.convert("RGB").tobytes()
    flat.save(tmp_path / "clear.png", transparency=0)
    back = open_image(tmp_path / "clear.png")
    assert back.mode == "RGBA" and set(np.unique(np.asarray(back)[..., 3])) == {0, 255}
    smooth("L").save(tmp_path / "grey.png", transparency=int(np.asarray(smooth("L"))[0, 0]))
    assert open_image(tmp_path / "grey.png").mode == "LA"
    smooth("L").convert("1").save(tmp_path / "bits.png")
    assert open_image(tmp_path / "bits.png").mode == "L"
    smooth("RGB").convert("CMYK").save(tmp_path / "print.jpg")
    assert open_image(tmp_path / "print.jpg").mode == "RGB"


def test_large_jpegs_are_decoded_small(tmp_path):
    Image.new("RGB", (1600, 1200), "red").save(tmp_path / "a.jpg")
    reduced = open_image(tmp_path / "a.jpg", short_side=100)
    assert 100 <= min(reduced.size) < 1200
    assert open_image(tmp_path / "a.jpg", short_side=2000).size == (1600, 1200)


def refuse(path: Path) -> str:
    """Open a file that is no image; give what is said about it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing but the error is said
        with pytest.raises(FileError) as caught:
            open_image(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("suffix", [s for s in SUFFIXES if s not in {".jpeg", ".tiff"} | MEDICAL | SLIDES])
def test_damaged_files(suffix, tmp_path):
    whole, path = tmp_path / f"whole{suffix}", tmp_path / f"damaged{suffix}"
    save_image(np.ones((30, 40, 3), np.uint8) if suffix == ".npy" else smooth("RGB"), whole)
    content = whole.read_bytes()
    for part in (
        content[: len(content) // 2],
        content[:20],
        content[:1],
        b"",
        b"hello world",
        os.urandom(300),
    ):
        path.write_bytes(part)
        refuse(path)
    assert open_image(whole) is not None


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("files")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".bmp", ".webp", ".npy"])
@given(place=st.floats(0, 1, exclude_max=True), value=st.integers(0, 255), cut=st.booleans())
@example(place=0.04296875, value=0, cut=False)  # NumPy reads .npy headers with Python's tokenizer
def test_a_wrong_byte_gives_an_image_or_our_error(suffix, folder, place, value, cut):
    whole, path = folder / f"whole{suffix}", folder / f"damaged{suffix}"
    if not whole.exists():
        save_image(np.ones((6, 7, 3), np.uint8) if suffix == ".npy" else smooth("RGB"), whole)
    content = bytearray(whole.read_bytes())
    at = int(place * len(content))
    content[at] = value
    path.write_bytes(content[: at + 1] if cut else content)
    try:
        open_image(path)
    except FileError as error:
        assert str(path) in str(error)


def test_missing_and_unknown_files(tmp_path):
    assert "there is no file" in refuse(tmp_path / "missing.png")
    (tmp_path / "a.xyz").write_text("x")
    assert "unknown file type '.xyz'; known are .apng .avif .bif .bmp .dcm" in refuse(tmp_path / "a.xyz")
    (tmp_path / "folder.png").mkdir()
    refuse(tmp_path / "folder.png")


def png_claiming(width: int, height: int) -> bytes:
    """Make a PNG of a few bytes that claims to be huge."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("width", "height"), [(12_000, 12_000), (100_000, 100_000), (2**31 - 1, 2**31 - 1)])
def test_images_that_claim_to_be_huge(width, height, tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(png_claiming(width, height))
    message = refuse(path)
    assert "tiles" in message or "too large" in message or "exceeds" in message


@pytest.mark.parametrize("shape", [(20_000, 20_000), (2**31, 2**31), (2**40, 2**40, 3)])
def test_arrays_that_claim_to_be_huge(shape, tmp_path):
    path = tmp_path / "bomb.npy"
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(100))
    refuse(path)


def test_npy_is_never_a_pickle(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, np.array([[print]], dtype=object), allow_pickle=True)
    refuse(path)
    np.savez(tmp_path / "b.npz", a=np.ones((4, 4)))
    (tmp_path / "b.npz").rename(tmp_path / "b.npy")
    refuse(tmp_path / "b.npy")


@pytest.mark.parametrize("shape", [(), (4,), (2, 3, 4, 3), (0, 4), (4, 0, 3)])
def test_npy_of_other_shapes(shape, tmp_path):
    np.save(tmp_path / "a.npy", np.zeros(shape, np.uint8))
    refuse(tmp_path / "a.npy")


def test_image_files(tmp_path):
    for name in ("b.png", "a.JPG", "deep/c.tif", "deep/er/d.npy", ".hidden.png", ".git/e.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "folder.png").mkdir()
    found = [p.relative_to(tmp_path).as_posix() for p in image_files(tmp_path)]
    assert found == ["a.JPG", "b.png", "deep/c.tif", "deep/er/d.npy"]
    with pytest.raises(FileError, match="there is no folder"):
        image_files(tmp_path / "missing")
    with pytest.raises(FileError, match="is a file; give the folder"):
        image_files(tmp_path / "b.png")
    with pytest.raises(FileError, match=r"no image in .*; known file types are \.apng"):
        image_files(tmp_path / "folder.png")


def test_names_without_suffix(tmp_path):
    for name, stem, suffix in [
        ("IM0001", "IM0001", ".dcm"),
        ("IM.0001", "IM.0001", ".dcm"),
        ("IM.0001-2", "IM.0001-2", ".dcm"),
        ("1.2.840.113", "1.2.840.113", ".dcm"),
        ("brain.NII.gz", "brain", ".nii.gz"),
        ("a.v2.png", "a.v2", ".png"),
        ("DICOMDIR", "DICOMDIR", ""),
    ]:
        path = tmp_path / name
        path.write_bytes(bytes(128) + b"DICM")
        assert (stem_of(path), suffix_of(path)) == (stem, suffix)
    (tmp_path / "README").write_text("x" * 200)
    assert suffix_of(tmp_path / "README") == ""
    found = {path.name for path in image_files(tmp_path)}
    assert found == {"IM0001", "IM.0001", "IM.0001-2", "1.2.840.113", "brain.NII.gz", "a.v2.png"}


@pytest.mark.parametrize("error", [RuntimeError("stop"), KeyboardInterrupt(), OSError("disk"), None])
def test_atomic(error, tmp_path):
    target = tmp_path / "new" / "file.txt"
    for before in (None, "old"):
        if before:
            target.write_text(before)
        try:
            with atomic(target) as part:
                part.write_text("half")
                assert part.parent == target.parent and part.suffix == ".txt"
                assert not target.exists() or target.read_text() == before
                if error:
                    raise error
        except BaseException as caught:
            assert caught is error or (isinstance(error, OSError) and isinstance(caught, FileError))
            assert target.exists() == bool(before) and (not before or target.read_text() == before)
        else:
            assert error is None and target.read_text() == "half"
            assert target.stat().st_mode & 0o777 == 0o666 & ~current_umask()
        assert [p.name for p in target.parent.iterdir() if p != target] == []


def test_parts_of_killed_writes_are_removed(tmp_path):
    (tmp_path / "deep").mkdir()
    keep = [tmp_path / "deep" / "a.png", tmp_path / ".hidden.png", tmp_path / "my.part.png"]
    for path in keep:
        path.write_text("x")
    block = atomic(tmp_path / "deep" / "b.png")
    part = block.__enter__()  # and never left, as if killed
    assert part.exists()
    remove_parts(tmp_path)
    assert not part.exists() and all(path.exists() for path in keep)


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_images_that_a_type_cannot_hold(tmp_path):
    for image, name in [
        (pil("RGBA"), "a.jpg"),
        (pil("I;16"), "a.jpg"),
        (pil("LA"), "a.bmp"),
        (np.zeros((4, 5), np.float32), "a.png"),
        (np.zeros((4, 5, 1), np.uint8), "b.png"),
        (pil("RGB"), "a.xyz"),
    ]:
        with pytest.raises(FileError, match=name):
            save_image(image, tmp_path / name)
    assert list(tmp_path.iterdir()) == []
