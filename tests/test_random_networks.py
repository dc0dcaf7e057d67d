"""Generators that need neither bank nor weights: a code drawn from the prior is all there is to them."""

import math

import pytest
import torch
import torch.nn.functional as F
from specimens import generator, photos

from styleaug import StyleAugment
from styleaug.evaluation.displacement import displacements
from styleaug.generators import random_networks
from styleaug.generators.prime import STEEP, WAVES
from styleaug.generators.random_networks import convolve, kernels, one_of
from styleaug.weights import RANDOM_GENERATORS, find_styles

each = pytest.mark.parametrize("name", RANDOM_GENERATORS)


def drawn(name: str, count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, generator(name).code_length, generator=torch.Generator().manual_seed(seed))


def smooth_photos(count: int, side: int) -> torch.Tensor:
    return F.avg_pool2d(photos(count, side + 4, side + 4), 5, 1)


@each
def test_neither_bank_nor_weights_are_needed(name):
    assert find_styles(None, name) == (None, name)
    assert not generator(name).state_dict()
    images = photos(6)
    augment = StyleAugment(generator=name, p=1.0, strength=1.0)
    params = augment.make_params(images, rng=torch.Generator().manual_seed(0))
    styled = augment.apply(images, params)
    assert torch.equal(augment.apply(images, params), styled)
    again = augment.make_params(images, rng=torch.Generator().manual_seed(1))
    assert (augment.apply(images, again) - styled).flatten(1).abs().mean(dim=1).min() > 0.01


@each
def test_no_two_codes_give_the_same(name):
    image = photos(1).expand(12, -1, -1, -1)
    styled = generator(name)(image, drawn(name, 12), torch.ones(12)).flatten(1)
    assert torch.cdist(styled, styled, p=1).fill_diagonal_(math.inf).min() / styled.shape[1] > 0.005


@each
def test_codes_of_images_are_spread_as_the_prior_is(name):
    codes = generator(name).encode_style(torch.cat([photos(20), 1 - photos(20)]))
    assert abs(codes.mean()) < 0.2 and 0.8 < codes.std() < 1.2


@each
def test_rows_one_by_one_are_rows_at_once(name, monkeypatch):
    images, codes, strength = photos(9, 20, 17), drawn(name, 9), torch.linspace(0.2, 1, 9)
    alone = generator(name)(images, codes, strength)
    monkeypatch.setattr(random_networks, "apart", lambda images: False)
    torch.testing.assert_close(generator(name)(images, codes, strength), alone, atol=2e-5, rtol=0)


@each
def test_half_a_turn_of_the_image_is_half_a_turn_of_the_result(name):
    """Only of kernels that are the same from both ends, which move no edge."""
    images, codes, strength = photos(8, 21, 16), drawn(name, 8), torch.ones(8)
    turned = generator(name)(images.flip(-1, -2), codes, strength).flip(-1, -2)
    torch.testing.assert_close(turned, generator(name)(images, codes, strength), atol=2e-4, rtol=0)


@each
def test_edges_stay_where_they_are(name):
    images = smooth_photos(24, 64)
    found = displacements(images, generator(name)(images, drawn(name, 24), torch.ones(24)))
    assert found.local.median() < 0.5 and found.matched > 0.7


@each
def test_images_are_neither_mud_nor_cut_off(name):
    images = smooth_photos(16, 48)
    styled = generator(name)(images, drawn(name, 16), torch.ones(16))
    contrast = [x.std(dim=(2, 3)).square().sum(dim=1).sqrt() for x in (styled, images)]
    assert (contrast[0] > 0.3 * contrast[1]).all()
    assert ((styled <= 0) | (styled >= 1)).float().mean() < 0.25


@each
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(name, dtype):
    images, codes = photos(3), drawn(name, 3)
    styled = generator(name)(images.to(dtype), codes, torch.ones(3))
    assert styled.dtype == dtype
    torch.testing.assert_close(
        styled.float(), generator(name)(images.to(dtype).float(), codes, torch.ones(3)), atol=0.01, rtol=0
    )


