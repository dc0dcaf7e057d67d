"""Where tensors and networks lie: rows of any dtype, copies on devices, the memory of the process."""

from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from styleaug.generators.base import AbstractGenerator, keep_freed_memory

__all__ = ["fast_bfloat16", "place", "put", "rows_on", "run_of", "take", "to_device"]


def take(pixels: Tensor, rows: Tensor | slice | tuple[Tensor, ...]) -> Tensor:
    """Index rows of any dtype (torch cannot index uint16 everywhere); a view if `rows` is a slice."""
    if pixels.dtype == torch.uint16 and not isinstance(rows, slice):
        return pixels.view(torch.int16)[rows].view(torch.uint16)
    return pixels[rows]


def put(pixels: Tensor, rows: Tensor | slice, values: Tensor) -> None:
    """Write rows of any dtype in place."""
    if isinstance(rows, slice):
        pixels[rows] = values
        return
    if pixels.dtype == torch.uint16:
        pixels, values = pixels.view(torch.int16), values.view(torch.int16)
    pixels.index_copy_(0, rows, values)


def rows_on(rows: Tensor, device: torch.device) -> Tensor | slice:
    """Move row numbers to the device; as a slice, which is faster, where they count up by one."""
    return run_of(rows) or to_device(rows, device)


def run_of(rows: Tensor) -> slice | None:
    """Return rows on the CPU as a slice if they count up by one."""
    first, last = int(rows[0]), int(rows[-1])
    one_run = last - first + 1 == len(rows) and (len(rows) < 3 or bool((rows.diff() == 1).all()))
    return slice(first, last + 1) if one_run else None


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
    tensors = (*generator.parameters(), *generator.buffers())
    if device.type == "cpu" and dtype is None and not any(value.is_inference() for value in tensors):
        return generator
    placed = deepcopy(generator).to(device, dtype).to(memory_format=torch.channels_last)
    if device.type == "cuda":  # another stream may be the next to read it
        torch.cuda.current_stream(device).synchronize()
    return placed


@cache
def fast_bfloat16(device: torch.device) -> bool:
    """Return whether networks run faster in bfloat16 on this device: Ampere or AVX512-BF16 and later."""
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
