"""The batched transform that every adapter delegates to: draw parameters, then apply them."""

import multiprocessing
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from threading import current_thread, main_thread
from typing import Any, get_args

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.utils.data import get_worker_info

from styleaug import samplers
from styleaug.bank import StyleBank
from styleaug.checks import check_count, check_share, check_switch
from styleaug.errors import BankError, ConfigError, DeviceError, ImageError
from styleaug.generators.ambient import as_usual
from styleaug.generators.base import AbstractGenerator
from styleaug.images import MOST_CHANNELS, Restore, ValueRange, check_range, to_pixels
from styleaug.transforms.form import check_form
from styleaug.transforms.frames import channels_of, frames_to_survey, grouped, looks_of
from styleaug.transforms.guard import Protect, check_guard
from styleaug.transforms.painting import Brush, area_seen
from styleaug.transforms.params import (
    STRENGTH,
    Channels,
    P,
    Precision,
    StyleParams,
    check_range_option,
    check_strength,
    check_weights,
)
from styleaug.transforms.placement import fast_bfloat16, place, run_of
from styleaug.transforms.splice import Splice, check_splice, draw_fields, read_masks, unspliced
from styleaug.weights import find_styles, load_generator

__all__ = ["Stylizer"]

PRECISIONS = get_args(Precision)
CHANNELS = get_args(Channels)
MOST_SEPARATE = 256
"""Channels, where the user says that each of them is an image."""

WITHIN_BATCH = "batch"
WITHIN_BATCH_GENERATOR = "reinhard-lab"
CPU_CHUNK_PIXELS = 8 * 224 * 224
"""Pixels stylised at a time on a CPU: larger chunks leave the cache, and take memory."""

CUDA_CHUNK_PIXELS = 256 * 512 * 512


