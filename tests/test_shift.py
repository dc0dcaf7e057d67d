"""Shifts are measured as they were made: nothing is something, colour is colour, content is content."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from specimens import photos
from torch import Tensor

from styleaug import ConfigError, FileError, load_generator
from styleaug.errors import BankError, WeightsError
from styleaug.evaluation.advice import Evidence, Option, advise
from styleaug.evaluation.appearance import colour_rows, content_features, in_words, measures, power_slope
from styleaug.evaluation.candidates import find_candidates
from styleaug.evaluation.domains import (
    Gap,
    Parted,
    fit_logistic,
    gap_between,
    gap_closed,
    standardise,
    tell_apart,
    wilson,
)
from styleaug.evaluation.pairs import read_square
from styleaug.evaluation.shift import evaluate_shift, has_masks
from styleaug.io.lists import list_images
from styleaug.transforms.presets import MIXTURES

# Classifier


def test_logistic_regression_is_that_of_scikit_learn():
    from sklearn.linear_model import LogisticRegression

    rows = torch.randn(60, 7, dtype=torch.float64)
    labels = (rows[:, 0] + 0.5 * torch.randn(60) > 0.6).long()
    for penalty in (0.1, 1.0, 30.0):
        own = fit_logistic(rows, labels, penalty=penalty)
        theirs = LogisticRegression(C=1 / penalty, class_weight="balanced", tol=1e-10, max_iter=1000)
        theirs.fit(rows.numpy(), labels.numpy())
        wanted = np.append(theirs.coef_[0], theirs.intercept_)
        np.testing.assert_allclose(own.numpy(), wanted, rtol=1e-4, atol=1e-5)


def test_sets_that_are_fully_apart_are_fitted_too():
    rows = torch.cat([torch.randn(20, 3) - 9, torch.randn(30, 3) + 9])
    weights = fit_logistic(rows, torch.tensor([0] * 20 + [1] * 30))
    assert weights.isfinite().all()
    found = tell_apart(rows[:20], rows[20:])
    assert found.accuracy == 1 and found.low > 0.85 and found.apart > 10 and not found.by_chance


def test_sets_of_one_distribution_are_told_apart_by_chance():
    misses = 0
    for seed in range(20):
        rng = torch.Generator().manual_seed(seed)
        found = tell_apart(torch.randn(50, 6, generator=rng), torch.randn(70, 6, generator=rng))
        misses += not found.low <= 0.5 <= found.high
    assert misses <= 3


def test_an_image_in_both_sets_does_not_give_itself_away():
    rows, keys = torch.randn(40, 6), [*range(40), *range(40)]
    known = tell_apart(rows, rows, keys=keys)
    assert known.accuracy == pytest.approx(0.5) and known.low <= 0.5 <= known.high
    assert tell_apart(rows, rows).accuracy < 0.45  # what a split of twins comes to: the wrong answer


def test_accuracy_of_uneven_sets_is_balanced():
    found = tell_apart(torch.randn(200, 4), torch.randn(20, 4))
    assert abs(found.accuracy - 0.5) < 0.2  # and not the 0.91 of saying "the first" always


@pytest.mark.parametrize(("hits", "count"), [(0, 10), (3, 10), (10, 10), (97, 300)])
def test_wilson_interval(hits, count):
    from scipy.stats import binomtest

    wanted = binomtest(hits, count).proportion_ci(method="wilson")
    assert wilson(hits, count) == pytest.approx((wanted.low, wanted.high), abs=1e-9)


def test_of_no_trials_nothing_is_known():
    assert wilson(0, 0) == (0, 1)


@pytest.mark.parametrize(("count", "folds"), [(4, 5), (20, 1)])
def test_too_few_images_to_tell_apart(count, folds):
    with pytest.raises(ConfigError, match="folds"):
        tell_apart(torch.randn(count, 3), torch.randn(count, 3), folds=folds)


# Distances


def test_share_of_the_gap_that_is_closed():
    train, target = torch.randn(80, 5), torch.randn(80, 5) + 2
    half, whole = train + 1, torch.randn(80, 5) + 2
    train, target, half, whole = standardise(train, target, half, whole)
    assert gap_closed(train, train, target).value == 0
    assert gap_closed(train, whole, target).value > 0.8
    found = gap_closed(train, half, target)
    assert 0.3 < found.low < found.value < found.high < 0.9
    assert gap_closed(train, 2 * train - target.mean(dim=0), target).value < 0
    assert gap_between(train, target).low > 0.5


def test_interval_covers_what_other_samples_give():
    def draw(seed: int) -> Gap:
        rng = torch.Generator().manual_seed(seed)
        return gap_between(torch.randn(60, 4, generator=rng), torch.randn(60, 4, generator=rng) + 1)

    found = [draw(seed) for seed in range(12)]
    truth = draw(99).value  # of another sample, which varies as well
    assert sum(gap.low <= truth <= gap.high for gap in found) >= 9


# What images look like


def noise_of_slope(slope: float) -> Tensor:
    """Make pictures whose power falls with frequency by a known exponent."""
    rows, columns = torch.fft.fftfreq(128)[:, None], torch.fft.rfftfreq(128)
    radius = torch.hypot(rows, columns).clamp_min(1 / 256)
    spectrum = torch.polar(radius ** (slope / 2), 2 * torch.pi * torch.rand(3, 128, 65))
    grey = torch.fft.irfft2(spectrum, s=(128, 128))
    return (0.5 + 0.12 * grey / grey.std()).clamp(0, 1)[:, None].expand(-1, 3, -1, -1)


def test_power_slope_is_the_exponent():
    for slope in (-3.0, -2.0, -1.0):
        assert power_slope(noise_of_slope(slope)).mean() == pytest.approx(slope, abs=0.25)


def test_words_name_what_was_done():
    images = photos(12, 64, 64)
    changed = (images * torch.tensor([0.8, 0.4, 0.8]).view(1, 3, 1, 1)).clamp(0, 1)
    own, other = measures(images), measures(changed)
    change = {name: float((other[name] - own[name]).mean()) for name in own}
    difference = {name: value / float(own[name].std()) for name, value in change.items()}
    words = "; ".join(in_words(difference, change))
    assert "darker" in words and "more purple" in words and "lighter" not in words
    assert in_words(dict.fromkeys(own, 0.0), dict.fromkeys(own, 0.0)) == []


@pytest.mark.parametrize("network", ["adain", "squeezenet"])
def test_content_hears_classes_and_not_colours(data, network):
    weights = os.environ.get("STYLEAUG_WEIGHTS")
    if network == "squeezenet" and not weights:
        pytest.skip("needs SqueezeNet's weights; set STYLEAUG_WEIGHTS")
    content = content_features(network, Path(weights) if weights else None)

    def read(folder: str, classes: set[str]) -> Tensor:
        listed = list_images(data / folder)
        rows = [row for row, name in enumerate(listed.classes) if name in classes]
        return torch.stack([read_square(listed.paths[row], 128) for row in rows[:: max(1, len(rows) // 48)]])

    cells = read("wbc/pbc", {"neutrophil", "lymphocyte", "monocyte", "eosinophil"})
    one, other = cells[::2], cells[1::2]
    recolour = load_generator("reinhard-rgb")
    target = read("wbc/tecom", {"neutrophil", "lymphocyte"})[: len(other)]
    other = recolour(other, recolour.encode_style(target), torch.ones(len(other)))
    assert tell_apart(colour_rows(one), colour_rows(other)).accuracy > 0.9
    assert tell_apart(content(one), content(other)).low < 0.5
    # Other cells in the same stain; guitars and people against dogs and horses, in photos.
    shown = [read("wbc/pbc", {name}) for name in ("neutrophil", "lymphocyte")]
    assert tell_apart(content(shown[0]), content(shown[1])).low > 0.6
    if network == "squeezenet":  # the shipped encoder is too coarse for photos
        shown = [read("pacs/photo", names) for names in ({"guitar", "person"}, {"dog", "horse"})]
        found = tell_apart(content(shown[0]), content(shown[1]))
        assert not found.by_chance
        assert found.apart > tell_apart(colour_rows(shown[0]), colour_rows(shown[1])).apart


# Advice


def evidence(
    style=0.99, texture=0.99, content=0.9, apart=(3.0, 3.0, 2.0), variety=4.0, edges=0.9
) -> Evidence:
    """Make evidence; an accuracy of 0.5 is chance."""

    def parted(accuracy: float, apart: float) -> Parted:
        return Parted(accuracy, accuracy - 0.05, min(1, accuracy + 0.05), apart)

    names = {"colour": parted(style, apart[0]), "sharpness": parted(0.5, 0.0)}
    names |= {"texture": parted(texture, apart[1]), "content": parted(content, apart[2])}
    closed = {
        "reinhard-rgb": (0.7, 0.0), "randstainna": (0.6, -0.1), "photo": (0.3, 0.1), "adain": (0.7, 0.4),
    }  # fmt: skip
    options = [
        Option(name, name, "fitted", 1.0, {"colour": Gap(c, c, c), "texture": Gap(t, t, t)}, {}, edges)
        for name, (c, t) in closed.items()
    ]
    return Evidence(names, variety, 0.0, options)


@pytest.mark.parametrize(
    ("given", "rule", "generator", "preset"),
    [
        (evidence(0.5, 0.5, 0.5, (0.0, 0.0, 0.0)), "no shift", None, None),
        (evidence(0.5, 0.5, 0.95, (0.0, 0.0, 3.0)), "content only", None, None),
        (evidence(), "one instrument", "randstainna", "unknown"),
        (evidence(variety=13), "many scenes", "adain", "drawings"),
        (evidence(variety=13, texture=0.5, apart=(3.0, 0.2, 1.0)), "colour only", "randstainna", "unknown"),
    ],
)
def test_each_rule_holds_where_it_should(given, rule, generator, preset):
    found = advise(given)
    assert (found.rule, found.generator, found.preset) == (rule, generator, preset)
    assert preset is None or preset in MIXTURES
    assert (found.p is None) == (generator is None)
    json.dumps(found.to_dict())


def test_where_labels_are_masks_no_preset_is_recommended(tmp_path):
    found = advise(replace(evidence(), masks=True))
    assert found.generator == "randstainna" and found.preset is None
    assert any("masks" in note for note in found.notes)
    for folder in ("home/images", "home/masks", "photos/images"):
        (tmp_path / folder).mkdir(parents=True)
    assert has_masks(tmp_path / "home") and has_masks(tmp_path / "home" / "images")
    assert not has_masks(tmp_path / "photos") and not has_masks(tmp_path)


def test_advice_says_that_content_stays():
    assert not any("content gap" in note for note in advise(evidence()).notes)
    assert any("will not close it" in note for note in advise(evidence(apart=(3.0, 3.0, 9.0))).notes)


def test_strength_falls_where_edges_go():
    assert advise(evidence()).strength == (1.0, 1.0)
    assert advise(evidence(edges=0.3)).strength == (0.25, 0.75)


# All of it


def save(images: Tensor, folder: Path) -> Path:
    """Write pictures."""
    folder.mkdir(parents=True)
    for number, image in enumerate((images * 255).round().byte()):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{number:02}.png")
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path]:
    """Pictures, and others in purple."""
    root, images = tmp_path_factory.mktemp("shift"), photos(40, 48, 48)
    purple = (images[20:] * torch.tensor([0.9, 0.3, 0.8]).view(1, 3, 1, 1) + 0.2).clamp(0, 1)
    return save(images[:20], root / "train"), save(purple, root / "target")


def test_a_shift_of_colours_is_found_and_closed(folders, tmp_path):
    seen = []
    found = evaluate_shift(
        *folders,
        generators=["reinhard-rgb"],
        size=32,
        sheet=tmp_path / "sheet.png",
        report=lambda done, total: seen.append((done, total)),
    )
    assert found.parted["colour"].accuracy > 0.9
    assert any("purple" in word or "pink" in word for word in found.words)
    whole = found.options[-1]
    assert whole.strength == 1 and whole.closed["colour"].value > 0.3 and whole.edges > 0.8
    assert whole.after["colour"].accuracy < found.parted["colour"].accuracy
    assert found.advice.generator == "reinhard-rgb"
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 3 * 32
    assert seen[-1] == (2, 2)
    again = json.loads(found.save(tmp_path / "shift.json").read_text())
    assert again["advice"]["generator"] == "reinhard-rgb" and again["train"] == 20
    assert "reinhard-rgb" in found.table()
    assert f'StyleAugment.preset("{found.advice.preset}")' in found.table()


def test_a_folder_against_itself_has_no_shift(folders):
    found = evaluate_shift(folders[0], folders[0], generators=["reinhard-rgb"], size=32)
    for parted in found.parted.values():
        assert parted.low <= 0.5 <= parted.high
    assert all(gap.value < 0.05 for gap in found.gaps.values())
    assert found.advice.generator is None and found.advice.rule == "no shift"
    assert found.words == []


def test_two_calls_give_the_same(folders):
    one, two = (evaluate_shift(*folders, generators=["randstainna"], size=32, seed=3) for _ in range(2))
    assert one.to_dict() == two.to_dict()


def test_bad_inputs(folders, tmp_path):
    with pytest.raises(FileError, match="no folder"):
        evaluate_shift(tmp_path / "none", folders[1])
    few = save(photos(3), tmp_path / "few")
    with pytest.raises(FileError, match="at least 10"):
        evaluate_shift(few, folders[1])
    with pytest.raises(ConfigError, match="size"):
        evaluate_shift(*folders, size=8)
    with pytest.raises(ConfigError, match="content"):
        evaluate_shift(*folders, content="resnet")
    with pytest.raises(ConfigError, match="nothing to measure"):
        evaluate_shift(*folders, generators=[])
    with pytest.raises(ConfigError, match="twice"):
        find_candidates(None, ["fourier", "fourier"], folders[1])
    with pytest.raises(WeightsError):
        evaluate_shift(*folders, generators=["nothing"])
    with pytest.raises(BankError):
        evaluate_shift(*folders, bank="nothing")


def test_banks_and_generators_can_be_mixed(folders):
    found = find_candidates("art", ["reinhard-lab", "hed-jitter"], folders[1])
    assert [c.name for c in found] == ["adain:art", "reinhard-lab", "hed-jitter"]
    assert [c.origin for c in found] == ["art", "fitted", "prior"]
    banks = [found[1].bank, found[1].bank]
    assert [c.name for c in find_candidates(banks, [], folders[1])] == [
        "reinhard-lab:bank 1",
        "reinhard-lab:bank 2",
    ]
    assert found[2].bank is None and found[1].bank is not None and found[1].bank.provenance.min_images == 5


def test_command(command, folders, tmp_path):
    out = tmp_path / "shift.json"
    arguments = ("evaluate", "shift", *folders, "--generator", "reinhard-rgb", "--size", 32, "-o", out)
    told = command(*arguments)
    assert "Try reinhard-rgb" in told.stdout and json.loads(out.read_text())["size"] == 32
    assert json.loads(command(*arguments, "--json").stdout)["target"] == 20
    assert "there is no folder" in command("evaluate", "shift", tmp_path / "x", folders[1], code=1).stderr
