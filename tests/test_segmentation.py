"""`styleaug evaluate robustness --task segmentation`: images with masks in, a fair comparison out."""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from styleaug.errors import ConfigError, FileError, MissingExtraError
from styleaug.robustness import evaluate as robustness
from styleaug.robustness import segmentation
from styleaug.robustness.classifier_training import GEOMETRIES, VOID, Recipe
from styleaug.robustness.evaluate import evaluate_robustness, plan_robustness
from styleaug.robustness.mask_folders import read_mask_numbers, read_masked_images
from styleaug.robustness.overlays import order_of, overlaid
from styleaug.robustness.protocol import Samples
from styleaug.robustness.segmentation import Segmentation
from styleaug.robustness.segmenter_training import (
    dice,
    fit_segmenter,
    intersection_over_union,
    mask_loss,
    overlaps,
    surface_dice,
)
from styleaug.robustness.segmenters import MONAI, make_segmenter, usual_segmentation_recipe
from styleaug.robustness.tasks import Case, Scored

SIDE = 32
RECIPE = Recipe(side=SIDE, epochs=1, lr=4e-3, batch=4, label_smoothing=0.0)
SMALL = Segmentation(segmenter="unet-4")


def discs(count: int, seed: int, labels: tuple[int, ...] = (0, 255), size=(36, SIDE)):
    """Draw images with a disc for each label but the first, in its colour, and their masks."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: size[1], : size[0]]
    for _ in range(count):
        pixels = rng.integers(0, 60, (*size[::-1], 3))
        mask = np.full(size[::-1], labels[0], np.uint8)
        for index, label in enumerate(labels[1:]):
            middle = rng.uniform(10, 22), rng.uniform(8, 14) + 10 * index
            disc = np.hypot(y - middle[0], x - middle[1]) < rng.uniform(5, 7)
            mask[disc] = label
            pixels[disc, index % 3] += 150
        yield pixels.astype(np.uint8), mask


def draw(folder: Path, count: int, seed: int, **options) -> Path:
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for index, (pixels, mask) in enumerate(discs(count, seed, **options)):
        Image.fromarray(pixels).save(folder / "images" / f"{index}.jpg", quality=95)
        Image.fromarray(mask).save(folder / "masks" / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("masked")
    draw(root / "home", 10, 0)
    draw(root / "other", 4, 1, labels=(0, 1))
    draw(root / "three", 6, 2, labels=(0, 128, 255))
    return root


def evaluated(folders: Path, *arms: str, **options):
    options = {"recipe": RECIPE, "seeds": 1, "threads": 1, "task": SMALL, **options}
    tests = options.pop("tests", [folders / "other"])
    return evaluate_robustness(options.pop("train", folders / "home"), tests, arms=arms, **options)


def scores(result) -> dict:
    return {(run["arm"], run["seed"]): (run["scores"], run["classes"]) for run in result.runs}


def test_scores_by_domain_and_class(folders):
    result = evaluated(folders, "none", "jitter+grey", "again=none", seeds=2)
    found = scores(result)
    assert all(found["none", seed] == found["again", seed] for seed in range(2))
    assert found["none", 0] != found["none", 1] and found["none", 0] != found["jitter+grey", 0]
    (run, *_) = result.runs
    assert list(run["scores"]) == ["home", "other"] and list(run["classes"]) == ["home", "other"]
    assert run["classes"]["home"].keys() == {"1"}, "255 counts as 1, and the background does not count"
    measured = run["classes"]["home"]["1"]
    assert {"dice", "iou"} <= measured.keys() and measured["iou"] <= measured["dice"]
    assert run["scores"]["home"] == pytest.approx(measured["dice"], abs=1e-4)
    assert (run["trained_on"], run["tested_on"]) == (8, 2)
    table = result.table()
    assert "Dice in percent" in table and "home, 1, IoU" in table and "other minus none" in table
    text = result.markdown()
    assert "Segmentation network unet-4: side 32" in text and "| other, 1, Dice |" in text
    assert result.to_dict()["classes"]["none"]["other"]["1"]["iou"] >= 0


def test_a_network_learns_what_can_be_learned(folders):
    recipe = replace(RECIPE, epochs=40, lr=2e-2, geometry="none")
    (arm,) = evaluated(folders, "none", recipe=recipe).arms
    assert arm.scores["home"].mean > 0.85
    assert arm.scores["other"].mean > 0.85


def test_what_the_arms_of_a_seed_share(folders, monkeypatch):
    met = []

    def remember(net, images, masks, augment, recipe, *, seed, device, first, steps):
        weights = net.body.head.weight.sum().item()
        met.append((seed, weights, images.sum().item(), masks.sum().item(), first))

    monkeypatch.setattr(segmentation, "fit_segmenter", remember)
    evaluated(folders, "none", "jitter", seeds=2)
    assert met[0] == met[1] and met[2] == met[3]
    assert met[0][1:3] != met[2][1:3]
    assert met[0][4] == 1


def test_draws_of_an_arm_move_neither_order_nor_geometry():
    images, masks = pairs()
    nets = []
    for extra in (0, 1000):
        torch.manual_seed(0)
        net = make_segmenter("unet-4", 3, SIDE)

        def augment(images, *, masks, extra=extra):
            torch.rand(extra)
            return images

        fit_segmenter(net, images, masks, augment, RECIPE, seed=3, device="cpu")
        nets.append(torch.cat([weight.detach().flatten() for weight in net.parameters()]))
    assert torch.equal(*nets)


def pairs(count: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images and masks of three classes, with some void pixels."""
    drawn = list(discs(count, 5, labels=(0, 1, 2), size=(SIDE, SIDE)))
    masks = torch.from_numpy(np.stack([mask for _, mask in drawn]))
    masks[:, :3, :3] = VOID
    return torch.from_numpy(np.stack([pixels for pixels, _ in drawn])).permute(0, 3, 1, 2), masks


