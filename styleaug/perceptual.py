"""Networks that measure images: LPIPS on SqueezeNet, and the VGG-19 of style and content losses."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from styleaug.errors import ConfigError, WeightsError
from styleaug.generators.adain import AdaIN
from styleaug.generators.layers import channel_stats
from styleaug.io.paths import check_regular, in_utf8
from styleaug.weights import load_generator

__all__ = [
    "LPIPS",
    "VGG19",
    "Features",
    "Networks",
    "frechet_distance",
    "kernel_distance",
    "load_features",
    "load_lpips",
    "load_networks",
    "load_vgg19",
    "read_weights",
]


class VGG19(nn.Module):
    """VGG-19 up to relu4_1 (Simonyan & Zisserman 2015), with reflected borders, frozen.

    It returns relu1_1, relu2_1, relu3_1 and relu4_1, the levels of Huang & Belongie 2017.
    """

    layout: tuple[tuple[int, int], ...] = ((1, 2), (2, 2), (3, 4), (4, 1))  # (block, convolutions)
    widths: tuple[int, ...] = (64, 128, 256, 512)
    means: Tensor

    def __init__(self):
        super().__init__()
        channels = 3
        self.convs: nn.ModuleDict = nn.ModuleDict()
        for (block, count), width in zip(self.layout, self.widths, strict=True):
            for index in range(1, count + 1):
                self.convs[f"{block}_{index}"] = nn.Conv2d(channels, width, 3)
                channels = width
        # The Caffe weights expect BGR 0..255 minus the ImageNet means.
        self.register_buffer("means", torch.tensor([103.939, 116.779, 123.68]).view(1, 3, 1, 1))
        self.requires_grad_(False)

    def forward(self, images: Float[Tensor, "B 3 H W"], *, depth: int = 4) -> list[Tensor]:
        """Compute the first `depth` levels for RGB `images` in [0, 1], in the weights' dtype."""
        x = (images.flip(1) * 255 - self.means).to(next(self.parameters()).dtype)
        levels = []
        for block, count in self.layout[:depth]:
            x = F.max_pool2d(x, 2) if block > 1 else x
            # The convolutions after a level's output belong to the next level.
            for index in range(1, count + 1 if block < depth else 2):
                x = F.relu(
                    self.convs[f"{block}_{index}"](F.pad(x, (1, 1, 1, 1), mode="reflect")), inplace=True
                )
                if index == 1:
                    levels.append(x)
        return levels

    @classmethod
    def from_file(cls, path: Path) -> "VGG19":
        """Load the normalised weights (Huang & Belongie's `vgg_normalised`) from safetensors."""
        saved = read_weights(path)
        net, state = cls(), {}
        for name in net.convs:
            block, index = name.split("_")
            key = "output" if name == "4_1" else f"block{block}_conv{index}"
            for part in ("weight", "bias"):
                if f"{key}.{part}" not in saved:
                    raise WeightsError(f"{path} holds no {key}.{part}; this is not a normalised VGG-19.")
                state[f"convs.{name}.{part}"] = saved[f"{key}.{part}"]
        net.load_state_dict(state | {"means": net.means})
        return net

    @classmethod
    def from_torchvision(cls) -> "VGG19":
        """Download torchvision's ImageNet weights. They are not normalised, so losses are larger."""
        from torchvision.models import VGG19_Weights, vgg19

        net = cls()
        source = [
            m
            for m in vgg19(weights=VGG19_Weights.IMAGENET1K_V1).features.children()
            if isinstance(m, nn.Conv2d)
        ]
        for ours, theirs in zip(net.convs.values(), source, strict=False):
            ours.load_state_dict(theirs.state_dict())
        # torchvision's take RGB divided by the ImageNet deviations; fold both into the first layer.
        scale = 1 / (255 * torch.tensor([0.229, 0.224, 0.225])).view(1, 3, 1, 1)
        first = net.convs["1_1"]
        first.weight.data = (first.weight.data * scale).flip(1)  # pyright: ignore
        return net


