"""Options of a training run. `styleaug train` makes its command-line options from these fields."""

import json
import tomllib
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, Self, get_args, get_origin

from styleaug.errors import ConfigError
from styleaug.io.paths import check_regular

__all__ = [
    "PRESETS",
    "CUTConfig",
    "CycleGANConfig",
    "PatchGANConfig",
    "PerceptualConfig",
    "TrainConfig",
    "VAEGANConfig",
    "preset",
    "read_config",
]

PATCHES = (16, 34, 70, 142, 286)
"""Sides of the patch that one logit of a PatchGAN discriminator sees, in pixels."""

WITHOUT_EFFECT = ("device", "devices", "save_every", "keep")
"""Options that do not change the computation, so a resumed run may change them."""
MAY_CHANGE = ("steps", "patience")
"""Options that decide when a run ends. A resumed run may change them."""


def option(default: Any, text: str, *, least: float | None = None, below: float | None = None) -> Any:
    """Return a dataclass field with the help text and bounds of the command-line option.

    Args:
        default: default value.
        text: one line of help.
        least: smallest allowed value.
        below: all values must be below this.
    """
    return field(default=default, metadata={"help": text, "least": least, "below": below})


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Options of every recipe. Final classes add the options of one recipe."""

    recipe: str = ""
    steps: int = option(2000, "Optimiser steps.", least=1)
    batch: int = option(4, "Images per step, over all processes.", least=1)
    size: int = option(128, "Side of the training crops in pixels.", least=32)
    zoom: float = option(
        1.25, "Images are read at up to this many times the size of a crop.", least=1, below=32
    )
    flip: bool = option(True, "Mirror half of the crops.")
    turn: bool = option(False, "Turn crops by multiples of 90 degrees: for images without an up.")
    balance: bool = option(False, "Draw all classes of each side equally often.")
    held_out: float = option(0.1, "Share of the images kept for scores.", least=0.01, below=0.9)
    init: str = option("", "Start from this generator: a shipped name, a file or a finished run.")
    optimiser: Literal["adam", "rmsprop", "sgd"] = option("adam", "Of all networks.")
    learning_rate: float = option(2e-4, "Of the generator.", least=1e-8)
    momentum: float = option(0.5, "First beta of Adam, or momentum of other optimisers.", least=0, below=1)
    schedule: Literal["constant", "linear", "cosine"] = option(
        "linear", "Schedule of the learning rates; linear falls to 0 over the second half."
    )
    warm_up: int = option(0, "Steps over which the learning rates rise.", least=0)
    clip: float = option(0.0, "Largest norm of a gradient; 0 is no limit.", least=0)
    ema: float = option(0.999, "Decay of the averaged weights, which are the result.", least=0, below=1)
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = option("32-true", "Of the arithmetic.")
    device: str = option("auto", "auto, cpu or cuda.")
    devices: int = option(1, "Processes that share a batch; on a CPU one core each.", least=1)
    seed: int = option(0, "Seed of the weights, the crops and all other draws.", least=0, below=2**32)
    save_every: int = option(250, "Steps between checkpoints.", least=1)
    keep: int = option(2, "Checkpoints kept besides the best one.", least=1)
    score_every: int = option(250, "Steps between scores and sample pictures.", least=1)
    patience: int = option(0, "End after this many scores without improvement; 0 is no limit.", least=0)
    features: Literal["adain", "vgg19", "squeezenet"] = option(
        "adain", "Network for the features in the scores; adain needs no download."
    )
    distance: Literal["kid", "fid"] = option("kid", "Distance of these features in the scores.")

    def __post_init__(self) -> None:
        for item in fields(self):
            self.check(item.name, getattr(self, item.name), item.type, item.metadata)
        if self.batch % self.devices:
            raise ConfigError(f"batch must be a multiple of devices, got {self.batch} and {self.devices}.")
        if self.size % self.multiple:
            raise ConfigError(f"size must be a multiple of {self.multiple}, got {self.size}.")

    @property
    def multiple(self) -> int:
        """Return the number of pixels of which sides of crops are multiples, so that none are padded."""
        return 1

    def check(self, name: str, value: Any, kind: Any, limits: Any) -> None:
        """Check the type, choices and bounds of one value."""
        if get_origin(kind) is Literal:
            if not any(value == choice and type(value) is type(choice) for choice in get_args(kind)):
                choices = ", ".join(map(str, get_args(kind)))
                raise ConfigError(f"{name} must be one of {choices}, got {value!r}.")
            return
        wanted = (int, float) if kind is float else kind
        if not isinstance(value, wanted) or (isinstance(value, bool) and kind is not bool):
            raise ConfigError(f"{name} must be of type {kind.__name__}, got {value!r}.")
        least, below = limits.get("least"), limits.get("below")
        # Comparisons are written so that NaN fails.
        if kind is float and not abs(value) < float("inf"):
            raise ConfigError(f"{name} must be a finite number, got {value}.")
        if least is not None and not value >= least:
            raise ConfigError(f"{name} must be at least {least}, got {value}.")
        if below is not None and not value < below:
            raise ConfigError(f"{name} must be below {below}, got {value}.")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values."""
        return asdict(self)

    def differs_from(self, other: "TrainConfig") -> list[str]:
        """List the options that would make a run of `other` compute something else."""
        mine, theirs = self.to_dict(), other.to_dict()
        names = mine.keys() | theirs.keys()
        return sorted(n for n in names - set(WITHOUT_EFFECT) if mine.get(n) != theirs.get(n))

    def with_options(self, options: dict[str, Any]) -> Self:
        """Return a copy with some options changed; an unknown option is an error."""
        unknown = set(options) - {item.name for item in fields(self)}
        if unknown:
            known = ", ".join(item.name for item in fields(self))
            raise ConfigError(f"unknown training options {sorted(unknown)}; known are {known}.")
        return replace(self, **options)


