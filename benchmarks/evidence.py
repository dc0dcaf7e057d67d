"""Does styling help a network elsewhere? Every arm: cells, tissue, drawings, digits, corruptions, and masks.

    STYLEAUG_DATA=../shared/data STYLEAUG_WEIGHTS=../shared/weights \
        python benchmarks/evidence.py QUESTION [--arms "NAME;..."] [--seeds 6] [--report-from 1] [--jobs 2]

Each question is one call of `styleaug evaluate robustness`, whose rules hold: arms of a seed share the
split, initial weights, batches and geometry; the last epoch counts; scores are the recall averaged over
the classes. Results go to `benchmarks/results/evidence_QUESTION.{json,md}`; finished runs are kept.

    cells-pbc, cells-tecom            a small network from scratch, trained in one laboratory on 100 cells
                                      of each class (all classes as often), tested in the three others
    cells-pbc-imagenet, ...           the same from an ImageNet SqueezeNet
    pacs                              48 photos of each class to paintings, cartoons and sketches,
                                      ImageNet SqueezeNet; and what to set: p, strength, bank, sampler
    cifar                             200 images of each class, 15 corruptions in 5 severities, WRN-10-2
    digits                            100 digits of each class of MNIST to MNIST-M and USPS, a small network
    colon                             150 tiles of each class, tumour or not, of one site to those of another

The score of these is the Dice, with the built-in U-Net at 128 px:

    nuclei-breast, -kidney, -liver,   32 tiles of one organ to the six other organs; home: other slides
    -prostate
    nuclei-stain                      stained tissue to bright-field and to fluorescence images
    white-tecom, white-cellavision    nucleus and cytoplasm of white cells, of one laboratory to the other
    cracks                            cracks in roads from the street to those from a drone

Settings are chosen on seed 0 of cells-pbc and pacs. Tables report the seeds from `--report-from` on; earlier
ones stand apart. Arms that saw images of the tests stand apart, too.

Target banks: `styleaug fit-style` with its defaults is called once for each domain that is tested, on a
flat folder of its images under names without classes; each styled row takes one of these banks. They are
THE IMAGES TESTED ON, without their labels: the protocol is transductive, as when a laboratory adapts to
a pile of its own slides. FDA and histogram matching get the same images as references.
"""

import argparse
import csv
import os
import re
import shlex
import subprocess
import sys
import tempfile
from contextlib import chdir
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from zipfile import ZipFile

from machine import describe_card, machine_card

from styleaug.cli.console import stages
from styleaug.io.atomic import atomic
from styleaug.io.files import image_files
from styleaug.robustness.classifiers import default_recipe
from styleaug.robustness.corruptions import CORRUPTIONS
from styleaug.robustness.evaluate import evaluate_robustness
from styleaug.robustness.segmentation import Segmentation
from styleaug.robustness.tasks import Task
from styleaug.weights import load_bank

RESULTS = Path(__file__).parent / "results"
FULL = "p=.8,strength=1"
MILD = "p=.5,strength=.5..1"  # the arms called mild
STANDARD = {
    "none": "none",
    "jitter+grey": "jitter+grey",
    "trivialaugment": "trivialaugment",
    "randaugment": "randaugment",
    "mixstyle": "mixstyle",
    "batch swap": "channel-swap,p=.8,strength=1",
    "augmix": "augmix",
    "prime": "prime",
    "erasing": "erasing",
    "dsu": "dsu",
}
MIXED = "p=1,strength=0..1"  # the share of the networks as in the papers
RANDOM = {
    name: f"style:{name},{MIXED}"
    for name in ("randconv", "pro-randconv", "gin", "tone-curves", "random-filter")
} | {
    "preset unknown": "preset:unknown",
    "preset drawings": "preset:drawings",
}
"""Arms that need no image but those of the training."""
REFERENCED = {
    "fda (albumentations)": "fda:@targets,p=.8",
    "histogram matching (albumentations)": "histogram-matching:@targets,p=.8",
}
"""Arms of other libraries that use target images."""


