"""`OneOf`: each row goes to one of several transforms, in every adapter, and is replayed."""

import json
import pickle
from collections import Counter

import albumentations as A
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from shard_files import write_images
from specimens import bank, bank_of, pil, tiny_adain
from torch.testing import assert_close
from torchvision import tv_tensors
from torchvision.transforms import v2

from styleaug import OneOf, StyleAugment, StyleLoader
from styleaug.cli.main import cli
from styleaug.errors import ConfigError, ImageError
from styleaug.offline.folder import apply_folder
from styleaug.transforms.albumentations import StyleAugment as AlbumentationsStyle
from styleaug.transforms.host import from_settings, held, members_of
from styleaug.transforms.kornia import RandomStyle
from styleaug.transforms.monai import RandStyle, RandStyled
from styleaug.transforms.presets import MIXTURES


def batch(count=24, channels=3):
    return torch.randint(256, (count, channels, 12, 14), dtype=torch.uint8)


def mixed(**options):
    """Members with codes of other lengths, one without a bank."""
    return OneOf(
        [
            StyleAugment(bank("reinhard-rgb"), p=1.0, **options),
            StyleAugment(generator="tone-curves", p=1.0, strength=(0.2, 1.0), **options),
            StyleAugment(generator="randconv", p=1.0, **options),
        ],
        weights=[2, 1, 1],
    )


def test_rows_are_those_of_their_members_and_each_computes_only_its_own(monkeypatch):
    augment, images = mixed(), batch()
    params = augment.make_params(images)
    styled, seen = augment.apply(images, params), []
    for member, own in augment.split(params):
        rows = own["rows"]
        seen += rows.tolist()
        assert torch.equal(member.apply(images, own)[rows], styled[rows])
    assert sorted(seen) == list(range(len(images)))
    painted = []
    for member in augment.transforms:
        member._painters[images.device] = lambda images, codes, strength: (
            painted.append(len(images)) or images
        )
    augment.apply(images, params)
    assert sum(painted) == len(images) and len(painted) == 3


def test_a_call_is_replayed_and_follows_torchs_seed():
    augment, images = mixed(), batch()
    params = augment.make_params(images)
    assert torch.equal(augment.apply(images, params), augment.apply(images, params))
    torch.manual_seed(3)
    first = augment(images)
    torch.manual_seed(3)
    assert torch.equal(first, augment(images)) and not torch.equal(first, augment(images))


def test_weights_and_chances_multiply():
    sparse = StyleAugment(bank("reinhard-rgb"), p=0.1)
    augment = OneOf([sparse, StyleAugment(generator="tone-curves", p=0.9)], weights=[3, 1])
    assert augment.p == pytest.approx(0.75 * 0.1 + 0.25 * 0.9)
    params = augment.draw(20_000, torch.Generator().manual_seed(0))
    counts = Counter(augment.describe(params)["member"])
    assert abs(counts[0] / 20_000 - 0.075) < 0.01 and abs(counts[1] / 20_000 - 0.225) < 0.01
    never = OneOf([StyleAugment(bank("reinhard-rgb"), p=0.0)])
    images = batch(3)
    assert never(images) is images


def test_what_is_not_drawn_stays_as_it_is():
    augment = OneOf([StyleAugment(bank("reinhard-rgb"), p=0.5), StyleAugment(generator="randconv", p=0.5)])
    images = batch(40)
    params = augment.make_params(images)
    styled, rest = augment.apply(images, params), torch.ones(40, dtype=torch.bool)
    rest[params["rows"]] = False
    assert 0 < rest.sum() < 40
    assert torch.equal(styled[rest], images[rest]) and not torch.equal(styled[~rest], images[~rest])


