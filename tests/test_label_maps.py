"""Label maps among the images: they are named before they are styled, and images are not."""

import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from dicom_files import write as write_dicom
from PIL import Image
from specimens import bank_of, tiny_adain

from styleaug import apply_folder
from styleaug.cli.main import main
from styleaug.errors import LabelWarning
from styleaug.fitting.fit import fit_style
from styleaug.io.files import image_files, open_image
from styleaug.io.label_maps import count_labels

nibabel = pytest.importorskip("nibabel")
SimpleITK = pytest.importorskip("SimpleITK")

RANDOM = np.random.default_rng(0)


def labels(count: int = 4, shape: tuple[int, int, int] = (5, 64, 96)) -> np.ndarray:
    """Draw blocks of labels, as organs are."""
    blocks = RANDOM.integers(0, count, (shape[0], shape[1] // 8, shape[2] // 8))
    blocks.ravel()[:count] = np.arange(count)
    return blocks.repeat(8, axis=1).repeat(8, axis=2)


def save(path: Path, values: np.ndarray) -> Path:
    """Write a volume, or its first slice."""
    name = path.name
    if ".nii" in name:
        nibabel.save(nibabel.Nifti1Image(values.T, np.eye(4)), path)
    elif path.suffix in (".nrrd", ".mha"):
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(values), str(path))
    elif path.suffix == ".dcm":
        write_dicom(path, values)
    elif name == "stack.tif":
        pages = [Image.fromarray(page) for page in values]
        pages[0].save(path, save_all=True, append_images=pages[1:])
    elif path.suffix == ".npy":
        np.save(path, values[0])
    else:
        Image.fromarray(values[0]).save(path)
    return path


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32"])
@pytest.mark.parametrize(
    "name", ["a.nii", "a.nii.gz", "a.nrrd", "a.mha", "a.dcm", "stack.tif", "a.tif", "a.png", "a.npy"]
)
def test_label_maps_are_named_and_scans_are_not(name, dtype, tmp_path):
    if dtype not in {"png": ("uint8", "uint16"), "tif": ("uint8", "uint16"),
                     "dcm": ("uint8", "uint16", "int16"),
                     "npy": ("uint8", "uint16", "int16", "int32")}.get(name[-3:], (dtype,)):  # fmt: skip
        return
    path = save(tmp_path / name, labels().astype(dtype))
    with pytest.warns(LabelWarning, match=rf"{name} has only [234] values, like.*leave it out"):
        open_image(path, to_style=True)
    open_image(path)  # a mask that is read as one
    noise = (RANDOM.random((5, 64, 96)) * 120).astype(dtype)
    open_image(save(tmp_path / name, noise), to_style=True)


@pytest.mark.parametrize("count", [2, 20, 60, 118, 250])
def test_many_labels_are_told_by_their_neighbours(count, tmp_path):
    found = open_image(save(tmp_path / "a.nii", labels(count, (5, 128, 160)).astype(np.int16)))
    assert 2 <= count_labels(found) <= count
    shuffled = RANDOM.permuted(labels(count, (5, 128, 160)).astype(np.int16), axis=2)
    if count > 32:
        assert count_labels(open_image(save(tmp_path / "b.nii", shuffled))) == 0


def test_images_are_not_taken_for_labels(tmp_path):
    y, x = np.mgrid[:96, :128]
    brain = np.where((x - 64) ** 2 + (y - 48) ** 2 < 900, RANDOM.integers(20, 200, (96, 128)), 0)
    images = {
        "ramp.png": x.astype(np.uint8), "blank.png": np.zeros((96, 128)), "brain.png": brain,
        "small.png": labels(4, (1, 16, 16))[0], "noise.png": RANDOM.integers(0, 40, (96, 128)),
    }  # fmt: skip
    for name, values in images.items():
        Image.fromarray(values.astype(np.uint8)).save(tmp_path / name)
    Image.new("RGB", (96, 96), "red").save(tmp_path / "red.png")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for path in image_files(tmp_path):
            open_image(path, to_style=True)
    assert not told


def test_apply_and_fit_style_go_on(tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("a.nii", "b.png"):
        save(tmp_path / "in" / name, labels().astype(np.uint8))
    generator = tiny_adain()
    with pytest.warns(LabelWarning) as told:
        result = apply_folder(tmp_path / "in", tmp_path / "out", bank=bank_of(generator), generator=generator)
    assert result.written == 2 and {Path(str(w.message).split(" has ")[0]).name for w in told} == {
        "a.nii",
        "b.png",
    }
    with pytest.warns(LabelWarning):
        assert len(fit_style(tmp_path / "in", generator=generator, min_images=1).bank) == 2


def test_the_commands_name_three_and_count_the_others(tmp_path, monkeypatch, capfd):
    (tmp_path / "in").mkdir()
    for number in range(5):
        save(tmp_path / "in" / f"{number}.png", labels().astype(np.uint8))
    bank = tmp_path / "bank.safetensors"
    for command in (
        [
            "fit-style",
            str(tmp_path / "in"),
            "-o",
            str(bank),
            "--min-images",
            "1",
            "--generator",
            "reinhard-lab",
        ],
        ["apply", str(tmp_path / "in"), "--bank", str(bank), "-o", str(tmp_path / "out")],
    ):
        monkeypatch.setattr(sys, "argv", ["styleaug", *command])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capfd.readouterr().err
        assert not ended.value.code, said
        assert said.count("warning: ") == 4 and "LabelWarning" not in said
        assert "2 more images have few values, like label maps" in said
