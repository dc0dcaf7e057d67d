"""Run a recipe on Lightning Fabric: exact resumption, scores, the best checkpoint as the result."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from styleaug.atomic import atomic, remove_parts
from styleaug.errors import ConfigError, TrainError
from styleaug.generators.base import AbstractGenerator
from styleaug.training.base import AbstractRecipe
from styleaug.training.checkpoints import Checkpoints, gather_state, restore_state
from styleaug.training.data import TrainingData
from styleaug.training.fabric import make_fabric, share_of
from styleaug.training.fit import fit_style
from styleaug.training.monitor import Monitor
from styleaug.training.scores import Judge, alarms, load_features
from styleaug.weights import load_generator, save_generator

__all__ = ["Outcome", "train"]

SHOWN = 8
"""Held-out images in a sample grid."""
SECONDS = 1.0
"""Time between two rows of the log."""

Report = Callable[[int, int, dict[str, float]], None]


@dataclass(frozen=True)
class Outcome:
    """How a call of `train` ended."""

    run: Path
    step: int
    finished: bool
    why: str
    """What was chosen and why, or what stopped the run; empty in all processes but the first."""
    scores: dict[str, float]
    """Of the chosen step."""


def train(
    recipe: AbstractRecipe,
    data: TrainingData,
    run: str | Path,
    *,
    networks: Path | None = None,
    resume: bool = False,
    minutes: float = float("inf"),
    report: Report = lambda step, steps, losses: None,
) -> Outcome:
    """Train until the recipe's last step, and keep the weights with the best held-out score.

    All that is random in a step follows from the seed and the step's number, so a resumed run does
    what an unbroken one would have done. SIGINT and SIGTERM end the call after the step at hand, with a
    checkpoint. Run it in several processes with `config.devices`, torchrun or `fabric run`; they share
    each batch.

    Args:
        recipe: what is trained, with its configuration.
        data: the two sides, read with the same configuration.
        run: folder to be made: `config.json`, `log.jsonl`, `samples/`, `report.html`, `checkpoints/`,
            and at the end `generator.safetensors`, with `bank.safetensors` where there are codes to keep.
        networks: folder of loss networks; None downloads torchvision's where one is needed.
        resume: go on with the newest checkpoint in `run`.
        minutes: stop with a checkpoint after this long.
        report: called about once a second with the step, the number of steps and the losses.

    Raises:
        ConfigError: `run` holds a run of other options or images, or one that is not to be resumed.
        TrainError: a loss that is not finite; the checkpoints before it stay.
        WeightsError: a checkpoint or a network that cannot be read.
        FileError: `run` cannot be written to.
    """
    return Training(recipe, data, Path(run), networks, resume).go(minutes, report)


class Training:
    """One call of `train`: the state of a run and what watches it."""

    def __init__(
        self, recipe: AbstractRecipe, data: TrainingData, run: Path, networks: Path | None, resume: bool
    ):
        self.recipe, self.data, self.run, self.config = recipe, data, run, recipe.config
        self.fabric = make_fabric(self.config)
        self.leads = self.fabric.global_rank == 0
        self.rows = share_of(self.config.batch, self.fabric.global_rank, self.fabric.world_size)
        self.checkpoints = Checkpoints(run, keep=self.config.keep)
        self.checkpoints.check_folder(self.config, resume=resume)
        self.fabric.barrier()  # all have looked before one writes
        recipe.setup(self.fabric)
        self.averages = {name: deepcopy(product) for name, product in recipe.products.items()}
        self.step, self.scores = 0, []
        newest = self.checkpoints.newest() if resume else None
        if newest:
            tensors, meta = self.checkpoints.read(newest, self.config)
            if meta["data"] != data.fingerprint:
                raise ConfigError(
                    f"{run} was trained on other images (some came, went or changed their class). Give those "
                    "it was started with, or another run folder."
                )
            restore_state(recipe, self.averages, tensors, meta)
            self.step, self.scores = meta["step"], meta["scores"]
        if self.leads:
            self.checkpoints.write_config(self.config)
            remove_parts(run)
        self.monitor = self.start_monitor() if self.leads else None
        recipe.prepare(data, run, networks)
        self.sources, self.judge = self.start_judge(networks) if self.leads else (None, None)
        self.told: set[str] = set()

    def go(self, minutes: float, report: Report) -> Outcome:
        """Take step after step; save, score and stop when it is time."""
        deadline, said = time.monotonic() + 60 * minutes, 0.0
        config, history = self.config, []
        with stopping() as stop, self.batches() as batch_of:
            while self.step < config.steps:
                started = time.monotonic()
                losses = self.advance(batch_of(self.step))
                now, last = time.monotonic(), self.step == config.steps
                why = "it was asked to" if stop.is_set() else "time is up" if now > deadline else ""
                # The first process's clock and signals count for all: what follows they do together.
                why, speaks = self.fabric.broadcast((why, now - said > SECONDS))
                if speaks or last:
                    said = now
                    history.append(self.checked(losses))
                    if self.monitor:
                        speed = config.batch / (now - started)
                        self.monitor.losses(self.step, history[-1], images_per_second=speed)
                        report(self.step, config.steps, history[-1])
                if self.step % config.score_every == 0 or last:
                    self.evaluate(history)
                if self.step % config.save_every == 0 or last or why:
                    self.checked(losses)  # never keep broken weights
                    self.save()
                if why and not last:
                    return self.stopped(why)
        return self.finish()

    @contextmanager
    def batches(self) -> Iterator[Callable[[int], list[Tensor]]]:
        """Give a function that hands over a step's crops and cuts the next step's meanwhile."""

        def cut(step: int) -> list[Tensor]:
            return self.data.batch(step, self.rows, target=self.recipe.needs_target)

        ahead: dict[int, Any] = {}
        with ThreadPoolExecutor(1) as pool:

            def batch_of(step: int) -> list[Tensor]:
                ready = ahead.pop(step, None) or pool.submit(cut, step)
                ahead[step + 1] = pool.submit(cut, step + 1)
                return [self.to_device(crops) for crops in ready.result()]

            yield batch_of

    def to_device(self, crops: Tensor) -> Tensor:
        """Move crops, in the layout that convolutions prefer."""
        return crops.to(self.fabric.device).contiguous(memory_format=torch.channels_last)

    def advance(self, batch: list[Tensor]) -> dict[str, Tensor]:
        """Take one step: seed, schedule, recipe, average."""
        config, recipe = self.config, self.recipe
        torch.manual_seed(config.seed * 1_000_003 + self.step)
        factor = rate_factor(self.step, config)
        for name, optimiser in recipe.optimisers.items():
            for group in optimiser.param_groups:
                group["lr"] = recipe.rates[name] * factor
        recipe.steps_taken = self.step
        source, target = batch[0], batch[-1]
        with self.fabric.autocast():
            losses = recipe.step(source, target)
        self.step += 1
        keep = min(config.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, average in self.averages.items():
                fresh = recipe.products[name].state_dict()
                for key, value in average.state_dict().items():
                    value.lerp_(fresh[key], 1 - keep)
        return losses

    def checked(self, losses: dict[str, Tensor]) -> dict[str, float]:
        """Average the losses over all processes, as numbers.

        Raises:
            TrainError: one is not finite.
        """
        together = self.fabric.all_reduce(torch.stack([x.float() for x in losses.values()]), reduce_op="mean")
        values = dict(zip(losses, together.tolist(), strict=True))
        broken = [name for name, value in values.items() if not abs(value) < float("inf")]
        if broken:
            raise self.diverged(f"{', '.join(broken)} became {values[broken[0]]}")
        return values

    def diverged(self, what: str) -> TrainError:
        """Make the error for a run that has come to nothing, and log it."""
        text = (
            f"at step {self.step} {what}: the run diverged. Its checkpoints are kept. Start anew in another "
            "folder, with a lower learning_rate, with clip=1 or with precision 32-true."
        )
        if self.monitor:
            self.monitor.alarm(self.step, text)
        return TrainError(text)

    def start_monitor(self) -> Monitor:
        """Open the log, and say what was seen in the data."""
        title = f"styleaug train {self.config.recipe}"
        monitor = Monitor(
            self.run, title=title, facts=self.config.to_dict() | self.data.describe(), step=self.step
        )
        if self.data.warning and self.recipe.needs_target:
            monitor.alarm(self.step, self.data.warning)
        return monitor

    def start_judge(self, networks: Path | None) -> tuple[Tensor, Judge]:
        """Read the held-out images, and describe them once."""
        sources, targets = self.data.judged()
        features = load_features(self.config.features, networks)
        self.targets = targets
        return sources, Judge(
            features, targets, sources, paired=self.data.paired, distance=self.config.distance
        )

    @torch.no_grad()
    def evaluate(self, history: list[dict[str, float]]) -> None:
        """Score the averaged generator; draw its samples; keep it if it is the best so far."""
        if self.monitor and self.judge and self.sources is not None:
            generator = self.averages["generator"].eval()
            outputs = translate(generator, self.sources, self.targets, device=self.fabric.device)
            scores = self.judge.score(outputs)
            self.scores.append({"step": self.step, **scores})
            self.monitor.scores(self.step, scores)
            rows = [spread_out(images) for images in (self.sources, outputs, self.targets)]
            self.monitor.samples(self.step, rows)
            if self.best()["step"] == self.step:
                for name, average in self.averages.items():
                    save_generator(average, self.run / "checkpoints" / f"best-{name}.safetensors")
            for text in alarms(history, self.scores):
                if text not in self.told:
                    self.told.add(text)
                    self.monitor.alarm(self.step, text)
            self.monitor.report()
        self.fabric.barrier()

    def best(self) -> dict[str, float]:
        """Give the scores of the step with the lowest one."""
        return min(self.scores, key=lambda scores: scores["score"])

    def save(self) -> None:
        """Write a checkpoint of all processes.

        Raises:
            TrainError: weights that are not finite; the checkpoints before stay.
        """
        tensors, meta = gather_state(self.recipe, self.averages)
        if not all(bool(value.isfinite().all()) for value in tensors.values()):
            raise self.diverged("the weights are no longer finite")
        if self.leads:
            told = {"config": self.config.to_dict(), "data": self.data.fingerprint, "scores": self.scores}
            self.checkpoints.write(self.step, tensors, meta | told)
        self.fabric.barrier()

    def stopped(self, why: str) -> Outcome:
        """Leave the run to be resumed."""
        if self.monitor:
            self.monitor.close({"stopped": f"at step {self.step} of {self.config.steps}: {why}"})
        return Outcome(self.run, self.step, False, why if self.leads else "", {})

    def finish(self) -> Outcome:
        """Make the best checkpoint the run's result."""
        if not self.monitor:
            self.fabric.barrier()
            return Outcome(self.run, self.step, True, "", {})
        best = self.best()
        step, kind = int(best["step"]), self.config.distance
        why = (
            f"step {step} of {self.config.steps} has the lowest held-out score of {len(self.scores)}: "
            f"{best['score']:.3f} ({kind} {best[kind]:.3f}, structure {best['structure']:.3f}; the last step "
            f"has {self.scores[-1]['score']:.3f})"
        )
        for name in self.averages:
            saved = self.run / "checkpoints" / f"best-{name}.safetensors"
            with atomic(self.run / f"{name}.safetensors") as part:
                part.write_bytes(saved.read_bytes())
        generator = load_generator(self.run / "generator.safetensors")
        if generator.code_length:
            paths = list(self.data.target_images.paths)
            # Every image a style: the network itself was trained on them, and is no more private.
            fit = fit_style(paths, generator=generator, min_images=1, seed=self.config.seed)
            fit.bank.save(self.run / "bank.safetensors")
        scores = {name: value for name, value in best.items() if name != "step"}
        self.monitor.close({"chosen step": step, "why": why, "scores": scores})
        self.fabric.barrier()
        return Outcome(self.run, self.step, True, why, scores)


