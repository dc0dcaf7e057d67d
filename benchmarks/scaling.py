"""Does the cost grow linearly with rows and pixels?

    python benchmarks/scaling.py --out benchmarks/results/scaling.json

Milliseconds per image of `StyleAugment(p=1)` on uint8 batches, for batches of 1 to 256 at 224 px and sides
of 32 to 1024 px in batches of 4; median of the rounds, all generators in turns. Draws
`results/scaling.svg` (needs matplotlib, the `bench` extra).
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
from machine import publish

from styleaug import StyleAugment, fit_style
from styleaug.weights import pretrained_folder

BATCHES = (1, 4, 16, 64, 256)
SIDES = (32, 64, 128, 224, 512, 1024)


def style_augments(**options) -> dict[str, StyleAugment]:
    """Make a `StyleAugment` for each kind of generator, from safest to strongest."""
    colour = fit_style(pretrained_folder() / "samples", generator="reinhard-rgb", min_images=1).bank
    banks = {"reinhard-rgb": colour, "photo": "photo-tones", "adain": "art"}
    return {name: StyleAugment(bank, **options) for name, bank in banks.items()}


def milliseconds(augment: StyleAugment, images: torch.Tensor) -> float:
    """Time one call."""
    if images.is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    augment(images)
    if images.is_cuda:
        torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.device == "cpu":
        torch.set_num_threads(1)
    augments = style_augments(p=1.0)
    settings = {(batch, 224) for batch in BATCHES} | {(4, side) for side in SIDES}
    rows = {}
    for batch, side in sorted(settings):
        images = torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8, device=args.device)
        times: dict[str, list[float]] = {name: [] for name in augments}
        for turn in range(args.rounds + 1):
            for name, augment in augments.items():
                spent = milliseconds(augment, images) / batch
                times[name] += [spent] * (turn > 0)  # the first warms up
        rows[f"batch {batch}, {side} px"] = {
            "batch": batch,
            "side": side,
            **{name: round(statistics.median(spent), 4) for name, spent in times.items()},
        }
        print(rows[f"batch {batch}, {side} px"], flush=True)
    print(publish(args.out, "Milliseconds per image", rows))
    if args.out:
        draw(rows, args.out.with_suffix(".svg"))


def draw(rows: dict[str, dict], path: Path) -> None:
    """Plot milliseconds per image against the batch, and per call against pixels."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for name in ("reinhard-rgb", "photo", "adain"):
        by_batch = sorted((row["batch"], row[name]) for row in rows.values() if row["side"] == 224)
        by_side = sorted((row["side"] ** 2, row[name]) for row in rows.values() if row["batch"] == 4)
        left.plot(*zip(*by_batch, strict=True), "o-", label=name)
        right.plot(*zip(*by_side, strict=True), "o-", label=name)
    left.set(xscale="log", yscale="log", xlabel="images in a batch, 224 px", ylabel="ms per image")
    right.set(xscale="log", yscale="log", xlabel="pixels of an image, batch 4")
    left.legend()
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
