"""Load generators and banks by name or path: shipped ones and the user's own."""

import json
import os
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, TypeGuard

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from styleaug.bank import StyleBank
from styleaug.checks import nearest
from styleaug.errors import BankError, FileError, StyleAugError, WeightsError
from styleaug.generators.adain import AdaIN
from styleaug.generators.ambient import Once, as_usual
from styleaug.generators.base import TISSUE, AbstractGenerator
from styleaug.generators.color import ChannelStats, HistogramMatching
from styleaug.generators.cyclegan import CycleGAN
from styleaug.generators.fourier import FourierAmplitude, FullFourier
from styleaug.generators.patchswap import PatchSwap
from styleaug.generators.photo import Photo
from styleaug.generators.pix2pix import Pix2Pix
from styleaug.generators.prime import RandomFilter, ToneCurves
from styleaug.generators.random_networks import IntensityNetwork, ProgressiveConvolution, RandomConvolution
from styleaug.generators.stain import LIGHT, STRONG, HedJitter, RandStainNA, TwoDyes
from styleaug.generators.vaegan import VAEGAN
from styleaug.io.atomic import atomic
from styleaug.io.hub import fetch, is_hub, pinned
from styleaug.io.paths import check_path, check_regular, in_utf8
from styleaug.io.tensors import (
    BANK_FILE,
    GENERATOR_FILE,
    MOST_BYTES,
    Damaged,
    cards,
    check_digest,
    file_hash,
    pretrained_folder,
    to_bytes,
)

__all__ = [
    "COLOR_GENERATORS",
    "LEARNED_GENERATORS",
    "RANDOM_GENERATORS",
    "STAIN_GENERATORS",
    "bank_names",
    "card",
    "cards",
    "file_hash",
    "find_styles",
    "generator_bytes",
    "generator_names",
    "load_bank",
    "load_generator",
    "pretrained_folder",
    "save_generator",
]

STAIN_GENERATORS: dict[str, Callable[[], AbstractGenerator]] = {
    "macenko": partial(TwoDyes, "macenko"),
    "vahadane": partial(TwoDyes, "vahadane"),
    "hed-jitter": partial(HedJitter, LIGHT),
    "hed-jitter-strong": partial(HedJitter, STRONG),
    "randstainna": RandStainNA,
}
"""Constructor of each stain generator, by name."""
COLOR_GENERATORS: dict[str, Callable[[], AbstractGenerator]] = {
    "reinhard-rgb": partial(ChannelStats, "rgb"),
    "reinhard-lab": partial(ChannelStats, "lab"),
    "reinhard-ycbcr": partial(ChannelStats, "ycbcr"),
    "reinhard-hsv": partial(ChannelStats, "hsv"),
    "reinhard-hed": partial(ChannelStats, "hed"),
    "reinhard-luminance": partial(ChannelStats, "luminance"),
    "histogram": HistogramMatching,
    "histogram-luminance": partial(HistogramMatching, "luminance"),
    "fourier": FourierAmplitude,
    "fourier-full": FullFourier,
}
"""Constructor of each colour generator, by name."""
_FORMAT = 1
_KEY = "styleaug_generator"
"""Key of our metadata in a safetensors file."""
_KNOWN = ("format", "generator", "settings")
"""Fields of the metadata in old weights, which have no digest."""
DEFAULT_BANK = "art"
_PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".gif")
"""Suffixes of images, which users sometimes give instead of a bank."""
_MAX_HEADER = 2**20
MAX_PARAMETERS = 128 * 2**20
LEARNED_GENERATORS: dict[str, type[AbstractGenerator]] = {
    "adain": AdaIN,
    "photo": Photo,
    "patchswap": PatchSwap,
    "cyclegan": CycleGAN,
    "pix2pix": Pix2Pix,
    "vaegan": VAEGAN,
}
"""Generators that read their weights from a file, by name."""
RANDOM_GENERATORS: dict[str, Callable[[], AbstractGenerator]] = {
    "gin": IntensityNetwork,
    "pro-randconv": ProgressiveConvolution,
    "randconv": RandomConvolution,
    "random-filter": RandomFilter,
    "tone-curves": ToneCurves,
}
"""Generators that need neither bank nor weights, by name."""
TRAINING_FREE = COLOR_GENERATORS | STAIN_GENERATORS | RANDOM_GENERATORS
"""Generators without weights, by name."""
DERIVED: dict[str, Callable[[], AbstractGenerator]] = {"patchswap": lambda: shipped_patchswap()}
"""Generators made from the shipped weights of another, by name."""


