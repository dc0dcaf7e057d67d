"""What styling does to labels is measured as it was made: nothing is nothing, 0.4 px are 0.4 px."""

import json
import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from styleaug import ConfigError, FileError
from styleaug.evaluation.decisions import Rate, count_flips, mild_jitter
from styleaug.evaluation.displacement import (
    border_profile,
    displacements,
    edge_map,
    measure,
    phase_shift,
    profile_shift,
)
from styleaug.evaluation.labels import RULES, evaluate_labels, judge
from styleaug.evaluation.pairs import read_mask_files
from styleaug.generators.base import AbstractGenerator
from styleaug.robustness.classifier_training import Recipe


class Change(AbstractGenerator):
    """Does one thing to every image, whatever the code."""

    code_length = 1
    has_prior = True

    def __init__(self, name: str):
        super().__init__()
        self.name = name

    def encode_style(self, images: Tensor) -> Tensor:
        """Read nothing."""
        return torch.zeros(len(images), 1)

    def forward(self, images: Tensor, codes: Tensor, strength: Tensor) -> Tensor:
        """Change nothing, invert, or flatten."""
        changed = {"same": images, "inverse": 1 - images, "flat": 0.25 + images / 2}[self.name]
        return torch.lerp(images, changed, strength[:, None, None, None])


def scenes(count: int, side: int, *, seed: int = 0) -> Tensor:
    """Make pictures with soft edges everywhere, finer than a window."""
    rng = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, side // 6, side // 6, generator=rng)
    return F.interpolate(coarse, size=(side, side), mode="bicubic").clamp(0, 1)


def moved(images: Tensor, down: float, right: float) -> Tensor:
    """Shift by a share of a pixel, in the Fourier domain."""
    rows, columns = (torch.fft.fftfreq(length) for length in images.shape[-2:])
    phase = torch.exp(-2j * torch.pi * (rows[:, None] * down + columns * right))
    return torch.fft.ifft2(torch.fft.fft2(images) * phase).real.clamp(0, 1)


# Displacement


@pytest.mark.parametrize(("down", "right"), [(0.4, 0.0), (0.0, -0.44), (1.34, -0.76), (-3.25, 2.5)])
def test_a_known_displacement_is_measured(down, right):
    images = scenes(4, 160)
    one, other = (x[..., 16:144, 16:144] for x in (images, moved(images, down, right)))
    shift, height = phase_shift(edge_map(one), edge_map(other))
    assert (shift - torch.tensor([down, right])).abs().max() < 0.02
    assert height.min() > 0.8
    found = displacements(one, other)
    size = (down**2 + right**2) ** 0.5  # of a large one, windows see a little less: its content leaves them
    assert found.matched == 1 and found.local.median() == pytest.approx(size, abs=0.03 + 0.02 * size)


def test_it_agrees_with_scikit_image():
    from skimage.registration import phase_cross_correlation

    images = scenes(3, 128)
    one, other = edge_map(images), edge_map(moved(images, 2.3, -1.6))
    shift, _ = phase_shift(one, other)
    for own, a, b in zip(shift, one, other, strict=True):
        window = torch.hann_window(126, periodic=False)
        maps = [((x - x.mean()) * window * window[:, None]).numpy() for x in (b, a)]
        theirs, *_ = phase_cross_correlation(*maps, upsample_factor=50)
        assert own.tolist() == pytest.approx(theirs.tolist(), abs=0.1)


def test_what_shares_nothing_is_not_matched():
    one, other = scenes(4, 128, seed=1), scenes(4, 128, seed=2)
    _, height = phase_shift(edge_map(one), edge_map(other))
    assert height.max() < 0.3
    assert displacements(one, other).matched < 0.2


def test_flat_images_have_no_edges_to_move():
    flat = torch.full((2, 3, 80, 80), 0.5)
    found = displacements(flat, flat)
    assert len(found.local) == 0 and found.matched != found.matched
    assert found.whole.isfinite().all()


def disc(radius: float) -> Tensor:
    """Fill a disc of 96 pixels."""
    at = torch.arange(96) - 47.5
    return (torch.hypot(at[:, None], at) < radius).float()


def test_an_edge_that_leaves_its_mask_is_measured():
    mask = disc(30)[None].bool()
    pictures = [F.avg_pool2d(disc(r).expand(1, 3, -1, -1), 3, 1, 1) for r in (30, 32, 29)]
    own, outwards, inwards = (border_profile(edge_map(picture), mask[:, 1:-1, 1:-1]) for picture in pictures)
    assert profile_shift(own, own) == 0
    assert profile_shift(own, outwards) == pytest.approx(2, abs=0.35)
    assert profile_shift(own, inwards) == pytest.approx(-1, abs=0.35)


# Contrast


def test_identity_keeps_everything():
    images = scenes(3, 96)
    found = measure(images, images, (disc(30).bool().expand(3, -1, -1), torch.tensor([True, False, True])))
    assert found["moved_95"] < 1e-3 and found["matched"] == 1 and found["border_95"] == 0
    for name in ("edges", "contrast", "contrast_worst", "border_contrast"):
        assert found[name] == pytest.approx(1, abs=1e-4)


