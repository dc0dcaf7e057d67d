"""`StylePrefetchLoader` in loaders from `timm.data.create_loader`."""

import random
from typing import Any, ClassVar

import contract
import numpy as np
import pytest
import torch
from PIL import Image
from specimens import Spy, bank, bank_of, generator, photo, photos
from timm.data import AugMixDataset, FastCollateMixup, create_loader
from timm.data.loader import PrefetchLoader, fast_collate
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler
from torchvision.transforms import v2

from styleaug import ConfigError, ImageError, StyleAugment
from styleaug.transforms.timm import StyledOnTransfer, StylePrefetchLoader

LENGTH, SIZE = 10, 24
CPU = torch.device("cpu")


class Photos(Dataset[tuple[Any, int]]):
    """Pictures with their index, as timm's datasets are: `transform` is set by `create_loader`."""

    def __init__(self) -> None:
        self.transform: Any = None

    def __len__(self) -> int:
        return LENGTH

    def __getitem__(self, index: int) -> tuple[Any, int]:
        pixels = photo(SIZE, SIZE, seed=index).permute(1, 2, 0).mul(255).byte().numpy()
        return self.transform(Image.fromarray(pixels)), index


def host(**options: Any) -> PrefetchLoader:
    made = create_loader(
        Photos(),
        **{
            "input_size": (3, SIZE, SIZE),
            "batch_size": 4,
            "is_training": True,
            "no_aug": True,
            "num_workers": 0,
            "persistent_workers": options.get("num_workers", 0) > 0,  # of old timm the default fails
            "device": CPU,
            **options,
        },
    )
    assert isinstance(made, PrefetchLoader)
    return made


def inverter() -> tuple[StyleAugment, Spy]:
    """Make an augmentation that inverts all images, and what tells which it was given."""
    spy = Spy()
    return StyleAugment(bank_of(spy), generator=spy, p=1.0, strength=1.0), spy


def normalised(images: Tensor, like: PrefetchLoader) -> Tensor:
    return (images.to(like.img_dtype) - like.mean) / like.std


def epoch(loader: Any, seed: int = 1) -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)
    return list(loader)


def raw(loader: PrefetchLoader, seed: int = 1) -> list[tuple[Tensor, Tensor]]:
    """Run the DataLoader inside, in the order in which a styled epoch runs it."""
    return epoch(StyledOnTransfer(loader.loader, lambda images: images), seed)


def ordered(batches: list[tuple[Tensor, Tensor]]) -> Tensor:
    labels = torch.cat([target for _, target in batches])
    return torch.cat([images for images, _ in batches])[labels.argsort()]


@pytest.mark.parametrize("check", contract.TRANSFORM_CHECKS, ids=lambda check: check.__name__)
def test_contract(check):
    def make(*args: Any, **options: Any) -> Any:
        augment = StyleAugment(*args, **options)

        def run(images: Tensor) -> Tensor:
            ((untransferred, _),) = StyledOnTransfer([(images, None)], augment)
            return untransferred.to(device=CPU, non_blocking=True)

        return run

    check(make, bank("reinhard-rgb"), generator("reinhard-rgb"))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_images_are_styled_as_bytes_before_they_are_normalised(workers, dtype):
    augment, spy = inverter()
    base = host(img_dtype=dtype, num_workers=workers, is_training=False)
    styled = epoch(StylePrefetchLoader(base, augment))
    plain = epoch(base)
    assert len(styled) == len(plain) == len(base) == 3
    for (images, target), (before, same), (pixels, _) in zip(styled, plain, raw(base), strict=True):
        assert torch.equal(target, same)
        assert images.dtype == dtype and images.shape == before.shape
        pixels = pixels.to(device=CPU)
        assert torch.equal(before, normalised(pixels, base))
        torch.testing.assert_close(images, normalised(255 - pixels, base))
    assert spy.rows == LENGTH


