"""Train a network with each arm, and test it at home, in other domains and on corrupted images."""

import re
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from styleaug.errors import ConfigError, FileError, name_bytes
from styleaug.robustness.arms import Arm, ArmSpec
from styleaug.robustness.classification import Classification
from styleaug.robustness.classifiers import Network
from styleaug.robustness.corruptions import corrupt
from styleaug.robustness.protocol import HOME, TRAIN, Protocol, Samples, Store, mapped
from styleaug.robustness.report import Plan, Robustness
from styleaug.robustness.runs import Key, Record, RunFile, Workers
from styleaug.robustness.segmentation import Segmentation
from styleaug.robustness.tasks import Case, Task

__all__ = ["evaluate_robustness", "plan_robustness"]

_Report = Callable[[str, int, int], None]
"""Function called with the current task, the number of finished parts and of all parts."""
CORRUPTED_AT_ONCE = 256
TIMED_STEPS, WARM_STEPS = 4, 2
TIMED_IMAGES = 8


def _quiet(what: str, done: int, total: int) -> None:
    """Report nothing."""


def evaluate_robustness(
    train: str | Path,
    tests: Mapping[str, str | Path] | Sequence[str | Path] = (),
    *,
    arms: Sequence[str],
    task: Task | str = "classification",
    out: str | Path | None = None,
    redo: bool = False,
    strict: bool = False,
    skip: bool = False,
    report: _Report = _quiet,
    said: Callable[[str], None] = lambda line: None,
    **options: Any,
) -> Robustness:
    """Train a network with each arm and seed, and compare their scores.

    All arms of a seed share the split, the initial weights, the order of the batches, geometry and
    dropout, so that they are compared in pairs. The weights of the last epoch are tested; nothing is
    selected. The score of a classifier is the recall, averaged over the classes; that of a segmentation is
    the Dice, see `Segmentation`.

    Args:
        train: folder with a subfolder for each class, or images with masks, see `read_masked_images`; a part
            is held out as the home test. Or a benchmark on disk by name, `KIND:PATH[:PART]`, which brings its
            home test and, without `tests`, its other parts as tests; see `styleaug.robustness.benchmarks`.
        tests: folders of other domains, with or without names; the one called `"home"` is the home test. A
            benchmark stands for all of its tests, or for the one that is named.
        arms: lines as in `styleaug.robustness.arms`.
        task: `"classification"`, `"segmentation"`, or a `Segmentation` with its settings.
        out: result file, written after every run; finished runs are not repeated. None writes no file. A
            segmentation draws pictures into a folder beside it: the best, the median and the worst image
            of each domain, from the runs of seed 0.
        redo: repeat the runs of these arms and seeds.
        strict: raise an error for the first file that cannot be read; False leaves such files out.
        skip: with masks, leave out files that cannot be used; False raises an error for the first.
        report: function called with the current task, the number of finished parts and of all parts.
        said: function called with a line of text after each run.
        options: fields of `Protocol`.

    Raises:
        ConfigError: an argument is out of its range, or the file has runs with other settings.
        FileError: a folder cannot be used or, if `strict`, a file cannot be read.
        StyleAugError: a file that an arm names is missing or damaged.

    Example:
        >>> evaluate_robustness("photos", {"sketch": "sketches"},
        ...     arms=["none", "style:art"], out="result.json")  # doctest: +SKIP
    """
    task, protocol = task_and_protocol(task, train, tests, arms=arms, **options)
    with prepared(task, protocol, report, strict=strict, skip=skip) as store:
        runs = RunFile(None if out is None else Path(out), task.settings(protocol.settings(store)))
        jobs = plan_jobs(task, protocol, store, None if out is None else Path(out))
        planned = {job.key: job.spec for job in jobs}
        if redo:
            runs.drop(planned)
        runs.check(planned)
        done = runs.finished()
        missing = [job for job in jobs if job.key not in done]
        began = time.monotonic()
        with Workers(protocol.jobs) as each:
            for corruption in corruption_tasks(protocol, store, missing):
                each.add(write_corrupted, corruption)
            for number, total in each.run():
                report("corrupting", number, total)
            for job in missing:
                each.add(run_one, job)
            for number, total in each.run(runs.add):
                left = (time.monotonic() - began) / number * (total - number)
                said(line_of(each.last, number, total, left))
                report("training", number, total)
        return Robustness.of(protocol, store, runs)


