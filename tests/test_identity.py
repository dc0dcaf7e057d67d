"""Whether a face is still the same person's: rates and cosines by hand, and files that cannot be used."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from specimens import astronaut
from torch import Tensor

from styleaug import ConfigError, FileError, MissingExtraError, Preserve, WeightsError
from styleaug.evaluation.identity import ALIGNED, EYES, align, evaluate_identity, open_onnx, verify
from styleaug.generators.base import AbstractGenerator

TINTS = {"ann": (1.0, 0.5, 0.5), "bob": (0.5, 1.0, 0.5), "cy": (0.5, 0.5, 1.0)}
SIDE = 128


class Turned(AbstractGenerator):
    """Gives each channel the next one's values."""

    name = "turned"
    code_length = 1
    has_prior = True

    def encode_style(self, images: Tensor) -> Tensor:
        """Read nothing."""
        return torch.zeros(len(images), 1)

    def forward(self, images: Tensor, codes: Tensor, strength: Tensor) -> Tensor:
        """Turn the channels."""
        return torch.lerp(images, images.roll(1, dims=1), strength[:, None, None, None])


def mean_colour(faces: Tensor) -> Tensor:
    assert faces.shape[1:] == (3, ALIGNED, ALIGNED) and faces.min() >= 0 and faces.max() <= 1
    return faces.mean(dim=(2, 3))


def put(folder: Path, pixels: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(folder / "1.png")


@pytest.fixture(scope="module")
def people(tmp_path_factory) -> Path:
    """Three people that differ by colour; what cannot be used lies beside them."""
    root = tmp_path_factory.mktemp("people")
    face = astronaut(SIDE)
    for name, tint in TINTS.items():
        put(root / "gallery" / name, (face * tint).astype(np.uint8))
        put(root / "probe" / name, (face[:, ::-1] * tint).astype(np.uint8))
    noise = np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
    put(root / "probe" / "bob" / "wall", noise)
    put(root / "probe" / "stranger", face)
    put(root / "gallery" / "ghost", noise)
    put(root / "probe", face)
    (root / "probe" / "cy" / "torn.png").write_bytes(b"no image")
    return root


# The rate


def test_a_rate_by_hand():
    scores = torch.tensor([[0.9, 0.6, 0.1], [0.5, 0.4, 0.3], [0.2, 0.7, 0.8], [0.0, 0.55, 0.45]])
    people = torch.tensor([0, 1, 2, 1])
    # Genuine: .9 .4 .8 .55. Impostors: .7 .6 .5 .45 .3 .2 .1 0.
    wanted = {0.0: (0.7, 2, 0), 0.125: (0.6, 2, 1), 0.25: (0.5, 3, 2), 0.45: (0.45, 3, 3), 0.5: (0.3, 4, 4)}
    for far, (threshold, hits, passed) in wanted.items():
        found = verify(scores, people, far)
        assert found.threshold == pytest.approx(threshold)
        assert (found.verified.hits, found.verified.count) == (hits, 4)
        assert (found.passed, found.impostors) == (passed, 8)
        assert found.same == pytest.approx((0.9 + 0.4 + 0.8 + 0.55) / 4)
        assert found.others == pytest.approx((0.7 + 0.6 + 0.5 + 0.45 + 0.3 + 0.2 + 0.1) / 8)


def test_equal_scores_do_not_pass():
    found = verify(torch.full((3, 2), 0.5), torch.tensor([0, 1, 0]), far=0.4)
    assert found.verified.hits == 0 and found.passed == 0


def test_no_share_is_lost_to_rounding():
    scores = torch.linspace(0, 1, 202).view(101, 2)
    assert verify(scores[:100], torch.zeros(100, dtype=torch.long), far=0.29).passed == 29  # .29 * 100 < 29


@given(st.integers(0, 2**31), st.integers(1, 12), st.integers(2, 5), st.floats(0, 0.99))
def test_at_most_the_share_passes_and_one_more_would_be_too_many(seed, count, people, far):
    rng = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 9, (count, people), generator=rng).float()
    who = torch.randint(people, (count,), generator=rng)
    found = verify(scores, who, far)
    own = torch.arange(people) == who[:, None]
    others, most = scores[~own], far * found.impostors + 1e-9
    assert int((others > found.threshold).sum()) == found.passed <= most
    assert int((others >= found.threshold).sum()) > most or not most
    assert found.verified.hits == int((scores[own] > found.threshold).sum())


