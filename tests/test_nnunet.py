"""nnU-Net: the transform in batchgeneratorsv2's pipeline, and what the trainer styles of a batch."""

import json
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("nnunetv2")

from batchgeneratorsv2.transforms.nnunet.seg_to_onehot import MoveSegAsOneHotToDataTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import DownsampleSegForDSTransform
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from styleaug import OneOf, StyleAugment
from styleaug.errors import ConfigError, ImageError
from styleaug.transforms.nnunet import StyleTrainer, StyleTransform

SHAPES = [(1, 24, 20), (3, 24, 20), (4, 24, 20), (1, 6, 24, 20), (2, 6, 24, 20)]


def scans(*shape: int) -> torch.Tensor:
    """Make an image of mean 0 and deviation 1, as nnU-Net normalises them."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 2 - 0.5


def gin(**options) -> StyleTransform:
    return StyleTransform(generator="gin", strength=(0.3, 1), **{"p": 1.0, **options})


@pytest.mark.parametrize("shape", SHAPES)
def test_images_change_and_segmentations_pass(shape):
    image, segmentation = scans(*shape), torch.ones(1, *shape[1:])
    pipeline = ComposeTransforms(
        [gin(), DownsampleSegForDSTransform([[1.0] * (len(shape) - 1), [0.5] * (len(shape) - 1)])]
    )
    done = pipeline(image=image.clone(), segmentation=segmentation)
    assert done["image"].shape == image.shape and done["image"].dtype == image.dtype
    assert not torch.equal(done["image"], image) and done["image"].isfinite().all()
    assert [bool((part == 1).all()) for part in done["segmentation"]] == [True, True]


def test_draws_follow_torchs_seed_and_the_gate():
    image = scans(1, 24, 20)
    torch.manual_seed(2)
    first = gin()(image=image)["image"]
    torch.manual_seed(2)
    assert torch.equal(gin()(image=image)["image"], first)
    assert gin(p=0.0)(image=image)["image"] is not None
    assert torch.equal(gin(p=0.0)(image=image)["image"], image)
    half = gin(p=0.5)
    picked = sum(not torch.equal(half(image=image)["image"], image) for _ in range(60))
    assert 12 < picked < 48


def test_slices_of_a_volume_share_their_style():
    flat = scans(1, 1, 24, 20).expand(1, 5, 24, 20).contiguous()
    styled = gin()(image=flat)["image"]
    torch.testing.assert_close(styled, styled[:, :1].expand_as(styled), atol=1e-5, rtol=0)


def test_it_stands_among_the_hosts_own_transforms():
    image, segmentation = scans(1, 24, 20), torch.ones(2, 24, 20)
    pipeline = ComposeTransforms(
        [RandomTransform(gin(), apply_probability=1.0), MoveSegAsOneHotToDataTransform(1, [1, 2], True)]
    )
    done = pipeline(image=image, segmentation=segmentation)
    assert done["image"].shape == (3, 24, 20) and bool((done["image"][1] == 1).all())
    assert "gin" in repr(pipeline)


@pytest.mark.parametrize("given", [{"bank": "batch"}, {"bank": "art", "splice": "mask"}])
def test_options_that_need_more_are_refused(given):
    with pytest.raises(ConfigError, match="nnU-Net"):
        StyleTransform(**given)


def test_other_shapes_are_refused():
    with pytest.raises(ImageError, match=r"\(C, H, W\) or \(C, D, H, W\), got \(1, 20\)"):
        gin()(image=scans(1, 20))


def trainer(styles, *, channels: int, masked: list[bool], classes: int = 0) -> StyleTrainer:
    """Make a trainer that has read its styles, without a data set and a network."""
    made = StyleTrainer.__new__(StyleTrainer)
    made.device, made.styles = torch.device("cpu"), styles
    made.configuration_manager = SimpleNamespace(use_mask_for_norm=masked)
    made.is_cascaded = bool(classes)
    made.label_manager = SimpleNamespace(foreground_labels=list(range(1, classes + 1)))
    made.read_styles(inputs=channels + classes)
    return made


@pytest.mark.parametrize("size", [(24, 20), (6, 24, 20)])
def test_a_trainer_leaves_masks_of_a_cascade_and_what_is_outside(size):
    styles = OneOf([StyleAugment(generator=name, p=1.0, value_range="auto") for name in ("gin", "randconv")])
    made = trainer(styles, channels=2, masked=[True, False], classes=2)
    data = scans(5, 4, *size)
    data[:, :2, ..., :7] = 0
    data[:, 2:] = (data[:, 2:] > 0).float()
    styled = made.stylise(data.clone())
    assert torch.equal(styled[:, 2:], data[:, 2:])
    assert bool((styled[:, 0, ..., :7] == 0).all()) and bool((styled[:, 1, ..., :7] != 0).any())
    changed = (styled[:, :2] != data[:, :2]).flatten(1).any(1)
    assert bool(changed.all()) and styled.shape == data.shape


def test_a_step_trains_on_styled_images(monkeypatch):
    made = trainer({"generator": "tone-curves", "p": 0.5}, channels=1, masked=[False])
    seen = []
    monkeypatch.setattr(nnUNetTrainer, "train_step", lambda self, batch: seen.append(batch) or {"loss": 0})
    data, target = scans(40, 1, 24, 20), [torch.zeros(40, 1, 24, 20)]
    made.train_step({"data": data, "target": target, "keys": ["a"]})
    changed = (seen[0]["data"] != data).flatten(1).any(1).float().mean()
    assert 0.2 < changed < 0.8 and seen[0]["target"] is target and seen[0]["keys"] == ["a"]


def test_the_example_runs(capsys):
    example = Path(__file__).parents[1] / "examples" / "nnunet_trainer.py"
    names = runpy.run_path(str(example), run_name="__main__")
    told = capsys.readouterr().out
    assert "the segmentation by 0.0" in told and "changed by 0.00" not in told
    assert issubclass(names["nnUNetTrainerStyle"], nnUNetTrainer)


@pytest.mark.slow
def test_the_real_trainer_trains_and_its_cost_is_measured(tmp_path):
    folder, out = Path(__file__).parents[1] / "benchmarks", tmp_path / "nnunet.json"
    words = [
        sys.executable,
        "nnunet.py",
        "--rounds",
        "1",
        "--configurations",
        "3d_fullres",
        "--out",
        str(out),
    ]
    subprocess.run(words, cwd=folder, check=True)
    rows = json.loads(out.read_text())["rows"]
    assert list(rows) == [f"3d_fullres, {name}" for name in ("none", "gin", "art")]
    assert all(row["batch"] == "2x1x16x64x64" for row in rows.values())
    trained = json.loads(out.read_text())["training"]["3d_fullres"]
    assert -1 < trained["train_loss"] < 5 and 0 <= trained["validation_dice"] <= 1
