"""Numbers, banks and options as users first give them: no number is refused, no option ignored in silence."""

import math
from pathlib import Path

import albumentations as A
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from specimens import bank, generator, photo, pil

import styleaug
from styleaug import (
    BankError,
    ConfigError,
    ImageError,
    Mix,
    Preserve,
    Splice,
    StyleAugment,
    StyleVideo,
    WeightsError,
    fit_style,
)
from styleaug.checks import check_count, check_number, check_seed, check_share, check_switch, number
from styleaug.transforms.albumentations import StyleAugment as AlbumentationsStyle
from styleaug.transforms.kornia import RandomStyle
from styleaug.transforms.monai import RandStyle

SAMPLES = Path(styleaug.__file__).parent.parent / "pretrained" / "samples"
FORMS = {
    "int": int,
    "int8": np.int8,
    "int64": np.int64,
    "uint16": np.uint16,
    "0-d array": lambda value: np.array(value, dtype=np.int32),
    "0-d tensor": lambda value: torch.tensor(value),
}
FRACTIONS = {
    "float": float,
    "float16": np.float16,
    "float32": np.float32,
    "float64": np.float64,
    "0-d array": lambda value: np.array(value, dtype=np.float32),
    "0-d tensor": lambda value: torch.tensor(value),
    "bfloat16": lambda value: torch.tensor(value, dtype=torch.bfloat16),
}
NO_NUMBERS = [
    True,
    np.True_,
    torch.tensor(True),
    "0.5",
    b"1",
    0.5 + 0j,
    np.complex64(1),
    math.nan,
    np.float32("nan"),
    None,
    [0.5],
    np.array([0.5]),
    torch.ones(1),
    {},
]


@pytest.mark.parametrize("form", FORMS)
def test_whole_numbers_of_any_library_count(form):
    three = FORMS[form](3)
    assert number(three) == 3 and type(number(three)) is int
    assert check_count("x", three) == check_seed(three) == 3
    assert check_number("x", three, 0, 4) == 3.0
    with pytest.raises(ConfigError, match="x must be a whole number from 4, got"):
        check_count("x", three, least=4)


@given(st.sampled_from(sorted(FRACTIONS)), st.sampled_from([0.0, 0.25, 0.5, 1.0]))
def test_fractions_of_any_library_count(form, value):
    given_as = FRACTIONS[form](value)
    assert check_share("x", given_as) == value and type(check_share("x", given_as)) is float
    with pytest.raises(ConfigError, match="whole number"):
        check_count("x", given_as, least=-1)


@pytest.mark.parametrize("value", NO_NUMBERS, ids=lambda value: f"{type(value).__name__} {value!r}")
def test_all_else_is_no_number(value):
    found = number(value)
    assert found is None or math.isnan(found)
    with pytest.raises(ConfigError, match=r"x must be a number in \[0, 1\], got"):
        check_share("x", value)
    with pytest.raises(ConfigError, match="x must be a whole number from 1, got"):
        check_count("x", value)
    with pytest.raises(ConfigError, match="seed must be a whole number"):
        check_seed(value)
    with pytest.raises(ConfigError, match="p must be a number"):
        StyleAugment(bank("reinhard-rgb"), p=value)
    if value is not None:
        with pytest.raises(ConfigError, match="strength must be"):
            StyleAugment(bank("reinhard-rgb"), strength=value)


def test_switches_are_true_or_false():
    assert check_switch("x", np.True_) is True and check_switch("x", torch.tensor(False)) is False
    for value in (1, 0, "yes", None, np.array([True])):
        with pytest.raises(ConfigError, match="x must be True or False"):
            check_switch("x", value)
    with pytest.raises(ConfigError, match="compiled must be True or False, got 'no'"):
        StyleAugment(bank("reinhard-rgb"), compiled="no")


