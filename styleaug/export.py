"""Export generators as ONNX files; each file is compared with torch before it is written."""

import json
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from copy import deepcopy
from dataclasses import dataclass
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from styleaug.bank import StyleBank, tool_version
from styleaug.errors import BankError, ConfigError, WeightsError, missing_extra, printable
from styleaug.generators.base import AbstractGenerator
from styleaug.images import luminance, to_float
from styleaug.io.atomic import atomic
from styleaug.io.files import image_files
from styleaug.io.paths import check_path
from styleaug.io.pixels import read_pixels
from styleaug.weights import cards, find_styles, generator_names, load_generator, pretrained_folder

__all__ = [
    "MOST_SIDE",
    "Exported",
    "Graph",
    "OpenSizes",
    "Size",
    "batch_of",
    "export_onnx",
    "open_program",
    "read_samples",
    "similarity",
    "typical_codes",
]

_Source = str | Path | AbstractGenerator
Size = tuple[int, int] | None
OpenSizes = dict[str, dict[int, Any]]
"""For each input, the axes of any length and their names."""
MOST_SIDE = 2**16
MOST_SAMPLES = 24
TRACED = (2, 52, 44)
"""Batch size, height and width of the images with which a graph is traced."""
STYLES = 24
"""Number of codes that are drawn if there is no bank."""


class Graph(nn.Module):
    """A generator or its encoder, with inputs by name.

    Args:
        generator: the generator; it is copied.
        bank: a bank to store in the graph; the input `style` (rows of the bank) then replaces `codes`.
        reads: True for the encoder: return the codes of `images`.
    """

    def __init__(self, generator: AbstractGenerator, bank: StyleBank | None = None, *, reads: bool = False):
        super().__init__()
        self.generator: AbstractGenerator = deepcopy(generator).cpu().eval().requires_grad_(False)
        self.to(memory_format=torch.contiguous_format)  # with another layout, torch.export fixes the sizes
        self.reads = reads
        self.register_buffer("bank", None if bank is None else bank.codes)
        style = "codes" if bank is None else "style"
        self.inputs = ["images", style, "strength"] if generator.code_length else ["images", "strength"]
        self.inputs: list[str] = ["images"] if reads else self.inputs
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
        """Return inputs that paint `images` in the codes at `rows`; later images get a lower strength."""
        strength = torch.linspace(1, 0.5, len(images))
        known = {"images": images, "codes": codes[rows], "style": rows, "strength": strength}
        return {name: known[name] for name in self.inputs}

    def copy(self, *, half: bool = False) -> "Graph":
        """Return a copy. With `half`, weights are float16; images, codes and statistics stay float32."""
        made = deepcopy(self)
        if half:
            made.generator.half()
        return made


def open_program(
    graph: Graph, codes: Float[Tensor, "N S"], *, size: Size = None
) -> tuple[torch.export.ExportedProgram, dict[str, Tensor], OpenSizes]:
    """Trace a graph with `torch.export` for any batch, height and width.

    Args:
        graph: the graph to trace.
        codes: `(N, S)` codes of any styles.
        size: fixed height and width; None allows any.

    Returns:
        The program, the inputs it was traced with, and their axes of any length.
    """
    from torch.fx.experimental import _config

    count, *sides = TRACED if size is None else (TRACED[0], *size)
    example = graph.feed(torch.zeros(count, 3, *sides), torch.arange(count) % len(codes), codes)
    batch, *opened = (torch.export.Dim(name, min=1, max=MOST_SIDE) for name in ("batch", "height", "width"))
    sizes: OpenSizes = {name: {0: batch} for name in example}
    if size is None:
        sizes["images"] |= {2: opened[0], 3: opened[1]}
    # pix2pix's innermost map may be one pixel. torch asks whether it is, and that fixes the size. The second
    # attempt therefore ignores the answer; photo needs the answer.
    try:
        return torch.export.export(graph, (example,), dynamic_shapes=(sizes,)), example, sizes
    except (RuntimeError, AssertionError):
        if not hasattr(_config, "backed_size_oblivious"):
            raise
    with _config.patch(backed_size_oblivious=True):  # pyright: ignore[reportAttributeAccessIssue]
        return torch.export.export(graph, (example,), dynamic_shapes=(sizes,)), example, sizes


