"""Checkpoints: the whole state of a run in one safetensors file with JSON in its header."""

import json
import os
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from styleaug.errors import ConfigError, FileError, WeightsError
from styleaug.io.atomic import atomic
from styleaug.io.paths import check_regular, in_utf8
from styleaug.io.tensors import Damaged, check_digest, to_bytes
from styleaug.training.base import AbstractRecipe
from styleaug.training.config import MAY_CHANGE, TrainConfig

__all__ = ["Checkpoints", "gather_state", "restore_state"]

_KEY = "styleaug_run"
_KNOWN = ("config", "data", "scaler", "scores", "step")
"""Keys in the header of checkpoints that have no digest (earlier versions)."""
_NAME = re.compile(r"step-(\d{8,})\.safetensors")

Tensors = dict[str, Tensor]
_Restore = Callable[[Tensors, dict[str, Any]], None]


class Checkpoints:
    """The files in `RUN/checkpoints`; only the newest are kept.

    Args:
        run: folder of the run.
        keep: number of checkpoints that are kept.
    """

    run: Path
    folder: Path
    keep: int

    def __init__(self, run: Path, *, keep: int):
        self.run, self.folder, self.keep = run, run / "checkpoints", keep

    def check_place(self, *, resume: bool) -> None:
        """Check that the folder can be made and holds no other run.

        Raises:
            ConfigError: the folder holds a run, and `resume` is False.
            FileError: the folder cannot be made.
        """
        above = next(place for place in (self.folder, *self.folder.absolute().parents) if place.exists())
        if not above.is_dir() or not os.access(above, os.W_OK):
            why = "no permission" if above.is_dir() else f"{above} is a file"
            raise FileError(f"cannot write to {self.run}: {why}.")
        if self.all() and not resume:
            raise ConfigError(f"{self.run} holds a run; go on with --resume, or give another folder.")

    def make_folder(self) -> None:
        """Make the folder.

        Raises:
            FileError: the folder cannot be made.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FileError(f"cannot write to {self.run}: {error.strerror}.") from None

    def all(self) -> list[Path]:
        """List the checkpoints, oldest first."""
        if not self.folder.is_dir():
            return []
        named = (path for path in self.folder.iterdir() if _NAME.fullmatch(path.name))
        return sorted(path for path in named if path.is_file())

    def write(self, step: int, tensors: Tensors, meta: dict[str, Any]) -> None:
        """Write a checkpoint, then delete the oldest. If writing fails, the others are kept."""
        content = to_bytes(_KEY, meta | {"step": step}, tensors)
        with atomic(self.folder / f"step-{step:08d}.safetensors") as part:
            part.write_bytes(content)
        for old in self.all()[: -self.keep]:
            old.unlink(missing_ok=True)

    def write_config(self, config: TrainConfig) -> None:
        """Write the options to `config.json`, for reading and for `--config`."""
        with atomic(self.run / "config.json") as part:
            part.write_text(json.dumps(config.to_dict(), indent=1, sort_keys=True) + "\n")

    def take_up(self, config: TrainConfig, restore: _Restore) -> list[tuple[Path, str]]:
        """Restore the newest undamaged checkpoint; do nothing if there are no checkpoints.

        Args:
            config: configuration of the resumed run.
            restore: function of the tensors and the header of a checkpoint. It raises `WeightsError` if
                they do not fit.

        Returns:
            Newer checkpoints that are damaged, each with the reason.

        Raises:
            WeightsError: all checkpoints are damaged.
            ConfigError: the checkpoint was made with other options; the message names them.
            FileError: a checkpoint cannot be opened.
        """
        damaged: list[tuple[Path, str]] = []
        for path in reversed(self.all()):
            try:
                restore(*self.read(path, config))
            except WeightsError as error:
                why = " ".join(str(error).split()).rstrip(".")
                damaged.append((path, f"the checkpoint {path} is damaged: {why}"))
            else:
                return damaged
        if damaged:
            raise WeightsError(
                f"none of the {len(damaged)} checkpoints in {self.folder} can be used; the newest: "
                f"{damaged[0][1]}. Start anew in another run folder."
            )
        return []

    def set_aside(self, damaged: list[tuple[Path, str]], step: int) -> None:
        """Rename damaged checkpoints, so that they are ignored, and warn about each."""
        for path, why in damaged:
            aside = path.with_name(f"damaged-{path.name}")
            path.replace(aside)
            warnings.warn(f"{why}. It is now {aside.name}; the run goes on from step {step}.", stacklevel=2)

    def read(self, path: Path, config: TrainConfig) -> tuple[Tensors, dict[str, Any]]:
        """Read a checkpoint.

        Raises:
            WeightsError: the checkpoint is damaged; the message is the reason.
            ConfigError: the checkpoint was made with other options; the message names them.
            FileError: the checkpoint cannot be opened.
        """
        try:
            with in_utf8(check_regular(path)) as name, safe_open(name, "pt") as file:
                meta = json.loads((file.metadata() or {})[_KEY])
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            check_digest(path, meta, _KNOWN, renew="go on with its run")
            known = {item.name for item in fields(config)}
            saved = {name: value for name, value in meta["config"].items() if name in known}
            differing = config.differs_from(config.with_options(saved))
            meta |= {"step": int(meta["step"]), "scores": list(meta["scores"]), "data": str(meta["data"])}
            if path.name != f"step-{meta['step']:08d}.safetensors":
                raise ValueError(f"it is of step {meta['step']}")
        except Damaged:
            raise WeightsError("its content is not what was written") from None
        except PermissionError as error:
            raise FileError(f"cannot read the checkpoint {path}: {error.strerror}.") from None
        except (
            OSError,
            SafetensorError,
            KeyError,
            ValueError,
            TypeError,
            AttributeError,
            RecursionError,
        ) as e:
            raise WeightsError(str(e)) from None
        differing = [name for name in differing if name not in MAY_CHANGE]
        if differing:
            told = ", ".join(f"{name}={saved.get(name)!r}" for name in differing)
            raise ConfigError(f"{path} was made with {told}. Give these options, or another run folder.")
        if config.steps < meta["step"]:
            raise ConfigError(
                f"{self.run} has taken {meta['step']} steps, so steps must be at least {meta['step']}, "
                f"got {config.steps}. Give at least that, or another run folder."
            )
        return tensors, meta


def gather_state(
    recipe: AbstractRecipe[Any], averages: Mapping[str, nn.Module]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Collect all tensors of a run under path-like names, and its other state as JSON values."""
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
        tensors[f"state/{key}"] = _gathered(value.to(fabric.device), fabric.world_size)
    stored = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    return stored, {"scaler": fabric.strategy.precision.state_dict()}


