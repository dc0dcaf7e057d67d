"""Study-like trees: groups, classes, volumes, fits that go on, and the report."""

import json
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from specimens import generator, photos
from test_privacy import save_photos, write_dicom

from styleaug import BankError, ConfigError, FileError, StyleAugment, StyleBank, Weighted, fit_style
from styleaug.fitting import unfinished
from styleaug.fitting.studies import balance_warnings, read_study
from styleaug.fitting.unfinished import Unfinished, stored_codes
from styleaug.io import pixels as style_images
from styleaug.io.scan import Scan

RGB = generator("reinhard-rgb")


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """Two hospitals of two classes each: one with 12 images, one with 6 in other shares; a third of 2."""
    root = tmp_path_factory.mktemp("study")
    for name, count in (
        ("alpha/sick", 6),
        ("alpha/well", 6),
        ("beta/sick", 1),
        ("beta/well", 5),
        ("tiny", 2),
    ):
        save_photos(root / name, count)
    return root


# Groups


def test_groups_by_folder(tree):
    fit = fit_style(tree, group_by="folder", min_images=3, max_styles=9)
    bank = fit.bank
    assert bank.labels == ("g1", "g2") and bank.count_groups() == {"g1": 3, "g2": 2}
    assert [group.name for group in fit.groups.values()] == ["alpha", "beta"]
    assert [(group.images, group.origins) for group in fit.groups.values()] == [(9, 9), (6, 6)]
    assert bank.provenance.images == 15, "alpha needs no more for its third of nine styles"
    assert any("group 'tiny' is left out: it has 2 patients or files" in text for text in fit.warnings)
    assert b"alpha" not in bank.to_bytes() and b"beta" not in bank.to_bytes()
    named = fit_style(tree, group_by="folder", min_images=3, labels=True).bank
    assert named.labels == ("alpha", "beta")
    alone = fit_style(tree / "beta", min_images=3, class_by="folder").bank
    wanted = alone.codes[alone.codes[:, 0].argsort()]
    found = named.select(group="beta").codes
    torch.testing.assert_close(found[found[:, 0].argsort()], wanted, atol=1e-5, rtol=1e-4)


def test_too_few_in_every_group(tree):
    with pytest.raises(ConfigError, match="the images of the largest group come from 12 patients"):
        fit_style(tree, group_by="folder", min_images=13)
    with pytest.raises(ConfigError, match="max_styles must be at least one for each of 3 groups"):
        fit_style(tree, group_by="folder", max_styles=2)


def test_groups_by_column(tree, tmp_path):
    paths = sorted(tree.rglob("*.png"))
    lines = [f"{path}\t{'north' if index % 2 else ''}\tx" for index, path in enumerate(paths)]
    (tmp_path / "list.tsv").write_text("path\tsite\tfolder\n" + "\n".join(lines))
    fit = fit_style(tmp_path / "list.tsv", group_by="site", labels=True)
    assert fit.bank.labels == ("north", "unknown"), "the list's column, not the tag of that name"
    assert fit_style(tmp_path / "list.tsv", group_by="folder", labels=True).bank.labels == ("x",)
    assert fit_style(paths, group_by="folder", labels=True).bank.labels == ("alpha", "beta")
    with pytest.raises(ConfigError, match="class_by must be 'folder' or a column of the list, got 'sex'"):
        fit_style(tmp_path / "list.tsv", class_by="sex")


@pytest.mark.parametrize(
    ("key", "wanted"),
    [
        ("site", ("North", "South")),
        ("INSTITUTIONNAME", ("North", "South")),
        ("modality", ("CT", "MR")),
        ("Modality", ("CT", "MR")),
        ("body-part", ("HEAD", "unknown")),
        ("station", ("CT-ROOM-9",)),
    ],
)
def test_groups_by_tag(key, wanted, tmp_path):
    for index in range(6):
        north = index < 3
        write_dicom(
            tmp_path / f"{index}.dcm",
            index,
            PatientID=str(index),
            InstitutionName="North" if north else "South",
            Modality="CT" if north else "MR",
            **({"BodyPartExamined": "HEAD"} if north else {}),
        )
    save_photos(tmp_path, 1)
    fit = fit_style(tmp_path, group_by=key, min_images=3, labels=True)
    assert tuple(label for label in fit.bank.labels) == wanted


