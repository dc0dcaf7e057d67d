"""The benchmarks import, and that of the cost runs; what they measure is not tested here."""

import json
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


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")
def test_every_part_of_the_cost_is_measured(tmp_path):
    out = tmp_path / "cost.json"
    subprocess.run([sys.executable, "cost.py", "--quick", "--out", str(out)], cwd=FOLDER, check=True)
    parts = json.loads(out.read_text())
    assert list(parts) == ["memory", "step", "scaling", "workers"]
    tables = [rows for part in parts.values() for rows in part["tables"].values()]
    assert all({"reinhard-rgb", "photo"} <= {*rows, *next(iter(rows.values()))} for rows in tables)
    assert all(title in out.with_suffix(".md").read_text() for p in parts.values() for title in p["tables"])
