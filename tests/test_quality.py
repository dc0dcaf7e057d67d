"""`evaluate quality`: which pairs are made, what is measured of them, and what is said and drawn."""

import json
import math
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file
from specimens import Spy, bank, generator, photos, seeded
from torch import Tensor
from torchvision.models import squeezenet1_1
from workshop import loss_networks, write

from styleaug import BankError, ConfigError, DeviceError, FileError, WeightsError
from styleaug.evaluation import quality as judging
from styleaug.evaluation.pairs import Pairs, Squares, match, read_square
from styleaug.evaluation.quality import (
    MEASURES,
    SHEET_TILE,
    UNCHANGED,
    Method,
    Quality,
    Scores,
    draw_pairs,
    evaluate_quality,
)
from styleaug.perceptual import LPIPS, check_files, load_networks
from styleaug.weights import save_generator

CPU = torch.device("cpu")
SMALL = {"size": 64, "device": "cpu"}
SET_MEASURES = {"fid", "art_fid", "diversity"}
"""Of all pairs together, and of none by itself."""


@pytest.fixture(scope="module")
def networks(tmp_path_factory) -> Path:
    """Write networks with random weights, as the real ones are laid out."""
    folder = loss_networks(tmp_path_factory.mktemp("networks"))
    save_file(seeded(squeezenet1_1, 0).state_dict(), folder / "squeezenet1_1_imagenet.safetensors")
    widths = (64, 128, 256, 384, 384, 512, 512)
    weights = seeded(lambda: [torch.rand(1, width, 1, 1) for width in widths], 1)
    linear = {f"lin{index}.model.1.weight": weight for index, weight in enumerate(weights)}
    save_file(linear, folder / "lpips_squeeze_linear.safetensors")
    return folder


@pytest.fixture(scope="module")
def sides(tmp_path_factory) -> tuple[Path, Path]:
    """Write five contents and three styles."""
    folder = tmp_path_factory.mktemp("sides")
    pictures = photos(8, 72, 80)
    return write(folder / "content", pictures[:5]), write(folder / "style", 1 - pictures[5:])


@pytest.fixture(scope="module")
def found(networks, sides) -> Quality:
    """Measure two generators on nine pairs."""
    both = [generator("tiny-adain"), "reinhard-rgb"]
    return evaluate_quality(both, *sides, pairs=9, weights=networks, **SMALL)


# What is measured


def test_content_unchanged_is_the_reference(found):
    scores = found.scores[UNCHANGED]
    assert list(found.scores) == [UNCHANGED, "adain", "reinhard-rgb"]
    assert scores.means["lpips"] == scores.means["content_loss"] == scores.means["diversity"] == 0
    for name in ("ssim", "edges_sobel", "edges_kirsch"):
        assert scores.means[name] == pytest.approx(1, abs=1e-5)
    assert scores.means["style_loss"] > 0.01 and scores.means["art_fid"] == 1 + scores.means["fid"]


def test_every_measure_is_there_for_every_pair(found):
    known = {name for measures in MEASURES.values() for name in measures}
    for scores in found.scores.values():
        assert scores.means.keys() == known
        assert scores.rows.keys() == known - SET_MEASURES
        assert all(len(values) == 9 for values in scores.rows.values())
        assert all(math.isfinite(value) for value in scores.means.values())
        for name, values in scores.rows.items():
            assert scores.means[name] == pytest.approx(np.mean(values), rel=1e-6)
            wanted = np.std(values, ddof=1) / 3
            assert scores.errors[name] == pytest.approx(wanted, rel=1e-6, abs=1e-9)
    colour, unchanged = found.scores["reinhard-rgb"], found.scores[UNCHANGED]
    assert colour.means["palette"] > unchanged.means["palette"] + 0.05, "it takes the style's colours"
    assert 0 < colour.means["lpips"] < found.scores["adain"].means["lpips"]
    assert colour.means["diversity"] > 0


def test_a_pair_scores_the_same_in_any_company(found, networks, sides, monkeypatch):
    monkeypatch.setattr(judging, "_BATCH", 2)
    alone = evaluate_quality("reinhard-rgb", *sides, pairs=9, weights=networks, **SMALL)
    assert alone.pairs == found.pairs
    for name, values in alone.scores["reinhard-rgb"].rows.items():
        assert values == pytest.approx(found.scores["reinhard-rgb"].rows[name], rel=2e-3, abs=1e-4), name