def test_tags_of_patients_cannot_group(tmp_path):
    write_dicom(tmp_path / "a.dcm", 0)
    for key in ("PatientName", "PatientID", "StudyDate", "nonsense"):
        with pytest.raises(ConfigError, match=f"cannot group by '{key}': this is no column and no tag"):
            fit_style(tmp_path, group_by=key)
    with pytest.raises(ConfigError, match="cannot group by 'field': no file has such a DICOM tag"):
        fit_style(tmp_path, group_by="field")


def test_one_bank_of_two_modalities_is_told(tmp_path):
    for index in range(6):
        write_dicom(
            tmp_path / f"{index}.dcm", index, PatientID=str(index), Modality="MR" if index > 3 else "CT"
        )
    (warning,) = fit_style(tmp_path).warnings
    assert warning.startswith("one bank of several modalities (4 CT, 2 MR)")
    assert not fit_style(tmp_path, group_by="modality", min_images=1).warnings


def test_a_patient_in_two_groups_is_counted_in_one_if_that_is_to_be_private(tmp_path):
    for index in range(8):
        write_dicom(
            tmp_path / f"{index}.dcm", index, PatientID=str(index // 2), Modality="MR" if index % 2 else "CT"
        )
    options = {"group_by": "modality", "min_images": 1}
    assert sum(group.origins for group in fit_style(tmp_path, **options).groups.values()) == 8
    fit = fit_style(tmp_path, epsilon=5, **options)
    assert sum(group.origins for group in fit.groups.values()) == 4
    assert any("4 images are left out, because their patients" in text for text in fit.warnings)


# Classes


def test_groups_of_other_classes_are_told(tree):
    told = balance_warnings(read_study(tree, group_by="folder"))
    assert len(told) == 3
    assert told[1].startswith("group 'beta' has other classes than the rest (total variation distance 0.")
    # sick: 7 of 20 images, 1 of 6 in beta; well: 11 of 20, 5 of 6.
    assert "distance 0.28; most apart: 'well', 83% of its images, 55% of all" in told[1]
    assert not balance_warnings(read_study(tree / "alpha", class_by="folder"))
    assert not balance_warnings(read_study(tree))


def test_balanced_groups_are_not_told(tmp_path):
    for name in ("a/x", "a/y", "b/x", "b/y"):
        save_photos(tmp_path / name, 10)
    save_photos(tmp_path / "b/y", 12)
    assert not balance_warnings(read_study(tmp_path, group_by="folder"))
    save_photos(tmp_path / "b/y", 20)
    assert len(balance_warnings(read_study(tmp_path, group_by="folder"))) == 0
    save_photos(tmp_path / "b/y", 40)
    assert len(balance_warnings(read_study(tmp_path, group_by="folder"))) == 1


# Banks with groups


def grouped() -> StyleBank:
    from styleaug import Provenance

    made_by = Provenance("reinhard-rgb", RGB.fingerprint, 9, created="2025-01-01", version="0.1.0")
    return StyleBank(
        torch.rand(6, 6), made_by, groups=torch.tensor([0, 1, 0, 0, 2, 2]), labels=("a", "b", "c")
    )


def test_groups_survive(tmp_path):
    bank = grouped()
    assert StyleBank.load(bank.save(tmp_path / "b.safetensors")) == bank
    assert bank.describe()["groups"] == {"a": 3, "b": 1, "c": 2}
    assert torch.equal(bank.select(group="c").codes, bank.codes[4:])
    part = bank.select([5, 0])
    assert part.labels == ("a", "c") and part.groups.tolist() == [1, 0]
    assert bank.sample(6) == bank
    assert bank != StyleBank(bank.codes, bank.provenance)
    for wrong in ({"group": "d"}, {}, {"rows": [0], "group": "a"}):
        with pytest.raises(BankError):
            bank.select(**wrong)
    with pytest.raises(BankError, match="it has no groups"):
        StyleBank(bank.codes, bank.provenance).select(group="a")


def test_groups_are_drawn_alike():
    bank = grouped()
    weights = bank.balanced_weights()
    assert weights.tolist() == pytest.approx([1 / 3, 1, 1 / 3, 1 / 3, 1 / 2, 1 / 2])
    assert StyleBank(bank.codes, bank.provenance).balanced_weights().tolist() == [1.0] * 6
    augment = StyleAugment(bank, p=1.0, sampler=Weighted(weights))
    sources = augment.make_params(torch.zeros(9000, 3, 1, 1))["sources"][:, 0]
    drawn = torch.bincount(bank.groups[sources], minlength=3) / 9000
    assert drawn.tolist() == pytest.approx([1 / 3] * 3, abs=0.03)


def test_groups_merge():
    bank, plain = grouped(), StyleBank(torch.rand(2, 6), grouped().provenance)
    joined = bank.merge(plain, bank)
    assert joined.labels == ("a", "b", "c", "g1") and joined.groups.tolist()[6:8] == [3, 3]
    assert joined.groups.tolist()[8:] == bank.groups.tolist(), "groups of one name are one"
    numbered = StyleBank(bank.codes, bank.provenance, groups=bank.groups, labels=("g1", "g2", "g3"))
    assert numbered.merge(numbered).labels == tuple(f"g{number}" for number in range(1, 7))
    assert plain.merge(plain).groups is None


@pytest.mark.parametrize(
    ("groups", "labels", "message"),
    [
        (torch.zeros(5, dtype=torch.long), ("a",), r"groups must be \(6,\)"),
        (torch.zeros(6), ("a",), "whole numbers"),
        (torch.zeros(6, dtype=torch.bool), ("a",), "whole numbers"),
        (torch.zeros(6, dtype=torch.complex64), ("a",), "whole numbers"),
        (torch.zeros(6, dtype=torch.long), ("a", "b"), "each label must be used"),
        (torch.full((6,), -1), ("a",), "each label must be used"),
        (torch.full((6,), 2**62), ("a",), "each label must be used"),
        (torch.tensor([0, 1, 0, 1, 0, 1]), ("a", "a"), "two groups have the same label"),
        (torch.zeros(6, dtype=torch.long), ("",), "1 to 100 printable"),
        (torch.zeros(6, dtype=torch.long), ("x" * 101,), "1 to 100 printable"),
        (torch.zeros(6, dtype=torch.long), ("a\x1b[31m",), "1 to 100 printable"),
        (torch.zeros(6, dtype=torch.long), (7,), "1 to 100 printable"),
        (torch.zeros(6, dtype=torch.long), tuple(map(str, range(1001))), "at most 1000"),
        (torch.zeros(6, dtype=torch.long), "a", "at most 1000 texts"),
        (None, ("a",), "labels and groups belong together"),
    ],
)
def test_groups_that_are_none(groups, labels, message, tmp_path):
    with pytest.raises(BankError, match=message):
        StyleBank(torch.rand(6, 6), grouped().provenance, groups=groups, labels=labels)
    from safetensors.torch import save
    from test_bank import meta

    tensors = {"codes": torch.rand(6, 6), **({} if groups is None else {"groups": groups})}
    path = tmp_path / "b.safetensors"
    path.write_bytes(save(tensors, meta(format=2 if groups is not None else 1, labels=labels)))
    if groups is not None:
        with pytest.raises(BankError, match=r"b\.safetensors"):
            StyleBank.load(path)
    path.write_bytes(save(tensors, meta(format=1 if groups is not None else 2, labels=labels)))
    other = "groups without labels, or labels without groups|another number of groups"
    with pytest.raises(BankError, match=other):
        StyleBank.load(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"min_images": 0}, "no valid 'min_images'"),
        ({"min_images": True}, "no valid 'min_images'"),
        ({"min_images": 2.5}, "no valid 'min_images'"),
        ({"min_images": 10**30}, "no valid 'min_images'"),
        ({"epsilon": float("nan"), "delta": 0.1}, "no valid 'epsilon'"),
        ({"epsilon": -1, "delta": 0.1}, "no valid 'epsilon'"),
        ({"epsilon": 1, "delta": "x"}, "no valid 'delta'"),
        ({"epsilon": 1.0, "delta": None}, "epsilon without delta"),
    ],
)
def test_privacy_that_is_none(changes, message, tmp_path):
    from safetensors.torch import save
    from test_bank import meta

    path = tmp_path / "b.safetensors"
    path.write_bytes(save({"codes": torch.rand(2, 6)}, meta(**changes)))
    with pytest.raises(BankError, match=message):
        StyleBank.load(path)


