"""What a training step costs: time, memory and parameters of every recipe, alone and over two processes.

    STYLEAUG_WEIGHTS=WEIGHTS python benchmarks/training.py --out benchmarks/results/training.json

Every recipe with its `small` preset, on CUDA with `paper` as well, in float32 and bfloat16 mixed
precision. A step is `recipe.step`: all losses, gradients and optimisers; without cutting crops, the
averaged weights, scores and checkpoints. Images are noise, which costs as much as any; DiffAugment in
its `auto` mode has not set in.

Each setting runs in a process of its own, once a round, so that a slow moment of the machine does not
hit one of them alone.

    s/step       median over the steps of all rounds; low, high: the middle half of them
    cpu s/step   time on the processor, which other load on the machine lengthens less
    memory_mb    resident, on CUDA allocated: its peak over the steps, less what the process held
                 before the recipe was made

`processes` rows are `styleaug train cut` on a folder of noise, by the `images_per_second` of its log:
crops are cut, too.
"""

import argparse
import gc
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from machine import publish
from torchvision.utils import save_image

from styleaug.training.base import AbstractRecipe
from styleaug.training.config import PRESETS, PerceptualConfig, preset
from styleaug.training.data import TrainingData
from styleaug.training.fabric import make_fabric
from styleaug.training.recipes import make_recipe

PRECISIONS = ("32-true", "bf16-mixed")
MOST_SECONDS = 600
STYLES = 8
"""Number of images in the folder of noise."""


def write_noise(folder: Path, size: int) -> Path:
    """Write images of noise."""
    folder.mkdir(parents=True)
    for index in range(STYLES):
        save_image(torch.rand(3, size, size), folder / f"{index}.png")
    return folder


def resident(what: str) -> float:
    """Read the megabytes this process holds (`VmRSS`) or has held at most (`VmHWM`)."""
    status = Path("/proc/self/status").read_text()
    found = re.search(rf"{what}:\s+(\d+)", status)
    assert found
    return int(found[1]) / 1024


