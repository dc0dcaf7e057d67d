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

from styleaug.errors import TrainError
from styleaug.fitting.fit import fit_style
from styleaug.generators.base import AbstractGenerator
from styleaug.io.atomic import remove_parts
from styleaug.perceptual import load_features
from styleaug.training.base import AbstractRecipe
from styleaug.training.best import Best
from styleaug.training.checkpoints import Checkpoints, gather_state, restore_state
from styleaug.training.config import TrainConfig
from styleaug.training.data import TrainingData
from styleaug.training.fabric import make_fabric, share_of
from styleaug.training.monitor import Monitor
from styleaug.training.preflight import check_images, check_inputs
from styleaug.training.report import NOT_VALUES, ROWS
from styleaug.training.scores import Judge, alarms
from styleaug.weights import load_generator

__all__ = ["Outcome", "train"]

_SHOWN = 8
"""Number of held-out images in a sample grid."""
LOG_EVERY = 10
"""Steps between two rows of losses in the log. A fixed number, so that interruptions do not change it."""
_SECONDS = 1.0
"""Seconds between two reports of the losses."""

_Report = Callable[[int, int, dict[str, float]], None]


@dataclass(frozen=True)
class Outcome:
    """How a call of `train` ended."""

    run: Path
    step: int
    finished: bool
    why: str
    """The chosen step and the reason, or what stopped the run; empty in all processes but the first."""
    scores: dict[str, float]
    """Scores of the chosen step."""


def train(
    recipe: AbstractRecipe[Any],
    data: TrainingData,
    run: str | Path,
    *,
    networks: Path | None = None,
    resume: bool = False,
    minutes: float = float("inf"),
    report: _Report = lambda step, steps, losses: None,
) -> Outcome:
    """Train until the recipe's last step, and keep the weights with the best held-out score.

    All random draws of a step depend only on the seed and the step's number, so a resumed run computes the
    same as an uninterrupted one. SIGINT and SIGTERM end the call after the current step, with a
    checkpoint. To train with several processes, use `config.devices`, torchrun or `fabric run`; they share
    each batch.

    Args:
        recipe: recipe with its configuration.
        data: the two sides, read with the same configuration.
        run: folder to make, with `config.json`, `log.jsonl`, `samples/`, `report.html`, `checkpoints/`,
            and at the end `generator.safetensors`, with `bank.safetensors` if the generator takes codes.
        networks: folder of loss networks; None downloads torchvision's if one is needed.
        resume: go on from the newest undamaged checkpoint in `run`. With more `steps`, a finished run is
            prolonged: the learning rates follow the schedule for the new number of steps, so only with a
            constant schedule is the result that of a run with that number from the start. With another
            `patience`, a run goes on that ended by patience.
        minutes: stop with a checkpoint after this number of minutes.
        report: function called about once a second with the step, the number of steps and the losses.

    Warns:
        UserWarning: a checkpoint is damaged, and the one before is used.

    Raises:
        ConfigError: `run` holds a run with other options or images, or a run while `resume` is False.
        TrainError: a loss is not finite; earlier checkpoints are kept.
        WeightsError: a checkpoint or a network cannot be read.
        FileError: `run` cannot be written to.
    """
    return Training(recipe, data, Path(run), networks, resume).go(minutes, report)


