"""Base classes of the recipes: optimisers, gradients over several processes, discriminators."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from styleaug.errors import ConfigError
from styleaug.generators.base import AbstractGenerator
from styleaug.training.config import AdversarialConfig, TrainConfig
from styleaug.training.data import TrainingData
from styleaug.training.discriminators import PatchDiscriminator, diff_augment
from styleaug.training.losses import discriminator_loss, edge_loss, fool_loss, r1_penalty
from styleaug.weights import load_generator

__all__ = ["AbstractAdversarial", "AbstractRecipe", "Images", "Losses", "fixed", "start"]

Images = Float[Tensor, "B 3 H W"]
Losses = dict[str, Tensor]


Config = TypeVar("Config", bound=TrainConfig, covariant=True)
_Adversarial = TypeVar("_Adversarial", bound=AdversarialConfig, covariant=True)


class AbstractRecipe(ABC, Generic[Config]):
    """Networks, their optimisers and the step that trains them.

    Final classes set `paired` and `needs_target` where they differ from the default, call `add` for each
    optimiser, and implement `step`.

    Attributes:
        networks: all trained networks, by name.
        products: the generators that are the result of a run; `"generator"` comes first.
        optimisers: the optimisers, by the name given to `add`.
    """

    paired = False
    needs_target = True

    def __init__(self, config: Config):  # pyright: ignore[reportGeneralTypeIssues]
        self.config = config
        self.networks: dict[str, nn.Module] = {}
        self.products: dict[str, AbstractGenerator] = {}
        self.optimisers: dict[str, torch.optim.Optimizer] = {}
        self.rates: dict[str, float] = {}
        self.fabric: Any = None
        self.steps_taken = 0

    def add(self, name: str, networks: dict[str, nn.Module], *, rate: float) -> None:
        """Add an optimiser called `name` for the weights of `networks`."""
        self.networks |= networks
        weights = list(chain.from_iterable(network.parameters() for network in networks.values()))
        self.optimisers[name], self.rates[name] = _make_optimiser(weights, self.config, rate), rate

    def setup(self, fabric: Any) -> None:
        """Move networks and optimisers to the devices of a `lightning_fabric.Fabric`."""
        self.fabric = fabric
        for network in self.networks.values():
            network.to(fabric.device).to(memory_format=torch.channels_last).train()
        for name, optimiser in self.optimisers.items():
            self.optimisers[name] = fabric.setup_optimizers(optimiser)

    def check_networks(self, networks: Path) -> None:
        """Check that the folder `networks` holds the files that `prepare` loads."""

    def prepare(self, data: TrainingData, run: Path, networks: Path | None) -> None:
        """Prepare the first step of a call; `networks` is the folder of loss networks."""

    @abstractmethod
    def step(self, source: Images, target: Images) -> Losses:
        """Take one step of every optimiser and return the losses as scalars, by name."""

    def state(self) -> dict[str, Tensor]:
        """Return the tensors that a checkpoint must hold besides weights and optimisers."""
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Restore the tensors that `state` returned."""

    def update(self, name: str, losses: Losses) -> Losses:
        """Take one optimiser step on the sum of `losses`, with gradients averaged over all processes."""
        optimiser = self.optimisers[name]
        weights = [weight for group in optimiser.param_groups for weight in group["params"]]
        optimiser.zero_grad(set_to_none=True)
        total = torch.stack([loss.float() for loss in losses.values()]).sum()
        self.fabric.backward(total, inputs=weights)
        self.average(weights)
        if self.config.clip:
            self.fabric.strategy.precision.unscale_gradients(getattr(optimiser, "optimizer", optimiser))
            nn.utils.clip_grad_norm_(weights, self.config.clip)
        optimiser.step()
        return {key: loss.detach() for key, loss in losses.items()}

    def average(self, weights: Sequence[nn.Parameter]) -> None:
        """Average the gradients over all processes, in one message.

        Networks are not wrapped for it: a step calls each network several times and by other methods than
        `forward`, and the gradients of small networks fit one message.
        """
        if self.fabric.world_size == 1:
            return
        with_gradient = [weight for weight in weights if weight.grad is not None]
        flat = torch.cat([weight.grad.flatten() for weight in with_gradient])  # pyright: ignore
        parts = self.fabric.all_reduce(flat, reduce_op="mean").split([w.numel() for w in with_gradient])
        for weight, part in zip(with_gradient, parts, strict=True):
            weight.grad = part.view_as(weight)

    def noise(self, rows: int, length: int) -> Float[Tensor, "B Z"]:
        """Draw standard normal numbers for the whole batch and return this process's rows."""
        rank, world = self.fabric.global_rank, self.fabric.world_size
        drawn = torch.randn(rows * world, length)[rank * rows :][:rows]
        return drawn.to(self.fabric.device, non_blocking=True)


@contextmanager
def fixed(*networks: nn.Module) -> Iterator[None]:
    """Let gradients pass through `networks` in this block without changing their weights."""
    weights = [weight for network in networks for weight in network.parameters() if weight.requires_grad]
    for weight in weights:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in weights:
            weight.requires_grad_(True)


