"""The `styleaug video` command: parse, make one library call, print."""

from pathlib import Path
from typing import Any

import click

from styleaug.cli_options import NUMBERS, Command
from styleaug.console import progress, say

__all__ = ["video"]

PATH = click.Path(path_type=Path)


@click.command(cls=Command)
@click.argument("source", type=PATH)
@click.option("-o", "--out", type=PATH, required=True, help="File or new folder to write.")
@click.option("--bank", help="Name or path of a bank, or a run folder.  [default: art]")
@click.option("--generator", help="Name, weights or a run folder.  [default: the one that made the bank]")
@click.option(
    "--strength", type=NUMBERS, default="1", show_default=True,
    help="From 0 to 1, the whole style; two, such as 0.5,1: drawn between them.",
)  # fmt: skip
@click.option(
    "--sampler", type=click.Choice(["uniform", "mix", "slerp", "gaussian"]), default="uniform",
    show_default=True, help="Draw one style, a mixture of some, one between two, or a new one like them.",
)  # fmt: skip
@click.option("--keep-luminance", is_flag=True, help="Keep the brightness of each pixel.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the choice of style.")
@click.option(
    "--flow", type=click.Choice(["dis", "farneback", "raft", "none"]), default="dis", show_default=True,
    help="Optical flow along which frames are blended; none: faster, and it flickers.",
)  # fmt: skip
@click.option(
    "--blend", type=click.FloatRange(0, 1, max_open=True), default=0.7, show_default=True,
    help="Share of the frame before.",
)  # fmt: skip
@click.option(
    "--smoothing", type=click.FloatRange(0, 1, max_open=True), default=0.7, show_default=True,
    help="Share of the past in a frame's statistics.",
)  # fmt: skip
@click.option("--mask", type=PATH, help="Film or folder of frames: bright is where the style is.")
@click.option(
    "--where", type=click.Choice(["inside", "outside", "both"]),
    help="Of the mask; both: a style for each.  [default: inside]",
)  # fmt: skip
@click.option("--fps", type=click.FloatRange(0.01, 1000), help="Frames a second.  [default: the source's]")
def video(
    source: Path,
    out: Path,
    bank: str | None,
    generator: str | None,
    strength: tuple[float, float],
    sampler: Any,
    keep_luminance: bool,
    seed: int,
    flow: Any,
    blend: float,
    smoothing: float,
    mask: Path | None,
    where: Any,
    fps: float | None,
) -> None:
    """Write the film SOURCE in one style, without flicker.

    SOURCE is a video file, an animated picture or a folder of frames; so is OUT: .mp4, .mov, .mkv, .avi,
    .webm, .gif, .apng, .png, .webp, or a folder. Times, sound and transparency are kept. SOURCE is never
    written to.
    """
    from styleaug.film import style_film

    with progress("stylising") as report:
        film = style_film(
            source,
            out,
            bank=bank,
            generator=generator,
            strength=strength,
            sampler=sampler,
            keep_luminance=keep_luminance,
            smoothing=smoothing,
            flow=None if flow == "none" else flow,
            blend=blend,
            mask=mask,
            where=where,
            fps=fps,
            seed=seed,
            report=report,
        )
    for note in film.notes:
        say(note)
    say(f"{out}: {film.frames} frames written")
