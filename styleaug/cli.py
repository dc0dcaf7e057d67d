"""The `styleaug` command: parse, make one library call, print."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from styleaug.errors import StyleAugError

__all__ = ["main"]

INPUT = click.Path(path_type=Path)
OUTPUT = click.Path(path_type=Path)
STRENGTH = click.FloatRange(0, 1)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="styleaug", prog_name="styleaug")
def cli() -> None:
    """Neural style transfer as data augmentation.

    A bank is a small file of style statistics, fitted from a folder of images; it holds no pixels. In a
    training pipeline: StyleAugment("bank.safetensors").
    """


@cli.command()
@click.option("-o", "--out", type=OUTPUT, default=Path("styleaug-demo.png"), help="Contact sheet to write.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the scores as JSON.")
def demo(out: Path, seed: int, as_json: bool) -> None:
    """Fit a bank, train with and without it, test under a shift: two minutes on two cores."""
    from styleaug.demo import run_demo

    with progress("demo") as report:
        result = run_demo(out, seed=seed, report=report)
    click.echo(json.dumps(result.to_dict()) if as_json else result.table())
    say(f"What the classifiers saw: {out}")


@cli.command("fit-style")
@click.argument("folder", type=INPUT)
@click.option("-o", "--out", type=OUTPUT, required=True, help="The bank to write (.safetensors).")
@click.option("--generator", default="reinhard-rgb", show_default=True, help="Name, or path to weights.")
@click.option(
    "--max-styles", type=click.IntRange(1), default=256, show_default=True, help="Size of the bank."
)
@click.option(
    "--patches", type=click.IntRange(1), default=1, show_default=True,
    help="Styles read from each image: 1 reads it whole, N reads N random crops.",
)  # fmt: skip
@click.option(
    "--choose", type=click.Choice(["random", "diverse"]), default="random", show_default=True,
    help="Of more styles: any, as often as the folder has them, or those that cover the folder best.",
)  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True, help="Of the choice of images and crops.")
@click.option("--licence", default="", help="Of the images, written into the bank.")
@click.option("--strict", is_flag=True, help="Exit with 1 if any image could not be read.")
def fit_style(
    folder: Path,
    out: Path,
    generator: str,
    max_styles: int,
    patches: int,
    choose: Any,
    seed: int,
    licence: str,
    strict: bool,
) -> None:
    """Read the styles of the images in FOLDER into a bank of a few kilobytes.

    No labels are needed. The bank holds statistics, no pixels and no file names.
    """
    from styleaug.training.fit import fit_style

    with progress("reading styles") as report:
        fit = fit_style(
            folder,
            generator=generator,
            max_styles=max_styles,
            patches=patches,
            choose=choose,
            seed=seed,
            licence=licence,
            report=report,
        )
    if not (strict and fit.failed):
        fit.bank.save(out)
        say(f"{out}: {fit.bank}, {out.stat().st_size / 1024:.1f} kB")
    finish(fit.failed, strict)


@cli.command()
@click.argument("folder", type=INPUT)
@click.option("-o", "--out", type=OUTPUT, required=True, help="Folder for the copies, outside FOLDER.")
@click.option("--bank", default="art", show_default=True, help="Name or path of the bank.")
@click.option("--copies", type=click.IntRange(1), default=1, show_default=True, help="Of each image.")
@click.option(
    "--strength", nargs=2, type=STRENGTH, default=(0.5, 1.0), show_default=True, help="Low and high."
)
@click.option(
    "--sampler", type=click.Choice(["uniform", "mix", "gaussian"]), default="uniform", show_default=True
)
@click.option("--keep-luminance", is_flag=True, help="Keep the brightness of each pixel.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--workers", type=click.IntRange(0), default=0, show_default=True, help="Processes.")
@click.option("--strict", is_flag=True, help="Exit with 1 if any image could not be read.")
def apply(
    folder: Path,
    out: Path,
    bank: str,
    copies: int,
    strength: tuple[float, float],
    sampler: Any,
    keep_luminance: bool,
    seed: int,
    workers: int,
    strict: bool,
) -> None:
    """Write stylised copies of the images in FOLDER, with the same tree and file types.

    OUT/manifest.jsonl says which style and strength each copy got. Called again, it goes on where it
    stopped. FOLDER is never written to.
    """
    from styleaug.folder import apply_folder

    with progress("stylising") as report:
        applied = apply_folder(
            folder,
            out,
            bank=bank,
            copies=copies,
            strength=strength,
            sampler=sampler,
            keep_luminance=keep_luminance,
            seed=seed,
            workers=workers,
            report=report,
        )
    earlier = f", {applied.skipped} were there" if applied.skipped else ""
    say(f"{out}: {applied.written} images written{earlier}")
    finish(applied.failed, strict)


@cli.command()
@click.argument("images", type=INPUT, nargs=-1)
@click.option("--bank", default="art", show_default=True, help="Name or path of the bank.")
@click.option("-o", "--out", type=OUTPUT, default=Path("preview.png"), show_default=True)
@click.option("--styles", type=click.IntRange(1, 100), default=6, show_default=True, help="Columns.")
@click.option("--strength", type=STRENGTH, default=1.0, show_default=True)
@click.option("--size", type=click.IntRange(16, 1024), default=192, show_default=True, help="Of a tile.")
@click.option("--most", type=click.IntRange(1, 100), default=8, show_default=True, help="Rows.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the choice of styles.")
def preview(
    images: tuple[Path, ...],
    bank: str,
    out: Path,
    styles: int,
    strength: float,
    size: int,
    most: int,
    seed: int,
) -> None:
    """Draw a contact sheet of IMAGES (files or folders) in styles of a bank.

    Without IMAGES it shows the sample photos.
    """
    from styleaug.contact_sheet import preview

    path = preview(images, out, bank=bank, styles=styles, strength=strength, size=size, most=most, seed=seed)
    say(f"{path} written")


@cli.group()
def bank() -> None:
    """Show, merge and sample banks."""


@bank.command()
@click.argument("banks", nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, one object a line.")
def show(banks: tuple[str, ...], as_json: bool) -> None:
    """Tell what is in BANKS (names or paths)."""
    from styleaug.weights import load_bank

    for name in banks:
        facts = load_bank(name).describe()
        if as_json:
            click.echo(json.dumps({"bank": name, **facts}))
        else:
            click.echo(name)
            for key, value in facts.items():
                click.echo(f"  {key:12} {value}")


@bank.command()
@click.argument("banks", nargs=-1, required=True)
@click.option("-o", "--out", type=OUTPUT, required=True, help="The bank to write.")
def merge(banks: tuple[str, ...], out: Path) -> None:
    """Join BANKS of one generator."""
    from styleaug.weights import load_bank

    first, *others = [load_bank(name) for name in banks]
    say(f"{first.merge(*others).save(out)}: {sum(map(len, [first, *others]))} styles")


@bank.command()
@click.argument("bank")
@click.option("-n", "--count", type=click.IntRange(1), required=True, help="Styles to keep.")
@click.option("-o", "--out", type=OUTPUT, required=True, help="The bank to write.")
@click.option("--seed", type=int, default=0, show_default=True)
def sample(bank: str, count: int, out: Path, seed: int) -> None:
    """Keep COUNT styles of BANK, picked at random."""
    from styleaug.weights import load_bank

    say(f"{load_bank(bank).sample(count, seed=seed).save(out)}: {count} styles")


@cli.command("list")
def list_() -> None:
    """List the generators and banks that are known by name."""
    from styleaug.weights import bank_names, generator_names

    click.echo("generators\n  " + "\n  ".join(generator_names()))
    click.echo("banks\n  " + "\n  ".join(bank_names()))


@cli.group()
def train() -> None:
    """Train generators."""


class TrainCommand(click.Command):
    """Takes its options from a configuration, once they are asked for."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Add one option for each field but the generator's name, which is the command's."""
        from dataclasses import fields

        from styleaug.training.config import DEFAULTS

        known, defaults = super().get_params(ctx), DEFAULTS[self.name or ""]
        made = [
            click.Option(
                [f"--{field.name.replace('_', '-')}"],
                type=type(field.default),
                default=getattr(defaults, field.name),
                show_default=True,
                help=field.metadata["help"],
            )
            for field in fields(defaults)
            if field.name != "generator"
        ]
        return known[:-1] + made + known[-1:]