def test_arms_see_the_masks_with_void_as_background_and_do_not_change_them():
    images, masks = pairs()
    before, seen = masks.clone(), []

    def augment(images, *, masks):
        seen.append((images.shape, masks.clone()))
        return images

    torch.manual_seed(0)
    fit_segmenter(
        make_segmenter("unet-4", 3, SIDE), images, masks, augment, RECIPE, seed=0, device="cpu", steps=1
    )
    assert torch.equal(masks, before)
    assert seen[0][0] == (4, 3, SIDE, SIDE) and seen[0][1].shape == (4, SIDE, SIDE)
    assert seen[0][1].unique().tolist() == [0, 1, 2]


@pytest.mark.parametrize("name", GEOMETRIES)
def test_an_image_and_its_mask_move_together(name):
    masks = torch.zeros(40, 1, SIDE, SIDE)
    masks[:, :, 12:20, 6:18] = 1
    move = GEOMETRIES[name].draw(
        torch.Size([40, 3, SIDE, SIDE]), rng=torch.Generator().manual_seed(4), device=torch.device("cpu")
    )
    images, moved = move(masks.expand(-1, 3, -1, -1)), move(masks, labels=True)
    assert set(moved.unique().tolist()) <= {0.0, 1.0, float(VOID)}
    inside = moved[:, 0] == 1
    assert inside.any() and (torch.equal(moved, masks) == (name == "none"))
    # Bilinear values are above a half where the nearest value is 1, but for rounding on the border.
    assert ((images[:, 0] > 0.5) != inside).float().mean() < 0.02
    assert (images[:, 0][inside] > 0.2).all()
    assert (images[:, 0][moved[:, 0] == VOID] == 0).all(), "void is where black was shifted in"


def test_void_pixels_are_neither_trained_on_nor_scored():
    torch.manual_seed(1)
    logits = torch.randn(2, 3, 8, 8, requires_grad=True)
    masks = torch.randint(0, 3, (2, 8, 8))
    masks[:, :4] = VOID
    loss = mask_loss(logits, masks)
    loss.backward()
    assert (logits.grad[:, :, :4] == 0).all() and (logits.grad[:, :, 4:] != 0).any()
    changed = logits.detach().clone()
    changed[:, :, :4] += 5
    assert mask_loss(changed, masks).item() == pytest.approx(loss.item())
    assert mask_loss(logits, torch.full((2, 8, 8), VOID)).isfinite()
    given = masks.byte().clone()
    given[:, :4] = 1
    assert (dice(*overlaps(given, masks.byte(), 3)) == 1).all()


def test_the_loss_is_least_for_the_truth():
    masks = torch.randint(0, 3, (2, 8, 8), generator=torch.Generator().manual_seed(0))
    right = torch.nn.functional.one_hot(masks, 3).permute(0, 3, 1, 2).float() * 20
    assert mask_loss(right, masks).item() < 0.01
    assert mask_loss(right.roll(1, dims=1), masks).item() > 10
    # Without a background the first class counts, too.
    half = torch.where(masks[:, None] == 0, right.roll(1, dims=1), right)
    assert mask_loss(half, masks, 0).item() > mask_loss(half, masks, 1).item()


