"""What may be said of differences over seeds, against scipy."""

import math

import pytest
from scipy import stats

from styleaug.errors import ConfigError
from styleaug.robustness.statistics import difference, holm, sign_flip_p, spread, t_cdf, t_quantile

BASE = dict(enumerate([0.40, 0.45, 0.38, 0.47]))


def moved(*gains: float) -> dict[int, float]:
    return {seed: BASE[seed] + gain for seed, gain in enumerate(gains)}


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 8, 29, 30])
def test_t_is_scipys(freedom):
    for value in (-30.0, -2.0, -0.1, 0.0, 0.7, 4.0):
        assert t_cdf(value, freedom) == pytest.approx(stats.t.cdf(value, freedom), abs=1e-12)
    for share in (0.025, 0.5, 0.9, 0.995):
        assert t_quantile(share, freedom) == pytest.approx(stats.t.ppf(share, freedom), abs=1e-8)


def test_spread_is_scipys_interval():
    values = [0.61, 0.58, 0.66, 0.6]
    found = spread(values)
    low, high = stats.t.interval(0.95, 3, loc=found.mean, scale=stats.sem(values))
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.deviation == pytest.approx(0.03403, abs=1e-5)


def test_one_value_has_no_interval():
    found = spread([0.5])
    assert (found.mean, found.deviation, found.low, found.high) == (0.5, None, None, None)


@pytest.mark.parametrize("values", [[], [0.5, math.nan], [math.inf]])
def test_values_must_be_finite(values):
    with pytest.raises(ConfigError, match="finite"):
        spread(values)


def test_paired_p_is_scipys():
    arm = moved(0.05, 0.02, 0.09, 0.04)
    found = difference(arm, BASE)
    assert found is not None
    assert found.p == pytest.approx(stats.ttest_rel(list(arm.values()), list(BASE.values())).pvalue)


@pytest.mark.parametrize(
    "gains, verdict",
    [
        ((0.05, 0.06, 0.055, 0.052), "better"),
        ((-0.05, -0.06, -0.055, -0.052), "worse"),
        ((0.05, -0.06, 0.055, 0.01), "within noise"),
        ((0.2,), "one seed only"),
        ((0.1, 0.1), "within noise"),  # equal by chance: nothing is known of the noise
        ((0.0, 0.0, 0.0), "within noise"),
    ],
)
def test_verdicts(gains, verdict):
    found = difference(moved(*gains), BASE)
    assert found is not None
    assert found.verdict == verdict
    assert found.wins == sum(gain > 0 for gain in gains)


def test_only_common_seeds_are_compared():
    found = difference({0: 0.5, 7: 0.9}, BASE)
    assert found is not None
    assert (found.count, found.mean) == (1, pytest.approx(0.1))
    assert difference({7: 0.9}, BASE) is None


def test_sign_flips_are_all_counted():
    assert sign_flip_p([1.0, 2.0, 3.0]) == 2 / 8
    assert sign_flip_p([1.0, -2.0, 3.0]) == 6 / 8  # 2 is the least sum of the eight but for +-0
    assert sign_flip_p([1.0] * 17) is None
    exact = stats.permutation_test(
        ([0.3, 0.1, 0.4, 0.2, -0.05],), lambda x: x.mean(), permutation_type="samples"
    )
    assert sign_flip_p([0.3, 0.1, 0.4, 0.2, -0.05]) == pytest.approx(exact.pvalue)


def test_holm_is_the_textbook_example():
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}) == pytest.approx(
        {"d": 0.02, "a": 0.03, "c": 0.06, "b": 0.06}
    )