def test_banks_of_the_first_version_are_as_they_were(tmp_path):
    from safetensors import safe_open

    from styleaug import load_bank
    from styleaug.weights import cards, pretrained_folder

    for name, card in cards()["banks"].items():
        bank = load_bank(name)
        assert bank.provenance.min_images == 1 and bank.groups is None and bank.provenance.epsilon is None
        with safe_open(pretrained_folder() / card["file"], "pt") as file:
            assert torch.equal(bank.codes, file.get_tensor("codes"))
            facts = json.loads(file.metadata()["styleaug_bank"])
        assert (
            bank.save(tmp_path / "new.safetensors") and StyleBank.load(tmp_path / "new.safetensors") == bank
        )
        with safe_open(tmp_path / "new.safetensors", "pt") as file:
            found = json.loads(file.metadata()["styleaug_bank"])
        assert found.pop("digest") and found == facts, name


# Volumes


def scan_of(frames: np.ndarray, *, volume: bool = True) -> Scan:
    return Scan(frames, (-100.0, 300.0), volume, lambda frames, path: None)


def test_a_volume_has_one_code_of_its_middle_slices(monkeypatch, tmp_path):
    frames = np.zeros((100, 20, 24), np.int16)
    frames[:10] = frames[-10:] = 3000
    frames[10:-10] += np.arange(80, dtype=np.int16)[:, None, None]
    monkeypatch.setattr(style_images, "open_image", lambda path, **options: scan_of(frames))
    pixels = style_images.open_style(tmp_path / "a", 256)
    assert pixels.shape == (8, 3, 20, 24)
    values = (pixels[:, 0, 0, 0] * 400 - 100).round().tolist()
    assert values[0] == 0 and values[-1] == 79 and np.diff(values).min() >= 10, "evenly, none of the ends"
    (path,) = save_photos(tmp_path / "volumes", 1).iterdir()
    bank = fit_style([path], generator="reinhard-rgb", min_images=1).bank
    assert len(bank) == 1
    torch.testing.assert_close(bank.codes[0], RGB.encode_style(pixels).mean(dim=0))


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [((1, 9, 9), 1), ((2, 9, 9), 2), ((5, 9, 9), 5), ((12, 9, 9, 3), 8), ((9, 9, 9, 1), 8)],
)
def test_scans_of_any_length(shape, wanted, monkeypatch, tmp_path):
    frames = np.random.default_rng(0).normal(0, 100, shape)
    monkeypatch.setattr(style_images, "open_image", lambda path, **options: scan_of(frames))
    assert style_images.open_style(tmp_path / "a", 256).shape == (wanted, 3, 9, 9)


