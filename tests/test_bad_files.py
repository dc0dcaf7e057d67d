"""Whatever is wrong with a file is a line about that file, and the run goes on; on every way a run takes."""

import errno
import io
import os
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from shard_files import check_once, contents, encoded, invert, write_images, write_tars
from specimens import Spy, bank, pil
from test_series import write_series

from styleaug import BankError, ConfigError, FileError, StyleAugment, StyleBank, apply_folder, load_bank
from styleaug.fitting import studies
from styleaug.fitting.fit import fit_style
from styleaug.io import files
from styleaug.io.atomic import OutputError
from styleaug.io.files import RASTERS, SUFFIXES, Scan, image_files, open_image, save_image
from styleaug.offline import copies, folder
from styleaug.robustness.class_folders import read_class_folders
from styleaug.training import data as training_data


class UnknownError(Exception):
    """No library that we know raises it."""


ODD = [
    UnknownError("boom"),
    KeyError("x"),
    RecursionError("deep"),
    MemoryError(),
    AssertionError(),
    StopIteration(),
    FileNotFoundError(errno.ENOENT, "no such file", "elsewhere"),
    UnicodeEncodeError("utf-8", "\udc80", 0, 1, "no"),
    PermissionError(errno.EACCES, "denied"),
    OSError("without a number"),
]


def failing(error: Exception) -> Any:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


def codec_that_fails(suffix: str, error: Exception, when: str) -> files.Codec:
    """Make a codec that fails as a file is opened, or as it is written: by itself, or as scans do."""
    codec = SUFFIXES[suffix]
    if when == "open":
        return replace(codec, open=failing(error))
    scan = Scan(np.zeros((1, 16, 16), np.uint8), (0, 255), False, failing(error))
    picture = scan if when == "scan" else Image.new("RGB", (16, 16))
    return replace(codec, open=lambda *_: picture, save=failing(error), modes=frozenset())


@pytest.mark.parametrize("when", ["open", "save", "scan"])
@pytest.mark.parametrize("suffix", sorted(SUFFIXES))
def test_a_codec_that_raises_costs_its_file_only(suffix, when, monkeypatch, tmp_path):
    source = write_images(tmp_path / "in", 3)
    (source / f"0/bad{suffix}").write_bytes(b"\x01")
    (source / "0/01b.png").write_bytes(encoded(7, "PNG"))
    for number, error in enumerate(ODD[:1] if suffix not in (".png", ".dcm") else ODD):
        with monkeypatch.context() as patch:
            patch.setitem(files.SUFFIXES, suffix, codec_that_fails(suffix, error, when))
            out = tmp_path / f"out{number}"
            result = invert(source, out)
            bad = [(path, why) for path, why in result.failed if path.name == f"bad{suffix}"]
            assert bad and all(str(source / "0/bad") in why or str(out / "0/bad") in why for _, why in bad)
            assert result.written >= (0 if suffix in (".png", ".jpeg") else 4)
            assert not list(out.rglob(".*"))
            (again,) = {path for path, _ in invert(source, out).failed if path.name == f"bad{suffix}"}
            assert again == bad[0][0]


@pytest.mark.parametrize("error", ODD, ids=lambda error: type(error).__name__)
def test_a_fit_goes_on(error, monkeypatch, tmp_path):
    source = write_images(tmp_path / "in", 8)
    (source / "0/bad.tga").write_bytes(b"\x01")
    (source / "0/bad.dcm").write_bytes(b"\x01")
    monkeypatch.setitem(files.SUFFIXES, ".tga", codec_that_fails(".tga", error, "open"))
    for name in ("dicom_origin", "read_tags"):
        monkeypatch.setattr(studies, name, failing(error))
    fit = fit_style(source, min_images=1)
    assert len(fit.bank) == 8
    assert [path.name for path, _ in fit.failed] == ["bad.dcm", "bad.tga"]
    assert all(str(path) in why for path, why in fit.failed)


@pytest.mark.parametrize("error", ODD, ids=lambda error: type(error).__name__)
def test_training_and_evaluation_go_on(error, monkeypatch, tmp_path):
    source = write_images(tmp_path / "in", 8)
    (source / "0/bad.tga").write_bytes(b"\x01")
    monkeypatch.setitem(files.SUFFIXES, ".tga", codec_that_fails(".tga", error, "open"))
    read = read_class_folders(source, ["0", "1"], 16)
    assert len(read.labels) == 8 and [path.name for path, _ in read.failed] == ["bad.tga"]
    side = training_data.Side(training_data.list_images(source), 16, balance=False)
    assert len(list(side.readable(100))) == 8 and [path.name for path in side.failed] == ["bad.tga"]