def test_dice_and_iou_of_known_masks():
    truth, given = torch.zeros(2, 8, 8, dtype=torch.uint8), torch.zeros(2, 8, 8, dtype=torch.uint8)
    truth[0, :4, :4], given[0, :4, 2:6] = 1, 1  # 16 pixels each, 8 in both
    given[1, 0, 0] = 2
    counts = overlaps(given, truth, 4)
    assert dice(*counts)[0, 1] == 0.5 and intersection_over_union(*counts)[0, 1] == pytest.approx(1 / 3)
    assert dice(*counts)[1, 2] == 0, "in the answer only"
    assert dice(*counts)[:, 3].isnan().all() and intersection_over_union(*counts)[1, 1].isnan()


def test_the_surface_distance_of_known_masks():
    pytest.importorskip("monai")
    truth, given = torch.zeros(2, 24, 24, dtype=torch.uint8), torch.zeros(2, 24, 24, dtype=torch.uint8)
    truth[0, 8:16, 8:16], given[0, 8:16, 10:18] = 1, 1
    # Of the 28 border pixels of each square, 7 + 7 of the rows and 2 of a column are within 1 pixel.
    assert surface_dice(given, truth, 3, 1.0)[0, 1].item() == pytest.approx(16 / 28)
    assert surface_dice(given, truth, 3, 2.0)[0, 1] == 1
    assert surface_dice(given, truth, 3, 2.0)[:, 2].isnan().all()
    given[1, 3, 3] = 2
    assert surface_dice(given, truth, 3, 2.0)[1, 2] == 0, "in one mask only"


def test_without_monai_the_surface_distance_is_left_out(folders, monkeypatch):
    monkeypatch.setattr(segmentation, "has_surface_dice", lambda: False)
    result = evaluated(folders, "none")
    assert result.runs[0]["classes"]["home"]["1"].keys() == {"dice", "iou"}
    assert "surface" not in result.table()


def test_an_image_counts_for_the_classes_that_it_shows(folders):
    class Answers(torch.nn.Module):
        def __init__(self, given):
            super().__init__()
            self.given, self.some = given, torch.nn.Parameter(torch.zeros(()))

        def forward(self, images):
            return torch.nn.functional.one_hot(self.given.long(), 4).permute(0, 3, 1, 2).float()

    truth = torch.zeros(3, 8, 8, dtype=torch.uint8)
    truth[:2, :4] = 1
    truth[0, 6:] = 2
    given = truth.clone()
    given[1, 6:] = 2  # a false alarm
    given[2, :4] = 3  # a class that no mask has
    protocol = robustness.Protocol.of("x", arms=["none"], recipe=RECIPE)
    images = torch.zeros(3, 3, 8, 8, dtype=torch.uint8)
    data = Samples(images, truth, ("0", "1", "2", "3"))
    tested = SMALL.test(Answers(given), data, protocol)
    assert {name: found["dice"] for name, found in tested.by_class.items()} == {"1": 1, "2": 0.5}
    assert tested.score == 0.75
    assert tested.each.tolist() == [1, 0.5, 0]
    everything = Segmentation(background=-1).test(Answers(given), data, protocol)
    assert everything.by_class.keys() == {"0", "1", "2"}


# What is read.


def test_labels_are_numbered_in_order_with_the_background_first(folders):
    found = read_masked_images(folders / "three", 16)
    assert found.labels == (0, 128, 255) and found.images.shape == (6, 3, 16, 16)
    assert set(found.masks.unique().tolist()) == {0, 1, 2}
    assert read_masked_images(folders / "three", 16, background=128).labels == (128, 0, 255)
    void = read_masked_images(folders / "three", 16, void=255)
    assert void.labels == (0, 128) and set(void.masks.unique().tolist()) == {0, 1, VOID}
    assert torch.equal(void.masks == VOID, found.masks == 2)


def test_black_and_white_masks_have_labels_0_and_1(folders):
    home, other = (read_masked_images(folders / name, SIDE) for name in ("home", "other"))
    assert home.labels == other.labels == (0, 1)
    assert read_masked_images(folders / "home", SIDE, labels=(0, 1)).failed == ()
    kept = read_masked_images(folders / "home", SIDE, labels=(0, 255))
    assert kept.labels == (0, 255) and torch.equal(kept.masks, home.masks)
    assert read_masked_images(folders / "three", SIDE).labels[2] == 255, "255 beside other labels stays"


