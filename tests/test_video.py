"""`StyleVideo`: one style for a clip, steady over its frames, by streams and by masks."""

import contract
import pytest
import torch
from specimens import Spy, bank, bank_of, generator, photo, photos
from torch import Tensor
from torchvision import tv_tensors
from video import frame_difference, warping_error

import styleaug.video.transform
from styleaug.errors import ConfigError, ImageError
from styleaug.generators.shared import pooled
from styleaug.video.steady import Past, steady
from styleaug.video.transform import StyleVideo, sharpen


def pan(frames: int = 5, height: int = 48, width: int = 64, *, step: int = 2) -> Tensor:
    """Make a clip `(T, C, H, W)` whose camera moves to the right over one picture."""
    wide = photo(height, width + step * frames)
    return torch.stack([wide[..., step * at : step * at + width] for at in range(frames)])


def true_flow(now: Tensor, before: Tensor) -> Tensor:
    """Give the flow of `pan`, whichever way."""
    flow = torch.zeros(len(now), 2, *now.shape[2:])
    found = {t.numpy().tobytes(): at for at, t in enumerate(pan())}
    at, was = (found[frame[0].numpy().tobytes()] for frame in (now, before))
    flow[:, 0] = 2.0 * (at - was)
    return flow


def video(**options) -> StyleVideo:
    return StyleVideo(bank(), **{"generator": generator("tiny-adain"), "p": 1.0, "strength": 1.0, **options})


def as_images(**options):
    """Give the contract a transform of images: clips of one frame."""

    def transform(images: Tensor) -> Tensor:
        batch = images[None] if images.ndim == 3 else images
        clips = batch[:, None]
        styled = made(clips)
        return images if styled is clips else styled[:, 0].reshape(images.shape)

    made = StyleVideo(options.pop("styles"), **options)
    return transform


@pytest.mark.parametrize("check", contract.TRANSFORM_CHECKS, ids=lambda check: check.__name__)
def test_contract(check):
    check(lambda styles, **options: as_images(styles=styles, **options), bank(), generator("tiny-adain"))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float32, torch.float16])
@pytest.mark.parametrize("shape", [(3, 3, 20, 24), (2, 3, 3, 20, 24), (3, 1, 20, 24), (2, 5, 17, 16)])
def test_shape_dtype_and_range_are_kept(dtype, shape):
    clip = torch.rand(shape)
    clip = clip.to(dtype) if dtype.is_floating_point else (clip * 255).to(dtype)
    styled = video()(clip)
    assert styled.shape == clip.shape and styled.dtype == dtype
    assert not torch.equal(styled.float(), clip.float())


def test_a_clip_has_one_style_and_the_next_another():
    augment = video(strength=(0.2, 1.0))
    assert len(augment.make_params(pan())["rows"]) == 1
    params = augment.make_params(torch.stack([pan(), pan()]))
    assert len(params["rows"]) == 2
    styled = augment.apply(torch.stack([pan(), pan()]), params)
    assert not torch.equal(styled[0], styled[1])


def test_a_clip_in_a_batch_is_styled_as_alone():
    augment, clips = video(), torch.stack([pan(3), pan(3).flip(3)])
    params = augment.make_params(clips)
    both = augment.apply(clips, params)
    for row in range(2):
        own = styleaug.video.transform.only(params, row)
        assert torch.equal(augment.apply(clips[row], own), both[row])


def test_a_seed_gives_the_same_clip_twice_and_params_replay_it():
    augment, clip = video(p=0.8, strength=(0.1, 1.0)), torch.stack([pan(2)] * 4)
    params = augment.make_params(clip, rng=torch.Generator().manual_seed(5))
    again = augment.make_params(clip, rng=torch.Generator().manual_seed(5))
    first = augment.apply(clip, params)
    assert torch.equal(first, augment.apply(clip, again))
    assert torch.equal(first, augment.apply(clip, params)), "a call must leave nothing behind"


