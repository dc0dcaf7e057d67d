"""Measures: each against a library's own implementation, or a value that is known."""

import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from skimage import filters, metrics
from specimens import photos, seeded
from torch import Tensor, nn

from styleaug.evaluation.metrics import (
    art_fid,
    clipped,
    colour_histogram,
    directions,
    diversity,
    edge_correlations,
    gamut,
    gram,
    gram_distance,
    palette_overlap,
    sliced_wasserstein,
    ssim,
)
from styleaug.images import luminance
from styleaug.perceptual import LPIPS, SqueezeNet, frechet_distance, installed_linear, load_lpips, read_linear
from styleaug.training.losses import content_loss, edge_correlation

ONE = photos(3, 40, 52)
OTHER = (0.6 * ONE + 0.4 * photos(6, 40, 52)[3:]).clamp(0, 1)
KIRSCH = [
    [[5, 5, 5], [-3, 0, -3], [-3, -3, -3]],
    [[5, 5, -3], [5, 0, -3], [-3, -3, -3]],
    [[5, -3, -3], [5, 0, -3], [5, -3, -3]],
    [[-3, -3, -3], [5, 0, -3], [5, 5, -3]],
    [[-3, -3, -3], [-3, 0, -3], [5, 5, 5]],
    [[-3, -3, -3], [-3, 0, 5], [-3, 5, 5]],
    [[-3, -3, 5], [-3, 0, 5], [-3, -3, 5]],
    [[-3, 5, 5], [-3, 0, 5], [-3, -3, -3]],
]


def grey(image: Tensor) -> np.ndarray:
    return luminance(image[None])[0, 0].double().numpy()


