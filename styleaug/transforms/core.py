"""The batched transform that every adapter delegates to: draw parameters, then apply them."""

import multiprocessing
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypedDict, get_args

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.utils.data import get_worker_info

from styleaug import samplers
from styleaug.bank import StyleBank
from styleaug.errors import ConfigError, DeviceError, ImageError
from styleaug.generators.base import AbstractGenerator
from styleaug.images import check_range, from_float, luminance, to_float, to_pixels, with_luminance
from styleaug.weights import load_bank, load_generator

__all__ = ["Precision", "StyleParams", "Stylizer"]

Precision = Literal["auto", "float32", "bfloat16"]
PRECISIONS = get_args(Precision)
WITHIN_BATCH = "batch"
WITHIN_BATCH_GENERATOR = "reinhard-lab"
CPU_CHUNK_PIXELS = 8 * 224 * 224
"""Pixels stylised at a time on a CPU: larger chunks leave the cache, and take memory."""

CUDA_CHUNK_PIXELS = 256 * 512 * 512


class StyleParams(TypedDict):
    """All that is random about one call. The same parameters on the same images replay it."""

    rows: Int[Tensor, " K"]
    """Which rows of the batch are stylised; the others are not touched."""

    strength: Float[Tensor, " K"]
    codes: Float[Tensor, "K S"] | None
    """The style of each row; None where it is read from another row of the batch."""

    sources: Int[Tensor, "K M"]
    """Rows of the bank (or of the batch) that the style was made of; M = 0 if of none."""

    shares: Float[Tensor, "K M"]
    """How much of each source is in it."""


