"""Array and dictionary transforms for MONAI, in two and three dimensions: `RandStyle`, `StyleNormalize`."""

from abc import abstractmethod
from collections.abc import Hashable, Mapping
from copy import copy, deepcopy
from pathlib import Path
from typing import Any, Self, Unpack

import numpy as np
import torch
from torch import Tensor

from styleaug.bank import StyleBank
from styleaug.errors import ConfigError, ImageError, missing_extra
from styleaug.generators.ambient import as_usual
from styleaug.images import MOST_CHANNELS
from styleaug.transforms.base import AbstractAugment
from styleaug.transforms.host import (
    Copies,
    Styles,
    advised,
    callers,
    draw_seed,
    held,
    needs_no_other_inputs,
    rng_from,
    seed_from,
    with_options,
)
from styleaug.transforms.normalize import StyleNormalize as Normalize
from styleaug.transforms.options import StyleOptions
from styleaug.transforms.params import StyleParams, first_rows

try:
    from monai.config.type_definitions import KeysCollection
    from monai.data.meta_tensor import MetaTensor
    from monai.transforms.compose import Compose
    from monai.transforms.transform import MapTransform, RandomizableTransform, Transform
    from monai.utils.enums import TransformBackends
    from monai.utils.misc import get_seed
except ImportError as _error:
    raise missing_extra("styleaug.transforms.monai", "MONAI", "monai") from _error

__all__ = [
    "RandStyle",
    "RandStyleD",
    "RandStyleDict",
    "RandStyled",
    "StyleNormalize",
    "StyleNormalizeD",
    "StyleNormalizeDict",
    "StyleNormalized",
]

_IMAGES = (
    "In MONAI: after EnsureChannelFirstd and ScaleIntensityd(minv=0, maxv=1) or ScaleIntensityRanged(..., "
    "b_min=0, b_max=1, clip=True), and before NormalizeIntensityd. With value_range=(low, high) no scaling "
    "is needed."
)
_DEVICE = (
    "In MONAI: load with ThreadDataLoader(dataset, num_workers=0), or leave EnsureTyped(device='cuda') out "
    "of what the workers do."
)


class Volumes:
    """Stylise images `(C, H, W)` and volumes `(C, H, W, D)`; what all transforms for MONAI share."""

    backend: list[TransformBackends] = [TransformBackends.TORCH]  # noqa: RUF012, MONAI reads it from the class
    stylizer: AbstractAugment
    axis: int

    def hold(self, stylizer: AbstractAugment, axis: int) -> None:
        """Check and keep what styles, and the axis along which slices are counted."""
        if isinstance(axis, bool) or axis not in range(-3, 3):
            raise ConfigError(f"axis must be a spatial axis of a volume, from -3 to 2, got {axis!r}.")
        self.axis = axis
        self.stylizer = needs_no_other_inputs(stylizer, "MONAI")

    def stylise(self, img: Any, drawn: StyleParams) -> Any:
        """Stylise `img` as drawn; it comes back as the same object if it was not picked."""
        with advised(images=_IMAGES, device=_DEVICE):
            frames = self.to_frames(as_tensor(img))
            self.stylizer.check(frames)
            if len(drawn["rows"]) == 0:
                return img
            drawn = first_rows(drawn, self.stylizer.rows_of(frames))
            styled = self.from_frames(self.stylizer.apply(frames, drawn))
        return _like(styled, img)

    def normalise(self, img: Any) -> Any:
        """Stylise `img` by a transform that draws nothing."""
        return self.stylise(img, self.stylizer.draw(self.stylizer.rows_each(MOST_CHANNELS)))

    def to_frames(self, pixels: Tensor) -> Tensor:
        """View an image as a batch of one `(1, C, H, W)`, a volume as one row of frames `(1, D, C, H, W)`.

        Raises:
            ImageError: neither `(C, H, W)` nor `(C, H, W, D)`, or more channels than were drawn for.
        """
        independent = self.stylizer.channels == "independent"
        if pixels.ndim not in (3, 4) or (independent and not len(pixels) <= MOST_CHANNELS):
            raise ImageError(
                f"images must be (C, H, W) or (C, H, W, D), of at most {MOST_CHANNELS} channels if each has "
                f"a style of its own, got {tuple(pixels.shape)}."
            )
        return (pixels.movedim(self.slices, 0) if pixels.ndim == 4 else pixels)[None]

    def from_frames(self, frames: Tensor) -> Tensor:
        """Undo `to_frames`."""
        # The styled volume has the memory layout of the given one, so that this copies it rarely.
        pixels = frames[0].movedim(0, self.slices) if frames.ndim == 5 else frames[0]
        return pixels.contiguous()

    @property
    def slices(self) -> int:
        """The axis of a volume `(C, H, W, D)` along which its slices are counted."""
        return self.axis + 1 if self.axis >= 0 else self.axis


