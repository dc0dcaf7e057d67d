"""Scores rank translators as eyes do, and alarms ring for what goes wrong and for nothing else."""

import math

import pytest
import torch
from safetensors.torch import save_file
from specimens import photos
from torch import Tensor

from styleaug import ConfigError, WeightsError, load_generator
from styleaug.perceptual import frechet_distance, kernel_distance, load_features
from styleaug.training.scores import LONG, NEAR, Judge, alarms

ADAIN = load_features("adain", None)
PHOTOS = photos(24, 64, 72)


def textured(images: Tensor) -> Tensor:
    """Make a domain of its own: pale, warm and striped."""
    stripes = 0.12 * torch.sin(torch.arange(images.shape[-1]) * 1.3)
    warm = torch.tensor([0.25, 0.1, -0.1]).view(1, 3, 1, 1)
    return (0.3 + 0.6 * images + warm + stripes).clamp(0, 1)


SOURCES, TARGETS = PHOTOS[:12], textured(PHOTOS[12:])
JUDGE = Judge(ADAIN, TARGETS, SOURCES, paired=False)


# Distances


def test_kernel_distance_is_the_plain_sum():
    one, other = torch.randn(5, 3), torch.randn(4, 3) + 1

    def kernel(x: Tensor, y: Tensor) -> float:
        return (float((x.double() * y.double()).sum()) / 3 + 1) ** 3

    same = sum(kernel(x, y) for i, x in enumerate(one) for j, y in enumerate(one) if i != j) / 20
    same += sum(kernel(x, y) for i, x in enumerate(other) for j, y in enumerate(other) if i != j) / 12
    cross = sum(kernel(x, y) for x in one for y in other) / 20
    assert kernel_distance(one, other) == pytest.approx(same - 2 * cross, rel=1e-12)


def test_kernel_distance_is_unbiased():
    found = [kernel_distance(*torch.randn(2, 20, 4)) for _ in range(300)]
    deviation = torch.tensor(found).std().item() / 300**0.5
    assert abs(sum(found) / 300) < 3 * deviation and min(found) < 0


def test_frechet_distance_of_gaussians_that_are_known():
    rows = torch.randn(500, 3, dtype=torch.float64)
    rows = rows - rows.mean(dim=0)
    rows = rows @ torch.linalg.inv(torch.linalg.cholesky(rows.T @ rows / 499)).T  # now exactly white
    scales, shift = torch.tensor([2.0, 0.5, 3.0]), torch.tensor([1.0, -2.0, 0.5])
    wanted = float((scales - 1).square().sum() + shift.square().sum())
    assert frechet_distance(rows, rows * scales + shift) == pytest.approx(wanted, rel=1e-9)
    assert frechet_distance(rows, rows) == pytest.approx(0, abs=1e-9)
    # Covariances that do not commute: tr(A + B - 2 (A B)^1/2) by the product's own eigenvalues.
    a, b = torch.randn(2, 3, 3, dtype=torch.float64)
    x, y = rows @ a.T, rows @ b.T
    roots = torch.linalg.eigvals((a @ a.T) @ (b @ b.T)).real.sqrt().sum()
    wanted = float((a @ a.T).trace() + (b @ b.T).trace() - 2 * roots)
    assert frechet_distance(x, y) == pytest.approx(wanted, rel=1e-9)


def test_frechet_distance_with_fewer_rows_than_entries():
    rows = torch.randn(5, 40)
    assert frechet_distance(rows, rows) == pytest.approx(0, abs=1e-5)
    assert frechet_distance(rows, torch.randn(6, 40)) > 10


@pytest.mark.parametrize("distance", [kernel_distance, frechet_distance])
def test_one_row_has_no_spread(distance):
    with pytest.raises(ConfigError, match="at least 2 images"):
        distance(torch.randn(1, 3), torch.randn(5, 3))


# Features


def test_adain_features_are_codes_and_leave_the_shared_network_alone():
    features = load_features("adain", None)
    shared = load_generator("adain")
    assert features.network is not shared
    images = photos(18, 64, 80)  # more than one chunk
    torch.testing.assert_close(features(images), shared.encode_style(images), atol=1e-5, rtol=1e-4)
    assert features(photos(2, 8, 300)).shape == (2, shared.code_length), "small images are enlarged"
    assert not features(images.requires_grad_()).requires_grad


