"""The scores of a training run, its best weights, and its patience."""

import math
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from styleaug.errors import WeightsError
from styleaug.generators.base import AbstractGenerator
from styleaug.weights import load_generator, save_generator

__all__ = ["Best"]

Products = Mapping[str, AbstractGenerator]

LEAST_GAIN = 0.001
"""Least improvement of a score that counts: absolute, or relative for scores above 1."""


class Best:
    """Keep the scores of a run and its best weights, which are also in each checkpoint.

    Args:
        folder: folder of the `best-NAME.safetensors`, which can be tried while the run goes on.
        patience: number of scores in a row without improvement after which the run ends; 0 is no limit.

    Attributes:
        scores: scores of each scored step, in order, with the `"step"`.
        weights: weights of the best step in float16, as `best/NAME/KEY`.
        since: the step from which patience counts.
    """

    folder: Path
    patience: int
    since: int

    def __init__(self, folder: Path, *, patience: int):
        self.folder, self.patience = folder, patience
        self.scores: list[dict[str, Any]] = []
        self.weights: dict[str, Tensor] = {}
        self.since = 0

    @property
    def row(self) -> dict[str, Any]:
        """Return the scores of the step with the lowest `score`."""
        return min(self.scores, key=lambda row: row["score"] if math.isfinite(row["score"]) else math.inf)

    def add(self, step: int, scores: Mapping[str, float], products: Products) -> None:
        """Add the scores of a step; keep the weights if they are the best so far."""
        self.scores.append({"step": step, **scores})
        if self.row["step"] == step:
            states = {f"best/{name}": product.state_dict() for name, product in products.items()}
            self.weights = {
                f"{name}/{key}": value.detach().half().cpu().contiguous().clone()
                for name, state in states.items()
                for key, value in state.items()
            }
            self.write_all(products)

    def is_scored(self, step: int) -> bool:
        """Return whether the last scores are those of `step`."""
        return bool(self.scores) and self.scores[-1]["step"] == step

    def is_out_of_patience(self) -> bool:
        """Return whether the last `patience` scores brought no improvement."""
        least, gained = math.inf, self.since
        for row in self.scores:
            if row["score"] < least:
                least = row["score"] - LEAST_GAIN * max(1, abs(row["score"]))
                gained = max(row["step"], self.since)
        return 0 < self.patience <= sum(row["step"] > gained for row in self.scores)

    def be_patient_from(self, step: int) -> None:
        """Restart the count at `step` if patience has run out, for a run that is prolonged."""
        if self.is_out_of_patience():
            self.since = step

    def write_all(self, products: Products) -> None:
        """Write the best weights beside the checkpoints."""
        for name in products if self.weights else ():
            self.write(name, products[name], self.folder / f"best-{name}.safetensors")

    def write(self, name: str, product: AbstractGenerator, path: Path) -> None:
        """Write a copy of `product` with the best weights of `name`."""
        best, prefix = deepcopy(product), f"best/{name}/"
        mine = {key: value for key, value in self.weights.items() if key.startswith(prefix)}
        best.load_state_dict({key.removeprefix(prefix): value for key, value in mine.items()})
        save_generator(best, path)

    def facts(self) -> dict[str, Any]:
        """Return the JSON values that a checkpoint must hold besides the weights."""
        return {"scores": self.scores, "since": self.since}

    def load(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], products: Products) -> None:
        """Restore scores and weights from a checkpoint.

        Raises:
            WeightsError: the checkpoint is damaged, or it is of an earlier version and the best weights
                beside it are damaged.
        """
        try:
            scores, since = [dict(row) for row in facts["scores"]], int(facts.get("since", 0))
            for row in scores:
                row |= {"step": int(row["step"]), "score": float(row["score"])}
        except (TypeError, ValueError, KeyError) as error:
            raise WeightsError(f"its scores cannot be read ({error!r})") from None
        weights = {key: value for key, value in tensors.items() if key.startswith("best/")}
        if scores and not weights:
            for name in products:
                saved = load_generator(self.folder / f"best-{name}.safetensors").state_dict()
                weights |= {f"best/{name}/{key}": value.half() for key, value in saved.items()}
        wanted = shapes({name: product.state_dict() for name, product in products.items()} if scores else {})
        if {key: value.shape for key, value in weights.items()} != wanted:
            raise WeightsError("its best weights are not whole")
        self.scores, self.since, self.weights = scores, since, weights


def shapes(states: Mapping[str, Mapping[str, Tensor]]) -> dict[str, torch.Size]:
    """Return the shapes of the best weights of some networks, by key."""
    return {f"best/{name}/{key}": x.shape for name, state in states.items() for key, x in state.items()}
