"""Run a recipe: checkpoints that resume exactly, a log, and the averaged weights at the end."""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from styleaug.atomic import atomic
from styleaug.errors import ConfigError, FileError, WeightsError
from styleaug.training.config import PerceptualConfig
from styleaug.training.data import ImagePack
from styleaug.training.recipes import PerceptualRecipe
from styleaug.weights import save_generator

__all__ = ["train"]

WARM_UP = 50
"""Steps over which the learning rate rises."""

Report = Callable[[int, dict[str, float]], None]


def train(
    content: ImagePack,
    styles: ImagePack,
    run: Path,
    *,
    config: PerceptualConfig,
    loss_networks: Path | None = None,
    minutes: float = float("inf"),
    report: Report = lambda step, losses: None,
) -> Path | None:
    """Train a generator, from the newest checkpoint in `run` if there is one.

    Every step draws its crops from its own number, so a resumed run does what an unbroken one
    would have done.

    Args:
        content: images that keep their structure.
        styles: images that give their look.
        run: folder for `checkpoint.safetensors`, `log.jsonl` and, at the end,
            `generator.safetensors`.
        config: must be that of the checkpoint, if there is one.
        loss_networks: folder of `vgg19_normalised_relu4_1.safetensors`; None downloads
            torchvision's VGG-19.
        minutes: stop with a checkpoint after this long; the next call goes on.
        report: called with the step and its losses about once a second.

    Returns:
        The path of the finished weights, or None when `minutes` ran out first.

    Raises:
        ConfigError: other options than the checkpoint's.
        WeightsError: a checkpoint or a network that cannot be read.
        FileError: `run` cannot be written to.
    """
    device = torch.device(
        config.device if config.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    )
    make_folder(run)
    recipe = PerceptualRecipe(config, content, styles)
    recipe.generator.to(device).to(memory_format=torch.channels_last)
    state = TrainState(recipe)
    checkpoint = Path(run) / "checkpoint.safetensors"
    if checkpoint.exists():
        state.load(checkpoint)
    deadline, last_report = time.monotonic() + 60 * minutes, 0.0
    recipe.prepare(loss_networks, Path(run) / "styles.safetensors")
    while state.step < config.steps:
        losses = state.advance(recipe.step)
        if time.monotonic() - last_report > 1 or state.step == config.steps:
            last_report = time.monotonic()
            values = {name: float(value) for name, value in losses.items()}
            report(state.step, values)
            write_log(Path(run) / "log.jsonl", {"step": state.step, **values})
        timeout = time.monotonic() > deadline
        if state.step % config.save_every == 0 or state.step == config.steps or timeout:
            state.save(checkpoint)
        if timeout and state.step < config.steps:
            return None
    weights = Path(run) / "generator.safetensors"
    save_generator(state.averaged(), weights)
    return weights


class TrainState:
    """Everything that a run must remember between two steps."""

    def __init__(self, recipe: PerceptualRecipe):
        self.recipe, self.step = recipe, 0
        self.ema = {name: value.clone() for name, value in recipe.generator.state_dict().items()}

    def advance(self, step: Callable[[torch.Generator], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Take one step: schedule, recipe, average."""
        config = self.recipe.config
        rng = torch.Generator().manual_seed(config.seed * 1_000_003 + self.step)
        progress = torch.tensor(self.step / config.steps * torch.pi)
        decay = 0.01 + 0.99 * 0.5 * (1 + torch.cos(progress).item())
        for group in self.recipe.optimiser.param_groups:
            group["lr"] = config.learning_rate * decay * min(1, (self.step + 1) / WARM_UP)
        losses = step(rng)
        self.step += 1
        keep = min(config.ema, (1 + self.step) / (10 + self.step))
        for name, value in self.recipe.generator.state_dict().items():
            self.ema[name].lerp_(value, 1 - keep)
        return losses

    def averaged(self):
        """Give the generator with the averaged weights."""
        self.recipe.generator.load_state_dict(self.ema)
        return self.recipe.generator.cpu().eval()

    def save(self, path: Path) -> None:
        """Write all of it to one file, atomically."""
        tensors = {f"weights/{k}": v for k, v in self.recipe.generator.state_dict().items()}
        tensors |= {f"ema/{k}": v for k, v in self.ema.items()}
        for index, slots in self.recipe.optimiser.state_dict()["state"].items():
            tensors |= {f"adam/{index}/{slot}": torch.as_tensor(v) for slot, v in slots.items()}
        # Where and how often to save does not change what is computed.
        meta = {"step": self.step, "config": self.recipe.config.to_dict()}
        with atomic(path) as part:
            save_file(
                {k: v.contiguous() for k, v in tensors.items()},
                part,
                {"styleaug": json.dumps(meta, sort_keys=True)},
            )

    def load(self, path: Path) -> None:
        """Take up where the checkpoint stopped.

        Raises:
            ConfigError: the checkpoint was made with other options.
        """
        tensors, meta = read_checkpoint(path)
        mine = self.recipe.config
        theirs = PerceptualConfig.from_dict(meta["config"])
        if replace(theirs, device=mine.device, save_every=mine.save_every) != mine:
            raise ConfigError(
                f"{path} was made with other options: {theirs.to_dict()}. Use these, or another run folder."
            )
        self.step = meta["step"]
        device = next(self.recipe.generator.parameters()).device
        part = lambda prefix: {  # noqa: E731
            key.removeprefix(prefix): value.to(device)
            for key, value in tensors.items()
            if key.startswith(prefix)
        }
        self.recipe.generator.load_state_dict(part("weights/"))
        self.ema = part("ema/")
        optimiser = self.recipe.optimiser.state_dict()
        for key, value in part("adam/").items():
            index, slot = key.split("/")
            optimiser["state"].setdefault(int(index), {})[slot] = value.cpu() if slot == "step" else value
        self.recipe.optimiser.load_state_dict(optimiser)


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict]:
    """Read a checkpoint's tensors and metadata, with our errors."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            meta = json.loads((file.metadata() or {})["styleaug"])
        return load_file(path), {"config": dict(meta["config"]), "step": int(meta["step"])}
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise WeightsError(f"cannot read the checkpoint {path}: {error}. Delete it to start anew.") from None


def make_folder(run: Path) -> None:
    """Make the run's folder before any work is done."""
    try:
        Path(run).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"cannot write to {run}: {error.strerror}.") from None


def write_log(path: Path, row: dict) -> None:
    """Append one JSON line."""
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")
