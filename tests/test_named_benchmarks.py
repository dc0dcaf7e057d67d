"""Benchmarks by name, read from small trees of their own layout; nothing is downloaded."""

import json
import socket

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from styleaug import ConfigError, FileError
from styleaug.cli.main import cli
from styleaug.robustness.benchmarks import (
    BENCHMARKS,
    CIFAR_CLASSES,
    is_benchmark,
    parts_named,
    source_and_tests,
)
from styleaug.robustness.class_folders import read_class_folders
from styleaug.robustness.corruptions import CORRUPTIONS
from styleaug.robustness.protocol import Protocol


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*given, **named):
        raise AssertionError("nothing may be fetched")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def picture(path, value=0, side=8):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (side, side), (value, 255 - value, 40)).save(path)


def domains(folder, names=("art", "photo"), classes=("cat", "dog"), count=5):
    for domain in names:
        for value, name in enumerate(classes):
            for number in range(count):
                picture(folder / domain / name / f"{number}.png", 200 * value + number)
    return folder


def pacs(folder, lists=""):
    domains(folder, ("photo", "art_painting", "cartoon", "sketch"))
    if lists is not None:
        (folder / lists).mkdir(exist_ok=True)
        for split, numbers in (("train", (0, 1, 2)), ("crossval", (3,)), ("test", (0, 1, 2, 3))):
            lines = [
                f"photo/{name}/{at}.png {label}"
                for label, name in enumerate(("cat", "dog"), 1)
                for at in numbers
            ]
            (folder / lists / f"photo_{split}_kfold.txt").write_text("\n".join(lines) + "\n")
    return folder


def cifar(folder, *, left_out=(), count=20, binary=True):
    """Write CIFAR-10-C with `count` images of each severity, and CIFAR-10 beside it."""
    rng = np.random.default_rng(0)
    tests = folder / "CIFAR-10-C"
    tests.mkdir(parents=True)
    labels = np.tile(np.arange(count) % 10, 5)
    np.save(tests / "labels.npy", labels)
    for number, name in enumerate((*CORRUPTIONS, "saturate")):
        if name not in left_out:
            images = rng.integers(0, 255, (5 * count, 32, 32, 3), dtype=np.uint8)
            images[:, 0, 0] = (number, 1, 2)
            np.save(tests / f"{name}.npy", images)
    if binary:
        place = folder / "cifar-10-batches-bin"
        place.mkdir()
        for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
            rows = rng.integers(0, 255, (count, 3073), dtype=np.uint8)
            rows[:, 0] = np.arange(count) % 10
            rows[:, 1], rows[:, 1025], rows[:, 2049] = 10, 20, 30
            rows.tofile(place / f"{name}.bin")
    return tests


def imagenetc(folder, groups=True):
    for number, name in enumerate(CORRUPTIONS):
        group = folder / ("noise" if "noise" in name else "blur") if groups else folder
        for severity in range(1, 6):
            for value, wnid in enumerate(("n01440764", "n01443537")):
                picture(
                    group / name / str(severity) / wnid / "ILSVRC2012_val_00000001.JPEG", 100 * value + number
                )
    return folder


ROWS = [  # center, split, tumor: as in the table, where the split of a test hospital says nothing
    (0, 0, 0), (0, 0, 1), (3, 0, 0), (4, 0, 1), (0, 1, 0), (3, 1, 1), (1, 0, 0), (1, 1, 1), (2, 0, 0),
    (2, 1, 1),
]  # fmt: skip


def camelyon(root):
    folder = root / "camelyon17_v1.0"
    folder.mkdir(parents=True)
    lines = [",patient,node,x_coord,y_coord,tumor,slide,center,split"]
    for number, (center, split, tumor) in enumerate(ROWS):
        slide = f"patient_{number:03}_node_4"
        picture(folder / "patches" / slide / f"patch_{slide}_x_3328_y_{number}.png", 100 * tumor)
        lines.append(f"{number},{number:03},4,3328,{number},{tumor},0,{center},{split}")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    (folder / "RELEASE_v1.0.txt").write_text("")
    return root / "camelyon17"


