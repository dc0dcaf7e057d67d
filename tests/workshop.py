"""What the tests of training share: folders of small pictures, tiny configurations, loss networks."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from specimens import photos
from torch import Tensor, nn

from styleaug.perceptual import VGG19
from styleaug.training.config import TrainConfig, preset
from styleaug.training.data import TrainingData
from styleaug.training.loop import Outcome, train
from styleaug.training.recipes import make_recipe

RECIPES = ["adain", "photo", "patchswap", "patchgan", "cyclegan", "cut", "vaegan"]

TINY: dict[str, Any] = {
    "steps": 10,
    "batch": 4,
    "size": 32,
    "save_every": 5,
    "score_every": 5,
    "device": "cpu",
    "held_out": 0.3,
}
SMALL_NETWORKS: dict[str, dict[str, Any]] = {
    "adain": {"style_size": 40, "style_crops": 1},
    "photo": {"style_size": 40, "style_crops": 1},
    "patchswap": {"style_size": 40, "style_crops": 1},
    "patchgan": {"width": 4, "depth": 3, "discriminator_width": 4, "patch": 16},
    "cyclegan": {"width": 4, "blocks": 1, "discriminator_width": 4, "patch": 16, "pool": 6},
    "cut": {"width": 4, "blocks": 1, "discriminator_width": 4, "patch": 16, "patches": 16},
    "vaegan": {"width": 4, "blocks": 1, "discriminator_width": 4, "patch": 16, "latent": 3},
}


def tiny(recipe: str, **options: Any) -> TrainConfig:
    """Make a configuration that takes a step in milliseconds."""
    return preset(recipe).with_options({**TINY, **SMALL_NETWORKS[recipe], **options})


def write(folder: Path, images: Tensor, *, name: str = "{:03}.png") -> Path:
    """Write images `(N, 3, H, W)` into a folder as PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, image in enumerate(images):
        pixels = (image.permute(1, 2, 0) * 255).round().byte().numpy()
        Image.fromarray(pixels).save(folder / name.format(index))
    return folder


def two_sides(folder: Path, count: int = 16) -> tuple[Path, Path]:
    """Write pictures and their negatives, under the same names."""
    pictures = photos(count, 40, 48)
    return write(folder / "a", pictures), write(folder / "b", 1 - pictures)


def fields(count: int, *, seed: int) -> Tensor:
    """Make smooth random colours, `(N, 3, 40, 40)`."""
    points = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(points, size=(40, 40), mode="bilinear", align_corners=True)


def run(
    config: TrainConfig,
    sides: tuple[Path, Path],
    folder: Path,
    *,
    networks: Path | None = None,
    **options: Any,
) -> Outcome:
    """Train as a user does."""
    recipe = make_recipe(config)
    data = TrainingData(*sides, config, paired=recipe.paired)
    return train(recipe, data, folder, networks=networks, **options)


def newest(folder: Path) -> dict[str, Tensor]:
    """Read the tensors of a run's newest checkpoint."""
    return load_file(sorted((folder / "checkpoints").glob("step-*.safetensors"))[-1])


def loss_networks(folder: Path) -> Path:
    """Write a VGG-19 with random weights in the format of the real one."""
    folder.mkdir(parents=True, exist_ok=True)
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


def colours(folder: Path, names: list[str], *, size: tuple[int, int] = (40, 40)) -> Path:
    """Write images of one colour each, by which they are known again."""
    for index, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (index, 100, 200)).save(path)
    return folder


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def red(images: Tensor) -> list[int]:
    """Tell which images crops were cut from."""
    return (images[:, 0].mean(dim=(1, 2)) * 255).round().int().tolist()


def ramp(height: int, width: int) -> Image.Image:
    """Make an image that says in red and green where each pixel lies."""
    y, x = np.mgrid[:height, :width]
    planes = [(x + 0.5) / width * 255, (y + 0.5) / height * 255, 0 * x]
    return Image.fromarray(np.stack(planes, axis=-1).round().astype(np.uint8))


def unbalanced(folder: Path, **counts: int) -> Path:
    names = [f"{name}/{name}{index}.png" for name, count in counts.items() for index in range(count)]
    return colours(folder, names)