def test_networks_from_a_folder(tmp_path):
    from torchvision.models import squeezenet1_1

    from styleaug.perceptual import VGG19

    names = {"4_1": "output"} | {f"{b}_{i}": f"block{b}_conv{i}" for b in (1, 2, 3) for i in (1, 2, 3, 4)}
    state = {key: value * 0.1 for key, value in VGG19().convs.state_dict().items()}
    vgg = {f"{names[key.split('.')[0]]}.{key.split('.')[1]}": value for key, value in state.items()}
    save_file(vgg, tmp_path / "vgg19_normalised_relu4_1.safetensors")
    save_file(squeezenet1_1().state_dict(), tmp_path / "squeezenet1_1_imagenet.safetensors")
    for name, length in (("vgg19", 1024), ("squeezenet", 512)):
        found = load_features(name, tmp_path)(photos(3))
        assert found.shape == (3, length) and found.dtype == torch.float32 and found.isfinite().all()


def test_unusable_networks(tmp_path):
    with pytest.raises(ConfigError, match="adain, vgg19 or squeezenet"):
        load_features("inception", None)
    with pytest.raises(WeightsError, match="squeezenet"):
        load_features("squeezenet", tmp_path)
    save_file({"features.0.weight": torch.ones(1)}, tmp_path / "squeezenet1_1_imagenet.safetensors")
    with pytest.raises(WeightsError, match=r"not a SqueezeNet 1\.1"):
        load_features("squeezenet", tmp_path)


# The judge


def colour_swapped() -> Tensor:
    reinhard = load_generator("reinhard-rgb")
    return reinhard(SOURCES, reinhard.encode_style(TARGETS), torch.ones(len(SOURCES)))


def test_targets_beat_swapped_colours_beat_nothing():
    untouched, swapped = JUDGE.score(SOURCES), JUDGE.score(colour_swapped())
    targets, translated = JUDGE.score(TARGETS), JUDGE.score(textured(SOURCES))
    assert targets["kid"] < swapped["kid"] < untouched["kid"] == pytest.approx(1)
    assert translated["score"] < swapped["score"] < untouched["score"] == pytest.approx(1)
    assert targets["colour"] < 1e-6 < translated["colour"] < untouched["colour"] == pytest.approx(1)
    assert untouched["structure"] == pytest.approx(1)
    # The targets' own images are none of the sources: near, but no structure is kept.
    assert targets["structure"] < translated["structure"]
    assert targets["score"] > translated["score"]


def test_scores_are_the_same_every_time():
    other = Judge(load_features("adain", None), TARGETS, SOURCES, paired=False)
    assert other.score(colour_swapped()) == JUDGE.score(colour_swapped())
    assert set(JUDGE.score(SOURCES)) == {"kid", "structure", "diversity", "colour", "score"}


def test_a_collapsed_translator_is_not_diverse():
    same = textured(SOURCES[:1]).expand(len(SOURCES), -1, -1, -1)
    collapsed, healthy = JUDGE.score(same), JUDGE.score(textured(SOURCES))
    assert collapsed["diversity"] < 0.01 and healthy["diversity"] > 0.6
    assert collapsed["score"] > healthy["score"]
    near = same + 0.01 * torch.randn(same.shape)
    assert collapsed["diversity"] < JUDGE.score(near.clamp(0, 1))["diversity"] < healthy["diversity"]


def test_a_narrow_target_domain_is_no_collapse():
    narrow = textured(SOURCES[:1] + 0.02 * torch.randn(12, 3, 1, 1)).clamp(0, 1)
    scores = Judge(ADAIN, narrow, SOURCES, paired=False).score(narrow.flip(0))
    assert scores["diversity"] == pytest.approx(1)


def test_pairs_are_compared_one_by_one():
    truth = textured(SOURCES)
    judge = Judge(ADAIN, truth, SOURCES, paired=True)
    perfect, shuffled = judge.score(truth), judge.score(truth.flip(0))
    assert perfect["l1"] == 0 and perfect["structure"] == pytest.approx(1)
    assert perfect["score"] == pytest.approx(0, abs=1e-6)
    assert shuffled["l1"] > 0.01 and shuffled["score"] > perfect["score"]
    assert judge.score(SOURCES)["l1"] == pytest.approx(float((truth - SOURCES).abs().mean()))


def test_domains_that_are_one_already_give_no_huge_scores():
    judge = Judge(ADAIN, SOURCES.flip(0), SOURCES, paired=False)
    assert judge.untouched < NEAR
    scores = judge.score(SOURCES)
    assert abs(scores["kid"]) < 1.5 and scores["colour"] < 1e-6 and scores["score"] < 0.01


