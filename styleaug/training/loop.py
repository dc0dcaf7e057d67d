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
from styleaug.training.data import TrainingData
from styleaug.training.fabric import make_fabric, share_of
from styleaug.training.monitor import Monitor
from styleaug.training.preflight import check_images, check_inputs
from styleaug.training.report import NOT_VALUES, ROWS
from styleaug.training.scores import Judge, alarms
from styleaug.weights import load_generator

__all__ = ["Outcome", "train"]

_SHOWN = 8
"""Held-out images in a sample grid."""
LOG_EVERY = 10
"""Steps between two rows of losses in the log, which is thus the same however often a run was broken."""
_SECONDS = 1.0
"""Time between two reports of the losses."""

_Report = Callable[[int, int, dict[str, float]], None]


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
    report: _Report = lambda step, steps, losses: None,
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
        resume: go on with the newest checkpoint in `run` that is not damaged. With more `steps` a finished
            run is prolonged: the learning rates are those of the new number of steps, so with the constant
            schedule it ends where one of that many steps does. With another `patience` a run that it
            ended goes on.
        minutes: stop with a checkpoint after this long.
        report: called about once a second with the step, the number of steps and the losses.

    Warns:
        UserWarning: a damaged checkpoint, which was passed over for the one before.

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
        check_inputs(recipe, data, networks)
        self.checkpoints.check_place(resume=resume)
        self.fabric.barrier()  # all have looked before one writes
        self.checkpoints.make_folder()
        recipe.setup(self.fabric)
        self.averages = {name: deepcopy(product) for name, product in recipe.products.items()}
        self.step, self.best = 0, Best(self.checkpoints.folder, patience=self.config.patience)
        damaged = self.checkpoints.take_up(self.config, self.restore) if resume else []
        self.fabric.barrier()  # all have read before one renames
        if self.leads:
            self.checkpoints.set_aside(damaged, self.step)
            self.checkpoints.write_config(self.config)
            remove_parts(run)
            self.best.write_all(self.averages)
        self.history: list[dict[str, float]] = []
        self.told: set[str] = set()
        self.monitor = self.start_monitor() if self.leads else None
        recipe.prepare(data, run, networks)
        self.sources, self.judge = self.start_judge(networks) if self.leads else (None, None)
        self.over = self.fabric.broadcast(self.best.is_out_of_patience())

    def restore(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        """Take up a checkpoint.

        Raises:
            WeightsError: it does not fit.
            ConfigError: it was made with other images.
        """
        check_images(self.data, self.run, meta["data"])
        restore_state(self.recipe, self.averages, tensors, meta)
        self.best.load(tensors, meta, self.averages)
        self.step = meta["step"]
        if self.config.steps > meta["config"].get("steps", self.config.steps):
            self.best.be_patient_from(self.step)

    def go(self, minutes: float, report: _Report) -> Outcome:
        """Take step after step; save, score and stop when it is time."""
        deadline, said = time.monotonic() + 60 * minutes, 0.0
        config = self.config
        with stopping() as stop, self.batches() as batch_of:
            while self.step < config.steps and not self.over:
                started = time.monotonic()
                losses = self.advance(batch_of(self.step))
                now, last = time.monotonic(), self.step == config.steps
                why = "it was asked to" if stop.is_set() else "time is up" if now > deadline else ""
                # The first process's clock and signals count for all: what follows they do together.
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
            self.evaluate()  # asked to end where it stood
            self.save()
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
        self.history = [values_of(row) for row in monitor.rows("losses")]
        self.told = {row.get("text", "") for row in monitor.rows("alarm")}
        if self.data.warning and self.recipe.needs_target:
            self.alarm(monitor, self.data.warning)
        return monitor

    def alarm(self, monitor: Monitor, text: str) -> None:
        """Log an alarm, if it is not in the log."""
        if text not in self.told:
            self.told.add(text)
            monitor.alarm(self.step, text)

    def start_judge(self, networks: Path | None) -> tuple[Tensor, Judge]:
        """Read the held-out images, and describe them once."""
        sources, targets = self.data.judged()
        features = load_features(self.config.features, networks)
        self.targets = targets
        return sources, Judge(
            features, targets, sources, paired=self.data.paired, distance=self.config.distance
        )

    @torch.no_grad()
    def evaluate(self) -> None:
        """Score the averaged generator; draw its samples; keep it if it is the best so far."""
        if self.monitor and self.judge and self.sources is not None:
            generator = self.averages["generator"].eval()
            outputs = _translate(generator, self.sources, self.targets, device=self.fabric.device)
            scores = self.judge.score(outputs)
            self.best.add(self.step, scores, self.averages)
            self.monitor.scores(self.step, scores)
            shown, count = spread_out(len(outputs)), len(self.targets)
            # Below each result is its pair or its style, where it has one.
            belong = self.data.paired or (generator.code_length > 0 and not generator.has_prior)
            targets = self.targets[shown % count if belong else spread_out(count)]
            self.monitor.samples(self.step, [self.sources[shown], outputs[shown], targets], ROWS)
            for text in alarms(self.history, self.best.scores):
                self.alarm(self.monitor, text)
            self.monitor.report()
        # The first process has the scores, and decides for all.
        self.over = self.fabric.broadcast(self.best.is_out_of_patience())

    def save(self) -> None:
        """Write a checkpoint of all processes.

        Raises:
            TrainError: weights that are not finite; the checkpoints before stay.
        """
        tensors, meta = gather_state(self.recipe, self.averages)
        if not all(bool(value.isfinite().all()) for value in tensors.values()):
            raise self.diverged("the weights are no longer finite")
        if self.leads:
            told = {"config": self.config.to_dict(), "data": self.data.fingerprint} | self.best.facts()
            self.checkpoints.write(self.step, tensors | self.best.weights, meta | told)
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
            # Every image a style: the network itself was trained on them, and is no more private.
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


def values_of(row: dict[str, Any]) -> dict[str, float]:
    """Keep the losses of a row of the log."""
    return {name: value for name, value in row.items() if name not in NOT_VALUES and value is not None}


def spread_out(count: int) -> Tensor:
    """Pick a few rows from all over a list, which may be sorted by class."""
    return torch.linspace(0, count - 1, min(_SHOWN, count)).long()


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