def card(name: str) -> dict[str, Any]:
    """Return the card of a shipped generator or bank: data, command, metrics, licence, sha256."""
    for kind in ("generators", "banks"):
        if name in cards()[kind]:
            return dict(cards()[kind][name])
    raise WeightsError(f"nothing named {name!r} is shipped; there are {', '.join(generator_names())}.")


def generator_names() -> list[str]:
    """List the generators that `load_generator` knows by name."""
    return sorted({*TRAINING_FREE, *DERIVED, *cards()["generators"]})


def bank_names() -> list[str]:
    """List the banks that `load_bank` knows by name."""
    return sorted(cards()["banks"])


@as_usual(for_autograd=True)
def load_generator(source: str | Path) -> AbstractGenerator:
    """Load a generator by name, from a `.safetensors` file, a run folder of a training, or the hub.

    A colour generator with "-tissue" after its name, such as "reinhard-lab-tissue", does not change the white
    background of slides. The generator is frozen, in evaluation mode and on the CPU. A generator loaded
    by name is shared: copy it before you change it.

    `"hf:OWNER/NAME"` or `"hf:OWNER/NAME@REVISION"` names a repository of the Hugging Face hub; see
    `StyleBank.from_pretrained`. `origin` of the generator then holds the hash of the commit.

    Raises:
        WeightsError: the name is unknown, or the file is missing, damaged or not a generator.
        FileError: a repository of the hub is missing or private, or cannot be reached.
    """
    if isinstance(source, str) and source in generator_names():
        return named_generator(source)
    bare = source.removesuffix(TISSUE) if isinstance(source, str) else None
    if bare in generator_names() and bare != source:
        return tissue_generator(bare)
    if is_hub(source):
        return read_shared(source)
    path = path_of(source, WeightsError)
    if not path.suffix and not path.exists():
        if str(source) in bank_names():
            raise WeightsError(f"{str(source)!r} is a bank, not a generator.")
        raise WeightsError(
            f"there is no generator {str(source)!r}.{nearest(source, generator_names())} Known names: "
            f"{', '.join(generator_names())}; or give the path of a .safetensors file or a run folder."
        )
    return read_generator(in_run(path, GENERATOR_FILE) if path.is_dir() else path)


def read_shared(source: str) -> AbstractGenerator:
    """Read the generator of a repository of the hub."""
    folder, origin = fetch(source)
    if not has_file(folder, GENERATOR_FILE):
        raise WeightsError(f"{origin} holds a bank and no generator; give it as bank.")
    generator = read_generator(folder / GENERATOR_FILE)
    generator.origin = origin
    return generator


@Once
def named_generator(name: str) -> AbstractGenerator:
    """Return a shipped or training-free generator; each is made once."""
    if name in TRAINING_FREE:
        return frozen(TRAINING_FREE[name]())
    if name in DERIVED and name not in cards()["generators"]:
        return frozen(DERIVED[name]())
    return read_generator(shipped_file("generators", name, WeightsError))


@Once
def tissue_generator(name: str) -> AbstractGenerator:
    """Return a generator that does not change white background; each is made once."""
    return frozen(named_generator(name).on_tissue())


def shipped_patchswap() -> PatchSwap:
    """Return PatchSwap with the weights of the shipped AdaIN, so that they are shipped only once."""
    network = deepcopy(named_generator("adain"))  # a copy: each may be moved to another device or dtype
    assert isinstance(network, AdaIN)
    return PatchSwap(network)


