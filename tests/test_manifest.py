"""What a run knows of an earlier one: files that changed, damaged lines, and other runs at work."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shard_files import MANIFEST, WRITERS, check_once, contents, encoded, invert, write_images
from specimens import Spy, bank
from test_apply import OUTPUTS, as_rank, every_format
from test_series import write_series

from styleaug import ConfigError, FileError, StyleAugError, apply_folder
from styleaug.io.locks import holder_of, open_locked
from styleaug.io.stamps import is_unchanged, stamp_of
from styleaug.offline.manifest import sound


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".jsonl")


def later(path: Path, content: bytes) -> None:
    """Write a file so that its time is another, however coarse the clock is."""
    before = path.stat().st_mtime_ns
    path.write_bytes(content)
    os.utime(path, ns=(before + 10**9, before + 10**9))


@every_format
def test_an_input_that_is_replaced_is_done_again(kind, tmp_path):
    source = WRITERS[kind](tmp_path / "in")
    invert(source, tmp_path / "out")
    first, second = files_of(source)[:2]
    later(first, second.read_bytes())
    result = invert(source, tmp_path / "out")
    assert 0 < result.written <= 20 and result.skipped > 0
    invert(source, tmp_path / "whole")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    check_once(tmp_path / "out", OUTPUTS[kind])
    assert invert(source, tmp_path / "out").written == 0


def test_an_input_of_the_same_size_is_told_by_its_content(tmp_path):
    source = write_images(tmp_path / "in", 2)
    bmp = source / "0/a.bmp"
    bmp.write_bytes(encoded(1, "BMP"))
    invert(source, tmp_path / "out")
    content = encoded(2, "BMP")
    assert len(content) == bmp.stat().st_size
    later(bmp, content)
    assert invert(source, tmp_path / "out").written == 1
    later(bmp, content)  # touched only, as by a copy of the folder
    assert invert(source, tmp_path / "out").written == 0


@every_format
@pytest.mark.parametrize("damage", ["cut", "empty", "longer", "flipped", "folder"])
def test_an_output_that_is_damaged_is_done_again(kind, damage, tmp_path):
    source = WRITERS[kind](tmp_path / "in")
    invert(source, tmp_path / "out")
    before = contents(tmp_path / "out")
    path = files_of(tmp_path / "out")[1]
    whole = path.read_bytes()
    if damage == "folder":
        path.unlink()
        path.mkdir()
    else:
        flipped = whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:]
        later(path, {"cut": whole[:-9], "empty": b"", "longer": whole + b"x", "flipped": flipped}[damage])
    result = invert(source, tmp_path / "out")
    if damage == "folder":
        assert result.written == 0 and "is a folder" in result.failed[0][1]
        path.rmdir()
        result = invert(source, tmp_path / "out")
    assert result.written in (1, 20) and contents(tmp_path / "out") == before
    check_once(tmp_path / "out", OUTPUTS[kind])


def test_a_folder_that_was_copied_is_not_done_again(tmp_path):
    source = write_images(tmp_path / "in", 6)
    invert(source, tmp_path / "out")
    for path in [*files_of(source), *files_of(tmp_path / "out")]:
        later(path, path.read_bytes())
    network = Spy()
    result = invert(source, tmp_path / "out", generator=network)
    assert (result.written, result.skipped, network.rows) == (0, 6, 0)


def test_all_slices_of_a_volume_are_done_again_with_one(tmp_path):
    slices = write_series(tmp_path / "in", "1.2.7")
    write_series(tmp_path / "in/other", "1.2.8")
    options: dict[str, Any] = {"bank": bank("reinhard-rgb", 9), "strength": 1.0}
    apply_folder(tmp_path / "in", tmp_path / "out", **options)
    other = write_series(tmp_path / "more", "1.2.7", level=200, seed=1)
    later(slices[2], other[2].read_bytes())
    assert apply_folder(tmp_path / "in", tmp_path / "out", **options).written == len(slices)
    apply_folder(tmp_path / "in", tmp_path / "whole", **options)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    check_once(tmp_path / "out", 2 * len(slices))


@pytest.mark.parametrize("worlds", [(1, 1), (2, 2), (2, 1), (1, 3), (3, 2)])
def test_ranks_do_again_what_changed_and_name_it_once(worlds, monkeypatch, tmp_path):
    source = write_images(tmp_path / "in")
    for rank in range(worlds[0]):
        as_rank(monkeypatch, rank, worlds[0])
        invert(source, tmp_path / "out")
    for path in files_of(source)[::3]:
        later(path, encoded(99, "PNG"))
    for rank in range(worlds[1]):
        as_rank(monkeypatch, rank, worlds[1])
        invert(source, tmp_path / "out")
    check_once(tmp_path / "out", 40)
    as_rank(monkeypatch, 0, 1)
    assert invert(source, tmp_path / "out").written == 0
    invert(source, tmp_path / "whole")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_lines_of_a_rank_that_is_at_work_stay(monkeypatch, tmp_path):
    source = write_images(tmp_path / "in")
    as_rank(monkeypatch, 0, 1)
    invert(source, tmp_path / "out")
    os.rename(tmp_path / "out" / MANIFEST, tmp_path / "out/manifest-1-of-2.jsonl")
    changed = files_of(source)[0]
    later(changed, encoded(99, "PNG"))
    as_rank(monkeypatch, 0, 2)
    held = open_locked(tmp_path / "out/manifest-1-of-2.jsonl")
    assert invert(source, tmp_path / "out").written == 1
    held.close()
    as_rank(monkeypatch, 0, 1)
    for _ in range(2):
        assert invert(source, tmp_path / "out").written == 0, "one of two lines holds"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from(
    ["source", "output", "images", "failed", "source_stamp", "output_stamp", "copy", "settings", "x"]
)
LINES = st.one_of(
    st.dictionaries(KEYS, JSON, max_size=6).map(json.dumps),
    JSON.map(json.dumps),
    st.text(max_size=20),
    st.sampled_from(
        ["[" * 100_000, '{"a":' * 50_000, "1" * 5000, "NaN", '{"output": "\\u0000"}', "\udc80\x00"]
    ),
    st.dictionaries(KEYS, JSON, max_size=3).map(
        lambda given: json.dumps({"source": "0/00.jpeg", "output": "0/00.jpeg", **given})
    ),
)


@pytest.mark.slow
@every_format
@given(lines=st.lists(LINES, min_size=1, max_size=3), start=st.booleans())
def test_damaged_lines_never_raise(kind, lines, start, tmp_path_factory):
    base = tmp_path_factory.getbasetemp() / f"damaged-{kind}"
    if not base.exists():
        WRITERS[kind](base / "in")
        for path in files_of(base / "in")[2:]:
            path.unlink()
        invert(base / "in", base / "out")
        (base / "kept").write_bytes((base / "out" / MANIFEST).read_bytes())
    head, *rest = (base / "kept").read_text().splitlines()
    rows = [head, *rest, *lines] if start else [head, *lines, *rest[1:]]
    text = "\n".join(rows).encode("utf-8", "surrogateescape")
    (base / "out" / MANIFEST).write_bytes(text)
    invert(base / "in", base / "out")
    with (base / "out" / MANIFEST).open(encoding="utf-8", errors="replace") as file:
        named = {line["output"] for line in sound(file)}
    assert named >= contents(base / "out").keys() and len(contents(base / "out")) == 2
    assert invert(base / "in", base / "out").written == 0


@given(line=LINES)
def test_a_damaged_first_line_is_told_of(line, tmp_path_factory):
    base = tmp_path_factory.getbasetemp() / "first"
    if not base.exists():
        write_images(base / "in", 1)
    (base / "out").mkdir(exist_ok=True)
    (base / "out" / MANIFEST).write_bytes(line.encode("utf-8", "surrogateescape") + b"\n{}\n")
    with pytest.raises(ConfigError, match=r"is damaged. Delete the file|other settings"):
        invert(base / "in", base / "out")


@pytest.mark.parametrize("text", ["", "{", '{"settings": {"ba'])
def test_a_manifest_that_was_just_begun_is_begun_again(text, tmp_path):
    source = write_images(tmp_path / "in", 2)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / MANIFEST).write_text(text)
    (tmp_path / "out/manifest-0-of-2.jsonl").write_text(text)
    (tmp_path / "out/manifest-9.jsonl").write_text("no manifest of ours")
    (tmp_path / "out/manifest-1-of-2.jsonl").mkdir()
    assert invert(source, tmp_path / "out").written == 2
    assert invert(source, tmp_path / "out").skipped == 2


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_manifest_that_is_no_file(make, tmp_path):
    source = write_images(tmp_path / "in", 1)
    (tmp_path / "out").mkdir()
    make(tmp_path / "out" / MANIFEST)
    with pytest.raises(FileError, match=r"is a (pipe|folder), not a file"):
        invert(source, tmp_path / "out")
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileError, match="is not a folder; name a folder"):
        invert(source, tmp_path / "file")


RUN = """
import sys, time
sys.path.insert(0, {tests!r})
from specimens import Spy, bank_of
from styleaug import apply_folder

