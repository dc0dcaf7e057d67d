"""`styleaug train` and the training of `fit-style`: options, runs, resumption, and what is refused."""

import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from specimens import photo, photos
from workshop import RECIPES, SMALL_NETWORKS, TINY, loss_networks, two_sides, write, written

from styleaug import StyleAugment, load_bank, load_generator
from styleaug.cli import console as console_module
from styleaug.cli.console import training_progress
from styleaug.cli.main import cli
from styleaug.training.config import preset

Command = Callable[..., SimpleNamespace]


def process(*args: object, code: int = 0) -> SimpleNamespace:
    """Run `styleaug` in a process of its own, its output into pipes."""
    words = [sys.executable, "-m", "styleaug", *map(str, args)]
    result = subprocess.run(words, capture_output=True, text=True)
    assert result.returncode == code, result
    assert "Traceback" not in result.stderr
    return SimpleNamespace(stdout=result.stdout, stderr=result.stderr)


@pytest.fixture(scope="module")
def sides(tmp_path_factory) -> tuple[Path, Path]:
    """Two folders of small pictures, with a blank in their path, as quotes are easily forgotten."""
    return two_sides(tmp_path_factory.mktemp("two sides"), 12)


def options(path: Path, recipe: str, **more) -> Path:
    """Write a file of options that trains in no time."""
    path.write_text(json.dumps({**TINY, **SMALL_NETWORKS[recipe], **more}))
    return path


def resolved(command: Command, sides: tuple[Path, Path], recipe: str, *args: object) -> dict:
    told = command("train", recipe, *sides, "-o", "nowhere", "--dry-run", *args)
    return json.loads(told.stdout)


