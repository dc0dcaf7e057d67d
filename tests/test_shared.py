"""Views of one image share its statistics: slices do not flicker, tiles fit without seams."""

from threading import Barrier, Thread

import pytest
import torch
import torch.nn.functional as F
from specimens import GENERATORS, Spy, generator, photo, photos, seeded
from torch import Tensor

from styleaug import ConfigError, load_generator
from styleaug.generators.adain import AdaIN
from styleaug.generators.base import AbstractGenerator
from styleaug.generators.cyclegan import CycleGAN
from styleaug.generators.patchswap import PatchSwap
from styleaug.generators.pix2pix import Pix2Pix
from styleaug.generators.shared import (
    Place,
    average,
    paint,
    places,
    pooled,
    predicted,
    sharing,
    survey,
    together,
)
from styleaug.generators.vaegan import VAEGAN
from styleaug.weights import COLOR_GENERATORS

each_generator = pytest.mark.parametrize("name", GENERATORS)
each_in_tiles = pytest.mark.parametrize("name", [name for name in GENERATORS if name != "fourier-full"])
MARGINAL = 2 / 255
POINTWISE = [name for name in COLOR_GENERATORS if generator(name).margin == 0 and name != "fourier"]
"""Generators that map a pixel by its value and the statistics alone."""


def style(network: AbstractGenerator, count: int = 1) -> tuple[Tensor, Tensor]:
    """Make codes and strengths."""
    return network.encode_style(1 - photos(count, 20, 24)), torch.linspace(0.8, 0.6, count)


def volume(slices: int = 6, side: int = 128) -> Tensor:
    """Make slices that differ in one corner alone, where something bright grows."""
    stack = photo(side, side)[None].repeat(slices, 1, 1, 1)
    for index, image in enumerate(stack):
        image[:, : 5 * index, : 5 * index] = torch.tensor([0.9, 1.0, 0.7])[:, None, None]
    return stack


def tiles_of(image: Tensor, core: int, margin: int, multiple: int = 1) -> tuple[list[Place], Tensor]:
    """Cut an image into tiles of equal size, whose cores cover each pixel once."""
    height, width = image.shape[-2:]
    filled = F.pad(image, (0, -width % multiple, 0, -height % multiple), mode="replicate")
    tall, wide = (min(core + 2 * margin, side) for side in filled.shape[-2:])
    found = []
    for top in range(0, height, core):
        for left in range(0, width, core):
            inner = top, left, min(top + core, height), min(left + core, width)
            first = min(max(0, top - margin), filled.shape[-2] - tall)
            begin = min(max(0, left - margin), filled.shape[-1] - wide)
            found.append(Place(first, begin, height, width, inner))
    views = [filled[:, :, place.top :, place.left :][..., :tall, :wide] for place in found]
    return found, torch.cat(views)


def joined(tiles: list[Place], painted: Tensor) -> Tensor:
    """Put the cores of tiles together."""
    image = torch.full((1, 3, tiles[0].height, tiles[0].width), torch.nan)
    for place, tile in zip(tiles, painted, strict=True):
        assert place.core is not None
        top, left, bottom, right = place.core
        rows, columns = (
            slice(top - place.top, bottom - place.top),
            slice(left - place.left, right - place.left),
        )
        image[0, :, top:bottom, left:right] = tile[:, rows, columns]
    return image


def reduced(image: Tensor) -> Tensor:
    """Halve an image."""
    return F.interpolate(image, scale_factor=0.5, mode="bilinear", antialias=True)


@each_generator
@pytest.mark.parametrize("size", [(40, 52), (37, 51), (5, 3)])
def test_one_view_is_the_plain_forward(name, size):
    network, image = generator(name), photo(*size)[None]
    code, strength = style(network)
    plain = network(image, code, strength)
    slices = paint(network, image, code, strength, survey(network, image, code, strength))
    where = [Place(0, 0, *size)]
    shared = survey(network, image, code, strength, places=where, margin=8, whole=image)
    tile = paint(network, image, code, strength, shared, places=where)
    # Percentiles of shared views are read from histograms.
    tolerance = 0.01 if name in ("macenko", "vahadane") else 1e-5
    for painted in (slices, tile, together(network, image, code, strength)):
        torch.testing.assert_close(painted, plain, atol=tolerance, rtol=0)


@each_generator
def test_together_is_survey_and_paint_of_each_volume(name):
    network, slices = generator(name), photos(6, 40, 48)
    codes, strength = style(network, 2)
    once = together(network, slices, codes, strength)
    for row in range(2):
        views, rest = slices[3 * row : 3 * row + 3], (codes[[row]], strength[[row]])
        shared = survey(network, views, *rest)
        torch.testing.assert_close(paint(network, views, *rest, shared), once[3 * row : 3 * row + 3])
        for index, view in enumerate(views.split(1)):  # in any portions
            alone = paint(network, view, *rest, shared)
            torch.testing.assert_close(alone[0], once[3 * row + index], atol=1e-5, rtol=0)