@pytest.mark.parametrize("share", FRACTIONS)
@pytest.mark.parametrize("whole", ["int64", "0-d tensor"])
def test_every_adapter_takes_them(share, whole):
    half, three = FRACTIONS[share](0.5), FORMS[whole](3)
    made_of = bank("reinhard-rgb")
    options = {"strength": half, "preserve": half, "least_side": three, "value_range": (half, three)}
    several = {"splice": Splice("halves", parts=three), "sampler": Mix(three)}
    augment = StyleAugment(made_of, p=half, **options, **several)
    assert augment.p == 0.5 and augment.strength == (0.5, 0.5)
    assert augment.parts == augment.sampler.components == augment.least_side == 3
    assert type(augment.splice.parts) is type(augment.sampler.components) is int
    assert augment.preserve == Preserve(0.5) and augment.value_range == (0.5, 3.0)
    assert RandomStyle(made_of, p=half, p_batch=half, **options).p == 0.5
    assert RandStyle(made_of, prob=half, **options).prob == 0.5
    host = AlbumentationsStyle(made_of, p=half, **options, **several)
    assert (host.p, host.preserve, host.sampler, host.least_side) == (0.5, 0.5, {"components": 3}, 3)
    assert host.splice == {"kind": "halves", "parts": 3}
    assert StyleVideo(made_of, p=half, strength=half, smoothing=half, reuse=half, flow=None).reuse == 0.5


def test_pairs_may_be_arrays():
    for pair in ([0.25, 0.5], (0.25, 0.5), np.array([0.25, 0.5]), torch.tensor([0.25, 0.5])):
        augment = StyleAugment(bank("reinhard-rgb"), strength=pair, value_range=pair)
        assert augment.strength == augment.value_range == (0.25, 0.5)
    for pair in ("ab", {0: 1, 1: 2}, np.ones((2, 2)), [0.1, 0.2, 0.3], [0.1]):
        with pytest.raises(ConfigError, match="strength must be a number or"):
            StyleAugment(bank("reinhard-rgb"), strength=pair)
        with pytest.raises(ConfigError, match="value_range must be None"):
            StyleAugment(bank("reinhard-rgb"), value_range=pair)


def test_tools_take_them(tmp_path):
    one, some = np.int64(1), torch.tensor(2)
    fit = fit_style(
        [pil(seed=n) for n in range(4)], min_images=one, max_styles=some, patches=one, seed=np.uint8(3)
    )
    assert len(fit.bank) == 2 and fit.bank.provenance.min_images == 1
    pil().save(tmp_path / "a.png")
    styleaug.preview(
        [tmp_path / "a.png"], tmp_path / "p.jpg", bank=fit.bank, styles=some, size=np.int16(16), most=one
    )
    (tmp_path / "in").mkdir()
    pil().save(tmp_path / "in" / "a.png")
    applied = styleaug.apply_folder(
        tmp_path / "in",
        tmp_path / "out",
        bank=fit,
        copies=some,
        seed=one,
        workers=np.int64(0),
        strength=np.float32(1),
    )
    assert applied.written == 2
    for name in ("copies", "workers", "seed"):
        for value in (True, 1.5, "1", -(2**70)):
            with pytest.raises(ConfigError, match=f"{name} must be a whole number"):
                styleaug.apply_folder(tmp_path / "in", tmp_path / "other", bank=fit, **{name: value})
    for name in ("max_styles", "patches", "min_images", "seed"):
        with pytest.raises(ConfigError, match=f"{name} must be a whole number"):
            fit_style([pil()], **{"min_images": 1, name: 1.5})


