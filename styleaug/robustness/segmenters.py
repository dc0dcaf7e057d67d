"""Segmentation networks by name: a small U-Net, and those of torchvision, MONAI and SMP."""

import math
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from styleaug.errors import ConfigError, first_line, missing_extra
from styleaug.robustness.classifier_training import Recipe
from styleaug.robustness.classifiers import Network, Normalise, downloaded, early_blocks, imagenet

__all__ = ["UNet", "make_segmenter", "usual_segmentation_recipe"]

UNET = re.compile(r"unet(?:-(\d+))?")
WIDTH, DEPTH = 8, 5
"""Channels at full size, and the number of sizes, of the built-in network."""
GROUPS = 4
_KNOWN = (
    "unet, unet-WIDTH, torchvision:NAME, monai:NAME, or smp:NAME[:ENCODER] of segmentation_models_pytorch"
)

FROM_SCRATCH_MASKS = Recipe(
    side=128, epochs=25, lr=4e-3, batch=8, weight_decay=1e-3, label_smoothing=0.0, geometry="cells"
)
FINE_TUNED_MASKS = Recipe(
    side=128, epochs=20, lr=5e-4, batch=8, weight_decay=1e-3, label_smoothing=0.0, geometry="cells"
)

MONAI: dict[str, dict[str, Any]] = {
    "UNet": {"channels": (16, 32, 64, 128), "strides": (2, 2, 2), "num_res_units": 2},
    "BasicUNet": {},
    "BasicUNetPlusPlus": {},
    "AttentionUnet": {"channels": (16, 32, 64, 128), "strides": (2, 2, 2)},
    "SegResNet": {},
    "DynUNet": {
        "kernel_size": (3, 3, 3, 3),
        "strides": (1, 2, 2, 2),
        "upsample_kernel_size": (2, 2, 2),
    },
    "UNETR": {"img_size": None},
    "SwinUNETR": {},
    "FlexibleUNet": {"backbone": "efficientnet-b0"},
}
"""MONAI's networks that can be named, with arguments that they need beside the usual ones."""


def usual_segmentation_recipe(name: str, *, pretrained: bool) -> Recipe:
    """Return the usual recipe of a network."""
    fresh = UNET.fullmatch(name) or name.startswith("monai:") or not pretrained
    return FROM_SCRATCH_MASKS if fresh else FINE_TUNED_MASKS


def make_segmenter(name: str, classes: int, side: int, *, pretrained: bool = True) -> Network:
    """Build a segmentation network; random weights are drawn from torch's global generator.

    Args:
        name: `"unet"`; `"unet-16"` with another number of channels; `"torchvision:fcn_resnet50"`;
            `"monai:SegResNet"`; `"smp:Unet"` or `"smp:Unet:mobilenet_v2"` of segmentation_models_pytorch.
        classes: number of logits of each pixel.
        side: side of the images in pixels.
        pretrained: start from an ImageNet encoder, if the library has one.

    Raises:
        ConfigError: the name is unknown, a library is not installed, or the network cannot take such images.
        WeightsError: weights cannot be downloaded.
    """
    library, _, rest = name.partition(":")
    if found := UNET.fullmatch(name):
        net = make_unet(int(found[1] or WIDTH), classes)
    elif library == "torchvision":
        net = make_torchvision_segmenter(rest, classes, pretrained=pretrained)
    elif library == "monai":
        net = make_monai(rest, classes, side)
    elif library == "smp":
        net = make_smp(rest, classes, pretrained=pretrained)
    else:
        raise ConfigError(f"unknown segmentation network {name!r}; choose {_KNOWN}.")
    probe(net, name, classes, side)
    return net


@torch.inference_mode()
def probe(net: Network, name: str, classes: int, side: int) -> None:
    """Check that a network gives each pixel its logits.

    Raises:
        ConfigError: it cannot take images of this size, or returns something else.
    """
    training = net.training
    try:
        shape = tuple(net.eval()(torch.zeros(1, 3, side, side)).shape)
    # Networks fail at sizes that they cannot halve, each with an error of its own.
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise ConfigError(
            f"{name} cannot take images of {side} x {side} pixels: {first_line(error)} Try a multiple of 32."
        ) from None
    net.train(training)
    if shape != (1, classes, side, side):
        raise ConfigError(f"{name} returns logits of shape {shape}, not {(1, classes, side, side)}.")


