"""Arms of a comparison: changes of colour and texture of training images, written as one line.

`+` joins steps that are done one after the other. `/` joins alternatives: each image gets one of them, with
equal chance, or in proportion to the option `weight` of every step (1 where it is not written).

    none                                  no change
    jitter+grey                           colour jitter, then some grey images
    style:art,p=.5,strength=.5..1         styles of a bank, a generator, a file or a run folder
    style:a.safetensors/style:b.safetensors+trivialaugment
    style:art,weight=3/style:randconv     three images in four get styles of art
    preset:unknown                        a mixture, as `StyleAugment.preset` makes it
    competitor=fda:photos,sketches        references from two folders; called "competitor"
    style:gin,splice=mask,parts=3         with masks: a style for label 1, one for 2, one for the rest
    style:art,preserve=.9,protect=mask    with masks: labels above 0 keep their contrast
    style:art,protect=faces               faces keep their pixels (extra faces)
    normalize:home.safetensors            training images plain; all tests in the mean style of the bank
"""

import hashlib
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Integer, Shaped
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import v2

from styleaug.errors import BankError, ConfigError, FileError, StyleAugError, missing_extra, name_bytes
from styleaug.generators.colorspace import hsv_to_rgb, rgb_to_hsv
from styleaug.images import from_float, luminance, to_float
from styleaug.io.files import SUFFIXES, files_below, image_files
from styleaug.io.hub import fetch, is_hub
from styleaug.robustness.baselines import DSU, FeatureHook, MixStyle, erase, prime
from styleaug.training.data import read_image
from styleaug.transforms.base import AbstractAugment
from styleaug.transforms.normalize import StyleNormalize
from styleaug.weights import bank_names, generator_names

__all__ = [
    "STEPS",
    "Arm",
    "References",
    "color_jitter",
    "grey",
    "lose_detail",
    "one_by_one",
    "parse_arm",
    "pick",
]

_Images = Float[Tensor, "B 3 H W"]
_Step = Callable[[Tensor], Tensor]
BLUR_SIGMA = (0.005, 0.03)
"""Range of the Gaussian's sigma, as shares of the side; 0.3 to 2 pixels for a side of 64."""
SCALES = (1.5, 2.0, 3.0, 4.0)
"""Factors by which `lose_detail` shrinks an image before it enlarges it again."""
MOST_REFERENCES = 512
"""Largest number of reference images of a folder; from more images, every n-th is taken."""


def pick(count: int, p: float) -> Shaped[Tensor, " K"]:
    """Draw the rows of a batch that change."""
    return (torch.rand(count) < p).nonzero()[:, 0]


def color_jitter(
    images: _Images,
    *,
    p: float = 1.0,
    brightness: float = 0.4,
    contrast: float = 0.4,
    saturation: float = 0.4,
    hue: float = 0.1,
) -> _Images:
    """Apply torchvision's ColorJitter, with changes in an order drawn for each image.

    All images with the same change in the same position are computed at once.
    """
    rows = pick(len(images), p)
    spread = torch.tensor([brightness, contrast, saturation, hue])
    change = spread[:, None] * (2 * torch.rand(4, len(rows)) - 1)
    order = torch.rand(len(rows), 4).argsort(dim=1)
    if len(rows) == 0:
        return images
    rows, change = rows.to(images.device), change.to(images.device)
    part = images[rows]
    for turn in range(4):
        for kind, change_by in enumerate((scaled, contrasted, saturated, turned)):
            chosen = (order[:, turn] == kind).nonzero()[:, 0].to(images.device)
            if len(chosen):
                part[chosen] = change_by(part[chosen], change[kind, chosen][:, None, None, None])
    return images.index_copy(0, rows, part)


def scaled(images: _Images, change: Float[Tensor, "B 1 1 1"]) -> _Images:
    """Change the brightness."""
    return (images * (1 + change)).clamp(0, 1)


def contrasted(images: _Images, change: Float[Tensor, "B 1 1 1"]) -> _Images:
    """Change the contrast: the distance from the image's mean grey."""
    mean = luminance(images).mean(dim=(1, 2, 3), keepdim=True)
    return torch.lerp(mean, images, 1 + change).clamp(0, 1)


