"""Style in Lightning's training loop: after a batch's transfer to the device, and only while training."""

from collections.abc import Callable
from typing import Any

from torch.utils._pytree import tree_structure

from styleaug.errors import ConfigError, missing_extra
from styleaug.transforms.host import advised, draw_seed, drawing_from, seed_from
from styleaug.transforms.sample import ImageKey, Keys, calling, check_image_key

try:
    from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
    from lightning.pytorch.utilities.model_helpers import is_overridden
except ImportError as _error:
    raise missing_extra("styleaug.transforms.lightning", "Lightning", "lightning") from _error

__all__ = ["StyleCallback"]

HOOK = "on_after_batch_transfer"
_ADVICE = (
    "Leave Normalize out of the dataset's transform and do it in training_step, or in "
    "on_after_batch_transfer, which runs after StyleCallback."
)


class StyleCallback(Callback):
    """Stylise training batches on the device, before the model's own `on_after_batch_transfer`.

    Batches of validation, testing, prediction and the sanity check stay as they are. Of several training
    loaders each one's batch is stylised. The network of `augment` is no part of the model: neither its
    checkpoints nor its parameters nor DDP know of it.

    One seed is drawn from torch's global generator when training starts, and shared by all processes.
    Styles follow from it, the process's rank and the number of batches trained on: `seed_everything` makes
    them reproducible, and a run resumed from a checkpoint goes on with those it would have had.

    Args:
        augment: called with each batch, for example `styleaug.StyleAugment`; labels pass through it.
        image: the key, the index, or a path of both, such as `(0, "image")`, of the image in a batch, of each
            loader if there are several; None leaves it to `augment`, see `styleaug.StyleLoader`.

    Raises:
        ConfigError: in training, if batches do not pass `on_after_batch_transfer`, or `image` names none.
        ImageError: in training, if images are normalised already, or several tensors could be the image.

    Example:
        >>> trainer = Trainer(callbacks=[StyleCallback(StyleAugment("art"))])  # doctest: +SKIP
    """

    batches: int
    training: bool
    transferred: bool

    def __init__(self, augment: Callable[[Any], Any], *, image: ImageKey = None):
        self.augment = augment
        self.image: Keys | None = check_image_key(image)
        self.seed: int | None = None
        self.batches = 0
        """How many were trained on since the seed was drawn."""

        self.training = False
        self.transferred = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Put styling before the hook that Lightning calls."""
        if stage != "fit":
            return
        self.seed, self.batches = None, 0  # a checkpoint's are loaded after this
        self.restore(trainer, pl_module)
        owner = hook_owner(trainer, pl_module)
        setattr(owner, HOOK, StylingHook(self, trainer, owner))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Put the hook back as it was."""
        self.restore(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Put the hook back, as Lightning then tears down no callback."""
        self.restore(trainer, pl_module)

    def restore(self, trainer: Any, pl_module: LightningModule) -> None:
        """Take styling off the module and the datamodule."""
        self.training = self.transferred = False
        for owner in (pl_module, trainer.datamodule):
            hook = vars(owner).get(HOOK) if owner is not None else None
            if isinstance(hook, StylingHook) and hook.callback is self:
                delattr(owner, HOOK)
                if hook.replaced is not None:
                    setattr(owner, HOOK, hook.replaced)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the seed of this run, unless a checkpoint brought it."""
        if self.seed is None:
            self.seed = trainer.strategy.broadcast(draw_seed())
        self.training = True

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stylise the batches that follow."""
        self.training = True

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let what others transfer between epochs pass, such as `to_onnx`'s example."""
        self.training = False

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Refuse batches that came another way than through the hook.

        Raises:
            ConfigError: naming what to do instead.
        """
        if not self.transferred:
            raise ConfigError(
                f"this batch did not pass {HOOK}, so it has no style. A training_step(self, dataloader_iter) "
                "fetches its batches itself: call the augmentation there, or give the Trainer a "
                "styleaug.StyleLoader."
            )
        self.transferred = False

    def stylise(self, trainer: Any, batch: Any) -> Any:
        """Stylise a batch in training; give any other back."""
        if not (self.training and trainer.training):
            return batch
        assert self.seed is not None
        seed = seed_from(self.seed, trainer.global_rank, self.batches)
        self.batches += 1
        self.transferred = True
        with drawing_from(seed), advised(images=_ADVICE):
            return self.stylise_each(trainer.train_dataloader, batch)

    def stylise_each(self, loaders: Any, batch: Any) -> Any:
        """Stylise the batch of each loader: those of several come in a dict, list or tuple like theirs."""
        structure = tree_structure(loaders)
        try:
            parts = structure.flatten_up_to(batch)
        except ValueError:  # the model's on_before_batch_transfer made one batch of them
            return calling(self.augment, batch, self.image)
        # None is a loader that has ended.
        return structure.unflatten(
            [part if part is None else calling(self.augment, part, self.image) for part in parts]
        )

    def state_dict(self) -> dict[str, Any]:
        """Return which styles are next; Lightning keeps it in checkpoints."""
        return {"seed": self.seed, "batches": self.batches}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the styles that a checkpoint's run would have had."""
        self.seed, self.batches = state_dict["seed"], state_dict["batches"]


class StylingHook:
    """Stands in for a module's `on_after_batch_transfer` while it is trained."""

    callback: StyleCallback
    trainer: Trainer

    def __init__(self, callback: StyleCallback, trainer: Trainer, owner: Any):
        self.callback, self.trainer = callback, trainer
        self.replaced: Any = vars(owner).get(HOOK)
        """What another callback had put in the hook's place, if anything."""

        self.__wrapped__: Callable[..., Any] = getattr(owner, HOOK)
        """By this Lightning tells whether the user wrote one."""

    def __call__(self, batch: Any, dataloader_idx: int) -> Any:
        return self.__wrapped__(self.callback.stylise(self.trainer, batch), dataloader_idx)

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy of the model, or a pickle, is in no training: it has its own hook.
        return itself, (self.__wrapped__,)


def itself(hook: Callable[..., Any]) -> Callable[..., Any]:
    """Return the hook itself."""
    return hook


def hook_owner(trainer: Any, pl_module: LightningModule) -> LightningModule | LightningDataModule:
    """Return whose `on_after_batch_transfer` Lightning calls: the datamodule's if it has one of its own."""
    datamodule = trainer.datamodule
    return datamodule if datamodule is not None and is_overridden(HOOK, datamodule) else pl_module