def test_workers_go_on(monkeypatch, tmp_path):
    source = write_images(tmp_path / "in", 4)
    (source / "0/bad.tga").write_bytes(b"\x01")
    monkeypatch.setattr(
        folder, "start_context", lambda generator: get_context("fork")
    )  # which have the codec below
    for when in ("open", "save", "scan"):
        monkeypatch.setitem(files.SUFFIXES, ".tga", codec_that_fails(".tga", UnknownError("boom"), when))
        result = invert(source, tmp_path / when, workers=2)
        assert result.written == 4 and "boom" in result.failed[0][1]


@pytest.mark.parametrize("error", ODD, ids=lambda error: type(error).__name__)
def test_a_series_goes_on(error, monkeypatch, tmp_path):
    slices = write_series(tmp_path / "in", "1.2.7")

    def open_most(path: Path, **options: Any) -> Any:
        scan = open_image(path, **options)
        if path == slices[1]:
            raise error
        return replace(scan, save=failing(error)) if path == slices[2] else scan

    monkeypatch.setattr(copies, "open_image", open_most)
    result = apply_folder(tmp_path / "in", tmp_path / "out", bank=bank("reinhard-rgb"))
    assert result.written == 4 and [path for path, _ in result.failed] == slices[1:3]
    monkeypatch.setattr(copies, "_joined", failing(error))
    result = apply_folder(tmp_path / "in", tmp_path / "other", bank=bank("reinhard-rgb"))
    assert result.written == 0 and len(result.failed) == len(slices)
    monkeypatch.setattr(files, "DICOM", object())  # no file is a slice, as where its header cannot be read
    assert files.series_of(slices[0]) == ""


