"""Ray: `apply_folder` on a cluster whose workers die, and `StyleBatch` in a dataset of Ray Data."""

import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import contract
import numpy as np
import pytest
import torch
import webdataset as wds
from shard_files import (
    check_once,
    contents,
    encoded,
    manifest_lines,
    write_images,
    write_parquet,
    write_tars,
)
from specimens import Spy, bank, bank_of, generator, photos, tiny_adain

from styleaug import ConfigError, FileError, ImageError, StyleAugError, StyleBank, WeightsError, apply_folder
from styleaug.offline import ray_cluster as cluster
from styleaug.transforms.ray import StyleBatch

# Under `uv run` Ray would start its workers by `uv run`, too; it reads this when it is imported.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")

# Ray warns of its own settings when it sets them.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context")


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """A cluster of two cores on this machine, shared by the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))  # workers import what is pickled from here
        with cluster.connected(None) as connection:
            yield connection


class Mortal(Spy):
    """Kills its process in its third call, once in all if at all, and whenever it gets a wide image."""

    def __init__(self, deaths: Path, *, once: bool = False):
        super().__init__()
        self.deaths, self.once = deaths, once
        deaths.mkdir()

    def forward(self, images: torch.Tensor, codes: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
        painted = super().forward(images, codes, strength)
        wide = images.shape[-1] > 40
        if wide or (self.once and len(self.seen) == 3 and not list(self.deaths.glob("first*"))):
            (self.deaths / f"{'wide' if wide else 'first'}-{os.getpid()}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return painted


class Broken(Spy):
    """Cannot be loaded in another process."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        raise ImportError("no such module")


def apply(source: Path, out: Path, network: Spy, **options: Any) -> Any:
    return apply_folder(source, out, bank=bank_of(Spy()), generator=network, strength=1.0, **options)


@pytest.mark.slow
def test_a_worker_that_dies_loses_nothing(ray, tmp_path):
    source = write_images(tmp_path / "in")
    apply(source, tmp_path / "local", Spy(), copies=2)
    reports: list[tuple[int, int]] = []
    report = lambda *numbers: reports.append(numbers)  # noqa: E731
    network = Mortal(tmp_path / "deaths", once=True)
    result = apply(source, tmp_path / "out", network, copies=2, engine="ray", workers=2, report=report)
    assert len(list((tmp_path / "deaths").iterdir())) == 1
    assert (result.written, result.skipped, result.failed) == (80, 0, [])
    assert contents(tmp_path / "out") == contents(tmp_path / "local"), "all pixels, and no part of a file"
    check_once(tmp_path / "out", 80)
    assert reports == [(done + 1, 80) for done in range(80)]
    assert apply(source, tmp_path / "out", Spy(), copies=2, engine="ray").skipped == 80


@pytest.mark.slow
def test_what_kills_every_worker_is_named_and_the_rest_goes_on(ray, monkeypatch, tmp_path):
    monkeypatch.setattr(cluster, "TRIES", 2)
    source = write_tars(tmp_path / "in", 3)
    apply(source, tmp_path / "local", Spy())
    with wds.TarWriter(str(source / "train-1b.tar")) as tar:
        tar.write({"__key__": "wide", "jpg": encoded(0, size=(50, 10))})
    result = apply(source, tmp_path / "out", Mortal(tmp_path / "deaths"), engine="ray", workers=2)
    assert len(list((tmp_path / "deaths").iterdir())) == 2
    assert result.written == 60
    ((path, reason),) = result.failed
    assert path == source / "train-1b.tar" and "workers died on it" in reason
    assert contents(tmp_path / "out") == contents(tmp_path / "local"), "all pixels, and no part of a file"
    check_once(tmp_path / "out", 3)


@pytest.mark.slow
def test_errors_of_workers_arrive_as_they_are(ray, tmp_path):
    source = write_images(tmp_path / "in")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/1").write_text("a file where a folder is needed")
    with pytest.raises(FileError, match="cannot write to") as caught:
        apply(source, tmp_path / "out", Spy(), engine="ray", workers=1)
    assert "Traceback" not in str(caught.value) and "\n" not in str(caught.value)
    assert 0 < len(list(manifest_lines(tmp_path / "out"))) < 40, "what was done before is noted"


@pytest.mark.slow
def test_actors_that_cannot_start(ray, tmp_path):
    with pytest.raises(StyleAugError, match="Ray gave up: ImportError: no such module") as caught:
        apply(write_images(tmp_path / "in"), tmp_path / "out", Broken(), engine="ray", workers=1)
    assert "Traceback" not in str(caught.value) and "ray::" not in str(caught.value)
    assert ray.is_initialized(), "the cluster was there before"


