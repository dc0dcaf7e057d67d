"""CycleGAN, Pix2Pix and VAEGAN beyond the contract: what training asks of them."""

import json

import pytest
import torch
from specimens import photos
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from styleaug import ConfigError, WeightsError
from styleaug.generators.cyclegan import CycleGAN
from styleaug.generators.layers import initialise_gan, normalise, smooth
from styleaug.generators.pix2pix import Pix2Pix
from styleaug.generators.vaegan import VAEGAN

KINDS = [CycleGAN, Pix2Pix, VAEGAN]
FOLDS = [
    (kind, {"fold": fold, "skip": skip})
    for kind in (CycleGAN, VAEGAN)
    for fold in (1, 2)
    for skip in (False, True)
]


def tiny(kind, **options):
    sizes = {CycleGAN: {"blocks": 1}, Pix2Pix: {"depth": 3}, VAEGAN: {"blocks": 1, "latent": 3}}
    return kind(4, **sizes[kind], **options)


def translate(network, images):
    """Translate with one code for all rows, if the network takes any."""
    codes = [torch.linspace(-1, 1, network.code_length).expand(len(images), -1)] * bool(network.code_length)
    return network.translate(images, *codes)


@pytest.mark.parametrize(("kind", "options"), [*FOLDS, (Pix2Pix, {})])
def test_translate_keeps_shape_and_reaches_every_weight(kind, options):
    network = tiny(kind, **options)
    images = photos(2, 16, 24).requires_grad_()
    painted = translate(network, images)
    assert painted.shape == images.shape and painted.dtype == images.dtype
    assert painted.min() > -0.05 and painted.max() < 1.05
    painted.square().sum().backward()
    assert images.grad is not None and images.grad.abs().sum() > 0
    for name, weight in network.named_parameters():
        if not name.startswith(("encoder.", "to_latent.")):
            assert weight.grad is not None and weight.grad.isfinite().all(), name
            assert weight.grad.abs().sum() > 0, name


@pytest.mark.parametrize(("kind", "options"), FOLDS)
def test_with_skip_a_fresh_network_is_nearly_the_identity(kind, options):
    torch.manual_seed(1)
    images = photos(2, 32, 32)
    change = (translate(tiny(kind, **options), images) - images).abs().mean()
    assert change < 0.02 if options["skip"] else change > 0.05


@pytest.mark.parametrize("kind", [CycleGAN, VAEGAN])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_saturated_pixels_still_have_gradients(kind, value):
    network, images = tiny(kind, fold=2, skip=True), torch.full((1, 3, 32, 32), value)
    images[..., 8:16, 8:16] = 0.3
    for bias in (-0.5, 0.5):  # paint too dark, and too bright
        network.tail.last.bias.data[:12] = bias
        network.zero_grad()
        painted = translate(network, images)
        background = painted[..., 24:, 24:]
        (grads,) = torch.autograd.grad(background.mean(), network.tail.last.bias)
        assert grads[:12].abs().min() > 1e-3
        assert background.min() > -0.1 and background.max() < 1.1


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_weights(kind):
    def made(seed):
        torch.manual_seed(seed)
        return tiny(kind).fingerprint

    assert made(0) == made(0) != made(1)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_channels_last(kind):
    for weight in tiny(kind).parameters():
        assert weight.ndim != 4 or weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_weights_leave_images_in_float32(kind):
    torch.manual_seed(0)
    network, images = tiny(kind).eval().requires_grad_(False), photos(2, 32, 32)
    codes = network.encode_style(1 - images)
    full = network(images, codes, torch.ones(2))
    network.to(torch.bfloat16)
    short = network(images, codes, torch.ones(2))
    assert short.dtype == torch.float32 and not torch.equal(full, short)
    assert (full - short).abs().mean() < 2 / 255
    assert network.encode_style(images).dtype == torch.float32


