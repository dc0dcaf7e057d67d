"""Does the real nnU-Net train with our trainer, in two and three dimensions, and what does styling cost it?

    STYLEAUG_DATA=DATA python benchmarks/nnunet.py --out benchmarks/results/nnunet.json

In an environment with the extra `nnunet`. For `2d` on images of nuclei (stained tissue, RGB, 128x128 px) and
for `3d_fullres` on synthetic volumes (16x64x64 voxels, one channel): plan, preprocess, and one epoch of three
iterations by `nnUNetv2_train -tr nnUNetTrainerStyle`, whose log says the losses and the Dice. Then iterations
in this process, on one thread, arm by arm in turns: a batch of 2 from the loader, with all of nnU-Net's own
augmentation, and a step of the network as planned.

    s/iteration     median over the rounds, loader and step; seconds of the processor, which other load on
                    the machine lengthens less than those of the clock
    loader_s        of it the loader, its transforms in this process
    styling_ms      of it the styling of the batch; every image is styled, so p=0.5 costs half of it
    ratio           s/iteration over that of the arm without styles
    styling_percent styling_ms as a share of an iteration without styles

`--configurations 2d` measures that one anew and keeps the rows of the other. On a GPU both the step and the
styling are faster, so the shares differ.
"""

import argparse
import csv
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import publish
from PIL import Image

STYLES = {
    "gin": {"generator": "gin", "strength": (0.0, 1.0)},
    "art": {"bank": "art"},
}
TRAINER = """
from styleaug.transforms.nnunet import StyleTrainer


class nnUNetTrainerStyle(StyleTrainer):
    styles = {"generator": "gin", "strength": (0.0, 1.0), "p": 0.5}

    def __init__(self, plans, configuration, fold, dataset_json, device):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 1, 3, 1
"""
CONFIGURATIONS = ("2d", "3d_fullres")
CASES = 6
"""Of each data set; nnU-Net trains on 4 or 5 of them."""


def write_nuclei(folder: Path, data: Path, side: int, cases: int) -> dict[str, Any]:
    """Write corners of images of stained tissue and their masks; return what dataset.json says of them."""
    index = csv.DictReader((data / "nuclei" / "index.tsv").open(), delimiter="\t")
    rows = [row for row in index if row["domain"] == "dsb_tissue_stain"][:cases]
    for number, row in enumerate(rows):
        with Image.open(data / "nuclei" / row["path"]) as image:
            corner = image.convert("RGB").crop((0, 0, side, side))
        corner.save(folder / "imagesTr" / f"case{number}_0000.png")
        with Image.open(data / "nuclei" / row["mask"]) as mask:
            inside = np.asarray(mask.convert("L").crop((0, 0, side, side))) > 127
        Image.fromarray(inside.astype(np.uint8)).save(folder / "labelsTr" / f"case{number}.png")
    channels = {"0": "red", "1": "green", "2": "blue"}
    return {"channel_names": channels, "labels": {"background": 0, "nucleus": 1}, "file_ending": ".png"}


