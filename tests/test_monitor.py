"""Watching a run: the log outlives a kill, the report stands alone, TensorBoard reads what we write."""

import json
import math
import random
import warnings
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from specimens import photos

from styleaug import FileError
from styleaug.training import monitor as monitor_module
from styleaug.training.monitor import Monitor
from styleaug.training.report import (
    MOST_POINTS,
    ROWS,
    chart,
    data_uri,
    evenly,
    render,
    smoothed,
    thinned,
    ticks,
)

HOSTILE = "</title><script>alert('x')</script> & \"quoted\" \x00\x1b \udcff"
VOID = {"meta", "img", "br", "link", "input"}
OUTCOME = {"chosen step": 20, "why": "lowest score", "scores": {"score": 0.25, "kid": 0.1}, "minutes": 3.0}


@pytest.fixture(autouse=True)
def tensorboard_may_warn():
    # TensorBoard and protobuf use what NumPy and Python deprecate; their names are not ours to fix.
    with warnings.catch_warnings():
        for package in ("tensorboard", "google", "torch.utils.tensorboard", "pkg_resources"):
            warnings.filterwarnings("ignore", module=package)
        yield


@pytest.fixture
def plain(monkeypatch):
    """Do as if TensorBoard were not installed, which is faster."""
    monkeypatch.setattr(monitor_module, "open_board", lambda folder, step: None)


def watch(run: Path, *, step: int = 0, title: str = "a run", facts: dict | None = None) -> Monitor:
    return Monitor(run, title=title, facts=facts or {"recipe": "cyclegan"}, step=step)


def fill(monitor: Monitor, start: int, end: int) -> None:
    for step in range(start, end + 1):
        monitor.losses(step, {"adversarial": 1 / step, "cycle": 0.5}, images_per_second=10.0)
        if step % 10 == 0:
            monitor.scores(step, {"kid": 1 / step, "score": 2 / step})
            monitor.samples(step, [photos(2), 1 - photos(2)])


def rows_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


class Page(HTMLParser):
    """A strict reader: every element that is opened is closed, in order."""

    def __init__(self, page: str):
        super().__init__()
        self.open, self.tags, self.words = [], [], []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


# The log


