"""`StyleAugment`: the batched transform, for torchvision and for every adapter.

One call reads from the top of `apply`: images become pixels, the picked rows are painted, and they go back.
What is random is drawn in `make_params`, and nowhere else.
"""

import multiprocessing
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from copy import copy
from functools import partial
from inspect import signature
from pathlib import Path
from threading import current_thread, main_thread
from typing import Any, Self, Unpack, get_args

import torch
from jaxtyping import Int, Shaped
from torch import Tensor, nn
from torch.utils.data import get_worker_info
from torchvision import tv_tensors

from styleaug import samplers
from styleaug.bank import StyleBank
from styleaug.checks import check_count, check_share, check_switch
from styleaug.errors import BankError, ConfigError, DeviceError, ImageError
from styleaug.generators.ambient import as_usual
from styleaug.generators.base import AbstractGenerator
from styleaug.images import MOST_CHANNELS, ValueRange, as_unit, check_range, range_of
from styleaug.io.hub import pinned
from styleaug.samplers import Draw
from styleaug.transforms.bands import Bands, check_bands
from styleaug.transforms.base import AbstractAugment, count_rows, framed
from styleaug.transforms.blends import Blend, check_blend
from styleaug.transforms.groups import paint_groups
from styleaug.transforms.guard import Preserve, read_preserve
from styleaug.transforms.options import (
    STRENGTH,
    Channels,
    P,
    Precision,
    StyleOptions,
    check_range_option,
    check_strength,
    in_short,
    refusing_old_names,
)
from styleaug.transforms.painting import (
    Painter,
    area_seen,
    banded,
    blended,
    coloured,
    enlarged,
    finite,
    guarded,
)
from styleaug.transforms.params import StyleParams
from styleaug.transforms.placement import fast_bfloat16, place, put, rows_on, take, to_device
from styleaug.transforms.splice import Splice, SpliceKind, draw_fields, read_masks, read_splice, unspliced
from styleaug.weights import find_styles, load_generator

__all__ = ["StyleAugment"]

PRECISIONS = get_args(Precision)
CHANNELS = get_args(Channels)
MOST_SEPARATE = 256
"""Channels, where the user says that each of them is an image."""

WITHIN_BATCH = "batch"
WITHIN_BATCH_GENERATOR = "reinhard-lab"
CPU_CHUNK_PIXELS = 8 * 224 * 224
"""Pixels styled at a time on a CPU: larger chunks leave the cache, and take memory."""

CUDA_CHUNK_PIXELS = 256 * 512 * 512


