"""The `styleaug evaluate` commands: parse, make one library call, print."""

import json
import shlex
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any

import click

from styleaug.cli.console import INTERRUPTED, NEW_FILE, finish, output, progress, say, stages
from styleaug.cli.options import NamedOption, device_option
from styleaug.errors import ConfigError

__all__ = ["evaluate", "robustness"]

_INPUT = click.Path(path_type=Path)
_STEPS = """\b
Steps of an arm: none, jitter, grey, blur, trivialaugment, randaugment, augmix, channel-swap, mixstyle,
  style:BANK_OR_GENERATOR[,p=.5][,strength=.5..1][,sampler=mix], fda:DIR, histogram-matching:DIR.

\b
Example:
  styleaug evaluate robustness photo --test sketch --arm none --arm jitter+grey \\
    --arm paintings=style:art,p=.5+jitter --classifier squeezenet -o result.json
"""


def usual_device() -> str:
    """Pick a GPU if there is one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def tests_of(values: tuple[str, ...]) -> dict[str, str]:
    """Read `[NAME=]DIR`, each."""
    tests: dict[str, str] = {}
    for value in values:
        name, equals, folder = value.partition("=")
        name, folder = (name, folder) if equals and not Path(value).exists() else (Path(value).name, value)
        if name in tests:
            raise ConfigError(f"two tests are called {name!r}; name them: NAME=DIR.")
        tests[name] = folder
    return tests


def severities_of(text: str) -> tuple[int, ...]:
    """Read `1-5` or `1,3,5`."""
    try:
        parts = [part.partition("-") for part in text.split(",")]
        return tuple(value for low, _, high in parts for value in range(int(low), int(high or low) + 1))
    except ValueError:
        raise ConfigError(f"severities must be as in 1-5 or 1,3,5, got {text!r}.") from None


def corruptions_of(text: str | None) -> tuple[str, ...]:
    """Read names with commas, or `all`."""
    if text in (None, "", "none"):
        return ()
    from styleaug.robustness.corruptions import CORRUPTIONS

    return CORRUPTIONS if text == "all" else tuple(str(text).split(","))


def recipe_of(classifier: str, pretrained: bool, given: dict[str, Any]) -> Any:
    """Give the classifier's own recipe with what was said on the command line."""
    from styleaug.robustness.classifiers import default_recipe

    said = {name: value for name, value in given.items() if value is not None}
    return replace(default_recipe(classifier, pretrained=pretrained), **said)


@click.command(epilog=_STEPS)
@click.argument("train", type=_INPUT, metavar="TRAIN_DIR")
@click.option(
    "--test", "tests", multiple=True, metavar="[NAME=]DIR",
    help="Another domain with the same classes. home=DIR takes the place of the held-out images.",
)  # fmt: skip
@click.option(
    "--arm", "arms", multiple=True, metavar="[NAME=]SPEC",
    help="What is done to training images: steps joined by +, alternatives by /.  "
    "[default: none, jitter+grey, style:art]",
)  # fmt: skip
@click.option("--baseline", help="Arm that the others are compared with.  [default: none, or the first]")
@click.option("--classifier", default="small", show_default=True,
    help="small, wrn-16-2, squeezenet, mobilenetv2, timm:NAME, or a torchvision name.")  # fmt: skip
@click.option("--from-scratch", is_flag=True, help="Do not start from ImageNet weights.")
@click.option("--weights", type=_INPUT, help="Folder of ImageNet weights.  [default: downloaded]")
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, help="Runs of each arm.")
@click.option("--corruptions", help="all, or names with commas, applied to the home test.")
@click.option("--severities", default="1-5", show_default=True, help="Of the corruptions: 1-5, or 1,3,5.")
@click.option("--held-out", type=float, default=0.2, show_default=True, help="Share kept as home test.")
@click.option(
    "--train-per-class", type=click.IntRange(1), help="Train on N images of each class.", metavar="N"
)
@click.option("--balanced-classes", is_flag=True, help="Repeat the images of smaller classes.")
@click.option("--classes", help="Use these only, with commas.")
@click.option("--limit", type=click.IntRange(1), help="Images per class and folder, for a trial.")
@click.option("--fit", type=click.Choice(["crop", "squash"]), default="crop", show_default=True,
    help="How images become square.")  # fmt: skip
@click.option(
    "--size", "side", type=click.IntRange(8), cls=NamedOption, old=("--side",),
    help="Of the images, in pixels.  [default: the classifier's, as of all options down to --precision]",
)  # fmt: skip
@click.option("--epochs", type=click.IntRange(1), help="Times that all images are seen.")
@click.option("--batch", type=click.IntRange(1), help="Images a step.")
@click.option(
    "--learning-rate", "lr", type=float, cls=NamedOption, old=("--lr",), help="The highest of the schedule."
)
@click.option("--weight-decay", type=float, help="Of the optimiser.")
@click.option("--label-smoothing", type=float, help="Share of the truth that all classes get.")
@click.option("--optimiser", type=click.Choice(["adamw", "sgd"]), help="What takes the steps.")
@click.option("--schedule", type=click.Choice(["one-cycle", "cosine"]), help="Of the learning rate.")
@click.option("--geometry", type=click.Choice(["cells", "photo", "small", "none"]),
    help="cells: any rotation and scale. photo: crop and flip. small: shift and flip.")  # fmt: skip
