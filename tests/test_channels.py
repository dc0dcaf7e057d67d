"""Channels that are no colours: each is a grey image, with one draw for all or one for each."""

import numpy as np
import pytest
import torch
from contract import TRANSFORM_CHECKS
from specimens import Spy, bank, generator, photos
from strategies import lay_out
from torch import Tensor
from torchvision import tv_tensors

from styleaug import ConfigError, ImageError, Splice, StyleAugment
from styleaug.transforms.params import StyleParams, first_rows, join

NAMES = ["reinhard-rgb", "tiny-adain"]


def tiny(make: type = StyleAugment, *, name: str = "reinhard-rgb", **options):
    return make(bank(name), **{"p": 1.0, "generator": generator(name), "strength": (0.2, 1.0), **options})


def only(params: StyleParams, *rows: int) -> StyleParams:
    """Give the parameters of some rows, in this order, as those of a batch of their own."""
    place = [params["rows"].tolist().index(row) for row in rows]
    taken = {key: None if value is None else value[place] for key, value in params.items() if key != "rows"}
    return StyleParams(rows=torch.arange(len(rows)), **taken)


@pytest.mark.parametrize("check", TRANSFORM_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("channels", ["shared", "independent"])
def test_contract(channels, check):
    def make(*args, **options):
        return StyleAugment(*args, **options, channels=channels)

    if channels == "shared" or check.__name__ != "p_is_the_share_of_rows":  # of a row any channel may change
        check(make, bank("reinhard-rgb"), generator("reinhard-rgb"))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("count", "channels"), [(2, "auto"), (4, "auto"), (3, "shared"), (16, "auto"), (20, "shared")]
)
@pytest.mark.parametrize("layout", ["contiguous", "channels last", "window"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_each_channel_is_a_grey_image_with_the_rows_draw(name, count, channels, seed, layout):
    images = lay_out(photos(3, 12, 10, channels=count), layout)
    augment = tiny(name=name, p=0.7, channels=channels)
    params = augment.make_params(images, rng=torch.Generator().manual_seed(seed))
    assert 0 < len(params["rows"]) <= 3
    before = images.clone()
    styled = augment.apply(images, params)
    assert torch.equal(images, before) and styled.stride() == before.stride()
    for channel in range(count):
        wanted = augment.apply(images[:, channel : channel + 1], params)
        torch.testing.assert_close(styled[:, channel : channel + 1], wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_independent_channels_are_rows(name, count):
    images = photos(3, 12, 10, channels=count)
    augment = tiny(name=name, p=0.6, channels="independent")
    params = augment.make_params(images, rng=torch.Generator().manual_seed(4))
    assert params["rows"].max() >= 3 or count == 1
    styled = augment.apply(images, params)
    grey = images.flatten(0, 1)[:, None]
    wanted = StyleAugment(bank(name), generator=generator(name)).apply(grey, params)
    torch.testing.assert_close(styled.flatten(0, 1)[:, None], wanted, atol=1e-5, rtol=0)
    picked = set(params["rows"].tolist())
    for row in set(range(3 * count)) - picked:
        assert torch.equal(styled.flatten(0, 1)[row], images.flatten(0, 1)[row])


def test_independent_channels_have_gates_of_their_own():
    images = torch.rand(200, 4, 2, 2)
    params = tiny(p=0.5, channels="independent").make_params(images)
    assert len(params["rows"]) == pytest.approx(400, abs=70) and params["rows"].max() >= 790
    assert len(params["strength"].unique()) > 300


@pytest.mark.parametrize("channels", ["auto", "shared"])
@pytest.mark.parametrize("count", [1, 3])
def test_colour_is_colour(channels, count):
    images, augment = photos(2, channels=count), tiny(channels=channels)
    params = augment.make_params(images)
    colour = tiny().apply(images, params)
    assert torch.equal(augment.apply(images, params), colour) == (channels == "auto" or count == 1)


def test_channels_never_share_statistics():
    """A channel's result is the same whatever stands in the others."""
    images, augment = photos(1, channels=5), tiny(name="tiny-adain")
    params = augment.make_params(images)
    styled = augment.apply(images, params)
    other = images.clone()
    other[:, 1:] = 1 - other[:, 1:]
    assert torch.equal(augment.apply(other, params)[:, 0], styled[:, 0])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float16])
@pytest.mark.parametrize("channels", ["auto", "independent"])
def test_dtypes_of_many_channels(dtype, channels):
    top = {torch.uint8: 255, torch.uint16: 65535}.get(dtype, 1)
    images = (
        (photos(3, channels=4) * top).to(torch.int32).to(dtype)
        if top > 1
        else photos(3, channels=4).to(dtype)
    )
    augment = tiny(p=0.6, channels=channels)
    params = augment.make_params(images, rng=torch.Generator().manual_seed(0))
    styled = augment.apply(images, params)
    assert styled.dtype == dtype and 0 < len(params["rows"]) < (3 if channels == "auto" else 12)
    wanted = augment.apply(images.float() / top, params)
    torch.testing.assert_close(
        styled.float() / top, wanted, atol=0.51 / min(top, 255) if top > 1 else 1e-3, rtol=0
    )


@pytest.mark.parametrize("channels", ["auto", "independent"])
@pytest.mark.parametrize("shape", [(12, 10, 4), (2, 12, 10, 4), (12, 10, 2)])
def test_arrays_of_many_channels(channels, shape):
    image = np.random.default_rng(0).random(shape).astype(np.float32)
    augment = tiny(channels=channels)
    params = augment.make_params(image)
    rows = shape[0] if len(shape) == 4 else 1
    assert len(params["rows"]) == rows * (shape[-1] if channels == "independent" else 1)
    styled = augment.apply(image, params)
    tensor = torch.from_numpy(image).movedim(-1, -3)
    np.testing.assert_allclose(styled, augment.apply(tensor, params).movedim(-3, -1).numpy(), atol=1e-6)


@pytest.mark.parametrize("splice", ["halves", "fields"])
@pytest.mark.parametrize("channels", ["auto", "independent"])
def test_spliced_channels(splice, channels):
    """One draw for all channels has one border for all of them; independent ones have their own."""
    images = torch.full((2, 4, 16, 16), 0.3) + 0.2 * torch.rand(2, 1, 16, 16)
    augment = tiny(splice=Splice(splice, parts=3), channels=channels)
    params = augment.make_params(images)
    assert len(params["strength"]) == 2 * 3 * (4 if channels == "independent" else 1)
    styled = augment.apply(images, params)
    same = torch.allclose(styled[:, 0], styled[:, 1], atol=1e-6)
    assert same == (channels == "auto")
    grey = images.flatten(0, 1)[:, None] if channels == "independent" else images[:, :1]
    wanted = StyleAugment(bank("reinhard-rgb"), splice=Splice(splice, parts=3)).apply(grey, params)
    torch.testing.assert_close(
        styled.flatten(0, 1)[: len(wanted), None] if channels == "independent" else styled[:, :1], wanted
    )


@pytest.mark.parametrize("channels", ["auto", "independent"])
def test_a_mask_splices_all_channels(channels):
    images, mask = torch.rand(2, 4, 16, 16), torch.zeros(2, 16, 16, dtype=torch.uint8)
    mask[0, :8], mask[1, :, :8] = 1, 1
    augment = tiny(splice=Splice("mask", keep=True), strength=1.0, channels=channels)
    styled = augment.apply(images, augment.make_params(images), masks=mask)
    assert torch.equal(styled[0, :, :6], images[0, :, :6]) and torch.equal(
        styled[1, :, :, :6], images[1, :, :, :6]
    )
    assert (styled[0, :, 10:] != images[0, :, 10:]).flatten(1).any(1).all()


def test_styles_of_the_batch_go_from_channel_to_same_channel():
    spy, images = Spy(), photos(3, channels=4)
    augment = StyleAugment("batch", generator=spy, p=1.0, strength=1.0)
    given: list[Tensor] = []
    spy.register_forward_pre_hook(lambda module, args: given.append(args[1]))
    params = augment.make_params(images)
    augment.apply(images, params)
    wanted = images[params["sources"][:, 0]].mean(dim=(2, 3)).flatten()
    torch.testing.assert_close(torch.cat(given)[:, 0], wanted)


def test_a_video_of_many_channels():
    video = tv_tensors.Video(torch.rand(3, 4, 12, 10))
    for channels, rows in (("auto", 1), ("independent", 4)):
        augment = tiny(StyleAugment, channels=channels)
        params = augment.make_params(video)
        assert len(params["rows"]) == rows
        styled = augment.apply(video, params)
        assert isinstance(styled, tv_tensors.Video) and (styled != video).any()


def test_images_of_a_sample_share_the_draws_of_independent_channels():
    image = tv_tensors.Image(torch.rand(4, 12, 10))
    augment = tiny(StyleAugment, channels="independent")
    one, other = augment((image, tv_tensors.Image(image.clone())))
    assert torch.equal(one, other) and (one != image).flatten(1).any(1).all()


def test_too_many_channels_are_refused():
    for channels, most in (("auto", 16), ("shared", 256), ("independent", 256)):
        augment = tiny(channels=channels)
        assert augment(torch.rand(most, 4, 4)).shape == (most, 4, 4)
        with pytest.raises(ImageError, match=f"at most {most} channels, got {most + 1}"):
            augment(torch.rand(most + 1, 4, 4))


def test_wrong_options_are_refused():
    with pytest.raises(ConfigError, match="channels must be one of auto, shared, independent, got 'each'"):
        tiny(channels="each")
    with pytest.raises(ConfigError, match='use channels="shared"'):
        StyleAugment("batch", channels="independent")


def test_parameters_of_a_larger_image_are_refused():
    augment = tiny(channels="independent")
    with pytest.raises(ImageError, match="larger batch than the 3 rows"):
        augment.apply(torch.rand(3, 8, 8), augment.make_params(torch.rand(4, 8, 8)))


def test_parameters_are_joined_and_cut_by_images():
    augment = tiny(channels="independent")
    each = [augment.make_params(torch.rand(4, 8, 8)) for _ in range(3)]
    assert join(each, each=4)["rows"].tolist() == list(range(12))
    images = torch.rand(3, 4, 8, 8)
    styled = augment.apply(images, join(each, each=4))
    for row in range(3):
        torch.testing.assert_close(augment.apply(images[row], each[row]), styled[row], atol=1e-6, rtol=0)
    fewer = first_rows(each[0], 2)
    torch.testing.assert_close(augment.apply(images[0, :2], fewer), styled[0, :2], atol=1e-6, rtol=0)
