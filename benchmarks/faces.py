"""Whose face is it still? Faces verified before and after styling, and what keeps them.

    python benchmarks/faces.py D --out benchmarks/results/faces.json

D is the folder of real images. The rows of another call with the same OUT stay, so `--only` does one part at
a time. Two sets: faces in colour, in rooms and outdoors (Caltech, CC BY 4.0), and grey faces before a dark
background (ORL). Of each person five images are the gallery; the probes are styled.

`verified` is the share of probes accepted as the person that they show, at a false accept rate of 0.1 %, in
percent with 95 % intervals. `same` is the mean cosine of a probe with its own person's template, `others`
with those of other people, `itself` with the unstyled probe. `found` is the share of faces that the detector
still finds. Both are of dlib. `preserve` is at strength 1: a number is the floor of `Preserve`; `find_faces`
keeps the contrast of faces; `faces` keeps their pixels. `ms` is the time to find the faces of one image, on
one core. In the rows of `finding faces`, `found` is the share of all plain images with a face that is found;
the others are left out above.
"""

import argparse
import csv
import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from machine import publish

from styleaug import Preserve
from styleaug.evaluation.decisions import Rate
from styleaug.evaluation.identity import evaluate_identity
from styleaug.evaluation.pairs import read_square
from styleaug.transforms.faces import detect_faces, find_faces

NOTES = str(__doc__).split("\n\n", 3)[3].replace("\n", " ").strip()
BANKS = ("photo-tones", "art", "art-patches")
PAINTERS = ("art", "art-patches")
KEPT = (0.5, 0.9, Preserve(protect=find_faces), Preserve(protect="faces"))


class Part(NamedTuple):
    """Rows that are measured together."""

    domain: str
    banks: tuple[str, ...]
    generators: tuple[str, ...] = ()
    strengths: tuple[float, ...] = (1.0,)
    preserve: tuple[float | Preserve | None, ...] = (None,)


PARTS = {
    "caltech": Part("caltech", BANKS, ("gin",), (0.5, 1.0)),
    "caltech-kept": Part("caltech", PAINTERS, preserve=KEPT),
    "gin-kept": Part("caltech", (), ("gin",), preserve=KEPT),
    "orl": Part("orl", PAINTERS, preserve=(None, 0.5, KEPT[-1])),
}


def lay_out(data: Path, domain: str, folder: Path) -> None:
    """Link the images of a set as gallery and probe, one folder per person."""
    with (data / "index.tsv").open() as lines:
        for line in csv.DictReader(lines, delimiter="\t"):
            if line["domain"] == domain:
                person = folder / line["split"] / line["class"]
                person.mkdir(parents=True, exist_ok=True)
                (person / Path(line["path"]).name).symlink_to((data / line["path"]).resolve())


def cell(rate: Rate) -> str:
    """Format a rate in percent with its interval."""
    low, high = rate.ends
    return f"{100 * rate.share:.0f} ({100 * low:.0f} to {100 * high:.0f})"


def measure(data: Path, part: Part, probes: int) -> dict[str, dict[str, Any]]:
    """Measure the rows of a part."""
    with TemporaryDirectory() as folder:
        lay_out(data, part.domain, Path(folder))
        found = evaluate_identity(
            folder,
            bank=part.banks,
            generators=part.generators,
            strengths=part.strengths,
            preserve=part.preserve,
            far=0.001,
            most=probes,
            report=lambda done, total: print(f"{part.domain}: {done} of {total}", flush=True),
        )
    print(found.table(), *(why for _, why in found.failed), sep="\n")
    return {
        f"{part.domain}: {row.title}": {
            "verified": cell(row.result.verified),
            "same": round(row.result.same, 3),
            "others": round(row.result.others, 3),
            "itself": round(row.itself, 3),
            "found": cell(row.found),
        }
        for row in found.rows
    }


def cost(data: Path) -> dict[str, dict[str, Any]]:
    """Measure how long it takes to find faces, and in how many images one is found."""
    files = sorted((data / "caltech").rglob("*.jpg"))[::40]
    rows = {}
    for side in (224, 1024):
        images = torch.stack([read_square(path, side) for path in files])
        detect_faces(images[:1])
        start = time.process_time()
        detect_faces(images)
        rows[f"finding faces, {side} px"] = {
            "ms": round(1000 * (time.process_time() - start) / len(files), 1)
        }
    for domain in ("caltech", "orl"):
        counts = [
            len(detect_faces(read_square(path, 224)[None])[0]) for path in (data / domain).rglob("*.jpg")
        ]
        rows[f"finding faces, {domain}"] = {"found": cell(Rate(sum(map(bool, counts)), len(counts)))}
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--only", default=f"{','.join(PARTS)},cost", help="parts, with commas")
    parser.add_argument("--probes", type=int, default=80)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows: dict[str, dict[str, Any]] = {}
    if args.out and args.out.exists():
        rows = json.loads(args.out.read_text())["rows"]
    for name in args.only.split(","):
        faces = args.data / "faces"
        rows |= cost(faces) if name == "cost" else measure(faces, PARTS[name], args.probes)
        print(publish(args.out, "Whose face is it still?", dict(sorted(rows.items())), notes=NOTES))


if __name__ == "__main__":
    main()
