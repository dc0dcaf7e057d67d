"""What a file says beside its pixels stays in its copy; colour profiles go with the pixels they describe."""

import struct
from io import BytesIO
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageCms, TiffImagePlugin
from PIL.PngImagePlugin import PngInfo
from specimens import pil

from styleaug.images import to_pixels
from styleaug.io.files import Scan, decode_image, encode_image, open_image, save_image
from styleaug.io.headers import exif_of
from styleaug.io.profiles import fits, to_rgb

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def profile(space: bytes) -> bytes:
    """Make a small profile that maps the corners of a colour space to colours of its own."""
    channels = {b"CMYK": 4, b"RGB ": 3, b"GRAY": 1}[space]
    corners = [
        (255 - 50 * sum(corner), (128 + 60 * corner[0]) & 255, (128 - 70 * corner[-1]) & 255)
        for corner in product((0, 1), repeat=channels)
    ]
    lut = b"mft1\0\0\0\0" + bytes([channels, 3, 2, 0])
    lut += b"".join(struct.pack(">i", 65536 * (n % 4 == 0)) for n in range(9))
    lut += bytes(range(256)) * channels + bytes(sum(corners, ())) + bytes(range(256)) * 3
    white = b"XYZ \0\0\0\0" + struct.pack(">iii", 63190, 65536, 54061)
    start = 128 + 4 + 2 * 12
    table = struct.pack(">I4sII4sII", 2, b"A2B0", start, len(lut), b"wtpt", start + len(lut), len(white))
    body = table + lut + white
    head = struct.pack(">I4sI4s4s4s", 128 + len(body), b"lcms", 0x02400000, b"prtr", space, b"Lab ")
    head += bytes(12) + b"acsp" + bytes(28) + struct.pack(">iii", 63190, 65536, 54061)
    return head + bytes(128 - len(head)) + body


def smooth(mode: str) -> Image.Image:
    """Make a picture that JPEG can hold well."""
    return pil("RGB", (5, 4)).resize((40, 32), Image.Resampling.BICUBIC).convert(mode)


def copy(path, name: str = "copy") -> Image.Image:
    """Write what `apply` would at strength 0, and open it with PIL."""
    target = path.with_name(f"{name}{path.suffix}")
    pixels, restore = to_pixels(open_image(path))
    save_image(restore(pixels), target)
    with Image.open(target) as image:
        image.load()
        return image


@pytest.mark.parametrize("name", ["a.jpg", "a.tif", "deflated.tif"])
def test_cmyk_by_its_profile(name, tmp_path):
    image, own = smooth("CMYK"), profile(b"CMYK")
    options = (
        {"quality": 95} if name == "a.jpg" else {"compression": "tiff_deflate" if "fl" in name else "raw"}
    )
    image.save(tmp_path / name, icc_profile=own, **options)
    with Image.open(tmp_path / name) as stored:  # JPEG has CMYK upside down, as Adobe writes it
        assert np.abs(np.asarray(stored).astype(int) - np.asarray(image)).mean() < 8
        source = ImageCms.ImageCmsProfile(BytesIO(own))
        wanted = ImageCms.profileToProfile(stored, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
        plain = np.asarray(stored.convert("RGB")).astype(int)
    found = open_image(tmp_path / name)
    assert found.mode == "RGB" and np.array_equal(np.asarray(found), np.asarray(wanted))
    assert np.abs(np.asarray(found) - plain).mean() > 10
    copied = copy(tmp_path / name)
    assert copied.mode == "RGB" and "icc_profile" not in copied.info


@given(
    cut=st.integers(0, 2000), flips=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=4)
)
def test_damaged_profiles(cut, flips):
    own = bytearray(profile(b"CMYK"))
    for place, value in flips:
        own[place % len(own)] = value
    image = smooth("CMYK")
    image.info["icc_profile"] = bytes(own[: max(0, len(own) - cut)])
    shown = to_rgb(image)
    assert (
        shown.mode == "RGB" and shown.size == image.size and not fits(shown.info.get("icc_profile"), "CMYK")
    )


@pytest.mark.parametrize(
    "own", [b"", b"a profile", bytes(200), profile(b"CMYK")[:140], SRGB, profile(b"GRAY")]
)
def test_profiles_of_no_use_are_left_out(own, tmp_path):
    image = smooth("CMYK")
    image.save(tmp_path / "a.jpg", icc_profile=own, quality=100)
    with Image.open(tmp_path / "a.jpg") as stored:
        assert np.array_equal(np.asarray(open_image(tmp_path / "a.jpg")), np.asarray(stored.convert("RGB")))
    assert "icc_profile" not in copy(tmp_path / "a.jpg").info