def line_of(record: Record, number: int, total: int, left: float) -> str:
    """Format the line for a finished run."""
    scores = "  ".join(f"{name} {score:.3f}" for name, score in record["scores"].items())
    if record["corrupted"]:
        scores += f"  corrupted {float(np.mean(list(record['corrupted'].values()))):.3f}"
    ahead = f", about {left / 60:.0f} min left" if number < total else ""
    run = f"{record['arm']}, seed {record['seed']}"
    return f"[{number}/{total}] {run}: {scores} ({record['seconds']:.0f} s{ahead})"


def plan_robustness(
    train: str | Path,
    tests: Mapping[str, str | Path] | Sequence[str | Path] = (),
    *,
    arms: Sequence[str],
    task: Task | str = "classification",
    out: str | Path | None = None,
    redo: bool = False,
    strict: bool = False,
    skip: bool = False,
    report: _Report = _quiet,
    **options: Any,
) -> Plan:
    """Return the plan of `evaluate_robustness` for the same arguments, with times from a few steps.

    Args:
        train: folder with a subfolder for each class.
        tests: folders of other domains.
        arms: lines as in `styleaug.robustness.arms`.
        task: `"classification"`, `"segmentation"`, or a `Segmentation` with its settings.
        out: result file; it is read, not written.
        redo: plan the finished runs of these arms and seeds again.
        strict: raise an error for the first file that cannot be read.
        skip: with masks, leave out files that cannot be used.
        report: function called with the current task, the number of finished parts and of all parts.
        options: fields of `Protocol`.

    Raises:
        StyleAugError: every error that `evaluate_robustness` raises for these arguments.
    """
    task, protocol = task_and_protocol(task, train, tests, arms=arms, **options)
    with prepared(task, protocol, report, strict=strict, skip=skip) as store:
        runs = RunFile(None if out is None else Path(out), task.settings(protocol.settings(store)))
        jobs = plan_jobs(task, protocol, store)
        if not redo:
            runs.check({job.key: job.spec for job in jobs})
        done = {} if redo else runs.finished()
        missing = [job for job in jobs if job.key not in done]
        seconds = {}
        for job in {job.arm.name: job for job in missing}.values():
            seconds[job.arm.name] = time_run(job)
            report("timing", len(seconds), len(protocol.arms))
        per_corruption = {}
        for name in protocol.corruptions if missing else ():
            per_corruption[name] = time_corruption(store, protocol, name)
        return Plan.of(protocol, store, runs.settings, jobs, missing, seconds, per_corruption)


def task_and_protocol(
    task: Task | str,
    train: str | Path,
    tests: Mapping[str, str | Path] | Sequence[str | Path],
    **options: Any,
) -> tuple[Task, Protocol]:
    """Return task and protocol; without a recipe in `options` it is the task's usual one."""
    task = read_task(task)
    recipe = options.pop("recipe", None) or task.usual_recipe(
        options.get("classifier", "small"), pretrained=options.get("pretrained", True)
    )
    protocol = Protocol.of(train, tests, recipe=recipe, **options)
    task.check(protocol)
    return task, protocol


def read_task(task: Task | str) -> Task:
    """Return the task of a name, or the task itself.

    Raises:
        ConfigError: there is no such task.
    """
    found = TASKS.get(task) if isinstance(task, str) else task
    if not isinstance(found, Task):
        raise ConfigError(f"task must be one of {', '.join(TASKS)}, got {task!r}.")
    return found


TASKS: dict[str, Task] = {"classification": Classification(), "segmentation": Segmentation()}
"""Tasks by name, with their usual settings."""


@contextmanager
def prepared(task: Task, protocol: Protocol, report: _Report, *, strict: bool, skip: bool) -> Iterator[Store]:
    """Read all images into a temporary folder, and make each arm once, to find errors early."""
    for spec in protocol.arms:
        Arm(spec).check(masks=task.masks)
    with tempfile.TemporaryDirectory(prefix="styleaug-", ignore_cleanup_errors=True) as folder:
        store = Store.fill(Path(folder), protocol, task.read, report=report)
        if strict and store.failed:
            raise FileError(f"{len(store.failed)} files cannot be read; the first: {store.failed[0][1]}")
        if task.masks and store.failed and not skip:
            raise FileError(
                f"{len(store.failed)} files cannot be used; the first: {store.failed[0][1]} To go on without "
                "such files, give skip=True."
            )
        yield store