@click.option("--precision", type=click.Choice(["float32", "bf16"]), help="Of the arithmetic.")
@click.option(
    "--workers", "jobs", type=click.IntRange(1), default=1, show_default=True, cls=NamedOption,
    old=("--jobs",), help="Runs side by side.",
)  # fmt: skip
@click.option("--threads", type=click.IntRange(1), help="Of each run.  [default: cores / workers]")
@device_option()
@click.option("--memory", type=float, default=4.0, show_default=True, help="GiB for images.")
@click.option("-o", "--out", type=NEW_FILE, help="Results, JSON; the table goes beside it, as .md.")
@click.option("--redo", is_flag=True, help="Do runs again that OUT has.")
@click.option("--strict", is_flag=True, help="Stop at a file that cannot be read.")
@click.option("--dry-run", is_flag=True, help="Show the plan and the time it needs.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON in place of the table.")
def robustness(
    train: Path,
    tests: tuple[str, ...],
    arms: tuple[str, ...],
    baseline: str | None,
    classifier: str,
    from_scratch: bool,
    weights: Path | None,
    seeds: int,
    corruptions: str | None,
    severities: str,
    held_out: float,
    train_per_class: int | None,
    balanced_classes: bool,
    classes: str | None,
    limit: int | None,
    fit: Any,
    jobs: int,
    threads: int | None,
    device: str | None,
    memory: float,
    out: Path | None,
    redo: bool,
    strict: bool,
    dry_run: bool,
    as_json: bool,
    **recipe: Any,
) -> None:
    """Train a classifier on TRAIN_DIR with each arm; test it at home, in other domains and corrupted.

    TRAIN_DIR has a folder per class. Arms are compared pairwise: same split, weights, batches and geometry
    for each seed. Stopped and called again with the same -o, it goes on with the runs that are missing.
    """
    from styleaug.robustness.evaluate import evaluate_robustness, plan_robustness

    options: dict[str, Any] = {
        "arms": arms or ("none", "jitter+grey", "style:art"),
        "baseline": baseline,
        "classifier": classifier,
        "pretrained": not from_scratch,
        "recipe": recipe_of(classifier, not from_scratch, recipe),
        "seeds": seeds,
        "corruptions": corruptions_of(corruptions),
        "severities": severities_of(severities),
        "held_out": held_out,
        "per_class": train_per_class,
        "balanced": balanced_classes,
        "classes": tuple(classes.split(",")) if classes else None,
        "limit": limit,
        "fit": fit,
        "weights": weights,
        "jobs": jobs,
        "threads": threads,
        "device": device or usual_device(),
        "memory": memory,
        "out": out,
        "redo": redo,
        "strict": strict,
    }
    try:
        with stages() as (report, said):
            if dry_run:
                found = plan_robustness(train, tests_of(tests), report=report, **options)
            else:
                found = evaluate_robustness(train, tests_of(tests), report=report, said=said, **options)
                if out:
                    said(f"{out} and {found.save(out.with_suffix('.md'))} written")
    except KeyboardInterrupt:
        kept = (
            f"{out} keeps the finished runs; go on with: styleaug {shlex.join(sys.argv[1:])}"
            if out
            else ("nothing is kept; name a file with -o to be able to go on.")
        )
        say(f"stopped; {kept}")
        sys.exit(INTERRUPTED)
    output(*(json.dumps(found.to_dict()) if as_json else found.table()).split("\n"))
    finish(found.failed, strict)


@click.group()
def evaluate() -> None:
    """Measure what styling reaches, keeps, costs and helps, on your own images."""


evaluate.add_command(robustness)


def measurement(function: Callable[..., Any]) -> Callable[..., None]:
    """Make a command of a function that measures: options that all of them share, and its table printed.

    Args:
        function: called with the other options and `report`; gives what has `save`, `to_dict`, `table`
            and `failed`.
    """

    @device_option()
    @click.option("-o", "--out", type=NEW_FILE, help="JSON file for all figures.")
    @click.option("--json", "as_json", is_flag=True, help="Print JSON in place of the table.")
    @click.option("--strict", is_flag=True, help="Exit with 1 if any image could not be read.")
    @wraps(function)
    def command(*, out: Path | None, as_json: bool, strict: bool, **options: Any) -> None:
        with progress("measuring") as report:
            found = function(report=report, **options)
        if out:
            found.save(out)
        output(*(json.dumps(found.to_dict()) if as_json else found.table()).split("\n"))
        finish(found.failed, strict)

    return command


