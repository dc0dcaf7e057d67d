"""Every sampler keeps the contract, and draws from the distribution it promises."""

import math

import pytest
import torch
from contract import SAMPLER_CHECKS, draw
from hypothesis import given
from hypothesis import strategies as st
from strategies import seeds

from styleaug import ConfigError
from styleaug.samplers import (
    SAMPLERS,
    Mix,
    Weighted,
    draw_others,
    gaussian,
    lerp,
    mix,
    prior,
    sample,
    slerp,
    spherical,
    uniform,
    weighted,
)

DRAWS = 20_000


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("check", SAMPLER_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("kind", [*SAMPLERS, Mix(3), Weighted], ids=str)
def test_contract(kind, check):
    check(kind)


def frequencies(sources: torch.Tensor, styles: int) -> torch.Tensor:
    return torch.bincount(sources.flatten(), minlength=styles) / sources.numel()


def assert_frequencies(sources: torch.Tensor, wanted: torch.Tensor) -> None:
    """Compare with five standard errors of each frequency."""
    error = 5 * (wanted * (1 - wanted) / sources.numel()).sqrt()
    assert ((frequencies(sources, len(wanted)) - wanted).abs() <= error).all()


def test_uniform_draws_all_styles_equally_often():
    drawn = uniform(torch.rand(7, 3), DRAWS, rng())
    assert_frequencies(drawn.sources, torch.full((7,), 1 / 7))


@given(st.lists(st.floats(0, 10), min_size=2, max_size=8).filter(lambda weights: sum(weights) > 0.1))
def test_weighted_draws_in_proportion(weights):
    drawn = weighted(torch.rand(len(weights), 3), DRAWS, rng(), weights=torch.tensor(weights))
    wanted = torch.tensor(weights, dtype=torch.float64)
    assert_frequencies(drawn.sources, wanted / wanted.sum())


def test_weight_zero_is_never_drawn():
    drawn = weighted(torch.rand(5, 3), DRAWS, rng(), weights=torch.tensor([0.0, 1, 0, 1e-3, 0]))
    assert set(drawn.sources.flatten().tolist()) == {1, 3}


@pytest.mark.parametrize(
    "weights",
    [[1.0, 2.0], [1.0, -1.0, 1.0], [0.0] * 3, [math.nan, 1, 1], [math.inf, 1, 1], [[1.0], [1.0], [1.0]]],
)
def test_bad_weights_are_refused(weights):
    with pytest.raises(ConfigError, match="weights must be"):
        weighted(torch.rand(3, 2), 4, weights=torch.tensor(weights))


def test_mix_shares_are_flat_on_the_simplex():
    drawn = mix(torch.rand(5, 3), DRAWS, rng(), components=3)
    shares = drawn.shares
    assert (shares >= 0).all()
    torch.testing.assert_close(shares.sum(1), torch.ones(DRAWS))
    # Dirichlet(1, 1, 1): each share has mean 1/3, variance 1/18 and covariance -1/36 with another.
    torch.testing.assert_close(shares.mean(0), torch.full((3,), 1 / 3), atol=0.01, rtol=0)
    wanted = torch.full((3, 3), -1 / 36) + torch.eye(3) * (1 / 18 + 1 / 36)
    torch.testing.assert_close(torch.cov(shares.T), wanted, atol=0.003, rtol=0)
    assert_frequencies(drawn.sources, torch.full((5,), 1 / 5))


def test_mix_of_one_is_a_style():
    codes = torch.rand(5, 3)
    drawn = mix(codes, 50, rng(), components=1)
    torch.testing.assert_close(drawn.codes, codes[drawn.sources[:, 0]])


def test_gaussian_has_the_banks_mean_and_covariance():
    # Many styles far from their own extremes, so that clamping moves next to nothing.
    codes = torch.randn(4000, 3, generator=rng(1)) @ torch.tensor([[1.0, 0, 0], [0.8, 0.5, 0], [0, 0.3, 2]])
    drawn = gaussian(codes, DRAWS, rng())
    assert drawn.sources.shape == (DRAWS, 0) and drawn.shares.shape == (DRAWS, 0)
    torch.testing.assert_close(drawn.codes.mean(0), codes.mean(0), atol=0.08, rtol=0)
    torch.testing.assert_close(torch.cov(drawn.codes.T), torch.cov(codes.T), atol=0.15, rtol=0)


def test_gaussian_stays_inside_the_bank():
    codes = torch.tensor([[0.0, 1.0], [0.5, 1.0], [1.0, 1.0]])
    drawn = gaussian(codes, 2000, rng()).codes
    assert drawn[:, 0].min() == 0 and drawn[:, 0].max() == 1, "some draws were clamped"
    assert (drawn[:, 1] == 1).all()
    assert torch.equal(gaussian(codes[:1], 3, rng()).codes, codes[:1].expand(3, 2))


@pytest.mark.parametrize("path", [lerp, slerp])
@given(
    count=st.integers(0, 4), length=st.integers(0, 5), scale=st.sampled_from([1e-20, 1.0, 1e6]), seed=seeds
)
def test_paths_start_and_end_exactly(path, count, length, scale, seed):
    one, other = scale * torch.randn(2, count, length, generator=rng(seed))
    assert torch.equal(path(one, other, torch.zeros(count)), one)
    assert torch.equal(path(one, other, torch.ones(count)), other)
    between = path(one, other, torch.rand(count, generator=rng(seed)))
    assert between.shape == one.shape and between.isfinite().all()


def test_lerp_is_straight():
    one, other = torch.tensor([[0.0, 2.0]]), torch.tensor([[4.0, -2.0]])
    torch.testing.assert_close(lerp(one, other, torch.tensor([0.25])), torch.tensor([[1.0, 1.0]]))


def test_slerp_turns_at_constant_speed_while_the_norm_changes_linearly():
    one, other = torch.tensor([[2.0, 0.0]]).expand(5, 2), torch.tensor([[0.0, 6.0]]).expand(5, 2)
    share = torch.linspace(0, 1, 5)
    angle, norm = share * math.pi / 2, 2 + 4 * share
    wanted = torch.stack([norm * angle.cos(), norm * angle.sin()], dim=1)
    torch.testing.assert_close(slerp(one, other, share), wanted)


@given(seed=seeds, share=st.floats(0.01, 0.99))
def test_slerp_keeps_the_norm_and_divides_the_angle(seed, share):
    one, other = torch.nn.functional.normalize(torch.randn(2, 8, 16, generator=rng(seed)), dim=2)
    middle = slerp(one, other, torch.full((8,), share))
    torch.testing.assert_close(middle.norm(dim=1), torch.ones(8))
    whole, part = ((one * x).sum(1).clamp(-1, 1).acos() for x in (other, middle))
    torch.testing.assert_close(part, share * whole, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([1.0, 2.0], [1.0, 2.0]),
        ([1.0, 2.0], [2.0, 4.0]),
        ([1.0, 2.0], [1.0, 2.0000002]),
        ([1.0, 2.0], [-1.0, -2.0]),
        ([0.0, 0.0], [1.0, 2.0]),
        ([0.0, 0.0], [0.0, 0.0]),
    ],
)
def test_slerp_is_straight_where_there_is_no_single_great_circle(one, other):
    share = torch.tensor([0.0, 0.3, 0.5, 1.0])
    one, other = torch.tensor([one]).expand(4, 2), torch.tensor([other]).expand(4, 2)
    assert torch.equal(slerp(one, other, share), lerp(one, other, share))