GIN, RANDCONV, ART = f"style:gin,{MIXED}", f"style:randconv,{MIXED}", "style:art,p=1,strength=1"
ART_MIXED = f"{ART},sampler=mix"
FILTER, TONES = f"style:random-filter,{MIXED}", f"style:tone-curves,{MIXED}"
WIDER = {
    "networks or filter": f"{GIN}/{RANDCONV}/{FILTER}",
    "networks or filter or tones": f"{GIN}/{RANDCONV}/{FILTER}/{TONES}",
    "networks then some filter": f"{GIN}/{RANDCONV}+style:random-filter,p=.5,strength=0..1",
}
IN_FULL = {
    f"{name} in full": f"style:{name},{FULL}"
    for name in ("randconv", "pro-randconv", "gin", "tone-curves", "random-filter")
}
TRIED_ON_CELLS = (
    WIDER
    | IN_FULL
    | {
        "jitter+grey then random-filter": f"jitter+grey+style:random-filter,{FULL}",
        "jitter+grey then blur": "jitter+grey+blur",
        "gin then jitter+grey": f"{GIN}+jitter+grey",
        "gin or jitter then grey": f"{GIN}/jitter+grey",
        "gin or randconv": f"{GIN}/{RANDCONV}",
        "gin or randconv then grey": f"{GIN}/{RANDCONV}+grey",
        "gin or photo-tones": f"style:photo-tones,p=1,strength=1/{GIN}",
        "gin or tone-curves": f"{GIN}/style:tone-curves,{MIXED}",
        "gin or art": f"{GIN}/{ART}",
        "art or gin or randconv": f"{ART}/{GIN}/{RANDCONV}",
    }
)
TRIED_ON_DRAWINGS = (
    WIDER
    | IN_FULL
    | {
        "gin or randconv": f"{GIN}/{RANDCONV}",
        "art or gin": f"{ART}/{GIN}",
        "art or randconv": f"{ART}/{RANDCONV}",
        "art or gin or randconv": f"{ART}/{RANDCONV}/{GIN}",
        "art twice or randconv": f"{ART}/{ART}/{RANDCONV}",
        "art at 192 px or randconv": f"{ART},least_side=192/{RANDCONV}",
        "art mixed or gin in full": f"{ART_MIXED}/style:gin,p=1,strength=1",
        "art mixed or randconv in full": f"{ART_MIXED}/style:randconv,p=1,strength=1",
        "art mixed or pro-randconv in full": f"{ART_MIXED}/style:pro-randconv,p=1,strength=1",
        "art mixed or randconv": f"{ART_MIXED}/{RANDCONV}",
        "art mixed twice or randconv": f"{ART_MIXED}/{ART_MIXED}/{RANDCONV}",
        "art mixed thrice or randconv": f"{ART_MIXED},weight=3/{RANDCONV}",
        "art mixed then some randconv": f"{ART_MIXED}+style:randconv,p=.3,strength=0..1",
    }
)
"""What the presets were chosen from, on seed 0."""
NORMALIZED = {
    f"normalize {name}": f"normalize:<{name} of home>" for name in ("reinhard-lab", "macenko", "photo")
}
"""Training images stay plain; each test image is brought to the mean style of the training images."""


def on_targets(*generators: str, options: str = FULL) -> dict[str, str]:
    """Return an arm for each generator, with a bank of each target."""
    return {name: f"@{name},{options}" for name in generators}


