"""The `styleaug` command: parse, make one library call, print."""

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import click

from styleaug.cli.console import NEW_FILE, finish, going_on, labels_named, output, progress, say, show_warning
from styleaug.cli.evaluation import evaluate
from styleaug.cli.options import (
    BOX,
    Command,
    bands_option,
    bank_option,
    blend_option,
    mixture,
    mixture_options,
    normalizer,
    shell_words,
    style_options,
)
from styleaug.cli.training import fit_style_command, train_group
from styleaug.errors import FileError, StyleAugError, printable

__all__ = ["main", "video"]

PATH = click.Path(path_type=Path)


@click.command(cls=Command)
@click.argument("source", type=PATH)
@click.option("-o", "--out", type=PATH, required=True, help="File or new folder to write.")
@bank_option()
@style_options("")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed for the choice of style.")
@click.option(
    "--flow", type=click.Choice(["dis", "farneback", "raft", "none"]), default="dis", show_default=True,
    help="Optical flow that aligns a frame with the next. none: faster, but the film flickers.",
)  # fmt: skip
@click.option(
    "--reuse", type=click.FloatRange(0, 1, max_open=True), default=0.7, show_default=True,
    help="Share of the previous frame that is blended into each frame.",
)  # fmt: skip
@click.option(
    "--smoothing", type=click.FloatRange(0, 1, max_open=True), default=0.7, show_default=True,
    help="Share of earlier frames in the statistics of each frame.",
)  # fmt: skip
@click.option("--mask", type=PATH, help="Film or folder of frames that is bright where the style is painted.")
@click.option(
    "--box", type=BOX,
    help="Object on the first frame, in pixels; it is followed, in place of a mask.",
)  # fmt: skip
@click.option(
    "--where", type=click.Choice(["inside", "outside", "both"]),
    help="Side of the mask or object to style. both: one style for each side.  [default: inside]",
)  # fmt: skip
@click.option("--fps", type=click.FloatRange(0.01, 1000), help="Frames a second.  [default: the source's]")
def video(
    source: Path,
    out: Path,
    seed: int,
    flow: Any,
    reuse: float,
    smoothing: float,
    mask: Path | None,
    box: Any,
    where: Any,
    fps: float | None,
    **style: Any,
) -> None:
    """Write the film SOURCE in one style, without flicker.

    SOURCE and OUT are each a video file (.mp4, .mov, .mkv, .avi, .webm), an animated picture (.gif, .apng,
    .png, .webp) or a folder of frames. Times, sound and transparency are kept. SOURCE is never changed.
    """
    from styleaug.video.film import style_film

    with progress("stylising") as report:
        film = style_film(
            source,
            out,
            smoothing=smoothing,
            flow=None if flow == "none" else flow,
            reuse=reuse,
            mask=mask,
            where=where,
            track=box,
            fps=fps,
            seed=seed,
            report=report,
            **style,
        )
    for note in film.notes:
        say(note)
    say(f"{out}: {film.frames} frames written")


_INPUT = click.Path(path_type=Path)
_OUTPUT = click.Path(path_type=Path)
_STRENGTH = click.FloatRange(0, 1)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="styleaug", prog_name="styleaug")
def cli() -> None:
    """Neural style transfer as data augmentation.

    A bank is a small file of style statistics, fitted to a folder of images. It holds no pixels. In a
    training pipeline, write StyleAugment("bank.safetensors").
    """


@cli.command()
@click.option(
    "-o", "--out", type=NEW_FILE, default=Path("styleaug-demo.png"), show_default=True,
    help="Picture to write; it shows what the classifiers saw.",
)  # fmt: skip
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Seed for the digits and the classifiers."
)
@click.option("--json", "as_json", is_flag=True, help="Print the scores as JSON.")
def demo(out: Path, seed: int, as_json: bool) -> None:
    """Show the gain of a bank on a small example (half a minute).

    Fits a bank, trains classifiers with and without it, and tests them on shifted images.
    """
    from styleaug.demo import run_demo

    with progress("demo") as report:
        result = run_demo(out, seed=seed, report=report)
    output(*(json.dumps(result.to_dict()) if as_json else result.table()).split("\n"))
    say(f"What the classifiers saw: {out}")


