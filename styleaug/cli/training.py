"""The commands `styleaug fit-style` and `styleaug train`; options of `train` come from its configurations."""

import json
import logging
import os
import re
import shlex
import sys
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import click

from styleaug.cli.console import NEW_FILE, finish, going_on, output, progress, say, training_progress
from styleaug.cli.options import NamedOption, shell_words
from styleaug.errors import ConfigError
from styleaug.io.atomic import check_target

__all__ = ["fit_style_command", "train_group"]

_INPUT = click.Path(path_type=Path)
_OUTPUT = click.Path(path_type=Path)
MINUTES = click.FloatRange(0)

OWN = ("resume", "config", "preset_name", "networks", "minutes", "dry_run")
"""Options of `train_group` that are not part of the configuration."""

RECIPES = {
    "adain": "Texture, strokes and colour of any style.",
    "photo": "Local colour, light and tone of any style; no edge moves.",
    "patchswap": "Patches of any style, starting from adain.",
    "patchgan": "One folder to another, with pairs of the same name (pix2pix).",
    "cyclegan": "Two folders in both directions, without pairs.",
    "cut": "One folder to another, without pairs; half cyclegan's cost.",
    "vaegan": "One folder to another with many outputs, with or without pairs.",
}
FLAGS = {"devices": "workers"}
"""The option's name for a field of the configuration, if their names differ."""
OLD = {"devices": ("--devices",), "learning_rate": ("--lr",)}


def refuse(context: click.Context, option: click.Parameter, value: Any) -> None:
    """Refuse an option that `fit-style` had, with the command that does the same."""
    if value is None:
        return
    further = "NAME --init GENERATOR --steps STEPS" if option.name == "finetune" else value
    raise click.UsageError(
        f"--{option.name} is now a command of its own: styleaug train {further} SOURCE TARGET -o OUT. OUT is "
        "a run folder, which StyleAugment takes like a bank."
    )


