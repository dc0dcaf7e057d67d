"""What styles cost: share of a training step, memory, and how both grow; every generator and preset.

    python benchmarks/cost.py --out benchmarks/results/cost.json
    python benchmarks/cost.py --parts memory step --device cuda --out benchmarks/results/cost_cuda.json

About ten minutes on two cores with nothing beside it. `--parts` measures some anew and keeps the others of
the file. Needs nothing but the shipped weights; matplotlib for the figure. The parts, in their order:

    memory   megabytes that p=1 adds on a uint8 batch of 64 at 224 px, one thread; on a CPU each generator
             in a process of its own
    step     the time of styling a batch, over that of a training step on it in the same round: ResNet-18,
             batch 16, float32 on a CPU; ResNet-50, batch 256, bfloat16, channels last on CUDA
    scaling  milliseconds per image at p=1 for batches of 1 to 256 and sides of 32 to 1024 px, and a figure
    workers  images per second from a DataLoader with 0, 1 and 2 workers: decode JPEG, crop, flip, style at
             p=0.5

Everything that is compared takes turns in one process; medians of the rounds, and their middle half. At p=0.5
exactly half of the rows are picked. Contents and styles are the six photographs in pretrained/samples.
Precision is the default: networks in bfloat16 where the processor is made for it.
"""

import argparse
import json
import multiprocessing
import os
import re
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from io import BytesIO
from pathlib import Path

import torch
import torch.nn.functional as F
from machine import describe_card, machine_card, markdown
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.models import resnet18, resnet50
from torchvision.transforms import v2

from styleaug import StyleAugment, fit_style
from styleaug.transforms.base import AbstractAugment
from styleaug.transforms.presets import MIXTURES
from styleaug.weights import generator_names, load_generator, pretrained_folder

PARTS = ("memory", "step", "scaling", "workers")
SHIPPED = {"adain": "art", "photo": "photo-tones", "patchswap": "art-patches"}
PRESET = "preset "
"""Before the name of a preset."""
PRESETS = [f"{PRESET}{name}" for name in MIXTURES]
KINDS = ("reinhard-rgb", "fourier", "macenko", "photo", "adain", "patchswap", "mask-to-cell", "cell-stains")
"""One generator of each kind, for the scaling."""
IN_WORKERS = ("reinhard-rgb", "photo", "adain", f"{PRESET}unknown")
BATCHES = (1, 4, 16, 64, 256)
SIDES = (32, 64, 128, 224, 512, 1024)
WARM = 3
"""Number of rounds before time is measured."""
LEAST = 3
"""Number of readings of slow calls; other calls have `--rounds`."""
PICTURES = Path(__file__).parents[1] / "docs" / "pictures"
LONG = 2.0
"""A call is slow if its readings take more than this number of seconds."""