def forget_peak(device: torch.device) -> None:
    """Reset the peak of memory to the current value."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        Path("/proc/self/clear_refs").write_text("5")


def peak(device: torch.device) -> float:
    """Return the peak of memory since `forget_peak`, in megabytes."""
    return torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else resident("VmHWM")


def millions(recipe: AbstractRecipe, kind: str) -> float:
    """Count the parameters of one generator or one discriminator; 0 if there is none."""
    if kind == "generator":
        network = recipe.products["generator"]
    else:
        network = next((n for name, n in recipe.networks.items() if name.startswith(kind)), None)
    return round(sum(p.numel() for p in network.parameters()) / 1e6, 3) if network else 0.0


def measure(setting: dict[str, str], steps: int, warm_up: int, networks: Path) -> dict[str, Any]:
    """Time the steps of one recipe; run in a process of its own."""
    torch.set_num_threads(1)
    config = preset(setting["recipe"], setting["preset"]).with_options(
        {"precision": setting["precision"], "device": setting["device"]}
    )
    fabric = make_fabric(config)
    device = fabric.device
    gc.collect()
    before = torch.cuda.memory_allocated(device) / 2**20 if device.type == "cuda" else resident("VmRSS")
    recipe = make_recipe(config)
    recipe.setup(fabric)
    if isinstance(config, PerceptualConfig):
        with tempfile.TemporaryDirectory() as folder:
            noise = write_noise(Path(folder) / "noise", config.style_size)
            recipe.prepare(TrainingData(noise, noise, config), Path(folder), networks)
    shape = (config.batch, 3, config.size, config.size)
    images = [torch.rand(shape, device=device).contiguous(memory_format=torch.channels_last) for _ in "ab"]
    forget_peak(device)
    wall, cpu = [], []
    for step in range(warm_up + steps):
        recipe.steps_taken = step
        started = time.perf_counter(), time.process_time()
        with fabric.autocast():
            recipe.step(*images)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        wall.append(time.perf_counter() - started[0])
        cpu.append(time.process_time() - started[1])
    return {
        "wall": wall[warm_up:],
        "cpu": cpu[warm_up:],
        "batch": config.batch,
        "size": config.size,
        "memory_mb": round(peak(device) - before),
        "generator_m": millions(recipe, "generator"),
        "discriminator_m": millions(recipe, "discriminator"),
    }


def summary(runs: list[dict[str, Any]]) -> dict[str, float]:
    """Join the rounds of a setting."""
    wall = [seconds for run in runs for seconds in run["wall"]]
    cpu = [seconds for run in runs for seconds in run["cpu"]]
    low, median, high = statistics.quantiles(wall, n=4)
    first = runs[0]
    return {
        "s/step": round(median, 4),
        "low": round(low, 4),
        "high": round(high, 4),
        "cpu s/step": round(statistics.median(cpu), 4),
        "images/s": round(first["batch"] / median, 2),
        "memory_mb": max(run["memory_mb"] for run in runs),
        **{key: first[key] for key in ("batch", "size", "generator_m", "discriminator_m")},
    }


def settings(recipes: list[str]) -> Iterator[dict[str, str]]:
    """Name all that is measured."""
    sizes = {"cpu": ["small"], "cuda": ["small", "paper"] if torch.cuda.is_available() else []}
    for device in sizes:
        for recipe, size, precision in product(recipes, sizes[device], PRECISIONS):
            yield {"recipe": recipe, "preset": size, "precision": precision, "device": device}


def run_together(command: list[str], environment: dict[str, str]) -> None:
    """Run a command; end it with all processes it started when it takes longer than `MOST_SECONDS`."""
    with subprocess.Popen(
        command, env=environment, start_new_session=True, stderr=subprocess.PIPE, text=True
    ) as leader:
        try:
            _, said = leader.communicate(timeout=MOST_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(leader.pid, signal.SIGKILL)
            raise SystemExit(f"did not end within {MOST_SECONDS} s: {' '.join(command)}") from None
    if leader.returncode:
        raise SystemExit(f"failed: {' '.join(command)}\n{said}")


def processes(count: int, threads: int, steps: int) -> dict[str, float]:
    """Read the speed of `styleaug train cut` with `count` processes from its log."""
    config = preset("cut")
    with tempfile.TemporaryDirectory() as folder:
        noise = write_noise(Path(folder) / "noise", round(config.zoom * config.size))
        run = Path(folder) / "run"
        command = [sys.executable, "-m", "styleaug", "train", "cut", str(noise), str(noise), "-o", str(run)]
        options = {"device": "cpu", "devices": count, "steps": steps, "score_every": steps}
        for name, value in options.items():
            command += [f"--{name.replace('_', '-')}", str(value)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        run_together(command, environment)
        rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    logged = [row for row in rows if row["event"] == "losses" and row["step"] > 3]
    speeds = [row["images_per_second"] for row in logged]
    low, median, high = statistics.quantiles(speeds, n=4)
    return {
        "s/step": round(config.batch / median, 4),
        "low": round(config.batch / high, 4),
        "high": round(config.batch / low, 4),
        "images/s": round(median, 2),
        "batch": config.batch,
        "size": config.size,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipes", nargs="*", default=list(PRESETS["small"]))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=6, help="Timed in each round.")
    parser.add_argument("--warm-up", type=int, default=3)
    parser.add_argument("--processes", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--process-steps", type=int, default=40)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    networks, load = Path(os.environ["STYLEAUG_WEIGHTS"]), os.getloadavg()[0]
    runs: dict[str, list[dict[str, Any]]] = {}
    for turn in range(args.rounds):
        for setting in settings(args.recipes):
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:
                run = alone.submit(measure, setting, args.steps, args.warm_up, networks).result()
            name = "{recipe}, {preset}, {precision}, {device}".format(**setting)
            runs.setdefault(name, []).append(run)
            print(f"round {turn + 1}", name, f"{statistics.median(run['wall']):.3f} s", flush=True)
    rows = {name: summary(both) for name, both in runs.items()}
    notes = (
        f"{args.rounds} rounds of {args.steps} steps on one thread, after {args.warm_up} each. Load of the "
        f"machine at the start, which should be near 0: {load:.1f}. `generator_m` and `discriminator_m` are "
        "millions of parameters of one; cyclegan trains two of each."
    )
    publish(args.out, "Training steps", rows, notes=notes)
    if args.processes:
        for count, threads in ((1, 1), (1, 2), (2, 1)):
            name = f"styleaug train cut, 32-true, cpu, processes: {count}, threads each: {threads}"
            rows[name] = processes(count, threads, args.process_steps)
            print(name, rows[name], flush=True)
    print(publish(args.out, "Training steps", rows, notes=notes))


if __name__ == "__main__":
    main()
