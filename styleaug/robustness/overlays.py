"""Pictures of segmentations: the best, the median and the worst image of each domain."""

import colorsys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageDraw
from torch import Tensor

from styleaug.errors import printable
from styleaug.io.atomic import atomic
from styleaug.robustness.classifier_training import VOID
from styleaug.robustness.tasks import Case

__all__ = ["draw_overlays", "overlaid"]

ENLARGED = 2
"""Factor by which images are enlarged."""
TINT = 0.45
"""Share of the colour of a class in the pixels of the answer."""
TEXT_HEIGHT = 14
"""Height of a line of text in pixels."""
FILE_COLOURS = 128
"""Number of colours of the file."""


def draw_overlays(path: Path, cases: Mapping[str, Case], first: int) -> None:
    """Draw a row for each domain: its best, median and worst image, by the mean Dice.

    The network's answer is tinted, and the true border is drawn as a line, both in the colour of the class.
    Void pixels are darkened.

    Args:
        path: PNG file to write.
        cases: the tested domains.
        first: index of the first class that is drawn.
    """
    rows = [(name, case, order_of(case)) for name, case in cases.items()]
    side = ENLARGED * max(case.images.shape[-1] for case in cases.values())
    sheet = Image.new("RGB", (3 * side, len(rows) * (side + TEXT_HEIGHT)), "white")
    pen = ImageDraw.Draw(sheet)
    for row, (name, case, order) in enumerate(rows):
        top = row * (side + TEXT_HEIGHT)
        for column, (rank, index) in enumerate(order):
            assert case.tested.given is not None and case.tested.each is not None
            tile = overlaid(case.images[index], case.labels[index], case.tested.given[index], first)
            sheet.paste(Image.fromarray(tile), (column * side, top + TEXT_HEIGHT))
            text = f"{name} {rank} {case.tested.each[index]:.2f} {Path(case.names[index]).name}"
            pen.text((column * side + 2, top + 1), printable(text)[: side // 6], fill="black")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as part:
        sheet.quantize(FILE_COLOURS).save(part, format="PNG", optimize=True)


def order_of(case: Case) -> list[tuple[str, int]]:
    """Return the rows of the best, the median and the worst image with a score."""
    assert case.tested.each is not None
    scored = case.tested.each.nan_to_num(nan=-1.0).argsort(descending=True, stable=True)
    scored = scored[: int((~case.tested.each.isnan()).sum())].tolist()
    if not scored:
        return []
    return [("best", scored[0]), ("median", scored[len(scored) // 2]), ("worst", scored[-1])]


def overlaid(
    image: UInt8[Tensor, "3 S S"], truth: UInt8[Tensor, "S S"], given: UInt8[Tensor, "S S"], first: int
) -> np.ndarray:
    """Return an image as `(2S, 2S, 3)` uint8 with its answer tinted and its true borders drawn."""
    large = [
        part.repeat_interleave(ENLARGED, dim=-2).repeat_interleave(ENLARGED, dim=-1)
        for part in (image, truth, given)
    ]
    pixels, mask, answer = large[0].permute(1, 2, 0).float(), large[1].long(), large[2].long()
    colours = torch.tensor([colour_of(index) for index in range(VOID + 1)])
    tinted = torch.lerp(pixels, colours[answer], TINT)
    pixels = torch.where((answer >= first)[..., None], tinted, pixels)
    pixels = torch.where((mask == VOID)[..., None], pixels / 2, pixels)
    on_line = border(mask) & (mask >= first) & (mask != VOID)
    pixels = torch.where(on_line[..., None], colours[mask], pixels)
    return pixels.round().byte().numpy()


def border(mask: Tensor) -> Tensor:
    """Return the pixels of which a neighbour has another label."""
    edge = torch.zeros_like(mask, dtype=torch.bool)
    across, down = mask[:, 1:] != mask[:, :-1], mask[1:] != mask[:-1]
    edge[:, 1:] |= across
    edge[:, :-1] |= across
    edge[1:] |= down
    edge[:-1] |= down
    return edge


def colour_of(index: int) -> tuple[float, ...]:
    """Return a bright colour for each class: green for the first after the background, then far ones."""
    return tuple(255 * part for part in colorsys.hsv_to_rgb(0.33 + 0.618034 * (index - 1), 1.0, 1.0))
