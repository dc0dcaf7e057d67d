"""Style swap against a plain reference, its dictionary, and how it is loaded."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from specimens import generator, photos, tiny_adain, tiny_patchswap
from torch import Tensor

from styleaug import WeightsError, fit_style, generator_names, load_generator
from styleaug.bank import StyleBank
from styleaug.generators.layers import channel_stats, normalise, whiten
from styleaug.generators.patchswap import PatchSwap, cluster, field, nearest_patches, read_patches, swap
from styleaug.weights import save_generator


def slow_swap(features: Tensor, dictionary: Tensor) -> Tensor:
    """Swap one image's patches with loops, straight from Chen & Schmidt 2016, eqs. 2 and 3."""
    channels, height, width = features.shape
    total, count = torch.zeros_like(features), torch.zeros(height, width)
    for y in range(height - 2):
        for x in range(width - 2):
            here = features[:, y : y + 3, x : x + 3]
            rows = [row.reshape(channels, 3, 3) for row in dictionary]
            match = [(here * row).sum() / (here.norm() * row.norm()) for row in rows]
            total[:, y : y + 3, x : x + 3] += rows[int(torch.stack(match).argmax())]
            count[y : y + 3, x : x + 3] += 1
    return total / count


@given(height=st.integers(3, 7), width=st.integers(3, 7), patches=st.integers(1, 6), seed=st.integers(0, 99))
def test_swap_is_the_plain_one(height, width, patches, seed):
    rng = torch.Generator().manual_seed(seed)
    features = torch.randn(2, 5, height, width, generator=rng)
    dictionary = torch.randn(2, patches, 45, generator=rng) * torch.rand(2, patches, 1, generator=rng)
    wanted = torch.stack([slow_swap(*row) for row in zip(features, dictionary, strict=True)])
    torch.testing.assert_close(swap(features, dictionary), wanted, atol=1e-5, rtol=1e-5)


def test_the_nearest_patch_has_the_largest_normalised_correlation():
    features, dictionary = torch.randn(3, 2, 5, 6), torch.randn(3, 7, 18) * torch.rand(3, 7, 1) * 9
    chosen = nearest_patches(features, dictionary)
    assert chosen.shape == (3, 3, 4)
    for row, patches in enumerate(read_patches(features)):
        for place, patch in enumerate(patches):
            match = torch.cosine_similarity(patch.expand(7, -1), dictionary[row], dim=1)
            assert chosen[row].flatten()[place] == match.argmax()


def test_all_of_its_own_patches_give_an_image_its_own_features():
    features = torch.randn(2, 4, 6, 7)
    own = read_patches(features)
    torch.testing.assert_close(swap(features, own), features)
    # A dictionary with room for all of them holds them all.
    torch.testing.assert_close(swap(features, cluster(own, 30)), features)


def test_full_strength_on_the_style_itself_swaps_nothing():
    network, images = tiny_patchswap(patches=64), photos(2, 64, 48)
    assert read_patches(torch.zeros(1, 1, 8, 6)).shape[1] <= network.patches
    codes, one = network.encode_style(images), torch.ones(2)
    torch.testing.assert_close(
        network(images, codes, one), network.network(images, codes[:, :38], one), atol=1e-4, rtol=0
    )


def test_one_patch_gives_a_constant_field():
    patch = torch.randn(1, 1, 4, 1).expand(1, 1, 4, 9).reshape(1, 1, 36)
    swapped = swap(torch.randn(1, 4, 5, 6), patch)
    torch.testing.assert_close(swapped, swapped[..., :1, :1].expand_as(swapped))
    assert torch.equal(
        nearest_patches(torch.randn(1, 4, 5, 6), patch), torch.zeros(1, 3, 4, dtype=torch.long)
    )
    network = tiny_patchswap(patches=1)
    assert network(photos(2), network.encode_style(1 - photos(2)), torch.ones(2)).isfinite().all()


def test_centres_are_the_means_of_clusters_that_are_apart():
    directions = torch.eye(36)[:5]
    owner = torch.arange(40) % 5
    patches = directions[owner] * torch.linspace(1, 3, 40)[:, None] + 0.01 * torch.randn(40, 36)
    wanted = torch.stack([patches[owner == index].mean(dim=0) for index in range(5)])
    found = cluster(patches[None], 5)[0]
    closest = torch.cdist(wanted, found).argmin(dim=1)
    assert sorted(closest.tolist()) == [0, 1, 2, 3, 4]
    torch.testing.assert_close(found[closest], wanted)


