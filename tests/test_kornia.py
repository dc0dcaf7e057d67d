"""`RandomStyle` inside kornia: replay, picked rows, containers, dtypes, gradients."""

import pickle
from copy import deepcopy
from typing import Any

import contract
import kornia.augmentation as K
import pytest
import torch
from specimens import Spy, bank, bank_of, generator, photo, photos
from torch import Tensor

from styleaug import ConfigError, DeviceError, ImageError, Splice
from styleaug.bank import StyleBank
from styleaug.transforms.augment import StyleAugment
from styleaug.transforms.kornia import RandomStyle

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
DRAWN = ("strength", "codes", "sources", "shares", "fields")
AROUND = {"in a batch": (6, 3, 16, 20), "alone": (3, 16, 20), "without channel": (16, 20)}


def random_style(source: Any = None, *, name: str = "reinhard-rgb", **options) -> RandomStyle:
    options = {"p": 1.0, "strength": (0.2, 1.0), "generator": generator(name), **options}
    return RandomStyle(bank(name) if source is None else source, **options)


def changed(styled: Tensor, images: Tensor) -> list[bool]:
    """Tell for each row whether it is not the same, bit for bit."""
    return (styled != images).flatten(1).any(1).tolist()


def make(bank: StyleBank, **options: Any) -> Any:
    """Take integers too, which kornia refuses."""
    augment = RandomStyle(bank, keepdim=True, **options)
    return lambda images: augment(images if images.is_floating_point() else images / 255)


