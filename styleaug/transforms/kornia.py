"""`RandomStyle` for `kornia.augmentation`, alone or in its containers."""

from typing import Any, Unpack

import torch
from torch import Tensor

from styleaug.checks import check_share
from styleaug.errors import ImageError, missing_extra
from styleaug.generators.ambient import as_usual
from styleaug.transforms.base import AbstractAugment
from styleaug.transforms.host import Styles, advised, held, needs_no_other_inputs, with_options
from styleaug.transforms.options import P, StyleOptions
from styleaug.transforms.params import StyleParams

try:
    from kornia.augmentation import IntensityAugmentationBase2D
    from kornia.augmentation.random_generator import RandomGeneratorBase
except ImportError as _error:
    raise missing_extra("styleaug.transforms.kornia", "kornia", "kornia") from _error

__all__ = ["RandomStyle"]

_IMAGES = (
    "In kornia: images are (B, C, H, W), as kornia.utils.image_to_tensor makes them, and RandomStyle "
    "stands before Normalize, as in AugmentationSequential(RandomStyle(...), Normalize(mean, std))."
)
_DEVICE = "In kornia: call the AugmentationSequential on the batch, after the DataLoader."


class RandomStyle(IntensityAugmentationBase2D):
    """Stylise images after a bank, at random; masks, boxes and keypoints stay as they are.

    Place it before `Normalize`. Each row of the batch has a gate, a style and a strength of its own,
    and only picked rows are computed. All that is random is in the parameters, on the CPU and in
    float32 wherever the pipeline was moved to, so `params=` replays a call bit for bit.

    Args:
        bank: see `styleaug.StyleAugment`, as for all other options; `"batch"` takes the styles of a
            batch from its other images.
        p: chance of each row to be stylised; None is 0.8, or that of a transform given as bank.
        p_batch: chance of each batch to have rows stylised at all.
        same_on_batch: give all rows one gate, style and strength. With `bank="batch"` the style is
            that of one image for all.
        keepdim: give `(C, H, W)` and `(H, W)` back as they came, not as a batch of one.
        differentiable: let gradients through to the images of picked rows; otherwise only rows that are
            not picked pass them on. It can be given for one call, too.
        options: see `StyleAugment`. With `channels="independent"` each channel of a picked row has a style
            and strength of its own.

    Shape:
        `(B, C, H, W)`, `(C, H, W)` or `(H, W)` of up to 16 channels, float16, bfloat16, float32 or
        float64 in [0, 1] or within `value_range`; dtype and device are kept. In a `VideoSequential` the
        frames of a clip share a style, or with `same_on_frame=False` have one each.

    Raises:
        BankError: the bank is damaged, unknown, or made by another generator.
        WeightsError: the generator is damaged or unknown.
        ConfigError: an argument outside its range, `splice="mask"` or `protect="mask"`.
        ImageError: when called with more than 16 channels, or parameters for another number of rows; with
            NaN, or values outside [0, 1] without a `value_range`, if a row is picked.

    Example:
        >>> import kornia.augmentation as K
        >>> train = K.AugmentationSequential(
        ...     K.RandomHorizontalFlip(), RandomStyle("art", p=0.5), data_keys=["input", "mask"])
    """

    ONNX_EXPORTABLE = False

    @with_options
    def __init__(
        self,
        bank: Styles = None,
        *,
        p: float | None = None,
        p_batch: float = 1.0,
        same_on_batch: bool = False,
        keepdim: bool = False,
        differentiable: bool = False,
        **options: Unpack[StyleOptions],
    ):
        stylizer, p = held(bank, options, p=p, usual=P)
        super().__init__(p, check_share("p_batch", p_batch), same_on_batch, keepdim)
        host = "kornia, which hands over each of the data_keys by itself"
        self.stylizer: AbstractAugment = needs_no_other_inputs(stylizer, host, batch=True)
        self._param_generator = StyleGenerator(self.stylizer)
        self.flags: dict[str, Any] = {"differentiable": differentiable}

    def set_rng_device_and_dtype(self, device: torch.device, dtype: torch.dtype) -> None:
        """Stay on the CPU and in float32, where a seed has one meaning, whatever kornia asks for."""
        super().set_rng_device_and_dtype(torch.device("cpu"), torch.float32)

    def apply_transform(
        self,
        input: Tensor,
        params: dict[str, Tensor],
        flags: dict[str, Any],
        transform: Tensor | None = None,
    ) -> Tensor:
        """Stylise the picked rows, as kornia asks; the others come back as they are."""
        with advised(images=_IMAGES, device=_DEVICE):
            drawn = self.read(params, len(input), self.stylizer.rows_each(input.shape[-3]))
            return self.stylizer.apply(input, drawn, differentiable=flags["differentiable"])

    @staticmethod
    def _blend_by_prob(transformed: Tensor, not_transformed: Tensor, to_apply: Tensor) -> Tensor:
        # What is not picked is in `transformed` already: kornia would copy the batch once more. Only
        # gradients of rows that are not picked may need its way.
        if not_transformed.requires_grad and not transformed.requires_grad:
            return IntensityAugmentationBase2D._blend_by_prob(transformed, not_transformed, to_apply)
        return transformed

    @as_usual()
    def read(self, params: dict[str, Tensor], count: int, each: int = 1) -> StyleParams:
        """Make the core's parameters of kornia's, for the picked ones of `count` images.

        Args:
            params: kornia's.
            count: of the images.
            each: how many rows an image has: its channels, if they are independent.

        Raises:
            ImageError: the parameters are for another number of rows.
        """
        always = self.p == 1 and self.p_batch == 1  # then kornia does not read the gates, either
        gates = torch.ones(count) if always else params["batch_prob"]
        if not len(params["strength"]) == len(gates) == count or params["strength"].shape[1] % each:
            raise ImageError(f"these parameters are for {len(params['strength'])} rows, got {count}.")
        rows = (gates.cpu() > 0.5).nonzero()[:, 0]
        picked = {name: params[name].cpu()[rows].flatten(0, 1) for name in FIELDS if name in params}
        none = torch.empty(len(rows) * each * self.stylizer.parts, 0)
        sources = picked.get("sources", none.long())
        if self.stylizer.within_batch and len(rows):
            # A VideoSequential draws for clips and hands over frames: a clip's style is its first one's.
            drawn = int(params["forward_input_shape"][0])
            if count % drawn:
                raise ImageError(
                    f"these parameters take styles from other rows of a batch of {drawn}, got {count} rows."
                )
            sources = sources * (count // drawn)
        return StyleParams(
            rows=(rows[:, None] * each + torch.arange(each)).flatten().repeat_interleave(self.stylizer.parts),
            strength=picked["strength"],
            codes=picked.get("codes", None if self.stylizer.within_batch else none),
            sources=sources,
            shares=picked.get("shares", none),
            fields=picked.get("fields"),
        )


FIELDS = ("strength", "codes", "sources", "shares", "fields")


class StyleGenerator(RandomGeneratorBase):
    """Draw the parameters of a batch from torch's global generator.

    They are those of `StyleParams`, of all rows, with an axis for the parts of a row after the first:
    `strength` `(B, P)`, `codes` `(B, P, S)`, `sources` and `shares` `(B, P, M)`, `fields` `(B, P, G, G)`.
    With `channels="independent"` P is the channels' number times that of the parts.
    Those without a number are left out, as kornia cannot repeat them for the frames of a clip.

    Args:
        stylizer: draws; its `p` is 1.
    """

    def __init__(self, stylizer: AbstractAugment):
        super().__init__()
        self.stylizer = stylizer

    def __repr__(self) -> str:
        return self.stylizer.extra_repr().replace(", p=1.0", "")  # kornia adds its own

    def make_samplers(self, device: torch.device, dtype: torch.dtype) -> None:
        """Make none: all is drawn on the CPU and in float32."""

    @as_usual(for_autograd=True)
    def forward(self, batch_shape: tuple[int, ...], same_on_batch: bool = False) -> dict[str, Tensor]:
        """Draw for a batch of this shape `(B, C, H, W)`; the first row's for all if they are the same."""
        count, each = batch_shape[0], self.stylizer.rows_each(batch_shape[-3])
        drawn, parts = self.stylizer.draw(count * each), each * self.stylizer.parts
        rows = torch.zeros(count, dtype=torch.long) if same_on_batch else torch.arange(count)
        return {
            name: value.reshape(count, parts, *value.shape[1:])[rows]
            for name in FIELDS
            if (value := drawn[name]) is not None and 0 not in value.shape[1:]
        }