@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_few_or_equal_patches_are_repeated(count):
    two = torch.randn(2, 36)
    centres = cluster(two[None], count)[0]
    if count == 1:
        torch.testing.assert_close(centres[0], two.mean(dim=0))
    else:
        assert torch.cdist(centres, two).amin(dim=1).max() < 1e-5
        assert torch.cdist(two, centres).amin(dim=1).max() < 1e-5
    assert torch.equal(cluster(torch.zeros(1, 5, 36), count), torch.zeros(1, count, 36))


def test_rows_are_clustered_alone():
    patches = torch.randn(3, 50, 36)
    together = cluster(patches, 8)
    for row in range(3):
        torch.testing.assert_close(cluster(patches[row : row + 1], 8)[0], together[row])
    brightness = together[..., -27:].mean(dim=2)
    assert (brightness.diff(dim=1) >= 0).all()


def test_the_dictionary_is_in_the_code():
    network, images = tiny_patchswap(), photos(2, 40, 48)
    codes = network.encode_style(images)
    torch.testing.assert_close(codes[:, :38], network.network.encode_style(images))
    whitened = whiten(images, channel_stats(images))
    fields = field(network.network.encoder(whitened)[-1], whitened)
    torch.testing.assert_close(fields, normalise(fields), atol=1e-2, rtol=1e-2)
    torch.testing.assert_close(codes[:, 38:], cluster(read_patches(fields), 4).flatten(1))


def test_painting_has_gradients():
    network = tiny_patchswap().requires_grad_(True)
    images = photos(2, 32, 40)
    painted = network.paint(images, network.encode_style(1 - images), torch.tensor([1.0, 0.4]))
    painted.square().mean().backward()
    for name, weight in network.named_parameters():
        assert weight.grad is not None and weight.grad.isfinite().all(), name
        assert weight.grad.abs().max() > 0 or "bias" in name, name  # a normalisation undoes some biases


def test_the_size_of_the_dictionary_is_part_of_the_fingerprint():
    networks = [tiny_adain(), *(tiny_patchswap(patches=count) for count in (1, 4, 5)), tiny_patchswap(1)]
    assert len({network.fingerprint for network in networks}) == len(networks)


def test_it_is_loaded_by_name_with_the_weights_of_adain():
    assert "patchswap" in generator_names()
    network, adain = load_generator("patchswap"), load_generator("adain")
    assert isinstance(network, PatchSwap) and network is load_generator("patchswap")
    assert network.network is not adain and network.network.fingerprint == adain.fingerprint
    assert network.fingerprint != adain.fingerprint
    assert network.code_length == 230 + 32 * 9 * 67


def test_round_trip_through_a_file(tmp_path):
    network = tiny_patchswap(patches=3)
    back = load_generator(save_generator(network, tmp_path / "g.safetensors"))
    assert isinstance(back, PatchSwap) and back.settings() == network.settings()
    assert back.fingerprint == network.fingerprint


@pytest.mark.parametrize("patches", [0, -1, 257, 2.0, True, None, "4", [4]])
def test_absurd_settings_are_refused(patches):
    with pytest.raises(WeightsError, match="patches must be a whole number from 1 to 256"):
        PatchSwap.from_settings({**tiny_adain().settings(), "patches": patches})


def test_a_bank_is_fitted_by_name(tmp_path):
    from torchvision.utils import save_image

    for index, image in enumerate(photos(3, 40, 32)):
        save_image(image, tmp_path / f"{index}.png")
    bank = fit_style(tmp_path, generator="patchswap", min_images=1).bank
    bank.check(load_generator("patchswap"))
    assert len(bank.to_bytes()) < 3 * 80_000
    assert StyleBank.load(bank.save(tmp_path / "bank.safetensors")) == bank


def test_any_number_of_patches_fits_any_image():
    for patches in (1, 7, 40):
        network = tiny_patchswap(patches=patches)
        for height, width in [(1, 1), (8, 30), (64, 24)]:
            assert network.encode_style(photos(2, height, width)).shape == (2, network.code_length)
    assert generator("tiny-patchswap").code_length == 38 + 4 * 9 * 11
