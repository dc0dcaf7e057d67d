"""`StyleAugment` for pipelines of albumentations 2.0.8 and AlbumentationsX 2.5 or later."""

import os
import random
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any, Unpack

import numpy as np
from torch.utils.data import get_worker_info

from styleaug.errors import ConfigError, ImageError, missing_extra
from styleaug.transforms.base import AbstractAugment
from styleaug.transforms.host import (
    DEFAULTS,
    Copies,
    Styles,
    advised,
    callers,
    draw_seed,
    held,
    members_of,
    needs_no_other_inputs,
    rng_from,
    seed_from,
    with_options,
)
from styleaug.transforms.options import P, StyleOptions

try:
    import albumentations as A
except ImportError as _error:
    raise missing_extra("styleaug.transforms.albumentations", "albumentations", "albumentations") from _error

__all__ = ["StyleAugment"]

_ADVICE = (
    "In albumentations: place StyleAugment before A.Normalize and ToTensorV2; images are arrays (H, W[, C])."
)
LAYOUTS = ("(H, W[, C])", "(N, H, W[, C])", "(N, D, H, W[, C])")
"""Of images with none, one or two axes before their height."""
STACKED = {"apply": 0, "apply_to_images": 1, "apply_to_volume": 1, "apply_to_volumes": 2}
"""How many they are, by what stylises them."""
MASKS_FOR = (("mask", "masks"), ("masks", "mask3d", "mask"), ("masks3d", "mask"))
"""Targets that may lie over each of them."""
MASKS = ("mask", "masks", "mask3d", "masks3d")
SAVED_BY = {"bank": "bank.save(path)", "generator": "styleaug.weights.save_generator(generator, path)"}