class Slow(Spy):
    def forward(self, images, codes, strength):
        time.sleep(0.05)
        if len(self.seen) == 2:
            print("at work", flush=True)
            time.sleep({pause})
        return super().forward(images, codes, strength)

spy = Slow()
apply_folder({source!r}, {out!r}, bank=bank_of(spy), generator=spy, strength=1.0, workers={workers})
"""


def start(
    source: Path, out: Path, pause: float, workers: int = 0, **environment: str
) -> subprocess.Popen[str]:
    """Run in another process, and wait until it is at work."""
    tests = str(Path(__file__).parent)
    script = RUN.format(tests=tests, source=str(source), out=str(out), pause=pause, workers=workers)
    command = [sys.executable, "-c", script]
    made = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
    )
    assert made.stdout
    assert made.stdout.readline() == "at work\n", made.communicate()
    return made


@pytest.mark.slow
@pytest.mark.parametrize("environment", [{}, {"RANK": "0", "WORLD_SIZE": "2"}])
def test_a_second_run_into_one_folder_is_refused(environment, tmp_path):
    source = write_images(tmp_path / "in")
    first = start(source, tmp_path / "out", 60, **environment)
    try:
        began = time.monotonic()
        with pytest.raises(FileError, match=rf"process {first.pid} is writing to .*out; wait for it"):
            invert(source, tmp_path / "out")
        assert time.monotonic() - began < 10
        assert (tmp_path / "out").exists()
    finally:
        first.kill()
        first.communicate()
    result = invert(source, tmp_path / "out")  # at once: the lock ended with its process
    assert result.written + result.skipped == 40
    check_once(tmp_path / "out", 40)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_that_was_killed_with_its_workers_alive_blocks_none(number, tmp_path):
    source = write_images(tmp_path / "in")
    first = start(source, tmp_path / "out", 3, workers=1)
    first.send_signal(number)
    first.wait()
    assert invert(source, tmp_path / "out").written + len(files_of(tmp_path / "out")) >= 40
    first.communicate()
    check_once(tmp_path / "out", 40)


def test_runs_that_start_together_do_the_work_once(tmp_path):
    source = write_images(tmp_path / "in", 12)
    ended: list[Any] = []

    def run() -> None:
        try:
            ended.append(invert(source, tmp_path / "out"))
        except StyleAugError as error:
            ended.append(error)

    for _ in range(8):
        threads = [threading.Thread(target=run) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(not isinstance(end, Exception) or "is writing to" in str(end) for end in ended)
        check_once(tmp_path / "out", 12)
        for path in files_of(tmp_path / "out"):
            path.unlink()


@pytest.mark.slow
def test_ranks_of_one_run_share_the_folder(tmp_path):
    source = write_images(tmp_path / "in", 64)
    ranks = [
        start(source, tmp_path / "out", 1, RANK=str(rank), WORLD_SIZE="2", OMP_NUM_THREADS="1")
        for rank in range(2)
    ]
    assert [rank.wait() for rank in ranks] == [0, 0], [rank.communicate() for rank in ranks]
    for rank in ranks:
        rank.communicate()
    check_once(tmp_path / "out", 64)


def test_locks(tmp_path):
    path = tmp_path / "a"
    first = open_locked(path)
    first.write("one")
    assert re.fullmatch(rf"process {os.getpid()}|a process, maybe on another machine,", holder_of(path))
    with pytest.raises(BlockingIOError):
        open_locked(path, wait=0)
    os.replace(path, tmp_path / "b")
    second = open_locked(path)  # another file of this name
    second.write("two")
    first.close()
    second.close()
    assert holder_of(path) == holder_of(tmp_path / "b") == ""
    assert path.read_text() == "two\n"


def test_where_there_are_no_locks_runs_do_without(monkeypatch, tmp_path):
    import fcntl

    def none(*_: Any) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", none)
    assert invert(write_images(tmp_path / "in", 2), tmp_path / "out").written == 2
    monkeypatch.setattr("styleaug.io.locks.fcntl", None)
    assert invert(tmp_path / "in", tmp_path / "out").skipped == 2


@pytest.mark.parametrize("stamp", [None, 3, "", "1 2", [1, 2, "x"], {}, "9" * 30 + " 1 " + "0" * 16])
def test_stamps(stamp, tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert not is_unchanged(tmp_path / "a", stamp)
    good = stamp_of(tmp_path / "a")
    assert is_unchanged(tmp_path / "a", good) and not is_unchanged(tmp_path / "b", good)
    untimed = stamp_of(tmp_path / "a", timed=False)
    assert is_unchanged(tmp_path / "a", untimed) and len(untimed.split()) == 2
    later(tmp_path / "a", b"abd")
    assert not is_unchanged(tmp_path / "a", good) and not is_unchanged(tmp_path / "a", untimed)
