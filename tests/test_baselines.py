"""Published augmentations that styles are compared with."""

import math

import numpy as np
import pytest
import torch
from specimens import photos
from torch import nn

from styleaug.robustness import baselines
from styleaug.robustness.baselines import (
    DSU,
    PRIME_LARGE,
    PRIME_SMALL,
    MixStyle,
    colour_curves,
    displace,
    displacement,
    erase,
    prime,
    random_filter,
    with_sines,
)

PRIMITIVES = ("random_filter", "colour_curves", "displace")


def hooked(hook):
    made = nn.Identity()
    made.register_forward_hook(hook)
    return made


def varied(count=8):
    """Make features whose images differ in mean and deviation."""
    place = torch.arange(float(count)).view(-1, 1, 1, 1)
    rng = torch.Generator().manual_seed(0)
    return torch.randn(count, 4, 6, 6, generator=rng) * (0.5 + 0.3 * place) + place


def test_mixstyle_mixes_statistics_while_training_only():
    net, features = hooked(MixStyle(p=1.0, alpha=0.1, seed=0)), varied()
    assert torch.equal(net.eval()(features), features)
    mixed = net.train()(features)
    # Means move between those of the batch; what is left is the same picture.
    assert not torch.allclose(mixed.mean((2, 3)), features.mean((2, 3)), atol=0.1)
    assert mixed.mean((2, 3)).min() >= features.mean((2, 3)).min() - 1e-3
    flat = lambda x: nn.functional.instance_norm(x)  # noqa: E731
    assert torch.allclose(flat(mixed), flat(features), atol=1e-3)


def test_dsu_is_the_papers_formula_while_training_only():
    net, features = hooked(DSU(p=1.0, seed=3)), varied()
    assert torch.equal(net.eval()(features), features)
    changed = net.train()(features)
    rng = np.random.default_rng(3)
    rng.random()  # whether the batch is changed
    of_deviation, of_mean = (rng.standard_normal((8, 4), dtype=np.float32) for _ in range(2))
    x = features.double().numpy()
    mean, deviation = x.mean((2, 3)), x.std((2, 3), ddof=1)
    for image in range(8):
        for channel in range(4):
            gamma = deviation[image, channel] + of_deviation[image, channel] * deviation[:, channel].std()
            beta = mean[image, channel] + of_mean[image, channel] * mean[:, channel].std()
            normed = (x[image, channel] - mean[image, channel]) / deviation[image, channel]
            np.testing.assert_allclose(changed[image, channel].numpy(), gamma * normed + beta, atol=1e-3)


def test_dsu_keeps_gradients_and_flat_features_finite():
    features = torch.zeros(1, 2, 3, 3, requires_grad=True)
    changed = hooked(DSU(p=1.0, seed=0)).train()(features)
    changed.sum().backward()
    assert changed.isfinite().all() and features.grad is not None and features.grad.isfinite().all()


@pytest.mark.parametrize("make", [lambda p: MixStyle(p=p, alpha=0.1, seed=0), lambda p: DSU(p=p, seed=0)])
def test_hooks_draw_once_for_each_batch(make):
    features = varied()
    assert hooked(make(0.0)).train()(features) is features
    half, again = hooked(make(0.5)).train(), hooked(make(0.5)).train()
    results = [half(features) for _ in range(40)]
    assert 8 < sum(result is features for result in results) < 32
    assert all(torch.equal(result, again(features)) for result in results)


@pytest.mark.parametrize("function", [erase, prime])
def test_rows_do_not_depend_on_each_other(function):
    images = photos(6, 32, 32)
    torch.manual_seed(4)
    before = function(images)
    torch.manual_seed(4)
    after = function(torch.cat([images[:1], images[1:].flip(3)]))
    assert torch.equal(before[0], after[0])
    assert not torch.equal(before[1:], after[1:])


def test_a_rectangle_is_erased():
    images = torch.full((60, 3, 20, 24), 0.5)
    erased = erase(images, p=1.0) != images
    rectangles = set()
    for image in erased:
        rows, columns = image.any(0).any(1).nonzero()[:, 0], image.any(0).any(0).nonzero()[:, 0]
        top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
        assert image[:, top:bottom, left:right].float().mean() > 0.99
        assert image.sum() == image[:, top:bottom, left:right].sum()
        assert 0.01 < (bottom - top) * (right - left) / (20 * 24) < 0.43
        rectangles.add((top, bottom, left, right))
    assert len(rectangles) > 50
    assert 12 < int((erase(images) != images).flatten(1).any(1).sum()) < 48
    assert torch.equal(erase(images, p=0.0), images)


def test_what_no_rectangle_fits_is_kept():
    images = torch.rand(4, 3, 1, 1)
    assert torch.equal(erase(images, p=1.0), images)


def test_a_filter_is_the_identity_plus_noise(monkeypatch):
    images = photos(3, 9, 7) / 4
    torch.manual_seed(1)
    made = random_filter(images, PRIME_SMALL)
    torch.manual_seed(1)
    spread = 4 * torch.rand(3)
    noise = torch.randn(3, 3, 3)
    for image in range(3):
        kernel = spread[image] * noise[image] + torch.tensor([[0.0, 0, 0], [0, 1, 0], [0, 0, 0]])
        for channel in range(3):
            around = images[image, channel, 3:6, 2:5]
            corner = nn.functional.pad(images[image, channel], [1] * 4)[:3, :3]
            assert made[image, channel, 4, 3] == pytest.approx(
                (kernel * around).sum().clamp(0, 1).item(), abs=1e-5
            )
            assert made[image, channel, 0, 0] == pytest.approx(
                (kernel * corner).sum().clamp(0, 1).item(), abs=1e-5
            )
    monkeypatch.setattr(baselines, "FILTER_STRENGTH", 0.0)
    assert torch.equal(random_filter(images, PRIME_SMALL), images)