@pytest.mark.usefixtures("plain")
def test_a_resumed_log_is_that_of_an_unbroken_run(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    fill(watch(whole), 1, 30)
    fill(watch(broken), 1, 25)
    with (broken / "log.jsonl").open("a") as file:
        file.write('{"event": "losses", "step": 26, "adver')
    (broken / "samples" / "notes.txt").write_text("of the user")
    resumed = watch(broken, step=12)
    assert {row["step"] for row in rows_of(broken)} == set(range(1, 13))
    assert [step for step, _ in resumed.pictures()] == [10]
    fill(resumed, 13, 30)
    timeless = [[{**row, "time": 0} for row in rows_of(run)] for run in (whole, broken)]
    assert timeless[0] == timeless[1]
    assert (broken / "samples" / "notes.txt").exists()
    assert not list(broken.rglob("*.part*"))


@pytest.mark.usefixtures("plain")
def test_a_torn_line_within_the_kept_part_is_dropped(tmp_path):
    lines = [b'{"step": 1, "a": 2}', b"\xff\x00{", b"[1]", b'{"a": 1}', b'{"step": 2, "a": 1}', b'{"step": 3']
    (tmp_path / "log.jsonl").write_bytes(b"\n".join(lines))
    watch(tmp_path, step=5)
    assert (tmp_path / "log.jsonl").read_bytes() == lines[0] + b"\n" + lines[4] + b"\n"


@pytest.mark.usefixtures("plain")
def test_a_run_that_starts_anew_starts_a_new_log(tmp_path):
    fill(watch(tmp_path), 1, 10)
    assert watch(tmp_path).pictures() == []
    assert rows_of(tmp_path) == []


@pytest.mark.usefixtures("plain")
def test_the_log_is_json_whatever_the_values(tmp_path):
    monitor = watch(tmp_path)
    monitor.losses(1, {"adversarial": math.nan, "cycle": math.inf}, images_per_second=1.0)
    monitor.alarm(1, HOSTILE)
    (losses, alarm) = rows_of(tmp_path)
    assert losses["adversarial"] is None and losses["cycle"] is None and losses["event"] == "losses"
    assert alarm["event"] == "alarm" and alarm["text"] == HOSTILE
    assert "adversarial" not in monitor.report().read_text()  # nothing to draw


def test_a_folder_that_cannot_be_written_is_our_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(FileError, match="file"):
        watch(tmp_path / "file")


# Sample grids


@pytest.mark.usefixtures("plain")
def test_grids_show_every_tile_in_its_place(tmp_path):
    rows = [photos(3, 20, 30), photos(4, 20, 30).flip(0), photos(3, 40, 60)]
    path = watch(tmp_path).samples(500, rows)
    assert path == tmp_path / "samples" / "step-00000500.png"
    with Image.open(path) as picture:
        pixels = np.asarray(picture)
    assert pixels.shape == (2 + 3 * 22, 2 + 3 * 32, 3)
    second = torch.from_numpy(pixels[24:44, 34:64].copy()).permute(2, 0, 1) / 255
    torch.testing.assert_close(second, rows[1][1], atol=1 / 255, rtol=0)
    assert (pixels[22:24] == 255).all() and (pixels[:, 32:34] == 255).all()


@pytest.mark.usefixtures("plain")
def test_grids_take_what_networks_give(tmp_path):
    wild = photos(2).bfloat16().requires_grad_()
    path = watch(tmp_path).samples(1, [wild * 4 - 1, photos(2) * torch.nan])
    with Image.open(path) as picture:
        assert np.asarray(picture)[30:50, 4:30].max() == 0


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("side", [32, 128])
def test_rows_have_names(side, tmp_path):
    rows = [photos(3, side, side)] * 3
    monitor = watch(tmp_path)
    with Image.open(monitor.samples(1, rows)) as picture:
        bare = np.asarray(picture)
    with Image.open(monitor.samples(2, rows, ROWS)) as picture:
        named = np.asarray(picture)
    margin = named.shape[1] - bare.shape[1]
    assert (named[:, margin:] == bare).all(), "the tiles are as they were"
    for row in range(3):
        strip = named[2 + row * (side + 2) :][:side, :margin]
        dark = (strip.mean(axis=2) < 128).any(axis=1)
        assert dark[side // 4 : -side // 4].any() and not dark[: side // 8].any(), "in the middle of its row"
        assert (strip[:, [0, -1]] == 255).all(), "no letter is cut off"
    assert "source, result, target" in monitor.report().read_text()


# The report


@pytest.mark.usefixtures("plain")
def test_the_report_holds_all_curves(tmp_path):
    monitor = watch(tmp_path, facts={"config": {"steps": 30, "layers": (1, 2), "resume": None}, "gpu": True})
    fill(monitor, 1, 30)
    monitor.alarm(7, "careful")
    monitor.alarm(9, "careful")
    running = Page(monitor.report().read_text("utf-8"))
    assert any("the run goes on" in words for words in running.words)
    path = monitor.close(OUTCOME)
    page = Page(path.read_text("utf-8"))
    labels = [value.split(" over")[0] for name, value in page.attributes if name == "aria-label" and value]
    assert labels == ["score", "kid", "adversarial", "cycle", "images per second"]
    for words in ("Chosen: step 20", "lowest score", "0.25", "minutes", "config / steps", "1, 2", "yes"):
        assert words in page.words, words
    assert "Steps 7 to 9, 2 times." in page.words
    assert page.words.count("chosen") == 2, "the chosen step is marked in both scores"
    assert page.tags.count("img") == 3 and "Step 20, chosen" in page.words
    assert "script" not in page.tags and "link" not in page.tags
    sources = [value for name, value in page.attributes if name in ("src", "href")]
    assert all(source and source.startswith("data:image/jpeg;base64,") for source in sources)


def test_everything_in_the_report_is_escaped(tmp_path):
    rows = [
        {"event": "losses", "step": 1, HOSTILE: 1.0, "images_per_second": 1.0},
        {"event": "scores", "step": 1, HOSTILE: 1.0},
        {"event": "alarm", "step": 1, "text": HOSTILE},
        {"event": HOSTILE, "step": 1, "a": 1.0},
    ]
    outcome = {"chosen step": HOSTILE, "why": HOSTILE, "scores": {HOSTILE: HOSTILE}, HOSTILE: [HOSTILE]}
    html = render(HOSTILE, {HOSTILE: {HOSTILE: Path(HOSTILE)}}, rows, [(1, tmp_path / HOSTILE[:9])], outcome)
    page = Page(html)
    assert "script" not in page.tags and not set("\x00\x1b\udcff") & set(html)
    assert {name for name, _ in page.attributes} <= {
        *("charset", "name", "content", "lang", "class", "scope", "viewbox", "role", "aria-label", "d"),
        *("x", "y", "cx", "cy", "r", "text-anchor"),
    }
    html.encode("utf-8")


def test_an_empty_run_has_a_report():
    page = Page(render("nothing yet", {}, [], [], None))
    assert "nothing yet" in page.words and "svg" not in page.tags


def test_a_run_that_was_stopped_says_so():
    page = Page(
        render("a run", {"files": list(range(99))}, [{"step": 7, "a": 1.0}], [], {"stopped": "time is up"})
    )
    assert "Stopped after 7 steps." in page.words and "time is up" in page.words
    assert any(words.endswith("19, … (99 in all)") for words in page.words)


def test_the_report_stays_small(tmp_path):
    noise = torch.rand(8, 3, 256, 256)  # nothing is harder to compress
    pictures = []
    for step in range(16):
        path = tmp_path / f"{step}.png"
        Image.fromarray((torch.cat([*noise], 2).permute(1, 2, 0) * 255).byte().numpy()).save(path)
        pictures.append((step, path))
    rows = [{"step": step, "a": random.random(), "b": step**2} for step in range(20_000)]
    html = render("large", {}, rows, pictures, {"chosen step": 1})
    assert len(html) < 3_000_000 and html.count("<img") == 12
    assert "Step 1, chosen" in html and "at step 0" in html and "at step 15" in html


def test_pictures_are_spread_evenly_and_damaged_ones_left_out(tmp_path):
    steps = [step for step, _ in evenly([(step, tmp_path) for step in range(100)], 12)]
    assert steps[0] == 0 and steps[-1] == 99 and len(set(steps)) == 12
    assert {b - a for a, b in pairwise(steps)} == {9}
    (tmp_path / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert data_uri(tmp_path / "torn.png", 1000) == "" == data_uri(tmp_path / "missing.png", 1000)


@pytest.mark.parametrize(
    "values",
    [[0.0], [5.0] * 3, [0.0] * 200, [1e-29, 1e29], [-3.0, -2.0], [1.0] * 199 + [1e6], [1.0, 1.0 + 1e-15]],
)
def test_any_values_make_a_drawing(values):
    drawing = chart("loss", list(enumerate(values)), chosen=0)
    assert "nan" not in drawing and "inf" not in drawing
    Page(drawing)


def test_spikes_do_not_flatten_a_curve():
    spiky = list(enumerate([0.5, 0.6] * 100 + [1e4]))
    assert ">0.5<" in chart("loss", spiky) and "10000<" not in chart("loss", spiky)
    assert ">10000<" in chart("score", spiky, dots=True), "no score is left out"


def test_curves_are_thinned_and_smoothed_without_moving():
    slope = [(step, 3.0 * step) for step in range(10_007)]
    thin = thinned(slope)
    assert len(thin) == MOST_POINTS and thin[0][0] == 0 and thin[-1][0] == 10_006
    assert all(value == pytest.approx(3 * step, abs=40) for step, value in thin)
    calm = [value for _, value in smoothed(thin)]
    assert calm == pytest.approx([value for _, value in thin], abs=40)
    noise = [(step, (-1.0) ** step) for step in range(400)]
    assert max(abs(value) for _, value in smoothed(noise)[20:-20]) < 0.1
    assert thinned(slope[:9]) == slope[:9]


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 3000), (-0.7, 12.3), (1e-7, 9e-7), (5e8, 6e8)])
def test_ticks_are_round_and_within(low, high):
    found = ticks(low, high, 4)
    assert 3 <= len(found) <= 6
    assert all(low - 1e-12 <= tick <= high * (1 + 1e-12) for tick in found)
    assert all(
        len(f"{tick:.6g}".strip("-0.").split("e")[0].rstrip("0").replace(".", "")) <= 3 for tick in found
    )


# TensorBoard


def test_tensorboard_reads_what_a_resumed_run_wrote(tmp_path):
    reason = "needs tensorboard, which is not installed"
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason=reason)
    first = watch(tmp_path)
    fill(first, 1, 15)
    first.alarm(15, HOSTILE)
    first.close(OUTCOME)
    resumed = watch(tmp_path, step=10, facts={"a | b": "c\nd"})
    fill(resumed, 11, 20)
    resumed.close(OUTCOME)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    assert {"losses/adversarial", "losses/cycle", "scores/kid", "speed/images per second"} <= set(
        tags["scalars"]
    )
    assert [event.step for event in events.Scalars("losses/cycle")] == list(range(1, 21)), (
        "none is lost or twice"
    )
    assert events.Scalars("losses/adversarial")[1].value == 0.5
    assert [event.step for event in events.Images("samples")] == [10, 20]
    assert "configuration/text_summary" in tags["tensors"]


def test_without_tensorboard_the_rest_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    monitor = watch(tmp_path)
    fill(monitor, 1, 10)
    monitor.close(OUTCOME)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.jsonl", "report.html", "samples"]
