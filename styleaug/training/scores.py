"""What makes one checkpoint better than another: scores on held-out images, and alarms."""

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
"""Of lost structure in the score: a translator that keeps no edge pays for half the way to the targets."""
L1_WEIGHT = 2.0
"""Of the L1 distance to the true targets; 0.1 of it is plainly visible, and costs 0.2."""
NEAR = 0.01
"""Sources nearer than this to the targets are as good as in their domain; distances are then absolute."""
LEAST_COLOUR = 0.02
"""Colours nearer than this count as equal."""
LONG = 30
"""Entries of the history over which the discriminator has to win before it is an alarm."""
WINS = 0.05
"""A discriminator's loss that is as good as zero, for the least-squares, hinge and logistic losses."""
COLLAPSED = 0.2
"""Diversity below which outputs look alike."""


class Judge:
    """Score a translator on held-out images: how near to the target domain, how much structure is kept.

    Features are centred and scaled, entry by entry, by mean and deviation of both domains together: by
    the targets' deviation alone, sources far from narrow targets would dwarf all that training does.

    Args:
        features: as `load_features` gives them.
        targets: images of the target domain; where paired, those that belong to `sources`, in order.
        sources: what the translator will be given.
        paired: whether `targets[i]` is what should become of `sources[i]`.
        distance: of features; FID is biased where images are fewer than features, alike in every score
            of one run.

    Raises:
        ConfigError: fewer than two images on a side, or pairs that do not match.
    """

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
        self.measure = {"kid": kernel_distance, "fid": frechet_distance}[distance]
        self.sources = sources.detach().cpu().float()
        self.truth = targets.detach().cpu().float() if paired else self.sources
        of_targets, of_sources = raw(features, targets), raw(features, sources)
        both = torch.cat([of_targets, of_sources])
        # Entries that hardly differ in either domain must not count more than the others.
        self.mean, scale = both.mean(dim=0), both.std(dim=0)
        self.scale = scale.clamp_min(max(0.1 * float(scale.mean()), 1e-6))
        self.targets = self.standardised(of_targets)
        untouched = self.standardised(of_sources)
        self.untouched = self.measure(untouched, self.targets)
        # A perfect translator is as diverse as the targets, who may be less so than the sources.
        self.spread = min(_spread(untouched), _spread(self.targets))
        self.palette = palette(targets)
        self.colour = max(LEAST_COLOUR, float((palette(sources) - self.palette).norm()))

    def standardised(self, features: Float[Tensor, "N S"]) -> Float[Tensor, "N S"]:
        """Scale features by the deviation of both domains."""
        return (features - self.mean) / self.scale

    def score(self, outputs: Float[Tensor, "M 3 H W"]) -> dict[str, float]:
        """Score what the translator made of the sources, in their order.

        Returns:
            `kid` or `fid`: distance of outputs and targets, divided by that of sources and targets; 1 is
            untouched, 0 indistinguishable (absolute where the sources are as good as in the domain already).
            `structure`: correlation of the outputs' edges with the sources' (the true targets' where
            paired); 1 is kept.
            `l1`: distance to the true targets, where paired.
            `diversity`: mean distance between the outputs' features, divided by that of the sources or
            of the targets, whichever is less; 0 is a collapsed translator.
            `colour`: distance of the outputs' mean colour and deviation from the targets', divided by
            that of the sources; above 1 is worse than untouched.
            `score`: that distance (at least 0) + 0.5 (1 - structure) + 2 l1; lower is better.

        Raises:
            ConfigError: another number or size of images than that of the sources.
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
    """Encode images for arithmetic that must not depend on the device."""
    with torch.no_grad():
        return features(images).detach().cpu().double()


def _spread(features: Float[Tensor, "N S"]) -> float:
    """Compute the mean distance between two rows."""
    return float(F.pdist(features).mean())


def palette(images: Float[Tensor, "N 3 H W"]) -> Float[Tensor, " 6"]:
    """Compute the mean and the deviation of all pixels, channel by channel."""
    pixels = images.detach().cpu().double().transpose(0, 1).flatten(1)
    return torch.cat([pixels.mean(dim=1), pixels.std(dim=1)])


def alarms(history: Sequence[dict[str, float]], scores: Sequence[dict[str, float]]) -> list[str]:
    """Tell in plain words what goes wrong, and what to do; an empty list where nothing does.

    A text does not change from call to call while its reason lasts.

    Args:
        history: losses of the run so far, in order, as they are logged.
        scores: what `Judge.score` gave so far, in order.
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
    """Tell whether a discriminator's loss stays near zero while the generator's does not fall."""
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
    """Average one entry; NaN where a row has none."""
    return sum(row.get(name, float("nan")) for row in rows) / len(rows)


def falls_below(scores: Sequence[dict[str, float]], name: str, least: float) -> bool:
    """Tell whether the last value of a score is below `least` and below the one before."""
    values = [row[name] for row in scores if name in row]
    return len(values) > 1 and values[-1] < min(least, values[-2])
