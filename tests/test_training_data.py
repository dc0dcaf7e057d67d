"""Training data: the crops of a step, what is held out, and files that cannot be read."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from specimens import photo, photos, pil
from strategies import seeds, shares
from workshop import colours, ramp, red, tiny, unbalanced, write, written

from styleaug import FileError, ImageError
from styleaug.io.lists import list_images
from styleaug.training import data as module
from styleaug.training.data import Crop, TrainingData, is_held_out, read_image, square

CONFIG = tiny("cut")


# Images


@given(
    height=st.integers(1, 80), width=st.integers(1, 80), seed=seeds, side=shares, top=shares, left=shares,
    mirror=st.booleans(), quarters=st.integers(0, 3), deep=st.booleans(),
)  # fmt: skip
@example(height=1, width=1, seed=0, side=0, top=1, left=1, mirror=True, quarters=3, deep=False)
@example(height=32, width=33, seed=0, side=1, top=1, left=1, mirror=False, quarters=0, deep=True)
def test_crops(height, width, seed, side, top, left, mirror, quarters, deep):
    image = (photo(height, width, seed=seed) * 255).round().byte()
    image = (image / 255).half() if deep else image
    crop = Crop(side, top, left, mirror, quarters).cut(image, 32)
    assert crop.shape == (1, 3, 32, 32) and crop.dtype == torch.float32
    assert crop.min() >= 0 and crop.max() <= 1


@given(side=st.integers(1, 80), place=shares)
def test_the_widest_crop_of_a_square_is_all_of_it(side, place):
    image = (photo(side, side) * 255).round().byte()
    crop = Crop(1.0, place, place).cut(image, side)
    assert torch.equal(crop[0], image / 255)
    assert torch.equal(Crop(1.0, place, place, mirror=True).cut(image, side)[0], image.flip(-1) / 255)
    assert torch.equal(square(image, side), crop)


def test_crops_lie_anywhere_and_have_all_sizes(tmp_path):
    ramp(200, 300).save(tmp_path / "a.png")
    data = TrainingData(tmp_path, tmp_path, tiny("cut", flip=False, zoom=3.0))
    crops = torch.cat([data.batch(step, range(4), target=False)[0] for step in range(100)])
    red_green = crops[:, :2]
    spread = red_green.amax(dim=(2, 3)) - red_green.amin(dim=(2, 3))
    assert spread[:, 1].min() < 0.4 and spread[:, 1].max() > 0.9, "from the crop's size to the short side"
    middle = red_green.mean(dim=(2, 3))
    assert middle.min() < 0.25 and middle.max() > 0.75
    assert (red_green[:, 0, :, -1] > red_green[:, 0, :, 0]).all(), "flip=False keeps left and right"


def test_crops_are_turned_and_mirrored(tmp_path):
    ramp(60, 60).save(tmp_path / "a.png")
    for flip, turn, count in ((False, False, 1), (True, False, 2), (False, True, 4), (True, True, 8)):
        data = TrainingData(tmp_path, tmp_path, tiny("cut", flip=flip, turn=turn))
        crops = torch.cat([data.batch(step, range(4), target=False)[0] for step in range(20)])[:, :2]
        across = (crops[:, :, :, -1] - crops[:, :, :, 0]).mean(dim=-1)
        down = (crops[:, :, -1] - crops[:, :, 0]).mean(dim=-1)
        ways = torch.cat([across, down], dim=1).sign() * (torch.cat([across, down], dim=1).abs() > 0.1)
        assert len(ways.unique(dim=0)) == count, (flip, turn)


@pytest.mark.parametrize("shape", [(3, 3), (20, 20), (9, 200), (31, 300), (1, 1), (200, 33)])
def test_images_of_any_size_give_crops(shape, tmp_path):
    ramp(*shape).save(tmp_path / "a.png")
    ramp(50, 40).save(tmp_path / "b.png")
    data = TrainingData(tmp_path, tmp_path, CONFIG)
    (crops,) = data.batch(0, range(8), target=False)
    assert crops.shape == (8, 3, 32, 32) and not data.failed
    assert [x.shape[1:] for x in data.judged()] == [(3, 32, 32)] * 2


def test_an_image_is_read_no_larger_than_needed(tmp_path):
    for name in ("a.png", "a.jpg"):
        ramp(300, 600).save(tmp_path / name)
        assert read_image(tmp_path / name, 40).shape == (3, 40, 80)
    ramp(10, 20).save(tmp_path / "b.png")
    assert read_image(tmp_path / "b.png", 40).shape == (3, 40, 80)
    pil(size=(4000, 2)).save(tmp_path / "thread.png")  # 160 x 320 000 pixels at the size of a crop
    with pytest.raises(ImageError, match=r"thread.png has 4000 x 2 pixels, too narrow"):
        read_image(tmp_path / "thread.png", 160)


def test_sixteen_bits_keep_their_levels(tmp_path):
    levels = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    Image.fromarray(levels).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png", 64)
    assert image.shape == (3, 64, 64) and len(image.unique()) > 1000
    crop = Crop(1.0, 0, 0).cut(image, 64)
    torch.testing.assert_close(crop[0, 0], torch.from_numpy(levels / 65535).float(), atol=5e-4, rtol=0)


def test_images_of_every_kind_are_colour(tmp_path):
    grey = np.linspace(0, 1, 40 * 40).reshape(40, 40)
    eight = (grey * 255).round().astype(np.uint8)
    Image.fromarray(eight).save(tmp_path / "grey.png")
    Image.fromarray((grey * 65535).astype(np.uint16)).save(tmp_path / "sixteen.png")
    Image.fromarray(np.dstack([eight] * 3 + [np.full_like(eight, 99)])).save(tmp_path / "alpha.png")
    np.save(tmp_path / "float.npy", grey[..., None].astype(np.float32))
    np.save(tmp_path / "bytes.npy", np.dstack([eight] * 3))
    for path in list_images(tmp_path).paths:
        image = Crop(1.0, 0, 0).cut(read_image(path, 40), 40)
        assert image.shape == (1, 3, 40, 40), path
        assert (image - torch.from_numpy(grey)).abs().max() < 0.003, path


# Files that cannot be read


def count_reads(monkeypatch) -> Counter[Path]:
    """Count how often each file is read."""
    opened: Counter[Path] = Counter()
    read = module.read_image
    monkeypatch.setattr(module, "read_image", lambda path, side: opened.update([path]) or read(path, side))
    return opened


@pytest.fixture
def half_bad(tmp_path) -> Path:
    """Four images, and six files that are none."""
    folder = colours(tmp_path / "half", [f"{n}.png" for n in range(4)])
    for index in range(4):
        written(folder / f"bad{index}.png", b"hello" * index)
    np.save(folder / "nan.npy", np.full((20, 20, 3), np.nan, np.float32))
    np.save(folder / "object.npy", np.array([[{}]], dtype=object), allow_pickle=True)
    return folder


def test_unreadable_files_are_skipped_and_told_of_once(half_bad, tmp_path, monkeypatch):
    opened = count_reads(monkeypatch)
    config = tiny("cut", held_out=0.01)
    data = TrainingData(half_bad, half_bad, config)
    kept = {path.name for path in data.train[0].images.paths}
    bad = {name for name in kept if not name[0].isdigit()}
    assert len(bad) >= 5
    for step in range(20):
        for crops in data.batch(step, range(4)):
            assert crops.shape == (4, 3, 32, 32)
            assert set(red(crops)) <= {0, 1, 2, 3}
    assert {path.name for path in data.failed} == bad
    assert all(str(path) in why for path, why in data.failed.items())
    assert opened[half_bad / "nan.npy"] == 2, "once a side, though drawn often"


def test_pairs_with_an_unreadable_partner_are_skipped(tmp_path):
    names = [f"{n}.png" for n in range(8)]
    a, b = colours(tmp_path / "a", names), colours(tmp_path / "b", names)
    written(a / "1.png", b"no")
    written(b / "2.png", b"no")
    data = TrainingData(a, b, tiny("patchgan"), paired=True)
    seen = set()
    for step in range(20):
        one, two = data.batch(step, range(4))
        assert red(one) == red(two)
        seen |= set(red(one))
    one, two = data.judged()
    assert red(one) == red(two)
    assert seen.isdisjoint(red(one)) and seen | set(red(one)) == {0, 3, 4, 5, 6, 7}
    written(a / "1.png", (a / "0.png").read_bytes())
    for path in list(b.iterdir()):
        written(path, b"no")
    data = TrainingData(a, b, tiny("patchgan"), paired=True)
    for call in (data.judged, lambda: data.batch(0, range(4))):
        with pytest.raises(FileError, match=rf"none of the \d pairs .* read; the first: {b}"):
            call()


def test_nothing_can_be_read(tmp_path):
    good = colours(tmp_path / "good", ["1.png", "2.png"])
    bad = tmp_path / "bad"
    bad.mkdir()
    for index in range(5):
        written(bad / f"{index}.png", b"no")
    for sides in ((bad, good), (good, bad)):
        data = TrainingData(*sides, CONFIG)
        for call in (data.judged, lambda data=data: data.batch(0, range(4))):
            with pytest.raises(FileError, match=r"none of the \d images .* be read; the first: .*bad/\d.png"):
                call()


# What is held out


def test_held_out_images_are_not_trained_on(tmp_path):
    names = [f"{n}.png" for n in range(60)]
    a, b = colours(tmp_path / "a", names), colours(tmp_path / "b", [f"x/{name}" for name in names])
    data = TrainingData(a, b, CONFIG)
    sides = [{path.name for path in side.images.paths} for side in (*data.train, *data.held)]
    assert sides[0] == sides[1] and sides[2] == sides[3], "by name: both sides alike"
    assert not sides[0] & sides[2] and sides[0] | sides[2] == set(names)
    assert 8 < len(sides[2]) < 28, "a share of 0.3"
    assert sides[2] == {name for name in names if is_held_out(name, 0.3)}
    drawn = {n for step in range(60) for n in red(data.batch(step, range(4))[0])}
    judged = set(red(data.judged()[0]))
    assert not drawn & judged and drawn | judged == set(range(60))
    assert data.describe() == {
        "source": len(sides[0]), "target": len(sides[0]), "source held out": len(sides[2]),
        "target held out": len(sides[2]),
    }  # fmt: skip


def test_a_pair_is_not_torn_apart(tmp_path):
    a = colours(tmp_path / "a", [f"{n}.png" for n in range(40)])
    b = colours(tmp_path / "b", [f"{n}.jpg" for n in range(40)])
    data = TrainingData(a, b, tiny("patchgan"), paired=True)
    for source, target in (data.train, data.held):
        assert len(source) >= 4
        assert [path.stem for path in source.images.paths] == [path.stem for path in target.images.paths]


HELD = [name for name in (f"{n}.png" for n in range(99)) if is_held_out(name, 0.3)]
KEPT = [name for name in (f"{n}.png" for n in range(99)) if not is_held_out(name, 0.3)]


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("names", [HELD[:1], KEPT[:1], HELD[:2], KEPT[:2], HELD[:3], KEPT[:3]])
def test_tiny_folders(names, paired, tmp_path):
    folder = colours(tmp_path / "a", names)
    data = TrainingData(folder, folder, CONFIG, paired=paired)
    for train, held in zip(data.train, data.held, strict=True):
        apart = set(train.images.paths).isdisjoint(held.images.paths)
        assert apart == (len(names) > 2) and len(train)
        assert len(held) == min(len(names), 2), "scores need two"
        assert {*train.images.paths, *held.images.paths} == set(folder.iterdir())
    assert data.batch(0, range(4))[1].shape == (4, 3, 32, 32)
    assert len(data.judged()[0]) == len(data.held[0])


# Batches


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> tuple[Path, Path]:
    """Unlike pictures, and their negatives under the same names."""
    folder, pictures = tmp_path_factory.mktemp("many"), photos(12, 40, 48)
    return write(folder / "a", pictures), write(folder / "b", 1 - pictures)


@pytest.mark.parametrize("paired", [True, False])
def test_a_row_follows_from_seed_step_and_row(many, paired):
    config = tiny("cut", seed=3, turn=True)
    data = TrainingData(*many, config, paired=paired)
    whole = data.batch(7, range(8))
    data.batch(6, range(3))  # what was drawn before must not matter
    torch.manual_seed(99)
    for cuts in ([range(4), range(4, 8)], [range(row, row + 1) for row in range(8)]):
        fresh = TrainingData(*many, config, paired=paired)
        parts = [fresh.batch(7, rows) for rows in reversed(cuts)]
        for column, crops in zip(zip(*reversed(parts), strict=True), whole, strict=True):
            assert torch.equal(torch.cat(column), crops)
    assert (whole[0][0] - whole[0][1:]).abs().amax(dim=(1, 2, 3)).min() > 0
    reseeded = TrainingData(*many, tiny("cut", seed=4, turn=True), paired=paired)
    for other in (data.batch(8, range(8)), reseeded.batch(7, range(8))):
        same = [torch.equal(x, y) for x, y in zip(other[0], whole[0], strict=True)]
        assert not any(same)


def test_batches_leave_the_global_generator_alone(many):
    state = torch.get_rng_state()
    TrainingData(*many, CONFIG).batch(0, range(4))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_target_that_is_not_needed_is_not_read(many):
    data = TrainingData(*many, CONFIG)
    (source,) = data.batch(2, range(4), target=False)
    assert not data.train[1].cache
    assert torch.equal(source, data.batch(2, range(4))[0])


def test_judged_images_are_squares_from_the_middle(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        for index in range(6):
            ramp(60, 100 + 10 * index).save(tmp_path / folder / f"{index}.png")
    data = TrainingData(tmp_path / "a", tmp_path / "b", CONFIG)
    sources, targets = data.judged()
    assert sources.shape == (len(data.held[0]), 3, 32, 32)
    assert targets.shape == (len(data.held[1]), 3, 32, 32)
    middle = sources.mean(dim=(2, 3))[:, :2]
    torch.testing.assert_close(middle, torch.full_like(middle, 0.5), atol=0.01, rtol=0)
    assert (sources[:, 1, -1] - sources[:, 1, 0]).min() > 0.95, "top to bottom"
    assert all(map(torch.equal, data.judged(), (sources, targets)))


@pytest.mark.parametrize("paired", [True, False])
def test_scores_use_some_of_all_classes(paired, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MOST_JUDGED", 12)
    folder = unbalanced(tmp_path, a=60, b=60, c=60)
    data = TrainingData(folder, folder, CONFIG, paired=paired)
    sources, targets = data.judged()
    assert len(sources) == len(targets) == 12 and red(sources) == red(targets)
    assert {n // 60 for n in red(sources)} == {0, 1, 2}


# Memory


@pytest.mark.parametrize("limit", [0, 3 * 40 * 48 * 4])
def test_the_cache_is_bounded_and_changes_nothing(limit, many, monkeypatch):
    wanted = [TrainingData(*many, CONFIG).batch(step, range(4)) for step in range(10)]
    monkeypatch.setattr(module, "_CACHE_BYTES", limit)
    data = TrainingData(*many, CONFIG)
    for step, batch in enumerate(wanted):
        assert all(map(torch.equal, data.batch(step, range(4)), batch))
    for side in data.train:
        held = sum(image.nbytes for image in side.cache.values())
        assert limit / 2 <= held <= limit and len(side.cache) < len(side)


def test_images_are_read_once_while_there_is_room(many, monkeypatch):
    opened = count_reads(monkeypatch)
    data = TrainingData(*many, CONFIG)
    for step in range(20):
        data.batch(step, range(4))
    assert set(opened.values()) == {1}
