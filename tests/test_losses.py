"""Losses: gradients against finite differences in float64, and known values."""

import pytest
import torch
from specimens import photos
from torch import Tensor
from torch.autograd import gradcheck
from workshop import loss_networks

from styleaug import WeightsError
from styleaug.generators.layers import adain, channel_stats
from styleaug.perceptual import load_vgg19
from styleaug.training.losses import (
    content_loss,
    discriminator_loss,
    edge_correlation,
    edge_loss,
    fool_loss,
    gamut_loss,
    kl_loss,
    patch_nce,
    r1_penalty,
    style_loss,
)

KINDS = ["lsgan", "hinge", "logistic"]


def doubles(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def test_gradients_of_style_losses_agree_with_finite_differences():
    levels = [doubles(2, 3, 4, 5), doubles(2, 2, 3, 3)]
    stats = [channel_stats(doubles(2, 3, 4, 5)).detach(), channel_stats(doubles(2, 2, 3, 3)).detach()]
    assert gradcheck(lambda *x: style_loss(list(x), stats), levels)
    assert gradcheck(lambda *x: style_loss(list(x), stats, rows=True), levels)
    assert gradcheck(gamut_loss, doubles(2, 3, 4, 5) * 2)
    assert gradcheck(lambda x: adain(x, stats[0]), levels[0])
    # These compute in single precision, hence the wide step.
    rough = {"eps": 1e-2, "atol": 1e-3, "rtol": 1e-2}
    assert gradcheck(content_loss, (levels[0], doubles(2, 3, 4, 5)), **rough)
    other = torch.rand(2, 3, 5, 6, dtype=torch.float64)
    assert gradcheck(lambda x: edge_correlation(x, other), doubles(2, 3, 5, 6))
    assert gradcheck(lambda x: edge_loss(x, other), doubles(2, 3, 5, 6))
    assert gradcheck(channel_stats, levels[0])


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_adversarial_losses_agree_with_finite_differences(kind):
    assert gradcheck(lambda x: fool_loss(x, kind), doubles(2, 1, 3, 3))
    assert gradcheck(lambda x, y: discriminator_loss(x, y, kind), (doubles(2, 1, 3, 3), doubles(2, 1, 3, 3)))


def test_gradients_of_the_other_losses_agree_with_finite_differences():
    key = torch.nn.functional.normalize(doubles(2, 4, 3), dim=-1).detach()
    assert gradcheck(lambda x: patch_nce(x, key, 0.5), doubles(2, 4, 3))
    assert gradcheck(kl_loss, (doubles(3, 4), doubles(3, 4)))
    weight = doubles(3, 4, 4)

    def penalty(weight: Tensor) -> Tensor:
        images = torch.ones(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
        return r1_penalty(images, (images * weight).sum(dim=(1, 2, 3)).square())

    assert gradcheck(penalty, weight), "R1 is differentiated a second time"


def test_losses_are_zero_where_nothing_is_wanted():
    level = torch.randn(2, 3, 8, 8)
    assert style_loss([level], [channel_stats(level)]) < 1e-10
    shuffled = level.flatten(2)[:, :, torch.randperm(64)].view_as(level)
    assert style_loss([shuffled], [channel_stats(level)]) < 1e-10, "statistics know no place"
    assert content_loss(level, level) == 0
    assert content_loss(3 * level + 1, level) < 1e-6, "free of style statistics"
    assert content_loss(shuffled, level) > 0.1
    images = photos(2, 16, 16)
    torch.testing.assert_close(edge_correlation(images, 0.5 * images + 0.2), torch.ones(2), atol=1e-3, rtol=0)
    assert edge_correlation(images, images.roll(3, 3)).max() < 0.8
    assert gamut_loss(torch.rand(2, 3, 4, 4)) == 0
    assert gamut_loss(torch.tensor([[[[-0.5, 1.25]]]])) == pytest.approx(0.375)
    assert kl_loss(torch.zeros(2, 3), torch.zeros(2, 3)) == 0


def test_style_loss_is_the_papers():
    level, other = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8)
    (mean, std), (mean2, std2) = (channel_stats(x).chunk(2, dim=1) for x in (level, other))
    wanted = ((mean - mean2) ** 2).mean() + ((std - std2) ** 2).mean()
    torch.testing.assert_close(style_loss([level], [channel_stats(other)]), wanted)
    rows = style_loss([level], [channel_stats(other)], rows=True)
    assert rows.shape == (2,)
    torch.testing.assert_close(rows.mean(), wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_adversarial_losses_want_opposite_things(kind):
    high, low = torch.full((2, 1, 3, 3), 4.0), torch.full((2, 1, 3, 3), -4.0)
    right = {"lsgan": 1.0, "hinge": 4.0, "logistic": 4.0}[kind]
    real, fake = torch.full_like(high, right), torch.full_like(high, 0.0 if kind == "lsgan" else -4.0)
    assert discriminator_loss(real, fake, kind) < 0.02 < discriminator_loss(fake, real, kind)
    assert fool_loss(real, kind) < fool_loss(fake, kind)
    assert fool_loss(low, kind) > fool_loss(real, kind)


def test_known_values():
    zeros = torch.zeros(2, 1, 3, 3)
    assert discriminator_loss(zeros, zeros, "lsgan") == pytest.approx(0.5)
    assert discriminator_loss(zeros, zeros, "hinge") == pytest.approx(1.0)
    assert discriminator_loss(zeros, zeros, "logistic") == pytest.approx(0.6931, abs=1e-4)
    # N(1, 1) against N(0, 1) has half a nat for each number.
    assert kl_loss(torch.ones(5, 4), torch.zeros(5, 4)) == pytest.approx(2.0)
    images = torch.rand(2, 3, 4, 4, requires_grad=True)
    assert r1_penalty(images, 0.5 * images.sum(dim=(1, 2, 3))) == pytest.approx(0.25 * 48)


def test_patch_nce_knows_places():
    units = torch.eye(4).expand(2, 4, 4)
    assert patch_nce(units, units).max() < 1e-5
    assert patch_nce(units.roll(1, 1), units).min() > 10
    same = units[:, :1].expand(2, 4, 4)
    torch.testing.assert_close(patch_nce(same, same), torch.full((2,), 4.0).log(), msg="all places alike")


def test_vgg19_has_four_levels(tmp_path):
    vgg, images = load_vgg19(loss_networks(tmp_path)), photos(2, 32, 32)
    levels = vgg(images)
    assert [tuple(x.shape[1:]) for x in levels] == [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4)]
    assert not any(p.requires_grad for p in vgg.parameters())
    for depth in (1, 2, 3):
        shallow = vgg(images, depth=depth)
        assert len(shallow) == depth
        for one, other in zip(shallow, levels, strict=False):
            torch.testing.assert_close(one, other)


def test_unusable_networks_are_named(tmp_path):
    with pytest.raises(WeightsError, match="cannot read the weights"):
        load_vgg19(tmp_path)
    (tmp_path / "vgg19_normalised_relu4_1.safetensors").write_bytes(b"hello")
    with pytest.raises(WeightsError, match="vgg19_normalised_relu4_1"):
        load_vgg19(tmp_path)
