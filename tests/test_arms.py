"""What is done to training images, from one line of text."""

import warnings

import pytest
import torch
from specimens import bank, generator, photos, pil
from torchvision.transforms.v2 import functional as tv

from styleaug.errors import BankError, ConfigError, StyleAugError
from styleaug.robustness.arms import (
    STEPS,
    Arm,
    color_jitter,
    contrasted,
    lose_detail,
    parse_arm,
    saturated,
    scaled,
    turned,
)
from styleaug.weights import save_generator

PLAIN = [
    "jitter", "grey", "blur", "trivialaugment", "randaugment", "augmix", "prime", "erasing", "channel-swap",
    "preset:unknown",
]  # fmt: skip


@pytest.fixture
def references(tmp_path):
    for name in ("red", "grey"):
        (tmp_path / name / "class").mkdir(parents=True)
        for seed in range(3):
            pil(size=(40, 30), seed=seed).save(tmp_path / name / "class" / f"{seed}.png")
    return tmp_path


@pytest.fixture
def bank_file(tmp_path):
    tiny = generator("reinhard-rgb")
    assert tiny.name == "reinhard-rgb"
    return bank("reinhard-rgb").save(tmp_path / "bank.safetensors")


@pytest.mark.parametrize("spec", [*PLAIN, "none", "jitter+grey/blur", "style:reinhard-lab/none+jitter,p=.5"])
def test_an_arm_keeps_shape_and_range_and_repeats(spec):
    spec = spec.replace("style:reinhard-lab", "channel-swap")
    images = photos(6, 32, 32)
    before = images.clone()
    first, second = Arm(spec, seed=3), Arm(spec, seed=3)
    once, twice = [first(images) for _ in range(2)], [second(images) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(once, twice, strict=True))
    assert torch.equal(images, before)
    assert once[0].shape == images.shape
    assert once[0].dtype == torch.float32
    assert once[0].min() >= 0 and once[0].max() <= 1
    if spec != "none":
        assert not torch.equal(once[0], once[1]), "draws go on"


@pytest.mark.parametrize("spec", [*PLAIN, "none"])
def test_an_arm_leaves_the_global_generator_alone(spec):
    arm = Arm(spec)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    arm(photos(4, 32, 32))
    assert torch.equal(torch.rand(3), expected)


def test_none_is_the_same_object():
    images = photos(2)
    assert Arm("none")(images) is images


def test_each_row_goes_to_one_alternative():
    images = torch.full((400, 3, 4, 4), 0.5)
    images[:, 0] = 0.8
    arm = Arm("grey,p=1/none")
    styled = (arm(images) != images).flatten(1).any(1)
    assert 150 < int(styled.sum()) < 250


def test_alternatives_without_weights_are_drawn_as_ever():
    images = torch.full((50, 3, 4, 4), 0.5)
    images[:, 0] = 0.8
    torch.manual_seed(6)
    owner = torch.randint(3, (50,))
    for spec in ("none/grey,p=1/none", "none,weight=.5/grey,p=1,weight=.5/none,weight=.5"):
        changed = (Arm(spec, seed=6)(images) != images).flatten(1).any(1)
        assert torch.equal(changed, owner == 1), spec


@pytest.mark.parametrize(
    "spec, share",
    [
        ("grey,p=1,weight=3/none", 0.75),
        ("grey,weight=3,p=1/none,weight=.5/none,weight=.5", 0.75),
        ("grey,p=1/none,weight=9", 0.1),
        ("grey,p=1,weight=1e308/none,weight=1e-320/grey,p=1,weight=1e308", 1.0),
    ],
)
def test_alternatives_have_weights(spec, share):
    images = torch.full((2000, 3, 2, 2), 0.5)
    images[:, 0] = 0.8
    changed = (Arm(spec)(images) != images).flatten(1).any(1)
    assert changed.float().mean() == pytest.approx(share, abs=0.04)


def test_alternatives_style_the_same_share(bank_file):
    images = photos(1, 8, 8).expand(600, -1, -1, -1)
    arm = Arm(f"style:{bank_file},p=.5,strength=1/style:{bank_file},p=.5,strength=1")
    styled = (arm(images) != images).flatten(1).any(1)
    assert 240 < int(styled.sum()) < 360


@pytest.mark.parametrize(
    "spec, name, kinds",
    [
        ("none", "none", [["none"]]),
        ("plain=none", "plain", [["none"]]),
        ("jitter+grey,p=.5", "jitter+grey,p=.5", [["jitter"], ["grey"]]),
        ("my arm=style:art,p=.5,strength=.2..1+jitter", "my arm", [["style"], ["jitter"]]),
        ("style:a/b+c.safetensors/style:d/grey.safetensors", None, [["style", "style"]]),
        ("fda:/x/photos,/x/y,p=.2/none", None, [["fda", "none"]]),
    ],
)
def test_grammar(spec, name, kinds):
    read = parse_arm(spec)
    assert read.name == (name or spec)
    assert [[part.kind for part in step] for step in read.steps] == kinds


