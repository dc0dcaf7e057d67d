"""`StyleAugment` for pipelines of albumentations 2.0.8 and AlbumentationsX 2.5 or later."""

import os
import random
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import albumentations as A
import numpy as np
from torch import Tensor
from torch.utils.data import get_worker_info

from styleaug.bank import StyleBank
from styleaug.errors import ConfigError, ImageError
from styleaug.generators.base import AbstractGenerator
from styleaug.images import to_pixels
from styleaug.samplers import Sampler
from styleaug.transforms.core import Stylizer
from styleaug.transforms.host import advised, needs_no_other_inputs, rng_from, seed_from
from styleaug.transforms.params import Precision
from styleaug.transforms.splice import Splice

__all__ = ["StyleAugment"]

ADVICE = (
    "In albumentations: place StyleAugment before A.Normalize and ToTensorV2; images are arrays (H, W[, C])."
)
LAYOUTS = ("(H, W[, C])", "(N, H, W[, C])", "(N, D, H, W[, C])")
"""Of images with none, one or two axes before their height."""


class StyleAugment(A.ImageOnlyTransform):
    """Give images the styles of a bank, at random; masks, boxes, keypoints and labels pass untouched.

    Place it before `A.Normalize` and `ToTensorV2`. A call draws one style: `image` and its additional
    targets, all of `images`, and all slices of `volume` and `volumes` share it. The record of an
    `A.ReplayCompose` holds one number for it, `style_seed`; `describe` tells what was drawn.

    In a DataLoader no two workers and no two epochs draw alike. Draws follow `torch.manual_seed` together
    with `A.Compose(seed=...)`. (The other transforms of albumentations 2.0.8 do repeat in every worker.)

    Args:
        bank: a shipped name, a path, a run folder of `styleaug train`, or a `StyleBank`. None takes the
            generator's own, or `"art"` without a generator. To serialise or replay a pipeline, give a
            name or a path.
        generator: a name, a path to weights, a run folder, or a generator; likewise. None takes the one
            that made the bank.
        p: chance of a call to be stylised, in [0, 1].
        strength: `(low, high)` of the uniform distribution it is drawn from, or one number; in
            [0, 1], where 1 is the whole style.
        sampler: `"uniform"`, `"weighted"`, `"mix"`, `"gaussian"` or `"slerp"`.
        weights: of the bank's styles, for `"weighted"`.
        components: how many styles `"mix"` joins.
        keep_luminance: keep each pixel's brightness, take over the colour only.
        splice: give parts of one image different styles and strengths: `"halves"` or `"fields"`.
        parts: how many styles an image gets; for `splice`.
        keep: leave the first part as it is; for `splice`.
        precision: of a network's weights: `"auto"`, `"float32"` or `"bfloat16"`.
        compiled: run the generator through `torch.compile`.

    Shape:
        Images `(H, W)` or `(H, W, C)` with C of 1 or 3, any of them with `(N,)` or `(N, D)` before, of
        dtype uint8, uint16, or float in [0, 1]; the result is alike, contiguous, and never the input.

    Raises:
        BankError: the bank is damaged, unknown, or made by another generator.
        WeightsError: the generator is damaged or unknown.
        ConfigError: an argument outside its range, or one that needs more than an image; when a pipeline
            is serialised or replayed, a bank or generator that was given as an object.
        ImageError: when called with NaN, values outside [0, 1], or other than 1 or 3 channels.

    Example:
        >>> import albumentations as A
        >>> train = A.Compose([
        ...     A.HorizontalFlip(), StyleAugment("art", p=0.5), A.Normalize()])  # doctest: +SKIP
    """

    class InitSchema(A.ImageOnlyTransform.InitSchema):
        """Let every argument but `p` through to `__init__`, so that our own errors tell what is wrong."""

        bank: Any
        generator: Any
        strength: Any
        sampler: Any
        weights: Any
        components: Any
        keep_luminance: Any
        splice: Any
        parts: Any
        keep: Any
        precision: Any
        compiled: Any

    def __init__(
        self,
        bank: str | Path | StyleBank | None = None,
        *,
        generator: str | Path | AbstractGenerator | None = None,
        p: float = 0.5,
        strength: float | Sequence[float] = (0.5, 1.0),
        sampler: Sampler = "uniform",
        weights: Sequence[float] | Tensor | None = None,
        components: int = 2,
        keep_luminance: bool = False,
        splice: Splice | None = None,
        parts: int = 2,
        keep: bool = False,
        precision: Precision = "auto",
        compiled: bool = False,
    ):
        super().__init__(p=p)
        stylizer = Stylizer(
            bank,
            generator=generator,
            p=1.0,  # the host has a gate of its own
            strength=strength,
            sampler=sampler,
            weights=weights,
            components=components,
            keep_luminance=keep_luminance,
            splice=splice,
            parts=parts,
            keep=keep,
            precision=precision,
            compiled=compiled,
        )
        self.stylizer = needs_no_other_inputs(stylizer, "albumentations")
        # The host serialises what stands under the arguments' own names: plain values.
        self.bank, self.generator = named(bank), named(generator)
        self.strength = stylizer.strength
        self.weights = None if stylizer.weights is None else stylizer.weights.tolist()
        self.sampler, self.components, self.keep_luminance = sampler, components, keep_luminance
        self.splice, self.parts, self.keep = splice, parts, keep
        self.precision, self.compiled = precision, compiled
        self._worker_seed: int | None = None

    def describe(self, style_seed: int) -> dict[str, Any]:
        """Tell what was drawn from a seed, in plain values.

        Args:
            style_seed: from the parameters in the record of an `A.ReplayCompose`.

        Returns:
            `strength`, and the `styles` (rows of the bank) that were mixed in which `shares`: lists with
            an entry for each part of the image, of which there is one without `splice`. Codes that stem
            from no row in particular have empty `styles` and `shares`.

        Example:
            >>> StyleAugment("art", strength=0.75).describe(3)  # doctest: +SKIP
            {'strength': [0.75], 'styles': [[249]], 'shares': [[1.0]]}
        """
        params = self.stylizer.draw(1, rng_from(style_seed))
        return {
            "strength": params["strength"].tolist(),
            "styles": params["sources"].tolist(),
            "shares": params["shares"].tolist(),
        }

    def apply(self, img: np.ndarray, style_seed: int, **params: Any) -> np.ndarray:
        """Stylise one image `(H, W[, C])`."""
        return self.restyle(img, style_seed, stacked=0)

    def apply_to_images(self, images: np.ndarray, style_seed: int, **params: Any) -> np.ndarray:
        """Stylise images, or the slices of a volume, `(N, H, W[, C])`, in one style."""
        return self.restyle(images, style_seed, stacked=1)

    def apply_to_volumes(self, volumes: np.ndarray, style_seed: int, **params: Any) -> np.ndarray:
        """Stylise volumes `(N, D, H, W[, C])` in one style."""
        return self.restyle(volumes, style_seed, stacked=2)

    def restyle(self, images: np.ndarray, style_seed: int, *, stacked: int) -> np.ndarray:
        """Stylise images as drawn from `style_seed`, with nothing else random.

        Args:
            images: `(..., H, W[, C])`, never modified.
            style_seed: what draws the style.
            stacked: how many axes stand before H.

        Raises:
            ImageError: no array, of other axes, or images that cannot be stylised.
        """
        with advised(images=ADVICE):
            if not isinstance(images, np.ndarray) or images.ndim - stacked not in (2, 3):
                raise ImageError(f"expected an array {LAYOUTS[stacked]}, got {describe_value(images)}.")
            params = self.stylizer.draw(1, rng_from(style_seed))
            if stacked == 0:
                return self.stylizer.apply(images, params)
            if 0 in images.shape[:stacked]:
                return images
            channels = images.shape[stacked + 2 :] or (1,)
            height, width = images.shape[stacked : stacked + 2]
            pixels, restore = to_pixels(images.reshape(-1, height, width, *channels))
            # One row whose frames share its style.
            return restore(self.stylizer.apply(pixels[None], params)[0]).reshape(images.shape)

    def to_dict_private(self) -> dict[str, Any]:
        """Give the arguments as plain values, as the host asks when it serialises or replays.

        Raises:
            ConfigError: the bank or the generator is an object.
        """
        for name, value, save in (
            ("bank", self.bank, "bank.save(path)"),
            ("generator", self.generator, "styleaug.weights.save_generator(generator, path)"),
        ):
            # A pipeline's repr is made of its serialised form, and a repr must not fail.
            if not isinstance(value, str | None) and not in_repr():
                raise ConfigError(
                    f"albumentations serialises and replays a {name} by its name or path, got a "
                    f"{type(value).__name__} object. Give the name of a shipped one, or write it to a file "
                    f"with {save} and give {name}=path."
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

        def should_apply(self, force_apply: bool = False) -> bool:
            """Draw the gate, from a stream of this worker's own."""
            self.enter_worker()
            return super().should_apply(force_apply=force_apply)

        def enter_worker(self) -> None:
            """Leave the stream that all workers of a DataLoader inherit, once in each of them.

            Its seed differs for every worker and epoch, and follows torch's or the loader's generator.
            """
            worker = get_worker_info()
            if worker is None or worker.seed == self._worker_seed:
                return
            self._worker_seed = worker.seed
            seed = seed_from(self.py_random.getrandbits(63), worker.seed)
            self.set_random_state(np.random.default_rng(seed), random.Random(seed))


def named(source: Any) -> Any:
    """Give a path as text that is not mistaken for a shipped name; anything else as it is."""
    return os.path.join(os.curdir, source) if isinstance(source, Path) else source


def describe_value(value: Any) -> str:
    """Name a value's kind and shape for a message."""
    return f"{type(value).__name__} {tuple(value.shape)}" if hasattr(value, "shape") else type(value).__name__


def in_repr() -> bool:
    """Tell whether the host is writing a pipeline's repr."""
    return any(frame.f_code.co_name == "indented_repr" for frame, _ in traceback.walk_stack(None))
