"""Every example runs, as a process, on small data."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))


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


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(example, classes):
    text = example.read_text()
    assert len(text.splitlines()) <= 60
    arguments = [str(classes), "--epochs", "1", "--size", "64"] if '"folder"' in text else []
    done = subprocess.run([sys.executable, str(example), *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
