"""A double of a CUDA device, for machines without one: what lies where, who waits for whom; no numbers.

Inside `PretendCuda` tensors on the CPU are real, so gates and seeds are drawn as always. Tensors on `cuda`
are torch's fake ones: shapes and dtypes without values. What a GPU would punish is an error here:

    two devices that meet                              torch's own RuntimeError
    the host waits for the device                      HostWaits, as `torch.cuda.set_sync_debug_mode` finds it
    a stream reads what another has not finished       Race
    a stream reads memory that may be given away       Race, unless `record_stream` was called
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

__all__ = ["Generator", "HostWaits", "PretendCuda", "Race"]

CUDA = torch.device("cuda", 0)

CHECKED_BY_THE_HOST = {"_linalg_check_errors", "_linalg_eigh", "_linalg_svd", "linalg_eig", "linalg_lstsq"}
"""Operators that read on the host whether they failed."""


class HostWaits(AssertionError):
    """The host would stand still until the device is done."""


class Race(AssertionError):
    """A stream would read what another one has not finished, or what may be overwritten meanwhile."""


class Generator(torch.Generator):
    """A random generator that says it is on CUDA, where it cannot be made without a GPU."""

    @property
    def device(self) -> torch.device:  # pyright: ignore[reportIncompatibleVariableOverride]
        return CUDA


class Fakes(FakeTensorMode):
    """Stays one when tensors are copied."""

    def __deepcopy__(self, memo: Any) -> "Fakes":
        return self


class Event:
    """A point in a stream: how far each stream was, as that one knew."""

    def __init__(self, seen: dict["Stream", int]):
        self.seen = dict(seen)


class Stream:
    """A double of `torch.cuda.Stream`, with a vector clock; `log` tells what it was asked for, in order."""

    def __init__(self, name: str, host_waits: Callable[[str], None]):
        self.name, self.host_waits = name, host_waits
        self.seen: dict[Stream, int] = {self: 0}
        self.log: list[tuple[str, ...]] = []

    def __repr__(self) -> str:
        return self.name

    def record_event(self) -> Event:
        self.log.append(("record_event",))
        return Event(self.seen)

    def synchronize(self) -> None:
        self.log.append(("synchronize",))
        self.host_waits(f"{self}.synchronize")

    def wait_event(self, event: Event) -> None:
        self.log.append(("wait_event",))
        self.seen = {s: max(self.seen.get(s, 0), event.seen.get(s, 0)) for s in {**self.seen, **event.seen}}

    def wait_stream(self, other: "Stream") -> None:
        self.log.append(("wait_stream", other.name))
        self.wait_event(Event(other.seen))
        self.log.pop()


class PretendCuda(TorchDispatchMode):
    """Make `device="cuda"` work inside the block.

    Args:
        allowed: functions inside which the host may wait, with the reason; reading a value gives 0 there.
        capability: of the device: (8, 0) and later are fast in bfloat16.

    Attributes:
        waits: the functions of `allowed` in which the host waited.
        records_needed: whether memory that another stream reads must be told to `record_stream`.
    """

    def __init__(self, allowed: dict[str, str] | None = None, *, capability: tuple[int, int] = (9, 0)):
        super().__init__()
        self.allowed, self.capability, self.waits = allowed or {}, capability, set[str]()
        self.fake = Fakes()
        self.main = Stream("main", self.host_waits)
        self.current = self.main
        self.streams: list[Stream] = []
        # By storage, which lives as long as its tensors do: who wrote it when, and who may read it.
        self.written: dict[int, tuple[Any, Stream, int, set[Stream]]] = {}
        self.pinned: list[Tensor] = []
        self.done: dict[Stream, int] = {}
        """How far each stream was when the host last waited for it."""
        self.records_needed = True

    def __enter__(self) -> "PretendCuda":
        self.stack = ExitStack()
        self.stack.enter_context(self.fake)  # first: it asks whether there is a GPU
        for name, double in {
            "is_available": lambda: True,
            "get_device_capability": lambda device=None: self.capability,
            "is_bf16_supported": lambda *_: True,
            "Stream": self.make_stream,
            "stream": self.on_stream,
            "current_stream": lambda device=None: self.current,
        }.items():
            self.stack.enter_context(patch.object(torch.cuda, name, double))
        # Fake parameters are swapped when a module is moved, and torch refuses those with weak references.
        no_references = SimpleNamespace(getweakrefs=lambda tensor: [])
        self.stack.enter_context(patch.object(torch.utils, "weakref", no_references))
        record, pin = self.record_stream, self.pin
        self.stack.enter_context(patch.object(Tensor, "record_stream", lambda x, stream: record(x, stream)))
        self.stack.enter_context(patch.object(Tensor, "pin_memory", lambda x: pin(x)))
        self.stack.enter_context(patch.object(fake_tensor, "init_gpu_context", lambda device: None))
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.stack.close()

    @contextmanager
    def as_fabric_sees_it(self) -> Iterator[None]:
        """Let Lightning Fabric find one device; networks that are moved keep their parameters, as on a GPU.

        Autograd asks CUDA itself for its streams, which no Python can stand in for: in place of a backward
        pass there are gradients without values, on the devices of their tensors.
        """
        before = torch.__future__.get_swap_module_params_on_conversion()
        torch.__future__.set_swap_module_params_on_conversion(True)
        doubles = {
            "device_count": lambda: 1,
            "set_device": lambda device: None,
            "get_device_name": lambda device=None: "pretended",
            "empty_cache": lambda: None,
        }
        try:
            with ExitStack() as stack:
                for name, double in doubles.items():
                    stack.enter_context(patch.object(torch.cuda, name, double))
                stack.enter_context(patch.object(torch.autograd, "backward", backward))
                stack.enter_context(patch.object(torch.autograd, "grad", gradients))
                yield
        finally:
            torch.__future__.set_swap_module_params_on_conversion(before)

    # Streams.

    def make_stream(self, device: Any = None, **options: Any) -> Stream:
        self.streams.append(Stream("side", self.host_waits))
        return self.streams[-1]

    @contextmanager
    def on_stream(self, stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    def record_stream(self, tensor: Tensor, stream: Stream) -> None:
        assert tensor.is_cuda, "record_stream is for tensors on the device"
        stream.log.append(("record_stream",))
        if key(tensor) in self.written:
            self.written[key(tensor)][3].add(stream)

    def read(self, tensor: Tensor, name: str) -> None:
        if key(tensor) not in self.written:
            return
        _, writer, time, readers = self.written[key(tensor)]
        if time <= self.done.get(writer, 0):
            return
        if self.current.seen.get(writer, 0) < time:
            raise Race(f"{name} on stream {self.current} does not wait for what stream {writer} writes.")
        if self.records_needed and self.current not in readers:
            raise Race(f"{name} on stream {self.current} reads memory of {writer}; call record_stream.")

    def write(self, tensor: Tensor) -> None:
        self.current.seen[self.current] += 1
        owner = self.written.get(key(tensor))
        readers = {self.current} if owner is None else owner[3]
        storage = tensor.untyped_storage()
        self.written[key(tensor)] = storage, self.current, self.current.seen[self.current], readers

    # Operators.

    @contextmanager
    def once_more(self) -> Iterator[None]:
        """Stay in charge of the parts of an operator."""
        super().__enter__()
        try:
            yield
        finally:
            super().__exit__(None, None, None)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, func.overloadpacket.__name__
        leaves = tree_leaves((args, kwargs))
        tensors = [x for x in leaves if isinstance(x, Tensor)]
        fakes = [x for x in tensors if isinstance(x, FakeTensor)]
        if not fakes and not any(isinstance(x, torch.device) and x.type == "cuda" for x in leaves):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        if func.namespace == "prim":  # asks for a property
            with self.fake:
                return func(*args, **kwargs)
        if is_composed(func):
            with self.once_more():
                made = func.decompose(*args, **kwargs)
            if made is not NotImplemented:
                return made
        if why := why_it_waits(name, args, kwargs):
            self.host_waits(f"{func}: {why}")
            return self.stand_in(func, name, args, kwargs)
        for tensor in fakes:
            self.read(tensor, name)
        if len(fakes) < len(tensors):
            args, kwargs = tree_map(self.as_fake, (args, kwargs))
        try:
            with self.fake:
                made = func(*args, **kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException):
            self.host_waits(f"{func}: its result must be known on the host")
            return self.stand_in(func, name, args, kwargs)
        for tensor in tree_leaves(made):
            if isinstance(tensor, FakeTensor) and tensor.is_cuda:
                self.write(tensor)
        return made

    def as_fake(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or isinstance(value, FakeTensor):
            return value
        with self.fake:
            return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)

    def pin(self, tensor: Tensor) -> Tensor:
        assert tensor.device.type == "cpu", "only memory of the host is pinned"
        self.pinned.append(tensor.clone())
        return self.pinned[-1]

    def host_waits(self, what: str) -> None:
        frame: Any = sys._getframe(1)
        while frame is not None:
            inside = frame.f_code.co_qualname
            if inside in self.allowed:
                self.done |= self.current.seen
                self.waits.add(inside)
                return
            frame = frame.f_back
        raise HostWaits(what)

    def stand_in(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        """Give what comes of an operator for which the host waits: zeros where it is on the CPU."""
        if name == "_local_scalar_dense":
            return 0.0 if args[0].is_floating_point() else False if args[0].dtype == torch.bool else 0
        if name in ("_to_copy", "copy_"):
            target = torch.device(kwargs["device"]) if name == "_to_copy" else args[0].device
            if target.type == "cpu":
                with unset_fake_temporarily():
                    if name == "copy_":
                        return args[0].zero_()
                    return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
            args, kwargs = tree_map(self.as_fake, (args, kwargs))
            with self.fake:
                made = func(*args, **kwargs)
            self.write(made)
            return made
        raise HostWaits(f"{func}: there is no stand-in for its result")


def gradients(outputs: Tensor, inputs: Any, **options: Any) -> tuple[Tensor, ...]:
    assert outputs.requires_grad and outputs.numel() == 1
    inputs = [inputs] if isinstance(inputs, Tensor) else inputs
    return tuple(torch.empty_like(x).requires_grad_(bool(options.get("create_graph"))) for x in inputs)


def backward(tensors: Tensor, *_: Any, inputs: Any, **options: Any) -> None:
    for tensor, gradient in zip(inputs, gradients(tensors, inputs), strict=True):
        tensor.grad = gradient


@cache
def is_composed(func: Any) -> bool:
    """Return whether an operator is made of others, which autograd would have taken apart."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")


def key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def why_it_waits(name: str, args: Any, kwargs: Any) -> str | None:
    """Say why the host waits, where fake tensors do not notice."""
    if name in CHECKED_BY_THE_HOST:
        return "the host reads whether it failed"
    if name in ("_to_copy", "copy_"):
        source = args[0] if name == "_to_copy" else args[1]
        target = torch.device(kwargs.get("device") or source.device) if name == "_to_copy" else args[0].device
        later = kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2])
        if source.numel() == 0:
            return None
        if source.is_cuda and target.type == "cpu":
            return "a copy to the host"
        if target.type == "cuda" and not source.is_cuda and not later:
            return "a copy to the device without non_blocking=True"
    if name in ("index", "index_put", "index_put_", "_index_put_impl_") and args[0].is_cuda:
        rows = [x for x in args[1] if isinstance(x, Tensor)]
        if any(x.dtype in (torch.bool, torch.uint8) for x in rows):
            return "a mask as an index is counted on the host"
        if any(not x.is_cuda for x in rows):
            return "an index on the CPU is copied"
    return None
