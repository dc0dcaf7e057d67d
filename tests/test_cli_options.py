"""One name for one idea in all commands, help that can be read, and messages in the shell's words."""

import re
import signal
import subprocess
import sys
import time

import click
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from specimens import bank, pil

from styleaug import bank_names, generator_names
from styleaug.cli.catalogue import GENERATORS
from styleaug.cli.main import cli
from styleaug.cli.options import NUMBERS, shell_words


def commands() -> dict[str, click.Command]:
    """Find every command that does something, by its words."""
    found, waiting = {}, [("", cli)]
    while waiting:
        name, command = waiting.pop()
        if isinstance(command, click.Group):
            waiting += [(f"{name} {part}".strip(), inner) for part, inner in command.commands.items()]
        else:
            found[name] = command
    return found


def options(command: click.Command) -> list[click.Option]:
    return [p for p in command.get_params(click.Context(command)) if isinstance(p, click.Option)]


def help_of(command: click.Command) -> str:
    return command.get_help(click.Context(command, terminal_width=100))


@pytest.mark.parametrize("name", commands())
def test_help_can_be_read(name):
    command = commands()[name]
    text = help_of(command)
    assert "\\b" not in text and "\b" not in text and "`--" not in text.replace("`--engine", "")
    for option in options(command):
        assert option.help, f"{name} {option.opts}"
    for word in ("min_images", "max_styles", "group_by", "learning_rate"):
        assert word not in text


def test_the_example_of_robustness_stands_line_by_line():
    text = help_of(commands()["evaluate robustness"])
    example = text[text.index("Example:") :].splitlines()
    assert [line.strip()[:9] for line in example[1:3]] == ["styleaug ", "--arm pai"] and example[1].endswith(
        "\\"
    )


IDEAS = {
    "--size": {"--side", "--width-of-images"},
    "--learning-rate": {"--lr"},
    "--workers": {"--jobs", "--devices"},
}


@pytest.mark.parametrize("name", commands())
def test_one_idea_has_one_name(name):
    text = help_of(commands()[name])
    for old in set.union(*IDEAS.values()):
        assert not re.search(rf"{old}\b(?!-)", text), old


def test_old_names_still_work():
    robustness = commands()["evaluate robustness"]
    for new, old, field in (
        ("--size", "--side", "side"),
        ("--learning-rate", "--lr", "lr"),
        ("--workers", "--jobs", "jobs"),
    ):
        for word in (new, old):
            context = robustness.make_context("robustness", ["folder", word, "9"])
            assert context.params[field] == 9
    cut = commands()["train cut"]
    for word in ("--workers", "--devices"):
        assert cut.make_context("cut", ["a", "b", "-o", "c", word, "2"]).params["devices"] == 2
    for word in ("--learning-rate", "--lr"):
        assert cut.make_context("cut", ["a", "b", "-o", "c", word, "0.5"]).params["learning_rate"] == 0.5


def test_device_has_one_default():
    shown = {
        name: [o for o in options(command) if o.name == "device"] for name, command in commands().items()
    }
    found = {
        name: (option[0].help, option[0].get_default(click.Context(commands()[name])))
        for name, option in shown.items()
        if option
    }
    assert len(found) > 8
    for name, (text, default) in found.items():
        assert default == "auto" or "[default: auto]" in text, name


@pytest.mark.parametrize(
    ("words", "ends"),
    [
        (["0.5"], (0.5, 0.5)),
        (["1"], (1.0, 1.0)),
        ([".25"], (0.25, 0.25)),
        (["0.5,1"], (0.5, 1.0)),
        (["0.5..1"], (0.5, 1.0)),
        (["0.5", "1.0"], (0.5, 1.0)),
        (["0", "1"], (0.0, 1.0)),
    ],
)
@pytest.mark.parametrize("name", ["apply", "video"])
def test_strength_takes_one_number_or_two(name, words, ends):
    command = commands()[name]
    for args in (["--strength", *words, "in", "-o", "out"], ["in", "-o", "out", "--strength", *words]):
        context = command.make_context(name, list(args))
        assert context.params["strength"] == ends and str(context.params["source"]) == "in"


