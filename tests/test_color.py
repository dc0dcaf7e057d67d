"""The colour generators against known answers, scikit-image and the papers' own formulas."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage import color, exposure
from torch import Tensor

from styleaug.errors import ConfigError
from styleaug.evaluation.displacement import displacements
from styleaug.generators.base import AbstractGenerator
from styleaug.generators.color import MAX_GAIN, ChannelStats, FourierAmplitude, HistogramMatching, limit_slope
from styleaug.generators.colorspace import lab_to_rgb, luma, rgb_to_lab, rgb_to_ycbcr, ycbcr_to_rgb
from styleaug.generators.fourier import NODES, FullFourier
from styleaug.weights import COLOR_GENERATORS

SPACES = ["rgb", "lab", "ycbcr", "luminance"]
LUMINANCE = ["reinhard-luminance", "histogram-luminance"]

every_generator = pytest.mark.parametrize("name", COLOR_GENERATORS)
seeds = st.integers(0, 2**31 - 1)
sides = st.integers(1, 20)


def photo(seed: int, height: int = 40, width: int = 56, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Make one image of all slow waves and some noise, its channels filling [low, high]."""
    rng = torch.Generator().manual_seed(seed)
    fy, fx = torch.cartesian_prod(torch.arange(-3, 4), torch.arange(4)).T[:, :, None, None, None]
    phase = torch.rand(28, 3, 1, 1, generator=rng)
    y, x = torch.arange(height)[:, None] / height, torch.arange(width) / width
    sizes = 0.3 + torch.rand(28, 3, 1, 1, generator=rng)
    image = (sizes * torch.cos(2 * math.pi * (fy * y + fx * x + phase))).sum(0)
    image += torch.randn(image.shape, generator=rng)
    least, most = image.amin((1, 2), keepdim=True), image.amax((1, 2), keepdim=True)
    return (low + (high - low) * (image - least) / (most - least).clamp(min=1e-6))[None]


def restyle(generator: AbstractGenerator, image: Tensor, style: Tensor, strength: float = 1.0) -> Tensor:
    return generator(image, generator.encode_style(style), image.new_full((len(image),), strength))


def to_numpy(image: Tensor) -> np.ndarray:
    return image[0].permute(1, 2, 0).double().numpy()


# Every colour in 18-level steps: black, white, greys and all edges of the cube among them.
CUBE = torch.cartesian_prod(*[torch.linspace(0, 1, 15)] * 3).T.reshape(1, 3, 45, 75)


def test_lab_agrees_with_skimage() -> None:
    np.testing.assert_allclose(to_numpy(rgb_to_lab(CUBE)), color.rgb2lab(to_numpy(CUBE)), atol=1e-3)


def test_lab_back_agrees_with_skimage() -> None:
    lab = rgb_to_lab(CUBE)
    np.testing.assert_allclose(to_numpy(lab_to_rgb(lab)), color.lab2rgb(to_numpy(lab)), atol=1e-4)


def test_ycbcr_agrees_with_skimage() -> None:
    ours = to_numpy(rgb_to_ycbcr(CUBE))
    # skimage gives the studio range of 8-bit video.
    studio = ours * [219, 224, 224] + [16, 16, 16]
    np.testing.assert_allclose(studio, color.rgb2ycbcr(to_numpy(CUBE)), atol=219e-4)
    torch.testing.assert_close(luma(CUBE), rgb_to_ycbcr(CUBE)[:, :1])


def test_conversions_round_trip() -> None:
    torch.testing.assert_close(lab_to_rgb(rgb_to_lab(CUBE)), CUBE, atol=1e-5, rtol=0)
    torch.testing.assert_close(ycbcr_to_rgb(rgb_to_ycbcr(CUBE)), CUBE, atol=2e-6, rtol=0)


def test_lab_outside_the_gamut_is_clamped() -> None:
    wild = torch.tensor([[-50.0, 0, 0], [150, 0, 0], [50, 200, -200], [5, -120, 90]]).T.reshape(1, 3, 2, 2)
    rgb = lab_to_rgb(wild)
    assert rgb.isfinite().all() and rgb.min() >= 0 and rgb.max() <= 1


