"""Shield our code from torch's global settings: default dtype, default device and autocast."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from threading import Lock
from typing import Generic, TypeVar

import torch

__all__ = ["Once", "as_usual"]


class Float32:
    """Keep float32 as torch's default dtype while any thread needs it."""

    lock: Lock
    inside: int
    before: torch.dtype

    def __init__(self) -> None:
        self.before, self.lock, self.inside = torch.float32, Lock(), 0
        if hasattr(os, "register_at_fork"):  # in the child, the thread that held the lock does not exist
            os.register_at_fork(after_in_child=self.forget)

    def forget(self) -> None:
        """Reset the counter and the lock in a forked child, which has one thread."""
        if self.inside:
            torch.set_default_dtype(self.before)
        self.lock, self.inside = Lock(), 0

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self.lock:
            if self.inside == 0:
                self.before = torch.get_default_dtype()
                torch.set_default_dtype(torch.float32)
            self.inside += 1
        try:
            yield
        finally:
            with self.lock:
                self.inside -= 1
                if self.inside == 0:
                    torch.set_default_dtype(self.before)


float32: Float32 = Float32()

Made = TypeVar("Made")


class Once(Generic[Made]):
    """Make each named object once and return the same object to all callers.

    If several threads make it at the same time, the first result is kept. No lock is held, because a
    fork could leave it locked in the child.
    """

    def __init__(self, make: Callable[[str], Made]):
        self.make = make
        self.made: dict[str, Made] = {}

    def __call__(self, name: str) -> Made:
        """Return the object of this name; make it on the first call."""
        return self.made[name] if name in self.made else self.made.setdefault(name, self.make(name))

    def cache_clear(self) -> None:
        """Forget all objects."""
        self.made = {}


@contextmanager
def as_usual(*, for_autograd: bool = False) -> Iterator[None]:
    """Make torch create tensors on the CPU in float32, without autocast, inside the block.

    It undoes `torch.set_default_device`, `torch.device` as a context, `torch.set_default_dtype` and
    `torch.autocast`. Settings that are not changed cost no time.

    Args:
        for_autograd: also undo `torch.inference_mode`, for tensors that are kept and used outside of it.
    """
    with ExitStack() as stack:
        if for_autograd and torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if float32.inside or torch.get_default_dtype() != torch.float32:
            stack.enter_context(float32())
        yield