def test_options_and_folders_are_read():
    ((part,),) = parse_arm("x=fda:one,two,p=.25,beta=0..0.2").steps
    assert (part.target, part.options) == ("one,two", {"p": 0.25, "beta": (0.0, 0.2)})
    ((part,),) = parse_arm("style:art,strength=1,sampler=mix,blend=color,keep=yes").steps
    assert part.options == {"strength": (1.0, 1.0), "sampler": "mix", "blend": "color", "keep": True}
    ((part, other),) = parse_arm("style:a/b,weight=3,p=.5/fda:x,weight=2").steps
    assert (part.target, part.options, part.weight) == ("a/b", {"p": 0.5}, 3.0)
    assert (other.target, other.options, other.weight) == ("x", {}, 2.0)


def test_a_folder_called_like_a_step_is_a_folder(references, monkeypatch):
    monkeypatch.chdir(references)
    ((part,),) = parse_arm(f"fda:{references}/grey,p=1").steps
    assert part.target == f"{references}/grey"


@pytest.mark.parametrize(
    "spec, said",
    [
        ("jitters", "there is no step 'jitters'; choose from none, jitter"),
        ("", "there is no step ''"),
        ("none+", "there is no step 'none\\+'"),
        ("jitter:art", "expected jitter alone"),
        ("style", "expected style:BANK or GENERATOR"),
        ("style:", "expected style:BANK or GENERATOR"),
        ("style:art,q=1", "style has no option 'q'; it has p, strength"),
        ("none,p=1", "none has no option 'p'; it has weight"),
        ("grey,weight=0/none", "weight='0' of grey must be a number above 0"),
        ("grey,weight=-1/none", "must be a number above 0"),
        ("grey,weight=inf/none", "must be a number above 0"),
        ("grey,weight=nan/none", "must be a number above 0"),
        ("grey,weight=much/none", "must be a number"),
        ("jitter+grey,weight=2", "weight is for alternatives; join grey to others by /"),
        ("style:art,p=2", "p='2' of style must be a number from 0 to 1"),
        ("style:art,p=nan", "must be a number from 0 to 1"),
        ("style:art,p=much", "must be a number"),
        ("style:art,strength=1..0.5", "LOW..HIGH"),
        ("style:art,keep=1", "yes or no"),
        ("style:art,blend=1", "blend must be None or one of"),
        ("style:art,keep_luminance=yes", "no option 'keep_luminance'; it has .* blend, "),
        ("style:art,sampler=best", "unknown sampler"),
        ("style:art,parts=two", "must be a number"),
        ("mixstyle/jitter", "mixstyle acts inside the classifier"),
        ("none/dsu,p=.1", "dsu acts inside the classifier"),
        ("fda:nowhere", "there is no folder nowhere"),
        ("preset:drawing", "there is no preset 'drawing'. Did you mean 'drawings'"),
    ],
)
def test_a_bad_arm_says_what_is_wrong(spec, said):
    with pytest.raises(StyleAugError, match=said):
        Arm(spec)


def test_an_unknown_bank_names_the_arm():
    with pytest.raises(BankError, match="arm 'mine'"):
        Arm("mine=style:nothing-of-that-name")


def test_a_bank_fitted_anew_is_another_arm(bank_file):
    arm = parse_arm(f"style:{bank_file}")
    before = arm.digest()
    assert before == arm.digest() != parse_arm("none").digest()
    bank("reinhard-rgb", styles=3).save(bank_file)
    assert arm.digest() != before


def test_a_generator_alone_and_by_file(tmp_path):
    path = save_generator(generator("tiny-vaegan"), tmp_path / "net.safetensors")
    images = photos(3, 16, 16)
    for spec in (f"style:{path},p=1", "style:hed-jitter,p=1"):
        assert (Arm(spec)(images) != images).flatten(1).any(1).all(), spec