@as_usual(for_autograd=True)
def load_bank(source: str | Path) -> StyleBank:
    """Load a bank by name, from a `.safetensors` file that `fit-style` wrote, a run folder, or the hub.

    `"hf:OWNER/NAME"` names a repository of the Hugging Face hub; see `StyleBank.from_pretrained`.

    Raises:
        BankError: the name is unknown, or the file is missing, damaged or not a bank.
        FileError: a repository of the hub is missing or private, or cannot be reached.
        WeightsError: the run of the run folder is not finished.
    """
    if isinstance(source, str) and source in bank_names():
        return named_bank(source)
    if is_hub(source):
        return StyleBank.from_pretrained(source)
    path = path_of(source, BankError)
    if not path.suffix and not path.exists():
        if str(source) in generator_names():
            raise BankError(f"{str(source)!r} is a generator, not a bank of styles.")
        raise BankError(
            f"there is no bank {str(source)!r}.{nearest(source, bank_names())} Shipped: "
            f"{', '.join(bank_names())}; or fit your own: styleaug fit-style FOLDER -o bank.safetensors"
        )
    if path.suffix.lower() in _PICTURES and path.exists():
        raise BankError(
            f"{path} is an image. Fit a bank to it: styleaug fit-style {path} --min-images 1 -o "
            "bank.safetensors. Or give one image its style: styleaug stylize."
        )
    return StyleBank.load(in_run(path, BANK_FILE) if path.is_dir() else path)


def in_run(folder: Path, name: str) -> Path:
    """Return the path of a file in a run folder.

    Raises:
        BankError: a bank was asked for, and there is none or the folder is not a run folder.
        WeightsError: the run is not finished, or a generator was asked for and the folder is not a run
            folder.
    """
    if has_file(folder, name):
        return folder / name
    if has_file(folder, GENERATOR_FILE):
        raise BankError(
            f"{folder}: this run has no {BANK_FILE}. Fit one: styleaug fit-style FOLDER --generator {folder} "
            f"-o {folder / BANK_FILE}"
        )
    if any((folder / part).exists() for part in ("checkpoints", "checkpoint.safetensors")):
        raise WeightsError(f"{folder}: this run is not finished; go on with: styleaug train ... --resume")
    if name == BANK_FILE:
        raise BankError(
            f"{folder}: is a folder without {BANK_FILE}; fit a bank from the images in one with: "
            "styleaug fit-style FOLDER -o BANK.safetensors"
        )
    raise WeightsError(f"{folder}: is a folder without {name}; give a run folder, or a .safetensors file.")


def find_styles(
    bank: str | Path | StyleBank | None, generator: str | Path | AbstractGenerator | None
) -> tuple[StyleBank | None, str | Path | AbstractGenerator]:
    """Return a bank and a generator that belong together, found from either; else the defaults.

    Args:
        bank: a name, a path, a run folder, a repository of the hub, or a bank.
        generator: a name, a path, a run folder, a repository of the hub, or a generator.

    Returns:
        The bank, or None if codes are drawn from the standard normal distribution; and the
        generator, as a name, path or reference to a commit if possible.

    Raises:
        BankError: the bank is unknown or damaged, or the generator needs a bank and none is known.
        WeightsError: the generator is unknown or damaged.
    """
    bank, generator = pinned(bank), pinned(generator)
    named = isinstance(generator, str) and generator in bank_names() and not Path(generator).exists()
    if named or isinstance(generator, StyleBank):
        raise WeightsError(f"{generator!r} is a bank; give it as bank, and leave out generator.")
    if is_generator(bank):
        if generator is not None and bank != generator:
            raise BankError(f"{bank!r} is a generator, too; give it or generator={generator!r}, not both.")
        bank, generator = None, bank
    if bank is None and generator is None:
        bank = DEFAULT_BANK
    if bank is None:
        assert generator is not None
        return bank_of(generator), generator
    if generator is None and is_run(bank) and not is_bank_only(bank):
        bare = not has_file(bank, BANK_FILE) and has_file(bank, GENERATOR_FILE)
        return None if bare and load_generator(bank).has_prior else load_bank(bank), bank
    bank = as_bank(bank)
    return bank, maker_of(bank) if generator is None else generator


def is_generator(source: object) -> TypeGuard[str | AbstractGenerator]:
    """Return True if a generator was given instead of a bank."""
    named = isinstance(source, str) and source in generator_names() and not Path(source).exists()
    return named or isinstance(source, AbstractGenerator)


