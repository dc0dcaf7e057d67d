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
Steps of an arm: none, jitter, grey, blur, trivialaugment, randaugment, augmix, prime, erasing,
  channel-swap, mixstyle, dsu, preset:NAME, fda:DIR, histogram-matching:DIR,
  style:BANK_OR_GENERATOR[,p=.5][,strength=.5..1][,sampler=mix]. Of alternatives (/) each has an
  option weight, 1 if it is not given: style:art,weight=3/style:randconv.
  normalize:BANK changes test images only.

\b
Example:
  styleaug evaluate robustness photo --test sketch --arm none --arm jitter+grey \\
    --arm paintings=style:art,p=.5+jitter --classifier squeezenet -o result.json
  styleaug evaluate robustness cells --task segmentation --test blog=blog.tsv --arm none \\
    --arm jitter+grey --arm regions=style:gin,splice=mask,parts=3 -o cells.json
"""


def usual_device() -> str:
    """Return `cuda` if there is a GPU, else `cpu`."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def tests_of(values: tuple[str, ...]) -> dict[str, Any]:
    """Read test domains written as `[NAME=]DIR`, or benchmarks by name; return what each name stands for."""
    from styleaug.robustness.protocol import named_tests

    split = [(value, *value.partition("=")) for value in values]
    return named_tests(
        (name, folder) if equals and not Path(value).exists() else (None, value)
        for value, name, equals, folder in split
    )


def severities_of(text: str) -> tuple[int, ...]:
    """Read corruption severities written as `1-5` or `1,3,5`."""
    try:
        parts = [part.partition("-") for part in text.split(",")]
        return tuple(value for low, _, high in parts for value in range(int(low), int(high or low) + 1))
    except ValueError:
        raise ConfigError(f"severities must look like 1-5 or 1,3,5, got {text!r}.") from None


def corruptions_of(text: str | None, *, masks: bool) -> tuple[str, ...]:
    """Read names of corruptions, separated by commas, or `all` that leave masks true."""
    if text in (None, "", "none"):
        return ()
    from styleaug.robustness.corruptions import CORRUPTIONS

    every = tuple(name for name in CORRUPTIONS if not (masks and name == "elastic_transform"))
    return every if text == "all" else tuple(str(text).split(","))


def recipe_of(task: Any, classifier: str, pretrained: bool, given: dict[str, Any]) -> Any:
    """Return the network's usual recipe, changed by the options on the command line."""
    said = {name: value for name, value in given.items() if value is not None}
    return replace(task.usual_recipe(classifier, pretrained=pretrained), **said)


def task_of(name: str, masks: dict[str, Any]) -> Any:
    """Return the task of a name, with the options for masks that are given."""
    if name == "segmentation":
        from styleaug.robustness.segmentation import Segmentation

        return Segmentation(**masks)
    if masks:
        raise ConfigError(f"{next(iter(masks))} goes with task=segmentation; leave it out for classes.")
    from styleaug.robustness.classification import Classification

    return Classification()


@click.command(epilog=_STEPS)
@click.argument("train", type=_INPUT, metavar="TRAIN_DIR")
@click.option(
    "--task", type=click.Choice(["classification", "segmentation"]), default="classification",
    show_default=True, help="What is trained: classifiers, or networks for masks.",
)  # fmt: skip
@click.option(
    "--test", "tests", multiple=True, metavar="[NAME=]DIR",
    help="Folder of another domain with the same classes, or a benchmark. home=DIR replaces the held-out "
    "images.",
)  # fmt: skip
@click.option(
    "--arm", "arms", multiple=True, metavar="[NAME=]SPEC",
    help="How training images are changed: steps joined by +, alternatives by /.  "
    "[default: none, jitter+grey, style:art]",
)  # fmt: skip
@click.option("--baseline", help="Arm to compare the others with.  [default: none, or the first]")
@click.option("--classifier", default="small", show_default=True,
    help="small, wrn-16-2, squeezenet, mobilenetv2, timm:NAME, or a torchvision name.")  # fmt: skip
@click.option("--segmenter", help="Network for masks: unet, unet-WIDTH, torchvision:NAME, monai:NAME, or "
    "smp:NAME[:ENCODER].  [default: unet]")  # fmt: skip