@evaluate.command()
@click.argument("generators", nargs=-1, required=True)
@click.option("--content", type=_INPUT, required=True, help="Folder of images to style.")
@click.option("--style", type=_INPUT, help="Folder of styles.  [default: codes of the bank]")
@click.option("--bank", help="Name or path of a bank to draw codes from, in place of --style.")
@click.option("--pairs", type=click.IntRange(1), default=64, show_default=True, help="Images styled.")
@click.option("--size", type=click.IntRange(64, 1024), default=256, show_default=True, help="In pixels.")
@click.option(
    "--strength", type=click.FloatRange(0, 1), default=1.0, show_default=True,
    help="From 0 to 1, the whole style.",
)  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True, help="Of the choice of pairs.")
@click.option("--weights", type=_INPUT, help="Folder of the networks that judge.  [default: downloaded]")
@click.option("--sheet", type=NEW_FILE, help="PNG file for the best, median and worst pairs.")
@measurement
def quality(generators: tuple[str, ...], content: Path, style: Path | None, **options: Any) -> Any:
    """Measure how near GENERATORS (names, weights or run folders) come to styles, and what they keep.

    Images are paired at random and styled; each pair is measured, and "content unchanged" beside them.
    """
    from styleaug.evaluation.quality import evaluate_quality

    return evaluate_quality(generators, content, style, **options)


@evaluate.command()
@click.argument("train", type=_INPUT)
@click.argument("target", type=_INPUT)
@click.option("--bank", multiple=True, help="Name or path of a bank to try; may be repeated.")
@click.option(
    "--generator", "generators", multiple=True,
    help="To try with a bank fitted to TARGET; may be repeated.  [default: several, unless a bank is given]",
)  # fmt: skip
@click.option("--size", type=click.IntRange(32, 1024), default=128, show_default=True, help="In pixels.")
@click.option(
    "--most", type=click.IntRange(20), default=500, show_default=True, help="Images that are read of each."
)
@click.option(
    "--folds", type=click.IntRange(2, 20), default=5, show_default=True,
    help="Parts that images are divided in, to validate on one at a time.",
)  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True, help="Of all that is random.")
@click.option("--weights", type=_INPUT, help="Folder of SqueezeNet's weights, which read content better.")
@click.option(
    "--content", type=click.Choice(["adain", "squeezenet"]),
    help="Network that reads content.  [default: squeezenet with --weights, else adain]",
)  # fmt: skip
@click.option("--sheet", type=NEW_FILE, help="PNG file for images before and after, beside the target.")
@measurement
def shift(
    train: Path, target: Path, bank: tuple[str, ...], generators: tuple[str, ...], **options: Any
) -> Any:
    """Measure how far TARGET lies from TRAIN, how much of it styling closes, and recommend what to try.

    Both are folders of images; labels are not needed. No bank is written.
    """
    from styleaug.evaluation.shift import evaluate_shift

    return evaluate_shift(train, target, bank=bank or None, generators=generators or None, **options)


@evaluate.command("labels")
@click.argument("images", type=_INPUT)
@click.option("--generator", "generators", multiple=True, help="Name or path; may be repeated.")
@click.option("--bank", multiple=True, help="Name or path; may be repeated.  [default: art]")
@click.option("--style", "styles", type=_INPUT, help="Folder to fit banks to.  [default: IMAGES]")
@click.option(
    "--strength", "strengths", type=click.FloatRange(0, 1, min_open=True), multiple=True,
    default=(0.25, 0.5, 0.75, 1.0), show_default=True, help="May be repeated.",
)  # fmt: skip
@click.option(
    "--classifier", default="squeezenet", show_default=True,
    help="squeezenet or a torchvision name, for classes of ImageNet; trained, on the folders of IMAGES.",
)  # fmt: skip
@click.option("--masks", type=_INPUT, help="Folder of masks with the names of the images.")
@click.option("--weights", type=_INPUT, help="Folder of SqueezeNet's weights.  [default: downloaded]")
@click.option("--size", type=click.IntRange(32, 1024), default=224, show_default=True, help="In pixels.")
@click.option("--most", type=click.IntRange(1), default=200, show_default=True, help="Images that are read.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of all that is random.")
@click.option("--sheet", type=NEW_FILE, help="PNG file for the flips that the classifier is surest of.")
@measurement
def _labels(images: Path, bank: tuple[str, ...], sheet: Path | None, **options: Any) -> Any:
    """Measure how safe labels are when IMAGES are styled: flipped decisions, moved edges, lost contrast.

    With a folder per class in IMAGES, --classifier trained trains a small network on two thirds of them.
    """
    from styleaug.evaluation.labels import evaluate_labels

    found = evaluate_labels(images, bank=bank or None, **options)
    if sheet:
        found.save_sheet(sheet)
    return found
