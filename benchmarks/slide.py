"""What does a slide of 20,000 x 20,000 pixels cost: time and memory of `styleaug apply`?

    python benchmarks/slide.py --out benchmarks/results/slide.json
    python benchmarks/slide.py --side 8192 --layouts svs,zarr --out benchmarks/results/slide_formats.json

Makes synthetic slides (tissue, nuclei and background, RGB uint8) row by row in a temporary folder: tiled and
in strips, both BigTIFF, as a scanner's SVS (Aperio: JPEG, 0.25 microns per pixel, levels of 1/4 and 1/16) and
as OME-Zarr of three levels. It applies to each in a process of its own, and reads that process's peak memory;
of the last two it also fits a bank to 16 tiles at 0.5 microns per pixel. `seam`
is the mean step between neighbouring pixels across the borders of tiles over that beside them, and over the
same of the source: 1 where no border shows; for adain less, as it is at other multiples of 8 pixels, too.
`--picture FILE` keeps a reduced copy of each result, with a crop at the corner of four tiles beside it.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from machine import publish

TEXTURE = 1000
"""Side of the pattern of nuclei, which repeats."""

COARSE = 8
"""Pixels over which the tissue is constant."""

PROBE = """
import json, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from styleaug import apply_folder
start = time.perf_counter()
bank, source, out = sys.argv[1:]
done = apply_folder(source, out, bank=bank, strength=(0.8, 0.8), seed=1)
spent = time.perf_counter() - start
status = Path("/proc/self/status").read_text().splitlines()
peak = next(int(line.split()[1]) for line in status if "VmHWM" in line)
print(json.dumps({"seconds": round(spent, 1), "peak MB": round(peak / 1024), "written": done.written,
                  "failed": [reason for _, reason in done.failed]}))
"""


FIT = """
import json, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from styleaug import fit_style
start = time.perf_counter()
generator, source, out = sys.argv[1:]
fit = fit_style(source, generator=generator, mpp=0.5, patches=16, min_images=1)
spent = time.perf_counter() - start
status = Path("/proc/self/status").read_text().splitlines()
peak = next(int(line.split()[1]) for line in status if "VmHWM" in line)
print(json.dumps({"seconds": round(spent, 1), "peak MB": round(peak / 1024), "written": len(fit.bank),
                  "failed": [reason for _, reason in fit.failed]}))