def write_volumes(folder: Path, shape: tuple[int, int, int], cases: int) -> dict[str, Any]:
    """Write volumes of noise with a bright ball; return what dataset.json says of them."""
    import SimpleITK as sitk

    rng, axes = np.random.default_rng(0), np.indices(shape)
    for number in range(cases):
        centre = np.array([rng.integers(side // 3, side - side // 3) for side in shape])
        ball = ((axes - centre[:, None, None, None]) ** 2).sum(0) < (min(shape) / 4) ** 2
        volume = (rng.normal(90, 12, shape) + 60 * ball).astype(np.float32)
        sitk.WriteImage(sitk.GetImageFromArray(volume), folder / "imagesTr" / f"case{number}_0000.nii.gz")
        sitk.WriteImage(
            sitk.GetImageFromArray(ball.astype(np.uint8)), folder / "labelsTr" / f"case{number}.nii.gz"
        )
    return {
        "channel_names": {"0": "MR"},
        "labels": {"background": 0, "ball": 1},
        "file_ending": ".nii.gz",
    }


def prepare(root: Path, number: int, configuration: str, described: dict[str, Any], cases: int) -> None:
    """Plan and preprocess a data set by nnU-Net's own command; set the batch to 2."""
    folder = data_set(root, number)
    described |= {"numTraining": cases}
    (folder / "dataset.json").write_text(json.dumps(described))
    options = ["-d", str(number), "-c", configuration, "-np", "1", "-npfp", "1"]
    call("nnUNetv2_plan_and_preprocess", *options, nnUNet_n_proc_DA="1")  # the planner refuses 0
    plans = root / "preprocessed" / folder.name / "nnUNetPlans.json"
    planned = json.loads(plans.read_text())
    planned["configurations"][configuration]["batch_size"] = 2
    plans.write_text(json.dumps(planned))


def data_set(root: Path, number: int) -> Path:
    """Return the folder of a data set, made if it is not there."""
    folder = root / "raw" / f"Dataset{number:03}_Benchmark"
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    return folder


def call(command: str, *arguments: str, **environment: str) -> None:
    """Run one of nnU-Net's commands."""
    words = [Path(sys.executable).parent / command, *arguments]
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, **environment})
    if done.returncode:
        raise SystemExit(f"{command} failed:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")


def train(root: Path, number: int, configuration: str) -> dict[str, Any]:
    """Train an epoch with `nnUNetv2_train`, predict the validation cases, and read the log."""
    call("nnUNetv2_train", str(number), configuration, "0", "-tr", "nnUNetTrainerStyle", "-device", "cpu")
    results = (
        root / "results" / data_set(root, number).name / f"nnUNetTrainerStyle__nnUNetPlans__{configuration}"
    )
    (log,) = (results / "fold_0").glob("training_log_*.txt")
    said = log.read_text()
    loss, validation = (re.search(rf"{name}_loss (-?[\d.]+)", said) for name in ("train", "val"))
    dice = re.search(r"Mean Validation Dice:\s+([\d.]+)", said)
    assert loss and validation and dice and (results / "fold_0" / "checkpoint_final.pth").exists(), said[
        -2000:
    ]
    return {
        "train_loss": float(loss[1]),
        "validation_loss": float(validation[1]),
        "validation_dice": round(float(dice[1]), 3),
    }


def measure(number: int, configuration: str, rounds: int) -> dict[str, dict[str, Any]]:
    """Time iterations without and with styles, in turns."""
    from nnunetv2.run.run_training import get_trainer_from_args

    trainer = get_trainer_from_args(
        str(number), configuration, 0, "nnUNetTrainerStyle", device=torch.device("cpu")
    )
    trainer.initialize()
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    painters = {}
    for name, styles in STYLES.items():
        type(trainer).styles = {**styles, "p": 1.0}
        trainer.read_styles(trainer.num_input_channels)
        painters[name] = trainer.stylizer
    painters["none"] = trainer.stylizer.with_p(0.0)
    loader, styling = trainer.dataloader_train, 0.0
    stylise = trainer.stylise

    def timed(data: torch.Tensor) -> torch.Tensor:
        nonlocal styling
        started = time.process_time()
        styled = stylise(data)
        styling = time.process_time() - started
        return styled

    trainer.stylise = timed
    readings: dict[str, list[tuple[float, float, float]]] = {name: [] for name in ["none", *STYLES]}
    shape: tuple[int, ...] = ()
    for turn in range(rounds + 1):
        for name, found in readings.items():
            trainer.stylizer = painters[name]
            started = time.process_time()
            batch = next(loader)
            loaded = time.process_time() - started
            trainer.train_step(batch)
            if turn:  # the first round warms up
                found.append((time.process_time() - started, loaded, styling))
            shape = tuple(batch["data"].shape)
    return {
        f"{configuration}, {name}": summary(found, readings["none"], shape)
        for name, found in readings.items()
    }


def summary(
    found: list[tuple[float, float, float]], plain: list[tuple[float, float, float]], shape: tuple[int, ...]
) -> dict[str, Any]:
    """Return the medians of an arm's readings, beside those of the arm without styles."""
    total, loader, styling = (statistics.median(column) for column in zip(*found, strict=True))
    without = statistics.median(row[0] for row in plain)
    low, _, high = statistics.quantiles([row[0] for row in found], n=4) if len(found) > 1 else 3 * (total,)
    return {
        "batch": "x".join(map(str, shape)),
        "s/iteration": round(total, 3),
        "middle half": f"{low:.3f} to {high:.3f}",
        "loader_s": round(loader, 3),
        "styling_ms": round(1000 * styling, 1),
        "ratio": round(total / without, 3),
        "styling_percent": round(100 * styling / without, 2),
    }


def environment(root: Path) -> dict[str, str]:
    """Return what nnU-Net reads from the environment: folders, no further processes, no compiler."""
    folders = {f"nnUNet_{name}": str(root / name) for name in ("raw", "preprocessed", "results")}
    plain = {"nnUNet_n_proc_DA": "0", "nnUNet_compile": "f", "nnUNet_def_n_proc": "1", "OMP_NUM_THREADS": "1"}
    return {"nnUNet_extTrainer": str(root / "trainers"), **folders, **plain}


def run(root: Path, configuration: str, rounds: int) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Make a data set, train on it, and measure; return the log's figures and the rows."""
    load = round(os.getloadavg()[0], 1)
    number = CONFIGURATIONS.index(configuration) + 1
    made = data_set(root, number)
    if configuration == "2d":
        described = write_nuclei(made, Path(os.environ["STYLEAUG_DATA"]), 128, CASES)
    else:
        described = write_volumes(made, (16, 64, 64), CASES)
    prepare(root, number, configuration, described, CASES)
    trained = train(root, number, configuration)
    print(configuration, trained, flush=True)
    return trained | {"rounds": rounds, "load": load}, measure(number, configuration, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--configurations", nargs="+", choices=CONFIGURATIONS, default=CONFIGURATIONS)
    parser.add_argument("--out", type=Path, required=True, help="Rows of other configurations are kept.")
    args = parser.parse_args()
    torch.set_num_threads(1)
    result = json.loads(args.out.read_text()) if args.out.exists() else {"rows": {}, "training": {}}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "trainers").mkdir()
        (root / "trainers" / "style.py").write_text(TRAINER)
        os.environ |= environment(root)
        for configuration in args.configurations:
            trained, rows = run(root, configuration, args.rounds)
            result["training"][configuration] = trained
            result["rows"] |= rows
    said = "; ".join(
        f"{configuration}: " + ", ".join(f"{name} {value}" for name, value in figures.items())
        for configuration, figures in result["training"].items()
    )
    notes = (
        "One epoch of three iterations by `nnUNetv2_train -tr nnUNetTrainerStyle -device cpu`, rounds "
        f"measured after one to warm up, and the load of the machine before: {said}."
    )
    print(publish(args.out, "nnU-Net with and without styles", result["rows"], notes=notes))
    whole = json.loads(args.out.read_text()) | {"training": result["training"]}
    args.out.write_text(json.dumps(whole, indent=1) + "\n")


if __name__ == "__main__":
    main()
