"""Classifiers by name: a small network, wide residual networks, ImageNet networks."""

import re
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from styleaug.errors import ConfigError, WeightsError, missing_extra
from styleaug.perceptual import read_weights
from styleaug.robustness.classifier_training import Recipe

__all__ = ["Network", "Normalise", "default_recipe", "make_classifier", "unfold_batch_norm"]

SQUEEZENET = "squeezenet1_1_imagenet.safetensors"
MOBILENET = "mobilenetv2_100_imagenet_8bit.safetensors"
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
WIDE = re.compile(r"wrn-(\d+)-(\d+)")
_KNOWN = "small, wrn-DEPTH-WIDTH, squeezenet, mobilenetv2, timm:NAME, or the name of a torchvision classifier"

FROM_SCRATCH = Recipe(side=64, epochs=50, lr=4e-3, geometry="photo")
FINE_TUNED = Recipe(side=128, epochs=16, lr=2e-4, batch=16, geometry="photo")
WIDE_RECIPE = Recipe(
    side=32, epochs=60, lr=0.1, batch=128, weight_decay=5e-4, label_smoothing=0.0,
    geometry="small", optimiser="sgd",
)  # fmt: skip


def default_recipe(name: str, *, pretrained: bool = True) -> Recipe:
    """Return the default recipe of a classifier."""
    if WIDE.fullmatch(name):
        return WIDE_RECIPE
    return FROM_SCRATCH if name == "small" or not pretrained else FINE_TUNED


class Normalise(nn.Module):
    """Map images in [0, 1] to the input range of a network."""

    mean: Tensor
    scale: Tensor

    def __init__(self, mean: tuple[float, float, float], scale: float | tuple[float, float, float]):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("scale", torch.as_tensor(scale).view(-1, 1, 1), persistent=False)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
        """Subtract, then scale."""
        return (images - self.mean) * self.scale


class Network(nn.Module):
    """A network that takes images in [0, 1].

    Args:
        normalise: module for the input range of the network.
        body: network from images to logits.
        early: early blocks of `body`, whose outputs carry style; features are mixed after them.
        folded: whether the statistics of the batch norms in `body` are folded into the convolutions.
    """

    normalise: Normalise
    body: nn.Module
    folded: bool

    def __init__(self, normalise: Normalise, body: nn.Module, early: list[nn.Module], folded: bool = False):
        super().__init__()
        self.normalise, self.body, self.folded = normalise, body, folded
        # A tuple, so that nn.Module does not register them twice.
        self.early: tuple[nn.Module, ...] = tuple(early)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B K ..."]:
        """Compute the logits of each image, or of each pixel."""
        return self.body(self.normalise(images))


def make_classifier(
    name: str, classes: int, *, weights: str | Path | None = None, pretrained: bool = True
) -> Network:
    """Build a classifier; random weights are drawn from torch's global generator.

    Args:
        name: `"small"`, `"wrn-16-2"` (any depth 6n + 4 and width), `"squeezenet"`, `"mobilenetv2"`,
            `"timm:NAME"`, or a name in `torchvision.models.list_models`.
        classes: number of logits.
        weights: folder with the ImageNet weights of SqueezeNet and MobileNetV2; None downloads.
        pretrained: start from ImageNet weights if there are any; False starts from scratch.

    Raises:
            ConfigError: the name is unknown, or a library is not installed.
            WeightsError: weights are missing, damaged or cannot be downloaded.
    """
    folder = Path(weights) if weights else None
    if classes < 2:
        raise ConfigError(f"a classifier needs at least 2 classes, got {classes}.")
    if name == "small":
        return make_small(classes)
    if wide := WIDE.fullmatch(name):
        return make_wide(int(wide[1]), int(wide[2]), classes)
    if name == "squeezenet":
        return make_squeezenet(classes, folder, pretrained=pretrained)
    if name == "mobilenetv2":
        return make_mobilenet(classes, folder, pretrained=pretrained)
    if name.startswith("timm:"):
        return make_timm(name.removeprefix("timm:"), classes, pretrained=pretrained)
    return make_torchvision(name, classes, pretrained=pretrained)


