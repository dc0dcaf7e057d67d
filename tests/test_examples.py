"""Every example runs, as a process, on small data; those that train a classifier end above chance."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from specimens import astronaut

from styleaug.transforms.faces import find_faces

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))
CLASSIFIERS = [path for path in EXAMPLES if '"folder"' in path.read_text()]
ON_REAL_IMAGES = [path for path in EXAMPLES if "STYLEAUG_DATA" in path.read_text()]


@pytest.fixture(scope="module")
def classes(tmp_path_factory) -> Path:
    """A folder with a folder of images for each of two classes."""
    folder = tmp_path_factory.mktemp("classes")
    rng = np.random.default_rng(0)
    for name, level in (("dark", 60), ("light", 190)):
        (folder / name).mkdir()
        for index in range(6):
            pixels = rng.normal(level, 20, (72, 80, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}.jpg")
    return folder


def run(example: Path, *arguments: str) -> str:
    done = subprocess.run([sys.executable, str(example), *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def dice_scores(example: Path) -> list[list[float]]:
    """Read the scores at home and elsewhere, of the runs without and with styles."""
    return [[float(told) for told in re.findall(r"\.\d\d", line)] for line in run(example).splitlines()]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short(example):
    assert len(example.read_text().splitlines()) <= 60


ELSEWHERE = {"nnunet_trainer", "portraits", "ray_apply", "ray_data"}
"""Run by tests of their own, which have the library, a cluster or files."""
OTHERS = [
    path for path in EXAMPLES if path not in [*CLASSIFIERS, *ON_REAL_IMAGES] and path.stem not in ELSEWHERE
]


@pytest.mark.slow
@pytest.mark.parametrize("example", OTHERS, ids=lambda path: path.stem)
def test_example_runs(example):
    assert run(example).strip()


@pytest.mark.slow
def test_portraits_become_avatars(tmp_path):
    (portrait,) = (path for path in EXAMPLES if path.stem == "portraits")
    for name, pixels in (
        ("ann", astronaut(160)),
        ("bob", astronaut(160)[:, ::-1]),
        ("wall", 0 * astronaut(160)),
    ):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    told = run(portrait, str(tmp_path), "--out", str(tmp_path / "out"), "--keep", "face").splitlines()
    assert told[-1] == "wall: no face was found, so there is no avatar of it"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"ann.png", "bob.png"}
    ann, bob = (np.array(Image.open(tmp_path / "out" / f"{name}.png")) for name in ("ann", "bob"))
    change = np.abs(ann.astype(int) - bob[:, ::-1])
    assert change[:15].mean() > 5, "a style each"
    face = find_faces(torch.from_numpy(astronaut(160)).permute(2, 0, 1)[None] / 255)[0, 0].numpy() == 1
    assert np.array_equal(ann[face], astronaut(160)[face])


@pytest.mark.slow
def test_a_classifier_takes_a_users_folder(classes):
    assert run(CLASSIFIERS[0], str(classes), "--epochs", "1", "--size", "64").strip()


@pytest.mark.slow
@pytest.mark.parametrize("example", CLASSIFIERS, ids=lambda path: path.stem)
def test_on_our_samples_a_classifier_ends_above_chance(example):
    told = re.findall(r"(\d+)% right \(chance (\d+)%\)", run(example, "--epochs", "3"))
    right, chance = map(int, told[-1])
    assert chance == 25 and right >= 50, "of 200 images"


@pytest.mark.slow
@pytest.mark.parametrize("example", ON_REAL_IMAGES, ids=lambda path: path.stem)
def test_without_images_it_says_what_to_set(example, tmp_path):
    environment = {**os.environ, "STYLEAUG_DATA": str(tmp_path)}
    done = subprocess.run([sys.executable, str(example)], env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"there is no {tmp_path}" in done.stderr and "set STYLEAUG_DATA" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("example", ON_REAL_IMAGES, ids=lambda path: path.stem)
def test_on_real_images_styles_help_elsewhere(example, data):
    plain, styled = dice_scores(example)
    assert plain[0] > 0.75 and styled[0] > 0.75, "at home"
    assert min(new - old for new, old in zip(styled[1:], plain[1:], strict=True)) > 0.05, "elsewhere"
