"""Runs that are killed, damaged, prolonged or stopped for want of progress: weights and log stay right."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from specimens import photos
from workshop import fields, loss_networks, newest, run, tiny, two_sides, write

from styleaug import ConfigError, FileError, WeightsError
from styleaug.io.tensors import to_bytes
from styleaug.training import checkpoints as checkpoints_module
from styleaug.training import loop
from styleaug.training import monitor as monitor_module
from styleaug.training.base import AbstractRecipe
from styleaug.training.best import Best
from styleaug.training.checkpoints import Checkpoints
from styleaug.training.data import TrainingData
from styleaug.training.monitor import Monitor
from styleaug.training.scores import Judge


@pytest.fixture(autouse=True)
def without_tensorboard(monkeypatch):
    monkeypatch.setattr(monitor_module, "open_board", lambda folder, step: None)


@pytest.fixture(scope="module")
def sides(tmp_path_factory) -> tuple[Path, Path]:
    """Pictures and their negatives; those of two classes, which are not as frequent on both sides."""
    folder = tmp_path_factory.mktemp("sides")
    sides = two_sides(folder)
    for side, count in zip(sides, (3, 12), strict=True):
        for index, path in enumerate(sorted(side.glob("*.png"))):
            name = "x" if index < count else "y"
            (side / name).mkdir(exist_ok=True)
            path.rename(side / name / path.name)
    return sides


def options(**more: Any) -> Any:
    """Configure a run of 12 steps with a checkpoint after every third, and scores after every second."""
    return tiny("cut", **{"steps": 12, "save_every": 3, "score_every": 2, "keep": 9, **more})


@pytest.fixture(scope="module")
def whole(sides, tmp_path_factory) -> Path:
    """A run that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(monitor_module, "open_board", lambda folder, step: None)
        run(options(), sides, folder)
    return folder


@pytest.fixture
def copied(whole, tmp_path) -> Path:
    """A copy of it, to be damaged."""
    return shutil.copytree(whole, tmp_path / "copy")


def log_of(folder: Path) -> list[dict]:
    """Read the log, without what depends on the clock."""
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{key: x for key, x in row.items() if key not in ("time", "images_per_second")} for row in rows]


def steps_of(folder: Path, event: str) -> list[int]:
    return [row["step"] for row in log_of(folder) if row["event"] == event]


def assert_equal_weights(one: Path, other: Path) -> None:
    first, second = newest(one), newest(other)
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[key]) for key, value in first.items())
    results = [load_file(folder / "generator.safetensors") for folder in (one, other)]
    assert all(torch.equal(value, results[1][key]) for key, value in results[0].items())


# Killed


class Killed(BaseException):
    """As if the process had ended there."""


PLACES = [
    (AbstractRecipe, "update"),
    (Monitor, "write"),
    (Monitor, "samples"),
    (Monitor, "report"),
    (Checkpoints, "write"),
    (Best, "write"),
    (Judge, "score"),
]


def killing(patch: pytest.MonkeyPatch, number: int, after: bool) -> None:
    """Raise at the `number`-th call of what a run does, before or after it is done; a log line is torn."""
    calls = iter(range(10_000))

    def wrapped(owner: Any, name: str) -> Callable:
        real = getattr(owner, name)

        def call(self: Any, *args: Any, **named: Any) -> Any:
            dies = next(calls) == number
            if dies and not after:
                if name == "write" and owner is Monitor:
                    with self.log.open("a") as file:
                        file.write('{"event": "losses", "st')
                raise Killed
            done = real(self, *args, **named)
            if dies:
                raise Killed
            return done

        return call

    for owner, name in PLACES:
        patch.setattr(owner, name, wrapped(owner, name))


@pytest.mark.slow
@settings(max_examples=12)
@given(st.lists(st.tuples(st.integers(0, 70), st.booleans()), min_size=1, max_size=3))
def test_killed_anywhere_a_run_has_equal_weights_and_an_equal_log(sides, whole, tmp_path_factory, kills):
    check_kills(sides, whole, tmp_path_factory.mktemp("killed") / "run", kills)


@pytest.mark.slow
def test_killed_twice_a_run_has_equal_weights_and_an_equal_log(sides, whole, tmp_path):
    check_kills(sides, whole, tmp_path / "run", [(24, False), (17, True)])