@pytest.mark.parametrize("options", [{"p": 0.0}, {"strength": 0.0}, {"strength": 0.0, "where": "both"}])
def test_no_share_and_no_strength_give_the_same_object(options):
    clip = pan()
    augment = video(**options)
    assert augment.apply(clip, augment.make_params(clip), masks=torch.ones(5, 48, 64)) is clip


def test_clips_that_are_not_picked_stay_bit_for_bit():
    clips = torch.stack([pan(2)] * 8)
    augment = video(p=0.5)
    params = augment.make_params(clips)
    styled = augment.apply(clips, params)
    picked = set(params["rows"].tolist())
    assert 0 < len(picked) < 8
    for row in range(8):
        assert torch.equal(styled[row], clips[row]) == (row not in picked)


def test_a_stream_is_the_clip_frame_by_frame():
    augment, clip = video(), pan()
    params = augment.make_params(clip)
    stream = augment.stream(params)
    frames = [stream(frame) for frame in clip]
    assert torch.equal(torch.stack(frames), augment.apply(clip, params))


def test_frames_depend_on_earlier_ones_only():
    augment, clip = video(), pan()
    params = augment.make_params(clip)
    assert torch.equal(augment.apply(clip[:3], params), augment.apply(clip, params)[:3])


def test_a_stream_holds_a_bounded_amount():
    stream = video().stream()
    for frame in pan(3):
        stream(frame)
    held = sum(len(coat.past.values) for coat in stream.coats)
    for frame in pan(5):
        stream(frame)
    assert sum(len(coat.past.values) for coat in stream.coats) == held
    assert stream.seen.shape == (1, 3, 48, 64)


def test_streams_take_pil_images_and_arrays():
    from PIL import Image

    image = Image.new("RGB", (40, 30), "teal")
    styled = video().stream()(image)
    assert styled.size == image.size and styled.mode == "RGB"


@pytest.mark.parametrize("name", ["reinhard-rgb", "reinhard-lab", "histogram", "tiny-adain", "tiny-photo"])
def test_statistics_are_smoothed_over_time(name):
    try:
        network = generator(name)
    except Exception:
        pytest.skip(f"there is no {name}")
    clip = pan(6, step=0)  # a still camera,
    clip = (clip * torch.tensor([1.0, 0.7, 1.0, 0.7, 1.0, 0.7]).view(-1, 1, 1, 1)).clamp(
        0, 1
    )  # a lamp that flickers
    flicker = []
    for smoothing in (0.0, 0.9):
        styled = StyleVideo(
            bank_of(network), generator=network, p=1, strength=1.0, smoothing=smoothing, flow=None
        )
        torch.manual_seed(0)
        means = styled(clip).mean(dim=(1, 2, 3))
        flicker.append(means)
    # Frames that go by themselves take the lamp out; those that go by the past keep it.
    assert flicker[0].diff().abs().mean() < 0.5 * flicker[1].diff().abs().mean()


def test_the_past_is_blended_with_the_present():
    past, read = Past(), []
    for value in (1.0, 0.0, 0.0):
        with steady(past, keep=0.75):
            read.append(
                pooled(lambda planes: planes.mean(dim=(2, 3)), torch.full((1, 1, 4, 4), value)).item()
            )
    assert read == pytest.approx([1.0, 0.75, 0.5625])
    past.forget()
    with steady(past, keep=0.75):
        assert pooled(lambda planes: planes.mean(dim=(2, 3)), torch.zeros(1, 1, 4, 4)).item() == 0


def test_blending_takes_flicker_out_along_the_true_flow():
    clip = pan()
    flow = true_flow(clip[1:2], clip[:1])
    visible = torch.zeros(1, 1, 48, 64, dtype=torch.bool)
    visible[..., 8:-8, 8:-8] = True
    errors = []
    for reuse in (0.0, 0.7):
        augment = video(reuse=reuse, flow=true_flow)
        params = augment.make_params(clip, rng=torch.Generator().manual_seed(1))
        styled = augment.apply(clip, params)
        pairs = zip(styled[1:, None], styled[:-1, None], strict=True)
        errors.append(sum(warping_error(*pair, flow, visible=visible).item() for pair in pairs))
    assert errors[1] < 0.6 * errors[0]


