"""Do styles help a detector elsewhere? Nuclei as boxes, one domain to train on, others to test on.

    STYLEAUG_DATA=DATA STYLEAUG_WEIGHTS=WEIGHTS python benchmarks/detection.py \
        --out benchmarks/results/detection.json
    ... --device cuda --epochs 60 --seeds 5 --out detection_cuda.json       # on a GPU, not run yet

Needs pycocotools beside the packages of this project. Boxes are those of the connected parts of each mask, so
nuclei that touch are one box. The detector is torchvision's Faster R-CNN on the first layers of SqueezeNet
1.1 with weights of ImageNet (stride 8; anchors of 8 to 64 px). It is trained on crops of 192 px, flipped,
then changed by an arm of `styleaug evaluate robustness`, which does not touch the boxes. Arms are paired by
seed. The score is the average precision at an overlap of .5 (torchmetrics), in percent, of whole images of
256 px. Runs that the file of results has are not repeated, so a stopped benchmark goes on.
"""

import argparse
import csv
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import publish
from PIL import Image
from skimage.measure import label, regionprops
from torch import Tensor
from torchmetrics.detection import MeanAveragePrecision
from torchvision import tv_tensors
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import MultiScaleRoIAlign
from torchvision.transforms import v2

from styleaug.robustness.arms import Arm
from styleaug.robustness.classifiers import make_squeezenet

ARMS = ("none", "jitter+grey", "preset:unknown")
HOME = "dsb_tissue_stain"
UNSEEN = {"brightfield": "dsb_brightfield", "fluorescence": "dsb_fluorescence", "kidney": "monuseg_kidney"}
CROP, WHOLE, BATCH, RATE = 192, 256, 4, 3e-4
LEAST_AREA = 16
"""Number of pixels of the smallest part of a mask that is a nucleus."""

Sample = tuple[tv_tensors.Image, tv_tensors.BoundingBoxes]


def read(data: Path, domain: str, split: str) -> list[Sample]:
    """Read images of a domain, uint8, with the boxes of the parts of their masks."""
    samples = []
    for row in csv.DictReader((data / "nuclei" / "index.tsv").open(), delimiter="\t"):
        if (row["domain"], row["split"]) != (domain, split):
            continue
        with Image.open(data / "nuclei" / row["path"]) as image:
            pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
        with Image.open(data / "nuclei" / row["mask"]) as mask:
            parts = regionprops(label(np.asarray(mask.convert("L")) > 127))
        corners = [part.bbox for part in parts if part.area >= LEAST_AREA]
        boxes = torch.tensor(corners, dtype=torch.float32).reshape(-1, 4)[:, [1, 0, 3, 2]]
        size = (pixels.shape[1], pixels.shape[2])
        found = tv_tensors.BoundingBoxes(boxes, format=tv_tensors.BoundingBoxFormat.XYXY, canvas_size=size)
        samples.append((tv_tensors.Image(pixels), found))
    return samples


def make_detector(weights: Path | None) -> FasterRCNN:
    """Build a small Faster R-CNN; without weights its backbone is random."""
    net = make_squeezenet(2, weights, pretrained=weights is not None)
    backbone = net.body[0][:8]
    backbone.out_channels = 256
    return FasterRCNN(
        backbone,
        min_size=CROP,
        max_size=2 * WHOLE,
        image_mean=[123 / 255, 117 / 255, 104 / 255] if weights else [0.485, 0.456, 0.406],
        image_std=[1 / 255] * 3 if weights else [0.229, 0.224, 0.225],
        rpn_anchor_generator=AnchorGenerator(((8, 16, 32, 64),), ((0.7, 1.0, 1.4),)),
        rpn_pre_nms_top_n_train=500,
        rpn_post_nms_top_n_train=200,
        rpn_pre_nms_top_n_test=500,
        rpn_post_nms_top_n_test=300,
        box_roi_pool=MultiScaleRoIAlign(["0"], 5, 2),
        box_head=TwoMLPHead(256 * 25, 256),
        box_predictor=FastRCNNPredictor(256, 2),
        box_batch_size_per_image=128,
        box_detections_per_img=200,
    )