def test_scans_without_a_style(monkeypatch, tmp_path):
    for frames, message in (
        (np.zeros((3, 9, 9, 5), np.int16), "has 5 channels; a style is read from 1 or 3"),
        (np.full((3, 9, 9), np.nan), "must be finite"),
        (np.zeros((3, 9, 4), np.int16), "4 x 9 pixels; a style needs 8"),
    ):
        monkeypatch.setattr(style_images, "open_image", lambda path, f=frames, **options: scan_of(f))
        with pytest.raises(ValueError, match=message):
            style_images.open_style(tmp_path / "a", 256)


# Fits that go on


def test_a_fit_that_dies_goes_on(tree, tmp_path, monkeypatch):
    keep, whole = tmp_path / "codes", fit_style(tree, patches=2, seed=4).bank
    monkeypatch.setattr(unfinished, "_SECONDS", 0.0)
    monkeypatch.setattr(unfinished, "WRITING", 0)

    def stop(done: int, total: int) -> None:
        if done >= 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_style(tree, patches=2, seed=4, keep=keep, report=stop)
    assert stat.S_IMODE(keep.stat().st_mode) == 0o600
    assert len(stored_codes(keep)) == 10
    content = keep.read_bytes()
    assert b"alpha" not in content and str(tree).encode() not in content
    opened = []
    original = style_images.open_image
    monkeypatch.setattr(
        style_images, "open_image", lambda path, **options: opened.append(path) or original(path, **options)
    )
    again = fit_style(tree, patches=2, seed=4, keep=keep).bank
    assert again.to_bytes() == whole.to_bytes()
    assert len(opened) == 10, "the other ten were read before"
    assert not list(tmp_path.iterdir())