def test_a_generator_in_the_place_of_a_bank():
    named = StyleAugment("adain")
    assert named.home.name == "adain" and len(named.bank) == 256
    assert StyleAugment("hed-jitter").bank is None
    network = generator("hed-jitter")
    assert StyleAugment(network).home is network
    assert StyleAugment("adain", generator="adain").home.name == "adain"
    with pytest.raises(BankError, match=r"no bank is known for this generator .reinhard-lab.*Fit one"):
        StyleAugment("reinhard-lab")
    with pytest.raises(BankError, match=r"'adain' is a generator, too; give it or generator='photo'"):
        StyleAugment("adain", generator="photo")
    with pytest.raises(BankError, match="'adain' is a generator, not a bank"):
        styleaug.load_bank("adain")
    with pytest.raises(BankError, match="Did you mean 'art'"):
        StyleAugment("Art")
    with pytest.raises(WeightsError, match="Did you mean 'reinhard-lab'"):
        StyleAugment(generator="reinhard_lab")


def test_a_bank_in_the_place_of_a_generator():
    for given_as in ("art", bank("reinhard-rgb")):
        with pytest.raises(WeightsError, match="is a bank; give it as bank, and leave out generator"):
            StyleAugment(generator=given_as)
    with pytest.raises(WeightsError, match="'art' is a bank, not a generator"):
        styleaug.load_generator("art")
    shipped = SAMPLES.parent
    with pytest.raises(WeightsError, match="holds a bank of styles, not a generator; give it as bank"):
        StyleAugment(generator=shipped / "art.safetensors")
    with pytest.raises(BankError, match="holds a generator, not styles; give it as generator"):
        StyleAugment(shipped / "adain.safetensors")


@pytest.mark.parametrize("make", [StyleAugment, AlbumentationsStyle, StyleVideo])
def test_a_fit_is_a_bank_and_images_are_none(make):
    options = {"flow": None} if make is StyleVideo else {}
    fit = fit_style([pil(seed=n) for n in range(3)], min_images=1)
    made = make(fit, **options)
    assert getattr(made, "stylizer", made).bank == fit.bank
    for images in (
        [pil()],
        pil(),
        np.ones((4, 4, 3)),
        torch.rand(2, 3, 8, 8),
        [SAMPLES / "coffee.jpg"],
        3,
        {},
    ):
        with pytest.raises(BankError, match=r"got \w+. Fit one to images: StyleAugment\(fit_style\(images"):
            make(images, **options)
    with pytest.raises(BankError, match=r"is an image. Fit a bank to it: styleaug fit-style"):
        make(SAMPLES / "coffee.jpg", **options)
    with pytest.raises(BankError, match="fit a bank from the images in one with: styleaug fit-style"):
        make(SAMPLES, **options)


def test_arrays_are_told_how_to_become_tensors():
    array = photo(8, 8).permute(1, 2, 0).numpy()
    for sample in (array, {"image": array}, (array, 3)):
        with pytest.raises(ImageError, match=r"make a tensor: torch.from_numpy\(array\).permute\(2, 0, 1\)"):
            StyleAugment(bank("reinhard-rgb"), p=1.0)(sample)
    with pytest.raises(ImageError) as error:
        StyleAugment(bank("reinhard-rgb"), p=1.0)({"label": 3})
    assert "from_numpy" not in str(error.value)


def test_reprs_say_everything_once():
    augment = StyleAugment(bank("reinhard-rgb"), p=0.5, preserve=0.9, blend="color")
    assert repr(augment) == (
        "StyleAugment(StyleBank(5 styles of 6 floats, generator='reinhard-rgb'), p=0.5, strength=(1.0, 1.0), "
        "sampler='uniform', blend='color', preserve=Preserve(0.9))"
    )
    for shown in (
        augment,
        StyleVideo(bank("reinhard-rgb"), flow=None),
        RandomStyle(bank("reinhard-rgb")),
        StyleAugment("hed-jitter"),
    ):
        assert repr(shown).count("p=") == 1 and repr(shown).count("sampler") == 1, repr(shown)
    assert "hed-jitter" in repr(StyleAugment("hed-jitter"))
    assert repr(A.Compose([AlbumentationsStyle("art")])).count("bank") == 1