def fit(
    model: FasterRCNN, samples: list[Sample], arm: Arm, epochs: int, seed: int, device: torch.device
) -> None:
    """Train on crops; the same seed gives the same order and geometry for each arm."""
    geometry = v2.Compose(
        [
            v2.RandomCrop(CROP),
            v2.RandomHorizontalFlip(),
            v2.RandomVerticalFlip(),
            v2.ClampBoundingBoxes(),
            v2.SanitizeBoundingBoxes(min_size=4, labels_getter=None),
        ]
    )
    torch.manual_seed(seed)
    model.to(device).train()
    steps = epochs * (len(samples) // BATCH)
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps)
    for epoch in range(epochs):
        busy = time.process_time()
        for chosen in torch.randperm(len(samples)).split(BATCH):
            if len(chosen) < BATCH:
                continue
            moved = [geometry(*samples[index]) for index in chosen.tolist()]
            images = torch.stack([image for image, _ in moved]).as_subclass(Tensor)
            changed = arm(images.to(device, torch.float32) / 255)
            targets = [
                {
                    "boxes": boxes.as_subclass(Tensor).to(device),
                    "labels": torch.ones(len(boxes), dtype=torch.int64, device=device),
                }
                for _, boxes in moved
            ]
            loss = sum(model(list(changed), targets).values())
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimiser.step()
            schedule.step()
        print(f"{arm.name}: epoch {epoch}, {time.process_time() - busy:.1f} s of the processor", flush=True)


@torch.inference_mode()
def precision(model: FasterRCNN, samples: list[Sample], device: torch.device) -> float:
    """Return the average precision at an overlap of .5, in percent."""
    metric = MeanAveragePrecision(iou_thresholds=[0.5], max_detection_thresholds=[1, 100, 200])
    model.eval().transform.min_size = (WHOLE,)
    for image, boxes in samples:
        (found,) = model([image.as_subclass(Tensor).to(device, torch.float32) / 255])
        truth = {"boxes": boxes.as_subclass(Tensor), "labels": torch.ones(len(boxes), dtype=torch.int64)}
        metric.update([{name: value.cpu() for name, value in found.items()}], [truth])
    return round(100 * metric.compute()["map_50"].item(), 2)


def table(runs: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return mean and deviation over seeds: arm -> domain."""
    rows = {}
    for arm in ARMS:
        own = [run for run in runs if run["arm"] == arm]
        if not own:
            continue
        scores = {name: [run["scores"][name] for run in own] for name in own[0]["scores"]}
        scores |= {"unseen": [statistics.mean(run["scores"][name] for name in UNSEEN) for run in own]}
        rows[arm] = {name: spread(values) for name, values in scores.items()}
        rows[arm] |= {"seeds": len(own), "cpu s/run": round(statistics.median(run["seconds"] for run in own))}
    return rows


def spread(values: list[float]) -> str:
    """Format mean and standard deviation."""
    deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{deviation}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arms", nargs="+", default=list(ARMS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    data, device = Path(os.environ["STYLEAUG_DATA"]), torch.device(args.device)
    weights = Path(os.environ["STYLEAUG_WEIGHTS"]) if "STYLEAUG_WEIGHTS" in os.environ else None
    train = read(data, HOME, "train")
    tests = {name: read(data, domain, "test") for name, domain in {"home": HOME, **UNSEEN}.items()}
    settings = {"epochs": args.epochs, "device": args.device, "pretrained": weights is not None}
    before = json.loads(args.out.read_text()) if args.out.exists() else {"settings": settings, "runs": []}
    if before["settings"] != settings:
        raise SystemExit(
            f"{args.out} holds runs of {before['settings']}, not {settings}: give another --out."
        )
    runs = before["runs"]
    notes = (
        f"Average precision at an overlap of .5 in percent, mean and deviation over seeds; {len(train)} "
        f"images of {HOME}, {args.epochs} epochs, {args.threads} threads, {args.device}, backbone "
        f"{'of ImageNet' if weights else 'random'}. cpu s/run: seconds of the processor to train, median."
    )
    for seed in range(args.seeds):
        for name in args.arms:
            if any((run["arm"], run["seed"]) == (name, seed) for run in runs):
                continue
            torch.manual_seed(seed)
            model, busy = make_detector(weights), time.process_time()
            fit(model, train, Arm(name, seed=seed), args.epochs, seed, device)
            seconds = round(time.process_time() - busy, 1)
            scores = {place: precision(model, samples, device) for place, samples in tests.items()}
            runs.append({"arm": name, "seed": seed, "seconds": seconds, "scores": scores})
            print(runs[-1], flush=True)
            write(args.out, settings, runs, notes)
    print(write(args.out, settings, runs, notes))


def write(out: Path, settings: dict[str, Any], runs: list[dict[str, Any]], notes: str) -> str:
    """Write the table and all runs; return the table."""
    told = publish(out, "A detector of nuclei with and without styles", table(runs), notes=notes)
    whole = json.loads(out.read_text()) | {"settings": settings, "runs": runs}
    out.write_text(json.dumps(whole, indent=1) + "\n")
    return told


if __name__ == "__main__":
    main()
