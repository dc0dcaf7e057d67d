"""Fit a style bank to images: a folder, files, or images in memory."""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from styleaug.bank import Provenance, StyleBank
from styleaug.checks import check_count, check_seed
from styleaug.errors import ConfigError, FileError, StyleAugError, reason_of
from styleaug.fitting.privacy import Pool, Privacy, cover, frame_of, origins_needed, private_styles
from styleaug.fitting.studies import Study, balance_warnings, modality_of, origin_of, read_study
from styleaug.fitting.unfinished import Unfinished
from styleaug.generators.base import AbstractGenerator
from styleaug.io.lists import LISTS
from styleaug.io.paths import check_path
from styleaug.io.pixels import images_in, open_style, shrink, views
from styleaug.io.scan import Window
from styleaug.io.slides import holds_slide
from styleaug.io.tissue import SlideTiles, check_resolution, tile_views
from styleaug.weights import load_generator

__all__ = ["Choice", "Group", "fit_style"]

Choice = Literal["random", "diverse"]
_CHOICES = get_args(Choice)
_MAX_STYLES = 100_000
"""Most codes from which diverse ones are chosen."""
SLIDE_TILES = 16
"""Tiles of a slide whose mean code is the slide's style."""
MAX_NUMBERS = 2**28
"""Most numbers in all codes from which diverse ones are chosen: 1 GiB. A PatchSwap code has 19,526."""


@dataclass(frozen=True)
class Group:
    """The source of a group of a bank. Its name is in the bank only with `labels=True`."""

    name: str
    images: int
    origins: int
    """Number of patients, or of files that are not DICOM."""
    styles: int


@dataclass(frozen=True)
class Fit:
    """A fitted bank, the files that could not be read, and warnings."""

    bank: StyleBank
    failed: list[tuple[Path, str]]
    warnings: list[str] = field(default_factory=list)
    groups: dict[str, Group] = field(default_factory=dict)
    """Groups by their label in the bank; empty if the bank has no groups."""
    left_out: str = ""
    """A line about the other files in the folder, or ""."""

    def split(self) -> dict[str, StyleBank]:
        """Return a bank for each group, by label; the banks do not contain the label."""
        parts = {label: self.bank.select(group=label).codes for label in self.groups}
        made_by = self.bank.provenance
        return {
            label: StyleBank(codes, replace(made_by, images=self.groups[label].images))
            for label, codes in parts.items()
        }


