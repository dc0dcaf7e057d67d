"""Where a bank comes from: what its metadata says, and how a stranger's is checked."""

import datetime
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from styleaug.errors import BankError

__all__ = ["FORMAT", "GROUPED_FORMAT", "Provenance", "merge_provenance", "read_provenance", "tool_version"]

FORMAT = 1
GROUPED_FORMAT = 2
"""Of banks with groups; the others are as the first version wrote them."""


@dataclass(frozen=True)
class Provenance:
    """Where a bank comes from: what made it and from how many images. No names, paths or pixels."""

    generator: str
    """Name of the generator whose `encode_style` made the codes."""

    fingerprint: str
    """Hash of that generator's name, settings and weights."""

    images: int
    """How many images were read."""

    created: str = field(default_factory=lambda: datetime.date.today().isoformat())
    """ISO date of the fit: of no study, and without the time."""

    version: str = field(default_factory=lambda: tool_version())
    """Version of styleaug that made the bank."""

    licence: str = ""
    """Licence and source of the images, for banks that are passed on."""

    min_images: int = 1
    """How many different patients or files each style stems from at least; see `training.privacy`."""

    epsilon: float | None = None
    """Of differential privacy, None if there is none."""

    delta: float | None = None
    """The same."""

    def facts(self) -> dict[str, Any]:
        """Give the fields, without those about privacy that say nothing."""
        kept = {name: value for name, value in asdict(self).items() if value is not None}
        return kept if self.min_images != 1 else {k: v for k, v in kept.items() if k != "min_images"}


def merge_provenance(parts: Sequence[Provenance]) -> Provenance:
    """Add up where several banks come from."""
    private = all(part.epsilon is not None for part in parts)
    return Provenance(
        parts[0].generator,
        parts[0].fingerprint,
        sum(part.images for part in parts),
        licence="; ".join(dict.fromkeys(part.licence for part in parts if part.licence)),
        min_images=min(part.min_images for part in parts),
        epsilon=sum(part.epsilon or 0 for part in parts) if private else None,
        delta=min(1.0, sum(part.delta or 0 for part in parts)) if private else None,
    )


def read_provenance(meta: Any) -> Provenance:
    """Check a stranger's metadata against the few fields that a bank has."""
    if not isinstance(meta, dict):
        raise BankError("has metadata that is no JSON object.")
    if meta.get("format") not in (FORMAT, GROUPED_FORMAT):
        raise BankError(
            f"has format {meta.get('format')!r}; this version of styleaug reads formats {FORMAT} and "
            f"{GROUPED_FORMAT}. Fit it again, or install the version that made it."
        )
    kinds = {
        "generator": str,
        "fingerprint": str,
        "images": int,
        "created": str,
        "version": str,
        "licence": str,
    }
    values: dict[str, Any] = {name: meta.get(name) for name in kinds}
    for name, kind in kinds.items():
        value = values[name]
        if not isinstance(value, kind) or (isinstance(value, str) and len(value) > 2000):
            raise BankError(f"has no valid {name!r} in its metadata.")
    if not 0 <= values["images"] < math.inf:
        raise BankError(f"claims to come from {values['images']} images.")
    return Provenance(**values, **read_privacy(meta))


def read_privacy(meta: dict[str, Any]) -> dict[str, Any]:
    """Check what a stranger's metadata says of privacy; the first version said nothing."""
    least, budget = meta.get("min_images", 1), {name: meta.get(name) for name in ("epsilon", "delta")}
    if type(least) is not int or not 1 <= least < 2**53:
        raise BankError("has no valid 'min_images' in its metadata.")
    for name, value in budget.items():
        if value is not None and (type(value) not in (int, float) or not 0 < value < math.inf):
            raise BankError(f"has no valid {name!r} in its metadata.")
    if (budget["epsilon"] is None) != (budget["delta"] is None):
        raise BankError("has epsilon without delta, or delta without epsilon.")
    return {"min_images": least, **budget}


def tool_version() -> str:
    """Look up the installed version of styleaug."""
    from importlib.metadata import version

    return version("styleaug")
