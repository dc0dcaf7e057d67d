"""`StyleNormalize`: each image in the mean style of a bank, the same in every call and every host."""

import json
import pickle

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from monai.data.meta_tensor import MetaTensor
from PIL import Image
from specimens import bank, generator, photo, photos, pil
from torch.utils.data import DataLoader
from torchvision import tv_tensors

from styleaug import ConfigError, ImageError, StyleAugment, StyleBank, StyleLoader, StyleNormalize
from styleaug.bank import Provenance
from styleaug.cli.main import cli
from styleaug.generators.layers import channel_stats
from styleaug.offline.folder import apply_folder
from styleaug.robustness.arms import Arm, parse_arm
from styleaug.robustness.classifier_training import Recipe
from styleaug.robustness.evaluate import evaluate_robustness
from styleaug.transforms import monai
from styleaug.transforms.host import from_settings

NAMES = ["reinhard-lab", "histogram", "fourier-full", "tiny-adain", "tiny-photo", "tiny-patchswap"]


def made(name: str = "reinhard-rgb", **options) -> StyleNormalize:
    return StyleNormalize(bank(name), generator=generator(name), **options)


def write(folder, count: int = 3):
    folder.mkdir(parents=True)
    for index in range(count):
        pixels = (photo(20, 24, seed=index).permute(1, 2, 0) * 255).byte().numpy()
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("strength", [0.4, 1.0])
def test_it_is_style_augment_with_one_code(name, strength):
    images, normalize = photos(3), made(name, strength=strength)
    code = normalize.code
    if generator(name).codes_average:
        torch.testing.assert_close(code[0], bank(name).codes.mean(dim=0))
    else:
        assert torch.equal(code[0], bank(name).codes[normalize.row])
    augment = StyleAugment(bank(name), generator=generator(name), p=1.0, strength=strength)
    params = {**augment.draw(3), "codes": code.expand(3, -1)}
    assert torch.equal(normalize(images), augment.apply(images, params))


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_drawn(name):
    normalize, images = made(name), photos(2)
    state = torch.get_rng_state()
    first = normalize(images)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(7)
    assert torch.equal(made(name)(images), first)
    for image, styled in zip(images, first, strict=True):  # other images of the batch do not matter
        torch.testing.assert_close(normalize(image), styled, atol=1e-5, rtol=0)


def test_the_medoid_is_nearest_to_the_mean():
    codes = generator("tiny-patchswap").encode_style(photos(1)).repeat(5, 1)
    codes += torch.linspace(-0.2, 0.3, 5)[[3, 0, 4, 2, 1], None]
    provenance = Provenance("patchswap", generator("tiny-patchswap").fingerprint, 5)
    normalize = StyleNormalize(StyleBank(codes, provenance), generator=generator("tiny-patchswap"))
    assert normalize.row == 3 and normalize.style == 3
    params = normalize.draw(2)
    assert params["sources"].tolist() == [[3], [3]] and params["shares"].tolist() == [[1], [1]]


def test_images_get_the_statistics_of_the_bank():
    normalize = made("reinhard-rgb")
    wanted = bank("reinhard-rgb").codes.mean(dim=0)
    images = 0.3 + 0.4 * photos(3, 32, 32)
    once = normalize(images)
    torch.testing.assert_close(channel_stats(once), wanted.expand(3, -1), atol=0.02, rtol=0)
    assert (normalize(once) - once).abs().mean() < 0.1 * (once - images).abs().mean()


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
def test_kinds_of_tensors(channels, dtype):
    images = photos(2, 12, 14, channels=channels)
    images = (images * 255).byte() if dtype == torch.uint8 else images.to(dtype)
    for one in (images, images[0]):
        styled = made()(one)
        assert styled.shape == one.shape and styled.dtype == dtype and not torch.equal(styled, one)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "I;16"])
def test_kinds_of_pictures(mode):
    image = pil(mode)
    styled = made()(image)
    assert styled.mode == mode and styled.size == image.size and styled.tobytes() != image.tobytes()