def test_half_the_contrast_is_half():
    images = scenes(3, 96)
    found = measure(images, 0.25 + images / 2)
    assert found["contrast"] == pytest.approx(0.5, abs=0.02)
    assert found["contrast_worst"] == pytest.approx(0.5, abs=0.02)
    assert found["moved_95"] < 0.01 and "border" not in found


def test_a_part_without_contrast_is_the_worst_tenth():
    images = scenes(3, 96)
    styled = torch.cat([0.4 + images[..., :20] / 5, images[..., 20:]], dim=3)
    found = measure(images, styled)
    assert found["contrast"] == pytest.approx(1, abs=0.02)
    assert found["contrast_worst"] == pytest.approx(0.2, abs=0.1)


# Decisions


def test_flips_are_counted_apart():
    before, after = torch.tensor([0, 0, 1, 1, 2, 2]), torch.tensor([0, 1, 1, 2, 2, 0])
    found = count_flips(before, after, torch.tensor([0, 0, 1, 0, 0, 0]))
    assert found.all == Rate(3, 6)
    assert found.right == Rate(1, 3) and found.wrong == Rate(2, 3)
    assert found.telling == found.right
    assert count_flips(before, after).telling == Rate(3, 6)
    assert Rate(0, 0).to_dict()["share"] is None


def test_jitter_is_mild_and_leaves_the_generator_alone():
    images, state = scenes(4, 48), torch.get_rng_state()
    jittered = mild_jitter(images, 0)
    assert torch.equal(torch.get_rng_state(), state)
    assert 0.005 < (jittered - images).abs().mean() < 0.1
    assert torch.equal(mild_jitter(images, 0), jittered)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_each_rule_decides_by_itself(rule):
    key = {
        "moved": "moved_95", "lost edges": "matched", "contrast": "contrast", "faint": "contrast_worst",
        "border": "border_95",
    }  # fmt: skip

    def word(value: float) -> tuple[str, str]:
        kept = 1 - value if rule.name in ("lost edges", "contrast", "faint") else value
        figures = {"moved_95": 0.0, "matched": 1.0, "contrast": 1.0, "contrast_worst": 1.0}
        if rule.name != "flips":
            figures[key[rule.name]] = kept
        found = judge(value if rule.name == "flips" else 0.0, figures)
        return found.word, found.because

    assert word(0.9 * rule.careful) == ("safe", "")
    assert word((rule.careful + rule.unsafe) / 2) == ("careful", rule.name)
    assert word(rule.unsafe + 0.01) == ("unsafe", rule.name)


# All of it


def bright(images: Tensor) -> Tensor:
    """Decide between dark and bright."""
    mean = images.mean(dim=(1, 2, 3))
    return torch.stack([0.5 - mean, mean - 0.5], dim=1) * 20


def save(images: Tensor, folder: Path) -> Path:
    """Write pictures."""
    folder.mkdir(parents=True)
    for number, image in enumerate((images * 255).round().byte()):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{number:02}.png")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Dark and bright pictures, with a disc as mask of the dark ones."""
    root = tmp_path_factory.mktemp("labels")
    save(scenes(12, 66) * 0.6, root / "images" / "dark")
    save(1 - scenes(12, 66, seed=5) * 0.6, root / "images" / "bright")
    masks = root / "masks" / "dark"
    masks.mkdir(parents=True)
    for number in range(12):
        Image.fromarray((disc(20)[15:81, 15:81] * 128).byte().numpy()).save(masks / f"{number:02}.png")
    return root


def test_identity_flips_nothing_and_inversion_all(folder, tmp_path):
    files = sorted((folder / "images").rglob("*.png"))
    labels = {
        path.relative_to(folder / "images").as_posix(): int(path.parent.name == "bright") for path in files
    }
    found = evaluate_labels(
        folder / "images",
        generators=[Change("same"), Change("inverse"), Change("flat")],
        strengths=(0.2, 1.0),
        classifier=bright,
        labels=labels,
        masks=folder / "masks",
        size=64,
    )
    rows = {(row.name, row.strength): row for row in found.rows}
    same = rows["same", 1.0]
    assert same.flips.all == Rate(0, 24) and same.verdict.word == "safe"
    assert same.figures["moved_95"] == pytest.approx(0, abs=1e-3)
    assert rows["inverse", 1.0].flips.right == Rate(24, 24) and rows["inverse", 1.0].verdict.word == "unsafe"
    assert rows["inverse", 1.0].figures["contrast"] < 0  # what was bright is dark
    assert rows["flat", 1.0].flips.all.hits == 0 and "contrast" in rows["flat", 1.0].verdict.because
    assert rows["flat", 0.2].figures["contrast"] == pytest.approx(0.9, abs=0.03)
    assert found.accuracy == 1 and found.masks == 12 and found.jitter.all.hits < 6
    worst = found.to_dict()["worst"][0]
    assert worst["name"] == "inverse" and worst["right"]
    found.save_sheet(tmp_path / "worst.png")
    with Image.open(tmp_path / "worst.png") as sheet:
        assert sheet.width > 4 * 160
    assert json.loads(found.save(tmp_path / "labels.json").read_text())["images"] == 24
    table = found.table()
    assert "mild jitter" in table and all(rule.name in table for rule in RULES)