@pytest.mark.parametrize("text", ["2", "-1", "1,0.5", "a", "", "0.1,0.2,0.3", "nan", "inf", "0.5,"])
def test_other_strengths_are_wrong_usage(text):
    with pytest.raises(click.BadParameter, match="not a number from 0 to 1, nor two such as"):
        NUMBERS.convert(text, None, None)


def test_a_folder_called_like_a_number_is_no_strength(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "1").mkdir()
    context = commands()["apply"].make_context("apply", ["--strength", "0.5", "1", "-o", "out"])
    assert context.params["strength"] == (0.5, 0.5) and str(context.params["source"]) == "1"


@pytest.mark.parametrize(
    ("told", "wanted"),
    [
        ("separate them with group_by='modality'.", "separate them with --group-by modality."),
        ('use group_by="site", please', "use --group-by site, please"),
        ("Or set min_images=4; with 1, ...", "Or set --min-images 4; with 1, ..."),
        ("at least 5 (min_images).", "at least 5 (--min-images)."),
        ("max_styles must be at least one", "--max-styles must be at least one"),
        ("set as_json=True.", "set --json."),
        ("give StyleAugment(generator='run', p=0.5).", "give StyleAugment(generator='run', p=0.5)."),
        ("fit_style(images, min_images=1) does it", "fit_style(images, min_images=1) does it"),
        ("learning_rate must be a finite number", "--learning-rate must be a finite number"),
        ("there is no file a/min_images.png", "there is no file a/min_images.png"),
        ("min_images.png is damaged", "min_images.png is damaged"),
        ("the folder 'min_images' is empty", "the folder 'min_images' is empty"),
        ("some_other word=3", "some_other word=3"),
    ],
)
def test_messages_use_the_words_of_the_shell(told, wanted):
    assert shell_words(told, cli) == wanted


def test_errors_and_warnings_name_options(tmp_path, command):
    for group, count in (("a", 5), ("b", 2)):
        (tmp_path / "in" / group).mkdir(parents=True)
        for number in range(count):
            pil(seed=number).save(tmp_path / "in" / group / f"{number}.png")
    few = command("fit-style", tmp_path / "in" / "b", "-o", tmp_path / "x.safetensors", code=1).stderr
    assert "--min-images 2" in few and "min_images" not in few
    warned = command(
        "fit-style", tmp_path / "in", "--group-by", "folder", "-o", tmp_path / "x.safetensors"
    ).stderr
    assert "(--min-images)" in warned and "min_images" not in warned


def test_list_says_a_line_about_each(command):
    told = command("list").stdout
    assert set(GENERATORS) == set(generator_names())
    for name in [*generator_names(), *bank_names()]:
        (line,) = [line for line in told.splitlines() if line.split()[:1] == [name]]
        assert len(line.split()) > 3
    assert all(len(line) < 160 for line in told.splitlines())