class StyleAugment(A.ImageOnlyTransform):
    """Stylise images after a bank, at random; masks, boxes, keypoints and labels pass untouched.

    Place it before `A.Normalize` and `ToTensorV2`. A call draws one style: `image` and its additional
    targets, all of `images`, and all slices of `volume` and `volumes` share it; `images` and the slices of
    a volume also share the statistics by which they get it, so that they do not flicker. The record of an
    `A.ReplayCompose` holds one number for it, `style_seed`; `describe` reads what was drawn.

    Draws follow `A.Compose(seed=...)` or `set_random_seed` alone; without either, `torch.manual_seed`. In a
    DataLoader no two workers and no two epochs draw the same. (The other transforms of albumentations
    2.0.8 do repeat in every worker. AlbumentationsX mixes torch's seed into its own in workers.)

    Args:
        bank: a shipped name, a path, a run folder of `styleaug train`, or a `StyleBank`. None takes the
            generator's own, or `"art"` without a generator. To serialise or replay a pipeline, give a
            name or a path for it and for `generator`.
        p: chance of a call to be stylised, in [0, 1]; None is 0.8, or that of a transform given as bank.
        options: see `styleaug.StyleAugment`; not `splice="mask"`. With `Preserve(protect="mask")` contrast
            stays where the target `mask` or any of `masks` is not 0 (for `images`, `volume` and `volumes`:
            `masks`, `mask3d` and `masks3d`, one for each of them). A function in its place cannot be
            serialised.

    Shape:
        Images `(H, W)` or `(H, W, C)` with C up to 16, any of them with `(N,)` or `(N, D)` before, of
        dtype uint8, uint16, or float in [0, 1], or int16 and int32 with a `value_range`; the result
        has the same shape and dtype, is contiguous, and never the input.

    Raises:
        BankError: the bank is damaged, unknown, or made by another generator.
        WeightsError: the generator is damaged or unknown.
        ConfigError: an argument outside its range, or one that needs more than an image; when a pipeline
            is serialised or replayed, a bank or generator that was given as an object.
        ImageError: when called with another type, dtype or shape, or more than 16 channels, also where a call
            is not picked; with NaN, or values outside [0, 1] without a `value_range`, where it is.

    Example:
        >>> import albumentations as A
        >>> train = A.Compose([
        ...     A.HorizontalFlip(), StyleAugment("art", p=0.5), A.Normalize()])  # doctest: +SKIP
    """

    # Without an InitSchema the host hands all arguments on, and our own errors say what is wrong.
    @with_options
    def __init__(self, bank: Styles = None, *, p: float | None = None, **options: Unpack[StyleOptions]):
        stylizer, p = held(bank, options, p=p, usual=P)
        super().__init__(p=p)
        self.stylizer: AbstractAugment = needs_no_other_inputs(stylizer, "albumentations", masks=True)
        # The host serialises what stands under the arguments' own names: plain values.
        written = as_text(self.stylizer.settings())
        if isinstance(bank, AbstractAugment | dict):
            usual = {name: DEFAULTS[name].default for name in StyleOptions.__annotations__}
            written = {**usual, "bank": written}
        for name in ("bank", *StyleOptions.__annotations__):
            setattr(self, name, written[name])

    def describe(self, style_seed: int, *, channels: int = 1) -> dict[str, Any]:
        """Return what was drawn from a seed, in plain values.

        Args:
            style_seed: from the parameters in the record of an `A.ReplayCompose`.
            channels: of the image; with `channels="independent"` each has a draw of its own.

        Returns:
            `strength`, and the `styles` (rows of the bank) that were mixed in which `shares`: lists with
            an entry for each part of the image, of which there is one without `splice`, and for each
            channel, if they are independent. Codes of no row in particular have empty ones. For a `OneOf`
            also `transforms`, the number of the one that was drawn.

        Example:
            >>> StyleAugment("art", strength=0.75).describe(3)  # doctest: +SKIP
            {'strength': [0.75], 'styles': [[249]], 'shares': [[1.0]]}
        """
        rows = channels if self.stylizer.channels == "independent" else 1
        return self.stylizer.describe(self.stylizer.draw(rows, rng_from(style_seed)))

    def __call__(self, *args: Any, force_apply: bool = False, **kwargs: Any) -> Any:
        """Check the images, so that a bad one is found whether it is picked or not, and stylise as drawn."""
        stacks = {
            name: STACKED[self._key2func[name].__name__]
            for name, value in kwargs.items()
            if name in self._key2func and value is not None
        }
        with advised(images=_ADVICE):
            for name, stacked in stacks.items():
                self.check(kwargs[name], stacked=stacked)
        if stacks and all(0 in kwargs[name].shape[:stacked] for name, stacked in stacks.items()):
            return kwargs  # the host looks at the first of the images
        return super().__call__(*args, force_apply=force_apply, **kwargs)

    def check(self, images: Any, *, stacked: int) -> None:
        """Refuse images by their type, dtype or shape; see `restyle`.

        Raises:
            ImageError: no array, of other axes, or images that cannot be stylised.
        """
        if not isinstance(images, np.ndarray) or images.ndim - stacked not in (2, 3):
            raise ImageError(f"expected an array {LAYOUTS[stacked]}, got {describe_value(images)}.")
        if 0 not in images.shape[:stacked]:
            self.stylizer.check(images[(0,) * stacked])

    def apply_with_params(self, params: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Let the images see the masks beside them; the record of a replay holds none."""
        if self.stylizer.by_mask:
            masks = {name: kwargs[name] for name in MASKS if kwargs.get(name) is not None}
            if isinstance(params, dict):
                params = {**params, "given_masks": masks}
            else:  # AlbumentationsX
                params = replace(params, params={**params.params, "given_masks": masks})
        return super().apply_with_params(params, *args, **kwargs)

    def apply(
        self, img: np.ndarray, style_seed: int, given_masks: dict[str, Any] | None = None, **params: Any
    ) -> np.ndarray:
        """Stylise one image `(H, W[, C])`."""
        return self.restyle(img, style_seed, stacked=0, given_masks=given_masks)

    def apply_to_images(
        self, images: np.ndarray, style_seed: int, given_masks: dict[str, Any] | None = None, **params: Any
    ) -> np.ndarray:
        """Stylise images, or the slices of a volume, `(N, H, W[, C])`, in one style."""
        return self.restyle(images, style_seed, stacked=1, given_masks=given_masks)

    def apply_to_volumes(
        self, volumes: np.ndarray, style_seed: int, given_masks: dict[str, Any] | None = None, **params: Any
    ) -> np.ndarray:
        """Stylise volumes `(N, D, H, W[, C])` in one style."""
        return self.restyle(volumes, style_seed, stacked=2, given_masks=given_masks)

    def restyle(
        self,
        images: np.ndarray,
        style_seed: int,
        *,
        stacked: int,
        given_masks: dict[str, Any] | None = None,
    ) -> np.ndarray:
        """Stylise images as drawn from `style_seed`, with nothing else random.

        Args:
            images: `(..., H, W[, C])`, never modified.
            style_seed: what draws the style.
            stacked: how many axes stand before H.
            given_masks: the call's masks by their targets, for `protect="mask"`.

        Raises:
            ImageError: no array, of other axes, images that cannot be stylised, or no mask.
        """
        with advised(images=_ADVICE):
            self.check(images, stacked=stacked)
            if 0 in images.shape[:stacked]:
                return images
            channels = images.shape[stacked + 2 :] or (1,)
            rows = channels[0] if self.stylizer.channels == "independent" else 1
            params = self.stylizer.draw(rows, rng_from(style_seed))
            masks = chosen_masks(given_masks, images.shape, stacked) if self.stylizer.by_mask else None
            if stacked == 0:
                return self.stylizer.apply(images, params, masks=masks)
            height, width = images.shape[stacked : stacked + 2]
            # Each volume is one row, whose frames share the statistics, too.
            volumes = images.reshape(-1, images.shape[stacked - 1], height, width, *channels)
            styled = []
            for index, volume in enumerate(volumes):
                pixels, restore = self.stylizer.to_pixels(volume)
                shown = masks[index] if masks is not None and masks.ndim == 4 else masks
                styled.append(restore(self.stylizer.apply(pixels[None], params, masks=shown)[0]))
            return (np.stack(styled) if len(styled) > 1 else styled[0]).reshape(images.shape)

    def to_dict_private(self) -> dict[str, Any]:
        """Return the arguments as plain values, for the host to serialise or replay.

        Raises:
            ConfigError: the bank or the generator is an object, or `protect` a function.
        """
        # A pipeline's repr is made of its serialised form, and a repr must not fail.
        for member in () if in_repr() else members_of(self.stylizer):
            for name, save in SAVED_BY.items():
                if not isinstance(value := member.settings()[name], str | Path | None):
                    raise ConfigError(
                        f"albumentations serialises and replays a {name} by its name or path, got a "
                        f"{type(value).__name__} object. Give the name of a shipped one, or write it to "
                        f"a file with {save} and give {name}=path."
                    )
            if callable(member.preserve.protect):
                raise ConfigError(
                    "albumentations cannot serialise or replay a function, got one for protect. "
                    'Give its result as the target mask, with preserve=Preserve(protect="mask").'
                )
        return super().to_dict_private()

    if hasattr(A.BasicTransform, "sample_parameters"):  # AlbumentationsX

        def sample_parameters(self, params: Any, data: Any, targets: Any, sampling: Any) -> Any:
            """Draw the seed of a style, once for all targets of a call."""
            return A.SampledParams(  # pyright: ignore[reportAttributeAccessIssue]
                params={"style_seed": sampling.py_random.getrandbits(63)}
            )

    else:

        def get_params_dependent_on_data(
            self, params: dict[str, Any], data: dict[str, Any]
        ) -> dict[str, Any]:
            """Draw the seed of a style, once for all targets of a call."""
            return {"style_seed": self.py_random.getrandbits(63)}

        def set_random_seed(self, seed: int | None) -> None:
            """Start anew from a seed, in a stream of our own.

            A pipeline gives all its transforms the same seed. In the same stream, the first image after it
            would be stylised if and only if an `A.HorizontalFlip` of the same `p` flips it.
            """
            super().set_random_seed(None if seed is None else seed_from("StyleAugment", seed))
            self.seed = seed
            self.begin(seeded=seed is not None)

        def set_random_state(self, random_generator: np.random.Generator, py_random: random.Random) -> None:
            """Draw from these streams."""
            super().set_random_state(random_generator, py_random)
            self.begin(seeded=True)

        def begin(self, *, seeded: bool) -> None:
            """Forget what was before a seed."""
            self._seeded, self._copies, self._entered = seeded, Copies(), None

        def should_apply(self, force_apply: bool = False) -> bool:
            """Draw the gate, from a stream of this worker's own."""
            if self._seeded:
                self.enter_worker()
            else:
                self.py_random = random.Random(draw_seed())
            return super().should_apply(force_apply=force_apply)

        def enter_worker(self) -> None:
            """Leave the stream that all workers of a DataLoader inherit, once in each of them."""
            worker = get_worker_info()
            if worker is None or worker.seed == self._entered:
                return
            self._entered = worker.seed
            self.py_random: Random = random.Random(
                seed_from(self.py_random.getrandbits(63), *self._copies.parts)
            )


def as_text(value: Any) -> Any:
    """Return settings with paths as text that cannot be a shipped name."""
    if isinstance(value, dict):
        return {name: as_text(each) for name, each in value.items()}
    if isinstance(value, list):
        return [as_text(each) for each in value]
    return os.path.join(os.curdir, value) if isinstance(value, Path) else value


def chosen_masks(given: dict[str, Any] | None, shape: tuple[int, ...], stacked: int) -> np.ndarray:
    """Return the masks that lie over images of this shape, `(H, W)`, `(N, H, W)` or `(N, D, H, W)`.

    Raises:
        ImageError: there are none.
    """
    found = next((given[name] for name in MASKS_FOR[stacked] if name in given), None) if given else None
    if found is None:
        raise ImageError(f'protect="mask" needs a mask beside the images: {" or ".join(MASKS_FOR[stacked])}.')
    masks = np.asarray(found) if len(found) else np.zeros(shape[stacked : stacked + 2], bool)
    return masks[..., 0] if masks.shape[-1] == 1 and masks.shape[-2] == shape[stacked + 1] else masks


def describe_value(value: Any) -> str:
    """Name a value's kind and shape for a message."""
    return f"{type(value).__name__} {tuple(value.shape)}" if hasattr(value, "shape") else type(value).__name__


def in_repr() -> bool:
    """Return whether the host is writing a pipeline's repr."""
    return any(frame.f_code.co_name == "indented_repr" for frame in callers())
