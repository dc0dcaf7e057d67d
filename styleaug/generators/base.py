"""The contract of every generator: images, codes and strengths in, images of the same shape out."""

import copy
import ctypes
import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from styleaug.errors import ConfigError, WeightsError

__all__ = ["TISSUE", "AbstractGenerator", "check_finite", "keep_freed_memory"]


TISSUE = "-tissue"
"""Suffix of the names of generators that keep white background."""

MOST_CODE = 1000.0
"""Largest statistic of a trained network's features that is accepted. The shipped banks reach 46."""
_ROOM = 1.0
"""Margin around the range of a code entry, in widths of the range. Noise stays inside, damage does not."""


KEPT = 128 * 2**20
"""Bytes of freed memory that a process keeps. Styling on a CPU takes up to 100 MB at a time."""
LARGEST_BLOCK = 32 * 2**20
"""Bytes of the largest block whose memory is kept; the most that glibc allows."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Names of settings in glibc's malloc.h."""


class AbstractGenerator(nn.Module, ABC):
    """Map `(images, codes, strength)` to stylised images of the same shape.

    A *code* is one row vector that holds everything a generator needs to know about a style. Its
    length S is `code_length`; a generator with one fixed target domain has S = 0.

    Subclasses are final. They set `name`, `code_length` and, where it differs, `code_size`, and
    implement `encode_style` and `forward`.
    """

    name: str
    code_length: int
    code_size: int = 256
    """Short side in pixels; style images are reduced to it before `encode_style`."""
    origin: str = ""
    """Pinned reference to the place on the hub where the weights were read, else empty."""
    tissue: bool | None = None
    """Whether white background is kept; None if the generator cannot do so. See `on_tissue`."""
    has_prior: bool = False
    """Whether codes may be drawn from the standard normal distribution. Also true for S = 0."""
    codes_average: bool = True
    """Whether the mean of several codes is a valid style."""
    code_range: tuple[list[float], list[float]] | None = None
    """Least and greatest value of each entry over all images; None if unknown."""
    usual_spread: float = 0.1
    """Typical deviation of an entry within one laboratory, as a share of half its `code_range`."""
    exports: bool = True
    """Whether `export_onnx` can write it."""
    takes_bfloat16: bool = False
    """Whether the weights may be bfloat16 while images and codes stay float32."""
    takes_float16: bool = False
    """Whether images may be float16 beside weights in bfloat16, at a tenth more error than these make."""
    multiple: int = 1
    """Sides are padded to a multiple of this number of pixels: the edge is repeated at right and bottom."""
    minimum: int = 1
    """Sides are padded to at least this number of pixels: the edge is repeated at right and bottom."""
    least_side: int = 1
    """Shorter side in pixels to which transforms enlarge smaller images, since strokes have a fixed size."""
    margin: int | None = None
    """Pixels that a tile must see around itself to show no seam; a multiple of `multiple`.

    None if the generator cannot paint tiles. See `generators.shared`.
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
        """Return each image in the style of its code.

        Args:
            images: `(B, 3, H, W)` in [0, 1], any H and W from 1.
            codes: `(B, S)`, from `encode_style` or a sampler.
            strength: `(B,)` in [0, 1]; 0 returns the image exactly, 1 applies the whole style.

        Shape:
            `(B, 3, H, W)` in [0, 1].
        """

    def code_bounds(self) -> tuple[Float[Tensor, " S"], Float[Tensor, " S"]]:
        """Return the least and greatest value that each entry of a bank's code may have.

        They are the ends of `code_range`, widened by `_ROOM`. Without a `code_range` they are -`MOST_CODE`
        and `MOST_CODE`.
        """
        if self.code_range is None:
            most = torch.full((self.code_length,), MOST_CODE, device="cpu")
            return -most, most
        return with_room(*self.code_range)

    def settings(self) -> dict[str, Any]:
        """Return the constructor's arguments as JSON-ready values; they are stored with the weights."""
        return {}

    @classmethod
    def from_settings(cls, settings: dict[str, Any]) -> Self:
        """Build a generator from its `settings`, which may come from a stranger's file.

        Raises:
            WeightsError: unknown settings, or sizes out of bounds.
        """
        if settings:
            raise WeightsError(f"{cls.name!r} has no settings, got {settings}.")
        return cls()

    def extra_repr(self) -> str:
        """Return the settings as text; they are part of the fingerprint."""
        return ", ".join(f"{key}={value}" for key, value in self.settings().items())

    def on_tissue(self) -> Self:
        """Return a copy that keeps white background (the glass of a slide) and does not read it.

        It takes the same codes. Its name ends in "-tissue", and it can be loaded by that name. "macenko" and
        "vahadane" always keep white background.

        Raises:
            ConfigError: this generator cannot keep the background.
        """
        if self.tissue:
            return self
        if self.tissue is None:
            raise ConfigError(f"{self.name!r} cannot leave background alone; use a colour generator.")
        other = copy.deepcopy(self)
        other.name, other.tissue = f"{self.name}{TISSUE}", True
        return other

    @property
    def fingerprint(self) -> str:
        """Return sixteen hex digits that change with the name, the code length, a setting or a weight.

        A bank stores them, so that codes are only read by a generator like the one that wrote them.
        """
        name = self.name.removesuffix(TISSUE)
        digest = hashlib.sha256(f"{name}:{self.code_length}:{self.extra_repr()}".encode())
        for key, value in sorted(self.state_dict().items()):
            digest.update(key.encode())
            # Hashed as float16, as the weights file stores it, so that a cast to float16 and back changes
            # nothing.
            stored = value.detach().cpu()
            stored = stored.half() if stored.is_floating_point() else stored
            digest.update(stored.contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]


