"""Style inside timm's `PrefetchLoader`: after the copy to the device, before normalisation."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from styleaug.errors import ConfigError, missing_extra
from styleaug.transforms.host import advised, batch_seeds, draw_seed, drawing_from

try:
    from timm.data.loader import PrefetchLoader
except ImportError as _error:
    raise missing_extra("styleaug.transforms.timm", "timm", "timm") from _error

__all__ = ["StylePrefetchLoader"]

_ADVICE = (
    "timm's PrefetchLoader normalises after styling, so its batches must be uint8: leave Normalize and "
    "ToTensor to create_loader(..., use_prefetcher=True)."
)


class StylePrefetchLoader(PrefetchLoader):
    """Stylise the batches of a loader from `timm.data.create_loader`.

    It takes over all settings of the loader it is given and is one itself. A batch is moved to the
    device, stylised there as uint8, then cast, normalised and randomly erased: all on the loader's own
    stream, one batch ahead of training. Erased boxes therefore hold no style. Mixup and CutMix happen
    earlier, in the collate function: a mixed image has one style, its soft target is as it was. Of AugMix
    splits each image has a style of its own, the clean split's, too.

    Each epoch takes one seed from torch's global generator; styles follow from it, the rank in
    `torch.distributed` and the batch's number alone, as in `styleaug.StyleLoader`.

    Args:
        loader: from `create_loader`, with its prefetcher. Give it for training only.
        augment: called with each batch of images `(B, C, H, W)`, for example `styleaug.StyleAugment`.

    Raises:
        ConfigError: the loader is no `PrefetchLoader`.

    Example:
        >>> loader_train = create_loader(dataset_train, 224, 64, is_training=True)  # doctest: +SKIP
        >>> loader_train = StylePrefetchLoader(loader_train, StyleAugment("art"))  # doctest: +SKIP
    """

    def __init__(self, loader: Any, augment: Callable[[Any], Any]):
        if not isinstance(loader, PrefetchLoader):
            raise ConfigError(
                f"expected a loader with timm's prefetcher, got {type(loader).__name__}, whose images are "
                "normalised already. Use create_loader(..., use_prefetcher=True), in timm's train.py without "
                "--no-prefetcher; or put StyleAugment into dataset.transform, before ToTensor or "
                "MaybeToTensor."
            )
        vars(self).update(vars(loader))
        self.loader: StyledOnTransfer = StyledOnTransfer(loader.loader, augment)


class StyledOnTransfer:
    """A DataLoader whose images are stylised when timm moves them to the device.

    So timm's own loop stays in charge of streams, normalisation and erasing.
    """

    def __init__(self, loader: Any, augment: Callable[[Any], Any]):
        self.loader = loader
        self.augment = augment

    def __len__(self) -> int:
        return len(self.loader)

    def __getattr__(self, name: str) -> Any:
        # `sampler`, `dataset` and `collate_fn`, on which mixup is switched, belong to the loader.
        if name.startswith("__") or name == "loader":
            raise AttributeError(name)
        return getattr(self.loader, name)

    def __iter__(self) -> Iterator[tuple["Untransferred", Any]]:
        seeds = batch_seeds(draw_seed())
        for images, targets in self.loader:
            yield Untransferred(images, self.augment, next(seeds)), targets


class Untransferred:
    """Images on their way to the device; stylised on arrival, on the stream that moves them."""

    images: Any
    augment: Callable[[Any], Any]
    seed: int

    def __init__(self, images: Any, augment: Callable[[Any], Any], seed: int):
        self.images, self.augment, self.seed = images, augment, seed

    def to(self, device: torch.device, *, non_blocking: bool = False) -> Tensor:
        """Move and stylise them."""
        images = self.images.to(device=device, non_blocking=non_blocking)
        with drawing_from(self.seed), advised(images=_ADVICE):
            return self.augment(images)
