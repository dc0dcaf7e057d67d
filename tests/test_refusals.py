"""What a transform refuses: each time with an error of ours that says what to do."""

from pathlib import Path

import numpy as np
import pytest
import torch
from specimens import bank, generator, photos, pil, tiny_adain

from styleaug import (
    BankError,
    ConfigError,
    DeviceError,
    ImageError,
    StyleAugment,
    Weighted,
    WeightsError,
)
from styleaug.transforms.augment import check_worker


def tiny(make: type = StyleAugment, **options):
    return make(bank(), **{"p": 1.0, "generator": generator("tiny-adain"), **options})


def test_banks_of_another_generator_are_refused():
    with pytest.raises(BankError, match=r"made by generator 'tiny|'adain'.*not by 'reinhard-lab'"):
        StyleAugment(bank(), generator="reinhard-lab")
    with pytest.raises(BankError, match=r"with other weights or settings.*fit-style FOLDER"):
        StyleAugment(bank(), generator=tiny_adain(seed=1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"p": 1.5}, "p must be"),
        ({"p": float("nan")}, "p must be"),
        ({"p": True}, "p must be"),
        ({"p": "0.5"}, "p must be"),
        ({"strength": -0.1}, "strength must be"),
        ({"strength": (0.5, 1.1)}, "strength must be"),
        ({"strength": (0.9, 0.1)}, "low <= high"),
        ({"strength": (0.1, 0.2, 0.3)}, "strength must be"),
        ({"strength": "high"}, "strength must be"),
        ({"sampler": "gauss"}, "choose from uniform"),
        ({"sampler": "weighted"}, "needs weights"),
        ({"sampler": Weighted([1.0, 2.0])}, "one per style"),
        ({"sampler": "weighted", "weights": [0.0] * 5}, "not all zero"),
        ({"sampler": "mix", "components": 0}, "components must be a whole number from 1"),
        ({"splice": "thirds"}, "splice must be None, a Splice or one of halves, fields, mask"),
        ({"splice": "halves", "parts": 1}, "parts must be a whole number from 2, got 1"),
        ({"splice": "halves", "parts": 2.5}, "parts must be"),
        ({"splice": "halves", "parts": True}, "parts must be"),
        ({"parts": 3}, "parts and keep go with splice"),
        ({"keep": True}, "parts and keep go with splice"),
    ],
)
def test_bad_arguments_are_refused_at_once(options, message):
    with pytest.raises(ConfigError, match=message):
        tiny(**options)


def test_unknown_names_are_refused_at_once():
    with pytest.raises(BankError, match="no bank 'nonsense'"):
        StyleAugment("nonsense")
    with pytest.raises(BankError, match=r"missing\.safetensors"):
        StyleAugment(Path("missing.safetensors"))
    with pytest.raises(WeightsError, match="no generator 'nonsense'"):
        StyleAugment(bank(), generator="nonsense")


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.full((3, 8, 8), torch.nan), "must be finite, got NaN: 192 of 192 values"),
        (torch.full((3, 8, 8), 255.0), r"got \[255, 255\]"),
        (torch.full((3, 8, 8), -0.5, dtype=torch.float64), "Stylise before Normalize"),
        (torch.rand(17, 8, 8), "at most 16 channels, got 17"),
        (torch.rand(2, 24, 32, 3), "at most 16 channels, got 24"),
        (torch.zeros(3, 8, 8, dtype=torch.int64), "uint8, uint16 or float"),
        (torch.zeros(3, 8, 8, dtype=torch.bool), "uint8, uint16 or float"),
        (torch.rand(8, 8), r"\(C, H, W\) or \(B, C, H, W\)"),
        (torch.rand(3, 0, 8), "at least one pixel"),
        (np.zeros((3, 24, 32), np.uint8), "at most 16 channels, got 32"),
        (np.zeros((8, 8), np.int32), r"got torch.int32.*value_range=\(low, high\)"),
        (torch.zeros(1, 8, 8, dtype=torch.int16), r"such as \(-160, 240\) for CT in HU"),
        (np.zeros(8, np.uint8), r"\(H, W\)"),
        (np.zeros((8, 8), object), "uint8, uint16 or float"),
        (pil().convert("CMYK"), r"got 'CMYK'. Use image.convert"),
        (pil().convert("P"), "got 'P'"),
        ("image.png", "got str"),
        (None, "got NoneType"),
    ],
)
def test_what_is_no_image_is_refused(image, message):
    augment = tiny()
    with pytest.raises(ImageError, match=message):
        augment.apply(image, augment.draw(1))


def test_rounding_beyond_the_range_is_no_error():
    images = photos(2)
    images[0, 0, 0, 0], images[1, 0, 0, 0] = -5e-4, 1 + 5e-4
    styled = tiny(strength=0.1)(images)
    assert styled.min() >= 0 and styled.max() <= 1


def test_parameters_of_a_larger_batch_are_refused():
    augment = tiny()
    with pytest.raises(ImageError, match="larger batch than the 2 rows"):
        augment.apply(photos(2), augment.make_params(photos(3)))


def test_cuda_in_a_worker_is_named(monkeypatch):
    check_worker(torch.device("cuda"))  # outside of workers all is well
    monkeypatch.setattr("styleaug.transforms.augment.get_worker_info", lambda: object())
    check_worker(torch.device("cpu"))
    with pytest.raises(DeviceError, match="StyleLoader"):
        check_worker(torch.device("cuda"))