def test_named_labels_and_k_classes(folders):
    result = evaluated(folders, "none", train=folders / "three", tests=[], classes=("0", "128", "255"))
    assert result.settings["classes"] == ["0", "128", "255"]
    assert result.runs[0]["classes"]["home"].keys() == {"128", "255"}
    with pytest.raises(FileError, match="255 is not among those of the training"):
        evaluated(folders, "none", train=folders / "three", tests=[], classes=("0", "128"))


def test_masks_are_cut_as_their_images(tmp_path):
    draw(tmp_path / "a", 1, 0)
    mask = np.zeros((20, 60), np.uint8)
    mask[4:8, 24:30] = 255
    Image.fromarray(mask).save(tmp_path / "a" / "masks" / "0.png")
    (tmp_path / "a" / "images" / "0.jpg").unlink()
    Image.fromarray(mask).convert("RGB").save(tmp_path / "a" / "images" / "0.png")
    for fit in ("crop", "squash"):
        found = read_masked_images(tmp_path / "a", 20, fit=fit)
        assert ((found.images[0, 0] > 127) == (found.masks[0] == 1)).float().mean() > 0.98
        assert (found.masks == 1).any()


@pytest.mark.parametrize(
    "kind", ["1", "palette", "grey palette", "RGB", "RGBA", "16 bits", "npy", "float npy"]
)
def test_kinds_of_masks(tmp_path, kind):
    numbers = np.array([[0, 1, 2], [2, 1, 0]], np.uint8)
    path = tmp_path / ("mask.npy" if "npy" in kind else "mask.png")
    if kind == "1":
        numbers = (numbers > 0).astype(np.uint8) * 255
        Image.fromarray(numbers).convert("1").save(path)
    elif kind.endswith("palette"):
        image = Image.new("P", (3, 2))
        image.putdata(numbers.flatten().tolist())
        grey = kind == "grey palette"
        image.putpalette([0, 0, 0, *([128, 128, 128, 7, 7, 7] if grey else [128, 0, 0, 0, 0, 0])])
        image.save(path)
        numbers = np.array([0, 128, 7])[numbers] if grey else numbers
    elif kind in ("RGB", "RGBA"):
        Image.fromarray(numbers).convert(kind).save(path)
    elif kind == "16 bits":
        numbers = numbers.astype(np.uint16) * 300
        Image.fromarray(numbers).save(path)
    else:
        np.save(path, numbers.astype(np.float32) if kind == "float npy" else numbers.astype(np.int32))
    assert read_mask_numbers(path).tolist() == numbers.tolist()


def colour(size):
    return Image.fromarray(np.random.default_rng(0).integers(0, 9, (*size[::-1], 3), np.uint8))


