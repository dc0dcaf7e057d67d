"""Scores on held-out images, which choose the best checkpoint, and alarms."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from styleaug.errors import ConfigError
from styleaug.perceptual import check_rows, frechet_distance, kernel_distance
from styleaug.training.losses import edge_correlation

__all__ = ["Judge", "alarms"]

STRUCTURE_WEIGHT = 0.5
"""Weight of lost structure in the score. A result without the source's edges costs 0.5."""
L1_WEIGHT = 2.0
"""Weight of the L1 distance to the true targets. A distance of 0.1 is clearly visible and costs 0.2."""
NEAR = 0.01
"""Sources with a smaller distance count as in the target domain; distances are then not divided."""
LEAST_COLOUR = 0.02
"""Smallest distance of colours by which a distance is divided."""
LONG = 30
"""Number of log entries in a row that the discriminator must win before an alarm."""
WINS = 0.05
"""A discriminator loss below this is practically zero, for all kinds of adversarial loss."""
COLLAPSED = 0.2
"""Diversity below which outputs look the same."""


class Judge:
    """Score a translator on held-out images: distance to the target domain, kept structure.

    Features are standardised, entry by entry, by mean and deviation of both domains together. With the
    targets' deviation alone, sources far from narrow targets would hide all progress of the training.

    Args:
        features: function as returned by `load_features`.
        targets: images of the target domain; if paired, the partners of `sources`, in order.
        sources: input images of the translator.
        paired: whether `targets[i]` is the true result for `sources[i]`.
        distance: distance of features, "kid" or "fid". FID is biased if there are fewer images than
            features; the bias is the same for all scores of one run.

    Raises:
        ConfigError: fewer than two images on a side, or pairs that do not match.
    """

    features: Callable[[Tensor], Tensor]
    paired: bool
    mean: Tensor

    def __init__(
        self,
        features: Callable[[Tensor], Tensor],
        targets: Float[Tensor, "N 3 H W"],
        sources: Float[Tensor, "M 3 H2 W2"],
        *,
        paired: bool,
        distance: Literal["kid", "fid"] = "kid",
    ):
        check_rows(targets, sources)
        if paired and targets.shape != sources.shape:
            raise ConfigError(
                f"paired sources and targets must have one shape, got {tuple(sources.shape)} and "
                f"{tuple(targets.shape)}."
            )
        self.features, self.paired, self.distance = features, paired, distance
        self.measure: Callable[[Tensor, Tensor], float] = {"kid": kernel_distance, "fid": frechet_distance}[
            distance
        ]
        self.sources: Tensor = sources.detach().cpu().float()
        self.truth: Tensor = targets.detach().cpu().float() if paired else self.sources
        of_targets, of_sources = raw(features, targets), raw(features, sources)
        both = torch.cat([of_targets, of_sources])
        # Entries that hardly vary in either domain must not count more than the others.
        self.mean, scale = both.mean(dim=0), both.std(dim=0)
        self.scale: Tensor = scale.clamp_min(max(0.1 * float(scale.mean()), 1e-6))
        self.targets: Tensor = self.standardised(of_targets)
        untouched = self.standardised(of_sources)
        self.untouched: float = self.measure(untouched, self.targets)
        # A perfect translator is as diverse as the targets, which may be less diverse than the sources.
        self.spread: float = min(_spread(untouched), _spread(self.targets))
        self.palette: Tensor = palette(targets)
        self.colour: float = max(LEAST_COLOUR, float((palette(sources) - self.palette).norm()))

    def standardised(self, features: Float[Tensor, "N S"]) -> Float[Tensor, "N S"]:
        """Standardise features by mean and deviation of both domains."""
        return (features - self.mean) / self.scale

    def score(self, outputs: Float[Tensor, "M 3 H W"]) -> dict[str, float]:
        """Score the translator's outputs for the sources, in their order.

        Returns:
            `kid` or `fid`: distance of outputs and targets, divided by that of sources and targets. 1 means
            no change, 0 indistinguishable. It is not divided if the sources are already in the target domain.
            `structure`: correlation of the outputs' edges with the sources' (if paired, with the true
            targets'); 1 means fully kept. `l1`: distance to the true targets, if paired. `diversity`: mean
            distance between the outputs' features, divided by that of the sources or of the targets,
            whichever is less; 0 is a collapsed translator. `colour`: distance of the outputs' mean colour and
            deviation from the targets', divided by that of the sources; above 1 is worse than no change.
            `score`: `kid` or `fid` (at least 0) + 0.5 (1 - structure) + 2 l1; lower is better.

        Raises:
            ConfigError: the outputs do not have the shape of the sources.
        """
        if outputs.shape != self.sources.shape:
            raise ConfigError(
                f"outputs must have the shape of the sources, {tuple(self.sources.shape)}; "
                f"got {tuple(outputs.shape)}."
            )
        images = outputs.detach().cpu().float()
        codes = self.standardised(raw(self.features, images))
        distance = self.measure(codes, self.targets) / (self.untouched if self.untouched > NEAR else 1)
        scores = {self.distance: distance, "structure": float(edge_correlation(images, self.truth).mean())}
        if self.paired:
            scores["l1"] = float((images - self.truth).abs().mean())
        scores["diversity"] = _spread(codes) / self.spread if self.spread > 1e-6 else 1.0
        scores["colour"] = float((palette(images) - self.palette).norm()) / self.colour
        lost = STRUCTURE_WEIGHT * (1 - scores["structure"]) + L1_WEIGHT * scores.get("l1", 0)
        return scores | {"score": max(distance, 0) + lost}


