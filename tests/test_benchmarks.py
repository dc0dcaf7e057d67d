"""The benchmarks import; what they measure is not tested here."""

import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.slow
def test_every_benchmark_imports():
    names = sorted(path.stem for path in FOLDER.glob("*.py"))
    assert names
    subprocess.run([sys.executable, "-c", f"import {', '.join(names)}"], cwd=FOLDER, check=True)