@dataclass(frozen=True)
class Job:
    """Everything that a process needs for one run."""

    arm: ArmSpec
    spec: str
    """The line of the arm, and a hash of the files that it reads."""
    seed: int
    task: Task
    protocol: Protocol
    store: Store
    sheet: Path | None = None
    """File for pictures of the results, if the task draws them."""

    @property
    def key(self) -> Key:
        """Return the key of the run: arm and seed."""
        return self.arm.name, self.seed


def plan_jobs(task: Task, protocol: Protocol, store: Store, out: Path | None = None) -> list[Job]:
    """List all runs, seed by seed for all arms, so that an interrupted comparison is fair.

    With a result file the runs of seed 0 draw their results beside it.
    """
    specs = [(arm, f"{arm.spec} #{arm.digest()}") for arm in protocol.arms]
    return [
        Job(arm, spec, seed, task, protocol, store, sheet_beside(out, arm.name) if out and not seed else None)
        for seed in range(protocol.seeds)
        for arm, spec in specs
    ]


def sheet_beside(out: Path, arm: str) -> Path:
    """Return the path of an arm's pictures beside a result file; names that differ get different files."""
    name = re.sub(r"[^\w.+=,-]+", "_", arm)[:60]
    name = name if name == arm else f"{name}-{blake2b(name_bytes(arm), digest_size=3).hexdigest()}"
    return out.with_name(f"{out.stem}_overlays") / f"{name}.png"


def run_one(job: Job) -> Record:
    """Train one network with one arm, and test it on all tests."""
    task, protocol, store = job.task, job.protocol, job.store
    with settled(protocol.each_threads):
        arm, net, train, test = made(job)
        data = store.samples(TRAIN)
        started, worked = time.perf_counter(), time.process_time()
        data = data.at(train)
        with _hooked(net, arm):
            task.fit(net, data, arm, protocol, seed=job.seed, steps=None)
        if protocol.device != "cpu":
            torch.accelerator.synchronize()
        seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - worked
        with _normalised(net, arm):
            cases = dict(tested_cases(job, net, test))
            tested = {name: case.tested for name, case in cases.items()}
            truth = cases[HOME].labels
            corrupted = {}
            for name, severity in product(protocol.corruptions, protocol.severities):
                images = mapped(corrupted_file(job, name, severity))
                found = task.test(net, Samples(images, truth, store.classes), protocol)
                corrupted[f"{name} {severity}"] = found.score
        if job.sheet is not None:
            try:
                task.draw(job.sheet, cases, store.classes)
            except (OSError, FileError) as error:  # the result of the run is worth more than its pictures
                warnings.warn(f"{job.sheet} cannot be written: {error}", stacklevel=2)
        by_class = {name: found.by_class for name, found in tested.items() if found.by_class}
    return {
        "arm": job.arm.name,
        "spec": job.spec,
        "seed": job.seed,
        "scores": {name: round(found.score, 5) for name, found in tested.items()},
        "corrupted": {name: round(score, 5) for name, score in corrupted.items()},
        **({"classes": by_class} if by_class else {}),
        "trained_on": len(train),
        "tested_on": len(truth),
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu_seconds, 2),
        "test_seconds": round(time.perf_counter() - started - seconds, 2),
        "threads": protocol.each_threads,
        "device": protocol.device,
    }


def tested_cases(job: Job, net: Network, test: torch.Tensor) -> Iterator[tuple[str, Case]]:
    """Test a network at home, on the rows `test` or a domain of its own, then in all other domains."""
    store = job.store
    for name in [HOME, *(name for name in store.domains if name not in (HOME, TRAIN))]:
        kept = name in store.domains
        data = store.samples(name) if kept else store.samples(TRAIN).at(test)
        tested = job.task.test(net, data, job.protocol)
        yield name, Case(data.images, data.labels, data.names, tested)


def made(job: Job) -> tuple[Arm, Network, torch.Tensor, torch.Tensor]:
    """Return arm, network, training rows and test rows of a run, drawn from its seed."""
    protocol, store = job.protocol, job.store
    train, test = protocol.split(store.labels(TRAIN), job.seed)
    torch.manual_seed(job.seed)
    net = job.task.network(store.samples(TRAIN), train, protocol)
    net.to(protocol.device).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    arm = Arm(job.arm, seed=job.seed)
    if arm.hooks and not net.early:
        raise ConfigError(
            f"arm {arm.name!r}: {protocol.classifier} has no known place for its changes of features."
        )
    return arm, net, train, test