@each
def test_gradients_reach_the_image(name):
    images = photos(2).requires_grad_()
    generator(name)(images, drawn(name, 2), torch.tensor([0.5, 1.0])).square().sum().backward()
    assert images.grad is not None and images.grad.isfinite().all() and images.grad.abs().sum() > 0


@each
def test_codes_far_from_the_prior_stay_in_range(name):
    codes = 1000 * drawn(name, 4)
    styled = generator(name)(photos(4), codes, torch.ones(4))
    assert styled.isfinite().all() and styled.min() >= 0 and styled.max() <= 1


@pytest.mark.parametrize("side", [1, 3, 5, 7])
def test_convolutions_are_torchs(side):
    images, weights, shift = torch.randn(3, 2, 9, 8), torch.randn(3, 4, 2, side, side), torch.randn(3, 4)
    padded = F.pad(images, [side // 2] * 4, mode="replicate")
    wanted = [F.conv2d(x[None], w, b) for x, w, b in zip(padded, weights, shift, strict=True)]
    torch.testing.assert_close(convolve(images, weights, shift), torch.cat(wanted), atol=1e-4, rtol=0)


def test_sizes_of_kernels_are_equally_likely():
    reach = one_of(torch.randn(4000, generator=torch.Generator().manual_seed(0)), 4)
    assert (reach.long().bincount() / 4000 - 0.25).abs().max() < 0.03
    made = kernels(torch.randn(4000, 3, 3, 7, 7, generator=torch.Generator().manual_seed(1)), reach)
    sides = (made.abs().amax(dim=(1, 2, 3)) > 0).sum(dim=1)
    assert torch.equal(sides, (2 * reach + 1).long())
    assert made.square().sum(dim=(3, 4)).mean(dim=(1, 2)).mean() == pytest.approx(1.6, abs=0.5)


def test_curves_are_sums_of_sines():
    images, codes = photos(2), drawn("tone-curves", 2)
    wave = torch.arange(1, WAVES + 1.0)
    sines = torch.sin(math.pi * wave[:, None, None] * images[:, :, None])
    amplitudes = STEEP / wave * codes.unflatten(1, (3, WAVES))
    wanted = images + (amplitudes[..., None, None] * sines).sum(dim=2)
    found = generator("tone-curves")(images, codes, torch.ones(2))
    torch.testing.assert_close(found, wanted.clamp(0, 1), atol=1e-5, rtol=0)


def test_a_filter_of_no_random_part_changes_nothing():
    codes = drawn("random-filter", 2)
    codes[:, 0] = -10
    torch.testing.assert_close(
        generator("random-filter")(photos(2), codes, torch.ones(2)), photos(2), atol=1e-5, rtol=0
    )


def test_a_kernel_of_one_pixel_changes_pixels_by_their_own_colour():
    codes = drawn("randconv", 1)
    codes[:, 0] = -2
    images = photos(1)
    moved = images.flatten(2)[..., torch.randperm(24 * 32, generator=torch.Generator().manual_seed(0))]
    styled = generator("randconv")(moved.view_as(images), codes, torch.ones(1))
    wanted = generator("randconv")(images, codes, torch.ones(1)).flatten(2)
    order = torch.randperm(24 * 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(styled.flatten(2), wanted[..., order], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["randconv", "gin"])
@pytest.mark.parametrize("level", [0.03, 0.97])
def test_no_image_becomes_all_black_or_white(name, level):
    images = level + 0.02 * (photos(1).expand(40, -1, -1, -1) - 0.5)
    means = generator(name)(images, drawn(name, 40), torch.ones(40)).mean(dim=(2, 3))
    assert means.min() > 0.09 and means.max() < 0.91


def test_a_random_filter_never_inverts_what_is_smooth():
    ramp = torch.linspace(0.2, 0.8, 40).expand(200, 3, 40, 40)
    made = generator("random-filter")(ramp, drawn("random-filter", 200), torch.ones(200))
    assert (made[:, :, 20, 30] > made[:, :, 20, 10]).all()