class Stylizer(nn.Module):
    """Stylise picked rows of a batch, each with its own style and strength.

    The arguments and errors are those of `styleaug.StyleAugment`, which hosts this in torchvision.
    With `splice="mask"` the masks are an argument of the call: `stylizer(images, masks)`.
    """

    @as_usual(for_autograd=True)
    def __init__(
        self,
        bank: str | Path | StyleBank | None = None,
        *,
        generator: str | Path | AbstractGenerator | None = None,
        p: float = P,
        strength: float | Sequence[float] = STRENGTH,
        sampler: samplers.Sampler = "uniform",
        weights: Sequence[float] | Tensor | None = None,
        components: int = 2,
        keep_luminance: bool = False,
        splice: Splice | None = None,
        parts: int = 2,
        keep: bool = False,
        value_range: ValueRange = None,
        channels: Channels = "auto",
        preserve: float | None = None,
        edges: str | None = None,
        protect: Protect | None = None,
        least_side: int | None = None,
        precision: Precision = "auto",
        compiled: bool = False,
    ):
        super().__init__()
        self.p = check_share("p", p)
        self.strength = check_strength(strength)
        if sampler not in samplers.SAMPLERS:
            raise ConfigError(f"unknown sampler {sampler!r}; choose from {', '.join(samplers.SAMPLERS)}.")
        self.sampler: samplers.Sampler = sampler
        self.components = check_count("components", components)
        if components != 2 and sampler != "mix":
            raise ConfigError(f'components go with sampler="mix", got sampler={sampler!r}.')
        self.weights = check_weights(weights, sampler)
        self.keep_luminance = check_switch("keep_luminance", keep_luminance)
        self.splice: Splice | None = splice
        self.keep = check_switch("keep", keep)
        self.parts = check_splice(splice, parts, keep=keep)
        self.value_range: ValueRange = check_range_option(value_range)
        if channels not in CHANNELS:
            raise ConfigError(f"channels must be one of {', '.join(CHANNELS)}, got {channels!r}.")
        self.channels: Channels = channels
        self.guard = check_guard(preserve, edges, protect)
        self.within_batch = isinstance(bank, str) and bank == WITHIN_BATCH
        if self.within_batch and channels == "independent":
            raise ConfigError('bank="batch" gives a row one style; use channels="shared".')
        if self.within_batch:
            self.bank, source = None, WITHIN_BATCH_GENERATOR if generator is None else generator
        else:
            self.bank, source = find_styles(bank, generator)
        self._home = (source,)  # in a tuple, lest nn.Module adopt a network
        self._placed: dict[torch.device, AbstractGenerator] = {}
        self._compiled: dict[torch.device, Callable[..., Tensor]] = {}
        if precision not in PRECISIONS:
            raise ConfigError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}.")
        self.precision, self.compiled = precision, check_switch("compiled", compiled)
        home = self.home
        self.code_length = home.code_length
        self.least_side = home.least_side if least_side is None else check_count("least_side", least_side)
        if self.bank is None:
            if sampler != "uniform" or weights is not None:
                origin = 'bank="batch" draws' if self.within_batch else f"{home.name!r} without a bank draws"
                raise ConfigError(f"{origin} from all styles alike; leave out sampler and weights.")
            return
        try:
            self.bank.check(home)
        except BankError as error:
            raise BankError(f"{bank}: {error}" if isinstance(bank, str | Path) else str(error)) from None
        samplers.sample(
            sampler, self.bank.codes, 0, torch.Generator(), weights=self.weights, components=components
        )

    def __getstate__(self) -> dict[str, Any]:
        # Copies of the network are made again where the transform arrives: other process, other device.
        return {**self.__dict__, "_placed": {}, "_compiled": {}}

    def extra_repr(self) -> str:
        """Say what is drawn from what, and which options are not the usual ones."""
        prior = "other images of the batch" if self.within_batch else "standard normal codes"
        styles = f"{prior} of {self.home.name!r}" if self.bank is None else repr(self.bank)
        usual: dict[str, tuple[Any, Any]] = {
            "components": (self.components, 2),
            "keep_luminance": (self.keep_luminance, False),
            "splice": (self.splice, None),
            "parts": (self.parts, 1),
            "keep": (self.keep, False),
            "value_range": (self.value_range, None),
            "channels": (self.channels, "auto"),
            "preserve": (self.guard.floor, None),
            "protect": (self.guard.protect, None),
            "least_side": (self.least_side, self.home.least_side),
            "precision": (self.precision, "auto"),
            "compiled": (self.compiled, False),
        }
        told = "".join(f", {name}={value!r}" for name, (value, default) in usual.items() if value != default)
        return f"{styles}, p={self.p}, strength={self.strength}, sampler={self.sampler!r}{told}"

    @property
    def home(self) -> AbstractGenerator:
        """The generator itself, of which each device gets a copy."""
        (source,) = self._home
        return source if isinstance(source, AbstractGenerator) else load_generator(source)

    def generator_on(self, device: torch.device) -> AbstractGenerator:
        """Give the frozen network on `device`; a copy is kept for each that was asked for.

        It stays out of the module tree: no checkpoint, no `.train()`, no DDP carries it.
        """
        if device not in self._placed:
            short = self.precision == "bfloat16" or (self.precision == "auto" and fast_bfloat16(device))
            with as_usual(for_autograd=True):
                self._placed.setdefault(device, place(self.home, device, bfloat16=short))
        return self._placed[device]

    def forward(self, images: Any, masks: Any = None) -> Any:
        """Stylise an image or a batch, drawing from torch's global generator."""
        return self.apply(images, self.make_params(images), masks=masks)

    def make_params(self, images: Any, *, rng: torch.Generator | None = None) -> StyleParams:
        """Draw all that is random about stylising `images`, on the CPU.

        Args:
            images: an image or a batch; only its shape is read.
            rng: None draws from torch's global generator, which DataLoader seeds in each worker.
        """
        return self.draw(self.rows_of(images), rng)

    def rows_of(self, images: Any) -> int:
        """Tell how many rows to draw for `images`: those of a batch, else one; see `rows_each`."""
        return count_rows(images) * self.rows_each(channels_of(images))

    def rows_each(self, channels: int) -> int:
        """Tell how many rows an image of so many channels takes: with `"independent"`, each is one."""
        return channels if self.channels == "independent" else 1

    def to_pixels(self, images: Any) -> tuple[Shaped[Tensor, "B C H W"], Restore]:
        """View images as pixels, with as many channels as this transform takes; see `images.to_pixels`."""
        return to_pixels(images, most_channels=self.most_channels)

    @property
    def most_channels(self) -> int:
        """How many channels images may have."""
        return MOST_CHANNELS if self.channels == "auto" else MOST_SEPARATE

    def check(self, images: Any) -> None:
        """Refuse images by their type, mode, dtype or shape, whether any row is picked or not.

        So a bad image is found when it is first read, and not when the gate first picks it. Values are
        looked at where they are read anyway: in a call that picks a row.

        Raises:
            ImageError: images that are no images.
        """
        check_form(images, most_channels=self.most_channels, value_range=self.value_range)

    @as_usual(for_autograd=True)
    def draw(self, count: int, rng: torch.Generator | None = None) -> StyleParams:
        """Draw parameters for a batch of `count` rows. Gates come first, so unpicked rows cost nothing."""
        rows = (torch.rand(count, generator=rng) < self.p).nonzero()[:, 0].repeat_interleave(self.parts)
        low, high = self.strength
        strength = low + (high - low) * torch.rand(len(rows), generator=rng)
        if self.keep:
            strength[:: self.parts] = 0
        codes, sources, shares = self.draw_styles(rows, count, rng)
        fields = self.splice and draw_fields(self.splice, len(rows) // self.parts, self.parts, rng)
        return StyleParams(
            rows=rows, strength=strength, codes=codes, sources=sources, shares=shares, fields=fields
        )

    def draw_styles(
        self, rows: Int[Tensor, " K"], count: int, rng: torch.Generator | None
    ) -> tuple[Float[Tensor, "K S"] | None, Int[Tensor, "K M"], Float[Tensor, "K M"]]:
        """Draw the codes, sources and shares of `StyleParams`."""
        if self.within_batch:
            sources = samplers.draw_others(rows, count, rng)[:, None]
            return None, sources, torch.ones(sources.shape)
        if self.bank is None:
            drawn = samplers.prior(self.code_length, len(rows), rng)
        else:
            drawn = samplers.sample(
                self.sampler,
                self.bank.codes,
                len(rows),
                rng,
                weights=self.weights,
                components=self.components,
            )
        return drawn.codes, drawn.sources, drawn.shares

    @as_usual()
    def apply(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        images: Any,
        params: StyleParams | None = None,
        *,
        masks: Any = None,
        differentiable: bool = False,
    ) -> Any:
        """Stylise `images` as `params` say, with nothing random.

        Called with a function alone it is `nn.Module.apply`, as in `model.apply(initialise)`.

        Args:
            images: a PIL image, an array `(H, W[, C])`, or a tensor `(C, H, W)` or `(B, ..., C, H, W)`
                of dtype uint8, uint16 or float in [0, 1], or within `value_range`. Axes between B and C
                are frames: they share their row's style, and the statistics by which they get it.
            params: from `make_params` for the same number of rows.
            masks: for `splice="mask"` and `protect="mask"`, a tensor or array `(H, W)`, `(B, H, W)` or
                `(B, 1, H, W)` of booleans, integer labels, or floats in [0, 1].
            differentiable: let gradients of float images through, if autograd is on.

        Returns:
            The same kind, shape, dtype, device and memory format; `images` itself if no row is picked.

        Raises:
            ImageError: images that are no images, also where no row is picked; parameters for a larger
                batch, or masks that are missing or do not fit.
        """
        if params is None:
            return super().apply(images)
        self.check(images)
        if len(params["rows"]) == 0:
            return images
        pixels, restore = self.to_pixels(images)
        if len(pixels) == 0:  # clips without frames
            return images
        check_range(pixels, self.value_range)
        count = count_rows(images)
        used = [params["rows"], *([params["sources"]] if params["codes"] is None else [])]
        if any(int(rows.max()) >= self.rows_of(images) for rows in used):
            raise ImageError(
                f"these parameters are for a larger batch than the {self.rows_of(images)} rows given."
            )
        frames = len(pixels) // count
        by_mask = params["fields"] is None and unspliced(params["rows"])[1] > 1
        if (by_mask or self.guard.protect == "mask") != (masks is not None):
            raise ImageError(
                "these parameters splice by a mask; give masks=..."
                if by_mask
                else 'protect="mask" goes by a mask; give masks=...'
                if masks is None
                else 'masks are given, but nothing is spliced by them; use splice="mask" or protect="mask".'
            )
        if masks is not None:
            masks = read_masks(masks, count, frames, (pixels.shape[-2], pixels.shape[-1])).to(pixels.device)
        grad = differentiable and torch.is_grad_enabled()
        # What is compiled runs outside of inference mode, and so must write to a normal tensor.
        normal = self.compiled and torch.is_inference_mode_enabled()
        outside = torch.inference_mode(False) if normal else nullcontext()
        with outside, torch.set_grad_enabled(grad), torch.autocast(pixels.device.type, enabled=False):
            return restore(self.stylise(pixels, params, frames, masks))

    def stylise(
        self,
        pixels: Shaped[Tensor, "N C H W"],
        params: StyleParams,
        frames: int,
        masks: Shaped[Tensor, "M H W"] | None = None,
    ) -> Tensor:
        """Replace the picked rows in a copy of `pixels`, a chunk at a time."""
        check_worker(pixels.device)
        generator = self.generator_on(pixels.device)
        channels = pixels.shape[1]
        apart = channels > 1 and (self.channels != "auto" or channels != 3)
        source = grouped(pixels, frames, apart=apart)
        single = partial(self.run_compiled, generator) if self.compiled else generator
        brush = Brush(generator, single, self.value_range, self.keep_luminance, self.guard, self.least_side)
        seen = area_seen(pixels.shape[-2:], self.least_side, generator.minimum)
        chunk = chunk_images(seen, pixels.device)
        read = partial(brush.read_codes, source, most=chunk)
        by_mask = params["fields"] is None and unspliced(params["rows"])[1] > 1
        protect = masks if self.guard.protect == "mask" else self.guard.protect
        looks = looks_of(
            params,
            source,
            masks if by_mask else None,
            read,
            spread=self.channels != "independent",
            protect=protect,
        )
        # Where every group is stylised nothing of the input is left to copy.
        everything = run_of(looks.groups) == slice(0, source.shape[0] * source.shape[1])
        result = torch.empty_like(pixels) if everything else pixels.clone()
        target = grouped(result, frames, apart=apart)
        most = max(1, chunk // looks.parts)
        views = frames_to_survey(frames, pixels, seen) if frames > most else None
        with torch.inference_mode(not (self.compiled or torch.is_grad_enabled())):
            if views is None or len(views) == frames:
                for numbers in torch.arange(len(looks.groups)).split(max(1, most // frames)):
                    brush.stylise_groups(source, target, looks, numbers)
            else:
                for number in range(len(looks.groups)):
                    brush.stylise_volume(source, target, looks, number, views, most)
        return result

    def run_compiled(
        self,
        generator: AbstractGenerator,
        images: Float[Tensor, "K 3 H W"],
        codes: Float[Tensor, "K S"],
        strength: Float[Tensor, " K"],
    ) -> Float[Tensor, "K 3 H W"]:
        """Run `torch.compile`'s version, with as many rows as the next power of two.

        So a gate that picks another number of rows each time meets few shapes. On CUDA the kernels
        are replayed as one graph.
        """
        device, count = images.device, len(images)
        if device not in self._compiled:
            mode = "reduce-overhead" if device.type == "cuda" else "default"
            self._compiled.setdefault(device, torch.compile(generator, dynamic=False, mode=mode))
        rows = torch.arange(1 << (count - 1).bit_length(), device=device).clamp_max(count - 1)
        return self._compiled[device](images[rows], codes[rows], strength[rows])[:count]


def count_rows(images: Any) -> int:
    """Tell how many rows get parameters of their own: a batch's length, else one."""
    if isinstance(images, Tensor):
        return images.shape[0] if images.ndim > 3 else 1
    return images.shape[0] if getattr(images, "ndim", 0) == 4 else 1


def chunk_images(seen: int, device: torch.device) -> int:
    """Tell how many images to stylise at a time, of each of which the generator sees so many pixels."""
    return max(1, (CPU_CHUNK_PIXELS if device.type == "cpu" else CUDA_CHUNK_PIXELS) // seen)


def check_worker(device: torch.device) -> None:
    """Refuse CUDA in a forked DataLoader worker, where it fails with an obscure error.

    Raises:
        DeviceError: naming what to use instead.
    """
    forked = multiprocessing.get_start_method(allow_none=True) in (None, "fork")
    # MONAI has workers that are threads, and those may use CUDA.
    thread = multiprocessing.parent_process() is None and current_thread() is not main_thread()
    if device.type == "cuda" and get_worker_info() is not None and forked and not thread:
        raise DeviceError(
            "a forked DataLoader worker cannot use CUDA. Keep images on the CPU in workers, or stylise after "
            "the loader: StyleLoader(loader, augment, device='cuda')."
        )
