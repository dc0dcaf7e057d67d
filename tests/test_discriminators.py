"""Patch sizes of the discriminators, the heads of PatchNCE, and DiffAugment."""

import pytest
import torch
from specimens import photos
from torch.nn import functional as F

from styleaug import ConfigError
from styleaug.generators.cyclegan import CycleGAN
from styleaug.training.discriminators import (
    PatchDiscriminator,
    PatchEmbedding,
    cut,
    diff_augment,
    moved,
    recoloured,
)

PATCHES = [16, 34, 70, 142, 286]


@pytest.mark.parametrize("patch", PATCHES)
def test_a_logit_sees_its_patch_and_nothing_else(patch):
    network = PatchDiscriminator(patch=patch, width=1, norm=False)
    images = torch.rand(1, 3, 2 * patch, 2 * patch).requires_grad_()
    logits = network(images)
    row, column = (side // 2 for side in logits.shape[2:])
    (grads,) = torch.autograd.grad(logits[0, 0, row, column], images)
    seen = grads[0].abs().amax(dim=0) > 0
    rows, columns = seen.any(1).nonzero().squeeze(1), seen.any(0).nonzero().squeeze(1)
    assert len(rows) == len(columns) == patch
    assert seen[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()


@pytest.mark.parametrize(("halvings", "patch"), list(enumerate(PATCHES, start=1)))
def test_layers(halvings, patch):
    network = PatchDiscriminator(patch=patch, width=2)
    assert [conv.stride[0] for conv in network.convs] == [2] * halvings + [1, 1]
    assert [conv.out_channels for conv in network.convs] == [*[2, 4, 8, 16, 16, 16][: halvings + 1], 1]
    size = network.minimum
    for height, width in [(size, size), (size + 1, 2 * size)]:
        images = torch.rand(2, 3, height, width)
        levels = network.levels(images)
        assert len(levels) == len(network.convs)
        assert torch.equal(levels[-1], network(images))
        assert levels[-1].shape[:2] == (2, 1) and levels[-1].isfinite().all()
    assert network(torch.rand(1, 3, size, size)).shape == (1, 1, 1, 1)
    with pytest.raises(ConfigError, match=f"from {size} x {size} pixels, got 3 channels of {size - 1} x 300"):
        network(torch.rand(1, 3, size - 1, 300))


def test_the_size_of_the_papers_discriminator():
    assert 2.7e6 < sum(p.numel() for p in PatchDiscriminator().parameters()) < 2.8e6


def test_arguments_are_checked():
    with pytest.raises(ConfigError, match="patch must be one of 16, 34, 70, 142, 286, got 71"):
        PatchDiscriminator(patch=71)
    with pytest.raises(ConfigError, match=r"takes 6 channels .* got 3 channels"):
        PatchDiscriminator(6, patch=16)(torch.rand(1, 3, 32, 32))
    assert PatchDiscriminator(6, patch=16, width=2)(torch.rand(1, 6, 32, 32)).shape == (1, 1, 14, 14)


def test_rows_are_judged_apart():
    network, images = PatchDiscriminator(patch=16, width=4), photos(3)
    torch.testing.assert_close(network(images)[1:2], network(images[1:2]), atol=1e-6, rtol=1e-5)


def test_normalisation_spares_the_first_and_the_last_layer():
    levels = PatchDiscriminator(patch=34, width=4).levels(torch.rand(1, 3, 64, 64))
    plain = PatchDiscriminator(patch=34, width=4, norm=False).levels(torch.rand(1, 3, 64, 64))
    assert [level.std() > 0.4 for level in levels] == [False, True, True, False]
    assert not any(level.std() > 0.4 for level in plain)


def test_contrast_of_the_image_is_seen():
    network, image = PatchDiscriminator(patch=34, width=4), torch.rand(1, 3, 64, 64)
    assert (network(image) - network(0.5 * image + 0.25)).abs().max() > 1e-4


def test_a_discriminator_learns_and_passes_gradients_on():
    torch.manual_seed(0)
    network = PatchDiscriminator(patch=16, width=8)
    optimiser = torch.optim.Adam(network.parameters(), lr=2e-3)
    real, fake = photos(4, 32, 32), torch.rand(4, 3, 32, 32)
    for _ in range(30):
        loss = (network(real) - 1).square().mean() + network(fake).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss < 0.1
    fake.requires_grad_()
    (grads,) = torch.autograd.grad(network(fake).sum(), fake)
    assert grads.isfinite().all() and grads.abs().sum() > 0


def test_spectral_normalisation_bounds_every_layer():
    network = PatchDiscriminator(patch=16, width=4, spectral=True)
    for _ in range(50):
        network(torch.rand(1, 3, 16, 16))
    for conv in network.convs:
        largest = torch.linalg.matrix_norm(conv.weight.flatten(1), 2)
        assert abs(largest - 1) < 0.02
    network.eval()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    network(torch.rand(1, 3, 16, 16))
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize("spectral", [False, True])
def test_the_same_seed_gives_the_same_weights(spectral):
    def made(seed):
        torch.manual_seed(seed)
        return PatchDiscriminator(width=4, spectral=spectral).state_dict()

    assert all(torch.equal(one, other) for one, other in zip(made(0).values(), made(0).values(), strict=True))
    assert not all(
        torch.equal(one, other) for one, other in zip(made(0).values(), made(1).values(), strict=True)
    )


def test_weights_start_small():
    network = PatchDiscriminator(width=32)
    for conv in network.convs:
        assert abs(conv.weight.std() / 0.02 - 1) < 0.1
        assert conv.bias is None or not conv.bias.any()


def embedded(images):
    torch.manual_seed(0)
    generator = CycleGAN(4, blocks=3, fold=2)
    embedding = PatchEmbedding(generator.encoder_channels, width=16)
    levels = generator.encode(images)
    positions = [torch.tensor([0, 3, 3, level.shape[2] * level.shape[3] - 1]) for level in levels]
    return embedding, levels, positions


def test_embeddings_have_length_one():
    embedding, levels, positions = embedded(photos(2, 32, 40))
    vectors = embedding(levels, positions)
    assert [x.shape for x in vectors] == [(2, 4, 16)] * len(levels)
    for x in vectors:
        torch.testing.assert_close(x.norm(dim=-1), torch.ones(2, 4))
        assert torch.equal(x[:, 1], x[:, 2]) and not torch.equal(x[:, 0], x[:, 3])


def test_embeddings_are_those_of_their_row_and_place():
    embedding, levels, positions = embedded(photos(3, 32, 40))
    vectors = embedding(levels, positions)
    alone = embedding([level[1:2] for level in levels], positions)
    for x, y in zip(vectors, alone, strict=True):
        torch.testing.assert_close(x[1:2], y)
    level = levels[0]  # (3, 4, 16, 20): place 3 is in the first row, the last one in the last
    for index, (row, column) in {1: (0, 3), 3: (15, 19)}.items():
        by_hand = F.normalize(embedding.heads[0](level[:, :, row, column]), dim=-1)
        torch.testing.assert_close(vectors[0][:, index], by_hand)


def test_embeddings_pass_gradients_to_generator_and_heads():
    embedding, levels, positions = embedded(photos(2, 32, 40).requires_grad_())
    vectors = embedding(levels, positions)
    loss = torch.stack([x[0, 0] @ x[1, 3] for x in vectors]).sum()
    grads = torch.autograd.grad(loss, [levels[0], *embedding.parameters()])
    assert all(grad.isfinite().all() for grad in grads) and grads[0].abs().sum() > 0


@pytest.mark.parametrize("channels", [3, 6])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (5, 3), (32, 24)])
def test_augmented_images_have_the_shape(channels, height, width):
    images = photos(3, height, width, channels=channels)
    before = images.clone()
    changed = diff_augment(images)
    assert changed.shape == images.shape and changed.dtype == images.dtype
    assert changed.isfinite().all() and changed.min() > -1 and changed.max() < 2
    assert torch.equal(images, before)