class StyleAugment(AbstractAugment):
    """Style images after a bank, at random. Labels, masks and boxes are not touched.

    Place it before `Normalize`. It takes a PIL image, a tensor `(C, H, W)` or `(B, C, H, W)`, or a nested
    sample. In a sample it styles PIL images, `tv_tensors.Image` and `tv_tensors.Video`; all else comes back
    as the same object. Each row of a batch has its own gate, style and strength. The frames of a `Video`
    share one style.

    A sample may hold plain tensors only, as `default_collate` makes it. Then the image is the tensor with
    three or more axes and an image's dtype. If several have that, it is the one under a key such as `image`,
    `images` or `pixel_values`, and never one under `mask`, `label` or `target`. If that does not decide, the
    sample is refused. The order of keys never decides. A grey PIL image beside a colour one is treated in the
    same way.

    A plain tensor has no alpha channel: each of four channels is a grey image. Its last three axes are
    (C, H, W), so give grey images as (B, 1, H, W): (B, H, W) is read as one image of B channels.

    Args:
        bank: a shipped name, a path, a `StyleBank`, a run folder of `styleaug train`, or a repository of the
            Hugging Face hub: `"hf:OWNER/NAME"`, with `@REVISION` for one commit. `"batch"` takes the
            styles from the other images of the batch. None takes what the generator brings: codes from the
            standard normal distribution, the bank in its run folder, or a shipped bank. Without a
            generator, None is `"art"`.
        generator: a name, a path to weights, a run folder, or a generator. None takes the one that made the
            bank; with `"batch"` it is `"reinhard-lab"`.
        p: probability that a row is styled.
        strength: share of the style in [0, 1], 1 is all of it; a number, or `(low, high)` to draw from.
        sampler: how a style is drawn from the bank. `"uniform"`: one of the styles. `"mix"`: two styles in
            random shares; `Mix(n)` takes n. `"slerp"`: one between two styles. `"gaussian"`: a new one from
            the bank's distribution. `Weighted(weights)`: one of the styles, with one weight a style.
        blend: how the styled image is laid over the image, a mode of W3C Compositing and Blending:
            `"normal"`, `"multiply"`, `"screen"`, `"overlay"`, `"soft-light"`, `"hard-light"`, `"color"` or
            `"luminosity"`. The strength is then the opacity of the full style. `"color"` keeps the
            brightness of each pixel, so grey images stay as they are; `"luminosity"` keeps its colour.
            None: the generator mixes by its own strength.
        bands: `"low"` keeps only the low frequencies of what changes: the style's light and colours, without
            its texture. `"high"` keeps only the high ones: its texture, without its colours. The border is a
            Gaussian with a standard deviation of 1/24 of the shorter side. None keeps all.
        splice: style parts of an image differently, with soft borders: `"halves"`, `"fields"`, `"mask"` or a
            `Splice`, which says more. `"mask"` goes by the first `tv_tensors.Mask` of the sample.
        value_range: values of black and white. None: 0 and the largest value of an integer type, 0 and 1 of
            floats. `(low, high)`, such as `(-160, 240)` for CT in HU: also for int16 and int32; values beyond
            keep their distance to the border. `"auto"`: the 0.5th and 99.5th percentile of each image.
        channels: `"auto"`: 1 channel is grey, 3 are colour, and of any other number each channel is a grey
            image; all get the style of their row. `"shared"`: the same, but 3 channels are grey images, too.
            `"independent"`: each channel has its own gate, style and strength.
        preserve: least structure that each row keeps, in [0, 1], or a `Preserve`, which says more and can
            also protect regions. Try 0.9 where findings matter. 0 and None do not check.
        least_side: least short side in pixels at which the generator sees an image. Smaller images are
            enlarged for it, and only the change is reduced and added. None takes the generator's own: 128
            for `adain` and `patchswap`, whose strokes have a size, else 1.
        precision: type of a network's weights: `"float32"`, `"bfloat16"`, or `"auto"`, which takes bfloat16
            where the device is faster with it. Images differ by less than 2/255 on average.
        compiled: run the generator through `torch.compile`, on CUDA as graphs. Rows are padded to a power of
            two. It pays for many batches of one image size.

    Shape:
        That of the input, with its dtype, range, device and memory format. H and W are at least 1 pixel.

    Raises:
        BankError: the bank is damaged, unknown, or made by another generator.
        WeightsError: the generator is damaged or unknown.
        ConfigError: an argument outside its range.
        ImageError: when called with another type, PIL mode, dtype or shape, more than 16 channels (256, if
            `channels` says that each is an image), several values that could be the image, or without the
            mask that `splice="mask"` or `Preserve(protect="mask")` needs. These are found in every call;
            NaN, and values outside [0, 1] without a `value_range`, in calls that pick a row.

    Example:
        >>> from torchvision import transforms
        >>> train = transforms.Compose([
        ...     StyleAugment("art", p=0.5), transforms.ToTensor()])  # doctest: +SKIP
    """

    bank: StyleBank | None
    sample: Callable[[int, torch.Generator | None], Draw]
    compiled: bool
    generator_name: str
    code_length: int
    minimum: int

    @refusing_old_names
    @as_usual(for_autograd=True)
    def __init__(
        self,
        bank: str | Path | StyleBank | None = None,
        *,
        generator: str | Path | AbstractGenerator | None = None,
        p: float = P,
        strength: float | Sequence[float] = STRENGTH,
        sampler: samplers.Sampler = "uniform",
        blend: Blend | None = None,
        bands: Bands | None = None,
        splice: Splice | SpliceKind | None = None,
        value_range: ValueRange = None,
        channels: Channels = "auto",
        preserve: float | Preserve | None = None,
        least_side: int | None = None,
        precision: Precision = "auto",
        compiled: bool = False,
    ):
        super().__init__()
        self.p: float = check_share("p", p)
        self.strength: tuple[float, float] = check_strength(strength)
        self.sampler: samplers.Sampler = samplers.read_sampler(sampler)
        self.blend: Blend | None = check_blend(blend)
        self.bands: Bands | None = check_bands(bands)
        self.splice: Splice | None = read_splice(splice)
        self.value_range: ValueRange = check_range_option(value_range)
        if channels not in CHANNELS:
            raise ConfigError(f"channels must be one of {', '.join(CHANNELS)}, got {channels!r}.")
        self.channels: Channels = channels
        self.most_channels = MOST_CHANNELS if channels == "auto" else MOST_SEPARATE
        self.preserve: Preserve = read_preserve(preserve)
        self.protects_by_mask: bool = self.preserve.protect == "mask"
        bank, generator = pinned(bank), pinned(generator)  # so that a copy elsewhere gets the same commit
        self.within_batch: bool = isinstance(bank, str) and bank == WITHIN_BATCH
        if self.within_batch and channels == "independent":
            raise ConfigError('bank="batch" gives a row one style; use channels="shared".')
        if self.within_batch:
            self.bank, source = None, WITHIN_BATCH_GENERATOR if generator is None else generator
        else:
            self.bank, source = find_styles(bank, generator)
        self._home = (source,)  # in a tuple, lest nn.Module adopt a network
        named = bank if isinstance(bank, str | Path | None) else self.bank
        self._given = named, source if isinstance(source, AbstractGenerator) else generator, least_side
        self._placed: dict[torch.device, AbstractGenerator] = {}
        self._compiled: dict[torch.device, Callable[..., Tensor]] = {}
        self._painters: dict[torch.device, Painter] = {}
        if precision not in PRECISIONS:
            raise ConfigError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}.")
        self.precision, self.compiled = precision, check_switch("compiled", compiled)
        home = self.home
        self.generator_name, self.code_length, self.minimum = home.name, home.code_length, home.minimum
        self.least_side: int = (
            home.least_side if least_side is None else check_count("least_side", least_side)
        )
        if self.bank is None:
            if self.sampler != "uniform":
                origin = 'bank="batch" draws' if self.within_batch else f"{home.name!r} without a bank draws"
                raise ConfigError(f"{origin} each style with equal chance; leave out sampler.")
            self.sample = self.make_sample()
            return
        try:
            self.bank.check(home)
        except BankError as error:
            raise BankError(f"{bank}: {error}" if isinstance(bank, str | Path) else str(error)) from None
        self.sample = self.make_sample()
        self.sample(0, torch.Generator())

    @classmethod
    def preset(cls, name: str, *, p: float | None = None, **options: Unpack[StyleOptions]) -> AbstractAugment:
        """Return a mixture of styles for a common shift, which needs no image of the target.

        Use it like a `StyleAugment`; adapters take it in place of a bank. docs/presets.md has the figures.

        Args:
            name: `"unknown"`, `"drawings"` or `"corruptions"`.
            p: probability that a row is styled; None is the preset's own.
            options: of all its parts, such as `value_range` or `channels`; see `StyleAugment`.

        Raises:
            ConfigError: an unknown name, or a bank or generator, which a preset has.

        Example:
            >>> StyleAugment.preset("unknown")  # doctest: +SKIP
        """
        from styleaug.transforms.presets import make_preset

        return make_preset(cls, name, p=p, **options)

    def __getstate__(self) -> dict[str, Any]:
        # Copies of the network are made again where the transform arrives: other process, other device.
        # A function's pickle tells how its module was imported, and hosts compare pickles: it is made, too.
        return {**self.__dict__, "_placed": {}, "_compiled": {}, "_painters": {}, "sample": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.sample = self.make_sample()

    def make_sample(self) -> Callable[[int, torch.Generator | None], samplers.Draw]:
        """Return the function that draws codes: from the bank, or from the prior."""
        if self.bank is None:
            return partial(samplers.prior, self.code_length)
        return partial(samplers.make_sampler(self.sampler), self.bank.codes)

    def with_networks(self) -> Self:
        """Return a copy that holds its generator."""
        twin = copy(self)
        twin._home = (self.home,)
        return twin

    def settings(self) -> dict[str, Any]:
        """Return the arguments that make this transform again; values in their short form."""
        bank, generator, least_side = self._given
        names = StyleOptions.__annotations__.keys() - {"generator", "least_side"}
        own = {name: in_short(getattr(self, name)) for name in sorted(names)}
        return {**own, "bank": bank, "generator": generator, "least_side": least_side, "p": self.p}

    def extra_repr(self) -> str:
        """Format what is drawn from what, and which options are not the usual ones."""
        prior = "other images of the batch" if self.within_batch else "standard normal codes"
        styles = f"{prior} of {self.home.name!r}" if self.bank is None else repr(self.bank)
        usual = {name: DEFAULTS[name].default for name in StyleOptions.__annotations__}
        usual |= {"preserve": Preserve(), "least_side": self.home.least_side}
        others = [
            (name, getattr(self, name)) for name in usual if name not in ("generator", "strength", "sampler")
        ]
        told = "".join(f", {name}={value!r}" for name, value in others if value != usual[name])
        return f"{styles}, p={self.p}, strength={self.strength}, sampler={self.sampler!r}{told}"

    @property
    def fingerprint(self) -> str:
        """The generator's."""
        return self.home.fingerprint

    @property
    def home(self) -> AbstractGenerator:
        """The generator itself, of which each device gets a copy."""
        (source,) = self._home
        return source if isinstance(source, AbstractGenerator) else load_generator(source)

    # What is random.

    def draw_rows(self, rows: Int[Tensor, " K"], count: int, rng: torch.Generator | None) -> StyleParams:
        """Draw what is random about these rows, of a batch of `count`."""
        if self.splice is None:
            return self.draw_styles(rows, count, rng)
        params = self.draw_styles(rows.repeat_interleave(self.parts), count, rng)
        if self.splice.keep:
            params["strength"][:: self.parts] = 0
        return {**params, "fields": draw_fields(self.splice.kind, len(rows), self.parts, rng)}

    def draw_styles(self, rows: Int[Tensor, " K"], count: int, rng: torch.Generator | None) -> StyleParams:
        """Draw a strength and a code for each of `rows`, of a batch of `count`."""
        low, high = self.strength
        strength = low + (high - low) * torch.rand(len(rows), generator=rng)
        if self.within_batch:
            others = samplers.draw_others(rows, count, rng)[:, None]
            codes, sources, shares = None, others, torch.ones(others.shape)
        else:
            codes, sources, shares = self.sample(len(rows), rng)
        return StyleParams(
            rows=rows, strength=strength, codes=codes, sources=sources, shares=shares, fields=None
        )

    # What is not.

    @as_usual()
    def apply(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, images: Any, params: Any = None, *, masks: Any = None, differentiable: bool = False
    ) -> Any:
        """Style `images` as `params` say, with nothing random.

        Called with a function alone it is `nn.Module.apply`, as in `model.apply(initialise)`.

        Args:
            images: a PIL image, an array `(H, W[, C])`, or a tensor `(C, H, W)` or `(B, ..., C, H, W)`
                of dtype uint8, uint16 or float in [0, 1], or within `value_range`. Axes between B and C
                are frames: they share their row's style, and the statistics by which they get it.
            params: from `make_params` for the same number of rows.
            masks: in place of those in `params`, for `splice="mask"` and `protect="mask"`: a tensor or array
                `(H, W)`, `(B, H, W)` or `(B, 1, H, W)` of booleans, integer labels, or floats in [0, 1].
            differentiable: let gradients of float images through, if autograd is on.

        Returns:
            The same kind, shape, dtype, device and memory format; `images` itself if no row is picked.

        Raises:
            ImageError: images that are no images, also where no row is picked; parameters for a larger
                batch, or masks that are missing or do not fit.
        """
        if params is None:
            return nn.Module.apply(self, images)
        if len(params["rows"]) == 0:
            self.check(images)
            return images
        pixels, restore = self.to_pixels(framed(images))
        if pixels.dtype != torch.uint8:  # of which each value is one of an image
            check_range(pixels, self.value_range)
        if len(pixels) == 0:  # clips without frames
            return images
        rows = self.rows_of(framed(images))
        if int(params["rows"].max()) >= rows:
            raise too_few(rows)
        if get_worker_info() is not None:
            check_worker(pixels.device)
        grad = differentiable and torch.is_grad_enabled()
        # What is compiled runs outside of inference mode, and so must write to a normal tensor.
        normal = self.compiled and torch.is_inference_mode_enabled()
        outside = torch.inference_mode(False) if normal else nullcontext()
        with outside, torch.set_grad_enabled(grad), torch.autocast(pixels.device.type, enabled=False):
            plain = masks is None and self.is_plain(pixels, params, rows)
            styled = (
                self.paint(pixels, params)
                if plain
                else self.paint_grouped(images, pixels, params, masks, rows)
            )
        return like(restore(styled), images)

    def is_plain(self, pixels: Shaped[Tensor, "N C H W"], params: StyleParams, rows: int) -> bool:
        """Return whether rows are images of one style: no frames, parts, masks or channels of their own."""
        together = pixels.shape[1] == 1 or (self.channels == "auto" and pixels.shape[1] == 3)
        known = params["codes"] is not None and params["fields"] is None
        return (
            together
            and known
            and rows == len(pixels)
            and self.preserve.protect is None
            and self.splice is None
        )

    def paint(self, pixels: Shaped[Tensor, "B C H W"], params: StyleParams) -> Tensor:
        """Style the picked rows of a batch, a chunk at a time; the others are copied."""
        device, rows, auto = pixels.device, params["rows"], self.value_range == "auto"
        assert params["codes"] is not None
        painter = self.painter_on(device)
        seen = area_seen(pixels.shape[-2:], self.least_side, self.minimum)
        codes, strength = to_device(params["codes"].float(), device), params["strength"].float()
        result = torch.empty_like(pixels) if len(rows) == len(pixels) else pixels.clone()
        with torch.inference_mode(not (self.compiled or torch.is_grad_enabled())):
            for part in torch.arange(len(rows)).split(chunk_images(seen, device)):
                here = rows_on(rows[part], device)
                taken, some = take(pixels, here), slice(int(part[0]), int(part[-1]) + 1)
                value_range = self.value_range if not auto else range_of(taken, "auto")
                unit, back = as_unit(taken, value_range, dtype=self.unit_dtype(taken))
                share = to_device(strength[some], device).to(unit.dtype)
                put(result, here, back(painter(unit, codes[some], share)))
        return result

    def unit_dtype(self, pixels: Shaped[Tensor, "B C H W"]) -> torch.dtype:
        """Return the dtype in which images enter and leave the generator.

        On a GPU float16 saves a third of the bytes that a network in bfloat16 moves. It holds 8-bit images
        exactly.
        """
        plain = self.blend is None and self.bands is None and self.preserve.floor is None
        if pixels.device.type != "cuda" or pixels.dtype != torch.uint8 or not plain:
            return torch.float32
        placed = self.generator_on(pixels.device)
        short = placed.takes_float16 and any(x.dtype == torch.bfloat16 for x in placed.parameters())
        return torch.float16 if short else torch.float32

    def paint_grouped(
        self, images: Any, pixels: Tensor, params: StyleParams, masks: Any, rows: int
    ) -> Tensor:
        """Style images that have frames, parts, masks, or channels of their own; see `groups`."""
        count, channels = count_rows(framed(images)), pixels.shape[1]
        frames = len(pixels) // count
        if params["codes"] is None and int(params["sources"].max()) >= rows:
            raise too_few(rows)
        masks = params.get("masks") if masks is None else masks  # pyright: ignore[reportAttributeAccessIssue]
        by_mask = params["fields"] is None and unspliced(params["rows"])[1] > 1
        if (by_mask or self.protects_by_mask) != (masks is not None):
            raise ImageError(
                "these parameters splice by a mask; give masks=..."
                if by_mask
                else 'protect="mask" goes by a mask; give masks=...'
                if masks is None
                else 'masks are given, but nothing is spliced by them; use splice="mask" or protect="mask".'
            )
        if masks is not None:
            masks = read_masks(masks, count, frames, (pixels.shape[-2], pixels.shape[-1])).to(pixels.device)
        seen = area_seen(pixels.shape[-2:], self.least_side, self.minimum)
        return paint_groups(
            self,
            pixels,
            params,
            frames=frames,
            apart=channels > 1 and (self.channels != "auto" or channels != 3),
            spread=self.channels != "independent",
            masks=masks,
            seen=seen,
            chunk=chunk_images(seen, pixels.device),
        )

    # The painter: the generator on a device, in the options that change how it paints.

    def painter_on(self, device: torch.device) -> Painter:
        """Return what paints plain images on `device`."""
        if device not in self._painters:
            self._painters[device] = self.wrapped(self.bare_on(device))
        return self._painters[device]

    def wrapped(self, painter: Painter, *, least_side: int | None = None, guard: bool = True) -> Painter:
        """Put the options around a painter of colour images; None is their own `least_side`."""
        painter = finite(painter, self.generator_name)
        painter = enlarged(painter, least_side or self.least_side, self.minimum)
        if self.blend is not None:
            painter = blended(painter, self.blend)
        if self.bands is not None:
            painter = banded(painter, self.bands)
        painter = coloured(painter)
        if guard and self.preserve.floor is not None:
            painter = guarded(painter, self.preserve.floor)
        return painter

    def bare_on(self, device: torch.device) -> Painter:
        """Return the generator on `device`, compiled if that is wanted."""
        return self.run_compiled if self.compiled else self.generator_on(device)

    def generator_on(self, device: torch.device) -> AbstractGenerator:
        """Return the frozen network on `device`; a copy is kept for each that was asked for.

        It stays out of the module tree: no checkpoint, no `.train()`, no DDP carries it.
        """
        if device not in self._placed:
            short = self.precision == "bfloat16" or (self.precision == "auto" and fast_bfloat16(device))
            with as_usual(for_autograd=True):
                self._placed.setdefault(device, place(self.home, device, bfloat16=short))
        return self._placed[device]

    def run_compiled(self, images: Tensor, codes: Tensor, strength: Tensor) -> Tensor:
        """Run `torch.compile`'s version, with as many rows as the next power of two.

        So a gate that picks another number of rows each time meets few shapes. On CUDA the kernels
        are replayed as one graph.
        """
        device, count = images.device, len(images)
        if device not in self._compiled:
            mode = "reduce-overhead" if device.type == "cuda" else "default"
            self._compiled.setdefault(
                device, torch.compile(self.generator_on(device), dynamic=False, mode=mode)
            )
        rows = torch.arange(1 << (count - 1).bit_length(), device=device).clamp_max(count - 1)
        return self._compiled[device](images[rows], codes[rows], strength[rows])[:count]


def too_few(rows: int) -> ImageError:
    """Make the error for parameters that name a row which is not there."""
    return ImageError(f"these parameters are for a larger batch than the {rows} rows given.")


def like(styled: Any, images: Any) -> Any:
    """Return a styled tensor in the tv_tensor type and shape that `images` has."""
    if not isinstance(images, tv_tensors.TVTensor):
        return styled
    return tv_tensors.wrap(styled.reshape(images.shape), like=images)  # pyright: ignore[reportCallIssue]


def chunk_images(seen: int, device: torch.device) -> int:
    """Return how many images to style at a time, if the generator sees `seen` pixels of each."""
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


DEFAULTS = signature(StyleAugment).parameters
"""Arguments of `StyleAugment` with their usual values."""