def test_conversions_have_true_gradients() -> None:
    flat = torch.tensor([0.0, 0.01, 0.2, 0.7, 1.0], dtype=torch.float64)
    image = flat.expand(3, 1, 5)[None].clone().requires_grad_()
    for function in (rgb_to_lab, lambda x: lab_to_rgb(rgb_to_lab(x)), rgb_to_ycbcr):
        (gradient,) = torch.autograd.grad(function(image).sum(), image)
        assert gradient.isfinite().all()
    inside = (image.detach() * 0.8 + 0.1).requires_grad_()
    (gradient,) = torch.autograd.grad(lab_to_rgb(rgb_to_lab(inside)).sum(), inside)
    torch.testing.assert_close(gradient, torch.ones_like(gradient), atol=1e-6, rtol=0)


@every_generator
def test_name_is_the_key(name: str) -> None:
    generator = COLOR_GENERATORS[name]()
    assert generator.name == name
    assert generator.encode_style(photo(0)).shape == (1, generator.code_length)
    assert not generator.state_dict()


def test_settings_are_shown_in_the_fingerprint() -> None:
    generators = [make() for make in COLOR_GENERATORS.values()]
    generators += [HistogramMatching(quantiles=32), FourierAmplitude(cycles=2)]
    assert len({repr(generator) for generator in generators}) == len(generators)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ChannelStats("hsl"),
        lambda: HistogramMatching("lab"),
        lambda: HistogramMatching(quantiles=1),
        lambda: FourierAmplitude(cycles=-1),
    ],
)
def test_settings_out_of_range_are_refused(make) -> None:
    with pytest.raises(ConfigError):
        make()


@every_generator
@settings(max_examples=25, deadline=None)
@given(seed=seeds, height=sides, width=sides, style_height=sides, style_width=sides)
def test_any_size_gives_finite_images(
    name: str, seed: int, height: int, width: int, style_height: int, style_width: int
) -> None:
    rng = torch.Generator().manual_seed(seed)
    generator = COLOR_GENERATORS[name]()
    images = torch.rand(2, 3, height, width, generator=rng)
    images[0] = images[0, :, :1, :1]
    codes = generator.encode_style(torch.rand(2, 3, style_height, style_width, generator=rng))
    assert codes.isfinite().all()
    styled = generator(images, codes, torch.tensor([1.0, 0.6]))
    assert styled.shape == images.shape
    assert styled.min() >= 0 and styled.max() <= 1  # NaN fails both
    assert styled[0].std(dim=(1, 2), correction=0).max() < 1e-4, "a flat image must stay flat"


@every_generator
@settings(max_examples=10, deadline=None)
@given(seed=seeds)
def test_any_code_gives_finite_images(name: str, seed: int) -> None:
    """A Gaussian draw may leave what `encode_style` can give: negative deviations, disorder."""
    rng = torch.Generator().manual_seed(seed)
    generator = COLOR_GENERATORS[name]()
    codes = torch.randn(2, generator.code_length, generator=rng)
    styled = generator(torch.rand(2, 3, 9, 8, generator=rng), codes, torch.ones(2))
    assert styled.min() >= 0 and styled.max() <= 1


@every_generator
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_strength_zero_is_exact_in_every_dtype(name: str, dtype: torch.dtype) -> None:
    generator = COLOR_GENERATORS[name]()
    images = torch.cat([photo(1), photo(2)]).to(dtype)
    codes = generator.encode_style(torch.cat([photo(3), photo(4)]).to(dtype))
    styled = generator(images, codes, torch.tensor([0.0, 1.0]))
    assert styled.dtype == dtype
    assert torch.equal(styled[0], images[0])
    reference = restyle(generator, photo(2), photo(4))
    coarse = 0.2 if name == "reinhard-hsv" else 0.1  # the hue of nearly grey pixels jumps
    close = coarse if torch.finfo(dtype).bits == 16 else 1e-4
    torch.testing.assert_close(styled[1:].float(), reference, atol=close, rtol=0)


