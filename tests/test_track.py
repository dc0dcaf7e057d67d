"""A style follows or spares an object, from its box on the first frame."""

import warnings

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from specimens import bank

from styleaug import ConfigError, ImageError, StyleVideo
from styleaug.cli.main import cli
from styleaug.video.film import style_film
from styleaug.video.track import Track, check_box

HEIGHT, WIDTH = 96, 128
RADII = 16, 20
"""Of the disc, in y and x."""


def texture(seed, tint):
    """Draw smooth noise in a colour, with points that can be followed."""
    rng = np.random.default_rng(seed)
    coarse = rng.random((HEIGHT // 4, WIDTH // 4, 1)).repeat(4, axis=0).repeat(4, axis=1)
    return (255 * (0.25 + 0.5 * coarse) * np.array(tint)).astype(np.uint8)


def disc(centre):
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return ((y - centre[0]) / RADII[0]) ** 2 + ((x - centre[1]) / RADII[1]) ** 2 <= 1


def film(frames=6, step=(2, 4), start=(36, 40)):
    """Move a red disc over a green ground; return the frames and the true masks."""
    ground, paint = texture(1, (0.3, 1.0, 0.4)), texture(2, (1.0, 0.3, 0.2))
    made, masks = [], []
    for at in range(frames):
        shift = step[0] * at, step[1] * at
        masks.append(disc((start[0] + shift[0], start[1] + shift[1])))
        made.append(np.where(masks[-1][..., None], np.roll(paint, shift, axis=(0, 1)), ground))
    return np.stack(made), np.stack(masks)


BOX = (40 - RADII[1] - 3, 36 - RADII[0] - 3, 2 * RADII[1] + 6, 2 * RADII[0] + 6)


def overlap(one, other):
    return (one & other).sum() / max(1, (one | other).sum())


def clip_of(frames):
    return torch.from_numpy(frames).permute(0, 3, 1, 2).contiguous()


def video(**options):
    return StyleVideo(bank("reinhard-rgb"), p=1.0, flow=None, **{"reuse": 0, **options})


@pytest.mark.parametrize("step", [(0, 0), (2, 4), (-3, 1)])
def test_an_object_is_found_and_followed(step):
    frames, truth = film(step=step)
    masks = list(map(Track(BOX), frames))
    assert min(overlap(*pair) for pair in zip(masks, truth, strict=True)) > 0.8
    assert all(mask.dtype == bool and mask.shape == (HEIGHT, WIDTH) for mask in masks)


def test_a_track_is_the_same_in_each_run_and_whatever_the_seed():
    cv2 = pytest.importorskip("cv2")
    frames, _ = film()
    runs = []
    for seed in (1, 2):
        cv2.setRNGSeed(seed)
        runs.append(np.stack(list(map(Track(BOX), frames))))
    assert np.array_equal(*runs)


def test_large_frames_are_followed_reduced_and_their_masks_are_large():
    frames, truth = film(3)
    large = frames.repeat(6, axis=1).repeat(6, axis=2)
    track = Track([6 * side for side in BOX])
    masks = list(map(track, large))
    assert masks[0].shape == (6 * HEIGHT, 6 * WIDTH) and max(track.mask.shape) == 480
    assert min(overlap(mask[::6, ::6], true) for mask, true in zip(masks, truth, strict=True)) > 0.75


@pytest.mark.parametrize("what", ["cut", "flat", "gone", "other"])
def test_a_lost_object_is_told_and_stays_lost(what):
    frames, _ = film(6)
    if what == "cut":
        frames[3:] = np.random.default_rng(5).integers(0, 255, frames[3:].shape)
    elif what == "flat":
        frames[3:] = 90
    elif what == "gone":
        frames[3:] = texture(1, (0.3, 1.0, 0.4))
    else:
        frames[3:] = frames[2][..., [2, 0, 1]]
    track = Track(BOX)
    masks = list(map(track, frames))
    assert track.lost.startswith("the object was lost at frame 4: ")
    assert all(mask.any() for mask in masks[:3]) and not any(mask.any() for mask in masks[3:])


def test_where_nothing_stands_out_the_object_is_the_ellipse_in_the_box():
    mask = Track((20, 10, 60, 40))(np.full((HEIGHT, WIDTH, 3), 99, np.uint8))
    inside = np.zeros((HEIGHT, WIDTH), bool)
    inside[10:50, 20:80] = True
    assert mask.any() and not (mask & ~inside).any()


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 3), (8, 8), (20, 7), (3, 90)])
@pytest.mark.parametrize("flat", [True, False])
def test_frames_of_few_pixels_have_masks(size, flat):
    frames = np.random.default_rng(1).integers(0, 255, (3, *size, 3)).astype(np.uint8)
    frames = np.full_like(frames, 7) if flat else frames
    for box in ((0, 0, 1, 1), (-1, -1, 3, 3), (0, 0, 100, 100)):
        masks = list(map(Track(box), frames))
        assert masks[0].any() and all(mask.shape == size and mask.dtype == bool for mask in masks)


def test_a_box_over_the_whole_frame_is_all_of_it():
    frames, _ = film(1)
    assert Track((-10, -10, 500, 500))(frames[0]).all()


@pytest.mark.parametrize("wrong", [None, 3, "1,2,3,4", (1, 2, 3), (1, 2, 0, 4), (1, 2, 3, -1), (1, 2, 3, "4"),
                                   (float("nan"), 2, 3, 4), (1, 2, float("inf"), 4)])  # fmt: skip
def test_what_is_no_box_is_refused(wrong):
    with pytest.raises(ConfigError, match=r"a box is .x, y, width, height. in pixels"):
        check_box(wrong)