@pytest.mark.parametrize("check", contract.TRANSFORM_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", ["tiny-adain", "reinhard-rgb"])
def test_contract(check, name):
    check(make, bank(name), generator(name))


@pytest.mark.parametrize("options", [{}, {"splice": "halves"}, {"splice": Splice("fields", parts=3)}])
@pytest.mark.parametrize("sampler", ["uniform", "mix", "gaussian"])
def test_parameters_replay_a_call(options, sampler):
    augment, images = random_style(p=0.6, sampler=sampler, **options), photos(6)
    styled = augment(images)
    params = {name: value.clone() for name, value in augment._params.items()}
    assert any(changed(styled, images)) and not all(changed(styled, images))
    assert not torch.equal(augment(images), styled)
    assert torch.equal(augment(images, params=params), styled)
    other = random_style(p=0.6, sampler=sampler, **options)
    assert torch.equal(other(images, params=other.forward_parameters(images.shape) | params), styled)


@pytest.mark.parametrize("options", [{}, {"splice": "fields"}, {"splice": Splice("halves", keep=True)}])
def test_the_core_does_the_styling(options):
    # Equal seeds: with p=1 kornia draws no gates, and the core draws its own, of no effect, first.
    augment, images = random_style(**options), photos(4)
    torch.manual_seed(5)
    styled = augment(images)
    torch.manual_seed(5)
    stylizer = StyleAugment(bank("reinhard-rgb"), p=1.0, strength=(0.2, 1.0), **options)
    assert torch.equal(styled, stylizer(images))


@pytest.mark.parametrize("name", ["reinhard-rgb", "tiny-cyclegan", "tiny-vaegan"])
def test_parameters_are_tensors_of_each_row(name):
    bankless = name != "reinhard-rgb"
    augment = RandomStyle(None if bankless else bank(name), generator=generator(name), p=0.5, splice="fields")
    params = augment.forward_parameters(torch.Size((5, 3, 16, 16)))
    drawn = {key: value for key, value in params.items() if key in DRAWN}
    assert {"strength", "fields"} <= set(drawn)
    for value in drawn.values():
        assert value.shape[:2] == (5, 2) and value.numel() and value.device.type == "cpu"
    assert all(drawn[key].dtype == torch.float32 for key in drawn if key != "sources")
    images = photos(5)
    assert torch.equal(augment(images, params=params), augment(images, params=params))


@pytest.mark.parametrize("move", [lambda m: m.to(torch.bfloat16), lambda m: m.half(), lambda m: m.double()])
def test_draws_do_not_depend_on_where_the_pipeline_is(move):
    def draw(pipeline: Any) -> dict[str, Tensor]:
        torch.manual_seed(3)
        (item,) = pipeline.forward_parameters(torch.Size((9, 3, 16, 16)))
        return item.data

    pipeline = K.AugmentationSequential(random_style(sampler="mix", p=0.5), data_keys=["input"])
    before, after = draw(pipeline), draw(move(pipeline))
    assert before.keys() == after.keys()
    for key in before:
        assert torch.equal(before[key], after[key]) and before[key].dtype == after[key].dtype, key


def test_only_picked_rows_are_computed():
    spy, images = Spy(), photos(8)
    augment = RandomStyle(bank_of(spy), generator=spy, p=0.5, strength=1.0)
    styled = augment(images)
    picked = (augment._params["batch_prob"] > 0.5).tolist()
    assert changed(styled, images) == picked
    assert 0 < spy.rows == sum(picked) < 8
    augment(images, params=augment._params | {"batch_prob": torch.tensor([0.0, 1] + 6 * [0])})
    assert spy.rows == sum(picked) + 1 and torch.equal(spy.seen[-1], images[1:2])


def test_gates_follow_kornia():
    images = photos(4)
    for options in ({"p": 0.0}, {"p_batch": 0.0}):
        assert changed(random_style(**options)(images), images) == 4 * [False]
    augment = random_style(p_batch=0.5)
    batches = [changed(augment(images), images) for _ in range(20)]
    assert {tuple(rows) for rows in batches} == {4 * (True,), 4 * (False,)}
    # With p=1 kornia does not read the gates, so neither do we.
    always = random_style()
    none = always.forward_parameters(images.shape) | {"batch_prob": torch.zeros(4)}
    assert all(changed(always(images, params=none), images))


def test_rows_can_have_the_same_style():
    images = photo(16, 16)[None].repeat(5, 1, 1, 1)
    styled = random_style(same_on_batch=True, splice="fields")(images)
    assert torch.allclose(styled, styled[:1].expand_as(styled), atol=1e-5)
    gates = {tuple(changed(random_style(p=0.5, same_on_batch=True)(images), images)) for _ in range(20)}
    assert gates == {5 * (True,), 5 * (False,)}
    augment = random_style("batch", name="reinhard-rgb", same_on_batch=True)
    augment(photos(5))
    assert len(augment._params["sources"].unique()) == 1


@pytest.mark.parametrize("shape", AROUND.values(), ids=AROUND)
@pytest.mark.parametrize("keepdim", [True, False])
def test_shapes(shape, keepdim):
    images = torch.rand(shape)
    styled = random_style(keepdim=keepdim)(images)
    assert styled.shape == (shape if keepdim else (1,) * (4 - len(shape)) + shape)


@pytest.mark.parametrize(
    "options",
    [{}, {"p": 0.5}, {"p": 0.0}, {"same_on_batch": True}, {"splice": "halves"}, {"splice": "fields"}],
)
@pytest.mark.parametrize("source", [None, "batch"])
def test_empty_batches(options, source):
    styled = random_style(source, **options)(torch.empty(0, 3, 8, 8))
    assert styled.shape == (0, 3, 8, 8)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("p", [0.5, 1.0])
def test_dtypes_and_channels_are_kept(dtype, channels, p):
    images = photos(6, channels=channels).to(dtype)
    styled = random_style(p=p)(images)
    assert styled.dtype == dtype and styled.shape == images.shape
    assert any(changed(styled, images)) and styled.min() >= 0 and styled.max() <= 1


def test_autocast_changes_nothing():
    augment, images = random_style(name="tiny-adain"), photos(3)
    styled = augment(images)
    with torch.autocast("cpu", torch.bfloat16):
        again = augment(images, params=augment._params)
    assert torch.equal(again, styled)


def test_integers_are_kornias_to_refuse():
    with pytest.raises(TypeError, match="uint8"):
        random_style()(photos(2).mul(255).byte())


def test_styles_of_the_batch():
    images, augment = photos(5), random_style("batch", p=0.6, strength=1.0)
    styled = augment(images)
    params = augment._params
    assert torch.equal(augment(images, params=params), styled)
    assert "codes" not in params
    picked, network = params["batch_prob"] > 0.5, generator("reinhard-rgb")
    sources = params["sources"][picked].flatten()
    assert not (sources == picked.nonzero()[:, 0]).any()
    wanted = network(images[picked], network.encode_style(images[sources]), torch.ones(len(sources)))
    torch.testing.assert_close(styled[picked], wanted)


def labelled(count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Give images with masks, boxes and keypoints."""
    masks = torch.randint(0, 4, (count, 1, 24, 32)).float()
    boxes = torch.tensor([[[2.0, 3.0, 20.0, 15.0], [5.0, 6.0, 9.0, 20.0]]]).repeat(count, 1, 1)
    return photos(count), masks, boxes, torch.rand(count, 7, 2) * 20


KEYS: Any = ["input", "mask", "bbox_xyxy", "keypoints"]


def test_labels_go_by_geometry_alone():
    def geometry() -> list[Any]:
        return [K.RandomHorizontalFlip(p=0.5), K.RandomAffine(20.0, p=0.7), K.RandomCrop((20, 20), p=1.0)]

    with_style = geometry()
    with_style.insert(1, random_style(p=0.6))
    sample = labelled(5)
    pipeline = K.AugmentationSequential(*with_style, data_keys=KEYS)
    styled = pipeline(*sample)
    names = iter(["RandomHorizontalFlip_0", "RandomAffine_1", "RandomCrop_2"])
    replay = [item._replace(name=next(names)) for item in pipeline._params if "Style" not in item.name]
    wanted = K.AugmentationSequential(*geometry(), data_keys=KEYS)(*sample, params=replay)
    assert not torch.equal(styled[0], wanted[0])
    for label, moved in zip(styled[1:], wanted[1:], strict=True):
        assert torch.equal(label, moved)
    assert torch.equal(pipeline.transform_matrix, pipeline.transform_matrix)


def test_labels_are_untouched():
    sample = labelled(4)
    styled = K.AugmentationSequential(random_style(p=0.5), data_keys=KEYS)(*sample)
    assert not torch.equal(styled[0], sample[0])
    for label, same in zip(styled[1:], sample[1:], strict=True):
        assert torch.equal(label, same)


def test_replay_and_inverse_of_a_pipeline():
    pipeline = K.AugmentationSequential(
        K.RandomHorizontalFlip(p=0.5), random_style(p=0.6, sampler="mix"), data_keys=KEYS
    )
    sample = labelled(5)
    styled = pipeline(*sample)
    params = deepcopy(pipeline._params)
    pipeline(*sample)
    for one, again in zip(styled, pipeline(*sample, params=params), strict=True):
        assert torch.equal(one, again)
    back = pipeline.inverse(*styled, params=params)
    assert back[0].shape == sample[0].shape and torch.equal(back[1], sample[1])
    (_, item) = params
    assert item.data["codes"].shape == (5, 1, 6)


def test_transform_matrix_is_the_identity():
    augment = random_style(p=0.5)
    augment(photos(3))
    assert torch.equal(augment.transform_matrix, torch.eye(3).expand(3, 3, 3))


def clips() -> Tensor:
    """Give three clips of four equal frames each, `(B, T, C, H, W)`."""
    return photos(3, 16, 16)[:, None].repeat(1, 4, 1, 1, 1)


@pytest.mark.parametrize("options", [{}, {"sampler": "gaussian"}, {"splice": "halves"}, {"p": 0.5}])
@pytest.mark.parametrize("layout", ["BTCHW", "BCTHW"])
def test_frames_of_a_clip_share_a_style(options, layout):
    pipeline = K.VideoSequential(random_style(**options), data_format=layout, same_on_frame=True)
    videos = clips() if layout == "BTCHW" else clips().transpose(1, 2)
    styled = pipeline(videos)
    assert torch.equal(pipeline(videos, params=pipeline._params), styled)
    styled = styled if layout == "BTCHW" else styled.transpose(1, 2)
    torch.testing.assert_close(styled, styled[:, :1].expand_as(styled))
    codes = pipeline._params[0].data["codes"]
    assert len(codes) == 12 and len(codes.flatten(1).unique(dim=0)) > 1
    rows = [any(changed(clip, before)) for clip, before in zip(styled, clips(), strict=True)]
    assert any(rows) and (all(rows) or "p" in options)


def test_frames_of_a_clip_can_differ():
    styled = K.VideoSequential(random_style(), same_on_frame=False)(clips())
    assert (styled[:, :1] - styled[:, 1:]).abs().amax(dim=(2, 3, 4)).min() > 1e-4


@pytest.mark.parametrize("same_on_frame", [True, False])
def test_all_clips_can_have_the_same_style(same_on_frame):
    videos = clips()[:1].repeat(3, 1, 1, 1, 1)
    styled = K.VideoSequential(random_style(same_on_batch=True), same_on_frame=same_on_frame)(videos)
    torch.testing.assert_close(styled, styled[:1, :1].expand_as(styled))


def test_a_clip_takes_the_style_of_another_clip():
    videos = photos(12, 16, 16).unflatten(0, (3, 4))
    pipeline = K.VideoSequential(random_style("batch"), same_on_frame=True)
    styled = pipeline(videos)
    drawn = pipeline._params[0].data
    each = {name: drawn[name][:, 0] for name in ("strength", "sources", "shares")}
    each["sources"] = each["sources"] * 4  # the first frame of the other clip
    params: Any = {"rows": torch.arange(12), "codes": None, "fields": None, **each}
    wanted = StyleAugment("batch", generator="reinhard-rgb").apply(videos.flatten(0, 1), params)
    torch.testing.assert_close(styled.flatten(0, 1), wanted)
    assert (drawn["sources"][:, 0].flatten() != torch.arange(3).repeat_interleave(4)).all()


@pytest.mark.parametrize("name", ["tiny-cyclegan", "tiny-vaegan"])
def test_videos_without_a_bank(name):
    augment = RandomStyle(generator=generator(name), p=1.0)
    styled = K.VideoSequential(augment)(clips())
    torch.testing.assert_close(styled, styled[:, :1].expand_as(styled), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "container",
    [
        lambda augment: K.ImageSequential(augment, K.RandomVerticalFlip(), random_apply=1),
        lambda augment: K.ImageSequential(K.ImageSequential(augment), K.RandomVerticalFlip()),
        lambda augment: K.PatchSequential(augment, grid_size=(2, 2), patchwise_apply=False),
        lambda augment: K.PatchSequential(*4 * [augment], grid_size=(2, 2)),
        lambda augment: K.PatchSequential(augment, random_apply=True, grid_size=(2, 2)),
    ],
)
@pytest.mark.parametrize("source", [None, "batch"])
def test_other_containers(container, source):
    pipeline, images = container(random_style(source, p=0.7)), photos(4)
    styled = pipeline(images)
    assert styled.shape == images.shape
    assert torch.equal(pipeline(images, params=pipeline._params), styled)


def test_patches_have_styles_of_their_own():
    images = torch.full((1, 3, 16, 16), 0.4) + 0.1 * torch.rand(1, 3, 8, 8).repeat(1, 1, 2, 2)
    styled = K.PatchSequential(random_style(), grid_size=(2, 2), patchwise_apply=False)(images)
    assert not torch.allclose(styled[..., :8], styled[..., 8:], atol=1e-3)


def test_the_network_stays_as_it_is():
    network = generator("tiny-adain")
    before = network.fingerprint
    pipeline = K.AugmentationSequential(random_style(name="tiny-adain"), data_keys=["input"])
    images = photos(2)
    styled = pipeline(images)
    params = pipeline._params
    assert not pipeline.state_dict() and not list(pipeline.parameters()) and not list(pipeline.buffers())
    for move in (pipeline.train, pipeline.eval, pipeline.half, lambda: pipeline.to(torch.bfloat16)):
        move()
        assert not network.training and network.fingerprint == before
        assert torch.equal(pipeline(images, params=params), styled)


@pytest.mark.parametrize("copy", [deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_do_the_same(copy):
    pipeline = K.AugmentationSequential(random_style(name="tiny-photo", p=0.5), data_keys=["input"])
    images = photos(6)
    torch.manual_seed(1)
    styled = pipeline(images)
    twin = copy(pipeline)
    torch.manual_seed(1)
    assert torch.equal(twin(images), styled)


def weighted_sum(styled: Tensor) -> Tensor:
    """Give a number that every pixel has a say in."""
    weights = torch.randn(styled.shape, generator=torch.Generator().manual_seed(0))
    return (styled.double() * weights).sum()


@pytest.mark.parametrize("name", ["reinhard-rgb", "tiny-adain", "tiny-photo"])
def test_gradients_go_through_the_style(name):
    augment = random_style(name=name, p=0.5, differentiable=True, precision="float32")
    # Away from 0 and 1, where the clamp bends.
    images = (0.3 + 0.4 * torch.rand(6, 3, 12, 14)).requires_grad_()
    weighted_sum(augment(images)).backward()
    assert images.grad is not None
    params, gradient = augment._params, images.grad.clone()
    picked = params["batch_prob"] > 0.5
    assert 0 < picked.sum() < 6

    plain = images.detach().requires_grad_()
    weighted_sum(plain).backward()
    assert plain.grad is not None
    assert torch.equal(gradient[~picked], plain.grad[~picked]), "rows that are not picked are passed on"

    direct, whole = images.detach().requires_grad_(), images.detach().clone()
    whole[picked] = generator(name)(direct[picked], params["codes"][picked, 0], params["strength"][picked, 0])
    weighted_sum(whole).backward()
    assert direct.grad is not None
    torch.testing.assert_close(gradient[picked], direct.grad[picked])

    # A small step uphill: few kinks of the network lie between its ends.
    step, size = gradient.sign(), 1e-4
    with torch.no_grad():
        ends = [weighted_sum(augment(images + sign * size * step, params=params)) for sign in (1, -1)]
    slope = (ends[0] - ends[1]) / (2 * size)
    assert slope.item() == pytest.approx(gradient.abs().sum().item(), rel=0.02)


@pytest.mark.parametrize("splice", ["halves", "fields"])
def test_gradients_go_through_spliced_and_half_precise_images(splice):
    augment = random_style(splice=splice, blend="color")
    for dtype in (torch.float32, torch.bfloat16):
        images = photos(3).to(dtype).requires_grad_()
        augment(images, differentiable=True).sum().backward()
        assert images.grad is not None and images.grad.dtype == dtype
        assert images.grad.isfinite().all() and images.grad.abs().sum() > 0


def test_gradients_stop_at_the_style_unless_asked_for():
    augment, images = random_style(p=0.5), photos(6).requires_grad_()
    augment(images).sum().backward()
    picked = augment._params["batch_prob"] > 0.5
    assert 0 < picked.sum() < 6 and images.grad is not None
    assert torch.equal(images.grad, (~picked)[:, None, None, None].float().expand_as(images))
    assert not random_style()(images).requires_grad
    with torch.no_grad():
        assert not random_style(differentiable=True)(images).requires_grad


def test_images_after_normalize_are_refused_in_kornias_words():
    pipeline = K.AugmentationSequential(
        K.Normalize(mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2)), random_style(), data_keys=["input"]
    )
    with pytest.raises(ImageError, match=r"lie in \[0, 1\].*before Normalize.*AugmentationSequential\("):
        pipeline(photos(2))


def test_wrong_layouts_are_refused_in_kornias_words():
    with pytest.raises(ImageError, match=r"at most 16 channels.*\(B, C, H, W\), as kornia.utils"):
        random_style()(torch.rand(2, 17, 20, 3))


def test_parameters_of_another_batch_are_refused():
    for p in (0.5, 1.0):
        augment = random_style(p=p)
        with pytest.raises(ImageError, match="for 4 rows, got 3"):
            augment(photos(3), params=augment.forward_parameters(torch.Size((4, 3, 24, 32))))


def test_cuda_in_a_worker_is_refused_in_kornias_words(monkeypatch):
    def refuse(device: torch.device) -> None:
        raise DeviceError("a forked worker cannot use CUDA.")

    monkeypatch.setattr("styleaug.transforms.augment.check_worker", refuse)
    monkeypatch.setattr("styleaug.transforms.augment.get_worker_info", lambda: object())
    with pytest.raises(DeviceError, match="AugmentationSequential on the batch, after the DataLoader"):
        random_style()(photos(1))


def test_options_are_checked():
    with pytest.raises(ConfigError, match=r'splice="mask" is not available in kornia.*data_keys'):
        random_style(splice="mask")
    for wrong in ({"p": 1.5}, {"p": -0.1}, {"p_batch": 2.0}, {"strength": (0.5, 3.0)}, {"parts": 3}):
        with pytest.raises(ConfigError):
            random_style(**wrong)


def test_repr_says_what_is_drawn():
    pipeline = K.AugmentationSequential(random_style(p=0.3, same_on_batch=True), data_keys=["input"])
    for part in ("RandomStyle(StyleBank(5 styles", "strength=(0.2, 1.0)", "p=0.3", "same_on_batch=True"):
        assert part in repr(pipeline)
    assert repr(random_style()).count("p=1.0") == 1
