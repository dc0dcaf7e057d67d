"""A generator as a graph with named inputs and open sizes, and samples to run it on."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from styleaug.bank import StyleBank
from styleaug.errors import BankError
from styleaug.files import image_files, open_image
from styleaug.formats.scan import as_picture
from styleaug.generators.base import AbstractGenerator
from styleaug.images import luminance, to_float, to_pixels
from styleaug.weights import find_styles, load_generator, pretrained_folder

__all__ = [
    "MOST_SIDE",
    "Graph",
    "OpenSizes",
    "Size",
    "Source",
    "batch_of",
    "open_program",
    "read_samples",
    "similarity",
    "typical_codes",
]

Source = str | Path | AbstractGenerator
Size = tuple[int, int] | None
OpenSizes = dict[str, dict[int, Any]]
"""For each input the axes whose length is open, and their names."""

MOST_SIDE = 2**16
MOST_SAMPLES = 24
TRACED = (2, 52, 44)
"""Rows, height and width of the images that are traced."""
STYLES = 24
"""Codes drawn where there is no bank."""


class Graph(nn.Module):
    """A generator, or what reads its codes, with inputs by name.

    Args:
        generator: is copied.
        bank: puts its codes in the graph, whose input `style` is rows of it in place of `codes`.
        reads: give the codes of `images`, and nothing else.
    """

    def __init__(self, generator: AbstractGenerator, bank: StyleBank | None = None, *, reads: bool = False):
        super().__init__()
        self.generator = deepcopy(generator).cpu().eval().requires_grad_(False)
        self.to(memory_format=torch.contiguous_format)  # torch.export closes sizes for others
        self.reads = reads
        self.register_buffer("bank", None if bank is None else bank.codes)
        style = "codes" if bank is None else "style"
        self.inputs = ["images", style, "strength"] if generator.code_length else ["images", "strength"]
        self.inputs = ["images"] if reads else self.inputs
        self.output = "codes" if reads else "styled"

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """Stylise, or read codes."""
        images = inputs["images"]
        if self.reads:
            return self.generator.encode_style(images)
        if "style" in inputs:
            codes = self.get_buffer("bank").index_select(0, inputs["style"])
        elif "codes" in inputs:
            codes = inputs["codes"]
        else:
            codes = images.new_zeros(images.shape[0], 0)
        return self.generator(images, codes, inputs["strength"])

    def feed(
        self, images: Float[Tensor, "B 3 H W"], rows: Int[Tensor, " B"], codes: Float[Tensor, "N S"]
    ) -> dict[str, Tensor]:
        """Make the inputs that give images the codes at these rows, the later ones less of them."""
        strength = torch.linspace(1, 0.5, len(images))
        known = {"images": images, "codes": codes[rows], "style": rows, "strength": strength}
        return {name: known[name] for name in self.inputs}

    def copy(self, *, half: bool = False) -> "Graph":
        """Copy; with half weights, images, codes and statistics stay float32 as they do with bfloat16."""
        made = deepcopy(self)
        if half:
            made.generator.half()
        return made


def open_program(
    graph: Graph, codes: Float[Tensor, "N S"], *, size: Size = None
) -> tuple[torch.export.ExportedProgram, dict[str, Tensor], OpenSizes]:
    """Trace a graph with `torch.export` for any batch, height and width.

    Args:
        graph: what to trace.
        codes: of any styles.
        size: height and width to fix.

    Returns:
        The program, the inputs it was traced with, and what is open of them.
    """
    from torch.fx.experimental import _config

    count, *sides = TRACED if size is None else (TRACED[0], *size)
    example = graph.feed(torch.zeros(count, 3, *sides), torch.arange(count) % len(codes), codes)
    batch, *opened = (torch.export.Dim(name, min=1, max=MOST_SIDE) for name in ("batch", "height", "width"))
    sizes: OpenSizes = {name: {0: batch} for name in example}
    if size is None:
        sizes["images"] |= {2: opened[0], 3: opened[1]}
    # pix2pix's innermost map may be one pixel, and torch asks whether it is, which closes the size. So
    # the second attempt takes it that the answer does not matter; photo cannot do without an answer.
    try:
        return torch.export.export(graph, (example,), dynamic_shapes=(sizes,)), example, sizes
    except (RuntimeError, AssertionError):
        if not hasattr(_config, "backed_size_oblivious"):
            raise
    with _config.patch(backed_size_oblivious=True):  # pyright: ignore[reportAttributeAccessIssue]
        return torch.export.export(graph, (example,), dynamic_shapes=(sizes,)), example, sizes


def typical_codes(source: Source, bank: StyleBank | None, pictures: list[Tensor]) -> Float[Tensor, "N S"]:
    """Find codes that a generator will meet: the bank's, its own bank's, the prior's or the samples'.

    Args:
        source: the generator's name or path, or a generator.
        bank: the one in the graph, if there is one.
        pictures: samples, from `read_samples`.
    """
    generator = source if isinstance(source, AbstractGenerator) else load_generator(source)
    if bank is None and not generator.has_prior:
        try:
            bank, _ = find_styles(None, source)
        except BankError:
            return torch.cat([generator.encode_style(1 - picture) for picture in pictures])
    if bank is None:
        return torch.randn(STYLES, generator.code_length, generator=torch.Generator().manual_seed(0))
    return bank.codes


def read_samples(folder: str | Path | None = None) -> list[Tensor]:
    """Read at most `MOST_SAMPLES` images of a folder, or the sample photos, `(1, 3, H, W)` in [0, 1].

    Raises:
        FileError: no folder, no image in it, or one that cannot be read.
    """
    paths = image_files(pretrained_folder() / "samples" if folder is None else Path(folder))
    paths = paths[:: -(-len(paths) // MOST_SAMPLES)]
    opened = [to_float(to_pixels(as_picture(open_image(path, short_side=256)))[0]) for path in paths]
    return [picture.expand(-1, 3, -1, -1) for picture in opened]


def batch_of(
    pictures: list[Tensor], start: int, count: int, size: tuple[int, int]
) -> Float[Tensor, "B 3 H W"]:
    """Take `count` images from `start` on, round and round, and give them one size."""
    chosen = [pictures[(start + row) % len(pictures)] for row in range(count)]
    resized = [F.interpolate(picture, size, mode="bilinear", antialias=True) for picture in chosen]
    return torch.cat(resized).clamp(0, 1)


def similarity(one: Float[Tensor, "B 3 H W"], other: Float[Tensor, "B 3 H W"]) -> Float[Tensor, " B"]:
    """Compute the structural similarity in windows of 8 x 8 pixels (Wang et al. 2004, eq. 13)."""
    window = [min(8, side) for side in one.shape[-2:]]
    a, b = luminance(one), luminance(other)
    mean_a, mean_b, aa, bb, ab = (F.avg_pool2d(x, window, 1) for x in (a, b, a * a, b * b, a * b))
    product, squares = mean_a * mean_b, mean_a**2 + mean_b**2
    c1, c2 = 0.01**2, 0.03**2
    index = (2 * product + c1) * (2 * (ab - product) + c2) / ((squares + c1) * (aa + bb - squares + c2))
    return index.mean(dim=(1, 2, 3))