def make_small(classes: int) -> Network:
    """Build four blocks of convolution, batch norm, ReLU and pooling: 0.24 M parameters."""
    layers: list[nn.Module] = []
    widths = (3, 32, 64, 128, 128)
    for ins, outs in pairwise(widths):
        layers += [nn.Conv2d(ins, outs, 3, padding=1, bias=False), nn.BatchNorm2d(outs)]
        layers += [nn.ReLU(inplace=True), nn.MaxPool2d(2)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], classes)]
    return Network(Normalise((0.5, 0.5, 0.5), 4.0), nn.Sequential(*layers, *head), [layers[3], layers[7]])


class WideBlock(nn.Module):
    """Batch norm, ReLU and convolution, twice, with a shortcut."""

    norm1: nn.BatchNorm2d
    norm2: nn.BatchNorm2d

    def __init__(self, ins: int, outs: int, stride: int):
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(ins), nn.BatchNorm2d(outs)
        self.conv1: nn.Conv2d = nn.Conv2d(ins, outs, 3, stride, padding=1, bias=False)
        self.conv2: nn.Conv2d = nn.Conv2d(outs, outs, 3, padding=1, bias=False)
        self.shortcut: nn.Conv2d | None = (
            nn.Conv2d(ins, outs, 1, stride, bias=False) if ins != outs or stride > 1 else None
        )

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K h w"]:
        """Add the output of the two convolutions to the shortcut."""
        ready = F.relu(self.norm1(x))
        found = self.conv2(F.relu(self.norm2(self.conv1(ready))))
        return found + (self.shortcut(ready) if self.shortcut else x)