def load_vgg19(folder: Path | None = None) -> VGG19:
    """Load the loss network from `folder`, or download torchvision's if it is None.

    Args:
        folder: folder with `vgg19_normalised_relu4_1.safetensors`.

    Raises:
        WeightsError: the file is missing, damaged, or holds another network.
    """
    if folder is None:
        return VGG19.from_torchvision()
    return VGG19.from_file(Path(folder) / "vgg19_normalised_relu4_1.safetensors")


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file, or raise `WeightsError`."""
    try:
        with in_utf8(check_regular(path)) as name:
            return load_file(name)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"cannot read the weights {path}: {error}") from None


_LEAST_SIDE = 64
"""Short side in pixels to which smaller images are enlarged for a network."""
_CHUNK = 16
"""Number of images encoded at once."""


def kernel_distance(one: Float[Tensor, "N S"], other: Float[Tensor, "M S"]) -> float:
    """Compute the unbiased squared MMD with the cubic polynomial kernel (KID, Binkowski 2018, eq. 4).

    For samples of one distribution it is zero on average, so it can be slightly negative.

    Raises:
        ConfigError: fewer than two rows.
    """
    check_rows(one, other)
    x, y = one.double(), other.double()

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / a.shape[1] + 1) ** 3

    def without_diagonal(square: Tensor) -> Tensor:
        return (square.sum() - square.trace()) / (len(square) * (len(square) - 1))

    within = without_diagonal(kernel(x, x)) + without_diagonal(kernel(y, y))
    return float(within - 2 * kernel(x, y).mean())


def frechet_distance(one: Float[Tensor, "N S"], other: Float[Tensor, "M S"]) -> float:
    """Compute the squared Fréchet distance of two Gaussians fitted to the rows (FID, Heusel 2017, eq. 6).

    With few rows compared to S it is too large; compare only samples of the same size.

    Raises:
        ConfigError: fewer than two rows.
    """
    check_rows(one, other)
    x, y = one.double(), other.double()
    root = matrix_root(covariance(x))
    # The trace of (A B)^1/2 is that of (A^1/2 B A^1/2)^1/2, which is symmetric.
    product = root @ covariance(y) @ root
    cross = torch.linalg.eigvalsh((product + product.T) / 2).clamp_min(0).sqrt().sum()
    spread = x.var(dim=0).sum() + y.var(dim=0).sum() - 2 * cross
    return float((x.mean(dim=0) - y.mean(dim=0)).square().sum() + spread)


def covariance(rows: Float[Tensor, "N S"]) -> Float[Tensor, "S S"]:
    """Compute the unbiased covariance of the columns."""
    centred = rows - rows.mean(dim=0)
    return centred.T @ centred / (len(rows) - 1)


def matrix_root(matrix: Float[Tensor, "S S"]) -> Float[Tensor, "S S"]:
    """Compute the symmetric square root of a covariance."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T


def check_rows(one: Tensor, other: Tensor) -> None:
    """Check that both samples have at least two rows."""
    if min(len(one), len(other)) < 2:
        raise ConfigError(
            f"scores need at least 2 images on each side, got {len(one)} and {len(other)}. Give more images."
        )


class Features(nn.Module):
    """Compute features of images with a frozen network: `(B, 3, H, W)` in [0, 1] to `(B, S)` float32.

    `.to(device)` moves the network. Images are moved to its device, and the features stay there.

    Args:
        name: a name of `load_features`.
        network: the network; it is frozen here.
        read: calls the network on images with a short side of at least 64 pixels.
    """

    name: str
    network: nn.Module
    read: Callable[[nn.Module, Tensor], Tensor]

    def __init__(self, name: str, network: nn.Module, read: Callable[[nn.Module, Tensor], Tensor]):
        super().__init__()
        self.name, self.network, self.read = name, network.eval().requires_grad_(False), read

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B S"]:
        """Compute features `(B, S)`, a few images at a time."""
        device = next(self.network.parameters()).device
        chunks = [_enlarge(chunk.detach().to(device).float()) for chunk in images.split(_CHUNK)]
        return torch.cat([self.read(self.network, chunk).float() for chunk in chunks])


