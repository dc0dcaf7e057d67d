"""The wheel, installed into a fresh environment, finds its weights there."""

import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parent.parent

PROBE = """
import sys, torch, styleaug
from pathlib import Path
assert Path(styleaug.__file__).is_relative_to(sys.prefix), styleaug.__file__
from styleaug.weights import pretrained_folder
assert pretrained_folder().is_relative_to(sys.prefix), pretrained_folder()
torch.manual_seed(0)
images = torch.rand(2, 3, 40, 50)
styled = styleaug.StyleAugment("art", p=1.0)(images)
assert styled.shape == images.shape and not torch.equal(styled, images)
print("styled", len(styled))
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_wheel_works_in_a_fresh_environment(tmp_path):
    uv = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
    assert uv, "uv is in the dev extra"

    def run(*command: object) -> str:
        done = subprocess.run([str(c) for c in command], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run(uv, "build", "--wheel", ROOT, "-o", tmp_path / "dist")
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    assert wheel.stat().st_size < 12 * 2**20
    with ZipFile(wheel) as content:
        assert "styleaug/py.typed" in content.namelist(), "type checkers look for it"
    run(uv, "venv", "--python", sys.executable, tmp_path / "fresh")
    python = tmp_path / "fresh/bin/python"
    run(uv, "pip", "install", "--python", python, wheel)
    assert "styled 2" in run(python, "-I", "-c", PROBE)
    assert "art" in run(tmp_path / "fresh/bin/styleaug", "list")
    run(tmp_path / "fresh/bin/styleaug", "preview", "-o", tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").stat().st_size > 20_000