def test_ctrl_c_says_that_the_same_command_goes_on(tmp_path, command, monkeypatch):
    def stopped(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("styleaug.offline.folder.apply_folder", stopped)
    told = command("apply", tmp_path / "my images", "-o", tmp_path / "out", code=130).stderr
    assert f"Go on with: styleaug apply '{tmp_path}/my images' -o {tmp_path}/out" in told
    monkeypatch.setattr("styleaug.fitting.fit.fit_style", stopped)
    told = command("fit-style", tmp_path, "-o", tmp_path / "b.safetensors", code=130).stderr
    assert "Go on with: styleaug fit-style" in told


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_ctrl_c_ends_a_real_run_that_goes_on(tmp_path, workers, command):
    (tmp_path / "in").mkdir()
    count = 30
    for number in range(count):
        Image.fromarray(np.full((400, 400, 3), number, np.uint8)).save(tmp_path / "in" / f"{number}.png")
    args = ["apply", tmp_path / "in", "-o", tmp_path / "out", "--workers", workers]
    run = subprocess.Popen(
        [sys.executable, "-m", "styleaug", *map(str, args)],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell lets what it starts in the background ignore the signal.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not list((tmp_path / "out").glob("*.png")):
        time.sleep(0.05)
        assert run.poll() is None
    run.send_signal(signal.SIGINT)
    told = run.communicate(timeout=60)[1]
    assert run.returncode == 130 and "Go on with: styleaug apply" in told and "Traceback" not in told
    command(*args)
    assert len(list((tmp_path / "out").glob("*.png"))) == count


@pytest.fixture
def folders(tmp_path):
    for name, shade in (("ours", 40), ("theirs", 200)):
        (tmp_path / name).mkdir()
        for number in range(3):
            Image.fromarray(np.full((40, 50, 3), shade + number, np.uint8)).save(
                tmp_path / name / f"{number}.png"
            )
    bank("reinhard-rgb").save(tmp_path / "b.safetensors")
    return tmp_path


def test_preview_shows_the_target_beside_the_result(folders, command):
    out = folders / "sheet.png"
    made = [
        "preview",
        folders / "ours",
        "--bank",
        folders / "b.safetensors",
        "-o",
        out,
        "--styles",
        2,
        "--size",
        32,
    ]
    command(*made)
    with Image.open(out) as plain:
        before = np.asarray(plain)
    command(*made, "--target", folders / "theirs")
    with Image.open(out) as image:
        pixels = np.asarray(image)
    assert pixels.shape[1] == before.shape[1] + 36 and pixels.shape[0] == before.shape[0]
    tops = [14 + 4 + 36 * row for row in range(3)]
    assert [pixels[top + 16, 20, 0] for top in tops] == [200, 201, 202], "targets first"
    assert [pixels[top + 16, 56, 0] for top in tops] == [40, 41, 42], "then the images"
    assert (pixels[18:, 72:] == before[18:, 36:]).all(), "then the styles, as without a target"
    one = folders / "theirs" / "1.png"
    command(*made, "--target", one)
    with Image.open(out) as image:
        assert [np.asarray(image)[top + 16, 20, 0] for top in tops] == [201] * 3, "one is shown beside all"
    missing = command(*made, "--target", folders / "nowhere", code=1)
    assert "nowhere" in missing.stderr


def test_reports_show_stains_on_tissue_and_say_what_they_show(folders, command):
    made = ["fit-style", folders / "theirs", "--min-images", 1, "-o", folders / "x.safetensors"]
    for name, shown in (
        ("macenko", "drawn tissue"),
        ("randstainna", "drawn tissue"),
        ("reinhard-lab", "a sample photo"),
    ):
        told = command(*made, "--generator", name, "--report", folders / "r.html").stderr
        assert (
            shown in (folders / "r.html").read_text() and "use --reference for an image of your own" in told
        )
    told = command(*made, "--report", folders / "r.html", "--reference", folders / "ours" / "0.png").stderr
    assert "the image given for it" in (folders / "r.html").read_text() and "use --reference" not in told
    inside = command(
        *made, "--report", folders / "r.html", "--reference", folders / "theirs" / "0.png", code=1
    )
    assert "one of the images that are read" in inside.stderr


def test_sheets_without_rows_say_so():
    from styleaug.sheets import contact_sheet

    sheet = np.asarray(contact_sheet([], ["image"], empty="No decision flipped."))
    assert 8 < (sheet < 128).any(axis=2).sum() < sheet.size / 3 and sheet.shape[1] > 80
    assert (sheet[[0, -1]] == 255).all()


def test_a_preview_without_arguments_needs_nothing(tmp_path):
    done = CliRunner().invoke(
        cli, ["preview", "-o", str(tmp_path / "p.png"), "--most", "1", "--styles", "1", "--size", "32"]
    )
    assert done.exit_code == 0 and (tmp_path / "p.png").exists()