def _enlarge(images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H2 W2"]:
    """Enlarge images whose short side is below 64 pixels."""
    height, width = images.shape[-2:]
    scale = _LEAST_SIDE / min(height, width)
    if scale <= 1:
        return images
    size = (max(_LEAST_SIDE, round(height * scale)), max(_LEAST_SIDE, round(width * scale)))
    return F.interpolate(images, size=size, mode="bilinear")


def load_features(name: str, networks: Path | None) -> Features:
    """Load the network that describes images for a `Judge`.

    Args:
        name: `"adain"` for the codes of the shipped AdaIN generator, which needs no other file;
            `"vgg19"` for the channel statistics of relu4_1; `"squeezenet"` for the pooled features of
            SqueezeNet 1.1.
        networks: folder of `vgg19_normalised_relu4_1.safetensors` or
            `squeezenet1_1_imagenet.safetensors`; None downloads torchvision's weights.

    Raises:
        ConfigError: the name is unknown.
        WeightsError: a file is missing, damaged, or holds another network.
    """
    if name == "adain":
        # Generators loaded by name are shared, and this one may be moved to a device.
        return Features(name, deepcopy(load_generator("adain")), read_adain)
    if name == "vgg19":
        return Features(name, load_vgg19(networks), read_vgg19)
    if name == "squeezenet":
        return Features(name, SqueezeNet.load(networks), read_squeezenet)
    raise ConfigError(f"features must be adain, vgg19 or squeezenet, got {name!r}.")


def read_adain(network: nn.Module, images: Tensor) -> Tensor:
    """Return the codes of images."""
    return cast(AdaIN, network).encode_style(images)


def read_vgg19(network: nn.Module, images: Tensor) -> Tensor:
    """Return means and deviations of relu4_1."""
    return channel_stats(network(images)[-1])


def read_squeezenet(network: nn.Module, images: Tensor) -> Tensor:
    """Return the channel means of the last features."""
    return network(images).mean(dim=(2, 3))


class SqueezeNet(nn.Module):
    """SqueezeNet 1.1 up to its last features (Iandola et al. 2016), for RGB images in [0, 1]."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        from torchvision.models import squeezenet1_1

        super().__init__()
        self.features: nn.Sequential = squeezenet1_1().features
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 512 H2 W2"]:
        """Compute the last features."""
        return self.features((images - self.mean) / self.std)

    @classmethod
    def load(cls, folder: Path | None) -> "SqueezeNet":
        """Load the weights from `folder`, or download torchvision's if it is None."""
        if folder is None:
            from torchvision.models import SqueezeNet1_1_Weights, squeezenet1_1

            network = cls((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
            network.features = squeezenet1_1(weights=SqueezeNet1_1_Weights.IMAGENET1K_V1).features
            return network
        path = Path(folder) / "squeezenet1_1_imagenet.safetensors"
        saved = read_weights(path)
        # The Caffe weights expect RGB 0..255 minus the means.
        network = cls((123 / 255, 117 / 255, 104 / 255), (1 / 255,) * 3)
        try:
            state = {key: saved[f"features.{key}"] for key in network.features.state_dict()}
            network.features.load_state_dict(state)
        except (KeyError, RuntimeError) as error:
            raise WeightsError(f"{path} is not a SqueezeNet 1.1: {error}") from None
        return network


LINEAR_FILE = "lpips_squeeze_linear.safetensors"
FILES = ("vgg19_normalised_relu4_1.safetensors", "squeezenet1_1_imagenet.safetensors", LINEAR_FILE)
INSTALLED = (
    ("lpips", "weights/v0.1/squeeze.pth"),
    ("torchmetrics", "functional/image/lpips_models/squeeze.pth"),
)
"""Packages that contain the linear weights, and the path inside them."""


class LPIPS(nn.Module):
    """Learned perceptual distance (Zhang et al. 2018, eq. 1), version 0.1 on SqueezeNet 1.1.

    Its features are also used to compare styles, because no generator here was trained on this network.

    Args:
        network: the network; it is frozen here.
        linear: channel weights of each level in `taps`.
    """

    taps: tuple[int, ...] = (1, 4, 7, 9, 10, 11, 12)
    """Layers whose outputs are compared."""

    def __init__(self, network: SqueezeNet, linear: Sequence[Tensor]):
        super().__init__()
        self.network = network
        self.linear: nn.ParameterList = nn.ParameterList([weight.reshape(1, -1, 1, 1) for weight in linear])
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
        """Return the distance of images, from their features returned by `levels`."""
        distances = [
            ((_unit(x) - _unit(y)).square() * weight).sum(dim=1).mean(dim=(1, 2))
            for x, y, weight in zip(one, other, self.linear, strict=True)
        ]
        return torch.stack(distances).sum(dim=0)

    def forward(self, one: Float[Tensor, "B 3 H W"], other: Float[Tensor, "B 3 H W"]) -> Float[Tensor, " B"]:
        """Return the distance of each pair of images, `(B,)`."""
        return self.compare(self.levels(one), self.levels(other))


def _unit(features: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
    """Scale the feature vector of each pixel to length 1."""
    return features / (features.square().sum(dim=1, keepdim=True).sqrt() + 1e-10)


@dataclass(frozen=True)
class Networks:
    """The networks of `evaluate quality`, and where they come from."""

    vgg: VGG19
    lpips: LPIPS
    sources: dict[str, str]
    """Description of each network, for the record; results of different networks cannot be compared."""

    def to(self, device: torch.device) -> "Networks":
        """Move the networks."""
        self.vgg.to(device)
        self.lpips.to(device)
        return self


def load_networks(folder: Path | None = None) -> Networks:
    """Load VGG-19, SqueezeNet 1.1 and the linear weights of LPIPS.

    Args:
        folder: folder with `vgg19_normalised_relu4_1.safetensors`, `squeezenet1_1_imagenet.safetensors` and
            `lpips_squeeze_linear.safetensors`; None downloads torchvision's networks once, and uses the
            linear weights of the package `lpips` or `torchmetrics`.

    Raises:
        WeightsError: a file is missing, damaged or holds another network, or the download failed.
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
    """Find the linear weights in an installed package, without importing it.

    Raises:
        WeightsError: no such package is installed.
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
    """Check that a folder has all networks, before anything is read.

    Raises:
        WeightsError: the message names all that are missing.
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
    """Raise an error that says what to do, if a network cannot be downloaded."""
    try:
        yield
    except OSError as error:
        raise WeightsError(
            f"cannot download torchvision's networks ({error}). Where there is no internet, give a folder "
            f"with {', '.join(FILES)} (--weights)."
        ) from None