@every_generator
def test_rows_do_not_see_each_other(name: str) -> None:
    generator = COLOR_GENERATORS[name]()
    images, styles = (torch.cat([photo(seed + i) for i in range(3)]) for seed in (0, 10))
    codes, strength = generator.encode_style(styles), torch.tensor([1.0, 0.5, 0.8])
    together = generator(images, codes, strength)
    for i in range(3):
        row = slice(i, i + 1)
        torch.testing.assert_close(codes[row], generator.encode_style(styles[row]), atol=1e-6, rtol=1e-5)
        alone = generator(images[row], codes[row], strength[row])
        torch.testing.assert_close(together[row], alone, atol=1e-6, rtol=0)


@every_generator
def test_autocast_changes_nothing(name: str) -> None:
    generator = COLOR_GENERATORS[name]()
    plain = restyle(generator, photo(1), photo(2))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(restyle(generator, photo(1), photo(2)), plain)


@every_generator
def test_copies_and_pickles(name: str) -> None:
    generator = COLOR_GENERATORS[name]()
    twins = [copy.deepcopy(generator), pickle.loads(pickle.dumps(generator))]
    for twin in twins:
        assert torch.equal(restyle(twin, photo(1), photo(2)), restyle(generator, photo(1), photo(2)))


@every_generator
@pytest.mark.parametrize("flat", [False, True])
def test_gradients_are_finite(name: str, flat: bool) -> None:
    generator = COLOR_GENERATORS[name]()
    image = torch.zeros(1, 3, 8, 8) if flat else photo(1, 8, 8, 0.3, 0.6)
    image.requires_grad_()
    codes = generator.encode_style(photo(2)).requires_grad_()
    gradients = torch.autograd.grad(generator(image, codes, torch.ones(1)).sum(), [image, codes])
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert gradients[1].abs().sum() > 0


@pytest.mark.parametrize("name", LUMINANCE)
def test_luminance_keeps_chroma(name: str) -> None:
    image, style = photo(1, low=0.4, high=0.6), photo(2, low=0.45, high=0.65)
    styled = restyle(COLOR_GENERATORS[name](), image, style)
    assert styled.min() > 0 and styled.max() < 1, "clipping would void the test"
    before, after = rgb_to_ycbcr(image), rgb_to_ycbcr(styled)
    torch.testing.assert_close(after[:, 1:], before[:, 1:], atol=1e-6, rtol=0)
    assert (after[:, 0] - before[:, 0]).abs().mean() > 0.01


@pytest.mark.parametrize("space", SPACES)
def test_channel_stats_become_the_styles(space: str) -> None:
    generator = ChannelStats(space)
    image, style = photo(1, low=0.4, high=0.6), photo(2, low=0.35, high=0.6)
    styled = restyle(generator, image, style)
    assert styled.min() > 0 and styled.max() < 1, "clipping would void the test"
    expected = generator.encode_style(style)
    unit = 100 if space == "lab" else 1
    torch.testing.assert_close(generator.encode_style(styled), expected, atol=2e-4 * unit, rtol=0)


def test_channel_stats_code_is_mean_then_deviation() -> None:
    style = photo(3)
    lab = color.rgb2lab(to_numpy(style))
    expected = np.concatenate([lab.mean((0, 1)), lab.std((0, 1))])
    np.testing.assert_allclose(ChannelStats("lab").encode_style(style)[0], expected, atol=2e-3)
    y = color.rgb2ycbcr(to_numpy(style))[..., 0]
    expected = [(y.mean() - 16) / 219, y.std() / 219]
    np.testing.assert_allclose(ChannelStats("luminance").encode_style(style)[0], expected, atol=1e-4)


