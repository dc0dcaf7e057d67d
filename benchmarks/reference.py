"""The reference AdaIN (Huang & Belongie 2017): VGG-19 to relu4_1 and its mirrored decoder."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from styleaug.errors import WeightsError
from styleaug.generators.layers import adain, channel_stats
from styleaug.perceptual import VGG19, read_weights

__all__ = ["ReferenceAdaIN"]

DECODER = (
    "block4_conv1",
    "block3_conv1",
    "block3_conv2",
    "block3_conv3",
    "block3_conv4",
    "block2_conv1",
    "block2_conv2",
    "block1_conv1",
    "block1_conv2",
)
UPSAMPLED_BEFORE = {"block3_conv1", "block2_conv1", "block1_conv1"}


class ReferenceAdaIN(nn.Module):
    """Teacher of `AdaIN`, and the peer that it is measured against.

    Args:
        folder: holds `adain_vgg19_encoder.safetensors` and `adain_vgg19_decoder.safetensors`.

    Raises:
        WeightsError: a file is missing, damaged, or another network.
    """

    code_length = 1024
    code_size = 512

    def __init__(self, folder: Path):
        super().__init__()
        self.encoder = VGG19.from_file(folder / "adain_vgg19_encoder.safetensors")
        saved = read_weights(folder / "adain_vgg19_decoder.safetensors")
        self.layers = nn.ModuleDict()
        missing = [name for name in DECODER if f"{name}_decode.weight" not in saved]
        if missing:
            raise WeightsError(f"{folder}/adain_vgg19_decoder.safetensors holds no {missing[0]}_decode.")
        for name in DECODER:
            weight = saved[f"{name}_decode.weight"]
            layer = nn.Conv2d(weight.shape[1], weight.shape[0], 3)
            layer.load_state_dict({"weight": weight, "bias": saved[f"{name}_decode.bias"]})
            self.layers[name] = layer
        self.requires_grad_(False).eval()

    def encode_style(self, images: Tensor) -> Tensor:
        """Read the statistics of relu4_1, `(B, 1024)`."""
        return channel_stats(self.encoder(images)[-1])

    def forward(self, images: Tensor, codes: Tensor, strength: Tensor) -> Tensor:
        """Stylise; H and W should be multiples of 8."""
        features = self.encoder(images)[-1]
        x = torch.lerp(features, adain(features, codes), strength[:, None, None, None].to(features.dtype))
        for name, layer in self.layers.items():
            if name in UPSAMPLED_BEFORE:
                x = F.interpolate(x, scale_factor=2, mode="nearest")
            x = layer(F.pad(x, (1, 1, 1, 1), mode="reflect"))
            x = x if name == DECODER[-1] else F.relu(x)
        return x.float().clamp(0, 1)
