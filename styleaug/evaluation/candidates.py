"""Candidates for styling: given banks, and generators with a bank fitted to a folder."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from styleaug.bank import StyleBank
from styleaug.errors import ConfigError
from styleaug.fitting.fit import fit_style
from styleaug.generators.base import AbstractGenerator
from styleaug.io.files import image_files
from styleaug.samplers import Sampler
from styleaug.transforms.augment import StyleAugment
from styleaug.transforms.guard import Preserve
from styleaug.weights import find_styles, load_generator

__all__ = ["Candidate", "find_candidates"]

_CHUNK = 32
"""Number of images styled by one draw, seeded by the chunk, so that all candidates draw the same rows."""
MIN_IMAGES = 5
"""Number of images that each style of a fitted bank is averaged from; the default of `fit_style`."""


@dataclass(frozen=True)
class Candidate:
    """A generator and the bank of its styles."""

    generator: str
    """Name or path, or the name of a given generator."""
    source: str | Path | AbstractGenerator = field(repr=False)
    bank: StyleBank | None = field(repr=False)
    """Bank of styles; None draws from the generator's prior."""
    origin: str
    """`"fitted"`, `"prior"`, or the name or path of the bank."""
    sampler: Sampler = "uniform"

    @property
    def name(self) -> str:
        """Return a short name: the generator, and the bank if it was given."""
        return self.generator if self.origin in ("fitted", "prior") else f"{self.generator}:{self.origin}"

    def style(
        self,
        images: Float[Tensor, "N 3 H W"],
        strength: float,
        *,
        preserve: float | Preserve | None = None,
        seed: int = 0,
    ) -> Float[Tensor, "N 3 H W"]:
        """Style every image, each with its own draw."""
        stylizer = StyleAugment(
            self.bank,
            generator=self.source,
            p=1.0,
            strength=strength,
            sampler=self.sampler,
            preserve=preserve,
            precision="float32",
        )
        rng = torch.Generator().manual_seed(seed)
        return torch.cat([stylizer.apply(x, stylizer.draw(len(x), rng)) for x in images.split(_CHUNK)])


def find_candidates(
    banks: str | Path | StyleBank | Sequence[str | Path | StyleBank] | None,
    generators: Sequence[str | Path | AbstractGenerator],
    styles: str | Path,
    *,
    seed: int = 0,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> list[Candidate]:
    """Load banks, and fit a bank to the images in `styles` for each generator, without writing files.

    Args:
        banks: names, paths, run folders or banks; each is used by the generator that made it.
        generators: names, paths, run folders or generators. A generator with a prior needs no bank.
        styles: folder of images to fit banks to.
        seed: seed for choosing images.
        report: called with the number of finished candidates and the number of all.

    Raises:
        BankError, WeightsError: a bank or generator is unknown or damaged.
        FileError: the folder does not exist or has no image that can be read.
        ConfigError: there is no candidate, or two have the same name.
    """
    given = [banks] if isinstance(banks, str | Path | StyleBank) else list(banks or ())
    found = []
    banked = (given_bank(bank, number) for number, bank in enumerate(given, 1))
    for made in (*banked, *(fitted(source, Path(styles), seed) for source in generators)):
        found.append(made)
        report(len(found), len(given) + len(generators))
    if not found:
        raise ConfigError("there is nothing to measure: give a bank or a generator.")
    names = [candidate.name for candidate in found]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ConfigError(f"{', '.join(sorted(twice))} is given twice; give each bank and generator once.")
    return found


def given_bank(source: str | Path | StyleBank, number: int) -> Candidate:
    """Return the candidate of a given bank; a bank without a name gets a number."""
    bank, generator = find_styles(source, None)
    kind = _named(generator) if bank is None else bank.provenance.generator
    origin = f"bank {number}" if isinstance(source, StyleBank) else str(source)
    return Candidate(kind, generator, bank, origin, sampler_of(kind))


def fitted(source: str | Path | AbstractGenerator, styles: Path, seed: int) -> Candidate:
    """Return the candidate of a generator, with a bank fitted to `styles` unless it has a prior."""
    generator = source if isinstance(source, AbstractGenerator) else load_generator(source)
    if generator.has_prior:
        return Candidate(_named(source), source, None, "prior")
    files = image_files(styles)
    least = min(MIN_IMAGES, len(files)) if generator.codes_average else 1
    bank = fit_style(files, generator=generator, min_images=least, seed=seed).bank
    return Candidate(_named(source), source, bank, "fitted", sampler_of(generator.name))


def _named(source: str | Path | AbstractGenerator) -> str:
    """Return the name of a generator."""
    return source.name if isinstance(source, AbstractGenerator) else str(source)


def sampler_of(kind: str) -> Sampler:
    """Return the sampler: Gaussian for RandStainNA (Shen et al. 2022), otherwise uniform."""
    return "gaussian" if kind == "randstainna" else "uniform"
