"""`apply_folder` in one process and in several, and what becomes of runs that are killed."""

import hashlib
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from threading import Event, Thread

import numpy as np
import pytest
import torch
from shard_files import (
    MANIFEST,
    WRITERS,
    check_once,
    contents,
    invert,
    manifest_lines,
    write_images,
    write_tars,
)
from specimens import Spy, bank, bank_of, tiny_adain

from styleaug import ConfigError, FileError, Splice, StyleAugment, apply_folder
from styleaug.io.atomic import LEFT_BEHIND
from styleaug.io.files import open_image
from styleaug.offline.folder import start_context
from styleaug.sheets import sample_photos

every_format = pytest.mark.parametrize("kind", WRITERS)

OUTPUTS = {"images": 40, "parquet": 3, "webdataset": 3}
"""Files that the writers of each format make."""


def images_in(folder: Path) -> int:
    """Count what the manifest names."""
    return sum(len(line.get("images", "1")) for line in manifest_lines(folder))


@every_format
def test_all_images_are_copied_and_named(kind, tmp_path):
    source = WRITERS[kind](tmp_path / "in")
    before = contents(source)
    result = invert(source, tmp_path / "out")
    count = 40 if kind == "images" else 60
    assert (result.written, result.skipped, result.failed) == (count, 0, [])
    assert contents(source) == before
    assert set(contents(tmp_path / "out")) == set(before)
    check_once(tmp_path / "out", OUTPUTS[kind])
    assert images_in(tmp_path / "out") == count
    again = invert(source, tmp_path / "out")
    assert (again.written, again.skipped, again.failed) == (0, count, [])
    check_once(tmp_path / "out", OUTPUTS[kind])


@every_format
@pytest.mark.parametrize("number", [1, 3])
def test_workers_change_no_pixel(kind, number, tmp_path):
    source = WRITERS[kind](tmp_path / "in")
    for workers in (0, 2):
        apply_folder(
            source,
            tmp_path / str(workers),
            bank=bank(),
            generator=tiny_adain(),
            workers=workers,
            copies=number,
        )
    assert contents(tmp_path / "0") == contents(tmp_path / "2")
    assert (tmp_path / "0" / MANIFEST).read_text() == (tmp_path / "2" / MANIFEST).read_text()


@pytest.mark.slow
def test_workers_beside_other_threads_are_not_forked_from_them(monkeypatch, tmp_path):
    source, done, network = write_images(tmp_path / "in", 4), Event(), tiny_adain()
    thread = Thread(target=done.wait)
    thread.start()
    try:
        context = start_context([network])
        assert context and context.get_start_method() == "forkserver"
        result = apply_folder(source, tmp_path / "out", bank=bank(), generator=network, workers=1)
        assert result.written == 4
        mine = type("Mine", (Spy,), {"__module__": "__main__"})()
        assert start_context([mine]) is None, "a server could not import it"
    finally:
        done.set()
        thread.join()
    monkeypatch.setattr("styleaug.offline.folder.active_count", lambda: 1)
    assert start_context([network]) is None


def test_images_are_batched_with_those_of_their_shape(tmp_path):
    source = write_images(tmp_path / "in")
    spy = Spy()
    apply_folder(source, tmp_path / "out", bank=bank_of(spy), generator=spy)
    assert spy.rows == 40
    assert len(spy.seen) == 6, "three units of two shapes each"
    batched = {len(images) for images in spy.seen}
    assert max(batched) > 4


def test_the_style_of_a_copy_is_that_of_earlier_versions(tmp_path):
    source = write_images(tmp_path / "in", 3)
    styles = bank_of(Spy())
    apply_folder(source, tmp_path / "out", bank=styles, generator=Spy(), strength=(0.5, 1), copies=2, seed=7)
    for line in manifest_lines(tmp_path / "out"):
        digest = hashlib.sha256(f"7:{line['copy']}:{line['source']}".encode()).digest()
        rng = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        torch.rand(1, generator=rng)  # the gate
        assert line["strength"] == pytest.approx(0.5 + 0.5 * torch.rand(1, generator=rng).item(), abs=1e-5)
        assert line["styles"] == [torch.randint(len(styles), (1,), generator=rng).item()]