def test_other_settings_and_files_are_read_anew(tree, tmp_path):
    path = next(tree.rglob("*.png"))
    copy = tmp_path / "a.png"
    copy.write_bytes(path.read_bytes())
    kept = Unfinished(tmp_path / "codes", "one")
    kept.keep(copy, torch.rand(1, 6))
    kept.write()
    assert Unfinished(tmp_path / "codes", "one").find(copy) is not None
    assert Unfinished(tmp_path / "codes", "two").find(copy) is None
    assert Unfinished(tmp_path / "codes", "one").find(path) is None
    copy.write_bytes(path.read_bytes() + b" ")
    assert Unfinished(tmp_path / "codes", "one").find(copy) is None
    for content in (b"", b"nonsense", kept.path.read_bytes()[:-3]):
        kept.path.write_bytes(content)
        assert Unfinished(kept.path, "one").known == {}


def test_a_fit_that_fails_leaves_no_codes(tree, tmp_path, monkeypatch):
    monkeypatch.setattr(unfinished, "_SECONDS", 0.0)
    with pytest.raises(ConfigError):
        fit_style(tree, min_images=50, keep=tmp_path / "codes")
    assert not list(tmp_path.iterdir())
    with pytest.raises(FileError, match="cannot write to"):
        (tmp_path / "file").write_text("x")
        fit_style(tree, keep=tmp_path / "file" / "codes")


SLOW = """
import sys, time
from pathlib import Path
from styleaug.fitting import unfinished
from styleaug.io import pixels
from styleaug.cli.main import main
unfinished._SECONDS, unfinished.WRITING, original = 0.0, 0, pixels.open_image
def slowly(path, **options):
    time.sleep(0.2)
    return original(path, **options)
pixels.open_image = slowly
sys.argv = ["styleaug", *sys.argv[1:]]
main()
"""


@pytest.mark.slow
def test_a_killed_command_goes_on(tree, tmp_path, command):
    out, words = tmp_path / "b.safetensors", ["fit-style", tree, "-o", tmp_path / "b.safetensors"]
    process = subprocess.Popen([sys.executable, "-c", SLOW, *map(str, words)], stderr=subprocess.PIPE)
    side = tmp_path / ".b.safetensors.codes"
    for _ in range(600):
        if side.exists() and len(stored_codes(side)) >= 3:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not out.exists() and len(stored_codes(side)) >= 3
    command(*words)
    assert StyleBank.load(out).codes.equal(fit_style(tree).bank.codes)
    assert [path.name for path in tmp_path.iterdir()] == ["b.safetensors"]


# The command


