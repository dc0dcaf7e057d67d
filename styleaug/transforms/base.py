"""What transforms of `StyleAugment`'s kind share: they find images, draw by rows, and can be replayed."""

from abc import abstractmethod
from copy import copy
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import PIL.Image
import torch
from jaxtyping import Int, Shaped
from torch import Tensor, nn
from torch.utils._pytree import tree_unflatten
from torchvision import tv_tensors
from torchvision.transforms import v2

from styleaug.errors import ConfigError, ImageError
from styleaug.generators.ambient import as_usual
from styleaug.images import Restore, ValueRange, to_pixels
from styleaug.transforms.form import check_form
from styleaug.transforms.options import Channels
from styleaug.transforms.params import StyleParams
from styleaug.transforms.sample import describe, find_images, flatten
from styleaug.transforms.splice import Splice

__all__ = ["AbstractAugment", "channels_of", "count_rows", "framed", "is_image_tensor"]

IMAGE_DTYPES = (
    torch.uint8,
    torch.uint16,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
)
SIGNED_DTYPES = (torch.int16, torch.int32)
WRAPPED: tuple[type, ...] = (PIL.Image.Image, tv_tensors.Image, tv_tensors.Video)
"""Types of a sample's values that say that they are images."""


def is_image_tensor(value: Any, dtypes: tuple[torch.dtype, ...] = IMAGE_DTYPES) -> bool:
    """Return whether a value is a plain tensor that can be an image: no label, index or integer mask."""
    return (
        isinstance(value, Tensor)
        and not isinstance(value, tv_tensors.TVTensor)
        and value.ndim >= 3
        and value.dtype in dtypes
    )


def is_signed_tensor(value: Any) -> bool:
    """Return whether a plain tensor can be an image where a range says what its values mean."""
    return is_image_tensor(value, SIGNED_DTYPES)


if TYPE_CHECKING:
    Transform = nn.Module  # torchvision has no types, and a class of an unknown class is itself unknown
else:
    Transform = v2.Transform


class AbstractAugment(Transform):
    """Base of `StyleAugment`, `StyleNormalize` and `OneOf`: what hosts and adapters call.

    A subclass sets the attributes below, draws in `draw_rows`, and paints in `apply`.
    """

    p: float
    """Probability that a row is styled."""

    channels: Channels
    value_range: ValueRange
    most_channels: int

    splice: Splice | None

    within_batch: bool
    """Whether styles come from the other images of the batch."""

    protects_by_mask: bool
    """Whether a call needs a mask for `Preserve(protect="mask")`."""

    code_length: int
    """S of its parameters' codes."""

    # What is random.

    def forward(self, *inputs: Any) -> Any:
        """Style the images of a sample; the sample is one argument or several.

        Raises:
            ImageError: no image, several values that could be the image, or no mask where one is needed.
        """
        sample = inputs if len(inputs) != 1 else inputs[0]
        if not self.by_mask and (isinstance(sample, WRAPPED) or self.is_candidate(sample)):
            return self.apply(sample, self.make_params(sample))
        return self.style_sample(sample)

    def style_sample(self, sample: Any) -> Any:
        """Find the images of a nested sample, and style them; all else comes back as it is."""
        leaves, spec = flatten(sample)
        values = [value for _, value in leaves]
        chosen = find_images(leaves, wrapped=WRAPPED, plain=self.is_candidate)
        masks = [value for value in values if isinstance(value, tv_tensors.Mask)] if self.by_mask else []
        if not chosen or (self.by_mask and not masks):
            raise nothing_to_style(values, chosen, "splice" if self.splices_by_mask else "protect")
        params = self.make_params([*(values[at] for at in chosen), *masks])
        for at in chosen:
            values[at] = self.apply(values[at], params)
        return tree_unflatten(values, spec)

    def is_candidate(self, value: Any) -> bool:
        """Return whether a value is a plain tensor that can be an image: no label, index or integer mask."""
        return is_image_tensor(value) or (self.value_range is not None and is_signed_tensor(value))

    def make_params(self, flat_inputs: Any, *, rng: torch.Generator | None = None) -> dict[str, Any]:
        """Draw all that is random about one call, on the CPU.

        Args:
            flat_inputs: the images of a sample, or one image or batch; only their shapes are read.
            rng: None draws from torch's global generator, which DataLoader seeds in each worker.

        Returns:
            A `StyleParams`: give it to `apply` with the same images to replay the call. With
            `splice="mask"` or `Preserve(protect="mask")` the mask is in it, too.
        """
        inputs = flat_inputs if isinstance(flat_inputs, (list, tuple)) else [flat_inputs]
        masks = [value for value in inputs if isinstance(value, tv_tensors.Mask)]
        counts = {self.rows_of(framed(value)) for value in inputs if not isinstance(value, tv_tensors.Mask)}
        if len(counts) > 1:
            raise ImageError(
                f"the images of one sample must have equally many rows, got {sorted(counts)}. "
                "Stylise them in calls of their own."
            )
        return {**self.draw(counts.pop(), rng), **({"masks": masks[0]} if masks else {})}

    def rows_of(self, images: Any) -> int:
        """Return how many rows to draw for `images`: those of a batch, else one; see `rows_each`."""
        count = count_rows(images)
        return count if self.channels != "independent" else count * channels_of(images)

    def rows_each(self, channels: int) -> int:
        """Return how many rows an image takes: with `"independent"` each of its channels is one."""
        return channels if self.channels == "independent" else 1

    @as_usual(for_autograd=True)
    def draw(self, count: int, rng: torch.Generator | None = None) -> StyleParams:
        """Draw parameters for a batch of `count` rows. Gates come first, so unpicked rows cost nothing.

        Raises:
            ConfigError: a random generator that is not on the CPU.
        """
        if rng is not None and rng.device.type != "cpu":
            raise ConfigError(
                f"rng must be a generator on the CPU, got one on {rng.device}. Styles are drawn there, so "
                "that a seed has one meaning on every device: rng=torch.Generator().manual_seed(seed)."
            )
        return self.draw_rows((torch.rand(count, generator=rng) < self.p).nonzero()[:, 0], count, rng)

    @abstractmethod
    def draw_rows(self, rows: Int[Tensor, " K"], count: int, rng: torch.Generator | None) -> StyleParams:
        """Draw what is random about these rows, of a batch of `count`."""

    def describe(self, params: StyleParams) -> dict[str, list[Any]]:
        """Return what was drawn, in plain values: for each row the strength, the styles and their shares."""
        return {
            "strength": params["strength"].tolist(),
            "styles": params["sources"].tolist(),
            "shares": params["shares"].tolist(),
        }

    # What is not.

    @abstractmethod
    def apply(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, images: Any, params: Any = None, *, masks: Any = None, differentiable: bool = False
    ) -> Any:
        """Style `images` as `params` say, with nothing random."""

    def to_pixels(self, images: Any) -> tuple[Shaped[Tensor, "B C H W"], Restore]:
        """View images as pixels, with as many channels as this transform takes; see `images.to_pixels`."""
        return to_pixels(images, most_channels=self.most_channels)

    def check(self, images: Any) -> None:
        """Refuse images by their type, mode, dtype or shape, whether any row is picked or not.

        So a bad image is found when it is first read, and not when the gate first picks it. Values are
        looked at where they are read anyway: in a call that picks a row.

        Raises:
            ImageError: images that are no images.
        """
        check_form(framed(images), most_channels=self.most_channels, value_range=self.value_range)

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Apply to one image of a sample, as torchvision asks; a mask is passed on."""
        return inpt if isinstance(inpt, tv_tensors.Mask) else self.apply(inpt, params)

    @property
    def parts(self) -> int:
        """How many styles a row gets."""
        return 1 if self.splice is None else self.splice.parts

    @property
    def splices_by_mask(self) -> bool:
        """Whether a call needs a mask for `splice="mask"`."""
        return self.splice is not None and self.splice.kind == "mask"

    @property
    def by_mask(self) -> bool:
        """Whether a call needs a mask."""
        return self.splices_by_mask or self.protects_by_mask

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """What tells this transform's generators from others: by their weights."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Return the arguments that make this transform again."""

    @abstractmethod
    def with_networks(self) -> Self:
        """Return a copy that holds its generators, for machines that do not have their files."""

    def with_p(self, p: float) -> Self:
        """Return a copy that styles a row with this probability: 1 for hosts with a gate of their own."""
        twin = copy(self)
        twin.p = p
        return twin