@pytest.mark.parametrize("mode", ["LAB", "YCbCr"])
def test_other_colours(mode, tmp_path):
    wanted = smooth("RGB")
    if mode == "LAB":
        spaces = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        image = ImageCms.profileToProfile(wanted, *spaces, outputMode="LAB")
        own = ImageCms.ImageCmsProfile(spaces[1]).tobytes()
    else:
        image, own = wanted.convert(mode), SRGB
    image.save(tmp_path / "a.tif", icc_profile=own)
    with Image.open(tmp_path / "a.tif") as stored:
        assert stored.mode == mode
    copied = copy(tmp_path / "a.tif")
    assert copied.mode == "RGB" and copied.info.get("icc_profile") == (SRGB if mode == "YCbCr" else None)
    assert np.abs(np.asarray(copied).astype(int) - np.asarray(wanted)).mean() < 3


@pytest.mark.parametrize("suffix", ["png", "tif", "jpg", "webp"])
@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "P", "1"])
@pytest.mark.parametrize("space", [b"RGB ", b"GRAY", b"CMYK"])
def test_profiles_go_with_the_mode(suffix, mode, space, tmp_path):
    if (suffix == "jpg" and mode not in ("L", "RGB")) or (suffix == "webp" and mode not in ("RGB", "RGBA")):
        pytest.skip("no such file")
    if mode == "LA" and suffix == "tif":
        pytest.skip("needs no second look")
    path = tmp_path / f"a.{suffix}"
    smooth("P" if mode == "P" else mode).save(path, icc_profile=profile(space))
    grey = mode in ("1", "L", "LA")
    copied = copy(path).info.get("icc_profile")
    assert copied == (profile(space) if space == (b"GRAY" if grey else b"RGB ") else None)


def exif(orientation: int = 1) -> Image.Exif:
    """Make EXIF as a camera writes it."""
    made = Image.Exif()
    made[ExifTags.Base.Make], made[ExifTags.Base.Orientation] = "camera", orientation
    made[ExifTags.Base.Artist] = "J\xc3\xb6rg".encode("latin-1")
    made.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] = "2020:02:03 04:05:06"
    made.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] = "N"
    return made


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_exif(suffix, orientation, tmp_path):
    path = tmp_path / f"a.{suffix}"
    extra = {} if suffix == "webp" else {"dpi": (300, 150)}
    xmp = b'<x:xmpmeta tiff:Orientation="%d"/>' % orientation
    smooth("RGB").save(path, exif=exif(orientation), **extra, **({} if suffix == "png" else {"xmp": xmp}))
    copied = copy(path)
    if extra:
        wanted = (150, 300) if orientation == 6 else (300, 150)
        assert copied.info["dpi"] == pytest.approx(wanted, abs=0.02)
    tags = copied.getexif()
    assert tags[ExifTags.Base.Make] == "camera" and tags.get(ExifTags.Base.Orientation, 1) == 1
    assert tags[ExifTags.Base.Artist].encode("latin-1").decode() == "Jörg"
    assert tags.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] == "2020:02:03 04:05:06"
    assert tags.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] == "N"
    assert copied.size == ((32, 40) if orientation == 6 else (40, 32))
    if suffix != "png":
        assert copied.info.get("xmp") == (xmp if orientation == 1 else None), "which may say it is turned"
    again = copy(tmp_path / f"copy.{suffix}", "again")
    assert again.size == copied.size and dict(again.getexif()) == dict(tags)


def test_a_shard_keeps_exif_and_orientation():
    for kind in ("JPEG", "PNG", "WEBP"):
        content = BytesIO()
        smooth("RGB").save(content, kind, exif=exif(6), dpi=(300, 300))
        image, found = decode_image(content.getvalue())
        assert found == kind and image.size == (40, 32)
        with Image.open(BytesIO(encode_image(image, kind))) as back:
            assert (
                back.getexif()[ExifTags.Base.Orientation] == 6
                and back.getexif()[ExifTags.Base.Make] == "camera"
            )