@pytest.mark.parametrize("space", SPACES)
def test_channel_stats_bound_the_gain(space: str) -> None:
    generator = ChannelStats(space)
    noise = 0.5 + 0.004 * torch.randn(1, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    styled = restyle(generator, noise, photo(2))
    before, after = (generator.encode_style(x).chunk(2, dim=1)[1] for x in (noise, styled))
    assert (after <= before * MAX_GAIN * 1.1).all()
    assert (after > before * MAX_GAIN * 0.6).all()


def test_histogram_agrees_with_skimage() -> None:
    image, style = photo(1, 120, 100), photo(2, 90, 110)
    styled = restyle(HistogramMatching(), image, style)
    theirs = exposure.match_histograms(to_numpy(image), to_numpy(style), channel_axis=2)
    difference = 255 * np.abs(to_numpy(styled) - theirs)
    assert difference.mean() < 0.3 and np.quantile(difference, 0.99) < 1.5 and difference.max() < 8


@pytest.mark.parametrize("size", [(60, 80), (300, 420)])
def test_histogram_quantiles_become_the_styles(size: tuple[int, int]) -> None:
    image, style = photo(1, *size), photo(2, 100, 90)
    styled = restyle(HistogramMatching(), image, style)
    ranks = torch.linspace(0.02, 0.98, 25)
    ours, wanted = (x.flatten(2).quantile(ranks, dim=2) for x in (styled, style))
    torch.testing.assert_close(ours, wanted, atol=2.5 / 255, rtol=0)


def test_histogram_of_itself_is_the_image() -> None:
    image = photo(5, 100, 120)
    torch.testing.assert_close(restyle(HistogramMatching(), image, image), image, atol=8 / 255, rtol=0)
    assert (restyle(HistogramMatching(), image, image) - image).abs().mean() < 0.5 / 255


def test_histogram_code_is_the_quantile_function() -> None:
    generator = HistogramMatching(quantiles=5)
    style = torch.arange(101.0).div(100)[torch.randperm(101, generator=torch.Generator().manual_seed(0))]
    code = generator.encode_style(style.expand(1, 3, 1, 101))
    expected = (1 - torch.linspace(0, math.pi, 5).cos()) / 2
    torch.testing.assert_close(code, expected.repeat(1, 3), atol=1e-5, rtol=0)


@settings(max_examples=25, deadline=None)
@given(seed=seeds, height=sides, width=sides)
def test_histogram_keeps_order(seed: int, height: int, width: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    image, style = torch.rand(1, 3, height, width, generator=rng), torch.rand(1, 3, 12, 9, generator=rng) ** 3
    styled = restyle(HistogramMatching(), image, style).flatten(2)
    ordered = styled.gather(2, image.flatten(2).argsort(dim=2))
    assert (ordered.diff(dim=2) >= -1e-6).all()


def test_histogram_sorts_codes() -> None:
    generator = HistogramMatching()
    codes = generator.encode_style(photo(2))
    shuffled = codes.view(1, 3, 64)[:, :, torch.randperm(64, generator=torch.Generator().manual_seed(0))]
    plain, sorted_on_use = (generator(photo(1), c, torch.ones(1)) for c in (codes, shuffled.flatten(1)))
    assert torch.equal(plain, sorted_on_use)


@pytest.mark.parametrize("value", [0.0, 0.2, 100.5 / 255, 0.7, 1.0])
@pytest.mark.parametrize("size", [(1, 1), (7, 5)])
def test_histogram_gives_flat_images_the_median(value: float, size: tuple[int, int]) -> None:
    style = photo(2)
    styled = restyle(HistogramMatching(), torch.full((1, 3, *size), value), style)
    median = style.flatten(2).quantile(0.5, dim=2)[:, :, None, None]
    torch.testing.assert_close(styled, median.expand_as(styled), atol=1e-2, rtol=0)


def test_histogram_bounds_the_gain() -> None:
    noise = (100 + (torch.rand(1, 3, 40, 40, generator=torch.Generator().manual_seed(0)) > 0.5)) / 255
    styled = restyle(HistogramMatching(), noise, photo(2))
    spread = styled.amax((2, 3)) - styled.amin((2, 3))
    torch.testing.assert_close(spread, torch.full_like(spread, MAX_GAIN / 255), atol=1e-5, rtol=0)


def test_limit_slope() -> None:
    table = torch.tensor([[[0.0, 0.1, 0.2, 0.8, 0.9, 0.9, 0.9]]])
    every = torch.ones_like(table, dtype=torch.bool)
    torch.testing.assert_close(limit_slope(table, every, 1.0), table)
    limited = limit_slope(table, every, 0.2)
    # Around the jump, half way between the least and the greatest function of slope 0.2:
    # 0.0, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9 and 0.2, 0.4, 0.6, 0.8, 0.9, 0.9, 0.9.
    torch.testing.assert_close(limited, torch.tensor([[[0.1, 0.25, 0.4, 0.6, 0.75, 0.85, 0.9]]]))
    ends = limit_slope(table, every & (torch.arange(7) == 2), 0.2)
    torch.testing.assert_close(ends, torch.full_like(table, 0.2))


def fda(image: np.ndarray, style: np.ndarray, cycles: int) -> np.ndarray:
    """Follow Yang & Soatto 2020, for images of one size and frequencies below its Nyquist limit."""
    height, width, _ = image.shape
    content, source = np.fft.fft2(image, axes=(0, 1)), np.fft.fft2(style, axes=(0, 1))
    down, across = (np.abs(np.fft.fftfreq(n) * n).round()[:, None] for n in (height, width))
    down, across = (f * np.where(2 * f < n, 1, np.inf) for f, n in ((down, height), (across, width)))
    window = (down <= cycles) & (cycles >= across.T)
    amplitude = np.where(window[:, :, None], np.abs(source), np.abs(content))
    return np.fft.ifft2(amplitude * np.exp(1j * np.angle(content)), axes=(0, 1)).real.clip(0, 1)


@pytest.mark.parametrize("size", [(32, 48), (33, 41), (64, 17), (6, 9), (5, 40), (2, 2), (1, 7), (1, 1)])
@pytest.mark.parametrize("cycles", [0, 1, 3])
def test_fourier_agrees_with_the_paper(size: tuple[int, int], cycles: int) -> None:
    image, style = photo(1, *size), photo(2, *size)
    expected = fda(to_numpy(image), to_numpy(style), cycles)
    styled = restyle(FourierAmplitude(cycles), image, style)
    np.testing.assert_allclose(to_numpy(styled), expected, atol=1e-4)


def test_fourier_swaps_amplitude_and_keeps_phase() -> None:
    image, style = photo(1, low=0.35, high=0.65), photo(2, low=0.35, high=0.65)
    styled = restyle(FourierAmplitude(2), image, style)
    assert styled.min() > 0 and styled.max() < 1, "clipping would void the test"
    before, wanted, after = (torch.fft.rfft2(x.double()) for x in (image, style, styled))
    rows = [0, 1, 2, -2, -1]
    torch.testing.assert_close(
        after[:, :, rows, :3].abs(), wanted[:, :, rows, :3].abs(), atol=1e-3, rtol=1e-4
    )
    low = after[:, :, rows, :3] / before[:, :, rows, :3]
    torch.testing.assert_close(low.angle(), torch.zeros_like(low.angle()), atol=1e-3, rtol=0)
    torch.testing.assert_close(after[..., 3:], before[..., 3:], atol=1e-3, rtol=0)


def test_fourier_code_does_not_depend_on_size() -> None:
    generator = FourierAmplitude(3)
    codes = []
    for height, width in [(20, 24), (37, 64)]:
        y, x = torch.arange(height)[:, None] / height, torch.arange(width) / width
        image = 0.5 + 0.2 * torch.cos(2 * math.pi * (2 * y + x)) + 0.1 * torch.sin(2 * math.pi * (3 * x - y))
        codes.append(generator.encode_style(image.expand(1, 3, height, width)))
    torch.testing.assert_close(codes[0], codes[1], atol=2e-6, rtol=0)
    plus, minus = codes[0][0, :25].split([16, 9])
    plus, minus = plus.view(4, 4), minus.view(3, 3)
    # A wave of amplitude a has coefficients a / 2; the second runs against the first's slope.
    found = torch.stack([plus[0, 0], plus[2, 1], minus[0, 2]])
    torch.testing.assert_close(found, torch.tensor([0.5, 0.1, 0.05]), atol=2e-6, rtol=0)
    assert codes[0][0, :25].sum() < 0.651


def test_fourier_with_its_own_code_gives_the_image_back() -> None:
    image = photo(3)
    torch.testing.assert_close(restyle(FourierAmplitude(), image, image), image, atol=1e-5, rtol=0)


@pytest.mark.parametrize("value", [0.0, 0.4])
def test_fourier_gives_flat_images_the_mean(value: float) -> None:
    style = photo(2)
    styled = restyle(FourierAmplitude(), torch.full((1, 3, 31, 45), value), style)
    mean = style.mean((2, 3), keepdim=True)
    torch.testing.assert_close(styled, mean.expand_as(styled), atol=1e-4, rtol=0)


def test_fourier_mixes_means() -> None:
    generator = FourierAmplitude()
    image, first, second = (
        photo(1, low=0.4, high=0.6),
        photo(2, low=0.4, high=0.6),
        photo(3, low=0.4, high=0.6),
    )
    codes = 0.3 * generator.encode_style(first) + 0.7 * generator.encode_style(second)
    styled = generator(image, codes, torch.ones(1))
    mean = 0.3 * first.mean((2, 3)) + 0.7 * second.mean((2, 3))
    torch.testing.assert_close(styled.mean((2, 3)), mean, atol=1e-5, rtol=0)


def pink(seed: int, height: int = 96, width: int = 80, *, low: float = 0.2, high: float = 0.8) -> Tensor:
    """Make an image whose amplitudes fall with 1 / frequency, as those of photographs."""
    noise = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed))
    u, v = torch.fft.fftfreq(height)[:, None] * height, torch.fft.rfftfreq(width) * width
    tilt = torch.rand((), generator=torch.Generator().manual_seed(seed + 50))
    size = (u.square() * (0.5 + tilt) + v.square() * (1.5 - tilt)).sqrt().clamp(min=1)
    image = torch.fft.irfft2(torch.fft.rfft2(noise) / size, s=(height, width))
    image = (image - image.amin((2, 3), True)) / (image.amax((2, 3), True) - image.amin((2, 3), True))
    return low + (high - low) * image


