"""Images per second of each generator at 224 px, beside the reference VGG-19 AdaIN in one process.

    STYLEAUG_WEIGHTS=WEIGHTS python benchmarks/throughput.py --out benchmarks/results/throughput.json

Batch 1 and 32, styles cached, strength 1; on the CPU with 1 and 2 threads, in float32 and (networks only)
bfloat16; on CUDA where there is one. The generators take turns, so that a slow moment of the machine
hits all of them; each figure is the median over the rounds, its spread the middle half of them. `times
reference` compares medians of the same run. Memory, and the share of a training step, are in `cost.py`.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from machine import describe_card, machine_card
from reference import ReferenceAdaIN

from styleaug.generators.base import keep_freed_memory
from styleaug.weights import TRAINING_FREE, generator_names, load_generator

SIZE = 224
REFERENCE = "AdaIN VGG-19 (reference)"


def timed(call: Callable[[], object], device: torch.device) -> float:
    """Time one call, the device's queue emptied before and after."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def measure(
    generators: dict[str, torch.nn.Module], batch: int, dtype: torch.dtype, device: torch.device, rounds: int
) -> dict[str, dict[str, float]]:
    """Return each generator's median and middle half of images per second."""
    calls = {}
    for name, generator in generators.items():
        if dtype != torch.float32 and name in TRAINING_FREE:
            continue
        generator = generator.to(device, torch.float32)
        images = torch.rand(batch, 3, SIZE, SIZE, device=device).to(memory_format=torch.channels_last)
        codes = generator.encode_style(images.roll(1, 0)).float()
        generator.to(dtype, memory_format=torch.channels_last)
        strength = torch.ones(batch, device=device)
        arguments = (images, codes, strength)
        calls[name] = lambda g=generator, a=arguments: g(*a)
    for call in calls.values():
        timed(call, device)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            # Short calls are repeated, so that the clock does not matter.
            repeats = max(1, int(0.05 / max(seconds[name][-1] if seconds[name] else 0.05, 1e-5)))
            seconds[name].append(timed(lambda c=call, n=repeats: [c() for _ in range(n)], device) / repeats)
    rows = {}
    for name, times in seconds.items():
        low, median, high = statistics.quantiles(times, n=4)
        rows[name] = {
            "images_per_s": round(batch / median, 2),
            "low": round(batch / high, 2),
            "high": round(batch / low, 2),
        }
    for row in rows.values():
        row["times_reference"] = round(row["images_per_s"] / rows[REFERENCE]["images_per_s"], 1)
    return rows


def table(result: dict) -> str:
    """Render the result as Markdown."""
    lines = [
        "# Throughput at 224 px",
        "",
        f"`{result['command']}`",
        "",
        describe_card(result["machine"]),
        "",
        "Images per second (median, middle half of the rounds), and as a multiple of the reference.",
    ]
    for setting, rows in result["settings"].items():
        lines += [
            "",
            f"## {setting}",
            "",
            "| generator | images/s | spread | times reference |",
            "|---|---|---|---|",
        ]
        for name, row in rows.items():
            lines.append(
                f"| {name} | {row['images_per_s']:g} | {row['low']:g} to {row['high']:g} "
                f"| {row['times_reference']:g} |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--out", type=Path, help="JSON; a table is written beside it.")
    args = parser.parse_args()
    keep_freed_memory()  # as `StyleAugment` does; all that is measured here gains by it
    settings = {}
    for device in [torch.device("cpu")] + [torch.device("cuda")] * torch.cuda.is_available():
        for threads in args.threads if device.type == "cpu" else [1]:
            torch.set_num_threads(threads)
            for dtype in (torch.float32, torch.bfloat16):
                for batch in args.batches:
                    generators = {REFERENCE: ReferenceAdaIN(Path(os.environ["STYLEAUG_WEIGHTS"]))}
                    generators |= {name: load_generator(name) for name in generator_names()}
                    where = f"{threads} CPU threads" if device.type == "cpu" else "CUDA"
                    setting = f"{where}, {str(dtype).removeprefix('torch.')}, batch {batch}"
                    with torch.inference_mode():
                        settings[setting] = measure(generators, batch, dtype, device, args.rounds)
                    print(setting, json.dumps(settings[setting]), flush=True)
                    for generator in generators.values():
                        generator.to("cpu", torch.float32)
    result = {
        "command": "python benchmarks/throughput.py " + " ".join(sys.argv[1:]),
        "machine": machine_card(),
        "settings": settings,
    }
    print(table(result))
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")
        args.out.with_suffix(".md").write_text(table(result))


if __name__ == "__main__":
    main()