@contextmanager
def settled(threads: int) -> Iterator[None]:
    """Use this number of threads in the block, and restore torch's global state after it."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _hooked(net: Network, arm: Arm) -> Iterator[None]:
    """Change features after the early blocks, if the arm has mixstyle or dsu."""
    handles = [block.register_forward_hook(hook) for hook in arm.hooks for block in net.early]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _normalised(net: Network, arm: Arm) -> Iterator[None]:
    """Show the network normalised images, if the arm has such a step."""
    handle = net.register_forward_pre_hook(lambda module, images: (arm.at_test(images[0]),))
    try:
        yield
    finally:
        handle.remove()


def corrupted_file(job: Job, name: str, severity: int) -> Path:
    """Return the path of the corrupted home test; a separate home test is the same for all seeds."""
    split = HOME if HOME in job.store.domains else str(job.seed)
    return job.store.folder / f"corrupted-{split}-{name}-{severity}.npy"


@dataclass(frozen=True)
class CorruptionTask:
    """One corruption of one home test, in all severities."""

    job: Job
    name: str


def corruption_tasks(protocol: Protocol, store: Store, jobs: list[Job]) -> list[CorruptionTask]:
    """List the corruptions for these runs, after checking their size on disk."""
    if not protocol.corruptions or not jobs:
        return []
    homes = {corrupted_file(job, "", 0): job for job in jobs}
    held_out = [home_test(job) for job in homes.values()]
    needed = sum(map(len, held_out)) * len(protocol.corruptions) * len(protocol.severities)
    needed *= 3 * protocol.recipe.side**2
    if needed > protocol.memory * 2**30:
        raise FileError(
            f"the corrupted home tests take {needed / 2**30:.1f} GiB on disk, more than "
            f"{protocol.memory:.1f}; take fewer corruptions, limit the images, or allow more memory."
        )
    return [CorruptionTask(job, name) for job in homes.values() for name in protocol.corruptions]


def home_test(job: Job) -> torch.Tensor:
    """Return the rows of the home test in its domain."""
    if HOME in job.store.domains:
        return torch.arange(len(job.store.labels(HOME)))
    return job.protocol.split(job.store.labels(TRAIN), job.seed)[1]


def write_corrupted(task: CorruptionTask) -> None:
    """Corrupt a home test and write it, once for all arms."""
    job, store = task.job, task.job.store
    images = store.images(HOME if HOME in store.domains else TRAIN)
    rows = home_test(job)
    with settled(job.protocol.each_threads):
        for severity in job.protocol.severities:
            parts = [
                corrupt(images[part], task.name, severity, scale=job.protocol.scale, first=start)  # pyright: ignore
                for start, part in zip(
                    range(0, len(rows), CORRUPTED_AT_ONCE), rows.split(CORRUPTED_AT_ONCE), strict=True
                )
            ]
            np.save(corrupted_file(job, task.name, severity), torch.cat(parts).numpy())


def time_run(job: Job) -> tuple[float, float]:
    """Time a few steps of a run, and estimate the seconds of its training and its tests."""
    task, protocol, store = job.task, job.protocol, job.store
    with settled(protocol.each_threads):
        arm, net, train, _ = made(job)
        data = store.samples(TRAIN).at(train)
        clock = []
        for steps in (WARM_STEPS, TIMED_STEPS):
            started = time.perf_counter()
            with _hooked(net, arm):
                task.fit(net, data, arm, protocol, seed=0, steps=steps)
            clock.append(time.perf_counter() - started)
        first = data.at(torch.arange(min(64, len(train))))
        task.test(net, data.at(torch.arange(1)), protocol)  # the first call may import
        started = time.perf_counter()
        with _normalised(net, arm):
            task.test(net, first, protocol)
        tested = (time.perf_counter() - started) / len(first.labels)
    steps = protocol.recipe.epochs * (len(train) // protocol.recipe.batch)
    corrupted = len(home_test(job)) * len(protocol.corruptions) * len(protocol.severities)
    count = len(home_test(job)) + corrupted
    count += sum(domain.images for name, domain in store.domains.items() if name not in (HOME, TRAIN))
    return clock[1] / TIMED_STEPS * steps, tested * count


def time_corruption(store: Store, protocol: Protocol, name: str) -> float:
    """Measure the seconds that a corruption of middle severity takes for one image."""
    images = store.images(TRAIN)[:TIMED_IMAGES]
    started = time.perf_counter()
    corrupt(images, name, protocol.severities[len(protocol.severities) // 2], scale=protocol.scale)  # pyright: ignore
    return (time.perf_counter() - started) / len(images)
