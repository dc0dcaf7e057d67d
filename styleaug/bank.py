"""Style banks: a matrix of codes with provenance, and no pixels."""

import datetime
import itertools
import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from torch import Tensor

from styleaug.errors import BankError, ConfigError, FileError
from styleaug.io.atomic import atomic
from styleaug.io.hub import fetch, is_hub, read_reference
from styleaug.io.paths import check_path, check_regular, in_utf8
from styleaug.io.tensors import BANK_FILE, MOST_BYTES, Damaged, check_digest, to_bytes

__all__ = [
    "FORMAT",
    "GROUPED_FORMAT",
    "Provenance",
    "StyleBank",
    "check_groups",
    "check_labels",
    "join_groups",
    "merge_provenance",
    "read_provenance",
    "regroup",
    "tool_version",
]

FORMAT = 1
GROUPED_FORMAT = 2
"""Format of banks with groups. Banks without groups still have format 1."""


@dataclass(frozen=True)
class Provenance:
    """Where a bank comes from: its generator, number of images, date. No names, paths or pixels."""

    generator: str
    """Name of the generator whose `encode_style` made the codes."""

    fingerprint: str
    """Hash of that generator's name, settings and weights."""

    images: int
    """Number of images that were read."""

    created: str = field(default_factory=lambda: datetime.date.today().isoformat())
    """ISO date of the fit, without the time. It is not the date of any study."""

    version: str = field(default_factory=lambda: tool_version())
    """Version of styleaug that made the bank."""

    licence: str = ""
    """Licence and source of the images, for banks that are shared."""

    min_images: int = 1
    """Least number of different patients or files behind each style; see `fitting.privacy`."""

    epsilon: float | None = None
    """Epsilon of differential privacy; None if the fit was not private."""

    delta: float | None = None
    """Delta of differential privacy; None if the fit was not private."""

    def facts(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values, without fields about privacy that are not set."""
        kept = {name: value for name, value in asdict(self).items() if value is not None}
        return kept if self.min_images != 1 else {k: v for k, v in kept.items() if k != "min_images"}


def merge_provenance(parts: Sequence[Provenance]) -> Provenance:
    """Combine the provenance of several banks."""
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
    """Check untrusted metadata and return the provenance in it."""
    if not isinstance(meta, dict):
        raise BankError("has metadata that is not a JSON object.")
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
    """Check untrusted metadata about privacy; banks of the first version have none."""
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
    """Return the installed version of styleaug."""
    from importlib.metadata import version

    return version("styleaug")


MAX_GROUPS = 1000
MAX_LABEL = 100
WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
NUMBERED = re.compile(r"g\d+")
"""Labels that are only numbers; in another bank the same label may be another group."""


def check_labels(labels: Any) -> tuple[str, ...]:
    """Check that labels are short, printable texts that differ from each other.

    Raises:
        BankError: a label is not; the message names the first one.
    """
    if not isinstance(labels, list | tuple) or len(labels) > MAX_GROUPS:
        raise BankError(f"labels must be at most {MAX_GROUPS} texts.")
    for label in labels:
        if not isinstance(label, str) or not 0 < len(label) <= MAX_LABEL or not label.isprintable():
            raise BankError(f"labels must have 1 to {MAX_LABEL} printable characters, got {label!r:.120}.")
    if len(set(labels)) < len(labels):
        raise BankError("two groups have the same label.")
    return tuple(labels)


def check_groups(groups: Tensor, styles: int, labels: int) -> Int[Tensor, " N"]:
    """Check that groups fit the styles and labels, and that each label is used."""
    if groups.shape != (styles,) or groups.dtype not in WHOLE:
        raise BankError(
            f"groups must be ({styles},) whole numbers, got {tuple(groups.shape)} {groups.dtype}."
        )
    groups = groups.detach().cpu().to(torch.int64, copy=True)
    if groups.unique().tolist() != list(range(labels)):
        raise BankError(f"groups must be indices into {labels} labels, and each label must be used.")
    return groups


def regroup(groups: Int[Tensor, " N"], labels: Sequence[str]) -> tuple[Tensor, tuple[str, ...]]:
    """Return groups and labels without the labels that no style has."""
    used, places = groups.unique(return_inverse=True)
    return places, tuple(labels[int(place)] for place in used)


def join_groups(
    sizes: Sequence[int], groups: Sequence[Tensor | None], labels: Sequence[Sequence[str]]
) -> tuple[Tensor | None, tuple[str, ...]]:
    """Join the groups of several banks; see `StyleBank.merge`.

    Args:
        sizes: number of styles in each bank.
        groups: groups of each bank, None if it has none.
        labels: labels of each bank.
    """
    if all(group is None for group in groups):
        return None, ()
    numbers = (f"g{number}" for number in itertools.count(1))
    places: dict[str, int] = {}
    joined = []
    for size, group, own in zip(sizes, groups, labels, strict=True):
        names = [next(numbers) if NUMBERED.fullmatch(name) else name for name in own or ["g1"]]
        place = torch.tensor([places.setdefault(name, len(places)) for name in names])
        joined.append(place[torch.zeros(size, dtype=torch.long) if group is None else group])
    return torch.cat(joined), tuple(places)


_KEY = "styleaug_bank"
"""Key of our metadata in a safetensors file."""
_KNOWN = {"format", "labels", *(item.name for item in fields(Provenance))}
"""Fields of the metadata in old banks, which have no digest."""
_MAX_STYLES = 2**24
MAX_CODE_LENGTH = 2**20
_MAX_HEADER = 2**20


class Coder(Protocol):
    """The attributes of a generator by which a bank recognises it."""

    name: str
    code_length: int

    @property
    def fingerprint(self) -> str: ...

    def code_bounds(self) -> tuple[Tensor, Tensor]: ...


class StyleBank:
    """N styles as a matrix of codes `(N, S)`, with provenance.

    A bank does not change; its methods return new banks.

    Args:
        codes: `(N, S)` floats, N >= 1, all finite.
        provenance: where the codes come from.
        groups: `(N,)` indices into `labels`, for styles of several sites or scanners; None for no groups.
        labels: names of the groups: at most 1000 different texts of 1 to 100 printable characters.

    Raises:
        BankError: the codes are empty, not a matrix or not finite, or the groups do not fit.
    """

    origin: str = ""
    """Pinned reference to the place on the hub where the bank was read, else empty. Not part of the file."""

    def __init__(
        self,
        codes: Tensor,
        provenance: Provenance,
        *,
        groups: Tensor | None = None,
        labels: Sequence[str] = (),
    ):
        if codes.ndim != 2 or len(codes) == 0:
            raise BankError(f"codes must be (N, S) with at least one style, got {tuple(codes.shape)}.")
        if not codes.is_floating_point():
            raise BankError(f"codes must be floats, got {codes.dtype}.")
        # Cast before the check: a wider float may overflow. Copy: the caller may change the tensor later.
        codes = codes.detach().cpu().to(torch.float32, copy=True).contiguous()
        if not codes.isfinite().all():
            bad = int((~codes.isfinite().all(dim=1)).sum())
            raise BankError(f"{bad} of {len(codes)} codes are not finite. Fit the bank again.")
        self.codes: Float[Tensor, "N S"] = codes
        self.provenance = provenance
        self.labels: tuple[str, ...] = check_labels(labels)
        self.groups: Tensor | None = (
            None if groups is None else check_groups(groups, len(codes), len(self.labels))
        )
        if groups is None and labels:
            raise BankError("labels and groups belong together; give both or neither.")

    def __len__(self) -> int:
        return len(self.codes)

    def __repr__(self) -> str:
        made_by = self.provenance
        return (
            f"StyleBank({len(self)} styles of {self.codes.shape[1]} floats, generator={made_by.generator!r})"
        )

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, StyleBank)
            and self.provenance == other.provenance
            and torch.equal(self.codes, other.codes)
            and self.labels == other.labels
            and (self.groups is None or torch.equal(self.groups, other.groups))  # pyright: ignore[reportArgumentType]
        )

    __hash__: ClassVar[None] = None  # pyright: ignore[reportIncompatibleMethodOverride]

    def check(self, generator: Coder) -> None:
        """Check that `generator` made this bank and that the codes are in its range.

        Raises:
            BankError: another generator made it, or a code is out of range.
        """
        mine = self.provenance
        # "reinhard-lab" and "reinhard-lab-tissue" use the same codes and have the same fingerprint.
        same = mine.fingerprint == generator.fingerprint
        if not (same or mine.generator == generator.name) or self.codes.shape[1] != generator.code_length:
            raise BankError(
                f"this bank was made by generator {mine.generator!r} ({self.codes.shape[1]} floats a "
                f"style), not by {generator.name!r} ({generator.code_length}). Use that generator, or fit "
                f"the bank again: styleaug fit-style FOLDER -o BANK --generator {generator.name}"
            )
        if not same:
            raise BankError(
                f"this bank was made by {mine.generator!r} with other weights or settings (fingerprint "
                f"{mine.fingerprint}, these have {generator.fingerprint}). Load those weights, or fit the "
                f"bank again: styleaug fit-style FOLDER -o BANK --generator {generator.name}"
            )
        low, high = generator.code_bounds()
        wrong = ~((self.codes >= low) & (self.codes <= high))
        if wrong.any():
            row, place = wrong.nonzero()[0].tolist()
            raise BankError(
                f"entry {place} of style {row} of this bank is {self.codes[row, place]:.3g}, where codes of "
                f"{mine.generator!r} have {low[place]:.3g} to {high[place]:.3g}: it is damaged. Fit it again."
            )

    def select(
        self, rows: Sequence[int] | Tensor | slice | None = None, *, group: str | None = None
    ) -> "StyleBank":
        """Return a bank of the styles at `rows`, in that order, or of one group.

        Args:
            rows: indices, or a mask `(N,)` of booleans.
            group: label of a group, instead of rows.

        Raises:
            BankError: a row is outside the bank, no style is left, or the group does not exist.
        """
        if (rows is None) == (group is None):
            raise BankError("give either rows or a group.")
        if group is not None:
            if self.groups is None or group not in self.labels:
                known = f"its groups are {', '.join(self.labels)}" if self.labels else "it has no groups"
                raise BankError(f"there is no group {group!r} in this bank; {known}.")
            rows = self.groups == self.labels.index(group)
        assert rows is not None
        if not isinstance(rows, slice):
            rows = torch.as_tensor(rows)
            rows = rows if rows.dtype == torch.bool else rows.long()
        try:
            codes = self.codes[rows]
        except IndexError:
            raise BankError(f"rows {rows} do not all exist in a bank of {len(self)} styles.") from None
        groups, labels = (None, ()) if self.groups is None else regroup(self.groups[rows], self.labels)
        return StyleBank(codes.clone(), self.provenance, groups=groups, labels=labels)

    def balanced_weights(self) -> Float[Tensor, " N"]:
        """Return weights `(N,)` with which the sampler `Weighted` draws each group equally often.

        Example:
            StyleAugment(bank, sampler=Weighted(bank.balanced_weights()))
        """
        if self.groups is None:
            return torch.ones(len(self))
        return 1 / torch.bincount(self.groups)[self.groups]

    def sample(self, count: int, *, seed: int = 0) -> "StyleBank":
        """Return a bank of `count` random styles, without repetition, in their original order."""
        if not 1 <= count <= len(self):
            raise BankError(f"cannot pick {count} of {len(self)} styles.")
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        return self.select(order[:count].sort().values)

    def merge(self, *others: "StyleBank") -> "StyleBank":
        """Return a bank with the styles of several banks of one generator.

        Groups with the same label are joined. Groups that are only numbered (g1, g2, ...) stay separate and
        get new numbers. A bank without groups becomes one group, if another bank has groups. The numbers
        of images are added. The least `min_images` counts. Epsilon and delta are added, because
        the banks may come from the same images. Without other banks, the result is a copy.

        Raises:
            BankError: a bank was made by another generator.
        """
        if not others:
            return self.select(slice(None))
        banks, mine = (self, *others), self.provenance
        for other in others:
            theirs = other.provenance
            alike = (theirs.generator, theirs.fingerprint) == (mine.generator, mine.fingerprint)
            if not alike or other.codes.shape[1] != self.codes.shape[1]:
                raise BankError(
                    f"cannot merge banks of {mine.generator!r} ({mine.fingerprint}) and "
                    f"{theirs.generator!r} ({theirs.fingerprint}); fit them with one generator."
                )
        groups, labels = join_groups(
            [len(b) for b in banks], [b.groups for b in banks], [b.labels for b in banks]
        )
        return StyleBank(
            torch.cat([b.codes for b in banks]),
            merge_provenance([b.provenance for b in banks]),
            groups=groups,
            labels=labels,
        )

    def describe(self) -> dict[str, Any]:
        """Return a summary of the bank as JSON-ready values.

        `spread` is the mean relative deviation of an entry of the codes; 0 means that all styles are equal.
        """
        return {
            "styles": len(self),
            "code_length": self.codes.shape[1],
            **self.provenance.facts(),
            **({} if self.groups is None else {"groups": self.count_groups()}),
            **({"origin": self.origin} if self.origin else {}),
            "kilobytes": round(len(self.to_bytes()) / 1024, 1),
            "spread": round(self.spread(), 4),
        }

    def count_groups(self) -> dict[str, int]:
        """Count the styles of each group."""
        if self.groups is None:
            return {}
        counts = torch.bincount(self.groups, minlength=len(self.labels))
        return dict(zip(self.labels, counts.tolist(), strict=True))

    def spread(self) -> float:
        """Return how much the styles differ: mean relative deviation of an entry, 0 if all are equal."""
        if len(self) < 2 or self.codes.shape[1] == 0:
            return 0.0
        size = self.codes.square().mean(dim=0).sqrt().clamp_min(1e-6)
        return float((self.codes.std(dim=0, correction=0) / size).mean())

    def to_bytes(self) -> bytes:
        """Return the content of the bank's file; equal banks give equal bytes."""
        meta: dict[str, Any] = {"format": FORMAT, **self.provenance.facts()}
        tensors = {"codes": self.codes}
        if self.groups is not None:
            meta |= {"format": GROUPED_FORMAT, "labels": self.labels}
            tensors["groups"] = self.groups.to(torch.int32)
        return to_bytes(_KEY, meta, tensors)

    def save(self, path: str | Path) -> Path:
        """Write the bank atomically as safetensors.

        Raises:
            FileError: the folder cannot be written to.
        """
        with atomic(Path(path)) as part:
            part.write_bytes(self.to_bytes())
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> "StyleBank":
        """Read a bank from a file that need not be trusted.

        Banks of old versions have no digest against damage; they are loaded with a warning.
        `styleaug bank merge OLD -o NEW` adds the digest.

        Raises:
            BankError: the file is missing, damaged, not a bank, of a newer format, or has values that are not
                finite; the message names the file.
        """
        try:
            meta, codes, groups = read_bank(path := check_path(path))
            provenance = read_provenance(meta)
            if (meta["format"] == GROUPED_FORMAT) != (groups is not None):
                raise BankError("has groups without labels, or labels without groups.")
            labels = check_labels(meta.get("labels")) if groups is not None else ()
            bank = cls(codes, provenance, groups=groups, labels=labels)
            check_digest(path, meta, _KNOWN, renew=f"styleaug bank merge {path} -o NEW.safetensors")
            return bank
        except (BankError, Damaged) as error:
            raise BankError(f"{path}: {error}") from None
        except FileError as error:
            raise BankError(str(error)) from None
        except OSError as error:
            raise BankError(f"cannot open the bank {path}: {error.strerror or error}.") from None

    @classmethod
    def from_pretrained(cls, source: str | Path, *, revision: str | None = None) -> "StyleBank":
        """Read a bank from a repository of the Hugging Face hub, or from a local folder.

        Only `bank.safetensors` and `generator.safetensors` are downloaded, into the cache of
        `huggingface_hub`. `origin` of the bank holds the hash of the commit.

        Args:
            source: `"OWNER/NAME"`, `"hf:OWNER/NAME@REVISION"`, or the path of a folder with the file, which
                goes first if it exists.
            revision: a branch, a tag, or the full hash of a commit, which never changes; None is the main
                branch.

        Raises:
            BankError: the file is damaged or not a bank, or the repository holds none.
            ConfigError: `source` is neither a path that exists nor a repository's name.
            FileError: the repository is missing or private, or the hub cannot be reached.
            MissingExtraError: `huggingface_hub` is not installed.

        Example:
            >>> StyleBank.from_pretrained("owner/bank", revision="5f1c...")  # doctest: +SKIP
        """
        if not is_hub(source) and (path := check_path(source)).exists():
            if revision is not None:
                raise ConfigError(f"revision is for repositories of the hub; {path} is on this disk.")
            return cls.load(path / BANK_FILE if path.is_dir() else path)
        try:
            read_reference(str(source), revision)
        except ConfigError as error:
            raise ConfigError(f"there is no folder {str(source)!r:.200}, and {error}") from None
        folder, origin = fetch(str(source), revision)
        if not (folder / BANK_FILE).is_file():
            raise BankError(
                f"{origin} holds a generator and no bank. Fit one: styleaug fit-style FOLDER --generator "
                f"{origin} -o BANK.safetensors"
            )
        bank = cls.load(folder / BANK_FILE)
        bank.origin = origin
        return bank

    def push_to_hub(
        self,
        repo: str,
        *,
        generator: Any = None,
        private: bool = True,
        branch: str | None = None,
        licence: str = "",
    ) -> str:
        """Push the bank to a repository of the Hugging Face hub; see `styleaug.push_to_hub`.

        Example:
            >>> bank.push_to_hub("owner/bank")  # doctest: +SKIP
            'hf:owner/bank@5f1c...'
        """
        import styleaug  # its pictures need the transforms, which are built on this module

        return styleaug.push_to_hub(
            self, repo, generator=generator, private=private, branch=branch, licence=licence
        )


def read_bank(path: Path) -> tuple[dict[str, Any], Tensor, Tensor | None]:
    """Read metadata, codes and groups; sizes are checked before memory is allocated."""
    if path.is_dir():
        raise BankError("is a folder; fit a bank from it with: styleaug fit-style FOLDER -o BANK.safetensors")
    size = check_regular(path).stat().st_size
    if size > MOST_BYTES[BANK_FILE]:
        raise BankError(f"has {size:,} bytes; a bank has at most {MOST_BYTES[BANK_FILE]:,}.")
    with path.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
    if size < 8 or header > min(_MAX_HEADER, size):
        raise BankError("is not a safetensors file, or is truncated.")
    try:
        with in_utf8(path) as name, safe_open(name, "pt") as file:
            text = (file.metadata() or {}).get(_KEY)
            if text is None:
                raise BankError(
                    "holds a generator, not styles; give it as generator."
                    if "styleaug_generator" in (file.metadata() or {})
                    else "is a safetensors file, but not a style bank."
                )
            keys = sorted(file.keys())
            if keys not in (["codes"], ["codes", "groups"]):
                raise BankError(f"holds {keys[:4]} where a bank holds one matrix of codes.")
            shape = file.get_slice("codes").get_shape()
            if len(shape) != 2 or not 1 <= shape[0] <= _MAX_STYLES or shape[1] > MAX_CODE_LENGTH:
                raise BankError(f"has codes of shape {tuple(shape)}; expected (N, S).")
            grouped = len(keys) > 1
            if grouped and list(file.get_slice("groups").get_shape()) != shape[:1]:
                raise BankError(f"has {shape[0]} styles, but another number of groups.")
            groups = file.get_tensor("groups") if grouped else None
            return json.loads(text), file.get_tensor("codes"), groups
    except SafetensorError as error:
        raise BankError(f"is not a safetensors file, or is truncated ({error}).") from None
    except (ValueError, RecursionError) as error:
        raise (
            error if isinstance(error, BankError) else BankError(f"has damaged metadata ({error}).")
        ) from None