def test_samples_keep_what_is_no_image():
    image, mask = tv_tensors.Image(photo(12, 14)), tv_tensors.Mask(torch.ones(12, 14))
    boxes = tv_tensors.BoundingBoxes([[1, 2, 3, 4]], format="XYXY", canvas_size=(12, 14))
    sample = {"image": image, "mask": mask, "boxes": boxes, "label": 3}
    styled = made()(sample)
    assert isinstance(styled["image"], tv_tensors.Image) and not torch.equal(styled["image"], image)
    assert styled["mask"] is mask and styled["boxes"] is boxes and styled["label"] == 3
    torch.testing.assert_close(styled["image"].as_subclass(torch.Tensor), made()(photo(12, 14)))


def test_a_video_gets_one_change_for_all_frames():
    video = tv_tensors.Video(photo(12, 14).repeat(4, 1, 1, 1))
    styled = made("fourier-full")(video)
    assert isinstance(styled, tv_tensors.Video)
    torch.testing.assert_close(styled[1:].as_subclass(torch.Tensor), styled[:1].expand(3, -1, -1, -1))


def test_values_in_a_range_and_replay():
    normalize = made(value_range=(-200.0, 300.0))
    images = photos(2, channels=1) * 500 - 200
    params = normalize.make_params(images)
    assert torch.equal(normalize.apply(images, params), normalize(images))
    with pytest.raises(ImageError, match="NaN"):
        made()(torch.full((3, 8, 8), torch.nan))


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((), {}, "needs the bank"),
        (("batch",), {}, "needs a bank for"),
        ((), {"generator": "randconv"}, "needs a bank for 'randconv'"),
        (("photo-tones",), {"strength": (0, 1)}, "strength"),
        (("photo-tones",), {"strength": 1.5}, "strength"),
    ],
)
def test_refusals(arguments, options, message):
    with pytest.raises(ConfigError, match=message):
        StyleNormalize(*arguments, **options)


def test_a_translator_needs_no_bank():
    network = generator("tiny-cyclegan")
    images = photos(2)
    styled = StyleNormalize(generator=network, precision="float32")(images)
    assert torch.equal(styled, network(images, torch.zeros(2, 0), torch.ones(2)))


def test_pickles_settings_and_text():
    normalize, images = made(strength=0.7), photos(2)
    assert torch.equal(pickle.loads(pickle.dumps(normalize))(images), normalize(images))
    assert torch.equal(normalize.with_networks()(images), normalize(images))
    assert "style='mean', strength=0.7" in repr(normalize)
    shipped = StyleNormalize("photo-tones", strength=0.5)
    again = from_settings(json.loads(json.dumps(shipped.settings())))
    assert isinstance(again, StyleNormalize) and torch.equal(again(images), shipped(images))


def test_a_loader_for_tests():
    loader = DataLoader(list(zip(photos(4), range(4), strict=True)), batch_size=2)
    found = torch.cat([images for images, _ in StyleLoader(loader, made())])
    torch.testing.assert_close(found, made()(photos(4)), atol=1e-5, rtol=0)


def test_monai():
    image, volume = photo(16, 18), photo(16, 18, channels=1)[..., None].repeat(1, 1, 1, 3)
    array = monai.StyleNormalize(bank("reinhard-rgb"))
    assert torch.equal(array(image), made()(image))
    assert isinstance(array(image.numpy()), np.ndarray)
    affine = torch.diag(torch.tensor([2.0, 2.0, 3.0, 1.0]))
    styled = array(MetaTensor(volume, affine=affine))
    assert isinstance(styled, MetaTensor) and torch.equal(styled.affine, affine.double())
    torch.testing.assert_close(
        styled[..., 0].as_subclass(torch.Tensor), array(volume[..., 0]), atol=1e-5, rtol=0
    )
    assert "style='mean'" in repr(array)
    with pytest.raises(ConfigError, match="axis"):
        monai.StyleNormalize(bank("reinhard-rgb"), axis=5)


def test_monai_dictionary():
    sample = {"image": photo(16, 18), "other": photo(10, 12), "label": torch.ones(1, 16, 18)}
    transform = monai.StyleNormalized(["image", "other"], bank("reinhard-rgb"), strength=0.5)
    styled = transform(sample)
    for key in ("image", "other"):
        assert torch.equal(styled[key], made(strength=0.5)(sample[key]))
    assert styled["label"] is sample["label"] and set(styled) == set(sample)
    with pytest.raises(KeyError):
        transform({"image": photo(16, 18)})
    assert monai.StyleNormalized("a", bank("reinhard-rgb"), allow_missing_keys=True)({"b": 1}) == {"b": 1}