def test_styles_follow_the_seed_and_the_number_of_the_batch_alone():
    augment = StyleAugment(bank("reinhard-rgb"), p=1.0, strength=(0.1, 1.0))
    loader = StylePrefetchLoader(host(batch_size=2), augment)
    first, second = epoch(loader), epoch(loader)
    torch.manual_seed(1)
    drawing = []
    for images, _ in loader:
        torch.randn(5)  # a model with dropout
        drawing.append(images)
    assert torch.equal(torch.cat(drawing), torch.cat([images for images, _ in first]))
    assert torch.equal(ordered(first), ordered(second))
    assert not torch.equal(ordered(first), ordered(epoch(loader, seed=2)))


def test_erased_boxes_are_the_erasings():
    augment, _ = inverter()
    base = host(no_aug=False, re_prob=1.0, scale=(1.0, 1.0), ratio=(1.0, 1.0), hflip=0.0, color_jitter=0.0)
    styled = epoch(StylePrefetchLoader(base, augment))
    pixels = ordered([(images.to(device=CPU), target) for images, target in raw(base)])
    assert len(pixels) == 8
    for image, pixel in zip(ordered(styled), pixels, strict=True):
        erased = (image == 0).all(0)
        assert 0.01 < erased.float().mean() < 0.5
        torch.testing.assert_close(
            image[:, ~erased], normalised(255 - pixel[None], base)[0][:, ~erased], atol=1e-5, rtol=0
        )


def test_a_mixed_image_is_styled_as_one_and_its_soft_target_stays():
    augment, spy = inverter()
    mixup = FastCollateMixup(mixup_alpha=1.0, num_classes=LENGTH)
    base = host(collate_fn=mixup, is_training=False, batch_size=2)
    loader = StylePrefetchLoader(base, augment)
    styled, mixed = epoch(loader), raw(base)
    assert spy.rows == LENGTH, "each mixed image once"
    assert any(((soft > 0.1).sum(1) == 2).all() for _, soft in mixed), "some are mixed"
    for (images, target), (pixels, soft) in zip(styled, mixed, strict=True):
        assert target.shape == (2, LENGTH) and torch.equal(target, soft)
        torch.testing.assert_close(images, normalised(255 - pixels.to(device=CPU), base))

    assert loader.mixup_enabled is True
    loader.mixup_enabled = False
    assert not mixup.mixup_enabled and not loader.mixup_enabled
    assert all((target.max(1).values > 0.8).all() for _, target in epoch(loader))


def test_what_the_training_script_asks_of_the_loader():
    dataset = Photos()
    dataset.transform = v2.Compose([v2.PILToTensor()])
    sampler = DistributedSampler(dataset, num_replicas=2, rank=0)
    base = PrefetchLoader(DataLoader(dataset, 2, sampler=sampler, collate_fn=fast_collate), device=CPU)
    loader = StylePrefetchLoader(base, inverter()[0])
    assert isinstance(loader, PrefetchLoader)
    assert len(loader) == len(base) == 3
    assert loader.sampler is sampler and loader.dataset is dataset
    assert loader.batch_sampler is base.batch_sampler
    assert loader.mixup_enabled is False
    orders = []
    for number in range(2):
        loader.sampler.set_epoch(number)
        orders.append(torch.cat([target for _, target in loader]).tolist())
    assert orders[0] != orders[1]
    with pytest.raises(AttributeError):
        loader.nonsense  # noqa: B018


def test_the_loader_that_was_given_stays_as_it_was():
    base = host(is_training=False)
    before = epoch(base)
    assert not torch.equal(ordered(epoch(StylePrefetchLoader(base, inverter()[0]))), ordered(before))
    assert torch.equal(ordered(epoch(base)), ordered(before))