@pytest.mark.parametrize("first, count", [(1, 1), (1, 100), (7, 20), (480, 20)])
def test_sines_are_added(first, count):
    image = photos(1, 6, 6)[0]
    amplitudes = 0.1 * torch.randn(3, count)
    expected = image.double()
    for n in range(count):
        expected = expected + amplitudes[:, n, None, None] * (math.pi * (first + n) * image.double()).sin()
    torch.testing.assert_close(with_sines(image, amplitudes, first).double(), expected, atol=2e-3, rtol=0)


@pytest.mark.parametrize("settings", [PRIME_SMALL, PRIME_LARGE])
def test_colour_curves_are_functions_of_the_colour(settings):
    line = torch.linspace(0, 1, 9)
    images = torch.stack([line, line.flip(0)]).expand(5, 3, 2, 9)
    made = colour_curves(images, settings)
    torch.testing.assert_close(made[:, :, 0], made[:, :, 1].flip(2), atol=1e-4, rtol=0)
    torch.testing.assert_close(made[:, :, 0, [0, 8]], images[:, :, 0, [0, 8]], atol=5e-3, rtol=0)
    assert len({tuple(curve.tolist()) for curve in made[:, :, 0].flatten(0, 1)}) == 15


def test_frequencies_of_colour_curves(monkeypatch):
    met = []

    def remember(image, amplitudes, first):
        met.append((first, first + amplitudes.shape[1] - 1, amplitudes.shape[1]))
        return image

    monkeypatch.setattr(baselines, "with_sines", remember)
    colour_curves(torch.rand(300, 3, 1, 1), PRIME_LARGE)
    assert min(lowest for lowest, _, _ in met) < 10 and 400 < max(highest for _, highest, _ in met) <= 500
    assert max(count for _, _, count in met) == 20
    met.clear()
    colour_curves(torch.rand(300, 3, 1, 1), PRIME_SMALL)
    assert {lowest for lowest, _, _ in met} == {1}
    assert 90 < max(highest for _, highest, _ in met) <= 100


def test_pixels_are_displaced(monkeypatch):
    images = photos(2, 6, 9)
    field = torch.zeros(6, 9, 2)
    field[..., 0] = 2.0
    monkeypatch.setattr(baselines, "displacement", lambda height, width, modes: field)
    columns = (torch.arange(9) - 2).clamp_min(0)
    torch.testing.assert_close(displace(images, PRIME_SMALL), images[..., columns], atol=1e-5, rtol=0)
    field[...] = torch.tensor([0.0, -1.0])
    rows = (torch.arange(6) + 1).clamp_max(5)
    torch.testing.assert_close(displace(images, PRIME_SMALL), images[:, :, rows], atol=1e-5, rtol=0)


@pytest.mark.parametrize("side, modes", [(32, 100), (128, 500)])
def test_a_field_of_displacements_is_small_and_ends_at_the_border(side, modes):
    fields = torch.stack([displacement(side, side, modes) for _ in range(12)])
    for border in (fields[:, 0], fields[:, -1], fields[:, :, 0], fields[:, :, -1]):
        assert border.abs().max() < 0.02
    moved = fields[:, side // 4 : -side // 4, side // 4 : -side // 4].square().mean((1, 2, 3)).sqrt()
    assert moved.min() > 0.15, "about half a pixel at least"
    assert moved.max() < 0.2 * side
    assert moved.median() < 0.05 * side


def test_prime_mixes_each_image_with_its_chains(monkeypatch):
    images = 0.5 * photos(200, 4, 4)
    for name in PRIMITIVES:
        monkeypatch.setattr(baselines, name, lambda part, settings: torch.ones_like(part))
    share = (prime(images) - images) / (1 - images)
    torch.testing.assert_close(share, share[:, :1, :1, :1].expand_as(share), atol=1e-5, rtol=0)
    assert abs(share.mean() - 0.5) < 0.08 and share.min() < 0.05 and share.max() > 0.95


def test_chains_of_prime_have_one_to_three_primitives(monkeypatch):
    for name in PRIMITIVES:
        monkeypatch.setattr(baselines, name, lambda part, settings: part + 0.1)
    monkeypatch.setattr(baselines, "CHAINS", 1)
    monkeypatch.setattr(torch, "lerp", lambda images, mixture, share: mixture)
    lengths = (10 * prime(torch.zeros(300, 3, 1, 1))[:, 0, 0, 0]).round().int().bincount()
    assert lengths[0] == 0 and (lengths[1:] > 60).all() and len(lengths) == 4


@pytest.mark.parametrize("side, settings", [(64, PRIME_SMALL), (65, PRIME_LARGE)])
def test_prime_has_settings_for_small_and_large_images(side, settings, monkeypatch):
    met = []
    for name in PRIMITIVES:
        monkeypatch.setattr(baselines, name, lambda part, given: met.append(given) or part)
    images = torch.rand(4, 3, 8, side)
    torch.testing.assert_close(prime(images), images)
    assert set(met) == {settings}
