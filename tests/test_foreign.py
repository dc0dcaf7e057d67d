"""Names of strangers: every command prints and writes them safely, and takes those that are no UTF-8."""

import html
import io
import json
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from specimens import bank, generator

from styleaug import BankError, ConfigError, FileError, Provenance, StyleBank, load_bank
from styleaug.cli.console import bar, output, say, show_warning, stages
from styleaug.errors import code, markdown, name_bytes, printable
from styleaug.robustness.protocol import slot
from styleaug.robustness.report import text_table
from styleaug.sheets import contact_sheet
from styleaug.training.data import digest_of
from styleaug.transforms.host import seed_from
from styleaug.weights import save_generator

HOSTILE = [
    "\x1b[31mred", "new\nline", "\u202eturned", "<script>", "pi|pe", "back\rspace\x08",
    "\x9b31m", "\u2028end",
]  # fmt: skip
NOT_UTF8 = os.fsdecode(b"caf\xe9")
RAW = "\x1b\r\x08\x9b\u202e\u2028\x07\x00\x7f"


def save(path: Path, seed: int, size: int = 24) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (size, size, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    path.write_bytes(content.getvalue())
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Give a folder of images whose names are hostile, and of files that are none."""
    folder = tmp_path_factory.mktemp("strange") / NOT_UTF8
    for number, name in enumerate([*HOSTILE, NOT_UTF8]):
        save(folder / f"{name}.png", number)
        (folder / f"{name} broken.png").write_bytes(b"none")
    return folder


@pytest.fixture(scope="module")
def classes(tmp_path_factory) -> Path:
    """Give a folder per class, whose names are hostile."""
    folder = tmp_path_factory.mktemp("classes")
    for name in ("\x1b[31m<script>|a\nb", NOT_UTF8):
        for number in range(10):
            save(folder / name / f"{name}{number}.png", number, size=32)
    return folder


def is_clean(*texts: str) -> None:
    for text in texts:
        assert not [letter for letter in RAW if letter in text], ascii(text)
        assert not any("\ud800" <= letter <= "\udfff" for letter in text), ascii(text)


@given(st.text(st.characters(codec=None), max_size=40))
def test_printable_text_is_one_line_that_any_terminal_may_show(text):
    told = printable(text)
    is_clean(told)
    assert len(told.splitlines()) <= 1 and printable(told) == told
    told.encode()
    if text.isprintable():
        assert told == text, "what was harmless is as it was"


@given(st.text(st.characters(codec=None), max_size=40))
def test_markdown_has_no_html_and_no_cells(text):
    told = markdown(text)
    is_clean(told, code(text))
    assert "<" not in told and ">" not in told
    assert "|" not in told.replace("\\|", "") and code(text).count("`") == 2
    assert len(text_table([[text, "b"], ["c", text]])) == 3


def test_names_of_all_scripts_stay():
    for text in ("naïve ✓", "日本語　全角", "עברית", "a\xa0b", "back\\slash", "emoji 🙂"):
        assert printable(text) == text


@pytest.mark.parametrize("name", [*HOSTILE, NOT_UTF8, "\ud800"])
def test_what_is_said_is_clean(name, capsys):
    say(f"one {name}", f"two {name}")
    output(f"one {name}", f"two {name}")
    show_warning(UserWarning(name), UserWarning, "file", 1)
    told = capsys.readouterr()
    is_clean(told.out, told.err)
    assert told.out.count("\n") == 2 and told.err.count("\n") == 3


@pytest.mark.parametrize("error", [BankError, ConfigError, FileError])
@pytest.mark.parametrize("name", [*HOSTILE, NOT_UTF8])
def test_errors_are_clean_one_line_texts(error, name):
    is_clean(str(error(f"there is no {name}.")))
    assert error(name).args == (name,), "as it was given"
    assert str(error("plain text")) == "plain text"


def test_bars_and_lines_beside_them_are_clean(monkeypatch, capsys):
    screen = io.StringIO()
    shown = bar("{task.description}")
    shown.console.file, shown.disable = screen, False
    monkeypatch.setattr("styleaug.cli.console.bar", lambda *texts: shown)
    with stages() as (report, said):
        for name in (*HOSTILE, NOT_UTF8, "[red]markup[/red]"):
            report(name, 1, 2)
            said(name)
            shown.refresh()
    is_clean(screen.getvalue())
    assert "[red]markup[/red]" in screen.getvalue()


def test_sheets_take_any_title():
    tile = Image.new("RGB", (16, 16))
    sheet = contact_sheet([[tile, tile]], [NOT_UTF8, "\ud800"], ["\x1b\nb"])
    assert sheet.width > 32


def test_fitting_showing_and_merging(images, classes, tmp_path, command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    licence = "a\nepsilon      0.1\x1b[31m\u202e"
    made = f"{NOT_UTF8}\x1b[31m\n.safetensors"
    told = [command("fit-style", images, "-o", made, "--min-images", 1, "--licence", licence)]
    assert "skipped" in told[0].stderr and "broken.png" in told[0].stderr
    told += [command("bank", "show", made)]
    assert [line for line in told[-1].stdout.splitlines() if line.startswith("  epsilon")] == []
    assert "a\\nepsilon      0.1\\x1b[31m\\u202e" in told[-1].stdout
    told += [command("bank", "show", "--json", made)]
    assert json.loads(told[-1].stdout)["licence"] == licence, "JSON holds it as it is"
    told += [command("bank", "merge", made, made, "-o", f"two {made}")]
    told += [command("bank", "sample", made, "-n", 2, "-o", f"some {made}")]
    assert len(load_bank(f"two {made}")) == 18
    group = ("fit-style", classes, "--min-images", 1, "--group-by", "folder", "--labels")
    told += [
        command(*group, "-o", "groups.safetensors", "--report", "r.html"),
        command("bank", "show", "groups.safetensors"),
    ]
    told += [command(*group, "-o", "split", "--split")]
    told += [command("bank", "show", f"no {made}", code=1)]
    assert (
        "<script>" not in Path("r.html").read_text() and html.escape("<script>") in Path("r.html").read_text()
    )
    for each in told:
        is_clean(each.stdout, each.stderr)


def test_a_forged_generator_and_version_are_shown_in_their_lines(tmp_path, command):
    facts = Provenance("g\n  epsilon 0.1", "\x1b[2J", 3, created="\u202e", version="1\r2")
    path = StyleBank(torch.rand(2, 3), facts).save(tmp_path / "b.safetensors")
    told = command("bank", "show", path)
    is_clean(told.stdout, told.stderr)
    assert len(told.stdout.splitlines()) == 1 + len(load_bank(path).describe())
    refused = command("preview", "--bank", path, "-o", tmp_path / "p.png", code=1)
    is_clean(refused.stderr)


@pytest.mark.parametrize("workers", [0, 1])
def test_applying(images, tmp_path, command, workers):
    out = tmp_path / NOT_UTF8
    options = ("--bank", bank("reinhard-rgb").save(tmp_path / f"{NOT_UTF8}.safetensors"))
    told = command("apply", images, "-o", out, *options, "--copies", 2, "--workers", workers)
    is_clean(told.stdout, told.stderr)
    assert "18 images written" in told.stderr and f"{len(HOSTILE) + 1} files skipped" in told.stderr
    for line in told.stderr.splitlines():
        assert line.count("broken.png") <= 1, "named once"
    again = command("apply", images, "-o", out, *options, "--copies", 2, "--workers", workers)
    assert "0 images written, 18 already there" in again.stderr
    named = {json.loads(line).get("source") for line in (out / "manifest.jsonl").read_text().splitlines()}
    assert {f"{name}.png" for name in (*HOSTILE, NOT_UTF8)} <= named


def test_previews_stylising_and_films(images, tmp_path, command):
    made = bank("reinhard-rgb").save(tmp_path / "b.safetensors")
    only = tmp_path / "only"
    for number, name in enumerate((NOT_UTF8, HOSTILE[0])):
        save(only / f"{name}.png", number, size=32)
    first = only / f"{NOT_UTF8}.png"
    told = [command("preview", only, "--bank", made, "-o", tmp_path / f"\x1b{NOT_UTF8}.png")]
    told += [command("preview", images / f"{HOSTILE[0]} broken.png", "-o", tmp_path / "b.png", code=1)]
    told += [command("stylize", first, "--style", first, "-o", tmp_path / f"s\x1b{NOT_UTF8}.png")]
    told += [command("video", only, "-o", tmp_path / f"{NOT_UTF8}.gif", "--bank", made, "--flow", "none")]
    told += [
        command(
            "video",
            tmp_path / f"{NOT_UTF8}.gif",
            "-o",
            tmp_path / f"\x1b{NOT_UTF8}",
            "--bank",
            made,
            "--flow",
            "none",
        )
    ]
    for each in told:
        is_clean(each.stdout, each.stderr)


def test_training(images, tmp_path, command):
    folder = tmp_path / "images"
    for number, name in enumerate([*HOSTILE[:3], NOT_UTF8]):
        save(folder / NOT_UTF8 / f"{name}.png", number, size=32)
    (folder / "\x1b broken.png").write_bytes(b"none")
    options = (
        "--steps",
        2,
        "--batch",
        2,
        "--size",
        32,
        "--width",
        4,
        "--blocks",
        1,
        "--discriminator-width",
        4,
    )
    told = command("train", "cyclegan", folder, folder, "-o", tmp_path / NOT_UTF8, *options)
    is_clean(told.stdout, told.stderr)
    assert (tmp_path / NOT_UTF8 / "generator.safetensors").is_file()
    is_clean((tmp_path / NOT_UTF8 / "report.html").read_text(encoding="utf-8"))


def test_robustness(classes, tmp_path, command):
    made = bank("reinhard-rgb").save(tmp_path / f"{NOT_UTF8}.safetensors")
    out = tmp_path / "r.json"
    told = command(
        "evaluate", "robustness", classes, "--test", f"\x1b|{NOT_UTF8}={classes}", "--arm", "none",
        "--arm", f"<script>\x1b|=style:{made}", "--side", 32, "--batch", 8, "--epochs", 1, "--seeds", 1,
        "--threads", 1, "-o", out,
    )  # fmt: skip
    is_clean(told.stdout, told.stderr)
    text = out.with_suffix(".md").read_text(encoding="utf-8")
    is_clean(text)
    assert "<script>" not in text.replace("`", "") or text.count("<script>") == text.count("`<script>")
    assert "&lt;script&gt;" in text and "\\|" in text
    head, rule, *_ = [line for line in text.splitlines() if line.startswith("|")]
    assert head.replace("\\|", "").count("|") == rule.count("|")


@pytest.mark.slow
def test_labels_and_shift(classes, tmp_path, command):
    made = bank("reinhard-rgb").save(tmp_path / f"\x1b{NOT_UTF8}.safetensors")
    told = command(
        "evaluate", "labels", classes, "--bank", made, "--strength", 1, "--classifier", "trained",
        "--size", 32, "-o", tmp_path / "l.json", "--sheet", tmp_path / "l.png",
    )  # fmt: skip
    is_clean(told.stdout, told.stderr)
    told = command("evaluate", "shift", classes, classes, "--bank", made, "--size", 32, "--most", 20)
    is_clean(told.stdout, told.stderr)


def test_usage_errors_that_quote_names(command):
    for arguments in (("export", "a", "b\x1b[31m"), ("train", "\x1b[31m"), ("apply", "--\x1b[31m")):
        is_clean(command(*arguments, code=2).stderr)


def test_seeds_and_digests_of_ordinary_names_are_as_they_were():
    assert (
        seed_from(3, "a/é.png", 1)
        == int.from_bytes(__import__("hashlib").sha256("3:a/é.png:1".encode()).digest()[:8], "little") >> 1
    )
    assert name_bytes("é") == "é".encode() and slot("é") == "é".encode().hex()
    assert digest_of("a") != digest_of("b")
    odd = [NOT_UTF8, os.fsdecode(b"caf\xe8"), "\ud800", "caf", "café"]
    assert len({seed_from(name) for name in odd}) == len({digest_of(name) for name in odd}) == 5
    assert len({slot(name) for name in odd}) == 5


def test_weights_and_runs_under_names_that_are_no_utf8(tmp_path):
    from styleaug import load_generator

    run = tmp_path / NOT_UTF8
    save_generator(generator("tiny-photo"), run / "generator.safetensors")
    assert load_generator(run).fingerprint == generator("tiny-photo").fingerprint
    assert load_generator(str(run / "generator.safetensors")).name == "photo"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_bank(bank("reinhard-rgb").save(run / "bank.safetensors")) == bank("reinhard-rgb")