@click.option("--void", type=int, metavar="N", help="Masks: label of pixels without a class, which are "
    "neither trained on nor scored.")  # fmt: skip
@click.option("--background", type=int, metavar="N",
    help="Masks: label that does not count in the score; -1 counts all.  [default: 0]")  # fmt: skip
@click.option("--tolerance", type=click.FloatRange(0), metavar="PIXELS",
    help="Masks: distance up to which borders agree, for the surface Dice.  [default: 2]")  # fmt: skip
@click.option("--skip", is_flag=True, help="Masks: leave out images and masks that cannot be used.")
@click.option("--from-scratch", is_flag=True, help="Do not start from ImageNet weights.")
@click.option("--weights", type=_INPUT, help="Folder of ImageNet weights.  [default: downloaded]")
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, help="Runs of each arm.")
@click.option("--corruptions", help="Corrupt the home test images: all, or names with commas.")
@click.option("--severities", default="1-5", show_default=True, help="Corruption strengths: 1-5, or 1,3,5.")
@click.option(
    "--held-out", type=float, default=0.2, show_default=True, help="Share of TRAIN_DIR kept as home test."
)
@click.option(
    "--train-per-class", type=click.IntRange(1), help="Train on N images of each class.", metavar="N"
)
@click.option("--balanced-classes", is_flag=True, help="Repeat the images of smaller classes.")
@click.option("--classes", help="Use only these classes, with commas; with masks, the labels.")
@click.option(
    "--limit",
    type=click.IntRange(1),
    help="Use at most N images of each class and folder, for a trial.",
    metavar="N",
)
@click.option("--fit", type=click.Choice(["crop", "squash"]), default="crop", show_default=True,
    help="How images become square.")  # fmt: skip
@click.option(
    "--size", "side", type=click.IntRange(8), cls=NamedOption, old=("--side",),
    help="Side of the square images in pixels.  [default for this and all up to --precision: the "
    "network's]",
)  # fmt: skip
@click.option("--epochs", type=click.IntRange(1), help="Number of passes over all images.")
@click.option("--batch", type=click.IntRange(1), help="Images in each step.")
@click.option(
    "--learning-rate",
    "lr",
    type=float,
    cls=NamedOption,
    old=("--lr",),
    help="Highest learning rate of the schedule.",
)
@click.option("--weight-decay", type=float, help="Weight decay of the optimiser.")
@click.option("--label-smoothing", type=float, help="Share of each label that is spread over all classes.")
@click.option("--optimiser", type=click.Choice(["adamw", "sgd"]), help="Method that updates the weights.")
@click.option("--schedule", type=click.Choice(["one-cycle", "cosine"]), help="How the learning rate changes.")
@click.option("--geometry", type=click.Choice(["cells", "photo", "small", "none"]),
    help="Basic augmentation. cells: any rotation and scale. photo: crop and flip. small: shift and "
    "flip.")  # fmt: skip
