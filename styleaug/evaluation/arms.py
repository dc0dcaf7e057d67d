"""Arms of a comparison: what is done to colour and texture of training images, written as one line.

Steps are joined by `+` and done in turn. Alternatives are joined by `/`: each image goes to one of them.

    none                                  nothing
    jitter+grey                           colour jitter, then some grey images
    style:art,p=.5,strength=.5..1         styles of a bank, a generator, a file or a run folder
    style:a.safetensors/style:b.safetensors+trivialaugment
    competitor=fda:photos,sketches        references from two folders; called "competitor"
"""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from styleaug.errors import BankError, ConfigError, StyleAugError
from styleaug.evaluation.arm_steps import (
    MixStyle,
    References,
    Step,
    blur,
    color_jitter,
    grey,
    torchvision_policy,
)
from styleaug.files import SUFFIXES, files_below
from styleaug.foreign import name_bytes
from styleaug.weights import bank_names, generator_names

__all__ = ["STEPS", "Arm", "parse_arm"]

NAMED = re.compile(r"([^=:,/]+)=(.*)", re.DOTALL)


def share(text: str) -> float:
    """Read a number in [0, 1]."""
    value = float(text)
    if not 0 <= value <= 1:
        raise ValueError("a number from 0 to 1")
    return value


def span(text: str) -> tuple[float, float]:
    """Read `LOW..HIGH`, or one number for both."""
    low, _, high = text.partition("..")
    ends = share(low), share(high or low)
    if ends[0] > ends[1]:
        raise ValueError("LOW..HIGH from 0 to 1")
    return ends


def yes(text: str) -> bool:
    """Read yes or no."""
    if text not in ("yes", "no"):
        raise ValueError("yes or no")
    return text == "yes"


STYLE_OPTIONS: dict[str, Callable[[str], Any]] = {
    "p": share,
    "strength": span,
    "generator": str,
    "sampler": str,
    "components": int,
    "preserve": share,
    "splice": str,
    "parts": int,
    "keep": yes,
    "keep_luminance": yes,
    "least_side": int,
    "precision": str,
}


@dataclass(frozen=True)
class Kind:
    """A kind of step: what may stand behind its name."""

    make: Callable[..., Any]
    options: dict[str, Callable[[str], Any]] = field(default_factory=dict)
    target: str = ""
    """What follows the colon; empty where nothing may."""


def make_style(target: str, *, seed: int, **options: Any) -> Step:
    """Make a `StyleAugment` of a bank, or of a generator that needs none of ours."""
    from styleaug.transforms.torchvision import StyleAugment

    alone = target in generator_names() and target not in bank_names()
    if alone and "generator" not in options:
        return StyleAugment(generator=target, **options)
    try:
        return StyleAugment(target, **options)
    except BankError as error:
        if "generator" in options or not Path(target).is_file():
            raise
        try:
            return StyleAugment(generator=target, **options)  # weights, with a prior or styles of its own
        except StyleAugError:
            raise error from None


def make_swap(target: str, *, seed: int, **options: Any) -> Step:
    """Swap means and deviations of channels within the batch."""
    from styleaug.transforms.torchvision import StyleAugment

    return StyleAugment("batch", generator="reinhard-rgb", **options)


def make_references(target: str, *, seed: int, kind: str, name: str, **options: Any) -> Step:
    """Make a step that takes reference images from folders."""
    usual = (0.0, 0.1) if kind == "fda" else (0.5, 1.0)
    folders = [Path(folder) for folder in target.split(",")]
    return References(kind, folders, p=options.get("p", 0.5), span=options.get(name, usual), seed=seed)


def make_mixer(target: str, *, seed: int, p: float = 0.5, alpha: float = 0.1) -> MixStyle:
    """Make the hook that mixes features."""
    return MixStyle(p=p, alpha=alpha, seed=seed)


