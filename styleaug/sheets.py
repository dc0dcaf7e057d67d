"""Contact sheets: images before and after styling with a bank, and reports about banks."""

import base64
import html
import warnings
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageOps

from styleaug.bank import StyleBank
from styleaug.checks import check_count, check_seed, check_share
from styleaug.errors import ConfigError, FileError, ImageError, printable
from styleaug.generators.base import AbstractGenerator
from styleaug.images import from_float, to_float
from styleaug.io.atomic import atomic
from styleaug.io.files import image_files, save_image
from styleaug.io.paths import check_path
from styleaug.io.pixels import read_pixels
from styleaug.transforms.augment import StyleAugment, StyleParams
from styleaug.transforms.bands import Bands
from styleaug.transforms.base import AbstractAugment
from styleaug.transforms.blends import Blend
from styleaug.transforms.host import Styles, held, member_drawn
from styleaug.transforms.splice import Splice, SpliceKind
from styleaug.weights import STAIN_GENERATORS, pretrained_folder

__all__ = [
    "check_report",
    "contact_sheet",
    "draw_styles",
    "draw_tissue",
    "preview",
    "sample_photos",
    "usual_picture",
    "write_report",
]

BLUE = (0.65, 0.70, 0.29)
PINK = (0.07, 0.99, 0.11)
"""Optical densities of haematoxylin and eosin in red, green and blue (Ruifrok & Johnston 2001)."""