@click.option("--precision", type=click.Choice(["float32", "bf16"]), help="Number format of the training.")
@click.option(
    "--workers", "jobs", type=click.IntRange(1), default=1, show_default=True, cls=NamedOption,
    old=("--jobs",), help="Runs at the same time.",
)  # fmt: skip
@click.option("--threads", type=click.IntRange(1), help="Threads of each run.  [default: cores / workers]")
@device_option()
@click.option("--memory", type=float, default=4.0, show_default=True, help="GiB of memory for images.")
@click.option(
    "-o", "--out", type=NEW_FILE, help="JSON file for the results; the table is written beside it as .md."
)
@click.option("--redo", is_flag=True, help="Repeat runs that OUT already holds.")
@click.option("--strict", is_flag=True, help="Stop at a file that cannot be read.")
@click.option("--dry-run", is_flag=True, help="Show the plan and the time it needs.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of the table.")
def robustness(
    train: Path,
    task: str,
    tests: tuple[str, ...],
    arms: tuple[str, ...],
    baseline: str | None,
    classifier: str,
    segmenter: str | None,
    void: int | None,
    background: int | None,
    tolerance: float | None,
    skip: bool,
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
    """Train classifiers with and without styling, and compare them.

    TRAIN_DIR has one folder per class. Each arm is one way to augment the training images. The classifiers
    are tested on held-out images of TRAIN_DIR ("home"), on other domains (--test) and on corrupted images.

    With --task segmentation, TRAIN_DIR and --test are folders with the folders images and masks, whose files
    have the same names apart from their suffixes; or CSV or TSV lists with the columns path and mask. A mask
    has the number of its class at each pixel, 0 for the background; 0 and 255 alone count as 0 and 1.
    The score is the mean Dice. Pictures of the results are written beside -o.

    TRAIN_DIR and --test may name a benchmark on disk: wilds:ROOT/camelyon17, cifar10c:DIR, imagenetc:DIR,
    pacs:DIR[:DOMAIN] or domainbed:DIR:DOMAIN. As TRAIN_DIR it brings its tests. Nothing is downloaded.

    For each seed all arms share split, initial weights, batches and geometry. If the command was stopped,
    call it again with the same -o: it does only the missing runs.
    """
    from styleaug.robustness.evaluate import evaluate_robustness, plan_robustness

    masks = {"segmenter": segmenter, "void": void, "background": background, "tolerance": tolerance}
    chosen = task_of(task, {name: value for name, value in masks.items() if value is not None})
    options: dict[str, Any] = {
        "task": chosen,
        "skip": skip,
        "arms": arms or ("none", "jitter+grey", "style:art"),
        "baseline": baseline,
        "classifier": classifier,
        "pretrained": not from_scratch,
        "recipe": recipe_of(chosen, classifier, not from_scratch, recipe),
        "seeds": seeds,
        "corruptions": corruptions_of(corruptions, masks=chosen.masks),
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
            f"{out} keeps the finished runs. Go on with: styleaug {shlex.join(sys.argv[1:])}"
            if out
            else ("nothing is kept. Use -o to keep finished runs next time.")
        )
        say(f"stopped; {kept}")
        sys.exit(INTERRUPTED)
    output(*(json.dumps(found.to_dict()) if as_json else found.table()).split("\n"))
    finish(found.failed, strict)


@click.group()
def evaluate() -> None:
    """Measure the effects of styling on your own images."""


evaluate.add_command(robustness)


def measurement(function: Callable[..., Any]) -> Callable[..., None]:
    """Turn a function that measures into a command with the shared options, which prints its table.

    Args:
        function: called with the other options and `report`; returns an object with `save`, `to_dict`,
            `table` and `failed`.
    """

    @device_option()
    @click.option("-o", "--out", type=NEW_FILE, help="JSON file for all figures.")
    @click.option("--json", "as_json", is_flag=True, help="Print JSON instead of the table.")
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
@click.option("--content", type=_INPUT, required=True, help="Folder of images to style (the content).")
@click.option("--style", type=_INPUT, help="Folder of style images.  [default: use a bank]")
@click.option("--bank", help="Name or path of a bank to draw styles from, instead of --style.")
@click.option(
    "--pairs", type=click.IntRange(1), default=64, show_default=True, help="Number of images to style."
)
@click.option(
    "--size", type=click.IntRange(64, 1024), default=256, show_default=True, help="Side of images in pixels."
)
@click.option(
    "--strength", type=click.FloatRange(0, 1), default=1.0, show_default=True,
    help="From 0 (unchanged) to 1 (full style).",
)  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True, help="Seed for the choice of pairs.")
@click.option("--weights", type=_INPUT, help="Folder of the networks that measure.  [default: downloaded]")
@click.option("--sheet", type=NEW_FILE, help="PNG file that shows the best, median and worst pairs.")
@measurement
def quality(generators: tuple[str, ...], content: Path, style: Path | None, **options: Any) -> Any:
    """Measure how well GENERATORS reach a style and keep the content.

    GENERATORS are names, weights or run folders. Each content image is paired with a random style, styled and
    measured. The row "content unchanged" shows the same measures for images that were not styled.
    """
    from styleaug.evaluation.quality import evaluate_quality

    return evaluate_quality(generators, content, style, **options)