def test_amount_zero_is_the_identity_and_draws_nothing():
    images, state = photos(3), torch.get_rng_state()
    assert diff_augment(images, 0) is images
    assert torch.equal(torch.get_rng_state(), state)


def test_amount_is_the_share_of_rows():
    images = photos(1, 8, 8).repeat(400, 1, 1, 1)
    changed = (diff_augment(images, 0.3) != images).flatten(1).any(1)
    assert 0.2 < changed.float().mean() < 0.4
    assert (diff_augment(images, 1.0) != images).flatten(1).any(1).all()


def test_augmentation_follows_the_seed():
    images = photos(4)
    torch.manual_seed(1)
    first, second = diff_augment(images, 0.5), diff_augment(images, 0.5)
    torch.manual_seed(1)
    assert torch.equal(diff_augment(images, 0.5), first)
    assert torch.equal(diff_augment(images, 0.5), second) and not torch.equal(first, second)


@pytest.mark.slow
def test_augmentation_has_the_right_gradient():
    images = photos(2, 8, 6).double().requires_grad_()

    def augmented(images):
        torch.manual_seed(0)
        return diff_augment(images, 0.9)

    assert torch.autograd.gradcheck(augmented, (images,))


def test_pairs_change_alike():
    images = photos(4, 16, 16)
    changed = diff_augment(torch.cat([images, images], dim=1))
    assert torch.equal(changed[:, :3], changed[:, 3:])
    torch.manual_seed(0)
    pairs = diff_augment(torch.cat([images, 1 - images], dim=1))
    torch.manual_seed(0)
    torch.testing.assert_close(pairs[:, :3], diff_augment(images))


