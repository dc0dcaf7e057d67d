"""The protocol of a robustness test: training data, training and tests."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, Integer, Shaped, UInt8
from torch import Tensor

from styleaug.errors import ConfigError, name_bytes
from styleaug.io.lists import LISTS
from styleaug.robustness.arms import ArmSpec, parse_arm
from styleaug.robustness.benchmarks import HOME, TRAIN, Part, is_benchmark, parts_named, source_and_tests
from styleaug.robustness.class_folders import Squaring, split_home
from styleaug.robustness.classifier_training import Recipe
from styleaug.robustness.classifiers import default_recipe
from styleaug.robustness.corruptions import CORRUPTIONS

__all__ = ["HOME", "Protocol", "Samples", "Source", "Store", "domain_name"]

RESERVED = {TRAIN, "mean of others", "corrupted", ""}
_SEVERITIES = (1, 2, 3, 4, 5)
LEAST_CORRUPTED = 32
"""Least side in pixels of an image that is corrupted."""
CIFAR_SIDE = 64
"""Largest side in pixels for which corruptions have the scale of CIFAR-10-C."""


@dataclass(frozen=True)
class Protocol:
    """Settings of a robustness test.

    Args:
        train: folder with a subfolder for each class, or a part of a benchmark.
        tests: other domains by name, with the same classes or some of them; `"home"` replaces
            the held-out images of `train`.
        arms: lines as in `styleaug.robustness.arms`.
        baseline: name of the arm that the others are compared with; None is `none`, or the first.
        classifier: name as in `make_classifier`.
        recipe: recipe of the training; None uses the classifier's own.
        seeds: number of runs of each arm, with seeds 0, 1, ...
        corruptions: names of corruptions, applied to the home test.
        severities: severities of the corruptions, from 1 to 5.
        classes: names of the classes to use; None uses all of `train`.
        held_out: least share of each class for the home test, in (0, 1).
        per_class: number of training images of each class.
        balanced: repeat the images of smaller classes.
        limit: largest number of images per class and folder.
        fit: how an image becomes square: `"crop"` or `"squash"`.
        weights: folder of ImageNet weights.
        pretrained: start from ImageNet weights.
        jobs: number of runs in parallel.
        threads: number of threads of each run; None divides the cores.
        device: device of the training.
        memory: GiB for images in memory, and the same for corrupted images on disk.

    Raises:
        ConfigError: an argument is out of its range.
    """

    train: Path | Part
    tests: Mapping[str, Path | Part]
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
    fit: Squaring = "crop"
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
        """Make a protocol from plain values: folders with or without names, arms as text.

        A benchmark as the source brings its home test, and its other tests if none are given.
        """
        named = named_tests(tests.items() if isinstance(tests, Mapping) else [(None, test) for test in tests])
        source: Path | Part = Path(train)
        if is_benchmark(train):
            source, own = source_and_tests(train)
            named = {name: part for name, part in own.items() if name == HOME or not named} | named
        return cls(
            source,
            named,
            tuple(parse_arm(arm) for arm in arms),
            classifier=classifier,
            pretrained=pretrained,
            recipe=recipe or default_recipe(classifier, pretrained=pretrained),
            **options,
        )

    def __post_init__(self) -> None:
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
        """Return the name of the baseline."""
        names = [arm.name for arm in self.arms]
        return self.baseline or ("none" if "none" in names else names[0])

    @property
    def each_threads(self) -> int:
        """Return the number of threads of a run."""
        return self.threads or max(1, (os.cpu_count() or 1) // self.jobs)

    @property
    def scale(self) -> str:
        """Return the scale of the corruptions, `"imagenet"` or `"cifar"`."""
        return "cifar" if self.recipe.side <= CIFAR_SIDE else "imagenet"

    def split(self, labels: Integer[Tensor, "N ..."], seed: int) -> tuple[Tensor, Tensor]:
        """Draw the training rows and the rows of the home test; images with masks are of one class."""
        labels = labels if labels.ndim == 1 else torch.zeros(len(labels), dtype=torch.long)
        held_out = 0.0 if HOME in self.tests else self.held_out
        return split_home(labels, seed, held_out=held_out, per_class=self.per_class, balanced=self.balanced)

    def settings(self, store: "Store") -> dict[str, Any]:
        """Return the settings that all runs of a file share, which suffice to repeat them."""
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


def named_tests(tests: Iterable[tuple[str | None, str | Path | Part]]) -> dict[str, Path | Part]:
    """Return tests by name; a benchmark stands for all of its parts, if none is named.

    Raises:
        ConfigError: two have one name, or one name stands for several parts.
        FileError: a benchmark is not there.
    """
    found: dict[str, Path | Part] = {}
    for name, source in tests:
        parts: dict[str, Path | Part]
        if isinstance(source, Part):
            parts = {source.name: source}
        elif is_benchmark(source):
            parts = {**parts_named(source)}
        else:
            parts = {domain_name(source): Path(source)}
        if name is not None and len(parts) > 1:
            raise ConfigError(f"{name}={source} stands for {', '.join(parts)}; leave out the name.")
        for own, part in parts.items():
            if (name or own) in found:
                raise ConfigError(f"two tests are called {name or own!r}; name them: NAME=DIR.")
            found[name or own] = part
    return found


def domain_name(source: str | Path) -> str:
    """Return the name of a folder, or of a list without its suffix."""
    path = Path(source)
    return path.stem if path.suffix.lower() in LISTS and not path.is_dir() else path.name


def _check_device(device: str) -> None:
    """Check that torch can use a device."""
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"device {device!r} cannot be used: {reason}") from None


@dataclass(frozen=True)
class Samples:
    """The images of one domain and what belongs to each.

    Args:
        images: square images, uint8.
        labels: index of each image's class, or its mask of such indices.
        classes: names of the classes, in the order of the indices.
        failed: files that could not be used, with the reasons.
        digest: hash of the names and sizes of the files, to recognise the set.
        names: names of the images, if the task shows them.
    """

    images: UInt8[Tensor, "N 3 S S"]
    labels: Integer[Tensor, "N ..."]
    classes: tuple[str, ...]
    failed: tuple[tuple[Path, str], ...] = ()
    digest: str = ""
    names: tuple[str, ...] = ()

    def at(self, rows: Int[Tensor, " R"]) -> "Samples":
        """Return the samples with only these rows, in this order."""
        names = tuple(self.names[row] for row in rows.tolist()) if self.names else ()
        return replace(self, images=self.images[rows], labels=self.labels[rows], names=names)


@dataclass(frozen=True)
class Source:
    """A domain to read.

    Args:
        path: its folder or list, or a part of a benchmark.
        classes: names of the classes of the training; None for the training itself.
        most_bytes: memory that is left, in bytes.
        report: called with the number of images read and the number in all.
    """

    path: Path | Part
    classes: tuple[str, ...] | None
    most_bytes: int
    report: Callable[[int, int], None]


Read = Callable[[Source, Protocol], Samples]
"""Function that reads a domain."""


@dataclass(frozen=True)
class Domain:
    """Description of a domain without its tensors; see `Samples`."""

    images: int
    failed: tuple[tuple[Path, str], ...]
    digest: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class Store:
    """The images of a protocol, read once, in files that all processes map into their memory.

    It holds no tensors, because tensors that are sent to a process go through sockets of the first process.

    Args:
        folder: folder of the files.
        classes: names of the classes, in the order of the labels.
        domains: descriptions of the domains, `"train"` first.
    """

    folder: Path
    classes: tuple[str, ...]
    domains: Mapping[str, Domain]

    @classmethod
    def fill(
        cls, folder: Path, protocol: Protocol, read: Read, *, report: Callable[[str, int, int], None]
    ) -> "Store":
        """Read all domains of a protocol, and write their images to files in `folder`.

        Args:
            folder: folder for the files.
            protocol: the protocol.
            read: reads a domain.
            report: called with the name of a domain, the number of images read and the number in all.
        """
        classes: tuple[str, ...] | None = None
        domains: dict[str, Domain] = {}
        left = int(protocol.memory * 2**30)
        for name, path in {TRAIN: protocol.train, **protocol.tests}.items():
            source = Source(path, classes, left, lambda done, total, name=name: report(name, done, total))
            found = read(source, protocol)
            classes = found.classes
            left -= found.images.nbytes + found.labels.nbytes
            np.save(folder / f"{slot(name)}.npy", found.images.numpy())
            np.save(folder / f"{slot(name)}-labels.npy", found.labels.numpy())
            domains[name] = Domain(len(found.labels), found.failed, found.digest, found.names)
        assert classes is not None
        return cls(folder, classes, domains)

    @property
    def failed(self) -> list[tuple[Path, str]]:
        """List the files that could not be read."""
        return [failure for domain in self.domains.values() for failure in domain.failed]

    def labels(self, name: str) -> Integer[Tensor, "N ..."]:
        """Return the labels of a domain, or its masks."""
        return mapped(self.folder / f"{slot(name)}-labels.npy")

    def images(self, name: str) -> Shaped[Tensor, "N 3 S S"]:
        """Return the images of a domain, mapped into memory."""
        return mapped(self.folder / f"{slot(name)}.npy")

    def samples(self, name: str) -> Samples:
        """Return a domain, its tensors mapped into memory."""
        domain = self.domains[name]
        images, labels = self.images(name), self.labels(name)
        return Samples(images, labels, self.classes, domain.failed, domain.digest, domain.names)


def slot(name: str) -> str:
    """Return a name that is valid on any file system."""
    return name_bytes(name).hex()[:200]


def mapped(path: Path) -> Shaped[Tensor, "N ..."]:
    """Map a file into memory; changes are not written to it."""
    return torch.from_numpy(np.load(path, mmap_mode="c"))
