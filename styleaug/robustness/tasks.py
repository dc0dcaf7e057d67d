"""What differs between tasks in a comparison: how to read, make, train and test. All else is shared."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from jaxtyping import Int
from torch import Tensor

from styleaug.robustness.arms import Arm
from styleaug.robustness.classifier_training import Recipe
from styleaug.robustness.classifiers import Network
from styleaug.robustness.protocol import Protocol, Samples, Source

__all__ = ["Case", "Scored", "Task"]


@dataclass(frozen=True)
class Scored:
    """Result of a network in one domain."""

    score: float
    """The score that arms are compared by, in [0, 1]."""
    by_class: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Further measures by class, if the task has any."""
    given: Tensor | None = None
    """What the network answered for each image, if the task draws it."""
    each: Tensor | None = None
    """Score of each image, NaN if it has none."""


@dataclass(frozen=True)
class Case:
    """A domain after its test, for a picture."""

    images: Tensor
    labels: Tensor
    names: tuple[str, ...]
    tested: Scored


class Task(ABC):
    """A kind of network with its data and its score."""

    masks: ClassVar[bool]
    """Whether the labels are masks."""

    @abstractmethod
    def usual_recipe(self, classifier: str, *, pretrained: bool) -> Recipe:
        """Return the recipe that is used if none is given."""

    @abstractmethod
    def check(self, protocol: Protocol) -> None:
        """Check that a protocol has no option without a meaning in this task."""

    @abstractmethod
    def settings(self, shared: dict[str, Any]) -> dict[str, Any]:
        """Return the settings of a result file, from those that all tasks share."""

    @abstractmethod
    def read(self, source: Source, protocol: Protocol) -> Samples:
        """Read a domain."""

    @abstractmethod
    def network(self, data: Samples, train: Int[Tensor, " T"], protocol: Protocol) -> Network:
        """Make a network with weights from torch's global generator.

        Args:
            data: the training domain.
            train: its rows that are trained on.
            protocol: the protocol.
        """

    @abstractmethod
    def fit(
        self, net: Network, data: Samples, arm: Arm, protocol: Protocol, *, seed: int, steps: int | None
    ) -> None:
        """Train a network in place; see `classifier_training.fit`."""

    @abstractmethod
    def test(self, net: Network, data: Samples, protocol: Protocol) -> Scored:
        """Compute the scores of a network in one domain."""

    @abstractmethod
    def draw(self, path: Path, cases: Mapping[str, Case], classes: tuple[str, ...]) -> None:
        """Draw images of each domain with their labels and the network's answers, if the task has such."""
