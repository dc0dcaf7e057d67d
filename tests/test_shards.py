"""Parquet files and WebDataset shards: what is in them stays, and hostile ones do no harm."""

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import ExifTags, Image
from shard_files import (
    IMAGE,
    check_once,
    contents,
    encoded,
    invert,
    manifest_lines,
    pixels,
    read_tar,
    write_parquet,
    write_tars,
)

from styleaug.offline import copies


def check_inverted(styled: bytes, source: bytes) -> None:
    """A styled image has the source's size, mode and format, and the look of what `invert` does."""
    with Image.open(io.BytesIO(styled)) as image, Image.open(io.BytesIO(source)) as before:
        assert (image.format, image.mode, image.size) == (before.format, before.mode, before.size)
    exact = 0 if image.format == "PNG" else 12
    difference = pixels(styled).astype(int) - (255 - pixels(source).astype(int))
    assert np.abs(difference).mean() <= exact


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("copies", [1, 2])
def test_parquet_keeps_labels_rows_and_schema(plain, copies, tmp_path):
    source = write_parquet(tmp_path / "in", plain=plain)
    invert(source, tmp_path / "out", copies=copies)
    for path in source.iterdir():
        before, after = pq.read_table(path), pq.read_table(tmp_path / "out" / path.name)
        assert after.schema.equals(before.schema, check_metadata=True)
        rows = before.take([row for row in range(before.num_rows) for _ in range(copies)])
        assert after.drop_columns("image").equals(rows.drop_columns("image"))
        for styled, image in zip(after["image"].to_pylist(), rows["image"].to_pylist(), strict=True):
            if not plain:
                assert styled["path"] == image["path"]
                styled, image = styled["bytes"], image["bytes"]
            check_inverted(styled, image)
        groups = [pq.ParquetFile(p).metadata.num_row_groups for p in (path, tmp_path / "out" / path.name)]
        assert groups == [3, 3]


@pytest.mark.slow
@pytest.mark.parametrize("copies", [1, 2])
def test_tars_keep_labels_masks_and_order(copies, tmp_path):
    source = write_tars(tmp_path / "in")
    invert(source, tmp_path / "out", copies=copies)
    for path in source.iterdir():
        rows = [
            (sample, f"-{copy}" if copies > 1 else "")
            for sample in read_tar(path)
            for copy in range(1, copies + 1)
        ]
        for after, (before, suffix) in zip(read_tar(tmp_path / "out" / path.name), rows, strict=True):
            assert list(after) == list(before)
            assert after["__key__"] == before["__key__"] + suffix
            kind = "jpg" if "jpg" in before else "png"
            check_inverted(after[kind], before[kind])
            for label in ("cls", "mask.png", "json"):
                assert after[label] == before[label]


@pytest.mark.slow
def test_one_shard_or_one_member_can_be_asked_for(tmp_path):
    source = write_tars(tmp_path / "in")
    invert(source, tmp_path / "out")
    result = invert(source / "train-1.tar", tmp_path / "one")
    assert result.written == 20
    assert contents(tmp_path / "one") == {"train-1.tar": contents(tmp_path / "out")["train-1.tar"]}, (
        "styles depend on the names alone"
    )
    invert(source / "train-0.tar", tmp_path / "masks", column="mask.png")
    for after, before in zip(
        read_tar(tmp_path / "masks/train-0.tar"), read_tar(source / "train-0.tar"), strict=True
    ):
        check_inverted(after["mask.png"], before["mask.png"])
        kind = "jpg" if "jpg" in before else "png"
        assert after[kind] == before[kind]
    missing = invert(source / "train-0.tar", tmp_path / "none", column="jpg")
    assert missing.written == 10 and len(missing.failed) == 10
    assert "no image .jpg, only .cls .json .mask.png .png" in missing.failed[0][1]