@pytest.mark.parametrize("blocks", [1, 2, 3, 9])
def test_cyclegan_encodes_and_decodes(blocks):
    network, images = CycleGAN(4, blocks=blocks, fold=2, skip=True), photos(2, 32, 40)
    levels = network.encode(images)
    assert [level.shape[1] for level in levels] == network.encoder_channels
    assert len(levels) == 3 + min(blocks, 3), "stem, two halvings; first, middle and last block"
    assert levels[0].shape[2:] == (16, 20) and levels[-1].shape[2:] == (4, 5)
    assert torch.equal(network.decode(levels, images), network.translate(images))
    only_last = network.decode(levels[-1:], images)
    assert torch.equal(only_last, network.translate(images))


def test_without_skip_the_image_reaches_the_tail_through_the_levels_alone():
    images = photos(2, 16, 16)
    for skip in (False, True):
        network = CycleGAN(4, blocks=1, skip=skip)
        levels = network.encode(images)
        same = torch.equal(network.decode(levels, images), network.decode(levels, 1 - images))
        assert same == (not skip)


def test_the_size_of_the_papers_cyclegan():
    with torch.device("meta"):
        network = CycleGAN()
    assert 11.3e6 < sum(p.numel() for p in network.parameters()) < 11.4e6


def test_folding_takes_a_quarter():
    costs = []
    for fold in (1, 2):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            CycleGAN(8, blocks=2, fold=fold).translate(photos(1, 64, 64))
        costs.append(counter.get_total_flops())
    assert costs[1] < costs[0] / 4


def test_what_alternates_from_pixel_to_pixel_is_smoothed_away():
    checks = (torch.arange(6)[:, None] + torch.arange(8)) % 2 * 1.0
    assert torch.equal(smooth(checks.expand(1, 2, 6, 8))[..., 1:, 1:], torch.full((1, 2, 5, 7), 0.5))


def test_pix2pix_is_the_papers():
    with torch.device("meta"):
        network = Pix2Pix()
    assert 39e6 < sum(p.numel() for p in network.parameters()) < 41e6, "the paper has 54e6: 4x4 going up"
    assert [conv.out_channels for conv in network.down] == [64, 128, 256, 512, 512, 512, 512, 512]
    assert [up.conv.in_channels for up in network.up] == [
        128,
        256,
        512,
        1024,
        1024,
        1024,
        1024,
        512,
    ]


def test_pix2pix_keeps_flat_areas_flat():
    """No level may draw a pattern of its own where the image has none."""
    network = tiny(Pix2Pix, dropout=0.0)
    for weight in network.parameters():
        nn.init.normal_(weight, std=0.2)
    painted = network.translate(torch.full((1, 3, 32, 32), 0.3))
    assert painted[..., 8:, 8:].flatten(2).std(dim=2).max() < 1e-5


def test_pix2pix_drops_out_while_training_only():
    network, images = tiny(Pix2Pix), photos(1, 16, 16)
    assert not torch.equal(network.translate(images), network.translate(images))
    network.eval()
    assert torch.equal(network.translate(images), network.translate(images))
    network = tiny(Pix2Pix, dropout=0.0)
    assert torch.equal(network.translate(images), network.translate(images))


def test_pix2pix_uses_its_innermost_pixel():
    """Normalised, a map of one pixel would be zero whatever the image."""
    network = tiny(Pix2Pix).eval()
    levels = network.encode(2 * photos(2, 8, 8) - 1)
    assert levels[-1].shape[2:] == (1, 1) and levels[-1].std() > 1e-4
    assert (network.up[-1](F.relu(levels[-1])).diff(dim=0)).abs().max() > 1e-6


def test_the_code_changes_what_vaegan_paints_from_the_start():
    torch.manual_seed(0)
    network, images = VAEGAN(8, blocks=2), photos(1, 32, 32)
    one, other = network.translate(images.expand(2, -1, -1, -1), torch.randn(2, 8))
    assert (one - other).abs().mean() > 0.02


