"""Quick checks before a training run, for `styleaug train --dry-run`."""

import warnings
from pathlib import Path
from typing import Any

from styleaug.errors import ConfigError, FileError
from styleaug.perceptual import load_features
from styleaug.training.base import AbstractRecipe
from styleaug.training.checkpoints import Checkpoints
from styleaug.training.data import LEAST_HELD_OUT, TrainingData, nothing_readable
from styleaug.training.fabric import check_device

__all__ = ["check_images", "check_inputs", "check_run"]


def check_run(
    recipe: AbstractRecipe[Any],
    data: TrainingData,
    run: str | Path,
    *,
    networks: Path | None = None,
    resume: bool = False,
) -> None:
    """Check everything that `train` needs for a run, without writing, downloading or training.

    Args:
        recipe: the recipe, as for `train`.
        data: the two sides, as for `train`.
        run: the folder of the run.
        networks: folder of loss networks.
        resume: whether to go on with a run in the folder.

    Raises:
        ConfigError: `run` holds a run with other options or images, or a run while `resume` is False; the
            device does not exist; a side has fewer than two images.
        WeightsError: a loss network is missing or damaged, or no checkpoint can be used.
        FileError: no image can be read, or the folder cannot be made.

    Warns:
        UserWarning: a checkpoint is damaged; a resumed run would use the one before.
    """
    check_inputs(recipe, data, networks)
    checkpoints = Checkpoints(Path(run), keep=recipe.config.keep)
    checkpoints.check_place(resume=resume)
    if resume:
        damaged = checkpoints.take_up(
            recipe.config, lambda tensors, meta: check_images(data, run, meta["data"])
        )
        for _, why in damaged:
            warnings.warn(f"{why}. A resumed run passes over it.", stacklevel=2)


def check_inputs(recipe: AbstractRecipe[Any], data: TrainingData, networks: Path | None) -> None:
    """Check the device, the loss networks in a folder, and that two images of each side can be read.

    Raises:
        ConfigError: the device is not there, or a side has fewer than two images.
        WeightsError: a loss network is missing or damaged.
        FileError: there is no folder `networks`, or no image of a side can be read.
    """
    check_device(recipe.config.device)
    if networks is not None:
        if not networks.is_dir():
            raise FileError(f"there is no folder of loss networks {str(networks)!r}.")
        recipe.check_networks(networks)
        load_features(recipe.config.features, networks)
    for side in (*data.train, *data.held):
        found = len(list(side.readable(LEAST_HELD_OUT)))
        if not found:
            raise nothing_readable(side)
        if side in data.held and found < LEAST_HELD_OUT:
            more = f"; {reason}" if (reason := next(iter(side.failed.values()), "")) else ""
            raise ConfigError(f"scores need at least 2 held-out images on each side, got {found}{more}.")


def check_images(data: TrainingData, run: str | Path, fingerprint: str) -> None:
    """Check that a resumed run was started with the same images.

    Raises:
        ConfigError: `fingerprint` is not the fingerprint of `data`.
    """
    if fingerprint != data.fingerprint:
        raise ConfigError(
            f"{run} was trained on other images (some came, went or changed their class). Give those it was "
            "started with, or another run folder."
        )