def write_tar(path: Path, members: list[tuple[tarfile.TarInfo | str, bytes]]) -> Path:
    """Write a tar file of any members."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for info, content in members:
            info = tarfile.TarInfo(info) if isinstance(info, str) else info
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def test_hostile_members_are_named_and_left_out(tmp_path):
    source = tmp_path / "in"
    (tmp_path / "secret.jpg").write_bytes(encoded(0))
    bad = {
        "/tmp/evil-absolute.jpg": (tarfile.REGTYPE, "points out of the archive"),
        "../evil.jpg": (tarfile.REGTYPE, "points out of the archive"),
        "a/../../evil.jpg": (tarfile.REGTYPE, "points out of the archive"),
        "soft.jpg": (tarfile.SYMTYPE, "is a link"),
        "hard.jpg": (tarfile.LNKTYPE, "is a link"),
        "null.jpg": (tarfile.CHRTYPE, "a device"),
        "pipe.jpg": (tarfile.FIFOTYPE, "a device"),
    }
    members = [("good.jpg", encoded(0)), ("good.cls", b"1"), ("README", b"hello"), ("__meta__/a.json", b"{}")]
    for name, (kind, _) in bad.items():
        regular = kind == tarfile.REGTYPE
        members.append((special(name, kind, str(tmp_path / "secret.jpg")), encoded(1) if regular else b""))
        members.append((f"{name.split('.jpg')[0]}.cls", b"2"))
    write_tar(
        source / "a.tar",
        [(special("folder.d", tarfile.DIRTYPE), b""), *members, ("last.png", encoded(2, "PNG"))],
    )
    result = invert(source, tmp_path / "out")
    assert result.written == 2
    reasons = [reason for _, reason in result.failed]
    assert len(reasons) == len(bad)
    for (name, (_, message)), reason in zip(bad.items(), reasons, strict=True):
        assert f"a.tar: {name.split('.jpg')[0]}: " in reason and message in reason
    with tarfile.open(tmp_path / "out/a.tar") as tar:
        assert tar.getnames() == ["good.jpg", "good.cls", "README", "__meta__/a.json", "last.png"]
        assert all(member.isreg() for member in tar)
    assert not Path("/tmp/evil-absolute.jpg").exists() and not list(tmp_path.glob("evil*"))
    again = invert(source, tmp_path / "out")
    assert again.skipped == 2 and again.failed == result.failed, "they are told of again"


def test_sizes_are_bounded(monkeypatch, tmp_path):
    monkeypatch.setattr("styleaug.io.shards.MAX_SAMPLE", 10_000)
    path = write_tar(
        tmp_path / "in/a.tar", [("a.jpg", encoded(0)), ("b.jpg", encoded(1)), ("b.bin", bytes(10_000))]
    )
    result = invert(path, tmp_path / "out")
    assert [sample["__key__"] for sample in read_tar(tmp_path / "out/a.tar")] == ["a"]
    assert "a.tar: b: it has more than 10,000 bytes" in result.failed[0][1]


def test_a_sparse_member_is_refused(tmp_path):
    info = tarfile.TarInfo("a.jpg")
    info.pax_headers = {"GNU.sparse.map": "0,1", "GNU.sparse.size": "600", "GNU.sparse.name": "a.jpg"}
    write_tar(tmp_path / "in/a.tar", [(info, b"x"), ("b.jpg", encoded(0))])
    result = invert(tmp_path / "in", tmp_path / "out")
    assert result.written == 1 and "or a sparse file" in result.failed[0][1]


def damage_tar(content: bytes) -> dict[str, bytes]:
    """Ways in which a shard may be damaged."""
    middle = content.index(b"0010.jpg")
    huge = tarfile.TarInfo("a.jpg")
    huge.size = 2**40
    return {
        "empty": b"",
        "text": b"hello" * 1000,
        "zip": b"PK\x03\x04" + bytes(600),
        "cut in a file": content[: middle + 700],
        "cut in a header": content[: middle + 100],
        "cut between files": content[:middle],
        "bad header": content[:middle] + b"\xff" * 512 + content[middle + 512 :],
        "huge": huge.tobuf() + bytes(1024),
        "huge long name": special("././@LongLink", tarfile.GNUTYPE_LONGNAME).tobuf()[:124]
        + b"77777777777\0"
        + content[136:],
    }


def test_damaged_shards_are_named_and_the_rest_goes_on(tmp_path):
    source = tmp_path / "in"
    good = write_tar(source / "good.tar", [(f"{index:04}.jpg", encoded(index)) for index in range(20)])
    damaged = damage_tar(good.read_bytes())
    for name, broken in damaged.items():
        (source / f"{name}.tar").write_bytes(broken)
    result = invert(source, tmp_path / "out")
    assert result.written == 20
    assert sorted(path.stem for path, _ in result.failed) == sorted(damaged)
    for path, reason in result.failed:
        assert str(path) in reason and "\n" not in reason
    check_once(tmp_path / "out", 1)
    tables = write_parquet(tmp_path / "tables", 1)
    table = (tables / "train-0.parquet").read_bytes()
    noise = np.random.default_rng(0).integers(0, 255, len(table) - 900, dtype=np.uint8).tobytes()
    broken = {
        "empty": b"",
        "text": b"hello" * 99,
        "cut": table[:-50],
        "noise": b"PAR1" + noise + table[4 + len(noise) :],
    }
    for name, part in broken.items():
        (tables / f"{name}.parquet").write_bytes(part)
    pq.write_table(pa.table({"other": [1]}), tables / "column.parquet")
    result = invert(tables, tmp_path / "styled")
    assert result.written == 20
    assert sorted(path.stem for path, _ in result.failed) == sorted([*broken, "column"])
    check_once(tmp_path / "styled", 1)


def test_damaged_images_are_named_and_the_rest_goes_on(tmp_path):
    good = [encoded(0), encoded(1, "PNG")]
    bad = {
        "cut": (good[0][:300], "cannot be read"),
        "text": (b"hello", "not a JPEG, PNG"),
        "ico": (encoded(0, "ICO"), "not a JPEG, PNG"),
        "none": (b"", "no image"),
    }
    write_tar(
        tmp_path / "tars/a.tar",
        [
            ("0.jpg", good[0]),
            *((f"{name}.jpg", image) for name, (image, _) in bad.items()),
            ("1.png", good[1]),
            ("2.cls", b"2"),
        ],
    )
    rows = [*good[:1], *(image or None for image, _ in bad.values()), *good[1:], None]
    images = [None if row is None else {"bytes": row, "path": None} for row in rows]
    images[-1] = {"bytes": None, "path": "elsewhere.jpg"}
    (tmp_path / "tables").mkdir()
    table = pa.table({"image": pa.array(images, IMAGE), "label": list(range(7))})
    pq.write_table(table, tmp_path / "tables/a.parquet")
    for kind, keys in (("tars", [*bad, "2"]), ("tables", [f"row {row}" for row in (1, 2, 3, 4, 6)])):
        result = invert(tmp_path / kind, tmp_path / f"{kind}-out")
        assert result.written == 2
        messages = [message for _, message in bad.values()] + ["no image"]
        for (path, reason), key, message in zip(result.failed, keys, messages, strict=True):
            assert reason.startswith(f"{path}: {key}: ") and (message in reason or "not a JPEG" in reason), (
                reason
            )
        (line,) = manifest_lines(tmp_path / f"{kind}-out")
        assert [image["key"] for image in line["images"]] == (
            ["0", "1"] if kind == "tars" else ["row 0", "row 5"]
        )
    assert pq.read_table(tmp_path / "tables-out/a.parquet")["label"].to_pylist() == [0, 5]
    assert [sample["__key__"] for sample in read_tar(tmp_path / "tars-out/a.tar")] == ["0", "1"]


def test_all_modes_and_formats_are_kept(tmp_path):
    kinds = [
        ("JPEG", "L"),
        ("PNG", "RGBA"),
        ("PNG", "LA"),
        ("PNG", "L"),
        ("WEBP", "RGB"),
        ("TIFF", "RGB"),
        ("BMP", "RGB"),
    ]
    images = [encoded(index, kind, mode=mode) for index, (kind, mode) in enumerate(kinds)]
    deep = io.BytesIO()
    Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30) * 100).save(deep, "PNG")
    (tmp_path / "in").mkdir()
    pq.write_table(
        pa.table({"image": pa.array([*images, deep.getvalue()], pa.large_binary())}),
        tmp_path / "in/a.parquet",
    )
    result = invert(tmp_path / "in", tmp_path / "out")
    assert result.written == 8, result.failed
    styled = pq.read_table(tmp_path / "out/a.parquet")["image"]
    assert styled.type == pa.large_binary()
    for (kind, mode), after in zip([*kinds, ("PNG", "I;16")], styled.to_pylist(), strict=True):
        with Image.open(io.BytesIO(after)) as image:
            assert (image.format, image.mode) == (kind, mode)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_images_in_shards_are_not_turned(kind, tmp_path):
    """Boxes beside them may be for the pixels as they are stored, or as EXIF turns them; both stay true."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation], exif[ExifTags.Base.Make] = 6, "camera"
    turned = io.BytesIO()
    Image.open(io.BytesIO(encoded(0, "PNG"))).save(turned, kind, exif=exif)
    write_tar(tmp_path / "in/a.tar", [("a.img", turned.getvalue()), ("b.img", encoded(0, kind))])
    assert invert(tmp_path / "in", tmp_path / "out", column="img").written == 2
    after, plain = read_tar(tmp_path / "out/a.tar")
    check_inverted(after["img"], turned.getvalue())
    with Image.open(io.BytesIO(after["img"])) as image:
        assert image.size == (24, 18)
        tags = image.getexif()
        kept = {tag: tags[tag] for tag in (ExifTags.Base.Orientation, ExifTags.Base.Make)}
        assert kept == {ExifTags.Base.Orientation: 6, ExifTags.Base.Make: "camera"}
    with Image.open(io.BytesIO(plain["img"])) as image:
        assert ExifTags.Base.Orientation not in image.getexif()