@cli.command("stylize")
@click.argument("content", type=_INPUT)
@click.option("--style", type=_INPUT, required=True, help="Image that gives the style.")
@click.option("-o", "--out", type=NEW_FILE, required=True, help="Image to write.")
@click.option(
    "--strength", type=_STRENGTH, default=1.0, show_default=True, help="From 0 (unchanged) to 1 (full style)."
)
@click.option("--generator", default="adain", show_default=True, help="Name, weights or a run folder.")
@blend_option()
@bands_option()
@click.option(
    "--size", type=click.IntRange(16), default=512, show_default=True,
    help="Larger images are painted at about SIZE x SIZE pixels. A smaller SIZE gives larger strokes.",
)  # fmt: skip
def _stylize(content: Path, style: Path, out: Path, **options: Any) -> None:
    """Write the image CONTENT in the style of another image.

    OUT has the size, bit depth and transparency of CONTENT. CONTENT is never changed. For many images, fit a
    bank to the styles (styleaug fit-style) and apply it (styleaug apply).
    """
    from styleaug.offline.stylizing import stylize_file

    for path in (content, style):
        if path.is_dir():
            raise FileError(
                f"{path} is a folder. For many images: styleaug fit-style STYLES -o bank.safetensors, then "
                "styleaug apply CONTENTS --bank bank.safetensors -o OUT."
            )
    say(f"{stylize_file(content, style, out, **options)} written")


@cli.command(cls=Command)
@click.argument("source", type=_INPUT)
@click.option("-o", "--out", type=_OUTPUT, required=True, help="Folder for the copies, outside SOURCE.")
@mixture_options
@style_options(" for each copy")
@click.option("--copies", type=click.IntRange(1), default=1, show_default=True, help="Copies of each image.")
@click.option(
    "--normalize", is_flag=True,
    help="Bring each image to the mean style of --bank, at a fixed strength; nothing is random.",
)  # fmt: skip
@click.option(
    "--preserve", type=_STRENGTH,
    help="Least share of structure that is kept, from 0 to 1. Use 0.9 if findings matter.  [default: 0]",
)  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True, help="Seed for styles and strengths.")
@click.option(
    "--workers", type=click.IntRange(0), default=0, show_default=True,
    help="Number of worker processes. 0: none; with Ray, all cores.",
)  # fmt: skip
@click.option("--strict", is_flag=True, help="Exit with 1 if any image could not be read or written.")
@click.option(
    "--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True,
    help="Where the work runs.",
)  # fmt: skip
@click.option("--address", help="Ray cluster: auto or ray://HOST:PORT.  [default: start one here]")
@click.option(
    "--format", type=click.Choice(["images", "parquet", "webdataset"]),
    help="Kind of files to read, if SOURCE holds several kinds.",
)  # fmt: skip
@click.option(
    "--column", default="image", show_default=True,
    help="Column of the images in Parquet files, or their extension in tar files.",
)  # fmt: skip
@click.option(
    "--window",
    help="Values shown as black and white, for over 8 bits: CENTRE/WIDTH (40/400), auto or dicom.",
)
def apply(
    source: Path,
    out: Path,
    bank: tuple[str, ...],
    preset: str | None,
    copies: int,
    normalize: bool,
    preserve: float | None,
    seed: int,
    workers: int,
    strict: bool,
    engine: Any,
    address: str | None,
    format: Any,
    column: str,
    window: str | None,
    **style: Any,
) -> None:
    """Write stylised copies of the images in SOURCE.

    SOURCE is a folder of images, of Parquet files or of WebDataset tar files, or one such shard or slide.
    OUT has the same folders and file types; slides of scanners become OME-TIFF. Labels and other data in
    shards are copied. OUT/manifest.jsonl records the style and strength of each copy. If the command is
    called again, it does only what is missing or has changed. SOURCE is never changed.

    For many machines use `--engine ray` (with a shared file system) or `torchrun ... -m styleaug apply`.
    """
    from styleaug.offline.folder import apply_folder

    style["preserve"] = preserve
    styles = normalizer(bank, preset, style) if normalize else mixture(bank, preset, style)
    with going_on(), progress("stylising") as report:
        applied = apply_folder(
            source,
            out,
            bank=styles,
            copies=copies,
            seed=seed,
            workers=workers,
            report=report,
            engine=engine,
            address=address,
            format=format,
            column=column,
            window=window,
            **style,
        )
    earlier = f", {applied.skipped} already there" if applied.skipped else ""
    say(f"{out}: {applied.written} images written{earlier}")
    if applied.left_out:
        say(applied.left_out)
    # One of several processes may have nothing to do; it must not end the others.
    nothing = not (applied.written or applied.skipped) and os.environ.get("WORLD_SIZE", "1") == "1"
    finish(applied.failed, strict or nothing)