def test_a_classifier_can_be_trained_here(folder):
    state = torch.get_rng_state()
    found = evaluate_labels(
        folder / "images",
        generators=[Change("same")],
        strengths=(1.0,),
        classifier="trained",
        recipe=Recipe(side=32, epochs=12, lr=4e-3),
        size=64,
    )
    assert found.images == 8  # a third of each class, which it has not seen
    assert found.accuracy is not None and found.accuracy >= 0.75
    assert found.rows[0].flips.all == Rate(0, 8)
    assert torch.equal(torch.get_rng_state(), state)


def test_masks_find_their_images(folder):
    masks, known = read_mask_files(folder / "masks", ["dark/03.png", "bright/03.png"], 64)
    assert known.tolist() == [True, False]
    assert masks[0].float().mean() == pytest.approx(3.14159 * 20**2 / 66**2, abs=0.02)
    with pytest.raises(ConfigError, match="no mask"):
        read_mask_files(folder / "masks", ["dark/99.png"], 64)


def test_masks_without_folders_are_found_by_name(folder):
    _, known = read_mask_files(folder / "masks" / "dark", ["any/03.png", "any/77.png"], 64)
    assert known.tolist() == [True, False]


def test_bad_inputs(folder, tmp_path):
    images = folder / "images"
    with pytest.raises(ConfigError, match="strengths"):
        evaluate_labels(images, strengths=(0.0, 1.0), classifier=bright)
    with pytest.raises(ConfigError, match="size"):
        evaluate_labels(images, size=4, classifier=bright)
    with pytest.raises(ConfigError, match="unknown classifier"):
        evaluate_labels(images, generators=[Change("same")], classifier="nothing")
    with pytest.raises(ConfigError, match="logits"):
        evaluate_labels(images, generators=[Change("same")], classifier=lambda x: x, size=32)
    with pytest.raises(ConfigError, match="training mode"):
        evaluate_labels(images, generators=[Change("same")], classifier=torch.nn.Flatten(), size=32)
    with pytest.raises(ConfigError, match="labels lack"):
        evaluate_labels(images, generators=[Change("same")], classifier=bright, labels={}, size=32)
    with pytest.raises(FileError, match="folder per class"):
        evaluate_labels(images / "dark", generators=[Change("same")], classifier="trained", size=32)
    with pytest.raises(FileError):
        evaluate_labels(tmp_path / "none", generators=[Change("same")], classifier=bright)


@pytest.mark.slow
def test_command(command, folder, tmp_path):
    out, sheet = tmp_path / "labels.json", tmp_path / "worst.png"
    told = command(
        "evaluate", "labels", folder / "images", "--generator", "reinhard-rgb", "--strength", 1,
        "--classifier", "trained", "--masks", folder / "masks", "--size", 32, "-o", out, "--sheet", sheet,
    )  # fmt: skip
    found = json.loads(out.read_text())
    assert len(found["rows"]) == 1 and found["rows"][0]["verdict"] in told.stdout
    assert sheet.exists()
    missing = command("evaluate", "labels", tmp_path / "x", "--classifier", "trained", code=1)
    assert "there is no folder" in missing.stderr


def test_imagenet_classifier_is_right_about_photos(data):
    weights = os.environ.get("STYLEAUG_WEIGHTS")
    if not weights:
        pytest.skip("needs SqueezeNet's weights; set STYLEAUG_WEIGHTS")
    from styleaug.evaluation.decisions import decide, imagenet_classifier
    from styleaug.evaluation.pairs import read_square

    network, classes = imagenet_classifier("squeezenet", Path(weights), torch.device("cpu"))
    files = sorted((data / "content/imagenet_eli").glob("*.jpg"))[:12]
    images = torch.stack([read_square(path, 224) for path in files])
    found = decide(network, images, torch.device("cpu")).argmax(1).tolist()
    names = [path.stem.split("_", 1)[1].replace("_", " ") for path in files]
    assert sum(classes[row].lower() == name.lower() for row, name in zip(found, names, strict=True)) >= 6


def test_a_downloaded_classifier_sees_the_size_and_the_range_it_wants(monkeypatch):
    from styleaug.evaluation import decisions

    class Mean(torch.nn.Module):
        """Gives the mean and the side of what it sees."""

        def forward(self, images: Tensor) -> Tensor:
            return torch.stack([images.mean(dim=(1, 2, 3)), torch.full((len(images),), images.shape[-1])], 1)

    monkeypatch.setattr(decisions, "downloaded", lambda make, name: Mean())
    network, classes = decisions.imagenet_classifier("mobilenet_v2", None, torch.device("cpu"))
    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    assert network(mean.expand(2, -1, 60, 60))[0].tolist() == pytest.approx([0, 224], abs=1e-5)
    assert len(classes) == 1000
