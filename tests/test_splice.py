"""Several styles in one image: where each part lies, that borders are soft, and that all else is kept."""

import pickle
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from specimens import GENERATORS, Spy, bank, bank_of, generator, photo, photos, pil
from strategies import random_tensor, seeds, shares, tensors
from torchvision import tv_tensors
from torchvision.transforms import v2

from styleaug import ImageError, StyleAugment
from styleaug.transforms.splice import (
    Splice,
    composite,
    draw_fields,
    feather,
    mask_weights,
    part_weights,
    read_masks,
    unspliced,
)

drawn = pytest.mark.parametrize("splice", ["halves", "fields"])


def tiny(make: type = StyleAugment, **options):
    options = {"p": 1.0, "generator": generator("tiny-adain"), "splice": "halves", **options}
    return make(options.pop("bank", bank()), **options)


def spied(**options) -> tuple[StyleAugment, Spy]:
    spy = Spy()
    return StyleAugment(bank_of(spy), generator=spy, **{"p": 1.0, **options}), spy


def disc(height: int = 60, width: int = 60) -> torch.Tensor:
    """Make a boolean mask of a centred disc."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    return y.square() + x.square() < 0.4


def weights_of(splice, count=200, parts=2, size=64, seed=0):
    return part_weights(
        draw_fields(splice, count, parts, torch.Generator().manual_seed(seed)), parts, size, size
    )


@drawn
@given(count=st.integers(0, 3), parts=st.integers(2, 5), height=st.integers(1, 40), width=st.integers(1, 40))
def test_weights_of_the_parts_sum_to_one(splice, count, parts, height, width):
    fields = draw_fields(splice, count, parts)
    assert len(fields) == count * parts and fields.shape[-1] == fields.shape[-2] <= 16
    weights = part_weights(fields, parts, height, width)
    torch.testing.assert_close(weights.sum(1), torch.ones(count, height, width))


@drawn
@pytest.mark.parametrize("parts", [2, 3, 4])
def test_every_part_has_room_and_clear_ownership(splice, parts):
    weights = weights_of(splice, parts=parts)
    assert weights.mean((2, 3)).min() > 0.15 / parts, "no part vanishes"
    assert abs(weights.mean((0, 2, 3)) - 1 / parts).max() < 0.05, "no part is favoured"
    clear = (weights.amax(1) > 0.9).float().mean()
    assert clear > {2: 0.7, 3: 0.6, 4: 0.5}[parts], "most pixels belong to one part"


@drawn
def test_borders_are_soft(splice):
    weights = weights_of(splice, size=200)[:, 0]
    steps = torch.maximum(weights.diff(dim=1).abs().amax((1, 2)), weights.diff(dim=2).abs().amax((1, 2)))
    # A seam is a step of 1. Over 10 % of 200 pixels the steepest step of a sigmoid is 0.055; fields are
    # as soft on average, but have steeper places.
    assert steps.median() < {"halves": 0.06, "fields": 0.15}[splice] and steps.max() < 0.25
    assert steps.min() > 0.02, "and yet it is a border"


def test_halves_are_straight_in_any_direction():
    fields = draw_fields("halves", 500, 2, torch.Generator().manual_seed(0))
    first, second = part_weights(fields, 2, 9, 9).double().unbind(1)
    corners = fields.unflatten(0, (-1, 2)).diff(dim=1)[:, 0].double()
    down, right = corners[:, 1, 0] - corners[:, 0, 0], corners[:, 0, 1] - corners[:, 0, 0]
    along = torch.linspace(0, 1, 9).double()
    wanted = corners[:, :1, :1] + down[:, None, None] * along[:, None] + right[:, None, None] * along
    near = wanted.abs() < 12  # beyond, float32 has no digits left to tell
    torch.testing.assert_close((second / first).log()[near], wanted[near], atol=1e-2, rtol=1e-3)
    assert abs((down > 0).float().mean() - 0.5) < 0.1 and abs((right > 0).float().mean() - 0.5) < 0.1


def test_composite_is_exact_where_one_part_is_alone():
    looks = torch.rand(2, 3, 3, 8, 8)
    weights = torch.zeros(2, 3, 8, 8)
    weights[:, 1] = 1
    assert torch.equal(composite(looks, weights), looks[:, 1])
    weights[:] = torch.tensor([0.2, 0.3, 0.5])[:, None, None]
    wanted = 0.2 * looks[:, 0] + 0.3 * looks[:, 1] + 0.5 * looks[:, 2]
    torch.testing.assert_close(composite(looks, weights), wanted)


@drawn
@pytest.mark.parametrize("name", GENERATORS)
def test_each_part_is_that_style_alone(splice, name):
    augment = tiny(bank=bank(name), generator=generator(name), splice=Splice(splice, parts=3))
    images = photos(2)
    params = augment.make_params(images)
    assert params["rows"].tolist() == [0, 0, 0, 1, 1, 1]
    styled = augment.apply(images, params)
    plain = StyleAugment(bank(name), generator=generator(name), p=1.0)
    weights = part_weights(params["fields"], 3, 24, 32)
    wanted = torch.zeros_like(images)
    for part in range(3):
        one = {key: value[part::3] for key, value in params.items()}
        wanted += weights[:, part, None] * plain.apply(images, {**one, "fields": None})
    torch.testing.assert_close(styled, wanted, atol=1e-5, rtol=0)


@given(
    image=tensors(axes=(4, 5), most_rows=4),
    p=shares,
    parts=st.integers(2, 4),
    keep=st.booleans(),
    splice=st.sampled_from(["halves", "fields", "mask"]),
    kind=st.sampled_from(["bank", "batch", "mix"]),
    seed=seeds,
)
def test_replay_is_exact_and_other_rows_are_untouched(image, p, parts, keep, splice, kind, seed):
    options = {"bank": "batch", "generator": None} if kind == "batch" else {}
    options |= {"sampler": "mix"} if kind == "mix" else {}
    augment = tiny(p=p, splice=Splice(splice, parts=parts, keep=keep), **options)
    params = augment.make_params(image, rng=torch.Generator().manual_seed(seed))
    labels = torch.randint(0, parts, image.shape[-2:], generator=torch.Generator().manual_seed(seed))
    masks = labels if splice == "mask" and len(params["rows"]) else None
    styled = augment.apply(image, params, masks=masks)
    assert torch.equal(augment.apply(image, params, masks=masks), styled)
    assert torch.equal(pickle.loads(pickle.dumps(augment)).apply(image, params, masks=masks), styled)
    assert (styled.shape, styled.dtype) == (image.shape, image.dtype)
    values = styled.double() / {torch.uint8: 255, torch.uint16: 65535}.get(styled.dtype, 1)
    assert values.min() >= 0 and values.max() <= 1
    picked = set(params["rows"].tolist())
    for row in set(range(len(image))) - picked:
        assert torch.equal(styled[row], image[row])
    if not picked:
        assert styled is image


def test_without_splice_nothing_else_is_drawn():
    plain, images = tiny(splice=None, p=0.5, strength=(0.5, 1.0)), photos(6)
    params = plain.make_params(images, rng=(rng := torch.Generator().manual_seed(1)))
    again = torch.Generator().manual_seed(1)
    rows = (torch.rand(6, generator=again) < 0.5).nonzero()[:, 0]
    assert torch.equal(params["rows"], rows)
    assert torch.equal(params["strength"], 0.5 + 0.5 * torch.rand(len(rows), generator=again))
    assert torch.equal(params["sources"][:, 0], torch.randint(5, (len(rows),), generator=again))
    assert params["fields"] is None and torch.equal(rng.get_state(), again.get_state())


def test_parameters_do_not_grow_with_the_image():
    augment = tiny(splice="fields")
    small, large = (augment.make_params(torch.zeros(2, 3, side, side)) for side in (8, 512))
    assert {k: v.shape for k, v in small.items()} == {k: v.shape for k, v in large.items()}
    assert large["fields"].numel() <= 4 * 256


@pytest.mark.parametrize("parts", [2, 3])
@drawn
def test_chunks_do_not_matter(monkeypatch, splice, parts):
    augment, images = tiny(splice=Splice(splice, parts=parts)), photos(7)
    params = augment.make_params(images)
    wanted = augment.apply(images, params)
    for chunk in (1, 3, 4):
        monkeypatch.setattr("styleaug.transforms.augment.CPU_CHUNK_PIXELS", chunk * 24 * 32)
        torch.testing.assert_close(augment.apply(images, params), wanted, atol=1e-5, rtol=0)


def test_chunks_hold_no_more_looks_than_other_chunks(monkeypatch):
    monkeypatch.setattr("styleaug.transforms.augment.CPU_CHUNK_PIXELS", 4 * 24 * 32)
    augment, spy = spied(splice="halves")
    augment(photos(5))
    assert [len(seen) for seen in spy.seen] == [4, 4, 2]


@drawn
def test_a_kept_part_is_the_image_and_costs_nothing(splice):
    augment, spy = spied(splice=Splice(splice, keep=True), strength=1.0)
    images = (photos(4, 40, 40) * 255).byte()
    params = augment.make_params(images)
    assert params["strength"].tolist() == [0, 1] * 4
    styled = augment.apply(images, params)
    assert spy.rows == 4, "one look of each image, not two"
    weights = part_weights(params["fields"], 2, 40, 40)[:, :1].expand(-1, 3, -1, -1)
    assert torch.equal(styled[weights > 1 - 1e-6], images[weights > 1 - 1e-6])
    assert torch.equal(styled[weights < 1e-6], 255 - images[weights < 1e-6])


def test_strength_zero_gives_the_pixels_back():
    augment, spy = spied(splice="halves", strength=0.0)
    for images in (photos(2), (photos(2) * 255).byte()):
        torch.testing.assert_close(augment(images), images, atol=1e-6, rtol=0)
    assert spy.rows == 0


@drawn
def test_frames_share_the_fields(splice):
    frames = photo(16, 16)[None].repeat(5, 1, 1, 1)
    video = tiny(StyleAugment, splice=splice)(tv_tensors.Video(frames))
    assert type(video) is tv_tensors.Video and (video - video[:1]).abs().max() < 1e-5
    videos = tiny(splice=splice)(frames[None].repeat(3, 1, 1, 1, 1))
    assert (videos - videos[:, :1]).abs().max() < 1e-5
    assert (videos[0] - videos[1]).abs().max() > 1e-2


def test_grey_and_brightness_are_kept():
    grey = photos(2, channels=1)
    assert tiny(strength=1.0)(grey).shape == grey.shape
    torch.testing.assert_close(tiny(blend="color")(grey), grey, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float32])
@pytest.mark.parametrize("mode", ["bool", "int16", "uint16", "float64"])
def test_inside_a_mask_the_image_is_kept_exactly(mode, dtype):
    image = random_tensor((3, 60, 60), dtype, 0)
    inside, far = disc(), ~torch.nn.functional.max_pool2d(disc()[None].float(), 7, 1, 3)[0].bool()
    well = ~torch.nn.functional.max_pool2d((~inside)[None].float(), 7, 1, 3)[0].bool()
    augment = tiny(splice=Splice("mask", keep=True), strength=1.0)
    masks = inside.to(getattr(torch, mode))
    if mode == "int16":
        masks *= 7  # whatever is not 0
    params = augment.make_params(image)
    styled = augment.apply(image, params, masks=masks)
    assert well.sum() > 500 and torch.equal(styled[:, well], image[:, well])
    alone = {key: value[1:] for key, value in params.items() if key != "fields"}
    wanted = tiny(splice=None).apply(image, {**alone, "fields": None})
    difference = (styled[:, far].double() - wanted[:, far].double()).abs().max()
    assert difference <= (1e-5 if dtype == torch.float32 else 1)
    assert not torch.equal(styled[:, far], image[:, far])
    assert torch.equal(masks.bool(), inside), "the mask is not written to"


@given(height=st.integers(1, 50), width=st.integers(1, 50), parts=st.integers(2, 4), seed=seeds)
def test_feathered_weights_stay_weights(height, width, parts, seed):
    labels = torch.randint(0, 6, (2, height, width), generator=torch.Generator().manual_seed(seed))
    weights = mask_weights(labels, parts)
    assert weights.shape == (2, parts, height, width) and weights.min() >= 0 and weights.max() <= 1
    torch.testing.assert_close(weights.sum(1), torch.ones(2, height, width))
    whole = mask_weights(torch.ones(2, height, width, dtype=torch.uint8), parts)
    assert (whole[:, 0] == 1).all() and (whole[:, 1:] == 0).all()


def test_feathering_makes_no_seam_and_stays_near_the_edge():
    step = (torch.arange(400) >= 200).float().expand(1, 1, 400, 400)
    profile = feather(step)[0, 0, 200]
    assert profile.diff().max() < 0.15 and (profile.diff() >= 0).all()
    soft = ((profile > 0) & (profile < 1)).nonzero()[:, 0]
    assert soft.min() >= 192 and soft.max() <= 207
    assert torch.equal(profile[:192], torch.zeros(192)) and torch.equal(profile[208:], torch.ones(192))


def test_labels_name_parts():
    labels = torch.tensor([0, 1, 2, 3, 4, -1])[:, None, None].expand(6, 9, 9)
    assert mask_weights(labels, 2)[:, :, 4, 4].argmax(1).tolist() == [1, 0, 0, 0, 0, 0]
    assert mask_weights(labels, 3)[:, :, 4, 4].argmax(1).tolist() == [2, 0, 1, 0, 1, 0]
    assert mask_weights(torch.full((1, 5, 5), 0.25), 2)[0, :, 2, 2].tolist() == [0.25, 0.75]
    with pytest.raises(ImageError, match=r"float masks tell two parts apart.*3 parts"):
        mask_weights(torch.rand(1, 5, 5), 3)


@pytest.mark.parametrize("name", ["gin", "randconv", "tone-curves", "tiny-adain", "reinhard-rgb"])
def test_each_label_has_the_look_of_its_own_draw(name):
    styles = None if generator(name).has_prior else bank(name)
    augment = StyleAugment(styles, generator=generator(name), p=1.0, splice=Splice("mask", parts=4))
    images = photos(3, 64, 64)
    labels = torch.arange(4).repeat_interleave(16)[:, None].expand(64, 64)
    params = augment.make_params(images)
    styled = augment.apply(images, params, masks=labels)
    assert len(params["codes"].unique(dim=0)) > 1, "labels have draws of their own"
    plain = StyleAugment(styles, generator=generator(name), p=1.0)
    for row in range(3):
        for label, part in ((1, 0), (2, 1), (3, 2), (0, 3)):
            at = 4 * row + part
            one = {key: value[at : at + 1] for key, value in params.items() if torch.is_tensor(value)}
            whole = plain.apply(images, {**one, "fields": None})[row]
            inside = slice(16 * label + 4, 16 * label + 12)  # away from the soft borders
            torch.testing.assert_close(styled[row, :, inside], whole[:, inside], atol=2e-6, rtol=0)


@pytest.mark.parametrize("lead", [(), (1,), (4,), (4, 1), (4, 3), (12,)])
def test_masks_belong_to_their_images(lead):
    augment = tiny(splice=Splice("mask", keep=True), strength=1.0, bank=bank().select([0]))
    videos = photos(12, 40, 40).unflatten(0, (4, 3))
    masks = torch.rand(*lead, 1, 1, generator=torch.Generator().manual_seed(0)).gt(0.5).expand(*lead, 40, 40)
    styled = augment.apply(videos, augment.make_params(videos), masks=masks)
    every = masks.reshape(-1, 40, 40)
    every = every.repeat_interleave(12 // len(every), 0)
    for image, was, mask in zip(styled.flatten(0, 1), videos.flatten(0, 1), every, strict=True):
        assert torch.equal(image, was) == bool(mask.all())


def test_masks_of_objects_are_joined():
    objects = torch.zeros(3, 5, 6, dtype=torch.bool)
    objects[0, 1], objects[2, 3] = True, True
    assert torch.equal(read_masks(objects, 1, 1, (5, 6)).bool()[0], objects.any(0))
    assert not read_masks(objects[:0], 1, 1, (5, 6)).any()


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (torch.zeros(24, 31), r"high and wide as the images, 24 x 32, got \(24, 31\)"),
        (torch.zeros(32), "high and wide"),
        (torch.zeros(3, 24, 32), r"\(B, 1, H, W\) with B = 2, got \(3, 24, 32\)"),
        (torch.full((24, 32), 1.5), r"must lie in \[0, 1\], got \[1.5, 1.5\]"),
        (torch.full((24, 32), torch.nan), "must lie in"),
        ("mask.png", "tensor or an array, got str"),
        (None, "splice by a mask; give masks"),
    ],
)
def test_masks_that_do_not_fit_are_refused(masks, message):
    augment, images = tiny(splice="mask"), photos(2)
    with pytest.raises(ImageError, match=message):
        augment.apply(images, augment.make_params(images), masks=masks)


@pytest.mark.parametrize("splice", [None, "halves"])
def test_masks_that_nothing_needs_are_refused(splice):
    augment, images = tiny(splice=splice), photos(2)
    with pytest.raises(ImageError, match="masks are given, but"):
        augment.apply(images, augment.make_params(images), masks=torch.zeros(24, 32))


def sample_with(image, mask) -> dict:
    return {"image": image, "target": {"mask": mask, "label": 3}}


@pytest.mark.parametrize("form", ["pil", "image", "plain"])
def test_a_sample_brings_its_mask(form):
    pixels = random_tensor((3, 60, 60), torch.uint8, 0)
    image = {
        "pil": Image.fromarray(pixels.permute(1, 2, 0).numpy()),
        "image": tv_tensors.Image(pixels),
        "plain": pixels,
    }[form]
    mask = tv_tensors.Mask(disc().byte())
    augment = tiny(StyleAugment, splice=Splice("mask", keep=True), strength=1.0)
    styled = v2.Compose([augment])(sample_with(image, mask))
    assert styled["target"]["mask"] is mask and styled["target"]["label"] == 3
    now = v2.functional.pil_to_tensor(styled["image"]) if form == "pil" else styled["image"]
    assert torch.equal(now[:, 20:40, 20:40], pixels[:, 20:40, 20:40])
    assert not torch.equal(now[:, :10], pixels[:, :10])
    params = augment.make_params([image, mask], rng=torch.Generator().manual_seed(2))
    torch.manual_seed(2)
    again = augment(sample_with(image, mask))["image"]
    assert np.array_equal(np.asarray(augment.apply(image, params)), np.asarray(again))
    assert tiny(StyleAugment, splice="mask", p=0.0)(sample_with(image, mask))["image"] is image


def test_a_video_brings_a_mask_for_each_frame():
    video, masks = tv_tensors.Video(photos(3, 40, 40)), torch.zeros(3, 40, 40, dtype=torch.uint8)
    masks[1] = 1
    styled, same = tiny(StyleAugment, splice=Splice("mask", keep=True))(
        video, masks := tv_tensors.Mask(masks)
    )
    assert same is masks
    assert [torch.equal(x, y) for x, y in zip(styled, video, strict=True)] == [False, True, False]


def test_samples_without_a_mask_are_refused():
    augment = tiny(StyleAugment, splice="mask")
    with pytest.raises(ImageError, match=r"needs a mask in the sample.*tv_tensors\.Mask"):
        augment({"image": pil(), "mask": torch.zeros(24, 32)})
    with pytest.raises(ImageError, match="24 x 32, got"):
        augment(pil(), tv_tensors.Mask(torch.zeros(8, 8)))
    with pytest.raises(ImageError, match="no image in the sample"):
        augment({"mask": tv_tensors.Mask(torch.zeros(24, 32))})
    with pytest.raises(ImageError, match="give masks"):
        augment.apply(photos(1), augment.make_params(photos(1)))


def test_other_samples_pass_their_mask_by():
    mask = tv_tensors.Mask(torch.zeros(5, 5))  # of another size: nobody looks
    styled, same = tiny(StyleAugment)(pil(), mask)
    assert same is mask and styled.size == (32, 24)


def test_rows_are_told_once():
    rows, parts = unspliced(torch.tensor([3, 3, 7, 7]))
    assert rows.tolist() == [3, 7] and parts == 2
    assert unspliced(torch.tensor([1, 2]))[1] == 1 and unspliced(torch.tensor([], dtype=torch.long))[1] == 0


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_gives_the_same():
    kept = Splice("halves", keep=True)
    plain, fast = (tiny(precision="float32", compiled=flag, splice=kept) for flag in (False, True))
    for count in (1, 3):
        images = photos(count)
        params = plain.make_params(images)
        torch.testing.assert_close(
            fast.apply(images, params), plain.apply(images, params), atol=1e-4, rtol=1e-4
        )


@pytest.mark.gpu
@pytest.mark.parametrize("splice", ["halves", "fields", "mask"])
def test_cuda_agrees_with_the_cpu_and_waits_for_nothing(cuda, splice):
    augment, images = tiny(splice=Splice(splice, keep=True), precision="float32"), photos(4)
    masks = disc(24, 32) if splice == "mask" else None
    params = augment.make_params(images)
    wanted, there = augment.apply(images, params, masks=masks), images.to(cuda)
    placed = None if masks is None else masks.to(cuda)
    torch.testing.assert_close(augment.apply(there, params, masks=placed).cpu(), wanted, atol=5e-3, rtol=0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        augment.apply(there, params, masks=placed)
    finally:
        torch.cuda.set_sync_debug_mode("default")
