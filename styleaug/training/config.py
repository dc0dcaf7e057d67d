"""What a training run can be told. `styleaug train` makes its options from these fields."""

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from styleaug.errors import ConfigError

__all__ = ["DEFAULTS", "PerceptualConfig"]


GENERATORS = ("adain", "photo")
"""What a perceptual loss can train."""


def option(default: Any, text: str) -> Any:
    """Make a field whose help text is also that of the command line."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True, kw_only=True)
class PerceptualConfig:
    """How to train `AdaIN` or `Photo` with a perceptual loss."""

    generator: str = option("adain", "adain or photo.")
    steps: int = option(12_000, "Optimiser steps.")
    batch: int = option(8, "Images per step.")
    size: int = option(128, "Side of the training crops in pixels.")
    learning_rate: float = option(2e-3, "Adam's, at the start of a cosine decay to a hundredth.")
    style_size: int = option(192, "Side of the style crops in pixels.")
    threads: int = option(1, "Threads of one CPU core each that share a batch; 1 leaves it to torch.")
    style_weight: float = option(5.0, "Weight of the style statistics.")
    content_weight: float = option(1.0, "Weight of the normalised content features.")
    edge_weight: float = option(2.0, "Weight of 1 minus the correlation of edges with the content's.")
    identity_weight: float = option(10.0, "Weight of L1 to the image when its style is its own.")
    gamut_weight: float = option(10.0, "Weight of values outside [0, 1].")
    ema: float = option(0.999, "Decay of the averaged weights, which are the result.")
    style_crops: int = option(2, "Crops taken of each style image; their statistics are cached.")
    precision: str = option("float32", "Of VGG-19: float32 or bfloat16.")
    device: str = option("auto", "auto, cpu, cuda or cuda:N.")
    seed: int = option(0, "Of the crops, the pairing and the weights.")
    save_every: int = option(500, "Steps between checkpoints.")

    def __post_init__(self):
        # Comparisons are written so that NaN fails.
        for name in ("steps", "batch", "size", "style_size", "style_crops", "threads", "save_every"):
            if not getattr(self, name) >= 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.generator not in GENERATORS:
            raise ConfigError(f"generator must be one of {', '.join(GENERATORS)}, got {self.generator!r}.")
        if self.size < 32 or self.size % 8:
            raise ConfigError(f"size must be a multiple of 8 from 32, got {self.size}.")
        if not self.learning_rate > 0:
            raise ConfigError(f"learning_rate must be above 0, got {self.learning_rate}.")
        if not 0 <= self.ema < 1:
            raise ConfigError(f"ema must lie in [0, 1), got {self.ema}.")
        if self.precision not in ("float32", "bfloat16"):
            raise ConfigError(f"precision must be float32 or bfloat16, got {self.precision!r}.")

    def to_dict(self) -> dict[str, Any]:
        """Give the fields as JSON-ready values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "PerceptualConfig":
        """Build from `to_dict`'s values; an unknown key is an error."""
        unknown = set(values) - {f.name for f in fields(cls)}
        if unknown:
            raise ConfigError(f"unknown training options {sorted(unknown)}.")
        return cls(**values)


DEFAULTS = {
    "adain": PerceptualConfig(),
    "photo": PerceptualConfig(generator="photo", steps=1500, content_weight=25.0, edge_weight=10.0),
}
"""How each generator is trained unless told otherwise: the runs that made the shipped weights."""
