"""`StyleBatch` for the `map_batches` of Ray Data."""

import hashlib
import os
from typing import Any, Unpack

import numpy as np
import torch

from styleaug.errors import ConfigError
from styleaug.images import check_range
from styleaug.transforms.base import AbstractAugment
from styleaug.transforms.host import (
    Styles,
    advised,
    held,
    needs_no_other_inputs,
    rng_from,
    seed_from,
    stylise_ragged,
    with_options,
)
from styleaug.transforms.options import P, StyleOptions
from styleaug.transforms.params import StyleParams, join

__all__ = ["StyleBatch"]

_ADVICE = (
    "In Ray Data: images are arrays (H, W, C), as ray.data.read_images gives them; decode files before, and "
    "normalise in a map_batches after this one."
)


class StyleBatch:
    """Stylise one column of the batches of a Ray dataset; each row has a gate, style and strength of its own.

    Give the class to `map_batches`, and its arguments as `fn_constructor_kwargs`: so each actor loads
    the generator once. With `num_gpus=1` it works on the actor's GPU. To style files on a cluster and
    write them again, `styleaug apply --engine ray` is less work.

    Ray divides rows into batches, and over actors, as it likes. With a seed, a row's style depends on the
    seed and the row only, so every pass and every retry gives the same; without, each pass draws anew,
    as training wants it.

    Args:
        bank: see `StyleAugment`; not `"batch"`. Paths must exist on all machines; a `StyleBank` and a
            generator are sent to them.
        column: holds images `(H, W, C)` or `(H, W)`, uint8, uint16, float in [0, 1], or within
            `value_range`.
        p: chance of each row to be stylised; None is 0.8, or that of a transform given as bank.
        seed: of all draws; None draws anew in each pass.
        ids: a column that tells rows apart, for `seed`; None goes by the pixels, so that equal images get
            one style.
        device: None takes the GPU that Ray gave to the actor, else the CPU.
        **options: see `StyleAugment`; not `splice="mask"`.

    Shape:
        Images keep shape and dtype, whether all rows have one size or not; other columns are passed on.

    Raises:
        ConfigError: an argument outside its range; when called, no such column.
        ImageError: when called, images that cannot be stylised, be they picked or not; values outside of
            [0, 1] only where they are.

    Example:
        >>> ds.map_batches(StyleBatch, fn_constructor_kwargs={"bank": "art", "seed": 1},
        ...                batch_size=32, compute=ray.data.ActorPoolStrategy(size=4))  # doctest: +SKIP
    """

    column: str
    seed: int | None
    ids: str | None

    @with_options
    def __init__(
        self,
        bank: Styles = None,
        *,
        column: str = "image",
        p: float | None = None,
        seed: int | None = None,
        ids: str | None = None,
        device: str | torch.device | None = None,
        **options: Unpack[StyleOptions],
    ):
        if isinstance(bank, str) and bank == "batch":
            raise ConfigError(
                'bank="batch" would let styles depend on how Ray Data divides rows into batches; give a bank.'
            )
        stylizer, p = held(bank, options, p=p, usual=P)
        self.stylizer: AbstractAugment = needs_no_other_inputs(stylizer.with_p(p), "Ray Data")
        self.column, self.seed, self.ids = column, seed, ids
        # Ray names an actor's GPU here; without one it leaves all of the machine's in sight.
        given = os.environ.get("CUDA_VISIBLE_DEVICES") and torch.cuda.is_available()
        self.device: torch.device = torch.device(device or ("cuda" if given else "cpu"))

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Stylise a batch, a dict of arrays; `batch` itself if no row is picked."""
        for name in (self.column, self.ids):
            if name is not None and name not in batch:
                raise ConfigError(f"the batch has no column {name!r}, only {', '.join(batch)}.")
        images = batch[self.column]
        with advised(images=_ADVICE):
            for image in images if images.dtype == object else images[:1]:
                self.stylizer.check(image)
            draws = self.draw(images, batch[self.ids] if self.ids else None)
            if not any(len(draw["rows"]) for draw in draws):
                return batch
            stylise = self.stylise_ragged if images.dtype == object else self.stylise_stacked
            return {**batch, self.column: stylise(images, draws)}

    def draw(self, images: np.ndarray, ids: Any) -> list[StyleParams]:
        """Draw for each row by itself."""
        if self.seed is None:
            rng = rng_from(seed_from(os.urandom(16).hex()))
            return [self.stylizer.draw(self.stylizer.rows_of(image), rng) for image in images]
        names = map(fingerprint, images) if ids is None else map(str, ids)
        return [
            self.stylizer.draw(self.stylizer.rows_of(image), rng_from(seed_from(self.seed, name)))
            for image, name in zip(images, names, strict=True)
        ]

    def stylise_stacked(self, images: np.ndarray, draws: list[StyleParams]) -> np.ndarray:
        """Stylise images of one size."""
        pixels, restore = self.stylizer.to_pixels(images[..., None] if images.ndim == 3 else images)
        check_range(pixels, self.stylizer.value_range)
        drawn = join(draws, each=self.stylizer.rows_each(pixels.shape[1]))
        styled = self.stylizer.apply(pixels.to(self.device), drawn).cpu()
        return restore(styled).reshape(images.shape)

    def stylise_ragged(self, images: np.ndarray, draws: list[StyleParams]) -> np.ndarray:
        """Stylise images of many sizes; those that are not picked stay the same objects."""
        picked = [row for row, draw in enumerate(draws) if len(draw["rows"])]
        ready = [self.stylizer.to_pixels(images[row]) for row in picked]
        for pixels, _ in ready:
            check_range(pixels, self.stylizer.value_range)
        result = images.copy()
        chosen = [draws[row] for row in picked]
        for index, image in stylise_ragged(self.stylizer, ready, chosen, device=self.device):
            result[picked[index]] = image
        return result


def fingerprint(image: Any) -> str:
    """Hash the pixels of an image."""
    pixels = np.ascontiguousarray(image)
    return f"{pixels.shape}:{hashlib.blake2b(pixels.data, digest_size=16).hexdigest()}"