def test_without_flow_that_holds_nothing_is_blended():
    clip = pan(3)
    lost = lambda one, other: torch.full((1, 2, 48, 64), 9.0)  # noqa: E731 - never consistent
    params = video().make_params(clip)
    alone = video(smoothing=0.0, flow=None).apply(clip, params)
    assert torch.equal(video(flow=lost).apply(clip, params), alone), (
        "nothing can be followed: cuts, all of them"
    )


@pytest.mark.parametrize("flow", ["dis", None])
def test_a_cut_begins_anew(flow):
    before, after = pan(3), (1 - pan(3)).flip(2)
    augment = video(flow=flow, smoothing=0.9)
    params = augment.make_params(before)
    joined = augment.apply(torch.cat([before, after]), params)
    torch.testing.assert_close(joined[3:], augment.apply(after, params), atol=1e-5, rtol=0)


def test_sharpening_gives_contrast_back_and_adds_none():
    fresh = photos(1, 48, 64)
    soft = torch.nn.functional.avg_pool2d(fresh, 3, 1, 1, count_include_pad=False)
    detail = lambda image: frame_difference(image[..., 1:], image[..., :-1]).item()  # noqa: E731
    assert detail(soft) < 0.9 * detail(sharpen(soft, fresh)) and detail(sharpen(soft, fresh)) < 1.1 * detail(
        fresh
    )
    assert torch.equal(sharpen(fresh, fresh), fresh)


# --- masks ------------------------------------------------------------------------------------------------


def track(frames: int = 5) -> Tensor:
    masks = torch.zeros(frames, 1, 48, 64)
    for at in range(frames):
        masks[at, :, 12:36, 10 + 4 * at : 34 + 4 * at] = 1
    return masks


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
@pytest.mark.parametrize("where", ["inside", "outside"])
def test_a_style_follows_its_mask_and_nothing_else_changes(where, dtype):
    clip = pan().double()
    clip = (clip * 255).byte() if dtype == torch.uint8 else clip.to(dtype)
    masks = tv_tensors.Mask(track())
    kept = masks.clone()
    sample = {"clip": tv_tensors.Video(clip), "mask": masks, "label": 3}
    out = video(where=where)(sample)
    assert out["mask"] is masks and torch.equal(masks, kept) and out["label"] == 3
    assert isinstance(out["clip"], tv_tensors.Video) and out["clip"].dtype == dtype
    changed = (out["clip"] != clip).any(dim=1, keepdim=True)
    inside = track() > 0
    styled = inside if where == "inside" else ~inside
    far = torch.nn.functional.max_pool2d(styled.float(), 5, 1, 2) == 0  # beyond the soft border
    assert not (changed & far).any(), "bit for bit"
    assert changed[styled].float().mean() > 0.8


def test_alpha_is_a_share_and_its_border_is_soft():
    clip, alpha = pan(1), torch.full((1, 1, 48, 64), 0.5)
    augment = video(where="inside")
    params = augment.make_params(clip)
    whole = augment.apply(clip, params, masks=torch.ones(1, 1, 48, 64))
    half = augment.apply(clip, params, masks=alpha)
    torch.testing.assert_close(half, (clip + whole) / 2, atol=1e-5, rtol=0)


def test_both_sides_of_a_mask_have_a_style_of_their_own():
    clip, augment = pan(2), video(where="both")
    params = augment.make_params(clip)
    assert len(params["rows"]) == 2
    everywhere = [
        augment.apply(clip, params, masks=torch.full((2, 1, 48, 64), float(inside))) for inside in (1, 0)
    ]
    joined = augment.apply(clip, params, masks=track(2))
    inside = torch.nn.functional.max_pool2d(1 - track(2), 5, 1, 2) == 0
    outside = torch.nn.functional.max_pool2d(track(2), 5, 1, 2) == 0
    for where, look in zip((inside, outside), everywhere, strict=True):
        where = where.expand_as(joined)
        torch.testing.assert_close(joined[where], look[where], atol=1e-5, rtol=0)
    assert (everywhere[0] - everywhere[1]).abs().mean() > 0.01


