"""The command as a user runs it, on real files: one call of each kind in a process of its own."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from styleaug import StyleBank

MANIFEST = "manifest.jsonl"
GROUPS = ["bank", "bank show", "bank merge", "bank sample", "bank push", "train", "train adain", "train cut"]
COMMANDS = ["demo", "stylize", "fit-style", "apply", "preview", "list", *GROUPS]


def run(*args: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run `styleaug` and check its exit code; no traceback may ever reach the user."""
    result = subprocess.run(
        [sys.executable, "-m", "styleaug", *map(str, args)], capture_output=True, text=True
    )
    assert "Traceback" not in result.stderr, result.stderr
    assert result.returncode == code, (result.stdout, result.stderr)
    return result


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """A folder tree of small images of several types."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for index, name in enumerate(["a.png", "b.jpg", "deep/c.png", "deep/er/d.webp", "e.tif"]):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        smooth = rng.integers(0, 255, (3, 4, 3), dtype=np.uint8)
        Image.fromarray(smooth).resize((40 + index, 30)).save(path)
    sixteen = rng.integers(0, 65535, (20, 24)).astype(np.uint16)
    Image.fromarray(sixteen).save(folder / "deep/sixteen.png")
    np.save(folder / "array.npy", rng.random((16, 20, 3), dtype=np.float32))
    return folder


@pytest.fixture(scope="module")
def bank(photos, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("bank") / "lab.safetensors"
    run("fit-style", photos, "-o", out, "--generator", "reinhard-lab", "--min-images", 1)
    return out


def contents(folder: Path) -> dict[str, bytes]:
    """Read all files of a tree."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_help_answers_fast_and_without_torch():
    seconds = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        run("--help")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    # Of processor time, so that other work on the machine does not count.
    assert min(seconds) < 0.3, seconds
    probe = (
        "import sys; from styleaug.cli.main import cli\n"
        "for args in ([], *([name] for name in cli.commands['train'].commands)):\n"
        "    try: cli.main(['train', *args, '--help'])\n"
        "    except SystemExit as end: assert end.code == 0\n"
        "assert 'torch' not in sys.modules and 'rich' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", probe], check=True, capture_output=True)


@pytest.mark.parametrize(
    "command",
    COMMANDS,
)
def test_every_command_explains_itself(command):
    assert "Usage: styleaug" in run(*command.split(), "--help").stdout


@pytest.mark.slow
def test_fit_style_writes_a_small_bank(photos, bank):
    fitted = StyleBank.load(bank)
    assert len(fitted) == 7
    assert bank.stat().st_size < 4096
    facts = json.loads(run("bank", "show", bank, "--json").stdout)
    assert facts["generator"] == "reinhard-lab" and facts["images"] == 7 and facts["styles"] == 7


@pytest.mark.slow
def test_fit_style_options(photos, tmp_path, command):
    out = tmp_path / "b.safetensors"
    options = ("--generator", "reinhard-rgb", "--patches", 3, "--max-styles", 10, "--min-images", 2)
    command("fit-style", photos, "-o", out, *options)
    assert len(StyleBank.load(out)) == 9, "of each crop of 7 images three pairs"
    again = tmp_path / "again.safetensors"
    command("fit-style", photos, "-o", again, *options)
    assert again.read_bytes() == out.read_bytes()


@pytest.mark.slow
def test_apply_keeps_tree_types_and_input(photos, bank, tmp_path):
    before = contents(photos)
    out = tmp_path / "out"
    run("apply", photos, "-o", out, "--bank", bank, "--copies", 2, "--workers", 2)
    assert contents(photos) == before
    written = {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()} - {MANIFEST}
    stems = {name.rsplit(".", 1)[0]: name.rsplit(".", 1)[1] for name in before}
    assert written == {f"{stem}-{copy}.{suffix}" for stem, suffix in stems.items() for copy in (1, 2)}
    with Image.open(out / "deep/sixteen-1.png") as image:
        assert image.mode == "I;16" and image.size == (24, 20)
    assert np.load(out / "array-1.npy").dtype == np.float32
    assert (out / "a-1.png").read_bytes() != (out / "a-2.png").read_bytes()