class AbstractRandStyle(Volumes, RandomizableTransform):
    """Draw a style with MONAI's random state, and give it to one image or volume at a time."""

    copies: Copies
    by_default: bool
    drawn: StyleParams

    def __init__(self, bank: Styles, prob: float | None, axis: int, options: StyleOptions) -> None:
        stylizer, prob = held(bank, options, p=prob, usual=0.5)
        super().__init__(prob)
        self.hold(stylizer, axis)
        self.copies, self.by_default = Copies(), False
        self.drawn = self.stylizer.draw(0)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # MONAI copies random transforms for each item that they cache; the network is not theirs to change.
        memo[id(self)] = twin = copy(self)
        if "R" in vars(self):
            twin.R = deepcopy(self.R, memo)
        return twin

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> Self:
        """Start anew from a seed or a state; without both, draw from torch's global generator again."""
        super().set_random_state(seed, state)
        self.copies, self.by_default = Copies(), (seed is None and state is None) or seeded_by_default()
        return self

    def randomize(self, data: Any = None) -> None:
        """Draw what the next call with `randomize=False` does."""
        self.draw()

    @as_usual()
    def draw(self) -> StyleParams:
        """Draw once from `R`, or from torch's global generator if nobody seeded `R`, and all else from that.

        The result is given back as well as kept: of two threads, each takes its own.
        """
        seeded = "R" in vars(self) and not self.by_default
        # Workers of a plain DataLoader start with the same `R`, and in each epoch again.
        parts = (int(self.R.rand() * 2**53), 0, *self.copies.parts) if seeded else (draw_seed(),)
        rng = rng_from(seed_from(*parts))
        picked = torch.rand((), generator=rng).item() < self.prob
        # How many channels there are is not known here: all that may be, and `stylise` takes the first.
        drawn = self.stylizer.draw(picked * self.stylizer.rows_each(MOST_CHANNELS), rng)
        self._do_transform, self.drawn = picked, drawn
        return drawn

    def describe(self) -> str:
        """Format what is drawn from what."""
        return self.stylizer.extra_repr().replace("p=1.0", f"prob={self.prob}")

    @abstractmethod
    def __call__(self, data: Any) -> Any:
        """Draw, and stylise."""