def check_kills(sides: Any, whole: Path, folder: Path, kills: list[tuple[int, bool]]) -> None:
    """Kill a run at these calls, resume it to its end, and compare it with the unbroken one."""
    for number, after in kills:
        with pytest.MonkeyPatch.context() as patch:
            killing(patch, number, after)
            try:
                run(options(), sides, folder, resume=True)
            except Killed:
                continue
    run(options(), sides, folder, resume=True)
    assert_equal_weights(whole, folder)
    assert log_of(folder) == log_of(whole)
    assert sorted(p.name for p in folder.rglob("*")) == sorted(p.name for p in whole.rglob("*"))


def test_alarms_are_not_told_again(sides, whole, tmp_path, monkeypatch):
    assert steps_of(whole, "alarm")[0] == 0, "classes that are not as frequent on both sides"
    monkeypatch.setattr(loop, "alarms", lambda history, scores: ["careful"] if len(scores) > 1 else [])
    for _ in range(5):
        run(options(steps=5), sides, tmp_path, minutes=0, resume=True)
    assert steps_of(tmp_path, "alarm") == [0, 4]
    assert (tmp_path / "report.html").read_text().count("careful") == 1


@pytest.mark.slow
def test_the_history_of_losses_goes_on(sides, tmp_path, monkeypatch):
    """Alarms look back over entries of the log, those before a break among them."""
    seen = []
    monkeypatch.setattr(loop, "LOG_EVERY", 1)
    monkeypatch.setattr(loop, "alarms", lambda history, scores: seen.append(list(history)) or [])
    run(options(steps=4), sides, tmp_path / "whole")
    for _ in range(4):
        run(options(steps=4), sides, tmp_path / "broken", minutes=0, resume=True)
    whole, broken = seen[:2], seen[2:]
    assert [len(history) for history in whole] == [2, 4] and broken == whole


# Damaged


def flip(content: bytes, at: float, bit: int = 3) -> bytes:
    place = int(at * (len(content) - 1))
    return content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :]


def changed(path: Path, change: Callable[[dict, dict], None]) -> None:
    """Write a checkpoint anew with other tensors or facts, but with a digest that fits."""
    with safe_open(path, "pt") as file:
        facts = json.loads(file.metadata()["styleaug_run"])
    tensors = load_file(path)
    change(tensors, facts)
    path.write_bytes(to_bytes("styleaug_run", facts, tensors))


def without(prefix: str) -> Callable[[dict, dict], None]:
    def change(tensors: dict, facts: dict) -> None:
        del tensors[next(key for key in sorted(tensors) if key.startswith(prefix))]

    return change


def misshapen(prefix: str) -> Callable[[dict, dict], None]:
    def change(tensors: dict, facts: dict) -> None:
        key = next(key for key in sorted(tensors) if key.startswith(prefix))
        tensors[key] = torch.zeros(7, 7)

    return change


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1000]),
    "cut in the header": lambda path: path.write_bytes(path.read_bytes()[:100]),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "another file": lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" * 100),
    "a flipped bit of a weight": lambda path: path.write_bytes(flip(path.read_bytes(), 0.9)),
    "a flipped bit of the header": lambda path: path.write_bytes(flip(path.read_bytes(), 0.001)),
    "another step's": lambda path: shutil.copy(path.with_name("step-00000006.safetensors"), path),
    "no facts": lambda path: save_file(load_file(path), path),
    "a weight less": lambda path: changed(path, without("networks/")),
    "a moment less": lambda path: changed(path, without("optimisers/generator/")),
    "a misshapen weight": lambda path: changed(path, misshapen("averages/")),
    "a misshapen moment": lambda path: changed(path, misshapen("optimisers/generator/0/exp")),
    "a state less": lambda path: changed(path, without("state/")),
    "a best weight less": lambda path: changed(path, without("best/")),
    "scores that are none": lambda path: changed(path, lambda tensors, facts: facts.update(scores=[1])),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_falls_back_to_the_one_before(damage, sides, whole, copied):
    path = copied / "checkpoints" / "step-00000012.safetensors"
    DAMAGE[damage](path)
    with pytest.warns(UserWarning, match=r"step-00000012\.safetensors is damaged: .*goes on from step 9"):
        outcome = run(options(), sides, copied, resume=True)
    assert outcome.finished and log_of(copied) == log_of(whole), "no step is there twice"
    assert_equal_weights(whole, copied)
    assert path.with_name("damaged-step-00000012.safetensors").exists(), "nothing is deleted"
    pictures = [
        re.findall(r">(Step \d+)", (folder / "report.html").read_text()) for folder in (copied, whole)
    ]
    assert pictures[0] == pictures[1]