def test_thumbnails_are_not_kept(tmp_path):
    smooth("RGB").save(tmp_path / "a.jpg", exif=exif())
    content = (tmp_path / "a.jpg").read_bytes()
    start = content.index(b"Exif\0\0") - 4
    with Image.open(tmp_path / "a.jpg") as image:
        tiff = bytearray(image.info["exif"][6:])
    order = "<" if tiff[:2] == b"II" else ">"
    count = struct.unpack_from(f"{order}H", tiff, 8)[0]
    struct.pack_into(f"{order}I", tiff, 10 + 12 * count, len(tiff))  # where the second directory is
    tiff += struct.pack(f"{order}HHHII", 1, 0x0201, 4, 1, len(tiff) + 18) + bytes(4) + b"THUMBNAIL"
    marker = b"\xff\xe1" + struct.pack(">H", len(tiff) + 8) + b"Exif\0\0" + bytes(tiff)
    rest = start + 2 + int.from_bytes(content[start + 2 : start + 4], "big")
    (tmp_path / "a.jpg").write_bytes(content[:start] + marker + content[rest:])
    with Image.open(tmp_path / "a.jpg") as image:
        assert image.getexif().get_ifd(ExifTags.IFD.IFD1)
    assert copy(tmp_path / "a.jpg").getexif()[ExifTags.Base.Make] == "camera"
    assert b"THUMBNAIL" not in (tmp_path / "copy.jpg").read_bytes()


@given(
    content=st.binary(max_size=200),
    flips=st.lists(st.tuples(st.integers(0, 300), st.integers(0, 255)), max_size=9),
)
def test_damaged_exif(content, flips):
    damaged = bytearray(exif(3).tobytes())
    for place, value in flips:
        damaged[place % len(damaged)] = value
    for found in (b"Exif\0\0" + content, b"Exif\0\0II*\0\x08\0\0\0" + content, bytes(damaged)):
        image, target = smooth("RGB"), BytesIO()
        image.info["exif"] = found
        kept = exif_of(image, upright=True)
        image.save(target, "JPEG", exif=kept)
        assert len(kept) < 2**16


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "tif"])
@pytest.mark.parametrize("mode", ["L", "RGB", "P", "I;16"])
def test_dpi(suffix, mode, tmp_path):
    if suffix in ("jpg", "bmp") and mode in ("P", "I;16"):
        pytest.skip("no such file, or no other than those tried")
    path = tmp_path / f"a.{suffix}"
    image = pil("I;16") if mode == "I;16" else smooth(mode)
    image.save(path, dpi=(300, 150))
    assert copy(path).info["dpi"] == pytest.approx((300, 150), abs=0.02)
    if suffix == "png":
        before, after = (p.read_bytes() for p in (path, tmp_path / "copy.png"))
        assert before[(at := before.index(b"pHYs")) : at + 13] in after, "to the last bit"


def test_text_and_colours_of_png(tmp_path):
    said = PngInfo()
    said.add_text("Description", "a cell", zip=True)
    said.add_itxt("Titel", "Größe")
    said.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="6"/>')
    said.add(b"gAMA", (100_000).to_bytes(4, "big"))
    said.add(b"cHRM", bytes(range(32)))
    smooth("RGB").save(tmp_path / "a.png", pnginfo=said)
    copied = copy(tmp_path / "a.png")
    assert copied.size == (32, 40), "turned, as XMP says"
    assert copied.info["Description"] == "a cell" and copied.info["Titel"] == "Größe"
    assert copied.info["gamma"] == 1.0 and "chromaticity" in copied.info
    assert copy(tmp_path / "copy.png", "again").size == (32, 40), "not turned twice"


def test_header_of_deep_png(tmp_path):
    imagecodecs = pytest.importorskip("imagecodecs")
    from styleaug.io.png import part

    plain = bytes(imagecodecs.png_encode(np.full((4, 5, 3), 300, np.uint16)))
    parts = part(b"pHYs", struct.pack(">IIB", 3000, 3000, 1)) + part(b"tEXt", b"Author\0me")
    (tmp_path / "a.png").write_bytes(plain[:33] + parts + plain[33:])
    scan = open_image(tmp_path / "a.png")
    save_image(scan, tmp_path / "b.png")
    with Image.open(tmp_path / "b.png") as image:
        assert image.info["Author"] == "me" and image.info["dpi"] == pytest.approx((76.2, 76.2))


TAGS = {270: "a cell", 271: "maker", 305: "program", 306: "2020:02:03 04:05:06", 315: "someone", 33432: "(c)"}


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "packbits", "tiff_deflate", "jpeg"])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1"])
def test_tags_of_tiff(compression, mode, tmp_path):
    if compression == "jpeg" and mode not in ("L", "RGB"):
        pytest.skip("no such file")
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, value in TAGS.items():
        tags[tag] = value
    tags[282], tags[283], tags[296] = 100.0, 50.0, 3
    tags[33550], tags.tagtype[33550] = (0.5, 0.5, 0.0), 12  # of GeoTIFF
    smooth(mode).save(tmp_path / "a.tif", tiffinfo=tags, compression=compression)
    copied = copy(tmp_path / "a.tif")
    assert {tag: copied.tag_v2[tag] for tag in TAGS} == TAGS
    assert [float(copied.tag_v2[tag]) for tag in (282, 283, 296)] == [100, 50, 3]
    assert copied.tag_v2[33550] == (0.5, 0.5, 0.0)
    kept = compression if compression in ("raw", "tiff_lzw", "packbits") else "tiff_adobe_deflate"
    assert copied.info["compression"] == kept


