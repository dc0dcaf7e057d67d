"""`StyleAugment` for `torchvision.transforms.Compose` and `torchvision.transforms.v2`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor
from torch.utils._pytree import tree_unflatten
from torchvision import tv_tensors
from torchvision.transforms import v2

from styleaug.bank import StyleBank
from styleaug.errors import ImageError
from styleaug.generators.base import AbstractGenerator
from styleaug.images import ValueRange
from styleaug.samplers import Sampler
from styleaug.transforms.core import Stylizer
from styleaug.transforms.guard import Protect
from styleaug.transforms.params import STRENGTH, Channels, P, Precision, StyleParams
from styleaug.transforms.sample import describe, find_images, flatten
from styleaug.transforms.splice import Splice

__all__ = ["StyleAugment"]

IMAGE_DTYPES = (
    torch.uint8,
    torch.uint16,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
)
SIGNED_DTYPES = (torch.int16, torch.int32)
WRAPPED = (PIL.Image.Image, tv_tensors.Image, tv_tensors.Video)
"""Types of a sample's values that say that they are images."""


def as_tensors(values: list[Any]) -> str:
    """Say how an array becomes an image that is taken, if there is an array."""
    if not any(isinstance(value, np.ndarray) for value in values):
        return ""
    return " Of an array (H, W, 3) make a tensor: torch.from_numpy(array).permute(2, 0, 1)."


def is_image_tensor(value: Any, dtypes: tuple[torch.dtype, ...] = IMAGE_DTYPES) -> bool:
    """Tell a plain tensor that can be an image from labels, indices and integer masks."""
    return (
        isinstance(value, Tensor)
        and not isinstance(value, tv_tensors.TVTensor)
        and value.ndim >= 3
        and value.dtype in dtypes
    )


def is_signed_tensor(value: Any) -> bool:
    """Tell whether a plain tensor can be an image where a range says what its values mean."""
    return is_image_tensor(value, SIGNED_DTYPES)