@pytest.mark.slow
def test_manifest_tells_styles_and_strengths(photos, bank, tmp_path, command):
    out = tmp_path / "out"
    command("apply", photos, "-o", out, "--bank", bank, "--strength", 0.2, 0.4, "--sampler", "mix")
    head, *rows = [json.loads(line) for line in (out / MANIFEST).read_text().splitlines()]
    assert head["settings"]["generator"] == "reinhard-lab"
    assert {row["source"] for row in rows} == set(contents(photos))
    for row in rows:
        assert 0.2 <= row["strength"] <= 0.4
        assert len(row["styles"]) == 2 and abs(sum(row["shares"]) - 1) < 1e-4


@pytest.mark.slow
def test_apply_gives_the_same_copies_for_any_number_of_workers(photos, bank, tmp_path, command):
    command("apply", photos, "-o", tmp_path / "one", "--bank", bank, "--seed", 5)
    command("apply", photos, "-o", tmp_path / "two", "--bank", bank, "--seed", 5, "--workers", 2)
    command("apply", photos, "-o", tmp_path / "other", "--bank", bank, "--seed", 6)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert contents(tmp_path / "one") != contents(tmp_path / "other")


@pytest.mark.slow
def test_apply_resumes_after_a_kill(bank, tmp_path, command):
    source, whole, broken = tmp_path / "source", tmp_path / "whole", tmp_path / "broken"
    source.mkdir()
    rng = np.random.default_rng(1)
    for index in range(60):
        Image.fromarray(rng.integers(0, 255, (400, 400, 3), dtype=np.uint8)).save(source / f"{index:02}.png")
    args = [sys.executable, "-m", "styleaug", "apply", str(source), "-o", str(broken), "--bank", str(bank)]
    process = subprocess.Popen(args, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(list(broken.glob("[!.]*.png"))) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    # A line that the kill tore in half.
    with (broken / MANIFEST).open("a") as file:
        file.write('{"source": "00.p')
    done = {path.name: path.stat().st_mtime_ns for path in broken.glob("[!.]*.png")}
    assert 0 < len(done) < 60
    result = command("apply", source, "-o", broken, "--bank", bank)
    assert "already there" in result.stderr
    kept = sum(path.stat().st_mtime_ns == done.get(path.name) for path in broken.glob("[!.]*.png"))
    assert kept >= len(done) - 1
    command("apply", source, "-o", whole, "--bank", bank)
    copies = [contents(folder) for folder in (broken, whole)]
    for files in copies:
        files.pop(MANIFEST)
    assert copies[0] == copies[1]  # and no half-written file among them


@pytest.mark.slow
def test_apply_refuses_to_mix_settings_or_to_touch_inputs(photos, bank, tmp_path, command):
    out = tmp_path / "out"
    command("apply", photos, "-o", out, "--bank", bank)
    assert "other settings" in command("apply", photos, "-o", out, "--bank", bank, "--seed", 9, code=1).stderr
    before = contents(photos)
    for target in (photos, photos / "deep", photos / "new"):
        assert "outside" in command("apply", photos, "-o", target, "--bank", bank, code=1).stderr
    assert contents(photos) == before


@pytest.fixture
def messy(photos, tmp_path) -> Path:
    """A folder with good and bad files."""
    folder = tmp_path / "messy"
    folder.mkdir()
    good = (photos / "b.jpg").read_bytes()
    (folder / "good.jpg").write_bytes(good)
    (folder / "truncated.jpg").write_bytes(good[: len(good) // 2])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.png").write_text("hello")
    np.save(folder / "nan.npy", np.full((12, 12, 3), np.nan, dtype=np.float32))
    np.save(folder / "large.npy", np.full((12, 12, 3), 7.0, dtype=np.float32))
    np.save(folder / "four.npy", np.zeros((2, 12, 12, 3), dtype=np.uint8))
    return folder


BAD = ("truncated.jpg", "empty.png", "text.png", "nan.npy", "large.npy", "four.npy")


@pytest.mark.slow
def test_bad_files_are_named_and_the_rest_goes_on(messy, bank, tmp_path, command):
    result = command("apply", messy, "-o", tmp_path / "out", "--bank", bank)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["good.jpg", MANIFEST]
    fitted = command("fit-style", messy, "-o", tmp_path / "b.safetensors", "--min-images", 1)
    assert len(StyleBank.load(tmp_path / "b.safetensors")) == 1
    for name in BAD:
        assert str(messy / name) in result.stderr, name
        assert str(messy / name) in fitted.stderr, name
    assert "6 files skipped" in result.stderr


@pytest.mark.slow
def test_strict_fails(messy, bank, tmp_path, command):
    command("apply", messy, "-o", tmp_path / "out", "--bank", bank, "--strict", code=1)
    out = tmp_path / "b.safetensors"
    command("fit-style", messy, "-o", out, "--min-images", 1, "--strict", code=1)
    assert not out.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: None, "no folder"),
        (lambda p: p.mkdir(), "no image in"),
    ],
)
def test_useless_folders(make, message, bank, tmp_path, command):
    folder = tmp_path / "folder"
    make(folder)
    out = tmp_path / "out"
    for args in (["apply", folder, "-o", out, "--bank", bank], ["fit-style", folder, "-o", out]):
        error = command(*args, code=1).stderr
        assert message in error and str(folder) in error
    assert not out.exists()


