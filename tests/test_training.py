"""Training: true gradients, exact resumption, a batch that can be overfitted, and clear errors."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from specimens import bank, photos
from torch import Tensor, nn
from torch.autograd import gradcheck

from styleaug import ConfigError, FileError, WeightsError, load_generator
from styleaug.generators.layers import adain, channel_stats
from styleaug.training.config import PerceptualConfig
from styleaug.training.data import ImagePack, is_held_out, pack_images, random_crops
from styleaug.training.loop import train
from styleaug.training.losses import (
    VGG19,
    content_loss,
    edge_correlation,
    gamut_loss,
    load_vgg19,
    style_loss,
)
from styleaug.training.recipes import PerceptualRecipe

TINY = {"steps": 10, "batch": 4, "size": 32, "style_size": 40, "style_crops": 1, "device": "cpu"}


@pytest.fixture(scope="module")
def networks(tmp_path_factory) -> Path:
    """A folder of loss networks in the files' own format, with random weights."""
    folder = tmp_path_factory.mktemp("networks")
    torch.manual_seed(0)
    vgg, saved = VGG19(), {}
    for name, conv in vgg.convs.items():
        assert isinstance(conv, nn.Conv2d)
        nn.init.kaiming_normal_(conv.weight)
        block, index = name.split("_")
        key = "output" if name == "4_1" else f"block{block}_conv{index}"
        saved |= {f"{key}.weight": conv.weight.data, f"{key}.bias": conv.bias.data}  # pyright: ignore
    # Such weights make large features; trained ones are normalised.
    saved["block1_conv1.weight"] = saved["block1_conv1.weight"] / 100
    save_file(saved, folder / "vgg19_normalised_relu4_1.safetensors")
    return folder


def pack(count: int = 6, *, seed: int = 0) -> ImagePack:
    pixels = torch.stack([*photos(count + seed, 48, 48)[seed:]])
    return ImagePack((pixels * 255).byte(), torch.arange(count) % 2)


def tiny(**options) -> PerceptualConfig:
    return PerceptualConfig(**{**TINY, **options})


def doubles(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def test_gradients_agree_with_finite_differences():
    levels = [doubles(2, 3, 4, 5), doubles(2, 2, 3, 3)]
    stats = [channel_stats(doubles(2, 3, 4, 5)).detach(), channel_stats(doubles(2, 2, 3, 3)).detach()]
    assert gradcheck(lambda *x: style_loss(list(x), stats), levels)
    assert gradcheck(lambda *x: style_loss(list(x), stats, rows=True), levels)
    assert gradcheck(gamut_loss, doubles(2, 3, 4, 5) * 2)
    assert gradcheck(lambda x: adain(x, stats[0]), levels[0])
    # These compute in single precision, hence the wide step.
    rough = {"eps": 1e-2, "atol": 1e-3, "rtol": 1e-2}
    assert gradcheck(content_loss, (levels[0], doubles(2, 3, 4, 5)), **rough)
    other = torch.rand(2, 3, 5, 6, dtype=torch.float64)
    assert gradcheck(lambda x: edge_correlation(x, other), doubles(2, 3, 5, 6))
    assert gradcheck(channel_stats, levels[0])


def test_losses_are_zero_where_nothing_is_wanted():
    level = torch.randn(2, 3, 8, 8)
    assert style_loss([level], [channel_stats(level)]) < 1e-10
    shuffled = level.flatten(2)[:, :, torch.randperm(64)].view_as(level)
    assert style_loss([shuffled], [channel_stats(level)]) < 1e-10, "statistics know no place"
    assert content_loss(level, level) == 0
    assert content_loss(3 * level + 1, level) < 1e-6, "free of style statistics"
    assert content_loss(shuffled, level) > 0.1
    images = photos(2, 16, 16)
    torch.testing.assert_close(edge_correlation(images, 0.5 * images + 0.2), torch.ones(2), atol=1e-3, rtol=0)
    assert edge_correlation(images, images.roll(3, 3)).max() < 0.8
    assert gamut_loss(torch.rand(2, 3, 4, 4)) == 0
    assert gamut_loss(torch.tensor([[[[-0.5, 1.25]]]])) == pytest.approx(0.375)


def test_style_loss_is_the_papers():
    level, other = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8)
    (mean, std), (mean2, std2) = (channel_stats(x).chunk(2, dim=1) for x in (level, other))
    wanted = ((mean - mean2) ** 2).mean() + ((std - std2) ** 2).mean()
    torch.testing.assert_close(style_loss([level], [channel_stats(other)]), wanted)
    rows = style_loss([level], [channel_stats(other)], rows=True)
    assert rows.shape == (2,)
    torch.testing.assert_close(rows.mean(), wanted)


