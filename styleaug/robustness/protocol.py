"""The protocol of a robustness test: what is trained on, how, and what it is tested on."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from styleaug.errors import ConfigError, FileError, name_bytes
from styleaug.robustness.arms import ArmSpec, parse_arm
from styleaug.robustness.class_folders import ClassFolders, Fit, class_names, read_class_folders, split_home
from styleaug.robustness.classifier_training import Recipe
from styleaug.robustness.classifiers import default_recipe
from styleaug.robustness.corruptions import CORRUPTIONS

__all__ = ["HOME", "Protocol", "Store"]

HOME = "home"
TRAIN = "train"
RESERVED = {TRAIN, "mean of others", "corrupted", ""}
_SEVERITIES = (1, 2, 3, 4, 5)
LEAST_CORRUPTED = 32
"""Pixels that an image must have to be corrupted."""
CIFAR_SIDE = 64
"""Up to this side corruptions are scaled as CIFAR-10-C's are."""


@dataclass(frozen=True)
class Protocol:
    """What a robustness test does.

    Args:
        train: folder with a folder per class.
        tests: other domains by name, with the same classes or some of them; `"home"` takes the place of
            the images that are held out of `train`.
        arms: see `styleaug.robustness.arms`.
        baseline: name of the arm that the others are compared with; None takes `none`, or the first.
        classifier: see `make_classifier`.
        recipe: of the training; None takes the classifier's own.
        seeds: runs of each arm, with seeds 0, 1, ...
        corruptions: names, applied to the home test.
        severities: of the corruptions, from 1 to 5.
        classes: use these only; None uses all of `train`.
        held_out: least share of each class that is kept for the home test.
        per_class: train on so many images of each class.
        balanced: repeat the images of smaller classes.
        limit: read so many images per class and folder at most.
        fit: how an image becomes square: `"crop"` or `"squash"`.
        weights: folder of ImageNet weights.
        pretrained: start from them.
        jobs: runs side by side.
        threads: of each run; None shares the cores.
        device: that is trained on.
        memory: GiB for images in memory, and again for corrupted ones on disk.

    Raises:
        ConfigError: an argument outside its range.
    """

    train: Path
    tests: Mapping[str, Path]
    arms: tuple[ArmSpec, ...]
    baseline: str | None = None
    classifier: str = "small"
    recipe: Recipe = field(default_factory=lambda: default_recipe("small"))
    seeds: int = 3
    corruptions: tuple[str, ...] = ()
    severities: tuple[int, ...] = _SEVERITIES
    classes: tuple[str, ...] | None = None
    held_out: float = 0.2
    per_class: int | None = None
    balanced: bool = False
    limit: int | None = None
    fit: Fit = "crop"
    weights: Path | None = None
    pretrained: bool = True
    jobs: int = 1
    threads: int | None = None
    device: str = "cpu"
    memory: float = 4.0

    @classmethod
    def of(
        cls,
        train: str | Path,
        tests: Mapping[str, str | Path] | Sequence[str | Path] = (),
        *,
        arms: Sequence[str],
        classifier: str = "small",
        pretrained: bool = True,
        recipe: Recipe | None = None,
        **options: Any,
    ) -> "Protocol":
        """Make a protocol of plain values: folders by name or alone, arms as text."""
        named = tests.items() if isinstance(tests, Mapping) else [(Path(test).name, test) for test in tests]
        folders: dict[str, Path] = {}
        for name, folder in named:
            if name in folders:
                raise ConfigError(f"two tests are called {name!r}; name them: NAME=DIR.")
            folders[name] = Path(folder)
        return cls(
            Path(train),
            folders,
            tuple(parse_arm(arm) for arm in arms),
            classifier=classifier,
            pretrained=pretrained,
            recipe=recipe or default_recipe(classifier, pretrained=pretrained),
            **options,
        )

    def __post_init__(self):
        names = [arm.name for arm in self.arms]
        twice = sorted({name for name in names if names.count(name) > 1})
        if not names or twice:
            raise ConfigError(
                f"two arms are called {', '.join(map(repr, twice))}; name one: NAME=SPEC."
                if twice
                else "give at least one arm."
            )
        if taken := set(self.tests) & RESERVED:
            raise ConfigError(f"a test cannot be called {taken.pop()!r}; name it otherwise: NAME=DIR.")
        if self.baseline is not None and self.baseline not in names:
            raise ConfigError(f"the baseline {self.baseline!r} is no arm; there are {', '.join(names)}.")
        if unknown := sorted(set(self.corruptions) - set(CORRUPTIONS)):
            raise ConfigError(
                f"unknown corruption {', '.join(unknown)}; choose from {', '.join(CORRUPTIONS)}, or all."
            )
        if not set(self.severities) <= set(_SEVERITIES) or (self.corruptions and not self.severities):
            raise ConfigError(f"severities must lie in 1..5, got {self.severities}.")
        if self.corruptions and self.recipe.side < LEAST_CORRUPTED:
            raise ConfigError(
                f"corruptions need a side of at least {LEAST_CORRUPTED} pixels, got {self.recipe.side}."
            )
        for name in ("seeds", "jobs", "memory"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be above 0, got {getattr(self, name)!r}.")
        for name in ("per_class", "limit", "threads"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)!r}.")
        if not 0 < self.held_out < 1:
            raise ConfigError(f"held_out must lie between 0 and 1, got {self.held_out!r}.")
        _check_device(self.device)

    @property
    def compared_with(self) -> str:
        """Name the baseline."""
        names = [arm.name for arm in self.arms]
        return self.baseline or ("none" if "none" in names else names[0])

    @property
    def each_threads(self) -> int:
        """Tell the threads of a run."""
        return self.threads or max(1, (os.cpu_count() or 1) // self.jobs)

    @property
    def scale(self) -> str:
        """Tell how strong corruptions are meant."""
        return "cifar" if self.recipe.side <= CIFAR_SIDE else "imagenet"

    def split(self, labels: Int[Tensor, " N"], seed: int) -> tuple[Tensor, Tensor]:
        """Draw the rows to train on and those of the home test."""
        held_out = 0.0 if HOME in self.tests else self.held_out
        return split_home(labels, seed, held_out=held_out, per_class=self.per_class, balanced=self.balanced)

    def settings(self, store: "Store") -> dict[str, Any]:
        """Give what all runs in a file share: enough to refuse to mix, and to run it again."""
        return {
            "classes": list(store.classes),
            "classifier": self.classifier,
            "pretrained": self.pretrained,
            "recipe": self.recipe.to_dict(),
            "fit": self.fit,
            "held_out": None if HOME in self.tests else self.held_out,
            "per_class": self.per_class,
            "balanced": self.balanced,
            "limit": self.limit,
            "corruptions": list(self.corruptions),
            "severities": list(self.severities) if self.corruptions else [],
            "domains": {
                name: {"images": domain.images, "digest": domain.digest}
                for name, domain in store.domains.items()
            },
        }


def _check_device(device: str) -> None:
    """Refuse a device that torch does not have."""
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"device {device!r} cannot be used: {reason}") from None