"""

LAYOUTS = {
    "tiled": ("slide.tif", "slide.tif"),
    "stripped": ("slide.tif", "slide.tif"),
    "svs": ("slide.svs", "slide.ome.tif"),
    "zarr": ("slide.zarr", "slide.zarr"),
}
"""Names of the source and of its copy."""


def nuclei(rng: np.random.Generator) -> np.ndarray:
    """Draw dark discs that wrap around, `(TEXTURE, TEXTURE)` in [0, 1]."""
    field = np.zeros((TEXTURE, TEXTURE), np.float32)
    around = np.arange(-13, 14)
    distance = np.hypot(around[:, None], around)
    for _ in range(700):
        top, left, radius = *rng.integers(0, TEXTURE, 2), rng.uniform(5, 12)
        place = np.ix_((top + around) % TEXTURE, (left + around) % TEXTURE)
        field[place] = np.maximum(field[place], np.clip(radius - distance, 0, 2) / 2)
    return field


def bands(side: int, height: int) -> Iterator[np.ndarray]:
    """Make a slide in bands `(height, side, 3)`; the last one may be lower."""
    rng = np.random.default_rng(0)
    cells = nuclei(rng)
    glass, eosin, blue = (np.array(c, np.float32) for c in ((243, 241, 244), (226, 150, 190), (90, 60, 140)))
    columns = np.arange(side)
    across = columns[::COARSE] / side
    grain = rng.integers(-6, 7, (height + 1, side, 3), dtype=np.int8)
    for top in range(0, side, height):
        rows = np.arange(top, min(top + height, side))
        down = (rows // COARSE * COARSE)[:, None] / side
        thick = np.sin(5 * down + 2 * np.sin(4 * across)) + np.sin(7 * across - 3 * down) + 0.3
        shade = 0.7 + 0.3 * np.sin(40 * across * down)
        tissue, shade = (
            field.astype(np.float32).repeat(COARSE, axis=1)[:, :side, None]
            for field in (np.clip(2 * thick, 0, 1), shade)
        )
        nucleus = cells[rows % TEXTURE][:, columns % TEXTURE][..., None] * tissue
        colour = glass + tissue * shade * (eosin - glass)
        colour += nucleus * (blue - colour)
        colour += np.roll(grain, int(rng.integers(side)), axis=1)[: len(rows)]
        yield np.clip(colour, 0, 255).astype(np.uint8)


def tiles(side: int, tile: int) -> Iterator[np.ndarray]:
    """Cut the bands into tiles."""
    for band in bands(side, tile):
        for left in range(0, side, tile):
            part = band[:, left : left + tile]
            yield np.pad(part, ((0, tile - part.shape[0]), (0, tile - part.shape[1]), (0, 0)))


def write_slide(path: Path, side: int, *, tiled: bool) -> None:
    """Write a synthetic slide without holding it."""
    import tifffile

    layout: dict[str, Any] = {"tile": (256, 256)} if tiled else {"rowsperstrip": 64}
    # tifffile cuts no strips of what it is given bit by bit, but takes those that are compressed already.
    data = tiles(side, 256) if tiled else (zlib.compress(band.tobytes(), 1) for band in bands(side, 64))
    tifffile.imwrite(
        path, data, shape=(side, side, 3), dtype=np.uint8, photometric="rgb", compression="zlib",
        compressionargs={"level": 1}, bigtiff=True, **layout,
    )  # fmt: skip


def levels(side: int, steps: tuple[int, ...]) -> dict[int, np.ndarray]:
    """Make reduced copies of the slide, by the factor."""
    kept: dict[int, list[np.ndarray]] = {step: [] for step in steps}
    for band in bands(side, max(steps) * 16):
        for step in steps:
            high, wide = (length // step for length in band.shape[:2])
            blocks = band[: high * step, : wide * step].reshape(high, step, wide, step, 3)
            kept[step].append(blocks.mean(axis=(1, 3), dtype=np.float32).astype(np.uint8))
    return {step: np.concatenate(parts) for step, parts in kept.items()}


def write_svs(path: Path, side: int) -> None:
    """Write a synthetic slide in the layout of Aperio's scanners."""
    import tifffile

    said = f"Aperio Image Library v12.0\r\n{side}x{side} [0,0 {side}x{side}] (256x256)|AppMag = 40|MPP = 0.25"
    form = {"photometric": "rgb", "tile": (256, 256), "description": said, "metadata": None}
    form |= {"compression": "jpeg", "compressionargs": {"level": 90}}
    small = levels(side, (4, 16))
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        writer.write(tiles(side, 256), shape=(side, side, 3), dtype=np.uint8, **form)
        writer.write(small[16], **{**form, "tile": None, "rowsperstrip": 64})
        for step in (4, 16):
            writer.write(small[step], **form)


def write_zarr(path: Path, side: int) -> None:
    """Write a synthetic slide as OME-Zarr 0.4."""
    import zarr

    group = zarr.open_group(str(path), mode="w", zarr_format=2)
    form = {"dtype": "u1", "chunks": (3, 512, 512)}
    full = group.create_array("0", shape=(3, side, side), **form)
    for top, band in zip(range(0, side, 512), bands(side, 512), strict=True):
        full[:, top : top + len(band)] = band.transpose(2, 0, 1)
    for number, small in enumerate(levels(side, (2, 4)).values(), start=1):
        group.create_array(str(number), shape=(3, *small.shape[:2]), **form)[...] = small.transpose(2, 0, 1)
    scales = [[{"type": "scale", "scale": [1.0, 0.25 * 2**level, 0.25 * 2**level]}] for level in range(3)]
    axes: list[dict] = [{"name": "c", "type": "channel"}]
    axes += [{"name": axis, "type": "space", "unit": "micrometer"} for axis in "yx"]
    parts = [{"path": str(level), "coordinateTransformations": scale} for level, scale in enumerate(scales)]
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": parts}]