def test_vgg19_has_four_levels(networks):
    vgg, images = load_vgg19(networks), photos(2, 32, 32)
    levels = vgg(images)
    assert [tuple(x.shape[1:]) for x in levels] == [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4)]
    assert not any(p.requires_grad for p in vgg.parameters())
    for depth in (1, 2, 3):
        shallow = vgg(images, depth=depth)
        assert len(shallow) == depth
        for one, other in zip(shallow, levels, strict=False):
            torch.testing.assert_close(one, other)


def snapshot(run: Path) -> dict[str, Tensor]:
    return load_file(run / "checkpoint.safetensors") | load_file(run / "generator.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "threads"), [("adain", 2), ("photo", 1)])
def test_a_broken_run_ends_where_an_unbroken_one_does(name, threads, networks, tmp_path, monkeypatch):
    config = tiny(generator=name, threads=threads, steps=10, save_every=4)
    packs = pack(), pack(seed=6)
    torch.manual_seed(1)
    whole = train(*packs, tmp_path / "whole", config=config, loss_networks=networks)
    assert whole == tmp_path / "whole" / "generator.safetensors"
    update, taken = PerceptualRecipe.update, []

    def crash(self, *batch):
        taken.append(1)
        if len(taken) in (3, 10):  # before and after the first checkpoint
            raise KeyboardInterrupt
        return update(self, *batch)

    monkeypatch.setattr(PerceptualRecipe, "update", crash)
    for state in (2, 3):
        torch.manual_seed(state)  # what happens around the run must not matter
        with pytest.raises(KeyboardInterrupt):
            train(*packs, tmp_path / "broken", config=config, loss_networks=networks)
    torch.manual_seed(4)
    assert train(*packs, tmp_path / "broken", config=config, loss_networks=networks)
    one, other = snapshot(tmp_path / "whole"), snapshot(tmp_path / "broken")
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert torch.equal(value, other[key]), key
    assert load_generator(whole).name == name
    log = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert log[-1]["step"] == 10 and {"style", "content", "edges", "identity", "gamut"} <= log[-1].keys()


@pytest.mark.slow
def test_minutes_stop_a_run_and_the_next_call_goes_on(networks, tmp_path):
    config, packs, seen = tiny(steps=3), (pack(), pack(seed=6)), []

    def go_on() -> Path | None:
        report = lambda step, losses: seen.append(step)  # noqa: E731
        return train(
            *packs, tmp_path / "run", config=config, loss_networks=networks, minutes=0, report=report
        )

    assert go_on() is None and go_on() is None
    assert go_on() == go_on() == tmp_path / "run" / "generator.safetensors"
    assert seen == [1, 2, 3]
    with pytest.raises(ConfigError, match=r"other options.*another run folder"):
        train(*packs, tmp_path / "run", config=tiny(steps=4), loss_networks=networks)


def stripes(count: int = 6) -> ImagePack:
    """Make styles that a swap of colours cannot reach: up or across, one to three pixels wide."""
    rows = [((torch.arange(48) // (1 + index % 3)) % 2).expand(3, 48, 48) for index in range(count)]
    turned = [row.mT if index % 2 else row for index, row in enumerate(rows)]
    return ImagePack((torch.stack(turned) * 255).byte(), torch.zeros(count, dtype=torch.long))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "times"), [("adain", 1.6), ("photo", 1.3)])
def test_one_batch_is_overfitted(name, times, networks, tmp_path):
    recipe = PerceptualRecipe(tiny(generator=name), pack(), stripes())
    recipe.prepare(networks, tmp_path / "styles.safetensors")
    totals = []
    for _ in range(60):
        losses = recipe.step(torch.Generator().manual_seed(7))  # the same batch each time
        totals.append(sum(float(loss) for loss in losses.values()))
    assert totals[-1] < totals[0] / times


def test_threads_share_a_batch_without_changing_the_step(networks, tmp_path):
    weights = []
    for threads in (1, 2):
        recipe = PerceptualRecipe(tiny(threads=threads), pack(), pack(seed=6))
        recipe.special_every = 1  # shares must not differ in which terms they have
        recipe.prepare(networks, tmp_path / "styles.safetensors")
        recipe.step(torch.Generator().manual_seed(0))
        weights.append(recipe.generator.state_dict())
    for key, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][key], atol=3e-4, rtol=0)  # Adam: 2e-3 a step


def test_style_statistics_are_read_once_for_the_same_images(networks, tmp_path, monkeypatch):
    cache, calls, forward = tmp_path / "styles.safetensors", [], VGG19.forward

    def counted(self, *args, **options):
        calls.append(1)
        return forward(self, *args, **options)

    monkeypatch.setattr(VGG19, "forward", counted)
    for styles, wanted in ((pack(seed=6), 1), (pack(seed=6), 0), (pack(seed=7), 1)):
        calls.clear()
        PerceptualRecipe(tiny(), pack(), styles).prepare(networks, cache)
        assert len(calls) == wanted