class Training:
    """One call of `train`: the state of a run, its monitor and its judge."""

    recipe: AbstractRecipe[Any]
    config: TrainConfig
    data: TrainingData
    run: Path
    step: int
    best: Best
    sources: Tensor | None
    judge: Judge | None
    over: bool

    def __init__(
        self, recipe: AbstractRecipe[Any], data: TrainingData, run: Path, networks: Path | None, resume: bool
    ):
        self.recipe, self.data, self.run, self.config = recipe, data, run, recipe.config
        self.fabric: Any = make_fabric(self.config)
        self.leads: bool = self.fabric.global_rank == 0
        self.rows: range = share_of(self.config.batch, self.fabric.global_rank, self.fabric.world_size)
        self.checkpoints: Checkpoints = Checkpoints(run, keep=self.config.keep)
        check_inputs(recipe, data, networks)
        self.checkpoints.check_place(resume=resume)
        self.fabric.barrier()  # all processes have checked the folder before one writes
        self.checkpoints.make_folder()
        recipe.setup(self.fabric)
        self.averages: dict[str, AbstractGenerator] = {
            name: deepcopy(product) for name, product in recipe.products.items()
        }
        self.step, self.best = 0, Best(self.checkpoints.folder, patience=self.config.patience)
        damaged = self.checkpoints.take_up(self.config, self.restore) if resume else []
        self.fabric.barrier()  # all processes have read before one renames
        if self.leads:
            self.checkpoints.set_aside(damaged, self.step)
            self.checkpoints.write_config(self.config)
            remove_parts(run)
            self.best.write_all(self.averages)
        self.history: list[dict[str, float]] = []
        self.told: set[str] = set()
        self.monitor: Monitor | None = self.start_monitor() if self.leads else None
        recipe.prepare(data, run, networks)
        self.sources, self.judge = self.start_judge(networks) if self.leads else (None, None)
        self.over = self.fabric.broadcast(self.best.is_out_of_patience())

    def restore(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        """Restore a checkpoint.

        Raises:
            WeightsError: the checkpoint does not fit.
            ConfigError: the checkpoint was made with other images.
        """
        check_images(self.data, self.run, meta["data"])
        restore_state(self.recipe, self.averages, tensors, meta)
        self.best.load(tensors, meta, self.averages)
        self.step = meta["step"]
        if self.config.steps > meta["config"].get("steps", self.config.steps):
            self.best.be_patient_from(self.step)

    def go(self, minutes: float, report: _Report) -> Outcome:
        """Take the steps of the run; save, score and stop when due."""
        deadline, said = time.monotonic() + 60 * minutes, 0.0
        config = self.config
        with stopping() as stop, self.batches() as batch_of:
            while self.step < config.steps and not self.over:
                started = time.monotonic()
                losses = self.advance(batch_of(self.step))
                now, last = time.monotonic(), self.step == config.steps
                why = "it was asked to" if stop.is_set() else "time is up" if now > deadline else ""
                # The clock and the signals of the first process decide for all, so that all do the same.
                why, speaks = self.fabric.broadcast((why, now - said > _SECONDS))
                logs = self.step % LOG_EVERY == 0 or self.step == 1 or last
                values = self.checked(losses) if logs or speaks else {}
                if logs and self.monitor:
                    self.history.append(values)
                    speed = config.batch / (now - started)
                    self.monitor.losses(self.step, values, images_per_second=speed)
                if speaks or last:
                    said = now
                    if self.leads:
                        report(self.step, config.steps, values)
                if self.step % config.score_every == 0 or last:
                    self.evaluate()
                if self.step % config.save_every == 0 or last or self.over or why:
                    self.checked(losses)  # never keep broken weights
                    self.save()
                if why and not last and not self.over:
                    return self.stopped(why)
        if not self.fabric.broadcast(self.best.is_scored(self.step)):
            self.evaluate()  # the run was already at its last step
            self.save()
        return self.finish()

    @contextmanager
    def batches(self) -> Iterator[Callable[[int], list[Tensor]]]:
        """Yield a function that returns a step's crops and cuts the next step's in the background."""

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
        """Move crops to the device, in the memory layout that is fast for convolutions."""
        there = crops.to(self.fabric.device, non_blocking=True)
        return there.contiguous(memory_format=torch.channels_last)

    def advance(self, batch: list[Tensor]) -> dict[str, Tensor]:
        """Take one step: seed, schedule, recipe, averaged weights."""
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
        """Average the losses over all processes and return them as numbers.

        Raises:
            TrainError: a loss is not finite.
        """
        together = self.fabric.all_reduce(torch.stack([x.float() for x in losses.values()]), reduce_op="mean")
        values = dict(zip(losses, together.tolist(), strict=True))
        broken = [name for name, value in values.items() if not abs(value) < float("inf")]
        if broken:
            raise self.diverged(f"{', '.join(broken)} became {values[broken[0]]}")
        return values

    def diverged(self, what: str) -> TrainError:
        """Return the error for a diverged run, and log it."""
        text = (
            f"at step {self.step} {what}: the run diverged. Its checkpoints are kept. Start anew in another "
            "folder, with a lower learning_rate, with clip=1 or with precision 32-true."
        )
        if self.monitor:
            self.monitor.alarm(self.step, text)
        return TrainError(text)

    def start_monitor(self) -> Monitor:
        """Open the log and write the warnings about the data."""
        title = f"styleaug train {self.config.recipe}"
        monitor = Monitor(
            self.run, title=title, facts=self.config.to_dict() | self.data.describe(), step=self.step
        )
        self.history = [values_of(row) for row in monitor.rows("losses")]
        self.told = {row.get("text", "") for row in monitor.rows("alarm")}
        if self.data.warning and self.recipe.needs_target:
            self.alarm(monitor, self.data.warning)
        return monitor

    def alarm(self, monitor: Monitor, text: str) -> None:
        """Log an alarm if it is not in the log yet."""
        if text not in self.told:
            self.told.add(text)
            monitor.alarm(self.step, text)

    def start_judge(self, networks: Path | None) -> tuple[Tensor, Judge]:
        """Read the held-out images and make the judge for them."""
        sources, targets = self.data.judged()
        features = load_features(self.config.features, networks)
        self.targets = targets
        return sources, Judge(
            features, targets, sources, paired=self.data.paired, distance=self.config.distance
        )

    @torch.no_grad()
    def evaluate(self) -> None:
        """Score the averaged generator, write its samples, and keep it if it is the best so far."""
        if self.monitor and self.judge and self.sources is not None:
            generator = self.averages["generator"].eval()
            outputs = _translate(generator, self.sources, self.targets, device=self.fabric.device)
            scores = self.judge.score(outputs)
            self.best.add(self.step, scores, self.averages)
            self.monitor.scores(self.step, scores)
            shown, count = spread_out(len(outputs)), len(self.targets)
            # Below each result is its pair or its style, if there is one.
            belong = self.data.paired or (generator.code_length > 0 and not generator.has_prior)
            targets = self.targets[shown % count if belong else spread_out(count)]
            self.monitor.samples(self.step, [self.sources[shown], outputs[shown], targets], ROWS)
            for text in alarms(self.history, self.best.scores):
                self.alarm(self.monitor, text)
            self.monitor.report()
        # The first process has the scores and decides for all.
        self.over = self.fabric.broadcast(self.best.is_out_of_patience())

    def save(self) -> None:
        """Write a checkpoint of all processes.

        Raises:
            TrainError: weights are not finite; earlier checkpoints are kept.
        """
        tensors, meta = gather_state(self.recipe, self.averages)
        if not all(bool(value.isfinite().all()) for value in tensors.values()):
            raise self.diverged("the weights are no longer finite")
        if self.leads:
            told = {"config": self.config.to_dict(), "data": self.data.fingerprint} | self.best.facts()
            self.checkpoints.write(self.step, tensors | self.best.weights, meta | told)
        self.fabric.barrier()

    def stopped(self, why: str) -> Outcome:
        """Close the log of a stopped run, which can be resumed, and return its outcome."""
        if self.monitor:
            self.monitor.close({"stopped": f"at step {self.step} of {self.config.steps}: {why}"})
        return Outcome(self.run, self.step, False, why if self.leads else "", {})

    def finish(self) -> Outcome:
        """Write the best weights as the result of the run."""
        if not self.monitor:
            self.fabric.barrier()
            return Outcome(self.run, self.step, True, "", {})
        best, scored = self.best.row, self.best.scores
        step, kind = int(best["step"]), self.config.distance
        why = (
            f"step {step} of {self.config.steps} has the lowest held-out score of {len(scored)}: "
            f"{best['score']:.3f} ({kind} {best[kind]:.3f}, structure {best['structure']:.3f}; the last step "
            f"has {scored[-1]['score']:.3f})"
        )
        if self.step < self.config.steps:
            why += (
                f". Stopped at step {self.step}: no better score in the last {self.config.patience} "
                "(patience). To go on, resume with more patience, 0 for no end to it, or with more steps"
            )
        for name in self.averages:
            self.best.write(name, self.averages[name], self.run / f"{name}.safetensors")
        generator = load_generator(self.run / "generator.safetensors")
        if generator.code_length:
            paths = list(self.data.target_images.paths)
            # Each image is a style. The network was trained on these images, so this reveals no more of them.
            fit = fit_style(paths, generator=generator, min_images=1, seed=self.config.seed)
            fit.bank.save(self.run / "bank.safetensors")
        scores = {name: value for name, value in best.items() if name != "step"}
        self.monitor.close({"chosen step": step, "why": why, "scores": scores})
        self.fabric.barrier()
        return Outcome(self.run, self.step, True, why, scores)


@torch.no_grad()
def _translate(
    generator: AbstractGenerator, sources: Tensor, targets: Tensor, *, device: torch.device
) -> Tensor:
    """Run a generator on held-out images, with codes from the prior or from the targets in turn."""
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


def values_of(row: dict[str, Any]) -> dict[str, float]:
    """Return the losses of a row of the log, without its other entries."""
    return {name: value for name, value in row.items() if name not in NOT_VALUES and value is not None}


def spread_out(count: int) -> Tensor:
    """Choose a few rows spread over a list, which may be sorted by class."""
    return torch.linspace(0, count - 1, min(_SHOWN, count)).long()


def rate_factor(step: int, config: Any) -> float:
    """Compute the factor of the learning rates at a step."""
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
    """Convert SIGINT and SIGTERM to an event; a second signal has its usual effect."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread can handle signals
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
