"""Checkpoints: everything a run must remember, in one safetensors file with JSON in its header."""

import json
import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from styleaug.atomic import atomic
from styleaug.errors import ConfigError, FileError, WeightsError
from styleaug.paths import check_regular, in_utf8
from styleaug.training.base import AbstractRecipe
from styleaug.training.config import TrainConfig

__all__ = ["Checkpoints", "gather_state", "restore_state"]

NAME = re.compile(r"step-(\d{8,})\.safetensors")


class Checkpoints:
    """The files in `RUN/checkpoints`, of which the last few are kept.

    Args:
        run: the run's folder.
        keep: how many.
    """

    def __init__(self, run: Path, *, keep: int):
        self.run, self.folder, self.keep = run, run / "checkpoints", keep

    def check_folder(self, config: TrainConfig, *, resume: bool) -> None:
        """Refuse to mix two runs.

        Raises:
            ConfigError: a run is there and not to be resumed, or it was made with other options.
            FileError: the folder cannot be made.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FileError(f"cannot write to {self.run}: {error.strerror}.") from None
        newest = self.newest()
        if newest and not resume:
            raise ConfigError(f"{self.run} holds a run; go on with --resume, or give another folder.")

    def all(self) -> list[Path]:
        """List the checkpoints, oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(path for path in self.folder.iterdir() if NAME.fullmatch(path.name))

    def newest(self) -> Path | None:
        """Give the newest one, if there is any."""
        return self.all()[-1] if self.all() else None

    def write(self, step: int, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        """Write a checkpoint, then delete the oldest; a write that fails leaves all others."""
        content = save(tensors, {"styleaug_run": json.dumps(meta | {"step": step}, sort_keys=True)})
        with atomic(self.folder / f"step-{step:08d}.safetensors") as part:
            part.write_bytes(content)
        for old in self.all()[: -self.keep]:
            old.unlink(missing_ok=True)

    def write_config(self, config: TrainConfig) -> None:
        """Write the options for people, and for `--config`."""
        with atomic(self.run / "config.json") as part:
            part.write_text(json.dumps(config.to_dict(), indent=1, sort_keys=True) + "\n")

    def read(self, path: Path, config: TrainConfig) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Read a checkpoint.

        Raises:
            WeightsError: it is damaged.
            ConfigError: it was made with other options, which are named.
        """
        try:
            with in_utf8(check_regular(path)) as name, safe_open(name, "pt") as file:
                meta = json.loads((file.metadata() or {})["styleaug_run"])
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            known = {item.name for item in fields(config)}
            saved = {name: value for name, value in meta["config"].items() if name in known}
            differing = config.differs_from(config.with_options(saved))
            step, scores, data = int(meta["step"]), list(meta["scores"]), str(meta["data"])
        except (OSError, SafetensorError, KeyError, ValueError, TypeError, AttributeError) as error:
            raise WeightsError(
                f"cannot read the checkpoint {path}: {error}. Delete it to go on from the one before."
            ) from None
        if differing:
            told = ", ".join(f"{name}={saved.get(name)!r}" for name in differing)
            raise ConfigError(f"{path} was made with {told}. Give these options, or another run folder.")
        return tensors, meta | {"step": step, "scores": scores, "data": data}


def gather_state(
    recipe: AbstractRecipe, averages: Mapping[str, nn.Module]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Collect all tensors of a run by path-like names, and what JSON can hold."""
    fabric = recipe.fabric
    tensors: dict[str, Tensor] = {}
    for kind, modules in (("networks", recipe.networks), ("averages", averages)):
        for name, network in modules.items():
            tensors |= {f"{kind}/{name}/{key}": value for key, value in network.state_dict().items()}
    for name, optimiser in recipe.optimisers.items():
        for index, slots in optimiser.state_dict()["state"].items():
            for slot, value in slots.items():
                if value is not None:
                    tensors[f"optimisers/{name}/{index}/{slot}"] = torch.as_tensor(value)
    for key, value in sorted(recipe.state().items()):
        tensors[f"state/{key}"] = gathered(value.to(fabric.device), fabric.world_size)
    stored = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    return stored, {"scaler": fabric.strategy.precision.state_dict()}


def gathered(value: Tensor, processes: int) -> Tensor:
    """Stack what each process has."""
    if processes == 1:
        return value[None]
    # Fabric's own all_gather warns of what it calls in torch 2.15.
    parts = [torch.empty_like(value) for _ in range(processes)]
    torch.distributed.all_gather(parts, value.contiguous())
    return torch.stack(parts)


def restore_state(
    recipe: AbstractRecipe,
    averages: Mapping[str, nn.Module],
    tensors: dict[str, Tensor],
    meta: dict[str, Any],
) -> None:
    """Give a recipe what `gather_state` took.

    Raises:
        WeightsError: the tensors do not fit.
    """

    def below(prefix: str) -> dict[str, Tensor]:
        return {key.removeprefix(prefix): v for key, v in tensors.items() if key.startswith(prefix)}

    fabric = recipe.fabric
    try:
        for kind, modules in (("networks", recipe.networks), ("averages", averages)):
            for name, network in modules.items():
                network.load_state_dict(below(f"{kind}/{name}/"))
        for name, optimiser in recipe.optimisers.items():
            saved = optimiser.state_dict()
            for key, value in below(f"optimisers/{name}/").items():
                index, slot = key.split("/")
                saved["state"].setdefault(int(index), {})[slot] = value
            optimiser.load_state_dict(saved)
        state = below("state/")
        recipe.load_state({key: value[fabric.global_rank % len(value)] for key, value in state.items()})
        fabric.strategy.precision.load_state_dict(meta.get("scaler", {}))
    except (RuntimeError, KeyError, ValueError, IndexError) as error:
        raise WeightsError(f"the checkpoint does not fit the recipe: {error}") from None