@dataclass(frozen=True, kw_only=True)
class PerceptualConfig(TrainConfig):
    """Options for training `AdaIN`, `Photo` or `PatchSwap` with a perceptual loss."""

    recipe: Literal["adain", "photo", "patchswap"] = "adain"
    steps: int = option(12_000, "Optimiser steps.", least=1)
    batch: int = option(8, "Images per step, over all processes.", least=1)
    zoom: float = option(
        2.0, "Images are read at up to this many times the size of a crop.", least=1, below=32
    )
    balance: bool = option(True, "Draw all classes of each side equally often.")
    held_out: float = option(0.05, "Share of the images kept for scores.", least=0.01, below=0.9)
    learning_rate: float = option(2e-3, "Of the generator.", least=1e-8)
    momentum: float = option(0.9, "First beta of Adam, or momentum of other optimisers.", least=0, below=1)
    schedule: Literal["constant", "linear", "cosine"] = option(
        "cosine", "Schedule of the learning rates; linear falls to 0 over the second half."
    )
    warm_up: int = option(50, "Steps over which the learning rates rise.", least=0)
    clip: float = option(5.0, "Largest norm of a gradient; 0 is no limit.", least=0)
    style_size: int = option(192, "Side of the style crops in pixels.", least=32)
    style_crops: int = option(2, "Crops taken of each style; their statistics are cached.", least=1)
    style_weight: float = option(5.0, "Weight of the style statistics.", least=0)
    content_weight: float = option(1.0, "Weight of the normalised content features.", least=0)
    edge_weight: float = option(2.0, "Weight of 1 minus the correlation of edges.", least=0)
    identity_weight: float = option(10.0, "Weight of L1 for images painted in their own style.", least=0)
    gamut_weight: float = option(10.0, "Weight of values outside [0, 1].", least=0)

    @property
    def multiple(self) -> int:
        """Return 8, because three levels of VGG-19 are compared pixel by pixel."""
        return 8


@dataclass(frozen=True, kw_only=True)
class AdversarialConfig(TrainConfig):
    """Options of every recipe with a PatchGAN discriminator."""

    width: int = option(24, "Channels of the generator's first layer.", least=4, below=257)
    loss: Literal["lsgan", "hinge", "logistic"] = option("lsgan", "Loss of generator and discriminator.")
    patch: Literal[16, 34, 70, 142, 286] = option(70, "Side of the discriminator's patches in pixels.")
    discriminator_width: int = option(32, "Channels of the discriminator's first layer.", least=4)
    discriminator_rate: float = option(
        0.0, "Learning rate of the discriminator; 0 is the generator's.", least=0
    )
    spectral: bool = option(False, "Spectral norm in the discriminator.")
    r1: float = option(0.0, "Weight gamma of R1, the penalty on the gradient at real images.", least=0)
    r1_every: int = option(16, "Steps between two uses of R1 (lazy).", least=1)
    diffaugment: Literal["off", "on", "auto"] = option(
        "auto", "Augment the discriminator's input; auto: the more it overfits, the more."
    )
    diffaugment_colour: bool = option(
        False, "DiffAugment also changes colours; for domains that differ in shape only."
    )
    edge_weight: float = option(0.0, "Weight of 1 minus the correlation of edges with the source.", least=0)


@dataclass(frozen=True, kw_only=True)
class PatchGANConfig(AdversarialConfig):
    """Options for training `Pix2Pix` on pairs."""

    recipe: Literal["patchgan"] = "patchgan"
    width: int = option(32, "Channels of the generator's first layer.", least=4, below=257)
    depth: int = option(5, "Number of halvings in the U-Net.", least=2, below=11)
    dropout: float = option(0.5, "Dropout of the three innermost layers.", least=0, below=0.99)
    conditional: bool = option(True, "The discriminator sees the source with the image.")
    l1_weight: float = option(100.0, "Weight of L1 to the target.", least=0)

    @property
    def multiple(self) -> int:
        """Return the number of pixels that the halvings of the U-Net require."""
        return 2**self.depth


