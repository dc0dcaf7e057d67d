"""Tasks done one after the other here, or several at once in processes of their own."""

import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, get_context
from typing import Any

from styleaug.errors import StyleAugError

__all__ = ["Workers"]

Task = tuple[Callable[[Any], Any], Any]


class Workers:
    """Do tasks one after the other here, or several at once in processes of their own."""

    def __init__(self, jobs: int):
        self.tasks: list[Task] = []
        self.last: Any = None
        self.pool = None
        self.strangers = set(active_children())
        if jobs > 1:
            # Ctrl-C reaches every process of a terminal; only this one is to answer.
            deaf = (signal.SIGINT, signal.SIG_IGN)
            spawn = get_context("spawn")
            self.pool = ProcessPoolExecutor(jobs, mp_context=spawn, initializer=signal.signal, initargs=deaf)

    def __enter__(self) -> "Workers":
        """Give the workers."""
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        """End the processes; on an error, at once."""
        if self.pool is None:
            return
        self.pool.shutdown(wait=error is None, cancel_futures=True)
        if error is not None:
            for child in set(active_children()) - self.strangers:
                child.terminate()

    def add(self, function: Callable[[Any], Any], argument: Any) -> None:
        """Put a task on the list."""
        self.tasks.append((function, argument))

    def run(self, keep: Callable[[Any], None] = lambda result: None) -> Iterator[tuple[int, int]]:
        """Do the tasks of the list; give how many are done, and how many there are, after each."""
        tasks, self.tasks = self.tasks, []
        for number, result in enumerate(self.results(tasks), start=1):
            self.last = result
            keep(result)
            yield number, len(tasks)

    def results(self, tasks: list[Task]) -> Iterator[Any]:
        """Give the results as they come."""
        if self.pool is None:
            yield from (function(argument) for function, argument in tasks)
            return
        try:
            futures = [self.pool.submit(function, argument) for function, argument in tasks]
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool:
            raise StyleAugError(
                "a process ended unexpectedly, perhaps for want of memory; use fewer jobs (--workers). "
                "Finished runs are kept."
            ) from None