def write_layout(path: Path, side: int, layout: str) -> None:
    """Write a synthetic slide in one of `LAYOUTS`."""
    if layout == "svs":
        write_svs(path, side)
    elif layout == "zarr":
        write_zarr(path, side)
    else:
        write_slide(path, side, tiled=layout == "tiled")


def remove(path: Path) -> None:
    """Delete a slide, which may be a folder."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def measure(program: str, bank: str | Path, source: Path, out: Path) -> dict:
    """Apply, or fit, in a process of its own."""
    command = [sys.executable, "-c", program, str(bank), str(source), str(out)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def colour_bank(folder: Path) -> Path:
    """Fit a bank of colours to the samples that are shipped."""
    from styleaug import fit_style
    from styleaug.weights import pretrained_folder

    path = folder / "colour.safetensors"
    fit_style(pretrained_folder() / "samples", generator="reinhard-rgb").bank.save(path)
    return path


def seam(path: Path, side: int) -> float:
    """Compare the steps across the borders of tiles with those beside them."""
    from styleaug.io.slides import open_slide
    from styleaug.offline.tiles import TILE

    at, beside = [], []
    with open_slide(path) as slide:
        for place in range(TILE, side - 3, TILE):
            columns = slide.read(0, place - 3, side, 6)[..., 1].astype(int)
            steps = np.abs(np.diff(columns, axis=1)).mean(axis=0)
            at.append(steps[2])
            beside.append(steps[[0, 1, 3, 4]].mean())
    return float(np.mean(at) / np.mean(beside))


def draw(path: Path, side: int, target: Path) -> None:
    """Draw a slide reduced, and beside it the pixels where four tiles meet."""
    from PIL import Image

    from styleaug.io.slides import open_slide
    from styleaug.offline.tiles import TILE

    with open_slide(path) as slide:
        small = Image.fromarray(slide.thumbnail(600)).resize((600, 600))
        corner = slide.read(TILE * 4 - 300, TILE * 4 - 300, 600, 600)
    sheet = Image.new("RGB", (1210, 600), "white")
    sheet.paste(small, (0, 0))
    sheet.paste(Image.fromarray(corner), (610, 0))
    sheet.save(target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=20_000)
    parser.add_argument(
        "--banks", default="reinhard-rgb,photo-tones,art", help="Shipped names, or reinhard-rgb."
    )
    parser.add_argument(
        "--layouts", default="tiled,stripped", help="stripped with the first bank only; also svs, zarr."
    )
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--note", default="", help="What else ran on the machine meanwhile.")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        banks = {name: name for name in args.banks.split(",")} | {"reinhard-rgb": colour_bank(folder)}
        for layout in args.layouts.split(","):
            given, made = LAYOUTS[layout]
            source = folder / layout
            source.mkdir()
            start = time.perf_counter()
            write_layout(source / given, args.side, layout)
            print(f"{layout}: written in {time.perf_counter() - start:.0f} s", flush=True)
            plain = seam(source / given, args.side)
            if layout in ("svs", "zarr"):
                row = measure(FIT, "reinhard-rgb", source, folder)
                assert row.pop("failed") == [] and row.pop("written") > 0
                rows[f"{layout}, fit-style"] = row
                print(f"{layout}, fit-style", row, flush=True)
            every = not rows or layout in ("svs", "zarr")
            for name in args.banks.split(",") if every else args.banks.split(",")[:1]:
                out = folder / f"{layout}-{name}"
                row = measure(PROBE, banks[name], source, out)
                assert row.pop("failed") == [] and row.pop("written") == 1
                styled = out / made
                rows[f"{layout}, {name}"] = {**row, "seam": round(seam(styled, args.side) / plain, 3)}
                print(f"{layout}, {name}", rows[f"{layout}, {name}"], flush=True)
                if args.picture:
                    draw(styled, args.side, args.picture.with_stem(f"{args.picture.stem}-{layout}-{name}"))
                remove(styled)
            remove(source / given)
    packed = "zlib" if "tiled" in args.layouts else "JPEG (svs), Blosc (zarr)"
    notes = f"{args.side:,} x {args.side:,} pixels, RGB uint8, {packed}; one thread. {args.note}".strip()
    print(publish(args.out, "A slide, tile by tile", rows, notes=notes))


if __name__ == "__main__":
    main()