def test_batches_of_clips_have_masks_each():
    clips = torch.stack([pan(3), pan(3)])
    masks = torch.stack([track(3), torch.zeros(3, 1, 48, 64)])
    augment = video(where="inside")
    styled = augment.apply(clips, augment.make_params(clips), masks=masks)
    assert not torch.equal(styled[0], clips[0]) and torch.equal(styled[1], clips[1])


def test_a_mask_that_is_missing_or_does_not_fit_is_refused():
    with pytest.raises(ImageError, match="needs a mask in the sample"):
        video(where="inside")({"clip": tv_tensors.Video(pan())})
    augment = video(where="inside")
    params = augment.make_params(pan())
    with pytest.raises(ImageError, match="needs a mask; give mask"):
        augment.apply(pan(), params)
    with pytest.raises(ImageError, match="as high and wide as the images"):
        augment.apply(pan(), params, masks=torch.ones(5, 1, 8, 8))
    with pytest.raises(ImageError, match="masks must be"):
        augment.apply(pan(), params, masks=torch.ones(4, 1, 48, 64))


# --- samples ----------------------------------------------------------------------------------------------


def test_all_else_of_a_sample_passes_as_it_is():
    boxes = tv_tensors.BoundingBoxes(torch.tensor([[1, 2, 3, 4]]), format="XYXY", canvas_size=(48, 64))
    image, labels = tv_tensors.Image(photo()), torch.tensor([1, 2])
    masks = tv_tensors.Mask(torch.ones(5, 48, 64))
    sample = (labels, {"video": tv_tensors.Video(pan()), "boxes": boxes}, image, masks, "name")
    out = video()(sample)
    assert out[0] is labels and out[1]["boxes"] is boxes and out[2] is image and out[3] is masks
    assert isinstance(out[1]["video"], tv_tensors.Video)
    assert not torch.equal(out[1]["video"], sample[1]["video"])


def test_labels_before_a_plain_clip_are_not_the_clip():
    labels, clip = torch.tensor([4.0]), pan(2)
    out = video()((labels, clip))
    assert out[0] is labels and not torch.equal(out[1], clip)


def test_a_sample_without_a_clip_is_refused():
    with pytest.raises(ImageError, match="no clip in the sample"):
        video()(photo())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"smoothing": 1.0}, "smoothing must be below 1"),
        ({"reuse": 1}, "reuse must be below 1"),
        ({"reuse": -0.1}, "reuse must be a number"),
        ({"blend": 0.5}, "blend must be None or one of .* is reuse=0.5 now"),
        ({"where": "there"}, "where must be one of"),
        ({"flow": "magic"}, "must be one of dis, farneback, raft"),
    ],
)
def test_arguments_outside_their_range(options, message):
    with pytest.raises(ConfigError, match=message):
        video(**options)
    with pytest.raises(ConfigError, match="needs a bank"):
        StyleVideo("batch")


def test_frames_that_are_none():
    with pytest.raises(ImageError, match=r"must lie in \[0, 1\]"):
        video()(pan() * 200)
    with pytest.raises(ImageError, match="one frame after the other"):
        video().stream()(pan())
    stream = video().stream()
    stream(photo(20, 20))
    with pytest.raises(ImageError, match="of one size"):
        stream(photo(20, 21))


def test_parameters_for_a_larger_batch_are_refused():
    augment = video()
    params = augment.make_params(torch.stack([pan(2)] * 3))
    with pytest.raises(ImageError, match="larger batch"):
        augment.apply(pan(2), params)


def test_each_frame_is_painted_once():
    spy = Spy()
    augment = StyleVideo(bank_of(spy), generator=spy, p=1, strength=1.0)
    augment(pan(4))
    assert spy.rows == 4


def test_it_survives_a_pickle_and_a_compose():
    import pickle

    from torchvision.transforms import v2

    augment = pickle.loads(pickle.dumps(video()))
    torch.manual_seed(0)
    first = augment(pan(2))
    torch.manual_seed(0)
    assert torch.equal(v2.Compose([video()])(pan(2)), first)
    assert "smoothing=0.7" in repr(augment)