def test_corrupt_checkpoints_are_named(networks, tmp_path):
    for content in (b"", b"hello", b"\xff" * 100, bank("reinhard-rgb").to_bytes()):
        (tmp_path / "checkpoint.safetensors").write_bytes(content)
        with pytest.raises(WeightsError, match=r"checkpoint\.safetensors.*Delete it to start anew"):
            train(pack(), pack(), tmp_path, config=tiny(), loss_networks=networks)


def test_unusable_run_folders_and_networks_are_named(networks, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileError, match="cannot write to"):
        train(pack(), pack(), tmp_path / "file" / "run", config=tiny(), loss_networks=networks)
    with pytest.raises(WeightsError, match="cannot read the weights"):
        load_vgg19(tmp_path)
    (tmp_path / "vgg19_normalised_relu4_1.safetensors").write_bytes(bank("reinhard-rgb").to_bytes())
    with pytest.raises(WeightsError, match="vgg19_normalised_relu4_1"):
        load_vgg19(tmp_path)


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 0},
        {"steps": -1},
        {"generator": "reinhard-rgb"},
        {"threads": 0},
        {"style_size": 0},
        {"batch": 0},
        {"size": 16},
        {"size": 100},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"ema": 1.0},
        {"save_every": 0},
        {"precision": "float8"},
    ],
)
def test_bad_options_are_named(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        PerceptualConfig(**options)


def test_config_round_trips():
    config = tiny(seed=3)
    assert PerceptualConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(ConfigError, match=r"unknown training options.*nonsense"):
        PerceptualConfig.from_dict({**config.to_dict(), "nonsense": 1})


def test_folders_are_drawn_equally_often():
    uneven = ImagePack(torch.zeros(10, 3, 8, 8, dtype=torch.uint8), torch.tensor([0] * 9 + [1]))
    drawn = uneven.draw(4000, torch.Generator().manual_seed(0))
    assert abs((drawn == 9).float().mean() - 0.5) < 0.05
    assert torch.bincount(drawn)[:9].min() > 150


def test_random_crops():
    pixels = pack(4).pixels
    crops = random_crops(pixels, 24, torch.Generator().manual_seed(0))
    assert crops.shape == (4, 3, 24, 24) and crops.min() >= 0 and crops.max() <= 1
    assert torch.equal(crops, random_crops(pixels, 24, torch.Generator().manual_seed(0)))
    assert not torch.equal(crops, random_crops(pixels, 24, torch.Generator().manual_seed(1)))
    whole = random_crops(pixels, 48, torch.Generator().manual_seed(0))
    for crop, row in zip(whole, pixels / 255, strict=True):
        assert torch.equal(crop, row) or torch.equal(crop, row.flip(-1))


def test_pack_images(tmp_path):
    names = [f"{index}.png" for index in range(60)]
    held = [name for name in names if is_held_out(Path(name))]
    assert 0 < len(held) < 15
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        for index, name in enumerate(names):
            Image.new("RGB", (20, 12), (index, 100, 200)).save(tmp_path / folder / name)
    folders = [tmp_path / "one", tmp_path / "two"]
    (tmp_path / "one" / "broken.png").write_text("x")
    packed = pack_images(folders, 8)
    assert len(packed) == 2 * (60 - len(held)) and packed.pixels.shape[1:] == (3, 8, 8)
    assert packed.groups.tolist() == sorted(packed.groups.tolist())
    kept = pack_images(folders, 8, held_out=True)
    assert len(kept) == 2 * len(held)
    reds = [set(x.pixels[:, 0, 0, 0].tolist()) for x in (packed, kept)]
    assert not reds[0] & reds[1]


def test_pack_images_of_any_kind(tmp_path):
    ramp = np.linspace(0, 1, 16 * 16).reshape(16, 16)
    Image.fromarray((ramp * 65535).astype(np.uint16)).save(tmp_path / "sixteen.png")
    np.save(tmp_path / "array.npy", ramp[..., None].repeat(3, 2).astype(np.float32))
    Image.fromarray((ramp * 255).astype(np.uint8)).save(tmp_path / "grey.png")
    np.save(tmp_path / "nan.npy", np.full((16, 16), np.nan))
    packed = pack_images([tmp_path], 16)
    assert len(packed) == 3
    assert (packed.pixels.float() - packed.pixels[:1].float()).abs().max() <= 1, "all three are the same ramp"
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileError, match="no image in"):
        pack_images([tmp_path, tmp_path / "empty"], 16)
    with pytest.raises(FileError, match="held out"):
        pack_images([tmp_path], 16, held_out=True)