def test_a_run_of_an_earlier_version_goes_on(tmp_path):
    source = write_images(tmp_path / "in", 20)
    invert(source, tmp_path / "out")
    head, *lines = (tmp_path / "out" / MANIFEST).read_text().splitlines()
    settings = json.loads(head)["settings"]
    assert settings.keys() == {"bank", "generator", "copies", "strength", "sampler", "seed"}
    head = json.dumps({"settings": {**settings, "keep_luminance": False}})
    stamps = ["source_stamp", "output_stamp"]
    assert list(json.loads(lines[0])) == ["source", "output", "copy", "strength", "styles", "shares", *stamps]
    lines = [json.dumps({k: v for k, v in json.loads(line).items() if k not in stamps}) for line in lines]
    # It wrote line by line, so a unit may be done in part.
    kept = lines[3:9]
    (tmp_path / "out" / MANIFEST).write_text("\n".join([head, *kept, lines[9][:20]]))
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.*g")}
    spy = Spy()
    result = invert(source, tmp_path / "out", generator=spy)
    assert (result.written, result.skipped) == (14, 6)
    assert spy.rows == 20, "batches are those of a run that was not interrupted"
    check_once(tmp_path / "out", 20)
    same = {
        str(path.relative_to(tmp_path / "out"))
        for path, time in times.items()
        if path.stat().st_mtime_ns == time
    }
    assert same == {json.loads(line)["output"] for line in kept}


def test_structure_is_kept_where_that_was_asked_for(tmp_path):
    (source := tmp_path / "in").mkdir()
    photos = [shutil.copy(path, source) for path in sample_photos()[:3]]
    erase = {"bank": "art", "strength": 1.0}
    apply_folder(source, tmp_path / "free", **erase)
    apply_folder(source, tmp_path / "kept", preserve=0.95, **erase)

    def correlation(out: str) -> float:
        pairs = [(photo, tmp_path / out / Path(photo).name) for photo in photos]
        greys = [[np.asarray(open_image(path).convert("L")).ravel() for path in pair] for pair in pairs]
        return min(float(np.corrcoef(*pair)[0, 1]) for pair in greys)

    assert correlation("kept") > correlation("free") + 0.02
    head = json.loads((tmp_path / "kept" / MANIFEST).read_text().splitlines()[0])
    assert head["settings"]["preserve"] == 0.95
    with pytest.raises(ConfigError, match="other settings"):
        apply_folder(source, tmp_path / "kept", **erase)


@every_format
def test_a_file_that_is_gone_is_made_again(kind, tmp_path):
    source = WRITERS[kind](tmp_path / "in")
    invert(source, tmp_path / "out")
    before = contents(tmp_path / "out")
    gone = tmp_path / "out" / sorted(before)[1]
    gone.unlink()
    invert(source, tmp_path / "out")
    assert contents(tmp_path / "out") == before
    check_once(tmp_path / "out", OUTPUTS[kind])


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from specimens import Spy, bank_of
from styleaug import apply_folder

class Lethal(Spy):
    def forward(self, images, codes, strength):
        painted = super().forward(images, codes, strength)
        if len(self.seen) == {calls}:
            os.kill(os.getpid(), signal.SIGKILL)
        return painted

spy = Lethal()
apply_folder({source!r}, {out!r}, bank=bank_of(spy), generator=spy, strength=1.0, workers={workers})
"""


def run_killed(source: Path, out: Path, calls: int, workers: int) -> subprocess.CompletedProcess[str]:
    """Run in a process where the generator's `calls`-th call, in any worker, is the last."""
    script = KILLED.format(
        tests=str(Path(__file__).parent), source=str(source), out=str(out), calls=calls, workers=workers
    )
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "calls"), [*((kind, 4) for kind in WRITERS), ("webdataset", 1)])
def test_a_killed_run_goes_on(kind, calls, tmp_path):
    source = WRITERS[kind](tmp_path / "in")
    invert(source, tmp_path / "whole")
    assert run_killed(source, tmp_path / "out", calls, 0).returncode == -signal.SIGKILL
    done = len(list(manifest_lines(tmp_path / "out")))
    assert done < OUTPUTS[kind] and (done > 0) == (calls == 4)
    if kind != "images":
        assert any(LEFT_BEHIND.fullmatch(path.name) for path in (tmp_path / "out").iterdir())
    with (tmp_path / "out" / MANIFEST).open("a") as file:
        file.write('{"source": "0')
    result = invert(source, tmp_path / "out")
    assert result.skipped > 0 or calls == 1
    check_once(tmp_path / "out", OUTPUTS[kind])
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.slow
def test_a_killed_worker_is_told_of(tmp_path):
    source = write_tars(tmp_path / "in", 4)
    ended = run_killed(source, tmp_path / "out", 3, 2)
    assert ended.returncode == 1
    assert "StyleAugError: a worker process died" in ended.stderr and "again to go on" in ended.stderr
    invert(source, tmp_path / "out", workers=2)
    check_once(tmp_path / "out", 4)