@pytest.mark.parametrize("name", ["reinhard-rgb", "tiny-patchswap"])
def test_folders(tmp_path, name):
    source = write(tmp_path / "in")
    applied = apply_folder(source, tmp_path / "out", bank=made(name))
    assert applied.written == 3
    for path in sorted(source.iterdir()):
        wanted = made(name)(Image.open(path))
        assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / path.name)), np.asarray(wanted))
    settings, *lines = map(json.loads, (tmp_path / "out" / "manifest.jsonl").read_text().splitlines())
    row = made(name).row
    assert "'normalize': " in str(settings)
    assert all(line["styles"] == ([] if row is None else [row]) and line["strength"] == 1 for line in lines)
    assert apply_folder(source, tmp_path / "out", bank=made(name)).skipped == 3
    with pytest.raises(ConfigError, match="normalize"):
        apply_folder(source, tmp_path / "out", bank=bank(name), generator=generator(name))
    with pytest.raises(ConfigError, match="leave out copies"):
        apply_folder(source, tmp_path / "copies", bank=made(name), copies=2)


def test_the_command(tmp_path):
    source, file = write(tmp_path / "in"), tmp_path / "home.safetensors"
    bank("reinhard-lab").save(file)
    base = ["apply", str(source), "--normalize", "--bank", str(file)]
    runs = [[*base, "-o", str(tmp_path / name), "--seed", seed] for name, seed in [("a", "0"), ("b", "5")]]
    for run in runs:
        result = CliRunner().invoke(cli, run)
        assert result.exit_code == 0, result.output
    for path in source.iterdir():
        assert (tmp_path / "a" / path.name).read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    for wrong in (
        ["--strength", "0.5,1"],
        ["--sampler", "mix"],
        ["--bank", str(file)],
        ["--preset", "stain"],
    ):
        result = CliRunner().invoke(cli, [*base, *wrong, "-o", str(tmp_path / "c")])
        assert result.exit_code == 2 and "--normalize" in result.output
    result = CliRunner().invoke(cli, [*base, "--copies", "2", "-o", str(tmp_path / "c")])
    assert isinstance(result.exception, ConfigError) and "leave out copies" in str(result.exception)


def test_an_arm_changes_test_images_only(tmp_path):
    file = tmp_path / "home.safetensors"
    bank("reinhard-rgb").save(file)
    arm, images = Arm(f"normalize:{file},strength=0.5"), photos(4)
    assert torch.equal(arm(images), images)
    assert torch.equal(arm.at_test(images), made(strength=0.5)(images))
    both = Arm(f"jitter+normalize:{file}")
    assert not torch.equal(both(images), images) and torch.equal(both.at_test(images), made()(images))
    assert Arm("none").at_test(images) is images
    with pytest.raises(ConfigError, match="no alternative"):
        parse_arm(f"none/normalize:{file}")
    with pytest.raises(ConfigError, match="has no option 'p'"):
        parse_arm(f"normalize:{file},p=0.5")


def test_a_run_normalises_every_test_and_no_training_image(tmp_path):
    """This generator paints flat images alike: a classifier that sees them guesses, at home as elsewhere."""
    for domain in ("home", "away"):
        for number, name in enumerate(("dark", "light")):
            (tmp_path / domain / name).mkdir(parents=True)
            for index in range(10):
                pixels = np.full((16, 16, 3), 60 + 120 * number + index, np.uint8)
                Image.fromarray(pixels).save(tmp_path / domain / name / f"{index}.png")
    file = tmp_path / "home.safetensors"
    bank("reinhard-rgb").save(file)
    result = evaluate_robustness(
        tmp_path / "home",
        {"away": tmp_path / "away"},
        arms=["none", f"flat=normalize:{file}", f"same=normalize:{file},strength=0"],
        recipe=Recipe(side=32, epochs=4, lr=4e-3, batch=4, geometry="small"),
        seeds=1,
        threads=1,
        corruptions=("brightness",),
        severities=(3,),
    )
    runs = {run["arm"]: run for run in result.runs}
    for kind in ("scores", "corrupted"):
        assert set(runs["flat"][kind].values()) == {0.5}
        assert runs["same"][kind] == runs["none"][kind]
    assert runs["none"]["scores"]["away"] > 0.5