@click.command("fit-style")
@click.argument("images", type=_INPUT, nargs=-1, required=True, metavar="IMAGES...")
@click.option(
    "-o", "--out", type=_OUTPUT, required=True, help="Bank to write (.safetensors), or a folder with --split."
)
@click.option("--generator", default="reinhard-rgb", show_default=True, help="Name, or path to weights.")
@click.option(
    "--max-styles", type=click.IntRange(1), default=256, show_default=True, help="Most styles in the bank."
)
@click.option(
    "--patches", type=click.IntRange(1), default=1, show_default=True,
    help="Styles to read from each image. 1 reads the whole image, N reads N random crops.",
)  # fmt: skip
@click.option(
    "--choose", type=click.Choice(["random", "diverse"]), default="random", show_default=True,
    help="Which styles to keep, if there are more. random: any. diverse: those that cover the folder best.",
)  # fmt: skip
@click.option(
    "--min-images", type=click.IntRange(1), default=5, show_default=True,
    help="Least number of patients (DICOM) or files behind each style. 1: each style is that of one image.",
)  # fmt: skip
@click.option(
    "--epsilon",
    type=float,
    help="Differential privacy: 1 is strong, 10 is weak. Needs about a thousand patients.",
)
@click.option("--delta", type=float, help="Delta of differential privacy.  [default: 1e-5]")
@click.option(
    "--group-by", metavar="KEY",
    help="How to group images: folder, site, scanner, modality, body-part, a DICOM tag or a column "
    "of the list.",
)  # fmt: skip
@click.option(
    "--class-by",
    metavar="KEY",
    help="Classes of the images: folder or a column. Warns if groups differ in them.",
)
@click.option(
    "--labels", is_flag=True, help="Write the names of groups into the bank.  [default: g1, g2, ...]"
)
@click.option("--split", is_flag=True, help="Write one bank per group into the folder OUT.")
@click.option(
    "--window",
    help="Values shown as black and white, for DICOM and volumes: CENTRE/WIDTH (40/400), auto or dicom.",
)
@click.option(
    "--mpp", type=click.FloatRange(0.01, 1000), metavar="MICRONS",
    help="Microns per pixel at which tiles of slides are read, such as 0.5.  [default: full size]",
)  # fmt: skip
@click.option(
    "--level", type=click.IntRange(0), help="Level of the slides' pyramids to read, in place of --mpp."
)
@click.option(
    "--report", type=NEW_FILE, help="Report to write (.html or .png): the styles on a reference image."
)
@click.option(
    "--reference",
    type=_INPUT,
    help="Image for the report; readers of the report see it.  [default: a sample image]",
)
@click.option("--method", callback=refuse, expose_value=False, hidden=True, help="See `train`.")
@click.option("--finetune", callback=refuse, expose_value=False, hidden=True, help="See `train`.")
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Seed for the choice of images and crops."
)
@click.option("--licence", default="", help="Licence of the images, written into the bank.")
@click.option("--strict", is_flag=True, help="Exit with 1 if any image could not be read.")
@click.pass_context
def fit_style_command(
    context: click.Context,
    images: tuple[Path, ...],
    out: Path,
    generator: str,
    max_styles: int,
    patches: int,
    choose: Any,
    min_images: int,
    epsilon: float | None,
    delta: float | None,
    group_by: str | None,
    class_by: str | None,
    labels: bool,
    split: bool,
    window: str | None,
    mpp: float | None,
    level: int | None,
    report: Path | None,
    reference: Path | None,
    seed: int,
    licence: str,
    strict: bool,
) -> None:
    """Read the styles of images into a bank of a few kilobytes.

    IMAGES are a folder, a CSV or TSV list with the column `path`, or image files. No labels are needed. The
    bank holds statistics, but no pixels and no file names. Each style is a mean over several images, so
    fewer than five images, such as one painting, need --min-images 1. If the command is interrupted, call
    it again to go on.
    """
    if len(images) > 1 and not all(path.is_file() or path.suffix == ".zarr" for path in images):
        raise click.UsageError(
            "give one folder, or image files. To join banks of several folders: styleaug bank merge. To "
            "train a generator from one folder to another: styleaug train."
        )
    if split and group_by is None:
        raise click.UsageError("--split needs --group-by.")
    if not split:
        check_target(out)
    if reference and not report:
        raise click.UsageError("--reference needs --report.")
    from styleaug.fitting.fit import fit_style
    from styleaug.io.scan import parse_window
    from styleaug.sheets import check_report, write_report

    if report:
        check_report(report, reference, images)
    with going_on(), progress("reading styles") as advance:
        fit = fit_style(
            images[0] if len(images) == 1 else images,
            generator=generator,
            max_styles=max_styles,
            patches=patches,
            choose=choose,
            min_images=min_images,
            epsilon=epsilon,
            delta=delta,
            group_by=group_by,
            class_by=class_by,
            labels=labels,
            window=parse_window(window),
            mpp=mpp,
            level=level,
            keep=out.with_name(f".{out.name}.codes"),
            seed=seed,
            licence=licence,
            report=advance,
        )
    if fit.left_out:
        say(fit.left_out)
    for text in fit.warnings:
        say(f"warning: {shell_words(text, context.find_root().command)}")
    for label, group in fit.groups.items():
        told = f"{group.styles} styles of {group.images} images, {group.origins} patients or files"
        say(f"{label} is {group.name}: {told}")
    if not (strict and fit.failed):
        banks = {out: fit.bank}
        if split:
            banks = {out / f"{name}.safetensors": one for name, one in file_names(fit.split()).items()}
        for path, one in banks.items():
            one.save(path)
            say(f"{path}: {one}, {path.stat().st_size / 1024:.1f} kB")
        say(f"use it as {line_to_use(next(iter(banks)), generator)}")
        if report:
            say(f"{write_report(report, fit.bank, generator, reference=reference)} written")
            if not reference:
                say("it shows the styles on a sample image; use --reference for an image of your own")
    finish(fit.failed, strict)


def line_to_use(bank: Path, generator: str) -> str:
    """Return the line of Python that trains with a bank, as our measurements chose it for its generator."""
    sampler = ', sampler="gaussian"' if generator == "randstainna" else ""
    return f"StyleAugment({str(bank)!r}{sampler}{given_generator(generator)})"


def given_generator(generator: str) -> str:
    """Return the argument for a generator that a bank does not name by itself."""
    from styleaug.weights import generator_names

    return "" if generator in generator_names() else f", generator={generator!r}"


def file_names(banks: dict[str, Any]) -> dict[str, Any]:
    """Turn labels into file names that are valid in a path and differ from each other."""
    named: dict[str, Any] = {}
    for number, (label, bank) in enumerate(banks.items(), start=1):
        name = re.sub(r"[^\w.-]+", "_", label).strip("._")
        taken = {other.lower() for other in named}  # some file systems ignore case
        named[name if name and name.lower() not in taken else f"{name}-{number}".strip("-")] = bank
    return named


@click.group()
def train_group() -> None:
    """Train a generator from SOURCE to TARGET.

    SOURCE and TARGET are folders, or CSV/TSV lists with a column `path`. OUT becomes a run folder with log,
    samples, report.html and checkpoints. At the end it holds the generator with the best held-out score:
    use it as StyleAugment(generator="OUT").
    """


class TrainCommand(click.Command):
    """A command that makes its options from a configuration, when they are first needed."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return the parameters, with one option for each field of the configuration."""
        from dataclasses import fields

        from styleaug.training.config import preset

        known, defaults = super().get_params(ctx), preset(self.name or "")
        made = [option_for(item, getattr(defaults, item.name)) for item in fields(defaults)]
        return known[:-1] + [option for option in made if option.name != "recipe"] + known[-1:]