def test_errors_of_workers_arrive_as_they_are(tmp_path):
    source = write_images(tmp_path / "in")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/1").write_text("a file where a folder is needed")
    for workers in (0, 2):
        with pytest.raises(FileError, match="cannot write to") as caught:
            invert(source, tmp_path / "out", workers=workers)
        assert "Traceback" not in str(caught.value)


def as_rank(monkeypatch: pytest.MonkeyPatch, rank: int, world: int) -> None:
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", str(world))


@every_format
def test_ranks_share_the_work(kind, monkeypatch, tmp_path):
    source = WRITERS[kind](tmp_path / "in")
    invert(source, tmp_path / "whole")
    reports: list[tuple[int, int]] = []
    results = []
    for rank in (1, 0):
        as_rank(monkeypatch, rank, 2)
        report = lambda done, total: reports.append((done, total))  # noqa: E731
        results.append(invert(source, tmp_path / "out", report=report))
        assert bool(reports) == (rank == 0)
    assert all(result.written > 0 for result in results)
    assert sum(result.written for result in results) == images_in(tmp_path / "whole")
    assert reports[-1][0] == reports[-1][1]
    check_once(tmp_path / "out", OUTPUTS[kind])
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    names = sorted(path.name for path in (tmp_path / "out").glob("manifest*"))
    assert names == ["manifest-0-of-2.jsonl", "manifest-1-of-2.jsonl"]
    # Any other number of processes goes on where these stopped.
    (path,) = (tmp_path / "out").glob("manifest-1*")
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    for rank in range(3):
        as_rank(monkeypatch, rank, 3)
        invert(source, tmp_path / "out")
    check_once(tmp_path / "out", OUTPUTS[kind])
    as_rank(monkeypatch, 0, 1)
    assert invert(source, tmp_path / "out").written == 0


def test_a_rank_leaves_what_others_are_writing(monkeypatch, tmp_path):
    source = write_tars(tmp_path / "in")
    (tmp_path / "out").mkdir()
    parts = [tmp_path / f"out/.train-{shard}.abcdefgh.part.tar" for shard in range(3)]
    parts.append(tmp_path / "out/.manifest-1-of-2.abcdefgh.part.jsonl")
    for part in parts:
        part.write_text("x")
    as_rank(monkeypatch, 0, 2)
    invert(source, tmp_path / "out")
    assert [part.exists() for part in parts] == [False, True, False, True]


@pytest.mark.slow
def test_torchrun(tmp_path):
    source = write_tars(tmp_path / "in", 4)
    styles = bank("reinhard-rgb").save(tmp_path / "bank.safetensors")
    apply_folder(source, tmp_path / "whole", bank=styles)
    command = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    task = ["-m", "styleaug", "apply", source, "-o", tmp_path / "out", "--bank", styles]
    subprocess.run([sys.executable, *command, *map(str, task)], check=True, capture_output=True)
    check_once(tmp_path / "out", 4)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert len(list((tmp_path / "out").glob("manifest-?-of-2.jsonl"))) == 2