def swapped(content: Tensor, style: Tensor) -> Tensor:
    """Recombine amplitude and phase exactly, as APR and FACT do."""
    phase, amplitude = torch.fft.fft2(content).angle(), torch.fft.fft2(style).abs()
    return torch.fft.ifft2(torch.polar(amplitude, phase)).real.clamp(0, 1)


@pytest.mark.parametrize("size", [(96, 80), (33, 64), (160, 151)])
def test_full_band_is_close_to_the_exact_swap(size: tuple[int, int]) -> None:
    for seed in range(3):
        image, style = pink(seed, *size), pink(seed + 20, *size, low=0.3, high=0.6)
        found, wanted = restyle(FullFourier(), image, style), swapped(image, style)
        changes = torch.stack([(found - image).flatten(), (wanted - image).flatten()])
        assert torch.corrcoef(changes)[0, 1] > 0.95
        assert (found - wanted).abs().mean() < 0.3 * (wanted - image).abs().mean()


@pytest.mark.parametrize("size", [(13, 12), (9, 11), (12, 3)])
def test_full_band_is_the_exact_swap_below_seven_cycles(size: tuple[int, int]) -> None:
    """Apart from the Nyquist limit of even sides, and from amplitudes near the error of rounding."""
    image, style = photo(1, *size, low=0.35, high=0.65), photo(2, *size, low=0.35, high=0.65)
    found, wanted = (torch.fft.rfft2(x.double()) for x in (restyle(FullFourier(), image, style), style))
    before = torch.fft.rfft2(image.double())
    inside = (2 * torch.fft.fftfreq(size[0]).abs() < 1)[:, None] & (2 * torch.fft.rfftfreq(size[1]) < 1)
    own = before.abs().square()
    expected = wanted.abs() * (own / (own + size[0] * size[1] / 12 / 255**2)).sqrt()
    torch.testing.assert_close(found.abs()[..., inside], expected[..., inside], atol=5e-3, rtol=5e-3)
    turn = (found / before)[..., inside].angle()
    torch.testing.assert_close(turn, torch.zeros_like(turn), atol=1e-3, rtol=0)
    torch.testing.assert_close(found[..., ~inside], before[..., ~inside], atol=1e-3, rtol=0)