def test_boxes_may_be_arrays_and_must_meet_the_frame():
    assert check_box(np.array([1, 2, 3, 4])) == check_box(torch.tensor([1, 2, 3, 4])) == (1, 2, 3, 4)
    with pytest.raises(ImageError, match="lies outside of the first frame, which is 128 x 96 pixels"):
        Track((200, 10, 30, 30))(film(1)[0][0])


@pytest.mark.parametrize("where", [None, "inside", "outside", "both"])
def test_a_style_follows_or_spares_the_object(where):
    frames, truth = film()
    clip = clip_of(frames)
    transform = video(track=BOX, **({} if where is None else {"where": where}))
    params = transform.make_params(clip, rng=torch.Generator().manual_seed(2))
    styled = transform.apply(clip, params)
    assert torch.equal(transform.apply(clip, params), styled), "it replays"
    changed = (styled.int() - clip.int()).abs().sum(dim=1).numpy() > 3
    inside, outside = changed[truth].mean(), changed[~truth].mean()
    if where == "both":
        assert inside > 0.8 and outside > 0.8
    elif where == "outside":
        assert inside < 0.3 and outside > 0.8
    else:
        assert inside > 0.8 and outside < 0.1


def test_rows_are_followed_each_by_itself():
    clips = torch.stack([clip_of(film(step=step)[0]) for step in ((2, 4), (-3, 1))])
    transform = video(track=BOX)
    params = transform.make_params(clips)
    both = transform.apply(clips, params)
    codes, strength = params["codes"], params["strength"]
    for row in range(2):
        one = {"rows": torch.zeros(1, dtype=torch.long), "codes": codes[row : row + 1]}
        one |= {"strength": strength[row : row + 1], "sources": params["sources"][row : row + 1]}
        one |= {"shares": params["shares"][row : row + 1], "fields": None}
        assert torch.equal(transform.apply(clips[row], one), both[row])


def test_the_mask_is_steadied_along_the_flow():
    """With a flow that says that nothing moves, a still object's mask changes less from frame to frame."""
    frames, _ = film(6, step=(0, 0))
    rng = np.random.default_rng(3)
    frames = (frames + rng.integers(-25, 25, frames.shape)).clip(0, 255).astype(np.uint8)
    still = lambda now, before: torch.zeros(len(now), 2, *now.shape[2:])  # noqa: E731
    changes = []
    for reuse in (0.0, 0.7):
        stream = StyleVideo(bank("reinhard-rgb"), p=1.0, flow=still, reuse=reuse, track=BOX).stream()
        if not reuse:
            stream.flow = None
        alphas = []
        for frame in clip_of(frames):
            stream(frame)
            alphas.append(stream.alpha)
        changes.append(float(sum((a - b).abs().sum() for a, b in zip(alphas[1:], alphas[:-1], strict=True))))
    assert changes[1] < 0.8 * changes[0] and changes[0] > 0


def test_a_lost_object_warns_and_leaves_the_rest_unstyled():
    frames, _ = film()
    frames[4:] = 90
    clip = clip_of(frames)
    transform = video(track=BOX)
    with pytest.warns(UserWarning, match="the object was lost at frame 5: 0 of"):
        styled = transform(clip)
    assert torch.equal(styled[4:], clip[4:]) and not torch.equal(styled[:4], clip[:4])


@pytest.mark.parametrize("channels", [1, 3])
def test_grey_films_have_too_few_colours_but_are_followed(channels):
    frames, truth = film()
    clip = clip_of(frames).float() / 255
    clip = clip if channels == 3 else clip[:, :1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        styled = video(track=BOX)(clip)
    assert styled.shape == clip.shape
    moved = (styled - clip).abs().sum(dim=1).numpy()
    assert moved[truth].mean() > 5 * moved[~truth].mean()


def test_refusals():
    with pytest.raises(ConfigError, match='track has a mask; use where="inside"'):
        video(track=BOX, where="everywhere")
    with pytest.raises(ConfigError, match="a box is"):
        video(track=(1, 2))
    frame = clip_of(film(1)[0])[0]
    with pytest.raises(ImageError, match="the mask is that of the track"):
        video(track=BOX).stream()(frame, mask=torch.ones(HEIGHT, WIDTH))
    with pytest.raises(ConfigError, match="a mask or a track, not both"):
        style_film("in", "out", mask="mask", track=BOX)


def test_the_shell(tmp_path):
    frames, truth = film()
    frames[5] = 90
    (tmp_path / "in").mkdir()
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / "in" / f"{number}.png")
    bank("reinhard-rgb").save(tmp_path / "bank.safetensors")
    given = ["video", f"{tmp_path}/in", "--bank", f"{tmp_path}/bank.safetensors", "-o", f"{tmp_path}/out"]
    done = CliRunner().invoke(cli, [*given, "--box", ",".join(map(str, BOX)), "--where", "outside"])
    assert done.exit_code == 0 and "the object was lost at frame 6" in done.output, done.output
    styled = np.stack([np.asarray(Image.open(path)) for path in sorted((tmp_path / "out").iterdir())])
    changed = np.abs(styled[:5].astype(int) - frames[:5]).sum(axis=3) > 3
    assert changed[truth[:5]].mean() < 0.3 and changed[~truth[:5]].mean() > 0.8
    for wrong in ("1,2,3", "1,2,3,x", "1,2,3,0"):
        refused = CliRunner().invoke(cli, [*given, "--box", wrong])
        assert refused.exit_code == 2 and "X,Y,W,H in pixels" in refused.output