def as_bank(source: Any) -> StyleBank:
    """Return a bank from a name, a path, a `StyleBank`, or the result of `fit_style`.

    Raises:
        BankError: `source` is none of these; for images, the message says what to write.
    """
    found = getattr(source, "bank", source)  # a `Fit` has one
    if isinstance(found, StyleBank):
        return found
    if isinstance(source, str | PathLike):
        return load_bank(Path(source) if isinstance(source, PathLike) else source)
    raise BankError(
        "a bank is a shipped name, a path, a run folder, a StyleBank, or what fit_style returns; got "
        f"{type(source).__name__}. Fit one to images: StyleAugment(fit_style(images, min_images=1)), where "
        "min_images=1 makes each image a style."
    )


def maker_of(bank: StyleBank) -> str:
    """Return the name of the shipped generator with the bank's fingerprint.

    Raises:
        BankError: no shipped generator made the bank.
    """
    kind, fingerprint = bank.provenance.generator, bank.provenance.fingerprint
    if kind.removesuffix(TISSUE) in generator_names():
        return kind
    for name, facts in cards()["generators"].items():
        if facts["fingerprint"] == fingerprint:
            return name
    raise BankError(
        f"this bank was made by a generator {kind!r} that is not shipped (fingerprint {fingerprint}). Give "
        "it as well: generator=RUN, the folder of the run that trained it, or hf:OWNER/NAME."
    )


def is_run(source: object) -> TypeGuard[str | Path]:
    """Return True if `source` is the path of a folder, or a repository of the hub."""
    return is_hub(source) or (
        isinstance(source, str | Path) and source not in bank_names() and os.path.isdir(source)
    )


def is_bank_only(run: str | Path) -> bool:
    """Return True if a folder holds a bank whose generator is elsewhere."""
    return has_file(run, BANK_FILE) and not has_file(run, GENERATOR_FILE)


def has_file(run: str | Path, name: str) -> bool:
    """Return True if a run folder, or a repository of the hub, holds a file of this name."""
    return os.path.isfile((fetch(run).folder if is_hub(run) else Path(run)) / name)


def bank_of(source: str | Path | AbstractGenerator) -> StyleBank | None:
    """Return the bank of a generator: its run's or a shipped one; None if it has a prior."""
    generator = source if isinstance(source, AbstractGenerator) else load_generator(source)
    if generator.has_prior:
        return None
    if isinstance(source, str | Path) and is_run(source) and has_file(source, BANK_FILE):
        return load_bank(source)
    for name in bank_names():
        if cards()["banks"][name]["fingerprint"] == generator.fingerprint:
            return load_bank(name)
    named = generator.name if isinstance(source, AbstractGenerator) else source
    raise BankError(
        f"no bank is known for this generator {generator.name!r} (fingerprint {generator.fingerprint}). Fit "
        f"one: styleaug fit-style FOLDER --generator {named} -o BANK.safetensors, and give it as bank."
    )


@Once
def named_bank(name: str) -> StyleBank:
    """Return a shipped bank; each is read once."""
    return StyleBank.load(shipped_file("banks", name, BankError))


def shipped_file(kind: str, name: str, error: type[StyleAugError]) -> Path:
    """Return the path of a shipped file, after comparing its hash with its card."""
    card = cards()[kind][name]
    path = pretrained_folder() / card["file"]
    try:
        found = file_hash(path)
    except OSError as failed:
        raise error(f"cannot open {path}: {failed.strerror or failed}. Install styleaug again.") from None
    if found != card["sha256"]:
        raise error(f"{path} is damaged: its sha256 differs from its card. Install styleaug again.")
    return path


def path_of(source: str | Path, error: type[StyleAugError]) -> Path:
    """Return the path that a user gave for a bank or weights."""
    try:
        return check_path(source)
    except FileError as failed:
        raise error(str(failed)) from None


def save_generator(generator: AbstractGenerator, path: Path) -> Path:
    """Write a learned generator atomically: float16 weights, and the settings to rebuild it."""
    content = generator_bytes(generator)
    with atomic(Path(path)) as part:
        part.write_bytes(content)
    return Path(path)


