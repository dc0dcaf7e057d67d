"""A page about a fitted bank: its styles on one picture that is nobody's scan, and how it was made."""

import base64
import html
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import torch
from PIL import Image

from styleaug.atomic import atomic
from styleaug.bank import StyleBank
from styleaug.contact_sheet import contact_sheet, one_style, open_rgb, sample_photos, square
from styleaug.errors import ConfigError
from styleaug.files import save_image
from styleaug.foreign import printable
from styleaug.generators.stain import STAIN_GENERATORS
from styleaug.paths import check_path
from styleaug.tissue import draw_tissue
from styleaug.transforms.core import Stylizer

__all__ = ["check_report", "write_report"]

SUFFIXES = (".html", ".png")
SIDE = 160
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
    """Refuse, before hours of reading, a report that cannot be drawn, or that would show what was read.

    Raises:
        ConfigError: neither .html nor .png, or a reference image from inside the source.
    """
    if out.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"a report is a file .html or .png, got {str(out)!r}.")
    check_path(out)
    if reference is not None:
        check_path(reference)
        if any(reference.resolve().is_relative_to(source.resolve()) for source in sources):
            raise ConfigError(
                "the reference image of a report is one of the images that are read; give another, or leave "
                "out --reference for a picture of ours."
            )
        open_rgb(reference, SIDE)


def write_report(
    out: str | Path,
    bank: StyleBank,
    generator: str | Path | None = None,
    *,
    reference: Path | None = None,
    styles: int = 6,
) -> Path:
    """Draw styles of a bank on one image, a row for each group; as a page also counts and settings.

    It holds no names and no paths but the labels that the bank has.

    Args:
        out: the file to write, .html or .png.
        bank: whose styles are shown.
        generator: see `StyleAugment`.
        reference: the image, such as one of the same kind as those that were read, which may be shown. None
            is a picture of ours: drawn tissue for stains, else a photo.
        styles: columns; an even choice of each group's.

    Raises:
        ConfigError: another suffix.
        FileError: the reference image is missing or cannot be read.
    """
    out = Path(out)
    if out.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"a report is a file .html or .png, got {str(out)!r}.")
    tile, shown = (square(reference, SIDE), "the image given for it") if reference else usual_picture(bank)
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
    """Choose a picture of ours that suits the bank's generator, and say what it is."""
    if bank.provenance.generator in STAIN_GENERATORS:
        return draw_tissue(SIDE), "drawn tissue"
    return square(sample_photos()[0], SIDE), "a sample photo"


def draw_styles(bank: StyleBank, generator: str | Path | None, tile: Image.Image, styles: int) -> Image.Image:
    """Lay out the reference image and styles of each group."""
    stylizer = Stylizer(bank, generator=generator, p=1.0, strength=1.0)
    groups = bank.groups if bank.groups is not None else torch.zeros(len(bank), dtype=torch.long)
    rows = []
    for group in range(min(MOST_GROUPS, int(groups.max()) + 1)):
        mine = (groups == group).nonzero()[:, 0]
        shown = mine[torch.linspace(0, len(mine) - 1, min(styles, len(mine))).round().long()]
        rows.append([tile, *(stylizer.apply(tile, one_style(bank, int(row), 1.0)) for row in shown)])
    captions = ["reference", *(f"style {number}" for number in range(1, max(map(len, rows))))]
    return contact_sheet(rows, captions)