def test_strength_zero_is_content_unchanged(networks, sides):
    scores = evaluate_quality(
        generator("tiny-adain"), *sides, pairs=4, strength=0, weights=networks, **SMALL
    ).scores
    for name, values in scores["adain"].rows.items():
        assert values == pytest.approx(scores[UNCHANGED].rows[name], rel=1e-4, abs=1e-4), name


def test_equal_sets_have_no_frechet_distance(networks, sides):
    scores = evaluate_quality("reinhard-rgb", sides[0], sides[0], weights=networks, pairs=5, **SMALL).scores
    assert abs(scores[UNCHANGED].means["fid"]) < 1e-4 * scores["reinhard-rgb"].means["fid"]


def test_no_style_is_encoded_twice(networks, sides):
    spy = Spy()
    evaluate_quality(spy, *sides, pairs=9, weights=networks, **SMALL)
    assert spy.encoded == 3
    # Nine pairs, and five contents in three styles each.
    assert spy.rows == 9 + 5 * 3


def test_a_translator_has_no_diversity(networks, sides):
    scores = evaluate_quality(generator("tiny-cyclegan"), *sides, pairs=3, weights=networks, **SMALL).scores[
        "cyclegan"
    ]
    assert scores.means["diversity"] == 0 and scores.means["style_loss"] > 0


def test_one_pair_has_no_spread(networks, sides):
    quality = evaluate_quality("reinhard-rgb", *sides, pairs=1, weights=networks, **SMALL)
    scores = quality.scores["reinhard-rgb"]
    assert not scores.means.keys() & SET_MEASURES and not scores.errors
    assert "FID" not in quality.table()
    json.dumps(quality.to_dict(), allow_nan=False)


def test_codes_of_a_bank_instead_of_styles(networks, sides):
    mine = generator("tiny-adain")
    quality = evaluate_quality(mine, sides[0], bank=bank(), pairs=7, weights=networks, **SMALL)
    assert quality.pairs[6][1] == "code 6" and len(quality.pairs) == 7
    reached = set(MEASURES["style reached"]) | {"art_fid"}
    assert all(not scores.means.keys() & reached for scores in quality.scores.values())
    assert quality.scores["adain"].means["lpips"] > 0 and quality.scores["adain"].means["diversity"] > 0
    assert "style reached" not in quality.table()
    again = evaluate_quality(mine, sides[0], bank=bank(), pairs=7, seed=1, weights=networks, **SMALL)
    assert again.scores["adain"].rows["lpips"] != quality.scores["adain"].rows["lpips"]
    with pytest.raises(BankError, match="made by generator"):
        evaluate_quality(generator("tiny-photo"), sides[0], bank=bank(), weights=networks, **SMALL)
    with pytest.raises(ConfigError, match="either"):
        evaluate_quality(mine, *sides, bank=bank(), weights=networks, **SMALL)


def test_a_generator_with_a_prior_needs_neither(networks, sides):
    quality = evaluate_quality(generator("tiny-vaegan"), sides[0], pairs=4, weights=networks, **SMALL)
    assert quality.scores["vaegan"].means["diversity"] > 0


# Pairs


@given(contents=st.integers(1, 12), styles=st.integers(1, 12), count=st.integers(1, 150))
def test_no_pair_comes_twice(contents, styles, count):
    pairs = list(zip(*(rows.tolist() for rows in match(contents, styles, count)), strict=True))
    assert len(pairs) == len(set(pairs)) == min(count, contents * styles)
    for side, total in ((0, contents), (1, styles)):
        uses = np.bincount([pair[side] for pair in pairs], minlength=total)
        assert len(uses) == total and uses.max() - uses.min() <= 1, "images are used alike often"


def test_pairs_follow_the_seed(networks, sides):
    first, same, other = (
        evaluate_quality(Spy(), *sides, pairs=3, seed=seed, weights=networks, **SMALL) for seed in (0, 0, 1)
    )
    assert first.pairs == same.pairs != other.pairs
    assert first.scores["spy"].rows == same.scores["spy"].rows
    assert len({content for content, _ in first.pairs}) == 3