CELLS = (
    STANDARD
    | RANDOM
    | TRIED_ON_CELLS
    | NORMALIZED
    | REFERENCED
    | {"reinhard-rgb (channel swap)": f"@reinhard-rgb,{FULL}"}
    | on_targets("reinhard-lab", "histogram", "fourier", "macenko", "vahadane")
    | on_targets("photo", "adain", "cell-stains")
    | {
        "hed-jitter": f"style:hed-jitter,{FULL}",
        "randstainna": f"@randstainna,{FULL},sampler=gaussian",
        "randstainna mild": f"@randstainna,{MILD},sampler=gaussian",
        "randstainna + guard": f"@randstainna,{FULL},sampler=gaussian,preserve=.9",
        "randstainna + jitter+grey": f"@randstainna,{FULL},sampler=gaussian+jitter+grey",
        "randstainna + blur": f"@randstainna,{FULL},sampler=gaussian+blur",
        "randstainna + mixstyle": f"@randstainna,{FULL},sampler=gaussian+mixstyle",
        "randstainna or reinhard-rgb": f"@randstainna,{FULL},sampler=gaussian/@reinhard-rgb,{FULL}",
        "randstainna or adain": f"@randstainna,{FULL},sampler=gaussian/@adain,{FULL}",
        "randstainna or photo": f"@randstainna,{FULL},sampler=gaussian/@photo,{FULL}",
        "randstainna or photo or adain": f"@randstainna,{FULL},sampler=gaussian/@photo,{FULL}/@adain,{FULL}",
        "randstainna or photo or reinhard-rgb": f"@randstainna,{FULL},sampler=gaussian/@photo,{FULL}"
        f"/@reinhard-rgb,{FULL}",
        "randstainna or photo or networks": "@randstainna,p=1,strength=1,sampler=gaussian"
        f"/@photo,p=1,strength=1/style:gin,{MIXED}/style:randconv,{MIXED}",
        "randstainna always": "@randstainna,p=1,strength=1,sampler=gaussian",
        "adain art": f"style:art,{FULL}",
        "adain art or randconv": f"style:art,{FULL}/style:randconv,{FULL}",
        "adain at 64 px": f"@adain,{FULL},least_side=1",
        "adain at 96 px": f"@adain,{FULL},least_side=96",
        "adain at 224 px": f"@adain,{FULL},least_side=224",
        "photo at 128 px": f"@photo,{FULL},least_side=128",
        "photo low": f"@photo,{FULL},bands=low",
    }
)
SAMPLED = (4, 16, 64)
"""Styles in banks that are drawn from `art`, which has 256."""
ONE = "style:art,p=1,strength=1"
ABLATION = {
    **{f"p {p}": f"style:art,p={p},strength=1" for p in (0.1, 0.3, 0.5, 0.8)},
    **{f"strength {strength}": f"style:art,p=1,strength={strength}" for strength in (0.25, 0.5, 0.75)},
    **{f"bank of {count}": f"style:art-{count}.safetensors,p=1,strength=1" for count in SAMPLED},
    "bank of 1000 of many kinds": "style:many.safetensors,p=1,strength=1",
    "bank texture": "style:texture,p=1,strength=1",
    "bank art and texture": f"{ONE}/style:texture,p=1,strength=1",
    "sampler mix": f"{ONE},sampler=mix",
    "sampler gaussian": f"{ONE},sampler=gaussian",
    "splice fields": f"{ONE},splice=fields",
    "guard .9": f"{ONE},preserve=.9",
}
PACS = STANDARD | RANDOM | TRIED_ON_DRAWINGS | REFERENCED | {
    "reinhard-rgb (channel swap)": f"@reinhard-rgb,{FULL}",
    "adain art mild": f"style:art,{MILD}",
    "adain art": ONE,
    "adain target": "@adain,p=1,strength=1",
    "adain art or target": f"{ONE}/@adain,p=1,strength=1",
    "adain art or randconv": f"{ONE}/style:randconv,p=1,strength=1",
    "adain art + grey": f"{ONE}+grey",
    "adain art + jitter+grey": f"{ONE}+jitter+grey",
    "adain art + mixstyle": f"{ONE}+mixstyle",
    "adain art + trivialaugment": f"{ONE}+trivialaugment",
    "adain art or photo-to-sketch": f"{ONE}/style:photo-to-sketch,p=1,strength=1",
    "adain art at 192 px": f"{ONE},least_side=192",
    "adain art low": f"{ONE},bands=low",
    "adain art high": f"{ONE},bands=high",
    "adain art or histogram": f"{ONE}/{ONE}/{ONE}/@histogram,p=1,strength=1",
    "adain art then histogram": f"{ONE}+@histogram,p=.5,strength=1",
    "adain art then channel swap": f"{ONE}+@reinhard-rgb,p=.5,strength=1",
    "histogram": f"@histogram,{FULL}",
    "adain art or photo": f"{ONE}/{ONE}/{ONE}/@photo,p=1,strength=1",
    "patchswap art": "style:art-patches,p=1,strength=1",
} | ABLATION  # fmt: skip
CIFAR = STANDARD | RANDOM | {
    "batch swap + trivialaugment": "channel-swap,p=.5,strength=1+trivialaugment",
    "adain art + trivialaugment": f"style:art,{FULL}+trivialaugment",
    "adain art at .3 + trivialaugment": "style:art,p=.3,strength=1+trivialaugment",
    "adain art at .5 + trivialaugment": "style:art,p=.5,strength=1+trivialaugment",
    "adain art at .3 and 32 px + trivialaugment": "style:art,p=.3,strength=1,least_side=1+trivialaugment",
    "adain art at .3 and 64 px + trivialaugment": "style:art,p=.3,strength=1,least_side=64+trivialaugment",
    "adain art at .3 and 96 px + trivialaugment": "style:art,p=.3,strength=1,least_side=96+trivialaugment",
    "adain art at 32 px": f"style:art,{FULL},least_side=1",
    "adain art or randconv": f"style:art,{FULL}/style:randconv,{FULL}",
    "adain art or randconv + trivialaugment": f"style:art,{FULL}/style:randconv,{FULL}+trivialaugment",
    "randconv + trivialaugment": f"style:randconv,{FULL}+trivialaugment",
    "photo + trivialaugment": f"style:photo-tones,{FULL}+trivialaugment",
    "preset corruptions + trivialaugment": "preset:corruptions+trivialaugment",
    "preset unknown + trivialaugment": "preset:unknown+trivialaugment",
    "networks at .3 + trivialaugment": "preset:unknown,p=.3+trivialaugment",
    "art or networks at .6 + trivialaugment": "style:art,p=.6,strength=1/preset:unknown,p=.6+trivialaugment",
    "art or random-filter at .6 + trivialaugment": "style:art,p=.6,strength=1"
    "/style:random-filter,p=.6,strength=0..1+trivialaugment",
}  # fmt: skip
UNCHOSEN = STANDARD | RANDOM | WIDER | REFERENCED | {
    "adain art": f"style:art,{FULL}",
    "adain art or randconv": f"style:art,{FULL}/style:randconv,{FULL}",
    "reinhard-rgb (channel swap)": f"@reinhard-rgb,{FULL}",
} | on_targets("reinhard-lab", "histogram", "fourier", "photo", "adain")  # fmt: skip
"""Arms of the questions on which nothing is chosen."""
COLON = UNCHOSEN | NORMALIZED | on_targets("macenko", "vahadane") | {
    "hed-jitter": f"style:hed-jitter,{FULL}",
    "randstainna": f"@randstainna,{FULL},sampler=gaussian",
    "randstainna or photo": f"@randstainna,{FULL},sampler=gaussian/@photo,{FULL}",
}  # fmt: skip