def test_full_band_keeps_every_phase() -> None:
    image, style = pink(1, low=0.45, high=0.55), pink(2, low=0.45, high=0.55)
    styled = restyle(FullFourier(), image, style)
    assert styled.min() > 0 and styled.max() < 1, "clipping would void the test"
    before, after = (torch.fft.rfft2(x.double()) for x in (image, styled))
    assert ((after / before).real > 0).all() and (after / before).angle().abs().max() < 0.02


def test_full_band_code_does_not_depend_on_size() -> None:
    """Blocks of equal pixels damp high frequencies, so only those far below the limit are the same."""
    generator, image = FullFourier(), pink(3, 96, 96)
    large = image.repeat_interleave(3, dim=2).repeat_interleave(3, dim=3)
    small, large = (generator.encode_style(x).view(3, -1)[:, :256].view(3, 16, 16) for x in (image, large))
    torch.testing.assert_close(small[:, :9, :9], large[:, :9, :9], atol=0.05, rtol=0)


def test_full_band_goes_on_beyond_a_small_style() -> None:
    """A style of 24 pixels says nothing about 40 cycles; it must not blur a large image."""
    image, style = pink(1, 160, 160), pink(2, 24, 24)
    styled = restyle(FullFourier(), image, style)
    fine = [x.diff(dim=3).std() for x in (image, styled)]
    assert 0.3 < fine[1] / fine[0] < 3