def test_squares_are_cut_from_the_middle(tmp_path):
    columns = torch.linspace(0, 1, 300).expand(3, 100, 300)
    write(tmp_path, columns[None], name="wide.png")
    square = read_square(tmp_path / "wide.png", 50)
    assert square.shape == (3, 50, 50)
    torch.testing.assert_close(square[0, 25, [0, -1]], torch.tensor([101.0, 198.0]) / 299, atol=0.01, rtol=0)
    assert read_square(tmp_path / "wide.png", 151).shape == (3, 151, 151), "small images are enlarged"


def test_bad_files_are_skipped_and_named(networks, sides, tmp_path):
    folder = write(tmp_path / "content", photos(3, 72, 80))
    (folder / "broken.png").write_bytes(b"no image")
    quality = evaluate_quality("reinhard-rgb", folder, sides[1], pairs=9, weights=networks, **SMALL)
    assert [path.name for path, _ in quality.failed] == ["broken.png"]
    assert len(quality.pairs) == 9 and quality.images == (3, 3)
    assert quality.to_dict()["failed"][0]["file"].endswith("broken.png")
    for path in folder.glob("0*.png"):
        path.write_bytes(b"")
    with pytest.raises(FileError, match="none of the 4 images"):
        evaluate_quality("reinhard-rgb", folder, sides[1], weights=networks, **SMALL)


def test_bad_folders_and_numbers(networks, sides, tmp_path):
    (tmp_path / "empty").mkdir()
    for content, told in ((tmp_path / "none", "there is no folder"), (tmp_path / "empty", "no image in")):
        with pytest.raises(FileError, match=told):
            evaluate_quality("reinhard-rgb", content, sides[1], weights=networks, **SMALL)
    for options in ({"pairs": 0}, {"size": 63}, {"size": 1025}, {"strength": math.nan}, {"strength": 1.1}):
        with pytest.raises(ConfigError, match="size from 64 to 1024"):
            evaluate_quality("reinhard-rgb", *sides, weights=networks, **options)
    with pytest.raises(ConfigError, match="at least one generator"):
        evaluate_quality([], *sides, weights=networks)
    with pytest.raises(DeviceError, match="no device"):
        evaluate_quality("reinhard-rgb", *sides, weights=networks, device="moon")


# Networks


def test_missing_networks_are_all_named(networks, tmp_path):
    files = sorted(networks.glob("*.safetensors"))
    save_file(load_file(files[0]), tmp_path / files[0].name)
    with pytest.raises(WeightsError) as error:
        load_networks(tmp_path)
    assert [file.name in str(error.value) for file in files] == [False, True, True]
    assert "--weights" in str(error.value)
    check_files(networks)


def test_other_weights_are_refused(networks, tmp_path):
    for file in networks.glob("*.safetensors"):
        (tmp_path / file.name).symlink_to(file)
    linear = tmp_path / "lpips_squeeze_linear.safetensors"
    linear.unlink()
    save_file({"lin0.model.1.weight": torch.ones(1, 64, 1, 1)}, linear)
    with pytest.raises(WeightsError, match=r"holds no lin1\.model"):
        load_networks(tmp_path)