class Stylizer(nn.Module):
    """Stylise picked rows of a batch, each with its own style and strength.

    The arguments and errors are those of `styleaug.StyleAugment`, which hosts this in torchvision.
    """

    def __init__(
        self,
        bank: str | Path | StyleBank = "art",
        *,
        generator: str | Path | AbstractGenerator | None = None,
        p: float = 0.5,
        strength: float | Sequence[float] = (0.5, 1.0),
        sampler: samplers.Sampler = "uniform",
        weights: Sequence[float] | Tensor | None = None,
        components: int = 2,
        keep_luminance: bool = False,
        precision: Precision = "auto",
        compiled: bool = False,
    ):
        super().__init__()
        self.p = check_share("p", p)
        self.strength = check_strength(strength)
        if sampler not in samplers.SAMPLERS:
            raise ConfigError(f"unknown sampler {sampler!r}; choose from {', '.join(samplers.SAMPLERS)}.")
        self.sampler: samplers.Sampler = sampler
        self.components = components
        self.keep_luminance = keep_luminance
        self.bank = None if bank == WITHIN_BATCH else bank if isinstance(bank, StyleBank) else load_bank(bank)
        if self.bank is None and (sampler != "uniform" or weights is not None):
            raise ConfigError(
                'bank="batch" draws from the other images alike; leave out sampler and weights.'
            )
        if generator is None:
            generator = WITHIN_BATCH_GENERATOR if self.bank is None else self.bank.provenance.generator
        self._home = (generator,)  # in a tuple, lest nn.Module adopt a network
        self._placed: dict[torch.device, AbstractGenerator] = {}
        self._compiled: dict[torch.device, Callable[..., Tensor]] = {}
        if precision not in PRECISIONS:
            raise ConfigError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}.")
        self.precision, self.compiled = precision, compiled
        if self.bank is not None:
            self.bank.check(self.home)
        self.weights = None if weights is None else torch.as_tensor(weights, dtype=torch.float64)
        if self.bank is not None:
            samplers.sample(
                sampler, self.bank.codes, 0, torch.Generator(), weights=self.weights, components=components
            )

    def __getstate__(self) -> dict[str, Any]:
        # Copies of the network are made again where the transform arrives: other process, other device.
        return {**self.__dict__, "_placed": {}, "_compiled": {}}

    def extra_repr(self) -> str:
        """Say what is drawn from what."""
        styles = "other images of the batch" if self.bank is None else repr(self.bank)
        return f"{styles}, p={self.p}, strength={self.strength}, sampler={self.sampler!r}"

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
            self._placed[device] = place(self.home, device, bfloat16=short)
        return self._placed[device]

    def forward(self, images: Any) -> Any:
        """Stylise an image or a batch, drawing from torch's global generator."""
        return self.apply(images, self.make_params(images))

    def make_params(self, images: Any, *, rng: torch.Generator | None = None) -> StyleParams:
        """Draw all that is random about stylising `images`, on the CPU.

        Args:
            images: an image or a batch; only its shape is read.
            rng: None draws from torch's global generator, which DataLoader seeds in each worker.
        """
        return self.draw(count_rows(images), rng)

    def draw(self, count: int, rng: torch.Generator | None = None) -> StyleParams:
        """Draw parameters for a batch of `count` rows. Gates come first, so unpicked rows cost nothing."""
        rows = (torch.rand(count, generator=rng) < self.p).nonzero()[:, 0]
        low, high = self.strength
        strength = low + (high - low) * torch.rand(len(rows), generator=rng)
        if self.bank is None:
            sources = samplers.draw_others(rows, count, rng)[:, None]
            return StyleParams(
                rows=rows, strength=strength, codes=None, sources=sources, shares=torch.ones(sources.shape)
            )
        drawn = samplers.sample(
            self.sampler,
            self.bank.codes,
            len(rows),
            rng,
            weights=self.weights,
            components=self.components,
        )
        return StyleParams(
            rows=rows, strength=strength, codes=drawn.codes, sources=drawn.sources, shares=drawn.shares
        )

    def apply(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, images: Any, params: StyleParams | None = None
    ) -> Any:
        """Stylise `images` as `params` say, with nothing random.

        Called with a function alone it is `nn.Module.apply`, as in `model.apply(initialise)`.

        Args:
            images: a PIL image, an array `(H, W[, C])`, or a tensor `(C, H, W)` or `(B, ..., C, H, W)`
                of dtype uint8, uint16 or float in [0, 1]. Axes between B and C are frames: they share
                their row's style.
            params: from `make_params` for the same number of rows.

        Returns:
            The same kind, shape, dtype, device and memory format; `images` itself if no row is picked.

        Raises:
            ImageError: images that are no images, or parameters for a larger batch.
        """
        if params is None:
            return super().apply(images)
        if len(params["rows"]) == 0:
            return images
        pixels, restore = to_pixels(images)
        check_range(pixels)
        count = count_rows(images)
        if int(params["rows"].max()) >= count:
            raise ImageError(f"these parameters are for a larger batch than the {count} rows given.")
        frames = len(pixels) // count
        with torch.no_grad(), torch.autocast(pixels.device.type, enabled=False):
            return restore(self.stylise(pixels, params, frames))

    def stylise(self, pixels: Shaped[Tensor, "N C H W"], params: StyleParams, frames: int) -> Tensor:
        """Replace the picked rows in a copy of `pixels`, a chunk at a time."""
        check_worker(pixels.device)
        generator = self.generator_on(pixels.device)
        codes = self.read_codes(pixels, params, frames, generator)
        expand = torch.arange(frames)
        picked = (params["rows"][:, None] * frames + expand).flatten()
        owner = torch.arange(len(params["rows"])).repeat_interleave(frames)
        strength = to_device(params["strength"].float(), pixels.device)
        result = pixels.clone()
        chunk = max(1, chunk_pixels(pixels.device) // (pixels.shape[-1] * pixels.shape[-2]))
        for part in torch.arange(len(picked)).split(chunk):
            target, row = to_device(picked[part], pixels.device), to_device(owner[part], pixels.device)
            images = to_float(take(pixels, target))
            with torch.inference_mode(not self.compiled):
                styled = self.paint(generator, images, codes[row], strength[row])
            put(result, target, from_float(styled, pixels.dtype))
        return result

    def paint(
        self,
        generator: AbstractGenerator,
        images: Float[Tensor, "K C H W"],
        codes: Float[Tensor, "K S"],
        strength: Float[Tensor, " K"],
    ) -> Float[Tensor, "K C H W"]:
        """Run the generator on colour or grey images."""
        coloured = images.expand(-1, 3, -1, -1)
        if self.compiled:
            styled = self.run_compiled(generator, coloured, codes, strength)
        else:
            styled = generator(coloured, codes, strength)
        if self.keep_luminance:
            styled = with_luminance(styled, coloured)
        return luminance(styled) if images.shape[1] == 1 else styled

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
            self._compiled[device] = torch.compile(generator, dynamic=False, mode=mode)
        rows = torch.arange(1 << (count - 1).bit_length(), device=device).clamp_max(count - 1)
        return self._compiled[device](images[rows], codes[rows], strength[rows])[:count]

    def read_codes(
        self,
        pixels: Shaped[Tensor, "N C H W"],
        params: StyleParams,
        frames: int,
        generator: AbstractGenerator,
    ) -> Float[Tensor, "K S"]:
        """Give the codes of the picked rows on the images' device; each source is encoded once."""
        if params["codes"] is not None:
            return to_device(params["codes"].float(), pixels.device)
        sources, place_of = params["sources"][:, 0].unique(return_inverse=True)
        chunk = max(1, chunk_pixels(pixels.device) // (pixels.shape[-1] * pixels.shape[-2]))
        codes = [
            generator.encode_style(
                to_float(take(pixels, to_device(part * frames, pixels.device))).expand(-1, 3, -1, -1)
            )
            for part in sources.split(chunk)
        ]
        return torch.cat(codes)[to_device(place_of, pixels.device)]


def count_rows(images: Any) -> int:
    """Tell how many rows get parameters of their own: a batch's length, else one."""
    if isinstance(images, Tensor):
        return images.shape[0] if images.ndim > 3 else 1
    return images.shape[0] if getattr(images, "ndim", 0) == 4 else 1


def take(pixels: Tensor, rows: Tensor) -> Tensor:
    """Index rows of any dtype (torch cannot index uint16 everywhere)."""
    if pixels.dtype == torch.uint16:
        return pixels.view(torch.int16)[rows].view(torch.uint16)
    return pixels[rows]


def put(pixels: Tensor, rows: Tensor, values: Tensor) -> None:
    """Write rows of any dtype in place."""
    if pixels.dtype == torch.uint16:
        pixels, values = pixels.view(torch.int16), values.view(torch.int16)
    pixels.index_copy_(0, rows, values)


def chunk_pixels(device: torch.device) -> int:
    """Tell how many pixels to stylise at a time."""
    return CPU_CHUNK_PIXELS if device.type == "cpu" else CUDA_CHUNK_PIXELS


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Move small CPU tensors without waiting for the device."""
    if device.type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def place(generator: AbstractGenerator, device: torch.device, *, bfloat16: bool) -> AbstractGenerator:
    """Put a generator on a device, frozen; a copy unless it can be used as it is."""
    from copy import deepcopy

    if device.type == "cpu":
        keep_freed_memory()
    dtype = torch.bfloat16 if bfloat16 and generator.takes_bfloat16 else None
    if device.type == "cpu" and dtype is None:
        return generator
    return deepcopy(generator).to(device, dtype).to(memory_format=torch.channels_last)


@cache
def fast_bfloat16(device: torch.device) -> bool:
    """Tell whether networks run faster in bfloat16 on this device: Ampere or AVX512-BF16 and later."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and "avx512_bf16" in cpu_flags()


def cpu_flags() -> set[str]:
    """Read what the processor can do; empty where the system does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return next((set(line.split()) for line in lines if line.startswith("flags")), set())


@cache
def keep_freed_memory() -> None:
    """Make glibc keep the memory that one call frees for the next.

    Else it gives blocks back to the system and gets them page by page, which took up to half of a
    call's time. Freeing one large block, never touched, raises the limit to twice its size: see
    M_MMAP_THRESHOLD in mallopt(3).
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)


def check_worker(device: torch.device) -> None:
    """Refuse CUDA in a forked DataLoader worker, where it fails with an obscure error.

    Raises:
        DeviceError: naming what to use instead.
    """
    forked = multiprocessing.get_start_method(allow_none=True) in (None, "fork")
    if device.type == "cuda" and get_worker_info() is not None and forked:
        raise DeviceError(
            "a forked DataLoader worker cannot use CUDA. Keep images on the CPU in workers, or stylise after "
            "the loader: StyleLoader(loader, augment, device='cuda')."
        )


def check_share(name: str, value: float) -> float:
    """Check a number in [0, 1]."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ConfigError(f"{name} must be a number in [0, 1], got {value!r}.")
    return float(value)


def check_strength(strength: float | Sequence[float]) -> tuple[float, float]:
    """Check a number or `(low, high)` in [0, 1]."""
    ends: Any = (strength, strength) if isinstance(strength, (int, float)) else strength
    if not isinstance(ends, Sequence) or isinstance(ends, str) or len(ends) != 2:
        raise ConfigError(f"strength must be a number or (low, high), got {strength!r}.")
    low, high = check_share("strength", ends[0]), check_share("strength", ends[1])
    if low > high:
        raise ConfigError(f"strength must be (low, high) with low <= high, got {strength!r}.")
    return low, high
