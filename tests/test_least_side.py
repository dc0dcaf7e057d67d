"""Small images are enlarged for the network, and come back as sharp as they were."""

import pytest
import torch
from specimens import Spy, bank_of, generator, photos

from styleaug import ConfigError
from styleaug.transforms.core import Stylizer
from styleaug.transforms.params import first_rows


def augment(network, **options) -> Stylizer:
    return Stylizer(bank_of(network), generator=network, **{"p": 1.0, "precision": "float32", **options})


@pytest.mark.parametrize(
    ("size", "least", "seen"),
    [((24, 32), 48, (48, 64)), ((24, 32), 24, (24, 32)), ((24, 32), 7, (24, 32)), ((9, 5), 12, (22, 12))],
)
def test_the_generator_sees_the_least_side(size, least, seen):
    spy, images = Spy(), photos(3, *size)
    styled = augment(spy, least_side=least)(images)
    assert {tuple(part.shape[2:]) for part in spy.seen} == {seen}
    assert styled.shape == images.shape


def test_a_generator_knows_what_suits_it():
    spy = Spy()
    spy.least_side = 30
    augment(spy)(photos(2))
    augment(spy, least_side=1)(photos(2))
    assert [tuple(part.shape[2:]) for part in spy.seen] == [(30, 40), (24, 32)]
    shipped = {name: Stylizer(name).least_side for name in ("art", "art-patches", "photo-tones")}
    assert shipped == {"art": 128, "art-patches": 128, "photo-tones": 1}


@pytest.mark.parametrize("name", ["tiny-adain", "tiny-photo", "reinhard-rgb", "tiny-pix2pix"])
def test_strength_zero_gives_the_image(name):
    images = photos(4)
    torch.testing.assert_close(augment(generator(name), strength=0, least_side=50)(images), images)


def test_detail_stays():
    """A shift of colours leaves every edge of the small image, whatever enlarging and reducing blurs."""
    images, network = torch.rand(2, 3, 16, 16) * 0.4 + 0.3, generator("fourier")
    styled = augment(network, strength=0.2, least_side=40)(images)
    before, after = (part.diff(dim=3).flatten() for part in (images, styled))
    assert torch.corrcoef(torch.stack([before, after]))[0, 1] > 0.98


@pytest.mark.parametrize("name", ["tiny-adain", "tiny-photo", "tiny-pix2pix"])
def test_large_images_are_as_without(name):
    images, network = photos(4), generator(name)
    given = torch.Generator().manual_seed(0)
    params = augment(network).make_params(images, rng=given)
    assert torch.equal(
        augment(network, least_side=24).apply(images, params), augment(network).apply(images, params)
    )
    assert not torch.equal(
        augment(network, least_side=25).apply(images, params), augment(network).apply(images, params)
    )


def test_colours_are_those_of_the_size_itself():
    images, network = photos(4), generator("reinhard-rgb")
    small, large = augment(network), augment(network, least_side=96)
    params = small.make_params(images, rng=torch.Generator().manual_seed(0))
    plain, enlarged = small.apply(images, params), large.apply(images, params)
    assert (plain - enlarged).abs().mean() < 0.01 < (plain - images).abs().mean()


def test_an_image_depends_on_no_other():
    images, transform = photos(5), augment(generator("tiny-adain"), least_side=40)
    params = transform.make_params(images, rng=torch.Generator().manual_seed(0))
    whole = transform.apply(images, params)
    alone = first_rows(params, 1)
    torch.testing.assert_close(transform.apply(images[:1], alone)[0], whole[0], atol=1e-5, rtol=0)


def test_styles_of_the_batch_are_read_at_that_size():
    seen = []

    class Reader(Spy):
        def encode_style(self, images):
            seen.append(tuple(images.shape[2:]))
            return super().encode_style(images)

    Stylizer("batch", generator=Reader(), p=1.0, least_side=48)(photos(4))
    assert set(seen) == {(48, 64)}


def test_chunks_hold_as_many_enlarged_pixels(monkeypatch):
    spy = Spy()
    monkeypatch.setattr("styleaug.transforms.core.CPU_CHUNK_PIXELS", 2 * 48 * 64)
    augment(spy, least_side=48)(photos(5))
    assert [len(part) for part in spy.seen] == [2, 2, 1]


@pytest.mark.parametrize("options", [{"splice": "halves"}, {"preserve": 0.9}, {"channels": "shared"}])
@pytest.mark.parametrize("shape", [(3, 3), (2, 4, 1), (2, 4, 3)], ids=["images", "grey volumes", "videos"])
def test_it_goes_with_everything_else(shape, options):
    count, *frames, channels = shape
    batch = torch.stack([photos(max(1, *frames, 1), channels=channels) for _ in range(count)])
    batch = batch if frames else batch[:, 0]
    styled = augment(generator("tiny-adain"), least_side=30, **options)((batch * 255).byte())
    assert styled.shape == batch.shape and styled.dtype == torch.uint8
    assert not torch.equal(styled, (batch * 255).byte())


@pytest.mark.parametrize("least", [0, -3, 2.5, True, "64"])
def test_anything_else_is_refused(least):
    with pytest.raises(ConfigError, match=r"least_side must be a whole number from 1, got"):
        augment(Spy(), least_side=least)