def test_full_band_codes_stay_in_their_range() -> None:
    generator = FullFourier()
    assert generator.code_range is not None
    least, most = (torch.tensor(end) for end in generator.code_range)
    grating = (torch.arange(240) % 2).float().expand(1, 3, 240, 240)
    for image in (torch.zeros(1, 3, 9, 9), torch.ones(1, 3, 9, 9), photo(1), grating, grating.mT):
        code = generator.encode_style(image)[0]
        assert (code >= least - 1e-5).all() and (code <= most + 1e-5).all()
    assert generator.code_length * 4 < 8000, "a style takes less than 8 kB"
    assert NODES[-1] < generator.code_size / 2


@pytest.mark.parametrize("value", [0.0, 0.4])
def test_full_band_gives_flat_images_the_mean(value: float) -> None:
    style = photo(2)
    styled = restyle(FullFourier(), torch.full((1, 3, 31, 45), value), style)
    torch.testing.assert_close(styled, style.mean((2, 3), True).expand_as(styled), atol=1e-3, rtol=0)


def test_full_band_moves_no_edge() -> None:
    images, styles = (torch.cat([pink(seed + first) for seed in range(8)]) for first in (0, 30))
    generator = FullFourier()
    found = displacements(images, generator(images, generator.encode_style(styles), torch.ones(8)))
    assert found.local.median() < 0.5 and found.matched > 0.7


def test_strength_mixes_amplitudes() -> None:
    """FACT's mix: amplitudes are averaged and phases kept."""
    image, style = pink(1, low=0.45, high=0.55), pink(2, low=0.45, high=0.55)
    generator = FullFourier()
    codes = generator.encode_style(style)
    half, whole = (generator(image, codes, torch.tensor([share])) for share in (0.3, 1.0))
    before, some, full = (torch.fft.rfft2(x.double()).abs() for x in (image, half, whole))
    torch.testing.assert_close(some, 0.7 * before + 0.3 * full, atol=5e-3, rtol=1e-3)