def with_room(low: Sequence[float], high: Sequence[float]) -> tuple[Float[Tensor, " S"], Float[Tensor, " S"]]:
    """Return the bounds of codes as tensors, widened by `_ROOM` on both sides."""
    least, most = (torch.tensor(end, dtype=torch.float32, device="cpu") for end in (low, high))
    room = _ROOM * (most - least)
    return least - room, most + room


def feature_bounds(widths: Sequence[int]) -> tuple[Float[Tensor, " S"], Float[Tensor, " S"]]:
    """Return the bounds of codes: means and deviations of an RGB image, then of features >= 0.

    Args:
        widths: channels of each level of features.
    """
    most = [1.0] * 3 + [0.5] * 3 + [MOST_CODE] * (2 * sum(widths))
    return with_room([0.0] * len(most), most)


def per_row(strength: Float[Tensor, " B"]) -> Float[Tensor, "B 1 1 1"]:
    """Reshape one number per row, so that it multiplies images."""
    return strength[:, None, None, None]


def mixed(
    images: Float[Tensor, "B C H W"], styled: Float[Tensor, "B C H W"], strength: Float[Tensor, " B"]
) -> Float[Tensor, "B C H W"]:
    """Blend from `images` (strength 0) to `styled` (strength 1), inside [0, 1].

    Strength 0 returns `images` exactly, because `torch.lerp` is exact at both ends.
    """
    return torch.lerp(images, styled, per_row(strength).to(images.dtype)).clamp_(0, 1)


def checked_settings(
    settings: dict[str, Any], **bounds: tuple[bool, bool] | tuple[int, int] | tuple[float, float]
) -> dict[str, Any]:
    """Check that `settings` has exactly the names in `bounds`, with values of that type and range.

    Returns:
        `settings`, unchanged.

    Raises:
        WeightsError: a missing or unknown setting, or one of another type or out of its bounds.
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
    """Refuse NaN and infinite values, which come from a damaged generator or code.

    Only images on the CPU are checked, because reading the answer would stall a GPU.

    Args:
        styled: output of a generator, in [0, 1] or NaN.
        name: name of the generator, for the message.

    Raises:
        WeightsError: a value is not finite.
    """
    if styled.device.type == "cpu" and not math.isfinite(float(styled.detach().sum())):
        raise WeightsError(
            f"generator {name!r} gave values that are not finite: its weights or these codes are damaged. "
            "Train or fit them again."
        )


def widen(images: Tensor) -> Tensor:
    """Cast half precision to float32, for computing statistics."""
    return images.float() if images.dtype in (torch.float16, torch.bfloat16) else images


def blend(
    images: Float[Tensor, "B 3 H W"], styled: Float[Tensor, "B 3 H W"], strength: Float[Tensor, " B"]
) -> Float[Tensor, "B 3 H W"]:
    """Clamp `styled` to [0, 1], then mix it in; the result has the dtype of `images`."""
    return mixed(images, styled.clamp(0, 1).to(images.dtype), strength.to(images.dtype))


@cache
def keep_freed_memory() -> None:
    """Make glibc keep up to `KEPT` bytes of freed memory for the next call.

    Otherwise it returns blocks to the system and requests them again page by page, which took up to
    half of a call's time. See M_MMAP_THRESHOLD and M_TRIM_THRESHOLD in mallopt(3).
    """
    with suppress(AttributeError, OSError, TypeError):  # no glibc
        c_library = ctypes.CDLL(None)
        c_library.mallopt(_M_MMAP_THRESHOLD, LARGEST_BLOCK)
        c_library.mallopt(_M_TRIM_THRESHOLD, KEPT)
