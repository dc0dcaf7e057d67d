"""Lists of training images: folders, CSV and TSV, pairs by name, classes."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from workshop import colours, ramp, tiny, unbalanced, written

from styleaug import FileError
from styleaug.io.lists import list_images
from styleaug.training.data import TrainingData

CONFIG = tiny("cut")


# Lists


def test_folders_give_classes_and_keys(tmp_path):
    colours(tmp_path, ["top.png", "b/deep/two.one.jpg", "a/1.png"])
    images = list_images(tmp_path)
    assert [str(path.relative_to(tmp_path)) for path in images.paths] == [
        "a/1.png", "b/deep/two.one.jpg", "top.png"
    ]  # fmt: skip
    assert images.classes == ("a", "b", "")
    assert images.keys == ("a/1", "b/deep/two.one", "top")


@pytest.mark.parametrize(("suffix", "mark"), [(".csv", ","), (".tsv", "\t"), (".CSV", ",")])
def test_lists_give_classes_and_keys(suffix, mark, tmp_path):
    colours(tmp_path, ["x/1.png", "x/2.png", "ä, ö.png"])
    lines = [["class", "path", "key", "more"], ["old", "x/1.png", "one", "?"], ["", "x/2.png", "", ""]]
    lines += [["new", f'"{tmp_path / "ä, ö.png"}"', "", ""]]
    text = "\r\n".join(mark.join(line) for line in lines)
    for encoding in ("utf-8", "utf-8-sig"):  # the second is what Excel writes
        images = list_images(written(tmp_path / f"list{suffix}", text.encode(encoding)))
        assert images.paths == (tmp_path / "x/1.png", tmp_path / "x/2.png", tmp_path / "ä, ö.png")
        assert images.classes == ("old", "", "new")
        assert images.keys == ("one", "2", "ä, ö")


BAD_LISTS = {
    "empty": (b"", "header with the column 'path'"),
    "no header": (b"a.png\nb.png\n", r"header with the column 'path', got \['a.png'\]"),
    "header only": (b"path,class\n", "must name an image"),
    "semicolons": (b"path;class\na.png;x\n", "header with the column 'path'"),
    "a gap": (b"class,path\nx,a.png\ny,\n", "must name an image"),
    "a short row": (b"class,path\nx\n", "must name an image"),
    "missing files": (b"path\na.png\nb.png\nc.png\n", "names 2 files that are not there; the first: .*b.png"),
    "NUL bytes": (b"path\na.png\0\n\0\0", "not there"),
    "latin 1": ("path\nä.png\n".encode("latin-1"), "must be text in UTF-8"),
    "UTF-16": ("path\na.png\n".encode("utf-16"), "must be text in UTF-8"),
    "a picture": (b"\x89PNG\r\n\x1a\n\xff\xfe", "must be text in UTF-8"),
    "control characters": (bytes(range(32)) * 9, "header with the column 'path'"),
    "an endless name": (b"path\n" + b"x" * 5000, "not there; the first: .{0,300}$"),
    "an endless field": (b'path\n"' + b"x" * 200_000, "cannot read the list .*field"),
    "a folder": (b"path\n.\n", "not there"),
}


@pytest.mark.parametrize("kind", BAD_LISTS)
def test_lists_that_cannot_be_used(kind, tmp_path):
    content, message = BAD_LISTS[kind]
    colours(tmp_path, ["a.png"])
    with pytest.raises(FileError, match=message) as caught:
        list_images(written(tmp_path / "list.csv", content))
    assert str(tmp_path / "list.csv") in str(caught.value)


def test_no_list_and_no_folder(tmp_path):
    with pytest.raises(FileError, match="cannot open"):
        list_images(tmp_path / "list.csv")
    with pytest.raises(FileError, match="there is no folder"):
        list_images(tmp_path / "nothing")
    colours(tmp_path / "folder.csv", ["a.png"])
    assert len(list_images(tmp_path / "folder.csv")) == 1


# Pairs


def paired_names(source: Path, target: Path, **options) -> list[tuple[str, str]]:
    data = TrainingData(source, target, tiny("patchgan", **options), paired=True)
    pairs = [zip(*(side.images.paths for side in part), strict=True) for part in (data.train, data.held)]
    return sorted({(one.name, other.name) for part in pairs for one, other in part})


def test_pairs_by_name(tmp_path):
    a = colours(tmp_path / "a", ["x/1.png", "x/2.png", "y/1.png", "alone.png"])
    b = colours(tmp_path / "b", ["x/1.jpg", "x/2.tif", "y/1.png", "y/2.png"])
    assert paired_names(a, b) == [("1.png", "1.jpg"), ("1.png", "1.png"), ("2.png", "2.tif")]
    data = TrainingData(a, b, tiny("patchgan"), paired=True)
    for sides in (data.train, data.held):
        one, other = ([path.parent.name for path in side.images.paths] for side in sides)
        assert one == other


def test_pairs_in_folders_of_other_depth(tmp_path):
    a = colours(tmp_path / "a", ["scanner/1.png", "scanner/deep/2.png", "3.png"])
    b = colours(tmp_path / "b", ["1.png", "other/2.png", "4.png"])
    a = colours(a, ["alone.png"])
    (a / "3.png").unlink()
    assert paired_names(a, b) == [("1.png", "1.png"), ("2.png", "2.png")]


def test_pairs_by_key(tmp_path):
    folder = colours(tmp_path, [f"{n}.png" for n in range(4)])
    a = written(tmp_path / "a.csv", "path,key\n0.png,left\n1.png,right\n")
    b = written(tmp_path / "b.csv", "path,key\n2.png,right\n3.png,left\n")
    assert paired_names(a, b) == [("0.png", "3.png"), ("1.png", "2.png")]
    assert paired_names(a, folder / "a.csv") == [("0.png", "0.png"), ("1.png", "1.png")]


def test_pairs_that_are_not_unique(tmp_path):
    a, b = colours(tmp_path / "a", ["1.png", "1.jpg"]), colours(tmp_path / "b", ["1.png"])
    with pytest.raises(FileError, match=r"two images are called '1'.*column 'key'"):
        paired_names(a, b)
    with pytest.raises(FileError, match="two images are called '1'"):
        paired_names(b, a)
    c = colours(tmp_path / "c", ["x/1.png", "y/1.png"])
    with pytest.raises(FileError, match="two images are called '1'"):
        paired_names(c, b)


def test_no_pairs(tmp_path):
    a, b = colours(tmp_path / "a", ["one.png"]), colours(tmp_path / "b", ["two.png"])
    message = r"no image of the source has a partner.*one\.png.*two\.png.*'key' column"
    with pytest.raises(FileError, match=message):
        paired_names(a, b)


@pytest.mark.parametrize("size", [(40, 50), (80, 100), (120, 90)])
def test_pairs_are_cut_alike(size, tmp_path):
    for folder, shape in (("a", (40, 50)), ("b", size)):
        (tmp_path / folder).mkdir()
        for index in range(3):
            ramp(*shape).save(tmp_path / folder / f"{index}.png")
    config = tiny("patchgan", turn=True, zoom=2.0)
    data = TrainingData(tmp_path / "a", tmp_path / "b", config, paired=True)
    a, b = data.batch(0, range(16))
    assert (a - b).abs().max() < 0.05
    assert (a - a[:1]).abs().amax(dim=(1, 2, 3)).max() > 0.2, "not all crops are the same"
    one, two = data.judged()
    assert one.shape == two.shape == (len(data.held[0]), 3, 32, 32)
    assert (one - two).abs().max() < 0.05


# Classes


def test_balance_draws_classes_equally_often(tmp_path):
    folder = unbalanced(tmp_path / "a", many=30, few=2, some=8)
    for balance, low, high in ((True, 0.28, 0.38), (False, 0.0, 0.15)):
        data = TrainingData(folder, folder, tiny("cut", balance=balance, held_out=0.01))
        counts: Counter[str] = Counter()
        rng = torch.Generator().manual_seed(0)
        side = data.train[1]
        for _ in range(1000):
            counts[side.images.classes[side.draw(rng)]] += 1
        assert low < counts["few"] / 1000 < high
        assert sum(counts.values()) == 1000 and len(counts) == 3
    drawn = Counter(side.images.paths[side.draw(rng)] for _ in range(500))
    assert len(drawn) == len(side), "every image has its turn"


def warning(tmp_path: Path, source: dict[str, int], target: dict[str, int], **options) -> str | None:
    paired = options.pop("paired", False)
    folders = [unbalanced(tmp_path / name, **side) for name, side in (("s", source), ("t", target))]
    return TrainingData(*folders, tiny("cut", **options), paired=paired).warning


def test_a_warning_names_the_class_that_differs_most(tmp_path):
    told = warning(tmp_path, {"healthy": 10, "sick": 10, "other": 5}, {"healthy": 16, "sick": 2, "other": 7})
    assert told and "most apart: 'sick', 40%, 8%" in told and told.endswith("set balance.")


def test_a_warning_names_a_class_that_is_on_one_side_only(tmp_path):
    told = warning(tmp_path, {"healthy": 10, "sick": 10}, {"healthy": 10, "new": 10})
    assert told and told.endswith("leave out new, sick.")
    told = warning(tmp_path / "2", {"a": 30, "b": 30}, {"a": 30, "b": 30, "rare": 3}, balance=True)
    assert told and "'rare', 0%, 33%" in told, "balance draws it as often as the others"


@pytest.mark.parametrize(
    ("source", "target", "options"),
    [
        ({"a": 5, "b": 10}, {"a": 10, "b": 20}, {}),
        ({"a": 10, "b": 10}, {"a": 11, "b": 9}, {}),
        ({"a": 18, "b": 2}, {"a": 2, "b": 18}, {"balance": True}),
        ({"a": 18, "b": 2}, {"a": 20}, {}),
        ({"a": 18, "b": 2}, {"c": 10, "d": 10}, {}),
        ({"a": 18, "b": 2}, {"a": 18, "b": 2}, {"paired": True}),
    ],
)
def test_no_warning_where_classes_are_alike_or_cannot_be_compared(source, target, options, tmp_path):
    assert warning(tmp_path, source, target, **options) is None


def test_images_without_a_partner_are_told(tmp_path):
    told = warning(tmp_path, {"a": 18, "b": 2}, {"a": 18, "b": 20}, paired=True)
    assert told and "18 of the target have no partner" in told
