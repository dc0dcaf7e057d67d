"""The task of classifiers: folders with a subfolder for each class, and the mean recall."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from jaxtyping import Int
from torch import Tensor

from styleaug.errors import FileError
from styleaug.robustness.arms import Arm
from styleaug.robustness.class_folders import class_names, read_class_folders
from styleaug.robustness.classifier_training import Recipe, answers, fit, recall_mean
from styleaug.robustness.classifiers import Network, default_recipe, make_classifier, unfold_batch_norm
from styleaug.robustness.protocol import Protocol, Samples, Source
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

    def read(self, source: Source, protocol: Protocol) -> Samples:
        """Read folders with a subfolder for each class, or parts of a benchmark."""
        names = class_names(source.path, protocol.classes) if source.classes is None else source.classes
        found = read_class_folders(
            source.path,
            names,
            protocol.recipe.side,
            fit=protocol.fit,
            limit=protocol.limit,
            foreign=protocol.classes is not None,
            most_bytes=source.most_bytes,
            threads=protocol.jobs * protocol.each_threads,
            report=source.report,
        )
        absent = [names[label] for label in range(len(names)) if label not in found.labels]
        if absent and source.classes is None:
            raise FileError(f"{source.path}: no image of {', '.join(absent)} can be read.")
        return Samples(found.images, found.labels, names, found.failed, found.digest)

    def network(self, data: Samples, train: Int[Tensor, " T"], protocol: Protocol) -> Network:
        """Make the classifier that the protocol names."""
        net = make_classifier(
            protocol.classifier, len(data.classes), weights=protocol.weights, pretrained=protocol.pretrained
        )
        if net.folded:
            unfold_batch_norm(net, data.images[train[:: -(-len(train) // CALIBRATED_ON)]].float() / 255)
        return net

    def fit(
        self, net: Network, data: Samples, arm: Arm, protocol: Protocol, *, seed: int, steps: int | None
    ) -> None:
        """Train with the cross-entropy."""
        recipe, device = protocol.recipe, protocol.device
        fit(net, data.images, data.labels, arm, recipe, seed=seed, device=device, steps=steps)

    def test(self, net: Network, data: Samples, protocol: Protocol) -> Scored:
        """Compute the recall, averaged over the classes that the domain has."""
        return Scored(
            recall_mean(answers(net, data.images, precision=protocol.recipe.precision), data.labels)
        )

    def draw(self, path: Path, cases: Mapping[str, Case], classes: tuple[str, ...]) -> None:
        """Draw nothing."""