@cli.command("preview")
@click.argument("images", type=_INPUT, nargs=-1)
@mixture_options
@click.option("--generator", help="Name, weights or a run folder.  [default: the one that made the bank]")
@click.option(
    "-o", "--out", type=NEW_FILE, default=Path("preview.png"), show_default=True, help="Picture to write."
)
@click.option("--target", type=_INPUT, help="Folder or image to show beside the styles, for comparison.")
@click.option(
    "--styles", type=click.IntRange(1, 100), default=6, show_default=True, help="Number of styles (columns)."
)
@click.option(
    "--strength", type=_STRENGTH, default=1.0, show_default=True, help="From 0 (unchanged) to 1 (full style)."
)
@blend_option()
@bands_option()
@click.option("--splice", type=click.Choice(["halves", "fields"]), help="Paint each image in two styles.")
@click.option(
    "--size", type=click.IntRange(16, 1024), default=192, show_default=True, help="Side of a tile in pixels."
)
@click.option(
    "--most", type=click.IntRange(1, 100), default=8, show_default=True, help="Number of images (rows)."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed for the choice of styles.")
def _preview(
    images: tuple[Path, ...],
    bank: tuple[str, ...],
    preset: str | None,
    out: Path,
    target: Path | None,
    styles: int,
    size: int,
    most: int,
    seed: int,
    **style: Any,
) -> None:
    """Draw a contact sheet of IMAGES in several styles.

    IMAGES are files or folders; the default is the sample photos. Styles come from a bank, or from a
    generator that needs none.
    """
    from styleaug.sheets import preview

    path = preview(
        images,
        out,
        bank=mixture(bank, preset, style),
        target=target,
        styles=styles,
        size=size,
        most=most,
        seed=seed,
        **style,
    )
    say(f"{path} written")


@cli.command()
@click.argument("generator")
@click.option("-o", "--out", type=NEW_FILE, required=True, help="ONNX file to write (.onnx).")
@click.option(
    "--bank", help="Bank to store in the file, by name or path. Its input is then the row of a style."
)
@click.option(
    "--precision", type=click.Choice(["float32", "float16", "int8"]), default="float32", show_default=True,
    help="float16: half the size, for GPUs. int8: up to a quarter faster on CPUs, but less exact.",
)  # fmt: skip
@click.option(
    "--part", type=click.Choice(["generator", "encoder"]), default="generator", show_default=True,
    help="What to export. The encoder reads codes from style images.",
)  # fmt: skip
@click.option(
    "--size", type=click.IntRange(1), nargs=2, metavar="H W", help="Fixed size of the images.  [default: any]"
)
@click.option(
    "--opset", type=click.IntRange(18), default=18, show_default=True, help="Version of ONNX's operators."
)
@click.option(
    "--samples", type=_INPUT, help="Folder of images for the comparison with torch.  [default: sample photos]"
)
def export(
    generator: str,
    out: Path,
    bank: str | None,
    precision: Any,
    part: Any,
    size: tuple[int, int] | None,
    opset: int,
    samples: Path | None,
) -> None:
    """Write GENERATOR as one ONNX file.

    GENERATOR is a name, weights or a run folder. The inputs of the file are images (B, 3, H, W) in [0, 1],
    codes (B, S) and strength (B). With --bank, style (B), a row of the bank, replaces codes. Batch and
    image size are free. The file is compared with torch before it is kept.
    """
    from styleaug.export import export_onnx

    with progress("exporting") as report:
        exported = export_onnx(
            generator,
            out,
            bank=bank,
            precision=precision,
            part=part,
            size=size,
            opset=opset,
            samples=samples,
            report=report,
        )
    say(*str(exported).split("\n"))


@cli.group()
def bank() -> None:
    """Show, merge, sample and share banks."""


@bank.command()
@click.argument("banks", nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, one object per line.")
def show(banks: tuple[str, ...], as_json: bool) -> None:
    """Show the contents of BANKS (names or paths)."""
    from styleaug.weights import load_bank

    for name in banks:
        facts = load_bank(name).describe()
        if as_json:
            output(json.dumps({"bank": name, **facts}))
        else:
            output(name, *(f"  {key:12} {value}" for key, value in facts.items()))


@bank.command()
@click.argument("banks", nargs=-1, required=True)
@click.option("-o", "--out", type=NEW_FILE, required=True, help="Bank to write (.safetensors).")
def merge(banks: tuple[str, ...], out: Path) -> None:
    """Join BANKS (names or paths) of one generator into one bank."""
    from styleaug.weights import load_bank

    first, *others = [load_bank(name) for name in banks]
    say(f"{first.merge(*others).save(out)}: {sum(map(len, [first, *others]))} styles")


@bank.command("sample")
@click.argument("bank")
@click.option("-n", "--count", type=click.IntRange(1), required=True, help="Number of styles to keep.")
@click.option("-o", "--out", type=NEW_FILE, required=True, help="Bank to write (.safetensors).")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed for the choice.")
def _sample(bank: str, count: int, out: Path, seed: int) -> None:
    """Pick styles of BANK at random and write them as a new bank."""
    from styleaug.weights import load_bank

    say(f"{load_bank(bank).sample(count, seed=seed).save(out)}: {count} styles")


@bank.command()
@click.argument("bank")
@click.argument("repo", metavar="OWNER/NAME")
@click.option(
    "--generator", help="Weights, a run folder or hf:OWNER/NAME, if none that is shipped made BANK."
)
@click.option("--public", is_flag=True, help="Let everyone read it.  [default: a private repository]")
@click.option("--branch", help="Branch to push to.  [default: main]")
@click.option("--licence", default="", help="Licence of what is pushed.  [default: the bank's]")
def push(bank: str, repo: str, public: bool, **options: Any) -> None:
    """Push BANK (a name, path or run folder) to a repository of the Hugging Face hub.

    Writes the bank, the generator if none that is shipped made it, a card and a picture of the styles. Log in
    first: hf auth login. Prints the commit, to be used in place of a bank.
    """
    from styleaug.sharing.pushing import push_to_hub

    where = push_to_hub(bank, repo, private=not public, **options)
    output(where)
    say(f'pushed; use it with: StyleAugment("{where}")')


@cli.command("list")
def list_() -> None:
    """List the generators and banks that are known by name."""
    from styleaug.cli.catalogue import GENERATORS
    from styleaug.transforms.presets import MIXTURES
    from styleaug.weights import bank_names, card, generator_names

    lines = [f"  {name:20} {GENERATORS[name]}" for name in generator_names()]
    output("generators, and what they change", *lines)
    facts = {name: card(name) for name in bank_names()}
    lines = [
        f"  {name:20} {one['styles']} styles for {one['generator']}: {one['data']}"
        for name, one in facts.items()
    ]
    output("banks, and what their styles come from", *lines)
    lines = [f"  {name:20} {preset.when}" for name, preset in MIXTURES.items()]
    output("presets, and what they are for", *lines)


cli.add_command(evaluate)
cli.add_command(fit_style_command)
cli.add_command(train_group)
cli.add_command(video)


def main() -> None:
    """Run the command; print our own errors as a message and exit with code 1."""
    warnings.showwarning = show_warning
    try:
        with labels_named():
            code = cli.main(prog_name="styleaug", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.ClickException as error:
        # The message may quote a file name with control characters.
        error.message = printable(error.message)  # pyright: ignore[reportAttributeAccessIssue]
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        say("Aborted!")
        sys.exit(1)
    except StyleAugError as error:
        say(f"Error: {shell_words(str(error), cli)}")
        sys.exit(1)