@pytest.mark.parametrize("scores", [torch.zeros(0, 3), torch.zeros(3, 1), torch.full((2, 2), torch.nan)])
def test_scores_that_tell_nothing_are_refused(scores):
    with pytest.raises(ConfigError, match=r"two people|NaN"):
        verify(scores, torch.zeros(len(scores), dtype=torch.long))


# Alignment


@pytest.mark.parametrize("eyes", [[(30.0, 40.0), (60.0, 40.0)], [(50.0, 20.0), (80.0, 45.0)]])
def test_eyes_come_to_their_places(eyes):
    rows, columns = torch.arange(100.0)[:, None], torch.arange(120.0)
    spots = [torch.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 8) for x, y in eyes]
    image = torch.stack([*spots, torch.zeros(100, 120)])
    out = align(image[None], torch.tensor([eyes]))[0]
    assert out.shape == (3, ALIGNED, ALIGNED)
    for spot, (x, y) in zip(out, EYES, strict=False):
        mass = spot / spot.sum()
        axis = torch.arange(float(ALIGNED))
        assert float((mass.sum(0) * axis).sum()) == pytest.approx(x, abs=0.2)
        assert float((mass.sum(1) * axis).sum()) == pytest.approx(y, abs=0.2)


# From folder to figures


def test_identity_from_folders(people, tmp_path):
    result = evaluate_identity(
        people, generators=[Turned()], strengths=[1.0], network=mean_colour, size=SIDE, far=0.0,
        preserve=[None, Preserve(protect="faces")],
    )  # fmt: skip
    assert (result.people, result.gallery, result.probes) == (3, 3, 3)
    plain, jitter, turned, kept = result.rows
    assert plain.result.verified.hits == 3 and plain.itself == pytest.approx(1)
    assert jitter.result.verified.hits == 3 and 0.99 < jitter.itself < 1
    assert turned.result.verified.hits == 0, "ann has bob's colours, bob cy's, and cy ann's"
    assert turned.result.same < plain.result.same and turned.found.hits == 3
    assert kept.itself > 0.98 > turned.itself and kept.result.verified.hits == 3
    assert [row.title for row in result.rows[2:]] == ["turned, 1", "turned, 1, preserve faces"]
    assert {lost.file for lost in result.lost} == {f"{name}/1.png" for name in TINTS}
    told = [why for _, why in result.failed]
    for part, why in (
        ("probe/bob/wall/1.png", "no face was found"),
        ("probe/stranger", "no folder in the gallery"),
        ("gallery/ghost/1.png", "no face was found"),
        ("gallery/ghost", "no image has a face"),
        ("probe/1.png", "no person's folder"),
        ("probe/cy/torn.png", ""),
    ):
        assert any(str(people / part) in line and why in line for line in told), (part, told)
    assert len(told) == 6
    assert "verified %" in result.table() and "turned, 1" in result.table()
    with Image.open(result.save_sheet(tmp_path / "lost.png")) as sheet:
        assert sheet.width > 300
    assert '"far": 0.0' in result.save(tmp_path / "a.json").read_text()


