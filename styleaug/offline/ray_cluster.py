"""Run units of work on a Ray cluster with Ray Data; if a worker dies, others repeat its units."""

import logging
import math
import os
import pickle
import socket
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import ModuleType
from typing import TYPE_CHECKING, Any

from styleaug.errors import ConfigError, StyleAugError, missing_extra

if TYPE_CHECKING:  # without torch, workers start faster
    from styleaug.offline.copies import Copier, Line, Unit

__all__ = ["run_on_ray"]

ACTORS_PER_GPU = 4
"""Actors that share a GPU: one actor decodes and encodes on one core, and leaves the GPU mostly idle."""

MAX_BLOCKS = 10_000
TRIES = 4
"""Most attempts for a unit: enough for machines that come and go, a limit for images that kill workers."""

LOCAL_CLUSTER = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Without this, under `uv run`, each worker starts with `uv run` in a packed copy of the working folder.
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
}
LOCAL_OPTIONS: dict[str, Any] = {"include_dashboard": False, "object_store_memory": 2**28}
"""Options of a local cluster. Its object store is small: it holds names and manifest lines, no images."""


def run_on_ray(
    units: Sequence["Unit"], copier: "Copier", *, workers: int = 0, address: str | None = None
) -> Generator[tuple[list["Line"], StyleAugError | None]]:
    """Process units on a cluster; yield the result of `Copier.attempt` for each, as it arrives.

    Args:
        units: units of work; a unit is repeated if its actor dies.
        copier: sent to the actors with its bank and generator.
        workers: number of actors; 0 means one per core, or `ACTORS_PER_GPU` per GPU if there are GPUs.
        address: address of a cluster. None uses the cluster that this process is connected to or that
            `RAY_ADDRESS` names, else starts one here and ends it with the run. If this process is killed
            with SIGKILL, two agents of Ray remain for 60 s (Ray has no option for it). They hold no images
            and do not disturb other runs.

    Raises:
        ConfigError: Ray is missing, or there is no cluster at `address`.
        StyleAugError: the actors cannot start, or a unit killed several of them.
    """
    if not units:
        return
    with connected(address) as ray, quiet_ray():
        actors, gpus = share(ray.cluster_resources(), workers, len(units))
        tries = ray.remote(Tries).options(num_cpus=0).remote(TRIES)
        copier = replace(copier, device="cuda" if gpus else "cpu")
        dataset = ray.data.from_items(
            [{"unit": pickle.dumps(unit)} for unit in units], override_num_blocks=min(len(units), MAX_BLOCKS)
        ).map_batches(
            Actor,
            fn_constructor_kwargs={"copier": copier, "tries": tries},
            compute=ray.data.ActorPoolStrategy(size=actors),
            batch_size=1,
            num_cpus=1,
            num_gpus=gpus,
        )
        dataset.context.enable_progress_bars = False
        dataset.context.print_on_execution_start = False
        try:
            for batch in dataset.iter_batches(batch_size=None, prefetch_batches=0):
                yield from map(pickle.loads, batch["result"])
        except (ray.exceptions.RayError, ray.data.exceptions.SystemException) as error:
            raise own_error(error) from None


class Tries:
    """Counts the attempts for each unit; Ray would repeat a unit that kills its workers without end."""

    most: int
    counts: Counter[bytes]

    def __init__(self, most: int):
        self.most, self.counts = most, Counter[bytes]()

    def begin(self, unit: bytes) -> bool:
        """Count an attempt; return True if it is allowed."""
        self.counts[unit] += 1
        return self.counts[unit] <= self.most


class Actor:
    """A worker that loads the generator once and processes units."""

    copier: "Copier"
    tries: Any

    def __init__(self, copier: "Copier", tries: Any):
        self.copier, self.tries = copier, tries

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Process the units of a batch."""
        return {"result": [pickle.dumps(self.attempt(unit)) for unit in batch["unit"]]}

    def attempt(self, pickled: bytes) -> tuple[list["Line"], StyleAugError | None]:
        """Process a unit; refuse it if it has killed several workers."""
        import ray

        unit: Unit = pickle.loads(pickled)
        may_begin: Any = ray.get(self.tries.begin.remote(pickled))
        if may_begin:
            return self.copier.attempt(unit)
        reason = "several workers died on it or on its neighbours; remove it, or give workers more memory."
        return [
            {"source": name, "error": f"{self.copier.source / name}: {reason}"} for name in unit.names
        ], None


def share(resources: Mapping[str, float], workers: int, units: int) -> tuple[int, float]:
    """Return the number of actors, and the share of a GPU for each."""
    cores, gpus = max(1, int(resources.get("CPU", 1))), int(resources.get("GPU", 0))
    most = min(cores, ACTORS_PER_GPU * gpus) if gpus else cores
    actors = min(workers or most, units)
    return actors, 1 / math.ceil(actors / gpus) if gpus else 0


@contextmanager
def connected(address: str | None) -> Iterator[ModuleType]:
    """Yield Ray, connected to a cluster; an existing connection is reused and kept."""
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    own = {name: os.environ.get(name) for name in LOCAL_CLUSTER} if address == "local" else {}
    try:
        # Ray reads these variables on import, on connecting, and when it starts workers.
        os.environ.update({name: LOCAL_CLUSTER[name] for name, value in own.items() if value is None})
        ray = import_ray()
        if ray.is_initialized():
            yield ray
            return
        check_listening(address)
        try:
            with without_stderr():
                options = LOCAL_OPTIONS if own else {}
                ray.init(address=address, log_to_driver=False, logging_level="ERROR", **options)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ConfigError(f"there is no Ray cluster at {address!r}: {error}") from None
        try:
            yield ray
        finally:
            ray.shutdown()
    finally:
        for name, value in own.items():
            if value is None:
                os.environ.pop(name, None)


def check_listening(address: str) -> None:
    """Check that a host and port accept connections; Ray itself would wait for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except OSError as error:
        raise ConfigError(f"there is no Ray cluster at {address!r}: {error.strerror or error}.") from None


@contextmanager
def without_stderr() -> Iterator[None]:
    """Discard the messages that C libraries write to stderr."""
    kept = os.dup(2)
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def import_ray() -> ModuleType:
    """Import Ray and Ray Data.

    Raises:
        ConfigError: one of them is not installed.
    """
    try:
        import ray
        import ray.data
        import ray.exceptions
    except ImportError as error:
        raise missing_extra("engine 'ray'", "Ray Data", "ray") from error
    return ray


@contextmanager
def quiet_ray() -> Iterator[None]:
    """Hide Ray's own messages, which would disturb the progress bar."""
    loggers = [logging.getLogger(name) for name in ("ray", "ray.data")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def own_error(error: BaseException) -> StyleAugError:
    """Return our error from inside Ray's error, or a one-line error about what went wrong."""
    cause: BaseException | None = error
    said = type(error).__name__
    while cause is not None:
        if isinstance(cause, StyleAugError) and not hasattr(cause, "cause"):
            return cause
        said = (str(cause).strip().splitlines() or [said])[-1].strip()
        cause = getattr(cause, "cause", None) or cause.__cause__
    return StyleAugError(
        f"Ray gave up: {said} (Run the same command again to go on. All machines of the cluster need "
        "styleaug and the paths of the images.)"
    )