def test_fit_style_by_groups(tree, command, tmp_path):
    out = tmp_path / "b.safetensors"
    told = command("fit-style", tree, "-o", out, "--group-by", "folder", "--min-images", 3).stderr
    assert "g1 is alpha: 4 styles of 12 images, 12 patients or files" in told
    assert "warning: group 'tiny' is left out" in told and "total variation distance" in told
    shown = command("bank", "show", out).stdout
    assert "groups" in shown and "'g1': 4, 'g2': 2" in shown and "alpha" not in shown
    command("fit-style", tree, "-o", tmp_path / "split", "--group-by", "folder", "--split", "--labels")
    assert sorted(path.name for path in (tmp_path / "split").iterdir()) == [
        "alpha.safetensors", "beta.safetensors"
    ]  # fmt: skip
    bank = StyleBank.load(tmp_path / "split" / "beta.safetensors")
    assert bank.groups is None and bank.provenance.images == 6 and b"beta" not in bank.to_bytes()


def test_names_of_files_are_safe():
    from styleaug.cli.training import file_names

    labels = ["../../etc", "a/b", "A_b", "St. Mary's", "...", "", "x"]
    assert list(file_names(dict.fromkeys(labels))) == [
        "etc", "a_b", "A_b-3", "St._Mary_s", "5", "6", "x"
    ]  # fmt: skip


@pytest.mark.parametrize("suffix", [".html", ".png"])
def test_the_report_shows_styles_on_another_image(suffix, tree, command, tmp_path):
    Image.new("RGB", (50, 60), (200, 40, 40)).save(tmp_path / "reference.png")
    out, report = tmp_path / "b.safetensors", tmp_path / f"report{suffix}"
    options = ["-o", out, "--group-by", "folder", "--min-images", 3, "--report", report]
    command("fit-style", tree, *options, "--reference", tmp_path / "reference.png")
    content = report.read_bytes()
    for word in ("alpha", "beta", "reference.png", str(tmp_path), str(tree)):
        assert word.encode() not in content
    if suffix == ".html":
        assert b"min images" in content and b"styles of g1" in content and b"data:image/png;base64" in content
        return
    with Image.open(report) as sheet:
        assert sheet.width > 5 * 160 and 2 * 160 < sheet.height < 3 * 160
        assert sheet.getpixel((40, 60)) == (200, 40, 40)


def test_reports_of_patients_are_refused(tree, command, tmp_path):
    mine = next(tree.rglob("*.png"))
    for options, message in (
        (("--report", "r.html", "--reference", mine), "one of the images that are read"),
        (("--report", "r.pdf"), "a report must be a .html or .png file, got 'r.pdf'"),
        (("--report", "r.png", "--reference", tmp_path / "no.png"), "there is no file"),
        (("--window", "wide"), "window must be"),
        (("--epsilon", 1, "--choose", "diverse"), "leave out choose"),
    ):
        told = command("fit-style", tree, "-o", tmp_path / "b.safetensors", *options, code=1).stderr
        assert told.startswith("Error: ") and message in told
    for options, message in (
        (("--split",), "--split needs --group-by"),
        (("--reference", mine), "--reference needs --report"),
        (("--min-images", 0), "0 is not in the range"),
    ):
        assert message in command("fit-style", tree, "-o", tmp_path / "b", *options, code=2).stderr
    assert not list(tmp_path.iterdir())


def test_a_window_is_handed_on(command, tmp_path):
    for index in range(5):
        write_dicom(tmp_path / "ct" / f"{index}.dcm", index, PatientID=str(index))
    out = tmp_path / "b.safetensors"
    codes = []
    for window in ("dicom", "auto", "0/4000"):
        command("fit-style", tmp_path / "ct", "-o", out, "--window", window)
        codes.append(StyleBank.load(out).codes[0])
    assert codes[2][3] < 0.3 * codes[0][3], "little contrast in a wide window"
    assert not torch.equal(codes[0], codes[1])


def test_photos_are_unlike():
    assert photos(3, 8, 8).flatten(1).unique(dim=0).shape[0] == 3
