"""Which files of a folder are read, with links followed, and that nothing is left out without a word."""

import io
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image
from shard_files import contents, encoded, invert, write_images
from specimens import bank

from styleaug import FileError, apply_folder
from styleaug.evaluation.pairs import read_squares
from styleaug.fitting.fit import fit_style
from styleaug.fitting.studies import read_study
from styleaug.io import content
from styleaug.io.files import RASTERS, SUFFIXES, image_files, list_image_files, open_image
from styleaug.io.listing import list_files
from styleaug.io.lists import list_images
from styleaug.robustness.class_folders import class_names, read_class_folders


def linked(folder: Path) -> Path:
    """Make a folder of classes, one of them a link, as torchvision's `ImageFolder` reads them."""
    for index in range(6):
        for name in ("in/cat", "elsewhere/dog"):
            path = folder / name / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(index, "PNG"))
    (folder / "in/dog").symlink_to(folder / "elsewhere/dog")
    return folder / "in"


def test_class_folders_that_are_links_are_read_by_all(command, tmp_path):
    from torchvision.datasets import ImageFolder

    source = linked(tmp_path)
    expected = sorted(Path(path).relative_to(source) for path, _ in ImageFolder(str(source)).samples)
    assert [path.relative_to(source) for path in image_files(source)] == expected
    assert invert(source, tmp_path / "out").written == 12
    assert set(contents(tmp_path / "out")) == {path.as_posix() for path in expected}
    assert not (tmp_path / "out/dog").is_symlink()
    assert list_images(source).classes == ("cat",) * 6 + ("dog",) * 6
    assert class_names(source) == ("cat", "dog")
    assert len(read_class_folders(source, ["cat", "dog"], 16).labels) == 12
    assert set(read_study(source, group_by="folder").groups) == {"cat", "dog"}
    assert fit_style(source, min_images=1).bank.provenance.images == 12
    options = ("--bank", bank("reinhard-rgb").save(tmp_path / "bank.safetensors"), "--most", 12, "--size", 16)
    command("preview", source, "-o", tmp_path / "a.png", *options)
    with Image.open(tmp_path / "a.png") as sheet:
        assert sheet.height > 12 * 16


def test_loops_end(tmp_path):
    source = linked(tmp_path)
    (source / "cat/self").symlink_to(source / "cat")
    (source / "cat/up").symlink_to(source)
    (source / "cat/root").symlink_to("/")
    (source / "cat/ring").symlink_to("ring")
    (tmp_path / "elsewhere/dog/back").symlink_to(source / "cat")
    found = list_files(source, SUFFIXES)
    names = [path.relative_to(source).as_posix() for path in found.files]
    assert len(names) == 18 and "dog/back/0.png" in names
    left = {path.relative_to(source).as_posix() for path, _ in found.skipped}
    assert left >= {"cat/self", "cat/up", "cat/root", "cat/ring"}
    # As the names of what is found only: a link is what its folder holds.
    assert invert(source, tmp_path / "out").written == 18


def test_the_folder_itself_may_be_a_link(tmp_path):
    (tmp_path / "link").symlink_to(linked(tmp_path))
    assert len(image_files(tmp_path / "link")) == 12
    with pytest.raises(FileError, match="lies in"):
        invert(tmp_path / "link", tmp_path / "in/out")


def test_files_that_are_links_are_read(tmp_path):
    (source := tmp_path / "in").mkdir()
    (tmp_path / "a.png").write_bytes(encoded(0, "PNG"))
    (source / "b.png").symlink_to(tmp_path / "a.png")
    (source / "bare").symlink_to(tmp_path / "a.png")
    result = invert(source, tmp_path / "out")
    assert result.written == 1 and not (tmp_path / "out/b.png").is_symlink()
    assert "is a PNG image by its content" in result.failed[0][1]


def test_outputs_never_land_among_inputs_through_links(tmp_path):
    source = linked(tmp_path)
    before = contents(tmp_path)
    into = "write the copies to (another|a) folder"
    for out in (
        tmp_path / "elsewhere",
        tmp_path / "elsewhere/dog/new",
        tmp_path / "elsewhere/dog",
        source / "x",
    ):
        for copies in (1, 2):
            with pytest.raises(FileError, match=into):
                invert(source, out, copies=copies)
    (out := tmp_path / "out").mkdir()
    for link, target in (("cat", source / "cat"), ("dog", tmp_path / "elsewhere/dog")):
        (out / link).symlink_to(target)
        for copies in (1, 2):
            with pytest.raises(FileError, match=into):
                invert(source, out, copies=copies)
        (out / link).unlink()
    (out / "cat").mkdir()
    (out / "cat/0.png").symlink_to(source / "cat/0.png")
    with pytest.raises(FileError, match="would overwrite an input"):
        invert(source, out)
    shutil.rmtree(out)
    assert contents(tmp_path) == before
    (tmp_path / "store").mkdir()
    out.symlink_to(tmp_path / "store")
    assert invert(source, out).written == 12, "links elsewhere are fine"