def conv_unit(ins: int, outs: int) -> nn.Sequential:
    """Return convolution, group norm and ReLU."""
    norm = nn.GroupNorm(math.gcd(GROUPS, outs), outs)
    return nn.Sequential(nn.Conv2d(ins, outs, 3, padding=1, bias=False), norm, nn.ReLU(inplace=True))


class UNet(nn.Module):
    """A small U-Net (Ronneberger et al. 2015), with half of the convolutions on the way up.

    Args:
        widths: channels at each size, from the full size down.
        classes: number of logits of each pixel.
    """

    def __init__(self, widths: Sequence[int], classes: int):
        super().__init__()
        ins = (3, *widths)
        self.down: nn.ModuleList = nn.ModuleList(
            nn.Sequential(conv_unit(i, o), conv_unit(o, o)) for i, o in pairwise(ins)
        )
        self.up: nn.ModuleList = nn.ModuleList(
            conv_unit(fine + coarse, fine) for fine, coarse in pairwise(widths)
        )
        self.head: nn.Conv2d = nn.Conv2d(widths[0], classes, 1)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B K H W"]:
        """Compute the logits of each pixel."""
        features, kept = images, []
        for level, block in enumerate(self.down):
            features = block(F.max_pool2d(features, 2) if level else features)
            kept.append(features)
        kept.pop()
        for block in reversed(self.up):
            fine = kept.pop()
            features = block(torch.cat([fine, F.interpolate(features, size=fine.shape[-2:])], dim=1))
        return self.head(features)


def make_unet(width: int, classes: int) -> Network:
    """Build the small U-Net."""
    if width < 1:
        raise ConfigError(f"the width of unet-WIDTH must be at least 1, got {width}.")
    body = UNet([width * 2**level for level in range(DEPTH)], classes)
    return Network(Normalise((0.5, 0.5, 0.5), 4.0), body, list(body.down[:2]))


class FirstOutput(nn.Module):
    """Return the main output of a network that returns several, in a dictionary or a list."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B K H W"]:
        """Compute the logits of each pixel."""
        found = self.net(images)
        if isinstance(found, Mapping):
            return found["out"]
        return found[0] if isinstance(found, list | tuple) else found


def make_torchvision_segmenter(name: str, classes: int, *, pretrained: bool) -> Network:
    """Build one of torchvision's segmentation networks."""
    from torchvision import models

    known = models.list_models(module=models.segmentation)
    if name not in known:
        raise ConfigError(f"torchvision has no segmentation network {name!r}; it has {', '.join(known)}.")
    backbone = "DEFAULT" if pretrained else None
    net: Any = downloaded(
        lambda: models.get_model(name, weights=None, weights_backbone=backbone, num_classes=classes), name
    )
    return Network(imagenet(), FirstOutput(net), early_blocks(net.backbone))


def make_monai(name: str, classes: int, side: int) -> Network:
    """Build one of MONAI's networks for images of two dimensions, from scratch."""
    if name not in MONAI:
        raise ConfigError(f"monai:{name} is not known; choose from {', '.join(MONAI)}.")
    try:
        from monai.networks import nets
    except ImportError:
        raise missing_extra(f"monai:{name}", "monai", "monai") from None
    needed = {key: (side, side) if value is None else value for key, value in MONAI[name].items()}
    net = getattr(nets, name)(spatial_dims=2, in_channels=3, out_channels=classes, **needed)
    return Network(Normalise((0.5, 0.5, 0.5), 4.0), FirstOutput(net), early_blocks(net))


def make_smp(name: str, classes: int, *, pretrained: bool) -> Network:
    """Build one of the networks of segmentation_models_pytorch."""
    try:
        import segmentation_models_pytorch as smp  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise missing_extra(f"smp:{name}", "segmentation-models-pytorch", "evaluation") from None
    kind, _, encoder = name.partition(":")
    encoder = encoder or "resnet34"
    weights = "imagenet" if pretrained else None

    def make() -> Any:
        return smp.create_model(kind, encoder, encoder_weights=weights, in_channels=3, classes=classes)

    if pretrained:
        net = downloaded(make, f"smp:{name}")
    else:
        try:
            net = make()
        except (KeyError, ValueError) as error:
            raise ConfigError(f"smp:{name} is not known: {first_line(error)}") from None
    return Network(imagenet(), net, early_blocks(net.encoder))