def draw_tissue(side: int, *, seed: int = 0) -> Image.Image:
    """Draw an artificial H&E image: blue nuclei, pink fibres and cell bodies, white glass."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:side, 0:side] / side
    fibres = 0.5 + 0.5 * np.sin(40 * (x + 0.15 * np.sin(7 * y)) + 3 * np.sin(9 * x * y))
    glass = smooth_step(0.16, 0.20, np.hypot(x - 0.82, y - 0.2))
    eosin = glass * (0.14 + 0.12 * fibres + 0.05 * rng.random((side, side)))
    blue = 0.05 * glass
    for _ in range(90):
        centre, radii, angle = rng.random(2), 0.018 + 0.016 * rng.random(2), np.pi * rng.random()
        along = np.cos(angle) * (x - centre[0]) + np.sin(angle) * (y - centre[1])
        across = np.cos(angle) * (y - centre[1]) - np.sin(angle) * (x - centre[0])
        away = np.hypot(along / radii[0], across / radii[1])
        grain = 0.85 + 0.3 * rng.random((side, side))
        blue = np.maximum(blue, glass * (0.6 + 0.4 * rng.random()) * grain * smooth_step(1.15, 0.85, away))
        eosin = np.maximum(eosin, 0.3 * glass * smooth_step(2.2, 1.2, away))
    density = blue[..., None] * np.array(BLUE) + eosin[..., None] * np.array(PINK)
    return Image.fromarray((245 * 10**-density).round().astype(np.uint8))


def smooth_step(start: float, end: float, values: np.ndarray) -> np.ndarray:
    """Return a smooth step from 0 at `start` to 1 at `end`."""
    share = np.clip((values - start) / (end - start), 0, 1)
    return share * share * (3 - 2 * share)


_GAP = 4
CAPTION = 14


def sample_photos() -> list[Path]:
    """List the photos that come with the package."""
    return image_files(pretrained_folder() / "samples")


def preview(
    images: Sequence[str | Path] = (),
    out: str | Path = "preview.png",
    *,
    bank: Styles = None,
    generator: str | Path | AbstractGenerator | None = None,
    target: str | Path | Sequence[str | Path] | None = None,
    styles: int = 6,
    strength: float = 1.0,
    blend: Blend | None = None,
    bands: Bands | None = None,
    splice: Splice | SpliceKind | None = None,
    size: int = 192,
    most: int = 8,
    seed: int = 0,
) -> Path:
    """Draw a contact sheet: one row per image, first the original, then one column per style.

    With `target`, each row begins with an image of the target, for comparison. Images that cannot be read
    are left out, with a warning.

    Args:
        images: files or folders; the default is the sample photos.
        out: path of the picture to write.
        bank: a shipped name, a path, a run folder, or a `StyleBank`; see `StyleAugment`. Or a transform in
            its place: a `StyleAugment`, a `OneOf`, a preset.
        generator: see `StyleAugment`.
        target: a folder or files to show for comparison.
        styles: number of columns; styles are drawn from the bank without repetition, or from the generator's
            prior.
        strength: in [0, 1], 1 is the full style.
        blend: how the styled image is laid over the image; see `StyleAugment`.
        bands: which frequencies of the change are kept; see `StyleAugment`.
        splice: `"halves"`, `"fields"` or `Splice`: each image has two or more styles.
        size: side of a tile in pixels.
        most: largest number of rows; of more images, evenly spaced ones are shown.
        seed: seed for the choice of styles.

    Raises:
        FileError: a path does not exist, or no image can be read.
    """
    out = check_path(out)
    styles, most = check_count("styles", styles), check_count("most", most)
    size, seed, strength = (
        check_count("size", size, least=16),
        check_seed(seed),
        check_share("strength", strength),
    )
    options = {
        "generator": generator,
        "strength": strength,
        "blend": blend,
        "bands": bands,
        "splice": splice,
    }
    stylizer, _ = held(bank, options, p=1.0, usual=1.0)
    if stylizer.within_batch or stylizer.splices_by_mask:
        raise ConfigError('a contact sheet has neither batches nor masks; leave out "batch" and "mask".')
    tiles = squares(_spread(images or sample_photos(), most), size)
    sources = [] if target is None else [target] if isinstance(target, str | Path) else target
    goals = squares(_spread(sources, len(tiles)), size) if sources else []
    columns = choose_styles(stylizer, styles, strength, torch.Generator().manual_seed(seed))
    rows = []
    for number, tile in enumerate(tiles):
        shown = [goals[number % len(goals)]] if goals else []
        rows.append([*shown, tile, *(stylizer.apply(tile, params) for params in columns)])
    captions = [*(["target"] if goals else []), "image", *(caption(stylizer, each) for each in columns)]
    save_image(contact_sheet(rows, captions), out)
    return out


def _spread(images: Sequence[str | Path], most: int) -> list[Path]:
    """List at most `most` files of images and folders, evenly spaced."""
    paths: list[Path] = []
    for path in map(check_path, images):
        paths += image_files(path) if path.is_dir() else [path]
    count = min(most, len(paths))
    return [paths[at * len(paths) // count] for at in range(count)]


def squares(paths: Sequence[Path], size: int) -> list[Image.Image]:
    """Read the middle of each image as a tile; leave out images that cannot be read.

    Raises:
        FileError, ImageError: no image can be read; this is the error of the first one.
    """
    tiles, failed = [], []
    for path in paths:
        try:
            tiles.append(_square(path, size))
        except (FileError, ImageError) as error:
            failed.append(error)
    if failed and not tiles:
        raise failed[0]
    for error in failed:
        warnings.warn(f"skipped: {error}", stacklevel=3)
    return tiles


def _square(path: Path, size: int) -> Image.Image:
    """Read the middle of an image as a tile."""
    return ImageOps.fit(open_rgb(path, size), (size, size), Image.Resampling.LANCZOS)


def open_rgb(path: Path, size: int) -> Image.Image:
    """Read an image as 8-bit RGB."""
    pixels = from_float(to_float(read_pixels(path, short_side=size)), torch.uint8)
    return Image.fromarray(pixels[0].expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy())


def choose_styles(
    stylizer: AbstractAugment, count: int, strength: float, rng: torch.Generator
) -> list[StyleParams]:
    """Draw the parameters of each column."""
    bank = stylizer.bank if isinstance(stylizer, StyleAugment) else None
    if bank is None or stylizer.splice is not None:
        return [stylizer.draw(1, rng) for _ in range(count if stylizer.code_length else 1)]
    return [one_style(bank, int(row), strength) for row in torch.randperm(len(bank), generator=rng)[:count]]


def caption(stylizer: AbstractAugment, params: StyleParams) -> str:
    """Name the style of a column; of a mixture, the generator that was drawn."""
    if isinstance(stylizer, StyleAugment):
        rows = " + ".join(map(str, params["sources"].flatten().tolist()))
        return f"style {rows}".strip()
    return member_drawn(stylizer, params)[0].generator_name


def one_style(bank: StyleBank, row: int, strength: float) -> StyleParams:
    """Return parameters that apply one style of the bank to one image."""
    return StyleParams(
        rows=torch.tensor([0]),
        strength=torch.tensor([strength]),
        codes=bank.codes[row : row + 1],
        sources=torch.tensor([[row]]),
        shares=torch.ones(1, 1),
        fields=None,
    )


def contact_sheet(
    rows: Sequence[Sequence[Image.Image]],
    captions: Sequence[str] = (),
    titles: Sequence[str] = (),
    *,
    empty: str = "There is nothing to show.",
) -> Image.Image:
    """Return an image with rows of equal tiles on white, captions above columns and titles above rows.

    Args:
        rows: tiles of each row.
        captions: text above each column.
        titles: text above each row, of any number of lines.
        empty: text if there are no rows.
    """
    if not rows:
        return note(empty)
    width, height = rows[0][0].size
    top = CAPTION if captions else 0
    head = CAPTION * max((title.count("\n") + 1 for title in titles), default=0)
    step = head + height + _GAP
    columns = max(len(row) for row in rows)
    sheet = Image.new("RGB", (columns * (width + _GAP) + _GAP, len(rows) * step + _GAP + top), "white")
    pen = ImageDraw.Draw(sheet)
    for column, text in enumerate(map(printable, captions)):
        pen.text((_GAP + column * (width + _GAP), 2), text, fill="black")
    titles = ["\n".join(map(printable, title.split("\n"))) for title in titles]
    for row, text in enumerate(titles):
        pen.text((_GAP, top + _GAP + row * step), text, fill="black")
    for y, row in enumerate(rows):
        for x, tile in enumerate(row):
            sheet.paste(tile.convert("RGB"), (_GAP + x * (width + _GAP), top + _GAP + head + y * step))
    return sheet


def note(text: str) -> Image.Image:
    """Return an image with one line of text, to show instead of a sheet."""
    left, top, right, bottom = ImageDraw.Draw(Image.new("RGB", (1, 1))).textbbox((0, 0), text)
    sheet = Image.new("RGB", (int(right - left) + 8 * _GAP, int(bottom - top) + 8 * _GAP), "white")
    ImageDraw.Draw(sheet).text((4 * _GAP, 4 * _GAP), text, fill="black")
    return sheet


_SUFFIXES = (".html", ".png")
_SIDE = 160
MOST_GROUPS = 40
PAGE = """<!DOCTYPE html>
<html lang="en"><meta charset="utf-8"><title>Style bank</title>
<style>
body {{ font: 15px/1.5 sans-serif; margin: 2em auto; max-width: 72em; padding: 0 1em }}
img {{ max-width: 100% }} td {{ padding: 0 1.5em 0 0 }}
</style>
<h1>Style bank</h1>
<p>{styles} styles, of which some are shown, all on {shown}, which is none of the images that were
read. Each group has a row, in the order of the table.</p>
<img alt="the reference image in styles of the bank" src="data:image/png;base64,{sheet}">
<table>{rows}</table>
</html>
"""


def check_report(out: Path, reference: Path | None, sources: Sequence[Path]) -> None:
    """Check, before images are read, that a report can be drawn and shows none of the source images.

    Raises:
        ConfigError: `out` is neither .html nor .png, or the reference image is one of the source images.
    """
    if out.suffix.lower() not in _SUFFIXES:
        raise ConfigError(f"a report must be a .html or .png file, got {str(out)!r}.")
    check_path(out)
    if reference is not None:
        check_path(reference)
        if any(reference.resolve().is_relative_to(source.resolve()) for source in sources):
            raise ConfigError(
                "the reference image of a report is one of the images that are read; give another, or leave "
                "out --reference for a sample image."
            )
        open_rgb(reference, _SIDE)


def write_report(
    out: str | Path,
    bank: StyleBank,
    generator: str | Path | None = None,
    *,
    reference: Path | None = None,
    styles: int = 6,
) -> Path:
    """Draw styles of a bank on one image, one row per group; an .html page also has counts and settings.

    The only names in it are the bank's labels; it has no paths.

    Args:
        out: file to write, .html or .png.
        bank: the bank to show.
        generator: see `StyleAugment`.
        reference: image to show the styles on; readers of the report see it. None uses a sample image:
            drawn tissue for stains, else a photo.
        styles: number of columns, spread evenly over the styles of each group.

    Raises:
        ConfigError: `out` has another suffix.
        FileError: the reference image is missing or cannot be read.
    """
    out = Path(out)
    if out.suffix.lower() not in _SUFFIXES:
        raise ConfigError(f"a report must be a .html or .png file, got {str(out)!r}.")
    tile, shown = (_square(reference, _SIDE), "the image given for it") if reference else usual_picture(bank)
    sheet = draw_styles(bank, generator, tile, styles)
    if out.suffix.lower() == ".png":
        save_image(sheet, out)
        return out
    content = BytesIO()
    sheet.save(content, "PNG")
    facts = {key.replace("_", " "): value for key, value in bank.describe().items()}
    groups = facts.pop("groups", {})
    facts |= {f"styles of {label}": count for label, count in groups.items()}
    rows = "".join(
        f"<tr><td>{html.escape(printable(key))}</td><td>{html.escape(printable(value))}</td></tr>"
        for key, value in facts.items()
    )
    page = PAGE.format(
        styles=len(bank), shown=shown, sheet=base64.b64encode(content.getvalue()).decode("ascii"), rows=rows
    )
    with atomic(out) as part:
        part.write_text(page, encoding="utf-8")
    return out


def usual_picture(bank: StyleBank) -> tuple[Image.Image, str]:
    """Return a sample image that suits the bank's generator, and a description of it."""
    if bank.provenance.generator in STAIN_GENERATORS:
        return draw_tissue(_SIDE), "drawn tissue"
    return _square(sample_photos()[0], _SIDE), "a sample photo"


def draw_styles(
    bank: StyleBank, generator: str | Path | AbstractGenerator | None, tile: Image.Image, styles: int
) -> Image.Image:
    """Return a contact sheet of the reference image and styles of each group."""
    stylizer = StyleAugment(bank, generator=generator, p=1.0, strength=1.0)
    groups = bank.groups if bank.groups is not None else torch.zeros(len(bank), dtype=torch.long)
    rows = []
    for group in range(min(MOST_GROUPS, int(groups.max()) + 1)):
        mine = (groups == group).nonzero()[:, 0]
        shown = mine[torch.linspace(0, len(mine) - 1, min(styles, len(mine))).round().long()]
        rows.append([tile, *(stylizer.apply(tile, one_style(bank, int(row), 1.0)) for row in shown)])
    captions = ["reference", *(f"style {number}" for number in range(1, max(map(len, rows))))]
    return contact_sheet(rows, captions)