def plain(step: Callable[..., Tensor]) -> Callable[..., Step]:
    """Make a step of a function of the batch."""
    return lambda target, *, seed, **options: partial(step, **options)


def policy(name: str) -> Callable[..., Step]:
    """Make one of torchvision's policies."""
    return lambda target, *, seed: torchvision_policy(name)


JITTERED = ("p", "brightness", "contrast", "saturation", "hue")
STEPS: dict[str, Kind] = {
    "none": Kind(lambda target, *, seed: None),
    "jitter": Kind(plain(color_jitter), dict.fromkeys(JITTERED, share)),
    "grey": Kind(plain(grey), {"p": share}),
    "blur": Kind(plain(blur), {"p": share, "sigma": span}),
    "trivialaugment": Kind(policy("trivialaugment")),
    "randaugment": Kind(policy("randaugment")),
    "augmix": Kind(policy("augmix")),
    "channel-swap": Kind(make_swap, {"p": share, "strength": span}),
    "mixstyle": Kind(make_mixer, {"p": share, "alpha": float}),
    "fda": Kind(
        partial(make_references, kind="fda", name="beta"), {"p": share, "beta": span}, "DIR[,DIR...]"
    ),
    "histogram-matching": Kind(
        partial(make_references, kind="histogram-matching", name="blend"),
        {"p": share, "blend": span},
        "DIR[,DIR...]",
    ),
    "style": Kind(make_style, STYLE_OPTIONS, "BANK or GENERATOR"),
}
"""Every step by its name."""

BORDER = re.compile(rf"([+/])(?=(?:{'|'.join(STEPS)})(?:[:,+/]|$))")
"""Between steps; a `+` or `/` inside a path has no step's name behind it."""


@dataclass(frozen=True)
class Part:
    """One step as it was written: its kind, what stands behind the colon, its options."""

    kind: str
    target: str
    options: dict[str, Any]

    def make(self, seed: int) -> Any:
        """Make the step; None does nothing."""
        return STEPS[self.kind].make(self.target, seed=seed, **self.options)


@dataclass(frozen=True)
class ArmSpec:
    """An arm as it was written, read but not made."""

    name: str
    spec: str
    steps: tuple[tuple[Part, ...], ...]

    def digest(self) -> str:
        """Hash the files that the arm reads, so that a bank fitted anew is another arm.

        Weights and banks count with their content, images with name and size.
        """
        digest = hashlib.blake2b(digest_size=8)
        for part in (part for step in self.steps for part in step):
            for path in map(Path, [*part.target.split(","), part.options.get("generator", "")]):
                files = [path] if path.is_file() else []
                if path.is_dir() and path != Path():
                    files = files_below(path, {".safetensors", *SUFFIXES})
                for file in files:
                    whole = file.suffix == ".safetensors"
                    digest.update(
                        file.read_bytes() if whole else name_bytes(f"{file.name} {file.stat().st_size}")
                    )
        return digest.hexdigest()


def parse_arm(text: str) -> ArmSpec:
    """Read an arm; see the module's docstring for the grammar.

    Raises:
        ConfigError: a step or option that there is not, or a value outside its range.
    """
    named = NAMED.fullmatch(text)
    name, spec = (named[1].strip(), named[2]) if named else (text, text)
    steps: list[list[Part]] = [[]]
    for joint, written in split_steps(spec):
        if joint == "+":
            steps.append([])
        steps[-1].append(parse_step(written, text))
    for step in steps:
        if len(step) > 1 and any(part.kind == "mixstyle" for part in step):
            raise ConfigError(
                f"arm {text!r}: mixstyle acts inside the classifier, so it is no alternative to other steps; "
                "join it by +."
            )
    return ArmSpec(name, spec, tuple(map(tuple, steps)))