def test_offline_says_what_to_do(monkeypatch):
    def refuse(*args: object, **kwargs: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    monkeypatch.setattr("styleaug.perceptual.read_linear", lambda folder: [])
    with pytest.raises(WeightsError, match=r"no route to host.*give a folder.*--weights"):
        load_networks(None)


def test_without_linear_weights(monkeypatch):
    monkeypatch.setattr("styleaug.perceptual.INSTALLED", (("no_such_package", "weights.pth"),))
    with pytest.raises(WeightsError, match="pip install lpips"):
        load_networks(None)


def test_levels_are_those_of_the_layers(networks):
    lpips = load_networks(networks).lpips
    levels = lpips.levels(photos(2, 64, 64))
    assert [level.shape[1] for level in levels] == [64, 128, 256, 384, 384, 512, 512]
    last = lpips.network(photos(2, 64, 64))
    torch.testing.assert_close(levels[-1], last)
    assert isinstance(lpips, LPIPS) and not any(p.requires_grad for p in lpips.parameters())


# What is said and drawn


def test_the_table_is_readable(found):
    table = found.table()
    lines = table.splitlines()
    assert lines[0].split() == ["content", "unchanged", "adain", "reinhard-rgb"]
    assert {"style reached", "content kept"} <= set(lines)
    line = next(line for line in lines if "LPIPS  " in line)
    mean, error = found.scores["adain"].means["lpips"], found.scores["adain"].errors["lpips"]
    assert line.startswith("  - LPIPS") and f"{mean:.3g} +/- {error:.2g}" in line
    assert max(map(len, lines)) <= 110
    notes = " ".join(lines[lines.index("") :])
    assert "not with published figures" in notes and "SqueezeNet 1.1" in notes
    assert "FID of 9 results and 3 styles is too high" in notes
    assert "9 pairs share 5 contents and 3 styles" in notes


def test_two_generators_of_one_name(networks, sides):
    quality = evaluate_quality(
        [generator("tiny-adain"), generator("tiny-adain"), "reinhard-rgb"], *sides, pairs=2,
        weights=networks, **SMALL,
    )  # fmt: skip
    assert list(quality.scores) == [UNCHANGED, "adain", "adain #2", "reinhard-rgb"]


def plain(shade: float) -> Tensor:
    return torch.full((3, SHEET_TILE, SHEET_TILE), round(shade * 255), dtype=torch.uint8)


def test_the_sheet_shows_best_median_and_worst():
    shades = [0.1, 0.2, 0.3]
    contents = Squares(torch.stack([plain(shade) for shade in shades]), ["a", "b", "c" * 50])
    styles = Squares(torch.stack([plain(0.5 + shade) for shade in shades]), ["x", "y", "z"])
    pairs = Pairs(contents, styles, torch.arange(3), torch.tensor([2, 1, 0]))
    scores = Scores({}, {}, {"style_loss": [3.0, 1.0, 2.0], "lpips": [0.1, 0.2, 0.3]})
    quality = Quality({UNCHANGED: scores, "spy": scores}, [], (3, 3), {}, {}, [])
    sheet = draw_pairs(quality, {"spy": Method(Spy(), torch.zeros(3, 1))}, pairs, CPU)
    step = (sheet.height - 14 - 4) // 6
    rows = [14 + 4 + number * step + step - 10 for number in range(6)]
    seen = [
        [round(sheet.getpixel((100 + x * (SHEET_TILE + 4), y))[0] / 255, 1) for x in range(3)] for y in rows
    ]  # pyright: ignore
    wanted = {0: [0.1, 0.8, 0.9], 1: [0.2, 0.7, 0.8], 2: [0.3, 0.6, 0.7]}
    assert seen == [wanted[pair] for pair in (1, 2, 0, 0, 1, 2)]


def test_the_command(command, networks, sides, tmp_path):
    path = save_generator(generator("tiny-adain"), tmp_path / "mine.safetensors")
    folder = write(tmp_path / "content", photos(2, 72, 80))
    (folder / "broken.jpg").write_bytes(b"no image")
    options = ["--content", folder, "--style", sides[1], "--weights", networks, "--size", 64, "--pairs", 4]
    out, sheet = tmp_path / "deep" / "q.json", tmp_path / "q.png"
    told = command("evaluate", "quality", path, "reinhard-rgb", *options, "-o", out, "--sheet", sheet)
    assert "VGG statistics loss" in told.stdout and "mine" in told.stdout
    assert "broken.jpg" in told.stderr and "1 files skipped" in told.stderr
    saved = json.loads(out.read_text())
    assert list(saved["scores"]) == [UNCHANGED, "mine", "reinhard-rgb"]
    assert saved["settings"] | {"images": [2, 3]} == saved["settings"] and saved["settings"]["size"] == 64
    assert len(saved["pairs"]) == 4 and saved["pairs"][0]["mine"]["lpips"] > 0
    assert "SqueezeNet" in saved["networks"]["fid, art_fid"]
    with Image.open(sheet) as picture:
        assert picture.width == 4 * (SHEET_TILE + 4) + 4
    printed = command("evaluate", "quality", path, "reinhard-rgb", *options, "--json", "--strict", code=1)
    assert json.loads(printed.stdout) == saved


def test_the_command_says_what_is_missing(command, sides, tmp_path):
    told = command(
        "evaluate", "quality", "reinhard-rgb", "--content", sides[0], "--style", sides[1],
        "--weights", tmp_path, code=1,
    )  # fmt: skip
    assert "holds no vgg19_normalised_relu4_1.safetensors" in told.stderr and not told.stdout