def test_a_log_is_cut_to_the_checkpoint_that_is_taken_up(sides, copied):
    for step in (9, 12):
        DAMAGE["truncated"](copied / "checkpoints" / f"step-{step:08d}.safetensors")
    with pytest.warns(UserWarning) as told:
        outcome = run(options(), sides, copied, resume=True, minutes=0)
    assert outcome.step == 7 and len(told) == 2
    assert steps_of(copied, "scores") == [2, 4, 6] and steps_of(copied, "losses") == [1]
    assert sorted(path.name[5:13] for path in (copied / "samples").glob("*.png")) == [
        f"{step:08d}" for step in (2, 4, 6)
    ]


def test_where_all_are_damaged_it_is_said(sides, copied):
    for path in (copied / "checkpoints").glob("step-*"):
        path.write_bytes(b"")
    before = (copied / "log.jsonl").read_bytes()
    with pytest.raises(WeightsError, match=r"none of the 4 checkpoints .*step-00000012.*another run folder"):
        run(options(), sides, copied, resume=True)
    assert (copied / "log.jsonl").read_bytes() == before, "nothing is touched"
    assert len(list((copied / "checkpoints").glob("step-*"))) == 4


@given(st.floats(0, 1), st.integers(0, 7))
def test_no_flipped_bit_passes(whole, tmp_path_factory, at, bit):
    original = whole / "checkpoints" / "step-00000012.safetensors"
    path = tmp_path_factory.mktemp("flipped") / original.name
    path.write_bytes(flip(original.read_bytes(), at, bit))
    reader, config = Checkpoints(path.parent, keep=1), options()
    tensors, facts = reader.read(original, config)
    try:
        found, told = reader.read(path, config)
    except WeightsError:
        return
    assert {key: told.get(key) for key in facts} == facts and found.keys() == tensors.keys()
    assert all(torch.equal(value, found[key]) for key, value in tensors.items())


def test_checkpoints_of_earlier_versions_are_taken_up(sides, whole, copied):
    for path in (copied / "checkpoints").glob("step-*"):
        with safe_open(path, "pt") as file:
            facts = json.loads(file.metadata()["styleaug_run"])
        del facts["digest"], facts["since"], facts["config"]["patience"]
        tensors = {key: x for key, x in load_file(path).items() if not key.startswith("best/")}
        save_file(tensors, path, {"styleaug_run": json.dumps(facts)})
    best = load_file(copied / "checkpoints" / "best-generator.safetensors")
    with pytest.warns(UserWarning, match="carries no digest"):
        assert run(options(), sides, copied, resume=True).finished
    for key, value in load_file(copied / "generator.safetensors").items():
        assert torch.equal(value, best[key])


def test_what_must_not_be_read_is_no_damage(sides, copied, monkeypatch):
    def refuse(path: Path, framework: str) -> Iterator:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(checkpoints_module, "safe_open", refuse)
    with pytest.raises(FileError, match=r"cannot read the checkpoint .*step-00000012.*Permission denied"):
        run(options(), sides, copied, resume=True)


@pytest.mark.slow
def test_damaged_statistics_of_styles_are_read_anew(sides, tmp_path):
    networks, config = loss_networks(tmp_path / "networks"), tiny("adain", steps=1, init="")
    run(config, sides, tmp_path / "whole", networks=networks)
    shutil.copytree(tmp_path / "whole", tmp_path / "run")
    styles = tmp_path / "run" / "styles.safetensors"
    original = styles.read_bytes()
    for content in (b"", original[:-9], flip(original, 0.9), flip(original, 0.001)):
        styles.write_bytes(content)
        run(config, sides, tmp_path / "run", networks=networks, resume=True)
        assert load_file(styles).keys() == load_file(tmp_path / "whole" / "styles.safetensors").keys()
        assert styles.read_bytes() == original


# Prolonged


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["cut", "patchgan", "cyclegan"])
def test_a_prolonged_run_ends_where_a_longer_one_does(recipe, sides, tmp_path):
    def config(steps: int) -> Any:
        return tiny(recipe, steps=steps, schedule="constant", warm_up=3)

    run(config(20), sides, tmp_path / "whole")
    assert run(config(10), sides, tmp_path / "parts").finished
    outcome = run(config(20), sides, tmp_path / "parts", resume=True)
    assert (outcome.finished, outcome.step) == (True, 20)
    assert_equal_weights(tmp_path / "whole", tmp_path / "parts")
    assert log_of(tmp_path / "parts") == log_of(tmp_path / "whole")
    assert json.loads((tmp_path / "parts" / "config.json").read_text())["steps"] == 20