class RandStyle(AbstractRandStyle):
    """Stylise an image or a volume in a style of a bank, at random.

    Place it between scaling to [0, 1] and `NormalizeIntensity`. MetaTensors keep their affine, meta
    and applied operations; arrays come back as arrays, tensors as tensors. A volume is stylised slice
    by slice, all with one style, strength and statistics, so that neighbouring slices still match.
    One and three channels are an image, grey or coloured; of two, four and more each is stylised as a grey
    image by itself, all with one style and strength, or with `channels="independent"` with its own. With a
    `value_range` no scaling is needed before: `(-160, 240)` for CT in HU, `"auto"` for MR.

    Draws come from `R` if that was seeded (`set_random_state`, `set_determinism`, `monai.data.DataLoader`),
    and else from torch's global generator. In a plain torch DataLoader, too, each worker draws something
    else; a run that was seeded draws the same each time, whatever torch's seed is.

    Args:
        bank: see `styleaug.StyleAugment`, as for all other options; not `"batch"`.
        prob: chance to be stylised; None is 0.5, or that of a transform given as bank.
        axis: the spatial axis that the slices of a volume are counted along, from -3 to 2.
        options: see `styleaug.StyleAugment`.

    Shape:
        `(C, H, W)` or `(C, H, W, D)` with C up to 16, floats in [0, 1], uint8 or uint16; with
        `value_range` any floats, int16 and int32, too. Shape, kind, dtype and device are kept. What is
        not picked comes back as the same object.

    Raises:
        BankError: the bank is damaged, unknown, or made by another generator.
        WeightsError: the generator is damaged or unknown.
        ConfigError: an argument outside its range, `bank="batch"`, `splice="mask"` or `protect="mask"`.
        ImageError: when called with another shape or dtype, or no image at all; with NaN or values outside
            [0, 1], if the image is picked.

    Example:
        >>> from monai.transforms import Compose, NormalizeIntensity, ScaleIntensity
        >>> train = Compose([ScaleIntensity(), RandStyle("art", prob=0.5), NormalizeIntensity()])
    """

    @with_options
    def __init__(
        self,
        bank: Styles = None,
        *,
        prob: float | None = None,
        axis: int = -1,
        **options: Unpack[StyleOptions],
    ):
        super().__init__(bank, prob, axis, options)

    def __repr__(self) -> str:
        return f"RandStyle({self.describe()})"

    def __call__(self, img: Any, randomize: bool = True) -> Any:
        """Stylise one image or volume.

        Args:
            img: a MetaTensor, tensor or array, channel first.
            randomize: draw anew; otherwise do what was drawn last, or nothing before any draw.
        """
        return self.stylise(img, self.draw() if randomize else self.drawn)