@pytest.mark.slow
def test_bank_commands(bank, photos, tmp_path, command):
    two, part = tmp_path / "two.safetensors", tmp_path / "part.safetensors"
    run("bank", "merge", bank, bank, "-o", two)
    assert len(StyleBank.load(two)) == 14
    command("bank", "sample", two, "-n", 3, "-o", part)
    assert len(StyleBank.load(part)) == 3
    assert "styles" in command("bank", "show", part).stdout
    other = tmp_path / "rgb.safetensors"
    command("fit-style", photos, "-o", other, "--generator", "reinhard-rgb")
    assert "cannot merge" in command("bank", "merge", bank, other, "-o", tmp_path / "no", code=1).stderr
    assert "cannot pick" in command("bank", "sample", bank, "-n", 99, "-o", tmp_path / "no", code=1).stderr
    assert "no bank 'nonsense'" in command("bank", "show", "nonsense", code=1).stderr
    assert not (tmp_path / "no").exists()


@pytest.mark.slow
def test_preview(bank, photos, tmp_path, command, monkeypatch):
    run("preview", photos / "a.png", photos / "deep", "--bank", bank, "-o", tmp_path / "p.png", "--styles", 2)
    with Image.open(tmp_path / "p.png") as image:
        assert image.width > 3 * 192 and image.height > 4 * 192
    monkeypatch.chdir(tmp_path)
    command("preview")  # the sample photos in the default bank
    with Image.open(tmp_path / "preview.png") as image:
        assert np.asarray(image).std() > 10


@pytest.mark.slow
def test_a_text_in_place_of_a_folder(bank, tmp_path, command):
    text, out = tmp_path / "folder", tmp_path / "out"
    text.write_text("x")
    assert f"{text} is a file" in command("apply", text, "-o", out, "--bank", bank, code=1).stderr
    told = command("fit-style", text, "-o", out, code=1).stderr  # a file is an image to fit
    assert "none of the 1 images can be read" in told and str(text) in told
    assert not out.exists()


def test_usage_errors_exit_with_2(tmp_path):
    run("apply", tmp_path, code=2)
    run("fit-style", tmp_path, "-o", tmp_path / "b", "--max-styles", 0, code=2)
    run("nonsense", code=2)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_unwritable_output(photos, bank, tmp_path):
    tmp_path.chmod(0o500)
    assert "cannot write" in run("apply", photos, "-o", tmp_path / "out", "--bank", bank, code=1).stderr


@pytest.mark.slow
def test_unusable_output(photos, bank, tmp_path, command):
    (tmp_path / "file").write_text("x")
    for args in (["apply", photos, "--bank", bank], ["fit-style", photos, "--generator", "reinhard-rgb"]):
        assert "cannot write" in command(*args, "-o", tmp_path / "file" / "out", code=1).stderr