BAD = {
    "missing": (None, r"2\.jpg: there is no mask .*masks.2\.\*; add it"),
    "of another size": (
        Image.new("L", (20, 20)),
        r"2\.png: the mask has 20 x 20 pixels, its image 2\.jpg has",
    ),
    "with another label": (Image.new("L", (36, SIDE), 7), r"2\.png: label 7 is not among those .* \(0, 1\)"),
    "in colour": (colour((36, SIDE)), r"2\.png: it is a colour image with \d+ colours, not a mask"),
    "with transparency": (
        Image.merge("LA", [Image.new("L", (36, SIDE)), Image.linear_gradient("L").resize((36, SIDE))]),
        r"2\.png: the mask has transparent pixels",
    ),
    "damaged": (b"no image", r"2\.png is not a \.png image"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_masks_are_named_and_can_be_skipped(folders, tmp_path, what):
    content, said = BAD[what]
    root = draw(tmp_path / "set", 6, 3, labels=(0, 1))
    path = root / "masks" / "2.png"
    path.unlink()
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        content.save(path)
    with pytest.raises(FileError, match=rf"1 files cannot be used; the first: .*{said}.* give skip=True"):
        evaluated(folders, "none", tests=[root])
    result = evaluated(folders, "none", tests=[root], skip=True)
    assert len(result.failed) == 1 and Path(result.failed[0][0]).name.startswith("2.")
    assert result.settings["domains"]["set"]["images"] == 5


def test_a_training_mask_that_cannot_be_used(tmp_path):
    root = draw(tmp_path / "set", 8, 3)
    Image.new("L", (20, 20)).save(root / "masks" / "2.png")
    options = {"arms": ["none"], "recipe": RECIPE, "seeds": 1, "threads": 1, "task": SMALL}
    with pytest.raises(FileError, match=r"2\.png: the mask has 20 x 20"):
        evaluate_robustness(root, **options)
    assert evaluate_robustness(root, skip=True, **options).settings["domains"]["train"]["images"] == 7
    with pytest.raises(FileError, match="cannot be read"):
        evaluate_robustness(root, skip=True, strict=True, **options)


def test_stray_values_are_no_labels(tmp_path):
    root = draw(tmp_path / "set", 8, 3, labels=(0, 128, 255), size=(64, 64))
    path = root / "masks" / "2.png"
    mask = np.array(Image.open(path))
    mask[40:42, 40] = 7
    Image.fromarray(mask).save(path)
    found = read_masked_images(root, SIDE)
    assert found.labels == (0, 128, 255) and len(found.images) == 7
    assert "its values 7 are in so few pixels" in found.failed[0][1]
    assert found.failed[0][1].endswith("classes=0,128,255,7.")
    assert read_masked_images(root, SIDE, labels=(0, 7, 128, 255)).failed == ()
    assert read_masked_images(root, SIDE, void=7).failed == ()
    mask[40:42, 40:45] = 7  # ten pixels
    Image.fromarray(mask).save(path)
    assert read_masked_images(root, SIDE).labels == (0, 7, 128, 255)


def test_sources_that_are_none(folders, tmp_path):
    with pytest.raises(FileError, match="needs the folders images and masks with files of the same names"):
        read_masked_images(tmp_path, SIDE)
    with pytest.raises(FileError, match="there is no folder"):
        read_masked_images(tmp_path / "nowhere", SIDE)
    draw(tmp_path / "empty", 2, 0)
    for path in (tmp_path / "empty" / "masks").iterdir():
        path.rename(path.with_name(f"x{path.name}"))
    with pytest.raises(
        FileError, match=r"none of the 2 masks of .* can be used; the first: .*there is no mask"
    ):
        read_masked_images(tmp_path / "empty", SIDE)
    flat = draw(tmp_path / "flat", 2, 0, labels=(0,))
    with pytest.raises(FileError, match="have only the label 0; a segmentation needs two or more"):
        read_masked_images(flat, SIDE)
    with pytest.raises(FileError, match="show nothing but background"):
        evaluated(folders, "none", tests=[flat])
    many = draw(tmp_path / "many", 1, 0)
    np.save(many / "masks" / "0.npy", np.arange(36 * SIDE).reshape(SIDE, 36) % 100)
    with pytest.raises(FileError, match=r"it has several masks: 0\.npy, 0\.png; keep one"):
        read_masked_images(many, SIDE)
    (many / "masks" / "0.png").unlink()
    with pytest.raises(FileError, match=r"have 100 values, more than 64\. JPEG, smooth borders"):
        read_masked_images(many, SIDE)
    np.save(many / "masks" / "0.npy", np.full((SIDE, 36), 0.5))
    with pytest.raises(FileError, match="got fractions"):
        read_masked_images(many, SIDE)
    with pytest.raises(FileError, match="allow more memory"):
        evaluated(folders, "none", memory=1e-6)


def test_lists_name_images_and_masks(folders, tmp_path):
    rows = [f"{folders}/home/images/{i}.jpg,{folders}/home/masks/{i}.png" for i in range(6)]
    listed = tmp_path / "set.csv"
    listed.write_text("path,mask\n" + "\n".join(rows))
    found = read_masked_images(listed, SIDE)
    assert torch.equal(found.masks, read_masked_images(folders / "home", SIDE).masks[:6])
    result = evaluated(folders, "none", train=listed, tests=[listed])
    assert list(result.runs[0]["scores"]) == ["home", "set"]
    listed.write_text("path,mask\n" + "\n".join([*rows, f"{folders}/home/images/7.jpg,-"]))
    with pytest.raises(FileError, match=r"1 files cannot be used; the first: there is no file .*-\."):
        evaluated(folders, "none", train=listed)
    listed.write_text("path,mask\n" + "\n".join([*rows, f"{folders}/home/images/7.jpg,"]))
    assert "the list names no mask for it" in read_masked_images(listed, SIDE).failed[0][1]
    listed.write_text("path\n" + f"{folders}/home/images/1.jpg\n")
    with pytest.raises(FileError, match="has no column mask; a segmentation needs the folders images"):
        read_masked_images(listed, SIDE)


@pytest.mark.parametrize("column", ["split", "group"])
def test_parts_and_groups_of_a_list_are_never_mixed_in_silence(folders, tmp_path, column):
    def write(name: str, parts: Sequence[str]) -> Path:
        rows = [
            f"{folders}/home/images/{i}.jpg\t{folders}/home/masks/{i}.png\t{parts[i % len(parts)]}"
            for i in range(8)
        ]
        path = tmp_path / f"{name}.tsv"
        path.write_text(f"path\tmask\t{column}\n" + "\n".join(rows))
        return path

    both, one, other = write("both", "ab"), write("one", "a"), write("other", "b")
    said = (
        "several parts in its column split: 'a', 'b'"
        if column == "split"
        else "column group, and images of a"
    )
    with pytest.raises(FileError, match=rf"both\.tsv has .*{said}.* the test home=LIST"):
        evaluated(folders, "none", train=both)
    found = evaluated(folders, "none", train=one, tests={"home": other})
    assert list(found.runs[0]["scores"]) == ["home"]
    evaluated(folders, "none", train=one, tests=[other])
    with pytest.raises(FileError, match="has"):  # an empty one is another part
        evaluated(folders, "none", train=write("some", ["a", ""]))
    evaluated(folders, "none", train=write("empty", [""]), tests={"home": other})
    if column == "group":
        evaluated(folders, "none", train=write("each", "abcdefgh"))  # none is shared
        # They matter only where some of their images are held out.
        evaluated(folders, "none", train=both, tests={"home": other, "all": both})


@pytest.mark.parametrize("name", ["gone.jpg", "no/such/folder.jpg", "x" * 300, "nul\0.jpg"])
def test_an_image_of_a_list_that_is_not_there_can_be_skipped(folders, tmp_path, name, command):
    rows = [f"{folders}/home/images/{i}.jpg,{folders}/home/masks/{i}.png" for i in range(6)]
    listed = tmp_path / "set.csv"
    listed.write_text("path,mask\n" + "\n".join([*rows, f"{name},{folders}/home/masks/7.png"]))
    shown = name[:40].replace("\0", ".{1,4}")
    with pytest.raises(FileError, match=rf"1 files cannot be used; the first: .*{shown}.* give skip=True"):
        evaluated(folders, "none", train=listed)
    call = [
        "evaluate",
        "robustness",
        listed,
        "--task",
        "segmentation",
        "--segmenter",
        "unet-4",
        "--arm",
        "none",
    ]
    call += ["--size", SIDE, "--seeds", 1, "--epochs", 1, "--batch", 4]
    refused = command(*call, code=1)
    assert "give skip=True" in refused.stderr or "--skip" in refused.stderr
    told = command(*call, "--skip").stderr
    assert name[:40].partition("\0")[0] in told


def test_a_changed_mask_is_another_setting(folders, tmp_path):
    root = draw(tmp_path / "set", 3, 1, labels=(0, 1))
    out = tmp_path / "result.json"
    evaluated(folders, "none", tests=[root], out=out)
    (root / "masks" / "0.png").write_bytes((root / "masks" / "0.png").read_bytes() + b" ")
    with pytest.raises(ConfigError, match="domains set digest"):
        evaluated(folders, "none", tests=[root], out=out)


# The comparison.


def test_a_broken_off_comparison_goes_on(folders, tmp_path, monkeypatch):
    whole = evaluated(folders, "none", "jitter", seeds=2)
    done = []
    run = robustness.run_one

    def stop_at_third(job):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(job.key)
        return run(job)

    monkeypatch.setattr(robustness, "run_one", stop_at_third)
    out = tmp_path / "parts.json"
    with pytest.raises(KeyboardInterrupt):
        evaluated(folders, "none", "jitter", seeds=2, out=out)
    assert done == [("none", 0), ("jitter", 0)]
    monkeypatch.setattr(robustness, "run_one", lambda job: done.append(job.key) or run(job))
    assert scores(evaluated(folders, "none", "jitter", seeds=2, out=out)) == scores(whole)
    assert done[2:] == [("none", 1), ("jitter", 1)]
    settings = json.loads(out.read_text())["settings"]
    assert (settings["task"], settings["segmenter"], settings["void"]) == ("segmentation", "unet-4", None)
    assert "classifier" not in settings
    with pytest.raises(ConfigError, match=r"tolerance is 2\.0 there and 1\.0 here"):
        evaluated(folders, "none", out=out, task=Segmentation(segmenter="unet-4", tolerance=1.0))


@pytest.mark.slow
def test_another_process_finds_the_same(folders):
    other = evaluated(folders, "style:gin,splice=mask", seeds=1, jobs=2)  # whose one run is in a process
    assert scores(other) == scores(evaluated(folders, "style:gin,splice=mask", seeds=1))


def test_styles_by_region_and_protected_regions_are_arms(folders):
    arms = (
        "none",
        "regions=style:gin,splice=mask,parts=3,p=1",
        "kept=style:gin,p=1,preserve=.9,protect=mask",
    )
    found = scores(evaluated(folders, *arms))
    assert len({run["home"] for run, _ in found.values()}) == 3
    with pytest.raises(ConfigError, match=r"arm 'x': 'splice=mask' and 'protect=mask' go by the masks"):
        evaluate_robustness(folders, arms=["x=style:gin,splice=mask"])
    with pytest.raises(ConfigError, match="trivialaugment moves pixels"):
        evaluated(folders, "trivialaugment")


def test_corruptions_of_the_home_test(folders):
    result = evaluated(folders, "none", corruptions=("contrast",), severities=(1, 5))
    assert list(result.runs[0]["corrupted"]) == ["contrast 1", "contrast 5"]
    with pytest.raises(ConfigError, match="elastic_transform moves pixels"):
        evaluated(folders, "none", corruptions=("elastic_transform",))


@pytest.mark.parametrize(
    "options, said",
    [
        ({"task": "detection"}, "task must be one of classification, segmentation, got 'detection'"),
        ({"classifier": "squeezenet"}, "for masks give segmenter=NAME"),
        ({"balanced": True}, "balanced classes are for classification"),
        ({"weights": Path("x")}, "a folder of weights is for classifiers"),
        (
            {"classes": ("nucleus", "cell")},
            "classes of masks are label numbers, such as 0,1,2, got nucleus, cell",
        ),
        ({"classes": ("1",)}, "classes must be 2 to 254 different labels"),
        ({"classes": ("0", "1"), "task": Segmentation(void=1)}, "void=1 is also one of the classes"),
        (
            {"task": Segmentation(background=7)},
            "background=7 is none of the labels 0, 1; background=-1 counts",
        ),
        ({"task": Segmentation(segmenter="vnet")}, "unknown segmentation network 'vnet'; choose unet"),
        ({"held_out": 0.99}, "there are 10 images, too few to hold 0.99 of them out"),
    ],
)
def test_wrong_arguments_say_what_is_wrong(folders, options, said):
    with pytest.raises(ConfigError, match=said):
        evaluated(folders, "none", **options)


@pytest.mark.parametrize("options", [{"tolerance": -1}, {"tolerance": "wide"}, {"void": 0}])
def test_wrong_settings_of_the_task(options):
    with pytest.raises(ConfigError, match=r"tolerance|void and background are both 0"):
        Segmentation(**options)


# Networks.


def test_networks_by_name():
    for name, classes in (("unet", 2), ("unet-6", 5), ("torchvision:lraspp_mobilenet_v3_large", 3)):
        net = make_segmenter(name, classes, SIDE, pretrained=False)
        assert net.eval()(torch.rand(2, 3, SIDE, SIDE)).shape == (2, classes, SIDE, SIDE)
    assert make_segmenter("unet-4", 2, 17).eval()(torch.rand(1, 3, 17, 17)).shape == (1, 2, 17, 17)
    assert usual_segmentation_recipe("unet", pretrained=True).lr > 1e-3
    assert usual_segmentation_recipe("smp:Unet", pretrained=True).lr < 1e-3
    for name in ("torchvision:x", "monai:x", "unet-0", "unet-x"):
        with pytest.raises(ConfigError, match=r"x|at least 1"):
            make_segmenter(name, 2, SIDE)


@pytest.mark.slow
@pytest.mark.parametrize("name", MONAI)
def test_networks_of_monai(name):
    pytest.importorskip("monai")
    net = make_segmenter(f"monai:{name}", 3, 64)
    assert net.eval()(torch.rand(2, 3, 64, 64)).shape == (2, 3, 64, 64)


def test_networks_that_cannot_be_made(monkeypatch):
    pytest.importorskip("monai")
    with pytest.raises(ConfigError, match="monai:SegResNet cannot take images of 50 x 50 pixels"):
        make_segmenter("monai:SegResNet", 2, 50)
    for name, library, extra in (
        ("monai:UNet", "monai.networks", "monai"),
        ("smp:Unet", "segmentation_models_pytorch", "evaluation"),
    ):
        monkeypatch.setitem(sys.modules, library, None)
        with pytest.raises(MissingExtraError, match=rf"{name} needs .*styleaug\[{extra}\]"):
            make_segmenter(name, 2, SIDE)


# Pictures.


def test_pictures_of_best_median_and_worst(folders, tmp_path):
    out = tmp_path / "result.json"
    evaluated(folders, "none", "jitter/none", out=out, seeds=2)
    pictures = sorted((tmp_path / "result_overlays").iterdir())
    assert (
        len(pictures) == 2 and pictures[1].name == "none.png" and pictures[0].name.startswith("jitter_none-")
    )
    with Image.open(pictures[1]) as sheet:
        assert sheet.width == 3 * 2 * SIDE and sheet.height > 2 * 2 * SIDE
    assert pictures[1].stat().st_size < 100_000


def test_a_picture_that_cannot_be_written_does_not_cost_the_run(folders, tmp_path):
    out = tmp_path / "result.json"
    (tmp_path / "result_overlays").write_text("a file where the folder of pictures belongs")
    with pytest.warns(UserWarning, match="cannot be written"):
        found = evaluated(folders, "none", out=out)
    assert found.runs and json.loads(out.read_text())["runs"]


def test_best_median_and_worst_are_by_dice_and_leave_out_images_without_a_score():
    each = torch.tensor([0.2, float("nan"), 0.9, 0.5, 0.0])
    case = Case(torch.zeros(5), torch.zeros(5), (), Scored(0.4, each=each))
    assert order_of(case) == [("best", 2), ("median", 0), ("worst", 4)]
    empty = Case(torch.zeros(1), torch.zeros(1), (), Scored(0, each=torch.tensor([float("nan")])))
    assert order_of(empty) == []


def test_overlays_tint_the_answer_and_line_the_truth():
    image = torch.full((3, 8, 8), 100, dtype=torch.uint8)
    truth, given = torch.zeros(8, 8, dtype=torch.uint8), torch.zeros(8, 8, dtype=torch.uint8)
    truth[2:6, 2:6], given[:, 4:], truth[7] = 1, 1, VOID
    tile = overlaid(image, truth, given, 1)
    assert tile.shape == (16, 16, 3)
    assert (tile[0, 0] == 100).all() and (tile[15, 0] == 50).all()
    assert (tile[4, 4] != tile[6, 6]).any() and (tile[6, 6] == 100).all(), "a line around, not a filling"
    assert (tile[0, 12] != 100).any() and (tile[6, 10] == tile[0, 12]).all()


# The shell.


def test_the_command_prints_a_table_and_draws(folders, tmp_path, command):
    out = tmp_path / "sub" / "result.json"
    arguments = [
        "evaluate",
        "robustness",
        folders / "home",
        "--task",
        "segmentation",
        "--segmenter",
        "unet-4",
    ]
    arguments += ["--test", f"b={folders / 'other'}", "--arm", "none", "--arm", "r=style:gin,splice=mask"]
    arguments += ["--size", SIDE, "--batch", 4, "--epochs", 1, "--seeds", 1, "--threads", 1, "-o", out]
    told = command(*arguments)
    assert told.stdout.splitlines()[0].split()[:4] == ["arm", "seeds", "home", "b"]
    assert "home, 1, IoU" in told.stdout and "Dice in percent" in told.stdout
    assert "Segmentation network unet-4" in out.with_suffix(".md").read_text()
    assert {path.name for path in (out.parent / "result_overlays").iterdir()} == {"none.png", "r.png"}
    plan = command(*arguments[:-2], "--dry-run").stdout
    assert "segmentation network: unet-4; side 32" in plan


def test_wrong_commands_say_what_to_do(folders, tmp_path, command):
    start = ["evaluate", "robustness", folders / "home", "--arm", "none"]
    told = command(*start, "--void", 3, code=1)
    assert "void goes with --task segmentation" in told.stderr
    told = command(*start, "--arm", "style:gin,splice=mask", code=1)
    assert "'splice=mask' and 'protect=mask' go by the masks of the images" in told.stderr
    root = draw(tmp_path / "set", 6, 3, labels=(0, 1))
    Image.new("L", (36, SIDE), 7).save(root / "masks" / "2.png")
    start += ["--task", "segmentation", "--segmenter", "unet-4", "--size", SIDE, "--batch", 4, "--epochs", 1]
    start += ["--seeds", 1, "--threads", 1, "--test", root]
    told = command(*start, code=1)
    assert "label 7 is not among" in told.stderr and "--void 7" in told.stderr and "--skip" in told.stderr
    told = command(*start, "--skip")
    assert "skipped: " in told.stderr and "1 files skipped" in told.stderr
    assert "1 files skipped" not in command(*start, "--void", 7).stderr


def test_a_plan(folders):
    plan = plan_robustness(folders / "home", arms=["none"], recipe=RECIPE, threads=1, task=SMALL)
    assert plan.images == {"train": 10} and 0 < plan.seconds["none"] < 60