def test_spherical_keeps_latents_on_their_shell():
    codes = torch.randn(50, 256, generator=rng(1))
    drawn = spherical(codes, 2000, rng())
    low, high = codes.norm(dim=1).aminmax()
    assert drawn.codes.norm(dim=1).min() > low - 1e-3 and drawn.codes.norm(dim=1).max() < high + 1e-3
    assert mix(codes, 2000, rng()).codes.norm(dim=1).min() < 0.8 * low, "as sums do not"
    assert_frequencies(drawn.sources, torch.full((50,), 1 / 50))
    assert abs(drawn.shares[:, 1].mean() - 0.5) < 0.03 and abs(drawn.shares[:, 1].var() - 1 / 12) < 0.01


def test_prior_is_standard_normal():
    drawn = prior(3, DRAWS, rng())
    torch.testing.assert_close(drawn.codes.mean(0), torch.zeros(3), atol=0.04, rtol=0)
    torch.testing.assert_close(torch.cov(drawn.codes.T), torch.eye(3), atol=0.05, rtol=0)
    assert drawn.sources.shape == drawn.shares.shape == (DRAWS, 0) and not drawn.sources.is_floating_point()
    assert prior(0, 4).codes.shape == (4, 0)


@given(size=st.integers(2, 12), seed=st.integers(0, 1000))
def test_draw_others_never_gives_the_row_itself(size, seed):
    rows = torch.arange(size).repeat(20)
    others = draw_others(rows, size, rng(seed))
    assert (others != rows).all() and others.min() >= 0 and others.max() < size


def test_draw_others_gives_all_others_equally_often():
    others = draw_others(torch.full((DRAWS,), 2), 5, rng())
    assert_frequencies(others, torch.tensor([0.25, 0.25, 0, 0.25, 0.25]))
    assert draw_others(torch.tensor([0, 0]), 1).tolist() == [0, 0]


def test_unknown_samplers_are_refused():
    with pytest.raises(ConfigError, match="choose from uniform, mix, gaussian, slerp, Mix"):
        sample("median", torch.rand(3, 2), 1)  # pyright: ignore
    with pytest.raises(ConfigError, match="needs weights"):
        sample("weighted", torch.rand(3, 2), 1)  # pyright: ignore
    with pytest.raises(ConfigError, match="components must be a whole number from 1, got 0"):
        Mix(0)
    with pytest.raises(ConfigError, match="at least 1 component"):
        mix(torch.rand(3, 2), 1, components=0)


def test_drawn_codes_are_copies():
    codes = torch.rand(3, 2)
    before = codes.clone()
    for kind in [*SAMPLERS, Mix(3), Weighted]:
        draw(kind, codes, 4).codes.zero_()
    assert torch.equal(codes, before)