def train_command(name: str, text: str) -> None:
    """Add `styleaug train NAME`."""

    @train.command(name, cls=TrainCommand, help=text)
    @click.option(
        "--content", type=INPUT, multiple=True, required=True, help="Folder of contents; repeatable."
    )
    @click.option(
        "--style", "styles", type=INPUT, multiple=True, required=True, help="Of styles; repeatable."
    )
    @click.option("-o", "--out", type=OUTPUT, required=True, help="Run folder; a run in it is taken up.")
    @click.option("--loss-networks", type=INPUT, help="Folder of VGG-19's weights; else torchvision's.")
    @click.option(
        "--minutes", type=float, default=float("inf"), help="Stop after this long; call again to go on."
    )
    @click.option("--dry-run", is_flag=True, help="Print the configuration as JSON and stop.")
    def command(
        content: tuple[Path, ...],
        styles: tuple[Path, ...],
        out: Path,
        loss_networks: Path | None,
        minutes: float,
        dry_run: bool,
        **options: Any,
    ) -> None:
        from styleaug.training.config import PerceptualConfig

        config = PerceptualConfig(generator=name, **options)
        if dry_run:
            click.echo(json.dumps(config.to_dict(), sort_keys=True))
            return
        from styleaug.training.data import pack_images
        from styleaug.training.loop import train

        say("reading the images ...")
        contents, looks = (pack_images(folders, 2 * config.size) for folders in (content, styles))
        with progress("training") as report:
            weights = train(
                contents,
                looks,
                out,
                config=config,
                loss_networks=loss_networks,
                minutes=minutes,
                report=lambda step, losses: report(step, config.steps),
            )
        say(f"{weights} written" if weights else f"time is up; call again to go on with {out}")


train_command("adain", "Train the AdaIN generator: texture, stroke and colour of any style.")
train_command("photo", "Train the photo generator: local colour, light and tone; no edge moves.")


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar on stderr; give the function that moves it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def say(text: str) -> None:
    """Talk to the person, on stderr."""
    click.echo(text, err=True)


def finish(failed: list[tuple[Path, str]], strict: bool) -> None:
    """Report the files that could not be used; exit with 1 if that was to be strict about."""
    for _, reason in failed:
        say(f"skipped: {reason}")
    if failed:
        say(f"{len(failed)} files skipped")
        if strict:
            sys.exit(1)


def main() -> None:
    """Run the command; our errors are a message and exit code 1."""
    try:
        cli.main(prog_name="styleaug")
    except StyleAugError as error:
        say(f"Error: {error}")
        sys.exit(1)