def test_vaegan_encodes_the_mean():
    network, images = tiny(VAEGAN), photos(4, 20, 31)
    mean, log_variance = network.encode_latent(images)
    assert mean.shape == log_variance.shape == (4, network.code_length)
    assert torch.equal(network.encode_style(images), mean)
    assert not torch.equal(mean[0], mean[1])
    (mean.sum() + log_variance.sum()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.encoder.parameters())


def test_vaegan_tells_contrast_and_colour():
    network, image = VAEGAN(8), photos(1, 32, 32)
    codes = network.encode_style(torch.cat([image, 0.5 * image + 0.25, image.flip(1)]))
    assert (codes[0] - codes[1]).abs().max() > 0.01 and (codes[0] - codes[2]).abs().max() > 0.001


@pytest.mark.parametrize("kind", KINDS)
def test_settings_survive_json(kind):
    network = tiny(kind)
    again = kind.from_settings(json.loads(json.dumps(network.settings())))
    assert again.settings() == network.settings() and again.extra_repr() == network.extra_repr()


REFUSED = [("width", value) for value in (0, -1, 257, 10**9, 4.0, "4", None, True)]


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        *((kind, name, value) for kind in KINDS for name, value in REFUSED),
        *((kind, "blocks", value) for kind in (CycleGAN, VAEGAN) for value in (0, 65, 1.0, [1])),
        *((kind, "fold", value) for kind in (CycleGAN, VAEGAN) for value in (0, 3, True)),
        *((kind, "skip", value) for kind in (CycleGAN, VAEGAN) for value in (0, 1, "yes")),
        *((VAEGAN, "latent", value) for value in (0, 1025, 8.0)),
        *((Pix2Pix, "depth", value) for value in (1, 11, 6.0)),
        *((Pix2Pix, "dropout", value) for value in (0, 1.0, -0.1, float("nan"))),
        *((kind, "gain", 1) for kind in KINDS),
    ],
)
def test_absurd_settings_are_refused(kind, name, value):
    with pytest.raises((WeightsError, TypeError), match="must be"):
        kind.from_settings({**tiny(kind).settings(), name: value})


@pytest.mark.parametrize("kind", KINDS)
def test_missing_settings_are_refused(kind):
    with pytest.raises(WeightsError, match="settings must be width, "):
        kind.from_settings({"width": 4})


def test_arguments_are_checked():
    with pytest.raises(ConfigError, match="fold must be 1 or 2, got 3"):
        CycleGAN(4, fold=3)
    with pytest.raises(ConfigError, match="fold must be 1 or 2, got 0"):
        VAEGAN(4, fold=0)
    with pytest.raises(ConfigError, match="depth must be at least 2, got 1"):
        Pix2Pix(4, depth=1)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_normalise_has_the_right_gradient(layout):
    features = (3 * torch.randn(2, 3, 5, 4, dtype=torch.float64) + 1).contiguous(memory_format=layout)
    features.requires_grad_()
    torch.testing.assert_close(normalise(features), F.instance_norm(features))
    assert torch.autograd.gradcheck(normalise, (features,))
    with torch.no_grad():
        torch.testing.assert_close(normalise(features), F.instance_norm(features))


def test_normalise_has_finite_gradients_on_flat_maps():
    for dtype in (torch.float32, torch.bfloat16):
        flat = torch.full((1, 2, 4, 4), 3.0, dtype=dtype).requires_grad_()
        (grads,) = torch.autograd.grad(normalise(flat).sum(), flat)
        assert grads.isfinite().all() and grads.dtype == dtype


def test_initialise_gan():
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(16, 32, 3), torch.nn.Linear(64, 64), torch.nn.Linear(64, 64)
    )
    initialise_gan(network, quiet=[network[2]])
    for layer, std in zip(network, (0.02, 0.02, 0.001), strict=True):
        assert not layer.bias.any()
        assert abs(layer.weight.std() / std - 1) < 0.05