@pytest.mark.parametrize("rank", ["2", "-1", "x"])
def test_ranks_that_make_no_sense(rank, monkeypatch, tmp_path):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="RANK and WORLD_SIZE"):
        invert(write_images(tmp_path / "in", 1), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_settings_are_refused(tmp_path):
    source = write_tars(tmp_path / "in", 1)
    invert(source, tmp_path / "out")
    for other in ({"seed": 1}, {"column": "png"}, {"copies": 2}):
        with pytest.raises(ConfigError, match="other settings"):
            invert(source, tmp_path / "out", **other)
    (tmp_path / "out" / MANIFEST).rename(tmp_path / "out/manifest-3-of-4.jsonl")
    with pytest.raises(ConfigError, match="other settings"):
        invert(source, tmp_path / "out", seed=1)
    assert invert(source, tmp_path / "out").skipped == 20


@pytest.mark.parametrize(
    "option",
    [
        {"strength": (0.2, 1.0)},
        {"sampler": "mix"},
        {"blend": "screen"},
        {"splice": Splice("halves", parts=3)},
        {"value_range": (0, 200)},
        {"channels": "shared"},
        {"preserve": 0.5},
        {"least_side": 40},
        {"precision": "float32"},
    ],
    ids=str,
)
def test_every_option_of_a_transform_is_a_setting(option, tmp_path):
    source, spy = write_images(tmp_path / "in", 2), Spy()
    make = lambda **options: StyleAugment(bank_of(spy), generator=spy, **options)  # noqa: E731
    for name, transform, other in (("a", make(**option), make()), ("b", make(), make(**option))):
        assert apply_folder(source, tmp_path / name, bank=transform).written == 2
        assert apply_folder(source, tmp_path / name, bank=transform).skipped == 2
        with pytest.raises(ConfigError, match="other settings"):
            apply_folder(source, tmp_path / name, bank=other)


def test_folders_of_several_formats(tmp_path):
    for writer in WRITERS.values():
        writer(tmp_path / "in")
    with pytest.raises(ConfigError, match="holds images and parquet and webdataset; name one as format"):
        invert(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    for kind, count in OUTPUTS.items():
        invert(tmp_path / "in", tmp_path / kind, format=kind)
        check_once(tmp_path / kind, count)


def test_what_cannot_be_started(monkeypatch, tmp_path):
    tars, tables, images = (WRITERS[kind](tmp_path / kind) for kind in ("webdataset", "parquet", "images"))
    shard = tars / "train-0.tar"
    cases = [
        (shard, {"format": "parquet"}, ConfigError, "is of format webdataset, not parquet"),
        (tars, {"format": "parquet"}, FileError, "no parquet file in"),
        (tables, {"column": "img"}, ConfigError, "no column 'img', only label, image, boxes, split"),
        (tables, {"column": "label"}, ConfigError, "column 'label' has type int16; expected encoded images"),
        (images, {"engine": "spark"}, ConfigError, "engine must be one of local, ray, got 'spark'"),
        (tmp_path / "no.tar", {}, FileError, "there is no folder"),
    ]
    for source, options, error, message in cases:
        with pytest.raises(error, match=message):
            invert(source, tmp_path / "out", **options)
    with pytest.raises(FileError, match="would overwrite an input"):
        invert(shard, tars)
    as_rank(monkeypatch, 0, 2)
    with pytest.raises(ConfigError, match="use one of them"):
        invert(tars, tmp_path / "out", engine="ray")
    monkeypatch.undo()
    for name, extra, options in (("pyarrow", "parquet", {}), ("ray", "ray", {"engine": "ray"})):
        with (
            monkeypatch.context() as patch,
            pytest.raises(ConfigError, match=rf"pip install .styleaug\[{extra}\]"),
        ):
            patch.setitem(sys.modules, name, None)
            invert(tables, tmp_path / "out", **options)
    assert not list((tmp_path / "out").glob("*.parquet"))


@pytest.mark.slow
def test_the_command_takes_shards(tmp_path, command):
    source = write_tars(tmp_path / "in", 2)
    styles = bank("reinhard-rgb").save(tmp_path / "bank.safetensors")
    (source / "bad.tar").write_text("hello")
    call = ["apply", source, "-o", tmp_path / "out", "--bank", styles]
    call += ["--format", "webdataset", "--column", "png", "--engine", "local", "--workers", "2"]
    process = [sys.executable, "-m", "styleaug", *map(str, call)]
    ended = subprocess.run(process, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert "20 images written" in ended.stderr and "21 files skipped" in ended.stderr
    assert "20 already there" in command(*call, "--strict", code=1).stderr