def fit_style(
    source: Any,
    *,
    generator: str | Path | AbstractGenerator = "reinhard-rgb",
    max_styles: int = 256,
    patches: int = 1,
    choose: Choice = "random",
    min_images: int = 5,
    epsilon: float | None = None,
    delta: float | None = None,
    group_by: str | None = None,
    class_by: str | None = None,
    labels: bool = False,
    window: Window | None = None,
    mpp: float | None = None,
    level: int | None = None,
    keep: Path | None = None,
    seed: int = 0,
    licence: str = "",
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Fit:
    """Read the styles of images into a bank.

    No labels are needed, and no pixels or names are kept. Each style is the mean of similar styles of several
    patients or files; `fitting.privacy` describes what that guarantees.

    Args:
        source: a folder, searched with all folders below it; a CSV or TSV list with the column `path`; an
            image file; a PIL image, array `(H, W[, C])` or tensor `(C, H, W)`, or a batch of these; or a list
            of any of them. Each image in memory counts as a different patient. Fewer images than
            `min_images`, such as one painting, need `min_images=1`.
        generator: generator whose `encode_style` reads the images: a name, a path or a generator.
        max_styles: most codes in the bank; groups get equal parts of it.
        patches: 1 reads each image whole. N reads N random crops with half to full sides, each a style. Of a
            slide, N tiles of tissue are read, each a style; with 1, the style is the mean of several tiles.
        choose: which styles to keep if there are more than `max_styles`. `"random"` reads only as many images
            as needed, and the bank follows the folder's distribution. `"diverse"` reads all and keeps those
            that cover them best (a random part, if they do not fit in memory).
        min_images: least number of different patients (DICOM) or files behind each style; each gives one
            code. With 1, every image is a style, and the bank is as confidential as the images.
        epsilon: draw the styles from a mean and covariance with differential privacy, from all images;
            in (0, 100]. It needs hundreds of patients or files, thousands for an epsilon of 1.
        delta: delta of differential privacy, in (0, 1); the default is 1e-5.
        group_by: `"folder"` for the folders below the source, a DICOM tag such as `"Modality"`, `"site"`,
            `"scanner"` or `"body-part"`, or a column of the list.
        class_by: `"folder"` or a column of the list; warns if groups differ in classes.
        labels: write the names of groups into the bank; otherwise they are g1, g2, ...
        window: window for DICOM and volumes: `(centre, width)`, `"auto"` or `"dicom"`.
        mpp: microns per pixel at which tiles of slides are read; a slide that does not give its own is an
            error. See `SlideTiles`. With `mpp` or `level`, TIFF files that are large or hold a pyramid count
            as slides.
        level: level of the slides' pyramids to read instead; the default is 0, the full size.
        keep: file for the codes of single images during the fit, so that an interrupted fit can continue.
            Only its owner can read it; it is deleted at the end.
        seed: seed for the choice of images and crops. The noise of differential privacy has no seed.
        licence: licence of the images, written into the bank.
        report: called with the number of styles read and the number expected.

    Raises:
        FileError: there is no folder, it has no images, or no image can be read.
        ConfigError: a number is out of range, a choice is unknown, there are fewer patients or files than
            `min_images`, or the generator's styles have no code, cannot be averaged or have no bounds.
    """
    if choose not in _CHOICES:
        raise ConfigError(f"choose must be one of {', '.join(_CHOICES)}, got {choose!r}.")
    max_styles, patches = check_count("max_styles", max_styles), check_count("patches", patches)
    seed = check_seed(seed)
    resolution = check_resolution(mpp, level)
    privacy = Privacy(min_images, epsilon, delta)
    if privacy.epsilon is not None and choose != "random":
        raise ConfigError("with epsilon, styles are drawn, not chosen; leave out choose.")
    network = generator if isinstance(generator, AbstractGenerator) else load_generator(generator)
    check_generator(network, privacy)
    study, held = study_of(source, group_by, class_by)
    if not study.paths:
        raise FileError("there are no images to fit styles from: the list is empty.")
    quota = max_styles // len(set(study.groups))
    if not quota:
        raise ConfigError(f"max_styles must be at least one for each of {len(set(study.groups))} groups.")
    rng = torch.Generator().manual_seed(seed)
    everything = choose == "diverse" or privacy.epsilon is not None
    settings = repr((network.name, network.fingerprint, patches, seed, window, *filter(None, [mpp, level])))
    unfinished = Unfinished(keep, settings)
    reading = Reading(study, network, privacy, patches, window, seed, unfinished, held, resolution)
    try:
        reading.read(torch.randperm(len(study), generator=rng).tolist(), quota, everything, report)
        fit = make_bank(reading, quota, rng, grouped=group_by is not None, labels=labels, licence=licence)
    except StyleAugError:
        reading.unfinished.remove()
        raise
    reading.unfinished.remove()
    return fit


def study_of(source: Any, group_by: str | None, class_by: str | None) -> tuple[Study, dict[Path, Any]]:
    """Return a study of the images of a source, and the images in memory under made-up paths."""
    if isinstance(source, str | os.PathLike):
        path = check_path(source)
        if path.is_dir() or path.suffix.lower() in LISTS or not (path.suffix or path.exists()):
            return read_study(path, group_by=group_by, class_by=class_by), {}
    held: dict[Path, Any] = {}
    paths: list[Path] = []
    for image in images_in(source):
        paths.append(image if isinstance(image, Path) else Path(f"<image {len(paths)}>"))
        if paths[-1] is not image:
            held[paths[-1]] = image
    if held and (group_by is not None or class_by is not None):
        raise ConfigError(
            "group_by and class_by need files, not images in memory. Fit a bank for each group."
        )
    return read_study(paths, group_by=group_by, class_by=class_by), held


def check_generator(network: AbstractGenerator, privacy: Privacy) -> None:
    """Check that a generator has codes, and that they allow the privacy that was asked for."""
    if not network.code_length:
        raise ConfigError(f"{network.name} has one style and no code for it; use it without a bank.")
    if privacy.epsilon is not None:
        frame_of(network)
    elif privacy.min_images > 1 and not network.codes_average:
        raise ConfigError(
            f"styles of {network.name!r} cannot be averaged, so that each is that of one image. Set "
            "min_images=1 if the bank may be as confidential as the images, or use another "
            "generator."
        )


@dataclass
class Reading:
    """Reads the codes of a study's images into a pool for each group."""

    study: Study
    network: AbstractGenerator
    privacy: Privacy
    patches: int
    window: Window | None
    seed: int
    unfinished: Unfinished
    held: dict[Path, Any] = field(default_factory=dict)
    """Images in memory, by their index in the study."""
    resolution: tuple[float | None, int | None] = (None, None)
    """Microns per pixel, or level, at which slides are read."""
    failed: list[tuple[Path, str]] = field(default_factory=list)
    modalities: Counter[str] = field(default_factory=Counter)
    owners: dict[str, str] = field(default_factory=dict)
    """Group of each origin."""
    left_out: int = 0

    def __post_init__(self) -> None:
        self.pools: dict[str, Pool] = {
            name: Pool(self.privacy.min_images) for name in sorted(set(self.study.groups))
        }

    def read(
        self, order: list[int], quota: int, everything: bool, report: Callable[[int, int], None]
    ) -> None:
        """Read images in this order, until each group has `quota` rows or, for all, memory is full."""
        most = min(_MAX_STYLES, MAX_NUMBERS // self.network.code_length) // len(self.pools)
        needed = quota * self.privacy.min_images
        limit = max(needed, most) if everything else needed
        sizes = Counter(self.study.groups)
        expected = sum(min(limit, size * self.patches) for size in sizes.values())
        for index in order:
            pool = self.pools[self.study.groups[index]]

            def full(pool: Pool = pool) -> bool:
                return pool.codes >= limit if everything else pool.rows >= quota

            if full():
                continue
            self.read_one(index, pool, full)
            report(min(expected, sum(pool.codes for pool in self.pools.values())), expected)

    def read_one(self, index: int, pool: Pool, full: Callable[[], bool]) -> None:
        """Add the codes of one image to its pool, until the pool is full."""
        path, group = self.study.paths[index], self.study.groups[index]
        origin = origin_of(path)
        # A patient in two groups would be in two summaries, and epsilon would hold for neither.
        if self.privacy.epsilon is not None and self.owners.setdefault(origin, group) != group:
            self.left_out += 1
            return
        codes = self.unfinished.find(path)
        if codes is None:
            try:
                codes = self.encode(index)
            except Exception as error:  # one bad image must not end a fit
                self.failed.append((path, reason_of(path, error)))
                return
            self.unfinished.keep(path, codes)
        pool.images += 1
        self.modalities[modality_of(path)] += 1
        for code in codes:
            if not full():
                pool.add(origin, code)

    def encode(self, index: int) -> Float[Tensor, "V S"]:
        """Return the codes of an image or of its crops; for a volume or slide, the mean over its parts."""
        digest = hashlib.sha256(f"{self.seed}:{index}".encode()).digest()
        rng = torch.Generator().manual_seed(int.from_bytes(digest[:7]))
        with torch.inference_mode():
            codes = [
                self.network.encode_style(shrink(view, self.network.code_size)).mean(dim=0)
                for view in self.views_of(self.study.paths[index], rng)
            ]
        return torch.stack(codes)

    def views_of(self, path: Path, rng: torch.Generator) -> Iterator[Float[Tensor, "T 3 H W"]]:
        """Yield the pixels behind each code of an image."""
        mpp, level = self.resolution
        if path not in self.held and holds_slide(path, tiff=mpp is not None or level is not None):
            tiles = SlideTiles(path, side=self.network.code_size, mpp=mpp, level=level)
            together = SLIDE_TILES if self.patches == 1 and self.network.codes_average else 1
            yield from tile_views(tiles, self.patches, together, self.window, rng)
            return
        frames = open_style(self.held.get(path, path), self.network.code_size, self.window)
        if not self.network.codes_average:
            frames = frames[len(frames) // 2, None]
        yield from views(frames, self.patches, rng)

    def warnings(self) -> list[str]:
        """Return warnings about mixed modalities and images that were left out."""
        told = balance_warnings(self.study)
        kinds = {name: count for name, count in self.modalities.items() if name}
        if len(kinds) > 1 and len(self.pools) == 1:
            counts = ", ".join(f"{count} {name}" for name, count in sorted(kinds.items()))
            told.append(f"one bank of several modalities ({counts}); separate them with group_by='modality'.")
        if self.left_out:
            told.append(
                f"{self.left_out} images are left out, because their patients are already in another group."
            )
        return told


def make_bank(
    reading: Reading, quota: int, rng: torch.Generator, *, grouped: bool, labels: bool, licence: str
) -> Fit:
    """Return a bank with rows of each group that has enough origins."""
    network, privacy, failed, warnings = reading.network, reading.privacy, reading.failed, reading.warnings()
    pools = {name: pool for name, pool in reading.pools.items() if pool.codes}
    if not pools:
        raise FileError(f"none of the {len(failed)} images can be read; the first: {failed[0][1]}")
    failed += reading.study.skipped
    left_out = reading.study.left_out
    if not grouped or max(pool.origins for pool in pools.values()) < privacy.min_images:
        of = "the images of the largest group" if grouped else "these images"
        privacy.check(max(pool.origins for pool in pools.values()), of)
    rows: list[Tensor] = []
    groups: dict[str, Group] = {}
    for name, pool in pools.items():
        if pool.origins < privacy.min_images:
            warnings.append(
                f"group {name!r} is left out: it has {pool.origins} patients or files, and each style stems "
                f"from at least {privacy.min_images} (min_images)."
            )
            continue
        privacy.check(pool.origins)
        warnings += noise_warning(pool, network, privacy, f"group {name!r}" if grouped else "these images")
        rows.append(make_rows(pool, network, privacy, quota, rng))
        label = label_of(name) if labels else f"g{len(groups) + 1}"
        groups[label] = Group(name, pool.images, pool.origins, len(rows[-1]))
    provenance = Provenance(
        network.name,
        network.fingerprint,
        sum(group.images for group in groups.values()),
        licence=licence,
        min_images=privacy.min_images,
        epsilon=privacy.epsilon,
        delta=privacy.delta,
    )
    if not grouped:
        return Fit(StyleBank(rows[0], provenance), sorted(failed), warnings, left_out=left_out)
    numbers = torch.arange(len(rows)).repeat_interleave(torch.tensor([len(part) for part in rows]))
    bank = StyleBank(torch.cat(rows), provenance, groups=numbers, labels=tuple(groups))
    return Fit(bank, sorted(failed), warnings, groups, left_out)


def noise_warning(pool: Pool, network: AbstractGenerator, privacy: Privacy, of: str) -> list[str]:
    """Return a warning if styles are mostly privacy noise, with the number of images that are needed."""
    if privacy.epsilon is None or privacy.delta is None:
        return []
    needed = origins_needed(network, privacy.epsilon, privacy.delta)
    if pool.origins >= needed:
        return []
    return [
        f"with epsilon={privacy.epsilon:g} the styles of {of} are more noise than style: they come from "
        f"{pool.origins} patients or files, and it takes {needed} at least. Give more, a larger epsilon, or "
        "none: min_images protects without noise, and promises less."
    ]


def make_rows(
    pool: Pool, network: AbstractGenerator, privacy: Privacy, quota: int, rng: torch.Generator
) -> Float[Tensor, "N S"]:
    """Return at most `quota` rows made from a pool."""
    if privacy.epsilon is not None and privacy.delta is not None:
        return private_styles(
            pool.by_origin(), network, quota, epsilon=privacy.epsilon, delta=privacy.delta, rng=rng
        )
    rows = pool.aggregate()
    return rows if len(rows) <= quota else rows[cover(rows, quota, rng)]


def label_of(name: str) -> str:
    """Return a group's name as a valid label of a bank."""
    return "".join(letter if letter.isprintable() else "?" for letter in name)[:100]