def test_a_dataset_of_hugging_face_keeps_its_features(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=["cat", "dog"]),
            "id": datasets.Value("int32"),
        }
    )
    rows = {
        "image": [{"bytes": encoded(i), "path": None} for i in range(12)],
        "label": [0, 1] * 6,
        "id": list(range(12)),
    }
    (tmp_path / "in").mkdir()
    before = datasets.Dataset.from_dict(rows, features=features)
    before.to_parquet(tmp_path / "in/train-00000-of-00001.parquet")
    assert invert(tmp_path / "in", tmp_path / "out", copies=2).written == 24
    path = str(tmp_path / "out/train-00000-of-00001.parquet")
    after = datasets.Dataset.from_parquet(path, cache_dir=str(tmp_path / "cache"))
    assert after.features == before.features
    assert after["label"] == [label for label in rows["label"] for _ in range(2)]
    assert after["id"] == [row for row in rows["id"] for _ in range(2)]
    image = np.asarray(after[2]["image"]).astype(int)
    assert np.abs(image - (255 - np.asarray(before[1]["image"]).astype(int))).mean() < 12


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["parquet", "webdataset"])
def test_few_samples_are_in_memory(kind, monkeypatch, tmp_path):
    write = write_parquet if kind == "parquet" else write_tars
    source = write(tmp_path / "in", 1, 300)
    monkeypatch.setattr(copies, "_WINDOW", 8)
    monkeypatch.setattr("styleaug.io.shards.FLUSH_BYTES", 4_000)
    held, most = 0, 0
    decode, encode = copies.decode_image, copies.encode_image

    def decode_counted(content: bytes) -> Any:
        nonlocal held, most
        held += 1
        most = max(most, held)
        return decode(content)

    def encode_counted(*args: Any) -> bytes:
        nonlocal held
        held -= 1
        return encode(*args)

    monkeypatch.setattr(copies, "decode_image", decode_counted)
    monkeypatch.setattr(copies, "encode_image", encode_counted)
    assert invert(source, tmp_path / "out").written == 300
    assert most == 8


def test_windows_are_cut_by_weight():
    assert list(copies.windows([1] * 70, lambda item: 0)) == [[1] * 32, [1] * 32, [1] * 6]
    heavy = copies.WINDOW_BYTES
    assert list(copies.windows([1, heavy, 3, 4], lambda item: item)) == [[1, heavy], [3, 4]]
