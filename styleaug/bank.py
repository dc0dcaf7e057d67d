"""Style banks: a matrix of codes with provenance, and no pixels."""

import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Protocol

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from styleaug.atomic import atomic
from styleaug.digest import Damaged, check_digest, to_bytes
from styleaug.errors import BankError, FileError
from styleaug.groups import check_groups, check_labels, join_groups, regroup
from styleaug.paths import check_path, check_regular, in_utf8
from styleaug.provenance import (
    FORMAT,
    GROUPED_FORMAT,
    Provenance,
    merge_provenance,
    read_provenance,
    tool_version,
)

__all__ = ["FORMAT", "Provenance", "StyleBank", "tool_version"]

KEY = "styleaug_bank"
"""Of the metadata."""
KNOWN = {"format", "labels", *(item.name for item in fields(Provenance))}
"""What the metadata of banks held that were written without a digest."""
MAX_BYTES = 256 * 2**20
MAX_STYLES = 2**24
MAX_CODE_LENGTH = 2**20
MAX_HEADER = 2**20


class Coder(Protocol):
    """What a bank asks of a generator: who wrote these codes?"""

    name: str
    code_length: int

    @property
    def fingerprint(self) -> str: ...

    def code_bounds(self) -> tuple[Tensor, Tensor]: ...


