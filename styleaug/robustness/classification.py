"""The task of classifiers: folders with a subfolder for each class, and the mean recall."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from jaxtyping import Int, Shaped, UInt8
from torch import Tensor

from styleaug.errors import FileError
from styleaug.robustness.arms import Arm
from styleaug.robustness.class_folders import class_names, read_class_folders
from styleaug.robustness.classifier_training import Recipe, answers, fit, recall_mean
from styleaug.robustness.classifiers import Network, default_recipe, make_classifier, unfold_batch_norm
from styleaug.robustness.protocol import Protocol, Samples
from styleaug.robustness.tasks import Case, Scored, Task

__all__ = ["Classification"]

CALIBRATED_ON = 128
"""Number of training images from which statistics of folded batch norms are computed."""


@dataclass(frozen=True)
class Classification(Task):
    """Train classifiers; the score is the recall, averaged over classes."""

    masks: ClassVar[bool] = False

    def usual_recipe(self, classifier: str, *, pretrained: bool) -> Recipe:
        """Return the recipe of the classifier."""
        return default_recipe(classifier, pretrained=pretrained)

    def check(self, protocol: Protocol) -> None:
        """Accept every protocol."""

    def settings(self, shared: dict[str, Any]) -> dict[str, Any]:
        """Return the shared settings, which name the classifier."""
        return shared

    def read(
        self,
        protocol: Protocol,
        source: Path,
        classes: tuple[str, ...] | None,
        *,
        most_bytes: int,
        report: Callable[[int, int], None],
    ) -> Samples:
        """Read folders with a subfolder for each class."""
        names = class_names(source, protocol.classes) if classes is None else classes
        found = read_class_folders(
            source,
            names,
            protocol.recipe.side,
            fit=protocol.fit,
            limit=protocol.limit,
            foreign=protocol.classes is not None,
            most_bytes=most_bytes,
            threads=protocol.jobs * protocol.each_threads,
            report=report,
        )
        absent = [names[label] for label in range(len(names)) if label not in found.labels]
        if absent and classes is None:
            raise FileError(f"{source}: no image of {', '.join(absent)} can be read.")
        return Samples(found.images, found.labels, names, found.failed, found.digest)

    def network(
        self,
        protocol: Protocol,
        classes: tuple[str, ...],
        images: UInt8[Tensor, "N 3 S S"],
        train: Int[Tensor, " T"],
    ) -> Network:
        """Make the classifier that the protocol names."""
        net = make_classifier(
            protocol.classifier, len(classes), weights=protocol.weights, pretrained=protocol.pretrained
        )
        if net.folded:
            unfold_batch_norm(net, images[train[:: -(-len(train) // CALIBRATED_ON)]].float() / 255)
        return net

    def fit(
        self,
        net: Network,
        images: UInt8[Tensor, "N 3 S S"],
        labels: Int[Tensor, " N"],
        classes: tuple[str, ...],
        arm: Arm,
        protocol: Protocol,
        *,
        seed: int,
        steps: int | None = None,
    ) -> None:
        """Train with the cross-entropy."""
        fit(net, images, labels, arm, protocol.recipe, seed=seed, device=protocol.device, steps=steps)

    def test(
        self,
        net: Network,
        images: Shaped[Tensor, "N 3 S S"],
        labels: Int[Tensor, " N"],
        classes: tuple[str, ...],
        protocol: Protocol,
    ) -> Scored:
        """Compute the recall, averaged over the classes that the domain has."""
        return Scored(recall_mean(answers(net, images, precision=protocol.recipe.precision), labels))

    def draw(self, path: Path, cases: Mapping[str, Case], classes: tuple[str, ...]) -> None:
        """Draw nothing."""
