"""Names that no system takes; pipes, sockets, devices and folders in place of files: our errors, at once."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save
from specimens import pil

from styleaug import (
    Provenance,
    StyleAugError,
    StyleAugment,
    StyleBank,
    apply_folder,
    export_onnx,
    fit_style,
    load_bank,
    load_generator,
    preview,
)
from styleaug.errors import FileError
from styleaug.io.files import open_image, save_image
from styleaug.io.lists import list_images
from styleaug.io.paths import check_path, check_regular
from styleaug.perceptual import VGG19
from styleaug.sheets import check_report
from styleaug.training.config import preset, read_config
from styleaug.training.data import TrainingData
from styleaug.video.film import style_film

pytestmark = pytest.mark.timeout(30)

SUFFIXES = [
    "",
    ".safetensors",
    ".png",
    ".npy",
    ".dcm",
    ".nii.gz",
    ".tif",
    ".csv",
    ".json",
    ".toml",
    ".mp4",
    ".tar",
]
NAMES = {
    "nul": "a\0b",
    "surrogate": "a\ud800",
    "long": "x" * 300,
    "deep": "/".join(["y" * 200] * 30),
}
READERS: dict[str, Callable[[str], Any]] = {
    "bank": load_bank,
    "StyleBank.load": StyleBank.load,
    "generator": load_generator,
    "StyleAugment": StyleAugment,
    "StyleAugment(generator)": lambda path: StyleAugment(generator=path),
    "image": open_image,
    "fit": lambda path: fit_style(path, min_images=1),
    "fit-list": lambda path: fit_style([Path(path)], min_images=1),
    "fit-generator": lambda path: fit_style("images", generator=path),
    "apply": lambda path: apply_folder(path, "out", generator="hed-jitter"),
    "apply-bank": lambda path: apply_folder("images", "out", bank=path),
    "preview": lambda path: preview([path], "sheet.png", generator="hed-jitter"),
    "film": lambda path: style_film(path, "out.mp4", generator="hed-jitter"),
    "film-mask": lambda path: style_film("images", "out.gif", generator="hed-jitter", mask=path),
    "export": lambda path: export_onnx(path, "out.onnx"),
    "export-samples": lambda path: export_onnx("reinhard-rgb", "out.onnx", samples=path),
    "config": lambda path: read_config(Path(path)),
    "list": lambda path: list_images(Path(path)),
    "train": lambda path: TrainingData(Path(path), Path("images"), preset("cyclegan"), paired=False),
    "reference": lambda path: check_report(Path("report.html"), Path(path), [Path("images")]),
    "vgg": lambda path: VGG19.from_file(Path(path)),
}
WRITERS: dict[str, Callable[[str], Any]] = {
    "bank": lambda path: StyleBank(torch.rand(2, 6), Provenance("g", "f", 2)).save(path),
    "image": lambda path: save_image(pil(size=(16, 16)), Path(f"{path}.png")),
    "fit-keep": lambda path: fit_style("images", min_images=1, keep=Path(path)),
    "apply": lambda path: apply_folder("images", path, generator="hed-jitter"),
    "preview": lambda path: preview(["images"], f"{path}.png", generator="hed-jitter"),
    "film": lambda path: style_film("images", f"{path}.gif", generator="hed-jitter"),
    "export": lambda path: export_onnx("reinhard-rgb", f"{path}.onnx"),
    "report": lambda path: check_report(Path(f"{path}.html"), None, [Path("images")]),
}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    pil(size=(20, 20)).save(tmp_path / "images" / "a.png")


@pytest.mark.parametrize("suffix", ["", ".safetensors", ".png"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("reader", READERS)
def test_names_that_no_file_has_are_our_errors(reader, name, suffix):
    with pytest.raises(StyleAugError) as caught:
        READERS[reader](NAMES[name] + suffix)
    assert len(str(caught.value)) < 7000


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("writer", WRITERS)
def test_names_that_no_file_has_are_refused_for_output(writer, name):
    with pytest.raises(StyleAugError):
        WRITERS[writer](NAMES[name])


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("reader", READERS)
def test_a_named_pipe_is_not_waited_for(reader, suffix):
    os.mkfifo(f"pipe{suffix}")
    with pytest.raises(StyleAugError):
        READERS[reader](f"pipe{suffix}")


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    "kind", ["/dev/zero", "/dev/null", "socket.safetensors", "run", "nothing.safetensors"]
)
def test_what_is_no_ordinary_file_is_not_opened(reader, kind):
    if kind == "run":  # what a run folder holds may be pipes, too
        os.mkdir("run")
        for name in ("bank.safetensors", "generator.safetensors", "config.json", "a.png"):
            os.mkfifo(f"run/{name}")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.safetensors")
        with pytest.raises(StyleAugError):
            READERS[reader](kind)


def test_the_message_says_what_it_is(tmp_path):
    os.mkfifo("pipe.safetensors")
    os.symlink("pipe.safetensors", "link.safetensors")
    for name in ("pipe.safetensors", "link.safetensors"):
        for read in (load_bank, load_generator, check_regular):
            with pytest.raises(StyleAugError, match=rf"{name}: it is a named pipe; give an ordinary file"):
                read(name)
    with pytest.raises(FileError, match="/dev/null: it is a device"):
        check_regular("/dev/null")
    with pytest.raises(FileError, match="it is a folder"):
        check_regular(tmp_path)
    with pytest.raises(FileError, match="No such file"):
        check_regular("missing")


def test_names_that_are_odd_but_possible_are_taken(tmp_path):
    for name in (b"caf\xe9", "naïve ✓".encode(), b"new\nline", b"-x", b" "):
        path = Path(os.fsdecode(name) + ".safetensors")
        assert check_path(path) == path
        made = StyleBank(torch.rand(2, 6), Provenance("g", "f", 2))
        assert load_bank(made.save(path)) == made
        assert check_regular(path) == path


def test_lone_surrogates_in_metadata_do_no_harm(tmp_path):
    meta = (
        '{"format": 1, "generator": "reinhard-rgb", "fingerprint": "\\ud800", "images": 1, '
        '"created": "\\udcff", "version": "\\udfff", "licence": "\\ud83d"}'
    )
    path = tmp_path / "bank.safetensors"
    path.write_bytes(save({"codes": torch.rand(1, 6)}, {"styleaug_bank": meta}))
    with pytest.warns(UserWarning, match="no digest"):
        made = load_bank(path)
    assert load_bank(made.save(tmp_path / "again.safetensors")) == made
    assert made.describe()["licence"] == "\ud83d"
    with pytest.raises(StyleAugError):
        StyleAugment(made)