@each_generator
def test_the_order_of_slices_does_not_matter(name):
    network, slices = generator(name), photos(5, 40, 48)
    code, strength = style(network)
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(
        together(network, slices[order], code, strength),
        together(network, slices, code, strength)[order],
        atol=1e-4,
        rtol=0,
    )


@pytest.mark.parametrize("name", POINTWISE)
def test_slices_are_one_image(name):
    """Statistics are those of all slices side by side, and equal pixels stay equal."""
    network, slices = generator(name), photos(4, 40, 48)
    slices[2, :, :20] = slices[1, :, 20:]
    code, strength = style(network)
    painted = together(network, slices, code, strength)
    assert torch.equal(painted[2, :, :20], painted[1, :, 20:])
    side_by_side = network(torch.cat(list(slices), dim=1)[None], code, strength)
    torch.testing.assert_close(torch.cat(list(painted), dim=1)[None], side_by_side, atol=1e-4, rtol=0)


@each_generator
def test_slices_do_not_flicker(name):
    network, slices = generator(name), volume()
    code, _ = style(network)
    code, strength = code.expand(len(slices), -1), torch.ones(len(slices))
    apart = network(slices, code, strength)[..., 100:, 100:].var(dim=0).mean()
    shared = together(network, slices, code[:1], strength[:1])[..., 100:, 100:].var(dim=0).mean()
    most = 0.3 if name == "fourier-full" else 0.1  # its filter spreads each change over the slice
    assert shared < most * apart or apart < 1e-9


@each_in_tiles
@pytest.mark.parametrize("size", [(384, 256), (205, 147)])
def test_tiles_are_the_whole_image(name, size):
    network, image = generator(name), photo(*size)[None]
    assert network.margin is not None and network.margin % network.multiple == 0
    code, strength = style(network)
    where, tiles = tiles_of(image, 64, network.margin, network.multiple)
    shared = survey(network, tiles, code, strength, places=where, whole=image)
    painted = joined(where, paint(network, tiles, code, strength, shared, places=where))
    assert (painted - network(image, code, strength)).abs().max() < MARGINAL


@pytest.mark.parametrize(
    "make",
    [
        lambda: AdaIN((4, 4, 8), blocks=2, hidden=8),
        lambda: PatchSwap(AdaIN((4, 4, 8), blocks=2, hidden=8), patches=4),
        lambda: CycleGAN(4, blocks=1),
        lambda: CycleGAN(4, blocks=1, fold=2),
        lambda: VAEGAN(4, blocks=2, fold=2),
        lambda: Pix2Pix(4, depth=2),
        lambda: Pix2Pix(4, depth=4),
    ],
)
def test_a_margin_is_all_that_a_tile_sees(make):
    network, image = seeded(make, 0).eval().requires_grad_(False), photo(256, 256)[None]
    with torch.no_grad():  # so that no layer is near zero
        for weight in network.parameters():
            weight += seeded(lambda like=weight: 0.1 * torch.randn_like(like), 0)
    code, strength = style(network)
    shared = survey(network, image, code, strength, places=[Place(0, 0, 256, 256)])
    where, tiles = tiles_of(image, 32, network.margin, network.multiple)
    painted = joined(where, paint(network, tiles, code, strength, shared, places=where))
    torch.testing.assert_close(painted, network(image, code, strength), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["adain", "photo", "fourier"])
def test_tiles_of_a_shipped_generator_are_the_whole_image(name):
    network, image = load_generator(name), photo(768, 640)[None]
    code, strength = style(network)
    where, tiles = tiles_of(image, 256, network.margin or 0)
    with torch.inference_mode():
        shared = survey(network, tiles, code, strength, places=where, whole=reduced(image))
        painted = joined(where, paint(network, tiles, code, strength, shared, places=where))
        assert (painted - network(image, code, strength)).abs().max() < MARGINAL


@each_in_tiles
def test_tiles_have_no_seams_when_some_were_surveyed(name):
    network, image = generator(name), photo(256, 192)[None]
    code, strength = style(network)
    where, tiles = tiles_of(image, 64, network.margin or 0, network.multiple)
    shared = survey(network, tiles[::3], code, strength, places=where[::3], whole=reduced(image))
    painted = joined(where, paint(network, tiles, code, strength, shared, places=where))
    seamless = paint(network, image, code, strength, shared, places=[Place(0, 0, 256, 192)])
    torch.testing.assert_close(painted, seamless, atol=1e-4, rtol=0)
    apart = joined(where, network(tiles, code.expand(len(tiles), -1), strength.expand(len(tiles))))
    # A jitter reads nothing, and the normalised levels of this U-Net of random weights say little.
    if shared.values and name != "tiny-pix2pix":
        assert (apart - seamless).abs().max() > 5 * MARGINAL


@pytest.mark.parametrize("name", ["reinhard-lab", "histogram", "tiny-adain"])
def test_margins_do_not_count(name):
    network, image = generator(name), photo(160, 160)[None]
    code, strength = style(network)
    known = Place(64, 64, 480, 480)
    with_core = Place(64, 64, 480, 480, (112, 112, 176, 176))
    spoilt = image.clone()
    spoilt[..., :8, :] = 1  # too far from the core to be seen by its features
    first, second, third = (
        survey(network, view, code, strength, places=[place], margin=48).values
        for view, place in [(image, known), (spoilt, known), (spoilt, with_core)]
    )
    torch.testing.assert_close(first, second)
    torch.testing.assert_close(first, third)
    bare = survey(network, spoilt, code, strength, places=[known]).values
    assert not torch.allclose(first[0][0], bare[0][0], atol=1e-3)


