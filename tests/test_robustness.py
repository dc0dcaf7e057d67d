"""`styleaug evaluate robustness`: folders in, a fair and resumable comparison out."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from styleaug.errors import ConfigError, FileError
from styleaug.robustness import classification
from styleaug.robustness import evaluate as robustness
from styleaug.robustness.class_folders import class_names, read_class_folders, split_home
from styleaug.robustness.classifier_training import Recipe
from styleaug.robustness.evaluate import evaluate_robustness, plan_robustness
from styleaug.robustness.report import tables_of

CLASSES = {"disc": (0, 160, 60), "bar": (160, 60, 0), "frame": (60, 0, 160)}
RECIPE = Recipe(side=32, epochs=2, lr=4e-3, batch=8, geometry="small")


def draw(folder: Path, count: int, seed: int, *, size: tuple[int, int] = (36, 32), shift: int = 0) -> Path:
    """Draw images whose class is their colour, more or less."""
    rng = np.random.default_rng(seed)
    for name, colour in CLASSES.items():
        (folder / name).mkdir(parents=True)
        for index in range(count):
            noise = rng.integers(0, 90, (*size[::-1], 3))
            pixels = (noise + np.roll(colour, shift)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("domains")
    draw(root / "photo", 10, 0)
    draw(root / "sketch", 4, 1, shift=1)
    draw(root / "night", 4, 2)
    return root


def evaluated(folders: Path, *arms: str, **options):
    options = {"recipe": RECIPE, "seeds": 2, "threads": 1, **options}
    tests = [folders / "sketch", folders / "night"]
    return evaluate_robustness(folders / "photo", tests, arms=arms, **options)


def scores(result) -> dict:
    return {(run["arm"], run["seed"]): (run["scores"], run["corrupted"]) for run in result.runs}


@pytest.mark.slow
def test_arms_are_compared_pairwise(folders):
    # The same arm twice is the same network twice, whatever was drawn in between.
    result = evaluated(folders, "none", "jitter+grey", "again=none", "mixstyle", "twice=jitter+grey")
    found = scores(result)
    for seed in range(2):
        assert found["none", seed] == found["again", seed]
        assert found["jitter+grey", seed] == found["twice", seed]
    by_name = {arm.name: arm for arm in result.arms}
    gap = by_name["again"].differences["mean of others"]
    assert (gap.mean, gap.verdict) == (0, "within noise")
    assert "none" not in by_name["none"].differences
    assert set(by_name["none"].scores) == {"home", "sketch", "night", "mean of others"}


def test_what_the_arms_of_a_seed_share(folders, monkeypatch):
    met = []

    def remember(net, images, labels, augment, recipe, *, seed, device, steps):
        met.append((seed, net.body[0].weight.sum().item(), images.sum().item(), tuple(labels.tolist())))

    monkeypatch.setattr(classification, "fit", remember)
    torch.manual_seed(9)
    expected = torch.rand(2)
    torch.manual_seed(9)
    evaluated(folders, "none", "jitter")
    assert torch.equal(torch.rand(2), expected), "the global generator stays where it was"
    assert met[0] == met[1] and met[2] == met[3]
    assert all(one != other for one, other in zip(met[0], met[2], strict=True) if not isinstance(one, tuple))


def test_a_classifier_learns_what_can_be_learned(folders):
    recipe = Recipe(side=32, epochs=12, lr=4e-3, batch=8, geometry="small")
    (arm,) = evaluated(folders, "none", recipe=recipe, seeds=1).arms
    assert arm.scores["home"].mean == 1
    assert arm.scores["night"].mean == 1
    assert arm.scores["sketch"].mean < 0.5, "its colours belong to other classes"


def test_corruptions_of_the_home_test(folders, tmp_path):
    out = tmp_path / "result.json"
    options = {"corruptions": ("gaussian_noise", "contrast"), "severities": (1, 5), "out": out}
    result = evaluated(folders, "none", "jitter", **options)
    (first, *_) = result.runs
    assert list(first["corrupted"]) == ["gaussian_noise 1", "gaussian_noise 5", "contrast 1", "contrast 5"]
    assert set(result.corruptions["none"]) == {"gaussian_noise", "contrast"}
    table = result.table()
    assert "corrupted minus none" in table and "gaussian_noise" in table
    again = evaluated(folders, "none", "jitter", **options)
    assert scores(again) == scores(result)


def test_corrupted_images_are_those_of_the_split(folders, monkeypatch):
    seen = []

    def remember(images, name, severity, *, scale, first):
        seen.append((images.clone(), scale, first))
        return images

    monkeypatch.setattr(robustness, "corrupt", remember)
    result = evaluated(folders, "none", "jitter", corruptions=("fog",), severities=(3,))
    assert len(seen) == 2, "once per seed, not per arm"
    assert not torch.equal(seen[0][0], seen[1][0])
    assert {scale for _, scale, _ in seen} == {"cifar"}
    for run in result.runs:
        assert run["corrupted"]["fog 3"] == run["scores"]["home"]


def pretended(job):
    """Return a record as of a run; arms that saw the tests gain, and seed 0 is the best."""
    score = 0.5 + 0.2 * (job.arm.name == "target") + 0.01 * job.seed + 0.3 * (job.seed == 0)
    scores = {name: score for name in ("home", "sketch", "night")}
    keys = ("seconds", "cpu_seconds", "test_seconds")
    return {"arm": job.arm.name, "spec": job.spec, "seed": job.seed, "scores": scores} | {
        "corrupted": {"fog 3": score}, **dict.fromkeys(keys, 1.0)
    }  # fmt: skip


def test_what_saw_the_tests_and_what_was_chosen_on_stand_apart(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(robustness, "run_one", pretended)
    out = tmp_path / "result.json"
    whole = evaluated(folders, "none", "target=grey", "blur", seeds=3, out=out)
    before = out.read_bytes()
    assert whole.reported() == whole
    assert [title for title, _ in tables_of(whole)] == [""]
    found = whole.reported(transductive=["target"], first_seed=1)
    unseen, seen = "arms that saw no image of the tests", "arms that saw images of the tests, without labels"
    late, early = "Seed 1 and later: ", "Seed 0, set aside to choose settings on: "
    assert [(title, [row[0] for row in rows[1:]]) for title, rows in tables_of(found)] == [
        (late + unseen, ["none", "blur"]),
        (late + seen, ["target"]),
        (early + unseen, ["none", "blur"]),
        (early + seen, ["target"]),
    ]
    by_name = {arm.name: arm for arm in found.arms}
    assert by_name["none"].seeds == (1, 2)
    assert by_name["none"].scores["home"].mean == pytest.approx(0.515)
    assert by_name["target"].differences["night"].mean == pytest.approx(0.2)
    assert [arm.scores["home"].mean for arm in found.chosen] == pytest.approx([0.8, 1.0, 0.8])
    assert found.corruptions["none"] == {"fog": pytest.approx(0.515)}
    for text in (found.markdown(), found.table()):
        assert text.index("Seed 1 and later: arms that saw no") < text.index("Seed 0, set aside")
    assert found.to_dict()["transductive"] == ["target"]
    assert out.read_bytes() == before, "what is shown is no matter of the runs"
    only_chosen = whole.reported(first_seed=3)
    assert [title for title, _ in tables_of(only_chosen)] == ["Seeds 0 to 2, set aside to choose settings on"]
    assert "| none | 3 |" in only_chosen.markdown()
    with pytest.raises(ConfigError, match="no arm is called targets; there are none, target, blur"):
        whole.reported(transductive=["targets"])


@pytest.mark.slow
def test_a_broken_off_comparison_goes_on(folders, tmp_path, monkeypatch):
    whole = evaluated(folders, "none", "jitter", out=tmp_path / "whole.json")
    done = []

    def stop_at_third(job):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(job.key)
        return robustness_run(job)

    robustness_run = robustness.run_one
    monkeypatch.setattr(robustness, "run_one", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        evaluated(folders, "none", "jitter", out=tmp_path / "parts.json")
    assert done == [("none", 0), ("jitter", 0)], "one seed of all arms before the next"
    assert len(json.loads((tmp_path / "parts.json").read_text())["runs"]) == 2
    done.clear()
    monkeypatch.setattr(robustness, "run_one", lambda job: done.append(job.key) or robustness_run(job))
    resumed = evaluated(folders, "none", "jitter", out=tmp_path / "parts.json")
    assert done == [("none", 1), ("jitter", 1)]
    assert scores(resumed) == scores(whole)


@pytest.mark.slow
def test_stopped_at_the_terminal_and_run_again(folders, tmp_path, command):
    out = tmp_path / "stopped.json"
    arguments = ["evaluate", "robustness", folders / "photo", "--test", folders / "night", "--arm", "none"]
    arguments += ["--seeds", 400, "--side", 32, "--batch", 8, "--epochs", 6, "--jobs", 2, "--threads", 1]
    arguments = [*map(str, arguments), "-o", str(out)]
    process = subprocess.Popen(
        [sys.executable, "-m", "styleaug", *arguments],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Where the tests run in the background, a shell has let them ignore it, and so would their children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not out.exists() and process.poll() is None:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
    _, told = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "keeps the finished runs. Go on with: styleaug evaluate robustness" in told
    assert "Traceback" not in told
    kept = json.loads(out.read_text())["runs"]
    assert 0 < len(kept) < 400
    command(*(argument if argument != "400" else str(len(kept) + 1) for argument in arguments), "--jobs", 1)
    runs = json.loads(out.read_text())["runs"]
    assert all(run in runs for run in kept)
    assert {run["seed"] for run in runs} >= set(range(len(kept) + 1))


@pytest.mark.slow
def test_several_processes_find_the_same(folders, tmp_path):
    alone = evaluated(folders, "none", "jitter", seeds=1, corruptions=("fog",), severities=(3,))
    both = evaluated(folders, "none", "jitter", seeds=1, corruptions=("fog",), severities=(3,), jobs=2)
    assert scores(alone) == scores(both)


@pytest.mark.slow
def test_other_settings_are_refused(folders, tmp_path):
    out = tmp_path / "result.json"
    evaluated(folders, "none", "x=jitter", seeds=1, out=out)
    before = out.read_bytes()
    longer = Recipe(side=32, epochs=3, lr=4e-3, batch=8, geometry="small")
    with pytest.raises(ConfigError, match="recipe epochs is 2 there and 3 here"):
        evaluated(folders, "none", seeds=1, out=out, recipe=longer)
    with pytest.raises(ConfigError, match=r"another arm 'x': 'jitter #.*' there, 'grey #"):
        evaluated(folders, "none", "x=grey", seeds=1, out=out)
    assert out.read_bytes() == before
    redone = evaluated(folders, "none", "x=grey", seeds=1, out=out, redo=True)
    assert [arm.spec for arm in redone.arms] == ["none", "grey"]
    evaluated(folders, "none", "x=grey", seeds=1, out=out, recipe=longer, redo=True)
    assert json.loads(out.read_text())["settings"]["recipe"]["epochs"] == 3


def test_a_changed_domain_is_another_setting(folders, tmp_path):
    draw(tmp_path / "more", 2, 5)
    options = {"arms": ["none"], "recipe": RECIPE, "seeds": 1, "out": tmp_path / "result.json"}
    evaluate_robustness(folders / "photo", {"more": tmp_path / "more"}, **options)
    (tmp_path / "more" / "disc" / "0.png").unlink()
    with pytest.raises(ConfigError, match="domains more"):
        evaluate_robustness(folders / "photo", {"more": tmp_path / "more"}, **options)


@pytest.mark.parametrize(
    "content", ["", "[]", '{"runs": []}', '{"format": "styleaug robustness 1", "runs": [{}]}']
)
def test_a_file_that_is_none_of_ours_is_kept(folders, tmp_path, content):
    out = tmp_path / "mine.json"
    out.write_text(content)
    with pytest.raises(FileError, match="no result file"):
        evaluated(folders, "none", seeds=1, out=out)
    assert out.read_text() == content


def test_a_home_test_of_its_own(folders):
    tests = {"home": folders / "night", "sketch": folders / "sketch"}
    result = evaluate_robustness(folders / "photo", tests, arms=["none"], recipe=RECIPE, seeds=1)
    (run,) = result.runs
    assert (run["trained_on"], run["tested_on"]) == (30, 12)
    assert list(run["scores"]) == ["home", "sketch"]


@pytest.mark.parametrize(
    "options, said",
    [
        ({"arms": []}, "at least one arm"),
        ({"arms": ["none", "none"]}, "two arms are called 'none'"),
        ({"arms": ["nothing"]}, "no step 'nothing'"),
        ({"arms": ["none"], "baseline": "jitter"}, "baseline 'jitter' is no arm"),
        ({"arms": ["none"], "corruptions": ("rain",)}, "unknown corruption rain"),
        ({"arms": ["none"], "corruptions": ("fog",), "severities": (6,)}, "severities must lie in 1..5"),
        ({"arms": ["none"], "held_out": 1.0}, "held_out must lie between"),
        ({"arms": ["none"], "device": "tpu9"}, "device 'tpu9' cannot be used"),
        ({"arms": ["none"], "classes": ("disc", "star")}, "has no class star; it has bar, disc, frame"),
        ({"arms": ["none"], "memory": 1e-6}, "allow more memory"),
        ({"arms": ["none"], "tests": {"train": "photo"}}, "cannot be called 'train'"),
        ({"arms": ["none"], "tests": {"x": "nowhere"}}, "there is no folder"),
    ],
)
def test_wrong_arguments_say_what_is_wrong(folders, options, said):
    tests = {name: folders / folder for name, folder in options.pop("tests", {"night": "night"}).items()}
    with pytest.raises((ConfigError, FileError), match=said):
        evaluate_robustness(folders / "photo", tests, recipe=RECIPE, **options)


def test_hooks_act_in_training_and_are_removed(folders, monkeypatch):
    hooks = []
    count = lambda net: sum(len(block._forward_hooks) for block in net.early)  # noqa: E731
    monkeypatch.setattr(classification, "fit", lambda net, *rest, **options: hooks.append(count(net)))
    score = classification.answers
    monkeypatch.setattr(
        classification, "answers", lambda net, *rest, **options: hooks.append(count(net)) or score(net, *rest)
    )
    evaluate_robustness(folders / "photo", arms=["mixstyle", "dsu", "none"], recipe=RECIPE, seeds=1)
    assert hooks == [2, 0, 2, 0, 0, 0]


def test_mixstyle_needs_a_place(folders, monkeypatch):
    make = classification.make_classifier

    def unlike(*args, **options):
        net = make(*args, **options)
        net.early = ()
        return net

    monkeypatch.setattr(classification, "make_classifier", unlike)
    with pytest.raises(ConfigError, match="small has no known place for its changes of features"):
        evaluated(folders, "mixstyle", seeds=1)


def test_hostile_folders(folders, tmp_path):
    root = draw(tmp_path / "set", 4, 3)
    (root / "disc" / "0.png").write_bytes(b"no image")
    (root / "disc" / "grey.png").write_bytes(b"")
    Image.new("L", (50, 33), 90).save(root / "bar" / "grey.png")
    Image.new("RGBA", (3, 90), (9, 9, 9, 100)).save(root / "bar" / "thin.png")
    np.save(root / "frame" / "a.npy", np.random.default_rng(0).random((40, 40, 3), dtype=np.float32))
    (root / ".hidden").mkdir()
    (root / "notes.txt").write_text("not an image")
    found = read_class_folders(root, ["bar", "disc", "frame"], 16)
    assert found.images.shape == (4 + 2 + 3 + 4 + 1, 3, 16, 16)
    assert found.images.dtype == torch.uint8
    assert sorted(path.name for path, _ in found.failed) == ["0.png", "grey.png"]
    result = evaluate_robustness(root, arms=["none"], recipe=RECIPE, seeds=1)
    assert len(result.failed) == 2
    with pytest.raises(FileError, match=r"2 files cannot be read; the first: .*0.png"):
        evaluate_robustness(root, arms=["none"], recipe=RECIPE, seeds=1, strict=True)


def test_folders_that_are_no_classes(folders, tmp_path):
    with pytest.raises(FileError, match="no image in"):
        class_names(tmp_path)
    flat = tmp_path / "flat"
    flat.mkdir()
    Image.new("RGB", (9, 9)).save(flat / "a.png")
    with pytest.raises(FileError, match="two or more folders, one for each class"):
        class_names(flat)
    with pytest.raises(ConfigError, match="not trained on: bar, disc"):
        read_class_folders(folders / "photo", ["frame"], 16)
    assert len(read_class_folders(folders / "photo", ["frame"], 16, foreign=True, limit=3).labels) == 3
    for path in (folders / "photo").rglob("*.png"):
        other = tmp_path / "bad" / path.relative_to(folders / "photo")
        other.parent.mkdir(parents=True, exist_ok=True)
        other.write_bytes(b"bad")
    with pytest.raises(FileError, match="none of the 30 images"):
        read_class_folders(tmp_path / "bad", list(CLASSES), 16)


def test_crop_and_squash(tmp_path):
    (tmp_path / "a").mkdir()
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = 200
    Image.fromarray(wide).save(tmp_path / "a" / "wide.png")
    crop = read_class_folders(tmp_path, ["a"], 20, fit="crop").images
    squash = read_class_folders(tmp_path, ["a"], 20, fit="squash").images
    assert (crop == 200).all()
    assert squash[0, 0, 10, 0] == 0 and squash[0, 0, 10, 10] == 200


def test_a_split_holds_a_share_of_each_class_out():
    labels = torch.tensor([0] * 20 + [1] * 10 + [2] * 5)
    train, test = split_home(labels, 0, held_out=0.2)
    assert labels[train].bincount().tolist() == [16, 8, 4]
    assert sorted(torch.cat([train, test]).tolist()) == list(range(35))
    assert not torch.equal(train, split_home(labels, 1)[0])
    even, rest = split_home(labels, 0, balanced=True)
    assert labels[even].bincount().tolist() == [16, 16, 16]
    assert torch.equal(rest, test)
    few, many = split_home(labels, 0, per_class=6)
    assert labels[few].bincount().tolist() == [6, 6, 6]
    assert not set(few.tolist()) & set(many.tolist())
    assert len(split_home(labels, 0, held_out=0.0)[1]) == 0
    with pytest.raises(ConfigError, match=r"too few to hold 0\.2"):
        split_home(torch.tensor([0, 0, 1]), 0)


def test_the_command_prints_a_table_and_writes_both_files(folders, tmp_path, command):
    out = tmp_path / "sub" / "result.json"
    arguments = ["evaluate", "robustness", folders / "photo", "--test", folders / "night"]
    arguments += ["--test", f"drawn={folders / 'sketch'}", "--arm", "none", "--arm", "colours=jitter+grey"]
    arguments += ["--side", 32, "--batch", 8, "--epochs", 1, "--seeds", 2, "--threads", 1, "-o", out]
    told = command(*arguments)
    head, none, colours, *_ = told.stdout.splitlines()
    assert head.split()[:5] == ["arm", "seeds", "home", "night", "drawn"]
    assert "mean of others minus none" in head
    assert none.startswith("none") and colours.startswith("colours")
    assert any(verdict in colours for verdict in ("better", "worse", "within noise"))
    assert "[4/4] colours, seed 1: home" in told.stderr
    assert f"{out} and {out.with_suffix('.md')} written" in told.stderr
    assert "| colours | 2 |" in out.with_suffix(".md").read_text()
    assert "- colours: `jitter+grey`" in out.with_suffix(".md").read_text()
    again = command(*arguments, "--json")
    found = json.loads(again.stdout)
    assert [arm["name"] for arm in found["arms"]] == ["none", "colours"]
    assert "[1/" not in again.stderr, "nothing is run again"


def test_one_seed_has_no_verdict(folders):
    table = evaluated(folders, "none", "jitter", seeds=1).table()
    assert "one seed: no verdict" in table
    assert "better," not in table.partition("Recall")[0]


def test_a_dry_run_trains_nothing(folders, tmp_path, command):
    arguments = ["evaluate", "robustness", folders / "photo", "--arm", "none", "--arm", "jitter"]
    arguments += [
        "--side",
        32,
        "--batch",
        8,
        "--epochs",
        4,
        "--corruptions",
        "fog,contrast",
        "--dry-run",
        "--threads",
        1,
    ]
    told = command(*arguments, "-o", tmp_path / "result.json").stdout
    assert "3 classes: bar, disc, frame" in told
    assert "runs: 6, of which 0 are done" in told
    assert "in all about" in told
    assert not list(tmp_path.iterdir())
    plan = plan_robustness(folders / "photo", arms=["none"], recipe=RECIPE, threads=1)
    assert plan.images == {"train": 30}
    assert 0 < plan.seconds["none"] < 60


def test_wrong_commands_end_without_a_traceback(folders, command):
    told = command("evaluate", "robustness", folders / "photo", "--arm", "jitters", code=1)
    assert "Error: arm 'jitters': there is no step 'jitters'" in told.stderr
    told = command("evaluate", "robustness", folders / "photo", "--severities", "strong", code=1)
    assert "severities must look like 1-5 or 1,3,5, got 'strong'" in told.stderr
    command("evaluate", "robustness", folders / "photo", "--seeds", "0", code=2)