@dataclass(frozen=True, kw_only=True)
class ResNetConfig(AdversarialConfig):
    """Options of the recipes of translators with residual blocks."""

    blocks: int = option(6, "Residual blocks of the generator.", least=1, below=65)
    fold: Literal[1, 2] = option(2, "2 works at half the size: a quarter of the cost.")
    skip: bool = option(True, "Pass the image around the generator, which decides how much of it stays.")

    @property
    def multiple(self) -> int:
        """Return `4 * fold`: the folded image is halved twice."""
        return 4 * self.fold


@dataclass(frozen=True, kw_only=True)
class CycleGANConfig(ResNetConfig):
    """Options for training two `CycleGAN` generators, one for each direction, without pairs."""

    recipe: Literal["cyclegan"] = "cyclegan"
    pool: int = option(50, "Number of earlier outputs shown to the discriminator again.", least=0)
    cycle_weight: float = option(10.0, "Weight of L1 to the source after both directions.", least=0)
    identity_weight: float = option(5.0, "Weight of L1 for images of the target's domain.", least=0)


@dataclass(frozen=True, kw_only=True)
class CUTConfig(ResNetConfig):
    """Options for training one `CycleGAN` generator in one direction (Park 2020), at half the cost."""

    recipe: Literal["cut"] = "cut"
    nce_weight: float = option(1.0, "Weight of PatchNCE between source and output.", least=0)
    identity_weight: float = option(1.0, "Weight of PatchNCE for images of the target's domain.", least=0)
    patches: int = option(128, "Number of positions compared in each level.", least=2)
    temperature: float = option(0.07, "Of PatchNCE.", least=1e-3)


@dataclass(frozen=True, kw_only=True)
class VAEGANConfig(ResNetConfig):
    """Options for training `VAEGAN`, a translator with many outputs, with pairs or without."""

    recipe: Literal["vaegan"] = "vaegan"
    blocks: int = option(4, "Residual blocks of the generator.", least=1, below=65)
    paired: bool = option(False, "Images of the two sides belong together by name.")
    latent: int = option(8, "Numbers in a code.", least=1, below=1025)
    l1_weight: float = option(10.0, "Weight of L1 of reconstructions.", least=0)
    feature_weight: float = option(1.0, "Weight of L1 of discriminator features of reconstructions.", least=0)
    kl_weight: float = option(0.01, "Weight of the codes' divergence from the prior.", least=0)
    latent_weight: float = option(0.5, "Weight of L1 to a code that is read back from its image.", least=0)


_SMALL = {
    "adain": PerceptualConfig(),
    "photo": PerceptualConfig(recipe="photo", steps=1500, content_weight=25.0, edge_weight=10.0),
    "patchswap": PerceptualConfig(recipe="patchswap", steps=2000, init="patchswap", learning_rate=5e-4),
    "patchgan": PatchGANConfig(batch=4),
    "cyclegan": CycleGANConfig(),
    "cut": CUTConfig(),
    "vaegan": VAEGANConfig(edge_weight=1.0),
}

_LONG: dict[str, Any] = {
    "steps": 200_000,
    "batch": 1,
    "size": 256,
    "zoom": 1.12,
    "width": 64,
    "discriminator_width": 64,
    "diffaugment": "off",
    "save_every": 5000,
    "score_every": 5000,
}
RESNET: dict[str, Any] = {**_LONG, "blocks": 9, "fold": 1, "skip": False}

PRESETS: dict[str, dict[str, TrainConfig]] = {
    "small": dict(_SMALL),
    "paper": {
        "adain": replace(_SMALL["adain"], steps=160_000, size=256, style_size=256, learning_rate=1e-4),
        "photo": replace(_SMALL["photo"], steps=160_000, size=256, style_size=256, learning_rate=1e-4),
        "patchswap": replace(_SMALL["patchswap"], steps=80_000, size=256, style_size=256),
        "patchgan": PatchGANConfig(**_LONG, depth=8, loss="logistic"),
        "cyclegan": CycleGANConfig(**RESNET),
        "cut": CUTConfig(**RESNET, patches=256),
        "vaegan": VAEGANConfig(**{**RESNET, "blocks": 6}, paired=True),
    },
}
"""Presets. `small` trains in minutes on two cores; `paper` has the published sizes and schedule."""


def preset(recipe: str, size: str = "small") -> TrainConfig:
    """Return the default options of `recipe`.

    Raises:
        ConfigError: an unknown name.
    """
    if size not in PRESETS:
        raise ConfigError(f"unknown preset {size!r}; choose from {', '.join(PRESETS)}.")
    if not isinstance(recipe, str) or recipe not in PRESETS[size]:
        raise ConfigError(f"unknown recipe {recipe!r}; choose from {', '.join(PRESETS[size])}.")
    return PRESETS[size][recipe]


def read_config(path: Path) -> dict[str, Any]:
    """Read options from a JSON or TOML file, such as a run's `config.json`.

    Raises:
        ConfigError: the file is missing, of another type, or damaged.
    """
    try:
        text = check_regular(path).read_text(encoding="utf-8")
        values = tomllib.loads(text) if Path(path).suffix.lower() == ".toml" else json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"cannot read the options in {path}: {error}. Give a .json or .toml file."
        ) from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold one table of options, got {type(values).__name__}.")
    return values
