"""The task of segmentation: images with masks, small networks, and the mean Dice."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from styleaug.checks import check_number
from styleaug.errors import ConfigError, FileError
from styleaug.robustness.arms import Arm
from styleaug.robustness.benchmarks import Part
from styleaug.robustness.classifier_training import VOID, Recipe
from styleaug.robustness.classifiers import Network
from styleaug.robustness.mask_folders import NO_BACKGROUND, read_masked_images
from styleaug.robustness.overlays import draw_overlays
from styleaug.robustness.protocol import HOME, Protocol, Samples, Source
from styleaug.robustness.segmenter_training import (
    dice,
    fit_segmenter,
    has_surface_dice,
    intersection_over_union,
    overlaps,
    segment,
    surface_dice,
)
from styleaug.robustness.segmenters import make_segmenter, usual_segmentation_recipe
from styleaug.robustness.tasks import Case, Scored, Task

__all__ = ["Segmentation"]


@dataclass(frozen=True)
class Segmentation(Task):
    """Train segmentation networks; the score is the Dice, averaged over images, then over classes.

    The Dice of an image and a class is 2 * both / (given + truth), in pixels. An image counts for the classes
    that its mask or the network's answer shows; a class that is in one of them only has a Dice of 0. The
    background does not count, and neither do classes that no mask of a domain shows.

    Example:
        >>> evaluate_robustness("tecom", {"cellavision": "cellavision"}, arms=["none", "jitter+grey"],
        ...     task=Segmentation(void=9))  # doctest: +SKIP
    """

    masks: ClassVar[bool] = True

    segmenter: str = "unet"
    """Name as in `segmenters.make_segmenter`."""
    void: int | None = None
    """Label of pixels that are neither trained on nor scored."""
    background: int = 0
    """Label that does not count; -1 counts all."""
    tolerance: float = 2.0
    """Distance in pixels up to which borders agree, for the surface distance."""

    def __post_init__(self) -> None:
        check_number("tolerance", self.tolerance, 0, 1e6)
        if self.void is not None and self.void == self.background:
            raise ConfigError(f"void and background are both {self.void}; give them different labels.")

    def usual_recipe(self, classifier: str, *, pretrained: bool) -> Recipe:
        """Return the recipe of the network."""
        return usual_segmentation_recipe(self.segmenter, pretrained=pretrained)

    def check(self, protocol: Protocol) -> None:
        """Refuse options for classifiers, and labels that are no numbers."""
        if any(isinstance(source, Part) for source in (protocol.train, *protocol.tests.values())):
            raise ConfigError("benchmarks by name have classes and no masks; use task=classification.")
        if protocol.classifier != "small":
            raise ConfigError("a classifier is for classification; for masks give segmenter=NAME.")
        if protocol.balanced:
            raise ConfigError("balanced classes are for classification; leave that out for masks.")
        if protocol.weights is not None:
            raise ConfigError("a folder of weights is for classifiers; leave it out for masks.")
        if "elastic_transform" in protocol.corruptions:
            raise ConfigError("elastic_transform moves pixels, so masks would no longer fit; leave it out.")
        known = self.known_labels(protocol)
        if known is not None and (len(known) < 2 or len(set(known)) < len(known) or len(known) >= VOID):
            raise ConfigError(f"classes must be 2 to {VOID - 1} different labels, got {protocol.classes}.")
        if known is not None and self.void in known:
            raise ConfigError(f"void={self.void} is also one of the classes; leave it out of one of them.")

    def known_labels(self, protocol: Protocol) -> tuple[int, ...] | None:
        """Return the labels that the user names, the background first."""
        if protocol.classes is None:
            return None
        try:
            labels = [int(label) for label in protocol.classes]
        except ValueError:
            raise ConfigError(
                f"classes of masks are label numbers, such as 0,1,2, got {', '.join(protocol.classes)}."
            ) from None
        return tuple(sorted(labels, key=lambda label: label != self.background))

    def settings(self, shared: dict[str, Any]) -> dict[str, Any]:
        """Return the shared settings with those of the task in place of the classifier."""
        kept = {name: value for name, value in shared.items() if name not in ("classifier", "balanced")}
        return {"task": "segmentation", **asdict(self), **kept}

    def read(self, source: Source, protocol: Protocol) -> Samples:
        """Read images with masks."""
        assert isinstance(source.path, Path), "`check` has refused benchmarks"
        trained = source.classes
        found = read_masked_images(
            source.path,
            protocol.recipe.side,
            labels=self.known_labels(protocol) if trained is None else tuple(map(int, trained)),
            void=self.void,
            background=self.background,
            fit=protocol.fit,
            limit=protocol.limit,
            most_bytes=source.most_bytes,
            threads=protocol.jobs * protocol.each_threads,
            report=source.report,
        )
        if trained is None and HOME not in protocol.tests and len(found.groups) > 1:
            raise FileError(
                f"{source.path} has a column group, and images of a group would be on both sides of a random "
                "home test. Write some groups to a list of their own, and give it as the test home=LIST."
            )
        names = tuple(map(str, found.labels))
        if self.background not in (0, NO_BACKGROUND, *found.labels):
            raise ConfigError(
                f"background={self.background} is none of the labels {', '.join(names)}; "
                f"background={NO_BACKGROUND} counts all of them."
            )
        counted = torch.arange(self.first(names), len(names), dtype=torch.uint8)
        if not torch.isin(found.masks, counted).any():
            raise FileError(f"the masks of {source.path} show nothing but background.")
        return Samples(found.images, found.masks, names, found.failed, found.digest, found.names)

    def first(self, classes: tuple[str, ...]) -> int:
        """Return the index of the first class that counts."""
        return int(classes[0] == str(self.background))

    def network(self, data: Samples, train: Int[Tensor, " T"], protocol: Protocol) -> Network:
        """Make the network of the task."""
        side = protocol.recipe.side
        return make_segmenter(self.segmenter, len(data.classes), side, pretrained=protocol.pretrained)

    def fit(
        self, net: Network, data: Samples, arm: Arm, protocol: Protocol, *, seed: int, steps: int | None
    ) -> None:
        """Train with cross-entropy and Dice loss."""
        fit_segmenter(
            net,
            data.images,
            data.labels,
            arm,
            protocol.recipe,
            seed=seed,
            device=protocol.device,
            first=self.first(data.classes),
            steps=steps,
        )

    def test(self, net: Network, data: Samples, protocol: Protocol) -> Scored:
        """Compute Dice, IoU and, if MONAI is installed, the surface distance of each class."""
        labels, classes = data.labels, data.classes
        given = segment(net, data.images, precision=protocol.recipe.precision)
        counts = overlaps(given, labels, len(classes))
        measured = {"dice": dice(*counts), "iou": intersection_over_union(*counts)}
        if has_surface_dice():
            measured["nsd"] = surface_dice(given, labels, len(classes), self.tolerance)
        first = self.first(classes)
        shown = [index for index in range(first, len(classes)) if counts[2][:, index].any()]
        by_class = {
            classes[index]: {name: round(known_mean(found[:, index]), 5) for name, found in measured.items()}
            for index in shown
        }
        means = torch.tensor([known_mean(measured["dice"][:, index]) for index in shown])
        score = means.mean().item() if shown else float(not counts[1][:, first:].any())
        return Scored(score, by_class, given, measured["dice"][:, first:].nanmean(dim=1))

    def draw(self, path: Path, cases: Mapping[str, Case], classes: tuple[str, ...]) -> None:
        """Draw the best, the median and the worst image of each domain."""
        draw_overlays(path, cases, self.first(classes))


def known_mean(values: Float[Tensor, " N"]) -> float:
    """Return the mean of those values that are not NaN."""
    return values.nanmean().item()
