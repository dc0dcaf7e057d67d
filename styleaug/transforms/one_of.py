"""`OneOf`: several transforms, of which each row of a batch gets one."""

from collections.abc import Iterator, Sequence
from copy import copy
from typing import Any, Self

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.nn.functional import pad

from styleaug.errors import ConfigError
from styleaug.generators.ambient import as_usual
from styleaug.images import ValueRange
from styleaug.samplers import check_weights
from styleaug.transforms.base import AbstractAugment
from styleaug.transforms.options import Channels
from styleaug.transforms.params import StyleParams
from styleaug.transforms.placement import put, take
from styleaug.transforms.splice import Splice

__all__ = ["OneOf"]

SHARED = ("channels", "value_range", "splice")
"""What all members must have in common, since they share rows, pixels and masks."""


class OneOf(AbstractAugment):
    """Style each row of a batch by one of several transforms. Each computes only its own rows.

    torchvision's `RandomChoice` chooses once for a whole batch. Use this one like a `StyleAugment`: it takes
    the same inputs, is replayed by `make_params` and `apply`, and every adapter takes it in place of a bank.

    Args:
        transforms: `StyleAugment`s. Each keeps its options; its `p` is the chance that a row which was sent
            to it is styled. All must have the same `channels`, `value_range` and `splice`.
        weights: chance of each transform, in any unit. None sends rows to all with equal chance.

    Shape:
        See `StyleAugment`.

    Raises:
        ConfigError: no transforms, others than these, options that differ, or weights that do not fit.

    Example:
        >>> mixed = OneOf([StyleAugment("art"), StyleAugment(generator="randconv")], weights=[2, 1])
    """

    channels: Channels
    value_range: ValueRange
    splice: Splice | None

    def __init__(self, transforms: Sequence[AbstractAugment], weights: Sequence[float] | None = None):
        super().__init__()
        self.transforms: tuple[AbstractAugment, ...] = check_members(transforms)
        given = [1.0] * len(self.transforms) if weights is None else weights
        chances = check_weights(given)
        if len(chances) != len(self.transforms):
            raise ConfigError(f"{len(self.transforms)} transforms need as many weights, got {len(chances)}.")
        self.weights: tuple[float, ...] = tuple((chances / chances.sum()).tolist())
        styled = [weight * member.p for weight, member in zip(self.weights, self.transforms, strict=True)]
        self.p: float = sum(styled)
        # Where nothing is styled there is nothing to share out.
        self.shares: tuple[float, ...] = tuple(share / self.p for share in styled) if self.p else self.weights
        first = self.transforms[0]
        self.channels, self.value_range, self.splice = first.channels, first.value_range, first.splice
        self.most_channels: int = first.most_channels
        self.within_batch: bool = any(member.within_batch for member in self.transforms)
        self.protects_by_mask: bool = any(member.protects_by_mask for member in self.transforms)
        self.code_length: int = 1 + max(member.code_length for member in self.transforms)

    @property
    def fingerprint(self) -> str:
        """Those of all generators."""
        return " ".join(member.fingerprint for member in self.transforms)

    def with_networks(self) -> Self:
        """Return a copy that holds its generators."""
        twin = copy(self)
        twin.transforms = tuple(member.with_networks() for member in self.transforms)
        return twin

    def settings(self) -> dict[str, Any]:
        """Return the arguments that make this transform again: a dict for each of the transforms."""
        return {"transforms": [m.settings() for m in self.transforms], "weights": list(self.weights)}

    def extra_repr(self) -> str:
        """Format each transform after its weight."""
        each = zip(self.weights, self.transforms, strict=True)
        return ", ".join(f"{weight:.3g} of {member}" for weight, member in each)

    def draw_rows(self, rows: Int[Tensor, " K"], count: int, rng: torch.Generator | None) -> StyleParams:
        """Draw a member for each of these rows, and let it draw the rest.

        Codes begin with the number of the member, and are filled with zeros to the length of the longest.
        """
        chances = torch.tensor(self.shares)
        owner = torch.multinomial(chances, len(rows), replacement=True, generator=rng) if len(rows) else rows
        drawn = [
            numbered(member.draw_rows(rows[owner == number], count, rng), number, self.code_length)
            for number, member in enumerate(self.transforms)
        ]
        most = max(each["sources"].shape[1] for each in drawn)
        fields = [each["fields"] for each in drawn if each["fields"] is not None]
        order = torch.cat([each["rows"] for each in drawn]).argsort(stable=True)
        joined = StyleParams(
            rows=torch.cat([each["rows"] for each in drawn])[order],
            strength=torch.cat([each["strength"] for each in drawn])[order],
            codes=torch.cat([codes for each in drawn if (codes := each["codes"]) is not None])[order],
            sources=torch.cat([wide(each["sources"], most) for each in drawn])[order],
            shares=torch.cat([wide(each["shares"], most) for each in drawn])[order],
            fields=torch.cat(fields)[order] if fields else None,
        )
        return joined

    def split(self, params: StyleParams) -> Iterator[tuple[AbstractAugment, StyleParams]]:
        """Yield each member that has rows, with its own parameters of them; those within a batch first.

        Args:
            params: from `draw` or `make_params`.
        """
        codes = params["codes"]
        assert codes is not None
        numbers = range(len(self.transforms))
        for number in sorted(numbers, key=lambda at: not self.transforms[at].within_batch):
            member, own = self.transforms[number], codes[:, 0] == number
            if not own.any():
                continue
            read = None if member.within_batch else codes[own, 1 : 1 + member.code_length]
            width = 1 if member.within_batch else params["sources"].shape[1]
            yield (
                member,
                StyleParams(
                    rows=params["rows"][own],
                    strength=params["strength"][own],
                    codes=read,
                    sources=params["sources"][own, :width],
                    shares=params["shares"][own, :width],
                    fields=None if params["fields"] is None else params["fields"][own],
                ),
            )

    def describe(self, params: StyleParams) -> dict[str, list[Any]]:
        """Return what was drawn, and `member`: for each row the number of its transform."""
        told, codes = super().describe(params), params["codes"]
        assert codes is not None
        each = list(zip(told["styles"], told["shares"], strict=True))
        styles = [[style for style, share in zip(*row, strict=True) if share] for row in each]
        shares = [[share for share in row if share] for _, row in each]
        return {**told, "styles": styles, "shares": shares, "member": codes[:, 0].long().tolist()}

    @as_usual()
    def apply(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, images: Any, params: Any = None, *, masks: Any = None, differentiable: bool = False
    ) -> Any:
        """Style `images` as `params` say, with nothing random; see `StyleAugment.apply`."""
        if params is None:
            return nn.Module.apply(self, images)
        masks = params.get("masks") if masks is None else masks
        result, styled_before = images, False
        for member, own in self.split(params):
            shown = masks if member.by_mask or not self.by_mask else None  # the member says what is wrong
            if styled_before and member.within_batch:  # its styles are those of the images as they came
                rows = own["rows"].unique()
                put(result, rows, take(member.apply(images, own, masks=shown), rows))
            else:
                result = member.apply(result, own, masks=shown, differentiable=differentiable)
            styled_before = True
        if not styled_before:
            self.check(images)
        return result