@torch.no_grad()
def translate(
    generator: AbstractGenerator, sources: Tensor, targets: Tensor, *, device: torch.device
) -> Tensor:
    """Run a generator on held-out images: codes from the prior, or read from the targets in turn."""
    rng = torch.Generator().manual_seed(0)
    outputs = []
    for rows in torch.arange(len(sources)).split(16):
        images = sources[rows].to(device)
        if generator.has_prior:
            codes = torch.randn(len(rows), generator.code_length, generator=rng).to(device)
        else:
            codes = generator.encode_style(targets[rows % len(targets)].to(device))
        outputs.append(generator(images, codes, torch.ones(len(rows), device=device)).cpu())
    return torch.cat(outputs)


def spread_out(images: Tensor) -> Tensor:
    """Pick a few images from all over a list, which may be sorted by class."""
    return images[torch.linspace(0, len(images) - 1, min(SHOWN, len(images))).long()]


def rate_factor(step: int, config: Any) -> float:
    """Give the learning rates' factor at a step."""
    warm = min(1.0, (step + 1) / config.warm_up) if config.warm_up else 1.0
    progress = step / config.steps
    match config.schedule:
        case "linear":
            return warm * min(1.0, 2 * (1 - progress))
        case "cosine":
            cosine = torch.cos(torch.tensor(progress * torch.pi)).item()
            return warm * (0.01 + 0.99 * 0.5 * (1 + cosine))
    return warm


@contextmanager
def stopping() -> Iterator[threading.Event]:
    """Turn SIGINT and SIGTERM into an event; a second one acts as it always does."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread can take signals
        return
    kinds = (signal.SIGINT, signal.SIGTERM)
    before = {kind: signal.getsignal(kind) for kind in kinds}

    def ask(kind: int, frame: Any) -> None:
        stop.set()
        for each, handler in before.items():
            signal.signal(each, handler)

    for kind in kinds:
        signal.signal(kind, ask)
    try:
        yield stop
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
