"""Put finished weights and banks into `pretrained/`, with a card for each.

    python -m pretrained.ship NAME FILE data="..." command="..." machine="..." licence="..." ...

What can be computed is computed: sha256, size, parameters, styles, fingerprint. The rest of the card, such
as data, command, metrics and licence, is given. `pretrained/README.md` is made from the cards.
"""

import json
import sys
from pathlib import Path
from typing import Any

from styleaug.errors import BankError, ConfigError
from styleaug.io.atomic import atomic
from styleaug.weights import file_hash, load_bank, load_generator, pretrained_folder

__all__ = ["readme", "ship"]

REQUIRED = ("data", "command", "licence")


def ship(name: str, file: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """Copy a generator or bank into `pretrained/` and write its card.

    Args:
        name: what users load it by.
        file: what training or `fit-style` wrote.
        facts: must hold data, command and licence.

    Raises:
        ConfigError: a fact is missing.
    """
    missing = [key for key in REQUIRED if not facts.get(key)]
    if missing:
        raise ConfigError(f"the card of {name!r} lacks {', '.join(missing)}.")
    kind, computed = inspect(file)
    folder = pretrained_folder()
    target = folder / f"{name}.safetensors"
    with atomic(target) as part:
        part.write_bytes(file.read_bytes())
    card = {"file": target.name, "sha256": file_hash(target), "bytes": target.stat().st_size}
    cards = json.loads((folder / "cards.json").read_text())
    cards[kind][name] = {**card, **computed, **facts}
    with atomic(folder / "cards.json") as part:
        part.write_text(json.dumps(cards, indent=1, sort_keys=True) + "\n")
    with atomic(folder / "README.md") as part:
        part.write_text(readme(cards))
    return cards[kind][name]


def inspect(file: Path) -> tuple[str, dict[str, Any]]:
    """Tell a bank from a generator, and compute what can be computed."""
    try:
        bank = load_bank(file)
    except BankError:
        generator = load_generator(file)
        return "generators", {
            "generator": generator.name,
            "code_length": generator.code_length,
            "parameters": sum(p.numel() for p in generator.parameters()),
            "fingerprint": generator.fingerprint,
        }
    return "banks", {
        "generator": bank.provenance.generator,
        "fingerprint": bank.provenance.fingerprint,
        "styles": len(bank),
        "images": bank.provenance.images,
    }


def readme(cards: dict[str, dict[str, Any]]) -> str:
    """Render the cards as Markdown."""
    lines = ["# Shipped weights and banks", "", "Made from `cards.json`; do not edit by hand."]
    for kind in ("generators", "banks"):
        for name, card in sorted(cards[kind].items()):
            lines += ["", f"## {kind[:-1]} `{name}`", ""]
            lines += [f"- **{key}**: {show(value)}" for key, value in sorted(card.items())]
    return "\n".join(lines) + "\n"


def show(value: Any) -> str:
    """Write a fact on one line."""
    if isinstance(value, dict):
        return "; ".join(f"{key} {show(inner)}" for key, inner in value.items())
    return str(value)


if __name__ == "__main__":
    name, file, *pairs = sys.argv[1:]
    given = {key: value for key, _, value in (pair.partition("=") for pair in pairs)}
    for key in ("metrics",):
        if key in given:
            given[key] = json.loads(given[key])
    print(json.dumps(ship(name, Path(file), given), indent=1))