def check_members(transforms: Any) -> tuple[AbstractAugment, ...]:
    """Check the members of a `OneOf`.

    Raises:
        ConfigError: none, others than ours, or options that differ.
    """
    made = tuple(transforms) if isinstance(transforms, Sequence) and not isinstance(transforms, str) else ()
    if not made:
        raise ConfigError(f"OneOf takes a list of StyleAugments, got {transforms!r}.")
    for member in made:
        if not isinstance(member, AbstractAugment):
            raise ConfigError(
                f"OneOf takes StyleAugments, got {type(member).__name__}. For a choice among other "
                "transforms, made once for a whole batch, use torchvision's v2.RandomChoice."
            )
        for name in SHARED:
            ours, theirs = getattr(made[0], name), getattr(member, name)
            if ours != theirs:
                raise ConfigError(
                    f"the transforms of OneOf must have the same {name}, got {ours!r} and {theirs!r}."
                )
    return made


def numbered(params: StyleParams, number: int, length: int) -> StyleParams:
    """Put a member's number before its codes, and fill them up to `length`."""
    codes, count = params["codes"], len(params["rows"])
    read = torch.empty(count, 0) if codes is None else codes.float()
    return {**params, "codes": wide(torch.cat([torch.full((count, 1), float(number)), read], dim=1), length)}


def wide(values: Tensor, width: int) -> Tensor:
    """Fill rows up to `width` with zeros."""
    return pad(values, (0, width - values.shape[1]))
