"""Files are whole or not there, never replace what is no file, and have the rights of any new file."""

import errno
import os
import socket
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from shard_files import invert, write_images
from specimens import bank

from styleaug import FileError, StyleBank
from styleaug.io import atomic as atomic_module
from styleaug.io.atomic import OutputError, atomic
from styleaug.io.files import save_image


def test_the_target_is_as_before_or_new(tmp_path):
    target = tmp_path / "deep/er/a.txt"
    with atomic(target) as part:
        part.write_text("one")
        assert not target.exists() and part.parent == target.parent and part.suffix == ".txt"
    assert target.read_text() == "one"
    with pytest.raises(KeyError), atomic(target) as part:
        part.write_text("two")
        raise KeyError
    assert target.read_text() == "one" and list(target.parent.iterdir()) == [target]


def folder(path: Path) -> None:
    path.mkdir()


def listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def device(path: Path) -> None:
    try:
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 3))  # as /dev/null
    except PermissionError:
        pytest.skip("only root makes devices")


def link_to_null(path: Path) -> None:
    path.symlink_to("/dev/null")


def ring(path: Path) -> None:
    path.symlink_to(path.name)


SPECIAL: dict[str, Callable[[Path], None]] = {
    "a folder": folder, "a pipe": os.mkfifo, "a socket": listening, "a device": device,
    "a device ": link_to_null, "symbolic links": ring,
}  # fmt: skip


@pytest.mark.parametrize("kind", SPECIAL)
def test_what_is_no_file_is_never_replaced(kind, command, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # names of sockets are short
    target = tmp_path / "target.png"
    SPECIAL[kind](Path(target.name))
    before = os.lstat(target)
    with pytest.raises(FileError, match=kind.strip()), atomic(target) as part:
        part.write_text("x")
    with pytest.raises(FileError, match=kind.strip()):
        bank("reinhard-rgb").save(target)
    styles = bank("reinhard-rgb").save(tmp_path / "b.safetensors")
    source = write_images(tmp_path / "in", 6)
    for words in (
        ("fit-style", source, "-o", target),
        ("preview", "-o", target),
        ("bank", "sample", styles, "-n", 1, "-o", target),
        ("bank", "merge", styles, styles, "-o", target),
        ("fit-style", source, "-o", "new.safetensors", "--report", target),
    ):
        told = command(*words, code=1).stderr
        assert told.startswith("Error: ") and kind.strip() in told and told.count("\n") == 1
    after = os.lstat(target)
    assert (after.st_ino, after.st_mode, after.st_mtime_ns) == (
        before.st_ino,
        before.st_mode,
        before.st_mtime_ns,
    )
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")], "not even a part"
    assert not (tmp_path / "new.safetensors").exists(), "refused before the work, not after it"


def test_the_null_device_stays_one(command, tmp_path):
    source = write_images(tmp_path / "in", 6)
    before = os.stat("/dev/null")
    told = command("fit-style", source, "-o", "/dev/null", code=1).stderr
    assert "/dev/null is a device, not a file" in told
    after = os.stat("/dev/null")
    assert stat.S_ISCHR(after.st_mode) and (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)
    assert not [name for name in os.listdir("/dev") if ".part" in name or "codes" in name]


def test_links_are_written_through(tmp_path):
    (tmp_path / "store").mkdir()
    real = tmp_path / "store/v1.safetensors"
    bank("reinhard-rgb", 2).save(real)
    (tmp_path / "latest").symlink_to("store/v1.safetensors")
    (tmp_path / "alias").symlink_to("latest")
    bank("reinhard-rgb", 5).save(tmp_path / "alias")
    assert len(StyleBank.load(real)) == 5
    assert (tmp_path / "alias").is_symlink() and (tmp_path / "latest").is_symlink()
    (tmp_path / "dangling").symlink_to("store/new.safetensors")
    bank("reinhard-rgb", 3).save(tmp_path / "dangling")
    assert len(StyleBank.load(tmp_path / "store/new.safetensors")) == 3
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == [
        "new.safetensors",
        "v1.safetensors",
    ]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_new_files_have_the_usual_rights(umask, monkeypatch, tmp_path):
    old = os.umask(umask)
    try:
        monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("it is of the whole process"))
        bank("reinhard-rgb").save(tmp_path / "a.safetensors")
        invert(write_images(tmp_path / "in", 2), tmp_path / "out")
        for path in (tmp_path / "a.safetensors", *(tmp_path / "out").rglob("*.*")):
            assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask, path
    finally:
        monkeypatch.undo()
        os.umask(old)