def pictures(*, seed: int, low: float = 0.0, high: float = 1.0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(2, 3, 16, 20, generator=rng)


# Content kept


@pytest.mark.parametrize("name", ["sobel", "prewitt", "scharr"])
def test_edges_as_scikit_image_finds_them(name):
    find = getattr(filters, name)
    found = edge_correlations(ONE, OTHER)[name]
    for row, (one, other) in enumerate(zip(ONE, OTHER, strict=True)):
        inside = (find(grey(image))[1:-1, 1:-1].ravel() for image in (one, other))
        assert found[row] == pytest.approx(np.corrcoef(*inside)[0, 1], abs=2e-4)


def test_kirsch_edges_are_the_largest_of_eight():
    def strongest(image: Tensor) -> Tensor:
        weights = torch.tensor(KIRSCH).double()[:, None]
        return torch.conv2d(luminance(image[None]).double(), weights)[0].amax(dim=0).flatten()

    wanted = [np.corrcoef(strongest(a), strongest(b))[0, 1] for a, b in zip(ONE, OTHER, strict=True)]
    torch.testing.assert_close(
        edge_correlations(ONE, OTHER)["kirsch"], torch.tensor(wanted).float(), atol=1e-5, rtol=0
    )


def test_sobel_is_the_one_that_training_uses():
    torch.testing.assert_close(edge_correlations(ONE, OTHER)["sobel"], edge_correlation(ONE, OTHER))


def test_ssim_as_scikit_image_computes_it():
    wanted = [
        metrics.structural_similarity(
            grey(one),
            grey(other),
            data_range=1,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        for one, other in zip(ONE, OTHER, strict=True)
    ]
    torch.testing.assert_close(ssim(ONE, OTHER), torch.tensor(wanted).float(), atol=1e-5, rtol=0)


def test_content_loss_of_rows_is_that_of_all():
    one, other = torch.rand(2, 4, 5, 6, 7)
    rows = content_loss(one, other, rows=True)
    assert rows.shape == (4,)
    torch.testing.assert_close(rows.mean(), content_loss(one, other))
    torch.testing.assert_close(rows[2], content_loss(one[2:3], other[2:3]))


@given(seed=st.integers(0, 99), gain=st.floats(0.3, 1.0), shift=st.floats(0.0, 0.3))
def test_content_measures_of_the_same_image(seed, gain, shift):
    images = pictures(seed=seed)
    torch.testing.assert_close(ssim(images, images), torch.ones(2))
    other = pictures(seed=seed + 100)
    torch.testing.assert_close(ssim(images, other), ssim(other, images))
    for name, values in edge_correlations(images, gain * images * 0.7 + shift).items():
        assert values.min() > 0.999, f"{name} depends on brightness or contrast"


# Style reached


def test_sliced_wasserstein_is_the_cheapest_transport():
    one, other = torch.randn(2, 1, 3, 4, 5).double()
    total = 0.0
    for axis in directions(3).double():
        x, y = ((axis @ level[0].flatten(1)).numpy() for level in (one, other))
        cost = (x[:, None] - y) ** 2
        rows, columns = linear_sum_assignment(cost)
        total += cost[rows, columns].mean() / len(directions(3))
    wanted = (total / float(other.square().mean())) ** 0.5
    assert sliced_wasserstein([one], [other]).item() == pytest.approx(wanted, rel=1e-6)
    both = sliced_wasserstein([one, other], [other, other]).item()
    assert both == pytest.approx(wanted / 2, rel=1e-6), "the mean over levels"


def test_sliced_wasserstein_of_a_shift_is_known():
    level = torch.randn(2, 1, 6, 7)
    size = level.square().mean(dim=(1, 2, 3)).sqrt()
    torch.testing.assert_close(sliced_wasserstein([level + 3], [level]), 3 / size)


def test_large_levels_are_read_on_a_grid():
    level = torch.zeros(1, 1, 128, 128)
    other = level.clone()
    other[..., 1::2, :] = 1
    assert sliced_wasserstein([other], [level + 1]) == 1, "every second place is left out"


@given(seed=st.integers(0, 99))
def test_style_measures_know_no_places(seed):
    rng = torch.Generator().manual_seed(seed)
    level, other = torch.randn(2, 2, 4, 6, 5, generator=rng)
    moved = level.flatten(2)[..., torch.randperm(30, generator=rng)].view_as(level)
    # Rounding alone: the Gram matrices' root is as of 1e-7.
    assert sliced_wasserstein([moved], [level]).max() < 1e-5
    assert gram_distance([moved], [level]).max() < 1e-3
    distance = gram_distance([level], [other])
    assert ((distance > 0.01) & (distance <= 1)).all()
    torch.testing.assert_close(distance, gram_distance([other], [level]))
    torch.testing.assert_close(distance, gram_distance([moved], [other]))


def test_gram_distance_is_known():
    level = torch.randn(2, 3, 4, 5)
    for row in range(2):
        products = sum(
            torch.outer(level[row, :, y, x], level[row, :, y, x]) for y in range(4) for x in range(5)
        )
        torch.testing.assert_close(gram(level)[row], products / 20)
    # Features twice as large have products four times as large.
    torch.testing.assert_close(gram_distance([2 * level], [level]), torch.full((2,), 3 / 17**0.5))
    first, last = torch.zeros(2, 1, 3, 2, 2)
    first[:, 0], last[:, 2] = 1, 5
    assert gram_distance([first], [last]) == 1, "no feature in common"
    assert gram_distance([first, first], [last, first]) == 0.5, "the mean over levels"
    assert gram_distance([0 * first], [0 * first]) == 0


def test_frechet_distance_as_torch_fidelity_computes_it():
    one, other = torch.randn(60, 5).double() @ torch.randn(5, 5).double(), torch.randn(50, 5).double() + 0.5
    found = frechet_distance(one, other)
    fidelity = pytest.importorskip("torch_fidelity.metric_fid", reason="needs torch-fidelity")
    statistics = [fidelity.fid_features_to_statistics(rows) for rows in (one, other)]
    theirs = fidelity.fid_statistics_to_metric(*statistics, False)["frechet_inception_distance"]
    assert found == pytest.approx(theirs, rel=1e-6)


def test_art_fid_is_known():
    assert art_fid(0, 0) == 1
    # AdaIN in the table of StyleID (Chung et al. 2024): LPIPS .608, FID 18.24, ArtFID 30.93.
    assert art_fid(0.608, 18.24) == pytest.approx(30.93, abs=0.02)


# Colours and variety


def test_colours_that_are_known():
    images = torch.full((4, 3, 4, 5), 0.5)
    images[1, 0, 0] = 1.0  # five of twenty pixels, by one channel
    images[2, :, :2] = 0.0
    images[3] = torch.rand(3, 4, 5)
    torch.testing.assert_close(clipped(images)[:3], torch.tensor([0, 0.25, 0.5]))
    histogram = colour_histogram(images)
    torch.testing.assert_close(histogram.sum(dim=1), torch.ones(4))
    assert [int((row > 0).sum()) for row in histogram[:3]] == [1, 2, 2]
    assert histogram[1].max() == 0.75
    grey_image = images[:1].expand(3, -1, -1, -1)
    torch.testing.assert_close(palette_overlap(images[:3], grey_image), torch.tensor([1, 0.75, 0.5]))
    torch.testing.assert_close(gamut(images[:3], grey_image), torch.tensor([1.0, 2.0, 2.0]))
    torch.testing.assert_close(gamut(grey_image, images[:3]), torch.tensor([1.0, 0.5, 0.5]))


def test_histogram_as_numpy_counts_it():
    pixels = ONE[0].flatten(1).T.numpy()
    wanted, _ = np.histogramdd(pixels, bins=8, range=[(0, 1)] * 3)
    np.testing.assert_allclose(colour_histogram(ONE[:1])[0], wanted.ravel() / len(pixels), atol=1e-6)


def test_colours_are_compared_in_any_size():
    assert palette_overlap(ONE, ONE.repeat(1, 1, 2, 3)).min() > 0.999
    torch.testing.assert_close(gamut(ONE, ONE.repeat(1, 1, 2, 3)), torch.ones(3))


def test_diversity_is_the_mean_over_all_pairs():
    levels = [torch.tensor([0.0, 1.0, 5.0]).view(3, 1, 1, 1)]

    def distance(one: list[Tensor], other: list[Tensor]) -> Tensor:
        return (one[0] - other[0]).abs().flatten()

    assert diversity(levels, distance) == pytest.approx((1 + 5 + 4) / 3)


# LPIPS


def reference(ours: LPIPS) -> nn.Module:
    """Put our weights into the package `lpips`, whose inputs are in [-1, 1]."""
    package = pytest.importorskip("lpips", reason="needs the package lpips")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it asks torchvision in an outdated way
        theirs = package.LPIPS(net="squeeze", pretrained=False, pnet_rand=True, verbose=False)
    for name, layer in theirs.net.named_modules():
        if isinstance(layer, nn.Conv2d):
            own = ours.network.features.get_submodule(name.partition(".")[2])
            layer.load_state_dict(own.state_dict())
    for layer, weight in zip(theirs.lins, ours.linear, strict=True):
        layer.model[1].weight.data = weight.data.clone()
    theirs.scaling_layer.shift.copy_(2 * ours.network.mean - 1)
    theirs.scaling_layer.scale.copy_(2 * ours.network.std)
    return theirs.eval()


def check_lpips(ours: LPIPS, images: Tensor, others: Tensor) -> None:
    with torch.no_grad():
        theirs = reference(ours)(images, others, normalize=True).flatten()
        found = ours(images, others)
    assert found.shape == (len(images),) and found.min() > 0
    torch.testing.assert_close(found, theirs, rtol=1e-4, atol=1e-6)
    assert ours(images, images).abs().max() == 0


def test_lpips_is_the_package_lpips_with_random_weights():
    network = seeded(lambda: SqueezeNet((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), 0)
    linear = seeded(lambda: [torch.rand(c) for c in (64, 128, 256, 384, 384, 512, 512)], 1)
    check_lpips(LPIPS(network, linear), photos(3, 64, 72), photos(6, 64, 72)[3:])


def test_lpips_is_the_package_lpips_with_real_weights():
    folder = os.environ.get("STYLEAUG_WEIGHTS")
    if not folder:
        pytest.skip("needs the networks that judge; set STYLEAUG_WEIGHTS to their folder")
    ours = load_lpips(Path(folder))
    check_lpips(ours, photos(3, 64, 72), photos(6, 64, 72)[3:])
    if pytest.importorskip("lpips", reason="needs the package lpips"):
        for own, theirs in zip(read_linear(Path(folder)), read_linear(None), strict=True):
            torch.testing.assert_close(own.flatten(), theirs.flatten())
        assert installed_linear().name == "squeeze.pth"