def test_a_network_in_a_file_sees_the_same(people, tmp_path, command):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    from onnx import TensorProto, helper, save

    nodes = [helper.make_node("ReduceMean", ["faces"], ["vectors"], axes=[2, 3], keepdims=0)]
    given_as = helper.make_tensor_value_info("faces", TensorProto.FLOAT, ["B", 3, ALIGNED, ALIGNED])
    made_as = helper.make_tensor_value_info("vectors", TensorProto.FLOAT, ["B", 3])
    graph = helper.make_graph(nodes, "mean", [given_as], [made_as])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    save(model, tmp_path / "mean.onnx")
    told = command("evaluate", "labels", people, "--identity", tmp_path / "mean.onnx", "--generator",
                   "tone-curves", "--strength", 0.5, "--size", SIDE)  # fmt: skip
    assert "network mean.onnx" in told.stdout and "tone-curves, 0.5" in told.stdout
    assert "6 files skipped" in told.stderr and "no face was found" in told.stderr
    faces = torch.rand(2, 3, ALIGNED, ALIGNED)
    assert torch.allclose(open_onnx(tmp_path / "mean.onnx")(faces), mean_colour(faces) * 2 - 1, atol=1e-5)
    (tmp_path / "bad.onnx").write_bytes(b"no network")
    with pytest.raises(WeightsError, match="ONNX Runtime cannot read it"):
        evaluate_identity(people, network=tmp_path / "bad.onnx")


@pytest.mark.slow
def test_dlib_knows_people_again(data):
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        for name in ("c02", "c05", "c07", "c16"):
            files = sorted((data / "faces" / "caltech" / name).iterdir())
            for part, chosen in (("gallery", files[:2]), ("probe", files[-2:])):
                (Path(folder) / part / name).mkdir(parents=True)
                for path in chosen:
                    (Path(folder) / part / name / path.name).symlink_to(path)
        result = evaluate_identity(folder, generators=["tone-curves"], strengths=[1.0], far=0.0)
    assert result.rows[0].result.verified.share == 1 and result.probes >= 7
    assert result.rows[0].result.same > result.rows[0].result.others + 0.05


# What is refused


@pytest.mark.parametrize(
    ("gallery", "probe", "error", "told"),
    [
        (["ann"], ["bob"], ConfigError, "share no person: ann and bob"),
        (["ann"], ["ann"], ConfigError, "face of 1 person"),
        (["ann"], [], FileError, "has no folder probe"),
    ],
)
def test_folders_that_give_no_pairs(tmp_path, gallery, probe, error, told):
    for part, names in (("gallery", gallery), ("probe", probe)):
        for name in names:
            put(tmp_path / part / name, astronaut(SIDE))
    with pytest.raises(error, match=told):
        evaluate_identity(tmp_path, network=mean_colour, size=SIDE)


def test_probes_without_faces_are_an_error(tmp_path):
    put(tmp_path / "gallery" / "ann", astronaut(SIDE))
    put(tmp_path / "probe" / "ann", np.zeros((SIDE, SIDE, 3), np.uint8))
    with pytest.raises(FileError, match="no face was found on any probe"):
        evaluate_identity(tmp_path, network=mean_colour, size=SIDE)


@pytest.mark.parametrize("bad", [{"far": 1.0}, {"strengths": [0.0]}, {"size": 8}, {"most": 0}])
def test_numbers_out_of_range(people, bad):
    with pytest.raises(ConfigError):
        evaluate_identity(people, network=mean_colour, **bad)


def test_a_missing_library_is_named(people, monkeypatch):
    monkeypatch.setitem(sys.modules, "dlib", None)
    with pytest.raises(MissingExtraError, match=r"styleaug\[faces\]"):
        evaluate_identity(people)
    monkeypatch.undo()
    monkeypatch.setattr("styleaug.evaluation.identity.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="face_recognition_models"):
        evaluate_identity(people)


def test_the_shell_explains_slips(people, command):
    told = command("evaluate", "labels", "--identity", people, code=2).stderr
    assert "Write IMAGES before --identity" in " ".join(told.split())
    told = command("evaluate", "labels", people, "--identity", "--classifier", "squeezenet", code=1).stderr
    assert "--classifier does not go with --identity" in told
    told = command("evaluate", "labels", people, "--identity", "away.onnx", code=1).stderr
    assert "there is no file away.onnx" in told