def read(part, side=8):
    listed = part.read()
    classes = sorted(set(listed.classes))
    return read_class_folders(part, classes, side), classes


def test_a_folder_with_such_a_name_goes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_benchmark("pacs:there") and not is_benchmark("pacs") and not is_benchmark("C:\\photos")
    (tmp_path / "pacs:there").mkdir()
    assert not is_benchmark("pacs:there")


@pytest.mark.parametrize("place", ["", "PACS", "kfold"])
@pytest.mark.parametrize("lists", ["", "pacs_label", None])
def test_pacs(tmp_path, place, lists):
    pacs(tmp_path / place if place else tmp_path, None if lists is None else lists)
    source, tests = source_and_tests(f"pacs:{tmp_path}")
    others = {"art_painting", "cartoon", "sketch"}
    assert set(tests) == others | ({"home"} if lists is not None else set())
    found, classes = read(source)
    assert classes == ["cat", "dog"] and found.labels.tolist().count(1) == (3 if lists is not None else 5)
    if lists is not None:
        assert sorted(tests["home"].read().keys) == ["photo/cat/3", "photo/dog/3"]
    source, tests = source_and_tests(f"pacs:{tmp_path}:sketch")
    assert set(tests) == {"photo", "art_painting", "cartoon"} and len(read(source)[0].labels) == 10
    assert set(parts_named(f"pacs:{tmp_path}")) == {"photo", *others}
    assert [*parts_named(f"pacs:{tmp_path}:cartoon")] == ["cartoon"]


def test_a_list_of_pacs_that_names_what_is_not_there(tmp_path):
    pacs(tmp_path)
    (tmp_path / "photo" / "cat" / "3.png").unlink()
    with pytest.raises(FileError, match="lacks 1 of 2 images of its list 'photo crossval'"):
        source_and_tests(f"pacs:{tmp_path}")[1]["home"].read()


@pytest.mark.parametrize("names", [("L", "S"), ("location_38", "location_43"), ("Real World", "Clipart")])
def test_domainbed(tmp_path, names):
    domains(tmp_path, names)
    (tmp_path / "notes").mkdir()
    source, tests = source_and_tests(f"domainbed:{tmp_path}:{names[0]}")
    assert [*tests] == [names[1]] and len(read(source)[0].labels) == 10
    with pytest.raises(
        ConfigError, match=f"name what is trained on: domainbed:.*, with one of {sorted(names)[0]}, "
    ):
        source_and_tests(f"domainbed:{tmp_path}")
    with pytest.raises(ConfigError, match="has no part 'nowhere'"):
        parts_named(f"domainbed:{tmp_path}:nowhere")


def test_cifar(tmp_path):
    path = cifar(tmp_path)
    source, tests = source_and_tests(f"cifar10c:{path}")
    assert [*tests] == ["home", *CORRUPTIONS] and set(source.read().classes) == set(CIFAR_CLASSES)
    train, _ = read(source, side=32)
    assert train.images.shape == (100, 3, 32, 32) and train.images[0, :, 0, 0].tolist() == [10, 20, 30]
    assert len(read(tests["home"], side=32)[0].labels) == 20
    fog, classes = read(tests["fog"], side=32)
    raw = np.load(path / "fog.npy")
    order = np.argsort(np.tile(np.arange(20) % 10, 5), kind="stable")
    assert classes == sorted(CIFAR_CLASSES) and np.array_equal(
        fog.images.permute(0, 2, 3, 1).numpy(), raw[order]
    )
    assert fog.labels.tolist() == sorted(fog.labels.tolist()) and len(fog.labels) == 100
    assert read(tests["fog"], side=16)[0].images.shape == (100, 3, 16, 16)
    some = read_class_folders(tests["fog"], CIFAR_CLASSES, 32, limit=5)
    assert len(some.labels) == 50 and some.digest != fog.digest
    assert [*parts_named(f"cifar10c:{path}:saturate")] == ["saturate"]


