"""Classifiers by name: they take [0, 1], learn, and start where their weights say."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models import squeezenet1_1

from styleaug.errors import ConfigError, WeightsError
from styleaug.robustness.class_folders import read_class_folders
from styleaug.robustness.classifiers import (
    Network,
    Normalise,
    default_recipe,
    make_classifier,
    unfold_batch_norm,
)


def weights(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


@pytest.mark.parametrize(
    "name, pretrained, count",
    [
        ("small", True, 242_087),
        ("wrn-16-2", True, None),
        ("squeezenet", False, None),
        ("mobilenetv2", False, None),
        ("timm:resnet10t", False, None),
        ("resnet18", False, None),
    ],
)
def test_it_gives_logits_and_learns(name, pretrained, count):
    net = make_classifier(name, 7, pretrained=pretrained)
    images = torch.rand(2, 3, 40, 40)
    logits = net(images)
    assert logits.shape == (2, 7)
    logits.sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    assert net.early, "mixstyle has a place"
    assert len(set(map(id, net.parameters()))) == len(list(net.parameters()))
    if count:
        assert weights(net) == count


def test_wide_network_is_the_papers():
    # 36.5 M for WRN-28-10 and 0.7 M for WRN-16-2 (Zagoruyko & Komodakis 2016, table 4 and 5).
    assert weights(make_classifier("wrn-28-10", 10)) == pytest.approx(36.5e6, rel=0.002)
    assert weights(make_classifier("wrn-16-2", 10)) == pytest.approx(0.7e6, rel=0.02)
    assert make_classifier("wrn-16-1", 10).body[:4](torch.rand(1, 3, 32, 32)).shape == (1, 64, 8, 8)


def test_the_seed_decides_the_weights():
    nets = []
    for _ in range(2):
        torch.manual_seed(4)
        nets.append(make_classifier("small", 3))
    assert all(torch.equal(a, b) for a, b in zip(*(net.parameters() for net in nets), strict=True))


def test_squeezenet_takes_the_folders_weights_and_input(tmp_path):
    torch.manual_seed(0)
    source = squeezenet1_1()
    save_file(source.state_dict(), tmp_path / "squeezenet1_1_imagenet.safetensors")
    net = make_classifier("squeezenet", 5, weights=tmp_path)
    assert torch.equal(net.body[0][0].weight, source.features[0].weight)
    grey = torch.tensor([123.0, 117.0, 104.0]).view(1, 3, 1, 1) / 255
    assert net.normalise(grey.expand(1, 3, 2, 2)).abs().max() < 1e-4
    assert net.normalise(torch.ones(1, 3, 1, 1)).flatten().tolist() == pytest.approx([132, 138, 151])


@pytest.mark.parametrize("name", ["squeezenet", "mobilenetv2"])
def test_missing_or_other_weights_are_named(name, tmp_path):
    with pytest.raises(WeightsError, match="cannot read the weights"):
        make_classifier(name, 5, weights=tmp_path)
    for file in ("squeezenet1_1_imagenet", "mobilenetv2_100_imagenet_8bit"):
        save_file({"a": torch.zeros(1)}, tmp_path / f"{file}.safetensors")
    with pytest.raises(WeightsError, match="does not fit"):
        make_classifier(name, 5, weights=tmp_path)


@pytest.mark.parametrize(
    "name, said",
    [
        ("large", "unknown classifier 'large'; choose small, wrn-"),
        ("wrn-17-2", "depth must be 10, 16"),
        ("wrn-16-0", "width above 0"),
        ("timm:resnet18x", "timm has no 'resnet18x'; near it: .*resnet"),
    ],
)
def test_unknown_names(name, said):
    with pytest.raises(ConfigError, match=said):
        make_classifier(name, 5, pretrained=False)


def test_one_class_is_none():
    with pytest.raises(ConfigError, match="at least 2 classes"):
        make_classifier("small", 1)


def test_unfolded_batch_norm_trains_as_it_tests():
    torch.manual_seed(0)
    body = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.BatchNorm2d(6),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip
    for norm in (body[1], body[4]):
        nn.init.normal_(norm.bias)  # means and deviations are in the convolutions
    net = Network(Normalise((0.0, 0.0, 0.0), 1.0), body, [], folded=True)
    images = torch.rand(64, 3, 16, 16)
    before = net.eval()(images)
    assert (net.train()(images) - before).abs().max() > 0.3
    for norm in (body[1], body[4]):
        norm.reset_running_stats()
    unfold_batch_norm(net, images)
    assert torch.allclose(net.eval()(images), before, atol=1e-4)
    assert torch.allclose(net.train()(images), before, atol=1e-3)


def test_recipes_fit_the_classifiers():
    assert default_recipe("wrn-28-4").optimiser == "sgd"
    assert default_recipe("squeezenet").lr < default_recipe("squeezenet", pretrained=False).lr


@pytest.mark.data
def test_real_weights_survive_the_switch_to_training(data):
    folder = Path(os.environ.get("STYLEAUG_WEIGHTS", data.parent / "weights"))
    if not folder.is_dir():
        pytest.skip("needs the folder of networks; set STYLEAUG_WEIGHTS")
    photos = read_class_folders(data / "pacs" / "photo", ["dog", "horse"], 96, limit=16, foreign=True).images
    images = photos.float() / 255
    net = make_classifier("mobilenetv2", 5, weights=folder)
    before = net.eval()(images)
    broken = (net.train()(images) - before).abs().mean()
    unfold_batch_norm(net := make_classifier("mobilenetv2", 5, weights=folder), images)
    frozen = net.eval()(images)
    assert (net.train()(images) - frozen).abs().mean() < 0.1 * broken
