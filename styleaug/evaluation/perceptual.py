"""The networks that judge: LPIPS on SqueezeNet, and the VGG-19 of style and content losses."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from styleaug.errors import WeightsError
from styleaug.training.scores import SqueezeNet
from styleaug.training.vgg import VGG19, load_vgg19, read_weights

__all__ = ["LPIPS", "Networks", "load_lpips", "load_networks"]

LINEAR_FILE = "lpips_squeeze_linear.safetensors"
FILES = ("vgg19_normalised_relu4_1.safetensors", "squeezenet1_1_imagenet.safetensors", LINEAR_FILE)
INSTALLED = (
    ("lpips", "weights/v0.1/squeeze.pth"),
    ("torchmetrics", "functional/image/lpips_models/squeeze.pth"),
)
"""Packages that bring the linear weights, and where in them."""


class LPIPS(nn.Module):
    """Learned perceptual distance (Zhang et al. 2018, eq. 1), version 0.1 on SqueezeNet 1.1.

    Its features are also those by which styles are compared on a network that no generator here was
    trained on.

    Args:
        network: frozen here.
        linear: weights of each level's channels, as many as `taps`.
    """

    taps = (1, 4, 7, 9, 10, 11, 12)
    """Layers whose outputs are compared."""

    def __init__(self, network: SqueezeNet, linear: Sequence[Tensor]):
        super().__init__()
        self.network = network
        self.linear = nn.ParameterList([weight.reshape(1, -1, 1, 1) for weight in linear])
        self.requires_grad_(False).eval()

    def levels(self, images: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        """Compute the features `(B, C_l, H_l, W_l)` of RGB images in [0, 1], 64 pixels or more on a side."""
        x, levels = (images - self.network.mean) / self.network.std, []
        for index, layer in enumerate(self.network.features):
            x = layer(x)
            if index in self.taps:
                levels.append(x)
        return levels

    def compare(self, one: list[Tensor], other: list[Tensor]) -> Float[Tensor, " B"]:
        """Give the distance of images of which `levels` gave these features."""
        distances = [
            ((unit(x) - unit(y)).square() * weight).sum(dim=1).mean(dim=(1, 2))
            for x, y, weight in zip(one, other, self.linear, strict=True)
        ]
        return torch.stack(distances).sum(dim=0)

    def forward(self, one: Float[Tensor, "B 3 H W"], other: Float[Tensor, "B 3 H W"]) -> Float[Tensor, " B"]:
        """Compare two batches of images."""
        return self.compare(self.levels(one), self.levels(other))


def unit(features: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
    """Give the features of each place the length 1."""
    return features / (features.square().sum(dim=1, keepdim=True).sqrt() + 1e-10)


@dataclass(frozen=True)
class Networks:
    """What `evaluate quality` looks through, and where it comes from."""

    vgg: VGG19
    lpips: LPIPS
    sources: dict[str, str]
    """What each network is, for the record: figures of others do not compare."""

    def to(self, device: torch.device) -> "Networks":
        """Move the networks."""
        self.vgg.to(device)
        self.lpips.to(device)
        return self


def load_networks(folder: Path | None = None) -> Networks:
    """Load VGG-19, SqueezeNet 1.1 and the linear weights of LPIPS.

    Args:
        folder: holds `vgg19_normalised_relu4_1.safetensors`, `squeezenet1_1_imagenet.safetensors` and
            `lpips_squeeze_linear.safetensors`; None downloads torchvision's networks once, and takes the
            linear weights from the package `lpips` or `torchmetrics`.

    Raises:
        WeightsError: a file that is missing, damaged, or another network; or no download.
    """
    if folder is not None:
        check_files(folder)
        vgg = "VGG-19, normalised, relu1_1 to relu4_1"
    else:
        vgg = "VGG-19 of torchvision, not normalised, relu1_1 to relu4_1"
    lpips = load_lpips(folder)
    with downloads():
        network = load_vgg19(folder).eval()
    sources = {
        "style_loss, content_loss": vgg,
        "lpips, diversity": "SqueezeNet 1.1, ImageNet, LPIPS v0.1",
        "sliced_wasserstein, gram": "SqueezeNet 1.1, ImageNet, the seven levels of LPIPS",
        "fid, art_fid": "SqueezeNet 1.1, ImageNet, means of the last 512 features",
    }
    return Networks(network, lpips, sources)


def load_lpips(folder: Path | None = None) -> LPIPS:
    """Load LPIPS on SqueezeNet 1.1; see `load_networks`."""
    linear = read_linear(folder)
    with downloads():
        return LPIPS(SqueezeNet.load(folder), linear)


def read_linear(folder: Path | None) -> list[Tensor]:
    """Read the linear weights, level by level."""
    path = installed_linear() if folder is None else Path(folder) / LINEAR_FILE
    saved = torch.load(path, map_location="cpu", weights_only=True) if folder is None else read_weights(path)
    names = [f"lin{index}.model.1.weight" for index in range(len(LPIPS.taps))]
    missing = [name for name in names if name not in saved]
    if missing:
        raise WeightsError(f"{path} holds no {missing[0]}; these are not the LPIPS weights of SqueezeNet.")
    return [saved[name].float() for name in names]


def installed_linear() -> Path:
    """Find the linear weights in an installed package, which is not imported.

    Raises:
        WeightsError: none is installed.
    """
    for package, inside in INSTALLED:
        spec = find_spec(package)
        for place in (spec and spec.submodule_search_locations) or ():
            if (Path(place) / inside).exists():
                return Path(place) / inside
    raise WeightsError(
        f"LPIPS needs its linear weights: pip install lpips (or torchmetrics), or give a folder with "
        f"{LINEAR_FILE} and the other networks (--weights)."
    )


def check_files(folder: Path) -> None:
    """Refuse a folder that lacks a network, before anything is read.

    Raises:
        WeightsError: naming all that are missing.
    """
    missing = [name for name in FILES if not (Path(folder) / name).exists()]
    if missing:
        them = "them" if len(missing) > 1 else "it"
        raise WeightsError(
            f"{folder} holds no {' and no '.join(missing)}. Put {them} there, or leave out the folder "
            "(--weights) to download torchvision's networks."
        )


@contextmanager
def downloads() -> Iterator[None]:
    """Say what to do where a network cannot be downloaded."""
    try:
        yield
    except OSError as error:
        raise WeightsError(
            f"cannot download torchvision's networks ({error}). Where there is no internet, give a folder "
            f"with {', '.join(FILES)} (--weights)."
        ) from None
