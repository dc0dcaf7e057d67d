"""Does a white-blood-cell classifier survive a change of laboratory? Train in one, test in four.

    STYLEAUG_DATA=... STYLEAUG_WEIGHTS=... python benchmarks/wbc.py --seeds 3 --jobs 2

Data: `$STYLEAUG_DATA/wbc`, four classes, four laboratories. `--homes` are those trained in, one at a
time: `pbc`, `tecom`. Each seed draws 100 images of each class there, or four fifths of a class with
fewer than 125, repeated up to 100; the rest is the home test. The classifier never trains on an image
of the other three laboratories: it is tested there.

Banks: `styleaug fit-style`, with its defaults, is called once for each of the three laboratories, on a
flat folder of its images under names without classes; each styled row takes one of the three banks.
BY DEFAULT THESE ARE THE IMAGES THAT ARE TESTED ON, without their labels: the protocol is transductive,
as when a laboratory adapts to a pile of its own slides. `--bank-split half` is the cleaner protocol:
banks see one half of each laboratory, tests use the other. The halves are the same for every arm and seed.

Every arm has the same steps, batches, initial weights and geometry (see `Geometry`), drawn from
the seed, so arms are compared pairwise. Styling and jitter act on the whole image before geometry.
No epoch is selected: the last one counts. No test-time augmentation.

Runs are kept in `--out` one by one; a finished (protocol, classifier, arm, seed) is not run again.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from itertools import product
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from machine import describe_card, machine_card
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2
from wbc_results import HOMES, Key, Run, append_run, finished, forget, others, write_table

from styleaug.evaluation.classifiers import make_classifier
from styleaug.evaluation.fitting import Augment, Images, Recipe, balanced_accuracy, fit

ROOT = Path(__file__).parents[1]
CLASSES = ("neutrophil", "lymphocyte", "monocyte", "eosinophil")
TRAIN_PER_CLASS = 100
CLASSIFIERS = {"scratch": "small", "squeezenet": "squeezenet"}
RECIPES = {  # tuned on the home score and the time only
    "scratch": Recipe(side=64, epochs=50, lr=4e-3),
    "squeezenet": Recipe(side=128, epochs=16, lr=2e-4, batch=16),
}


@dataclass(frozen=True)
class Arm:
    """What is done to colour and texture. With several banks each row is given to one of them.

    So every styling arm styles the same share `p` of the rows, and `both` is not `color` plus more.
    """

    fitted: tuple[str, ...] = ()  # generators with a bank fitted on each of the other laboratories
    shipped: tuple[str, ...] = ()  # banks that come with styleaug
    alone: tuple[str, ...] = ()  # generators without a bank
    jitter: bool = False
    p: float = 0.5
    strength: tuple[float, float] = (0.5, 1.0)
    sampler: str = "uniform"
    preserve: float | None = None  # the structure guard's floor


GUARDED = ("color", "photo", "adain", "macenko", "randstainna")
ARMS = {
    "none": Arm(),
    "jitter": Arm(jitter=True),
    "color": Arm(fitted=("reinhard-rgb",)),
    "photo": Arm(fitted=("photo",)),
    "adain": Arm(fitted=("adain",)),
    "both": Arm(fitted=("reinhard-rgb", "adain")),
    "macenko": Arm(fitted=("macenko",)),
    "vahadane": Arm(fitted=("vahadane",)),
    "randstainna": Arm(fitted=("randstainna",), sampler="gaussian"),
    "hed-jitter": Arm(alone=("hed-jitter",)),
    "hed-jitter-strong": Arm(alone=("hed-jitter-strong",)),
    "histogram": Arm(fitted=("histogram",)),
    "fourier": Arm(fitted=("fourier",)),
    "vaegan": Arm(fitted=("cell-stains",)),
    "color-lab": Arm(fitted=("reinhard-lab",)),
    "adain-art": Arm(shipped=("art",)),
    "jitter+color": Arm(fitted=("reinhard-rgb",), jitter=True),
    "jitter+adain": Arm(fitted=("adain",), jitter=True),
    "jitter+both": Arm(fitted=("reinhard-rgb", "adain"), jitter=True),
}
ARMS |= {f"{name}+guard": replace(ARMS[name], preserve=0.9) for name in GUARDED}
MAIN_ARMS = (
    "none",
    "jitter",
    "color",
    "photo",
    "adain",
    "both",
    "macenko",
    "vahadane",
    "randstainna",
    "hed-jitter",
)
MAIN_ARMS += tuple(f"{name}+guard" for name in GUARDED)


def make_augment(arm: Arm, banks: dict[str, list[Path]]) -> Augment:
    """Build the colour and texture part of an arm: float images in [0, 1] to the same."""
    styles = []
    if arm.fitted or arm.shipped or arm.alone:
        from styleaug import StyleAugment

        options = {"p": arm.p, "strength": arm.strength, "sampler": arm.sampler}
        options |= {"preserve": arm.preserve} if arm.preserve else {}
        styles += [StyleAugment(str(bank), **options) for name in arm.fitted for bank in banks[name]]
        styles += [StyleAugment(name, **options) for name in arm.shipped]
        styles += [StyleAugment(generator=name, **options) for name in arm.alone]
    jitter = v2.Compose([v2.ColorJitter(0.4, 0.4, 0.4, 0.1), v2.RandomGrayscale(0.2)])

    def augment(images: Images) -> Images:
        if styles:
            owner = torch.randint(len(styles), (len(images),)).to(images.device)
            for index, style in enumerate(styles):
                rows = (owner == index).nonzero().squeeze(1)
                if len(rows):
                    images = images.index_copy(0, rows, style(images[rows]))
        if arm.jitter:  # torchvision draws once per call: one call per image
            images = torch.stack([jitter(image) for image in images])
        return images

    return augment


@cache
def load_lab(folder: Path, lab: str, side: int) -> tuple[Tensor, Tensor, list[str]]:
    """Decode one laboratory to uint8 `(N, 3, side, side)`, labels `(N,)`, paths, in index order."""
    images, labels, paths = [], [], lab_paths(folder, lab)
    paths = [path for path in paths if Path(path).parent.name in CLASSES]
    for path in paths:
        with Image.open(folder / path) as image:
            small = image.convert("RGB").resize((side, side), Image.Resampling.BILINEAR)
        images.append(torch.from_numpy(np.array(small)).permute(2, 0, 1))
        labels.append(CLASSES.index(Path(path).parent.name))
    return torch.stack(images), torch.tensor(labels), paths


def lab_paths(folder: Path, lab: str) -> list[str]:
    """List the images of a laboratory, basophils among them, by the index."""
    rows = [line.split("\t") for line in (folder / "index.tsv").read_text().splitlines()[1:]]
    return sorted(path for path, domain, _ in rows if domain == lab)


def bank_paths(folder: Path, lab: str, bank_split: str) -> list[str]:
    """Choose the images that a laboratory's bank is fitted on: all of them, or half.

    No label is looked at, so basophils are in too.
    """
    paths = np.random.default_rng(0).permutation(lab_paths(folder, lab)).tolist()
    return paths if bank_split == "all" else paths[: len(paths) // 2]


def fit_bank(generator: str, folder: Path, paths: list[str], bank: Path, max_styles: int) -> float:
    """Fit a bank as a user does, by the CLI on a folder; return the seconds it took."""
    with tempfile.TemporaryDirectory() as unlabelled:
        for number, path in enumerate(paths):
            (Path(unlabelled) / f"{number:04d}{Path(path).suffix}").symlink_to(folder / path)
        command = ["-m", "styleaug", "fit-style", unlabelled, "-o", str(bank)]
        command += ["--generator", generator, "--max-styles", str(max_styles)]
        started = time.perf_counter()
        done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"styleaug fit-style --generator {generator}: {done.stderr}")
    return time.perf_counter() - started


def split_home(labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Draw `TRAIN_PER_CLASS` rows of each class to train on; the others are the home test.

    Of a class with few images four fifths are taken, again and again up to that number.
    """
    rng = torch.Generator().manual_seed(seed)
    train, test = [], []
    for label in range(len(CLASSES)):
        rows = (labels == label).nonzero().squeeze(1)
        rows = rows[torch.randperm(len(rows), generator=rng)]
        taken = min(TRAIN_PER_CLASS, len(rows) * 4 // 5)
        train.append(rows[:taken].repeat(-(-TRAIN_PER_CLASS // taken))[:TRAIN_PER_CLASS])
        test.append(rows[taken:])
    return torch.cat(train), torch.cat(test)


@dataclass(frozen=True)
class Job:
    """All that a worker needs for one run."""

    home: str
    classifier: str
    arm: str
    seed: int
    bank_split: str
    recipe: Recipe
    wbc: Path
    weights: Path
    threads: int
    device: str
    banks: dict[str, list[Path]] = field(default_factory=dict)

    @property
    def key(self) -> Key:
        return self.home, self.bank_split, self.classifier, self.arm, self.seed

    @property
    def settings(self) -> dict[str, object]:
        """What a run of the same key must share, to stand in the same table."""
        return {"recipe": self.recipe.to_dict(), "arm_settings": asdict(ARMS[self.arm])}


def run(job: Job) -> Run:
    """Train one classifier under one arm and test it in every laboratory."""
    torch.set_num_threads(job.threads)
    images, labels, _ = load_lab(job.wbc, job.home, job.recipe.side)
    train, test = split_home(labels, job.seed)

    torch.manual_seed(job.seed)
    net = make_classifier(CLASSIFIERS[job.classifier], len(CLASSES), weights=job.weights)
    net.to(job.device).to(memory_format=torch.channels_last)
    augment = make_augment(ARMS[job.arm], job.banks)

    started, worked = time.perf_counter(), time.process_time()
    fit(net, images[train], labels[train], augment, job.recipe, seed=job.seed, device=job.device)
    scores = {job.home: balanced_accuracy(net, images[test], labels[test])}  # waits for the device
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - worked
    for lab in others(job.home):
        images, labels, paths = load_lab(job.wbc, lab, job.recipe.side)
        seen = set(bank_paths(job.wbc, lab, job.bank_split)) if job.bank_split == "half" else set()
        rows = [row for row, path in enumerate(paths) if path not in seen]
        scores[lab] = balanced_accuracy(net, images[rows], labels[rows])
    return job.settings | {
        "home": job.home,
        "bank_split": job.bank_split,
        "classifier": job.classifier,
        "arm": job.arm,
        "seed": job.seed,
        "scores": {lab: round(score, 4) for lab, score in scores.items()},
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu_seconds, 1),
        "threads": job.threads,
        "device": job.device,
    }


def fit_banks(
    generators: set[str], labs: set[str], folder: Path, wbc: Path, split: str, n: int
) -> dict[tuple[str, str], Path]:
    """Fit one bank per generator and laboratory, each in its own file."""
    banks = {}
    for generator, lab in sorted((generator, lab) for generator in generators for lab in labs):
        paths = bank_paths(wbc, lab, split)
        bank = banks[generator, lab] = folder / f"{generator}-{lab}.safetensors"
        seconds = fit_bank(generator, wbc, paths, bank, n)
        size = bank.stat().st_size / 1e3
        say(f"bank {generator} {lab}: {len(paths)} images, {size:.0f} kB, {seconds:.0f} s")
    return banks


def banks_for(job: Job, banks: dict[tuple[str, str], Path]) -> dict[str, list[Path]]:
    """Give a job the banks of its generators and of the laboratories that it does not train in."""
    return {name: [banks[name, lab] for lab in others(job.home)] for name in ARMS[job.arm].fitted}


def run_all(jobs: list[Job], processes: int) -> Iterator[Run]:
    """Yield runs as they finish, each process with its own threads."""
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        for done in as_completed([pool.submit(run, job) for job in jobs]):
            yield done.result()


def folder_of(variable: str) -> Path:
    """Read a folder from the environment, or stop."""
    value = os.environ.get(variable, "")
    if not value or not Path(value).is_dir():
        sys.exit(f"wbc: set {variable} to a folder, got {value!r}; see benchmarks/README.md")
    return Path(value).resolve()


def names(known: Iterable[str]) -> Callable[[str], list[str]]:
    """Parse names with commas between them."""

    def parse(text: str) -> list[str]:
        chosen = text.split(",")
        if unknown := set(chosen) - set(known):
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: not of {', '.join(known)}")
        return chosen

    return parse


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--classifiers", type=names(RECIPES), default=",".join(RECIPES), help=" ".join(RECIPES))
    add("--arms", type=names(ARMS), default=",".join(MAIN_ARMS), help=" ".join(ARMS))
    add("--homes", type=names(HOMES), default=",".join(HOMES), help=" ".join(HOMES))
    add("--seeds", type=int, default=3, help="run seeds 0, 1, ... this many")
    add("--bank-split", choices=("all", "half"), default="all")
    add("--max-styles", type=int, default=1000, help="codes in a bank, at most")
    add("--jobs", type=int, default=1, help="runs side by side")
    add("--threads", type=int, default=1, help="of each run")
    add("--device", default="cpu")
    add("--epochs", type=int, help="instead of the recipe's, for a trial in another --out")
    add("--weights", type=Path, help="instead of $STYLEAUG_WEIGHTS")
    add("--out", type=Path, default=Path("benchmarks/results/wbc.json"))
    add("--redo", action="store_true", help="run the chosen ones again")
    return parser.parse_args()


def plan_jobs(args: argparse.Namespace, wbc: Path, weights: Path) -> list[Job]:
    """List the runs that are asked for and missing. One seed of all arms comes before the next."""
    jobs = []
    for seed, home, classifier in product(range(args.seeds), args.homes, args.classifiers):
        recipe = RECIPES[classifier]
        recipe = replace(recipe, epochs=args.epochs or recipe.epochs)
        shared = (args.bank_split, recipe, wbc, weights, args.threads, args.device)
        jobs += [Job(home, classifier, arm, seed, *shared) for arm in args.arms]
    if args.redo:
        forget(args.out, [job.key for job in jobs])
    done = finished(args.out)
    for job in jobs:
        if job.key in done and not same_settings(job, done[job.key]):
            sys.exit(f"wbc: {args.out} has {job.key} with other settings; --redo, or another --out")
    return [job for job in jobs if job.key not in done]


def same_settings(job: Job, run: Run) -> bool:
    """Compare with a run from the file; JSON has no tuples."""
    return json.loads(json.dumps(job.settings)) == {name: run[name] for name in job.settings}


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    """Run what is missing, then write the table beside the result file."""
    args = parse_arguments()
    wbc = folder_of("STYLEAUG_DATA") / "wbc"
    needs_weights = "squeezenet" in args.classifiers and not args.weights
    weights = folder_of("STYLEAUG_WEIGHTS") if needs_weights else args.weights
    jobs = plan_jobs(args, wbc, weights)
    origin = {
        "machine": describe_card(machine_card()),
        "command": f"python benchmarks/wbc.py {shlex.join(sys.argv[1:])}".strip(),
    }
    with tempfile.TemporaryDirectory() as folder:
        generators = {name for job in jobs for name in ARMS[job.arm].fitted}
        labs = {lab for job in jobs for lab in others(job.home)}
        banks = fit_banks(generators, labs, Path(folder), wbc, args.bank_split, args.max_styles)
        jobs = [replace(job, banks=banks_for(job, banks)) for job in jobs]
        for number, result in enumerate(run_all(jobs, args.jobs), start=1):
            append_run(args.out, result | origin)
            scores = " ".join(f"{lab} {score:.3f}" for lab, score in result["scores"].items())
            name = f"{result['home']} {result['classifier']} {result['arm']} seed {result['seed']}"
            say(f"[{number}/{len(jobs)}] {name}: {scores} ({result['seconds']:.0f} s)")
    print(write_table(args.out))


if __name__ == "__main__":
    main()
