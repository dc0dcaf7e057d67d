"""Lightning Fabric: devices, precision, and processes that share a batch."""

import os
import warnings
from importlib.util import find_spec
from typing import Any

import torch

from styleaug.errors import ConfigError, missing_extra
from styleaug.generators.base import keep_freed_memory
from styleaug.training.config import TrainConfig

__all__ = ["check_device", "make_fabric", "share_of"]


def make_fabric(config: TrainConfig) -> Any:
    """Start Fabric; in a process of torchrun or `fabric run`, join its group.

    Raises:
        ConfigError: `lightning-fabric` is not installed, or the device does not exist.
    """
    accelerator = check_device(config.device)
    from lightning_fabric import Fabric

    if accelerator == "cpu":
        keep_freed_memory()
    # The number of processes from torchrun, if it started this process.
    local = int(os.environ.get("LOCAL_WORLD_SIZE", str(config.devices)))
    nodes = int(os.environ.get("WORLD_SIZE", str(local))) // local if "LOCAL_WORLD_SIZE" in os.environ else 1
    several = local * nodes > 1
    if several and accelerator == "cpu":
        torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about workers and precisions that a CPU lacks
        fabric = Fabric(
            accelerator=accelerator,
            devices=local,
            num_nodes=nodes,
            strategy="ddp" if several else "auto",
            precision=config.precision,
        )
        if several and "LT_CLI_USED" not in os.environ:
            fabric.launch()
    return fabric


def check_device(device: str) -> str:
    """Return the kind of device that `device` means: `"cpu"` or `"cuda"`.

    Raises:
        ConfigError: `lightning-fabric` is not installed, or the device does not exist.
    """
    if find_spec("lightning_fabric") is None:
        raise missing_extra("training", "lightning-fabric", "train")
    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"device must be auto, cpu or cuda, got {device!r}.")
    cuda = torch.cuda.is_available()
    if device == "cuda" and not cuda:
        raise ConfigError("device 'cuda' was asked for, but torch finds no GPU. Use device='cpu'.")
    return "cuda" if cuda and device != "cpu" else "cpu"


def share_of(batch: int, rank: int, world: int) -> range:
    """Return the rows of a batch that a process takes.

    Raises:
        ConfigError: the batch cannot be divided equally.
    """
    if batch % world:
        raise ConfigError(f"batch must be a multiple of the {world} processes, got {batch}.")
    return range(rank * batch // world, (rank + 1) * batch // world)
