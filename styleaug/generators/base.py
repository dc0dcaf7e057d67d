"""The contract of every generator: images, codes and strengths in, images of the same shape out."""

import copy
import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cache
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from styleaug.errors import ConfigError, WeightsError

__all__ = ["TISSUE", "AbstractGenerator", "check_finite", "keep_freed_memory"]


TISSUE = "-tissue"
"""Ends the names of generators that leave white background alone."""

MOST_CODE = 1000.0
"""No statistic of a trained network's features is as large: those of the shipped banks end at 46."""
_ROOM = 1.0
"""How far outside an entry of a code may lie, in ranges: noise leads a little there, damage farther."""


class AbstractGenerator(nn.Module, ABC):
    """Map `(images, codes, strength)` to stylised images of the same shape.

    A *code* is one row vector that says all a generator needs to know of a style. Its length S is
    `code_length`; a generator with one fixed target domain has S = 0.

    Subclasses are final. They set `name`, `code_length` and, where it differs, `code_size`, and
    implement `encode_style` and `forward`.
    """

    name: str
    code_length: int
    code_size: int = 256
    """Short side in pixels to which style images are reduced before `encode_style`."""
    tissue: bool | None = None
    """True leaves white background alone; None of a generator that has no way to; see `on_tissue`."""
    has_prior: bool = False
    """Whether codes may be drawn from the standard normal distribution; true of no code at all, too."""
    codes_average: bool = True
    """Whether the mean of several codes is a style as well."""
    code_range: tuple[list[float], list[float]] | None = None
    """Least and greatest value of each entry over all images, where they are known."""
    usual_spread: float = 0.1
    """Deviation of an entry over the images of one laboratory, about, in half ranges of `code_range`."""
    takes_bfloat16: bool = False
    """Whether the weights may be bfloat16 while images and codes stay float32."""
    multiple: int = 1
    """Of how many pixels sides are made a multiple, by repeating the edge at the right and the bottom."""
    minimum: int = 1
    """How many pixels sides are made at least, likewise."""
    least_side: int = 1
    """Transforms enlarge an image whose shorter side has fewer pixels: strokes have a size of their own."""
    margin: int | None = None
    """Pixels around a tile that it must see to fit the next without a seam; a multiple of `multiple`.

    None if the generator cannot be tiled. See `generators.shared`.
    """

    @abstractmethod
    def encode_style(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B {self.code_length}"]:
        """Read the code of each image.

        Args:
            images: `(B, 3, H, W)` in [0, 1], any H and W from 1.
        """

    @abstractmethod
    def forward(
        self,
        images: Float[Tensor, "B 3 H W"],
        codes: Float[Tensor, "B {self.code_length}"],
        strength: Float[Tensor, " B"],
    ) -> Float[Tensor, "B 3 H W"]:
        """Give each image the style of its code.

        Args:
            images: `(B, 3, H, W)` in [0, 1], any H and W from 1.
            codes: `(B, S)`, as `encode_style` or a sampler gives them.
            strength: `(B,)` in [0, 1]; 0 gives the image back, 1 the whole style.

        Shape:
            `(B, 3, H, W)` in [0, 1].
        """

    def code_bounds(self) -> tuple[Float[Tensor, " S"], Float[Tensor, " S"]]:
        """Return the least and greatest value that each entry of a bank's code may have.

        They are those of `code_range`, with `_ROOM` on either side; else `MOST_CODE` either way.
        """
        if self.code_range is None:
            most = torch.full((self.code_length,), MOST_CODE, device="cpu")
            return -most, most
        return with_room(*self.code_range)

    def settings(self) -> dict[str, Any]:
        """Give the constructor's arguments as JSON-ready values; they are stored with the weights."""
        return {}

    @classmethod
    def from_settings(cls, settings: dict[str, Any]) -> Self:
        """Build from what `settings` gave, which may come from a stranger's file.

        Raises:
            WeightsError: settings that the generator does not know, or absurd sizes.
        """
        if settings:
            raise WeightsError(f"{cls.name!r} has no settings, got {settings}.")
        return cls()

    def extra_repr(self) -> str:
        """Name the settings, which are part of the fingerprint."""
        return ", ".join(f"{key}={value}" for key, value in self.settings().items())

    def on_tissue(self) -> Self:
        """Return a copy that leaves white background alone, as the glass of a slide, and reads none of it.

        It takes the same codes, and "-tissue" is added to its name, by which it is loaded, too. "macenko"
        and "vahadane" leave white as it is without.

        Raises:
            ConfigError: this generator has no way to.
        """
        if self.tissue:
            return self
        if self.tissue is None:
            raise ConfigError(f"{self.name!r} cannot leave background alone; take a generator of colours.")
        other = copy.deepcopy(self)
        other.name, other.tissue = f"{self.name}{TISSUE}", True
        return other

    @property
    def fingerprint(self) -> str:
        """Sixteen hex digits that change when the name, the code or any weight changes.

        A bank carries it, so that codes are never read by a generator that did not write them.
        """
        name = self.name.removesuffix(TISSUE)
        digest = hashlib.sha256(f"{name}:{self.code_length}:{self.extra_repr()}".encode())
        for key, value in sorted(self.state_dict().items()):
            digest.update(key.encode())
            # Hashed as stored in the weights file (float16), so that a cast to it and back is neutral.
            stored = value.detach().cpu()
            stored = stored.half() if stored.is_floating_point() else stored
            digest.update(stored.contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]


def with_room(low: Sequence[float], high: Sequence[float]) -> tuple[Float[Tensor, " S"], Float[Tensor, " S"]]:
    """Return bounds of codes as tensors, with `_ROOM` on either side."""
    least, most = (torch.tensor(end, dtype=torch.float32, device="cpu") for end in (low, high))
    room = _ROOM * (most - least)
    return least - room, most + room


def feature_bounds(widths: Sequence[int]) -> tuple[Float[Tensor, " S"], Float[Tensor, " S"]]:
    """Return bounds of codes that are means and deviations of an RGB image and of features from 0.

    Args:
        widths: channels of each level of features.
    """
    most = [1.0] * 3 + [0.5] * 3 + [MOST_CODE] * (2 * sum(widths))
    return with_room([0.0] * len(most), most)


def per_row(strength: Float[Tensor, " B"]) -> Float[Tensor, "B 1 1 1"]:
    """Shape per-row numbers so that they multiply images."""
    return strength[:, None, None, None]


def mixed(
    images: Float[Tensor, "B C H W"], styled: Float[Tensor, "B C H W"], strength: Float[Tensor, " B"]
) -> Float[Tensor, "B C H W"]:
    """Blend from `images` (strength 0) to `styled` (strength 1), inside [0, 1].

    Strength 0 gives `images` back exactly; `torch.lerp` is exact at both ends.
    """
    return torch.lerp(images, styled, per_row(strength)).clamp_(0, 1)


def checked_settings(
    settings: dict[str, Any], **bounds: tuple[bool, bool] | tuple[int, int] | tuple[float, float]
) -> dict[str, Any]:
    """Give `settings` back if they are those in `bounds`, each of its bounds' type and within them.

    Raises:
        WeightsError: a setting too many, too few, of another type, or outside its bounds.
    """
    if settings.keys() != bounds.keys():
        raise WeightsError(f"settings must be {', '.join(bounds)}, got {settings}.")
    for name, (low, high) in bounds.items():
        value = settings[name]
        if type(value) is not type(low) or not low <= value <= high:  # written so that NaN fails too
            kind = type(low).__name__
            raise WeightsError(f"{name} must be of type {kind} and from {low} to {high}, got {value!r}.")
    return settings


def check_finite(styled: Float[Tensor, "B C H W"], name: str) -> None:
    """Refuse what a damaged generator or code gives: NaN, which becomes black in whole numbers.

    Off the CPU no values are checked, since reading the answer would stall the device.

    Args:
        styled: what a generator gave, in [0, 1] or NaN.
        name: of the generator.

    Raises:
        WeightsError: naming the generator.
    """
    if styled.device.type == "cpu" and not math.isfinite(float(styled.detach().sum())):
        raise WeightsError(
            f"generator {name!r} gave values that are not finite: its weights or these codes are damaged. "
            "Train or fit them again."
        )


def widen(images: Tensor) -> Tensor:
    """Cast half precision to float32, in which the statistics are computed."""
    return images.float() if images.dtype in (torch.float16, torch.bfloat16) else images


def blend(
    images: Float[Tensor, "B 3 H W"], styled: Float[Tensor, "B 3 H W"], strength: Float[Tensor, " B"]
) -> Float[Tensor, "B 3 H W"]:
    """Clamp `styled` to the gamut, then mix it in; the result has the dtype of `images`."""
    return mixed(images, styled.clamp(0, 1).to(images.dtype), strength.to(images.dtype))


@cache
def keep_freed_memory() -> None:
    """Make glibc keep the memory that one call frees for the next.

    Else it gives blocks back to the system and gets them page by page, which took up to half of a
    call's time. Freeing one large block, never touched, raises the limit to twice its size: see
    M_MMAP_THRESHOLD in mallopt(3).
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)