class StyleBank:
    """N styles as a matrix of codes `(N, S)`, with provenance.

    A bank is a value: its methods give new banks.

    Args:
        codes: `(N, S)` floats, N of at least 1, all finite.
        provenance: what made them.
        groups: `(N,)` places in `labels`, for styles of several sites, scanners, ...; None for one kind.
        labels: name of each group, at most 1000, different, of 1 to 100 printable characters.

    Raises:
        BankError: the codes are empty, not a matrix, or not finite, or groups do not fit them.
    """

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
        # Cast first, as a wider float may overflow; a copy, as the caller may go on to change theirs.
        codes = codes.detach().cpu().to(torch.float32, copy=True).contiguous()
        if not codes.isfinite().all():
            bad = int((~codes.isfinite().all(dim=1)).sum())
            raise BankError(f"{bad} of {len(codes)} codes are not finite. Fit the bank again.")
        self.codes: Float[Tensor, "N S"] = codes
        self.provenance = provenance
        self.labels = check_labels(labels)
        self.groups = None if groups is None else check_groups(groups, len(codes), len(self.labels))
        if groups is None and labels:
            raise BankError("labels go with groups; give both, or neither.")

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

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def check(self, generator: Coder) -> None:
        """Refuse a generator other than the one that made the bank, and codes that it cannot have made.

        Raises:
            BankError: naming both, or the first such code.
        """
        mine = self.provenance
        # "reinhard-lab" and "reinhard-lab-tissue" take the same codes, and say so.
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
        """Keep the styles at `rows`, in that order, or those of a group.

        Args:
            rows: indices, or a mask `(N,)` of booleans.
            group: label of the group, instead of rows.

        Raises:
            BankError: a row outside the bank, none left, or no such group.
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
        """Give weights for `sampler="weighted"` by which each group is drawn as often as any other.

        Example:
            StyleAugment(bank, sampler="weighted", weights=bank.balanced_weights())
        """
        if self.groups is None:
            return torch.ones(len(self))
        return 1 / torch.bincount(self.groups)[self.groups]

    def sample(self, count: int, *, seed: int = 0) -> "StyleBank":
        """Keep `count` styles picked at random without repetition, in their order."""
        if not 1 <= count <= len(self):
            raise BankError(f"cannot pick {count} of {len(self)} styles.")
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        return self.select(order[:count].sort().values)

    def merge(self, *others: "StyleBank") -> "StyleBank":
        """Join banks of one generator; the images are added up.

        Groups of one label become one, but those that are only numbered stay apart and are numbered anew;
        a bank without groups is one beside those of others. Of `min_images` the least counts; epsilon
        and delta are added, as the banks may stem from the same images. Without others it is a copy.

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
        """Summarise the bank as JSON-ready values.

        `spread` is the mean relative deviation of a code's entries; 0 means that all styles are alike.
        """
        return {
            "styles": len(self),
            "code_length": self.codes.shape[1],
            **self.provenance.facts(),
            **({} if self.groups is None else {"groups": self.count_groups()}),
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
        """Tell how unlike the styles are: mean relative deviation of an entry, 0 if all are alike."""
        if len(self) < 2 or self.codes.shape[1] == 0:
            return 0.0
        size = self.codes.square().mean(dim=0).sqrt().clamp_min(1e-6)
        return float((self.codes.std(dim=0, correction=0) / size).mean())

    def to_bytes(self) -> bytes:
        """Give the file's content; equal banks give equal bytes."""
        meta: dict[str, Any] = {"format": FORMAT, **self.provenance.facts()}
        tensors = {"codes": self.codes}
        if self.groups is not None:
            meta |= {"format": GROUPED_FORMAT, "labels": self.labels}
            tensors["groups"] = self.groups.to(torch.int32)
        return to_bytes(KEY, meta, tensors)

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
        """Read a bank; nothing in the file is trusted.

        A bank of an older version has no digest that tells damage, and is loaded with a warning.
        `styleaug bank merge OLD -o NEW` writes it again.

        Raises:
            BankError: missing, damaged, no bank, of a newer format, or with absurd or non-finite
                content; the message names the file.
        """
        try:
            meta, codes, groups = read_bank(path := check_path(path))
            provenance = read_provenance(meta)
            if (meta["format"] == GROUPED_FORMAT) != (groups is not None):
                raise BankError("has groups without labels, or labels without groups.")
            labels = check_labels(meta.get("labels")) if groups is not None else ()
            bank = cls(codes, provenance, groups=groups, labels=labels)
            check_digest(path, meta, KNOWN, renew=f"styleaug bank merge {path} -o NEW.safetensors")
            return bank
        except (BankError, Damaged) as error:
            raise BankError(f"{path}: {error}") from None
        except FileError as error:
            raise BankError(str(error)) from None
        except OSError as error:
            raise BankError(f"cannot open the bank {path}: {error.strerror or error}.") from None


def read_bank(path: Path) -> tuple[dict[str, Any], Tensor, Tensor | None]:
    """Read metadata, codes and groups; sizes are bounded before anything is allocated."""
    if path.is_dir():
        raise BankError("is a folder; fit a bank from it with: styleaug fit-style FOLDER -o BANK.safetensors")
    size = check_regular(path).stat().st_size
    if size > MAX_BYTES:
        raise BankError(f"has {size:,} bytes; a bank has at most {MAX_BYTES:,}.")
    with path.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
    if size < 8 or header > min(MAX_HEADER, size):
        raise BankError("is not a safetensors file, or is truncated.")
    try:
        with in_utf8(path) as name, safe_open(name, "pt") as file:
            text = (file.metadata() or {}).get(KEY)
            if text is None:
                raise BankError(
                    "holds a generator and no styles; give it as generator."
                    if "styleaug_generator" in (file.metadata() or {})
                    else "is a safetensors file, but not a style bank."
                )
            keys = sorted(file.keys())
            if keys not in (["codes"], ["codes", "groups"]):
                raise BankError(f"holds {keys[:4]} where a bank holds one matrix of codes.")
            shape = file.get_slice("codes").get_shape()
            if len(shape) != 2 or not 1 <= shape[0] <= MAX_STYLES or shape[1] > MAX_CODE_LENGTH:
                raise BankError(f"has codes of shape {tuple(shape)}; expected (N, S).")
            grouped = len(keys) > 1
            if grouped and list(file.get_slice("groups").get_shape()) != shape[:1]:
                raise BankError(f"has groups of another number than its {shape[0]} styles.")
            groups = file.get_tensor("groups") if grouped else None
            return json.loads(text), file.get_tensor("codes"), groups
    except SafetensorError as error:
        raise BankError(f"is not a safetensors file, or is truncated ({error}).") from None
    except (ValueError, RecursionError) as error:
        raise (
            error if isinstance(error, BankError) else BankError(f"has damaged metadata ({error}).")
        ) from None