def test_styles_from_the_batch_are_those_of_the_images_as_they_came():
    augment = OneOf(
        [StyleAugment(generator="tone-curves", p=1.0), *(within(name) for name in ("rgb", "lab"))]
    )
    images = batch()
    params = augment.make_params(images)
    styled = augment.apply(images, params)
    for member, own in augment.split(params):
        assert torch.equal(member.apply(images, own)[own["rows"]], styled[own["rows"]])


def within(space):
    return StyleAugment("batch", generator=f"reinhard-{space}", p=1.0)


def test_samples_with_images_masks_and_labels():
    augment = mixed()
    mask, label = tv_tensors.Mask(torch.ones(12, 14)), torch.tensor(3)
    image, again, kept = augment({"image": pil(size=(14, 12)), "mask": mask, "label": label}).values()
    assert image.size == (14, 12) and again is mask and kept is label
    video = tv_tensors.Video(torch.randint(256, (2, 5, 3, 12, 14), dtype=torch.uint8))
    assert augment(video).shape == video.shape


@pytest.mark.parametrize("splice", ["halves", "fields", "mask"])
def test_parts_stay_with_their_row(splice):
    augment, images = mixed(splice=splice), batch()
    given = [tv_tensors.Image(images)]
    masks = tv_tensors.Mask((torch.rand(24, 12, 14) > 0.5).long())
    params = augment.make_params(given + ([masks] if splice == "mask" else []))
    assert params["rows"].tolist() == sorted(2 * list(range(24)))
    styled = augment.apply(images, params)
    for member, own in augment.split(params):
        shown = masks if splice == "mask" else None
        assert torch.equal(member.apply(images, own, masks=shown)[own["rows"]], styled[own["rows"]])


def test_only_members_that_go_by_a_mask_get_it():
    guarded = StyleAugment(bank("reinhard-rgb"), p=1.0, preserve={"floor": 0.5, "protect": "mask"})
    augment, images = OneOf([guarded, StyleAugment(generator="randconv", p=1.0)]), batch()
    masks = tv_tensors.Mask(torch.ones(24, 12, 14, dtype=torch.long))
    assert augment((tv_tensors.Image(images), masks))[0].shape == images.shape
    with pytest.raises(ImageError, match="needs a mask"):
        augment(images)
    with pytest.raises(ImageError, match="masks are given, but nothing"):
        mixed().apply(images, mixed().make_params(images), masks=masks)


def test_channels_with_styles_of_their_own():
    augment, images = mixed(channels="independent"), batch(6, channels=4)
    params = augment.make_params(images)
    assert params["rows"].tolist() == list(range(24)) and augment.apply(images, params).shape == images.shape


def test_gradients_pass_through_every_member():
    images = torch.rand(12, 3, 12, 14, requires_grad=True)
    augment = mixed()
    augment.apply(images, augment.make_params(images), differentiable=True).square().sum().backward()
    assert images.grad is not None and bool((images.grad.flatten(1).abs().sum(1) > 0).all())


def test_one_in_another():
    inner = OneOf([StyleAugment(generator="randconv", p=1.0), StyleAugment(generator="gin", p=1.0)])
    augment, images = OneOf([inner, StyleAugment(bank("reinhard-rgb"), p=1.0)], weights=[2, 1]), batch()
    params = augment.make_params(images)
    assert torch.equal(augment.apply(images, params), augment.apply(images, params))
    assert len(members_of(augment)) == 3
    shares = Counter(augment.describe(augment.draw(3000, torch.Generator().manual_seed(0)))["member"])
    assert abs(shares[0] / 3000 - 2 / 3) < 0.05