def masked(labels: int) -> dict[str, str]:
    """Return the arms of a question with masks of this number of labels."""
    parts = f"splice=mask,parts={labels}"
    return {
        "none": "none",
        "jitter+grey": "jitter+grey",
        "preset unknown": "preset:unknown",
        "preset unknown at half": "preset:unknown,p=.5",
        "networks by region": f"{GIN},{parts}/{RANDCONV},{parts}",
        "preset unknown + guard": f"{GIN},preserve=.9/{RANDCONV},preserve=.9",
        "preset unknown with objects kept": f"{GIN},protect=mask/{RANDCONV},protect=mask",
        "jitter+grey or networks": f"jitter+grey/{GIN}/{RANDCONV}",
        "randstainna": f"@randstainna,{FULL},sampler=gaussian",
        "photo": f"@photo,{FULL}",
        "adain": f"@adain,{FULL}",
        "adain art": f"style:art,{FULL}",
        "randstainna or photo": f"@randstainna,{FULL},sampler=gaussian/@photo,{FULL}",
        "randstainna or photo or jitter then grey": f"@randstainna,{FULL},sampler=gaussian"
        f"/@photo,{FULL}/jitter+grey",
        "randstainna or photo by region": f"@randstainna,{FULL},sampler=gaussian,{parts}"
        f"/@photo,{FULL},{parts}",
        "randstainna or photo or networks": "@randstainna,p=1,strength=1,sampler=gaussian"
        f"/@photo,p=1,strength=1/{GIN}/{RANDCONV}",
    }


