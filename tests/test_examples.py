"""Every example runs, as a process, on small data; those that train a classifier end above chance."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))
CLASSIFIERS = [path for path in EXAMPLES if '"folder"' in path.read_text()]


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


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short(example):
    assert len(example.read_text().splitlines()) <= 60


ELSEWHERE = {"nnunet_trainer"}
"""Run by tests of their own, which have the library."""


@pytest.mark.slow
@pytest.mark.parametrize("example", sorted({*EXAMPLES} - {*CLASSIFIERS}), ids=lambda path: path.stem)
def test_example_runs(example):
    if example.stem in ELSEWHERE:
        pytest.skip("its library is in an environment of its own")
    assert run(example).strip()


@pytest.mark.slow
def test_a_classifier_takes_a_users_folder(classes):
    assert run(CLASSIFIERS[0], str(classes), "--epochs", "1", "--size", "64").strip()


@pytest.mark.slow
@pytest.mark.parametrize("example", CLASSIFIERS, ids=lambda path: path.stem)
def test_on_our_samples_a_classifier_ends_above_chance(example):
    told = re.findall(r"(\d+)% right \(chance (\d+)%\)", run(example))
    right, chance = map(int, told[-1])
    assert chance == 25 and right >= 50, "of 200 images"