def saturated(images: _Images, change: Float[Tensor, "B 1 1 1"]) -> _Images:
    """Change the saturation: the distance from each pixel's grey."""
    return torch.lerp(luminance(images).expand_as(images), images, 1 + change).clamp(0, 1)


def turned(images: _Images, change: Float[Tensor, "B 1 1 1"]) -> _Images:
    """Turn the hue by a share of the full circle."""
    hue, saturation, value = rgb_to_hsv(images).unbind(1)
    return hsv_to_rgb(torch.stack([(hue + change[:, 0]) % 1, saturation, value], dim=1))


def grey(images: _Images, *, p: float = 0.2) -> _Images:
    """Convert each image to grey with probability `p`."""
    rows = pick(len(images), p).to(images.device)
    return images.index_copy(0, rows, luminance(images[rows]).expand(-1, 3, -1, -1)) if len(rows) else images


def lose_detail(images: _Images, *, p: float = 0.5, sigma: tuple[float, float] = BLUR_SIGMA) -> _Images:
    """Remove fine detail: smooth half of the chosen images, shrink and enlarge the other half.

    Args:
        images: the batch.
        p: probability in [0, 1] for each image.
        sigma: range of the Gaussian's sigma, as shares of the side.
    """
    rows = pick(len(images), p)
    draws = torch.rand(len(rows))
    factor = torch.randint(len(SCALES), (len(rows),))
    smooth = torch.rand(len(rows)) < 0.5
    result = images.clone()
    if smooth.any():
        chosen = rows[smooth].to(images.device)
        widths = (sigma[0] + (sigma[1] - sigma[0]) * draws[smooth]) * images.shape[-1]
        result[chosen] = _gaussian(images[chosen], widths.to(images.device))
    for index, scale in enumerate(SCALES):
        chosen = rows[~smooth & (factor == index)].to(images.device)
        if len(chosen):
            size = [max(1, round(side / scale)) for side in images.shape[-2:]]
            small = F.interpolate(images[chosen], size, mode="bilinear", antialias=True)
            large = F.interpolate(small, images.shape[-2:], mode="bicubic", align_corners=False)
            result[chosen] = large.clamp(0, 1)
    return result


def _gaussian(images: _Images, sigma: Float[Tensor, " B"]) -> _Images:
    """Smooth each image with a Gaussian of its own sigma in pixels, up to the borders."""
    count, channels, height, width = images.shape
    radius = min(int(3 * float(sigma.max())) + 1, height - 1, width - 1)
    if radius < 1:
        return images
    offsets = torch.arange(-radius, radius + 1, device=images.device)
    kernel = torch.exp(-(offsets.square()) / (2 * sigma[:, None].square()).clamp_min(1e-6))
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(channels, 0)[:, None]
    flat = F.pad(images, 4 * [radius], mode="reflect").view(1, count * channels, *(
        side + 2 * radius for side in (height, width)
    ))  # fmt: skip
    flat = F.conv2d(flat, kernel[:, :, None], groups=count * channels)
    flat = F.conv2d(flat, kernel[:, :, :, None], groups=count * channels)
    return flat.view(count, channels, height, width)


def one_by_one(transform: Callable[[Tensor], Tensor]) -> _Step:
    """Return a step that calls a transform for each image alone, as uint8.

    It is for transforms that draw once per call. It runs on the CPU, because a GPU would wait for hundreds of
    small kernels.
    """

    def step(images: _Images) -> _Images:
        pixels = from_float(images, torch.uint8).cpu()
        return to_float(torch.stack([transform(image) for image in pixels]).to(images.device))

    return step


