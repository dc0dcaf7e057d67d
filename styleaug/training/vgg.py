"""VGG-19, the network behind perceptual losses."""

from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from styleaug.errors import WeightsError
from styleaug.paths import check_regular, in_utf8

__all__ = ["VGG19", "load_vgg19", "read_weights"]


class VGG19(nn.Module):
    """VGG-19 up to relu4_1 (Simonyan & Zisserman 2015), reflected borders, frozen.

    Gives relu1_1, relu2_1, relu3_1 and relu4_1, the levels of Huang & Belongie 2017.
    """

    layout = ((1, 2), (2, 2), (3, 4), (4, 1))  # (block, convolutions)
    widths = (64, 128, 256, 512)
    means: Tensor

    def __init__(self):
        super().__init__()
        channels = 3
        self.convs = nn.ModuleDict()
        for (block, count), width in zip(self.layout, self.widths, strict=True):
            for index in range(1, count + 1):
                self.convs[f"{block}_{index}"] = nn.Conv2d(channels, width, 3)
                channels = width
        # BGR 0..255 minus the ImageNet means, as the Caffe weights want it.
        self.register_buffer("means", torch.tensor([103.939, 116.779, 123.68]).view(1, 3, 1, 1))
        self.requires_grad_(False)

    def forward(self, images: Float[Tensor, "B 3 H W"], *, depth: int = 4) -> list[Tensor]:
        """Compute the first `depth` levels for RGB `images` in [0, 1], in the weights' dtype."""
        x = (images.flip(1) * 255 - self.means).to(next(self.parameters()).dtype)
        levels = []
        for block, count in self.layout[:depth]:
            x = F.max_pool2d(x, 2) if block > 1 else x
            # The convolutions behind a level's tap belong to the next level.
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
        """Download torchvision's ImageNet weights (not normalised; losses come out larger)."""
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
    """Load the loss network from `folder`, or through torchvision's download when None.

    Args:
        folder: holds `vgg19_normalised_relu4_1.safetensors`.

    Raises:
        WeightsError: the file is missing, damaged, or another network.
    """
    if folder is None:
        return VGG19.from_torchvision()
    return VGG19.from_file(Path(folder) / "vgg19_normalised_relu4_1.safetensors")


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file, with our errors."""
    try:
        with in_utf8(check_regular(path)) as name:
            return load_file(name)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"cannot read the weights {path}: {error}") from None