def test_augmix_splits_are_styled_each_by_itself():
    augment, spy = inverter()
    base = create_loader(
        AugMixDataset(Photos(), num_splits=2),
        (3, SIZE, SIZE),
        batch_size=5,
        is_training=True,
        auto_augment="augmix-m3-w2",
        re_prob=0.5,
        re_split=True,
        num_aug_splits=2,
        num_workers=0,
        persistent_workers=False,
        device=CPU,
    )
    for images, target in epoch(StylePrefetchLoader(base, augment)):
        assert images.shape == (10, 3, SIZE, SIZE)
        assert torch.equal(target[:5], target[5:])
    assert spy.rows == 2 * LENGTH


def test_the_loader_for_many_epochs():
    base = host(use_multi_epochs_loader=True, num_workers=1, is_training=False)
    loader = StylePrefetchLoader(base, inverter()[0])
    for _ in range(2):
        assert torch.equal(torch.cat([target for _, target in loader]), torch.arange(LENGTH))


def test_grey_images():
    base = host(input_size=(1, SIZE, SIZE), mean=(0.5,), std=(0.5,), is_training=False)
    base.dataset.transform = v2.Compose([base.dataset.transform, lambda pixels: pixels[:1]])
    ((images, _), *_) = epoch(StylePrefetchLoader(base, inverter()[0]))
    assert images.shape == (4, 1, SIZE, SIZE)


def test_two_augmentations_follow_each_other():
    base = host(is_training=False)
    twice = StylePrefetchLoader(StylePrefetchLoader(base, inverter()[0]), inverter()[0])
    torch.testing.assert_close(ordered(epoch(twice)), ordered(epoch(base)))


def test_a_loader_without_prefetcher_is_refused():
    made = create_loader(
        Photos(), (3, SIZE, SIZE), batch_size=4, use_prefetcher=False, num_workers=0, persistent_workers=False
    )
    with pytest.raises(ConfigError, match=r"got DataLoader.*use_prefetcher=True.*without --no-prefetcher"):
        StylePrefetchLoader(made, inverter()[0])


def test_images_that_were_normalised_are_named():
    batches = [(photos(2) * 4 - 2, torch.zeros(2))]
    loader = StylePrefetchLoader(PrefetchLoader(batches, device=CPU), inverter()[0])  # pyright: ignore
    with pytest.raises(ImageError, match=r"must lie in \[0, 1\].*must be uint8: leave Normalize"):
        list(loader)


class Stream:
    """Stands for a CUDA stream, and writes down what happens on it."""

    events: ClassVar[list[str]] = []

    def __init__(self, name: str):
        self.name = name

    def wait_stream(self, other: "Stream") -> None:
        self.events.append(f"{self.name} waits for {other.name}")

    def __enter__(self) -> None:
        self.events.append(f"on {self.name}")

    def __exit__(self, *error: object) -> None:
        self.events.append(f"off {self.name}")


def test_images_are_styled_on_the_loaders_stream(monkeypatch):
    side, current, events = Stream("side"), Stream("current"), Stream.events
    monkeypatch.setattr(torch.cuda, "Stream", lambda device=None: side)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: current)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    base = host(is_training=False, batch_size=LENGTH)
    base.is_cuda = True
    for _batch in StylePrefetchLoader(base, lambda images: events.append("style") or images):
        events.append("train")
    assert events[:4] == ["side waits for current", "on side", "style", "off side"]
    assert events[4:] == ["current waits for side", "train"]


@pytest.mark.gpu
def test_on_cuda_the_batches_are_those_of_the_cpu(cuda):
    augment = StyleAugment(bank("tiny-adain"), generator=generator("tiny-adain"), p=0.7)
    wanted = epoch(StylePrefetchLoader(host(is_training=False), augment))
    base = host(is_training=False, device=cuda, pin_memory=True, num_workers=2)
    loader = StylePrefetchLoader(base, augment)
    for _ in range(2):
        for (images, _), (same, _) in zip(epoch(loader), wanted, strict=True):
            assert images.is_cuda
            torch.testing.assert_close(images.cpu(), same, atol=0.05, rtol=0)
    assert loader.stream is not None
