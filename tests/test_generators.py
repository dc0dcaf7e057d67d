"""Every generator keeps the contract; AdaIN in particular."""

from copy import deepcopy

import pytest
import torch
from contract import GENERATOR_CHECKS, paint
from golden_files import assert_golden
from hypothesis import given
from hypothesis import strategies as st
from specimens import GENERATORS, Spy, generator, photos, tiny_adain, tiny_photo
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from styleaug import WeightsError, generator_names, load_generator
from styleaug.generators.adain import AdaIN
from styleaug.generators.base import AbstractGenerator
from styleaug.generators.color import ChannelStats, FourierAmplitude, HistogramMatching
from styleaug.generators.layers import adain, channel_stats, normalise, pad_to_multiple, per_channel, shuffle
from styleaug.generators.photo import Photo, interpolation
from styleaug.weights import COLOR_GENERATORS

SHIPPED = [name for name in generator_names() if name not in GENERATORS]


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


@pytest.mark.parametrize(
    ("kind", "length", "parameters", "gmac"), [(AdaIN, 230, 500_000, 0.50), (Photo, 102, 200_000, 0.15)]
)
def test_sizes_of_the_networks(kind, length, parameters, gmac):
    network = kind()
    assert sum(p.numel() for p in network.parameters()) < parameters
    assert network.code_length == length
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(photos(1, 224, 224), torch.rand(1, length), torch.ones(1))
    assert counter.get_total_flops() / 2e9 < gmac


@pytest.mark.parametrize("network", [tiny_photo(0), tiny_photo(1), load_generator("photo")])
def test_photo_moves_no_edge(network):
    """Beside a step, neighbouring pixels stay as alike as they were; the step stays where it is."""
    image = torch.full((1, 3, 224, 224), 0.2)
    image[..., 97:] = torch.tensor([0.7, 0.5, 0.6])[:, None, None]
    codes = network.encode_style(photos(4, 64, 64))
    styled = network(image.expand(4, -1, -1, -1), codes, torch.ones(4))
    steps = styled.diff(dim=-1).abs().amax(dim=(1, 2))
    assert steps[:, 96].min() > 0.05, "the edge is there"
    steps[:, 96] = 0
    assert steps.max() < 0.02, "and nowhere else"


@pytest.mark.parametrize(("network", "bound"), [(tiny_photo(0), 0.05), (load_generator("photo"), 0.02)])
def test_photo_changes_a_pixel_by_its_own_colour_alone(network, bound):
    images = photos(2, 96, 96)
    changed = images.clone()
    changed[..., 40, 50] = 1 - changed[..., 40, 50]
    codes = network.encode_style(photos(4, 64, 64)[2:])
    difference = (network(changed, codes, torch.ones(2)) - network(images, codes, torch.ones(2))).abs()
    assert difference[..., 40, 50].max() > 0.1
    difference[..., 40, 50] = 0
    assert difference.max() < bound, "the small copy hardly changed"


@pytest.mark.parametrize("size_out", [1, 7, 16, 50, 224])
def test_interpolation_is_torchs(size_out):
    grid = photos(2, 16, 16)
    wanted = F.interpolate(grid, size=(size_out, 33), mode="bilinear")
    found = interpolation(size_out, 16, grid) @ grid @ interpolation(33, 16, grid).T
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "make",
    [
        lambda: AdaIN((4, 4, 8), blocks=1, hidden=8),
        lambda: Photo((4, 4), channels=8, blocks=1, hidden=8, tones=3),
    ],
)
def test_untrained_networks_are_the_colour_swap(make):
    torch.manual_seed(0)
    images, styles = photos(2, 24, 32), 0.3 + 0.4 * photos(2, 24, 32).flip(0)
    network = make()
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


@pytest.mark.parametrize(
    "changes",
    [
        {"widths": [16]},
        {"widths": [16, 10**9]},
        {"tones": 1},
        {"tones": 2.0},
        {"channels": 0},
        {"blocks": None},
    ],
)
def test_photo_refuses_absurd_settings(changes):
    with pytest.raises((WeightsError, KeyError, TypeError)):
        Photo.from_settings({**Photo().settings(), **changes})


def test_statistics():
    features = torch.randn(2, 3, 9, 8) * 4 + 1
    mean, std = channel_stats(features).chunk(2, dim=1)
    torch.testing.assert_close(mean, features.mean((2, 3)))
    torch.testing.assert_close(std, features.std((2, 3), correction=0))
    plain = channel_stats(normalise(features))
    torch.testing.assert_close(plain, torch.tensor([0.0, 0, 0, 1, 1, 1]).expand(2, 6), atol=1e-5, rtol=1e-5)
    code = torch.tensor([[1.0, 2, 3, 0.5, 1, 2]]).expand(2, 6)
    torch.testing.assert_close(channel_stats(adain(features, code)), code, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("channels", [3, 16, 32])
def test_fast_affine_is_that_of_addcmul(dtype, layout, channels):
    features = torch.randn(2, channels, 6, 9).to(dtype).contiguous(memory_format=layout)
    scale, shift = torch.rand(2, channels, 1, 1) + 0.5, torch.randn(2, channels, 1, 1)
    wanted = torch.addcmul(shift.to(dtype), features, scale.to(dtype))
    with torch.inference_mode():
        found = per_channel(features, scale, shift)
    assert found.dtype == dtype
    torch.testing.assert_close(found, wanted)
    with torch.enable_grad():
        assert per_channel(features.clone().requires_grad_(), scale, shift).requires_grad


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_fast_shuffle_is_that_of_torch(layout):
    features = torch.randn(2, 12, 5, 7).contiguous(memory_format=layout)
    with torch.inference_mode():
        found = shuffle(features)
    assert torch.equal(found, F.pixel_shuffle(features, 2)) and found.is_contiguous()
    assert torch.equal(shuffle(features), found)


@pytest.mark.parametrize("name", [n for n in generator_names() if load_generator(n).takes_float16])
def test_float16_images_add_little_to_the_error_of_bfloat16(name):
    exact, images = load_generator(name), photos(3, 64)
    short = deepcopy(exact).bfloat16()
    strength = torch.tensor([1.0, 0.5, 0.0])
    with torch.inference_mode():
        codes = exact.encode_style(images.flip(0))
        wanted = exact(images, codes, strength)
        error = (short(images, codes, strength) - wanted).square().mean().sqrt()
        found = short(images.half(), codes, strength)
    assert found.dtype == torch.float16 and torch.equal(found[2], images[2].half())
    assert (found.float() - wanted).square().mean().sqrt() < 1.1 * error + 0.1 / 255


def test_photo_paints_rows_as_one_by_one():
    photo, images = tiny_photo(), photos(3)
    with torch.no_grad():
        codes, strength = photo.encode_style(images.flip(0)), torch.tensor([1.0, 0.5, 0.0])
        together = photo(images, codes, strength)
        alone = [photo(images[i : i + 1], codes[i : i + 1], strength[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=0)


@given(height=st.integers(1, 40), width=st.integers(1, 40))
def test_padding(height, width):
    images = torch.rand(1, 2, height, width)
    padded = pad_to_multiple(images, 8, 16)
    assert torch.equal(padded[..., :height, :width], images)
    assert all(side % 8 == 0 and side >= 16 for side in padded.shape[2:])
    assert padded.shape[2] < max(height + 8, 17) and padded.shape[3] < max(width + 8, 17)
    assert torch.equal(padded[..., -1, -1], images[..., -1, -1])
