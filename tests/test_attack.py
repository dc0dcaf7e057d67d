"""A small part of `benchmarks/attack.py`: damaged and hostile files, each in a process that may die."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ATTACK = Path(__file__).parents[1] / "benchmarks" / "attack.py"


@pytest.mark.slow
@pytest.mark.parametrize("seed", [7])
def test_damaged_and_hostile_files(seed, tmp_path):
    failures = tmp_path / "failures.jsonl"
    command = [
        sys.executable,
        str(ATTACK),
        "--cases",
        "300",
        "--seed",
        str(seed),
        "--failures",
        str(failures),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    # What takes long or much memory hangs on the machine; the other outcomes do not.
    found = [json.loads(line) for line in failures.read_text().splitlines()]
    assert not [case for case in found if case["outcome"] in ("wrong", "foreign", "crash")]
    assert "| all | 300 |" in done.stdout
