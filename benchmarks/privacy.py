"""Does a bank tell which images were in it; how well does it cover a laboratory; how loud is the noise?

    STYLEAUG_DATA=DATA python benchmarks/privacy.py --seeds 10 --out benchmarks/results/privacy.json

For each laboratory of `DATA/wbc`, generator and seed: half of the images are members, of which banks are
made; the others are not.

    auc       chance that a member's code is nearer to a row of the bank than a non-member's, which is the
              simplest test of membership: 0.5 tells nothing, 1 everything. Mean over laboratories.
    worst     the same of the laboratory in which it is highest, mean over seeds
    distance  of a non-member's code to the nearest row, over the same for all members as rows: 1 covers
              the laboratory as well as a bank of every image. Mean over laboratories.
    _sd       standard deviation over seeds

Codes are scaled to unit deviation over the laboratory. Rows `another
laboratory` have all codes of the next one as bank. Rows named `noise` are of synthetic origins: the error
of mean (largest entry, in true deviations) and covariance (Frobenius norm, relative) under differential
privacy. Its noise has no seed, so that these figures come out a little different each time.
"""

import argparse
import os
import statistics
from pathlib import Path

import torch
from machine import publish
from torch import Tensor

from styleaug.fitting.privacy import Pool, frame_of, private_styles, private_summary
from styleaug.generators.base import AbstractGenerator
from styleaug.io.files import image_files
from styleaug.io.pixels import open_style, shrink
from styleaug.weights import load_generator

GENERATORS = ("reinhard-rgb", "photo", "adain")
LEAST = (1, 3, 5, 10, 20)
BUDGETS = (4.0, 1.0)
DELTA = 1e-5
STYLES = 256


@torch.inference_mode()
def encode(folder: Path, generator: AbstractGenerator) -> Tensor:
    """Read the code of each image."""
    size = generator.code_size
    codes = [generator.encode_style(shrink(open_style(path, size), size))[0] for path in image_files(folder)]
    return torch.stack(codes)


def make_rows(members: Tensor, generator: AbstractGenerator, seed: int) -> dict[str, Tensor]:
    """Make the rows of each kind of bank."""
    rows = {}
    for least in LEAST:
        pool = Pool(least)
        for number, code in enumerate(members):
            pool.add(str(number), code)
        rows[f"min_images {least}"] = pool.aggregate()
    for epsilon in BUDGETS:
        rng = torch.Generator().manual_seed(seed)
        rows[f"epsilon {epsilon:g}"] = private_styles(
            members, generator, STYLES, epsilon=epsilon, delta=DELTA, rng=rng
        )
    return rows


def area(members: Tensor, others: Tensor) -> float:
    """Compute the chance that a member's distance is the smaller one; ties count half."""
    less = (members[:, None] < others).double() + 0.5 * (members[:, None] == others).double()
    return less.mean().item()


def judge(
    codes: Tensor, foreign: Tensor, generator: AbstractGenerator, seed: int
) -> dict[str, tuple[float, float, int]]:
    """Return area, relative distance and number of styles of each kind of bank of one laboratory."""
    std = codes.std(dim=0).clamp_min(1e-6)
    order = torch.randperm(len(codes), generator=torch.Generator().manual_seed(seed))
    members, others = codes[order[: len(codes) // 2]], codes[order[len(codes) // 2 :]]

    def distance(from_: Tensor, rows: Tensor) -> Tensor:
        # Not by matrix products: their rounding would tell a member from its own code.
        exact = "donot_use_mm_for_euclid_dist"
        return torch.cdist(from_ / std, rows / std, compute_mode=exact).amin(dim=1)

    floor = distance(others, members).mean()
    return {
        name: (
            area(distance(members, rows), distance(others, rows)),
            (distance(others, rows).mean() / floor).item(),
            len(rows),
        )
        for name, rows in {**make_rows(members, generator, seed), "another laboratory": foreign}.items()
    }


def membership(folder: Path, name: str, seeds: int) -> dict[str, dict]:
    """Judge all laboratories with one generator."""
    generator = load_generator(name)
    laboratories = [path for path in sorted(folder.iterdir()) if path.is_dir() and path.name != "masks"]
    codes = [encode(path, generator) for path in laboratories]
    pairs = list(zip(codes, codes[1:] + codes[:1], strict=True))
    judged = [[judge(one, other, generator, seed) for one, other in pairs] for seed in range(seeds)]
    rows = {}
    for arm in judged[0][0]:
        areas = [[laboratory[arm][0] for laboratory in seed] for seed in judged]
        distances = [statistics.mean(laboratory[arm][1] for laboratory in seed) for seed in judged]
        means = [statistics.mean(seed) for seed in areas]
        rows[f"{name}, {arm}"] = {
            "auc": round(statistics.mean(means), 3),
            "auc_sd": round(statistics.stdev(means), 3),
            "worst": round(statistics.mean(map(max, areas)), 3),
            "distance": round(statistics.mean(distances), 3),
            "distance_sd": round(statistics.stdev(distances), 3),
            "styles": "/".join(str(laboratory[arm][2]) for laboratory in judged[0]),
        }
        print(f"{name}, {arm}", rows[f"{name}, {arm}"], flush=True)
    return rows


def loudness(name: str, seeds: int) -> dict[str, dict]:
    """Measure the error of mean and covariance on synthetic origins."""
    frame, rows = frame_of(load_generator(name)), {}
    size = frame.axes.shape[1]
    # As far from each other as the cells of one laboratory, about: a fifth of the spread that is allowed.
    deviation = 0.2 * frame.spread / size**0.5 * torch.linspace(1.5, 0.5, size, dtype=torch.float64)
    for count in (200, 1000, 10_000):
        for epsilon in BUDGETS:
            errors = []
            for seed in range(seeds):
                rng = torch.Generator().manual_seed(seed)
                z = deviation * torch.randn(count, size, generator=rng, dtype=torch.float64)
                mean, covariance = private_summary(z, frame, epsilon, DELTA)
                wanted = deviation.square().diag()
                off = (covariance - wanted).norm() / wanted.norm()
                errors.append(((mean / deviation).abs().max().item(), off.item()))
            mean_error, covariance_error = map(statistics.mean, zip(*errors, strict=True))
            rows[f"noise, {name}, {count} origins, epsilon {epsilon:g}"] = {
                "mean error": round(mean_error, 3),
                "covariance error": round(covariance_error, 3),
            }
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--generators", default=",".join(GENERATORS))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    folder, rows = Path(os.environ["STYLEAUG_DATA"]) / "wbc", {}
    for name in args.generators.split(","):
        rows |= membership(folder, name, args.seeds)
    for name in args.generators.split(","):
        rows |= loudness(name, args.seeds)
    notes = (
        f"Seeds 0 to {args.seeds - 1}; delta {DELTA:g}; `styles` per laboratory (bccd, cellavision_blog, "
        "pbc, tecom). What the columns mean stands at the head of the script."
    )
    print(publish(args.out, "Privacy of banks", rows, notes=notes))


if __name__ == "__main__":
    main()