def test_the_best_so_far_stays_the_best(sides, tmp_path, monkeypatch):
    told = iter([0.3, 0.9, 0.8])
    monkeypatch.setattr(
        Judge, "score", lambda self, outputs: {"score": next(told), "kid": 0.0, "structure": 1.0}
    )
    config = tiny("patchgan", steps=4, score_every=4, schedule="linear")
    run(config, sides, tmp_path)
    best = (tmp_path / "generator.safetensors").read_bytes()
    outcome = run(config.with_options({"steps": 12}), sides, tmp_path, resume=True)
    assert "step 4 of 12 has the lowest held-out score of 3: 0.300" in outcome.why
    assert (tmp_path / "generator.safetensors").read_bytes() == best


def test_best_weights_of_a_course_that_was_left_are_forgotten(sides, tmp_path, monkeypatch):
    """A kill after the best score of all, then another number of steps: those weights never were."""
    told = iter([0.5, 0.1, 0.7, 0.7])
    monkeypatch.setattr(
        Judge, "score", lambda self, outputs: {"score": next(told), "kid": 0.0, "structure": 1.0}
    )
    config = tiny("patchgan", steps=8, score_every=2, save_every=3, schedule="linear")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Monitor, "report", lambda self, outcome=None: next(calls))
        calls = iter([None])
        with pytest.raises(StopIteration):
            run(config, sides, tmp_path)
    assert steps_of(tmp_path, "scores") == [2, 4]
    first = load_file(tmp_path / "checkpoints" / "step-00000003.safetensors")
    outcome = run(config.with_options({"steps": 6}), sides, tmp_path, resume=True)
    assert "step 2 of 6 has the lowest held-out score of 3: 0.500" in outcome.why
    for key, value in load_file(tmp_path / "generator.safetensors").items():
        assert torch.equal(value, first[f"best/generator/{key}"])


def test_an_unfinished_run_may_take_more_or_fewer_steps(sides, tmp_path):
    first = tiny("patchgan", steps=9, schedule="constant", score_every=3)
    assert run(first, sides, tmp_path / "a", minutes=0).step == 1
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert run(first.with_options({"steps": 12}), sides, tmp_path / "a", resume=True).step == 12
    ended = run(first.with_options({"steps": 1}), sides, tmp_path / "b", resume=True)
    assert ended.finished and "step 1 of 1 has the lowest held-out score of 1" in ended.why
    assert (tmp_path / "b" / "generator.safetensors").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 11}, "has taken 12 steps, so steps must be at least 12, got 11"),
        ({"steps": 99, "learning_rate": 1e-3}, r"made with learning_rate=0\.0002"),
        ({"steps": 11, "seed": 4}, "made with seed=0"),
        ({"patience": 3, "schedule": "cosine"}, "made with schedule='linear'"),
        ({"nce_weight": 0.0}, r"made with nce_weight=1\.0"),
    ],
)
def test_other_changes_are_refused(changes, message, sides, copied):
    before = {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match=message):
        run(options(**changes), sides, copied, resume=True)
    assert {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()} == before


def test_the_learning_rate_follows_the_new_number_of_steps(sides, tmp_path):
    for schedule, rate in (("constant", 1.0), ("linear", 1.0), ("cosine", 0.505)):
        config = tiny("patchgan", steps=20, schedule=schedule)
        assert loop.rate_factor(10, config) == pytest.approx(rate)


# Samples


def tiles(path: Path, columns: int) -> list[list[torch.Tensor]]:
    """Cut a sample grid into its tiles of 32 x 32, without the names of the rows."""
    with Image.open(path) as picture:
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[:, 2:, -34 * columns :]
    return [[tile[:, :32, :32] for tile in row.split(34, 2)] for row in pixels.split(34, 1)]