# Help and options


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_option_is_explained(recipe):
    result = CliRunner().invoke(cli, ["train", recipe, "--help"])
    assert result.exit_code == 0 and "Usage: cli train" in result.stdout
    text = " ".join(result.stdout.split())
    for item in fields(preset(recipe)):
        if item.name != "recipe":
            name = {"devices": "workers"}.get(item.name, item.name)  # as in the other commands
            assert f"--{name.replace('_', '-')} " in text
            assert " ".join(item.metadata["help"].split()[:3]) in text
    assert "--recipe" not in text and all(len(line) <= 100 for line in result.stdout.splitlines())


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("size", ["small", "paper"])
def test_a_dry_run_prints_the_options(recipe, size, command, sides, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolved(command, sides, recipe, "--preset", size) == preset(recipe, size).to_dict()
    assert not list(tmp_path.iterdir())


def test_what_is_said_later_wins(command, sides, tmp_path):
    file = tmp_path / "a.toml"
    file.write_text('steps = 7\nwidth = 5\nprecision = "bf16-mixed"\nskip = true')
    found = resolved(command, sides, "cut", "--preset", "paper", "--config", file, "--width", 6, "--no-flip")
    assert found == preset("cut", "paper").to_dict() | {
        "steps": 7, "width": 6, "precision": "bf16-mixed", "skip": True, "flip": False
    }  # fmt: skip
    assert resolved(command, sides, "cut", "--config", file, "--no-skip")["skip"] is False


def test_every_option_can_be_given(command, sides):
    for recipe in RECIPES:
        wanted = preset(recipe, "paper").to_dict()
        words = []
        for name, value in wanted.items():
            flag = name.replace("_", "-")
            if isinstance(value, bool):
                words += [f"--{flag}" if value else f"--no-{flag}"]
            elif name != "recipe":
                words += [f"--{flag}", str(value)]
        assert resolved(command, sides, recipe, *words) == wanted


def test_options_of_another_recipe_are_refused(command, tmp_path):
    for recipe, other in (("adain", "photo"), ("cut", "cyclegan"), ("vaegan", "cut")):
        file = tmp_path / f"{other}.json"
        file.write_text(json.dumps(preset(other).to_dict()))
        error = command("train", recipe, "a", "b", "-o", "x", "--config", file, "--dry-run", code=1).stderr
        assert error == f"Error: {file} holds options of the recipe {other!r}, not of {recipe!r}.\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x89PNG\0", "cannot read the options in"),
        (b"", "cannot read the options in"),
        (b"[]", "must hold one table"),
        (b'{"steps": "many"}', "steps must be of type int, got 'many'"),
        (b'{"steps": 0}', "steps must be at least 1, got 0"),
        (b'{"stepps": 1}', "unknown training options ['stepps']"),
        (b'{"recipe": 3}', "holds options of the recipe 3"),
        (b'{"ema": NaN}', "ema must be a finite number, got nan"),
    ],
)
def test_files_without_options(content, message, command, sides, tmp_path):
    file = tmp_path / "a.json"
    file.write_bytes(content)
    error = command("train", "cut", *sides, "-o", tmp_path / "x", "--config", file, code=1).stderr
    assert error.startswith("Error: ") and message in error and error.count("\n") == 1
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["--preset", "nonsense"], 1, "unknown preset 'nonsense'; choose from small, paper"),
        (["--config", "missing.json"], 1, "cannot read the options in missing.json"),
        (["--steps", "0"], 1, "steps must be at least 1"),
        (["--learning-rate", "nan"], 1, "--learning-rate must be a finite number"),
        (["--devices", "3"], 1, "batch must be a multiple of devices"),
        (["--steps", "many"], 2, "'many' is not a valid integer"),
        (["--loss", "nonsense"], 2, "'nonsense' is not one of"),
        (["--patch", "71"], 2, "'71' is not one of"),
        (["--minutes", "-1"], 2, "-1"),
        (["--nonsense"], 2, "No such option"),
        (["more"], 2, "unexpected extra argument"),
    ],
)
def test_wrong_options(args, code, message, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = command("train", "cut", "a", "b", "-o", "x", *args, code=code)
    assert message in told.stderr and not told.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["a", "b", "--method", "cut"], "styleaug train cut SOURCE TARGET -o OUT"),
        (["a", "b", "--finetune", "3"], "styleaug train NAME --init GENERATOR --steps STEPS SOURCE TARGET"),
        (["a", "b"], "give one folder"),
        ([], "Missing argument"),
    ],
)
def test_usage_of_fit_style(args, message, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in command("fit-style", *args, "-o", "x", code=2).stderr
    assert not list(tmp_path.iterdir())


def test_data_that_is_not_there(command, sides, tmp_path):
    for source, message in (
        (tmp_path / "no", "there is no folder"),
        (tmp_path / "no.csv", "cannot open"),
    ):
        error = command("train", "cut", source, sides[1], "-o", tmp_path / "x", code=1).stderr
        assert error.startswith("Error: ") and message in error
    assert not (tmp_path / "x").exists()


def test_a_dry_run_checks_what_is_cheap_to_check(command, sides, tmp_path):
    """All that a run would stop at within its first second; and it leaves nothing behind."""
    alone, broken = tmp_path / "alone", tmp_path / "broken"
    write(alone, photos(1))
    broken.mkdir()
    for index in range(3):
        (broken / f"{index}.png").write_bytes(b"no image")
    others = write(tmp_path / "others", photos(3), name="other{:03}.png")
    half = write(tmp_path / "half", photos(3))
    listed = written(tmp_path / "list.csv", "path\nmissing.png\n")
    nameless = written(tmp_path / "nameless.tsv", "file\na.png\n")
    empty, file = tmp_path / "empty", written(tmp_path / "file", "x")
    empty.mkdir()
    networks = loss_networks(tmp_path / "networks")
    damaged = loss_networks(tmp_path / "damaged") / "vgg19_normalised_relu4_1.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-9])
    run = tmp_path / "run"
    here = sorted(tmp_path.rglob("*"))
    a, b = sides
    for args, message in (
        (["cut", tmp_path / "no", b], "there is no folder"),
        (["cut", a, tmp_path / "no"], "there is no folder"),
        (["cut", a, empty], "no image in"),
        (["cut", a, tmp_path / "no.csv"], "cannot open"),
        (["cut", a, listed], "names 1 files that are not there"),
        (["cut", nameless, b], "must have a header with the column 'path'"),
        (["cut", a, alone], "scores need at least 2 held-out images on each side, got 1"),
        (["cut", a, broken], "none of the"),
        (["patchgan", a, others], "has a partner of the same name"),
        (["vaegan", "--paired", a, others], "has a partner of the same name"),
        (["adain", a, b, "--networks", tmp_path / "no"], "there is no folder of loss networks"),
        (["cut", a, b, "--networks", tmp_path / "no"], "there is no folder of loss networks"),
        (["adain", a, b, "--networks", empty], "cannot read the weights"),
        (["photo", a, b, "--networks", damaged.parent], "cannot read the weights"),
        (["cut", a, b, "--networks", networks, "--features", "squeezenet"], "squeezenet1_1_imagenet"),
        (["cut", a, b, "--device", "tpu"], "device must be auto, cpu or cuda"),
        (["cut", a, b, "--init", "nonsense"], "there is no generator 'nonsense'"),
        (["cut", a, b, "--init", "adain"], "Give the options that made it"),
        (["cut", a, b, "-o", file], "cannot write to"),
        (["cut", a, b, "-o", file / "run"], "cannot write to"),
    ):
        told = command("train", *args, *([] if "-o" in args else ["-o", run]), "--dry-run", code=1)
        assert told.stderr.startswith("Error: ") and message in told.stderr and not told.stdout
    told = command("train", "patchgan", a, half, "-o", run, "--dry-run")
    assert "9 images of the source and 0 of the target have no partner" in told.stderr
    assert json.loads(told.stdout)["recipe"] == "patchgan"
    command("train", "adain", a, b, "-o", run, "--networks", networks, "--dry-run")
    assert sorted(tmp_path.rglob("*")) == here


def test_a_dry_run_looks_at_the_run_that_is_there(command, sides, tmp_path):
    run, file = tmp_path / "run", options(tmp_path / "tiny.json", "patchgan", steps=2)
    words = ["train", "patchgan", *sides, "-o", run, "--config", file]
    command(*words)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    words.append("--dry-run")
    for more, message in (
        ([], "holds a run; go on with --resume"),
        (["--resume", "--steps", 1], "has taken 2 steps"),
        (["--resume", "--seed", 1], "was made with --seed 0"),
    ):
        assert message in command(*words, *more, code=1).stderr
    assert json.loads(command(*words, "--resume", "--steps", 5).stdout)["steps"] == 5
    words[3] = write(tmp_path / "fewer", photos(3))
    assert "was trained on other images" in command(*words, "--resume", code=1).stderr
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


# Runs


def test_a_run_that_cannot_start_leaves_no_folder(command, sides, tmp_path):
    for more in (["--networks", tmp_path], ["--networks", tmp_path / "no"]):
        command("train", "adain", *sides, "-o", tmp_path / "run", *more, code=1)
        assert not (tmp_path / "run").exists()


def test_a_finished_run_is_prolonged(command, sides, tmp_path):
    run, file = tmp_path / "run", options(tmp_path / "tiny.json", "patchgan", steps=2)
    words = ["train", "patchgan", *sides, "-o", run]
    command(*words, "--config", file)
    told = command(*words, "--resume", "--steps", 4).stderr
    assert "of 4 has the lowest held-out score of 2" in told
    assert "has taken 4 steps" in command(*words, "--resume", "--steps", 3, code=1).stderr
    assert "of 4 has the lowest" in command(*words, "--resume").stderr


@pytest.mark.slow
def test_train_stop_resume_and_use(sides, command, tmp_path):
    run, file = tmp_path / "a run", options(tmp_path / "tiny.json", "patchgan")
    first = process("train", "patchgan", *sides, "-o", run, "--config", file, "--steps", 4, "--minutes", 0)
    assert not first.stdout and first.stderr.startswith(
        "stopped at step 1: time is up. Go on with:\nstyleaug "
    )
    assert not {"\r", "\x1b"} & set(first.stderr), "into a pipe goes plain text"
    program, *words = shlex.split(first.stderr.splitlines()[-1])
    assert program == "styleaug" and words[-1] == "--resume"
    again = command("train", "patchgan", *sides, "-o", run, "--config", file, code=1)
    assert again.stderr == f"Error: {run} holds a run; go on with --resume, or give another folder.\n"
    second = command(*words).stderr
    assert "stopped at step 2" in second and second.splitlines()[-1] == first.stderr.splitlines()[-1]
    told = command("train", "patchgan", *sides, "-o", run, "--seed", 9, "--resume", code=1).stderr
    assert "was made with --seed 0" in told
    told = command("train", "patchgan", *sides, "-o", run, "--resume").stderr
    assert f"{run}: step" in told and "of 4 has the lowest held-out score" in told
    assert f"use it as StyleAugment(generator={str(run)!r})" in told
    made = json.loads((run / "config.json").read_text())
    assert made["width"] == 4 and made["steps"] == 4, "its own options, not the preset's"
    error = command("train", "cut", *sides, "-o", run, "--resume", code=1).stderr
    assert "options of the recipe 'patchgan', not of 'cut'" in error

    command("apply", sides[0], "-o", tmp_path / "styled", "--generator", run)
    assert len(list((tmp_path / "styled").glob("*.png"))) == 12
    for splice in ([], ["--splice", "halves"]):
        sheet = tmp_path / f"{len(splice)}.png"
        command("preview", sides[0], "--generator", run, "-o", sheet, "--styles", 2, "--most", 2, *splice)
        with Image.open(sheet) as image:
            assert image.width > 2 * 192  # one column: there is no code to draw

    command("train", "patchgan", *sides, "--init", run, "--width", 4, "--depth", made["depth"], "--steps", 2,
            "-o", tmp_path / "further")  # fmt: skip
    further = json.loads((tmp_path / "further" / "config.json").read_text())
    assert (further["init"], further["steps"], further["width"]) == (str(run), 2, 4)


@pytest.mark.slow
def test_a_run_is_stopped_and_goes_on_by_the_line_that_it_prints(sides, command, tmp_path):
    run, file = tmp_path / "run", options(tmp_path / "tiny.json", "cut", steps=2, seed=5)
    words = ["train", "cut", *sides, "--config", file, "-o", run, "--minutes", 0]
    first = command(*words)
    assert "stopped at step 1" in first.stderr
    assert "go on with --resume" in command(*words, code=1).stderr
    program, *again = shlex.split(first.stderr.splitlines()[-1])
    assert program == "styleaug" and again == [*map(str, words), "--resume"]
    assert "of 2 has the lowest held-out score" in command(*again).stderr
    made = json.loads((run / "config.json").read_text())
    assert made["seed"] == 5, "--seed was not given, so the file's holds"
    assert StyleAugment(generator=run, p=1.0)(photo()).shape == photo().shape
    error = command("train", "vaegan", *sides, "-o", run, "--resume", code=1).stderr
    assert "options of the recipe 'cut'" in error


@pytest.mark.slow
def test_finetuning_gives_a_generator_and_its_bank(sides, command, tmp_path):
    networks, run = loss_networks(tmp_path / "networks"), tmp_path / "run"
    file = options(tmp_path / "tiny.json", "adain", steps=99, batch=2)
    told = command(
        "train", "adain", *sides, "--init", "adain", "--steps", 2, "--learning-rate", 5e-4, "--config", file,
        "--networks", networks, "-o", run,
    )  # fmt: skip
    assert "of 2 has the lowest held-out score" in told.stderr
    made = json.loads((run / "config.json").read_text())
    assert (made["init"], made["steps"], made["learning_rate"]) == ("adain", 2, 5e-4)
    assert len(load_bank(run)) == 12
    before, after = load_generator("adain").state_dict(), load_generator(run).state_dict()
    differences = [(after[key].float() - value.float()).abs().max() for key, value in before.items()]
    assert 0 < max(differences) < 0.1
    torch.manual_seed(0)
    assert StyleAugment(run, p=1.0)(photo(40, 50)).shape == (3, 40, 50)


def test_training_says_a_line_now_and_then_where_there_is_no_terminal(capsys, monkeypatch):
    with training_progress(4) as report:
        report(1, 9, {"l1": 0.5})
    assert capsys.readouterr().err == "", "not yet"
    monkeypatch.setattr(console_module, "_SECONDS", 0.0)
    with training_progress(4) as report:
        report(1, 9, {"l1": 0.5, "adversarial": 1234.5678})
        report(2, 9, {"l1": 0.25})
    first, second = capsys.readouterr().err.splitlines()
    assert first == "step 1 of 9  l1 0.5  adversarial 1.23e+03"
    assert second.startswith("step 2 of 9  ") and second.endswith(" images/s  l1 0.25")