def nothing_to_style(values: list[Any], chosen: list[int], option: str) -> ImageError:
    """Make the error for a sample without an image, or without the mask that an option goes by."""
    if chosen:
        return ImageError(
            f'{option}="mask" needs a mask in the sample, and there is none. Wrap it: tv_tensors.Mask(mask).'
        )
    kinds = ", ".join(sorted({describe(value) for value in values})) or "nothing"
    return ImageError(
        f"no image in the sample: got {kinds}. Give a PIL image, a tv_tensors.Image, or a "
        "uint8, uint16 or float tensor (C, H, W) or (B, C, H, W); int16 and int32 need a "
        "value_range. Samples are dicts, lists, tuples and named tuples; what lies under a key such "
        f"as 'mask' or 'label' is never the image.{as_tensors(values)}"
    )


def as_tensors(values: list[Any]) -> str:
    """Return how an array becomes an image that is taken, if there is an array."""
    if not any(isinstance(value, np.ndarray) for value in values):
        return ""
    return " Of an array (H, W, 3) make a tensor: torch.from_numpy(array).permute(2, 0, 1)."


def count_rows(images: Any) -> int:
    """Return how many rows get parameters of their own: a batch's length, else one."""
    if isinstance(images, Tensor):
        return images.shape[0] if images.ndim > 3 else 1
    return images.shape[0] if getattr(images, "ndim", 0) == 4 else 1


def channels_of(images: Any) -> int:
    """Return how many channels an image or a batch has, transparency apart."""
    if isinstance(images, PIL.Image.Image):
        return len([band for band in images.getbands() if band != "A"])
    if isinstance(images, Tensor):
        return images.shape[-3] if images.ndim > 2 else 1
    return images.shape[-1] if getattr(images, "ndim", 0) > 2 else 1


def framed(image: Any) -> Any:
    """Return a tv_tensor as a plain one; a single video `(T, C, H, W)` as one row of frames."""
    if not isinstance(image, tv_tensors.TVTensor):
        return image
    plain = image.as_subclass(Tensor)
    return plain[None] if isinstance(image, tv_tensors.Video) and plain.ndim == 4 else plain