@pytest.mark.slow
def test_below_a_result_is_its_style(tmp_path):
    """Styles are read from the targets in turn; the sheet shows for each column the one it has."""
    a, b = write(tmp_path / "a", photos(12, 32, 32)), write(tmp_path / "b", fields(40, seed=1)[..., :32, :32])
    networks, config = loss_networks(tmp_path / "networks"), tiny("adain", steps=1, held_out=0.5)
    run(config, (a, b), tmp_path / "run", networks=networks)
    held = TrainingData(a, b, config).judged()
    shown = loop.spread_out(len(held[0]))
    sources, _, targets = tiles(tmp_path / "run" / "samples" / "step-00000001.png", len(shown))
    for column, row in enumerate(shown):
        for tile, wanted in ((sources[column], held[0][row]), (targets[column], held[1][row % len(held[1])])):
            assert (tile / 255 - wanted).abs().max() < 0.01


# Patience


def scored(values: list[float], *, patience: int, since: int = 0) -> Best:
    best = Best(Path(), patience=patience)
    best.scores = [{"step": 10 * (index + 1), "score": value} for index, value in enumerate(values)]
    best.since = since
    return best


@given(st.lists(st.floats(0, 2), max_size=12), st.integers(1, 5))
def test_patience_counts_scores_without_a_better_one(values, patience):
    gains, reached = [], float("inf")
    for index, value in enumerate(values):
        if value < reached:
            gains.append(index)
            reached = value - 0.001 * max(1, value)
    waited = len(values) - 1 - gains[-1] if gains else 0
    assert scored(values, patience=patience).is_out_of_patience() == (waited >= patience)
    assert not scored(values, patience=0).is_out_of_patience()


def test_slow_progress_is_progress_and_broken_scores_are_none():
    assert not scored([1 - 0.0006 * index for index in range(50)], patience=2).is_out_of_patience()
    assert scored([0.5] + [float("nan")] * 3, patience=3).is_out_of_patience()
    assert scored([0.5] + [0.5 - 1e-7 * index for index in range(3)], patience=3).is_out_of_patience()
    assert scored([9e5 - index for index in range(4)], patience=3).is_out_of_patience()
    assert scored([float("nan"), 0.5], patience=1).row["score"] == 0.5


NO_GAIN = {"optimiser": "sgd", "learning_rate": 1e-8, "momentum": 0.0, "schedule": "constant"}


@pytest.mark.slow
def test_a_run_that_does_not_improve_ends(sides, tmp_path):
    config = options(steps=40, patience=3, **NO_GAIN)
    outcome = run(config, sides, tmp_path)
    assert (outcome.finished, outcome.step) == (True, 8)
    assert "of 40 has the lowest held-out score of 4" in outcome.why
    assert "Stopped at step 8: no better score in the last 3 (patience)" in outcome.why
    assert (tmp_path / "generator.safetensors").exists()
    assert "no better score in the last 3" in (tmp_path / "report.html").read_text()

    again = run(config, sides, tmp_path, resume=True)
    assert (again.step, again.why) == (8, outcome.why), "it is at its end"
    assert run(config.with_options({"patience": 5}), sides, tmp_path, resume=True).step == 12
    longer = run(config.with_options({"steps": 50, "patience": 5}), sides, tmp_path, resume=True)
    assert longer.step == 22, "who asks for more steps is patient anew"
    ended = run(config.with_options({"steps": 50, "patience": 0}), sides, tmp_path, resume=True)
    assert ended.step == 50 and "Stopped" not in ended.why
    assert steps_of(tmp_path, "scores") == list(range(2, 52, 2))


@pytest.mark.slow
def test_a_broken_run_loses_patience_where_an_unbroken_one_does(sides, tmp_path):
    config = options(steps=40, patience=4, **NO_GAIN)
    whole = run(config, sides, tmp_path / "whole")
    for _ in range(20):
        broken = run(config, sides, tmp_path / "broken", minutes=0, resume=True)
    assert (broken.finished, broken.step, broken.why) == (True, whole.step, whole.why)
    assert_equal_weights(tmp_path / "whole", tmp_path / "broken")
    assert log_of(tmp_path / "broken") == log_of(tmp_path / "whole")


@pytest.mark.slow
def test_a_run_that_improves_is_not_stopped(sides, tmp_path, monkeypatch):
    told = iter([0.9 - 0.01 * index + 0.05 * (index % 2) for index in range(99)])  # worse every second time
    monkeypatch.setattr(
        Judge, "score", lambda self, outputs: {"score": next(told), "kid": 0.0, "structure": 1.0}
    )
    outcome = run(options(steps=20, patience=2, score_every=1), sides, tmp_path)
    assert outcome.finished and outcome.step == 20 and "Stopped" not in outcome.why