@dataclass(frozen=True)
class Domain:
    """What is known of a domain without its tensors; see `ClassFolders`."""

    images: int
    failed: tuple[tuple[Path, str], ...]
    digest: str


@dataclass(frozen=True)
class Store:
    """The images of a protocol, read once, in files that all processes map into their memory.

    It holds no tensor: those that are sent to a process go through sockets of the first one.

    Args:
        folder: of the files.
        classes: names, in the order of the labels.
        domains: what was read, `"train"` first.
    """

    folder: Path
    classes: tuple[str, ...]
    domains: Mapping[str, Domain]

    @classmethod
    def fill(cls, folder: Path, protocol: Protocol, *, report: Callable[[str, int, int], None]) -> "Store":
        """Read all folders of a protocol, and keep their images as files in `folder`."""
        classes = class_names(protocol.train, protocol.classes)
        domains: dict[str, ClassFolders] = {}
        left = int(protocol.memory * 2**30)
        for name, source in {TRAIN: protocol.train, **protocol.tests}.items():
            domain = read_class_folders(
                source,
                classes,
                protocol.recipe.side,
                fit=protocol.fit,
                limit=protocol.limit,
                foreign=protocol.classes is not None,
                most_bytes=left,
                threads=protocol.jobs * protocol.each_threads,
                report=lambda done, total, name=name: report(name, done, total),
            )
            left -= domain.images.numel()
            np.save(folder / f"{slot(name)}.npy", domain.images.numpy())
            np.save(folder / f"{slot(name)}-labels.npy", domain.labels.numpy())
            domains[name] = domain
        absent = [classes[label] for label in range(len(classes)) if label not in domains[TRAIN].labels]
        if absent:
            raise FileError(f"{protocol.train}: no image of {', '.join(absent)} can be read.")
        return cls(
            folder,
            classes,
            {name: Domain(len(read.labels), read.failed, read.digest) for name, read in domains.items()},
        )

    @property
    def failed(self) -> list[tuple[Path, str]]:
        """List the files that could not be read."""
        return [failure for domain in self.domains.values() for failure in domain.failed]

    def labels(self, name: str) -> Int[Tensor, " N"]:
        """Give the labels of a domain."""
        return mapped(self.folder / f"{slot(name)}-labels.npy")

    def images(self, name: str) -> Shaped[Tensor, "N 3 S S"]:
        """Map the images of a domain."""
        return mapped(self.folder / f"{slot(name)}.npy")


def slot(name: str) -> str:
    """Give a name that any file system takes."""
    return name_bytes(name).hex()[:200]


def mapped(path: Path) -> Shaped[Tensor, "N ..."]:
    """Map a file into memory; writes stay private."""
    return torch.from_numpy(np.load(path, mmap_mode="c"))