def split_steps(spec: str) -> list[tuple[str, str]]:
    """Cut a text where a step begins; give each with the `+` or `/` before it."""
    pieces = BORDER.split(spec)
    steps = [("", pieces[0])]
    for joint, piece in zip(pieces[1::2], pieces[2::2], strict=True):
        before, written = steps[-1]
        name = written.rpartition(",")[2].rpartition(":")[2] + joint + piece.partition(",")[0]
        if ":" in written and Path(name).exists():
            steps[-1] = (before, f"{written}{joint}{piece}")  # a folder that is called like a step
        else:
            steps.append((joint, piece))
    return steps


def parse_step(written: str, arm: str) -> Part:
    """Read one step: `KIND[:TARGET][,OPTION=VALUE...]`."""
    head, *rest = written.strip().split(",")
    kind, colon, target = head.partition(":")
    if kind not in STEPS:
        raise ConfigError(f"arm {arm!r}: there is no step {kind!r}; choose from {', '.join(STEPS)}.")
    known = STEPS[kind]
    while rest and "=" not in rest[0]:
        target += "," + rest.pop(0)
    if bool(target) != bool(known.target) or bool(colon) != bool(known.target):
        wanted = f"{kind}:{known.target}" if known.target else f"{kind} alone"
        raise ConfigError(f"arm {arm!r}: expected {wanted}, got {written!r}.")
    options: dict[str, Any] = {}
    for option in rest:
        key, _, value = option.partition("=")
        if key not in known.options:
            allowed = f"it has {', '.join(known.options)}" if known.options else "it has none"
            raise ConfigError(f"arm {arm!r}: {kind} has no option {key!r}; {allowed}.")
        try:
            options[key] = known.options[key](value)
        except ValueError as error:
            wanted = str(error) if " " in str(error) and ":" not in str(error) else "a number"
            raise ConfigError(f"arm {arm!r}: {key}={value!r} of {kind} must be {wanted}.") from None
    return Part(kind, target, options)


class Arm:
    """Change colour and texture of training images as a line says.

    It draws from a state of its own: torch's global generator is afterwards where it was, so that two
    arms meet the same order, geometry and dropout.

    Args:
        text: the line, such as `"style:art,p=.5+jitter"`.
        seed: of all that the arm draws.

    Shape:
        `(B, 3, H, W)` in [0, 1] to the same.

    Raises:
        ConfigError: the line is no arm.
        BankError, WeightsError, FileError: what it names is missing or damaged.

    Example:
        >>> arm = Arm("jitter+grey", seed=1)
        >>> arm(torch.rand(2, 3, 8, 8)).shape
        torch.Size([2, 3, 8, 8])
    """

    def __init__(self, text: str | ArmSpec, *, seed: int = 0):
        self.spec = text if isinstance(text, ArmSpec) else parse_arm(text)
        self.mixers: list[MixStyle] = []
        self.steps: list[list[Step | None]] = []
        for number, parts in enumerate(self.spec.steps):
            try:
                made = [part.make(seed + 1000 * number + index) for index, part in enumerate(parts)]
            except StyleAugError as error:
                raise type(error)(f"arm {self.spec.name!r}: {error}") from None
            self.mixers += [step for step in made if isinstance(step, MixStyle)]
            self.steps.append([None if isinstance(step, MixStyle) else step for step in made])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.state = torch.get_rng_state()

    @property
    def name(self) -> str:
        """What the arm is called in a table."""
        return self.spec.name

    def __call__(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
        """Change a batch."""
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self.state)
            for alternatives in self.steps:
                images = one_of(alternatives, images)
            self.state = torch.get_rng_state()
        return images


def one_of(alternatives: list[Step | None], images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
    """Give each image to one of the steps, with equal chance; None leaves it."""
    if len(alternatives) == 1:
        return images if alternatives[0] is None else alternatives[0](images)
    owner = torch.randint(len(alternatives), (len(images),))
    for index, step in enumerate(alternatives):
        rows = (owner == index).nonzero()[:, 0].to(images.device)
        if step is not None and len(rows):
            images = images.index_copy(0, rows, step(images[rows]))
    return images
