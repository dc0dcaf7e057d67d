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

    steps: int = option(4500, "Optimiser steps with the VGG-19 loss, after the warm-up.")
    warmup_steps: int = option(3000, "Steps before those with the SqueezeNet loss, at a tenth of the cost.")
    batch: int = option(8, "Images per step.")
    size: int = option(128, "Side of the training crops in pixels.")
    learning_rate: float = option(1e-3, "Adam's, at the start of a cosine decay to a hundredth.")
    style: float = option(5.0, "Weight of the style statistics.")
    content: float = option(1.0, "Weight of the normalised content features.")
    identity: float = option(10.0, "Weight of L1 to the image when its style is its own.")
    gamut: float = option(10.0, "Weight of values outside [0, 1].")
    ema: float = option(0.999, "Decay of the averaged weights that are shipped.")
    style_crops: int = option(2, "Crops taken of each style image; their statistics are cached.")
    precision: str = option("float32", "Of the loss network: float32 or bfloat16.")
    device: str = option("auto", "auto, cpu, cuda or cuda:N.")
    seed: int = option(0, "Of the crops, the pairing and the weights.")
    save_every: int = option(500, "Steps between checkpoints.")

    def __post_init__(self):
        for name in ("steps", "batch", "size", "style_crops", "save_every"):
            if not getattr(self, name) >= 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.precision not in ("float32", "bfloat16"):
            raise ConfigError(f"precision must be float32 or bfloat16, got {self.precision!r}.")

    @property
    def total(self) -> int:
        """Steps of the warm-up and the rest."""
        return self.warmup_steps + self.steps

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
