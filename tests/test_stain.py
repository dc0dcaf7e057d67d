"""The stain generators against torchstain, scikit-image, scikit-learn and slides whose dyes are known."""

import math
import pickle

import numpy as np
import pytest
import torch
import torchstain
from contract import paint as restyle
from skimage import color, data
from specimens import bank, generator, photos
from torch import Tensor

from styleaug import StyleAugment
from styleaug.bank import Provenance, StyleBank
from styleaug.errors import ConfigError
from styleaug.generators import stain_separation as opticaldensity
from styleaug.generators.colorspace import hed_to_rgb, hsv_to_rgb, rgb_to_hed, rgb_to_hsv
from styleaug.generators.shared import Place, paint, survey
from styleaug.generators.stain import HedJitter, RandStainNA, TwoDyes
from styleaug.generators.stain_separation import WHITE, least_axis, read_stains, repaint
from styleaug.weights import STAIN_GENERATORS

every_generator = pytest.mark.parametrize("name", STAIN_GENERATORS)
both_methods = pytest.mark.parametrize("name", ["macenko", "vahadane"])

HAEMATOXYLIN_EOSIN = torch.tensor([[0.65, 0.70, 0.29], [0.15, 0.95, 0.28]])
AZURE_EOSIN = torch.tensor([[0.75, 0.60, 0.20], [0.20, 0.80, 0.55]])
CUBE = torch.cartesian_prod(*[torch.linspace(0, 1, 15)] * 3).T.reshape(1, 3, 45, 75)


def unit(axes: Tensor) -> Tensor:
    return axes / axes.norm(dim=1, keepdim=True)