def test_a_shard_may_have_its_copies_beside_it(tmp_path):
    from shard_files import write_tars

    source = write_tars(tmp_path / "in", 1)
    assert invert(source / "train-0.tar", source / "out").written == 20


def write_odd(folder: Path) -> list[str]:
    """Write what is no image that can be read, and what lies beside images; give what has to be named."""
    animations = {"moving.gif": "GIF", "moving.webp": "WEBP", "moving.png": "PNG", "moving.avif": "AVIF"}
    frames = [Image.new("RGB", (16, 16), color) for color in ("red", "green", "blue")]
    for name, kind in animations.items():
        frames[0].save(folder / name, kind, save_all=True, append_images=frames[1:])
    named = [
        *animations,
        *(f"photo{suffix}" for suffix in (".heic", ".psd", ".vsi", ".CR2", ".exr", ".jxl", ".svg")),
    ]
    for name in named[4:]:
        (folder / name).write_bytes(b"x")
    jpeg = encoded(0, "JPEG")
    for name in ("IMG_1", "photo.jpg~", "photo.jpg.bak", "photo.jpeg_large", "photo."):
        (folder / name).write_bytes(jpeg)
        named.append(name)
    for name, target in (("gone.png", "nowhere"), ("gone", "nowhere"), ("gone.txt", "nowhere")):
        (folder / name).symlink_to(target)
        named.append(name)
    os.mkfifo(folder / "pipe.png")
    os.mkfifo(folder / "pipe")
    for name in (
        "notes.txt",
        "labels.csv",
        "more.csv",
        "LICENSE",
        "Thumbs.db",
        ".hidden.png",
        "train.parquet",
    ):
        (folder / name).write_bytes(b"x")
    return [*named, "pipe.png", "pipe"]


def test_nothing_is_left_out_without_a_word(command, tmp_path):
    source = write_images(tmp_path / "in", 6)
    named = write_odd(source)
    line = "6 other files left out (.csv 2, "
    result = invert(source, tmp_path / "out", format="images")
    assert result.written == 6 and sorted(path.name for path, _ in result.failed) == sorted(named)
    assert all(str(path) in why for path, why in result.failed)
    assert result.left_out.startswith(line) and ".parquet 1" in result.left_out
    fit = fit_style(source, min_images=1)
    assert [path.name for path, _ in fit.failed] == sorted(named) and fit.left_out.startswith(line)
    read = read_class_folders(source, ["0", "1"], 16, foreign=True)
    assert {path.name for path, _ in read.failed} == set(named[4:])
    squares = read_squares(source, 100, 16, __import__("torch").Generator(), lambda count: None)
    assert {path.name for path, _ in squares.failed} == set(named)
    styles = bank("reinhard-rgb").save(tmp_path / "bank.safetensors")
    options = ("-o", tmp_path / "other", "--bank", styles, "--format", "images")
    told = command("apply", source, *options).stderr
    assert line in told and told.count("skipped: ") == len(named) and "styleaug video" in told
    command("apply", source, *options, "--strict", code=1)
    told = command(
        "fit-style", source, "-o", tmp_path / "b.safetensors", "--min-images", 1, "--strict", code=1
    )
    assert line in told.stderr and not (tmp_path / "b.safetensors").exists()