def test_of_cifar_a_part_is_refused_and_each_can_be_named(tmp_path):
    path = cifar(tmp_path, left_out=("fog", "snow"), binary=False)
    with pytest.raises(FileError, match="lacks snow, fog; those you have can be named"):
        parts_named(f"cifar10c:{path}")
    assert len(read(parts_named(f"cifar10c:{path}:frost")["frost"], 32)[0].labels) == 100
    with pytest.raises(ConfigError, match="is for tests"):
        source_and_tests(f"cifar10c:{path}:frost")


def test_cifar_without_images_to_train_on_says_what_to_fetch(tmp_path):
    source, _ = source_and_tests(f"cifar10c:{cifar(tmp_path, binary=False)}")
    with pytest.raises(
        FileError, match=r"no cifar-10-batches-bin/data_batch_1.bin .* Fetch .* binary version"
    ):
        source.read()


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (
            lambda path: np.save(path / "fog.npy", np.array([{}, 1]), allow_pickle=True),
            "cannot read .*fog.npy",
        ),
        (lambda path: (path / "fog.npy").write_bytes(b"\x93NUMPY"), "cannot read .*fog.npy"),
        (lambda path: np.save(path / "fog.npy", np.zeros((5, 32, 32, 3))), "must hold uint8"),
        (lambda path: np.save(path / "fog.npy", np.zeros((5, 3, 32, 32), np.uint8)), "must hold uint8"),
        (
            lambda path: np.save(path / "labels.npy", np.zeros(7, int)),
            "one integer for each of the 100 images",
        ),
        (lambda path: np.save(path / "labels.npy", np.full(100, 10)), "labels outside of 0 to 9"),
        (lambda path: np.save(path / "labels.npy", np.full(100, -1)), "labels outside of 0 to 9"),
    ],
)
def test_damaged_arrays_are_refused(tmp_path, break_it, message):
    path = cifar(tmp_path, binary=False)
    break_it(path)
    with pytest.raises(FileError, match=message):
        parts_named(f"cifar10c:{path}:fog")["fog"].read()


def test_a_batch_that_is_cut_off(tmp_path):
    path = cifar(tmp_path)
    batch = tmp_path / "cifar-10-batches-bin" / "data_batch_3.bin"
    batch.write_bytes(batch.read_bytes()[:-1])
    with pytest.raises(FileError, match=r"data_batch_3.bin is cut off"):
        source_and_tests(f"cifar10c:{path}")[0].read()


@pytest.mark.parametrize("groups", [True, False])
def test_imagenetc(tmp_path, groups):
    imagenetc(tmp_path, groups)
    tests = parts_named(f"imagenetc:{tmp_path}")
    assert [*tests] == list(CORRUPTIONS)
    found, classes = read(tests["fog"])
    assert classes == ["n01440764", "n01443537"] and found.labels.tolist() == [0] * 5 + [1] * 5
    assert len(set(tests["fog"].read().keys)) == 10
    with pytest.raises(ConfigError, match="imagenetc has tests alone"):
        source_and_tests(f"imagenetc:{tmp_path}")


def test_camelyon_has_the_splits_of_wilds(tmp_path):
    source, tests = source_and_tests(f"wilds:{camelyon(tmp_path)}")
    assert [*tests] == ["home", "val", "test"]
    numbers = {
        name: [int(key.rpartition("_")[2].removesuffix(".png")) for key in part.read().keys]
        for name, part in {"train": source, **tests}.items()
    }
    assert numbers == {"train": [0, 1, 2, 3], "home": [4, 5], "val": [6, 7], "test": [8, 9]}
    assert source.read().classes == ("normal", "tumor", "normal", "tumor")
    assert read(tests["test"])[0].labels.tolist() == [0, 1]
    assert parts_named(f"wilds:{tmp_path}/camelyon17_v1.0:test")["test"].read() == tests["test"].read()