def typical_codes(source: _Source, bank: StyleBank | None, pictures: list[Tensor]) -> Float[Tensor, "N S"]:
    """Return typical codes of a generator: from `bank`, its own bank, its prior or the samples.

    Args:
        source: a generator, or its name or path.
        bank: the bank in the graph, if there is one.
        pictures: samples from `read_samples`.
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
        FileError: there is no folder or no image in it, or an image cannot be read.
    """
    paths = image_files(pretrained_folder() / "samples" if folder is None else Path(folder))
    paths = paths[:: -(-len(paths) // MOST_SAMPLES)]
    opened = [to_float(read_pixels(path, short_side=256)) for path in paths]
    return [picture.expand(-1, 3, -1, -1) for picture in opened]


def batch_of(
    pictures: list[Tensor], start: int, count: int, size: tuple[int, int]
) -> Float[Tensor, "B 3 H W"]:
    """Return a batch of `count` pictures from `start`, repeating them if needed, at one size."""
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


_Precision = Literal["float32", "float16", "int8"]
_Part = Literal["generator", "encoder"]
LIMITS = {"float32": (0.01, 0.25), "float16": (0.255, 12.75), "int8": (5.1, 255.0)}
"""Allowed mean and largest difference from torch, for images, in grey levels (0 to 255).

In float32 only the order of sums differs. The stain generators reach 0.05 levels on images without clear
dyes, such as photographs.
"""
CODE_LIMITS = (1e-4, 1e-4)
"""Allowed mean and largest difference from torch, for codes of an encoder, in their own units."""
OPSET = 18
COMPARED = ((1, 96, 128), (3, 61, 77), (2, 150, 131))
"""Batch size, height and width of the images for the comparison; none is the traced size."""
DRAWS, DRAWN_SIZE = 24, (192, 160)
"""Number of images and their size, from which int8 ranges are read; more images changed nothing."""
PERCENTILE = 99.99
"""Percentage of values that an int8 range covers; with 100, adain's error is a third larger."""
INNER = re.compile(r"block|\b(down|up)\.[1-9]")
"""Names of the convolutions that int8 replaces: most of the arithmetic, but not the first and last layers."""
NO_ENCODER = ("histogram", "histogram-luminance", "macenko", "patchswap", "vahadane")
"""Generators whose encoder cannot be exported: it sorts or clusters pixels, whose number ONNX must know."""
TEXTS = {
    "images": "(batch, 3, height, width) in [0, 1], before any normalisation",
    "codes": "(batch, S), one style a row",
    "style": "(batch,), rows of the bank in this file, from 0",
    "strength": "(batch,) in [0, 1]",
    "styled": "(batch, 3, height, width) in [0, 1]",
}
"""Description of each input and output, written into the file."""


@dataclass(frozen=True)
class Exported:
    """An ONNX file, and how much its output differs from the generator in torch."""

    path: Path
    size: int
    """Bytes."""

    inputs: tuple[str, ...]
    output: str
    mean: float
    """Mean absolute difference of images in [0, 1], or of codes."""

    largest: float
    """Largest absolute difference."""

    similarity: float
    """Structural similarity of the images (1: equal); always 1 for codes."""

    def __str__(self) -> str:
        file = f"{printable(self.path)}: {self.size / 1024:.0f} kB"
        what = f"{file}, from {', '.join(self.inputs)} to {self.output}\n"
        if self.output == "codes":
            return f"{what}differs from torch by {self.mean:.2g} on average, {self.largest:.2g} at most"
        mean, largest = 255 * self.mean, 255 * self.largest
        return (
            f"{what}differs from torch by {mean:.2g} of 255 on average, {largest:.2g} at most; "
            f"similarity {self.similarity:.4f}"
        )


def export_onnx(
    generator: _Source,
    out: str | Path,
    *,
    bank: str | Path | StyleBank | None = None,
    precision: _Precision = "float32",
    part: _Part = "generator",
    size: Size = None,
    opset: int = OPSET,
    samples: str | Path | None = None,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Exported:
    """Write a generator as one ONNX file, after comparing it with torch in ONNX Runtime.

    The graph maps `images (B, 3, H, W)` in [0, 1], `codes (B, S)` and `strength (B,)` to `styled`. All
    are float32 for each precision. With a bank, `style (B,)`, int64 rows of the bank, replaces
    `codes`; a generator with S = 0 has neither. B, H and W may have any size from 1. Flat or very small
    images may differ more than is allowed for others, because rounding errors grow there. Images keep their
    size: enlarge those with a short side under `generator.least_side` (128 for `adain`) before, as
    `StyleAugment` does.

    Equal arguments give equal bytes. The metadata is one key, `styleaug`: JSON with name,
    fingerprint, version, licence, precision and the bank's provenance. It has no paths.

    Args:
        generator: a shipped name, a path, a run folder, or a generator.
        out: path of the `.onnx` file to write.
        bank: a bank of this generator to store in the file: a shipped name, a path, a run folder, or a bank.
        precision: "float32", "float16" or "int8". float16 is for GPUs: half the size, within half a grey
            level of 255 (patchswap: 3); CPUs compute it in float32. int8 is for CPUs: the residual blocks
            (of pix2pix: all but the outermost level) use 8 bits, statistics and colours float32. On one
            core with AVX-512 VNNI it takes 0.8 of float32's time for adain, 0.95 for photo and 0.75 for the
            translators; pixels differ by less than 1 of 255 on average.
        part: "generator" or "encoder". The encoder maps `images` to `codes`, to read styles in other
            languages. Reduce style images to a short side of 256 pixels first.
        size: fixed height and width, for runtimes that need them; None allows any.
        opset: version of the ONNX operators, at least 18.
        samples: folder of images for the comparison and for int8's ranges; None uses the photos in
            the package. Use images of the generator's own domain if it has one.
        report: called with the number of steps done and the total.

    Returns:
        What was written, and how much it differs from the generator.

    Raises:
        ConfigError: an argument is outside its range, the generator or part cannot be exported, or
            onnx is not installed.
        WeightsError: the generator is unknown or damaged, or the file differs too much from it.
        BankError: the bank is unknown or damaged, or was made by another generator.
        FileError: there are no samples, or the folder cannot be written to.

    Example:
        >>> export_onnx("adain", "adain.onnx", bank="art")
        >>> session = onnxruntime.InferenceSession("adain.onnx")
        >>> (styled,) = session.run(None, {"images": images, "style": rows, "strength": strength})
    """
    out = check_path(out)
    check_options(out, precision, part, size, opset)
    network = generator if isinstance(generator, AbstractGenerator) else load_generator(generator)
    check_part(network, part, precision, has_bank=bank is not None)
    styles = None if bank is None else find_styles(bank, generator)[0]
    if styles is not None:
        styles.check(network)
    graph = Graph(network, styles, reads=part == "encoder")
    report(0, 4)
    pictures = read_samples(samples)
    codes = typical_codes(generator, styles, pictures)
    with _quiet():
        content = _translate(graph, precision, size, opset, codes)
        report(1, 4)
        if precision == "int8":
            content = quantise(content, graph, pictures, codes, size or DRAWN_SIZE)
        report(2, 4)
        content = annotate(content, _facts(generator, network, part, precision, styles))
        found = _compare(content, graph, precision, pictures, codes, size)
    report(3, 4)
    check_difference(network.name, precision, *found, codes=part == "encoder")
    with atomic(out) as temporary:
        temporary.write_bytes(content)
    report(4, 4)
    return Exported(out, len(content), tuple(graph.inputs), graph.output, *found)


def check_options(out: Path, precision: str, part: str, size: Size, opset: int) -> None:
    """Check the options that need no generator."""
    for name, value, known in (("precision", precision, _Precision), ("part", part, _Part)):
        if value not in get_args(known):
            raise ConfigError(f"{name} must be one of {', '.join(get_args(known))}, got {value!r}.")
    if out.suffix != ".onnx":
        raise ConfigError(f"the file must end in .onnx, got {str(out)!r}.")
    if not opset >= OPSET:
        raise ConfigError(f"opset must be at least {OPSET}, got {opset}.")
    if size is not None and not (len(size) == 2 and min(size) >= 1 and max(size) <= MOST_SIDE):
        raise ConfigError(f"size must be height and width from 1 to {MOST_SIDE}, got {size}.")
    missing = [name for name in ("onnx", "onnxruntime", "onnxscript") if find_spec(name) is None]
    if missing:
        raise missing_extra("export", ", ".join(missing), "export")


def check_part(network: AbstractGenerator, part: str, precision: str, *, has_bank: bool) -> None:
    """Check that this generator has the part, the precision and the bank that were asked for."""
    if not network.exports:
        raise ConfigError(
            f"{network.name!r} cannot be exported to ONNX. Use torch.export or torch.compile, or run it in "
            "Python."
        )
    if part == "encoder" and (network.name in NO_ENCODER or network.code_length == 0):
        reason = "reads codes as ONNX cannot" if network.code_length else "has no codes"
        raise ConfigError(f"{network.name!r} {reason}, so its encoder cannot be exported.")
    if part == "encoder" and (precision != "float32" or has_bank):
        raise ConfigError("an encoder takes no bank, and its precision must be float32.")
    if has_bank and network.code_length == 0:
        raise ConfigError(f"{network.name!r} has one fixed target domain and no styles; leave out the bank.")
    if precision != "float32" and not network.takes_bfloat16:
        raise ConfigError(f"{network.name!r} has no weights; its precision must be float32.")


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the messages of the exporter and the quantiser."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _translate(graph: Graph, precision: _Precision, size: Size, opset: int, codes: Tensor) -> bytes:
    """Make the ONNX graph, in float32 or float16.

    Raises:
        ConfigError: the exporter cannot convert the generator.
    """
    wanted = graph.copy(half=precision == "float16")
    try:
        with torch.no_grad():
            program, example, open_sizes = open_program(wanted, codes, size=size)
            made = torch.onnx.export(
                program,
                (example,),
                input_names=graph.inputs,
                output_names=[graph.output],
                dynamic_shapes=(open_sizes,),
                opset_version=opset,
                dynamo=True,
                verbose=False,
            )
    except Exception as error:  # the exporter raises errors of many kinds
        first = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        raise ConfigError(f"{graph.generator.name!r} cannot be exported. {first}") from error
    assert made is not None
    return made.model_proto.SerializeToString(deterministic=True)


def quantise(
    content: bytes, graph: Graph, pictures: list[Tensor], codes: Tensor, size: tuple[int, int]
) -> bytes:
    """Return the file with 8-bit weights and inputs of the inner convolutions; samples give the ranges."""
    import onnx
    from onnxruntime import quantization as q

    rows = torch.randint(len(codes), (DRAWS, 1), generator=torch.Generator().manual_seed(0))
    drawn = (as_arrays(graph.feed(batch_of(pictures, i, 1, size), row, codes)) for i, row in enumerate(rows))

    class Draws(q.CalibrationDataReader):
        def get_next(self) -> Any:
            return next(drawn, None)

    model = onnx.load_from_string(content)
    inner = [node.name for node in model.graph.node if node.op_type == "Conv" and INNER.search(node.input[1])]
    with TemporaryDirectory() as folder:
        path = Path(folder) / "int8.onnx"
        q.quantize_static(
            model,
            path,
            Draws(),
            quant_format=q.QuantFormat.QDQ,
            activation_type=q.QuantType.QUInt8,
            weight_type=q.QuantType.QInt8,
            per_channel=True,
            reduce_range=True,  # 7 bits: with 8, CPUs without VNNI overflow; accuracy is the same
            nodes_to_quantize=inner,
            calibrate_method=q.CalibrationMethod.Percentile,
            extra_options={"CalibPercentile": PERCENTILE},
        )
        return path.read_bytes()


def annotate(content: bytes, facts: dict[str, Any]) -> bytes:
    """Replace the exporter's metadata, which names files of this machine, by `facts`."""
    import onnx

    model = onnx.load_from_string(content)
    graph = model.graph
    for item in (*graph.node, *graph.initializer, *graph.input, *graph.output):
        del item.metadata_props[:]
        item.doc_string = TEXTS.get(item.name, "")
    del graph.metadata_props[:], model.metadata_props[:]
    del graph.value_info[:]  # inner shapes are formulas in the exporter's own names
    model.producer_name, model.producer_version = "styleaug", facts["version"]
    entry = model.metadata_props.add()
    entry.key, entry.value = "styleaug", json.dumps(facts, sort_keys=True)
    return model.SerializeToString(deterministic=True)


def _facts(
    source: _Source, network: AbstractGenerator, part: _Part, precision: _Precision, bank: StyleBank | None
) -> dict[str, Any]:
    """Return the metadata: what the file holds and where it comes from."""
    fingerprint, shipped = network.fingerprint, cards()["generators"]
    names = [name for name, card in shipped.items() if card["fingerprint"] == fingerprint]
    names += [source] if isinstance(source, str) and source in generator_names() else []
    return {
        "format": 1,
        "part": part,
        "generator": network.name,
        "name": names[0] if names else None,
        "fingerprint": fingerprint,
        "code_length": network.code_length,
        "least_side": network.least_side,
        "minimum": network.minimum,
        "precision": precision,
        "version": tool_version(),
        "licence": shipped.get(names[0], {}).get("licence", "Apache-2.0") if names else "",
        "bank": None if bank is None else {"styles": len(bank), **bank.provenance.facts()},
    }


def as_arrays(inputs: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """Convert inputs to NumPy arrays for ONNX Runtime."""
    return {name: value.numpy() for name, value in inputs.items()}


def _compare(
    content: bytes, graph: Graph, precision: _Precision, pictures: list[Tensor], codes: Tensor, size: Size
) -> tuple[float, float, float]:
    """Compare the file with the generator on images and styles that were not traced.

    Returns:
        Mean and largest absolute difference, and the structural similarity.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    halved = graph.copy(half=precision == "float16")
    differences, alike = [], []
    for index, (count, height, width) in enumerate(COMPARED):
        images = batch_of(pictures, index, count, size or (height, width))
        inputs = graph.feed(images, (7 * torch.arange(count) + index) % len(codes), codes)
        given = [torch.from_numpy(session.run(None, as_arrays(inputs))[0])]
        if precision == "float16":  # ONNX Runtime computes float16 in float32 on a CPU, torch does not
            given.append(halved(inputs))
        wanted = graph(inputs).repeat(len(given), *([1] * (given[0].ndim - 1)))
        differences.append((torch.cat(given) - wanted).abs().flatten())
        alike.append(torch.ones(1) if graph.reads else similarity(torch.cat(given), wanted))
    difference = torch.cat(differences)
    return difference.mean().item(), difference.max().item(), torch.cat(alike).mean().item()


def check_difference(
    name: str, precision: str, mean: float, largest: float, similarity: float, *, codes: bool
) -> None:
    """Check that the file's output is near enough to the generator's."""
    most, scale, of = (CODE_LIMITS, 1, "") if codes else (LIMITS[precision], 255, " levels of 255")
    if not (scale * mean <= most[0] and scale * largest <= most[1]):  # written so that NaN fails too
        raise WeightsError(
            f"{name!r} in {precision} differs from torch by {scale * mean:.2g} on average and "
            f"{scale * largest:.2g} at most, where {most[0]:g} and {most[1]:g}{of} are allowed; similarity "
            f"{similarity:.4f}." + ("" if precision == "float32" else " Use float32.")
        )
