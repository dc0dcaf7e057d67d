"""Each recipe learns a toy problem with a known answer, by a number; and what its step promises."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from specimens import photos
from torch import Tensor
from workshop import fields, loss_networks, run, tiny, two_sides, write

from styleaug import load_generator
from styleaug.generators.base import AbstractGenerator
from styleaug.perceptual import VGG19
from styleaug.training.base import fixed
from styleaug.training.config import TrainConfig, preset
from styleaug.training.data import TrainingData
from styleaug.training.discriminators import ImagePool
from styleaug.training.fabric import make_fabric
from styleaug.training.recipes import AbstractRecipe, PerceptualRecipe, make_recipe

TOY: dict[str, Any] = {
    "steps": 300,
    "size": 32,
    "batch": 4,
    "width": 8,
    "discriminator_width": 16,
    "patch": 16,
    "learning_rate": 1e-3,
    "ema": 0.95,
    "score_every": 100,
    "diffaugment": "off",
    "device": "cpu",
}


def learn(folder: Path, recipe: str, source: Tensor, target: Tensor, **options: Any) -> AbstractGenerator:
    """Train on a toy problem as a user does; give the generator of the run."""
    sides = write(folder / "a", source), write(folder / "b", target)
    run(preset(recipe).with_options({**TOY, **options}), sides, folder / "run")
    return load_generator(folder / "run")


def apply(generator: AbstractGenerator, images: Tensor, codes: Tensor | None = None) -> Tensor:
    codes = torch.zeros(len(images), 0) if codes is None else codes
    return generator(images, codes, torch.ones(len(images)))


def psnr(one: Tensor, other: Tensor) -> float:
    return -10 * (one - other).square().mean().log10().item()


@pytest.mark.slow
def test_patchgan_learns_to_invert_colours(tmp_path):
    images = fields(60, seed=0)
    options = {"depth": 3, "dropout": 0.0, "batch": 8, "learning_rate": 2e-3}
    generator = learn(tmp_path, "patchgan", images, 1 - images, **options)
    new = fields(8, seed=1)
    assert psnr(new, 1 - new) < 10 and psnr(apply(generator, new), 1 - new) > 25


def coloured(count: int, *, hue: float, seed: int) -> Tensor:
    """Make images `(N, 3, 40, 40)` whose hues lie within a fifth of the circle from `hue`."""
    points = torch.rand(count, 2, 5, 5, generator=torch.Generator().manual_seed(seed))
    field = F.interpolate(points, size=(40, 40), mode="bilinear", align_corners=True)
    sixth, value = (hue + 0.2 * field[:, 0]) * 6, 0.4 + 0.6 * field[:, 1]
    distance = torch.stack([(shift + sixth) % 6 for shift in (5, 3, 1)], dim=1)
    return value[:, None] * (1 - 0.8 * torch.minimum(distance, 4 - distance).clamp(0, 1))


def hue_error(one: Tensor, other: Tensor) -> float:
    """Give the mean angle between the hues of two batches, in degrees."""
    hues = [
        torch.atan2(math.sqrt(3) * (x[:, 1] - x[:, 2]), 2 * x[:, 0] - x[:, 1] - x[:, 2]) for x in (one, other)
    ]
    turn = hues[0] - hues[1]
    return torch.atan2(turn.sin(), turn.cos()).abs().rad2deg().mean().item()


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["cut", "cyclegan"])
def test_unpaired_recipes_learn_a_hue_rotation(recipe, tmp_path):
    sides = [coloured(60, hue=hue, seed=seed) for hue, seed in ((0, 0), (1 / 3, 1))]
    # Identity terms hold back what would change hues that are right already: here they all turn.
    options = {"blocks": 1, "fold": 1, "skip": False, "identity_weight": 0.0}
    generator = learn(tmp_path, recipe, *sides, **options)
    new, wanted = (coloured(8, hue=hue, seed=2) for hue in (0, 1 / 3))
    assert hue_error(new, wanted) == pytest.approx(120, abs=1)
    assert hue_error(apply(generator, new), wanted) < 40
    if recipe == "cyclegan":
        back = load_generator(tmp_path / "run" / "reverse.safetensors")
        assert hue_error(apply(back, wanted), new) < 40


def greys(count: int, *, seed: int) -> Tensor:
    return fields(count, seed=seed).mean(dim=1, keepdim=True).expand(-1, 3, -1, -1)


def tinted(count: int, *, seed: int) -> Tensor:
    """Make images that have one colour each."""
    tints = 0.2 + 0.8 * torch.rand(count, 3, 1, 1, generator=torch.Generator().manual_seed(seed + 100))
    return greys(count, seed=seed) * tints


def tints(images: Tensor) -> Tensor:
    means = images.mean(dim=(2, 3))
    return means / means.mean(dim=1, keepdim=True)


@pytest.mark.slow
def test_vaegan_learns_many_outputs_without_pairs(tmp_path):
    sides = greys(60, seed=0), tinted(60, seed=1)
    generator = learn(tmp_path, "vaegan", *sides, blocks=1, latent=3, edge_weight=0.0, fold=1)
    new, styles = greys(16, seed=2), tinted(16, seed=3)
    painted = apply(generator, new, generator.encode_style(styles))
    both = torch.stack([tints(painted).flatten(), tints(styles).flatten()])
    assert torch.corrcoef(both)[0, 1] > 0.5, "a code read from an image brings its colour"
    drawn = apply(generator, new[:1].expand(64, -1, -1, -1), torch.randn(64, 3))
    assert tints(drawn).std(dim=0).mean() > 0.3 * tints(tinted(64, seed=4)).std(dim=0).mean()


@pytest.mark.slow
def test_vaegan_learns_from_pairs(tmp_path):
    images = fields(60, seed=0)
    options = {"paired": True, "blocks": 1, "latent": 3, "edge_weight": 0.0}
    generator = learn(tmp_path, "vaegan", images, 1 - images, **options, batch=8, learning_rate=2e-3)
    new = fields(8, seed=1)
    assert psnr(apply(generator, new, torch.zeros(8, 3)), 1 - new) > 18


def ready(config: TrainConfig, folder: Path, *, styles: Tensor | None = None) -> AbstractRecipe:
    """Make a recipe that can take steps."""
    recipe = make_recipe(config)
    recipe.setup(make_fabric(config))
    a, b = two_sides(folder)
    b = b if styles is None else write(folder / "styles", styles)
    recipe.prepare(
        TrainingData(a, b, config, paired=recipe.paired), folder, loss_networks(folder / "networks")
    )
    return recipe


def stripes(count: int = 8) -> Tensor:
    """Make styles that a swap of colours cannot reach: up or across, one to three pixels wide."""
    rows = [((torch.arange(48) // (1 + index % 3)) % 2).expand(3, 48, 48) for index in range(count)]
    return torch.stack([row.mT if index % 2 else row for index, row in enumerate(rows)]).float()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "times"), [("adain", 1.6), ("photo", 1.3), ("patchswap", 1.4)])
def test_one_batch_is_overfitted(name, times, tmp_path):
    recipe, batch = ready(tiny(name), tmp_path, styles=stripes()), photos(4, 32, 32)
    totals = []
    for _ in range(60):
        torch.manual_seed(7)  # the same batch each time
        losses = recipe.step(batch, batch)
        totals.append(sum(float(loss) for loss in losses.values()))
    assert totals[-1] < totals[0] / times


def test_style_statistics_are_read_once_for_the_same_images(tmp_path, monkeypatch):
    calls, forward = [], VGG19.forward

    def counted(self, *args, **options):
        calls.append(1)
        return forward(self, *args, **options)

    monkeypatch.setattr(VGG19, "forward", counted)
    for seed, wanted in ((0, True), (0, False), (1, True)):
        calls.clear()
        ready(tiny("adain", seed=seed), tmp_path)
        assert bool(calls) == wanted


def test_styles_are_drawn_as_the_data_says(tmp_path):
    config = tiny("adain", style_crops=2)
    recipe = make_recipe(config)
    assert isinstance(recipe, PerceptualRecipe)
    recipe.setup(make_fabric(config))
    write(tmp_path / "styles" / "many", photos(20, 40, 40))
    write(tmp_path / "styles" / "few", photos(2, 40, 40), name="few{}.png")
    a, _ = two_sides(tmp_path)
    data = TrainingData(a, tmp_path / "styles", config)
    recipe.prepare(data, tmp_path, loss_networks(tmp_path / "networks"))
    few = [row for row, name in enumerate(data.train[1].images.classes) if name == "few"]
    places = {recipe.places[row] + crop for row in few for crop in range(2)}
    drawn = recipe.draw_styles(400).tolist()
    assert 0.4 < sum(place in places for place in drawn) / 400 < 0.6
    assert places <= set(drawn)


def test_pool_reminds_of_earlier_images():
    pool = ImagePool(4)
    first = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 2, 2)
    assert torch.equal(pool.exchange(first), first), "until it is full"
    given = torch.cat([pool.exchange(torch.full((1, 3, 2, 2), 10.0 + n)) for n in range(60)])
    old = sum(int(image[0, 0, 0] != 10 + n) for n, image in enumerate(given))
    assert 15 < old < 45 and len(pool.images) == 4
    assert torch.equal(ImagePool(0).exchange(first), first)


def test_fixed_networks_pass_gradients_on():
    layer, images = torch.nn.Linear(2, 2), torch.ones(1, 2, requires_grad=True)
    with fixed(layer):
        layer(images).sum().backward()
    assert layer.weight.grad is None and images.grad is not None and images.grad.abs().sum() > 0
    assert layer.weight.requires_grad


def test_discriminators_learn_apart_from_generators(tmp_path):
    recipe = ready(tiny("cut"), tmp_path)
    before = {name: [w.clone() for w in net.parameters()] for name, net in recipe.networks.items()}
    source, target = photos(4, 32, 32), 1 - photos(4, 32, 32)
    recipe.teach("discriminator", target, source)  # pyright: ignore[reportAttributeAccessIssue]
    moved = {
        name: any(not torch.equal(a, b) for a, b in zip(before[name], net.parameters(), strict=True))
        for name, net in recipe.networks.items()
    }
    assert moved == {"generator": False, "embedding": False, "discriminator": True}


def test_the_discriminator_is_held_back_while_it_is_sure(tmp_path):
    recipe: Any = ready(tiny("cut", diffaugment="auto"), tmp_path)
    for _ in range(200):
        recipe.hold_back(torch.ones(4, 1, 2, 2))
    held = float(recipe.augment)
    assert held > 0.1
    for _ in range(400):
        recipe.hold_back(torch.zeros(4, 1, 2, 2))
    assert float(recipe.augment) < held


@pytest.mark.slow
@pytest.mark.parametrize(("conditional", "channels"), [(True, 6), (False, 3)])
def test_patchgan_feeds_its_discriminator_both_ways(conditional, channels, tmp_path):
    recipe: Any = ready(tiny("patchgan", conditional=conditional), tmp_path)
    assert recipe.discriminator.channels == channels
    source, target = photos(4, 32, 32), 1 - photos(4, 32, 32)
    shown = recipe.seen(source, target)
    assert shown.shape == (4, channels, 32, 32) and torch.equal(shown[:, -3:], target)
    assert recipe.step(source, target).keys() == {"adversarial", "l1", "discriminator"}
