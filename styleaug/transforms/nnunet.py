"""nnU-Net: a transform for batchgeneratorsv2, and a trainer that styles whole batches on its device."""

# pyright: reportMissingImports=false, reportUntypedBaseClass=false
# nnU-Net holds timm back, so where this is checked it is not installed.

from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor

from styleaug.errors import ImageError, missing_extra
from styleaug.generators.ambient import as_usual
from styleaug.transforms.base import AbstractAugment
from styleaug.transforms.host import Styles, advised, held, needs_no_other_inputs, with_options
from styleaug.transforms.options import P, StyleOptions
from styleaug.transforms.params import StyleParams

try:
    from batchgeneratorsv2.transforms.base.basic_transform import ImageOnlyTransform
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
except ImportError as _error:
    raise missing_extra("styleaug.transforms.nnunet", "nnunetv2", "nnunet") from _error

__all__ = ["StyleTrainer", "StyleTransform"]

_ADVICE = (
    'In nnU-Net images are normalised to mean 0, so value_range="auto" is the default here: black and white '
    "are percentiles of each image."
)


class StyleTransform(ImageOnlyTransform):
    """Style the image of one sample, at random; segmentation, boxes and keypoints are not touched.

    Place it among the intensity transforms of a `ComposeTransforms`: after `Convert2DTo3DTransform`, and
    before `MaskImageTransform` and `MoveSegAsOneHotToDataTransform`. All slices of a volume share one style
    and its statistics. Draws come from torch's global generator, as those of the host's own transforms do.

    Args:
        bank: see `styleaug.StyleAugment`, as for all options; not `"batch"`. Or a transform in its place.
        p: chance of a sample to be styled; None is 0.8, or that of a transform given as bank.
        options: see `styleaug.StyleAugment`; not `splice="mask"`. `value_range` is `"auto"` unless given.

    Shape:
        `(C, H, W)`, or `(C, D, H, W)` with slices along the first spatial axis, which nnU-Net makes the
        coarsest. Float tensors; shape, dtype and device are kept.

    Raises:
        BankError: the bank is damaged, unknown, or made by another generator.
        ConfigError: an argument outside its range, `bank="batch"`, `splice="mask"` or `protect="mask"`.
        ImageError: when called with another shape or dtype, or NaN.

    Example:
        >>> transforms.append(StyleTransform(generator="gin", strength=(0, 1)))  # doctest: +SKIP
    """

    stylizer: AbstractAugment
    p: float

    @with_options
    def __init__(self, bank: Styles = None, *, p: float | None = None, **options: Unpack[StyleOptions]):
        super().__init__()
        self.stylizer, self.p = nnunet_style(bank, p, options)

    def __repr__(self) -> str:
        return f"StyleTransform({self.stylizer.with_p(self.p).extra_repr()})"

    @as_usual()
    def get_parameters(self, **data_dict: Any) -> dict[str, StyleParams]:
        """Draw whether and how the image is styled."""
        picked = torch.rand(()).item() < self.p
        return {"style": self.stylizer.draw(picked * self.stylizer.rows_each(len(data_dict["image"])))}

    def _apply_to_image(self, img: Tensor, **params: Any) -> Tensor:
        return restyle(self.stylizer, img[None], params["style"])[0]


class StyleTrainer(nnUNetTrainer):
    """nnU-Net's trainer, which styles whole batches on its device before each training step.

    This costs the loader's processes nothing. nnU-Net finds a trainer by name in the folders of the
    environment variable `nnUNet_extTrainer`, for training and for prediction:

        # trainers/style.py, for: nnUNet_extTrainer=trainers nnUNetv2_train 1 2d 0 -tr nnUNetTrainerStyle
        from styleaug.transforms.nnunet import StyleTrainer

        class nnUNetTrainerStyle(StyleTrainer):
            styles = {"bank": "hospital_b.safetensors", "p": 0.5}

    Segmentations, their scales for deep supervision, masks of a cascade, and what nnU-Net set to zero
    outside of a mask stay as they are. Validation and prediction are not styled.
    """

    styles: ClassVar[Any] = {"generator": "gin", "strength": (0.0, 1.0)}
    """A `StyleAugment`, `OneOf` or preset, or the arguments of `StyleAugment`; `value_range` is `"auto"`."""

    stylizer: AbstractAugment
    image_channels: int

    def initialize(self) -> None:
        """Build the network, as the host does, and read the styles."""
        super().initialize()
        plans, configuration = self.plans_manager, self.configuration_manager
        self.read_styles(determine_num_input_channels(plans, configuration, self.dataset_json))

    def read_styles(self, inputs: int) -> None:
        """Make the transform from `styles`, for a network with this number of input channels."""
        given = dict(self.styles) if isinstance(self.styles, dict) else {"bank": self.styles}
        stylizer, p = nnunet_style(given.pop("bank", None), given.pop("p", None), given, batch=True)
        self.stylizer = stylizer.with_p(p)
        masks = len(self.label_manager.foreground_labels) if self.is_cascaded else 0
        self.image_channels = inputs - masks

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Style the images of a batch, then train on it."""
        data = batch["data"].to(self.device, non_blocking=True)
        return super().train_step({**batch, "data": self.stylise(data)})

    @as_usual()
    def stylise(self, data: Tensor) -> Tensor:
        """Style a batch `(B, C, H, W)` or `(B, C, D, H, W)` of images, after which masks may follow."""
        images = data[:, : self.image_channels]
        rows = len(images) * self.stylizer.rows_each(images.shape[1])
        styled = restyle(self.stylizer, images, self.stylizer.draw(rows))
        masked = [at for at, used in enumerate(self.configuration_manager.use_mask_for_norm) if used]
        if masked:
            inside = images[:, masked] != 0
            styled = styled.clone() if styled is images else styled
            styled[:, masked] = styled[:, masked] * inside
        return torch.cat([styled, data[:, self.image_channels :]], dim=1)


def nnunet_style(
    bank: Styles, p: float | None, options: Any, *, batch: bool = False
) -> tuple[AbstractAugment, float]:
    """Return the transform that styles every row, and the chance of a row."""
    own = isinstance(bank, AbstractAugment)
    usual = {} if own else {"value_range": "auto"}
    stylizer, chance = held(bank, {**usual, **options}, p=p, usual=P)
    return needs_no_other_inputs(stylizer, "nnU-Net", batch=batch), chance


def restyle(stylizer: AbstractAugment, images: Tensor, params: StyleParams) -> Tensor:
    """Style a batch `(B, C, H, W)`, or volumes `(B, C, D, H, W)` slice by slice, as drawn.

    Raises:
        ImageError: other axes.
    """
    if images.ndim not in (4, 5):
        raise ImageError(f"nnU-Net's images are (C, H, W) or (C, D, H, W), got {tuple(images.shape[1:])}.")
    with advised(images=_ADVICE):
        if images.ndim == 4:
            return stylizer.apply(images, params)
        return stylizer.apply(images.transpose(1, 2).contiguous(), params).transpose(1, 2)