def test_our_errors_are_found_in_those_of_ray(ray):
    ours = WeightsError("damaged")
    for made in (
        ray.exceptions.RayTaskError("work", "Traceback ...", ours),
        ray.exceptions.RayTaskError("work", "Traceback ...", ours).as_instanceof_cause(),
    ):
        outer = ray.data.exceptions.RayDataUserCodeException("failed")
        outer.__cause__ = made
        assert cluster.own_error(made) is cluster.own_error(outer) is ours


def test_gpus_are_shared_by_actors():
    assert cluster.share({"CPU": 16}, 0, 1000) == (16, 0)
    assert cluster.share({"CPU": 16}, 3, 1000) == (3, 0)
    assert cluster.share({"CPU": 16}, 0, 5) == (5, 0)
    assert cluster.share({"CPU": 16, "GPU": 2}, 0, 1000) == (8, 1 / 4)
    assert cluster.share({"CPU": 16, "GPU": 2}, 2, 1000) == (2, 1)
    assert cluster.share({"CPU": 16, "GPU": 2}, 3, 1000) == (3, 1 / 2)


@pytest.mark.parametrize("address", ["localhost:1", "ray://localhost:1", "[::1]:1", "no.such.host.invalid:9"])
def test_no_cluster_where_one_was_said_to_be(address):
    with pytest.raises(ConfigError, match="there is no Ray cluster at"):
        cluster.check_listening(address)


def test_addresses_that_name_no_port_are_for_ray():
    for address in ("auto", "local", "ray://host"):
        cluster.check_listening(address)