@dataclass(frozen=True)
class Question:
    """One comparison: where it is trained and tested, with what, and the arms.

    A place is a folder below the data or in an archive of `PACKED`. After a colon comes a part of it, as in
    the data's index. Without a place for `home` a part of `train` is held out.
    """

    train: str
    tests: tuple[str, ...]
    arms: dict[str, str]
    home: str = ""
    classifier: str = "squeezenet"
    recipe: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    task: Task | None = None
    """The segmentation, if labels are masks."""


LABS = ("pbc", "tecom", "cellavision_blog", "bccd")
KINDS = ("neutrophil", "lymphocyte", "monocyte", "eosinophil")


def cells(home: str, classifier: str) -> Question:
    """Ask about blood cells, trained in one laboratory."""
    geometry = {"geometry": "cells", "precision": "bf16"}
    options = {"classes": KINDS, "per_class": 100, "balanced": True, "held_out": 1 / 6, "fit": "squash"}
    tests = tuple(f"wbc/{lab}" for lab in LABS if lab != home)
    return Question(f"wbc/{home}", tests, CELLS, classifier=classifier, recipe=geometry, options=options)


DRAWN = ("pacs/art_painting", "pacs/cartoon", "pacs/sketch")
PHOTO = {"per_class": 48, "held_out": 0.25, "fit": "squash"}
PACKED = {"cifar": "cifar10/cifar10_jpg_subset.zip", "digits": "digits/digits.zip"}
"""Archives of the data, by the name of the folder into which they are unpacked."""
QUESTIONS = {
    "cells-pbc": cells("pbc", "small"),
    "cells-tecom": cells("tecom", "small"),
    "cells-pbc-imagenet": cells("pbc", "squeezenet"),
    "cells-tecom-imagenet": cells("tecom", "squeezenet"),
    "pacs": Question("pacs/photo", DRAWN, PACS, recipe={"epochs": 20, "precision": "bf16"}, options=PHOTO),
    "cifar": Question(
        "cifar/train",
        (),
        CIFAR,
        home="cifar/test",
        classifier="wrn-10-2",
        recipe={"precision": "bf16", "epochs": 50, "batch": 32, "lr": 0.05},
        options={"corruptions": CORRUPTIONS},
    ),
    "digits": Question(
        "digits/mnist:train",
        ("digits/mnist_m", "digits/usps"),
        UNCHOSEN,
        home="digits/mnist:test",
        classifier="small",
        recipe={"precision": "bf16", "epochs": 20, "side": 32, "geometry": "none"},
        options={"per_class": 100},
    ),
    "colon": Question(
        "colon/site_a:train",
        ("colon/lc25000",),
        COLON,
        home="colon/site_a:test",
        recipe={"precision": "bf16", "epochs": 15, "geometry": "cells"},
        options={"per_class": 150, "fit": "squash"},
    ),
}


def segmented(
    train: str, *tests: str, epochs: int, home: str = "", labels: int = 2, **options: Any
) -> Question:
    """Ask about images with masks."""
    recipe = {"epochs": epochs, "precision": "bf16"}
    return Question(train, tests, masked(labels), home, recipe=recipe, options=options, task=Segmentation())


ORGANS = ("breast", "kidney", "liver", "prostate", "bladder", "colon", "stomach")
QUESTIONS |= {
    f"nuclei-{organ}": segmented(
        f"nuclei/monuseg_{organ}:train",
        *(f"nuclei/monuseg_{other}" for other in ORGANS if other != organ),
        home=f"nuclei/monuseg_{organ}:test",
        epochs=50,
    )
    for organ in ORGANS[:4]
}
WHITE: dict[str, Any] = {"classes": ("0", "128", "255"), "labels": 3}
QUESTIONS |= {
    "nuclei-stain": segmented(
        "nuclei/dsb_tissue_stain:train",
        "nuclei/dsb_brightfield",
        "nuclei/dsb_fluorescence",
        home="nuclei/dsb_tissue_stain:test",
        epochs=24,
    ),
    "white-tecom": segmented("wbc/tecom", "wbc/cellavision_blog", epochs=10, per_class=200, **WHITE),
    "white-cellavision": segmented("wbc/cellavision_blog", "wbc/tecom", epochs=30, per_class=67, **WHITE),
    "cracks": segmented("crack/cfd_road:train", "crack/uav", home="crack/cfd_road:test", epochs=45),
}