def test_images_move_by_up_to_an_eighth():
    image = photos(1, 32, 16)
    places = set()
    for row in moved(image.repeat(300, 1, 1, 1)):
        # Pixels that came in are blank; no pixel of a picture with noise is.
        rows, columns = ((row != 0.5).any(0).any(side).nonzero().squeeze(1) for side in (1, 0))
        top, left = int(rows[0]), int(columns[0])
        down, right = top or len(rows) - 32, left or len(columns) - 16
        places.add((down, right))
        inside = image[0, :, max(-down, 0) : 32 - max(down, 0), max(-right, 0) : 16 - max(right, 0)]
        assert torch.equal(row[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], inside)
    assert {down for down, _ in places} == set(range(-4, 5))
    assert {right for _, right in places} == set(range(-2, 3))


def test_the_hole_has_half_of_each_side_or_less_at_the_edge():
    holes = cut(torch.zeros(300, 3, 32, 16)) == 0.5
    heights, widths = holes[:, 0].any(2).sum(1), holes[:, 0].any(1).sum(1)
    assert heights.max() == 16 and heights.min() == 8 and widths.max() == 8 and widths.min() == 4
    assert torch.equal(holes.sum(dim=(1, 2, 3)), 3 * heights * widths)


def test_colours_change_within_bounds():
    images = torch.rand(300, 3, 16, 16)
    changed = recoloured(images)
    contrast = changed.mean(dim=1).std(dim=(1, 2)) / images.mean(dim=1).std(dim=(1, 2))
    assert 0.5 <= contrast.min() < 0.6 and 1.4 < contrast.max() <= 1.5001
    brightness = (changed - images).mean(dim=(1, 2, 3))
    assert -0.2501 < brightness.min() < -0.2 and 0.2 < brightness.max() < 0.2501
    spread = (changed - changed.mean(dim=1, keepdim=True)).std(dim=(1, 2, 3)) / contrast
    saturation = spread / (images - images.mean(dim=1, keepdim=True)).std(dim=(1, 2, 3))
    assert 0 <= saturation.min() < 0.1 and 1.9 < saturation.max() < 2.001


def test_augmentation_refuses():
    for amount in (-0.1, 1.1, float("nan")):
        with pytest.raises(ConfigError, match="amount must lie in"):
            diff_augment(photos(1), amount)
    with pytest.raises(ConfigError, match="channels must come in threes, got 4"):
        diff_augment(photos(1, channels=4))