def option_for(item: Any, default: Any) -> click.Option:
    """Return the option for a field. If it is not given, it is None, and the preset or file decides."""
    flag = FLAGS.get(item.name, item.name.replace("_", "-"))
    kind, text = item.type, item.metadata.get("help")
    shown = default
    if kind is bool:
        flags, kind, shown = f"--{flag}/--no-{flag}", None, flag if default else f"no-{flag}"
    else:
        flags = f"--{flag}"
    text = f"{text}  [default: {shown}]" if shown != "" else text
    if get_origin(kind) is Literal:
        choices = get_args(kind)
        return click.Option(
            [flags], type=click.Choice([str(choice) for choice in choices]), help=text,
            callback=lambda c, p, v: v if v is None else type(choices[0])(v),
        )  # fmt: skip
    return NamedOption([flags, item.name], old=OLD.get(item.name, ()), type=kind, default=None, help=text)


def train_command(name: str, text: str) -> None:
    """Add `styleaug train NAME`."""

    @train_group.command(
        name, cls=TrainCommand, help=f"{text}\n\nSOURCE and TARGET are folders or CSV/TSV lists."
    )
    @click.argument("source", type=_INPUT)
    @click.argument("target", type=_INPUT)
    @click.option("-o", "--out", type=_OUTPUT, required=True, help="Run folder to write.")
    @click.option("--resume", is_flag=True, help="Continue the run in OUT. A higher --steps makes it longer.")
    @click.option(
        "--config", type=_INPUT, help="Options in a .json or .toml file. Options on the command line win."
    )
    @click.option(
        "--preset", "preset_name", default="small", show_default=True, help="Default options: small or paper."
    )
    @click.option("--networks", type=_INPUT, help="Folder of loss networks.  [default: downloaded]")
    @click.option("--minutes", type=MINUTES, default=float("inf"), help="Stop after this number of minutes.")
    @click.option("--dry-run", is_flag=True, help="Check the inputs, print the options as JSON, and stop.")
    def command(source: Path, target: Path, out: Path, **options: Any) -> None:
        told = {name: options.pop(name) for name in OWN}
        given = {key: value for key, value in options.items() if value is not None}
        run_training(name, source, target, out, given, **told)


def run_training(
    name: str,
    source: Path,
    target: Path,
    out: Path,
    options: dict[str, Any],
    *,
    config: Path | None = None,
    preset_name: str = "small",
    networks: Path | None = None,
    resume: bool = False,
    minutes: float = float("inf"),
    dry_run: bool = False,
) -> None:
    """Resolve the configuration, train, and print how it ended.

    Options come from, in this order: the preset, the resumed run, the file, `options`. Later ones win.
    """
    from styleaug.training.config import preset

    wanted = preset(name, preset_name)
    if resume and (out / "config.json").exists():
        wanted = with_file(wanted, out / "config.json")
    if config is not None:
        wanted = with_file(wanted, config)
    wanted = wanted.with_options(options)
    from styleaug.training.data import TrainingData
    from styleaug.training.loop import train
    from styleaug.training.preflight import check_run
    from styleaug.training.recipes import make_recipe

    recipe = make_recipe(wanted)
    data = TrainingData(source, target, wanted, paired=recipe.paired)
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it logs a line on every start
    if os.environ.get("LOCAL_RANK", "0") == "0":
        for line in data.left_out:
            say(line)
        if data.warning and recipe.needs_target:
            say(f"warning: {data.warning}")
    if dry_run:
        check_run(recipe, data, out, networks=networks, resume=resume)
        output(json.dumps(wanted.to_dict(), sort_keys=True))
        return
    with training_progress(wanted.batch) as report:
        outcome = train(recipe, data, out, networks=networks, resume=resume, minutes=minutes, report=report)
    if outcome.why:  # only one of several processes prints
        for reason in data.failed.values():
            say(f"skipped: {reason}")
    if outcome.finished and outcome.why:
        say(f"{out}: {outcome.why}", f"look at {out / 'report.html'}")
        say(f"use it as StyleAugment(generator={str(out)!r})")
    elif outcome.why:
        words = [word for word in sys.argv[1:] if word != "--resume"]
        say(f"stopped at step {outcome.step}: {outcome.why}. Go on with:")
        say(shlex.join(["styleaug", *words, "--resume"]))


def with_file(wanted: Any, file: Path) -> Any:
    """Return the configuration, changed by the options in a file.

    Raises:
        ConfigError: the file cannot be read, holds an unknown option, or is for another recipe.
    """
    from styleaug.training.config import read_config

    options = read_config(file)
    recipe = options.get("recipe", wanted.recipe)
    if recipe != wanted.recipe:
        raise ConfigError(f"{file} holds options of the recipe {recipe!r}, not of {wanted.recipe!r}.")
    try:
        return wanted.with_options(options)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from None


for _recipe, _text in RECIPES.items():
    train_command(_recipe, _text)