class References:
    """Albumentations' FDA or HistogramMatching, image by image, with reference images from folders.

    Args:
        kind: `"fda"` or `"histogram-matching"`.
        folders: folders of reference images, with or without subfolders for classes.
        p: probability in [0, 1] for each image.
        span: range of FDA's `beta_limit` or HistogramMatching's `blend_ratio`.
        seed: seed of albumentations' own generators.

    Raises:
            ConfigError: albumentations is not installed.
            FileError: a folder has no image.
    """

    def __init__(self, kind: str, folders: list[Path], *, p: float, span: tuple[float, float], seed: int):
        try:
            import albumentations
        except ImportError:
            raise missing_extra(f"the step {kind!r}", "albumentations", "albumentations") from None
        made = (
            albumentations.FDA(beta_limit=span, metadata_key="references", p=p)
            if kind == "fda"
            else albumentations.HistogramMatching(blend_ratio=span, metadata_key="references", p=p)
        )
        self.transform: Any = albumentations.Compose([made], seed=seed)
        self.paths: list[Path] = [path for folder in folders for path in image_files(folder)]
        self.images: list[np.ndarray] = []

    def __call__(self, images: _Images) -> _Images:
        """Adapt a batch to the references."""
        if not self.images or self.images[0].shape[:2] != images.shape[-2:]:
            self.images = self.read((images.shape[-2], images.shape[-1]))
        pixels = from_float(images, torch.uint8).permute(0, 2, 3, 1).cpu().contiguous().numpy()
        adapted = [self.transform(image=image, references=self.images)["image"] for image in pixels]
        return to_float(torch.from_numpy(np.stack(adapted)).permute(0, 3, 1, 2)).to(images.device)

    def read(self, size: tuple[int, int]) -> list[np.ndarray]:
        """Read the references at the size to which albumentations would resize them."""
        step = -(-len(self.paths) // MOST_REFERENCES)
        found = []
        for path in self.paths[::step]:
            image = read_image(path, max(size)).float()[None]
            if image.max() <= 1:  # images with more than 8 bits are floats
                image = image * 255
            small = F.interpolate(image, size, mode="bilinear", antialias=True)[0]
            found.append(small.round().clamp(0, 255).byte().permute(1, 2, 0).contiguous().numpy())
        if not found:
            raise FileError(f"no reference image in {self.paths}.")
        return found


def torchvision_policy(name: str) -> _Step:
    """Return one of torchvision's policies as a step."""
    kinds = {"trivialaugment": v2.TrivialAugmentWide, "randaugment": v2.RandAugment, "augmix": v2.AugMix}
    return one_by_one(kinds[name]())


_NAMED = re.compile(r"([^=:,/]+)=(.*)", re.DOTALL)


def _share(text: str) -> float:
    """Parse a number in [0, 1]."""
    value = float(text)
    if not 0 <= value <= 1:
        raise ValueError("a number from 0 to 1")
    return value


def _weight(text: str) -> float:
    """Parse a positive, finite number."""
    value = float(text)
    if not 0 < value < math.inf:
        raise ValueError("a number above 0")
    return value


def span(text: str) -> tuple[float, float]:
    """Parse `LOW..HIGH`, or one number for both."""
    low, _, high = text.partition("..")
    ends = _share(low), _share(high or low)
    if ends[0] > ends[1]:
        raise ValueError("LOW..HIGH from 0 to 1")
    return ends


def yes(text: str) -> bool:
    """Parse yes or no."""
    if text not in ("yes", "no"):
        raise ValueError("yes or no")
    return text == "yes"


def protected(text: str) -> str:
    """Parse the word mask or faces."""
    if text not in ("mask", "faces"):
        raise ValueError("mask or faces")
    return text


# In one line of text each part of an option has a name of its own; `fold` joins them.
STYLE_OPTIONS: dict[str, Callable[[str], Any]] = {
    "p": _share,
    "strength": span,
    "generator": str,
    "sampler": str,
    "components": int,
    "preserve": _share,
    "protect": protected,
    "splice": str,
    "parts": int,
    "keep": yes,
    "blend": str,
    "bands": str,
    "least_side": int,
    "precision": str,
}


@dataclass(frozen=True)
class _Kind:
    """A kind of step: what may follow its name."""

    make: Callable[..., Any]
    options: dict[str, Callable[[str], Any]] = field(default_factory=dict)
    target: str = ""
    """Name of the text after the colon; empty if there is none."""
    moves: bool = False
    """Whether the step moves pixels, so that a mask no longer fits its image."""


def make_style(target: str, *, seed: int, **written: Any) -> _Step:
    """Return a `StyleAugment` of a bank, or of a generator that needs no shipped bank."""
    from styleaug.transforms.augment import StyleAugment
    from styleaug.transforms.options import fold

    options = fold(written)
    alone = target in generator_names() and target not in bank_names()
    if alone and "generator" not in options:
        return StyleAugment(generator=target, **options)
    try:
        return StyleAugment(target, **options)
    except BankError as error:
        if "generator" in options or not Path(target).is_file():
            raise
        try:
            return StyleAugment(generator=target, **options)  # weights with a prior or their own styles
        except StyleAugError:
            raise error from None


def make_preset_step(target: str, *, seed: int, p: float | None = None) -> _Step:
    """Return a preset of `StyleAugment`."""
    from styleaug.transforms.augment import StyleAugment

    return StyleAugment.preset(target, p=p)


def make_normalize(target: str, *, seed: int, **options: Any) -> StyleNormalize:
    """Return the transform of test images."""
    return StyleNormalize(target, **options)


def make_swap(target: str, *, seed: int, **options: Any) -> _Step:
    """Return a step that swaps means and deviations of channels within the batch."""
    from styleaug.transforms.augment import StyleAugment

    return StyleAugment("batch", generator="reinhard-rgb", **options)


def make_references(target: str, *, seed: int, kind: str, name: str, **options: Any) -> _Step:
    """Return a step with reference images from folders."""
    usual = (0.0, 0.1) if kind == "fda" else (0.5, 1.0)
    folders = [Path(folder) for folder in target.split(",")]
    return References(kind, folders, p=options.get("p", 0.5), span=options.get(name, usual), seed=seed)


def make_mixstyle(target: str, *, seed: int, p: float = 0.5, alpha: float = 0.1) -> MixStyle:
    """Return the hook that mixes features."""
    return MixStyle(p=p, alpha=alpha, seed=seed)


def make_dsu(target: str, *, seed: int, p: float = 0.5) -> DSU:
    """Return the hook that adds noise to the statistics of features."""
    return DSU(p=p, seed=seed)


def plain(step: Callable[..., Tensor]) -> Callable[..., _Step]:
    """Return the maker of a step for a function of the batch."""
    return lambda target, *, seed, **options: partial(step, **options)


def policy(name: str) -> Callable[..., _Step]:
    """Return the maker of a step for one of torchvision's policies."""
    return lambda target, *, seed: torchvision_policy(name)


JITTERED = ("p", "brightness", "contrast", "saturation", "hue")
STEPS: dict[str, _Kind] = {
    "none": _Kind(lambda target, *, seed: None),
    "jitter": _Kind(plain(color_jitter), dict.fromkeys(JITTERED, _share)),
    "grey": _Kind(plain(grey), {"p": _share}),
    "blur": _Kind(plain(lose_detail), {"p": _share, "sigma": span}),
    "trivialaugment": _Kind(policy("trivialaugment"), moves=True),
    "randaugment": _Kind(policy("randaugment"), moves=True),
    "augmix": _Kind(policy("augmix"), moves=True),
    "channel-swap": _Kind(make_swap, {"p": _share, "strength": span}),
    "erasing": _Kind(plain(erase), {"p": _share}),
    "prime": _Kind(plain(prime), moves=True),
    "mixstyle": _Kind(make_mixstyle, {"p": _share, "alpha": float}),
    "dsu": _Kind(make_dsu, {"p": _share}),
    "fda": _Kind(
        partial(make_references, kind="fda", name="beta"), {"p": _share, "beta": span}, "DIR[,DIR...]"
    ),
    "histogram-matching": _Kind(
        partial(make_references, kind="histogram-matching", name="blend"),
        {"p": _share, "blend": span},
        "DIR[,DIR...]",
    ),
    "style": _Kind(make_style, STYLE_OPTIONS, "BANK or GENERATOR"),
    "preset": _Kind(make_preset_step, {"p": _share}, "NAME"),
    "normalize": _Kind(make_normalize, {"strength": _share, "generator": str}, "BANK"),
}
"""Kinds of steps by name."""
IN_CLASSIFIER = ("mixstyle", "dsu")
"""Steps that act on features."""
AT_TEST = "normalize"
"""Step that acts on test images only."""
_BORDER = re.compile(rf"([+/])(?=(?:{'|'.join(STEPS)})(?:[:,+/]|$))")
"""Separator of steps: a `+` or `/` before the name of a step. Others are part of a path."""


@dataclass(frozen=True)
class _Part:
    """One parsed step: its kind, the text after the colon, its options, its weight among alternatives."""

    kind: str
    target: str
    options: dict[str, Any]
    weight: float = 1.0
    """Its chance among alternatives is its weight divided by the sum of their weights."""

    def make(self, seed: int) -> Any:
        """Return the step; None changes nothing."""
        return STEPS[self.kind].make(self.target, seed=seed, **self.options)


@dataclass(frozen=True)
class ArmSpec:
    """A parsed arm, before its steps are made."""

    name: str
    spec: str
    steps: tuple[tuple[_Part, ...], ...]

    def digest(self) -> str:
        """Hash the files that the arm reads, so that a newly fitted bank is another arm.

        Weights and banks are hashed by their content, images by name and size.
        """
        digest = hashlib.blake2b(digest_size=8)
        for part in (part for step in self.steps for part in step):
            for source in [*part.target.split(","), part.options.get("generator", "")]:
                path = fetch(source).folder if is_hub(source) else Path(source)
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
    """Parse an arm; see the module's docstring for the grammar.

    Raises:
        ConfigError: a step or option is unknown, or a value is out of its range.
    """
    named = _NAMED.fullmatch(text)
    name, spec = (named[1].strip(), named[2]) if named else (text, text)
    steps: list[list[_Part]] = [[]]
    for joint, written in split_steps(spec):
        if joint == "+":
            steps.append([])
        steps[-1].append(parse_step(written, text))
    for step in steps:
        if len(step) == 1 and step[0].weight != 1:
            raise ConfigError(
                f"arm {text!r}: weight is for alternatives; join {step[0].kind} to others by /."
            )
        inside = [part.kind for part in step if part.kind in IN_CLASSIFIER]
        if len(step) > 1 and inside:
            raise ConfigError(
                f"arm {text!r}: {inside[0]} acts inside the classifier, so it is no alternative to "
                "other steps; join it by +."
            )
        if len(step) > 1 and any(part.kind == AT_TEST for part in step):
            raise ConfigError(
                f"arm {text!r}: {AT_TEST} acts on all test images, so it is no alternative to other steps; "
                "join it by +."
            )
    return ArmSpec(name, spec, tuple(map(tuple, steps)))


def split_steps(spec: str) -> list[tuple[str, str]]:
    """Split a text before each step; return the steps with the `+` or `/` before them."""
    pieces = _BORDER.split(spec)
    steps = [("", pieces[0])]
    for joint, piece in zip(pieces[1::2], pieces[2::2], strict=True):
        before, written = steps[-1]
        name = written.rpartition(",")[2].rpartition(":")[2] + joint + piece.partition(",")[0]
        if ":" in written and Path(name).exists():
            steps[-1] = (before, f"{written}{joint}{piece}")  # a folder with the name of a step
        else:
            steps.append((joint, piece))
    return steps


def parse_step(written: str, arm: str) -> _Part:
    """Parse one step: `KIND[:TARGET][,OPTION=VALUE...]`."""
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
    parsers = known.options | {"weight": _weight}
    for option in rest:
        key, _, value = option.partition("=")
        if key not in parsers:
            raise ConfigError(f"arm {arm!r}: {kind} has no option {key!r}; it has {', '.join(parsers)}.")
        try:
            options[key] = parsers[key](value)
        except ValueError as error:
            wanted = str(error) if " " in str(error) and ":" not in str(error) else "a number"
            raise ConfigError(f"arm {arm!r}: {key}={value!r} of {kind} must be {wanted}.") from None
    share = options.pop("weight", 1.0)
    return _Part(kind, target, options, share)


class Arm:
    """Change colour and texture of training images, as described by one line.

    It draws from its own random state and keeps torch's global state, so that two arms get the same order,
    geometry and dropout.

    Args:
        text: the line, such as `"style:art,p=.5+jitter"`.
        seed: seed of all draws of the arm.

    Shape:
        `(B, 3, H, W)` in [0, 1] to the same.

    Raises:
        ConfigError: the line is not a valid arm.
        BankError, WeightsError, FileError: a file that it names is missing or damaged.

    Example:
        >>> arm = Arm("jitter+grey", seed=1)
        >>> arm(torch.rand(2, 3, 8, 8)).shape
        torch.Size([2, 3, 8, 8])
    """

    state: Tensor

    def __init__(self, text: str | ArmSpec, *, seed: int = 0):
        self.spec: ArmSpec = text if isinstance(text, ArmSpec) else parse_arm(text)
        self.hooks: list[FeatureHook] = []
        self.normalizers: list[StyleNormalize] = []
        self.steps: list[list[_Step | None]] = []
        for number, parts in enumerate(self.spec.steps):
            try:
                made = [part.make(seed + 1000 * number + index) for index, part in enumerate(parts)]
            except StyleAugError as error:
                raise type(error)(f"arm {self.spec.name!r}: {error}") from None
            self.hooks += [step for step in made if isinstance(step, FeatureHook)]
            self.normalizers += [step for step in made if isinstance(step, StyleNormalize)]
            elsewhere = FeatureHook | StyleNormalize
            self.steps.append([None if isinstance(step, elsewhere) else step for step in made])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.state = torch.get_rng_state()

    @property
    def name(self) -> str:
        """Return the arm's name in tables."""
        return self.spec.name

    def check(self, *, masks: bool) -> None:
        """Check that the arm suits images with masks, or images without.

        Raises:
            ConfigError: it needs masks that are not there, or moves pixels and not their masks.
        """
        steps = [step for made in self.steps for step in made]
        if not masks and any(goes_by_mask(step) for step in steps):
            raise ConfigError(
                f"arm {self.name!r}: 'splice=mask' and 'protect=mask' go by the masks of the images, which a "
                "classification does not have. Use 'splice=halves' or 'splice=fields', or leave protect out."
            )
        moving = [part.kind for parts in self.spec.steps for part in parts if STEPS[part.kind].moves]
        if masks and moving:
            still = ", ".join(name for name, kind in STEPS.items() if not kind.moves)
            raise ConfigError(
                f"arm {self.name!r}: {moving[0]} moves pixels, so masks would no longer fit; use {still}."
            )

    def __call__(
        self, images: Float[Tensor, "B 3 H W"], *, masks: Integer[Tensor, "B H W"] | None = None
    ) -> Float[Tensor, "B 3 H W"]:
        """Change a batch; the masks of labels, 0 for the background, stay as they are."""
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self.state)
            for made, parts in zip(self.steps, self.spec.steps, strict=True):
                images = _one_of(made, [part.weight for part in parts], images, masks)
            self.state = torch.get_rng_state()
        return images

    def at_test(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
        """Normalise a batch of test images, if the arm has such a step."""
        for normalize in self.normalizers:
            images = normalize(images)
        return images


def goes_by_mask(step: Any) -> bool:
    """Return whether a step needs the masks of the images."""
    return isinstance(step, AbstractAugment) and step.by_mask


def _one_of(
    alternatives: list[_Step | None],
    weights: list[float],
    images: Float[Tensor, "B 3 H W"],
    masks: Integer[Tensor, "B H W"] | None,
) -> Float[Tensor, "B 3 H W"]:
    """Apply one of the steps to each image, drawn in proportion to the weights; None keeps the image."""
    if len(alternatives) == 1:
        return images if alternatives[0] is None else _done(alternatives[0], images, masks)
    if len(set(weights)) == 1:
        owner = torch.randint(len(alternatives), (len(images),))
    else:
        chances = torch.tensor(weights, dtype=torch.float64) / max(weights)
        owner = torch.multinomial(chances, len(images), replacement=True)
    for index, step in enumerate(alternatives):
        rows = (owner == index).nonzero()[:, 0].to(images.device)
        if step is not None and len(rows):
            part = None if masks is None else masks[rows]
            images = images.index_copy(0, rows, _done(step, images[rows], part))
    return images


def _done(step: _Step, images: Float[Tensor, "B 3 H W"], masks: Integer[Tensor, "B H W"] | None) -> Tensor:
    """Apply one step."""
    if isinstance(step, AbstractAugment) and step.by_mask:
        return step.apply(images, step.make_params(images), masks=masks)
    return step(images)