@pytest.mark.parametrize("error", ODD, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("step", ["decode_image", "encode_image", "open_shard"])
def test_shards_go_on(step, error, monkeypatch, tmp_path):
    source = write_tars(tmp_path / "in", 2, rows=4)
    real, calls = getattr(copies, step), []

    def sometimes(*given: Any) -> Any:
        calls.append(given)
        if len(calls) == 2:
            raise error
        return real(*given)

    monkeypatch.setattr(copies, step, sometimes)
    result = invert(source, tmp_path / "out")
    assert result.written == (4 if step == "open_shard" else 7)
    assert len(result.failed) == 1 and str(source) in result.failed[0][1]
    assert not list((tmp_path / "out").glob(".*"))


def test_an_image_that_no_generator_takes_costs_no_other_of_its_batch(tmp_path):
    class Picky(Spy):
        def forward(self, images: Any, codes: Any, strength: Any) -> Any:
            if (images.mean(dim=(1, 2, 3)) > 0.99).any():
                raise UnknownError("too bright")
            return super().forward(images, codes, strength)

    source = write_images(tmp_path / "in", 6)
    Image.new("RGB", (24, 18), "white").save(source / "0/white.png")
    result = invert(source, tmp_path / "out", generator=Picky(), copies=2)
    assert result.written == 12
    assert {path.name for path, _ in result.failed} == {"white.png"} and "too bright" in result.failed[0][1]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
@pytest.mark.parametrize("kind", ["png", "scan", "tar"])
def test_a_full_disk_ends_a_run(kind, number, monkeypatch, tmp_path):
    source = write_tars(tmp_path / "in", 1) if kind == "tar" else write_images(tmp_path / "in", 2)
    full = OSError(number, os.strerror(number))
    if kind == "png":
        monkeypatch.setattr(Path, "write_bytes", failing(full))
    elif kind == "tar":
        monkeypatch.setattr(copies.Copier, "copy_samples", failing(full))
    else:
        (source / "bad.tga").write_bytes(b"\x01")
        monkeypatch.setitem(files.SUFFIXES, ".tga", codec_that_fails(".tga", full, "scan"))
    with pytest.raises(OutputError, match=f"cannot write.*{os.strerror(number)}"):
        invert(source, tmp_path / "out")
    assert not list((tmp_path / "out").rglob(".*"))


def content_of(kind: str, mode: str) -> bytes:
    file = io.BytesIO()
    picture = pil(mode, (5, 4)).resize((20, 16)) if mode != "I;16" else pil(mode, (20, 16))
    picture.save(file, kind, **({"lossless": True} if kind == "WEBP" else {}))
    return file.getvalue()


HOLDS = {name: sorted(codec.modes) for name, codec in RASTERS.items() if name not in ("TGA", "GIF", "BMP")}
HOLDS |= {"BMP": ["L", "RGB"], "GIF": ["L", "RGB"]}
HOLDS["AVIF"] = HOLDS["WEBP"] = ["RGB", "RGBA"]
NAMED = st.sampled_from([suffix for suffix, codec in SUFFIXES.items() if codec.name in RASTERS])
CONTENTS = st.sampled_from([(kind, mode) for kind, modes in HOLDS.items() for mode in modes])


@pytest.mark.slow
@given(suffix=NAMED, content=CONTENTS)
def test_an_image_keeps_its_own_type_whatever_its_suffix_says(suffix, content, tmp_path_factory):
    kind, mode = content
    folder = tmp_path_factory.mktemp("kinds")
    source = folder / f"in/a{suffix}"
    source.parent.mkdir()
    source.write_bytes(content_of(kind, mode))
    result = invert(source.parent, folder / "out", copies=2)
    assert (result.written, result.failed) == (2, [])
    with Image.open(folder / f"out/a-1{suffix}") as image, Image.open(source) as before:
        assert image.format == before.format and image.size == before.size
    styled, plain = open_image(folder / f"out/a-1{suffix}"), open_image(source)
    assert styled.mode == plain.mode and styled.tobytes() != plain.tobytes()
    if mode.endswith("A"):
        alphas = (np.asarray(image.getchannel("A")).astype(int) for image in (styled, plain))
        assert np.abs(np.subtract(*alphas)).max() <= (4 if kind == "AVIF" else 0)


def test_what_is_not_an_image_is_named_under_every_suffix(tmp_path):
    source = write_images(tmp_path / "in", 2)
    wrong = {
        "text": b"hello",
        "ico": content_of("ICO", "RGBA"),
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n",
        "none": b"",
    }
    for suffix in SUFFIXES:
        for name, content in wrong.items():
            (source / f"{name}{suffix}").write_bytes(content)
    (source / "folder.png").mkdir()
    result = invert(source, tmp_path / "out")
    assert result.written == 2 and len(result.failed) == 4 * len(SUFFIXES)
    assert all(str(path) in why for path, why in result.failed)


@pytest.mark.parametrize("suffix", [suffix for suffix, codec in SUFFIXES.items() if codec.name in RASTERS])
@pytest.mark.parametrize("mode", ["LA", "RGBA", "I;16"])
def test_no_type_loses_transparency_or_bits_in_silence(suffix, mode, tmp_path):
    image = pil(mode, (20, 16))
    path = tmp_path / f"a{suffix}"
    try:
        save_image(image, path)
    except FileError as error:
        assert "cannot hold" in str(error) and not path.exists()
        return
    back = open_image(path)
    assert back.mode == image.mode or (back.mode, mode) == ("RGBA", "LA")
    if mode == "I;16":
        assert back.tobytes() == image.tobytes()
    elif suffix not in (".gif", ".avif"):
        assert back.getchannel("A").tobytes() == image.getchannel("A").tobytes()


def test_a_bmp_with_transparency_is_one_for_other_programs_too(tmp_path):
    image = pil("RGBA", (7, 5))
    save_image(image, tmp_path / "a.bmp")
    with Image.open(tmp_path / "a.bmp") as back:
        assert (back.format, back.mode, back.tobytes()) == ("BMP", "RGBA", image.tobytes())


def test_names_that_cannot_be_written(tmp_path):
    source = write_images(tmp_path / "in", 3)
    for name in ("n" * 251, "é" * 125 + "x", "日" * 83, "IM." + "1" * 250):
        (source / (name if name[:2] == "IM" else f"{name}.png")).write_bytes(encoded(0, "PNG"))
    result = invert(source, tmp_path / "one")
    assert result.written == 6, "parts have shorter names"
    for _ in range(2):
        result = invert(source, tmp_path / "two", copies=2)
        assert result.written + result.skipped == 8
        long = [(path, why) for path, why in result.failed if "too long" in why]
        assert len({path for path, _ in long}) == 2 and all(str(path.name) in why for path, why in long)
    check_once(tmp_path / "two", 8)


def test_outputs_that_are_something_else(tmp_path):
    source = write_images(tmp_path / "in", 6)
    victim = tmp_path / "victim.png"
    victim.write_bytes(b"mine")
    out = tmp_path / "out/0"
    (out / "00.jpeg").mkdir(parents=True)
    os.mkfifo(out / "02.jpeg")
    (out / "04.jpeg").symlink_to(victim)
    result = invert(source, tmp_path / "out")
    assert result.written == 3
    reasons = [why for _, why in result.failed]
    assert [path.name for path, _ in result.failed] == ["00.jpeg", "02.jpeg", "04.jpeg"]
    for word, why in zip(["is a folder, not a file", "is a pipe", "is a link"], reasons, strict=True):
        assert word in why
    assert victim.read_bytes() == b"mine"


def test_names_that_would_be_folders_of_others(tmp_path):
    (source := tmp_path / "in").mkdir()
    (source / "a.png").write_bytes(encoded(0, "PNG"))
    (source / "a-1.png").mkdir()
    (source / "a-1.png/b.png").write_bytes(encoded(1, "PNG"))
    for _ in range(2):
        result = invert(source, tmp_path / "out", copies=2)
        ((path, why),) = result.failed
        assert path == source / "a.png" and "has to be a folder" in why
    assert result.skipped == 3


def test_names_that_differ_in_capitals_only(monkeypatch, tmp_path):
    (source := tmp_path / "in").mkdir()
    for index, name in enumerate(("A.png", "a.png", "a.PNG", "b.png")):
        (source / name).write_bytes(encoded(index, "PNG"))
    assert invert(source, tmp_path / "plain").written == 4
    monkeypatch.setattr("styleaug.offline.folder.is_caseless", lambda folder: True)
    result = invert(source, tmp_path / "caseless")
    assert result.written == 2
    assert [path.name for path, _ in result.failed] == ["a.PNG", "a.png"]
    assert all("for one name" in why for _, why in result.failed)


def test_a_source_that_may_not_be_read(monkeypatch, tmp_path):
    source = write_images(tmp_path / "in", 3)
    real = Path.open

    def closed(self: Path, *given: Any, **options: Any) -> Any:
        if self.name == "00.jpeg":
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(self, *given, **options)

    monkeypatch.setattr(Path, "open", closed)
    result = invert(source, tmp_path / "out")
    assert result.written == 2 and "Permission denied" in result.failed[0][1]


def test_the_command_goes_on_and_says_whether_anything_was_done(command, tmp_path):
    styles = bank("reinhard-rgb").save(tmp_path / "bank.safetensors")
    (source := tmp_path / "in").mkdir()
    (source / "bad.png").write_text("x")
    options = ("-o", tmp_path / "out", "--bank", styles)
    ended = command("apply", source, *options, code=1)
    assert "0 images written" in ended.stderr and "1 files skipped" in ended.stderr
    (source / "a.jpg").write_bytes(content_of("PNG", "RGBA"))
    assert "1 images written" in command("apply", source, *options).stderr
    assert "0 images written, 1 already there" in command("apply", source, *options).stderr
    command("apply", source, *options, "--strict", code=1)


@pytest.mark.parametrize("before", [False, True])
def test_a_run_that_cannot_start_leaves_nothing(before, monkeypatch, tmp_path):
    source, out = write_images(tmp_path / "in", 2), tmp_path / "new/out"
    if before:
        out.mkdir(parents=True)
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(ConfigError, match="needs Ray"):
        invert(source, out, engine="ray")
    assert (
        contents(tmp_path / "new") == {} and out.exists() == before and (tmp_path / "new").exists() == before
    )
    assert not out.exists() or not list(out.iterdir())
    assert invert(source, out).written == 2
    with pytest.raises(ConfigError, match="needs Ray"):
        (source / "0/more.png").write_bytes(encoded(5, "PNG"))
        invert(source, out, engine="ray")
    check_once(out, 2)
    assert image_files(out)


@pytest.mark.filterwarnings("default")
def test_a_preview_goes_on(tmp_path, command):
    for name in ("a", "c"):
        random_image(tmp_path / f"{name}.png")
    (tmp_path / "b.png").write_bytes(b"no picture")
    told = command(
        "preview", tmp_path, "--bank", "photo-tones", "--size", 16, "-o", tmp_path / "out" / "sheet.png"
    )
    assert "b.png" in told.stderr and (tmp_path / "out" / "sheet.png").exists()
    told = command("preview", tmp_path / "b.png", "-o", tmp_path / "out" / "none.png", code=1)
    assert "b.png" in told.stderr and not (tmp_path / "out" / "none.png").exists()


@pytest.mark.parametrize(
    "text", ['{"steps": "many"}', '{"size": NaN}', '{"recipe": ["cut"]}', '{"unknown": 1}']
)
def test_options_that_are_none_name_their_file(text, tmp_path, command):
    random_image(tmp_path / "in" / "a.png")
    config = tmp_path / "options.json"
    config.write_text(text)
    told = command(
        "train", "cut", tmp_path / "in", tmp_path / "in", "-o", tmp_path / "run", "--config", config, code=1
    )
    assert "options.json" in told.stderr


def test_a_bank_with_impossible_codes_is_named(tmp_path):
    bank = load_bank("photo-tones")
    wrong = StyleBank(bank.codes.clone().fill_(1e9), bank.provenance)
    wrong.save(tmp_path / "wrong.safetensors")
    with pytest.raises(BankError, match=r"wrong\.safetensors: entry 0 of style 0"):
        StyleAugment(tmp_path / "wrong.safetensors")


def random_image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(str(path))).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