@evaluate.command()
@click.argument("train", type=_INPUT)
@click.argument("target", type=_INPUT)
@click.option("--bank", multiple=True, help="Name or path of a bank to try; may be repeated.")
@click.option(
    "--generator", "generators", multiple=True,
    help="Generator to try, with a bank fitted to TARGET; may be repeated.  [default: several, "
    "unless a bank is given]",
)  # fmt: skip
@click.option(
    "--size", type=click.IntRange(32, 1024), default=128, show_default=True, help="Side of images in pixels."
)
@click.option(
    "--most", type=click.IntRange(20), default=500, show_default=True, help="Images to read from each folder."
)
@click.option(
    "--folds", type=click.IntRange(2, 20), default=5, show_default=True,
    help="Number of parts for cross-validation.",
)  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True, help="Random seed.")
@click.option("--weights", type=_INPUT, help="Folder of SqueezeNet's weights, which describe content better.")
@click.option(
    "--content", type=click.Choice(["adain", "squeezenet"]),
    help="Network that describes content.  [default: squeezenet with --weights, else adain]",
)  # fmt: skip
@click.option(
    "--sheet", type=NEW_FILE, help="PNG file that shows images before and after, beside the target."
)
@measurement
def shift(
    train: Path, target: Path, bank: tuple[str, ...], generators: tuple[str, ...], **options: Any
) -> Any:
    """Measure the shift from TRAIN to TARGET and how much styling closes.

    The result recommends what to try. Both are folders of images; labels are not needed. No bank is written.
    """
    from styleaug.evaluation.shift import evaluate_shift

    return evaluate_shift(train, target, bank=bank or None, generators=generators or None, **options)


class _FaceNetwork(click.ParamType):
    """The name or the file of a face network. Its value may be left out, so a folder after it is a slip."""

    name = "network"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if Path(value).is_dir():
            self.fail(f"{value} is a folder. Write IMAGES before --identity.", param, ctx)
        return str(value)


@evaluate.command("labels")
@click.argument("images", type=_INPUT)
@click.option("--generator", "generators", multiple=True, help="Generator by name or path; may be repeated.")
@click.option("--bank", multiple=True, help="Bank by name or path; may be repeated.  [default: art]")
@click.option("--style", "styles", type=_INPUT, help="Folder to fit banks to.  [default: IMAGES]")
@click.option(
    "--strength", "strengths", type=click.FloatRange(0, 1, min_open=True), multiple=True,
    default=(0.25, 0.5, 0.75, 1.0), show_default=True, help="Strength to test; may be repeated.",
)  # fmt: skip
@click.option(
    "--classifier", default="squeezenet", show_default=True,
    help="squeezenet or a torchvision name, for ImageNet's classes. trained: train one on the "
    "folders of IMAGES.",
)  # fmt: skip
@click.option("--masks", type=_INPUT, help="Folder of masks, named like the images.")
@click.option(
    "--identity", type=_FaceNetwork(), is_flag=False, flag_value="dlib", metavar="[NETWORK]",
    help="Measure instead whether faces are verified as the same person's. dlib (the usual one), or an ONNX "
    "file of a face network.",
)  # fmt: skip
@click.option("--weights", type=_INPUT, help="Folder of SqueezeNet's weights.  [default: downloaded]")
@click.option(
    "--size", type=click.IntRange(32, 1024), default=224, show_default=True, help="Side of images in pixels."
)
@click.option(
    "--most", type=click.IntRange(1), default=200, show_default=True, help="Number of images to read."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Random seed.")
@click.option(
    "--sheet", type=NEW_FILE, help="PNG file that shows the changed decisions with the highest confidence."
)
@measurement
def _labels(
    images: Path, bank: tuple[str, ...], sheet: Path | None, identity: str | None, **options: Any
) -> Any:
    """Measure whether IMAGES keep their labels when they are styled.

    Counts changed decisions of a classifier, and measures moved edges and lost contrast. If IMAGES has one
    folder per class, --classifier trained trains a small network on two thirds of the images.

    With --identity the label is whose face it is. IMAGES has the folders gallery and probe, each with one
    folder of images per person. The probes are styled and compared with the gallery.
    """
    if identity is None:
        from styleaug.evaluation.labels import evaluate_labels

        found = evaluate_labels(images, bank=bank or None, **options)
    else:
        from styleaug.evaluation.identity import evaluate_identity

        context = click.get_current_context()
        for name in ("classifier", "masks", "weights"):
            if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
                raise ConfigError(f"--{name} does not go with --identity; leave one of them out.")
            del options[name]
        found = evaluate_identity(images, bank=bank or None, network=identity, **options)
    if sheet:
        found.save_sheet(sheet)
    return found