@pytest.mark.parametrize("kind, option", [("fda", "beta=.1"), ("histogram-matching", "blend=1")])
def test_references_are_albumentations(references, kind, option):
    images = photos(4, 24, 24)
    arm = Arm(f"{kind}:{references}/red,{references}/grey,p=1,{option}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        changed = arm(images)
    assert (changed - images).abs().mean() > 0.02
    assert torch.allclose(Arm(f"{kind}:{references},p=0")(images), images, atol=0.5 / 255 + 1e-6)


OPS = {
    scaled: tv.adjust_brightness,
    contrasted: tv.adjust_contrast,
    saturated: tv.adjust_saturation,
}


@pytest.mark.parametrize("ours", OPS)
@pytest.mark.parametrize("change", [-0.4, 0.0, 0.3])
def test_colour_changes_are_torchvisions(ours, change):
    images = photos(2)
    expected = OPS[ours](images, 1 + change)
    assert torch.allclose(ours(images, torch.full((2, 1, 1, 1), change)), expected, atol=2e-3)


def test_hue_is_torchvisions():
    images = photos(2)
    assert torch.allclose(
        turned(images, torch.full((2, 1, 1, 1), 0.08)), tv.adjust_hue(images, 0.08), atol=1e-4
    )


def test_jitter_draws_for_each_image():
    images = photos(1).expand(8, -1, -1, -1)
    changed = color_jitter(images)
    assert len({tuple(image.flatten().tolist()) for image in changed}) == 8
    assert torch.equal(color_jitter(images, p=0.0), images)


def test_blur_takes_detail_away():
    images = torch.rand(32, 3, 32, 32)
    detail = lambda x: (x[..., 1:] - x[..., :-1]).abs().mean()  # noqa: E731
    assert detail(lose_detail(images, p=1.0)) < 0.6 * detail(images)
    assert lose_detail(images, p=1.0).mean() == pytest.approx(images.mean().item(), abs=0.01)
    assert torch.equal(lose_detail(images, p=0.0), images)


def test_every_step_is_known_to_the_help(command):
    told = command("evaluate", "robustness", "--help").stdout
    assert all(kind in told for kind in STEPS)


def test_shares_are_shares():
    with pytest.raises(ConfigError, match="a number from 0 to 1"):
        parse_arm("style:art,preserve=2")


def regions(count: int) -> torch.Tensor:
    """Draw masks: label 2 on top, below it 0 to the left and 1 to the right."""
    masks = torch.zeros(count, 32, 32, dtype=torch.uint8)
    masks[:, :, 16:] = 1
    masks[:, :8] = 2
    return masks


BY_MASK = "style:gin,splice=mask,parts=3,p=1"


@pytest.mark.parametrize("spec", [BY_MASK, f"none/{BY_MASK}"])
def test_each_label_gets_a_draw_of_its_own(spec):
    images, masks = photos(6, 32, 32), regions(6)
    before = masks.clone()
    styled = Arm(spec, seed=1)(images, masks=masks)
    assert torch.equal(masks, before)
    changed = (styled - images).abs()
    inner = [changed[:, :, 14:, :12], changed[:, :, 14:, 20:], changed[:, :, :4]]
    drawn = torch.stack([part.mean(dim=(1, 2, 3)) for part in inner])
    touched = drawn.amax(dim=0) > 0
    assert touched.any() and (touched.all() == ("none" not in spec))
    # With one label everywhere, the same draws give the same background and other pixels elsewhere.
    whole = Arm(spec, seed=1)(images, masks=torch.zeros_like(masks))
    assert torch.allclose(styled[:, :, 14:, :12], whole[:, :, 14:, :12], atol=1e-5)
    assert not torch.allclose(styled[:, :, 14:, 20:], whole[:, :, 14:, 20:], atol=1e-2)
    assert not torch.allclose(styled[:, :, :4], whole[:, :, :4], atol=1e-2)


def test_a_protected_label_keeps_its_contrast():
    images, masks = photos(4, 64, 64), torch.zeros(4, 64, 64, dtype=torch.uint8)
    masks[:, 24:40, 24:40] = 1
    plain, kept = (Arm(f"style:gin,p=1{more}", seed=2) for more in ("", ",protect=mask"))
    one, other = plain(images), kept(images, masks=masks)
    assert torch.allclose(one[:, :, :8, :8], other[:, :, :8, :8], atol=1e-5)
    assert not torch.allclose(one[:, :, 28:36, 28:36], other[:, :, 28:36, 28:36], atol=1e-2)


@pytest.mark.parametrize("spec", [BY_MASK, "x=style:gin,protect=mask", f"grey/{BY_MASK}"])
def test_steps_by_mask_need_masks(spec):
    Arm(spec).check(masks=True)
    with pytest.raises(ConfigError, match=r"arm '.*': 'splice=mask' and 'protect=mask' go by the masks"):
        Arm(spec).check(masks=False)


@pytest.mark.parametrize("spec", ["trivialaugment", "randaugment", "augmix", "prime", "jitter+augmix"])
def test_steps_that_move_pixels_are_not_for_masks(spec):
    Arm(spec).check(masks=False)
    with pytest.raises(ConfigError, match=r"moves pixels, so masks would no longer fit; use none, jitter"):
        Arm(spec).check(masks=True)
