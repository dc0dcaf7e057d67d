"""What a program sets for torch as a whole, kept out of what we load, draw and compute."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from threading import Lock
from typing import Generic, TypeVar

import torch

__all__ = ["Once", "as_usual"]


class Float32:
    """Make float32 torch's default type for as long as any thread needs it."""

    def __init__(self) -> None:
        self.before, self.lock, self.inside = torch.float32, Lock(), 0
        if hasattr(os, "register_at_fork"):  # a thread that held the lock is not in the child
            os.register_at_fork(after_in_child=self.forget)

    def forget(self) -> None:
        """Begin with nobody inside, in a process that has no other threads yet."""
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


float32 = Float32()

Made = TypeVar("Made")


class Once(Generic[Made]):
    """Make what has a name once, and give it to all: of threads that make it together, the first one's stays.

    No lock is held meanwhile, which a fork could leave locked in the child.
    """

    def __init__(self, make: Callable[[str], Made]):
        self.make = make
        self.made: dict[str, Made] = {}

    def __call__(self, name: str) -> Made:
        """Make it, or give what was made before."""
        return self.made[name] if name in self.made else self.made.setdefault(name, self.make(name))

    def cache_clear(self) -> None:
        """Forget all."""
        self.made = {}


@contextmanager
def as_usual(*, for_autograd: bool = False) -> Iterator[None]:
    """Let torch make tensors on the CPU and in float32, and cast none, whatever the program has set.

    It undoes `torch.set_default_device`, `torch.device` as a context, `torch.set_default_dtype` and
    `torch.autocast`. What is not set costs nothing.

    Args:
        for_autograd: undo `torch.inference_mode`, too: what is made once and kept must be usable outside.
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