def test_files_of_other_threads_keep_their_rights(tmp_path):
    old = os.umask(0o077)
    try:
        stop = threading.Event()
        modes = set()

        def other() -> None:
            while not stop.is_set():
                (tmp_path / "private").touch()
                modes.add(stat.S_IMODE((tmp_path / "private").stat().st_mode))
                (tmp_path / "private").unlink()

        thread = threading.Thread(target=other)
        thread.start()
        for _ in range(300):
            with atomic(tmp_path / "a", durable=False) as part:
                part.write_text("x")
        stop.set()
        thread.join()
        assert modes == {0o600}
    finally:
        os.umask(old)


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "a\ud800" * 200])
def test_names_that_no_file_can_have(name, tmp_path):
    with (
        pytest.raises(FileError, match=r"cannot write|no path") as caught,
        atomic(tmp_path / name) as part,
    ):
        part.write_text("x")
    assert not isinstance(caught.value, OutputError) and len(str(caught.value)) < 500


@pytest.mark.parametrize("name", ["x" * 250, "é" * 120, "日" * 80, "a." + "1" * 240, "." + "b" * 250, "a.b"])
def test_names_that_files_just_can_have(name, tmp_path):
    with atomic(tmp_path / name) as part:
        part.write_text("x")
    assert (tmp_path / name).read_text() == "x" and len(list(tmp_path.iterdir())) == 1


def test_what_is_to_last_is_on_the_disk_before_it_has_its_name(monkeypatch, tmp_path):
    calls: list[str] = []
    real_sync, real_replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda number: (calls.append("fsync"), real_sync(number)))
    monkeypatch.setattr(os, "replace", lambda *paths: (calls.append("replace"), real_replace(*paths)))
    bank("reinhard-rgb").save(tmp_path / "a.safetensors")
    assert calls == ["fsync", "replace", "fsync"], "the file, its name, the folder"
    calls.clear()
    invert(write_images(tmp_path / "in", 4), tmp_path / "out")
    assert calls == ["replace"] * 4 + ["fsync"], "images are known by their stamps; the manifest is to last"


@pytest.mark.parametrize("number", [errno.EACCES, errno.ENOSPC, errno.EROFS, errno.ENAMETOOLONG])
@pytest.mark.parametrize("step", ["new_part", "synchronise"])
def test_what_concerns_all_files_is_told_from_what_concerns_one(step, number, monkeypatch, tmp_path):
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(atomic_module, step, fail)
    with pytest.raises(FileError, match=os.strerror(number)) as caught, atomic(tmp_path / "a") as part:
        part.write_text("x")
    assert isinstance(caught.value, OutputError) == (number != errno.ENAMETOOLONG)
    assert not list(tmp_path.iterdir())


def test_a_picture_that_cannot_be_encoded_leaves_the_old_one(tmp_path):
    from specimens import pil

    save_image(pil("RGB"), tmp_path / "a.jpg")
    before = (tmp_path / "a.jpg").read_bytes()
    with pytest.raises(FileError, match="JPEG cannot hold transparency"):
        save_image(pil("RGBA"), tmp_path / "a.jpg")
    assert (tmp_path / "a.jpg").read_bytes() == before and len(list(tmp_path.iterdir())) == 1
