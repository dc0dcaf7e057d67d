"""Every generator keeps the contract; AdaIN in particular."""

import pytest
import torch
from contract import GENERATOR_CHECKS, paint
from golden_files import assert_golden
from hypothesis import given
from hypothesis import strategies as st
from specimens import GENERATORS, Spy, generator, photos, tiny_adain

from styleaug import WeightsError, generator_names, load_generator
from styleaug.generators.adain import AdaIN
from styleaug.generators.base import AbstractGenerator
from styleaug.generators.color import COLOR_GENERATORS, ChannelStats, FourierAmplitude, HistogramMatching
from styleaug.generators.layers import adain, channel_stats, normalise, pad_to_multiple

SHIPPED = [name for name in generator_names() if name not in COLOR_GENERATORS]


@pytest.mark.parametrize("check", GENERATOR_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", [*GENERATORS, *SHIPPED])
def test_contract(name, check):
    check(generator(name) if name in GENERATORS else load_generator(name))


@pytest.mark.parametrize("name", GENERATORS)
@given(height=st.integers(1, 40), width=st.integers(1, 40), seed=st.integers(0, 1000))
def test_any_size(name, height, width, seed):
    images = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed))
    painted = paint(generator(name), images)
    assert painted.shape == images.shape and painted.isfinite().all()
    assert painted.min() >= 0 and painted.max() <= 1
    assert torch.equal(paint(generator(name), images, 0.0), images)


@pytest.mark.parametrize("name", GENERATORS)
def test_golden(name):
    images, strength = photos(3, 11, 14), torch.tensor([1.0, 0.5, 0.9])
    codes = generator(name).encode_style(1 - photos(3, 12, 10))
    painted = generator(name)(images, codes, strength)
    assert_golden(name, {"images": images, "codes": codes, "painted": painted})


def test_fingerprints_tell_settings_apart():
    networks: list[AbstractGenerator] = [
        *(make() for make in COLOR_GENERATORS.values()),
        HistogramMatching(quantiles=16),
        FourierAmplitude(cycles=2),
        tiny_adain(0),
        tiny_adain(1),
        AdaIN((4, 4, 8), blocks=2, hidden=8),
        AdaIN(),
    ]
    assert len({network.fingerprint for network in networks}) == len(networks)
    plain, tuned = Spy(), Spy()
    tuned.extra_repr = lambda: "gain=2"
    assert plain.fingerprint != tuned.fingerprint, "settings that change neither code nor weights count, too"
    for space in ("rgb", "lab"):
        assert ChannelStats(space).fingerprint == ChannelStats(space).fingerprint
    assert tiny_adain(0).fingerprint == tiny_adain(0).fingerprint


def test_size_of_the_default_adain():
    network = AdaIN()
    assert sum(p.numel() for p in network.parameters()) < 500_000
    assert network.code_length == 2 * (3 + 16 + 32 + 64)


def test_untrained_adain_is_the_colour_swap():
    torch.manual_seed(0)
    images, styles = photos(2, 24, 32), 0.3 + 0.4 * photos(2, 24, 32).flip(0)
    network = AdaIN((4, 4, 8), blocks=1, hidden=8)
    with torch.no_grad():
        painted = network.paint(images, network.encode_style(styles), torch.ones(2))
    wanted = adain(images, channel_stats(styles))
    assert (painted - wanted).abs().mean() < 0.05


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"widths": [16, 32, 64], "blocks": 3},
        {"widths": [16, 32], "blocks": 3, "hidden": 96},
        {"widths": "abc", "blocks": 3, "hidden": 96},
        {"widths": [16, 32, 64.0], "blocks": 3, "hidden": 96},
        {"widths": [16, 32, True], "blocks": 3, "hidden": 96},
        {"widths": [0, 32, 64], "blocks": 3, "hidden": 96},
        {"widths": [16, 32, 64], "blocks": -1, "hidden": 96},
        {"widths": [16, 32, 10**9], "blocks": 3, "hidden": 96},
    ],
)
def test_adain_refuses_absurd_settings(settings):
    # `load_generator` turns the builtin errors into ours; see test_weights.
    with pytest.raises((WeightsError, KeyError, TypeError)):
        AdaIN.from_settings(settings)


def test_statistics():
    features = torch.randn(2, 3, 9, 8) * 4 + 1
    mean, std = channel_stats(features).chunk(2, dim=1)
    torch.testing.assert_close(mean, features.mean((2, 3)))
    torch.testing.assert_close(std, features.std((2, 3), correction=0))
    plain = channel_stats(normalise(features))
    torch.testing.assert_close(plain, torch.tensor([0.0, 0, 0, 1, 1, 1]).expand(2, 6), atol=1e-5, rtol=1e-5)
    code = torch.tensor([[1.0, 2, 3, 0.5, 1, 2]]).expand(2, 6)
    torch.testing.assert_close(channel_stats(adain(features, code)), code, atol=1e-4, rtol=1e-4)


@given(height=st.integers(1, 40), width=st.integers(1, 40))
def test_padding(height, width):
    images = torch.rand(1, 2, height, width)
    padded = pad_to_multiple(images, 8, 16)
    assert torch.equal(padded[..., :height, :width], images)
    assert all(side % 8 == 0 and side >= 16 for side in padded.shape[2:])
    assert padded.shape[2] < max(height + 8, 17) and padded.shape[3] < max(width + 8, 17)
    assert torch.equal(padded[..., -1, -1], images[..., -1, -1])