@pytest.mark.slow
def test_the_driver_is_killed_and_called_again(ray, tmp_path):
    """By the command, on a cluster that is there, and then on one of its own."""
    source = write_parquet(tmp_path / "in", 8)
    styles = bank("reinhard-rgb").save(tmp_path / "bank.safetensors")
    apply_folder(source, tmp_path / "local", bank=styles)
    command = [sys.executable, "-m", "styleaug", "apply", source, "-o", tmp_path / "out", "--bank", styles]
    command = [*map(str, command), "--engine", "ray", "--workers", "1"]
    there = ["--address", ray.get_runtime_context().gcs_address]
    killed = subprocess.Popen([*command, *there], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not list(manifest_lines(tmp_path / "out")) and time.monotonic() < deadline:
        time.sleep(0.01)
    killed.kill()
    killed.communicate()
    done = len(list(manifest_lines(tmp_path / "out")))
    assert done > 0
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    counts = f"{160 - 20 * done} images written, {20 * done} already there"
    assert ended.stderr == f"{tmp_path / 'out'}: {counts}\n", "no word of Ray"
    check_once(tmp_path / "out", 8)
    assert contents(tmp_path / "out") == contents(tmp_path / "local")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ray_apply", "ray_data"])
def test_examples_run(ray, name, monkeypatch, capsys):
    """On the cluster that is there, in this process; the other examples have one of their own."""
    monkeypatch.setattr(ray, "init", lambda **options: None)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    runpy.run_path(str(Path(__file__).parents[1] / "examples" / f"{name}.py"), run_name="__main__")
    told = capsys.readouterr().out
    assert ("64 images written, 0 could not be read" if name == "ray_apply" else "64 their label") in told


def make(styles: StyleBank, **options: Any) -> Any:
    """Make a transform of tensors, as the contract has it, of batches of Ray Data."""

    def augment(images: torch.Tensor) -> torch.Tensor:
        seed = int(torch.randint(2**40, ()))
        arrays = images.movedim(-3, -1).numpy()
        single = images.ndim == 3
        batch = {"image": arrays[None] if single else arrays, "row": np.arange(1 if single else len(images))}
        styled = StyleBatch(styles, seed=seed, ids="row", **options)(batch)["image"]
        if styled is batch["image"]:
            return images
        return torch.from_numpy(styled[0] if single else styled).movedim(-1, -3)

    return augment


@pytest.mark.parametrize("check", contract.TRANSFORM_CHECKS, ids=lambda check: check.__name__)
def test_batches_keep_the_contract(check):
    check(make, bank(), generator("tiny-adain"))


def batch_of(count: int = 8, dtype: Any = np.uint8) -> dict[str, Any]:
    images = (photos(count).permute(0, 2, 3, 1) * 255).byte().numpy()
    images = images if dtype == np.uint8 else (images / 255).astype(dtype)
    images.flags.writeable = False  # as those of Ray, which lie in its store
    return {"image": images, "label": np.arange(count), "name": np.array([f"n{i}" for i in range(count)])}


def ragged(batch: dict[str, Any]) -> dict[str, Any]:
    images = np.empty(len(batch["label"]), dtype=object)
    for row, image in enumerate(batch["image"]):
        images[row] = image[: 24 - row % 3]
    return {**batch, "image": images}


SOME: dict[str, Any] = {"p": 0.5, "strength": (0.5, 1.0), "seed": 3}
"""Some rows are picked, no two of them alike."""


def style(**options: Any) -> StyleBatch:
    given: dict[str, Any] = {"generator": tiny_adain(), **SOME, **options}
    return StyleBatch(bank(), **given)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("ids", [None, "name", "label"])
@pytest.mark.parametrize("shape", [dict, ragged])
def test_a_row_is_styled_alike_in_every_batch(shape, ids, dtype):
    batch = shape(batch_of(12, dtype))
    whole = style(ids=ids)(batch)
    for name in ("label", "name"):
        assert whole[name] is batch[name]
    picked = [not np.array_equal(*pair) for pair in zip(whole["image"], batch["image"], strict=True)]
    assert 2 < sum(picked) < 11
    order = np.array([5, 0, 7, 2, 11])
    part = style(ids=ids)({name: column[order] for name, column in batch.items()})
    for row, image in zip(order, part["image"], strict=True):
        assert image.dtype == dtype and image.shape == batch["image"][row].shape
        # Batches of another size round otherwise.
        tolerance = 1 if dtype == np.uint8 else 1e-5
        assert np.abs(image.astype(float) - whole["image"][row].astype(float)).max() <= tolerance
    if shape is ragged:
        kept = [image is before for image, before in zip(whole["image"], batch["image"], strict=True)]
        assert kept == [not row for row in picked]


def test_seeds_of_batches():
    batch = {**batch_of(), "image": np.repeat(batch_of(1)["image"], 8, axis=0)}
    same = style(p=1.0)(batch)["image"]
    assert (same == same[:1]).all(), "equal pixels get one style"
    named = style(p=1.0, ids="name")(batch)["image"]
    assert len({image.tobytes() for image in named}) == 8
    assert not np.array_equal(style(p=1.0, ids="name", seed=4)(batch)["image"], named)
    torch.manual_seed(0)
    first = style(p=1.0, seed=None)(batch)["image"]
    torch.manual_seed(0)
    assert not np.array_equal(style(p=1.0, seed=None)(batch)["image"], first), (
        "actors have torch's seed alike"
    )


def test_grey_and_deep_images():
    grey = {"image": batch_of()["image"][..., 0]}
    assert style(p=1.0)(grey)["image"].shape == grey["image"].shape
    deep = {"image": batch_of()["image"].astype(np.uint16) * 257}
    assert style(p=1.0)(deep)["image"].dtype == np.uint16


def test_what_batches_refuse():
    with pytest.raises(ConfigError, match=r"bank=\"batch\" would let styles depend"):
        StyleBatch("batch")
    with pytest.raises(ConfigError, match="Ray Data"):
        style(splice="mask")
    with pytest.raises(ConfigError, match="no column 'img', only image, label, name"):
        style(column="img")(batch_of())
    with pytest.raises(ConfigError, match="no column 'id'"):
        style(ids="id")(batch_of())
    normalised = {"image": batch_of(dtype=np.float32)["image"] * 4 - 2}
    for batch in (normalised, {"image": np.array([b"jpeg", b"png"], dtype=object)}, {"image": np.arange(3)}):
        with pytest.raises(ImageError, match=r"In Ray Data: .* normalise in a map_batches after this one"):
            style(p=1.0)(batch)


@pytest.mark.slow
def test_batches_in_a_dataset(ray):
    rows = [{"image": image, "label": row} for row, image in enumerate(ragged(batch_of(12))["image"])]
    options = {"bank": bank(), "generator": tiny_adain(), **SOME, "ids": "label"}
    dataset = ray.data.from_items(rows, override_num_blocks=4).map_batches(
        StyleBatch,
        fn_constructor_kwargs=options,
        batch_size=3,
        compute=ray.data.ActorPoolStrategy(size=2),
    )
    with cluster.quiet_ray():
        styled = sorted(dataset.take_all(), key=lambda row: row["label"])
    expected = style(ids="label")(ragged(batch_of(12)))["image"]
    for row, image in zip(styled, expected, strict=True):
        assert np.abs(row["image"].astype(int) - image.astype(int)).max() <= 1