def test_views_count_by_their_area():
    class Means(Spy):
        def forward(self, images: Tensor, codes: Tensor, strength: Tensor) -> Tensor:
            self.found = [
                pooled(lambda planes: planes.mean(dim=(2, 3)), images)[:, 0],
                average(images.mean(dim=(1, 2, 3))),
                predicted(lambda seen: (seen.amax(dim=(1, 2, 3)),), images)[0],
            ]
            return images

    views = torch.stack([torch.full((3, 8, 8), value) for value in (0.0, 0.5)])
    where = [Place(0, 0, 8, 16, (0, 0, 8, 4)), Place(0, 8, 8, 16, (0, 4, 8, 16))]
    network, whole = Means(), torch.full((1, 3, 4, 8), 0.7)
    shared = survey(network, views, torch.zeros(1, 1), torch.ones(1), places=where, whole=whole)
    for found, wanted in zip(network.found, [1 / 3, 1 / 3, 0.7], strict=True):
        torch.testing.assert_close(found, torch.full((2,), wanted))
    paint(network, views[:1], torch.zeros(1, 1), torch.ones(1), shared, places=where[:1])
    for found, wanted in zip(network.found, [1 / 3, 1 / 3, 0.7], strict=True):
        torch.testing.assert_close(found, torch.full((1,), wanted))


def test_threads_do_not_mix():
    meeting = Barrier(2, timeout=20)

    class Slow(Spy):
        def forward(self, images: Tensor, codes: Tensor, strength: Tensor) -> Tensor:
            first = average(images.mean(dim=(1, 2, 3)))
            meeting.wait()
            return images * 0 + per_image(first + average(images.amax(dim=(1, 2, 3))))

    found: dict[float, Tensor] = {}

    def work(value: float) -> None:
        views = torch.stack([torch.zeros(3, 4, 4), torch.full((3, 4, 4), value)])
        shared = survey(network, views, torch.zeros(1, 1), torch.ones(1))
        found[value] = paint(network, views, torch.zeros(1, 1), torch.ones(1), shared)

    network = Slow()
    threads = [Thread(target=work, args=(value,)) for value in (0.2, 0.6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for value, painted in found.items():
        torch.testing.assert_close(painted, torch.full((2, 3, 4, 4), value))
    assert len(found) == 2


def per_image(values: Tensor) -> Tensor:
    return values[:, None, None, None]


def test_an_error_inside_leaves_nothing_behind():
    class Broken(Spy):
        def forward(self, images: Tensor, codes: Tensor, strength: Tensor) -> Tensor:
            assert sharing()
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        survey(Broken(), photos(2), torch.zeros(1, 1), torch.ones(1))
    assert not sharing() and places() is None


@pytest.mark.parametrize("name", ["reinhard-rgb", "fourier", "tiny-adain", "tiny-photo", "tiny-vaegan"])
def test_gradients_are_those_of_the_plain_forward(name):
    network, image = generator(name), photo(40, 48)[None]
    code, strength = style(network)
    grads = []
    for run in (network, lambda *given: together(network, *given)):
        pixels, style_code = image.clone().requires_grad_(), code.clone().requires_grad_()
        (run(pixels, style_code, strength) ** 2).sum().backward()
        grads.append((pixels.grad, style_code.grad))
    for plain, shared in zip(*grads, strict=True):
        torch.testing.assert_close(shared, plain, atol=2e-3, rtol=1e-3)


def test_refusals():
    network, views = generator("tiny-photo"), photos(2, 64, 64)
    code, strength = style(network)
    where = [Place(0, 0, 128, 128), Place(0, 64, 128, 128)]
    with pytest.raises(ConfigError, match=r"whole=\) a reduced copy"):
        survey(network, views, code, strength, places=where)
    assert not sharing()
    with pytest.raises(ConfigError, match="1 places for 2 views"):
        survey(network, views, code, strength, places=where[:1])
    with pytest.raises(ConfigError, match="2 views cannot share 3 styles"):
        survey(network, views, *style(network, 3))
    shared = survey(network, views, code, strength)
    with pytest.raises(ConfigError, match="of slices under 'photo'"):
        paint(network, views, code, strength, shared, places=where)
    network = generator("tiny-adain")
    with pytest.raises(ConfigError, match="of slices under 'photo'"):
        paint(network, views, *style(network), shared)
    with pytest.raises(ConfigError, match="multiples of 8"):
        survey(network, views, *style(network), places=[where[0], Place(0, 60, 128, 128)])
    inside = [Place(8, 8, 128, 128), Place(8, 64, 136, 136)]
    with pytest.raises(ConfigError, match="all margin"):
        survey(network, views, *style(network), places=inside, margin=32)