def test_a_turned_tiff(tmp_path):
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[274], tags[270], tags[282], tags[283], tags[296] = 6, "a cell", 100.0, 50.0, 3
    smooth("RGB").save(tmp_path / "a.tif", tiffinfo=tags)
    copied = copy(tmp_path / "a.tif")
    assert copied.size == (32, 40) and 274 not in copied.tag_v2 and copied.tag_v2[270] == "a cell"
    assert (copied.tag_v2[282], copied.tag_v2[283]) == (50, 100)


@pytest.mark.parametrize("dtype", ["i1", "i2", "i4", "u4", "i8", "f2", "f4", "u2", "u1"])
@pytest.mark.parametrize("shape", [(20, 30), (20, 30, 3), (4, 20, 30)])
@pytest.mark.parametrize("form", ["plain", "deflate", "big"])
def test_types_and_texts_of_tiff(dtype, shape, form, tmp_path):
    tifffile = pytest.importorskip("tifffile")
    low = 0 if dtype[0] == "u" else -100
    values = np.random.default_rng(0).integers(low, 100, shape).astype(dtype)
    tifffile.imwrite(
        tmp_path / "a.tif",
        values,
        bigtiff=form == "big",
        compression="zlib" if form == "deflate" else None,
        photometric="rgb" if shape[-1] == 3 else "minisblack",
        metadata=None,
        description="Größe".encode(),
        software="program",
        resolution=(300, 200),
        resolutionunit=3,
        extratags=[(306, 2, 0, "2020:02:03 04:05:06", True), (315, 2, 0, "someone", True)],
    )
    picture = open_image(tmp_path / "a.tif")
    if dtype in ("i1", "i2"):
        assert (isinstance(picture, Scan) and picture.frames.dtype == np.int16) or dtype == "i1"
    save_image(picture, tmp_path / "b.tif")
    with tifffile.TiffFile(tmp_path / "b.tif") as file:
        found, page = file.asarray(), file.pages[0]
        assert found.dtype == values.dtype and np.array_equal(found, values)
        texts = [page.tags.valueof(tag) for tag in (270, 305, 306, 315)]
        assert texts == ["Größe", "program", "2020:02:03 04:05:06", "someone"]
        assert page.resolution == (300, 200) and int(page.resolutionunit) == 3


def test_signed_bytes_are_shown_in_their_order(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    values = np.arange(-128, 128, dtype=np.int8).reshape(16, 16)
    tifffile.imwrite(tmp_path / "a.tif", values)
    np.save(tmp_path / "a.npy", values)
    for name in ("a.tif", "a.npy"):
        scan = open_image(tmp_path / name)
        assert isinstance(scan, Scan) and np.array_equal(scan.frames[0], values)
        assert scan.span[0] < -120 and scan.span[1] > 120
        save_image(scan, tmp_path / f"copy-{name}")
        found = open_image(tmp_path / f"copy-{name}")
        assert isinstance(found, Scan) and np.array_equal(found.frames, scan.frames)


def test_another_type_takes_what_it_can(tmp_path):
    smooth("RGB").save(tmp_path / "a.jpg", exif=exif(), dpi=(300, 300), comment=b"hello")
    image = open_image(tmp_path / "a.jpg")
    for suffix in ("png", "webp", "tif", "bmp"):
        save_image(image, tmp_path / f"a.{suffix}")
        with Image.open(tmp_path / f"a.{suffix}") as found:
            assert suffix == "webp" or found.info["dpi"] == pytest.approx((300, 300), abs=0.02)
            assert suffix in ("tif", "bmp") or found.getexif()[ExifTags.Base.Make] == "camera"


def test_a_window_keeps_the_header(tmp_path):
    image = pil("I;16")
    image.save(tmp_path / "a.png", dpi=(300, 300))
    scan = open_image(tmp_path / "a.png", window="auto")
    assert isinstance(scan, Scan)
    save_image(scan, tmp_path / "b.png")
    with Image.open(tmp_path / "b.png") as found:
        assert found.info["dpi"] == pytest.approx((300, 300), abs=0.02)
        assert torch.equal(torch.from_numpy(np.array(found)).int(), torch.from_numpy(np.array(image)).int())
