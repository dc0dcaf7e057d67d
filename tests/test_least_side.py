"""Small images are enlarged for the network, and come back as sharp as they were."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from specimens import TINY, Spy, bank_of, generator, photos

from styleaug import ConfigError, Preserve, Splice
from styleaug.transforms.augment import StyleAugment
from styleaug.transforms.groups import SURVEY_PIXELS
from styleaug.transforms.painting import MOST_SEEN, area_seen, size_from
from styleaug.transforms.params import first_rows


def augment(network, **options) -> StyleAugment:
    return StyleAugment(bank_of(network), generator=network, **{"p": 1.0, "precision": "float32", **options})


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
    shipped = {name: StyleAugment(name).least_side for name in ("art", "art-patches", "photo-tones")}
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

    StyleAugment("batch", generator=Reader(), p=1.0, least_side=48)(photos(4))
    assert set(seen) == {(48, 64)}


def test_chunks_hold_as_many_enlarged_pixels(monkeypatch):
    spy = Spy()
    monkeypatch.setattr("styleaug.transforms.augment.CPU_CHUNK_PIXELS", 2 * 48 * 64)
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


def enlarged_freely(size, least):
    """How sizes were made before thin images were bounded."""
    scale = max(1, least / min(size))
    return tuple(round(side * scale) for side in size)


@given(
    short=st.integers(1, 5000),
    ratio=st.floats(1, 8),
    least=st.sampled_from([1, 16, 128, 300]),
    minimum=st.sampled_from([1, 16, 40, 256]),
    upright=st.booleans(),
)
def test_ordinary_images_are_seen_as_ever(short, ratio, least, minimum, upright):
    size = (int(short * ratio), short) if upright else (short, int(short * ratio))
    assert size_from(size, least, minimum) == enlarged_freely(size, least)


@given(
    short=st.integers(1, 9),
    long=st.integers(1, 10**7),
    least=st.sampled_from([1, 128]),
    upright=st.booleans(),
)
def test_thin_images_are_seen_with_few_pixels(short, long, least, upright):
    size = (long, short) if upright else (short, long)
    most = max(MOST_SEEN, 4 * short * long)
    for minimum in (1, 16, 256):
        seen = size_from(size, least, minimum)
        assert min(seen) >= min(size)
        assert area_seen(size, least, minimum) <= max(most, minimum**2)


EVERY = [*TINY, "fourier", "reinhard-lab", "histogram", "macenko"]


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (2, 9000)])
def test_every_generator_takes_thin_images(name, size):
    images = torch.rand(2, 3, *size)
    styled = augment(generator(name), strength=(0.5, 1), least_side=128)(images)
    assert styled.shape == images.shape and bool(styled.isfinite().all())
    assert not torch.equal(styled, images)
    torch.testing.assert_close(augment(generator(name), strength=0, least_side=128)(images), images)


@pytest.mark.parametrize(
    "options",
    [{"splice": "halves"}, {"splice": Splice("fields", parts=3)}, {"preserve": 0.9}, {"blend": "color"},
     {"preserve": Preserve(protect=lambda images: images[:, :1])}],
)  # fmt: skip
@pytest.mark.parametrize("shape", [(2, 3, 1, 5000), (1, 5, 1, 3000, 1), (1, 4, 3, 2, 5000)])
def test_thin_images_go_with_everything_else(shape, options):
    spy, images = Spy(), torch.rand(shape)
    style = augment(spy, least_side=128, **options)
    styled = style(images)
    assert styled.shape == images.shape and not torch.equal(styled, images)
    most = 4 * max(2, style.parts) * MOST_SEEN  # four frames of a volume are painted together
    assert max(part[:, 0].numel() for part in spy.seen) <= most


def test_a_long_line_is_shown_shorter_and_comes_back_whole():
    """A generator that pads a side to 16 pixels would see 1.6 million of 1 x 100,000."""
    spy, images = Spy(), torch.rand(1, 3, 1, 100_000)
    spy.minimum = 16
    styled = augment(spy, strength=1.0)(images)
    assert spy.seen[0].shape[2:] == (1, MOST_SEEN // 16)
    assert styled.shape == images.shape
    assert torch.corrcoef(torch.stack([images.flatten(), styled.flatten()]))[0, 1].abs() > 0.3


def test_padding_counts_in_a_chunk(monkeypatch):
    spy = Spy()
    spy.minimum = 16
    monkeypatch.setattr("styleaug.transforms.augment.CPU_CHUNK_PIXELS", 2 * 16 * 100)
    augment(spy)(torch.rand(5, 3, 1, 100))
    assert [len(part) for part in spy.seen] == [2, 2, 1]


def test_slices_that_are_thin_are_surveyed_by_few(monkeypatch):
    spy = Spy()
    augment(spy, least_side=128)(torch.rand(1, 70, 1, 8, 600))
    assert max(part[:, 0].numel() for part in spy.seen) <= SURVEY_PIXELS