def _gathered(value: Tensor, processes: int) -> Tensor:
    """Stack the tensors of all processes."""
    if processes == 1:
        return value[None]
    # Fabric's own all_gather calls a function that warns in torch 2.15.
    parts = [torch.empty_like(value) for _ in range(processes)]
    torch.distributed.all_gather(parts, value.contiguous())
    return torch.stack(parts)


def restore_state(
    recipe: AbstractRecipe[Any],
    averages: Mapping[str, nn.Module],
    tensors: dict[str, Tensor],
    meta: dict[str, Any],
) -> None:
    """Restore a recipe from the result of `gather_state`.

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
            optimiser.load_state_dict(slots_of(optimiser, below(f"optimisers/{name}/")))
        state = below("state/")
        recipe.load_state({key: value[fabric.global_rank % len(value)] for key, value in state.items()})
        fabric.strategy.precision.load_state_dict(meta.get("scaler", {}))
    except (RuntimeError, KeyError, ValueError, IndexError, TypeError, AttributeError) as error:
        raise WeightsError(f"it does not fit the recipe: {error}") from None


def slots_of(optimiser: Any, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Build an optimiser's state from `INDEX/SLOT` tensors.

    Raises:
        ValueError: a slot is missing or does not fit its weight.
    """
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, slot = key.split("/")
        state.setdefault(int(index), {})[slot] = value
    weights = [weight for group in optimiser.param_groups for weight in group["params"]]
    slots = {slot for values in state.values() for slot in values}
    for index, values in state.items():
        shape = weights[index].shape
        if values.keys() != slots or any(x.ndim and x.shape != shape for x in values.values()):
            raise ValueError(f"the optimiser's state of weight {index} is not whole")
    return {**optimiser.state_dict(), "state": state}