class RandStyled(AbstractRandStyle, MapTransform):
    """Stylise the images of a dictionary in one style of a bank, at random; see `RandStyle`.

    All keys share one draw. Everything under other keys (labels, masks) comes back as the same object.

    Args:
        keys: of the images.
        bank: see `styleaug.StyleAugment`, as for all other options; not `"batch"`.
        prob: chance to be stylised, all keys or none; None is 0.5, or that of a transform given as bank.
        axis: the spatial axis that the slices of a volume are counted along, from -3 to 2.
        allow_missing_keys: pass over keys that are not in a dictionary.
        options: see `RandStyle`.

    Raises:
        KeyError: when called with a dictionary that lacks a key, unless that is allowed.
        StyleAugError: see `RandStyle`.

    Example:
        >>> from monai.transforms import Compose, NormalizeIntensityd, ScaleIntensityd
        >>> train = Compose([
        ...     ScaleIntensityd("image"), RandStyled("image", "art"), NormalizeIntensityd("image")])
    """

    @with_options
    def __init__(
        self,
        keys: KeysCollection,
        bank: Styles = None,
        *,
        prob: float | None = None,
        axis: int = -1,
        allow_missing_keys: bool = False,
        **options: Unpack[StyleOptions],
    ):
        MapTransform.__init__(self, keys, allow_missing_keys)
        AbstractRandStyle.__init__(self, bank, prob, axis, options)

    def __repr__(self) -> str:
        return f"RandStyled(keys={self.keys}, {self.describe()})"

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Stylise what is under the keys, in a copy of the dictionary."""
        drawn, styled = self.draw(), dict(data)
        for key in self.key_iterator(styled):
            styled[key] = self.stylise(styled[key], drawn)
        return styled


class StyleNormalize(Volumes, Transform):
    """Bring an image or a volume to the mean style of a bank; nothing is random.

    See `styleaug.StyleNormalize` for the style, and `RandStyle` for images, volumes and where to place it.

    Args:
        bank: see `styleaug.StyleNormalize`, as for the options.
        axis: the spatial axis that the slices of a volume are counted along, from -3 to 2.
        options: see `styleaug.StyleNormalize`.

    Shape:
        See `RandStyle`.

    Raises:
        StyleAugError: see `styleaug.StyleNormalize` and `RandStyle`.

    Example:
        >>> from monai.transforms import Compose, NormalizeIntensity, ScaleIntensity
        >>> test = Compose([
        ...     ScaleIntensity(), StyleNormalize("home.safetensors"), NormalizeIntensity()])  # doctest: +SKIP
    """

    def __init__(self, bank: str | Path | StyleBank | None = None, *, axis: int = -1, **options: Any):
        self.hold(Normalize(bank, **options), axis)

    def __repr__(self) -> str:
        return f"StyleNormalize({self.stylizer.extra_repr()})"

    def __call__(self, img: Any) -> Any:
        """Normalise one image or volume: a MetaTensor, tensor or array, channel first."""
        return self.normalise(img)


class StyleNormalized(Volumes, MapTransform):
    """Bring the images of a dictionary to the mean style of a bank; see `StyleNormalize`.

    Everything under other keys (labels, masks) comes back as the same object.

    Args:
        keys: of the images.
        bank: see `styleaug.StyleNormalize`, as for the options.
        axis: the spatial axis that the slices of a volume are counted along, from -3 to 2.
        allow_missing_keys: pass over keys that are not in a dictionary.
        options: see `styleaug.StyleNormalize`.

    Raises:
        KeyError: when called with a dictionary that lacks a key, unless that is allowed.
        StyleAugError: see `StyleNormalize`.

    Example:
        >>> from monai.transforms import Compose, NormalizeIntensityd, ScaleIntensityd
        >>> test = Compose([
        ...     ScaleIntensityd("image"), StyleNormalized("image", "home.safetensors"),
        ...     NormalizeIntensityd("image")])  # doctest: +SKIP
    """

    def __init__(
        self,
        keys: KeysCollection,
        bank: str | Path | StyleBank | None = None,
        *,
        axis: int = -1,
        allow_missing_keys: bool = False,
        **options: Any,
    ):
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.hold(Normalize(bank, **options), axis)

    def __repr__(self) -> str:
        return f"StyleNormalized(keys={self.keys}, {self.stylizer.extra_repr()})"

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Normalise what is under the keys, in a copy of the dictionary."""
        made = dict(data)
        for key in self.key_iterator(made):
            made[key] = self.normalise(made[key])
        return made


RandStyleD = RandStyleDict = RandStyled
StyleNormalizeD = StyleNormalizeDict = StyleNormalized


def seeded_by_default() -> bool:
    """Return whether a `Compose` is seeding its transforms as it is made, with a number that nobody chose."""
    made = Compose.__init__.__code__
    return get_seed() is None and any(frame.f_code is made for frame in callers())


def as_tensor(img: Any) -> Tensor:
    """View a MetaTensor or an array as a plain tensor, which nobody writes to.

    Raises:
        ImageError: neither a tensor nor an array.
    """
    if isinstance(img, Tensor):
        return img.as_subclass(Tensor)
    if not isinstance(img, np.ndarray):
        raise ImageError(f"expected a tensor or an array, got {type(img).__name__}. Is LoadImaged missing?")
    if not (img.flags.writeable and img.flags.c_contiguous and img.dtype.isnative):  # torch takes no other
        img = np.array(img, dtype=img.dtype.newbyteorder("="), order="C")
    return torch.from_numpy(img)


def _like(styled: Tensor, img: Any) -> Any:
    """Return a plain tensor as the type that `img` has, with its meta."""
    if isinstance(img, MetaTensor):
        return styled.as_subclass(type(img)).copy_meta_from(img)
    return styled.numpy().astype(img.dtype, copy=False) if isinstance(img, np.ndarray) else styled
