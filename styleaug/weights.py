"""Generators and banks by name or path: the shipped ones and the user's own."""

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from styleaug.atomic import atomic
from styleaug.bank import StyleBank
from styleaug.errors import BankError, WeightsError
from styleaug.generators.adain import AdaIN
from styleaug.generators.base import AbstractGenerator
from styleaug.generators.color import COLOR_GENERATORS
from styleaug.generators.photo import Photo

__all__ = [
    "LEARNED_GENERATORS",
    "bank_names",
    "card",
    "generator_names",
    "load_bank",
    "load_generator",
    "pretrained_folder",
    "save_generator",
]

FORMAT = 1
MAX_BYTES = 512 * 2**20
MAX_PARAMETERS = 128 * 2**20

LEARNED_GENERATORS: dict[str, type[AbstractGenerator]] = {"adain": AdaIN, "photo": Photo}
"""Generators that read their weights from a file, by name."""


def pretrained_folder() -> Path:
    """Find the shipped weights: inside an installed wheel, or beside the package in a checkout."""
    package = Path(__file__).parent
    inside = package / "pretrained"
    return inside if inside.is_dir() else package.parent / "pretrained"


@cache
def cards() -> dict[str, dict[str, Any]]:
    """Read the cards of everything shipped: `{"generators": {...}, "banks": {...}}`."""
    return json.loads((pretrained_folder() / "cards.json").read_text())


def card(name: str) -> dict[str, Any]:
    """Give the card of a shipped generator or bank: data, command, metrics, licence, sha256."""
    for kind in ("generators", "banks"):
        if name in cards()[kind]:
            return dict(cards()[kind][name])
    raise WeightsError(f"nothing named {name!r} is shipped; there are {', '.join(generator_names())}.")


def generator_names() -> list[str]:
    """List what `load_generator` knows by name."""
    return sorted({*COLOR_GENERATORS, *cards()["generators"]})


def bank_names() -> list[str]:
    """List what `load_bank` knows by name."""
    return sorted(cards()["banks"])


def load_generator(source: str | Path) -> AbstractGenerator:
    """Load a generator by name, or from a `.safetensors` file that training wrote.

    It comes frozen and in evaluation mode, on the CPU. One that is asked for by name is made once
    and shared: copy it before you change it.

    Raises:
        WeightsError: unknown name, or a file that is missing, damaged or made for something else.
    """
    if isinstance(source, str) and source in generator_names():
        return named_generator(source)
    path = Path(source)
    if not path.suffix and not path.exists():
        raise WeightsError(
            f"there is no generator {str(source)!r}. Known names: {', '.join(generator_names())}; "
            "or give the path of a .safetensors file."
        )
    return read_generator(path)


@cache
def named_generator(name: str) -> AbstractGenerator:
    """Make a shipped or training-free generator, once."""
    if name in COLOR_GENERATORS:
        return frozen(COLOR_GENERATORS[name]())
    return read_generator(pretrained_folder() / cards()["generators"][name]["file"])


def load_bank(source: str | Path) -> StyleBank:
    """Load a bank by name, or from a `.safetensors` file that `fit-style` wrote.

    Raises:
        BankError: unknown name, or a file that is missing, damaged or no bank.
    """
    if isinstance(source, str) and source in bank_names():
        return named_bank(source)
    path = Path(source)
    if not path.suffix and not path.exists():
        raise BankError(
            f"there is no bank {str(source)!r}. Shipped: {', '.join(bank_names())}; or fit your own: "
            "styleaug fit-style FOLDER -o bank.safetensors"
        )
    return StyleBank.load(path)


@cache
def named_bank(name: str) -> StyleBank:
    """Read a shipped bank, once."""
    return StyleBank.load(pretrained_folder() / cards()["banks"][name]["file"])


def save_generator(generator: AbstractGenerator, path: Path) -> Path:
    """Write a learned generator atomically: float16 weights, and the settings to build it again."""
    meta = {"format": FORMAT, "generator": generator.name, "settings": generator.settings()}
    state = generator.state_dict()
    tensors = {key: value.detach().cpu().half().contiguous() for key, value in state.items()}
    content = save(tensors, {"styleaug_generator": json.dumps(meta, sort_keys=True)})
    with atomic(Path(path)) as part:
        part.write_bytes(content)
    return Path(path)


def read_generator(path: Path) -> AbstractGenerator:
    """Read a file that `save_generator` wrote; nothing in it is trusted."""
    try:
        meta, tensors = read_tensors(path)
        return build(meta, tensors)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from None
    except OSError as error:
        raise WeightsError(f"cannot open the weights {path}: {error.strerror or error}.") from None


def read_tensors(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read metadata and tensors; the size is bounded before anything is allocated."""
    if path.is_dir():
        raise WeightsError("is a folder; give the .safetensors file in it.")
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise WeightsError(f"has {size:,} bytes; weights have at most {MAX_BYTES:,}.")
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get("styleaug_generator")
            if text is None:
                raise WeightsError("is a safetensors file, but not a styleaug generator.")
            meta = json.loads(text)
            return meta, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise WeightsError(f"is not a safetensors file, or is truncated ({error}).") from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(f"has damaged metadata ({error}).") from None


def build(meta: Any, tensors: dict[str, Tensor]) -> AbstractGenerator:
    """Build the generator that the metadata describes and give it the weights."""
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        found = meta.get("format") if isinstance(meta, dict) else None
        raise WeightsError(f"has format {found!r}; this version of styleaug reads format {FORMAT}.")
    kind = LEARNED_GENERATORS.get(str(meta.get("generator")))
    if kind is None:
        raise WeightsError(
            f"is for a generator {meta.get('generator')!r}; known are {', '.join(LEARNED_GENERATORS)}."
        )
    settings: Any = meta.get("settings")
    try:
        with torch.device("meta"):  # sizes are known before memory is taken
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
    values = {key: value.float() for key, value in tensors.items()}  # first: a wider float may overflow
    if not all(bool(value.isfinite().all()) for value in values.values()):
        raise WeightsError("has weights that are not finite; the training run diverged.")
    generator.load_state_dict(values, assign=True)
    return frozen(generator)


def frozen(generator: AbstractGenerator) -> AbstractGenerator:
    """Set evaluation mode, no gradients, and the layout that convolutions prefer."""
    return generator.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def file_hash(path: Path) -> str:
    """Compute a file's sha256, as the cards state it."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