def slide(axes: Tensor, *, seed: int = 0, side: int = 64, strength: float = 1.0) -> Tensor:
    """Make cells of two dyes on a white ground: pure patches of either, mixed ones, and the ground."""
    rng = torch.Generator().manual_seed(seed)
    kind = torch.randint(0, 4, (8, 8), generator=rng).repeat_interleave(side // 8, 0)
    kind = kind.repeat_interleave(side // 8, 1)
    amount = strength * (0.6 + torch.rand(2, side, side, generator=rng))
    amount = amount * torch.stack([(kind == 1) | (kind == 3), (kind == 2) | (kind == 3)])
    density = torch.einsum("kc,khw->chw", unit(axes), amount)
    return (torch.exp(WHITE - density) - 1 / 255).clamp(0, 1)[None]


def angle(one: Tensor, other: Tensor) -> float:
    """Give the largest angle in degrees between the columns of two matrices."""
    cosine = (one * other).sum(-2) / one.norm(dim=-2) / other.norm(dim=-2)
    return math.degrees(torch.acos(cosine.double().clamp(-1, 1)).max().item())


def bytes_of(image: Tensor) -> np.ndarray:
    return (image[0].permute(1, 2, 0) * 255).round().byte().numpy()


def from_bytes(image: np.ndarray) -> Tensor:
    return torch.from_numpy(image.copy()).permute(2, 0, 1)[None] / 255


def tissue(side: int, top: int = 0, left: int = 0) -> Tensor:
    """Cut out of scikit-image's slide of haematoxylin and DAB."""
    return from_bytes(data.immunohistochemistry()[top : top + side, left : left + side])


@pytest.mark.parametrize("backend", ["numpy", "torch"])
@pytest.mark.parametrize(
    ("image", "style"),
    [
        (tissue(64), tissue(64, 100, 200)),
        (tissue(64, 300, 300), tissue(64, 100, 200)),
        (tissue(60, 200, 40), slide(HAEMATOXYLIN_EOSIN)),
        (slide(HAEMATOXYLIN_EOSIN), slide(AZURE_EOSIN, seed=1, strength=0.8)),
        (slide(AZURE_EOSIN, side=56), tissue(64, 250, 250)),
    ],
)
def test_macenko_agrees_with_torchstain(backend, image, style):
    """Up to 64 x 64 no pixel is left out: dyes within 0.1 degrees, colours within the rounding."""
    theirs = torchstain.normalizers.MacenkoNormalizer(backend=backend)
    arrays = [bytes_of(x) for x in (image, style)]
    if backend == "torch":
        arrays = [torch.from_numpy(x).permute(2, 0, 1) for x in arrays]
    theirs.fit(arrays[1])
    normal, _, _ = theirs.normalize(I=arrays[0])
    image, style = (from_bytes(bytes_of(x)) for x in (image, style))
    macenko = generator("macenko")
    code = macenko.encode_style(style)
    axes = torch.as_tensor(theirs.HERef, dtype=torch.float32)
    assert angle(code[0, :6].view(2, 3).T, axes) < (0.1 if backend == "numpy" else 0.5)
    most = torch.as_tensor(theirs.maxCRef, dtype=torch.float32)
    torch.testing.assert_close(code[0, 6:], most, atol=0, rtol=1e-3 if backend == "numpy" else 1e-2)
    ours = 255 * macenko(image, code, torch.ones(1))[0].permute(1, 2, 0)
    difference = ours - torch.as_tensor(np.asarray(normal), dtype=torch.float32)
    # They cut off what is behind the point, and leave the level added before the logarithm: -1 to 0 of 255.
    assert (difference + 0.5).abs().mean() < (0.35 if backend == "numpy" else 0.8)
    assert (difference + 0.5).abs().quantile(0.99) < (1.0 if backend == "numpy" else 3.0)


@both_methods
@pytest.mark.parametrize(("top", "left"), [(0, 0), (256, 256), (100, 100)])
def test_a_grid_of_pixels_tells_the_dyes_as_well(name, top, left, monkeypatch):
    image = tissue(256, top, left)
    thinned = read_stains(image, sparse=name == "vahadane")
    monkeypatch.setattr(opticaldensity, "_PIXELS", 10**6)
    whole = read_stains(image, sparse=name == "vahadane")
    assert angle(thinned.axes, whole.axes) < 2
    torch.testing.assert_close(thinned.most, whole.most, atol=0, rtol=0.06)


@both_methods
@pytest.mark.parametrize("axes", [HAEMATOXYLIN_EOSIN, AZURE_EOSIN])
def test_known_dyes_are_found(name, axes):
    found = read_stains(slide(axes), sparse=name == "vahadane")
    # Its penalty makes Vahadane's dyes a little more alike than they are.
    assert bool(found.known) and angle(found.axes[0], unit(axes).T) < (4 if name == "vahadane" else 0.1)
    assert ((found.most > 1.5) & (found.most < 1.75)).all(), "drawn from 0.6 to 1.6"


@both_methods
def test_known_dyes_are_replaced(name):
    """The same cells, once in each pair of dyes."""
    image, style = slide(HAEMATOXYLIN_EOSIN), slide(AZURE_EOSIN)
    network = generator(name)
    styled = network(image, network.encode_style(style), torch.ones(1))
    assert (styled - style).abs().mean() < 1 / 255 and (image - style).abs().mean() > 10 / 255
    assert (network(style, network.encode_style(style), torch.ones(1)) - style).abs().mean() < 1 / 255


@pytest.mark.slow
@pytest.mark.parametrize("image", [tissue(40), tissue(40, 300, 300), slide(AZURE_EOSIN, side=40)])
def test_vahadane_agrees_with_scikit_learn(image):
    """Dictionary learning with the paper's objective, to convergence: within one degree."""
    found = read_stains(image, sparse=True).axes[0]
    density = (WHITE - (image[0].double() + 1 / 255).log()).flatten(1)
    density = density[:, (density >= 0.15).all(0)].T.numpy()
    first = read_stains(image).axes[0].clamp(min=0).T.double().numpy()
    options = {"positive_code": True, "positive_dict": True, "max_iter": 200, "tol": 1e-9}
    theirs = (
        pytest.importorskip("sklearn.decomposition")
        .DictionaryLearning(
            2,
            alpha=0.1,
            fit_algorithm="cd",
            transform_algorithm="lasso_cd",
            dict_init=first / np.linalg.norm(first, axis=1, keepdims=True),
            code_init=np.ones((len(density), 2)),
            **options,
        )
        .fit(density)
    )
    axes = torch.from_numpy(theirs.components_).float().T
    assert min(angle(found, axes), angle(found, axes.flip(1))) < 1


def test_the_least_axis_is_torchs():
    rng = torch.Generator().manual_seed(0)
    spread = torch.randn(50, 3, 40, generator=rng) * torch.tensor([1.0, 0.3, 0.05])[:, None]
    turned = torch.linalg.qr(torch.randn(50, 3, 3, generator=rng)).Q @ spread
    covariance = turned @ turned.mT / 40
    wanted = torch.linalg.eigh(covariance.double()).eigenvectors[..., 0].float()
    cosine = (least_axis(covariance) * wanted).sum(1).abs()
    assert cosine.min() > 1 - 1e-5


def test_reinhard_agrees_with_torchstain():
    """Within 1.2 of 255 on average: they cut off 8 bits, and round CIELAB's constants otherwise."""
    image, style = tissue(96), tissue(96, 250, 250)
    theirs = torchstain.normalizers.ReinhardNormalizer(backend="numpy")
    theirs.fit(bytes_of(style))
    normal = theirs.normalize(I=bytes_of(image))
    network = generator("reinhard-lab")
    ours = 255 * network(image, network.encode_style(style), torch.ones(1))[0].permute(1, 2, 0).numpy()
    assert np.abs(ours - normal).mean() < 1.2
    assert np.quantile(np.abs(ours - normal - 0.5), 0.99) < 2


def test_hed_agrees_with_skimage():
    array = CUBE[0].permute(1, 2, 0).double().numpy()
    ours = rgb_to_hed(CUBE)[0].permute(1, 2, 0) / math.log(1e6)
    np.testing.assert_allclose(ours.clamp(min=0), color.rgb2hed(array), atol=1e-4)
    amounts = 0.3 * CUBE
    back = hed_to_rgb(amounts * math.log(1e6))[0].permute(1, 2, 0)
    np.testing.assert_allclose(back, color.hed2rgb(0.3 * array), atol=1e-4)
    torch.testing.assert_close(hed_to_rgb(rgb_to_hed(CUBE)), CUBE, atol=1e-5, rtol=0)


def test_hsv_agrees_with_skimage():
    ours = rgb_to_hsv(CUBE)[0].permute(1, 2, 0).double().numpy()
    theirs = color.rgb2hsv(CUBE[0].permute(1, 2, 0).double().numpy())
    turn = np.abs((ours[..., 0] + 1 / 3) % 1 - theirs[..., 0])  # ours has its jump at green
    assert np.minimum(turn, 1 - turn).max() < 1e-5
    np.testing.assert_allclose(ours[..., 1:], theirs[..., 1:], atol=1e-5)
    torch.testing.assert_close(hsv_to_rgb(rgb_to_hsv(CUBE)), CUBE, atol=1e-5, rtol=0)


@pytest.mark.parametrize("sigma", [0.05, 0.2])
def test_jitter_is_the_papers(sigma):
    """Amounts by scikit-image's matrix, scaled and shifted; a code of 0.6745 is three quarters of the way."""
    image, code = tissue(32).clamp(min=1 / 255), torch.tensor([[0.6745, 0, -9, 9, 0, -0.6745]])
    scale, shift = 1 + sigma * np.array([0.5, 0, -1]), sigma * np.array([1, 0, -0.5])
    density = -np.log(image[0].permute(1, 2, 0).double().numpy())
    amounts = (density @ color.hed_from_rgb) * scale + shift
    wanted = np.exp(-amounts @ color.rgb_from_hed).clip(0, 1)
    styled = HedJitter(sigma)(image, code, torch.ones(1))[0].permute(1, 2, 0)
    np.testing.assert_allclose(styled, wanted, atol=5e-4)


def test_jitter_needs_no_bank():
    image = tissue(32).repeat(300, 1, 1, 1)
    augment = StyleAugment(generator="hed-jitter", p=1.0, strength=1.0)
    light = (augment(image).mean((1, 2, 3)) - image[0].mean()).numpy()
    assert 0.005 < light.std() < 0.03 and abs(light.mean()) < 0.005 and len(np.unique(light)) > 290
    strong = StyleAugment(generator="hed-jitter-strong", p=1.0, strength=1.0)(image)
    assert strong.mean((1, 2, 3)).std() > 3 * light.std()
    still = generator("hed-jitter-strong")(image[:1], torch.zeros(1, 6), torch.ones(1))
    torch.testing.assert_close(still, image[:1], atol=1e-5, rtol=0)


def test_jitter_is_drawn_evenly():
    code = torch.randn(4000, 6, generator=torch.Generator().manual_seed(0))
    place = torch.erf(code / math.sqrt(2)).flatten().numpy()
    counts, _ = np.histogram(place, 20, (-1, 1))
    assert counts.min() > 1000 and counts.max() < 1400, "uniform from -1 to 1"


def test_randstainna_draws_every_space():
    styles = torch.cat([tissue(48, top, left) for top in range(0, 400, 40) for left in range(0, 400, 40)])
    network = RandStainNA()
    codes = StyleBank(
        network.encode_style(styles), Provenance(network.name, network.fingerprint, len(styles))
    )
    augment = StyleAugment(codes, generator=network, sampler="gaussian", p=1.0, strength=1.0)
    params = augment.make_params(torch.zeros(600, 3, 1, 1), rng=torch.Generator().manual_seed(0))
    for drawn in (params["codes"], codes.codes.repeat(3, 1)):
        assert drawn is not None
        chosen = (3 * (drawn[:, :3].sum(1) % 1)).floor().long()
        assert (torch.bincount(chosen, minlength=3) > 0.2 * len(drawn)).all()
    image = tissue(32, 300, 200)
    singles = [generator(f"reinhard-{space}") for space in ("lab", "hsv", "hed")]
    for code in codes.codes[:12, None]:
        space = int(3 * (code[0, :3].sum() % 1))
        wanted = singles[space](image, code[:, 6 * space : 6 * space + 6], torch.ones(1))
        torch.testing.assert_close(network(image, code, torch.ones(1)), wanted)


def test_randstainna_gives_the_same_on_devices_that_cannot_choose_rows(monkeypatch):
    network, images = RandStainNA(), photos(6)
    codes, strength = network.encode_style(1 - photos(6)), torch.linspace(0, 1, 6)
    chosen = network(images, codes, strength)
    monkeypatch.setattr("styleaug.generators.stain.sharing", lambda: True)
    torch.testing.assert_close(network(images, codes, strength), chosen)


@both_methods
def test_images_without_tissue_come_back(name):
    network = generator(name)
    code = network.encode_style(tissue(64))
    for value in (0.0, 0.5, 0.95, 1.0):
        for side in (1, 2, 40):
            flat = torch.full((1, 3, side, side), value)
            torch.testing.assert_close(network(flat, code, torch.ones(1)), flat, atol=1e-5, rtol=0)
    faint = (0.97 + 0.02 * torch.randn(1, 3, 64, 64)).clamp(0, 1)
    torch.testing.assert_close(network(faint, code, torch.ones(1)), faint, atol=1e-5, rtol=0)
    grey = photos(1, 30, 30, channels=1).expand(-1, 3, -1, -1)
    torch.testing.assert_close(network(grey, code, torch.ones(1)), grey, atol=1e-5, rtol=0)


@both_methods
def test_the_ground_stays_white(name):
    network, image = generator(name), slide(HAEMATOXYLIN_EOSIN)
    styled = network(image, network.encode_style(slide(AZURE_EOSIN)), torch.ones(1))
    ground = (image > 0.93).all(1, keepdim=True)
    assert ground.float().mean() > 0.1 and (styled - image).abs()[ground.expand_as(image)].max() < 1 / 255


@both_methods
def test_styles_without_tissue_leave_something(name):
    network, image = generator(name), tissue(64)
    for style in (torch.ones(1, 3, 20, 20), torch.zeros(1, 3, 20, 20)):
        styled = network(image, network.encode_style(style), torch.ones(1))
        assert styled.std() > 0.05


def test_the_rest_can_be_kept():
    image = tissue(64, 200, 200)
    plain, kept = TwoDyes("macenko"), TwoDyes("macenko", residual=True)
    code = plain.encode_style(image)
    error = [(network(image, code, torch.ones(1)) - image).abs().mean() for network in (plain, kept)]
    assert error[0] > 0.002 and error[1] < 1e-5
    assert kept.fingerprint != plain.fingerprint and kept.name == "macenko-residual"


@every_generator
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_strength_zero_is_exact_in_every_dtype(name, dtype):
    network, images = generator(name), torch.cat([tissue(40), tissue(40, 300, 300)]).to(dtype)
    codes = network.encode_style(images.flip(0).float())
    styled = network(images, codes, torch.tensor([0.0, 1.0]))
    assert styled.dtype == dtype and torch.equal(styled[0], images[0])
    plain = network(images.float(), codes, torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(styled.float(), plain, atol=0.1 if dtype == torch.bfloat16 else 0.02, rtol=0)


@every_generator
def test_any_code_gives_finite_images(name):
    network, images = generator(name), torch.rand(20, 3, 24, 24)
    styled = network(images, 3 * torch.randn(20, network.code_length), torch.ones(20))
    assert styled.min() >= 0 and styled.max() <= 1  # NaN fails both
    assert not network.state_dict()


@every_generator
@pytest.mark.parametrize("flat", [False, True])
def test_gradients_are_finite(name, flat):
    network = generator(name)
    image = torch.zeros(1, 3, 16, 16) if flat else 0.2 + 0.6 * tissue(16, 100, 100)
    codes = network.encode_style(tissue(32)).requires_grad_()
    gradients = torch.autograd.grad(
        network(image.requires_grad_(), codes, torch.ones(1)).sum(), [image, codes]
    )
    assert all(gradient.isfinite().all() for gradient in gradients)
    augment = StyleAugment(bank(name), generator=network, p=1.0)
    styled = augment.apply(image, augment.make_params(image), differentiable=True)
    styled.sum().backward()
    assert image.grad is not None and image.grad.isfinite().all()


@every_generator
def test_compiled_arithmetic_is_the_blocks(name):
    """With a gradient wanted, nothing is done in blocks: as on other devices and in graphs."""
    network, images = generator(name), torch.cat([tissue(300), tissue(300, 200, 200), tissue(300, 100, 10)])
    codes, strength = network.encode_style(images.roll(1, 0)), torch.tensor([1.0, 0.5, 0.0])
    with torch.no_grad():
        blocks = network(images, codes, strength)
    whole = network(images.requires_grad_(), codes, strength).detach()
    torch.testing.assert_close(blocks, whole, atol=2e-4, rtol=0)


def test_logarithms_are_the_same_on_other_processors(monkeypatch):
    images, matrix = torch.rand(3, 3, 20, 20), torch.eye(3) + 0.2 * torch.randn(3, 3, 3)
    results = []
    for fast in (True, False):
        monkeypatch.setattr(opticaldensity, "FAST_NUMPY", fast)
        with torch.inference_mode():
            results.append(repaint(images, matrix, torch.zeros(3, 3), torch.ones(3)))
    torch.testing.assert_close(*results, atol=1e-5, rtol=0)


@every_generator
def test_rows_and_their_order_do_not_matter(name):
    network = generator(name)
    images = torch.cat([tissue(150, 40 * i, 50 * i) for i in range(5)] + [torch.ones(1, 3, 150, 150)])
    codes, strength = network.encode_style(images.roll(2, 0)), torch.linspace(1, 0.2, 6)
    styled, order = network(images, codes, strength), torch.tensor([3, 5, 0, 1, 4, 2])
    torch.testing.assert_close(network(images[order], codes[order], strength[order]), styled[order])
    for row in range(6):
        one = slice(row, row + 1)
        torch.testing.assert_close(network(images[one], codes[one], strength[one]), styled[one])


@every_generator
def test_replay_pickles_and_autocast(name):
    network = generator(name)
    plain = restyle(network, photos(3))
    assert torch.equal(restyle(pickle.loads(pickle.dumps(network)), photos(3)), plain)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(restyle(network, photos(3)), plain)
    augment = StyleAugment(bank(name), generator=network, p=0.7)
    params = augment.make_params(photos(4))
    assert torch.equal(augment.apply(photos(4), params), augment.apply(photos(4), params))


@every_generator
def test_tiles_fit(name):
    """A slide in four tiles, by the statistics of all of them, is the slide at once."""
    network, image = generator(name), tissue(256, 100, 100)
    code, strength = network.encode_style(tissue(128, 300, 300)), torch.ones(1)
    corners = [(top, left) for top in (0, 128) for left in (0, 128)]
    tiles = torch.cat([image[..., top : top + 128, left : left + 128] for top, left in corners])
    found = [Place(top, left, 256, 256) for top, left in corners]
    shared = survey(network, tiles, code, strength, places=found)
    styled = paint(network, tiles, code, strength, shared, places=found)
    whole = network(image, code, strength)
    for tile, (top, left) in zip(styled, corners, strict=True):
        assert (tile - whole[0, :, top : top + 128, left : left + 128]).abs().max() < 2 / 255


@every_generator
def test_slices_share_dyes(name):
    network = generator(name)
    slices = torch.cat([tissue(64, 60 * i, 60 * i) for i in range(4)])
    code, strength = network.encode_style(tissue(64, 10, 300)), torch.ones(1)
    shared = survey(network, slices, code, strength)
    again = paint(network, slices[1:2], code, strength, shared)
    torch.testing.assert_close(paint(network, slices, code, strength, shared)[1:2], again)


def test_settings_out_of_range_are_refused():
    for make in (lambda: TwoDyes("reinhard"), lambda: HedJitter(-0.1), lambda: HedJitter(float("nan"))):
        with pytest.raises(ConfigError):
            make()
    assert HedJitter(0.1).fingerprint != HedJitter(0.05).fingerprint


@every_generator
def test_name_is_the_key(name):
    assert STAIN_GENERATORS[name]().name == name