def picture(index: int, height: int, width: int) -> Image.Image:
    """Return a crop of one of the six shipped photographs, at another place for each index."""
    files = sorted((pretrained_folder() / "samples").glob("*.jpg"))
    with Image.open(files[index % len(files)]) as image:
        shift = 7 * (index // len(files)) % 64
        right, bottom = (side - 64 + shift for side in image.size)
        return image.convert("RGB").crop((shift, shift, right, bottom)).resize((width, height))


def photographs(count: int, side: int, device: torch.device) -> Tensor:
    """Make a batch of photographs, uint8."""
    rows = [v2.functional.pil_to_tensor(picture(index, side, side)) for index in range(min(count, 30))]
    return torch.stack([rows[index % len(rows)] for index in range(count)]).to(device)


def transform(name: str, p: float, *, compiled: bool = False) -> AbstractAugment:
    """Make the transform that draws styles for this generator, or that of a preset."""
    if name.startswith(PRESET):
        return StyleAugment.preset(name.removeprefix(PRESET), p=p, compiled=compiled)
    if name in SHIPPED:
        return StyleAugment(SHIPPED[name], p=p, compiled=compiled)
    if load_generator(name).has_prior:
        return StyleAugment(generator=name, p=p, compiled=compiled)
    bank = fit_style(pretrained_folder() / "samples", generator=name, min_images=1).bank
    return StyleAugment(bank, p=p, compiled=compiled)


def styled(augment: AbstractAugment, images: Tensor) -> Callable[[], object]:
    """Make the call that draws and styles; it picks the same number of rows each time."""
    wanted, seed = round(augment.p * len(images)), 0
    while len(augment.make_params(images, rng=torch.Generator().manual_seed(seed))["rows"]) != wanted:
        seed += 1

    def call() -> object:
        rng = torch.Generator().manual_seed(seed)
        return augment.apply(images, augment.make_params(images, rng=rng))

    return call


def readings(
    calls: dict[str, Callable[[], object]], device: torch.device, rounds: int
) -> dict[str, list[float]]:
    """Time the calls in turns, in seconds; fewer readings where all that is asked would take long."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    times: dict[str, list[float]] = {name: [] for name in calls}
    spent = 0.0
    for turn in range(-min(WARM, rounds), rounds):
        if spent > LONG * len(calls) and (turn >= LEAST or -min(WARM, rounds) < turn < 0):
            if turn > 0:
                break
            continue
        for name, call in calls.items():
            wait()
            start = time.perf_counter()
            call()
            wait()
            taken = time.perf_counter() - start
            spent += taken
            times[name] += [taken] * (turn >= 0)
    return times


def spread(values: list[float]) -> str:
    """Name the middle half."""
    if len(values) < 2:
        return ""
    low, _, high = statistics.quantiles(values, n=4)
    return f"{low:.3g} to {high:.3g}"


def training_step(model: nn.Module, labels: Tensor, *, bfloat16: bool) -> Callable[[Tensor], None]:
    """Make a training step of plain SGD with momentum on uint8 images."""
    layout = torch.channels_last if bfloat16 else torch.contiguous_format
    model = model.to(memory_format=layout)  # pyright: ignore[reportCallIssue]
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def step(images: Tensor) -> None:
        floats = (images.float() / 255).contiguous(memory_format=layout)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=bfloat16):
            loss = F.cross_entropy(model(floats), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    return step


def step_part(args: argparse.Namespace) -> dict[str, dict]:
    """Measure the share of a training step, for each number of threads."""
    device, tables = torch.device(args.device), {}
    cuda = device.type == "cuda"
    name, make, batch = ("ResNet-50", resnet50, 256) if cuda else ("ResNet-18", resnet18, 16)
    batch, side = (4, 32) if args.quick else (batch, 224)
    images = photographs(batch, side, device)
    labels = torch.arange(batch, device=device)
    step = training_step(make().to(device), labels, bfloat16=cuda)
    for threads in args.threads if not cuda else [1]:
        torch.set_num_threads(threads)
        calls: dict[str, Callable[[], object]] = {"step": partial(step, images)}
        for generator in args.generators:
            for p in (0.5, 1.0):
                calls[f"{generator} {p}"] = styled(transform(generator, p), images)
        times = readings(calls, device, args.rounds)
        base = times["step"]
        rows = {f"{name} step": {"images/s": three(batch / statistics.median(base)), "spread": ""}}
        rows[f"{name} step"]["spread"] = spread([batch / x for x in base])
        for generator in args.generators:
            rows[generator] = {
                "images/s": three(batch / statistics.median(times[f"{generator} 1.0"])),
                "spread": spread([batch / x for x in times[f"{generator} 1.0"]]),
            }
            for p in (0.5, 1.0):
                shares = [100 * x / y for x, y in zip(times[f"{generator} {p}"], base, strict=True)]
                rows[generator][f"% of a step, p={p:g}"] = three(statistics.median(shares))
                rows[generator][f"spread, p={p:g}"] = spread(shares)
        where = f"batch {batch} at {side} px, " + ("CUDA" if cuda else f"{threads} CPU threads")
        tables[f"Share of a training step of {name}, {where}"] = rows
    return tables


def three(value: float) -> float:
    """Round to three digits."""
    return float(f"{value:.3g}")


def memory_part(args: argparse.Namespace) -> dict[str, dict]:
    """Measure the memory that styling adds to a batch."""
    batch, side = (8, 64) if args.quick else (64, 224)
    rows = {}
    for name in args.generators:
        if torch.device(args.device).type == "cuda":
            megabytes = added_on_cuda(name, batch, side)
        else:
            # The fork knows the libraries, and nothing of the other generators.
            torch.set_num_threads(1)
            context = multiprocessing.get_context("fork")
            here, there = context.Pipe(duplex=False)
            child = context.Process(target=lambda n=name, end=there: end.send(added(n, batch, side)))
            child.start()
            there.close()
            megabytes = here.recv()
            child.join()
        rows[name] = {"MB": three(megabytes)}
    return {f"Memory that p=1 adds on a uint8 batch of {batch} at {side} px": rows}


def added(name: str, batch: int, side: int) -> float:
    """Measure the megabytes by which a call raises the peak of this process."""
    augment = transform(name, 1.0)
    images = photographs(batch, side, torch.device("cpu"))
    call = styled(augment, images)
    styled(augment, images[:1, :, :32, :32].contiguous())()
    status = Path("/proc/self/status")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew, at what is held now

    def read(field: str) -> int:
        return int(re.findall(rf"{field}:\s+(\d+)", status.read_text())[0])

    before = read("VmRSS")
    call()
    return (read("VmHWM") - before) / 1024


def added_on_cuda(name: str, batch: int, side: int) -> float:
    """Measure the megabytes by which a call raises the peak of the device."""
    call = styled(transform(name, 1.0), photographs(batch, side, torch.device("cuda")))
    call()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def scaling_part(args: argparse.Namespace) -> dict[str, dict]:
    """Measure milliseconds per image against batch, side and threads."""
    device, tables = torch.device(args.device), {}
    settings = [(batch, 224) for batch in BATCHES] + [(4, side) for side in SIDES if side != 224]
    settings = [(1, 32), (2, 32)] if args.quick else sorted(settings)
    kinds = [name for name in KINDS if name in args.generators]
    augments = {name: transform(name, 1.0) for name in kinds}
    for threads in args.threads if device.type == "cpu" else [1]:
        torch.set_num_threads(threads)
        rows = {}
        for batch, side in settings:
            images = photographs(batch, side, device)
            times = readings({n: styled(a, images) for n, a in augments.items()}, device, args.rounds)
            found = {name: three(1000 * statistics.median(x) / batch) for name, x in times.items()}
            rounds = len(next(iter(times.values()), ()))
            rows[f"batch {batch}, {side} px"] = {"batch": batch, "side": side, "rounds": rounds, **found}
        where = "CUDA" if device.type == "cuda" else f"{threads} CPU threads"
        tables[f"Milliseconds per image, {where}"] = rows
    return tables


class Photographs(Dataset):
    """JPEG files in memory behind a transform."""

    def __init__(self, count: int, transform: Callable[[Image.Image], Tensor]):
        self.files, self.count, self.transform = [], count, transform
        for index in range(min(count, 24)):
            file = BytesIO()
            picture(index, 256, 320).save(file, "JPEG", quality=90)
            self.files.append(file.getvalue())

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Tensor:
        return self.transform(Image.open(BytesIO(self.files[index % len(self.files)])).convert("RGB"))


def workers_part(args: argparse.Namespace) -> dict[str, dict]:
    """Measure images per second from a DataLoader, with styles in its workers."""
    torch.set_num_threads(1)
    count, batch, side = (8, 4, 32) if args.quick else (384, 32, 224)
    names = [name for name in IN_WORKERS if name in args.generators]
    arms = {"none": []} | {name: [transform(name, 0.5)] for name in names}
    rows: dict[str, dict] = {name: {} for name in arms}
    for workers in (0, 1) if args.quick else (0, 1, 2):
        rates: dict[str, list[float]] = {name: [] for name in arms}
        for turn in range(-1, max(1, args.rounds // 2)):
            for name, augment in arms.items():
                geometry = [v2.RandomResizedCrop(side), v2.RandomHorizontalFlip()]
                chain = v2.Compose([*geometry, *augment, v2.PILToTensor()])
                batches = iter(DataLoader(Photographs(count, chain), batch, num_workers=workers))
                next(batches)  # workers are up
                start = time.perf_counter()
                read = sum(len(images) for images in batches)
                rates[name] += [read / (time.perf_counter() - start)] * (turn >= 0)
        for name, found in rates.items():
            rows[name][f"images/s, {workers} workers"] = three(statistics.median(found))
            rows[name][f"spread, {workers}"] = spread(found)
    return {f"A DataLoader with StyleAugment(p=0.5) in its workers, {side} px": rows}


MEASURES = {"memory": memory_part, "step": step_part, "scaling": scaling_part, "workers": workers_part}


def save(out: Path | None, parts: dict[str, dict]) -> str:
    """Write the measurements so far as JSON and as tables beside it; return the tables."""
    lines = ["# What styles cost", "", *(__doc__ or "").split("\n\n")[-1].strip().splitlines()]
    head = ""
    for made in (parts[part] for part in PARTS if part in parts):
        before, head = head, f"`{made['command']}`\n\n{describe_card(made['machine'])}"
        lines += ["", head] if head != before else []
        for title, rows in made["tables"].items():
            lines += ["", f"## {title}", "", *markdown(rows)]
    text = "\n".join(lines) + "\n"
    if out:
        for path, content in ((out, json.dumps(parts, indent=1) + "\n"), (out.with_suffix(".md"), text)):
            beside = path.with_name(path.name + ".part")
            beside.write_text(content)
            os.replace(beside, path)
    return text


def draw(tables: dict[str, dict], path: Path) -> None:
    """Plot milliseconds per image against the batch, and against pixels; dashed with two threads."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for rows, line in zip(tables.values(), ("-", "--"), strict=False):
        for number, name in enumerate(name for name in KINDS if name in next(iter(rows.values()))):
            by_batch = sorted((row["batch"], row[name]) for row in rows.values() if row["side"] == 224)
            by_side = sorted((row["side"] ** 2, row[name]) for row in rows.values() if row["batch"] == 4)
            label = name if line == "-" else None
            left.plot(*zip(*by_batch, strict=True), f"o{line}", color=f"C{number}", label=label, markersize=3)
            right.plot(*zip(*by_side, strict=True), f"o{line}", color=f"C{number}", markersize=3)
    left.set(xscale="log", yscale="log", xlabel="images in a batch, 224 px", ylabel="ms per image")
    right.set(xscale="log", yscale="log", xlabel="pixels of an image, batch 4")
    figure.legend(loc="outside right center", fontsize="small")
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--generators", nargs="+", default=[*generator_names(), *PRESETS])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--quick", action="store_true", help="Two generators and a preset, tiny images, one round."
    )
    parser.add_argument("--out", type=Path, help="JSON; the tables and the figure are written beside it.")
    args = parser.parse_args()
    if args.quick:
        args.generators, args.threads, args.rounds = ["reinhard-rgb", "photo", "preset unknown"], [1], 1
    parts = json.loads(args.out.read_text()) if args.out and args.out.exists() else {}
    for part in (part for part in PARTS if part in args.parts):
        start = time.perf_counter()
        tables = MEASURES[part](args)
        parts[part] = {
            "command": " ".join(["python", *sys.argv]),
            "machine": machine_card(),
            "minutes": round((time.perf_counter() - start) / 60, 1),
            "tables": tables,
        }
        save(args.out, parts)
        print(f"{part}: {parts[part]['minutes']:g} minutes", file=sys.stderr, flush=True)
    print(save(args.out, parts))
    if args.out and "scaling" in args.parts and not args.quick:
        draw(parts["scaling"]["tables"], PICTURES / f"{args.out.stem}.svg")


if __name__ == "__main__":
    main()
