"""The `styleaug evaluate` commands: parse, make one library call, print."""

import json
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from styleaug.cli_options import device_option
from styleaug.cli_robustness import robustness
from styleaug.console import NEW_FILE, finish, output, progress

__all__ = ["evaluate"]

INPUT = click.Path(path_type=Path)


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
@click.option("--content", type=INPUT, required=True, help="Folder of images to style.")
@click.option("--style", type=INPUT, help="Folder of styles.  [default: codes of the bank]")
@click.option("--bank", help="Name or path of a bank to draw codes from, in place of --style.")
@click.option("--pairs", type=click.IntRange(1), default=64, show_default=True, help="Images styled.")
@click.option("--size", type=click.IntRange(64, 1024), default=256, show_default=True, help="In pixels.")
@click.option(
    "--strength", type=click.FloatRange(0, 1), default=1.0, show_default=True,
    help="From 0 to 1, the whole style.",
)  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True, help="Of the choice of pairs.")
@click.option("--weights", type=INPUT, help="Folder of the networks that judge.  [default: downloaded]")
@click.option("--sheet", type=NEW_FILE, help="PNG file for the best, median and worst pairs.")
@measurement
def quality(generators: tuple[str, ...], content: Path, style: Path | None, **options: Any) -> Any:
    """Measure how near GENERATORS (names, weights or run folders) come to styles, and what they keep.

    Images are paired at random and styled; each pair is measured, and "content unchanged" beside them.
    """
    from styleaug.evaluation.quality import evaluate_quality

    return evaluate_quality(generators, content, style, **options)


@evaluate.command()
@click.argument("train", type=INPUT)
@click.argument("target", type=INPUT)
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
@click.option("--weights", type=INPUT, help="Folder of SqueezeNet's weights, which read content better.")
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


@evaluate.command()
@click.argument("images", type=INPUT)
@click.option("--generator", "generators", multiple=True, help="Name or path; may be repeated.")
@click.option("--bank", multiple=True, help="Name or path; may be repeated.  [default: art]")
@click.option("--style", "styles", type=INPUT, help="Folder to fit banks to.  [default: IMAGES]")
@click.option(
    "--strength", "strengths", type=click.FloatRange(0, 1, min_open=True), multiple=True,
    default=(0.25, 0.5, 0.75, 1.0), show_default=True, help="May be repeated.",
)  # fmt: skip
@click.option(
    "--classifier", default="squeezenet", show_default=True,
    help="squeezenet or a torchvision name, for classes of ImageNet; trained, on the folders of IMAGES.",
)  # fmt: skip
@click.option("--masks", type=INPUT, help="Folder of masks with the names of the images.")
@click.option("--weights", type=INPUT, help="Folder of SqueezeNet's weights.  [default: downloaded]")
@click.option("--size", type=click.IntRange(32, 1024), default=224, show_default=True, help="In pixels.")
@click.option("--most", type=click.IntRange(1), default=200, show_default=True, help="Images that are read.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of all that is random.")
@click.option("--sheet", type=NEW_FILE, help="PNG file for the flips that the classifier is surest of.")
@measurement
def labels(images: Path, bank: tuple[str, ...], sheet: Path | None, **options: Any) -> Any:
    """Measure how safe labels are when IMAGES are styled: flipped decisions, moved edges, lost contrast.

    With a folder per class in IMAGES, --classifier trained trains a small network on two thirds of them.
    """
    from styleaug.evaluation.label_safety import evaluate_labels

    found = evaluate_labels(images, bank=bank or None, **options)
    if sheet:
        found.save_sheet(sheet)
    return found