def folder_of(variable: str) -> Path:
    """Read a folder from the environment, or stop."""
    value = os.environ.get(variable, "")
    if not value or not Path(value).is_dir():
        sys.exit(f"evidence: set {variable} to a folder, got {value!r}; see benchmarks/README.md")
    return Path(value).resolve()


def fit_bank(generator: str, images: Path, bank: Path, *options: str) -> None:
    """Fit a bank as a user does, on a flat folder of images under names without classes."""
    if bank.exists():
        return
    with tempfile.TemporaryDirectory() as flat:
        pictures = images / "images" if (images / "masks").is_dir() else images
        for number, path in enumerate(image_files(pictures)):
            (Path(flat) / f"{number:04d}{path.suffix}").symlink_to(path.resolve())
        command = ["fit-style", flat, "-o", str(bank), "--generator", generator, *options]
        done = subprocess.run([sys.executable, "-m", "styleaug", *command], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"evidence: styleaug fit-style --generator {generator}: {done.stderr}")


def spelled(spec: str, targets: list[str], home: str) -> str:
    """Put banks of the targets and of home, which are fitted here, and the target folders into an arm."""

    def home_bank(match: re.Match[str]) -> str:
        file = f"{match[1]}-{home}.safetensors"
        fit_bank(match[1], Path(home), Path(file))
        return file

    def banks(match: re.Match[str]) -> str:
        generator, options = match[1], match[2] or ""
        for target in targets:
            fit_bank(generator, Path(target), Path(f"{generator}-{target}.safetensors"))
        return "/".join(f"style:{generator}-{target}.safetensors{options}" for target in targets)

    spec = spec.replace("@targets", ",".join(targets))
    spec = re.sub(r"<([a-z-]+) of home>", home_bank, spec)
    return re.sub(r"@([a-z-]+)((?:,[a-z_]+=[^,+/@]+)*)", banks, spec)


def with_masks(data: Path, place: str) -> str:
    """Link the images and masks of a place, or of a part of it, into a folder of the working folder."""
    whole, _, part = place.partition(":")
    kind, _, domain = whole.partition("/")
    name = domain.removeprefix("monuseg_").removeprefix("dsb_")
    made = Path(f"{name}-{part}" if part else name)
    if not made.is_dir():
        with tempfile.TemporaryDirectory(dir=".") as work:
            for image, mask in masked_pairs(data / kind, domain, part):
                for name, path in (("images", image), ("masks", mask)):
                    link = Path(work) / "all" / name / f"{image.stem}{path.suffix}"
                    link.parent.mkdir(parents=True, exist_ok=True)
                    link.symlink_to(path)
            (Path(work) / "all").rename(made)
    return made.name


def masked_pairs(data: Path, domain: str, part: str) -> list[tuple[Path, Path]]:
    """List the images of a domain with their masks, as the index has them."""
    with (data / "index.tsv").open(newline="") as lines:
        rows = [row for row in csv.DictReader(lines, delimiter="\t") if row["domain"] == domain]
    if "mask" in rows[0]:
        chosen = [row for row in rows if part in ("", row["split"])]
        return [(data / row["path"], data / row["mask"]) for row in chosen]
    images = [data / row["path"] for row in rows]
    pairs = [(image, data / "masks" / domain / f"{image.stem}.png") for image in images]
    return [(image, mask) for image, mask in pairs if mask.exists()]


def at_hand(data: Path, place: str) -> str:
    """Give a place a short name in the working folder, after unpacking what it needs, once."""
    whole, _, part = place.partition(":")
    first = whole.partition("/")[0]
    folder = data / whole
    if first in PACKED:
        unpack(data / PACKED[first], Path(first))
        folder = Path(whole).resolve()
    if part:
        folder = divided(folder, data / first / "index.tsv", part)
    if not Path(folder.name).is_symlink():
        Path(folder.name).symlink_to(folder)
    return folder.name