def raw(features: Callable[[Tensor], Tensor], images: Tensor) -> Float[Tensor, "N S"]:
    """Compute features as float64 on the CPU, so that scores do not depend on the device."""
    with torch.no_grad():
        return features(images).detach().cpu().double()


def _spread(features: Float[Tensor, "N S"]) -> float:
    """Compute the mean distance between rows."""
    return float(F.pdist(features).mean())


def palette(images: Float[Tensor, "N 3 H W"]) -> Float[Tensor, " 6"]:
    """Compute the mean and the deviation of all pixels for each channel."""
    pixels = images.detach().cpu().double().transpose(0, 1).flatten(1)
    return torch.cat([pixels.mean(dim=1), pixels.std(dim=1)])


def alarms(history: Sequence[dict[str, float]], scores: Sequence[dict[str, float]]) -> list[str]:
    """List the problems of a run in plain words, each with advice; empty if there are none.

    A text stays the same from call to call while its reason lasts.

    Args:
        history: logged losses of the run so far, in order.
        scores: results of `Judge.score` so far, in order.
    """
    texts = []
    for name in sorted({name for losses in history[-1:] for name in losses}):
        if name.startswith("discriminator") and discriminator_wins(history, name):
            texts.append(
                f"The discriminator wins: its loss ({name}) has been below {WINS:g} for {LONG} log entries, "
                "and the generator does not fool it more than before. Lower the discriminator's learning "
                "rate, switch on DiffAugment or the R1 penalty, or stop and take the chosen checkpoint."
            )
    if falls_below(scores, "diversity", COLLAPSED):
        texts.append(
            f"Mode collapse: the outputs differ among themselves less than {COLLAPSED:.0%} of what they "
            "should, and ever less. Stop and take the chosen checkpoint; then start anew with a lower "
            "learning rate, DiffAugment, or more weight on the losses that keep the content."
        )
    if len(scores) > 1 and scores[-1].get("colour", 0) > max(1, scores[-2].get("colour", 0)):
        texts.append(
            "Colour drift: the outputs' colours are farther from the targets' than those of the untouched "
            "sources, and going away. Take the chosen checkpoint; if it lasts, lower the learning rates or "
            "give more weight to the identity or L1 loss."
        )
    return texts


def discriminator_wins(history: Sequence[dict[str, float]], name: str) -> bool:
    """Return whether a discriminator's loss stays near zero while the generator's does not fall."""
    adversarial = name.replace("discriminator", "adversarial")
    if adversarial not in history[-1]:
        adversarial = "adversarial"
    now, before = history[-LONG:], history[-2 * LONG : -LONG]
    if len(before) < LONG or not mean(now, name) < WINS:
        return False
    if adversarial not in history[-1]:
        return mean(before, name) < WINS
    return mean(now, adversarial) >= 0.95 * mean(before, adversarial)


def mean(rows: Sequence[dict[str, float]], name: str) -> float:
    """Compute the mean of one entry; NaN if a row has none."""
    return sum(row.get(name, float("nan")) for row in rows) / len(rows)


def falls_below(scores: Sequence[dict[str, float]], name: str, least: float) -> bool:
    """Return whether the last value of a score is below `least` and below the one before."""
    values = [row[name] for row in scores if name in row]
    return len(values) > 1 and values[-1] < min(least, values[-2])
