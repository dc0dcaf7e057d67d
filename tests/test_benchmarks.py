"""The benchmarks import, and that of the cost runs; what they measure is not tested here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from styleaug.robustness.arms import parse_arm

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.slow
def test_every_benchmark_imports():
    names = sorted(path.stem for path in FOLDER.glob("*.py"))
    assert names
    subprocess.run([sys.executable, "-c", f"import {', '.join(names)}"], cwd=FOLDER, check=True)


def test_the_arms_of_the_evidence_can_be_read(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    import evidence

    fitted = []
    monkeypatch.setattr(evidence, "fit_bank", lambda generator, images, bank: fitted.append(bank.name))
    for question in evidence.QUESTIONS.values():
        for arm, spec in question.arms.items():
            targets = [place.rpartition("/")[2] for place in question.tests]
            read = parse_arm(f"{arm}={evidence.spelled(spec, targets, 'home')}")
            assert read.name == arm and "@" not in read.spec
            assert all(target in read.spec for target in targets) == ("@" in spec) or not targets
    assert {"photo-mnist_m.safetensors", "photo-home.safetensors"} <= set(fitted)


def test_parts_of_the_evidence_are_those_of_its_index(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    import evidence

    rows = [
        ("a/0/1.png", "a", "0", "train"),
        ("a/0/2.png", "a", "0", "test"),
        ("b/1/3.png", "b", "1", "train"),
    ]
    data = tmp_path / "data" / "set"
    for path, *_ in rows:
        (data / path).parent.mkdir(parents=True, exist_ok=True)
        (data / path).write_text(path)
    lines = ["path\tdomain\tclass\tsplit", *("\t".join(row) for row in rows)]
    (data / "index.tsv").write_text("\n".join(lines) + "\n")
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        name = evidence.at_hand(tmp_path / "data", "set/a:train")
        assert [str(path.relative_to(name)) for path in Path(name).rglob("*.png")] == ["0/1.png"]
        assert (Path(name) / "0" / "1.png").read_text() == "a/0/1.png"
    assert evidence.at_hand(tmp_path / "data", "set/b") == "b"
    assert {path.name for path in tmp_path.iterdir()} == {"a-train", "b", "data", "parts"}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="a shell script, and cost.py reads memory from /proc")
def test_the_run_on_a_gpu_starts_and_says_what_failed_and_every_cost_is_measured(tmp_path):
    environment = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run(
        [FOLDER / "gpu.sh", "--dry-run", tmp_path], env=environment, capture_output=True, text=True
    )
    logs = {path.name: path.read_text() for path in tmp_path.glob("*.log")}
    assert done.returncode == 0, (done.stdout, logs)
    told = (tmp_path / "summary.txt").read_text()
    assert [line.split(",")[0] for line in told.splitlines()] == ["tests", "throughput", "cost"]
    assert told.count(" s: ok") == 3 and told in done.stdout
    assert {"gpu.json", "gpu.md", "cost.json", "cost.md"} <= {path.name for path in tmp_path.iterdir()}
    out = tmp_path / "cost.json"
    assert list(json.loads(out.read_text())) == ["memory", "step"]
    others = [sys.executable, "cost.py", "--quick", "--parts", "scaling", "workers", "--out", str(out)]
    subprocess.run(others, cwd=FOLDER, check=True)
    parts = json.loads(out.read_text())
    assert list(parts) == ["memory", "step", "scaling", "workers"], "the others are kept"
    tables = [rows for part in parts.values() for rows in part["tables"].values()]
    assert all({"reinhard-rgb", "photo"} <= {*rows, *next(iter(rows.values()))} for rows in tables)
    assert all(title in out.with_suffix(".md").read_text() for p in parts.values() for title in p["tables"])
    broken = subprocess.run(
        [FOLDER / "gpu.sh", "--dry-run", tmp_path], env={**environment, "PYTHON": "/bin/false"}, text=True
    )
    assert broken.returncode == 1 and (tmp_path / "summary.txt").read_text().count("FAILED with exit 1") == 3


def test_bytes_are_counted_from_the_kernels(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    import torch
    from bytes import CountBytes
    from pretend_cuda import PretendCuda

    with PretendCuda(), CountBytes(pixels=64) as counter:
        image = torch.empty(2, 3, 8, 8, device="cuda")  # 1536 bytes, of which nothing is written yet
        image.flip(3).view(2, -1)[:, :4]  # views are free
        torch.add(image, image[:1, :1].expand(2, 3, 8, 8))  # one channel is read for the second image
        torch.nn.functional.conv2d(image, torch.empty(4, 3, 1, 1, device="cuda"))
        torch.nn.functional.pad(image, (1, 1, 1, 1), mode="reflect")
        image.mean(dim=(2, 3))
    ends = (1536 + 1536) + (1536 + 256 + 1536) + (1536 + 24)
    assert counter.moved == {"ends": ends, "convolution": 1536 + 48 + 2048, "padding": 1536 + 2400}