def make_wide(depth: int, width: int, classes: int) -> Network:
    """Build a wide residual network without dropout (Zagoruyko & Komodakis 2016)."""
    if depth < 10 or (depth - 4) % 6 or width < 1:
        raise ConfigError(f"wrn-{depth}-{width}: the depth must be 10, 16, 22, ... and the width above 0.")
    widths = [16, 16 * width, 32 * width, 64 * width]
    groups = []
    for number, (ins, outs) in enumerate(pairwise(widths)):
        blocks = [WideBlock(ins, outs, 2 if number else 1)]
        blocks += [WideBlock(outs, outs, 1) for _ in range((depth - 4) // 6 - 1)]
        groups.append(nn.Sequential(*blocks))
    tail = [nn.BatchNorm2d(widths[-1]), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    body = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False), *groups, *tail, nn.Linear(widths[-1], classes)
    )
    for module in body.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
    return Network(Normalise((0.5, 0.5, 0.5), 4.0), body, groups[:2])


def make_squeezenet(classes: int, folder: Path | None, *, pretrained: bool) -> Network:
    """Build SqueezeNet 1.1 with a new head, without the final ReLU, which can zero a logit."""
    from torchvision.models import squeezenet1_1

    if not pretrained or folder:
        net = squeezenet1_1()
    else:
        net = downloaded(lambda: squeezenet1_1(weights="IMAGENET1K_V1"), "squeezenet")
    if pretrained and folder:
        load(net, folder / SQUEEZENET)
    head = nn.Conv2d(512, classes, 1)
    nn.init.normal_(head.weight, std=0.01)
    body = nn.Sequential(net.features, nn.Dropout(0.5), head, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    # Caffe's input range if the folder's weights expect it, otherwise torchvision's.
    caffe = Normalise((123 / 255, 117 / 255, 104 / 255), 255.0)
    normalise = caffe if folder and pretrained else imagenet()
    return Network(normalise, body, [net.features[2], net.features[5]])


def make_mobilenet(classes: int, folder: Path | None, *, pretrained: bool) -> Network:
    """Build MobileNetV2 with a new head: timm's with weights of `folder`, otherwise torchvision's."""
    if not (folder and pretrained):
        return make_torchvision("mobilenet_v2", classes, pretrained=pretrained)
    timm = import_timm("mobilenetv2 with --weights")
    net = timm.create_model("mobilenetv2_100", num_classes=1001, pad_type="same")
    load(net, folder / MOBILENET)
    net.reset_classifier(classes)
    return Network(Normalise((0.5, 0.5, 0.5), 2.0), net, [net.blocks[0], net.blocks[1]], folded=True)


def make_timm(name: str, classes: int, *, pretrained: bool) -> Network:
    """Build one of timm's networks."""
    timm = import_timm(f"timm:{name}")
    if not timm.is_model(name):
        near = ", ".join(timm.list_models(f"*{name[:6]}*")[:6]) or "see timm.list_models()"
        raise ConfigError(f"timm has no {name!r}; near it: {near}.")
    made = partial(timm.create_model, name, pretrained=pretrained, num_classes=classes)
    net = downloaded(made, f"timm:{name}")
    mean, std = net.pretrained_cfg.get("mean", IMAGENET[0]), net.pretrained_cfg.get("std", IMAGENET[1])
    return Network(Normalise(tuple(mean), tuple(1 / value for value in std)), net, early_blocks(net))


def make_torchvision(name: str, classes: int, *, pretrained: bool) -> Network:
    """Build one of torchvision's classifiers, with a new last layer."""
    from torchvision import models

    if name not in models.list_models(module=models):
        raise ConfigError(f"unknown classifier {name!r}; choose {_KNOWN}.")
    net: Any = downloaded(lambda: models.get_model(name, weights="DEFAULT" if pretrained else None), name)
    replace_head(net, name, classes)
    return Network(imagenet(), net, early_blocks(net))


def imagenet() -> Normalise:
    """Return the normalisation of torchvision's and most other networks."""
    return Normalise(IMAGENET[0], tuple(1 / value for value in IMAGENET[1]))  # pyright: ignore


def replace_head(net: nn.Module, name: str, classes: int) -> None:
    """Replace the last linear layer by a new one."""
    last = [path for path, module in net.named_modules() if isinstance(module, nn.Linear)]
    if not last:
        raise ConfigError(f"{name} has no final linear layer, so its classes cannot be changed; use another.")
    parent, _, leaf = last[-1].rpartition(".")
    old = net.get_submodule(last[-1])
    setattr(net.get_submodule(parent), leaf, nn.Linear(old.in_features, classes))  # pyright: ignore


def early_blocks(net: nn.Module) -> list[nn.Module]:
    """Find the first two stages of a network of a common family; none for other networks."""
    for first, second in (("layer1", "layer2"), ("stages.0", "stages.1"), ("blocks.0", "blocks.1"),
                          ("features.2", "features.4")):  # fmt: skip
        try:
            return [net.get_submodule(first), net.get_submodule(second)]
        except AttributeError:
            continue
    return []


def load(net: nn.Module, path: Path) -> None:
    """Load weights, also those without the batch counters of batch norms."""
    missing, unexpected = net.load_state_dict(read_weights(path), strict=False)
    wrong = [*unexpected, *(name for name in missing if not name.endswith("num_batches_tracked"))]
    if wrong:
        raise WeightsError(f"{path} does not fit: {', '.join(wrong[:3])}; this is another network.")


def import_timm(what: str) -> Any:
    """Import timm, or raise an error that says how to install it."""
    try:
        import timm
    except ImportError:
        raise missing_extra(what, "timm", "timm") from None
    return timm


def downloaded(make: Callable[[], Any], name: str) -> Any:
    """Build a network whose library may download weights; raise our error if it fails."""
    try:
        return make()
    # Hubs raise many kinds of errors, from URLError to their own.
    except Exception as error:
        raise WeightsError(
            f"cannot get {name}: {str(error)[:200]}. Check the connection, give a folder of weights, or "
            "start from scratch (--from-scratch)."
        ) from None


@torch.inference_mode()
def unfold_batch_norm(net: Network, images: Float[Tensor, "B 3 H W"]) -> None:
    """Set the statistics of folded batch norms to those of `images`, so that they can be trained.

    If means and deviations were folded into the convolutions, a batch norm in training mode would
    scale every channel to 1. The network's output does not change.
    """

    def read(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_mean is not None and norm.running_var is not None
        values = inputs[0].float()
        mean, var = values.mean(dim=(0, 2, 3)), values.var(dim=(0, 2, 3)).clamp_min(1e-6)
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        norm.bias.add_(scale * (mean - norm.running_mean))
        norm.weight.copy_(scale * (var + norm.eps).sqrt())
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(var)

    training = net.training
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    handles = [norm.register_forward_pre_hook(read) for norm in norms]
    net.eval()(images)
    for handle in handles:
        handle.remove()
    net.train(training)