def test_it_is_pickled_and_made_again_from_its_settings():
    augment, images = (
        OneOf([StyleAugment("art"), StyleAugment(generator="gin", strength=(0, 1))], [1, 3]),
        batch(6),
    )
    params = augment.make_params(images)
    for twin in (
        pickle.loads(pickle.dumps(augment)),
        from_settings(json.loads(json.dumps(augment.settings()))),
        augment.with_networks(),
    ):
        assert torch.equal(twin.apply(images, params), augment.apply(images, params))
        assert repr(twin) == repr(augment) and twin.fingerprint == augment.fingerprint


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: OneOf([]), "takes a list of StyleAugments, got \\[\\]"),
        (lambda: OneOf("art"), "takes a list"),
        (lambda: OneOf([v2.ColorJitter()]), "got ColorJitter.*RandomChoice"),
        (lambda: OneOf([StyleAugment("art")], weights=[1, 2]), "1 transforms need as many weights, got 2"),
        (lambda: OneOf([StyleAugment("art")], weights=[-1]), "none negative"),
        (lambda: OneOf([StyleAugment("art"), StyleAugment("art", splice="halves")]), "the same splice"),
        (
            lambda: OneOf([StyleAugment("art"), StyleAugment("art", value_range=(0, 2))]),
            "the same value_range",
        ),
        (lambda: OneOf([StyleAugment("art"), StyleAugment("art", channels="shared")]), "the same channels"),
        (
            lambda: RandomStyle(mixed(), blend="color", strength=0.5),
            "give blend, strength to it",
        ),
    ],
)
def test_what_does_not_fit_is_refused(make, words):
    with pytest.raises(ConfigError, match=words):
        make()


def test_an_adapter_takes_its_chance_from_the_transform_unless_given():
    augment = OneOf([StyleAugment("art", p=0.4)])
    for bank_given, given, gate in (
        (augment, None, 0.4),
        (augment, 0.9, 0.9),
        ("art", None, 0.8),
        ("art", 0.3, 0.3),
    ):
        taken, p = held(bank_given, {}, p=given, usual=0.8)
        assert (taken.p, p) == (1.0, pytest.approx(gate))


def test_kornia_replays_it_with_the_members_that_were_drawn():
    augment, images = RandomStyle(mixed(), p=0.5), torch.rand(24, 3, 12, 14)
    styled = augment(images)
    assert torch.equal(augment(images, params=augment._params), styled)
    same = (styled == images).flatten(1).all(1)
    assert 0 < same.sum() < 24


def test_albumentations_replays_and_serialises_it():
    augment = OneOf([StyleAugment("art"), StyleAugment(generator="tone-curves")], weights=[1, 2])
    pipeline = A.ReplayCompose([AlbumentationsStyle(augment, p=1.0)])
    image = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    done = pipeline(image=image)
    record = json.loads(json.dumps(done["replay"]))
    assert (A.ReplayCompose.replay(record, image=image)["image"] == done["image"]).all()
    again = A.from_dict(A.to_dict(A.Compose([AlbumentationsStyle(augment)])))
    assert repr(again.transforms[0].stylizer) == repr(augment.with_p(1.0))
    told = AlbumentationsStyle(augment).describe(5)
    assert told["member"][0] in (0, 1) and told.keys() == {"strength", "styles", "shares", "member"}
    objects = AlbumentationsStyle(OneOf([StyleAugment(bank("reinhard-rgb"))]))
    with pytest.raises(ConfigError, match=r"bank\.save"):
        A.to_dict(A.Compose([objects]))


def test_monai_draws_for_all_keys_and_for_volumes():
    volume = torch.rand(1, 12, 14, 6)
    styled = RandStyle(mixed(), prob=1.0)(volume)
    assert styled.shape == volume.shape and not torch.equal(styled, volume)
    image = torch.rand(3, 12, 14)
    both = RandStyled(["a", "b"], mixed(), prob=1.0)({"a": image, "b": image.clone()})
    assert_close(both["a"], both["b"])


def test_loaders_take_it():
    loader = torch.utils.data.DataLoader([(image, 1) for image in batch(8)], batch_size=4)
    styled = [images for images, _ in StyleLoader(loader, mixed())]
    assert [part.shape for part in styled] == 2 * [(4, 3, 12, 14)]