def test_a_folder_without_images_says_what_is_in_it(tmp_path):
    (tmp_path / "in").mkdir()
    named = write_odd(tmp_path / "in")[4:]
    for name in ("moving.gif", "moving.webp", "moving.png", "moving.avif", "train.parquet"):
        (tmp_path / "in" / name).unlink()
    for read in (image_files, list_images, fit_style, lambda folder: invert(folder, tmp_path / "out")):
        with pytest.raises(FileError, match=r"no image in .* 5 other files left out \(") as caught:
            read(tmp_path / "in")
        assert f"{len(named)} cannot be used; the first: " in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_opened(monkeypatch, tmp_path):
    source = write_images(tmp_path / "in", 6)
    real = os.scandir

    def closed(path: Path) -> object:
        if Path(path).name in closed_names:
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", closed)
    closed_names = {"0"}
    result = invert(source, tmp_path / "out")
    ((path, why),) = result.failed
    assert result.written == 3 and path == source / "0" and "Permission denied" in why
    closed_names = {"in"}
    with pytest.raises(FileError, match=r"cannot open the folder.*Permission denied"):
        invert(source, tmp_path / "other")


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "a/" * 3000])
def test_folders_that_cannot_be(name, tmp_path):
    with pytest.raises(FileError, match=r"cannot open the folder|there is no folder"):
        image_files(tmp_path / name)


@pytest.mark.parametrize("missing", ["AVIF", "JPEG2000", "WEBP"])
def test_where_pillow_lacks_a_format_its_files_are_named(missing, monkeypatch, tmp_path):
    from styleaug.io import files

    source = write_images(tmp_path / "in", 2)
    suffix = next(suffix for suffix, codec in SUFFIXES.items() if codec.name == missing)
    (source / f"a{suffix}").write_bytes(encoded(0, missing))
    (source / "b.jpg").write_bytes(encoded(0, missing))
    known = {key: codec for key, codec in SUFFIXES.items() if codec.name != missing}
    monkeypatch.setattr(files, "SUFFIXES", known)
    monkeypatch.setattr("styleaug.offline.folder.KINDS", dict.fromkeys(known, "images"))
    monkeypatch.delitem(RASTERS, missing)
    result = invert(source, tmp_path / "out")
    assert result.written == 2
    assert {path.name for path, _ in result.failed} == {f"a{suffix}", "b.jpg"}
    assert f"{suffix} images cannot be read" in result.failed[0][1]


def deep_files(folder: Path) -> None:
    """Write images of more than 8 bits, in formats of which PIL gives 8."""
    (folder / "a.ppm").write_bytes(b"P6\n# made\n2 1\n65535\n" + bytes(range(12)))
    file = io.BytesIO()
    Image.new("I;16", (16, 16), 5).save(file, "JPEG2000")
    grey = file.getvalue()
    at = grey.index(b"\xff\x4f\xff\x51") + 42
    (folder / "b.jp2").write_bytes(grey[:at] + b"\x0b" + grey[at + 1 :])  # 12 bits
    avif = encoded(0, "AVIF")
    at = avif.index(b"av1C") + 6
    (folder / "c.avif").write_bytes(avif[:at] + bytes([avif[at] | 0x40]) + avif[at + 1 :])


def test_no_bits_are_lost_in_silence(tmp_path):
    deep_files(tmp_path)
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(FileError, match="more than 8 bits"):
            open_image(path)
    whole = Image.new("I;16", (16, 16), 40_000)
    whole.save(tmp_path / "a.jp2")
    assert open_image(tmp_path / "a.jp2").tobytes() == whole.tobytes()
    color = content.check_bits("x", b"\xff\x4f\xff\x51" + bytes(36) + b"\0\3" + b"\7\1\1" * 3, "JPEG2000")
    assert color is None
    with pytest.raises(FileError, match="more than 8 bits"):
        content.check_bits("x", b"\xff\x4f\xff\x51" + bytes(36) + b"\0\3" + b"\x0f\1\1" * 3, "JPEG2000")


def test_a_still_picture_in_an_animated_format_is_one(tmp_path):
    (source := tmp_path / "in").mkdir()
    for kind, name in (("GIF", "a.gif"), ("WEBP", "b.webp"), ("PNG", "c.apng"), ("AVIF", "d.avif")):
        (source / name).write_bytes(encoded(3, kind))
    result = apply_folder(source, tmp_path / "out", bank=bank("reinhard-rgb"))
    assert (result.written, result.failed) == (4, [])


def test_masks_beside_images_are_no_styles(tmp_path):
    for folder in ("images", "masks", "deep/images", "deep/masks", "masks_of_plaster", "faces/masks"):
        (tmp_path / folder).mkdir(parents=True)
        Image.new("RGB", (8, 8), "red").save(tmp_path / folder / "1.png")
    listed = list_image_files(tmp_path)
    kept = {"images", "deep/images", "masks_of_plaster", "faces/masks"}
    assert {str(path.parent.relative_to(tmp_path)) for path in listed.files} == kept
    assert "masks 2" in listed.left_out()
    assert list_image_files(tmp_path / "masks").files  # one who names the folder means it
