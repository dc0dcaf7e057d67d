"""What a training run can be told. `styleaug train` makes its options from these fields."""

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from styleaug.errors import ConfigError

__all__ = ["AdaINConfig"]


def option(default: Any, text: str) -> Any:
    """Make a field whose help text is also that of the command line."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True, kw_only=True)
class AdaINConfig:
    """How to train `styleaug.generators.adain.AdaIN`.

    The defaults are the run that made the shipped weights on two CPU cores.
    """

    steps: int = option(0, "Optimiser steps with the VGG-19 loss, after the distillation.")
    distil_steps: int = option(3072, "Steps before those that imitate the reference AdaIN; 0 for none.")
    pairs: int = option(5000, "Images that the reference AdaIN stylises once, to be imitated.")
    batch: int = option(8, "Images per step.")
    size: int = option(128, "Side of the training crops in pixels.")
    learning_rate: float = option(2e-3, "Adam's, at the start of a cosine decay to a hundredth.")
    style_weight: float = option(5.0, "Weight of the style statistics.")
    content_weight: float = option(1.0, "Weight of the normalised content features.")
    identity_weight: float = option(10.0, "Weight of L1 to the image when its style is its own.")
    pixel_weight: float = option(10.0, "Weight of L1 to the reference's image.")
    feature_weight: float = option(1.0, "Weight of the SqueezeNet distance to the reference's image.")
    gamut_weight: float = option(10.0, "Weight of values outside [0, 1].")
    ema: float = option(0.999, "Decay of the averaged weights that are shipped.")
    style_crops: int = option(2, "Crops taken of each style image; their statistics are cached.")
    precision: str = option("float32", "Of VGG-19: float32 or bfloat16.")
    device: str = option("auto", "auto, cpu, cuda or cuda:N.")
    seed: int = option(0, "Of the crops, the pairing and the weights.")
    save_every: int = option(500, "Steps between checkpoints.")

    def __post_init__(self):
        # Comparisons are written so that NaN fails.
        for name in ("pairs", "batch", "size", "style_crops", "save_every"):
            if not getattr(self, name) >= 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if not (self.steps >= 0 and self.distil_steps >= 0 and self.total >= 1):
            raise ConfigError(
                f"steps and distil_steps must be at least 0 and one of them more, "
                f"got {self.steps} and {self.distil_steps}."
            )
        if self.size < 32 or self.size % 8:
            raise ConfigError(f"size must be a multiple of 8 from 32, got {self.size}.")
        if not self.learning_rate > 0:
            raise ConfigError(f"learning_rate must be above 0, got {self.learning_rate}.")
        if not 0 <= self.ema < 1:
            raise ConfigError(f"ema must lie in [0, 1), got {self.ema}.")
        if self.precision not in ("float32", "bfloat16"):
            raise ConfigError(f"precision must be float32 or bfloat16, got {self.precision!r}.")

    @property
    def total(self) -> int:
        """Steps of the distillation and the rest."""
        return self.distil_steps + self.steps

    def to_dict(self) -> dict[str, Any]:
        """Give the fields as JSON-ready values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "AdaINConfig":
        """Build from `to_dict`'s values; an unknown key is an error."""
        unknown = set(values) - {f.name for f in fields(cls)}
        if unknown:
            raise ConfigError(f"unknown training options {sorted(unknown)}.")
        return cls(**values)