def _make_optimiser(weights: list[nn.Parameter], config: TrainConfig, rate: float) -> torch.optim.Optimizer:
    """Return the optimiser that the configuration names."""
    match config.optimiser:
        case "adam":
            return torch.optim.Adam(weights, lr=rate, betas=(config.momentum, 0.999))
        case "rmsprop":
            return torch.optim.RMSprop(weights, lr=rate, momentum=config.momentum)
        case "sgd":
            return torch.optim.SGD(weights, lr=rate, momentum=config.momentum)


_Kind = TypeVar("_Kind", bound=AbstractGenerator)


def start(fresh: _Kind, config: TrainConfig) -> _Kind:
    """Return the generator that `init` names, trainable; without `init` return `fresh`.

    Raises:
        ConfigError: the named generator is of another kind or size.
    """
    if not config.init:
        return fresh
    loaded = load_generator(config.init)
    if type(loaded) is not type(fresh) or loaded.settings() != fresh.settings():
        raise ConfigError(
            f"init {config.init!r} is {loaded.name} {loaded.settings()}, but this run trains {fresh.name} "
            f"{fresh.settings()}. Give the options that made it."
        )
    fresh.load_state_dict(loaded.state_dict())
    return fresh


class AbstractAdversarial(AbstractRecipe[_Adversarial]):
    """Base of the recipes with discriminators: train them, fool them, keep them from overfitting.

    Attributes:
        augment: share in [0, 1] of the images that DiffAugment changes for a discriminator.
        sureness: running mean of the share of real images that the discriminators classify as real.
    """

    sureness: Tensor
    augment: Tensor

    sure: float = 0.8
    """A discriminator overfits if it classifies a larger share of real patches than this as real."""

    def __init__(self, config: _Adversarial):  # pyright: ignore[reportGeneralTypeIssues]
        super().__init__(config)
        self.augment = torch.tensor(1.0 if config.diffaugment == "on" else 0.0)
        self.sureness = torch.tensor(0.5)

    def state(self) -> dict[str, Tensor]:
        """Return `augment` and `sureness` as tensors."""
        return {"augment": self.augment, "sureness": self.sureness}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Restore `augment` and `sureness`."""
        self.augment, self.sureness = state["augment"], state["sureness"]

    def add_discriminator(self, name: str, channels: int = 3) -> PatchDiscriminator:
        """Add a discriminator with an optimiser of the same name."""
        config = self.config
        network = PatchDiscriminator(
            channels,
            patch=config.patch,
            width=config.discriminator_width,
            spectral=config.spectral,
            twice=config.r1 > 0,
        )
        self.add(name, {name: network}, rate=config.discriminator_rate or config.learning_rate)
        return network

    def fool(self, discriminator: nn.Module, fake: Tensor) -> Tensor:
        """Compute the generator's loss for a discriminator's view of `fake`."""
        return fool_loss(discriminator(self.disguise(fake)), self.config.loss)

    def disguise(self, images: Tensor) -> Tensor:
        """Augment the input of a discriminator; the more it overfits, the more images."""
        return diff_augment(images, float(self.augment), colour=self.config.diffaugment_colour)

    def teach(self, name: str, real: Tensor, fake: Tensor) -> Losses:
        """Train a discriminator on `real` and `fake`, with R1 every `r1_every` steps."""
        config, discriminator = self.config, self.networks[name]
        on_real, on_fake = discriminator(self.disguise(real)), discriminator(self.disguise(fake.detach()))
        losses = {name: discriminator_loss(on_real, on_fake, config.loss)}
        if config.r1 and self.steps_taken % config.r1_every == 0:
            with torch.autocast(real.device.type, enabled=False):
                shown = real.detach().float().requires_grad_()
                penalty = r1_penalty(shown, discriminator(shown))
            losses[f"r1_{name}"] = 0.5 * config.r1 * config.r1_every * penalty
        self.hold_back(on_real)
        return self.update(name, losses)

    def hold_back(self, on_real: Tensor) -> None:
        """Augment more while a discriminator is too sure of real images, otherwise less.

        After Karras 2020 (ADA). They use the sign of the logits; here 0.5 separates the classes of LSGAN.
        """
        if self.config.diffaugment != "auto":
            return
        middle = 0.5 if self.config.loss == "lsgan" else 0.0
        taken = self.fabric.all_reduce((on_real > middle).float().mean(), reduce_op="mean")
        self.sureness = torch.lerp(self.sureness, taken.detach().cpu(), 0.02)
        change = 0.002 if self.sureness > self.sure else -0.002
        self.augment = (self.augment + change).clamp(0, 0.8)

    def edges(self, fake: Images, source: Images) -> Losses:
        """Return the edge loss to the source, if the configuration sets its weight."""
        weight = self.config.edge_weight
        return {"edges": weight * edge_loss(fake, source)} if weight else {}