def test_other_sets_of_wilds_and_damaged_tables(tmp_path):
    (tmp_path / "fmow").mkdir()
    with pytest.raises(ConfigError, match="of WILDS only camelyon17 can be read, got 'fmow'"):
        source_and_tests(f"wilds:{tmp_path}/fmow")
    path = camelyon(tmp_path)
    table = tmp_path / "camelyon17_v1.0" / "metadata.csv"
    source, _ = source_and_tests(f"wilds:{path}")
    table.write_text(table.read_text().replace("center", "hospital"))
    with pytest.raises(FileError, match="has no column center"):
        source.read()
    table.unlink()
    with pytest.raises(
        FileError, match=r"has no metadata.csv. Nothing is downloaded here. Fetch camelyon17_v1.0"
    ):
        source.read()


@pytest.mark.parametrize("kind", BENCHMARKS)
def test_what_is_absent_says_what_to_fetch(tmp_path, kind):
    path = tmp_path / ("camelyon17" if kind == "wilds" else "nowhere")
    for call in (parts_named, source_and_tests):
        with pytest.raises(
            FileError, match=f"^{kind}: there is no folder .*{path.name}. Nothing is downloaded"
        ) as told:
            call(f"{kind}:{path}")
        assert "https://" in str(told.value) and str(told.value).endswith(".")
    path.mkdir()
    with pytest.raises((FileError, ConfigError)):
        part = parts_named(f"{kind}:{path}")
        [each.read() for each in part.values()]


def test_a_protocol_takes_the_tests_that_come_with_a_source(tmp_path):
    pacs(tmp_path)
    make = lambda train, tests: Protocol.of(train, tests, arms=["none"]).tests  # noqa: E731
    assert set(make(f"pacs:{tmp_path}", ())) == {"home", "art_painting", "cartoon", "sketch"}
    assert set(make(f"pacs:{tmp_path}", [f"pacs:{tmp_path}:sketch"])) == {"home", "sketch"}
    own = make(f"pacs:{tmp_path}", {"home": tmp_path / "sketch"})
    assert own == {"home": tmp_path / "sketch"}
    assert set(make(tmp_path / "photo", [f"pacs:{tmp_path}"])) == {
        "photo",
        "art_painting",
        "cartoon",
        "sketch",
    }
    with pytest.raises(ConfigError, match=r"x=pacs:.* stands for photo, art_painting"):
        make(tmp_path / "photo", {"x": f"pacs:{tmp_path}"})
    with pytest.raises(ConfigError, match="two tests are called 'sketch'"):
        make(tmp_path / "photo", [f"pacs:{tmp_path}:sketch", tmp_path / "sketch"])


def test_masks_have_no_such_benchmark(tmp_path):
    from styleaug.robustness.segmentation import Segmentation

    protocol = Protocol.of(f"pacs:{pacs(tmp_path)}", arms=["none"])
    with pytest.raises(ConfigError, match="have classes and no masks"):
        Segmentation().check(protocol)


def test_the_shell_runs_a_benchmark(tmp_path):
    pacs(tmp_path / "PACS", "splits")
    out = tmp_path / "result.json"
    words = ["evaluate", "robustness", f"pacs:{tmp_path}", "--arm", "none", "--seeds", "1", "--epochs", "1"]
    words += ["--test", f"pacs:{tmp_path}:sketch", "--test", f"drawn=pacs:{tmp_path}:cartoon"]
    words += ["--size", "32", "--batch", "4", "--device", "cpu", "--threads", "1", "-o", str(out)]
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 0, done.output
    (run,) = json.loads(out.read_text())["runs"]
    assert set(run["scores"]) == {"home", "drawn", "sketch"}
    assert run["trained_on"] == 6 and run["tested_on"] == 2