class StyleAugment(v2.Transform):
    """Give images the styles of a bank, at random, with labels untouched.

    Place it before `Normalize`. It takes a PIL image, a tensor `(C, H, W)` or `(B, C, H, W)`, or any nested
    sample: PIL images, `tv_tensors.Image` and `Video` in it are stylised, everything else comes back as the
    same object. Each row of a batch has a gate, a style and a strength of its own; the frames of a `Video`
    share one.

    In a sample without these, as `default_collate` makes it, the image is the plain tensor that has three or
    more axes and an image's dtype. If several do, it is the one under a key such as `image`, `images` or
    `pixel_values`; what lies under `mask`, `label` or `target` never is. If that does not tell, the sample is
    refused; the order of keys decides nothing. A grey PIL image beside a colour one is treated so, too.

    A plain tensor has no transparency: of four channels none is alpha, and each is a grey image by itself.
    Its last three axes are (C, H, W): grey images without an axis for the channel, (B, H, W), would be read
    as one image of B channels; give (B, 1, H, W).

    Args:
        bank: a shipped name, a path, a `StyleBank`, the run folder of `styleaug train`, or `"batch"`:
            the styles of a batch are those of its other images. None takes the generator's own: codes
            drawn from the standard normal distribution if it was trained for that, the bank in its
            run folder, or a shipped bank; and `"art"` without a generator.
        generator: a name, a path to weights, a run folder, or a generator. None takes the one that
            made the bank or lies in its run folder, or `"reinhard-lab"` for `"batch"`.
        p: chance of each row to be stylised.
        strength: `(low, high)` of the uniform distribution it is drawn from, or one number; in
            [0, 1], where 1 is the whole style.
        sampler: `"uniform"`, `"weighted"`, `"mix"`, `"gaussian"` or `"slerp"`.
        weights: of the bank's styles, for `"weighted"`.
        components: how many styles `"mix"` joins.
        keep_luminance: keep each pixel's brightness, take over the colour only.
        splice: give parts of one image different styles and strengths, with soft borders: `"halves"`
            are bands of random direction, `"fields"` random smooth patches, and `"mask"` follows the
            first `tv_tensors.Mask` of the sample, which itself is passed on. Label 1 is the first part,
            2 the second, 0 (the background) the last; labels from `parts` on start again with
            the first, so of two parts the first is all that is not 0. Several masks of one image
            are its objects and are joined; floats are the first part's share.
        parts: how many styles an image gets; for `splice`.
        keep: leave the first part as it is; for `splice`.
        value_range: which values are black and white. None is 0 and the greatest number of uint8 or uint16,
            0 and 1 of floats. `(low, high)`, such as `(-160, 240)` for CT in HU, takes floats, int16 and
            int32, too; what lies beyond keeps its distance to the border. `"auto"` is each image's own
            0.5th and 99.5th percentile, for what has no units.
        channels: `"auto"` takes 1 channel as grey, 3 as colour, and each of another number as a grey
            image by itself, with the row's one style and strength. `"shared"` does so for 3, too. With
            `"independent"` each channel has a gate, a style and a strength of its own.
        preserve: how much structure every row keeps at least, in [0, 1]: edges that correlate with the
            image's by that much, and that share of the contrast of blobs of 3 to 30 pixels in nine tenths of
            the image, and more in half of it; try 0.9 where findings matter. A row that falls below is mixed
            with the image itself in the style's colours, which is all that is left at 1. 0 and None keep what
            the generator keeps.
        edges: has gone; leave it out.
        protect: where local contrast stays as it is, with a soft border, and only a smooth shift of colours
            remains of the style: `"mask"` is what is above 0 in the first `tv_tensors.Mask` of the sample,
            which itself is passed on; or a function maps images `(K, 3, H, W)` in [0, 1] to weights
            `(K, 1, H, W)` in [0, 1]. Of several channels that are images of their own it sees each by itself.
        least_side: an image whose shorter side has fewer pixels is enlarged to so many while it is stylised,
            and the change is reduced to its size. None is what suits the generator: 128 for `adain` and
            `patchswap`, whose strokes have a size of their own, and 1, the size as it is, for the others.
        precision: of a network's weights: `"float32"`, `"bfloat16"`, or `"auto"`, which takes
            bfloat16 where the device is faster with it; images differ by less than 2/255 on average.
        compiled: run the generator through `torch.compile`, on CUDA as graphs, with rows padded to
            a power of two; worth it for many batches of one image size.

    Shape:
        As the input; so are dtype, range, device and memory format. H and W from 1 pixel.

    Raises:
        BankError: the bank is damaged, unknown, or made by another generator.
        WeightsError: the generator is damaged or unknown.
        ConfigError: an argument outside its range.
        ImageError: when called with another type, PIL mode, dtype or shape, more than 16 channels (256, if
            `channels` says that each is an image), several values that could be the image, or without the
            mask that `splice="mask"` or `protect="mask"` needs. These are found in every call; NaN, and
            values outside [0, 1] without a `value_range`, in calls that pick a row.

    Example:
        >>> from torchvision import transforms
        >>> train = transforms.Compose([
        ...     StyleAugment("art", p=0.5), transforms.ToTensor()])  # doctest: +SKIP
    """

    def __init__(
        self,
        bank: str | Path | StyleBank | None = None,
        *,
        generator: str | Path | AbstractGenerator | None = None,
        p: float = P,
        strength: float | Sequence[float] = STRENGTH,
        sampler: Sampler = "uniform",
        weights: Sequence[float] | Tensor | None = None,
        components: int = 2,
        keep_luminance: bool = False,
        splice: Splice | None = None,
        parts: int = 2,
        keep: bool = False,
        value_range: ValueRange = None,
        channels: Channels = "auto",
        preserve: float | None = None,
        edges: str | None = None,
        protect: Protect | None = None,
        least_side: int | None = None,
        precision: Precision = "auto",
        compiled: bool = False,
    ):
        super().__init__()
        self.stylizer = Stylizer(
            bank,
            generator=generator,
            p=p,
            strength=strength,
            sampler=sampler,
            weights=weights,
            components=components,
            keep_luminance=keep_luminance,
            splice=splice,
            parts=parts,
            keep=keep,
            value_range=value_range,
            channels=channels,
            preserve=preserve,
            edges=edges,
            protect=protect,
            least_side=least_side,
            precision=precision,
            compiled=compiled,
        )

    @property
    def by_mask(self) -> bool:
        """Whether a sample needs a mask."""
        return "mask" in (self.stylizer.splice, self.stylizer.guard.protect)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.stylizer.extra_repr()})"

    def extra_repr(self) -> str:
        """Say what is drawn from what."""
        return self.stylizer.extra_repr()

    def forward(self, *inputs: Any) -> Any:
        """Stylise the images of a sample; the sample is one argument or several.

        Raises:
            ImageError: no image, several values that could be the image, or no mask where one is needed.
        """
        leaves, spec = flatten(inputs if len(inputs) != 1 else inputs[0])
        values = [value for _, value in leaves]
        chosen = find_images(leaves, wrapped=WRAPPED, plain=self.is_candidate)
        if not chosen:
            raise ImageError(
                f"no image in the sample: got {kinds_of(values)}. Give a PIL image, a tv_tensors.Image, or a "
                "uint8, uint16 or float tensor (C, H, W) or (B, C, H, W); int16 and int32 need a "
                "value_range. Samples are dicts, lists, tuples and named tuples; what lies under a key such "
                f"as 'mask' or 'label' is never the image.{as_tensors(values)}"
            )
        masks = [value for value in values if isinstance(value, tv_tensors.Mask)] if self.by_mask else []
        if self.by_mask and not masks:
            option = "splice" if self.stylizer.splice == "mask" else "protect"
            raise ImageError(
                f'{option}="mask" needs a mask in the sample, and there is none. '
                "Wrap it: tv_tensors.Mask(mask)."
            )
        params = self.make_params([*(values[at] for at in chosen), *masks])
        for at in chosen:
            values[at] = self.transform(values[at], params)
        return tree_unflatten(values, spec)

    def is_candidate(self, value: Any) -> bool:
        """Tell a plain tensor that can be an image from labels, indices and integer masks."""
        return is_image_tensor(value) or (self.stylizer.value_range is not None and is_signed_tensor(value))

    def make_params(self, flat_inputs: Any, *, rng: torch.Generator | None = None) -> dict[str, Any]:
        """Draw all that is random about one call.

        Args:
            flat_inputs: the images of a sample, or one image or batch.
            rng: None draws from torch's global generator, which DataLoader seeds in each worker.

        Returns:
            A `StyleParams`: give it to `apply` with the same images to replay the call. With
            `splice="mask"` or `protect="mask"` the mask is in it, too.
        """
        inputs = flat_inputs if isinstance(flat_inputs, (list, tuple)) else [flat_inputs]
        images = [value for value in inputs if not isinstance(value, tv_tensors.Mask)]
        masks = [value for value in inputs if isinstance(value, tv_tensors.Mask)]
        counts = {self.stylizer.rows_of(framed(image)) for image in images}
        if len(counts) > 1:
            raise ImageError(
                f"the images of one sample must have equally many rows, got {sorted(counts)}. "
                "Stylise them in calls of their own."
            )
        return {**self.stylizer.draw(counts.pop(), rng), **({"masks": masks[0]} if masks else {})}

    def apply(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, images: Any, params: dict[str, Any] | None = None, *, masks: Any = None
    ) -> Any:
        """Stylise `images` as `params` say, with nothing random; see `make_params`.

        Called with a function alone it is `nn.Module.apply`, as in `model.apply(initialise)`.

        Args:
            images: one of the images that the parameters were made for.
            params: from `make_params`.
            masks: instead of the mask in `params`; see `Stylizer.apply`.

        Raises:
            ImageError: no image, parameters for a larger batch, or masks that are missing or do not fit.
        """
        if params is None:
            return super().apply(images)
        style: StyleParams = params  # pyright: ignore[reportAssignmentType]
        masks = params.get("masks") if masks is None else masks
        if not isinstance(images, tv_tensors.TVTensor):
            return self.stylizer.apply(images, style, masks=masks)
        plain = framed(images)
        styled = self.stylizer.apply(plain, style, masks=masks)
        if styled is plain:
            return images
        return tv_tensors.wrap(styled.reshape(images.shape), like=images)  # pyright: ignore[reportCallIssue]

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Apply to one image of a sample, as torchvision asks; a mask is passed on."""
        return inpt if isinstance(inpt, tv_tensors.Mask) else self.apply(inpt, params)


def framed(image: Any) -> Any:
    """Give a tv_tensor as a plain one; a single video `(T, C, H, W)` as one row of frames."""
    if not isinstance(image, tv_tensors.TVTensor):
        return image
    plain = image.as_subclass(Tensor)
    return plain[None] if isinstance(image, tv_tensors.Video) and plain.ndim == 4 else plain


def kinds_of(values: list[Any]) -> str:
    """Name the kinds of values for a message."""
    return ", ".join(sorted({describe(value) for value in values})) or "nothing"