def unpack(archive: Path, folder: Path) -> None:
    """Unpack an archive, once."""
    if not folder.is_dir():
        with ZipFile(archive) as packed:
            packed.extractall(f"{folder}.part")
        Path(f"{folder}.part").rename(folder)


def divided(folder: Path, index: Path, part: str) -> Path:
    """Link the images of a part of a folder, as the index has it, into a folder with the same classes."""
    parts = Path("parts").resolve()
    made = parts / f"{folder.name}-{part}"
    if made.is_dir():
        return made
    with index.open(newline="") as lines, tempfile.TemporaryDirectory(dir=".") as work:
        for row in csv.DictReader(lines, delimiter="\t"):
            if row["domain"] == folder.name and row["split"] == part:
                link = Path(work) / "part" / row["class"] / Path(row["path"]).name
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(folder.parent / row["path"])
        parts.mkdir(exist_ok=True)
        (Path(work) / "part").rename(made)
    return made


def ask(name: str, question: Question, args: argparse.Namespace) -> str:
    """Run the missing runs of a question; return the table."""
    data, weights = folder_of("STYLEAUG_DATA"), folder_of("STYLEAUG_WEIGHTS")
    out = (args.out or RESULTS).resolve() / f"evidence_{name.replace('-', '_')}.json"
    task = question.task
    recipe = task.usual_recipe("", pretrained=True) if task else default_recipe(question.classifier)
    task_options = (
        {"task": task, "skip": True} if task else {"classifier": question.classifier, "weights": weights}
    )
    changed = {"epochs": args.epochs} if args.epochs else {}
    recipe = replace(recipe, **question.recipe | changed)
    chosen = {arm: spec for arm, spec in question.arms.items() if not args.arms or arm in args.arms}
    # specs then hold short names, and no path of this machine
    work = args.work / "masks" if task else args.work
    work.mkdir(parents=True, exist_ok=True)
    with (
        chdir(work),
        stages() as (report, said),
    ):
        place_at_hand = with_masks if task else at_hand
        targets = [place_at_hand(data, place) for place in question.tests]
        for count in SAMPLED:
            if not (bank := Path(f"art-{count}.safetensors")).exists():
                load_bank("art").sample(count, seed=0).save(bank)
        if name == "pacs":
            fit_bank("adain", data / "style", Path("many.safetensors"), "--max-styles", "1000")
        train = place_at_hand(data, question.train)
        home = {"home": place_at_hand(data, question.home)} if question.home else {}
        found = evaluate_robustness(
            train,
            home | {target: target for target in targets},
            arms=[f"{arm}={spelled(spec, targets, train)}" for arm, spec in chosen.items()],
            recipe=recipe,
            seeds=args.seeds,
            jobs=args.jobs,
            threads=1,
            out=out,
            report=report,
            said=said,
            **task_options,
            **question.options,
        )
    seen = [arm.name for arm in found.arms if "@" in question.arms.get(arm.name, "")]
    found = found.reported(transductive=seen, first_seed=args.report_from)
    command = f"python benchmarks/evidence.py {shlex.join(sys.argv[1:])}"
    table = f"{found.markdown()}\n`{command}`\n\n{describe_card(machine_card())}\n"
    with atomic(out.with_suffix(".md")) as part:
        part.write_text(table)
    return table


def names(text: str) -> list[str]:
    """Parse names that are separated by semicolons."""
    return [name.strip() for name in text.split(";")]


def main() -> None:
    """Ask the questions that are named."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("questions", nargs="+", choices=QUESTIONS)
    parser.add_argument("--arms", type=names, help="with semicolons; all")
    parser.add_argument("--seeds", type=int, default=6, help="number of runs of each arm")
    parser.add_argument("--report-from", type=int, default=1, help="first seed that no setting was chosen on")
    parser.add_argument("--epochs", type=int, help="other than the question's; needs an --out of its own")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("evidence"), help="for banks, which are kept")
    parser.add_argument("--out", type=Path, help="folder of the results")
    args = parser.parse_args()
    known = {arm for name in args.questions for arm in QUESTIONS[name].arms}
    if unknown := sorted(set(args.arms or ()) - known):
        parser.error(f"no arm is called {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    for name in args.questions:
        print(ask(name, QUESTIONS[name], args))


if __name__ == "__main__":
    main()