def generator_bytes(generator: AbstractGenerator) -> bytes:
    """Return the content of a learned generator's file."""
    meta = {"format": _FORMAT, "generator": generator.name, "settings": generator.settings()}
    state = generator.state_dict()
    tensors = {key: value.detach().cpu().half().contiguous() for key, value in state.items()}
    return to_bytes(_KEY, meta, tensors)


def read_generator(path: Path) -> AbstractGenerator:
    """Read a file written by `save_generator`; the file need not be trusted."""
    try:
        meta, tensors = read_tensors(path)
        generator = build(meta, tensors)
        check_digest(
            path, meta, _KNOWN, renew=f"save_generator(load_generator({str(path)!r}), 'NEW.safetensors')"
        )
        return generator
    except (WeightsError, Damaged) as error:
        raise WeightsError(f"{path}: {error}") from None
    except FileError as error:
        raise WeightsError(str(error)) from None
    except OSError as error:
        raise WeightsError(f"cannot open the weights {path}: {error.strerror or error}.") from None


def read_tensors(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read metadata and tensors; the size is checked before memory is allocated."""
    if path.is_dir():
        raise WeightsError("is a folder; give the .safetensors file in it.")
    size = check_regular(path).stat().st_size
    if size > MOST_BYTES[GENERATOR_FILE]:
        raise WeightsError(f"has {size:,} bytes; weights have at most {MOST_BYTES[GENERATOR_FILE]:,}.")
    with path.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
    if size < 8 or header > min(_MAX_HEADER, size):
        raise WeightsError("is not a safetensors file, or is truncated.")
    try:
        with in_utf8(path) as name, safe_open(name, "pt") as file:
            text = (file.metadata() or {}).get(_KEY)
            if text is None:
                raise WeightsError(
                    "holds a bank of styles, not a generator; give it as bank."
                    if "styleaug_bank" in (file.metadata() or {})
                    else "is a safetensors file, but not a styleaug generator."
                )
            meta = json.loads(text)
            return meta, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise WeightsError(f"is not a safetensors file, or is truncated ({error}).") from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(f"has damaged metadata ({error}).") from None


def build(meta: Any, tensors: dict[str, Tensor]) -> AbstractGenerator:
    """Build the generator that the metadata describes, and load its weights."""
    if not isinstance(meta, dict) or meta.get("format") != _FORMAT:
        found = meta.get("format") if isinstance(meta, dict) else None
        raise WeightsError(f"has format {found!r}; this version of styleaug reads format {_FORMAT}.")
    kind = LEARNED_GENERATORS.get(str(meta.get("generator")))
    if kind is None:
        raise WeightsError(
            f"is for a generator {meta.get('generator')!r}; known are {', '.join(LEARNED_GENERATORS)}."
        )
    settings: Any = meta.get("settings")
    try:
        with torch.device("meta"):  # sizes are known before memory is allocated
            generator = kind.from_settings(settings)
        if sum(value.numel() for value in generator.state_dict().values()) > MAX_PARAMETERS:
            raise WeightsError(f"describes more than {MAX_PARAMETERS:,} parameters.")
        shapes = {key: value.shape for key, value in generator.state_dict().items()}
    except (TypeError, ValueError, RuntimeError, KeyError, AttributeError) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(
            f"has settings that {meta['generator']!r} cannot use: {settings} ({error})."
        ) from None
    found = {key: value.shape for key, value in tensors.items()}
    if found != shapes:
        wrong = sorted(key for key in shapes.keys() | found.keys() if shapes.get(key) != found.get(key))
        raise WeightsError(f"does not fit {meta['generator']!r} {settings}: {', '.join(wrong[:4])} differ.")
    values = {key: value.float() for key, value in tensors.items()}  # cast first: a wider float may overflow
    if not all(bool(value.isfinite().all()) for value in values.values()):
        raise WeightsError("has weights that are not finite; the training run diverged.")
    generator.load_state_dict(values, assign=True)
    return frozen(generator)


def frozen(generator: AbstractGenerator) -> AbstractGenerator:
    """Set evaluation mode, no gradients, and the fastest memory layout for convolutions."""
    return generator.eval().requires_grad_(False).to(memory_format=torch.channels_last)