def test_flat_images_have_scores():
    flat = torch.full((4, 3, 32, 32), 0.5)
    assert all(math.isfinite(value) for value in Judge(ADAIN, flat, flat, paired=True).score(flat).values())
    assert all(math.isfinite(value) for value in JUDGE.score(torch.zeros_like(SOURCES)).values())


def test_the_judge_refuses_what_it_cannot_compare():
    with pytest.raises(ConfigError, match="at least 2 images"):
        Judge(ADAIN, TARGETS[:1], SOURCES, paired=False)
    with pytest.raises(ConfigError, match="one shape"):
        Judge(ADAIN, TARGETS[:5], SOURCES, paired=True)
    with pytest.raises(ConfigError, match="shape of the sources"):
        JUDGE.score(SOURCES[:5])


# Alarms


def history(discriminator: list[float], adversarial: list[float], suffix: str = "") -> list[dict[str, float]]:
    return [
        {f"discriminator{suffix}": d, f"adversarial{suffix}": a, "cycle": 0.3}
        for d, a in zip(discriminator, adversarial, strict=True)
    ]


HEALTHY = history(
    [0.25 + 0.05 * math.sin(i) for i in range(100)], [0.4 + 0.1 * math.cos(i) for i in range(100)]
)
GOOD_SCORES = [{"diversity": 0.9 - 0.02 * i, "colour": 1 / (1 + i), "score": 1 / (1 + i)} for i in range(9)]


def test_a_healthy_run_raises_no_alarm():
    assert alarms([], []) == []
    assert alarms(HEALTHY, GOOD_SCORES) == []
    assert all(alarms(HEALTHY[:count], GOOD_SCORES[: count // 10]) == [] for count in range(100))
    assert alarms([{"content": 0.01, "style": 0.02}] * 200, []) == [], "no discriminator, no alarm"


@pytest.mark.parametrize("suffix", ["", "_a", "_b"])
def test_a_winning_discriminator(suffix):
    lost = history([0.3] * 40 + [0.01] * LONG, [0.3] * 40 + [0.95] * LONG, suffix)
    (text,) = alarms(lost, GOOD_SCORES)
    assert f"discriminator{suffix}" in text and "DiffAugment" in text and "R1" in text
    saturated = history([0.001] * 200, [1.0] * 200, suffix)  # least squares cannot rise beyond 1
    assert alarms(saturated, []) == [text], "the same words as long as it lasts"
    assert alarms(lost[:-LONG] + lost[-5:], []) == [], "not for a short while"
    falling = history([0.04] * 200, [1 - i / 210 for i in range(200)], suffix)
    assert alarms(falling, []) == [], "the generator catches up"


def test_each_discriminator_is_watched_by_its_own_opponent():
    rows = [a | b for a, b in zip(history([0.01] * 99, [1.0] * 99, "_a"), HEALTHY[:99], strict=True)]
    (text,) = alarms(rows, [])
    assert "discriminator_a" in text
    alone = [{"discriminator_a": 0.01, "discriminator_b": 0.2, "adversarial": 0.9} for _ in range(99)]
    assert alarms(alone, []) == [text]


def test_a_collapse():
    (text,) = alarms(HEALTHY, [{"diversity": 0.6}, {"diversity": 0.15}])
    assert "Mode collapse" in text and "checkpoint" in text
    assert alarms(HEALTHY, [{"diversity": 0.05}, {"diversity": 0.15}]) == [], "rising from a grey start"
    assert alarms(HEALTHY, [{"diversity": 0.1}]) == []


def test_drifting_colours():
    (text,) = alarms(HEALTHY, [{"colour": 0.5}, {"colour": 1.2}])
    assert "Colour drift" in text
    assert alarms(HEALTHY, [{"colour": 3.0}, {"colour": 1.2}]) == [], "on its way back"
    assert alarms(HEALTHY, [{"colour": 0.1}, {"colour": 0.9}]) == []


def test_values_that_are_missing_or_nan_raise_no_alarm():
    nothing = [{"diversity": math.nan, "colour": math.nan}] * 3
    assert alarms([{"discriminator": math.nan, "adversarial": 1.0}] * 99, nothing) == []
    assert alarms([{"cycle": 1.0}] * 80 + [{"discriminator": 0.0, "adversarial": 1.0}] * 10, []) == []


def test_fid_ranks_alike():
    judge = Judge(ADAIN, TARGETS, SOURCES, paired=False, distance="fid")
    targets, swapped, untouched = map(judge.score, (TARGETS, colour_swapped(), SOURCES))
    assert abs(targets["fid"]) < 1e-6 < swapped["fid"] < untouched["fid"] == pytest.approx(1)
    assert "kid" not in targets