def test_a_folder_is_styled_by_it_and_the_manifest_names_the_member(tmp_path):
    source, network = write_images(tmp_path / "in", 12), tiny_adain()
    painted = StyleAugment(bank_of(network), generator=network)
    augment = OneOf([painted, StyleAugment(generator="gin", strength=(0, 1))], weights=[1, 2])
    for workers in (0, 2):
        assert apply_folder(source, tmp_path / f"out{workers}", bank=augment, workers=workers).written == 12
    lines = [json.loads(line) for line in (tmp_path / "out0" / "manifest.jsonl").read_text().splitlines()]
    assert {line["member"] for line in lines[1:]} == {0, 1}
    assert [part["generator"] for part in lines[0]["settings"]["one_of"]] == ["adain", "gin"]
    assert (tmp_path / "out2" / "manifest.jsonl").read_text() == (
        tmp_path / "out0" / "manifest.jsonl"
    ).read_text()
    assert apply_folder(source, tmp_path / "out0", bank=augment).skipped == 12
    with pytest.raises(ConfigError, match="other settings"):
        apply_folder(source, tmp_path / "out0", bank=OneOf([painted]))
    with pytest.raises(ConfigError, match="there is none"):
        apply_folder(source, tmp_path / "no", bank=OneOf([StyleAugment("batch")]))


@pytest.mark.parametrize("name", MIXTURES)
def test_a_preset_is_a_mixture_whose_options_reach_all_parts(name):
    preset, images = StyleAugment.preset(name), batch(6)
    assert len(members_of(preset)) == len(MIXTURES[name].parts)
    assert preset(images).shape == images.shape
    hounsfield = StyleAugment.preset(name, p=0.3, value_range=(-160, 240), channels="shared")
    assert hounsfield.p == 0.3 and {m.value_range for m in members_of(hounsfield)} == {(-160.0, 240.0)}
    with pytest.raises(ConfigError, match="leave out generator"):
        StyleAugment.preset(name, generator="gin")


def test_unknown_presets_name_those_that_there_are():
    with pytest.raises(ConfigError, match=r"'drawing'\. Did you mean 'drawings'.*unknown"):
        StyleAugment.preset("drawing")


@pytest.mark.parametrize(
    "options", [["--preset", "unknown"], ["--bank", "art", "--bank", "gin", "--bank", "gin"]]
)
def test_the_command_line_takes_mixtures(options, tmp_path):
    source = write_images(tmp_path / "in", 6)
    run = CliRunner().invoke(cli, ["apply", str(source), "-o", str(tmp_path / "out"), *options])
    assert run.exit_code == 0, run.output
    head = json.loads((tmp_path / "out" / "manifest.jsonl").read_text().partition("\n")[0])["settings"]
    assert len(head["one_of"]) == len(options) // 2 or options[0] == "--preset"
    run = CliRunner().invoke(cli, ["preview", str(source), "-o", str(tmp_path / "sheet.png"), *options])
    assert run.exit_code == 0, run.output


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--preset", "unknown", "--bank", "art"], "leave out --bank"),
        (["--preset", "unknown", "--strength", ".5"], "its own strength; leave out --strength"),
    ],
)
def test_a_preset_beside_options_is_a_usage_error(options, words, tmp_path):
    run = CliRunner().invoke(cli, ["apply", str(tmp_path), "-o", str(tmp_path / "out"), *options])
    assert run.exit_code == 2 and words in run.output


@pytest.mark.parametrize("generator", ["reinhard-rgb", "randstainna"])
def test_fit_style_prints_a_line_that_works(generator, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "in", 6)
    run = CliRunner().invoke(cli, ["fit-style", "in", "-o", "b.safetensors", "--generator", generator])
    line = run.output.partition("use it as ")[2].splitlines()[0]
    assert line.startswith("StyleAugment('b.safetensors'") and ("gaussian" in line) == (
        generator == "randstainna"
    )
    assert len(eval(line, {"StyleAugment": StyleAugment}).bank)
