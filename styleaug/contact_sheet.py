"""Contact sheets: what a bank makes of some images."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageOps

from styleaug.bank import StyleBank
from styleaug.checks import check_count, check_seed, check_share
from styleaug.errors import ConfigError, FileError, ImageError
from styleaug.files import image_files, open_image, save_image
from styleaug.foreign import printable
from styleaug.formats.scan import as_picture
from styleaug.generators.base import AbstractGenerator
from styleaug.paths import check_path
from styleaug.transforms.core import WITHIN_BATCH, StyleParams, Stylizer
from styleaug.transforms.splice import Splice
from styleaug.weights import pretrained_folder

__all__ = ["contact_sheet", "preview", "sample_photos"]

GAP = 4
CAPTION = 14


def sample_photos() -> list[Path]:
    """List the photos that come with the package."""
    return image_files(pretrained_folder() / "samples")


def preview(
    images: Sequence[str | Path] = (),
    out: str | Path = "preview.png",
    *,
    bank: str | Path | StyleBank | None = None,
    generator: str | Path | AbstractGenerator | None = None,
    target: str | Path | Sequence[str | Path] | None = None,
    styles: int = 6,
    strength: float = 1.0,
    splice: Splice | None = None,
    size: int = 192,
    most: int = 8,
    seed: int = 0,
) -> Path:
    """Draw a contact sheet: one row an image, the first column as it is, then one style a column.

    With `target` an image of it stands before each, so that the styles can be compared with what they are of.

    Args:
        images: files or folders; without any, the sample photos.
        out: the picture to write.
        bank: a shipped name, a path, a run folder, or a `StyleBank`; see `StyleAugment`.
        generator: see `StyleAugment`.
        target: a folder or files that the styles are meant to look like.
        styles: columns; drawn from the bank without repetition, or from the generator's prior.
        strength: in [0, 1].
        splice: `"halves"` or `"fields"`: each column has two styles in one image.
        size: side of each tile in pixels.
        most: rows; of more images an evenly spaced part is shown.
        seed: of the choice of styles.

    Images that cannot be read are named in a warning, and left out.

    Raises:
        FileError: a path that is not there, or no image that can be read.
    """
    out = check_path(out)
    styles, most = check_count("styles", styles), check_count("most", most)
    size, seed, strength = (
        check_count("size", size, least=16),
        check_seed(seed),
        check_share("strength", strength),
    )
    if (isinstance(bank, str) and bank == WITHIN_BATCH) or splice == "mask":
        raise ConfigError('a contact sheet has neither batches nor masks; leave out "batch" and "mask".')
    stylizer = Stylizer(bank, generator=generator, p=1.0, strength=strength, splice=splice)
    tiles = squares(spread(images or sample_photos(), most), size)
    sources = [] if target is None else [target] if isinstance(target, str | Path) else target
    goals = squares(spread(sources, len(tiles)), size) if sources else []
    columns = choose_styles(stylizer, styles, strength, torch.Generator().manual_seed(seed))
    rows = []
    for number, tile in enumerate(tiles):
        shown = [goals[number % len(goals)]] if goals else []
        rows.append([*shown, tile, *(stylizer.apply(tile, params) for params in columns)])
    names = (" + ".join(map(str, params["sources"].flatten().tolist())) for params in columns)
    captions = [*(["target"] if goals else []), "image", *(f"style {name}".strip() for name in names)]
    save_image(contact_sheet(rows, captions), out)
    return out


def spread(images: Sequence[str | Path], most: int) -> list[Path]:
    """List the files of images and folders, at most so many, evenly spaced."""
    paths: list[Path] = []
    for path in map(check_path, images):
        paths += image_files(path) if path.is_dir() else [path]
    count = min(most, len(paths))
    return [paths[at * len(paths) // count] for at in range(count)]


def squares(paths: Sequence[Path], size: int) -> list[Image.Image]:
    """Read the middle of each image as a tile, without those that cannot be read.

    Raises:
        FileError, ImageError: none can be read; the first one's.
    """
    tiles, failed = [], []
    for path in paths:
        try:
            tiles.append(square(path, size))
        except (FileError, ImageError) as error:
            failed.append(error)
    if failed and not tiles:
        raise failed[0]
    for error in failed:
        warnings.warn(f"skipped: {error}", stacklevel=3)
    return tiles


def square(path: Path, size: int) -> Image.Image:
    """Read the middle of an image as a tile."""
    return ImageOps.fit(open_rgb(path, size), (size, size), Image.Resampling.LANCZOS)


def open_rgb(path: Path, size: int) -> Image.Image:
    """Read an image as 8-bit colour."""
    picture = as_picture(open_image(path, short_side=size))
    if not isinstance(picture, Image.Image):
        scaled = picture if picture.dtype.kind == "u" else (picture * 255).clip(0, 255).astype("uint8")
        picture = Image.fromarray(scaled.squeeze())
    if picture.mode == "I;16":
        picture = picture.convert("I").point(lambda value: value / 257).convert("L")
    return picture.convert("RGB")


def choose_styles(stylizer: Stylizer, count: int, strength: float, rng: torch.Generator) -> list[StyleParams]:
    """Draw each column's parameters."""
    bank = stylizer.bank
    if bank is None or stylizer.splice is not None:
        return [stylizer.draw(1, rng) for _ in range(count if stylizer.code_length else 1)]
    return [one_style(bank, int(row), strength) for row in torch.randperm(len(bank), generator=rng)[:count]]


def one_style(bank: StyleBank, row: int, strength: float) -> StyleParams:
    """Give parameters that apply one style of the bank to one image."""
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
    """Lay out rows of equal tiles on white, with a caption above each column, and a title above each row.

    Args:
        rows: of tiles.
        captions: of the columns.
        titles: of the rows, of any number of lines.
        empty: what to say where there are no rows.
    """
    if not rows:
        return note(empty)
    width, height = rows[0][0].size
    top = CAPTION if captions else 0
    head = CAPTION * max((title.count("\n") + 1 for title in titles), default=0)
    step = head + height + GAP
    columns = max(len(row) for row in rows)
    sheet = Image.new("RGB", (columns * (width + GAP) + GAP, len(rows) * step + GAP + top), "white")
    pen = ImageDraw.Draw(sheet)
    for column, text in enumerate(map(printable, captions)):
        pen.text((GAP + column * (width + GAP), 2), text, fill="black")
    titles = ["\n".join(map(printable, title.split("\n"))) for title in titles]
    for row, text in enumerate(titles):
        pen.text((GAP, top + GAP + row * step), text, fill="black")
    for y, row in enumerate(rows):
        for x, tile in enumerate(row):
            sheet.paste(tile.convert("RGB"), (GAP + x * (width + GAP), top + GAP + head + y * step))
    return sheet


def note(text: str) -> Image.Image:
    """Draw a line of text in place of a picture."""
    left, top, right, bottom = ImageDraw.Draw(Image.new("RGB", (1, 1))).textbbox((0, 0), text)
    sheet = Image.new("RGB", (int(right - left) + 8 * GAP, int(bottom - top) + 8 * GAP), "white")
    ImageDraw.Draw(sheet).text((4 * GAP, 4 * GAP), text, fill="black")
    return sheet
